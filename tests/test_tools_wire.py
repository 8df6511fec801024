"""What each RPC of tools answers, over a socket."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Value
from google.protobuf.wrappers_pb2 import StringValue

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge import bridge_service_pb2_grpc as stubs
from snakepit_bridge.events.model import make_value
from tests.bridge_process import BridgeProcess
from tests.hostile import MIB, SLACK, memory_of, own_channel
from tests.test_error_table import NEVER, NOWHERE, fault_of, register, running, setting
from tests.test_tools_crash import lines, lives
from tests.tool_client import (
    STRING_VALUE,
    TOOLS,
    Run,
    ToolSession,
    as_elixir_writes,
    entries,
    entries_now,
    runs_in,
    value_of,
)
from tests.watches import at_head, wait_until
from tests.wire_session import TIMEOUT, packed, plain, refused
from tests.wire_tools import note

PROTOBUF_VALUE = "type.googleapis.com/google.protobuf.Value"
PATIENCE = 10.0
"""Seconds for what happens at once."""

WAYS = ("", "_async", "_isolated")
"""How the names of tools end that do the same: in a thread, on the loop, in a process."""


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tools") / "bridge.db"


@pytest.fixture(scope="module")
def bridge(log: Path) -> Iterator[BridgeProcess]:
    with BridgeProcess(log, *TOOLS) as process:
        yield process
        assert process.stop() == 0


@pytest.fixture
def session(bridge: BridgeProcess, request: pytest.FixtureRequest) -> ToolSession:
    return ToolSession(bridge, request.node.name)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Where tools tell that they run."""
    return tmp_path / "runs"


@pytest.fixture
def go(tmp_path: Path) -> Iterator[Path]:
    """What lets go the tools that are held; none is left behind."""
    file = tmp_path / "go"
    yield file
    file.touch()


def recorded(log: Path, session: ToolSession) -> list[Run]:
    """The calls of a session, as the log of a bridge that goes on tells."""
    return list(runs_in(entries_now(log, session.id)).values())


# What is there.


def test_tools_are_named_when_a_session_begins(session: ToolSession) -> None:
    tools = session.start().available_tools
    add = tools["add"]
    assert (add.name, add.description) == ("add", "Add two numbers.")
    described = [(each.name, each.type, each.required, each.description) for each in add.parameters]
    assert described == [
        ("a", "integer", True, "The first."),
        ("b", "integer", False, "The second."),
    ]
    assert plain(add.parameters[1].default_value) == 1
    assert [
        name for name in ("add", "count_to", "count_to_async") if tools[name].supports_streaming
    ]
    assert not add.supports_streaming
    assert {each.name: each.type for each in tools["typed"].parameters} == {
        "number": "integer",
        "ratio": "float",
        "text": "string",
        "flag": "boolean",
        "mode": "choice",
        "items": "list",
    }
    # The session itself is nothing that a client gives.
    assert [each.name for each in tools["set_variable"].parameters] == ["name", "value"]
    assert session.call("GetSession").tool_count == len(tools)


def test_registered_tools_belong_to_their_session(session: ToolSession) -> None:
    before = len(session.start().available_tools)
    tools = [
        pb.ToolRegistration(name="far", description="away", metadata={"k": "v"}),
        pb.ToolRegistration(name="near", supports_streaming=True),
    ]
    answer = session.call("RegisterTools", tools=tools, worker_id="w", request_id="once")
    assert (answer.success, dict(answer.tool_ids)) == (
        True,
        {"far": "tool_far_2", "near": "tool_near_2"},
    )
    assert (answer.offset, answer.duplicate) == (2, False)
    again = session.call("RegisterTools", tools=tools, worker_id="w", request_id="once")
    assert (again.offset, again.duplicate, again.tool_ids) == (2, True, answer.tool_ids)

    known = session.start().available_tools
    assert (known["far"].description, dict(known["far"].metadata)) == ("away", {"k": "v"})
    assert known["near"].supports_streaming
    assert len(known) == before + 2
    assert session.call("GetSession").tool_count == before + 2

    session.call("RegisterTools", tools=[pb.ToolRegistration(name="far", description="further")])
    assert session.start().available_tools["far"].description == "further"
    assert session.call("GetSession").tool_count == before + 2
    other = ToolSession(session.bridge, f"other than {session.id}")
    assert len(other.start().available_tools) == before


