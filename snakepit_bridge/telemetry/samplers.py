"""What a process tells of itself while somebody listens: memory, CPU time, collections."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

__all__ = ["Samplers"]

INTERVAL = 10.0
"""Seconds between two samples."""

OLDEST = 2
"""The generation whose collections are told: the others run thousands of times a second."""

_STATM = Path("/proc/self/statm")

Emit = Callable[[str, Mapping[str, int | float]], None]


class Samplers:
    """Emits samples between ``start`` and ``stop``, both on the loop's thread."""

    def __init__(self, emit: Emit, interval: float = INTERVAL) -> None:
        self._emit = emit
        self._interval = interval
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._cpu = 0.0
        self._collecting = 0

    def start(self) -> None:
        """Begin to sample; the first time at the next ``sample``."""
        self._loop = asyncio.get_running_loop()
        self._cpu = time.process_time()
        gc.callbacks.append(self._collected)
        self._timer = self._loop.call_later(self._interval, self._again)

    def stop(self) -> None:
        """Stop. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            gc.callbacks.remove(self._collected)

    def sample(self) -> None:
        """Emit the memory that is resident, and the CPU time used since the last sample.

        Where the kernel does not tell the first (macOS has no /proc), only the second.
        """
        resident = _resident()
        if resident is not None:
            self._emit("python.memory.sampled", {"rss_bytes": resident})
        now = time.process_time()
        used, self._cpu = now - self._cpu, now
        self._emit("python.cpu.sampled", {"duration_ms": 1000 * used})

    def _again(self) -> None:
        assert self._loop is not None
        self._timer = self._loop.call_later(self._interval, self._again)
        self.sample()

    def _collected(self, phase: str, info: Mapping[str, int]) -> None:
        # Runs wherever an object is made, perhaps under a lock that emitting needs: so it
        # only leaves word.
        if info["generation"] != OLDEST:
            return
        if phase == "start":
            self._collecting = time.perf_counter_ns()
            return
        if not self._collecting:
            return  # it began before this did
        duration = (time.perf_counter_ns() - self._collecting) / 1e6
        self._collecting = 0
        assert self._loop is not None
        self._loop.call_soon_threadsafe(
            self._emit, "python.gc.completed", {"count": info["collected"], "duration_ms": duration}
        )


def _resident() -> int | None:
    """Bytes of memory; ``None`` where they are not told."""
    try:
        pages = int(_STATM.read_bytes().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
