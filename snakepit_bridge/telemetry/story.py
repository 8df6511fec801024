"""What happened in the sessions, as lines of the log: everything that was committed, once.

It is told from the events, not where requests are answered: so what upkeep does, what a duplicate
does not do again, and what is closed for a bridge that died are told as they are. Names are told,
never values; nor the key to an optimizer's lock.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from snakepit_bridge.events.model import Fact, LogId, Transaction
from snakepit_bridge.events.tasks import Batch
from snakepit_bridge.telemetry.logs import trace_of

__all__ = ["Story", "StoryObserver"]

logger = logging.getLogger(__name__)

TOLD_ONE_BY_ONE = 8
"""Events of a transaction; of more, one line tells for each kind how many there are."""

TOOLS_NAMED = 8
"""Of those that are registered together."""

SLOW_COMMIT = 1.0
"""Seconds; etcd complains of a sync that takes as long (``warnSyncDuration``)."""

Fields = dict[str, object]


class Story:
    """Tells of commits; has no state of its own."""

    def committed(self, log_id: LogId, transactions: Sequence[Transaction]) -> None:
        """Tell what was appended to one log, in order; on the committer's thread.

        INFO, but for plain sets of variables, which are DEBUG. Where nothing of it is shown, this
        takes a fraction of a microsecond for each transaction.
        """
        if not logger.isEnabledFor(logging.INFO):
            return
        shows_sets = logger.isEnabledFor(logging.DEBUG)
        for transaction in transactions:
            facts = transaction.facts
            if not shows_sets and len(facts) == 1 and _is_set(*facts[0]):
                continue
            about: Fields | None = None
            for level, offset, event, fields in _told(transaction):
                if level == logging.DEBUG and not shows_sets:
                    continue
                if about is None:
                    about = _about(transaction)
                extra = {"session_id": log_id.session_id, "offset": offset, **fields, **about}
                logger.log(level, event, extra=extra)


class StoryObserver:
    """Tells of all that a committer does, as the one who observes it."""

    def __init__(self) -> None:
        self._story = Story()

    def committed(self, batch: Batch) -> None:
        """Tell of a commit, and whether it was slow."""
        commit = batch.commit
        seconds = (commit.ended - commit.begun) / 1e9
        if seconds > SLOW_COMMIT:
            syncing = (commit.append_ended - commit.append_begun) / 1e9
            logger.warning(
                "a commit of %d events took %.1f s, %.1f s of it to store and sync them: the disk "
                "is slow, or this process gets too little of the CPU",
                commit.events,
                seconds,
                syncing,
            )
        for log_id, run in groupby(batch.transactions, itemgetter(0)):
            self._story.committed(log_id, [transaction for _, transaction in run])

    def loaded(self, nanoseconds: int) -> None:
        """Tell that a session was brought into memory."""
        logger.debug("a session was read into memory in %.1f ms", nanoseconds / 1e6)

    def snapshot(self, nanoseconds: int) -> None:
        """Tell that a snapshot was stored."""
        logger.debug("a snapshot was stored in %.1f ms", nanoseconds / 1e6)


def _is_set(kind: str, body: Any) -> bool:  # noqa: ANN401 - a message of protobuf
    """Whether an event is a plain set, of which there may be thousands a second."""
    return kind == "variable_set" and not body.rolled_back_to


Line = tuple[int, int, str, Fields]
"""Level, offset, event, fields."""


def _told(transaction: Transaction) -> Iterator[Line]:
    facts, offset = transaction.facts, transaction.record.first_offset
    if len(facts) > TOLD_ONE_BY_ONE:
        yield from _counted(facts, offset)
        return
    source = transaction.record.source
    for index, fact in enumerate(facts):
        kind, body = fact
        event, fields = _EVENTS[kind](body)
        if kind == "tool_finished" and source.startswith(_TOOL):
            fields["tool"] = source.removeprefix(_TOOL)
        level = logging.DEBUG if _is_set(kind, body) else logging.INFO
        yield level, offset + index, event, {"kind": kind, **fields}


_TOOL = "tool:"


def _counted(facts: Sequence[Fact], offset: int) -> Iterator[Line]:
    counts: dict[tuple[int, str], tuple[int, int]] = {}
    for index, (kind, body) in enumerate(facts):
        key = (logging.DEBUG if _is_set(kind, body) else logging.INFO, kind)
        first, count = counts.get(key, (offset + index, 0))
        counts[key] = first, count + 1
    for (level, kind), (first, count) in counts.items():
        yield level, first, f"{kind.replace('_', ' ')}, several", {"kind": kind, "count": count}


def _about(transaction: Transaction) -> Fields:
    """Who did it, and for whom."""
    record = transaction.record
    about: Fields = {"source": record.source}
    if record.tool_call_id:
        about["tool_call_id"] = record.tool_call_id
    if record.correlation_id:
        about["correlation_id"] = record.correlation_id
    if record.traceparent:
        about.update(trace_of(record.traceparent))
    return about


Tell = Callable[[Any], tuple[str, Fields]]
"""From the body of an event."""


def _ended(body: Any) -> tuple[str, Fields]:  # noqa: ANN401 - a message of protobuf, as all below
    event = "session expired" if body.reason == "expired" else "session ended"
    return event, {"reason": body.reason, "resources": body.resources}


def _forked(body: Any) -> tuple[str, Fields]:  # noqa: ANN401
    return "session forked", {"from_session_id": body.session_id, "from_offset": body.offset}


def _registered(body: Any) -> tuple[str, Fields]:  # noqa: ANN401
    fields = {"variable": body.id, "variable_name": body.name, "variable_type": body.type}
    return "variable registered", fields


def _set(body: Any) -> tuple[str, Fields]:  # noqa: ANN401
    fields: Fields = {"variable": body.id, "version": body.version}
    if body.rolled_back_to:
        return "variable rolled back", {**fields, "rolled_back_to": body.rolled_back_to}
    return "variable set", fields


def _deleted(body: Any) -> tuple[str, Fields]:  # noqa: ANN401
    return "variable deleted", {"variable": body.id, "version": body.version}


def _optimization_started(body: Any) -> tuple[str, Fields]:  # noqa: ANN401
    return "optimization started", {"variable": body.id, "optimizer_id": body.optimizer_id}


def _optimization_stopped(body: Any) -> tuple[str, Fields]:  # noqa: ANN401
    return "optimization stopped", {"variable": body.id, "reason": body.reason}


def _tools_registered(body: Any) -> tuple[str, Fields]:  # noqa: ANN401
    some = [tool.name for tool in body.tools[:TOOLS_NAMED]]
    rest = len(body.tools) - len(some)
    names = ", ".join([*some, f"and {rest} more"] if rest else some)
    return "tools registered", {
        "count": len(body.tools),
        "tools": names,
        "worker_id": body.worker_id,
    }


def _tool_started(body: Any) -> tuple[str, Fields]:  # noqa: ANN401
    return "tool started", {
        "tool": body.tool,
        "call_id": body.call_id,
        "streaming": body.streaming,
    }


def _tool_finished(body: Any) -> tuple[str, Fields]:  # noqa: ANN401
    fields: Fields = {"call_id": body.call_id, "outcome": body.outcome}
    if body.duration_nanos:
        fields["duration_ms"] = round(body.duration_nanos / 1e6, 3)
    if body.error_type:
        fields["error_type"] = body.error_type
    if body.chunks:
        fields["chunks"] = body.chunks
    return "tool finished", fields


def _redacted(body: Any) -> tuple[str, Fields]:  # noqa: ANN401
    return "values redacted", {"count": len(body.digest)}


_EVENTS: Mapping[str, Tell] = {
    "session_started": lambda _: ("session started", {}),
    "session_ended": _ended,
    "session_forked": _forked,
    "variable_registered": _registered,
    "variable_set": _set,
    "variable_deleted": _deleted,
    "optimization_started": _optimization_started,
    "optimization_stopped": _optimization_stopped,
    "tools_registered": _tools_registered,
    "tool_started": _tool_started,
    "tool_finished": _tool_finished,
    "value_redacted": _redacted,
}
