"""What Python code sees of a session, made from its projection and log; see ``views``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

import numpy as np

from snakepit_bridge.events.cursor import bookmark_at
from snakepit_bridge.events.model import Value
from snakepit_bridge.events.projection import VariableState
from snakepit_bridge.events.reading import PastVersion
from snakepit_bridge.events.ring import Committed
from snakepit_bridge.type_serialization import stored_type, to_python
from snakepit_bridge.views import EVENT_KINDS, Change, Variable, VariableVersion

__all__ = [
    "CallbackArguments",
    "as_arguments",
    "as_change",
    "as_variable",
    "as_version",
]

_CHANGE_KINDS = {event: change for change, event in EVENT_KINDS.items()}

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


CallbackArguments = tuple[str, Any, Any, Mapping[str, str]]
"""What an observer is called with: name, old value, new value, metadata."""


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
