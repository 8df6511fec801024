"""The session as a tool sees it: a ``SessionContext`` that says which call does what.

Every change carries ``source=tool:<name>``, the call's id, and the trace of the request that
started it. Once the call is over, ended or left, nothing more is done for it.

Where the sessions are those of a shared bridge (``serve --bridge``), it is a ``RemoteToolSession``
that asks this process over its own port, as isolated tools do: what is passed on to the shared
bridge, and what is not, is decided in one place (``forwarding``).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple, TypeVar

from snakepit_bridge import tool_worker_pb2 as frames
from snakepit_bridge.client.operations import Operation
from snakepit_bridge.elixir import Elixir
from snakepit_bridge.events.committer import Committer
from snakepit_bridge.events.loaded import LoadedLog
from snakepit_bridge.events.model import Envelope, Origin
from snakepit_bridge.events.tasks import CommandTask
from snakepit_bridge.observers import Dispatcher, OnChange, OnError
from snakepit_bridge.session_context import SessionContext
from snakepit_bridge.telemetry.tool_calls import ToolObservation
from snakepit_bridge.tools.chunks import Chunk, progress_chunk
from snakepit_bridge.tools.context import ToolCancelled
from snakepit_bridge.tools.pipe import Pipe
from snakepit_bridge.tools.remote_session import RemoteToolSession
from snakepit_bridge.tools.runner import Send

__all__ = ["CallState", "FarToolSession", "OwnPort", "ToolServices", "ToolSession"]

T = TypeVar("T")


class CallState:
    """One call that runs, as its session and whoever records it see it."""

    __slots__ = ("call_id", "hand_over", "handed_over", "name", "observation", "origin", "over")

    def __init__(
        self, call_id: str, name: str, observation: ToolObservation, hand_over: Callable[[], None]
    ) -> None:
        self.call_id = call_id
        self.name = name
        self.observation = observation
        self.origin = observation.origin
        """Of the request that started it, inside of this call's span."""
        self.over = False
        """Whether it has ended, or nobody waits for it any more."""
        self.hand_over = hand_over
        """Has its start on its way to the committer, before anything that it does."""
        self.handed_over = False

    @property
    def source(self) -> Origin:
        """Where what it does comes from."""
        return self.origin._replace(source=f"tool:{self.name}", tool_call_id=self.call_id)


class OwnPort(NamedTuple):
    """How this process is called, where its sessions are those of a shared bridge."""

    number: Callable[[], int]
    """Gives the port, once there is one."""
    token: str = ""
    """That is wanted of each call; empty = none."""


class ToolServices:
    """What all sessions of tools share."""

    __slots__ = ("committer", "dispatcher", "elixir", "loop", "loop_thread", "port")

    def __init__(
        self,
        committer: Committer,
        dispatcher: Dispatcher,
        elixir: Elixir | None,
        loop: asyncio.AbstractEventLoop,
        port: OwnPort | None = None,
    ) -> None:
        """Keep it.

        :param loop: the one that runs here.
        :param port: where the sessions are those of a shared bridge; else they are here.
        """
        self.committer = committer
        self.dispatcher = dispatcher
        self.elixir = elixir
        self.loop = loop
        self.loop_thread = threading.get_ident()
        self.port = port

    def session(  # noqa: PLR0913 - as of ``ToolSession``
        self,
        session_id: str,
        call: CallState,
        request_metadata: Mapping[str, str],
        *,
        send: Send | None,
        pipe: Pipe | None,
        deadline: int,
    ) -> ToolSession | FarToolSession:
        """The session that a call sees.

        :param deadline: of the call, in Unix nanoseconds; 0 = none.
        """
        if self.port is None:
            return ToolSession(session_id, self, call, request_metadata, send=send, pipe=pipe)
        job = frames.Job(
            call_id=call.call_id,
            session_id=session_id,
            tool=call.name,
            metadata=request_metadata,
            traceparent=call.origin.traceparent,
            tracestate=call.origin.tracestate,
            correlation_id=call.origin.correlation_id,
            deadline_unix_nanos=deadline,
            port=self.port.number(),
            token=self.port.token,
        )
        return FarToolSession(job, self, call, send=send, pipe=pipe)


