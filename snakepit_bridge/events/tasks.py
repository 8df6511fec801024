"""What the committer is given to do, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

from snakepit_bridge.events.loaded import LoadedLog
from snakepit_bridge.events.model import Answer, Envelope, LogId, Moment, StoredRecord
from snakepit_bridge.events.projection import VariableState

__all__ = ["Batch", "Chore", "Command", "Duplicate", "Outcome", "Task"]


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


class Duplicate(NamedTuple):
    """A command that was accepted before; its answer waits to be read from the log."""

    command: Command
    log: LogId
    first_offset: int


class Chore(NamedTuple):
    """Work for this thread that is no command; see ``Committer.perform``."""

    work: Callable[[], Any]
    future: Future[Any]


class Batch:
    """What one commit has gathered."""

    __slots__ = ("ends", "moment", "records", "touched")

    def __init__(self, moment: Moment) -> None:
        self.moment = moment
        self.records: list[tuple[LogId, StoredRecord]] = []
        self.ends: list[int] = []
        """For each task, how many records there were after it."""
        self.touched: dict[LogId, tuple[LoadedLog, list[str]]] = {}
        """Logs that changed, with the ids of the variables that did."""
