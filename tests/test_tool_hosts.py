"""What hosts a tool: threads, adapters, what is recorded, and the grace of a bridge that stops."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from snakepit_bridge import bridge_service_pb2 as pb
from tests.elixir_side import ElixirSide
from tests.hosted_tools import SECRET
from tests.hostile import AT_ONCE, MIB, SLACK, memory_of
from tests.test_tools_hostile import SLOWNESS, STOPPED, Bench, failure
from tests.tool_client import ToolSession, entries, entries_now, runs_in, value_of
from tests.watches import wait_until
from tests.wire_session import TIMEOUT, refused

TOOLS = ("--adapter", "tests.hosted_tools")

ALL_THREADS = 32
"""More than asyncio's own pool ever has, so that nothing in it is free."""

LARGE = 100_000
"""Numbers of an argument that is read off the event loop, as it has more than 64 KiB."""

NUMBERS = [number + 0.5 for number in range(LARGE)]


def adapter(name: str) -> tuple[str, ...]:
    return "--adapter", f"tests.hosted_tools.{name}"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path, tools=TOOLS)
    yield bench
    bench.close()


@pytest.fixture
def adapted(tmp_path: Path) -> Iterator[Bench]:
    names = ("FailsOnce", "AwaitsItsContext", "AwaitsItsContextOnce", "TellsItsLife")
    bench = Bench(tmp_path, tools=[part for name in names for part in adapter(name)])
    yield bench
    bench.close()


# Threads.


def fill_threads(bench: Bench) -> list[Any]:
    """Block asyncio's own pool; gives the calls."""
    calls = [bench.session.begin("waits_in_to_thread", bench.files) for _ in range(ALL_THREADS)]
    bench.running(ALL_THREADS)
    return calls


def test_threads_of_async_tools_keep_no_large_request_waiting(bench: Bench) -> None:
    calls = fill_threads(bench)
    other = ToolSession(bench.bridge, "other")
    assert value_of(other.run("count_numbers", {"numbers": NUMBERS}, timeout=AT_ONCE)) == LARGE
    assert other.register("x", NUMBERS, "embedding").variable.version == 1
    assert not any(call.done() for call in calls)


def test_threads_of_async_tools_keep_no_stop_waiting(bench: Bench) -> None:
    calls = fill_threads(bench)
    assert bench.stop() < STOPPED * SLOWNESS
    assert {call.code().name for call in calls} == {"UNAVAILABLE"}
    assert bench.outcomes == ["interrupted"] * ALL_THREADS


def test_large_arguments_are_converted_off_the_event_loop(bench: Bench) -> None:
    loop_thread = bench.session.value("hold_conversions", bench.files)
    converting = bench.session.begin("count_numbers", {"numbers": NUMBERS})
    bench.running()
    assert bench.told != [loop_thread]
    # The conversion goes on until it is let go: who is answered meanwhile did not wait for it.
    for _ in range(3):
        bench.bridge.stub.Ping(pb.PingRequest(message="x"), timeout=AT_ONCE)
    bench.session.register("x")
    assert not converting.done()
    bench.let_go()
    assert value_of(converting.result()) == LARGE


def test_requests_of_calls_that_wait_are_bounded_in_bytes(tmp_path: Path) -> None:
    limits = ("--max-message-size", "8MiB", "--max-workers", "1", "--record-tools", "off")
    bench = Bench(tmp_path, *limits, tools=TOOLS)
    try:
        busy = bench.session.begin("stuck", bench.files)
        bench.running()
        before = memory_of(bench.bridge.process.pid).now
        large = bytes(7 * MIB)

        def begin() -> Any:  # noqa: ANN401 - a call's future
            return bench.session.begin("stuck", bench.files, binary_parameters={"ballast": large})

        # Of four times a message: 28 of 32 MiB, which wait for the one thread.
        waiting = [begin() for _ in range(4)]

        def are_open() -> bool:
            return len(runs_in(entries_now(bench.path, bench.session.id))) == 1 + len(waiting)

        wait_until(are_open, "four wait")
        for _ in range(20):
            with refused("RESOURCE_EXHAUSTED", "slow down and retry", "--max-message-size"):
                bench.session.run(
                    "stuck", bench.files, timeout=AT_ONCE, binary_parameters={"ballast": large}
                )
        # Each is kept about five times over: as it came, as Python's value, as it is recorded.
        assert memory_of(bench.bridge.process.pid).now < before + 3 * SLACK
        assert bench.told == ["run"]
        bench.let_go()
        assert [value_of(call.result()) for call in (busy, *waiting)] == [0, *[7 * MIB] * 4]
        # They have given back what they took.
        for _ in range(6):
            assert value_of(begin().result()) == 7 * MIB
    finally:
        bench.close()


