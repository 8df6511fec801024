"""The one interceptor: of every call it feeds the metrics, the span, and what log lines carry.

Each call is counted as started and, whatever becomes of it, as handled::

    handler returns                OK, or the status that it set
    handler aborts                 that status
    handler raises                 UNKNOWN, as gRPC answers
    the call is cancelled          DEADLINE_EXCEEDED if its time was over, else CANCELLED;
                                   so when the client hangs up, or the server stops

A stream is wrapped as a coroutine that writes to the context, not as a generator: gRPC never closes
a generator whose client is gone, so what follows its last ``yield`` would not run.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from snakepit_bridge.observation import Observation, Sampled, current
from snakepit_bridge.telemetry import names
from snakepit_bridge.telemetry.heads import HEAD, named_by
from snakepit_bridge.telemetry.metrics import CallCounts

__all__ = ["Finish", "Interceptor", "log_context", "methods_of"]

Handler = Any
"""A ``grpc.RpcMethodHandler``, whose stubs know of synchronous servers only."""

Context = grpc.aio.ServicerContext[Any, Any]
Finish = Callable[[Observation, str, int], None]
"""Takes a call that was handled, its status as ``grpc.StatusCode`` names it, and when it ended."""

CLOSE_TO_DEADLINE = 0.05
"""Seconds left in which a call that is cancelled counts as late: the client's clock for it began
earlier than ours, and ends earlier."""

_TYPES = {
    (False, False): "unary",
    (True, False): "client_stream",
    (False, True): "server_stream",
    (True, True): "bidi_stream",
}


def methods_of(services: Iterable[ServiceDescriptor]) -> Sequence[tuple[str, str, str]]:
    """Type, service and name of all methods, as the labels of their metrics."""
    return [
        (_TYPES[method.client_streaming, method.server_streaming], service.full_name, method.name)
        for service in services
        for method in service.methods
    ]


def log_context() -> Mapping[str, str]:
    """What each log line carries that is made inside of a call."""
    observation = current.get()
    if observation is None:
        return {}
    observation.settle()
    fields = {"correlation_id": observation.correlation_id}
    session_id = observation.session_id or named_by(observation).get(names.SESSION_ID)
    if session_id:
        fields["session_id"] = session_id
    if observation.trace_id:
        fields["trace_id"] = f"{observation.trace_id:032x}"
        fields["span_id"] = f"{observation.span_id:016x}"
    return fields


class Interceptor(grpc.aio.ServerInterceptor):
    """Observes the calls of one server."""

    def __init__(
        self,
        counts: Mapping[str, CallCounts],
        finish: Sequence[Finish],
        sampled: Sampled | None,
    ) -> None:
        """Observe.

        :param counts: by path; a method that is not among them is answered by gRPC itself.
        :param finish: called with each call that was handled.
        :param sampled: where traces are recorded.
        """
        self._counts = counts
        self._finish = finish
        self._sampled = sampled
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        path = str(handler_call_details.method)
        wrapped = self._wrapped.get(path)
        if wrapped is not None:
            return wrapped
        handler = await continuation(handler_call_details)
        counts = self._counts.get(path)
        if handler is None or counts is None:
            return handler
        wrapped = self._wrapped[path] = _WRAPPERS[counts.labels[0]](
            handler, _Method(self, path.removeprefix("/"), counts)
        )
        return wrapped

    def ended(self, observation: Observation, status: str, counts: CallCounts) -> None:
        """Count it; this must come to pass once for each call."""
        ended = time.perf_counter_ns()
        counts.handled[names.CODES[status]] += 1
        observation.settle()
        counts.seconds.observe(
            (ended - observation.begun) / 1e9, observation.trace_id if observation.sampled else 0
        )
        for finish in self._finish:
            finish(observation, status, ended)


class _Method:
    """One method: where its calls are counted."""

    __slots__ = ("_counts", "_interceptor", "_name", "_sampled")

    def __init__(self, interceptor: Interceptor, name: str, counts: CallCounts) -> None:
        self._interceptor = interceptor
        self._name = name
        self._counts = counts
        self._sampled = interceptor._sampled  # noqa: SLF001 - a part of it

    def begin(self, context: Context, request: object) -> Observation:
        begun = time.perf_counter_ns()
        self._counts.started += 1
        headers = context.invocation_metadata() or ()
        observation = Observation(self._name, headers, begun, self._sampled)
        if isinstance(request, bytes):
            observation.head = request[:HEAD]
        current.set(observation)
        return observation

    def received(self) -> None:
        self._counts.received += 1

    def sent(self) -> None:
        self._counts.sent += 1

    def returned(self, observation: Observation, context: Context) -> None:
        self._interceptor.ended(observation, _status_of(context), self._counts)

    def failed(self, observation: Observation, context: Context, error: BaseException) -> None:
        self._interceptor.ended(observation, _status(observation, context, error), self._counts)


def _status_of(context: Context) -> str:
    """The status that a handler set without ending its call."""
    code = context.code()
    return code.name if isinstance(code, grpc.StatusCode) else _NAMES.get(code or 0, "UNKNOWN")


_NAMES: Mapping[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}


def _status(observation: Observation, context: Context, error: BaseException) -> str:
    if observation.status:
        return observation.status
    if isinstance(error, asyncio.CancelledError | grpc.aio.BaseError):
        left = context.time_remaining()
        late = left is not None and left < CLOSE_TO_DEADLINE
        return "DEADLINE_EXCEEDED" if late else "CANCELLED"
    return "UNKNOWN"


class _Context:
    """The context of a call: what is written is counted, and how it is aborted is noted."""

    def __init__(self, context: Context, method: _Method, observation: Observation) -> None:
        self._context = context
        self._method = method
        self._observation = observation

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - of each name its own
        return getattr(self._context, name)

    async def read(self) -> Any:  # noqa: ANN401 - a message
        message = await self._context.read()
        if message is not grpc.aio.EOF:
            self._method.received()
        return message

    async def write(self, message: Any) -> None:  # noqa: ANN401 - a message
        await self._context.write(message)
        self._method.sent()

    async def send_initial_metadata(self, metadata: Any) -> None:  # noqa: ANN401 - as gRPC's
        await self._context.send_initial_metadata((*metadata, self._observation.header()))

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing: Any = ()) -> None:  # noqa: ANN401
        self._observation.status = code.name
        await self._context.abort(code, details, trailing)


def _unary(handler: Handler, method: _Method) -> Handler:
    behaviour = handler.unary_unary
    # A handler of ours, which takes bytes, notes itself how it aborts.
    is_ours = handler.request_deserializer is None

    async def handle(request: Any, context: Context) -> Any:  # noqa: ANN401 - messages
        observation = method.begin(context, request)
        method.received()
        answer = behaviour(request, context if is_ours else _Context(context, method, observation))
        request = None  # it may be long, and a tool may run for hours
        try:
            response = await answer
        except BaseException as error:
            method.failed(observation, context, error)
            raise
        context.set_trailing_metadata((observation.header(),))
        method.sent()
        method.returned(observation, context)
        return response

    return grpc.unary_unary_rpc_method_handler(
        handle, handler.request_deserializer, handler.response_serializer
    )


def _server_stream(handler: Handler, method: _Method) -> Handler:
    behaviour = handler.unary_stream

    async def handle(request: Any, context: Context) -> None:  # noqa: ANN401 - a message
        observation = method.begin(context, request)
        method.received()
        seen = _Context(context, method, observation)
        answer = behaviour(request, seen)
        request = None  # as above
        try:
            await _drive(answer, seen)
        except BaseException as error:
            method.failed(observation, context, error)
            raise
        method.returned(observation, context)

    return grpc.unary_stream_rpc_method_handler(
        handle, handler.request_deserializer, handler.response_serializer
    )


def _bidi_stream(handler: Handler, method: _Method) -> Handler:
    behaviour = handler.stream_stream

    async def handle(requests: AsyncIterator[Any], context: Context) -> None:
        observation = method.begin(context, None)
        seen = _Context(context, method, observation)
        try:
            await _drive(behaviour(_counted(requests, method), seen), seen)
        except BaseException as error:
            method.failed(observation, context, error)
            raise
        method.returned(observation, context)

    return grpc.stream_stream_rpc_method_handler(
        handle, handler.request_deserializer, handler.response_serializer
    )


def _client_stream(handler: Handler, method: _Method) -> Handler:
    behaviour = handler.stream_unary

    async def handle(requests: AsyncIterator[Any], context: Context) -> Any:  # noqa: ANN401
        observation = method.begin(context, None)
        seen = _Context(context, method, observation)
        try:
            response = await behaviour(_counted(requests, method), seen)
        except BaseException as error:
            method.failed(observation, context, error)
            raise
        method.sent()
        method.returned(observation, context)
        return response

    return grpc.stream_unary_rpc_method_handler(
        handle, handler.request_deserializer, handler.response_serializer
    )


_WRAPPERS: Mapping[str, Callable[[Handler, _Method], Handler]] = {
    "unary": _unary,
    "client_stream": _client_stream,
    "server_stream": _server_stream,
    "bidi_stream": _bidi_stream,
}


async def _drive(answer: Any, context: _Context) -> None:  # noqa: ANN401 - either form
    """Run a stream's handler, which writes itself or yields what is to be written."""
    if inspect.isawaitable(answer):
        await answer
        return
    async with aclosing(answer) as responses:
        async for response in responses:
            await context.write(response)


async def _counted(requests: AsyncIterator[Any], method: _Method) -> AsyncIterator[Any]:
    async for request in requests:
        method.received()
        yield request
