"""Running tools: on the event loop, in threads, or in processes of their own.

::

    async def  ─▶ the event loop
    def        ─▶ a thread of the pool            (``thread_sensitive``: always the same one)
    isolation  ─▶ a worker process                (``processes``)

What a tool raises, ``SystemExit`` too, becomes a ``Failure`` where it is raised, so that it stops
nothing but its call. Each call is a task of its own, so that whoever waits can leave at once.
Cancelling it cancels what runs on the event loop and kills a worker process. A thread cannot be
stopped: it is told by ``ToolCancelled`` when it next uses its session or its stream, and keeps its
place in the pool until it ends, as does an async tool that will not be cancelled.

Knows nothing of logs: who records what runs is ``tool_methods``.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from snakepit_bridge.errors import InvalidValue
from snakepit_bridge.events.model import Value
from snakepit_bridge.off_loop import off_loop
from snakepit_bridge.tool_values import encode_result
from snakepit_bridge.tools.adapters import Adapter
from snakepit_bridge.tools.chunks import Chunk, chunk_of, refusal
from snakepit_bridge.tools.context import CurrentSession, current
from snakepit_bridge.tools.definition import Kind, ToolDefinition
from snakepit_bridge.tools.failures import Failure, failure_of
from snakepit_bridge.tools.pipe import Pipe
from snakepit_bridge.tools.processes import Job, Processes, WorkerDied

__all__ = ["Invocation", "Result", "ResultTooLarge", "Runner", "ToolExited"]

logger = logging.getLogger(__name__)

Send = Callable[[Chunk], Awaitable[None]]

INLINE_PARTS = 200
"""Of a result that is written on the event loop, in about 20 us; more go to a thread."""

INLINE_BYTES = 16 * 1024

SWITCH_INTERVAL = 0.000_5
"""Seconds after which a thread that computes gives way, while tools run in threads. With Python's
own 5 ms eight such tools make a SetVariable take ten times as long."""

Caught = tuple[Any, Failure | None]
"""What some code of a tool gave, or why it gave nothing."""


class Invocation(NamedTuple):
    """What is to be run, and for whom."""

    definition: ToolDefinition
    name: str
    """As the client calls it."""
    arguments: Mapping[str, Any]
    """As ``definition.convert`` gives them."""
    session: Callable[[], Any]
    """Gives the call's session; asked for only where the tool wants it."""
    job: Callable[[], Job]
    """Gives the same call for a worker process."""
    send: Send | None = None
    """Where chunks go; ``None`` = the client wants one result."""
    pipe: Pipe | None = None
    """The way there from a thread, with ``send``."""
    thread_sensitive: bool = False
    """Whether the client asks for the one thread."""


class Result(NamedTuple):
    """How a call ended."""

    value: Value | None = None
    """``None`` for a stream."""
    failure: Failure | None = None


