"""Logs of a million events, made quickly, kept for the rows of one run and removed with it.

They are made by the bridge's own functions, without a server and without a thread between:
decide, seal, apply, append. What lies in the file is what a bridge would have left that was
stopped cleanly: records, a snapshot every 10,000 events, one at the end, and the marks.
"""

from __future__ import annotations

import gc
import json
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from rich.progress import Progress

from benchmarks import servers
from benchmarks.errors import BenchmarkError
from benchmarks.workloads import INITIAL, TYPE_URL, Set, number_as_json
from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge.commands import (
    Command,
    InitializeSession,
    RegisterVariable,
    SetVariable,
    WireValue,
)
from snakepit_bridge.decide import decider
from snakepit_bridge.errors import BridgeError
from snakepit_bridge.events.codec import seal
from snakepit_bridge.events.log import AppendError, EventLog
from snakepit_bridge.events.model import Envelope, LogId, Moment, Origin, StoredRecord
from snakepit_bridge.events.projection import SessionState, apply
from snakepit_bridge.events.snapshot import seal_snapshot
from snakepit_bridge.events.sqlite import SqliteLog
from snakepit_bridge.limits import DEFAULTS

__all__ = ["SHORT", "VARIABLES", "Prepared", "Shelf"]

SHORT = 1_000
"""Events of a short session."""
VARIABLES = 100
"""Of each session, all registered before the first is set."""

_AT_ONCE = 2_000  # records a commit
# As the committer does when a bridge stops: shorter tails get no snapshot.
_LONG_TAIL = 1_000

_Advance = Callable[[int], None]


class Prepared(NamedTuple):
    """A log file and what it holds."""

    file: Path
    sessions: tuple[str, ...]
    epochs: Mapping[str, str]
    versions: Mapping[str, int]
    """By "session/name"."""
    values: Mapping[str, float]
    """By "session/name"."""

    def copied(self, directory: Path) -> Prepared:
        """Return the same in a directory of its own, for a bridge that will write to it."""
        directory.mkdir(parents=True)
        copy = servers.log_file(directory)
        shutil.copyfile(self.file, copy)
        return self._replace(file=copy)


class Shelf:
    """The logs of one run, each made when a row first asks for it."""

    def __init__(self, directory: Path, progress: Progress) -> None:
        """Keep them in ``directory``; the bars go to ``progress``."""
        self._directory = directory
        self._progress = progress
        self._kept: dict[tuple[int, ...], Prepared] = {}

    def log(self, *events: int) -> Prepared:
        """Return a log with a session ("bench-0", ...) of each of these numbers of events.

        It is shared: whoever writes makes a copy first.

        :raises BenchmarkError: it could not be made.
        """
        if events not in self._kept:
            with self._bar(sum(events)) as advance:
                file = servers.log_file(self._directory / str(len(self._kept)))
                self._kept[events] = _prepare(file, events, advance)
        return self._kept[events]

    @contextmanager
    def _bar(self, total: int) -> Iterator[_Advance]:
        task = self._progress.add_task(f"preparing {total:,} events", total=total)
        try:
            yield lambda count: self._progress.advance(task, count)
        finally:
            self._progress.remove_task(task)


def _prepare(file: Path, events: tuple[int, ...], advance: _Advance) -> Prepared:
    work = Set(sessions=len(events), variables=VARIABLES)
    versions: dict[str, int] = {}
    values: dict[str, float] = {}
    epochs: dict[str, str] = {}
    gc.disable()  # nothing here makes cycles, and a third of the time would go into the search
    try:
        with closing(SqliteLog(file)) as engine:
            for session, count in zip(work.sessions, events, strict=True):
                epochs[session], state = _write(engine, session, work.names, count, advance)
                for variable in state.variables.values():
                    key = f"{session}/{variable.definition.name}"
                    versions[key] = variable.version
                    sent = pb.SetVariableRequest()
                    sent.value.ParseFromString(variable.value.any)
                    values[key] = json.loads(sent.value.value)
    except (AppendError, BridgeError, OSError) as error:
        raise BenchmarkError(f"a log of {sum(events)} events was not made: {error}") from error
    finally:
        gc.enable()
    return Prepared(file, tuple(work.sessions), epochs, versions, values)


def _write(
    engine: EventLog, session: str, names: list[str], events: int, advance: _Advance
) -> tuple[str, SessionState]:
    """Write a session of ``events`` events; return its epoch and its state."""
    decide = decider()
    log = LogId(session, secrets.token_hex(8))
    state = SessionState()
    instance = secrets.token_hex(8)
    moment = Moment(time.time_ns(), 0)
    waiting: list[tuple[LogId, StoredRecord]] = []
    snapshot = 0
    for command in _commands(session, names, events):
        decision = decide(state, log.epoch if state.head else "", command, moment)
        for draft in decision.drafts:
            tail = (state.head, state.digest, state.time_unix_nanos)
            cause = (command.envelope, decision.request)
            stored, transaction = seal(draft, cause, (moment.clock_unix_nanos, instance), tail)
            apply(state, transaction)
            waiting.append((log, stored))
        last = state.head == events
        if len(waiting) >= _AT_ONCE or last:
            engine.append(waiting)
            engine.tidy()
            advance(len(waiting))
            waiting.clear()
            moment = Moment(time.time_ns(), 0)
            tail_length = state.head - snapshot
            if tail_length >= (_LONG_TAIL if last else DEFAULTS.snapshot_every):
                made = seal_snapshot(state)
                engine.save_snapshot(log, made)
                state.requests.adopt(made.requests)
                snapshot = state.head
    return log.epoch, state


def _commands(session: str, names: list[str], events: int) -> Iterator[Command]:
    """Give as many commands as events: each is accepted and becomes one."""
    origin = Origin("elixir")
    yield InitializeSession(Envelope(session, origin=origin))
    initial = WireValue(_any(json.dumps(INITIAL).encode()))
    for name in names:
        about = Envelope(session, origin=origin)
        yield RegisterVariable(about, name, "float", initial, '{"min": 0, "max": 1}')
    for number in range(events - len(names) - 1):
        about = Envelope(session, f"{session}-built-{number}", origin=origin)
        value = WireValue(_any(number_as_json(number)))
        yield SetVariable(about, names[number % len(names)], value)


def _any(json_bytes: bytes) -> bytes:
    request = pb.SetVariableRequest()
    request.value.type_url, request.value.value = TYPE_URL, json_bytes
    return request.value.SerializeToString()
