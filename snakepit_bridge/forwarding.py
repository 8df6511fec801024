"""One shared bridge behind this one, which only runs tools: ``serve --bridge HOST:PORT``.

::

    client ─▶ rpc ─▶ Forwarding ─────────────────────────▶ the shared bridge
    tool   ─▶ rpc ─▶ Forwarding: is its call open here? ─▶ the shared bridge, as tool:<name>

Everything about sessions and variables is asked there. Requests, answers and statuses are passed on
as the bytes that came, with the caller's deadline, cancellation, trace and correlation; nothing is
kept, and nothing is repeated but what a tool asks for before its session is known there. Tools stay
here, and so does the log of their calls.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import unquote
from weakref import WeakSet

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge import wire_views_pb2 as views
from snakepit_bridge.bridge_servicer import BridgeServicer
from snakepit_bridge.errors import (
    BridgeError,
    FailedPrecondition,
    PermissionDenied,
    ResourceExhausted,
    SessionNotFound,
    Unauthenticated,
    Unavailable,
)
from snakepit_bridge.events.gate import Gate
from snakepit_bridge.events.model import Origin
from snakepit_bridge.events.projection import SessionState
from snakepit_bridge.observation import CORRELATION_HEADER
from snakepit_bridge.off_loop import off_loop
from snakepit_bridge.tokens import bearer
from snakepit_bridge.tool_calls import Call as ToolCall
from snakepit_bridge.tool_calls import Calls
from snakepit_bridge.tool_rules import check_call
from snakepit_bridge.wire import (
    TOOL_CALL_HEADER,
    TOOL_HEADER,
    Call,
    GrpcMetadata,
    metadata_of,
)
from snakepit_bridge.wire_bytes import LARGE

__all__ = ["FORWARDED", "Answered", "Forwarding", "SharedBridge"]

logger = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["BridgeService"]

FORWARDED = (
    "InitializeSession",
    "CleanupSession",
    "GetSession",
    "Heartbeat",
    "RegisterVariable",
    "GetVariable",
    "SetVariable",
    "ListVariables",
    "DeleteVariable",
    "GetVariables",
    "SetVariables",
    "GetVariableHistory",
    "RollbackVariable",
    "AddDependency",
    "StartOptimization",
    "StopOptimization",
    "WatchVariables",
)
"""The methods that the shared bridge answers; the others are about this process and its tools."""

FORWARDED_BY = "x-snakepit-forwarded-by"
"""Names each bridge that a call came through, so that none goes in a circle for ever."""

PASSED_ON = frozenset({"traceparent", "tracestate", CORRELATION_HEADER, TOOL_HEADER, FORWARDED_BY})
"""Headers that mean the same there. Of ``authorization`` each bridge has its own."""

DETAILS = "grpc-status-details-bin"
"""The trailer without which a status is gRPC's own, and not a bridge's."""

MAX_FORWARDED = 10_000
"""Calls that wait for the shared bridge, as many as wait for a log; open watches not counted."""

MAX_SAID = 200
"""Characters of gRPC's own words that are repeated."""

FIRST_LOOK = 5.0
"""Seconds in which the shared bridge has to answer at the start, not to be warned of."""

NEXT_ATTEMPT = 0.25
"""Seconds; gRPC waits 0.12 at most, as it is told below, and then has to connect."""

LONGEST_BEAT = 1.0
"""Seconds that a heartbeat waits for the shared bridge: Snakepit sends one every two."""

BLOCKED = 0.2
"""Seconds that a watch has, at the end, whose client does not read."""

Headers = tuple[tuple[str, str], ...]


class Answered(Exception):
    """What the shared bridge refused a call with; ``rpc.fail`` passes it on as it is."""

    def __init__(
        self,
        status: grpc.StatusCode,
        message: str,
        trailers: Sequence[tuple[str, str | bytes]],
    ) -> None:
        super().__init__(f"{status.name}: {message}")
        self.status = status
        self.message = message
        self.trailers = trailers

    @property
    def reason(self) -> str:
        """The ``google.rpc.ErrorInfo.reason``; empty if there is none."""
        for key, value in self.trailers:
            if key != DETAILS or not isinstance(value, bytes):
                continue
            info = ErrorInfo()
            for packed in Status.FromString(value).details:
                if packed.Unpack(info):
                    return str(info.reason)
        return ""


