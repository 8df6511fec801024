"""Between the messages of WatchVariables and the domain: the request read, updates written.

An update of one event is the same for all watchers but for two things: its bookmark, which
depends on what else of the transaction they are shown, and whether its values are left out.
So it is written once for each of these and kept beside the event.
"""

from __future__ import annotations

from typing import NamedTuple

from google.protobuf.any_pb2 import Any as AnyMessage

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge import wire_views_pb2 as views
from snakepit_bridge.errors import InvalidRequest, quote
from snakepit_bridge.events.cursor import Bookmark, bookmark_at
from snakepit_bridge.events.model import Value
from snakepit_bridge.events.projection import VariableState
from snakepit_bridge.events.ring import Committed
from snakepit_bridge.views import EVENT_KINDS
from snakepit_bridge.wire import parse, variable_parts, without_value
from snakepit_bridge.wire_bytes import LARGE, prefix

__all__ = ["Updates", "WatchRequest", "read_watch"]

HEARTBEAT_SECONDS = 30

RECEIVE_LIMIT = 4 * 1024 * 1024
"""Bytes that gRPC clients take unless they were told otherwise. An update that would exceed
this only by its old value goes without it, if the request sets no ``max_value_bytes``: clients
from before there were old values must not lose their stream over one."""

_TYPES = {event: change for change, event in EVENT_KINDS.items()}
_NAMED_FOR_NOTHING = ("initial_value", "heartbeat", "caught_up")
"""Types that are no kinds of change: other fields ask for them, but to name them is no fault."""

_VARIABLE, _OLD_VALUE, _OLD_BINARY_VALUE = (
    pb.VariableUpdate.DESCRIPTOR.fields_by_name[name].number
    for name in ("variable", "old_value", "old_binary_value")
)
_LONGEST_TYPE_URL = 128
"""Bytes of an ``Any`` that are not its value, at most."""


class WatchRequest(NamedTuple):
    """What a client asks for."""

    session_id: str
    identifiers: tuple[str, ...]
    initial_values: bool
    after: int | None
    """Offset to go on after; ``None`` = from now on."""
    log_epoch: str
    check: int
    """What the offset has to show; 0 = anything."""
    heartbeat: float
    """Seconds between two."""
    caught_up: bool
    max_value: int
    """Bytes of a value; 0 = any."""
    kinds: frozenset[str]
    """Of events, as in ``Fact``."""


def read_watch(raw: bytes) -> WatchRequest:
    """Read a WatchVariablesRequest.

    :raises InvalidRequest: it is none, or contradicts itself.
    """
    request = parse(pb.WatchVariablesRequest, raw)
    after = request.after_offset if request.HasField("after_offset") else None
    if after and not request.log_epoch:
        raise InvalidRequest(
            f"after_offset {after} needs the log_epoch that was kept with it: an offset alone "
            "does not say of which log it is",
            field="log_epoch",
        )
    if request.heartbeat_seconds < 0:
        raise InvalidRequest(
            f"heartbeat_seconds {request.heartbeat_seconds} is negative: 0 asks for one every "
            f"{HEARTBEAT_SECONDS} s",
            field="heartbeat_seconds",
        )
    kinds = set()
    for name in request.update_types:
        if name in EVENT_KINDS:
            kinds.add(EVENT_KINDS[name])
        elif name not in _NAMED_FOR_NOTHING:
            raise InvalidRequest(
                f"update_types holds {quote(name)}: choose among {', '.join(EVENT_KINDS)}",
                field="update_types",
            )
    if not request.update_types:
        kinds = {EVENT_KINDS["value_change"]}
    return WatchRequest(
        request.session_id,
        tuple(request.variable_identifiers),
        request.include_initial_values,
        after,
        request.log_epoch,
        request.resume_check,
        request.heartbeat_seconds or HEARTBEAT_SECONDS,
        request.send_caught_up,
        request.max_value_bytes,
        frozenset(kinds),
    )


