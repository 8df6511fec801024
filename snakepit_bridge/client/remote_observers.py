"""Observers of variables of a remote session: each is a watch at the bridge, read by a thread.

One callback is made at a time, whichever thread makes it. A watch that the bridge ends, as it does
with those that are open for long, is opened again where it was.

Lock: ``RemoteObservers._changed``, held for a few operations on the state of the observers. A
thread that makes a callback holds ``_turn`` as well, from before; nothing waits for ``_turn``
while it holds the other.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable
from itertools import count
from types import MappingProxyType

from snakepit_bridge.client.connection import Connection, Headers
from snakepit_bridge.client.following import Following
from snakepit_bridge.client.watches import Watch
from snakepit_bridge.errors import BridgeError, Unavailable, quote
from snakepit_bridge.views import Change

__all__ = ["OnChange", "OnError", "RemoteObservers"]

logger = logging.getLogger(__name__)

OnChange = Callable[..., object]
"""Called with name, old value, new value and metadata."""

OnError = Callable[[BridgeError], object]

HEARTBEAT = 1
"""Seconds between the marks by which a watch that has nothing to tell says how far it is: so much
``flush`` waits at most for what other variables are set to."""


class _Observer:
    """One callback. The lock owns all that changes."""

    def __init__(
        self, id_: str, identifier: str, on_change: OnChange, on_error: OnError | None
    ) -> None:
        self.id = id_
        self.identifier = identifier
        self.on_change = on_change
        self.on_error = on_error
        self.standing = False
        """Whether everything from now on is delivered."""
        self.delivered = 0
        """Up to here all callbacks were made."""
        self.gone = False
        """Whether it is called no longer."""
        self.error: BridgeError | None = None
        """Why it ended, unless it was asked to or its session ended."""
        self.watch: Watch | None = None


class RemoteObservers:
    """The observers of one session.

    *Order*: each gets the changes in the order of offsets, each once. *Loss*: none until it ends.
    *Bound*: of each what gRPC holds for a reader that is slow.
    """

    def __init__(
        self, connection: Connection, session_id: str, log_epoch: str, headers: Headers
    ) -> None:
        """Observe nothing yet; the parameters are those of ``RemoteSession``."""
        self._connection = connection
        self._session_id = session_id
        self._log_epoch = log_epoch
        self._headers = headers
        self._changed = threading.Condition()
        self._turn = threading.Lock()
        """Of making callbacks."""
        self._observers: dict[str, _Observer] = {}
        self._running: _Observer | None = None
        """Whose callback runs,"""
        self._runs_in = 0
        """and in which thread."""
        self._numbers = count(1)
        self._closed = threading.Event()

    def watch(self, identifier: str, on_change: OnChange, on_error: OnError | None) -> str:
        """Begin to observe; returns when everything that is committed from now on is delivered.

        :raises BridgeError: the bridge refused the watch.
        :raises Unavailable: this was closed.
        """
        observer = _Observer(f"observer_{next(self._numbers)}", identifier, on_change, on_error)
        with self._changed:
            if self._closed.is_set():
                raise Unavailable("observers are no longer called: the tool's call is over")
            self._observers[observer.id] = observer
        threading.Thread(
            target=self._follow, args=(observer,), name=observer.id, daemon=True
        ).start()
        with self._changed:
            self._changed.wait_for(lambda: observer.standing or observer.gone)
            if observer.standing:
                return observer.id
        raise observer.error or Unavailable("the tool's call ended before its watch stood")

    def unwatch(self, observer_id: str) -> bool:
        """Have an observer called no more; gives whether there was one.

        Waits for a call of it that is running, unless that is what calls this.
        """
        with self._changed:
            observer = self._observers.get(observer_id)
            if observer is None:
                return False
            self._end(observer)
            self._wait_for_return(lambda: self._running is not observer)
        return True

    def flush(self, head: Callable[[], int], timeout: float | None) -> None:
        """Wait until the observers were called for everything up to ``head()``.

        :raises TimeoutError: they were not, in so many seconds.
        :raises RuntimeError: called from a callback.
        :raises BridgeError: one of them ended with it.
        """
        with self._changed:
            if self._runs_in == threading.get_ident():
                raise RuntimeError(
                    "flush waits for callbacks, and was called from one: it would wait for itself"
                )
            waited = list(self._observers.values())
        if not waited:
            return
        target = head()

        def left() -> list[_Observer]:
            return [one for one in waited if one.delivered < target and not one.gone]

        with self._changed:
            if not self._changed.wait_for(lambda: not left(), timeout):
                raise TimeoutError(f"observers were not called for everything within {timeout} s")
        error = next((one.error for one in waited if one.error is not None), None)
        if error is not None:
            raise error

    def close(self, *, wait: bool = True) -> None:
        """Call nobody any more. Idempotent.

        :param wait: return when the callback that runs has.
        """
        self._closed.set()
        with self._changed:
            for observer in list(self._observers.values()):
                self._end(observer)
            if wait:
                self._wait_for_return(lambda: self._running is None)

    def _wait_for_return(self, returned: Callable[[], bool]) -> None:
        if self._runs_in != threading.get_ident():
            self._changed.wait_for(returned)

    def _end(self, observer: _Observer) -> None:
        """Lock held."""
        self._observers.pop(observer.id, None)
        observer.gone = True
        if observer.watch is not None:
            observer.watch.close()
        self._changed.notify_all()

    def _follow(self, observer: _Observer) -> None:
        """On the observer's thread: from its start to its end."""
        following = Following(
            self._session_id,
            [observer.identifier],
            log_epoch=self._log_epoch,
            heartbeat=HEARTBEAT,
        )
        watch = Watch(
            self._connection,
            following,
            headers=self._headers,
            on_progress=lambda: self._note_progress(observer, watch),
        )
        with self._changed:
            observer.watch = watch
            if observer.gone:
                watch.close()
        try:
            with watch:
                for change in watch:
                    self._deliver(observer, change)
        except BridgeError as error:
            self._give_up(observer, error)
        with self._changed:
            self._end(observer)

    def _note_progress(self, observer: _Observer, watch: Watch) -> None:
        """Everything up to the bookmark was delivered."""
        with self._changed:
            observer.delivered = watch.bookmark.offset
            observer.standing = True
            self._changed.notify_all()

    def _deliver(self, observer: _Observer, change: Change) -> None:
        metadata = {**change.metadata, "source": change.source}
        if change.correlation_id:
            metadata["correlation_id"] = change.correlation_id
        if change.traceparent:
            metadata["traceparent"] = change.traceparent
        if change.tool_call_id:
            metadata["tool_call_id"] = change.tool_call_id
        with self._turn:
            with self._changed:
                if observer.gone:
                    return
                self._running, self._runs_in = observer, threading.get_ident()
            try:
                observer.on_change(
                    change.name,
                    change.old,
                    change.new,
                    MappingProxyType(metadata),
                )
            except BaseException as error:  # noqa: BLE001 - others wait for this thread
                self._note(observer, f"variable {quote(change.name)}", error)
            with self._changed:
                self._running, self._runs_in = None, 0
                self._changed.notify_all()

    def _give_up(self, observer: _Observer, error: BridgeError) -> None:
        """Tell an observer that it misses what follows."""
        with self._changed:
            observer.error = error
            if not observer.standing:
                return  # whoever wanted it hears of it
        logger.error(
            "%s of %s gets no more changes: %s",
            observer.id,
            quote(observer.identifier),
            error.message,
        )
        if observer.on_error is None:
            return
        with self._turn:
            with self._changed:
                self._running, self._runs_in = observer, threading.get_ident()
            try:
                observer.on_error(error)
            except BaseException as again:  # noqa: BLE001 - as in _deliver
                self._note(observer, "its end", again)
            with self._changed:
                self._running, self._runs_in = None, 0
                self._changed.notify_all()

    @staticmethod
    def _note(observer: _Observer, where: str, error: BaseException) -> None:
        """Log what a callback raised: where, but not its message, which may quote the value."""
        logger.error(
            "%s of %s raised %s for %s\n%s",
            observer.id,
            quote(observer.identifier),
            type(error).__qualname__,
            where,
            "".join(traceback.format_tb(error.__traceback__)),
        )
