"""Launching workers as Snakepit does, in the form of 0.4 and in that of 0.13.

The environment is Snakepit's as well: the PYTHONPATH holds another package of the name
``snakepit_bridge``, and modules beside it, that break whoever imports them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import grpc

import snakepit_bridge
from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge import bridge_service_pb2_grpc as stubs
from tests.elixir_side import as_elixir_writes

SCRIPT = Path(snakepit_bridge.__file__).with_name("grpc_server.py")

START_TIMEOUT = 60.0
"""Seconds; Snakepit waits 30 for one worker, and here twenty start on a small machine."""

TIMEOUT = 30.0
"""Seconds after which a call that hangs fails its test."""

RUN_ID = "k3p9x2"
TOKEN = "token-that-nobody-may-log"

FORMS = ("0.4", "0.13")

ADAPTER = '''
"""Tools as Snakepit's documentation writes them, for both of its forms."""

import os
import subprocess
import sys
import time

print("printed at import")
os.write(1, b"written at import\\n")

from snakepit_bridge.adapters.showcase.tool import StreamChunk
from snakepit_bridge.base_adapter import BaseAdapter, tool

print("printed after importing snakepit_bridge")


class Dispatching:
    """Of the form of 0.4: one method for all tools."""

    def set_session_context(self, context):
        self.session_context = context

    def execute_tool(self, tool_name, arguments, context):
        return TOOLS[tool_name](context, **arguments)


class Decorated(BaseAdapter):
    """Of the form of 0.13: a method for each tool."""

    @tool(description="Adds two numbers.")
    def add(self, a: int, b: int) -> int:
        return add(self.session_context, a, b)

    @tool(description="Counts in a stream.", supports_streaming=True)
    def count(self, to: int):
        yield from count(self.session_context, to)

    @tool(description="Prints in all ways.")
    def prints(self) -> str:
        return prints(self.session_context)

    @tool(description="Blocks a thread.")
    def block(self, seconds: float) -> str:
        return block(self.session_context, seconds)

    @tool(description="Where packages come from.")
    def origins(self) -> dict:
        return origins(self.session_context)

    @tool(description="Keeps a number in the session.")
    def keep(self, name: str, value: int) -> int:
        return keep(self.session_context, name, value)

    @tool(description="Calls a tool of Elixir's.")
    def ask(self, name: str, value: int) -> int:
        return ask(self.session_context, name, value)


def add(context, a, b):
    return a + b


def count(context, to):
    for number in range(to):
        yield StreamChunk({"number": number}, is_final=number == to - 1)


def prints(context):
    print("GRPC_READY:1")
    sys.stdout.flush()
    os.write(1, b"GRPC_READY:2\\n")
    subprocess.run([sys.executable, "-c", "print('GRPC_READY:3')"], check=True)
    return "printed"


def block(context, seconds):
    time.sleep(seconds)
    return "late"


def origins(context):
    import snakepit_bridge

    code = "import snakepit_bridge; print(snakepit_bridge.__file__)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = {"here": snakepit_bridge.__file__, "child": child.stdout.strip()}
    for name in ("limits", "wire", "server"):
        try:
            found[name] = __import__(name).__file__
        except ImportError:
            found[name] = ""
    return found


def keep(context, name, value):
    kept = context.get_variable(name)
    if kept is None:
        context.register_variable(name, "integer", value)
        return -1
    context.set_variable(name, value)
    return kept.value


def ask(context, name, value):
    return context.call_elixir_tool(name, value=value)


