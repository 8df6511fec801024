"""The interceptor before handlers of any kind: each call is started once, and handled once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from snakepit_bridge import elixir
from snakepit_bridge.errors import BridgeError
from snakepit_bridge.observation import CORRELATION_HEADER, Observation, current
from snakepit_bridge.observing import Observing
from snakepit_bridge.rpc import SERVICE, Door, LockedDoor, Methods, handlers
from snakepit_bridge.telemetry import names
from snakepit_bridge.telemetry.calls import Interceptor, methods_of
from snakepit_bridge.telemetry.metrics import CallCounts, Metrics
from tests.hostile import PATH

PATIENCE = 20.0
"""Seconds for what takes milliseconds."""

LABELS = [(kind, "test.Calls", kind) for kind in ("unary", "client_stream", "server_stream")]
LABELS.append(("bidi_stream", "test.Calls", "bidi_stream"))

GIVEN = [b"1", b"2", b"3"]

Handler = Any
"""Of ``grpc``, whose stubs know of synchronous servers only."""

Context = grpc.aio.ServicerContext[Any, Any]


# Handlers of somebody else's, in each way to write one.


class Act:
    """What a handler does between its first and its last message."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.entered = asyncio.Event()
        self.seen: list[Observation | None] = []
        """What was current when the handler was left."""
        self.task: asyncio.Task[Any] | None = None

    async def __call__(self, context: Context) -> None:
        if self.how == "sets a code":
            context.set_code(grpc.StatusCode.NOT_FOUND)
        elif self.how == "aborts":
            await context.abort(grpc.StatusCode.NOT_FOUND, "not here")
        elif self.how == "raises":
            raise ValueError("a defect")
        elif self.how != "returns":
            self.task = asyncio.current_task()
            self.entered.set()
            await asyncio.Event().wait()

    def left(self) -> None:
        self.seen.append(current.get())


def same(raw: bytes) -> bytes:
    """Read or write a message that is bytes already, as somebody else's handlers do."""
    return raw


BOTH = {"request_deserializer": same, "response_serializer": same}


def unary(act: Act) -> Handler:
    async def handle(request: bytes, context: Context) -> bytes:
        try:
            await act(context)
            return request
        finally:
            act.left()

    return grpc.unary_unary_rpc_method_handler(handle, **BOTH)


def client_stream(act: Act) -> Handler:
    async def handle(requests: AsyncIterator[bytes], context: Context) -> bytes:
        try:
            given = [request async for request in requests]
            await act(context)
            return b"".join(given)
        finally:
            act.left()

    return grpc.stream_unary_rpc_method_handler(handle, **BOTH)


def client_stream_that_reads(act: Act) -> Handler:
    async def handle(_: object, context: Context) -> bytes:
        try:
            given = b""
            while (request := await context.read()) is not grpc.aio.EOF:
                given += request
            await act(context)
            return given
        finally:
            act.left()

    return grpc.stream_unary_rpc_method_handler(handle, **BOTH)


def generator(act: Act) -> Handler:
    async def handle(_: bytes, context: Context) -> AsyncIterator[bytes]:
        try:
            yield GIVEN[0]
            await act(context)
            for response in GIVEN[1:]:
                yield response
        finally:
            act.left()

    return grpc.unary_stream_rpc_method_handler(handle, **BOTH)


def coroutine_that_writes(act: Act) -> Handler:
    async def handle(_: bytes, context: Context) -> None:
        try:
            await context.write(GIVEN[0])
            await act(context)
            for response in GIVEN[1:]:
                await context.write(response)
        finally:
            act.left()

    return grpc.unary_stream_rpc_method_handler(handle, **BOTH)


