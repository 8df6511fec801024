"""What watchers are promised, as six functions on what was recorded; see ``docs``, guarantee 3.

A ``Recording`` holds what writers were told, what watchers saw, and the logs themselves, read
from the file. Nothing here is taken from the bridge's own idea of watching: which events a
request wants, and how a variable looked at an offset, is worked out once more.

    ordered        offsets never fall, and rise strictly after the initial values
    unique         no event twice, neither in a stream nor in a chain of resumed ones
    reliable       nothing wanted is missing, what is delivered is what the log says
    atomic         a transaction comes whole, marks only between two of them
    resumable      a stream begins exactly where it was asked to
    bookmarkable   what is to be kept is there, is right, and is accepted

A *chain* is the streams of one watcher that were each resumed where the one before had been
left; what a stream delivered after the bookmark that was taken from it does not belong to it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from google.protobuf.any_pb2 import Any as AnyMessage

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge.events.model import GENESIS, LogId, Transaction, Value

INITIAL = "initial_value"
MARKS = ("heartbeat", "caught_up")
CHANGES = ("value_change", "registered", "deleted")
_KINDS = {
    "variable_set": "value_change",
    "variable_registered": "registered",
    "variable_deleted": "deleted",
}

Update = pb.VariableUpdate


class Then(NamedTuple):
    """A variable as it was at some offset."""

    id: str
    name: str
    type: str
    version: int
    value: Value
    offset: int
    """The event that made this version."""
    time: int
    source: str
    metadata: Mapping[str, str]


class Change(NamedTuple):
    """One event, as the log has it."""

    offset: int
    first: int
    last: int
    """Of its transaction."""
    kind: str
    """As in ``update_type``; empty where a watcher is shown nothing of it."""
    variable: Then | None
    """After it; of a deleted one, before it."""
    old: Value | None
    metadata: Mapping[str, str]
    source: str
    correlation_id: str
    traceparent: str
    time: int
    check: int
    """First 8 bytes of the digest of its record, little-endian."""


class Truth:
    """One log, event by event."""

    def __init__(self, log: LogId) -> None:
        self.log = log
        self.changes: list[Change] = []
        self.digest = GENESIS
        self.ended = False
        self.dropped = False
        """Whether retention has taken all of it away by now."""
        self.requests: dict[str, int] = {}
        """Request ids to the last offset of each."""
        self._now: dict[str, Then] = {}

    def add(self, transaction: Transaction) -> None:
        """Take in the transaction that follows."""
        record = transaction.record
        assert record.first_offset == self.head + 1, f"{self.log} has a gap after {self.head}"
        last = self.head + len(record.events)
        check = int.from_bytes(transaction.digest[:8], "little")
        values = iter(transaction.values)
        for event in record.events:
            kind = event.WhichOneof("kind")
            variable, old = self._apply(kind, getattr(event, kind), record, values)
            self.changes.append(
                Change(
                    self.head + 1,
                    record.first_offset,
                    last,
                    _KINDS.get(kind, ""),
                    variable,
                    old,
                    dict(record.metadata),
                    record.source,
                    record.correlation_id,
                    record.traceparent,
                    record.time_unix_nanos,
                    check,
                )
            )
        self.digest = transaction.digest
        if record.request.id:
            self.requests[record.request.id] = last

    def _apply(
        self,
        kind: str,
        body: Any,  # noqa: ANN401 - one of many messages
        record: Any,  # noqa: ANN401
        values: Iterator[Value],
    ) -> tuple[Then | None, Value | None]:
        offset, time, source = self.head + 1, record.time_unix_nanos, record.source
        if kind == "session_ended":
            self.ended = True
        if kind == "variable_registered":
            metadata = dict(record.metadata)
            then = Then(
                body.id, body.name, body.type, 1, next(values), offset, time, source, metadata
            )
            self._now[body.id] = then
            return then, None
        if kind == "variable_set":
            before = self._now[body.id]
            metadata = {**before.metadata, **record.metadata}
            if "source" in metadata:
                metadata["source"] = source
            then = Then(
                body.id,
                before.name,
                before.type,
                body.version,
                next(values),
                offset,
                time,
                source,
                metadata,
            )
            self._now[body.id] = then
            return then, next(values)
        if kind == "variable_deleted":
            return self._now.pop(body.id), next(values)
        return None, None

    @property
    def head(self) -> int:
        return len(self.changes)

    def at(self, offset: int) -> Change:
        return self.changes[offset - 1]

    def check_at(self, offset: int) -> int:
        return self.at(offset).check if offset else 0

    def is_boundary(self, offset: int) -> bool:
        return offset == 0 or self.at(offset).last == offset

    def state(self, offset: int) -> dict[str, Then]:
        """Live variables right after an event, by id."""
        live: dict[str, Then] = {}
        for change in self.changes[:offset]:
            variable = change.variable
            if variable is None:
                continue
            if change.kind == "deleted":
                del live[variable.id]
            else:
                live[variable.id] = variable
        return live


class Told(NamedTuple):
    """What a writer was answered."""

    method: str
    request: Any
    log: LogId
    offset: int


class Ending(NamedTuple):
    """How a stream ended."""

    code: str
    message: str = ""
    trailers: Mapping[str, str] = {}

    @property
    def resume_offset(self) -> int | None:
        offset = self.trailers.get("resume_offset")
        return None if offset is None else int(offset)


CANCELLED = Ending("CANCELLED", "by the watcher")


class Resumed(NamedTuple):
    """Where a stream takes up what an earlier one of its watcher had left."""

    stream: int
    """Its number."""
    updates: int
    """How many of its updates were kept."""
    bookmark: bool = True
    """Or any other offset, which nobody said was to be kept."""


@dataclass
class Stream:
    """One call of WatchVariables."""

    watcher: str
    number: int
    request: Any
    """A ``WatchVariablesRequest``."""
    resumed: Resumed | None = None
    heads: Mapping[LogId, int] = field(default_factory=dict)
    """What writers had been told before it was opened."""
    updates: list[Any] = field(default_factory=list)
    ending: Ending = CANCELLED

    def __str__(self) -> str:
        return f"watcher {self.watcher}, stream {self.number}"

    @property
    def log(self) -> LogId | None:
        """Which it was of, as far as that was said."""
        epoch = self.updates[0].log_epoch if self.updates else self.request.log_epoch
        return LogId(self.request.session_id, epoch) if epoch else None

    @property
    def changes(self) -> list[Any]:
        return [update for update in self.updates if update.update_type in CHANGES]

    @property
    def initial(self) -> list[Any]:
        return [update for update in self.updates if update.update_type == INITIAL]


@dataclass
class Recording:
    """All that happened in one schedule."""

    told: list[Told] = field(default_factory=list)
    watchers: dict[str, list[Stream]] = field(default_factory=dict)
    truths: dict[LogId, Truth] = field(default_factory=dict)

    def streams(self) -> Iterator[tuple[Stream, Truth]]:
        """Those of which it is known which log they were of."""
        for streams in self.watchers.values():
            for stream in streams:
                if stream.log is not None and (stream.updates or stream.log in self.truths):
                    assert stream.log in self.truths, f"{stream}: there is no log {stream.log}"
                    yield stream, self.truths[stream.log]

    def chains(self) -> Iterator[tuple[list[tuple[Stream, list[Any]]], Truth]]:
        """Each chain that nobody took up again, with the updates of each stream that count."""
        for streams in self.watchers.values():
            taken_up = {stream.resumed.stream for stream in streams if stream.resumed}
            for stream in streams:
                if stream.number in taken_up or stream.log is None:
                    continue
                links = [(stream, stream.updates)]
                while (resumed := links[0][0].resumed) is not None:
                    before = streams[resumed.stream]
                    links.insert(0, (before, before.updates[: resumed.updates]))
                truth = self.truths.get(stream.log)
                if truth is not None:
                    yield links, truth


class Recorder:
    """Keeps what happens while it happens."""

    def __init__(self) -> None:
        self.recording = Recording()
        self.heads: dict[LogId, int] = {}

    def tell(self, method: str, request: Any, response: Any) -> None:  # noqa: ANN401
        """Keep what a writer was answered, unless nothing was written."""
        if response.offset and response.log_epoch:
            log = LogId(request.session_id, response.log_epoch)
            self.recording.told.append(Told(method, request, log, response.offset))
            self.heads[log] = max(self.heads.get(log, 0), response.offset)

    def open(self, watcher: str, request: Any, resumed: Resumed | None = None) -> Stream:  # noqa: ANN401
        """Begin to keep what a watcher sees."""
        streams = self.recording.watchers.setdefault(watcher, [])
        stream = Stream(watcher, len(streams), request, resumed, dict(self.heads))
        streams.append(stream)
        return stream


# Which events a request wants, worked out once more.


def wants(request: Any, change: Change) -> bool:  # noqa: ANN401 - a WatchVariablesRequest
    kinds = request.update_types or ("value_change",)
    return change.kind in kinds and change.variable is not None and takes(request, change.variable)


def takes(request: Any, variable: Then) -> bool:  # noqa: ANN401
    identifiers = request.variable_identifiers
    return not identifiers or any(_means(one, variable.name, variable.id) for one in identifiers)


@lru_cache(maxsize=10_000)
def _means(identifier: str, name: str, id_: str) -> bool:
    if "*" not in identifier and "?" not in identifier:
        return identifier in (name, id_)
    pattern = re.escape(identifier).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(pattern, name, re.DOTALL) is not None


def wanted(stream: Stream, truth: Truth, after: int, until: int) -> list[int]:
    """Offsets that a stream is to deliver after one offset, up to another."""
    return [change.offset for change in truth.changes[after:until] if wants(stream.request, change)]


def start_of(stream: Stream) -> int:
    """The offset that a stream delivers what comes after, as far as that can be told."""
    if stream.request.HasField("after_offset"):
        after: int = stream.request.after_offset
        return after
    if not stream.updates:
        return stream.ending.resume_offset or 0
    first = stream.updates[0]
    offset: int = first.offset
    return offset - 1 if first.update_type in CHANGES else offset


# The six.


def check_ordered(recording: Recording) -> None:
    for stream, _ in recording.streams():
        before, strictly, initial_over = 0, False, False
        for update in stream.updates:
            is_change = update.update_type in CHANGES
            where = f"{stream}, offset {update.offset} ({update.update_type})"
            assert update.offset >= before, f"{where}: comes after offset {before}"
            assert not (is_change and strictly and update.offset == before), f"{where}: not risen"
            if update.update_type == INITIAL:
                assert not initial_over, f"{where}: an initial value after something else"
                first = stream.updates[0].offset
                assert update.offset == first, f"{where}: the first one was of offset {first}"
            initial_over = update.update_type != INITIAL
            strictly = True
            before = update.offset


def check_unique(recording: Recording) -> None:
    for stream, _ in recording.streams():
        seen: set[Any] = set()
        for update in stream.updates:
            if update.update_type in MARKS:
                continue
            is_initial = update.update_type == INITIAL
            key = (is_initial, update.variable_id if is_initial else update.offset)
            where = f"{stream}, offset {update.offset}: {update.variable_id}"
            assert key not in seen, f"{where} was delivered twice"
            seen.add(key)
    for links, truth in recording.chains():
        _followed(links, truth)


def _followed(links: Sequence[tuple[Stream, list[Any]]], truth: Truth) -> list[int]:
    """Offsets that a whole chain delivered, each once."""
    kept: list[int] = []
    for stream, updates in links:
        if stream.resumed is not None:
            after = stream.request.after_offset
            for offset in [offset for offset in kept if offset > after]:
                again = truth.at(after + 1).first
                where = f"{stream}, offset {offset}: delivered again, after {after}"
                assert stream.resumed.bookmark, f"{where}, which was no bookmark"
                assert again == truth.at(offset).first, f"{where}, which is another transaction"
            kept = [offset for offset in kept if offset <= after]
        for update in updates:
            if update.update_type in CHANGES:
                assert update.offset not in kept, (
                    f"{stream}, offset {update.offset}: an earlier stream delivered it"
                )
                kept.append(update.offset)
    return kept


def check_reliable(recording: Recording) -> None:
    for stream, truth in recording.streams():
        _check_complete(stream, truth)
        for update in stream.changes:
            _check_content(stream, update, truth)
    for links, truth in recording.chains():
        starts = [start_of(stream) for stream, _ in links]
        last_stream = links[-1][0]
        after = min(starts)
        until = max(starts[-1], _promised(last_stream, truth))
        missing = set(wanted(last_stream, truth, after, until)) - set(_delivered(links))
        assert not missing, (
            f"{last_stream}, offset {min(missing)}: missing in the chain of streams "
            f"{[stream.number for stream, _ in links]}, which reached {until}"
        )


def _delivered(links: Sequence[tuple[Stream, list[Any]]]) -> list[int]:
    return [u.offset for _, updates in links for u in updates if u.update_type in CHANGES]


def _promised(stream: Stream, truth: Truth) -> int:
    """Up to where everything was delivered, as the stream has it."""
    if stream.ending.code == "OK":
        return truth.head
    last = stream.updates[-1].offset if stream.updates else 0
    return max(last, stream.ending.resume_offset or 0)


def _check_complete(stream: Stream, truth: Truth) -> None:
    after = start_of(stream)
    if stream.ending.code == "OK":
        assert truth.ended, f"{stream}, offset {truth.head}: ended well, and the session lives"
    expected = wanted(stream, truth, after, truth.head)
    due = iter([*expected, truth.head + 1])
    next_due = next(due)
    delivered: set[int] = set()
    for update in stream.updates:
        offset, type_ = update.offset, update.update_type
        where = f"{stream}, offset {offset} ({type_})"
        assert offset <= truth.head, f"{where}: the log ends at {truth.head}"
        if type_ in CHANGES:
            assert wants(stream.request, truth.at(offset)), f"{where}: nobody wanted it"
            assert offset > after, f"{where}: it comes after {after}"
            delivered.add(offset)
        while type_ != INITIAL and next_due <= offset:
            assert next_due in delivered, f"{where}: {next_due} is missing before it"
            next_due = next(due)
        if type_ == "caught_up":
            told = stream.heads.get(truth.log, 0)
            assert offset >= told, f"{where}: it is not the head, {told} was told before"
    end = _promised(stream, truth)
    missing = sorted({offset for offset in expected if offset <= end} - delivered)
    assert not missing, f"{stream}, offset {missing[0]}: missing at the end ({stream.ending.code})"


def _check_content(stream: Stream, update: Any, truth: Truth) -> None:  # noqa: ANN401
    change = truth.at(update.offset)
    where = f"{stream}, offset {update.offset}"
    variable = change.variable
    assert variable is not None, f"{where}: nothing that is watched happened there"
    got = update.variable
    pairs: dict[str, tuple[Any, Any]] = {
        "update_type": (update.update_type, change.kind),
        "variable_id": (update.variable_id, variable.id),
        "id": (got.id, variable.id),
        "name": (got.name, variable.name),
        "type": (got.type, variable.type),
        "version": (got.version, variable.version),
        "transaction": (update.transaction, change.first),
        "source": (update.update_source, change.source),
        "metadata": (dict(update.update_metadata), dict(change.metadata)),
        "correlation_id": (update.correlation_id, change.correlation_id),
        "traceparent": (update.traceparent, change.traceparent),
        "time": (_nanos(update.timestamp), change.time),
    }
    new = None
    if change.kind != "deleted":
        new = variable.value
        pairs["variable's offset"] = (got.offset, variable.offset)
        pairs["variable's metadata"] = (dict(got.metadata), dict(variable.metadata))
    _compare_values(stream, update, new, change.old, pairs)
    for name, (found, expected) in pairs.items():
        assert found == expected, f"{where}: {name} is {_short(found)}, not {_short(expected)}"


def _compare_values(
    stream: Stream,
    update: Any,  # noqa: ANN401
    new: Value | None,
    old: Value | None,
    pairs: dict[str, tuple[Any, Any]],
) -> None:
    limit = stream.request.max_value_bytes
    omitted = False
    for name, owner, value in (("value", update.variable, new), ("old_value", update, old)):
        left_out = value is not None and 0 < limit < _size(value)
        omitted = omitted or left_out
        binary = "binary_value" if name == "value" else "old_binary_value"
        shown = None if value is None or left_out else value
        pairs[f"has {name}"] = (owner.HasField(name), shown is not None)
        found = (getattr(owner, name).SerializeToString(), getattr(owner, binary))
        pairs[name] = (found, (shown.any, shown.binary) if shown else (b"", b""))
    pairs["value_omitted"] = (update.value_omitted, omitted)


def _size(value: Value) -> int:
    return len(AnyMessage.FromString(value.any).value) + len(value.binary)


def _nanos(timestamp: Any) -> int:  # noqa: ANN401 - a Timestamp
    nanos: int = timestamp.seconds * 1_000_000_000 + timestamp.nanos
    return nanos


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 200 else f"{text[:150]}... ({len(text)} characters)"


def check_atomic(recording: Recording) -> None:
    for stream, truth in recording.streams():
        open_until = 0
        """Last offset that is wanted of the transaction that has begun."""
        for update in stream.updates:
            where = f"{stream}, offset {update.offset}"
            if update.update_type in MARKS:
                assert open_until <= update.offset, f"{where}: a mark before {open_until} came"
                assert truth.is_boundary(update.offset), f"{where}: a mark inside a transaction"
            if update.update_type not in CHANGES:
                continue
            change = truth.at(update.offset)
            inside = truth.at(open_until) if open_until else None
            if inside is not None and inside.first != change.first:
                raise AssertionError(f"{where}: the transaction of {open_until} was not over")
            rest = wanted(stream, truth, update.offset, change.last)
            open_until = rest[-1] if rest else 0
            expected = change.first - 1 if rest else update.offset
            assert update.resume_offset == expected, (
                f"{where}: resume_offset is {update.resume_offset}, not {expected}"
            )
        closed = stream.ending.resume_offset
        if closed is not None:
            where = f"{stream}, offset {closed} in its trailers"
            if open_until:
                begun = max(truth.at(open_until).first - 1, start_of(stream))
                assert closed == begun, f"{where}: {begun} is where its rest begins"
            allowed = truth.is_boundary(closed) or closed == start_of(stream)
            assert allowed, f"{where}: inside a transaction"


def check_resumable(recording: Recording) -> None:
    for stream, truth in recording.streams():
        _check_refusal(stream, truth)
        start = start_of(stream)
        changes = stream.changes
        if stream.request.HasField("after_offset"):
            if changes:
                first = wanted(stream, truth, start, truth.head)[:1]
                assert [changes[0].offset] == first, (
                    f"{stream}, offset {changes[0].offset}: after {start} comes {first}"
                )
        else:
            told = stream.heads.get(truth.log, 0)
            assert not stream.updates or start >= told, (
                f"{stream}, offset {start}: before {told}, which was committed when it opened"
            )
        if stream.request.include_initial_values:
            _check_initial(stream, truth, start)
        else:
            assert not stream.initial, f"{stream}, offset {start}: initial values unasked for"


def _check_initial(stream: Stream, truth: Truth, start: int) -> None:
    initial = stream.initial
    if not initial and not stream.request.HasField("after_offset"):
        # It began somewhere before its first update, where there was nothing yet.
        told = stream.heads.get(truth.log, 0)
        empty = any(not _taken(stream, truth, at) for at in range(start, told - 1, -1))
        assert empty or not stream.updates, f"{stream}, offset {start}: no initial values"
        return
    state = _taken(stream, truth, start)
    whole = len(initial) < len(stream.updates) or stream.ending.resume_offset is not None
    whole = whole or stream.ending.code == "OK" or any(u.HasField("resume_offset") for u in initial)
    if whole:
        absent = sorted(set(state) - {update.variable_id for update in initial})
        assert not absent, f"{stream}, offset {start}: no initial value of {absent}"
    for update in initial:
        where = f"{stream}, offset {update.offset}: initial value of {update.variable_id}"
        assert update.offset == start, f"{where} is not of {start}"
        then = state.get(update.variable_id)
        assert then is not None, f"{where}: it was not there"
        got = update.variable
        pairs: dict[str, tuple[Any, Any]] = {
            "id": (got.id, then.id),
            "name": (got.name, then.name),
            "type": (got.type, then.type),
            "version": (got.version, then.version),
            "offset": (got.offset, then.offset),
            "metadata": (dict(got.metadata), dict(then.metadata)),
            "source": (update.update_source, then.source),
            "time": (_nanos(update.timestamp), then.time),
        }
        _compare_values(stream, update, then.value, None, pairs)
        for name, (found, expected) in pairs.items():
            assert found == expected, f"{where}: {name} is {_short(found)}, not {_short(expected)}"


def _taken(stream: Stream, truth: Truth, offset: int) -> dict[str, Then]:
    state = truth.state(offset)
    return {id_: then for id_, then in state.items() if takes(stream.request, then)}


_AVAILABLE = re.compile(r"offset (\d+) .*has offsets (\d+) to (\d+)")


def _check_refusal(stream: Stream, truth: Truth) -> None:
    """The truth about gaps: what is refused was cut away, and what is there is named."""
    code, message, _ = stream.ending
    if code == "OUT_OF_RANGE":
        said = _AVAILABLE.search(message)
        assert said, f"{stream}: does not say what is available: {message}"
        asked, first, last = map(int, said.groups())
        position = stream.updates[-1].offset if stream.updates else start_of(stream)
        assert asked < first, f"{stream}, offset {asked}: refused though it is there: {message}"
        assert position < first, f"{stream}, offset {position}: refused though after the cut"
        assert truth.is_boundary(first - 1), f"{stream}, offset {first}: cut inside"
        assert stream.heads.get(truth.log, 0) <= last <= truth.head, f"{stream}: {message}"
        assert truth.log.epoch in message, f"{stream}: names no epoch: {message}"
    elif code == "FAILED_PRECONDITION":
        assert truth.dropped, f"{stream}: refused though the log is kept: {message}"
    else:
        ours = ("OK", "CANCELLED", "UNAVAILABLE", "NOT_FOUND")
        assert code in ours, f"{stream}: ended with {code}: {message}"


def check_bookmarkable(recording: Recording) -> None:
    for stream, truth in recording.streams():
        initial = stream.initial
        followed = len(initial) < len(stream.updates)
        for place, update in enumerate(stream.updates):
            where = f"{stream}, offset {update.offset} ({update.update_type})"
            assert update.log_epoch == truth.log.epoch, f"{where}: epoch {update.log_epoch}"
            if update.update_type == INITIAL:
                last = followed and place == len(initial) - 1
                kept = update.HasField("resume_offset")
                assert kept or not last, f"{where}: the last initial value has no bookmark"
                more = place < len(initial) - 1
                assert not (kept and more), f"{where}: a bookmark before the last initial value"
                if not kept:
                    continue
            assert update.HasField("resume_offset"), f"{where}: has no bookmark"
            if update.update_type not in CHANGES:
                same = update.resume_offset == update.offset
                assert same, f"{where}: its bookmark is at {update.resume_offset}"
            _check_check(where, update.resume_offset, update.resume_check, truth)
        offset = stream.ending.resume_offset
        if offset is not None:
            trailers = stream.ending.trailers
            where = f"{stream}, offset {offset} in its trailers"
            assert trailers["log_epoch"] == truth.log.epoch, f"{where}: another epoch"
            _check_check(where, offset, int(trailers["resume_check"]), truth)
            kept = stream.updates[-1].resume_offset if stream.updates else 0
            assert offset >= kept, f"{where}: {kept} came with the last update"
        if stream.resumed is not None:
            accepted = ("OK", "CANCELLED", "UNAVAILABLE", "OUT_OF_RANGE")
            code, message, _ = stream.ending
            assert code in accepted or truth.dropped, (
                f"{stream}, offset {stream.request.after_offset}: its bookmark is refused with "
                f"{code}: {message}"
            )


def _check_check(where: str, offset: int, check: int, truth: Truth) -> None:
    assert offset <= truth.head, f"{where}: the bookmark lies in the future"
    expected = truth.check_at(offset)
    assert check == expected, f"{where}: resume_check of {offset} is {check}, not {expected}"


def check_told(recording: Recording) -> None:
    """The log that watchers are compared with holds what writers were told."""
    for method, request, log, offset in recording.told:
        truth = recording.truths.get(log)
        assert truth is not None, f"the log {log} is lost, with offset {offset}"
        assert offset <= truth.head, f"{log}, offset {offset}: told to {method}, and lost"
        if method == "InitializeSession":
            continue  # what found a session is not remembered
        stored = truth.requests.get(request.request_id)
        assert stored == offset, f"{log}: {request.request_id} was told {offset}, not {stored}"


VALIDATORS: Sequence[Callable[[Recording], None]] = (
    check_ordered,
    check_unique,
    check_reliable,
    check_atomic,
    check_resumable,
    check_bookmarkable,
)


def check_all(recording: Recording) -> None:
    """The log is what writers were told, and watchers saw it."""
    check_told(recording)
    for check in VALIDATORS:
        check(recording)
