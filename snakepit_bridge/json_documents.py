"""The maps and lists of tools: any JSON inside, null included.

What JSON has no numbers for is written as the wire contract has it everywhere: as the
strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``. They are read as the strings that
they are: nothing tells them from strings, and nothing is ever coerced from one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from snakepit_bridge.errors import InvalidValue
from snakepit_bridge.json_arrays import special_float
from snakepit_bridge.json_scalars import described
from snakepit_bridge.strict_json import (
    INTEGER_BOUND,
    MAX_DEPTH,
    MAX_DIGITS,
    mismatch,
    parse,
    shown,
)

__all__ = ["DOCUMENT", "LIST", "MAP", "json_container", "write_document"]

MAP = "an object"
LIST = "a list"
DOCUMENT = "a JSON value"

_AS_THEY_ARE = frozenset({str, bool, type(None)})


def json_container(
    name: str, kind: type[dict[str, Any] | list[Any]]
) -> tuple[Callable[[bytes], Any], Callable[[object], Any]]:
    """Make the reader and the writer of map or list. null may stand inside, not for one.

    The writer takes what ``write_document`` does. Both give the value as it is read:
    dicts, lists, str, int, float, bool and None.
    """
    expected = MAP if kind is dict else LIST

    def read(text: bytes) -> tuple[Any, bytes]:
        try:
            value = parse(text)
        except InvalidValue as error:
            raise mismatch(name, expected, f"{shown(text)} ({error.message})") from None
        if type(value) is not kind:
            given = "null: there are no null values" if value is None else shown(text)
            raise mismatch(name, expected, given)
        return value, text

    def write(value: object) -> tuple[Any, bytes]:
        plain = _plain(name, expected, value, 0)
        if type(plain) is not kind:
            raise mismatch(name, expected, described(value))
        return plain, _dump(name, expected, plain)

    return read, write


def write_document(name: str, expected: str, value: object) -> bytes:
    """Write any Python value that JSON has, as strict JSON.

    That is None, bool, str, int of up to 4,300 digits, float, numpy scalars and arrays of
    these, and lists, tuples and dicts (with str as keys) of all of them, of up to 64 levels.

    :param name: of the type, and what it must be, for messages.
    :raises InvalidValue: it is, or has inside, something else.
    """
    return _dump(name, expected, _plain(name, expected, value, 0))


def _dump(name: str, expected: str, plain: object) -> bytes:
    # Not orjson, which has no integers beyond 64 bits.
    text = json.dumps(plain, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise mismatch(name, expected, "one with a lone surrogate inside") from None


def _plain(name: str, expected: str, value: object, depth: int) -> Any:  # noqa: ANN401
    """Give the same value as JSON reads it; ``depth`` levels of lists and dicts are around."""
    if type(value) in _AS_THEY_ARE:
        return value
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biufUO":  # a datetime64 becomes an integer
            raise mismatch(name, expected, f"one with an array of dtype {value.dtype} inside")
        value = value.tolist()
    if not isinstance(value, list | tuple | dict):
        return _scalar(name, expected, value)
    if depth >= MAX_DEPTH:
        raise mismatch(name, expected, f"one nested deeper than {MAX_DEPTH} levels")
    if not isinstance(value, dict):
        return [_plain(name, expected, item, depth + 1) for item in value]
    if not all(isinstance(key, str) for key in value):
        raise mismatch(name, expected, "one with keys that are not strings")
    return {
        str.__str__(key): _plain(name, expected, item, depth + 1) for key, item in value.items()
    }


def _scalar(name: str, expected: str, value: object) -> object:
    if value is None or isinstance(value, bool | np.bool_):
        return None if value is None else bool(value)
    if isinstance(value, str):
        return str.__str__(value)  # of a str enum: its value
    if isinstance(value, float | np.floating):
        return special_float(float(value)) or float(value)
    if isinstance(value, int | np.integer) and not isinstance(value, np.timedelta64):
        number = int(value)
        if -INTEGER_BOUND < number < INTEGER_BOUND:
            return number
        raise mismatch(name, expected, f"one with more than {MAX_DIGITS} digits inside")
    raise mismatch(name, expected, f"one with {described(value)} inside")
