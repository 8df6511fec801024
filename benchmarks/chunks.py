"""Streams that end: some at once, each on a connection of its own, read as cheaply as they can be.

``python -m benchmarks.chunks`` reads one ``Chunks`` as JSON from its standard input, has them
sent, checks every message and prints one ``Sent`` as JSON. Messages are kept as bytes and
read when the clock has stopped.
"""

from __future__ import annotations

import gc
import json
import os
import select
import struct
import sys
import time
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks import http2
from benchmarks.channel import Channel
from benchmarks.errors import BenchmarkError
from benchmarks.http2 import DATA, END_HEADERS, END_STREAM, HEADERS, PADDED, PRIORITY
from benchmarks.proc import cpu_seconds
from benchmarks.tools import chunk
from snakepit_bridge import bridge_service_pb2 as pb

__all__ = ["Chunks", "Sent", "run"]

_FORM = END_HEADERS | PADDED | PRIORITY
# Seconds between two looks at the sockets, so that each read takes in many messages: else this
# process would be as busy as the server.
_REST = 0.001
_HEAD = 5  # bytes before a gRPC message: whether it is compressed, and its length


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunks:
    """What to call: each request (hexadecimal) on a stream, all of them at once.

    ``warmup`` holds the requests of as many streams that end before the clock starts. A stream
    has ``count`` chunks, in the warm-up ``warm``. ``constant`` (hexadecimal) is what a bare
    server must send each time; without it they are those of a tool, then an empty last one.
    """

    port: int
    pid: int
    method: str
    warmup: list[str]
    requests: list[str]
    warm: int
    count: int
    constant: str | None = None
    host: str = "127.0.0.1"
    silence: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What a run measured; CPU times are per chunk. ``middle`` is one message, hexadecimal."""

    chunks: int
    seconds: float
    rate: float
    server_cpu_us: float
    client_share: float
    middle: str


class _Connection(Channel):
    """One connection, with one stream at a time."""

    def __init__(self, host: str, port: int, silence: float) -> None:
        self.body = bytearray()
        self.opening = self.trailer = b""
        self._stream = -1
        super().__init__(host, port, silence)

    def start(self, pieces: tuple[bytes, ...]) -> None:
        """Send a request on the next stream, and forget the one before."""
        self.body = bytearray()
        self.opening = self.trailer = b""
        self._stream += 2
        self._write(struct.pack(">I", self._stream).join(pieces))

    def step(self) -> int:
        """Wait for bytes and take them in; return how many streams they end."""
        buffer = self._read()
        unpack = http2.FRAME_HEADER.unpack_from
        position, end = 0, len(buffer)
        out: list[bytes] = []
        while end - position >= 9:
            high, low, kind, flags, stream = unpack(buffer, position)
            start = position + 9
            position = start + (high << 8) + low
            if position > end:
                position = start - 9
                break
            if kind == DATA and not flags:
                self._consumed += position - start
                self.body += buffer[start:position]
            elif kind == HEADERS and flags & _FORM == END_HEADERS:
                if flags & END_STREAM:
                    self.trailer = buffer[start:position]
                else:
                    self.opening = buffer[start:position]
            elif kind != http2.WINDOW_UPDATE:
                self._other(kind, flags, stream, buffer[start:position], out)
        self._left = buffer[position:]
        # A stream's own window is larger than all that it sends.
        if self._consumed > http2.RECEIVE_WINDOW // 2:
            out.append(http2.window_update(0, self._consumed))
            self._consumed = 0
        if out:
            self._write(b"".join(out))
        return bool(self.trailer)

    def messages(self) -> list[bytes]:
        """Return the messages of a stream that has ended.

        :raises BenchmarkError: its status is not OK, or they are not whole.
        """
        fields = http2.decode_headers(self.trailer)
        if fields.get("grpc-status") != "0":
            raise BenchmarkError(
                f"a stream ended with gRPC status {fields.get('grpc-status', 'missing')}: "
                f"{fields.get('grpc-message', 'no message')}"
            )
        if http2.decode_headers(self.opening).get(":status") != "200":
            raise BenchmarkError("a stream's HTTP status is not 200")
        body, position = bytes(self.body), 0
        found = []
        while len(body) - position >= _HEAD:
            start = position + _HEAD
            position = start + int.from_bytes(body[start - 4 : start])
            if body[start - _HEAD]:
                raise BenchmarkError("a message is compressed")
            found.append(body[start:position])
        if position != len(body):
            raise BenchmarkError("a stream's last message is not whole")
        return found

    def _is_done(self, stream: int) -> bool:
        return stream < self._stream or bool(self.trailer)


def run(spec: Chunks) -> Sent:
    """Have the streams sent twice, the second time under the clock, and check them.

    :raises BenchmarkError: a stream failed or is not what it must be, or the server fell silent.
    """
    block = http2.request_block(spec.method, f"{spec.host}:{spec.port}")
    gc.collect()
    gc.freeze()
    gc.disable()
    with ExitStack() as stack:
        stack.callback(gc.enable)
        connections = [
            stack.enter_context(closing(_Connection(spec.host, spec.port, spec.silence)))
            for _ in spec.requests
        ]
        _all(connections, block, spec.warmup, spec.silence)
        _checked(connections, spec, spec.warm)
        server, own, started = cpu_seconds(spec.pid), os.times(), time.perf_counter()
        _all(connections, block, spec.requests, spec.silence)
        ended, spent = time.perf_counter(), os.times()
        server = cpu_seconds(spec.pid) - server
        messages = _checked(connections, spec, spec.count)
    seconds, chunks = ended - started, spec.count * len(connections)
    return Sent(
        chunks=chunks,
        seconds=seconds,
        rate=chunks / seconds,
        server_cpu_us=server / chunks * 1e6,
        client_share=(spent.user + spent.system - own.user - own.system) / seconds,
        middle=messages[spec.count // 2].hex(),
    )


def _all(connections: list[_Connection], block: bytes, requests: list[str], silence: float) -> None:
    """Send one request on each connection and read until all streams have ended."""
    frames = [http2.call_frames(block, bytes.fromhex(request)) for request in requests]
    for connection, (pieces, _) in zip(connections, frames, strict=True):
        connection.start(pieces)
    steps = {connection.socket.fileno(): connection.step for connection in connections}
    with select.epoll() as poll:
        for descriptor in steps:
            poll.register(descriptor, select.EPOLLIN)
        while steps:
            ready = poll.poll(silence)
            if not ready:
                raise BenchmarkError(f"the server was silent for {silence:g} s")
            for descriptor, _ in ready:
                if steps[descriptor]():
                    poll.unregister(descriptor)
                    del steps[descriptor]
            time.sleep(_REST)


def _checked(connections: list[_Connection], spec: Chunks, count: int) -> list[bytes]:
    """Check what all have received; return the messages of the first."""
    received = [connection.messages() for connection in connections]
    for messages in received:
        if spec.constant is None:
            _check(messages, count)
        elif messages != [bytes.fromhex(spec.constant)] * count:
            raise BenchmarkError("the bare server did not send its constant as often as asked")
    return received[0]


def _check(messages: list[bytes], count: int) -> None:
    """See that these are the chunks of the tool ``stream``, each once, in order.

    :raises BenchmarkError: they are not.
    """
    found = [pb.ToolChunk.FromString(message) for message in messages]
    if len(found) != count + 1:
        raise BenchmarkError(f"a stream had {len(found)} chunks, not {count} and an empty last one")
    last = found.pop()
    if not last.is_final or last.data or any(one.is_final for one in found):
        raise BenchmarkError("a stream did not end with the one chunk that is final and empty")
    for number, one in enumerate(found):
        if json.loads(one.data) != chunk(number):
            raise BenchmarkError(f"chunk {number} of a stream is {one.data[:100]!r}")
    if len({one.chunk_id for one in found}) != count:
        raise BenchmarkError("two chunks of a stream have the same id")


def main() -> None:
    """Read what to call, call it, print what was measured, or the fault and exit with 1."""
    given: dict[str, Any] = json.load(sys.stdin)
    try:
        sent = run(Chunks(**given))
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None
    print(json.dumps(asdict(sent)))


if __name__ == "__main__":
    main()