def bidi_generator(act: Act) -> Handler:
    async def handle(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        try:
            async for request in requests:
                yield request
            await act(context)
        finally:
            act.left()

    return grpc.stream_stream_rpc_method_handler(handle, **BOTH)


def bidi_that_reads_and_writes(act: Act) -> Handler:
    async def handle(_: object, context: Context) -> None:
        try:
            while (request := await context.read()) is not grpc.aio.EOF:
                await context.write(request)
            await act(context)
        finally:
            act.left()

    return grpc.stream_stream_rpc_method_handler(handle, **BOTH)


class Kind(NamedTuple):
    make: Callable[[Act], Handler]
    type: str
    received: int
    sent: int
    """Messages of a call that ends well."""


KINDS = [
    Kind(unary, "unary", 1, 1),
    Kind(client_stream, "client_stream", 3, 1),
    Kind(client_stream_that_reads, "client_stream", 3, 1),
    Kind(generator, "server_stream", 1, 3),
    Kind(coroutine_that_writes, "server_stream", 1, 3),
    Kind(bidi_generator, "bidi_stream", 3, 3),
    Kind(bidi_that_reads_and_writes, "bidi_stream", 3, 3),
]


class Served(NamedTuple):
    """A server in this process, and a client of it."""

    server: grpc.aio.Server
    channel: grpc.aio.Channel
    calls: dict[str, CallCounts]
    """By type."""
    ended: list[tuple[Observation, str]]
    news: asyncio.Event
    """Set when there is one more."""

    def call(self, type_: str, timeout: float = PATIENCE) -> Any:  # noqa: ANN401 - of each type its own
        path = f"/test.Calls/{type_}"
        channel: Any = self.channel  # whose stubs want serializers
        if type_ == "unary":
            return channel.unary_unary(path)(GIVEN[0], timeout=timeout)
        if type_ == "client_stream":
            return channel.stream_unary(path)(iter(GIVEN), timeout=timeout)
        if type_ == "server_stream":
            return channel.unary_stream(path)(GIVEN[0], timeout=timeout)
        return channel.stream_stream(path)(iter(GIVEN), timeout=timeout)

    async def end(self) -> tuple[Observation, str]:
        """Wait for the end of the first call."""
        async with asyncio.timeout(PATIENCE):
            await self.news.wait()
        return self.ended[0]


@asynccontextmanager
async def serving(**made: Handler) -> AsyncIterator[Served]:
    """Serve handlers, by the type of their method."""
    counts = Metrics(LABELS, ()).calls
    ended: list[tuple[Observation, str]] = []
    news = asyncio.Event()

    def finish(observation: Observation, status: str, _: int) -> None:
        ended.append((observation, status))
        news.set()

    async with listening(Interceptor(counts, [finish], None)) as (server, channel):
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Calls", made),))
        by_type = {count.labels[0]: count for count in counts.values()}
        yield Served(server, channel, by_type, ended, news)


@asynccontextmanager
async def listening(
    interceptor: Interceptor,
) -> AsyncIterator[tuple[grpc.aio.Server, grpc.aio.Channel]]:
    server = grpc.aio.server(interceptors=(interceptor,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield server, channel
    finally:
        await server.stop(0)


async def outcome(call: Any) -> grpc.StatusCode:  # noqa: ANN401 - of each type its own
    """Read a call to its end."""
    try:
        async with asyncio.timeout(PATIENCE):
            if hasattr(call, "__aiter__"):
                async for _ in call:
                    pass
            else:
                await call
    except grpc.aio.AioRpcError:
        pass
    code: grpc.StatusCode = await call.code()
    return code


of_each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.make.__name__)


def handled(counts: CallCounts) -> dict[str, int]:
    return {code: count for code, count in counts.handled.items() if count}


@of_each_kind
@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("returns", "OK"),
        ("sets a code", "NOT_FOUND"),
        ("aborts", "NOT_FOUND"),
        ("raises", "UNKNOWN"),
    ],
)
async def test_a_call_is_handled_once_with_the_status_of_its_client(
    kind: Kind, how: str, code: str
) -> None:
    act = Act(how)
    async with serving(**{kind.type: kind.make(act)}) as served:
        assert (await outcome(served.call(kind.type))).name == code
        observation, status = await served.end()
        counts = served.calls[kind.type]
        assert (counts.started, handled(counts)) == (1, {names.CODES[code]: 1})
        assert served.ended == [(observation, status)]
        assert status == code
        assert act.seen == [observation]
        assert [*counts.seconds.buckets()][-1][1] == 1
        if how == "returns":
            assert (counts.received, counts.sent) == (kind.received, kind.sent)
    assert current.get() is None


