"""The telemetry stream: what goes out, what controls do, and what a slow client costs."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import subprocess
import sys
import threading
import time
import timeit
from collections.abc import AsyncIterator, Mapping
from typing import Self

import numpy as np
import pytest

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge import telemetry
from snakepit_bridge.errors import BridgeError, InvalidRequest, ResourceExhausted
from snakepit_bridge.telemetry.samplers import Samplers
from snakepit_bridge.telemetry.stream import QUEUE, TelemetryStream

PATIENCE = 30.0
LOG = "snakepit_bridge.telemetry.stream"
SAMPLED = ("python.memory.sampled", "python.cpu.sampled")


class Client:
    """One open stream: sends controls, reads events, or does not."""

    def __init__(self, stream: TelemetryStream) -> None:
        self._stream = stream
        self._controls: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._taken = 0
        self._given = 0
        self._news = asyncio.Event()
        self.events: asyncio.Queue[pb.TelemetryEvent] = asyncio.Queue()
        self.reads = asyncio.Event()
        """While it is not set, the client does not read."""
        self.reads.set()
        self.task = asyncio.ensure_future(
            stream.stream_telemetry(self._requests(), "ipv4:127.0.0.1:1", self._send)
        )

    async def _requests(self) -> AsyncIterator[bytes]:
        while (raw := await self._controls.get()) is not None:
            yield raw
            # The stream asks for the next when it has obeyed this one.
            self._taken += 1
            self._news.set()

    async def _send(self, raw: bytes) -> None:
        await self.reads.wait()
        self.events.put_nowait(pb.TelemetryEvent.FromString(raw))

    def send(self, raw: bytes) -> None:
        self._controls.put_nowait(raw)

    async def control(self, control: pb.TelemetryControl) -> None:
        """Send a control, and wait until it is obeyed."""
        self.send(control.SerializeToString())
        self._given += 1
        async with asyncio.timeout(PATIENCE):
            while self._taken < self._given:
                self._news.clear()
                await self._news.wait()

    async def filter(self, allow: tuple[str, ...] = (), deny: tuple[str, ...] = ()) -> None:
        chosen = pb.TelemetryEventFilter(allow=allow, deny=deny)
        await self.control(pb.TelemetryControl(filter=chosen))

    async def sample(self, rate: float, *patterns: str) -> None:
        sampling = pb.TelemetrySamplingUpdate(sampling_rate=rate, event_patterns=patterns)
        await self.control(pb.TelemetryControl(sampling=sampling))

    async def toggle(self, *, enabled: bool) -> None:
        toggle = pb.TelemetryToggle(enabled=enabled)
        await self.control(pb.TelemetryControl(toggle=toggle))

    def half_close(self) -> None:
        self._controls.put_nowait(None)

    async def next(self) -> pb.TelemetryEvent:
        async with asyncio.timeout(PATIENCE):
            return await self.events.get()

    async def opened(self) -> Self:
        """Wait until it is open, and read the first samples."""
        for name in SAMPLED:
            assert ".".join((await self.next()).event_parts) == name
        return self

    async def fault(self) -> BridgeError:
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(BridgeError) as caught:
                await self.task
        return caught.value

    async def leave(self) -> None:
        """Be gone, as gRPC tells it: the call is cancelled."""
        self.task.cancel()
        await asyncio.wait((self.task,))


async def names(client: Client, stream: TelemetryStream) -> list[str]:
    """Emit each event once; gives those that come, a mark at their end aside."""
    for name in sorted(telemetry.EVENTS):
        stream.emit(name, {"count": 1}, correlation_id="this one")
    await client.filter()
    await client.sample(1)
    await client.toggle(enabled=True)
    stream.emit("python.call.start", {"count": 1}, correlation_id="end")
    found = []
    while (event := await client.next()).correlation_id != "end":
        if event.correlation_id == "this one":
            found.append(".".join(event.event_parts))
    return found


@pytest.fixture
async def stream() -> AsyncIterator[TelemetryStream]:
    stream = TelemetryStream()
    yield stream
    await stream.close()


# Events.


async def test_an_event_arrives_as_elixir_expects_it(stream: TelemetryStream) -> None:
    client = await Client(stream).opened()
    before = time.time_ns()
    stream.emit(
        "tool.execution.stop",
        {"duration": 2**62, "duration_ms": 0.5, "count": -1},
        {"tool": "echo"},
        "c-1",
    )
    event = await client.next()
    assert list(event.event_parts) == ["tool", "execution", "stop"]
    assert dict(event.metadata) == {"tool": "echo"}
    assert event.correlation_id == "c-1"
    assert before <= event.timestamp_ns <= time.time_ns()
    values = event.measurements
    assert (values["duration"].WhichOneof("value"), values["duration"].int_value) == (
        "int_value",
        2**62,
    )
    assert values["duration_ms"].float_value == 0.5
    assert values["count"].int_value == -1
    assert set(values) == {"duration", "duration_ms", "count"}


async def test_what_elixir_does_not_know_is_a_defect(stream: TelemetryStream) -> None:
    await Client(stream).opened()
    with pytest.raises(ValueError, match=r"tool\.strange .* is no event"):
        stream.emit("tool.strange", {"count": 1})
    with pytest.raises(ValueError, match="queue_depth"):
        stream.emit("tool.execution.start", {"queue_depth": 1})


async def test_all_streams_get_it_in_the_order_of_emission(stream: TelemetryStream) -> None:
    clients = [await Client(stream).opened()]
    clients.append(await Client(stream).opened())
    await clients[0].opened()  # samples are taken for whoever joins, and all see them
    for number in range(100):
        stream.emit("tool.execution.start", {"count": number})
    for client in clients:
        got = [(await client.next()).measurements["count"].int_value for _ in range(100)]
        assert got == list(range(100))


async def test_threads_emit_as_well(stream: TelemetryStream) -> None:
    client = await Client(stream).opened()

    def emit(thread: int) -> None:
        for number in range(100):
            stream.emit("tool.execution.start", {"count": 1_000 * thread + number})

    threads = [threading.Thread(target=emit, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    got = [(await client.next()).measurements["count"].int_value for _ in range(800)]
    for thread in threads:
        thread.join()
    for number in range(8):
        of_thread = [count for count in got if count // 1_000 == number]
        assert of_thread == [1_000 * number + each for each in range(100)]


async def test_nobody_listening_costs_next_to_nothing(stream: TelemetryStream) -> None:
    assert not stream.open
    measurements = {"count": 1}
    best = min(
        timeit.repeat(
            lambda: stream.emit("tool.execution.start", measurements), number=10_000, repeat=5
        )
    )
    assert best / 10_000 < 10e-6  # measured: 0.1 microseconds
    stream.emit("tool.strange", {})  # nor is it looked at


async def test_it_is_open_while_somebody_listens(stream: TelemetryStream) -> None:
    first = await Client(stream).opened()
    second = await Client(stream).opened()
    assert stream.open
    await first.leave()
    assert stream.open
    await second.leave()
    assert not stream.open
    stream.emit("tool.execution.start", {"count": 1})
    await Client(stream).opened()  # nothing from before comes


# Controls.


async def test_everything_is_sent_at_first(stream: TelemetryStream) -> None:
    client = await Client(stream).opened()
    assert await names(client, stream) == sorted(telemetry.EVENTS)


async def test_telemetry_is_turned_off_and_on(stream: TelemetryStream) -> None:
    client = await Client(stream).opened()
    other = await Client(stream).opened()
    await client.opened()
    await client.toggle(enabled=False)
    stream.emit("tool.execution.start", {"count": 1})
    assert (await other.next()).measurements["count"].int_value == 1
    await client.toggle(enabled=True)
    stream.emit("tool.execution.start", {"count": 2})
    assert (await client.next()).measurements["count"].int_value == 2


@pytest.mark.parametrize(
    ("allow", "deny", "expected"),
    [
        (("tool.*_*",), (), "tool.result_size"),
        (("tool.*",), ("*.st*", "tool.result_size"), "tool.execution.exception"),
        ((), ("*",), ""),
        (("python.?c.completed", "nothing"), (), "python.gc.completed"),
        (("TOOL.*", "tool.[a-z]*", "", "tool"), (), ""),
        (("python.call.start",), ("python.call.start",), ""),
    ],
)
async def test_a_filter_allows_and_denies(
    stream: TelemetryStream, allow: tuple[str, ...], deny: tuple[str, ...], expected: str
) -> None:
    client = await Client(stream).opened()
    await client.filter(allow, deny)
    assert await names(client, stream) == expected.split()


async def test_the_next_filter_takes_the_place_of_the_last(stream: TelemetryStream) -> None:
    client = await Client(stream).opened()
    await client.filter(("tool.*",))
    await client.filter((), ("tool.*",))
    assert await names(client, stream) == [
        name for name in sorted(telemetry.EVENTS) if not name.startswith("tool.")
    ]


@pytest.mark.parametrize(
    ("rate", "passes"),
    [*((rate, 0) for rate in (0.0, -3.0, -math.inf, math.nan)), (1.0, 1), (7.5, 1), (math.inf, 1)],
)
async def test_a_rate_is_brought_into_its_range(
    stream: TelemetryStream, rate: float, passes: int
) -> None:
    client = await Client(stream).opened()
    await client.sample(rate)
    assert await names(client, stream) == sorted(telemetry.EVENTS) * passes


async def test_sampling_is_of_the_events_that_match(stream: TelemetryStream) -> None:
    client = await Client(stream).opened()
    await client.sample(0, "tool.execution.*", "python.gc.?ompleted")
    assert await names(client, stream) == [
        name
        for name in sorted(telemetry.EVENTS)
        if not name.startswith("tool.execution.") and name != "python.gc.completed"
    ]


async def test_about_as_many_come_as_the_rate_says(stream: TelemetryStream) -> None:
    client = await Client(stream).opened()
    await client.sample(0.5)
    for _ in range(1_000):
        stream.emit("tool.execution.start", {"count": 1}, correlation_id="this one")
    await client.sample(1)
    stream.emit("tool.execution.stop", {"count": 1})
    count = 0
    while (await client.next()).correlation_id == "this one":
        count += 1
    assert 350 < count < 650  # nine standard deviations to either side


async def test_a_control_of_a_kind_that_is_not_known_is_passed_over(
    stream: TelemetryStream,
) -> None:
    client = await Client(stream).opened()
    await client.control(pb.TelemetryControl())
    client.send(b"\x7a\x02ab")  # field 15
    assert await names(client, stream) == sorted(telemetry.EVENTS)


async def test_the_events_go_on_when_the_controls_end(stream: TelemetryStream) -> None:
    client = await Client(stream).opened()
    await client.filter(("tool.*",))
    client.half_close()
    stream.emit("python.call.start", {"count": 1})
    stream.emit("tool.execution.start", {"count": 2})
    assert (await client.next()).measurements["count"].int_value == 2
    assert not client.task.done()
    stream.emit("tool.execution.start", {"count": 3})
    assert (await client.next()).measurements["count"].int_value == 3


@pytest.mark.parametrize("raw", [b"\xff", b"\x0a\x05x", b"\x12\x01\xff"])
async def test_what_is_no_control_ends_the_stream(stream: TelemetryStream, raw: bytes) -> None:
    client = await Client(stream).opened()
    client.reads.clear()  # it is told also to who does not read
    stream.emit("tool.execution.start", {"count": 1})
    client.send(raw)
    fault = await client.fault()
    assert isinstance(fault, InvalidRequest)
    assert "TelemetryControl" in fault.message
    assert not stream.open


# Bounds.


@pytest.mark.parametrize(
    ("patterns", "words"),
    [(["a"] * 65, "65 patterns"), (["x" * 257], "257 characters")],
)
@pytest.mark.parametrize("field", ["filter.allow", "filter.deny", "sampling.event_patterns"])
async def test_patterns_are_bounded(
    stream: TelemetryStream, field: str, patterns: list[str], words: str
) -> None:
    client = await Client(stream).opened()
    control = pb.TelemetryControl()
    kind, _, name = field.partition(".")
    getattr(getattr(control, kind), name).extend(patterns)
    client.send(control.SerializeToString())
    fault = await client.fault()
    assert isinstance(fault, ResourceExhausted)
    assert (fault.field, words in fault.message) == (field, True)


async def test_no_pattern_makes_matching_slow(stream: TelemetryStream) -> None:
    client = await Client(stream).opened()
    await client.filter(tuple("*?" * 127 + str(number) for number in range(64)))
    assert await names(client, stream) == []


async def test_streams_are_bounded(stream: TelemetryStream) -> None:
    clients = [await Client(stream).opened() for _ in range(16)]
    fault = await Client(stream).fault()
    assert isinstance(fault, ResourceExhausted)
    assert "16 telemetry streams" in fault.message
    await clients[0].leave()
    await Client(stream).opened()


async def test_a_slow_client_loses_the_newest_and_it_is_told_once(
    stream: TelemetryStream, caplog: pytest.LogCaptureFixture
) -> None:
    slow = await Client(stream).opened()
    fast = await Client(stream).opened()
    await slow.opened()
    slow.reads.clear()
    with caplog.at_level(logging.INFO, LOG):
        for number in range(QUEUE + 100):
            stream.emit("tool.execution.start", {"count": number})
            if not number % 100:
                await asyncio.sleep(0)  # that the other may read
                await asyncio.sleep(0)
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert "too slowly" in caplog.records[0].getMessage()
        got = [(await fast.next()).measurements["count"].int_value for _ in range(QUEUE + 100)]
        assert got == list(range(QUEUE + 100))
        slow.reads.set()
        # One of them is in the hands of the transport, the others wait.
        got = [(await slow.next()).measurements["count"].int_value for _ in range(QUEUE + 1)]
        assert got == list(range(QUEUE + 1))
        stream.emit("tool.execution.start", {"count": -1})
        assert (await slow.next()).measurements["count"].int_value == -1
        await slow.leave()
        assert "99 telemetry events" in caplog.records[-1].getMessage()


# The end.


async def test_closing_ends_all_streams_well(stream: TelemetryStream) -> None:
    clients = [await Client(stream).opened() for _ in range(3)]
    clients[1].half_close()
    clients[2].reads.clear()
    for _ in range(QUEUE):
        stream.emit("tool.execution.start", {"count": 1})
    async with asyncio.timeout(PATIENCE):
        await stream.close()
        for client in clients:
            await client.task
        await Client(stream).task  # whoever comes late is sent away as well
        await stream.close()
    assert not stream.open


@pytest.mark.parametrize("sending", [True, False])
async def test_a_failure_of_the_connection_ends_that_stream(
    stream: TelemetryStream, sending: bool
) -> None:
    async def send(_: bytes) -> None:
        if sending:
            raise ConnectionError("the client is gone")
        await asyncio.Event().wait()

    async def requests() -> AsyncIterator[bytes]:
        if not sending:
            raise ConnectionError("the client is gone")
        await asyncio.Event().wait()
        yield b""

    with pytest.raises(ConnectionError):
        await stream.stream_telemetry(requests(), "peer", send)
    assert not stream.open


async def test_emitting_where_an_object_is_destroyed_does_not_hang(
    stream: TelemetryStream,
) -> None:
    client = await Client(stream).opened()

    class Emits:
        def __del__(self) -> None:
            stream.emit("tool.execution.stop", {"count": 7})

    open_ = stream._streams[0]
    with open_._lock:  # as in the middle of another emission on this thread
        Emits()
    assert (await client.next()).measurements["count"].int_value == 7


# Samples.


async def test_memory_and_cpu_time_are_told_on_opening(stream: TelemetryStream) -> None:
    client = Client(stream)
    memory, cpu = await client.next(), await client.next()
    assert list(memory.event_parts) == ["python", "memory", "sampled"]
    assert 2**20 < memory.measurements["rss_bytes"].int_value < 2**40
    assert list(cpu.event_parts) == ["python", "cpu", "sampled"]
    assert cpu.measurements["duration_ms"].float_value >= 0


async def test_they_are_told_again_and_again() -> None:
    seen: asyncio.Queue[tuple[str, Mapping[str, int | float]]] = asyncio.Queue()
    samplers = Samplers(lambda name, measured: seen.put_nowait((name, measured)), 0.02)
    samplers.start()
    begun = time.process_time()
    async with asyncio.timeout(PATIENCE):
        told = [await seen.get() for _ in range(6)]
        while time.process_time() - begun < 0.1:  # a load that is to be seen
            sum(range(10_000))
        await seen.get()
        _, cpu = await seen.get()
    samplers.stop()
    samplers.stop()
    assert [name for name, _ in told] == list(SAMPLED) * 3
    assert cpu["duration_ms"] >= 50


def collect_all_generations() -> None:
    for generation in (0, 1, 2):
        gc.collect(generation)


async def test_full_collections_are_told(stream: TelemetryStream) -> None:
    client = await Client(stream).opened()
    await client.filter(("python.gc.completed",))
    cycle: list[object] = []
    cycle.append(cycle)
    del cycle
    # On another thread, as it may happen anywhere.
    await asyncio.to_thread(collect_all_generations)
    event = await client.next()
    assert list(event.event_parts) == ["python", "gc", "completed"]
    assert event.measurements["count"].int_value >= 1
    assert 0 < event.measurements["duration_ms"].float_value < 60_000
    stream.emit("python.gc.completed", {"count": -1})
    assert (await client.next()).measurements["count"].int_value == -1  # those of the young are not


async def test_nothing_is_sampled_while_nobody_listens(stream: TelemetryStream) -> None:
    before = list(gc.callbacks)
    client = await Client(stream).opened()
    assert len(gc.callbacks) == len(before) + 1
    other = await Client(stream).opened()
    assert len(gc.callbacks) == len(before) + 1
    await client.leave()
    await other.leave()
    assert gc.callbacks == before
    assert stream._samplers._timer is None


# From tools.


@pytest.fixture
async def attached(stream: TelemetryStream) -> AsyncIterator[Client]:
    telemetry.attach(stream)
    yield await Client(stream).opened()
    telemetry.detach()


async def test_a_tool_emits(attached: Client) -> None:
    telemetry.emit("tool.result_size", {"bytes": 5}, {"tool": "predict"}, "c-1")
    event = await attached.next()
    assert list(event.event_parts) == ["tool", "result_size"]
    assert event.measurements["bytes"].int_value == 5
    assert (dict(event.metadata), event.correlation_id) == ({"tool": "predict"}, "c-1")


async def test_a_tool_measures_a_span(attached: Client) -> None:
    with telemetry.span("tool.execution", {"tool": "predict"}, "c-1"):
        pass
    start, stop = await attached.next(), await attached.next()
    assert [event.event_parts[-1] for event in (start, stop)] == ["start", "stop"]
    now = time.time_ns()
    assert now - 60 * 10**9 < start.measurements["system_time"].int_value <= now
    assert 0 < stop.measurements["duration"].int_value < 60 * 10**9
    assert (dict(stop.metadata), stop.correlation_id) == ({"tool": "predict"}, "c-1")


async def test_a_span_that_fails_says_so_and_lets_the_error_pass(attached: Client) -> None:
    with pytest.raises(KeyError), telemetry.span("python.call"):
        raise KeyError("nowhere")
    _, failed = await attached.next(), await attached.next()
    assert list(failed.event_parts) == ["python", "call", "exception"]
    assert dict(failed.metadata) == {"error_type": "KeyError", "error_message": "'nowhere'"}


class Hostile:
    def __str__(self) -> str:
        raise RuntimeError("no text")


async def test_a_tool_is_never_harmed(attached: Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "snakepit_bridge.telemetry"):
        telemetry.emit("inference.done", {"count": 1})
        with telemetry.span("inference"):
            pass
        telemetry.emit(
            "tool.result_size",
            {
                "bytes": 2**64,
                "count": math.nan,
                "duration": "long",
                "queue_depth": 1,
                "latency_ms": True,
                "duration_ms": 1.5,
                "system_time": np.int64(7),
            },
            {"a": Hostile(), "b": "x" * 10_000, "c": "\ud800", 7: None},  # type: ignore[dict-item]
            "c" * 10_000,
        )
        telemetry.emit("tool.result_size", {}, {str(n): n for n in range(1_000)})
    event = await attached.next()
    assert list(event.event_parts) == ["tool", "result_size"]
    assert set(event.measurements) == {"latency_ms", "duration_ms", "system_time"}
    assert event.measurements["latency_ms"].int_value == 1
    assert dict(event.metadata) == {"a": "<Hostile>", "b": "x" * 512, "c": "?", "7": "None"}
    assert len(event.correlation_id) == 512
    assert len((await attached.next()).metadata) == 32
    said = [record.getMessage() for record in caplog.records]
    assert [record.levelno for record in caplog.records] == [logging.DEBUG] * 4
    assert "inference.done" in said[0]
    assert "queue_depth" in said[-1]


def test_without_a_stream_nothing_happens() -> None:
    telemetry.detach()
    telemetry.emit("tool.result_size", {"bytes": Hostile()})
    with telemetry.span("tool.execution"):
        pass


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys, snakepit_bridge.telemetry; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"grpc", "google.protobuf", "numpy", "asyncio", "orjson"} & set(loaded)
