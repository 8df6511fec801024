"""What the committer is given to do, and what it gives back."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from snakepit_bridge.events.model import Answer, Envelope
from snakepit_bridge.events.projection import VariableState

__all__ = ["Command", "Outcome", "Task"]


class Command(Protocol):
    @property
    def envelope(self) -> Envelope: ...


class Outcome(NamedTuple):
    """An accepted command, committed."""

    answer: Answer
    log_epoch: str
    variable: VariableState | None = None
    """The one that ``answer.variable_id`` names, as the command left it."""
    variables: tuple[VariableState, ...] = ()
    """All of them, when ``answer.show_state``."""


class Task(Protocol):
    """One piece of work for the committer; both methods run on its thread."""

    def command(self) -> Any:  # noqa: ANN401 - a command of whoever supplies ``decide``
        """Give the command, or raise a ``BridgeError`` when it cannot be understood."""

    def answer(self, outcome: Outcome) -> Any:  # noqa: ANN401 - whatever it delivers
        """Turn the outcome into what is delivered."""
