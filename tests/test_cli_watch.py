"""``snakepit-bridge watch`` in a process of its own, while bridges come and go."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from tests.bridge_process import BridgeProcess
from tests.cli_process import COMMAND, PATIENCE, Shell
from tests.wire_session import Session, packed


@pytest.fixture
def shell(bridge: BridgeProcess, request: pytest.FixtureRequest, tmp_path: Path) -> Shell:
    return Shell(bridge.port, request.node.name, tmp_path)


def words(line: str) -> str:
    """A line without its time."""
    return " ".join(line.split()[1:])


def test_each_kind_of_change_has_its_line(shell: Shell, session: Session) -> None:
    session.register("x", 1)
    with shell.watching("x", "text", "--initial") as watch:
        watch.wait_for("Caught up. Watching session")
        session.set("x", 2)
        session.register("text", "a b", "string")
        session.register("other")
        session.set_many({"x": packed(3), "text": packed("c", "string")}, atomic=True)
        session.delete("text")
        session.end()
        watch.wait_for("The session has ended.")
        assert watch.wait() == 0
    assert [words(line) for line in watch.lines] == [
        "x is 1 version 1 elixir",
        "x 1 → 2 version 2 elixir",
        'text new "a b" string version 1 elixir',
        '┌ text "a b" → "c" version 2 elixir',
        "└ x 2 → 3 version 3 elixir",
        'text deleted, was "c" elixir',
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_cleanly(shell: Shell, session: Session, number: int) -> None:
    session.register("x", 1)
    with shell.watching() as watch:
        watch.wait_for("Caught up")
        assert watch.interrupt(number) == 0
    assert (watch.lines, len(watch.news)) == ([], 1)


def test_json_lines_have_stable_keys(shell: Shell, session: Session) -> None:
    session.register("x", 1)
    with shell.watching("--json", "--initial") as watch:
        watch.wait_for("initial_value")
        session.set("x", 2, metadata={"reason": "test", "source": "python"})
        watch.wait_for("value_change")
        assert watch.interrupt() == 0
    first, change = map(json.loads, watch.lines)
    assert (first["kind"], first["old"], first["new"]) == ("initial_value", None, 1)
    assert list(change)[:9] == [
        "kind",
        "name",
        "id",
        "type",
        "old",
        "new",
        "version",
        "offset",
        "log_epoch",
    ]
    assert first.keys() == change.keys()
    assert (change["old"], change["new"], change["source"]) == (1, 2, "python")
    assert change["metadata"]["reason"] == "test"


def test_it_goes_on_after_kill_9_and_from_its_bookmark(tmp_path: Path) -> None:
    log = tmp_path / "bridge.db"
    arguments = ("--bookmark", "place.json", "--initial", "--json")
    values: list[int] = []
    with BridgeProcess(log) as bridge:
        shell = Shell(bridge.port, "s", tmp_path)
        Session(bridge, "s").register("x", 0)
        with shell.watching(*arguments) as watch:
            watch.wait_for('"new":0,')
            for value in (1, 2):
                Session(bridge, "s").set("x", value)
            watch.wait_for('"new":2,')
            bridge.kill()
            watch.wait_for("Interrupted, trying again: no bridge answers at")
            with BridgeProcess(log, "--port", str(bridge.port)) as again:
                watch.wait_for("Going on.")
                Session(again, "s").set("x", 3)
                watch.wait_for('"new":3,')
                assert watch.interrupt() == 0
                values += [json.loads(line)["new"] for line in watch.lines]
                Session(again, "s").set("x", 4)
                with shell.watching(*arguments) as second:
                    second.wait_for("Caught up")
                    Session(again, "s").set("x", 5)
                    second.wait_for('"new":5,')
                    # Whenever it is killed, what it printed is not printed again by the next.
                    second.kill()
                values += [json.loads(line)["new"] for line in second.lines]
                with shell.watching(*arguments) as third:
                    third.wait_for("Caught up")
                    Session(again, "s").set("x", 6)
                    third.wait_for('"new":6,')
                    assert third.interrupt(signal.SIGTERM) == 0
                seen = [json.loads(line)["new"] for line in third.lines]
                assert seen[-1] == 6
                values += seen
                assert again.stop() == 0
    # A kill between the line and its bookmark repeats that one, and only that.
    assert list(dict.fromkeys(values)) == [0, 1, 2, 3, 4, 5, 6]
    assert len(values) - 7 <= 1
    assert {path.name for path in tmp_path.glob("*place*")} - {".place.json.new"} == {"place.json"}
    epoch, offset, check = json.loads((tmp_path / "place.json").read_text())
    assert (len(epoch), offset) == (16, 8)
    assert check > 0


def test_interrupts_in_a_stream_of_changes_lose_and_repeat_nothing(
    shell: Shell, session: Session
) -> None:
    session.register("x", 0)
    with shell.watching("--bookmark", "place.json") as watch:
        watch.wait_for("Caught up")
        assert watch.interrupt() == 0
    seen: list[str] = []
    value = 0
    for _ in range(3):
        with shell.watching("--bookmark", "place.json", "--json") as watch:
            for _ in range(200):
                value += 1
                session.set("x", value)
            watch.wait_for("value_change")
            assert watch.interrupt() == 0
            seen += watch.lines
    session.set("x", -1)
    with shell.watching("--bookmark", "place.json", "--json") as watch:
        watch.wait_for('"new":-1,')
        assert watch.interrupt() == 0
        seen += watch.lines
    assert [json.loads(line)["new"] for line in seen] == [*range(1, value + 1), -1]


def test_a_foreign_bookmark_is_refused_unless_it_begins_anew(
    shell: Shell, session: Session, tmp_path: Path
) -> None:
    session.register("x", 1)
    with shell.watching("--bookmark", "place.json") as watch:
        watch.wait_for("Caught up")
        assert watch.interrupt() == 0
    place = tmp_path / "place.json"
    foreign = ["0123456789abcdef", *json.loads(place.read_text())[1:]]
    place.write_text(json.dumps(foreign))
    said = shell.refused("watch", "--bookmark", "place.json")
    assert "log_epoch" in said
    assert "--begin-anew" in said
    with shell.watching("--bookmark", "place.json", "--begin-anew") as watch:
        watch.wait_for("Beginning anew")
        watch.wait_for("x  is 1")
        assert watch.interrupt() == 0


@pytest.mark.parametrize(
    "content", ["", "{}", '["a", 1]', '["a", -1, 0]', "[1, 2, 3]", "\udcff", "x" * 5_000]
)
def test_what_is_no_bookmark_is_refused(shell: Shell, tmp_path: Path, content: str) -> None:
    (tmp_path / "place.json").write_bytes(content.encode(errors="surrogateescape"))
    said = shell.refused("watch", "--bookmark", "place.json", code=2)
    assert "place.json holds no bookmark" in said


def test_a_bookmark_that_cannot_be_kept_is_told(shell: Shell, session: Session) -> None:
    session.register("x", 1)
    said = shell.refused("watch", "--bookmark", "nowhere/place.json")
    assert "the place cannot be kept in nowhere/place.json: No such file" in said


def test_an_ended_session_takes_its_bookmark_along(
    shell: Shell, session: Session, tmp_path: Path
) -> None:
    session.register("x", 1)
    with shell.watching("--bookmark", "place.json") as watch:
        watch.wait_for("Caught up")
        session.end()
        assert watch.wait() == 0
    assert not (tmp_path / "place.json").exists()


def test_what_cannot_be_watched_is_told(shell: Shell) -> None:
    assert "not found" in shell.refused("watch")
    said = shell.refused("watch", "--bridge", "localhost:1", "--timeout", "300ms")
    assert "Interrupted, trying again: no bridge answers at localhost:1" in said
    assert "start one with `snakepit-bridge serve`" in said


def test_a_reader_that_leaves_ends_it(shell: Shell, session: Session, tmp_path: Path) -> None:
    session.register("x", 1)
    with subprocess.Popen(
        ["bash", "-c", f"{COMMAND} watch --initial --bookmark place.json | head -n 1"],
        env=shell.environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        # The place of `caught_up` is kept before it is told.
        assert "Caught up" in process.stderr.readline()
        kept = (tmp_path / "place.json").read_text()
        session.set("x", 2)
        out, err = process.communicate(timeout=PATIENCE)
    assert (words(out), err) == ("x is 1 version 1 elixir", "")
    # What nobody saw is shown by the next.
    assert (tmp_path / "place.json").read_text() == kept
    with shell.watching("--bookmark", "place.json") as watch:
        watch.wait_for("x  1 → 2")
        assert watch.interrupt() == 0
