"""Random schedules of writers, watchers and disturbances, against a real bridge.

A schedule is one bridge on an empty file: some writers, who do everything that changes a
variable, and some watchers with filters of their own, who read, read slowly, stop reading,
vanish, and come back at any bookmark that they ever got. Meanwhile the bridge is killed or
stopped and started again, sessions end and begin anew, retention cuts what is old, watches
are ended for their age. Half of the bridges have tiny rings and pages, so that short logs
are read as long ones are.

At the end each watcher catches up, the log is read from the file, and the six validators of
``watch_validators`` look at everything. What is random follows from the seed; how the threads
of two processes interleave does not, so a seed repeats a schedule only roughly.

    python -m tests.watch_schedules --schedules 1000
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import secrets
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import grpc
import typer
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message_factory import GetMessageClass
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge import bridge_service_pb2_grpc as stubs
from snakepit_bridge.errors import OffsetOutOfRange
from snakepit_bridge.events.model import LogId
from snakepit_bridge.events.reading import fold
from snakepit_bridge.events.urls import open_copy
from tests.bridge_process import UNLIMITED, BridgeProcess
from tests.watch_validators import (
    CANCELLED,
    CHANGES,
    Ending,
    Recorder,
    Recording,
    Resumed,
    Stream,
    Truth,
    check_all,
)

DEADLINE = 60.0
METHODS = pb.DESCRIPTOR.services_by_name["BridgeService"].methods_by_name

SMALL = """
import runpy, sys
from snakepit_bridge import watching
from snakepit_bridge.events import cursor, pages, recent
for module, name, size in (
    (pages, "PAGE_EVENTS", 20), (pages, "PAGE_BYTES", 60_000), (pages, "KEPT_BYTES", 60_000),
    (cursor, "AT_ONCE", 3), (watching, "UPDATES_A_TURN", 4), (recent, "RECENT_BYTES", 12_000),
):
    assert hasattr(module, name), name
    setattr(module, name, size)
assert len(recent.Recent.__init__.__defaults__) == 1
recent.Recent.__init__.__defaults__ = (12_000,)
sys.argv = sys.argv[3:]
runpy.run_module("snakepit_bridge.server", run_name="__main__", alter_sys=True)
"""
"""Serves with tiny rings and pages."""

NARROW = (*UNLIMITED, ("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 16_384))
"""So that the bridge feels it at once when a watcher does not read."""

RETENTION = 0.4
LIFETIME = 0.25
REPEATS = 3
"""How often a schedule is begun that retention has made worthless."""
NAMES = ("a0", "a1", "a2", "b0", "b1", "größe")
FILTERS: Sequence[Sequence[str]] = ((), (), ("a0", "b1"), ("a*",), ("?1", "größe"), ("b0", "new*"))
KINDS: Sequence[Sequence[str]] = ((), (), CHANGES, CHANGES, ("deleted",), ("registered", "deleted"))
REFUSALS = (
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "FAILED_PRECONDITION",
    "OUT_OF_RANGE",
    "ABORTED",
    "INVALID_ARGUMENT",
)


class Overtaken(Exception):
    """Retention was faster than the test's own reading, so what was true is not known."""


class Plan(NamedTuple):
    """What a seed makes of a schedule."""

    small: bool
    retention: bool
    lifetime: bool
    restarts: tuple[str, ...]
    sessions: tuple[str, ...]
    writers: int
    watchers: int
    writes: int
    """Of each writer."""

    @classmethod
    def draw(cls, rng: random.Random) -> Plan:
        retention = rng.random() < 0.15
        return cls(
            rng.random() < 0.5,
            retention,
            rng.random() < 0.2,
            rng.choice(((), (), ("kill",), ("stop",), ("kill", "stop"))),
            rng.choice((("s",), ("s", "lives"), ("lives",))),
            rng.randint(2, 4),
            rng.randint(3, 5),
            rng.randint(20, 40) if retention else rng.randint(20, 70),
        )


