"""A log for each worker of a pool: the first slot that no other worker holds.

Snakepit starts many workers with the same command line, and a log belongs to one process.
So each takes a *slot*, a directory of its own under a common base. Sessions are those of
the worker that they were begun on, as Snakepit's affinity has them; a worker that is
started in place of a dead one finds its slot free, and goes on with its sessions.
"""

from __future__ import annotations

import logging
import os
import re
from hashlib import sha256
from pathlib import Path

from snakepit_bridge.events.log import EventLog, LogInUse, LogUnusable
from snakepit_bridge.events.urls import open_log

__all__ = ["default_base", "open_slot"]

logger = logging.getLogger(__name__)

MAX_SLOTS = 10_000
"""Ten times Snakepit's default ceiling of workers in all pools."""

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


def default_base(instance_name: str) -> Path:
    """Where the slots of an instance of Snakepit lie: in the XDG state directory.

    :param instance_name: any text. One that cannot be a file name is made one, and kept apart
        from others by its digest; the empty one is ``default``.
    """
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "snakepit_bridge" / "pools" / _file_name(instance_name)


def _file_name(text: str) -> str:
    if not text:
        return "default"
    if _PLAIN_NAME.fullmatch(text):
        return text
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", text)[:48]
    return f"{plain}-{sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


def open_slot(base: Path) -> EventLog:
    """Open the log of the lowest slot that is free.

    The kernel gives up the lock of a process that ends, however it ends: the slot of a dead
    worker is free at once.

    :raises LogUnusable: a slot that nobody holds cannot be opened, or all are held. A damaged
        slot is not passed over: its sessions would be gone without a word.
    """
    for number in range(MAX_SLOTS):
        path = base / f"slot-{number}" / "bridge.db"
        try:
            log = open_log(f"sqlite:{path}")
        except LogInUse:
            continue
        logger.info(
            "slot %d: sessions are this worker's own, in %s; whichever worker takes the slot "
            "next goes on with them",
            number,
            path,
        )
        return log
    raise LogUnusable(
        f"all {MAX_SLOTS} slots in {base} are held by running workers: stop some, or give this "
        "one a base of its own with --data-dir"
    )
