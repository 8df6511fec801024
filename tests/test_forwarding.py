"""Workers before one shared bridge: whoever asks through a worker is answered as there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge import bridge_service_pb2_grpc as stubs
from snakepit_bridge.forwarding import FORWARDED
from snakepit_bridge.observation import CORRELATION_HEADER
from tests.bridge_process import UNLIMITED, BridgeProcess
from tests.test_error_table import MALFORMED, ROWS, Row, Table, message_of, raw_call
from tests.test_frozen_client import (
    OldClient,
    batches,
    begins,
    ends,
    lists,
    looks_back,
    registers,
    sets,
)
from tests.test_frozen_contract import FIRST_OF_OURS
from tests.tool_client import TOOLS, ToolSession, entries, entries_now, runs_in, value_of
from tests.watches import at_head, bookmark_of, outline, wait_until, watch
from tests.wire_session import TIMEOUT, Session, as_duplicate, packed, plain, refused

FAR_TOOLS = (*TOOLS, "--adapter", "tests.far_tools")

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACED = (
    ("traceparent", TRACE),
    ("tracestate", "vendor=1"),
    ("x-snakepit-correlation-id", "corr-1"),
)


def worker_of(shared: BridgeProcess, *arguments: str, log: Path | str = "memory:") -> BridgeProcess:
    return BridgeProcess(log, "--bridge", f"127.0.0.1:{shared.port}", *arguments)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BridgeProcess]:
    with BridgeProcess(tmp_path_factory.mktemp("shared") / "bridge.db", *TOOLS) as process:
        yield process
        assert process.stop() == 0


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the first worker."""
    return tmp_path_factory.mktemp("worker") / "worker.db"


@pytest.fixture(scope="module")
def workers(shared: BridgeProcess, log: Path) -> Iterator[Sequence[BridgeProcess]]:
    first = worker_of(shared, *FAR_TOOLS, log=log)
    with first, worker_of(shared) as second:
        yield first, second
        assert (first.stop(), second.stop()) == (0, 0)


@pytest.fixture
def here(workers: Sequence[BridgeProcess], request: pytest.FixtureRequest) -> ToolSession:
    """A session, asked for at the worker that has tools."""
    return ToolSession(workers[0], request.node.name)


@pytest.fixture
def there(workers: Sequence[BridgeProcess], request: pytest.FixtureRequest) -> Session:
    """The same at another worker."""
    return Session(workers[1], request.node.name)


@pytest.fixture
def itself(shared: BridgeProcess, request: pytest.FixtureRequest) -> Session:
    """The same at the shared bridge."""
    return Session(shared, request.node.name)


# Sessions and variables.


def test_what_is_set_through_one_worker_is_watched_through_another(
    here: Session, there: Session, itself: Session
) -> None:
    here.register("x")
    with at_head(there, "x", include_initial_values=True) as watched, at_head(itself) as direct:
        answer = here.call("SetVariable", TRACED, variable_identifier="x", value=packed(2))
        (change,) = watched.take(1)
        assert outline([change]) == [("value_change", answer.offset, "x", 2)]
        assert (change.correlation_id, change.traceparent) == ("corr-1", TRACE)
        assert change == direct.next()
        here.end()
        assert watched.rest() == direct.rest() == []


def test_headers_come_before_the_first_update(there: Session, here: Session) -> None:
    here.start()
    with watch(there) as watched:
        watched.call.initial_metadata()  # else this waits until its deadline


def test_a_watch_goes_on_at_another_worker(here: Session, there: Session, itself: Session) -> None:
    here.register("x")
    with at_head(here) as watched:
        here.set("x", 2)
        bookmark = bookmark_of(watched.next())
    here.set("x", 3)
    with watch(there, **bookmark.fields) as watched, watch(itself, **bookmark.fields) as direct:
        assert watched.next() == direct.next()


def test_an_answer_is_the_one_of_the_shared_bridge(here: Session, itself: Session) -> None:
    here.register("x", request_id="one")
    first = here.set("x", 2, request_id="two", expected_version=1)
    assert itself.set("x", 2, request_id="two", expected_version=1) == as_duplicate(first)
    for method, fields in {
        "GetVariable": {"variable_identifier": "x", "min_offset": first.offset},
        "GetVariables": {"variable_identifiers": ["x", "y"]},
        "ListVariables": {"page_size": 1},
        "GetVariableHistory": {"variable_identifier": "x"},
        "SetVariables": {"updates": {"x": packed(3)}, "request_id": "three"},
        "StartOptimization": {"variable_identifier": "x", "optimizer_id": "o", "request_id": "4"},
        "StopOptimization": {"variable_identifier": "x", "force": True, "request_id": "5"},
        "RollbackVariable": {"variable_identifier": "x", "target_version": 1, "request_id": "6"},
        "DeleteVariable": {"variable_identifier": "x", "request_id": "7"},
    }.items():
        answer, direct = here.call(method, **fields), itself.call(method, **fields)
        assert direct == (as_duplicate(answer) if "request_id" in fields else answer), method


