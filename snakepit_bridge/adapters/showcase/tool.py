"""``StreamChunk`` under the name under which Snakepit's adapters import it."""

from __future__ import annotations

from snakepit_bridge.tools.chunks import StreamChunk

__all__ = ["StreamChunk"]
