"""The facts that a log consists of, as immutable values.

An event itself is the protobuf message of ``event_log.proto``: it is read as it was
stored and never encoded again. What stands here is what surrounds it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import NamedTuple

from snakepit_bridge.event_log_pb2 import Event, Record

__all__ = [
    "GENESIS",
    "INLINE_LIMIT",
    "MAX_TRANSACTION",
    "SCHEMA",
    "Answer",
    "Decision",
    "Draft",
    "Envelope",
    "Event",
    "LogHead",
    "LogId",
    "Origin",
    "Recall",
    "Record",
    "Remembered",
    "StoredRecord",
    "Transaction",
    "Value",
    "chain",
    "make_value",
]

SCHEMA = 1
"""Version of the stored bytes this release writes, and the highest that it reads."""

GENESIS = bytes(32)
"""The digest "before" the first record of a log."""

INLINE_LIMIT = 4096
"""Larger values (bytes of any + binary) are stored once, under their digest."""

MAX_TRANSACTION = 10_000
"""Events in one transaction, as etcd bounds a txn (``--max-txn-ops``, 128 there)."""


class Value(NamedTuple):
    """A value as it is stored and as it goes back out on the wire."""

    any: bytes
    """A serialized ``google.protobuf.Any``."""
    binary: bytes
    """The bytes of its binary form; empty when it has none."""
    digest: bytes
    """32 bytes; see ``Values`` in ``event_log.proto``."""


def make_value(any: bytes, binary: bytes = b"") -> Value:  # noqa: A002 - the wire's name
    """Complete a value with its digest."""
    if not binary:
        return Value(any, b"", sha256(any).digest())
    hasher = sha256(any)
    hasher.update(binary)
    hasher.update(len(any).to_bytes(8, "little"))
    return Value(any, binary, hasher.digest())


def chain(previous: bytes, header: bytes) -> bytes:
    """The digest of a record: it covers the digest before it and its own header."""
    return sha256(previous + header).digest()


class LogId(NamedTuple):
    """Names one log. The epoch is new whenever a session of this id begins anew."""

    session_id: str
    epoch: str


class LogHead(NamedTuple):
    """Where a log ends: what an append has to follow."""

    log: LogId
    head: int
    """Offset of the last event; 0 for a log that is not stored yet."""
    digest: bytes
    """Digest of the last record."""


class StoredRecord(NamedTuple):
    """One transaction as an engine keeps it, byte for byte."""

    first_offset: int
    events: int
    header: bytes
    values: bytes
    digest: bytes
    large: tuple[Value, ...] = ()
    """Values above ``INLINE_LIMIT``; on appending only, they are stored by digest."""

    @property
    def last_offset(self) -> int:
        return self.first_offset + self.events - 1


class Origin(NamedTuple):
    """Where a change came from; stored once per record."""

    source: str = ""
    correlation_id: str = ""
    traceparent: str = ""
    tracestate: str = ""


class Draft(NamedTuple):
    """What a decision wants to append as one transaction."""

    events: tuple[Event, ...]
    values: tuple[Value, ...] = ()
    """The events' values, in the order that ``Values`` of ``event_log.proto`` gives."""
    request_key: str = ""


class Envelope(NamedTuple):
    """What every command carries beside its own matter."""

    session_id: str
    request_id: str = ""
    log_epoch: str = ""
    """The log it is meant for; empty = whichever is current."""
    origin: Origin = Origin()
    metadata: Mapping[str, str] = {}
    """The change's metadata, without the keys that went into ``origin``."""


class Answer(NamedTuple):
    """What an accepted command is answered with; the wire picks what it shows."""

    offset: int
    """Of the command's last event; of the head when it needed none."""
    number: int = 0
    """The new version, or how many resources a clean-up freed."""
    variable_id: str = ""
    """The variable to be shown as this command left it."""
    show_state: bool = False
    """Whether the whole state is shown."""
    versions: Mapping[str, int] = {}
    """Of a batch: identifier as it was asked to new version."""
    errors: Mapping[str, str] = {}
    """Of a batch: identifier as it was asked to what is wrong with its value."""
    refused: bool = False
    """An atomic batch that was refused as a whole."""
    duplicate: bool = False


class Recall(NamedTuple):
    """The command was accepted before; its answer is read from the record there."""

    first_offset: int


class Decision(NamedTuple):
    """What becomes of a command: the transactions to append, and the answer after that."""

    drafts: tuple[Draft, ...]
    answer: Answer | Recall
    starts: bool = False
    """The first draft begins a new log."""
    request: tuple[str, bytes] | None = None
    """Method and payload digest to remember under the envelope's request id."""


class Transaction(NamedTuple):
    """A record, parsed: what the projection folds and a watcher is shown."""

    record: Record
    events: Sequence[Event]
    """Those of the record."""
    values: tuple[Value, ...]
    last_offset: int
    digest: bytes


class Remembered(NamedTuple):
    """What is kept of an accepted ``request_id``; its answer is in the log."""

    method: str
    digest: bytes
    first_offset: int
    version: int = 0
    """Of a key in a batch that was not atomic: the version it made."""
