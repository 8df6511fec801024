"""The rows of the table: what is promised (reach), what is hoped for (dream), how to measure it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contest import Contest, Outcome, compete
from benchmarks.sides import (
    UPDATES,
    Shape,
    against_bare,
    against_etcd,
    against_plain,
    starting,
)

__all__ = ["ROWS", "SHAPES", "Row", "Scale", "measure"]

_VARIABLES = {"sessions": 4, "variables": 8}
_BATCHES = {"sessions": 4, "variables": UPDATES}
# As many keys and about as many bytes a put as a batch has names and bytes an update.
_PUTS = {"keys": 4 * UPDATES, "size": 64}
_ROWS = 200_000  # rows of plain SQLite: about a second

# Four connections share what is in flight, as several clients would. Every run takes one
# or two seconds on a machine of two cores.
SHAPES = {
    "set-32": Shape(work="set", in_flight=32, connections=4, calls=8_000, options=_VARIABLES),
    "set-8": Shape(work="set", in_flight=8, connections=4, calls=6_000, options=_VARIABLES),
    "set-1": Shape(work="set", in_flight=1, connections=1, calls=2_000, options=_VARIABLES),
    "get-32": Shape(work="get", in_flight=32, connections=4, calls=8_000, options=_VARIABLES),
    "batch": Shape(work="batch", in_flight=8, connections=4, calls=1_200, options=_BATCHES),
    "puts": Shape(work="put", in_flight=128, connections=4, calls=30_000, options=_PUTS),
}


@dataclass(frozen=True, slots=True)
class Scale:
    """How thoroughly to measure: the number of pairs, and the part of each run's length."""

    pairs: int = 10
    share: float = 1.0

    def shape(self, name: str) -> Shape:
        """Return a shape at this scale."""
        return SHAPES[name].part(self.share)

    def rows(self) -> int:
        """Return how many rows plain SQLite writes at this scale."""
        return int(_ROWS * self.share)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row: a comparison and its two marks, both as ratios of ours to the ruler's.

    ``unit`` is that of both figures. ``lower`` says that a lower ratio is the better one,
    ``share`` that ratios are shown in per cent.
    """

    name: str
    title: str
    ruler: str
    unit: str
    reach: float
    dream: float
    lower: bool = False
    share: bool = False
    contest: Callable[[Path, Scale], AbstractContextManager[Contest]]

    def mark(self, ratio: float) -> str:
        """Return "dream", "reach" or "missed"."""
        for mark, bound in (("dream", self.dream), ("reach", self.reach)):
            if ratio <= bound if self.lower else ratio >= bound:
                return mark
        return "missed"


def measure(row: Row, scale: Scale, directory: Path, advance: Callable[[], None]) -> Outcome:
    """Measure a row in a directory of its own, which is gone afterwards.

    :raises NotMeasured: something that the row needs is not installed.
    :raises BenchmarkError: an answer was wrong, or something did not work or end.
    """
    place = Path(tempfile.mkdtemp(prefix=f"{row.name}-", dir=directory))
    try:
        with row.contest(place, scale) as contest:
            advance()
            return compete(contest, scale.pairs, advance)
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
        contest=lambda place, scale: against_bare(place, scale.shape("set-32")),
    ),
    Row(
        name="set-8",
        title="durable SetVariable, 8 in flight",
        ruler="bare echo",
        unit="/s",
        reach=0.48,
        dream=0.60,
        share=True,
        contest=lambda place, scale: against_bare(place, scale.shape("set-8")),
    ),
    Row(
        name="set-1",
        title="durable SetVariable, one client, median latency",
        ruler="bare echo",
        unit="µs",
        reach=1.8,
        dream=1.5,
        lower=True,
        contest=lambda place, scale: against_bare(place, scale.shape("set-1"), latency=True),
    ),
    Row(
        name="get-32",
        title="GetVariable, 32 in flight",
        ruler="bare echo",
        unit="/s",
        reach=0.85,
        dream=0.95,
        share=True,
        contest=lambda place, scale: against_bare(place, scale.shape("get-32")),
    ),
    Row(
        name="batch-sqlite",
        title=f"SetVariables, atomic, {UPDATES} each, 8 in flight: updates",
        ruler="executemany of the same bytes, 64 a commit",
        unit="/s",
        reach=0.75,
        dream=1.20,
        share=True,
        contest=lambda place, scale: against_plain(place, scale.shape("batch"), rows=scale.rows()),
    ),
    Row(
        name="batch-etcd",
        title=f"SetVariables, atomic, {UPDATES} each, 8 in flight: updates",
        ruler="puts into etcd, 128 in flight",
        unit="/s",
        reach=3.0,
        dream=5.0,
        contest=lambda place, scale: against_etcd(place, scale.shape("batch"), scale.shape("puts")),
    ),
    Row(
        name="start",
        title="process start to GRPC_READY",
        ruler="python -c 'import grpc, numpy'",
        unit="s",
        reach=5.0,
        dream=2.5,
        lower=True,
        contest=lambda place, _scale: starting(place),
    ),
)
