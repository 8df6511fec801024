"""The SQLite engine: the contract, and what is its own."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from snakepit_bridge.commands import RegisterVariable, SetVariable
from snakepit_bridge.errors import DataLoss
from snakepit_bridge.events.log import UNREFERENCED_NANOS, EventLog, LogInUse, LogUnusable
from snakepit_bridge.events.model import Envelope, LogHead, LogId, make_value
from snakepit_bridge.events.reading import load
from snakepit_bridge.events.snapshot import seal_snapshot
from snakepit_bridge.events.sqlite import SWEPT_AT_ONCE, WAL_BYTES, SqliteLog
from snakepit_bridge.events.sqlite_reading import READ_BYTES
from snakepit_bridge.events.urls import open_log
from tests.direct import Direct, integer
from tests.engine_contract import (
    ANEW,
    LOG,
    NOW,
    EngineContract,
    at,
    fill,
    record,
    snapshot,
    swept,
)


class TestSqlite(EngineContract):
    reopens = True

    def open(self, directory: Path) -> EventLog:
        return SqliteLog(directory / "bridge.db")


def test_it_syncs_every_commit_and_belongs_to_one_process(tmp_path: Path) -> None:
    path = tmp_path / "bridge.db"
    engine = SqliteLog(path)
    writer = engine._writer
    assert writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert writer.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    with pytest.raises(LogInUse, match=f"process {os.getpid()}.*stop it, or give this one"):
        SqliteLog(path)
    engine.close()
    SqliteLog(path).close()


def test_a_second_process_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "bridge.db"
    engine = SqliteLog(path)
    second = subprocess.run(
        [sys.executable, "-m", "snakepit_bridge.server", "--port", "0", "--log", f"sqlite:{path}"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    engine.close()
    assert second.returncode == 1
    assert "belongs to another bridge" in second.stderr
    assert f"process {os.getpid()}" in second.stderr
    assert "Traceback" not in second.stderr
    assert second.stdout == ""


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE precious (x)")
    other.commit()
    other.close()
    before = path.read_bytes()
    with pytest.raises(LogUnusable, match="another program"):
        SqliteLog(path)
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but longer than the hundred bytes of a header " * 4)
    with pytest.raises(LogUnusable, match=r"notes\.txt"):
        SqliteLog(path)


def test_a_newer_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bridge.db"
    engine = SqliteLog(path)
    engine._writer.execute("PRAGMA user_version = 99")
    engine.close()
    with pytest.raises(LogUnusable, match="newer snakepit_bridge"):
        SqliteLog(path)


def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LogUnusable, match="cannot use"):
        SqliteLog(tmp_path / "file" / "bridge.db")


@pytest.mark.parametrize("url", ["", "sqlite:", "postgres://x", "memory:x", "bridge.db"])
def test_a_url_that_names_no_log_is_refused(url: str) -> None:
    with pytest.raises(LogUnusable, match="names no log"):
        open_log(url)


def test_many_sessions_share_one_commit(tmp_path: Path) -> None:
    engine = SqliteLog(tmp_path / "bridge.db")
    engine.append([(LogId(f"s{n}", "e"), record(1)) for n in range(500)])
    engine.append([(LogId(f"s{n}", "e"), record(2)) for n in range(500)])
    assert all(engine.latest(f"s{n}") is not None for n in range(500))
    assert len(engine.read(LOG)) == 0
    engine.close()


def test_the_reserved_room_of_the_write_ahead_log_is_no_record(tmp_path: Path) -> None:
    """A copy of the files as a crash would leave them, before and after the first commit."""
    path = tmp_path / "bridge.db"
    engine = SqliteLog(path)
    reserved = path.with_name("bridge.db-wal").stat().st_size
    assert reserved in (0, WAL_BYTES)  # none where the disk is nearly full
    for name, appended in (("before", 0), ("after", 1)):
        if appended:
            engine.append([(LOG, record(1))])
        copy = tmp_path / name
        copy.mkdir()
        for file in ("bridge.db", "bridge.db-wal"):
            shutil.copy(tmp_path / file, copy / file)
        crashed = SqliteLog(copy / "bridge.db")
        assert crashed._writer.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert len(crashed.read(LOG)) == appended
        crashed.append([(LOG, record(appended + 1))])
        assert len(crashed.read(LOG)) == appended + 1
        crashed.close()
    engine.close()


def test_a_log_that_cannot_be_checkpointed_is_opened_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_engine: SqliteLog) -> bool:
        raise sqlite3.OperationalError("database or disk is full")

    engine = SqliteLog(tmp_path / "bridge.db")
    engine.append([(LOG, record(1))])
    engine.close()
    monkeypatch.setattr(SqliteLog, "_checkpoint", full)
    engine = SqliteLog(tmp_path / "bridge.db")
    assert list(engine.read(LOG)) == [record(1)]
    assert "disk is full" in caplog.text
    engine.close()


TABLES = ("logs", "records", "snapshots", "large_uses", "large_values", "unused_values")


def rows(engine: SqliteLog) -> dict[str, int]:
    with engine._reading() as reader:
        counts = [reader.execute(f"SELECT count(*) FROM {name}").fetchone() for name in TABLES]
    return {name: count for name, (count,) in zip(TABLES, counts, strict=True)}


def test_sweeping_frees_the_room_piece_by_piece(tmp_path: Path) -> None:
    engine = SqliteLog(tmp_path / "bridge.db")
    value, own = make_value(b"v" * 5_000), make_value(b"o" * 5_000)
    fill(engine, LOG, 1_300, large=(value,))
    fill(engine, ANEW, 1_700, large=(value, own))
    for offset in (*range(100, 1_200, 100), 1_200, 1_300):
        engine.save_snapshot(LOG, snapshot(offset, large=(value,)))
    engine.save_snapshot(ANEW, snapshot(9, large=(own,)))
    engine.cut(at(1_200))
    engine.drop(ANEW)
    before = rows(engine)
    assert before["records"] == 3_000  # at once nothing is deleted
    assert engine.sweep(NOW)
    after = rows(engine)
    deleted = {name: before[name] - after[name] for name in TABLES}
    assert all(count <= SWEPT_AT_ONCE for count in deleted.values())
    assert sum(deleted.values()) > SWEPT_AT_ONCE
    engine.close()
    engine = SqliteLog(tmp_path / "bridge.db")
    swept(engine)
    assert rows(engine) == {
        "logs": 1,
        "records": 100,
        "snapshots": 2,
        "large_uses": 102,
        "large_values": 2,
        "unused_values": 1,
    }
    swept(engine, NOW + UNREFERENCED_NANOS)
    assert rows(engine)["large_values"] == 1
    assert rows(engine)["unused_values"] == 0
    (fault,) = engine._writer.execute("PRAGMA integrity_check").fetchone()
    assert fault == "ok"
    engine.close()


def test_a_head_never_falls_while_its_log_is_cut(tmp_path: Path) -> None:
    engine = SqliteLog(tmp_path / "bridge.db")
    engine.append([(LOG, record(1))])
    done = threading.Event()
    fallen: list[tuple[int, int]] = []

    def look() -> None:
        last = 0
        while not done.is_set():
            now = newest(engine, LOG.session_id).head
            if now < last:
                fallen.append((last, now))
            last = max(last, now)

    readers = [threading.Thread(target=look) for _ in range(3)]
    for reader in readers:
        reader.start()
    for offset in range(2, 400):
        engine.append([(LOG, record(offset))])
        if offset % 3 == 0:
            engine.save_snapshot(LOG, snapshot(offset))
            engine.cut(at(offset))
            swept(engine)
    done.set()
    for reader in readers:
        reader.join()
    engine.close()
    assert fallen == []


# What a clean stop leaves.


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A file after a clean stop: a log of five transactions, and one of another session."""
    path = tmp_path / "bridge.db"
    with Direct(SqliteLog(path)) as direct:
        for session in ("s", "other"):
            direct.ask(RegisterVariable(Envelope(session), "x", "integer", integer(0)))
        for number in range(4):
            direct.ask(SetVariable(Envelope("s"), "x", integer(number)))
    return path


