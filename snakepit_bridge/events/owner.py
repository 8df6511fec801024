"""One data file belongs to one process."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

from snakepit_bridge.events.log import LogInUse

__all__ = ["Owner"]


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
            holder = os.pread(self._file, 200, 0).decode("utf-8", "replace").strip()
            os.close(self._file)
            raise LogInUse(
                f"{path.with_suffix('')} belongs to another bridge ({holder or 'unknown'}): "
                "stop it, or give this one a file of its own with --log sqlite:PATH"
            ) from error
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def release(self) -> None:
        """Give the lock up. Idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
