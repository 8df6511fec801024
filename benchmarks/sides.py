"""The two sides of each kind of row: what runs, on which process, and what is compared."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

from benchmarks import servers
from benchmarks.client import read_back, register
from benchmarks.contest import Contest, Figure
from benchmarks.driver import drive, run_json
from benchmarks.errors import BenchmarkError, NotMeasured
from benchmarks.load import Result, Spec
from benchmarks.syncs import count, tracing
from benchmarks.workloads import BatchSet, Set

__all__ = [
    "UPDATES",
    "Bridge",
    "Shape",
    "against_bare",
    "against_etcd",
    "against_plain",
    "figure_of",
    "starting",
]

UPDATES = 100  # per batch
_IMPORTS = (sys.executable, "-c", "import grpc, numpy")
_START_LIMIT = 30.0  # seconds
_BYTES = 'SELECT sum(length(header) + length("values") + length(digest)) FROM records'


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How much load: ``calls`` under the clock after ``warmup``, on a closed loop."""

    work: str
    in_flight: int
    connections: int
    calls: int
    seconds: float = 0.0
    """If there are any, a run ends after these; ``calls`` is the most then."""
    options: dict[str, int]

    def spec(self, server: servers.Server, number: int, *, constant: str | None = None) -> Spec:
        """Return the run of a pair; the same number gives the same requests."""
        warmup = max(self.in_flight, self.calls // 20)
        return Spec(
            host="127.0.0.1",
            port=server.port,
            pid=server.pid,
            work=self.work,
            in_flight=self.in_flight,
            connections=self.connections,
            calls=self.calls,
            warmup=warmup,
            seconds=self.seconds,
            first=number * (self.calls + warmup),
            constant=constant,
            options=self.options,
        )

    def part(self, share: float) -> Shape:
        """Return the same load with fewer calls."""
        calls = max(self.in_flight * 4, int(self.calls * share))
        return replace(self, calls=calls, seconds=self.seconds * share)


class Driven(Protocol):
    """What a run says that it has changed."""

    @property
    def versions(self) -> dict[str, int]: ...
    @property
    def values(self) -> dict[str, float]: ...


T = TypeVar("T", bound=Driven)


class Bridge:
    """The bridge under load, with the state that its replies are checked against."""

    def __init__(
        self, server: servers.Server, shape: Shape, versions: Mapping[str, int] | None = None
    ) -> None:
        """Register the variables of a workload with a server that is ready.

        With ``versions`` its log holds them already.
        """
        self.server = server
        self._shape = shape
        if versions is None:
            work = BatchSet if shape.work == "batch" else Set
            kind = work(**shape.options)
            versions = register(server.port, kind.sessions, kind.names)
        self.versions = dict(versions)

    def run(self, number: int, shape: Shape | None = None) -> Result:
        """Drive one run and check it: every reply, then the state by reading back."""
        return self.through(drive, number, shape)

    def through(self, way: Callable[[Spec], T], number: int, shape: Shape | None = None) -> T:
        """Drive one run in another way, and check it as well."""
        try:
            driven = way(self.spec(number, shape))
        except BenchmarkError as error:
            raise error if self.server.alive() else self.server.fault("died") from error
        self.settle(driven)
        return driven

    def spec(self, number: int, shape: Shape | None = None) -> Spec:
        """Return a run that is checked against what the server holds now."""
        spec = (shape or self._shape).spec(self.server, number)
        return replace(spec, versions=self.versions)

    def settle(self, driven: Driven) -> None:
        """Take in what a run has changed, and see that the server holds it."""
        self.versions |= driven.versions
        read_back(self.server.port, self.versions, driven.values)


@contextmanager
def against_bare(directory: Path, shape: Shape, *, latency: bool = False) -> Iterator[Contest]:
    """Set up the bridge against the bare server, which returns a reply of the bridge's own.

    Calls per second are compared, or median latencies in microseconds.
    """

    def figure(result: Result) -> Figure:
        return figure_of(result, result.median_us if latency else result.rate)

    with servers.bridge(directory) as server:
        ours = Bridge(server, shape)
        reply = ours.run(0, shape.part(0.3)).last_reply
        with servers.bare(directory, bytes.fromhex(reply)) as bare:

            def ruler(number: int) -> Figure:
                return figure(drive(shape.spec(bare, number, constant=reply)))

            ruler(0)
            yield Contest(
                ours=lambda number: figure(ours.run(number)),
                ruler=ruler,
                syncs=(lambda: _syncs(directory, shape)) if shape.work == "set" else None,
            )


@contextmanager
def against_plain(directory: Path, shape: Shape, *, rows: int) -> Iterator[Contest]:
    """Set up batch sets against ``executemany`` of as many bytes; updates per second."""
    size = _bytes_per_update(directory, shape.part(0.1))
    path = directory / "plain.db"

    def ruler(_number: int) -> Figure:
        done = run_json("benchmarks.plain", str(path), f"--rows={rows}", f"--size={size}")
        if (done["rows"], done["bytes"]) != (rows, rows * size):
            raise BenchmarkError("plain SQLite does not hold the rows that were written")
        return Figure(rows / done["seconds"], done["cpu_seconds"] / rows * 1e6, done)

    with servers.bridge(directory) as server:
        ours = Bridge(server, shape)
        ours.run(0, shape.part(0.3))
        ruler(0)
        yield Contest(
            ours=lambda number: _updates(ours.run(number)),
            ruler=ruler,
            syncs=lambda: _syncs(directory, shape),
        )


@contextmanager
def against_etcd(directory: Path, shape: Shape, puts: Shape) -> Iterator[Contest]:
    """Set up batch sets against puts into etcd; updates per second."""
    with servers.etcd(directory) as etcd, servers.bridge(directory) as server:
        ours = Bridge(server, shape)
        ours.run(0, shape.part(0.3))

        def ruler(number: int) -> Figure:
            result = drive(puts.spec(etcd, number))
            return figure_of(result, result.rate)

        ruler(0)
        yield Contest(ours=lambda number: _updates(ours.run(number)), ruler=ruler)


@contextmanager
def starting(directory: Path) -> Iterator[Contest]:
    """Set up the bridge's start on an empty log against importing its libraries; seconds."""

    def ours(_number: int) -> Figure:
        with (
            tempfile.TemporaryDirectory(dir=directory) as place,
            servers.bridge(Path(place)) as server,
        ):
            return Figure(server.seconds)

    def ruler(_number: int) -> Figure:
        started = time.perf_counter()
        try:
            subprocess.run(_IMPORTS, check=True, capture_output=True, timeout=_START_LIMIT)
        except subprocess.SubprocessError as error:
            raise BenchmarkError(f"importing grpc and numpy failed: {error}") from error
        return Figure(time.perf_counter() - started)

    ours(0)
    ruler(0)
    yield Contest(ours=ours, ruler=ruler)


def figure_of(result: Result, value: float, updates: int = 1) -> Figure:
    """Return what is kept of a run; its CPU time is divided by ``updates`` a call."""
    details = asdict(result)
    for long in ("last_reply", "versions", "values"):
        del details[long]
    return Figure(value, result.server_cpu_us / updates, details)


def _updates(result: Result) -> Figure:
    return figure_of(result, result.rate * UPDATES, UPDATES)


def _bytes_per_update(directory: Path, shape: Shape) -> int:
    """Return how many bytes the bridge's log holds for one update of a batch.

    They are counted in the file while no bridge has it open, before and after a run.
    """
    with tempfile.TemporaryDirectory(dir=directory) as place:
        with servers.bridge(Path(place)) as server:
            bridge = Bridge(server, shape)
        before = _stored(Path(place))
        with servers.bridge(Path(place)) as server:
            bridge.server = server
            bridge.run(0)
        spec = shape.spec(server, 0)
        return round((_stored(Path(place)) - before) / (spec.calls + spec.warmup) / UPDATES)


def _stored(directory: Path) -> int:
    """Return the bytes of all records of a log: header, values and digest."""
    try:
        with closing(sqlite3.connect(servers.log_file(directory))) as store:
            return int(store.execute(_BYTES).fetchone()[0])
    except sqlite3.Error as error:
        raise BenchmarkError(f"the bridge's log cannot be read: {error}") from error


def _syncs(directory: Path, shape: Shape) -> float | str:
    """Return the syncs per set of a short run on a bridge of its own, or why there are none."""
    with tempfile.TemporaryDirectory(dir=directory) as name, ExitStack() as stack:
        place = Path(name)
        output = place / "syncs"
        try:
            server = stack.enter_context(servers.bridge(place, tracing(output)))
        except NotMeasured as reason:
            return str(reason)
        except BenchmarkError as error:
            return f"the bridge cannot be traced here: {error}"
        short = shape.part(0.2)
        bridge = Bridge(server, short)
        since = time.time()
        bridge.run(0)
        until = time.time()
        stack.close()
        spec = short.spec(server, 0)
        sets = (spec.calls + spec.warmup) * (UPDATES if shape.work == "batch" else 1)
        return count(output, since, until) / sets
