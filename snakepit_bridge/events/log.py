"""The contract of an event log engine.

An engine keeps many logs, each a sequence of records, and promises four things:

* **Contiguous.** A record is accepted only where the log ends: its first offset is the
  head + 1. Anything else is ``Conflict`` and stores nothing (a compare-and-set, so that
  several bridges may share an engine).
* **Whole.** Of a record, all events are stored or none.
* **Durable.** When ``append`` returns, every record given to it survives whatever the
  engine's documentation says it survives.
* **Verbatim.** What is read is what was appended, byte for byte.

Whatever writes is called by one thread (the committer); reading is safe from any thread at
any time and sees only what was appended. When ``append`` raises anything but ``Conflict``,
it is unknown which records of that call are stored: the owner must call ``settle`` until it
succeeds, then believe ``head``, and append no more before ``resume`` has succeeded.

Beside its records an engine keeps of each log *snapshots*, which save work and nothing
else, and a *base*: the offset up to which retention has cut the log away. Cutting and
dropping take effect at once; ``sweep`` then frees the room, piece by piece.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from snakepit_bridge.errors import BridgeError
from snakepit_bridge.events.model import LogHead, LogId, StoredRecord, StoredSnapshot, Value

__all__ = [
    "UNREFERENCED_NANOS",
    "AppendError",
    "Conflict",
    "EventLog",
    "LogEntry",
    "LogInUse",
    "LogUnusable",
]


UNREFERENCED_NANOS = 3_600 * 10**9
"""How long a value stored by digest is kept that nothing refers to any more."""


class Conflict(Exception):
    """The log does not end where the append expected; nothing was stored."""


class AppendError(Exception):
    """An append failed, and what it stored is unknown until ``settle`` has succeeded.

    ``answer`` is what a client is told once it is known that nothing was stored.
    """

    def __init__(self, answer: BridgeError) -> None:
        super().__init__(answer.message)
        self.answer = answer


class LogUnusable(Exception):
    """The log cannot be opened; the message says why and what to do."""


class LogInUse(LogUnusable):
    """Another process owns this data; the message names it."""


class LogEntry(NamedTuple):
    """One log in a list."""

    log: LogId
    ended_unix_nanos: int
    """0 while it lives."""
    accessed_unix_nanos: int
    """When it was last accessed, within a tenth of the time to live."""


class EventLog(ABC):
    """Ordered, durable logs of transactions; see the module for what is promised."""

    url: str
    """What it was opened from, for example ``sqlite:/var/lib/bridge.db``."""

    @abstractmethod
    def latest(self, session_id: str) -> LogHead | None:
        """The newest log of a session, live or ended; ``None`` when none is kept."""

    @abstractmethod
    def head(self, log: LogId) -> LogHead | None:
        """Where a log begins and ends; ``None`` when it is not kept."""

    @abstractmethod
    def append(self, records: Sequence[tuple[LogId, StoredRecord]]) -> None:
        """Store records durably, in the order given; a first offset of 1 begins a log.

        :raises Conflict: a record does not follow the head of its log.
        :raises AppendError: the engine failed; which records are stored is unknown.
        """

    @abstractmethod
    def settle(self) -> None:
        """Make the outcome of a failed append definite, reopening what is needed.

        After it returns, a record that ``head`` does not show can never appear.

        :raises AppendError: the engine is still out of order.
        """

    @abstractmethod
    def resume(self) -> None:
        """Make sure, after settling, that an append can succeed again.

        :raises AppendError: it cannot yet, for example because the disk is still full.
        """

    @abstractmethod
    def tidy(self) -> None:
        """Do what appends leave undone, once their answers are on their way."""

    @abstractmethod
    def read(self, log: LogId, after: int = 0, *, limit: int = 1_000) -> Sequence[StoredRecord]:
        """At most ``limit`` records in order, from the one that holds offset ``after + 1``.

        Fewer where these are large; none only at the end.
        """

    @abstractmethod
    def read_back(self, log: LogId, before: int, *, limit: int = 1_000) -> Sequence[StoredRecord]:
        """At most ``limit`` records, newest first, from the one that holds ``before - 1``."""

    @abstractmethod
    def large_values(self, digests: Sequence[bytes]) -> Mapping[bytes, Value]:
        """Those of the values stored by digest that are kept."""

    @abstractmethod
    def save_snapshot(self, log: LogId, snapshot: StoredSnapshot) -> None:
        """Keep a snapshot, and the table of requests of the newest two only.

        It is durable no later than the next append; losing it costs time, nothing else.

        :raises AppendError: it was not saved; ``settle`` before anything else is appended.
        """

    @abstractmethod
    def snapshot(self, log: LogId, before: int, *, requests: bool = True) -> StoredSnapshot | None:
        """The newest snapshot at or before an offset, but not before the base.

        :param requests: whether its table of requests is read, too, or only its size.
        """

    @abstractmethod
    def snapshot_offsets(self, log: LogId) -> Sequence[int]:
        """Where there are snapshots, in order."""

    @abstractmethod
    def to_cut(self, time_unix_nanos: int, *, limit: int = 1_000) -> Sequence[LogHead]:
        """Where live logs can be cut: at the newest snapshot older than that time."""

    @abstractmethod
    def cut(self, at: LogHead) -> None:
        """Forget, for ever, the records up to the one that ends at an offset."""

    @abstractmethod
    def drop(self, log: LogId) -> None:
        """Forget a whole log, for ever."""

    @abstractmethod
    def sweep(self, now_unix_nanos: int) -> bool:
        """Free a piece of what was cut, dropped, or is referred to no more.

        A value stored by digest goes an hour after the last record or snapshot that refers
        to it. Gives whether there is more to do.
        """

    @abstractmethod
    def live_sessions(self) -> int:
        """How many logs have not ended."""

    @abstractmethod
    def size(self) -> int:
        """Bytes that all logs take up, about; quick, and safe from any thread."""

    @abstractmethod
    def logs(self, after: LogId | None = None, *, limit: int = 1_000) -> Sequence[LogEntry]:
        """Logs by session id and epoch, from the one after ``after``."""

    @abstractmethod
    def ended_before(self, time_unix_nanos: int, *, limit: int = 1_000) -> Sequence[LogId]:
        """Logs that ended before a time."""

    @abstractmethod
    def touch(self, accesses: Mapping[LogId, int]) -> None:
        """Keep when logs were last accessed (Unix nanoseconds), for people to read."""

    @abstractmethod
    def faults(self, *, thorough: bool = True) -> Iterator[str]:
        """What is wrong with the structure that holds the logs, in words.

        Once one was found nothing more is written.

        :param thorough: take the time to look at everything.
        """

    @abstractmethod
    def close(self) -> None:
        """Give up everything held; what was appended stays. Idempotent."""

    def records(self, log: LogId, after: int = 0, *, page: int = 1_000) -> Iterator[StoredRecord]:
        """All records from the one that holds ``after + 1``, read page by page."""
        while batch := self.read(log, after, limit=page):
            yield from batch
            after = batch[-1].last_offset

    def record_at(self, log: LogId, offset: int) -> StoredRecord | None:
        """The record that holds ``offset``."""
        found = self.read_back(log, offset + 1, limit=1)
        return found[0] if found and found[0].last_offset >= offset else None

    def holds(self, log: LogId, record: StoredRecord) -> bool:
        """Whether a record is stored, and no other in its place."""
        found = self.record_at(log, record.first_offset)
        return found is not None and found.digest == record.digest
