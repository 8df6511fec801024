"""Between facts and stored bytes; the one place that writes or reads a record.

``seal`` turns a draft into a record that continues the chain; ``unseal`` reads one back
and believes nothing: the chain, the offsets and every value are checked against their
digests before anything is folded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256

from google.protobuf.message import DecodeError

from snakepit_bridge.errors import DataLoss, FailedPrecondition
from snakepit_bridge.event_log_pb2 import Values
from snakepit_bridge.events.model import (
    INLINE_LIMIT,
    SCHEMA,
    Draft,
    Envelope,
    Fact,
    Origin,
    Record,
    StoredRecord,
    Transaction,
    Value,
    chain,
    make_value,
)

__all__ = [
    "OWN_SOURCE",
    "Cause",
    "LargeValues",
    "Stamp",
    "Tail",
    "digests",
    "is_absent",
    "named_values",
    "seal",
    "unseal",
]

Cause = tuple[Envelope, tuple[str, bytes] | None]
"""A command's envelope and, if its request is to be remembered, method and digest."""

Stamp = tuple[int, str]
"""Wall clock in Unix nanoseconds, and which start of which bridge this is."""

Tail = tuple[int, bytes, int]
"""Where a log ends: offset of its last event, digest and time of its last record."""

LargeValues = Callable[[Sequence[bytes]], Mapping[bytes, Value]]

OWN_SOURCE = "bridge"
"""The source of what the bridge does by itself: a stale lock taken away, an expired session."""

_OWN = Envelope("", origin=Origin(OWN_SOURCE))


