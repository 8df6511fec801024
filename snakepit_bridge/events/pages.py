"""Pages of the log, for cursors that are behind their ring.

To show an event one needs the variable as it was then, so a page is read by folding: from the
state before it, which is that after the page before, or else a snapshot and the records after
it. A page is kept for a while, because whoever falls behind seldom does so alone.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import NamedTuple

from snakepit_bridge.errors import OffsetOutOfRange
from snakepit_bridge.events.loaded import LoadedLog
from snakepit_bridge.events.log import EventLog
from snakepit_bridge.events.model import LogId
from snakepit_bridge.events.projection import SessionState, arrive, change
from snakepit_bridge.events.reading import fold, no_longer_kept, state_at
from snakepit_bridge.events.ring import Committed, committed

__all__ = ["Pages"]

PAGE_EVENTS = 100
PAGE_BYTES = 1024 * 1024
"""A page ends with the transaction that reaches one of these."""

KEPT_BYTES = 8 * 1024 * 1024
"""Of all pages that are kept, about 40; the newest one always is."""

KEPT_STATES = 64
KEPT_VARIABLES = 100_000
"""States from which reading goes on, and variables in all of them; the newest one always is.
Reading elsewhere in a log costs a snapshot and its tail, up to 50 ms."""


class _Page(NamedTuple):
    after: int
    """The offset before its first transaction."""
    entries: Sequence[Committed]
    lasts: Sequence[int]
    size: int


class Pages:
    """Reads logs page by page. ``read`` blocks on the disk, one at a time; all else is quick."""

    def __init__(self, engine: EventLog) -> None:
        self._engine = engine
        self._reading = threading.Lock()
        """Held while a page is read."""
        self._lock = threading.Lock()
        """Held for a few operations on the pages; taken inside the other."""
        self._pages: OrderedDict[tuple[LogId, int], _Page] = OrderedDict()
        """By log and the offset before; the one used longest ago comes first."""
        self._of: dict[LogId, list[int]] = {}
        """Of each log, the sorted offsets before its pages."""
        self._size = 0
        self._states: deque[tuple[LogId, SessionState]] = deque()
        """Where pages ended; used under ``_reading`` only."""

    def find(self, log: LogId, position: int, count: int) -> Sequence[Committed]:
        """At most ``count`` transactions from the one that holds ``position + 1``.

        Empty if no page that is kept holds it.
        """
        with self._lock:
            starts = self._of.get(log)
            if not starts or not (index := bisect_right(starts, position)):
                return ()
            page = self._pages[log, starts[index - 1]]
            if page.lasts[-1] <= position:
                return ()
            self._pages.move_to_end((log, page.after))
        start = bisect_right(page.lasts, position)
        return page.entries[start : start + count]

    def read(self, log: LoadedLog, position: int) -> None:
        """See that ``find`` finds what follows ``position``, which is before the head.

        :raises OffsetOutOfRange: retention has cut it away.
        :raises FailedPrecondition: the whole log is gone.
        :raises DataLoss: an event on the way is damaged or missing.
        """
        with self._reading:
            if self.find(log.id, position, 1):
                return
            try:
                page = self._read(log, position)
            except OffsetOutOfRange:
                # It may be the state that reading went on from which lies before the cut.
                self._states.clear()
                page = self._read(log, position)
            self._keep(log.id, page)

    def _read(self, log: LoadedLog, position: int) -> _Page:
        head = log.told  # what lies beyond is not committed, or not yet known to be
        state = self._state(log.id, position)
        entries: list[Committed] = []
        after, size, events = state.head, 0, 0
        previous = state.digest
        for transaction in fold(self._engine, log.id, after, previous, page=PAGE_EVENTS):
            if transaction.last_offset > head:
                break
            entry = committed(transaction, change(state, transaction), previous)
            arrive(state, transaction)
            previous = transaction.digest
            if transaction.last_offset <= position:
                after = transaction.last_offset
                continue
            entries.append(entry)
            size += entry.size
            events += len(transaction.facts)
            if events >= PAGE_EVENTS or size >= PAGE_BYTES:
                break
        if not entries:
            raise no_longer_kept(log.id)
        self._keep_state(log.id, state)
        return _Page(after, entries, [entry.transaction.last_offset for entry in entries], size)

    def _state(self, log: LogId, position: int) -> SessionState:
        """A state at a boundary at or shortly before ``position``."""
        for kept in self._states:
            of, state = kept
            if of == log and position - PAGE_EVENTS < state.head <= position:
                self._states.remove(kept)
                return state
        return state_at(self._engine, log, position, values=False)

    def _keep_state(self, log: LogId, state: SessionState) -> None:
        states = self._states
        states.append((log, state))
        variables = sum(len(kept.variables) for _, kept in states)
        while len(states) > 1 and (len(states) > KEPT_STATES or variables > KEPT_VARIABLES):
            variables -= len(states.popleft()[1].variables)

    def _keep(self, log: LogId, page: _Page) -> None:
        with self._lock:
            key = (log, page.after)
            self._drop(key)
            self._pages[key] = page
            starts = self._of.setdefault(log, [])
            starts.insert(bisect_right(starts, page.after), page.after)
            self._size += page.size
            while self._size > KEPT_BYTES and len(self._pages) > 1:
                self._drop(next(iter(self._pages)))

    def _drop(self, key: tuple[LogId, int]) -> None:
        page = self._pages.pop(key, None)
        if page is None:
            return
        log, after = key
        self._size -= page.size
        self._of[log].remove(after)
        if not self._of[log]:
            del self._of[log]