@of_each_kind
@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("is cancelled", "CANCELLED"),
        ("hangs up", "CANCELLED"),
        ("runs out of time", "DEADLINE_EXCEEDED"),
        ("the server stops", "CANCELLED"),
        ("the server stops at leisure", "CANCELLED"),
    ],
)
async def test_a_call_that_is_broken_off_is_handled_once_and_its_handler_ends(
    kind: Kind, how: str, code: str
) -> None:
    act = Act("waits")
    async with serving(**{kind.type: kind.make(act)}) as served:
        counts = served.calls[kind.type]
        call = served.call(kind.type, 0.3 if how == "runs out of time" else PATIENCE)
        reading = asyncio.ensure_future(outcome(call))
        async with asyncio.timeout(PATIENCE):
            await act.entered.wait()
        assert (counts.started, handled(counts)) == (1, {})
        if how == "is cancelled":
            call.cancel()
        elif how == "hangs up":
            await served.channel.close(0)
        elif how.startswith("the server stops"):
            await served.server.stop(0.1 if how.endswith("leisure") else 0)
        observation, status = await served.end()
        assert status == code
        assert act.task is not None
        await asyncio.wait((act.task,), timeout=PATIENCE)
        assert act.task.done()
        assert (counts.started, handled(counts)) == (1, {names.CODES[code]: 1})
        assert len(served.ended) == 1
        # What follows the last thing that the handler did was run, at once and within the call.
        assert act.seen == [observation]
        await asyncio.wait((reading,))
        assert reading.cancelled() or reading.exception() is not None or reading.result()
    assert current.get() is None


async def test_a_generator_whose_client_does_not_read_is_closed_when_that_goes() -> None:
    closed = asyncio.Event()
    entered = asyncio.Event()

    async def handle(_: bytes, context: Context) -> AsyncIterator[bytes]:
        try:
            while True:
                entered.set()
                yield bytes(1_000_000)
        finally:
            closed.set()

    made = grpc.unary_stream_rpc_method_handler(handle, **BOTH)
    async with serving(server_stream=made) as served:
        call = served.call("server_stream")
        async with asyncio.timeout(PATIENCE):
            await entered.wait()
            call.cancel()
            await closed.wait()
        assert (await served.end())[1] == "CANCELLED"


async def test_calls_at_once_see_themselves_only() -> None:
    ours: dict[bytes, Observation] = {}
    all_inside = asyncio.Barrier(20)

    async def handle(request: bytes, context: Context) -> bytes:
        begun = current.get()
        assert begun is not None
        async with all_inside:
            pass
        assert current.get() is begun
        ours[request] = begun
        return begun.correlation_id.encode()

    async with serving(unary=grpc.unary_unary_rpc_method_handler(handle, **BOTH)) as served:
        call: Any = served.channel.unary_unary("/test.Calls/unary")
        calls = [
            call(str(n).encode(), metadata=((CORRELATION_HEADER, f"c{n}"),)) for n in range(20)
        ]
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*calls)
        assert len(set(map(id, ours.values()))) == 20
        for number, each in enumerate(calls):
            assert ours[str(number).encode()].correlation_id == f"c{number}"
            assert dict([*await each.trailing_metadata()])[CORRELATION_HEADER] == f"c{number}"


async def test_what_is_not_served_is_not_counted() -> None:
    async with serving(unary=unary(Act("returns"))) as served:
        for path in ("/test.Calls/nothing", "/test.Calls/bidi_stream", "/x/y", "//", "/" * 200):
            channel: Any = served.channel
            call = channel.unary_unary(path)(b"", timeout=PATIENCE)
            assert (await outcome(call)).name == "UNIMPLEMENTED"
        assert served.ended == []
        assert all(counts.started == 0 for counts in served.calls.values())


# Our own handlers, and every error.


def errors(tree: type[BridgeError] = BridgeError) -> Iterator[type[BridgeError]]:
    yield tree
    for each in tree.__subclasses__():
        if each.__module__ == BridgeError.__module__:
            yield from errors(each)


