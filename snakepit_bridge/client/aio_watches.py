"""A watch as an asynchronous iterator."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from dataclasses import replace
from types import TracebackType
from typing import Self

from snakepit_bridge.client.aio_connection import AsyncConnection, Stream
from snakepit_bridge.client.connection import Headers, gone, late
from snakepit_bridge.client.following import Following, Step
from snakepit_bridge.client.options import FIRST_WAIT
from snakepit_bridge.client.results import Bookmark, WatchStatus
from snakepit_bridge.client.watches import OnStatus
from snakepit_bridge.errors import BridgeError, Unavailable
from snakepit_bridge.views import Change

__all__ = ["AsyncWatch"]


class AsyncWatch:
    """The changes of a session; made by ``AsyncSession.watch``. For one task, but for ``close``.

    What ``Watch`` says of order and loss holds here. A turn that is cancelled loses nothing: the
    next one goes on, with a new stream.
    """

    def __init__(
        self,
        connection: AsyncConnection,
        following: Following,
        on_status: OnStatus | None = None,
        headers: Headers = (),
    ) -> None:
        self._connection = connection
        self._following = following
        self._on_status = on_status
        self._headers = headers
        self._stream: Stream | None = None
        self._ready: deque[Step] = deque()
        self._kept = following.bookmark
        self._begun = False
        self._ended = asyncio.Event()
        self._lost: Unavailable | None = None
        """Why the last try to begin failed."""

    @property
    def bookmark(self) -> Bookmark:
        """Everything up to here was given; what to keep, to go on there later.

        :raises RuntimeError: the watch has not begun, or the initial values were not all given.
        """
        if self._kept is None:
            raise RuntimeError("this watch has no bookmark before its first item: begin with it")
        return self._kept

    async def __aenter__(self) -> Self:
        """Begin: what is committed from now on is not missed.

        :raises BridgeError: the bridge refuses it, or is not there.
        """
        if self._begun:
            raise RuntimeError("this watch has begun already: each needs a call of watch()")
        self._begun = True
        try:
            await self._begin()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the watch: whoever iterates gets no more. Idempotent."""
        self._ended.set()
        if self._stream is not None:
            self._stream.cancel()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        if not self._begun:
            await self.__aenter__()
        while not self._ended.is_set():
            if not self._ready:
                self._kept = self._following.bookmark or self._kept
                await self._read()
                continue
            step = self._ready.popleft()
            if not self._ready:
                self._kept = self._following.bookmark or self._kept
            if isinstance(step, Change):
                return step
            self._tell(step)
        raise StopAsyncIteration

    async def _begin(self) -> None:
        """Read until the watch stands, for no longer than a call may take."""
        limit = self._connection.options.timeout
        end = asyncio.get_running_loop().time() + limit
        tries = 0
        try:
            async with asyncio.timeout_at(None if math.isinf(end) else end):
                while not self._following.standing and not self._ended.is_set():
                    tries += 1
                    await self._read(first=(end, tries))
        except TimeoutError:
            request, address = self._following.request(), self._connection.address
            raise late("WatchVariables", request, address, limit, self._lost, tries) from None
        if not any(isinstance(step, Change) for step in self._ready):
            self._kept = self._following.bookmark or self._kept

    async def _read(self, first: tuple[float, int] | None = None) -> None:
        """Wait for one message, or do what follows from an error.

        :param first: when to give up, and the number of this try; of a watch that has stood: never.
        """
        try:
            if self._stream is None:
                request = self._following.request()
                self._stream = self._connection.open(
                    "WatchVariables", request, headers=self._headers
                )
            update = await self._stream.read()
        except BridgeError as error:
            self._stream = None
            if not self._ended.is_set():
                await self._fail(error, first)
            return
        except BaseException:
            self._stream = None  # gRPC ends a call when waiting for it is cancelled
            raise
        if update is None:
            self._ended.set()  # with its session
            return
        self._ready += self._following.take(update)

    async def _fail(self, error: BridgeError, first: tuple[float, int] | None) -> None:
        connection = self._connection
        loop = asyncio.get_running_loop()
        try:
            if connection.closed:
                raise error
            status = self._following.fail(error)
            if first is not None and status.kind == "interrupted":
                left = first[0] - loop.time()
                if not connection.options.retries or left < FIRST_WAIT:
                    raise gone(error, first[1]) if isinstance(error, Unavailable) else error
                self._lost = error if isinstance(error, Unavailable) else None
                status = replace(status, wait=min(status.wait, left / 2))
        except BridgeError:
            self._ended.set()
            raise
        connection.lost()
        self._tell(status)
        try:
            async with asyncio.timeout(status.wait):
                await self._ended.wait()
        except TimeoutError:
            return

    def _tell(self, status: WatchStatus) -> None:
        if self._on_status is not None:
            self._on_status(status)
