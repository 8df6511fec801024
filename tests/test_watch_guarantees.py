"""What a watch promises, one sentence at a time, without sockets and without chance.

``tests/mutations`` breaks each of these sentences. Here a watch runs on this event loop and
sends to the test, which may keep it waiting; what it sent is judged by the same validators
as the random schedules (``watch_schedules``).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge import watching
from snakepit_bridge.commands import CleanupSession, RegisterVariable, SetVariable, SetVariables
from snakepit_bridge.errors import BridgeError, FailedPrecondition, OffsetOutOfRange
from snakepit_bridge.events import pages as pages_module
from snakepit_bridge.events.cursor import (
    Behind,
    Bookmark,
    Cursor,
    Place,
    check_of,
    find_place,
)
from snakepit_bridge.events.gate import Gate
from snakepit_bridge.events.loaded import LoadedLog
from snakepit_bridge.events.memory import MemoryLog
from snakepit_bridge.events.model import Envelope
from snakepit_bridge.events.pages import Pages
from snakepit_bridge.events.reading import fold
from snakepit_bridge.events.selection import Selection
from snakepit_bridge.limits import DEFAULTS
from snakepit_bridge.watching import Watches
from tests.direct import Direct, Result, integer
from tests.test_append_failures import BEFORE, FailingLog
from tests.test_cursor import Seen, show
from tests.watch_validators import (
    CHANGES,
    INITIAL,
    Ending,
    Recorder,
    Resumed,
    Stream,
    Truth,
    check_all,
    wants,
)

PATIENCE = 10.0
A_TURN = 16
"""Updates that a watch sends at a time, here."""
NAMES = ("a", "b", "c")
EVERYTHING = Selection((), frozenset({"variable_set", "variable_registered", "variable_deleted"}))

When = Callable[[Stream], Awaitable[None]]
"""What a client does when an update has come; until then it takes no other."""


async def _at_once(_: Stream) -> None:
    """Take the next."""


class Bench:
    """A committer, its watches on this loop, and what they sent."""

    def __init__(self) -> None:
        self.engine = FailingLog(MemoryLog())
        self.direct = Direct(self.engine)
        loop = asyncio.get_running_loop()
        gate = Gate(self.direct.committer, loop, 1_000_000)
        self.watches = Watches(self.direct.committer, gate, loop, DEFAULTS)
        self.recorder = Recorder()
        self.came = asyncio.Event()
        self._open: dict[int, asyncio.Task[None]] = {}

    @property
    def log(self) -> LoadedLog:
        return self.direct.loaded("s")

    def register(self, *names: str) -> None:
        for name in names:
            self.direct.ask(RegisterVariable(Envelope("s"), name, "integer", integer(0)))

    def set(self, name: str, value: int = 1) -> int:
        offset = self.direct.ask(SetVariable(Envelope("s"), name, integer(value))).answer.offset
        self.recorder.heads[self.log.id] = offset
        return offset

    def set_many(self, *names: str) -> int:
        updates = tuple((name, integer(1)) for name in names)
        command = SetVariables(Envelope("s"), updates, atomic=True)
        return self.direct.ask(command).answer.offset

    def forget(self) -> None:
        """Empty the ring, as if much had come since."""
        assert self.log.ring is not None
        self.log.ring.give_up(self.log.committed.head)

    def cut(self) -> int:
        """Cut the log at its head, which is given."""
        at = self.direct.snapshot("s")
        self.direct.cut(self.log.id, at)
        return at.offset

    def open(
        self,
        after: int | Bookmark | None = None,
        when: When = _at_once,
        resumed: Resumed | None = None,
        **fields: Any,  # noqa: ANN401 - of the request
    ) -> Stream:
        """Begin to watch."""
        if isinstance(after, Bookmark):
            fields["resume_check"] = after.check
            after = after.offset
        if after is not None:
            fields |= {"after_offset": after, "log_epoch": self.log.id.epoch}
        fields.setdefault("update_types", CHANGES)
        request = pb.WatchVariablesRequest(session_id="s", **fields)
        stream = self.recorder.open("w", request, resumed)
        self._open[stream.number] = asyncio.create_task(self._run(stream, when))
        return stream

    async def _run(self, stream: Stream, when: When) -> None:
        async def send(raw: bytes) -> None:
            stream.updates.append(pb.VariableUpdate.FromString(raw))
            self.came.set()
            await when(stream)

        try:
            raw = stream.request.SerializeToString()
            await self.watches.watch_variables(raw, "connection", send)
            stream.ending = Ending("OK")
        except BridgeError as error:
            trailers = {name: error.facts[name] for name in error.trailers if name in error.facts}
            stream.ending = Ending(error.code, error.message, trailers)

    async def until(self, true: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not true():
                self.came.clear()
                await self.came.wait()

    async def end(self, stream: Stream) -> Ending:
        """Wait until it has ended by itself."""
        async with asyncio.timeout(PATIENCE):
            await self._open.pop(stream.number)
        return stream.ending

    def truth(self) -> Truth:
        truth = self.recorder.recording.truths.setdefault(self.log.id, Truth(self.log.id))
        for transaction in fold(self.engine, self.log.id, truth.head, truth.digest):
            truth.add(transaction)
        return truth

    def check(self) -> None:
        """Judge all that was sent."""
        self.truth()
        check_all(self.recorder.recording)

    async def close(self) -> None:
        for task in self._open.values():
            task.cancel()
        endings = await asyncio.gather(*self._open.values(), return_exceptions=True)
        await self.watches.close()
        self.direct.close()
        for ending in endings:
            if ending is not None and not isinstance(ending, asyncio.CancelledError):
                raise ending


@pytest.fixture
async def bench(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(watching, "UPDATES_A_TURN", A_TURN)
    monkeypatch.setattr(watching, "UPDATES_A_LONG_TURN", A_TURN)
    bench = Bench()
    bench.register(*NAMES)
    try:
        yield bench
    finally:
        await bench.close()


def offsets(stream: Stream) -> list[int]:
    return [update.offset for update in stream.changes]


def kinds(stream: Stream) -> list[str]:
    return [update.update_type for update in stream.updates]


def taken(cursor: Cursor, pages: Pages, count: int) -> list[Seen]:
    """Everything to the head, so many at a time."""
    found: list[Seen] = []
    while not cursor.at_head:
        try:
            found += cursor.take(pages, show, count)
        except Behind:
            pages.read(cursor.log, cursor.position)
    return found


# Ordered, unique and reliable.


@pytest.mark.parametrize("count", [1, 2, 3, 100])
async def test_from_pages_to_the_ring_nothing_is_missing_and_nothing_comes_twice(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(pages_module, "PAGE_EVENTS", 3)
    log = bench.log
    log.watch()
    for value in range(3):
        bench.set("a", value)
        bench.set_many("a", "b", "c")
    bench.set("b")
    truth = bench.truth()
    expected = [c.offset for c in truth.changes if c.kind]
    for given_up in range(truth.head + 1):
        assert log.ring is not None
        log.ring.give_up(given_up)
        for after in range(truth.head + 1):
            cursor = Cursor(log, EVERYTHING, find_place(bench.engine, log, after, 0))
            found = taken(cursor, Pages(bench.engine), count)
            assert [seen.offset for seen in found] == [o for o in expected if o > after]


async def test_who_sleeps_is_woken_by_what_he_wants_and_sees_it(bench: Bench) -> None:
    stream = bench.open(variable_identifiers=["a"], send_caught_up=True)
    await bench.until(lambda: kinds(stream) == ["caught_up"])
    expected = []
    for value in range(5):
        bench.set("b", value)
        expected.append(bench.set("a", value))
        await bench.until(lambda: len(offsets(stream)) == len(expected))
    assert offsets(stream) == expected
    bench.check()


async def test_a_heartbeat_is_of_what_was_passed_and_no_further(bench: Bench) -> None:
    head = bench.log.committed.head
    stream = bench.open(head, variable_identifiers=["a"], heartbeat_seconds=1)
    bench.set("a")
    await bench.until(lambda: offsets(stream))
    unwanted = bench.set("b")
    await bench.until(lambda: "heartbeat" in kinds(stream))
    assert stream.updates[-1].offset == unwanted
    bench.check()


async def test_caught_up_comes_once_everything_has_come(bench: Bench) -> None:
    for value in range(50):
        bench.set("a", value)
    stream = bench.open(0, send_caught_up=True)
    await bench.until(lambda: "caught_up" in kinds(stream))
    assert len(stream.changes) == 50 + len(NAMES)
    assert stream.updates[-1].offset == bench.log.committed.head
    bench.set("a")
    await bench.until(lambda: len(stream.changes) == 51 + len(NAMES))
    assert kinds(stream).count("caught_up") == 1
    bench.check()


async def test_a_session_that_ends_is_seen_to_its_end(bench: Bench) -> None:
    stream = bench.open(0)
    for value in range(2 * A_TURN):
        bench.set("a", value)
    log = bench.log.id
    bench.direct.ask(CleanupSession(Envelope("s"), "cleanup"))
    assert (await bench.end(stream)).code == "OK"
    again = bench.open(bench.truth().head - 2)
    assert (await bench.end(again)).code == "OK"
    assert offsets(again) == [bench.truth().head - 1]
    assert bench.log.id == log
    bench.check()


# No dirty reads.


@pytest.mark.parametrize("failure", [BEFORE, ""])
async def test_nothing_is_shown_before_it_is_committed(bench: Bench, failure: str) -> None:
    log = bench.log
    log.watch()
    head = log.committed.head
    cursor = Cursor(log, EVERYTHING, Place(head, log.committed.digest, inside=False))
    pages = Pages(bench.engine)
    inside, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        inside.set()
        assert go_on.wait(PATIENCE)

    bench.engine.appending = hold
    bench.engine.failures.append(failure)
    batch = bench.direct.submit(SetVariable(Envelope("s"), "a", integer(1)))
    try:
        assert inside.wait(PATIENCE)
        assert cursor.take(pages, show, 10) == []
        assert cursor.at_head
        assert log.ring is not None
        assert not log.ring.after(head, 10)
    finally:
        go_on.set()
    (result,) = _results(batch)
    assert isinstance(result, BridgeError) == bool(failure)
    seen = taken(cursor, pages, 10)
    assert [one.offset for one in seen] == ([] if failure else [head + 1])


def _results(batch: Any) -> list[Result]:  # noqa: ANN401 - a future
    return list(batch.result(PATIENCE))


# Atomic.


@pytest.mark.parametrize("count", [1, 2, 100])
@pytest.mark.parametrize("wanted", [("a",), ("a", "b"), ("b", "c"), ("a", "b", "c"), ("nobody",)])
async def test_only_the_last_of_a_transaction_moves_the_bookmark_into_it(
    bench: Bench, wanted: tuple[str, ...], count: int
) -> None:
    log = bench.log
    log.watch()
    before = log.committed.head
    last = bench.set_many("a", "b", "c")
    digests = {before: _digest(bench, before), last: log.committed.digest}
    selection = Selection(wanted, frozenset({"variable_set"}))
    cursor = Cursor(log, selection, Place(before, digests[before], inside=False))
    found: list[Seen] = []
    while not cursor.at_head:
        found += cursor.take(Pages(bench.engine), show, count)
        assert cursor.at_boundary == (cursor.position == last)
        kept = last if cursor.at_boundary else before
        assert cursor.bookmark == Bookmark(kept, check_of(digests[kept]))
    names = [name for name in NAMES if name in wanted]
    assert [seen.offset for seen in found] == [before + 1 + NAMES.index(name) for name in names]
    for seen in found[:-1]:
        assert seen.bookmark == Bookmark(before, check_of(digests[before]))
    for seen in found[-1:]:
        assert seen.bookmark == Bookmark(seen.offset, check_of(digests[last]))


def _digest(bench: Bench, offset: int) -> bytes:
    record = bench.engine.record_at(bench.log.id, offset)
    assert record is not None
    return record.digest


async def test_a_bridge_that_stops_first_finishes_the_transaction(bench: Bench) -> None:
    names = [f"x{n:02}" for n in range(3 * A_TURN)]
    bench.register(*names)
    before = bench.log.committed.head
    closing: list[asyncio.Task[None]] = []

    async def stop(stream: Stream) -> None:
        if len(stream.updates) == 2:
            closing.append(asyncio.create_task(bench.watches.close()))
        await asyncio.sleep(0)

    stream = bench.open(before, stop)
    last = bench.set_many(*names)
    ending = await bench.end(stream)
    assert ending.code == "UNAVAILABLE"
    assert offsets(stream) == list(range(before + 1, last + 1))
    assert ending.resume_offset == last
    bench.check()
    await asyncio.gather(*closing)


async def test_a_lagging_watch_that_is_ended_says_what_it_had_finished(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is ended where it is, which may be inside a transaction."""
    monkeypatch.setattr(watching, "LAGGING", 1)
    names = [f"x{n:02}" for n in range(2 * A_TURN)]
    bench.register(*names)
    before = bench.log.committed.head
    closing: list[asyncio.Task[None]] = []

    async def stop(stream: Stream) -> None:
        if len(stream.updates) == A_TURN - 1:
            closing.append(asyncio.create_task(bench.watches.close()))
        await asyncio.sleep(0)

    for value in range(5):
        bench.set("a", value)
    bench.set_many(*names)
    stream = bench.open(before, stop)
    ending = await bench.end(stream)
    assert ending.code == "UNAVAILABLE"
    assert before + 5 < offsets(stream)[-1] < bench.log.committed.head
    assert ending.resume_offset == before + 5
    bench.check()
    await asyncio.gather(*closing)


