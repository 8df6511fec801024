"""Tools to play with, and to copy from.

``snakepit-bridge serve --adapter snakepit_bridge.showcase`` serves them.

A tool is a function with ``@tool``. Its type hints say what arguments it takes, its docstring what
they mean; clients are told both, and arguments are checked before it is called.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from snakepit_bridge.session_context import SessionContext
from snakepit_bridge.tools.context import current_session
from snakepit_bridge.tools.decorator import tool

__all__ = [
    "burn",
    "count",
    "echo",
    "fail",
    "matmul",
    "secret_length",
    "statistics",
    "text_stats",
    "tune",
    "wait",
]

Text = Annotated[str, Field(max_length=1_000_000)]
Seconds = Annotated[float, Field(ge=0, le=60)]

MAX_PRODUCTS = 10**9
"""Multiplications that ``matmul`` does at most: a fraction of a second."""


@tool
def echo(message: Text) -> str:
    """Give a message back."""
    return message


@tool
def text_stats(text: Text) -> dict[str, Any]:
    """Count the characters, words and lines of a text."""
    words = text.split()
    return {
        "characters": len(text),
        "words": len(words),
        "distinct_words": len({word.casefold() for word in words}),
        "lines": len(text.splitlines()),
        "longest_word": max(words, key=len, default=""),
    }


@tool
def statistics(values: NDArray[np.float64]) -> dict[str, Any]:
    """Describe an array of numbers.

    Args:
        values: a tensor, or numbers in evenly nested lists; not empty.
    """
    if not values.size:
        raise ValueError("values is empty: it has no mean")
    return {
        "mean": values.mean(),
        "std": values.std(),
        "min": values.min(),
        "max": values.max(),
        "shape": list(values.shape),
    }


@tool
def matmul(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Multiply two matrices.

    Args:
        a: of shape (n, k).
        b: of shape (k, m).
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:  # noqa: PLR2004 - a matrix has two
        raise ValueError(f"shapes {a.shape} and {b.shape} do not fit: (n, k) and (k, m) do")
    if a.shape[0] * a.shape[1] * b.shape[1] > MAX_PRODUCTS:
        raise ValueError(f"more than {MAX_PRODUCTS} products: give smaller matrices")
    return a @ b


@tool
def count(
    to: Annotated[int, Field(ge=1, le=10_000)] = 5,
    delay: Seconds = 0.2,
) -> Iterator[dict[str, int]]:
    """Count slowly, as a stream: each number is a chunk, and so is each report of progress.

    Args:
        to: the last number.
        delay: seconds before each number.
    """
    session = current_session()
    for number in range(1, to + 1):
        time.sleep(delay)
        session.report_progress(number, to, f"{number} of {to}")
        yield {"number": number}


@tool(required_variables=["temperature"])
def tune(
    session: SessionContext,
    target: Annotated[float, Field(ge=-1e9, le=1e9)],
    variable: Annotated[str, Field(min_length=1, max_length=256)] = "temperature",
    steps: Annotated[int, Field(ge=1, le=1_000)] = 10,
) -> dict[str, Any]:
    """Move a float variable of the session to a target, step by step, for all who watch it.

    Args:
        target: where it ends; its constraints decide whether it may.
        variable: made if there is none, starting at 0, and reaching as far as the target.
        steps: of equal length.
    """
    current = session.get_variable(variable)
    if current is None:
        reach = {"min": min(0.0, target), "max": max(2.0, target)}
        session.register_variable(variable, "float", 0.0, reach)
        start = 0.0
    elif current.type == "float":
        start = float(current.value)
    else:
        raise ValueError(f"{variable} is of type {current.type}: name a float variable")
    path = [float(value) for value in np.linspace(start, target, steps + 1)[1:]]
    version = 0
    for value in path:
        version = session.set_variable(variable, value)
    return {"variable": variable, "start": start, "path": path, "version": version}


@tool
async def wait(seconds: Seconds = 1.0) -> dict[str, float]:
    """Wait without holding up a thread; ends at once when it is cancelled.

    Args:
        seconds: how long.
    """
    begun = time.monotonic()
    await asyncio.sleep(seconds)
    return {"waited": time.monotonic() - begun}


@tool
def fail(message: Text = "as you asked") -> None:
    """Raise a ValueError, to see what becomes of it."""
    raise ValueError(message)


@tool(isolation="process")
def burn(seconds: Seconds = 1.0) -> dict[str, int]:
    """Keep a processor busy, in a process of its own, where that holds up nobody.

    Args:
        seconds: how long.
    """
    rounds = 0
    digest = b""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        digest = hashlib.sha256(digest).digest()
        rounds += 1
    return {"rounds": rounds, "pid": os.getpid()}


@tool(sensitive=["secret"])
def secret_length(secret: Text) -> int:
    """Say how long a secret is. The log keeps only a digest of it, and no message quotes it."""
    return len(secret)
