"""Between facts and stored bytes; the one place that writes or reads a record.

``seal`` turns a draft into a record that continues the chain; ``unseal`` reads one back
and believes nothing: the chain, the offsets and every value are checked against their
digests before anything is folded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from google.protobuf.message import DecodeError

from snakepit_bridge.errors import DataLoss, FailedPrecondition
from snakepit_bridge.event_log_pb2 import Values
from snakepit_bridge.events.model import (
    INLINE_LIMIT,
    SCHEMA,
    Draft,
    Envelope,
    Event,
    Record,
    StoredRecord,
    Transaction,
    Value,
    chain,
    make_value,
)

__all__ = ["Cause", "Stamp", "Tail", "seal", "unseal", "value_digests"]

Cause = tuple[Envelope, tuple[str, bytes] | None]
"""A command's envelope and, if its request is to be remembered, method and digest."""

Stamp = tuple[int, str]
"""Wall clock in Unix nanoseconds, and which start of which bridge this is."""

Tail = tuple[int, bytes, int]
"""Where a log ends: offset of its last event, digest and time of its last record."""

LargeValues = Callable[[Sequence[bytes]], Mapping[bytes, Value]]


def seal(draft: Draft, cause: Cause, stamp: Stamp, tail: Tail) -> tuple[StoredRecord, Transaction]:
    """Write ``draft`` as the record that follows ``tail``."""
    head, digest, time = tail
    clock, instance = stamp
    events, values, key = draft
    envelope, request = cause
    record = Record()
    record.schema = SCHEMA
    record.first_offset = head + 1
    if clock >= time:
        record.time_unix_nanos = clock
    else:
        record.time_unix_nanos = time
        record.clock_unix_nanos = clock
    record.instance = instance
    source, correlation_id, traceparent, tracestate = envelope.origin
    record.source = source
    if correlation_id:
        record.correlation_id = correlation_id
    if traceparent:
        record.traceparent = traceparent
        record.tracestate = tracestate
    if envelope.metadata:
        record.metadata.update(envelope.metadata)
    if request is not None:
        field = record.request
        field.id = envelope.request_id
        field.method, field.digest = request
        if key:
            field.key = key
    record.events.extend(events)
    header = record.SerializeToString()
    packed, large = _pack(values)
    digest = chain(digest, header)
    count = len(events)
    return (
        StoredRecord(head + 1, count, header, packed, digest, large),
        Transaction(record, events, values, head + count, digest),
    )


def _pack(values: tuple[Value, ...]) -> tuple[bytes, tuple[Value, ...]]:
    """The ``Values`` of a record, and those of its values that are too large for it."""
    parts: list[bytes] = []
    for any_, binary, _ in values:
        size = len(any_)
        if binary or size > _SEVEN_BITS:
            break
        parts += (_SMALL[size], any_)
    else:
        # Short values without binary forms, that is nearly all: written as protobuf would.
        return b"".join(parts), ()
    large = tuple(value for value in values if _size(value) > INLINE_LIMIT)
    kept = [_EMPTY if _size(value) > INLINE_LIMIT else value for value in values]
    packed = Values(any=[value.any for value in kept])
    if any(value.binary for value in kept):
        packed.binary.extend(value.binary for value in kept)
    return packed.SerializeToString(), large


_SEVEN_BITS = 0x7F
_SMALL = [Values(any=[bytes(size)]).SerializeToString()[:2] for size in range(_SEVEN_BITS + 1)]
"""Tag and length of an entry of ``Values.any``, by its size."""

_EMPTY = Value(b"", b"", b"")


def _size(value: Value) -> int:
    return len(value.any) + len(value.binary)


def unseal(stored: StoredRecord, previous: bytes, large: LargeValues) -> Transaction:
    """Read a record back.

    :param previous: the digest of the record before.
    :param large: looks up values stored by digest.
    :raises DataLoss: the bytes are not the ones that were acknowledged.
    :raises FailedPrecondition: a newer release wrote them.
    """
    if chain(previous, stored.header) != stored.digest:
        raise _damaged(stored, "its digest does not match its bytes and the record before")
    try:
        record = Record.FromString(stored.header)
        if record.schema > SCHEMA or any(e.WhichOneof("kind") is None for e in record.events):
            raise FailedPrecondition(
                f"offset {stored.first_offset} was written by a newer release (schema "
                f"{record.schema}; this one reads {SCHEMA}): start a newer snakepit_bridge",
                first_offset=stored.first_offset,
            )
        packed = Values.FromString(stored.values)
    except DecodeError as error:
        raise _damaged(stored, f"it cannot be parsed ({error})") from error
    if record.first_offset != stored.first_offset or len(record.events) != stored.events:
        raise _damaged(stored, "its offsets differ from those it is stored under")
    values = _unpack(stored, record, packed, large)
    return Transaction(record, tuple(record.events), values, stored.last_offset, stored.digest)


def _unpack(
    stored: StoredRecord, record: Record, packed: Values, large: LargeValues
) -> tuple[Value, ...]:
    digests = [digest for event in record.events for digest in value_digests(event)]
    if len(digests) != len(packed.any) or len(packed.binary) not in (0, len(digests)):
        raise _damaged(stored, "it does not hold the values that its events name")
    binaries: Sequence[bytes] = packed.binary or [b""] * len(digests)
    absent = [digest for digest, any_ in zip(digests, packed.any, strict=True) if not any_]
    found = large(absent) if absent else {}
    values = []
    for digest, any_, binary in zip(digests, packed.any, binaries, strict=True):
        if any_:
            value = make_value(any_, binary)
        elif digest in found:
            value = make_value(*found[digest][:2])
        else:
            raise _damaged(stored, f"its value {digest.hex()[:16]} is missing")
        if value.digest != digest:
            raise _damaged(stored, f"its value {digest.hex()[:16]} is damaged")
        values.append(value)
    return tuple(values)


def value_digests(event: Event) -> Iterator[bytes]:
    """The digests an event names, in the order of ``Values``."""
    body = getattr(event, str(event.WhichOneof("kind")))
    for field in _DIGEST_FIELDS.get(type(body).__name__, ()):
        digest = getattr(body, field)
        if digest:
            yield digest


_DIGEST_FIELDS = {
    "VariableRegistered": ("value_digest",),
    "VariableSet": ("value_digest", "previous_digest"),
    "VariableDeleted": ("previous_digest",),
}


def _damaged(stored: StoredRecord, why: str) -> DataLoss:
    return DataLoss(
        f"the log is damaged at offset {stored.first_offset}: {why}",
        first_bad_offset=stored.first_offset,
    )
