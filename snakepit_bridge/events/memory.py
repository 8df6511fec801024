"""The engine without a disk: for tests and for sessions that may be lost with the process.

It keeps the contract of ``log.EventLog`` in full; durable here means "as long as this
object lives".
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Mapping, Sequence

from snakepit_bridge.events.log import Conflict, EventLog
from snakepit_bridge.events.model import GENESIS, LogHead, LogId, StoredRecord, Value

__all__ = ["MemoryLog"]


class MemoryLog(EventLog):
    """Logs in lists. The lock guards them all; nothing else is taken under it."""

    def __init__(self) -> None:
        self.url = "memory:"
        self._lock = threading.Lock()
        self._logs: dict[LogId, list[StoredRecord]] = {}
        self._latest: dict[str, LogId] = {}
        self._large: dict[bytes, Value] = {}

    def latest(self, session_id: str) -> LogHead | None:
        with self._lock:
            log = self._latest.get(session_id)
            return None if log is None else self._head(log)

    def append(self, records: Sequence[tuple[LogId, StoredRecord]]) -> None:
        with self._lock:
            heads: dict[LogId, int] = {}
            for log, record in records:
                head = heads.get(log, self._head(log).head)
                if record.first_offset != head + 1:
                    raise Conflict(
                        f"{log.session_id!r} ends at offset {head}; "
                        f"a record at {record.first_offset} does not follow"
                    )
                heads[log] = record.last_offset
            for log, record in records:
                if record.first_offset == 1:
                    self._latest[log.session_id] = log
                self._logs.setdefault(log, []).append(record._replace(large=()))
                self._large.update((value.digest, value) for value in record.large)

    def settle(self) -> None:
        """An append to memory is never in doubt."""

    def read(self, log: LogId, after: int = 0, *, limit: int = 1_000) -> Sequence[StoredRecord]:
        with self._lock:
            records = self._logs.get(log, [])
            start = max(0, bisect_right(records, after + 1, key=_first_offset) - 1)
            if records and records[start].last_offset <= after:
                start += 1
            return records[start : start + limit]

    def read_back(self, log: LogId, before: int, *, limit: int = 1_000) -> Sequence[StoredRecord]:
        with self._lock:
            records = self._logs.get(log, [])
            end = bisect_right(records, before - 1, key=_first_offset)
            return records[max(0, end - limit) : end][::-1]

    def large_values(self, digests: Sequence[bytes]) -> Mapping[bytes, Value]:
        with self._lock:
            return {digest: self._large[digest] for digest in digests if digest in self._large}

    def close(self) -> None:
        """Nothing is held but memory."""

    def _head(self, log: LogId) -> LogHead:
        records = self._logs.get(log)
        if not records:
            return LogHead(log, 0, GENESIS)
        return LogHead(log, records[-1].last_offset, records[-1].digest)


def _first_offset(record: StoredRecord) -> int:
    return record.first_offset