def test_a_large_value_comes_and_goes(here: Session, there: Session, shared: BridgeProcess) -> None:
    numbers = list(range(1_000_000))
    here.register("x", {"shape": [len(numbers)], "data": numbers}, "tensor")
    channel = grpc.insecure_channel(f"127.0.0.1:{there.bridge.port}", options=UNLIMITED)
    with channel, at_head(there, "x", include_initial_values=True, on=channel) as watched:
        here.set("x", {"shape": [1], "data": [1]}, "tensor")
        assert plain(watched.next().variable.value) == {"shape": [1], "data": [1]}


def test_a_session_has_the_tools_of_the_worker(
    here: ToolSession, there: Session, itself: Session
) -> None:
    here.call("RegisterTools", tools=[{"name": "elsewhere"}], worker_id="worker 1")
    before = here.start(metadata={"k": "v"})
    assert {"add", "elsewhere", "everything"} <= before.available_tools.keys()
    assert not before.initial_variables
    here.register("x")
    again, direct = here.start(), itself.start()
    assert again.initial_variables == direct.initial_variables
    assert (again.offset, again.log_epoch) == (direct.offset, direct.log_epoch)
    assert "everything" not in direct.available_tools
    # What the shared bridge runs itself is listed there, and so is it here.
    assert direct.available_tools.keys() == there.start().available_tools.keys()

    known, direct_known = here.call("GetSession"), itself.call("GetSession")
    assert known.tool_count == len(again.available_tools)
    assert there.call("GetSession").tool_count == 0
    known.tool_count = direct_known.tool_count
    assert known == direct_known
    assert dict(known.metadata) == {"k": "v"}


def test_ping_tells_of_the_tools_of_the_worker(workers: Sequence[BridgeProcess]) -> None:
    request = pb.PingRequest(message="hello", include_tools=True)
    first, second = (worker.stub.Ping(request, timeout=TIMEOUT) for worker in workers)
    assert "everything" in first.tools
    assert not second.tools


def test_a_heartbeat_is_that_of_the_session(here: ToolSession, there: Session) -> None:
    assert not here.lives
    there.start()
    assert here.lives
    there.end()
    assert not here.lives


def test_a_session_in_which_a_tool_ran_is_valid(here: ToolSession) -> None:
    """Whoever launched the worker for its tools ends it else."""
    here.run("add", {"a": 1})
    assert here.lives
    here.end()
    assert not here.lives


def test_the_end_of_a_session_ends_what_runs_for_it(
    here: ToolSession, itself: Session, tmp_path: Path
) -> None:
    runs, go = tmp_path / "runs", tmp_path / "go"
    itself.start()
    call = here.begin("count_run", {"runs": str(runs), "go": str(go)})
    wait_until(runs.exists, "the tool runs")
    answer = here.end(force=True, request_id="end")
    assert answer.resources_cleaned == 1
    with refused("CANCELLED", "cleaned up by force"):
        call.result()
    go.touch()
    assert not itself.lives

    assert here.end(force=True, request_id="end") == as_duplicate(answer)
    assert not here.lives


# Tools.

WAYS = ("", "_async", "_isolated")


@pytest.mark.parametrize("way", WAYS)
def test_what_a_tool_sets_is_seen_as_its_own(
    way: str, here: ToolSession, there: Session, log: Path
) -> None:
    there.register("x")
    tool = f"set_variable{way}"
    with at_head(there, "x") as watched:
        answer = here.run(tool, {"name": "x", "value": 7}, TRACED)
        assert value_of(answer) == 2
        change = watched.next()
    assert outline([change]) == [("value_change", change.offset, "x", 7)]
    assert change.update_source == f"tool:{tool}"
    assert (change.traceparent, change.correlation_id) == (TRACE, "corr-1")
    assert change.tool_call_id == ""  # of a call in another log
    assert change.variable.source == pb.Variable.PYTHON
    (entry,) = there.history("x", limit=1).entries
    assert entry.changed_by == f"tool:{tool}"


@pytest.mark.parametrize("way", WAYS)
def test_a_tool_begins_the_session_that_it_is_the_first_to_use(
    way: str, here: ToolSession, itself: Session
) -> None:
    assert here.value(f"reads{way}") == {}
    assert itself.lives
    itself.register("x", 3)
    assert here.value(f"reads{way}") == {"x": 3}


