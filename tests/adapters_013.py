"""Adapters as Snakepit's guide from 0.5 to 0.13 has people write them."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np

from snakepit_bridge.adapters.showcase.tool import StreamChunk
from snakepit_bridge.base_adapter import BaseAdapter, tool
from snakepit_bridge.base_adapter_threaded import ThreadSafeAdapter, thread_safe_method

LIFE: list[str] = []
"""What happened to instances of ``GuideAdapter``."""


class GuideAdapter(BaseAdapter):
    """An instance for each call."""

    def __init__(self) -> None:
        super().__init__()
        self.ready = False
        self.calls = 0
        LIFE.append("init")

    def initialize(self) -> None:
        self.ready = True
        LIFE.append("initialize")

    def cleanup(self) -> None:
        LIFE.append("cleanup")

    @tool(description="Add two numbers together")
    def add(self, a: float, b: float) -> float:
        return a + b

    @tool(description="Search for items", supports_streaming=True, required_variables=["api_key"])
    def search(self, query: str, limit: int = 10) -> dict[str, Any]:
        return {"results": [], "query": query, "limit": limit}

    @tool(description="Whether it is ready, and how often it was called")
    def state(self) -> dict[str, Any]:
        self.calls += 1
        return {"ready": self.ready, "calls": self.calls}

    @tool(description="Get session info")
    def get_session_info(self) -> dict[str, Any]:
        return {"session_id": self.session_context.session_id}

    @tool(description="Call an Elixir tool")
    def call_backend_tool(self, operation: str, data: dict[str, Any]) -> Any:  # noqa: ANN401
        return self.session_context.call_elixir_tool(operation, input=data)

    @tool(description="ML prediction")
    def predict(self, input_data: dict[str, Any]) -> dict[str, Any]:
        features = np.array(input_data.get("features", []))
        return {"prediction": (features * 2).tolist()}

    @tool(description="Stream data chunks", supports_streaming=True)
    def stream_data(self, count: int = 5, delay: float = 0.0):  # type: ignore[no-untyped-def] # noqa: ANN201
        for i in range(count):
            yield StreamChunk(
                data={"index": i + 1, "total": count},
                is_final=(i == count - 1),
            )
            time.sleep(delay)

    @tool(description="Long operation", supports_streaming=True)
    def long_operation(self, steps: int = 3):  # type: ignore[no-untyped-def] # noqa: ANN201
        for i in range(steps):
            yield StreamChunk({"progress": (i + 1) / steps * 100}, is_final=False)
        yield StreamChunk({"status": "complete"}, is_final=True)

    @tool(description="Echo back all provided arguments")
    def echo(self, **kwargs: Any) -> dict[str, Any]:  # noqa: ANN401
        return kwargs

    @tool(description="Process binary data")
    def process_binary(self, data: bytes, operation: str = "length") -> Any:  # noqa: ANN401
        return len(data) if operation == "length" else sum(data)

    @tool(description="Raise")
    def broken(self) -> None:
        raise RuntimeError("broken as announced")

    @tool()
    async def later(self, value: Any) -> Any:  # noqa: ANN401
        """Give the value, asynchronously."""
        return value

    def not_a_tool(self) -> None:
        raise AssertionError


class AsyncLifeAdapter(BaseAdapter):
    """``initialize`` and ``cleanup`` may be coroutines; and super().__init__() is forgotten."""

    def __init__(self) -> None:
        self.ready = False

    async def initialize(self) -> None:
        self.ready = True

    async def cleanup(self) -> None:
        self.ready = False

    @tool
    def is_ready(self) -> bool:
        return self.ready


class ConcurrentAdapter(ThreadSafeAdapter):
    """One instance for all calls."""

    __thread_safe__ = True

    def __init__(self) -> None:
        super().__init__()
        self.request_log: list[str] = []

    @thread_safe_method
    @tool(description="Make a prediction")
    def predict_shared(self, input_data: str) -> dict[str, Any]:
        cache = self.get_thread_local("cache", {})
        if input_data in cache:
            return {**cache[input_data], "cached": True}
        result = {"input": input_data, "thread": threading.current_thread().name}
        cache[input_data] = result
        self.set_thread_local("cache", cache)
        with self.acquire_lock():
            self.request_log.append(input_data)
        return {**result, "cached": False}

    @tool(description="Get adapter statistics")
    @thread_safe_method
    def get_statistics(self) -> dict[str, Any]:
        with self.acquire_lock():
            return {"log_size": len(self.request_log), **self.get_stats()}


class DelegatingAdapter(BaseAdapter):
    """As Snakepit's own showcase: announces methods, and runs more than it announces."""

    @tool(description="Announced, and run by execute_tool")
    def announced(self, value: int) -> int:
        return value

    def execute_tool(self, tool_name: str, arguments: dict[str, Any], context: Any) -> Any:  # noqa: ANN401
        if tool_name == "hidden":
            return {"session_id": context.session_id, **arguments}
        return self.call_tool(tool_name, **arguments)
