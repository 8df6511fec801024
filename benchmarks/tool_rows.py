"""The rows about tools: what a call costs, what a chunk costs, and who waits while they compute."""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks import servers
from benchmarks.chunks import Chunks, Sent
from benchmarks.client import begin, execute, heads
from benchmarks.contest import Contest, Figure, Outcome
from benchmarks.driver import drive, run_json
from benchmarks.errors import BenchmarkError
from benchmarks.execute import SERVICE, tool_session
from benchmarks.load import Result
from benchmarks.sides import Bridge, Shape, figure_of
from snakepit_bridge import bridge_service_pb2 as pb

__all__ = ["BESIDE", "STREAMS", "calling", "computing", "streaming"]

BESIDE = 8
"""Calls that compute while somebody sets a variable."""

STREAMS = 4

_TOOLS = ("--adapter", "benchmarks.tools")
# As many processes as calls: all of them compute, none waits for one.
_PROCESSES = ("--tool-processes", str(BESIDE))
_COMPUTING = 0.25  # seconds of CPU time, each call
_BEGIN_LIMIT = 60.0  # seconds until all calls have ended once, with starting their processes
_AGAIN = 3  # runs of what is only in a note


class _Logs:
    """The sessions that tools are called in: what their logs must hold, call by call."""

    def __init__(self, server: servers.Server, count: int) -> None:
        """Begin ``count`` sessions on a server that is ready."""
        self._server = server
        self.ends = begin(server.port, [tool_session(number) for number in range(count)])
        if set(self.ends.values()) != {1}:
            raise BenchmarkError(f"new logs should end at offset 1, not at {self.ends}")

    def called(self, session: str, calls: int) -> None:
        """Take in so many calls of tools, each of which has a start and an end."""
        self.ends[session] += 2 * calls

    def check(self) -> None:
        """See that the server's logs end where they must.

        :raises BenchmarkError: an event is missing, or there is one too many.
        """
        held = heads(self._server.port, self.ends)
        if held != self.ends:
            raise BenchmarkError(f"by its calls the logs end at {self.ends}, and they do at {held}")


