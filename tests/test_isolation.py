"""Tools in processes of their own: whatever they do, their caller hears of it and goes on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

import snakepit_bridge
from snakepit_bridge import tool_worker_pb2 as frames
from snakepit_bridge.errors import FailedPrecondition, InvalidRequest, Unavailable
from snakepit_bridge.tool_values import decode_argument, encode_result
from snakepit_bridge.tools.processes import Done, Job, Processes, WorkerDied
from snakepit_bridge.tools.remote_session import RemoteToolSession
from tests.bridge_process import BridgeProcess
from tests.wire_session import Session

TOOLS = "tests.isolated_tools"
MAX_SIZE = 16 * 1024 * 1024

SOON = 20.0
"""Seconds in which what takes milliseconds has to happen, on a machine that does much else."""


def job(tool: str, *, source: str = TOOLS, raw: bytes | None = None, **arguments: Any) -> Job:  # noqa: ANN401 - any tool's
    parameters: list[tuple[str, bytes, bytes | None]] = []
    for name, argument in arguments.items():
        value = encode_result(argument)
        parameters.append((name, value.any, value.binary or None))
    if raw is not None:
        parameters.append(("value", b"", raw))
    return Job(
        call_id=f"call-{tool}",
        session_id="session",
        log_epoch="",
        tool=tool,
        source=source,
        parameters=tuple(parameters),
        metadata={},
        traceparent="",
        tracestate="",
        correlation_id="",
        streaming=False,
        deadline_unix_nanos=0,
    )


def streamed(tool: str, **arguments: Any) -> Job:  # noqa: ANN401 - as job
    return job(tool, **arguments)._replace(streaming=True)


def plain(done: Done) -> Any:  # noqa: ANN401 - any result
    assert done.failure is None
    assert done.value is not None
    return decode_argument(done.value.any, done.value.binary)


@asynccontextmanager
async def workers(
    size: int = 1, port: int = 0, max_size: int = MAX_SIZE
) -> AsyncIterator[Processes]:
    processes = Processes(size, lambda: port, max_size=max_size)
    try:
        yield processes
    finally:
        await processes.close()


async def give(processes: Processes, tool: str, **arguments: Any) -> Any:  # noqa: ANN401 - any
    return plain(await processes.run(job(tool, **arguments), None))


async def until(condition: Callable[[], bool]) -> None:
    """Wait for another process, which cannot tell."""
    async with asyncio.timeout(SOON):
        while not condition():  # noqa: ASYNC110 - as said: there is nothing to wait for
            await asyncio.sleep(0.01)


def lives(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


async def test_a_tool_runs_in_another_process() -> None:
    async with workers() as processes:
        assert await give(processes, "add", a=2, b=3) == 5
        assert await give(processes, "add", a=2) == 3
        found = await give(processes, "where")
        again = await give(processes, "where")
    assert found["pid"] == again["pid"] != os.getpid()
    assert found["parent"] == os.getpid()
    assert processes.statistics() == (0, 0, 0, 1, 0)


async def test_the_process_finds_what_this_one_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Another package of this name on the path that Python itself would make.
    (tmp_path / "snakepit_bridge").mkdir()
    (tmp_path / "snakepit_bridge" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("SNAKEPIT_TEST_VARIABLE", "inherited")
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    monkeypatch.chdir(Path(snakepit_bridge.__file__).parent.parent)
    async with workers() as processes:
        found = await give(processes, "where")
    assert found["package"] == snakepit_bridge.__file__
    assert found["path"] == [entry or str(Path.cwd()) for entry in sys.path]
    assert found["variable"] == "inherited"
    assert found["nice"] == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 19)
    assert found["stdin"] == "/dev/null"
    assert found["stdout_is_stderr"]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (True, "bool True"),
        (3, "int 3"),
        (2**80, f"int {2**80}"),
        (0.1, "float 0.1"),
        (float("inf"), "float inf"),
        ("äöü", "str 'äöü'"),
        ([1, "two", None], "list [1, 'two', None]"),
        ({"a": {"b": [0.5]}}, "dict {'a': {'b': [0.5]}}"),
        (None, "NoneType None"),
    ],
)
async def test_arguments_are_what_they_are_in_the_bridge(value: object, found: str) -> None:
    async with workers() as processes:
        assert await give(processes, "describe", value=value) == found


async def test_arrays_and_bytes_go_in_and_arrays_come_out() -> None:
    async with workers() as processes:
        shown = await give(processes, "describe", value=np.ones((2, 100_000), np.float32))
        assert shown.startswith("ndarray array([[1., 1.")
        assert "float32" in shown
        done = await processes.run(job("describe", raw=b"\x00\xff"), None)
        assert plain(done) == "bytes b'\\x00\\xff'"
        assert plain(await processes.run(job("describe", raw=b""), None)) == "bytes b''"
        array = await give(processes, "zeros", count=1_000_000)
        assert (array.dtype, array.shape, array.any()) == (np.uint8, (1_000_000,), np.False_)


async def test_arguments_that_do_not_fit_are_refused_and_cost_no_process() -> None:
    async with workers() as processes:
        pid = (await give(processes, "where"))["pid"]
        for arguments, field in (
            ({"a": "two"}, "parameters.a"),
            ({}, "parameters.a"),
            ({"a": 1, "c": 2}, "parameters.c"),
        ):
            with pytest.raises(InvalidRequest, match="add") as caught:
                await processes.run(job("add", **arguments), None)
            assert caught.value.field == field
        broken = job("add")._replace(parameters=(("a", b"\xff\xff", None),))
        with pytest.raises(InvalidRequest, match="parameter 'a'"):
            await processes.run(broken, None)
        assert (await give(processes, "where"))["pid"] == pid


async def test_what_a_tool_raises_is_a_failure() -> None:
    async with workers() as processes:
        done = await processes.run(job("raises", message="out of luck"), None)
        assert done.value is None
        assert done.failure is not None
        assert (done.failure.type, done.failure.message) == ("ValueError", "out of luck")
        assert "raise ValueError(message)" in done.failure.traceback
        assert "worker.py" not in done.failure.traceback
        done = await processes.run(job("not_a_value"), None)
        assert done.failure is not None
        assert done.failure.type == "InvalidResult"
        assert await give(processes, "add", a=1) == 2


@pytest.mark.parametrize(
    ("tool", "arguments", "type_", "message"),
    [
        ("exits", {"code": 3}, "SystemExit", "3"),
        ("exits_async", {}, "SystemExit", "7"),
        ("recurses", {}, "RecursionError", "maximum recursion depth"),
        ("count", {"to": 3}, "TypeError", "ExecuteStreamingTool"),
    ],
)
async def test_what_would_end_a_program_ends_the_call(
    tool: str, arguments: dict[str, Any], type_: str, message: str
) -> None:
    async with workers() as processes:
        pid = (await give(processes, "where"))["pid"]
        done = await processes.run(job(tool, **arguments), None)
        assert done.failure is not None
        assert done.failure.type == type_
        assert message in done.failure.message
        assert (await give(processes, "where"))["pid"] == pid
        assert await give(processes, "sleep", seconds=0.0) == "slept"


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("exits_at_once", {"code": 3}, "exited with code 3"),
        ("exits_at_once", {"code": 0}, "exited with code 0"),
        ("segfaults", {}, "was killed by SIGSEGV"),
        ("overflows", {}, "was killed by SIGSEGV"),
        ("kills_itself", {"number": int(signal.SIGKILL)}, "was killed by SIGKILL"),
        ("kills_itself", {"number": int(signal.SIGABRT)}, "was killed by SIGABRT"),
    ],
)
async def test_a_process_that_dies_is_told_and_replaced(
    tool: str, arguments: dict[str, Any], message: str
) -> None:
    async with workers() as processes:
        pid = (await give(processes, "where"))["pid"]
        with pytest.raises(WorkerDied) as caught:
            await processes.run(job(tool, **arguments), None)
        assert str(caught.value) == f"the tool's process {message}"
        assert (await give(processes, "where"))["pid"] != pid
        assert processes.statistics()[2:] == (1, 2, 1)


async def test_a_result_that_is_too_large_is_not_sent() -> None:
    async with workers(max_size=1_000_000) as processes:
        pid = (await give(processes, "where"))["pid"]
        for call in (
            job("zeros", count=1_000_000_000),
            job("text", characters=1_000_000_000),
            job("text", characters=999_999),
        ):
            done = await processes.run(call, None)
            assert done.failure is not None
            assert done.failure.type == "ResultTooLarge"
            assert "more than the limit of 1000000" in done.failure.message
        assert len(await give(processes, "text", characters=900_000)) == 900_000
        assert (await give(processes, "where"))["pid"] == pid


@pytest.mark.parametrize("tool", ["hangs", "spins"])
async def test_cancelling_kills_at_once(tool: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    async with workers() as processes:
        running = asyncio.create_task(processes.run(job(tool, mark=str(mark)), None))
        await until(lambda: mark.exists() and mark.read_text() != "")
        pid = int(mark.read_text())
        running.cancel()
        began = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert time.monotonic() - began < 1
        await until(lambda: not lives(pid))
        assert await give(processes, "add", a=1) == 2
        assert processes.statistics().died == 0


async def test_a_job_is_cancelled_while_its_process_starts() -> None:
    async with workers() as processes:
        running = asyncio.create_task(processes.run(job("add", a=1), None))
        await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert await give(processes, "add", a=1) == 2
        await until(lambda: processes.statistics().processes == 1)
        assert processes.statistics().died == 0


async def test_a_process_is_waited_for_where_the_system_tells_of_no_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    async with workers() as processes:
        with pytest.raises(WorkerDied, match="exited with code 3"):
            await processes.run(job("exits_at_once", code=3), None)
        assert await give(processes, "add", a=1) == 2


async def test_jobs_wait_for_their_turn_in_order() -> None:
    began: list[int] = []

    async with workers() as processes:

        async def run(number: int) -> None:
            async def take(data: bytes, metadata: Mapping[str, str]) -> None:
                began.append(number)

            await processes.run(streamed("count", to=1), take)

        running = [asyncio.create_task(run(number)) for number in range(6)]
        await asyncio.sleep(0)
        assert processes.statistics()[:2] == (1, 5)
        running[3].cancel()
        await asyncio.wait(running)
        assert began == [0, 1, 2, 4, 5]
        assert processes.statistics() == (0, 0, 1, 1, 0)


async def test_as_many_run_at_a_time_as_there_are_processes() -> None:
    async with workers(3) as processes:
        found = await asyncio.gather(*(give(processes, "sleep", seconds=0.05) for _ in range(7)))
        assert found == ["slept"] * 7
        assert processes.statistics() == (0, 0, 3, 3, 0)


async def test_a_process_that_dies_between_jobs_is_not_used() -> None:
    async with workers() as processes:
        assert await give(processes, "dies_soon") == "ok"
        await until(lambda: processes.statistics().died == 1)
        assert processes.statistics().processes == 0
        assert await give(processes, "add", a=1) == 2


async def test_chunks_come_one_by_one(tmp_path: Path) -> None:
    chunks: list[tuple[bytes, Mapping[str, str]]] = []

    async def take(data: bytes, metadata: Mapping[str, str]) -> None:
        chunks.append((data, metadata))

    async with workers() as processes:
        done = await processes.run(streamed("count", to=3), take)
        assert done == Done(None, None)
        assert [json.loads(data) for data, _ in chunks] == [{"number": n} for n in range(3)]
        chunks.clear()
        await processes.run(streamed("count_async", to=2), take)
        assert chunks == [(b"0", {"number": "0"}), (b"1", {"number": "1"})]
        chunks.clear()
        await processes.run(streamed("add", a=1), take)
        assert chunks == [(b"2", {})]
        chunks.clear()
        done = await processes.run(streamed("breaks_off"), take)
        assert chunks == [(b"1", {})]
        assert done.failure is not None
        assert done.failure.message == "nothing more"


async def test_a_reader_that_is_slow_slows_the_tool(tmp_path: Path) -> None:
    def made() -> int:
        return len(list(tmp_path.iterdir()))

    size = 1_000_000
    may_go_on = asyncio.Event()
    taken = 0

    async def take(data: bytes, metadata: Mapping[str, str]) -> None:
        nonlocal taken
        await may_go_on.wait()
        taken += len(data)

    async with workers() as processes:
        call = streamed("large_chunks", to=40, size=size, directory=str(tmp_path))
        running = asyncio.create_task(processes.run(call, take))
        await until(lambda: made() >= 2)
        await give_it_time(lambda: made() > 5)
        assert made() <= 5
        may_go_on.set()
        assert await running == Done(None, None)
        assert taken == 40 * size


async def give_it_time(condition: Callable[[], bool]) -> None:
    """Give what must not happen half a second in which it could."""
    end = time.monotonic() + 0.5
    while not condition() and time.monotonic() < end:  # noqa: ASYNC110 - as until
        await asyncio.sleep(0.01)


async def test_whoever_takes_no_more_ends_the_tool() -> None:
    async def take(data: bytes, metadata: Mapping[str, str]) -> None:
        raise InvalidRequest("no more")

    async with workers() as processes:
        with pytest.raises(InvalidRequest, match="no more"):
            await processes.run(streamed("count", to=1_000_000), take)
        await until(lambda: processes.statistics().processes == 0)
        assert await give(processes, "add", a=1) == 2


async def test_a_chunk_that_is_too_large_ends_the_stream() -> None:
    async def take(data: bytes, metadata: Mapping[str, str]) -> None:
        raise AssertionError("it was sent")

    async with workers(max_size=1_000) as processes:
        call = streamed("large_chunks", to=1, size=2_000, directory="/tmp")
        done = await processes.run(call, take)
        assert done.failure is not None
        assert done.failure.type == "ResultTooLarge"


async def test_the_loop_stays_and_what_a_job_sets_does_not() -> None:
    async with workers() as processes:
        for _ in range(3):
            assert await give(processes, "same_loop")
        assert await give(processes, "leave_behind", what="a mess") == "nothing"
        assert await give(processes, "leave_behind", what="another") == "nothing"


async def test_adapters_are_made_for_each_call_or_shared() -> None:
    async with workers() as processes:
        for tool in ("tell", "tell_async"):
            found = await give(processes, tool, source=f"{TOOLS}.Adapter")
            assert found == ["made", "initialised", "session"]
        assert await give(processes, "double", source=f"{TOOLS}.Adapter", number=2) == 4
        for number in (1, 2):
            found = await give(processes, "calls_so_far", source=f"{TOOLS}.SharedAdapter")
            assert found == [1, number, "session"]


async def test_an_adapter_that_dispatches_is_asked() -> None:
    source = f"{TOOLS}.Dispatching"
    chunks: list[bytes] = []

    async def take(data: bytes, metadata: Mapping[str, str]) -> None:
        chunks.append(data)

    async with workers() as processes:
        found = await give(processes, "anything", source=source, a=1)
        assert found == ["anything", {"a": 1}, "session"]
        assert await give(processes, "later", source=source) == "later in session"
        await processes.run(streamed("stream", source=source), take)
        assert chunks == [b"1", b"2"]


@pytest.mark.parametrize(
    ("source", "tool", "message"),
    [
        ("tests.no_such_module", "add", "no_such_module"),
        (f"{TOOLS}.NoSuchClass", "add", "NoSuchClass"),
        (TOOLS, "no_such_tool", "no_such_tool"),
    ],
)
async def test_what_cannot_be_loaded_is_a_failure(source: str, tool: str, message: str) -> None:
    async with workers() as processes:
        done = await processes.run(job(tool, source=source), None)
        assert done.failure is not None
        assert message in done.failure.message
        assert await give(processes, "add", a=1) == 2


async def test_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    async with workers() as processes:
        with monkeypatch.context() as patched:
            patched.setattr(sys, "executable", "/nowhere/python")
            with pytest.raises(WorkerDied, match=r"could not be started: .*No such file"):
                await processes.run(job("add", a=1), None)
        assert await give(processes, "add", a=1) == 2


async def test_files_of_the_process_are_not_a_tools_to_break() -> None:
    async with workers() as processes:
        for tool, message in (
            ("writes_to_all_files", "broke its connection: it sent a frame of 4294967295 bytes"),
            ("closes_all_files", "the tool's process "),
        ):
            with pytest.raises(WorkerDied, match=message):
                await processes.run(job(tool), None)
            assert await give(processes, "add", a=1) == 2


async def test_a_child_that_is_left_behind_keeps_nobody_waiting(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    async with workers() as processes:
        with pytest.raises(WorkerDied, match="exited with code 3"):
            await processes.run(job("leaves_a_child_and_dies", mark=str(mark)), None)
    os.kill(int(mark.read_text()), signal.SIGKILL)


async def test_closing_ends_everything_at_once(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    async with workers(2) as processes:
        running = [
            asyncio.create_task(processes.run(call, None))
            for call in (job("hangs", mark=str(mark)), job("sleep", seconds=60), job("add", a=1))
        ]
        await until(lambda: mark.exists() and mark.read_text() != "")
        began = time.monotonic()
        await processes.close()
        assert time.monotonic() - began < 2
        assert not lives(int(mark.read_text()))
        ended = await asyncio.gather(*running, return_exceptions=True)
        assert [type(error) for error in ended] == [WorkerDied, WorkerDied, Unavailable]
        assert "because the bridge is shutting down" in str(ended[0])
        await processes.close()
        with pytest.raises(Unavailable):
            await processes.run(job("add", a=1), None)


async def test_progress_is_part_of_the_stream() -> None:
    chunks: list[tuple[Any, Mapping[str, str]]] = []

    async def take(data: bytes, metadata: Mapping[str, str]) -> None:
        chunks.append((json.loads(data), metadata))

    call = job("reports")._replace(metadata={"user": "someone"}, deadline_unix_nanos=1)
    said = {
        "metadata": {"user": "someone"},
        "call": ["session", "reports", "call-reports"],
        "cancelled": True,
    }
    async with workers() as processes:
        assert plain(await processes.run(call, None)) == said
        await processes.run(call._replace(streaming=True), take)
    assert chunks == [
        ({"progress": 1, "total": 4, "message": "a quarter"}, {"kind": "progress"}),
        ({"progress": 3}, {"kind": "progress"}),
        (said, {}),
    ]


async def test_a_thread_that_is_left_behind_says_nothing_any_more() -> None:
    async def take(data: bytes, metadata: Mapping[str, str]) -> None:
        chunks.append(data)

    async with workers() as processes:
        chunks: list[bytes] = []
        await processes.run(streamed("reports_for_ever"), take)
        assert chunks.count(b"1") == 1
        for _ in range(3):
            chunks = []
            await processes.run(streamed("count", to=2), take)
            assert chunks == [b'{"number":0}', b'{"number":1}']
        assert processes.statistics().died == 0


def of_session(call: Job, session: Session) -> Job:
    """The job for a session of a bridge, of no call that the bridge knows."""
    return call._replace(call_id="", session_id=session.id)


async def test_a_tool_uses_its_session(session: Session) -> None:
    session.register("x", 1)
    async with workers(port=session.bridge.port) as processes:

        async def use(tool: str, **arguments: Any) -> Any:  # noqa: ANN401 - any result
            return plain(await processes.run(of_session(job(tool, **arguments), session), None))

        assert await use("set_and_get", name="x", value=2) == 2
        assert await use("set_async", name="x", value=3) == 3
        assert plain_value(session, "x") == 3
        assert await use("observe", name="x", values=[4, 5]) == [["x", 3, 4], ["x", 4, 5]]
        assert await use("what_is_raised", name="nothing", value=1) == [
            "VariableNotFound",
            "variable 'nothing' not found",
        ]
        assert (await use("what_is_raised", name="x", value="two"))[0] == "InvalidValue"


def plain_value(session: Session, name: str) -> Any:  # noqa: ANN401 - any JSON value
    return json.loads(session.get(name).value.value)


async def test_a_tool_is_traced_and_bound_to_its_log(session: Session) -> None:
    epoch = session.register("x", 1).log_epoch
    call = of_session(job("set_and_get", name="x", value=2), session)._replace(
        log_epoch=epoch,
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        tracestate="vendor=1",
        correlation_id="an ünusual one",
    )
    async with workers(port=session.bridge.port) as processes:
        assert plain(await processes.run(call, None)) == 2
        newest = session.history("x").entries[0]
        assert newest.traceparent == call.traceparent
        assert newest.correlation_id == call.correlation_id
        assert newest.request_id
        done = await processes.run(call._replace(log_epoch="another"), None)
    assert done.failure is not None
    assert done.failure.type == "EpochMismatch"


async def test_a_tool_that_is_killed_writes_no_more(session: Session, tmp_path: Path) -> None:
    session.register("x", 0)
    async with workers(port=session.bridge.port) as processes:
        call = of_session(job("writes_for_ever", name="x"), session)
        running = asyncio.create_task(processes.run(call, None))
        await until(lambda: session.get("x").version > 5)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await until(lambda: processes.statistics().processes == 0)
        version = session.get("x").version
        await give(processes, "add", a=1)
        assert session.get("x").version - version <= 1


PARENT = """
import asyncio, signal, sys
from snakepit_bridge.tools.processes import Processes
from tests.test_isolation import give, job, streamed, workers

