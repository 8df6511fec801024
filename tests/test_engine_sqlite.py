"""The SQLite engine: the contract, and what is its own."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from snakepit_bridge.events.log import EventLog, LogInUse, LogUnusable
from snakepit_bridge.events.model import LogId
from snakepit_bridge.events.sqlite import WAL_BYTES, SqliteLog
from snakepit_bridge.events.urls import open_log
from tests.engine_contract import LOG, EngineContract, record


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
