"""Processes that tools run in which may crash, hang or hog their interpreter.

::

    run ─▶ a turn, first come first served ─▶ an idle process, or a new one ─▶ frames ─▶ Done
                                                        │
              cancelled, or a chunk that nobody takes ──┴─▶ SIGKILL; a new one when next needed

A process serves one job at a time and is kept for the next one. What it runs is ``worker``; what
they say to each other is in ``tool_worker.proto``. All of this belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from google.protobuf.message import DecodeError

from snakepit_bridge import tool_worker_pb2 as frames
from snakepit_bridge.errors import InvalidRequest, Unavailable
from snakepit_bridge.events.model import Value, make_value
from snakepit_bridge.off_loop import off_loop
from snakepit_bridge.telemetry.logs import format_in_use
from snakepit_bridge.tools.failures import Failure

__all__ = ["Done", "Job", "OnChunk", "Processes", "Statistics", "WorkerDied"]

T = TypeVar("T")

LENGTH = 4
"""Bytes before each frame."""

MARGIN = 256 * 1024
"""Bytes that a frame may have beside a value: a failure has 30 KiB at most."""

LARGE = 64 * 1024
"""Bytes from which reading a frame takes longer than handing it to another thread."""

EXIT = 5.0
"""Seconds until a process that has closed its connection has to be gone."""

_BOOT = """\
import sys
sys.path[:] = sys.argv[5:]
from snakepit_bridge.tools import worker
worker.main()
"""
"""What ``python -m snakepit_bridge.tools.worker`` is, where this process's own path is used: a
launcher may have changed it, and a package of our name may lie on the one that Python makes."""

OnChunk = Callable[[bytes, Mapping[str, str]], Awaitable[None]]
"""Takes the data of a chunk and its metadata."""


class Job(NamedTuple):
    """One call of one tool."""

    call_id: str
    session_id: str
    log_epoch: str
    """Of the session's log; empty = whichever is current."""
    tool: str
    source: str
    """What the worker loads it from: "module" or "module.Class"."""
    parameters: tuple[tuple[str, bytes, bytes | None], ...]
    """Each with its name, a serialized ``google.protobuf.Any``, and the bytes that stand beside
    that. Without an ``Any`` the bytes are the argument."""
    metadata: Mapping[str, str]
    """Of the request."""
    traceparent: str
    tracestate: str
    correlation_id: str
    streaming: bool
    """Whether chunks are wanted, not a result."""
    deadline_unix_nanos: int
    """What the tool is told; whoever runs it cancels it then. 0 = none."""


class Done(NamedTuple):
    """How a job ended: with a value, a failure, or as a stream without either."""

    value: Value | None
    failure: Failure | None


class WorkerDied(Exception):
    """The process ended before its job did; the message says how."""


class Statistics(NamedTuple):
    """Figures of this moment, and since the start."""

    running: int
    """Jobs that have a process."""
    waiting: int
    """Jobs that wait for one."""
    processes: int
    """That live, idle ones among them."""
    started: int
    died: int
    """Of themselves, not killed by us."""


