"""Values too large for the database: a file each, named by digest, in ``PATH.values``.

SQLite writes a large blob twice, through the write-ahead log and into the database, page by
page with a checksum each. Measured with 64 MiB: 139 ms for the commit, 101 ms for the
checkpoint that follows and 240 ms to read it back, against 38 to 50 ms and 30 ms for a file.
And the write-ahead log stays small, so that the ballast suffices on a full disk.

A file is synced, and its name too, before the commit that refers to it; it goes after the
commit that forgets it. What a crash leaves between the two is swept up later.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from snakepit_bridge.events.model import Value

__all__ = ["FILE_LIMIT", "ValueFiles"]

FILE_LIMIT = 128 * 1024
"""Values with more bytes get a file: about where SQLite itself finds files faster than blobs
(sqlite.org/intern-v-extern-blob.html)."""

_LENGTH = 8
"""Bytes before the content that say how long ``any`` is, little-endian; then the binary form."""

_UNFINISHED = ".new"


class ValueFiles:
    """The files beside one database. Writing is for the one thread that writes there."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._unsynced = False
        self._size = (0.0, 0)
        """When they were looked at, and how many bytes they had."""

    def write(self, value: Value) -> None:
        """Store a value, unless it is there; durable after ``sync``.

        :raises OSError: it cannot be written.
        """
        path = self._path(value.digest)
        self._unsynced = True
        if path.exists():
            return
        self._directory.mkdir(exist_ok=True)
        new = path.with_suffix(_UNFINISHED)
        try:
            with new.open("wb", buffering=0) as file:
                parts = (len(value.any).to_bytes(_LENGTH, "little"), value.any, value.binary)
                for part in parts:
                    _write(file.fileno(), part)
                os.fsync(file.fileno())
            new.replace(path)
        except OSError:
            new.unlink(missing_ok=True)
            raise

    def sync(self) -> None:
        """Make the names of what was written durable."""
        if not self._unsynced:
            return
        for directory in (self._directory, self._directory.parent):
            descriptor = os.open(directory, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        self._unsynced = False

    def read(self, digest: bytes) -> Value | None:
        """A value as it was written, unchecked; ``None`` when it is gone."""
        try:
            with self._path(digest).open("rb") as file:
                length = int.from_bytes(file.read(_LENGTH), "little")
                return Value(file.read(length), file.read(), digest)
        except FileNotFoundError:
            return None

    def remove(self, digest: bytes) -> None:
        """Delete a value. Idempotent."""
        self._path(digest).unlink(missing_ok=True)

    def digests(self) -> Iterator[bytes]:
        """Of all files that are there; unfinished ones of an earlier process are deleted."""
        if not self._directory.is_dir():
            return
        for entry in os.scandir(self._directory):
            name = entry.name
            if name.endswith(_UNFINISHED):
                Path(entry.path).unlink(missing_ok=True)
            elif len(name) == _NAME:
                yield bytes.fromhex(name)

    def size(self) -> int:
        """Bytes of all files, as they were half a minute ago at most; safe from any thread."""
        looked, size = self._size
        now = time.monotonic()
        if not looked or now - looked > _SIZE_KEPT:
            size = 0
            with contextlib.suppress(FileNotFoundError):  # there is none yet, or no longer
                for entry in os.scandir(self._directory):
                    with contextlib.suppress(FileNotFoundError):
                        size += entry.stat().st_size
            self._size = (now, size)
        return size

    def _path(self, digest: bytes) -> Path:
        return self._directory / digest.hex()


_SIZE_KEPT = 30.0
"""Seconds. There may be many files, and each is asked."""

_NAME = 64
"""Characters of a SHA-256."""


def _write(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
