"""A model of sessions made of plain dictionaries, and how it answers commands.

It says in its own words what each command is answered and what becomes of the session;
``test_projection_model`` compares the real thing with it.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from snakepit_bridge.commands import (
    CleanupSession,
    Command,
    DeleteVariable,
    FinishTool,
    Incoming,
    InitializeSession,
    LoadSession,
    PastValue,
    RegisterTools,
    RegisterVariable,
    RollbackVariable,
    SetVariable,
    SetVariables,
    StartOptimization,
    StartTool,
    StopOptimization,
    ToolRun,
    WireValue,
)
from snakepit_bridge.errors import (
    AlreadyExists,
    BridgeError,
    EpochMismatch,
    FailedPrecondition,
    InvalidRequest,
    InvalidValue,
    OffsetOutOfRange,
    RequestIdReused,
    ResourceExhausted,
    SessionNotFound,
    VariableNotFound,
    VersionConflict,
    VersionNotFound,
)
from snakepit_bridge.event_log_pb2 import ToolFinished
from snakepit_bridge.events import requests
from snakepit_bridge.events.model import Envelope, LogId, Transaction
from snakepit_bridge.events.projection import Lock, RegisteredTool, SessionState, VariableState
from snakepit_bridge.limits import Limits
from tests.direct import integer, json_of

RANGE = '{"min": 0, "max": 9}'
LARGEST = 10**20 - 1
"""The integer that takes as many bytes as a value may have."""
LIMITS = Limits(value_size=len(integer(LARGEST).any), sessions=2, variables=3, optimization_ttl=60)
CALLS = 3
"""May be open at a time; the test sees to it that the bridge allows as few."""
TOOLS = 3
"""May be registered, as few."""
SPEC = 4
"""Bytes of a description."""
FINISHED = "finished"
"""The key under which the end of a call is remembered."""


@dataclass
class Variable:
    id: str
    name: str
    limited: bool
    registered: int
    versions: list[tuple[int, int]]
    """Value and offset of version 1, 2, ..."""
    source: str
    metadata: dict[str, str]
    lock: Lock | None = None

    @property
    def version(self) -> int:
        return len(self.versions)

    def shown(self) -> dict[str, Any]:
        value, offset = self.versions[-1]
        return {
            "id": self.id,
            "name": self.name,
            "limited": self.limited,
            "registered": self.registered,
            "version": self.version,
            "value": value,
            "offset": offset,
            "source": self.source,
            "metadata": dict(self.metadata),
            "lock": self.lock,
        }


class Tool(NamedTuple):
    """One that a worker elsewhere runs."""

    id: str
    spec: bytes
    worker_id: str
    offset: int


class Call(NamedTuple):
    """A call of a tool that is open."""

    id: str
    tool: str
    offset: int
    """Of its start."""
    time: int
    instance: str
    request: tuple[str, str] | None
    """Id and method."""


class Started(NamedTuple):
    """The event that opens a call."""

    call_id: str
    tool: str
    arguments: tuple[tuple[str, bytes, bytes], ...]
    """Of each that is recorded its name, and the digest of what is kept or of what is not."""
    streaming: bool
    deadline: int


class Ended(NamedTuple):
    """The event that closes one."""

    call_id: str
    outcome: str
    started: int
    """Offset of the event that opened it."""
    kept: bytes = b""
    """Digest of a result that is kept."""
    digest: bytes = b""
    """Of one that is not."""
    duration: int = 0
    error: tuple[str, str, str] = ("", "", "")
    chunks: int = 0


Fact = Started | Ended | tuple[str, tuple[tuple[str, str, bytes], ...]]
"""An event of tools; of registered ones the worker, and of each id, name and description."""


class Remembered(NamedTuple):
    fingerprint: object
    method: str
    first_offset: int
    version: int
    """Of a key of a batch that is not atomic; else 0."""
    answer: Expected | None


@dataclass
class Log:
    """One log of a session, as it should be."""

    epoch: str = ""
    head: int = 0
    base: int = 0
    """Up to where it was cut."""
    time: int = 0
    """Of its last event."""
    ended: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    deleted: dict[str, int] = field(default_factory=dict)
    used_names: set[str] = field(default_factory=set)
    tools: dict[str, Tool] = field(default_factory=dict)
    calls: dict[str, Call] = field(default_factory=dict)
    """Those that are open, in the order of their starts."""
    requests: dict[tuple[str, str], Remembered] = field(default_factory=dict)
    facts: dict[int, Fact] = field(default_factory=dict)
    """Events of tools by their offsets."""
    origins: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Of every event, by its offset: who did it, and in which call."""
    states: dict[int, dict[str, Any]] = field(default_factory=dict)
    """What was shown after each transaction, by its last offset."""

    @property
    def live(self) -> bool:
        return self.head > 0 and not self.ended

    def find(self, identifier: str) -> Variable:
        for variable in self.variables.values():
            if variable.name == identifier:
                return variable
        if identifier in self.variables:
            return self.variables[identifier]
        raise Refusal(VariableNotFound)

    def shown(self) -> dict[str, Any]:
        return {
            "head": self.head,
            "ended": self.ended,
            "metadata": self.metadata,
            "variables": [variable.shown() for variable in self.variables.values()],
            "names": {v.name: v.id for v in self.variables.values()},
            "deleted": dict(self.deleted),
            "used_names": set(self.used_names),
            "tools": dict(self.tools),
            "calls": list(self.calls.values()),
            "requests": {
                requests._key(*key): (known.method, known.first_offset)
                for key, known in self.requests.items()
            },
        }


