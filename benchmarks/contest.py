"""Two measured by turns: pairs of runs whose order alternates, and the ratio of each pair."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

__all__ = ["Contest", "Figure", "Outcome", "Pair", "compete"]


@dataclass(frozen=True, slots=True)
class Figure:
    """What one run measured: the figure that the row compares, and all the rest."""

    value: float
    cpu_us: float | None = None  # the server's, per request (in batches: per update)
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Contest:
    """The two sides of a row, ready to run. The argument numbers the pair, from 1.

    ``syncs``, where there is something to count, makes a short run of its own; ``notes``
    gives lines to be read below the table, when all pairs are done.
    """

    ours: Callable[[int], Figure]
    ruler: Callable[[int], Figure]
    syncs: Callable[[], float | str] | None = None
    notes: Callable[[Outcome], Sequence[str]] | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two runs one after the other, and our figure over the ruler's."""

    ours: Figure
    ruler: Figure
    ours_first: bool
    ratio: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """All pairs of a row. ``syncs`` is a figure per request, or why there is none."""

    pairs: list[Pair]
    syncs: float | str | None = None
    notes: Sequence[str] = ()

    @property
    def ratio(self) -> float:
        """The median of the pairs' ratios."""
        return statistics.median(pair.ratio for pair in self.pairs)

    @property
    def span(self) -> tuple[float, float]:
        """The least and the greatest ratio."""
        ratios = [pair.ratio for pair in self.pairs]
        return min(ratios), max(ratios)

    def median(self, read: Callable[[Pair], float | None]) -> float | None:
        """Return the median of what ``read`` finds in the pairs, if it finds something."""
        found = [value for value in map(read, self.pairs) if value is not None]
        return statistics.median(found) if found else None


def compete(contest: Contest, pairs: int, advance: Callable[[], None]) -> Outcome:
    """Run the pairs; the side that goes first changes from pair to pair.

    ``advance`` is called after each run.
    """
    done = []
    for number in range(1, pairs + 1):
        ours_first = number % 2 == 0
        if ours_first:
            ours = contest.ours(number)
            advance()
            ruler = contest.ruler(number)
        else:
            ruler = contest.ruler(number)
            advance()
            ours = contest.ours(number)
        advance()
        done.append(Pair(ours, ruler, ours_first, ours.value / ruler.value))
    syncs = contest.syncs() if contest.syncs else None
    outcome = Outcome(done, syncs)
    return replace(outcome, notes=contest.notes(outcome)) if contest.notes else outcome
