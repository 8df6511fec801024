"""Deciding, committing and folding against a model made of plain dictionaries.

Hypothesis draws any sequence of commands for two sessions: several at a time or one by
one, with request ids (new, retried, misused), versions and epochs that fit or do not, and
restarts in between. The model says, in its own words, what each is answered and what
becomes of the session. Then

* every answer is the model's,
* the state that is decided on, the one that is read, the fold of the log and the model
  are the same,
* a command that is refused leaves the log untouched,
* the fold of the first k transactions is the state there was after the k-th.
"""

from __future__ import annotations

import copy
import itertools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from snakepit_bridge.commands import (
    CleanupSession,
    Command,
    DeleteVariable,
    Incoming,
    InitializeSession,
    LoadSession,
    PastValue,
    RegisterVariable,
    RollbackVariable,
    SetVariable,
    SetVariables,
    WireValue,
)
from snakepit_bridge.errors import (
    AlreadyExists,
    BridgeError,
    EpochMismatch,
    FailedPrecondition,
    InvalidRequest,
    InvalidValue,
    RequestIdReused,
    SessionNotFound,
    VariableNotFound,
    VersionConflict,
    VersionNotFound,
)
from snakepit_bridge.events import requests
from snakepit_bridge.events.log import EventLog
from snakepit_bridge.events.memory import MemoryLog
from snakepit_bridge.events.model import Envelope, LogId, Origin
from snakepit_bridge.events.projection import SessionState, VariableState, apply
from snakepit_bridge.events.reading import fold
from snakepit_bridge.events.sqlite import SqliteLog
from snakepit_bridge.events.tasks import Outcome
from snakepit_bridge.sessions import past_value
from tests.direct import Direct, Result, folded, integer, json_of, readable, whole

LIMITS = '{"min": 0, "max": 9}'


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
        }


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
    ended: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    deleted: dict[str, int] = field(default_factory=dict)
    used_names: set[str] = field(default_factory=set)
    requests: dict[tuple[str, str], Remembered] = field(default_factory=dict)
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
    }


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
    versions: dict[str, int] = field(default_factory=dict)
    errors: set[str] = field(default_factory=set)
    variables: list[dict[str, Any]] | None = None
    refused: bool = False
    duplicate: bool = False


class Model:
    """All sessions, and what commands do to them."""

    def __init__(self) -> None:
        self.newest: dict[str, Log] = {}
        self.logs: dict[LogId, Log] = {}
        self._epochs = itertools.count(1)
        self._fingerprint: object = None

    def expect(self, command: Command) -> Expected | type[BridgeError]:
        """Do what the command says, and say how it is answered."""
        try:
            return self._decide(command)
        except Refusal as refusal:
            return refusal.kind

    def _decide(self, command: Command) -> Expected:
        envelope = command.envelope
        log = self.newest.get(envelope.session_id) or Log()
        starts = isinstance(command, InitializeSession | RegisterVariable)
        if envelope.log_epoch not in ("", log.epoch) and (log.head or starts):
            raise Refusal(EpochMismatch)
        self._fingerprint = fingerprint_of(command)
        known = log.requests.get((envelope.request_id, "")) if envelope.request_id else None
        if known is not None:
            if known.fingerprint != self._fingerprint:
                raise Refusal(RequestIdReused)
            if known.answer is not None:
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
            if isinstance(command, LoadSession):
                return Expected(log.head, None)
        before = log.head
        answer = _DECIDERS[type(command)](self, log, command)
        if log.head > before and not (isinstance(command, SetVariables) and not command.atomic):
            if envelope.request_id:
                log.requests[envelope.request_id, ""] = Remembered(
                    self._fingerprint,
                    type(command).__name__,
                    before + 1,
                    0,
                    copy.deepcopy(answer),
                )
            self._committed(log)
        if before == 0 and log.head:
            self.newest[envelope.session_id] = log
            self.logs[LogId(envelope.session_id, log.epoch)] = log
        return answer

    def _begin(self, ended: Log, command: Command) -> Log:
        if isinstance(command, CleanupSession | LoadSession):
            return ended
        if not isinstance(command, InitializeSession | RegisterVariable):
            raise Refusal(SessionNotFound)
        if command.envelope.log_epoch:
            raise Refusal(FailedPrecondition)
        if isinstance(command, RegisterVariable):
            self._check_registration(Log(), command)
        return Log(f"epoch-{next(self._epochs)}")

    def _committed(self, log: Log) -> None:
        log.states[log.head] = copy.deepcopy(log.shown())

    def _initialize(self, log: Log, command: InitializeSession) -> Expected:
        if not log.head:
            log.head = 1
            log.metadata = dict(command.metadata)
        shown = [variable.shown() for variable in log.variables.values()]
        return Expected(log.head, log.epoch, variables=shown)

    def _load(self, log: Log, _command: LoadSession) -> Expected:
        return Expected(log.head, log.epoch)

    def _clean_up(self, log: Log, command: CleanupSession) -> Expected:
        log.head += 1
        log.ended = command.reason
        return Expected(log.head, log.epoch, number=1 + len(log.variables))

    def _check_registration(self, log: Log, command: RegisterVariable) -> None:
        name = command.name
        if not name or "*" in name:
            raise Refusal(InvalidRequest)
        names = {variable.name for variable in log.variables.values()}
        if name in names or name in log.variables or name in log.deleted:
            raise Refusal(AlreadyExists)
        check_value(command.value, limited=bool(command.constraints_json))

    def _register(self, log: Log, command: RegisterVariable) -> Expected:
        self._check_registration(log, command)
        log.head += 1 if log.head else 2
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
        log.head += 1
        variable.versions.append((value, log.head))
        variable.source = envelope.origin.source
        variable.metadata |= envelope.metadata
        if "source" in variable.metadata:
            variable.metadata["source"] = variable.source

    def _set(self, log: Log, command: SetVariable) -> Expected:
        variable = log.find(command.identifier)
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
        errors = set()
        for key, value, variable in chosen:
            try:
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
        check_version(variable, command.expected_version)
        log.head += 1
        del log.variables[variable.id]
        log.deleted[variable.id] = log.head
        return Expected(log.head, log.epoch)

    def _roll_back(self, log: Log, command: RollbackVariable) -> Expected:
        variable = log.find(command.identifier)
        if not 1 <= command.target_version <= variable.version:
            raise Refusal(VersionNotFound)
        check_version(variable, command.expected_version)
        value, _ = variable.versions[command.target_version - 1]
        self._change(log, variable, value, command.envelope)
        return Expected(log.head, log.epoch, variable=variable.shown())


