"""The rows of the table: what is promised (reach), what is hoped for (dream), how to measure it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.client_rows import reading, through_client
from benchmarks.contest import Contest, Outcome, compete
from benchmarks.dspy_rows import BOUND, bound_call
from benchmarks.loads import SHAPES, Scale
from benchmarks.long_logs import Shelf
from benchmarks.long_rows import EVICTED_LIMIT, evicting, long_set, opening, rebuilding
from benchmarks.sides import (
    UPDATES,
    against_bare,
    against_etcd,
    against_plain,
    starting,
)
from benchmarks.tensors import against_echo
from benchmarks.tool_rows import BESIDE, STREAMS, calling, computing, streaming
from benchmarks.watch_idle import idling, remembering
from benchmarks.watch_logs import BEHIND, LESS_LONG, catching_up, resuming
from benchmarks.watch_rows import delaying, fanning, getting

__all__ = ["ROWS", "Row", "measure"]

_PACE = 500  # sets per second


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row: a comparison and its two marks, both as ratios of ours to the ruler's.

    A row without marks promises nothing. ``unit`` is that of both figures. ``lower`` says that
    a lower ratio is the better one, ``share`` that ratios are shown in per cent. ``most`` is how
    many pairs suffice, where the figure hardly scatters.
    """

    name: str
    title: str
    ruler: str
    unit: str
    reach: float | None = None
    dream: float | None = None
    lower: bool = False
    share: bool = False
    most: int | None = None
    contest: Callable[[Path, Scale, Shelf], AbstractContextManager[Contest]]

    def pairs(self, scale: Scale) -> int:
        """Return how many pairs are run at this scale."""
        return min(scale.pairs, self.most or scale.pairs)

    def mark(self, ratio: float) -> str:
        """Return "dream", "reach", "missed", or "no mark" where nothing is promised."""
        for mark, bound in (("dream", self.dream), ("reach", self.reach)):
            if bound is not None and (ratio <= bound if self.lower else ratio >= bound):
                return mark
        return "missed" if self.reach is not None else "no mark"


def measure(
    row: Row, scale: Scale, directory: Path, shelf: Shelf, advance: Callable[[], None]
) -> Outcome:
    """Measure a row in a directory of its own, which is gone afterwards.

    :raises NotMeasured: something that the row needs is not installed.
    :raises BenchmarkError: an answer was wrong, or something did not work or end.
    """
    place = Path(tempfile.mkdtemp(prefix=f"{row.name}-", dir=directory))
    try:
        with row.contest(place, scale, shelf) as contest:
            advance()
            return compete(contest, row.pairs(scale), advance)
    finally:
        shutil.rmtree(place, ignore_errors=True)


