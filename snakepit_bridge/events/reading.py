"""Reading a log: its state at one offset, its transactions, or the life of one variable.

Whatever is read is checked against its digests first; a mismatch is ``DataLoss``. What
retention has cut away is ``OffsetOutOfRange``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

from snakepit_bridge.errors import DataLoss, FailedPrecondition, OffsetOutOfRange, quote
from snakepit_bridge.events.codec import LargeValues, is_absent, named_values, unseal
from snakepit_bridge.events.log import EventLog
from snakepit_bridge.events.model import (
    GENESIS,
    Fact,
    LogHead,
    LogId,
    Record,
    Transaction,
    Value,
    make_value,
)
from snakepit_bridge.events.projection import (
    SessionState,
    VariableState,
    apply,
    arrive,
    change,
)
from snakepit_bridge.events.snapshot import open_snapshot

__all__ = [
    "PastVersion",
    "check_cut",
    "check_mark",
    "complete",
    "completed",
    "cut_away",
    "fold",
    "load",
    "no_longer_kept",
    "replay",
    "state_after",
    "state_after_event",
    "state_at",
    "transaction_at",
    "versions",
]

logger = logging.getLogger(__name__)


def fold(  # noqa: PLR0913 - two of them say where, two how
    engine: EventLog,
    log: LogId,
    after: int = 0,
    digest: bytes = GENESIS,
    *,
    values: bool = True,
    page: int = 1_000,
) -> Iterator[Transaction]:
    """The transactions of a log in order, each checked against the one before.

    :param after: the last offset of the transaction to go on after; ``digest`` is the one there.
    :param values: whether replaced values and those stored by digest are read as well.
    :param page: how many records are read at a time.
    :raises OffsetOutOfRange: retention has cut away what comes next.
    :raises DataLoss: naming the first bad offset.
    """
    large = engine.large_values if values else None
    for stored in engine.records(log, after, page=page):
        if stored.first_offset != after + 1:
            raise _absent(engine, log, after + 1)
        transaction = unseal(stored, digest, large)
        yield transaction
        after, digest = transaction.last_offset, stored.digest
    head = engine.head(log)
    if head is not None and head.base > after:
        raise cut_away(head, after + 1)


def replay(engine: EventLog, log: LogId, state: SessionState, until: int | None = None) -> None:
    """Bring a state to the last transaction that ends at or before ``until`` (the head).

    Equal to applying each, but of plain changes of one variable only the last is made: in a
    long log nearly all are replaced later. Large values stay absent; see ``complete``.

    :raises DataLoss: naming the first bad offset.
    """
    latest: dict[str, Transaction] = {}
    last = None
    for transaction in fold(engine, log, state.head, state.digest, values=False):
        record, header, facts, _, offset, _ = transaction
        if until is not None and offset > until:
            break
        kind, body = facts[0]
        if kind == "variable_set" and len(facts) == 1 and not record.metadata:
            # Of this a later change of the variable leaves nothing. Metadata would merge.
            latest[body.id] = transaction
        else:
            for pending in latest.values():
                change(state, pending)
            latest.clear()
            change(state, transaction)
        if record.HasField("request"):
            state.requests.note(header)
        last = transaction
    for pending in latest.values():
        change(state, pending)
    if last is not None:
        arrive(state, last)


def load(engine: EventLog, head: LogHead, *, requests: bool = True) -> tuple[SessionState, int]:
    """The state at the head: the newest snapshot and what came after it.

    :param requests: whether its table of requests is read now, or when it is needed. Then
        damage of the table is found as late, and to be met by loading again with it.
    :returns: the state, and the offset of that snapshot (0 = none).
    :raises DataLoss: naming the first bad offset.
    """
    check_mark(engine, head)
    state = _newest_snapshot(engine, head, requests=requests)
    snapshot_offset = state.head
    replay(engine, head.log, state)
    if state.head != head.head:
        raise _lost(head.log, state.head + 1)
    complete(state, engine.large_values)
    return state, snapshot_offset


def state_at(engine: EventLog, log: LogId, offset: int, *, values: bool = True) -> SessionState:
    """The state after the last transaction that ends at or before ``offset``.

    Request ids are remembered in it only as far as the records after its snapshot go.

    :param values: whether those stored by digest are brought in; see ``complete``.

    :raises OffsetOutOfRange: retention has cut the log there.
    :raises DataLoss: an event on the way is damaged or missing.
    """
    state = _snapshot_before(engine, log, offset)
    replay(engine, log, state, offset)
    if values:
        complete(state, engine.large_values)
    return state


def state_after_event(engine: EventLog, log: LogId, offset: int) -> SessionState:
    """The state right after one event, also inside a transaction, as only history shows it.

    Values stored by digest are absent; see ``complete``.

    :raises OffsetOutOfRange: retention has cut the log there.
    :raises DataLoss: an event on the way is damaged or missing.
    """
    state = state_at(engine, log, offset, values=False)
    if state.head < offset:
        transaction = transaction_at(engine, log, offset)
        begun = transaction.facts[: offset - state.head]
        change(state, transaction._replace(facts=begun, last_offset=offset))
        state.head = offset
    return state


def complete(state: SessionState, large: LargeValues) -> None:
    """Bring in the live values that are stored by their digests.

    :raises DataLoss: one of them is missing or damaged.
    """
    for id_, variable in state.variables.items():
        if is_absent(variable.value):
            state.variables[id_] = completed(variable, large)


def completed(variable: VariableState, large: LargeValues) -> VariableState:
    """A variable with its value, if that is stored by its digest.

    :raises DataLoss: it is missing or damaged.
    """
    if not is_absent(variable.value):
        return variable
    digest = variable.value.digest
    found = large([digest]).get(digest)
    if found is None or make_value(found.any, found.binary).digest != digest:
        raise DataLoss(
            f"the log is damaged at offset {variable.offset}: its value "
            f"{digest.hex()[:16]} is {'missing' if found is None else 'damaged'}",
            first_bad_offset=variable.offset,
        )
    return variable._replace(value=found)


def _newest_snapshot(engine: EventLog, head: LogHead, *, requests: bool) -> SessionState:
    """The newest state that is stored with its table of requests, or an empty one."""
    before = head.head
    while (stored := engine.snapshot(head.log, before, requests=requests)) is not None:
        if not (stored.requests or stored.requests_size):
            break
        try:
            later = None if requests else partial(_requests_at, engine, head.log, stored.offset)
            state = open_snapshot(stored, later)
            _check_place(engine, head, state)
        except DataLoss as error:
            # It only saved work; the records are still there, or another snapshot is.
            logger.warning("session %r: %s", head.log.session_id, error.message)
            before = stored.offset - 1
        else:
            return state
    return _beginning(head)


def _requests_at(engine: EventLog, log: LogId, offset: int) -> bytes:
    stored = engine.snapshot(log, offset)
    if stored is None or stored.offset != offset or not stored.requests:
        raise DataLoss(f"the table of requests at offset {offset} is gone")
    return stored.requests


def _snapshot_before(engine: EventLog, log: LogId, offset: int) -> SessionState:
    before = offset
    while (stored := engine.snapshot(log, before, requests=False)) is not None:
        try:
            return open_snapshot(stored)
        except DataLoss as error:
            logger.warning("session %r: %s", log.session_id, error.message)
            before = stored.offset - 1
    head = engine.head(log)
    if head is None or not head.base:
        return SessionState()
    if offset < head.base:
        raise cut_away(head, offset)
    return _beginning(head)


def check_cut(engine: EventLog, at: LogHead) -> None:
    """Make sure that a log can be read from a snapshot, before what precedes it is forgotten.

    :raises DataLoss: it cannot.
    """
    stored = engine.snapshot(at.log, at.head)
    head = engine.head(at.log)
    if stored is None or head is None or stored.offset != at.head:
        raise DataLoss(f"the snapshot at offset {at.head} is gone", first_bad_offset=at.head)
    state = open_snapshot(stored)
    _check_place(engine, head, state)
    complete(state, engine.large_values)


def _beginning(head: LogHead) -> SessionState:
    if head.base:
        raise DataLoss(
            f"the log {head.log.epoch} of session {head.log.session_id!r} begins after offset "
            f"{head.base}, and no snapshot there can be read",
            first_bad_offset=head.base,
        )
    return SessionState()


def _check_place(engine: EventLog, head: LogHead, state: SessionState) -> None:
    """Check that a snapshot was taken of this log as it is."""
    if state.head == head.base:
        digest = head.base_digest
    else:
        record = engine.record_at(head.log, state.head)
        digest = record.digest if record and record.last_offset == state.head else b""
    if digest != state.digest:
        raise DataLoss(
            f"the snapshot at offset {state.head} is not one of this log",
            first_bad_offset=state.head,
        )


def check_mark(engine: EventLog, head: LogHead) -> None:
    """Compare the log with what the last clean stop left.

    :raises DataLoss: it does not reach that far, or is another one there.
    """
    if head.mark is None:
        return
    offset, digest = head.mark
    if offset <= head.base:
        return
    record = engine.record_at(head.log, offset)
    if record is None or record.digest != digest:
        bad = min(offset, head.head + 1)
        raise DataLoss(
            f"the log {head.log.epoch} of session {head.log.session_id!r} is damaged: a clean "
            f"stop left it with offset {offset}, "
            + (f"it ends at {head.head}" if record is None else "which is another one now")
            + " (an old copy of the file?)",
            first_bad_offset=bad,
        )


def transaction_at(engine: EventLog, log: LogId, offset: int) -> Transaction:
    """The transaction that holds ``offset``, checked against the record before it.

    :raises OffsetOutOfRange: retention has cut it away.
    :raises DataLoss: it is not there, or not what was acknowledged.
    """
    found = engine.read_back(log, offset + 1, limit=2)
    if found and found[0].last_offset >= offset:
        if len(found) > 1:
            return unseal(found[0], found[1].digest, engine.large_values)
        head = engine.head(log)
        if head is not None and head.base == found[0].first_offset - 1:
            return unseal(found[0], head.base_digest, engine.large_values)
    raise _absent(engine, log, offset)


def state_after(engine: EventLog, log: LogId, transaction: Transaction) -> SessionState:
    """What is known right after a transaction, of the variables that it touched at least.

    Only changes of variables need what went before them; what begins something does not.

    :raises DataLoss: an event on the way is damaged or missing.
    """
    if any(kind not in _BEGINNINGS for kind, _ in transaction.facts):
        return state_at(engine, log, transaction.last_offset)
    state = SessionState()
    apply(state, transaction)
    return state


_BEGINNINGS = ("session_started", "variable_registered")


class PastVersion(NamedTuple):
    """One version of a variable, as its event tells it."""

    version: int
    value: Value
    previous: Value | None
    offset: int
    previous_offset: int
    """The event of the version before; 0 at the first."""
    rolled_back_to: int
    record: Record


def versions(engine: EventLog, log: LogId, id_: str, offset: int) -> Iterator[PastVersion]:
    """The versions of a variable, newest first, as far back as the log is kept.

    :param id_: of the variable.
    :param offset: the event that made the newest, or that deleted the variable.
    :raises DataLoss: an event on the way is damaged or missing, or of another variable.
    """
    while offset:
        try:
            transaction = transaction_at(engine, log, offset)
        except OffsetOutOfRange:
            return
        fact, values = _fact_at(transaction, offset)
        kind, body = fact
        if getattr(body, "id", None) != id_:
            raise _lost(log, offset)
        if kind == "variable_deleted":
            offset = body.previous_offset
            continue
        if kind == "variable_registered":
            yield PastVersion(1, values[0], None, offset, 0, 0, transaction.record)
            return
        if kind != "variable_set":
            raise _lost(log, offset)
        yield PastVersion(
            body.version,
            values[0],
            values[1],
            offset,
            body.previous_offset,
            body.rolled_back_to,
            transaction.record,
        )
        offset = body.previous_offset


def _fact_at(transaction: Transaction, offset: int) -> tuple[Fact, Sequence[Value]]:
    index = offset - transaction.record.first_offset
    facts = transaction.facts
    start = sum(named_values(fact) for fact in facts[:index])
    return facts[index], transaction.values[start : start + named_values(facts[index])]


def cut_away(head: LogHead, offset: int) -> OffsetOutOfRange:
    """The refusal of an offset that is no longer kept."""
    left = f"has offsets {head.base + 1} to {head.head}"
    if head.base == head.head:
        left = f"has none left: the last was {head.head}, the next will be {head.head + 1}"
    return OffsetOutOfRange(
        f"offset {offset} was cut away by retention: the log {head.log.epoch} {left}",
        first_available=head.base + 1,
        last=head.head,
        log_epoch=head.log.epoch,
    )


def no_longer_kept(log: LogId) -> FailedPrecondition:
    """The refusal of a log that is gone as a whole."""
    return FailedPrecondition(
        f"the log {log.epoch} of session {quote(log.session_id)} is no longer kept: watch the "
        "session anew",
        field="log_epoch",
    )


def _absent(engine: EventLog, log: LogId, offset: int) -> DataLoss | OffsetOutOfRange:
    head = engine.head(log)
    return cut_away(head, offset) if head and offset <= head.base else _lost(log, offset)


def _lost(log: LogId, offset: int) -> DataLoss:
    return DataLoss(
        f"the log {log.epoch} of session {log.session_id!r} lacks offset {offset}",
        first_bad_offset=offset,
    )
