"""Guarantees 6 and 7: of writers who expect the same version one wins; a retry is no write."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge import bridge_service_pb2_grpc as stubs
from snakepit_bridge.commands import (
    CleanupSession,
    Command,
    DeleteVariable,
    InitializeSession,
    PastValue,
    RegisterVariable,
    RollbackVariable,
    SetVariable,
    SetVariables,
)
from snakepit_bridge.errors import (
    EpochMismatch,
    FailedPrecondition,
    RequestIdReused,
    VersionConflict,
)
from snakepit_bridge.events.log import EventLog
from snakepit_bridge.events.memory import MemoryLog
from snakepit_bridge.events.model import Envelope
from snakepit_bridge.events.reading import fold
from snakepit_bridge.events.sqlite import SqliteLog
from snakepit_bridge.events.tasks import Outcome
from tests.bridge_process import BridgeProcess
from tests.direct import PATIENCE, Direct, folded, integer

ROUNDS = 10_000
VARIABLES = 50


def value(number: int) -> AnyMessage:
    return AnyMessage(type_url="dspex.variables/integer", value=b"%d" % number)


async def test_of_two_writers_who_expect_one_version_exactly_one_wins(tmp_path: Path) -> None:
    """10,000 rounds over the wire, each client on a connection of its own."""
    with BridgeProcess(tmp_path / "bridge.db") as bridge:
        address = f"127.0.0.1:{bridge.port}"
        # Without a pool of their own the two channels would share one connection.
        apart = (("grpc.use_local_subchannel_pool", 1),)
        async with (
            grpc.aio.insecure_channel(address, options=apart) as one,
            grpc.aio.insecure_channel(address, options=apart) as other,
        ):
            writers: list[Any] = [stubs.BridgeServiceStub(channel) for channel in (one, other)]
            wins = await asyncio.gather(*(race(writers, f"x{n}") for n in range(VARIABLES)))
        session = bridge.stub.GetSession(pb.GetSessionRequest(session_id="s"))
        assert session.offset == 1 + VARIABLES + ROUNDS  # nothing was appended for a loser
        for n in range(VARIABLES):
            history = bridge.stub.GetVariableHistory(
                pb.GetVariableHistoryRequest(session_id="s", variable_identifier=f"x{n}")
            )
            told = [(e.version, int(e.value.value), e.offset) for e in history.entries[:-1]]
            assert told[::-1] == wins[n]
        assert bridge.stop() == 0


async def race(writers: list[Any], name: str) -> list[tuple[int, int, int]]:
    """Give version, value and offset of each round's winner."""
    await writers[0].RegisterVariable(
        pb.RegisterVariableRequest(
            session_id="s", name=name, type="integer", initial_value=value(0)
        )
    )
    won = []
    for version in range(1, 1 + ROUNDS // VARIABLES):
        requests = [
            pb.SetVariableRequest(
                session_id="s",
                variable_identifier=name,
                value=value(2 * version + index),
                expected_version=version,
            )
            for index in range(2)
        ]
        results: list[Any] = await asyncio.gather(
            *(
                writer.SetVariable(request)
                for writer, request in zip(writers, requests, strict=True)
            ),
            return_exceptions=True,
        )
        (winner,) = [n for n, r in enumerate(results) if isinstance(r, pb.SetVariableResponse)]
        assert results[winner].new_version == version + 1
        lost = results[1 - winner]
        assert isinstance(lost, grpc.aio.AioRpcError)
        assert lost.code() is grpc.StatusCode.ABORTED
        assert f"at version {version + 1}, expected {version}" in str(lost.details())
        won.append((version + 1, 2 * version + winner, results[winner].offset))
    return won


def test_of_two_threads_who_expect_one_version_exactly_one_wins(tmp_path: Path) -> None:
    """The same without a network between: both meet in one batch, or in two."""
    with Direct(SqliteLog(tmp_path / "bridge.db")) as direct:
        direct.ask(RegisterVariable(Envelope("s"), "x", "integer", integer(0)))
        rounds = 1_000
        barrier = threading.Barrier(2, timeout=PATIENCE)
        results: list[list[object]] = [[], []]

        def write(index: int) -> None:
            for version in range(1, 1 + rounds):
                barrier.wait()
                command = SetVariable(Envelope("s"), "x", integer(index), version)
                results[index] += direct.ask_all(command)

        threads = [threading.Thread(target=write, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results[0]) == len(results[1]) == rounds
        for number, pair in enumerate(zip(*results, strict=True), 2):
            (won,) = [result for result in pair if isinstance(result, Outcome)]
            (lost,) = [result for result in pair if isinstance(result, VersionConflict)]
            assert won.answer[:2] == (number + 1, number)
            assert lost.facts == {"expected": str(number - 1), "actual": str(number)}
        assert direct.loaded("s").committed.head == 2 + rounds


# What a client may repeat: each command, and what must come before it.
TWO = (("x", integer(1)), ("y", integer(2)))


def once(request_id: str = "") -> Envelope:
    return Envelope("s", request_id)


PREPARED: tuple[Command, ...] = (
    RegisterVariable(once(), "x", "integer", integer(0)),
    RegisterVariable(once(), "y", "integer", integer(0)),
    SetVariable(once(), "x", integer(5)),
)

COMMANDS: dict[str, tuple[tuple[Command, ...], Command]] = {
    "initialize": ((), InitializeSession(once("id"), {"owner": "me"})),
    "register first": ((), RegisterVariable(once("id"), "x", "integer", integer(0))),
    "register": (PREPARED, RegisterVariable(once("id"), "z", "integer", integer(0))),
    "set": (PREPARED, SetVariable(once("id"), "x", integer(1))),
    "set expecting": (PREPARED, SetVariable(once("id"), "x", integer(1), 2)),
    "set all": (PREPARED, SetVariables(once("id"), TWO, atomic=True)),
    "set all expecting": (
        PREPARED,
        SetVariables(once("id"), TWO, atomic=True, expected_versions={"x": 2, "y": 1}),
    ),
    "set each": (PREPARED, SetVariables(once("id"), TWO, atomic=False)),
    "delete": (PREPARED, DeleteVariable(once("id"), "x", 2)),
    "roll back": (
        PREPARED,
        RollbackVariable(once("id"), "x", 1, PastValue("var_x_2", integer(0).accept("integer")[1])),
    ),
    "clean up": (PREPARED, CleanupSession(once("id"), "cleanup")),
}


def told(command: Command, outcome: Outcome) -> tuple[object, ...]:
    """What a client is answered, but for whether it is a duplicate."""
    answer = outcome.answer
    number = answer.number if isinstance(command, SetVariable | CleanupSession) else 0
    batch = (dict(answer.versions), dict(answer.errors), answer.refused)
    return (answer.offset, number, *batch, *outcome[1:])


def records_of(engine: EventLog, direct: Direct) -> int:
    """How many records bear the request id."""
    log = direct.loaded("s").id
    return sum(t.record.request.id == "id" for t in fold(engine, log))


@pytest.mark.parametrize(("before", "command"), COMMANDS.values(), ids=COMMANDS)
def test_a_retry_gets_the_first_answer_and_appends_nothing(
    tmp_path: Path, before: tuple[Command, ...], command: Command
) -> None:
    """At once, in the same batch, from many threads, and after a restart."""
    path = tmp_path / "bridge.db"
    with Direct(SqliteLog(path)) as direct:
        for each in before:
            direct.ask(each)
        batch = direct.ask_all(command, command)
        with_others = [direct.submit(command) for _ in range(20)]
        late = [result for future in with_others for result in future.result(PATIENCE)]
        outcomes = [result for result in (*batch, *late) if isinstance(result, Outcome)]
        assert len(outcomes) == 22
        assert [outcome.answer.duplicate for outcome in outcomes] == [False] + [True] * 21
        first = told(command, outcomes[0])
        assert all(told(command, outcome) == first for outcome in outcomes)
        stored = records_of(direct.engine, direct)
        assert stored == (2 if isinstance(command, SetVariables) and not command.atomic else 1)
        head, digest = direct.loaded("s").committed.head, direct.loaded("s").committed.digest
    with Direct(SqliteLog(path)) as direct:
        again = direct.ask(command)
        assert again.answer.duplicate
        assert told(command, again) == first
        state = direct.loaded("s").committed
        assert (state.head, state.digest) == (head, digest)
        assert records_of(direct.engine, direct) == stored


LATER: dict[str, Callable[[], Command]] = {
    "set": lambda: SetVariable(once(), "x", integer(77)),
    "set with metadata": lambda: SetVariable(
        once()._replace(metadata={"later": "yes"}), "x", integer(77)
    ),
    "delete": lambda: DeleteVariable(once(), "x"),
    "clean up": lambda: CleanupSession(once(), "cleanup"),
}


@pytest.mark.parametrize("restart", [False, True], ids=["", "restart"])
@pytest.mark.parametrize("later", LATER.values(), ids=LATER)
@pytest.mark.parametrize("name", [n for n in COMMANDS if n not in ("clean up", "delete")])
def test_a_retry_gets_the_first_answer_whatever_came_between(
    name: str, later: Callable[[], Command], restart: bool
) -> None:
    """Also when the variable or the session of the first request is gone by then."""
    before, command = COMMANDS[name]
    engine = MemoryLog()
    direct = Direct(engine)
    for each in before:
        direct.ask(each)
    first = direct.ask(command)
    if name == "initialize":
        direct.ask(RegisterVariable(once(), "x", "integer", integer(0)))
    direct.ask(later())
    head = direct.loaded("s").committed.head
    if restart:
        direct.close()
        direct = Direct(engine)
    with direct:
        again = direct.ask(command)
        assert again.answer.duplicate
        assert told(command, again) == told(command, first)
        assert direct.loaded("s").committed.head == head


def test_a_retry_does_not_revive_an_ended_session() -> None:
    with Direct(MemoryLog()) as direct:
        start = InitializeSession(once("id"))
        epoch = direct.ask(start).log_epoch
        direct.ask(CleanupSession(once(), "cleanup"))
        assert direct.ask(start).answer.duplicate
        assert direct.loaded("s").committed.ended
        anew = direct.ask(InitializeSession(once("other")))
        assert anew.log_epoch != epoch
        assert not direct.loaded("s").committed.ended


def test_a_late_write_does_not_revive_an_ended_session() -> None:
    """It names the log that it is meant for."""
    with Direct(MemoryLog()) as direct:
        epoch = direct.ask(InitializeSession(once())).log_epoch
        late: tuple[Command, ...] = (
            InitializeSession(once()._replace(log_epoch=epoch)),
            RegisterVariable(once()._replace(log_epoch=epoch), "x", "integer", integer(0)),
            RegisterVariable(once("id")._replace(log_epoch=epoch), "x", "integer", integer(0)),
            SetVariable(once()._replace(log_epoch=epoch), "x", integer(1)),
            CleanupSession(once()._replace(log_epoch=epoch), "cleanup"),
        )
        direct.ask(CleanupSession(once(), "cleanup"))
        for command in late[:3]:
            with pytest.raises(FailedPrecondition, match="has ended"):
                direct.ask(command)
        assert direct.loaded("s").committed.ended
        assert direct.loaded("s").id.epoch == epoch
        # Begun anew by somebody else: then it is another log.
        direct.ask(RegisterVariable(once(), "x", "integer", integer(0)))
        for command in late:
            with pytest.raises(EpochMismatch, match=epoch):
                direct.ask(command)
        assert direct.loaded("s").committed.head == 2
        for command in late[:3]:
            elsewhere = command.envelope._replace(session_id="nobody")
            with pytest.raises(EpochMismatch):
                direct.ask(command._replace(envelope=elsewhere))
        assert direct.committer.loaded("nobody") is None


def test_an_id_belongs_to_one_request() -> None:
    """Of one method, with one payload; trace and correlation do not count."""
    for name, (before, command) in COMMANDS.items():
        with Direct(MemoryLog()) as direct:
            for each in before:
                direct.ask(each)
            direct.ask(command)
            head = direct.loaded("s").committed.head
            for other_name, (_, other) in COMMANDS.items():
                if other_name != name:
                    with pytest.raises(RequestIdReused, match="was used before"):
                        direct.ask(other)
            changed = command._replace(
                envelope=command.envelope._replace(metadata={"reason": "another"})
            )
            with pytest.raises(RequestIdReused, match="another"):
                direct.ask(changed)
            origin = command.envelope.origin._replace(traceparent="00-1", correlation_id="c")
            traced = command._replace(envelope=command.envelope._replace(origin=origin))
            assert direct.ask(traced).answer.duplicate
            assert direct.loaded("s").committed.head == head


def test_a_refused_request_is_decided_anew() -> None:
    with Direct(MemoryLog()) as direct:
        for each in PREPARED:
            direct.ask(each)
        command = SetVariable(once("id"), "x", integer(1), expected_version=3)
        with pytest.raises(VersionConflict):
            direct.ask(command)
        direct.ask(SetVariable(once(), "x", integer(9)))
        assert not direct.ask(command).answer.duplicate


async def test_concurrent_retries_over_the_wire_append_once(tmp_path: Path) -> None:
    """Also over two connections, and after a kill -9."""
    ids = 200

    async def all_twice(*writers: Any) -> list[list[pb.SetVariableResponse]]:  # noqa: ANN401
        def send(writer: Any, number: int) -> Awaitable[pb.SetVariableResponse]:  # noqa: ANN401
            request = pb.SetVariableRequest(
                session_id="s",
                variable_identifier="x",
                value=value(number),
                request_id=f"request {number}",
            )
            answer: Awaitable[pb.SetVariableResponse] = writer.SetVariable(request)
            return answer

        return await asyncio.gather(
            *(asyncio.gather(*(send(w, number) for w in writers)) for number in range(ids))
        )

    apart = (("grpc.use_local_subchannel_pool", 1),)
    path = tmp_path / "bridge.db"
    seen: Counter[tuple[int, int]] = Counter()
    for start in range(2):
        with BridgeProcess(path) as bridge:
            address = f"127.0.0.1:{bridge.port}"
            if start == 0:
                bridge.stub.RegisterVariable(
                    pb.RegisterVariableRequest(
                        session_id="s", name="x", type="integer", initial_value=value(0)
                    )
                )
            async with (
                grpc.aio.insecure_channel(address, options=apart) as one,
                grpc.aio.insecure_channel(address, options=apart) as other,
            ):
                writers: list[Any] = [stubs.BridgeServiceStub(c) for c in (one, other)]
                answers = await all_twice(writers[0], writers[1], writers[0])
            for same in answers:
                assert len({(a.offset, a.new_version, a.log_epoch) for a in same}) == 1
                assert sum(not a.duplicate for a in same) == (1 if start == 0 else 0)
                seen[same[0].offset, same[0].new_version] += 1
            bridge.kill()
    assert len(seen) == ids
    assert set(seen.values()) == {2}
    engine = SqliteLog(path)
    head = engine.latest("s")
    assert head is not None
    assert folded(engine, head.log).head == 2 + ids
    engine.close()