def test_a_session_that_was_only_looked_at_is_not_begun_again_either(
    here: ToolSession, itself: Session, tmp_path: Path
) -> None:
    looked, go = tmp_path / "looked", tmp_path / "go"
    itself.start()
    call = here.begin("looks_and_registers", {"looked": str(looked), "go": str(go)})
    wait_until(looked.exists, "it has found no such variable")
    itself.end()
    go.touch()
    assert call.result().metadata["error_type"] == "SessionNotFound"
    assert not itself.lives


@pytest.mark.parametrize("tool", ["everything", "observes", "iterates"])
def test_a_tool_finds_all_that_a_session_has(tool: str, here: ToolSession, itself: Session) -> None:
    """As at the bridge that has the session, with the same result."""
    wanted = {
        "everything": ["var_a_2", 2, {"a": 3, "b": 2}, [3, 2, 1], 1, ["a"]],
        "observes": [["seen", 0, 1]],
        "iterates": [["seen", 0, 1], ["seen", 1, 2]],
    }
    assert here.value(tool) == wanted[tool]
    assert itself.head > 1


def test_the_event_loop_is_not_blocked_by_a_tool(here: ToolSession) -> None:
    answer = here.run("reads_on_the_loop")
    assert not answer.success
    assert "await get_variable_async instead" in answer.metadata["error_message"]


@pytest.mark.parametrize("way", WAYS)
def test_a_streaming_tool_reports_and_sets(way: str, here: ToolSession, itself: Session) -> None:
    itself.register("x")
    chunks = list(here.stream(f"reports{way}"))
    assert [json.loads(chunk.data) for chunk in chunks if chunk.data][-1] == "text"
    assert len(chunks) == 3  # progress, text, the end
    assert itself.get("x").version == 2


def test_calls_are_in_the_log_of_the_worker_and_run_once(
    here: ToolSession, itself: Session, tmp_path: Path
) -> None:
    itself.register("x")
    runs = tmp_path / "runs"
    first = here.run("ten_sets", {"runs": str(runs)}, request_id="once")
    again = here.run("ten_sets", {"runs": str(runs)}, request_id="once")
    assert again == as_duplicate(first)
    assert len(runs.read_text().splitlines()) == 1
    assert itself.get("x").version == 11


def test_each_call_is_closed_in_the_log_of_the_worker(
    shared: BridgeProcess, tmp_path: Path
) -> None:
    path = tmp_path / "worker.db"
    with worker_of(shared, *FAR_TOOLS, log=path) as worker:
        session = ToolSession(worker, "recorded")
        for way in WAYS:
            session.run(f"reads{way}")
        assert worker.stop() == 0
    calls = runs_in(entries(path, "recorded"))
    assert [run.start.body.tool for run in calls.values()] == [f"reads{way}" for way in WAYS]
    assert {run.outcome for run in calls.values()} == {"ok"}


def test_what_comes_after_the_end_of_a_call_is_not_done(here: ToolSession, itself: Session) -> None:
    here.value("set_variable", {"name": "x", "value": 1})
    call_id = here.run("add", {"a": 1}).tool_call_id
    for tool, call in (("add", call_id), ("set_variable", call_id), ("add", "nobody's")):
        headers = (("x-snakepit-tool", tool), ("x-snakepit-tool-call", call))
        with refused("FAILED_PRECONDITION", f"'{call}'", f"'tool:{tool}'", "is over"):
            here.call("SetVariable", headers, variable_identifier="x", value=packed(9))
        # To read is no harm.
        assert here.call("GetVariable", headers, variable_identifier="x").variable.version == 2
    assert itself.get("x").version == 2


def test_a_session_that_has_ended_is_not_begun_again_by_its_tool(
    here: ToolSession, itself: Session, tmp_path: Path
) -> None:
    runs, go = tmp_path / "runs", tmp_path / "go"
    itself.register("x")
    call = here.begin("ten_sets", {"runs": str(runs), "at": 1, "go": str(go)})
    wait_until(lambda: itself.get("x").version == 2, "it has set x once")
    itself.end()
    go.touch()
    answer = call.result()
    assert (answer.success, answer.metadata["error_type"]) == (False, "SessionNotFound")
    assert not itself.lives