class Runner:
    """Belongs to one event loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        processes: Processes,
        *,
        threads: int,
        max_size: int,
    ) -> None:
        """Make the pool.

        :param threads: blocking tools that run at a time.
        :param max_size: bytes of a result or a chunk.
        """
        self._loop = loop
        self._processes = processes
        self._max_size = max_size
        self._pool = _Pool(threads, "tool")
        self._one = _Pool(1, "sensitive-tool")
        self._turns: dict[object, asyncio.Lock] = {}
        """Of what runs one call at a time."""
        self._shared: dict[type, asyncio.Task[Caught]] = {}
        """The initialising of adapters whose one instance serves all calls."""
        self._threads = 0
        """That run a tool now."""
        self._interval = sys.getswitchinterval()
        self._running: set[asyncio.Task[Result]] = set()
        """Whether or not somebody still waits for them."""
        loop.set_task_factory(_contained)

    def run(self, invocation: Invocation) -> asyncio.Task[Result]:
        """Begin to run a tool."""
        task = self._loop.create_task(self._run(invocation))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def _run(self, invocation: Invocation) -> Result:
        definition = invocation.definition
        if definition.isolation:
            return await self._isolated(invocation)
        current.set(invocation.session)
        if definition.serial_key is None:
            return await self._prepare(invocation, _Turn(None))
        lock = self._turns.setdefault(definition.serial_key, asyncio.Lock())
        await lock.acquire()
        turn = _Turn(lock)
        try:
            return await self._prepare(invocation, turn)
        finally:
            turn.leave()

    async def close(self) -> None:
        """Kill the worker processes; what else still runs is not waited for."""
        await self._processes.close()
        for task in self._shared.values():
            task.cancel()
        self._pool.threads.shutdown(wait=False)
        self._one.threads.shutdown(wait=False)

    async def _isolated(self, invocation: Invocation) -> Result:
        send = invocation.send

        async def on_chunk(data: bytes, metadata: Mapping[str, str]) -> None:
            if send is not None:
                await send(Chunk(data, metadata))

        try:
            done = await self._processes.run(
                invocation.job(), on_chunk if send is not None else None
            )
        except WorkerDied as died:
            return Result(failure=Failure("WorkerDied", str(died), ""))
        return Result(done.value, done.failure)

    async def _prepare(self, invocation: Invocation, turn: _Turn) -> Result:
        definition = invocation.definition
        adapter = definition.adapter
        arguments = invocation.arguments
        if definition.context_parameter:
            arguments = {**arguments, definition.context_parameter: invocation.session()}
        if adapter is None:
            return await self._call(invocation, partial(definition.function, **arguments), turn)
        instance, failure = await self._instance(invocation, adapter, turn)
        if failure is not None:
            return Result(failure=failure)
        if definition.dispatched:
            call = partial(
                instance.execute_tool,
                tool_name=invocation.name,
                arguments=dict(arguments),
                context=invocation.session(),
            )
        else:
            call = partial(definition.function, instance, **arguments)
        try:
            return await self._call(invocation, call, turn)
        finally:
            if adapter.shared:
                pass
            elif turn.busy:
                # The call was left, and the instance is still in use by the tool's thread.
                turn.at_the_end(lambda: self._later(self._clean_up(invocation, instance)))
            else:
                await self._clean_up(invocation, instance)

    async def _clean_up(self, invocation: Invocation, instance: object) -> Result:
        _, failure = await self._step(invocation, instance, "cleanup", _Turn(None))
        if failure is not None:
            # The result is there: that tidying up failed does not take it back.
            logger.warning("cleanup for %s failed: %s", invocation.name, failure.type)
        return Result(failure=failure)

    def _later(self, work: Coroutine[Any, Any, Result]) -> None:
        task = self._loop.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _instance(self, invocation: Invocation, adapter: Adapter, turn: _Turn) -> Caught:
        """An adapter that is ready to run the tool."""
        if adapter.shared:
            instance = adapter.instance()
            ready = self._shared.get(adapter.cls)
            if ready is None:
                ready = self._loop.create_task(self._prepared(invocation, instance))
                self._shared[adapter.cls] = ready
            _, failure = await asyncio.shield(ready)
            if failure is not None and self._shared.get(adapter.cls) is ready:
                del self._shared[adapter.cls]  # the next call tries again
            return instance, failure
        instance, failure = await self._in_thread(invocation, adapter.instance, turn)
        if failure is None:
            failure = await self._begun(invocation, instance, invocation.session(), turn)
        return instance, failure

    async def _prepared(self, invocation: Invocation, instance: object) -> Caught:
        return None, await self._begun(invocation, instance, CurrentSession(), _Turn(None))

    async def _begun(
        self, invocation: Invocation, instance: object, session: object, turn: _Turn
    ) -> Failure | None:
        _, failure = await self._step(invocation, instance, "set_session_context", turn, session)
        if failure is None:
            _, failure = await self._step(invocation, instance, "initialize", turn)
        return failure

    async def _step(
        self, invocation: Invocation, instance: object, name: str, turn: _Turn, *given: object
    ) -> Caught:
        """Run a step of an adapter's life, plain or async, if it has it."""
        method = getattr(instance, name, None)
        if method is None:
            return None, None
        call = partial(method, *given)
        if inspect.iscoroutinefunction(method):
            return await _caught_awaiting(call)
        result, failure = await self._in_thread(invocation, call, turn)
        if failure is None and inspect.isawaitable(result):
            return await _caught_awaiting(lambda: result)
        return result, failure

    async def _call(self, invocation: Invocation, call: partial[Any], turn: _Turn) -> Result:
        kind = invocation.definition.kind
        if kind is Kind.PLAIN and inspect.iscoroutinefunction(call.func):
            kind = Kind.ASYNC  # an adapter's own execute_tool
        if kind is Kind.PLAIN:
            result, failure = await self._in_thread(
                invocation, partial(self._worked, invocation, call), turn, streaming=True
            )
        elif kind is Kind.ASYNC:
            result, failure = await _caught_awaiting(call)
        else:
            result, failure = _caught(call)  # which makes the generator and runs nothing of it
        if failure is None and inspect.isawaitable(result):
            awaited = result
            result, failure = await _caught_awaiting(lambda: awaited)
        if failure is not None:
            return Result(failure=failure)
        if isinstance(result, Result):
            return result
        if _is_stream(result):
            return await self._streamed(invocation, result, turn)
        return await self._given(invocation, result)

    def _worked(self, invocation: Invocation, call: Callable[[], Any]) -> Any:  # noqa: ANN401
        """Call a blocking tool and write its result, both on the tool's thread."""
        result = call()
        if inspect.isawaitable(result) or _is_stream(result):
            return result
        if invocation.pipe is None:
            return self._written(result)
        self._put(invocation.pipe, result)
        return Result()

    async def _given(self, invocation: Invocation, result: object) -> Result:
        """Write the result of a tool that ran on the event loop."""
        if invocation.send is not None:
            chunk, failure = _caught(partial(self._chunk, result))
            if chunk is not None:
                await invocation.send(chunk)
            return Result(failure=failure)
        small, failure = _caught(partial(_is_small, result))
        if failure is None:
            write = partial(_caught, partial(self._written, result))
            written, failure = write() if small else await off_loop(write)
        return Result(failure=failure) if failure is not None else written

    def _written(self, result: object) -> Result:
        size = _size(result)
        try:
            value = encode_result(result) if size <= self._max_size else None
        except InvalidValue as error:
            return Result(failure=Failure("InvalidResult", refusal("result", result, error), ""))
        except RecursionError:
            what = "the result contains itself, or is nested too deeply"
            return Result(failure=Failure("InvalidResult", what, ""))
        if value is not None:
            size = len(value.any) + len(value.binary)
        if value is None or size > self._max_size:
            what = f"the result has {size} bytes, more than the limit of {self._max_size}"
            return Result(failure=Failure("ResultTooLarge", what, ""))
        return Result(value)

    async def _streamed(
        self,
        invocation: Invocation,
        stream: Any,  # noqa: ANN401 - an iterator, plain or async
        turn: _Turn,
    ) -> Result:
        send, pipe = invocation.send, invocation.pipe
        if send is None or pipe is None:
            await _closed(stream)
            what = f"tool {invocation.name!r} streams: call ExecuteStreamingTool"
            return Result(failure=Failure("TypeError", what, ""))
        if isinstance(stream, AsyncIterator):
            return await self._streamed_here(stream, send)

        def work() -> None:
            try:
                for item in stream:
                    self._put(pipe, item)
            finally:
                if inspect.isgenerator(stream):
                    stream.close()

        _, failure = await self._in_thread(invocation, work, turn, streaming=True)
        return Result(failure=failure)

    async def _streamed_here(self, stream: AsyncIterator[Any], send: Send) -> Result:
        try:
            while True:
                try:
                    chunk = self._chunk(await anext(stream))
                except StopAsyncIteration:
                    return Result()
                except asyncio.CancelledError as error:
                    if _is_cancelled():
                        raise
                    return Result(failure=failure_of(error))
                except BaseException as error:  # noqa: BLE001 - whatever the tool raises
                    return Result(failure=failure_of(error))
                if chunk is not None:
                    await send(chunk)
        finally:
            await _closed(stream)

    def _busy(self, more: int) -> None:
        """Have threads give way sooner while some of them run tools."""
        before, self._threads = self._threads, self._threads + more
        if not before:
            self._interval = sys.getswitchinterval()
            sys.setswitchinterval(SWITCH_INTERVAL)
        elif not self._threads:
            sys.setswitchinterval(self._interval)

    def _put(self, pipe: Pipe, item: object) -> None:
        chunk = self._chunk(item)
        if chunk is not None:
            pipe.put(chunk)

    def _chunk(self, item: object) -> Chunk | None:
        chunk = chunk_of(item)
        if chunk is not None and len(chunk.data) > self._max_size:
            raise ResultTooLarge(
                f"a chunk has {len(chunk.data)} bytes, more than the limit of {self._max_size}"
            )
        return chunk

    async def _in_thread(
        self,
        invocation: Invocation,
        work: Callable[[], Any],
        turn: _Turn,
        *,
        streaming: bool = False,
    ) -> Caught:
        """Run blocking code of a tool in a thread.

        :param streaming: send what it puts into the pipe meanwhile.
        """
        pipe = invocation.pipe if streaming else None
        sensitive = invocation.thread_sensitive or invocation.definition.thread_sensitive
        pool = self._one if sensitive else self._pool
        # Nothing waits in the pool itself, where it would stay if its call is left.
        await pool.free.acquire()
        answer: asyncio.Future[Caught] = self._loop.create_future()
        if pipe is not None:
            pipe.open()
        future = pool.threads.submit(contextvars.copy_context().run, _caught, work)
        turn.stay()
        self._busy(1)

        def ended(future: Future[Caught]) -> None:
            # The loop is gone where the bridge stops while the tool still runs.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(arrived, future)

        def arrived(future: Future[Caught]) -> None:
            self._busy(-1)
            pool.free.release()
            turn.leave()
            if pipe is not None:
                pipe.end()
            if answer.done():
                return
            error = future.exception()
            answer.set_result((None, failure_of(error)) if error else future.result())

        future.add_done_callback(ended)
        try:
            if pipe is not None and invocation.send is not None:
                while chunks := await pipe.take():
                    for chunk in chunks:
                        await invocation.send(chunk)
            return await answer
        finally:
            if pipe is not None:
                pipe.close()


