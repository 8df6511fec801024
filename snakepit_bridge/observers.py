"""Observers in this process: callbacks, made by a thread that is a cursor on the log.

::

    a commit ─▶ Dispatcher ─┬─▶ its thread: a cursor for each watched session ─▶ callbacks
                wakes       └─▶ an event loop: a cursor for each iterator (``changes``)

Neither keeps what is to come, only how far it has come: whoever is slow reads the log later,
from the ring or from pages, and the writer never waits.

Lock: ``Dispatcher._lock``, held for a few operations on what is listed there; the committer's
thread takes it once for each commit. Of others a log's lock is taken under it, to count. No
callback is made and no log read while it is held.
"""

from __future__ import annotations

import inspect
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

from snakepit_bridge.errors import (
    BridgeError,
    InternalError,
    ResourceExhausted,
    SessionNotFound,
    Unavailable,
    quote,
)
from snakepit_bridge.events.committer import Committer
from snakepit_bridge.events.cursor import (
    Behind,
    Cursor,
    Place,
)
from snakepit_bridge.events.loaded import LoadedLog
from snakepit_bridge.events.model import LogId
from snakepit_bridge.events.pages import Pages
from snakepit_bridge.events.recent import Watched
from snakepit_bridge.events.ring import Committed
from snakepit_bridge.events.selection import Selection
from snakepit_bridge.variable_views import (
    CallbackArguments,
    as_arguments,
)

__all__ = ["Dispatcher", "DispatcherStatistics", "OnChange", "OnError"]

logger = logging.getLogger(__name__)

OnChange = Callable[..., object]
"""Called with name, old value, new value and metadata."""

OnError = Callable[[BridgeError], object]

AT_ONCE = 16
"""Changes that a cursor takes in one go; fewer when they are large."""

RETRY = 1.0
"""Seconds until a log is read again that could not be read just now."""

_NEW_VALUES = frozenset({"variable_set"})

_Picked = tuple[Committed, int]


def _picked(entry: Committed, index: int, /, *, last: bool) -> _Picked:  # noqa: ARG001 - no bookmark
    return entry, index


@dataclass(frozen=True, slots=True, eq=False)
class _Observer:
    """One callback."""

    id: str
    owner: object
    identifier: str
    selection: Selection
    on_change: OnChange
    on_error: OnError | None
    followed: _Followed
    start: int
    """What it gets comes after this offset."""


class _Followed:
    """A log with observers. The thread owns the cursor, the dispatcher's lock the rest."""

    __slots__ = ("cursor", "delivered", "error", "gone", "log", "observers", "stalled")

    def __init__(self, log: LoadedLog, place: Place) -> None:
        self.log = log
        self.cursor = Cursor(log, Selection((), _NEW_VALUES), place)
        self.observers: tuple[_Observer, ...] = ()
        """In the order in which they came."""
        self.delivered = place.offset
        """Up to here all callbacks were made."""
        self.gone = False
        """Whether it is followed no longer."""
        self.error: BridgeError | None = None
        """Why it cannot be followed any further."""
        self.stalled = False
        """Whether it could not be read the last time."""


class DispatcherStatistics(NamedTuple):
    """What a dispatcher is at, and what it has done since it began."""

    observers: int
    iterators: int
    lag: int
    """Events between the slowest session's observers and its head."""
    calls: int
    """Of callbacks."""
    failures: int
    """Calls that raised, or had values which could not be shown."""
    lost: int
    """Observers that ended because the log could not be followed."""