def shown(state: SessionState) -> dict[str, Any]:
    """The same of the real state."""
    return {
        "head": state.head,
        "ended": state.ended,
        "metadata": state.metadata,
        "variables": [shown_variable(variable) for variable in state.variables.values()],
        "names": state.names,
        "deleted": state.deleted,
        "used_names": state.used_names,
        "tools": shown_tools(state.tools),
        "calls": [
            Call(*call[:5], call.request and call.request[:2]) for call in state.calls.values()
        ],
        "requests": {
            key: (known.method, known.first_offset)
            for key, known in state.requests.entries().items()
        },
    }


def shown_variable(variable: VariableState) -> dict[str, Any]:
    definition = variable.definition
    return {
        "id": definition.id,
        "name": definition.name,
        "limited": bool(definition.constraints_json),
        "registered": definition.registered,
        "version": variable.version,
        "value": int(json_of(variable.value)),
        "offset": variable.offset,
        "source": variable.source,
        "metadata": dict(variable.metadata),
        "lock": variable.lock,
    }


def shown_tools(tools: Mapping[str, RegisteredTool]) -> dict[str, Tool]:
    return {name: Tool(tool.id, *tool[2:]) for name, tool in tools.items()}


def shown_facts(transactions: Iterable[Transaction]) -> dict[int, Fact]:
    """The events of tools in a real log."""
    found: dict[int, Fact] = {}
    for transaction in transactions:
        for offset, (kind, body) in enumerate(transaction.facts, transaction.record.first_offset):
            if kind == "tools_registered":
                told = tuple((tool.id, tool.name, tool.spec) for tool in body.tools)
                found[offset] = (body.worker_id, told)
            elif kind == "tool_started":
                given = tuple(
                    (each.name, each.value_digest, each.digest) for each in body.arguments
                )
                found[offset] = Started(
                    body.call_id, body.tool, given, body.streaming, body.deadline_unix_nanos
                )
            elif kind == "tool_finished":
                found[offset] = shown_end(body)
    return found


def shown_end(body: ToolFinished) -> Ended:
    message = body.error_message
    if body.outcome == "interrupted":
        message = message.rpartition(" ")[2]  # what died or ended
    return Ended(
        body.call_id,
        body.outcome,
        body.started_offset,
        body.value_digest,
        body.digest,
        body.duration_nanos,
        (body.error_type, message, body.error_traceback),
        body.chunks,
    )


class Refusal(Exception):
    """The model refuses a command with this error."""

    def __init__(self, kind: type[BridgeError]) -> None:
        super().__init__(kind.__name__)
        self.kind = kind


@dataclass
class Expected:
    """What the model answers; ``None`` is not compared."""

    offset: int
    epoch: str | None
    number: int | None = None
    variable: dict[str, Any] | None = None
    optimization_id: str | None = None
    versions: dict[str, int] = field(default_factory=dict)
    errors: set[str] = field(default_factory=set)
    variables: list[dict[str, Any]] | None = None
    tools: dict[str, Tool] | None = None
    tool_ids: dict[str, str] = field(default_factory=dict)
    finished: Ended | None = None
    """How the call ended that a repeated request asked for; this is compared."""
    refused: bool = False
    duplicate: bool = False


