"""Watchers: many streams on a few connections, read as cheaply as they can be, in one process.

``python -m benchmarks.streams`` reads one ``Streams`` as a line of JSON from its standard
input, opens them, and prints ``OPEN`` when the server has begun with each. After that it obeys
the lines that it is given, and answers each with one line of JSON::

    {"do": "count"}                                 how many messages came
    {"do": "finish", "expect": N, "limit": S}       read on until each stream has N messages,
                                                    S seconds at most; check, report, exit
                                                    (N = 0: stop at once)

With ``"sent": {offset: ns}`` a report says how long these updates took from there.

Messages are kept as bytes and read when the clock has stopped, or when there are too many.
"""

from __future__ import annotations

import gc
import json
import os
import select
import struct
import sys
import time
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

from benchmarks import http2
from benchmarks.channel import Channel
from benchmarks.errors import BenchmarkError
from benchmarks.http2 import DATA, END_HEADERS, END_STREAM, HEADERS, PADDED, PRIORITY
from benchmarks.received import Checker, Received, delays

__all__ = ["Streams"]

_FORM = END_HEADERS | PADDED | PRIORITY
_MOST_KEPT = 600_000  # messages: about 200 MB
_EVERY = 0.005  # seconds between two notes of how far it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """What to open: ``streams`` calls of ``method`` with the same ``request`` (hexadecimal).

    All messages of ``sampled`` of them are checked (0 = of all), of the others the count and
    the last one; by what, see ``Checker``. ``constant`` is hexadecimal.
    """

    port: int
    method: str
    request: str
    streams: int
    host: str = "127.0.0.1"
    connections: int = 4
    sampled: int = 0
    constant: str | None = None
    after: int | None = None
    gaps: bool = False
    silence: float = 30.0


class _Connection(Channel):
    """Some of the streams. ``total`` counts their messages."""

    def __init__(self, spec: Streams, streams: list[Received]) -> None:
        self._streams = streams
        self._by_headers = spec.constant is not None
        self.total = 0
        super().__init__(spec.host, spec.port, spec.silence)

    def open(self, pieces: tuple[bytes, ...]) -> None:
        """Send the request on each stream."""
        streams = range(1, 2 * len(self._streams), 2)
        self._write(b"".join(struct.pack(">I", stream).join(pieces) for stream in streams))

    def step(self) -> int:
        """Wait for bytes and take them in; return how many messages they complete."""
        buffer = self._read()
        now = perf_counter_ns()
        streams, unpack = self._streams, http2.FRAME_HEADER.unpack_from
        position, end, done = 0, len(buffer), 0
        out: list[bytes] = []
        while end - position >= 9:
            high, low, kind, flags, stream = unpack(buffer, position)
            start = position + 9
            size = (high << 8) + low
            position = start + size
            if position > end:
                position = start - 9
                break
            if kind == DATA and not flags:
                received = streams[stream >> 1]
                received.size += size
                message = buffer[start:position]
                if received.left or int.from_bytes(message[1:5]) != size - 5:
                    done += received.take(message, now)
                    continue
                received.count += 1
                received.last = message
                if received.kept is not None:
                    received.kept.append(message)
                    received.times.append(now)
                done += 1
            elif kind == HEADERS and flags & _FORM == END_HEADERS:
                received = streams[stream >> 1]
                if flags & END_STREAM:
                    received.trailer = buffer[start:position]
                    raise _ended(received)
                received.opening = buffer[start:position]
            elif kind != http2.WINDOW_UPDATE:
                self._other(kind, flags, stream, buffer[start:position], out)
        self._left = buffer[position:]
        self.total += done
        self._consumed += end
        if self._consumed > http2.RECEIVE_WINDOW // 2:
            self._allow(out)
        if out:
            self._write(b"".join(out))
        return done

    def count_begun(self) -> int:
        """Return how many streams have headers, or a message, if they send one at once."""
        by_headers = self._by_headers
        return sum(bool(one.opening) and (by_headers or one.count > 0) for one in self._streams)

    def _allow(self, out: list[bytes]) -> None:
        """Let the server send as much again as has come, on each stream and on all."""
        self._consumed = 0
        out.append(http2.window_update(0, sum(one.size for one in self._streams)))
        for number, received in enumerate(self._streams):
            if received.size:
                out.append(http2.window_update(2 * number + 1, received.size))
                received.size = 0

    def _is_done(self, stream: int) -> bool:
        return bool(self._streams[stream >> 1].trailer)


def _ended(received: Received) -> BenchmarkError:
    fields = http2.decode_headers(received.trailer)
    return BenchmarkError(
        f"a stream ended after {received.count} messages with gRPC status "
        f"{fields.get('grpc-status', 'missing')}: {fields.get('grpc-message', 'no message')}"
    )


class _Reader:
    """Reads all streams, obeys, reports."""

    def __init__(self, spec: Streams) -> None:
        self._spec = spec
        constant = None if spec.constant is None else bytes.fromhex(spec.constant)
        self._checker = Checker(constant=constant, after=spec.after, gaps=spec.gaps)
        every = max(1, spec.streams // spec.sampled) if spec.sampled else 1
        self._all = [Received(keep=number % every == 0) for number in range(spec.streams)]
        self._sampled = sum(one.kept is not None for one in self._all) / spec.streams
        count = min(spec.connections, spec.streams)
        self._connections = [_Connection(spec, self._all[n::count]) for n in range(count)]
        self._steps = {one.socket.fileno(): one.step for one in self._connections}
        self._poll = select.epoll()
        for descriptor in self._steps:
            self._poll.register(descriptor, select.EPOLLIN)
        self._total = self._checked = 0
        self._progress: list[tuple[float, int, float]] = []
        """When, how many messages had come, and our own CPU time."""
        self._orders = b""

    def open(self) -> None:
        """Open the streams and wait until the server has begun with all of them."""
        block = http2.request_block(self._spec.method, f"{self._spec.host}:{self._spec.port}")
        pieces, _ = http2.call_frames(block, bytes.fromhex(self._spec.request))
        self._requested = time.perf_counter()
        for connection in self._connections:
            connection.open(pieces)
        limit = time.perf_counter() + self._spec.silence
        while (begun := sum(one.count_begun() for one in self._connections)) < self._spec.streams:
            if not self._round(1.0) and time.perf_counter() > limit:
                raise BenchmarkError(f"of {self._spec.streams} streams only {begun} were opened")
        if any(
            http2.decode_headers(block).get(":status") != "200"
            for block in {one.opening for one in self._all}
        ):
            raise BenchmarkError("a stream's HTTP status is not 200")

    def obey(self) -> dict[str, Any]:
        """Read, and do what is asked, until the end; return the report."""
        standard_input = sys.stdin.fileno()
        self._poll.register(standard_input, select.EPOLLIN)
        while True:
            if not self._round(None):
                continue
            order = json.loads(self._order())
            if order["do"] == "count":
                _print(json.dumps(self._total))
                continue
            self._poll.unregister(standard_input)
            self._read_on(order["expect"], order["limit"])
            self._note(time.perf_counter())
            for connection in self._connections:
                connection.close()
            sent = {int(offset): moment for offset, moment in order.get("sent", {}).items()}
            return self._report(sent)

    def _round(self, timeout: float | None) -> bool:
        """Take in what has come; return whether there is an order, or nothing came in time."""
        ready = self._poll.poll(timeout)
        ordered = not ready
        total = self._total
        for descriptor, _ in ready:
            step = self._steps.get(descriptor)
            if step is None:
                ordered = True
            else:
                total += step()
        self._total = total
        now = time.perf_counter()
        if not self._progress or now - self._progress[-1][0] > _EVERY:
            self._note(now)
            if (total - self._checked) * self._sampled > _MOST_KEPT:
                self._check()
        return ordered

    def _note(self, now: float) -> None:
        self._progress.append((now, self._total, time.process_time()))

    def _order(self) -> bytes:
        while b"\n" not in self._orders:
            given = os.read(sys.stdin.fileno(), 1 << 20)
            if not given:
                raise BenchmarkError("the benchmark is gone")
            self._orders += given
        line, _, self._orders = self._orders.partition(b"\n")
        return line

    def _read_on(self, expect: int, limit: float) -> None:
        end = time.perf_counter() + limit
        while self._total < expect * self._spec.streams:
            rest = end - time.perf_counter()
            if rest <= 0:
                raise BenchmarkError(
                    f"within {limit:g} s {self._spec.streams} streams got {self._total} messages "
                    f"instead of {expect} each"
                )
            self._round(min(rest, 1.0))
        if expect and any(one.count != expect for one in self._all):
            raise BenchmarkError("some streams got more messages than others")

    def _check(self) -> None:
        self._checked = self._total
        for received in self._all:
            self._checker.check(received)

    def _report(self, sent: dict[int, int]) -> dict[str, Any]:
        self._check()
        start = min(self._checker.starts, default=0)
        arrivals = self._checker.arrivals
        for received in self._all:
            self._checker.close(received, start)
        offsets = [one.offset for one in self._all]
        return {
            "total": self._total,
            "start": start,
            "least": min(offsets),
            "greatest": max(offsets),
            "requested": self._requested,
            "reached": max(arrivals[1::2], default=0) / 1e9,
            "most": max(one.count for one in self._all),
            "last": self._all[0].last[5:].hex(),
            "progress": self._progress,
            "delays": delays(arrivals, sent),
        }


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Read what to open, open it, obey, report; or the fault in words, and exit with 1."""
    gc.disable()  # nothing here makes cycles
    given = os.fdopen(os.dup(sys.stdin.fileno()), "rb", buffering=0).readline()
    try:
        reader = _Reader(Streams(**json.loads(given)))
        reader.open()
        _print("OPEN")
        report = reader.obey()
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None
    _print(json.dumps(report))


if __name__ == "__main__":
    main()
