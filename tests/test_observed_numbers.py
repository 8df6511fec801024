"""What a real bridge counts beside its calls: the log, sessions, watches, tools, refusals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge.events.model import Origin
from snakepit_bridge.telemetry import names
from snakepit_bridge.telemetry.metrics import OUTCOMES, Metrics
from snakepit_bridge.telemetry.tool_calls import ToolObserver
from tests.hostile import PATH
from tests.raw_http2 import RawClient
from tests.scraping import Scrape, scrape, settled, until
from tests.test_error_table import NEVER, NOWHERE
from tests.test_exposition import ExposedBridge
from tests.test_hostile_wire import framed
from tests.tool_client import TOOLS, ToolSession, entries_now
from tests.watches import at_head, bookmark_of, wait_until, watch
from tests.wire_session import Session, packed, refused

OURS = "snakepit_bridge_"

Start = Callable[..., ExposedBridge]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts bridges that serve one log, one after the other."""
    started: list[ExposedBridge] = []

    def begin(*arguments: str) -> ExposedBridge:
        if started:
            assert started[-1].stop() == 0
        started.append(ExposedBridge(tmp_path, *arguments))
        return started[-1]

    yield begin
    assert started[-1].stop() == 0
    for process in started:
        assert "Traceback" not in process.stderr, process.stderr


def rise(before: Scrape, after: Scrape, name: str, **labels: str) -> float:
    return after(OURS + name, **labels) - before(OURS + name, **labels)


# The log.


def test_events_and_bytes_are_those_of_the_log(start: Start, tmp_path: Path) -> None:
    bridge = start(*TOOLS)
    session = ToolSession(bridge, "s")
    session.register("x", "", "string")
    session.register("y")
    session.set("y", 2, request_id="once")
    assert session.set("y", 2, request_id="once").duplicate
    session.set_many({"y": packed(3), "x": packed("a", "string")}, atomic=True)
    session.roll_back("y", 1)
    with refused("INVALID_ARGUMENT"):
        session.set("y", "text", "string")
    session.call("StartOptimization", variable_identifier="y", optimizer_id="o")
    session.call("StopOptimization", variable_identifier="y", force=True)
    session.delete("y")
    session.run("add", {"a": 1})
    session.call("RegisterTools", tools=[{"name": "elsewhere"}], worker_id="w")
    session.end()
    seen = settled(bridge.metrics)
    log = entries_now(tmp_path / "bridge.db", "s")
    kinds = Counter(entry.kind for entry in log)
    assert len(kinds) >= 9
    counted = seen.by(OURS + "events_total", "kind")
    assert {kind: count for kind, count in counted.items() if count} == kinds
    assert seen(OURS + "log_commit_events_sum") == len(log)
    commits = seen(OURS + "log_commit_seconds_count")
    assert commits == seen(OURS + "log_append_seconds_count")
    assert commits == seen(OURS + "log_commit_events_count")
    assert 0 < commits <= len(log)
    for name in ("log_append", "log_commit"):
        assert 0 < seen(f"{OURS}{name}_seconds_sum") < 10
    assert seen(OURS + "log_append_seconds_sum") < seen(OURS + "log_commit_seconds_sum")


@pytest.mark.parametrize("size", [100_000, 1_000_000], ids=["in its record", "in a file"])
def test_bytes_are_counted_as_they_are_written(start: Start, size: int) -> None:
    bridge = start()
    session = Session(bridge, "s")
    session.register("x", "", "string")
    before = scrape(bridge.metrics)
    session.set("x", "v" * size, "string")
    after = settled(bridge.metrics)
    assert size < rise(before, after, "log_bytes_total") < size + 1_000


def test_the_size_of_the_log_is_that_of_its_files(start: Start, tmp_path: Path) -> None:
    bridge = start()
    session = Session(bridge, "s")
    session.register("x", "", "string")
    for letter in "abc":
        session.set("x", letter * 1_000_000, "string")

    def size() -> int:
        kept = ("-shm", ".lock", ".ballast")
        files = [path for path in tmp_path.rglob("*") if "bridge.db" in str(path)]
        return sum(
            path.stat().st_size for path in files if path.is_file() and path.suffix not in kept
        )

    # Files of values are looked at now and then, so by a bridge that has just begun.
    again = start()
    seen = until(
        again.metrics,
        lambda seen: abs(seen(OURS + "log_size_bytes") - size()) < 100_000,
        f"the size is {size()}",
    )
    assert seen(OURS + "log_size_bytes") > 3_000_000


