"""Sessions that nobody uses leave memory, and come back as they were."""

from __future__ import annotations

import gc
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from snakepit_bridge.commands import (
    InitializeSession,
    LoadSession,
    SetVariable,
)
from snakepit_bridge.errors import (
    Unavailable,
)
from snakepit_bridge.events.model import Envelope
from snakepit_bridge.events.sqlite import SqliteLog
from snakepit_bridge.limits import Limits
from snakepit_bridge.upkeep import IDLE, _Expiry
from tests.direct import folded, integer, readable, whole
from tests.life import HOUR, Life, begun


@pytest.fixture(params=["memory", "sqlite"])
def life(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Life]:
    yield from begun(request, tmp_path)


def test_what_nobody_uses_leaves_memory_and_comes_back_the_same(life: Life) -> None:
    direct = life.start()
    for name in ("a", "b"):
        direct.ask(InitializeSession(Envelope(name, "begin"), {"k": "ü"}))
        life.register(name)
        direct.ask(SetVariable(Envelope(name, "set"), "x", integer(7)))
    before = whole(direct.loaded("a").working)
    life.wait(IDLE - 31)
    assert life.in_memory() == {"a", "b"}
    direct.loaded("b")  # as every read does
    life.wait(62)
    assert life.in_memory() == {"b"}
    life.wait(IDLE + 31)
    assert life.in_memory() == set()
    direct.ask(LoadSession(Envelope("a")))
    assert whole(direct.loaded("a").working) == before
    assert readable(direct.loaded("a").committed) == readable(direct.loaded("a").working)
    again = direct.ask(SetVariable(Envelope("a", "set"), "x", integer(7)))
    assert (again.answer.duplicate, again.answer.number) == (True, 2)
    life.wait(2 * IDLE)
    life.write("a", 8)  # a write finds it as well
    assert direct.loaded("a").committed.head == 4


def test_what_is_used_at_the_last_moment_stays(life: Life) -> None:
    direct = life.start(Limits(session_ttl=HOUR))
    life.register("a")
    life.wait(60)
    log = direct.loaded("a")
    direct.perform(direct.committer.evict, [log])
    assert life.in_memory() == {"a"}
    expiry = _Expiry(direct.committer, log.id)
    with pytest.raises(Unavailable, match="in use again"):
        expiry.command()
    log.touched = False
    direct.perform(direct.committer.evict, [log])
    assert life.in_memory() == set()
    assert expiry.command().reason == "expired"


def test_a_session_with_a_long_tail_leaves_a_snapshot(life: Life) -> None:
    direct = life.start()
    log = life.register("a")
    direct.ask_all(*[SetVariable(Envelope("a"), "x", integer(n)) for n in range(1_200)])
    life.register("short")
    life.wait(2 * IDLE)
    assert life.in_memory() == set()
    assert list(life.engine.snapshot_offsets(log)) == [1_202]
    direct.ask(LoadSession(Envelope("a")))
    assert direct.loaded("a").snapshot_offset == 1_202
    assert whole(direct.loaded("a").working) == whole(folded(life.engine, log))
    head = life.engine.latest("short")
    assert head is not None
    assert list(life.engine.snapshot_offsets(head.log)) == []


def test_nothing_is_lost_to_writers_while_their_sessions_are_evicted(life: Life) -> None:
    direct = life.start(Limits(snapshot_every=20))
    names = ["a", "b"]
    for name in names:
        life.register(name)
    done, faults = threading.Event(), list[BaseException]()
    written = dict.fromkeys(names, 0)

    def write(name: str, half: int) -> None:
        try:
            for number in range(150):
                envelope = Envelope(name, f"{half} {number}")
                direct.ask(SetVariable(envelope, "x", integer(number)))
                written[name] += 1
        except BaseException as error:  # noqa: BLE001 - told below
            faults.append(error)

    def evict() -> None:
        try:
            while not done.is_set():
                for log in direct.committer.all_loaded():
                    log.touched = False
                    direct.perform(direct.committer.evict, [log])
                life.clocks.now += 1
                life.upkeep.tick()
                while not life.upkeep._inbox.empty():
                    item = life.upkeep._inbox.get()
                    assert item is not None
                    life.upkeep._seal(*item)
        except BaseException as error:  # noqa: BLE001
            faults.append(error)

    evictor = threading.Thread(target=evict)
    writers = [threading.Thread(target=write, args=(n, half)) for n in names for half in (1, 2)]
    for thread in (evictor, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    evictor.join()
    assert faults == []
    for name in names:
        direct.ask(LoadSession(Envelope(name)))
        log = direct.loaded(name)
        assert log.committed.head == 302
        assert whole(log.working) == whole(folded(life.engine, log.id))
        assert readable(log.committed) == readable(log.working)
        assert all(log.working.requests.find(f"{h} {n}") for h in (1, 2) for n in range(150))
        assert len(life.engine.snapshot_offsets(log.id)) > 1


def test_an_evicted_session_costs_less_than_a_kilobyte(tmp_path: Path) -> None:
    life = Life(lambda: SqliteLog(tmp_path / "bridge.db"))  # what is stored is not in memory
    direct = life.start()
    life.register("warm")
    life.wait(2 * IDLE)
    count = 10_000
    gc.collect()
    tracemalloc.start()
    try:
        direct.ask_all(*[InitializeSession(Envelope(f"session {n}")) for n in range(count)])
        gc.collect()
        loaded, _ = tracemalloc.get_traced_memory()
        life.wait(2 * IDLE)
        gc.collect()
        evicted, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert life.in_memory() == set()
    assert len(life.upkeep._used) == count + 1
    direct.close()
    print(f"bytes a session: {loaded // count} loaded, {evicted // count} evicted")  # noqa: T201
    assert evicted / count < 1_000
