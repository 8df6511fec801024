"""The load generator: a closed loop of calls against one server, in its own process.

``python -m benchmarks.load`` reads one ``Spec`` as JSON from its standard input, drives
the load, checks every reply and prints one ``Result`` as JSON. Requests are made before
the clock starts and replies are read after it has stopped.
"""

from __future__ import annotations

import gc
import json
import os
import select
import statistics
import sys
import time
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.connection import Book, Connection
from benchmarks.errors import BenchmarkError
from benchmarks.http2 import call_frames, decode_headers, request_block
from benchmarks.proc import cpu_seconds
from benchmarks.workloads import workload

__all__ = ["Result", "Spec", "run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One run: ``warmup`` calls, then ``calls`` under the clock.

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
    first: int = 0
    silence: float = 10.0
    constant: str | None = None
    versions: dict[str, int] = field(default_factory=dict)
    options: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one run measured; times in seconds and microseconds, per call.

    ``client_share`` is the part of one core that the generator itself used: near 1 it
    would have been the bottleneck.
    """

    calls: int
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
    seconds, server, user, system = _timed(spec, book)
    replies = _messages(book)
    if spec.constant is None:
        versions, values = work.check(spec.first, replies, spec.versions)
    else:
        wrong = sum(reply != bytes.fromhex(spec.constant) for reply in replies)
        if wrong:
            raise BenchmarkError(f"{wrong} replies of the bare server are not its constant")
        versions, values = {}, {}
    times = zip(book.sent_at[spec.warmup :], book.done_at[spec.warmup :], strict=True)
    latencies = sorted((done - sent) / 1e3 for sent, done in times)
    return Result(
        calls=spec.calls,
        seconds=seconds,
        rate=spec.calls / seconds,
        median_us=statistics.median(latencies),
        p99_us=latencies[int(len(latencies) * 0.99)],
        server_cpu_us=server / spec.calls * 1e6,
        client_user_us=user / spec.calls * 1e6,
        client_system_us=system / spec.calls * 1e6,
        client_share=(user + system) / seconds,
        last_reply=replies[-1].hex(),
        versions=versions,
        values=values,
    )


def _timed(spec: Spec, book: Book) -> tuple[float, float, float, float]:
    """Warm up, then drive the calls under the clock.

    Return the seconds that passed, the server's CPU time, our own in user mode and our own
    in the kernel.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    with ExitStack() as stack:
        stack.callback(gc.enable)
        connections = [
            stack.enter_context(closing(Connection(spec.host, spec.port, book, spec.silence)))
            for _ in range(min(spec.connections, spec.in_flight))
        ]
        _phase(connections, book, spec, spec.warmup)
        server, own, started = cpu_seconds(spec.pid), os.times(), time.perf_counter()
        _phase(connections, book, spec, spec.calls)
        seconds, ended = time.perf_counter() - started, os.times()
        server = cpu_seconds(spec.pid) - server
    return seconds, server, ended.user - own.user, ended.system - own.system


def _phase(connections: list[Connection], book: Book, spec: Spec, calls: int) -> None:
    """Send ``calls`` calls, ``spec.in_flight`` at a time, and wait for all replies."""
    book.last = book.following + calls
    share, more = divmod(spec.in_flight, len(connections))
    for number, connection in enumerate(connections):
        connection.start(share + (number < more))
    if len(connections) == 1:
        step = connections[0].step
        while calls > 0:
            calls -= step()
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


def _messages(book: Book) -> list[bytes]:
    """Return the reply messages, after a look at every call's status.

    :raises BenchmarkError: a call did not end with status OK and one whole message.
    """
    headers = {block: decode_headers(block) for block in {*book.trailers, *book.openings}}
    if any(headers[block].get(":status") != "200" for block in book.openings):
        raise BenchmarkError("a reply's HTTP status is not 200")
    faults: Counter[str] = Counter()
    messages = []
    for trailer, reply in zip(book.trailers, book.replies, strict=True):
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
    try:
        result = run(Spec(**given))
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None
    print(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()
