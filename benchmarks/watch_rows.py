"""The rows about many watchers that are written to: what reaches them, how soon, who waits."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import servers
from benchmarks.contest import Contest, Figure, Outcome
from benchmarks.driver import drive, driving, pace
from benchmarks.errors import BenchmarkError
from benchmarks.load import Result
from benchmarks.sides import Bridge, Shape, figure_of
from benchmarks.watchers import Report, Watchers, bare_streams, watch

__all__ = ["delaying", "fanning", "getting"]

_SESSION = "bench-0"
_FLAT_RUNS = 3
_SAMPLED = 50  # of a thousand watchers in runs of any length
_BEGIN_LIMIT = 30.0  # seconds until a thousand watchers have got their first update


@contextmanager
def fanning(directory: Path, shape: Shape, count: int) -> Iterator[Contest]:
    """Set up what reaches ``count`` watchers against what reaches streams of a bare server.

    Messages per second, while the same generator sets or calls as fast as it can.
    """
    with ExitStack() as stack:
        server = stack.enter_context(servers.bridge(directory))
        bridge = Bridge(server, shape)
        heads = _Heads()

        def ours(number: int) -> Figure:
            with Watchers(watch(server, _SESSION, count), directory) as watchers:
                result = bridge.run(number)
                report = watchers.finish()
            server.rest()
            heads.check(report, result.made)
            return _delivered(result, report)

        first = ours(0).details
        reply, update = (bytes.fromhex(first[name]) for name in ("reply", "update"))
        bare = stack.enter_context(servers.fan_out(directory, reply, update))

        def ruler(number: int) -> Figure:
            streams = bare_streams(bare, "Watch", count, update)
            with Watchers(streams, directory) as watchers:
                result = drive(shape.spec(bare, number, constant=reply.hex()))
                report = watchers.finish()
            bare.rest()
            if report.most > result.made:
                raise BenchmarkError("the bare server sent more than it was asked to")
            return _delivered(result, report)

        def flat() -> float:
            with Watchers(bare_streams(bare, "Flat", count, update), directory) as watchers:
                time.sleep(shape.seconds / 4)
                begun = time.perf_counter()
                time.sleep(shape.seconds)
                ended = time.perf_counter()
                report = watchers.finish()
            bare.rest()
            return report.within(begun, ended) / (ended - begun)

        def notes(outcome: Outcome) -> Sequence[str]:
            pairs = len(outcome.pairs)
            rulers = [flat() for _ in range(_FLAT_RUNS)]
            ratios = [ours(pairs + 1 + n).value / rate for n, rate in enumerate(rulers)]
            return [
                *_fan_out_notes(outcome, len(update)),
                (
                    f"{statistics.median(ratios):.0%} ({min(ratios):.0%} … {max(ratios):.0%}) of a "
                    f"bare server that writes to {count:,} streams without being called: "
                    f"{statistics.median(rulers):,.0f}/s"
                ),
            ]

        ruler(0)
        yield Contest(ours=ours, ruler=ruler, notes=notes)


class _Heads:
    """Sees that all that was set between the beginnings of two runs is in the log, and no more."""

    def __init__(self) -> None:
        self._next: int | None = None

    def check(self, report: Report, made: int) -> None:
        """``made`` sets were acknowledged while these watchers were open."""
        if self._next is not None and report.start != self._next:
            raise BenchmarkError(
                f"watches began after offset {report.start}, but by what was acknowledged the "
                f"log ends with {self._next}"
            )
        self._next = report.start + made
        if report.greatest > self._next:
            raise BenchmarkError(f"a watcher got offset {report.greatest}: nobody wrote it")


def _delivered(result: Result, report: Report) -> Figure:
    """Return the messages a second under the writer's clock, with CPU time for each."""
    messages = report.within(result.started, result.ended)
    if not messages:
        raise BenchmarkError("nothing reached the watchers")
    figure = figure_of(result, messages / result.seconds)
    details = figure.details | {
        "writer_share": result.client_share,
        "client_share": max(result.client_share, report.share(result.started, result.ended)),
        "reply": result.last_reply,
        "update": report.last,
    }
    return Figure(figure.value, result.server_cpu_us * result.calls / messages, details)


def _median(outcome: Outcome, name: str, *, ruler: bool = False) -> float:
    found = outcome.median(lambda pair: (pair.ruler if ruler else pair.ours).details[name])
    return found or 0.0


