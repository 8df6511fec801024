"""An HTTP/2 client that sends what gRPC's own would not: any header, half a request."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from types import TracebackType
from typing import NamedTuple, Self

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
TIMEOUT = 10.0
"""Seconds without a byte from the server after which a test fails."""

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM = ACK = 1
END_HEADERS = 4
INITIAL_WINDOW_SIZE = 4
CANCEL = (8).to_bytes(4, "big")

LARGEST_FRAME = 16_384
FIRST_WINDOW = 65_535
"""Both as HTTP/2 begins (RFC 9113)."""


class Closing(NamedTuple):
    """How the server ended a request."""

    status: int
    """``grpc-status``; -1 when it reset the stream or the connection instead."""
    message: str


class RawClient:
    """One connection, for one request after the other."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)
        self._encoder, self._decoder = hpack.Encoder(), hpack.Decoder()
        self._received = bytearray()
        self._first_window = FIRST_WINDOW
        self._windows = {0: FIRST_WINDOW}
        """Bytes that may be sent, by stream; stream 0 is the connection."""
        self._stream = -1
        self._closing: Closing | None = None
        self.socket.sendall(PREFACE)
        self._send(SETTINGS, 0, 0, b"")

    def begin(self, path: str, headers: Iterable[tuple[str, bytes]] = ()) -> None:
        """Send the headers of a request."""
        self._stream += 2
        self._windows = {0: self._windows[0], self._stream: self._first_window}
        self._closing = None
        known = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": "localhost",
            "content-type": "application/grpc",
            "te": "trailers",
        }
        block = self._encoder.encode([*known.items(), *headers])
        self._send(HEADERS, END_HEADERS, self._stream, block)

    def body(self, content: bytes, *, end: bool = True) -> None:
        """Send bytes of the body, as fast as the server takes them, unless it has had enough."""
        while content and self._closing is None:
            size = min(*self._windows.values(), LARGEST_FRAME, len(content))
            if size <= 0:
                self._receive()
                continue
            self._send(DATA, 0, self._stream, content[:size])
            for stream in (0, self._stream):
                self._windows[stream] -= size
            content = content[size:]
        if end and self._closing is None:
            self._send(DATA, END_STREAM, self._stream, b"")

    def reset(self) -> None:
        """Take the request back."""
        self._send(RST_STREAM, 0, self._stream, CANCEL)

    def closing(self) -> Closing:
        """Wait for the end of the request."""
        while self._closing is None:
            self._receive()
        return self._closing

    def _send(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        head = len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big")
        self.socket.sendall(head + payload)

    def _read(self, size: int) -> bytes:
        while len(self._received) < size:
            more = self.socket.recv(65_536)
            if not more:
                raise EOFError("the server closed the connection")
            self._received += more
        taken = bytes(self._received[:size])
        del self._received[:size]
        return taken

    def _receive(self) -> None:
        """Take one frame."""
        head = self._read(9)
        kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
        payload = self._read(int.from_bytes(head[:3], "big"))
        if kind in (SETTINGS, PING) and not flags & ACK:
            self._send(kind, ACK, 0, payload if kind == PING else b"")
            if kind == SETTINGS:
                self._settle(payload)
        elif kind == WINDOW_UPDATE and stream in self._windows:
            self._windows[stream] += int.from_bytes(payload, "big")
        elif kind in (RST_STREAM, GOAWAY):
            self._closing = Closing(-1, f"frame {kind}: {payload!r}")
        elif kind == HEADERS:
            headers = {bytes(k): bytes(v) for k, v in self._decoder.decode(payload, raw=True)}
            if flags & END_STREAM:
                message = headers.get(b"grpc-message", b"").decode()
                self._closing = Closing(int(headers[b"grpc-status"]), message)

    def _settle(self, settings: bytes) -> None:
        for start in range(0, len(settings), 6):
            if int.from_bytes(settings[start : start + 2], "big") == INITIAL_WINDOW_SIZE:
                size = int.from_bytes(settings[start + 2 : start + 6], "big")
                for stream in self._windows.keys() - {0}:
                    self._windows[stream] += size - self._first_window
                self._first_window = size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.socket.close()
