"""What was committed last, as watchers get it: all rings together, and who is told.

All rings share so many bytes; what was committed longest ago goes first, of whichever log it
is. Belongs to the committer, whose thread alone publishes; anybody may listen.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from snakepit_bridge.events.loaded import LoadedLog
from snakepit_bridge.events.ring import Committed, Ring

__all__ = ["Recent", "Watched", "WhenCommitted"]

logger = logging.getLogger(__name__)

RECENT_BYTES = 4 * 1024 * 1024
"""Of all rings together: about 2,000 sets of short values. Pages of the log are shared, so that
larger rings save little, and what they hold the garbage collector has to look at."""

Watched = Sequence[tuple[LoadedLog, Sequence[Committed]]]
"""Watched logs that moved and what was committed of each; nothing, where it has to be read from
the log."""

WhenCommitted = Callable[[Watched], None]


class Recent:
    def __init__(self, size: int = RECENT_BYTES) -> None:
        """:param size: bytes of memory, roughly, that all rings may take."""
        self._limit = size
        self._size = 0
        self._order: deque[tuple[Ring, int, int]] = deque()
        """Ring, last offset and size of each entry, as they were committed."""
        self._listeners: tuple[WhenCommitted, ...] = ()
        self._lock = threading.Lock()
        """Held to change who listens."""

    def when_committed(self, call: WhenCommitted) -> None:
        """Have ``call`` made once for each commit that changed watched logs.

        On the committer's thread, before anybody is answered; it must not take long.
        """
        with self._lock:
            self._listeners += (call,)

    def no_longer(self, call: WhenCommitted) -> None:
        """Have it made no more."""
        with self._lock:
            self._listeners = tuple(one for one in self._listeners if one != call)

    def publish(self, watched: Watched) -> None:
        """Add what was committed to the rings, make room in others, and tell of it."""
        for log, committed in watched:
            if log.ring is not None:
                for entry in committed:
                    self._add(log.ring, entry)
                log.told = log.committed.head
        for call in self._listeners:
            try:
                call(watched)
            except Exception:
                # It is committed; whoever cannot be told of it must not undo that.
                logger.exception("a watcher could not be told of a commit")

    def _add(self, ring: Ring, entry: Committed) -> None:
        ring.push(entry)
        self._order.append((ring, entry.transaction.last_offset, entry.size))
        self._size += entry.size
        while self._size > self._limit and len(self._order) > 1:
            oldest, last, size = self._order.popleft()
            oldest.give_up(last)
            self._size -= size
