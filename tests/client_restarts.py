"""``kill -9`` under clients that write and watch; in the end each has what the log has, once.

Writers change variables of their own through the client, without a word about the bridge: each
call returns when it is answered, however often the bridge is killed meanwhile, on whatever port it
comes back. So in the end the log holds what each writer did, in its order, once.

Watchers, of both clients, are told everything that they want, each once, in the order of the log.
Some leave at any moment and go on later, with a new client, by the bookmark that they kept beside
what they had been told, as JSON. What a raw stub reads from the beginning of the log is the truth,
and is itself compared with the histories.

    python -m tests.client_restarts --restarts 100
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge.client import (
    AsyncClient,
    AsyncSession,
    AsyncWatch,
    Bookmark,
    Client,
    Session,
    Watch,
    WatchStatus,
    ready_file,
)
from snakepit_bridge.views import Change
from tests.bridge_process import BridgeProcess

SESSIONS = ("first", "second")
THREADS, TASKS = 2, 1
"""Writers of each session, in threads and on the event loop."""
NAMES = 12
"""Variables of a writer, at most."""
MOST_ANSWERS, MOST_TOLD = 200, 3_000
"""A kill comes after up to so many answers to writers, or changes told to watchers, or at once; and
up to 20 ms more."""
PATIENCE = 60.0
"""Seconds in which a bridge is back, and everything that is to come has come."""
PORTS = range(20_000, 30_000)
"""Below those that outgoing connections have: one that looks for a killed bridge on its own port
would connect to itself, and keep the bridge from coming back there."""
ALL_KINDS = ("value_change", "registered", "deleted")


class Event(NamedTuple):
    """One change, whoever tells of it."""

    kind: str
    name: str
    version: int
    old: Any
    new: Any
    offset: int
    """0 where whoever tells does not know."""

    @classmethod
    def of(cls, change: Change) -> Event:
        told = (change.kind, change.name, change.version, change.old, change.new, change.offset)
        return cls(*told)


class Wanted(NamedTuple):
    """What a watcher asks for, and how it behaves."""

    names: Sequence[str] = ()
    kinds: Sequence[str] = ("value_change",)
    initial: bool = False
    leaves: bool = False
    """Now and then it ends its watch, and goes on later by its bookmark."""
    impatient: bool = False
    """It waits a moment for each change, and then does something else."""
    calls_back: bool = False
    """By ``subscribe``."""

    def has(self, event: Event) -> bool:
        named = not self.names or any(fnmatchcase(event.name, name) for name in self.names)
        return named and event.kind in self.kinds


IN_THREADS = (
    Wanted(kinds=ALL_KINDS),
    Wanted(kinds=ALL_KINDS, leaves=True),
    Wanted(names=("*x1", "second-*"), leaves=True),
    Wanted(names=("*x2", "*x3"), initial=True, leaves=True),
    Wanted(calls_back=True),
)
ON_THE_LOOP = (
    Wanted(initial=True),
    Wanted(kinds=ALL_KINDS, leaves=True),
    Wanted(names=("*-0-*",), leaves=True, impatient=True),
    Wanted(names=("*-1-*",), kinds=("registered", "deleted"), calls_back=True),
)


class Watcher:
    """What one watcher was told, and keeps in one go with its bookmark."""

    def __init__(
        self, session: str, wanted: Wanted, begins: int, rng: random.Random, *, on_loop: bool
    ) -> None:
        """:param begins: after so many restarts."""
        self.session = session
        self.wanted = wanted
        self.on_loop = on_loop
        self.begins = begins
        self.random = rng
        self.kept: list[Event] = []
        self.saved = ""
        """The bookmark that goes with ``kept``, as JSON."""
        self.stood = 0
        """An offset at which it stood already, if it began without values or bookmark."""
        self.lives = 0
        self.statuses: Counter[str] = Counter()
        self._loose: list[Event] = []
        """Of a transaction that is not complete."""
        self._leaves_after = 0

    def options(self) -> dict[str, Any]:
        """How to begin, or go on."""
        self.lives += 1
        self._loose.clear()
        self._leaves_after = self.random.randint(1, 300)
        bookmark = Bookmark(*json.loads(self.saved)) if self.saved else None
        return {
            "bookmark": bookmark,
            "initial": self.wanted.initial and bookmark is None,
            "kinds": self.wanted.kinds,
            "heartbeat": 1,
            "on_status": self._note,
        }

    def take(self, change: Change, bookmark: Bookmark | None) -> bool:
        """Keep what came; gives whether to leave now."""
        self._loose.append(Event.of(change))
        if bookmark is not None and bookmark.offset >= change.offset:
            self.kept += self._loose
            self._loose.clear()
            self.saved = json.dumps(bookmark)
        self._leaves_after -= 1
        return self.wanted.leaves and self._leaves_after <= 0 and bool(self.saved)

    def verify(self, truth: Sequence[Event]) -> None:
        """What it was told is what is there, each once."""
        assert not self._loose, f"{self}: a transaction without an end, {self._loose}"
        initial = [event for event in self.kept if event.kind == "initial_value"]
        seen = self.kept[len(initial) :]
        begun = self.stood
        if self.wanted.initial:
            begun = self._verify_initial(initial, truth)
        elif seen:
            begun = min(begun, seen[0].offset - 1)
        there = [event for event in truth if event.offset > begun and self.wanted.has(event)]
        missing, surplus = Counter(there) - Counter(seen), Counter(seen) - Counter(there)
        assert not missing, f"{self} was not told of {sorted(missing)[:5]}, of {len(missing)}"
        assert not surplus, f"{self} was told too often of {sorted(surplus)[:5]}, {len(surplus)}"
        assert seen == there, f"{self} was told in another order"

    def _verify_initial(self, initial: Sequence[Event], truth: Sequence[Event]) -> int:
        """The values it began with are those of one moment, which is given."""
        moments = {event.offset for event in initial}
        assert len(moments) <= 1, f"{self} began with values of {moments}"
        # Without values it began before there were any.
        moment = min(moments, default=0)
        live: dict[str, Event] = {}
        for event in truth:
            if event.offset > moment:
                break
            if event.kind != "value_change":
                live.pop(event.name, None)
            if event.kind != "deleted":
                live[event.name] = event._replace(kind="initial_value", old=None, offset=moment)
        every = self.wanted._replace(kinds=("initial_value",))
        assert list(initial) == [event for event in live.values() if every.has(event)], self
        return moment

    def _note(self, status: WatchStatus) -> None:
        self.statuses[status.kind] += 1

    def __repr__(self) -> str:
        where = "on the loop" if self.on_loop else "in a thread"
        return f"a watcher of {self.session} {where}, {self.wanted}, in life {self.lives}"


class Write(NamedTuple):
    """A call of either client's session."""

    method: str
    arguments: Sequence[Any]
    options: Mapping[str, Any]


