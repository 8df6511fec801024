"""The connection of one event loop to a bridge."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from snakepit_bridge import bridge_service_pb2_grpc as stubs
from snakepit_bridge.client.connection import Headers, gone, is_late, late
from snakepit_bridge.client.operations import Ask, Operation
from snakepit_bridge.client.options import FIRST_WAIT, Options, backoff
from snakepit_bridge.client.statuses import error_of
from snakepit_bridge.client.telemetry import aio_interceptors, current_context
from snakepit_bridge.errors import BridgeError, Unavailable

__all__ = ["AsyncConnection", "Stream"]

T = TypeVar("T")


class AsyncConnection:
    """Calls of one bridge, each until its deadline; see ``Connection``.

    It belongs to the event loop of its first call.
    """

    def __init__(self, options: Options) -> None:
        """Nothing is connected before the first call."""
        self.options = options
        self._headers = options.headers
        self._loop: asyncio.AbstractEventLoop | None = None
        self._channel: grpc.aio.Channel | None = None
        self._stub: Any = None
        self.address = ""
        """HOST:PORT, once it was asked for."""
        self.closed = False

    async def close(self) -> None:
        """End the connection and what still runs on it. Idempotent."""
        self.closed = True
        channel, self._channel, self._stub = self._channel, None, None
        # With its loop a channel has ended.
        if channel is not None and self._loop is asyncio.get_running_loop():
            await channel.close()

    async def run(self, operation: Operation[T], timeout: float | None, headers: Headers = ()) -> T:  # noqa: ASYNC109 - a deadline of gRPC
        """Do an operation; see ``Connection.run``.

        :raises RuntimeError: on another event loop than that of the first call.
        """
        limit = self.options.timeout if timeout is None else timeout
        deadline = asyncio.get_running_loop().time() + limit
        try:
            ask = next(operation)
            while True:
                try:
                    answer = await self._ask(ask, limit, deadline, headers)
                except BridgeError as error:
                    ask = operation.throw(error)
                else:
                    ask = operation.send(answer)
        except StopIteration as done:
            result: T = done.value
            return result

    def open(
        self,
        method: str,
        request: Message,
        timeout: float | None = None,
        headers: Headers = (),
    ) -> Stream:
        """Begin a stream of answers.

        :param timeout: seconds until its end; ``None`` = none.
        :raises Unavailable: this was closed, or the resolver gave no address.
        :raises RuntimeError: as ``run``.
        """
        call = getattr(self._connected(), method)(
            request, timeout=timeout, metadata=self._headers + (headers or current_context())
        )
        return Stream(self, call)

    def failure(self, error: grpc.RpcError) -> BridgeError:
        """What went wrong with a call."""
        return self._closed_error() if self.closed else error_of(error, self.address)

    def lost(self) -> None:
        """Have the next call connect to where the resolver says by then."""
        if callable(self.options.target):
            self._stub = None

    async def _ask(self, ask: Ask, limit: float, deadline: float, headers: Headers) -> Any:  # noqa: ANN401 - stubs have no types
        loop = asyncio.get_running_loop()
        attempt = 0
        lost: Unavailable | None = None
        while True:
            left = deadline - loop.time()
            try:
                if left <= 0:
                    raise late(ask.method, ask.request, self.address, limit, lost, attempt)
                return await getattr(self._connected(), ask.method)(
                    ask.request,
                    timeout=None if math.isinf(left) else left,
                    metadata=self._headers + headers,
                )
            except grpc.aio.AioRpcError as failed:
                if is_late(failed):
                    raise late(
                        ask.method, ask.request, self.address, limit, lost, attempt + 1
                    ) from None
                error: BridgeError = self.failure(failed)
            except grpc.aio.UsageError:  # the channel was closed before the call began
                error = self._closed_error()
                if not self.closed:
                    continue
            except Unavailable as refused:
                error = refused
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if not self.closed or (task and task.cancelling()):
                    raise
                error = self._closed_error()  # by the end of the channel, not of whoever waits
            if not isinstance(error, Unavailable) or self.closed:
                raise error
            lost = error
            self.lost()
            left = deadline - loop.time()
            attempt += 1
            if not (ask.again and self.options.retries) or left < FIRST_WAIT:
                raise gone(error, attempt)
            await asyncio.sleep(min(backoff(attempt - 1), left / 2))

    def _connected(self) -> Any:  # noqa: ANN401 - stubs have no types
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            if self._loop is not None:
                state = "was closed" if self._loop.is_closed() else "is another one"
                raise RuntimeError(
                    f"the event loop that this client was first used on {state}: make an "
                    "AsyncClient for each event loop, or use Client, which needs none"
                )
            self._loop = loop
        return self._connect() if self._stub is None else self._stub

    def _connect(self) -> Any:  # noqa: ANN401 - as above
        if self.closed:
            raise self._closed_error()
        try:
            address = self.options.resolve()
        except (OSError, ValueError) as error:
            raise Unavailable(f"it is not known where the bridge is: {error}") from error
        if self._channel is None or address != self.address:
            # What still runs on the one before ends by itself, as its bridge is gone.
            self._channel, self.address = self._open_channel(address), address
        self._stub = stubs.BridgeServiceStub(self._channel)
        return self._stub

    def _open_channel(self, address: str) -> grpc.aio.Channel:
        options = self.options
        channel_options = options.channel_options(address)
        interceptors: Sequence[Any] = aio_interceptors()
        if options.tls is None:
            return grpc.aio.insecure_channel(
                address, options=channel_options, interceptors=interceptors
            )
        return grpc.aio.secure_channel(
            address,
            options.tls.credentials(),
            options=channel_options,
            interceptors=interceptors,
        )

    def _closed_error(self) -> Unavailable:
        return Unavailable("this client was closed")


class Stream:
    """The answers of one call."""

    def __init__(self, connection: AsyncConnection, call: Any) -> None:  # noqa: ANN401 - stubs have no types
        self._connection = connection
        self._call = call

    async def read(self) -> Any:  # noqa: ANN401 - as above
        """The next one; ``None`` = there is no more.

        Cancelling this cancels the call: gRPC does so.

        :raises BridgeError: the call ended with it.
        """
        try:
            answer = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise self._connection.failure(error) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._call.cancelled() and not (task and task.cancelling()):
                # By the end of the channel, not of whoever waits.
                raise self._connection._closed_error() from None  # noqa: SLF001 - its own stream
            raise
        return None if answer is grpc.aio.EOF else answer

    def cancel(self) -> None:
        self._call.cancel()