class SharedBridge:
    """The connection to it; made, used and closed on one event loop.

    It is made at the first call, and again whenever it is lost.
    """

    def __init__(self, address: str, token: str = "") -> None:
        """Prepare to call.

        :param address: ``HOST:PORT``.
        :param token: the one of that bridge; empty = it wants none.
        """
        self.address = address
        self._token = bearer(token)
        self._channel = grpc.aio.insecure_channel(
            address,
            options=(
                # Either bridge says itself what is too large.
                ("grpc.max_send_message_length", -1),
                ("grpc.max_receive_message_length", -1),
                # A proxy for the world outside would look for its own 127.0.0.1.
                ("grpc.enable_http_proxy", 0),
                # Whoever called here retries, with a request id.
                ("grpc.enable_retries", 0),
                # By default 1 s, growing to 120 s. Most often it is on the same machine, where an
                # attempt costs nothing, and restarts in less than a second.
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 100),
                # It widens the window of each stream to 4.5 MB, which is what each watch would
                # then keep here whose client does not read.
                ("grpc.http2.bdp_probe", 0),
            ),
        )
        paths = {name: f"/{SERVICE.full_name}/{name}" for name in FORWARDED}
        watch = paths.pop("WatchVariables")
        self._unary: dict[str, Callable[..., Awaitable[bytes]]] = {
            name: self._channel.unary_unary(path) for name, path in paths.items()
        }
        self._watch: Callable[..., Any] = self._channel.unary_stream(watch)
        self._back: asyncio.Task[None] | None = None
        """Done when the connection that was lost is there again."""

    async def close(self) -> None:
        """Hang up. Idempotent."""
        if self._back is not None:
            self._back.cancel()
        await self._channel.close()

    async def ready(self) -> None:
        """Wait a moment for a connection that is lost, which gRPC is about to try again.

        It fails calls until then, though the bridge may be there.
        """
        lost = grpc.ChannelConnectivity.TRANSIENT_FAILURE
        if self._channel.get_state() is not lost:
            return
        if self._back is None or self._back.done():
            self._back = asyncio.create_task(self._channel.wait_for_state_change(lost))
        await asyncio.wait((self._back,), timeout=NEXT_ATTEMPT)

    async def call(
        self,
        method: str,
        raw: bytes,
        headers: Headers = (),
        timeout: float | None = None,  # noqa: ASYNC109 - becomes the deadline that is seen there
    ) -> bytes:
        """Make a call and give its answer.

        :param timeout: seconds; ``None`` = for ever.
        :raises Answered: it was refused.
        :raises Unavailable: nobody is there, or is there no more.
        :raises FailedPrecondition: the shared bridge does not take this one's token.
        """
        try:
            return await self._unary[method](
                raw, timeout=timeout, metadata=(*headers, *self._token)
            )
        except grpc.aio.AioRpcError as error:
            raise self.refusal(method, error) from None

    def watch(self, raw: bytes, headers: Headers, timeout: float | None) -> Any:  # noqa: ANN401 - gRPC's call
        """Open a watch: a ``grpc.aio`` call, whose errors are for ``refusal``."""
        return self._watch(raw, timeout=timeout, metadata=(*headers, *self._token))

    def refusal(self, method: str, error: grpc.aio.AioRpcError) -> Exception:
        """What a call that failed is answered with here."""
        status, said = error.code(), error.details() or ""
        trailers = tuple(error.trailing_metadata() or ())
        if status is grpc.StatusCode.UNAVAILABLE and all(key != DETAILS for key, _ in trailers):
            return self._gone(method, said)
        refused = Answered(status, said, trailers)
        if status in _TOKEN_REFUSED and refused.reason in _TOKEN_REASONS:
            return FailedPrecondition(
                f"the shared bridge at {self.address} does not take this worker's token: start the "
                "worker with the token of that bridge (--bridge-token-file)"
            )
        return refused

    def _gone(self, method: str, said: str) -> Unavailable:
        again = (
            "watch again with your last bookmark (log_epoch, after_offset, resume_check)"
            if method == "WatchVariables"
            else "retry, a write with the same request_id, as it may have been done"
        )
        return Unavailable(
            f"the shared bridge at {self.address} cannot be reached ({said[:MAX_SAID]}): {again}; "
            "this worker connects by itself as soon as it is back"
        )