# Adapters.


def test_a_shared_adapter_that_could_not_be_prepared_is_prepared_again(adapted: Bench) -> None:
    session = adapted.session
    assert failure(session.run("prepared_shared")) == ("RuntimeError", "the first time")
    assert session.value("prepared_shared") == [2, session.id]
    other = ToolSession(adapted.bridge, "other")
    assert other.value("prepared_shared") == [2, other.id]


@pytest.mark.parametrize("tool", ["awaited", "awaited_shared"])
def test_an_async_set_session_context_is_awaited(adapted: Bench, tool: str) -> None:
    assert adapted.session.value(tool) == adapted.session.id
    other = ToolSession(adapted.bridge, "other")
    assert other.value(tool) == other.id
    adapted.stop()
    adapted.close()
    assert "never awaited" not in adapted.bridge.stderr


@pytest.mark.parametrize("tool", ["lives", "lives_stream"])
@pytest.mark.parametrize("left", ["not", "by its client", "by its deadline", "by force"])
def test_an_adapter_is_cleaned_up_after_its_tool(adapted: Bench, tool: str, left: str) -> None:
    session = adapted.session
    fields: dict[str, Any] = {"timeout": 1.0} if left == "by its deadline" else {}
    begin = session.stream if tool == "lives_stream" else session.begin
    call = begin(tool, adapted.files, **fields)
    adapted.running()
    if left == "by its client":
        call.cancel()
    elif left == "by force":
        session.end(force=True)
    if left != "not":

        def is_closed() -> bool:
            recorded = runs_in(entries_now(adapted.path, session.id))
            return [run.outcome for run in recorded.values()] != ["open"]

        wait_until(is_closed, "the call is left")
        # Whatever the bridge does for it at once is done when it has done so much more.
        for _ in range(10):
            adapted.bridge.stub.Ping(pb.PingRequest(), timeout=TIMEOUT)
    assert adapted.told == ["run"]
    adapted.let_go()
    adapted.running(3)
    assert adapted.told == ["run", "ended", "cleanup"]


# The grace.


@pytest.mark.parametrize("tool", ["registers", "registers_isolated"])
def test_a_tool_may_write_in_the_grace(tmp_path: Path, tool: str) -> None:
    bench = Bench(tmp_path, "--grace", str(TIMEOUT), tools=TOOLS)
    try:
        call = bench.session.begin(tool, bench.files)
        bench.running()
        bench.bridge.process.send_signal(signal.SIGTERM)

        def is_draining() -> bool:
            try:
                bench.session.call("GetSession")
            except grpc.RpcError as error:
                return "shutting down" in (error.details() or "")
            return False

        wait_until(is_draining, "nobody else is let in")
        bench.let_go()
        assert value_of(call.result()) is None
        # Nor does the end of the grace have to be waited for.
        assert bench.bridge.process.wait(TIMEOUT) == 0
        (run,) = runs_in(entries(bench.path, bench.session.id)).values()
        assert run.outcome == "ok"
        assert [change.kind for change in run.changes] == ["variable_registered"]
    finally:
        bench.close()


def test_a_header_of_a_call_that_does_not_run_opens_no_door(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "--grace", str(TIMEOUT), tools=TOOLS)
    try:
        call = bench.session.begin("stuck", bench.files)
        bench.running()
        bench.bridge.process.send_signal(signal.SIGTERM)
        forged = (("x-snakepit-tool-call", "no such call"), ("x-snakepit-tool", "stuck"))

        def is_draining() -> bool:
            try:
                bench.session.call("GetSession", forged)
            except grpc.RpcError as error:
                return error.code() is grpc.StatusCode.UNAVAILABLE
            return False

        wait_until(is_draining, "nobody is let in")
        bench.let_go()
        assert call.result().success
        assert bench.bridge.process.wait(TIMEOUT) == 0
    finally:
        bench.close()


