"""The session of a tool that runs in a process of its own: ``RemoteSession``, for one call.

Each request names the tool and the call, so that the bridge knows whose change it is, and refuses
it once the call is over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import quote as percent_encoded

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge import tool_worker_pb2 as frames
from snakepit_bridge.client.connection import Connection, Headers
from snakepit_bridge.client.operations import Ask, Change, Operation
from snakepit_bridge.client.options import Options
from snakepit_bridge.client.remote_session import RemoteSession, in_thread, refuse_event_loop
from snakepit_bridge.client.values import encoded_argument
from snakepit_bridge.elixir import ElixirToolFailed
from snakepit_bridge.errors import DeadlineExceeded, InvalidValue
from snakepit_bridge.tool_values import decode_argument
from snakepit_bridge.tools.chunks import Chunk, progress_chunk
from snakepit_bridge.tools.context import ToolCancelled
from snakepit_bridge.wire import TOOL_CALL_HEADER, TOOL_HEADER

__all__ = ["RemoteToolSession", "headers"]

T = TypeVar("T")

PATIENCE = 5.0
"""Seconds that a call of the bridge may take, which is this process's parent: when it is gone, so
is this soon."""

_VISIBLE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


class RemoteToolSession(RemoteSession):
    """The session of one call."""

    def __init__(self, job: frames.Job, put: Callable[[Chunk], None] | None) -> None:
        """Nothing is connected before the first use.

        :param put: takes chunks of the call's stream; ``None`` where it has none.
        """
        super().__init__(
            _connection(job.port, job.token),
            job.session_id,
            log_epoch=job.log_epoch,
            headers=headers(job),
        )
        self.tool_name = job.tool
        self.call_id = job.call_id
        """Names this call in the log."""
        self.request_metadata = dict(job.metadata)
        """That came with the request."""
        self._deadline = job.deadline_unix_nanos
        self._put = put
        self._correlation = {"correlation_id": job.correlation_id} if job.correlation_id else {}
        """Of the metadata of what is written; in a header it would outdo a tool's own."""

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for this call any more.

        Only its deadline can tell: of what else cancels it, the process is not told but killed.
        """
        return 0 < self._deadline <= time.time_ns()

    def check_cancelled(self) -> None:
        """:raises ToolCancelled: nobody waits for this call any more."""
        if self.cancelled:
            raise ToolCancelled(f"the call {self.call_id} of this tool is over")

    def report_progress(self, done: float, total: float = 0, message: str = "") -> None:
        """Tell the client how far this is, as a chunk of its stream.

        Without effect where the client did not ask for a stream (ExecuteTool).

        :param total: what ``done`` will be at the end; 0 = unknown.
        """
        if self._put is not None:
            refuse_event_loop("report_progress")
            self._put(progress_chunk(done, total, message))

    async def report_progress_async(self, done: float, total: float = 0, message: str = "") -> None:
        """``report_progress`` for an event loop."""
        await in_thread(self.report_progress, done, total, message)

    def forget_observers(self) -> None:
        """Drop what the tool had watched; whoever is being called is not waited for."""
        self._observers.close(wait=False)

    @property
    def elixir_tools(self) -> dict[str, dict[str, Any]]:
        """The tools that Elixir exposes to this session, by name.

        :raises BridgeError: there is no Elixir side, or it does not answer.
        """
        refuse_event_loop("elixir_tools")
        return self._run("elixir_tools", self._elixir_tools())

    def _elixir_tools(self) -> Operation[dict[str, dict[str, Any]]]:
        request = pb.GetExposedElixirToolsRequest(session_id=self.session_id)
        answer = yield Ask("GetExposedElixirTools", request, again=True)
        return {
            tool.name: {
                "name": tool.name,
                "description": tool.description,
                "parameters": {
                    one.name: {"type": one.type, "required": one.required}
                    for one in tool.parameters
                },
            }
            for tool in answer.tools
        }

    async def elixir_tools_async(self) -> dict[str, dict[str, Any]]:
        """``elixir_tools`` for an event loop."""
        return await in_thread(lambda: self.elixir_tools)

    def call_elixir_tool(self, tool_name: str, /, **arguments: object) -> object:
        """Call a tool on the Elixir side.

        :raises ElixirToolFailed: it gave no result.
        :raises InvalidValue: an argument has no form on the wire.
        :raises BridgeError: Elixir cannot be reached, or knows no such tool.
        """
        refuse_event_loop("call_elixir_tool")
        return self._run("call_elixir_tool", self._call_elixir_tool(tool_name, arguments))

    def _call_elixir_tool(self, tool: str, arguments: Mapping[str, object]) -> Operation[object]:
        request = pb.ExecuteElixirToolRequest(
            session_id=self.session_id, tool_name=tool, metadata=self._correlation
        )
        for name, value in arguments.items():
            made = encoded_argument(tool, name, value)
            if made.binary:
                raise InvalidValue(
                    f"argument {name!r} of the Elixir tool {tool!r} is an array of "
                    f"{len(made.binary)} bytes, and ExecuteElixirTool has no field for binary "
                    "values: pass .tolist(), or a smaller one",
                    field=f"parameters.{name}",
                )
            request.parameters[name].ParseFromString(made.any)
        # Elixir is not asked twice: nobody there would know that it was.
        answer = yield Ask("ExecuteElixirTool", request, again=False)
        if not answer.success:
            raise ElixirToolFailed(tool, answer.error_message)
        if not answer.HasField("result"):
            return None
        return decode_argument(answer.result.SerializeToString(), answer.binary_result)

    async def call_elixir_tool_async(self, tool_name: str, /, **arguments: object) -> object:
        """``call_elixir_tool`` for an event loop."""
        return await in_thread(self.call_elixir_tool, tool_name, **arguments)

    def _change(self, method: str, metadata: Mapping[str, str] | None) -> Change:
        refuse_event_loop(method)
        # The source is this tool.
        given = {key: text for key, text in (metadata or {}).items() if key != "source"}
        return Change({**self._correlation, **given})

    def _run(self, method: str, operation: Operation[T]) -> T:
        left = (self._deadline - time.time_ns()) / 1e9 if self._deadline else None
        if left is not None and left <= 0:  # which gRPC may have answered all the same
            raise _too_late(method)
        # Elixir's tools take as long as they take.
        limit = _FOREVER if method == "call_elixir_tool" else PATIENCE
        try:
            return self._connection.run(
                operation, limit if left is None else min(left, limit), self._headers
            )
        except DeadlineExceeded:
            if left is None or left > limit:
                raise
            raise _too_late(method) from None


_FOREVER = float("inf")


@lru_cache(maxsize=1)
def _connection(port: int, token: str) -> Connection:
    """The bridge, connected at the first call; a process knows only one."""
    return Connection(Options(f"127.0.0.1:{port}", token=token))


def headers(job: frames.Job) -> Headers:
    """What goes with every request.

    gRPC refuses a call for a header that is not visible ASCII: the name of a tool is so
    percent-encoded, a trace context that cannot be one left out.
    """
    given = [
        (TOOL_HEADER, percent_encoded(job.tool, safe=_VISIBLE)),
        (TOOL_CALL_HEADER, job.call_id),
    ]
    if job.traceparent.isascii() and job.tracestate.isascii():
        given += [("traceparent", job.traceparent), ("tracestate", job.tracestate)]
    return tuple((key, value) for key, value in given if value)


def _too_late(method: str) -> TimeoutError:
    return TimeoutError(f"{method} was not answered before the deadline of this tool's call")