_TOKEN_REFUSED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
_TOKEN_REASONS = (Unauthenticated.reason, PermissionDenied.reason)


_OF_A_SESSION = (
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.FAILED_PRECONDITION,
)
"""What is refused like this is so because of what is in the session, unless that is not found."""


class _Way(NamedTuple):
    """On which a call goes to the shared bridge."""

    headers: Headers
    tool: ToolCall | None = None
    """The call of a tool that asks, if one does and its call is open."""
    repeatable: bool = False
    """Whether what it asks for may be asked for twice."""


class Forwarding:
    """The methods that the shared bridge answers, on one event loop."""

    def __init__(
        self, shared: SharedBridge, local: BridgeServicer, calls: Calls, gate: Gate
    ) -> None:
        """Make the methods.

        :param local: this process's own part of the sessions: the tools.
        :param calls: the calls of tools that run here.
        """
        self._shared = shared
        self._local = local
        self._calls = calls
        self._gate = gate
        self._instance = calls.services.committer.instance
        self._waiting = 0
        self._known: WeakSet[ToolCall] = WeakSet()
        """Calls of tools whose session was found there: if it is gone now, it has ended."""
        self._watches: dict[asyncio.Task[Any], Any] = {}
        self._closing = False
        own = {
            "InitializeSession": self.initialize_session,
            "CleanupSession": self.cleanup_session,
            "GetSession": self.get_session,
            "Heartbeat": self.heartbeat,
        }
        self.methods: dict[str, Callable[[Call], Awaitable[bytes]]] = {
            name: own.get(name) or partial(self._ask, name)
            for name in FORWARDED
            if name != "WatchVariables"
        }

    async def look(self) -> None:
        """Say in the log whether the shared bridge answers; nothing depends on it."""
        address = self._shared.address
        headers = ((FORWARDED_BY, self._instance),)
        raw = pb.HeartbeatRequest().SerializeToString()
        try:
            await self._shared.call("Heartbeat", raw, headers, FIRST_LOOK)
        except (Answered, BridgeError) as error:
            logger.warning(
                "the shared bridge at %s does not answer: %s", address, error.message or error
            )
        else:
            logger.info("sessions are those of the shared bridge at %s", address)

    async def close(self) -> None:
        """End every watch, those whose client does not read within a moment."""
        self._closing = True
        for stream in self._watches.values():
            stream.cancel()
        if self._watches:
            _, blocked = await asyncio.wait(list(self._watches), timeout=BLOCKED)
            for task in blocked:
                task.cancel()

    async def initialize_session(self, call: Call) -> bytes:
        """As there, and with the tools of this process, which take the place of namesakes."""
        answer = await self._ask("InitializeSession", call)
        session_id = pb.GetExposedElixirToolsRequest.FromString(call.raw).session_id
        ours = views.InitializeSessionResponseView()
        for name, spec in (await self._local.tools_of(session_id)).items():
            ours.available_tools.add(key=name, value=spec)
        # Two messages, one after the other, are one with the fields of both.
        return answer + ours.SerializeToString()

    async def get_session(self, call: Call) -> bytes:
        """As there, but that ``tool_count`` is of the tools that can be called here."""
        answer = pb.GetSessionResponse.FromString(await self._ask("GetSession", call))
        answer.tool_count = len(await self._local.tools_of(answer.session_id))
        raw: bytes = answer.SerializeToString()
        return raw

    async def heartbeat(self, call: Call) -> bytes:
        """Keep the session alive on both sides.

        One in which tools ran is valid although the shared bridge has not heard of it: it does so
        when a tool first asks for something. That bridge's absence, too, is no reason for Snakepit
        to end this worker.
        """
        ours = await self._local.heartbeat(call.raw)
        lives_here = pb.HeartbeatResponse.FromString(ours).session_valid
        try:
            async with asyncio.timeout(LONGEST_BEAT if lives_here else None):
                theirs = await self._ask("Heartbeat", call)
        except (Unavailable, TimeoutError):
            if lives_here:
                return ours
            raise
        lives_there = pb.HeartbeatResponse.FromString(theirs).session_valid
        return ours if lives_here and not lives_there else theirs

    async def cleanup_session(self, call: Call) -> bytes:
        """End the session there, then what belongs to it here, running tools among it."""
        answer = await self._ask("CleanupSession", call)
        request = pb.CleanupSessionRequest.FromString(call.raw)
        ours = pb.CleanupSessionRequest(session_id=request.session_id, force=request.force)
        await self._local.cleanup_session(Call(ours.SerializeToString(), ()))
        return answer

    async def watch_variables(self, call: Call, send: Callable[[bytes], Awaitable[None]]) -> None:
        """Pass on what a watch sends, as fast as the client takes it, to its end.

        Only so much of it is on its way here as HTTP/2 lets through, so that whoever is slow is so
        for the shared bridge, too.
        """
        way = await self._way("WatchVariables", call)
        await self._shared.ready()
        again = call if way.tool is not None else None
        watched = self._watch(self._open(call, way), send, way.tool)
        del call  # it may be large, and the watch may be open for hours
        try:
            await watched
        except Answered as refused:
            if again is None or not self._is_new(way, refused):
                raise
            await self._begin_session(way)
            await self._watch(self._open(again, way), send, way.tool)

    def _open(self, call: Call, way: _Way) -> Any:  # noqa: ANN401 - gRPC's call
        if self._closing:
            raise _stopping()
        return self._shared.watch(call.raw, way.headers, call.remaining())

    async def _watch(
        self,
        stream: Any,  # noqa: ANN401 - as above
        send: Callable[[bytes], Awaitable[None]],
        tool: ToolCall | None,
    ) -> None:
        task = asyncio.current_task()
        if task is None:
            raise AssertionError("a watch runs in a task")
        self._watches[task] = stream
        try:
            while (update := await stream.read()) is not grpc.aio.EOF:
                await send(update)
                if tool is not None:
                    self._known.add(tool)
        except grpc.aio.AioRpcError as error:
            raise self._shared.refusal("WatchVariables", error) from None
        except asyncio.CancelledError:
            if self._closing and not task.cancelling():
                raise _stopping() from None
            raise
        finally:
            del self._watches[task]
            stream.cancel()

    async def _ask(self, method: str, call: Call) -> bytes:
        size = len(call.raw)
        with self._place(size):
            way = await self._way(method, call)
            await self._shared.ready()
            try:
                answer = await self._shared.call(method, call.raw, way.headers, call.remaining())
            except Answered as refused:
                if not self._is_new(way, refused):
                    raise
                await self._begin_session(way)
                answer = await self._shared.call(method, call.raw, way.headers, call.remaining())
        if way.tool is not None:
            self._known.add(way.tool)
        return answer

    def _is_new(self, way: _Way, refused: Answered) -> bool:
        """Whether a tool asks for its session before anybody did so there.

        ``ExecuteTool`` has begun it here. Once it was found there, which other refusals tell as
        well, its absence is its end, and no tool undoes that.
        """
        if way.tool is None:
            return False
        if refused.reason == SessionNotFound.reason:
            return way.repeatable and way.tool not in self._known
        if refused.status in _OF_A_SESSION:
            self._known.add(way.tool)
        return False

    async def _begin_session(self, way: _Way) -> None:
        if way.tool is None:
            raise AssertionError("only a tool's session is begun")
        request = pb.InitializeSessionRequest(session_id=way.tool.request.envelope.session_id)
        await self._shared.call("InitializeSession", request.SerializeToString(), way.headers)
        self._known.add(way.tool)

    async def _way(self, method: str, call: Call) -> _Way:
        """How a call goes on.

        :raises FailedPrecondition: it was here before; or a tool wants to change something whose
            call is over.
        """
        headers = _inside(method, call, _passed_on(call.metadata))
        if (FORWARDED_BY, self._instance) in headers:
            raise FailedPrecondition(
                f"this call was here before: the bridge at {self._shared.address}, which this one "
                "forwards to (--bridge), forwards to this one. Name the bridge that keeps the log"
            )
        headers = (*headers, (FORWARDED_BY, self._instance))
        origin = _tool_of(call.metadata)
        if not origin.tool_call_id:
            return _Way(headers)
        asked = await _read(call.raw)
        if asked is None:
            return _Way(headers)  # the shared bridge has words for it
        tool = await self._calls.asking(asked.session_id, origin)
        writes = "request_id" in SERVICE.methods_by_name[method].input_type.fields_by_name
        if writes and tool is None:
            check_call(SessionState(), origin)
        return _Way(headers, tool, not writes or asked.request_id != "")

    @contextmanager
    def _place(self, size: int) -> Iterator[None]:
        """Count a call, and the bytes of its request, as long as it waits."""
        if self._waiting >= MAX_FORWARDED:
            raise ResourceExhausted(
                f"{MAX_FORWARDED} calls wait for the shared bridge at {self._shared.address} "
                "already: slow down and retry"
            )
        self._gate.claim(size)
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
            self._gate.release(size)


