"""How arguments are read for the simple type hints: ``int``, ``list``, ``np.ndarray``, ``Literal``.

The rules are the wire contract's: nothing is coerced from a string to a number, true is no integer,
3.0 is one.
"""

from __future__ import annotations

import typing
from collections import abc
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args, get_origin

import numpy as np

from snakepit_bridge.errors import InvalidValue, quote
from snakepit_bridge.json_arrays import write_tensor
from snakepit_bridge.tools.failures import shortened

__all__ = ["ANY", "ARRAY", "Mismatch", "Reading", "nullable", "shown", "simple_reading"]

_MAX_WORDS = 200
"""Bytes of choices that a message lists."""


class Mismatch(Exception):
    """An argument is not what its parameter's hint says.

    :param problem: words that repeat nothing of the argument.
    :param detail: words that may.
    :param path: of the part inside the argument: ``[3].name``.
    """

    def __init__(self, problem: str, detail: str = "", path: str = "") -> None:
        super().__init__(problem + detail)
        self.problem = problem
        self.detail = detail
        self.path = path


class Reading(NamedTuple):
    """How the values of one hint are read."""

    wire_type: str
    """Its name on the wire."""
    schema: Mapping[str, Any]
    """JSON Schema."""
    exact: frozenset[type]
    """Values of these very types are taken as they are, without calling ``read``."""
    read: Callable[[object], object]
    """An argument → what the tool gets. Raises ``Mismatch``."""
    plain: Callable[[object], object]
    """A default → what stands for it on the wire. May raise."""


def simple_reading(hint: object) -> Reading | None:
    """The reading of a hint that needs no pydantic."""
    if isinstance(hint, typing.TypeVar):
        return ANY
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal and all(type(one) in (str, int, bool) for one in arguments):
        return _literal(arguments)
    if origin is np.ndarray:
        return ARRAY
    if origin is not None and arguments in ((), (Any,), (str, Any), (object,), (str, object)):
        hint = origin  # list[Any] is what list is; of others, _SIMPLE has no plain form
    try:
        return _SIMPLE.get(hint)
    except TypeError:  # not hashable, so none of these
        return None


def nullable(reading: Reading) -> Reading:
    if not reading.schema or type(None) in reading.exact:
        return reading

    def read(value: object) -> object:
        return None if value is None else reading.read(value)

    def plain(value: object) -> object:
        return None if value is None else reading.plain(value)

    return Reading(
        reading.wire_type,
        {"anyOf": [dict(reading.schema), {"type": "null"}]},
        reading.exact | {type(None)},
        read,
        plain,
    )


def _same(value: object) -> object:
    return value


def _not(expected: str, value: object) -> Mismatch:
    return Mismatch(f"must be {expected}", f", not {shown(value)}")


def shown(value: object) -> str:
    """Name an argument as its sender knows it, shortened."""
    if value is None:
        return "null"
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the string {quote(value)}"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, np.ndarray):
        return f"an array of shape {list(value.shape)}"
    if isinstance(value, int | float | np.number):
        try:
            return shortened(str(value), 80)
        except ValueError:  # more than 4,300 digits
            return "a huge integer"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"an object of {len(value)}"
    return f"a {type(value).__name__}"


def _read_integer(value: object) -> object:
    if isinstance(value, bool):
        raise _not("an integer", value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return int(value)
    raise _not("an integer", value)


def _read_float(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise _not("a number", value)
    try:
        return float(value)
    except OverflowError:
        raise _not("a number in the range of a float", value) from None


def _read_string(value: object) -> object:
    if not isinstance(value, str):
        raise _not("a string", value)
    return value


def _read_boolean(value: object) -> object:
    if not isinstance(value, bool | np.bool_):
        raise _not("true or false", value)
    return bool(value)


def _read_bytes(value: object) -> object:
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    raise _not("bytes (send them in binary_parameters)", value)


def _read_list(value: object) -> object:
    if isinstance(value, np.ndarray) and value.ndim:
        return value.tolist()
    if isinstance(value, list | tuple):
        return list(value)
    raise _not("a list", value)


def _read_map(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise _not("an object", value)


def _read_array(value: object) -> object:
    expected = "a tensor, or numbers in evenly nested lists"
    if not isinstance(value, list | tuple | dict):
        raise _not(expected, value)
    try:
        return write_tensor(value)[0]
    except InvalidValue as error:
        raise Mismatch(f"must be {expected}", f" ({error.message})") from None


def _plain_float(value: object) -> object:
    return float(value) if type(value) is int else value


ANY = Reading("any", {}, frozenset(), _same, _same)
"""Takes whatever comes, null included."""

ARRAY = Reading(
    "tensor", {"type": ["array", "object"]}, frozenset({np.ndarray}), _read_array, _same
)
_LIST = Reading("list", {"type": "array", "items": {}}, frozenset({list}), _read_list, _same)
_MAP = Reading(
    "map", {"type": "object", "additionalProperties": True}, frozenset({dict}), _read_map, _same
)
_SIMPLE: dict[object, Reading] = {
    Any: ANY,
    object: ANY,
    str: Reading("string", {"type": "string"}, frozenset({str}), _read_string, _same),
    int: Reading("integer", {"type": "integer"}, frozenset({int}), _read_integer, _same),
    float: Reading("float", {"type": "number"}, frozenset({float}), _read_float, _plain_float),
    bool: Reading("boolean", {"type": "boolean"}, frozenset({bool}), _read_boolean, _same),
    bytes: Reading(
        "binary", {"type": "string", "format": "binary"}, frozenset({bytes}), _read_bytes, _same
    ),
    np.ndarray: ARRAY,
    list: _LIST,
    abc.Sequence: _LIST,
    abc.MutableSequence: _LIST,
    abc.Iterable: _LIST,
    abc.Collection: _LIST,
    dict: _MAP,
    abc.Mapping: _MAP,
    abc.MutableMapping: _MAP,
}


def _literal(choices: tuple[Any, ...]) -> Reading:
    # Not pydantic's: there true is 1.
    known = {(type(choice), choice): choice for choice in choices}
    words = shortened(", ".join(map(repr, choices)), _MAX_WORDS)
    expected = f"one of {words}" if len(choices) > 1 else words

    def read(value: object) -> object:
        at = int(value) if isinstance(value, float) and value.is_integer() else value
        try:
            return known[type(at), at]
        except (KeyError, TypeError):  # TypeError: not hashable
            raise _not(expected, value) from None

    return Reading("choice", {"enum": list(choices)}, frozenset(), read, _same)
