"""Locks of optimizers: who may change a variable while one is at work on it.

Pure, as ``decide``. A lock is a fact of the log and ends by one: stopped, forced, or taken
away because its optimizer did nothing for long (its last change is what counts).
"""

from __future__ import annotations

from collections.abc import Sequence

from snakepit_bridge.commands import Setting
from snakepit_bridge.errors import FailedPrecondition, quote
from snakepit_bridge.events.model import Draft, Envelope, Event
from snakepit_bridge.events.projection import Lock, VariableState

__all__ = ["Stale", "check_lock", "locked", "release_stale", "stopped"]


def stopped(variables: Sequence[VariableState], reason: str) -> Draft:
    events = []
    for variable in variables:
        event = Event()
        body = event.optimization_stopped
        body.id = variable.definition.id
        body.optimization_id = variable.lock.optimization_id if variable.lock else ""
        body.reason = reason
        events.append(event)
    return Draft(tuple(events), own=reason == "stale")


class Stale(Exception):
    """Optimizers that did nothing for long hold what a command needs."""

    def __init__(self, variables: Sequence[VariableState]) -> None:
        super().__init__(variables)
        self.variables = variables


def release_stale(setting: Setting, variables: Sequence[VariableState], envelope: Envelope) -> None:
    """:raises Stale: some of the variables are held by another who has long done nothing."""
    stale = [v for v in variables if v.lock is not None and _is_stale(setting, v.lock, envelope)]
    if stale:
        raise Stale(stale)


def _is_stale(setting: Setting, lock: Lock, envelope: Envelope) -> bool:
    state, _, moment, limits = setting
    if lock.optimization_id == envelope.optimization_id or not limits.optimization_ttl:
        return False
    # As the times of events: a clock that jumps back makes nothing younger.
    now = max(moment.clock_unix_nanos, state.time_unix_nanos)
    return now - lock.used_unix_nanos > limits.optimization_ttl * 1e9


def check_lock(setting: Setting, variable: VariableState, envelope: Envelope) -> None:
    """Let only the optimizer that holds a variable change it.

    :raises FailedPrecondition: another holds it, or the writer has lost it.
    """
    release_stale(setting, (variable,), envelope)
    given = envelope.optimization_id
    if variable.lock is not None:
        if variable.lock.optimization_id != given:
            raise locked(variable)
    elif given.rsplit(":", 2)[0] == variable.definition.id:
        raise FailedPrecondition(
            f"the optimization {quote(given)} no longer holds variable "
            f"{quote(variable.definition.name)}: start another one",
            field="optimization_id",
        )


def locked(variable: VariableState, advice: str = "or wait for it to stop") -> FailedPrecondition:
    name = quote(variable.definition.name)
    optimizer = variable.lock.optimizer_id if variable.lock else ""
    return FailedPrecondition(
        f"variable {name} is locked by the optimizer {quote(optimizer)}: present its "
        f"optimization_id, {advice}",
        field="optimization_id",
        optimizer_id=optimizer,
    )