def newest(engine: EventLog, session: str = "s") -> LogHead:
    head = engine.latest(session)
    assert head is not None
    return head


def alter(path: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(path)) as file, file:
        assert file.execute(statement, values).rowcount > 0


LOST = """
DELETE FROM records
WHERE first_offset > ? AND log = (SELECT id FROM logs WHERE session_id = 's')
"""


def test_a_clean_stop_leaves_a_mark_of_each_head(stopped: Path) -> None:
    engine = SqliteLog(stopped)
    head = newest(engine)
    assert head.mark == (6, head.digest)
    assert newest(engine, "other").mark == (2, newest(engine, "other").digest)
    state, _ = load(engine, head)
    assert state.head == 6
    engine.append([(LogId("new", "e"), record(1))])
    assert newest(engine, "new").mark is None
    engine.close()
    engine = SqliteLog(stopped)
    assert newest(engine, "new").mark == (1, record(1).digest)
    engine.close()


@pytest.mark.parametrize(("kept", "bad"), [(5, 6), (3, 4), (2, 3), (0, 1)])
def test_records_that_are_missing_after_a_clean_stop_are_found_out(
    stopped: Path, kept: int, bad: int
) -> None:
    alter(stopped, LOST, kept)
    engine = SqliteLog(stopped)
    with pytest.raises(DataLoss, match="clean stop") as caught:
        load(engine, newest(engine))
    assert caught.value.facts["first_bad_offset"] == str(bad)
    assert load(engine, newest(engine, "other"))[0].head == 2
    engine.close()


