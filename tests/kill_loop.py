"""``kill -9`` at random moments under load; after each: nothing lost, nothing doubled.

A round is: verify what the bridge serves after its start, retry what was in flight when it
was killed, write on many sessions at once, kill it somewhere in the middle, and read the
files that it left (a copy, so that the bridge recovers them by itself).

What every client was told is kept: session, epoch, offset, versions and values of each
acknowledged request. The log must hold each of them at its offset, with its values, once;
of the requests in flight each at most once. What is served must be the fold of the log.

Meanwhile each session is watched. A watcher keeps the last bookmark that it got, goes on there
after every kill, and in the end has seen every offset that it wants exactly once.

(A killed process leaves its writes to the kernel, so this says nothing about a power cut:
``test_sync_before_answer`` does.)

    python -m tests.kill_loop --rounds 200
"""

from __future__ import annotations

import asyncio
import random
import secrets
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import grpc
import typer
from google.protobuf.any_pb2 import Any as AnyMessage
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge import bridge_service_pb2_grpc as stubs
from snakepit_bridge.events.model import LogId
from snakepit_bridge.events.projection import SessionState, VariableState, apply
from snakepit_bridge.events.reading import fold
from snakepit_bridge.events.sqlite import SqliteLog
from tests.bridge_process import BridgeProcess
from tests.watch_validators import CHANGES, Truth, wants

SESSIONS = 8
WRITERS = 3
"""Of each session, writing at once."""
MOST_ANSWERS = 400
"""A kill comes after 1 to this many answers, and up to 10 ms more."""
ROUNDS_OF_A_SESSION = 4
"""Then new ones take over, so that late rounds cost what early ones do."""
DEADLINE = 30.0
FILTERS: Sequence[dict[str, Any]] = (
    {"update_types": CHANGES, "heartbeat_seconds": 1},
    {"variable_identifiers": ["*1*", "*2"]},
)
"""What the watchers of each session want."""


class Effect(NamedTuple):
    """One version that a request made."""

    name: str
    version: int
    value: int


class Fact(NamedTuple):
    """What a request did: as a client was told, or as the log has it."""

    log: LogId
    offset: int
    """Of its last event."""
    effects: tuple[Effect, ...]


class Sent(NamedTuple):
    """A request on its way."""

    method: str
    request: Any

    def fact(self, response: Any) -> Fact:  # noqa: ANN401 - the method's response
        """What the client knows once this was answered."""
        log = LogId(self.request.session_id, response.log_epoch)
        return Fact(log, response.offset, tuple(self._effects(response)))

    def _effects(self, response: Any) -> Sequence[Effect]:  # noqa: ANN401 - as above
        request = self.request
        match self.method:
            case "RegisterVariable":
                return [Effect(request.name, 1, int(request.initial_value.value))]
            case "SetVariable":
                name, value = request.variable_identifier, int(request.value.value)
                return [Effect(name, response.new_version, value)]
            case "SetVariables":
                return [
                    Effect(name, response.new_versions[name], int(request.updates[name].value))
                    for name in sorted(request.updates)
                ]
        return []


class Watcher:
    """A client that watches one session, from its beginning and across all kills."""

    def __init__(self, session: str, wanted: dict[str, Any]) -> None:
        self.fresh = pb.WatchVariablesRequest(session_id=session, after_offset=0, **wanted)
        self.request = self.fresh
        """To watch on."""
        self.seen: dict[LogId, list[int]] = {}
        """Of each log, the offsets it was shown, in order."""
        self.again = 0
        """Updates that were announced to come again, and did."""

    def see(self, update: Any) -> None:  # noqa: ANN401 - a VariableUpdate
        """Keep what came, and its bookmark."""
        log = LogId(self.fresh.session_id, update.log_epoch)
        seen = self.seen.setdefault(log, [])
        if update.update_type in CHANGES:
            assert not seen or seen[-1] < update.offset, f"{log}: {update.offset} after {seen[-1]}"
            seen.append(update.offset)
        request = pb.WatchVariablesRequest()
        request.CopyFrom(self.fresh)
        request.after_offset, request.resume_check = update.resume_offset, update.resume_check
        request.log_epoch = update.log_epoch
        self.request = request

    def interrupted(self) -> None:
        """Forget what the bookmark says will come again."""
        if self.request.log_epoch:
            seen = self.seen[LogId(self.fresh.session_id, self.request.log_epoch)]
            while seen and seen[-1] > self.request.after_offset:
                seen.pop()
                self.again += 1

    def ended(self) -> None:
        """Watch the next log of the session."""
        self.request = self.fresh

    def verify(self, log: LogId, stored: StoredLog, *, all_of_it: bool) -> None:
        """What was seen is what is there, each offset once."""
        seen = self.seen[log]
        there = [c.offset for c in stored.truth.changes if wants(self.fresh, c)]
        expected = there if all_of_it else there[: len(seen)]
        assert seen == expected, f"a watcher of {log} saw {seen}, and the log has {there}"


