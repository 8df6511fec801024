"""Tools that run in a process of their own, and what may go wrong there."""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import snakepit_bridge
from snakepit_bridge.errors import BridgeError
from snakepit_bridge.session_context import SessionContext
from snakepit_bridge.tools.chunks import StreamChunk
from snakepit_bridge.tools.context import current_session
from snakepit_bridge.tools.definition import tool

left_behind: contextvars.ContextVar[str] = contextvars.ContextVar("left_behind", default="nothing")


@tool(isolation="process")
def add(a: int, b: int = 1) -> int:
    return a + b


@tool(isolation="process")
def describe(value: Any) -> str:  # noqa: ANN401 - whatever comes
    return f"{type(value).__name__} {value!r}"


@tool(isolation="process")
def where() -> dict[str, Any]:
    """Everything that a process says of itself."""
    return {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "package": snakepit_bridge.__file__,
        "stdin": str(Path("/proc/self/fd/0").readlink()),
        "stdout_is_stderr": os.fstat(1) == os.fstat(2),
        "path": sys.path,
        "variable": os.environ.get("SNAKEPIT_TEST_VARIABLE", ""),
    }


@tool(isolation="process")
def zeros(count: int) -> np.ndarray:
    return np.zeros(count, dtype=np.uint8)


@tool(isolation="process")
def text(characters: int) -> str:
    return "x" * characters


@tool(isolation="process")
def not_a_value() -> object:
    return object()


