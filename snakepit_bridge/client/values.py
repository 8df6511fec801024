"""What the client sends and is sent, as Python values."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.timestamp_pb2 import Timestamp

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge.errors import InvalidValue, quote
from snakepit_bridge.events.model import Value
from snakepit_bridge.tool_values import encode_result
from snakepit_bridge.type_serialization import DSPEX_PREFIX, TypeSerializer, encode
from snakepit_bridge.views import Change, Variable, VariableVersion

__all__ = [
    "Encoded",
    "as_change",
    "as_variable",
    "as_version",
    "encoded",
    "encoded_argument",
    "is_unencodable",
    "python_value",
    "time_of",
    "unencodable",
]

_UNENCODABLE = DSPEX_PREFIX + "unencodable"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_NO_CONSTRAINTS: MappingProxyType[str, Any] = MappingProxyType({})


class Encoded(NamedTuple):
    """A value as it is sent."""

    any: AnyMessage
    binary: bytes
    error: InvalidValue | None
    """Why it is sent as one that will be refused."""


def encoded(variable: str, type_name: str, value: object) -> Encoded:
    """Write a value for a variable of a type, or ``unencodable`` with the reason."""
    try:
        made: Value = encode(type_name, value)[1]
    except InvalidValue as error:
        return unencodable(
            InvalidValue(
                f"variable {quote(variable)}: {error.message}", field=error.field or "value"
            )
        )
    return Encoded(AnyMessage.FromString(made.any), made.binary, None)


def unencodable(error: InvalidValue | None = None) -> Encoded:
    """What is sent for a value that has no form on the wire.

    The bridge refuses it in any case, but finds first what is wrong beside the value: so it is
    for a value of its own process, too.
    """
    return Encoded(AnyMessage(type_url=_UNENCODABLE, value=b"null"), b"", error)


def is_unencodable(message: str) -> bool:
    """Whether the bridge refused a value because of how ``unencodable`` sent it."""
    return _UNENCODABLE in message


def encoded_argument(tool: str, name: str, value: object) -> Value:
    """An argument for a tool, which is of the type that its Python value has.

    :raises InvalidValue: it has no form on the wire.
    """
    try:
        return encode_result(value)
    except InvalidValue as error:
        what = f"argument {quote(name)} of tool {quote(tool)}"
        raise InvalidValue(f"{what}: {error.message}", field=f"parameters.{name}") from None


def python_value(any_: AnyMessage, binary: bytes) -> Any:  # noqa: ANN401 - any variable's value
    """A value that the bridge sent; an array is read-only."""
    python = TypeSerializer.deserialize_value(any_, binary=binary)
    if isinstance(python, np.ndarray):
        python.flags.writeable = False
    return python


def as_variable(variable: pb.Variable) -> Variable:
    """A variable from what the bridge sent."""
    metadata = dict(variable.metadata)
    written = "elixir" if variable.source == pb.Variable.ELIXIR else "python"
    constraints = variable.constraints_json
    return Variable(
        variable.id,
        variable.name,
        variable.type,
        python_value(variable.value, variable.binary_value),
        variable.version,
        variable.offset,
        MappingProxyType(json.loads(constraints)) if constraints else _NO_CONSTRAINTS,
        MappingProxyType(metadata),
        variable.changed_by or written,
        time_of(variable.last_updated_at),
    )


def as_version(entry: pb.VariableHistoryEntry) -> VariableVersion:
    """A version of a variable from what the bridge sent."""
    return VariableVersion(
        entry.version,
        python_value(entry.value, entry.binary_value),
        python_value(entry.old_value, entry.old_binary_value)
        if entry.HasField("old_value")
        else None,
        entry.offset,
        entry.changed_by,
        MappingProxyType(dict(entry.metadata)),
        time_of(entry.timestamp),
        entry.rolled_back_to,
    )


def as_change(update: pb.VariableUpdate) -> Change:
    """A change, or an initial value, from what a watch sent."""
    variable, kind = update.variable, update.update_type
    old = new = None
    if update.HasField("old_value"):
        old = python_value(update.old_value, update.old_binary_value)
    if kind != "deleted" and variable.HasField("value"):
        new = python_value(variable.value, variable.binary_value)
    return Change(
        kind,
        variable.name,
        variable.id,
        variable.type,
        old,
        new,
        variable.version,
        update.offset,
        update.log_epoch,
        update.resume_offset,
        update.resume_check,
        update.update_source,
        MappingProxyType(dict(update.update_metadata)),
        time_of(update.timestamp),
        update.correlation_id,
        update.traceparent,
        update.tool_call_id,
        update.value_omitted,
    )


def time_of(stamp: Timestamp) -> datetime:
    """To the microsecond, in UTC."""
    return _EPOCH + timedelta(seconds=stamp.seconds, microseconds=stamp.nanos // 1_000)
