"""Ctrl-C while something is waited for."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

__all__ = ["interruptible"]

T = TypeVar("T")

AHEAD = 16
"""Items that are read before they are asked for."""


def interruptible(items: Iterable[T]) -> Iterator[T]:
    """Give items that a thread reads.

    Ctrl-C interrupts the main thread wherever that is; inside of gRPC it may be lost. So the main
    thread waits here. Whoever is interrupted closes the connection, which ends the reading.
    """
    handed: queue.Queue[tuple[list[T], BaseException | None]] = queue.Queue(AHEAD)

    def read() -> None:
        try:
            for item in items:
                handed.put(([item], None))
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            handed.put(([], error))
        else:
            handed.put(([], None))

    threading.Thread(target=read, name="reading", daemon=True).start()
    while True:
        item, error = handed.get()
        if error is not None:
            raise error
        if not item:
            return
        yield item[0]
