"""What a real bridge counts of its calls, in whatever way they end; and what it says of them."""

from __future__ import annotations

import asyncio
import random
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge import bridge_service_pb2_grpc as stubs
from snakepit_bridge.observation import CORRELATION_HEADER
from snakepit_bridge.telemetry import names
from tests.hostile import PATH
from tests.otlp_receiver import GrpcReceiver
from tests.raw_http2 import RawClient
from tests.scraping import OPENMETRICS, Scrape, fetch, scrape, settled, until
from tests.test_error_table import fault_of
from tests.test_exposition import ExposedBridge
from tests.test_hostile_wire import framed
from tests.tool_client import TOOLS, ToolSession
from tests.watches import at_head, watch
from tests.wire_session import METHODS, TIMEOUT, Session, packed, refused

SNAKE = "\N{SNAKE}"

NOWHERE = {"runs": "/dev/null", "go": "/nonexistent/go"}
"""Has a tool run until somebody ends it."""


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExposedBridge]:
    with ExposedBridge(tmp_path_factory.mktemp("observed"), *TOOLS) as process:
        yield process
        assert process.stop() == 0
        assert "Traceback" not in process.stderr, process.stderr


@pytest.fixture
def session(bridge: ExposedBridge, request: pytest.FixtureRequest) -> ToolSession:
    return ToolSession(bridge, request.node.name)


# However a call ends.

CALLS = 1_000
AT_ONCE = 40

DEFINITE = {"NOT_FOUND": "NotFound", "INVALID_ARGUMENT": "InvalidArgument", "INTERNAL": "Internal"}
"""What a client hears only if the bridge has said it."""


