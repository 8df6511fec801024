"""The types of values: from the wire to Python and to the stored form, and back.

Each type is one ``VariableType``: how its JSON is read and how a Python value is written,
and the same for its binary form, if it has one. ``accept`` takes what a client sent,
``encode`` what Python code gives; both answer with the typed Python value, for the
constraint check, and the ``Value`` that is stored and goes back out. ``to_python`` reads a
stored value again.

What is stored is an ``Any`` of our own making around the client's JSON bytes, under the
type_url prefix it came with, in the form it came in: JSON stays JSON, and binary bytes stay
the bytes that they are. The JSON is kept as sent, with one exception: an integer written as
a float without fraction is stored as the integer that it is. So whatever a client sent,
strict JSON goes out: one value that an Elixir client cannot decode would break its whole
``list_variables``. (All from the wire contract, section 3.)
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError

from snakepit_bridge import json_scalars as scalars
from snakepit_bridge.binary_arrays import binary_form
from snakepit_bridge.errors import InvalidValue, quote
from snakepit_bridge.events.model import Value, make_value
from snakepit_bridge.json_arrays import (
    EMBEDDING,
    TENSOR,
    read_embedding,
    read_tensor,
    write_embedding,
    write_tensor,
)
from snakepit_bridge.json_documents import LIST, MAP, json_container, write_document
from snakepit_bridge.protobuf_values import (
    EXACT,
    PROTOBUF_VALUE,
    plain_value,
    unpack_value,
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
    "infer_type",
    "parse_any",
    "register_type",
    "stored_type",
    "to_python",
]

DSPEX_PREFIX = "dspex.variables/"
"""Ours: the default."""

SNAKEPIT_PREFIX = "type.googleapis.com/snakepit."
"""Snakepit 0.4's. A value goes back out under the prefix it came in with."""

_BINARY_SUFFIX = ".binary"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
"""So long that each type_url has less than 128 bytes, as ``accept_any`` needs it."""
_SEVEN_BITS = 0x7F
"""The largest length that protobuf writes as one byte."""
_SHORTEST = 4
"""Bytes of an Any that can have a type_url and a value."""


@dataclass(frozen=True, slots=True)
class VariableType:
    """One type of the registry. Its functions raise ``InvalidValue`` for other values."""

    name: str
    """A letter, then letters, digits and ``_``: it stands in type_urls."""
    expected: str
    """What a value must be, for messages: "an integer"."""
    read: Callable[[bytes], tuple[Any, bytes]]
    """Strict JSON → the typed Python value, and the JSON to store."""
    write: Callable[[Any], tuple[Any, bytes]]
    """A Python value → the same."""
    read_binary: Callable[[bytes, bytes], Any] | None = None
    """The description (``Any.value``) and the bytes → the typed Python value. None: the type
    has no binary form."""
    write_binary: Callable[[Any], tuple[Any, bytes, bytes] | None] | None = None
    """A Python value → it, typed, with description and bytes; or None if JSON is its form."""
    tool_only: bool = False
    """Serves tool parameters and results; old clients cannot decode such a variable."""


_TYPES: dict[str, VariableType] = {}
# type_url → type name, its reader, and the Any's bytes up to the length of the JSON.
_Known = tuple[str, Callable[[bytes], tuple[Any, bytes]], bytes]
_URLS: dict[str, _Known] = {}
_HEADS: dict[bytes, _Known] = {}  # the same by these bytes
# The same for the binary forms.
_BINARY_URLS: dict[str, tuple[str, Callable[[bytes, bytes], Any], bytes]] = {}


def register_type(type_: VariableType) -> None:
    """Add a type to the registry, under both prefixes. To be called before serving.

    A log does not know how its values are read: a process that reads a log again must have
    registered the same types. Variables of a type added so have no constraints but those
    that are not enforced.

    :raises ValueError: the name is taken, or cannot be one.
    """
    name = type_.name
    if name in _TYPES:
        raise ValueError(f"type {name} is already registered")
    if not _NAME.fullmatch(name):
        raise ValueError(f"type {name!r} is not a name of letters, digits and _")
    _TYPES[name] = type_
    for prefix in (DSPEX_PREFIX, SNAKEPIT_PREFIX):
        url = prefix + name
        head = _head(url)
        _URLS[url] = (name, type_.read, head)
        _HEADS[head] = _URLS[url]
        if type_.read_binary is not None:
            url += _BINARY_SUFFIX
            _BINARY_URLS[url] = (name, type_.read_binary, _head(url))


