"""Constraints on a variable's values: ``constraints_json`` read once, checked on each set.

The wire contract says which keys a type has (section 3), and words that existing clients
look for: "Invalid constraints" here, "above maximum" and "below minimum" in the checks. A
key that the type does not have is refused, since a limit that is misspelt would silently
not hold. ``description``, ``device`` and ``distance_metric`` are kept and not enforced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from snakepit_bridge import constraint_checks as checks
from snakepit_bridge.constraint_checks import Check, short
from snakepit_bridge.errors import InvalidConstraints, InvalidValue, quote
from snakepit_bridge.json_arrays import MAX_RANK
from snakepit_bridge.linear_pattern import compile_pattern, pattern_work
from snakepit_bridge.strict_json import parse

__all__ = ["UNCONSTRAINED", "Constraints", "parse_constraints"]

MAX_BYTES = 65_536
"""Of ``constraints_json``: each read of the variable repeats it, and a client takes 4 MiB
in a message by gRPC's default."""

MAX_CHOICES = 10_000
"""Strings in one list; 64 KiB hold few more."""

CACHED = 1_024
"""Constraints kept parsed: at most 64 MiB of text."""

_NOT_ENFORCED = ("description", "device", "distance_metric")


@dataclass(frozen=True, slots=True)
class Constraints:
    """What a variable's values must fulfil. Immutable; false where there is nothing."""

    checks: tuple[Check, ...] = ()
    pattern: str = ""

    def __bool__(self) -> bool:
        return bool(self.checks)

    def check(self, value: object) -> None:
        """Check a typed Python value, as ``type_serialization.accept`` gives it.

        :raises InvalidValue: it violates a constraint; the message says which and how.
        """
        for check in self.checks:
            check(value)

    def work(self, size: int) -> int:
        """What checking a value of so many bytes may take; see ``linear_pattern.MAX_WORK``."""
        return pattern_work(self.pattern, size) if self.pattern else 0


UNCONSTRAINED = Constraints()


def parse_constraints(type_name: str, constraints_json: str) -> Constraints:
    """Read a variable's constraints. The last 1,024 are remembered.

    :param constraints_json: a JSON object of at most 64 KiB; empty means ``{}``.
    :raises InvalidConstraints: it is none, or has a key that the type does not have or
        something that the key cannot have.
    """
    if not constraints_json or constraints_json == "{}":
        return UNCONSTRAINED
    return _parse(type_name, constraints_json)


@lru_cache(maxsize=CACHED)
def _parse(type_name: str, constraints_json: str) -> Constraints:
    given = _Given(type_name, constraints_json)
    keys, build = _TYPES.get(type_name, ((), _none))
    for key in given.members:
        if key not in keys and key not in _NOT_ENFORCED:
            allowed = ", ".join((*keys, *_NOT_ENFORCED))
            raise given.refusal(f"unknown key {quote(key)}, allowed are {allowed}")
    found = tuple(build(given))
    if not found:
        return UNCONSTRAINED
    return Constraints(found, given.members.get("pattern", "") if "pattern" in keys else "")


class _Given:
    """A ``constraints_json``, whose members are read as what they must be."""

    def __init__(self, type_name: str, text: str) -> None:
        self.type_name = type_name
        try:
            encoded = text.encode()
        except UnicodeEncodeError:
            raise self.refusal("a lone surrogate, which has no UTF-8") from None
        if len(encoded) > MAX_BYTES:
            raise self.refusal(f"{len(encoded)} bytes, at most {MAX_BYTES} are allowed")
        try:
            members = parse(encoded)
        except InvalidValue as error:
            raise self.refusal(error.message) from None
        if not isinstance(members, dict):
            raise self.refusal(f"must be a JSON object, not {quote(text)}")
        self.members: dict[str, Any] = members

    def refusal(self, why: str) -> InvalidConstraints:
        return InvalidConstraints(
            f"Invalid constraints for type {self.type_name}: {why}", field="constraints_json"
        )

    def wrong(self, key: str, expected: str) -> InvalidConstraints:
        given = self.members[key]
        words = quote(given) if isinstance(given, str) else quote(short(given))
        return self.refusal(f"{key} must be {expected}, not {words}")

    def number(self, key: str) -> int | float | None:
        """Read a number, an integer exactly; one beyond a float bounds only integers."""
        if key not in self.members:
            return None
        number = self.members[key]
        if type(number) is float:
            return number
        if type(number) is not int:
            raise self.wrong(key, "a number")
        if self.type_name == "float":
            try:
                float(number)
            except OverflowError:
                raise self.wrong(key, "a number in the range of a float") from None
        return number

    def size(self, key: str) -> int | None:
        if key not in self.members:
            return None
        size = self.members[key]
        if type(size) is not int or size < 0:
            raise self.wrong(key, "a non-negative integer")
        return size

    def string(self, key: str) -> str | None:
        if key not in self.members:
            return None
        string = self.members[key]
        if type(string) is not str or not string:
            raise self.wrong(key, "a string that is not empty")
        return string

    def strings(self, key: str) -> tuple[str, ...]:
        strings = self.members[key]
        if type(strings) is not list or not all(type(item) is str for item in strings):
            raise self.wrong(key, "a list of strings")
        if not strings:
            raise self.refusal(f"{key} is empty: leave it out to allow any")
        if len(strings) > MAX_CHOICES:
            raise self.refusal(f"{len(strings)} {key}, at most {MAX_CHOICES} are allowed")
        return tuple(strings)

    def in_order(self, low: str, high: str) -> None:
        lower, upper = self.members.get(low), self.members.get(high)
        if lower is not None and upper is not None and lower > upper:
            raise self.refusal(f"{low} {short(lower)} is above {high} {short(upper)}")


