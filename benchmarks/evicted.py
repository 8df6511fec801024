"""What an evicted session keeps in memory, measured inside a process of its own.

``python -m benchmarks.evicted FILE --sessions N [--traced]`` prints figures as JSON. It runs
what the bridge runs (committer, upkeep, SQLite engine) without gRPC, because only here can
eviction come after 50 ms; the bridge waits five minutes.

1. The same thousand sessions are used and evicted, until as many calls were made as will be:
   after that no cache, no pool and no heap has a reason to grow. This is "none".
2. N other sessions are used, a thousand at a time, and evicted. What the process has gained
   since, divided by N, is what one costs.

Each is begun with two variables, set twice with request ids and read when it has been evicted.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
import tracemalloc
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from benchmarks.proc import resident
from benchmarks.workloads import TYPE_URL, number_as_json
from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge.commands import Command, RegisterVariable, SetVariable, WireValue
from snakepit_bridge.decide import decider, recall
from snakepit_bridge.events.committer import Committer
from snakepit_bridge.events.model import Envelope
from snakepit_bridge.events.sqlite import SqliteLog
from snakepit_bridge.events.tasks import Outcome
from snakepit_bridge.limits import DEFAULTS
from snakepit_bridge.sessions import LoadTask, find
from snakepit_bridge.upkeep import Upkeep

__all__: list[str] = []

_WAVE = 1_000  # sessions in memory at a time
_AT_ONCE = 250  # sessions in one submission
_NAMES = ("learning_rate", "temperature")
_ROUNDS = 2  # sets of each variable
_IDLE = 0.05  # seconds until a session that is not used leaves memory
_LIMIT = 30.0  # seconds for a wave to leave
_LOOKED_AT = 20  # evicted sessions that are opened again at the end


class _Task(NamedTuple):
    """A command, whose outcome is the version that it made."""

    wanted: Command
    timing: None = None

    def command(self) -> Command:
        return self.wanted

    def answer(self, outcome: Outcome) -> int:
        return outcome.answer.number


class _Sessions:
    """Uses sessions and sees them leave."""

    def __init__(self, committer: Committer) -> None:
        self._committer = committer
        self._sets = 0

    def wave(self, first: int, count: int, *, new: bool) -> None:
        """Use the sessions ``first``, ``first + 1``, ... and wait until all were evicted."""
        for number in range(first, first + count, _AT_ONCE):
            some = range(number, min(number + _AT_ONCE, first + count))
            if new:
                self._done([_Task(c) for session in some for c in self._begin(session)])
            self._done([_Task(c) for session in some for c in self._use(session)])
        limit = time.monotonic() + _LIMIT
        while self._committer.all_loaded():
            if time.monotonic() > limit:
                raise SystemExit("sessions that nobody uses did not leave memory")
            time.sleep(_IDLE)

    def check(self, first: int, count: int) -> None:
        """Open sessions again and see that they hold what was set last."""
        for number in range(first, first + count):
            self._done([LoadTask(f"bench-{number}")])
            log = self._committer.loaded(f"bench-{number}")
            if log is None or {find(log, name)[0].version for name in _NAMES} != {1 + _ROUNDS}:
                raise SystemExit(f"the evicted session bench-{number} has changed")

    def _begin(self, session: int) -> list[Command]:
        about = Envelope(f"bench-{session}")
        value = WireValue(_value(0))
        return [RegisterVariable(about, name, "float", value) for name in _NAMES]

    def _use(self, session: int) -> list[Command]:
        commands: list[Command] = []
        for name in _NAMES * _ROUNDS:
            self._sets += 1
            about = Envelope(f"bench-{session}", f"request-{self._sets}")
            commands.append(SetVariable(about, name, WireValue(_value(self._sets))))
        return commands

    def _done(self, tasks: Sequence[Any]) -> None:
        future: Future[Sequence[Any]] = Future()
        self._committer.submit(tasks, future.set_result)
        for result in future.result(_LIMIT):
            if isinstance(result, BaseException):
                raise SystemExit(f"a command was refused: {result}")


def _value(number: int) -> bytes:
    request = pb.SetVariableRequest()
    request.value.type_url, request.value.value = TYPE_URL, number_as_json(number)
    return request.value.SerializeToString()


def _measure(file: str, count: int, *, traced: bool) -> dict[str, float]:
    committer = Committer(SqliteLog(file), decider(), recall)
    upkeep = Upkeep(committer, DEFAULTS, idle=_IDLE)
    committer.start()
    upkeep.start()
    sessions = _Sessions(committer)
    try:
        sessions.wave(0, _WAVE, new=True)
        for _ in range(0, count, _WAVE):
            sessions.wave(0, _WAVE, new=False)
        if traced:
            tracemalloc.start()
        before = _memory(traced=traced)
        for first in range(_WAVE, _WAVE + count, _WAVE):
            sessions.wave(first, min(_WAVE, _WAVE + count - first), new=True)
        after = _memory(traced=traced)
        sessions.check(_WAVE, _LOOKED_AT)
    finally:
        upkeep.stop()
        committer.close()
    return {"sessions": count, "before": before, "after": after, "each": (after - before) / count}


def _memory(*, traced: bool) -> int:
    """Return the bytes that this process has resident, or that Python has given out."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0] if traced else resident()


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evicted", description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--sessions", type=int, required=True)
    parser.add_argument("--traced", action="store_true")
    arguments = parser.parse_args()
    print(json.dumps(_measure(arguments.file, arguments.sessions, traced=arguments.traced)))


if __name__ == "__main__":
    main()