@contextmanager
def calling(directory: Path, shape: Shape) -> Iterator[Contest]:
    """Set up calls of an empty tool against those of the bare server; calls per second."""
    with servers.bridge(directory, options=_TOOLS) as server:
        logs = _Logs(server, shape.options["sessions"])

        def run(number: int, shape: Shape) -> Result:
            spec = replace(shape.spec(server, number), versions=logs.ends)
            with _named(server):
                result = drive(spec)
            for session, end in result.versions.items():
                logs.called(session, (end - logs.ends[session]) // 2)
            logs.check()
            return result

        reply = run(0, shape.part(0.3)).last_reply

        def ours(number: int) -> Figure:
            result = run(number, shape)
            return figure_of(result, result.rate)

        with servers.bare(directory, bytes.fromhex(reply)) as bare:

            def ruler(number: int) -> Figure:
                result = drive(shape.spec(bare, number, constant=reply))
                return figure_of(result, result.rate)

            ruler(0)
            yield Contest(ours=ours, ruler=ruler, notes=_calling_notes)


@contextmanager
def _named(server: servers.Server) -> Iterator[None]:
    """Have a fault of the block say that the server died, if it did."""
    try:
        yield
    except BenchmarkError as error:
        raise error if server.alive() else server.fault("died") from error


def _calling_notes(outcome: Outcome) -> Sequence[str]:
    p50, p99 = (_median(outcome, name) for name in ("median_us", "p99_us"))
    usual = _median(outcome, "median_us", ruler=True)
    return [f"a call takes p50 {p50:,.0f} µs, p99 {p99:,.0f} µs; a bare one p50 {usual:,.0f} µs"]


def _median(outcome: Outcome, name: str, *, ruler: bool = False) -> float:
    found = outcome.median(lambda pair: (pair.ruler if ruler else pair.ours).details[name])
    return found or 0.0


@contextmanager
def streaming(directory: Path, count: int) -> Iterator[Contest]:
    """Set up streams of ``count`` chunks, several at once, against bare ones; chunks per second.

    A bare stream sends messages as long as those of the bridge.
    """
    with servers.bridge(directory, options=_TOOLS) as server:
        logs = _Logs(server, STREAMS)

        def run(tool: str) -> Sent:
            def requests(length: int) -> list[bytes]:
                return [_stream_request(session, tool, length) for session in logs.ends]

            with _named(server):
                sent = _sent(server, SERVICE + "ExecuteStreamingTool", requests, count)
            for session in logs.ends:
                logs.called(session, 2)
            logs.check()
            return sent

        constant = run("stream").middle
        with servers.bare(directory, bytes.fromhex(constant)) as bare:

            def bare_run() -> Sent:
                return _sent(
                    bare, "/bare/Stream", lambda length: [b"%d" % length] * STREAMS, count, constant
                )

            def notes(_outcome: Outcome) -> Sequence[str]:
                rates = [(run("stream_async").rate, bare_run().rate) for _ in range(_AGAIN)]
                ratios = [ours / ruler for ours, ruler in rates]
                return [
                    f"{STREAMS} streams of {count:,} chunks of {len(constant) // 2} bytes",
                    (
                        f"an async generator: {statistics.median(rate for rate, _ in rates):,.0f}"
                        f"/s, {statistics.median(ratios):.0%} ({min(ratios):.0%} … "
                        f"{max(ratios):.0%}) of the bare server"
                    ),
                ]

            bare_run()
            yield Contest(
                ours=lambda _number: _chunk_figure(run("stream")),
                ruler=lambda _number: _chunk_figure(bare_run()),
                notes=notes,
            )


def _stream_request(session: str, tool: str, count: int) -> bytes:
    request = pb.ExecuteToolRequest(session_id=session, tool_name=tool)
    request.parameters["count"].type_url = "dspex.variables/integer"
    request.parameters["count"].value = b"%d" % count
    return request.SerializeToString()


def _sent(
    server: servers.Server,
    method: str,
    requests: Callable[[int], Sequence[bytes]],
    count: int,
    constant: str | None = None,
) -> Sent:
    """Have chunks sent to a process of its own and return what it measured.

    ``requests`` makes the requests for streams of so many chunks.
    """
    warm = max(1, count // 20)
    first, then = ([request.hex() for request in requests(length)] for length in (warm, count))
    spec = Chunks(
        port=server.port,
        pid=server.pid,
        method=method,
        warmup=first,
        requests=then,
        warm=warm,
        count=count,
        constant=constant,
    )
    return Sent(**run_json("benchmarks.chunks", given=json.dumps(asdict(spec))))


def _chunk_figure(sent: Sent) -> Figure:
    details = asdict(sent)
    del details["middle"]
    return Figure(sent.rate, sent.server_cpu_us, details)


@dataclass(frozen=True, slots=True)
class _Ended:
    """The calls that ended while others waited: how many, by whom, in how many seconds."""

    calls: int
    workers: frozenset[tuple[int, int]]
    """Process and thread."""
    seconds: float


class _Computing:
    """Calls of a tool that computes, ``BESIDE`` at a time for as long as the block lasts.

    Each is followed by the next. When the block begins, each has ended once, so that a process
    to run it in is there.
    """

    def __init__(self, server: servers.Server, session: str, tool: str) -> None:
        self._server = server
        self._call = (server.port, session, tool, {"seconds": _COMPUTING}, self._goes_on)
        self._begun = threading.Barrier(BESIDE + 1)
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(BESIDE)
        self._callers: list[Future[list[tuple[int, int]]]] = []

    def __enter__(self) -> Callable[[], _Ended]:
        """Begin; what is given ends it and returns what was done."""
        self._started = time.perf_counter()
        self._callers = [self._pool.submit(self._run) for _ in range(BESIDE)]
        try:
            self._begun.wait(_BEGIN_LIMIT)
        except threading.BrokenBarrierError:
            self.finish()
            raise BenchmarkError(f"{BESIDE} calls did not end in {_BEGIN_LIMIT:g} s") from None
        return self.finish

    def __exit__(self, *_: object) -> None:
        """End, if it has not ended."""
        self._stop.set()
        self._pool.shutdown()

    def finish(self) -> _Ended:
        """Wait for the calls that are under way, and begin no more.

        :raises BenchmarkError: a call failed.
        """
        self._stop.set()
        self._pool.shutdown()
        seconds = time.perf_counter() - self._started
        with _named(self._server):
            done = [worker for caller in self._callers for worker in caller.result()]
        return _Ended(len(done), frozenset(done), seconds)

    def _goes_on(self) -> bool:
        return not self._stop.is_set()

    def _run(self) -> list[tuple[int, int]]:
        """Call until the end; return who ran each call."""
        done = []
        try:
            for result in execute(*self._call):
                done.append((result["process"], result["thread"]))
                if len(done) == 1:
                    self._begun.wait(_BEGIN_LIMIT)
        except threading.BrokenBarrierError:
            return done  # another caller failed, and says why
        except BaseException:
            self._begun.abort()
            raise
        return done


@contextmanager
def computing(directory: Path, shape: Shape, *, apart: bool) -> Iterator[Contest]:
    """Set up a writer beside tools that compute against the writer alone; µs, p99.

    The writer has one call in flight and a session of its own. ``apart`` says that the tools
    run in processes, else in threads of the bridge.
    """
    with servers.bridge(directory, options=(*_TOOLS, *_PROCESSES)) as server:
        writer = Bridge(server, shape)
        logs = _Logs(server, 1)
        (session,) = logs.ends
        tool = "work_apart" if apart else "work"

        def alone(number: int, shape: Shape = shape) -> Figure:
            result = writer.run(2 * number, shape)
            return figure_of(result, result.p99_us)

        def meanwhile(number: int, shape: Shape = shape) -> Figure:
            with _Computing(server, session, tool) as finish:
                result = writer.run(2 * number + 1, shape)
                ended = finish()
            logs.called(session, ended.calls)
            logs.check()
            _look_at(ended.workers, server, apart=apart)
            figure = figure_of(result, result.p99_us)
            details = figure.details | {"tools": ended.calls / ended.seconds}
            # In threads the bridge's own CPU time is that of the tools as well.
            return Figure(figure.value, figure.cpu_us if apart else None, details)

        short = shape.part(0.1)
        alone(0, short)
        meanwhile(0, short)
        yield Contest(ours=meanwhile, ruler=alone, notes=_computing_notes)


def _look_at(workers: Iterable[tuple[int, int]], server: servers.Server, *, apart: bool) -> None:
    """See that tools ran where they should, all at the same time.

    :raises BenchmarkError: they did not.
    """
    processes = {process for process, _ in workers}
    if apart:
        if server.pid in processes or len(processes) != BESIDE:
            raise BenchmarkError(f"{BESIDE} isolated tools ran in the processes {processes}")
    elif processes != {server.pid} or len(set(workers)) < BESIDE:
        raise BenchmarkError(f"{BESIDE} tools ran in the processes and threads {set(workers)}")


def _computing_notes(outcome: Outcome) -> Sequence[str]:
    median, calls, rate, tools = (
        _median(outcome, name) for name in ("median_us", "calls", "rate", "tools")
    )
    usual = _median(outcome, "median_us", ruler=True)
    return [
        (
            f"p50 {median:,.0f} µs against {usual:,.0f} µs; p99 of {calls:,.0f} sets a run, "
            f"{rate:,.0f}/s; meanwhile {tools:.1f} calls/s of {_COMPUTING:g} s of CPU time each"
        )
    ]
