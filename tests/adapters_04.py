"""Adapters as Snakepit 0.4 has people write them: one method that is told the tool's name."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from snakepit_bridge.adapters.showcase.tool import StreamChunk


class GenericAdapter:
    """No base class, nothing announced; whatever ``execute_tool`` knows is a tool."""

    def __init__(self) -> None:
        self.session_context: Any = None

    def set_session_context(self, session_context: Any) -> None:  # noqa: ANN401
        self.session_context = session_context

    def execute_tool(self, tool_name: str, arguments: dict[str, Any], context: Any) -> Any:  # noqa: ANN401
        match tool_name:
            case "ping":
                return "pong"
            case "echo":
                return {"echoed": arguments}
            case "session":
                return {"given": context.session_id, "set": self.session_context.session_id}
            case "stream":
                return self._stream(arguments.get("count", 3), arguments.get("delay", 0.0))
            case "stream_async":
                return self._stream_async(arguments.get("count", 3))
            case "later":
                return self._later(arguments["value"])
            case "slow":
                time.sleep(arguments["seconds"])
                return "slept"
            case "crash":
                raise ValueError(f"Intentional crash: {arguments.get('why', '')}")
        raise ValueError(f"Unknown tool: {tool_name}")

    def _stream(self, count: int, delay: float):  # type: ignore[no-untyped-def] # noqa: ANN202
        for index in range(count):
            time.sleep(delay)
            yield StreamChunk({"index": index}, is_final=(index == count - 1))

    async def _stream_async(self, count: int) -> AsyncIterator[dict[str, int]]:
        for index in range(count):
            yield {"index": index}

    async def _later(self, value: object) -> object:
        return value


class AsyncGenericAdapter:
    """The same with a coroutine."""

    async def execute_tool(self, tool_name: str, arguments: dict[str, Any], context: Any) -> Any:  # noqa: ANN401
        if tool_name != "echo":
            raise ValueError(f"Unknown tool: {tool_name}")
        return {"echoed": arguments, "session_id": context.session_id}


class AnnouncingAdapter(GenericAdapter):
    """Announces some of what it runs, in its own words."""

    def get_tools(self) -> list[dict[str, Any]]:
        return [
            {"name": "ping", "description": "Answer"},
            {
                "name": "echo",
                "description": "Give back",
                "parameters": [
                    {"name": "message", "type": "string", "required": True},
                    {"name": "times", "type": "integer", "default": 1},
                ],
                "metadata": {"since": "0.4"},
            },
            {"name": "stream", "supports_streaming": True},
        ]
