"""The methods of tools, without a transport: request bytes in, response bytes out.

``tool_calls`` is the way of one call. Whoever repeats a request id waits for the call that runs
here, or is given what the log says of how it ended: a tool never runs twice for one id.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import count

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge import tool_wire, wire
from snakepit_bridge.errors import (
    Cancelled,
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
from snakepit_bridge.tool_calls import Call, Calls
from snakepit_bridge.tool_wire import ToolAnswer, ToolRequest
from snakepit_bridge.tools.adapters import Toolbox
from snakepit_bridge.tools.chunks import Chunk
from snakepit_bridge.tools.definition import Kind, ToolDefinition
from snakepit_bridge.tools.failures import Failure
from snakepit_bridge.tools.runner import Send
from snakepit_bridge.wire_bytes import LARGE

__all__ = ["ToolStream", "Tools"]

logger = logging.getLogger(__name__)

SendBytes = Callable[[bytes], Awaitable[None]]
ToolStream = Callable[[wire.Call, SendBytes], Awaitable[None]]
"""A method that gets a request and what sends an answer."""

MAX_ANNOUNCED = 100_000
"""Sessions of which it is remembered that Elixir was told of our tools: as many as may live."""

_STREAMS = (Kind.GENERATOR, Kind.ASYNC_GENERATOR)


class _Shared:
    """A call that may have several callers: it goes on as long as one of them waits."""

    __slots__ = ("task", "waiting")

    def __init__(self, task: asyncio.Task[ToolAnswer]) -> None:
        self.task = task
        self.waiting = 0

    async def wait(self) -> ToolAnswer:
        self.waiting += 1
        try:
            return await asyncio.shield(self.task)
        finally:
            self.waiting -= 1
            if not self.waiting:
                self.task.cancel()


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
        request = await self._read(call)
        definition = self._definition(request, streaming=False)
        one = self._call(definition, request, call, None)
        answer = await (one.run() if not request.envelope.request_id else self._once(one))
        value = answer.value
        if value is not None and len(value.any) + len(value.binary) > LARGE:
            return await asyncio.to_thread(tool_wire.executed, answer, request)
        return tool_wire.executed(answer, request)

    async def execute_streaming_tool(self, call: wire.Call, send: SendBytes) -> None:
        request = await self._read(call)
        definition = self._definition(request, streaming=True)
        numbers = count(1)

        async def send_chunk(chunk: Chunk) -> None:
            await send(tool_wire.chunk(request.tool, next(numbers), *chunk))

        one = self._call(definition, request, call, send_chunk)
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

    def session_ended(self, session_id: str, force: bool) -> None:  # noqa: FBT001 - as called
        """Forget a session that was cleaned up; with ``force`` leave its calls, too."""
        self._announced.pop(session_id, None)
        if force:
            why = Cancelled(f"session {quote(session_id)} was cleaned up by force")
            self._calls.leave(why, session_id)

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

    async def _read(self, call: wire.Call) -> ToolRequest:
        size = len(call.raw)
        if size <= LARGE:
            return tool_wire.read_tool_request(call)
        gate = self._calls.gate
        gate.claim(size)
        try:
            return await asyncio.to_thread(tool_wire.read_tool_request, call)
        finally:
            gate.release(size)

    def _definition(self, request: ToolRequest, *, streaming: bool) -> ToolDefinition:
        try:
            definition = self._toolbox.find(request.tool)
        except ToolNotFound:
            log = self._services.committer.peek(request.envelope.session_id)
            tool = log.committed.tools.get(request.tool) if log is not None else None
            if tool is None:
                raise
            why = f"worker {quote(tool.worker_id)} registered it, and this bridge cannot run it"
            raise ToolNotFound(request.tool, why=why) from None
        if not streaming and definition.kind in _STREAMS:
            raise InvalidRequest(
                f"tool {quote(request.tool)} streams: call ExecuteStreamingTool", field="tool_name"
            )
        return definition

    def _call(
        self, definition: ToolDefinition, request: ToolRequest, call: wire.Call, send: Send | None
    ) -> Call:
        if len(self._calls.running) >= self._max_calls:
            raise ResourceExhausted(
                f"{self._max_calls} calls of tools run or wait here already: slow down and retry, "
                "or start the bridge with a larger --max-tool-calls"
            )
        self._announce(request.envelope.session_id)
        return Call(self._calls, definition, request, call.remaining(), send)

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

    async def _once(self, one: Call) -> ToolAnswer:
        """Run a call whose request has an id, unless that has run."""
        about = one.request.envelope
        key = (about.session_id, about.request_id)
        outcome = await one.start()
        if not outcome.answer.duplicate:
            shared = self._shared[key] = _Shared(self._services.loop.create_task(one.go_on()))
            shared.task.add_done_callback(lambda task: self._ended(key, one, task))
            return await shared.wait()
        if outcome.answer.finished is not None:
            return _remembered(outcome.answer.finished, outcome.log_epoch, about.request_id)
        running = self._shared.get(key)
        if running is None:
            raise FailedPrecondition(
                f"request_id {quote(about.request_id)} started this tool at offset "
                f"{outcome.answer.offset}, and how it ended is not known: a tool does not run "
                "twice for one id",
                field="request_id",
            )
        return (await running.wait())._replace(duplicate=True)

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
