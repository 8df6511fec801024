"""Observers in this process: callbacks on one thread, and iterators on an event loop."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from snakepit_bridge import observers
from snakepit_bridge.changes import Changes, Start
from snakepit_bridge.commands import CleanupSession, InitializeSession
from snakepit_bridge.errors import (
    BridgeError,
    DataLoss,
    EpochMismatch,
    FailedPrecondition,
    InvalidRequest,
    OffsetOutOfRange,
    SessionNotFound,
    Unavailable,
    WatchClosed,
)
from snakepit_bridge.events.cursor import check_of
from snakepit_bridge.events.memory import MemoryLog
from snakepit_bridge.events.model import Envelope, LogId, StoredRecord
from snakepit_bridge.events.recent import Recent
from snakepit_bridge.events.ring import Committed
from snakepit_bridge.observers import Dispatcher
from snakepit_bridge.session_context import Change, SessionContext
from tests.direct import PATIENCE, Direct

Call = tuple[str, Any, Any]


class Seen:
    """A callback that notes its calls."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.metadata: list[Mapping[str, str]] = []
        self._arrived: queue.SimpleQueue[None] = queue.SimpleQueue()

    def __call__(self, name: str, old: object, new: object, metadata: Mapping[str, str]) -> None:
        self.calls.append((name, old, new))
        self.metadata.append(metadata)
        self._arrived.put(None)

    def wait(self, calls: int = 1) -> None:
        """Until there were so many more."""
        for _ in range(calls):
            self._arrived.get(timeout=PATIENCE)

    @property
    def news(self) -> list[Any]:
        return [new for _, _, new in self.calls]


