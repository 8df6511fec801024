"""The contract of ``events.log.EventLog`` as tests.

An engine enters through nothing but a factory: subclass ``EngineContract`` and give
``open``; an engine that outlives its object also says so with ``reopens = True``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from snakepit_bridge.events.log import UNREFERENCED_NANOS, Conflict, EventLog, LogEntry
from snakepit_bridge.events.model import (
    GENESIS,
    LogHead,
    LogId,
    StoredRecord,
    StoredSnapshot,
    Value,
    make_value,
)

LOG = LogId("session", "epoch-1")
ANEW = LogId("session", "epoch-2")
NOBODY = LogId("nobody", "x")
NOW = 1_750_000_000 * 10**9
MOST_PIECES = 10_000
"""A sweep that takes more does not end."""

Reopen = Callable[[], EventLog]


def record(
    first: int, events: int = 1, *, large: tuple[Value, ...] = (), ended: int = 0
) -> StoredRecord:
    """A record whose bytes differ from those of every other offset."""
    return StoredRecord(
        first,
        events,
        f"header {first}".encode(),
        f"values {first}".encode() * 3,
        first.to_bytes(32, "little"),
        large,
        ended,
    )


def snapshot(offset: int, *, time: int = 0, large: tuple[Value, ...] = ()) -> StoredSnapshot:
    """A snapshot whose bytes differ from those of every other offset."""
    return StoredSnapshot(
        offset,
        offset.to_bytes(32, "big"),
        time,
        f"state {offset}".encode() * 9,
        f"requests {offset}".encode() * 7,
        f"check {offset}".encode(),
        tuple(value.digest for value in large),
    )


def at(offset: int, log: LogId = LOG) -> LogHead:
    """Where to cut."""
    return LogHead(log, offset, snapshot(offset).digest)


def fill(engine: EventLog, log: LogId, count: int, *, large: tuple[Value, ...] = ()) -> None:
    """Append records of one event each."""
    engine.append([(log, record(first, large=large)) for first in range(1, count + 1)])


def swept(engine: EventLog, now: int = NOW) -> int:
    """Sweep until there is no more to do; gives in how many pieces."""
    for pieces in range(1, MOST_PIECES):
        if not engine.sweep(now):
            return pieces
    raise AssertionError("sweeping does not end")


def offsets(records: Sequence[StoredRecord]) -> list[int]:
    return [stored.first_offset for stored in records]


class EngineContract:
    """Inherit, implement ``open``, and every engine is held to the same promises."""

    reopens = False

    def open(self, directory: Path) -> EventLog:
        raise NotImplementedError

    @pytest.fixture
    def engine(self, tmp_path: Path) -> Iterator[EventLog]:
        engine = self.open(tmp_path)
        yield engine
        engine.close()

    @pytest.fixture
    def reopen(self, engine: EventLog, tmp_path: Path) -> Iterator[Reopen]:
        """Close what is open and open it again, where an engine outlives its object."""
        opened = [engine]

        def again() -> EventLog:
            if self.reopens:
                opened[-1].close()
                opened.append(self.open(tmp_path))
            return opened[-1]

        yield again
        opened[-1].close()

    def test_an_unknown_session_has_no_log(self, engine: EventLog) -> None:
        assert engine.latest("nobody") is None
        assert list(engine.read(LogId("nobody", "x"))) == []
        assert engine.record_at(LogId("nobody", "x"), 1) is None

    def test_what_is_read_is_what_was_appended(self, engine: EventLog) -> None:
        records = [record(1, 3), record(4), record(5, 2)]
        for each in records:
            engine.append([(LOG, each)])
        assert list(engine.read(LOG)) == records
        head = engine.latest("session")
        assert head is not None
        assert head == LogHead(LOG, 6, records[-1].digest)

    def test_an_empty_session_id_and_odd_ones_are_kept_apart(self, engine: EventLog) -> None:
        logs = [LogId(name, "e") for name in ("", " ", "a", "A", "ä", "a\u0308", "%", "_")]
        for index, log in enumerate(logs):
            engine.append([(log, record(1, index + 1))])
        for index, log in enumerate(logs):
            head = engine.latest(log.session_id)
            assert head is not None
            assert (head.log, head.head) == (log, index + 1)

    @pytest.mark.parametrize("first", [0, 1, 2, 4, 7])
    def test_a_record_that_does_not_follow_is_a_conflict(
        self, engine: EventLog, first: int
    ) -> None:
        engine.append([(LOG, record(1, 4))])
        follows = record(5)
        with pytest.raises(Conflict, match="session"):
            engine.append([(LOG, follows), (LOG, record(first))])
        assert offsets(engine.read(LOG)) == [1]  # nothing of the call was stored
        engine.append([(LOG, follows)])
        assert offsets(engine.read(LOG)) == [1, 5]

    def test_a_log_begins_at_one(self, engine: EventLog) -> None:
        with pytest.raises(Conflict):
            engine.append([(LOG, record(2))])
        assert engine.latest("session") is None

    def test_one_append_may_hold_several_logs_and_several_records(self, engine: EventLog) -> None:
        other = LogId("other", "epoch-2")
        engine.append(
            [(LOG, record(1)), (other, record(1, 2)), (LOG, record(2)), (other, record(3))]
        )
        assert offsets(engine.read(LOG)) == [1, 2]
        assert offsets(engine.read(other)) == [1, 3]

    def test_a_session_that_begins_anew_has_a_new_log_and_keeps_the_old(
        self, engine: EventLog
    ) -> None:
        anew = LogId("session", "epoch-2")
        engine.append([(LOG, record(1, 5))])
        engine.append([(anew, record(1))])
        head = engine.latest("session")
        assert head is not None
        assert head.log == anew
        assert offsets(engine.read(LOG)) == [1]
        assert engine.record_at(LOG, 5) == record(1, 5)

    def test_reading_begins_at_the_record_that_holds_the_offset(self, engine: EventLog) -> None:
        for first, count in ((1, 3), (4, 1), (5, 4), (9, 1)):
            engine.append([(LOG, record(first, count))])
        expected = {0: [1, 4, 5, 9], 1: [1, 4, 5, 9], 2: [1, 4, 5, 9], 3: [4, 5, 9], 4: [5, 9]}
        expected |= {5: [5, 9], 7: [5, 9], 8: [9], 9: [], 10: [], 1000: []}
        for after, firsts in expected.items():
            assert offsets(engine.read(LOG, after)) == firsts, after

    def test_reading_back_begins_at_the_record_that_holds_the_offset(
        self, engine: EventLog
    ) -> None:
        for first, count in ((1, 3), (4, 1), (5, 4), (9, 1)):
            engine.append([(LOG, record(first, count))])
        expected = {1: [], 2: [1], 4: [1], 5: [4, 1], 6: [5, 4, 1], 9: [5, 4, 1]}
        expected |= {10: [9, 5, 4, 1], 1000: [9, 5, 4, 1]}
        for before, firsts in expected.items():
            assert offsets(engine.read_back(LOG, before)) == firsts, before

    def test_pages_meet_both_ways(self, engine: EventLog) -> None:
        for first in range(1, 26):
            engine.append([(LOG, record(first))])
        assert offsets(engine.read(LOG, 3, limit=4)) == [4, 5, 6, 7]
        assert offsets(engine.read_back(LOG, 20, limit=3)) == [19, 18, 17]
        assert offsets(list(engine.records(LOG, page=7))) == list(range(1, 26))

    def test_every_offset_is_found_in_its_record(self, engine: EventLog) -> None:
        for first, count in ((1, 3), (4, 1), (5, 4)):
            engine.append([(LOG, record(first, count))])
        found = [engine.record_at(LOG, offset) for offset in range(1, 9)]
        assert [each.first_offset if each else 0 for each in found] == [1, 1, 1, 4, 5, 5, 5, 5]
        assert engine.record_at(LOG, 9) is None

    def test_large_values_are_stored_once_by_digest(self, engine: EventLog) -> None:
        value, other = make_value(b"a" * 5_000), make_value(b"b" * 10, b"c" * 9_000)
        engine.append([(LOG, record(1, large=(value, other)))])
        engine.append([(LOG, record(2, large=(value,)))])
        found = engine.large_values([value.digest, other.digest, bytes(32)])
        assert found == {value.digest: value, other.digest: other}
        assert all(stored.large == () for stored in engine.read(LOG))

    def test_settling_an_engine_in_order_changes_nothing(self, engine: EventLog) -> None:
        engine.append([(LOG, record(1))])
        engine.settle()
        engine.append([(LOG, record(2))])
        assert offsets(engine.read(LOG)) == [1, 2]

    def test_readers_see_whole_appends_while_one_writes(self, engine: EventLog) -> None:
        engine.append([(LOG, record(1))])
        done = threading.Event()
        torn: list[list[int]] = []

        def read() -> None:
            while not done.is_set():
                seen = offsets(engine.read(LOG))
                if seen != list(range(1, len(seen) + 1)) or len(seen) % 2 == 0:
                    torn.append(seen)

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        for first in range(2, 200, 2):
            engine.append([(LOG, record(first)), (LOG, record(first + 1))])
        done.set()
        for reader in readers:
            reader.join()
        assert torn == []

    def test_closing_twice_is_harmless(self, tmp_path: Path) -> None:
        engine = self.open(tmp_path)
        engine.append([(LOG, record(1))])
        engine.close()
        engine.close()

    def test_a_reopened_log_is_the_same(self, tmp_path: Path) -> None:
        if not self.reopens:
            return
        engine = self.open(tmp_path)
        large = make_value(b"x" * 6_000)
        engine.append([(LOG, record(1, 2, large=(large,))), (LogId("b", "e"), record(1))])
        engine.close()
        engine = self.open(tmp_path)
        head = engine.latest("session")
        assert head is not None
        assert (head.log, head.head) == (LOG, 2)
        assert engine.large_values([large.digest]) == {large.digest: large}
        with pytest.raises(Conflict):
            engine.append([(LOG, record(2))])
        engine.append([(LOG, record(3))])
        assert offsets(engine.read(LOG)) == [1, 3]
        engine.close()

    # Heads and snapshots.

    def test_the_head_of_each_log_is_told_whether_it_is_the_newest_or_not(
        self, engine: EventLog, reopen: Reopen
    ) -> None:
        fill(engine, LOG, 3)
        fill(engine, ANEW, 1)
        engine = reopen()
        old, new = engine.head(LOG), engine.head(ANEW)
        assert old is not None
        assert new is not None
        assert old[:5] == (LOG, 3, record(3).digest, 0, GENESIS)
        assert new[:5] == (ANEW, 1, record(1).digest, 0, GENESIS)
        assert engine.latest("session") == new
        assert engine.head(NOBODY) is None
        assert engine.head(LogId("session", "epoch-3")) is None

    def test_a_snapshot_is_read_as_it_was_saved(self, engine: EventLog, reopen: Reopen) -> None:
        fill(engine, LOG, 9)
        kept = {offset: snapshot(offset, time=NOW + offset) for offset in (3, 7)}
        for each in kept.values():
            engine.save_snapshot(LOG, each)
        engine = reopen()
        found = [engine.snapshot(LOG, before) for before in range(12)]
        expected = [None] * 3 + [kept[3]] * 4 + [kept[7]] * 5
        assert found == expected
        assert list(engine.snapshot_offsets(LOG)) == [3, 7]

    def test_a_snapshot_of_no_log_is_not_kept(self, engine: EventLog) -> None:
        engine.save_snapshot(NOBODY, snapshot(1))
        assert engine.snapshot(NOBODY, 9) is None
        assert list(engine.snapshot_offsets(NOBODY)) == []
        assert engine.latest("nobody") is None

    def test_the_first_snapshot_at_an_offset_stays(self, engine: EventLog) -> None:
        fill(engine, LOG, 2)
        engine.save_snapshot(LOG, snapshot(2))
        engine.save_snapshot(LOG, snapshot(2)._replace(state=b"another"))
        assert engine.snapshot(LOG, 2) == snapshot(2)

    @pytest.mark.parametrize("order", [(2, 4, 6, 8), (8, 2, 6, 4), (6, 8, 4, 2)])
    def test_only_the_newest_two_snapshots_keep_their_requests(
        self, engine: EventLog, reopen: Reopen, order: Sequence[int]
    ) -> None:
        fill(engine, LOG, 9)
        fill(engine, ANEW, 9)
        engine.save_snapshot(ANEW, snapshot(1))
        for offset in order:
            engine.save_snapshot(LOG, snapshot(offset))
        engine = reopen()
        for offset in (2, 4):
            assert engine.snapshot(LOG, offset) == snapshot(offset)._replace(requests=b"")
        for offset in (6, 8):
            assert engine.snapshot(LOG, offset) == snapshot(offset)
        assert engine.snapshot(ANEW, 9) == snapshot(1)

    # Cutting and dropping.

    def test_a_live_log_can_be_cut_at_the_newest_snapshot_that_is_old_enough(
        self, engine: EventLog, reopen: Reopen
    ) -> None:
        ended, other = LogId("ended", "e"), LogId("other", "e")
        for log in (LOG, ANEW, other, ended):
            fill(engine, log, 9)
        engine.append([(ended, record(10, ended=NOW))])
        for offset in (2, 4, 6):
            for log in (LOG, ended):
                engine.save_snapshot(log, snapshot(offset, time=NOW + offset))
        engine.save_snapshot(other, snapshot(3, time=NOW))
        engine = reopen()

        def to_cut(time: int) -> list[tuple[LogId, int, bytes]]:
            return sorted(head[:3] for head in engine.to_cut(time))

        assert to_cut(NOW) == []
        assert to_cut(NOW + 1) == [at(3, other)[:3]]
        assert to_cut(NOW + 4) == sorted([at(3, other)[:3], at(2)[:3]])
        assert to_cut(NOW + 99) == sorted([at(3, other)[:3], at(6)[:3]])
        assert len(engine.to_cut(NOW + 99, limit=1)) == 1
        engine.cut(at(4))
        engine.drop(other)
        assert to_cut(NOW + 6) == []  # not again where it is cut, nor before
        assert to_cut(NOW + 7) == [at(6)[:3]]

    def test_what_was_cut_is_read_never_again(self, engine: EventLog, reopen: Reopen) -> None:
        firsts = ((1, 3), (4, 1), (5, 4), (9, 1), (10, 2))
        engine.append([(LOG, record(first, count)) for first, count in firsts])
        for offset in (3, 8, 11):
            engine.save_snapshot(LOG, snapshot(offset))
        engine.cut(at(8))

        def check(engine: EventLog) -> None:
            head = engine.head(LOG)
            assert head is not None
            assert head[:5] == (LOG, 11, record(10).digest, 8, snapshot(8).digest)
            for after in range(9):
                assert offsets(engine.read(LOG, after)) == [9, 10], after
            assert offsets(engine.read(LOG, 9)) == [10]
            assert offsets(list(engine.records(LOG, page=1))) == [9, 10]
            for before in range(10):
                assert offsets(engine.read_back(LOG, before)) == [], before
            assert offsets(engine.read_back(LOG, 99)) == [10, 9]
            assert [engine.record_at(LOG, n) for n in range(1, 9)] == [None] * 8
            assert list(engine.snapshot_offsets(LOG)) == [8, 11]
            assert [engine.snapshot(LOG, n) for n in (3, 7)] == [None, None]
            assert engine.snapshot(LOG, 10) == snapshot(8)

        check(engine)
        engine = reopen()
        check(engine)
        engine.sweep(NOW)
        check(engine)
        swept(engine)
        check(engine)
        engine = reopen()
        check(engine)
        engine.save_snapshot(LOG, snapshot(3))  # as one that was on its way would be
        check(engine)
        engine.cut(at(3))  # nor does a base ever fall
        check(engine)

    def test_a_log_that_was_cut_to_its_head_goes_on(self, engine: EventLog, reopen: Reopen) -> None:
        fill(engine, LOG, 5)
        engine.save_snapshot(LOG, snapshot(5))
        engine.cut(at(5))
        swept(engine)
        engine = reopen()
        head = engine.latest("session")
        assert head is not None
        assert head[:5] == (LOG, 5, snapshot(5).digest, 5, snapshot(5).digest)
        assert list(engine.read(LOG)) == []
        for first in (1, 5, 7):
            with pytest.raises(Conflict):
                engine.append([(LOG, record(first))])
        engine.append([(LOG, record(6))])
        engine = reopen()
        engine.append([(LOG, record(7, 2))])
        assert offsets(engine.read(LOG)) == [6, 7]
        head = engine.latest("session")
        assert head is not None
        assert head[1:4] == (8, record(7).digest, 5)

    def test_a_log_is_cut_again_and_again(self, engine: EventLog, reopen: Reopen) -> None:
        for offset in range(1, 30):
            engine.append([(LOG, record(offset))])
            if offset % 4 == 0:
                engine.save_snapshot(LOG, snapshot(offset))
                engine.cut(at(offset - 4))
                engine.sweep(NOW)
            if offset % 7 == 0:
                engine = reopen()
        assert offsets(engine.read(LOG)) == list(range(25, 30))
        assert list(engine.snapshot_offsets(LOG)) == [24, 28]

    def test_a_dropped_log_is_gone_and_the_one_before_is_the_newest(
        self, engine: EventLog, reopen: Reopen
    ) -> None:
        fill(engine, LOG, 5)
        fill(engine, ANEW, 3)
        fill(engine, LogId("other", "e"), 2)
        engine.save_snapshot(ANEW, snapshot(2, time=NOW - 1))
        engine.drop(ANEW)
        for _ in range(3):
            head = engine.latest("session")
            assert head is not None
            assert head[:2] == (LOG, 5)
            assert engine.head(ANEW) is None
            assert list(engine.read(ANEW)) == list(engine.read_back(ANEW, 9)) == []
            assert engine.snapshot(ANEW, 9) is None
            assert list(engine.snapshot_offsets(ANEW)) == []
            assert list(engine.to_cut(NOW)) == []
            assert ANEW not in {entry.log for entry in engine.logs()}
            assert engine.live_sessions() == 2
            assert offsets(engine.read(LOG)) == [1, 2, 3, 4, 5]
            swept(engine)
            engine = reopen()
        engine.drop(LOG)
        assert engine.latest("session") is None
        third = LogId("session", "epoch-3")
        fill(engine, third, 1)
        swept(engine)
        engine = reopen()
        head = engine.latest("session")
        assert head is not None
        assert head[:2] == (third, 1)

    def test_a_log_may_begin_anew_under_the_same_epoch_once_it_is_swept(
        self, engine: EventLog, reopen: Reopen
    ) -> None:
        fill(engine, LOG, 5)
        engine.save_snapshot(LOG, snapshot(4))
        engine.drop(LOG)
        swept(engine)
        with pytest.raises(Conflict):
            engine.append([(LOG, record(6))])
        fill(engine, LOG, 2)
        engine = reopen()
        assert offsets(engine.read(LOG)) == [1, 2]
        assert engine.snapshot(LOG, 9) is None
        head = engine.head(LOG)
        assert head is not None
        assert head[1:4] == (2, record(2).digest, 0)

    def test_upkeep_of_no_log_does_nothing(self, engine: EventLog) -> None:
        engine.cut(at(3, NOBODY))
        engine.drop(NOBODY)
        engine.touch({NOBODY: NOW})
        assert swept(engine) == 1
        assert engine.latest("nobody") is None
        assert list(engine.logs()) == []

    # Sweeping, and values stored by digest.

    def test_sweeping_goes_on_where_it_was_left(self, engine: EventLog, reopen: Reopen) -> None:
        value = make_value(b"v" * 5_000)
        for log, count in ((LOG, 1_300), (ANEW, 1_700)):
            fill(engine, log, count, large=(value,))
            engine.save_snapshot(log, snapshot(1_200, large=(value,)))
        engine.cut(at(1_200))
        engine.drop(ANEW)
        while engine.sweep(NOW):
            engine = reopen()
            assert offsets(engine.read(LOG, limit=2)) == [1_201, 1_202]
        assert not engine.sweep(NOW)
        assert len(engine.read(LOG)) == 100
        assert engine.large_values([value.digest]) == {value.digest: value}

    def test_a_large_value_goes_an_hour_after_its_last_use(
        self, engine: EventLog, reopen: Reopen
    ) -> None:
        value, other = make_value(b"a" * 5_000), make_value(b"b" * 10, b"c" * 9_000)
        digests = [value.digest, other.digest]
        engine.append([(LOG, record(1, large=(value, other))), (ANEW, record(1, large=(value,)))])
        engine.append([(LOG, record(2, large=(value, other))), (LOG, record(3))])
        engine.save_snapshot(LOG, snapshot(2, large=(other,)))
        engine.save_snapshot(LOG, snapshot(3))

        def kept(now: int) -> set[bytes]:
            swept(engine, now)
            return set(engine.large_values(digests))

        engine.cut(at(2))  # the snapshot there stays, and with it the other value
        engine = reopen()
        assert kept(NOW) == set(digests)
        assert kept(NOW + 2 * UNREFERENCED_NANOS) == set(digests)
        gone = NOW + 3 * UNREFERENCED_NANOS
        engine.cut(at(3))
        engine.drop(ANEW)
        assert kept(gone) == set(digests)
        engine = reopen()
        assert kept(gone + UNREFERENCED_NANOS - 1) == set(digests)
        assert kept(gone + UNREFERENCED_NANOS) == set()
        engine.append([(LOG, record(4, large=(value,)))])  # and comes again as any other
        assert kept(gone + 9 * UNREFERENCED_NANOS) == {value.digest}

    def test_a_large_value_that_is_used_again_in_time_stays(
        self, engine: EventLog, reopen: Reopen
    ) -> None:
        value = make_value(b"a" * 5_000)
        engine.append([(LOG, record(1, large=(value,)))])
        engine.drop(LOG)
        swept(engine)
        engine.append([(ANEW, record(1, large=(value,)))])
        for hours in (1, 2, 3):
            swept(engine, NOW + hours * UNREFERENCED_NANOS + 1)
            engine = reopen()
            assert engine.large_values([value.digest]) == {value.digest: value}

    def test_the_hour_begins_with_the_last_use(self, engine: EventLog, reopen: Reopen) -> None:
        """Not with an earlier time at which nothing had used it either."""
        value = make_value(b"a" * 5_000)
        engine.append([(LOG, record(1, large=(value,)))])
        engine.drop(LOG)
        swept(engine)
        engine.append([(ANEW, record(1, large=(value,)))])
        engine.drop(ANEW)
        late = NOW + UNREFERENCED_NANOS - 1
        swept(engine, late)
        engine = reopen()
        swept(engine, late + 2)
        assert set(engine.large_values([value.digest])) == {value.digest}
        swept(engine, late + UNREFERENCED_NANOS)
        assert engine.large_values([value.digest]) == {}

    # Lists of logs.

    def test_logs_are_counted_while_they_live(self, engine: EventLog, reopen: Reopen) -> None:
        assert engine.live_sessions() == 0
        for name in "abc":
            fill(engine, LogId(name, "e"), 2)
        engine.append([(LogId("a", "e"), record(3, ended=NOW))])
        assert engine.live_sessions() == 2
        engine.drop(LogId("b", "e"))
        engine = reopen()
        assert engine.live_sessions() == 1
        swept(engine)
        assert engine.live_sessions() == 1

    def test_logs_are_listed_in_order_and_by_pages(self, engine: EventLog, reopen: Reopen) -> None:
        names = ["", "a", "a\u0308", "b", "Z", "ä", "%", "\N{SNAKE}", "é" * 100]
        logs = [LogId(name, epoch) for name in names for epoch in ("2", "1")]
        for log in logs:
            fill(engine, log, 1)
        engine.append([(logs[3], record(2, ended=NOW))])
        engine.touch({logs[4]: NOW + 5, NOBODY: NOW})
        engine.touch({logs[5]: NOW + 6})
        engine = reopen()
        entries = {log: LogEntry(log, 0, 0) for log in logs}
        entries[logs[3]] = LogEntry(logs[3], NOW, 0)
        entries[logs[4]] = LogEntry(logs[4], 0, NOW + 5)
        entries[logs[5]] = LogEntry(logs[5], 0, NOW + 6)
        expected = [entries[log] for log in sorted(logs)]
        assert list(engine.logs()) == expected
        for size in (1, 4, 18, 19):
            found: list[LogEntry] = []
            while page := engine.logs(found[-1].log if found else None, limit=size):
                assert len(page) <= size
                found += page
            assert found == expected, size

    def test_logs_that_ended_before_a_time_are_told(self, engine: EventLog, reopen: Reopen) -> None:
        logs = [LogId(name, "e") for name in "abcd"]
        for index, log in enumerate(logs[:3]):
            engine.append([(log, record(1, 2)), (log, record(3, ended=NOW + index))])
        fill(engine, logs[3], 1)
        engine = reopen()
        assert list(engine.ended_before(NOW)) == []
        assert list(engine.ended_before(NOW + 2)) == logs[:2]
        assert list(engine.ended_before(NOW + 99)) == logs[:3]
        assert len(engine.ended_before(NOW + 99, limit=2)) == 2
        engine.drop(logs[1])
        assert list(engine.ended_before(NOW + 99)) == [logs[0], logs[2]]
