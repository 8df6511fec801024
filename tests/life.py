"""A bridge without a network, through several starts, on clocks that a test sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snakepit_bridge.commands import (
    RegisterVariable,
    SetVariable,
)
from snakepit_bridge.events.log import EventLog
from snakepit_bridge.events.memory import MemoryLog
from snakepit_bridge.events.model import Envelope, LogId
from snakepit_bridge.events.reading import load
from snakepit_bridge.events.sqlite import SqliteLog
from snakepit_bridge.limits import DEFAULTS, Limits
from snakepit_bridge.upkeep import Upkeep
from tests.direct import Direct, integer

MINUTE, HOUR = 60.0, 3_600.0


class Clocks:
    """Both clocks of a machine, and what happens to them."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.ahead = 1_750_000_000 * 10**9
        """Of the wall clock, in nanoseconds."""

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> int:
        return self.ahead + int(self.now * 1e9)


class Life:
    """An engine through several starts of a bridge."""

    def __init__(self, engine: Callable[[], EventLog]) -> None:
        self.clocks = Clocks()
        self._engine = engine
        self.limits = DEFAULTS
        self.direct: Direct = None  # type: ignore[assignment]  # until it is started
        self.upkeep: Upkeep = None  # type: ignore[assignment]

    def start(self, limits: Limits = DEFAULTS) -> Direct:
        if self.direct is not None:
            self.direct.close()
        self.limits = limits
        self.direct = Direct(self._engine(), limits, clock=self.clocks.wall)
        self.upkeep = Upkeep(
            self.direct.committer, limits, monotonic=self.clocks.monotonic, wall=self.clocks.wall
        )
        return self.direct

    @property
    def engine(self) -> EventLog:
        return self.direct.engine

    def wait(self, seconds: float, step: float = 30.0) -> None:
        """Let time pass, with a round of upkeep every now and then."""
        end = self.clocks.now + seconds
        while self.clocks.now < end:
            self.clocks.now = min(end, self.clocks.now + step)
            self.upkeep.tick()

    def register(self, session: str, name: str = "x", value: int = 0) -> LogId:
        command = RegisterVariable(Envelope(session), name, "integer", integer(value))
        self.direct.ask(command)
        return self.direct.loaded(session).id

    def write(self, session: str, value: int) -> None:
        self.direct.ask(SetVariable(Envelope(session), "x", integer(value)))

    def in_memory(self) -> set[str]:
        return {log.id.session_id for log in self.direct.committer.all_loaded()}

    def live(self, session: str) -> bool:
        head = self.engine.latest(session)
        return head is not None and not load(self.engine, head)[0].ended


def begun(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Life]:
    """For a fixture with the parameters "memory" and "sqlite"."""
    memory = MemoryLog()
    sqlite = request.param == "sqlite"
    life = Life(lambda: SqliteLog(tmp_path / "bridge.db") if sqlite else memory)
    yield life
    if life.direct is not None:
        life.direct.close()
