"""Between facts and stored bytes; the one place that writes or reads a record.

``seal`` turns a draft into a record that continues the chain; ``unseal`` reads one back
and believes nothing: the chain, the offsets and every value are checked against their
digests before anything is folded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from google.protobuf.message import DecodeError

from snakepit_bridge.errors import DataLoss, FailedPrecondition
from snakepit_bridge.event_log_pb2 import Values
from snakepit_bridge.events.model import (
    INLINE_LIMIT,
    SCHEMA,
    Draft,
    Event,
    Origin,
    Record,
    StoredRecord,
    Transaction,
    Value,
    chain,
    make_value,
)

__all__ = ["Request", "Sealed", "Stamp", "seal", "unseal", "value_digests"]

LargeValues = Callable[[Sequence[bytes]], Mapping[bytes, Value]]


class Request(NamedTuple):
    """The identity of an idempotent request; see ``Request`` in ``event_log.proto``."""

    id: str
    method: str
    digest: bytes


class Stamp(NamedTuple):
    """When, by whom and why: what the events of a command share."""

    clock_unix_nanos: int
    instance: str
    origin: Origin
    metadata: Mapping[str, str]
    request: Request | None


def seal(draft: Draft, stamp: Stamp, head: int, digest: bytes, time: int) -> Sealed:
    """Write ``draft`` as the record after ``head`` (its offset, digest and time)."""
    record = Record()
    record.schema = SCHEMA
    record.first_offset = head + 1
    clock = stamp.clock_unix_nanos
    if clock >= time:
        record.time_unix_nanos = clock
    else:
        record.time_unix_nanos = time
        record.clock_unix_nanos = clock
    record.instance = stamp.instance
    source, correlation_id, traceparent, tracestate = stamp.origin
    record.source = source
    if correlation_id:
        record.correlation_id = correlation_id
    if traceparent:
        record.traceparent = traceparent
        record.tracestate = tracestate
    if stamp.metadata:
        record.metadata.update(stamp.metadata)
    request = stamp.request
    if request is not None:
        field = record.request
        field.id, field.method, field.digest = request
        if draft.request_key:
            field.key = draft.request_key
    record.events.extend(draft.events)
    header = record.SerializeToString()
    values, large = _pack(draft.values)
    digest = chain(digest, header)
    count = len(draft.events)
    return Sealed(
        StoredRecord(head + 1, count, header, values, digest, large),
        Transaction(record, draft.values, head + count, digest),
    )


class Sealed(NamedTuple):
    stored: StoredRecord
    transaction: Transaction


def _pack(values: tuple[Value, ...]) -> tuple[bytes, tuple[Value, ...]]:
    if not values:
        return b"", ()
    packed = Values()
    large: tuple[Value, ...] = ()
    for value in values:
        if len(value.any) + len(value.binary) > INLINE_LIMIT:
            large += (value,)
            packed.any.append(b"")
        else:
            packed.any.append(value.any)
    if any(value.binary for value in values):
        packed.binary.extend(b"" if value in large else value.binary for value in values)
    return packed.SerializeToString(), large


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
        packed = Values.FromString(stored.values)
    except DecodeError as error:
        raise _damaged(stored, f"it cannot be parsed ({error})") from error
    if record.schema > SCHEMA:
        raise FailedPrecondition(
            f"the log holds records of schema {record.schema}; this release reads up to "
            f"{SCHEMA}: start a newer snakepit_bridge",
            first_offset=stored.first_offset,
        )
    if record.first_offset != stored.first_offset or len(record.events) != stored.events:
        raise _damaged(stored, "its offsets differ from those it is stored under")
    values = _unpack(stored, record, packed, large)
    return Transaction(record, values, stored.last_offset, stored.digest)


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
            value = found[digest]
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
