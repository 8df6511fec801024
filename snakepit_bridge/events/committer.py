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
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from snakepit_bridge.errors import (
    BridgeError,
    DataLoss,
    InternalError,
    OutcomeUnknown,
    Unavailable,
    without_frames,
)
from snakepit_bridge.events.codec import Stamp, seal
from snakepit_bridge.events.duplicates import remembered
from snakepit_bridge.events.loaded import LoadedLog
from snakepit_bridge.events.log import AppendError, Conflict, EventLog
from snakepit_bridge.events.model import (
    AGAIN,
    Answer,
    Decision,
    LogHead,
    LogId,
    Moment,
    Recall,
    StoredSnapshot,
)
from snakepit_bridge.events.projection import SessionState, apply
from snakepit_bridge.events.reading import check_cut, load
from snakepit_bridge.events.recent import Recent
from snakepit_bridge.events.ring import Commit, committed
from snakepit_bridge.events.snapshot import copied, leave_snapshots
from snakepit_bridge.events.tasks import (
    Batch,
    Chore,
    Command,
    CommitObserver,
    Decide,
    Deliver,
    Duplicate,
    Outcome,
    RecallAnswer,
    SnapshotDue,
    Task,
    Touched,
)

__all__ = [
    "Committer",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Committer:
    """Owns the engine's writing side and the states of the loaded sessions."""

    def __init__(  # noqa: PLR0913 - by name, each with what is usual
        self,
        engine: EventLog,
        decide: Decide,
        recall: RecallAnswer,
        *,
        clock: Callable[[], int] = time.time_ns,
        epochs: Callable[[], str] = lambda: secrets.token_hex(8),
        observers: Sequence[CommitObserver] = (),
    ) -> None:
        self.engine = engine
        self.instance = secrets.token_hex(8)
        """Names this start of this bridge in every record it writes."""
        self._decide = decide
        self._recall = recall
        self._clock = clock
        self._epochs = epochs
        self._observers = observers
        self._snapshot_every = 0
        self._snapshot_due: SnapshotDue | None = None
        self.recent = Recent()
        self._inbox: queue.SimpleQueue[tuple[Sequence[Task], Deliver] | Chore | None]
        self._inbox = queue.SimpleQueue()
        self._working: dict[str, LoadedLog] = {}
        """Newest log of each loaded session; the committer thread's own view."""
        self._loaded: dict[str, LoadedLog] = {}
        """The same as it is committed; written by the committer, read by all."""
        self._live = 0
        """How many logs have not ended."""
        self._broken: AppendError | None = None
        """The failure after which nothing can be written yet."""
        self._settled = True
        """Whether it is known what the failed append stored."""
        self._in_doubt: set[str] = set()
        """Sessions of which it is not."""
        self._suspect: set[str] = set()
        """Sessions whose newest snapshot turned out to be damaged in part."""
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

    def perform(self, work: Callable[[], T]) -> Future[T]:
        """Run something between two commits, on the thread that may write to the engine.

        The future gets what it returns or raises; an ``AppendError`` also makes the engine
        settle before the next commit.

        :raises Unavailable: the committer is closing.
        """
        future: Future[T] = Future()
        with self._door:
            if self._closing:
                raise Unavailable("the bridge is shutting down")
            self._inbox.put(Chore(work, future))
        return future

    def loaded(self, session_id: str) -> LoadedLog | None:
        """The session's newest log, if it is in memory; ``LoadSession`` brings it there."""
        log = self._loaded.get(session_id)
        if log is not None:
            log.touched = True
        return log

    @property
    def writable(self) -> bool:
        """Whether new events would be written: it runs, no append has failed, no end has begun."""
        return self._thread.is_alive() and not self._closing and self._broken is None

    @property
    def live_sessions(self) -> int:
        """Sessions that have not ended, in memory or not."""
        return self._live

    def peek(self, session_id: str) -> LoadedLog | None:
        """The same without counting as a use of the session."""
        return self._loaded.get(session_id)

    def when_snapshot_due(self, every: int, call: SnapshotDue) -> None:
        """Have ``call`` made when a log has ``every`` events more than its last snapshot.

        It gets a copy of the state and must not take long: the committer's thread makes the
        call. What is sealed elsewhere comes back by ``keep_snapshot``.
        """
        self._snapshot_every, self._snapshot_due = every, call

    def all_loaded(self) -> Sequence[LoadedLog]:
        """Every log in memory."""
        return list(self._loaded.copy().values())

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
        self._count_live()
        open_ = True
        while open_:
            item = inbox.get()
            groups: list[tuple[Sequence[Task], Deliver]] = []
            chores: list[Chore] = []
            with contextlib.suppress(queue.Empty):
                while True:
                    if item is None:
                        open_ = False
                    elif isinstance(item, Chore):
                        chores.append(item)
                    else:
                        groups.append(item)
                    item = inbox.get_nowait()
            if groups:
                self._commit(groups)
                self._tidy()
            for chore in chores:
                self._do(chore)
        try:
            if self._broken is None:
                leave_snapshots(self.engine, self._working.values())
        except Exception:
            logger.exception("the last snapshots could not be stored")
        self.engine.close()

    def _tidy(self) -> None:
        if self._broken is None:
            try:
                self.engine.tidy()
            except Exception:
                # What is left undone shows in the next append, if it matters.
                logger.exception("the engine could not be tidied")

    def _do(self, chore: Chore) -> None:
        work, future = chore
        try:
            if self._broken is not None:
                self._recover()
            result = work()
        except AppendError as error:
            if self._broken is None:
                logger.error("upkeep of the log failed: %s", error)  # noqa: TRY400 - no defect
                self._fail(error)
            future.set_exception(error.answer)
        except Exception as error:  # noqa: BLE001 - whoever waits for it handles it
            future.set_exception(error)
        else:
            future.set_result(result)

    def _count_live(self) -> None:
        try:
            self._live = self.engine.live_sessions()
        except BridgeError as error:
            logger.warning("the live sessions could not be counted: %s", error)

    def _fail(self, error: AppendError) -> None:
        self._broken, self._settled = error, False
        for log in self._loaded.values():
            log.snapshot_asked = False  # what was asked for may never be kept

    def _commit(self, groups: Sequence[tuple[Sequence[Task], Deliver]]) -> None:
        tasks = groups[0][0] if len(groups) == 1 else [t for group, _ in groups for t in group]
        try:
            results = self._results(tasks)
        except Exception:
            logger.exception("the committer failed on a batch of %d", len(tasks))
            self._fail(AppendError(Unavailable("the bridge is recovering: retry")))
            self._in_doubt.update(self._working)
            self._working.clear()
            results = [OutcomeUnknown()] * len(tasks)
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
                self._recover()
            except AppendError as error:
                return [self._while_broken(task, error.answer) for task in tasks]
        for session_id in self._suspect:
            self._working.pop(session_id, None)
        stamp = (self._clock(), self.instance)
        now = time.perf_counter_ns
        commit = Commit(now())
        batch = Batch(Moment(stamp[0], self._live, self.instance), commit)
        results: list[Any] = []
        for task in tasks:
            timing = task.timing
            if timing is not None:
                timing.decide_begun = now()
            try:
                command = task.command()
                log, decision = self._decision(command, batch.moment)
                while decision.answer is AGAIN:
                    self._write(command, decision, log, batch, stamp)
                    log, decision = self._decision(command, batch.moment)
            except BridgeError as error:
                without_frames(error)
                results.append(error)
            except Exception:
                logger.exception("a command could not be decided")
                results.append(InternalError("the bridge failed to decide this; see its log"))
            else:
                results.append(self._accept(command, decision, log, batch, stamp))
            if timing is not None:
                timing.decide_ended = now()
                if len(batch.records) > (batch.ends[-1] if batch.ends else 0):
                    timing.commit = commit
            batch.ends.append(len(batch.records))
        if batch.records:
            commit.append_begun = now()
            try:
                self.engine.append(batch.records)
            except (AppendError, Conflict) as error:
                commit.append_ended = now()
                self._after_failure(error, batch, results)
            else:
                commit.append_ended = now()
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
            batch = Batch(Moment(self._clock(), self._live), Commit(time.perf_counter_ns()))
            log, decision = self._decision(command, batch.moment)
            if decision.drafts:
                return refusal
            return self._answer(task, self._accept(command, decision, log, batch, (0, "")))
        except BridgeError as error:
            return error

    def _decision(self, command: Command, moment: Moment) -> tuple[LoadedLog | None, Decision]:
        """Decide a command on the newest log of its session; ``None`` when none is kept."""
        session_id = command.envelope.session_id
        log = self._working.get(session_id) or self._load(session_id)
        if log is None:
            return None, self._decide(_NO_STATE, "", command, moment)
        log.touched = True
        if command.envelope.request_id:
            self._fetch_requests(log)
        return log, self._decide(log.working, log.id.epoch, command, moment)

    def _fetch_requests(self, log: LoadedLog) -> None:
        """See that a decision need read nothing to know a request.

        :raises Unavailable: the snapshot's table is damaged; the next batch does without it.
        """
        try:
            log.working.requests.fetch()
        except DataLoss as error:
            session_id = log.id.session_id
            logger.warning("session %r: %s", session_id, error.message)
            self._suspect.add(session_id)
            raise Unavailable("the session is read anew: retry") from error

    def _accept(
        self,
        command: Command,
        decision: Decision,
        log: LoadedLog | None,
        batch: Batch,
        stamp: Stamp,
    ) -> Outcome | Duplicate:
        """Write what was decided; an exception here fails the batch."""
        log = self._write(command, decision, log, batch, stamp)
        answer = decision.answer
        if isinstance(answer, Answer):
            state = log.working
            variable = state.variables.get(answer.variable_id) if answer.variable_id else None
            if answer.show_state:
                everything = tuple(state.variables.values())
                return Outcome(answer, log.id.epoch, variable, everything, state.tools)
            return Outcome(answer, log.id.epoch, variable)
        if isinstance(answer, Recall):
            return Duplicate(command, log.id, answer.first_offset)
        raise AssertionError("what is to be decided again is not accepted yet")

    def _write(
        self,
        command: Command,
        decision: Decision,
        log: LoadedLog | None,
        batch: Batch,
        stamp: Stamp,
    ) -> LoadedLog:
        """Seal and apply the drafts of a decision; gives the log that they went to."""
        drafts, _, starts, request = decision
        envelope = command.envelope
        if starts or log is None:
            log = LoadedLog(LogId(envelope.session_id, self._epochs() if drafts else ""))
        if not drafts:
            return log
        state, log_id = log.working, log.id
        if starts:
            self._working[log_id.session_id] = log
        touched = batch.touched.get(log_id)
        if touched is None:
            touched = batch.touched[log_id] = Touched(log, [], [])
        cause = (envelope, request)
        for draft in drafts:
            digest = state.digest
            stored, transaction = seal(
                draft, cause, stamp, (state.head, digest, state.time_unix_nanos)
            )
            shown = apply(state, transaction)
            touched.shown.extend(shown)
            if log.ring is not None:
                touched.committed.append(committed(transaction, shown, digest, batch.commit))
            batch.records.append((log_id, stored))
            batch.transactions.append((log_id, transaction))
        if starts or state.ended:
            live = batch.moment.live_sessions + starts - bool(state.ended)
            batch.moment = batch.moment._replace(live_sessions=live)
        return log

    def _load(self, session_id: str) -> LoadedLog | None:
        head = self.engine.latest(session_id)
        if head is None:
            return None
        suspect = session_id in self._suspect
        begun = time.perf_counter_ns()
        state, snapshot_offset = load(self.engine, head, requests=suspect)
        self._suspect.discard(session_id)
        log = self._loaded.get(session_id)
        if log is None or log.id != head.log:
            log = LoadedLog(head.log)
        # Whoever reads a loaded log holds on to the object: it is given fresh states.
        log.working = state
        with log.lock:
            log.committed = state.readable()
        log.base, log.snapshot_offset = head.base, snapshot_offset
        self._working[session_id] = self._loaded[session_id] = log
        self._ask_for_snapshot(log)
        if log.ring is not None:
            self.recent.publish([(log, ())])
        self._tell(lambda observer: observer.loaded(time.perf_counter_ns() - begun))
        return log

    def _publish(self, batch: Batch) -> None:
        watched = []
        for touched in batch.touched.values():
            log, shown, recent = touched
            with log.lock:
                log.committed.adopt(log.working, shown)
            self._loaded[log.id.session_id] = log
            if log.ring is not None:
                watched.append((log, recent))
            if log.working.head - log.snapshot_offset >= self._snapshot_every:
                self._ask_for_snapshot(log)
        self._live = batch.moment.live_sessions
        batch.commit.events = sum(record.events for _, record in batch.records)
        batch.commit.ended = time.perf_counter_ns()
        if watched:
            self.recent.publish(watched)
        self._tell(lambda observer: observer.committed(batch))

    def _tell(self, tell: Callable[[CommitObserver], None]) -> None:
        for observer in self._observers:
            try:
                tell(observer)
            except Exception:
                # It is committed; whoever cannot be told of it must not undo that.
                logger.exception("an observer could not be told of a commit")

    def _ask_for_snapshot(self, log: LoadedLog) -> None:
        """Have the state, which is committed, sealed on another thread, if it is time."""
        due = log.working.head - log.snapshot_offset >= self._snapshot_every
        if due and not log.snapshot_asked and self._snapshot_due is not None:
            log.snapshot_asked = True
            self._snapshot_due(log, copied(log.working))

    def _answer(self, task: Task, result: Outcome | Duplicate) -> Any:  # noqa: ANN401
        try:
            if isinstance(result, Duplicate):
                current = self._working.get(result.log.session_id)
                result = remembered(self.engine, self._recall, result, current)
            return task.answer(result)
        except BridgeError as error:
            return error
        except Exception:
            logger.exception("an answer could not be made")
            return InternalError("the change was made, but its answer failed; see the log")

    def _recover(self) -> None:
        """Bring the engine back; until this succeeds nothing is written.

        :raises AppendError: it is still out of order.
        """
        if not self._settled:
            self.engine.settle()
            self._settled = True
            self._in_doubt.clear()
            self._count_live()
        self.engine.resume()
        self._broken = None
        logger.warning("the log %s can be written again", self.engine.url)

    def _after_failure(
        self, error: AppendError | Conflict, batch: Batch, results: list[Any]
    ) -> None:
        """Find out what a failed append stored, and answer the batch by that."""
        logger.error("appending %d records failed: %s", len(batch.records), error)
        if isinstance(error, Conflict):
            error = AppendError(Unavailable(f"another writer was first ({error}): retry"))
        self._fail(error)
        sessions = {log.session_id for log in batch.touched}
        for session_id in sessions:
            # The working states are ahead of what may be stored: read them anew.
            self._working.pop(session_id, None)
        try:
            self.engine.settle()
            stored = [self.engine.holds(log, record) for log, record in batch.records]
            for session_id in sessions:
                if self._load(session_id) is None:
                    self._loaded.pop(session_id, None)
        except (AppendError, BridgeError) as again:
            logger.error("what was stored is not known: %s", again)  # noqa: TRY400 - no defect
            self._fail(again if isinstance(again, AppendError) else error)
            self._in_doubt.update(sessions)
            for session_id in sessions:
                self._working.pop(session_id, None)
            results[:] = [OutcomeUnknown() for _ in results]
            return
        self._settled = True
        self._count_live()
        start = 0
        for index, end in enumerate(batch.ends):
            # A command without events of its own was decided on those of the others.
            if not all(stored[start:end] or stored):
                results[index] = error.answer
            start = end
        with contextlib.suppress(AppendError):
            # Not yet, for example while the disk is full: the next batch tries again.
            self._recover()

    def copy_of(self, log: LoadedLog) -> SessionState:
        """A copy of the state to make a snapshot of, or ``Unavailable``; a chore."""
        session_id = log.id.session_id
        if (self._working.get(session_id) or self._load(session_id)) is not log:
            raise Unavailable("the session is no longer the one in memory")
        return copied(log.working)

    def keep_snapshot(self, log: LoadedLog, snapshot: StoredSnapshot) -> None:
        """Store a snapshot of a loaded log; a chore for ``perform``."""
        log.snapshot_asked = False
        begun = time.perf_counter_ns()
        self.engine.save_snapshot(log.id, snapshot)
        self._tell(lambda observer: observer.snapshot(time.perf_counter_ns() - begun))
        log.snapshot_offset = max(log.snapshot_offset, snapshot.offset)
        if self._working.get(log.id.session_id) is log:
            log.working.requests.adopt(snapshot.requests)

    def evict(self, logs: Iterable[LoadedLog]) -> None:
        """Take logs out of memory that are not in use; a chore for ``perform``."""
        for log in logs:
            session_id = log.id.session_id
            with log.lock:
                unused = not log.touched and not log.held
                if unused and self._working.get(session_id) is log:
                    del self._working[session_id]
                    self._loaded.pop(session_id, None)

    def cut(self, at: LogHead) -> None:
        """Forget a log up to a snapshot, or ``DataLoss`` if it cannot be read; a chore."""
        check_cut(self.engine, at)
        self.engine.cut(at)
        log = self._loaded.get(at.log.session_id)
        if log is not None and log.id == at.log:
            log.base = at.head

    def drop(self, log_id: LogId) -> None:
        """Forget a log that has ended; a chore for ``perform``."""
        self.engine.drop(log_id)
        for logs in (self._working, self._loaded):
            log = logs.get(log_id.session_id)
            if log is not None and log.id == log_id:
                del logs[log_id.session_id]


_NO_STATE = SessionState()
