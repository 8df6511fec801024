"""Reading loaded sessions: what the servicer and ``SessionContext`` share.

Everything here sees the committed state only. Functions that read the log block on the
disk and belong on a worker thread; the others take the log's lock for a moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from snakepit_bridge.commands import LoadSession, PastValue
from snakepit_bridge.errors import (
    EpochMismatch,
    OffsetOutOfRange,
    VariableNotFound,
    VersionNotFound,
    quote,
)
from snakepit_bridge.events.loaded import LoadedLog
from snakepit_bridge.events.log import EventLog
from snakepit_bridge.events.model import Envelope, LogId
from snakepit_bridge.events.projection import VariableState
from snakepit_bridge.events.reading import versions
from snakepit_bridge.events.tasks import Outcome

__all__ = [
    "LoadTask",
    "earlier_log",
    "find",
    "head_and",
    "newest_event",
    "past_value",
]


class LoadTask(NamedTuple):
    """Brings a session into memory, behind everything queued before."""

    session_id: str
    timing: None = None

    def command(self) -> LoadSession:
        return LoadSession(Envelope(self.session_id))

    def answer(self, outcome: Outcome) -> int:
        return outcome.answer.offset


def find(log: LoadedLog, identifier: str) -> tuple[VariableState, int]:
    """A live variable by name or id, and the head at which it was read.

    :raises VariableNotFound: there is none.
    """
    with log.lock:
        state = log.committed
        variable = state.find(identifier)
        head = state.head
    if variable is None:
        raise VariableNotFound(identifier)
    return variable, head


def head_and(log: LoadedLog) -> tuple[int, Sequence[VariableState]]:
    """The head and all live variables at it, in the order of their registration."""
    with log.lock:
        return log.committed.head, list(log.committed.variables.values())


def newest_event(log: LoadedLog, identifier: str) -> tuple[int, str, int]:
    """The head, the id of a variable, and where its history begins to be walked backwards.

    A deleted variable answers by its id.

    :raises VariableNotFound: there is none, and never was one of this id.
    """
    with log.lock:
        state = log.committed
        variable = state.find(identifier)
        deleted = state.deleted.get(identifier, 0)
        head = state.head
    if variable is not None:
        return head, variable.definition.id, variable.offset
    if not deleted:
        raise VariableNotFound(identifier)
    return head, identifier, deleted


def past_value(engine: EventLog, log: LoadedLog, identifier: str, target: int) -> PastValue:
    """The value that a variable had at version ``target``; reads the log.

    :raises VariableNotFound: there is no such live variable.
    :raises VersionNotFound: it never had such a version.
    :raises OffsetOutOfRange: retention has cut it away.
    """
    variable, _ = find(log, identifier)
    name = variable.definition.name
    if not 1 <= target <= variable.version:
        raise VersionNotFound(
            f"version {target} of variable {quote(name)} not found: it has versions 1 to "
            f"{variable.version}",
            field="target_version",
        )
    oldest = variable.version
    if target == oldest:
        return PastValue(variable.definition.id, variable.value)
    for past in versions(engine, log.id, variable.definition.id, variable.offset):
        oldest = past.version
        if target == oldest:
            return PastValue(variable.definition.id, past.value)
    raise OffsetOutOfRange(
        f"version {target} of variable {quote(name)} was cut away by retention: versions "
        f"{oldest} to {variable.version} are kept",
        field="target_version",
        first_available=log.base + 1,
        log_epoch=log.id.epoch,
    )


def earlier_log(engine: EventLog, log_id: LogId, newest: LoadedLog | None) -> LoadedLog:
    """A log of a session that is not its newest; it has ended, and is only read.

    :raises EpochMismatch: it is not kept.
    """
    at = engine.head(log_id)
    if at is None:
        raise EpochMismatch(*log_id, newest.id.epoch if newest is not None else "")
    log = LoadedLog(log_id)
    log.base = at.base
    log.committed.head, log.committed.digest = at.head, at.digest
    log.committed.ended = "ended"
    return log
