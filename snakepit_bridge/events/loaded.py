"""One log in memory."""

from __future__ import annotations

import threading

from snakepit_bridge.events.model import LogId
from snakepit_bridge.events.projection import SessionState
from snakepit_bridge.events.ring import Ring

__all__ = ["LONG_TAIL", "LoadedLog"]

LONG_TAIL = 1_000
"""Events after the newest snapshot that are worth another one before a log leaves memory:
folding them takes as long as the snapshot, about 5 ms."""


class LoadedLog:
    """One log in memory: the state that is decided on and the state that is read."""

    __slots__ = (
        "base",
        "committed",
        "id",
        "lock",
        "ring",
        "snapshot_asked",
        "snapshot_offset",
        "told",
        "touched",
        "watches",
        "working",
    )

    def __init__(self, id: LogId) -> None:  # noqa: A002 - the field's name
        self.id = id
        self.base = 0
        """Offset up to which retention has cut the log."""
        self.snapshot_offset = 0
        """Of the newest snapshot, as far as this process knows."""
        self.snapshot_asked = False
        self.touched = True
        """Whether it was used since upkeep last looked."""
        self.working = SessionState()
        """Owned by the committer thread; may be ahead of the disk."""
        self.committed = SessionState()
        """Read under ``lock``."""
        self.lock = threading.Lock()
        self.ring: Ring | None = None
        """The newest transactions, from the first watch on."""
        self.told = 0
        """The head as watchers see it: it follows the committed one when the ring has it."""
        self.watches = 0
        """How many there are; changed under ``lock``."""

    def watch(self) -> None:
        """Count one watch more, for which the log stays in memory and alive."""
        with self.lock:
            self.watches += 1
            if self.ring is None:
                self.ring = Ring()
                self.told = self.committed.head

    def unwatch(self) -> None:
        """Count one watch less."""
        with self.lock:
            self.watches -= 1

    @property
    def held(self) -> bool:
        """Whether somebody keeps the session alive without asking for it: a watch, a tool."""
        return bool(self.watches or self.committed.calls)

    @property
    def tail(self) -> int:
        """Events after the newest snapshot."""
        return self.committed.head - self.snapshot_offset