async def main():
    {loop}
    async with workers() as processes:
{body}

{run}(main())
"""


def parent(body: str, loop: str = "pass", run: str = "asyncio.run") -> subprocess.Popen[str]:
    """A program that has workers, in a group of its own."""
    indented = "\n".join(f"        {line}" for line in body.splitlines())
    return subprocess.Popen(
        [sys.executable, "-c", PARENT.format(body=indented, loop=loop, run=run)],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_prints_are_lines_on_standard_error() -> None:
    with parent("await give(processes, 'prints', text='from Python')") as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out == ""
    assert {"from Python", "raw bytes", "from a program"} <= set(err.splitlines())


@pytest.mark.parametrize("tool", ["hangs", "spins"])
def test_it_dies_with_its_parent(tool: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with parent(f"await give(processes, {tool!r}, mark={str(mark)!r})") as process:
        asyncio.run(until(lambda: mark.exists() and mark.read_text() != ""))
        process.kill()
        asyncio.run(until(lambda: not lives(int(mark.read_text()))))
        process.communicate()


def test_signals_to_the_group_are_the_parents() -> None:
    body = """
signal.signal(signal.SIGINT, lambda *_: None)
signal.signal(signal.SIGTERM, lambda *_: None)
print(await give(processes, 'survives_signals'), flush=True)
print(await give(processes, 'sleep', seconds=1.0), flush=True)
"""
    with parent(body) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "still here\n"
        os.killpg(process.pid, signal.SIGINT)
        os.killpg(process.pid, signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (out, process.returncode) == ("slept\n", 0), err


def test_it_runs_on_uvloop_beside_a_busy_server_of_grpc() -> None:
    """With processes that are started by uvloop itself, one in fifty crashed."""
    serve = """
    import grpc, threading
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    call = grpc.insecure_channel(f"127.0.0.1:{port}").unary_unary("/nobody/Nothing")
    done = threading.Event()
    def keep_busy():
        while not done.is_set():
            try:
                call(b"")
            except grpc.RpcError:
                pass
    threads = [threading.Thread(target=keep_busy) for _ in range(2)]
    for thread in threads:
        thread.start()
