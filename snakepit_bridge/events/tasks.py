"""What the committer is given to do, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

from snakepit_bridge.events.loaded import LoadedLog
from snakepit_bridge.events.model import (
    Answer,
    Decision,
    Envelope,
    LogId,
    Moment,
    StoredRecord,
    Transaction,
)
from snakepit_bridge.events.projection import RegisteredTool, SessionState, VariableState
from snakepit_bridge.events.ring import Commit, Committed

__all__ = [
    "Batch",
    "Chore",
    "Command",
    "CommandTask",
    "CommitObserver",
    "Decide",
    "Deliver",
    "Duplicate",
    "Outcome",
    "RecallAnswer",
    "SnapshotDue",
    "Task",
    "Timing",
    "Touched",
]


Decide = Callable[[SessionState, str, Any, Moment], Decision]
RecallAnswer = Callable[[Any, Transaction], Answer]
SnapshotDue = Callable[[LoadedLog, SessionState], None]
Deliver = Callable[[Sequence[Any]], None]
"""Takes one result a task, in order; a ``BridgeError`` is a refusal."""


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
    """All of them, when ``answer.show_state``; so with ``tools``."""
    tools: Mapping[str, RegisteredTool] = {}


class Timing:
    """When a task was decided, and in which commit; written by the committer, if it is asked for.

    Times are those of ``time.perf_counter_ns``; 0 = it did not come to that.
    """

    __slots__ = ("commit", "decide_begun", "decide_ended")

    def __init__(self) -> None:
        self.decide_begun = 0
        self.decide_ended = 0
        self.commit: Commit | None = None
        """That its events were part of, if it made any."""


class Task(Protocol):
    """One piece of work for the committer; both methods run on its thread."""

    @property
    def timing(self) -> Timing | None:
        """Where its times are kept, if anybody wants them."""

    def command(self) -> Any:  # noqa: ANN401 - a command of whoever supplies ``decide``
        """Give the command, or raise a ``BridgeError`` when it cannot be understood."""

    def answer(self, outcome: Outcome) -> Any:  # noqa: ANN401 - whatever it delivers
        """Turn the outcome into what is delivered."""


class CommandTask(NamedTuple):
    """A command that needs no reading and an outcome that needs no writing."""

    prepared: Command
    timing: Timing | None = None

    def command(self) -> Command:
        return self.prepared

    def answer(self, outcome: Outcome) -> Outcome:
        return outcome


class Duplicate(NamedTuple):
    """A command that was accepted before; its answer waits to be read from the log."""

    command: Command
    log: LogId
    first_offset: int


class Chore(NamedTuple):
    """Work for this thread that is no command; see ``Committer.perform``."""

    work: Callable[[], Any]
    future: Future[Any]


class Touched(NamedTuple):
    """What one commit changes of one log."""

    log: LoadedLog
    shown: list[VariableState | None]
    """As ``apply`` gives it, event by event."""
    committed: list[Committed]
    """The transactions, where somebody may watch them."""


class Batch:
    """What one commit has gathered."""

    __slots__ = ("commit", "ends", "moment", "records", "touched", "transactions")

    def __init__(self, moment: Moment, commit: Commit) -> None:
        self.moment = moment
        self.commit = commit
        self.transactions: list[tuple[LogId, Transaction]] = []
        """The records, parsed."""
        self.records: list[tuple[LogId, StoredRecord]] = []
        self.ends: list[int] = []
        """For each task, how many records there were after it."""
        self.touched: dict[LogId, Touched] = {}
        """Logs that changed."""


class CommitObserver(Protocol):
    """Who is told what the committer does, on its thread; must neither raise nor wait."""

    def committed(self, batch: Batch) -> None:
        """A commit can be read; nobody was answered yet."""

    def loaded(self, nanoseconds: int) -> None:
        """A session was brought into memory."""

    def snapshot(self, nanoseconds: int) -> None:
        """A snapshot was stored."""
