"""The facts that a log consists of, as immutable values.

An event itself is the protobuf message of ``event_log.proto``: it is read as it was
stored and never encoded again. What stands here is what surrounds it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from hashlib import sha256
from typing import Any, NamedTuple

from snakepit_bridge.event_log_pb2 import Event, Record

__all__ = [
    "AGAIN",
    "GENESIS",
    "INLINE_LIMIT",
    "MAX_TRANSACTION",
    "SCHEMA",
    "Again",
    "Answer",
    "Decision",
    "Draft",
    "Envelope",
    "Event",
    "Fact",
    "LogHead",
    "LogId",
    "Moment",
    "Origin",
    "Recall",
    "Record",
    "StoredRecord",
    "StoredSnapshot",
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
    base: int = 0
    """Offset up to which retention has cut the log away."""
    base_digest: bytes = GENESIS
    """Digest at the base: what the first record that is kept follows."""
    mark: tuple[int, bytes] | None = None
    """Head and digest as the last clean stop left them."""


class StoredRecord(NamedTuple):
    """One transaction as an engine keeps it, byte for byte."""

    first_offset: int
    events: int
    header: bytes
    values: bytes
    digest: bytes
    large: tuple[Value, ...] = ()
    """Values above ``INLINE_LIMIT``; on appending only, they are stored by digest."""
    ended_unix_nanos: int = 0
    """When it ends its log; on appending only."""

    @property
    def last_offset(self) -> int:
        return self.first_offset + self.events - 1


class StoredSnapshot(NamedTuple):
    """The state of a session at one offset, as an engine keeps it."""

    offset: int
    """Of the last event of a transaction."""
    digest: bytes
    """Of the record there."""
    time_unix_nanos: int
    """Of that record."""
    state: bytes
    """A serialized ``Snapshot``."""
    requests: bytes
    """The table of remembered requests; empty in all but the newest two of a log."""
    check: bytes
    """SHA-256 over offset, digest and state; see ``event_log.proto``."""
    large: tuple[bytes, ...] = ()
    """Digests of the values it refers to; on saving only."""
    requests_size: int = 0
    """Bytes of the table of requests, where that was left out; on reading only."""


class Origin(NamedTuple):
    """Where a change came from; stored once per record."""

    source: str = ""
    correlation_id: str = ""
    traceparent: str = ""
    tracestate: str = ""
    tool_call_id: str = ""
    """Of the tool that did it."""


class Draft(NamedTuple):
    """What a decision wants to append as one transaction."""

    events: tuple[Event, ...]
    values: tuple[Value, ...] = ()
    """The events' values, in the order that ``Values`` of ``event_log.proto`` gives."""
    request_key: str = ""
    own: bool = False
    """The bridge's own doing, which met a command but is not part of it."""
    request: tuple[str, str, bytes] | None = None
    """Id, method and digest of an earlier request that this is a part of, under its key."""


class Moment(NamedTuple):
    """What a decision has to know beside the state of its session."""

    clock_unix_nanos: int
    live_sessions: int
    instance: str = ""
    """This start of this bridge; empty where nothing can be written for the time being."""


class Envelope(NamedTuple):
    """What every command carries beside its own matter."""

    session_id: str
    request_id: str = ""
    log_epoch: str = ""
    """The log it is meant for; empty = whichever is current."""
    origin: Origin = Origin()
    metadata: Mapping[str, str] = {}
    """The change's metadata, without the keys that went into ``origin``."""
    optimization_id: str = ""
    """The key to the lock of the optimizer that sends this."""


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
    optimization_id: str = ""
    versions: Mapping[str, int] = {}
    """Of a batch: identifier as it was asked to new version."""
    errors: Mapping[str, str] = {}
    """Of a batch: identifier as it was asked to what is wrong with its value."""
    refused: bool = False
    """An atomic batch that was refused as a whole."""
    duplicate: bool = False
    tool_ids: Mapping[str, str] = {}
    """Of registered tools, by name."""
    finished: Transaction | None = None
    """How the call of a tool ended that a repeated request asked for."""


class Recall(NamedTuple):
    """The command was accepted before; its answer is read from the record there."""

    first_offset: int


class Again(Enum):
    """The command is decided again, on the state after the drafts."""

    AGAIN = 0


AGAIN = Again.AGAIN


class Decision(NamedTuple):
    """What becomes of a command: the transactions to append, and the answer after that."""

    drafts: tuple[Draft, ...]
    answer: Answer | Recall | Again
    starts: bool = False
    """The first draft begins a new log."""
    request: tuple[str, bytes] | None = None
    """Method and payload digest to remember under the envelope's request id."""


Fact = tuple[str, Any]
"""The kind of an event and its body, a message of ``event_log.proto``."""


class Transaction(NamedTuple):
    """A record, parsed: what the projection folds and a watcher is shown.

    Its values are tuples of bytes, which the garbage collector need not look at twice.
    """

    record: Record
    header: bytes
    """The record as it is stored."""
    facts: Sequence[Fact]
    """Its events."""
    values: Sequence[Value]
    """Those that its events name, in the order of ``Values`` of ``event_log.proto``."""
    last_offset: int
    digest: bytes
