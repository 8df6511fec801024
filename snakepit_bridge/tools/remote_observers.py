"""Observers of variables in a tool's process: each is a watch at the bridge, read by a thread.

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
from typing import Any

import grpc

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge.errors import BridgeError, ResourceExhausted, Unavailable, quote
from snakepit_bridge.tools.remote_wire import error_of, python_value

__all__ = ["OnChange", "OnError", "RemoteObservers"]

logger = logging.getLogger(__name__)

OnChange = Callable[..., object]
"""Called with name, old value, new value and metadata."""

OnError = Callable[[BridgeError], object]

HEARTBEAT = 1
"""Seconds between the marks by which a watch that has nothing to tell says how far it is: so much
``flush`` waits at most for what other variables are set to."""

RETRY = 1.0
"""Seconds until a watch is opened again that could not be opened just now."""


class _Observer:
    """One callback. Its thread owns ``bookmark`` and ``seen``, the lock the rest."""

    def __init__(
        self, id_: str, identifier: str, on_change: OnChange, on_error: OnError | None
    ) -> None:
        self.id = id_
        self.identifier = identifier
        self.on_change = on_change
        self.on_error = on_error
        self.bookmark: tuple[int, str, int] | None = None
        """Offset, epoch and check to go on with; ``None`` before the watch stood."""
        self.seen = 0
        """Offset of the last change that the callback was called with."""
        self.standing = False
        """Whether everything from now on is delivered."""
        self.delivered = 0
        """Up to here all callbacks were made."""
        self.gone = False
        """Whether it is called no longer."""
        self.error: BridgeError | None = None
        """Why it ended, unless it was asked to or its session ended."""
        self.stream: Any = None
        """The call that is open."""


class RemoteObservers:
    """The observers of one session, for one call of a tool.

    *Order*: each gets the changes in the order of offsets, each once. *Loss*: none until it ends.
    *Bound*: of each what gRPC holds for a reader that is slow.
    """

    def __init__(self, open_watch: Callable[[pb.WatchVariablesRequest], Any]) -> None:
        """:param open_watch: makes the call at the bridge and gives its stream."""
        self._open = open_watch
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
        if observer.stream is not None:
            observer.stream.cancel()
        self._changed.notify_all()

    def _follow(self, observer: _Observer) -> None:
        """On the observer's thread: from its start to its end."""
        while True:
            try:
                self._read(observer)
            except (Unavailable, ResourceExhausted) as error:
                if observer.bookmark is not None:
                    if not self._closed.wait(RETRY):
                        continue
                else:
                    self._give_up(observer, error)
            except BridgeError as error:
                self._give_up(observer, error)
            break
        with self._changed:
            self._end(observer)

    def _read(self, observer: _Observer) -> None:
        """Read one watch to its end, which is that of the session if nothing is raised."""
        request = pb.WatchVariablesRequest(
            variable_identifiers=[observer.identifier],
            send_caught_up=True,
            heartbeat_seconds=HEARTBEAT,
        )
        if observer.bookmark is not None:
            request.after_offset, request.log_epoch, request.resume_check = observer.bookmark
        stream = self._open(request)
        with self._changed:
            observer.stream = stream
            if observer.gone:
                stream.cancel()
        try:
            for update in stream:
                self._take(observer, update)
        except grpc.RpcError as error:
            if not observer.gone:
                raise error_of(error) from None

    def _take(self, observer: _Observer, update: pb.VariableUpdate) -> None:
        # Of a transaction that was read in part, a new watch tells the whole again.
        if update.update_type == "value_change" and update.offset > observer.seen:
            observer.seen = update.offset
            self._deliver(observer, update)
        if update.HasField("resume_offset"):
            observer.bookmark = (update.resume_offset, update.log_epoch, update.resume_check)
            with self._changed:
                observer.delivered = update.resume_offset
                observer.standing = True
                self._changed.notify_all()

    def _deliver(self, observer: _Observer, update: pb.VariableUpdate) -> None:
        metadata = {**update.update_metadata, "source": update.update_source}
        if update.correlation_id:
            metadata["correlation_id"] = update.correlation_id
        if update.traceparent:
            metadata["traceparent"] = update.traceparent
        if update.tool_call_id:
            metadata["tool_call_id"] = update.tool_call_id
        variable = update.variable
        with self._turn:
            with self._changed:
                if observer.gone:
                    return
                self._running, self._runs_in = observer, threading.get_ident()
            try:
                observer.on_change(
                    variable.name,
                    python_value(update.old_value, update.old_binary_value),
                    python_value(variable.value, variable.binary_value),
                    MappingProxyType(metadata),
                )
            except BaseException as error:  # noqa: BLE001 - others wait for this thread
                self._note(observer, f"variable {quote(variable.name)}", error)
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
