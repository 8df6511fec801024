"""Who may write when: the turns of all watches on one event loop.

A watch *sleeps* until something is committed that it wants, until its next heartbeat is due or
its life is over; then it waits for a *turn*, in which it sends a little and goes to the back of
the queue if there is more. Only so many have a turn at a time: with a thousand watches writing,
other calls would else be accepted only after seconds. Whoever is blocked in its turn, by a
client that does not read, loses it to the next.

What was committed arrives once for each commit, and is looked at once for each *group* of
watches that want the same; those that want nothing of it go on sleeping.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter, deque
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

from snakepit_bridge.errors import ResourceExhausted, quote
from snakepit_bridge.events.committer import Committer
from snakepit_bridge.events.cursor import Cursor
from snakepit_bridge.events.model import LogId
from snakepit_bridge.events.recent import Watched
from snakepit_bridge.events.ring import Committed
from snakepit_bridge.events.selection import Selection
from snakepit_bridge.limits import Limits

__all__ = ["Hub", "Watch"]

TURNS = 32
"""How many watches may write at a time. With 64 a thousand watches get a fifth more updates and
other calls wait twice as long; with 16 a tenth fewer, and the wait is two thirds."""

LONGEST_TURN = 0.05
"""Seconds after which a turn goes to the next, if somebody waits for it."""

BLOCKED = 0.2
"""Seconds that a watch gets for its goodbye when the bridge stops."""

SHORTEST_SLEEP = 0.1
"""Seconds before one whose time has come is looked at again."""


MOST_STALE = 64
"""Alarms of closed watches that are kept in any case."""


class Watch:
    """One open watch, as the hub sees it."""

    __slots__ = ("cursor", "due", "group", "turn")

    def __init__(self, cursor: Cursor, due: float) -> None:
        """:param due: when it wants to be woken at the latest, on the loop's clock."""
        self.cursor = cursor
        self.due = due
        self.group: _Group | None = None
        """Those it sleeps among; ``None`` once it is closed."""
        self.turn: asyncio.Future[None] | None = None
        """What it waits for, asleep or not."""


class _Group:
    """The watches of one log that want the same."""

    __slots__ = ("asleep", "channel", "members", "selection")

    def __init__(self, selection: Selection, channel: _Channel) -> None:
        self.selection = selection
        self.channel = channel
        self.members = 0
        self.asleep: set[Watch] = set()


class _Channel:
    """The groups of one log, found by what they want."""

    def __init__(self, log: LogId) -> None:
        self.log = log
        self.passed: tuple[int, bytes] | None = None
        """Offset and digest up to which whoever is asleep wants nothing; ``None`` = not known."""
        self.groups: dict[Selection, _Group] = {}
        self._by_identifier: dict[str, set[_Group]] = {}
        self._by_name: set[_Group] = set()
        """Those that have to look at each name: all variables, or patterns."""

    def join(self, selection: Selection) -> _Group:
        group = self.groups.get(selection)
        if group is None:
            group = self.groups[selection] = _Group(selection, self)
            for identifier in selection.identifiers:
                self._by_identifier.setdefault(identifier, set()).add(group)
            if selection.looks_at_names:
                self._by_name.add(group)
        group.members += 1
        return group

    def leave(self, group: _Group) -> None:
        group.members -= 1
        if group.members:
            return
        del self.groups[group.selection]
        self._by_name.discard(group)
        for identifier in group.selection.identifiers:
            groups = self._by_identifier[identifier]
            groups.discard(group)
            if not groups:
                del self._by_identifier[identifier]

    def wanted_by(self, committed: Sequence[Committed]) -> set[_Group]:
        """The groups that want some of it."""
        found = set()
        for entry in committed:
            for (kind, _), variable in zip(entry.transaction.facts, entry.shown, strict=True):
                if kind == "session_ended":
                    return set(self.groups.values())
                if variable is None:
                    continue
                definition = variable.definition
                for key in (definition.name, definition.id):
                    for group in self._by_identifier.get(key, ()):
                        if kind in group.selection.kinds:
                            found.add(group)
                for group in self._by_name:
                    selection = group.selection
                    if kind in selection.kinds and selection.takes(definition):
                        found.add(group)
        return found


