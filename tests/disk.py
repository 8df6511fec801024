"""A disk that can lose its power or fail, and the SQLite engine on it.

SQLite reaches files through a VFS; this one passes everything on to real files, which is
what the process sees, and keeps beside each what would still be there without power: its
*durable* bytes, and the *pending* changes since they were last synced.

When the power goes, nothing works any more, and of each file survives its durable state
with an arbitrary subset of the pending changes: each write kept whole, torn between
sectors of 512 bytes, or lost, each truncation kept or lost, whatever their order was; its
size is one that it had since. The name of a file created or deleted since the directory
was last synced means the old file or the new one. SQLite syncs the directory with the
first sync of a journal or write-ahead log that it opened to create; nothing else does.

A sync that fails is the last chance of what it was for: an arbitrary subset is durable
then, and no later sync brings the rest, as in Linux, where a failed ``fsync`` leaves the
pages of the file clean. The process goes on seeing what it wrote.

The standard ``sqlite3`` cannot load a VFS, so the engine is given connections of apsw in
its shape. Shared memory is the real file's: it belongs to the process, not to the disk.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, cast
from unittest import mock

import apsw

from snakepit_bridge.events.sqlite import SqliteLog

__all__ = ["Disk", "DiskLog", "Operation"]

FILES = ("bridge.db", "bridge.db-wal", "bridge.db-journal")
SECTOR = 512
RESERVED = 128 * 1024
"""Bytes of the write-ahead log that are reserved: some commits fit, then it grows."""
WRITTEN_AT_ONCE = 32 * 1024
"""As large as the writes are taken to be that were made past SQLite."""

_SYNC_ENTRY = apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_SUPER_JOURNAL
_IOERR = {
    "write": apsw.SQLITE_IOERR_WRITE,
    "sync": apsw.SQLITE_IOERR_FSYNC,
    "truncate": apsw.SQLITE_IOERR_TRUNCATE,
    "delete": apsw.SQLITE_IOERR_DELETE,
    "create": apsw.SQLITE_CANTOPEN,
    "read": apsw.SQLITE_IOERR_READ,
}


class Operation(NamedTuple):
    """Something asked of the disk that changes it."""

    kind: str
    """``write``, ``sync``, ``truncate``, ``delete`` or ``create``."""
    file: str
    """Name of the file, without its directory."""
    number: int
    """Counted from 1 over all files."""


class Write(NamedTuple):
    offset: int
    data: bytes


class _File:
    """One file, whatever its name is."""

    def __init__(self, durable: bytes = b"") -> None:
        self.durable = bytearray(durable)
        self.pending: list[Write | int] = []
        """Writes, and sizes it was truncated to."""

    def sync(self) -> None:
        for change in self.pending:
            _change(self.durable, change)
        self.pending.clear()

    def unnoticed(self, seen: bytes) -> Iterator[Write | int]:
        """The changes that were made to a file that looks like this, past SQLite."""
        view = bytearray(self.durable)
        for change in self.pending:
            _change(view, change)
        if len(seen) < len(view):
            yield len(seen)
        for offset in range(0, len(seen), WRITTEN_AT_ONCE):
            part = seen[offset : offset + WRITTEN_AT_ONCE]
            if view[offset : offset + WRITTEN_AT_ONCE] != part:
                yield Write(offset, part)

    def survivors(self, rng: random.Random) -> bytearray:
        """What is left without power."""
        image = bytearray(self.durable)
        kept = rng.choice((0.0, 0.2, 0.5, 0.8, 1.0))  # how far the disk had got
        size, sizes = len(image), [len(image)]
        for change in self.pending:
            if isinstance(change, Write):
                size = max(size, change.offset + len(change.data))
                for part in _torn(change, kept, rng):
                    _change(image, part)
            else:
                size = change
                if rng.random() < kept:
                    _change(image, change)
            sizes.append(size)
        if rng.random() < 0.5:
            _change(image, rng.choice(sizes))
        return image


def _change(image: bytearray, change: Write | int) -> None:
    if isinstance(change, Write):
        end = change.offset + len(change.data)
        image.extend(bytes(max(0, change.offset - len(image))))
        image[change.offset : end] = change.data
    else:
        del image[change:]
        image.extend(bytes(change - len(image)))


def _torn(write: Write, kept: float, rng: random.Random) -> Iterator[Write]:
    fate = rng.random()
    if fate < kept * 0.7 or kept == 1:
        yield write
    elif fate < kept:
        start, end = write.offset, write.offset + len(write.data)
        while start < end:
            stop = min(end, start - start % SECTOR + SECTOR)
            if rng.random() < 0.5:
                yield Write(start, write.data[start - write.offset : stop - write.offset])
            start = stop


class Disk:
    """The directory of one SQLite file. Used by one process, through ``DiskLog``."""

    _count = itertools.count()

    def __init__(self, directory: Path, rng: random.Random) -> None:
        """Take what lies in the directory as durable."""
        self.directory = directory.resolve()
        self.path = directory / "bridge.db"
        self.strike: Callable[[Operation], int | None] = lambda _: None
        """Gives the SQLite error an operation fails with; ``None`` = it works."""
        self.read_only = False
        self.openable = True
        self.readable = True
        self.power = True
        self.operations = 0
        self.last = Operation("", "", 0)
        self._rng = rng
        files = directory.glob("bridge.db*")
        files = (file for file in files if file.name in FILES)
        self._entries = {file.name: _File(file.read_bytes()) for file in files}
        self._durable_entries = dict(self._entries)
        self.vfs = f"disk-{next(self._count)}"
        self._vfs = _Vfs(self)

    def cut_power_at(self, number: int) -> None:
        """Cut it in the middle of the operation with this number."""

        def strike(operation: Operation) -> int | None:
            if operation.number >= number:
                self.power = False
            return None

        self.strike = strike

    def survivors(self) -> Mapping[str, bytes]:
        """What another start of the machine finds, by name."""
        found = {}
        for name in sorted({*self._entries, *self._durable_entries}):
            file = self._rng.choice([self._entries.get(name), self._durable_entries.get(name)])
            if file is not None:
                found[name] = bytes(file.survivors(self._rng))
        return found

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """See what is done to its files past SQLite: by plain writes and ``os.fsync``."""

        def fsync(descriptor: int) -> None:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            file = self._entries.get(path.name)
            if path.parent != self.directory or file is None:
                return
            try:
                for change in file.unnoticed(path.read_bytes()):
                    self.change("write", path.name, file, change)
                self.sync(path.name, file)
            except apsw.Error as error:
                raise OSError(errno.EIO, str(error)) from error

        with mock.patch.object(os, "fsync", fsync):
            yield

    def close(self) -> None:
        self._vfs.unregister()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What its files ask for.

    def open(self, name: str) -> _File:
        if name not in self._entries:
            self.require_power("create")
            self._next("create", name)
            self.require_power("create")
            self._entries[name] = _File()
        return self._entries[name]

    def change(self, kind: str, name: str, file: _File, change: Write | int) -> None:
        """Note a change that the file is about to make, or fail it."""
        self.require_power(kind)
        self._next(kind, name)
        file.pending.append(change)
        self.require_power(kind)

    def sync(self, name: str, file: _File) -> None:
        self.require_power("sync")
        try:
            self._next("sync", name)
        except apsw.Error:
            file.durable = file.survivors(self._rng)
            file.pending.clear()
            raise
        self.require_power("sync")
        file.sync()

    def sync_directory(self) -> None:
        self._durable_entries = dict(self._entries)

    def delete(self, name: str, sync: bool) -> None:
        self.require_power("delete")
        self._next("delete", name)
        self._entries.pop(name, None)
        self.require_power("delete")
        if sync:
            self.sync_directory()

    def require_power(self, kind: str) -> None:
        if not self.power:
            raise failure(_IOERR[kind])

    def _next(self, kind: str, name: str) -> None:
        self.operations += 1
        self.last = Operation(kind, name, self.operations)
        code = self.strike(self.last)
        if code is not None:
            raise failure(code)
        if self.read_only:
            raise failure(apsw.SQLITE_READONLY)


def failure(code: int) -> apsw.Error:
    """The exception by which a VFS answers with this extended error code."""
    error = apsw.exception_for(code)
    assert isinstance(error, apsw.Error)
    error.args = (f"on purpose: {_name(code)}",)
    return error


class _Vfs(apsw.VFS):
    def __init__(self, disk: Disk) -> None:
        super().__init__(disk.vfs, "")
        self._disk = disk

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        if name is None:
            return apsw.VFSFile("", name, flags)
        if not self._disk.openable:
            raise failure(apsw.SQLITE_CANTOPEN)
        if self._disk.read_only:
            writing = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
            flags[0] = flags[0] & ~writing | apsw.SQLITE_OPEN_READONLY
        path = name if isinstance(name, str) else name.filename()
        file = self._disk.open(Path(path).name)
        return _VfsFile(self._disk, file, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        self._disk.delete(Path(filename).name, syncdir)
        super().xDelete(filename, False)

    def excepthook(self, *_: object) -> bool:
        return True


class _VfsFile(apsw.VFSFile):
    def __init__(
        self, disk: Disk, file: _File, name: str | apsw.URIFilename, flags: list[int]
    ) -> None:
        creates = flags[0] & apsw.SQLITE_OPEN_CREATE and flags[0] & _SYNC_ENTRY
        super().__init__("", name, flags)
        self._disk = disk
        self._file = file
        self._name = Path(name if isinstance(name, str) else name.filename()).name
        self._entry_unsynced = bool(creates)

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        self._disk.require_power("read")
        if not self._disk.readable:
            raise failure(apsw.SQLITE_IOERR_READ)
        return super().xRead(amount, offset)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        self._disk.change("write", self._name, self._file, Write(offset, bytes(data)))
        super().xWrite(data, offset)

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        self._disk.change("truncate", self._name, self._file, newsize)
        super().xTruncate(newsize)

    def xSync(self, _flags: int) -> None:  # noqa: N802
        # The real file is not synced: it is not this power that is cut.
        self._disk.sync(self._name, self._file)
        if self._entry_unsynced:
            self._disk.sync_directory()
            self._entry_unsynced = False

    def excepthook(self, *_: object) -> bool:
        return True


class DiskLog(SqliteLog):
    """The engine as it is, on a ``Disk``."""

    def __init__(self, disk: Disk, checkpoint_pages: int = 0, **pragmas: str | int) -> None:
        """As ``SqliteLog``.

        :param checkpoint_pages: when the engine makes a checkpoint; 0 = as built.
        :param pragmas: take the place of those that the engine sets.
        """
        self.disk = disk
        self._checkpoint_pages = checkpoint_pages
        self._pragmas = "".join(f"PRAGMA {name} = {value};" for name, value in pragmas.items())
        super().__init__(disk.path)

    def _connect(self) -> sqlite3.Connection:
        return cast(sqlite3.Connection, _Connection(self.disk, self._pragmas))

    def _most_pages(self) -> int:
        return self._checkpoint_pages or super()._most_pages()

    def _reserve(self) -> None:
        engine = sys.modules[SqliteLog.__module__]
        with self.disk.watching(), mock.patch.object(engine, "WAL_BYTES", RESERVED):
            super()._reserve()


class _Connection:
    """A connection of apsw in the shape of ``sqlite3``, as far as the engine goes."""

    def __init__(self, disk: Disk, pragmas: str) -> None:
        self._pragmas = pragmas
        try:
            self._apsw = apsw.Connection(str(disk.path), vfs=disk.vfs)
        except apsw.Error as error:
            raise _translated(error) from error

    @property
    def in_transaction(self) -> bool:
        return self._apsw.in_transaction

    def execute(self, sql: str, parameters: Any = ()) -> _Rows:  # noqa: ANN401 - a sequence or mapping
        try:
            # All rows at once: a statement left half-way would hold its snapshot.
            rows = list(self._apsw.execute(sql, parameters or None))
            return _Rows(rows, self._apsw.changes())
        except apsw.Error as error:
            raise _translated(error) from error

    def executemany(self, sql: str, rows: Iterable[Any]) -> None:
        try:
            self._apsw.executemany(sql, rows)
        except apsw.Error as error:
            raise _translated(error) from error

    def executescript(self, sql: str) -> None:
        self.execute(sql)
        self.execute(self._pragmas)
        # SQLite ignores what fails in its automatic checkpoint, because the commit before
        # it stands; apsw would raise it. This hook is SQLite's own, with that in place.
        (pages,) = self.execute("PRAGMA wal_autocheckpoint").fetchone() or (0,)

        def checkpoint(connection: apsw.Connection, _: str, written: int) -> int:
            if pages and written >= pages:
                with contextlib.suppress(apsw.Error):
                    connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            return apsw.SQLITE_OK

        self._apsw.set_wal_hook(checkpoint)

    def interrupt(self) -> None:
        self._apsw.interrupt()

    def close(self) -> None:
        with contextlib.suppress(apsw.Error):  # as SQLite does
            self._apsw.close()


class _Rows:
    def __init__(self, rows: Sequence[tuple[Any, ...]], rowcount: int) -> None:
        self._rows = iter(rows)
        self.rowcount = rowcount

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return self._rows

    def fetchone(self) -> tuple[Any, ...] | None:
        return next(self._rows, None)

    def fetchall(self) -> list[tuple[Any, ...]]:
        return list(self._rows)

    def close(self) -> None:
        self._rows = iter(())


_CLASSES = {
    apsw.SQLITE_CORRUPT: sqlite3.DatabaseError,
    apsw.SQLITE_NOTADB: sqlite3.DatabaseError,
    apsw.SQLITE_CONSTRAINT: sqlite3.IntegrityError,
    apsw.SQLITE_TOOBIG: sqlite3.DataError,
    apsw.SQLITE_MISUSE: sqlite3.InterfaceError,
}


def _translated(error: apsw.Error) -> sqlite3.Error:
    code = getattr(error, "extendedresult", apsw.SQLITE_ERROR)
    translated = _CLASSES.get(code & 0xFF, sqlite3.OperationalError)(str(error))
    translated.sqlite_errorcode = code
    translated.sqlite_errorname = _name(code)
    return translated


def _name(code: int) -> str:
    codes = apsw.mapping_extended_result_codes | apsw.mapping_result_codes
    return str(codes.get(code, code))
