"""A process that runs tools for the bridge; see ``processes``, which starts it.

::

    the bridge ─▶ a thread that reads jobs ─▶ the main thread, which runs one after the other
         ▲                                              │ chunks, progress, done
         └──────────────────────────────────────────────┘

It lives no longer than the bridge: when that is gone, the thread that reads finds the end of the
connection. Linux is asked to kill it in any case, as a tool may keep the interpreter to itself.

It runs a tool as the bridge itself would. Standard output goes where standard error goes, so that
a tool may print; frames have a connection of their own.
"""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import faulthandler
import inspect
import logging
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from functools import partial
from typing import Any, NoReturn

import numpy as np

from snakepit_bridge import tool_worker_pb2 as frames
from snakepit_bridge.errors import InvalidRequest, InvalidValue, quote
from snakepit_bridge.telemetry import logs
from snakepit_bridge.tool_values import decode_argument, encode_result
from snakepit_bridge.tools.adapters import Adapter, Toolbox, load_toolbox
from snakepit_bridge.tools.chunks import Chunk, chunk_of
from snakepit_bridge.tools.context import CurrentSession, ToolCancelled, current
from snakepit_bridge.tools.definition import ToolDefinition
from snakepit_bridge.tools.failures import MAX_MESSAGE, Failure, failure_of, shortened
from snakepit_bridge.tools.remote_session import RemoteToolSession

__all__ = ["main"]

logger = logging.getLogger(__name__)

NICENESS = 19
"""Added to the bridge's: whatever a tool computes, the bridge answers first."""

LENGTH = 4
"""Bytes before each frame."""

MAX_JOB = 2**31 - 1
"""Bytes of a frame, which are those of any message of protobuf."""

