"""Watchers that are too many, too greedy, deaf or gone, and those who must not notice."""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge import bridge_service_pb2_grpc as stubs
from snakepit_bridge.events.gate import Gate
from snakepit_bridge.events.memory import MemoryLog
from snakepit_bridge.events.model import MAX_TRANSACTION
from snakepit_bridge.limits import DEFAULTS
from snakepit_bridge.upkeep import DAY
from snakepit_bridge.watching import Watches
from tests.bridge_process import UNLIMITED, BridgeProcess
from tests.hostile import MIB, PATH, Bystander, Victim, field, memory_of, own_channel
from tests.life import Life
from tests.raw_http2 import DATA, RawClient
from tests.test_crowd import crowd
from tests.test_error_table import fault_of, message_of
from tests.test_hostile_input import LAST, LONG, Item, answered, invalid
from tests.test_hostile_wire import framed, tag
from tests.watches import Watch, at_head, bookmark_of, outline, wait_until, watch
from tests.wire_session import TIMEOUT, Session, packed

KIB = 1024


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    victim = Victim(tmp_path_factory.mktemp("hostile") / "bridge.db")
    yield victim
    victim.close()
    assert victim.tracebacks == []


@pytest.fixture
def bridge_with(tmp_path: Path) -> Iterator[Callable[..., BridgeProcess]]:
    """Starts a bridge with arguments of one's own, which must live through it all."""
    started: list[BridgeProcess] = []

    def start(*arguments: str) -> BridgeProcess:
        started.append(BridgeProcess(tmp_path / f"{len(started)}.db", *arguments))
        return started[-1]

    yield start
    for process in started:
        assert process.stop() == 0
        assert "Traceback" not in process.stderr, process.stderr


# Requests.

WATCH = "WatchVariables"
STARS = ["*a" * 500 + "*b" * n for n in range(12)]


def of_names(*names: str) -> dict[str, Any]:
    return {"variable_identifiers": names, "send_caught_up": True}


ITEMS: dict[str, Item] = {
    "100,000 identifiers": Item(
        WATCH,
        of_names(*[f"x{n}" for n in range(100_000)]),
        "RESOURCE_EXHAUSTED",
        ("100000", "1000"),
    ),
    "100,000 equal identifiers": Item(WATCH, of_names(*["integer"] * 100_000), "OK"),
    "100,000 patterns": Item(
        WATCH, of_names(*[f"x{n}*" for n in range(100_000)]), "RESOURCE_EXHAUSTED", ("100000", "16")
    ),
    "a pattern of 10 MB": invalid(WATCH, of_names("*" * 10_000_000), "10000000", "1024"),
    "a name of 10 MB": invalid(WATCH, of_names(LONG), "10000000", "1024"),
    "an empty identifier": invalid(WATCH, of_names("integer", ""), "0 characters", "1024"),
    "a pattern of stars": Item(WATCH, of_names("*" * 1_024), "OK"),
    "patterns of stars": Item(WATCH, of_names(*STARS), "OK"),
    "patterns of brackets": Item(WATCH, of_names("[!a-" * 256, "*[", "?]"), "OK"),
    "a pattern with NUL": Item(WATCH, of_names("*\0\n\x1b[0m"), "OK"),
    **{
        f"heartbeat_seconds {seconds}": invalid(
            WATCH, {"heartbeat_seconds": seconds}, f"heartbeat_seconds {seconds}", "negative"
        )
        for seconds in (-1, -LAST - 1)
    },
    "heartbeat_seconds 2^31-1": Item(WATCH, {"heartbeat_seconds": LAST, **of_names()}, "OK"),
    "max_value_bytes 2^64-1": Item(WATCH, {"max_value_bytes": 2**64 - 1, **of_names()}, "OK"),
    **{
        f"update_types {name[:9]!r}": invalid(
            WATCH, {"update_types": [name]}, "update_types", "registered"
        )
        for name in ("", "changed", "VALUE_CHANGE", "*", "value_change\0", LONG)
    },
    "100,000 update_types": Item(
        WATCH, {"update_types": ["deleted"] * 100_000, **of_names()}, "OK"
    ),
    "after_offset 2^64-1 without epoch": invalid(WATCH, {"after_offset": 2**64 - 1}, "log_epoch"),
    "after_offset 0 with a check": Item(
        WATCH,
        {"after_offset": 0, "resume_check": 2**64 - 1},
        "FAILED_PRECONDITION",
        ("resume_check",),
    ),
    "10 MB: session id": Item(WATCH, {"session_id": LONG}, "NOT_FOUND", ("session 'xxx",)),
    "10 MB: log_epoch": Item(
        WATCH, {"log_epoch": LONG}, "FAILED_PRECONDITION", ("log_epoch 'xxx", "'victim'")
    ),
    "10 MB: session id and log_epoch": Item(
        WATCH, {"session_id": LONG, "log_epoch": LONG}, "FAILED_PRECONDITION", ("'xxx",)
    ),
}


