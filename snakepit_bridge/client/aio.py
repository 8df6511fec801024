"""The client for an event loop: the names of ``sync``, awaited."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from builtins import list as list_
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from snakepit_bridge.client.aio_connection import AsyncConnection
from snakepit_bridge.client.aio_watches import AsyncWatch
from snakepit_bridge.client.batches import Batch
from snakepit_bridge.client.following import Following
from snakepit_bridge.client.operations import (
    Change,
    Operation,
    SessionOperations,
    list_tools,
    ping,
)
from snakepit_bridge.client.options import TLS, Options, Target
from snakepit_bridge.client.results import (
    Bookmark,
    SessionInfo,
    StreamItem,
    ToolDescription,
    Written,
)
from snakepit_bridge.client.subscriptions import OnError, note
from snakepit_bridge.client.watches import OnStatus
from snakepit_bridge.errors import BridgeError, quote
from snakepit_bridge.views import BatchResult, Reading, Variable, VariableVersion
from snakepit_bridge.views import Change as VariableChange

__all__ = ["AsyncBatch", "AsyncClient", "AsyncSession", "AsyncSubscription"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


class AsyncClient:
    """A bridge, for one event loop: that of its first call. See ``Client``.

    ::

        async with AsyncClient("localhost:50050") as bridge:
            session = bridge.session("tour")
            await session.set("temperature", 0.9)
    """

    def __init__(
        self,
        target: Target = "localhost:50050",
        *,
        timeout: float = 10.0,
        token: str = "",
        tls: TLS | None = None,
        retries: bool = True,
        metadata: Iterable[tuple[str, str]] = (),
        source: str = "python",
    ) -> None:
        """Name the bridge; all as of ``Client``. A resolver is called on the event loop."""
        self._connection = AsyncConnection(
            Options(target, timeout, token, tls, retries, tuple(metadata), source)
        )

    async def close(self) -> None:
        """End the connection, and the watches on it. Idempotent."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({self._connection.options.target!r})"

    def session(self, session_id: str, *, log_epoch: str = "") -> AsyncSession:
        """Name a session; see ``Client.session``."""
        return AsyncSession(self._connection, session_id, log_epoch)

    async def ping(self, *, timeout: float | None = None) -> float:  # noqa: ASYNC109 - as gRPC's
        """Seconds that the bridge took to answer."""
        begun = time.perf_counter()
        await self._connection.run(ping(), timeout)
        return time.perf_counter() - begun

    async def tools(self, *, timeout: float | None = None) -> dict[str, ToolDescription]:  # noqa: ASYNC109
        """The tools that run at the bridge, by name."""
        return await self._connection.run(list_tools(), timeout)


