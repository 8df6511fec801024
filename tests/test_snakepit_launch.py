"""Workers as Snakepit launches them, in the forms of 0.4 and of 0.13: real processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

import snakepit_bridge
from snakepit_bridge import bridge_service_pb2 as pb
from tests.elixir_side import ElixirSide
from tests.snakepit_harness import (
    FORMS,
    RUN_ID,
    SCRIPT,
    TIMEOUT,
    TOKEN,
    Pool,
    Worker,
    write_python_path,
)

STOPS_WITHIN = 2.0
"""Seconds from SIGTERM to SIGKILL in Snakepit 0.4; 0.13 waits 6."""

FAST: dict[str, object] = {
    "enabled": True,
    "interval_ms": 100,
    "timeout_ms": 5_000,
    "max_missed_heartbeats": 3,
    "initial_delay_ms": 0,
    "dependent": True,
}


@pytest.fixture(params=FORMS)
def pool(request: pytest.FixtureRequest, tmp_path: Path) -> Pool:
    return Pool(tmp_path, request.param, write_python_path(tmp_path))


@pytest.fixture
def new_pool(tmp_path: Path) -> Pool:
    """Of the form of 0.13."""
    return Pool(tmp_path, "0.13", write_python_path(tmp_path))


@pytest_asyncio.fixture
async def side() -> AsyncIterator[ElixirSide]:
    async with ElixirSide() as side:
        side.expose(pb.ToolSpec(name="double"), lambda value: 2 * value)
        yield side


# Start.


async def test_it_is_ready_in_both_ways_and_says_nothing_else(pool: Pool) -> None:
    async with Worker(pool, "--log-level", "info") as worker:
        if pool.form == "0.13":
            assert worker.ready_file.read_text().strip() == str(worker.port)
        assert await worker.execute("prints", {}) == "printed"
        assert await worker.stop() == 0
    assert worker.stdout == f"GRPC_READY:{worker.port}\n"
    for line in ("printed at import", "written at import", *(f"GRPC_READY:{n}" for n in (1, 2, 3))):
        assert line in worker.stderr


async def test_snakepit_finds_it_by_its_command_line(pool: Pool) -> None:
    async with Worker(pool) as worker:
        listed = await asyncio.create_subprocess_exec(
            *("ps", "-o", "args=", "-ww", "-p", str(worker.process.pid)),
            stdout=asyncio.subprocess.PIPE,
        )
        line = (await listed.communicate())[0].decode()
    assert 0 <= line.find("grpc_server.py") < line.find(f"--snakepit-run-id {RUN_ID}")


async def test_it_leads_a_process_group(pool: Pool) -> None:
    async with Worker(pool) as worker:
        assert os.getpgid(worker.process.pid) == worker.process.pid


async def test_it_leads_none_unless_it_is_asked_to(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(SCRIPT), "--log", "memory:"),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    await process.stdout.readline()
    assert os.getpgid(process.pid) == os.getpgid(0)
    process.terminate()
    assert await process.wait() == 0


async def test_another_package_of_the_name_does_not_matter(pool: Pool) -> None:
    async with Worker(pool) as worker:
        origins = await worker.execute("origins", {})
    assert origins == {
        "here": snakepit_bridge.__file__,
        "child": snakepit_bridge.__file__,
        "limits": "",
        "wire": "",
        "server": "",
    }


async def test_what_a_newer_snakepit_passes_is_a_warning(new_pool: Pool) -> None:
    options = ("--new-option", "private", "--other=private", "--switch")
    async with Worker(new_pool, *options) as worker:
        assert await worker.execute("add", {"a": 1, "b": 2}) == 3
        await worker.stop()
    assert "unknown options are ignored: --new-option, --other, --switch" in worker.stderr
    assert "private" not in worker.stderr


async def test_the_token_is_never_logged(new_pool: Pool) -> None:
    async with Worker(new_pool._replace(log_level="debug")) as worker:
        await worker.execute("add", {"a": 1, "b": 2})
        await worker.stop()
    assert "slot 0" in worker.stderr  # the log does say something
    assert TOKEN not in worker.stdout + worker.stderr


def run(pool: Pool, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script to its end."""
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env={**pool.environment(pool.directory / "ready"), "COLUMNS": "200", "NO_COLOR": "1"},
        cwd=pool.directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_health_check_loads_the_adapters(pool: Pool) -> None:
    passed = run(pool, "--health-check", "--adapter", pool.adapter)
    assert passed.returncode == 0, passed.stderr
    assert f"health check passed: {pool.adapter}" in passed.stdout
    failed = run(pool, "--health-check", "--adapter", "pool_adapter.Missing")
    assert failed.returncode == 1
    assert "Missing" in failed.stderr
    assert not pool.slots.exists()


