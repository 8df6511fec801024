"""The types of values: from the wire to Python and to the stored form, and back.

Each type is one ``VariableType``: how its JSON is read and how a Python value is written.
``accept`` takes what a client sent, ``encode`` what Python code gives; both answer with the
typed Python value, for the constraint check, and the ``Value`` that is stored and goes
back out. ``to_python`` reads a stored value again.

What is stored is an ``Any`` of our own making around the client's JSON bytes, under the
type_url prefix it came with. These bytes are kept as sent, with one exception: an integer
written as a float without fraction is stored as the integer that it is. So whatever a
client sent, strict JSON goes out: one value that an Elixir client cannot decode would break
its whole ``list_variables``. (All from the wire contract, section 3.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
from google.protobuf import any_pb2, struct_pb2
from google.protobuf.message import DecodeError

from snakepit_bridge import json_scalars as scalars
from snakepit_bridge.errors import InvalidValue, quote
from snakepit_bridge.events.model import Value, make_value
from snakepit_bridge.json_arrays import (
    EMBEDDING,
    TENSOR,
    read_embedding,
    read_tensor,
    special_float,
    write_embedding,
    write_tensor,
)
from snakepit_bridge.strict_json import mismatch

__all__ = [
    "DSPEX_PREFIX",
    "SNAKEPIT_PREFIX",
    "TypeSerializer",
    "VariableType",
    "accept",
    "accept_any",
    "check_type",
    "encode",
    "register_type",
    "stored_type",
    "to_python",
]

DSPEX_PREFIX = "dspex.variables/"
"""Ours: the default."""

SNAKEPIT_PREFIX = "type.googleapis.com/snakepit."
"""Snakepit 0.4's. A value goes back out under the prefix it came in with."""

_PROTOBUF_VALUE = "type.googleapis.com/google.protobuf.Value"
_SEVEN_BITS = 0x7F
"""The largest length that protobuf writes as one byte."""
_SHORTEST = 4
"""Bytes of an Any that can have a type_url and a value."""
_EXACT = 2**53
"""To here each integer is a double of its own (IEEE 754); beyond, they are rounded."""


@dataclass(frozen=True, slots=True)
class VariableType:
    """One type of the registry. Both functions raise ``InvalidValue`` for other values."""

    name: str
    expected: str
    """What a value must be, for messages: "an integer"."""
    read: Callable[[bytes], tuple[Any, bytes]]
    """Strict JSON → the typed Python value, and the JSON to store."""
    write: Callable[[Any], tuple[Any, bytes]]
    """A Python value → the same."""
    tool_only: bool = False
    """Serves tool parameters and results; old clients cannot decode such a variable."""


_TYPES: dict[str, VariableType] = {}
# type_url → type name, its reader, and the Any's bytes up to the length of the JSON.
_Known = tuple[str, Callable[[bytes], tuple[Any, bytes]], bytes]
_URLS: dict[str, _Known] = {}
_HEADS: dict[bytes, _Known] = {}  # the same by these bytes


def register_type(type_: VariableType) -> None:
    """Add a type to the registry, under both prefixes. To be called before serving.

    :raises ValueError: the name is taken.
    """
    if type_.name in _TYPES:
        raise ValueError(f"type {type_.name} is already registered")
    _TYPES[type_.name] = type_
    for prefix in (DSPEX_PREFIX, SNAKEPIT_PREFIX):
        url = prefix + type_.name
        head = any_pb2.Any(type_url=url).SerializeToString() + b"\x12"
        _URLS[url] = (type_.name, type_.read, head)
        if len(url) <= _SEVEN_BITS:
            _HEADS[head] = _URLS[url]


def check_type(name: str) -> None:
    """Check that variables of this type can be registered.

    :raises InvalidValue: they cannot; the message names those that can.
    """
    type_ = _TYPES.get(name)
    if type_ is None or type_.tool_only:
        known = ", ".join(t.name for t in _TYPES.values() if not t.tool_only)
        raise InvalidValue(f"unknown type {quote(name)}: expected one of {known}", field="type")


