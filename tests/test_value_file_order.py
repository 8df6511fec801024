"""Values that have files: on the disk before the commit that names them, away only after one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from snakepit_bridge.events.log import UNREFERENCED_NANOS
from snakepit_bridge.events.model import Value, make_value
from snakepit_bridge.events.sqlite import SqliteLog
from tests.engine_contract import LOG, NOW, record

VALUE = make_value(b"a" * 200_000, b"b" * 100_000)
COMMIT, FORGET = "commit", "forget"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[SqliteLog]:
    engine = SqliteLog(tmp_path / "bridge.db")
    yield engine
    engine.close()


@pytest.fixture
def done(engine: SqliteLog, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What reaches the disk, in order: names synced or taken away, and commits."""
    events: list[str] = []
    sync, unlink = os.fsync, Path.unlink

    def fsync(descriptor: int) -> None:
        events.append(f"sync {Path(f'/proc/self/fd/{descriptor}').resolve().name}")
        sync(descriptor)

    def removed(path: Path, *, missing_ok: bool = False) -> None:
        events.append(f"remove {path.name}")
        unlink(path, missing_ok=missing_ok)

    def executed(statement: str) -> None:
        if statement.startswith("COMMIT"):
            events.append(COMMIT)
        elif statement.startswith("DELETE FROM large_values"):
            events.append(FORGET)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "unlink", removed)
    engine._writer.set_trace_callback(executed)
    return events


def name(value: Value) -> str:
    return value.digest.hex()


def test_a_value_and_its_name_are_synced_before_the_commit(
    engine: SqliteLog, done: list[str], tmp_path: Path
) -> None:
    engine.append([(LOG, record(1, large=(VALUE,)))])
    assert done == [
        f"sync {name(VALUE)}.new",
        "sync bridge.db.values",
        f"sync {tmp_path.name}",
        COMMIT,
    ]
    assert engine.large_values([VALUE.digest]) == {VALUE.digest: VALUE}


def test_a_value_goes_after_the_commit_that_forgets_it(engine: SqliteLog, done: list[str]) -> None:
    engine.append([(LOG, record(1, large=(VALUE,)))])
    engine.drop(LOG)
    for now in (NOW, NOW + UNREFERENCED_NANOS):
        done.clear()
        while engine.sweep(now):
            pass
    removed = done.index(f"remove {name(VALUE)}")
    assert done[removed - 2 : removed] == [FORGET, COMMIT]
    assert engine.large_values([VALUE.digest]) == {}