TOOLS = {
    tool.__name__: tool for tool in (add, count, prints, block, origins, keep, ask)
}
'''


def write_python_path(directory: Path) -> str:
    """Make the directories of a PYTHONPATH such as Snakepit's; gives it."""
    theirs = directory / "priv" / "python"
    (theirs / "snakepit_bridge").mkdir(parents=True)
    broken = "raise ImportError('this is another snakepit_bridge')\n"
    (theirs / "snakepit_bridge" / "__init__.py").write_text(broken)
    for name in ("snakepit_bridge_pb2", "snakepit_bridge_pb2_grpc", "grpc_server"):
        (theirs / f"{name}.py").write_text(broken)
    ours = directory / "adapters"
    ours.mkdir()
    (ours / "pool_adapter.py").write_text(ADAPTER)
    return os.pathsep.join(map(str, (theirs, ours)))


class Pool(NamedTuple):
    """What the workers of one pool have in common."""

    directory: Path
    form: str
    python_path: str
    elixir: str = "127.0.0.1:1"
    """Address of the Elixir side."""
    heartbeat: dict[str, object] = {"enabled": False}  # noqa: RUF012 - never changed
    """What 0.13 sends in SNAKEPIT_HEARTBEAT_CONFIG."""
    log_level: str = "warning"

    @property
    def slots(self) -> Path:
        return self.directory / "slots"

    @property
    def adapter(self) -> str:
        return f"pool_adapter.{'Dispatching' if self.form == '0.4' else 'Decorated'}"

    def command(self) -> list[str]:
        arguments = [
            *("--adapter", self.adapter),
            *("--port", "0"),
            *("--elixir-address", self.elixir),
            *("--snakepit-run-id", RUN_ID),
        ]
        if self.form == "0.4":
            # Its process groups are made by setsid(1), where that is installed.
            leader = shutil.which("setsid")
            return [*([leader] if leader else []), sys.executable, str(SCRIPT), *arguments]
        arguments += ["--snakepit-instance-name", "prod", "--snakepit-instance-token", TOKEN]
        return [sys.executable, str(SCRIPT), *arguments]

    def environment(self, ready_file: Path) -> dict[str, str]:
        shared = {
            **os.environ,
            "PYTHONPATH": self.python_path,
            "SNAKEPIT_BRIDGE_DATA_DIR": str(self.slots),
        }
        if self.form == "0.4":
            return shared
        return {
            **shared,
            "SNAKEPIT_PROCESS_GROUP": "1",
            "SNAKEPIT_READY_FILE": str(ready_file),
            "SNAKEPIT_LOG_LEVEL": self.log_level,
            "SNAKEPIT_HEARTBEAT_CONFIG": json.dumps(self.heartbeat),
        }


class Worker:
    """One worker process of a pool, ready when entered."""

    def __init__(self, pool: Pool, *arguments: str, name: str = "worker_1") -> None:
        self._pool = pool
        self._arguments = arguments
        self.ready_file = pool.directory / f"snakepit_ready_{name}"
        self.port = 0
        self.stdout = ""
        """All of it, once the process has ended."""
        self.stderr = ""

    async def __aenter__(self) -> Self:
        self.process = await asyncio.create_subprocess_exec(
            *self._pool.command(),
            *self._arguments,
            env=self._pool.environment(self.ready_file),
            cwd=self._pool.directory,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._complaints = asyncio.create_task(self.process.stderr.read())
        try:
            async with asyncio.timeout(START_TIMEOUT):
                line = (await self.process.stdout.readline()).decode()
        except BaseException:
            await self.kill()
            raise
        if not line.startswith("GRPC_READY:"):
            await self.kill()
            raise AssertionError(f"no readiness but {line!r}:\n{self.stderr}")
        self.stdout = line
        self.port = int(line.removeprefix("GRPC_READY:"))
        # As Snakepit's Elixir side connects.
        self.channel = grpc.aio.insecure_channel(f"localhost:{self.port}")
        self.stub: Any = stubs.BridgeServiceStub(self.channel)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.returncode is None:
            await self.kill()
        await self.channel.close()

    async def kill(self) -> None:
        """``kill -9``, of the whole group where it leads one."""
        with contextlib.suppress(ProcessLookupError):  # it may end at the same time
            if os.getpgid(self.process.pid) == self.process.pid:
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()
        await self.ended()

    async def stop(self) -> int:
        """SIGTERM; gives the exit code."""
        self.process.terminate()
        return await self.ended()

    async def ended(self) -> int:
        """Wait until the process ends by itself; gives the exit code."""
        assert self.process.stdout is not None
        async with asyncio.timeout(TIMEOUT):
            code = await self.process.wait()
            self.stdout += (await self.process.stdout.read()).decode()
            self.stderr = (await self._complaints).decode()
        return code

    @property
    def slot(self) -> str:
        """Name of the slot that this process holds, as the file of its owner says."""
        for owner in self._pool.slots.glob("slot-*/bridge.db.owner"):
            if owner.read_text().startswith(f"process {self.process.pid} "):
                return owner.parent.name
        raise AssertionError(f"process {self.process.pid} holds no slot")

    # Calls, as the Elixir side makes them.

    def request(
        self, tool: str, session: str, arguments: dict[str, object]
    ) -> pb.ExecuteToolRequest:
        return pb.ExecuteToolRequest(
            session_id=session,
            tool_name=tool,
            parameters={name: as_elixir_writes(value) for name, value in arguments.items()},
        )

    async def execute(
        self,
        tool: str,
        arguments: dict[str, object],
        session: str = "default_session",
        headers: Sequence[tuple[str, str]] = (),
    ) -> Any:  # noqa: ANN401 - any JSON value
        """Call a tool; gives its result as Elixir reads it, by the JSON alone."""
        request = self.request(tool, session, arguments)
        answer = await self.stub.ExecuteTool(request, timeout=TIMEOUT, metadata=headers)
        assert (answer.success, answer.error_message) == (True, "")
        return json.loads(answer.result.value)

    async def stream(
        self, tool: str, arguments: dict[str, object], session: str = "default_session"
    ) -> list[pb.ToolChunk]:
        request = self.request(tool, session, arguments)
        chunks: AsyncIterator[pb.ToolChunk] = self.stub.ExecuteStreamingTool(
            request, timeout=TIMEOUT
        )
        return [chunk async for chunk in chunks]

    async def is_valid(self, session: str) -> bool:
        """What a heartbeat of Elixir's is answered."""
        request = pb.HeartbeatRequest(session_id=session)
        request.client_time.GetCurrentTime()
        answer = await self.stub.Heartbeat(request, timeout=TIMEOUT)
        valid: bool = answer.session_valid
        return valid
