"""What a tool finds of the call that it runs in.

``current_session()`` works in whatever the tool calls, on its own thread or event loop, and in
what it starts with ``asyncio.create_task`` or ``asyncio.to_thread``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

__all__ = ["CurrentSession", "ToolCancelled", "current", "current_session"]

current: ContextVar[Callable[[], Any] | None] = ContextVar("snakepit_bridge_session", default=None)
"""Gives the session of the call that runs here; it is only made when it is asked for."""


class ToolCancelled(Exception):
    """Nobody waits for this call any more: the tool is to end."""


def current_session() -> Any:  # noqa: ANN401 - a SessionContext, here or in a worker process
    """The session of the call that runs here, as a ``SessionContext``.

    :raises RuntimeError: no tool runs here.
    """
    session = current.get()
    if session is None:
        raise RuntimeError("current_session() is for tools, while the bridge runs them")
    return session()


class CurrentSession:
    """Stands for whatever session is current where it is used.

    What an adapter is given whose one instance serves all calls at once.
    """

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - as of a SessionContext
        return getattr(current_session(), name)