class ResultTooLarge(Exception):
    """A chunk is larger than results may be."""


class _Pool:
    """Threads, and how many of them are free."""

    def __init__(self, threads: int, name: str) -> None:
        self.threads = ThreadPoolExecutor(threads, name)
        self.free = asyncio.Semaphore(threads)


class _Turn:
    """The right to run of what runs one call at a time.

    It ends when the call was left and none of its threads runs any more.
    """

    __slots__ = ("_holders", "_last", "_lock")

    def __init__(self, lock: asyncio.Lock | None) -> None:
        """:param lock: held; ``None`` where everybody may run at any time."""
        self._lock = lock
        self._holders = 1
        self._last: Callable[[], None] | None = None

    @property
    def busy(self) -> bool:
        """Whether a thread still runs for a call that is about to leave."""
        return self._holders > 1

    def stay(self) -> None:
        self._holders += 1

    def at_the_end(self, call: Callable[[], None]) -> None:
        """Have something done when the last one leaves."""
        self._last = call

    def leave(self) -> None:
        self._holders -= 1
        if self._holders:
            return
        if self._last is not None:
            self._last()
        if self._lock is not None:
            self._lock.release()


def _caught(call: Callable[[], Any]) -> Caught:
    try:
        return call(), None
    except BaseException as error:  # noqa: BLE001 - SystemExit must not end the bridge, for one
        return None, failure_of(error)