class History:
    """Reads the logs from the file while the bridge writes it, before retention cuts them."""

    def __init__(self, path: Path, truths: dict[LogId, Truth]) -> None:
        self._url = f"sqlite:{path}"
        self._truths = truths
        self.cuts = 0
        """How often it was seen that the beginning of a log was gone."""
        self._bases: dict[LogId, int] = {}

    def look(self) -> None:
        """Read on.

        :raises Overtaken: something is gone already.
        """
        engine = open_copy(self._url)
        try:
            logs = [entry.log for entry in engine.logs()]
            for log in logs:
                truth = self._truths.setdefault(log, Truth(log))
                if truth.ended:
                    continue
                for transaction in fold(engine, log, truth.head, truth.digest):
                    truth.add(transaction)
                head = engine.head(log)
                if head is not None and head.base > self._bases.get(log, 0):
                    self._bases[log] = head.base
                    self.cuts += 1
        except OffsetOutOfRange as error:
            raise Overtaken(error.message) from error
        finally:
            engine.close()
        for log in self._truths.keys() - set(logs):
            truth = self._truths[log]
            if not truth.ended:
                raise Overtaken(f"{log} is gone")
            truth.dropped = True


class Schedule:
    """One run; ``recording`` is what came of it."""

    def __init__(self, directory: Path, seed: int, counts: Counter[str] | None = None) -> None:
        self.seed = seed
        self.plan = Plan.draw(random.Random(seed))
        self.counts: Counter[str] = Counter() if counts is None else counts
        self._path = directory / "bridge.db"
        self._rng = random.Random(seed + 1)
        self._recorder = Recorder()
        self._history = History(self._path, self.recording.truths)
        self._ids = itertools.count(1)
        self._calls: set[Any] = set()
        """Open watches."""
        self._up = asyncio.Event()
        self._finishing = False
        self._news: asyncio.Future[None]
        self._answers = 0
        self._generation = 0
        self._bridge: BridgeProcess
        self._stub: Any
        self._channels = AsyncExitStack()
        """Closed at the end only: to close one is to cancel its calls."""
        self._variables: dict[str, list[str]] = {}
        """Ids that were given out, by session."""
        self._locks: dict[tuple[str, str], str] = {}
        """Optimizers that hold a variable."""

    @property
    def recording(self) -> Recording:
        return self._recorder.recording

    async def run(self) -> Recording:
        """Raise what is wrong, with the seed."""
        try:
            async with asyncio.timeout(DEADLINE):
                await self._run()
            check_all(self.recording)
        except BaseException as error:
            error.add_note(f"watch schedule with seed {self.seed}: {self.plan}")
            raise
        self._count()
        return self.recording

    async def _run(self) -> None:
        self._news = asyncio.get_running_loop().create_future()
        await self._start()
        try:
            async with self._channels:
                await self._prepare()
                async with asyncio.TaskGroup() as tasks:
                    watching = [
                        tasks.create_task(self._watch(f"w{n}")) for n in range(self.plan.watchers)
                    ]
                    writing = tasks.create_task(self._write_all())
                    if self.plan.retention:
                        tasks.create_task(self._look_until([writing, *watching]))
            code = await asyncio.to_thread(self._bridge.stop)
            assert code == 0, self._bridge.stderr
            await asyncio.to_thread(self._history.look)
        finally:
            if self._bridge.process.returncode is None:
                self._bridge.kill()

    async def _look_until(self, done: Sequence[asyncio.Task[None]]) -> None:
        while not all(task.done() for task in done):
            await asyncio.to_thread(self._history.look)
            await asyncio.sleep(0.03)

    # The bridge.

    async def _start(self) -> None:
        plan = self.plan
        options = []
        if plan.retention:
            options += ["--retention-age", str(RETENTION)]
        if plan.lifetime:
            options += ["--watch-max-lifetime", str(LIFETIME)]
        wrapper = (sys.executable, "-c", SMALL) if plan.small or plan.retention else ()
        self._bridge = await asyncio.to_thread(
            lambda: BridgeProcess(self._path, *options, wrapper=wrapper)
        )
        channel_options = NARROW if plan.small or plan.retention else UNLIMITED
        channel = grpc.aio.insecure_channel(
            f"127.0.0.1:{self._bridge.port}", options=channel_options
        )
        await self._channels.enter_async_context(channel)
        self._stub = stubs.BridgeServiceStub(channel)
        self._generation += 1
        self._up.set()

    async def _restart(self, how: str) -> None:
        self._up.clear()
        if how == "kill":
            await asyncio.to_thread(self._bridge.kill)
        else:
            code = await asyncio.to_thread(self._bridge.stop)
            assert code == 0, self._bridge.stderr
        self.counts[f"bridge: {how} and start"] += 1
        await self._start()

    # Writers.

    async def _prepare(self) -> None:
        for session in self.plan.sessions:
            for name in NAMES:
                await self._register(session, name, self._rng)

    async def _write_all(self) -> None:
        total = self.plan.writers * self.plan.writes
        moments = sorted(self._rng.randint(1, total) for _ in self.plan.restarts)
        writers = [
            asyncio.create_task(self._writer(random.Random(self._rng.random())))
            for _ in range(self.plan.writers)
        ]
        try:
            for moment, how in zip(moments, self.plan.restarts, strict=True):
                while self._answers < moment and not all(task.done() for task in writers):
                    await asyncio.wait([self._news, *writers], return_when="FIRST_COMPLETED")
                await self._restart(how)
            await asyncio.gather(*writers)
        finally:
            for task in writers:
                task.cancel()
        self._finishing = True
        self._tell_news()
        for call in list(self._calls):
            call.cancel()

    def _tell_news(self) -> None:
        news, self._news = self._news, asyncio.get_running_loop().create_future()
        news.set_result(None)

    async def _writer(self, rng: random.Random) -> None:
        for _ in range(self.plan.writes):
            session = rng.choice(self.plan.sessions)
            if session == "lives" and rng.random() < 0.03:
                await self._begin_anew(session, rng)
                continue
            held = [name for of, name in self._locks if of == session]
            if held and rng.random() < 0.3:
                await self._lock(session, rng.choice(held), rng)
                continue
            act = rng.choices(
                (
                    self._set,
                    self._set_many,
                    self._register,
                    self._delete,
                    self._roll_back,
                    self._lock,
                ),
                (50, 25, 10, 3, 8, 2),
            )[0]
            await act(session, rng.choice(NAMES), rng)
            if self.plan.retention and rng.random() < 0.6:
                await asyncio.sleep(0.02)  # so that there is a past to be cut

    async def _call(self, method: str, /, **fields: Any) -> Any:  # noqa: ANN401
        """Send a request until it is answered; ``None`` = it was refused."""
        id_ = f"request {next(self._ids)}"
        request = GetMessageClass(METHODS[method].input_type)(request_id=id_, **fields)
        while True:
            await self._up.wait()
            generation = self._generation
            try:
                response = await getattr(self._stub, method)(request)
            except grpc.aio.AioRpcError as error:
                code = error.code()
                if code is grpc.StatusCode.UNAVAILABLE and (
                    generation != self._generation or not self._up.is_set()
                ):
                    continue
                if code.name not in REFUSALS:
                    raise
                self.counts["writes: refused"] += 1
                response = None
            break
        self._answers += 1
        if response is not None:
            self.counts[f"writes: {method}"] += 1
            if method != "SetVariables" or response.new_versions:
                self._recorder.tell(method, request, response)
        self._tell_news()
        return response

    def _value(self, rng: random.Random) -> AnyMessage:
        # Who does not read is overtaken only when more has come than gRPC buffers for him.
        chance = rng.random() * (0.2 if self.plan.retention else 1)
        size = 150_000 if chance < 0.01 else 5_000 if chance < 0.06 else 4
        text = f"{next(self._ids)} {rng.randbytes(size).hex()}"
        return AnyMessage(type_url="dspex.variables/string", value=json.dumps(text).encode())

    def _metadata(self, rng: random.Random) -> dict[str, str]:
        return rng.choice(
            (
                {},
                {},
                {"k": str(next(self._ids)), "source": "tool:t"},
                {"correlation_id": f"c{next(self._ids)}", "reason": "größer"},
                {"traceparent": f"00-{rng.getrandbits(128):032x}-{rng.getrandbits(64):016x}-01"},
            )
        )

    def _key(self, session: str, name: str, rng: random.Random) -> str:
        return self._locks.get((session, name), "") if rng.random() < 0.8 else ""

    async def _register(self, session: str, name: str, rng: random.Random) -> None:
        response = await self._call(
            "RegisterVariable",
            session_id=session,
            name=name if rng.random() < 0.85 else f"new{rng.randrange(3)}",
            type="string",
            initial_value=self._value(rng),
            metadata=self._metadata(rng),
        )
        if response is not None:
            self._variables.setdefault(session, []).append(response.variable_id)

    async def _set(self, session: str, name: str, rng: random.Random) -> None:
        await self._call(
            "SetVariable",
            session_id=session,
            variable_identifier=name,
            value=self._value(rng),
            metadata=self._metadata(rng),
            optimization_id=self._key(session, name, rng),
        )

    async def _set_many(self, session: str, _name: str, rng: random.Random) -> None:
        names = rng.sample(NAMES, rng.randint(1, len(NAMES) - 1))
        await self._call(
            "SetVariables",
            session_id=session,
            updates={name: self._value(rng) for name in names},
            metadata=self._metadata(rng),
            atomic=rng.random() < 0.8,
            optimization_id=self._key(session, names[0], rng),
        )

    async def _delete(self, session: str, name: str, rng: random.Random) -> None:
        await self._call(
            "DeleteVariable",
            session_id=session,
            variable_identifier=name,
            metadata=self._metadata(rng),
            optimization_id=self._key(session, name, rng),
        )

    async def _roll_back(self, session: str, name: str, rng: random.Random) -> None:
        await self._call(
            "RollbackVariable",
            session_id=session,
            variable_identifier=name,
            target_version=rng.randint(1, 3),
            metadata=self._metadata(rng),
            optimization_id=self._key(session, name, rng),
        )

    async def _lock(self, session: str, name: str, _rng: random.Random) -> None:
        key = self._locks.pop((session, name), "")
        about: dict[str, Any] = {"session_id": session, "variable_identifier": name}
        if key:
            await self._call("StopOptimization", **about, optimization_id=key)
            return
        response = await self._call("StartOptimization", **about, optimizer_id="o")
        if response is not None:
            self._locks[session, name] = response.optimization_id

    async def _begin_anew(self, session: str, rng: random.Random) -> None:
        await self._call("CleanupSession", session_id=session)
        await self._call("InitializeSession", session_id=session)
        for name in NAMES:
            await self._register(session, name, rng)

    # Watchers.

    async def _watch(self, name: str) -> None:
        watcher = _Watcher(name, random.Random(self._rng.random()), self)
        while not self._finishing:
            await self._up.wait()
            stream = watcher.open()
            await self._read(stream, watcher.rng)
            refused = stream.ending.code in ("NOT_FOUND", "FAILED_PRECONDITION", "OUT_OF_RANGE")
            if refused and not stream.updates and not self._finishing:
                await asyncio.wait([self._news])
        await self._catch_up(watcher)

    async def _read(self, stream: Stream, rng: random.Random) -> None:
        """Read a stream as some client does, to its end or not."""
        manner = rng.choices(("some", "slow", "stalled", "vanishing", "all"), (5, 3, 2, 1, 2))[0]
        most = rng.randint(1, 60) if manner != "all" else 10**6
        self.counts[f"readers: {manner}"] += 1

        async def go_on(number: int) -> bool:
            if manner == "vanishing" or number >= most:
                return False
            if manner == "slow":
                await asyncio.sleep(rng.random() * 0.01)
            elif manner == "stalled" and number == 0:
                cuts = self._history.cuts + 2
                for _ in range(rng.randint(1, 40) if not self.plan.retention else 10**6):
                    if not self._up.is_set() or self._finishing or self._history.cuts >= cuts:
                        break
                    await asyncio.wait([self._news])
            return True

        await self._follow(stream, go_on)

    async def _follow(self, stream: Stream, go_on: Callable[[int], Any]) -> None:
        """Keep what comes until it ends, or ``go_on`` says no."""
        call = self._stub.WatchVariables(stream.request)
        self._calls.add(call)
        try:
            await call.initial_metadata()
            while await go_on(len(stream.updates)):
                update = await call.read()
                if update is grpc.aio.EOF:
                    break
                stream.updates.append(update)
            else:
                call.cancel()
                stream.ending = CANCELLED
                return
            await call.code()
            stream.ending = Ending("OK")
        except grpc.aio.AioRpcError as error:
            # Not dict(it): of grpc.aio before 1.7x that asks for keys which are pairs.
            trailers = dict(tuple(error.trailing_metadata() or ()))
            stream.ending = Ending(
                error.code().name,
                error.details() or "",
                {key: value for key, value in trailers.items() if isinstance(value, str)},
            )
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            stream.ending = CANCELLED  # all are, when the schedule ends
        finally:
            self._calls.discard(call)
            call.cancel()

    async def _catch_up(self, watcher: _Watcher) -> None:
        """At the end, see everything that is still to come."""
        fresh = False
        beats = watcher.beats and watcher.rng.random() < 0.08
        for _ in range(50):
            stream = watcher.open_last(fresh=fresh)

            async def go_on(_number: int, stream: Stream = stream) -> bool:
                kinds = {update.update_type for update in stream.updates}
                return "caught_up" not in kinds or (beats and "heartbeat" not in kinds)

            await self._follow(stream, go_on)
            code = stream.ending.code
            if code in ("CANCELLED", "NOT_FOUND"):
                return
            assert code in ("OK", "OUT_OF_RANGE", "FAILED_PRECONDITION", "UNAVAILABLE"), stream
            if any(update.update_type == "caught_up" for update in stream.updates):
                return
            fresh = code != "UNAVAILABLE"
        raise AssertionError(f"watcher {watcher.name} does not catch up: {stream.ending}")

    def _count(self) -> None:
        counts = self.counts
        counts["schedules"] += 1
        counts["schedules: tiny pages"] += self.plan.small or self.plan.retention
        for streams in self.recording.watchers.values():
            for stream in streams:
                counts["streams"] += 1
                ending = stream.ending.code
                counts[f"endings: {ending}"] += 1
                if stream.ending.resume_offset is not None:
                    counts["endings: with a bookmark"] += 1
                for update in stream.updates:
                    counts[f"updates: {update.update_type}"] += 1
                overtaken = ending == "OUT_OF_RANGE" and stream.updates
                counts["endings: overtaken by retention on the way"] += bool(overtaken)


