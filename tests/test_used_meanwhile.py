"""A session that is used between upkeep's look at it and what upkeep then does to it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from snakepit_bridge.commands import LoadSession, RegisterVariable
from snakepit_bridge.events.loaded import LoadedLog
from snakepit_bridge.events.log import EventLog
from snakepit_bridge.events.memory import MemoryLog
from snakepit_bridge.events.model import Envelope
from snakepit_bridge.limits import Limits
from snakepit_bridge.upkeep import Upkeep
from tests.direct import Direct, integer

HOUR = 3_600.0

Use = Callable[[Direct], object]

USES: dict[str, Use] = {
    "read": lambda direct: direct.committer.loaded("s"),
    "command": lambda direct: direct.ask(LoadSession(Envelope("s"))),
}


def begun(engine: EventLog) -> tuple[Direct, LoadedLog]:
    direct = Direct(engine)
    direct.ask(RegisterVariable(Envelope("s"), "x", "integer", integer(1)))
    log = direct.loaded("s")
    log.touched = False  # as upkeep does when it looks
    return direct, log


@pytest.mark.parametrize("use", USES)
def test_a_session_used_since_upkeep_looked_stays_in_memory(use: str) -> None:
    direct, log = begun(MemoryLog())
    with direct:
        USES[use](direct)
        direct.perform(direct.committer.evict, [log])
        assert direct.committer.peek("s") is log
        log.touched = False
        direct.perform(direct.committer.evict, [log])
        assert direct.committer.peek("s") is None


@pytest.mark.parametrize("use", USES)
def test_a_session_used_since_upkeep_looked_does_not_expire(use: str) -> None:
    now = [0.0]
    direct, log = begun(MemoryLog())
    with direct:
        limits = Limits(session_ttl=HOUR)
        upkeep = Upkeep(direct.committer, limits, idle=9 * HOUR, monotonic=lambda: now[0])
        upkeep.tick()
        now[0] += HOUR + 60
        USES[use](direct)
        upkeep._expire(now[0])  # it looked before that
        assert log.committed.live
        log.touched = False
        upkeep._expire(now[0])
        assert not log.committed.live


def test_a_session_that_is_watched_stays_in_memory() -> None:
    direct, log = begun(MemoryLog())
    with direct:
        log.watch()
        direct.perform(direct.committer.evict, [log])
        assert direct.committer.peek("s") is log
        log.unwatch()
        direct.perform(direct.committer.evict, [log])
        assert direct.committer.peek("s") is None


def test_a_session_that_is_watched_does_not_expire() -> None:
    now = [0.0]
    direct, log = begun(MemoryLog())
    with direct:
        limits = Limits(session_ttl=HOUR)
        upkeep = Upkeep(direct.committer, limits, idle=9 * HOUR, monotonic=lambda: now[0])
        upkeep.tick()
        now[0] += HOUR + 60
        log.watch()
        upkeep._expire(now[0])
        assert log.committed.live
        log.unwatch()
        log.touched = False
        upkeep._expire(now[0])
        assert not log.committed.live


def test_a_watch_counts_as_use() -> None:
    now = [0.0]
    direct, log = begun(MemoryLog())
    with direct:
        limits = Limits(session_ttl=HOUR)
        upkeep = Upkeep(direct.committer, limits, idle=9 * HOUR, monotonic=lambda: now[0])
        log.watch()
        for _ in range(4):
            now[0] += HOUR * 0.75
            upkeep.tick()
        log.unwatch()
        assert log.committed.live
        now[0] += HOUR * 0.75
        upkeep.tick()
        assert log.committed.live
        now[0] += HOUR * 0.75
        upkeep.tick()
        assert not log.committed.live
