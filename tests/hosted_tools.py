"""Tools and adapters for the tests of what surrounds a tool: its start, its end, what hosts it.

As in ``wire_tools``: what must be known outside is told in files, and ``go`` is what they wait for.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, NoReturn

from pydantic import AfterValidator

from snakepit_bridge.base_adapter import BaseAdapter
from snakepit_bridge.session_context import SessionContext
from snakepit_bridge.tool_session import ToolSession
from snakepit_bridge.tools.definition import tool
from tests.wire_tools import hold, hold_async, note

SECRET = "correct 'horse'\n\"battery\" staple"
"""Quoted differently by ``str`` and ``repr``."""


# Running, and telling it.


@tool
def tells(runs: str) -> int:
    note(runs, "run")
    return 1


@tool
async def tells_async(runs: str) -> int:
    note(runs, "run")
    return 1


@tool(isolation="process")
def tells_isolated(runs: str) -> int:
    note(runs, "run")
    return 1


@tool
def tells_stream(runs: str) -> Iterator[int]:
    note(runs, "run")
    yield 1


@tool
async def tells_stream_async(runs: str) -> AsyncIterator[int]:
    note(runs, "run")
    yield 1


@tool
async def waits(runs: str, go: str, result: str = "done") -> str:
    """Run until told, on the event loop."""
    note(runs, "run")
    await hold_async(go)
    return result


@tool
async def waits_in_to_thread(runs: str, go: str) -> None:
    """Block in a thread of asyncio's own."""
    note(runs, "run")
    await asyncio.to_thread(hold, go)


@tool
def stuck(runs: str, go: str, ballast: bytes = b"") -> int:
    note(runs, "run")
    hold(go)
    return len(ballast)


@tool(timeout=0.3)
def late(runs: str, go: str) -> None:
    note(runs, "run")
    hold(go)


@tool(timeout=0.3)
async def late_async(runs: str, go: str) -> None:
    note(runs, "run")
    await hold_async(go)


@tool(timeout=0.3)
def late_stream(runs: str, go: str) -> Iterator[int]:
    note(runs, "run")
    hold(go)
    yield 1


# With the session.


@tool
def registers(session: SessionContext, runs: str, go: str) -> None:
    note(runs, "run")
    hold(go)
    session.register_variable("late", "integer", 1)


@tool(isolation="process")
def registers_isolated(session: SessionContext, runs: str, go: str) -> None:
    note(runs, "run")
    hold(go)
    session.register_variable("late", "integer", 1)


@tool
async def progress_from_a_thread(session: ToolSession) -> AsyncIterator[str]:
    """Report progress from a thread that an async tool has begun."""
    await asyncio.to_thread(session.report_progress, 1, 2, "half")
    yield "text"
    await asyncio.to_thread(session.report_progress, 2, 2, "whole")


@tool
async def progress_of_a_coroutine(session: ToolSession) -> str:
    await asyncio.to_thread(session.report_progress, 1, 2, "half")
    return "text"


@tool
def asks_elixir(session: ToolSession, name: str) -> Any:  # noqa: ANN401 - whatever Elixir gives
    return session.call_elixir_tool("look_up", tool_name=name)


@tool
async def asks_elixir_async(session: ToolSession, name: str) -> Any:  # noqa: ANN401 - as above
    return await session.call_elixir_tool_async("look_up", tool_name=name)


@tool(isolation="process")
def asks_elixir_isolated(session: ToolSession, name: str) -> Any:  # noqa: ANN401 - as above
    return session.call_elixir_tool("look_up", tool_name=name)


# Arguments.


class _Reading:
    """What a test lets a conversion do: tell that it has begun, and wait."""

    runs = ""
    go = ""


def _held(value: list[float]) -> list[float]:
    if _Reading.runs:
        note(_Reading.runs, threading.current_thread().name)
        hold(_Reading.go)
    return value


@tool
async def hold_conversions(runs: str, go: str) -> str:
    """From now on, have each conversion wait; gives the name of the event loop's thread."""
    _Reading.runs, _Reading.go = runs, go
    return threading.current_thread().name


@tool
async def count_numbers(numbers: Annotated[list[float], AfterValidator(_held)]) -> int:
    return len(numbers)


# Secrets.


def _refuse(user: str, password: str) -> NoReturn:
    try:
        raise LookupError(password)  # in the traceback of the next
    except LookupError as error:
        raise ValueError(f"{user} has another password than {password} {password!r}") from error


@tool(sensitive=["password"])
def refuses(user: str, password: str) -> None:
    _refuse(user, password)


@tool(sensitive=["password"])
async def refuses_async(user: str, password: str) -> None:
    _refuse(user, password)


@tool(sensitive=["password"], isolation="process")
def refuses_isolated(user: str, password: str) -> None:
    _refuse(user, password)


@tool(sensitive=["password"])
def refuses_stream(user: str, password: str) -> Iterator[int]:
    yield 1
    _refuse(user, password)


# Results that raise when they are looked at.


class _RaisesInValues(dict[str, Any]):
    def values(self) -> NoReturn:
        raise KeyError("no values")


class _RaisesInLength(list[Any]):
    def __len__(self) -> int:
        raise KeyError("no length")


def _hostile(what: str) -> object:
    if what == "a released view":
        view = memoryview(b"abc")
        view.release()
        return view
    return {"values": _RaisesInValues(a=1), "length": _RaisesInLength([1])}[what]


HOSTILE = {"a released view": "ValueError", "values": "KeyError", "length": "KeyError"}
"""What looking at each of them on the event loop raises."""


@tool
def gives_hostile(runs: str, what: str) -> object:
    note(runs, "run")
    return _hostile(what)


@tool
async def gives_hostile_async(runs: str, what: str) -> object:
    note(runs, "run")
    return _hostile(what)


# Adapters.


class FailsOnce(BaseAdapter):
    """One instance for all calls, whose first preparation fails."""

    __thread_safe__ = True
    prepared = 0

    def set_session_context(self, context: object) -> None:
        FailsOnce.prepared += 1
        if FailsOnce.prepared == 1:
            raise RuntimeError("the first time")
        super().set_session_context(context)

    @tool
    def prepared_shared(self) -> list[Any]:
        return [FailsOnce.prepared, self.session_context.session_id]


class _Awaiting(BaseAdapter):
    async def set_session_context(self, context: Any) -> None:  # type: ignore[override] # noqa: ANN401 - as people write it
        await asyncio.sleep(0)
        self.session_context = context


class AwaitsItsContext(_Awaiting):
    """An instance for each call, made ready by a coroutine."""

    @tool
    def awaited(self) -> str:
        return str(self.session_context.session_id)


class AwaitsItsContextOnce(_Awaiting):
    """The same with one instance for all calls."""

    __thread_safe__ = True

    @tool
    def awaited_shared(self) -> str:
        return str(self.session_context.session_id)


class TellsItsLife(BaseAdapter):
    """An instance for each call; what follows what is told."""

    runs = ""

    @tool
    def lives(self, runs: str, go: str) -> None:
        self.runs = runs
        note(runs, "run")
        hold(go)
        note(runs, "ended")

    @tool
    def lives_stream(self, runs: str, go: str) -> Iterator[int]:
        self.runs = runs
        yield 1
        note(runs, "run")
        hold(go)
        note(runs, "ended")

    def cleanup(self) -> None:
        note(self.runs, "cleanup")
