"""The methods of tools, without a transport: request bytes in, response bytes out.

``tool_calls`` is the way of one call. Whoever repeats a request id waits for the call that runs
here, or is given what the log says of how it ended: a tool never runs twice for one id.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from itertools import count

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge import tool_wire, wire
from snakepit_bridge.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    ResourceExhausted,
    ToolNotFound,
    ToolRaised,
    Unavailable,
    quote,
)
from snakepit_bridge.events.codec import is_absent
from snakepit_bridge.events.model import Transaction
from snakepit_bridge.metadata_checks import check_metadata
from snakepit_bridge.off_loop import off_loop
from snakepit_bridge.tool_calls import CLOSE_TO_DEADLINE, Call, Calls
from snakepit_bridge.tool_wire import ToolAnswer, ToolRequest
from snakepit_bridge.tools.adapters import Toolbox
from snakepit_bridge.tools.chunks import Chunk
from snakepit_bridge.tools.definition import Kind, ToolDefinition
from snakepit_bridge.tools.failures import Failure
from snakepit_bridge.wire_bytes import LARGE

__all__ = ["CallStream", "Tools"]

logger = logging.getLogger(__name__)

SendBytes = Callable[[bytes], Awaitable[None]]
CallStream = Callable[[wire.Call, SendBytes], Awaitable[None]]
"""A method that gets a call and what sends an answer."""

MAX_ANNOUNCED = 100_000
"""Sessions of which it is remembered that Elixir was told of our tools: as many as may live."""

_STREAMS = (Kind.GENERATOR, Kind.ASYNC_GENERATOR)


class _Shared:
    """A call that may have several callers: it goes on as long as one of them waits."""

    __slots__ = ("call", "left", "task", "waiting")

    def __init__(self, call: Call, task: asyncio.Task[ToolAnswer]) -> None:
        self.call = call
        self.task = task
        self.waiting = 0
        self.left = False
        """Whether nobody waited for a moment: it is cancelled, and nobody can join it."""

    async def wait(self, remaining: float | None) -> ToolAnswer:
        """Wait for its end.

        :param remaining: seconds until this caller stops waiting; ``None`` = never.
        """
        loop = asyncio.get_running_loop()
        end = math.inf if remaining is None else loop.time() + remaining
        self.waiting += 1
        try:
            async with asyncio.timeout_at(None if end > FURTHEST else end):
                return await asyncio.shield(self.task)
        except TimeoutError:
            raise DeadlineExceeded(
                f"tool {quote(self.call.request.tool)} took longer than the {remaining:.3g} s that "
                "were left"
            ) from None
        finally:
            self.waiting -= 1
            if not self.waiting:
                self.left = True
                self.call.late = loop.time() > end - CLOSE_TO_DEADLINE
                self.task.cancel()


FURTHEST = 1e10
"""What a loop's clock never shows: a deadline beyond it is none."""


