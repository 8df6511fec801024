"""The state of a session: the fold of its log.

``apply`` is the one function that changes it, for live commands, restart, time travel
and replay alike. It reads no clock, makes nothing up and refuses nothing: whether a
change is allowed was decided before it became an event.

Two instances exist of each loaded session (``committer.Session``): the *working* state,
which the committer thread alone touches and which may be ahead of the disk, and the
*committed* state, which readers see. ``adopt`` brings the second up to the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from snakepit_bridge.errors import FailedPrecondition
from snakepit_bridge.event_log_pb2 import (
    OptimizationStarted,
    OptimizationStopped,
    SessionEnded,
    SessionStarted,
    ToolFinished,
    ToolsRegistered,
    ToolStarted,
    VariableDeleted,
    VariableRegistered,
    VariableSet,
)
from snakepit_bridge.events.model import GENESIS, Record, Transaction, Value
from snakepit_bridge.events.requests import RequestTable

__all__ = [
    "Definition",
    "Lock",
    "OpenCall",
    "RegisteredTool",
    "SessionState",
    "VariableState",
    "apply",
    "arrive",
    "change",
]

_Values = Iterator[Value]
_Common = tuple[int, str, dict[str, str], Record]
"""What the events of a record share: time, source, metadata of the change, and the rest."""


class Definition(NamedTuple):
    """What a variable keeps for life."""

    id: str
    name: str
    type: str
    constraints_json: str
    registered: int
    """Offset of its ``VariableRegistered``."""


class Lock(NamedTuple):
    """An optimizer's exclusive hold on a variable."""

    optimization_id: str
    """What a writer has to present."""
    optimizer_id: str
    started_unix_nanos: int
    used_unix_nanos: int
    """Of its last change, or of its start."""


class VariableState(NamedTuple):
    """One version of a variable."""

    definition: Definition
    value: Value
    version: int
    offset: int
    """The event that made this version."""
    time_unix_nanos: int
    source: str
    metadata: Mapping[str, str]
    lock: Lock | None = None


class RegisteredTool(NamedTuple):
    """A tool that a worker elsewhere told this session of."""

    id: str
    name: str
    spec: bytes
    """A serialized ``ToolRegistration``."""
    worker_id: str
    offset: int
    """Of its ``ToolsRegistered``."""


class OpenCall(NamedTuple):
    """A tool's call that was started and is not closed."""

    call_id: str
    tool: str
    offset: int
    """Of its ``ToolStarted``."""
    time_unix_nanos: int
    instance: str
    """Of the bridge that runs it."""
    request: tuple[str, str, bytes] | None
    """Id, method and digest of the request, if it has an id."""


class SessionState:
    """Everything that is known of a session at one offset of its log."""

    __slots__ = (
        "calls",
        "config",
        "created_unix_nanos",
        "deleted",
        "digest",
        "ended",
        "head",
        "metadata",
        "names",
        "requests",
        "time_unix_nanos",
        "tools",
        "used_names",
        "variables",
    )

    def __init__(self) -> None:
        self.head = 0
        self.digest = GENESIS
        self.time_unix_nanos = 0
        self.created_unix_nanos = 0
        self.ended = ""
        """Why the session ended; empty while it lives."""
        self.metadata: Mapping[str, str] = {}
        self.config: tuple[bool, int, bool] = (False, 0, False)
        self.variables: dict[str, VariableState] = {}
        """Live variables by id, in the order of their registration."""
        self.names: dict[str, str] = {}
        """Live names to ids."""
        self.deleted: dict[str, int] = {}
        """Ids of deleted variables to the offset of their ``VariableDeleted``."""
        self.used_names: set[str] = set()
        self.requests = RequestTable()
        self.tools: Mapping[str, RegisteredTool] = {}
        """By name. A new mapping takes its place when they change; so with ``calls``."""
        self.calls: Mapping[str, OpenCall] = {}
        """By id, oldest first."""

    @property
    def live(self) -> bool:
        return self.head > 0 and not self.ended

    def find(self, identifier: str) -> VariableState | None:
        """Look a live variable up, by name first, then by id."""
        return self.variables.get(self.names.get(identifier, identifier))

    def readable(self) -> SessionState:
        """A state of its own with all that readers look at."""
        copy = SessionState()
        copy.variables = dict(self.variables)
        copy.names = dict(self.names)
        copy.deleted = dict(self.deleted)
        copy.adopt(self, ())
        return copy

    def adopt(self, working: SessionState, touched: Iterable[VariableState | None]) -> None:
        """Become equal to ``working``, which differs in the ``touched`` variables only."""
        self.head = working.head
        self.digest = working.digest
        self.time_unix_nanos = working.time_unix_nanos
        self.created_unix_nanos = working.created_unix_nanos
        self.ended = working.ended
        self.metadata = working.metadata
        self.config = working.config
        self.tools = working.tools
        self.calls = working.calls
        for shown in touched:
            if shown is None:
                continue
            id_ = shown.definition.id
            variable = working.variables.get(id_)
            if variable is not None:
                if id_ not in self.variables:
                    self.names[variable.definition.name] = id_
                self.variables[id_] = variable
            elif id_ in working.deleted:
                self.deleted[id_] = working.deleted[id_]
                gone = self.variables.pop(id_, None)
                if gone is not None and self.names.get(gone.definition.name) == id_:
                    del self.names[gone.definition.name]


def apply(state: SessionState, transaction: Transaction) -> list[VariableState | None]:
    """Fold one transaction into ``state``.

    :returns: for each event the variable it touched, as the event left it, or as it was before
        it was deleted; ``None`` for events of the session.
    :raises FailedPrecondition: an event of a kind that this release does not know.
    """
    shown = change(state, transaction)
    if transaction.record.HasField("request"):
        state.requests.note(transaction.header)
    arrive(state, transaction)
    return shown


