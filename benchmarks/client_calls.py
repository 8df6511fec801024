"""The process that uses a bridge through the Python client, and through stubs, in turn.

A line of JSON says where the bridge is (``Place``). Each further one is a run (``Order``), and is
answered with a line of JSON: what it cost, after all answers were looked at.

The side of the stubs does what a careful user of them writes: each set is a request of its own with
a new request id, the source and a deadline, and its answer's success and version are read; each get
has its value parsed and its version read; of each update name, value, offset, version and bookmark
are read. Both sides run on connections of their own, which stay open.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import grpc

from benchmarks.errors import BenchmarkError
from benchmarks.workloads import TYPE_URL
from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge.bridge_service_pb2_grpc import BridgeServiceStub
from snakepit_bridge.client import AsyncClient, AsyncSession, Bookmark, Client, Session

__all__ = ["Order", "Place", "Spent"]

_DEADLINE = 10.0  # seconds, each call
_WATCHING = 60.0  # seconds, a whole run of updates
_SOURCE = {"source": "python"}
_STEP = 1e-7  # no two sets have the same value, and all are below 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A session of a bridge: ``names`` are variables between 0 and 1."""

    port: int
    session: str
    names: Sequence[str]
    epoch: str = ""
    """Of its log, where it is watched."""
    asynchronous: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A run: so many sets, then so many gets; or so many updates from the log's beginning."""

    do: str
    """"calls" or "updates"."""
    client: bool
    """Through the client, or through the stubs."""
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What a run took of this process, all its threads, in microseconds; zero where not done."""

    set_cpu: float = 0.0
    set_wall: float = 0.0
    get_cpu: float = 0.0
    get_wall: float = 0.0
    update_cpu: float = 0.0
    update_wall: float = 0.0


class _Update(NamedTuple):
    offset: int
    name: str
    version: int
    value: float
    bookmark: int


_Sets = Iterator[tuple[str, float]]
_Made = list[tuple[str, float, int]]
"""Name, value and version, call by call."""


class _Side(Protocol):
    """One way to use the bridge: what is asked, one after the other."""

    def set_all(self, sets: _Sets) -> _Made:
        """Make each set."""

    def get_all(self, names: Iterator[str]) -> _Made:
        """Get each."""

    def watch(self, count: int) -> list[_Update]:
        """Read so many updates from the beginning of the log."""


def _set_request(place: Place, name: str, value: float) -> pb.SetVariableRequest:
    request = pb.SetVariableRequest(
        session_id=place.session,
        variable_identifier=name,
        request_id=os.urandom(16).hex(),
        metadata=_SOURCE,
    )
    request.value.type_url = TYPE_URL
    request.value.value = json.dumps(value).encode()
    return request


def _version(response: pb.SetVariableResponse) -> int:
    if not response.success:
        raise BenchmarkError(f"a set was refused: {response.error_message}")
    return response.new_version


def _get_request(place: Place, name: str) -> pb.GetVariableRequest:
    return pb.GetVariableRequest(session_id=place.session, variable_identifier=name)


def _watch_request(place: Place) -> pb.WatchVariablesRequest:
    return pb.WatchVariablesRequest(
        session_id=place.session, log_epoch=place.epoch, after_offset=0, send_caught_up=True
    )


def _read(update: pb.VariableUpdate) -> _Update:
    variable = update.variable
    value = json.loads(variable.value.value)
    mark = (update.log_epoch, update.resume_offset, update.resume_check)
    return _Update(update.offset, variable.name, variable.version, value, mark[1])


class _Stubs:
    def __init__(self, place: Place, stub: Any) -> None:  # noqa: ANN401 - stubs have no types
        self._place = place
        self._stub = stub

    def set_all(self, sets: _Sets) -> _Made:
        place, stub = self._place, self._stub
        return [
            (
                name,
                value,
                _version(stub.SetVariable(_set_request(place, name, value), timeout=_DEADLINE)),
            )
            for name, value in sets
        ]

    def get_all(self, names: Iterator[str]) -> _Made:
        made = []
        for name in names:
            request = _get_request(self._place, name)
            got = self._stub.GetVariable(request, timeout=_DEADLINE).variable
            made.append((name, json.loads(got.value.value), got.version))
        return made

    def watch(self, count: int) -> list[_Update]:
        call = self._stub.WatchVariables(_watch_request(self._place), timeout=_WATCHING)
        updates = [_read(update) for update in itertools.islice(call, count)]
        call.cancel()
        return updates


class _Client:
    def __init__(self, place: Place, session: Session) -> None:
        self._place = place
        self._session = session

    def set_all(self, sets: _Sets) -> _Made:
        session = self._session
        return [(name, value, session.set(name, value).version) for name, value in sets]

    def get_all(self, names: Iterator[str]) -> _Made:
        made = []
        for name in names:
            got = self._session.get(name)
            made.append((name, got.value, got.version))
        return made

    def watch(self, count: int) -> list[_Update]:
        updates = []
        with self._session.watch(bookmark=Bookmark(self._place.epoch, 0, 0)) as watch:
            for change in itertools.islice(watch, count):
                mark = watch.bookmark.offset
                told = _Update(change.offset, change.name, change.version, change.new, mark)
                updates.append(told)
        return updates


class _AsyncStubs:
    """The same on an event loop, of which ``run`` makes it a side."""

    def __init__(self, place: Place, stub: Any) -> None:  # noqa: ANN401 - stubs have no types
        self._place = place
        self._stub = stub

    async def set_all(self, sets: _Sets) -> _Made:
        made = []
        for name, value in sets:
            request = _set_request(self._place, name, value)
            answer = await self._stub.SetVariable(request, timeout=_DEADLINE)
            made.append((name, value, _version(answer)))
        return made

    async def get_all(self, names: Iterator[str]) -> _Made:
        made = []
        for name in names:
            request = _get_request(self._place, name)
            got = (await self._stub.GetVariable(request, timeout=_DEADLINE)).variable
            made.append((name, json.loads(got.value.value), got.version))
        return made

    async def watch(self, count: int) -> list[_Update]:
        call = self._stub.WatchVariables(_watch_request(self._place), timeout=_WATCHING)
        updates = []
        async for update in call:
            updates.append(_read(update))
            if len(updates) == count:
                break
        call.cancel()
        return updates


class _AsyncClient:
    def __init__(self, place: Place, session: AsyncSession) -> None:
        self._place = place
        self._session = session

    async def set_all(self, sets: _Sets) -> _Made:
        made = []
        for name, value in sets:
            made.append((name, value, (await self._session.set(name, value)).version))
        return made

    async def get_all(self, names: Iterator[str]) -> _Made:
        made = []
        for name in names:
            got = await self._session.get(name)
            made.append((name, got.value, got.version))
        return made

    async def watch(self, count: int) -> list[_Update]:
        updates: list[_Update] = []
        async with self._session.watch(bookmark=Bookmark(self._place.epoch, 0, 0)) as watch:
            async for change in watch:
                mark = watch.bookmark.offset
                told = _Update(change.offset, change.name, change.version, change.new, mark)
                updates.append(told)
                if len(updates) == count:
                    break
        return updates


class _OnLoop:
    """An asynchronous side, driven from outside its event loop."""

    def __init__(self, side: _AsyncStubs | _AsyncClient, runner: asyncio.Runner) -> None:
        self._side = side
        self._run: Callable[[Coroutine[Any, Any, Any]], Any] = runner.run

    def set_all(self, sets: _Sets) -> _Made:
        made: _Made = self._run(self._side.set_all(sets))
        return made

    def get_all(self, names: Iterator[str]) -> _Made:
        made: _Made = self._run(self._side.get_all(names))
        return made

    def watch(self, count: int) -> list[_Update]:
        updates: list[_Update] = self._run(self._side.watch(count))
        return updates


class _Runs:
    """What both sides have set so far."""

    def __init__(self, place: Place, client: _Side, stubs: _Side) -> None:
        self._place = place
        self._sides = {True: client, False: stubs}
        self._sent = 0
        self._now: dict[str, tuple[float, int]] = {}
        """Value and version of each variable."""

    def run(self, order: Order) -> Spent:
        """Do what is ordered.

        :raises BenchmarkError: an answer was wrong.
        """
        side = self._sides[order.client]
        if order.do == "updates":
            return self._watched(side, order.count)
        return self._called(side, order.count)

    def _called(self, side: _Side, count: int) -> Spent:
        names = list(itertools.islice(itertools.cycle(self._place.names), count))
        first, self._sent = self._sent + 1, self._sent + count
        sets = [(name, (first + number) * _STEP) for number, name in enumerate(names)]
        made, set_cpu, set_wall = _timed(lambda: side.set_all(iter(sets)), count)
        self._check_sets(sets, made)
        got, get_cpu, get_wall = _timed(lambda: side.get_all(iter(names)), count)
        for name, value, version in got:
            if (value, version) != self._now[name]:
                raise BenchmarkError(
                    f"{name} is {self._now[name]} and was read as {(value, version)}"
                )
        return Spent(set_cpu=set_cpu, set_wall=set_wall, get_cpu=get_cpu, get_wall=get_wall)

    def _check_sets(self, sets: Sequence[tuple[str, float]], made: _Made) -> None:
        if [(name, value) for name, value, _ in made] != sets:
            raise BenchmarkError("not every set was made")
        for name, value, version in made:
            _, before = self._now.get(name, (0.0, 1))
            if version != before + 1:
                raise BenchmarkError(f"{name} went from version {before} to {version}")
            self._now[name] = (value, version)

    def _watched(self, side: _Side, count: int) -> Spent:
        updates, cpu, wall = _timed(lambda: side.watch(count), count)
        first = 2 + len(self._place.names)  # after the session and its variables
        offsets = [update.offset for update in updates]
        if offsets != list(range(first, first + count)):
            raise BenchmarkError(f"{len(offsets)} updates came, not {count} from {first} on")
        versions = dict.fromkeys(self._place.names, 1)
        for update in updates:
            versions[update.name] += 1
            if (update.version, update.bookmark) != (versions[update.name], update.offset):
                raise BenchmarkError(f"{update} is version {versions[update.name]}")
        return Spent(update_cpu=cpu, update_wall=wall)


def _timed(work: Callable[[], Any], count: int) -> tuple[Any, float, float]:
    """Return the result, and microseconds of CPU and of time for each of ``count``."""
    cpu, wall = time.process_time_ns(), time.perf_counter_ns()
    result = work()
    cpu, wall = time.process_time_ns() - cpu, time.perf_counter_ns() - wall
    return result, cpu / count / 1e3, wall / count / 1e3


def _sides(place: Place, stack: ExitStack) -> tuple[_Side, _Side]:
    """Connect the client and the stubs."""
    target = f"127.0.0.1:{place.port}"
    if not place.asynchronous:
        client = stack.enter_context(Client(target))
        channel = stack.enter_context(grpc.insecure_channel(target))
        return (
            _Client(place, client.session(place.session)),
            _Stubs(place, BridgeServiceStub(channel)),
        )
    runner = stack.enter_context(asyncio.Runner())

    async def connect() -> tuple[_AsyncClient, _AsyncStubs]:
        client = AsyncClient(target)
        channel = grpc.aio.insecure_channel(target)
        stack.callback(lambda: runner.run(client.close()))
        stack.callback(lambda: runner.run(channel.close()))
        return (
            _AsyncClient(place, client.session(place.session)),
            _AsyncStubs(place, BridgeServiceStub(channel)),
        )

    ours, stubs = runner.run(connect())
    return _OnLoop(ours, runner), _OnLoop(stubs, runner)


def main() -> None:
    place = Place(**json.loads(sys.stdin.readline()))
    with ExitStack() as stack:
        runs = _Runs(place, *_sides(place, stack))
        print("OPEN", flush=True)
        for line in sys.stdin:
            print(json.dumps(asdict(runs.run(Order(**json.loads(line))))), flush=True)


if __name__ == "__main__":
    try:
        main()
    except (BenchmarkError, grpc.RpcError) as failed:
        raise SystemExit(str(failed)) from failed