def _none(_: _Given) -> Iterator[Check]:
    return iter(())


def _number(given: _Given) -> Iterator[Check]:
    lower, upper, step = given.number("min"), given.number("max"), given.number("step")
    given.in_order("min", "max")
    if lower is not None or upper is not None:
        yield checks.bounds(lower, upper)
    if step is None:
        return
    base = 0 if lower is None else lower
    if step <= 0:
        raise given.wrong("step", "above 0")
    if given.type_name == "float":
        yield checks.float_step(float(base), float(step))
        return
    for key, number in (("step", step), ("min", base)):
        if number != int(number):
            raise given.wrong(key, "an integer where the steps of an integer are counted")
    yield checks.integer_step(int(base), int(step))


def _string(given: _Given) -> Iterator[Check]:
    shortest, longest = given.size("min_length"), given.size("max_length")
    given.in_order("min_length", "max_length")
    if shortest is not None or longest is not None:
        yield checks.lengths(shortest, longest)
    yield from _lists(given, "enum")
    yield from _pattern(given)


def _choice(given: _Given) -> Iterator[Check]:
    return _lists(given, "choices")


def _module(given: _Given) -> Iterator[Check]:
    yield from _lists(given, "choices", "allowed_modules")
    namespace = given.string("namespace")
    if namespace is not None:
        name = namespace.removesuffix(".")
        if not name:
            raise given.wrong("namespace", "a dotted name")
        yield checks.namespace(name)
    yield from _pattern(given)


def _lists(given: _Given, *keys: str) -> Iterator[Check]:
    for key in keys:
        if key in given.members:
            yield checks.one_of(key, given.strings(key))


def _pattern(given: _Given) -> Iterator[Check]:
    pattern = given.string("pattern")
    if pattern is None:
        return
    try:
        compile_pattern(pattern)
    except ValueError as error:
        raise given.refusal(f"pattern {quote(pattern)}: {error}") from None
    yield checks.pattern(pattern)


def _embedding(given: _Given) -> Iterator[Check]:
    dimensions = given.size("dimensions")
    if dimensions is not None:
        yield checks.dimensions(dimensions)
    normalize = given.members.get("normalize", False)
    if type(normalize) is not bool:
        raise given.wrong("normalize", "true or false")
    if normalize:
        yield checks.unit_norm


def _tensor(given: _Given) -> Iterator[Check]:
    if "shape" in given.members:
        shape = given.members["shape"]
        if type(shape) is not list or not all(
            extent is None or (type(extent) is int and extent >= 0) for extent in shape
        ):
            raise given.wrong("shape", "a list of non-negative integers, null for any extent")
        if len(shape) > MAX_RANK:
            raise given.refusal(
                f"shape of {len(shape)} dimensions, a tensor has {MAX_RANK} at most"
            )
        yield checks.extents(tuple(shape))
    if "dtype" in given.members:
        dtype = given.members["dtype"]
        if type(dtype) is not str or dtype not in checks.DTYPES:
            raise given.wrong("dtype", f"one of {', '.join(checks.DTYPES)}")
        yield checks.dtype(dtype)


_TYPES: dict[str, tuple[tuple[str, ...], Callable[[_Given], Iterator[Check]]]] = {
    "float": (("min", "max", "step"), _number),
    "integer": (("min", "max", "step"), _number),
    "string": (("min_length", "max_length", "pattern", "enum"), _string),
    "choice": (("choices",), _choice),
    "module": (("choices", "allowed_modules", "pattern", "namespace"), _module),
    "embedding": (("dimensions", "normalize"), _embedding),
    "tensor": (("shape", "dtype"), _tensor),
}