def test_a_tool_that_nobody_waits_for_does_nothing_more(
    here: ToolSession, itself: Session, log: Path, tmp_path: Path
) -> None:
    runs, go = tmp_path / "runs", tmp_path / "go"
    itself.register("x")
    arguments = {"runs": str(runs), "go": str(go), "use": "set"}
    call = here.begin("late_use", arguments)
    wait_until(runs.exists, "the tool runs")
    call.cancel()

    def left() -> bool:
        (run,) = runs_in(entries_now(log, here.id)).values()
        return run.outcome == "cancelled"

    wait_until(left, "the worker knows that nobody waits")
    go.touch()
    wait_until(lambda: len(runs.read_text().splitlines()) == 2, "it has used its session")
    assert runs.read_text().splitlines()[1] == "ToolCancelled"
    assert itself.get("x").version == 1


# Clients that know nothing of this.


def test_an_old_client_lives_a_whole_session(bridge: BridgeProcess) -> None:
    with worker_of(bridge) as worker:
        client = OldClient(worker.channel)
        for step in (begins, registers, sets, lists, batches, looks_back, ends):
            step(client)
    assert all(int(name.partition(".")[2]) >= FIRST_OF_OURS for name in client.skipped)


def test_an_old_client_runs_tools_and_watches(workers: Sequence[BridgeProcess]) -> None:
    client = OldClient(workers[0].channel)
    answer = client.run("set_variable", name="x", value=5)
    assert (answer.success, json.loads(answer.result.value)) == (True, 2)
    assert [json.loads(chunk.data) for chunk in client.stream("count_to", to=2) if chunk.data] == [
        1,
        2,
    ]
    updates = client.watch(session_id="old tools", include_initial_values=True)
    assert next(updates).variable.name == "x"
    client.run("set_variable", name="x", value=6)
    assert next(updates).update_source == "tool:set_variable"
    client.call("CleanupSession", session_id="old tools")
    assert list(updates) == []


# Refusals.


@pytest.fixture(scope="module")
def table(shared: BridgeProcess) -> Table:
    return Table(shared)


def refusal(bridge: BridgeProcess, method: str, raw: bytes) -> tuple[Any, ...]:
    """All that a client sees of one."""
    with pytest.raises(grpc.RpcError) as caught:
        raw_call(bridge, method, raw)
    error: Any = caught.value
    trailers = [pair for pair in error.trailing_metadata() or () if pair[0] != CORRELATION_HEADER]
    return error.code(), error.details(), tuple(trailers)


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=id_) for id_, row in ROWS.items() if row.method in FORWARDED]
)
def test_a_refusal_is_the_one_of_the_shared_bridge(
    table: Table, workers: Sequence[BridgeProcess], row: Row
) -> None:
    raw = message_of(row.method, **{"session_id": "table", **row.fields}).SerializeToString()
    direct = refusal(table.bridge, row.method, raw)
    assert direct[0].name == row.code
    assert refusal(workers[0], row.method, raw) == direct


@pytest.mark.parametrize("method", FORWARDED)
@pytest.mark.parametrize("raw", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_message_is_refused_as_there(
    table: Table, workers: Sequence[BridgeProcess], method: str, raw: bytes
) -> None:
    assert refusal(workers[0], method, raw) == refusal(table.bridge, method, raw)


def test_refusals_are_no_trouble_of_a_worker(shared: BridgeProcess, table: Table) -> None:
    with worker_of(shared) as worker:
        for row in ROWS.values():
            if row.method in FORWARDED:
                fields = {"session_id": table.session.id, **row.fields}
                refusal(worker, row.method, message_of(row.method, **fields).SerializeToString())
        assert worker.stop() == 0
        said = [line.split(" ", 3)[3].strip() for line in worker.stderr_lines]
    assert {line.split(" ", 3)[2] for line in worker.stderr_lines} == {"INFO"}, worker.stderr
    assert "snakepit_bridge.server: serving memory: on port" in said[0]
    assert f"the shared bridge at 127.0.0.1:{shared.port}" in said[1]


# Many.


def test_a_thousand_watchers(here: Session, shared: BridgeProcess) -> None:
    here.register("x")
    channels = [
        grpc.insecure_channel(f"127.0.0.1:{here.bridge.port}", options=(("x", n),))
        for n in range(4)
    ]
    opened = [at_head(here, "x", on=channels[n % 4], timeout=100) for n in range(1_000)]
    here.set("x", 2)
    here.set("x", 3)
    for each in opened:
        assert [plain(update.variable.value) for update in each.take(2)] == [2, 3]
    for channel in channels:
        channel.close()
    # Whoever is gone here is gone there, too.
    stub: Any = stubs.BridgeServiceStub(shared.channel)
    assert stub.Ping(pb.PingRequest(), timeout=TIMEOUT).message == "pong: "
