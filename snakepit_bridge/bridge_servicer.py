"""The BridgeService without a transport: request bytes in, response bytes out.

A method is a mutation (read the request, queue the command, write the outcome) or a query
(answer from the committed projection or the log). An error of the tree is raised;
``rpc`` turns it into a status. No rule about variables stands here: those are in
``decide`` and ``variables``.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import blake2b
from typing import Any, NamedTuple

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge import tool_wire, wire
from snakepit_bridge import wire_views_pb2 as views
from snakepit_bridge.commands import PREPARED, PastValue, RollbackVariable, prepared
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
from snakepit_bridge.events.committer import Committer
from snakepit_bridge.events.gate import Gate
from snakepit_bridge.events.loaded import LoadedLog
from snakepit_bridge.events.model import MAX_TRANSACTION
from snakepit_bridge.events.projection import VariableState
from snakepit_bridge.events.reading import versions
from snakepit_bridge.events.selection import name_filter
from snakepit_bridge.events.tasks import Outcome
from snakepit_bridge.observation import Observation
from snakepit_bridge.off_loop import off_loop
from snakepit_bridge.sessions import (
    LoadTask,
    find,
    head_and,
    newest_event,
    past_value,
)
from snakepit_bridge.wire import Call
from snakepit_bridge.wire_bytes import LARGE

__all__ = [
    "BridgeServicer",
    "Ending",
    "Mutate",
    "Mutation",
    "Query",
]

REMEMBERED_VARIABLES = 4_096
REMEMBERED_BYTES = 4_096
"""Encoded variables that are kept, and how long one may be: 16 MiB at most. Encoding costs a
tenth of what a GetVariable costs in all."""

HISTORIANS = 2
"""Threads that walk through histories."""

INLINE_WORK = 256
"""Variables that may be encoded on the event loop (about 1 ms); more go to a thread."""


class Mutation(NamedTuple):
    """One mutating call on its way through the committer, whose thread runs both methods."""

    read: Callable[[Call], Any]
    write: Callable[[Outcome], Any]
    call: Call

    @property
    def timing(self) -> Observation | None:
        return self.call.observation

    def command(self) -> Any:  # noqa: ANN401 - any of ``commands``
        return self.read(self.call)

    def answer(self, outcome: Outcome) -> Any:  # noqa: ANN401 - as ``write`` says
        if self.call.observation is not None:
            self.call.observation.offset = outcome.answer.offset
        return self.write(outcome)


Ending = Callable[[str], Callable[[bool], None]]
"""Takes a session's id; gives what to call when it has ended, with whether that was by force."""

Query = Callable[[bytes], Awaitable[bytes]]
Mutate = Callable[[Call], Awaitable[bytes]]