def test_sessions_snapshots_and_rebuilds(start: Start) -> None:
    bridge = start("--snapshot-every", "20")
    for number in range(5):
        Session(bridge, f"s{number}").register("x")
    busy = Session(bridge, "s0")
    for number in range(50):
        busy.set("x", number)
    Session(bridge, "s4").end()
    seen = until(
        bridge.metrics,
        lambda seen: seen(OURS + "snapshot_seconds_count") >= 1,
        "a snapshot is written",
    )
    assert seen.by(OURS + "sessions", "state") == {"loaded": 4, "idle": 0}
    assert seen(OURS + "projection_rebuild_seconds_count") == 0
    assert seen(OURS + "snapshot_seconds_count") <= 55 // 20 + 1

    again = start()
    assert scrape(again.metrics).by(OURS + "sessions", "state") == {"loaded": 0, "idle": 4}
    for number in range(2):
        Session(again, f"s{number}").get("x")
        Session(again, f"s{number}").get("x")
    seen = settled(again.metrics)
    assert seen.by(OURS + "sessions", "state") == {"loaded": 2, "idle": 2}
    assert seen(OURS + "projection_rebuild_seconds_count") == 2
    assert seen(OURS + "projection_rebuild_seconds_sum") > 0


# Watches.


def deaf(bridge: ExposedBridge, session: Session, **fields: Any) -> RawClient:  # noqa: ANN401
    """Open a watch on a connection of its own, and never read what comes."""
    client = RawClient(bridge.port)
    client.begin(PATH + "WatchVariables")
    request = pb.WatchVariablesRequest(session_id=session.id, **fields)
    client.body(framed(request.SerializeToString()))
    return client


HUNDRED = [f"v{number}" for number in range(100)]
BATCHES = 12


def test_watches_that_read_and_watches_that_do_not(start: Start) -> None:
    bridge = start()
    session = Session(bridge, "s")
    session.register("x", "", "string")
    for name in HUNDRED:
        session.register(name)
    with at_head(session) as fast, deaf(bridge, session):
        before = until(
            bridge.metrics, lambda seen: seen(OURS + "watchers") == 2, "both watches are open"
        )
        assert before(OURS + "slow_watchers") == before(OURS + "watch_lag_events") == 0
        # More than a connection takes that nobody reads.
        session.set("x", "v" * 200_000, "string")
        fast.next()
        for number in range(BATCHES):
            session.set_many({name: packed(number) for name in HUNDRED}, atomic=True)
        fast.take(BATCHES * 100)
        seen = until(
            bridge.metrics,
            lambda seen: rise(before, seen, "watch_delivered_total") >= BATCHES * 100 + 1,
            "all is delivered to who reads",
        )
        assert rise(before, seen, "watch_delivered_total") == BATCHES * 100 + 1
        assert rise(before, seen, "watch_delivery_seconds_count") == BATCHES * 100 + 1
        assert 0 < rise(before, seen, "watch_delivery_seconds_sum") < 5 * BATCHES * 100
        assert seen(OURS + "watchers") == 2
        assert seen(OURS + "slow_watchers") == 1
        assert seen(OURS + "watch_lag_events") == BATCHES * 100
    seen = until(bridge.metrics, lambda seen: seen(OURS + "watchers") == 0, "both watches close")
    assert seen(OURS + "slow_watchers") == seen(OURS + "watch_lag_events") == 0
    assert seen.codes("WatchVariables") == {"Canceled": 2}


