"""Between protobuf messages and the domain: reading requests, writing responses.

Pure functions on bytes and values, no transport and no rules. Values are never parsed
here: an ``Any`` goes from request to log to response as bytes (``wire_views.proto``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote

from google.protobuf.message import DecodeError, Message

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge import wire_views_pb2 as views
from snakepit_bridge.commands import (
    CleanupSession,
    DeleteVariable,
    InitializeSession,
    RegisterVariable,
    SetVariable,
    SetVariables,
    StartOptimization,
    StopOptimization,
    WireValue,
    told_apart,
)
from snakepit_bridge.errors import InvalidRequest, quote
from snakepit_bridge.events.model import Envelope, Origin
from snakepit_bridge.events.projection import VariableState
from snakepit_bridge.events.reading import PastVersion
from snakepit_bridge.events.tasks import Outcome
from snakepit_bridge.metadata_checks import is_label
from snakepit_bridge.observation import CORRELATION_HEADER, Observation, parse_traceparent
from snakepit_bridge.wire_bytes import LARGE, cut_out, prefix

__all__ = [
    "TOOL_CALL_HEADER",
    "TOOL_HEADER",
    "Call",
    "GrpcMetadata",
    "cleaned_up",
    "cleanup_session",
    "delete_variable",
    "deleted",
    "envelope",
    "got_variable",
    "history_entry",
    "initialize_session",
    "initialized",
    "metadata_of",
    "optimization_started",
    "optimization_stopped",
    "parse",
    "register_variable",
    "registered",
    "rolled_back",
    "set_variable",
    "set_variables",
    "start_optimization",
    "stop_optimization",
    "variable_bytes",
    "variable_parts",
    "was_set",
    "were_set",
    "with_key",
    "without_value",
]

M = TypeVar("M", bound=Message)

GrpcMetadata = Iterable[tuple[str, str | bytes]]

TOOL_HEADER = "x-snakepit-tool"
TOOL_CALL_HEADER = "x-snakepit-tool-call"
"""Name and call of the tool that asks, where that does not run in the process that keeps the log:
in one of its own, or at a worker that forwards to a shared bridge. A worker sends no call, as that
stands in a log of its own."""

_FROM_ELIXIR = Origin("elixir")


def _no_deadline() -> float | None:
    return None


class Call(NamedTuple):
    """One request as it arrived."""

    raw: bytes
    metadata: GrpcMetadata
    """The gRPC metadata."""
    remaining: Callable[[], float | None] = _no_deadline
    """Seconds until the client stops waiting; ``None`` = never."""
    observation: Observation | None = None
    """Where what becomes known of it is kept; ``None`` = nobody looks."""


def parse(message: type[M], raw: bytes) -> M:
    """Parse a request.

    :raises InvalidRequest: it is not such a message (generated code would answer UNKNOWN).
    """
    try:
        return message.FromString(raw)
    except DecodeError as error:
        name = message.DESCRIPTOR.name.removesuffix("View")
        raise InvalidRequest(
            f"the request is not a valid {name}: its bytes cannot be parsed"
        ) from error


def metadata_of(message: type[Message], raw: bytes) -> Mapping[str, str]:
    """The metadata of a request that is not read otherwise; empty where it is long or malformed."""
    if len(raw) > LARGE:
        return {}
    try:
        request: Any = message.FromString(raw)
    except DecodeError:
        return {}
    return dict(getattr(request, "metadata", {}))


def envelope(request: Any, metadata: Any, call: Call) -> Envelope:  # noqa: ANN401
    """What a mutating request says of itself, beside its own matter.

    :param metadata: the metadata map of the change (each message names it differently).
    """
    traceparent = tracestate = correlation_id = tool = tool_call_id = ""
    for key, value in call.metadata:
        if key == "traceparent":
            traceparent = str(value)
        elif key == "tracestate":
            tracestate = str(value)
        elif key == CORRELATION_HEADER:
            correlation_id = str(value)
        elif key == TOOL_HEADER:
            tool = unquote(str(value))  # headers hold visible ASCII only
        elif key == TOOL_CALL_HEADER:
            tool_call_id = str(value)
    origin, change = told_apart(metadata, "elixir") if metadata else (_FROM_ELIXIR, {})
    if traceparent and parse_traceparent(traceparent) is not None:
        tracestate = tracestate if is_label(tracestate) else ""
        origin = origin._replace(traceparent=traceparent, tracestate=tracestate)
    if correlation_id and is_label(correlation_id):
        origin = origin._replace(correlation_id=correlation_id)
    if tool_call_id:
        origin = origin._replace(source=f"tool:{tool}", tool_call_id=tool_call_id)
    elif tool and is_label(f"tool:{tool}"):  # its call is in the log of the bridge that runs it
        origin = origin._replace(source=f"tool:{tool}")
    if call.observation is not None:
        origin = call.observation.identify(request.session_id, origin)
    return Envelope(request.session_id, request.request_id, request.log_epoch, origin, change)


def with_key(about: Envelope, request: Any) -> Envelope:  # noqa: ANN401 - any that has the field
    """The envelope with the key to an optimizer's lock, from the field or the metadata."""
    given = request.optimization_id
    if not given and about.metadata:
        given = about.metadata.get("optimization_id", "")
    return about._replace(optimization_id=given) if given else about


