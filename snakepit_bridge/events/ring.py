"""The newest transactions of one watched log, in memory, for the watchers that keep up.

A cursor that falls behind its ring reads the log instead (``pages``), so that losing an entry
costs time and nothing else.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from snakepit_bridge.events.codec import named_values
from snakepit_bridge.events.model import Transaction, Value
from snakepit_bridge.events.projection import VariableState

__all__ = ["Commit", "Committed", "Ring", "committed"]

TRANSACTION_COST = 1_000
EVENT_COST = 1_000
"""Bytes that they take beside their values: parsed messages, and updates as they are sent."""

COMPACT = 1_024
"""Places given up at the front of a ring before it is moved together."""


class Commit:
    """When a commit was made, and of how much; times are those of ``time.perf_counter_ns``."""

    __slots__ = ("append_begun", "append_ended", "begun", "ended", "events")

    def __init__(self, begun: int) -> None:
        self.begun = begun
        self.append_begun = 0
        self.append_ended = 0
        """When the engine had synced it."""
        self.ended = 0
        """When readers could see it; 0 = they cannot."""
        self.events = 0


class Committed(NamedTuple):
    """One transaction as watchers are shown it.

    Of tuples, as far as it can be: of those without messages the garbage collector lets go at
    its first look. Its pauses grow with the entries in memory; 16,000 of lists made them 270 ms.
    """

    transaction: Transaction
    shown: Sequence[VariableState | None]
    """For each event, what ``apply`` gives."""
    previous_digest: bytes
    """Of the record before."""
    starts: Sequence[int]
    """For each event, and for the end, where its values begin among those of the transaction."""
    size: int
    """Roughly how many bytes of memory it takes."""
    updates: dict[Any, Any]
    """What whoever shows it has made of it, to be made once for all watchers."""
    commit: Commit | None = None
    """That it was part of; ``None`` = it was read from the log."""

    def values(self, index: int) -> Sequence[Value]:
        """Those that the ``index``-th event names, in the order of ``Values``."""
        return self.transaction.values[self.starts[index] : self.starts[index + 1]]


def committed(
    transaction: Transaction,
    shown: Sequence[VariableState | None],
    previous_digest: bytes,
    commit: Commit | None = None,
) -> Committed:
    """Make an entry of what was committed."""
    facts, values = transaction.facts, transaction.values
    starts: tuple[int, ...] = (0, len(values))
    if len(facts) > 1:
        starts = (0, *accumulate(map(named_values, facts)))
    size = sum([len(value.any) + len(value.binary) for value in values])
    size = TRANSACTION_COST + EVENT_COST * len(shown) + 2 * size
    return Committed(transaction, tuple(shown), previous_digest, starts, size, {}, commit)


class Ring:
    """The newest transactions of one log, without a gap. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: list[Committed] = []
        self._lasts: list[int] = []
        """The last offset of each."""
        self._start = 0
        """Where they begin in these lists; what lies before was given up."""

    def push(self, entry: Committed) -> None:
        """Add what was committed; if something is missing before it, begin anew."""
        transaction = entry.transaction
        last = transaction.last_offset
        with self._lock:
            if self._lasts and last - len(transaction.facts) != self._lasts[-1]:
                self._start = 0
                self._entries, self._lasts = [], []
            self._entries.append(entry)
            self._lasts.append(last)

    def give_up(self, last: int) -> None:
        """Forget what ends at or before an offset."""
        with self._lock:
            lasts = self._lasts
            start = bisect_right(lasts, last, self._start)
            if start > COMPACT or start == len(lasts):
                del self._entries[:start], lasts[:start]
                start = 0
            else:
                self._entries[self._start : start] = [_GONE] * (start - self._start)
            self._start = start

    def after(self, position: int, count: int) -> Sequence[Committed]:
        """At most ``count`` transactions from the one that holds ``position + 1``, if it does.

        Empty when that is not here: it was given up, or is not committed.
        """
        with self._lock:
            start = bisect_right(self._lasts, position, self._start)
            found = self._entries[start : start + count]
        if found and found[0].transaction.record.first_offset > position + 1:
            return ()
        return found


_GONE: Any = None
