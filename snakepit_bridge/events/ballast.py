"""Room on the disk that is kept to be given up when there is no other."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

__all__ = ["Ballast"]

SHARE = 8
"""The ballast takes at most this part of what is free, but never less than"""
LEAST = 64 * 1024


class Ballast:
    """A file of zeros. It exists, or there is no room for it."""

    def __init__(self, path: Path, size: int) -> None:
        """Nothing is done yet.

        :param size: bytes to hold, or less where an eighth of what is free is less.
        """
        self._path = path
        self._most = size
        self.size = 0
        """Bytes held; as many as before when it was given up and not yet taken again."""

    def take(self) -> None:
        """Hold the room, as much as the first time.

        :raises OSError: there is none.
        """
        if not self.size:
            free = shutil.disk_usage(self._path.parent).free
            self.size = max(LEAST, min(self._most, free // SHARE))
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if os.fstat(file).st_size < self.size:
                _allocate(file, self.size)
        except OSError:
            self.give_up()
            raise
        finally:
            os.close(file)

    def give_up(self) -> bool:
        """Free the room; gives whether any was held."""
        try:
            self._path.unlink()
        except FileNotFoundError:
            return False
        return True


def _allocate(file: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
        return
    for start in range(0, size, 1 << 20):  # macOS
        os.pwrite(file, bytes(min(1 << 20, size - start)), start)