def initialize_session(call: Call) -> InitializeSession:
    request = parse(pb.InitializeSessionRequest, call.raw)
    config = request.config
    about = envelope(request, request.metadata, call)
    return InitializeSession(
        about._replace(metadata={}),
        about.metadata,
        (config.enable_caching, config.cache_ttl_seconds, config.enable_telemetry),
    )


def cleanup_session(call: Call) -> CleanupSession:
    request = parse(pb.CleanupSessionRequest, call.raw)
    return CleanupSession(envelope(request, request.metadata, call), "cleanup")


def register_variable(call: Call) -> RegisterVariable:
    raw, binary = cut_out(call.raw, 7) if len(call.raw) > LARGE else (call.raw, b"")
    request = parse(views.RegisterVariableRequestView, raw)
    return RegisterVariable(
        envelope(request, request.metadata, call),
        request.name,
        request.type,
        WireValue(request.initial_value, binary or request.initial_binary_value),
        request.constraints_json,
    )


def set_variable(call: Call) -> SetVariable:
    raw, binary = cut_out(call.raw, 6) if len(call.raw) > LARGE else (call.raw, b"")
    request = parse(views.SetVariableRequestView, raw)
    return SetVariable(
        with_key(envelope(request, request.metadata, call), request),
        request.variable_identifier,
        WireValue(request.value, binary or request.binary_value),
        request.expected_version,
    )


def set_variables(call: Call) -> SetVariables:
    request = parse(views.BatchSetVariablesRequestView, call.raw)
    # Entries as they stand on the wire; of two with one key the last counts, as in a map.
    updates = {entry.key: entry.value for entry in request.updates}
    binaries = dict(request.binary_updates)
    stray = next((key for key in binaries if key not in updates), None)
    if stray is not None:
        raise InvalidRequest(
            f"binary_updates names {quote(stray)}, which is not among the updates",
            field="binary_updates",
        )
    return SetVariables(
        with_key(envelope(request, request.metadata, call), request),
        tuple((key, WireValue(updates[key], binaries.get(key, b""))) for key in sorted(updates)),
        request.atomic,
        dict(request.expected_versions) if request.expected_versions else {},
    )


def delete_variable(call: Call) -> DeleteVariable:
    request = parse(pb.DeleteVariableRequest, call.raw)
    return DeleteVariable(
        with_key(envelope(request, request.metadata, call), request),
        request.variable_identifier,
        request.expected_version,
    )


def start_optimization(call: Call) -> StartOptimization:
    request = parse(pb.StartOptimizationRequest, call.raw)
    return StartOptimization(
        envelope(request, request.metadata, call),
        request.variable_identifier,
        request.optimizer_id,
        dict(request.optimizer_config),
    )


def stop_optimization(call: Call) -> StopOptimization:
    request = parse(pb.StopOptimizationRequest, call.raw)
    return StopOptimization(
        with_key(envelope(request, request.metadata, call), request),
        request.variable_identifier,
        request.force,
    )


def without_value(variable: VariableState) -> bytes:
    """A serialized ``Variable`` that lacks its value."""
    return _variable(variable, b"", b"")


def variable_bytes(variable: VariableState) -> bytes:
    """A serialized ``Variable``."""
    value = variable.value
    if len(value.any) + len(value.binary) > LARGE:
        return b"".join(variable_parts(variable))
    return _variable(variable, value.any, value.binary)


def got_variable(variable: VariableState, head: int, epoch: str) -> bytes:
    """The answer to GetVariable with a large value."""
    parts = variable_parts(variable)
    rest = views.GetVariableResponseView(offset=head, log_epoch=epoch).SerializeToString()
    return b"".join((prefix(1, sum(map(len, parts))), *parts, rest))


def variable_parts(variable: VariableState) -> list[bytes]:
    """The same in parts, so that large values are copied only once, when these are joined."""
    value = variable.value
    parts = [_variable(variable, b"", b""), prefix(4, len(value.any)), value.any]
    if value.binary:
        parts += (prefix(12, len(value.binary)), value.binary)
    return parts


