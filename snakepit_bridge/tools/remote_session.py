"""The session of a tool that runs in a process of its own: ``SessionContext`` over gRPC.

What a tool does with it means what it means in the bridge's process: the bridge decides, and its
errors arrive as the same classes. Each request names the tool and the call, so that the bridge
knows whose change it is, and refuses it once the call is over.

Two differences. A value is encoded here, for which the type of its variable is asked for at its
first use; and ``Variable.source``, of which a ``Variable`` on the wire says only whether Elixir
wrote it, is "python" where that is all that is known.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self
from uuid import uuid4

import grpc
from google.protobuf.message import Message

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge import tool_worker_pb2 as frames
from snakepit_bridge.elixir import ElixirToolFailed
from snakepit_bridge.errors import (
    InvalidValue,
    ResourceExhausted,
    Unavailable,
    VariableNotFound,
)
from snakepit_bridge.tool_values import decode_argument
from snakepit_bridge.tools.chunks import Chunk, progress_chunk
from snakepit_bridge.tools.context import ToolCancelled
from snakepit_bridge.tools.remote_changes import RemoteChanges, Watched
from snakepit_bridge.tools.remote_observers import OnChange, OnError, RemoteObservers
from snakepit_bridge.tools.remote_wire import (
    Encoded,
    as_variable,
    as_version,
    described,
    elixir_argument,
    encoded,
    error_of,
    headers,
    is_unencodable,
    stub,
    unencodable,
)
from snakepit_bridge.variable_views import BatchRefused, BatchResult, Variable, VariableVersion

__all__ = ["RemoteSession"]

FIRST_PAGE = 512
"""Entries of the first page, where an answer does not fit into one message."""


class _Type(NamedTuple):
    """What a value for a variable has to know of it."""

    name: str
    type: str


class RemoteSession:
    """The session of one call. Safe from any thread; ``close`` (or ``with``) ends its observers.

    Every call has an asynchronous form with the suffix ``_async``. Writes on an event loop's
    thread raise and name it, as they do in the bridge's process.
    """

    def __init__(self, job: frames.Job, put: Callable[[Chunk], None] | None) -> None:
        """Nothing is connected before the first use.

        :param put: takes chunks of the call's stream; ``None`` where it has none.
        """
        self.session_id = job.session_id
        self.tool_name = job.tool
        self.call_id = job.call_id
        """Names this call in the log."""
        self.request_metadata = dict(job.metadata)
        """That came with the request."""
        self._log_epoch = job.log_epoch
        self._port = job.port
        self._deadline = job.deadline_unix_nanos
        self._put = put
        self._headers = headers(job)
        self._correlation = {"correlation_id": job.correlation_id} if job.correlation_id else {}
        """Of the metadata of what is written; in a header it would outdo a tool's own."""
        self._types: dict[str, _Type] = {}
        self._observers = RemoteObservers(self._open_watch)

    def close(self) -> None:
        """End the observers; returns when the callback that runs has, unless that closes this."""
        self._observers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"RemoteSession({self.session_id!r})"

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
            _refuse_event_loop("report_progress")
            self._put(progress_chunk(done, total, message))

    async def report_progress_async(self, done: float, total: float = 0, message: str = "") -> None:
        """``report_progress`` for an event loop."""
        await asyncio.to_thread(self.report_progress, done, total, message)

    def register_variable(
        self,
        name: str,
        type: str,  # noqa: A002 - the wire's name
        initial_value: object,
        constraints: Mapping[str, object] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """Create a variable and give its id; see ``SessionContext.register_variable``."""
        _refuse_event_loop("register_variable")
        value = encoded(name, type, initial_value)
        request = pb.RegisterVariableRequest(
            name=name,
            type=type,
            initial_value=value.any,
            initial_binary_value=value.binary,
            constraints_json=json.dumps(constraints) if constraints else "",
        )
        try:
            answer = self._write("RegisterVariable", request, metadata)
        except InvalidValue as error:
            raise _own(error, value) from None
        id_: str = answer.variable_id
        self._types[name] = self._types[id_] = _Type(name, type)
        return id_

    async def register_variable_async(
        self,
        name: str,
        type: str,  # noqa: A002 - the wire's name
        initial_value: object,
        constraints: Mapping[str, object] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """``register_variable`` for an event loop."""
        return await asyncio.to_thread(
            self.register_variable, name, type, initial_value, constraints, metadata
        )

    def get_variable(self, identifier: str) -> Variable | None:
        """A variable by name or id, or ``None``."""
        request = pb.GetVariableRequest(variable_identifier=identifier)
        try:
            answer = self._call("GetVariable", request)
        except VariableNotFound:
            return None
        return self._seen(identifier, answer.variable)

    async def get_variable_async(self, identifier: str) -> Variable | None:
        """``get_variable`` for an event loop."""
        return await asyncio.to_thread(self.get_variable, identifier)

    def get_variables(self, identifiers: Iterable[str]) -> dict[str, Variable]:
        """Several variables at one moment, by the identifier that was asked.

        Those that do not exist are absent.
        """
        asked = list(dict.fromkeys(identifiers))
        request = pb.BatchGetVariablesRequest(variable_identifiers=asked)
        found = self._call("GetVariables", request).variables
        return {key: self._seen(key, found[key]) for key in asked if key in found}

    async def get_variables_async(self, identifiers: Iterable[str]) -> dict[str, Variable]:
        """``get_variables`` for an event loop."""
        return await asyncio.to_thread(self.get_variables, identifiers)

    def list_variables(self, pattern: str = "") -> list[Variable]:
        """Live variables in the order of registration whose names match.

        They are of one moment, unless they are too large for one message.

        :param pattern: ``*`` is anything, ``?`` one character; empty = all.
        """
        request = pb.ListVariablesRequest(pattern=pattern)
        found = self._all("ListVariables", request, "variables")
        return [self._seen(variable.name, variable) for variable in found]

    async def list_variables_async(self, pattern: str = "") -> list[Variable]:
        """``list_variables`` for an event loop."""
        return await asyncio.to_thread(self.list_variables, pattern)

    def set_variable(
        self,
        identifier: str,
        value: object,
        metadata: Mapping[str, str] | None = None,
        *,
        expected_version: int = 0,
    ) -> int:
        """Give a variable a new value; see ``SessionContext.set_variable``."""
        _refuse_event_loop("set_variable")
        known = self._types.get(identifier)
        used = known or self._ask_type(identifier)
        while True:
            sent = encoded(used.name, used.type, value)
            request = pb.SetVariableRequest(
                variable_identifier=identifier,
                value=sent.any,
                binary_value=sent.binary,
                expected_version=expected_version,
            )
            try:
                version: int = self._write("SetVariable", request, metadata).new_version
            except InvalidValue as error:
                # A name may be that of another variable by now, of another type.
                newest = self._ask_type(identifier) if used is known else used
                if newest == used:
                    raise _own(error, sent) from None
                used = newest
            else:
                return version

    async def set_variable_async(
        self,
        identifier: str,
        value: object,
        metadata: Mapping[str, str] | None = None,
        *,
        expected_version: int = 0,
    ) -> int:
        """``set_variable`` for an event loop."""
        return await asyncio.to_thread(
            self.set_variable, identifier, value, metadata, expected_version=expected_version
        )

    def set_variables(
        self,
        updates: Mapping[str, object],
        metadata: Mapping[str, str] | None = None,
        *,
        atomic: bool = True,
        expected_versions: Mapping[str, int] | None = None,
    ) -> BatchResult:
        """Change several variables; see ``SessionContext.set_variables``."""
        _refuse_event_loop("set_variables")
        types = self.get_variables(updates)
        request = pb.BatchSetVariablesRequest(
            atomic=atomic, expected_versions=expected_versions or {}
        )
        values = {}
        for key, value in updates.items():
            known = types.get(key)
            # The bridge has words for what it does not know.
            values[key] = sent = encoded(known.name, known.type, value) if known else unencodable()
            request.updates[key].CopyFrom(sent.any)
            if sent.binary:
                request.binary_updates[key] = sent.binary
        answer = self._write("SetVariables", request, metadata)
        errors = {}
        for key, message in sorted(answer.errors.items()):
            own = values[key].error
            errors[key] = own.message if own is not None and is_unencodable(message) else message
        if not answer.success:
            raise BatchRefused(errors)
        return BatchResult(dict(sorted(answer.new_versions.items())), errors)

    async def set_variables_async(
        self,
        updates: Mapping[str, object],
        metadata: Mapping[str, str] | None = None,
        *,
        atomic: bool = True,
        expected_versions: Mapping[str, int] | None = None,
    ) -> BatchResult:
        """``set_variables`` for an event loop."""
        return await asyncio.to_thread(
            self.set_variables,
            updates,
            metadata,
            atomic=atomic,
            expected_versions=expected_versions,
        )

    def delete_variable(self, identifier: str, metadata: Mapping[str, str] | None = None) -> None:
        """Delete a variable; its history stays readable by its id.

        :raises VariableNotFound: there is no such variable.
        """
        _refuse_event_loop("delete_variable")
        request = pb.DeleteVariableRequest(variable_identifier=identifier)
        self._write("DeleteVariable", request, metadata)
        self._types.pop(identifier, None)

    async def delete_variable_async(
        self, identifier: str, metadata: Mapping[str, str] | None = None
    ) -> None:
        """``delete_variable`` for an event loop."""
        await asyncio.to_thread(self.delete_variable, identifier, metadata)

    def get_variable_history(self, identifier: str, limit: int = 0) -> list[VariableVersion]:
        """The versions of a variable, newest first; of a deleted one by its id.

        :param limit: how many at most; 0 = all.
        :raises VariableNotFound: there is no such variable.
        """
        _refuse_event_loop("get_variable_history")
        request = pb.GetVariableHistoryRequest(variable_identifier=identifier, limit=limit)
        return [as_version(entry) for entry in self._all("GetVariableHistory", request, "entries")]

    async def get_variable_history_async(
        self, identifier: str, limit: int = 0
    ) -> list[VariableVersion]:
        """``get_variable_history`` for an event loop."""
        return await asyncio.to_thread(self.get_variable_history, identifier, limit)

    def rollback_variable(
        self, identifier: str, version: int, metadata: Mapping[str, str] | None = None
    ) -> Variable:
        """Set a variable to the value it had at ``version``, as a new version.

        :raises VersionNotFound: it never had that version.
        """
        _refuse_event_loop("rollback_variable")
        request = pb.RollbackVariableRequest(variable_identifier=identifier, target_version=version)
        return self._seen(identifier, self._write("RollbackVariable", request, metadata).variable)

    async def rollback_variable_async(
        self, identifier: str, version: int, metadata: Mapping[str, str] | None = None
    ) -> Variable:
        """``rollback_variable`` for an event loop."""
        return await asyncio.to_thread(self.rollback_variable, identifier, version, metadata)

    def watch_variable(
        self, identifier: str, callback: OnChange, *, on_error: OnError | None = None
    ) -> str:
        """Have ``callback(name, old, new, metadata)`` called for each new value from now on.

        See ``SessionContext.watch_variable``; it ends with this call of the tool, too.
        """
        _refuse_event_loop("watch_variable")
        return self._observers.watch(identifier, callback, on_error)

    async def watch_variable_async(
        self, identifier: str, callback: OnChange, *, on_error: OnError | None = None
    ) -> str:
        """``watch_variable`` for an event loop; the callback runs on another thread, too."""
        return await asyncio.to_thread(self.watch_variable, identifier, callback, on_error=on_error)

    def watch(
        self,
        *identifiers: str,
        after_offset: int | None = None,
        log_epoch: str = "",
        resume_check: int = 0,
        kinds: Iterable[str] = ("value_change",),
    ) -> RemoteChanges:
        """Iterate over changes: ``async with session.watch("x") as changes: async for ...``.

        See ``SessionContext.watch``.
        """
        watched = Watched(self._port, self._headers, self.session_id, self._log_epoch)
        start = (after_offset, log_epoch, resume_check)
        return RemoteChanges(watched, (identifiers, kinds), start)

    def forget_observers(self) -> None:
        """Drop what the tool had watched; whoever is being called is not waited for."""
        self._observers.close(wait=False)

    def unwatch_variable(self, observer_id: str) -> bool:
        """Have an observer called no more; gives whether there was one.

        Waits for a call of it that is running, unless that is what calls this.
        """
        _refuse_event_loop("unwatch_variable")
        return self._observers.unwatch(observer_id)

    async def unwatch_variable_async(self, observer_id: str) -> bool:
        """``unwatch_variable`` for an event loop."""
        return await asyncio.to_thread(self.unwatch_variable, observer_id)

    def flush(self, timeout: float | None = None) -> None:
        """Wait until the observers were called for all that is committed now.

        :param timeout: seconds; ``None`` = any time.
        :raises TimeoutError: they were not.
        :raises RuntimeError: called from a callback, which would wait for itself.
        :raises BridgeError: they cannot be; it is what ``on_error`` gets.
        """
        _refuse_event_loop("flush")
        self._observers.flush(self._head, timeout)

    async def flush_async(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as flush
        """``flush`` for an event loop."""
        await asyncio.to_thread(self.flush, timeout)

    @property
    def elixir_tools(self) -> dict[str, dict[str, Any]]:
        """The tools that Elixir exposes to this session, by name.

        :raises BridgeError: there is no Elixir side, or it does not answer.
        """
        _refuse_event_loop("elixir_tools")
        request = pb.GetExposedElixirToolsRequest(session_id=self.session_id)
        answer = self._ask("GetExposedElixirTools", request)
        return {tool.name: described(tool) for tool in answer.tools}

    async def elixir_tools_async(self) -> dict[str, dict[str, Any]]:
        """``elixir_tools`` for an event loop."""
        return await asyncio.to_thread(lambda: self.elixir_tools)

    def call_elixir_tool(self, tool_name: str, /, **arguments: object) -> object:
        """Call a tool on the Elixir side.

        :raises ElixirToolFailed: it gave no result.
        :raises InvalidValue: an argument has no form on the wire.
        :raises BridgeError: Elixir cannot be reached, or knows no such tool.
        """
        _refuse_event_loop("call_elixir_tool")
        request = pb.ExecuteElixirToolRequest(
            session_id=self.session_id, tool_name=tool_name, metadata=self._correlation
        )
        for name, value in arguments.items():
            request.parameters[name].CopyFrom(elixir_argument(tool_name, name, value))
        answer = self._ask("ExecuteElixirTool", request)
        if not answer.success:
            raise ElixirToolFailed(tool_name, answer.error_message)
        if not answer.HasField("result"):
            return None
        return decode_argument(answer.result.SerializeToString(), answer.binary_result)

    async def call_elixir_tool_async(self, tool_name: str, /, **arguments: object) -> object:
        """``call_elixir_tool`` for an event loop."""
        return await asyncio.to_thread(self.call_elixir_tool, tool_name, **arguments)

    def _ask_type(self, identifier: str) -> _Type:
        request = pb.GetVariableRequest(variable_identifier=identifier)
        variable = self._call("GetVariable", request).variable
        return self._note_type(identifier, variable)

    def _note_type(self, identifier: str, variable: pb.Variable) -> _Type:
        type_ = _Type(variable.name, variable.type)
        self._types[identifier] = type_
        return type_

    def _seen(self, identifier: str, variable: pb.Variable) -> Variable:
        self._note_type(identifier, variable)
        return as_variable(variable)

    def _head(self) -> int:
        head: int = self._call("GetSession", pb.GetSessionRequest()).offset
        return head

    def _all(self, method: str, request: Any, field: str) -> list[Any]:  # noqa: ANN401 - any that has pages
        """Everything in one answer, or in pages that fit into messages."""
        found: list[Any] = []
        while True:
            try:
                answer = self._call(method, request)
            except ResourceExhausted:
                if request.page_size == 1:
                    raise
                request.page_size = (request.page_size or 2 * FIRST_PAGE) // 2
                continue
            found += getattr(answer, field)
            if not answer.next_page_token:
                return found
            request.page_token = answer.next_page_token

    def _write(self, method: str, request: Any, metadata: Mapping[str, str] | None) -> Any:  # noqa: ANN401 - any mutating request
        request.request_id = uuid4().hex
        for key, value in {**self._correlation, **(metadata or {})}.items():
            if key != "source":  # which is this tool
                request.metadata[key] = value
        try:
            return self._call(method, request)
        except Unavailable:
            return self._call(method, request)  # of the same id: it is not done twice

    def _call(self, method: str, request: Any) -> Any:  # noqa: ANN401 - as _write
        request.session_id = self.session_id
        request.log_epoch = self._log_epoch
        return self._ask(method, request)

    def _ask(self, method: str, request: Message) -> Any:  # noqa: ANN401 - stubs have no types
        timeout = (self._deadline - time.time_ns()) / 1e9 if self._deadline else None
        if timeout is not None and timeout <= 0:  # which gRPC may have answered all the same
            raise _too_late(method)
        try:
            return getattr(stub(self._port), method)(
                request, timeout=timeout, metadata=self._headers
            )
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise _too_late(method) from None
            raise error_of(error) from None

    def _open_watch(self, request: pb.WatchVariablesRequest) -> Any:  # noqa: ANN401 - as _ask
        request.session_id = self.session_id
        request.log_epoch = request.log_epoch or self._log_epoch
        return stub(self._port).WatchVariables(request, metadata=self._headers)


def _refuse_event_loop(method: str) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(
        f"{method} would block the event loop it was called on: await {method}_async instead"
    )


def _own(error: InvalidValue, value: Encoded) -> InvalidValue:
    """What is wrong with a value, where the bridge only knows that it was sent as none."""
    return value.error if value.error is not None and is_unencodable(error.message) else error


def _too_late(method: str) -> TimeoutError:
    return TimeoutError(f"{method} was not answered before the deadline of this tool's call")
