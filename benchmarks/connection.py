"""One client connection that keeps calls in flight.

Everything that can wait until the clock has stopped waits: replies and trailers are kept
as the bytes they are and are read after the run. What stays is framing, and of that the
loop in ``step`` does as little as the protocol allows; it is written for few bytecodes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter_ns

from benchmarks import http2
from benchmarks.channel import Channel
from benchmarks.errors import BenchmarkError
from benchmarks.http2 import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PADDED,
    PRIORITY,
    WINDOW_UPDATE,
)

__all__ = ["Book", "Connection"]

_FORM = END_HEADERS | PADDED | PRIORITY
_STREAM_ID = [struct.pack(">I", stream) for stream in range(1, 4096, 2)]
_pack_stream_id = struct.Struct(">I").pack


@dataclass(slots=True)
class Book:
    """The calls of one run, shared by its connections: what to send, what came back.

    Lists are indexed by the number of the call. ``following`` is the next one to be sent
    and ``last`` the one after the last of this phase.
    """

    pieces: list[tuple[bytes, ...]]
    sizes: list[int]
    replies: list[bytes] = field(init=False)
    trailers: list[bytes] = field(init=False)
    sent_at: list[int] = field(init=False)
    done_at: list[int] = field(init=False)
    openings: set[bytes] = field(default_factory=set)
    following: int = 0
    last: int = 0

    def __post_init__(self) -> None:
        """Make room for every reply."""
        count = len(self.pieces)
        self.replies = [b""] * count
        self.trailers = [b""] * count
        self.sent_at = [0] * count
        self.done_at = [0] * count


class Connection(Channel):
    """A connection and its closed loop: each reply is answered with the next call."""

    def __init__(self, host: str, port: int, book: Book, silence: float) -> None:
        """Connect, and exchange settings."""
        self._book = book
        self._calls: list[int] = []  # the n-th stream's (id 2n + 1) call
        self._window = http2.INITIAL_WINDOW
        self._stream_window = http2.INITIAL_WINDOW
        self._held = 0  # calls due that the server's window does not admit
        super().__init__(host, port, silence)

    def start(self, count: int) -> None:
        """Put ``count`` further calls in flight, fewer if the book has no more."""
        out: list[bytes] = []
        self._emit(count, out)
        self._write(b"".join(out))

    def step(self) -> int:
        """Wait for bytes, take in what they complete, send as many new calls.

        Return how many calls were completed.
        """
        buffer = self._read()
        now = perf_counter_ns()
        book, calls = self._book, self._calls
        replies, unpack = book.replies, http2.FRAME_HEADER.unpack_from
        position, end, done = 0, len(buffer), 0
        out: list[bytes] = []
        while end - position >= 9:
            high, low, kind, flags, stream = unpack(buffer, position)
            start = position + 9
            position = start + (high << 8) + low
            if position > end:
                position = start - 9
                break
            if kind == DATA and not flags & PADDED:
                self._consumed += position - start
                replies[calls[stream >> 1]] += buffer[start:position]
            elif kind == HEADERS and flags & _FORM == END_HEADERS:
                if not flags & END_STREAM:
                    book.openings.add(buffer[start:position])
                    continue
                book.trailers[calls[stream >> 1]] = buffer[start:position]
            elif kind == WINDOW_UPDATE:
                # One comes with nearly every reply, as the server has read its request.
                if not stream:
                    self._window += int.from_bytes(buffer[start:position])
                continue
            else:
                self._other(kind, flags, stream, buffer[start:position], out)
                continue
            if flags & END_STREAM:
                book.done_at[calls[stream >> 1]] = now
                done += 1
        self._left = buffer[position:]
        if self._consumed > http2.RECEIVE_WINDOW // 2:
            out.append(http2.window_update(0, self._consumed))
            self._consumed = 0
        if done or self._held:
            self._emit(done + self._held, out)
        if out:
            self._write(out[0] if len(out) == 1 else b"".join(out))
        return done

    def _emit(self, count: int, out: list[bytes]) -> None:
        """Append the bytes of the next ``count`` calls, as far as the window admits."""
        book, calls = self._book, self._calls
        sizes, now = book.sizes, perf_counter_ns()
        following = book.following
        until = min(following + count, book.last)
        while following < until:
            size = sizes[following]
            if size > self._window:
                break
            self._window -= size
            stream = len(calls)
            calls.append(following)
            name = _STREAM_ID[stream] if stream < 2048 else _pack_stream_id(2 * stream + 1)
            out.append(name.join(book.pieces[following]))
            book.sent_at[following] = now
            following += 1
        book.following = following
        self._held = until - following

    def _settle(self, settings: Mapping[int, int]) -> None:
        self._stream_window = settings.get(4, self._stream_window)
        if max(self._book.sizes, default=0) > self._stream_window:
            raise BenchmarkError(
                f"a request is larger than a stream's window ({self._stream_window} bytes)"
            )

    def _is_done(self, stream: int) -> bool:
        return bool(self._book.done_at[self._calls[stream >> 1]])