class BridgeServicer:
    """The unary methods that this release serves, by name, in ``queries`` and ``mutations``."""

    def __init__(
        self,
        committer: Committer,
        gate: Gate,
        tools: Mapping[str, bytes],
        ending: Ending,
        *,
        max_message_bytes: int,
    ) -> None:
        """Make the methods.

        :param tools: serialized ``ToolSpec`` messages of the tools that run here, by name.
        :param ending: called when a client is about to end a session.
        """
        self._committer = committer
        self._tools = tools
        described = pb.PingResponse()
        for name, spec in tools.items():
            described.tools[name].ParseFromString(spec)
        self._described: bytes = described.SerializeToString()
        """``PingResponse.tools``: two messages, one after the other, are one with both's fields."""
        self._ending = ending
        self._gate = gate
        self._max_message_bytes = max_message_bytes
        self._historians = ThreadPoolExecutor(HISTORIANS, "history")
        """Walk through histories, so that these keep nobody else's reading waiting."""
        self._end = self._mutate(wire.cleanup_session, wire.cleaned_up)
        self._remembered: dict[int, tuple[VariableState, bytes]] = {}
        """By identity of the version, which is kept so that its identity stays its own."""
        self.queries: dict[str, Query] = {
            "Ping": self.ping,
            "GetSession": self.get_session,
            "Heartbeat": self.heartbeat,
            "GetVariable": self.get_variable,
            "ListVariables": self.list_variables,
            "GetVariables": self.get_variables,
            "GetVariableHistory": self.get_variable_history,
        }
        self.mutations: dict[str, Mutate] = {
            "InitializeSession": self.initialize_session,
            "CleanupSession": self.cleanup_session,
            "RegisterVariable": self._mutate(wire.register_variable, wire.registered),
            "SetVariable": self._mutate(wire.set_variable, wire.was_set),
            "DeleteVariable": self._mutate(wire.delete_variable, wire.deleted),
            "SetVariables": self._mutate(wire.set_variables, wire.were_set),
            "RollbackVariable": self.rollback_variable,
            "StartOptimization": self._mutate(wire.start_optimization, wire.optimization_started),
            "StopOptimization": self._mutate(wire.stop_optimization, wire.optimization_stopped),
            "RegisterTools": self._mutate(tool_wire.register_tools, tool_wire.registered_tools),
        }

    def _mutate(self, read: Callable[[Call], Any], write: Callable[[Outcome], bytes]) -> Mutate:
        gate = self._gate
        submit = gate.submit

        async def prepare(call: Call) -> bytes:
            size = len(call.raw)
            gate.claim(size)
            try:
                command = await off_loop(lambda: prepared(read(call)))
                answer: bytes = await submit(Mutation(lambda _: command, write, call))
            finally:
                gate.release(size)
            return answer

        def method(call: Call) -> Awaitable[bytes]:
            if len(call.raw) > PREPARED:
                return prepare(call)
            return submit(Mutation(read, write, call), len(call.raw))

        return method

    async def tools_of(self, session_id: str) -> Mapping[str, bytes]:
        """Serialized ``ToolSpec`` messages by name: what workers registered, and what runs here."""
        log = await self._log(session_id)
        if log is None or not log.committed.live:
            return self._tools
        registered = {name: tool.spec for name, tool in log.committed.tools.items()}
        return {**registered, **self._tools}

    async def initialize_session(self, call: Call) -> bytes:
        outcome: Outcome = await self._gate.submit(
            Mutation(wire.initialize_session, _as_it_is, call), len(call.raw)
        )
        variables = await self._encode(outcome.variables, "list the variables by pages")
        registered = {name: tool.spec for name, tool in outcome.tools.items()}
        return wire.initialized(outcome, variables, {**registered, **self._tools})

    async def cleanup_session(self, call: Call) -> bytes:
        request = wire.parse(pb.CleanupSessionRequest, call.raw)
        ended = self._ending(request.session_id)
        raw = await self._end(call)
        ended(request.force)
        return raw

    async def ping(self, raw: bytes) -> bytes:
        request = wire.parse(pb.PingRequest, raw)
        response = pb.PingResponse(message=f"pong: {request.message}")
        response.server_time.GetCurrentTime()
        answer: bytes = response.SerializeToString()
        return answer + self._described if request.include_tools else answer

    async def heartbeat(self, raw: bytes) -> bytes:
        request = wire.parse(pb.HeartbeatRequest, raw)
        log = await self._log(request.session_id)
        response = pb.HeartbeatResponse(session_valid=log is not None and log.committed.live)
        response.server_time.GetCurrentTime()
        return response.SerializeToString()

    async def get_session(self, raw: bytes) -> bytes:
        request = wire.parse(pb.GetSessionRequest, raw)
        log = await self._live_log(request)
        with log.lock:
            state = log.committed
            head, count, registered = state.head, len(state.variables), state.tools
        response = pb.GetSessionResponse(
            session_id=request.session_id,
            metadata=state.metadata,
            variable_count=count,
            tool_count=len(registered.keys() | self._tools.keys()),
            offset=head,
            log_epoch=log.id.epoch,
        )
        response.created_at.FromNanoseconds(state.created_unix_nanos)
        return response.SerializeToString()

    async def get_variable(self, raw: bytes) -> bytes:
        request = wire.parse(pb.GetVariableRequest, raw)
        log = self._committer.loaded(request.session_id)
        if log is None or request.min_offset or request.log_epoch or log.committed.ended:
            log = await self._live_log(request)
        variable, head = find(log, request.variable_identifier)
        if len(variable.value.any) + len(variable.value.binary) > LARGE:
            return await off_loop(wire.got_variable, variable, head, log.id.epoch)
        response = views.GetVariableResponseView()
        response.variable = self._bytes_of(variable)
        response.offset = head
        response.log_epoch = log.id.epoch
        return response.SerializeToString()

    async def get_variables(self, raw: bytes) -> bytes:
        request = wire.parse(pb.BatchGetVariablesRequest, raw)
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
        encoded = await self._encode(list(present.values()), "ask in several calls")
        response = views.BatchGetVariablesResponseView(
            missing_variables=[key for key, variable in found.items() if variable is None],
            offset=head,
            log_epoch=log.id.epoch,
        )
        for key, data in zip(present, encoded, strict=True):
            response.variables.add(key=key, value=data)
        return response.SerializeToString()

    async def list_variables(self, raw: bytes) -> bytes:
        request = wire.parse(pb.ListVariablesRequest, raw)
        matches = name_filter(request.pattern)
        log = await self._live_log(request)
        size, after, _ = _page(request, log, "list")
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
            token = _token(log, "list", chosen[-1].definition.registered)
        response = views.ListVariablesResponseView(
            variables=await self._encode(chosen, _BY_PAGES),
            offset=head,
            log_epoch=log.id.epoch,
            next_page_token=token,
        )
        return response.SerializeToString()

    async def get_variable_history(self, raw: bytes) -> bytes:
        request = wire.parse(pb.GetVariableHistoryRequest, raw)
        if request.limit < 0:
            raise InvalidRequest(
                f"limit {request.limit} is negative: 0 asks for all", field="limit"
            )
        log = await self._live_log(request)
        head, id_, newest = newest_event(log, request.variable_identifier)
        size, after, left = _page(request, log, id_)
        limit = left or request.limit
        count = min(size or limit, limit or size)
        walk = partial(self._history, log, id_, after or newest, count, cut=size > 0)
        loop = asyncio.get_running_loop()
        past, following = await loop.run_in_executor(self._historians, walk)
        token = ""
        if following and (not limit or limit > len(past)):
            token = _token(log, id_, following, limit and limit - len(past))
        response = views.GetVariableHistoryResponseView(
            entries=past,
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
                wire.with_key(wire.envelope(request, request.metadata, call), request),
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
        return await off_loop(
            past_value,
            self._committer.engine,
            log,
            request.variable_identifier,
            request.target_version,
        )

    def _history(
        self, log: LoadedLog, id_: str, offset: int, count: int, *, cut: bool
    ) -> tuple[list[bytes], int]:
        """Encoded entries from ``offset`` backwards, and where the next one is.

        :param cut: end a page before it grows too large, instead of refusing.
        """
        entries: list[bytes] = []
        size = 0
        for past in versions(self._committer.engine, log.id, id_, offset):
            entry = wire.history_entry(past, log.id.epoch)
            size += len(entry)
            if size > self._max_message_bytes and entries:
                if cut:
                    return entries, past.offset
                self._check_size(size, _BY_PAGES)
            entries.append(entry)
            if len(entries) == count:
                return entries, past.previous_offset
        return entries, 0

    async def _encode(self, variables: Sequence[VariableState], advice: str) -> list[bytes]:
        """Serialized variables; ``advice`` is what to do if they are too many for one answer."""
        if len(variables) <= INLINE_WORK:
            return self._encoded(variables, advice)
        return await off_loop(self._encoded, variables, advice)

    def _encoded(self, variables: Sequence[VariableState], advice: str) -> list[bytes]:
        encoded = []
        size = 0
        for variable in variables:
            data = wire.variable_bytes(variable)
            size += len(data)
            self._check_size(size, advice)
            encoded.append(data)
        return encoded

    def _bytes_of(self, variable: VariableState) -> bytes:
        """``variable_bytes``, remembered for versions that are read again and again."""
        known = self._remembered.get(id(variable))
        if known is not None and known[0] is variable:
            return known[1]
        data = wire.variable_bytes(variable)
        if len(data) <= REMEMBERED_BYTES:
            if len(self._remembered) >= REMEMBERED_VARIABLES:
                self._remembered.clear()
            self._remembered[id(variable)] = (variable, data)
        return data

    def _check_size(self, size: int, advice: str) -> None:
        if size > self._max_message_bytes:
            raise ResourceExhausted(
                f"the answer is larger than the message limit of {self._max_message_bytes} "
                f"bytes: {advice}, or start the bridge with a larger --max-message-size"
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
                f"offsets {log.base + 1} to {head}",
                field="min_offset",
                first_available=log.base + 1,
                last=head,
                log_epoch=log.id.epoch,
            )
        return log


_BY_PAGES = "ask by pages (page_size)"


def _as_it_is(outcome: Outcome) -> Outcome:
    return outcome


def _token(log: LoadedLog, of: str, offset: int, left: int = 0) -> str:
    """Where the next page begins; ``left`` entries of a limit are still to come."""
    return f"{log.id.epoch}:{_mark(of)}:{offset}:{left}"


def _mark(of: str) -> str:
    """Tells the pages of one list or history from those of others."""
    return blake2b(of.encode(), digest_size=8).hexdigest()


def _page(request: Any, log: LoadedLog, of: str) -> tuple[int, int, int]:  # noqa: ANN401
    """Size of the page (0 = all), and offset and rest of the limit from its token."""
    if request.page_size < 0:
        raise InvalidRequest(
            f"page_size {request.page_size} is negative: 0 asks for all", field="page_size"
        )
    token = request.page_token
    if not token:
        return request.page_size, 0, 0
    match = _TOKEN.fullmatch(token)
    if match is None or match[2] != _mark(of) or int(match[3]) > log.committed.head:
        raise InvalidRequest(
            f"page_token {quote(token)} is none that this bridge gave for these pages",
            field="page_token",
        )
    if match[1] != log.id.epoch:
        raise FailedPrecondition(
            f"the pages were begun on log {match[1]}, which is now {log.id.epoch}: "
            "begin again without page_token",
            field="page_token",
            log_epoch=log.id.epoch,
        )
    return request.page_size, int(match[3]), int(match[4])


_TOKEN = re.compile(r"([0-9a-f]{16}):([0-9a-f]{16}):([0-9]{1,19}):([0-9]{1,10})")
