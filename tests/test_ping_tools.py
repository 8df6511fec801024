"""Ping tells which tools there are, without a session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from snakepit_bridge import bridge_service_pb2 as pb
from tests.bridge_process import BridgeProcess
from tests.tool_client import TOOLS, ToolSession
from tests.wire_session import TIMEOUT


@pytest.fixture(scope="module")
def bench() -> Iterator[BridgeProcess]:
    with BridgeProcess("memory:", *TOOLS) as process:
        yield process
        assert process.stop() == 0


def ping(bridge: BridgeProcess, *, include_tools: bool) -> pb.PingResponse:
    request = pb.PingRequest(message="hello", include_tools=include_tools)
    answer: pb.PingResponse = bridge.stub.Ping(request, timeout=TIMEOUT)
    return answer


def test_the_tools_are_those_that_a_session_is_told_of(bench: BridgeProcess) -> None:
    answer = ping(bench, include_tools=True)
    session = ToolSession(bench, "told")
    session.call("RegisterTools", tools=[{"name": "elsewhere"}], worker_id="worker 1")
    told = dict(session.start().available_tools)
    del told["elsewhere"]
    assert dict(answer.tools) == told
    assert answer.tools["add"].parameters[0].name == "a"
    assert answer.tools["count_to"].supports_streaming
    assert answer.message == "pong: hello"
    assert answer.server_time.seconds > 1_700_000_000


def test_nobody_is_told_who_does_not_ask(bench: BridgeProcess) -> None:
    assert not ping(bench, include_tools=False).tools


def test_a_session_is_neither_needed_nor_begun(bench: BridgeProcess) -> None:
    ping(bench, include_tools=True)
    assert not ToolSession(bench, "").lives


def test_a_bridge_without_tools_has_none(bridge: BridgeProcess) -> None:
    assert not ping(bridge, include_tools=True).tools