def seal(draft: Draft, cause: Cause, stamp: Stamp, tail: Tail) -> tuple[StoredRecord, Transaction]:
    """Write ``draft`` as the record that follows ``tail``."""
    head, digest, time = tail
    clock, instance = stamp
    events, values, key, own, request = draft
    envelope, asked = (_OWN, None) if own else cause
    record = Record()
    record.schema = SCHEMA
    record.first_offset = head + 1
    if clock >= time:
        record.time_unix_nanos = clock
    else:
        record.time_unix_nanos = time
        record.clock_unix_nanos = clock
    record.instance = instance
    source, correlation_id, traceparent, tracestate, tool_call_id = envelope.origin
    record.source = source
    if correlation_id:
        record.correlation_id = correlation_id
    if traceparent:
        record.traceparent = traceparent
        record.tracestate = tracestate
    if tool_call_id:
        record.tool_call_id = tool_call_id
    if envelope.metadata:
        record.metadata.update(envelope.metadata)
    if asked is not None:
        field = record.request
        field.id = envelope.request_id
        field.method, field.digest = asked
        if key:
            field.key = key
    elif request is not None:
        field = record.request
        field.id, field.method, field.digest = request
        field.key = key
    record.events.extend(events)
    header = record.SerializeToString()
    packed, large = _pack(values)
    digest = chain(digest, header)
    count = len(events)
    facts = tuple([(kind := e.WhichOneof("kind"), getattr(e, kind)) for e in events])
    ended = record.time_unix_nanos if kind == "session_ended" else 0
    return (
        _new(StoredRecord, (head + 1, count, header, packed, digest, large, ended)),
        _new(Transaction, (record, header, facts, values, head + count, digest)),
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


def unseal(stored: StoredRecord, previous: bytes, large: LargeValues | None) -> Transaction:
    """Read a record back.

    :param previous: the digest of the record before.
    :param large: looks up values stored by digest. ``None`` leaves these absent, and those
        that an event replaced, too: a fold needs neither, and they are most of the work.
    :raises DataLoss: the bytes are not the ones that were acknowledged.
    :raises FailedPrecondition: a newer release wrote them.
    """
    first_offset, count, header, packed, digest, _, _ = stored
    if sha256(previous + header).digest() != digest:
        raise _damaged(stored, "its digest does not match its bytes and the record before")
    try:
        record = _parse_record(header)
    except DecodeError as error:
        raise _damaged(stored, f"it cannot be parsed ({error})") from error
    if record.schema > SCHEMA:
        raise _newer(stored, record)
    events = record.events
    if record.first_offset != first_offset or len(events) != count:
        raise _damaged(stored, "its offsets differ from those it is stored under")
    if count == 1 and large is None:
        # Of a long log nearly every record is one plain change of a short value: reading it
        # like this takes two thirds of the time.
        event = events[0]
        if event.WhichOneof("kind") == "variable_set":
            body = event.variable_set
            named = body.value_digest
            any_ = _first_of_two(packed)
            if sha256(any_).digest() == named:
                return _new(
                    Transaction,
                    (
                        record,
                        header,
                        (("variable_set", body),),
                        (_new(Value, (any_, b"", named)), _REPLACED),
                        first_offset,
                        digest,
                    ),
                )
    try:
        contents = Values.FromString(packed)
    except DecodeError as error:
        raise _damaged(stored, f"it cannot be parsed ({error})") from error
    facts = _facts(stored, record)
    values = _values(stored, facts, contents, large)
    last_offset = first_offset + count - 1
    return _new(Transaction, (record, header, facts, values, last_offset, digest))


_parse_record = Record.FromString
_new = tuple.__new__


def _first_of_two(packed: bytes) -> bytes:
    """The first of two short ``Values.any``; empty when the bytes are anything else."""
    size = len(packed)
    if size > 4 and packed[0] == _ANY and (first := packed[1]) < size - 4:  # noqa: PLR2004 - two heads
        second = first + 2
        if packed[second] == _ANY and packed[second + 1] == size - second - 2 <= _SEVEN_BITS:
            return packed[2:second]
    return b""


_ANY = Values(any=[b"?"]).SerializeToString()[0]
"""Tag of an entry of ``Values.any``."""

_REPLACED = Value(b"", b"", b"")
_OTHER_VALUES = "it does not hold the values that its events name"


def _facts(stored: StoredRecord, record: Record) -> Sequence[Fact]:
    facts = []
    for event in record.events:
        kind = event.WhichOneof("kind")
        if kind is None:
            raise _newer(stored, record)
        facts.append((kind, getattr(event, kind)))
    return tuple(facts)


def _values(
    stored: StoredRecord, facts: Sequence[Fact], contents: Values, large: LargeValues | None
) -> Sequence[Value]:
    """The values that the events name, each checked against its digest."""
    anys, binaries = contents.any, contents.binary
    values: list[Value] = []
    absent = False
    try:
        for fact in facts:
            for named, replaced in digests(fact):
                index = len(values)
                any_ = anys[index]
                if replaced and large is None:
                    values.append(_REPLACED)
                elif any_:
                    binary = binaries[index] if binaries else b""
                    values.append(_checked(stored, named, any_, binary))
                else:
                    absent = True
                    values.append(Value(b"", b"", named))
    except IndexError:
        raise _damaged(stored, _OTHER_VALUES) from None
    if len(anys) != len(values) or len(binaries) not in (0, len(values)):
        raise _damaged(stored, _OTHER_VALUES)
    return _completed(stored, values, large) if absent and large is not None else tuple(values)


def is_absent(value: Value) -> bool:
    """Whether only the digest of a value is at hand."""
    return not value.any


def _checked(stored: StoredRecord, named: bytes, any_: bytes, binary: bytes) -> Value:
    value = make_value(any_, binary)
    if value.digest != named:
        raise _damaged(stored, f"its value {named.hex()[:16]} is damaged")
    return value


def _completed(
    stored: StoredRecord, values: Sequence[Value], large: LargeValues
) -> tuple[Value, ...]:
    """The same values, with those stored by digest looked up."""
    found = large([value.digest for value in values if is_absent(value)])
    completed = []
    for value in values:
        if is_absent(value):
            kept = found.get(value.digest)
            if kept is None:
                raise _damaged(stored, f"its value {value.digest.hex()[:16]} is missing")
            completed.append(_checked(stored, value.digest, kept.any, kept.binary))
        else:
            completed.append(value)
    return tuple(completed)


_DIGEST_FIELDS: Mapping[str, tuple[tuple[str, bool], ...]] = {
    "session_started": (),
    "session_ended": (),
    "session_forked": (),
    "variable_registered": (("value_digest", False),),
    "variable_set": (("value_digest", False), ("previous_digest", True)),
    "variable_deleted": (("previous_digest", True),),
    "optimization_started": (),
    "optimization_stopped": (),
    "tools_registered": (),
    "tool_finished": (("value_digest", False),),
    "value_redacted": (),
}
"""Of each kind of event whose digests stand in fields of its own."""


def digests(fact: Fact) -> Sequence[tuple[bytes, bool]]:
    """The digests that an event names, in the order of ``Values``.

    Beside each, whether it is that of a value which the event replaced.
    """
    kind, body = fact
    if kind == "tool_started":
        return [(given.value_digest, False) for given in body.arguments if given.value_digest]
    fields = _DIGEST_FIELDS[kind]
    return [(named, replaced) for field, replaced in fields if (named := getattr(body, field))]


def named_values(fact: Fact) -> int:
    """How many values an event names."""
    return len(digests(fact))


def _newer(stored: StoredRecord, record: Record) -> FailedPrecondition:
    return FailedPrecondition(
        f"offset {stored.first_offset} was written by a newer release (schema "
        f"{record.schema}; this one reads {SCHEMA}): start a newer snakepit_bridge",
        first_offset=stored.first_offset,
    )


def _damaged(stored: StoredRecord, why: str) -> DataLoss:
    return DataLoss(
        f"the log is damaged at offset {stored.first_offset}: {why}",
        first_bad_offset=stored.first_offset,
    )