def _fan_out_notes(outcome: Outcome, size: int) -> Sequence[str]:
    rates = [_median(outcome, "rate", ruler=ruler) for ruler in (False, True)]
    return [
        (
            f"updates of {size} bytes; CPU time is per message; meanwhile "
            f"{rates[0]:,.0f} sets/s and {rates[1]:,.0f} bare calls/s"
        )
    ]


@contextmanager
def delaying(
    directory: Path, shape: Shape, count: int, rate: float, calls: Shape
) -> Iterator[Contest]:
    """Set up the delay from a set to ``count`` watchers against a bare call; microseconds.

    The 99th percentile of all deliveries against the median call (``calls``); ``rate`` sets a
    second are sent whether or not earlier ones were answered.
    """
    with servers.bridge(directory) as server, servers.bare(directory, b"\x08\x01") as bare:
        bridge = Bridge(server, shape)
        heads = _Heads()

        def ours(number: int) -> Figure:
            with Watchers(watch(server, _SESSION, count), directory) as watchers:
                paced = bridge.through(lambda spec: pace(spec, rate), number)
                # The first message is ``caught_up``.
                report = watchers.finish(1 + paced.made, sent=paced.sent)
            server.rest()
            heads.check(report, paced.made)
            delays = dict(report.delays)
            if delays["count"] != count * len(paced.sent):
                raise BenchmarkError(f"{delays['count']} deliveries were timed: not all")
            del delays["each"]
            return Figure(delays["p99"], details=delays | {"late_us": paced.late_us})

        def ruler(number: int) -> Figure:
            result = drive(calls.spec(bare, number, constant="0801"))
            return figure_of(result, result.median_us)

        def notes(outcome: Outcome) -> Sequence[str]:
            p50, most, late = (_median(outcome, name) for name in ("p50", "most", "late_us"))
            ratios = [pair.ours.details["p50"] / pair.ruler.value for pair in outcome.pairs]
            return [
                (
                    f"{rate:g} sets/s, p99 of all deliveries; p50 {p50:,.0f} µs "
                    f"({statistics.median(ratios):.1f} ×), the longest {most:,.0f} µs; a set "
                    f"was sent at most {late:,.0f} µs after it was due"
                )
            ]

        ours(0)
        ruler(0)
        yield Contest(ours=ours, ruler=ruler, notes=notes)


@contextmanager
def getting(directory: Path, shape: Shape, gets: Shape, count: int) -> Iterator[Contest]:
    """Set up gets while ``count`` watchers are written to against gets alone; µs, p99.

    ``shape`` sets as fast as it can for as long as there are gets, which are about another
    session.
    """
    with servers.bridge(directory) as server:
        bridge = Bridge(server, shape)
        reader = Bridge(server, gets)
        heads = _Heads()

        def alone(number: int) -> Figure:
            result = reader.run(number)
            return Figure(result.p99_us, details=asdict(result) | {"versions": {}, "values": {}})

        def meanwhile(number: int) -> Figure:
            streams = watch(server, _SESSION, count, sampled=_SAMPLED)
            with Watchers(streams, directory) as watchers:
                with driving(bridge.spec(number)) as finish:
                    _wait_for(lambda: watchers.count() > 2 * count)
                    result = reader.run(number)
                    written = finish()
                report = watchers.finish()
            bridge.settle(written)
            server.rest()
            heads.check(report, written.made)
            if written.ended < result.ended:
                raise BenchmarkError("the writer had no more sets before the last get")
            details: dict[str, Any] = {
                "median_us": result.median_us,
                "seconds": result.seconds,
                "sets": written.rate,
                "delivered": report.within(result.started, result.ended) / result.seconds,
                "client_share": report.share(result.started, result.ended),
            }
            return Figure(result.p99_us, details=details)

        def notes(outcome: Outcome) -> Sequence[str]:
            median, sets, delivered = (
                _median(outcome, name) for name in ("median_us", "sets", "delivered")
            )
            usual = _median(outcome, "median_us", ruler=True)
            return [
                (
                    f"p50 {median:,.0f} µs against {usual:,.0f} µs; meanwhile "
                    f"{sets:,.0f} sets/s and {delivered:,.0f} updates/s to {count:,} watchers"
                )
            ]

        alone(0)
        meanwhile(0)
        yield Contest(ours=meanwhile, ruler=alone, notes=notes)


def _wait_for(reached: Callable[[], bool]) -> None:
    limit = time.monotonic() + _BEGIN_LIMIT
    while not reached():
        if time.monotonic() > limit:
            raise BenchmarkError(f"watchers got no update within {_BEGIN_LIMIT:g} s")
        time.sleep(0.02)
