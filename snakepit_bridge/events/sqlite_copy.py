"""Reading a SQLite log from outside, without owning it."""

from __future__ import annotations

import os
import sqlite3

from snakepit_bridge.errors import BridgeError
from snakepit_bridge.events import sqlite_schema as sql
from snakepit_bridge.events.log import LogUnusable
from snakepit_bridge.events.sqlite import SqliteLog
from snakepit_bridge.events.sqlite_reading import SqliteReading

__all__ = ["SqliteCopy"]


class SqliteCopy(SqliteLog):
    """A log that is read only: a copy, or one that a running bridge owns and writes."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open a file that is there.

        :raises LogUnusable: it cannot be opened, or is not such a log.
        """
        SqliteReading.__init__(self, path)
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
