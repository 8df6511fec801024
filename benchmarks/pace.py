"""An open loop: calls sent when they are due, whether or not earlier ones were answered.

``python -m benchmarks.pace RATE`` reads one ``load.Spec`` as JSON, sends its warm-up and its
calls at RATE a second over one connection, checks every reply and prints JSON: when each call
under the clock was sent, by the offset that its reply has, and the versions and values that
the server must hold now. The work is "set".
"""

from __future__ import annotations

import gc
import json
import select
import sys
import time
from contextlib import closing
from typing import Any

from benchmarks.connection import Book, Connection
from benchmarks.errors import BenchmarkError
from benchmarks.http2 import call_frames, request_block
from benchmarks.load import Spec, messages_of
from benchmarks.workloads import workload
from snakepit_bridge import bridge_service_pb2 as pb

__all__: list[str] = []


def _run(spec: Spec, rate: float) -> dict[str, Any]:
    work = workload(spec.work, spec.options)
    block = request_block(work.method, f"{spec.host}:{spec.port}")
    messages = work.messages(spec.first, spec.warmup + spec.calls)
    frames = [call_frames(block, message) for message in messages]
    book = Book(pieces=[pieces for pieces, _ in frames], sizes=[size for _, size in frames])
    gc.collect()
    gc.freeze()
    gc.disable()
    with closing(Connection(spec.host, spec.port, book, spec.silence)) as connection:
        late = _pace(connection, book, rate, spec.silence)
    gc.enable()
    replies = messages_of(book)
    versions, values = work.check(spec.first, replies, spec.versions)
    offsets = [pb.SetVariableResponse.FromString(reply).offset for reply in replies]
    sent = zip(offsets[spec.warmup :], book.sent_at[spec.warmup :], strict=True)
    return {
        "sent": dict(sent),
        "late_us": late * 1e6,
        "versions": versions,
        "values": values,
        "made": len(replies),
    }


def _pace(connection: Connection, book: Book, rate: float, silence: float) -> float:
    """Send all calls of a book and wait for the replies; return the greatest lateness."""
    total, done, late = len(book.pieces), 0, 0.0
    begun = heard = time.perf_counter()
    with select.epoll() as poll:
        poll.register(connection.socket, select.EPOLLIN)
        while done < total:
            now = time.perf_counter()
            if now > heard + silence:
                raise BenchmarkError(f"the server was silent for {silence:g} s")
            due = begun + book.last / rate
            if book.last < total and now >= due:
                # The connection's own loop sends nothing, as its book has nothing more for it.
                book.last += 1
                connection.start(1)
                late = max(late, now - due)
                continue
            # The kernel counts in milliseconds: the last of them is waited for awake.
            wait = min(due - now, silence) if book.last < total else silence
            if poll.poll(max(0.0, wait - 0.001)):
                done += connection.step()
                heard = time.perf_counter()
    return late


def main() -> None:
    """Read a spec, run it, print what came of it, or the fault in words and exit with 1."""
    spec = Spec(**json.load(sys.stdin))
    try:
        done = _run(spec, float(sys.argv[1]))
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None
    print(json.dumps(done))


if __name__ == "__main__":
    main()
