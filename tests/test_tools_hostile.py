"""Tools that raise, print, hang, die or give too much: their caller hears of it, nobody else does.

A bridge lives through each of them, stops within the two seconds that Snakepit gives it, and its
log says how each call ended.
"""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from snakepit_bridge import bridge_service_pb2 as pb
from tests.bridge_process import BridgeProcess
from tests.hostile import AT_ONCE, MIB, SLACK, memory_of
from tests.raw_http2 import RawClient
from tests.test_error_table import Fault, fault_of
from tests.tool_client import TOOLS, ToolSession, entries, runs_in, value_of
from tests.watches import wait_until
from tests.wire_session import refused
from tests.wire_tools import RAISED, note

STOPPED = 2.0
"""Seconds after SIGTERM at which Snakepit kills."""

SLOWNESS = 3.0
"""Times that a machine that does much else may take longer."""


class Bench:
    """A bridge with tools, and the files through which these are told and tell."""

    def __init__(self, directory: Path, *arguments: str, tools: Sequence[str] = TOOLS) -> None:
        self.path = directory / "bridge.db"
        self.runs = directory / "runs"
        self.go = directory / "go"
        self.bridge = BridgeProcess(self.path, *tools, *arguments)
        self.session = ToolSession(self.bridge, "session")
        self.session.start()

    @property
    def files(self) -> dict[str, object]:
        """Arguments of a tool that waits for one of them."""
        return {"runs": str(self.runs), "go": str(self.go)}

    @property
    def told(self) -> list[str]:
        return self.runs.read_text().splitlines() if self.runs.exists() else []

    def running(self, count: int = 1) -> None:
        """Wait until so many runs have begun."""
        wait_until(lambda: len(self.told) >= count, "the tool runs")

    def let_go(self) -> None:
        note(str(self.go), "go")

    def stop(self) -> float:
        """Ask to stop, with all calls open; gives how many seconds that took."""
        began = time.monotonic()
        self.bridge.process.send_signal(signal.SIGTERM)
        try:
            assert self.bridge.process.wait(AT_ONCE * SLOWNESS) == 0
        finally:
            self.let_go()
        return time.monotonic() - began

    @property
    def outcomes(self) -> list[str]:
        """Of all calls in the log; once the bridge is gone."""
        return [run.outcome for run in runs_in(entries(self.path, self.session.id)).values()]

    @property
    def tracebacks(self) -> list[str]:
        lines = self.bridge.stderr_lines
        return [line for line in lines if "Traceback" in line or " ERROR " in line]

    def close(self) -> None:
        self.let_go()
        if self.bridge.process.returncode is None:
            self.bridge.kill()
        else:
            self.bridge.stop()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A bridge that many tests use, so that each of them shows that it lived through the last."""
    bench = Bench(tmp_path_factory.mktemp("hostile"), "--max-message-size", "8MiB")
    yield bench
    assert bench.stop() < AT_ONCE
    bench.close()
    assert bench.tracebacks == []


@pytest.fixture(scope="module")
def raisers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Bench]]:
    """The bridge of the tests that raise: the last one of these, as long as it lives."""
    benches = [Bench(tmp_path_factory.mktemp("raising"))]
    yield benches
    for bench in benches:
        bench.close()


@pytest.fixture
def raiser(raisers: list[Bench], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A bridge that lives through the test, and inside of which nothing goes wrong."""
    if raisers[-1].bridge.process.poll() is not None:
        raisers.append(Bench(tmp_path_factory.mktemp("raising")))
    bench = raisers[-1]
    before = len(bench.tracebacks)
    yield bench
    assert bench.session.value("add", {"a": 1}) == 2
    assert len(bench.tracebacks) == before


def failure(response: pb.ExecuteToolResponse) -> tuple[str, str]:
    """Type and message of what a tool raised, as all forms of them say."""
    assert not response.success
    said = json.loads(response.error_message)
    about = dict(response.metadata)
    assert (said["type"], said["message"]) == (about["error_type"], about["error_message"])
    return said["type"], said["message"]


