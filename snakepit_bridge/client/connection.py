"""The blocking connection to a bridge: one channel, used from any thread.

Lock: ``Connection._lock``, held while the channel is exchanged, for a few operations.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from snakepit_bridge import bridge_service_pb2_grpc as stubs
from snakepit_bridge.client.operations import Ask, Operation
from snakepit_bridge.client.options import FIRST_WAIT, Options, backoff
from snakepit_bridge.client.statuses import error_of
from snakepit_bridge.client.telemetry import current_context, traced
from snakepit_bridge.errors import BridgeError, DeadlineExceeded, Unavailable

__all__ = ["Connection", "Headers", "gone", "is_late", "late"]

T = TypeVar("T")

Headers = tuple[tuple[str, str], ...]


class Connection:
    """Calls of one bridge, each until its deadline.

    *Loss*: a call that fails because the bridge is not there is made again, if that is as good as
    making it once. *Order*: none between calls of several threads.
    """

    def __init__(self, options: Options) -> None:
        """Nothing is connected before the first call."""
        self.options = options
        self._headers = options.headers
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._stub: Any = None
        self.address = ""
        """HOST:PORT, once it was asked for."""
        self._closed = threading.Event()

    def close(self) -> None:
        """End the connection and what still runs on it. Idempotent."""
        self._closed.set()
        with self._lock:
            channel, self._channel, self._stub = self._channel, None, None
        if channel is not None:
            channel.close()

    def run(self, operation: Operation[T], timeout: float | None, headers: Headers = ()) -> T:
        """Do an operation.

        :param timeout: seconds for all of it; ``None`` = those of the options.
        :param headers: that go with each of its calls.
        :raises BridgeError: the bridge refused it, or is not there (``Unavailable``), or did not
            answer in time (``DeadlineExceeded``).
        """
        limit = self.options.timeout if timeout is None else timeout
        deadline = time.monotonic() + limit
        try:
            ask = next(operation)
            while True:
                try:
                    answer = self._ask(ask, limit, deadline, headers)
                except BridgeError as error:
                    ask = operation.throw(error)
                else:
                    ask = operation.send(answer)
        except StopIteration as done:
            result: T = done.value
            return result

    def open(
        self, method: str, request: Message, timeout: float | None = None, headers: Headers = ()
    ) -> Iterator[Any]:
        """Begin a stream of answers; errors come out of it as those of gRPC.

        :param timeout: seconds until its end; ``None`` = none.
        :raises Unavailable: this was closed, or the resolver gave no address.
        """
        stream: Iterator[Any] = getattr(self._connected(), method)(
            request, timeout=timeout, metadata=self._headers + (headers or current_context())
        )
        return stream

    def failure(self, error: grpc.RpcError) -> BridgeError:
        """What went wrong with a stream."""
        return self._closed_error() if self._closed.is_set() else error_of(error, self.address)

    def lost(self) -> None:
        """Have the next call connect to where the resolver says by then."""
        if callable(self.options.target):
            with self._lock:
                self._stub = None

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    def _ask(self, ask: Ask, limit: float, deadline: float, headers: Headers) -> Any:  # noqa: ANN401 - stubs have no types
        attempt = 0
        lost: Unavailable | None = None
        while True:
            left = deadline - time.monotonic()
            try:
                if left <= 0:
                    raise late(ask.method, ask.request, self.address, limit, lost, attempt)
                stub = self._connected()
                return getattr(stub, ask.method)(
                    ask.request,
                    timeout=left if left < threading.TIMEOUT_MAX else None,
                    metadata=self._headers + headers,
                )
            except grpc.RpcError as failed:
                if is_late(failed):
                    raise late(
                        ask.method, ask.request, self.address, limit, lost, attempt + 1
                    ) from None
                error: BridgeError = self.failure(failed)
            except Unavailable as refused:
                error = refused
            except ValueError:
                # Its channel was closed before the call began, by ``close`` or another thread
                # that found the bridge elsewhere.
                if stub is self._stub:
                    raise
                continue
            if not isinstance(error, Unavailable) or self._closed.is_set():
                raise error
            lost = error
            self.lost()
            left = deadline - time.monotonic()
            attempt += 1
            if not (ask.again and self.options.retries) or left < FIRST_WAIT:
                raise gone(error, attempt)
            # Each try has time to be answered, so that it is known what became of it.
            self._closed.wait(min(backoff(attempt - 1), left / 2))

    def _connected(self) -> Any:  # noqa: ANN401 - stubs have no types
        stub = self._stub
        return self._connect() if stub is None else stub

    def _connect(self) -> Any:  # noqa: ANN401 - as above
        options = self.options
        try:
            address = options.resolve()
        except (OSError, ValueError) as error:
            raise Unavailable(f"it is not known where the bridge is: {error}") from error
        with self._lock:
            if self._closed.is_set():
                raise self._closed_error()
            if self._channel is None or address != self.address:
                if self._channel is not None:
                    # Calls that still run on it end by themselves, as their bridge is gone.
                    self._channel.close()
                self._channel, self.address = self._open_channel(address), address
            self._stub = stubs.BridgeServiceStub(self._channel)
            return self._stub

    def _open_channel(self, address: str) -> grpc.Channel:
        options = self.options
        make: Callable[..., grpc.Channel] = grpc.insecure_channel
        arguments: tuple[Any, ...] = (address,)
        if options.tls is not None:
            make, arguments = grpc.secure_channel, (address, options.tls.credentials())
        return traced(make(*arguments, options=options.channel_options(address)))

    def _closed_error(self) -> Unavailable:
        return Unavailable("this client was closed")


def is_late(error: grpc.RpcError) -> bool:
    """Whether a deadline has passed here, and not that of a tool, of which the bridge tells."""
    trailers: Any = error.trailing_metadata() or ()
    told = any(key == "grpc-status-details-bin" for key, _ in trailers)
    return error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and not told


def late(  # noqa: PLR0913, PLR0917 - of the call, and of its tries
    method: str,
    request: Message,
    address: str,
    limit: float,
    lost: Unavailable | None = None,
    attempts: int = 0,
) -> BridgeError:
    """Tell that a call was not answered in time, and what to do about it.

    :param lost: why the try before failed: then it is rather that there is no bridge.
    """
    if lost is not None:
        return gone(lost, attempts)
    request_id = getattr(request, "request_id", "")
    advice = (
        f": it may have been done or not; repeat it with request_id={request_id!r}, which does it "
        "once"
        if request_id
        else ""
    )
    return DeadlineExceeded(
        f"{method} was not answered by {address or 'the bridge'} within {limit:g} s{advice}",
        request_id=request_id,
    )


def gone(error: Unavailable, attempts: int) -> Unavailable:
    """Tell how often a bridge was looked for."""
    if attempts > 1:
        error.message = f"{error.message}; tried {attempts} times"
        error.args = (error.message,)
    return error
