"""Tools whose session is that of a shared bridge: what is different for them, and what is not."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

from snakepit_bridge.session_context import SessionContext
from snakepit_bridge.tool_session import ToolSession
from snakepit_bridge.tools.definition import tool
from tests.wire_tools import hold, note


@tool
def reads(session: SessionContext) -> dict[str, Any]:
    return {variable.name: variable.value for variable in session.list_variables()}


@tool
async def reads_async(session: SessionContext) -> dict[str, Any]:
    return {variable.name: variable.value for variable in await session.list_variables_async()}


@tool(isolation="process")
def reads_isolated(session: SessionContext) -> dict[str, Any]:
    return {variable.name: variable.value for variable in session.list_variables()}


@tool
async def reads_on_the_loop(session: SessionContext) -> object:
    return session.get_variable("x")


@tool
def everything(session: SessionContext) -> list[Any]:
    """Use whatever a session has."""
    found: list[Any] = [session.register_variable("a", "integer", 1, {"min": 0})]
    session.register_variable("b", "string", "text")
    found.append(session.set_variable("a", 2, {"why": "because"}, expected_version=1))
    found.append(dict(session.set_variables({"a": 3, "b": "other"}).versions))
    found.append([entry.version for entry in session.get_variable_history("a")])
    found.append(session.rollback_variable("a", 1).value)
    session.delete_variable("b")
    found.append(sorted(session.get_variables(["a", "b"])))
    return found


@tool
def looks_and_registers(session: SessionContext, looked: str, go: str) -> None:
    assert session.get_variable("nothing") is None
    note(looked, "run")
    hold(go)
    assert session.get_variable("nothing") is None


@tool
def observes(session: SessionContext) -> list[Any]:
    """Have a callback called for what this tool itself does, and for nothing after."""
    session.register_variable("seen", "integer", 0)
    seen: list[Any] = []
    called = threading.Event()

    def note(name: str, old: object, new: object, metadata: object) -> None:
        del metadata
        seen.append([name, old, new])
        called.set()

    observer = session.watch_variable("seen", note)
    session.set_variable("seen", 1)
    session.flush(timeout=30)
    assert called.is_set()
    assert session.unwatch_variable(observer)
    session.set_variable("seen", 2)
    return seen


@tool
async def iterates(session: SessionContext) -> list[Any]:
    await session.register_variable_async("seen", "integer", 0)
    found = []
    async with session.watch("seen") as changes:
        for value in (1, 2):
            await session.set_variable_async("seen", value)
            change = await anext(aiter(changes))
            found.append([change.name, change.old, change.new])
    return found


@tool
def reports(session: ToolSession) -> Iterator[str]:
    session.set_variable("x", 1)
    session.report_progress(1, 2, "half")
    yield "text"


@tool
async def reports_async(session: ToolSession) -> AsyncIterator[str]:
    await session.set_variable_async("x", 2)
    await session.report_progress_async(1, 2, "half")
    yield "text"


@tool(isolation="process")
def reports_isolated(session: ToolSession) -> Iterator[str]:
    session.set_variable("x", 3)
    session.report_progress(1, 2, "half")
    yield "text"