ERRORS = [*errors(), *elixir.ERRORS.values()]


def made_of(kind: type[BridgeError]) -> BridgeError:
    """Any error of a class, whatever else its words would be made of."""
    error = kind.__new__(kind)
    BridgeError.__init__(error, f"words of {kind.__name__}", field="x", log_epoch="e")
    return error


def raise_what(raw: bytes) -> None:
    if raw == b"plain":
        raise ZeroDivisionError("a defect")
    raise made_of(ERRORS[int(raw)])


async def refusing(raw: bytes) -> bytes:
    raise_what(raw)
    return b""


async def refusing_call(call: Any) -> bytes:  # noqa: ANN401 - of a mutation
    return await refusing(call.raw)


async def refusing_stream(raw: bytes, _: str, __: object) -> None:
    raise_what(raw)


async def refusing_call_stream(call: Any, _: object) -> None:  # noqa: ANN401 - as above
    raise_what(call.raw)


async def refusing_talk(requests: AsyncIterator[bytes], _: str, __: object) -> None:
    async for raw in requests:
        raise_what(raw)


REFUSING = Methods(
    {"Ping": refusing},
    {"SetVariable": refusing_call},
    {"WatchVariables": refusing_stream},
    {"ExecuteStreamingTool": refusing_call_stream},
    {"StreamTelemetry": refusing_talk},
)


@asynccontextmanager
async def refused_by(door: Door) -> AsyncIterator[tuple[Observing, grpc.aio.Channel]]:
    """Serve what refuses every request, with all that looks at a bridge but the log."""
    health_service: Any = health_pb2.DESCRIPTOR.services_by_name["Health"]
    observing = Observing([SERVICE, health_service], ())
    async with listening(observing.interceptor) as (server, channel):
        server.add_generic_rpc_handlers((handlers(REFUSING, door, 1_000),))
        health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
        yield observing, channel


def ask(channel: Any, method: str, raw: bytes) -> Any:  # noqa: ANN401 - as above
    path = PATH + method
    if method == "StreamTelemetry":
        return channel.stream_stream(path)(iter([raw]), timeout=PATIENCE)
    if method in ("WatchVariables", "ExecuteStreamingTool"):
        return channel.unary_stream(path)(raw, timeout=PATIENCE)
    return channel.unary_unary(path)(raw, timeout=PATIENCE)


Refused = tuple[str, str]
"""Status and reason."""


async def refusals(
    observing: Observing, channel: grpc.aio.Channel, method: str, asked: Sequence[bytes]
) -> list[Refused]:
    """Ask for what is refused, one by one; gives what was counted for each."""
    metrics = observing.metrics
    counts = metrics.calls[PATH + method]
    found: list[Refused] = []
    for number, raw in enumerate(asked):
        before, rejected = dict(counts.handled), dict(metrics.rejected)
        code = await outcome(ask(channel, method, raw))
        # The last of a call is done just after its client has been answered.
        async with asyncio.timeout(PATIENCE):
            while sum(counts.handled.values()) <= number:  # noqa: ASYNC110 - numbers tell nobody
                await asyncio.sleep(0)
        assert counts.started == sum(counts.handled.values()) == number + 1
        (ended,) = (key for key, count in counts.handled.items() if count != before[key])
        (reason,) = (key for key, count in metrics.rejected.items() if count != rejected[key])
        assert ended == names.CODES[code.name]
        assert metrics.rejected[reason] == rejected[reason] + 1
        found.append((ended, reason))
    return found


@pytest.mark.parametrize(
    "method", ["Ping", "SetVariable", "WatchVariables", "ExecuteStreamingTool", "StreamTelemetry"]
)
async def test_each_error_is_counted_once_with_its_status_and_reason(method: str) -> None:
    async with refused_by(Door()) as (observing, channel):
        asked = [str(number).encode() for number in range(len(ERRORS))]
        found = await refusals(observing, channel, method, [*asked, b"plain", bytes(1_001)])
        expected = [(names.CODES[kind.code], kind.reason) for kind in ERRORS]
        too_large = ("ResourceExhausted", "RESOURCE_EXHAUSTED")
        assert found == [*expected, ("Internal", "INTERNAL"), too_large]