class StoredLog:
    """One log, read from the file and folded."""

    def __init__(self, engine: SqliteLog, log: LogId) -> None:
        self.state = SessionState()
        self.truth = Truth(log)
        self.facts: dict[str, Fact] = {}
        """By request id."""
        self.history: dict[str, list[tuple[int, int, int, str]]] = {}
        """Variable id to version, value, offset and request id of each of its versions."""
        seen: Counter[tuple[str, str]] = Counter()
        for transaction in fold(engine, log):
            apply(self.state, transaction)
            self.truth.add(transaction)
            request = transaction.record.request
            seen[request.id, request.key] += 1
            effects = tuple(self._effects(transaction.record.first_offset, transaction, request.id))
            if request.id:
                known = self.facts.get(request.id, Fact(log, 0, ()))
                self.facts[request.id] = Fact(log, transaction.last_offset, known.effects + effects)
        doubled = [key for key, count in seen.items() if count > 1 and key[0]]
        assert not doubled, f"{log} holds {doubled} more than once"

    def _effects(self, offset: int, transaction: Any, request_id: str) -> Sequence[Effect]:  # noqa: ANN401
        effects = []
        values = iter(transaction.values)
        for place, event in enumerate(transaction.record.events):
            kind = event.WhichOneof("kind")
            if kind not in ("variable_registered", "variable_set"):
                continue
            body = getattr(event, kind)
            value = number(next(values).any)
            version = 1
            if kind == "variable_set":
                next(values)  # the previous one
                version = body.version
            name = self.state.variables[body.id].definition.name
            effects.append(Effect(name, version, value))
            entry = (version, value, offset + place, request_id)
            self.history.setdefault(body.id, []).append(entry)
        return effects


def number(any_bytes: bytes) -> int:
    return int(AnyMessage.FromString(any_bytes).value)


def wire_value(value: int) -> AnyMessage:
    return AnyMessage(type_url="dspex.variables/integer", value=b"%d" % value)


def read_logs(path: Path, wanted: Callable[[str], bool]) -> dict[LogId, StoredLog]:
    """The logs of the sessions that are wanted, straight from the file."""
    engine = SqliteLog(path)
    try:
        with closing(sqlite3.connect(path)) as file:
            rows = file.execute("SELECT session_id, epoch FROM logs ORDER BY id").fetchall()
        logs = [LogId(*row) for row in rows if wanted(row[0])]
        return {log: StoredLog(engine, log) for log in logs}
    finally:
        engine.close()


