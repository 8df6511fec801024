"""WatchVariables without a transport: where a watch begins, what it sends, how it ends.

::

    admit ─▶ find the log ─▶ check the bookmark ─▶ initial values ─▶ turns of the cursor ─▶ end
                                                                    (``watch_hub``)

A watch ends well with its session, and with ``WatchClosed`` and a bookmark when the bridge
stops or its life is over; any other error says that it cannot go on from there.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from snakepit_bridge.errors import BridgeError, SessionNotFound, WatchClosed
from snakepit_bridge.events.codec import is_absent
from snakepit_bridge.events.committer import Committer
from snakepit_bridge.events.cursor import (
    Behind,
    Cursor,
    Place,
    find_place,
)
from snakepit_bridge.events.gate import Gate
from snakepit_bridge.events.loaded import LoadedLog
from snakepit_bridge.events.model import LogId
from snakepit_bridge.events.pages import Pages
from snakepit_bridge.events.projection import VariableState
from snakepit_bridge.events.reading import completed, state_after_event
from snakepit_bridge.events.ring import Committed
from snakepit_bridge.limits import Limits
from snakepit_bridge.sessions import LoadTask, earlier_log
from snakepit_bridge.watch_hub import Hub, Watch
from snakepit_bridge.watch_wire import Updates, WatchRequest, read_watch

__all__ = ["LAGGING", "Delivered", "Send", "Stream", "Watches"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

Send = Callable[[bytes], Awaitable[None]]
Stream = Callable[[bytes, str, Send], Awaitable[None]]
"""A method that gets a request, the name of its connection, and what sends an answer."""

Delivered = Callable[[Sequence[Committed], int], None]
"""Takes what was written to a watch in one turn, for each update the transaction it is of, and when
the turn began, as ``time.perf_counter_ns`` has it."""

UPDATES_A_TURN = 16

LAGGING = 1_000
"""Events behind the head from which a watch gives way to commands: it is about to catch up with
the past, which it could do at many times the speed of anybody who writes."""

UPDATES_A_LONG_TURN = 64
REST = 3.0
"""What it sends in a turn then, and how long it rests after it, in lengths of the turn. Measured
with one watch that reads a million events: without a rest it leaves writers two fifths of their
speed, with this more than four fifths, and gets 2,000 events/s beside them (alone 11,000)."""

LONGEST_REST = 0.1
"""Seconds."""

READERS = 2
"""Threads that read the log for watches."""


class Watches:
    """The method WatchVariables, on one event loop."""

    def __init__(
        self,
        committer: Committer,
        gate: Gate,
        loop: asyncio.AbstractEventLoop,
        limits: Limits,
        delivered: Delivered | None = None,
    ) -> None:
        """Begin with none.

        :param delivered: told what was written.
        """
        self._committer = committer
        self.delivered = delivered
        self.engine = committer.engine
        self.gate = gate
        self.loop = loop
        self.hub = Hub(committer, loop, limits)
        self.pages = Pages(committer.engine)
        self.lifetime = limits.watch_lifetime
        self._readers = ThreadPoolExecutor(READERS, "watch")

    async def close(self) -> None:
        """End every watch, with its bookmark, within a moment."""
        await self.hub.close()
        self._readers.shutdown(wait=False, cancel_futures=True)

    async def watch_variables(self, raw: bytes, connection: str, send: Send) -> None:
        """Send what a WatchVariablesRequest asks for, until the session ends."""
        request = read_watch(raw)
        del raw
        with self.hub.admitted(request.session_id, connection):
            log = await self._begin(request)
            run = self._run(request, log, send)
            del request  # the identifiers may be many
            try:
                await run
            finally:
                log.unwatch()

    async def _begin(self, request: WatchRequest) -> LoadedLog:
        """The log, which stays in memory until ``unwatch``."""
        while True:
            log = await self._find_log(request)
            log.watch()
            if log.committed.ended or self._committer.peek(request.session_id) is log:
                return log
            log.unwatch()  # it left memory meanwhile

    async def _find_log(self, request: WatchRequest) -> LoadedLog:
        session_id, epoch = request.session_id, request.log_epoch
        log = self._committer.loaded(session_id)
        if log is None:
            await self.gate.submit(LoadTask(session_id))
            log = self._committer.loaded(session_id)
        if epoch and (log is None or epoch != log.id.epoch):
            return await self.read(earlier_log, self.engine, LogId(session_id, epoch), log)
        if log is None or (log.committed.ended and not epoch):
            raise SessionNotFound(session_id)
        return log

    async def _run(self, request: WatchRequest, log: LoadedLog, send: Send) -> None:
        selection = self.hub.selection(request.identifiers, request.kinds)
        request = request._replace(identifiers=())
        place, variables = await self._start(request, log)
        watch = _Running(self, request, Cursor(log, selection, place), send)
        with self.hub.joined(watch), _told(watch, resumed=request.after is not None):
            wanted = [variable for variable in variables if selection.takes(variable.definition)]
            await watch.send_initial(wanted, place)
            await watch.follow()

    async def _start(
        self, request: WatchRequest, log: LoadedLog
    ) -> tuple[Place, Sequence[VariableState]]:
        """Where to begin, and the variables as they are there, if they are asked for."""
        after = request.after
        with log.lock:
            state = log.committed
            head = Place(state.head, state.digest, inside=False)
            current = list(state.variables.values()) if request.initial_values else []
        if after is None:
            place = head
        else:
            place = await self.read(find_place, self.engine, log, after, request.check)
        at_hand = place.offset == head.offset and self._committer.peek(request.session_id) is log
        if request.initial_values and not at_hand:
            state = await self.read(state_after_event, self.engine, log.id, place.offset)
            current = list(state.variables.values())
        return place, current

    def read(self, read: Callable[..., T], *arguments: Any) -> Awaitable[T]:  # noqa: ANN401 - its own
        """Read the log on another thread."""
        return self.loop.run_in_executor(self._readers, read, *arguments)


class _Running(Watch):
    """One watch from its first initial value to its end."""

    __slots__ = (
        "_asked_caught_up",
        "_begun",
        "_ends",
        "_heartbeat",
        "_heartbeat_due",
        "_lags",
        "_send",
        "_taken",
        "_updates",
        "_watches",
    )

    def __init__(self, watches: Watches, request: WatchRequest, cursor: Cursor, send: Send) -> None:
        now = watches.loop.time()
        self._watches = watches
        self._send = send
        self._updates = Updates(cursor.log.id.epoch, request.max_value)
        self._taken: list[Committed] = []
        """What the turn has taken, for whoever wants to know of deliveries."""
        self._lags = False
        """Whether it was told that this fell behind, and not yet that it caught up."""
        self._begun = False
        """Whether all initial values were sent, without which there is no bookmark."""
        self._asked_caught_up = request.caught_up
        self._heartbeat = request.heartbeat
        self._heartbeat_due = now + request.heartbeat
        self._ends = now + (watches.lifetime or math.inf)
        super().__init__(cursor, min(self._heartbeat_due, self._ends))

    async def send_initial(self, variables: Sequence[VariableState], place: Place) -> None:
        """Send the state where the watch begins."""
        engine, hub, initial = self._watches.engine, self._watches.hub, self._updates.initial
        bookmark = self.cursor.bookmark
        rest = len(variables)
        for start in range(0, rest, UPDATES_A_TURN):
            await hub.turn(self, asleep=False)
            try:
                self._go_on()
                for variable in variables[start : start + UPDATES_A_TURN]:
                    rest -= 1
                    shown = variable
                    if is_absent(shown.value):
                        shown = await self._watches.read(completed, shown, engine.large_values)
                    await self._send(initial(shown, place.offset, None if rest else bookmark))
            finally:
                hub.done(self)
        self._begun = True

    async def follow(self) -> None:
        """Send what comes after, to the end of the session."""
        cursor, hub, pages = self.cursor, self._watches.hub, self._watches.pages
        loop = self._watches.loop
        asleep = behind = False
        while True:
            if behind:
                await self._watches.read(pages.read, cursor.log, cursor.position)
            await hub.turn(self, asleep=asleep)
            begun = loop.time()
            try:
                asleep, behind = await self._take_turn(), False
            except Behind:
                asleep, behind = False, True
            finally:
                hub.done(self)
            if cursor.ended:
                return
            if self._lags is not behind and (behind or cursor.at_head):
                self._lags = behind
                _tell("watch fell behind" if behind else "watch caught up", self, lag=cursor.lag)
            if cursor.lag > LAGGING and self._watches.gate.busy:
                # What is long past may take a little longer; who writes now should not.
                await asyncio.sleep(min(REST * (loop.time() - begun), LONGEST_REST))

    async def _take_turn(self) -> bool:
        """Send a little; gives whether there is no more for now."""
        cursor = self.cursor
        if cursor.at_boundary or cursor.lag > LAGGING:
            self._go_on()
        count = UPDATES_A_LONG_TURN if cursor.lag > LAGGING else UPDATES_A_TURN
        delivered = self._watches.delivered
        show = self._updates.change if delivered is None else self._noted
        begun = time.perf_counter_ns()
        sent = 0
        try:
            for update in cursor.take(self._watches.pages, show, count):
                await self._send(update)
                sent += 1
        finally:
            if delivered is not None and sent:
                delivered(self._taken[:sent], begun)
            self._taken.clear()  # they may be large, and the next turn hours away
        if cursor.at_boundary:
            # That everything up to here was delivered is said when it is asked for, or is time.
            if self._asked_caught_up and cursor.at_head:
                self._asked_caught_up = False
                await self._send(self._updates.mark("caught_up", cursor.bookmark))
            now = self._watches.loop.time()
            if now >= self._heartbeat_due:
                self._heartbeat_due = now + self._heartbeat
                self.due = min(self._heartbeat_due, self._ends)
                await self._send(self._updates.mark("heartbeat", cursor.bookmark))
        return cursor.at_head

    def _noted(self, entry: Committed, index: int, /, *, last: bool) -> bytes:
        self._taken.append(entry)
        return self._updates.change(entry, index, last=last)

    def _go_on(self) -> None:
        """:raises WatchClosed: the bridge stops, or this has been open long enough."""
        if self._watches.hub.closing:
            why = "the bridge is shutting down"
        elif self._watches.loop.time() >= self._ends:
            why = f"the watch has been open for {self._watches.lifetime:g} s (--watch-max-lifetime)"
        else:
            return
        bookmark = self.cursor.bookmark if self._begun else None
        raise WatchClosed(why, self.cursor.log.id.epoch, bookmark)


@contextmanager
def _told(watch: _Running, *, resumed: bool) -> Iterator[None]:
    """Log that a watch opens, and why and where it closes."""
    _tell("watch resumed" if resumed else "watch opened", watch)
    why = "the session ended"
    try:
        yield
    except asyncio.CancelledError:
        why = "its client is gone"
        raise
    except WatchClosed as error:
        why = error.message.partition(":")[0]
        raise
    except BridgeError as error:
        why = error.reason
        raise
    except Exception as error:
        why = type(error).__name__
        raise
    finally:
        _tell("watch closed", watch, why=why)


def _tell(event: str, watch: _Running, **more: object) -> None:
    cursor = watch.cursor
    about = {"session_id": cursor.log.id.session_id, "offset": cursor.position, **more}
    logger.info(event, extra=about)