def test_a_tool_of_this_bridge_goes_before_a_registered_one(session: ToolSession) -> None:
    session.call("RegisterTools", tools=[pb.ToolRegistration(name="add", description="other")])
    assert session.start().available_tools["add"].description == "Add two numbers."
    assert session.value("add", {"a": 1}) == 2


# Arguments and results.


def boxed(content: Message) -> AnyMessage:
    box = AnyMessage()
    box.Pack(content)
    return box


SENT: dict[str, tuple[AnyMessage, str]] = {
    "dspex": (packed(0.5, "float"), "float 0.5"),
    "snakepit": (packed(3, "integer", "type.googleapis.com/snakepit."), "int 3"),
    "NaN": (packed("NaN", "float"), "float nan"),
    "JSON as a StringValue": (as_elixir_writes({"a": [1, None]}), "dict {'a': [1, None]}"),
    "null": (as_elixir_writes(None), "NoneType None"),
    "text as a StringValue": (as_elixir_writes("text"), "str 'text'"),
    "a StringValue": (boxed(StringValue(value="text")), "str 'text'"),
    "a StringValue of JSON": (boxed(StringValue(value="[1]")), "str '[1]'"),
    "a Value": (boxed(Value(string_value="text")), "str 'text'"),
    "JSON as a Value": (
        AnyMessage(type_url=PROTOBUF_VALUE, value=b"[1.5, true]"),
        "list [1.5, True]",
    ),
    "embedding": (packed([1, 2], "embedding"), "ndarray array([1., 2.])"),
    "map": (packed({"a": 1}, "map"), "dict {'a': 1}"),
}


@pytest.mark.parametrize("what", SENT)
def test_arguments_come_in_all_forms(session: ToolSession, what: str) -> None:
    argument, found = SENT[what]
    assert session.value("describe", {"value": argument}).startswith(found)


def test_binary_arguments_and_results(session: ToolSession) -> None:
    given = session.run("reverse_bytes", binary_parameters={"data": b"\x00\x01\xff"})
    assert given.binary_result == b"\xff\x01\x00"
    about = json.dumps({"shape": [2], "dtype": "float32", "binary_format": "raw"}).encode()
    vector = AnyMessage(type_url="dspex.variables/tensor.binary", value=about)
    content = np.array([3, 4], "<f4").tobytes()
    answer = session.run("norm", {"vector": vector}, binary_parameters={"vector": content})
    assert value_of(answer) == 5

    large = session.run("zeros", {"count": 100_000})
    assert large.result.type_url.endswith(".binary")
    assert json.loads(large.result.value)["shape"] == [100_000]
    assert large.binary_result == bytes(8 * 100_000)
    small = session.run("zeros", {"count": 2})
    assert (plain(small.result), small.binary_result) == ({"shape": [2], "data": [0, 0]}, b"")


def test_nothing_is_null(session: ToolSession) -> None:
    answer = session.run("nothing")
    assert (answer.success, answer.result) == (
        True,
        AnyMessage(type_url=STRING_VALUE, value=b"null"),
    )


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_says_where_it_is_in_the_log(log: Path, session: ToolSession, way: str) -> None:
    session.start()
    answer = session.run(f"add{way}", {"a": 1, "b": 2})
    assert (value_of(answer), answer.result.type_url) == (3, "dspex.variables/integer")
    assert (answer.error_message, dict(answer.metadata), answer.duplicate) == ("", {}, False)
    assert (answer.offset, answer.log_epoch) == (3, session.call("GetSession").log_epoch)
    (run,) = recorded(log, session)
    assert run.end is not None
    assert run.start.body.call_id == run.end.body.call_id == answer.tool_call_id
    assert (run.start.offset, run.end.offset, run.outcome) == (2, 3, "ok")
    assert run.end.body.duration_nanos > 0