class Processes:
    """Runs jobs in processes, so many at a time.

    *Order*: jobs begin in the order of their calls. *Loss*: none is run twice; one whose process
    dies is not run again. *Bound*: of each job one chunk and what a socket holds are in memory.
    """

    def __init__(
        self, size: int, port: Callable[[], int], *, max_size: int, token: str = ""
    ) -> None:
        """Prepare; processes start when they are needed first.

        :param size: processes at most.
        :param port: gives where the bridge listens on 127.0.0.1, once it does.
        :param max_size: bytes of a result, and of a chunk.
        :param token: that the bridge wants of each call; empty = none.
        """
        if size < 1:
            raise ValueError(f"{size} processes run nothing: give 1 or more")
        self._port = port
        self._max_size = max_size
        self._token = token
        self._turns = asyncio.Semaphore(size)
        self._idle: list[_Process] = []
        """The one that was used last comes last, and is used next: its memory is warm."""
        self._living: set[_Process] = set()
        self._running = self._waiting = self._started = self._died = 0
        self._closed = False

    def statistics(self) -> Statistics:
        """Figures of this moment."""
        return Statistics(
            self._running, self._waiting, len(self._living), self._started, self._died
        )

    async def run(self, job: Job, on_chunk: OnChunk | None) -> Done:
        """Run a job, when its turn has come.

        Cancelling this kills the process at once and waits for nothing.

        :param on_chunk: awaited for each chunk before the next one is read, so that whoever is
            slow slows down the tool. What it raises ends the job in the same way.
        :raises InvalidRequest: the arguments do not fit the tool; it was not called.
        :raises WorkerDied: the process died, or could not be started.
        :raises Unavailable: this was closed before the job began.
        """
        self._waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self._waiting -= 1
        self._running += 1
        try:
            message = _message(job, self._port(), self._max_size, self._token)
            process = self._take()
            try:
                done = await process.run(message, on_chunk)
            except BaseException:
                process.kill()
                raise
            self._give_back(process)
        finally:
            self._running -= 1
            self._turns.release()
        if isinstance(done, InvalidRequest):
            raise done
        return done

    async def close(self) -> None:
        """Kill all processes and wait until they are gone. Idempotent.

        What runs ends with ``WorkerDied``, what waits with ``Unavailable``.
        """
        self._closed = True
        self._idle.clear()
        living = list(self._living)
        for process in living:
            process.kill()
        if living:
            await asyncio.wait([process.life for process in living])

    def _take(self) -> _Process:
        if self._closed:
            raise Unavailable("the bridge is shutting down: retry with another one")
        if self._idle:
            return self._idle.pop()
        process = _Process(self._max_size + MARGIN)
        self._started += 1
        self._living.add(process)
        process.life.add_done_callback(lambda _: self._forget(process))
        return process

    def _give_back(self, process: _Process) -> None:
        if self._closed or process.life.done():
            process.kill()
        else:
            self._idle.append(process)

    def _forget(self, process: _Process) -> None:
        self._living.discard(process)
        if not process.killed:
            self._died += 1
        if process in self._idle:
            self._idle.remove(process)
            process.kill()


class _Process:
    """One process, from its start to its end."""

    def __init__(self, max_frame: int) -> None:
        """Start it.

        :param max_frame: bytes that one of its frames may have.
        """
        self._max_frame = max_frame
        self._process: subprocess.Popen[bytes] | None = None
        self._connected: asyncio.Future[_Connection | None] = (
            asyncio.get_running_loop().create_future()
        )
        self.killed = False
        self.life: asyncio.Task[str] = asyncio.create_task(self._live())
        """Done when the process is gone; gives how that came, for a message."""

    async def _live(self) -> str:
        try:
            return await self._start_and_end()
        finally:
            if not self._connected.done():
                self._connected.set_result(None)

    async def _start_and_end(self) -> str:
        if self.killed:
            return "was not started"
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = _start(theirs.fileno())
            ours.settimeout(0)
            reader, writer = await asyncio.open_unix_connection(sock=ours)
        except OSError as error:
            ours.close()
            return f"could not be started: {error}"
        connection = _Connection(reader, writer)
        self._connected.set_result(connection)
        if self.killed:
            connection.abort()
        await _exit_of(self._process)
        # A process that it started may hold on to its end of the pair. So this end is closed for
        # reading: what was sent before is still read, then comes the end.
        with suppress(OSError):  # it is closed already, which is as well
            ours.shutdown(socket.SHUT_RD)
        return _described(self._process.wait())

    async def run(self, message: frames.Job, on_chunk: OnChunk | None) -> Done | InvalidRequest:
        """Run a job; see ``Processes.run``. The refusal is given, not raised: all is well here."""
        connection = await asyncio.shield(self._connected)
        if connection is None:
            raise await self._death()
        await self._heard(connection.send(message))
        while True:
            report = await self._heard(connection.receive(self._max_frame))
            match report.WhichOneof("report"):
                case "chunk" if on_chunk is not None:
                    await on_chunk(report.chunk.data, dict(report.chunk.metadata))
                case "done":
                    return await _done(report.done)
                case kind:
                    raise WorkerDied(f"the tool's process sent a {kind} that nobody asked for")

    async def _heard(self, exchange: Awaitable[T]) -> T:
        """:raises WorkerDied: nobody is on the other side, or what comes is no frame."""
        try:
            return await exchange
        except _Garbled as error:
            raise WorkerDied(f"the tool's process broke its connection: it sent {error}") from None
        except (asyncio.IncompleteReadError, ConnectionError):
            raise await self._death() from None

    async def _death(self) -> WorkerDied:
        try:
            async with asyncio.timeout(EXIT):
                how = await asyncio.shield(self.life)
        except TimeoutError:
            how = "closed its connection to the bridge"
        if self.killed:
            how = "was ended, because the bridge is shutting down"
        return WorkerDied(f"the tool's process {how}")

    def kill(self) -> None:
        """End it at once; nothing more is read from it."""
        self.killed = True
        if self._process is not None:
            self._process.kill()  # nothing happens to one that was waited for
        if self._connected.done() and (connection := self._connected.result()) is not None:
            connection.abort()


