"""Snapshots: the state of a session as bytes, and back.

A snapshot saves the folding of what lies before it, and never more: its check covers all
of it, its place in the log is compared with the record there, and a damaged one is passed
over. Two steps, because only the first needs the thread that owns the state: ``copied``
takes what there is (immutable values in fresh dictionaries), ``seal_snapshot`` writes it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from hashlib import sha256

from google.protobuf.message import DecodeError

from snakepit_bridge.errors import DataLoss, FailedPrecondition
from snakepit_bridge.event_log_pb2 import OpenCall as WrittenCall
from snakepit_bridge.event_log_pb2 import Snapshot, VariableSnapshot
from snakepit_bridge.events.loaded import LONG_TAIL, LoadedLog
from snakepit_bridge.events.log import AppendError, EventLog
from snakepit_bridge.events.model import INLINE_LIMIT, SCHEMA, StoredSnapshot, Value
from snakepit_bridge.events.projection import (
    Definition,
    Lock,
    OpenCall,
    RegisteredTool,
    SessionState,
    VariableState,
)
from snakepit_bridge.events.requests import RequestTable

__all__ = [
    "copied",
    "differences",
    "leave_snapshots",
    "open_snapshot",
    "seal_snapshot",
    "snapshot_check",
]

logger = logging.getLogger(__name__)


def copied(state: SessionState) -> SessionState:
    """An equal state of its own, for another thread to write."""
    copy = state.readable()
    copy.used_names = set(state.used_names)
    copy.requests = state.requests.copy()
    return copy


def seal_snapshot(state: SessionState) -> StoredSnapshot:
    """Write a state down."""
    snapshot = Snapshot(
        schema=SCHEMA,
        time_unix_nanos=state.time_unix_nanos,
        created_unix_nanos=state.created_unix_nanos,
        ended=state.ended,
        metadata=state.metadata,
        used_names=sorted(state.used_names - state.names.keys()),
    )
    snapshot.enable_caching, snapshot.cache_ttl_seconds, snapshot.enable_telemetry = state.config
    large = []
    for variable in state.variables.values():
        _write_variable(snapshot.variables.add(), variable)
        value = variable.value
        if len(value.any) + len(value.binary) > INLINE_LIMIT:
            large.append(value.digest)
    for id_, offset in state.deleted.items():
        snapshot.deleted.add(id=id_, offset=offset)
    for _, tool in sorted(state.tools.items()):
        snapshot.tools.add(**tool._asdict())
    for call in state.calls.values():
        _write_call(snapshot.calls.add(), call)
    content = snapshot.SerializeToString()
    requests = state.requests.encode()
    return StoredSnapshot(
        state.head,
        state.digest,
        state.time_unix_nanos,
        content,
        requests,
        snapshot_check(state.head, state.digest, content),
        tuple(large),
    )


def snapshot_check(offset: int, digest: bytes, state: bytes) -> bytes:
    """What a snapshot's ``check`` has to be. The table of requests has its own."""
    return sha256(offset.to_bytes(8, "little") + digest + state).digest()


def open_snapshot(
    stored: StoredSnapshot, requests: Callable[[], bytes] | None = None
) -> SessionState:
    """Read a snapshot back. Values that are stored by digest are absent from it.

    :param requests: reads its table of requests, when that was left out, once it is needed.
    :raises DataLoss: these are not the bytes that were written.
    :raises FailedPrecondition: a newer release wrote them.
    """
    if snapshot_check(stored.offset, stored.digest, stored.state) != stored.check:
        raise _damaged(stored, "its bytes have changed")
    try:
        snapshot = Snapshot.FromString(stored.state)
    except DecodeError as error:
        raise _damaged(stored, f"it cannot be parsed ({error})") from error
    if snapshot.schema > SCHEMA:
        raise FailedPrecondition(
            f"the snapshot at offset {stored.offset} was written by a newer release (schema "
            f"{snapshot.schema}; this one reads {SCHEMA}): start a newer snakepit_bridge"
        )
    state = SessionState()
    state.head, state.digest = stored.offset, stored.digest
    state.time_unix_nanos = snapshot.time_unix_nanos
    state.created_unix_nanos = snapshot.created_unix_nanos
    state.ended = snapshot.ended
    state.metadata = dict(snapshot.metadata)
    state.config = (
        snapshot.enable_caching,
        snapshot.cache_ttl_seconds,
        snapshot.enable_telemetry,
    )
    for written in snapshot.variables:
        variable = _read_variable(written)
        state.variables[variable.definition.id] = variable
        state.names[variable.definition.name] = variable.definition.id
    state.deleted = {gone.id: gone.offset for gone in snapshot.deleted}
    state.used_names = {*state.names, *snapshot.used_names}
    state.tools = {
        tool.name: RegisteredTool(tool.id, tool.name, tool.spec, tool.worker_id, tool.offset)
        for tool in snapshot.tools
    }
    state.calls = {call.call_id: _read_call(call) for call in snapshot.calls}
    state.requests = RequestTable(stored.requests, requests)
    return state


