"""A TCP proxy before a bridge, which does to connections what networks do.

It knows so much of HTTP/2 as to find the frames that a bridge sends: so a connection can be cut
between the work and its answer.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Coroutine, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

__all__ = ["TcpProxy"]

T = TypeVar("T")

PATIENCE = 30.0
"""Seconds after which what the proxy was told has been done, or its test fails."""

FRAME_HEADER = 9
HEADERS, END_STREAM = 1, 1
"""A type of frames, and a flag of theirs. Those of an answer to a unary call are sent together with
it, and others end it."""


class TcpProxy:
    """Listens on a port of this machine, on a thread of its own, and passes on to another.

    Whatever a method tells it is in force when the method returns.
    """

    def __init__(self, upstream: int, *, tls: ssl.SSLContext | None = None) -> None:
        """Begin to listen.

        :param upstream: port to pass on to; may be changed, for connections to come.
        :param tls: spoken with clients; the way on is plain.
        """
        self.upstream = upstream
        self.port = 0
        self.accepted = 0
        """Connections, over all its life."""
        self.passed_up = 0
        """Bytes from clients."""
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._open = asyncio.Event()
        self._open.set()
        self._delay = 0.0
        self._answers_to_cut = 0
        self._answers_to_pass = 0
        self._bytes_left: int | None = None
        self._do(self._listen())

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def cut(self) -> None:
        """End all connections."""
        self._do(self._cut())

    def cut_before_answer(self, times: int = 1, *, after: int = 0) -> None:
        """End the connection on which the bridge answers next, before the answer is passed on.

        :param times: so many connections, one after the other.
        :param after: so many answers are passed on before.
        """
        self._do(self._set(_answers_to_cut=times, _answers_to_pass=after))

    def cut_after_bytes(self, count: int) -> None:
        """End the connection after so many more bytes from the bridge, wherever that is."""
        self._do(self._set(_bytes_left=count))

    def delay(self, seconds: float) -> None:
        """Keep all that the bridge sends for so long."""
        self._do(self._set(_delay=seconds))

    def hold(self) -> None:
        """Pass on nothing that the bridge sends, until ``release``."""
        self._do(self._set_open(is_open=False))

    def release(self) -> None:
        self._do(self._set_open(is_open=True))

    def refuse(self) -> None:
        """End all connections and listen no more, until ``listen``."""
        self._do(self._stop())

    def listen(self) -> None:
        """Listen again, on the same port."""
        self._do(self._listen())

    def close(self) -> None:
        if self._loop.is_closed():
            return
        self._do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _do(self, action: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(action, self._loop).result(PATIENCE)

    async def _set(self, **values: float) -> None:
        for name, value in values.items():
            setattr(self, name, value)

    async def _set_open(self, *, is_open: bool) -> None:
        if is_open:
            self._open.set()
        else:
            self._open.clear()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", self.port, ssl=self._tls
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._cut()

    async def _cut(self) -> None:
        links = list(self._links)
        for link in links:
            link.cut()
        for link in links:
            await link.over.wait()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.upstream)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(writer, back)
        self._links.add(link)
        link.tasks = [
            asyncio.create_task(self._pass_up(reader, back, link)),
            asyncio.create_task(self._pass_down(there, writer, link)),
        ]
        try:
            await asyncio.wait(link.tasks)
        finally:
            self._links.discard(link)
            link.over.set()

    async def _pass_up(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: _Link
    ) -> None:
        try:
            while data := await reader.read(65_536):
                self.passed_up += len(data)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass  # the other side has ended it
        finally:
            link.end()

    async def _pass_down(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: _Link
    ) -> None:
        came = b""
        try:
            while data := await reader.read(65_536):
                if self._delay:
                    await asyncio.sleep(self._delay)
                await self._open.wait()
                frames, came = _split(came + data)
                for frame in frames:
                    self._pass_frame(frame, writer, link)
                    if link.is_cut:
                        return
                await writer.drain()
        except OSError:
            pass  # the client has ended it
        finally:
            link.end()

    def _pass_frame(self, frame: bytes, writer: asyncio.StreamWriter, link: _Link) -> None:
        if frame[3] == HEADERS and self._answers_to_cut and not frame[4] & END_STREAM:
            if not self._answers_to_pass:
                self._answers_to_cut -= 1
                link.cut()
                return
            self._answers_to_pass -= 1
        if self._bytes_left is not None and len(frame) >= self._bytes_left:
            frame, self._bytes_left = frame[: self._bytes_left], None
            writer.write(frame)
            link.end()
            return
        if self._bytes_left is not None:
            self._bytes_left -= len(frame)
        writer.write(frame)


class _Link:
    """One connection of a client's, and its continuation."""

    def __init__(self, client: asyncio.StreamWriter, bridge: asyncio.StreamWriter) -> None:
        self._ends = client.transport, bridge.transport
        self.is_cut = False
        self.tasks: list[asyncio.Task[None]] = []
        self.over = asyncio.Event()

    def cut(self) -> None:
        """As a reset: what was not yet sent is lost."""
        self.is_cut = True
        for end in self._ends:
            end.abort()
        for task in self.tasks:
            task.cancel()

    def end(self) -> None:
        """As an end: the client gets what was passed on before."""
        self.is_cut = True
        for end in self._ends:
            end.close()


def _split(data: bytes) -> tuple[list[bytes], bytes]:
    """Whole frames, and the beginning of the next."""
    frames = list(_frames(data))
    return frames, data[sum(map(len, frames)) :]


def _frames(data: bytes) -> Iterator[bytes]:
    at = 0
    while len(data) - at >= FRAME_HEADER:
        end = at + FRAME_HEADER + int.from_bytes(data[at : at + 3], "big")
        if end > len(data):
            return
        yield data[at:end]
        at = end
