"""The default engine: one SQLite file that a person can open.

Durable means: WAL with ``synchronous=FULL``, so a commit returns after the write-ahead
log was synced to the device; one commit covers all records of an ``append``. The file
belongs to one process, which holds a lock on ``PATH.owner`` beside it.

Measured when the layout was chosen (medians, 16 records a commit): an ordinary table with
a primary-key index beats ``WITHOUT ROWID`` 317 to 583 µs when 200 sessions write in turn,
because records go to the end of the table whatever their session, and draws with it for
one session. A checkpoint every 4,000 pages instead of 1,000 takes the p99 of a commit of
200 records from 7 ms to 1.4 ms. Syncing a write-ahead log that grows also writes the file
system's journal: with its room reserved, a commit of one record takes 145 µs instead of 262.

A full disk is met with *ballast*: a file beside the log that holds nothing, as large as the
write-ahead log may grow. It is given up when a commit fails for want of room, so that the
checkpoint which settles the outcome has the room it needs, and no more is appended until
the ballast is there again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from snakepit_bridge.errors import BridgeError, DataLoss, ResourceExhausted, Unavailable
from snakepit_bridge.events import sqlite_schema as sql
from snakepit_bridge.events.ballast import Ballast
from snakepit_bridge.events.log import (
    UNREFERENCED_NANOS,
    AppendError,
    Conflict,
    EventLog,
    LogEntry,
    LogUnusable,
)
from snakepit_bridge.events.model import (
    LogHead,
    LogId,
    StoredRecord,
    StoredSnapshot,
    Value,
)
from snakepit_bridge.events.owner import Owner, make_directory

__all__ = ["WAL_BYTES", "SqliteCopy", "SqliteLog"]

logger = logging.getLogger(__name__)

WAL_PAGES = 4_000
PAGE_BYTES = 4_096 + 24  # SQLite's page and the header of its frame
WAL_BYTES = WAL_PAGES * PAGE_BYTES + 32

PAGES_A_COMMIT = 3
"""Pages that a commit writes beside its bytes: the ends of the table and of its index."""

RECORDS_A_PAGE = 12
"""Small ones; a page more or less does not matter."""

SWEPT_AT_ONCE = 500
"""Rows that ``sweep`` deletes in one transaction: about 5 ms."""

LOGS_REMEMBERED = 20_000
"""Logs whose row and head are known without asking the file."""

CHECKED_BYTES = 256 * 1024 * 1024
"""Files to this size have their structure checked after each start: half a second."""

_SETUP = f"""
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
PRAGMA wal_autocheckpoint = {2 * WAL_PAGES};
PRAGMA busy_timeout = 5000;
"""


class SqliteLog(EventLog):
    """Logs in one SQLite file. One writing connection, a few reading ones."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open or create the file.

        :raises LogInUse: another process owns it.
        :raises LogUnusable: it cannot be opened, or is not such a log.
        """
        self.path = Path(path)
        self.url = f"sqlite:{self.path}"
        try:
            make_directory(self.path.parent)
            self._owner = Owner(self.path.with_name(self.path.name + ".owner"))
        except OSError as error:
            raise LogUnusable(f"cannot use {self.path}: {error.strerror or error}") from error
        self._readers: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue()
        self._closed = False
        self._damage: DataLoss | None = None
        """Once the structure of the file was found damaged, nothing more is written."""
        self._ballast = Ballast(self.path.with_name(self.path.name + ".ballast"), WAL_BYTES)
        self._pages = 0
        """About how many the write-ahead log holds since its last checkpoint."""
        self._tails: dict[LogId, tuple[int, int]] = {}
        """Row id and head of logs appended to; asked of the file once."""
        self._changed: set[int] = set()
        """Row ids of the logs that this process appended to."""
        if self._owner.held_log and not (self.path.exists() and self.path.stat().st_size):
            self._owner.release()
            raise LogUnusable(
                f"{self.path} is empty or gone, though a bridge has kept its log there: put back "
                f"a copy, or remove {self.path.name}.owner beside it to begin anew"
            )
        try:
            self._writer = self._open_first()
        except sqlite3.Error as error:
            self._owner.release()
            raise LogUnusable(f"cannot use {self.path}: {error}") from error
        except LogUnusable:
            self._owner.release()
            raise
        try:
            self._checkpoint()
        except sqlite3.Error as error:
            # On a full disk, say: the write-ahead log is read where it lies.
            logger.warning("the log was opened without a first checkpoint: %s", error)
        try:
            self._ballast.take()
        except OSError as error:
            logger.warning("no ballast for a full disk: %s", error)
        self._owner.note_log()

    def latest(self, session_id: str) -> LogHead | None:
        return self._head(sql.SELECT_LATEST, (session_id,), session_id)

    def head(self, log: LogId) -> LogHead | None:
        return self._head(sql.SELECT_ONE, log, log.session_id)

    def append(self, records: Sequence[tuple[LogId, StoredRecord]]) -> None:
        writer = self._writer
        heads: dict[LogId, int] = {}
        rows: list[Any] = []
        rare = []
        begun = False
        try:
            for log, record in records:
                if log not in heads:
                    if log not in self._tails:
                        if not begun:
                            writer.execute("BEGIN IMMEDIATE")
                            begun = True
                        self._find_tail(log)
                    row, heads[log] = self._tails[log]
                else:
                    row = self._tails[log][0]
                first, count, header, values, digest, large, ended = record
                if first != heads[log] + 1:
                    raise Conflict(
                        f"{log.session_id!r} ends at offset {heads[log]}; "
                        f"a record at {first} does not follow"
                    )
                heads[log] += count
                rows += (row, first, count, header, values, digest)
                if large or ended:
                    rare.append((row, record))
            # A single statement commits by itself. Each statement lets other threads run
            # Python until they let go, so one instead of many is what makes this fast.
            if not begun and (rare or len(rows) > sql.COLUMNS * sql.ROWS_AT_ONCE):
                writer.execute("BEGIN IMMEDIATE")
                begun = True
            for row, record in rare:
                self._append_rare(row, record)
            for start in range(0, len(rows), sql.COLUMNS * sql.ROWS_AT_ONCE):
                some = rows[start : start + sql.COLUMNS * sql.ROWS_AT_ONCE]
                writer.execute(sql.INSERT_RECORDS[len(some) // sql.COLUMNS], some)
            if begun:
                writer.execute("COMMIT")
        except Conflict:
            self._tails.clear()
            if begun:
                writer.execute("ROLLBACK")
            raise
        except sqlite3.Error as error:
            self._tails.clear()
            raise AppendError(self._answer(error)) from error
        self._stored(heads, rows)

    def _append_rare(self, row: int, record: StoredRecord) -> None:
        for value in record.large:
            self._writer.execute(sql.INSERT_LARGE, (value.digest, value.any, value.binary))
            self._writer.execute(sql.INSERT_USE, (row, record.first_offset, 0, value.digest))
            self._writer.execute(sql.DELETE_UNUSED, (value.digest,))
            self._pages += (len(value.any) + len(value.binary)) // 4_096
        if record.ended_unix_nanos:
            self._writer.execute(sql.UPDATE_ENDED, (record.ended_unix_nanos, row))

    def _stored(self, heads: Mapping[LogId, int], rows: Sequence[Any]) -> None:
        for log, head in heads.items():
            row = self._tails[log][0]
            self._tails[log] = (row, head)
            self._changed.add(row)
        if len(self._tails) > LOGS_REMEMBERED:
            self._tails.clear()
        self._pages += PAGES_A_COMMIT + len(rows) // (sql.COLUMNS * RECORDS_A_PAGE)

    def settle(self) -> None:
        # A commit that failed may still lie in the write-ahead log, and appear when the
        # file is next opened. Only a checkpoint that has finished says what is stored.
        self._tails.clear()
        self._ballast.give_up()
        try:
            self._writer.close()
            self._writer = self._open()
            # Everybody waits meanwhile; with a reader in the way the next batch tries again.
            self._writer.execute("PRAGMA busy_timeout = 100")
            settled = self._checkpoint()
            self._writer.execute("PRAGMA busy_timeout = 5000")
        except sqlite3.Error as error:
            raise AppendError(self._answer(error)) from error
        except LogUnusable as error:
            raise AppendError(Unavailable(str(error))) from error
        if not settled:
            raise AppendError(Unavailable("the log is being read; its outcome is not yet known"))

    def resume(self) -> None:
        if self._damage is not None:
            raise AppendError(self._damage)
        try:
            self._ballast.take()
        except OSError as error:
            raise AppendError(ResourceExhausted(_FULL)) from error
        try:
            self._reserve()
        except OSError as error:
            logger.warning("no room was reserved for the write-ahead log: %s", error)

    def tidy(self) -> None:
        if self._pages < self._most_pages():
            return
        try:
            _, pages, moved = self._writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as error:
            # What was acknowledged is in the write-ahead log. The next append tells more.
            logger.warning("a checkpoint failed: %s", error)
            self._pages = self._most_pages() // 2
        else:
            # What a reader still looks at stays; it is tried again after as many pages more.
            self._pages = min(pages - moved, self._most_pages() // 2)

    def read(self, log: LogId, after: int = 0, *, limit: int = 1_000) -> Sequence[StoredRecord]:
        with self._reading() as reader:
            row = reader.execute(sql.SELECT_LOG, log).fetchone()
            if row is None:
                return []
            following = max(after, row[1]) + 1
            found = reader.execute(
                sql.SELECT_AFTER, {"log": row[0], "next": following, "limit": limit}
            )
            return [_record(columns) for columns in found]

    def read_back(self, log: LogId, before: int, *, limit: int = 1_000) -> Sequence[StoredRecord]:
        with self._reading() as reader:
            row = reader.execute(sql.SELECT_LOG, log).fetchone()
            if row is None:
                return []
            found = reader.execute(sql.SELECT_BEFORE, (*row, before, limit))
            return [_record(columns) for columns in found]

    def large_values(self, digests: Sequence[bytes]) -> Mapping[bytes, Value]:
        with self._reading() as reader:
            rows = (reader.execute(sql.SELECT_LARGE, (digest,)).fetchone() for digest in digests)
            return {row[0]: Value(row[1], row[2], row[0]) for row in rows if row is not None}

    def save_snapshot(self, log: LogId, snapshot: StoredSnapshot) -> None:
        offset, digest, time, state, requests, check, large = snapshot
        with self._writing() as writer:
            row = writer.execute(sql.SELECT_LOG, log).fetchone()
            if row is None or offset < row[1]:
                return
            writer.execute(
                sql.INSERT_SNAPSHOT, (row[0], offset, digest, time, check, state, requests)
            )
            writer.execute(sql.TRIM_REQUESTS, {"log": row[0]})
            writer.executemany(sql.INSERT_USE, ((row[0], offset, 1, value) for value in large))
            writer.executemany(sql.DELETE_UNUSED, ((value,) for value in large))
        self._pages += PAGES_A_COMMIT + (len(state) + len(requests)) // 4_096

    def snapshot(self, log: LogId, before: int) -> StoredSnapshot | None:
        with self._reading() as reader:
            row = reader.execute(sql.SELECT_LOG, log).fetchone()
            if row is None:
                return None
            found = reader.execute(sql.SELECT_SNAPSHOT, (row[0], before, row[1])).fetchone()
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

    def cut(self, at: LogHead) -> None:
        with self._writing() as writer:
            writer.execute(sql.CUT, (at.head, at.digest, *at.log, at.head))

    def drop(self, log: LogId) -> None:
        with self._writing() as writer:
            writer.execute(sql.DROP, log)
        self._tails.pop(log, None)

    def sweep(self, now_unix_nanos: int) -> bool:
        with self._writing() as writer:
            found = writer.execute(sql.SELECT_TO_SWEEP).fetchone()
            if found is not None:
                _sweep_log(writer, *found, now=now_unix_nanos)
                return True
            return _sweep_values(writer, now_unix_nanos)

    def live_sessions(self) -> int:
        with self._reading() as reader:
            (count,) = reader.execute(sql.COUNT_LIVE).fetchone()
            return int(count)

    def logs(self, after: LogId | None = None, *, limit: int = 1_000) -> Sequence[LogEntry]:
        with self._reading() as reader:
            found = reader.execute(sql.SELECT_LOGS, (*(after or ("", "")), limit))
            return [LogEntry(LogId(*columns[:2]), *columns[2:]) for columns in found]

    def ended_before(self, time_unix_nanos: int, *, limit: int = 1_000) -> Sequence[LogId]:
        with self._reading() as reader:
            found = reader.execute(sql.SELECT_ENDED, (time_unix_nanos, limit))
            return [LogId(*columns) for columns in found]

    def touch(self, accesses: Mapping[LogId, int]) -> None:
        with self._writing() as writer:
            writer.executemany(sql.TOUCH, ((time, *log) for log, time in accesses.items()))

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

    def close(self) -> None:
        while not self._readers.empty():
            self._readers.get_nowait().close()
        if self._closed:
            return
        self._closed = True
        try:
            with self._writing() as writer:
                writer.executemany(sql.MARK, ((row,) for row in self._changed))
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except (sqlite3.Error, AppendError) as error:
            # What was acknowledged is in the write-ahead log, which the next start reads.
            logger.warning("the log was closed without a last checkpoint: %s", error)
        finally:
            self._writer.close()
            self._ballast.give_up()
            self._owner.release()

    def _open_first(self) -> sqlite3.Connection:
        try:
            return self._open()
        except sqlite3.Error:
            # An earlier process left its ballast on a disk that is full now.
            if not self._ballast.give_up():
                raise
        return self._open()

    def _open(self) -> sqlite3.Connection:
        connection = self._connect()
        try:
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (schema,) = connection.execute("PRAGMA user_version").fetchone()
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if application != sql.APPLICATION_ID and tables:
                raise LogUnusable(
                    f"{self.path} is a database of another program, not a log of "
                    "snakepit_bridge: name another file"
                )
            if schema > sql.FILE_SCHEMA:
                raise LogUnusable(
                    f"{self.path} was written by a newer snakepit_bridge (file schema "
                    f"{schema}, this release knows {sql.FILE_SCHEMA}): start that one"
                )
            connection.executescript(_SETUP)
            if schema < sql.FILE_SCHEMA:
                sql.migrate(connection, schema)
        except BaseException:
            connection.close()
            raise
        return connection

    def _checkpoint(self) -> bool:
        """Empty the write-ahead log into the database and reserve its room anew.

        Gives whether it finished; it does not while another process reads the old state.
        """
        busy, _, _ = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            return False
        self._pages = 0
        try:
            self._reserve()
        except OSError as error:
            logger.warning("no room was reserved for the write-ahead log: %s", error)
        return True

    def _reserve(self) -> None:
        # SQLite takes zeros for the end of the log, as it does what a torn write left. This
        # process owns the file and has just emptied it, so nobody else writes here now.
        path = self.path.with_name(self.path.name + "-wal")
        free = shutil.disk_usage(self.path.parent).free
        if free < WAL_BYTES * 16 or path.stat().st_size:
            return
        with path.open("r+b") as file:
            # The truncation first: else a power cut could bring back old frames behind zeros.
            os.fsync(file.fileno())
            file.write(bytes(WAL_BYTES))
            file.flush()
            os.fsync(file.fileno())

    def _most_pages(self) -> int:
        """Pages the write-ahead log may hold: with the ballast gone they fit the database."""
        return max(self._ballast.size // PAGE_BYTES, 16)

    def _connect(self) -> sqlite3.Connection:
        # The engine's contract orders the calls; SQLite itself is built thread-safe.
        return sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)

    def _head(self, query: str, arguments: Sequence[str], session_id: str) -> LogHead | None:
        with self._reading() as reader:
            row = reader.execute(query, arguments).fetchone()
            if row is None:
                return None
            id_, epoch, base, base_digest, mark, mark_digest = row
            end = reader.execute(sql.SELECT_END, (id_,)).fetchone()
            offset, digest = end if end and end[0] > base else (base, base_digest)
            return LogHead(
                LogId(session_id, epoch),
                offset,
                digest,
                base,
                base_digest,
                (mark, mark_digest) if mark else None,
            )

    def _find_tail(self, log: LogId) -> None:
        """Learn where a log ends; one that is not stored yet is begun."""
        found = self._writer.execute(sql.SELECT_LOG, log).fetchone()
        if found is None:
            found = self._writer.execute(sql.INSERT_LOG, log).fetchone()
        id_, base = found
        end = self._writer.execute(sql.SELECT_END, (id_,)).fetchone()
        self._tails[log] = (id_, max(base, end[0]) if end else base)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction of upkeep."""
        writer = self._writer
        try:
            writer.execute("BEGIN IMMEDIATE")
            try:
                yield writer
            except BaseException:
                if writer.in_transaction:
                    writer.execute("ROLLBACK")
                raise
            writer.execute("COMMIT")
        except sqlite3.Error as error:
            raise AppendError(self._answer(error)) from error

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

    def _answer(self, error: sqlite3.Error) -> BridgeError:
        code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            return ResourceExhausted(_FULL)
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