@pytest.mark.parametrize("item", ITEMS.values(), ids=ITEMS.keys())
def test_a_hostile_watch_is_answered_and_changes_nothing(victim: Victim, item: Item) -> None:
    answered(victim, item)


VALID = message_of(WATCH, session_id="victim", send_caught_up=True).SerializeToString()

MALFORMED = {
    "text": b'{"session_id": "victim"}',
    "10 MB of zeros": bytes(10_000_000),
    "cut off": VALID[:-1],
    "a length beyond the end": VALID + tag(2, 2) + b"\x7fabc",
    "a length beyond 64 bits": VALID + tag(2, 2) + b"\xff" * 10,
    "a varint without end": VALID + tag(20, 0) + b"\xff" * 11,
    "field 0": VALID + b"\x00\x01",
    "a group without end": VALID + tag(100, 3),
    "50,000 groups in each other": VALID + tag(100, 3) * 50_000 + tag(100, 4) * 50_000,
    "an identifier that is no UTF-8": VALID + field(2, b"\xff\xfe"),
    "an epoch with a surrogate": VALID + field(21, b"\xed\xa0\x80"),
    "a type that is no UTF-8": VALID + field(26, b"\xc0\x80"),
}


@pytest.mark.parametrize("request_", MALFORMED.values(), ids=MALFORMED.keys())
def test_what_is_no_request_is_refused(victim: Victim, request_: bytes) -> None:
    before = victim.state()
    answer = victim.send(WATCH, request_)
    assert (answer.code, answer.reason) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
    assert "not a valid WatchVariablesRequest" in answer.message
    assert victim.state() == before


def test_hostile_patterns_slow_no_writer(bridge_with: Callable[..., BridgeProcess]) -> None:
    """Each of them would take an ordinary matcher longer than the test may run."""
    bridge = bridge_with()
    session, bystander = Session(bridge, "patterns"), Bystander(bridge.port)
    name = "a" * 256
    session.register(name)
    session.register("end")
    with ExitStack() as stack:
        watches = [
            stack.enter_context(
                at_head(session, *["*a" * (100 + n) + f"*b{m}" for m in range(15)], "e?d")
            )
            for n in range(40)
        ]
        for number in range(100):
            session.set(name, number)
            bystander.step()
        last = session.set("end", 0).offset
        for opened in watches:
            assert outline([opened.next()]) == [("value_change", last, "end", 0)]
    bystander.channel.close()


# Too many.


def growth(bridge: BridgeProcess, before: int, count: int, what: str) -> float:
    """KiB that the process has grown for each; written to stdout."""
    now = memory_of(bridge.process.pid).now
    each = max(0, now - before) / KIB / count
    sys.stdout.write(f"{count} {what}: {now // MIB} MiB resident, {each:.1f} KiB each\n")
    return each


def told_too_many(opened: Watch, *words: str) -> None:
    fault = opened.fault()
    assert (fault.code, fault.reason) == ("RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED")
    for word in words:
        assert word in fault.message