"""
    body = """
from collections import Counter
from snakepit_bridge.tools import processes as module
python, sys.executable = sys.executable, "/bin/true"
print(dict(Counter(module._start(0).wait() for _ in range(300))))
sys.executable = python
running = asyncio.create_task(give(processes, 'sleep', seconds=60))
await asyncio.sleep(0)
running.cancel()
print(await give(processes, 'add', a=1))
done.set()
for thread in threads:
    await asyncio.to_thread(thread.join)
await server.stop(None)
"""
    with parent(body, serve, "import uvloop; uvloop.run") as process:
        out, err = process.communicate(timeout=100)
    assert out.splitlines() == ["{0: 300}", "2"], err
    assert process.returncode == 0


def execute(session: Session, tool: str, **arguments: object) -> Any:  # noqa: ANN401 - stubs have no types
    parameters = {
        name: AnyMessage.FromString(encode_result(argument).any)
        for name, argument in arguments.items()
    }
    return session.call("ExecuteTool", tool_name=tool, parameters=parameters)


def test_the_bridge_says_which_call_changed_what(tmp_path: Path) -> None:
    with BridgeProcess(tmp_path / "bridge.db", "--adapter", TOOLS) as bridge:
        session = Session(bridge, "stamped")
        session.register("x", 1)
        answer = execute(session, "set_and_get", name="x", value=2)
        assert answer.success, answer.error_message
        newest = session.history("x").entries[0]
        assert newest.changed_by == "tool:set_and_get"
        assert newest.tool_call_id == answer.tool_call_id != ""
        answer = execute(session, "exits_at_once", code=3)
        assert not answer.success
        assert "exited with code 3" in answer.error_message
        assert bridge.stop() == 0


def test_a_call_that_is_over_changes_nothing(session: Session) -> None:
    session.register("x", 1)
    over = frames.Job(
        session_id=session.id, tool="set_and_get", call_id="over", port=session.bridge.port
    )
    with RemoteToolSession(over, None) as context:
        assert context.get_variable("x") is not None
        with pytest.raises(FailedPrecondition, match="'over' of 'tool:set_and_get' is over"):
            context.set_variable("x", 2)
    assert session.get("x").version == 1
