"""Tools of all kinds: what docs/tools.md explains.

make run ARGS="--adapter examples.my_tools"
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from snakepit_bridge import SessionContext, tool


@tool
def greet(name: str, tone: Literal["plain", "loud"] = "plain") -> str:
    """Greet somebody.

    Args:
        name: Whom.
        tone: How.
    """
    return f"HELLO {name.upper()}!" if tone == "loud" else f"Hello {name}."


@tool
def normalize(vector: np.ndarray) -> np.ndarray:
    """Scale a vector to length 1."""
    return np.asarray(vector / np.linalg.norm(vector))


@tool(timeout=5)
async def pause(seconds: Annotated[float, Field(ge=0, le=60)]) -> float:
    """Wait without keeping a thread; gives how long it took."""
    began = time.monotonic()
    await asyncio.sleep(seconds)
    return time.monotonic() - began


@tool
def words(text: str) -> Iterator[str]:
    """Stream the words of a text."""
    yield from text.split()


@tool
async def ticks(count: int = 3) -> AsyncIterator[dict[str, int]]:
    """Stream numbers, a tenth of a second apart."""
    for number in range(count):
        yield {"tick": number}
        await asyncio.sleep(0.1)


@tool
def warm_up(step: float, session: SessionContext) -> float:
    """Raise the variable `temperature` by a step, as far as its constraints allow."""
    variable = session.get_variable("temperature")
    if variable is None:
        session.register_variable("temperature", "float", step, {"min": 0, "max": 2})
        return step
    warmer = min(2.0, float(variable.value) + step)
    session.set_variable("temperature", warmer, expected_version=variable.version)
    return warmer


@tool(isolation="process")
def crunch(seconds: Annotated[float, Field(ge=0, le=60)]) -> int:
    """Compute, in a process of its own: the bridge does not feel it."""
    end = time.monotonic() + seconds
    rounds = 0
    while time.monotonic() < end:
        rounds += 1
    return rounds


@tool(sensitive=["password"])
def log_in(user: str, password: str) -> bool:
    """Say whether a password is long; of it the log keeps a digest only."""
    return bool(user) and len(password) >= 12
