"""Cut the power at random moments under load; after each: nothing lost, nothing doubled.

The committer runs on a simulated disk (``tests.disk``), which loses its power in the middle
of an operation that the seed picks: a write or sync of the write-ahead log, a write, sync
or truncation in a checkpoint, on opening, on creating the file. What survives is opened by
the ordinary engine on real files, and then:

* every acknowledged write is there once, at its offset, with its version and value;
* one whose outcome nobody heard is there whole or not at all, and nothing else is there;
* offsets have no gap, and every digest and SQLite's own check hold;
* a retry of anything with its request id is a duplicate if it is there, else it is done
  once; and writing goes on where the log ends.

The next cut comes on the same disk, a few times over. With ``failing`` the disk fails now
and then before that, and what was refused then must not be there either.

A round is one thread that hands groups of commands to the committer, with a clock and
epochs of its own, so that a seed repeats a run.

(It is the SQLite of apsw that runs here, not that of ``sqlite3``; how the real system calls
follow each other is what ``test_sync_before_answer`` shows.)

    python -m tests.power_cut --rounds 200
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import random
import secrets
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, NamedTuple

import apsw
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from snakepit_bridge.commands import (
    InitializeSession,
    RegisterVariable,
    SetVariable,
    SetVariables,
    WireValue,
)
from snakepit_bridge.errors import BridgeError, OutcomeUnknown, ResourceExhausted, Unavailable
from snakepit_bridge.events.log import EventLog, LogUnusable
from snakepit_bridge.events.model import Envelope, LogId, Transaction, Value
from snakepit_bridge.events.projection import SessionState, apply
from snakepit_bridge.events.reading import fold
from snakepit_bridge.events.sqlite import SqliteLog
from snakepit_bridge.events.tasks import Outcome
from tests.direct import Direct, Result, json_of, wire_value
from tests.disk import Disk, DiskLog, Operation

Write = InitializeSession | RegisterVariable | SetVariable | SetVariables

ROUNDS_OF_A_DISK = 8
"""Then an empty one, so that late rounds cost what early ones do."""
CHECKPOINT_PAGES = 24
"""So that there are checkpoints in every round, by SQLite itself or by the engine."""
LAST_OPERATION = 700
"""A cut comes at this one at the latest, of about 8 a commit."""
CUTS = (
    "",
    ("write", "bridge.db-wal"),
    ("sync", "bridge.db-wal"),
    ("sync", "bridge.db-wal"),
    ("truncate", "bridge.db-wal"),
    ("delete", "bridge.db-wal"),
    ("write", "bridge.db"),
    ("sync", "bridge.db"),
)
"""What a cut waits for; "" = anything. Nearly all operations are writes."""
PATIENCE = 200
"""Operations that it waits at most."""
MOST_GROUPS = 2_000
RETRIED = 10
"""Of the acknowledged writes, by each verification."""


class Lost(AssertionError):
    """What was acknowledged is not there."""


class Effect(NamedTuple):
    """One version that a request made."""

    name: str
    version: int
    value: str


class Fact(NamedTuple):
    """What a request did: as its client was told, or as the log has it."""

    log: LogId
    offset: int
    """Of its last event."""
    effects: tuple[Effect, ...]


def asked(command: Write) -> list[tuple[str, str]]:
    """Names and values that a command asks for."""
    match command:
        case RegisterVariable(name=name, value=value):
            return [(name, brief(value))]
        case SetVariable(identifier=name, value=value):
            return [(name, brief(value))]
        case SetVariables(updates=updates):
            return [(name, brief(value)) for name, value in updates]
    return []


def told(command: Write, outcome: Outcome) -> Fact:
    answer = outcome.answer
    versions = answer.versions or dict.fromkeys((name for name, _ in asked(command)), answer.number)
    if isinstance(command, RegisterVariable):
        versions = {command.name: 1}
    effects = tuple(Effect(name, versions[name], value) for name, value in asked(command))
    return Fact(LogId(command.envelope.session_id, outcome.log_epoch), answer.offset, effects)


def found_running(command: Write, outcome: Outcome) -> bool:
    """It began nothing, so it is not remembered: others had needed the session before."""
    return isinstance(command, InitializeSession) and outcome.answer.offset != 1


def brief(value: object) -> str:
    assert isinstance(value, WireValue | Value)
    text = json_of(value)
    return text if len(text) < 40 else hashlib.sha256(text.encode()).hexdigest()


class Stored:
    """Everything in a file, folded and checked."""

    def __init__(self, engine: EventLog, path: Path) -> None:
        with closing(sqlite3.connect(path)) as file:
            (verdict,) = file.execute("PRAGMA integrity_check").fetchone()
            assert verdict == "ok", verdict
            rows = file.execute("SELECT session_id, epoch FROM logs ORDER BY id").fetchall()
        self.facts: dict[str, Fact] = {}
        self.heads: dict[LogId, int] = {}
        seen: Counter[tuple[str, str]] = Counter()
        for log in itertools.starmap(LogId, rows):
            state = SessionState()
            for transaction in fold(engine, log):
                apply(state, transaction)
                request = transaction.record.request
                seen[request.id, request.key] += 1
                known = self.facts.get(request.id, Fact(log, 0, ()))
                effects = tuple(_effects(state, transaction))
                last = transaction.last_offset
                self.facts[request.id] = Fact(log, last, known.effects + effects)
            self.heads[log] = state.head
        doubled = [key for key, count in seen.items() if count > 1]
        assert not doubled, f"more than once: {doubled}"


def _effects(state: SessionState, transaction: Transaction) -> Iterator[Effect]:
    values = iter(transaction.values)
    for event in transaction.record.events:
        kind = event.WhichOneof("kind")
        if kind not in ("variable_registered", "variable_set"):
            continue
        body = getattr(event, kind)
        value = brief(next(values))
        version = 1
        if kind == "variable_set":
            next(values)  # the previous one
            version = body.version
        yield Effect(state.variables[body.id].definition.name, version, value)


class PowerCuts:
    """The clients' memory, which outlives every cut."""

    def __init__(
        self, directory: Path, seed: int, *, synchronous: str = "", failing: bool = False
    ) -> None:
        self.seed = seed
        self.rounds = 0
        self.acknowledged = 0
        self.refused = 0
        self.failures = 0
        self.unknown_kept = 0
        self.unknown_lost = 0
        self.cuts: Counter[tuple[str, str]] = Counter()
        """By file and operation."""
        self._directory = directory
        self._synchronous = synchronous
        self._failing = failing
        self._rng = random.Random(seed)
        self._ids = itertools.count()
        self._begin_anew()

    def _begin_anew(self) -> None:
        """With an empty disk, and nothing told of it."""
        self._image: Mapping[str, bytes] = {}
        self._commands: dict[str, Write] = {}
        """By request id, of all that follows."""
        self._told: dict[str, Fact] = {}
        self._possible: set[str] = set()
        """Requests that may be stored, though nobody was told."""
        self._waiting: list[str] = []
        """Requests to be sent again."""
        self._stored: dict[str, Fact] = {}
        """By the last image."""
        self._names: dict[str, list[str]] = {}
        """Variables of each session, by name."""

    def run(self, rounds: int, on_round: Callable[[], None] = lambda: None) -> None:
        """Raise what is wrong, with the seed and the round."""
        logging.disable()
        try:
            for _ in range(rounds):
                if self.rounds % ROUNDS_OF_A_DISK == 0:
                    self._begin_anew()
                self.rounds += 1
                self._round()
                on_round()
        except BaseException as error:
            error.add_note(f"power cuts with seed {self.seed}, in round {self.rounds}")
            raise
        finally:
            logging.disable(logging.NOTSET)

    def _round(self) -> None:
        with self._files("live") as directory, Disk(directory, self._rng) as disk:
            early = self._rng.random() < 0.2
            self._cut_power(disk, self._rng.randint(1, 60 if early else LAST_OPERATION))
            self._use(disk)
            after = disk.last if not disk.power else Operation("", "nothing: it was closed", 0)
            self.cuts[after.file, after.kind] += 1
            self._image = disk.survivors()
        with self._files("survived") as directory:
            self._verify(directory / disk.path.name)

    @contextlib.contextmanager
    def _files(self, name: str) -> Iterator[Path]:
        directory = self._directory / name
        directory.mkdir()
        try:
            for file, data in self._image.items():
                (directory / file).write_bytes(data)
            yield directory
        finally:
            shutil.rmtree(directory)

    def _cut_power(self, disk: Disk, number: int) -> None:
        """At this operation, or at the next of a rarer kind."""
        wanted = self._rng.choice(CUTS)

        def strike(operation: Operation) -> int | None:
            late = operation.number - number
            if late >= PATIENCE or (late >= 0 and wanted in ("", operation[:2])):
                disk.power = False
            return None

        disk.strike = strike

    def _use(self, disk: Disk) -> None:
        stop_after = self._rng.randint(1, 40) if self._rng.random() < 0.2 else MOST_GROUPS
        held = self._rng.random() < 0.25
        pragmas: dict[str, str | int] = {}
        if self._synchronous:
            pragmas["synchronous"] = self._synchronous
        if held:
            pragmas["busy_timeout"] = 1  # a checkpoint would wait for the reader in vain
        by_sqlite = self._rng.random() < 0.5
        if by_sqlite:
            pragmas["wal_autocheckpoint"] = CHECKPOINT_PAGES
        try:
            engine = DiskLog(disk, 0 if by_sqlite else CHECKPOINT_PAGES, **pragmas)
        except LogUnusable:
            assert not disk.power
            return
        if self._failing:
            disk.strike = self._fail_now_and_then(disk)
        with Direct(engine, clock=itertools.count(1).__next__, epochs=self._epoch) as direct:
            reader = engine._connect() if held and disk.power else None
            if reader and disk.power:
                with contextlib.suppress(sqlite3.Error):
                    reader.execute("BEGIN")
                    reader.execute("SELECT count(*) FROM records")
            groups = 0
            while disk.power:
                groups += 1
                assert groups < MOST_GROUPS, "the disk is not used"
                group = self._group()
                for command, result in zip(group, direct.ask_all(*group), strict=True):
                    if disk.power or isinstance(result, Outcome):
                        self._hear(command, result)
                    else:
                        self._hear_nothing(command)
                if reader and self._rng.random() < 0.02:
                    reader.close()
                    reader = None
                if groups == stop_after:
                    self._cut_power(disk, disk.operations + self._rng.randint(1, 20))
                    break
            if reader:
                reader.close()

    def _epoch(self) -> str:
        return f"{self._rng.getrandbits(64):016x}"

    def _fail_now_and_then(self, disk: Disk) -> Callable[[Operation], int | None]:
        power = disk.strike

        def strike(operation: Operation) -> int | None:
            power(operation)
            if not disk.power:
                return None
            chance = self._rng.random()
            code = None
            if operation.kind == "sync" and chance < 0.04:
                code = apsw.SQLITE_IOERR_FSYNC
            elif operation.kind == "write" and chance < 0.01:
                code = self._rng.choice((apsw.SQLITE_IOERR_WRITE, apsw.SQLITE_FULL))
            elif operation.kind == "truncate" and chance < 0.1:
                code = apsw.SQLITE_IOERR_TRUNCATE
            self.failures += code is not None
            return code

        return strike

    # Writing.

    def _group(self) -> Sequence[Write]:
        """Commands that are decided together; first those that wait to be sent again."""
        if self._waiting:
            some, self._waiting = self._waiting[:5], self._waiting[5:]
            return [self._commands[id_] for id_ in some]
        return [self._command() for _ in range(self._rng.choice((1, 1, 1, 2, 6)))]

    def _command(self) -> Write:
        rng = self._rng
        if self._told and rng.random() < 0.03:
            return self._commands[rng.choice(sorted(self._told))]
        session = f"s{rng.randrange(4)}"
        if not self._names or rng.random() < 0.02:
            session = f"s{next(self._ids)}"
        names = self._names.get(session, [])
        envelope = Envelope(session, f"request {next(self._ids)}")
        command: Write
        if session not in self._names and rng.random() < 0.5:
            self._names[session] = []
            command = InitializeSession(envelope)
        elif not names or rng.random() < 0.1:
            name = f"x{next(self._ids)}"
            self._names.setdefault(session, []).append(name)
            command = RegisterVariable(envelope, name, "string", self._value())
        elif rng.random() < 0.3:
            chosen = sorted(rng.sample(names, min(len(names), rng.randint(1, 4))))
            updates = tuple((name, self._value()) for name in chosen)
            command = SetVariables(envelope, updates, atomic=rng.random() < 0.5)
        else:
            stale = 10**6 if rng.random() < 0.03 else 0
            command = SetVariable(envelope, rng.choice(names), self._value(), stale)
        self._commands[envelope.request_id] = command
        return command

    def _value(self) -> WireValue:
        chance = self._rng.random()
        if chance < 0.04:
            text = "the same large value " * 400
        elif chance < 0.15:
            text = self._rng.randbytes(self._rng.choice((2_100, 5_000, 30_000))).hex()
        else:
            text = str(next(self._ids))
        return wire_value("string", json.dumps(text))

    def _hear(self, command: Write, result: Result) -> None:
        id_ = command.envelope.request_id
        if isinstance(result, Outcome):
            if found_running(command, result):
                assert id_ not in self._stored, id_
                self._possible.discard(id_)
                return
            fact = told(command, result)
            before = self._told.get(id_) or self._stored.get(id_)
            if before is not None:
                assert (fact, result.answer.duplicate) == (before, True), f"{id_}: {before}"
            elif id_ not in self._possible:
                assert not result.answer.duplicate, id_
            self.acknowledged += id_ not in self._told
            self._told[id_] = fact
            return
        assert isinstance(result, BridgeError)
        if isinstance(result, OutcomeUnknown):
            self._hear_nothing(command)
            return
        self.refused += 1
        if isinstance(result, Unavailable | ResourceExhausted):
            self._waiting.append(id_)
        else:
            # It was decided. (A duplicate only shares the failure of its batch.)
            assert id_ not in self._stored, f"{id_} is stored, and refused: {result}"

    def _hear_nothing(self, command: Write) -> None:
        id_ = command.envelope.request_id
        self._waiting.append(id_)
        if id_ not in self._told:
            self._possible.add(id_)

    # Verifying.

    def _verify(self, path: Path) -> None:
        engine = SqliteLog(path)
        try:
            stored = Stored(engine, path)
            self._verify_stored(stored)
            with Direct(engine) as direct:
                self._verify_retries(direct, stored)
                self._verify_writing_goes_on(direct, stored)
        finally:
            engine.close()
        again = SqliteLog(path)
        try:
            assert Stored(again, path).facts.items() >= stored.facts.items()
        finally:
            again.close()

    def _verify_stored(self, stored: Stored) -> None:
        facts = stored.facts
        for id_, fact in self._told.items():
            if facts.get(id_) != fact:
                raise Lost(f"{id_}: told {fact}, stored {facts.get(id_)}")
        for id_ in facts.keys() - self._told.keys():
            assert id_ in self._possible, f"{id_} was refused, and is stored: {facts[id_]}"
            effects = [(name, value) for name, _, value in facts[id_].effects]
            assert effects == asked(self._commands[id_]), f"{id_} is stored in part"
        unknown = self._possible - self._told.keys()
        self.unknown_kept += len(unknown & facts.keys())
        self.unknown_lost += len(unknown - facts.keys())
        self._stored = dict(facts)  # ``facts`` grows with what is done on the copy
        # What the cut has decided is not open any more.
        self._possible &= facts.keys()

    def _verify_retries(self, direct: Direct, stored: Stored) -> None:
        some = self._rng.sample(sorted(self._told), min(len(self._told), RETRIED))
        for id_ in [*self._waiting, *some]:
            command = self._commands[id_]
            first, second = direct.ask_all(command, command)
            if not isinstance(first, Outcome):
                # Of another request that was lost, it may have needed the effect.
                assert not isinstance(first, Unavailable)
                assert id_ not in stored.facts, f"{id_} is stored, and refused: {first}"
                continue
            assert isinstance(second, Outcome)
            if found_running(command, first):
                assert id_ not in stored.facts, id_
                continue
            assert first.answer.duplicate == (id_ in stored.facts), id_
            assert second.answer.duplicate
            fact = stored.facts.setdefault(id_, told(command, first))
            assert told(command, first) == told(command, second) == fact
            stored.heads[fact.log] = max(stored.heads.get(fact.log, 0), fact.offset)

    def _verify_writing_goes_on(self, direct: Direct, stored: Stored) -> None:
        heads = {log.session_id: head for log, head in stored.heads.items()}
        for session in [*heads, "new"]:
            value = wire_value("string", '"after the cut"')
            command = RegisterVariable(
                Envelope(session, f"new in {session}"), "new", "string", value
            )
            fact = told(command, direct.ask(command))
            started = session not in heads or heads[session] == 0
            assert fact.offset == heads.get(session, 0) + 1 + started
            stored.facts[command.envelope.request_id] = fact


