"""A watch as an iterator, for threads."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import grpc

from snakepit_bridge.client.connection import Connection, Headers, gone, late
from snakepit_bridge.client.following import Following, Step
from snakepit_bridge.client.options import FIRST_WAIT
from snakepit_bridge.client.results import Bookmark, WatchStatus
from snakepit_bridge.errors import BridgeError, Unavailable
from snakepit_bridge.views import Change

__all__ = ["OnStatus", "Watch"]

OnStatus = Callable[[WatchStatus], object]


class Watch:
    """The changes of a session; made by ``Session.watch``. For one thread, but for ``close``.

    *Order* is that of the log. *Loss*: none, and none twice, until it ends. *Bound*: what gRPC
    holds for a reader that is slow.
    """

    def __init__(
        self,
        connection: Connection,
        following: Following,
        on_status: OnStatus | None = None,
        headers: Headers = (),
        on_progress: Callable[[], object] | None = None,
    ) -> None:
        """:param on_progress: called when all up to ``bookmark`` was given, and dealt with."""
        self._connection = connection
        self._following = following
        self._on_status = on_status
        self._headers = headers
        self._on_progress = on_progress
        self._stream: Any = None
        self._ready: deque[Step] = deque()
        self._kept = following.bookmark
        self._begun = False
        self._ended = threading.Event()
        self._late = False
        """Whether it did not stand in time,"""
        self._lost: Unavailable | None = None
        """and why the try before failed."""

    @property
    def bookmark(self) -> Bookmark:
        """Everything up to here was given; what to keep, to go on there later.

        :raises RuntimeError: the watch has not begun, or the initial values were not all given.
        """
        if self._kept is None:
            raise RuntimeError("this watch has no bookmark before its first item: begin with it")
        return self._kept

    def __enter__(self) -> Self:
        """Begin: what is committed from now on is not missed.

        :raises BridgeError: the bridge refuses it, or is not there.
        """
        if self._begun:
            raise RuntimeError("this watch has begun already: each needs a call of watch()")
        self._begun = True
        try:
            self._begin()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the watch, from any thread: whoever iterates gets no more. Idempotent."""
        self._ended.set()
        stream = self._stream
        if stream is not None:
            stream.cancel()

    def __iter__(self) -> Self:
        if not self._begun:
            self.__enter__()
        return self

    def __next__(self) -> Change:
        while not self._ended.is_set():
            if not self._ready:
                self._note_progress()
                self._read()
                continue
            step = self._ready.popleft()
            if not self._ready:
                self._kept = self._following.bookmark or self._kept
            if isinstance(step, Change):
                return step
            self._tell(step)
        raise StopIteration

    def _begin(self) -> None:
        """Read until the watch stands, for no longer than a call may take."""
        limit = self._connection.options.timeout
        end = time.monotonic() + limit
        tries = 0
        alarm = threading.Timer(min(limit, threading.TIMEOUT_MAX), self._give_up)
        alarm.daemon = True
        alarm.start()
        try:
            while not self._following.standing and not self._ended.is_set():
                tries += 1
                self._read(first=(end, tries))
        finally:
            alarm.cancel()
        if not any(isinstance(step, Change) for step in self._ready):
            self._note_progress()

    def _give_up(self) -> None:
        """On a thread of its own, as a stream has no deadline that ends with its first message."""
        self._late = True
        stream = self._stream
        if stream is not None:
            stream.cancel()

    def _note_progress(self) -> None:
        self._kept = self._following.bookmark or self._kept
        if self._on_progress is not None and self._kept is not None:
            self._on_progress()

    def _read(self, first: tuple[float, int] | None = None) -> None:
        """Wait for one message, or do what follows from an error.

        :param first: when to give up, and the number of this try; of a watch that has stood: never.
        """
        try:
            if self._stream is None:
                request = self._following.request()
                self._stream = self._connection.open(
                    "WatchVariables", request, headers=self._headers
                )
                if self._ended.is_set() or (first and self._late):
                    self._stream.cancel()
            update = next(self._stream, None)
        except (grpc.RpcError, Unavailable) as raised:
            self._stream = None
            if self._ended.is_set():
                return
            error: BridgeError = (
                self._connection.failure(raised) if isinstance(raised, grpc.RpcError) else raised
            )
            self._fail(error, first)
            return
        if update is None:
            self._ended.set()  # with its session
            return
        self._ready += self._following.take(update)

    def _fail(self, error: BridgeError, first: tuple[float, int] | None) -> None:
        connection = self._connection
        try:
            if connection.closed:
                raise error
            if first is not None and self._late:
                request, limit = self._following.request(), connection.options.timeout
                raise late(
                    "WatchVariables", request, connection.address, limit, self._lost, first[1]
                )
            status = self._following.fail(error)
            if first is not None and status.kind == "interrupted":
                left = first[0] - time.monotonic()
                if not connection.options.retries or left < FIRST_WAIT:
                    raise gone(error, first[1]) if isinstance(error, Unavailable) else error
                self._lost = error if isinstance(error, Unavailable) else None
                status = replace(status, wait=min(status.wait, left / 2))
        except BridgeError:
            self._ended.set()
            raise
        connection.lost()
        self._tell(status)
        self._ended.wait(status.wait)

    def _tell(self, status: WatchStatus) -> None:
        if self._on_status is not None:
            self._on_status(status)
