"""What Python code sees of a session: immutable values, whichever side of the wire made them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any

from snakepit_bridge.errors import InvalidRequest

__all__ = [
    "EVENT_KINDS",
    "BatchRefused",
    "BatchResult",
    "Change",
    "Reading",
    "Variable",
    "VariableVersion",
]

EVENT_KINDS: Mapping[str, str] = MappingProxyType(
    {
        "value_change": "variable_set",
        "registered": "variable_registered",
        "deleted": "variable_deleted",
    }
)
"""Kinds of change, as they are called on the wire, and of the events that they are."""


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
class Reading:
    """Several variables at one moment: no change lies between any two of them."""

    session_id: str
    log_epoch: str
    offset: int
    """The head of the log at that moment."""
    variables: Mapping[str, Variable]
    """By the identifier that was asked; those that did not exist are absent."""


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
    """``value_change`` (of a set, a batch or a rollback), ``registered`` or ``deleted``; of a
    client's watch that asked for them also ``initial_value``."""
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
    value_omitted: bool = False
    """Whether old or new is ``None`` because it is larger than the watch wanted."""


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