async def test_a_door_that_is_shut_and_one_without_a_key_are_counted() -> None:
    door = Door()
    door.shut = True
    async with refused_by(door) as (observing, channel):
        found = await refusals(observing, channel, "WatchVariables", [b"0"])
        assert found == [("Unavailable", "UNAVAILABLE")]
    async with refused_by(LockedDoor("correct-horse-battery")) as (observing, channel):
        found = await refusals(observing, channel, "ExecuteStreamingTool", [b"0"])
        assert found == [("Unauthenticated", "TOKEN_MISSING")]
        found = await refusals(observing, channel, "StartOptimization", [b""])
        assert found == [("Unauthenticated", "TOKEN_MISSING")]


async def test_the_reasons_are_those_of_the_errors_and_no_others() -> None:
    rejected = Observing([SERVICE], ()).metrics.rejected
    assert set(rejected) == {kind.reason for kind in ERRORS}
    assert set(rejected.values()) == {0}


async def test_health_is_counted_as_it_answers() -> None:
    """Its servicer aborts by itself, and knows nothing of our errors."""
    async with refused_by(Door()) as (observing, channel):
        stub: Any = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest
        assert (await outcome(stub.Check(request(service="nobody")))).name == "NOT_FOUND"
        assert (await outcome(stub.Check(request()))).name == "OK"
        watching = stub.Watch(request(service="nobody"))
        first = await anext(aiter(watching))
        assert first.status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        check, watch = (
            observing.metrics.calls[f"/grpc.health.v1.Health/{name}"] for name in ("Check", "Watch")
        )
        assert (check.started, handled(check)) == (2, {"NotFound": 1, "OK": 1})
        assert (watch.started, watch.sent, handled(watch)) == (1, 1, {})
        watching.cancel()
        async with asyncio.timeout(PATIENCE):
            while not handled(watch):  # noqa: ASYNC110 - as above
                await asyncio.sleep(0)
        assert handled(watch) == {"Canceled": 1}
        assert sum(observing.metrics.rejected.values()) == 0


async def test_the_statuses_have_the_names_of_go() -> None:
    assert set(names.CODES) == {code.name for code in grpc.StatusCode}
    for code, go in names.CODES.items():
        # https://github.com/grpc/grpc-go/blob/master/codes/code_string.go
        spelled = "".join(word.capitalize() for word in code.split("_"))
        assert go == {"Ok": "OK", "Cancelled": "Canceled"}.get(spelled, spelled)


async def test_every_method_of_a_service_is_counted_by_its_type() -> None:
    found = {(service, method): kind for kind, service, method in methods_of([SERVICE])}
    assert len(found) == len(SERVICE.methods)
    assert found[SERVICE.full_name, "Ping"] == "unary"
    assert found[SERVICE.full_name, "WatchVariables"] == "server_stream"
    assert found[SERVICE.full_name, "StreamTelemetry"] == "bidi_stream"


async def test_a_handler_that_is_cancelled_while_it_aborts_is_counted_as_it_ended() -> None:
    """The first to end a call is right, and there is no second."""
    inside = asyncio.Event()

    async def handle(_: bytes, context: Context) -> bytes:
        inside.set()
        try:
            await asyncio.Event().wait()
        finally:
            await _quietly(context.abort(grpc.StatusCode.ABORTED, "too late"))
        return b""

    async with serving(unary=grpc.unary_unary_rpc_method_handler(handle, **BOTH)) as served:
        call = served.call("unary")
        async with asyncio.timeout(PATIENCE):
            await inside.wait()
        call.cancel()
        await served.end()
        counts = served.calls["unary"]
        assert (counts.started, sum(counts.handled.values()), len(served.ended)) == (1, 1, 1)


async def _quietly(ending: Awaitable[object]) -> None:
    with suppress(grpc.aio.BaseError, asyncio.CancelledError):
        await ending
