"""The Elixir side: the BridgeService that Snakepit serves, at which tools of Elixir are called.

Snakepit gives each worker its address. This is a client of it and keeps nothing: tools of
Elixir are asked for and called there, tools of ours are announced there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge.errors import (
    AlreadyExists,
    BridgeError,
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    InternalError,
    InvalidRequest,
    InvalidValue,
    NotFound,
    OffsetOutOfRange,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
    VersionConflict,
    quote,
)
from snakepit_bridge.observation import CORRELATION_HEADER
from snakepit_bridge.tool_values import decode_argument, encode_result

__all__ = ["ERRORS", "Elixir", "ElixirToolFailed"]

logger = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["BridgeService"].full_name

PASSED_ON = frozenset({"traceparent", "tracestate", "baggage", CORRELATION_HEADER})
"""What a call takes along of the gRPC metadata of the call that it was made in."""

ASKING = 10.0
"""Seconds for what Elixir answers from memory; its heartbeats wait as long for us."""

MAX_SAID = 2_048
"""Characters of Elixir's words that are repeated; those of an exception may be pages."""

Headers = Sequence[tuple[str, str]]


class ElixirToolFailed(RuntimeError):
    """A tool of Elixir's raised, or refused its arguments.

    :param tool: its name.
    :param why: Elixir's words.
    """

    def __init__(self, tool: str, why: str) -> None:
        super().__init__(f"the Elixir tool {quote(tool)} failed: {_shortened(why) or 'no reason'}")
        self.tool = tool
        self.why = why


class Elixir:
    """The BridgeService on the other side.

    Made, used and closed on one event loop. It connects when it is first called, and again
    whenever the connection is lost.
    """

    def __init__(self, address: str, *, max_size: int) -> None:
        """Prepare to call.

        :param address: ``host:port``.
        :param max_size: bytes of a request and of an answer.
        """
        self.address = address
        self._closed = False
        self._channel = grpc.aio.insecure_channel(
            address,
            options=(
                ("grpc.max_send_message_length", max_size),
                ("grpc.max_receive_message_length", max_size),
                # It is a neighbour: a proxy for the world outside would not find it.
                ("grpc.enable_http_proxy", 0),
                # What a tool of Elixir's does is not done twice.
                ("grpc.enable_retries", 0),
                # By default 1 s and 120 s: a restarted Elixir would be thought dead for long.
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 2_000),
            ),
        )
        self._methods: dict[str, Callable[..., Awaitable[bytes]]] = {
            name: self._channel.unary_unary(f"/{SERVICE}/{name}")
            for name in (
                "ExecuteElixirTool",
                "GetExposedElixirTools",
                "Heartbeat",
                "InitializeSession",
                "RegisterTools",
            )
        }

    async def close(self) -> None:
        """Hang up; calls under way end with ``Unavailable``. Idempotent."""
        self._closed = True
        await self._channel.close()

    async def forward(
        self,
        method: str,
        raw: bytes,
        metadata: Sequence[tuple[str, str]],
        timeout: float | None,  # noqa: ASYNC109 - becomes the deadline that Elixir sees
    ) -> bytes:
        """Make the same call there, and give its answer.

        :param method: ``GetExposedElixirTools`` or ``ExecuteElixirTool``.
        :param raw: the request, as it came.
        :param metadata: the caller's gRPC metadata, of which tracing and correlation go along.
        :param timeout: seconds that the caller still waits; ``None`` = for ever.
        :raises BridgeError: the error of the status that Elixir answered with.
        :raises Unavailable: Elixir cannot be reached.
        """
        headers = [(key, text) for key, text in metadata if key in PASSED_ON and _is_header(text)]
        return await self._call(method, raw, headers, timeout)

    async def call_tool(  # noqa: PLR0913 - what a call is, and what it belongs to
        self,
        session_id: str,
        name: str,
        arguments: Mapping[str, object],
        *,
        correlation_id: str = "",
        traceparent: str = "",
        timeout: float | None = None,  # noqa: ASYNC109 - as above
    ) -> object:
        """Call a tool of Elixir's.

        :param arguments: values as ``tool_values.encode_result`` takes them.
        :param timeout: seconds; ``None`` = for ever.
        :returns: the result, as ``tool_values.decode_argument`` gives it.
        :raises ElixirToolFailed: it ran, or was refused, and gave no result.
        :raises InvalidValue: an argument has no form on the wire, or the result is none.
        :raises BridgeError: as ``forward``.
        """
        request = pb.ExecuteElixirToolRequest(session_id=session_id, tool_name=name)
        for key, value in arguments.items():
            request.parameters[key].CopyFrom(_argument(name, key, value))
        if correlation_id:
            request.metadata["correlation_id"] = correlation_id
        answer = pb.ExecuteElixirToolResponse()
        headers = _headers(correlation_id, traceparent)
        await self._ask("ExecuteElixirTool", request, answer, headers, timeout)
        if not answer.success:
            raise ElixirToolFailed(name, answer.error_message)
        if not answer.HasField("result"):
            return None
        return decode_argument(answer.result.SerializeToString(), answer.binary_result)

    async def tools(self, session_id: str) -> list[pb.ToolSpec]:
        """Give the tools that Elixir exposes to a session.

        :raises BridgeError: as ``forward``.
        """
        answer = pb.GetExposedElixirToolsResponse()
        request = pb.GetExposedElixirToolsRequest(session_id=session_id)
        await self._ask("GetExposedElixirTools", request, answer, timeout=ASKING)
        return list(answer.tools)

    async def announce(
        self, session_id: str, registrations: Sequence[pb.ToolRegistration], worker_id: str
    ) -> bool:
        """Tell Elixir of a session and of the tools that it has here, as far as it listens.

        Snakepit's own worker does so at the first call of a session. Elixir may know the tools
        already, or keep no such registry: no answer is an error, and none is raised.

        :param worker_id: by which Elixir would find this worker.
        :returns: whether Elixir was there.
        """
        begun = pb.InitializeSessionRequest(session_id=session_id)
        announced = pb.RegisterToolsRequest(
            session_id=session_id, tools=registrations, worker_id=worker_id
        )
        answer = pb.RegisterToolsResponse()
        try:
            await self._ask(
                "InitializeSession", begun, pb.InitializeSessionResponse(), timeout=ASKING
            )
            if not registrations:
                return True
            await self._ask("RegisterTools", announced, answer, timeout=ASKING)
        except BridgeError as error:
            logger.debug("session %s was not announced: %s", quote(session_id), error.message)
            return not isinstance(error, Unavailable)
        if not answer.success:
            logger.debug(
                "Elixir does not take the tools of session %s: %s",
                quote(session_id),
                answer.error_message,
            )
        return True

    async def heartbeat(self, session_id: str, timeout: float) -> bool:  # noqa: ASYNC109 - as above
        """Whether Elixir answers within so many seconds, be it with an error."""
        request = pb.HeartbeatRequest(session_id=session_id)
        request.client_time.GetCurrentTime()
        try:
            await self._methods["Heartbeat"](request.SerializeToString(), timeout=timeout)
        except grpc.aio.AioRpcError as error:
            logger.debug("a heartbeat failed: %s %s", error.code().name, error.details())
            return error.code() not in _NOBODY
        return True

    async def _ask(
        self,
        method: str,
        request: Message,
        answer: Message,
        headers: Headers = (),
        timeout: float | None = None,  # noqa: ASYNC109 - as above
    ) -> None:
        raw = await self._call(method, request.SerializeToString(), headers, timeout)
        try:
            answer.ParseFromString(raw)
        except DecodeError as error:
            raise InternalError(
                f"the answer of Elixir at {self.address} to {method} cannot be parsed"
            ) from error

    async def _call(
        self,
        method: str,
        raw: bytes,
        headers: Headers,
        timeout: float | None,  # noqa: ASYNC109 - as above
    ) -> bytes:
        if self._closed:
            raise self._hung_up(method)
        try:
            return await self._methods[method](raw, timeout=timeout, metadata=tuple(headers))
        except grpc.aio.AioRpcError as error:
            self._refuse(method, error)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise self._hung_up(method) from None
            raise

    def _hung_up(self, method: str) -> Unavailable:
        return Unavailable(f"{method} was not answered by Elixir: this bridge is shutting down")

    def _refuse(self, method: str, error: grpc.aio.AioRpcError) -> NoReturn:
        said = _shortened(error.details() or "") or "no reason"
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            raise Unavailable(
                f"Elixir at {self.address} cannot be reached ({said}): is the BEAM that started "
                "this worker still running, and is --elixir-address its gRPC address?"
            ) from None
        raise ERRORS[error.code()](
            f"Elixir at {self.address} answered {method} with {error.code().name}: {said}"
        ) from None


