"""What can be done with a session, without a transport.

Each operation is a generator: it yields what to ask of the bridge, is sent the answer or has the
error thrown into it, and returns a result. So there is one of each for both clients, and for
``RemoteSession``: they differ only in how they wait.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from google.protobuf.message import Message

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge.client.results import SessionInfo, ToolDescription, ToolFailed, Written
from snakepit_bridge.client.values import (
    Encoded,
    as_variable,
    as_version,
    encoded,
    encoded_argument,
    is_unencodable,
    time_of,
    unencodable,
)
from snakepit_bridge.errors import InvalidValue, ResourceExhausted
from snakepit_bridge.tool_values import decode_argument
from snakepit_bridge.views import BatchRefused, BatchResult, Reading, Variable, VariableVersion

__all__ = [
    "Ask",
    "Change",
    "Operation",
    "SessionOperations",
    "list_tools",
    "new_request_id",
    "ping",
]

FIRST_PAGE = 512
"""Entries of the first page, where an answer does not fit into one message."""

KNOWN_TYPES = 10_000
"""Variables whose types are remembered: as many as a session has at most by default."""

T = TypeVar("T")


class Ask(NamedTuple):
    """One call of the bridge."""

    method: str
    request: Message
    again: bool
    """Whether asking twice is as good as once: it only reads, or it has a request id."""


Operation = Generator[Ask, Any, T]


class Change(NamedTuple):
    """What goes with a change, whatever it is."""

    metadata: Mapping[str, str] | None = None
    request_id: str = ""
    """Empty = a new one."""


_Type = tuple[str, str]
"""What a value for a variable has to know of it: name and type."""


def new_request_id() -> str:
    """128 random bits."""
    return os.urandom(16).hex()


def ping() -> Operation[None]:
    yield Ask("Ping", pb.PingRequest(), again=True)


def list_tools() -> Operation[dict[str, ToolDescription]]:
    answer = yield Ask("Ping", pb.PingRequest(include_tools=True), again=True)
    return {name: ToolDescription.of(answer.tools[name]) for name in sorted(answer.tools)}


class SessionOperations:
    """The operations on one session.

    Safe from several threads: all that is kept are types of variables, which may be forgotten.
    """

    def __init__(self, session_id: str, *, log_epoch: str = "", source: str = "") -> None:
        """Name the session.

        :param log_epoch: refuse to deal with any other log of this session; empty = take what is
            there.
        :param source: named as the source of changes whose metadata name none; empty where the
            bridge knows it.
        """
        self.session_id = session_id
        self.log_epoch = log_epoch
        self._source = source
        self._types: dict[str, _Type] = {}

    def start(self, change: Change) -> Operation[str]:
        # What is told here the session keeps: it is not of the change.
        request = pb.InitializeSessionRequest(metadata=change.metadata or {})
        answer = yield self._once("InitializeSession", request, change.request_id)
        epoch: str = answer.log_epoch
        return epoch

    def end(self, change: Change, *, force: bool) -> Operation[bool]:
        request = pb.CleanupSessionRequest(force=force)
        answer = yield self._write("CleanupSession", request, change)
        return bool(answer.resources_cleaned or answer.offset)

    def info(self) -> Operation[SessionInfo]:
        answer = yield self._read("GetSession", pb.GetSessionRequest())
        return SessionInfo(
            answer.session_id,
            MappingProxyType(dict(answer.metadata)),
            time_of(answer.created_at),
            answer.variable_count,
            answer.tool_count,
            answer.offset,
            answer.log_epoch,
        )

    def register(
        self,
        name: str,
        type_name: str,
        value: object,
        constraints: Mapping[str, object] | None,
        change: Change,
    ) -> Operation[Variable]:
        sent = encoded(name, type_name, value)
        request = pb.RegisterVariableRequest(
            name=name,
            type=type_name,
            initial_value=sent.any,
            initial_binary_value=sent.binary,
            constraints_json=json.dumps(constraints) if constraints else "",
        )
        try:
            answer = yield self._write("RegisterVariable", request, change)
        except InvalidValue as error:
            raise _own(error, sent) from None
        self._note_type(answer.variable_id, answer.variable)
        return self._seen(name, answer.variable)

    def get(self, identifier: str) -> Operation[Variable]:
        request = pb.GetVariableRequest(variable_identifier=identifier)
        answer = yield self._read("GetVariable", request)
        return self._seen(identifier, answer.variable)

    def get_many(self, identifiers: Iterable[str]) -> Operation[Reading]:
        asked = list(dict.fromkeys(identifiers))
        request = pb.BatchGetVariablesRequest(variable_identifiers=asked)
        answer = yield self._read("GetVariables", request)
        found = answer.variables
        variables = {key: self._seen(key, found[key]) for key in asked if key in found}
        return Reading(
            self.session_id, answer.log_epoch, answer.offset, MappingProxyType(variables)
        )

    def list_variables(self, pattern: str) -> Operation[list[Variable]]:
        request = pb.ListVariablesRequest(pattern=pattern)
        found = yield from self._pages("ListVariables", request, "variables")
        return [self._seen(variable.name, variable) for variable in found]

    def set(
        self, identifier: str, value: object, expected_version: int, change: Change
    ) -> Operation[Written]:
        known = self._types.get(identifier)
        used = known or (yield from self._ask_type(identifier))
        change = change if change.request_id else change._replace(request_id=new_request_id())
        while True:
            sent = encoded(*used, value)
            request = pb.SetVariableRequest(
                variable_identifier=identifier,
                value=sent.any,
                binary_value=sent.binary,
                expected_version=expected_version,
            )
            try:
                answer = yield self._write("SetVariable", request, change)
            except InvalidValue as error:
                # A name may be that of another variable by now, of another type.
                newest = (yield from self._ask_type(identifier)) if used is known else used
                if newest == used:
                    raise _own(error, sent) from None
                used = newest
            else:
                return Written(
                    answer.new_version, answer.offset, answer.log_epoch, answer.duplicate
                )

    def set_many(
        self,
        updates: Mapping[str, object],
        expected_versions: Mapping[str, int] | None,
        change: Change,
        *,
        atomic: bool,
    ) -> Operation[BatchResult]:
        types = self._types
        # Where keys are refused one by one, types that are known may no longer be true.
        unknown = [key for key in updates if key not in types or not atomic]
        if unknown:
            yield from self.get_many(unknown)
        used = {key: types[key] for key in updates if key in types}
        change = change if change.request_id else change._replace(request_id=new_request_id())
        while True:
            request = pb.BatchSetVariablesRequest(
                atomic=atomic, expected_versions=expected_versions or {}
            )
            values = {}
            for key, value in updates.items():
                # The bridge has words for what it does not know.
                values[key] = sent = encoded(*used[key], value) if key in used else unencodable()
                request.updates[key].CopyFrom(sent.any)
                if sent.binary:
                    request.binary_updates[key] = sent.binary
            answer = yield self._write("SetVariables", request, change)
            if answer.success or not answer.errors or len(unknown) == len(updates):
                break
            # Types may be others by now; nothing was written, so that the id is still free.
            unknown = list(updates)
            yield from self.get_many(unknown)
            newest = {key: types[key] for key in updates if key in types}
            if newest == used:
                break
            used = newest
        errors = {}
        for key, message in sorted(answer.errors.items()):
            own = values[key].error
            errors[key] = own.message if own is not None and is_unencodable(message) else message
        if not answer.success:
            raise BatchRefused(errors)
        return BatchResult(dict(sorted(answer.new_versions.items())), errors)

    def delete(self, identifier: str, change: Change) -> Operation[Written]:
        request = pb.DeleteVariableRequest(variable_identifier=identifier)
        answer = yield self._write("DeleteVariable", request, change)
        self._types.pop(identifier, None)
        return Written(0, answer.offset, answer.log_epoch, answer.duplicate)

    def history(self, identifier: str, limit: int) -> Operation[list[VariableVersion]]:
        request = pb.GetVariableHistoryRequest(variable_identifier=identifier, limit=limit)
        entries = yield from self._pages("GetVariableHistory", request, "entries")
        return [as_version(entry) for entry in entries]

    def rollback(self, identifier: str, version: int, change: Change) -> Operation[Variable]:
        request = pb.RollbackVariableRequest(variable_identifier=identifier, target_version=version)
        answer = yield self._write("RollbackVariable", request, change)
        return self._seen(identifier, answer.variable)

    def execute(
        self, tool: str, arguments: Mapping[str, object] | None, change: Change
    ) -> Operation[Any]:
        request = self.tool_request(tool, arguments)
        answer = yield self._write("ExecuteTool", request, change)
        if not answer.success:
            raise ToolFailed.of(tool, answer.error_message)
        if not answer.HasField("result"):
            return None
        return decode_argument(answer.result.SerializeToString(), answer.binary_result)

    def tool_request(
        self, tool: str, arguments: Mapping[str, object] | None
    ) -> pb.ExecuteToolRequest:
        """A call of a tool, without what goes with a change.

        :raises InvalidValue: an argument has no form on the wire.
        """
        request = pb.ExecuteToolRequest(session_id=self.session_id, tool_name=tool)
        for name, value in (arguments or {}).items():
            if isinstance(value, bytes | bytearray | memoryview):
                # With a value beside them they would be an array.
                request.binary_parameters[name] = bytes(value)
                continue
            made = encoded_argument(tool, name, value)
            request.parameters[name].ParseFromString(made.any)
            if made.binary:
                request.binary_parameters[name] = made.binary
        return request

    def add_metadata(self, request: Any, metadata: Mapping[str, str] | None) -> None:  # noqa: ANN401 - any mutating request
        """Write down what a change says of itself."""
        given = request.metadata
        if self._source:
            given["source"] = self._source
        for key, value in (metadata or {}).items():
            given[key] = value

    def _ask_type(self, identifier: str) -> Operation[_Type]:
        request = pb.GetVariableRequest(variable_identifier=identifier)
        answer = yield self._read("GetVariable", request)
        return self._note_type(identifier, answer.variable)

    def _note_type(self, identifier: str, variable: pb.Variable) -> _Type:
        type_ = (variable.name, variable.type)
        if len(self._types) >= KNOWN_TYPES:
            self._types.clear()
        self._types[identifier] = type_
        return type_

    def _seen(self, identifier: str, variable: pb.Variable) -> Variable:
        self._note_type(identifier, variable)
        return as_variable(variable)

    def _pages(self, method: str, request: Any, field: str) -> Operation[list[Any]]:  # noqa: ANN401 - any that has pages
        """Everything in one answer, or in pages that fit into messages."""
        found: list[Any] = []
        while True:
            try:
                answer = yield self._read(method, request)
            except ResourceExhausted:
                if request.page_size == 1:
                    raise
                request.page_size = (request.page_size or 2 * FIRST_PAGE) // 2
                continue
            found += getattr(answer, field)
            if not answer.next_page_token:
                return found
            request.page_token = answer.next_page_token

    def _read(self, method: str, request: Any) -> Ask:  # noqa: ANN401 - any that reads
        request.session_id = self.session_id
        if self.log_epoch:
            request.log_epoch = self.log_epoch
        return Ask(method, request, again=True)

    def _write(self, method: str, request: Any, change: Change) -> Ask:  # noqa: ANN401 - any mutating request
        self.add_metadata(request, change.metadata)
        return self._once(method, request, change.request_id)

    def _once(self, method: str, request: Any, request_id: str) -> Ask:  # noqa: ANN401 - as above
        request.request_id = request_id or new_request_id()
        return self._read(method, request)


def _own(error: InvalidValue, value: Encoded) -> InvalidValue:
    """What is wrong with a value, where the bridge only knows that it was sent as none."""
    return value.error if value.error is not None and is_unencodable(error.message) else error
