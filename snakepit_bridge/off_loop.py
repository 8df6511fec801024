"""Threads for what would keep an event loop waiting.

The bridge's own, beside asyncio's: those are also what async tools put their blocking work into, as
long as they please, and nobody else is to wait for that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

__all__ = ["off_loop"]

P = ParamSpec("P")
T = TypeVar("T")

THREADS = 8
"""They read, check and write large messages: more would only wait for the same interpreter."""

_POOL = ThreadPoolExecutor(THREADS, "off-loop")


async def off_loop(work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Have work done in one of the bridge's threads, and wait for it."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_POOL, partial(work, *arguments, **options))
