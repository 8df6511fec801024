"""Upkeep: the long life of sessions, beside the commits.

One thread, which never writes itself: what changes the log is done by the committer between
two commits, in pieces of a few milliseconds. In turns it

* seals snapshots that the committer asks for,
* takes sessions out of memory that nobody used for a while,
* ends those that outlived their time to live (``SessionEnded{expired}``),
* forgets logs, and beginnings of logs, that are older than the retention age,
* and frees the room of what was forgotten.

Clocks jump. Time to live is measured on the monotonic clock, and each start of a bridge
grants it anew. Retention compares wall-clock times, which only the stored events have; a
forward jump counts for it only when it has lasted an hour.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple

from snakepit_bridge.commands import CleanupSession
from snakepit_bridge.errors import BridgeError, DataLoss, ResourceExhausted, Unavailable
from snakepit_bridge.events.codec import OWN_SOURCE
from snakepit_bridge.events.committer import Committer
from snakepit_bridge.events.loaded import LONG_TAIL, LoadedLog
from snakepit_bridge.events.model import Envelope, LogHead, LogId, Origin
from snakepit_bridge.events.projection import SessionState
from snakepit_bridge.events.snapshot import seal_snapshot
from snakepit_bridge.events.tasks import Outcome
from snakepit_bridge.limits import Limits

__all__ = ["SteadyClock", "Upkeep"]

logger = logging.getLogger(__name__)

DAY = 86_400.0
ENDED_AGE = 7 * DAY
"""Seconds an ended log is kept by default: a week is when people debug it."""

IDLE = 300.0
"""Seconds without use after which a session leaves memory: it comes back in milliseconds."""

LONGEST_TICK = 30.0
SHORTEST_TICK = 0.05

SETTLING = 3_600.0
"""Seconds a forward jump of the wall clock has to last before retention believes it."""

ENDED_AT_ONCE = 100
"""Sessions that are ended in one go: a few milliseconds each if they have to be loaded."""


class Upkeep:
    """Runs from ``start`` to ``stop``."""

    def __init__(
        self,
        committer: Committer,
        limits: Limits,
        *,
        idle: float = IDLE,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], int] = time.time_ns,
    ) -> None:
        """:param idle: seconds after which an unused session leaves memory."""
        self._committer = committer
        self._engine = committer.engine
        self._limits = limits
        self._idle = idle
        self._monotonic = monotonic
        self._clock = SteadyClock(monotonic, wall)
        self._inbox: queue.SimpleQueue[tuple[LoadedLog, SessionState] | None] = queue.SimpleQueue()
        self._used: dict[str, tuple[LogId, float]] = {}
        """Of each session, its newest log and when it was last used, on the monotonic clock."""
        self._stored_use: dict[str, float] = {}
        """The same as the engine was told, of loaded sessions."""
        self._sealed: dict[str, float] = {}
        """When a loaded session last got a snapshot from here."""
        self._uncuttable: set[LogHead] = set()
        """Snapshots that cannot be read; told once."""
        self._stopping = False
        self._begun = monotonic()
        self._known_all = False
        """Whether every live log of the engine is among the used."""
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)
        committer.when_snapshot_due(
            limits.snapshot_every, lambda log, state: self._inbox.put((log, state))
        )

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Leave off at once; what is half done is done by the next start."""
        self._stopping = True
        self._inbox.put(None)
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        self._guarded(self._look_for_faults)
        tick = self._tick_length()
        due = self._monotonic() + tick
        while True:
            try:
                item = self._inbox.get(timeout=max(0.0, due - self._monotonic()))
            except queue.Empty:
                self._guarded(self.tick)
                due = self._monotonic() + tick
                continue
            if item is None:
                return
            self._guarded(partial(self._seal, *item))

    def _tick_length(self) -> float:
        """A tenth of the shortest time that is waited for."""
        ages = [self._limits.session_ttl, self._idle, self._limits.retention_age or 0.0]
        return max(SHORTEST_TICK, min(LONGEST_TICK, *(age / 10 for age in ages if age)))

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Unavailable as error:
            logger.info("upkeep waits: %s", error.message)
        except BridgeError as error:
            logger.warning("upkeep could not finish: %s", error.message)
        except Exception:
            # The bridge lives without upkeep for a while; the next tick tries again.
            logger.exception("upkeep failed")

    def _look_for_faults(self) -> None:
        for fault in self._engine.faults(thorough=False):
            logger.error("the log %s is damaged: %s", self._engine.url, fault)

    def tick(self) -> None:
        """One round."""
        now = self._monotonic()
        logs = self._committer.all_loaded()
        self._note_use(logs, now)
        self._evict([log for log in logs if now - self._used[_session(log)][1] > self._idle])
        self._expire(now)
        self._keep_cuttable(logs, now)
        self._clock.tick()
        self._retain()
        self._sweep()

    def _seal(self, log: LoadedLog, state: SessionState) -> None:
        try:
            snapshot = seal_snapshot(state)
            self._committer.perform(partial(self._committer.keep_snapshot, log, snapshot)).result()
        finally:
            log.snapshot_asked = False  # if it failed it is asked for again
        self._sealed[_session(log)] = self._monotonic()

    def _note_use(self, logs: Sequence[LoadedLog], now: float) -> None:
        stale = self._limits.session_ttl / 10
        moved = {}
        for log in logs:
            session_id = _session(log)
            if not log.touched and not log.held and session_id in self._used:
                continue
            log.touched = False
            self._used[session_id] = (log.id, now)
            if now - self._stored_use.get(session_id, -stale) >= stale:
                self._stored_use[session_id] = now
                moved[log.id] = self._clock.wall()
        if moved:
            self._committer.perform(partial(self._engine.touch, moved)).result()

    def _evict(self, logs: Sequence[LoadedLog]) -> None:
        for log in logs:
            if self._stopping:
                return
            if log.tail >= (1 if self._limits.retention_age else LONG_TAIL):
                self._copy_and_seal(log)
        if logs:
            self._committer.perform(partial(self._committer.evict, logs)).result()
            logger.debug("%d sessions that nobody uses may leave memory", len(logs))
        for log in logs:
            session_id = _session(log)
            self._stored_use.pop(session_id, None)
            self._sealed.pop(session_id, None)
            if log.committed.ended:
                self._used.pop(session_id, None)

    def _keep_cuttable(self, logs: Sequence[LoadedLog], now: float) -> None:
        """Where logs are cut by age, see that each has snapshots to be cut at."""
        age = self._limits.retention_age
        if not age:
            return
        for log in logs:
            if log.tail and now - self._sealed.setdefault(_session(log), now) >= age / 4:
                self._copy_and_seal(log)

    def _copy_and_seal(self, log: LoadedLog) -> None:
        try:
            state = self._committer.perform(partial(self._committer.copy_of, log)).result()
        except Unavailable as error:
            logger.info("no snapshot of session %r now: %s", _session(log), error.message)
            return
        self._seal(log, state)

    def _expire(self, now: float) -> None:
        ttl = self._limits.session_ttl
        if not ttl or now - self._begun <= ttl:
            return
        if not self._known_all:
            self._learn_all()
        old = [log for log, used in self._used.values() if now - used > ttl and self._may_live(log)]
        for start in range(0, len(old), ENDED_AT_ONCE):
            if self._stopping:
                return
            self._end(old[start : start + ENDED_AT_ONCE])

    def _end(self, logs: Sequence[LogId]) -> None:
        ended: Future[Sequence[Any]] = Future()
        tasks = [_Expiry(self._committer, log) for log in logs]
        self._committer.submit(tasks, ended.set_result)
        gone = []
        for log, result in zip(logs, ended.result(), strict=True):
            loaded = self._committer.peek(log.session_id)
            if loaded is not None and loaded.id == log:
                loaded.touched = False  # to end it was no use of it
                if loaded.committed.ended:
                    gone.append(loaded)
            # Where the log could not be written the next tick tries again.
            if not isinstance(result, Unavailable | ResourceExhausted):
                self._used.pop(log.session_id, None)
        self._committer.perform(partial(self._committer.evict, gone)).result()

    def _may_live(self, log: LogId) -> bool:
        loaded = self._committer.peek(log.session_id)
        return loaded is None or (loaded.id == log and loaded.committed.live)

    def _learn_all(self) -> None:
        """Take in the sessions that nobody has used since the bridge was started."""
        after = None
        while entries := self._engine.logs(after):
            for entry in entries:
                if not entry.ended_unix_nanos:
                    self._used.setdefault(entry.log.session_id, (entry.log, self._begun))
            after = entries[-1].log
        self._known_all = True

    def _retain(self) -> None:
        age = self._limits.retention_age
        ended_age = ENDED_AGE if age is None else age
        if ended_age:
            for log in self._engine.ended_before(self._before(ended_age)):
                if self._stopping:
                    return
                self._committer.perform(partial(self._committer.drop, log)).result()
        if age:
            for at in self._engine.to_cut(self._before(age)):
                if self._stopping:
                    return
                self._cut(at)

    def _before(self, age: float) -> int:
        return max(0, self._clock.steady() - int(age * 1e9))

    def _cut(self, at: LogHead) -> None:
        if at in self._uncuttable:
            return
        try:
            self._committer.perform(partial(self._committer.cut, at)).result()
        except DataLoss as error:
            self._uncuttable.add(at)
            logger.error("session %r is not cut: %s", at.log.session_id, error.message)  # noqa: TRY400 - no defect

    def _sweep(self) -> None:
        more = True
        while more and self._inbox.empty() and not self._stopping:
            now = self._clock.steady()
            more = self._committer.perform(partial(self._engine.sweep, now)).result()


