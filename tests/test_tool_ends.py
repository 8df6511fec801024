"""Ends of calls: each is written, once, before whoever waits is told, whoever left meanwhile.

What depends on one moment is shown inside this process, where the log and the way to it stop when
they are told to; what a client sees, over a socket.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge import tool_calls, wire
from snakepit_bridge.bridge_servicer import BridgeServicer
from snakepit_bridge.commands import InitializeSession, StartTool
from snakepit_bridge.decide import decider, recall
from snakepit_bridge.errors import (
    BridgeError,
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    ResourceExhausted,
)
from snakepit_bridge.events.committer import Committer
from snakepit_bridge.events.gate import Gate
from snakepit_bridge.events.memory import MemoryLog
from snakepit_bridge.events.model import Envelope
from snakepit_bridge.events.reading import fold
from snakepit_bridge.observers import Dispatcher
from snakepit_bridge.telemetry.metrics import Metrics
from snakepit_bridge.telemetry.stream import TelemetryStream
from snakepit_bridge.telemetry.tool_calls import ToolObserver
from snakepit_bridge.tool_calls import Calls
from snakepit_bridge.tool_methods import Tools
from snakepit_bridge.tool_session import ToolServices
from snakepit_bridge.tools.adapters import load_toolbox
from snakepit_bridge.tools.processes import Processes
from snakepit_bridge.tools.runner import Runner
from tests.direct import Direct
from tests.hosted_tools import HOSTILE
from tests.hostile import MIB
from tests.test_append_failures import BEFORE, FailingLog
from tests.test_tools_hostile import Bench, failure
from tests.tool_client import ToolSession, as_elixir_writes, entries
from tests.wire_session import TIMEOUT, as_duplicate
from tests.wire_tools import note

TOOLS = ("--adapter", "tests.hosted_tools")

MANY = 1_000
"""Failures, of an engine that is out of order until it is told otherwise."""

TURNS = 8
"""Of an event loop: more than anything takes that waits for nothing but the loop."""


class HeldGate(Gate):
    """A gate that keeps the outcomes of starts back, as a busy loop might."""

    def __init__(self, committer: Committer, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(committer, loop, 512 * MIB)
        self.holding = False
        self.held: list[tuple[asyncio.Future[Any], asyncio.Future[Any]]] = []

    def submit(self, task: Any, size: int = 0) -> asyncio.Future[Any]:  # noqa: ANN401 - any task
        outcome = super().submit(task, size)
        if not self.holding or not isinstance(task.command(), StartTool):
            return outcome
        seen: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.held.append((outcome, seen))
        return seen


class Stop:
    """Stops each append of an engine before anything is stored, until it is let go."""

    def __init__(self, engine: FailingLog) -> None:
        self._reached = threading.Semaphore(0)
        self._let_go = threading.Semaphore(0)
        engine.appending = self._append

    def _append(self) -> None:
        self._reached.release()
        assert self._let_go.acquire(timeout=TIMEOUT)

    async def reached(self) -> None:
        assert await asyncio.to_thread(self._reached.acquire, timeout=TIMEOUT)

    def let_go(self) -> None:
        """Have the append that stopped go on; the next one stops again."""
        self._let_go.release()

    def end(self) -> None:
        """Stop nothing any more."""
        self._let_go.release(MANY)


class Host:
    """The methods of tools on the loop of a test, above an engine that fails as it is told."""

    def __init__(self, directory: Path) -> None:
        loop = asyncio.get_running_loop()
        self.runs = directory / "runs"
        self.go = directory / "go"
        self.engine = FailingLog(MemoryLog())
        self.committer = Committer(self.engine, decider(), recall)
        self.committer.start()
        self.gate = HeldGate(self.committer, loop)
        self.dispatcher = Dispatcher(self.committer)
        services = ToolServices(self.committer, self.dispatcher, None, loop)
        self.runner = Runner(loop, Processes(1, lambda: 0, max_size=MIB), threads=2, max_size=MIB)
        self.calls = Calls(
            services,
            self.runner,
            self.gate,
            TelemetryStream(),
            record="full",
            observer=ToolObserver(Metrics([], ["hosted"]), None),
        )
        toolbox = load_toolbox(["tests.hosted_tools"])
        self.tools = Tools(toolbox, self.calls, max_calls=MANY)
        self.servicer = BridgeServicer(
            self.committer, self.gate, {}, self.tools.ending, max_message_bytes=MIB
        )
        self.stop: Stop | None = None
        self.complaints: list[str] = []
        """Of the loop, such as exceptions that nobody retrieved."""
        loop.set_exception_handler(lambda _, about: self.complaints.append(str(about)))

    @property
    def files(self) -> dict[str, object]:
        return {"runs": str(self.runs), "go": str(self.go)}

    def begin(
        self, tool: str, arguments: Mapping[str, object] | None = None, request_id: str = ""
    ) -> asyncio.Task[pb.ExecuteToolResponse]:
        given = {name: as_elixir_writes(value) for name, value in (arguments or {}).items()}
        raw = pb.ExecuteToolRequest(
            session_id="s", tool_name=tool, parameters=given, request_id=request_id
        ).SerializeToString()

        async def execute() -> pb.ExecuteToolResponse:
            answer = await self.tools.execute_tool(wire.Call(raw, ()))
            return pb.ExecuteToolResponse.FromString(answer)

        return asyncio.create_task(execute())

    async def clean_up(self) -> None:
        raw = pb.CleanupSessionRequest(session_id="s", force=True).SerializeToString()
        await self.servicer.cleanup_session(wire.Call(raw, ()))

    def stop_appends(self) -> Stop:
        self.stop = Stop(self.engine)
        return self.stop

    @property
    def open(self) -> int:
        """Calls that the log has open."""
        log = self.committer.peek("s")
        return 0 if log is None else len(log.committed.calls)

    @property
    def told(self) -> list[str]:
        return self.runs.read_text().splitlines() if self.runs.exists() else []

    @property
    def outcomes(self) -> list[str]:
        """Of the calls that ended, as the log has them."""
        log = self.committer.peek("s")
        assert log is not None
        return [
            body.outcome
            for transaction in fold(self.engine.inner, log.id)
            for kind, body in transaction.facts
            if kind == "tool_finished"
        ]

    @property
    def unwritten(self) -> int:
        """Ends that wait until the log takes them."""
        return len(self.calls._unwritten)

    async def close(self) -> None:
        note(str(self.go), "go")
        if self.stop is not None:
            self.stop.end()
        self.calls.give_up()
        await self.runner.close()
        self.dispatcher.close(wait=True)
        await asyncio.to_thread(self.committer.close)


@asynccontextmanager
async def hosting(directory: Path) -> AsyncIterator[Host]:
    """A host whose session has begun."""
    host = Host(directory)
    try:
        assert (await host.begin("tells", {"runs": str(directory / "first")})).success
        yield host
    finally:
        await host.close()
    assert host.engine.broken_rules == []


async def until(done: Callable[[], object], what: str) -> None:
    """Ask again and again, until a deadline."""
    try:
        async with asyncio.timeout(TIMEOUT):
            while not done():  # noqa: ASYNC110 - of other threads, and of files
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"not within {TIMEOUT:g} s: {what}") from None


async def turn(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have ends that could not be written tried again at once."""
    monkeypatch.setattr(tool_calls, "RETRY", 0.01)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path, tools=TOOLS)
    yield bench
    bench.close()