class Tools:
    """Belongs to one event loop."""

    def __init__(self, toolbox: Toolbox, calls: Calls, *, max_calls: int) -> None:
        """Describe the tools.

        :param max_calls: that run or wait at a time.
        """
        self._toolbox = toolbox
        self._calls = calls
        self._services = calls.services
        self._max_calls = max_calls
        self._inside = 0
        self._shared: dict[tuple[str, str], _Shared] = {}
        """By session and request id."""
        self._announced: dict[str, None] = {}
        """Sessions that Elixir was told our tools of, oldest first."""
        self._background: set[asyncio.Task[bool]] = set()
        self.specs: Mapping[str, bytes] = {
            name: definition.spec().SerializeToString()
            for name, definition in toolbox.definitions.items()
        }
        """Serialized ``ToolSpec`` messages of the tools that run here, by name."""

    @property
    def sessions(self) -> Sequence[str]:
        """Sessions in which tools ran for Elixir, oldest first."""
        return list(self._announced)

    async def execute_tool(self, call: wire.Call) -> bytes:
        remaining = call.remaining
        with self._place(len(call.raw)):
            definition, request = await self._read(call, streaming=False)
            del call  # it may be large, and the tool may run for hours
            if request.envelope.request_id:
                # Each caller has a deadline of its own, the call itself has none.
                one = Call(self._calls, definition, request, None, None)
                answer = await self._once(one, remaining())
            else:
                one = Call(self._calls, definition, request, remaining(), None)
                answer = await one.run()
        value = answer.value
        if value is not None and len(value.any) + len(value.binary) > LARGE:
            return await off_loop(tool_wire.executed, answer, request)
        return tool_wire.executed(answer, request)

    async def execute_streaming_tool(self, call: wire.Call, send: SendBytes) -> None:
        remaining = call.remaining
        with self._place(len(call.raw)):
            definition, request = await self._read(call, streaming=True)
            del call  # as above
            await self._stream(definition, request, remaining(), send)

    async def _stream(
        self,
        definition: ToolDefinition,
        request: ToolRequest,
        remaining: float | None,
        send: SendBytes,
    ) -> None:
        numbers = count(1)

        async def send_chunk(chunk: Chunk) -> None:
            await send(tool_wire.chunk(request.tool, next(numbers), *chunk))

        one = Call(self._calls, definition, request, remaining, send_chunk)
        if request.envelope.request_id:
            outcome = await one.start()
            if outcome.answer.duplicate:
                raise FailedPrecondition(
                    f"request_id {quote(request.envelope.request_id)} ran this tool before, and "
                    "the chunks of a stream are not kept: a new run needs a new id",
                    field="request_id",
                )
            answer = await one.go_on()
        else:
            answer = await one.run()
        if answer.failure is not None:
            raise ToolRaised(request.tool, answer.failure.type, answer.failure.message)
        await send(tool_wire.last_chunk(request.tool, next(numbers)))

    async def get_exposed_elixir_tools(self, call: wire.Call) -> bytes:
        wire.parse(pb.GetExposedElixirToolsRequest, call.raw)
        if self._services.elixir is None:
            return pb.GetExposedElixirToolsResponse().SerializeToString()  # there are none
        return await self._forwarded("GetExposedElixirTools", call)

    async def execute_elixir_tool(self, call: wire.Call) -> bytes:
        request = wire.parse(pb.ExecuteElixirToolRequest, call.raw)
        if self._services.elixir is None:
            why = "there is no Elixir side, start the bridge with --elixir-address HOST:PORT"
            raise ToolNotFound(request.tool_name, why=why)
        return await self._forwarded("ExecuteElixirTool", call)

    def is_running(self, headers: wire.GrpcMetadata) -> bool:
        """Whether a request comes from a tool that runs, in a process of its own."""
        running = self._calls.running
        return self._calls.stopping is None and any(
            key == wire.TOOL_CALL_HEADER and value in running for key, value in headers
        )

    def ending(self, session_id: str) -> Callable[[bool], None]:
        """A client is about to end a session; gives what to call when that is done.

        It takes whether the calls that ran before are to be left.
        """
        running = self._calls.of_session(session_id)

        def ended(force: bool) -> None:  # noqa: FBT001 - the one thing that it is told
            self._announced.pop(session_id, None)
            if force:
                why = Cancelled(f"session {quote(session_id)} was cleaned up by force")
                now = self._calls.of_session(session_id)
                for call in {*running, *(call for call in now if call.is_closed)}:
                    call.leave(why)

        return ended

    async def stop(self) -> None:
        """Leave all calls, have the log told, and stop what runs for them."""
        for task in self._background:
            task.cancel()
        left = self._calls.stop(
            Unavailable("the bridge stopped while the tool ran: ask another one")
        )
        tasks = [call.task for call in left if call.task is not None]
        if tasks:
            logger.warning("%d calls of tools are interrupted", len(tasks))
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait(tasks)
        await self._calls.flush()
        self._calls.give_up()
        await self._calls.runner.close()

    @contextlib.contextmanager
    def _place(self, size: int) -> Iterator[None]:
        """Count a call, and the bytes of its request, as long as it lasts."""
        if self._inside >= self._max_calls:
            raise ResourceExhausted(
                f"{self._max_calls} calls of tools run or wait here already: slow down and retry, "
                "or start the bridge with a larger --max-tool-calls"
            )
        gate = self._calls.gate
        gate.claim(size)
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            gate.release(size)

    async def _read(
        self, call: wire.Call, *, streaming: bool
    ) -> tuple[ToolDefinition, ToolRequest]:
        def read() -> tuple[ToolDefinition, ToolRequest]:
            asked = tool_wire.read_asked(call)
            definition = self._definition(asked.session_id, asked.tool_name, streaming=streaming)
            request = tool_wire.read_tool_request(call, asked, definition)
            if request.envelope.metadata or request.envelope.origin.correlation_id:
                check_metadata(request.envelope)  # the tool may run before the log does so
            return definition, request

        definition, request = read() if len(call.raw) <= LARGE else await off_loop(read)
        self._announce(request.envelope.session_id)
        return definition, request

    def _definition(self, session_id: str, name: str, *, streaming: bool) -> ToolDefinition:
        try:
            definition = self._toolbox.find(name)
        except ToolNotFound:
            log = self._services.committer.peek(session_id)
            tool = log.committed.tools.get(name) if log is not None else None
            if tool is None:
                raise
            why = f"worker {quote(tool.worker_id)} registered it, and this bridge cannot run it"
            raise ToolNotFound(name, why=why) from None
        if not streaming and definition.kind in _STREAMS:
            raise InvalidRequest(
                f"tool {quote(name)} streams: call ExecuteStreamingTool", field="tool_name"
            )
        return definition

    def _announce(self, session_id: str) -> None:
        """Tell Elixir of our tools, once a session, as Snakepit's own worker does."""
        elixir = self._services.elixir
        if elixir is None or session_id in self._announced:
            return
        if len(self._announced) >= MAX_ANNOUNCED:
            del self._announced[next(iter(self._announced))]
        self._announced[session_id] = None
        tools = [definition.registration() for definition in self._toolbox.definitions.values()]
        worker = f"python-{self._services.committer.instance}"
        task = self._services.loop.create_task(elixir.announce(session_id, tools, worker))
        self._background.add(task)

        def told(task: asyncio.Task[bool]) -> None:
            self._background.discard(task)
            if not task.cancelled() and not task.result():
                self._announced.pop(session_id, None)  # the next call tries again

        task.add_done_callback(told)

    async def _once(self, one: Call, remaining: float | None) -> ToolAnswer:
        """Run a call whose request has an id, unless that has run."""
        about = one.request.envelope
        key = (about.session_id, about.request_id)
        outcome = await one.start()
        if not outcome.answer.duplicate:
            task = self._services.loop.create_task(one.go_on())
            shared = self._shared[key] = _Shared(one, task)
            shared.task.add_done_callback(lambda task: self._ended(key, one, task))
            return await shared.wait(remaining)
        if outcome.answer.finished is not None:
            return _remembered(outcome.answer.finished, outcome.log_epoch, about.request_id)
        running = self._shared.get(key)
        if running is None or running.left:
            raise FailedPrecondition(
                f"request_id {quote(about.request_id)} started this tool at offset "
                f"{outcome.answer.offset}, and how it ended is not known: a tool does not run "
                "twice for one id",
                field="request_id",
            )
        return (await running.wait(remaining))._replace(duplicate=True)

    def _ended(self, key: tuple[str, str], one: Call, task: asyncio.Task[ToolAnswer]) -> None:
        del self._shared[key]
        if task.cancelled():
            one.close_unless_run()  # a task that is cancelled at once runs nothing at all
        else:
            task.exception()  # whoever waited was told

    async def _forwarded(self, method: str, call: wire.Call) -> bytes:
        elixir = self._services.elixir
        if elixir is None:
            raise AssertionError("whoever forwards has looked")
        headers = [(key, text) for key, text in call.metadata if isinstance(text, str)]
        return await elixir.forward(method, call.raw, headers, call.remaining())


def _remembered(ended: Transaction, epoch: str, request_id: str) -> ToolAnswer:
    """How a call ended, from the log.

    :raises FailedPrecondition: without a result, or with one that is not kept.
    """
    _, body = ended.facts[-1]
    failure = value = None
    if body.outcome == "error":
        failure = Failure(body.error_type, body.error_message, body.error_traceback)
    elif body.outcome != "ok":
        raise FailedPrecondition(
            f"request_id {quote(request_id)} started this tool, which was {body.outcome} "
            f"({body.error_message}): a tool does not run twice for one id",
            field="request_id",
            outcome=body.outcome,
        )
    elif not body.value_digest or is_absent(ended.values[-1]):
        raise FailedPrecondition(
            f"request_id {quote(request_id)} ran this tool well, but its result is not kept",
            field="request_id",
            outcome=body.outcome,
        )
    else:
        value = ended.values[-1]
    return ToolAnswer(
        body.call_id, value, failure, body.duration_nanos, ended.last_offset, epoch, duplicate=True
    )
