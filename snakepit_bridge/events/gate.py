"""The way from an event loop to the committer and back.

Calls are handed over in groups, because waking a thread and being woken costs more than
deciding: when as many wait as 0.7 times the recent peak of calls under way, or after
2 ms. A lone caller is a peak of one and goes at once. Measured with 32 callers: groups of
11 to 13 instead of 8 if the peak is forgotten at once, and 76 % of a bare server's throughput
instead of 71 %, in runs that scatter by five points.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from snakepit_bridge.errors import BridgeError, ResourceExhausted, Unavailable
from snakepit_bridge.events.committer import Committer
from snakepit_bridge.events.tasks import Task

__all__ = ["Gate"]

SHARE_OF_PEAK = 0.7
LONGEST_WAIT = 0.002
"""Seconds a call waits for company."""
DECAY = 0.95
"""What is left of the peak after waiting in vain: from 32 callers to one in 0.15 s."""

MAX_UNDER_WAY = 10_000
"""Calls that may wait for the committer: about two seconds of its work."""


class Gate:
    """Belongs to one event loop and is used on it only."""

    def __init__(
        self, committer: Committer, loop: asyncio.AbstractEventLoop, max_bytes: int
    ) -> None:
        """:param max_bytes: of requests that may wait for the committer together."""
        self._max_bytes = max_bytes
        self._bytes = 0
        self._waiting_bytes = 0
        self._committer = committer
        self._loop = loop
        self._tasks: list[Task] = []
        self._futures: list[asyncio.Future[Any]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._under_way = 0
        self._peak = 1.0

    @property
    def busy(self) -> bool:
        """Whether any call is under way."""
        return self._under_way > 0

    def submit(self, task: Task, size: int = 0) -> asyncio.Future[Any]:
        """Queue a task; the future gets its result or its ``BridgeError``.

        :param size: bytes of the request.
        :raises ResourceExhausted: too many are under way.
        """
        if self._under_way >= MAX_UNDER_WAY:
            raise ResourceExhausted(
                f"{MAX_UNDER_WAY} calls wait for the log already: slow down and retry"
            )
        self.claim(size)
        self._waiting_bytes += size
        future: asyncio.Future[Any] = self._loop.create_future()
        self._tasks.append(task)
        self._futures.append(future)
        self._under_way += 1
        self._peak = max(self._peak, self._under_way)
        if len(self._tasks) >= SHARE_OF_PEAK * self._peak:
            self._hand_over()
        elif self._timer is None:
            self._timer = self._loop.call_later(LONGEST_WAIT, self._waited)
        return future

    def flush(self) -> None:
        """Hand over what waits for company."""
        if self._tasks:
            self._hand_over()

    def claim(self, size: int) -> None:
        """Count the bytes of a request that is on its way; ``submit`` does so itself.

        :raises ResourceExhausted: too many are under way.
        """
        if self._bytes + size > self._max_bytes and self._bytes:
            raise ResourceExhausted(
                f"{self._bytes} bytes of requests wait for the log already, {self._max_bytes} may: "
                "slow down and retry, or start the bridge with a larger --max-message-size"
            )
        self._bytes += size

    def release(self, size: int) -> None:
        """Take back what was claimed."""
        self._bytes -= size

    def _waited(self) -> None:
        self._timer = None
        # Less company came than expected: expect a little less.
        self._peak = max(1.0, self._under_way, self._peak * DECAY)
        self._hand_over()

    def _hand_over(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        tasks, futures = self._tasks, self._futures
        size = self._waiting_bytes
        self._tasks, self._futures, self._waiting_bytes = [], [], 0

        def deliver(results: Sequence[Any]) -> None:
            self._loop.call_soon_threadsafe(self._deliver, futures, results, size)

        try:
            self._committer.submit(tasks, deliver)
        except Unavailable as error:
            self._deliver(futures, [error] * len(futures), size)

    def _deliver(
        self, futures: list[asyncio.Future[Any]], results: Sequence[Any], size: int
    ) -> None:
        self._under_way -= len(futures)
        self._bytes -= size
        for future, result in zip(futures, results, strict=True):
            if future.cancelled():
                continue
            if isinstance(result, BridgeError):
                future.set_exception(result)
            else:
                future.set_result(result)