# Resumable, and the truth about gaps.


@pytest.mark.parametrize("after", range(13))
async def test_initial_values_are_those_of_where_the_watch_begins(bench: Bench, after: int) -> None:
    for value in range(2):
        bench.set("a", value)
        bench.set_many("a", "b", "c")
    head = bench.log.committed.head
    assert head == 12
    stream = bench.open(after, include_initial_values=True, send_caught_up=True)
    await bench.until(lambda: "caught_up" in kinds(stream))
    truth = bench.truth()
    assert {update.variable_id for update in stream.initial} == set(truth.state(after))
    assert offsets(stream) == [c.offset for c in truth.changes[after:] if wants(stream.request, c)]
    bench.check()


async def test_initial_values_of_now_are_of_one_moment(bench: Bench) -> None:
    """However long the client takes for them."""

    async def write(stream: Stream) -> None:
        if len(stream.updates) <= len(NAMES):
            for name in NAMES:
                bench.set(name, len(stream.updates))
        await asyncio.sleep(0)

    head = bench.set("a")
    stream = bench.open(None, write, include_initial_values=True, send_caught_up=True)
    await bench.until(lambda: "caught_up" in kinds(stream))
    assert kinds(stream)[:3] == [INITIAL] * 3
    assert {update.offset for update in stream.initial} == {head}
    assert offsets(stream) == list(range(head + 1, head + 10))
    bench.check()