def stream_fault(call: Any) -> tuple[int, Fault]:  # noqa: ANN401 - stubs have no types
    """How a stream was refused, and after how many chunks."""
    count = 0
    try:
        for _ in call:
            count += 1
    except grpc.RpcError as error:
        return count, fault_of(error)
    raise AssertionError(f"it ended well after {count} chunks")


# Raising.

NAMES = {
    "subclass of BaseException": "_Group",
    "SystemExit without code": "SystemExit",
    "hostile __str__": "_Hostile",
    "exit in __str__": "_ExitsInStr",
    "text of its own": "_TextOfItsOwn",
    "long message": "ValueError",
    "surrogate": "ValueError",
    "zero byte": "ValueError",
    "long name": "XXXX",
}


@pytest.mark.parametrize("what", RAISED)
@pytest.mark.parametrize("tool", ["raises", "raises_async"])
def test_whatever_a_tool_raises_is_told(raiser: Bench, tool: str, what: str) -> None:
    response = raiser.session.run(tool, {"what": what}, timeout=AT_ONCE)
    kind, message = failure(response)
    if (tool, what) == ("raises_async", "StopIteration"):
        assert kind == "RuntimeError"  # which Python makes of it
    else:
        assert kind.startswith(NAMES.get(what, what))
    assert len(message.encode()) <= 4096
    assert len(response.SerializeToString()) < 128 * 1024


@pytest.mark.parametrize("what", RAISED)
@pytest.mark.parametrize("tool", ["raises_in_stream", "raises_in_async_stream"])
def test_whatever_a_stream_raises_is_told(raiser: Bench, tool: str, what: str) -> None:
    call = raiser.session.stream(tool, {"what": what}, timeout=AT_ONCE)
    count, fault = stream_fault(call)
    assert (count, fault.code, fault.reason) == (1, "INTERNAL", "TOOL_RAISED")
    assert f"'{tool}'" in fault.message


def test_an_exit_in_a_task_of_the_tools_own_ends_the_call_only(bench: Bench) -> None:
    assert failure(bench.session.run("exits_in_a_task", timeout=AT_ONCE))[0] == "SystemExit"
    assert bench.session.value("add", {"a": 1}) == 2
    assert bench.bridge.process.poll() is None


def test_a_tool_that_cancels_itself_has_raised(bench: Bench) -> None:
    response = bench.session.run("cancels_itself", timeout=AT_ONCE)
    assert failure(response)[0] == "CancelledError"
    bench.stop()
    bench.close()
    assert bench.outcomes == ["error"]


def test_a_recursion_without_end_is_an_error(shared: Bench) -> None:
    assert failure(shared.session.run("recurses"))[0] == "RecursionError"


# Giving.

NO_JSON = {
    "an object inside": "result['a'][2]['b'] is a <class 'object'>",
    "a circle": "contains itself",
    "without end": "nested deeper than",
    "a key": "keys that are not strings",
    "a surrogate": "result[0] must be a JSON value",
    "a class": "result is a <class 'type'>",
    "a set": "result is a <class 'set'>",
    "complex": "result is a <class 'complex'>",
    "huge": "more than 4300 digits",
}


@pytest.mark.parametrize("what", NO_JSON)
@pytest.mark.parametrize("tool", ["gives", "gives_async"])
def test_a_result_without_a_form_says_where_it_lies(shared: Bench, tool: str, what: str) -> None:
    kind, message = failure(shared.session.run(tool, {"what": what}))
    assert kind == "InvalidResult"
    assert NO_JSON[what] in message


@pytest.mark.parametrize("tool", ["large_text", "large_bytes"])
def test_a_result_beyond_the_limit_is_refused(shared: Bench, tool: str) -> None:
    for size in (7 * MIB, 1024 * MIB):
        kind, message = failure(shared.session.run(tool, {"size": size}))
        assert kind == "ResultTooLarge"
        assert str(6 * MIB) in message
    assert shared.session.run(tool, {"size": 5 * MIB}).success


