"""What each RPC of tools answers, over a socket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.bridge_process import BridgeProcess
from tests.test_tools_crash import lines
from tests.tool_client import TOOLS, ToolSession, value_of
from tests.watches import wait_until
from tests.wire_session import refused
from tests.wire_tools import note


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BridgeProcess]:
    with BridgeProcess(tmp_path_factory.mktemp("tools") / "bridge.db", *TOOLS) as process:
        yield process
        assert process.stop() == 0


@pytest.fixture
def session(bridge: BridgeProcess, request: pytest.FixtureRequest) -> ToolSession:
    return ToolSession(bridge, request.node.name)


# Being left.


@pytest.mark.parametrize("use", ["set", "register", "get", "list", "history", "check"])
def test_a_tool_that_was_left_hears_of_it_at_its_next_use(
    session: ToolSession, tmp_path: Path, use: str
) -> None:
    session.register("x", 1)
    runs, go = tmp_path / "runs", tmp_path / "go"
    arguments = {"runs": str(runs), "go": str(go), "use": use}
    call = session.begin("late_use", arguments)
    wait_until(lambda: lines(runs), "the tool runs")
    wait_until(lambda: session.head == 3, "its start is written")
    head = session.head
    call.cancel()
    wait_until(lambda: session.head > head, "its end is written")
    note(str(go), "go")
    wait_until(lambda: len(lines(runs)) == 2, "the tool goes on")
    assert lines(runs)[1] == "ToolCancelled"
    assert session.head == head + 1


# Request ids.


def test_who_joins_a_call_waits_as_long_as_it_likes(session: ToolSession, tmp_path: Path) -> None:
    """A call goes on as long as one of those waits who asked for it."""
    runs, go = tmp_path / "runs", tmp_path / "go"
    arguments = {"runs": str(runs), "go": str(go)}
    session.start()
    first = session.begin("count_run", arguments, timeout=1, request_id="once")
    wait_until(lambda: lines(runs), "the tool runs")
    second = session.begin("count_run", arguments, request_id="once")
    assert first.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    # The bridge's own clock is beyond that as well once a later deadline is over.
    with refused("DEADLINE_EXCEEDED"):
        session.run("count_run_async", {**arguments, "runs": f"{runs} 2"}, timeout=0.5)
    note(str(go), "go")
    answer = second.result()
    assert (value_of(answer), answer.duplicate) == ("done", True)
    assert len(lines(runs)) == 1
    with refused("INVALID_ARGUMENT", "'once'", "another ExecuteTool"):
        session.run("add", {"a": 1}, request_id="once")