class _Watcher:
    """One client with one filter, and what it remembers."""

    def __init__(self, name: str, rng: random.Random, schedule: Schedule) -> None:
        self.name = name
        self.rng = rng
        self._schedule = schedule
        session = rng.choice(schedule.plan.sessions)
        ids = schedule._variables.get(session, [])
        names = [*rng.choice(FILTERS)]
        if ids and rng.random() < 0.2:
            names.append(rng.choice(ids))
        self.beats = rng.random() < 0.5 and not schedule.plan.lifetime
        self._wanted: dict[str, Any] = {
            "session_id": session,
            "variable_identifiers": names,
            "update_types": rng.choice(KINDS),
            "max_value_bytes": rng.choice((0, 0, 0, 100, 6_000)),
            "heartbeat_seconds": 1 if self.beats else 0,
        }
        self._recorder = schedule._recorder

    @property
    def _streams(self) -> Sequence[Stream]:
        return self._recorder.recording.watchers.get(self.name, [])

    def open(self) -> Stream:
        """A new stream that begins anywhere."""
        rng = self.rng
        last = self._streams[-1] if self._streams else None
        lost = last is not None and last.ending.code in ("OUT_OF_RANGE", "FAILED_PRECONDITION")
        chance = rng.random()
        if last is None or lost or chance < 0.2:
            return self._fresh(initial=lost or rng.random() < 0.6)
        if chance < 0.45:
            found = self._any_bookmark()
        elif chance < 0.55:
            found = self._any_offset()
        else:
            found = self._latest()
        if found is None:
            return self._fresh(initial=rng.random() < 0.6)
        return self._open(found, include_initial_values=rng.random() < 0.1)

    def open_last(self, *, fresh: bool) -> Stream:
        """One that goes on to the head, wherever this has come to."""
        found = None if fresh else self._latest()
        if found is None:
            return self._fresh(initial=True, send_caught_up=True)
        return self._open(found, send_caught_up=True)

    def _fresh(self, *, initial: bool, **more: Any) -> Stream:  # noqa: ANN401
        request = pb.WatchVariablesRequest(
            **self._wanted, include_initial_values=initial, **(more or self._mark())
        )
        how = "now"
        if not initial and self.rng.random() < 0.6:
            request.after_offset = 0
            how = "0"
        self._tally(f"{how}, with initial values" if initial else how)
        return self._recorder.open(self.name, request)

    def _mark(self) -> dict[str, Any]:
        return {"send_caught_up": self.rng.random() < 0.4}

    def _open(self, found: tuple[Resumed, str, int, int], **more: Any) -> Stream:  # noqa: ANN401
        resumed, epoch, offset, check = found
        request = pb.WatchVariablesRequest(
            **self._wanted,
            after_offset=offset,
            log_epoch=epoch,
            resume_check=check,
            **{**self._mark(), **more},
        )
        return self._recorder.open(self.name, request, resumed)

    def _latest(self) -> tuple[Resumed, str, int, int] | None:
        """What a careful client has kept."""
        for stream in reversed(self._streams):
            if stream.ending.code == "OK":
                return None
            ending = stream.ending
            if ending.resume_offset is not None and self.rng.random() < 0.8:
                self._tally("of trailers")
                told = ending.trailers
                resumed = Resumed(stream.number, len(stream.updates))
                return (
                    resumed,
                    told["log_epoch"],
                    int(told["resume_offset"]),
                    int(told["resume_check"]),
                )
            for place in range(len(stream.updates) - 1, -1, -1):
                if stream.updates[place].HasField("resume_offset"):
                    return self._at(stream, place)
            if stream.resumed is None:
                return None
            # It delivered nothing: what was kept before still counts.
        return None

    def _any_bookmark(self) -> tuple[Resumed, str, int, int] | None:
        places = [
            (stream, place)
            for stream in self._streams
            for place, update in enumerate(stream.updates)
            if update.HasField("resume_offset")
        ]
        rare = [(s, p) for s, p in places if _kind(s.updates[p]) != "a change"]
        if rare and self.rng.random() < 0.5:
            places = rare
        return self._at(*self.rng.choice(places)) if places else None

    def _at(self, stream: Stream, place: int) -> tuple[Resumed, str, int, int]:
        update = stream.updates[place]
        self._tally(f"of {_kind(update)}")
        resumed = Resumed(stream.number, place + 1)
        return resumed, update.log_epoch, update.resume_offset, update.resume_check

    def _any_offset(self) -> tuple[Resumed, str, int, int] | None:
        """An offset that was seen, and that nobody said was to be kept."""
        places = [
            (stream, place)
            for stream in self._streams
            for place, update in enumerate(stream.updates)
            if update.update_type in CHANGES
        ]
        inside = [(s, p) for s, p in places if s.updates[p].resume_offset < s.updates[p].offset]
        if not places:
            return None
        stream, place = self.rng.choice(inside or places)
        self._tally("offset inside a transaction" if inside else "offset of a change")
        update = stream.updates[place]
        resumed = Resumed(stream.number, place + 1, bookmark=False)
        return resumed, update.log_epoch, update.offset, 0

    def _tally(self, how: str) -> None:
        self._schedule.counts[f"starts: {how}"] += 1