def test_an_adapter_that_cannot_be_loaded_ends_it_with_the_reason(new_pool: Pool) -> None:
    failed = run(new_pool, "--adapter", "no.such.Adapter")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "no.such.Adapter" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_the_options_are_explained(new_pool: Pool) -> None:
    said = run(new_pool, "--help")
    assert said.returncode == 0
    for option in ("--adapter", "--elixir-address", "--heartbeat-independent", "--data-dir"):
        assert option in said.stdout


# Heartbeats.


async def test_elixir_finds_the_session_alive_once_a_tool_ran_in_it(pool: Pool) -> None:
    async with Worker(pool) as worker:
        assert not await worker.is_valid("default_session")
        await worker.execute("add", {"a": 1, "b": 2})
        for _ in range(3):
            assert await worker.is_valid("default_session")
        assert not await worker.is_valid("another")


async def test_it_beats_for_the_sessions_that_elixir_uses(new_pool: Pool, side: ElixirSide) -> None:
    pool = new_pool._replace(elixir=side.address, heartbeat=FAST)
    async with Worker(pool) as worker:
        (first, *_) = await side.called("Heartbeat")
        assert first.request.session_id == "default_session"
        await worker.execute("add", {"a": 1, "b": 2}, session="s-1")
        before = len(side.of("Heartbeat"))
        later = await side.called("Heartbeat", before + 3)
        assert later[-1].request.session_id == "s-1"
        assert await worker.stop() == 0


async def test_the_form_of_0_4_has_no_heartbeats(tmp_path: Path, side: ElixirSide) -> None:
    pool = Pool(tmp_path, "0.4", write_python_path(tmp_path), elixir=side.address)
    async with Worker(pool) as worker:
        await worker.execute("add", {"a": 1, "b": 2})
        await side.stop()
        assert await worker.execute("add", {"a": 1, "b": 2}) == 3
        assert await worker.stop() == 0
    assert side.of("Heartbeat") == []


async def test_it_ends_by_itself_when_elixir_is_gone(new_pool: Pool, side: ElixirSide) -> None:
    pool = new_pool._replace(elixir=side.address, heartbeat=FAST)
    async with Worker(pool) as worker:
        await side.called("Heartbeat", 2)
        await side.stop()
        assert await worker.ended() == 0
    assert "depends on it and stops" in worker.stderr


async def test_an_independent_one_goes_on(new_pool: Pool, side: ElixirSide) -> None:
    pool = new_pool._replace(elixir=side.address, heartbeat=FAST)
    async with Worker(pool, "--heartbeat-independent", "--heartbeat-interval-ms=50") as worker:
        await side.called("Heartbeat", 2)
        await side.stop()
        before = len(side.calls)
        await side.start()
        await side.called("Heartbeat", before + 2)
        assert await worker.execute("add", {"a": 1, "b": 2}) == 3


# Tools.


async def test_a_tool_runs_as_elixir_calls_it(pool: Pool) -> None:
    async with Worker(pool) as worker:
        assert await worker.execute("add", {"a": 40, "b": 2}) == 42


async def test_a_stream_ends_with_an_empty_final_chunk(pool: Pool) -> None:
    async with Worker(pool) as worker:
        chunks = await worker.stream("count", {"to": 3})
    assert [chunk.is_final for chunk in chunks] == [False, False, False, True]
    assert [json.loads(chunk.data) for chunk in chunks[:-1]] == [{"number": n} for n in range(3)]
    assert chunks[-1].data == b""
    assert len({chunk.chunk_id for chunk in chunks}) == 4


async def test_a_tool_calls_a_tool_of_elixirs(pool: Pool, side: ElixirSide) -> None:
    async with Worker(pool._replace(elixir=side.address)) as worker:
        headers = (("x-snakepit-correlation-id", "c-7"),)
        assert await worker.execute("ask", {"name": "double", "value": 21}, headers=headers) == 42
    (call,) = side.of("ExecuteElixirTool")
    assert call.request.session_id == "default_session"
    assert call.metadata["x-snakepit-correlation-id"] == "c-7"


async def test_the_tools_are_announced_to_elixir(new_pool: Pool, side: ElixirSide) -> None:
    async with Worker(new_pool._replace(elixir=side.address)) as worker:
        await worker.execute("add", {"a": 1, "b": 2}, session="s-1")
        (call, *_) = await side.called("RegisterTools")
    assert call.request.session_id == "s-1"
    assert {"add", "count", "keep"} <= {tool.name for tool in call.request.tools}
    assert [each.request.session_id for each in side.of("InitializeSession")] == ["s-1"]