def test_what_a_tool_raises_is_told_in_all_forms(session: ToolSession, runs: Path) -> None:
    answer = session.run("count_and_raise", {"runs": str(runs)})
    assert not answer.success
    assert not answer.HasField("result")
    said = json.loads(answer.error_message)
    assert (said["type"], said["message"]) == ("LookupError", "counted")
    assert "count_and_raise" in said["traceback"]
    assert said["context"] == {"tool_name": "count_and_raise", "session_id": session.id}
    assert dict(answer.metadata) == {
        "error_type": "LookupError",
        "error_message": "counted",
        "traceback": said["traceback"],
    }


def test_a_tool_knows_its_call(session: ToolSession) -> None:
    answer = session.run("who", metadata={"k": "v"})
    assert value_of(answer) == {
        "tool": "who",
        "call": answer.tool_call_id,
        "session": session.id,
        "same": True,
        "metadata": {"k": "v"},
    }


# Streams.


def contents(call: Any) -> list[bytes]:  # noqa: ANN401 - stubs have no types
    """All chunks of a stream but the last, which must be as it should."""
    *chunks, last = list(call)
    assert (last.data, last.is_final) == (b"", True)
    assert not any(chunk.is_final for chunk in chunks)
    assert len({chunk.chunk_id for chunk in (*chunks, last)}) == len(chunks) + 1
    assert call.code() is grpc.StatusCode.OK
    return [chunk.data for chunk in chunks]


@pytest.mark.parametrize("way", WAYS)
def test_a_stream_comes_in_order_and_ends(log: Path, session: ToolSession, way: str) -> None:
    found = contents(session.stream(f"count_to{way}", {"to": 100}))
    assert found == [str(number).encode() for number in range(1, 101)]
    assert contents(session.stream(f"count_to{way}", {"to": 0})) == []
    ends = [run.end and run.end.body for run in recorded(log, session)]
    assert [(end.outcome, end.chunks) for end in ends if end] == [("ok", 100), ("ok", 0)]


def test_chunks_are_of_all_kinds(session: ToolSession) -> None:
    chunks = list(session.stream("of_all_kinds"))
    assert [chunk.data for chunk in chunks[:3]] == [b'{"a":[1,null]}', b"\x00\xff", b'"text"']
    assert dict(chunks[2].metadata) == {"k": "v"}
    assert json.loads(chunks[4].data) == {"progress": 1, "total": 2, "message": "half"}
    assert dict(chunks[4].metadata) == {"kind": "progress"}
    assert [chunk.is_final for chunk in chunks] == [False] * 5 + [True]


@pytest.mark.parametrize("way", WAYS)
def test_a_plain_tool_streams_its_result(session: ToolSession, way: str) -> None:
    assert contents(session.stream(f"add{way}", {"a": 1})) == [b"2"]


def test_a_stream_that_raises_is_internal(log: Path, session: ToolSession) -> None:
    call = session.stream("breaks_off")
    assert next(call).data == b"1"
    with pytest.raises(grpc.RpcError):
        next(call)
    fault = fault_of(call)
    assert (fault.code, fault.reason, fault.field) == ("INTERNAL", "TOOL_RAISED", "")
    for word in ("'breaks_off'", "LookupError", "nothing more"):
        assert word in fault.message
    assert [run.outcome for run in recorded(log, session)] == ["error"]


