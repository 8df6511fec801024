"""The contract of ``events.log.EventLog`` as tests.

An engine enters through nothing but a factory: subclass ``EngineContract`` and give
``open``; an engine that outlives its object also says so with ``reopens = True``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from snakepit_bridge.events.log import Conflict, EventLog
from snakepit_bridge.events.model import LogHead, LogId, StoredRecord, Value, make_value

LOG = LogId("session", "epoch-1")


def record(first: int, events: int = 1, *, large: tuple[Value, ...] = ()) -> StoredRecord:
    """A record whose bytes differ from those of every other offset."""
    return StoredRecord(
        first,
        events,
        f"header {first}".encode(),
        f"values {first}".encode() * 3,
        first.to_bytes(32, "little"),
        large,
    )


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
