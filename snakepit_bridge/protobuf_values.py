"""Values in protobuf's own messages, ``google.protobuf.Value`` and ``StringValue``.

grpcurl can send the first, as it knows it without our proto. Snakepit sends both with
tools, and not only as messages: its Elixir side writes the JSON of any value straight into
``Any.value`` under the name of ``StringValue``, its Python side that of a number under the
name of ``Value``, but a string as a ``StringValue`` properly packed.
"""

from __future__ import annotations

from google.protobuf import struct_pb2, wrappers_pb2
from google.protobuf.message import DecodeError

__all__ = [
    "EXACT",
    "PROTOBUF_VALUE",
    "STRING_VALUE",
    "plain_value",
    "unpack_string",
    "unpack_value",
]

PROTOBUF_VALUE = "type.googleapis.com/google.protobuf.Value"
STRING_VALUE = "type.googleapis.com/google.protobuf.StringValue"

EXACT = 2**53
"""To here each integer is a double of its own (IEEE 754); beyond, they are rounded."""

_STRING_TAG = b"\n"
"""Field 1, length-delimited: with it a packed StringValue begins, and JSON hardly ever."""


def unpack_string(content: bytes) -> str | None:
    """Give the string of a packed ``StringValue``; None if this is none.

    An empty one has no bytes. A line feed is also JSON's white space: a text beginning with
    one is a message only if it is one to the last byte.
    """
    if content and not content.startswith(_STRING_TAG):
        return None
    try:
        message = wrappers_pb2.StringValue.FromString(content)
    except DecodeError:
        return None
    return message.value if message.SerializeToString() == content else None


def unpack_value(content: bytes) -> struct_pb2.Value | None:
    """Parse a packed ``Value``; None if this is none, or one without any kind of value."""
    try:
        message = struct_pb2.Value.FromString(content)
    except DecodeError:
        return None
    return message if message.WhichOneof("kind") else None


def plain_value(message: struct_pb2.Value) -> object:
    """Give a ``Value`` as a Python value: None, bool, int, float, str, list or dict.

    All its numbers are doubles. One without fraction up to 2^53 is an int, as protobuf's
    own JSON has it; -0.0 is none.
    """
    kind = message.WhichOneof("kind")
    if kind == "number_value":
        number = message.number_value
        if number.is_integer() and abs(number) <= EXACT and (number or str(number) == "0.0"):
            return int(number)
        return number
    if kind == "list_value":
        return [plain_value(item) for item in message.list_value.values]
    if kind == "struct_value":
        return {key: plain_value(item) for key, item in message.struct_value.fields.items()}
    if kind == "string_value":
        return message.string_value
    return message.bool_value if kind == "bool_value" else None
