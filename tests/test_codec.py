"""Guarantee 9: what is read is what was acknowledged, or an error that names the place."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from snakepit_bridge.commands import (
    CleanupSession,
    InitializeSession,
    LoadSession,
    RegisterVariable,
    SetVariable,
)
from snakepit_bridge.errors import DataLoss, FailedPrecondition
from snakepit_bridge.event_log_pb2 import Record
from snakepit_bridge.events.codec import unseal
from snakepit_bridge.events.memory import MemoryLog
from snakepit_bridge.events.model import (
    GENESIS,
    SCHEMA,
    Envelope,
    LogId,
    Origin,
    StoredRecord,
    Value,
    chain,
    make_value,
)
from snakepit_bridge.events.reading import fold, versions
from snakepit_bridge.events.sqlite import SqliteLog
from snakepit_bridge.session_context import SessionContext
from tests.direct import Direct, folded, integer, whole, wire_value
from tests.golden import log_schema_1 as golden

LOG = LogId("s", "0000000000000001")


class Copy(MemoryLog):
    """A log whose records can be taken out of their order."""

    def __init__(self, engine: MemoryLog, records: Sequence[StoredRecord]) -> None:
        super().__init__()
        self._stored = records
        self._values = dict(engine._values)

    def records(self, *_: object, **__: object) -> Iterator[StoredRecord]:
        yield from self._stored


@pytest.fixture(scope="module")
def engine() -> MemoryLog:
    engine, _ = golden.generate()
    return engine


@pytest.fixture(scope="module")
def stored(engine: MemoryLog) -> list[StoredRecord]:
    return list(engine.records(LOG))


T = TypeVar("T", StoredRecord, Value)


def replace(stored: T, **changes: Any) -> T:  # noqa: ANN401 - any field
    return stored._replace(**changes)


def first_bad_offset(engine: MemoryLog, records: Sequence[StoredRecord]) -> int:
    """Where folding the records stops."""
    with pytest.raises(DataLoss, match=r"offset \d+") as caught:
        for _ in fold(Copy(engine, records), LOG):
            pass
    return int(caught.value.facts["first_bad_offset"])


def flips(data: bytes) -> Iterator[bytes]:
    """``data`` with one byte changed: each bit of each byte in turn."""
    for index in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[index] ^= 1 << bit
            yield bytes(flipped)


@pytest.mark.parametrize("part", ["header", "values", "digest"])
@pytest.mark.parametrize("log", [LOG, LogId("called", "0000000000000004")])
def test_every_flipped_bit_of_a_record_is_found(engine: MemoryLog, log: LogId, part: str) -> None:
    previous = GENESIS
    for record in engine.records(log):
        unseal(record, previous, engine.large_values)
        for flipped in flips(getattr(record, part)):
            damaged = replace(record, **{part: flipped})
            with pytest.raises(DataLoss) as caught:
                unseal(damaged, previous, engine.large_values)
            assert caught.value.facts["first_bad_offset"] == str(record.first_offset)
            assert f"at offset {record.first_offset}" in caught.value.message
        previous = record.digest


def test_every_flipped_byte_of_a_large_value_is_found(
    engine: MemoryLog, stored: list[StoredRecord]
) -> None:
    sealed = [(record, stored[index - 1].digest) for index, record in enumerate(stored)]
    seen = 0
    for digest, value in engine._values.items():
        if not any(digest in record.header for record in stored):
            continue  # of another log
        record, previous = next(
            (r, p) for r, p in sealed if digest in r.header and not _inline(r, value)
        )
        for part in ("any", "binary"):
            data = getattr(value, part)
            for index in range(0, len(data), 97):
                flipped = data[:index] + bytes([data[index] ^ 0x10]) + data[index + 1 :]
                kept = {digest: replace(value, **{part: flipped})}
                with pytest.raises(DataLoss, match="damaged"):
                    unseal(record, previous, lambda _: kept)  # noqa: B023 - called at once
                seen += 1
    assert seen > 50


def _inline(record: StoredRecord, value: Value) -> bool:
    return value.any in record.values


def test_a_large_value_that_is_gone_is_found(engine: MemoryLog, stored: list[StoredRecord]) -> None:
    bare = Copy(engine, stored)
    bare._values.clear()
    with pytest.raises(DataLoss, match="is missing") as caught:
        list(fold(bare, LOG))
    assert caught.value.facts["first_bad_offset"] == "11"  # where the first one was registered


@pytest.mark.parametrize("by", [-1, 1, 1000])
@pytest.mark.parametrize("column", ["first_offset", "events"])
def test_a_changed_offset_is_found(
    engine: MemoryLog, stored: list[StoredRecord], column: str, by: int
) -> None:
    for index, record in enumerate(stored):
        changed = [*stored]
        changed[index] = replace(record, **{column: getattr(record, column) + by})
        assert first_bad_offset(engine, changed) == record.first_offset


def test_a_missing_record_is_found(engine: MemoryLog, stored: list[StoredRecord]) -> None:
    for index, record in enumerate(stored[:-1]):
        assert first_bad_offset(engine, stored[:index] + stored[index + 1 :]) == (
            record.first_offset
        )


def test_a_missing_record_is_found_though_the_later_ones_moved_up(
    engine: MemoryLog, stored: list[StoredRecord]
) -> None:
    for index, record in enumerate(stored[:-1]):
        later = [
            other._replace(first_offset=other.first_offset - record.events)
            for other in stored[index + 1 :]
        ]
        assert first_bad_offset(engine, stored[:index] + later) == record.first_offset


def test_a_repeated_record_is_found(engine: MemoryLog, stored: list[StoredRecord]) -> None:
    for index, record in enumerate(stored):
        repeated = [*stored[: index + 1], record, *stored[index + 1 :]]
        assert first_bad_offset(engine, repeated) == record.last_offset + 1
        moved = record._replace(first_offset=record.last_offset + 1)
        assert first_bad_offset(engine, [*stored[: index + 1], moved]) == record.last_offset + 1


def test_two_swapped_records_are_found(engine: MemoryLog, stored: list[StoredRecord]) -> None:
    for index, (one, other) in enumerate(pairwise(stored)):
        rest = stored[index + 2 :]
        assert first_bad_offset(engine, [*stored[:index], other, one, *rest]) == one.first_offset
        moved = (
            other._replace(first_offset=one.first_offset),
            one._replace(first_offset=one.first_offset + other.events),
        )
        assert first_bad_offset(engine, [*stored[:index], *moved, *rest]) == one.first_offset


def test_a_record_of_another_log_is_found(engine: MemoryLog, stored: list[StoredRecord]) -> None:
    other = next(engine.records(LogId("s", "0000000000000002")))
    assert other.first_offset == 1
    assert first_bad_offset(engine, [other, *stored[2:]]) == 3
    foreign = other._replace(first_offset=5, digest=chain(stored[3].digest, other.header))
    assert first_bad_offset(engine, [*stored[:4], foreign]) == 5


def forged(record: StoredRecord, previous: bytes, change: Callable[[Record], None]) -> StoredRecord:
    """A record with another header, and a digest that fits it."""
    header = Record.FromString(record.header)
    change(header)
    data = header.SerializeToString()
    return record._replace(header=data, digest=chain(previous, data))


def test_a_record_of_a_newer_schema_is_no_damage(
    engine: MemoryLog, stored: list[StoredRecord]
) -> None:
    def raise_schema(header: Record) -> None:
        header.schema = SCHEMA + 1

    newer = forged(stored[0], GENESIS, raise_schema)
    with pytest.raises(FailedPrecondition, match="newer snakepit_bridge"):
        unseal(newer, GENESIS, engine.large_values)
    with pytest.raises(FailedPrecondition, match="newer snakepit_bridge"):
        # Whatever a newer release keeps beside the header need not look like ours.
        unseal(newer._replace(values=b"\xff"), GENESIS, engine.large_values)


def test_an_event_of_an_unknown_kind_is_no_damage(
    engine: MemoryLog, stored: list[StoredRecord]
) -> None:
    def add_unknown(header: Record) -> None:
        header.events[0].ParseFromString(b"\xfa\x07\x00")  # field 127, empty

    newer = forged(stored[0], GENESIS, add_unknown)
    with pytest.raises(FailedPrecondition, match="newer snakepit_bridge"):
        folded(Copy(engine, [newer]), LOG)


def test_a_log_cut_at_its_end_is_a_shorter_log(
    engine: MemoryLog, stored: list[StoredRecord]
) -> None:
    """The limit that DESIGN names: nothing in the log itself can tell."""
    assert folded(Copy(engine, stored[:-1]), LOG).head == stored[-2].last_offset


texts = st.text(st.characters(codec="utf-8"), max_size=20)
labels = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=20)
origins = st.builds(
    Origin, labels.filter(bool), labels, texts.filter(bool), texts, tool_call_id=st.just("")
)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(-(10**400), 10**400), min_size=1, max_size=5),
    st.dictionaries(texts, texts, max_size=3),
    origins,
    st.lists(st.integers(-(10**18), 10**18), min_size=7, max_size=7),
)
@example([10**4200, 1, 10**4200], {"": "", "a": "b"}, Origin("x", "", "t", ""), [9, 8, 7] * 3)
def test_what_is_sealed_is_what_is_unsealed(
    numbers: list[int], metadata: dict[str, str], origin: Origin, clock: list[int]
) -> None:
    """Any value, metadata, origin and clock, one that jumps back included."""
    engine = MemoryLog()
    ticks = iter(clock)
    start = 2 * 10**18
    with Direct(engine, clock=lambda: start + next(ticks)) as direct:
        envelope = Envelope("s", origin=origin, metadata=metadata)
        direct.ask(RegisterVariable(envelope, "x", "integer", integer(0)))
        for number in numbers:
            direct.ask(SetVariable(envelope, "x", integer(number)))
        log = direct.loaded("s")
        assert whole(folded(engine, log.id)) == whole(log.working)
    *_, last = fold(engine, log.id)
    record = last.record
    assert dict(record.metadata) == metadata
    assert (record.source, record.correlation_id) == (origin.source, origin.correlation_id)
    assert (record.traceparent, record.tracestate) == (origin.traceparent, origin.tracestate)
    assert last.values[0].any.endswith(str(numbers[-1]).encode())
    times = [transaction.record.time_unix_nanos for transaction in fold(engine, log.id)]
    assert times == sorted(times)
    for transaction, tick in zip(fold(engine, log.id), clock, strict=False):
        raw = transaction.record.clock_unix_nanos or transaction.record.time_unix_nanos
        assert raw == start + tick


def test_values_are_told_apart_by_where_the_binary_begins() -> None:
    assert make_value(b"ab", b"c").digest != make_value(b"a", b"bc").digest
    assert make_value(b"abc").digest != make_value(b"ab", b"c").digest


# From here on with real files: a byte is changed under the engine's feet.

ESSAY = '"' + "long " * 1000 + '"'


def two_sessions(path: Path) -> LogId:
    with Direct(SqliteLog(path)) as direct:
        for session_id in ("victim", "other"):
            envelope = Envelope(session_id)
            direct.ask(RegisterVariable(envelope, "x", "integer", integer(0)))  # offsets 1 and 2
            for number in range(1, 6):
                direct.ask(SetVariable(envelope, "x", integer(number)))  # offsets 3 to 7
            essay = wire_value("string", ESSAY)
            direct.ask(RegisterVariable(envelope, "essay", "string", essay))  # offset 8
        return direct.loaded("victim").id


DAMAGE = {
    "header": ("header", 4),
    "values": ('"values"', 5),
    "digest": ("digest", 6),
    "last header": ("header", 8),
}


def damage(path: Path, column: str, offset: int) -> None:
    """Flip one bit in the middle of a column of the victim's record at ``offset``."""
    where = "log = (SELECT id FROM logs WHERE session_id = 'victim') AND first_offset = :offset"
    with closing(sqlite3.connect(path)) as file, file:
        ((data,),) = file.execute(f"SELECT {column} FROM records WHERE {where}", {"offset": offset})
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        changed = file.execute(
            f"UPDATE records SET {column} = :data WHERE {where}",
            {"offset": offset, "data": flipped},
        )
        assert changed.rowcount == 1


