"""The example of the client, as a person runs it, while bridges come and go."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from snakepit_bridge.client import Client
from tests.bridge_process import BridgeProcess

ROOT = Path(__file__).parent.parent
PATIENCE = 60.0
SESSION = "client-example"


def command(port: int, *arguments: str) -> list[str]:
    return [sys.executable, "examples/client.py", "--target", f"localhost:{port}", *arguments]


def change(port: int) -> list[str]:
    done = subprocess.run(
        command(port), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def read_until(process: subprocess.Popen[str], last: str) -> list[str]:
    """What it prints, up to a line that begins so."""
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line.rstrip())
        if line.startswith(last):
            return lines
    raise AssertionError(f"it ended without {last!r}: {lines}")


def test_it_changes_variables_on_each_run(tmp_path: Path) -> None:
    with BridgeProcess(tmp_path / "bridge.db") as bridge:
        first, again = change(bridge.port), change(bridge.port)
        assert bridge.stop() == 0
    assert first[0] == "Refused: variable 'temperature': value 9.0 is above maximum 2"
    assert first[1:] == [
        "version 3: 1.1, by python",
        "version 2: 0.9, by python",
        "version 1: 0.7, by python",
        "calls: 1",
    ]
    assert again[-1] == "calls: 2"


def test_it_watches_over_restarts_of_either_side(tmp_path: Path) -> None:
    file = tmp_path / "bookmark.json"

    def watch(port: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command(port, "--watch", "--bookmark", str(file)),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )

    with BridgeProcess(tmp_path / "bridge.db") as bridge:
        port = bridge.port
        with watch(port) as first:
            try:
                told = read_until(first, "[caught_up]")
                bridge.kill()
                told += read_until(first, "[interrupted]")
                with BridgeProcess(tmp_path / "bridge.db", "--port", str(port)) as second:
                    with Client(f"localhost:{port}") as client:
                        client.session(SESSION)["calls"] = 7
                        told += read_until(first, "calls = 7")
                        change(port)
                        client.session(SESSION)["calls"] = 9
                        told += read_until(first, "calls = 9")
                    assert second.stop() == 0
            finally:
                first.kill()
    kept = json.loads(file.read_text())[1]
    shown = [line for line in told if not line.startswith("[")]
    shown[6:8] = sorted(shown[6:8])  # of one transaction
    assert shown == [
        "temperature = 0.7  (initial_value, by python)",
        "calls = 0  (initial_value, by python)",
        "query = [0.6 0.8]  (initial_value, by python)",
        "calls = 7  (value_change, by python)",
        "temperature = 0.9  (value_change, by python)",
        "calls = 8  (value_change, by python)",
        "query = [1. 0.]  (value_change, by python)",
        "temperature = 1.1  (value_change, by python)",
        "calls = 9  (value_change, by python)",
    ]
    with BridgeProcess(tmp_path / "bridge.db") as third:
        with Client(f"localhost:{third.port}") as client:
            session = client.session(SESSION)
            session["calls"] = 100
            assert session.get("calls").offset > kept
        with watch(third.port) as last:
            try:
                *rest, now = read_until(last, "calls = 100")
            finally:
                last.kill()
        assert now == "calls = 100  (value_change, by python)"
        # Killed between a line and its bookmark, it shows that change again.
        assert rest in ([], shown[-1:])
        assert third.stop() == 0


def test_no_bridge_is_said_in_one_line() -> None:
    done = subprocess.run(
        command(1), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 1
    assert done.stdout.startswith("Unavailable: no bridge answers at localhost:1 ")
    assert done.stderr == ""