ROWS = (
    Row(
        name="set-32",
        title="durable SetVariable, 32 in flight",
        ruler="bare echo",
        unit="/s",
        reach=0.72,
        dream=0.85,
        share=True,
        contest=lambda place, scale, _: against_bare(place, scale.shape("set-32")),
    ),
    Row(
        name="set-8",
        title="durable SetVariable, 8 in flight",
        ruler="bare echo",
        unit="/s",
        reach=0.48,
        dream=0.60,
        share=True,
        contest=lambda place, scale, _: against_bare(place, scale.shape("set-8")),
    ),
    Row(
        name="set-1",
        title="durable SetVariable, one client, median latency",
        ruler="bare echo",
        unit="µs",
        reach=1.8,
        dream=1.5,
        lower=True,
        contest=lambda place, scale, _: against_bare(place, scale.shape("set-1"), latency=True),
    ),
    Row(
        name="get-32",
        title="GetVariable, 32 in flight",
        ruler="bare echo",
        unit="/s",
        reach=0.85,
        dream=0.95,
        share=True,
        contest=lambda place, scale, _: against_bare(place, scale.shape("get-32")),
    ),
    Row(
        name="batch-sqlite",
        title=f"SetVariables, atomic, {UPDATES} each, 8 in flight: updates",
        ruler="executemany of the same bytes, 64 a commit",
        unit="/s",
        reach=0.75,
        dream=1.20,
        share=True,
        contest=lambda place, scale, _: against_plain(
            place, scale.shape("batch"), rows=scale.rows()
        ),
    ),
    Row(
        name="batch-etcd",
        title=f"SetVariables, atomic, {UPDATES} each, 8 in flight: updates",
        ruler="puts into etcd, 128 in flight",
        unit="/s",
        reach=3.0,
        dream=5.0,
        contest=lambda place, scale, _: against_etcd(
            place, scale.shape("batch"), scale.shape("puts")
        ),
    ),
    Row(
        name="start",
        title="process start to GRPC_READY",
        ruler="python -c 'import grpc, numpy'",
        unit="s",
        reach=5.0,
        dream=2.5,
        lower=True,
        contest=lambda place, _scale, _: starting(place),
    ),
    Row(
        name="long-set",
        title="durable SetVariable, 32 in flight, on 1,000,000 events",
        ruler="on 1,000 events",
        unit="/s",
        reach=0.95,
        dream=0.99,
        share=True,
        contest=lambda place, scale, shelf: long_set(
            place, shelf, scale.events(), SHAPES["long-set"]
        ),
    ),
    Row(
        name="open",
        title="first GetVariable after a restart, less a Ping, on 1,000,000 events",
        ruler="on 1,000 events",
        unit="ms",
        reach=2.0,
        dream=1.2,
        lower=True,
        contest=lambda place, scale, shelf: opening(place, shelf, scale.events()),
    ),
    Row(
        name="rebuild",
        title="1,000,000 events folded without a snapshot, digests checked",
        ruler="reading and parsing the same rows",
        unit="s",
        reach=3.0,
        dream=2.0,
        lower=True,
        contest=lambda place, scale, shelf: rebuilding(place, shelf, scale.events()),
    ),
    Row(
        name="evicted",
        title="memory that an evicted session keeps",
        ruler=f"{EVICTED_LIMIT:,} bytes",
        unit="B",
        reach=1.0,
        dream=0.3,
        lower=True,
        most=3,
        contest=lambda place, scale, _: evicting(place, scale.evicted()),
    ),
    Row(
        name="watch-100",
        title="updates that reach 100 watchers, sets 32 in flight",
        ruler="a bare server's streams",
        unit="/s",
        reach=0.65,
        dream=0.85,
        share=True,
        contest=lambda place, scale, _: fanning(place, scale.shape("fan-out"), 100),
    ),
    Row(
        name="watch-1000",
        title="updates that reach 1,000 watchers, sets 32 in flight",
        ruler="a bare server's streams",
        unit="/s",
        reach=0.75,
        dream=0.90,
        share=True,
        contest=lambda place, scale, _: fanning(place, scale.shape("fan-out"), 1_000),
    ),
    Row(
        name="watch-delay",
        title=f"from a set to 100 watchers at {_PACE} sets/s, p99",
        ruler="p50 of a bare call",
        unit="µs",
        reach=15.0,
        dream=8.0,
        lower=True,
        contest=lambda place, scale, _: delaying(
            place, scale.shape("paced"), 100, _PACE, scale.shape("set-1")
        ),
    ),
    Row(
        name="watch-idle",
        title="durable SetVariable, 32 in flight, with 100 idle watchers",
        ruler="without",
        unit="/s",
        reach=0.97,
        dream=1.0,
        share=True,
        contest=lambda place, scale, _: idling(place, scale.shape("idle"), 100),
    ),
    Row(
        name="watch-get",
        title="GetVariable while 1,000 watchers are written to, p99",
        ruler="without",
        unit="µs",
        reach=20.0,
        dream=5.0,
        lower=True,
        contest=lambda place, scale, _: getting(
            place, SHAPES["endless"], scale.shape("gets"), 1_000
        ),
    ),
    Row(
        name="watch-memory",
        title="memory of an idle watcher, of 1,000",
        ruler="a bare server's stream",
        unit="B",
        reach=2.0,
        dream=1.2,
        lower=True,
        most=5,
        contest=lambda place, _scale, _: remembering(place, 1_000),
    ),
    Row(
        name="watch-resume",
        title=f"a watch resumed {BEHIND:,} events behind, on 1,000,000 events",
        ruler=f"on {LESS_LONG:,} events",
        unit="s",
        reach=1.5,
        dream=1.1,
        lower=True,
        contest=lambda place, scale, shelf: resuming(place, shelf, scale.events()),
    ),
    Row(
        name="watch-catchup",
        title="durable SetVariable, 32 in flight, while one watcher reads 1,000,000 events",
        ruler="without",
        unit="/s",
        reach=0.80,
        dream=0.95,
        share=True,
        contest=lambda place, scale, shelf: catching_up(
            place, shelf, scale.events(), scale.shape("catch-up")
        ),
    ),
    Row(
        name="tensor-64",
        title="a tensor of 64 MiB, set and got",
        ruler="bare echo",
        unit="MB/s",
        reach=0.45,
        dream=0.60,
        share=True,
        contest=lambda place, scale, _: against_echo(
            place, 64 if scale.size == 1 else 16, 4 if scale.size == 1 else 2
        ),
    ),
    Row(
        name="tool-async",
        title="ExecuteTool of an empty async tool, 32 in flight",
        ruler="bare echo",
        unit="/s",
        reach=0.40,
        share=True,
        contest=lambda place, scale, _: calling(place, scale.shape("tool-async")),
    ),
    Row(
        name="tool-blocking",
        title="ExecuteTool of an empty tool in a thread, 32 in flight",
        ruler="bare echo",
        unit="/s",
        reach=0.30,
        share=True,
        contest=lambda place, scale, _: calling(place, scale.shape("tool-blocking")),
    ),
    Row(
        name="tool-once",
        title="ExecuteTool of an empty async tool, with request ids, 32 in flight",
        ruler="bare echo",
        unit="/s",
        share=True,
        contest=lambda place, scale, _: calling(place, scale.shape("tool-once")),
    ),
    Row(
        name="tool-stream",
        title=f"chunks of a generator in a thread, {STREAMS} streams at once",
        ruler="a bare server's streams",
        unit="/s",
        reach=0.50,
        share=True,
        contest=lambda place, scale, _: streaming(place, scale.chunks()),
    ),
    Row(
        name="tool-isolated",
        title=f"durable SetVariable while {BESIDE} tools compute in processes, p99",
        ruler="without",
        unit="µs",
        reach=3.0,
        lower=True,
        contest=lambda place, scale, _: computing(place, scale.shape("beside-tools"), apart=True),
    ),
    Row(
        name="tool-threads",
        title=f"durable SetVariable while {BESIDE} tools compute in threads, p99",
        ruler="without",
        unit="µs",
        lower=True,
        most=3,
        contest=lambda place, scale, _: computing(
            place, scale.shape("beside-threads"), apart=False
        ),
    ),
    Row(
        name="client-sync",
        title="CPU time of a set or get through Client",
        ruler="the stubs that it is made of",
        unit="µs",
        reach=1.3,
        lower=True,
        contest=lambda place, scale, _: through_client(place, scale.calls(), asynchronous=False),
    ),
    Row(
        name="client-async",
        title="CPU time of a set or get through AsyncClient",
        ruler="the stubs that it is made of",
        unit="µs",
        reach=1.3,
        lower=True,
        contest=lambda place, scale, _: through_client(place, scale.calls(), asynchronous=True),
    ),
    Row(
        name="client-watch",
        title="updates read by a Watch from the beginning of a log",
        ruler="the raw stream",
        unit="/s",
        reach=0.70,
        share=True,
        contest=lambda place, scale, shelf: reading(
            place, shelf, scale.watched(), asynchronous=False
        ),
    ),
    Row(
        name="client-watch-async",
        title="updates read by an AsyncWatch from the beginning of a log",
        ruler="the raw stream",
        unit="/s",
        reach=0.70,
        share=True,
        contest=lambda place, scale, shelf: reading(
            place, shelf, scale.watched(), asynchronous=True
        ),
    ),
    Row(
        name="dspy-bound",
        title=f"a call of a DSPy program with {len(BOUND)} parts bound to variables",
        ruler="with fixed ones",
        unit="µs",
        reach=1.3,
        lower=True,
        contest=lambda _place, scale, _shelf: bound_call(scale),
    ),
)
