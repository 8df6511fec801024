"""Arguments and results of tools: values whose type nobody has declared.

An argument's type follows from its type_url, or where that names a message of protobuf's
own, from what is inside; see ``protobuf_values`` for how Snakepit uses these names. A
result's type follows from the Python value.
"""

from __future__ import annotations

from google.protobuf import any_pb2

from snakepit_bridge.errors import InvalidValue, quote
from snakepit_bridge.events.model import Value, make_value
from snakepit_bridge.protobuf_values import (
    PROTOBUF_VALUE,
    STRING_VALUE,
    plain_value,
    unpack_string,
    unpack_value,
)
from snakepit_bridge.strict_json import parse, shown
from snakepit_bridge.type_serialization import (
    DSPEX_PREFIX,
    TypeSerializer,
    encode,
    infer_type,
    parse_any,
)

__all__ = ["decode_argument", "encode_result", "raw_value", "read_argument"]

_NULL = any_pb2.Any(type_url=STRING_VALUE, value=b"null").SerializeToString()


def decode_argument(any: bytes, binary: bytes = b"") -> object:  # noqa: A002 - the wire's name
    """Give a tool's argument, or a result, as a Python value.

    :param any: a serialized ``google.protobuf.Any``: a value of any registered type in JSON
        or binary form; or under the name of ``google.protobuf.StringValue`` such a message,
        whose string it is, or any JSON; or under that of ``google.protobuf.Value`` such a
        message, or any JSON.
    :param binary: the bytes beside a value in the binary form.
    :returns: as ``type_serialization.to_python``; from JSON None, bool, int, float, str, list
        or dict. ``"NaN"`` is a float only under a type_url that says float, a string otherwise.
    :raises InvalidValue: it is none of that; not strict JSON above all.
    """
    return _decode(parse_any(any), binary)


def read_argument(any: bytes, binary: bytes = b"") -> tuple[object, Value]:  # noqa: A002
    """Give an argument as a Python value and as it is recorded; see ``decode_argument``."""
    message = parse_any(any)
    python = _decode(message, binary)
    canonical = any_pb2.Any(type_url=message.type_url, value=message.value)
    return python, make_value(canonical.SerializeToString(), binary)


def raw_value(content: bytes) -> Value:
    """Bytes that are no value of a type of ours, written as the array of their numbers.

    So they stand in ``binary_result`` as they are, and are recorded.
    """
    if not content:
        return make_value(_NO_BYTES)  # a binary form has bytes
    url = f"{DSPEX_PREFIX}tensor.binary"
    about = b'{"shape":[%d],"dtype":"uint8","binary_format":"raw"}' % len(content)
    return make_value(any_pb2.Any(type_url=url, value=about).SerializeToString(), content)


_NO_BYTES = any_pb2.Any(
    type_url=f"{DSPEX_PREFIX}tensor", value=b'{"shape":[0],"data":[]}'
).SerializeToString()


def _decode(message: any_pb2.Any, binary: bytes) -> object:
    url = message.type_url
    if not url:
        raise InvalidValue(
            f"the value has no type_url: send its JSON under one, '{DSPEX_PREFIX}string' or "
            f"'{STRING_VALUE}'",
            field="value",
        )
    if url not in (STRING_VALUE, PROTOBUF_VALUE):
        return TypeSerializer.deserialize_value(message, binary=binary)
    if binary:
        raise InvalidValue(
            f"{len(binary)} binary bytes came with type_url '{url}', which has none: send them "
            f"with '{DSPEX_PREFIX}tensor.binary', or leave them out",
            field="value",
        )
    return (_string_value if url == STRING_VALUE else _value)(message.value)


def encode_result(value: object) -> Value:
    """Write a tool's result, or an argument for one: the type is what ``infer_type`` finds.

    Bytes go as they are, see ``raw_value``. None, which no type of ours has, goes as the JSON
    ``null`` under the name of ``google.protobuf.StringValue``: so Snakepit's Elixir side writes
    nil, and reads it.

    :returns: what goes into ``result`` and ``binary_result``; the latter is empty but for
        arrays of more than 65,536 elements.
    :raises InvalidValue: no type has such values.
    """
    if value is None:
        return make_value(_NULL)
    if isinstance(value, bytes | bytearray | memoryview):
        return raw_value(bytes(value))
    return encode(infer_type(value), value)[1]


def _string_value(content: bytes) -> object:
    # The message first: its tag is white space in JSON, and what follows it may be JSON too.
    string = unpack_string(content)
    return _json(STRING_VALUE, content) if string is None else string


def _value(content: bytes) -> object:
    # The JSON first: no message as protobuf writes it is JSON, but parsers skip what they do
    # not know, and so take digits for a message of unknown fields.
    try:
        return parse(content)
    except InvalidValue:
        message = unpack_value(content)
    return _json(PROTOBUF_VALUE, content) if message is None else plain_value(message)


def _json(url: str, content: bytes) -> object:
    try:
        return parse(content)
    except InvalidValue as error:
        raise InvalidValue(
            f"type_url {quote(url)} with {shown(content)}, which is neither such a message nor "
            f"strict JSON ({error.message})",
            field="value",
        ) from None
