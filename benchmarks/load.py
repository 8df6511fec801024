"""The load generator: a closed loop of calls against one server, in its own process.

``python -m benchmarks.load`` reads one ``Spec`` as JSON from its standard input, drives
the load, checks every reply and prints one ``Result`` as JSON. Requests are made before
the clock starts and replies are read after it has stopped.

SIGTERM ends the load early: what is in flight is waited for, and all else is as usual.
"""

from __future__ import annotations

import gc
import json
import math
import os
import select
import signal
import statistics
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from benchmarks.connection import Book, Connection
from benchmarks.errors import BenchmarkError
from benchmarks.http2 import call_frames, decode_headers, request_block
from benchmarks.proc import cpu_seconds
from benchmarks.workloads import workload

__all__ = ["Result", "Spec", "messages_of", "run"]

_stop = threading.Event()


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One run: ``warmup`` calls, then ``calls`` under the clock.

    With ``seconds`` it ends after these, or after ``calls`` calls if that is sooner; the
    warm-up takes a quarter of them at most.

    ``first`` numbers the first call, so that values differ from those of earlier runs.
    ``constant`` (hexadecimal) is the reply that a bare server must give to every call;
    without it the workload checks the replies, with the ``versions`` of before the run.
    """

    host: str
    port: int
    pid: int
    work: str
    in_flight: int
    connections: int
    calls: int
    warmup: int
    seconds: float = 0.0
    first: int = 0
    silence: float = 10.0
    constant: str | None = None
    versions: dict[str, int] = field(default_factory=dict)
    options: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one run measured; times in seconds and microseconds, per call.

    ``client_share`` is the part of one core that the generator itself used: near 1 it
    would have been the bottleneck. ``started`` and ``ended`` are moments of the clock that all
    processes share (``time.perf_counter``).
    """

    calls: int
    started: float
    ended: float
    seconds: float
    rate: float
    median_us: float
    p99_us: float
    server_cpu_us: float
    client_user_us: float
    client_system_us: float
    client_share: float
    last_reply: str
    versions: dict[str, int]
    values: dict[str, float]
    made: int
    """Calls with those of the warm-up."""


def run(spec: Spec) -> Result:
    """Drive one run and check its replies.

    :raises BenchmarkError: a call failed, a reply is wrong, or the server fell silent.
    """
    work = workload(spec.work, spec.options)
    total = spec.warmup + spec.calls
    messages = work.messages(spec.first, total)
    block = request_block(work.method, f"{spec.host}:{spec.port}")
    frames = [call_frames(block, message) for message in messages]
    book = Book(pieces=[pieces for pieces, _ in frames], sizes=[size for _, size in frames])
    taken = _timed(spec, book)
    replies = messages_of(book)
    if spec.constant is None:
        versions, values = work.check(spec.first, replies, spec.versions)
    else:
        wrong = sum(reply != bytes.fromhex(spec.constant) for reply in replies)
        if wrong:
            raise BenchmarkError(f"{wrong} replies of the bare server are not its constant")
        versions, values = {}, {}
    timed = slice(taken.first, book.following)
    times = zip(book.sent_at[timed], book.done_at[timed], strict=True)
    latencies = sorted((done - sent) / 1e3 for sent, done in times)
    calls, seconds = len(latencies), taken.ended - taken.started
    return Result(
        calls=calls,
        started=taken.started,
        ended=taken.ended,
        seconds=seconds,
        rate=calls / seconds,
        median_us=statistics.median(latencies),
        p99_us=latencies[int(len(latencies) * 0.99)],
        server_cpu_us=taken.server / calls * 1e6,
        client_user_us=taken.user / calls * 1e6,
        client_system_us=taken.system / calls * 1e6,
        client_share=(taken.user + taken.system) / seconds,
        last_reply=replies[-1].hex(),
        versions=versions,
        values=values,
        made=book.following,
    )


