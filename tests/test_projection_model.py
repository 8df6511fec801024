"""Deciding, committing and folding against a model made of plain dictionaries.

Hypothesis draws any sequence of commands for three sessions, of which two may live: several
at a time or one by one, with request ids (new, retried, misused), versions, epochs and keys
to locks that fit or do not, from outside or from calls of tools that are open or over. In
between the clock moves, snapshots are taken, logs are cut at them and leave memory, and the
bridge is started anew, with calls open. ``projection_model`` says what each command is answered
and what becomes of the session. Then

* every answer is the model's,
* the state that is decided on, the one that is read, the one that is loaded, the fold of
  the log and the model are the same,
* a command that is refused leaves the log untouched (but for a stale lock that it met, and
  for calls of a bridge that died),
* the log has the events of tools that the model has, and every event its origin: so a call is
  closed once, and a request id starts one,
* the state after each transaction is what there was then, folded and by snapshots: those that
  were taken, and one at every offset.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from snakepit_bridge import tool_rules
from snakepit_bridge.commands import (
    CleanupSession,
    Command,
    DeleteVariable,
    FinishTool,
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
    ToolArgument,
    ToolRun,
    WireValue,
)
from snakepit_bridge.errors import BridgeError, SessionNotFound
from snakepit_bridge.events.log import EventLog
from snakepit_bridge.events.memory import MemoryLog
from snakepit_bridge.events.model import (
    INLINE_LIMIT,
    Envelope,
    LogHead,
    LogId,
    Origin,
    StoredSnapshot,
    Transaction,
    Value,
    make_value,
)
from snakepit_bridge.events.projection import SessionState, apply
from snakepit_bridge.events.reading import complete, fold, load, replay, state_at
from snakepit_bridge.events.snapshot import copied, open_snapshot, seal_snapshot
from snakepit_bridge.events.sqlite import SqliteLog
from snakepit_bridge.events.tasks import Outcome
from snakepit_bridge.sessions import past_value
from tests.direct import Direct, Result, integer, readable, whole
from tests.projection_model import (
    CALLS,
    LARGEST,
    LIMITS,
    RANGE,
    SPEC,
    TOOLS,
    Call,
    Ended,
    Expected,
    Log,
    Model,
    Refusal,
    Started,
    Variable,
    shown,
    shown_end,
    shown_facts,
    shown_tools,
    shown_variable,
)


class How(NamedTuple):
    """What every command carries beside its own matter."""

    session: str
    named: bool
    """With a request id."""
    epoch: str
    metadata: dict[str, str]
    key: str
    """To the lock of the variable."""
    call: str
    """Of a tool, from which it comes."""
    together: bool
    """In one batch with the next command."""


SESSIONS = st.sampled_from(["a"] * 10 + ["b", "b", "c"])
NAMES = st.sampled_from(["x", "x", "y", "z", "var_x_2", "var_x_3", "", "a*"])
# The n-th live variable, by its name where n is even and else by its id; or this.
IDENTIFIERS = st.one_of(
    st.integers(0, 5), st.integers(0, 5), st.sampled_from(["x", "z", "var_x_2", "var_y_3"])
)
VALUES = st.sampled_from([0, 1, 2, 5, 8, 9, 10, LARGEST, LARGEST + 1, '"7"']).map(integer)
VERSIONS = st.sampled_from(["any", "any", "any", "same", "same", "other", "negative"])
EPOCHS = st.sampled_from(["", "", "", "", "", "current", "current", "past", "wrong"])
METADATA = st.sampled_from([{}, {}, {"k": "1"}, {"k": "2", "source": "python"}])
TOGETHER = st.booleans()
KEYS = st.sampled_from(["", "held", "held", "past"])
CALLERS = st.sampled_from(["", "", "", "", "", "open", "open", "open", "closed", "another's"])
HOW = st.builds(How, SESSIONS, st.booleans(), EPOCHS, METADATA, KEYS, CALLERS, TOGETHER)
# Of tools: values that lie in the record, and beside it under their digests.
RESULTS = st.sampled_from(
    [
        make_value(integer(1).any),
        make_value(integer(2).any),
        make_value(b"a" * (INLINE_LIMIT + 1)),
        make_value(integer(3).any, b"b" * INLINE_LIMIT),
    ]
)
KEPT = st.sampled_from(["full", "full", "digest", "off"])
ARGUMENTS = st.lists(st.tuples(st.sampled_from(["p", "q"]), RESULTS, KEPT), max_size=2)
ANNOUNCED = st.sampled_from(
    [
        [("t", b"1")],
        [("t", b"2"), ("u", b"x" * SPEC)],
        [("v", b""), ("t", b"3")],
        [("u", b""), ("w", b"")],
        [],
        [("", b"")],
        [("t", b""), ("t", b"")],
        [("t", b""), ("u", b"x" * (SPEC + 1))],
    ]
)
ERRORS = st.sampled_from([("", "", ""), ("ValueError", "no \N{SNAKE}", "line 1")])


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
        self.now = 10**13
        """What the clock says; it moves between batches only."""
        self.direct = self.open()

    def open(self) -> Direct:
        direct = Direct(
            self.engine(), LIMITS, clock=lambda: self.now, epochs=lambda: next(self._epochs)
        )
        self.model.instance = direct.committer.instance
        return direct

    def engine(self) -> EventLog:
        raise NotImplementedError

    # What a client can say.

    @initialize(limited=st.booleans(), calls=st.integers(0, 2))
    def begin(self, limited: bool, calls: int) -> None:
        for name, constraints in (("x", RANGE if limited else ""), ("y", "")):
            envelope = Envelope("a", origin=Origin("elixir"))
            command = RegisterVariable(envelope, name, "integer", integer(3), constraints)
            self.send(command, together=True)
        for _ in range(calls):
            asked = Envelope("a", f"request {next(self._ids)}", origin=Origin("elixir"))
            run = ToolRun(self.call_id(), 0)
            self.send(StartTool(asked, "t", (), False, run), together=True)

    @rule(how=HOW, metadata=METADATA)
    def start(self, how: How, metadata: dict[str, str]) -> None:
        envelope = self.envelope(how)._replace(metadata={})
        self.send(InitializeSession(envelope, metadata), how.together)

    @rule(how=HOW, name=NAMES, value=VALUES, constraints=st.sampled_from(["", RANGE]))
    def register(self, how: How, name: str, value: WireValue, constraints: str) -> None:
        envelope = self.envelope(how)
        self.send(RegisterVariable(envelope, name, "integer", value, constraints), how.together)

    @rule(how=HOW, which=IDENTIFIERS, value=VALUES, version=VERSIONS)
    def set(self, how: How, which: int | str, value: WireValue, version: str) -> None:
        identifier, expected = self.resolve(how.session, which, version)
        self.send(
            SetVariable(self.envelope(how, identifier), identifier, value, expected), how.together
        )

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
        self.send(
            SetVariables(self.envelope(how, pairs[0][0]), pairs, atomic, versions), how.together
        )

    @rule(how=HOW, which=IDENTIFIERS, version=VERSIONS)
    def delete(self, how: How, which: int | str, version: str) -> None:
        identifier, expected = self.resolve(how.session, which, version)
        self.send(
            DeleteVariable(self.envelope(how, identifier), identifier, expected), how.together
        )

    @rule(how=HOW, which=IDENTIFIERS, past=st.integers(0, 4), version=VERSIONS)
    def roll_back(self, how: How, which: int | str, past: int, version: str) -> None:
        identifier, expected = self.resolve(how.session, which, version)
        found = self.past(how.session, identifier, past)
        envelope = self.envelope(how, identifier)
        command = RollbackVariable(envelope, identifier, past, found, expected)
        self.send(command, how.together)

    @rule(how=HOW, which=IDENTIFIERS, optimizer=st.sampled_from(["mipro", "simba"]))
    def start_optimization(self, how: How, which: int | str, optimizer: str) -> None:
        identifier, _ = self.resolve(how.session, which, "any")
        command = StartOptimization(self.envelope(how), identifier, optimizer, {"k": "v"})
        self.send(command, how.together)

    @rule(how=HOW, which=IDENTIFIERS, force=st.sampled_from([False, False, True]))
    def stop_optimization(self, how: How, which: int | str, force: bool) -> None:
        identifier, _ = self.resolve(how.session, which, "any")
        envelope = self.envelope(how, identifier)
        self.send(StopOptimization(envelope, identifier, force), how.together)

    @rule(how=HOW, really=st.sampled_from([False] * 5 + [True]))
    def clean_up(self, how: How, really: bool) -> None:
        if really:
            self.send(CleanupSession(self.envelope(how), "cleanup"), how.together)

    @rule(how=HOW, tools=ANNOUNCED, worker=st.sampled_from(["w1", "w2"]))
    def register_tools(self, how: How, tools: list[tuple[str, bytes]], worker: str) -> None:
        self.send(RegisterTools(self.envelope(how), tools, worker), how.together)

    @rule(
        how=HOW,
        tool=st.sampled_from(["t", "t", "u"]),
        arguments=ARGUMENTS,
        streaming=st.booleans(),
        deadline=st.sampled_from([0, 10**18]),
    )
    def start_tool(
        self,
        how: How,
        tool: str,
        arguments: list[tuple[str, Value, str]],
        streaming: bool,
        deadline: int,
    ) -> None:
        given = [
            ToolArgument(name, value.digest, value if kept == "full" else None, kept != "off")
            for name, value, kept in arguments
        ]
        run = ToolRun(self.call_id(), deadline)
        self.send(StartTool(self.envelope(how), tool, given, streaming, run), how.together)

    @rule(
        how=HOW,
        which=st.integers(0, 3),
        outcome=st.sampled_from(["ok", "ok", "error", "cancelled", "timeout"]),
        result=st.tuples(st.one_of(st.none(), RESULTS), KEPT),
        error=ERRORS,
    )
    def finish_tool(
        self,
        how: How,
        which: int,
        outcome: str,
        result: tuple[Value | None, str],
        error: tuple[str, str, str],
    ) -> None:
        """One of those that are open, or one that has ended."""
        calls = self.open_calls()
        if self.model.closed:
            calls.append((how.session, self.model.closed[-1]))
        if calls:
            session, call = calls[which % len(calls)]
            origin = Origin(f"tool:{call.tool}")
            how = how._replace(session=session, named=False, call="", metadata={})
            envelope = self.envelope(how)
            value, kept = result
            digest = value.digest if value and kept == "digest" else b""
            value = value if kept == "full" else None
            command = FinishTool(
                envelope._replace(origin=origin), call.id, outcome, 5, value, digest, error, which
            )
            self.send(command, how.together)

    def open_calls(self) -> list[tuple[str, Call]]:
        return [
            (session, call)
            for session, log in self.model.newest.items()
            for call in log.calls.values()
        ]

    @precondition(lambda self: self.named)
    @rule(which=st.integers(0, 9), together=TOGETHER)
    def retry(self, which: int, together: bool) -> None:
        """Exactly as it was sent."""
        self.send_again(self.named[-1 - which % len(self.named)], together)

    @precondition(lambda self: self.starts())
    @rule(which=st.integers(0, 9), together=TOGETHER)
    def call_again(self, which: int, together: bool) -> None:
        """While it runs, after it ended, or after it was interrupted; and kept otherwise."""
        command = self.starts()[which % len(self.starts())]
        kept = [each._replace(value=None, recorded=which > 4) for each in command.arguments]
        self.send_again(command._replace(arguments=kept), together)

    def starts(self) -> list[StartTool]:
        return [command for command in self.named[-20:] if isinstance(command, StartTool)][::-1]

    def send_again(self, command: Command, together: bool) -> None:
        if isinstance(command, StartTool):
            command = command._replace(run=ToolRun(self.call_id(), 0))  # as the bridge does
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

    @precondition(lambda self: self.starts())
    @rule(which=st.integers(0, 9), what=st.integers(0, 4), value=RESULTS, together=TOGETHER)
    def call_another(self, which: int, what: int, value: Value, together: bool) -> None:
        """Under the id of one that was called."""
        used = self.starts()[which % len(self.starts())]
        argument = ToolArgument("p", value.digest, value)
        others = [
            used._replace(tool="another"),
            used._replace(streaming=not used.streaming),
            used._replace(arguments=[*used.arguments, argument]),
            used._replace(arguments=[argument]),
            used._replace(envelope=used.envelope._replace(metadata={"mis": "used"})),
        ]
        self.send(others[what]._replace(run=ToolRun(self.call_id(), 0)), together)

    @rule(session=SESSIONS, together=TOGETHER)
    def load(self, session: str, together: bool) -> None:
        self.send(LoadSession(Envelope(session)), together)

    # What happens meanwhile.

    @rule(seconds=st.sampled_from([1, 59, 60, 61, 61, 200, -30]))
    def wait(self, seconds: int) -> None:
        """The clock goes on, or jumps back."""
        self.flush()
        self.now += seconds * 10**9

    @rule()
    def restart(self) -> None:
        self.flush()
        self.direct.close()
        self.direct = self.open()

    @rule(session=SESSIONS)
    def evict(self, session: str) -> None:
        self.flush()
        loaded = self.direct.committer.peek(session)
        if loaded is None or not self.model.newest[session].calls:
            self.direct.evict(session)
        else:
            loaded.touched = False
            self.direct.perform(self.direct.committer.evict, [loaded])
            assert self.direct.committer.peek(session) is loaded  # a tool may go on with it

    @precondition(lambda self: self.model.newest)
    @rule(which=st.integers(0, 9))
    def snapshot(self, which: int) -> None:
        self.flush()
        session = [*self.model.newest][which % len(self.model.newest)]
        self.send(LoadSession(Envelope(session)), together=False)
        self.direct.snapshot(session)
        self.compare_states(session)

    @precondition(lambda self: self.snapshots())
    @rule(which=st.integers(0, 9))
    def cut(self, which: int) -> None:
        """A live log, at one of its snapshots."""
        self.flush()
        found = self.snapshots()
        id_, offset = found[which % len(found)]
        stored = self.direct.engine.snapshot(id_, offset)
        assert stored is not None
        self.cut_at(id_, stored)

    def cut_at(self, id_: LogId, stored: StoredSnapshot) -> None:
        self.direct.cut(id_, stored)
        log = self.model.logs[id_]
        log.base = max(log.base, stored.offset)

    def snapshots(self) -> list[tuple[LogId, int]]:
        logs = [id_ for id_, log in self.model.logs.items() if log.live]
        return [(id_, at) for id_ in logs for at in self.direct.engine.snapshot_offsets(id_)]

    # What seldom comes together by itself.

    @rule(
        how=HOW,
        cuts=st.sampled_from([(), (), (), (0,), (1,), (2,), (0, 2)]),
        ending=st.integers(0, 2),
        result=RESULTS,
    )
    def live_a_call(self, how: How, cuts: tuple[int, ...], ending: int, result: Value) -> None:
        """From its start to its repetition, with the log cut on the way."""
        how = how._replace(epoch="", key="held")
        session = how.session
        named = self.envelope(how._replace(named=True, call=""))
        argument = ToolArgument("p", result.digest, result)
        start = StartTool(named, "t", [argument], how.together, ToolRun(self.call_id(), 0))
        self.send(start, together=False)
        log = self.model.newest.get(session) or Log()
        if start.run.call_id not in log.calls:
            return
        self.send_again(start, how.together)
        self.cut_now(session, 0 in cuts)
        by_it = self.envelope(how._replace(call="open"), "x")
        self.send(SetVariable(by_it, "x", integer(4)), how.together)
        self.cut_now(session, 1 in cuts)
        ended: Command = CleanupSession(self.envelope(how._replace(call="")), "cleanup")
        if ending < 2:
            ended = FinishTool(
                Envelope(session, origin=Origin("tool:t")), start.run.call_id, "ok", 5, result
            )
        if ending:
            self.restart()
        self.send(ended, how.together)
        self.cut_now(session, 2 in cuts)
        self.send_again(start, how.together)

    def cut_now(self, session: str, really: bool) -> None:
        if really and self.model.newest[session].live:
            self.send(LoadSession(Envelope(session)), together=False)
            stored = self.direct.snapshot(session)
            self.cut_at(self.direct.loaded(session).id, stored)

    @precondition(lambda self: self.open_calls())
    @rule(with_snapshot=st.booleans(), how=HOW, what=st.integers(0, 4))
    def die(self, with_snapshot: bool, how: How, what: int) -> None:
        """With calls open, which what comes first in the next bridge closes."""
        self.flush()
        session, call = self.open_calls()[-1]
        how = how._replace(session=session)
        if with_snapshot and self.direct.committer.peek(how.session):
            self.direct.snapshot(how.session)
        by_it = self.envelope(how._replace(call="open", epoch="current"), "x")
        self.restart()
        envelope = self.envelope(how)
        commands: list[Command] = [
            SetVariable(envelope, "x", integer(1)),
            SetVariable(by_it, "x", integer(1)),
            FinishTool(Envelope(how.session), call.id, "ok", 5),
            CleanupSession(envelope, "cleanup"),
            StartTool(envelope, "t", (), False, ToolRun(self.call_id(), 0)),
        ]
        self.send(commands[what], how.together)

    @precondition(lambda self: self.variables(lambda variable: variable.lock))
    @rule(which=st.integers(0, 9), how=HOW, value=VALUES, what=st.integers(0, 3))
    def meet_a_stale_lock(self, which: int, how: How, value: WireValue, what: int) -> None:
        self.flush()
        self.now += 61 * 10**9
        found = self.variables(lambda variable: variable.lock)
        session, name = found[which % len(found)]
        envelope = self.envelope(how._replace(session=session, key="", epoch=""))
        commands: list[Command] = [
            SetVariable(envelope, name, value),
            SetVariables(envelope, ((name, value),), atomic=which % 2 == 0),
            DeleteVariable(envelope, name),
            StartOptimization(envelope, name, "another"),
        ]
        self.send(commands[what], how.together)

    @precondition(lambda self: self.variables(lambda variable: variable.version > 1))
    @rule(which=st.integers(0, 9), how=HOW, past=st.integers(0, 9))
    def go_back(self, which: int, how: How, past: int) -> None:
        self.flush()
        found = self.variables(lambda variable: variable.version > 1)
        session, name = found[which % len(found)]
        variable = self.model.newest[session].find(name)
        target = 1 + past % variable.version
        envelope = self.envelope(how._replace(session=session, key="held", epoch=""), name)
        looked_up = self.past(session, name, target)
        self.send(RollbackVariable(envelope, name, target, looked_up), how.together)

    def variables(self, which: Callable[[Variable], object]) -> list[tuple[str, str]]:
        """Session and name of those that are live and chosen."""
        return [
            (session, variable.name)
            for session, log in self.model.newest.items()
            if log.live
            for variable in log.variables.values()
            if which(variable)
        ]

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

    def key(self, how: How, identifier: str) -> str:
        if how.key == "past":
            return self.model.keys[-1 - len(identifier) % len(self.model.keys)]
        log = self.model.newest.get(how.session) or Log()
        try:
            lock = log.find(identifier).lock
        except Refusal:
            lock = None
        return lock.optimization_id if lock and how.key == "held" else ""

    def envelope(self, how: How, identifier: str = "") -> Envelope:
        session = how.session
        newest = self.model.newest.get(session)
        past = [log.epoch for log in self.model.logs if log.session_id == session]
        epochs = {
            "": "",
            "wrong": "nobody's",
            "current": newest.epoch if newest else "",
            "past": past[0] if past else "",
        }
        origin = Origin(how.metadata.get("source", "elixir"))
        calls = [*newest.calls.values()] if newest and how.call != "closed" else self.model.closed
        if how.call and calls:
            tool = "another" if how.call == "another's" else calls[-1].tool
            origin = Origin(f"tool:{tool}", tool_call_id=calls[-1].id)
        return Envelope(
            session,
            f"request {next(self._ids)}" if how.named else "",
            epochs[how.epoch],
            origin,
            how.metadata,
            self.key(how, identifier) if identifier else "",
        )

    def call_id(self) -> str:
        return f"call {next(self._ids)}"

    def past(self, session: str, identifier: str, target: int) -> PastValue | BridgeError:
        """As the servicer looks it up: in what is committed."""
        self.flush()
        self.send(LoadSession(Envelope(session)), together=False)
        log = self.direct.committer.loaded(session)
        try:
            if log is None or not log.committed.live:
                raise SessionNotFound(session)
            return past_value(self.direct.engine, log, identifier, target)
        except BridgeError as error:
            return error

    def send(self, command: Command, together: bool) -> None:
        """Let the command wait for the next one, to be decided in one batch with it, or not."""
        self.model.now = self.now
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
        results = self.direct.ask_all(*commands)
        for (command, expected), result in zip(self.waiting, results, strict=True):
            compare(command, expected, result)
        self.waiting = []
        for session in sessions:
            self.compare_states(session)

    def compare_states(self, session: str) -> None:
        engine = self.direct.engine
        head = engine.latest(session)
        log = self.model.newest.get(session)
        if head is None or log is None:
            assert head is None
            assert log is None
            return
        assert (head.log.epoch, head.head, head.base) == (log.epoch, log.head, log.base)
        loaded = self.direct.loaded(session)
        assert loaded.id == head.log
        assert shown(loaded.working) == log.shown()
        working = whole(loaded.working)
        assert readable(loaded.committed).items() <= working.items()
        assert whole(load(engine, head)[0]) == working
        transactions = list(fold(engine, head.log, head.base, head.base_digest))
        compare_events(transactions, log)
        if not log.base:
            state = SessionState()
            for transaction in transactions:
                apply(state, transaction)
            assert whole(state) == working

    def teardown(self) -> None:
        try:
            self.flush()
            for id_, log in self.model.logs.items():
                compare_log(self.direct.engine, id_, log)
        finally:
            self.direct.close()


def compare_events(transactions: Iterable[Transaction], log: Log) -> None:
    """What is kept of tools, and where everything came from."""
    transactions = list(transactions)
    assert shown_facts(transactions) == {
        offset: fact for offset, fact in log.facts.items() if offset > log.base
    }
    origins = {}
    for transaction in transactions:
        record = transaction.record
        for offset in range(record.first_offset, transaction.last_offset + 1):
            origins[offset] = (record.source, record.tool_call_id)
    assert origins == {o: origin for o, origin in log.origins.items() if o > log.base}


def compare_calls(transactions: Iterable[Transaction]) -> None:
    """The life of every call in a log that is whole, told without the model."""
    started: dict[str, tuple[int, str]] = {}
    closed: set[str] = set()
    requests: set[str] = set()
    for transaction in transactions:
        record = transaction.record
        for offset, fact in shown_facts([transaction]).items():
            if isinstance(fact, Started):
                assert fact.call_id not in started
                started[fact.call_id] = (offset, record.request.id)
                assert record.request.id not in requests, "a request started a second call"
                requests |= {record.request.id} - {""}
            elif isinstance(fact, Ended):
                assert fact.call_id not in closed, "a call was closed twice"
                assert (fact.started, record.request.id) == started[fact.call_id]
                closed.add(fact.call_id)
        if transaction.facts[-1][0] == "session_ended":
            assert closed == started.keys()  # with the call in which it was asked for
        elif record.tool_call_id:
            assert record.tool_call_id in started.keys() - closed


def compare_log(engine: EventLog, id_: LogId, log: Log) -> None:
    """The state after every transaction that is kept."""
    head = engine.head(id_)
    assert head is not None
    if not log.base:
        compare_calls(fold(engine, id_))
        compare_snapshots(engine, head)
    state = SessionState()
    if log.base:
        state = state_at(engine, id_, log.base)
        assert without_requests(shown(state)) == without_requests(log.states[log.base])
    ends = []
    for transaction in fold(engine, id_, head.base, head.base_digest):
        apply(state, transaction)
        ends.append(state.head)
        if log.base:  # the table of requests there may be gone, where others are newer
            assert without_requests(shown(state)) == without_requests(log.states[state.head])
        else:
            assert shown(state) == log.states[state.head]
        at = state_at(engine, id_, state.head)
        assert without_requests(shown(at)) == without_requests(shown(state))
    assert ends == sorted(end for end in log.states if end > log.base)


def compare_snapshots(engine: EventLog, head: LogHead) -> None:
    """At whichever transaction one is taken, it and what follows are the whole log."""
    states = [SessionState()]
    for transaction in fold(engine, head.log):
        apply(states[-1], transaction)
        states.append(copied(states[-1]))
    expected = whole(states.pop())
    for then in states:
        state = open_snapshot(seal_snapshot(then))
        replay(engine, head.log, state)
        complete(state, engine.large_values)
        assert whole(state) == expected


def without_requests(state: dict[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in state.items() if name != "requests"}


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
    assert answer.tool_ids == expected.tool_ids, command
    compare_end(answer.finished, expected.finished)
    if expected.epoch is not None:
        assert result.log_epoch == expected.epoch, command
    if expected.number is not None:
        assert answer.number == expected.number, command
    if expected.optimization_id is not None:
        assert answer.optimization_id == expected.optimization_id, command
    if expected.variable is not None:
        assert result.variable is not None, command
        assert shown_variable(result.variable) == expected.variable, command
    if expected.tools is not None:
        assert shown_tools(result.tools) == expected.tools, command
    if expected.variables is not None:
        assert [shown_variable(v) for v in result.variables] == expected.variables, command


def compare_end(found: Transaction | None, expected: Ended | None) -> None:
    """How a call ended, and with the bytes of its result."""
    if found is None or expected is None:
        assert (found, expected) == (None, None)
        return
    ((kind, body),) = found.facts
    assert (kind, shown_end(body)) == ("tool_finished", expected)
    assert [make_value(*value[:2]).digest for value in found.values] == (
        [expected.kept] if expected.kept else []
    )


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


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few that there are too many now and then."""
    monkeypatch.setattr(tool_rules, "MAX_OPEN_CALLS", CALLS)
    monkeypatch.setattr(tool_rules, "MAX_TOOLS", TOOLS)
    monkeypatch.setattr(tool_rules, "MAX_SPEC", SPEC)


def test_any_sequence_of_commands() -> None:
    run_state_machine_as_test(InMemory, settings=settings(BOUNDS, max_examples=350))


def test_any_sequence_of_commands_on_disk() -> None:
    # Not made smaller on failure, which takes long on a disk: the other test does that.
    phases = [Phase.explicit, Phase.reuse, Phase.generate]
    run_state_machine_as_test(OnDisk, settings=settings(BOUNDS, max_examples=30, phases=phases))
