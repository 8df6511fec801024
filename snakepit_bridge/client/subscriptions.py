"""A watch that calls back, on a thread of its own."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable
from typing import Any

from snakepit_bridge.client.watches import Watch
from snakepit_bridge.errors import BridgeError, quote
from snakepit_bridge.views import Change

__all__ = ["OnError", "Subscription", "note"]

logger = logging.getLogger(__name__)

OnError = Callable[[BridgeError], object]


class Subscription:
    """Calls back for each change until it is closed, or its session ends."""

    def __init__(
        self, watch: Watch, callback: Callable[[Change], object], on_error: OnError | None
    ) -> None:
        """Returns when the watch stands.

        :raises BridgeError: the bridge refuses it, or is not there.
        """
        self.error: BridgeError | None = None
        """What ended it, if anything did."""
        self._watch = watch.__enter__()
        self._callback = callback
        self._on_error = on_error
        self._thread = threading.Thread(target=self._follow, name="subscription", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Call back no more; waits for a call that is running, unless that is what calls this."""
        self._watch.close()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has ended; gives whether it has.

        :param timeout: seconds; ``None`` = any.
        """
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _follow(self) -> None:
        try:
            for change in self._watch:
                self._guard(self._callback, change, f"for variable {quote(change.name)}")
        except BridgeError as error:
            self.error = error
            logger.error("a subscription ended: %s", error.message)  # noqa: TRY400 - told whole
            if self._on_error is not None:
                self._guard(self._on_error, error, "when told of its end")

    @staticmethod
    def _guard(callback: Callable[[Any], object], told: object, where: str) -> None:
        try:
            callback(told)
        except Exception as error:  # noqa: BLE001 - the callback is not ours, and others follow
            note(error, where)


def note(error: BaseException, where: str) -> None:
    """Log what a callback raised: where, but not its message, which may quote the value."""
    logger.error(
        "a callback raised %s %s\n%s",
        type(error).__qualname__,
        where,
        "".join(traceback.format_tb(error.__traceback__)),
    )
