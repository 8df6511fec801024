"""The engine without a disk: for tests and for sessions that may be lost with the process.

It keeps the contract of ``log.EventLog`` in full; durable here means "as long as this
object lives".
"""

from __future__ import annotations

import threading
from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from snakepit_bridge.events.log import UNREFERENCED_NANOS, Conflict, EventLog, LogEntry
from snakepit_bridge.events.model import (
    GENESIS,
    LogHead,
    LogId,
    StoredRecord,
    StoredSnapshot,
    Value,
)

__all__ = ["MemoryLog"]


class _Log:
    """One log. ``large`` lists the digests that each record refers to, where it does."""

    def __init__(self) -> None:
        self.records: list[StoredRecord] = []
        self.snapshots: list[StoredSnapshot] = []
        self.large: list[tuple[int, tuple[bytes, ...]]] = []
        self.base = 0
        self.base_digest = GENESIS
        self.ended = 0
        self.accessed = 0
        self.size = 0
        """Bytes of the records."""

    def end(self) -> tuple[int, bytes]:
        if not self.records:
            return self.base, self.base_digest
        return self.records[-1].last_offset, self.records[-1].digest


class MemoryLog(EventLog):
    """Logs in lists. The lock guards them all; nothing else is taken under it."""

    def __init__(self) -> None:
        self.url = "memory:"
        self._lock = threading.Lock()
        self._logs: dict[LogId, _Log] = {}
        self._epochs: dict[str, list[str]] = {}
        """Of each session, in the order in which they began."""
        self._values: dict[bytes, Value] = {}
        self._uses: Counter[bytes] = Counter()
        self._unused: dict[bytes, int] = {}
        """Digests of values that nothing refers to, and since when."""

    def latest(self, session_id: str) -> LogHead | None:
        with self._lock:
            epochs = self._epochs.get(session_id)
            return self._head(LogId(session_id, epochs[-1])) if epochs else None

    def head(self, log: LogId) -> LogHead | None:
        with self._lock:
            return self._head(log) if log in self._logs else None

    def append(self, records: Sequence[tuple[LogId, StoredRecord]]) -> None:
        with self._lock:
            heads: dict[LogId, int] = {}
            for log, record in records:
                head = heads.get(log)
                if head is None:
                    head = self._logs[log].end()[0] if log in self._logs else 0
                if record.first_offset != head + 1:
                    raise Conflict(
                        f"{log.session_id!r} ends at offset {head}; "
                        f"a record at {record.first_offset} does not follow"
                    )
                heads[log] = record.last_offset
            for log, record in records:
                self._append(log, record)

    def _append(self, log: LogId, record: StoredRecord) -> None:
        kept = self._logs.get(log)
        if kept is None:
            kept = self._logs[log] = _Log()
            self._epochs.setdefault(log.session_id, []).append(log.epoch)
        kept.records.append(record._replace(large=(), ended_unix_nanos=0))
        kept.size += _size(record)
        kept.ended = record.ended_unix_nanos
        if record.large:
            digests = tuple({value.digest for value in record.large})
            kept.large.append((record.last_offset, digests))
            self._values.update((value.digest, value) for value in record.large)
            self._uses.update(digests)

    def settle(self) -> None:
        """An append to memory is never in doubt."""

    def resume(self) -> None:
        """Memory is always there."""

    def tidy(self) -> None:
        """Nothing is left undone."""

    def read(self, log: LogId, after: int = 0, *, limit: int = 1_000) -> Sequence[StoredRecord]:
        with self._lock:
            records = self._logs[log].records if log in self._logs else []
            start = max(0, bisect_right(records, after + 1, key=_first_offset) - 1)
            if records and records[start].last_offset <= after:
                start += 1
            return records[start : start + limit]

    def read_back(self, log: LogId, before: int, *, limit: int = 1_000) -> Sequence[StoredRecord]:
        with self._lock:
            records = self._logs[log].records if log in self._logs else []
            end = bisect_right(records, before - 1, key=_first_offset)
            return records[max(0, end - limit) : end][::-1]

    def large_values(self, digests: Sequence[bytes]) -> Mapping[bytes, Value]:
        with self._lock:
            return {digest: self._values[digest] for digest in digests if digest in self._values}

    def save_snapshot(self, log: LogId, snapshot: StoredSnapshot) -> None:
        with self._lock:
            kept = self._logs.get(log)
            if kept is None or snapshot.offset < kept.base:
                return
            if any(other.offset == snapshot.offset for other in kept.snapshots):
                return
            insort(kept.snapshots, snapshot, key=_offset)
            self._uses.update(set(snapshot.large))
            kept.snapshots[:-2] = [older._replace(requests=b"") for older in kept.snapshots[:-2]]

    def snapshot(self, log: LogId, before: int, *, requests: bool = True) -> StoredSnapshot | None:
        with self._lock:
            snapshots = self._logs[log].snapshots if log in self._logs else []
            index = bisect_right(snapshots, before, key=_offset)
            if not index:
                return None
            found = snapshots[index - 1]._replace(large=())
            if requests:
                return found
            return found._replace(requests=b"", requests_size=len(found.requests))

    def snapshot_offsets(self, log: LogId) -> Sequence[int]:
        with self._lock:
            return [s.offset for s in self._logs[log].snapshots] if log in self._logs else []

    def to_cut(self, time_unix_nanos: int, *, limit: int = 1_000) -> Sequence[LogHead]:
        with self._lock:
            found = [
                LogHead(log, snapshot.offset, snapshot.digest)
                for log, kept in self._logs.items()
                if not kept.ended
                for snapshot in kept.snapshots
                if snapshot.time_unix_nanos < time_unix_nanos and snapshot.offset > kept.base
            ]
            newest = {at.log: at for at in found}  # snapshots are in order
            return list(newest.values())[:limit]

    def cut(self, at: LogHead) -> None:
        with self._lock:
            kept = self._logs.get(at.log)
            base, digest = at.head, at.digest
            if kept is None or base <= kept.base:
                return
            kept.base, kept.base_digest = base, digest
            kept.records = [record for record in kept.records if record.last_offset > base]
            kept.size = sum(map(_size, kept.records))
            self._release(digests for last, digests in kept.large if last <= base)
            kept.large = [(last, digests) for last, digests in kept.large if last > base]
            self._release(s.large for s in kept.snapshots if s.offset < base)
            kept.snapshots = [s for s in kept.snapshots if s.offset >= base]

    def drop(self, log: LogId) -> None:
        with self._lock:
            kept = self._logs.pop(log, None)
            if kept is None:
                return
            self._release(digests for _, digests in kept.large)
            self._release(snapshot.large for snapshot in kept.snapshots)
            epochs = self._epochs[log.session_id]
            epochs.remove(log.epoch)
            if not epochs:
                del self._epochs[log.session_id]

    def sweep(self, now_unix_nanos: int) -> bool:
        with self._lock:
            for digest in [digest for digest, since in self._unused.items() if not since]:
                self._unused[digest] = now_unix_nanos
            for digest, since in list(self._unused.items()):
                if self._uses[digest] > 0:
                    del self._unused[digest]
                elif since <= now_unix_nanos - UNREFERENCED_NANOS:
                    del self._unused[digest], self._uses[digest], self._values[digest]
        return False

    def live_sessions(self) -> int:
        with self._lock:
            return sum(not log.ended for log in self._logs.values())

    def size(self) -> int:
        with self._lock:
            values = sum(len(value.any) + len(value.binary) for value in self._values.values())
            return values + sum(log.size for log in self._logs.values())

    def logs(self, after: LogId | None = None, *, limit: int = 1_000) -> Sequence[LogEntry]:
        with self._lock:
            found = sorted(log for log in self._logs if after is None or log > after)[:limit]
            return [LogEntry(log, self._logs[log].ended, self._logs[log].accessed) for log in found]

    def ended_before(self, time_unix_nanos: int, *, limit: int = 1_000) -> Sequence[LogId]:
        with self._lock:
            found = [log for log, kept in self._logs.items() if 0 < kept.ended < time_unix_nanos]
            return found[:limit]

    def touch(self, accesses: Mapping[LogId, int]) -> None:
        with self._lock:
            for log, time in accesses.items():
                if log in self._logs:
                    self._logs[log].accessed = time

    def faults(self, *, thorough: bool = True) -> Iterator[str]:  # noqa: ARG002 - the contract's
        return iter(())

    def close(self) -> None:
        """Nothing is held but memory."""

    def _head(self, log: LogId) -> LogHead:
        kept = self._logs[log]
        return LogHead(log, *kept.end(), kept.base, kept.base_digest)

    def _release(self, uses: Iterable[Iterable[bytes]]) -> None:
        for digests in uses:
            for digest in set(digests):
                self._uses[digest] -= 1
                if self._uses[digest] <= 0:
                    self._unused[digest] = 0


def _first_offset(record: StoredRecord) -> int:
    return record.first_offset


def _offset(snapshot: StoredSnapshot) -> int:
    return snapshot.offset


def _size(record: StoredRecord) -> int:
    return len(record.header) + len(record.values)