def main(
    rounds: Annotated[int, typer.Option(min=1, help="How often to cut the power.")] = 200,
    seed: Annotated[int, typer.Option(help="Repeats a run; 0 = any.")] = 0,
    *,
    synchronous: Annotated[str, typer.Option(help="Instead of what the engine sets.")] = "",
    failing: Annotated[bool, typer.Option(help="Let the disk fail as well.")] = False,
) -> None:
    """Cut the power under load, again and again, and look for what is lost or doubled."""
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        tempfile.TemporaryDirectory() as directory,
        Progress(*columns, TimeRemainingColumn(), console=console) as progress,
    ):
        cuts = PowerCuts(
            Path(directory),
            seed or secrets.randbits(32),
            synchronous=synchronous,
            failing=failing,
        )
        bar = progress.add_task("power cuts", total=rounds)
        cuts.run(rounds, lambda: progress.advance(bar))
    table = Table("file", "cut in the middle of", "cuts")
    for (file, kind), count in sorted(cuts.cuts.items()):
        table.add_row(file, kind, str(count))
    console.print(table)
    console.print(
        f"{rounds} cuts, {cuts.acknowledged} writes acknowledged, all there once. Of those whose "
        f"outcome nobody heard {cuts.unknown_kept} were stored, whole, and {cuts.unknown_lost} "
        f"were not. {cuts.refused} were refused, {cuts.failures} operations of the disk failed. "
        f"Seed {cuts.seed}."
    )


if __name__ == "__main__":
    typer.run(main)
