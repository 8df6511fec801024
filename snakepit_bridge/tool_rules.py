"""The rules of tools: which calls are open, how they are closed, what may be registered.

::

    StartTool ─▶ open ─▶ FinishTool: ok, error, cancelled, timeout
                     └─▶ interrupted: by the session's end, or by the first command that another
                         start of the bridge decides

Part of ``decide`` and as pure. The end of a call is remembered under the key ``FINISHED`` of the
request that began it, so that a repeated request finds it.
"""

from __future__ import annotations

from collections.abc import Iterable

from snakepit_bridge.commands import FinishTool, RegisterTools, Setting, StartTool
from snakepit_bridge.errors import FailedPrecondition, InvalidRequest, ResourceExhausted, quote
from snakepit_bridge.events.model import Answer, Decision, Draft, Event, Origin
from snakepit_bridge.events.projection import OpenCall, SessionState
from snakepit_bridge.events.requests import Remembered
from snakepit_bridge.metadata_checks import MAX_NAME, check_name

__all__ = [
    "FINISHED",
    "check_call",
    "close_all",
    "close_foreign",
    "finish_tool",
    "register_tools",
    "remembered_call",
    "start_tool",
]

FINISHED = "finished"
"""Key under which the end of a call is remembered."""

INTERRUPTED = "interrupted"

MAX_OPEN_CALLS = 10_000
"""Of one session; each command that opens or closes one copies the list of them."""

MAX_TOOLS = 1_000
"""Registered tools of one session: snapshots hold all of them, and each start reads them."""

MAX_SPEC = 64 * 1024
"""Bytes of one tool's description."""


def register_tools(
    setting: Setting, command: RegisterTools, before: tuple[Event, ...] = ()
) -> Decision:
    """Add tools to those of the session; one of a known name takes its place."""
    state = setting.state
    if len(command.worker_id.encode()) > MAX_NAME:
        raise InvalidRequest(f"worker_id is longer than {MAX_NAME} bytes", field="worker_id")
    if not command.tools:
        raise InvalidRequest("tools is empty: name at least one", field="tools")
    offset = state.head + len(before) + 1
    event = Event()
    body = event.tools_registered
    body.worker_id = command.worker_id
    ids: dict[str, str] = {}
    for name, spec in command.tools:
        check_name("name of a tool", name)
        if name in ids:
            raise InvalidRequest(f"tools names {quote(name)} twice", field="tools")
        if len(spec) > MAX_SPEC:
            raise ResourceExhausted(
                f"the description of tool {quote(name)} has {len(spec)} bytes, more than the limit "
                f"of {MAX_SPEC}",
                field="tools",
            )
        ids[name] = f"tool_{name}_{offset}"
        body.tools.add(id=ids[name], name=name, spec=spec)
    known = len(state.tools.keys() | ids.keys())
    if known > MAX_TOOLS:
        raise ResourceExhausted(
            f"the session would know {known} tools, more than the limit of {MAX_TOOLS}",
            field="tools",
        )
    answer = Answer(offset, tool_ids=ids)
    return Decision((Draft((*before, event)),), answer, starts=bool(before))


def start_tool(setting: Setting, command: StartTool, before: tuple[Event, ...] = ()) -> Decision:
    """Open a call."""
    state = setting.state
    if len(state.calls) >= MAX_OPEN_CALLS:
        raise ResourceExhausted(
            f"{MAX_OPEN_CALLS} calls of tools are open in session "
            f"{quote(command.envelope.session_id)}: wait until some of them end"
        )
    event = Event()
    body = event.tool_started
    body.call_id, deadline = command.run
    body.tool = command.tool
    values = []
    for name, digest, value, recorded in command.arguments:
        if not recorded:
            continue
        if value is None:
            body.arguments.add(name=name, digest=digest)
        else:
            body.arguments.add(name=name, value_digest=value.digest)
            values.append(value)
    if deadline:
        body.deadline_unix_nanos = deadline
    if command.streaming:
        body.streaming = True
    draft = Draft((*before, event), tuple(values))
    return Decision((draft,), Answer(state.head + len(before) + 1), starts=bool(before))


def finish_tool(setting: Setting, command: FinishTool) -> Decision:
    """Close a call, if it is open."""
    state = setting.state
    call = state.calls.get(command.call_id)
    if call is None:
        return Decision((), Answer(0))
    event = _closed(call, command.outcome)
    body = event.tool_finished
    body.duration_nanos = command.duration_nanos
    value = command.value
    if value is not None:
        body.value_digest = value.digest
    elif command.digest:
        body.digest = command.digest
    body.error_type, body.error_message, body.error_traceback = command.error
    body.chunks = command.chunks
    values = () if value is None else (value,)
    draft = Draft((event,), values, request_key=FINISHED, request=call.request)
    return Decision((draft,), Answer(state.head + 1))


def close_foreign(setting: Setting) -> tuple[Draft, ...]:
    """Close the calls that another start of the bridge left open: it has died.

    Where nothing can be written they stay open until something can.
    """
    instance = setting.moment.instance
    calls = setting.state.calls.values()
    # Calls are listed in the order of their starts, so those of others come first.
    if not instance or next(iter(calls)).instance == instance:
        return ()
    foreign = [call for call in calls if call.instance != instance]
    return _interrupted(foreign, "the bridge that ran it died")


def close_all(state: SessionState, why: str) -> tuple[Draft, ...]:
    """Close every call that is open."""
    return _interrupted(state.calls.values(), why) if state.calls else ()


def remembered_call(state: SessionState, request_id: str) -> Remembered | None:
    """What is known of a request that began a call, where that itself is forgotten.

    Of many requests since, its start is forgotten before its end, or while it runs.
    """
    for call in state.calls.values():
        if call.request is not None and call.request[0] == request_id:
            _, method, digest = call.request
            return Remembered(method, digest, call.offset, 0, 0)
    return state.requests.find(request_id, FINISHED)


def check_call(state: SessionState, origin: Origin) -> None:
    """See that what a tool asks for comes from a call that is open.

    :raises FailedPrecondition: it is not; whoever waited for it was told how it ended.
    """
    call = state.calls.get(origin.tool_call_id)
    if call is None or origin.source != f"tool:{call.tool}":
        raise FailedPrecondition(
            f"the call {quote(origin.tool_call_id)} of {quote(origin.source)} is over: what it "
            "asks for now is not done",
            tool_call_id=origin.tool_call_id,
        )


def _interrupted(calls: Iterable[OpenCall], why: str) -> tuple[Draft, ...]:
    drafts = []
    for call in calls:
        event = _closed(call, INTERRUPTED)
        event.tool_finished.error_message = why
        drafts.append(Draft((event,), request_key=FINISHED, own=True, request=call.request))
    return tuple(drafts)


def _closed(call: OpenCall, outcome: str) -> Event:
    event = Event()
    body = event.tool_finished
    body.call_id = call.call_id
    body.outcome = outcome
    body.started_offset = call.offset
    return event
