"""The long life of sessions: time to live, retention, on clocks that a test sets."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from snakepit_bridge.commands import (
    CleanupSession,
    InitializeSession,
    LoadSession,
    RegisterVariable,
    SetVariable,
    StartOptimization,
)
from snakepit_bridge.errors import (
    BridgeError,
    EpochMismatch,
    OffsetOutOfRange,
    SessionNotFound,
)
from snakepit_bridge.events.log import UNREFERENCED_NANOS
from snakepit_bridge.events.memory import MemoryLog
from snakepit_bridge.events.model import Envelope
from snakepit_bridge.events.reading import fold, load, state_at
from snakepit_bridge.events.sqlite import SqliteLog
from snakepit_bridge.limits import DEFAULTS, Limits
from snakepit_bridge.upkeep import DAY, ENDED_AGE, IDLE, SETTLING, Upkeep
from tests.direct import Direct, integer, json_of, whole
from tests.life import HOUR, MINUTE, Clocks, Life, begun
from tests.logs import LARGE, text
from tests.test_append_failures import BEFORE, FailingLog

PATIENCE = 20.0
"""Seconds in which what another thread does has to be seen."""


@pytest.fixture(params=["memory", "sqlite"])
def life(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Life]:
    yield from begun(request, tmp_path)


# Time to live.


def test_an_unused_session_expires_and_the_log_says_so(life: Life) -> None:
    direct = life.start(Limits(session_ttl=HOUR))
    log = life.register("a")
    life.wait(HOUR - 60)
    assert life.live("a")
    life.wait(180)
    assert not life.live("a")
    (*_, last) = fold(life.engine, log)
    ((kind, body),) = last.facts
    assert (kind, body.reason, body.resources) == ("session_ended", "expired", 2)
    assert last.record.source == "bridge"
    assert not last.record.HasField("request")
    with pytest.raises(SessionNotFound):
        life.write("a", 1)
    assert life.engine.live_sessions() == 0
    again = direct.ask(RegisterVariable(Envelope("a"), "x", "integer", integer(1)))
    assert again.log_epoch != log.epoch
    assert again.answer.offset == 2


@pytest.mark.parametrize("use", ["write", "read", "refused write"])
def test_a_session_that_is_used_lives_on(life: Life, use: str) -> None:
    direct = life.start(Limits(session_ttl=HOUR))
    for name in ("used", "unused"):
        life.register(name)
    for number in range(12):
        life.wait(HOUR / 2)
        if use == "write":
            life.write("used", number)
        elif use == "refused write":
            direct.ask_all(SetVariable(Envelope("used"), "no such", integer(1)))
        else:
            direct.ask(LoadSession(Envelope("used")))
            direct.loaded("used")
    assert (life.live("used"), life.live("unused")) == (True, False)
    life.wait(HOUR + 120)
    assert not life.live("used")


def test_each_start_grants_a_full_time_to_live_also_to_those_nobody_touches(life: Life) -> None:
    limits = Limits(session_ttl=HOUR)
    life.start(limits)
    for name in ("a", "b"):
        life.register(name)
    for _ in range(3):
        life.wait(HOUR - 60)
        life.start(limits)
    assert (life.live("a"), life.live("b")) == (True, True)
    life.wait(HOUR / 2)
    life.write("b", 1)
    life.wait(HOUR / 2 + 120)
    assert (life.live("a"), life.live("b")) == (False, True)


def test_without_a_time_to_live_sessions_live_for_ever(life: Life) -> None:
    life.start(Limits(session_ttl=0))
    life.register("a")
    life.wait(40 * DAY, step=DAY)
    assert life.live("a")


def test_many_sessions_expire_together(life: Life) -> None:
    direct = life.start(Limits(session_ttl=HOUR))
    direct.ask_all(*[InitializeSession(Envelope(f"s{n}")) for n in range(1_050)])
    life.start(Limits(session_ttl=HOUR))
    life.wait(HOUR + 60, step=600)
    assert life.engine.live_sessions() == 0
    life.wait(2 * IDLE)
    assert life.in_memory() == set()


@pytest.mark.parametrize("ttl", [10.0, HOUR])
def test_what_has_expired_leaves_memory_and_is_not_ended_again(
    life: Life, ttl: float, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    direct = life.start(Limits(session_ttl=ttl))
    log = life.register("a")
    life.register("b")
    direct.ask(CleanupSession(Envelope("b"), "cleanup"))
    life.wait(3 * HOUR)
    assert life.in_memory() == set()
    assert life.upkeep._used == {}
    assert caplog.text.count("outlived its time to live") == 1
    head = life.engine.head(log)
    assert head is not None
    assert head.head == 3


def out_of_order(wait: float) -> None:
    """An engine fails when a session is to expire, and is well again soon."""
    engine = FailingLog(MemoryLog())
    life = Life(lambda: engine)
    with life.start(Limits(session_ttl=HOUR)):
        log = life.register("a")
        life.wait(HOUR - 60)
        engine.settle_failures = 6
        engine.failures.append(BEFORE)
        refused = 0
        for _ in range(20):
            try:
                life.wait(30)
            except BridgeError:  # as _guarded would
                refused += 1
        assert refused > 0
        assert engine.settle_failures == 0
        life.wait(wait)
        assert engine.broken_rules == []
        assert not life.live("a")
        assert len(list(fold(engine, log))) == 2


def test_expiry_is_tried_again_after_an_engine_was_out_of_order() -> None:
    out_of_order(wait=HOUR + 60)


def test_expiry_is_tried_again_as_soon_as_the_engine_is_in_order() -> None:
    out_of_order(wait=300)


def test_a_session_that_began_anew_does_not_expire_for_the_old_one(life: Life) -> None:
    direct = life.start(Limits(session_ttl=HOUR))
    old = life.register("a")
    life.wait(HOUR / 2)
    direct.ask(CleanupSession(Envelope("a"), "cleanup"))
    life.wait(60)
    life.register("a")
    life.wait(HOUR / 2 + 120)
    assert life.live("a")
    with pytest.raises(EpochMismatch):
        direct.ask(SetVariable(Envelope("a", log_epoch=old.epoch), "x", integer(1)))


def test_last_use_is_written_down_now_and_then(life: Life) -> None:
    life.start(Limits(session_ttl=HOUR))
    log = life.register("a")
    begun = life.clocks.wall()
    written = []
    for number in range(200):
        life.wait(30)
        life.write("a", number)
        (entry,) = life.engine.logs()
        assert entry.log == log
        written.append(entry.accessed_unix_nanos)
    times = sorted(set(written))
    assert len(times) <= 200 * 30 / (HOUR / 10) + 1
    assert times[0] >= begun
    assert life.clocks.wall() - times[-1] <= (HOUR / 10 + 60) * 1e9


# Retention.


def test_an_ended_log_is_kept_for_a_week_and_then_forgotten(life: Life) -> None:
    direct = life.start(Limits(session_ttl=0))
    old, live = life.register("ended"), life.register("live")
    direct.ask(CleanupSession(Envelope("ended"), "cleanup"))
    direct.ask_all(*[SetVariable(Envelope("live"), "x", integer(n)) for n in range(20)])
    life.wait(ENDED_AGE - HOUR, step=HOUR)
    assert life.engine.head(old) is not None
    direct.ask(LoadSession(Envelope("ended")))
    life.wait(3 * HOUR, step=HOUR)
    assert life.engine.head(old) is None
    assert [entry.log for entry in life.engine.logs()] == [live]
    life.wait(99 * DAY, step=DAY)
    assert len(list(fold(life.engine, live))) == 21  # nothing of a live one is cut
    assert life.register("ended") != old


@pytest.mark.parametrize("age", [0.0, 2 * HOUR])
def test_how_long_ended_logs_are_kept_can_be_chosen(life: Life, age: float) -> None:
    direct = life.start(Limits(session_ttl=0, retention_age=age))
    old = life.register("a")
    direct.ask(CleanupSession(Envelope("a"), "cleanup"))
    life.wait(2 * HOUR - 60)
    assert life.engine.head(old) is not None
    life.wait(60 * DAY, step=DAY)
    assert (life.engine.head(old) is not None) == (age == 0)


def test_a_live_log_is_cut_where_an_age_is_given(life: Life) -> None:
    life.start(Limits(session_ttl=0, retention_age=HOUR))
    log = life.register("a")
    for number in range(240):  # four hours
        life.wait(60)
        life.write("a", number)
    head = life.engine.head(log)
    assert head is not None
    assert head.head == 242
    # What is younger than the age is there; older than that and a snapshot's distance is not.
    assert 242 - 60 * 1.5 <= head.base <= 242 - 60
    assert life.direct.loaded("a").base == head.base
    kept = [t.record.time_unix_nanos for t in fold(life.engine, log, head.base, head.base_digest)]
    assert kept[0] <= life.clocks.wall() - HOUR * 1e9
    with pytest.raises(OffsetOutOfRange):
        state_at(life.engine, log, head.base - 1)
    state, _ = load(life.engine, head)
    assert json_of(state.variables["var_x_2"].value) == "239"
    expected = whole(state)
    life.wait(10 * HOUR, step=600)  # then all that is older than an hour goes,
    end = life.engine.head(log)
    assert end is not None
    assert end.base == end.head == 242
    assert whole(load(life.engine, end)[0]) == expected  # but not the state


def test_a_session_that_was_idle_is_cut_too(life: Life) -> None:
    life.start(Limits(session_ttl=0, retention_age=HOUR))
    log = life.register("a")
    life.wait(3 * HOUR, step=60)
    assert life.in_memory() == set()
    head = life.engine.head(log)
    assert head is not None
    assert head.base == 2
    life.write("a", 5)
    assert life.direct.loaded("a").committed.head == 3


@pytest.mark.parametrize("weeks", [20_000, 10**6, 10**11])
def test_an_age_longer_than_time_itself_keeps_everything(life: Life, weeks: int) -> None:
    direct = life.start(Limits(retention_age=weeks * 7 * DAY, session_ttl=weeks * 7 * DAY))
    log = life.register("a")
    direct.ask(CleanupSession(Envelope("a"), "cleanup"))
    life.wait(60 * DAY, step=DAY)
    assert life.engine.head(log) is not None


def test_large_values_go_when_nothing_names_them(life: Life) -> None:
    direct = life.start(Limits(session_ttl=0, retention_age=HOUR))
    direct.ask(RegisterVariable(Envelope("a"), "x", "string", text(LARGE[0])))
    digest = direct.loaded("a").committed.variables["var_x_2"].value.digest
    other = RegisterVariable(Envelope("b"), "x", "string", text(LARGE[0]))
    direct.ask(other)
    direct.ask(CleanupSession(Envelope("b"), "cleanup"))
    life.wait(5 * HOUR, step=120)
    assert digest in life.engine.large_values([digest])  # it is the value of a's x
    direct.ask(SetVariable(Envelope("a"), "x", text("short")))
    life.wait(HOUR + 600, step=120)
    life.wait(UNREFERENCED_NANOS / 1e9 + HOUR, step=120)
    assert life.engine.large_values([digest]) == {}
    assert json_of(direct_state(life, "a")) == '"short"'


def direct_state(life: Life, session: str) -> Any:  # noqa: ANN401 - a value
    life.direct.ask(LoadSession(Envelope(session)))
    return life.direct.loaded(session).committed.variables["var_x_2"].value


# Clocks that jump.


def test_a_wall_clock_that_is_wrong_for_ten_minutes_has_nothing_forgotten(life: Life) -> None:
    direct = life.start(Limits(session_ttl=HOUR, retention_age=12 * HOUR))
    ended, log = life.register("ended"), life.register("a")
    direct.ask(CleanupSession(Envelope("ended"), "cleanup"))
    for number in range(30):
        life.wait(60)
        life.write("a", number)
    life.clocks.ahead += int(DAY * 1e9)
    life.wait(600)
    life.write("a", 100)
    assert life.live("a")
    life.clocks.ahead -= int(DAY * 1e9)
    life.wait(HOUR / 2)
    assert life.live("a")
    assert life.engine.head(ended) is not None
    head = life.engine.head(log)
    assert head is not None
    assert head.base == 0


def test_a_wall_clock_that_was_set_right_is_believed_after_an_hour(life: Life) -> None:
    direct = life.start(Limits(session_ttl=0))
    ended = life.register("ended")
    direct.ask(CleanupSession(Envelope("ended"), "cleanup"))
    life.wait(600)
    life.clocks.ahead += int(30 * DAY * 1e9)
    life.wait(SETTLING - 60)
    assert life.engine.head(ended) is not None
    life.wait(180)
    assert life.engine.head(ended) is None


def test_a_jump_is_not_believed_because_upkeep_was_held_up_for_an_hour(life: Life) -> None:
    direct = life.start(Limits(session_ttl=0))
    ended = life.register("ended")
    direct.ask(CleanupSession(Envelope("ended"), "cleanup"))
    life.wait(600)
    life.clocks.now += SETTLING + 60
    life.clocks.ahead += int(30 * DAY * 1e9)
    life.upkeep.tick()
    assert life.engine.head(ended) is not None


def test_a_wall_clock_that_goes_back_makes_no_event_older(life: Life) -> None:
    life.start(Limits(session_ttl=HOUR))
    log = life.register("a")
    for jump in (-3 * DAY, 0, 5 * DAY, -DAY, -10 * DAY):
        life.clocks.ahead += int(jump * 1e9)
        life.write("a", 1)
        life.wait(120)
        life.direct.evict("a")
    records = [transaction.record for transaction in fold(life.engine, log)]
    times = [record.time_unix_nanos for record in records]
    assert times == sorted(times)
    assert any(record.clock_unix_nanos for record in records)
    assert life.live("a")
    life.wait(HOUR + 60)  # by the monotonic clock
    assert not life.live("a")


def test_a_wall_clock_that_goes_back_makes_no_lock_younger(life: Life) -> None:
    direct = life.start(Limits(optimization_ttl=MINUTE))
    life.register("a")
    life.register("a", "y")
    direct.ask(StartOptimization(Envelope("a"), "x", "o"))
    life.clocks.now += MINUTE + 1
    direct.ask(SetVariable(Envelope("a"), "y", integer(1)))
    life.clocks.ahead -= int(DAY * 1e9)
    life.write("a", 1)


# The thread.


def test_the_thread_does_all_this_by_itself(tmp_path: Path) -> None:
    limits = Limits(session_ttl=0.4, retention_age=0.4, snapshot_every=5)
    direct = Direct(SqliteLog(tmp_path / "bridge.db"))
    upkeep = Upkeep(direct.committer, limits, idle=0.1)
    upkeep.start()
    direct.ask(RegisterVariable(Envelope("a"), "x", "integer", integer(0)))
    log = direct.loaded("a").id
    direct.ask_all(*[SetVariable(Envelope("a"), "x", integer(n)) for n in range(9)])
    seen: set[str] = set()
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and direct.engine.head(log) is not None:
        seen |= {"snapshot"} if direct.engine.snapshot_offsets(log) else set()
        seen |= {"evicted"} if direct.committer.peek("a") is None else set()
        seen |= {"ended"} if direct.engine.live_sessions() == 0 else set()
        threading.Event().wait(0.005)
    upkeep.stop()
    assert direct.engine.head(log) is None  # the last of all
    assert seen == {"snapshot", "evicted", "ended"}
    direct.close()


def test_stopping_what_was_never_started_is_harmless() -> None:
    with Direct(MemoryLog()) as direct:
        Upkeep(direct.committer, DEFAULTS).stop()


def test_a_stop_does_not_wait_until_every_session_has_expired() -> None:
    clocks = Clocks()
    with Direct(MemoryLog()) as direct:
        direct.ask_all(*[InitializeSession(Envelope(f"s{n}")) for n in range(2_000)])
        upkeep = Upkeep(direct.committer, Limits(session_ttl=HOUR), monotonic=clocks.monotonic)
        upkeep.tick()
        clocks.now += 2 * HOUR
        upkeep._stopping = True  # what stop does while a round is on its way
        upkeep.tick()
        assert direct.engine.live_sessions() > 0


def test_nothing_is_remembered_of_logs_that_were_followed_by_others() -> None:
    life = Life(MemoryLog)
    direct = life.start(Limits(session_ttl=0, retention_age=DAY))
    for _ in range(20):
        life.register("a")
        life.wait(60)
        direct.ask(CleanupSession(Envelope("a"), "cleanup"))
    life.wait(3 * DAY, step=HOUR)
    assert list(life.engine.logs()) == []
    upkeep = life.upkeep
    assert (len(upkeep._used), len(upkeep._stored_use), len(upkeep._sealed)) == (0, 0, 0)
    direct.close()
