"""The SQLite file: its tables, its statements, and how older files become like it."""

from __future__ import annotations

import sqlite3

from google.protobuf.message import DecodeError

from snakepit_bridge.event_log_pb2 import Record
from snakepit_bridge.events.codec import digests

__all__ = ["APPLICATION_ID", "FILE_SCHEMA", "migrate"]

APPLICATION_ID = 0x534E4B42  # "SNKB", what file(1) and the check on opening go by
FILE_SCHEMA = 2

_SCHEMA_1 = """
CREATE TABLE logs (
  id         INTEGER PRIMARY KEY,
  session_id TEXT NOT NULL,
  epoch      TEXT NOT NULL,
  UNIQUE (session_id, epoch)
);
-- One row is one transaction; event_log.proto says what the columns hold.
CREATE TABLE records (
  log          INTEGER NOT NULL REFERENCES logs (id),
  first_offset INTEGER NOT NULL,
  events       INTEGER NOT NULL,
  header       BLOB NOT NULL,
  "values"     BLOB NOT NULL,
  digest       BLOB NOT NULL,
  PRIMARY KEY (log, first_offset)
);
CREATE TABLE large_values (
  digest BLOB PRIMARY KEY,
  "any"  BLOB NOT NULL,
  binary BLOB NOT NULL
);
"""

_SCHEMA_2 = f"""
-- Offset and digest up to which retention has cut the log, and up to where its rows are gone.
ALTER TABLE logs ADD COLUMN base INTEGER NOT NULL DEFAULT 0;
ALTER TABLE logs ADD COLUMN base_digest BLOB NOT NULL DEFAULT x'{bytes(32).hex()}';
ALTER TABLE logs ADD COLUMN swept INTEGER NOT NULL DEFAULT 0;
-- Unix time in nanoseconds; 0 while it lives.
ALTER TABLE logs ADD COLUMN ended INTEGER NOT NULL DEFAULT 0;
ALTER TABLE logs ADD COLUMN accessed INTEGER NOT NULL DEFAULT 0;
-- Head and digest as a clean stop left them; 0 = no clean stop yet.
ALTER TABLE logs ADD COLUMN mark INTEGER NOT NULL DEFAULT 0;
ALTER TABLE logs ADD COLUMN mark_digest BLOB NOT NULL DEFAULT x'';
-- 1 when the log is to be forgotten; its rows go piece by piece.
ALTER TABLE logs ADD COLUMN dropped INTEGER NOT NULL DEFAULT 0;
CREATE INDEX logs_by_end ON logs (ended) WHERE ended > 0;
CREATE INDEX logs_live ON logs (id) WHERE ended = 0 AND dropped = 0;
CREATE INDEX logs_to_sweep ON logs (id) WHERE dropped > 0 OR swept < base;
CREATE TABLE snapshots (
  log      INTEGER NOT NULL REFERENCES logs (id),
  "offset" INTEGER NOT NULL,
  digest   BLOB NOT NULL,
  time     INTEGER NOT NULL,
  "check"  BLOB NOT NULL,
  state    BLOB NOT NULL,
  requests BLOB NOT NULL,
  PRIMARY KEY (log, "offset")
);
-- Which records and snapshots refer to a large value.
CREATE TABLE large_uses (
  log      INTEGER NOT NULL,
  "at"     INTEGER NOT NULL,  -- first offset of the record, or offset of the snapshot
  snapshot INTEGER NOT NULL,  -- 1 or 0
  digest   BLOB NOT NULL,
  PRIMARY KEY (log, "at", snapshot, digest)
) WITHOUT ROWID;
CREATE INDEX large_uses_by_digest ON large_uses (digest);
-- Since when nothing refers to a large value (Unix nanoseconds).
CREATE TABLE unused_values (
  digest BLOB PRIMARY KEY,
  since  INTEGER NOT NULL
);
"""


