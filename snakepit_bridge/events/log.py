"""The contract of an event log engine.

An engine keeps many logs, each a sequence of records, and promises four things:

* **Contiguous.** A record is accepted only where the log ends: its first offset is the
  head + 1. Anything else is ``Conflict`` and stores nothing (a compare-and-set, so that
  several bridges may share an engine).
* **Whole.** Of a record, all events are stored or none.
* **Durable.** When ``append`` returns, every record given to it survives whatever the
  engine's documentation says it survives.
* **Verbatim.** What is read is what was appended, byte for byte.

``append``, ``settle`` and ``close`` are called by one thread (the committer); reading is
safe from any thread at any time and sees only what was appended. When ``append`` raises
anything but ``Conflict``, it is unknown which records of that call are stored: the owner
must call ``settle`` until it succeeds, and then believe ``head``. Nothing else may be
appended before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence

from snakepit_bridge.errors import BridgeError
from snakepit_bridge.events.model import LogHead, LogId, StoredRecord, Value

__all__ = ["AppendError", "Conflict", "EventLog", "LogInUse", "LogUnusable"]


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


class EventLog(ABC):
    """Ordered, durable logs of transactions; see the module for what is promised."""

    url: str
    """What it was opened from, for example ``sqlite:/var/lib/bridge.db``."""

    @abstractmethod
    def latest(self, session_id: str) -> LogHead | None:
        """The newest log of a session, live or ended; ``None`` when none is kept."""

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
    def read(self, log: LogId, after: int = 0, *, limit: int = 1_000) -> Sequence[StoredRecord]:
        """At most ``limit`` records in order, from the one that holds offset ``after + 1``."""

    @abstractmethod
    def read_back(self, log: LogId, before: int, *, limit: int = 1_000) -> Sequence[StoredRecord]:
        """At most ``limit`` records, newest first, from the one that holds ``before - 1``."""

    @abstractmethod
    def large_values(self, digests: Sequence[bytes]) -> Mapping[bytes, Value]:
        """Those of the values stored by digest that are kept."""

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