def accept(type_name: str, type_url: str, json: bytes, binary: bytes = b"") -> tuple[object, Value]:
    """Take a value as it came over the wire.

    :param type_name: the variable's type.
    :param type_url: of the ``Any``; see the wire contract for the accepted ones.
    :param json: ``Any.value``; under ``google.protobuf.Value``, that message.
    :param binary: the ``binary_value`` beside it.
    :returns: the typed Python value (float, int, str, bool; an embedding as float64 array
        of shape (n,), a tensor as array of its shape) and what is stored.
    :raises InvalidValue: it is not a value of this type, or not in a form that is accepted.
    """
    known = _URLS.get(type_url)
    if known is None or binary or known[0] != type_name:
        known, json = _accept_rare(type_name, type_url, json, binary)
    value, json = known[1](json)
    size = len(json)
    if size <= _SEVEN_BITS:
        return value, make_value(known[2] + _SMALL[size] + json)
    return value, make_value(b"%b%b%b" % (known[2], _varint(size), json))


def accept_any(type_name: str, any: bytes, binary: bytes = b"") -> tuple[object, Value]:  # noqa: A002
    """``accept`` for a serialized ``google.protobuf.Any``, which is reused as it is.

    :raises InvalidValue: as ``accept``; also for bytes that are no ``Any``.
    """
    # Nearly every Any is a known type_url of less than 128 bytes, then less than 128 bytes of
    # JSON, and nothing else. Its own bytes are then the canonical ones.
    if len(any) > _SHORTEST and not binary:
        known = _HEADS.get(any[: any[1] + 3])
        if known is not None and known[0] == type_name:
            start = any[1] + 4
            if any[start - 1] == len(any) - start <= _SEVEN_BITS:
                json = any[start:]
                value, kept = known[1](json)
                if kept is json:
                    return value, make_value(any)
    try:
        message = any_pb2.Any.FromString(any)
    except DecodeError:
        raise InvalidValue(
            "the value is not a google.protobuf.Any: its bytes cannot be parsed", field="value"
        ) from None
    return accept(type_name, message.type_url, message.value, binary)


def encode(type_name: str, value: object, prefix: str = DSPEX_PREFIX) -> tuple[object, Value]:
    """Take a value from Python code, as ``accept`` does from the wire.

    numpy scalars serve as numbers, an int as a float, a float without fraction as an
    integer, lists and arrays as embedding and tensor; a bool is no number.

    :param prefix: of the type_url it goes out with.
    :raises InvalidValue: it is not a value of this type.
    :raises ValueError: another prefix than ``DSPEX_PREFIX`` and ``SNAKEPIT_PREFIX``.
    """
    known = _URLS.get(prefix + type_name)
    if known is None:
        _find(type_name)
        raise ValueError(f"unknown type_url prefix {prefix!r}")
    typed, json = _TYPES[type_name].write(value)
    return typed, make_value(b"%b%b%b" % (known[2], _varint(len(json)), json))


def to_python(type_name: str, any_bytes: bytes, binary: bytes = b"") -> object:
    """Read back the value that ``accept`` or ``encode`` made.

    :returns: float, int, str or bool; for an embedding a float64 array of shape (n,), for a
        tensor an array of its shape, int64 if all its numbers are 64-bit integers, else
        float64. Arrays belong to the caller.
    :raises InvalidValue: the bytes hold no value of this type.
    """
    try:
        message = any_pb2.Any.FromString(any_bytes)
    except DecodeError:
        raise InvalidValue("not a serialized google.protobuf.Any", field="value") from None
    return _decode(type_name, message, binary)


def stored_type(any_bytes: bytes) -> str:
    """The name of a stored value's type.

    :raises InvalidValue: the bytes hold no value of a known type.
    """
    url = any_pb2.Any.FromString(any_bytes).type_url
    known = _URLS.get(url)
    if known is None:
        raise InvalidValue(f"unknown type_url {quote(url)}", field="value")
    return known[0]


class TypeSerializer:
    """Values to and from ``google.protobuf.Any``, for users of the library."""

    @staticmethod
    def serialize_value(value: object, type: str) -> any_pb2.Any:  # noqa: A002
        """Encode a Python value; see ``encode``.

        :raises InvalidValue: it is not a value of this type.
        """
        return any_pb2.Any.FromString(encode(type, value)[1].any)

    @staticmethod
    def deserialize_value(any: any_pb2.Any, type: str) -> object:  # noqa: A002
        """Decode what a client may send; see ``accept`` and ``to_python``.

        :raises InvalidValue: it is not a value of this type.
        """
        return _decode(type, any, b"")