class Writer:
    """Changes variables of its own, and remembers what it was told of each change."""

    def __init__(self, session: str, name: str, rng: random.Random) -> None:
        self.session = session
        self.told: dict[str, list[Event]] = {}
        """By the names of variables."""
        self.repeated = 0
        self._name = name
        self._random = rng
        self._live: dict[str, tuple[int, int]] = {}
        """Version and value of each variable."""
        self._values = 0
        self._last: tuple[Write, Any] | None = None
        """A set with a request id, and its answer."""

    def next(self) -> Write:
        """What to do now."""
        rng, live = self._random, self._live
        chance = rng.random()
        options = {"request_id": secrets.token_hex(8)} if rng.random() < 0.5 else {}
        if not live or (chance < 0.1 and len(live) < NAMES):
            free = next(n for n in self._names() if n not in live)
            return Write("register", (free, "integer", self._value()), options)
        if chance < 0.15:
            return Write("delete", (rng.choice(list(live)),), options)
        if chance < 0.25 and self._last is not None:
            return self._last[0]
        if chance < 0.65:
            chosen = rng.sample(list(live), rng.randint(1, len(live)))
            return Write("set_many", ({name: self._value() for name in chosen},), options)
        name = rng.choice(list(live))
        expected = live[name][0] if rng.random() < 0.5 else 0
        return Write("set", (name, self._value()), {**options, "expected_version": expected})

    def answered(self, write: Write, answer: Any) -> None:  # noqa: ANN401 - of any method
        """Remember what was done."""
        if self._last is not None and write is self._last[0]:
            self.repeated += 1
            expected = self._last[1]._replace(duplicate=True)
            assert answer == expected, f"{write} was answered with {expected}, and again {answer}"
            return
        match write.method, *write.arguments:
            case "register", name, _, value:
                self._note("registered", name, answer.version, value, answer.offset)
            case "delete", name:
                version, _ = self._live[name]
                self._note("deleted", name, version, None, answer.offset)
                del self._live[name]
                if self._last is not None and self._last[0].arguments[0] == name:
                    self._last = None  # to send it again, its type would have to be known
            case "set", name, value:
                self._note("value_change", name, answer.version, value, answer.offset)
                self._last = (write, answer) if write.options.get("request_id") else None
            case "set_many", updates:
                assert set(answer.versions) == set(updates)
                for name, value in updates.items():
                    self._note("value_change", name, answer.versions[name], value, 0)

    def verify(self, truth: Sequence[Event]) -> None:
        """The log has each change once, in the order in which they were made."""
        stored: dict[str, list[Event]] = {}
        for event in truth:
            if event.name.startswith(f"{self._name}-"):
                stored.setdefault(event.name, []).append(event)
        assert set(stored) == set(self.told)
        for name, told in self.told.items():
            known = [
                event if mine.offset else event._replace(offset=0)
                for mine, event in zip(told, stored[name], strict=False)
            ]
            assert told == known, f"{name}: told {told}, stored {stored[name]}"
            assert len(told) == len(stored[name]), f"{name}: {stored[name][len(told) :]} untold"

    def _note(self, kind: str, name: str, version: int, new: int | None, offset: int) -> None:
        _, old = self._live.get(name, (0, None))
        self.told.setdefault(name, []).append(Event(kind, name, version, old, new, offset))
        if new is not None:
            self._live[name] = (version, new)

    def _names(self) -> Iterator[str]:
        return (f"{self._name}-x{number}" for number in range(NAMES))

    def _value(self) -> int:
        self._values += 1
        return self._values