class _Taken(NamedTuple):
    """What passed under the clock; CPU times in seconds."""

    first: int
    """The number of the first call."""
    started: float
    ended: float
    server: float
    user: float
    system: float


def _timed(spec: Spec, book: Book) -> _Taken:
    """Warm up, then drive the calls under the clock."""
    gc.collect()
    gc.freeze()
    gc.disable()
    with ExitStack() as stack:
        stack.callback(gc.enable)
        connections = [
            stack.enter_context(closing(Connection(spec.host, spec.port, book, spec.silence)))
            for _ in range(min(spec.connections, spec.in_flight))
        ]
        _phase(connections, book, spec, spec.warmup, spec.seconds / 4)
        first = book.following
        server, own, started = cpu_seconds(spec.pid), os.times(), time.perf_counter()
        _phase(connections, book, spec, spec.calls, spec.seconds)
        ended, spent = time.perf_counter(), os.times()
        server = cpu_seconds(spec.pid) - server
    if book.following == first:
        raise BenchmarkError("a run was ended before its first call")
    user, system = spent.user - own.user, spent.system - own.system
    return _Taken(first, started, ended, server, user, system)


def _phase(
    connections: list[Connection], book: Book, spec: Spec, calls: int, seconds: float
) -> None:
    """Send ``calls`` calls, ``spec.in_flight`` at a time, and wait for all replies.

    After so many seconds, if there are any, no more are sent.
    """
    end = time.perf_counter() + seconds if seconds else math.inf
    before = book.following
    book.last = before + calls
    share, more = divmod(spec.in_flight, len(connections))
    for number, connection in enumerate(connections):
        connection.start(share + (number < more))
    if len(connections) == 1:
        step = connections[0].step
        while calls > 0:
            calls -= step()
            if time.perf_counter() > end or _stop.is_set():
                calls -= book.last - book.following
                book.last = book.following
        return
    steps = {connection.socket.fileno(): connection.step for connection in connections}
    with select.epoll() as poll:
        for descriptor in steps:
            poll.register(descriptor, select.EPOLLIN)
        while calls > 0:
            ready = poll.poll(spec.silence)
            if not ready:
                raise BenchmarkError(f"the server was silent for {spec.silence:g} s")
            for descriptor, _ in ready:
                calls -= steps[descriptor]()
            if time.perf_counter() > end or _stop.is_set():
                calls -= book.last - book.following
                book.last = book.following


def messages_of(book: Book) -> list[bytes]:
    """Return the reply messages, after a look at every call's status.

    :raises BenchmarkError: a call did not end with status OK and one whole message.
    """
    trailers = book.trailers[: book.following]
    headers = {block: decode_headers(block) for block in {*trailers, *book.openings}}
    if any(headers[block].get(":status") != "200" for block in book.openings):
        raise BenchmarkError("a reply's HTTP status is not 200")
    faults: Counter[str] = Counter()
    messages = []
    for trailer, reply in zip(trailers, book.replies, strict=False):
        fields = headers[trailer]
        if fields.get("grpc-status") != "0":
            text = fields.get("grpc-message", "no message")
            faults[f"gRPC status {fields.get('grpc-status', 'missing')}: {text}"] += 1
        elif len(reply) < 5 or reply[0] or int.from_bytes(reply[1:5]) != len(reply) - 5:
            faults["not one whole, uncompressed message"] += 1
        else:
            messages.append(reply[5:])
    if faults:
        words = "; ".join(f"{count} calls: {fault}" for fault, count in faults.most_common(3))
        raise BenchmarkError(f"not every reply is OK: {words}")
    return messages


def main() -> None:
    """Read a spec, run it, print its result, or the fault in words and exit with 1."""
    given: dict[str, Any] = json.load(sys.stdin)
    signal.signal(signal.SIGTERM, lambda *_: _stop.set())
    try:
        result = run(Spec(**given))
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None
    print(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()