def _decode(type_name: str, message: any_pb2.Any, binary: bytes) -> object:
    known = _URLS.get(message.type_url)
    json = message.value
    if known is None or binary or known[0] != type_name:
        known, json = _accept_rare(type_name, message.type_url, json, binary)
    return known[1](json)[0]


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > _SEVEN_BITS:
        parts.append(number & _SEVEN_BITS | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


_SMALL = tuple(bytes((size,)) for size in range(128))


def _find(type_name: str) -> VariableType:
    type_ = _TYPES.get(type_name)
    if type_ is None:
        known = ", ".join(_TYPES)
        raise InvalidValue(f"unknown type {quote(type_name)}: expected one of {known}")
    return type_


def _accept_rare(
    type_name: str, type_url: str, content: bytes, binary: bytes
) -> tuple[_Known, bytes]:
    """Resolve what is no plain JSON value of the type, or refuse it with what to send."""
    _find(type_name)
    ours = DSPEX_PREFIX + type_name
    expected = f"expected type_url '{ours}' with the value as JSON"
    base, dot, suffix = type_url.rpartition(".")
    if dot and suffix == "binary" and base in _URLS:
        refusal = (
            "the binary form of values is not taken by this release: "
            f"send the JSON form, {expected} and no binary bytes"
        )
    elif not type_url and not content:
        refusal = f"the value is missing: {expected}"
    elif not type_url:
        refusal = f"the type_url is empty: {expected}"
    elif type_url in _URLS and _URLS[type_url][0] != type_name:
        refusal = f"type_url {quote(type_url)} contradicts the type {type_name}: {expected}"
    elif type_url not in _URLS and type_url != _PROTOBUF_VALUE:
        refusal = (
            f"unknown type_url {quote(type_url)}: {expected} (or "
            f"'{SNAKEPIT_PREFIX}{type_name}', or a packed '{_PROTOBUF_VALUE}')"
        )
    elif binary:
        refusal = (
            f"{len(binary)} binary bytes came with type_url {quote(type_url)}, which is the "
            "JSON form: leave them out"
        )
    else:
        return _URLS[ours], _from_protobuf_value(type_name, content)
    raise InvalidValue(refusal, field="value")


def _from_protobuf_value(type_name: str, packed: bytes) -> bytes:
    """Give the JSON of a packed ``google.protobuf.Value``, whose numbers are doubles."""
    try:
        message = struct_pb2.Value.FromString(packed)
    except DecodeError:
        message = struct_pb2.Value()
    kind = message.WhichOneof("kind")
    if kind is None:
        raise InvalidValue(
            f"type_url '{_PROTOBUF_VALUE}' without such a message packed into it", field="value"
        )
    if kind == "number_value":
        number = message.number_value
        if type_name == "integer" and abs(number) > _EXACT:
            raise mismatch(
                "integer",
                "an integer from -2^53 to 2^53 when it comes as google.protobuf.Value",
                f"{number!r}: send larger ones under '{DSPEX_PREFIX}integer'",
            )
        if type_name != "float" and not math.isfinite(number):
            raise mismatch(type_name, _TYPES[type_name].expected, f"the number {number!r}")
    return orjson.dumps(_plain_value(message))


def _plain_value(message: struct_pb2.Value) -> object:
    kind = message.WhichOneof("kind")
    if kind == "number_value":
        number = message.number_value
        # As protobuf's own JSON writes them. -0.0 has no integer.
        if number.is_integer() and abs(number) <= _EXACT and (number or str(number) == "0.0"):
            return int(number)
        return special_float(number) or number
    if kind == "list_value":
        return [_plain_value(item) for item in message.list_value.values]
    if kind == "struct_value":
        return {key: _plain_value(item) for key, item in message.struct_value.fields.items()}
    if kind == "string_value":
        return message.string_value
    return message.bool_value if kind == "bool_value" else None


for _type in (
    VariableType("float", scalars.FLOAT, scalars.read_float, scalars.write_float),
    VariableType("integer", scalars.INTEGER, scalars.read_integer, scalars.write_integer),
    VariableType("string", scalars.STRING, *scalars.json_string("string")),
    VariableType("boolean", scalars.BOOLEAN, scalars.read_boolean, scalars.write_boolean),
    VariableType("choice", scalars.STRING, *scalars.json_string("choice")),
    VariableType("module", scalars.STRING, *scalars.json_string("module")),
    VariableType("embedding", EMBEDDING, read_embedding, write_embedding),
    VariableType("tensor", TENSOR, read_tensor, write_tensor),
    VariableType("map", scalars.MAP, *scalars.json_container("map", dict), tool_only=True),
    VariableType("list", scalars.LIST, *scalars.json_container("list", list), tool_only=True),
):
    register_type(_type)