JOINED = 64 * 1024
"""Bytes of a frame that are copied to be sent at once with their length."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class _NoResult(Exception):
    """What a tool gave cannot be sent: a type and a message for the client."""

    def __init__(self, type_: str, message: str) -> None:
        super().__init__(message)
        self.failure = Failure(type_, shortened(message, MAX_MESSAGE), "")


def main() -> None:
    """Serve the bridge that started this process until one of them ends.

    Arguments: the number of the connection's file, the process id of the bridge, the level of its
    log and its format.
    """
    connection_file, bridge, level = map(int, sys.argv[1:4])
    _die_with(bridge)
    os.nice(NICENESS)
    # A terminal's Ctrl-C, and whoever stops a service, signal the whole group. The bridge hears
    # it as well, lets what runs come to its end, and then ends this process.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave_it_to_the_bridge)
    faulthandler.enable()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr] # both are files here
    connection = socket.socket(fileno=connection_file)
    connection.set_inheritable(False)
    # What a tool forks off has no business with it.
    os.register_at_fork(after_in_child=connection.close)
    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(
        target=_receive, args=(connection, jobs.put), name="bridge", daemon=True
    ).start()
    worker = _Worker(connection)
    # Written at once: what a tool said before it crashed, or was killed, is what matters.
    logs.configure(
        level,
        "json" if sys.argv[4] == "json" else "console",
        context=worker.log_context,
        threaded=False,
        fields={"tools_process": os.getpid()},
    )
    while True:
        worker.run(frames.Job.FromString(jobs.get()))


def _leave_it_to_the_bridge(number: int, frame: object) -> None:
    """A handler, as what is ignored would be ignored by the programs that a tool starts, too."""


def _die_with(bridge: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != bridge:  # it ended before we asked
        os._exit(1)


def _receive(connection: socket.socket, take: Callable[[bytes], None]) -> NoReturn:
    try:
        while True:
            size = int.from_bytes(_exactly(connection, LENGTH), "big")
            if size > MAX_JOB:
                raise EOFError  # this is not what the bridge wrote
            take(_exactly(connection, size))
    finally:
        # The bridge is gone, or what it says cannot be understood. Nobody waits for a tool that
        # still runs, and no handler of it may keep the process.
        os._exit(0)


def _exactly(connection: socket.socket, size: int) -> bytes:
    """:raises EOFError: the bridge closed the connection."""
    content = bytearray(size)
    view = memoryview(content)
    while view:
        count = connection.recv_into(view)
        if count == 0:
            raise EOFError
        view = view[count:]
    return bytes(content)


class _Worker:
    """Runs jobs. Its loop, adapters and their shared instances live as long as the process."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        """Held while a frame is sent: a tool may report its progress from several threads."""
        self._job: frames.Job | None = None
        """The one that runs: a thread that an earlier one left behind sends nothing any more."""
        self._runner = asyncio.Runner()
        self._toolboxes: dict[str, Toolbox] = {}
        self._initialized: set[Adapter] = set()
        """Those whose one shared instance is ready."""

    def log_context(self) -> Mapping[str, str]:
        """What each line carries that is logged while a job runs, on whichever thread."""
        job = self._job
        if job is None:
            return {}
        about = {"session_id": job.session_id, "tool": job.tool, "tool_call_id": job.call_id}
        if job.correlation_id:
            about["correlation_id"] = job.correlation_id
        return {**about, **logs.trace_of(job.traceparent)}

    def run(self, job: frames.Job) -> None:
        """Run one job and send what comes of it."""
        with self._sending:
            self._job = job
        # A context of its own: what a tool sets there is gone with the job.
        done = contextvars.copy_context().run(self._run, job)
        with self._sending:
            self._job = None
            self._send(frames.Report(done=done))

    def _run(self, job: frames.Job) -> frames.Done:
        try:
            definition = self._find(job.source, job.tool)
            try:
                arguments = definition.convert(_arguments(job))
            except InvalidRequest as error:
                return frames.Done(refusal=frames.Refusal(message=error.message, field=error.field))
            put = partial(self._send_chunk, job) if job.streaming else None
            session = RemoteToolSession(job, put)
            current.set(lambda: session)
            try:
                return self._call(definition, arguments, session, job)
            finally:
                session.forget_observers()
        except _NoResult as error:
            return frames.Done(failure=frames.Failure(**error.failure._asdict()))
        except BaseException as error:  # noqa: BLE001 - a tool may raise SystemExit, for one
            return frames.Done(failure=frames.Failure(**failure_of(error)._asdict()))

    def _find(self, source: str, tool: str) -> ToolDefinition:
        toolbox = self._toolboxes.get(source)
        if toolbox is None:
            toolbox = self._toolboxes[source] = load_toolbox([source], entry_points=False)
        return toolbox.find(tool)

    def _call(
        self,
        definition: ToolDefinition,
        arguments: dict[str, object],
        session: RemoteToolSession,
        job: frames.Job,
    ) -> frames.Done:
        adapter = definition.adapter
        if definition.context_parameter:
            arguments[definition.context_parameter] = session
        if adapter is None:
            return self._outcome(definition.function(**arguments), job)
        instance: Any = adapter.instance()
        self._begin(adapter, instance, session)
        try:
            if definition.dispatched:
                given = instance.execute_tool(
                    tool_name=job.tool, arguments=arguments, context=session
                )
            else:
                given = definition.function(instance, **arguments)
            return self._outcome(given, job)
        finally:
            if not adapter.shared:
                self._clean_up(instance)

    def _begin(self, adapter: Adapter, instance: Any, session: RemoteToolSession) -> None:  # noqa: ANN401 - any class can be an adapter
        if adapter in self._initialized:
            return
        if hasattr(instance, "set_session_context"):
            # One instance for all calls finds the session of each where it uses it.
            self._awaited(
                instance.set_session_context(CurrentSession() if adapter.shared else session)
            )
        if hasattr(instance, "initialize"):
            self._awaited(instance.initialize())
        if adapter.shared:
            self._initialized.add(adapter)

    def _clean_up(self, instance: Any) -> None:  # noqa: ANN401 - as _begin
        if not hasattr(instance, "cleanup"):
            return
        try:
            self._awaited(instance.cleanup())
        except Exception as error:  # noqa: BLE001 - the result is there, whatever this raises
            logger.warning("cleanup of an adapter failed: %s", type(error).__name__)

    def _outcome(self, given: object, job: frames.Job) -> frames.Done:
        """What became of a call; chunks are sent on the way."""
        result = self._awaited(given)
        if not job.streaming:
            return frames.Done(value=_written(result, job))
        if isinstance(result, AsyncIterator):
            self._awaited(self._drain(result, job))
        else:
            for item in result if isinstance(result, Iterator) else (result,):
                self._send_item(item, job)
        return frames.Done()

    def _awaited(self, given: object) -> object:
        """Give what a plain or an asynchronous function gave."""
        if not inspect.isawaitable(given):
            return given
        # In the context of the job: the runner has one of its own.
        return self._runner.run(_wait_for(given), context=contextvars.copy_context())

    async def _drain(self, items: AsyncIterator[object], job: frames.Job) -> None:
        try:
            async for item in items:
                # The bridge may be slow to take it; the tool's other tasks go on meanwhile.
                await asyncio.to_thread(self._send_item, item, job)
        finally:
            if inspect.isasyncgen(items):
                await items.aclose()

    def _send_item(self, item: object, job: frames.Job) -> None:
        _check_size("a chunk", _size(getattr(item, "data", item)), job.max_size)
        chunk = chunk_of(item)
        if chunk is not None:
            self._send_chunk(job, chunk)

    def _send_chunk(self, job: frames.Job, chunk: Chunk) -> None:
        data, metadata = chunk
        size = sum(len(key.encode()) + len(text.encode()) for key, text in metadata.items())
        _check_size("a chunk", len(data) + size, job.max_size)
        report = frames.Report(chunk=frames.Chunk(data=data, metadata=metadata))
        with self._sending:
            if self._job is not job:
                raise ToolCancelled(f"the call {job.call_id} of this tool is over")
            self._send(report)

    def _send(self, report: frames.Report) -> None:
        """Lock held."""
        raw = report.SerializeToString()
        length = len(raw).to_bytes(LENGTH, "big")
        if len(raw) > JOINED:
            self._connection.sendall(length)
            self._connection.sendall(raw)
        else:
            self._connection.sendall(length + raw)


async def _wait_for(given: Awaitable[object]) -> object:
    return await given


def _arguments(job: frames.Job) -> dict[str, object]:
    """:raises InvalidRequest: one cannot be decoded."""
    arguments: dict[str, object] = {}
    for parameter in job.parameters:
        if parameter.HasField("binary") and not parameter.any:
            arguments[parameter.name] = parameter.binary
            continue
        try:
            arguments[parameter.name] = decode_argument(parameter.any, parameter.binary)
        except InvalidValue as error:
            raise InvalidRequest(
                f"tool {quote(job.tool)}, parameter {quote(parameter.name)}: {error.message}",
                field=f"parameters.{parameter.name}",
            ) from None
    return arguments


def _written(result: object, job: frames.Job) -> frames.Value:
    if isinstance(result, AsyncIterator | Iterator):
        raise _NoResult("TypeError", f"tool {job.tool!r} streams: call ExecuteStreamingTool")
    _check_size("the result", _size(result), job.max_size)
    try:
        any_, binary, _ = encode_result(result)
    except InvalidValue as error:
        raise _NoResult("InvalidResult", error.message) from None
    except RecursionError:
        what = "the result contains itself, or is nested too deeply"
        raise _NoResult("InvalidResult", what) from None
    _check_size("the result", len(any_) + len(binary), job.max_size)
    return frames.Value(any=any_, binary=binary)


def _size(result: object) -> int:
    """Bytes of what has its size at hand: it need not be written to be refused."""
    if isinstance(result, np.ndarray | memoryview):
        return result.nbytes
    return len(result) if isinstance(result, str | bytes | bytearray) else 0


def _check_size(what: str, size: int, limit: int) -> None:
    if size > limit:
        raise _NoResult(
            "ResultTooLarge", f"{what} has {size} bytes, more than the limit of {limit}"
        )


if __name__ == "__main__":
    main()