async def test_an_offset_that_was_cut_away_is_refused_and_not_moved(bench: Bench) -> None:
    log = bench.log
    log.watch()
    for value in range(5):
        bench.set("a", value)
    base = bench.cut()
    head = bench.set("b")
    for in_ring in (True, False):
        if not in_ring:
            bench.forget()
        for after in range(base):
            with pytest.raises(OffsetOutOfRange) as caught:
                find_place(bench.engine, log, after, 0)
            facts = (str(base + 1), str(head), log.id.epoch)
            assert tuple(caught.value.facts.values()) == facts
            for fact in facts:
                assert fact in caught.value.message
        for after in (base, head):
            assert find_place(bench.engine, log, after, 0).offset == after
        with pytest.raises(OffsetOutOfRange, match=f"{base + 1} to {head}"):
            find_place(bench.engine, log, head + 1, 0)


async def test_who_is_overtaken_by_retention_is_told_what_is_there(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages_module, "PAGE_EVENTS", 3)
    monkeypatch.setattr(pages_module, "KEPT_BYTES", 1)
    monkeypatch.setattr(watching, "UPDATES_A_TURN", 2)
    for value in range(20):
        bench.set("a", value)
    read = asyncio.Event()

    async def stay_away(_: Stream) -> None:
        await read.wait()

    stream = bench.open(0, stay_away, include_initial_values=True)
    await bench.until(lambda: stream.updates)
    bench.truth()
    base = bench.cut()
    head = bench.set("a")
    bench.forget()
    read.set()
    ending = await bench.end(stream)
    assert ending.code == "OUT_OF_RANGE"
    assert f"{base + 1} to {head}" in ending.message
    assert offsets(stream) == list(range(2, 2 + len(stream.changes)))
    assert len(stream.changes) < 20
    bench.check()