@pytest.mark.parametrize(("column", "offset"), DAMAGE.values(), ids=DAMAGE)
def test_damage_in_a_file_is_data_loss_of_that_session_only(
    tmp_path: Path, column: str, offset: int
) -> None:
    path = tmp_path / "bridge.db"
    two_sessions(path)
    damage(path, column, offset)
    with Direct(SqliteLog(path)) as direct:
        for command in (
            LoadSession(Envelope("victim")),
            SetVariable(Envelope("victim"), "x", integer(9)),
            RegisterVariable(Envelope("victim"), "y", "integer", integer(9)),
            InitializeSession(Envelope("victim")),
            CleanupSession(Envelope("victim"), "cleanup"),
        ):
            damaged, fine = direct.ask_all(command, SetVariable(Envelope("other"), "x", integer(9)))
            assert isinstance(damaged, DataLoss)
            assert damaged.facts["first_bad_offset"] == str(offset)
            assert f"offset {offset}" in damaged.message
            assert not isinstance(fine, Exception)
        assert direct.committer.loaded("victim") is None
        assert direct.loaded("other").committed.head == 8 + 5
        assert whole(folded(direct.engine, direct.loaded("other").id))["head"] == 8 + 5


def test_damage_in_a_file_is_data_loss_to_a_session_context(tmp_path: Path) -> None:
    path = tmp_path / "bridge.db"
    two_sessions(path)
    damage(path, "header", 4)
    with pytest.raises(DataLoss, match="offset 4"):
        SessionContext("victim", f"sqlite:{path}")
    with SessionContext("other", f"sqlite:{path}") as other:
        variable = other.get_variable("x")
        assert variable is not None
        assert variable.value == 5
        assert other.set_variable("x", 6) == 7


