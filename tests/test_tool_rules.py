"""Calls of tools as the log has them: opened, closed, interrupted, never twice for one id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from snakepit_bridge.commands import (
    CleanupSession,
    FinishTool,
    InitializeSession,
    LoadSession,
    RegisterTools,
    RegisterVariable,
    SetVariable,
    StartTool,
    ToolArgument,
    ToolRun,
)
from snakepit_bridge.errors import (
    EpochMismatch,
    FailedPrecondition,
    InvalidRequest,
    RequestIdReused,
    ResourceExhausted,
    SessionNotFound,
)
from snakepit_bridge.events.log import EventLog
from snakepit_bridge.events.memory import MemoryLog
from snakepit_bridge.events.model import Envelope, Origin, Value, make_value
from snakepit_bridge.events.reading import fold, load, state_at
from snakepit_bridge.events.snapshot import differences, open_snapshot
from snakepit_bridge.events.sqlite import SqliteLog
from snakepit_bridge.tool_rules import MAX_TOOLS
from tests.direct import Direct, folded, integer, whole

VALUE = make_value(b"\n\x17dspex.variables/integer\x12\x017")
LARGE = make_value(b"\n\x16dspex.variables/string\x12\x88\x27" + b'"' + b"x" * 4998 + b'"')


def start(
    call_id: str = "c1",
    *arguments: ToolArgument,
    request_id: str = "",
    tool: str = "echo",
    session_id: str = "s",
    epoch: str = "",
    streaming: bool = False,
) -> StartTool:
    about = Envelope(session_id, request_id, epoch, Origin("elixir"))
    return StartTool(about, tool, arguments, streaming, ToolRun(call_id, 0))


def finish(call_id: str = "c1", outcome: str = "ok", value: Value | None = None) -> FinishTool:
    about = Envelope("s", origin=Origin("tool:echo"))
    return FinishTool(about, call_id, outcome, 5, value)


def events(engine: EventLog, direct: Direct, session_id: str = "s") -> list[tuple[str, Any]]:
    return [
        fact
        for transaction in fold(engine, direct.loaded(session_id).id)
        for fact in transaction.facts
    ]


@pytest.fixture
def engine() -> MemoryLog:
    return MemoryLog()


def test_a_call_begins_a_session_and_is_open_until_it_ends(engine: MemoryLog) -> None:
    with Direct(engine) as direct:
        argument = ToolArgument("x", VALUE.digest, VALUE)
        secret = ToolArgument("key", LARGE.digest, None)
        hidden = ToolArgument("y", VALUE.digest, None, recorded=False)
        outcome = direct.ask(start("c1", argument, secret, hidden))
        assert outcome.answer.offset == 2
        log = direct.loaded("s")
        (call,) = log.committed.calls.values()
        assert (call.call_id, call.tool, call.offset) == ("c1", "echo", 2)
        assert call.instance == direct.committer.instance
        assert direct.ask(finish(value=LARGE)).answer.offset == 3
        assert not log.committed.calls
        (_, (kind, started), (_, ended)) = events(engine, direct)
        assert kind == "tool_started"
        assert [(one.name, one.value_digest, one.digest) for one in started.arguments] == [
            ("x", VALUE.digest, b""),
            ("key", b"", LARGE.digest),
        ]
        assert (ended.outcome, ended.started_offset, ended.duration_nanos) == ("ok", 2, 5)
        assert ended.value_digest == LARGE.digest
        # A second end changes nothing.
        assert direct.ask(finish(outcome="error")).answer.offset == 0
        assert log.committed.head == 3


def test_values_of_calls_are_read_back(engine: MemoryLog) -> None:
    with Direct(engine) as direct:
        direct.ask(start("c1", ToolArgument("x", VALUE.digest, VALUE)))
        direct.ask(finish(value=LARGE))
        transactions = list(fold(engine, direct.loaded("s").id))
        assert [list(each.values) for each in transactions] == [[VALUE], [LARGE]]


@pytest.mark.parametrize("tail", [False, True])
def test_a_snapshot_holds_tools_and_open_calls(engine: MemoryLog, *, tail: bool) -> None:
    with Direct(engine) as direct:
        direct.ask(RegisterTools(Envelope("s"), [("a", b"spec"), ("b", b"")], "w"))
        direct.ask(start("c1", request_id="r1"))
        direct.ask(start("c2"))
        snapshot = direct.snapshot("s")
        if tail:
            direct.ask(finish("c2"))
        head = engine.latest("s")
        assert head is not None
        state, offset = load(engine, head)
        assert offset == snapshot.offset
        assert not differences(state, folded(engine, direct.loaded("s").id), requests=True)
        assert list(state.tools) == ["a", "b"]
        assert list(state.calls) == (["c1"] if tail else ["c1", "c2"])
        assert open_snapshot(snapshot).calls["c1"].request == state.calls["c1"].request


def test_a_repeated_request_finds_how_the_first_ended(engine: MemoryLog) -> None:
    with Direct(engine) as direct:
        argument = ToolArgument("x", VALUE.digest, VALUE)
        direct.ask(start("c1", argument, request_id="r"))
        again = direct.ask(start("c2", argument, request_id="r"))
        assert again.answer.duplicate
        assert again.answer.offset == 1  # of the transaction, which begins with the session
        assert again.answer.finished is None
        direct.ask(finish(value=VALUE))
        again = direct.ask(start("c3", argument, request_id="r"))
        assert again.answer.duplicate
        assert again.answer.finished is not None
        assert list(again.answer.finished.values) == [VALUE]
        assert [kind for kind, _ in events(engine, direct)][1:] == ["tool_started", "tool_finished"]


@pytest.mark.parametrize(
    "other",
    [
        start("c2", ToolArgument("x", LARGE.digest, LARGE), request_id="r"),
        start("c2", ToolArgument("y", VALUE.digest, VALUE), request_id="r"),
        start("c2", ToolArgument("x", VALUE.digest, VALUE), request_id="r", tool="other"),
        start("c2", ToolArgument("x", VALUE.digest, VALUE), request_id="r", streaming=True),
    ],
)
def test_an_id_belongs_to_one_payload(engine: MemoryLog, other: StartTool) -> None:
    with Direct(engine) as direct:
        direct.ask(start("c1", ToolArgument("x", VALUE.digest, VALUE), request_id="r"))
        with pytest.raises(RequestIdReused):
            direct.ask(other)


def test_what_is_recorded_is_no_part_of_the_payload(engine: MemoryLog) -> None:
    with Direct(engine) as direct:
        direct.ask(start("c1", ToolArgument("x", VALUE.digest, VALUE), request_id="r"))
        unrecorded = ToolArgument("x", VALUE.digest, None, recorded=False)
        assert direct.ask(start("c2", unrecorded, request_id="r")).answer.duplicate


def _sqlite(path: Path) -> EventLog:
    return SqliteLog(path / "bridge.db")


def test_the_next_start_of_the_bridge_closes_what_is_open(tmp_path: Path) -> None:
    engine = _sqlite(tmp_path)
    with Direct(engine) as direct:
        direct.ask(start("c1", request_id="r"))
        direct.ask(start("c2"))
    engine = _sqlite(tmp_path)
    with Direct(engine) as direct:
        direct.ask(start("c3"))  # meets them first, and is not closed itself
        assert list(direct.loaded("s").committed.calls) == ["c3"]
        log = direct.loaded("s").id
        closed = [body for kind, body in events(engine, direct) if kind == "tool_finished"]
        assert [(each.call_id, each.outcome, each.started_offset) for each in closed] == [
            ("c1", "interrupted", 2),
            ("c2", "interrupted", 3),
        ]
        records = [each.record for each in fold(engine, log)][2:4]
        assert [each.source for each in records] == ["bridge", "bridge"]
        assert [each.request.key for each in records] == ["finished", ""]
        # The request is not run again: its end is remembered.
        finished = direct.ask(start("c4", request_id="r")).answer.finished
        assert finished is not None
        assert finished.facts[-1][1].outcome == "interrupted"
        assert whole(direct.loaded("s").working) == whole(folded(engine, log))


@pytest.mark.parametrize(
    "meets", [LoadSession(Envelope("s")), CleanupSession(Envelope("s"), "cleanup")]
)
def test_whatever_comes_first_closes_them(
    tmp_path: Path, meets: LoadSession | CleanupSession
) -> None:
    with Direct(_sqlite(tmp_path)) as direct:
        direct.ask(start("c1"))
    engine = _sqlite(tmp_path)
    with Direct(engine) as direct:
        direct.ask(meets)
        kinds = [kind for kind, _ in events(engine, direct)]
        assert kinds[:3] == ["session_started", "tool_started", "tool_finished"]


def test_the_end_of_a_session_closes_its_calls(engine: MemoryLog) -> None:
    with Direct(engine) as direct:
        direct.ask(RegisterTools(Envelope("s"), [("a", b"")], "w"))
        direct.ask(start("c1", request_id="r"))
        outcome = direct.ask(CleanupSession(Envelope("s", "end"), "cleanup"))
        assert (outcome.answer.offset, outcome.answer.number) == (5, 2)
        again = direct.ask(CleanupSession(Envelope("s", "end"), "cleanup"))
        assert (again.answer.offset, again.answer.number, again.answer.duplicate) == (5, 2, True)
        kinds = [kind for kind, _ in events(engine, direct)]
        assert kinds[-2:] == ["tool_finished", "session_ended"]
        # What comes late has nothing to close, and begins nothing.
        assert direct.ask(finish()).answer.offset == 0
        finished = direct.ask(start("c2", request_id="r")).answer.finished
        assert finished is not None
        assert direct.loaded("s").committed.ended


def test_a_late_end_is_not_written_into_another_log(engine: MemoryLog) -> None:
    with Direct(engine) as direct:
        epoch = direct.ask(start("c1")).log_epoch
        direct.ask(CleanupSession(Envelope("s"), "cleanup"))
        direct.ask(start("c1"))
        late = finish()._replace(envelope=Envelope("s", log_epoch=epoch))
        with pytest.raises(EpochMismatch):
            direct.ask(late)
        assert list(direct.loaded("s").committed.calls) == ["c1"]


def _by_tool(call_id: str, tool: str = "echo") -> Envelope:
    return Envelope("s", origin=Origin(f"tool:{tool}", tool_call_id=call_id))


def test_what_a_tool_changes_names_its_call(engine: MemoryLog) -> None:
    with Direct(engine) as direct:
        direct.ask(start("c1"))
        direct.ask(RegisterVariable(_by_tool("c1"), "x", "integer", integer(1)))
        last = list(fold(engine, direct.loaded("s").id))[-1]
        assert (last.record.source, last.record.tool_call_id) == ("tool:echo", "c1")


@pytest.mark.parametrize(("call_id", "tool"), [("c2", "echo"), ("c1", "other")])
def test_only_an_open_call_changes_anything(engine: MemoryLog, call_id: str, tool: str) -> None:
    with Direct(engine) as direct:
        direct.ask(start("c1"))
        direct.ask(RegisterVariable(Envelope("s"), "x", "integer", integer(1)))
        with pytest.raises(FailedPrecondition, match="is over"):
            direct.ask(SetVariable(_by_tool(call_id, tool), "x", integer(2)))
        assert direct.loaded("s").committed.head == 3


def test_a_tool_is_told_that_its_call_is_over(engine: MemoryLog) -> None:
    with Direct(engine) as direct:
        direct.ask(start("c1"))
        direct.ask(RegisterVariable(Envelope("s"), "x", "integer", integer(1)))
        direct.ask(finish(outcome="timeout"))
        with pytest.raises(FailedPrecondition, match="is over"):
            direct.ask(SetVariable(_by_tool("c1"), "x", integer(2)))
        direct.ask(CleanupSession(Envelope("s"), "cleanup"))
        with pytest.raises(SessionNotFound):
            direct.ask(SetVariable(_by_tool("c1"), "x", integer(2)))


def test_tools_are_registered_and_replaced(engine: MemoryLog) -> None:
    with Direct(engine) as direct:
        one = direct.ask(RegisterTools(Envelope("s", "r"), [("a", b"1"), ("b", b"2")], "w1"))
        assert one.answer.tool_ids == {"a": "tool_a_2", "b": "tool_b_2"}
        two = direct.ask(RegisterTools(Envelope("s"), [("b", b"3")], "w2"))
        assert two.answer.tool_ids == {"b": "tool_b_3"}
        tools = direct.loaded("s").committed.tools
        assert [(tool.spec, tool.worker_id) for tool in tools.values()] == [
            (b"1", "w1"),
            (b"3", "w2"),
        ]
        again = direct.ask(RegisterTools(Envelope("s", "r"), [("a", b"1"), ("b", b"2")], "w1"))
        assert again.answer.duplicate
        assert again.answer.tool_ids == one.answer.tool_ids
        shown = direct.ask(InitializeSession(Envelope("s")))
        assert list(shown.tools) == ["a", "b"]
        assert list(state_at(engine, direct.loaded("s").id, 2).tools) == ["a", "b"]


@pytest.mark.parametrize(
    ("command", "error", "says"),
    [
        (RegisterTools(Envelope("s"), [], "w"), InvalidRequest, "tools is empty"),
        (RegisterTools(Envelope("s"), [("", b"")], "w"), InvalidRequest, "1 to 256 bytes"),
        (RegisterTools(Envelope("s"), [("a\n", b"")], "w"), InvalidRequest, "control character"),
        (RegisterTools(Envelope("s"), [("a", b""), ("a", b"")], "w"), InvalidRequest, "twice"),
        (RegisterTools(Envelope("s"), [("a", b"")], "w" * 257), InvalidRequest, "worker_id"),
        (RegisterTools(Envelope("s"), [("a", bytes(65_537))], "w"), ResourceExhausted, "65536"),
        (
            RegisterTools(Envelope("s"), [(str(n), b"") for n in range(MAX_TOOLS + 1)], "w"),
            ResourceExhausted,
            "1001 tools",
        ),
        (start(session_id=""), InvalidRequest, "session_id"),
        (start(epoch="elsewhere"), EpochMismatch, "elsewhere"),
        (start(request_id="r" * 257), InvalidRequest, "request_id"),
    ],
)
def test_refused_and_nothing_changed(
    engine: MemoryLog,
    command: RegisterTools | StartTool,
    error: type[Exception],
    says: str,
) -> None:
    with Direct(engine) as direct:
        with pytest.raises(error, match=says):
            direct.ask(command)
        assert direct.committer.peek("s") is None


def test_open_calls_are_bounded(engine: MemoryLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snakepit_bridge.tool_rules.MAX_OPEN_CALLS", 2)
    with Direct(engine) as direct:
        direct.ask(start("c1"))
        direct.ask(start("c2"))
        with pytest.raises(ResourceExhausted, match="2 calls"):
            direct.ask(start("c3"))
        direct.ask(finish("c1"))
        direct.ask(start("c3"))


@pytest.fixture
def short_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the last eight requests of a log are remembered."""
    monkeypatch.setattr("snakepit_bridge.events.requests.REMEMBERED_REQUESTS", 8)


def test_an_id_is_known_as_long_as_its_call_runs_or_its_end_is_known(
    engine: MemoryLog, short_memory: None
) -> None:
    with Direct(engine) as direct:
        direct.ask(start("c1", request_id="r"))
        for number in range(9):
            direct.ask(RegisterTools(Envelope("s", f"other-{number}"), [("a", b"")], "w"))
        again = direct.ask(start("c2", request_id="r")).answer
        assert (again.duplicate, again.finished) == (True, None)
        with pytest.raises(RequestIdReused):
            direct.ask(start("c2", ToolArgument("x", VALUE.digest, VALUE), request_id="r"))
        direct.ask(finish("c1", value=VALUE))
        again = direct.ask(start("c3", request_id="r")).answer
        assert again.finished is not None
        assert not direct.loaded("s").committed.calls


def test_what_is_remembered_of_calls_follows_from_the_log(
    engine: MemoryLog, short_memory: None
) -> None:
    with Direct(engine) as direct:
        for number in range(20):
            direct.ask(start(f"c{number}", request_id=f"r{number}"))
            if number >= 6:  # so late that its start is forgotten
                direct.ask(finish(f"c{number - 6}"))
        log = direct.loaded("s")
        assert whole(folded(engine, log.id)) == whole(log.working)