async def test_what_is_kept_can_be_read_though_a_page_before_it_was_cut(bench: Bench) -> None:
    log = bench.log
    log.watch()
    pages = Pages(bench.engine)
    pages.read(log, 0)
    for value in range(5):
        bench.set("a", value)
    base = bench.cut()
    head = bench.set("a")
    bench.forget()
    cursor = Cursor(log, EVERYTHING, find_place(bench.engine, log, base, 0))
    assert [seen.offset for seen in taken(cursor, pages, 5)] == [head]


# Bookmarkable.


async def test_a_check_of_another_log_is_refused_wherever_it_is(bench: Bench) -> None:
    log = bench.log
    log.watch()
    base = bench.cut()
    bench.set("a")
    bench.set_many("a", "b")
    truth_at = {base: _base_digest(bench)}
    for offset in range(base + 1, log.committed.head + 1):
        truth_at[offset] = _digest(bench, offset)
    for in_ring in (True, False):
        if not in_ring:
            bench.forget()
        for offset, digest in truth_at.items():
            check = check_of(digest)
            assert find_place(bench.engine, log, offset, check).offset == offset
            with pytest.raises(FailedPrecondition, match="resume_check"):
                find_place(bench.engine, log, offset, check ^ 1)


def _base_digest(bench: Bench) -> bytes:
    head = bench.engine.head(bench.log.id)
    assert head is not None
    return head.base_digest


