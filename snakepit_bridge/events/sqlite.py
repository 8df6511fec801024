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

A full disk is met with *ballast*: a file beside the log that holds nothing, twice as large
as the write-ahead log may grow before it is emptied. It is given up when a commit fails for
want of room, so that the checkpoint which settles the outcome has the room it needs, and no
more is appended until the ballast is there again.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from snakepit_bridge.errors import ResourceExhausted, Unavailable
from snakepit_bridge.events import sqlite_schema as sql
from snakepit_bridge.events.ballast import Ballast
from snakepit_bridge.events.log import (
    UNREFERENCED_NANOS,
    AppendError,
    Conflict,
    LogUnusable,
)
from snakepit_bridge.events.model import (
    LogHead,
    LogId,
    StoredRecord,
    StoredSnapshot,
)
from snakepit_bridge.events.owner import Owner, make_directory
from snakepit_bridge.events.sqlite_reading import FULL, IN_A_FILE, SqliteReading
from snakepit_bridge.events.value_files import FILE_LIMIT

__all__ = ["WAL_BYTES", "SqliteLog"]

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

_SETUP = f"""
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
PRAGMA wal_autocheckpoint = {2 * WAL_PAGES};
PRAGMA busy_timeout = 5000;
"""


class SqliteLog(SqliteReading):
    """Logs in one SQLite file. One writing connection, a few reading ones."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open or create the file.

        :raises LogInUse: another process owns it.
        :raises LogUnusable: it cannot be opened, or is not such a log.
        """
        super().__init__(path)
        try:
            make_directory(self.path.parent)
            self._owner = Owner(self.path.with_name(self.path.name + ".owner"))
        except OSError as error:
            raise LogUnusable(f"cannot use {self.path}: {error.strerror or error}") from error
        self._closed = False
        self._ballast = Ballast(self.path.with_name(self.path.name + ".ballast"), 2 * WAL_BYTES)
        self._strays: Iterator[bytes] | None = self._files.digests()
        """Files that an earlier process may have left; looked through once, piece by piece."""
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

    def append(self, records: Sequence[tuple[LogId, StoredRecord]]) -> None:
        writer = self._writer
        heads: dict[LogId, int] = {}
        rows: list[Any] = []
        rare = []
        begun = False
        self._check_damage()
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
            self._append_rare(rare)
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
        except (sqlite3.Error, OSError) as error:
            self._tails.clear()
            raise AppendError(self._answer(error)) from error
        self._stored(heads, rows)

    def _check_damage(self) -> None:
        if self._damage is not None:
            raise AppendError(self._damage)

    def _append_rare(self, rare: Sequence[tuple[int, StoredRecord]]) -> None:
        """Store what few records have: large values, and the end of their log."""
        for row, record in rare:
            self._append_values(row, record)
            if record.ended_unix_nanos:
                self._writer.execute(sql.UPDATE_ENDED, (record.ended_unix_nanos, row))
        self._files.sync()

    def _append_values(self, row: int, record: StoredRecord) -> None:
        for value in record.large:
            size = len(value.any) + len(value.binary)
            if size > FILE_LIMIT:
                self._files.write(value)
                self._writer.execute(sql.INSERT_LARGE, (value.digest, *IN_A_FILE))
            else:
                self._writer.execute(sql.INSERT_LARGE, (value.digest, value.any, value.binary))
                self._pages += size // 4_096
            self._writer.execute(sql.INSERT_USE, (row, record.first_offset, 0, value.digest))
            self._writer.execute(sql.DELETE_UNUSED, (value.digest,))

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
        self._check_damage()
        try:
            self._ballast.take()
        except OSError as error:
            raise AppendError(ResourceExhausted(FULL)) from error
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

    def save_snapshot(self, log: LogId, snapshot: StoredSnapshot) -> None:
        offset, digest, time, state, requests, check, large, _ = snapshot
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
            looked_at, gone = _sweep_values(writer, now_unix_nanos)
            strays = [] if looked_at else self._sweep_strays(writer)
        for digest in (*gone, *strays):
            self._files.remove(digest)
        return looked_at or self._strays is not None

    def _sweep_strays(self, reader: sqlite3.Connection) -> list[bytes]:
        """Some files that nothing refers to, because a process was killed."""
        some = list(itertools.islice(self._strays or (), SWEPT_AT_ONCE))
        if not some:
            self._strays = None
        return [each for each in some if not reader.execute(sql.HAS_LARGE, (each,)).fetchone()]

    def touch(self, accesses: Mapping[LogId, int]) -> None:
        with self._writing() as writer:
            writer.executemany(sql.TOUCH, ((time, *log) for log, time in accesses.items()))

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
        # With one more batch they are still no more than the ballast has room for.
        return max(self._ballast.size // PAGE_BYTES // 2, 16)

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
        self._check_damage()
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


def _sweep_values(writer: sqlite3.Connection, now: int) -> tuple[bool, list[bytes]]:
    """Delete a few values that nothing has referred to for long.

    Gives whether there were any to look at, and which are gone.
    """
    found = writer.execute(sql.SELECT_UNUSED, (now - UNREFERENCED_NANOS, 10)).fetchall()
    for digest, used in found:
        writer.execute(sql.DELETE_UNUSED, (digest,))
        if not used:
            writer.execute(sql.DELETE_VALUE, (digest,))
    return bool(found), [digest for digest, used in found if not used]
