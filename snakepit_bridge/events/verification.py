"""Looking at everything that is stored, as a reader who believes nothing.

Of each log: that its offsets follow one another, that every digest matches its bytes and
those before, that every value is the one its event names, that each snapshot is what the
fold gives there, and that the log reaches as far as the last clean stop left it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from snakepit_bridge.errors import BridgeError, DataLoss
from snakepit_bridge.events.log import EventLog
from snakepit_bridge.events.model import LogHead, LogId
from snakepit_bridge.events.projection import SessionState, apply
from snakepit_bridge.events.reading import check_mark, complete, fold
from snakepit_bridge.events.snapshot import differences, open_snapshot

__all__ = ["Fault", "all_heads", "verify_log"]


class Fault(NamedTuple):
    """Something that is not as it was written."""

    log: LogId
    offset: int
    """The first that is affected."""
    what: str


def all_heads(engine: EventLog) -> Iterator[LogHead]:
    """Every log that is kept, by session and epoch."""
    after = None
    while entries := engine.logs(after):
        for entry in entries:
            head = engine.head(entry.log)
            if head is not None:
                yield head
        after = entries[-1].log


def verify_log(
    engine: EventLog, head: LogHead, advance: Callable[[int], None] = lambda _: None
) -> Iterator[Fault]:
    """Check one log; the first damaged record is the last that is looked at.

    :param advance: told of events as they are checked.
    """
    snapshots = set(engine.snapshot_offsets(head.log))
    state: SessionState | None = SessionState()
    if head.base:
        state, fault = _state_at_base(engine, head)
        if fault is not None:
            yield fault
        snapshots.discard(head.base)
    offset, digest = head.base, head.base_digest
    try:
        check_mark(engine, head)
        for transaction in fold(engine, head.log, offset, digest):
            if state is not None:
                apply(state, transaction)
            advance(transaction.last_offset - offset)
            offset = transaction.last_offset
            if state is not None and offset in snapshots:
                snapshots.discard(offset)
                yield from _compared(engine, head, state)
            if offset >= head.head:
                break
    except BridgeError as error:
        now = engine.head(head.log)
        if now is None:
            return  # dropped meanwhile
        if now.base > head.base:
            yield from verify_log(engine, now, advance)  # cut meanwhile
            return
        bad = int(error.facts.get("first_bad_offset", offset + 1))
        yield Fault(head.log, bad, error.message)
        return
    if offset < head.head:
        yield Fault(head.log, offset + 1, f"it ends at offset {offset} and not at {head.head}")
    for stray in sorted(snapshots):
        if state is not None and stray <= head.head:
            yield Fault(head.log, stray, "a snapshot stands inside a transaction")


def _state_at_base(engine: EventLog, head: LogHead) -> tuple[SessionState | None, Fault | None]:
    stored = engine.snapshot(head.log, head.base)
    try:
        if stored is None or stored.offset != head.base:
            raise DataLoss("the snapshot at which the log was cut is missing")
        if stored.digest != head.base_digest:
            raise DataLoss("the snapshot at which the log was cut is of another log")
        state = open_snapshot(stored)
        complete(state, engine.large_values)
    except DataLoss as error:
        return None, Fault(head.log, head.base, error.message)
    return state, None


def _compared(engine: EventLog, head: LogHead, folded: SessionState) -> Iterator[Fault]:
    """What is wrong with the snapshot at the offset that was folded to."""
    stored = engine.snapshot(head.log, folded.head)
    if stored is None or stored.offset != folded.head:
        return  # cut away or dropped meanwhile
    try:
        state = open_snapshot(stored)
        complete(state, engine.large_values)
    except DataLoss as error:
        yield Fault(head.log, folded.head, error.message)
        return
    # After a cut the requests before it are known from the snapshots alone.
    requests = bool(stored.requests) and not head.base
    if found := differences(state, folded, requests=requests):
        what = f"the snapshot differs from the fold in {', '.join(found)}"
        yield Fault(head.log, folded.head, what)
