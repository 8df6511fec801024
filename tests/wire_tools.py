"""Tools for the tests that call them over the wire.

What must be known outside of the bridge, how often a tool ran, how far it came, is told in files:
``note`` adds a line to one. ``hold`` waits until a test makes a file, and looks at nothing else.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np

from snakepit_bridge.base_adapter import BaseAdapter
from snakepit_bridge.session_context import SessionContext
from snakepit_bridge.tool_session import ToolSession
from snakepit_bridge.tools.chunks import StreamChunk
from snakepit_bridge.tools.context import current_session
from snakepit_bridge.tools.definition import tool

MOST = 100.0
"""Seconds after which a tool that is held goes on by itself, so that none outlives its test."""

SETS = 10

# What says what happens.


def note(file: str, line: str) -> None:
    """Add a line, whole or not at all, to be found even if this process dies with the next step."""
    number = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(number, f"{line}\n".encode())
    finally:
        os.close(number)


def hold(file: str) -> None:
    end = time.monotonic() + MOST
    while not Path(file).exists() and time.monotonic() < end:
        time.sleep(0.005)


async def hold_async(file: str) -> None:
    end = time.monotonic() + MOST
    while not Path(file).exists() and time.monotonic() < end:  # noqa: ASYNC110, ASYNC240 - made by another process
        await asyncio.sleep(0.005)


# Plain ones, of each way to run.


@tool
def add(a: int, b: int = 1) -> int:
    """Add two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a + b


@tool
async def add_async(a: int, b: int = 1) -> int:
    return a + b


@tool(isolation="process")
def add_isolated(a: int, b: int = 1) -> int:
    return a + b


@tool
def describe(value: Any) -> str:  # noqa: ANN401 - whatever comes
    return f"{type(value).__name__} {value!r}"


@tool
def echo(value: Any) -> Any:  # noqa: ANN401 - whatever comes
    return value


@tool
def typed(  # noqa: PLR0917 - arguments come by name
    number: int, ratio: float, text: str, flag: bool, mode: Literal["a", "b"], items: list[int]
) -> list[Any]:
    return [number, ratio, text, flag, mode, items]


@tool
def reverse_bytes(data: bytes) -> bytes:
    return data[::-1]


@tool
def norm(vector: np.ndarray) -> float:
    return float(np.linalg.norm(vector))


@tool
def zeros(count: int) -> np.ndarray:
    return np.zeros(count)


@tool
def nothing() -> None:
    """Give None."""


@tool
def anything(**values: Any) -> int:  # noqa: ANN401 - as said
    return len(values)


@tool
def count_run(runs: str, result: str = "done", go: str = "") -> str:
    """Run, and tell it."""
    note(runs, "run")
    if go:
        hold(go)
    return result


@tool
def count_and_raise(runs: str) -> NoReturn:
    note(runs, "run")
    raise LookupError("counted")


@tool
async def count_run_async(runs: str, go: str = "") -> str:
    note(runs, "run")
    try:
        if go:
            await hold_async(go)
    except asyncio.CancelledError:
        note(runs, "CancelledError")
        raise
    return "done"


@tool(isolation="process")
def count_run_isolated(runs: str, go: str = "") -> str:
    note(runs, f"run {os.getpid()}")
    if go:
        hold(go)
    return "done"


@tool(timeout=0.3)
def too_slow(runs: str, go: str) -> None:
    note(runs, "run")
    hold(go)


@tool(timeout=0.3)
async def too_slow_async(runs: str, go: str) -> None:
    note(runs, "run")
    await hold_async(go)


@tool(sensitive=["password"])
def log_in(user: str, password: str) -> str:
    return f"{user} has {len(password)} characters"


@tool(sensitive=["password"])
def refuse(password: str) -> None:
    """Raise with words that quote what is not to be told."""
    raise ValueError(f"{password!r} is wrong")


@tool
def which_thread() -> str:
    return threading.current_thread().name


@tool(thread_sensitive=True)
def which_one_thread() -> str:
    return threading.current_thread().name


# With the session.


@tool
def set_variable(session: SessionContext, name: str, value: int) -> int:
    """Set, and register first what is not there."""
    if session.get_variable(name) is None:
        session.register_variable(name, "integer", 0)
    return session.set_variable(name, value)


@tool
async def set_variable_async(session: SessionContext, name: str, value: int) -> int:
    return await session.set_variable_async(name, value)


@tool(isolation="process")
def set_variable_isolated(session: SessionContext, name: str, value: int) -> int:
    return session.set_variable(name, value)


@tool
def who(session: ToolSession) -> dict[str, Any]:
    return {
        "tool": session.tool_name,
        "call": session.call_id,
        "session": session.session_id,
        "same": current_session() is session,
        "metadata": session.request_metadata,
    }


def _ten_sets(session: SessionContext, runs: str, at: int, go: str) -> str:
    note(runs, f"run {os.getpid()}")
    for number in range(1, SETS + 1):
        session.set_variable("x", number)
        if number == at:
            hold(go)
    return "done"