@pytest.mark.parametrize("tool", ["large_chunk", "large_chunk_async"])
def test_a_chunk_beyond_the_limit_ends_the_stream(shared: Bench, tool: str) -> None:
    assert len(next(shared.session.stream(tool, {"size": 5 * MIB})).data) == 5 * MIB
    count, fault = stream_fault(shared.session.stream(tool, {"size": 7 * MIB}))
    assert (count, fault.code) == (0, "INTERNAL")
    assert str(6 * MIB) in fault.message


def test_metadata_of_a_chunk_that_is_no_text_is_the_tools_fault(bench: Bench) -> None:
    good = bench.session.stream("chunk_with_metadata", {"text": "\\u00e9"})
    assert dict(next(good).metadata) == {"k": "é"}
    count, fault = stream_fault(bench.session.stream("chunk_with_metadata", {"text": "\\ud800"}))
    assert (count, fault.reason) == (0, "TOOL_RAISED")
    assert "metadata" in fault.message
    bench.stop()
    bench.close()
    assert bench.tracebacks == []


# Printing.


def test_nothing_that_is_printed_reaches_stdout(bench: Bench) -> None:
    bench.session.value("prints", {"text": "HERE"})
    assert bench.session.run("prints", {"text": "GRPC_READY:1"}).success
    assert bench.session.run("prints_bytes", {"text": "as bytes HERE"}).success
    assert bench.session.run("prints_without_a_line", {"text": "without a line HERE"}).success
    bench.stop()
    assert bench.bridge.process.stdout is not None
    assert bench.bridge.process.stdout.read() == ""
    bench.close()
    ways = ("print", "write", "the first stdout", "os.write", "a program", "puts")
    for way in (*ways, "as bytes", "without a line"):
        assert any(f"{way} HERE" in line for line in bench.bridge.stderr_lines), way


def test_a_closed_stdout_harms_nobody(bench: Bench) -> None:
    assert bench.session.value("closes_stdout") == "closed"
    bench.session.register("x", "v" * 300_000, "string")
    assert bench.session.value("add", {"a": 1}) == 2
    assert bench.stop() < STOPPED * SLOWNESS


# Not returning.


def test_a_thread_that_hangs_keeps_nobody_else_waiting(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "--max-workers", "2", "--max-tool-calls", "3")
    try:
        hung = bench.session.begin("stuck", bench.files)
        bench.running()
        assert bench.session.value("add", {"a": 1}) == 2
        more = [bench.session.begin("stuck", bench.files) for _ in range(2)]
        bench.running(2)

        def is_full() -> bool:
            try:
                bench.session.run("add_async", {"a": 1})
            except grpc.RpcError as error:
                return error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            return False

        wait_until(is_full, "three calls run or wait")
        with refused("RESOURCE_EXHAUSTED", "3 calls", "--max-tool-calls"):
            bench.session.run("add", {"a": 1})
        for call in (hung, *more):
            call.cancel()
        assert bench.session.value("add_async", {"a": 1}) == 2
        assert bench.stop() < STOPPED * SLOWNESS
        assert bench.outcomes.count("cancelled") == 3
    finally:
        bench.close()


@pytest.mark.parametrize("ids", [False, True], ids=["without ids", "with ids"])
def test_no_more_calls_run_or_wait_than_may(tmp_path: Path, ids: bool) -> None:
    bench = Bench(tmp_path, "--max-workers", "2", "--max-tool-calls", "4")
    try:
        calls = [
            bench.session.begin("stuck", bench.files, request_id=f"{n}" if ids else "")
            for n in range(40)
        ]
        bench.running(2)
        wait_until(lambda: sum(call.done() for call in calls) >= 36, "all but four are refused")
        bench.let_go()
        codes = Counter(call.code().name for call in calls)
        assert codes == {"OK": 4, "RESOURCE_EXHAUSTED": 36}
    finally:
        bench.close()


