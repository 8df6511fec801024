"""Slots: each worker of a pool has a log of its own, and the log of a dead one is found again."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from snakepit_bridge import slots
from snakepit_bridge.events.log import EventLog, LogUnusable
from snakepit_bridge.slots import default_base, open_slot

WORKER = """
import sys
from pathlib import Path
from snakepit_bridge.slots import open_slot
log = open_slot(Path(sys.argv[1]))
print(log.url, flush=True)
sys.stdin.readline()
"""


@contextlib.contextmanager
def opened(base: Path) -> Iterator[EventLog]:
    log = open_slot(base)
    try:
        yield log
    finally:
        log.close()


@contextlib.contextmanager
def worker(base: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another process that holds a slot; gives the slot's directory."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(base)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip().removeprefix("sqlite:")).parent
    finally:
        process.kill()
        process.communicate()


def name_of(log: EventLog) -> str:
    return Path(log.url.removeprefix("sqlite:")).parent.name


def test_each_gets_the_lowest_that_is_free(tmp_path: Path) -> None:
    with opened(tmp_path) as first, contextlib.ExitStack() as rest:
        second = rest.enter_context(opened(tmp_path))
        third = rest.enter_context(opened(tmp_path))
        assert [name_of(log) for log in (first, second, third)] == ["slot-0", "slot-1", "slot-2"]
        second.close()
        with opened(tmp_path) as again, opened(tmp_path) as fourth:
            assert (name_of(again), name_of(fourth)) == ("slot-1", "slot-3")


def test_the_slot_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    with worker(tmp_path) as (process, where):
        assert where == tmp_path / "slot-0"
        with opened(tmp_path) as beside:
            assert name_of(beside) == "slot-1"
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=30)
            with opened(tmp_path) as heir:
                assert name_of(heir) == "slot-0"


def test_many_processes_at_once_get_slots_of_their_own(tmp_path: Path) -> None:
    with contextlib.ExitStack() as held, ThreadPoolExecutor(8) as threads:
        entered = threads.map(lambda _: held.enter_context(worker(tmp_path)), range(8))
        names = {where.name for _, where in entered}
    assert names == {f"slot-{number}" for number in range(8)}


def test_it_is_told_which_slot_and_what_that_means(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "snakepit_bridge.slots"), opened(tmp_path):
        (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert "slot 0" in record.getMessage()
    assert str(tmp_path / "slot-0" / "bridge.db") in record.getMessage()
    assert "this worker's own" in record.getMessage()
    assert "next goes on with them" in record.getMessage()


def test_a_damaged_slot_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "slot-0").mkdir()
    (tmp_path / "slot-0" / "bridge.db").write_bytes(b"this is no database at all" * 100)
    with pytest.raises(LogUnusable, match="slot-0"):
        open_slot(tmp_path)
    assert not (tmp_path / "slot-1").exists()


def test_a_base_that_is_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "base").touch()
    with pytest.raises(LogUnusable, match="slot-0"):
        open_slot(tmp_path / "base")


def test_there_is_an_end_to_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "MAX_SLOTS", 2)
    with (
        opened(tmp_path),
        opened(tmp_path),
        pytest.raises(LogUnusable, match=r"all 2 slots in .* are held .*--data-dir"),
    ):
        open_slot(tmp_path)
    assert not (tmp_path / "slot-2").exists()


# Where they lie.


def test_the_base_is_in_the_state_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert default_base("") == Path("/state/snakepit_bridge/pools/default")
    assert default_base("prod-a_1.x") == Path("/state/snakepit_bridge/pools/prod-a_1.x")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_base("") == Path("/home/me/.local/state/snakepit_bridge/pools/default")


HOSTILE = ("..", ".", "/etc/passwd", "a/b", "a_b/", "a\\b", "ä", "x" * 5_000, "-rf", "\0", "\ud800")


def test_a_name_that_is_no_file_name_becomes_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    bases = {default_base(name) for name in (*HOSTILE, "a_b")}
    assert len(bases) == len(HOSTILE) + 1
    for base in bases:
        assert base.parent == Path("/state/snakepit_bridge/pools")
        assert len(os.fsencode(base.name)) < 100
        assert base.name.isascii()
        assert not base.name.startswith(".")