_TREE: tuple[type[BridgeError], ...] = (
    AlreadyExists,
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    InternalError,
    InvalidRequest,
    NotFound,
    OffsetOutOfRange,
    ResourceExhausted,
    Unimplemented,
    VersionConflict,
)
"""Of each status the error that has no narrower meaning."""

ERRORS: Mapping[grpc.StatusCode, type[BridgeError]] = {
    code: type(
        f"Elixir{base.__name__}", (base,), {"code": code.name, "reason": f"ELIXIR_{code.name}"}
    )
    for code in grpc.StatusCode
    if code not in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)
    for base in [next((each for each in _TREE if each.code == code.name), BridgeError)]
}
"""The error of the tree with a status, but with a reason that tells whose it was."""

_NOBODY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
"""Statuses that come about without anybody who answers."""


def _argument(tool: str, name: str, value: object) -> AnyMessage:
    try:
        encoded = encode_result(value)
    except InvalidValue as error:
        raise InvalidValue(
            f"argument {quote(name)} of the Elixir tool {quote(tool)}: {error.message}",
            field=f"parameters.{name}",
        ) from None
    if encoded.binary:
        raise InvalidValue(
            f"argument {quote(name)} of the Elixir tool {quote(tool)} is an array of "
            f"{len(encoded.binary)} bytes, and ExecuteElixirTool has no field for binary values: "
            "pass .tolist(), or a smaller one",
            field=f"parameters.{name}",
        )
    return AnyMessage.FromString(encoded.any)


def _headers(correlation_id: str, traceparent: str) -> Headers:
    given = ((CORRELATION_HEADER, correlation_id), ("traceparent", traceparent))
    return [(key, text) for key, text in given if text and _is_header(text)]


def _is_header(text: str) -> bool:
    """Whether gRPC takes it; for one that it does not take it refuses the whole call."""
    return text.isascii() and text.isprintable()


def _shortened(text: str) -> str:
    text = text.strip()
    return text if len(text) <= MAX_SAID else text[: MAX_SAID - 3] + "..."