# Ends that the log does not take.


@pytest.mark.parametrize("id_", ["", "id"], ids=["without an id", "with an id"])
@pytest.mark.usefixtures("soon")
async def test_an_end_that_fails_after_its_client_left_is_written_later(
    tmp_path: Path, id_: str
) -> None:
    async with hosting(tmp_path) as host:
        call = host.begin("waits", host.files, id_)
        await until(lambda: host.told and host.open, "the tool runs, and its start is written")
        stop = host.stop_appends()
        host.engine.failures.append(BEFORE)
        note(str(host.go), "go")
        await stop.reached()
        call.cancel()
        await asyncio.wait((call,))
        assert call.cancelled()
        stop.end()
        await until(lambda: not host.open, "the end is written")
        assert host.outcomes == ["ok", "ok"]
        await until(lambda: not host.unwritten, "nothing is tried again")
        gc.collect()
        await turn(TURNS)
        assert host.complaints == []


@pytest.mark.usefixtures("soon")
async def test_no_end_is_tried_again_for_a_call_whose_start_was_refused(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host:
        host.engine.failures.extend([BEFORE] * MANY)
        for _ in range(30):
            call = host.begin("waits", {**host.files, "result": "x" * 50_000})
            with pytest.raises(BridgeError, match="disk is full"):
                await asyncio.wait_for(call, TIMEOUT)
            assert host.unwritten == 0
        # Neither where it ended before its start was refused.
        note(str(host.go), "go")
        stop = host.stop_appends()
        calls = [host.begin("waits", {**host.files, "result": "x" * 50_000}) for _ in range(30)]
        await stop.reached()
        await until(lambda: len(host.calls.running) == len(calls), "all of them run")
        stop.end()
        await asyncio.wait(calls)
        assert {type(call.exception()) for call in calls} == {ResourceExhausted}
        await turn(TURNS)
        assert host.unwritten == 0
        host.engine.failures.clear()
        assert (await host.begin("waits", host.files)).success
        assert host.outcomes == ["ok", "ok"]
        gc.collect()
        await turn(TURNS)
        assert host.complaints == []


@pytest.mark.usefixtures("soon")
async def test_ends_that_wait_for_the_log_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, many = 5, 20
    monkeypatch.setattr(tool_calls, "MAX_UNWRITTEN", few)
    async with hosting(tmp_path) as host:
        calls = [host.begin("waits", host.files, f"id {number}") for number in range(many)]
        await until(lambda: len(host.told) == host.open == many, "they run")
        host.engine.failures.extend([BEFORE] * MANY)
        note(str(host.go), "go")
        await asyncio.wait(calls)
        assert {type(call.exception()) for call in calls} == {ResourceExhausted}
        await turn(TURNS)
        assert host.unwritten == few
        host.engine.failures.clear()
        await until(lambda: not host.unwritten, "the log takes them")
        assert host.open == many - few
    # The next start of a bridge closes the others.
    with Direct(host.engine.inner) as direct:
        direct.ask(InitializeSession(Envelope("s")))
        assert not direct.loaded("s").committed.calls
        log = direct.loaded("s").id
        ends = [
            body.outcome
            for transaction in fold(host.engine.inner, log)
            for kind, body in transaction.facts
            if kind == "tool_finished"
        ]
    assert ends == ["ok"] * (1 + few) + ["interrupted"] * (many - few)


# Retries.


@pytest.mark.parametrize("turns", range(TURNS))
@pytest.mark.parametrize("first", ["the retry", "the leaving"])
async def test_a_retry_that_comes_as_the_last_one_leaves_is_answered(
    tmp_path: Path, first: str, turns: int
) -> None:
    async with hosting(tmp_path) as host:
        call = host.begin("waits", host.files, "id")
        await until(lambda: host.told, "the tool runs")
        host.gate.holding = True
        retry = host.begin("waits", host.files, "id")
        await until(lambda: host.gate.held and host.gate.held[0][0].done(), "it is known")
        host.gate.holding = False
        ((outcome, seen),) = host.gate.held
        if first == "the retry":
            seen.set_result(outcome.result())
            await turn(turns)
            call.cancel()
        else:
            call.cancel()
            await turn(turns)
            seen.set_result(outcome.result())
        await asyncio.wait((call,))
        # It waits for the same run, which then goes on, or is refused at once.
        await turn(TURNS)
        refused = retry.done()
        note(str(host.go), "go")
        await asyncio.wait((retry,), timeout=TIMEOUT)
        assert retry.done()
        assert not retry.cancelled()
        if refused:
            assert isinstance(retry.exception(), FailedPrecondition)
        else:
            assert retry.result().success
            assert retry.result().duplicate
        if turns == TURNS - 1:
            assert refused == (first == "the leaving")
        await until(lambda: not host.open, "the end is written")
        assert host.outcomes == ["ok", "cancelled" if refused else "ok"]
        assert host.told == ["run"]


# A session that ends.


def test_a_call_beside_a_cleanup_by_force_ends_in_its_log_or_not_at_all(bench: Bench) -> None:
    succeeded: dict[str, pb.ExecuteToolResponse] = {}
    note(str(bench.go), "go")  # none holds
    for number in range(40):
        session = ToolSession(bench.bridge, f"session {number}")
        session.start()
        call = session.begin("waits", bench.files, request_id="id")
        session.end(force=True)
        if call.exception() is None:
            succeeded[session.id] = call.result()
        else:
            assert call.code() is grpc.StatusCode.CANCELLED, call.details()
    bench.stop()
    bench.close()
    for session_id, response in succeeded.items():
        log = entries(bench.path, session_id)
        ends = [entry for entry in log if entry.kind == "tool_finished"]
        assert [(end.offset, end.body.outcome) for end in ends] == [(response.offset, "ok")]


async def test_a_call_that_is_started_together_with_a_cleanup_by_force_never_runs(
    tmp_path: Path,
) -> None:
    async with hosting(tmp_path) as host:
        host.gate.holding = True
        call = host.begin("waits", host.files, "id")
        await until(lambda: host.gate.held, "its start is on its way")
        await host.clean_up()
        ((outcome, seen),) = host.gate.held
        seen.set_result(outcome.result())
        with pytest.raises(Cancelled):
            await call
        assert host.told == []
        assert host.open == 0
        assert host.outcomes[-1] != "ok"


async def test_a_call_that_starts_while_a_cleanup_by_force_is_written_is_left(
    tmp_path: Path,
) -> None:
    async with hosting(tmp_path) as host:
        stop = host.stop_appends()
        call = host.begin("waits", host.files, "id")
        await stop.reached()  # with the start
        ending = asyncio.create_task(host.clean_up())
        await turn(TURNS)
        stop.let_go()
        await stop.reached()  # with the end of the session
        await until(lambda: host.told, "the tool runs, as the session lives")
        stop.end()
        await ending
        note(str(host.go), "go")
        with pytest.raises(Cancelled, match="cleaned up by force"):
            await call


# A tool's own time.


@pytest.mark.parametrize("id_", ["", "id"], ids=["without an id", "with an id"])
@pytest.mark.parametrize("tool", ["late", "late_async"])
async def test_whoever_hears_of_a_timeout_finds_it_in_the_log(
    tmp_path: Path, tool: str, id_: str
) -> None:
    async with hosting(tmp_path) as host:
        call = host.begin(tool, host.files, id_)
        await until(lambda: host.told and host.open, "the tool runs, and its start is written")
        stop = host.stop_appends()
        await stop.reached()  # with the end
        await turn(TURNS)
        assert not call.done()
        stop.end()
        with pytest.raises(DeadlineExceeded):
            await call
        assert host.outcomes == ["ok", "timeout"]


@pytest.mark.parametrize("id_", ["", "id"], ids=["without an id", "with an id"])
@pytest.mark.parametrize("tool", ["late", "late_async", "late_stream"])
def test_a_timeout_that_a_client_heard_of_outlives_the_bridge(
    bench: Bench, tool: str, id_: str
) -> None:
    def run() -> object:
        if tool == "late_stream":
            return list(bench.session.stream(tool, bench.files, request_id=id_))
        return bench.session.run(tool, bench.files, request_id=id_)

    with pytest.raises(grpc.RpcError) as caught:
        run()
    bench.bridge.process.kill()
    bench.bridge.process.wait()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "took longer than the 0.3 s" in (caught.value.details() or "")
    assert bench.outcomes == ["timeout"]


# Results.


@pytest.mark.parametrize(
    ("tool", "what"),
    [*(("gives_hostile_async", what) for what in HOSTILE), ("gives_hostile", "a released view")],
)
def test_a_result_that_raises_is_a_failure_of_its_tool(bench: Bench, tool: str, what: str) -> None:
    arguments = {"runs": str(bench.runs), "what": what}
    first = bench.session.run(tool, arguments, request_id="id")
    assert failure(first)[0] == HOSTILE[what]
    assert bench.session.run(tool, arguments, request_id="id") == as_duplicate(first)
    assert bench.told == ["run"]
    bench.stop()
    bench.close()
    assert bench.outcomes == ["error"]
    assert bench.tracebacks == []
