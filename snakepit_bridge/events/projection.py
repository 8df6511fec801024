"""The state of a session: the fold of its log.

``apply`` is the one function that changes it, for live commands, restart, time travel
and replay alike. It reads no clock, makes nothing up and refuses nothing: whether a
change is allowed was decided before it became an event.

Two instances exist of each loaded session (``committer.Session``): the *working* state,
which the committer thread alone touches and which may be ahead of the disk, and the
*committed* state, which readers see. ``adopt`` brings the second up to the first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from snakepit_bridge.errors import FailedPrecondition
from snakepit_bridge.event_log_pb2 import (
    SessionEnded,
    SessionStarted,
    VariableDeleted,
    VariableRegistered,
    VariableSet,
)
from snakepit_bridge.events.model import GENESIS, Remembered, Transaction, Value

__all__ = ["REMEMBERED_REQUESTS", "Definition", "SessionState", "VariableState", "apply"]

REMEMBERED_REQUESTS = 65_536
"""How many accepted request ids a log remembers; the oldest are forgotten first."""


_Values = Iterator[Value]
_Facts = tuple[int, str, dict[str, str]]
"""What the events of a record share: time, source, metadata of the change."""


class Definition(NamedTuple):
    """What a variable keeps for life."""

    id: str
    name: str
    type: str
    constraints_json: str
    registered: int
    """Offset of its ``VariableRegistered``."""


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


class SessionState:
    """Everything that is known of a session at one offset of its log."""

    __slots__ = (
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
        self.requests: OrderedDict[tuple[str, str], Remembered] = OrderedDict()
        """(request id, key in a batch) to what is remembered; oldest first."""

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

    def adopt(self, working: SessionState, touched: Iterable[str]) -> None:
        """Become equal to ``working``, which differs in the ``touched`` variables only."""
        self.head = working.head
        self.digest = working.digest
        self.time_unix_nanos = working.time_unix_nanos
        self.created_unix_nanos = working.created_unix_nanos
        self.ended = working.ended
        self.metadata = working.metadata
        self.config = working.config
        for id_ in touched:
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


def apply(state: SessionState, transaction: Transaction) -> list[str]:
    """Fold one transaction into ``state``; gives the ids of the variables it touched.

    :raises FailedPrecondition: an event of a kind that this release does not know.
    """
    record, events, values, last_offset, digest = transaction
    time = record.time_unix_nanos
    facts: _Facts = (time, record.source, dict(record.metadata) if record.metadata else {})
    offset = record.first_offset
    following = iter(values)
    touched = []
    for event in events:
        kind = event.WhichOneof("kind")
        change = _CHANGES.get(kind)
        if change is None:
            raise FailedPrecondition(
                f"offset {offset} holds an event of a kind that this release does not know "
                f"({kind}): start a newer snakepit_bridge"
            )
        id_ = change(state, getattr(event, kind), offset, facts, following)
        if id_:
            touched.append(id_)
        offset += 1
    if record.HasField("request"):
        _remember(state, transaction)
    state.head = last_offset
    state.digest = digest
    state.time_unix_nanos = time
    return touched


def _remember(state: SessionState, transaction: Transaction) -> None:
    record = transaction.record
    request = record.request
    known = Remembered(request.method, request.digest, record.first_offset)
    requests = state.requests
    if request.key:
        # Beside its keys the batch is remembered as a whole, so that its id is not taken
        # for another request.
        requests.setdefault((request.id, ""), known)
        known = known._replace(version=transaction.events[-1].variable_set.version)
    requests[request.id, request.key] = known
    while len(requests) > REMEMBERED_REQUESTS:
        requests.popitem(last=False)


def _session_started(
    state: SessionState, body: SessionStarted, _offset: int, facts: _Facts, _values: _Values
) -> str:
    state.created_unix_nanos = facts[0]
    state.metadata = dict(body.metadata)
    state.config = (body.enable_caching, body.cache_ttl_seconds, body.enable_telemetry)
    return ""


def _session_ended(
    state: SessionState, body: SessionEnded, _offset: int, _facts: _Facts, _values: _Values
) -> str:
    state.ended = body.reason
    return ""


def _variable_registered(
    state: SessionState, body: VariableRegistered, offset: int, facts: _Facts, values: _Values
) -> str:
    id_, name = body.id, body.name
    time, source, metadata = facts
    definition = Definition(id_, name, body.type, body.constraints_json, offset)
    state.variables[id_] = VariableState(
        definition, next(values), 1, offset, time, source, metadata
    )
    state.names[name] = id_
    state.used_names.add(name)
    return id_


def _variable_set(
    state: SessionState, body: VariableSet, offset: int, facts: _Facts, values: _Values
) -> str:
    id_ = body.id
    variables = state.variables
    old = variables[id_]
    time, source, changes = facts
    value = next(values)
    next(values)  # the previous one
    metadata = old.metadata
    if changes:
        metadata = {**metadata, **changes}
    if metadata and metadata.get("source", source) != source:
        # The last change did not name a source; the metadata must not keep another's.
        metadata = {**metadata, "source": source}
    variables[id_] = VariableState(
        old.definition, value, body.version, offset, time, source, metadata
    )
    return id_


def _variable_deleted(
    state: SessionState, body: VariableDeleted, offset: int, _facts: _Facts, values: _Values
) -> str:
    id_ = body.id
    next(values)
    name = state.variables.pop(id_).definition.name
    del state.names[name]
    state.deleted[id_] = offset
    return id_


_Change = Callable[[SessionState, Any, int, _Facts, _Values], str]

_CHANGES: dict[str | None, _Change] = {
    "session_started": _session_started,
    "session_ended": _session_ended,
    "variable_registered": _variable_registered,
    "variable_set": _variable_set,
    "variable_deleted": _variable_deleted,
}