@pytest.mark.parametrize("tool", ["for_ever", "for_ever_async"])
def test_a_client_that_does_not_read_holds_up_its_tool(
    session: ToolSession, runs: Path, tool: str
) -> None:
    """And nobody else; when it is gone, the stream is closed."""
    before = memory_of(session.bridge.process.pid).now
    with own_channel(session.bridge.port) as channel:
        call = session.stream(tool, {"runs": str(runs), "size": MIB // 4}, on=channel)
        next(call)
        found = [-1]

        def stands_still() -> bool:
            for _ in range(20):
                assert session.value("add_async", {"a": 1}) == 2
            found.append(len(lines(runs)))
            return found[-1] == found[-2] == found[max(0, len(found) - 5)]

        wait_until(stands_still, "the tool waits", PATIENCE)
        assert found[-1] < 400
        assert memory_of(session.bridge.process.pid).now < before + SLACK
        call.cancel()
        wait_until(lambda: lines(runs)[-1] == "closed", "it is closed")


# Who did what.

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize("way", WAYS)
def test_what_a_tool_changes_says_so(log: Path, session: ToolSession, way: str) -> None:
    session.register("x", 0)
    headers = (("traceparent", TRACEPARENT), ("x-snakepit-correlation-id", "c 1"))
    with at_head(session, "x") as opened:
        answer = session.run(f"set_variable{way}", {"name": "x", "value": 7}, headers)
        update = opened.next()
    assert value_of(answer) == 2
    assert plain(update.variable.value) == 7
    entry = session.history("x", limit=1).entries[0]
    for told in (update, entry):
        assert told.tool_call_id == answer.tool_call_id
        assert (told.correlation_id, told.traceparent) == ("c 1", TRACEPARENT)
    assert update.update_source == entry.changed_by == f"tool:set_variable{way}"
    (run,) = recorded(log, session)
    assert [change.kind for change in run.changes] == ["variable_set"]
    for part in (run.start, run.end):
        assert part is not None
        assert (part.record.correlation_id, part.record.traceparent) == ("c 1", TRACEPARENT)


def test_what_comes_from_a_call_that_is_over_is_refused(session: ToolSession) -> None:
    session.register("x")
    call_id = session.run("add", {"a": 1}).tool_call_id
    head = session.head
    headers = (("x-snakepit-tool", "add"), ("x-snakepit-tool-call", call_id))
    changes: dict[str, dict[str, Any]] = {
        "SetVariable": setting("x", packed(2)),
        "RegisterVariable": register("y"),
        "ExecuteTool": running("add", a=1),
    }
    for method, fields in changes.items():
        with pytest.raises(grpc.RpcError) as caught:
            session.call(method, headers, **fields)
        fault = fault_of(caught.value)
        assert (fault.code, fault.reason) == ("FAILED_PRECONDITION", "FAILED_PRECONDITION"), method
        assert call_id in fault.message
        assert "is over" in fault.message
    assert session.head == head


# What is recorded.

SECRET = "a secret that nobody may find 4711"


@pytest.mark.parametrize("record", ["full", "digest", "off"])
def test_what_is_recorded_of_arguments_and_results(tmp_path: Path, record: str) -> None:
    path = tmp_path / "bridge.db"
    with BridgeProcess(path, *TOOLS, "--record-tools", record) as bridge:
        session = ToolSession(bridge, "s")
        user, password = as_elixir_writes("ann of records"), as_elixir_writes(SECRET)
        answer = session.run("log_in", {"user": user, "password": password}, request_id="once")
        assert value_of(answer) == f"ann of records has {len(SECRET)} characters"
        if record == "full":
            again = session.run("log_in", {"user": user, "password": password}, request_id="once")
            assert (value_of(again), again.duplicate) == (value_of(answer), True)
        else:
            with refused("FAILED_PRECONDITION", "'once'", "not kept"):
                session.run("log_in", {"user": user, "password": password}, request_id="once")
        # Another argument is another request, even where nothing of it is kept.
        with refused("INVALID_ARGUMENT", "'once'"):
            session.run("log_in", {"user": user, "password": "other"}, request_id="once")
        assert bridge.stop() == 0
    (run,) = runs_in(entries(path, "s")).values()
    assert run.end is not None
    result = make_value(answer.result.SerializeToString())
    digests = {
        "password": make_value(password.SerializeToString()).digest,
        "user": make_value(user.SerializeToString()).digest,
    }
    arguments = {each.name: (each.value_digest, each.digest) for each in run.start.body.arguments}
    kept = {
        "full": {"password": (b"", digests["password"]), "user": (digests["user"], b"")},
        "digest": {name: (b"", digest) for name, digest in digests.items()},
        "off": {},
    }
    assert arguments == kept[record]
    told = (run.end.body.value_digest, run.end.body.digest)
    expected = {"full": (result.digest, b""), "digest": (b"", result.digest), "off": (b"", b"")}
    assert told == expected[record]
    assert run.start.values == ((make_value(user.SerializeToString()),) if record == "full" else ())
    assert run.end.values == ((result,) if record == "full" else ())
    written = path.read_bytes()
    assert SECRET.encode() not in written
    assert (b"ann of records" in written) == (record == "full")


def test_what_is_sensitive_is_not_recorded(tmp_path: Path) -> None:
    path = tmp_path / "bridge.db"
    with BridgeProcess(path, *TOOLS) as bridge:
        session = ToolSession(bridge, "s")
        assert session.run("log_in", {"user": "ann", "password": SECRET}).success
        assert not session.run("refuse", {"password": SECRET}).success
        with pytest.raises(grpc.RpcError) as caught:
            session.run("log_in", {"user": "ann", "password": [SECRET]})
        assert SECRET not in (caught.value.details() or "")
        broken = AnyMessage(type_url=STRING_VALUE, value=b"{" + SECRET.encode())
        with pytest.raises(grpc.RpcError) as caught:
            session.run("log_in", {"user": "ann", "password": broken})
        assert SECRET not in (caught.value.details() or "")
        assert bridge.stop() == 0
    assert SECRET.encode() not in path.read_bytes()
    assert SECRET not in bridge.stderr


# Being late, and being left.


@pytest.mark.parametrize("request_id", ["", "once"])
@pytest.mark.parametrize("by", ["tool", "tool in a thread", "client"])
def test_a_call_that_takes_too_long_is_deadline_exceeded(  # noqa: PLR0917 - arguments come by name
    log: Path, session: ToolSession, runs: Path, go: Path, by: str, request_id: str
) -> None:
    session.start()
    tool = {"tool": "too_slow_async", "client": "count_run_async"}.get(by, "too_slow")
    timeout = 0.5 if by == "client" else TIMEOUT
    arguments = {"runs": str(runs), "go": str(go)}
    call = session.begin(tool, arguments, timeout=timeout, request_id=request_id)
    assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    if by != "client":  # whom gRPC itself tells
        fault = fault_of(call)
        assert (fault.reason, fault.field) == ("DEADLINE_EXCEEDED", "")
        assert f"'{tool}' took longer than the 0.3 s" in fault.message
    wait_until(lambda: session.head == 3, "the end is written", PATIENCE)
    (run,) = recorded(log, session)
    assert (run.outcome, run.start.body.deadline_unix_nanos > 0) == (
        "timeout",
        not (by == "client" and request_id),
    )


@pytest.mark.parametrize("tool", ["count_run_async", "count_run", "count_run_isolated"])
def test_a_client_that_is_gone_cancels_its_call(
    log: Path, session: ToolSession, runs: Path, go: Path, tool: str
) -> None:
    session.start()
    request = session.request(tool, {"runs": str(runs), "go": str(go)})
    with own_channel(session.bridge.port) as channel:
        call = stubs.BridgeServiceStub(channel).ExecuteTool.future(request, timeout=TIMEOUT)
        wait_until(lambda: lines(runs), "the tool runs")
    assert call.done()
    wait_until(lambda: session.head == 3, "the end is written", PATIENCE)
    assert [run.outcome for run in recorded(log, session)] == ["cancelled"]
    if tool == "count_run_async":
        wait_until(lambda: lines(runs)[-1] == "CancelledError", "the tool is told")
    elif tool == "count_run_isolated":
        pid = int(lines(runs)[0].split()[1])
        wait_until(lambda: not lives(pid), "its process is killed")


@pytest.mark.parametrize("request_id", ["", "once"])
@pytest.mark.parametrize("tool", ["count_run_async", "count_run_isolated", "holding_stream"])
def test_a_call_that_is_cleaned_up_by_force_is_cancelled(  # noqa: PLR0917 - arguments come by name
    log: Path, session: ToolSession, runs: Path, go: Path, tool: str, request_id: str
) -> None:
    begin = session.stream if "stream" in tool else session.begin
    call = begin(tool, {"runs": str(runs), "go": str(go)}, request_id=request_id)
    wait_until(lambda: lines(runs), "the tool runs")
    session.end(force=True)
    if "stream" in tool:
        assert next(call).data == b"1"
    assert call.code() is grpc.StatusCode.CANCELLED
    fault = fault_of(call)
    assert (fault.reason, fault.field) == ("CANCELLED", "")
    assert "was cleaned up by force" in fault.message
    assert [run.outcome for run in recorded(log, session)] == ["interrupted"]
    if tool == "count_run_async":
        wait_until(lambda: lines(runs)[-1] == "CancelledError", "the tool is told")


def test_a_session_that_ends_closes_its_calls(
    log: Path, session: ToolSession, runs: Path, go: Path
) -> None:
    """Without force a tool goes on, but its call is over."""
    session.register("x", 1)
    arguments = {"runs": str(runs), "go": str(go), "use": "set"}
    call = session.begin("late_use", arguments)
    wait_until(lambda: lines(runs), "the tool runs")
    session.end()
    assert [run.outcome for run in recorded(log, session)] == ["interrupted"]
    session.register("x", 1)
    go.touch()
    wait_until(lambda: len(lines(runs)) == 2, "the tool goes on")
    assert lines(runs)[1] != "went on"
    assert call.exception() is not None or not call.result().success
    assert session.get("x").version == 1


@pytest.mark.parametrize("anew", [False, True], ids=["ended", "begun anew"])
def test_what_the_log_says_of_an_end_is_what_the_client_is_told(
    log: Path, session: ToolSession, runs: Path, go: Path, anew: bool
) -> None:
    """A tool that uses no session ends well after its call was closed with its session."""
    session.start()
    call = session.begin("count_run", {"runs": str(runs), "go": str(go)})
    wait_until(lambda: lines(runs), "the tool runs")
    session.end()
    if anew:
        session.start()
    go.touch()
    (run,) = recorded(log, session)
    assert run.outcome == "interrupted"
    assert run.end is not None
    told = call.exception()
    if told is None:
        answer = call.result()
        assert (answer.offset, answer.log_epoch) == (run.end.offset, run.end.epoch)
    else:
        assert told.code() is not grpc.StatusCode.OK


@pytest.mark.parametrize("use", ["set", "register", "get", "list", "history", "check"])
def test_a_tool_that_was_left_hears_of_it_at_its_next_use(
    session: ToolSession, runs: Path, go: Path, use: str
) -> None:
    session.register("x", 1)
    call = session.begin("late_use", {"runs": str(runs), "go": str(go), "use": use})
    wait_until(lambda: lines(runs), "the tool runs")
    # Without an id the tool may run before its start is written.
    wait_until(lambda: session.head == 3, "its start is written", PATIENCE)
    call.cancel()
    wait_until(lambda: session.head == 4, "its end is written", PATIENCE)
    note(str(go), "go")
    wait_until(lambda: len(lines(runs)) == 2, "the tool goes on")
    assert lines(runs)[1] == "ToolCancelled"
    assert session.head == 4


# Where tools run.


def test_a_sensitive_tool_has_one_thread(session: ToolSession) -> None:
    calls = [session.begin("which_one_thread") for _ in range(20)]
    calls += [
        session.begin("which_thread", metadata={"thread_sensitive": "true"}) for _ in range(20)
    ]
    assert len({value_of(call.result()) for call in calls}) == 1
    assert session.value("which_thread") != value_of(calls[0].result())


def test_an_adapter_runs_one_call_at_a_time(tmp_path: Path, runs: Path, go: Path) -> None:
    path = tmp_path / "bridge.db"
    with BridgeProcess(path, "--adapter", "tests.wire_tools.OneAtATime") as bridge:
        session = ToolSession(bridge, "s")
        session.start()
        calls = [session.begin("alone", {"runs": str(runs), "go": str(go)}) for _ in range(3)]
        wait_until(lambda: session.head == 4, "all have begun")
        wait_until(lambda: lines(runs), "one of them runs")
        assert lines(runs) == ["run"]
        go.touch()
        assert [value_of(call.result()) for call in calls] == [1, 1, 1]
        assert bridge.stop() == 0


# Never twice.


@contextmanager
def held(log: Path) -> Iterator[None]:
    """Let the bridge write nothing for a while: somebody else writes."""
    with closing(sqlite3.connect(log, isolation_level=None)) as file:
        file.execute("BEGIN IMMEDIATE")
        yield
        file.execute("ROLLBACK")


def test_the_start_of_a_request_with_an_id_is_durable_before_the_tool_runs(
    log: Path, session: ToolSession, tmp_path: Path
) -> None:
    with_id, *without = (tmp_path / name for name in ("with id", "without", "again without"))
    session.start()
    with held(log):
        first = session.begin("count_run", {"runs": str(with_id)}, request_id="once")
        stream = session.stream("count_streams", {"runs": str(with_id)}, request_id="stream")
        others = []  # which would be cancelled if nobody held them
        for runs in without:
            others.append(session.begin("count_run", {"runs": str(runs)}))
            wait_until(partial(lines, runs), "one without an id runs")
        assert not lines(with_id)
    assert first.result().success
    assert contents(stream) == [b"1"]
    assert len(lines(with_id)) == 2


@pytest.mark.parametrize("request_id", ["", "once"])
def test_the_end_of_a_call_is_durable_before_its_answer(
    log: Path, session: ToolSession, runs: Path, go: Path, request_id: str
) -> None:
    session.start()
    arguments = {"runs": str(runs), "go": str(go), "use": "check"}
    call = session.begin("late_use", arguments, request_id=request_id)
    wait_until(partial(lines, runs), "the tool runs")
    with held(log):
        go.touch()
        wait_until(lambda: len(lines(runs)) == 2, "it is about to end")
        # As long as this takes, an answer would take.
        other = session.begin("count_run", {"runs": str(runs)})
        wait_until(lambda: len(lines(runs)) == 3, "another one runs")
        session.bridge.stub.Ping(pb.PingRequest(), timeout=TIMEOUT)
        assert not call.done()
        assert not other.done()
    assert call.result().success
    assert other.result().success


@pytest.mark.parametrize("way", WAYS)
def test_a_repeated_request_gets_the_first_result(
    session: ToolSession, runs: Path, way: str
) -> None:
    arguments = {"runs": str(runs)}
    first = session.run(f"count_run{way}", arguments, request_id="once")
    assert (value_of(first), first.duplicate) == ("done", False)
    again = session.run(f"count_run{way}", arguments, request_id="once")
    assert again.duplicate
    first.duplicate = True
    assert again == first
    assert len(lines(runs)) == 1


def test_a_repeated_request_gets_what_was_raised(session: ToolSession, runs: Path) -> None:
    arguments = {"runs": str(runs)}
    first = session.run("count_and_raise", arguments, request_id="once")
    again = session.run("count_and_raise", arguments, request_id="once")
    assert (first.success, first.duplicate, again.duplicate) == (False, False, True)
    first.duplicate = True
    assert again == first
    assert len(lines(runs)) == 1


@pytest.mark.parametrize(
    ("tool", "outcome"),
    [
        ("count_run_async", "cancelled"),
        ("count_run", "cancelled"),
        ("too_slow_async", "timeout"),
        ("count_run_async", "interrupted"),
    ],
)
def test_a_repeated_request_without_a_result_is_refused(
    session: ToolSession, runs: Path, go: Path, tool: str, outcome: str
) -> None:
    session.start()
    arguments = {"runs": str(runs), "go": str(go)}
    call = session.begin(tool, arguments, request_id="once")
    wait_until(lambda: lines(runs), "the tool runs")
    if outcome == "interrupted":
        session.end()
    else:
        if outcome == "cancelled":
            call.cancel()
        wait_until(lambda: session.head == 3, "the end is written", PATIENCE)
    with refused("FAILED_PRECONDITION", "'once'", outcome):
        session.run(tool, arguments, request_id="once")
    assert sum(line == "run" for line in lines(runs)) == 1


def test_a_repeated_stream_is_refused(session: ToolSession, runs: Path) -> None:
    arguments = {"runs": str(runs)}
    assert contents(session.stream("count_streams", arguments, request_id="once")) == [b"1"]
    with refused("FAILED_PRECONDITION", "'once'", "new id"):
        list(session.stream("count_streams", arguments, request_id="once"))
    assert len(lines(runs)) == 1


def test_who_joins_a_call_waits_as_long_as_it_likes(
    session: ToolSession, runs: Path, go: Path
) -> None:
    """A call goes on as long as one of those waits who asked for it."""
    arguments = {"runs": str(runs), "go": str(go)}
    session.start()
    first = session.begin("count_run", arguments, timeout=1, request_id="once")
    wait_until(lambda: lines(runs), "the tool runs")
    second = session.begin("count_run", arguments, timeout=PATIENCE, request_id="once")
    assert first.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    # The bridge's own clock is beyond that as well once a later deadline is over.
    with refused("DEADLINE_EXCEEDED"):
        session.run("count_run_async", {"runs": NOWHERE, "go": NEVER}, timeout=0.5)
    note(str(go), "go")
    answer = second.result()
    assert (value_of(answer), answer.duplicate) == ("done", True)
    assert len(lines(runs)) == 1
    with refused("INVALID_ARGUMENT", "'once'", "another ExecuteTool"):
        session.run("add", {"a": 1}, request_id="once")


def test_all_who_ask_at_once_get_one_result(session: ToolSession, runs: Path, go: Path) -> None:
    arguments = {"runs": str(runs), "go": str(go)}
    calls = [session.begin("count_run", arguments, request_id="once") for _ in range(20)]
    wait_until(lambda: lines(runs), "the tool runs")
    go.touch()
    answers = [call.result() for call in calls]
    assert sum(not answer.duplicate for answer in answers) == 1
    assert len({(answer.tool_call_id, answer.offset) for answer in answers}) == 1
    assert {value_of(answer) for answer in answers} == {"done"}
    assert len(lines(runs)) == 1


def test_all_who_wait_are_told_why_a_call_was_left(
    session: ToolSession, runs: Path, go: Path
) -> None:
    session.start()
    arguments = {"runs": str(runs), "go": str(go)}
    calls = [session.begin("count_run", arguments, request_id="once") for _ in range(3)]
    wait_until(lambda: lines(runs), "the tool runs")
    # What is asked after the others on one connection, and on the same log, comes after them.
    assert session.value("add", {"a": 1}) == 2
    session.end(force=True)
    for call in calls:
        assert call.code() is grpc.StatusCode.CANCELLED
        assert "was cleaned up by force" in call.details()
    assert len(lines(runs)) == 1