def test_10000_watchers_of_one_session_all_see_all(
    bridge_with: Callable[..., BridgeProcess],
) -> None:
    """Over ten seconds: as many streams are opened, and read, by a client in Python."""
    many, each = 10_000, 5_000
    bridge = bridge_with("--max-session-watches", str(many), "--max-watches", str(many + 1))
    session, other = Session(bridge, "crowded"), Session(bridge, "other")
    session.register("x", 0)
    other.register("x", 0)
    bystander = Bystander(bridge.port)
    before = memory_of(bridge.process.pid).now
    begun = time.monotonic()
    with ExitStack() as stack:
        watches = []
        for _ in range(many // each):
            channel = stack.enter_context(own_channel(bridge.port))
            opened = [
                watch(session, on=channel, timeout=100, send_caught_up=True) for _ in range(each)
            ]
            for one in opened:
                one.until("caught_up")
            watches += opened
            bystander.step()
        took = time.monotonic() - begun
        sys.stdout.write(f"{many} watches opened in {took:.1f} s\n")
        assert growth(bridge, before, many, "watches") < 100
        told_too_many(watch(session), "10000 watches", "'crowded'", "--max-session-watches")
        with at_head(other):
            told_too_many(watch(other), "10001 watches", "--max-watches)")
        offsets = [session.set("x", number).offset for number in range(3)]
        bystander.step()
        for one in watches:
            assert [update.offset for update in one.take(3)] == offsets
        session.end()
        assert sum(len(one.rest()) for one in watches) == 0
        assert growth(bridge, before, many, "watches that ended") < 100
    with at_head(other) as another:
        other.set("x", 1)
        assert another.next().offset == 3
    bystander.channel.close()


def open_again(
    session: Session,
    count: int,
    *words: str,
    on: grpc.Channel | None = None,
    timeout: float = TIMEOUT,
) -> list[Watch]:
    """Open watches up to a limit, which older ones may take up for a moment."""
    watches: list[Watch] = []

    def opened() -> bool:
        one = watch(session, on=on, timeout=timeout, send_caught_up=True)
        try:
            one.next()
        except grpc.RpcError:
            fault = fault_of(one.call)
            assert fault.code == "RESOURCE_EXHAUSTED"
            assert all(word in fault.message for word in words)
            return False
        watches.append(one)
        return True

    while len(watches) < count:
        wait_until(opened, f"{count} watches of {session.id}")
    told_too_many(watch(session, on=on), *words)
    return watches


@pytest.mark.parametrize("how", ["cancelled", "deadline", "session", "connection"])
def test_watches_that_ended_make_room_in_a_session(
    bridge_with: Callable[..., BridgeProcess], how: str
) -> None:
    limit = ("3 watches", "on session 'a'", "--max-session-watches")
    session = Session(bridge_with("--max-session-watches", "3"), "a")
    other = Session(session.bridge, "b")
    session.register("x", 0)
    other.start()
    rounds, timeout = (1, 3.0) if how == "deadline" else (3, TIMEOUT)
    for _ in range(rounds):
        with own_channel(session.bridge.port) as channel:
            watches = open_again(session, 3, *limit, on=channel, timeout=timeout)
            with at_head(other):  # another session has its own
                pass
            if how == "session":
                session.end()
                assert [one.rest() for one in watches] == [[], [], []]
                session.register("x", 0)
            elif how != "connection":
                for one in watches:
                    if how == "cancelled":
                        one.call.cancel()
                    else:
                        assert one.call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    for one in open_again(session, 3, *limit):
        one.call.cancel()


def test_a_connection_has_a_limit_of_its_own(bridge_with: Callable[..., BridgeProcess]) -> None:
    limit = ("3 watches", "on this connection", "--max-connection-watches")
    bridge = bridge_with("--max-connection-watches", "3")
    sessions = [Session(bridge, name) for name in "abcd"]
    for session in sessions:
        session.register("x", 0)
    with own_channel(bridge.port) as one, own_channel(bridge.port) as another:
        watches = [watch(s, on=one, send_caught_up=True) for s in sessions[:3]]
        for opened in watches:
            opened.next()
        told_too_many(watch(sessions[3], on=one), *limit)
        more = open_again(sessions[3], 3, *limit, on=another)
        watches[0].call.cancel()
        (again,) = open_again(sessions[3], 1, *limit, on=one)
        sessions[3].set("x", 1)
        for opened in (*more, again):
            assert opened.next().offset == 3
        # Other calls on a connection that is full are served.
        stub: Any = stubs.BridgeServiceStub(one)
        assert stub.Ping(pb.PingRequest(message="here"), timeout=TIMEOUT).message


# Deaf and gone.


class Deaf(RawClient):
    """Opens watches, hears each begin, and then reads no more."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self._heard: set[int] = set()

    def watch(self, session: Session, **fields: Any) -> None:  # noqa: ANN401
        self.begin(PATH + WATCH)
        request = message_of(WATCH, session_id=session.id, send_caught_up=True, **fields)
        self.body(framed(request.SerializeToString()))
        while self._stream not in self._heard:
            self._receive()

    def _receive(self) -> None:
        head = self._read(9)
        self._received[:0] = head  # it was only looked at
        super()._receive()
        if head[3] == DATA:
            self._heard.add(int.from_bytes(head[5:], "big"))


def test_watches_of_a_connection_that_is_gone_are_closed(
    bridge_with: Callable[..., BridgeProcess],
) -> None:
    """Elixir tells of none it abandons, so that its connection's end has to do."""
    limit = ("30 watches", "--max-session-watches")
    session = Session(bridge_with("--max-session-watches", "30"), "abandoned")
    session.register("x", "", "string")
    for large in (False, True):
        with Deaf(session.bridge.port) as deaf:
            for _ in range(30):
                deaf.watch(session)
            told_too_many(watch(session), *limit)
            for number in range(20):
                # As they can hear it, or so much that they are blocked.
                session.set("x", str(number) * (100_000 if large else 10), "string")
            told_too_many(watch(session), *limit)
        watches = open_again(session, 30, *limit)
        offset = session.set("x", "end", "string").offset
        for one in watches:
            assert one.next().offset == offset
            one.call.cancel()


def test_a_client_that_hangs_up_in_the_middle_of_an_update_is_no_failure(
    bridge_with: Callable[..., BridgeProcess],
) -> None:
    bridge = bridge_with()
    session = Session(bridge, "hung up")
    session.register("x", "", "string")
    for number in range(8):
        session.set("x", str(number) * MIB, "string")
    for _ in range(10):
        with own_channel(bridge.port) as channel:
            with watch(session, on=channel, after_offset=0) as opened:
                opened.next()
            with watch(session, on=channel, after_offset=0, timeout=0.2) as opened:
                opened.next()
                assert opened.call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            watch(session, on=channel, after_offset=0).next()
    assert bridge.stop() == 0
    said = [line for line in bridge.stderr_lines if " INFO " not in line]
    assert said == [], bridge.stderr


BLOCK = 1_000
BLOCKS = 30
ABOUT = 2_000
"""Bytes of a value."""


def test_who_does_not_read_costs_the_others_nothing(
    bridge_with: Callable[..., BridgeProcess],
) -> None:
    """Each that is deaf would have 130 MB waiting for it."""
    bridge = bridge_with()
    session, bystander = Session(bridge, "deaf"), Bystander(bridge.port)
    names = register_block(session)

    def write() -> None:
        for block in range(BLOCKS):
            value = packed(str(block % 10) * ABOUT, "string")
            assert session.set_many(dict.fromkeys(names, value), atomic=True).success

    with ExitStack() as stack:
        for _ in range(5):
            deaf = stack.enter_context(Deaf(bridge.port))
            for _ in range(4):
                deaf.watch(session)
        slow = stack.enter_context(at_head(session, timeout=100))
        prompt = stack.enter_context(at_head(session, names[7], timeout=100))
        before = memory_of(bridge.process.pid)
        pool = stack.enter_context(ThreadPoolExecutor())
        heard = pool.submit(prompt.take, BLOCKS)
        writer = pool.submit(write)
        bystander.step_until(lambda: writer.done() and heard.done())
        writer.result()
        first = session.head - BLOCK * BLOCKS + 1
        offsets = list(range(first, first + BLOCK * BLOCKS))
        assert [update.offset for update in heard.result()] == offsets[7::BLOCK]
        written = memory_of(bridge.process.pid).peak - before.now

        session.end()
        late = pool.submit(slow.rest)
        bystander.step_until(late.done)
        assert [update.offset for update in late.result()] == offsets
        read = memory_of(bridge.process.pid).peak - before.now
    sys.stdout.write(
        f"{BLOCK * BLOCKS} updates: {written // MIB} MiB more at most while they are written, "
        f"{read // MIB} while they are read; {bystander.version} sets of a bystander\n"
    )
    assert written < 256 * MIB
    assert read < 384 * MIB
    bystander.channel.close()


def register_block(session: Session, count: int = BLOCK) -> list[str]:
    names = [f"{number:05}" for number in range(count)]
    fields = {"session_id": session.id, "type": "string", "initial_value": packed("", "string")}
    requests = (message_of("RegisterVariable", name=name, **fields) for name in names)
    crowd(session.bridge, "RegisterVariable", requests)
    return names


@pytest.mark.parametrize("max_value", [0, 100])
def test_a_transaction_of_10000_events_keeps_nobody_waiting(
    bridge_with: Callable[..., BridgeProcess], max_value: int
) -> None:
    bridge = bridge_with()
    session, bystander = Session(bridge, "large"), Bystander(bridge.port)
    names = register_block(session, MAX_TRANSACTION)
    with at_head(session, max_value_bytes=max_value) as opened, ThreadPoolExecutor() as pool:
        assert session.set_many(dict.fromkeys(names, packed("v", "string")), atomic=True).success
        heard = pool.submit(opened.take, MAX_TRANSACTION)
        bystander.step_until(heard.done)
        updates = heard.result()
    first = updates[0].offset
    assert [update.offset for update in updates] == list(range(first, first + MAX_TRANSACTION))
    kept = {update.resume_offset for update in updates[:-1]}
    assert (kept, updates[-1].resume_offset) == ({first - 1}, updates[-1].offset)
    bystander.channel.close()


class Recorder:
    """What a watcher makes of a session through any number of disconnections."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.fields: dict[str, Any] = {"after_offset": 0}
        self.ended = False

    async def listen(self, stub: Any, count: int, *, cancel: bool) -> None:  # noqa: ANN401
        """Hear so many updates, or the end of the session."""
        request = pb.WatchVariablesRequest(session_id="flapping", **self.fields)
        call = stub.WatchVariables(request, timeout=100)
        async for update in call:
            self.seen.append(update.offset)
            mark = bookmark_of(update)
            self.fields = mark.fields
            count -= 1
            if not count:
                break
        else:
            self.ended = True
            return
        # What comes again is seen again, and only that.
        kept = self.fields["after_offset"]
        self.seen = [offset for offset in self.seen if offset <= kept]
        if cancel:
            call.cancel()


class OwnStub:
    """A stub on a connection of its own."""

    def __init__(self, port: int) -> None:
        options = (*UNLIMITED, ("grpc.use_local_subchannel_pool", 1))
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)

    async def __aenter__(self) -> Any:  # noqa: ANN401 - stubs have no types
        return stubs.BridgeServiceStub(self._channel)

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()


async def flap(port: int, recorders: list[Recorder], source: random.Random) -> int:
    """Have watchers on one connection disconnect until the session ends; gives how often."""
    times = 0
    while not all(recorder.ended for recorder in recorders):
        async with OwnStub(port) as stub, asyncio.TaskGroup() as group:
            for recorder in recorders:
                if not recorder.ended:
                    count, cancel = source.randint(3, 25), source.random() < 0.5
                    group.create_task(recorder.listen(stub, count, cancel=cancel))
                    times += 1
    return times


async def test_watchers_that_disconnect_again_and_again_miss_nothing(
    bridge_with: Callable[..., BridgeProcess],
) -> None:
    # 200 are open at a time, and older gRPC hears late of those that are gone. More than a
    # thousand are opened in all.
    bridge = bridge_with("--max-session-watches", "600")
    seed = 3
    sys.stdout.write(f"seed {seed}\n")
    source = random.Random(seed)
    expected: list[int] = []
    recorders = [[Recorder() for _ in range(10)] for _ in range(20)]
    async with OwnStub(bridge.port) as stub:
        for name in ("x", "y", "z"):
            await stub.RegisterVariable(
                pb.RegisterVariableRequest(
                    session_id="flapping", name=name, type="integer", initial_value=packed(0)
                )
            )
        async with asyncio.TaskGroup() as group:
            flapping = [
                group.create_task(flap(bridge.port, some, source)) for some in recorders[:10]
            ]
            for some in recorders[10:]:
                for recorder in some:
                    group.create_task(recorder.listen(stub, -1, cancel=False))
            for number in range(120):
                if number % 6:
                    answer = await stub.SetVariable(
                        pb.SetVariableRequest(
                            session_id="flapping", variable_identifier="x", value=packed(number)
                        ),
                        timeout=TIMEOUT,
                    )
                    expected.append(answer.offset)
                else:
                    updates = {name: packed(number) for name in ("x", "y", "z")}
                    answer = await stub.SetVariables(
                        pb.BatchSetVariablesRequest(
                            session_id="flapping", updates=updates, atomic=True
                        ),
                        timeout=TIMEOUT,
                    )
                    expected += range(answer.offset - 2, answer.offset + 1)
            await stub.CleanupSession(pb.CleanupSessionRequest(session_id="flapping"))
    times = sum(task.result() for task in flapping)
    sys.stdout.write(f"{times} watches of 100 flapping watchers\n")
    assert times > 300
    for recorder in itertools.chain(*recorders):
        assert recorder.ended
        assert recorder.seen == expected


def test_a_session_that_begins_anew_again_and_again_confuses_nobody(
    bridge_with: Callable[..., BridgeProcess],
) -> None:
    bridge = bridge_with()
    session = Session(bridge, "anew")
    stop = threading.Event()

    def look() -> list[list[tuple[str, int]]]:
        """Watch whichever log there is, from its beginning to its end."""
        found = []
        while not stop.is_set():
            with watch(session, after_offset=0) as opened:
                try:
                    updates = list(opened.call)
                except grpc.RpcError:
                    assert fault_of(opened.call).code == "NOT_FOUND"
                    continue
            assert opened.call.code() is grpc.StatusCode.OK
            found.append([(update.log_epoch, update.offset) for update in updates])
        return found

    logs: dict[str, list[int]] = {}
    with ThreadPoolExecutor() as pool, own_channel(bridge.port) as channel:
        lookers = [pool.submit(look) for _ in range(4)]
        try:
            for _ in range(4):
                epoch = session.register("x", 0).log_epoch
                watches = [watch(session, on=channel, send_caught_up=True) for _ in range(200)]
                assert {one.next().log_epoch for one in watches} == {epoch}
                logs[epoch] = [session.set("x", number).offset for number in range(5)]
                session.end()
                new = session.start().log_epoch  # before anybody has looked
                assert new not in logs
                for one in watches:
                    updates = one.rest()
                    assert {update.log_epoch for update in updates} == {epoch}
                    assert [update.offset for update in updates] == logs[epoch]
                session.end()
                logs[new] = []
        finally:
            stop.set()
    found = [seen for looker in lookers for seen in looker.result() if seen]
    assert found
    for seen in found:
        epoch = seen[0][0]
        assert seen == [(epoch, offset) for offset in logs[epoch]]


# Clocks.


async def test_a_wall_clock_that_jumps_hurries_and_delays_no_heartbeat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    clock, wall, wall_nanos = loop.time, time.time, time.time_ns
    ahead = {"loop": 0.0, "wall": 0.0}
    monkeypatch.setattr(loop, "time", lambda: clock() + ahead["loop"])
    monkeypatch.setattr(time, "time", lambda: wall() + ahead["wall"])
    monkeypatch.setattr(time, "time_ns", lambda: wall_nanos() + int(ahead["wall"] * 1e9))

    life = Life(MemoryLog)
    direct = life.start()
    life.register("a")
    watches = Watches(direct.committer, Gate(direct.committer, loop, MIB), loop, DEFAULTS)
    updates: asyncio.Queue[pb.VariableUpdate] = asyncio.Queue()

    async def send(update: bytes) -> None:
        updates.put_nowait(pb.VariableUpdate.FromString(update))

    async def take() -> pb.VariableUpdate:
        return await asyncio.wait_for(updates.get(), 10 * TIMEOUT)

    request = pb.WatchVariablesRequest(session_id="a", send_caught_up=True)
    opened = asyncio.create_task(watches.watch_variables(request.SerializeToString(), "test", send))
    assert (await take()).update_type == "caught_up"
    times = []
    for number, jump in enumerate((-DAY, DAY, -400 * DAY, 0, 1, -1)):
        ahead["wall"] += jump
        life.clocks.ahead += int(jump * 1e9)
        for shift, expected in ((28.0, "value_change"), (2.0, "heartbeat")):
            ahead["loop"] += shift
            if expected == "value_change":
                await asyncio.to_thread(life.write, "a", number)
            update = await take()
            assert update.update_type == expected
            assert update.offset == number + 3
            if expected == "value_change":
                times.append(update.timestamp.ToNanoseconds())
    assert times == sorted(times)
    assert updates.empty()
    opened.cancel()
    await asyncio.wait([opened])
    await watches.close()
    direct.close()


# The end.


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_a_bridge_that_stops_tells_a_thousand_watchers_though_one_is_deaf(
    bridge_with: Callable[..., BridgeProcess], busy: bool
) -> None:
    """Well before the grace: who is blocked is not waited for."""
    bridge = bridge_with("--grace", "10")
    session = Session(bridge, "stopping")
    session.register("x", "", "string")
    with ExitStack() as stack:
        channel = stack.enter_context(own_channel(bridge.port))
        deaf = stack.enter_context(Deaf(bridge.port))
        deaf.watch(session)
        watches = [
            watch(session, "x", on=channel, send_caught_up=True, timeout=100, max_value_bytes=10)
            for _ in range(1_000)
        ]
        for one in watches:
            one.next()
        for number in range(20):
            head = session.set("x", str(number) * 100_000, "string").offset
        if not busy:
            for one in watches:
                one.take(20)
        pool = stack.enter_context(ThreadPoolExecutor())
        begun = time.monotonic()
        bridge.process.terminate()
        exit_code = pool.submit(lambda: (bridge.process.wait(TIMEOUT), time.monotonic() - begun))
        for one in watches:
            updates, fault = one.to_fault()
            assert (fault.code, fault.reason) == ("UNAVAILABLE", "WATCH_CLOSED")
            assert f"after_offset={one.facts['resume_offset']}," in fault.message
            if busy:
                kept = [update.resume_offset for update in updates]
                assert kept == list(range(3, 3 + len(updates)))
                assert one.facts["resume_offset"] == str(2 + len(updates))
            else:
                assert (updates, one.facts["resume_offset"]) == ([], str(head))
        told = time.monotonic() - begun
        code, gone = exit_code.result()
    sys.stdout.write(f"1000 watchers told in {told:.2f} s, gone after {gone:.2f} s\n")
    assert code == 0
    assert busy or told < 2  # what they had not read they read first
    assert gone < 1.5 + 1  # with the usual grace it has to be