def _variable(variable: VariableState, any_: bytes, binary: bytes) -> bytes:
    definition, _, version, offset, time, source, metadata, lock = variable
    view = views.VariableView()
    view.id, view.name, view.type, constraints, _ = definition
    if any_:
        view.value = any_
    if constraints:
        view.constraints_json = constraints
    if metadata:
        view.metadata.update(metadata)
    if source != "elixir":
        view.source = pb.Variable.PYTHON
        if source != "python":
            view.changed_by = source
    updated = view.last_updated_at
    updated.seconds, updated.nanos = divmod(time, 1_000_000_000)
    view.version = version
    if binary:
        view.binary_value = binary
    if lock is not None:
        status = pb.OptimizationStatus(optimizing=True, optimizer_id=lock.optimizer_id)
        status.started_at.FromNanoseconds(lock.started_unix_nanos)
        view.optimization_status = status.SerializeToString()
    view.offset = offset
    return view.SerializeToString()


def initialized(outcome: Outcome, encoded: Sequence[bytes], tools: Mapping[str, bytes]) -> bytes:
    """The answer to InitializeSession.

    :param encoded: the outcome's variables.
    :param tools: serialized ``ToolSpec`` messages, by name.
    """
    answer, epoch, _, variables, _ = outcome
    response = views.InitializeSessionResponseView(
        success=True, offset=answer.offset, log_epoch=epoch, duplicate=answer.duplicate
    )
    for variable, data in zip(variables, encoded, strict=True):
        response.initial_variables.add(key=variable.definition.name, value=data)
    for name, spec in tools.items():
        response.available_tools.add(key=name, value=spec)
    return response.SerializeToString()


def cleaned_up(outcome: Outcome) -> bytes:
    answer, epoch, *_ = outcome
    return pb.CleanupSessionResponse(
        success=True,
        resources_cleaned=answer.number,
        offset=answer.offset,
        log_epoch=epoch if answer.offset else "",
        duplicate=answer.duplicate,
    ).SerializeToString()


def registered(outcome: Outcome) -> bytes:
    answer, epoch, variable, *_ = outcome
    return views.RegisterVariableResponseView(
        success=True,
        variable_id=answer.variable_id,
        offset=answer.offset,
        log_epoch=epoch,
        duplicate=answer.duplicate,
        variable=variable_bytes(variable) if variable else b"",
    ).SerializeToString()


def was_set(outcome: Outcome) -> bytes:
    answer, epoch, *_ = outcome
    response = pb.SetVariableResponse()
    response.success = True
    response.new_version = answer.number
    response.offset = answer.offset
    response.log_epoch = epoch
    if answer.duplicate:
        response.duplicate = True
    return response.SerializeToString()


def were_set(outcome: Outcome) -> bytes:
    answer, epoch, *_ = outcome
    return pb.BatchSetVariablesResponse(
        success=not answer.refused,
        errors=answer.errors,
        new_versions=answer.versions,
        offset=answer.offset,
        log_epoch=epoch,
        duplicate=answer.duplicate,
    ).SerializeToString()


def deleted(outcome: Outcome) -> bytes:
    answer, epoch, *_ = outcome
    return pb.DeleteVariableResponse(
        success=True, offset=answer.offset, log_epoch=epoch, duplicate=answer.duplicate
    ).SerializeToString()


def rolled_back(outcome: Outcome) -> bytes:
    answer, epoch, variable, *_ = outcome
    return views.RollbackVariableResponseView(
        success=True,
        variable=variable_bytes(variable) if variable else b"",
        offset=answer.offset,
        log_epoch=epoch,
        duplicate=answer.duplicate,
    ).SerializeToString()


def optimization_started(outcome: Outcome) -> bytes:
    answer, epoch, *_ = outcome
    return pb.StartOptimizationResponse(
        success=True,
        optimization_id=answer.optimization_id,
        offset=answer.offset,
        log_epoch=epoch,
        duplicate=answer.duplicate,
    ).SerializeToString()


def optimization_stopped(outcome: Outcome) -> bytes:
    answer, epoch, variable, *_ = outcome
    response = pb.StopOptimizationResponse(
        success=True, offset=answer.offset, log_epoch=epoch, duplicate=answer.duplicate
    )
    if variable is not None:
        response.final_value.ParseFromString(variable.value.any)
        response.final_binary_value = variable.value.binary
    return response.SerializeToString()


def history_entry(past: PastVersion, epoch: str) -> bytes:
    """A serialized ``VariableHistoryEntry``."""
    record = past.record
    view = views.VariableHistoryEntryView(
        version=past.version,
        value=past.value.any,
        binary_value=past.value.binary,
        changed_by=record.source,
        metadata=record.metadata,
        offset=past.offset,
        correlation_id=record.correlation_id,
        traceparent=record.traceparent,
        request_id=record.request.id,
        rolled_back_to=past.rolled_back_to,
        log_epoch=epoch,
        tool_call_id=record.tool_call_id,
    )
    if past.previous is not None:
        view.old_value, view.old_binary_value = past.previous.any, past.previous.binary
    view.timestamp.FromNanoseconds(record.time_unix_nanos)
    return view.SerializeToString()