def test_records_that_were_replaced_after_a_clean_stop_are_found_out(
    stopped: Path, tmp_path: Path
) -> None:
    alter(stopped, LOST, 4)
    copied = tmp_path / "old copy.db"
    shutil.copy(stopped, copied)
    alter(copied, "UPDATE logs SET mark = 0")
    with Direct(SqliteLog(copied)) as direct:  # as a bridge that knows of no mark would go on
        for number in (7, 8):
            direct.ask(SetVariable(Envelope("s"), "x", integer(number)))
    alter(copied, "UPDATE logs SET (mark, mark_digest) = (?, ?)", 6, bytes(32))
    engine = SqliteLog(copied)
    with pytest.raises(DataLoss, match="another one now") as caught:
        load(engine, newest(engine))
    assert caught.value.facts["first_bad_offset"] == "6"
    engine.close()


def test_after_an_unclean_stop_only_what_the_clean_one_left_is_expected(
    stopped: Path, tmp_path: Path
) -> None:
    crash = tmp_path / "crash"
    crash.mkdir()
    with Direct(SqliteLog(stopped)) as direct:
        for number in (7, 8):
            direct.ask(SetVariable(Envelope("s"), "x", integer(number)))
        for name in ("bridge.db", "bridge.db-wal"):
            shutil.copy(tmp_path / name, crash / name)
    alter(crash / "bridge.db", LOST, 7)
    engine = SqliteLog(crash / "bridge.db")
    head = newest(engine)
    assert head.head == 7
    assert head.mark is not None
    assert head.mark[0] == 6
    assert load(engine, newest(engine))[0].head == 7
    engine.close()
    alter(crash / "bridge.db", LOST, 5)
    engine = SqliteLog(crash / "bridge.db")
    with pytest.raises(DataLoss, match="clean stop"):
        load(engine, newest(engine))
    engine.close()


def test_a_mark_below_the_base_says_nothing_any_more(stopped: Path) -> None:
    engine = SqliteLog(stopped)
    head = newest(engine)
    sealed = seal_snapshot(load(engine, head)[0])
    engine.save_snapshot(head.log, sealed)
    engine.cut(LogHead(head.log, sealed.offset, sealed.digest))
    swept(engine)
    engine.close()
    engine = SqliteLog(stopped)
    state, offset = load(engine, newest(engine))
    assert (state.head, offset) == (6, 6)
    engine.close()


def test_large_records_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    with closing(SqliteLog(tmp_path / "bridge.db")) as engine:
        size = READ_BYTES // 3
        records = [record(first)._replace(values=bytes(size)) for first in range(1, 9)]
        engine.append([(LOG, stored) for stored in records])
        assert [stored.first_offset for stored in engine.read(LOG)] == [1, 2, 3]
        assert [stored.first_offset for stored in engine.read(LOG, 3)] == [4, 5, 6]
        assert list(engine.records(LOG)) == records