def _stopping() -> Unavailable:
    return Unavailable(
        "the worker is shutting down: watch again with your last bookmark (log_epoch, "
        "after_offset, resume_check), at another worker or at the shared bridge"
    )


def _passed_on(metadata: GrpcMetadata) -> Headers:
    """The headers that go along.

    Those that gRPC does not take are left out, for which it would refuse the whole call: what is
    traced or correlated is no reason for that.
    """
    return tuple(
        (key, value)
        for key, value in metadata
        if key in PASSED_ON and isinstance(value, str) and value.isascii() and value.isprintable()
    )


def _inside(method: str, call: Call, headers: Headers) -> Headers:
    """The headers that go along, with this worker's place in the trace and its correlation id.

    A long request is not read for those that it may name itself; they hold there as they are.
    """
    seen = call.observation
    if seen is None or len(call.raw) > LARGE:
        return headers
    message = getattr(pb, SERVICE.methods_by_name[method].input_type.name)
    seen.settle(metadata_of(message, call.raw))
    ours = [("traceparent", seen.traceparent), ("tracestate", seen.tracestate)]
    correlation = seen.header()
    if correlation[1] == seen.correlation_id:  # else no header can hold it
        ours.append(correlation)
    ours = [(key, value) for key, value in ours if value and value.isascii()]
    known = {key for key, _ in ours}
    return (*((key, value) for key, value in headers if key not in known), *ours)


def _tool_of(metadata: GrpcMetadata) -> Origin:
    """Which call of which tool asks; without an id none does that runs here."""
    tool = call_id = ""
    for key, value in metadata:
        if key == TOOL_HEADER:
            tool = unquote(str(value))
        elif key == TOOL_CALL_HEADER:
            call_id = str(value)
    return Origin(f"tool:{tool}", tool_call_id=call_id)


async def _read(raw: bytes) -> pb.CleanupSessionRequest | None:
    """The session and the request id of any request; ``None`` if it cannot be read.

    These stand in the same fields of all requests, and this one has hardly any others: what has
    another type there is unknown to it.
    """
    try:
        if len(raw) > LARGE:
            return await off_loop(pb.CleanupSessionRequest.FromString, raw)
        return pb.CleanupSessionRequest.FromString(raw)
    except DecodeError:
        return None