def migrate(connection: sqlite3.Connection, schema: int) -> None:
    """Bring a file of an older schema (0: an empty one) to this one, in one transaction."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        for step in (_SCHEMA_1, _SCHEMA_2)[schema:]:
            for statement in _statements(step):
                connection.execute(statement)
        if schema == 1:
            _look_into_records(connection)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {FILE_SCHEMA}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _statements(script: str) -> list[str]:
    # executescript would commit first, and a step has to be whole.
    found, statement = [], ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            found.append(statement)
            statement = ""
    return found


def _look_into_records(connection: sqlite3.Connection) -> None:
    """Write down what schema 1 left to be read from the records: ends and large values."""
    (large,) = connection.execute("SELECT count(*) FROM large_values").fetchone()
    rows = connection.execute(
        "SELECT log, first_offset, header FROM records"
        if large
        else "SELECT log, max(first_offset), header FROM records GROUP BY log"
    )
    kept = {row[0] for row in connection.execute("SELECT digest FROM large_values")}
    for log, first_offset, header in rows:
        try:
            record = Record.FromString(header)
        except DecodeError:
            continue  # damaged: whoever reads this log is told
        for event in record.events:
            kind = event.WhichOneof("kind")
            if kind is None:
                continue  # of a newer release
            if kind == "session_ended":
                connection.execute(
                    "UPDATE logs SET ended = ? WHERE id = ?", (record.time_unix_nanos, log)
                )
            for digest, _ in digests((kind, getattr(event, kind))):
                if digest in kept:
                    connection.execute(INSERT_USE, (log, first_offset, 0, digest))


INSERT_LOG = "INSERT INTO logs (session_id, epoch) VALUES (?, ?) RETURNING id, base"
COLUMNS = 6
ROWS_AT_ONCE = 64
INSERT_RECORDS = [
    "INSERT INTO records VALUES " + ", ".join(["(?, ?, ?, ?, ?, ?)"] * rows)  # noqa: S608 - constants
    for rows in range(ROWS_AT_ONCE + 1)
]
"""By the number of rows."""
INSERT_LARGE = "INSERT OR IGNORE INTO large_values VALUES (?, ?, ?)"
INSERT_USE = "INSERT OR IGNORE INTO large_uses VALUES (?, ?, ?, ?)"
UPDATE_ENDED = "UPDATE logs SET ended = ? WHERE id = ?"

# In one statement, so that all of it is of one moment.
_HEAD_COLUMNS = """
epoch, base, base_digest, mark, mark_digest,
(SELECT first_offset + events - 1 FROM records WHERE log = id ORDER BY first_offset DESC LIMIT 1),
(SELECT digest FROM records WHERE log = id ORDER BY first_offset DESC LIMIT 1)
"""
SELECT_LATEST = (
    f"SELECT {_HEAD_COLUMNS} FROM logs"  # noqa: S608 - a constant
    " WHERE session_id = ? AND dropped = 0 ORDER BY id DESC LIMIT 1"
)
SELECT_ONE = (
    f"SELECT {_HEAD_COLUMNS} FROM logs"  # noqa: S608 - a constant
    " WHERE session_id = ? AND epoch = ? AND dropped = 0"
)
SELECT_LOG = "SELECT id, base FROM logs WHERE session_id = ? AND epoch = ? AND dropped = 0"
SELECT_END = (
    "SELECT first_offset + events - 1, digest FROM records WHERE log = ?"
    " ORDER BY first_offset DESC LIMIT 1"
)
SELECT_AFTER = """
SELECT first_offset, events, header, "values", digest FROM records
WHERE log = :log AND first_offset + events > :next AND first_offset >= coalesce(
  (SELECT max(first_offset) FROM records WHERE log = :log AND first_offset <= :next), 0)
ORDER BY first_offset LIMIT :limit
"""
SELECT_BEFORE = """
SELECT first_offset, events, header, "values", digest FROM records
WHERE log = ? AND first_offset > ? AND first_offset < ? ORDER BY first_offset DESC LIMIT ?
"""
SELECT_LARGE = 'SELECT digest, "any", binary FROM large_values WHERE digest = ?'
HAS_LARGE = "SELECT 1 FROM large_values WHERE digest = ?"

INSERT_SNAPSHOT = "INSERT OR IGNORE INTO snapshots VALUES (?, ?, ?, ?, ?, ?, ?)"
TRIM_REQUESTS = """
UPDATE snapshots SET requests = x'' WHERE log = :log AND length(requests) > 0 AND "offset" < (
  SELECT "offset" FROM snapshots WHERE log = :log ORDER BY "offset" DESC LIMIT 1 OFFSET 1)
