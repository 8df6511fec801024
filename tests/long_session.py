"""A session of a million events: everything that is promised of short ones, once more.

Built by ``long_log`` and then looked at from every side: by a bridge over a socket, by the
fold from the beginning and by snapshots, after a clean stop and after ``kill -9``, before and
after retention has cut it, out of memory and back. Every step compares with what was known
before it, and none reads a clock to judge.

    python -m tests.long_session --events 1000000
"""

from __future__ import annotations

import itertools
import random
import secrets
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pytest
import typer
from google.protobuf.any_pb2 import Any as AnyMessage
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge.commands import LoadSession
from snakepit_bridge.errors import OffsetOutOfRange
from snakepit_bridge.events.log import UNREFERENCED_NANOS, EventLog
from snakepit_bridge.events.model import INLINE_LIMIT, Envelope, LogHead, Value
from snakepit_bridge.events.projection import SessionState, apply
from snakepit_bridge.events.reading import fold, load, state_at, versions
from snakepit_bridge.events.snapshot import differences
from snakepit_bridge.events.sqlite import SqliteLog
from snakepit_bridge.events.urls import open_copy
from snakepit_bridge.events.verification import verify_log
from snakepit_bridge.limits import DEFAULTS
from snakepit_bridge.upkeep import Upkeep
from tests.bridge_process import BridgeProcess
from tests.direct import Direct, whole
from tests.long_log import SPAN, STAYS, TYPES, VARIABLES, LongLog
from tests.test_crowd import crowd
from tests.test_error_table import message_of
from tests.wire_session import Session, packed, plain, refused

PLACES = 100
"""Random offsets at which states are compared; half of them inside transactions."""
AGE = SPAN * 6 // 10 // 10**9
"""Seconds: retention cuts about the first four tenths."""
PATIENCE = 600.0
"""Seconds that upkeep may take to do what it is waited for."""
POLL = 0.05
LOOKS = ("--session-ttl", "20s")
"""Has upkeep look around every two seconds instead of thirty."""
CHANGES = 20
"""In each session of the crowd."""

Advance = Callable[[int], None]
Served = dict[str, tuple[Any, ...]]
"""What the bridge shows of each variable, by name."""


class Step(NamedTuple):
    what: str
    found: str
    seconds: float