@tool
def ten_sets(session: SessionContext, runs: str, at: int = 0, go: str = "") -> str:
    """Set x to 1, 2, ... 10; hold after one of them."""
    return _ten_sets(session, runs, at, go)


@tool
async def ten_sets_async(session: SessionContext, runs: str, at: int = 0, go: str = "") -> str:
    note(runs, f"run {os.getpid()}")
    for number in range(1, SETS + 1):
        await session.set_variable_async("x", number)
        if number == at:
            await hold_async(go)
    return "done"


@tool(isolation="process")
def ten_sets_isolated(session: SessionContext, runs: str, at: int = 0, go: str = "") -> str:
    return _ten_sets(session, runs, at, go)


@tool
def late_use(session: ToolSession, runs: str, go: str, use: str) -> None:
    """Wait until told, then use the session in one way, and tell what came of it."""
    note(runs, "run")
    hold(go)
    uses: dict[str, Callable[[], object]] = {
        "set": lambda: session.set_variable("x", 99),
        "register": lambda: session.register_variable("late", "integer", 1),
        "get": lambda: session.get_variable("x"),
        "list": session.list_variables,
        "history": lambda: session.get_variable_history("x"),
        "check": session.check_cancelled,
    }
    try:
        uses[use]()
    except Exception as error:
        note(runs, type(error).__name__)
        raise
    note(runs, "went on")


# Streams.


@tool
def count_to(to: int) -> Iterator[int]:
    yield from range(1, to + 1)


@tool
async def count_to_async(to: int) -> AsyncIterator[int]:
    for number in range(1, to + 1):
        yield number


@tool(isolation="process")
def count_to_isolated(to: int) -> Iterator[int]:
    yield from range(1, to + 1)


@tool
def of_all_kinds() -> Iterator[Any]:
    yield {"a": [1, None]}
    yield b"\x00\xff"
    yield StreamChunk("text", metadata={"k": "v"})
    yield np.arange(3)
    current_session().report_progress(1, 2, "half")


@tool
def breaks_off() -> Iterator[int]:
    yield 1
    raise LookupError("nothing more")


@tool
def count_streams(runs: str) -> Iterator[int]:
    note(runs, "run")
    yield 1


@tool
def for_ever(runs: str, size: int = 1) -> Iterator[bytes]:
    """Stream until somebody stops it."""
    number = 0
    try:
        while True:
            number += 1
            note(runs, str(number))
            yield bytes(size)
    finally:
        note(runs, "closed")


@tool
async def for_ever_async(runs: str, size: int = 1) -> AsyncIterator[bytes]:
    number = 0
    try:
        while True:
            number += 1
            note(runs, str(number))
            yield bytes(size)
    finally:
        note(runs, "closed")


@tool
def holding_stream(runs: str, go: str) -> Iterator[int]:
    """Yield one, and hold."""
    yield 1
    note(runs, "run")
    hold(go)


@tool(isolation="process")
def holding_stream_isolated(runs: str, go: str) -> Iterator[int]:
    yield 1
    note(runs, "run")
    hold(go)


# Adapters.

_inside = 0


class OneAtATime(BaseAdapter):
    @tool
    def alone(self, runs: str, go: str) -> int:
        """Tell how many are inside at once."""
        global _inside  # noqa: PLW0603 - of all instances, each call has its own
        _inside += 1
        found = _inside
        note(runs, "run")
        hold(go)
        _inside -= 1
        return found


class TidiesUp(BaseAdapter):
    """Has something to do after each call."""

    @tool
    def stuck(self, runs: str, go: str) -> None:
        note(runs, "run")
        hold(go)

    def cleanup(self) -> None:
        """Be there, which is what takes a thread."""


# What is hostile.


