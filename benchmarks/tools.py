"""The tools that rows call: as little as possible, so that what is measured is the bridge.

The bridge under measurement is started with ``--adapter benchmarks.tools``.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import AsyncIterator, Iterator

from snakepit_bridge import tool

__all__ = ["chunk", "empty_async", "empty_blocking", "stream", "stream_async", "work", "work_apart"]

_STRIDE = 1_000  # additions between two looks at the clock: some 30 µs


@tool
async def empty_async() -> None:
    """Do nothing, on the event loop."""


@tool
def empty_blocking() -> None:
    """Do nothing, in a thread."""


@tool
def stream(count: int) -> Iterator[dict[str, object]]:
    """Give ``count`` small chunks from a thread."""
    for number in range(count):
        yield chunk(number)


@tool
async def stream_async(count: int) -> AsyncIterator[dict[str, object]]:
    """Give ``count`` small chunks on the event loop."""
    for number in range(count):
        yield chunk(number)


def chunk(number: int) -> dict[str, object]:
    """Return what a training loop would say of a step: a dictionary that tells its number."""
    return {"step": number, "loss": 1 / (number + 1)}


@tool
def work(seconds: float) -> dict[str, int]:
    """Compute for so many seconds of CPU time, in a thread."""
    return _work(seconds)


@tool(isolation="process")
def work_apart(seconds: float) -> dict[str, int]:
    """Compute for so many seconds of CPU time, in a process of its own."""
    return _work(seconds)


def _work(seconds: float) -> dict[str, int]:
    """Keep this thread's interpreter busy; return who did it."""
    end = time.thread_time() + seconds
    total = 0
    while time.thread_time() < end:
        for number in range(_STRIDE):
            total += number
    return {"process": os.getpid(), "thread": threading.get_ident()}
