"""Between a tool's process and the bridge: the connection, its errors, and values.

What ``remote_session`` and ``remote_observers`` send and are sent.
"""

from __future__ import annotations

import json
from datetime import UTC
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import quote as percent_encoded

import grpc
import numpy as np
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge import bridge_service_pb2_grpc as stubs
from snakepit_bridge import tool_worker_pb2 as frames
from snakepit_bridge.errors import BridgeError, InternalError, InvalidValue, quote
from snakepit_bridge.events.model import Value
from snakepit_bridge.tool_values import encode_result
from snakepit_bridge.type_serialization import DSPEX_PREFIX, TypeSerializer, encode
from snakepit_bridge.variable_views import Variable, VariableVersion
from snakepit_bridge.wire import TOOL_CALL_HEADER, TOOL_HEADER

__all__ = [
    "CHANNEL_OPTIONS",
    "Encoded",
    "as_variable",
    "as_version",
    "described",
    "elixir_argument",
    "encoded",
    "error_of",
    "headers",
    "is_unencodable",
    "python_value",
    "stub",
    "unencodable",
]

CHANNEL_OPTIONS = (
    # The bridge says itself what is too large.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A proxy for the world outside would look for its own 127.0.0.1.
    ("grpc.enable_http_proxy", 0),
    # A write is retried with its request id, and not by gRPC.
    ("grpc.enable_retries", 0),
)

_UNENCODABLE = DSPEX_PREFIX + "unencodable"

_VISIBLE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


class Encoded(NamedTuple):
    """A value as it is sent."""

    any: AnyMessage
    binary: bytes
    error: InvalidValue | None
    """Why it is sent as one that will be refused."""


@lru_cache(maxsize=1)
def stub(port: int) -> Any:  # noqa: ANN401 - stubs have no types
    """The bridge, connected at the first call; a worker knows only one."""
    channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=CHANNEL_OPTIONS)
    return stubs.BridgeServiceStub(channel)


def headers(job: frames.Job) -> tuple[tuple[str, str], ...]:
    """What goes with every request.

    gRPC refuses a call for a header that is not visible ASCII: the name of a tool is so
    percent-encoded, a trace context that cannot be one left out.
    """
    given = [
        (TOOL_HEADER, percent_encoded(job.tool, safe=_VISIBLE)),
        (TOOL_CALL_HEADER, job.call_id),
    ]
    if job.traceparent.isascii() and job.tracestate.isascii():
        given += [("traceparent", job.traceparent), ("tracestate", job.tracestate)]
    return tuple((key, value) for key, value in given if value)


def error_of(error: grpc.RpcError) -> BridgeError:
    """The error that the bridge raised, from the status that it became."""
    message, reason, field = error.details() or "", "", ""
    facts: dict[str, str] = {}
    trailers: Any = error.trailing_metadata() or ()  # whose type is given without its iterator
    for key, value in trailers:
        if key != "grpc-status-details-bin":
            continue
        status = Status.FromString(value)
        message = status.message or message
        for packed in status.details:
            info, request = ErrorInfo(), BadRequest()
            if packed.Unpack(info):
                reason, facts = info.reason, dict(info.metadata)
            elif packed.Unpack(request) and request.field_violations:
                field = request.field_violations[0].field
    reasons, codes = _classes()
    kind = reasons.get(reason) or codes.get(error.code().name, InternalError)
    # Their own constructors make messages; this one is made.
    made = kind.__new__(kind)
    BridgeError.__init__(made, message, field=field)
    made.facts = facts
    return made


@lru_cache(maxsize=1)
def _classes() -> tuple[dict[str, type[BridgeError]], dict[str, type[BridgeError]]]:
    """The errors by reason, and by status the one that is nearest to the root."""
    reasons: dict[str, type[BridgeError]] = {}
    codes: dict[str, type[BridgeError]] = {}
    waiting: list[type[BridgeError]] = [BridgeError]
    for kind in waiting:
        if "reason" in vars(kind):
            reasons.setdefault(kind.reason, kind)
        codes.setdefault(kind.code, kind)
        # Those of the tree itself: other modules make some of their own.
        waiting += [
            each for each in kind.__subclasses__() if each.__module__ == BridgeError.__module__
        ]
    return reasons, codes


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
    return Variable(
        variable.id,
        variable.name,
        variable.type,
        python_value(variable.value, variable.binary_value),
        variable.version,
        variable.offset,
        MappingProxyType(json.loads(variable.constraints_json or "{}")),
        MappingProxyType(metadata),
        metadata.get("source") or written,
        variable.last_updated_at.ToDatetime(UTC),
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
        entry.timestamp.ToDatetime(UTC),
        entry.rolled_back_to,
    )


def described(tool: pb.ToolSpec) -> dict[str, Any]:
    """A tool of Elixir's as Snakepit's Python code knows it."""
    parameters = {one.name: {"type": one.type, "required": one.required} for one in tool.parameters}
    return {"name": tool.name, "description": tool.description, "parameters": parameters}


def elixir_argument(tool: str, name: str, value: object) -> AnyMessage:
    """:raises InvalidValue: it has no form on the wire."""
    what = f"argument {quote(name)} of the Elixir tool {quote(tool)}"
    try:
        made = encode_result(value)
    except InvalidValue as error:
        raise InvalidValue(f"{what}: {error.message}", field=f"parameters.{name}") from None
    if made.binary:
        raise InvalidValue(
            f"{what} is an array of {len(made.binary)} bytes, and ExecuteElixirTool has no "
            "field for binary values: pass .tolist(), or a smaller one",
            field=f"parameters.{name}",
        )
    return AnyMessage.FromString(made.any)