class _Garbled(Exception):
    """What came is not what a worker sends; the message says what it is."""


class _Connection(NamedTuple):
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, message: frames.Job) -> None:
        raw = await _off_loop(message.ByteSize(), message.SerializeToString)
        self.writer.write(len(raw).to_bytes(LENGTH, "big"))
        self.writer.write(raw)
        await self.writer.drain()

    async def receive(self, max_frame: int) -> frames.Report:
        size = int.from_bytes(await self.reader.readexactly(LENGTH), "big")
        if size > max_frame:
            raise _Garbled(f"a frame of {size} bytes, more than {max_frame}")
        raw = await self.reader.readexactly(size)
        try:
            return await _off_loop(size, lambda: frames.Report.FromString(raw))
        except DecodeError:
            raise _Garbled(f"a frame of {size} bytes that cannot be parsed") from None

    def abort(self) -> None:
        self.writer.transport.abort()


async def _off_loop(size: int, work: Callable[[], T]) -> T:
    """Do something with ``size`` bytes without keeping the loop from others."""
    return await off_loop(work) if size > LARGE else work()


def _message(job: Job, port: int, max_size: int, token: str) -> frames.Job:
    return frames.Job(
        call_id=job.call_id,
        session_id=job.session_id,
        log_epoch=job.log_epoch,
        tool=job.tool,
        source=job.source,
        parameters=[
            frames.Parameter(name=name, any=any_, binary=binary)
            for name, any_, binary in job.parameters
        ],
        metadata=job.metadata,
        traceparent=job.traceparent,
        tracestate=job.tracestate,
        correlation_id=job.correlation_id,
        streaming=job.streaming,
        deadline_unix_nanos=job.deadline_unix_nanos,
        port=port,
        max_size=max_size,
        token=token,
    )


async def _done(done: frames.Done) -> Done | InvalidRequest:
    match done.WhichOneof("outcome"):
        case "value":
            any_, binary = done.value.any, done.value.binary
            # Its digest is made here: the log relies on it.
            value = await _off_loop(len(any_) + len(binary), lambda: make_value(any_, binary))
            return Done(value, None)
        case "failure":
            failure = done.failure
            return Done(None, Failure(failure.type, failure.message, failure.traceback))
        case "refusal":
            return InvalidRequest(done.refusal.message, field=done.refusal.field)
    return Done(None, None)


def _start(connection: int) -> subprocess.Popen[bytes]:
    """Start a worker with its end of the connection.

    Not by the event loop: uvloop runs Python code between fork and exec, where with the threads of
    gRPC one process in fifty crashes. This uses vfork on Linux, which copies no memory either.
    """
    return subprocess.Popen(  # noqa: S603 - this interpreter and code of ours
        (
            *(sys.executable, "-P", "-c", _BOOT),
            *(str(connection), str(os.getpid()), str(logging.root.level), format_in_use()),
            *(entry or str(Path.cwd()) for entry in sys.path if isinstance(entry, str)),
        ),
        stdin=subprocess.DEVNULL,
        stdout=2,
        pass_fds=(connection,),
    )


async def _exit_of(process: subprocess.Popen[bytes]) -> None:
    """Wait until a process has ended; whether it did, and how, ``process.wait()`` tells then."""
    try:
        watched = os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # Linux has it since 5.3, others have not
        await off_loop(process.wait)
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    try:
        loop.add_reader(watched, ended.set)
        await ended.wait()
    finally:
        loop.remove_reader(watched)
        os.close(watched)


def _described(code: int) -> str:
    if code >= 0:
        return f"exited with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}"