class Model:
    """All sessions, and what commands do to them."""

    def __init__(self) -> None:
        self.newest: dict[str, Log] = {}
        self.logs: dict[LogId, Log] = {}
        self.now = 0
        """What the clock says."""
        self.instance = ""
        """The bridge that runs now."""
        self.closed: list[Call] = []
        """Every call that has ended, of any session."""
        self.keys: list[str] = [""]
        """Every key to a lock that was ever given out."""
        self._epochs = itertools.count(1)
        self._fingerprint: object = None
        self._before = 0
        """Head before the command's own events."""
        self._origin = ("", "")

    def expect(self, command: Command) -> Expected | type[BridgeError]:
        """Do what the command says, and say how it is answered."""
        try:
            return self._decide(command)
        except Refusal as refusal:
            return refusal.kind

    def _decide(self, command: Command) -> Expected:
        envelope = command.envelope
        log = self.newest.get(envelope.session_id) or Log()
        self._origin = (envelope.origin.source, envelope.origin.tool_call_id)
        starts = isinstance(command, BEGINNING)
        if envelope.log_epoch not in ("", log.epoch) and (log.head or starts):
            raise Refusal(EpochMismatch)
        self._close_all(log, "died", [c for c in log.calls.values() if c.instance != self.instance])
        if envelope.origin.tool_call_id and (log.live or starts):
            asking = log.calls.get(envelope.origin.tool_call_id)
            if asking is None or envelope.origin.source != f"tool:{asking.tool}":
                raise Refusal(FailedPrecondition)
        self._fingerprint = fingerprint_of(command)
        known = log.requests.get((envelope.request_id, "")) if envelope.request_id else None
        if known is not None:
            if known.fingerprint != self._fingerprint:
                raise Refusal(RequestIdReused)
            if isinstance(command, StartTool):
                # Never a second call: told how it ended, or that it runs.
                known = log.requests.get((envelope.request_id, FINISHED), known)
                if known.answer is None or known.answer.finished is None:
                    return Expected(known.first_offset, log.epoch, duplicate=True)
            if known.answer is not None:
                if known.first_offset <= log.base and not isinstance(command, SetVariable):
                    raise Refusal(OffsetOutOfRange)  # its answer would be read from the log
                return replace(known.answer, duplicate=True)
            assert isinstance(command, SetVariables)
            return self._again(log, command)
        return self._do(log, command)

    def _again(self, log: Log, command: SetVariables) -> Expected:
        """Of a batch that is not atomic, the keys that are written are not looked at again."""
        id_ = command.envelope.request_id
        done = {
            key: log.requests[id_, key] for key, _ in command.updates if (id_, key) in log.requests
        }
        last = max(known.first_offset for known in done.values())
        answer = Expected(0, log.epoch)
        if left := tuple(pair for pair in command.updates if pair[0] not in done):
            expected = {k: v for k, v in command.expected_versions.items() if k not in done}
            answer = self._do(log, command._replace(updates=left, expected_versions=expected))
        answer.duplicate = answer.offset == 0
        answer.offset = answer.offset or last
        answer.versions |= {key: known.version for key, known in done.items()}
        return answer

    def _do(self, log: Log, command: Command) -> Expected:
        envelope = command.envelope
        if not log.live:
            log = self._begin(log, command)
            if isinstance(command, CleanupSession):
                return Expected(0, None, number=0)
            if isinstance(command, FinishTool):
                return Expected(0, log.epoch)
            if isinstance(command, LoadSession):
                return Expected(log.head, log.epoch)
        before = self._before = log.head
        answer = _DECIDERS[type(command)](self, log, command)
        if log.head > self._before and not (
            isinstance(command, SetVariables) and not command.atomic
        ):
            if envelope.request_id:
                log.requests[envelope.request_id, ""] = Remembered(
                    self._fingerprint,
                    method_of(command),
                    self._before + 1,
                    0,
                    copy.deepcopy(answer),
                )
            self._committed(log)
        if before == 0 and log.head:
            self.newest[envelope.session_id] = log
            self.logs[LogId(envelope.session_id, log.epoch)] = log
        return answer

    def _begin(self, ended: Log, command: Command) -> Log:
        if isinstance(command, CleanupSession | LoadSession | FinishTool):
            return ended
        if not isinstance(command, BEGINNING):
            raise Refusal(SessionNotFound)
        if command.envelope.log_epoch:
            raise Refusal(FailedPrecondition)
        if sum(log.live for log in self.newest.values()) >= LIMITS.sessions:
            raise Refusal(ResourceExhausted)
        if isinstance(command, RegisterVariable):
            self._check_registration(Log(), command)
        if isinstance(command, RegisterTools):
            check_tools(Log(), command)
        return Log(f"epoch-{next(self._epochs)}")

    def _committed(self, log: Log) -> None:
        log.states[log.head] = copy.deepcopy(log.shown())

    def _append(self, log: Log, events: int = 1, *, own: bool = False) -> None:
        """:param own: it is the bridge's own doing, which met a command."""
        for _ in range(events):
            log.head += 1
            log.origins[log.head] = ("bridge", "") if own else self._origin
        log.time = max(log.time, self.now)

    def _release(self, log: Log, variables: Sequence[Variable], envelope: Envelope) -> None:
        """Take locks away that were not used for long, in a transaction of its own."""
        now = max(log.time, self.now)
        stale = [
            variable
            for variable in variables
            if variable.lock
            and variable.lock.optimization_id != envelope.optimization_id
            and now - variable.lock.used_unix_nanos > LIMITS.optimization_ttl * 1e9
        ]
        if stale:
            for variable in stale:
                variable.lock = None
            self._append(log, len(stale), own=True)
            self._committed(log)
            self._before = log.head

    def _check_lock(self, log: Log, variable: Variable, envelope: Envelope) -> None:
        self._release(log, [variable], envelope)
        given = envelope.optimization_id
        if variable.lock is None and given.rpartition(":")[0].rpartition(":")[0] == variable.id:
            raise Refusal(FailedPrecondition)
        if variable.lock is not None and given != variable.lock.optimization_id:
            raise Refusal(FailedPrecondition)

    def _start(self, log: Log, command: StartOptimization) -> Expected:
        variable = log.find(command.identifier)
        self._release(log, [variable], command.envelope)
        if variable.lock is not None:
            raise Refusal(FailedPrecondition)
        self._append(log)
        key = f"{variable.id}:{log.epoch}:{log.head}"
        self.keys.append(key)
        variable.lock = Lock(key, command.optimizer_id, log.time, log.time)
        return Expected(log.head, log.epoch, optimization_id=key)

    def _stop(self, log: Log, command: StopOptimization) -> Expected:
        variable = log.find(command.identifier)
        if variable.lock is None:
            raise Refusal(FailedPrecondition)
        held = variable.lock.optimization_id == command.envelope.optimization_id
        if not held and not command.force:
            raise Refusal(FailedPrecondition)
        self._append(log)
        variable.lock = None
        return Expected(log.head, log.epoch, variable=variable.shown())

    def _initialize(self, log: Log, command: InitializeSession) -> Expected:
        if not log.head:
            self._append(log)
            log.metadata = dict(command.metadata)
        shown = [variable.shown() for variable in log.variables.values()]
        return Expected(log.head, log.epoch, variables=shown, tools=dict(log.tools))

    def _load(self, log: Log, _command: LoadSession) -> Expected:
        return Expected(log.head, log.epoch)

    def _clean_up(self, log: Log, command: CleanupSession) -> Expected:
        self._close_all(log, "ended", list(log.calls.values()))
        self._append(log)
        log.ended = command.reason
        return Expected(log.head, log.epoch, number=1 + len(log.variables) + len(log.tools))

    def _check_registration(self, log: Log, command: RegisterVariable) -> None:
        name = command.name
        if not name or "*" in name:
            raise Refusal(InvalidRequest)
        names = {variable.name for variable in log.variables.values()}
        if name in names or name in log.variables or name in log.deleted:
            raise Refusal(AlreadyExists)
        if len(names) >= LIMITS.variables:
            raise Refusal(ResourceExhausted)
        check_value(command.value, limited=bool(command.constraints_json))

    def _register(self, log: Log, command: RegisterVariable) -> Expected:
        self._check_registration(log, command)
        self._append(log, 1 if log.head else 2)
        name, number = command.name, log.head
        while (
            (id_ := f"var_{name}_{number}") in {*log.variables, *log.deleted, *log.used_names}
        ) or id_ == name:
            number += 1
        envelope = command.envelope
        log.used_names.add(name)
        log.variables[id_] = variable = Variable(
            id_,
            name,
            bool(command.constraints_json),
            log.head,
            [(value_of(command.value), log.head)],
            envelope.origin.source,
            dict(envelope.metadata),
        )
        return Expected(log.head, log.epoch, variable=variable.shown())

    def _change(self, log: Log, variable: Variable, value: int, envelope: Envelope) -> None:
        self._append(log)
        if variable.lock:
            variable.lock = variable.lock._replace(used_unix_nanos=log.time)
        variable.versions.append((value, log.head))
        variable.source = envelope.origin.source
        variable.metadata |= envelope.metadata
        if "source" in variable.metadata:
            variable.metadata["source"] = variable.source

    def _set(self, log: Log, command: SetVariable) -> Expected:
        variable = log.find(command.identifier)
        self._check_lock(log, variable, command.envelope)
        check_version(variable, command.expected_version)
        check_value(command.value, limited=variable.limited)
        self._change(log, variable, value_of(command.value), command.envelope)
        return Expected(log.head, log.epoch, number=variable.version)

    def _set_many(self, log: Log, command: SetVariables) -> Expected:
        chosen: list[tuple[str, Any, Variable]] = []
        for key, value in command.updates:
            try:
                variable = log.find(key)
            except Refusal:
                raise Refusal(InvalidRequest) from None
            if any(other is variable for _, _, other in chosen):
                raise Refusal(InvalidRequest)
            chosen.append((key, value, variable))
        keys = {key for key, _, _ in chosen}
        if not keys >= set(command.expected_versions):
            raise Refusal(InvalidRequest)
        self._release(log, [variable for _, _, variable in chosen], command.envelope)
        errors = set()
        for key, value, variable in chosen:
            try:
                self._check_lock(log, variable, command.envelope)
                check_version(variable, command.expected_versions.get(key, 0))
                check_value(value, limited=variable.limited)
            except Refusal:
                errors.add(key)
        if command.atomic:
            if errors:
                return Expected(0, log.epoch, errors=errors, refused=True)
            for _, value, variable in chosen:
                self._change(log, variable, value_of(value), command.envelope)
            versions = {key: variable.version for key, _, variable in chosen}
            return Expected(log.head, log.epoch, versions=versions)
        return self._set_each(log, command, chosen, errors)

    def _set_each(
        self,
        log: Log,
        command: SetVariables,
        chosen: Sequence[tuple[str, Any, Variable]],
        errors: set[str],
    ) -> Expected:
        request_id = command.envelope.request_id
        answer = Expected(0, log.epoch, errors=errors)
        for key, value, variable in chosen:
            if key not in errors:
                self._change(log, variable, value_of(value), command.envelope)
                answer.versions[key] = variable.version
                answer.offset = log.head
                if request_id:
                    whole = Remembered(self._fingerprint, "SetVariables", log.head, 0, None)
                    log.requests.setdefault((request_id, ""), whole)
                    log.requests[request_id, key] = whole._replace(version=variable.version)
                self._committed(log)
        return answer

    def _delete(self, log: Log, command: DeleteVariable) -> Expected:
        variable = log.find(command.identifier)
        self._check_lock(log, variable, command.envelope)
        check_version(variable, command.expected_version)
        self._append(log)
        del log.variables[variable.id]
        log.deleted[variable.id] = log.head
        return Expected(log.head, log.epoch)

    def _roll_back(self, log: Log, command: RollbackVariable) -> Expected:
        variable = log.find(command.identifier)
        self._check_lock(log, variable, command.envelope)
        if not 1 <= command.target_version <= variable.version:
            raise Refusal(VersionNotFound)
        _, offset = variable.versions[command.target_version - 1]
        if offset <= log.base and command.target_version != variable.version:
            raise Refusal(OffsetOutOfRange)
        check_version(variable, command.expected_version)
        value, _ = variable.versions[command.target_version - 1]
        self._change(log, variable, value, command.envelope)
        return Expected(log.head, log.epoch, variable=variable.shown())

    def _register_tools(self, log: Log, command: RegisterTools) -> Expected:
        check_tools(log, command)
        self._append(log, 1 if log.head else 2)
        told = [(f"tool_{name}_{log.head}", name, spec) for name, spec in command.tools]
        log.facts[log.head] = (command.worker_id, tuple(told))
        for id_, name, spec in told:
            log.tools[name] = Tool(id_, spec, command.worker_id, log.head)
        return Expected(log.head, log.epoch, tool_ids={name: id_ for id_, name, _ in told})

    def _start_tool(self, log: Log, command: StartTool) -> Expected:
        if len(log.calls) >= CALLS:
            raise Refusal(ResourceExhausted)
        self._append(log, 1 if log.head else 2)
        call_id, deadline = command.run
        request_id = command.envelope.request_id
        request = (request_id, method_of(command)) if request_id else None
        log.calls[call_id] = Call(call_id, command.tool, log.head, log.time, self.instance, request)
        given = tuple(
            (name, digest, b"") if value else (name, b"", digest)
            for name, digest, value, recorded in command.arguments
            if recorded
        )
        log.facts[log.head] = Started(call_id, command.tool, given, command.streaming, deadline)
        return Expected(log.head, log.epoch)

    def _finish_tool(self, log: Log, command: FinishTool) -> Expected:
        call = log.calls.get(command.call_id)
        if call is None:
            return Expected(0, log.epoch)
        value = command.value
        end = Ended(
            call.id,
            command.outcome,
            call.offset,
            value.digest if value else b"",
            b"" if value else command.digest,
            command.duration_nanos,
            command.error,
            command.chunks,
        )
        self._close(log, call, end)
        return Expected(log.head, log.epoch)

    def _close(self, log: Log, call: Call, end: Ended, *, own: bool = False) -> None:
        self._append(log, own=own)
        del log.calls[call.id]
        self.closed.append(call)
        log.facts[log.head] = end
        if call.request:
            id_, method = call.request
            answer = Expected(log.head, log.epoch, finished=end)
            log.requests[id_, FINISHED] = Remembered(None, method, log.head, 0, answer)

    def _close_all(self, log: Log, why: str, calls: Sequence[Call]) -> None:
        """Nobody will end these, so the bridge does, each in a transaction of its own."""
        for call in calls:
            end = Ended(call.id, "interrupted", call.offset, error=("", why, ""))
            self._close(log, call, end, own=True)
            self._committed(log)
        self._before = log.head