class LongSession:
    """The log in a directory, and what is known of it."""

    def __init__(self, directory: Path, events: int, *, snapshot_every: int, seed: int) -> None:
        self.path = directory / "bridge.db"
        self.seed = seed
        self._events = events
        self._every = snapshot_every
        self._rng = random.Random(seed)
        self._built: LongLog
        self._states: dict[int, SessionState] = {}
        """At the chosen offsets, by folding from the beginning."""
        self._served: Served = {}
        self._history: list[tuple[int, AnyMessage, int]] = []
        """Of one variable, newest first: version, value, offset."""
        self._large: set[bytes] = set()
        """Digests of all large values that were written."""
        self._base = 0
        self._head: LogHead
        """When the log was last closed."""

    def steps(self) -> Sequence[tuple[str, Callable[[Advance], str]]]:
        """What there is to do, in order; each says what it found, or raises what is wrong."""
        return [
            ("built by the rules, with snapshots", self._build),
            ("folded from the beginning: the state that was built", self._fold),
            ("opened by the newest snapshot: the same state", self._load),
            ("states at random offsets, by the nearest snapshot", self._compare_states),
            ("verified", self._verify),
            ("served by a bridge; every variable read", self._serve),
            ("sets sent again: duplicates", self._retry),
            ("served after a clean stop", self._stop_and_serve),
            ("served after kill -9", self._kill_and_serve),
            ("cut by retention, in a bridge that serves", self._cut),
            ("states after the cut as before; what was cut is out of range", self._after_the_cut),
            ("large values collected an hour later", self._collect),
            ("verified once more", self._verify),
            ("taken out of memory and back", self._evict),
        ]

    def run(self, advance: Callable[[str, int], None] = lambda _what, _count: None) -> list[Step]:
        """Do it all; what fails names the seed."""
        done = []
        for what, work in self.steps():
            start = time.perf_counter()
            try:
                found = work(lambda count, what=what: advance(what, count))  # type: ignore[misc]
            except BaseException as error:
                error.add_note(f"long session of {self._events} with seed {self.seed}: {what}")
                raise
            done.append(Step(what, found, time.perf_counter() - start))
        return done

    # Without a bridge.

    def _build(self, advance: Advance) -> str:
        begun = time.time_ns() - SPAN
        with self._engine() as engine:
            self._built = LongLog(
                engine, self._events, snapshot_every=self._every, begun=begun, seed=self.seed
            )
            self._built.build(advance)
            assert len(engine.snapshot_offsets(self._built.log)) == self._built.snapshots > 0
        size = self.path.stat().st_size
        state = self._built.state
        assert len(state.deleted) > VARIABLES // 4
        assert state.head > 1.05 * len(self._built.ends), "hardly any batches"
        return (
            f"{state.head:,} events in {len(self._built.ends):,} transactions, "
            f"{self._built.snapshots} snapshots, {size / 2**20:,.0f} MiB"
        )

    def _fold(self, advance: Advance) -> str:
        places = set(self._places(0)) | set(self._places(self._events // 2))
        waiting = sorted(places, reverse=True)
        state = SessionState()
        with self._engine() as engine:
            for transaction in fold(engine, self._built.log):
                while waiting and waiting[-1] < transaction.last_offset:
                    self._states[waiting.pop()] = _kept(state)
                advance(transaction.last_offset - state.head)
                apply(state, transaction)
                self._large.update(value.digest for value in transaction.values if _large(value))
        self._states.update((place, _kept(state)) for place in waiting)
        assert differences(state, self._built.state, requests=True) == []
        return f"{state.head:,} events, {len(state.requests):,} requests remembered"

    def _places(self, after: int) -> list[int]:
        """Offsets after one: ends of transactions, and others that are inside of some."""
        ends = self._built.ends
        inside = [
            offset
            for before, last in itertools.pairwise(ends)
            for offset in range(before + 1, last)
            if offset > after
        ]
        half = PLACES // 2
        later = [end for end in ends if end > after]
        return self._rng.sample(later, half) + self._rng.sample(inside, half)

    def _load(self, _advance: Advance) -> str:
        with self._engine() as engine:
            state, snapshot_offset = load(engine, _head(engine))
        assert 0 < self._built.state.head - snapshot_offset <= self._every + 9
        assert differences(state, self._built.state, requests=True) == []
        return f"snapshot at {snapshot_offset:,} and {state.head - snapshot_offset:,} events"

    def _compare_states(self, advance: Advance) -> str:
        with self._engine() as engine:
            for offset, expected in self._states.items():
                state = state_at(engine, self._built.log, offset)
                assert differences(state, expected, requests=False) == [], offset
                assert state.head <= offset
                advance(self._events // len(self._states))
        inside = sum(state.head < offset for offset, state in self._states.items())
        return f"{len(self._states)}, {inside} of them inside transactions"

    def _verify(self, advance: Advance) -> str:
        with closing(open_copy(f"sqlite:{self.path}")) as engine:
            assert list(engine.faults()) == []
            head = _head(engine)
            assert list(verify_log(engine, head, advance)) == []
            snapshots = len(engine.snapshot_offsets(head.log))
        return f"{head.head - head.base:,} events, {snapshots} snapshots, no fault"

    # By a bridge.

    def _serve(self, _advance: Advance) -> str:
        start = time.perf_counter()
        with BridgeProcess(self.path) as bridge:
            started = time.perf_counter()
            session = Session(bridge, self._built.log.session_id)
            assert session.head == self._built.state.head
            opened = time.perf_counter()
            self._served = served(session)
            assert self._served == shown(self._built.state)
            assert bridge.stop() == 0, bridge.stderr
        return (
            f"{len(self._served)} variables; bridge started in {started - start:.2f} s, "
            f"session opened in {opened - started:.3f} s"
        )

    def _retry(self, _advance: Advance) -> str:
        remembered = 0
        with BridgeProcess(self.path) as bridge:
            session = Session(bridge, self._built.log.session_id)
            for command, offset, version in self._built.sets:
                any_, binary = command.value.any, command.value.binary  # type: ignore[attr-defined]
                answer = session.call(
                    "SetVariable",
                    variable_identifier=command.identifier,
                    value=AnyMessage.FromString(any_),
                    binary_value=binary,
                    request_id=command.envelope.request_id,
                )
                told = (answer.duplicate, answer.offset, answer.new_version)
                assert told == (True, offset, version), command.envelope.request_id
                remembered += 1
            assert session.head == self._built.state.head
            assert bridge.stop() == 0, bridge.stderr
        return f"{remembered} answered as the first time, nothing appended"

    def _stop_and_serve(self, _advance: Advance) -> str:
        with BridgeProcess(self.path) as bridge:
            count = self._write(bridge)
            assert bridge.stop() == 0, bridge.stderr
        self._look()
        return f"all as before, with {count} sets more"

    def _kill_and_serve(self, _advance: Advance) -> str:
        with BridgeProcess(self.path) as bridge:
            count = self._write(bridge)
            bridge.kill()
        self._look()
        return f"all as before, with {count} sets more"

    def _write(self, bridge: BridgeProcess) -> int:
        session = Session(bridge, self._built.log.session_id)
        integers = [name for name, known in self._served.items() if known[1] == "integer"]
        for name in integers:
            number = self._rng.randrange(10**9)
            known = self._served[name]
            if known[-1]:
                session.call("StopOptimization", variable_identifier=name, force=True)
            answer = session.set(name, number)
            assert answer.new_version == known[2] + 1
            new = (answer.new_version, answer.offset, packed(number), b"", False)
            self._served[name] = (*known[:2], *new)
        return len(integers)

    def _look(self) -> None:
        with BridgeProcess(self.path) as bridge:
            session = Session(bridge, self._built.log.session_id)
            assert served(session) == self._served
            assert session.head == max(known[3] for known in self._served.values())
            assert bridge.stop() == 0, bridge.stderr

    # Retention.

    def _cut(self, advance: Advance) -> str:
        with self._engine() as engine:
            head = self._head = _head(engine)
            state, _ = load(engine, head)
            variable = state.find(STAYS)
            assert variable is not None
            self._history = history(engine, head, variable.definition.id, variable.offset)
        rows = self._rows()
        with BridgeProcess(self.path, "--retention-age", str(AGE), *LOOKS) as bridge:
            session = Session(bridge, self._built.log.session_id)
            with closing(open_copy(f"sqlite:{self.path}")) as copy:
                self._wait_for_the_cut(session, copy, advance)
            self._look_at_the_cut(session)
            assert bridge.stop() == 0, bridge.stderr
            assert "Traceback" not in bridge.stderr
        with self._engine() as engine:
            head = _head(engine)
        assert (head.head, head.digest) == (self._head.head, self._head.digest)
        self._base = head.base
        left = self._rows()
        assert left[1] == head.base + 1, "records before the cut are still in the file"
        return f"at {head.base:,}: {rows[0] - left[0]:,} records gone, {left[0]:,} left"

    def _wait_for_the_cut(self, session: Session, copy: EventLog, advance: Advance) -> None:
        end = time.monotonic() + PATIENCE
        first = 1
        while True:
            # A session that is read goes on living.
            assert session.head == self._head.head
            base, now = _head(copy).base, self._rows()[1]
            advance(now - first)
            first = now
            if base and first > base:
                return
            assert time.monotonic() < end, f"cut at {base}, swept to {first}"
            time.sleep(POLL)

    def _look_at_the_cut(self, session: Session) -> None:
        assert served(session) == self._served
        response = session.history(STAYS)
        entries = [(e.version, e.value, e.offset) for e in response.entries]
        kept = [entry for entry in self._history if entry[2] >= entries[-1][2]]
        assert entries == kept
        before = self._history[len(kept)]
        with closing(open_copy(f"sqlite:{self.path}")) as copy:
            base = _head(copy).base
        assert before[2] <= base < entries[-1][2], "the history does not end at the cut"
        kept_versions = f"versions {entries[-1][0]} to {entries[0][0]} are kept"
        with refused("OUT_OF_RANGE", "cut away by retention", kept_versions):
            session.roll_back(STAYS, before[0])

    def _after_the_cut(self, advance: Advance) -> str:
        log, base = self._built.log, self._base
        later = {offset: state for offset, state in self._states.items() if offset >= base}
        assert len(later) >= PLACES
        with self._engine() as engine:
            head = _head(engine)
            assert shown(load(engine, head)[0]) == self._served
            for offset, expected in later.items():
                found = state_at(engine, log, offset)
                assert differences(found, expected, requests=False) == [], offset
                advance(self._events // len(self._states))
            assert state_at(engine, log, base).head == base
            earlier = [offset for offset in self._states if offset < base]
            for offset in (0, 1, *earlier, base - 1):
                with pytest.raises(OffsetOutOfRange) as caught:
                    state_at(engine, log, offset)
                facts = caught.value.facts
                assert facts["first_available"] == str(base + 1)
                assert (facts["last"], facts["log_epoch"]) == (str(head.head), log.epoch)
        return f"{len(later)} equal, {len(earlier) + 3} out of range"

    def _collect(self, _advance: Advance) -> str:
        with self._engine() as engine:
            head = _head(engine)
            needed = set[bytes]()
            for transaction in fold(engine, head.log, head.base, head.base_digest):
                needed.update(value.digest for value in transaction.values if _large(value))
            for offset in engine.snapshot_offsets(head.log):
                variables = state_at(engine, head.log, offset).variables.values()
                needed.update(v.value.digest for v in variables if _large(v.value))
            assert needed < self._large
            now = time.time_ns()
            swept(engine, now)
            assert engine.large_values(list(self._large)).keys() == self._large
            swept(engine, now + UNREFERENCED_NANOS + 1)
            assert engine.large_values(list(self._large)).keys() == needed
        gone = len(self._large) - len(needed)
        return f"{gone:,} of {len(self._large):,} gone, all others are referred to"

    def _evict(self, _advance: Advance) -> str:
        engine = SqliteLog(self.path)
        with Direct(engine) as direct:
            upkeep = Upkeep(direct.committer, DEFAULTS, idle=POLL)
            session_id = self._built.log.session_id
            direct.ask(LoadSession(Envelope(session_id)))
            before = whole(direct.loaded(session_id).working)
            upkeep.start()
            try:
                for _ in range(3):
                    self._wait_until_evicted(direct)
                    direct.ask(LoadSession(Envelope(session_id)))
                    log = direct.loaded(session_id)
                    assert whole(log.working) == before
                    assert shown(log.committed) == self._served
            finally:
                upkeep.stop()
        return "three times, the same state"

    def _wait_until_evicted(self, direct: Direct) -> None:
        end = time.monotonic() + PATIENCE
        while direct.committer.peek(self._built.log.session_id) is not None:
            assert time.monotonic() < end, "an idle session stays in memory"
            time.sleep(POLL)

    @contextmanager
    def _engine(self) -> Iterator[SqliteLog]:
        engine = SqliteLog(self.path)
        try:
            yield engine
        finally:
            engine.close()

    def _rows(self) -> tuple[int, int]:
        """How many records there are, about, and the first offset."""
        with closing(sqlite3.connect(self.path)) as file:
            (count,) = file.execute("SELECT max(rowid) - min(rowid) + 1 FROM records").fetchone()
            (first,) = file.execute(
                "SELECT first_offset FROM records ORDER BY rowid LIMIT 1"
            ).fetchone()
        return count, first


def _large(value: Value) -> bool:
    return len(value.any) + len(value.binary) > INLINE_LIMIT


def _head(engine: EventLog) -> LogHead:
    head = engine.latest("long")
    assert head is not None
    return head


def _kept(state: SessionState) -> SessionState:
    """A copy without the remembered requests, of which ``state_at`` knows a part only."""
    copy = state.readable()
    copy.used_names = set(state.used_names)
    return copy


def swept(engine: EventLog, now: int) -> None:
    while engine.sweep(now):
        pass


def history(
    engine: EventLog, head: LogHead, id_: str, offset: int
) -> list[tuple[int, AnyMessage, int]]:
    return [
        (past.version, AnyMessage.FromString(past.value.any), past.offset)
        for past in versions(engine, head.log, id_, offset)
    ]


def _entry(variable: pb.Variable) -> tuple[Any, ...]:
    locked = variable.optimization_status.optimizing
    told = (variable.version, variable.offset, variable.value, variable.binary_value)
    return (variable.id, variable.type, *told, locked)


def served(session: Session) -> Served:
    """Every variable as the bridge shows it: listed, by its name and by its id."""
    listed = {each.name: _entry(each) for each in session.call("ListVariables").variables}
    for name, known in listed.items():
        assert _entry(session.get(name)) == known
        assert _entry(session.get(known[0], bypass_cache=True)) == known
    return listed


def shown(state: SessionState) -> Mapping[str, tuple[Any, ...]]:
    """The same, of a state."""
    return {
        variable.definition.name: (
            variable.definition.id,
            variable.definition.type,
            variable.version,
            variable.offset,
            AnyMessage.FromString(variable.value.any),
            variable.value.binary,
            variable.lock is not None,
        )
        for variable in state.variables.values()
    }


def many_sessions(directory: Path, sessions: int, seed: int) -> str:
    """Sessions of 20 changes each in one bridge, all readable after a restart."""
    rng = random.Random(seed)
    path = directory / "crowd.db"
    ids = [f"session {number:05}" for number in range(sessions)]
    # A new variable, which also begins the session, and sets of it.
    with BridgeProcess(path) as bridge:
        crowd(bridge, "RegisterVariable", (_registration(id_, n) for n, id_ in enumerate(ids)))
        for change in range(2, CHANGES):
            crowd(bridge, "SetVariable", (_set(id_, n, change) for n, id_ in enumerate(ids)))
        assert bridge.stop() == 0, bridge.stderr
    with BridgeProcess(path) as bridge:
        reads = [message_of("GetVariable", session_id=i, variable_identifier="x") for i in ids]
        for number, raw in enumerate(crowd(bridge, "GetVariable", reads)):
            variable = pb.GetVariableResponse.FromString(raw).variable
            assert (variable.version, variable.offset) == (CHANGES - 1, CHANGES)
            assert plain(variable.value) == number + CHANGES - 1
        assert bridge.stop() == 0, bridge.stderr
    with closing(open_copy(f"sqlite:{path}")) as copy:
        assert list(copy.faults()) == []
        for id_ in rng.sample(ids, min(100, sessions)):
            head = copy.latest(id_)
            assert head is not None
            assert head.head == CHANGES
            assert list(verify_log(copy, head)) == []
    return f"{sessions:,} sessions with {sessions * CHANGES:,} events, 100 of them verified"


def _registration(id_: str, number: int) -> Any:  # noqa: ANN401 - stubs have no types
    value = packed(number + 1)
    return message_of(
        "RegisterVariable", session_id=id_, name="x", type="integer", initial_value=value
    )


def _set(id_: str, number: int, change: int) -> Any:  # noqa: ANN401 - as above
    value = packed(number + change)
    return message_of("SetVariable", session_id=id_, variable_identifier="x", value=value)


def main(
    events: Annotated[int, typer.Option(min=10_000, help="Of the long session.")] = 1_000_000,
    snapshot_every: Annotated[int, typer.Option(min=100, help="Events.")] = 10_000,
    sessions: Annotated[int, typer.Option(help="Of 20 changes each; 0 = none.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Repeats a run; 0 = any.")] = 0,
) -> None:
    """Build a long session and look at it from every side; print what was checked."""
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    seed = seed or secrets.randbits(32)
    with (
        tempfile.TemporaryDirectory() as directory,
        Progress(*columns, TimeRemainingColumn(), console=console) as progress,
    ):
        bars: dict[str, Any] = {}

        def advance(what: str, count: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, total=events)
            progress.advance(bars[what], count)

        long = LongSession(Path(directory), events, snapshot_every=snapshot_every, seed=seed)
        done = long.run(advance)
        if sessions:
            start = time.perf_counter()
            bar = progress.add_task("many sessions", total=None)
            found = many_sessions(Path(directory), sessions, seed)
            progress.remove_task(bar)
            done.append(Step("many sessions in one bridge", found, time.perf_counter() - start))
    table = Table("checked", "found", "seconds")
    for what, found, seconds in done:
        table.add_row(what, found, f"{seconds:.1f}")
    console.print(table)
    console.print(f"{len(TYPES)} types of variables. Seed {seed}.")


if __name__ == "__main__":
    typer.run(main)