class KillLoop:
    """The clients' memory, which outlives every bridge."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.path = directory / "bridge.db"
        self.seed = seed
        self.rounds = 0
        self.told: dict[str, Fact] = {}
        """Everything acknowledged, by request id."""
        self.in_flight: dict[str, Sent] = {}
        self.stored: dict[LogId, StoredLog] = {}
        """What the last kill left of the sessions in use."""
        self.kept = 0
        """Requests in flight that a kill left in the log."""
        self.watchers: list[Watcher] = []
        """All there ever were; those of the sessions in use come last."""
        self.resumed = 0
        """Watches that were taken up by a bookmark."""
        self._random = random.Random(seed)
        self._scratch = directory / "copy"
        self._values = 0
        self._kill_at = 0
        self._answers = 0
        self._killed = False
        self._watching: list[Watcher] = []
        """Those of the sessions in use."""
        self._news: asyncio.Future[None]
        """Done with the next answer, or kill."""
        self._bridge: BridgeProcess
        self._stub: Any

    async def run(self, rounds: int, on_round: Callable[[KillLoop], None] = lambda _: None) -> None:
        """Raise what is wrong, with the seed and the round."""
        try:
            for _ in range(rounds):
                await self._with_bridge(self._round)
                on_round(self)
            await self._with_bridge(self._last)
        except BaseException as error:
            error.add_note(f"kill loop with seed {self.seed}, in round {self.rounds}")
            raise

    async def _with_bridge(self, use: Callable[[], Any]) -> None:
        self._bridge = await asyncio.to_thread(BridgeProcess, self.path)
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{self._bridge.port}") as channel:
                self._stub = stubs.BridgeServiceStub(channel)
                self._news = asyncio.get_running_loop().create_future()
                await use()
        finally:
            if self._bridge.process.returncode is None:
                self._bridge.kill()

    async def _round(self) -> None:
        await self._verify_served()
        await self._retry()
        if self.rounds % ROUNDS_OF_A_SESSION == 0:
            self.stored = {}
            self._watching = []
        self.rounds += 1
        await self._write_until_killed()
        await asyncio.to_thread(self._bridge.kill)
        self._scratch.mkdir(exist_ok=True)
        copy = self._scratch / self.path.name
        for suffix in ("", "-wal"):
            shutil.copyfile(f"{self.path}{suffix}", f"{copy}{suffix}")
        in_use = self._prefix()
        self.stored = await asyncio.to_thread(
            read_logs, copy, lambda session: session.startswith(in_use)
        )
        self._verify_stored(lambda session: session.startswith(in_use))
        self._verify_seen(self._watching, all_of_it=False)

    async def _last(self) -> None:
        """After a clean stop the whole file must be what everybody was told."""
        await self._verify_served()
        await self._retry()
        heads: dict[LogId, int] = {}
        for fact in self.told.values():
            heads[fact.log] = max(heads.get(fact.log, 0), fact.offset)
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*(self._catch_up(watcher, heads) for watcher in self.watchers))
        code = await asyncio.to_thread(self._bridge.stop)
        assert code == 0, self._bridge.stderr
        self.stored = await asyncio.to_thread(read_logs, self.path, lambda _: True)
        self._verify_stored(lambda _: True)
        self._verify_seen(self.watchers, all_of_it=True)
        logged = Counter(id_ for stored in self.stored.values() for id_ in stored.facts)
        assert max(logged.values()) == 1, "a request is in two logs"
        assert set(logged) == set(self.told), "somebody wrote what nobody asked for"

    def _prefix(self) -> str:
        return f"{(self.rounds - 1) // ROUNDS_OF_A_SESSION}."

    # Writing.

    async def _write_until_killed(self) -> None:
        self._killed = False
        self._answers = 0
        self._kill_at = self._random.randint(1, MOST_ANSWERS)
        sessions = [f"{self._prefix()}{n}" for n in range(SESSIONS)]
        tasks = [
            self._writer(session, random.Random(self._random.random()))
            for session in sessions
            for _ in range(WRITERS)
        ]
        lives = [f"{self._prefix()}lives{n}" for n in range(2)]
        tasks += map(self._lives, lives)
        if not self._watching:
            self._watching = [
                Watcher(session, wanted) for session in (*sessions, *lives) for wanted in FILTERS
            ]
            self.watchers += self._watching
        tasks += map(self._watch, self._watching)
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*tasks)

    async def _writer(self, session: str, rng: random.Random) -> None:
        names: list[str] = []
        while True:
            if not names or rng.random() < 0.05:
                name = f"x{self._next_value()}"
                sent: Sent = self._register(session, name)
                names.append(name)
            elif rng.random() < 0.3:
                chosen = rng.sample(names, min(len(names), rng.randint(1, 4)))
                sent = self._set_many(session, chosen, atomic=rng.random() < 0.5)
            else:
                sent = self._set(session, rng.choice(names))
            if not await self._send(sent):
                return

    async def _lives(self, session: str) -> None:
        """End a session, if there is one, begin it anew, use it, again and again."""
        while True:
            name = f"x{self._next_value()}"
            for sent in (
                Sent("CleanupSession", pb.CleanupSessionRequest(session_id=session)),
                Sent("InitializeSession", pb.InitializeSessionRequest(session_id=session)),
                self._register(session, name),
                self._set(session, name),
            ):
                if not await self._send(sent):
                    return

    def _next_value(self) -> int:
        self._values += 1
        return self._values

    def _register(self, session: str, name: str) -> Sent:
        value = wire_value(self._next_value())
        request = pb.RegisterVariableRequest(
            session_id=session, name=name, type="integer", initial_value=value
        )
        return Sent("RegisterVariable", request)

    def _set(self, session: str, name: str) -> Sent:
        value = wire_value(self._next_value())
        request = pb.SetVariableRequest(session_id=session, variable_identifier=name, value=value)
        return Sent("SetVariable", request)

    def _set_many(self, session: str, names: Sequence[str], *, atomic: bool) -> Sent:
        updates = {name: wire_value(self._next_value()) for name in names}
        request = pb.BatchSetVariablesRequest(session_id=session, updates=updates, atomic=atomic)
        return Sent("SetVariables", request)

    async def _send(self, sent: Sent) -> bool:
        """Whether it was answered; if not, the bridge was killed."""
        if self._killed:
            return False
        request_id = f"request {len(self.told) + len(self.in_flight)}"
        while request_id in self.told or request_id in self.in_flight:
            request_id += "'"
        sent.request.request_id = request_id
        self.in_flight[request_id] = sent
        try:
            response = await getattr(self._stub, sent.method)(sent.request)
        except grpc.aio.AioRpcError as error:
            if self._killed and error.code() is grpc.StatusCode.UNAVAILABLE:
                return False
            raise
        assert not response.duplicate
        if not self._had_nothing_to_end(sent, response):
            self.told[request_id] = sent.fact(response)
        del self.in_flight[request_id]
        self._tell_news()
        self._answers += 1
        if self._answers == self._kill_at:
            loop = asyncio.get_running_loop()
            loop.call_later(self._random.random() * 0.01, self._kill)
        return True

    def _had_nothing_to_end(self, sent: Sent, response: Any) -> bool:  # noqa: ANN401
        return sent.method == "CleanupSession" and response.offset == 0

    def _kill(self) -> None:
        self._killed = True
        self._bridge.process.kill()
        self._tell_news()

    def _tell_news(self) -> None:
        news, self._news = self._news, asyncio.get_running_loop().create_future()
        news.set_result(None)

    # Watching.

    async def _watch(self, watcher: Watcher) -> None:
        """Until the bridge is killed."""
        while not self._killed:
            news = self._news
            try:
                await self._see(watcher, lambda _: False)
            except grpc.aio.AioRpcError as error:
                if self._killed and error.code() is grpc.StatusCode.UNAVAILABLE:
                    watcher.interrupted()
                    return
                fresh = watcher.request is watcher.fresh
                if not fresh or error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
                await news  # the session is still to begin
            else:
                watcher.ended()

    async def _catch_up(self, watcher: Watcher, heads: Mapping[LogId, int]) -> None:
        """See everything that is still to come."""
        watcher.request.send_caught_up = True
        try:
            ended = not await self._see(watcher, lambda update: update.update_type == "caught_up")
        except grpc.aio.AioRpcError as error:
            if watcher.request.log_epoch or error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            return  # the session has ended, or never began
        if not ended:
            log = LogId(watcher.fresh.session_id, watcher.request.log_epoch)
            assert watcher.request.after_offset >= heads[log], f"{log}: caught up before the head"

    async def _see(self, watcher: Watcher, enough: Callable[[Any], bool]) -> bool:
        """Watch on, to the end of the log; gives whether it was enough before that."""
        self.resumed += bool(watcher.request.log_epoch)
        call = self._stub.WatchVariables(watcher.request)
        async for update in call:
            watcher.see(update)
            if enough(update):
                call.cancel()
                return True
        return False

    # Verifying.

    def _verify_seen(self, watchers: Sequence[Watcher], *, all_of_it: bool) -> None:
        for watcher in watchers:
            session = watcher.fresh.session_id
            if all_of_it and "lives" not in session:
                there = {log for log in self.stored if log.session_id == session}
                assert there == set(watcher.seen), f"of {there} were watched {set(watcher.seen)}"
            for log in watcher.seen:
                watcher.verify(log, self.stored[log], all_of_it=all_of_it)

    def _verify_stored(self, wanted: Callable[[str], bool]) -> None:
        """All that was acknowledged is there, at its offset and with its values."""
        for request_id, fact in self.told.items():
            if wanted(fact.log.session_id):
                stored = self.stored.get(fact.log)
                assert stored is not None, f"the log {fact.log} is lost, with {request_id}"
                found = stored.facts.get(request_id)
                assert found == fact, f"{request_id}: told {fact}, stored {found}"

    async def _verify_served(self) -> None:
        """What the bridge serves is the fold of what the kill had left."""
        newest = {log.session_id: (log, stored) for log, stored in self.stored.items()}
        await asyncio.gather(*(self._verify_session(*pair) for pair in newest.values()))

    async def _verify_session(self, log: LogId, stored: StoredLog) -> None:
        state = stored.state
        session: Any = pb.GetSessionRequest(session_id=log.session_id)
        if state.ended:
            try:
                await self._stub.GetSession(session)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
                return
            raise AssertionError(f"{log} has ended and is served")
        served = await self._stub.GetSession(session)
        told = (served.log_epoch, served.offset, served.variable_count)
        assert told == (log.epoch, state.head, len(state.variables)), log
        for variable in state.variables.values():
            await self._verify_variable(log, variable, stored.history[variable.definition.id])

    async def _verify_variable(
        self, log: LogId, variable: VariableState, entries: list[tuple[int, int, int, str]]
    ) -> None:
        definition = variable.definition
        key: dict[str, Any] = {
            "session_id": log.session_id,
            "variable_identifier": definition.name,
        }
        response = await self._stub.GetVariable(pb.GetVariableRequest(**key))
        got = response.variable
        assert got.id == definition.id
        assert got.value.SerializeToString() == variable.value.any
        assert (got.version, got.offset) == (variable.version, variable.offset)
        request = pb.GetVariableHistoryRequest(**key)
        history = (await self._stub.GetVariableHistory(request)).entries
        shown = [(e.version, int(e.value.value), e.offset, e.request_id) for e in history]
        assert shown == entries[::-1]
        assert [entry[0] for entry in entries] == list(range(1, 1 + len(entries)))

    async def _retry(self) -> None:
        """Send again what was in flight, twice at once."""
        stored = {id_: fact for one in self.stored.values() for id_, fact in one.facts.items()}
        waiting, self.in_flight = self.in_flight, {}
        for request_id, sent in waiting.items():
            call = getattr(self._stub, sent.method)
            answers = await asyncio.gather(call(sent.request), call(sent.request))
            first, second = (sent.fact(answer) for answer in answers)
            if self._had_nothing_to_end(sent, answers[0]):
                assert request_id not in stored
                continue
            assert first == second
            fresh = sum(not answer.duplicate for answer in answers)
            if request_id in stored:
                assert fresh == 0, f"{request_id} was stored, and again"
                assert first == stored[request_id]
                self.kept += 1
            else:
                assert fresh == 1, f"{request_id} was not stored: {answers}"
            self.told[request_id] = first


def main(
    rounds: Annotated[int, typer.Option(min=1, help="How often to kill the bridge.")] = 200,
    seed: Annotated[int, typer.Option(help="Repeats a run; 0 = any.")] = 0,
) -> None:
    """Kill a bridge under load, again and again, and look for what is lost or doubled."""
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        tempfile.TemporaryDirectory() as directory,
        Progress(*columns, TimeRemainingColumn(), console=console) as progress,
    ):
        loop = KillLoop(Path(directory), seed or secrets.randbits(32))
        bar = progress.add_task("kill -9", total=rounds)
        asyncio.run(loop.run(rounds, lambda _: progress.advance(bar)))
    console.print(
        f"{rounds} kills, {len(loop.told)} writes acknowledged, all there once. Of those in "
        f"flight {loop.kept} were stored without an answer; their retries were duplicates. "
        f"{len(loop.watchers)} watchers went on by bookmark {loop.resumed} times, and saw every "
        f"offset they wanted once ({sum(len(s) for w in loop.watchers for s in w.seen.values())} "
        f"updates; {sum(w.again for w in loop.watchers)} more came again as announced). "
        f"Seed {loop.seed}."
    )


if __name__ == "__main__":
    typer.run(main)