"""
SELECT_SNAPSHOT = """
SELECT "offset", digest, time, state, requests, "check" FROM snapshots
WHERE log = ? AND "offset" <= ? AND "offset" >= ? ORDER BY "offset" DESC LIMIT 1
"""
SELECT_SNAPSHOT_ALONE = """
SELECT "offset", digest, time, state, x'', "check", '', length(requests) FROM snapshots
WHERE log = ? AND "offset" <= ? AND "offset" >= ? ORDER BY "offset" DESC LIMIT 1
"""
SELECT_TO_CUT = """
SELECT session_id, epoch, max("offset"), digest FROM snapshots JOIN logs ON log = id
WHERE time < ? AND "offset" > base AND ended = 0 AND dropped = 0 GROUP BY log LIMIT ?
"""
SELECT_SNAPSHOT_OFFSETS = """
SELECT "offset" FROM snapshots WHERE log = ? AND "offset" >= ? ORDER BY "offset"
"""

CUT = """
UPDATE logs SET base = ?, base_digest = ? WHERE session_id = ? AND epoch = ? AND base < ?
"""
DROP = """
UPDATE logs SET dropped = 1, epoch = epoch || ' dropped ' || id WHERE session_id = ? AND epoch = ?
"""
MARK = """
UPDATE logs SET (mark, mark_digest) = (
  SELECT first_offset + events - 1, digest FROM records WHERE log = logs.id
  ORDER BY first_offset DESC LIMIT 1)
WHERE id = ? AND EXISTS (SELECT 1 FROM records WHERE log = logs.id)
"""
TOUCH = "UPDATE logs SET accessed = ? WHERE session_id = ? AND epoch = ?"
COUNT_LIVE = "SELECT count(*) FROM logs WHERE ended = 0 AND dropped = 0"
SELECT_LOGS = """
SELECT session_id, epoch, ended, accessed FROM logs
WHERE dropped = 0 AND (session_id, epoch) > (?, ?) ORDER BY session_id, epoch LIMIT ?
"""
SELECT_ENDED = """
SELECT session_id, epoch FROM logs
WHERE ended > 0 AND ended < ? AND dropped = 0 ORDER BY ended LIMIT ?
"""

SELECT_TO_SWEEP = """
SELECT id, base, dropped FROM logs WHERE dropped > 0 OR swept < base ORDER BY id LIMIT 1
"""
DELETE_RECORDS = """
DELETE FROM records WHERE log = :log AND first_offset IN (
  SELECT first_offset FROM records WHERE log = :log AND first_offset <= :until
  ORDER BY first_offset LIMIT :limit)
"""
DELETE_SNAPSHOTS = """
DELETE FROM snapshots WHERE log = :log AND "offset" IN (
  SELECT "offset" FROM snapshots WHERE log = :log AND "offset" < :until
  ORDER BY "offset" LIMIT :limit)
"""
SELECT_USES = """
SELECT "at", snapshot, digest FROM large_uses
WHERE log = :log AND "at" <= :until AND NOT (snapshot AND "at" = :until)
ORDER BY "at" LIMIT :limit
"""
DELETE_USE = 'DELETE FROM large_uses WHERE log = ? AND "at" = ? AND snapshot = ? AND digest = ?'
DELETE_LOG = "DELETE FROM logs WHERE id = ?"
SWEPT = "UPDATE logs SET swept = ? WHERE id = ?"
NOTE_UNUSED = """
INSERT OR REPLACE INTO unused_values SELECT :digest, :now
WHERE NOT EXISTS (SELECT 1 FROM large_uses WHERE digest = :digest)
"""
SELECT_UNUSED = """
SELECT digest, EXISTS (SELECT 1 FROM large_uses WHERE large_uses.digest = unused_values.digest)
FROM unused_values WHERE since <= ? LIMIT ?
"""
DELETE_UNUSED = "DELETE FROM unused_values WHERE digest = ?"
DELETE_VALUE = "DELETE FROM large_values WHERE digest = ?"