class Hub:
    """All watches of one event loop; used on that loop only."""

    def __init__(
        self, committer: Committer, loop: asyncio.AbstractEventLoop, limits: Limits
    ) -> None:
        self._loop = loop
        self._limits = limits
        self._channels: dict[LogId, _Channel] = {}
        self._in_session: Counter[str] = Counter()
        self._on_connection: Counter[str] = Counter()
        self._open: set[asyncio.Task[Any]] = set()
        self._selections: WeakValueDictionary[Any, Selection] = WeakValueDictionary()
        self._waiting: deque[Watch] = deque()
        self._turns: dict[Watch, float] = {}
        """Who has a turn, and since when."""
        self._blocked_check: asyncio.TimerHandle | None = None
        self._alarms: list[tuple[float, int, Watch]] = []
        """A heap with one entry for each watch: when to look at it."""
        self._stale = 0
        """How many of these are of watches that were closed."""
        self._alarm: asyncio.TimerHandle | None = None
        self._order = count()
        self.watches: set[Watch] = set()
        """All that have begun; changed on the loop, and copied by who looks from elsewhere."""
        self.closing = False
        self._recent = committer.recent
        self._recent.when_committed(self._tell)

    @contextmanager
    def admitted(self, session_id: str, connection: str) -> Iterator[None]:
        """Count a watch that is being opened, until it is closed.

        :raises ResourceExhausted: there are too many.
        """
        limits = self._limits
        in_session, on_connection = self._in_session, self._on_connection
        for number, most, where in (
            (len(self._open), limits.watches, "on this bridge (--max-watches)"),
            (
                in_session[session_id],
                limits.session_watches,
                f"on session {quote(session_id)} (--max-session-watches)",
            ),
            (
                on_connection[connection],
                limits.connection_watches,
                "on this connection (--max-connection-watches)",
            ),
        ):
            if number >= most:
                raise ResourceExhausted(
                    f"{number} watches are open {where}: close some, or watch several variables "
                    "with one"
                )
        task = asyncio.current_task()
        if task is None:
            raise AssertionError("a watch runs in a task")
        self._open.add(task)
        in_session[session_id] += 1
        on_connection[connection] += 1
        try:
            yield
        finally:
            self._open.discard(task)
            for counter, key in ((in_session, session_id), (on_connection, connection)):
                counter[key] -= 1
                if not counter[key]:
                    del counter[key]

    def selection(self, identifiers: Sequence[str], kinds: frozenset[str]) -> Selection:
        """What a watch wants; the same object for all that want the same.

        :raises ResourceExhausted: there are too many identifiers.
        :raises InvalidRequest: one is empty or too long.
        """
        key = (frozenset(identifiers), kinds)
        selection = self._selections.get(key)
        if selection is None:
            selection = self._selections[key] = Selection(identifiers, kinds)
        return selection

    @contextmanager
    def joined(self, watch: Watch) -> Iterator[None]:
        """Have a watch woken, until it is closed."""
        log = watch.cursor.log.id
        channel = self._channels.get(log)
        if channel is None:
            channel = self._channels[log] = _Channel(log)
        group = watch.group = channel.join(watch.cursor.selection)
        self._set_alarm(watch)
        self.watches.add(watch)
        try:
            yield
        finally:
            self.watches.discard(watch)
            watch.group = None
            group.asleep.discard(watch)
            self.done(watch)
            channel.leave(group)
            if not channel.groups:
                del self._channels[log]
            self._forget_alarm()

    def turn(self, watch: Watch, *, asleep: bool) -> Awaitable[None]:
        """Wait for a turn; ``done`` gives it back.

        :param asleep: first sleep; at the head of the log only.
        """
        future = watch.turn = self._loop.create_future()
        if asleep and watch.group is not None and not self.closing:
            watch.group.asleep.add(watch)
        else:
            self._waiting.append(watch)
            self._grant()
        return future

    def done(self, watch: Watch) -> None:
        """Give a turn back, which may have been lost meanwhile."""
        if self._turns.pop(watch, None) is not None and self._waiting:
            self._grant()

    def _grant(self) -> None:
        waiting, turns = self._waiting, self._turns
        now = self._loop.time()
        while waiting and (len(turns) < TURNS or self.closing):
            watch = waiting.popleft()
            if watch.turn is not None and not watch.turn.done():
                turns[watch] = now
                watch.turn.set_result(None)
        if waiting and self._blocked_check is None:
            self._blocked_check = self._loop.call_later(LONGEST_TURN, self._pass_over_blocked)

    def _pass_over_blocked(self) -> None:
        self._blocked_check = None
        end = self._loop.time() - LONGEST_TURN
        for watch in [watch for watch, since in self._turns.items() if since <= end]:
            del self._turns[watch]
        self._grant()

    def _tell(self, watched: Watched) -> None:
        """Pass it on to the loop; on the committer's thread."""
        if self._channels:
            self._loop.call_soon_threadsafe(self._committed, watched)

    def _committed(self, watched: Watched) -> None:
        for log, committed in watched:
            channel = self._channels.get(log.id)
            if channel is not None:
                self._look(channel, committed)
        self._grant()

    def _look(self, channel: _Channel, committed: Sequence[Committed]) -> None:
        passed = channel.passed
        first = committed[0].transaction.record.first_offset if committed else 0
        if passed is not None and first == passed[0] + 1:
            for group in channel.wanted_by(committed):
                self._wake_all(group, passed)
        else:
            for group in channel.groups.values():
                self._wake_all(group, None)
        last = committed[-1].transaction if committed else None
        channel.passed = (last.last_offset, last.digest) if last is not None else None

    def _wake_all(self, group: _Group, passed: tuple[int, bytes] | None) -> None:
        for watch in group.asleep:
            self._skip(watch, passed)
            self._waiting.append(watch)
        group.asleep.clear()

    @staticmethod
    def _skip(watch: Watch, passed: tuple[int, bytes] | None) -> None:
        """What was looked at while it slept, it need not look at again."""
        if passed is not None and passed[0] > watch.cursor.position:
            watch.cursor.skip_to(*passed)

    def _set_alarm(self, watch: Watch) -> None:
        first = self._alarms[0] if self._alarms else None
        heapq.heappush(self._alarms, (watch.due, next(self._order), watch))
        if first is None or watch.due < first[0]:
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm = self._loop.call_at(watch.due, self._look_at_clock)

    def _forget_alarm(self) -> None:
        """A watch was closed: clean up when half of the heap is of such."""
        self._stale += 1
        if self._stale > MOST_STALE and 2 * self._stale > len(self._alarms):
            self._alarms = [alarm for alarm in self._alarms if alarm[2].group is not None]
            heapq.heapify(self._alarms)
            self._stale = 0

    def _look_at_clock(self) -> None:
        now = self._loop.time()
        alarms = self._alarms
        while alarms and alarms[0][0] <= now:
            watch = alarms[0][2]
            group = watch.group
            if group is None:
                heapq.heappop(alarms)
                self._stale -= 1
                continue
            if watch.due <= now and watch in group.asleep:
                self._skip(watch, group.channel.passed)
                group.asleep.discard(watch)
                self._waiting.append(watch)
            again = max(watch.due, now + SHORTEST_SLEEP)
            heapq.heapreplace(alarms, (again, next(self._order), watch))
        self._alarm = self._loop.call_at(alarms[0][0], self._look_at_clock) if alarms else None
        self._grant()

    async def close(self) -> None:
        """Have every watch end at once; those that are blocked are cancelled."""
        self.closing = True
        for channel in self._channels.values():
            for group in channel.groups.values():
                self._wake_all(group, channel.passed)
        self._grant()
        tasks = list(self._open)
        if tasks:
            _, blocked = await asyncio.wait(tasks, timeout=BLOCKED)
            for task in blocked:
                task.cancel()
        self._recent.no_longer(self._tell)