def test_damage_behind_a_loaded_session_is_found_by_whoever_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "bridge.db"
    log = two_sessions(path)
    with Direct(SqliteLog(path)) as direct:
        direct.ask(LoadSession(Envelope("victim")))
        damage(path, '"values"', 5)
        past = versions(direct.engine, log, "var_x_2", 7)
        assert [next(past).offset, next(past).offset] == [7, 6]
        with pytest.raises(DataLoss, match="offset 5"):
            next(past)
        committed = direct.loaded("victim").committed
        direct.ask(SetVariable(Envelope("victim"), "x", integer(6)))
        assert committed.head == 9
    with Direct(SqliteLog(path)) as direct, pytest.raises(DataLoss, match="offset 5"):
        direct.ask(LoadSession(Envelope("victim")))


def test_a_damaged_large_value_in_a_file_is_data_loss(tmp_path: Path) -> None:
    path = tmp_path / "bridge.db"
    two_sessions(path)
    with closing(sqlite3.connect(path)) as file, file:
        ((data,),) = file.execute('SELECT "any" FROM large_values')
        file.execute('UPDATE large_values SET "any" = ?', (data.replace(b"long", b"lone", 1),))
    with Direct(SqliteLog(path)) as direct, pytest.raises(DataLoss, match="offset 8"):
        direct.ask(LoadSession(Envelope("victim")))