class _Hostile(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class _ExitsInStr(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class _Text(str):
    __slots__ = ()

    def __len__(self) -> int:
        raise RuntimeError("no length")


class _TextOfItsOwn(Exception):
    def __str__(self) -> str:
        return _Text("words")


class _Group(BaseException):
    pass


RAISED: dict[str, Any] = {
    "ValueError": lambda: ValueError("wrong"),
    "BaseException": lambda: BaseException("base"),
    "subclass of BaseException": lambda: _Group("own"),
    "SystemExit": lambda: SystemExit(3),
    "SystemExit without code": SystemExit,
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "CancelledError": lambda: asyncio.CancelledError("by the tool"),
    "StopIteration": lambda: StopIteration(5),
    "StopAsyncIteration": StopAsyncIteration,
    "TimeoutError": lambda: TimeoutError("of the tool's own"),
    "MemoryError": MemoryError,
    "ExceptionGroup": lambda: ExceptionGroup("several", [ValueError("1"), KeyError("2")]),
    "hostile __str__": _Hostile,
    "exit in __str__": _ExitsInStr,
    "text of its own": _TextOfItsOwn,
    "long message": lambda: ValueError("\N{SNAKE}" * 1_000_000),
    "surrogate": lambda: ValueError("\ud800"),
    "zero byte": lambda: ValueError("a\0b\r\nc"),
    "long name": lambda: type("X" * 5_000, (Exception,), {})("long"),
}


def made(what: str) -> BaseException:
    error: BaseException = RAISED[what]()
    return error


@tool
def raises(what: str) -> None:
    raise made(what)


@tool
async def raises_async(what: str) -> None:
    raise made(what)


@tool
def raises_in_stream(what: str) -> Iterator[int]:
    yield 1
    raise made(what)


@tool
async def raises_in_async_stream(what: str) -> AsyncIterator[int]:
    yield 1
    raise made(what)


@tool
async def exits_in_a_task() -> None:
    """Raise SystemExit in a task of the tool's own."""

    async def exits() -> None:
        sys.exit(3)

    await asyncio.gather(exits())


@tool
async def cancels_itself() -> None:
    task = asyncio.current_task()
    if task is not None:
        task.cancel()
    await asyncio.sleep(0)


@tool
def recurses() -> int:
    return 1 + recurses()


@tool
def gives(what: str) -> Any:  # noqa: ANN401 - as said
    circle: list[Any] = []
    circle.append(circle)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    given: dict[str, Any] = {
        "an object inside": {"a": [1, 2, {"b": object()}]},
        "a circle": circle,
        "without end": deep,
        "a key": {1: 2},
        "a surrogate": ["\ud800"],
        "a class": int,
        "a set": {1},
        "complex": 1j,
        "huge": 10**5000,
    }
    return given[what]


@tool
async def gives_async(what: str) -> Any:  # noqa: ANN401 - as said
    return gives(what)


@tool
def large_text(size: int) -> str:
    return "x" * size


@tool
def large_bytes(size: int) -> bytes:
    return bytes(size)


@tool
def large_chunk(size: int) -> Iterator[bytes]:
    yield bytes(size)


@tool
async def large_chunk_async(size: int) -> AsyncIterator[bytes]:
    yield bytes(size)


@tool
def chunk_with_metadata(text: str) -> Iterator[StreamChunk]:
    """Stream one chunk whose metadata is text that was written with escapes."""
    yield StreamChunk(1, metadata={"k": text.encode().decode("unicode_escape")})


@tool
def prints(text: str) -> None:
    """Write to stdout in every way there is."""
    print(f"print {text}")  # noqa: T201 - it is what this does
    sys.stdout.write(f"write {text}\n")
    if sys.__stdout__ is not None:
        sys.__stdout__.write(f"the first stdout {text}\n")
        sys.__stdout__.flush()
    os.write(1, f"os.write {text}\n".encode())
    subprocess.run(["/bin/echo", f"a program {text}"], check=True)
    library = ctypes.CDLL(None)
    library.puts(f"puts {text}".encode())
    library.fflush(None)


@tool
def prints_without_a_line(text: str) -> None:
    print(text, end="", flush=True)  # noqa: T201 - as above


@tool
def prints_bytes(text: str) -> None:
    sys.stdout.buffer.write(f"{text}\n".encode())
    sys.stdout.flush()


@tool
def closes_stdout() -> str:
    os.close(1)
    return "closed"


@tool
def stuck(runs: str, go: str, ballast: bytes = b"") -> int:
    """Use no session, and end only when told."""
    note(runs, "run")
    hold(go)
    return len(ballast)


@tool
def stuck_stream(runs: str, go: str) -> Iterator[int]:
    note(runs, "run")
    hold(go)
    yield 1


@tool
async def does_not_let_go(runs: str, go: str) -> None:
    """Take no notice of being cancelled."""
    note(runs, "run")
    end = time.monotonic() + MOST
    while not Path(go).exists() and time.monotonic() < end:  # noqa: ASYNC240 - made by another process
        try:
            await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            note(runs, "cancelled")


@tool
async def tidies_up_slowly(runs: str, go: str) -> AsyncIterator[int]:
    try:
        yield 1
        note(runs, "run")
        await hold_async(go)
    finally:
        await hold_async(go)


@tool
async def stuck_in_to_thread(runs: str, go: str) -> None:
    """Block in a thread of asyncio's own."""
    note(runs, "run")
    await asyncio.to_thread(hold, go)


@tool
def leaves_a_thread(runs: str, go: str) -> None:
    """End, but leave a thread behind."""
    threading.Thread(target=hold, args=(go,)).start()
    note(runs, "run")


@tool(isolation="process")
def exits_isolated() -> None:
    sys.exit(7)


@tool(isolation="process")
def exits_at_once_isolated() -> None:
    os._exit(8)


@tool(isolation="process")
def segfaults_isolated() -> None:
    ctypes.string_at(0)


@tool(isolation="process")
def kills_itself_isolated() -> None:
    os.kill(os.getpid(), 9)


@tool(isolation="process", timeout=0.5)
def spins_isolated(runs: str) -> None:
    note(runs, f"run {os.getpid()}")
    while True:
        pass