class Updates:
    """Writes the updates of one watch."""

    __slots__ = ("_epoch", "_max_value")

    def __init__(self, log_epoch: str, max_value: int) -> None:
        """:param max_value: bytes of a value that are not left out; 0 = any."""
        self._epoch = log_epoch
        self._max_value = max_value

    def change(self, entry: Committed, index: int, /, *, last: bool) -> bytes:
        """An event of a transaction."""
        key = (index, last, self._too_large(entry, index) if self._max_value else None)
        update: bytes | None = entry.updates.get(key)
        if update is None:
            update = entry.updates[key] = self._change(entry, index, last=last)
        return update

    def _too_large(self, entry: Committed, index: int) -> tuple[bool, ...]:
        return tuple(self._is_too_large(value) for value in entry.values(index))

    def _change(self, entry: Committed, index: int, *, last: bool) -> bytes:
        transaction = entry.transaction
        record = transaction.record
        offset = record.first_offset + index
        variable = entry.shown[index]
        if variable is None:
            raise AssertionError("only changes of variables are wanted")
        kind, body = transaction.facts[index]
        values = entry.values(index)
        view = views.VariableUpdateView()
        view.variable_id = variable.definition.id
        view.update_source = record.source
        if record.metadata:
            view.update_metadata.update(record.metadata)
        view.update_type = _TYPES[kind]
        view.offset = offset
        view.log_epoch = self._epoch
        view.transaction = record.first_offset
        if record.correlation_id:
            view.correlation_id = record.correlation_id
        if record.traceparent:
            view.traceparent = record.traceparent
        if record.tool_call_id:
            view.tool_call_id = record.tool_call_id
        timestamp = view.timestamp
        timestamp.seconds, timestamp.nanos = divmod(record.time_unix_nanos, 1_000_000_000)
        _keep(view, bookmark_at(entry, index, last=last))
        if kind == "variable_deleted":
            id_, name, type_, _, _ = variable.definition
            gone = views.VariableView(id=id_, name=name, type=type_, version=body.version)
            return self._joined(view, [gone.SerializeToString()], None, values[0])
        old = values[1] if kind == "variable_set" else None
        return self._joined(view, None, variable, old)

    def initial(self, variable: VariableState, offset: int, bookmark: Bookmark | None) -> bytes:
        """A variable as it was at ``offset``, where the watch begins.

        :param bookmark: with the last of them.
        """
        view = views.VariableUpdateView(
            variable_id=variable.definition.id,
            update_source=variable.source,
            update_type="initial_value",
            offset=offset,
            log_epoch=self._epoch,
        )
        view.timestamp.FromNanoseconds(variable.time_unix_nanos)
        if bookmark is not None:
            _keep(view, bookmark)
        return self._joined(view, None, variable, None)

    def mark(self, update_type: str, bookmark: Bookmark) -> bytes:
        """A ``heartbeat`` or ``caught_up``: everything up to the bookmark was delivered."""
        view = views.VariableUpdateView(
            update_type=update_type, offset=bookmark.offset, log_epoch=self._epoch
        )
        view.timestamp.GetCurrentTime()
        _keep(view, bookmark)
        return view.SerializeToString()

    def _joined(
        self,
        view: views.VariableUpdateView,
        about: list[bytes] | None,
        variable: VariableState | None,
        old: Value | None,
    ) -> bytes:
        """The update with its variable and old value, which are copied only here."""
        omitted = False
        if about is None and variable is not None:
            if self._is_too_large(variable.value):
                omitted, about = True, [without_value(variable)]
            else:
                about = variable_parts(variable)
        parts = [b"", prefix(_VARIABLE, sum(map(len, about or ()))), *(about or ())]
        if old is not None:
            if self._is_too_large(old) or self._bursts(parts, old):
                omitted = True
            else:
                parts += (prefix(_OLD_VALUE, len(old.any)), old.any)
                if old.binary:
                    parts += (prefix(_OLD_BINARY_VALUE, len(old.binary)), old.binary)
        if omitted:
            view.value_omitted = True
        parts[0] = view.SerializeToString()
        return b"".join(parts)

    def _is_too_large(self, value: Value) -> bool:
        limit = self._max_value
        size = len(value.any) + len(value.binary)
        if not limit or size <= limit:
            return False
        if size > limit + _LONGEST_TYPE_URL:
            return True
        return len(AnyMessage.FromString(value.any).value) + len(value.binary) > limit

    def _bursts(self, parts: list[bytes], old: Value) -> bool:
        size = len(old.any) + len(old.binary)
        return (
            not self._max_value
            and size > LARGE
            and sum(map(len, parts)) + size > RECEIVE_LIMIT - LARGE
        )


def _keep(view: views.VariableUpdateView, bookmark: Bookmark) -> None:
    view.resume_offset, view.resume_check = bookmark
