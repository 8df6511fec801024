"""Numbers, strings and booleans in their JSON form.

The wire contract: nothing is coerced from a string or a boolean. A float is a JSON number
or one of ``"NaN"``, ``"Infinity"``, ``"-Infinity"``; an integer may be written with a
fraction of zero; choices and modules are strings. There are no null values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any, TypeGuard

import numpy as np
import orjson

from snakepit_bridge.errors import InvalidValue, quote
from snakepit_bridge.json_arrays import SPECIAL_FLOATS, special_float
from snakepit_bridge.strict_json import INTEGER_BOUND, MAX_DIGITS, integer, mismatch, shown

__all__ = [
    "BOOLEAN",
    "FLOAT",
    "INTEGER",
    "STRING",
    "described",
    "json_string",
    "read_boolean",
    "read_float",
    "read_integer",
    "write_boolean",
    "write_float",
    "write_integer",
]

FLOAT = 'a number, or "NaN", "Infinity" or "-Infinity"'
INTEGER = "an integer"
STRING = "a string"
BOOLEAN = "true or false"

_SHORT = 10**40


def read_float(text: bytes) -> tuple[float, bytes]:
    """Read a float.

    :raises InvalidValue: it is none, or an integer beyond the range of a float.
    """
    try:
        number = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise _invalid("float", FLOAT, text, error) from None
    if type(number) is float:
        return number, text
    if type(number) is int:
        return float(number or text), text  # of the text, as -0 is no int
    if type(number) is str and number in SPECIAL_FLOATS:
        return SPECIAL_FLOATS[number], text
    raise _wrong("float", FLOAT, text)


def write_float(value: object) -> tuple[float, bytes]:
    """Write a float, or an int as one (rounded beyond 2^53, as JSON readers do)."""
    if type(value) is float and math.isfinite(value):
        return value, orjson.dumps(value)
    if isinstance(value, bool) or not _is_number(value):
        raise _given("float", FLOAT, value)
    try:
        number = float(value)
    except OverflowError:
        raise mismatch("float", FLOAT, "an int beyond the range of a float") from None
    return number, orjson.dumps(special_float(number) or number)


def read_integer(text: bytes) -> tuple[int, bytes]:
    """Read an integer of up to 4,300 digits, exactly.

    :returns: it, and its JSON: the text, or the integer's own where it had a fraction or
        an exponent (``3.0``, ``1e3``).
    :raises InvalidValue: it is none; ``9007199254740993.5`` is not rounded to one.
    """
    try:
        number = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if (exact := _exact_integer(text)) is not None:
            return exact, text
        raise _invalid("integer", INTEGER, text, error) from None
    if type(number) is int:
        return number, text
    if type(number) is float:
        if (exact := _exact_integer(text)) is not None:
            return exact, text
        if (exact := _without_fraction(text)) is not None:
            return exact, str(exact).encode()
    raise _wrong("integer", INTEGER, text)


def write_integer(value: object) -> tuple[int, bytes]:
    """Write an integer, or a float without fraction."""
    if isinstance(value, bool) or not _is_number(value):
        raise _given("integer", INTEGER, value)
    if isinstance(value, float | np.floating) and not float(value).is_integer():
        raise _given("integer", INTEGER, value)
    number = int(value)
    if not -INTEGER_BOUND < number < INTEGER_BOUND:
        raise mismatch("integer", INTEGER, f"one of more than {MAX_DIGITS} digits")
    return number, str(number).encode()


def json_string(name: str) -> tuple[Callable[[bytes], Any], Callable[[object], Any]]:
    """Make the reader and the writer of a type whose values are strings."""

    def read(text: bytes) -> tuple[str, bytes]:
        try:
            string = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise _invalid(name, STRING, text, error) from None
        if type(string) is not str:
            raise _wrong(name, STRING, text)
        return string, text

    def write(value: object) -> tuple[str, bytes]:
        if not isinstance(value, str):
            raise _given(name, STRING, value)
        string = str.__str__(value)  # of a str enum: its value
        try:
            return string, orjson.dumps(string)
        except orjson.JSONEncodeError:
            given = f"{quote(string)}, which has a lone surrogate and so no UTF-8"
            raise mismatch(name, STRING, given) from None

    return read, write


def read_boolean(text: bytes) -> tuple[bool, bytes]:
    """Read a boolean; 0, 1 and strings are none."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise _invalid("boolean", BOOLEAN, text, error) from None
    if type(value) is not bool:
        raise _wrong("boolean", BOOLEAN, text)
    return value, text


def write_boolean(value: object) -> tuple[bool, bytes]:
    """Write a bool or numpy bool."""
    if not isinstance(value, bool | np.bool_):
        raise _given("boolean", BOOLEAN, value)
    return bool(value), b"true" if value else b"false"


def described(value: object) -> str:
    """Name a Python value in a message: its type, and a short one itself."""
    if value is None:
        return "None: there are no null values"
    kind = type(value).__name__
    if isinstance(value, str):
        return f"{kind} {quote(value)}"
    if isinstance(value, int) and not -_SHORT < value < _SHORT:
        return kind  # beyond 4,300 digits Python refuses to write it
    return f"{kind} {value}" if isinstance(value, np.bool_) or _is_number(value) else kind


def _exact_integer(text: bytes) -> int | None:
    try:
        return integer(text)
    except InvalidValue as error:
        raise mismatch("integer", INTEGER, error.message) from None


def _is_integer(text: bytes) -> bool:
    try:
        return integer(text) is not None
    except InvalidValue:
        return True


def _without_fraction(text: bytes) -> int | None:
    # Exact, where the float is not: 9007199254740993.0 is an odd number.
    if len(text) > MAX_DIGITS:
        return None
    try:
        exact = Decimal(text.decode().strip())
    except InvalidOperation:  # an exponent beyond 18 digits: a tiny fraction
        return None
    return int(exact) if exact == exact.to_integral_value() else None


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) or (
        # Not timedelta64, which numpy counts among the integers.
        isinstance(value, np.number) and value.dtype.kind in "iuf"
    )


def _invalid(name: str, expected: str, text: bytes, error: Exception) -> InvalidValue:
    if name == "float" and _is_integer(text):
        return mismatch(name, expected, f"{shown(text)}, beyond the range of a float")
    if not text:
        return mismatch(name, expected, "empty: Any.value holds its JSON")
    return mismatch(name, expected, f"{shown(text)} (not valid JSON: {error})")


def _wrong(name: str, expected: str, text: bytes) -> InvalidValue:
    if text.strip() == b"null":
        return mismatch(name, expected, "null: there are no null values")
    return mismatch(name, expected, shown(text))


def _given(name: str, expected: str, value: object) -> InvalidValue:
    return mismatch(name, expected, described(value))