def test_what_waited_for_a_thread_in_vain_is_forgotten(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "--max-workers", "1", "--record-tools", "off")
    try:
        hung = bench.session.begin("stuck", bench.files)
        bench.running()
        before = memory_of(bench.bridge.process.pid).now
        for _ in range(40):
            ballast = {"ballast": bytes(4 * MIB)}
            with refused("DEADLINE_EXCEEDED"):
                bench.session.run("stuck", bench.files, timeout=0.5, binary_parameters=ballast)
        assert memory_of(bench.bridge.process.pid).now < before + SLACK
        # A stream waits in another way.
        with pytest.raises(grpc.RpcError):
            list(bench.session.stream("count_to", {"to": 1}, timeout=0.5))
        bench.let_go()
        assert value_of(hung.result()) == 0
        assert bench.session.value("add", {"a": 1}) == 2
        bench.stop()
        bench.close()
        assert bench.tracebacks == []
        assert Counter(bench.outcomes) == {"timeout": 41, "ok": 2}
    finally:
        bench.close()


HANGING = (
    "stuck",
    "does_not_let_go",
    "stuck_in_to_thread",
    "leaves_a_thread",
    "count_run_async",
    "count_run_isolated",
)


@pytest.mark.parametrize("tool", HANGING)
@pytest.mark.parametrize("gone", [False, True], ids=["awaited", "left"])
def test_a_bridge_stops_whatever_a_tool_does(bench: Bench, tool: str, gone: bool) -> None:
    call = bench.session.begin(tool, bench.files)
    bench.running()
    if tool == "leaves_a_thread":
        assert call.result().success
    elif gone:
        call.cancel()
    assert bench.stop() < STOPPED * SLOWNESS
    if tool == "leaves_a_thread":
        assert bench.outcomes == ["ok"]
    elif gone:
        assert bench.outcomes in (["cancelled"], ["interrupted"])
    else:
        assert fault_of(call).code == "UNAVAILABLE"
        assert "stopped while the tool ran" in call.details()
        assert bench.outcomes == ["interrupted"]


@pytest.mark.parametrize(
    "tool", ["holding_stream", "holding_stream_isolated", "tidies_up_slowly", "for_ever"]
)
def test_a_bridge_stops_in_the_middle_of_a_stream(bench: Bench, tool: str) -> None:
    files = {"runs": str(bench.runs)} if tool == "for_ever" else bench.files
    call = bench.session.stream(tool, files)
    next(call)
    bench.running()
    assert bench.stop() < STOPPED * SLOWNESS
    _, fault = stream_fault(call)
    assert (fault.code, fault.reason) == ("UNAVAILABLE", "UNAVAILABLE")
    assert bench.outcomes == ["interrupted"]


def test_a_bridge_stops_when_tidying_up_finds_no_thread(tmp_path: Path) -> None:
    adapter = ("--adapter", "tests.wire_tools.TidiesUp")
    bench = Bench(tmp_path, "--max-workers", "1", tools=adapter)
    try:
        call = bench.session.begin("stuck", bench.files)
        bench.running()
        assert bench.stop() < STOPPED * SLOWNESS
        assert fault_of(call).code == "UNAVAILABLE"
        assert bench.outcomes == ["interrupted"]
    finally:
        bench.close()


