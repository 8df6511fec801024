"""A tool that changes ten variables and is killed half-way: what happened is known afterwards.

The bridge or the tool's own process dies by ``kill -9``. The log then tells which changes
happened and whose they were; the call is closed, once; and a client that repeats its request gets
an answer and no second run. How often a tool ran is counted in a file outside.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from snakepit_bridge import bridge_service_pb2 as pb
from tests.bridge_process import BridgeProcess
from tests.tool_client import TOOLS, Entry, Run, ToolSession, entries, runs_in, value_of
from tests.watches import Watch, at_head, bookmark_of, wait_until, watch
from tests.wire_session import plain, refused
from tests.wire_tools import SETS

HALF = 5
ROUNDS = 20


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def lives(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def sets(changes: Sequence[Entry]) -> list[int]:
    """The values that were set, in order."""
    return [int(plain_value(entry)) for entry in changes if entry.kind == "variable_set"]


def plain_value(entry: Entry) -> Any:  # noqa: ANN401 - any JSON value
    return plain(pb.Variable.FromString(b"\x22" + _length(entry.values[0].any)).value)


def _length(content: bytes) -> bytes:
    assert len(content) < 128
    return bytes([len(content)]) + content


def die(bridge: BridgeProcess) -> None:
    """``kill -9``, with the client's calls still open."""
    bridge.process.kill()
    bridge.process.wait()


def see(opened: Watch, count: int, tool: str) -> tuple[str, list[pb.VariableUpdate]]:
    """Take updates, which all are a tool's; gives the id of its call as well."""
    seen = opened.take(count)
    assert {update.update_source for update in seen} == {f"tool:{tool}"}
    (call_id,) = {update.tool_call_id for update in seen}
    assert call_id
    return call_id, seen


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def half_way(session: ToolSession, tool: str, runs: Path, **fields: Any) -> tuple[Any, str]:  # noqa: ANN401
    """Begin ten sets and see five of them; gives the call and its id."""
    session.register("x", 0)
    with at_head(session, "x") as opened:
        arguments = {"runs": str(runs), "at": HALF, "go": str(runs.with_name("go"))}
        future = session.begin(tool, arguments, **fields)
        call_id, seen = see(opened, HALF, tool)
    assert [plain(update.variable.value) for update in seen] == list(range(1, HALF + 1))
    return future, call_id


def test_a_worker_that_is_killed_half_way(tmp_path: Path, runs: Path) -> None:
    with BridgeProcess(tmp_path / "bridge.db", *TOOLS) as bridge:
        session = ToolSession(bridge, "killed")
        arguments = {"runs": str(runs), "at": HALF, "go": str(tmp_path / "go")}
        future, call_id = half_way(session, "ten_sets_isolated", runs, request_id="once")
        pid = int(lines(runs)[0].split()[1])
        os.kill(pid, signal.SIGKILL)

        answer = future.result()
        assert not answer.success
        assert answer.metadata["error_type"] == "WorkerDied"
        assert "killed by SIGKILL" in answer.error_message
        assert answer.tool_call_id == call_id

        # What it did stays, and the next call goes well.
        assert plain(session.get("x").value) == HALF
        assert session.value("add_isolated", {"a": 1}) == 2

        again = session.run("ten_sets_isolated", arguments, request_id="once")
        assert again.duplicate
        answer.duplicate = True
        assert again == answer
        assert len(lines(runs)) == 1
        assert bridge.stop() == 0
    with BridgeProcess(tmp_path / "bridge.db", *TOOLS) as bridge:
        again = ToolSession(bridge, "killed").run("ten_sets_isolated", arguments, request_id="once")
        assert again == answer
        assert len(lines(runs)) == 1
        assert bridge.stop() == 0
    run = runs_in(entries(tmp_path / "bridge.db", "killed"))[call_id]
    assert (run.outcome, run.end and run.end.body.error_type) == ("error", "WorkerDied")
    assert sets(run.changes) == list(range(1, HALF + 1))
    assert {entry.record.source for entry in run.changes} == {"tool:ten_sets_isolated"}


@pytest.mark.parametrize("tool", ["ten_sets", "ten_sets_async", "ten_sets_isolated"])
@pytest.mark.parametrize("request_id", ["once", ""])
def test_a_bridge_that_is_killed_half_way(
    tmp_path: Path, runs: Path, tool: str, request_id: str
) -> None:
    arguments = {"runs": str(runs), "at": HALF, "go": str(tmp_path / "go")}
    with BridgeProcess(tmp_path / "bridge.db", *TOOLS) as bridge:
        session = ToolSession(bridge, "killed")
        future, call_id = half_way(session, tool, runs, request_id=request_id)
        with watch(session, "x", after_offset=0) as opened:
            place = bookmark_of(opened.take(HALF)[-1])
        die(bridge)
        with pytest.raises(grpc.RpcError):
            future.result()
        bridge.kill()
    (run,) = runs_in(entries(tmp_path / "bridge.db", "killed")).values()
    assert (run.start.body.call_id, run.outcome) == (call_id, "open")
    if tool.endswith("isolated"):
        pid = int(lines(runs)[0].split()[1])
        wait_until(lambda: not lives(pid), "the worker is gone, as its bridge is")

    with BridgeProcess(tmp_path / "bridge.db", *TOOLS) as bridge:
        session = ToolSession(bridge, "killed")
        assert plain(session.get("x").value) == HALF
        if request_id:
            with refused("FAILED_PRECONDITION", "'once'", "interrupted", "the bridge"):
                session.run(tool, arguments, request_id=request_id)
        else:
            session.set("x", 50)
        assert len(lines(runs)) == 1
        # Who watched goes on where it was, and sees nothing of the end of the call.
        with watch(session, "x", **place.fields) as opened:
            session.set("x", 100)
            offsets = [update.offset for update in opened.take(1 if request_id else 2)]
        assert bridge.stop() == 0
    log = entries(tmp_path / "bridge.db", "killed")
    (run,) = runs_in(log).values()
    assert run.outcome == "interrupted"
    assert run.end is not None
    assert run.end.body.error_message
    assert sets(run.changes) == list(range(1, HALF + 1))
    assert {entry.record.source for entry in run.changes} == {f"tool:{tool}"}
    assert run.end.record.instance != run.start.record.instance
    # It is closed before anything else is written.
    assert run.changes[-1].offset + 1 == run.end.offset < offsets[0]


