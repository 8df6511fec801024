"""A client's end of one HTTP/2 connection: its socket, settings, pings and the server's faults.

What runs over it is for its heirs: calls (``connection``) or streams (``streams``).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping

from benchmarks import http2
from benchmarks.errors import BenchmarkError
from benchmarks.http2 import CONTINUATION, DATA, HEADERS

__all__ = ["Channel"]

_RECEIVE = 1 << 18


class Channel:
    """A connection whose settings were exchanged.

    :raises BenchmarkError: it cannot connect, or, from any method, the server closed the
        connection, broke off a call, or was silent for ``silence`` seconds.
    """

    def __init__(self, host: str, port: int, silence: float) -> None:
        """Connect, and exchange settings."""
        self._left = b""  # the beginning of a frame whose rest has not come
        self._consumed = 0
        self._silence = silence
        self._settled = False
        try:
            self.socket = socket.create_connection((host, port), timeout=silence)
        except OSError as error:
            raise BenchmarkError(f"no connection to {host}:{port}: {error}") from error
        # Kernel timeouts: with Python's own, every call would cost one more system call.
        self.socket.settimeout(None)
        limit = struct.pack("ll", int(silence), int(silence % 1 * 1e6))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._write(http2.opening())
        while not self._settled:
            self.step()

    def step(self) -> int:
        """Wait for bytes and take in what they complete."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def _read(self) -> bytes:
        """Wait for bytes; return them after those that were left over."""
        try:
            received = self.socket.recv(_RECEIVE)
        except BlockingIOError:
            raise BenchmarkError(f"the server was silent for {self._silence:g} s") from None
        except OSError as error:
            raise BenchmarkError(f"the connection broke: {error}") from error
        if not received:
            raise BenchmarkError("the server closed the connection")
        return self._left + received

    def _write(self, data: bytes) -> None:
        try:
            self.socket.sendall(data)
        except BlockingIOError:
            raise BenchmarkError(f"the server read nothing for {self._silence:g} s") from None
        except OSError as error:
            raise BenchmarkError(f"the connection broke: {error}") from error

    def _other(self, kind: int, flags: int, stream: int, payload: bytes, out: list[bytes]) -> None:
        """Deal with a frame that is no plain DATA, HEADERS or WINDOW_UPDATE frame."""
        if kind == http2.PING:
            if not flags & http2.ACK:
                out.append(http2.frame(http2.PING, http2.ACK, 0, payload))
        elif kind == http2.SETTINGS:
            if not flags & http2.ACK:
                self._settle(http2.parse_settings(payload))
                out.append(http2.SETTINGS_ACK)
                self._settled = True
        elif kind == http2.RST_STREAM:
            # After the trailers a server may ask to be sent no more: nothing was left.
            if not self._is_done(stream):
                code = int.from_bytes(payload)
                raise BenchmarkError(f"the server broke off a call (HTTP/2 error {code})")
        elif kind == http2.GOAWAY:
            words = payload[8:].decode(errors="replace")
            raise BenchmarkError(f"the server said goodbye (GOAWAY {payload[4:8].hex()} {words})")
        elif kind in {DATA, HEADERS, CONTINUATION}:
            raise BenchmarkError("the server sent padded or continued frames, which are not read")

    def _settle(self, settings: Mapping[int, int]) -> None:
        """Take in the server's settings."""

    def _is_done(self, stream: int) -> bool:
        """Whether a stream has its trailers."""
        raise NotImplementedError