class AsyncSession:
    """One session of a bridge; each method as that of ``Session``."""

    def __init__(self, connection: AsyncConnection, session_id: str, log_epoch: str = "") -> None:
        self.session_id = session_id
        self._connection = connection
        source = connection.options.source
        self._do = SessionOperations(session_id, log_epoch=log_epoch, source=source)

    def __repr__(self) -> str:
        return f"AsyncSession({self.session_id!r})"

    def __getitem__(self, name: str) -> Awaitable[Any]:
        """``await session["temperature"]``: its value.

        :raises VariableNotFound: there is no such variable.
        """
        return self._value(name)

    __iter__ = None
    """Nothing to wait for. Python would otherwise ask for one number after the other, without end:
    for ``in``, too."""

    async def _value(self, name: str) -> Any:  # noqa: ANN401 - any variable's value
        return (await self.get(name)).value

    def start(
        self,
        metadata: Mapping[str, str] | None = None,
        *,
        request_id: str = "",
        timeout: float | None = None,
    ) -> Awaitable[str]:
        """Begin the session unless it has begun; gives the epoch of its log."""
        return self._run(self._do.start(Change(metadata, request_id)), timeout)

    def end(
        self, *, force: bool = False, request_id: str = "", timeout: float | None = None
    ) -> Awaitable[bool]:
        """End the session; gives whether there was one."""
        return self._run(self._do.end(Change(None, request_id), force=force), timeout)

    def info(self, *, timeout: float | None = None) -> Awaitable[SessionInfo]:
        """:raises SessionNotFound: there is no such session."""
        return self._run(self._do.info(), timeout)

    def register(
        self,
        name: str,
        type: str,  # noqa: A002 - the wire's name
        value: object,
        constraints: Mapping[str, object] | None = None,
        *,
        metadata: Mapping[str, str] | None = None,
        request_id: str = "",
        timeout: float | None = None,
    ) -> Awaitable[Variable]:
        """Create a variable; see ``Session.register``."""
        change = Change(metadata, request_id)
        return self._run(self._do.register(name, type, value, constraints, change), timeout)

    def get(self, name: str, *, timeout: float | None = None) -> Awaitable[Variable]:
        """A variable, by name or id.

        :raises VariableNotFound: there is no such variable.
        """
        return self._run(self._do.get(name), timeout)

    def get_many(self, names: Iterable[str], *, timeout: float | None = None) -> Awaitable[Reading]:
        """Several variables as they are at one moment."""
        return self._run(self._do.get_many(names), timeout)

    def list(
        self, pattern: str = "", *, timeout: float | None = None
    ) -> Awaitable[list_[Variable]]:
        """Variables whose names match, in the order of registration."""
        return self._run(self._do.list_variables(pattern), timeout)

    def set(
        self,
        name: str,
        value: object,
        *,
        expected_version: int = 0,
        metadata: Mapping[str, str] | None = None,
        request_id: str = "",
        timeout: float | None = None,
    ) -> Awaitable[Written]:
        """Give a variable a new value; see ``Session.set``."""
        change = Change(metadata, request_id)
        return self._run(self._do.set(name, value, expected_version, change), timeout)

    def set_many(
        self,
        updates: Mapping[str, object],
        *,
        atomic: bool = True,
        expected_versions: Mapping[str, int] | None = None,
        metadata: Mapping[str, str] | None = None,
        request_id: str = "",
        timeout: float | None = None,
    ) -> Awaitable[BatchResult]:
        """Change several variables; see ``Session.set_many``."""
        change = Change(metadata, request_id)
        operation = self._do.set_many(updates, expected_versions, change, atomic=atomic)
        return self._run(operation, timeout)

    def batch(
        self, *, metadata: Mapping[str, str] | None = None, timeout: float | None = None
    ) -> AsyncBatch:
        """Collect changes for one transaction: ``async with session.batch() as batch``."""
        return AsyncBatch(self, metadata, timeout)

    def delete(
        self,
        name: str,
        *,
        metadata: Mapping[str, str] | None = None,
        request_id: str = "",
        timeout: float | None = None,
    ) -> Awaitable[Written]:
        """Delete a variable; see ``Session.delete``."""
        return self._run(self._do.delete(name, Change(metadata, request_id)), timeout)

    def history(
        self, name: str, limit: int = 0, *, timeout: float | None = None
    ) -> Awaitable[list_[VariableVersion]]:
        """The versions of a variable, newest first; see ``Session.history``."""
        return self._run(self._do.history(name, limit), timeout)

    def rollback(
        self,
        name: str,
        version: int,
        *,
        metadata: Mapping[str, str] | None = None,
        request_id: str = "",
        timeout: float | None = None,
    ) -> Awaitable[Variable]:
        """Set a variable to the value it had at ``version``; see ``Session.rollback``."""
        return self._run(self._do.rollback(name, version, Change(metadata, request_id)), timeout)

    def watch(
        self,
        *names: str,
        bookmark: Bookmark | None = None,
        initial: bool = False,
        kinds: Iterable[str] = ("value_change",),
        max_value_bytes: int = 0,
        heartbeat: int = 0,
        on_status: OnStatus | None = None,
        begin_anew: bool = False,
    ) -> AsyncWatch:
        """Iterate over changes; all as of ``Session.watch``.

        ::

            async with session.watch("temp*") as changes:
                async for change in changes:
                    print(change.name, change.old, "->", change.new)
        """
        following = Following(
            self.session_id,
            names,
            log_epoch=self._do.log_epoch,
            bookmark=bookmark,
            initial=initial,
            kinds=kinds,
            max_value_bytes=max_value_bytes,
            heartbeat=heartbeat,
            begin_anew=begin_anew,
        )
        return AsyncWatch(self._connection, following, on_status)

    async def subscribe(
        self,
        callback: Callable[[VariableChange], object],
        *names: str,
        on_error: OnError | None = None,
        **options: Any,  # noqa: ANN401 - those of watch
    ) -> AsyncSubscription:
        """Have ``callback(change)`` called for each change, in a task of its own.

        :param callback: a function, or a coroutine function, which is awaited.
        """
        watch = await self.watch(*names, **options).__aenter__()
        return AsyncSubscription(watch, callback, on_error)

    def execute(
        self,
        tool: str,
        arguments: Mapping[str, object] | None = None,
        *,
        metadata: Mapping[str, str] | None = None,
        request_id: str = "",
        timeout: float = math.inf,
    ) -> Awaitable[Any]:
        """Run a tool and give its result; see ``Session.execute``."""
        return self._run(self._do.execute(tool, arguments, Change(metadata, request_id)), timeout)

    async def stream(
        self,
        tool: str,
        arguments: Mapping[str, object] | None = None,
        *,
        metadata: Mapping[str, str] | None = None,
        request_id: str = "",
        timeout: float = math.inf,  # noqa: ASYNC109 - as gRPC's
    ) -> AsyncIterator[StreamItem]:
        """Run a streaming tool and give what it yields; see ``Session.stream``."""
        request = self._do.tool_request(tool, arguments)
        request.request_id = request_id
        self._do.add_metadata(request, metadata)
        limit = None if math.isinf(timeout) else timeout
        stream = self._connection.open("ExecuteStreamingTool", request, limit)
        try:
            while (chunk := await stream.read()) is not None:
                if chunk.data or not chunk.is_final:
                    yield StreamItem.of(chunk)
        finally:
            stream.cancel()

    def _run(self, operation: Operation[T], timeout: float | None) -> Coroutine[Any, Any, T]:
        return self._connection.run(operation, timeout)


