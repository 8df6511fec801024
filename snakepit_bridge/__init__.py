"""The event-sourced gRPC bridge between Elixir and Python. What tools need is here by name."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snakepit_bridge.base_adapter import BaseAdapter
    from snakepit_bridge.session_context import SessionContext
    from snakepit_bridge.tools.chunks import StreamChunk
    from snakepit_bridge.tools.context import ToolCancelled, current_session
    from snakepit_bridge.tools.definition import tool

__all__ = [
    "BaseAdapter",
    "SessionContext",
    "StreamChunk",
    "ToolCancelled",
    "current_session",
    "tool",
]

_HOMES = {
    "BaseAdapter": "base_adapter",
    "SessionContext": "session_context",
    "StreamChunk": "tools.chunks",
    "ToolCancelled": "tools.context",
    "current_session": "tools.context",
    "tool": "tools.definition",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - of each name its own
    """Import on first use: the root of the package stays light."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