class SqliteCopy(SqliteLog):
    """A log that is read only: a copy, or one that a running bridge owns and writes."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open a file that is there.

        :raises LogUnusable: it cannot be opened, or is not such a log.
        """
        self.path = Path(path)
        self.url = f"sqlite:{self.path}"
        self._readers = queue.LifoQueue()
        self._damage = None
        if not self.path.is_file():
            raise LogUnusable(f"there is no file {self.path}")
        try:
            with self._reading() as reader:
                (application,) = reader.execute("PRAGMA application_id").fetchone()
                (schema,) = reader.execute("PRAGMA user_version").fetchone()
        except BridgeError as error:
            raise LogUnusable(error.message) from error
        if application != sql.APPLICATION_ID:
            raise LogUnusable(f"{self.path} is no log of snakepit_bridge")
        if schema != sql.FILE_SCHEMA:
            raise LogUnusable(
                f"{self.path} has file schema {schema} and this release reads "
                f"{sql.FILE_SCHEMA}: "
                + ("start a newer snakepit_bridge" if schema > sql.FILE_SCHEMA else "serve it once")
            )

    def close(self) -> None:
        while not self._readers.empty():
            self._readers.get_nowait().close()

    def _connect(self) -> sqlite3.Connection:
        uri = f"{self.path.absolute().as_uri()}?mode=ro"
        return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)