class Random:
    """A client that does one thing after the other, of which it tells the ends."""

    def __init__(self, bridge: ExposedBridge, channel: grpc.aio.Channel, seed: int) -> None:
        self._rng = random.Random(seed)
        self._port = bridge.port
        self._channel: Any = channel
        self._stub: Any = stubs.BridgeServiceStub(channel)
        self._health: Any = health_pb2_grpc.HealthStub(channel)
        reflecting: Any = channel  # the stub's type knows none that is asynchronous
        self._reflection: Any = reflection_pb2_grpc.ServerReflectionStub(reflecting)
        self.begun: Counter[str] = Counter()
        """By method."""
        self.ended: Counter[tuple[str, str]] = Counter()
        """By method and status, as the client sees it."""
        self.done: Counter[str] = Counter()
        """What was done."""

    async def one(self) -> None:
        action = self._rng.choice(_ACTIONS)
        await action(self)
        self.done[action.__name__] += 1

    async def _read(
        self,
        method: str,
        call: Any,  # noqa: ANN401 - of each type its own
        cancel_after: float | None = None,
        most: int | None = None,
    ) -> None:
        """Read a call to its end, or ``most`` messages of it, and note how it ended."""
        self.begun[method] += 1
        cancelling = asyncio.get_running_loop().call_later(
            TIMEOUT if cancel_after is None else cancel_after, call.cancel
        )
        with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            if hasattr(call, "__aiter__"):
                seen = 0
                async for _ in call:
                    seen += 1
                    if seen == most:
                        call.cancel()
            else:
                await call
        self.ended[method, (await call.code()).name] += 1
        cancelling.cancel()

    def _soon(self) -> float:
        """Seconds within which a call begins, runs or ends."""
        return self._rng.choice((0.0, 0.001, 0.003, 0.01, 0.03)) * self._rng.random()

    def _set(self, timeout: float = TIMEOUT) -> Any:  # noqa: ANN401 - a call
        request = pb.SetVariableRequest(
            session_id="random", variable_identifier="x", value=packed(1)
        )
        return self._stub.SetVariable(request, timeout=timeout)

    def _tool(self, name: str, stream: bool = False, timeout: float = TIMEOUT) -> Any:  # noqa: ANN401
        arguments = {} if name == "nothing" else dict(NOWHERE)
        if name == "for_ever_async":
            del arguments["go"]
        request = ToolSession(None, "random").request(name, arguments)  # type: ignore[arg-type]
        method = self._stub.ExecuteStreamingTool if stream else self._stub.ExecuteTool
        return method(request, timeout=timeout)

    def _watch(self, timeout: float = TIMEOUT) -> Any:  # noqa: ANN401 - a call
        request = pb.WatchVariablesRequest(session_id="random", include_initial_values=True)
        return self._stub.WatchVariables(request, timeout=timeout)

    async def succeeds(self) -> None:
        await self._read("SetVariable", self._set())

    async def is_refused(self) -> None:
        request = pb.GetVariableRequest(session_id="random", variable_identifier="nothing")
        await self._read("GetVariable", self._stub.GetVariable(request, timeout=TIMEOUT))

    async def is_malformed(self) -> None:
        call = self._channel.unary_unary(PATH + "GetSession")(b"\xff\xff", timeout=TIMEOUT)
        await self._read("GetSession", call)

    async def is_cancelled(self) -> None:
        await self._read("SetVariable", self._set(), self._soon())

    async def is_late(self) -> None:
        await self._read("SetVariable", self._set(timeout=self._soon()))

    async def tool_is_cancelled(self) -> None:
        await self._read("ExecuteTool", self._tool("count_run_async"), self._soon())

    async def tool_is_late(self) -> None:
        await self._read("ExecuteTool", self._tool("count_run_async", timeout=0.06 + self._soon()))

    async def stream_breaks_off(self) -> None:
        request = pb.ExecuteToolRequest(session_id="random", tool_name="breaks_off")
        call = self._stub.ExecuteStreamingTool(request, timeout=TIMEOUT)
        await self._read("ExecuteStreamingTool", call)

    async def stream_is_cut(self) -> None:
        call = self._tool("for_ever_async", stream=True)
        await self._read("ExecuteStreamingTool", call, most=self._rng.randint(1, 20))

    async def stream_is_cancelled(self) -> None:
        call = self._tool("for_ever_async", stream=True)
        await self._read("ExecuteStreamingTool", call, self._soon())

    async def watches_and_stops(self) -> None:
        await self._read("WatchVariables", self._watch(), self._soon(), self._rng.choice((1, None)))

    async def watch_is_late(self) -> None:
        await self._read("WatchVariables", self._watch(timeout=0.05 + self._soon()))

    async def watch_is_refused(self) -> None:
        request = pb.WatchVariablesRequest(session_id="nobody")
        await self._read("WatchVariables", self._stub.WatchVariables(request, timeout=TIMEOUT))

    async def hangs_up(self) -> None:
        """Close the connection without a word, in the middle of some method."""
        method = self._rng.choice(("WatchVariables", "ExecuteTool", "SetVariable"))
        tool = ToolSession(None, "random").request("count_run_async", NOWHERE)  # type: ignore[arg-type]
        asked = {
            "WatchVariables": pb.WatchVariablesRequest(session_id="random"),
            "ExecuteTool": tool,
            "SetVariable": pb.SetVariableRequest(
                session_id="random", variable_identifier="x", value=packed(1)
            ),
        }[method]
        wait, whole = self._soon(), self._rng.random() < 0.9
        self.begun[method] += 1

        def call() -> None:
            with RawClient(self._port) as client:
                client.begin(PATH + method)
                if whole:
                    client.body(framed(asked.SerializeToString()), end=True)
                time.sleep(wait)

        await asyncio.to_thread(call)

    async def telemetry_is_left(self) -> None:
        """Have no more to say, and be cancelled, in either order."""

        async def controls() -> AsyncIterator[pb.TelemetryControl]:
            for _ in range(self._rng.randint(0, 3)):
                yield pb.TelemetryControl(toggle=pb.TelemetryToggle(enabled=False))
            if self._rng.random() < 0.5:
                await asyncio.Event().wait()

        call = self._stub.StreamTelemetry(controls(), timeout=TIMEOUT)
        await self._read("StreamTelemetry", call, 0.01 + self._soon())

    async def telemetry_is_refused(self) -> None:
        channel: Any = self._channel.stream_stream(PATH + "StreamTelemetry")
        await self._read("StreamTelemetry", channel(iter([b"\xff\xff"]), timeout=TIMEOUT))

    async def checks_health(self) -> None:
        service = self._rng.choice(("", "nobody"))
        request = health_pb2.HealthCheckRequest(service=service)
        await self._read("Check", self._health.Check(request, timeout=TIMEOUT))

    async def watches_health(self) -> None:
        request = health_pb2.HealthCheckRequest()
        await self._read("Watch", self._health.Watch(request, timeout=TIMEOUT), self._soon())

    async def reflects(self) -> None:
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        call = self._reflection.ServerReflectionInfo(iter([request]), timeout=TIMEOUT)
        after = self._rng.choice((None, self._soon()))
        await self._read("ServerReflectionInfo", call, after)

    async def asks_for_what_is_not_served(self) -> None:
        call = self._channel.unary_unary(PATH + "Nothing")(b"", timeout=TIMEOUT)
        with pytest.raises(grpc.aio.AioRpcError):
            await call


