"""One log in memory."""

from __future__ import annotations

import threading

from snakepit_bridge.events.model import LogId
from snakepit_bridge.events.projection import SessionState

__all__ = ["LoadedLog"]


class LoadedLog:
    """One log in memory: the state that is decided on and the state that is read."""

    __slots__ = (
        "base",
        "committed",
        "id",
        "lock",
        "snapshot_asked",
        "snapshot_offset",
        "touched",
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

    @property
    def tail(self) -> int:
        """Events after the newest snapshot."""
        return self.committed.head - self.snapshot_offset