def differences(one: SessionState, other: SessionState, *, requests: bool) -> list[str]:
    """Names of what differs between two states of one log.

    :param requests: whether the remembered requests are compared.
    """
    fields = ["head", "digest", "time_unix_nanos", "created_unix_nanos", "ended", "metadata"]
    fields += ["config", "variables", "names", "deleted", "used_names"]
    fields += ["tools", "calls"]
    found = [field for field in fields if getattr(one, field) != getattr(other, field)]
    if list(one.variables) != list(other.variables) and "variables" not in found:
        found.append("the order of variables")
    if list(one.calls) != list(other.calls) and "calls" not in found:
        found.append("the order of calls")
    if requests and _requests(one) != _requests(other):
        found.append("requests")
    return found


def _requests(state: SessionState) -> dict[bytes, tuple[object, ...]]:
    # The order counts from the beginning in one and perhaps not in the other.
    return {key: known[:-1] for key, known in state.requests.entries().items()}


def _write_variable(written: VariableSnapshot, variable: VariableState) -> None:
    definition, value, version, offset, time, source, metadata, lock = variable
    written.id, written.name, written.type, constraints, written.registered = definition
    if constraints:
        written.constraints_json = constraints
    written.value_digest = value.digest
    if len(value.any) + len(value.binary) <= INLINE_LIMIT:
        written.any = value.any
        if value.binary:
            written.binary = value.binary
    written.version = version
    written.offset = offset
    written.time_unix_nanos = time
    written.source = source
    if metadata:
        written.metadata.update(metadata)
    if lock is not None:
        held = written.optimization
        (
            held.optimization_id,
            held.optimizer_id,
            held.started_unix_nanos,
            held.used_unix_nanos,
        ) = lock


def _write_call(written: WrittenCall, call: OpenCall) -> None:
    written.call_id, written.tool, written.offset, time, written.instance, request = call
    written.time_unix_nanos = time
    if request is not None:
        asked = written.request
        asked.id, asked.method, asked.digest = request


def _read_call(written: WrittenCall) -> OpenCall:
    asked = written.request
    return OpenCall(
        written.call_id,
        written.tool,
        written.offset,
        written.time_unix_nanos,
        written.instance,
        (asked.id, asked.method, asked.digest) if written.HasField("request") else None,
    )


def _read_variable(written: VariableSnapshot) -> VariableState:
    lock = None
    if written.HasField("optimization"):
        held = written.optimization
        lock = Lock(
            held.optimization_id,
            held.optimizer_id,
            held.started_unix_nanos,
            held.used_unix_nanos,
        )
    return VariableState(
        Definition(
            written.id, written.name, written.type, written.constraints_json, written.registered
        ),
        Value(written.any, written.binary, written.value_digest),
        written.version,
        written.offset,
        written.time_unix_nanos,
        written.source,
        dict(written.metadata),
        lock,
    )


def _damaged(stored: StoredSnapshot, why: str) -> DataLoss:
    return DataLoss(
        f"the snapshot at offset {stored.offset} is damaged: {why}",
        first_bad_offset=stored.offset,
    )


LONGEST_LEAVE = 0.3
"""Seconds for that when the bridge stops, which must take less than 2 in all."""


def leave_snapshots(engine: EventLog, logs: Iterable[LoadedLog]) -> None:
    """Before the end, see to it that the longest tails need not be folded again."""
    end = time.monotonic() + LONGEST_LEAVE
    for log in sorted((log for log in logs if log.tail >= LONG_TAIL), key=lambda log: -log.tail):
        if time.monotonic() > end:
            return
        try:
            engine.save_snapshot(log.id, seal_snapshot(log.working))
        except AppendError as error:
            logger.warning("a last snapshot was not stored: %s", error)
            return