async def _caught_awaiting(call: Callable[[], Awaitable[Any]]) -> Caught:
    try:
        return await call(), None
    except asyncio.CancelledError as error:
        if _is_cancelled():
            raise
        return None, failure_of(error)  # the tool's own doing
    except ToolExited as error:
        return None, failure_of(error.__cause__ or error)
    except BaseException as error:  # noqa: BLE001 - as above
        return None, failure_of(error)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _contained(
    loop: asyncio.AbstractEventLoop,
    work: Any,  # noqa: ANN401 - a coroutine, as typeshed writes it in a way of its own
    **options: Any,  # noqa: ANN401 - for the task
) -> asyncio.Task[Any]:
    """Make a task; one that a tool starts cannot end the bridge by ``SystemExit``."""
    if current.get() is not None:
        work = _without_exit(work)
    return asyncio.Task(work, loop=loop, **options)


async def _without_exit(work: Coroutine[Any, Any, Any]) -> Any:  # noqa: ANN401 - as of the work
    try:
        return await work
    except (SystemExit, KeyboardInterrupt) as error:
        raise ToolExited(f"a task of the tool raised {failure_of(error).type}") from error


class ToolExited(Exception):
    """A task that a tool started raised what would end the process."""


async def _closed(stream: object) -> None:
    """Close what will not be read on."""
    try:
        if inspect.isasyncgen(stream):
            await stream.aclose()
        elif inspect.isgenerator(stream) or isinstance(stream, Coroutine):
            stream.close()
    except Exception as error:  # noqa: BLE001 - the tool's code; nobody waits for it any more
        logger.warning("a tool's stream could not be closed: %s", type(error).__name__)


def _is_stream(result: object) -> bool:
    return isinstance(result, Iterator | AsyncIterator)


def _is_small(result: object) -> bool:
    """Whether a result is written in microseconds."""
    left = [result]
    for _ in range(INLINE_PARTS):
        if not left:
            return True
        part = left.pop()
        if _size(part) > INLINE_BYTES:
            return False
        if isinstance(part, list | tuple | dict):
            if len(part) > INLINE_PARTS:
                return False
            left.extend(part.values() if isinstance(part, dict) else part)
    return not left


def _size(result: object) -> int:
    """Bytes of what has its size at hand."""
    if isinstance(result, str | bytes | bytearray):
        return len(result)
    if isinstance(result, np.ndarray | memoryview):
        return result.nbytes
    return 0
