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
from snakepit_bridge.events.model import Value
from snakepit_bridge.events.projection import VariableState
from snakepit_bridge.events.reading import PastVersion
from snakepit_bridge.type_serialization import stored_type, to_python

__all__ = [
    "BatchRefused",
    "BatchResult",
    "Variable",
    "VariableVersion",
    "as_variable",
    "as_version",
]

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


def _python(value: Value) -> Any:  # noqa: ANN401 - any variable's value
    python = to_python(stored_type(value.any), value.any, value.binary)
    if isinstance(python, np.ndarray):
        python.flags.writeable = False
    return python


def _time(nanoseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=nanoseconds // 1_000)