class Dispatcher:
    """Calls the observers of one committer's sessions, on one thread of its own.

    *Order*: each observer gets the changes of a session in the order of offsets, each once;
    one callback runs at a time. *Loss*: none while the process lives and the log can be read;
    what was not delivered when it ends is not delivered later. *Bound*: memory does not grow
    with what is not delivered yet.

    The thread starts with the first observer. ``close`` comes before that of the committer.
    Safe from any thread; ``unwatch``, ``drop``, ``flush`` give futures, which threads and event
    loops can both wait for.
    """

    def __init__(self, committer: Committer) -> None:
        self.committer = committer
        self.pages = Pages(committer.engine)
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        """Told when there is something for the thread to do."""
        self._followed: dict[LogId, _Followed] = {}
        self._observers: dict[str, _Observer] = {}
        self._due: dict[_Followed, None] = {}
        """Logs to look at, in the order in which they get their turns."""
        self._stalled: dict[_Followed, None] = {}
        """Those that could not be read, to be looked at again at ``_retry_at``."""
        self._retry_at = 0.0
        self._turn: _Followed | None = None
        """The log whose observers are called at the moment."""
        self._running: _Observer | None = None
        """Whose callback runs."""
        self._awaiting_end: list[tuple[Future[bool], bool]] = []
        """Who waits for it to return, and what they are told then."""
        self._flushes: dict[Future[None], dict[_Followed, int]] = {}
        """Who waits for offsets to be delivered."""
        self._wakes: dict[LogId, tuple[Callable[[], None], ...]] = {}
        """Of each log, what wakes its iterators."""
        self._numbers = count(1)
        self._listening = False
        self._closing = False
        self._calls = self._failures = self._lost = 0
        self._thread = threading.Thread(target=self._run, name="observers", daemon=True)

    @property
    def closing(self) -> bool:
        """Whether it was closed."""
        return self._closing

    @property
    def in_callback(self) -> bool:
        """Whether this is asked by a callback."""
        return threading.get_ident() == self._thread.ident

    def statistics(self) -> DispatcherStatistics:
        """Figures of this moment."""
        with self._lock:
            return DispatcherStatistics(
                len(self._observers),
                sum(map(len, self._wakes.values())),
                max((max(0, f.log.told - f.delivered) for f in self._followed.values()), default=0),
                self._calls,
                self._failures,
                self._lost,
            )

    def watch(
        self,
        owner: object,
        log: LoadedLog,
        identifier: str,
        on_change: OnChange,
        on_error: OnError | None = None,
    ) -> str | None:
        """Have ``on_change`` called for new values from now on; gives the observer's id.

        ``None`` when the log left memory meanwhile: look for it again.

        :param owner: who may ``unwatch`` it.
        :param identifier: a name, an id or a pattern.
        :param on_error: called when the log cannot be followed any further, with the reason.
        :raises InvalidRequest: the identifier is empty or too long.
        :raises SessionNotFound: the session has ended.
        :raises Unavailable: this was closed.
        """
        if not callable(on_change) or inspect.iscoroutinefunction(on_change):
            raise TypeError(
                f"{on_change!r} cannot be called on the observers' thread: give a plain function, "
                "or iterate over watch()"
            )
        selection = Selection([identifier], _NEW_VALUES)
        session_id = log.id.session_id
        log.watch()
        try:
            if self.committer.peek(session_id) is not log:
                log.unwatch()
                return None
            with log.lock:
                state = log.committed
                if not state.live:
                    raise SessionNotFound(session_id)
                place = Place(state.head, state.digest, inside=False)
            with self._lock:
                followed = self._follow(log, place)
                observer = _Observer(
                    f"observer_{next(self._numbers)}",
                    owner,
                    identifier,
                    selection,
                    on_change,
                    on_error,
                    followed,
                    place.offset,
                )
                followed.observers = (*followed.observers, observer)
                self._observers[observer.id] = observer
        except BaseException:
            log.unwatch()
            raise
        return observer.id

    def _follow(self, log: LoadedLog, place: Place) -> _Followed:
        """A log with observers; lock held."""
        self._listen()
        if self._thread.ident is None:
            self._thread.start()
        followed = self._followed.get(log.id)
        if followed is None:
            followed = self._followed[log.id] = _Followed(log, place)
            # It may have moved before the committer knew of us.
            self._due[followed] = None
            self._work.notify()
        return followed

    def unwatch(self, owner: object, observer_id: str) -> Future[bool]:
        """Have an observer called no more; done when no call of it is running.

        The callback itself need not wait for its own end. Gives whether there was one.
        """
        with self._lock:
            observer = self._observers.get(observer_id)
            found = observer is not None and observer.owner is owner
            flushed = self._leave(observer) if observer is not None and found else []
            running = self._running
            is_it = running is not None and running.id == observer_id and running.owner is owner
            future = self._when_returned(found, wait=is_it)
        _settle(flushed)
        return future

    def drop(self, owner: object) -> Future[bool]:
        """``unwatch`` all observers of one owner; gives whether there were any."""
        flushed = []
        with self._lock:
            owned = [one for one in self._observers.values() if one.owner is owner]
            for observer in owned:
                flushed += self._leave(observer)
            running = self._running
            future = self._when_returned(
                bool(owned), wait=running is not None and running.owner is owner
            )
        _settle(flushed)
        return future

    def _when_returned(self, found: bool, *, wait: bool) -> Future[bool]:  # noqa: FBT001 - an answer
        """Done when the running callback has returned, if that is waited for; lock held."""
        future = _uncancellable()
        if wait and not self.in_callback:
            self._awaiting_end.append((future, found))
        else:
            future.set_result(found)
        return future

    def flush(self, session_id: str) -> Future[None]:
        """Done when all observers of a session were called for what is committed now.

        It fails with the reason when they cannot be.

        :raises RuntimeError: a callback asks, which would wait for itself.
        """
        if self.in_callback:
            raise RuntimeError(
                "flush waits for callbacks, and was called from one: it would wait for itself"
            )
        with self._lock:
            logs = [one for one in self._followed.values() if one.log.id.session_id == session_id]
        targets = {}
        for followed in logs:
            with followed.log.lock:
                targets[followed] = followed.log.committed.head
        future = _uncancellable()
        with self._lock:
            error = next((one.error for one in logs if one.error is not None), None)
            waiting = {
                one: target
                for one, target in targets.items()
                if not one.gone and one.delivered < target
            }
            if waiting and error is None:
                self._flushes[future] = waiting
                return future
        _settle([(future, error)])
        return future

    def forget(self, flush: Future[None]) -> None:
        """Nobody waits for this flush any longer."""
        with self._lock:
            self._flushes.pop(flush, None)

    def wake_when_committed(self, log: LogId, wake: Callable[[], None]) -> None:
        """Have ``wake`` called after each commit to a log, and when this is closed.

        On the committer's thread: it must not take long.

        :raises Unavailable: this was closed.
        """
        with self._lock:
            self._listen()
            self._wakes[log] = (*self._wakes.get(log, ()), wake)

    def wake_no_longer(self, log: LogId, wake: Callable[[], None]) -> None:
        """Have it called no more."""
        with self._lock:
            rest = tuple(one for one in self._wakes.pop(log, ()) if one != wake)
            if rest:
                self._wakes[log] = rest

    def close(self, *, wait: bool = True) -> None:
        """Call nobody any more; returns when the callback that runs has, if told so. Idempotent.

        What was not delivered is not; ``flush`` first, where that matters. A callback that
        closes does not wait for itself. Iterators end with ``WatchClosed``.
        """
        with self._lock:
            self._closing = True
            for observer in self._observers.values():
                observer.followed.log.unwatch()
            self._observers.clear()
            for followed in self._followed.values():
                followed.observers, followed.gone = (), True
            self._followed.clear()
            self._due.clear()
            self._stalled.clear()
            error = Unavailable("the observers were closed before everything was delivered")
            flushed: _Flushed = [(flush, error) for flush in self._flushes]
            self._flushes.clear()
            wakes = [wake for of_log in self._wakes.values() for wake in of_log]
            self._work.notify()
        _settle(flushed)
        for wake in wakes:
            wake()
        self.committer.recent.no_longer(self._tell)
        if wait and self._thread.ident is not None and not self.in_callback:
            self._thread.join()

    def _listen(self) -> None:
        """Have the committer tell of its commits; lock held."""
        if self._closing:
            raise Unavailable("observers are no longer called: the context was closed")
        if not self._listening:
            self._listening = True
            self.committer.recent.when_committed(self._tell)

    def _tell(self, watched: Watched) -> None:
        """Note which logs moved; on the committer's thread."""
        wakes: list[Callable[[], None]] = []
        with self._lock:
            for log, _ in watched:
                followed = self._followed.get(log.id)
                if followed is not None:
                    self._due[followed] = None
                    self._work.notify()
                wakes += self._wakes.get(log.id, ())
        for wake in wakes:
            wake()

    def _leave(self, observer: _Observer) -> _Flushed:
        """Take an observer out; gives the flushes that this ends. Lock held."""
        followed = observer.followed
        del self._observers[observer.id]
        followed.log.unwatch()
        followed.observers = tuple(one for one in followed.observers if one is not observer)
        # A flush is not over before the callback that runs is; ``_finish`` ends it then.
        return [] if followed.observers or followed is self._turn else self._end(followed)

    def _end(self, followed: _Followed) -> _Flushed:
        """Follow a log no longer; gives the flushes that this ends. Lock held."""
        for observer in followed.observers:
            del self._observers[observer.id]
            followed.log.unwatch()
        followed.observers, followed.gone = (), True
        del self._followed[followed.log.id]
        self._due.pop(followed, None)
        self._stalled.pop(followed, None)
        return self._flushed(followed)

    def _flushed(self, followed: _Followed) -> _Flushed:
        """The flushes that wait for nothing any longer. Lock held."""
        done: _Flushed = []
        for flush, waiting in list(self._flushes.items()):
            target = waiting.get(followed)
            if target is None or not (followed.gone or followed.delivered >= target):
                continue
            del waiting[followed]
            if followed.error is not None or not waiting:
                del self._flushes[flush]
                done.append((flush, followed.error))
        return done

    # What follows runs on the dispatcher's thread.

    def _run(self) -> None:
        while (followed := self._next()) is not None:
            try:
                self._take_turn(followed)
            except (Unavailable, ResourceExhausted) as error:
                self._stall(followed, error)
            except BridgeError as error:
                self._give_up(followed, error)
            except Exception:
                logger.exception("the observers of session %s cannot go on", _session(followed))
                self._give_up(
                    followed, InternalError("the observers failed; see the log of this process")
                )
            self._finish(followed)

    def _next(self) -> _Followed | None:
        """The log whose turn it is; ``None`` at the end."""
        with self._lock:
            while not self._closing:
                now = time.monotonic()
                if self._stalled and now >= self._retry_at:
                    self._due.update(self._stalled)
                    self._stalled.clear()
                if self._due:
                    followed = next(iter(self._due))
                    del self._due[followed]
                    self._turn = followed
                    return followed
                self._work.wait(self._retry_at - now if self._stalled else None)
            return None

    def _take_turn(self, followed: _Followed) -> None:
        """Call observers for the next few changes of a log."""
        cursor = followed.cursor
        taken: Iterable[_Picked] = ()
        try:
            taken = cursor.take(self.pages, _picked, AT_ONCE)
        except Behind:
            self.pages.read(followed.log, cursor.position)
        for entry, index in taken:
            self._deliver(followed, entry, index)
        with self._lock:
            followed.delivered = cursor.position
            followed.stalled = False
            self._stalled.pop(followed, None)
            if followed.gone:
                return
            if cursor.ended:
                flushed = self._end(followed)
            else:
                if not cursor.at_head:
                    self._due[followed] = None
                flushed = self._flushed(followed)
        _settle(flushed)

    def _finish(self, followed: _Followed) -> None:
        """End a turn, and the following of a log that nobody observes any more."""
        with self._lock:
            self._turn = None
            flushed = self._end(followed) if not (followed.observers or followed.gone) else []
        _settle(flushed)

    def _deliver(self, followed: _Followed, entry: Committed, index: int) -> None:
        offset = entry.transaction.record.first_offset + index
        variable = entry.shown[index]
        if variable is None:
            raise AssertionError("only changes of variables are wanted")
        arguments: CallbackArguments | None = None
        for observer in followed.observers:
            if offset <= observer.start or not observer.selection.takes(variable.definition):
                continue
            with self._lock:
                if observer.id not in self._observers:
                    continue  # it was taken out meanwhile
                self._running = observer
                self._calls += 1
            try:
                if arguments is None:
                    arguments = as_arguments(entry, index)
                observer.on_change(*arguments)
            except BaseException as error:  # noqa: BLE001 - others wait for this thread
                self._note(observer, f"variable {quote(variable.definition.name)}", error)
            with self._lock:
                self._running = None
                ended, self._awaiting_end = self._awaiting_end, []
            for future, found in ended:
                future.set_result(found)

    def _note(self, observer: _Observer, where: str, error: BaseException) -> None:
        """Log what a callback raised: where, but not its message, which may quote the value."""
        with self._lock:
            self._failures += 1
        logger.error(
            "%s of %s in session %s raised %s for %s\n%s",
            observer.id,
            quote(observer.identifier),
            _session(observer.followed),
            type(error).__qualname__,
            where,
            "".join(traceback.format_tb(error.__traceback__)),
        )

    def _stall(self, followed: _Followed, error: BridgeError) -> None:
        """Try again later; also when something is committed."""
        if not followed.stalled:
            logger.warning(
                "the observers of session %s wait: %s", _session(followed), error.message
            )
        with self._lock:
            followed.stalled = True
            if not self._stalled:
                self._retry_at = time.monotonic() + RETRY
            if not followed.gone:
                self._stalled[followed] = None

    def _give_up(self, followed: _Followed, error: BridgeError) -> None:
        """Tell the observers of a log that they miss what follows."""
        with self._lock:
            followed.error = error
            observers = followed.observers
            self._lost += len(observers)
            flushed = [] if followed.gone else self._end(followed)
        for observer in observers:
            logger.error(
                "%s of %s in session %s gets no more changes: %s",
                observer.id,
                quote(observer.identifier),
                _session(followed),
                error.message,
            )
            if observer.on_error is not None:
                try:
                    observer.on_error(error)
                except BaseException as again:  # noqa: BLE001 - as in _deliver
                    self._note(observer, "its end", again)
        _settle(flushed)


_Flushed = list[tuple[Future[None], BridgeError | None]]
"""Flushes that are over, and how."""


def _settle(flushed: _Flushed) -> None:
    """Tell who waits; without the lock, because it wakes them."""
    for future, error in flushed:
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)


def _uncancellable() -> Future[Any]:
    """A future that an event loop which gave up waiting does not cancel for us."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future


def _session(followed: _Followed) -> str:
    return quote(followed.log.id.session_id)