_FULL = "the disk that holds the log is full: nothing was changed; free space and retry"


_new = tuple.__new__
_OF_APPENDING = ((), 0)


def _record(columns: tuple[int, int, bytes, bytes, bytes]) -> StoredRecord:
    return _new(StoredRecord, columns + _OF_APPENDING)


def _sweep_log(writer: sqlite3.Connection, log: int, base: int, dropped: int, *, now: int) -> None:
    """Delete a piece of what a log no longer keeps."""
    until = _ALL if dropped else base
    piece = {"log": log, "until": until, "limit": SWEPT_AT_ONCE}
    uses = writer.execute(sql.SELECT_USES, piece).fetchall()
    for at, snapshot, digest in uses:
        writer.execute(sql.DELETE_USE, (log, at, snapshot, digest))
        writer.execute(sql.NOTE_UNUSED, {"digest": digest, "now": now})
    records = writer.execute(sql.DELETE_RECORDS, piece).rowcount
    snapshots = writer.execute(sql.DELETE_SNAPSHOTS, piece | {"limit": 10}).rowcount
    if not (uses or records or snapshots):
        if dropped:
            writer.execute(sql.DELETE_LOG, (log,))
        else:
            writer.execute(sql.SWEPT, (base, log))


_ALL = 2**63 - 1


def _sweep_values(writer: sqlite3.Connection, now: int) -> bool:
    """Delete a few values that nothing has referred to for long."""
    found = writer.execute(sql.SELECT_UNUSED, (now - UNREFERENCED_NANOS, 10)).fetchall()
    for digest, used in found:
        writer.execute(sql.DELETE_UNUSED, (digest,))
        if not used:
            writer.execute(sql.DELETE_VALUE, (digest,))
    return bool(found)