def test_what_was_written_to_a_watch_before_it_was_cut_is_counted(start: Start) -> None:
    bridge = start()
    session = Session(bridge, "s")
    session.register("a")
    session.register("z", "", "string")
    with deaf(bridge, session):
        until(bridge.metrics, lambda seen: seen(OURS + "watchers") == 1, "the watch is open")
        # The first of the two is written, the second waits for a client that never reads.
        change = {"a": packed(2), "z": packed("v" * 200_000, "string")}
        session.set_many(change, atomic=True)
        sent = {"grpc_method": "WatchVariables"}
        until(
            bridge.metrics,
            lambda seen: seen("grpc_server_msg_sent_total", **sent) == 1,
            "one update is written",
        )
    until(bridge.metrics, lambda seen: seen(OURS + "watchers") == 0, "the watch is closed")
    seen = settled(bridge.metrics)
    assert seen("grpc_server_msg_sent_total", **sent) == 1
    assert seen(OURS + "watch_delivered_total") == 1


def test_watches_that_catch_up_with_the_past(start: Start) -> None:
    bridge = start()
    session = Session(bridge, "s")
    for name in HUNDRED:
        session.register(name)
    for number in range(30):
        session.set_many({name: packed(number) for name in HUNDRED}, atomic=True)

    session = Session(start(), "s")
    bridge = session.bridge  # type: ignore[assignment]
    past = {"after_offset": 0, "log_epoch": session.call("GetSession").log_epoch}
    with deaf(bridge, session, **past):
        # It takes what fits into the buffers on the way, and no more.
        seen = until(bridge.metrics, lambda seen: seen(OURS + "slow_watchers") == 1, "it is behind")
        assert seen(OURS + "watchers") == 1
        assert seen(OURS + "watch_lag_events") > 1_000
        with watch(session, send_caught_up=True, **past) as late:
            updates = late.until("caught_up")
            assert bookmark_of(updates[-1]).resume_offset == session.head
            assert len(updates) == 3_000 + 1
            seen = until(
                bridge.metrics,
                lambda seen: seen(OURS + "watch_delivered_total") >= 3_000,
                "all of the past is delivered",
            )
            assert (seen(OURS + "watchers"), seen(OURS + "slow_watchers")) == (2, 1)
            # How long the past has waited says nothing of this bridge.
            assert seen(OURS + "watch_delivery_seconds_count") == 0
            session.set("v0", 99)
            late.next()
            until(
                bridge.metrics,
                lambda seen: seen(OURS + "watch_delivery_seconds_count") == 1,
                "what is new is timed",
            )


# Tools.


def tools(seen: Scrape, tool: str) -> dict[str, float]:
    """Calls of a tool, by outcome, where there are any."""
    found = seen.by(OURS + "tool_seconds_count", "outcome", tool=tool)
    assert tuple(found) == OUTCOMES
    return {outcome: count for outcome, count in found.items() if count}


def test_tools_are_timed_by_how_they_end(start: Start, tmp_path: Path) -> None:
    bridge = start(*TOOLS)
    session = ToolSession(bridge, "s")
    before = scrape(bridge.metrics)
    session.run("add", {"a": 1})
    session.run("add_isolated", {"a": 1})
    list(session.stream("count_to", {"to": 3}))
    assert not session.run("raises", {"what": "ValueError"}).success
    with pytest.raises(grpc.RpcError):
        list(session.stream("breaks_off"))
    with refused("DEADLINE_EXCEEDED"):
        session.run("too_slow_async", {"runs": NOWHERE, "go": NEVER})
    with refused("NOT_FOUND"):
        session.run("nobody")
    with refused("INVALID_ARGUMENT"):
        session.run("add", {"a": "text"})

    runs = tmp_path / "runs"
    waiting = {"runs": str(runs), "go": NEVER}
    left = session.begin("count_run_async", waiting)
    wait_until(lambda: runs.exists() and runs.read_text(), "it runs")
    assert scrape(bridge.metrics)(OURS + "tools_running") == 1
    left.cancel()
    late = session.begin("count_run_async", waiting, timeout=0.3)
    assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    stream = session.stream("for_ever_async", {"runs": NOWHERE})
    next(stream)
    assert scrape(bridge.metrics)(OURS + "tools_running") == 1
    stream.cancel()
    ended = ToolSession(bridge, "ended")
    forced = ended.begin("count_run_async", {**waiting, "runs": str(tmp_path / "forced")})
    wait_until((tmp_path / "forced").exists, "it runs, too")
    ended.end(force=True)
    assert forced.code() is grpc.StatusCode.CANCELLED

    seen = settled(bridge.metrics)
    assert seen(OURS + "tools_running") == 0
    assert tools(seen, "add") == tools(seen, "add_isolated") == tools(seen, "count_to") == {"ok": 1}
    assert tools(seen, "raises") == tools(seen, "breaks_off") == {"error": 1}
    assert tools(seen, "too_slow_async") == {"timeout": 1}
    assert tools(seen, "count_run_async") == {"cancelled": 2, "timeout": 1}
    assert tools(seen, "for_ever_async") == {"cancelled": 1}
    assert tools(seen, "other") == {}
    assert 0.25 < seen(OURS + "tool_seconds_sum", tool="too_slow_async") < 5
    assert rise(before, seen, "tool_seconds_count") == 10
    kinds = seen.by(OURS + "events_total", "kind")
    assert kinds["tool_started"] == kinds["tool_finished"] == 10


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_the_first_to_say_how_a_tool_ended_is_right(outcome: str) -> None:
    metrics = Metrics((), ["known"])
    observer = ToolObserver(metrics, None)
    for tool in ("known", "unknown"):
        call = observer.observe(tool, "s", Origin("elixir"))
        call.end("error")  # it has not begun
        call.begin()
        assert metrics.tools_running == 1
        call.end(outcome)
        call.end("ok")
        call.end("error")
        assert metrics.tools_running == 0
    found = {key: [*times.buckets()][-1][1] for key, times in metrics.tools.items()}
    counted = {key for key, count in found.items() if count}
    assert counted == {("known", outcome), ("other", outcome)}
    assert sum(found.values()) == 2