async def test_elixirs_tools_are_listed_through_the_worker(pool: Pool, side: ElixirSide) -> None:
    async with Worker(pool._replace(elixir=side.address)) as worker:
        await worker.execute("add", {"a": 1, "b": 2})
        request = pb.GetExposedElixirToolsRequest(session_id="default_session")
        answer = await worker.stub.GetExposedElixirTools(request, timeout=TIMEOUT)
    assert [tool.name for tool in answer.tools] == ["double"]


# Telemetry.


async def tool_events(worker: Worker, stream: Any, correlation_id: str) -> list[str]:  # noqa: ANN401 - stubs have no types
    """Call a tool, and another after it; gives the names of the first one's events."""
    for id_ in (correlation_id, f"after {correlation_id}"):
        headers = (("x-snakepit-correlation-id", id_),)
        await worker.execute("add", {"a": 1, "b": 2}, headers=headers)
    found = []
    while (event := await stream.read()).correlation_id != f"after {correlation_id}":
        if event.correlation_id == correlation_id:
            found.append(".".join(event.event_parts))
            assert event.metadata["tool"] == "add"
            if event.event_parts[-1] == "stop":
                assert event.measurements["duration"].int_value > 0
    return found


async def test_tool_events_go_out_as_the_controls_say(pool: Pool) -> None:
    async with Worker(pool) as worker:
        call = worker.stub.StreamTelemetry(timeout=TIMEOUT)
        first = await call.read()
        assert list(first.event_parts) == ["python", "memory", "sampled"]
        assert await tool_events(worker, call, "all") == [
            *("python.call.start", "tool.execution.start"),
            *("tool.execution.stop", "tool.result_size", "python.call.stop"),
        ]
        allow = pb.TelemetryEventFilter(allow=["tool.execution.*"], deny=["*.start"])
        await call.write(pb.TelemetryControl(filter=allow))
        # Controls are not answered: it is obeyed from some call on.
        for number in range(50):
            found = await tool_events(worker, call, f"filtered-{number}")
            if "tool.execution.start" not in found:
                break
        assert found == ["tool.execution.stop"]
        # It ends well, and at once, with the worker.
        assert await worker.stop() == 0
    assert (await call.code()).name == "OK"


# The end.


async def stops_in_time(worker: Worker) -> None:
    begun = time.monotonic()
    assert await worker.stop() == 0, worker.stderr
    assert time.monotonic() - begun < STOPS_WITHIN


async def test_it_stops_in_time(pool: Pool) -> None:
    async with Worker(pool) as worker:
        await worker.execute("add", {"a": 1, "b": 2})
        await stops_in_time(worker)


async def test_it_stops_in_time_while_a_tool_blocks(pool: Pool) -> None:
    async with Worker(pool) as worker:
        telemetry = worker.stub.StreamTelemetry(timeout=TIMEOUT)
        await telemetry.read()
        blocked = asyncio.ensure_future(worker.execute("block", {"seconds": 60.0}))
        while list((await telemetry.read()).event_parts) != ["tool", "execution", "start"]:
            pass
        await stops_in_time(worker)
        with pytest.raises(Exception, match=r".+"):
            await blocked


# Slots.


async def test_many_start_at_once_each_on_a_slot_of_its_own(new_pool: Pool) -> None:
    async with contextlib.AsyncExitStack() as running:

        async def start(number: int) -> Worker:
            return await running.enter_async_context(Worker(new_pool, name=f"worker_{number}"))

        started = await asyncio.gather(*map(start, range(20)), return_exceptions=True)
        workers = [worker for worker in started if isinstance(worker, Worker)]
        assert len(workers) == 20, started
        assert {worker.slot for worker in workers} == {f"slot-{n}" for n in range(20)}
        for number, worker in enumerate(workers):
            # The session of each is its own.
            assert await worker.execute("keep", {"name": "n", "value": number}) == -1


async def test_a_worker_in_place_of_a_killed_one_serves_its_sessions(pool: Pool) -> None:
    async with Worker(pool, name="a") as first, Worker(pool, name="b") as second:
        assert [first.slot, second.slot] == ["slot-0", "slot-1"]
        assert await first.execute("keep", {"name": "n", "value": 1}) == -1
        assert await second.execute("keep", {"name": "n", "value": 2}) == -1
        await first.kill()
        async with Worker(pool, name="c") as heir:
            assert heir.slot == "slot-0"
            assert await heir.is_valid("default_session")
            assert await heir.execute("keep", {"name": "n", "value": 3}) == 1
            assert await heir.stop() == 0
