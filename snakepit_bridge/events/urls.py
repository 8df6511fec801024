"""Which engine a URL names."""

from __future__ import annotations

from pathlib import Path

from snakepit_bridge.events.log import EventLog, LogUnusable
from snakepit_bridge.events.memory import MemoryLog

__all__ = ["open_copy", "open_log"]


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


def open_copy(url: str) -> EventLog:
    """Open ``sqlite:PATH`` to read it only, also while a bridge writes it.

    :raises LogUnusable: there is none, or it cannot be read.
    """
    scheme, _, rest = url.partition(":")
    if scheme != "sqlite" or not rest:
        raise LogUnusable(f"{url!r} names no log that can be read from outside: use sqlite:PATH")
    from snakepit_bridge.events.sqlite_copy import SqliteCopy  # noqa: PLC0415 - POSIX only

    return SqliteCopy(Path(rest).expanduser())
