"""One data file belongs to one process."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

from snakepit_bridge.events.log import LogInUse

__all__ = ["Owner", "make_directory"]


_HELD = b"keeps a log\n"


def make_directory(path: Path) -> None:
    """Make a directory and those above it, so that they survive a power cut.

    :raises OSError: it cannot be made.
    """
    missing = [path, *path.parents]
    missing = missing[: next(i for i, each in enumerate(missing) if each.exists())]
    path.mkdir(parents=True, exist_ok=True)
    for made in reversed(missing):
        above = os.open(made.parent, os.O_RDONLY)
        try:
            os.fsync(above)
        finally:
            os.close(above)


class Owner:
    """An advisory lock on a file that says who holds it.

    The kernel gives the lock up when the process ends, however it ends; the file stays,
    because removing it would let two processes lock two files of the same name.
    """

    def __init__(self, path: Path) -> None:
        """Take the lock at once or not at all.

        :raises LogInUse: it is held; the message names the holder.
        """
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            said = os.pread(self._file, 200, 0).decode("utf-8", "replace")
            holder = said.partition("\n")[0].strip()
            os.close(self._file)
            raise LogInUse(
                f"{path.with_suffix('')} belongs to another bridge ({holder or 'unknown'}): "
                "stop it, or give this one a file of its own with --log sqlite:PATH"
            ) from error
        self.held_log = _HELD in os.pread(self._file, 500, 0)
        """Whether a log was kept here before."""
        os.ftruncate(self._file, 0)
        line = f"process {os.getpid()} on {socket.gethostname()}\n".encode()
        os.pwrite(self._file, line + (_HELD if self.held_log else b""), 0)

    def note_log(self) -> None:
        """Say, for ever, that there is a log now."""
        if not self.held_log:
            self.held_log = True
            end = os.fstat(self._file).st_size
            os.pwrite(self._file, _HELD, end)

    def release(self) -> None:
        """Give the lock up. Idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
