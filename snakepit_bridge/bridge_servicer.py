"""The BridgeService without a transport: request bytes in, response bytes out.

A method is a ``Mutation`` (read the request, queue the command, write the outcome) or a
query (answer from the committed projection or the log). An error of the tree is raised;
``rpc`` turns it into a status. No rule about variables stands here: those are in
``decide`` and ``variables``.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge import wire
from snakepit_bridge import wire_views_pb2 as views
from snakepit_bridge.commands import PastValue, RollbackVariable
from snakepit_bridge.errors import (
    BridgeError,
    EpochMismatch,
    FailedPrecondition,
    InvalidRequest,
    OffsetOutOfRange,
    ResourceExhausted,
    SessionNotFound,
    quote,
)
from snakepit_bridge.events.committer import Committer, LoadedLog, Outcome
from snakepit_bridge.events.gate import Gate
from snakepit_bridge.events.model import MAX_TRANSACTION
from snakepit_bridge.events.projection import VariableState
from snakepit_bridge.events.reading import PastVersion, versions
from snakepit_bridge.sessions import (
    LoadTask,
    find,
    head_and,
    name_filter,
    newest_event,
    past_value,
)
from snakepit_bridge.wire import Call

__all__ = ["BridgeServicer"]

INLINE_WORK = 256
"""Variables that may be encoded on the event loop (about 1 ms); more go to a thread."""


class Mutation(NamedTuple):
    """One mutating call on its way through the committer, whose thread runs both methods."""

    read: Callable[[Call], Any]
    write: Callable[[Outcome], bytes]
    call: Call

    def command(self) -> Any:  # noqa: ANN401 - any of ``commands``
        return self.read(self.call)

    def answer(self, outcome: Outcome) -> bytes:
        return self.write(outcome)


Method = Callable[[Call], Awaitable[bytes]]


class BridgeServicer:
    """The unary methods that this release serves, by name, in ``methods``."""

    def __init__(self, committer: Committer, gate: Gate, *, max_message_bytes: int) -> None:
        self._committer = committer
        self._gate = gate
        self._max_message_bytes = max_message_bytes
        self.methods: dict[str, Method] = {
            "Ping": self.ping,
            "InitializeSession": self._mutate(wire.initialize_session, wire.initialized),
            "CleanupSession": self._mutate(wire.cleanup_session, wire.cleaned_up),
            "GetSession": self.get_session,
            "Heartbeat": self.heartbeat,
            "RegisterVariable": self._mutate(wire.register_variable, wire.registered),
            "GetVariable": self.get_variable,
            "SetVariable": self._mutate(wire.set_variable, wire.was_set),
            "ListVariables": self.list_variables,
            "DeleteVariable": self._mutate(wire.delete_variable, wire.deleted),
            "GetVariables": self.get_variables,
            "SetVariables": self._mutate(wire.set_variables, wire.were_set),
            "GetVariableHistory": self.get_variable_history,
            "RollbackVariable": self.rollback_variable,
        }

    def _mutate(self, read: Callable[[Call], Any], write: Callable[[Outcome], bytes]) -> Method:
        submit = self._gate.submit

        def method(call: Call) -> Awaitable[bytes]:
            return submit(Mutation(read, write, call))

        return method

    async def ping(self, call: Call) -> bytes:
        request = wire.parse(pb.PingRequest, call.raw)
        response = pb.PingResponse(message=f"pong: {request.message}")
        response.server_time.GetCurrentTime()
        return response.SerializeToString()

    async def heartbeat(self, call: Call) -> bytes:
        request = wire.parse(pb.HeartbeatRequest, call.raw)
        log = await self._log(request.session_id)
        response = pb.HeartbeatResponse(session_valid=log is not None and log.committed.live)
        response.server_time.GetCurrentTime()
        return response.SerializeToString()

    async def get_session(self, call: Call) -> bytes:
        request = wire.parse(pb.GetSessionRequest, call.raw)
        log = await self._live_log(request)
        with log.lock:
            state = log.committed
            head, count = state.head, len(state.variables)
        response = pb.GetSessionResponse(
            session_id=request.session_id,
            metadata=state.metadata,
            variable_count=count,
            offset=head,
            log_epoch=log.id.epoch,
        )
        response.created_at.FromNanoseconds(state.created_unix_nanos)
        return response.SerializeToString()

    async def get_variable(self, call: Call) -> bytes:
        request = wire.parse(pb.GetVariableRequest, call.raw)
        log = self._committer.loaded(request.session_id)
        if log is None or request.min_offset or request.log_epoch or log.committed.ended:
            log = await self._live_log(request)
        variable, head = find(log, request.variable_identifier)
        response = views.GetVariableResponseView()
        response.variable = wire.variable_bytes(variable)
        response.offset = head
        response.log_epoch = log.id.epoch
        return response.SerializeToString()

    async def get_variables(self, call: Call) -> bytes:
        request = wire.parse(pb.BatchGetVariablesRequest, call.raw)
        identifiers = request.variable_identifiers
        if len(identifiers) > MAX_TRANSACTION:
            raise ResourceExhausted(
                f"{len(identifiers)} identifiers are more than the limit of "
                f"{MAX_TRANSACTION}: ask in several calls",
                field="variable_identifiers",
            )
        log = await self._live_log(request)
        with log.lock:
            state = log.committed
            head = state.head
            found = {identifier: state.find(identifier) for identifier in identifiers}
        present = {key: variable for key, variable in found.items() if variable is not None}
        encoded = await self._encode(list(present.values()))
        response = views.BatchGetVariablesResponseView(
            missing_variables=[key for key, variable in found.items() if variable is None],
            offset=head,
            log_epoch=log.id.epoch,
        )
        for key, data in zip(present, encoded, strict=True):
            response.variables.add(key=key, value=data)
        return response.SerializeToString()

    async def list_variables(self, call: Call) -> bytes:
        request = wire.parse(pb.ListVariablesRequest, call.raw)
        matches = name_filter(request.pattern)
        size, after, _ = _page(request)
        log = await self._live_log(request)
        _check_token(request, log)
        head, variables = head_and(log)
        chosen = [
            variable
            for variable in variables
            if variable.definition.registered > after
            and (matches is None or matches(variable.definition.name))
        ]
        token = ""
        if size and len(chosen) > size:
            chosen = chosen[:size]
            token = _token(log, chosen[-1].definition.registered)
        response = views.ListVariablesResponseView(
            variables=await self._encode(chosen),
            offset=head,
            log_epoch=log.id.epoch,
            next_page_token=token,
        )
        return response.SerializeToString()

    async def get_variable_history(self, call: Call) -> bytes:
        request = wire.parse(pb.GetVariableHistoryRequest, call.raw)
        if request.limit < 0:
            raise InvalidRequest(
                f"limit {request.limit} is negative: 0 asks for all", field="limit"
            )
        size, after, left = _page(request)
        log = await self._live_log(request)
        _check_token(request, log)
        head, newest = newest_event(log, request.variable_identifier)
        limit = left or request.limit
        count = min(size or limit, limit or size)
        past = await asyncio.to_thread(self._history, log, after or newest, count)
        token = ""
        if past and past[-1].previous_offset and (not limit or limit > len(past)):
            token = _token(log, past[-1].previous_offset, limit and limit - len(past))
        response = views.GetVariableHistoryResponseView(
            entries=[wire.history_entry(version, log.id.epoch) for version in past],
            offset=head,
            log_epoch=log.id.epoch,
            next_page_token=token,
        )
        return response.SerializeToString()

    async def rollback_variable(self, call: Call) -> bytes:
        request = wire.parse(pb.RollbackVariableRequest, call.raw)
        try:
            past: PastValue | BridgeError = await self._past_value(request)
        except BridgeError as error:
            past = error  # the committer raises it, unless the request id is known

        def read(call: Call) -> RollbackVariable:
            return RollbackVariable(
                wire.envelope(request, request.metadata, call.metadata),
                request.variable_identifier,
                request.target_version,
                past,
                request.expected_version,
            )

        result: bytes = await self._gate.submit(Mutation(read, wire.rolled_back, call))
        return result

    async def _past_value(self, request: pb.RollbackVariableRequest) -> PastValue:
        log = await self._log(request.session_id)
        if log is None or not log.committed.live:
            raise SessionNotFound(request.session_id)
        return await asyncio.to_thread(
            past_value,
            self._committer.engine,
            log,
            request.variable_identifier,
            request.target_version,
        )

    def _history(self, log: LoadedLog, offset: int, count: int) -> list[PastVersion]:
        past: list[PastVersion] = []
        size = 0
        for version in versions(self._committer.engine, log.id, offset):
            past.append(version)
            size += len(version.value.any) + len(version.value.binary)
            if version.previous is not None:
                size += len(version.previous.any) + len(version.previous.binary)
            self._check_size(size)
            if count and len(past) == count:
                break
        return past

    async def _encode(self, variables: Sequence[VariableState]) -> list[bytes]:
        self._check_size(sum(len(v.value.any) + len(v.value.binary) for v in variables))
        if len(variables) <= INLINE_WORK:
            return [wire.variable_bytes(variable) for variable in variables]
        return await asyncio.to_thread(
            lambda: [wire.variable_bytes(variable) for variable in variables]
        )

    def _check_size(self, size: int) -> None:
        if size > self._max_message_bytes:
            raise ResourceExhausted(
                f"the answer is larger than the message limit of {self._max_message_bytes} "
                "bytes: ask by pages (page_size)"
            )

    async def _log(self, session_id: str) -> LoadedLog | None:
        log = self._committer.loaded(session_id)
        if log is None:
            await self._gate.submit(LoadTask(session_id))
            log = self._committer.loaded(session_id)
        return log

    async def _live_log(self, request: Any) -> LoadedLog:  # noqa: ANN401 - any read request
        """The log a read is answered from, as far along as ``min_offset`` asks."""
        session_id, epoch = request.session_id, request.log_epoch
        log = await self._log(session_id)
        if log is None:
            raise SessionNotFound(session_id)
        if request.min_offset > log.committed.head:
            # What is queued may reach it; one process owns the log, so nothing else can.
            await self._gate.submit(LoadTask(session_id))
            log = self._committer.loaded(session_id) or log
        if epoch and epoch != log.id.epoch:
            raise EpochMismatch(session_id, epoch, log.id.epoch)
        if log.committed.ended:
            raise SessionNotFound(session_id)
        head = log.committed.head
        if request.min_offset > head:
            raise OffsetOutOfRange(
                f"offset {request.min_offset} lies in the future: the log {log.id.epoch} has "
                f"offsets 1 to {head}",
                field="min_offset",
                first_available=1,
                last=head,
                log_epoch=log.id.epoch,
            )
        return log


def _token(log: LoadedLog, offset: int, left: int = 0) -> str:
    """Where the next page begins; ``left`` entries of a limit are still to come."""
    return f"{log.id.epoch}:{offset}:{left}"


def _page(request: Any) -> tuple[int, int, int]:  # noqa: ANN401 - any request with pages
    """Size of the page (0 = all), and offset and rest of the limit from its token."""
    if request.page_size < 0:
        raise InvalidRequest(
            f"page_size {request.page_size} is negative: 0 asks for all", field="page_size"
        )
    token = request.page_token
    if not token:
        return request.page_size, 0, 0
    match = _TOKEN.fullmatch(token)
    if match is None:
        raise InvalidRequest(
            f"page_token {quote(token)} is none that this bridge gave", field="page_token"
        )
    return request.page_size, int(match[2]), int(match[3])


_TOKEN = re.compile(r"([0-9a-f]{1,32}):([0-9]{1,19}):([0-9]{1,10})")


def _check_token(request: Any, log: LoadedLog) -> None:  # noqa: ANN401 - as above
    epoch = request.page_token.partition(":")[0]
    if epoch and epoch != log.id.epoch:
        raise FailedPrecondition(
            f"the pages were begun on log {quote(epoch)}, which is now {log.id.epoch}: "
            "begin again without page_token",
            field="page_token",
            log_epoch=log.id.epoch,
        )
