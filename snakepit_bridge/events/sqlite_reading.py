"""Reading a SQLite log, from any thread: the half that changes nothing.

Connections are kept for the next reader; each reading call takes one for itself.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from snakepit_bridge.errors import BridgeError, DataLoss, ResourceExhausted, Unavailable
from snakepit_bridge.events import sqlite_schema as sql
from snakepit_bridge.events.log import EventLog, LogEntry
from snakepit_bridge.events.model import LogHead, LogId, StoredRecord, StoredSnapshot, Value
from snakepit_bridge.events.value_files import ValueFiles

__all__ = ["FULL", "IN_A_FILE", "SqliteReading"]

READ_BYTES = 4 * 1024 * 1024
"""Records that are read at a time end with the one that reaches this: a thousand transactions of
a thousand values would be gigabytes."""

CHECKED_BYTES = 256 * 1024 * 1024
"""Files to this size have their structure checked after each start: half a second."""


class SqliteReading(EventLog):
    """The reading half of ``SqliteLog``."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.url = f"sqlite:{self.path}"
        self._readers: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue()
        self._files = ValueFiles(self.path.with_name(self.path.name + ".values"))
        self._damage: DataLoss | None = None
        """Once the structure of the file was found damaged, nothing more is written."""

    def latest(self, session_id: str) -> LogHead | None:
        return self._head(sql.SELECT_LATEST, (session_id,), session_id)

    def head(self, log: LogId) -> LogHead | None:
        return self._head(sql.SELECT_ONE, log, log.session_id)

    def read(self, log: LogId, after: int = 0, *, limit: int = 1_000) -> Sequence[StoredRecord]:
        with self._reading() as reader:
            row = reader.execute(sql.SELECT_LOG, log).fetchone()
            if row is None:
                return []
            following = max(after, row[1]) + 1
            found = reader.execute(
                sql.SELECT_AFTER, {"log": row[0], "next": following, "limit": limit}
            )
            records = []
            size = 0
            for columns in found:
                records.append(_new(StoredRecord, columns + _OF_APPENDING))
                size += len(columns[2]) + len(columns[3])
                if size > READ_BYTES:
                    break
            found.close()
            return records

    def read_back(self, log: LogId, before: int, *, limit: int = 1_000) -> Sequence[StoredRecord]:
        with self._reading() as reader:
            row = reader.execute(sql.SELECT_LOG, log).fetchone()
            if row is None:
                return []
            found = reader.execute(sql.SELECT_BEFORE, (*row, before, limit))
            return [_new(StoredRecord, columns + _OF_APPENDING) for columns in found]

    def large_values(self, digests: Sequence[bytes]) -> Mapping[bytes, Value]:
        with self._reading() as reader:
            rows = [reader.execute(sql.SELECT_LARGE, (digest,)).fetchone() for digest in digests]
        found = {}
        for row in rows:
            if row is None:
                continue
            digest, *content = row
            value = self._read_file(digest) if tuple(content) == IN_A_FILE else None
            if value is not None:
                found[digest] = value
            elif content[0]:
                found[digest] = Value(content[0], content[1], digest)
        return found

    def _read_file(self, digest: bytes) -> Value | None:
        try:
            return self._files.read(digest)
        except OSError as error:
            raise self._answer(error) from error

    def snapshot(self, log: LogId, before: int, *, requests: bool = True) -> StoredSnapshot | None:
        with self._reading() as reader:
            row = reader.execute(sql.SELECT_LOG, log).fetchone()
            if row is None:
                return None
            query = sql.SELECT_SNAPSHOT if requests else sql.SELECT_SNAPSHOT_ALONE
            found = reader.execute(query, (row[0], before, row[1])).fetchone()
            return None if found is None else StoredSnapshot(*found)

    def snapshot_offsets(self, log: LogId) -> Sequence[int]:
        with self._reading() as reader:
            row = reader.execute(sql.SELECT_LOG, log).fetchone()
            if row is None:
                return []
            return [offset for (offset,) in reader.execute(sql.SELECT_SNAPSHOT_OFFSETS, row)]

    def to_cut(self, time_unix_nanos: int, *, limit: int = 1_000) -> Sequence[LogHead]:
        with self._reading() as reader:
            found = reader.execute(sql.SELECT_TO_CUT, (time_unix_nanos, limit))
            return [LogHead(LogId(*columns[:2]), *columns[2:]) for columns in found]

    def live_sessions(self) -> int:
        with self._reading() as reader:
            (count,) = reader.execute(sql.COUNT_LIVE).fetchone()
            return int(count)

    def size(self) -> int:
        size = self._files.size()
        for name in (self.path.name, self.path.name + "-wal"):
            with contextlib.suppress(FileNotFoundError):
                size += self.path.with_name(name).stat().st_size
        return size

    def logs(self, after: LogId | None = None, *, limit: int = 1_000) -> Sequence[LogEntry]:
        with self._reading() as reader:
            found = reader.execute(sql.SELECT_LOGS, (*(after or ("", "")), limit))
            return [LogEntry(LogId(*columns[:2]), *columns[2:]) for columns in found]

    def ended_before(self, time_unix_nanos: int, *, limit: int = 1_000) -> Sequence[LogId]:
        with self._reading() as reader:
            found = reader.execute(sql.SELECT_ENDED, (time_unix_nanos, limit))
            return [LogId(*columns) for columns in found]

    def faults(self, *, thorough: bool = True) -> Iterator[str]:
        if not thorough and self.path.stat().st_size > CHECKED_BYTES:
            return
        check = "PRAGMA integrity_check" if thorough else "PRAGMA quick_check(10)"
        with self._reading() as reader:
            try:
                found = [row[0] for row in reader.execute(check) if row[0] != "ok"]
            except sqlite3.DatabaseError as error:
                found = [str(error)]
        if found and self._damage is None:
            self._damage = self._damaged(found[0])
        yield from found

    def _connect(self) -> sqlite3.Connection:
        # The engine's contract orders the calls; SQLite itself is built thread-safe.
        return sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)

    def _head(self, query: str, arguments: Sequence[str], session_id: str) -> LogHead | None:
        with self._reading() as reader:
            row = reader.execute(query, arguments).fetchone()
            if row is None:
                return None
            epoch, base, base_digest, mark, mark_digest, offset, digest = row
            if offset is None or offset <= base:
                offset, digest = base, base_digest
            return LogHead(
                LogId(session_id, epoch),
                offset,
                digest,
                base,
                base_digest,
                (mark, mark_digest) if mark else None,
            )

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            reader = self._readers.get_nowait()
        except queue.Empty:
            reader = self._new_reader()
        try:
            yield reader
        except sqlite3.Error as error:
            reader.close()
            raise self._answer(error) from error
        except BaseException:
            reader.close()
            raise
        else:
            self._readers.put(reader)

    def _new_reader(self) -> sqlite3.Connection:
        try:
            reader = self._connect()
        except sqlite3.Error as error:
            raise self._answer(error) from error
        try:
            reader.execute("PRAGMA query_only = 1")
            reader.execute("PRAGMA busy_timeout = 5000")
        except sqlite3.Error as error:
            reader.close()
            raise self._answer(error) from error
        return reader

    def _answer(self, error: sqlite3.Error | OSError) -> BridgeError:
        if isinstance(error, OSError):
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return ResourceExhausted(FULL)
            return Unavailable(f"the log cannot be used ({error.strerror or error})")
        code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            return ResourceExhausted(FULL)
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            self._damage = self._damage or self._damaged(str(error))
            return self._damage
        return Unavailable(
            f"the log cannot be used ({getattr(error, 'sqlite_errorname', 'SQLite')}: {error})"
        )

    def _damaged(self, why: str) -> DataLoss:
        return DataLoss(
            f"the database file {self.path} is damaged ({why}): nothing more is written to it; "
            "stop the bridge, look with `snakepit-bridge verify`, and put back a copy"
        )


IN_A_FILE = (b"", b"")
"""Stands in the database for the content of a value that has a file."""

FULL = "the disk that holds the log is full: nothing was changed; free space and retry"
_new = tuple.__new__
_OF_APPENDING = ((), 0)
"""The last two fields of a record, which only an append needs."""
