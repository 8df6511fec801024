"""Many variables at a time, over a socket: GetVariables and SetVariables."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from snakepit_bridge import bridge_service_pb2 as pb
from tests.bridge_process import BridgeProcess
from tests.wire_session import TIMEOUT, Session, as_duplicate, packed, plain, refused


@pytest.fixture
def session(bridge: BridgeProcess, request: pytest.FixtureRequest) -> Session:
    """A session with the integers a, b and c, at most 10; its head is 4."""
    session = Session(bridge, request.node.name)
    populate(session)
    return session


def populate(session: Session) -> str:
    """Give it a, b and c at the offsets 2, 3 and 4; answers with its epoch."""
    for name in ("a", "b", "c"):
        session.register(name, 0, constraints_json='{"max": 10}')
    epoch: str = session.call("GetSession").log_epoch
    return epoch


def ints(**values: object) -> dict[str, AnyMessage]:
    return {name: packed(value) for name, value in values.items()}


def state(session: Session) -> dict[str, tuple[int, int]]:
    """Value and version of each variable."""
    variables = session.call("ListVariables").variables
    return {each.name: (plain(each.value), each.version) for each in variables}


UNTOUCHED = {"a": (0, 1), "b": (0, 1), "c": (0, 1)}

both_kinds = pytest.mark.parametrize("atomic", [True, False], ids=["atomic", "loose"])


def test_a_batch_is_read_by_what_was_asked(session: Session) -> None:
    session.delete("c")
    asked = ["b", "var_a_2", "nothing", "a", "c", "var_c_4", "b", "", "nothing"]
    response = session.call("GetVariables", variable_identifiers=asked)
    assert dict(response.variables) == {
        "a": session.get("a"),
        "var_a_2": session.get("a"),
        "b": session.get("b"),
    }
    assert sorted(response.missing_variables) == ["", "c", "nothing", "var_c_4"]
    assert (response.offset, response.log_epoch) == (5, session.call("GetSession").log_epoch)


@pytest.mark.parametrize("include", [True, False])
def test_a_batch_is_complete_whatever_is_asked_of_it(session: Session, include: bool) -> None:
    session.set("a", 1, metadata={"k": "v"})
    fields = {"include_metadata": include, "bypass_cache": include}
    response = session.call("GetVariables", variable_identifiers=["a"], **fields)
    assert response.variables["a"] == session.get("a")
    assert dict(response.variables["a"].metadata) == {"k": "v"}


def test_an_empty_batch_reads_nothing(session: Session) -> None:
    response = session.call("GetVariables")
    assert (dict(response.variables), list(response.missing_variables)) == ({}, [])
    assert response.offset == 4


def test_a_batch_of_ten_thousand_is_read(session: Session) -> None:
    asked = ["a", *(f"x{n}" for n in range(9_999))]
    response = session.call("GetVariables", variable_identifiers=asked)
    assert (list(response.variables), len(response.missing_variables)) == (["a"], 9_999)


def test_an_atomic_batch_is_one_transaction_in_the_order_of_its_keys(session: Session) -> None:
    epoch = session.call("GetSession").log_epoch
    response = session.set_many(ints(c=3, a=1, b=2), atomic=True, metadata={"source": "python"})
    assert response == pb.BatchSetVariablesResponse(
        success=True, new_versions={"a": 2, "b": 2, "c": 2}, offset=7, log_epoch=epoch
    )
    assert state(session) == {"a": (1, 2), "b": (2, 2), "c": (3, 2)}
    changed = [session.history(name).entries[0] for name in ("a", "b", "c")]
    assert [entry.offset for entry in changed] == [5, 6, 7]
    assert len({entry.timestamp.ToNanoseconds() for entry in changed}) == 1
    assert [dict(entry.metadata) for entry in changed] == [{"source": "python"}] * 3


def test_a_loose_batch_is_written_in_the_order_of_its_keys(session: Session) -> None:
    epoch = session.call("GetSession").log_epoch
    response = session.set_many(ints(c=3, a=1, b=2), metadata={"k": "v"})
    assert response == pb.BatchSetVariablesResponse(
        success=True, new_versions={"a": 2, "b": 2, "c": 2}, offset=7, log_epoch=epoch
    )
    assert [session.get(name).offset for name in ("a", "b", "c")] == [5, 6, 7]
    assert [dict(session.get(name).metadata) for name in ("a", "b", "c")] == [{"k": "v"}] * 3


def test_an_atomic_batch_with_a_fault_changes_nothing_and_tells_each(session: Session) -> None:
    epoch = session.call("GetSession").log_epoch
    response = session.set_many(
        {**ints(a=1, b=11), "c": packed("text")}, atomic=True, expected_versions={"a": 1}
    )
    assert (response.success, sorted(response.errors)) == (False, ["b", "c"])
    assert "above maximum 10" in response.errors["b"]
    assert "must be an integer" in response.errors["c"]
    assert dict(response.new_versions) == {}
    assert (response.offset, response.log_epoch, response.duplicate) == (0, epoch, False)
    assert state(session) == UNTOUCHED
    assert session.head == 4


def test_a_loose_batch_with_a_fault_writes_the_others(session: Session) -> None:
    response = session.set_many(ints(a=1, b=11, c=3))
    assert (response.success, list(response.errors)) == (True, ["b"])
    assert "above maximum 10" in response.errors["b"]
    assert dict(response.new_versions) == {"a": 2, "c": 2}
    assert response.offset == session.head == 6
    assert state(session) == {"a": (1, 2), "b": (0, 1), "c": (3, 2)}


def test_a_loose_batch_of_faults_is_a_success_that_wrote_nothing(session: Session) -> None:
    response = session.set_many(ints(a=11, b=12))
    assert (response.success, sorted(response.errors)) == (True, ["a", "b"])
    assert (dict(response.new_versions), response.offset) == ({}, 0)
    assert session.head == 4


@both_kinds
def test_expected_versions_are_per_key(session: Session, atomic: bool) -> None:
    session.set("b", 1)
    response = session.set_many(
        ints(a=2, b=2, c=2), atomic=atomic, expected_versions={"a": 1, "b": 1, "c": 0}
    )
    assert (response.success, list(response.errors)) == (not atomic, ["b"])
    assert "'b' is at version 2, expected 1" in response.errors["b"]
    assert dict(response.new_versions) == ({} if atomic else {"a": 2, "c": 2})
    assert state(session)["a"] == ((0, 1) if atomic else (2, 2))
    negative = session.set_many(ints(a=3), atomic=atomic, expected_versions={"a": -1})
    assert "-1" in negative.errors["a"]
    assert "negative" in negative.errors["a"]


@both_kinds
def test_keys_may_be_ids(session: Session, atomic: bool) -> None:
    updates = {"var_a_2": packed(1), "b": packed(2)}
    response = session.set_many(updates, atomic=atomic, expected_versions={"var_a_2": 1})
    assert dict(response.new_versions) == {"b": 2, "var_a_2": 2}
    assert state(session) == {"a": (1, 2), "b": (2, 2), "c": (0, 1)}
    assert session.get("b").offset == 5
    wrong = session.set_many({"var_a_2": packed(11)}, atomic=atomic)
    assert list(wrong.errors) == ["var_a_2"]


@both_kinds
def test_an_unknown_variable_fails_the_batch(session: Session, atomic: bool) -> None:
    session.delete("c")
    for unknown in ("nothing", "c", "var_c_4", ""):
        with refused("INVALID_ARGUMENT", f"'{unknown}' not found"):
            session.set_many({**ints(a=1), unknown: packed(1)}, atomic=atomic)
    assert session.head == 5


@both_kinds
def test_a_variable_named_twice_fails_the_batch(session: Session, atomic: bool) -> None:
    with refused("INVALID_ARGUMENT", "'a'", "'var_a_2'", "same variable"):
        session.set_many(ints(a=1, var_a_2=2, b=3), atomic=atomic)
    assert session.head == 4


@both_kinds
def test_an_expected_version_without_an_update_fails_the_batch(
    session: Session, atomic: bool
) -> None:
    with refused("INVALID_ARGUMENT", "'b'", "expected_versions"):
        session.set_many(ints(a=1), atomic=atomic, expected_versions={"b": 1})
    assert session.head == 4


@both_kinds
def test_binary_bytes_without_an_update_fail_the_batch(session: Session, atomic: bool) -> None:
    with refused("INVALID_ARGUMENT", "'b'", "binary_updates"):
        session.set_many(ints(a=1), atomic=atomic, binary_updates={"b": b"1"})
    assert session.head == 4


@both_kinds
def test_binary_bytes_beside_json_are_a_fault_of_their_key(session: Session, atomic: bool) -> None:
    response = session.set_many(ints(a=1, b=1), atomic=atomic, binary_updates={"b": b"1"})
    assert (response.success, list(response.errors)) == (not atomic, ["b"])
    assert "binary" in response.errors["b"]


@both_kinds
def test_an_empty_batch_writes_nothing(session: Session, atomic: bool) -> None:
    epoch = session.call("GetSession").log_epoch
    response = session.set_many({}, atomic=atomic, request_id="r")
    assert response == pb.BatchSetVariablesResponse(success=True, log_epoch=epoch)
    assert session.head == 4


def test_values_of_a_batch_keep_their_prefix(session: Session) -> None:
    session.set_many({"a": packed(1, prefix="type.googleapis.com/snakepit.")}, atomic=True)
    assert session.get("a").value.type_url == "type.googleapis.com/snakepit.integer"


@both_kinds
def test_of_two_entries_with_one_key_the_last_counts(session: Session, atomic: bool) -> None:
    first = pb.BatchSetVariablesRequest(
        session_id=session.id, updates=ints(a=1, b=2), expected_versions={"a": 9}
    )
    second = pb.BatchSetVariablesRequest(
        updates=ints(a=3), expected_versions={"a": 1}, atomic=atomic
    )
    # Joined encodings are the encoding of a message with the entries of both.
    call: Any = session.bridge.channel.unary_unary("/snakepit.bridge.BridgeService/SetVariables")
    raw = call(first.SerializeToString() + second.SerializeToString(), timeout=TIMEOUT)
    response = pb.BatchSetVariablesResponse.FromString(raw)
    assert dict(response.new_versions) == {"a": 2, "b": 2}
    assert plain(session.get("a").value) == 3


def test_an_atomic_batch_is_seen_as_a_whole(session: Session) -> None:
    def write() -> None:
        for n in range(1, 101):
            session.set_many({name: packed(n % 10) for name in ("a", "b", "c")}, atomic=True)

    torn: list[Any] = []
    offset = 0
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        while not writing.done():
            response = session.call("GetVariables", variable_identifiers=["a", "b", "c"])
            versions = {each.version for each in response.variables.values()}
            if len(versions) > 1 or response.offset < offset or response.offset % 3 != 1:
                torn.append(response)
            offset = response.offset
        writing.result()
    assert torn == []
    assert state(session) == dict.fromkeys(("a", "b", "c"), (0, 101))


def test_a_retry_of_a_loose_batch_writes_what_was_refused(session: Session) -> None:
    epoch = session.call("GetSession").log_epoch
    fields = {"expected_versions": {"b": 2}, "request_id": "r"}
    first = session.set_many(ints(a=1, b=2, c=3), **fields)
    assert (dict(first.new_versions), list(first.errors)) == ({"a": 2, "c": 2}, ["b"])

    second = session.set_many(ints(a=1, b=2, c=3), **fields)
    assert dict(second.new_versions) == {"a": 2, "c": 2}
    assert (second.errors, second.offset) == (first.errors, first.offset)
    assert second.duplicate  # of every accepted key
    assert session.head == 6

    session.set("a", 9)
    session.set("b", 9)
    third = session.set_many(ints(a=1, b=2, c=3), **fields)
    assert third == pb.BatchSetVariablesResponse(
        success=True, new_versions={"a": 2, "b": 3, "c": 2}, offset=9, log_epoch=epoch
    )
    assert state(session) == {"a": (9, 3), "b": (2, 3), "c": (3, 2)}

    assert session.set_many(ints(a=1, b=2, c=3), **fields) == as_duplicate(third)
    assert session.head == 9


def test_keys_of_a_loose_batch_are_remembered_through_deletion(session: Session) -> None:
    first = session.set_many(ints(a=1, b=1), request_id="r")
    session.delete("a")
    session.register("a", 5)
    assert session.set_many(ints(a=1, b=1), request_id="r") == as_duplicate(first)
    assert plain(session.get("a").value) == 5


def test_the_id_of_a_loose_batch_is_no_other_requests(session: Session) -> None:
    session.set_many(ints(a=1), request_id="r")
    with refused("INVALID_ARGUMENT", "request_id"):
        session.set("a", 1, request_id="r")
    with refused("INVALID_ARGUMENT", "request_id"):
        session.set_many(ints(a=1), request_id="r", atomic=True)
    with refused("INVALID_ARGUMENT", "request_id"):
        session.set_many(ints(a=1, b=1), request_id="r")
    assert session.head == 5


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "stopped"])
def test_keys_of_a_loose_batch_are_known_after_a_restart(tmp_path: Path, killed: bool) -> None:
    fields = {"expected_versions": {"b": 2}, "request_id": "r"}
    with BridgeProcess(tmp_path / "bridge.db") as bridge:
        session = Session(bridge, "s")
        epoch = populate(session)
        first = session.set_many(ints(a=1, b=2, c=3), **fields)
        whole = session.set_many(ints(a=5, c=5), atomic=True, request_id="r2")
        if killed:
            bridge.kill()
        else:
            assert bridge.stop() == 0
    with BridgeProcess(tmp_path / "bridge.db") as bridge:
        session = Session(bridge, "s")
        assert session.set_many(ints(a=1, b=2, c=3), **fields) == as_duplicate(first)
        assert session.set_many(ints(a=5, c=5), atomic=True, request_id="r2") == as_duplicate(whole)
        assert session.head == 8
        session.set("b", 1)
        assert session.set_many(ints(a=1, b=2, c=3), **fields) == pb.BatchSetVariablesResponse(
            success=True, new_versions={"a": 2, "b": 3, "c": 2}, offset=10, log_epoch=epoch
        )
        assert state(session) == {"a": (5, 3), "b": (2, 3), "c": (5, 3)}
        assert bridge.stop() == 0
