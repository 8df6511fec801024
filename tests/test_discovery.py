"""The files by which Prometheus finds the bridges of a pool."""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from snakepit_bridge.telemetry import discovery
from snakepit_bridge.telemetry.discovery import CannotAnnounce, announce
from tests.bridge_process import BridgeProcess
from tests.test_exposition import ask
from tests.test_server_process import run


def targets(directory: Path) -> list[str]:
    """What Prometheus finds there."""
    found: list[str] = []
    for file in directory.glob("snakepit-bridge-*.json"):
        for group in json.loads(file.read_text()):
            found += group["targets"]
    return sorted(found)


def names(directory: Path) -> set[str]:
    return {each.name for each in directory.iterdir()}


def test_the_file_is_one_target_with_its_labels(tmp_path: Path) -> None:
    target = announce(tmp_path / "made" / "here", "127.0.0.1", 9464)
    assert target.path.name.startswith("snakepit-bridge-9464-")
    assert json.loads(target.path.read_text()) == [
        {"targets": ["127.0.0.1:9464"], "labels": {"service": "snakepit-bridge"}}
    ]
    assert target.path.stat().st_mode & 0o444 == 0o444  # Prometheus is another user
    assert names(target.path.parent) == {target.path.name}
    target.withdraw()
    target.withdraw()
    assert not names(target.path.parent)


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("localhost", "localhost:1"),
        ("::1", "[::1]:1"),
        ("0.0.0.0", f"{socket.gethostname()}:1"),
        ("::", f"{socket.gethostname()}:1"),
    ],
)
def test_hosts_as_prometheus_can_reach_them(tmp_path: Path, host: str, shown: str) -> None:
    target = announce(tmp_path, host, 1)
    assert targets(tmp_path) == [shown]
    target.withdraw()


def test_it_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[str]] = []

    def look(file: int) -> None:
        assert os.fstat(file).st_size
        seen.append({name for name in names(tmp_path) if name.endswith(".json")})

    monkeypatch.setattr(os, "fsync", look)
    announce(tmp_path, "127.0.0.1", 1).withdraw()
    assert seen == [set()]


def test_the_living_and_what_is_not_ours_stay(tmp_path: Path) -> None:
    for name in (
        "snakepit-bridge-static.json",
        "snakepit-bridge-1-0123456789abcdef.json.swp",
        "other.json",
        ".snakepit-bridge-1-0123456789abcdef.json",
    ):
        (tmp_path / name).write_text("[]")
    (tmp_path / "snakepit-bridge-1-0123456789abcdef.json").mkdir()
    os.mkfifo(tmp_path / "snakepit-bridge-2-0123456789abcdef.json")
    (tmp_path / "victim").write_text("kept")
    (tmp_path / "snakepit-bridge-3-0123456789abcdef.json").symlink_to(tmp_path / "victim")
    before = names(tmp_path)
    first = announce(tmp_path, "127.0.0.1", 1)
    second = announce(tmp_path, "127.0.0.1", 2)
    assert names(tmp_path) == before | {first.path.name, second.path.name}
    first.withdraw()
    assert names(tmp_path) == before | {second.path.name}
    second.withdraw()
    assert names(tmp_path) == before


@pytest.mark.parametrize("kind", ["json", "new"])
def test_what_the_dead_left_is_removed(tmp_path: Path, kind: str) -> None:
    (tmp_path / f"snakepit-bridge-1-0123456789abcdef.{kind}").write_text("[]")
    target = announce(tmp_path, "127.0.0.1", 2)
    assert names(tmp_path) == {target.path.name}
    target.withdraw()


def test_a_file_that_is_taken_for_a_dead_ones_before_it_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = discovery._lock
    swept: list[int] = []

    def swept_first(file: int) -> bool:
        if len(swept) < 2:
            # Another bridge starts right now, and comes between opening and locking.
            swept.append(file)
            monkeypatch.setattr(discovery, "_lock", lock)
            discovery._remove_stale(tmp_path)
            monkeypatch.setattr(discovery, "_lock", swept_first)
        return lock(file)

    monkeypatch.setattr(discovery, "_lock", swept_first)
    target = announce(tmp_path, "127.0.0.1", 1)
    assert len(swept) == 2
    assert names(tmp_path) == {target.path.name}
    target.withdraw()


def test_many_that_start_and_stop_at_a_time(tmp_path: Path) -> None:
    wrong: list[object] = []

    def live(number: int) -> None:
        for _ in range(20):
            target = announce(tmp_path, "127.0.0.1", number)
            if f"127.0.0.1:{number}" not in target.path.read_text():
                wrong.append(number)
            target.withdraw()

    threads = [threading.Thread(target=live, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert not names(tmp_path)


def test_a_directory_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotAnnounce, match="--metrics-sd-dir"):
        announce(tmp_path / "file", "127.0.0.1", 1)
    directory = str(tmp_path / "file" / "below")
    arguments = ("--port", "0", "--log", "memory:", "--metrics-port", "0")
    result = run(*arguments, "--metrics-sd-dir", directory)
    assert (result.returncode, result.stdout) == (1, "")
    assert directory in result.stderr
    assert "--metrics-sd-dir" in result.stderr
    assert "Traceback" not in result.stderr


def test_without_a_port_there_is_nothing_to_tell(tmp_path: Path) -> None:
    result = run("--log", "memory:", "--metrics-sd-dir", str(tmp_path))
    assert result.returncode == 2
    assert "of no use without --metrics-port" in result.stderr


# A bridge.


def exposed(directory: Path, **environment: str) -> Any:  # noqa: ANN401 - a context manager
    chosen = {
        "SNAKEPIT_BRIDGE_METRICS_PORT": "0",
        "SNAKEPIT_BRIDGE_METRICS_SD_DIR": str(directory),
        **environment,
    }
    return BridgeProcess("memory:", environment=chosen)


def test_from_the_start_of_a_bridge_to_its_stop(tmp_path: Path) -> None:
    with exposed(tmp_path) as first, exposed(tmp_path) as second:
        found = targets(tmp_path)
        assert len(found) == 2
        for target in found:
            assert ask(int(target.rpartition(":")[2]), "/readyz").status == 200
        assert first.stop() == 0
        assert len(targets(tmp_path)) == 1
        assert second.stop() == 0
    assert not names(tmp_path)


def test_after_kill_9_the_next_start_removes_what_was_left(tmp_path: Path) -> None:
    with exposed(tmp_path) as lives, exposed(tmp_path) as dies:
        both = names(tmp_path)
        dies.kill()
        assert names(tmp_path) == both
        with exposed(tmp_path) as next_:
            now = names(tmp_path)
            assert len(now) == 2
            assert len(now & both) == 1  # of the one that lives
            for target in targets(tmp_path):
                assert ask(int(target.rpartition(":")[2]), "/readyz").status == 200
            assert next_.stop() == 0
        assert lives.stop() == 0
    assert not names(tmp_path)


def test_a_start_that_fails_leaves_no_file(tmp_path: Path) -> None:
    arguments = ("--port", "0", "--log", "memory:", "--metrics-port", "0")
    where = ("--metrics-sd-dir", str(tmp_path / "targets"))
    result = run(*arguments, *where, "--ready-file", str(tmp_path / "missing" / "ready"))
    assert result.returncode == 1
    assert not names(tmp_path / "targets")