_DECIDERS: dict[type, Callable[[Model, Log, Any], Expected]] = {
    InitializeSession: Model._initialize,
    LoadSession: Model._load,
    CleanupSession: Model._clean_up,
    RegisterVariable: Model._register,
    SetVariable: Model._set,
    SetVariables: Model._set_many,
    DeleteVariable: Model._delete,
    RollbackVariable: Model._roll_back,
}


def fingerprint_of(command: Command) -> object:
    """What makes two requests the same: all but what was looked up, and the metadata."""
    asked = [part for part in command[1:] if not isinstance(part, PastValue | BridgeError)]
    return type(command), asked, command.envelope.metadata


def check_version(variable: Variable, expected: int) -> None:
    if expected < 0:
        raise Refusal(InvalidRequest)
    if expected not in (0, variable.version):
        raise Refusal(VersionConflict)


def value_of(value: Incoming) -> int:
    assert isinstance(value, WireValue)
    return int(json_of(value))


def check_value(value: Incoming, *, limited: bool) -> None:
    assert isinstance(value, WireValue)
    if not json_of(value).lstrip("-").isdigit():
        raise Refusal(InvalidValue)
    if limited and not 0 <= value_of(value) <= 9:
        raise Refusal(InvalidValue)


class How(NamedTuple):
    """What every command carries beside its own matter."""

    session: str
    named: bool
    """With a request id."""
    epoch: str
    metadata: dict[str, str]
    together: bool
    """In one batch with the next command."""


SESSIONS = st.sampled_from(["a", "a", "a", "b"])
NAMES = st.sampled_from(["x", "x", "y", "z", "var_x_2", "var_x_3", "", "a*"])
# The n-th live variable, by its name where n is even and else by its id; or this.
IDENTIFIERS = st.one_of(
    st.integers(0, 5), st.integers(0, 5), st.sampled_from(["x", "z", "var_x_2", "var_y_3"])
)
VALUES = st.sampled_from([0, 1, 2, 5, 8, 9, 10, '"7"']).map(integer)
VERSIONS = st.sampled_from(["any", "any", "any", "same", "same", "other", "negative"])
EPOCHS = st.sampled_from(["", "", "", "", "", "current", "current", "past", "wrong"])
METADATA = st.sampled_from([{}, {}, {"k": "1"}, {"k": "2", "source": "python"}])
TOGETHER = st.booleans()
HOW = st.builds(How, SESSIONS, st.booleans(), EPOCHS, METADATA, TOGETHER)


