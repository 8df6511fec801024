"""Which engine a URL names."""

from __future__ import annotations

from pathlib import Path

from snakepit_bridge.events.log import EventLog, LogUnusable
from snakepit_bridge.events.memory import MemoryLog

__all__ = ["open_log"]


def open_log(url: str) -> EventLog:
    """Open ``memory:`` or ``sqlite:PATH``.

    :raises LogUnusable: no such engine, or it cannot be opened.
    """
    scheme, _, rest = url.partition(":")
    if scheme == "memory" and not rest:
        return MemoryLog()
    if scheme == "sqlite" and rest:
        from snakepit_bridge.events.sqlite import SqliteLog  # noqa: PLC0415 - POSIX only

        return SqliteLog(Path(rest).expanduser())
    raise LogUnusable(f"{url!r} names no log: use sqlite:PATH, or memory: to keep nothing")