class Blocking(Seen):
    """One that does not return from its first call before it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.release = threading.Event()

    def __call__(self, name: str, old: object, new: object, metadata: Mapping[str, str]) -> None:
        self.entered.set()
        assert self.release.wait(PATIENCE)
        super().__call__(name, old, new, metadata)


@pytest.fixture
def session() -> Iterator[SessionContext]:
    with SessionContext("session") as context:
        context.register_variable("x", "integer", 0)
        context.register_variable("y", "integer", 0)
        yield context


class World:
    """A bridge without a network, and what its sessions share."""

    def __init__(self, engine: MemoryLog, ring: int) -> None:
        self.engine = engine
        self.direct = Direct(engine)
        self.direct.committer.recent = Recent(ring)
        self.dispatcher = Dispatcher(self.direct.committer)

    def session(self, session_id: str = "s") -> SessionContext:
        self.direct.ask(InitializeSession(Envelope(session_id)))
        committer = self.direct.committer
        context = SessionContext(session_id, committer=committer, dispatcher=self.dispatcher)
        context.register_variable("x", "integer", 0)
        return context

    def end(self, session_id: str = "s") -> None:
        self.direct.ask(CleanupSession(Envelope(session_id), "done"))

    def cut(self, session_id: str = "s") -> None:
        """Forget all but the newest state."""
        self.direct.cut(self.direct.loaded(session_id).id, self.direct.snapshot(session_id))

    def close(self) -> None:
        self.dispatcher.close()
        self.direct.close()


class Failing(MemoryLog):
    """An engine that cannot be read while it is told so."""

    def __init__(self) -> None:
        super().__init__()
        self.out_of_order = False
        self.refused = threading.Semaphore(0)

    def read(self, log: LogId, after: int = 0, *, limit: int = 1_000) -> Sequence[StoredRecord]:
        if self.out_of_order:
            self.refused.release()
            raise Unavailable("the disk is away")
        return super().read(log, after, limit=limit)


TWO_ENTRIES = 3_000
"""Bytes of a ring that holds one or two transactions."""


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """With a ring of the usual size, or of the one that is given."""
    world = World(Failing(), getattr(request, "param", 16 * 1024 * 1024))
    yield world
    world.close()


overrun = pytest.mark.parametrize("world", [TWO_ENTRIES], indirect=True)


def transactions_in_memory() -> int:
    gc.collect()
    return sum(type(thing) is Committed for thing in gc.get_objects())


# What an observer is told.


def test_it_is_called_with_name_values_and_metadata(session: SessionContext) -> None:
    seen = Seen()
    session.watch_variable("x", seen)
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    told = {"k": "v", "source": "tool:t", "correlation_id": "c", "traceparent": trace}
    session.set_variable("x", 1, told)
    session.set_variable("x", 1)  # an equal value is a change
    session.flush()
    assert seen.calls == [("x", 0, 1), ("x", 1, 1)]
    assert [dict(metadata) for metadata in seen.metadata] == [told, {"source": "python"}]


def test_it_is_called_for_each_way_to_set_a_value_and_for_nothing_else(
    session: SessionContext,
) -> None:
    session.set_variable("x", 1)  # before it watched
    seen = Seen()
    session.watch_variable("*", seen)
    session.set_variable("x", 2)
    session.set_variables({"y": 3, "x": 3})
    session.set_variables({"x": 4, "y": "none"}, atomic=False)
    session.rollback_variable("x", 1)
    session.register_variable("z", "string", "begin")
    session.set_variable("z", "end")
    session.delete_variable("y")
    session.flush()
    assert seen.calls == [
        ("x", 1, 2),
        ("x", 2, 3),
        ("y", 0, 3),
        ("x", 3, 4),
        ("x", 4, 0),
        ("z", "begin", "end"),
    ]
    assert session._dispatcher.statistics().failures == 0


def test_what_was_committed_before_is_not_told(session: SessionContext) -> None:
    """Also when it is not delivered yet to those who came earlier."""
    blocking, later = Blocking(), Seen()
    session.watch_variable("x", blocking)
    session.set_variable("x", 1)
    session.set_variable("x", 2)
    session.watch_variable("x", later)
    session.set_variable("x", 3)
    blocking.release.set()
    session.flush()
    assert (blocking.news, later.news) == ([1, 2, 3], [3])


def test_arrays_are_read_only(session: SessionContext) -> None:
    session.register_variable("e", "embedding", [1.0, 2.0])
    seen = Seen()
    session.watch_variable("e", seen)
    session.set_variable("e", np.arange(2_000, dtype=np.float32))
    session.flush()
    ((_, old, new),) = seen.calls
    assert (old.tolist(), new.shape) == ([1.0, 2.0], (2_000,))
    for array in (old, new):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 9


@pytest.mark.parametrize(
    ("identifier", "names"),
    [("x", ["x"]), ("*", ["x", "y", "xy"]), ("x*", ["x", "xy"]), ("??", ["xy"]), ("[x]", [])],
)
def test_names_and_patterns(session: SessionContext, identifier: str, names: list[str]) -> None:
    session.register_variable("xy", "integer", 0)
    seen = Seen()
    session.watch_variable(identifier, seen)
    for name in ("x", "y", "xy"):
        session.set_variable(name, 1)
    session.flush()
    assert [name for name, _, _ in seen.calls] == names


def test_a_name_is_waited_for_and_followed_and_an_id_is_not(session: SessionContext) -> None:
    by_name, by_id = Seen(), Seen()
    session.watch_variable("new", by_name)
    id_ = session.register_variable("new", "integer", 0)
    session.watch_variable(id_, by_id)
    session.set_variable("new", 1)
    session.delete_variable("new")
    session.register_variable("new", "integer", 10)
    session.set_variable("new", 11)
    session.flush()
    assert by_name.calls == [("new", 0, 1), ("new", 10, 11)]
    assert by_id.calls == [("new", 0, 1)]


def test_what_cannot_be_watched(session: SessionContext) -> None:
    async def coroutine(*_: object) -> None: ...

    for wrong in ("", "x" * 1_025):
        with pytest.raises(InvalidRequest, match="identifier"):
            session.watch_variable(wrong, Seen())
    with pytest.raises(TypeError, match="plain function"):
        session.watch_variable("x", coroutine)
    with pytest.raises(TypeError, match="plain function"):
        session.watch_variable("x", None)  # type: ignore[arg-type]
    assert session._dispatcher.statistics().observers == 0
    log = session._committer.loaded("session")
    assert log is not None
    assert log.watches == 0


# Order, and each change once.


def test_eight_writers(session: SessionContext) -> None:
    """Every change once, in the order of the log, for each observer."""
    everything, only_x = Seen(), Seen()
    session.watch_variable("*", everything)
    session.watch_variable("x", only_x)
    numbers = itertools.count(1)
    barrier = threading.Barrier(8)

    def write(writer: int) -> None:
        barrier.wait(PATIENCE)
        name = f"own {writer}"
        session.register_variable(name, "integer", 0)
        for _ in range(20):
            session.set_variable("x", next(numbers))
            session.set_variables({name: next(numbers), "x": next(numbers), "y": next(numbers)})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    session.flush()
    by_offset: dict[int, Call] = {}
    for variable in session.list_variables():
        for version in session.get_variable_history(variable.name)[:-1]:
            by_offset[version.offset] = (variable.name, version.previous, version.value)
    assert len(by_offset) == 8 * 20 * 4
    assert everything.calls == [call for _, call in sorted(by_offset.items())]
    assert only_x.calls == [call for call in everything.calls if call[0] == "x"]


def test_one_at_a_time_on_one_thread(session: SessionContext) -> None:
    threads, busy = set(), threading.Lock()

    def callback(*_: object) -> None:
        assert busy.acquire(blocking=False)
        threads.add(threading.current_thread().name)
        busy.release()

    session.watch_variable("x", callback)
    session.watch_variable("*", callback)
    for n in range(20):
        session.set_variable("x", n)
    session.flush()
    assert session._dispatcher.statistics()[3:5] == (40, 0)
    assert threads == {"observers"}


def test_without_an_observer_there_is_no_thread(session: SessionContext) -> None:
    def named() -> list[str]:
        return [one.name for one in threading.enumerate() if one.name == "observers"]

    session.set_variable("x", 1)
    session.flush()
    assert named() == []
    session.watch_variable("x", Seen())
    session.watch_variable("y", Seen())
    assert named() == ["observers"]
    session.close()
    assert named() == []


# What a callback may do.


def test_a_callback_may_write(session: SessionContext) -> None:
    seen = Seen()

    def double(_name: str, _old: int, new: int, metadata: Mapping[str, str]) -> None:
        if new < 100:
            assert session.set_variable("y", 2 * new, {"why": "double"}) > 1
            session.set_variables({"x": 2 * new})

    session.watch_variable("x", double)
    session.watch_variable("*", seen)
    session.set_variable("x", 30)
    seen.wait(5)
    session.flush()
    assert seen.calls == [
        ("x", 0, 30),
        ("y", 0, 60),
        ("x", 30, 60),
        ("y", 60, 120),
        ("x", 60, 120),
    ]


def test_a_callback_may_watch(session: SessionContext) -> None:
    seen = Seen()

    def callback(*_: object) -> None:
        session.watch_variable("x", seen)

    session.watch_variable("x", callback)
    session.set_variable("x", 1)
    session.flush()
    session.set_variable("x", 2)
    session.flush()
    session.set_variable("x", 3)
    session.flush()
    assert sorted(seen.news) == [2, 3, 3]


def test_a_callback_may_unwatch_itself_and_others(session: SessionContext) -> None:
    first, later = Seen(), Seen()
    ids: list[str] = []

    def callback(name: str, old: object, new: object, metadata: Mapping[str, str]) -> None:
        first(name, old, new, metadata)
        assert [session.unwatch_variable(id_) for id_ in ids] == [True, True]
        assert [session.unwatch_variable(id_) for id_ in ids] == [False, False]

    ids += (session.watch_variable("x", callback), session.watch_variable("x", later))
    remains = Seen()
    session.watch_variable("x", remains)
    session.set_variable("x", 1)
    session.set_variable("x", 2)
    session.flush()
    assert (first.news, later.news, remains.news) == ([1], [], [1, 2])
    assert session._dispatcher.statistics().failures == 0


def test_a_callback_that_raises_harms_nobody(
    session: SessionContext, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen()

    def raising(_name: str, _old: int, new: int, _metadata: object) -> None:
        if new == 2:
            raise SystemExit
        raise ValueError(f"the secret is {new}")

    id_ = session.watch_variable("x", raising)
    session.watch_variable("x", seen)
    session.set_variable("x", 9182736455)
    session.set_variable("x", 2)
    session.flush()
    assert seen.news == [9182736455, 2]
    statistics = session._dispatcher.statistics()
    assert (statistics.failures, statistics.observers, statistics.lost) == (2, 2, 0)
    first, second = [record.getMessage() for record in caplog.records]
    for part in (id_, "'x'", "'session'", "ValueError", "in raising"):
        assert part in first
    assert "SystemExit" in second
    assert "9182736455" not in caplog.text


def test_no_lock_is_held_while_a_callback_runs(session: SessionContext) -> None:
    """Whatever others do meanwhile, they do not wait for it."""
    blocking, other = Blocking(), Seen()
    session.watch_variable("x", blocking)
    session.set_variable("x", 1)
    assert blocking.entered.wait(PATIENCE)

    def use() -> None:
        id_ = session.watch_variable("y", other)
        session.set_variable("y", 1)
        assert session._dispatcher.statistics().lag > 0
        assert session.unwatch_variable(id_)
        assert not session.unwatch_variable(id_)

    with ThreadPoolExecutor(1) as pool:
        try:
            pool.submit(use).result(PATIENCE)
        finally:
            blocking.release.set()
    session.flush()
    assert (blocking.news, other.news) == ([1], [])


# To watch no longer.


def test_unwatching_waits_for_the_call_that_runs(session: SessionContext) -> None:
    blocking, other = Blocking(), Seen()
    id_ = session.watch_variable("x", blocking)
    session.watch_variable("x", other)
    session.set_variable("x", 1)
    session.set_variable("x", 2)
    assert blocking.entered.wait(PATIENCE)
    unwatched = session._dispatcher.unwatch(session, id_)
    again = session._dispatcher.unwatch(session, id_)
    assert not unwatched.done()
    assert not again.done()
    blocking.release.set()
    assert (unwatched.result(PATIENCE), again.result(PATIENCE)) == (True, False)
    assert blocking.news == [1]
    session.flush()
    assert (blocking.news, other.news) == ([1], [1, 2])


def test_what_is_no_observer(session: SessionContext) -> None:
    assert not session.unwatch_variable("observer_1")
    id_ = session.watch_variable("x", Seen())
    assert session.unwatch_variable(id_)
    assert not session.unwatch_variable(id_)


def test_the_last_observer_lets_the_log_go(world: World) -> None:
    session = world.session()
    log = world.direct.loaded("s")
    ids = [session.watch_variable("x", Seen()) for _ in range(2)]

    def evict() -> bool:
        log.touched = False
        world.direct.perform(world.direct.committer.evict, [log])
        return world.direct.committer.peek("s") is None

    assert session.unwatch_variable(ids[0])
    assert not evict()
    assert session.unwatch_variable(ids[1])
    assert evict()
    # A log that left memory is looked for anew, and loaded.
    assert world.dispatcher.watch(session, log, "x", Seen()) is None
    assert log.watches == 0
    seen = Seen()
    session.watch_variable("x", seen)
    session.set_variable("x", 1)
    session.flush()
    assert seen.news == [1]


# flush.


def test_flush_waits_for_what_is_committed(session: SessionContext) -> None:
    blocking = Blocking()
    session.watch_variable("x", blocking)
    session.flush()
    session.set_variable("x", 1)
    session.set_variable("y", 1)
    assert blocking.entered.wait(PATIENCE)
    flush = session._dispatcher.flush("session")
    with pytest.raises(TimeoutError, match=r"within 0\.01 s"):
        session.flush(0.01)
    assert not flush.done()
    assert len(session._dispatcher._flushes) == 1  # who gave up is forgotten
    blocking.release.set()
    flush.result(PATIENCE)
    assert blocking.news == [1]
    session.flush(PATIENCE)


def test_flush_is_over_when_nobody_is_left_to_call(session: SessionContext) -> None:
    blocking = Blocking()
    ids = [session.watch_variable("x", blocking), session.watch_variable("x", Seen())]
    session.set_variable("x", 1)
    session.set_variable("x", 2)
    assert blocking.entered.wait(PATIENCE)
    flush = session._dispatcher.flush("session")
    ended = [session._dispatcher.unwatch(session, id_) for id_ in ids]
    again = session._dispatcher.flush("session")
    # The callback that runs was called for what is committed, so that it is waited for.
    assert not any(one.done() for one in (flush, again))
    blocking.release.set()
    for one in (flush, again):
        one.result(PATIENCE)
    assert blocking.news == [1]
    assert [one.result(PATIENCE) for one in ended] == [True, True]
    assert session._dispatcher._followed == {}


def test_flush_from_a_callback_raises(session: SessionContext) -> None:
    refusals: list[str] = []

    def callback(*_: object) -> None:
        with pytest.raises(RuntimeError) as sync:
            session.flush()
        with pytest.raises(RuntimeError) as asynchronous:
            asyncio.run(session.flush_async())
        refusals.extend(str(error.value) for error in (sync, asynchronous))

    session.watch_variable("x", callback)
    session.set_variable("x", 1)
    session.flush()
    assert len(refusals) == 2
    assert all("would wait for itself" in refusal for refusal in refusals)


async def test_the_synchronous_forms_refuse_an_event_loop(session: SessionContext) -> None:
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: session.watch_variable("x", Seen()), "watch_variable_async"),
        (lambda: session.unwatch_variable("observer_1"), "unwatch_variable_async"),
        (session.flush, "flush_async"),
    ]
    for call, instead in calls:
        with pytest.raises(RuntimeError, match=f"await {instead} instead"):
            call()


async def test_the_asynchronous_forms(world: World) -> None:
    context = await asyncio.to_thread(world.session)
    blocking = Blocking()
    id_ = await context.watch_variable_async("x", blocking)
    await context.set_variable_async("x", 1)
    with pytest.raises(TimeoutError):
        await context.flush_async(0.01)
    assert not world.dispatcher._flushes
    unwatching = asyncio.create_task(context.unwatch_variable_async(id_))
    assert await asyncio.to_thread(blocking.entered.wait, PATIENCE)
    assert not unwatching.done()
    blocking.release.set()
    assert await unwatching
    await context.flush_async()
    assert blocking.news == [1]
    with pytest.raises(SessionNotFound):
        await SessionContext("nobody", committer=world.direct.committer).watch_variable_async(
            "x", Seen()
        )


def test_a_callback_with_an_event_loop_of_its_own_unwatches_itself(session: SessionContext) -> None:
    ids: list[str] = []
    answers: list[bool] = []

    def callback(*_: object) -> None:
        answers.append(asyncio.run(session.unwatch_variable_async(ids[0])))

    ids.append(session.watch_variable("x", callback))
    session.set_variable("x", 1)
    session.set_variable("x", 2)
    session.flush()
    assert answers == [True]


# Slow observers, pages, faults.


@overrun
def test_a_slow_callback_slows_nobody_and_misses_nothing(world: World) -> None:
    session = world.session()
    blocking = Blocking()
    session.watch_variable("x", blocking)
    session.set_variable("x", 1)
    assert blocking.entered.wait(PATIENCE)
    before = transactions_in_memory()
    for n in range(2, 1_002):  # each returns although the callback does not
        session.set_variable("x", n)
    assert transactions_in_memory() - before < 5  # in the ring; nothing waits anywhere
    assert world.dispatcher.statistics().lag == 1_001
    assert len(world.dispatcher._due) == 1
    blocking.release.set()
    session.flush()
    assert blocking.news == list(range(1, 1_002))
    assert world.dispatcher.statistics().lag == 0


@overrun
def test_a_large_batch_through_pages(world: World) -> None:
    session = world.session()
    names = [f"v{n:03}" for n in range(300)]
    for name in names:
        session.register_variable(name, "string", "")
    blocking, some = Blocking(), Seen()
    session.watch_variable("*", blocking)
    session.watch_variable("v?5?", some)
    session.set_variable("x", 1)
    assert blocking.entered.wait(PATIENCE)
    long = "a" * 5_000  # stored by its digest
    session.set_variables(dict.fromkeys(names, long))
    session.set_variable("x", 2)
    blocking.release.set()
    session.flush()
    assert blocking.calls == [
        ("x", 0, 1),
        *((name, "", long) for name in names),
        ("x", 1, 2),
    ]
    assert some.calls == [(name, "", long) for name in names if name[2] == "5"]


def test_a_slow_session_does_not_keep_others_from_their_turns(world: World) -> None:
    """With one that is far behind, another gets its changes before that has caught up."""
    far, near = world.session("far"), world.session("near")
    order = Seen()
    blocking = Blocking()
    far.watch_variable("x", blocking)
    far.watch_variable("x", order)
    near.watch_variable("x", order)
    far.set_variable("x", 1)
    assert blocking.entered.wait(PATIENCE)
    for n in range(2, 102):
        far.set_variable("x", n)
    near.set_variable("x", -1)
    blocking.release.set()
    for session in (far, near):
        session.flush()
    assert sorted(order.news) == [-1, *range(1, 102)]
    assert order.news.index(-1) < 50


@overrun
def test_an_observer_that_retention_overtook_is_told(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    session, other = world.session(), world.session("other")
    blocking, unharmed, errors = Blocking(), Seen(), list[BridgeError]()

    def on_error(error: BridgeError) -> None:
        errors.append(error)
        raise ValueError

    id_ = session.watch_variable("x", blocking, on_error=on_error)
    other.watch_variable("x", unharmed)
    session.set_variable("x", 1)
    assert blocking.entered.wait(PATIENCE)
    for n in range(2, 40):
        session.set_variable("x", n)
    world.cut()
    flush = world.dispatcher.flush("s")
    blocking.release.set()
    with pytest.raises(OffsetOutOfRange):
        flush.result(PATIENCE)
    other.set_variable("x", 1)
    other.flush()  # when it was called, on_error has been
    assert unharmed.news == [1]
    assert [type(error) for error in errors] == [OffsetOutOfRange]
    assert blocking.news == list(range(1, len(blocking.news) + 1))
    statistics = world.dispatcher.statistics()
    assert (statistics.lost, statistics.observers, statistics.failures) == (1, 1, 1)
    said = caplog.records[0].getMessage()
    assert "no more changes" in said
    assert id_ in said
    assert "'s'" in said
    assert world.direct.loaded("s").watches == 0
    session.flush()  # there is nobody to wait for
    again = Seen()
    session.watch_variable("x", again)
    session.set_variable("x", 100)
    session.flush()
    assert again.news == [100]


@overrun
def test_damage_is_found_and_told(world: World, caplog: pytest.LogCaptureFixture) -> None:
    session = world.session()
    blocking, errors = Blocking(), queue.SimpleQueue[BridgeError]()
    session.watch_variable("x", blocking, on_error=errors.put)
    session.set_variable("x", 1)
    assert blocking.entered.wait(PATIENCE)
    for n in range(2, 40):
        session.set_variable("x", n)
    records = world.engine._logs[world.direct.loaded("s").id].records
    records[20] = records[20]._replace(digest=bytes(32))
    blocking.release.set()
    error = errors.get(timeout=PATIENCE)
    assert isinstance(error, DataLoss)
    assert blocking.news == list(range(1, len(blocking.news) + 1))
    assert "gets no more changes" in caplog.text


@overrun
def test_a_log_that_cannot_be_read_just_now_is_read_later(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observers, "RETRY", 0.01)
    session = world.session()
    assert isinstance(world.engine, Failing)
    blocking = Blocking()
    session.watch_variable("x", blocking)
    session.set_variable("x", 1)
    assert blocking.entered.wait(PATIENCE)
    for n in range(2, 40):
        session.set_variable("x", n)
    world.engine.out_of_order = True
    blocking.release.set()
    for _ in range(3):
        assert world.engine.refused.acquire(timeout=PATIENCE)
    world.engine.out_of_order = False
    session.flush(PATIENCE)  # without another commit
    assert blocking.news == list(range(1, 40))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the disk is away" in caplog.text
    assert world.dispatcher.statistics().observers == 1


# The end.


def test_observers_get_everything_before_their_session_ends(world: World) -> None:
    session = world.session()
    blocking, other = Blocking(), Seen()
    id_ = session.watch_variable("x", blocking)
    session.watch_variable("*", other)
    log = world.direct.loaded("s")
    for n in range(1, 50):
        session.set_variable("x", n)
    world.end()
    with pytest.raises(SessionNotFound):
        session.watch_variable("x", Seen())
    with pytest.raises(SessionNotFound):  # should it end at that moment
        world.dispatcher.watch(session, log, "x", Seen())
    assert log.watches == 2
    next_life = world.session()
    assert next_life.set_variable("x", -1) == 2
    blocking.release.set()
    next_life.flush()  # also for the observers of the log before
    assert blocking.news == other.news == list(range(1, 50))
    assert not session.unwatch_variable(id_)
    assert (world.dispatcher.statistics().observers, log.watches) == (0, 0)


def test_after_closing_nobody_is_called(session: SessionContext) -> None:
    blocking = Blocking()
    session.watch_variable("x", blocking)
    session.set_variable("x", 1)
    session.set_variable("x", 2)
    assert blocking.entered.wait(PATIENCE)
    flush = session._dispatcher.flush("session")
    with ThreadPoolExecutor(1) as pool:
        closed = pool.submit(session.close)
        with pytest.raises(Unavailable, match="before everything was delivered"):
            flush.result(PATIENCE)
        assert not closed.done()  # it waits for the call that runs
        blocking.release.set()
        closed.result(PATIENCE)
    assert blocking.news == [1]
    session.close()
    with pytest.raises(Unavailable, match="closed"):
        session.watch_variable("x", Seen())


def test_a_callback_may_close(session: SessionContext) -> None:
    closed = threading.Event()

    def callback(*_: object) -> None:
        session.close()
        closed.set()

    later = Seen()
    session.watch_variable("x", callback)
    session.watch_variable("x", later)
    session.set_variable("x", 1)
    assert closed.wait(PATIENCE)
    session._dispatcher._thread.join(PATIENCE)
    assert not session._dispatcher._thread.is_alive()
    assert later.calls == []


def test_contexts_that_share_a_dispatcher(world: World) -> None:
    one = world.session()
    two = SessionContext("s", committer=world.direct.committer, dispatcher=world.dispatcher)
    of_one, of_two = Blocking(), Seen()
    id_ = one.watch_variable("x", of_one)
    two.watch_variable("x", of_two)
    assert not two.unwatch_variable(id_)
    one.set_variable("x", 1)
    assert of_one.entered.wait(PATIENCE)
    with ThreadPoolExecutor(1) as pool:
        closed = pool.submit(one.close)
        of_one.release.set()
        closed.result(PATIENCE)
    assert of_one.news in ([], [1])
    before = len(of_one.calls)
    two.set_variable("x", 2)
    two.flush()
    assert len(of_one.calls) == before
    assert of_two.news == [1, 2]
    assert world.direct.loaded("s").watches == 1


def test_a_dispatcher_of_another_committer(world: World) -> None:
    with Direct(MemoryLog()) as other, pytest.raises(TypeError, match="another committer"):
        SessionContext("s", committer=other.committer, dispatcher=world.dispatcher)


# Iterators.


async def taken(session: SessionContext, count: int, *wanted: str, **how: Any) -> list[Change]:  # noqa: ANN401
    """The first changes of a watch."""
    found: list[Change] = []
    async with asyncio.timeout(PATIENCE), session.watch(*wanted, **how) as changes:
        async for change in changes:
            found.append(change)
            if len(found) == count:
                break
    return found


async def test_a_change_is_all_that_is_known_of_it(session: SessionContext) -> None:
    async with session.watch(kinds=["value_change", "registered", "deleted"]) as changes:
        trace = f"00-{'a' * 32}-{'b' * 16}-01"
        context = {"correlation_id": "c", "traceparent": trace}
        id_ = await session.register_variable_async("z", "float", 1, None, {"k": "1", **context})
        await session.set_variable_async("z", 2, {"source": "tool:t"})
        await session.delete_variable_async("z")
        registered, changed, deleted = [await anext(changes) for _ in range(3)]
        assert changes.log_epoch == registered.log_epoch
        assert changes.bookmark == (deleted.resume_offset, deleted.resume_check)
    assert registered == Change(
        kind="registered",
        name="z",
        id=id_,
        type="float",
        old=None,
        new=1.0,
        version=1,
        offset=4,
        log_epoch=registered.log_epoch,
        resume_offset=4,
        resume_check=registered.resume_check,
        source="python",
        metadata={"k": "1"},
        changed_at=registered.changed_at,
        correlation_id="c",
        traceparent=trace,
        tool_call_id="",
    )
    assert (changed.kind, changed.old, changed.new, changed.version, changed.offset) == (
        "value_change",
        1.0,
        2.0,
        2,
        5,
    )
    assert (changed.source, changed.correlation_id) == ("tool:t", "")
    assert (deleted.kind, deleted.name, deleted.old, deleted.new, deleted.version) == (
        "deleted",
        "z",
        2.0,
        None,
        2,
    )
    assert changed.changed_at <= deleted.changed_at


async def test_only_what_is_wanted(session: SessionContext) -> None:
    async with session.watch("x", "n*") as changes:
        await session.register_variable_async("new", "integer", 0)
        for name in ("y", "x", "new", "y"):
            await session.set_variable_async(name, 1)
        assert [(await anext(changes)).name for _ in range(2)] == ["x", "new"]


KINDS = ["value_change", "registered", "deleted"]


@overrun
@pytest.mark.parametrize("wanted", [(), ("x", "v1*")])
async def test_going_on_after_any_change(world: World, wanted: tuple[str, ...]) -> None:
    """A bookmark gives the rest, whole transactions of it, each change once."""

    def prepare() -> SessionContext:
        session = world.session()
        names = [f"v{n:02}" for n in range(20)]
        for name in names:
            session.register_variable(name, "integer", 0)
        for n in range(1, 4):
            session.set_variable("x", n)
            session.set_variables(dict.fromkeys(names, n))
        session.delete_variable("v11")
        return session

    session = await asyncio.to_thread(prepare)
    count = 21 + 3 * 21 + 1 if not wanted else 11 + 3 * 11 + 1
    everything = await taken(session, count, *wanted, after_offset=0, kinds=KINDS)
    offsets = [change.offset for change in everything]
    assert offsets == sorted(set(offsets))
    assert everything[-1].kind == "deleted"
    for change in everything[:-1]:
        rest = [later for later in everything if later.offset > change.resume_offset]
        assert (
            await taken(
                session,
                len(rest),
                *wanted,
                after_offset=change.resume_offset,
                log_epoch=change.log_epoch,
                resume_check=change.resume_check,
                kinds=KINDS,
            )
            == rest
        )
    inside = [change for change in everything if change.resume_offset < change.offset - 1]
    assert inside, "some changes are in the midst of a transaction"


async def test_where_a_watch_cannot_begin(world: World) -> None:
    session = await asyncio.to_thread(world.session)
    for _ in range(3):
        await session.set_variable_async("x", 1)
    (change,) = await taken(session, 1, after_offset=0)
    kept = {"log_epoch": change.log_epoch, "after_offset": change.resume_offset}
    refused: list[tuple[type[BridgeError], dict[str, Any]]] = [
        (OffsetOutOfRange, {**kept, "after_offset": 1_000}),
        (FailedPrecondition, {**kept, "resume_check": change.resume_check ^ 1}),
        (EpochMismatch, {**kept, "log_epoch": "another"}),
    ]
    for error, how in refused:
        with pytest.raises(error):
            await taken(session, 1, **how)
    await asyncio.to_thread(world.cut)
    with pytest.raises(OffsetOutOfRange):
        await taken(session, 1, **kept)
    for how in ({"after_offset": 1}, {"after_offset": -1}, {"kinds": ["initial_value"]}):
        with pytest.raises(InvalidRequest):
            session.watch(**how)
    nobody = SessionContext("nobody", committer=world.direct.committer)
    with pytest.raises(SessionNotFound):
        await taken(nobody, 1)
    assert world.direct.loaded("s").watches == 0
    changes = session.watch()
    with pytest.raises(RuntimeError, match="async with"):
        await anext(changes)
    async with changes:
        with pytest.raises(RuntimeError, match="open already"):
            await changes.__aenter__()


async def test_an_iteration_ends_with_its_session(world: World) -> None:
    session = await asyncio.to_thread(world.session)
    async with asyncio.timeout(PATIENCE), session.watch("x") as changes:
        await session.set_variable_async("x", 1)
        await asyncio.to_thread(world.end)
        found = [change async for change in changes]
    assert [change.new for change in found] == [1]
    with pytest.raises(SessionNotFound):
        await taken(session, 1)
    # Its log is kept, for whoever was away.
    await asyncio.to_thread(world.session)
    first = session.watch(after_offset=0, log_epoch=found[0].log_epoch, kinds=KINDS)
    async with asyncio.timeout(PATIENCE), first as changes:
        assert [change.kind async for change in changes] == ["registered", "value_change"]


async def test_leaving_lets_go_however_it_is_left(world: World) -> None:
    session = await asyncio.to_thread(world.session)
    log = world.direct.loaded("s")
    waiting = asyncio.Event()

    async def iterate() -> None:
        async with session.watch("x") as changes:
            waiting.set()
            async for _ in changes:
                pass

    def held() -> tuple[int, int]:
        return log.watches, world.dispatcher.statistics().iterators

    task = asyncio.create_task(iterate())
    await waiting.wait()
    assert held() == (1, 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert held() == (0, 0)
    await session.set_variable_async("x", 1)
    await taken(session, 1, after_offset=0)  # which breaks off
    assert held() == (0, 0)


async def test_a_turn_that_is_cancelled_loses_nothing(session: SessionContext) -> None:
    async with session.watch("x") as changes:
        for n in range(1, 4):
            turn = asyncio.ensure_future(anext(changes))
            await asyncio.sleep(0)  # it waits
            turn.cancel()
            with pytest.raises(asyncio.CancelledError):
                await turn
            await session.set_variable_async("x", n)
            assert (await anext(changes)).new == n


@overrun
async def test_a_slow_iterator_holds_nothing_and_misses_nothing(world: World) -> None:
    session = await asyncio.to_thread(world.session)

    def write() -> None:
        for n in range(2, 1_002):
            session.set_variable("x", n)

    async with asyncio.timeout(PATIENCE), session.watch("x") as changes:
        await session.set_variable_async("x", 1)
        assert (await anext(changes)).new == 1
        before = transactions_in_memory()
        await asyncio.to_thread(write)
        assert transactions_in_memory() - before < 5
        assert (await anext(changes)).new == 2
        assert len(changes._taken) < 16
        assert [(await anext(changes)).new for _ in range(999)] == list(range(3, 1_002))


async def test_catching_up_lets_others_run(world: World) -> None:
    session = await asyncio.to_thread(world.session)
    ticks = itertools.count()

    async def tick() -> None:
        while True:
            next(ticks)
            await asyncio.sleep(0)

    def write() -> None:
        for n in range(320):
            session.set_variable("x", n)

    async with session.watch("x") as changes:
        await asyncio.to_thread(write)
        other = asyncio.create_task(tick())
        assert [(await anext(changes)).new for _ in range(320)] == list(range(320))
        assert next(ticks) > 15
        other.cancel()


async def test_the_bookmark_moves_on_with_what_is_not_wanted(world: World) -> None:
    session = await asyncio.to_thread(world.session)
    state = world.direct.loaded("s").committed
    async with asyncio.timeout(PATIENCE), session.watch("nothing") as changes:
        assert changes.bookmark == (state.head, check_of(state.digest))
        await session.set_variable_async("x", 1)
        await asyncio.to_thread(world.end)
        assert [change async for change in changes] == []
        assert changes.bookmark == (state.head, check_of(state.digest))


async def test_a_log_that_leaves_memory_is_looked_for_again(world: World) -> None:
    session = await asyncio.to_thread(world.session)
    stale = world.direct.loaded("s")
    await asyncio.to_thread(world.direct.evict, "s")
    found = iter([stale])

    async def find() -> Any:  # noqa: ANN401
        return next(found, None) or await session._newest_log()

    changes = Changes(world.dispatcher, "s", find, (["x"], ["value_change"]), Start())
    async with asyncio.timeout(PATIENCE), changes:
        assert stale.watches == 0
        await session.set_variable_async("x", 1)
        assert (await anext(changes)).new == 1


@overrun
async def test_an_iterator_that_retention_overtook(world: World) -> None:
    session = await asyncio.to_thread(world.session)
    async with session.watch("x") as changes:
        for n in range(20):
            await session.set_variable_async("x", n)
        await asyncio.to_thread(world.cut)
        with pytest.raises(OffsetOutOfRange):
            await anext(changes)


@overrun
async def test_an_iteration_goes_on_when_the_log_can_be_read_again(world: World) -> None:
    session = await asyncio.to_thread(world.session)
    assert isinstance(world.engine, Failing)
    async with session.watch("x") as changes:
        for n in range(20):
            await session.set_variable_async("x", n)
        world.engine.out_of_order = True
        with pytest.raises(Unavailable, match="the disk is away"):
            await anext(changes)
        world.engine.out_of_order = False
        assert [(await anext(changes)).new for _ in range(20)] == list(range(20))


async def test_closing_ends_an_iteration_with_its_bookmark() -> None:
    session = await asyncio.to_thread(SessionContext, "session")
    await session.register_variable_async("x", "integer", 0)
    async with session.watch("x") as changes:
        await session.set_variable_async("x", 1)
        change = await anext(changes)
        turn = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(0)  # it waits
        await asyncio.to_thread(session.close)
        with pytest.raises(WatchClosed) as closed:
            await turn
    assert closed.value.facts["resume_offset"] == str(change.resume_offset)
    assert closed.value.facts["resume_check"] == str(change.resume_check)
    with pytest.raises(Unavailable, match="closed"):
        await taken(session, 1)


def test_a_watch_that_outlives_its_event_loop(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    session = world.session()
    changes = session.watch("x")
    asyncio.run(changes.__aenter__())
    with caplog.at_level(logging.WARNING):
        assert session.set_variable("x", 1) == 2
        assert session.set_variable("x", 2) == 3
    assert [record.getMessage() for record in caplog.records] == [
        "a watch of session 's' outlived its event loop"
    ]
