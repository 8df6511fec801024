"""The changes of a session as an asynchronous iterator, which is a cursor on the log."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import NamedTuple, Self

from snakepit_bridge.errors import (
    InvalidRequest,
    SessionNotFound,
    WatchClosed,
    quote,
)
from snakepit_bridge.events.cursor import (
    Behind,
    Bookmark,
    Cursor,
    Place,
    bookmark_at,
    check_of,
    find_place,
)
from snakepit_bridge.events.loaded import LoadedLog
from snakepit_bridge.events.model import LogId
from snakepit_bridge.events.ring import Committed
from snakepit_bridge.events.selection import Selection
from snakepit_bridge.observers import Dispatcher
from snakepit_bridge.off_loop import off_loop
from snakepit_bridge.sessions import earlier_log
from snakepit_bridge.variable_views import as_change
from snakepit_bridge.views import EVENT_KINDS, Change

__all__ = ["Changes", "Start"]

logger = logging.getLogger(__name__)

AT_ONCE = 16
"""Changes that are taken from the log in one go; fewer when they are large."""

_Picked = tuple[Committed, int, bool]


def _picked(entry: Committed, index: int, /, *, last: bool) -> _Picked:
    return entry, index, last


class Start(NamedTuple):
    """Where a watch begins."""

    after: int | None = None
    """Offset to go on after; ``None`` = from now on."""
    log_epoch: str = ""
    check: int = 0
    """What the offset has to show; 0 = anything."""


class Changes:
    """The changes of one session, one after the other, on the event loop that iterates.

    ::

        async with context.watch("temperature") as changes:
            async for change in changes:
                ...

    Leaving the block ends the watch, however it is left. The iteration ends with the session.
    Before that it raises

    * ``WatchClosed``, with a bookmark, when the context is closed;
    * ``OffsetOutOfRange``, ``FailedPrecondition``, ``DataLoss`` when the log cannot be followed
      any further: retention has cut it away, or it is damaged;
    * ``Unavailable`` and ``ResourceExhausted`` when it cannot be read just now, and
      ``InvalidValue`` for a value of a type that this process does not know. These do not end
      it: the next turn of an iteration goes on.

    For one task; a turn that is cancelled loses nothing. It holds at most 16 changes.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        session_id: str,
        find: Callable[[], Awaitable[LoadedLog | None]],
        wanted: tuple[Iterable[str], Iterable[str]],
        start: Start,
    ) -> None:
        """Prepare a watch; it begins with the block.

        :param find: gives the newest log of the session, brought into memory.
        :param wanted: names, ids and patterns (none = all variables), and kinds of change.
        :raises InvalidRequest: one of these is wrong, or ``start`` lacks its epoch.
        :raises ResourceExhausted: there are too many.
        """
        identifiers, kinds = wanted
        self._selection = Selection(identifiers, _event_kinds(kinds))
        if start.after is not None and start.after < 0:
            raise InvalidRequest(f"after_offset {start.after} is negative", field="after_offset")
        if start.after and not start.log_epoch:
            raise InvalidRequest(
                f"after_offset {start.after} needs the log_epoch that was kept with it: an offset "
                "alone does not say of which log it is",
                field="log_epoch",
            )
        self._dispatcher = dispatcher
        self._committer = dispatcher.committer
        self._session_id = session_id
        self._find = find
        self._start = start
        self._cursor: Cursor | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = asyncio.Event()
        self._told = False
        """Whether ``_woken`` is set, or the loop was asked to: once is enough for any number of
        commits."""
        self._taken: deque[_Picked] = deque()
        self._kept = Bookmark(0, 0)

    @property
    def log_epoch(self) -> str:
        """Of the log that is watched."""
        return self._open().log.id.epoch

    @property
    def bookmark(self) -> Bookmark:
        """Offset and check up to which everything that is wanted was given.

        At the head of the log it moves on with what is not wanted, too.
        """
        self._open()
        return self._kept

    async def __aenter__(self) -> Self:
        """Begin to watch: what is committed from now on is not missed.

        :raises SessionNotFound: there is no such session, or it has ended and no epoch is given.
        :raises EpochMismatch: no log of this epoch is kept.
        :raises OffsetOutOfRange: the offset lies in the future, or what follows was cut away.
        :raises FailedPrecondition: the check does not fit.
        :raises DataLoss: the log is damaged there.
        """
        if self._cursor is not None:
            raise RuntimeError("this watch is open already: each needs a call of watch()")
        self._loop = asyncio.get_running_loop()
        log = await self._begin()
        try:
            place = await self._place(log)
            self._kept = Bookmark(place.offset, check_of(place.digest))
            self._dispatcher.wake_when_committed(log.id, self._wake)
        except BaseException:
            log.unwatch()
            raise
        self._cursor = Cursor(log, self._selection, place)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        cursor, self._cursor = self._open(), None
        self._taken.clear()
        self._dispatcher.wake_no_longer(cursor.log.id, self._wake)
        cursor.log.unwatch()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        cursor = self._open()
        while not self._taken:
            self._kept = cursor.bookmark
            if cursor.ended:
                raise StopAsyncIteration
            if self._dispatcher.closing:
                raise WatchClosed("the context was closed", cursor.log.id.epoch, self._kept)
            if cursor.at_head:
                await self._sleep(cursor)
                continue
            await asyncio.sleep(0)  # catching up is long, and others run on this loop
            try:
                self._taken.extend(cursor.take(self._dispatcher.pages, _picked, AT_ONCE))
            except Behind:
                read = self._dispatcher.pages.read
                await off_loop(read, cursor.log, cursor.position)
        entry, index, last = self._taken.popleft()
        self._kept = bookmark_at(entry, index, last=last)
        return as_change(entry, index, cursor.log.id.epoch, last=last)

    def _open(self) -> Cursor:
        if self._cursor is None:
            raise RuntimeError("this watch is not open: iterate inside of `async with`")
        return self._cursor

    async def _begin(self) -> LoadedLog:
        """The log, which stays in memory until ``unwatch``."""
        while True:
            log = await self._find_log()
            log.watch()
            if log.committed.ended or self._committer.peek(self._session_id) is log:
                return log
            log.unwatch()  # it left memory meanwhile

    async def _find_log(self) -> LoadedLog:
        epoch = self._start.log_epoch
        log = await self._find()
        if epoch and (log is None or epoch != log.id.epoch):
            return await off_loop(
                earlier_log, self._committer.engine, LogId(self._session_id, epoch), log
            )
        if log is None or (log.committed.ended and not epoch):
            raise SessionNotFound(self._session_id)
        return log

    async def _place(self, log: LoadedLog) -> Place:
        after, _, check = self._start
        if after is None:
            with log.lock:
                return Place(log.committed.head, log.committed.digest, inside=False)
        return await off_loop(find_place, self._committer.engine, log, after, check)

    async def _sleep(self, cursor: Cursor) -> None:
        """Wait for a commit, or for the end."""
        self._woken.clear()
        self._told = False
        # What was told before this line may be lost, so that it is looked at once more.
        if cursor.at_head and not self._dispatcher.closing:
            await self._woken.wait()

    def _wake(self) -> None:
        """Wake whoever iterates; on the committer's thread."""
        if self._told or self._loop is None:
            return
        self._told = True
        try:
            self._loop.call_soon_threadsafe(self._woken.set)
        except RuntimeError:
            # The loop was closed while the watch was open: nobody iterates any more.
            logger.warning("a watch of session %s outlived its event loop", quote(self._session_id))


def _event_kinds(kinds: Iterable[str]) -> frozenset[str]:
    events = set()
    for kind in kinds:
        if kind not in EVENT_KINDS:
            raise InvalidRequest(
                f"kinds holds {quote(kind)}: choose among {', '.join(EVENT_KINDS)}", field="kinds"
            )
        events.add(EVENT_KINDS[kind])
    return frozenset(events)
