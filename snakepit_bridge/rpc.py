"""The gRPC shell around the servicer: raw handlers, and the one way out for errors.

Handlers are registered without (de)serializers and parse inside, so that a malformed
message gets INVALID_ARGUMENT; the generated registration would answer UNKNOWN.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, Self

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge.bridge_servicer import Mutate, Query
from snakepit_bridge.errors import (
    BridgeError,
    InternalError,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
    without_frames,
)
from snakepit_bridge.forwarding import Answered
from snakepit_bridge.observation import current
from snakepit_bridge.tokens import check_token
from snakepit_bridge.tool_methods import CallStream
from snakepit_bridge.watching import Send, Stream
from snakepit_bridge.wire import Call, GrpcMetadata, metadata_of

__all__ = ["SERVICE", "Conversation", "Door", "LockedDoor", "Methods", "fail", "handlers"]

logger = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["BridgeService"]
DOMAIN = "snakepit.bridge"
"""``google.rpc.ErrorInfo.domain`` of every error."""

MAX_MESSAGE = 1024
"""Bytes of a status message. It is sent twice, and clients drop metadata beyond 8 KiB."""

Context = grpc.aio.ServicerContext[Any, Any]


class Door:
    """Counts the calls inside, and lets no more in once it is shut.

    But for those of tools that still run: they get the grace as well.
    """

    def __init__(self) -> None:
        self.inside = 0
        self.arrived = 0
        self.shut = False
        self.is_tool: Callable[[GrpcMetadata], bool] = lambda _: False

    def __call__(self, context: Context) -> Self:
        """:raises Unavailable: the bridge is draining."""
        self.arrived += 1
        if self.shut and not self.is_tool(context.invocation_metadata() or ()):
            raise Unavailable("the bridge is shutting down: retry with another one")
        return self

    def __enter__(self) -> None:
        self.inside += 1

    def __exit__(self, *_: object) -> None:
        self.inside -= 1


class LockedDoor(Door):
    """A door that opens only to calls with the bridge's token, whatever they ask for.

    The headers of a call are all that is looked at before.
    """

    def __init__(self, token: str) -> None:
        super().__init__()
        self._token = token.encode()

    def __call__(self, context: Context) -> Self:
        """Look at the token, then as any door.

        :raises Unauthenticated: the call carries no token.
        :raises PermissionDenied: it carries another.
        :raises Unavailable: the bridge is draining.
        """
        check_token(self._token, context.invocation_metadata() or ())
        return super().__call__(context)


Conversation = Callable[[AsyncIterator[bytes], str, Send], Awaitable[None]]
"""A method that gets requests as they come, the name of its connection, and what sends."""


class Methods(NamedTuple):
    """All methods that are served, by name."""

    queries: Mapping[str, Query]
    mutations: Mapping[str, Mutate]
    streams: Mapping[str, Stream]
    call_streams: Mapping[str, CallStream]
    conversations: Mapping[str, Conversation]


def handlers(methods: Methods, door: Door, max_size: int) -> grpc.GenericRpcHandler:
    """Handlers for the whole BridgeService; those without a method are UNIMPLEMENTED.

    :param max_size: bytes of a request.
    """
    made: dict[str, Callable[[Any, Context], Any]] = {}
    for name, query in methods.queries.items():
        made[name] = _query(query, door, max_size)
    for name, mutation in methods.mutations.items():
        made[name] = _mutation(mutation, door, max_size)
    for name, stream in methods.streams.items():
        made[name] = _stream(stream, door, max_size)
    for name, call_stream in methods.call_streams.items():
        made[name] = _call_stream(call_stream, door, max_size)
    for name, conversation in methods.conversations.items():
        made[name] = _conversation(conversation, door, max_size)

    return grpc.method_handlers_generic_handler(
        SERVICE.full_name,
        {
            method.name: _HANDLERS[method.client_streaming, method.server_streaming](
                made.get(method.name) or _unimplemented(method.name, door)
            )
            for method in SERVICE.methods
        },
    )


_HANDLERS: dict[tuple[bool, bool], Callable[..., grpc.RpcMethodHandler[Any, Any]]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def _query(method: Query, door: Door, max_size: int) -> Callable[[bytes, Context], Any]:
    async def handle(raw: bytes, context: Context) -> bytes:
        try:
            with door(context):
                if len(raw) > max_size:
                    raise _too_large(len(raw), max_size)
                return await method(raw)
        except Exception as error:
            raw = b""  # the frame outlives the call, by the error that ends it
            await fail(context, error)
            raise

    return handle


def _mutation(method: Mutate, door: Door, max_size: int) -> Callable[[bytes, Context], Any]:
    async def handle(raw: bytes, context: Context) -> bytes:
        try:
            with door(context):
                if len(raw) > max_size:
                    raise _too_large(len(raw), max_size)
                headers = context.invocation_metadata() or ()
                answer = method(Call(raw, headers, context.time_remaining, current.get()))
                raw = b""  # it may be long, and a tool may run for hours
                return await answer
        except Exception as error:
            raw = b""  # the frame outlives the call, by the error that ends it
            await fail(context, error)
            raise

    return handle


def _stream(method: Stream, door: Door, max_size: int) -> Callable[[bytes, Context], Any]:
    async def handle(raw: bytes, context: Context) -> None:
        try:
            with door(context):
                # An Elixir client waits for these before it goes on.
                await context.send_initial_metadata(())
                if len(raw) > max_size:
                    raise _too_large(len(raw), max_size)
                stream = method(raw, context.peer(), context.write)
                raw = b""  # it may be long, and the stream may be open for hours
                await stream
        except grpc.aio.BaseError as error:
            raise asyncio.CancelledError from error  # the client is gone, nobody hears an answer
        except Exception as error:
            raw = b""  # the frame outlives the call, by the error that ends it
            await fail(context, error)
            raise

    return handle


def _call_stream(method: CallStream, door: Door, max_size: int) -> Callable[[bytes, Context], Any]:
    async def handle(raw: bytes, context: Context) -> None:
        try:
            with door(context):
                if len(raw) > max_size:
                    raise _too_large(len(raw), max_size)
                headers = context.invocation_metadata() or ()
                observation = current.get()
                if observation is not None:
                    observation.settle(metadata_of(pb.ExecuteToolRequest, raw))
                await context.send_initial_metadata(())  # as above
                call = Call(raw, headers, context.time_remaining, observation)
                stream = method(call, context.write)
                del call
                raw = b""  # it may be long, and the stream may be open for hours
                await stream
        except grpc.aio.BaseError as error:
            raise asyncio.CancelledError from error  # as above
        except Exception as error:
            raw = b""  # as above
            await fail(context, error)
            raise

    return handle


def _conversation(
    method: Conversation, door: Door, max_size: int
) -> Callable[[AsyncIterator[bytes], Context], Any]:
    async def handle(requests: AsyncIterator[bytes], context: Context) -> None:
        async def read() -> AsyncIterator[bytes]:
            async for raw in requests:
                if len(raw) > max_size:
                    raise _too_large(len(raw), max_size)
                yield raw

        try:
            with door(context):
                await context.send_initial_metadata(())  # as above
                await method(read(), context.peer(), context.write)
        except grpc.aio.BaseError as error:
            raise asyncio.CancelledError from error  # as above
        except Exception as error:
            await fail(context, error)
            raise

    return handle


def _too_large(size: int, limit: int) -> ResourceExhausted:
    return ResourceExhausted(
        f"the request has {size} bytes, more than the message limit of {limit}: send less, or "
        "start the bridge with a larger --max-message-size"
    )


def _unimplemented(name: str, door: Door) -> Callable[[Any, Context], Any]:
    async def handle(request: object, context: Context) -> None:
        del request  # as above: the frame outlives the call
        try:
            with door(context):
                raise Unimplemented(f"{name} is not served by this release")
        except BridgeError as error:
            await fail(context, error)

    return handle


async def fail(context: Context, error: Exception) -> None:
    """End a call with an error: status, message, details and trailers, all at once.

    The details repeat the message, because clients show the one or the other. What the shared
    bridge answered goes back as it came. Aborting a call raises; this never returns.
    """
    observation = current.get()
    if isinstance(error, Answered):
        if observation is not None:
            observation.status = error.status.name
        without_frames(error)
        await context.abort(error.status, error.message, error.trailers)
    if not isinstance(error, BridgeError):
        logger.error("a call failed inside the bridge", exc_info=error)
        error = InternalError("the bridge failed on this call; see its log")
    if observation is not None:
        observation.error, observation.status = error, error.code
    without_frames(error)
    message = error.message
    if len(message.encode()) > MAX_MESSAGE:
        message = message.encode()[: MAX_MESSAGE - 3].decode("utf-8", "ignore") + "..."
    trailers = [(name, error.facts[name]) for name in error.trailers if name in error.facts]
    if observation is not None:
        trailers.append(observation.header())
    details = _details(error.code, error.reason, message, error.field, tuple(error.facts.items()))
    await context.abort(
        grpc.StatusCode[error.code], message, (*trailers, ("grpc-status-details-bin", details))
    )


@lru_cache(maxsize=64)  # a thousand watches may end with the same words in one moment
def _details(
    code: str, reason: str, message: str, field: str, facts: tuple[tuple[str, str], ...]
) -> bytes:
    status = Status(code=grpc.StatusCode[code].value[0], message=message)
    _add(status, ErrorInfo(reason=reason, domain=DOMAIN, metadata=dict(facts)))
    if field:
        violation = BadRequest.FieldViolation(field=field, description=message)
        _add(status, BadRequest(field_violations=[violation]))
    raw: bytes = status.SerializeToString()
    return raw


def _add(status: Status, detail: ErrorInfo | BadRequest) -> None:
    packed = AnyMessage()
    packed.Pack(detail)
    status.details.append(packed)