_ACTIONS: list[Callable[[Random], Any]] = [
    action
    for name, action in vars(Random).items()
    if name[0] != "_" and name != "one" and asyncio.iscoroutinefunction(action)
]


@pytest.mark.parametrize("seed", [1])
async def test_started_and_handled_pair_whatever_becomes_of_a_thousand_calls(
    tmp_path: Path, seed: int
) -> None:
    with ExposedBridge(tmp_path, *TOOLS) as bridge:
        await asyncio.to_thread(Session(bridge, "random").register, "x")
        seen: list[str] = []
        over = threading.Event()

        def look() -> None:
            while not over.wait(0.1):
                seen.append(fetch(bridge.metrics))

        looking = threading.Thread(target=look)
        looking.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{bridge.port}") as channel:
                client = Random(bridge, channel, seed)
                left = iter(range(CALLS))

                async def act() -> None:
                    for _ in left:
                        await client.one()

                await asyncio.gather(*(act() for _ in range(AT_ONCE)))
        finally:
            over.set()
            looking.join()
        assert len(client.done) == len(_ACTIONS)
        assert client.done.total() == CALLS
        # As long as it lasted there were never more ends than beginnings.
        assert len(seen) > 3
        assert any(Scrape.read(text).open for text in seen)
        now = await asyncio.to_thread(settled, bridge.metrics)
        client.begun["RegisterVariable"] = 1
        client.ended["RegisterVariable", "OK"] = 1
        for (_, method), (started, handled) in now.methods().items():
            assert started == handled
            ends = {code: count for (name, code), count in client.ended.items() if name == method}
            # Who cancels may be quicker than the call, and hears nothing of what came of it.
            assert sum(n for code, n in ends.items() if code not in _LEFT) <= started
            assert started <= client.begun[method]
            codes = now.codes(method)
            for code, count in ends.items():
                if code in DEFINITE:
                    assert codes[DEFINITE[code]] == count
            left_alone = client.begun[method] - sum(ends.values())  # they hung up
            least = ends.get("OK", 0)
            most = least + sum(ends.get(code, 0) for code in _LEFT) + left_alone
            assert least <= codes.get("OK", 0) <= most
            allowed = {names.CODES[code] for code in ends} | {"OK", "Canceled", "DeadlineExceeded"}
            assert codes.keys() <= allowed, method
            of_method = {"grpc_method": method}
            assert now("grpc_server_handling_seconds_count", **of_method) == started
        assert now("snakepit_bridge_tools_running") == now("snakepit_bridge_watchers") == 0
        assert bridge.stop() == 0
        assert "Traceback" not in bridge.stderr, bridge.stderr