async def test_only_the_last_initial_value_has_a_bookmark(bench: Bench) -> None:
    head = bench.set("a")
    stream = bench.open(include_initial_values=True, send_caught_up=True)
    await bench.until(lambda: "caught_up" in kinds(stream))
    kept = [update.HasField("resume_offset") for update in stream.initial]
    assert kept == [False, False, True]
    assert stream.initial[-1].resume_offset == head
    bench.check()


async def test_who_has_not_got_all_initial_values_is_told_to_begin_anew(bench: Bench) -> None:
    names = [f"x{n:02}" for n in range(2 * A_TURN)]
    bench.register(*names)
    closing: list[asyncio.Task[None]] = []

    async def stop(stream: Stream) -> None:
        if len(stream.updates) == 2:
            closing.append(asyncio.create_task(bench.watches.close()))
        await asyncio.sleep(0)

    stream = bench.open(None, stop, include_initial_values=True)
    ending = await bench.end(stream)
    assert ending.code == "UNAVAILABLE"
    assert len(stream.initial) < len(names)
    assert ending.resume_offset is None
    assert "from the start" in ending.message
    bench.check()
    await asyncio.gather(*closing)


async def test_every_bookmark_is_where_the_rest_begins(bench: Bench) -> None:
    for value in range(2):
        bench.set("a", value)
        bench.set_many("a", "b", "c")
    whole = bench.open(0, send_caught_up=True)
    await bench.until(lambda: "caught_up" in kinds(whole))

    def caught_up(stream: Stream) -> Callable[[], bool]:
        return lambda: "caught_up" in kinds(stream)

    for place, update in enumerate(list(whole.updates)):
        bookmark = Bookmark(update.resume_offset, update.resume_check)
        resumed = Resumed(whole.number, place + 1)
        stream = bench.open(bookmark, resumed=resumed, send_caught_up=True)
        await bench.until(caught_up(stream))
        assert offsets(stream) == [o for o in offsets(whole) if o > update.resume_offset]
    bench.check()


async def test_a_watch_that_is_too_old_tells_where_to_go_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.watches, "lifetime", 0.05)
    first = bench.set("a")
    stream = bench.open(first - 1)
    ending = await bench.end(stream)
    assert ending.code == "UNAVAILABLE"
    assert ending.resume_offset == first
    for value in ending.trailers.values():
        assert value in ending.message
    bench.check()