class AsyncBatch(Batch):
    """Changes that are collected for one transaction; see ``Session.batch``."""

    def __init__(
        self, session: AsyncSession, metadata: Mapping[str, str] | None, timeout: float | None
    ) -> None:
        super().__init__()
        self._session = session
        self._metadata = metadata
        self._timeout = timeout

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self.updates:
            self.result = await self._session.set_many(
                self.updates,
                expected_versions=self.expected_versions,
                metadata=self._metadata,
                timeout=self._timeout,
            )


class AsyncSubscription:
    """Calls back for each change until it is closed, or its session ends."""

    def __init__(
        self,
        watch: AsyncWatch,
        callback: Callable[[VariableChange], object],
        on_error: OnError | None,
    ) -> None:
        """:param watch: has begun."""
        self.error: BridgeError | None = None
        """What ended it, if anything did."""
        self._watch = watch
        self._callback = callback
        self._on_error = on_error
        self._task = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """Call back no more; waits for a call that is running, unless that is what calls this."""
        await self._watch.close()
        if self._task is not asyncio.current_task():
            await asyncio.wait([self._task])

    async def wait(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - as Subscription's
        """Wait until it has ended; gives whether it has.

        :param timeout: seconds; ``None`` = any.
        """
        return bool((await asyncio.wait([self._task], timeout=timeout))[0])

    async def _follow(self) -> None:
        try:
            async for change in self._watch:
                await self._guard(self._callback, change, f"for variable {quote(change.name)}")
        except BridgeError as error:
            self.error = error
            logger.error("a subscription ended: %s", error.message)  # noqa: TRY400 - told whole
            if self._on_error is not None:
                await self._guard(self._on_error, error, "when told of its end")

    @staticmethod
    async def _guard(callback: Callable[[Any], object], told: object, where: str) -> None:
        try:
            called = callback(told)
            if isinstance(called, Awaitable):
                await called
        except Exception as error:  # noqa: BLE001 - the callback is not ours, and others follow
            note(error, where)