class Sessions(RuleBasedStateMachine):
    """The real thing beside the model."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.waiting: list[tuple[Command, Expected | type[BridgeError]]] = []
        self.named: list[Command] = []
        """Everything that was accepted with a request id."""
        self._epochs = (f"epoch-{n}" for n in itertools.count(1))
        self._ids = itertools.count(1)
        self.direct = self.open()

    def open(self) -> Direct:
        ticks = itertools.count(1_000)
        return Direct(self.engine(), clock=lambda: next(ticks), epochs=lambda: next(self._epochs))

    def engine(self) -> EventLog:
        raise NotImplementedError

    # What a client can say.

    @initialize(limited=st.booleans())
    def begin(self, limited: bool) -> None:
        for name, constraints in (("x", LIMITS if limited else ""), ("y", "")):
            envelope = Envelope("a", origin=Origin("elixir"))
            command = RegisterVariable(envelope, name, "integer", integer(3), constraints)
            self.send(command, together=True)

    @rule(how=HOW, metadata=METADATA)
    def start(self, how: How, metadata: dict[str, str]) -> None:
        envelope = self.envelope(how)._replace(metadata={})
        self.send(InitializeSession(envelope, metadata), how.together)

    @rule(how=HOW, name=NAMES, value=VALUES, constraints=st.sampled_from(["", LIMITS]))
    def register(self, how: How, name: str, value: WireValue, constraints: str) -> None:
        envelope = self.envelope(how)
        self.send(RegisterVariable(envelope, name, "integer", value, constraints), how.together)

    @rule(how=HOW, which=IDENTIFIERS, value=VALUES, version=VERSIONS)
    def set(self, how: How, which: int | str, value: WireValue, version: str) -> None:
        identifier, expected = self.resolve(how.session, which, version)
        self.send(SetVariable(self.envelope(how), identifier, value, expected), how.together)

    @rule(
        how=HOW,
        updates=st.lists(st.tuples(IDENTIFIERS, VALUES, VERSIONS), min_size=1, max_size=3),
        stray=st.sampled_from([False] * 9 + [True]),
        atomic=st.booleans(),
    )
    def set_many(
        self,
        how: How,
        updates: list[tuple[int | str, WireValue, str]],
        stray: bool,
        atomic: bool,
    ) -> None:
        values, versions = {}, {"nobody": 1} if stray else {}
        for which, value, version in updates:
            identifier, expected = self.resolve(how.session, which, version)
            values[identifier] = value
            if expected:
                versions[identifier] = expected
        pairs = tuple((key, values[key]) for key in sorted(values))
        self.send(SetVariables(self.envelope(how), pairs, atomic, versions), how.together)

    @rule(how=HOW, which=IDENTIFIERS, version=VERSIONS)
    def delete(self, how: How, which: int | str, version: str) -> None:
        identifier, expected = self.resolve(how.session, which, version)
        self.send(DeleteVariable(self.envelope(how), identifier, expected), how.together)

    @rule(how=HOW, which=IDENTIFIERS, past=st.integers(0, 4), version=VERSIONS)
    def roll_back(self, how: How, which: int | str, past: int, version: str) -> None:
        identifier, expected = self.resolve(how.session, which, version)
        found = self.past(how.session, identifier, past)
        command = RollbackVariable(self.envelope(how), identifier, past, found, expected)
        self.send(command, how.together)

    @rule(how=HOW, really=st.sampled_from([False, False, True]))
    def clean_up(self, how: How, really: bool) -> None:
        if really:
            self.send(CleanupSession(self.envelope(how), "cleanup"), how.together)

    @precondition(lambda self: self.named)
    @rule(which=st.integers(0, 9), together=TOGETHER)
    def retry(self, which: int, together: bool) -> None:
        """Exactly as it was sent."""
        command = self.named[-1 - which % len(self.named)]
        if isinstance(command, RollbackVariable):
            session = command.envelope.session_id
            past = self.past(session, command.identifier, command.target_version)
            command = command._replace(past=past)
        self.send(command, together)

    @precondition(lambda self: self.named)
    @rule(which=st.integers(0, 9), value=VALUES, together=TOGETHER)
    def misuse(self, which: int, value: WireValue, together: bool) -> None:
        """Another request under an id that was used."""
        used = self.named[-1 - which % len(self.named)].envelope
        envelope = Envelope(used.session_id, used.request_id, metadata={"mis": "used"})
        self.send(SetVariable(envelope, "x", value), together)

    @rule(session=SESSIONS, together=TOGETHER)
    def load(self, session: str, together: bool) -> None:
        self.send(LoadSession(Envelope(session)), together)

    @rule()
    def restart(self) -> None:
        self.flush()
        self.direct.close()
        self.direct = self.open()

    # Sending it.

    def resolve(self, session: str, which: int | str, version: str) -> tuple[str, int]:
        """An identifier, and the version to be expected of it."""
        log = self.model.newest.get(session) or Log()
        if isinstance(which, str) or not log.variables:
            return (which if isinstance(which, str) else "x"), 0
        variable = [*log.variables.values()][which // 2 % len(log.variables)]
        expected = {
            "any": 0,
            "same": variable.version,
            "other": variable.version + 1,
            "negative": -1,
        }
        return (variable.id if which % 2 else variable.name), expected[version]

    def envelope(self, how: How) -> Envelope:
        session = how.session
        newest = self.model.newest.get(session)
        past = [log.epoch for log in self.model.logs if log.session_id == session]
        epochs = {
            "": "",
            "wrong": "nobody's",
            "current": newest.epoch if newest else "",
            "past": past[0] if past else "",
        }
        return Envelope(
            session,
            f"request {next(self._ids)}" if how.named else "",
            epochs[how.epoch],
            Origin(how.metadata.get("source", "elixir")),
            how.metadata,
        )

    def past(self, session: str, identifier: str, target: int) -> PastValue | BridgeError:
        """As the servicer looks it up: in what is committed."""
        self.flush()
        self.direct.ask(LoadSession(Envelope(session)))
        log = self.direct.committer.loaded(session)
        try:
            if log is None or not log.committed.live:
                raise SessionNotFound(session)
            return past_value(self.direct.engine, log, identifier, target)
        except BridgeError as error:
            return error

    def send(self, command: Command, together: bool) -> None:
        """Let the command wait for the next one, to be decided in one batch with it, or not."""
        expected = self.model.expect(command)
        self.waiting.append((command, expected))
        if command.envelope.request_id and isinstance(expected, Expected):
            self.named.append(command)
        if not together:
            self.flush()

    def flush(self) -> None:
        if not self.waiting:
            return
        commands = [command for command, _ in self.waiting]
        sessions = {command.envelope.session_id for command in commands}
        before = {session: self.direct.engine.latest(session) for session in sessions}
        results = self.direct.ask_all(*commands)
        for (command, expected), result in zip(self.waiting, results, strict=True):
            compare(command, expected, result)
        if all(isinstance(result, BridgeError) for result in results):
            after = {session: self.direct.engine.latest(session) for session in sessions}
            assert after == before
        self.waiting = []
        for session in sessions:
            self.compare_states(session)

    def compare_states(self, session: str) -> None:
        log = self.direct.committer.loaded(session)
        if log is None:
            assert session not in self.model.newest
            return
        from_log = folded(self.direct.engine, log.id)
        assert whole(log.working) == whole(from_log)
        assert readable(log.committed) == readable(from_log)
        assert shown(from_log) == self.model.newest[session].shown()
        assert log.id.epoch == self.model.newest[session].epoch

    def teardown(self) -> None:
        try:
            self.flush()
            for id_, log in self.model.logs.items():
                state = SessionState()
                ends = []
                for transaction in fold(self.direct.engine, id_):
                    apply(state, transaction)
                    ends.append(state.head)
                    assert shown(state) == log.states[state.head]
                assert ends == sorted(log.states)
        finally:
            self.direct.close()


def compare(command: Command, expected: Expected | type[BridgeError], result: Result) -> None:
    if not isinstance(expected, Expected):
        assert type(result) is expected, (command, result)
        return
    assert isinstance(result, Outcome), (command, expected, result)
    answer = result.answer
    assert answer.offset == expected.offset, command
    assert answer.duplicate == expected.duplicate, command
    assert answer.refused == expected.refused, command
    assert answer.versions == expected.versions, command
    assert set(answer.errors) == expected.errors, command
    if expected.epoch is not None:
        assert result.log_epoch == expected.epoch, command
    if expected.number is not None:
        assert answer.number == expected.number, command
    if expected.variable is not None:
        assert result.variable is not None, command
        assert shown_variable(result.variable) == expected.variable, command
    if expected.variables is not None:
        assert [shown_variable(v) for v in result.variables] == expected.variables, command


class InMemory(Sessions):
    def engine(self) -> EventLog:
        kept: MemoryLog | None = getattr(self, "_kept", None)
        self._kept = kept or MemoryLog()
        return self._kept


class OnDisk(Sessions):
    def engine(self) -> EventLog:
        if not hasattr(self, "_directory"):
            self._directory = tempfile.TemporaryDirectory()
        return SqliteLog(Path(self._directory.name) / "bridge.db")

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            self._directory.cleanup()


BOUNDS = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    stateful_step_count=40,
    report_multiple_bugs=False,
    # To explain a failure takes longer than to find it.
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)


def test_any_sequence_of_commands() -> None:
    run_state_machine_as_test(InMemory, settings=settings(BOUNDS, max_examples=200))


def test_any_sequence_of_commands_on_disk() -> None:
    # Not made smaller on failure, which takes long on a disk: the other test does that.
    phases = [Phase.explicit, Phase.reuse, Phase.generate]
    run_state_machine_as_test(OnDisk, settings=settings(BOUNDS, max_examples=20, phases=phases))
