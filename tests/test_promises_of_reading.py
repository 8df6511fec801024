"""What several variables are read as while somebody writes between any two steps of that."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import SimpleNamespace
from typing import NamedTuple, Self

import pytest

from snakepit_bridge import SessionContext, wire
from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge.bridge_servicer import BridgeServicer
from snakepit_bridge.decide import decider, recall
from snakepit_bridge.events.committer import Committer
from snakepit_bridge.events.gate import Gate
from snakepit_bridge.events.memory import MemoryLog
from tests.wire_session import plain

NAMES = ("x", "y", "z")

A_WHILE = 0.2
"""Seconds; what is not held up takes a few milliseconds."""


class Contested(str):
    """A name at each use of which somebody else has a while to write."""

    __slots__ = ("_writing",)

    _writing: Callable[[], Future[object]]

    def __new__(cls, name: str, writing: Callable[[], Future[object]]) -> Self:
        self = super().__new__(cls, name)
        self._writing = writing
        return self

    def __hash__(self) -> int:
        wait([self._writing()], A_WHILE)
        return super().__hash__()


class Found(NamedTuple):
    values: dict[str, int]
    offset: int


class Side(NamedTuple):
    """A session, and what answers for it over gRPC."""

    session: SessionContext
    committer: Committer


@pytest.fixture
def side() -> Iterator[Side]:
    committer = Committer(MemoryLog(), decider(), recall)
    committer.start()
    session = SessionContext("contested", committer=committer)
    for name in NAMES:
        session.register_variable(name, "integer", 0)
    yield Side(session, committer)
    session.close()
    committer.close()


async def _near(side: Side, names: Sequence[str], _: pytest.MonkeyPatch) -> Found:
    reading = side.session.read_variables(names)
    found = {str(name): each.value for name, each in reading.variables.items()}
    return Found(found, reading.offset)


async def _near_async(side: Side, names: Sequence[str], _: pytest.MonkeyPatch) -> Found:
    reading = await side.session.read_variables_async(names)
    found = {str(name): each.value for name, each in reading.variables.items()}
    return Found(found, reading.offset)


async def _far(side: Side, names: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> Found:
    """As at the bridge, but that the names of a request that was parsed would not be contested."""
    gate = Gate(side.committer, asyncio.get_running_loop(), 1 << 30)
    servicer = BridgeServicer(
        side.committer, gate, {}, lambda _: lambda _: None, max_message_bytes=1 << 20
    )
    request = SimpleNamespace(
        session_id="contested", variable_identifiers=names, log_epoch="", min_offset=0
    )
    with monkeypatch.context() as patched:
        patched.setattr(wire, "parse", lambda *_: request)
        raw = await servicer.queries["GetVariables"](b"")
    answer = pb.BatchGetVariablesResponse.FromString(raw)
    return Found(
        {name: plain(each.value) for name, each in answer.variables.items()}, answer.offset
    )


Read = Callable[[Side, Sequence[str], pytest.MonkeyPatch], Awaitable[Found]]


@pytest.mark.parametrize("read", [_near, _near_async, _far])
async def test_a_reading_is_of_one_moment(
    side: Side, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = side.session.read_variables([]).offset
    with ThreadPoolExecutor(1) as threads:
        writes: list[Future[object]] = []

        def writing() -> Future[object]:
            """The one write, which begins when a name is first looked up."""
            if not writes:
                updates = dict.fromkeys(NAMES, 1)
                writes.append(threads.submit(side.session.set_variables, updates))
            return writes[0]

        contested = [Contested(name, writing) for name in NAMES]
        found = await read(side, contested, monkeypatch)
        writes[0].result()
    assert found == (dict.fromkeys(NAMES, 0), head)
    assert await read(side, NAMES, monkeypatch) == (dict.fromkeys(NAMES, 1), head + len(NAMES))