class ClientRestarts:
    """The clients, which outlive every bridge."""

    def __init__(self, directory: Path, restarts: int, seed: int) -> None:
        self.restarts = restarts
        self.seed = seed
        self.killed = 0
        rng = random.Random(seed)
        self._random = rng
        self.writers = [
            [Writer(s, f"{s}-{n}", random.Random(rng.random())) for n in range(THREADS + TASKS)]
            for s in SESSIONS
        ]
        # In every session some watchers are there from the beginning, and others come later.
        self.watchers = [
            Watcher(
                session,
                wanted,
                rng.choice((0, 0, rng.randint(1, max(1, restarts // 2)))),
                random.Random(rng.random()),
                on_loop=on_loop,
            )
            for session in SESSIONS
            for on_loop, all_wanted in ((False, IN_THREADS), (True, ON_THE_LOOP))
            for wanted in all_wanted
        ]
        self.truth: dict[str, list[Event]] = {}
        self._path = directory / "bridge.db"
        self._ready = directory / "ready"
        self._port = 0
        self._bridge: BridgeProcess
        self._news = threading.Condition()
        self._answers = 0
        self._told = 0
        self._stopped = False
        """No more writes."""
        self._failed: BaseException | None = None
        self._open: list[Client] = []
        self._loop: asyncio.AbstractEventLoop
        self._on_loop: asyncio.Task[None]

    def run(self, on_restart: Callable[[], None] = lambda: None) -> None:
        """Raise what is wrong, with the seed."""
        try:
            self._start()
            with ThreadPoolExecutor(64) as pool:
                try:
                    self._run(pool, on_restart)
                finally:
                    self._abandon()
        except BaseException as error:
            error.add_note(f"client restarts with seed {self.seed}, after {self.killed} kills")
            raise
        finally:
            if self._bridge.process.returncode is None:
                self._bridge.kill()
        for session in SESSIONS:
            self._verify(session)

    def _run(self, pool: ThreadPoolExecutor, on_restart: Callable[[], None]) -> None:
        with self._client() as bridge:
            for session in SESSIONS:
                bridge.session(session).start()
        writing = [
            pool.submit(self._guarded, self._write, writer)
            for writers in self.writers
            for writer in writers[:THREADS]
        ]
        watching = [
            pool.submit(self._guarded, self._watch, watcher)
            for watcher in self.watchers
            if not watcher.on_loop
        ]
        written = threading.Event()
        watching.append(pool.submit(self._guarded, self._run_loop, written))
        for _ in range(self.restarts):
            self._kill()
            self._start()
            with self._news:
                self.killed += 1
                self._news.notify_all()
            on_restart()
        self._stopped = True
        self._wait_for(writing)
        assert written.wait(PATIENCE) or self._failed, "writers on the event loop do not end"
        with self._news:
            self._news.wait_for(
                lambda: all(w.stood for w in self.watchers) or self._failed is not None, PATIENCE
            )
        self._check()
        for session in SESSIONS:
            self.truth[session] = self._read(session)
        with self._client() as bridge:
            for session in SESSIONS:
                bridge.session(session).end()
        self._wait_for(watching)
        code = self._bridge.stop()
        assert code == 0, self._bridge.stderr

    # The bridge.

    def _start(self) -> None:
        """On the port it had, or on another one."""
        if not self._port or self._random.random() < 0.3:
            self._port = free_port(self._random)
        self._bridge = BridgeProcess(
            self._path, "--ready-file", str(self._ready), "--port", str(self._port)
        )

    def _kill(self) -> None:
        """In the middle of what the clients do, or before they are all back."""
        rng = self._random
        answers, told = rng.choice(
            ((0, 0), (rng.randint(1, MOST_ANSWERS), 0), (0, rng.randint(1, MOST_TOLD)))
        )
        with self._news:
            answers, told = self._answers + answers, self._told + told
            there = self._news.wait_for(
                lambda: (self._answers >= answers and self._told >= told) or bool(self._failed),
                PATIENCE,
            )
        self._check()
        assert there, f"{self._answers} answers, {self._told} changes told, and no more"
        time.sleep(self._random.random() * 0.02)  # any moment is as good
        self._bridge.kill()

    def _read(self, session: str) -> list[Event]:
        """The whole log, by the stub, and as the histories have it."""
        call, events = self._bridge.stub, []
        request: Any = pb.WatchVariablesRequest(
            session_id=session, after_offset=0, update_types=ALL_KINDS, send_caught_up=True
        )
        stream = call.WatchVariables(request, timeout=PATIENCE)
        live: dict[str, str] = {}
        for update in stream:
            if update.update_type == "caught_up":
                stream.cancel()
                break
            variable = update.variable
            new = number(variable.value) if update.update_type != "deleted" else None
            old = number(update.old_value) if update.HasField("old_value") else None
            told = (update.update_type, variable.name, variable.version, old, new, update.offset)
            events.append(Event(*told))
            live[variable.id] = variable.name
        versions = [(event.name, event.version, event.new, event.offset) for event in events]
        histories = []
        for id_, name in live.items():
            asked: Any = pb.GetVariableHistoryRequest(session_id=session, variable_identifier=id_)
            histories += [
                (name, entry.version, number(entry.value), entry.offset)
                for entry in call.GetVariableHistory(asked, timeout=PATIENCE).entries
            ]
        deleted = [event.offset for event in events if event.kind == "deleted"]
        assert sorted(v for v in versions if v[3] not in deleted) == sorted(histories)
        return events

    def _verify(self, session: str) -> None:
        truth = self.truth[session]
        for writers in self.writers:
            for writer in writers:
                if writer.session == session:
                    writer.verify(truth)
        for watcher in self.watchers:
            if watcher.session == session:
                watcher.verify(truth)

    # The clients.

    def _take(self, watcher: Watcher, change: Change, bookmark: Bookmark | None) -> bool:
        """Have a watcher keep what came; gives whether it is to leave now."""
        with self._news:
            self._told += 1
            self._news.notify_all()
        return watcher.take(change, bookmark)

    def _stands(self, watcher: Watcher, offset: int) -> None:
        """Note that a watcher has begun; it will be told what lies behind the offset."""
        with self._news:
            watcher.stood = offset
            self._news.notify_all()

    def _client(self) -> Client:
        client = Client(ready_file(self._ready), timeout=PATIENCE)
        self._open.append(client)
        return client

    def _async_client(self) -> AsyncClient:
        return AsyncClient(ready_file(self._ready), timeout=PATIENCE)

    def _guarded(self, work: Callable[[Any], None], about: object) -> None:
        """Have the first failure of any client end the run."""
        try:
            work(about)
        except BaseException as error:
            with self._news:
                self._failed = self._failed or error
                self._news.notify_all()
            raise

    def _check(self) -> None:
        if self._failed is not None:
            raise self._failed

    def _wait_for(self, work: Sequence[Future[None]]) -> None:
        done, waiting = wait(work, PATIENCE)
        for each in done:
            each.result()
        assert not waiting, f"{len(waiting)} of {len(work)} clients do not come to their end"

    def _abandon(self) -> None:
        """End what still runs, in case of a failure."""
        self._stopped = True
        with self._news:
            self._failed = self._failed or RuntimeError("the run has ended")
            self._news.notify_all()
        for client in self._open:
            client.close()
        if not self._on_loop.done():
            self._loop.call_soon_threadsafe(self._on_loop.cancel)

    def _answered(self) -> None:
        with self._news:
            self._answers += 1
            self._news.notify_all()

    def _write(self, writer: Writer) -> None:
        with self._client() as bridge:
            session = bridge.session(writer.session)
            while not self._stopped:
                write = writer.next()
                answer = getattr(session, write.method)(*write.arguments, **write.options)
                writer.answered(write, answer)
                self._answered()

    def _watch(self, watcher: Watcher) -> None:
        self._wait_to_begin(watcher)
        while self._watch_once(watcher):
            pass

    def _wait_to_begin(self, watcher: Watcher) -> None:
        with self._news:
            self._news.wait_for(lambda: self.killed >= watcher.begins or self._failed is not None)
        self._check()

    def _watch_once(self, watcher: Watcher) -> bool:
        """Watch to the end of the session; gives whether it left before."""
        with self._client() as bridge:
            session = bridge.session(watcher.session)
            if watcher.wanted.calls_back:
                self._subscribe(session, watcher)
                return False
            with session.watch(*watcher.wanted.names, **watcher.options()) as changes:
                if watcher.lives == 1:
                    self._stands(watcher, session.info().offset)
                return any(self._take(watcher, change, reached(changes)) for change in changes)

    def _subscribe(self, session: Session, watcher: Watcher) -> None:
        subscription = session.subscribe(
            lambda change: self._take(watcher, change, place(change)),
            *watcher.wanted.names,
            **watcher.options(),
        )
        self._stands(watcher, session.info().offset)
        subscription.wait()
        if subscription.error is not None:
            raise subscription.error

    def _run_loop(self, written: threading.Event) -> None:
        asyncio.run(self._all_on_loop(written))

    async def _all_on_loop(self, written: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_loop = asyncio.ensure_future(self._clients_on_loop(written))
        await self._on_loop

    async def _clients_on_loop(self, written: threading.Event) -> None:
        async with asyncio.TaskGroup() as group:
            for watcher in self.watchers:
                if watcher.on_loop:
                    group.create_task(self._watch_async(watcher))
            writing = [
                group.create_task(self._write_async(writer))
                for writers in self.writers
                for writer in writers[THREADS:]
            ]
            await asyncio.wait(writing)
            written.set()

    async def _write_async(self, writer: Writer) -> None:
        async with self._async_client() as bridge:
            session = bridge.session(writer.session)
            while not self._stopped:
                write = writer.next()
                answer = await getattr(session, write.method)(*write.arguments, **write.options)
                writer.answered(write, answer)
                self._answered()

    async def _watch_async(self, watcher: Watcher) -> None:
        if watcher.begins:
            await asyncio.to_thread(self._wait_to_begin, watcher)
        while await self._watch_once_async(watcher):
            pass

    async def _watch_once_async(self, watcher: Watcher) -> bool:
        async with self._async_client() as bridge:
            session = bridge.session(watcher.session)
            if watcher.wanted.calls_back:
                await self._subscribe_async(session, watcher)
                return False
            async with session.watch(*watcher.wanted.names, **watcher.options()) as changes:
                if watcher.lives == 1:
                    self._stands(watcher, (await session.info()).offset)
                while True:
                    try:
                        async with asyncio.timeout(
                            watcher.random.random() * 0.3 if watcher.wanted.impatient else None
                        ):
                            change = await anext(changes)
                    except TimeoutError:
                        continue
                    except StopAsyncIteration:
                        return False
                    if self._take(watcher, change, reached(changes)):
                        return True

    async def _subscribe_async(self, session: AsyncSession, watcher: Watcher) -> None:
        subscription = await session.subscribe(
            lambda change: self._take(watcher, change, place(change)),
            *watcher.wanted.names,
            **watcher.options(),
        )
        self._stands(watcher, (await session.info()).offset)
        await subscription.wait()
        if subscription.error is not None:
            raise subscription.error


def reached(watch: Watch | AsyncWatch) -> Bookmark | None:
    """The bookmark of a watch, if it has one by now."""
    try:
        return watch.bookmark
    except RuntimeError:
        return None


def place(change: Change) -> Bookmark:
    """The bookmark that a change carries."""
    return Bookmark(change.log_epoch, change.resume_offset, change.resume_check)


def number(value: Any) -> int:  # noqa: ANN401 - an Any of protobuf
    return int(value.value)


def free_port(rng: random.Random) -> int:
    while True:
        port = rng.choice(PORTS)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port


def main(
    restarts: Annotated[int, typer.Option(min=1, help="How often to kill the bridge.")] = 100,
    seed: Annotated[int, typer.Option(help="Repeats a run's choices; 0 = any.")] = 0,
) -> None:
    """Kill a bridge under clients, again and again, and look for what they lose or get twice."""
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        tempfile.TemporaryDirectory() as directory,
        Progress(*columns, TimeRemainingColumn(), console=console) as progress,
    ):
        clients = ClientRestarts(Path(directory), restarts, seed or secrets.randbits(32))
        bar = progress.add_task("kill -9", total=restarts)
        clients.run(lambda: progress.advance(bar))
    statuses = sum((watcher.statuses for watcher in clients.watchers), Counter[str]())
    console.print(
        f"{restarts} kills. The log has {sum(map(len, clients.truth.values()))} changes: what "
        f"{sum(map(len, clients.writers))} writers were told, each once (and "
        f"{sum(w.repeated for ws in clients.writers for w in ws)} requests that were repeated on "
        f"purpose, none of them done twice). {len(clients.watchers)} watchers were interrupted "
        f"{statuses['interrupted']} times, resumed {statuses['resumed']} times, came back by a "
        f"saved bookmark {sum(max(0, w.lives - 1) for w in clients.watchers)} times, and were "
        f"told {sum(len(w.kept) for w in clients.watchers)} changes, each once, in order. Seed "
        f"{clients.seed}."
    )


if __name__ == "__main__":
    typer.run(main)
