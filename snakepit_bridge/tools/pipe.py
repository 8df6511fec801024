"""Chunks on their way from a tool's thread to the event loop that sends them.

Bounded both ways: a tool that is ahead of its client waits in ``put``; whoever sends takes all
that has come, so that waking the loop costs once for many chunks.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

from snakepit_bridge.tools.chunks import Chunk
from snakepit_bridge.tools.context import ToolCancelled

__all__ = ["Pipe"]

MAX_CHUNKS = 64
"""That wait to be sent: waking the event loop is shared by many."""

MAX_BYTES = 4 * 1024 * 1024
"""Of them together, beyond the first."""


class Pipe:
    """One stream. ``put`` is for the tool's thread, all else for the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._room = threading.Condition()
        self._chunks: list[Chunk] = []
        self._bytes = 0
        self._ended = False
        self._closed = True
        self._come = asyncio.Event()

    def open(self) -> None:
        """Begin, or begin again, to take chunks."""
        self._ended = self._closed = False
        self._come.clear()

    @property
    def is_open(self) -> bool:
        return not self._closed

    def put(self, chunk: Chunk) -> None:
        """Hand over a chunk; waits until there is room.

        :raises ToolCancelled: nobody takes them any more.
        """
        with self._room:
            while self._full() and not self._closed:
                self._room.wait()
            if self._closed:
                raise ToolCancelled("nobody reads this stream any more")
            self._chunks.append(chunk)
            self._bytes += len(chunk.data)
            first = len(self._chunks) == 1
        if first:
            self._loop.call_soon_threadsafe(self._come.set)

    def _full(self) -> bool:
        return len(self._chunks) >= MAX_CHUNKS or self._bytes >= MAX_BYTES

    def end(self) -> None:
        """Say that nothing more comes; on the event loop."""
        self._ended = True
        self._come.set()

    async def take(self) -> Sequence[Chunk]:
        """All chunks that have come; empty at the end."""
        while True:
            with self._room:
                chunks, self._chunks, self._bytes = self._chunks, [], 0
                self._room.notify_all()
            if chunks or self._ended:
                return chunks
            self._come.clear()
            with self._room:
                if self._chunks:
                    continue
            await self._come.wait()

    def close(self) -> None:
        """Take no more: whoever puts is told to end."""
        with self._room:
            self._closed = True
            self._room.notify_all()