_LEFT = ("CANCELLED", "DEADLINE_EXCEEDED")


def test_messages_are_counted_exactly(bridge: ExposedBridge, session: ToolSession) -> None:
    before = settled(bridge.metrics)
    session.register("x", 0)
    for number in range(20):
        session.set("x", number)
    with refused("NOT_FOUND"):
        session.get("nothing")
    with at_head(session, include_initial_values=True) as watching:  # initial value, caught_up
        session.set("x", 1)
        session.set("x", 2)
        watching.take(2)
        session.end()
        after_it = watching.rest()
    chunks = list(session.stream("count_to", {"to": 7}))
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(bridge.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    assert len(list(stub.ServerReflectionInfo(iter([request] * 5), timeout=TIMEOUT))) == 5
    control = pb.TelemetryControl(toggle=pb.TelemetryToggle(enabled=False))
    talk = bridge.stub.StreamTelemetry(iter([control] * 4), timeout=TIMEOUT)
    until(
        bridge.metrics,
        lambda seen: seen("grpc_server_msg_received_total", grpc_method="StreamTelemetry") == 4,
        "four controls are counted",
    )
    talk.cancel()
    after = settled(bridge.metrics)

    def rise(name: str, method: str) -> float:
        return after(name, grpc_method=method) - before(name, grpc_method=method)

    expected = {
        "RegisterVariable": (1, 1),
        "SetVariable": (22, 22),
        "GetVariable": (1, 0),
        "WatchVariables": (1, 4 + len(after_it)),
        "CleanupSession": (1, 1),
        "ExecuteStreamingTool": (1, len(chunks)),
        "ServerReflectionInfo": (5, 5),
    }
    for method, counts in expected.items():
        received = rise("grpc_server_msg_received_total", method)
        assert (method, received, rise("grpc_server_msg_sent_total", method)) == (method, *counts)
    assert len(chunks) == 8
    assert after.codes("WatchVariables") == {"OK": 1}


def test_a_bridge_that_stops_handles_what_is_open(tmp_path: Path) -> None:
    with ExposedBridge(tmp_path, *TOOLS, "--grace", "3") as bridge:
        session = ToolSession(bridge, "s")
        session.register("x")
        watching = at_head(session)
        talk = bridge.stub.StreamTelemetry(iter([]), timeout=TIMEOUT)
        go = tmp_path / "go"
        arguments = {"runs": str(tmp_path / "runs"), "go": str(go)}
        held = session.stream("holding_stream", arguments)
        assert next(held)
        until(bridge.metrics, lambda seen: sum(seen.open.values()) == 3, "three streams are open")
        bridge.process.send_signal(signal.SIGTERM)
        fault = watching.fault()
        assert fault.code == "UNAVAILABLE"
        with refused("UNAVAILABLE", "shutting down"):
            session.get("x")
        draining = until(
            bridge.metrics,
            lambda seen: seen.codes("WatchVariables") and seen.codes("GetVariable"),
            "what has ended is counted",
        )
        assert draining.codes("WatchVariables") == {"Unavailable": 1}
        assert draining.codes("GetVariable") == {"Unavailable": 1}
        left = ("ExecuteStreamingTool", "StreamTelemetry")
        assert draining.open == {("snakepit.bridge.BridgeService", method): 1 for method in left}
        assert draining("snakepit_bridge_rejected_total", reason="WATCH_CLOSED") == 1
        assert draining("snakepit_bridge_rejected_total", reason="UNAVAILABLE") == 1
        assert draining("snakepit_bridge_watchers") == 0
        assert draining("snakepit_bridge_tools_running") == 1
        go.touch()
        assert len(list(held)) == 1
        assert list(talk) is not None
        assert talk.code() is grpc.StatusCode.OK
        assert bridge.stop() == 0


# All label sets, formats, exemplars.


def test_everything_is_there_from_the_start(tmp_path: Path) -> None:
    with ExposedBridge(tmp_path) as bridge:
        seen = scrape(bridge.metrics)
        files: list[Any] = [pb.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR]
        for file in files:
            for service in file.services_by_name.values():
                for method in service.methods:
                    labels = {
                        "grpc_service": service.full_name,
                        "grpc_method": method.name,
                        "grpc_type": {
                            (False, False): "unary",
                            (False, True): "server_stream",
                            (True, True): "bidi_stream",
                        }[method.client_streaming, method.server_streaming],
                    }
                    codes = seen.by("grpc_server_handled_total", "grpc_code", **labels)
                    assert codes == dict.fromkeys(names.CODES.values(), 0.0)
                    for name in ("started_total", "msg_received_total", "msg_sent_total"):
                        assert seen(f"grpc_server_{name}", **labels) == 0
                    assert seen("grpc_server_handling_seconds_count", **labels) == 0
        assert len(seen.methods()) == len(METHODS) + sum(
            len(service.methods) for file in files[1:] for service in file.services_by_name.values()
        )
        for metric in vars(names).values():
            if isinstance(metric, names.Metric):
                suffix = "_count" if metric.name.endswith("_seconds") else ""
                suffix = "_count" if metric is names.LOG_COMMIT_EVENTS else suffix
                assert seen(metric.name + suffix) >= 0, metric.name
        for text in (fetch(bridge.metrics), fetch(bridge.metrics, OPENMETRICS)):
            assert "_created" not in text
        labels_used = {label for series in seen.numbers for label, _ in series.labels}
        assert not labels_used & {"session", "session_id", "variable", "offset", "peer"}


SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = "00-1af7651916cd43dd8448eb211c80319d-b7ad6b7169203331-00"


def test_exemplars_lead_from_latencies_to_traces_that_are_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with GrpcReceiver() as receiver:
        for name, value in receiver.environment.items():
            monkeypatch.setenv(name, value)
        with ExposedBridge(tmp_path, *TOOLS) as bridge:
            session = ToolSession(bridge, "s")
            for traceparent in (UNSAMPLED, SAMPLED):
                headers = [("traceparent", traceparent)]
                session.call("RegisterVariable", headers, **initial(traceparent))
                with at_head(session) as watching:
                    change = {"variable_identifier": "x0", "value": packed(2)}
                    session.call("SetVariable", headers, **change)
                    watching.next()
                session.run("add", {"a": 1}, headers)
                with pytest.raises(grpc.RpcError):
                    session.call("GetVariable", headers, variable_identifier="nothing")
                settled(bridge.metrics)
                if traceparent == UNSAMPLED:
                    text = fetch(bridge.metrics, OPENMETRICS)
                    found = Scrape.read(text, openmetrics=True).exemplars
                    # Watches, without a parent, begin traces of their own, which are recorded.
                    assert UNSAMPLED[3:35] not in {each["trace_id"] for each in found.values()}
            text = fetch(bridge.metrics, OPENMETRICS)
            seen = Scrape.read(text, openmetrics=True)
            classic = scrape(bridge.metrics)
            assert classic.exemplars == {}
            assert "trace_id" not in fetch(bridge.metrics)
            traced = {
                (series.name.removesuffix("_bucket"), dict(series.labels).get("grpc_method"))
                for series, labels in seen.exemplars.items()
                if labels == {"trace_id": SAMPLED[3:35]}
            }
            seconds = "grpc_server_handling_seconds"
            calls = ("RegisterVariable", "SetVariable", "ExecuteTool", "GetVariable")
            ours = ("log_append", "log_commit", "watch_delivery", "tool")
            assert traced == {
                *((seconds, method) for method in calls),
                *((f"snakepit_bridge_{name}_seconds", None) for name in ours),
            }
            # An abort is one span, as it is one call.
            spans = receiver.wait_for(
                lambda spans: sum("GetVariable" in span.name for span in spans) >= 1
            )
            assert bridge.stop() == 0
        aborted = [span for span in receiver.spans if span.name.endswith("/GetVariable")]
        assert [span.trace_id for span in aborted] == [SAMPLED[3:35]]
        assert aborted[0].attributes[names.RPC_STATUS] == "NOT_FOUND"
        assert aborted[0].status == "UNSET"
        assert spans


def initial(traceparent: str) -> dict[str, Any]:
    name = "x0" if traceparent == UNSAMPLED else "x1"
    return {"name": name, "type": "integer", "initial_value": packed(1)}


# Correlation ids.

MADE = re.compile(r"[0-9a-f]{16}")

LONGEST = SNAKE * 128
"""As long as one may be, and three times as long in a header."""

GIVEN: dict[str, tuple[dict[str, str], list[tuple[str, str]], str]] = {
    "header": ({}, [(CORRELATION_HEADER, "c 1")], "c 1"),
    "map": ({"correlation_id": "m-1"}, [], "m-1"),
    "both": ({"correlation_id": "m-1"}, [(CORRELATION_HEADER, "c-1")], "c-1"),
    "neither": ({}, [], ""),
    "empty": ({"correlation_id": ""}, [(CORRELATION_HEADER, "")], ""),
    "longest header": ({}, [(CORRELATION_HEADER, "x" * 512)], "x" * 512),
    "header too long": ({}, [(CORRELATION_HEADER, "x" * 513)], ""),
    "header too long, and map": (
        {"correlation_id": "m-1"},
        [(CORRELATION_HEADER, "x" * 513)],
        "m-1",
    ),
    "not ASCII": ({"correlation_id": f"größe {SNAKE} %"}, [], f"größe {SNAKE} %"),
    "longest, not ASCII": ({"correlation_id": LONGEST}, [], LONGEST),
}


def quote_unless_ascii(text: str) -> str:
    return text if text.isascii() else quote(text)


def told(metadata: Any) -> str:  # noqa: ANN401 - of a call
    """The one correlation id that came back, as it was before it was put into a header."""
    (text,) = (value for key, value in metadata if key == CORRELATION_HEADER)
    assert isinstance(text, str)
    assert text.isascii()
    assert text.isprintable()
    return text


@pytest.mark.parametrize(("metadata", "headers", "expected"), GIVEN.values(), ids=GIVEN)
def test_a_correlation_id_comes_back_with_every_answer(
    bridge: ExposedBridge,
    session: ToolSession,
    metadata: dict[str, str],
    headers: list[tuple[str, str]],
    expected: str,
) -> None:
    session.register("x", "a", "string")

    def check(text: str) -> str:
        assert text == quote_unless_ascii(expected) if expected else MADE.fullmatch(text)
        return text

    change = pb.SetVariableRequest(
        session_id=session.id,
        variable_identifier="x",
        value=packed("b", "string"),
        metadata=metadata,
    )
    _, call = bridge.stub.SetVariable.with_call(change, timeout=TIMEOUT, metadata=headers)
    first = check(told(call.trailing_metadata()))
    (newest, *_) = session.history("x").entries
    assert newest.correlation_id == (expected or first)
    # Large ones are read on another thread, before the log's turn comes.
    change.value.CopyFrom(packed("b" * 100_000, "string"))
    _, call = bridge.stub.SetVariable.with_call(change, timeout=TIMEOUT, metadata=headers)
    second = check(told(call.trailing_metadata()))
    assert expected or second != first

    change.value.CopyFrom(packed(SNAKE * 2_000))
    with pytest.raises(grpc.RpcError) as caught:
        bridge.stub.SetVariable(change, timeout=TIMEOUT, metadata=headers)
    error: Any = caught.value
    assert fault_of(error).code == "INVALID_ARGUMENT"
    check(told(error.trailing_metadata()))

    _, call = bridge.stub.ExecuteTool.with_call(
        session.request("add", {"a": 1}, metadata=metadata), timeout=TIMEOUT, metadata=headers
    )
    check(told(call.trailing_metadata()))
    if "correlation_id" not in metadata:  # reading requests have no such map
        request = pb.GetVariableRequest(session_id=session.id, variable_identifier="x")
        _, call = bridge.stub.GetVariable.with_call(request, timeout=TIMEOUT, metadata=headers)
        check(told(call.trailing_metadata()))


@pytest.mark.parametrize(("metadata", "headers", "expected"), GIVEN.values(), ids=GIVEN)
def test_a_stream_begins_with_its_correlation_id(
    session: ToolSession,
    metadata: dict[str, str],
    headers: list[tuple[str, str]],
    expected: str,
) -> None:
    session.register("x")
    call = session.stream("breaks_off", headers=headers, metadata=metadata)
    assert next(call)
    first = told(call.initial_metadata())
    assert first == quote_unless_ascii(expected) if expected else MADE.fullmatch(first)
    with pytest.raises(grpc.RpcError):
        next(call)
    assert told(call.trailing_metadata()) == first
    if "correlation_id" not in metadata:
        with watch(session, headers=tuple(headers), send_caught_up=True) as watching:
            watching.next()
            first = told(watching.call.initial_metadata())
            assert first == expected if expected else MADE.fullmatch(first)


@pytest.mark.parametrize(
    "wrong", ["x" * 513, SNAKE * 129, "a\nb", "\0", "\x7f"], ids=lambda text: ascii(text[:3])
)
def test_a_correlation_id_in_the_map_that_cannot_be_one_is_refused(
    bridge: ExposedBridge, session: ToolSession, wrong: str
) -> None:
    session.register("x")
    before = scrape(bridge.metrics)
    with pytest.raises(grpc.RpcError) as caught:
        session.set("x", 2, metadata={"correlation_id": wrong})
    error: Any = caught.value
    fault = fault_of(error)
    assert (fault.code, fault.field) == ("INVALID_ARGUMENT", "metadata")
    assert MADE.fullmatch(told(error.trailing_metadata()))
    after = settled(bridge.metrics)
    name, reason = "snakepit_bridge_rejected_total", "INVALID_REQUEST"
    assert after(name, reason=reason) - before(name, reason=reason) == 1
    with pytest.raises(grpc.RpcError) as caught:
        session.run("add", {"a": 1}, metadata={"correlation_id": wrong})
    error = caught.value
    assert fault_of(error).code == "INVALID_ARGUMENT"
    assert MADE.fullmatch(told(error.trailing_metadata()))


# A scrape is in nobody's way.

WITHIN = 1.0
"""Seconds for 99 of 100 calls, each of which takes 2 ms when nobody scrapes, and here 25."""


def test_calls_are_answered_while_somebody_scrapes_without_a_pause(
    bridge: ExposedBridge, session: ToolSession
) -> None:
    session.register("x")
    seen: list[str] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            seen.append(fetch(bridge.metrics))

    looking = [threading.Thread(target=look) for _ in range(2)]
    for thread in looking:
        thread.start()
    times = []
    end = time.monotonic() + 4
    try:
        while time.monotonic() < end:
            begun = time.perf_counter()
            session.set("x", 1)
            times.append(time.perf_counter() - begun)
    finally:
        over.set()
        for thread in looking:
            thread.join()
    times.sort()
    sys.stdout.write(
        f"{len(times)} calls, {len(seen)} scrapes, p99 {times[-1 - len(times) // 100]:.3f} s\n"
    )
    assert len(seen) > 5
    assert times[-1 - len(times) // 100] < WITHIN
    for text in seen[:: max(1, len(seen) // 20)]:
        # Never more ends than beginnings; and of these calls there is one at a time.
        assert Scrape.read(text).open.get(("snakepit.bridge.BridgeService", "SetVariable"), 0) <= 1