BEGINNING = InitializeSession | RegisterVariable | RegisterTools | StartTool
"""Commands that begin a session."""

_DECIDERS: dict[type, Callable[[Model, Log, Any], Expected]] = {
    InitializeSession: Model._initialize,
    LoadSession: Model._load,
    CleanupSession: Model._clean_up,
    RegisterVariable: Model._register,
    SetVariable: Model._set,
    SetVariables: Model._set_many,
    DeleteVariable: Model._delete,
    RollbackVariable: Model._roll_back,
    StartOptimization: Model._start,
    StopOptimization: Model._stop,
    RegisterTools: Model._register_tools,
    StartTool: Model._start_tool,
    FinishTool: Model._finish_tool,
}


def method_of(command: Command) -> str:
    """The RPC; a tool has two."""
    if isinstance(command, StartTool):
        return "ExecuteStreamingTool" if command.streaming else "ExecuteTool"
    return type(command).__name__


def fingerprint_of(command: Command) -> object:
    """What makes two requests the same: all but what the bridge adds, and the metadata."""
    asked: list[object] = [
        part for part in command[1:] if not isinstance(part, PastValue | BridgeError | ToolRun)
    ]
    if isinstance(command, StartTool):
        # What of the arguments is kept is for the bridge to say.
        given = [(name, digest) for name, digest, _, _ in command.arguments]
        asked = [command.tool, given, command.streaming]
    return type(command), asked, command.envelope.metadata, command.envelope.optimization_id


def check_version(variable: Variable, expected: int) -> None:
    if expected < 0:
        raise Refusal(InvalidRequest)
    if expected not in (0, variable.version):
        raise Refusal(VersionConflict)


def check_tools(log: Log, command: RegisterTools) -> None:
    names: set[str] = set()
    for name, spec in command.tools:
        if not name or name in names:
            raise Refusal(InvalidRequest)
        if len(spec) > SPEC:
            raise Refusal(ResourceExhausted)
        names.add(name)
    if not names:
        raise Refusal(InvalidRequest)
    if len(names | log.tools.keys()) > TOOLS:
        raise Refusal(ResourceExhausted)


def value_of(value: Incoming) -> int:
    assert isinstance(value, WireValue)
    return int(json_of(value))


def check_value(value: Incoming, *, limited: bool) -> None:
    assert isinstance(value, WireValue)
    if not json_of(value).lstrip("-").isdigit():
        raise Refusal(InvalidValue)
    if limited and not 0 <= value_of(value) <= 9:
        raise Refusal(InvalidValue)
    if value_of(value) > LARGEST:
        raise Refusal(ResourceExhausted)
