"""The committer: one thread that decides, appends, syncs, applies and answers.

Nothing else changes a session. Work comes in groups; the thread takes all that is
waiting and makes one commit of it::

    take ─▶ decide each on the working state ─▶ append, sync ─▶ publish ─▶ answer all

* Decided on the *working* state, so that a batch sees its own effects; readers see the
  *committed* state, which follows only when the append has returned.
* Every answer of a batch leaves after its commit and shares its failure, refusals and
  duplicates too: they were decided on events that might have been lost.
* After a failed append nothing more is written until the engine has *settled*: only then
  is it read what was stored, and the waiters are told that.

Locks: a ``LoadedLog.lock`` for a few dictionary updates, the committer's door to queue;
neither is taken while another is held.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from snakepit_bridge.errors import BridgeError, InternalError, OutcomeUnknown, Unavailable
from snakepit_bridge.events.codec import Stamp, seal
from snakepit_bridge.events.log import AppendError, Conflict, EventLog
from snakepit_bridge.events.model import (
    Answer,
    Decision,
    Envelope,
    LogId,
    Recall,
    StoredRecord,
    Transaction,
)
from snakepit_bridge.events.projection import SessionState, VariableState, apply
from snakepit_bridge.events.reading import fold, state_after, transaction_at

__all__ = [
    "Command",
    "Committer",
    "LoadedLog",
    "Outcome",
    "Task",
]

logger = logging.getLogger(__name__)


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


Decide = Callable[[SessionState, str, Any], Decision]
RecallAnswer = Callable[[Any, Transaction], Answer]
Deliver = Callable[[Sequence[Any]], None]
"""Takes one result a task, in order; a ``BridgeError`` is a refusal."""


class LoadedLog:
    """One log in memory: the state that is decided on and the state that is read."""

    __slots__ = ("committed", "id", "lock", "working")

    def __init__(self, id: LogId) -> None:  # noqa: A002 - the field's name
        self.id = id
        self.working = SessionState()
        """Owned by the committer thread; may be ahead of the disk."""
        self.committed = SessionState()
        """Read under ``lock``."""
        self.lock = threading.Lock()


class _Duplicate(NamedTuple):
    """A command that was accepted before; its answer waits to be read from the log."""

    command: Command
    log: LogId
    first_offset: int


class Committer:
    """Owns the engine's writing side and the states of the loaded sessions."""

    def __init__(
        self,
        engine: EventLog,
        decide: Decide,
        recall: RecallAnswer,
        *,
        clock: Callable[[], int] = time.time_ns,
        epochs: Callable[[], str] = lambda: secrets.token_hex(8),
    ) -> None:
        self.engine = engine
        self.instance = secrets.token_hex(8)
        """Names this start of this bridge in every record it writes."""
        self._decide = decide
        self._recall = recall
        self._clock = clock
        self._epochs = epochs
        self._inbox: queue.SimpleQueue[tuple[Sequence[Task], Deliver] | None] = queue.SimpleQueue()
        self._working: dict[str, LoadedLog] = {}
        """Newest log of each loaded session; the committer thread's own view."""
        self._loaded: dict[str, LoadedLog] = {}
        """The same as it is committed; written by the committer, read by all."""
        self._broken: AppendError | None = None
        """The failure after which the engine has not settled yet."""
        self._in_doubt: set[str] = set()
        """Sessions of which it is unknown until then what is stored."""
        self._closing = False
        self._door = threading.Lock()
        """Held to queue and to close, so that nothing is queued behind the end."""
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)

    def start(self) -> None:
        """Begin to work; everything submitted before waits until then."""
        self._thread.start()

    def submit(self, tasks: Sequence[Task], deliver: Deliver) -> None:
        """Queue tasks; ``deliver`` is called once, on the committer thread.

        Tasks of one call are decided in order. Safe from any thread.

        :raises Unavailable: the committer is closing.
        """
        with self._door:
            if self._closing:
                raise Unavailable("the bridge is shutting down: retry with another one")
            self._inbox.put((tasks, deliver))

    def loaded(self, session_id: str) -> LoadedLog | None:
        """The session's newest log, if it is in memory; ``LoadSession`` brings it there."""
        return self._loaded.get(session_id)

    def close(self) -> None:
        """Commit and answer everything queued, then close the engine. Idempotent."""
        with self._door:
            first, self._closing = not self._closing, True
            if first:
                self._inbox.put(None)
                if self._thread.ident is None:
                    self._thread.start()
        self._thread.join()

    def _run(self) -> None:
        inbox = self._inbox
        open_ = True
        while open_:
            group = inbox.get()
            groups = []
            with contextlib.suppress(queue.Empty):
                while True:
                    if group is None:
                        open_ = False
                    else:
                        groups.append(group)
                    group = inbox.get_nowait()
            if groups:
                self._commit(groups)
        self.engine.close()

    def _commit(self, groups: Sequence[tuple[Sequence[Task], Deliver]]) -> None:
        tasks = groups[0][0] if len(groups) == 1 else [t for group, _ in groups for t in group]
        try:
            results = self._results(tasks)
        except Exception:
            logger.exception("the committer failed on a batch of %d", len(tasks))
            self._broken = AppendError(Unavailable("the bridge is recovering: retry"))
            self._in_doubt.update(self._working)
            self._working.clear()
            results = [OutcomeUnknown(_UNKNOWN)] * len(tasks)
        start = 0
        for group, deliver in groups:
            end = start + len(group)
            try:
                deliver(results if len(groups) == 1 else results[start:end])
            except Exception:
                # Whoever waited is gone, with its event loop; the others are not.
                logger.exception("%d answers could not be delivered", len(group))
            start = end

    def _results(self, tasks: Sequence[Task]) -> list[Any]:
        if self._broken is not None:
            try:
                self._settle()
            except AppendError as error:
                return [self._while_broken(task, error.answer) for task in tasks]
        batch = _Batch()
        results: list[Any] = []
        stamp = (self._clock(), self.instance)
        for task in tasks:
            try:
                command = task.command()
                log, decision = self._decision(command)
            except BridgeError as error:
                results.append(error)
            except Exception:
                logger.exception("a command could not be decided")
                results.append(InternalError("the bridge failed to decide this; see its log"))
            else:
                results.append(self._accept(command, decision, log, batch, stamp))
            batch.ends.append(len(batch.records))
        if batch.records:
            try:
                self.engine.append(batch.records)
            except (AppendError, Conflict) as error:
                self._after_failure(error, batch, results)
            else:
                self._publish(batch)
        return [
            result if isinstance(result, BridgeError) else self._answer(task, result)
            for task, result in zip(tasks, results, strict=True)
        ]

    def _while_broken(self, task: Task, refusal: BridgeError) -> Any:  # noqa: ANN401
        """Reading goes on, but for sessions of which it is unknown what is stored."""
        try:
            command = task.command()
            if command.envelope.session_id in self._in_doubt:
                return refusal
            log, decision = self._decision(command)
            if decision.drafts:
                return refusal
            return self._answer(task, self._accept(command, decision, log, _Batch(), (0, "")))
        except BridgeError as error:
            return error

    def _decision(self, command: Command) -> tuple[LoadedLog | None, Decision]:
        """Decide a command on the newest log of its session; ``None`` when none is kept."""
        session_id = command.envelope.session_id
        log = self._working.get(session_id) or self._load(session_id)
        if log is None:
            return None, self._decide(_NO_STATE, "", command)
        return log, self._decide(log.working, log.id.epoch, command)

    def _accept(
        self,
        command: Command,
        decision: Decision,
        log: LoadedLog | None,
        batch: _Batch,
        stamp: Stamp,
    ) -> Outcome | _Duplicate:
        """Seal and apply what was decided; an exception here fails the batch."""
        drafts, answer, starts, request = decision
        envelope = command.envelope
        if starts or log is None:
            log = LoadedLog(LogId(envelope.session_id, self._epochs() if drafts else ""))
        state, log_id = log.working, log.id
        if drafts:
            if starts:
                self._working[log_id.session_id] = log
            touched = batch.touched.get(log_id)
            if touched is None:
                touched = batch.touched[log_id] = (log, [])
            cause = (envelope, request)
            for draft in drafts:
                tail = (state.head, state.digest, state.time_unix_nanos)
                stored, transaction = seal(draft, cause, stamp, tail)
                touched[1].extend(apply(state, transaction))
                batch.records.append((log_id, stored))
        if isinstance(answer, Recall):
            return _Duplicate(command, log_id, answer.first_offset)
        return Outcome(
            answer,
            log_id.epoch,
            state.variables.get(answer.variable_id) if answer.variable_id else None,
            tuple(state.variables.values()) if answer.show_state else (),
        )

    def _load(self, session_id: str) -> LoadedLog | None:
        head = self.engine.latest(session_id)
        if head is None:
            return None
        state = SessionState()
        for transaction in fold(self.engine, head.log):
            apply(state, transaction)
        log = self._loaded.get(session_id)
        if log is None or log.id != head.log:
            log = LoadedLog(head.log)
        # Whoever reads a loaded log holds on to the object: it is given fresh states.
        log.working = state
        with log.lock:
            log.committed = state.readable()
        self._working[session_id] = self._loaded[session_id] = log
        return log

    def _publish(self, batch: _Batch) -> None:
        for log, touched in batch.touched.values():
            with log.lock:
                log.committed.adopt(log.working, touched)
            self._loaded[log.id.session_id] = log

    def _answer(self, task: Task, result: Outcome | _Duplicate) -> Any:  # noqa: ANN401
        try:
            if isinstance(result, _Duplicate):
                result = self._remembered(*result)
            return task.answer(result)
        except BridgeError as error:
            return error
        except Exception:
            logger.exception("an answer could not be made")
            return InternalError("the change was made, but its answer failed; see the log")

    def _remembered(self, command: Command, log: LogId, first_offset: int) -> Outcome:
        """Answer a duplicate as the first time, from the record it became then."""
        transaction = transaction_at(self.engine, log, first_offset)
        answer = self._recall(command, transaction)
        id_ = answer.variable_id
        if not (id_ or answer.show_state):
            return Outcome(answer, log.epoch)
        current = self._working.get(log.session_id)
        if current is not None and current.id == log:
            now = current.working.variables.get(id_)
            if now is not None and now.offset == answer.offset:
                return Outcome(answer, log.epoch, now)
        then = state_after(self.engine, log, transaction)
        everything = tuple(then.variables.values()) if answer.show_state else ()
        return Outcome(answer, log.epoch, then.variables.get(id_), everything)

    def _settle(self) -> None:
        """Bring the engine back; until this succeeds nothing is decided.

        :raises AppendError: it is still out of order.
        """
        self.engine.settle()
        self._broken = None
        self._in_doubt.clear()
        logger.warning("the log %s can be written again", self.engine.url)

    def _after_failure(
        self, error: AppendError | Conflict, batch: _Batch, results: list[Any]
    ) -> None:
        """Find out what a failed append stored, and answer the batch by that."""
        logger.error("appending %d records failed: %s", len(batch.records), error)
        if isinstance(error, Conflict):
            error = AppendError(Unavailable(f"another writer was first ({error}): retry"))
        self._broken = error
        sessions = {log.session_id for log in batch.touched}
        for session_id in sessions:
            # The working states are ahead of what may be stored: read them anew.
            self._working.pop(session_id, None)
        try:
            self._settle()
            stored = [self._is_stored(log, record) for log, record in batch.records]
            for session_id in sessions:
                if self._load(session_id) is None:
                    self._loaded.pop(session_id, None)
        except (AppendError, BridgeError) as again:
            logger.error("what was stored is not known: %s", again)  # noqa: TRY400 - no defect
            self._broken = again if isinstance(again, AppendError) else error
            self._in_doubt.update(sessions)
            for session_id in sessions:
                self._working.pop(session_id, None)
            results[:] = [OutcomeUnknown(_UNKNOWN) for _ in results]
            return
        start = 0
        for index, end in enumerate(batch.ends):
            # A command without events of its own was decided on those of the others.
            if not all(stored[start:end] or stored):
                results[index] = error.answer
            start = end

    def _is_stored(self, log: LogId, record: StoredRecord) -> bool:
        found = self.engine.record_at(log, record.first_offset)
        return found is not None and found.digest == record.digest


class _Batch:
    """What one commit has gathered."""

    __slots__ = ("ends", "records", "touched")

    def __init__(self) -> None:
        self.records: list[tuple[LogId, StoredRecord]] = []
        self.ends: list[int] = []
        """For each task, how many records there were after it."""
        self.touched: dict[LogId, tuple[LoadedLog, list[str]]] = {}
        """Logs that changed, with the ids of the variables that did."""


_NO_STATE = SessionState()

_UNKNOWN = (
    "the log failed while this was written, so its outcome is unknown: retry with the same "
    "request_id (without one, read first)"
)