def _kind(update: Any) -> str:  # noqa: ANN401 - a VariableUpdate
    """What kind of bookmark it carries."""
    if update.update_type not in CHANGES:
        return f"{update.update_type}"
    return "a change inside a transaction" if update.resume_offset < update.offset else "a change"


async def run_schedule(directory: Path, seed: int, counts: Counter[str] | None = None) -> Recording:
    """Run one, again if retention was too fast for it."""
    for attempt in range(REPEATS):
        own = directory / f"{seed}.{attempt}"
        own.mkdir()
        try:
            return await Schedule(own, seed, counts).run()
        except* Overtaken:
            if counts is not None:
                counts["schedules: begun again, overtaken"] += 1
        finally:
            shutil.rmtree(own)
    raise AssertionError(f"schedule {seed} was overtaken by retention {REPEATS} times")


def main(
    schedules: Annotated[int, typer.Option(min=1, help="How many.")] = 1_000,
    seed: Annotated[int, typer.Option(help="Of the first, to repeat a run; 0 = any.")] = 0,
) -> None:
    """Watch a bridge through everything that may happen to it, and check what was seen."""
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    first = seed or secrets.randbits(32)
    counts: Counter[str] = Counter()
    with (
        tempfile.TemporaryDirectory() as directory,
        Progress(*columns, TimeRemainingColumn(), console=console) as progress,
    ):
        bar = progress.add_task("schedules", total=schedules)
        for number in range(schedules):
            asyncio.run(run_schedule(Path(directory), first + number, counts))
            progress.advance(bar)
    table = Table("what", "", "times")
    for what, times in sorted(counts.items()):
        group, _, one = what.partition(": ")
        table.add_row(group, one, str(times))
    console.print(table)
    console.print(f"{schedules} schedules, all as promised. Seed {first}.")


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
