"""However much is in a bridge, and whatever is sent to it, the number of series is the same."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge.events.model import Origin
from snakepit_bridge.observation import CORRELATION_HEADER
from snakepit_bridge.telemetry.collector import BridgeCollector
from snakepit_bridge.telemetry.metrics import MAX_TOOLS, OUTCOMES, Metrics, WatchState
from snakepit_bridge.telemetry.names import TOOL_BUCKETS
from snakepit_bridge.telemetry.tool_calls import ToolObserver
from tests.hostile import PATH
from tests.raw_http2 import RawClient
from tests.scraping import Scrape, Series, settled
from tests.test_crowd import crowd
from tests.test_error_table import message_of
from tests.test_exposition import ExposedBridge
from tests.test_hostile_wire import framed
from tests.tool_client import TOOLS, ToolSession
from tests.watches import at_head
from tests.wire_session import TIMEOUT, Session, packed

SESSIONS = 10_000
VARIABLES = 1_000
UNKNOWN = 500
"""Methods and services that are not there."""

SNAKE = "\N{SNAKE}"

HOSTILE = [
    "",
    "a\nb",
    'a"} 1\n# TYPE x counter\nx{y="',
    "\\",
    "\0",
    SNAKE * 60,
    "x" * 256,
    "{}",
    "__name__",
    "other",
    "../../metrics",
]
"""Names that want to be something else in the text that Prometheus reads."""


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExposedBridge]:
    """One for all of these tests, each of which leaves in it what would make more series."""
    with ExposedBridge(tmp_path_factory.mktemp("many"), *TOOLS) as process:
        yield process
        assert process.stop() == 0
        assert "Traceback" not in process.stderr, process.stderr


@pytest.fixture
def unchanged(bridge: ExposedBridge) -> Iterator[set[Series]]:
    """Compares all series before with all series after."""
    before = set(settled(bridge.metrics).numbers)
    yield before
    after = set(settled(bridge.metrics).numbers)
    assert len(after) == len(before)
    assert after == before


def ends(calls: Sequence[Any]) -> set[str]:
    """Statuses of calls, once they have ended."""
    return {call.code().name for call in calls}


def test_sessions_are_no_series(bridge: ExposedBridge, unchanged: set[Series]) -> None:
    requests = (
        message_of("InitializeSession", session_id=f"session {number}")
        for number in range(SESSIONS)
    )
    assert len(crowd(bridge, "InitializeSession", requests)) == SESSIONS
    seen = settled(bridge.metrics)
    assert sum(seen.by("snakepit_bridge_sessions", "state").values()) >= SESSIONS
    assert seen("snakepit_bridge_events_total", kind="session_started") >= SESSIONS


def test_variables_are_no_series(bridge: ExposedBridge, unchanged: set[Series]) -> None:
    session = Session(bridge, "variables")
    names = [*HOSTILE[1:], *(f"variable {number}" for number in range(VARIABLES))]
    call: Any = bridge.channel.unary_unary(PATH + "RegisterVariable")
    begun = [
        call.future(
            message_of(
                "RegisterVariable",
                session_id=session.id,
                name=name,
                type="integer",
                initial_value=packed(1),
            ).SerializeToString(),
            timeout=TIMEOUT,
        )
        for name in names
    ]
    assert ends(begun) == {"OK", "INVALID_ARGUMENT"}
    with at_head(session, include_initial_values=True), at_head(session, "variable 7"):
        session.set("variable 7", 2)
    assert len(session.call("ListVariables").variables) >= VARIABLES


def test_methods_that_are_not_served_are_no_series(
    bridge: ExposedBridge, unchanged: set[Series]
) -> None:
    rng = random.Random(1)
    letters = string.ascii_letters + string.digits + "._%{}\"' "

    def word() -> str:
        return "".join(rng.choices(letters, k=rng.randint(1, 60)))

    made_up = [f"/{word()}/{word()}" for _ in range(UNKNOWN)]
    near = [
        PATH + "Nothing",
        PATH + "ping",
        PATH + "Ping/",
        PATH.lower() + "Ping",
        "/snakepit.bridge.BridgeServic/Ping",
        "/grpc.health.v1.Health/check",
        "/grpc.health.v2.Health/Check",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    ]
    before = settled(bridge.metrics)
    channel: Any = bridge.channel
    calls = [channel.unary_unary(path).future(b"", timeout=TIMEOUT) for path in made_up + near]
    assert ends(calls) == {"UNIMPLEMENTED"}
    after = settled(bridge.metrics)
    name = "grpc_server_started_total"
    assert after.by(name, "grpc_method") == before.by(name, "grpc_method")


def test_tools_that_are_not_here_are_no_series(
    bridge: ExposedBridge, unchanged: set[Series]
) -> None:
    session = ToolSession(bridge, "tools")
    session.call(
        "RegisterTools",
        tools=[{"name": f"tool {number}"} for number in range(1_000)],
        worker_id="worker",
    )
    names = [*HOSTILE, *(f"tool {number}" for number in range(1_000))]
    calls = [session.begin(name) for name in names]
    assert ends(calls) == {"NOT_FOUND"}
    for name in HOSTILE:
        with pytest.raises(grpc.RpcError):
            list(session.stream(name))


def test_what_clients_say_of_themselves_is_no_series(
    bridge: ExposedBridge, unchanged: set[Series]
) -> None:
    session = Session(bridge, "metadata")
    session.register("x")
    change = pb.SetVariableRequest(session_id=session.id, variable_identifier="x", value=packed(1))
    codes = set()
    for number in range(200):
        # Half of them say that a tool asks, whose call nobody knows.
        told = [("x-snakepit-tool", f"tool {number}"), ("x-snakepit-tool-call", f"call {number}")]
        told = told if number % 2 else []
        headers = (
            (CORRELATION_HEADER, f"c{number}"),
            ("traceparent", f"00-{number + 1:032x}-{number + 1:016x}-01"),
            ("tracestate", f"a={number}"),
            *told,
            ("user-agent", f"agent/{number}"),
            (f"x-header-{number}", "1"),
            ("x-binary-bin", bytes(range(number))),
        )
        change.metadata.clear()
        for name in HOSTILE:
            change.metadata[f"{name[:9]}{number}"] = name[:9]
        call = bridge.stub.SetVariable.future(change, timeout=TIMEOUT, metadata=headers)
        codes.add(call.code().name)
    assert codes == {"OK", "FAILED_PRECONDITION"}
    for name in HOSTILE:
        other = Session(bridge, name)
        for method in ("GetSession", "InitializeSession", "Heartbeat"):
            with_id = message_of(method, session_id=other.id).SerializeToString()
            raw: Any = bridge.channel.unary_unary(PATH + method)
            assert raw.future(with_id, timeout=TIMEOUT).code() is not grpc.StatusCode.INTERNAL
    with RawClient(bridge.port) as client:
        for value in (b"\xff\xfe", b"\x01", b'"} 1', b"x" * 4_000):
            headers_raw = ((CORRELATION_HEADER, value), ("traceparent", value))
            client.begin(PATH + "SetVariable", headers_raw)
            client.body(framed(b"\xff\xff"))
            client.closing()


# Of a bridge with more tools than have series of their own.


class _Still:
    """A bridge in which nothing is."""

    engine = "memory"

    def sessions(self) -> tuple[int, int]:
        return 0, 0

    def watches(self) -> WatchState:
        return WatchState(0, 0, 0)

    def log_size(self) -> int:
        return 0

    def spans_dropped(self) -> int:
        return 0


def collected(metrics: Metrics) -> Scrape:
    registry = CollectorRegistry()
    registry.register(BridgeCollector(metrics, _Still()))
    return Scrape.read(generate_latest(registry).decode())


def run(metrics: Metrics, tool: str) -> None:
    call = ToolObserver(metrics, None).observe(tool, "s", Origin("elixir"))
    call.begin()
    call.end("ok")


@pytest.mark.parametrize("registered", [0, 1, MAX_TOOLS, MAX_TOOLS + 1, 5_000])
def test_only_so_many_tools_have_series_of_their_own(registered: int) -> None:
    tools = [f"tool {number:04}" for number in range(registered)]
    metrics = Metrics((), tools)
    name = "snakepit_bridge_tool_seconds"
    before = set(collected(metrics).numbers)
    named = min(registered, MAX_TOOLS)
    buckets = len(TOOL_BUCKETS) + 1
    assert sum(series.name == f"{name}_bucket" for series in before) == (
        (named + 1) * len(OUTCOMES) * buckets
    )
    for tool in [*tools, "of nobody", *HOSTILE]:
        run(metrics, tool)
    after = collected(metrics)
    assert set(after.numbers) == before
    counts = after.by(f"{name}_count", "tool")
    assert {counts[tool] for tool in tools[:MAX_TOOLS]} <= {1}
    assert counts["other"] == registered - named + 1 + len(HOSTILE)


def test_a_tool_may_have_any_name_that_is_registered(tmp_path: Path) -> None:
    """What is a label is written so that it cannot be anything else."""
    metrics = Metrics((), HOSTILE)
    for tool in HOSTILE:
        run(metrics, tool)
    counts = collected(metrics).by("snakepit_bridge_tool_seconds_count", "tool")
    assert counts == dict.fromkeys(HOSTILE, 1)
