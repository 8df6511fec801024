"""Files of older schemas become like today's, and everything in them reads as before."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from snakepit_bridge.errors import DataLoss
from snakepit_bridge.event_log_pb2 import Record
from snakepit_bridge.events import sqlite_schema as sql
from snakepit_bridge.events.codec import digests
from snakepit_bridge.events.log import UNREFERENCED_NANOS
from snakepit_bridge.events.memory import MemoryLog
from snakepit_bridge.events.model import LogId
from snakepit_bridge.events.reading import load
from snakepit_bridge.events.sqlite import SqliteLog
from tests.direct import folded, whole
from tests.engine_contract import NOW, swept
from tests.golden import log_schema_1 as golden

Stored = tuple[MemoryLog, list[LogId]]


@pytest.fixture(scope="module")
def stored() -> Stored:
    return golden.load(golden.RECORDS.read_text())


def write_schema_1(path: Path, stored: Stored) -> None:
    """A file as the release before wrote it."""
    engine, logs = stored
    with closing(sqlite3.connect(path)) as file, file:
        file.executescript(sql._SCHEMA_1)
        for row, log in enumerate(logs, 1):
            file.execute("INSERT INTO logs VALUES (?, ?, ?)", (row, *log))
            for record in engine.records(log):
                file.execute(
                    "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?)", (row, *tuple(record)[:5])
                )
        for value in engine._values.values():
            file.execute(
                "INSERT INTO large_values VALUES (?, ?, ?)", (value.digest, value.any, value.binary)
            )
        file.execute(f"PRAGMA application_id = {sql.APPLICATION_ID}")
        file.execute("PRAGMA user_version = 1")


@pytest.fixture
def migrated(tmp_path: Path, stored: Stored) -> Iterator[SqliteLog]:
    write_schema_1(tmp_path / "bridge.db", stored)
    engine = SqliteLog(tmp_path / "bridge.db")
    yield engine
    engine.close()


def uses(stored: Stored) -> set[tuple[int, int, int, bytes]]:
    """Which records name a large value, by their place."""
    engine, logs = stored
    found = set()
    for row, log in enumerate(logs, 1):
        for record in engine.records(log):
            for event in Record.FromString(record.header).events:
                kind = str(event.WhichOneof("kind"))
                for digest, _ in digests((kind, getattr(event, kind))):
                    if digest in engine._values:
                        found.add((row, record.first_offset, 0, digest))
    return found


def test_every_byte_reads_the_same(migrated: SqliteLog, stored: Stored) -> None:
    engine, logs = stored
    assert len(engine._values) >= 2
    for log in logs:
        assert list(migrated.records(log)) == list(engine.records(log))
        then, now = engine.head(log), migrated.head(log)
        assert then is not None
        assert now is not None
        assert now == then
    assert migrated.large_values(list(engine._values)) == engine._values


def test_every_log_folds_to_the_state_it_had(migrated: SqliteLog, stored: Stored) -> None:
    _, logs = stored
    expected = json.loads(golden.STATES.read_text())
    assert {log.epoch: golden.shown(folded(migrated, log)) for log in logs} == expected
    for log in logs:
        head = migrated.head(log)
        assert head is not None
        state, offset = load(migrated, head)
        assert offset == 0
        assert whole(state) == whole(folded(migrated, log))


def test_ends_and_uses_are_read_from_the_records(migrated: SqliteLog, stored: Stored) -> None:
    _, logs = stored
    ended = {log: state for log in logs if (state := folded(migrated, log)).ended}
    assert 0 < len(ended) < len(logs)
    entries = {entry.log: entry.ended_unix_nanos for entry in migrated.logs()}
    assert entries == {log: ended[log].time_unix_nanos if log in ended else 0 for log in logs}
    assert migrated.live_sessions() == len(logs) - len(ended)
    assert set(migrated.ended_before(NOW * 2)) == set(ended)
    with migrated._reading() as reader:
        found = set(reader.execute("SELECT * FROM large_uses"))
    assert found == uses(stored)
    assert found


def test_large_values_of_an_old_file_go_with_their_logs(
    migrated: SqliteLog, stored: Stored
) -> None:
    engine, logs = stored
    swept(migrated, NOW + 9 * UNREFERENCED_NANOS)
    assert migrated.large_values(list(engine._values)) == engine._values
    for log in logs:
        migrated.drop(log)
    swept(migrated, NOW)
    swept(migrated, NOW + UNREFERENCED_NANOS)
    assert migrated.large_values(list(engine._values)) == {}


def test_an_old_file_becomes_as_a_new_one(tmp_path: Path, migrated: SqliteLog) -> None:
    new = SqliteLog(tmp_path / "new.db")
    shape = "SELECT type, name, tbl_name FROM sqlite_master ORDER BY name"
    version = "PRAGMA user_version"
    for query in (shape, version, "PRAGMA table_info(logs)", "PRAGMA table_info(records)"):
        with migrated._reading() as one, new._reading() as other:
            assert one.execute(query).fetchall() == other.execute(query).fetchall()
    new.close()


def test_an_old_file_without_large_values_is_migrated_too(tmp_path: Path, stored: Stored) -> None:
    path = tmp_path / "bridge.db"
    write_schema_1(path, stored)
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("DELETE FROM large_values")
    engine = SqliteLog(path)
    ended = {log for log in stored[1] if folded(stored[0], log).ended}
    assert {entry.log for entry in engine.logs() if entry.ended_unix_nanos} == ended
    engine.close()


def test_a_migration_that_fails_leaves_the_old_file(
    tmp_path: Path, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bridge.db"
    write_schema_1(path, stored)

    def fail(_connection: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(sql, "_look_into_records", fail)
        with pytest.raises(Exception, match="disk is full"):
            SqliteLog(path)
    with closing(sqlite3.connect(path)) as file:
        assert file.execute("PRAGMA user_version").fetchone() == (1,)
        assert len(file.execute("PRAGMA table_info(logs)").fetchall()) == 3
    engine = SqliteLog(path)
    assert engine.live_sessions() > 0
    engine.close()


def test_a_damaged_record_of_an_old_file_harms_its_own_log_only(
    tmp_path: Path, stored: Stored
) -> None:
    path = tmp_path / "bridge.db"
    write_schema_1(path, stored)
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("UPDATE records SET header = x'ffffffff' WHERE log = 1 AND first_offset = 1")
    engine = SqliteLog(path)
    damaged, sound = (engine.head(log) for log in stored[1][:2])
    assert damaged is not None
    assert sound is not None
    with pytest.raises(DataLoss):
        load(engine, damaged)
    assert load(engine, sound)[0].head == sound.head
    engine.close()
