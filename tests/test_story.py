"""What happened in the sessions, as the log tells it."""

from __future__ import annotations

import json
import logging
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge.event_log_pb2 import Event, Record
from snakepit_bridge.events.codec import seal
from snakepit_bridge.events.model import Draft, Envelope, LogId, Origin, Transaction
from snakepit_bridge.telemetry.story import TOLD_ONE_BY_ONE, Story
from tests.bridge_process import BridgeProcess
from tests.tool_client import TOOLS, ToolSession
from tests.wire_session import TIMEOUT, packed

LOG = LogId("s", "epoch")
ELIXIR = Origin("elixir")
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CALLED = (("traceparent", TRACE), ("x-snakepit-correlation-id", "c-1"))

Line = dict[str, Any]


# From events, in this process.


class Told:
    """What ``Story`` says of transactions."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog
        self._story = Story()
        self.head = 0

    def transaction(self, *events: Event, origin: Origin = ELIXIR) -> Transaction:
        draft = Draft(events)
        cause = (Envelope("s", origin=origin, metadata={"k": "hidden"}), None)
        _, transaction = seal(draft, cause, (1, "instance"), (self.head, bytes(32), 0))
        self.head = transaction.last_offset
        return transaction

    def __call__(
        self, *transactions: Transaction, level: int = logging.INFO
    ) -> Sequence[tuple[str, str, Line]]:
        standard = vars(logging.makeLogRecord({})).keys() | {"message"}
        with self._caplog.at_level(level, "snakepit_bridge.telemetry.story"):
            self._caplog.clear()
            self._story.committed(LOG, transactions)
            return [
                (
                    record.levelname,
                    record.getMessage(),
                    {key: value for key, value in vars(record).items() if key not in standard},
                )
                for record in self._caplog.records
            ]


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Told:
    return Told(caplog)


def event(kind: str, **fields: Any) -> Event:  # noqa: ANN401 - of any message
    made = Event()
    body = getattr(made, kind)
    body.SetInParent()
    for name, value in fields.items():
        if name == "config":
            body.config.update(value)
        elif name == "tools":
            for tool in value:
                body.tools.add(name=tool, spec=b"hidden")
        else:
            setattr(body, name, value)
    return made


HIDDEN = {"value_digest": b"hidden".ljust(32), "previous_digest": b"hidden".ljust(32)}
EVENTS: dict[str, tuple[Event, Line]] = {
    "session started": (event("session_started"), {}),
    "session ended": (
        event("session_ended", reason="cleanup", resources=3),
        {"reason": "cleanup", "resources": 3},
    ),
    "session expired": (
        event("session_ended", reason="expired", resources=1),
        {"reason": "expired", "resources": 1},
    ),
    "session forked": (
        event("session_forked", session_id="old", log_epoch="e", offset=9),
        {"from_session_id": "old", "from_offset": 9},
    ),
    "variable registered": (
        event(
            "variable_registered",
            id="var_x_1",
            name="x",
            type="float",
            constraints_json="hidden",
            value_digest=HIDDEN["value_digest"],
        ),
        {"variable": "var_x_1", "variable_name": "x", "variable_type": "float"},
    ),
    "variable rolled back": (
        event("variable_set", id="var_x_1", version=4, rolled_back_to=2, **HIDDEN),
        {"variable": "var_x_1", "version": 4, "rolled_back_to": 2},
    ),
    "variable deleted": (
        event("variable_deleted", id="var_x_1", version=4),
        {"variable": "var_x_1", "version": 4},
    ),
    "optimization started": (
        event(
            "optimization_started",
            id="var_x_1",
            optimization_id="hidden",
            optimizer_id="o",
            config={"k": "hidden"},
        ),
        {"variable": "var_x_1", "optimizer_id": "o"},
    ),
    "optimization stopped": (
        event("optimization_stopped", id="var_x_1", optimization_id="hidden", reason="stale"),
        {"variable": "var_x_1", "reason": "stale"},
    ),
    "tools registered": (
        event("tools_registered", worker_id="w", tools=["a", "b"]),
        {"worker_id": "w", "tools": "a, b", "count": 2},
    ),
    "tool started": (
        event("tool_started", call_id="c", tool="t", streaming=True),
        {"call_id": "c", "tool": "t", "streaming": True},
    ),
    "tool finished": (
        event(
            "tool_finished",
            call_id="c",
            outcome="error",
            duration_nanos=1_500_000,
            error_type="ValueError",
            error_message="hidden",
            error_traceback="hidden",
            chunks=2,
        ),
        {
            "call_id": "c",
            "outcome": "error",
            "duration_ms": 1.5,
            "error_type": "ValueError",
            "chunks": 2,
        },
    ),
    "values redacted": (event("value_redacted", reason="hidden"), {"count": 0}),
}


@pytest.mark.parametrize("said", EVENTS)
def test_each_kind_is_told_with_its_names(told: Told, said: str) -> None:
    happened, fields = EVENTS[said]
    [(level, event_, extra)] = told(told.transaction(happened), level=logging.DEBUG)
    assert (level, event_) == ("INFO", said)
    kind = happened.WhichOneof("kind")
    about = {"session_id": "s", "offset": 1, "kind": kind, "source": "elixir"}
    assert extra == {**about, **fields}
    assert "hidden" not in repr(extra)


def test_every_kind_is_known() -> None:
    kinds = {field.name for field in Event.DESCRIPTOR.oneofs_by_name["kind"].fields}
    told = {happened.WhichOneof("kind") for happened, _ in EVENTS.values()}
    assert told == kinds


def test_plain_sets_are_for_debugging(told: Told) -> None:
    changes = [
        told.transaction(event("variable_set", id="var_x_1", version=n, **HIDDEN)) for n in (2, 3)
    ]
    batch = told.transaction(event("variable_set", id="a"), event("variable_deleted", id="b"))
    assert [line[1] for line in told(*changes, batch)] == ["variable deleted"]
    lines = told(*changes, batch, level=logging.DEBUG)
    assert [(level, said) for level, said, _ in lines] == [
        ("DEBUG", "variable set"),
        ("DEBUG", "variable set"),
        ("DEBUG", "variable set"),
        ("INFO", "variable deleted"),
    ]
    assert [extra["offset"] for _, _, extra in lines] == [1, 2, 3, 4]
    assert not told(*changes, batch, level=logging.WARNING)


def test_who_did_it_and_for_whom(told: Told) -> None:
    origin = Origin("tool:t", "c-1", TRACE, "x=hidden", "call-1")
    [(_, _, extra)] = told(
        told.transaction(event("tool_finished", call_id="call-1"), origin=origin)
    )
    assert extra["tool"] == "t"
    assert (extra["source"], extra["tool_call_id"]) == ("tool:t", "call-1")
    assert (extra["correlation_id"], extra["trace_id"]) == ("c-1", TRACE[3:35])
    assert extra["span_id"] == TRACE[36:52]
    assert "hidden" not in repr(extra)
    [(_, _, extra)] = told(
        told.transaction(event("session_started"), origin=Origin("elixir", traceparent="nonsense"))
    )
    assert "trace_id" not in extra


def test_a_large_transaction_is_a_line_for_each_kind(told: Told) -> None:
    registered = [event("variable_registered", id=f"v{n}", name=f"n{n}") for n in range(10_000)]
    transaction = told.transaction(event("session_started"), *registered)
    lines = told(transaction)
    assert [extra["kind"] for _, _, extra in lines] == ["session_started", "variable_registered"]
    assert (lines[1][2]["count"], lines[1][2]["offset"]) == (10_000, 2)
    few = told.transaction(*registered[:TOLD_ONE_BY_ONE])
    assert len(told(few)) == TOLD_ONE_BY_ONE
    assert len(told(told.transaction(*registered[: TOLD_ONE_BY_ONE + 1]))) == 1


def test_many_tools_are_not_all_named(told: Told) -> None:
    tools = [f"tool{n}" for n in range(1_000)]
    [(_, _, extra)] = told(told.transaction(event("tools_registered", tools=tools)))
    assert extra["count"] == 1_000
    assert extra["tools"].endswith("tool7, and 992 more")


def test_what_is_hidden_is_not_looked_at(told: Told) -> None:
    """Where INFO is hidden not even a broken record is noticed."""
    broken = Transaction(Record(), b"", (("no such kind", None),), (), 1, b"")
    assert not told(broken, level=logging.WARNING)
    with pytest.raises(KeyError):
        told(broken)


# From a real bridge.


def lines_of(bridge: BridgeProcess) -> list[Line]:
    return [json.loads(line) for line in bridge.stderr_lines if line.startswith("{")]


def stories(bridge: BridgeProcess, session_id: str) -> Iterator[Line]:
    for line in lines_of(bridge):
        if line.get("session_id") == session_id and line["event"] != "a request was refused":
            yield line


def wait_for(bridge: BridgeProcess, said: str, count: int = 1) -> None:
    end = time.monotonic() + TIMEOUT
    while sum(said in line for line in list(bridge.stderr_lines)) < count:
        assert time.monotonic() < end, bridge.stderr
        time.sleep(0.01)


def test_the_story_of_a_session(tmp_path: Path) -> None:
    options = ("--log-format", "json", *TOOLS)
    with BridgeProcess(tmp_path / "bridge.db", *options) as bridge:
        session = ToolSession(bridge, "s")
        session.call("InitializeSession", CALLED)
        session.register("x", 1)
        session.register("y", 2)
        watch = bridge.stub.WatchVariables(
            pb.WatchVariablesRequest(session_id="s", include_initial_values=True),
            timeout=TIMEOUT,
            metadata=CALLED,
        )
        seen = [next(watch), next(watch)]
        wait_for(bridge, "watch opened")
        for n in range(5):
            session.set("x", n)
        session.roll_back("x", 1)
        seen += [next(watch) for _ in range(6)]
        watch.cancel()
        wait_for(bridge, "watch closed")
        last = seen[-1]
        resumed = bridge.stub.WatchVariables(
            pb.WatchVariablesRequest(
                session_id="s",
                after_offset=last.offset,
                log_epoch=last.log_epoch,
                resume_check=last.resume_check,
            ),
            timeout=TIMEOUT,
        )
        wait_for(bridge, "watch resumed")
        # A refusal and a duplicate are no part of it.
        with pytest.raises(grpc.RpcError):
            session.register("x", 1)
        assert session.delete("y", request_id="once").success
        assert session.delete("y", request_id="once").duplicate
        assert session.run("add", {"a": 1, "b": 2}, CALLED).success
        optimization = session.call(
            "StartOptimization", variable_identifier="x", optimizer_id="o"
        ).optimization_id
        session.call("StopOptimization", variable_identifier="x", optimization_id=optimization)
        session.end()
        list(resumed)  # to its end
        assert bridge.stop() == 0
    found = list(stories(bridge, "s"))
    assert [line["event"] for line in found if not line["event"].startswith("watch")] == [
        "session started",
        "variable registered",
        "variable registered",
        "variable rolled back",
        "variable deleted",
        "tool started",
        "tool finished",
        "optimization started",
        "optimization stopped",
        "session ended",
    ]
    watches = [line for line in found if line["event"].startswith("watch")]
    assert [(line["event"], line["offset"]) for line in watches] == [
        ("watch opened", 3),
        ("watch closed", 9),
        ("watch resumed", 9),
        ("watch closed", 15),
    ]
    for line in watches[:2]:  # made inside of the call
        assert line["correlation_id"] == "c-1"
    assert [line["why"] for line in watches if "why" in line] == [
        "its client is gone",
        "the session ended",
    ]
    offsets = [line["offset"] for line in found if not line["event"].startswith("watch")]
    assert offsets == [1, 2, 3, 9, 10, 11, 12, 13, 14, 15]
    assert all(line["level"] == "info" for line in found)
    started = found[0]
    assert (started["correlation_id"], started["trace_id"]) == ("c-1", TRACE[3:35])
    [begun, ended] = [line for line in found if line["event"].startswith("tool ")]
    assert begun["tool"] == ended["tool"] == "add"
    assert begun["call_id"] == ended["call_id"]
    assert ended["outcome"] == "ok"
    assert ended["duration_ms"] > 0
    assert ended["trace_id"] == TRACE[3:35]
    said = [line["event"] for line in lines_of(bridge)]
    assert said[0].startswith("serving sqlite:")
    assert said[-2:] == ["draining 0 calls", "stopped"]


def test_debugging_shows_each_set(tmp_path: Path) -> None:
    options = ("--log-format", "json", "--log-level", "debug")
    with BridgeProcess(tmp_path / "bridge.db", *options) as bridge:
        session = ToolSession(bridge, "s")
        session.start()
        session.register("x", 1)
        session.set("x", 2)
        session.set_many({"x": packed(3)})
        assert bridge.stop() == 0
    sets = [line for line in stories(bridge, "s") if line["event"] == "variable set"]
    assert [(line["level"], line["version"]) for line in sets] == [("debug", 2), ("debug", 3)]


def test_an_expiry_is_told_as_one() -> None:
    options = ("--log-format", "json", "--session-ttl", "0.3")
    with BridgeProcess("memory:", *options) as bridge:
        ToolSession(bridge, "s").start()
        wait_for(bridge, "session expired")
        assert bridge.stop() == 0
    [line] = [line for line in stories(bridge, "s") if line["event"] == "session expired"]
    assert (line["source"], line["offset"]) == ("bridge", 2)


def test_a_slow_watch_falls_behind_and_catches_up(tmp_path: Path) -> None:
    options = ("--log-format", "json")
    with BridgeProcess(tmp_path / "bridge.db", *options) as bridge:
        session = ToolSession(bridge, "s")
        first = session.start()
        session.register("x", "", "string")
        # 17 times a MiB, more than what is kept in memory for watchers of all logs.
        for _ in range(17):
            session.set("x", "v" * 2**20, "string")
        watch = bridge.stub.WatchVariables(
            pb.WatchVariablesRequest(
                session_id="s", after_offset=1, log_epoch=first.log_epoch, max_value_bytes=10
            ),
            timeout=TIMEOUT,
        )
        assert len([next(watch) for _ in range(17)]) == 17
        wait_for(bridge, "watch caught up")
        bridge.process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError):
            next(watch)
        assert bridge.stop() == 0
    told = [line for line in stories(bridge, "s") if line["event"].startswith("watch")]
    assert [line["event"] for line in told] == [
        "watch resumed",
        "watch fell behind",
        "watch caught up",
        "watch closed",
    ]
    assert [line["offset"] for line in told] == [1, 1, 19, 19]
    assert told[-1]["why"] == "the bridge is shutting down"