class Rounds:
    """One session that is killed again and again, and what its client knows of it."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.path = directory / "bridge.db"
        self.directory = directory
        self.random = random.Random(seed)
        self.half_way = 0
        """Kills that came between the first set and the last."""
        self.unstarted = 0
        """Requests that a kill kept from being written, so that a retry is what runs them."""
        self.known = 0
        """Calls that the log had after the last kill."""
        self.left: tuple[str, dict[str, object], str, Run | None, Path] | None = None
        """What the last kill left to be repeated at the next bridge: tool, arguments, request id,
        the call in the log, and the file with its runs."""

    def run(self) -> None:
        tools = ("ten_sets", "ten_sets_async", "ten_sets_isolated")
        for number in range(ROUNDS):
            request_id = f"request {number}" if number % 3 else ""
            self.round(number, tools[number % 2 if number % 5 else 2], request_id)

    def round(self, number: int, tool: str, request_id: str) -> None:
        runs = self.directory / f"runs {number}"
        arguments: dict[str, object] = {"runs": str(runs)}
        with BridgeProcess(self.path, *TOOLS) as bridge:
            session = ToolSession(bridge, "s")
            if number == 0:
                session.register("x", 0)
            self.verify_served(session)
            self.retry(session)
            with at_head(session, "x") as opened:
                future = session.begin(tool, arguments, request_id=request_id)
                seen = opened.take(self.random.randint(0, SETS))
                if self.random.random() < 0.5:
                    future.cancel()  # and the kill comes in the middle of that
                die(bridge)
                try:
                    told = "ok" if future.result().success else "error"
                except (grpc.RpcError, grpc.FutureCancelledError):
                    told = ""
                bridge.kill()
        ran = len(lines(runs))
        assert ran <= 1
        run = self.verify_stored(seen, told)
        if run is None:
            self.unstarted += 1
            # Without an id the start is only on its way when the tool begins.
            assert ran == 0 or not request_id
        elif 0 < len(run.changes) < SETS:
            self.half_way += 1
        self.left = (tool, arguments, request_id, run, runs) if request_id else None

    def verify_served(self, session: ToolSession) -> None:
        """What is served is the fold of the log."""
        last = [entry for entry in entries(self.path, "s") if entry.kind == "variable_set"]
        assert plain(session.get("x").value) == (plain_value(last[-1]) if last else 0)

    def verify_stored(self, seen: Sequence[pb.VariableUpdate], told: str) -> Run | None:
        """What was seen and told is in the log; gives the new call, if there is one."""
        log = entries(self.path, "s")
        stored = {entry.offset: entry for entry in log}
        for update in seen:
            entry = stored[update.offset]
            assert entry.record.tool_call_id == update.tool_call_id
            assert entry.record.source == update.update_source
        calls = list(runs_in(log).values())
        assert len(calls) - self.known in (0, 1)
        run = calls[-1] if len(calls) > self.known else None
        self.known = len(calls)
        assert all(call.outcome != "open" for call in calls[:-1])
        if told or seen:
            assert run is not None
        if run is None:
            return None
        changes = sets(run.changes)
        assert changes == list(range(1, len(changes) + 1))
        assert len(changes) >= len(seen)
        assert run.outcome in ("open", "ok", "cancelled")
        if told or run.outcome == "ok":
            assert (run.outcome, len(changes)) == ("ok", SETS)
        return run

    def retry(self, session: ToolSession) -> None:
        """Repeat the request of the round before: what began does not begin again."""
        if self.left is None:
            return
        tool, arguments, request_id, run, runs = self.left
        if run is None:
            assert value_of(session.run(tool, arguments, request_id=request_id)) == "done"
            self.known += 1
        elif run.outcome == "ok":
            answer = session.run(tool, arguments, request_id=request_id)
            assert (answer.duplicate, value_of(answer)) == (True, "done")
        else:
            words = "interrupted" if run.outcome == "open" else run.outcome
            with refused("FAILED_PRECONDITION", words):
                session.run(tool, arguments, request_id=request_id)
        assert len(lines(runs)) <= 1


def test_kills_at_random_moments(tmp_path: Path) -> None:
    seed = secrets.randbits(32)
    rounds = Rounds(tmp_path, seed)
    try:
        rounds.run()
    except BaseException as error:
        error.add_note(f"seed {seed}")
        raise
    assert rounds.half_way > 0