def change(state: SessionState, transaction: Transaction) -> list[VariableState | None]:
    """What the events of a transaction do to variables and session; gives what ``apply`` does."""
    record, _, facts, values, last_offset, _ = transaction
    metadata = record.metadata
    changes = dict(metadata) if metadata else {}
    common: _Common = (record.time_unix_nanos, record.source, changes, record)
    offset = last_offset - len(facts) + 1
    following = iter(values)
    shown = []
    for kind, body in facts:
        change_by = _CHANGES.get(kind)
        if change_by is None:
            raise FailedPrecondition(
                f"offset {offset} holds an event of a kind that this release does not know "
                f"({kind}): start a newer snakepit_bridge"
            )
        shown.append(change_by(state, body, offset, common, following))
        offset += 1
    return shown


def arrive(state: SessionState, transaction: Transaction) -> None:
    """That the state is now the one after a transaction."""
    state.head = transaction.last_offset
    state.digest = transaction.digest
    state.time_unix_nanos = transaction.record.time_unix_nanos


def _session_started(
    state: SessionState, body: SessionStarted, _offset: int, common: _Common, _values: _Values
) -> VariableState | None:
    state.created_unix_nanos = common[0]
    state.metadata = dict(body.metadata)
    state.config = (body.enable_caching, body.cache_ttl_seconds, body.enable_telemetry)
    return None


def _session_ended(
    state: SessionState, body: SessionEnded, _offset: int, _common: _Common, _values: _Values
) -> VariableState | None:
    state.ended = body.reason
    return None


def _variable_registered(
    state: SessionState, body: VariableRegistered, offset: int, common: _Common, values: _Values
) -> VariableState | None:
    id_, name = body.id, body.name
    time, source, metadata, _ = common
    definition = Definition(id_, name, body.type, body.constraints_json, offset)
    variable = VariableState(definition, next(values), 1, offset, time, source, metadata)
    state.variables[id_] = variable
    state.names[name] = id_
    state.used_names.add(name)
    return variable


def _variable_set(
    state: SessionState, body: VariableSet, offset: int, common: _Common, values: _Values
) -> VariableState | None:
    id_ = body.id
    variables = state.variables
    definition, _, _, _, _, _, metadata, lock = variables[id_]
    time, source, changes, _ = common
    value = next(values)
    next(values)  # the previous one
    if lock is not None:
        lock = lock._replace(used_unix_nanos=time)
    if changes:
        metadata = {**metadata, **changes}
    if metadata and metadata.get("source", source) != source:
        # The last change did not name a source; the metadata must not keep another's.
        metadata = {**metadata, "source": source}
    variable = variables[id_] = _new(
        VariableState, (definition, value, body.version, offset, time, source, metadata, lock)
    )
    return variable


_new = tuple.__new__
"""Makes a named tuple without its constructor, in two thirds of the time."""


def _variable_deleted(
    state: SessionState, body: VariableDeleted, offset: int, _common: _Common, values: _Values
) -> VariableState | None:
    id_ = body.id
    next(values)
    variable = state.variables.pop(id_)
    del state.names[variable.definition.name]
    state.deleted[id_] = offset
    return variable


def _optimization_started(
    state: SessionState, body: OptimizationStarted, _offset: int, common: _Common, _values: _Values
) -> VariableState | None:
    id_ = body.id
    time = common[0]
    lock = Lock(body.optimization_id, body.optimizer_id, time, time)
    variable = state.variables[id_] = state.variables[id_]._replace(lock=lock)
    return variable


def _optimization_stopped(
    state: SessionState, body: OptimizationStopped, _offset: int, _common: _Common, _values: _Values
) -> VariableState | None:
    id_ = body.id
    variable = state.variables[id_] = state.variables[id_]._replace(lock=None)
    return variable


def _tools_registered(
    state: SessionState, body: ToolsRegistered, offset: int, _common: _Common, _values: _Values
) -> VariableState | None:
    tools = {
        tool.name: RegisteredTool(tool.id, tool.name, tool.spec, body.worker_id, offset)
        for tool in body.tools
    }
    state.tools = {**state.tools, **tools}
    return None


def _tool_started(
    state: SessionState, body: ToolStarted, offset: int, common: _Common, values: _Values
) -> VariableState | None:
    time, _, _, record = common
    for given in body.arguments:
        if given.value_digest:
            next(values)
    request = None
    if record.HasField("request"):
        asked = record.request
        request = (asked.id, asked.method, asked.digest)
    call = OpenCall(body.call_id, body.tool, offset, time, record.instance, request)
    state.calls = {**state.calls, body.call_id: call}
    return None


def _tool_finished(
    state: SessionState, body: ToolFinished, _offset: int, _common: _Common, values: _Values
) -> VariableState | None:
    if body.value_digest:
        next(values)
    calls = dict(state.calls)
    calls.pop(body.call_id, None)
    state.calls = calls
    return None


_Change = Callable[[SessionState, Any, int, _Common, _Values], VariableState | None]

_CHANGES: dict[str, _Change] = {
    "session_started": _session_started,
    "session_ended": _session_ended,
    "variable_registered": _variable_registered,
    "variable_set": _variable_set,
    "variable_deleted": _variable_deleted,
    "optimization_started": _optimization_started,
    "optimization_stopped": _optimization_stopped,
    "tools_registered": _tools_registered,
    "tool_started": _tool_started,
    "tool_finished": _tool_finished,
}
