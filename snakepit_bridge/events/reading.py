"""Reading a log: whole, at one offset, or along the life of one variable.

Whatever is read is checked against its digests first; a mismatch is ``DataLoss``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from snakepit_bridge.errors import DataLoss
from snakepit_bridge.events.codec import unseal, value_digests
from snakepit_bridge.events.log import EventLog
from snakepit_bridge.events.model import GENESIS, Event, LogId, Record, Transaction, Value
from snakepit_bridge.events.projection import SessionState, apply

__all__ = ["PastVersion", "fold", "state_after", "transaction_at", "versions"]


def fold(engine: EventLog, log: LogId) -> Iterator[Transaction]:
    """The transactions of a log in order, each checked against the one before.

    :raises DataLoss: naming the first bad offset.
    """
    head, digest = 0, GENESIS
    for stored in engine.records(log):
        if stored.first_offset != head + 1:
            raise _lost(log, head + 1)
        transaction = unseal(stored, digest, engine.large_values)
        yield transaction
        head, digest = transaction.last_offset, transaction.digest


def transaction_at(engine: EventLog, log: LogId, offset: int) -> Transaction:
    """The transaction that holds ``offset``, checked against the record before it.

    :raises DataLoss: it is not there, or not what was acknowledged.
    """
    found = engine.read_back(log, offset + 1, limit=2)
    if not found or found[0].last_offset < offset:
        raise _lost(log, offset)
    previous = found[1].digest if len(found) > 1 else GENESIS
    return unseal(found[0], previous, engine.large_values)


def state_after(engine: EventLog, log: LogId, transaction: Transaction) -> SessionState:
    """What is known right after a transaction, of the variables that it touched at least.

    Only changes of variables need what went before them; what begins something does not.

    :raises DataLoss: an event on the way is damaged or missing.
    """
    state = SessionState()
    if any(event.HasField("variable_set") for event in transaction.events):
        for earlier in fold(engine, log):
            if earlier.last_offset >= transaction.last_offset:
                break
            apply(state, earlier)
    apply(state, transaction)
    return state


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
    """The versions of a variable, newest first.

    :param id_: of the variable.
    :param offset: the event that made the newest, or that deleted the variable.
    :raises DataLoss: an event on the way is damaged or missing, or of another variable.
    """
    while offset:
        transaction = transaction_at(engine, log, offset)
        event, values = _event_at(transaction, offset)
        if getattr(getattr(event, str(event.WhichOneof("kind"))), "id", None) != id_:
            raise _lost(log, offset)
        if event.HasField("variable_deleted"):
            offset = event.variable_deleted.previous_offset
            continue
        if event.HasField("variable_registered"):
            yield PastVersion(1, values[0], None, offset, 0, 0, transaction.record)
            return
        if not event.HasField("variable_set"):
            raise _lost(log, offset)
        change = event.variable_set
        yield PastVersion(
            change.version,
            values[0],
            values[1],
            offset,
            change.previous_offset,
            change.rolled_back_to,
            transaction.record,
        )
        offset = change.previous_offset


def _event_at(transaction: Transaction, offset: int) -> tuple[Event, tuple[Value, ...]]:
    index = offset - transaction.record.first_offset
    events = transaction.events
    start = sum(1 for event in events[:index] for _ in value_digests(event))
    count = sum(1 for _ in value_digests(events[index]))
    return events[index], transaction.values[start : start + count]


def _lost(log: LogId, offset: int) -> DataLoss:
    return DataLoss(
        f"the log {log.epoch} of session {log.session_id!r} lacks offset {offset}",
        first_bad_offset=offset,
    )