# Refusals.


def test_refusals_are_counted_by_their_reason_and_nothing_else_is(start: Start) -> None:
    bridge = start(*TOOLS)
    session = ToolSession(bridge, "s")
    session.register("x")
    session.register("y")
    session.set("x", 2, request_id="r")
    before = settled(bridge.metrics)
    assert sum(before.by(OURS + "rejected_total", "reason").values()) == 0
    with refused("NOT_FOUND"):
        Session(bridge, "nobody").get("x")
    with refused("NOT_FOUND"):
        session.get("nothing")
    with refused("NOT_FOUND"):
        session.run("nobody")
    with refused("NOT_FOUND"):
        session.roll_back("x", 9)
    with refused("ALREADY_EXISTS"):
        session.register("x")
    with refused("ABORTED"):
        session.set("x", 3, expected_version=9)
    with refused("INVALID_ARGUMENT"):
        session.set("x", "text", "string")
    with refused("INVALID_ARGUMENT"):
        session.register("z", constraints_json="[]")
    with refused("INVALID_ARGUMENT"):
        session.set("x", 3, request_id="r")
    with refused("FAILED_PRECONDITION"):
        session.set("x", 3, log_epoch="another")
    with refused("UNIMPLEMENTED"):
        session.call("AddDependency")
    with pytest.raises(grpc.RpcError):
        next(watch(session, after_offset=99, log_epoch=session.call("GetSession").log_epoch).call)
    with pytest.raises(grpc.RpcError):
        list(session.stream("breaks_off"))
    # One batch that is refused in part is no refused request; nor is a tool that raises.
    answer = session.set_many({"x": packed(4), "y": packed("text", "string")})
    assert list(answer.errors) == ["y"]
    assert not session.run("raises", {"what": "ValueError"}).success
    seen = settled(bridge.metrics)
    reasons = seen.by(OURS + "rejected_total", "reason")
    assert {reason: count for reason, count in reasons.items() if count} == dict.fromkeys(
        (
            *("SESSION_NOT_FOUND", "VARIABLE_NOT_FOUND", "TOOL_NOT_FOUND", "VERSION_NOT_FOUND"),
            *("VARIABLE_EXISTS", "VERSION_CONFLICT", "INVALID_VALUE", "INVALID_CONSTRAINTS"),
            *("REQUEST_ID_REUSED", "LOG_EPOCH_MISMATCH", "UNIMPLEMENTED", "OFFSET_OUT_OF_RANGE"),
            "TOOL_RAISED",
        ),
        1,
    )
    failed = sum(
        count
        for code, count in seen.by("grpc_server_handled_total", "grpc_code").items()
        if code not in ("OK", names.CODES["CANCELLED"])
    )
    assert failed == sum(reasons.values())