def _head(url: str) -> bytes:
    return any_pb2.Any(type_url=url).SerializeToString() + b"\x12"


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
    :returns: the typed Python value (float, int, str, bool; an embedding as array of shape
        (n,), a tensor as array of its shape; for their dtypes see ``to_python``) and what is
        stored. In the binary form both refer to the bytes that came, not to a copy.
    :raises InvalidValue: it is not a value of this type, or not in a form that is accepted.
    """
    known = _URLS.get(type_url)
    if known is None or binary or known[0] != type_name:
        form = _BINARY_URLS.get(type_url)
        if form is not None and form[0] == type_name and binary:
            return form[1](json, binary), _value(form[2], json, binary)
        known, json = _accept_rare(type_name, type_url, json, binary)
    value, json = known[1](json)
    size = len(json)
    if size <= _SEVEN_BITS:
        return value, make_value(known[2] + _SMALL[size] + json)
    return value, _value(known[2], json)


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
    message = parse_any(any)
    return accept(type_name, message.type_url, message.value, binary)


def parse_any(any: bytes) -> any_pb2.Any:  # noqa: A002
    """Parse a serialized ``google.protobuf.Any``.

    :raises InvalidValue: it is none.
    """
    try:
        return any_pb2.Any.FromString(any)
    except DecodeError:
        raise InvalidValue(
            "the value is not a google.protobuf.Any: its bytes cannot be parsed", field="value"
        ) from None


def encode(type_name: str, value: object, prefix: str = DSPEX_PREFIX) -> tuple[object, Value]:
    """Take a value from Python code, as ``accept`` does from the wire.

    numpy scalars serve as numbers, an int as a float, a float without fraction as an
    integer, lists and arrays as embedding and tensor; a bool is no number.

    numpy arrays of up to 65,536 elements become JSON, which has no dtypes: they come back
    as int64 or float64, bool as 0 and 1. Larger ones become ``raw`` bytes of their dtype and
    come back in it (see ``binary_arrays``); old Elixir clients cannot read those. Lists and
    ``{"shape", "data"}`` become JSON whatever their size.

    :param prefix: of the type_url it goes out with.
    :raises InvalidValue: it is not a value of this type.
    :raises ValueError: another prefix than ``DSPEX_PREFIX`` and ``SNAKEPIT_PREFIX``.
    """
    known = _URLS.get(prefix + type_name)
    if known is None:
        _find(type_name)
        raise ValueError(f"unknown type_url prefix {prefix!r}")
    type_ = _TYPES[type_name]
    if type_.write_binary is not None:
        made = type_.write_binary(value)
        if made is not None:
            typed, description, binary = made
            return typed, _value(_head(f"{prefix}{type_name}{_BINARY_SUFFIX}"), description, binary)
    typed, json = type_.write(value)
    return typed, _value(known[2], json)


def to_python(type_name: str, any_bytes: bytes, binary: bytes = b"") -> object:
    """Read back the value that ``accept`` or ``encode`` made.

    :returns: float, int, str or bool. For an embedding or tensor in the JSON form an array
        that belongs to the caller: float64 of shape (n,); or of the tensor's shape, int64 if
        all its numbers are 64-bit integers, else float64. In the binary form a read-only
        array over ``binary``, of the dtype and shape as sent (bfloat16 as float32).
    :raises InvalidValue: the bytes hold no value of this type.
    """
    return _decode(type_name, parse_any(any_bytes), binary)


def stored_type(any_bytes: bytes) -> str:
    """The name of a stored value's type.

    :raises InvalidValue: the bytes hold no value of a type that is registered here.
    """
    return _type_named(parse_any(any_bytes).type_url)


def _type_named(url: str) -> str:
    known = _URLS.get(url) or _BINARY_URLS.get(url)
    if known is None:
        registered = ", ".join(_TYPES)
        raise InvalidValue(
            f"unknown type_url {quote(url)}: no type of this name is registered in this "
            f"process (register_type adds one), only {registered}",
            field="value",
        )
    return known[0]


def infer_type(value: object) -> str:
    """The type that a Python value has of itself.

    bool → boolean, int → integer, float → float, str → string, a numpy scalar as what it is
    one of, an array of any rank → tensor, list and tuple → list, dict → map.

    :raises InvalidValue: it has none, as None and bytes; the message says what has.
    """
    if isinstance(value, np.generic):
        value = value.item() if value.dtype.kind in "biuf" else value
    for kind, name in _INFERRED:
        if isinstance(value, kind):
            return name
    given = "None" if value is None else scalars.described(value)
    raise InvalidValue(
        f"{given} has no type of its own: give a bool, int, float, str, list, "
        "tuple, dict or numpy array",
        field="value",
    )


_INFERRED: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "boolean"),  # before int, of which it is a kind
    (int, "integer"),
    ((float, np.floating), "float"),
    (str, "string"),
    (np.ndarray, "tensor"),
    ((list, tuple), "list"),
    (dict, "map"),
)


class TypeSerializer:
    """Values to and from ``google.protobuf.Any``, for users of the library."""

    @staticmethod
    def serialize_value(value: object, type: str | None = None) -> any_pb2.Any:  # noqa: A002
        """Encode a Python value as JSON, whatever its size: the ``Any`` is all of it.

        :param type: by default what ``infer_type`` finds.
        :raises InvalidValue: it is not a value of this type.
        """
        name = infer_type(value) if type is None else type
        json = _find(name).write(value)[1]
        return any_pb2.Any(type_url=DSPEX_PREFIX + name, value=json)

    @staticmethod
    def serialize_with_binary(
        value: object,
        type: str | None = None,  # noqa: A002
    ) -> tuple[any_pb2.Any, bytes]:
        """Encode a Python value in the form that ``encode`` chooses.

        :returns: the ``Any``, and what goes into the ``binary`` field beside it: empty, but
            for numpy arrays of more than 65,536 elements.
        :raises InvalidValue: it is not a value of this type.
        """
        value = encode(infer_type(value) if type is None else type, value)[1]
        return any_pb2.Any.FromString(value.any), value.binary

    @staticmethod
    def deserialize_value(
        any: any_pb2.Any,  # noqa: A002
        type: str | None = None,  # noqa: A002
        binary: bytes = b"",
    ) -> object:
        """Decode what a client may send; see ``accept`` and ``to_python``.

        :param type: by default the one that the type_url names.
        :param binary: the bytes beside a value in the binary form.
        :raises InvalidValue: it is not a value of this type.
        """
        name = _type_named(any.type_url) if type is None else type
        return _decode(name, any, binary)


def _decode(type_name: str, message: any_pb2.Any, binary: bytes) -> object:
    known = _URLS.get(message.type_url)
    json = message.value
    if known is None or binary or known[0] != type_name:
        form = _BINARY_URLS.get(message.type_url)
        if form is not None and form[0] == type_name and binary:
            return form[1](json, binary)
        known, json = _accept_rare(type_name, message.type_url, json, binary)
    return known[1](json)[0]


def _value(head: bytes, json: bytes, binary: bytes = b"") -> Value:
    return make_value(b"%b%b%b" % (head, _varint(len(json)), json), binary)


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
    base = type_url.removesuffix(_BINARY_SUFFIX)
    named = _URLS.get(base)
    if named is not None and named[0] != type_name:
        refusal = f"type_url {quote(type_url)} contradicts the type {type_name}: {expected}"
    elif type_url in _BINARY_URLS:
        refusal = (
            f"type_url {quote(type_url)} came without its bytes, which belong into the field for "
            f"binary values beside the Any (an empty array has none): send them, or "
            f"type_url '{ours}' with the value as JSON"
        )
    elif named is not None and base != type_url:
        refusal = f"the type {type_name} has no binary form: send the JSON form, {expected}"
    elif not type_url and not content:
        refusal = f"the value is missing: {expected}"
    elif not type_url:
        refusal = f"the type_url is empty: {expected}"
    elif named is None and type_url != PROTOBUF_VALUE:
        refusal = (
            f"unknown type_url {quote(type_url)}: {expected} (or "
            f"'{SNAKEPIT_PREFIX}{type_name}', or a packed '{PROTOBUF_VALUE}')"
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
    message = unpack_value(packed)
    if message is None:
        raise InvalidValue(
            f"type_url '{PROTOBUF_VALUE}' without such a message packed into it", field="value"
        )
    type_ = _TYPES[type_name]
    if message.WhichOneof("kind") == "number_value":
        number = message.number_value
        if type_name == "integer" and abs(number) > EXACT:
            raise mismatch(
                "integer",
                "an integer from -2^53 to 2^53 when it comes as google.protobuf.Value",
                f"{number!r}: send larger ones under '{DSPEX_PREFIX}integer'",
            )
        if type_name != "float" and not math.isfinite(number):
            raise mismatch(type_name, type_.expected, f"the number {number!r}")
    return write_document(type_name, type_.expected, plain_value(message))


for _type in (
    VariableType("float", scalars.FLOAT, scalars.read_float, scalars.write_float),
    VariableType("integer", scalars.INTEGER, scalars.read_integer, scalars.write_integer),
    VariableType("string", scalars.STRING, *scalars.json_string("string")),
    VariableType("boolean", scalars.BOOLEAN, scalars.read_boolean, scalars.write_boolean),
    VariableType("choice", scalars.STRING, *scalars.json_string("choice")),
    VariableType("module", scalars.STRING, *scalars.json_string("module")),
    VariableType(
        "embedding", EMBEDDING, read_embedding, write_embedding, *binary_form("embedding", 1)
    ),
    VariableType("tensor", TENSOR, read_tensor, write_tensor, *binary_form("tensor")),
    VariableType("map", MAP, *json_container("map", dict), tool_only=True),
    VariableType("list", LIST, *json_container("list", list), tool_only=True),
):
    register_type(_type)
