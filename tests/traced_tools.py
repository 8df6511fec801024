"""Tools that change variables, for traces."""

from __future__ import annotations

from snakepit_bridge import current_session, tool


@tool
def set_twice(name: str) -> int:
    """Set an integer to 10, then to 20."""
    session = current_session()
    session.set_variable(name, 10)
    session.set_variable(name, 20)
    return 2


@tool
async def set_twice_async(name: str) -> int:
    """As ``set_twice``, on the event loop."""
    session = current_session()
    await session.set_variable_async(name, 10)
    await session.set_variable_async(name, 20)
    return 2


@tool(isolation="process")
def set_twice_isolated(name: str) -> int:
    """As ``set_twice``, in a process of its own."""
    session = current_session()
    session.set_variable(name, 10)
    session.set_variable(name, 20)
    return 2


@tool
def fail() -> None:
    """Raise."""
    raise ValueError("on purpose")
