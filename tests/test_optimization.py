"""Optimizers lock variables: over a socket, as the wire contract says."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from snakepit_bridge import bridge_service_pb2 as pb
from tests.bridge_process import BridgeProcess
from tests.wire_session import Session, as_duplicate, packed, plain, refused

TTL = 0.2
"""Seconds after which a lock is stale at the second bridge."""
PATIENCE = 20.0


def begin(session: Session, name: str = "x", optimizer: str = "mipro", **fields: Any) -> Any:  # noqa: ANN401
    return session.call(
        "StartOptimization", variable_identifier=name, optimizer_id=optimizer, **fields
    )


def stop(session: Session, name: str = "x", **fields: Any) -> Any:  # noqa: ANN401
    return session.call("StopOptimization", variable_identifier=name, **fields)


def told(session: Session) -> list[tuple[int, int, str]]:
    """The history of x: version, value, who."""
    entries = session.history("x").entries
    return [(entry.version, plain(entry.value), entry.changed_by) for entry in entries]


@pytest.fixture
def locked(session: Session) -> str:
    """Variable x = 1 at offset 2, under the optimizer "mipro" since offset 3; gives the key."""
    session.register("x", 1)
    key: str = begin(session).optimization_id
    return key


def test_a_start_answers_the_key_and_shows_on_the_variable(session: Session) -> None:
    registered = session.register("x", 1)
    before = session.get("x")
    assert not before.HasField("optimization_status")
    answer = begin(session, optimizer_config={"trials": "3"})
    assert answer == pb.StartOptimizationResponse(
        success=True,
        optimization_id=answer.optimization_id,
        offset=3,
        log_epoch=registered.log_epoch,
    )
    assert answer.optimization_id
    shown = session.get("x")
    status = shown.optimization_status
    assert (status.optimizing, status.optimizer_id) == (True, "mipro")
    assert status.started_at.ToNanoseconds() >= before.last_updated_at.ToNanoseconds()
    shown.ClearField("optimization_status")
    assert shown == before  # it is no version
    (listed,) = session.call("ListVariables").variables
    assert listed.optimization_status == status
    initial = session.start().initial_variables["x"]
    assert initial.optimization_status == status
    many = session.call("GetVariables", variable_identifiers=["x"]).variables["x"]
    assert many.optimization_status == status


def test_a_stop_answers_the_final_value_and_unlocks(session: Session, locked: str) -> None:
    session.set("x", 7, optimization_id=locked)
    answer = stop(session, optimization_id=locked)
    assert answer.success
    assert plain(answer.final_value) == 7
    assert (answer.offset, answer.duplicate) == (5, False)
    assert not session.get("x").HasField("optimization_status")
    session.set("x", 8)
    assert told(session) == [(3, 8, "elixir"), (2, 7, "elixir"), (1, 1, "elixir")]


def test_the_final_value_may_be_in_binary_form(session: Session) -> None:
    value = packed({"shape": [2], "dtype": "uint8", "binary_format": "raw"}, "tensor.binary")
    session.call(
        "RegisterVariable",
        name="x",
        type="tensor",
        initial_value=value,
        initial_binary_value=b"\x01\x02",
    )
    begin(session)
    answer = stop(session, force=True)
    assert answer.final_value.type_url == value.type_url
    assert answer.final_binary_value == b"\x01\x02"


def test_nobody_else_writes_while_an_optimizer_is_at_work(session: Session, locked: str) -> None:
    session.register("y", 1)
    words = ("'x'", "'mipro'", "locked", "optimization_id")
    for wrong in ({}, {"optimization_id": "nonsense"}, {"metadata": {"optimization_id": "no"}}):
        with refused("FAILED_PRECONDITION", *words):
            session.set("x", 2, **wrong)
        with refused("FAILED_PRECONDITION", *words):
            session.roll_back("x", 1, **wrong)
        with refused("FAILED_PRECONDITION", *words):
            session.delete("x", **wrong)
        each = session.set_many({"x": packed(2), "y": packed(2)}, **wrong)
        assert (each.success, list(each.errors), list(each.new_versions)) == (True, ["x"], ["y"])
        for word in words:
            assert word in each.errors["x"]
        head = session.head
        both = session.set_many({"x": packed(2), "y": packed(2)}, atomic=True, **wrong)
        assert (both.success, list(both.errors), list(both.new_versions)) == (False, ["x"], [])
        assert session.head == head
    assert told(session) == [(1, 1, "elixir")]
    assert session.get("x").optimization_status.optimizing


@pytest.mark.parametrize("how", ["field", "metadata"])
def test_the_optimizer_itself_writes_in_every_way(session: Session, locked: str, how: str) -> None:
    key: dict[str, Any] = {"optimization_id": locked}
    if how == "metadata":
        key = {"metadata": key}
    assert session.set("x", 2, **key).new_version == 2
    assert session.set_many({"x": packed(3)}, **key).new_versions == {"x": 3}
    assert session.set_many({"x": packed(4)}, atomic=True, **key).new_versions == {"x": 4}
    assert session.roll_back("x", 2, **key).variable.version == 5
    assert [value for _, value, _ in told(session)] == [2, 4, 3, 2, 1]
    assert session.delete("x", **key).success
    assert session.register("x", 9).variable.version == 1
    assert not session.get("x").HasField("optimization_status")


def test_a_second_start_is_refused_and_so_is_a_stop_by_another(
    session: Session, locked: str
) -> None:
    for optimizer in ("simba", "mipro"):
        with refused("FAILED_PRECONDITION", "'x'", "'mipro'"):
            begin(session, optimizer=optimizer)
    for wrong in ({}, {"optimization_id": "nonsense"}):
        with refused("FAILED_PRECONDITION", "'x'", "'mipro'", "force"):
            stop(session, **wrong)
    assert session.head == 3
    assert plain(stop(session, optimization_id=locked).final_value) == 1


def test_force_stops_whoever_is_at_work_and_fences_what_comes_late(
    session: Session, locked: str
) -> None:
    assert stop(session, force=True).success
    late = {"optimization_id": locked}
    fenced = ("FAILED_PRECONDITION", "no longer holds", "'x'")
    with refused(*fenced):
        session.set("x", 2, **late)
    with refused(*fenced):
        session.roll_back("x", 1, **late)
    with refused(*fenced):
        session.delete("x", **late)
    assert "no longer holds" in session.set_many({"x": packed(2)}, **late).errors["x"]
    other = begin(session, optimizer="simba").optimization_id
    assert other != locked
    with refused("FAILED_PRECONDITION", "'simba'"):
        session.set("x", 2, optimization_id=locked)
    assert session.set("x", 2, optimization_id=other).new_version == 2


def test_nothing_running_cannot_be_stopped(session: Session) -> None:
    session.register("x", 1)
    for fields in ({}, {"force": True}, {"optimization_id": "any"}):
        with refused("FAILED_PRECONDITION", "no optimization is running", "'x'"):
            stop(session, **fields)
    for method in (begin, stop):
        with refused("NOT_FOUND", "'nobody'"):
            method(session, "nobody")
    with refused("INVALID_ARGUMENT", "optimizer_id", "256"):
        begin(session, optimizer="o" * 257)
    begin(session, optimizer="ö" * 128)
    assert session.head == 3


def test_variables_are_locked_one_by_one(session: Session, locked: str) -> None:
    id_ = session.get("x").id
    session.register("y", 1)
    other = begin(session, "y", "simba").optimization_id
    answer = session.set_many({"x": packed(2), "y": packed(2)}, optimization_id=locked)
    assert (list(answer.new_versions), list(answer.errors)) == (["x"], ["y"])
    assert "'simba'" in answer.errors["y"]
    with refused("FAILED_PRECONDITION", "'x'"):
        session.set(id_, 3)
    assert session.set(id_, 3, optimization_id=locked).new_version == 3
    stop(session, "y", optimization_id=other)
    # The key to one variable does no harm at another that is free.
    assert session.set("y", 3, optimization_id=locked).new_version == 2


def test_the_key_to_a_variable_with_an_odd_name_is_no_other_key(session: Session) -> None:
    session.register("a", 1)  # var_a_2
    session.register("a_2:b", 1)  # var_a_2:b_3
    key = begin(session, "a_2:b").optimization_id
    answer = session.set_many({"a": packed(2), "a_2:b": packed(2)}, optimization_id=key)
    assert answer.errors == {}


def test_retries_are_answered_as_the_first_time(session: Session) -> None:
    session.register("x", 1)
    first = begin(session, request_id="begin")
    assert begin(session, request_id="begin") == as_duplicate(first)
    session.set("x", 5, optimization_id=first.optimization_id, request_id="set")
    last = stop(session, optimization_id=first.optimization_id, request_id="stop")
    assert plain(last.final_value) == 5
    session.set("x", 6)
    assert stop(session, optimization_id=first.optimization_id, request_id="stop") == as_duplicate(
        last
    )
    assert begin(session, request_id="begin") == as_duplicate(first)
    again = session.set("x", 5, optimization_id=first.optimization_id, request_id="set")
    assert (again.duplicate, again.new_version) == (True, 2)
    for misused in ({"optimizer": "simba"}, {"optimizer_config": {"k": "v"}}):
        with refused("INVALID_ARGUMENT", "request_id"):
            begin(session, request_id="begin", **misused)
    with refused("INVALID_ARGUMENT", "request_id"):
        stop(session, request_id="stop", force=True)
    with refused("INVALID_ARGUMENT", "request_id"):
        stop(session, request_id="begin")
    assert session.head == 6


def test_a_lock_that_came_later_is_not_in_the_first_answer(session: Session) -> None:
    first = session.register("x", 1, request_id="register")
    key = begin(session).optimization_id
    assert session.register("x", 1, request_id="register") == as_duplicate(first)
    rolled = session.roll_back("x", 1, optimization_id=key, request_id="back")
    assert rolled.variable.optimization_status.optimizing
    stop(session, optimization_id=key)
    again = session.roll_back("x", 1, optimization_id=key, request_id="back")
    assert again == as_duplicate(rolled)


def test_a_forced_stop_and_its_retry(session: Session, locked: str) -> None:
    first = stop(session, force=True, request_id="stop")
    assert stop(session, force=True, request_id="stop") == as_duplicate(first)
    with refused("FAILED_PRECONDITION", "no optimization is running"):
        stop(session, force=True)


def test_the_wrong_epoch_starts_and_stops_nothing(session: Session, locked: str) -> None:
    session.register("y", 1)
    with refused("FAILED_PRECONDITION", "log_epoch"):
        begin(session, "y", log_epoch="nobody's")
    with refused("FAILED_PRECONDITION", "log_epoch"):
        stop(session, force=True, log_epoch="nobody's")


# Stale locks.


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BridgeProcess]:
    log = tmp_path_factory.mktemp("hasty") / "bridge.db"
    with BridgeProcess(log, "--optimization-ttl", f"{TTL}s") as process:
        yield process
        assert process.stop() == 0


@pytest.fixture
def rusty(hasty: BridgeProcess, request: pytest.FixtureRequest) -> Session:
    """Variable x = 1 under an optimizer that did nothing for too long."""
    session = Session(hasty, request.node.name)
    session.register("x", 1)
    session.register("y", 1)
    begin(session, request_id="begin")
    started = session.get("x").optimization_status.started_at.ToNanoseconds()
    end = time.monotonic() + PATIENCE
    while time.time_ns() < started + TTL * 1.5e9 and time.monotonic() < end:
        session.get("x")
    return session


@pytest.mark.parametrize("how", ["set", "roll back", "delete", "each", "atomic", "start"])
def test_the_next_command_takes_a_stale_lock_away(rusty: Session, how: str) -> None:
    assert rusty.get("x").optimization_status.optimizing  # reading does not
    assert rusty.head == 4
    match how:
        case "set":
            answer = rusty.set("x", 2)
        case "roll back":
            answer = rusty.roll_back("x", 1)
        case "delete":
            answer = rusty.delete("x")
        case "each" | "atomic":
            updates = {"x": packed(2), "y": packed(2)}
            answer = rusty.set_many(updates, atomic=how == "atomic")
            assert answer.errors == {}
        case "start":
            answer = begin(rusty, optimizer="simba")
            assert rusty.get("x").optimization_status.optimizer_id == "simba"
    # Offset 5 is the lock's end, in a transaction of its own.
    assert answer.offset == (7 if how in ("each", "atomic") else 6)


def test_a_command_that_is_refused_has_taken_the_lock_away_all_the_same(rusty: Session) -> None:
    with refused("ABORTED", "expected 9"):
        rusty.set("x", 2, expected_version=9)
    assert rusty.head == 5
    assert not rusty.get("x").HasField("optimization_status")
    with refused("FAILED_PRECONDITION", "no optimization is running"):
        stop(rusty, force=True)


def test_an_optimizer_comes_back_to_a_lock_that_nobody_took(rusty: Session) -> None:
    key = begin(rusty, request_id="begin").optimization_id
    assert rusty.set("x", 2, optimization_id=key).offset == 5
    assert rusty.get("x").optimization_status.optimizer_id == "mipro"
    with refused("FAILED_PRECONDITION", "'mipro'"):
        rusty.set("x", 3)  # it has just been used


def test_an_optimizer_whose_lock_was_taken_is_told(rusty: Session) -> None:
    key = begin(rusty, request_id="begin").optimization_id
    rusty.set("x", 2)
    with refused("FAILED_PRECONDITION", "no longer holds"):
        rusty.set("x", 3, optimization_id=key)
    with refused("FAILED_PRECONDITION", "no optimization is running"):
        stop(rusty, optimization_id=key)


# Across a restart.


def test_locks_outlive_the_bridge(tmp_path: Path) -> None:
    path = tmp_path / "bridge.db"
    with BridgeProcess(path) as process:
        session = Session(process, "s")
        session.register("x", 1)
        first = begin(session, request_id="begin")
        shown = session.get("x")
        process.kill()
    key = first.optimization_id
    for clean in (True, False):
        with BridgeProcess(path) as process:
            session = Session(process, "s")
            assert session.get("x") == shown
            with refused("FAILED_PRECONDITION", "'mipro'"):
                session.set("x", 2)
            assert begin(session, request_id="begin") == as_duplicate(first)
            session.set("x", 2, optimization_id=key)
            shown = session.get("x")
            if clean:
                assert process.stop() == 0
            else:
                process.kill()
    with BridgeProcess(path) as process:
        session = Session(process, "s")
        assert plain(stop(session, optimization_id=key).final_value) == 2