class _OfCall:
    """What a session knows of the call that it was made for, wherever the session is."""

    _services: ToolServices
    _tool_call: CallState
    _send: Send | None
    _pipe: Pipe | None

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for this call any more, so that it may as well end."""
        return self._tool_call.over

    def check_cancelled(self) -> None:
        """:raises ToolCancelled: nobody waits for this call any more."""
        if self._tool_call.over:
            raise ToolCancelled(f"the call {self._tool_call.call_id} of this tool is over")

    def report_progress(self, done: float, total: float = 0, message: str = "") -> None:
        """Tell the client how far this is, as a chunk of its stream.

        Without effect where the client did not ask for a stream (ExecuteTool).

        :param total: what ``done`` will be at the end; 0 = unknown.
        :raises ToolCancelled: nobody reads the stream any more.
        """
        self.check_cancelled()
        if self._pipe is None:
            return
        if threading.get_ident() == self._services.loop_thread:
            raise RuntimeError(
                "report_progress would block the event loop it was called on: await "
                "report_progress_async instead"
            )
        chunk = progress_chunk(done, total, message)
        if self._pipe.is_open:
            self._pipe.put(chunk)
        elif self._send is not None:  # from a thread that an async tool has begun
            asyncio.run_coroutine_threadsafe(self._sent(chunk), self._services.loop).result()

    async def report_progress_async(self, done: float, total: float = 0, message: str = "") -> None:
        """``report_progress`` for an event loop."""
        self.check_cancelled()
        await self._sent(progress_chunk(done, total, message))

    async def _sent(self, chunk: Chunk) -> None:
        if self._send is not None:
            await self._send(chunk)


class FarToolSession(_OfCall, RemoteToolSession):
    """The same where the session is one of a shared bridge, with the methods of this process."""

    def __init__(
        self,
        job: frames.Job,
        services: ToolServices,
        call: CallState,
        *,
        send: Send | None,
        pipe: Pipe | None,
    ) -> None:
        super().__init__(job, None)
        self._services = services
        self._tool_call = call
        self._send = send
        self._pipe = pipe

    def _run(self, method: str, operation: Operation[T]) -> T:
        self.check_cancelled()
        if threading.get_ident() == self._services.loop_thread:
            # This loop has to answer it.
            raise RuntimeError(
                f"{method} would block the event loop it was called on: await {method}_async "
                "instead"
            )
        return super()._run(method, operation)


class ToolSession(_OfCall, SessionContext):
    """Made for one call, when its tool first asks for it."""

    def __init__(  # noqa: PLR0913 - each is another thing that a tool may ask for
        self,
        session_id: str,
        services: ToolServices,
        call: CallState,
        request_metadata: Mapping[str, str],
        *,
        send: Send | None = None,
        pipe: Pipe | None = None,
    ) -> None:
        super().__init__(session_id, committer=services.committer, dispatcher=services.dispatcher)
        self._services = services
        self._tool_call = call
        self._send = send
        self._pipe = pipe
        self._observed = False
        self.request_metadata = dict(request_metadata)
        """That came with the request."""

    @property
    def tool_name(self) -> str:
        return self._tool_call.name

    @property
    def call_id(self) -> str:
        """Names this call in the log."""
        return self._tool_call.call_id

    def watch_variable(
        self, identifier: str, callback: OnChange, *, on_error: OnError | None = None
    ) -> str:
        """As of any session; the observer leaves with the call."""
        self._observed = True
        return super().watch_variable(identifier, callback, on_error=on_error)

    async def watch_variable_async(
        self, identifier: str, callback: OnChange, *, on_error: OnError | None = None
    ) -> str:
        """``watch_variable`` for an event loop."""
        self._observed = True
        return await super().watch_variable_async(identifier, callback, on_error=on_error)

    def forget_observers(self) -> None:
        """Drop what the tool had watched; whoever is being called is not waited for."""
        if self._observed:
            self._services.dispatcher.drop(self)

    @property
    def elixir_tools(self) -> dict[str, dict[str, Any]]:
        """The tools that Elixir exposes to this session, by name; empty without Elixir."""
        return self._there("elixir_tools", self.elixir_tools_async())

    async def elixir_tools_async(self) -> dict[str, dict[str, Any]]:
        """``elixir_tools`` for an event loop."""
        elixir = self._services.elixir
        specs = [] if elixir is None else await elixir.tools(self.session_id)
        return {
            spec.name: {
                "name": spec.name,
                "description": spec.description,
                "parameters": {
                    given.name: {"type": given.type, "required": given.required}
                    for given in spec.parameters
                },
            }
            for spec in specs
        }

    def call_elixir_tool(self, tool_name: str, /, **arguments: object) -> Any:  # noqa: ANN401
        """Run a tool on the Elixir side and give its result.

        :raises ElixirToolFailed: it said so.
        :raises Unavailable: Elixir is not there.
        """
        return self._there("call_elixir_tool", self.call_elixir_tool_async(tool_name, **arguments))

    async def call_elixir_tool_async(self, tool_name: str, /, **arguments: object) -> Any:  # noqa: ANN401
        """``call_elixir_tool`` for an event loop."""
        self.check_cancelled()
        elixir = self._services.elixir
        if elixir is None:
            raise RuntimeError(
                "there is no Elixir side: start the bridge with --elixir-address HOST:PORT"
            )
        origin = self._tool_call.origin
        return await elixir.call_tool(
            self.session_id,
            tool_name,
            arguments,
            correlation_id=origin.correlation_id,
            traceparent=origin.traceparent,
        )

    def _there(self, method: str, work: Coroutine[Any, Any, T]) -> T:
        """Have the bridge's event loop do something, and wait for it."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run_coroutine_threadsafe(work, self._services.loop).result()
        work.close()
        raise RuntimeError(
            f"{method} would block the event loop it was called on: await {method}_async instead"
        )

    def _envelope(self, metadata: Mapping[str, str] | None) -> Envelope:
        given = {key: text for key, text in (metadata or {}).items() if key != "source"}
        envelope = super()._envelope(given)
        origin = self._tool_call.source
        if envelope.origin.correlation_id:
            origin = origin._replace(correlation_id=envelope.origin.correlation_id)
        return envelope._replace(origin=origin)

    def _read(self, method: str, read: Callable[[LoadedLog], T]) -> T:
        self.check_cancelled()
        return super()._read(method, read)

    async def _read_async(self, read: Callable[[LoadedLog], T]) -> T:
        self.check_cancelled()
        return await super()._read_async(read)

    def _queue(self, task: Any) -> Future[Any]:  # noqa: ANN401 - any task of the committer
        self.check_cancelled()
        call = self._tool_call
        if not call.handed_over:
            # What a tool does must not reach the log before its start.
            call.hand_over()
        timing = call.observation.change()
        if timing is None or not isinstance(task, CommandTask):
            return super()._queue(task)
        future = super()._queue(task._replace(timing=timing))
        command = type(task.prepared).__name__
        future.add_done_callback(partial(call.observation.changed, timing, command))
        return future
