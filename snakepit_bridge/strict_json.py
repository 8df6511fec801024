"""JSON read strictly: what is ambiguous or beyond a client's reach is refused.

The wire contract's rules: UTF-8; no ``NaN``/``Infinity`` literals, no number beyond a
float's range written as a float (``1e400``), no lone surrogates, no key given twice, no
nesting beyond 64 levels, integers exact and of at most 4,300 digits.

orjson comes first: it refuses most of this at once, and deep nesting (1,024 levels)
before anything recurses. It silently keeps the last of two equal keys and rounds
integers beyond 64 bits (or refuses them, beyond a float's range). Only where that could
matter does the standard parser read the text again, with hooks.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import orjson

from snakepit_bridge.errors import InvalidValue, quote

__all__ = ["INTEGER_BOUND", "MAX_DEPTH", "MAX_DIGITS", "integer", "mismatch", "parse", "shown"]

MAX_DEPTH = 64
"""Levels of arrays and objects; protobuf's own JSON and binary parsers stop at 100."""

MAX_DIGITS = 4300
"""Digits of an integer: Python's own limit for int <-> str, which are quadratic beyond
(CVE-2020-10735), and therefore the wire contract's."""

INTEGER_BOUND = 10**MAX_DIGITS
"""The absolute value of an integer is below this."""

_SHOWN = 80
"""Characters of input that a message repeats, as ``errors.quote``."""

_INTEGER = re.compile(rb"[ \t\n\r]*(-?(?:0|[1-9][0-9]*))[ \t\n\r]*")
# 19 digits are the fewest that can exceed 64 bits.
_LONG = re.compile(rb"[0-9]{19}")
# From 309 digits on orjson takes an integer for infinite. With 20 of its digits left (an
# escape needs four of them) the text is otherwise the same: orjson can judge the rest.
_HUGE = re.compile(rb"([0-9]{20})[0-9]{280,}")


def parse(text: bytes) -> object:
    """Read any JSON text, null included.

    :raises InvalidValue: it breaks a rule above; the message says which, and where. It
        does not name the field, which the caller knows.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        try:
            value = orjson.loads(_HUGE.sub(rb"\1", text))
        except orjson.JSONDecodeError:
            raise InvalidValue(f"not valid JSON: {error}") from None
    _check_depth(text, value)
    if b"{" in text or _LONG.search(text):
        return _DECODER.decode(text.decode())
    return value


def integer(text: bytes) -> int | None:
    """Read a text that is a JSON integer, exactly; None when it is anything else.

    :raises InvalidValue: it has more than 4,300 digits.
    """
    match = _INTEGER.fullmatch(text)
    return _integer(match[1].decode()) if match else None


def shown(text: bytes) -> str:
    """Quote JSON text for a message, shortened; bytes that are not UTF-8 as U+FFFD."""
    if len(text) > _SHOWN:
        half = _SHOWN // 2 - 2
        text = text[:half] + b"..." + text[-half:]
    return quote(text.decode("utf-8", "replace"))


def mismatch(type_name: str, expected: str, given: str) -> InvalidValue:
    """Make the refusal of a value that is not of its type: one wording for all types."""
    return InvalidValue(
        f"a value of type {type_name} must be {expected}, not {given}", field="value"
    )


def _integer(text: str) -> int:
    digits = len(text) - text.startswith("-")
    if digits > MAX_DIGITS:
        raise InvalidValue(f"an integer of {digits} digits: at most {MAX_DIGITS} are allowed")
    return int(text)


def _float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise InvalidValue(f"not valid JSON: {quote(text)} is beyond the range of a float")
    return number


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise InvalidValue(f"not valid JSON: the key {quote(key)} is given twice")
            seen.add(key)
    return members


def _check_depth(text: bytes, value: object) -> None:
    if text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return
    level: list[Any] = [value] if type(value) in (list, dict) else []
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            for child in (parent.values() if type(parent) is dict else parent)
            if type(child) in (list, dict)
        ]
        if not level:
            return
    raise InvalidValue(f"not valid JSON: nested deeper than {MAX_DEPTH} levels")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_int=_integer, parse_float=_float)