@pytest.mark.parametrize(
    ("tool", "tools"),
    [
        ("does_not_let_go", TOOLS),
        ("stuck", TOOLS),
        ("stuck", ("--adapter", "tests.wire_tools.TidiesUp")),
    ],
    ids=["async", "thread", "thread of an adapter"],
)
def test_a_call_that_is_left_is_closed_at_once(
    tmp_path: Path, tool: str, tools: Sequence[str]
) -> None:
    """Whether or not the tool ends."""
    bench = Bench(tmp_path, "--max-workers", "1", tools=tools)
    try:
        call = bench.session.begin(tool, bench.files)
        bench.running()
        call.cancel()
        wait_until(lambda: bench.session.head == 3, "its end is written", AT_ONCE)
        late = bench.session.begin(tool, bench.files, timeout=1, request_id="once")
        assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        wait_until(lambda: bench.session.head == 5, "the end of this one is, too", AT_ONCE)
        with refused("FAILED_PRECONDITION", "'once'", "timeout"):
            bench.session.run(tool, bench.files, timeout=AT_ONCE, request_id="once")
    finally:
        bench.close()


# Sessions that end meanwhile.


def test_a_call_belongs_to_the_log_that_it_began_in(bench: Bench) -> None:
    """A session that is cleaned up and begun anew while calls come leaves no call open."""
    for _ in range(100):
        end = bench.bridge.stub.CleanupSession.future(
            pb.CleanupSessionRequest(session_id="session"), timeout=AT_ONCE
        )
        calls = [bench.session.begin("add", {"a": 1}) for _ in range(3)]
        end.result()
        for call in calls:
            assert value_of(call.result()) == 2
    bench.stop()
    assert set(bench.outcomes) <= {"ok", "interrupted"}


# Crowds and sizes.


def test_thousands_of_calls_at_once(shared: Bench) -> None:
    calls = [
        shared.session.begin(tool, {"a": n}, request_id=f"{tool} {n}" if n % 2 else "")
        for n in range(1_000)
        for tool in ("add", "add_async")
    ]
    codes = Counter(call.code().name for call in calls)
    assert set(codes) <= {"OK", "RESOURCE_EXHAUSTED"}
    assert codes["OK"] >= 1_000
    results = [value_of(call.result()) for call in calls if call.code() is grpc.StatusCode.OK]
    assert set(results) <= set(range(1, 1_001))
    assert shared.session.value("add", {"a": 1}) == 2


def test_too_many_parameters_are_refused(shared: Bench) -> None:
    with refused("INVALID_ARGUMENT", "10000 parameters", "1000"):
        shared.session.run("anything", {str(number): 1 for number in range(10_000)})
    assert shared.session.value("anything", {str(number): 1 for number in range(1_000)}) == 1_000


def test_a_deadline_beyond_all_clocks_is_none(bench: Bench) -> None:
    request = bench.session.request("add", {"a": 1}).SerializeToString()
    with RawClient(bench.bridge.port) as client:
        client.begin("/snakepit.bridge.BridgeService/ExecuteTool", [("grpc-timeout", b"99999999H")])
        client.body(b"\0" + len(request).to_bytes(4, "big") + request)
        assert client.closing().status == 0


# Processes of their own.


@pytest.mark.parametrize(
    ("tool", "kind", "words"),
    [
        ("exits_isolated", "SystemExit", "7"),
        ("exits_at_once_isolated", "WorkerDied", "exited with code 8"),
        ("segfaults_isolated", "WorkerDied", "killed by SIGSEGV"),
        ("kills_itself_isolated", "WorkerDied", "killed by SIGKILL"),
    ],
)
def test_the_death_of_a_worker_is_a_failure(
    shared: Bench, tool: str, kind: str, words: str
) -> None:
    found, message = failure(shared.session.run(tool))
    assert found == kind
    assert words in message
    assert shared.session.value("add_isolated", {"a": 1}) == 2


def test_an_isolated_loop_ends_with_its_time(bench: Bench) -> None:
    with refused("DEADLINE_EXCEEDED", "'spins_isolated'", "0.5 s"):
        bench.session.run("spins_isolated", {"runs": str(bench.runs)})
    assert bench.session.value("add_isolated", {"a": 1}) == 2
    if bench.told:  # it may not have come so far, as starting a process takes time as well
        pid = bench.told[0].split()[1]
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the loop is killed")
    bench.stop()
    assert bench.outcomes == ["timeout", "ok"]
