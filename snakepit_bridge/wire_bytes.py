"""Large fields of protobuf messages, taken out and put in without copying them again.

The protobuf library copies a bytes field into a message and out of it. For a tensor of 64 MiB
these copies cost as much as its digest, so that such fields are cut out of a request before
it is parsed, and joined to a response after it was serialized. The wire format allows it:
fields come in any order.
"""

from __future__ import annotations

from functools import lru_cache

__all__ = ["LARGE", "cut_out", "prefix"]

LARGE = 65_536
"""Bytes from which this pays."""

MOST_FIELDS = 1_000
"""Fields that are looked through; a request has a dozen, and one for each key of metadata."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT = 10


def cut_out(raw: bytes, number: int) -> tuple[bytes, bytes]:
    """The message without its field ``number``, and the content of that field.

    Of several the last counts. Bytes that are no message, or one of very many fields, are
    given back as they are, for the parser.
    """
    kept: list[memoryview] = []
    content = memoryview(b"")
    view = memoryview(raw)
    at = 0
    try:
        while at < len(raw):
            if len(kept) > MOST_FIELDS:
                return raw, b""
            start = at
            tag, at = _varint(raw, at)
            end = _end(raw, at, tag & 7)
            if tag == number << 3 | _BYTES:
                _, at = _varint(raw, at)
                content = view[at:end]
            else:
                kept.append(view[start:end])
            at = end
    except ValueError:
        return raw, b""
    return b"".join(kept), bytes(content)


@lru_cache
def prefix(number: int, size: int) -> bytes:
    """What stands before a bytes field of so many bytes."""
    return _varint_bytes(number << 3 | _BYTES) + _varint_bytes(size)


def _end(raw: bytes, at: int, wire_type: int) -> int:
    if wire_type == _BYTES:
        size, at = _varint(raw, at)
        at += size
    elif wire_type == _VARINT:
        _, at = _varint(raw, at)
    elif wire_type == _FIXED64:
        at += 8
    elif wire_type == _FIXED32:
        at += 4
    else:
        raise ValueError("a group")
    if at > len(raw):
        raise ValueError("cut off")
    return at


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place, byte in enumerate(raw[at : at + _LONGEST_VARINT]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:  # noqa: PLR2004 - the bit that says that more follows
            return value, at + place + 1
    raise ValueError("cut off")


def _varint_bytes(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:  # noqa: PLR2004 - seven bits a byte
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
