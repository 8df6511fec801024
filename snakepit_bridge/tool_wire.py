"""Between the messages of tools and the domain: requests in, answers and chunks out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge import wire_views_pb2 as views
from snakepit_bridge.commands import RegisterTools
from snakepit_bridge.errors import InvalidRequest, InvalidValue, quote
from snakepit_bridge.events.model import Envelope, Value
from snakepit_bridge.events.tasks import Outcome
from snakepit_bridge.tool_values import raw_value, read_argument
from snakepit_bridge.tools.definition import ToolDefinition
from snakepit_bridge.tools.failures import Failure
from snakepit_bridge.wire import Call, envelope, parse

__all__ = [
    "ToolAnswer",
    "ToolRequest",
    "chunk",
    "executed",
    "last_chunk",
    "read_asked",
    "read_tool_request",
    "register_tools",
    "registered_tools",
]

MAX_ARGUMENTS = 1_000
"""Of one call: a function that takes more takes a map."""


class ToolRequest(NamedTuple):
    """What a client asks a tool for."""

    envelope: Envelope
    tool: str
    arguments: Mapping[str, object]
    """As the tool's function takes them."""
    values: Sequence[tuple[str, Value]]
    """The same as they are recorded, in the order of their names."""
    parameters: Sequence[tuple[str, bytes, bytes | None]]
    """For a tool that is isolated the same as they came: a serialized ``Any`` and the bytes
    beside it; without an ``Any`` the bytes are all."""


def read_asked(call: Call) -> views.ExecuteToolRequestView:
    """Parse a request for a tool; its values are not looked at."""
    return parse(views.ExecuteToolRequestView, call.raw)


def read_tool_request(
    call: Call, request: views.ExecuteToolRequestView, definition: ToolDefinition
) -> ToolRequest:
    """Read the arguments and have the tool's definition check them.

    :raises InvalidRequest: naming the parameter that is missing, unknown or wrong.
    """
    sensitive = definition.sensitive
    given = {entry.key: entry.value for entry in request.parameters}
    binaries = dict(request.binary_parameters) if request.binary_parameters else {}
    names = sorted(given.keys() | binaries.keys())
    if len(names) > MAX_ARGUMENTS:
        raise InvalidRequest(
            f"{len(names)} parameters are more than the limit of {MAX_ARGUMENTS}: send a map",
            field="parameters",
        )
    arguments: dict[str, object] = {}
    values: list[tuple[str, Value]] = []
    parameters: list[tuple[str, bytes, bytes | None]] = []
    for name in names:
        binary = binaries.get(name)
        if name in given:
            try:
                arguments[name], value = read_argument(given[name], binary or b"")
            except InvalidValue as error:
                why = "it cannot be read" if name in sensitive else error.message
                raise InvalidValue(
                    f"parameter {quote(name)}: {why}", field=f"parameters.{name}"
                ) from (None if name in sensitive else error)
        else:
            arguments[name], value = binary, raw_value(binary or b"")
        values.append((name, value))
        if definition.isolation:
            parameters.append((name, given.get(name, b""), binary))
    about = envelope(request, request.metadata, call)
    converted = definition.convert(arguments)
    return ToolRequest(about, request.tool_name, converted, values, parameters)


def register_tools(call: Call) -> RegisterTools:
    request = parse(pb.RegisterToolsRequest, call.raw)
    tools = [(tool.name, tool.SerializeToString()) for tool in request.tools]
    about = envelope(request, {}, call)
    return RegisterTools(about, tools, request.worker_id)


def registered_tools(outcome: Outcome) -> bytes:
    answer, epoch, *_ = outcome
    return pb.RegisterToolsResponse(
        success=True,
        tool_ids=answer.tool_ids,
        offset=answer.offset,
        log_epoch=epoch,
        duplicate=answer.duplicate,
    ).SerializeToString()


class ToolAnswer(NamedTuple):
    """What a call is answered with: a result, or why there is none."""

    call_id: str
    value: Value | None
    failure: Failure | None
    duration_nanos: int
    offset: int
    log_epoch: str
    duplicate: bool = False


def executed(answer: ToolAnswer, request: ToolRequest) -> bytes:
    response = views.ExecuteToolResponseView()
    failure, value = answer.failure, answer.value
    if failure is not None:
        about = {"tool_name": request.tool, "session_id": request.envelope.session_id}
        response.error_message = failure.as_json(about)
        response.metadata.update(
            error_type=failure.type, error_message=failure.message, traceback=failure.traceback
        )
    else:
        response.success = True
        if value is not None:
            response.result = value.any
            if value.binary:
                response.binary_result = value.binary
    response.execution_time_ms = answer.duration_nanos // 1_000_000
    response.offset = answer.offset
    response.log_epoch = answer.log_epoch
    response.tool_call_id = answer.call_id
    if answer.duplicate:
        response.duplicate = True
    return response.SerializeToString()


def chunk(tool: str, number: int, data: bytes, metadata: Mapping[str, str]) -> bytes:
    """A serialized ``ToolChunk`` that is not the last."""
    message = pb.ToolChunk(chunk_id=f"{tool}-{number}", data=data)
    if metadata:
        message.metadata.update(metadata)
    return message.SerializeToString()


def last_chunk(tool: str, number: int) -> bytes:
    """The empty ``ToolChunk`` that says that nothing follows."""
    return pb.ToolChunk(chunk_id=f"{tool}-{number}", is_final=True).SerializeToString()
