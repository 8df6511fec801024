"""The example that watches, as a person runs it, while bridges come and go."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.bridge_process import BridgeProcess
from tests.wire_session import Session, packed

ROOT = Path(__file__).parent.parent
PATIENCE = 60.0
"""Seconds until what has to come is missing."""


class Watching:
    """``examples/watch.py`` in a process of its own."""

    def __init__(self, port: int, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "examples/watch.py", *arguments, "--target", f"localhost:{port}"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._came = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._came:
                self.lines.append(line.rstrip())
                self._came.notify_all()
        with self._came:
            self._ended = True
            self._came.notify_all()

    def wait_for(self, text: str, times: int = 1) -> None:
        """Wait until so many lines hold a text."""

        def there() -> bool:
            return self.count(text) >= times or self._ended

        with self._came:
            assert self._came.wait_for(there, PATIENCE), (text, self.lines)
            assert self.count(text) >= times, (text, self.lines)

    def count(self, text: str) -> int:
        return sum(text in line for line in self.lines)

    @property
    def changes(self) -> list[str]:
        """What was printed of variables: the kind of each update, and the value after it."""
        found = []
        for line in self.lines:
            offset, *words = line.split()
            if offset.isdigit():
                kind, name, _, value, *_ = words
                found.append(f"{kind} {name} {value}")
        return found

    def end(self) -> str:
        """Ctrl-C; gives what it complained of."""
        self.process.send_signal(signal.SIGINT)
        return self.wait()

    def wait(self, code: int = 0) -> str:
        assert self.process.wait(PATIENCE) == code
        self._reader.join()
        assert self.process.stderr is not None
        return self.process.stderr.read()

    def close(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)
        self._reader.join()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


@contextmanager
def watching(port: int, *arguments: str) -> Iterator[Watching]:
    """Have it run. It heeds Ctrl-C also where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        watch = Watching(port, *arguments)
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        yield watch
    finally:
        watch.close()


def again(log: Path, port: int) -> BridgeProcess:
    return BridgeProcess(log, "--port", str(port))


def set_all(bridge: BridgeProcess, name: str, values: Sequence[int]) -> None:
    for value in values:
        Session(bridge, "s").set(name, value)


def wait_for_bookmark(file: Path, offset: int) -> None:
    end = time.monotonic() + PATIENCE
    while not file.exists() or json.loads(file.read_text())["resume_offset"] != offset:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_watcher_survives_kill_9_of_the_bridge(tmp_path: Path) -> None:
    log = tmp_path / "bridge.db"
    bookmark = tmp_path / "watch.json"
    with BridgeProcess(log) as bridge:
        port = bridge.port
        Session(bridge, "s").register("x", 0)
        Session(bridge, "s").register("other", 0)
        with watching(port, "s", "x", "y*", "--bookmark", str(bookmark)) as watch:
            watch.wait_for("initial_value")
            set_all(bridge, "x", [1, 2, 3])
            watch.wait_for("x = 3")
            bridge.kill()
            watch.wait_for("Interrupted")
            for value in (4, 7):
                with again(log, port) as bridge_again:
                    # The first of these may be committed before the watch is back.
                    set_all(bridge_again, "other", [value])
                    set_all(bridge_again, "x", [value, value + 1])
                    Session(bridge_again, "s").set_many(
                        {"x": packed(value + 2), "other": packed(0)}, atomic=True
                    )
                    watch.wait_for(f"x = {value + 2}")
                    bridge_again.kill()
                watch.wait_for("Interrupted", 1 + value // 3)
            with again(log, port) as last:
                Session(last, "s").register("yes", 10)
                Session(last, "s").delete("x")
                watch.wait_for("deleted")
                assert watch.end() == ""
                assert last.stop() == 0
    assert watch.changes == [
        "initial_value x 0",
        *[f"value_change x {value}" for value in range(1, 10)],
        "registered yes 10",
        "deleted x 9",
    ]
    assert watch.count("Interrupted") == watch.count("Going on.") == 3
    assert set(json.loads(bookmark.read_text())) == {"log_epoch", "resume_offset", "resume_check"}


def test_a_watcher_that_was_away_goes_on_from_its_bookmark(tmp_path: Path) -> None:
    bookmark = tmp_path / "watch.json"
    with BridgeProcess(tmp_path / "bridge.db") as bridge:
        session = Session(bridge, "s")
        session.register("x", 0)
        arguments = ("s", "--bookmark", str(bookmark))
        with watching(bridge.port, *arguments) as watch:
            watch.wait_for("x = 0")
            set_all(bridge, "x", [1])
            watch.wait_for("x = 1")
            # It is kept after it was printed; ended in between it would come a second time.
            wait_for_bookmark(bookmark, session.head)
            assert watch.end() == ""
        set_all(bridge, "x", [2])
        with watching(bridge.port, *arguments) as watch:
            watch.wait_for("x = 2")
            set_all(bridge, "x", [3])
            watch.wait_for("x = 3")
            session.end()
            watch.wait_for("ended")
            assert watch.wait() == ""
        assert watch.changes == ["value_change x 2", "value_change x 3"]
        assert not bookmark.exists()
        assert bridge.stop() == 0


def test_a_bookmark_of_no_use_means_to_begin_anew(tmp_path: Path) -> None:
    bookmark = tmp_path / "watch.json"
    with BridgeProcess(tmp_path / "bridge.db") as bridge:
        epoch = Session(bridge, "s").register("x", 5).log_epoch
        for foreign in (
            {"log_epoch": epoch, "resume_offset": 99, "resume_check": 0},
            {"log_epoch": epoch, "resume_offset": 2, "resume_check": 1},
            {"log_epoch": "0123456789abcdef", "resume_offset": 2, "resume_check": 0},
        ):
            bookmark.write_text(json.dumps(foreign))
            with watching(bridge.port, "s", "--bookmark", str(bookmark)) as watch:
                watch.wait_for("Beginning anew")
                watch.wait_for("x = 5")
                assert watch.end() == ""
            assert watch.changes == ["initial_value x 5"]
        assert bridge.stop() == 0


def test_what_cannot_be_watched_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text("[]")
    with BridgeProcess(tmp_path / "bridge.db") as bridge:
        with watching(bridge.port, "nobody") as watch:
            assert watch.wait(1) == ""
        assert [line.split(":")[0] for line in watch.lines] == ["NOT_FOUND"]
        with watching(bridge.port, "s", "--bookmark", f"{tmp_path}/notes.json") as watch:
            assert "holds no bookmark" in watch.wait(2)
        assert bridge.stop() == 0
    assert (tmp_path / "notes.json").read_text() == "[]"