# What is recorded.

QUOTED = (SECRET, repr(SECRET)[1:-1])
"""As it stands in a message, and in what quotes it."""

REFUSING = ("refuses", "refuses_async", "refuses_isolated", "refuses_stream")


def refuse(bench: Bench, tool: str, secret: str = SECRET) -> str:
    """Run a tool that quotes its secret; gives what its client hears."""
    arguments = {"user": "somebody", "password": secret}
    if tool != "refuses_stream":
        kind, message = failure(bench.session.run(tool, arguments))
        assert kind == "ValueError"
        return message
    with pytest.raises(grpc.RpcError) as caught:
        list(bench.session.stream(tool, arguments))
    return caught.value.details() or ""


def kept(bench: Bench) -> bytes:
    """All bytes that a bridge that is stopped has written."""
    bench.stop()
    bench.close()
    return b"".join(file.read_bytes() for file in bench.path.parent.rglob("bridge.db*"))


@pytest.mark.parametrize("record", ["off", "digest"])
def test_of_a_failure_only_its_type_is_recorded(tmp_path: Path, record: str) -> None:
    bench = Bench(tmp_path, "--record-tools", record, tools=TOOLS)
    try:
        for tool in REFUSING:
            assert SECRET in refuse(bench, tool)
        content = kept(bench)
    finally:
        bench.close()
    assert content
    for text in (*QUOTED, "another password"):
        assert text.encode() not in content
    ends = [run.end for run in runs_in(entries(bench.path, bench.session.id)).values()]
    assert len(ends) == len(REFUSING)
    for end in ends:
        assert end is not None
        told = (end.body.error_type, end.body.error_message, end.body.error_traceback)
        assert told == ("ValueError", "", "")


def test_a_failure_is_recorded_without_the_secret_it_quotes(bench: Bench) -> None:
    for tool in REFUSING:
        assert SECRET in refuse(bench, tool)
    content = kept(bench)
    for text in QUOTED:
        assert text.encode() not in content
    runs = runs_in(entries(bench.path, bench.session.id))
    assert len(runs) == len(REFUSING)
    for run in runs.values():
        assert run.end is not None
        end = run.end.body
        assert end.error_type == "ValueError"
        assert end.error_message == "somebody has another password than <password> <password>"
        assert "LookupError: <password>" in end.error_traceback
        assert "in _refuse" in end.error_traceback


def test_a_failure_is_recorded_without_the_halves_of_a_long_secret(bench: Bench) -> None:
    secret = "".join(f"{number:05}" for number in range(1_200))  # a message has 4 KiB
    refuse(bench, "refuses", secret)
    content = kept(bench)
    assert secret[:1_500].encode() not in content
    assert secret[-1_500:].encode() not in content


# Ways to the outside.


def test_progress_from_a_thread_of_an_async_stream_reaches_its_client(bench: Bench) -> None:
    chunks = list(bench.session.stream("progress_from_a_thread"))
    assert [b"half" in chunks[0].data, chunks[1].data, b"whole" in chunks[2].data] == [
        True,
        b'"text"',
        True,
    ]
    assert [chunk.is_final for chunk in chunks] == [False, False, False, True]
    # Of a tool that gives its result at once, too, where its client asks for a stream.
    chunks = list(bench.session.stream("progress_of_a_coroutine"))
    assert b"half" in chunks[0].data
    assert (chunks[1].data, chunks[2].is_final) == (b'"text"', True)
    assert bench.session.value("progress_of_a_coroutine") == "text"


async def test_a_tool_of_elixir_may_have_a_parameter_named_tool_name(tmp_path: Path) -> None:
    async with ElixirSide() as side:
        side.expose(pb.ToolSpec(name="look_up"), lambda tool_name: f"found {tool_name}")
        options = ("--elixir-address", side.address)

        def run() -> list[str]:
            bench = Bench(tmp_path, *options, tools=TOOLS)
            try:
                ways = ("asks_elixir", "asks_elixir_async", "asks_elixir_isolated")
                return [bench.session.value(tool, {"name": tool}) for tool in ways]
            finally:
                bench.close()

        found = await asyncio.to_thread(run)
    assert found == ["found asks_elixir", "found asks_elixir_async", "found asks_elixir_isolated"]