@tool(isolation="process")
async def sleep(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "slept"


_loops: list[asyncio.AbstractEventLoop] = []


@tool(isolation="process")
async def same_loop() -> bool:
    """Whether this runs on the loop that it ran on the last time."""
    _loops.append(asyncio.get_running_loop())
    return all(loop is _loops[0] for loop in _loops)


@tool(isolation="process")
def reports_for_ever() -> Iterator[int]:
    """Leave a thread behind that goes on reporting."""
    session = current_session()

    def report() -> None:
        while True:
            session.report_progress(1)

    threading.Thread(target=report, daemon=True).start()
    yield 1


@tool(isolation="process")
def leave_behind(what: str) -> str:
    """Give what an earlier job set, and set it anew."""
    found = left_behind.get()
    left_behind.set(what)
    return found


@tool(isolation="process")
def count(to: int, directory: str = "") -> Iterator[Any]:
    """Count; a file named after each number is made before it is given."""
    for number in range(to):
        if directory:
            Path(directory, str(number)).touch()
        yield {"number": number}


@tool(isolation="process")
def large_chunks(to: int, size: int, directory: str) -> Iterator[bytes]:
    for number in range(to):
        Path(directory, str(number)).touch()
        yield bytes(size)


@tool(isolation="process")
async def count_async(to: int) -> AsyncIterator[Any]:
    for number in range(to):
        await asyncio.sleep(0)
        yield StreamChunk(number, metadata={"number": str(number)})


@tool(isolation="process")
def breaks_off() -> Iterator[int]:
    yield 1
    raise LookupError("nothing more")


@tool(isolation="process")
def raises(message: str) -> None:
    raise ValueError(message)


@tool(isolation="process")
def exits(code: int) -> None:
    sys.exit(code)


@tool(isolation="process")
async def exits_async() -> None:
    sys.exit(7)


@tool(isolation="process")
def exits_at_once(code: int) -> None:
    os._exit(code)


@tool(isolation="process")
def segfaults() -> None:
    ctypes.string_at(0)


@tool(isolation="process")
def recurses() -> int:
    return 1 + recurses()


@tool(isolation="process")
def overflows() -> None:
    """Use the whole stack of C, which Python does not look after here."""
    function = ctypes.CFUNCTYPE(None)
    sys.setrecursionlimit(10**9)

    def call_again() -> None:
        again()

    again = function(call_again)
    again()


@tool(isolation="process")
def kills_itself(number: int) -> None:
    os.kill(os.getpid(), number)


@tool(isolation="process")
def hangs(mark: str) -> None:
    """Run for ever, without letting other threads run."""
    Path(mark).write_text(str(os.getpid()))
    # A call that keeps the interpreter's lock.
    ctypes.PyDLL(None).pause()


@tool(isolation="process")
def spins(mark: str) -> None:
    Path(mark).write_text(str(os.getpid()))
    while True:
        pass


@tool(isolation="process")
def survives_signals() -> str:
    """Be signalled as whoever presses Ctrl-C or stops a service does."""
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    return "still here"


@tool(isolation="process")
def prints(text: str) -> None:
    print(text)  # noqa: T201 - it is what this does
    os.write(1, b"raw bytes\n")
    subprocess.run(["/bin/echo", "from a program"], check=True)


@tool(isolation="process")
def closes_all_files() -> str:
    os.closerange(3, 256)
    return "closed"


@tool(isolation="process")
def writes_to_all_files() -> str:
    """Write rubbish to every file, the connection to the bridge among them."""
    for number in range(3, 256):
        try:
            os.write(number, b"\xff" * 64)
        except OSError:
            continue
    return "written"


@tool(isolation="process")
def leaves_a_child_and_dies(mark: str) -> None:
    """Fork: the child lives on, with all files that this had."""
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    Path(mark).write_text(str(child))
    os._exit(3)


@tool(isolation="process")
def dies_soon() -> str:
    """Give a result, and have the process die of itself when nothing runs in it."""
    threading.Timer(0.1, os._exit, (5,)).start()
    return "ok"


@tool(isolation="process")
def set_and_get(session: SessionContext, name: str, value: int) -> Any:  # noqa: ANN401 - any variable's value
    """Use the session that was given, and the current one."""
    session.set_variable(name, value)
    variable = current_session().get_variable(name)
    return variable.value


@tool(isolation="process")
async def set_async(session: SessionContext, name: str, value: int) -> int:
    return await session.set_variable_async(name, value)


@tool(isolation="process")
def observe(session: SessionContext, name: str, values: list[Any]) -> list[Any]:
    seen: list[Any] = []
    session.watch_variable(name, lambda *change: seen.append([change[0], change[1], change[2]]))
    for value in values:
        session.set_variable(name, value)
    session.flush(30)
    return seen


@tool(isolation="process")
def writes_for_ever(session: SessionContext, name: str) -> None:
    number = 0
    while True:
        number += 1
        session.set_variable(name, number)


@tool(isolation="process")
def reports() -> dict[str, Any]:
    session = current_session()
    session.report_progress(1, 4, "a quarter")
    session.report_progress(3)
    return {
        "metadata": session.request_metadata,
        "call": [session.session_id, session.tool_name, session.call_id],
        "cancelled": session.cancelled,
    }


@tool(isolation="process")
def what_is_raised(
    session: SessionContext,
    name: str,
    value: Any,  # noqa: ANN401 - what does not fit
) -> list[str]:
    try:
        session.set_variable(name, value)
    except BridgeError as error:
        return [type(error).__name__, error.message]
    return []


class Adapter:
    """An adapter in Snakepit's style: an instance for each call."""

    def __init__(self) -> None:
        self.told = ["made"]

    def set_session_context(self, context: Any) -> None:  # noqa: ANN401 - as in Snakepit
        self.session = context

    async def initialize(self) -> None:
        self.told.append("initialised")

    def cleanup(self) -> None:
        print("cleaned up")  # noqa: T201 - it is what this does

    @tool(isolation="process")
    def tell(self) -> list[str]:
        return [*self.told, self.session.session_id]

    @tool(isolation="process")
    async def tell_async(self) -> list[str]:
        await asyncio.sleep(0)
        return [*self.told, self.session.session_id]

    @tool(isolation="process")
    @staticmethod
    def double(number: int) -> int:
        return 2 * number


class SharedAdapter:
    """One instance for all calls."""

    __thread_safe__ = True

    def __init__(self) -> None:
        self.initialised = 0
        self.calls = 0

    def initialize(self) -> None:
        self.initialised += 1

    def set_session_context(self, context: Any) -> None:  # noqa: ANN401 - as in Snakepit
        self.session = context

    @tool(isolation="process")
    def calls_so_far(self) -> list[Any]:
        self.calls += 1
        return [self.initialised, self.calls, self.session.session_id]


class Dispatching:
    """Runs whatever it is asked for."""

    def execute_tool(self, tool_name: str, arguments: dict[str, Any], context: Any) -> Any:  # noqa: ANN401 - as in Snakepit
        if tool_name == "stream":
            return iter([1, 2])
        if tool_name == "later":
            return self._later(context)
        return [tool_name, arguments, context.session_id]

    async def _later(self, context: Any) -> str:  # noqa: ANN401 - as above
        return f"later in {context.session_id}"
