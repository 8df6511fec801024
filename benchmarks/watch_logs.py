"""The rows about watchers that are behind: resuming in a long log, and all of a long log."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks import servers
from benchmarks.client import read_back, set_once
from benchmarks.contest import Contest, Figure, Outcome
from benchmarks.driver import driving
from benchmarks.errors import BenchmarkError
from benchmarks.load import Result
from benchmarks.long_logs import SHORT, VARIABLES, Prepared, Shelf
from benchmarks.proc import bytes_read, cpu_of_threads
from benchmarks.sides import Bridge, Shape, figure_of
from benchmarks.streams import Streams
from benchmarks.watchers import Report, Watchers, watch_after

__all__ = ["BEHIND", "LESS_LONG", "catching_up", "resuming"]

BEHIND = 10_000
"""Events that a watcher resumes behind."""
LESS_LONG = 20_000
"""Events of the session that a long one is measured against."""

_OTHERS = 5  # short sessions beside a long one, as other rows have them
_BEGINNING = 1 + VARIABLES  # events before the first set: the session, its variables
_PROBE = f"learning_rate_{VARIABLES - 1:03}"
"""A variable that the writers of ``catching_up`` leave alone."""
_AT_LENGTH = 60.0  # seconds that a watcher is to need until it is live
_LIVE_LIMIT = 240.0
_IN_A_ROW = 3  # updates in time that show a watcher to be live
_LIVE = 1.0  # seconds within which a live watcher has an update
_RESUME_LIMIT = 60.0
_PER_EVENT = 100  # bytes of the log that reading one event takes at least


@contextmanager
def resuming(directory: Path, shelf: Shelf, events: int) -> Iterator[Contest]:
    """Set up resuming 10,000 events behind in a long session against a shorter one; seconds.

    Each run has a bridge of its own, or it would find in memory what an earlier one read.
    """
    long = shelf.log(events, *[SHORT] * _OTHERS).copied(directory / "long")
    short = shelf.log(LESS_LONG, SHORT).copied(directory / "short")

    def ours(_number: int) -> Figure:
        return _resumed(long, events)

    def ruler(_number: int) -> Figure:
        return _resumed(short, LESS_LONG)

    # The first of all reads the files from the disk; later ones find them in memory.
    ours(0)
    ruler(0)
    yield Contest(
        ours=ours,
        ruler=ruler,
        notes=lambda _outcome: [
            (
                f"sessions of {events:,} and of {LESS_LONG:,} events, each with {VARIABLES} "
                "variables; CPU time is per event"
            )
        ],
    )


def _resumed(log: Prepared, head: int) -> Figure:
    """Start a bridge and resume a watch of the first session, which has ``head`` events."""
    with servers.bridge(log.file.parent) as server:
        # What a process does once only is not the watch's: the sessions are opened, and
        # another one is watched before.
        for session in log.sessions[:2]:
            key = f"{session}/{_PROBE}"
            read_back(server.port, log.versions, {key: log.values[key]})
        _read(server, log, log.sessions[1], SHORT, SHORT - _BEGINNING)
        read, cpu = bytes_read(server.pid), cpu_of_threads(server.pid)
        report = _read(server, log, log.sessions[0], head, BEHIND)
        read, cpu = bytes_read(server.pid) - read, cpu_of_threads(server.pid) - cpu
    if read < BEHIND * _PER_EVENT:
        raise BenchmarkError(f"only {read:,} bytes were read: the events were in memory already")
    return Figure(report.reached - report.requested, cpu / BEHIND * 1e6, {"bytes_read": read})


def _read(server: servers.Server, log: Prepared, session: str, head: int, count: int) -> Report:
    """Watch a session from ``count`` events before its end, and check that all of them come."""
    streams = watch_after(server, session, log.epochs[session], head - count, head - count + 1)
    with Watchers(streams, log.file.parent) as watchers:
        report = watchers.finish(count + 1, limit=_RESUME_LIMIT)  # and ``caught_up``
    server.rest()
    if (report.least, report.greatest) != (head, head):
        raise BenchmarkError(f"the resumed watch ended at {report.greatest} instead of {head}")
    return report


@contextmanager
def catching_up(directory: Path, shelf: Shelf, events: int, shape: Shape) -> Iterator[Contest]:
    """Set up writers while one watcher reads a whole long log against writers alone; calls/s.

    A run is some seconds of it; the note has one catch-up from the beginning to the end.
    """
    log = shelf.log(events, *[SHORT] * _OTHERS).copied(directory / "catch-up")
    with servers.bridge(log.file.parent) as server:
        bridge = Bridge(server, shape, log.versions)

        def alone(number: int) -> Figure:
            result = bridge.run(2 * number)
            return figure_of(result, result.rate)

        def beside(number: int) -> Figure:
            with Watchers(_from(server, log, 0), directory) as watchers:
                result = bridge.run(2 * number + 1)
                report = watchers.finish()
            server.rest()
            if report.within(0, result.ended) >= events - _BEGINNING:
                raise BenchmarkError("the watcher was at the end before the writers were")
            figure = figure_of(result, result.rate)
            rate = report.within(result.started, result.ended) / result.seconds
            return replace(figure, details=figure.details | {"events": rate})

        def notes(outcome: Outcome) -> Sequence[str]:
            rate = outcome.median(lambda pair: pair.ours.details["events"]) or 1.0
            writes = statistics.median(pair.ours.value for pair in outcome.pairs)
            # A quarter of the sets are in the session that is watched.
            gains = max(rate - writes / shape.options["sessions"], rate / 10)
            after = max(0, events - int(gains * _AT_LENGTH))
            # Twice as many as should be needed.
            long = replace(shape, calls=int(writes * (_AT_LENGTH + 15) * 2), seconds=_LIVE_LIMIT)
            return [
                f"meanwhile the watcher gets {rate:,.0f} events/s",
                _until_live(bridge, log, range(after, events), long, directory),
                f"at that pace {events:,} events take {events / gains:.0f} s",
            ]

        alone(0)
        beside(0)
        yield Contest(ours=beside, ruler=alone, notes=notes)


def _from(server: servers.Server, log: Prepared, after: int) -> Streams:
    session = log.sessions[0]
    return watch_after(server, session, log.epochs[session], after, max(after, _BEGINNING) + 1)


def _until_live(bridge: Bridge, log: Prepared, behind: range, shape: Shape, directory: Path) -> str:
    """Watch a long session until the watcher is live, beside writers.

    ``behind`` are the offsets after which it begins and where the log ended before the writers.
    """
    session = log.sessions[0]
    after = max(behind.start, _BEGINNING)
    sent: dict[int, int] = {}
    with Watchers(_from(bridge.server, log, behind.start), directory) as watchers:
        with driving(bridge.spec(1_000, shape)) as finish:
            limit = time.monotonic() + _LIVE_LIMIT
            in_time: list[int] = []  # when sets were sent that came within a second, in a row
            while len(in_time) < _IN_A_ROW:
                if time.monotonic() > limit:
                    raise BenchmarkError(f"a watcher was not live after {_LIVE_LIMIT:g} s")
                offset, moment = set_once(bridge.server.port, session, _PROBE, len(sent) / 1_000)
                sent[offset] = moment
                in_time = [*in_time, moment] if _reaches(watchers, offset - after) else []
            written: Result = finish()
        bridge.settle(written)
        ours = [key for key in log.versions if key.startswith(f"{session}/")]
        changed = sum(bridge.versions[key] - log.versions[key] for key in ours)
        head = behind.stop + changed + len(sent)
        report = watchers.finish(1 + head - after, limit=_RESUME_LIMIT, sent=sent)
    if report.greatest != head:
        raise BenchmarkError(f"the watcher ended at {report.greatest} instead of {head}")
    took: Sequence[float] = report.delays["each"][-_IN_A_ROW:]
    if max(took) > _LIVE * 1e6:
        raise BenchmarkError(f"a live watcher got an update after {max(took):,.0f} µs")
    live = in_time[0] / 1e9
    beside = "" if written.ended > live else ", which ended before"
    return (
        f"a watcher from offset {behind.start:,} of {behind.stop:,} is live after "
        f"{live - report.requested:.1f} s, beside {written.rate:,.0f} sets/s{beside}; an "
        f"update then takes {took[-1] / 1e3:.1f} ms"
    )


def _reaches(watchers: Watchers, updates: int) -> bool:
    """Whether a watcher gets so many updates within the time that a live one may need."""
    limit = time.monotonic() + _LIVE
    while time.monotonic() < limit:
        if watchers.count() >= updates:
            return True
        time.sleep(0.02)
    return False
