"""What Python code sees of a session: immutable values, made from its projection and log."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

import numpy as np

from snakepit_bridge.errors import InvalidRequest
from snakepit_bridge.events.cursor import bookmark_at
from snakepit_bridge.events.model import Value
from snakepit_bridge.events.projection import VariableState
from snakepit_bridge.events.reading import PastVersion
from snakepit_bridge.events.ring import Committed
from snakepit_bridge.type_serialization import stored_type, to_python

__all__ = [
    "EVENT_KINDS",
    "BatchRefused",
    "BatchResult",
    "CallbackArguments",
    "Change",
    "Variable",
    "VariableVersion",
    "as_arguments",
    "as_change",
    "as_variable",
    "as_version",
]

EVENT_KINDS: Mapping[str, str] = MappingProxyType(
    {
        "value_change": "variable_set",
        "registered": "variable_registered",
        "deleted": "variable_deleted",
    }
)
"""Kinds of change, as they are called on the wire, and of the events that they are."""

_CHANGE_KINDS = {event: change for change, event in EVENT_KINDS.items()}

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable as it was at one offset of its session's log."""

    id: str
    name: str
    type: str
    value: Any
    """float, int, str, bool, or a read-only numpy array (embedding, tensor; of the dtype and
    shape as sent where it came in the binary form)."""
    version: int
    offset: int
    """The event that made this version."""
    constraints: Mapping[str, Any]
    metadata: Mapping[str, str]
    source: str
    """Who made this version: ``elixir``, ``python``, ``tool:<name>``, ..."""
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class VariableVersion:
    """One entry of a variable's history."""

    version: int
    value: Any
    previous: Any
    """The value it replaced; ``None`` at the first version."""
    offset: int
    source: str
    metadata: Mapping[str, str]
    changed_at: datetime
    rolled_back_to: int
    """The version a rollback restored; 0 for a plain change."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a variable, as a watcher gets it.

    With ``log_epoch``, ``resume_offset`` and ``resume_check`` a watch goes on after it.
    """

    kind: str
    """``value_change`` (of a set, a batch or a rollback), ``registered`` or ``deleted``."""
    name: str
    id: str
    type: str
    old: Any
    """``None`` when it was registered."""
    new: Any
    """``None`` when it was deleted."""
    version: int
    """The one that this made; of a deleted variable its last."""
    offset: int
    log_epoch: str
    resume_offset: int
    """Everything up to here was delivered. Of several changes of one transaction only the last
    has its own offset; the others have the one before the transaction, which is so delivered as
    a whole again."""
    resume_check: int
    source: str
    metadata: Mapping[str, str]
    """Of this change, not of the variable."""
    changed_at: datetime
    correlation_id: str
    """Empty when none was given; so is ``traceparent``."""
    traceparent: str
    tool_call_id: str
    """Of the tool that made the change; empty when none did."""


CallbackArguments = tuple[str, Any, Any, Mapping[str, str]]
"""What an observer is called with: name, old value, new value, metadata."""


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What became of a batch, by the identifiers that were given."""

    versions: Mapping[str, int]
    errors: Mapping[str, str]
    """Empty for an atomic batch, which raises ``BatchRefused`` instead."""


class BatchRefused(InvalidRequest):
    """An atomic batch was refused as a whole; ``errors`` says why, by identifier."""

    reason = "BATCH_REFUSED"

    def __init__(self, errors: Mapping[str, str]) -> None:
        super().__init__("; ".join(errors.values()), field="updates")
        self.errors = dict(errors)


def as_variable(state: VariableState) -> Variable:
    """A variable as the projection has it."""
    definition = state.definition
    return Variable(
        definition.id,
        definition.name,
        definition.type,
        _python(state.value),
        state.version,
        state.offset,
        MappingProxyType(json.loads(definition.constraints_json or "{}")),
        MappingProxyType(dict(state.metadata)),
        state.source,
        _time(state.time_unix_nanos),
    )


def as_version(past: PastVersion) -> VariableVersion:
    """A version of a variable as its log has it."""
    record = past.record
    return VariableVersion(
        past.version,
        _python(past.value),
        None if past.previous is None else _python(past.previous),
        past.offset,
        record.source,
        MappingProxyType(dict(record.metadata)),
        _time(record.time_unix_nanos),
        past.rolled_back_to,
    )


def as_change(entry: Committed, index: int, log_epoch: str, *, last: bool) -> Change:
    """The ``index``-th event of a transaction, a change of a variable.

    :param last: whether the watcher wants no later event of this transaction.
    :raises InvalidValue: of a type that is not registered in this process.
    """
    record = entry.transaction.record
    offset = record.first_offset + index
    kind, _ = entry.transaction.facts[index]
    variable = entry.shown[index]
    if variable is None:
        raise AssertionError("only changes of variables are wanted")
    definition = variable.definition
    shown = [_python(value) for value in entry.values(index)]
    new = None if kind == "variable_deleted" else shown[0]
    old = None if kind == "variable_registered" else shown[-1]
    resume_offset, resume_check = bookmark_at(entry, index, last=last)
    return Change(
        _CHANGE_KINDS[kind],
        definition.name,
        definition.id,
        definition.type,
        old,
        new,
        variable.version,
        offset,
        log_epoch,
        resume_offset,
        resume_check,
        record.source,
        MappingProxyType(dict(record.metadata)),
        _time(record.time_unix_nanos),
        record.correlation_id,
        record.traceparent,
        record.tool_call_id,
    )


def as_arguments(entry: Committed, index: int) -> CallbackArguments:
    """What observers are called with for the ``index``-th event of a transaction, a new value.

    :raises InvalidValue: of a type that is not registered in this process.
    """
    record = entry.transaction.record
    new, old = entry.values(index)
    variable = entry.shown[index]
    if variable is None:
        raise AssertionError("only changes of variables are wanted")
    metadata = {**record.metadata, "source": record.source}
    if record.correlation_id:
        metadata["correlation_id"] = record.correlation_id
    if record.traceparent:
        metadata["traceparent"] = record.traceparent
    if record.tool_call_id:
        metadata["tool_call_id"] = record.tool_call_id
    return variable.definition.name, _python(old), _python(new), MappingProxyType(metadata)


def _python(value: Value) -> Any:  # noqa: ANN401 - any variable's value
    python = to_python(stored_type(value.any), value.any, value.binary)
    if isinstance(python, np.ndarray):
        python.flags.writeable = False
    return python


def _time(nanoseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=nanoseconds // 1_000)
