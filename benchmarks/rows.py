"""The rows of the table: what is promised (reach), what is hoped for (dream), how to measure it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contest import Contest, Outcome, compete
from benchmarks.long_logs import VARIABLES, Shelf
from benchmarks.long_rows import EVICTED_LIMIT, evicting, long_set, opening, rebuilding
from benchmarks.sides import (
    UPDATES,
    Shape,
    against_bare,
    against_etcd,
    against_plain,
    starting,
)
from benchmarks.tensors import against_echo

__all__ = ["ROWS", "SHAPES", "Row", "Scale", "measure"]

_VARIABLES = {"sessions": 4, "variables": 8}
_BATCHES = {"sessions": 4, "variables": UPDATES}
# As many keys and about as many bytes a put as a batch has names and bytes an update.
_PUTS = {"keys": 4 * UPDATES, "size": 64}
_LONG = {"sessions": 1, "variables": VARIABLES, "ids": 1}
_EVENTS = 1_000_000  # of a long session
_EVICTED = 10_000  # sessions
_ROWS = 200_000  # rows of plain SQLite: about a second

# Four connections share what is in flight, as several clients would. Every run takes one
# or two seconds on a machine of two cores.
SHAPES = {
    "set-32": Shape(work="set", in_flight=32, connections=4, calls=8_000, options=_VARIABLES),
    "set-8": Shape(work="set", in_flight=8, connections=4, calls=6_000, options=_VARIABLES),
    "set-1": Shape(work="set", in_flight=1, connections=1, calls=2_000, options=_VARIABLES),
    "get-32": Shape(work="get", in_flight=32, connections=4, calls=8_000, options=_VARIABLES),
    # Always as long: a run must meet two snapshots of each 10,000 events, see ``long_set``.
    "long-set": Shape(work="set", in_flight=32, connections=4, calls=20_000, options=_LONG),
    "batch": Shape(work="batch", in_flight=8, connections=4, calls=1_200, options=_BATCHES),
    "puts": Shape(work="put", in_flight=128, connections=4, calls=30_000, options=_PUTS),
}


@dataclass(frozen=True, slots=True)
class Scale:
    """How thoroughly to measure: the number of pairs, and the part of each run's length.

    ``size`` is the part of the sizes of what rows with long logs, many sessions and large
    values work on.
    """

    pairs: int = 10
    share: float = 1.0
    size: float = 1.0

    def shape(self, name: str) -> Shape:
        """Return a shape at this scale."""
        return SHAPES[name].part(self.share)

    def rows(self) -> int:
        """Return how many rows plain SQLite writes at this scale."""
        return int(_ROWS * self.share)

    def events(self) -> int:
        """Return how many events a long session has at this scale."""
        return int(_EVENTS * self.size)

    def evicted(self) -> int:
        """Return how many sessions are evicted at this scale."""
        return int(_EVICTED * self.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row: a comparison and its two marks, both as ratios of ours to the ruler's.

    ``unit`` is that of both figures. ``lower`` says that a lower ratio is the better one,
    ``share`` that ratios are shown in per cent. ``most`` is how many pairs suffice, where the
    figure hardly scatters.
    """

    name: str
    title: str
    ruler: str
    unit: str
    reach: float
    dream: float
    lower: bool = False
    share: bool = False
    most: int | None = None
    contest: Callable[[Path, Scale, Shelf], AbstractContextManager[Contest]]

    def pairs(self, scale: Scale) -> int:
        """Return how many pairs are run at this scale."""
        return min(scale.pairs, self.most or scale.pairs)

    def mark(self, ratio: float) -> str:
        """Return "dream", "reach" or "missed"."""
        for mark, bound in (("dream", self.dream), ("reach", self.reach)):
            if ratio <= bound if self.lower else ratio >= bound:
                return mark
        return "missed"


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
)
