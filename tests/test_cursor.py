"""Cursors over the ring, over pages and over both: what is wanted, once, in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snakepit_bridge.commands import RegisterVariable, SetVariable, SetVariables
from snakepit_bridge.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidRequest,
    OffsetOutOfRange,
    ResourceExhausted,
)
from snakepit_bridge.events import pages as pages_module
from snakepit_bridge.events.codec import digests
from snakepit_bridge.events.cursor import (
    Behind,
    Bookmark,
    Cursor,
    Place,
    bookmark_at,
    check_of,
    find_place,
)
from snakepit_bridge.events.loaded import LoadedLog
from snakepit_bridge.events.log import EventLog
from snakepit_bridge.events.memory import MemoryLog
from snakepit_bridge.events.model import GENESIS, Envelope, LogId, Transaction
from snakepit_bridge.events.pages import Pages
from snakepit_bridge.events.projection import SessionState, VariableState, arrive, change
from snakepit_bridge.events.reading import fold, state_after_event
from snakepit_bridge.events.recent import Recent
from snakepit_bridge.events.ring import Committed, Ring, committed
from snakepit_bridge.events.selection import MAX_IDENTIFIERS, MAX_PATTERNS, Selection
from snakepit_bridge.watch_wire import Updates
from tests.direct import Direct, integer
from tests.logs import NAMES, STEPS, Step, played

QUICK = settings(deadline=None, suppress_health_check=list(HealthCheck))

KINDS = {
    "changes": frozenset({"variable_set"}),
    "all": frozenset({"variable_set", "variable_registered", "variable_deleted"}),
}
IDENTIFIERS: list[tuple[str, ...]] = [(), (NAMES[0],), ("g*",), ("var_x_2",), ("nobody",)]


class Seen(NamedTuple):
    """One event as a watcher gets it."""

    offset: int
    bookmark: Bookmark
    shown: VariableState | None


def show(entry: Committed, index: int, /, *, last: bool) -> Seen:
    offset = entry.transaction.record.first_offset + index
    return Seen(offset, bookmark_at(entry, index, last=last), entry.shown[index])


def entries_of(engine: EventLog, log: LogId) -> list[Committed]:
    state = SessionState()
    entries = []
    previous = GENESIS
    for transaction in fold(engine, log):
        entries.append(committed(transaction, change(state, transaction), previous))
        arrive(state, transaction)
        previous = transaction.digest
    return entries


def expected(entries: Sequence[Committed], after: int, selection: Selection) -> list[Seen]:
    """What a watch has to give, by the words of the contract."""
    wanted = []
    for entry in entries:
        first = entry.transaction.record.first_offset
        of_this = []
        for index, ((kind, _), shown) in enumerate(
            zip(entry.transaction.facts, entry.shown, strict=True)
        ):
            if kind in selection.kinds and shown is not None and selection.takes(shown.definition):
                of_this.append((first + index, shown))
        for offset, shown in of_this:
            if offset <= after:
                continue
            if offset == of_this[-1][0]:
                bookmark = Bookmark(offset, check_of(entry.transaction.digest))
            else:
                bookmark = Bookmark(first - 1, check_of(entry.previous_digest))
            wanted.append(Seen(offset, bookmark, shown))
    return wanted


def taken(cursor: Cursor, pages: Pages, counts: Iterator[int]) -> list[Seen]:
    """Everything to the head, so many at a time; checks the bookmarks on the way."""
    found: list[Seen] = []
    start = cursor.bookmark
    while not cursor.at_head:
        count = next(counts)
        try:
            some = cursor.take(pages, show, count)
        except Behind:
            pages.read(cursor.log, cursor.position)
            continue
        assert len(some) <= count
        found += some
        if cursor.at_boundary:
            assert cursor.bookmark.offset == cursor.position
        elif found:
            assert cursor.bookmark in (found[-1].bookmark, start)
    return found


@settings(QUICK, max_examples=120)
@given(st.data(), STEPS)
def test_a_cursor_sees_what_is_wanted_from_wherever_it_begins(
    data: st.DataObject, steps: Sequence[Step]
) -> None:
    engine = MemoryLog()
    log_id = played(engine, steps)
    entries = entries_of(engine, log_id)
    log = LoadedLog(log_id)
    at = engine.head(log_id)
    assert at is not None
    log.committed.head, log.committed.digest = at.head, at.digest
    log.watch()
    assert log.ring is not None
    kept = data.draw(st.integers(0, len(entries)), "entries in the ring")
    for entry in entries[len(entries) - kept :]:
        log.ring.push(entry)
    selection = Selection(
        data.draw(st.sampled_from(IDENTIFIERS)), KINDS[data.draw(st.sampled_from(sorted(KINDS)))]
    )
    after = data.draw(st.integers(0, at.head), "after")
    counts = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4), "at a time")

    place = find_place(engine, log, after, 0)
    holding = [entry.transaction for entry in entries if _holds(entry.transaction, after)]
    assert place.inside == bool(holding and holding[0].last_offset != after)
    assert place.digest == (holding[0].digest if holding else GENESIS)
    found = taken(Cursor(log, selection, place), Pages(engine), _again(counts))
    assert found == expected(entries, after, selection)


def _holds(transaction: Transaction, offset: int) -> bool:
    return transaction.record.first_offset <= offset <= transaction.last_offset


def _again(counts: Sequence[int]) -> Iterator[int]:
    while True:
        yield from counts


@settings(QUICK, max_examples=60)
@given(STEPS)
def test_the_state_after_each_event_is_the_one_before_the_next(steps: Sequence[Step]) -> None:
    engine = MemoryLog()
    log_id = played(engine, steps)
    state = SessionState()
    for transaction in fold(engine, log_id):
        facts, values = transaction.facts, iter(transaction.values)
        for index, fact in enumerate(facts):
            offset = transaction.record.first_offset + index
            one = transaction._replace(facts=[fact], values=list(values), last_offset=offset)
            change(state, one)
            values = iter(one.values[len(digests(fact)) :])
            found = state_after_event(engine, log_id, offset)
            assert list(found.variables) == list(state.variables)
            for id_, variable in found.variables.items():
                assert variable._replace(value=state.variables[id_].value) == state.variables[id_]
                assert variable.value.digest == state.variables[id_].value.digest


def test_what_the_committer_publishes_is_what_the_log_gives() -> None:
    with Direct(MemoryLog()) as direct:
        direct.ask(RegisterVariable(Envelope("s"), "x", "integer", integer(0)))
        direct.ask(RegisterVariable(Envelope("s"), "y", "integer", integer(0)))
        log = direct.loaded("s")
        log.watch()
        for number in range(1, 20):
            envelope = Envelope("s", metadata={"n": str(number)} if number % 3 else {})
            direct.ask_all(
                SetVariable(envelope, "x", integer(number)),
                SetVariables(
                    envelope, (("x", integer(-number)), ("y", integer(number))), atomic=True
                ),
                SetVariable(envelope, "y", integer("none")),
            )
        assert log.ring is not None
        live = log.ring.after(3, 1_000)
        assert log.told == log.committed.head == live[-1].transaction.last_offset
        pages = Pages(direct.engine)
        pages.read(log, 3)
        stored = pages.find(log.id, 3, 1_000)
        updates = Updates(log.id.epoch, 0)
        assert len(live) == len(stored) == 38
        for one, other in zip(live, stored, strict=True):
            assert one.previous_digest == other.previous_digest
            for index in range(len(one.shown)):
                for last in (True, False):
                    assert updates.change(one, index, last=last) == updates.change(
                        other, index, last=last
                    )


def ring_of(*sizes: int) -> tuple[Ring, list[Committed]]:
    """A ring with transactions of so many events, from offset 1 on."""
    engine = MemoryLog()
    with Direct(engine) as direct:
        direct.ask(RegisterVariable(Envelope("s"), "x0", "integer", integer(0)))
        for number in range(1, max(sizes)):
            direct.ask(RegisterVariable(Envelope("s"), f"x{number}", "integer", integer(0)))
        for size in sizes:
            updates = tuple((f"x{number}", integer(size)) for number in range(size))
            direct.ask(SetVariables(Envelope("s"), updates, atomic=True))
        log = direct.loaded("s").id
    entries = entries_of(engine, log)
    ring = Ring()
    for entry in entries:
        ring.push(entry)
    return ring, entries


def test_a_ring_gives_what_holds_the_next_offset_and_what_follows() -> None:
    ring, entries = ring_of(3, 1, 2)
    for position in range(entries[-1].transaction.last_offset):
        holding = next(i for i, e in enumerate(entries) if e.transaction.last_offset > position)
        assert list(ring.after(position, 2)) == entries[holding : holding + 2]
    assert ring.after(entries[-1].transaction.last_offset, 2) == []


def test_a_ring_does_not_pretend_to_hold_what_it_gave_up() -> None:
    ring, entries = ring_of(3, 1, 2)
    ring.give_up(entries[2].transaction.last_offset)
    last = entries[2].transaction.last_offset
    assert not ring.after(last - 1, 5)
    assert list(ring.after(last, 5)) == entries[3:]
    ring.give_up(entries[-1].transaction.last_offset)
    assert not ring.after(last, 5)
    ring.push(entries[-1])
    assert list(ring.after(entries[-2].transaction.last_offset, 5)) == entries[-1:]


def test_a_ring_begins_anew_where_something_is_missing() -> None:
    _, entries = ring_of(3, 1, 2)
    ring = Ring()
    ring.push(entries[0])
    ring.push(entries[2])
    assert not ring.after(0, 5)
    assert list(ring.after(entries[1].transaction.last_offset, 5)) == [entries[2]]


def test_all_rings_together_hold_so_many_bytes_and_the_oldest_goes_first() -> None:
    _, entries = ring_of(1, 1, 1, 1, 1, 1)
    logs = [LoadedLog(LogId(name, "e")) for name in ("a", "b")]
    for log in logs:
        log.watch()
    recent = Recent(3 * entries[-1].size)
    first, second = entries[1:4], entries[4:7]
    for entry in first:
        recent.publish([(logs[0], [entry])])
    assert logs[0].ring is not None
    assert list(logs[0].ring.after(2, 10)) == first
    for number, entry in enumerate(second, 1):
        recent.publish([(logs[1], [entry])])
        given_up = first[number - 1].transaction.last_offset
        assert not logs[0].ring.after(given_up - 1, 10)
        assert list(logs[0].ring.after(given_up, 10)) == first[number:]
    assert logs[1].ring is not None
    assert list(logs[1].ring.after(5, 10)) == second


def test_a_listener_that_fails_fails_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    told: list[object] = []

    def broken(_: object) -> None:
        raise RuntimeError("its loop is gone")

    with Direct(MemoryLog()) as direct:
        direct.ask(RegisterVariable(Envelope("s"), "x", "integer", integer(0)))
        direct.loaded("s").watch()
        direct.committer.recent.when_committed(broken)
        direct.committer.recent.when_committed(told.append)
        outcome = direct.ask(SetVariable(Envelope("s"), "x", integer(1)))
        assert outcome.answer.number == 2
        assert len(told) == 1
        assert "could not be told" in caplog.text


def test_pages_are_shared_bounded_and_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages_module, "PAGE_EVENTS", 10)
    monkeypatch.setattr(pages_module, "KEPT_BYTES", 50_000)
    with Direct(MemoryLog()) as direct:
        direct.ask(RegisterVariable(Envelope("s"), "x", "integer", integer(0)))
        for number in range(100):
            direct.ask(SetVariable(Envelope("s"), "x", integer(number)))
        log = direct.loaded("s")
        log.watch()
        pages = Pages(direct.engine)
        assert not pages.find(log.id, 0, 5)
        pages.read(log, 0)
        assert [e.transaction.last_offset for e in pages.find(log.id, 4, 3)] == [5, 6, 7]
        assert not pages.find(log.id, 11, 1)
        for position in range(0, 100, 9):
            pages.read(log, position)
            assert pages.find(log.id, position, 1)
        assert pages._size <= 50_000
        assert not pages.find(log.id, 0, 1)
        pages.read(log, 0)
        assert pages.find(log.id, 0, 1)


def test_a_page_ends_where_watchers_may_see() -> None:
    with Direct(MemoryLog()) as direct:
        direct.ask(RegisterVariable(Envelope("s"), "x", "integer", integer(0)))
        log = direct.loaded("s")
        log.watch()
        for number in range(10):
            direct.ask(SetVariable(Envelope("s"), "x", integer(number)))
        log.told = 7  # as if the rest were stored, and not yet known to be
        pages = Pages(direct.engine)
        pages.read(log, 0)
        assert [e.transaction.last_offset for e in pages.find(log.id, 3, 100)] == [4, 5, 6, 7]


def test_places_that_there_are_not() -> None:
    with Direct(MemoryLog()) as direct:
        direct.ask(RegisterVariable(Envelope("s"), "x", "integer", integer(0)))
        for number in range(3):
            direct.ask(SetVariable(Envelope("s"), "x", integer(number)))
        log = direct.loaded("s")
        log.watch()
        with pytest.raises(OffsetOutOfRange, match=r"offset 6 lies in the future.* 1 to 5"):
            find_place(direct.engine, log, 6, 0)
        good = find_place(direct.engine, log, 4, 0)
        check = check_of(good.digest)
        assert find_place(direct.engine, log, 4, check) == good
        for wrong in (check + 1, 1):
            with pytest.raises(FailedPrecondition, match=r"resume_check does not fit offset 4"):
                find_place(direct.engine, log, 4, wrong)
        log.base = 4
        with pytest.raises(OffsetOutOfRange, match=r"offset 4 was cut away.* 5 to 5"):
            find_place(direct.engine, log, 3, 0)


def test_a_hole_in_the_log_is_data_loss() -> None:
    engine = MemoryLog()
    with Direct(engine) as direct:
        direct.ask(RegisterVariable(Envelope("s"), "x", "integer", integer(0)))
        stored = direct.loaded("s").id
    log = LoadedLog(stored)
    log.committed.head = 9
    with pytest.raises(DataLoss, match="lacks offset 5"):
        find_place(engine, log, 5, 0)


@pytest.mark.parametrize(
    ("identifiers", "error", "words"),
    [
        ([str(n) for n in range(MAX_IDENTIFIERS + 1)], ResourceExhausted, "watch all"),
        ([f"{n}*" for n in range(MAX_PATTERNS + 1)], ResourceExhausted, "patterns"),
        ([f"{n:03}" + "a" * 700 for n in range(100)], ResourceExhausted, "characters in all"),
        (["a", ""], InvalidRequest, "0 characters"),
        (["a" * 2_000], InvalidRequest, "2000 characters"),
        (["*" * 2_000], InvalidRequest, "2000 characters"),
    ],
)
def test_selections_that_are_refused(
    identifiers: list[str], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        Selection(identifiers, KINDS["all"])


def test_a_place_inside_a_transaction_is_no_boundary() -> None:
    log = LoadedLog(LogId("s", "e"))
    inside = Cursor(log, Selection((), KINDS["all"]), Place(3, b"d" * 32, inside=True))
    assert not inside.at_boundary
    assert inside.bookmark == Bookmark(3, check_of(b"d" * 32))
    boundary = Cursor(log, Selection((), KINDS["all"]), Place(3, b"d" * 32, inside=False))
    assert boundary.at_boundary
    assert boundary.bookmark == Bookmark(3, check_of(b"d" * 32))
