"""A committer without a network: commands in, outcomes out, states side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from google.protobuf.any_pb2 import Any as AnyMessage

from snakepit_bridge.commands import Command, WireValue
from snakepit_bridge.decide import decider, recall
from snakepit_bridge.errors import BridgeError
from snakepit_bridge.events.committer import Committer
from snakepit_bridge.events.loaded import LoadedLog
from snakepit_bridge.events.log import EventLog
from snakepit_bridge.events.model import LogHead, LogId, StoredSnapshot, Value
from snakepit_bridge.events.projection import SessionState, apply
from snakepit_bridge.events.reading import fold
from snakepit_bridge.events.snapshot import seal_snapshot
from snakepit_bridge.events.tasks import CommandTask, Outcome
from snakepit_bridge.limits import DEFAULTS, Limits

Result = Outcome | BridgeError

T = TypeVar("T")

PATIENCE = 30.0
"""Seconds an answer may take before a test gives up on it."""


def wire_value(type_name: str, json: str) -> WireValue:
    """A value as a client sends it."""
    message = AnyMessage(type_url=f"dspex.variables/{type_name}", value=json.encode())
    return WireValue(message.SerializeToString())


def integer(value: object) -> WireValue:
    """An integer as a client sends it; anything else is a value that is refused."""
    return wire_value("integer", str(value))


def json_of(value: WireValue | Value) -> str:
    return AnyMessage.FromString(value.any).value.decode()


class Direct:
    """A running committer on ``engine``, spoken to from the test's own threads."""

    def __init__(
        self,
        engine: EventLog,
        limits: Limits = DEFAULTS,
        **options: Any,  # noqa: ANN401 - of each its own
    ) -> None:
        self.engine = engine
        self.committer = Committer(engine, decider(limits), recall, **options)
        self.committer.start()

    def submit(self, *commands: Command) -> Future[Sequence[Result]]:
        """Queue commands that are decided together, as one batch."""
        future: Future[Sequence[Result]] = Future()
        self.committer.submit([CommandTask(command) for command in commands], future.set_result)
        return future

    def ask_all(self, *commands: Command) -> Sequence[Result]:
        return self.submit(*commands).result(PATIENCE)

    def ask(self, command: Command) -> Outcome:
        """Give the outcome, or raise what the command is refused with."""
        (result,) = self.ask_all(command)
        if isinstance(result, BridgeError):
            raise result
        return result

    def loaded(self, session_id: str) -> LoadedLog:
        log = self.committer.loaded(session_id)
        assert log is not None, f"{session_id!r} is not in memory"
        return log

    def perform(self, work: Callable[..., T], *arguments: Any) -> T:  # noqa: ANN401 - of any work
        """Have the committer do something between two commits, as upkeep does."""
        return self.committer.perform(partial(work, *arguments)).result(PATIENCE)

    def snapshot(self, session_id: str) -> StoredSnapshot:
        """Keep a snapshot of a session as it is now."""
        log = self.loaded(session_id)
        sealed = seal_snapshot(self.perform(self.committer.copy_of, log))
        self.perform(self.committer.keep_snapshot, log, sealed)
        return sealed

    def cut(self, log: LogId, at: StoredSnapshot) -> None:
        """Forget a log up to a snapshot, and free the room."""
        self.perform(self.committer.cut, LogHead(log, at.offset, at.digest))
        while self.perform(self.engine.sweep, 0):
            pass

    def evict(self, session_id: str) -> None:
        """Take a session out of memory."""
        log = self.committer.peek(session_id)
        if log is not None:
            log.touched = False
            self.perform(self.committer.evict, [log])
            assert self.committer.peek(session_id) is None

    def close(self) -> None:
        self.committer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def folded(engine: EventLog, log: LogId) -> SessionState:
    state = SessionState()
    for transaction in fold(engine, log):
        apply(state, transaction)
    return state


def readable(state: SessionState) -> dict[str, Any]:
    """What readers see of a state."""
    return {
        "head": state.head,
        "digest": state.digest.hex(),
        "time": state.time_unix_nanos,
        "created": state.created_unix_nanos,
        "ended": state.ended,
        "metadata": dict(state.metadata),
        "config": state.config,
        "variables": list(state.variables.items()),  # their order counts
        "names": dict(state.names),
        "deleted": dict(state.deleted),
        "tools": dict(state.tools),
        "calls": list(state.calls.items()),  # so does theirs
    }


def whole(state: SessionState) -> dict[str, Any]:
    """All of a state."""
    return {
        **readable(state),
        "used_names": set(state.used_names),
        "requests": {
            key: known._replace(order=0) for key, known in state.requests.entries().items()
        },
    }