def _session(log: LoadedLog) -> str:
    return log.id.session_id


class SteadyClock:
    """The wall clock, but not fooled by a jump forward that is taken back."""

    def __init__(self, monotonic: Callable[[], float], wall: Callable[[], int]) -> None:
        self._monotonic = monotonic
        self.wall = wall
        self._offsets: deque[tuple[float, int]] = deque()
        """When it was looked, and by how much the wall clock was ahead of the monotonic one."""
        self.tick()

    def tick(self) -> None:
        """Look at both clocks."""
        now = self._monotonic()
        self._offsets.append((now, self.wall() - int(now * 1e9)))
        # One look from before that time stays: it is how the clock stood when it began.
        while len(self._offsets) > 1 and now - self._offsets[1][0] > SETTLING:
            self._offsets.popleft()

    def steady(self) -> int:
        """Unix nanoseconds by the slowest view of the last hour."""
        return int(self._monotonic() * 1e9) + min(offset for _, offset in self._offsets)


class _Expiry(NamedTuple):
    """Ends a session, unless it was used again meanwhile."""

    committer: Committer
    log: LogId
    timing: None = None

    def command(self) -> CleanupSession:
        session_id, epoch = self.log
        loaded = self.committer.peek(session_id)
        if loaded is not None and (loaded.touched or loaded.held):
            raise Unavailable("the session is in use again")
        envelope = Envelope(session_id, log_epoch=epoch, origin=Origin(OWN_SOURCE))
        return CleanupSession(envelope, "expired")

    def answer(self, outcome: Outcome) -> None:
        if outcome.answer.offset:
            logger.debug("session %r outlived its time to live", self.log.session_id)
