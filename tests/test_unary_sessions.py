"""Sessions over a socket: their life, their epochs, and retries of every change."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest

from snakepit_bridge import bridge_service_pb2 as pb
from tests.bridge_process import BridgeProcess
from tests.wire_session import (
    TIMEOUT,
    Session,
    as_duplicate,
    packed,
    plain,
    refused,
)


def test_ping_answers_with_the_message_and_the_time(bridge: BridgeProcess) -> None:
    before = time.time()
    response = bridge.stub.Ping(pb.PingRequest(message="là?"), timeout=TIMEOUT)
    assert "là?" in response.message
    assert before - 1 <= response.server_time.ToNanoseconds() / 1e9 <= time.time() + 1


def test_initialize_begins_a_session(session: Session) -> None:
    started = session.start(metadata={"user": "ann"})
    assert started == pb.InitializeSessionResponse(
        success=True, offset=1, log_epoch=started.log_epoch
    )
    assert started.log_epoch


def test_initialize_again_finds_it_and_the_first_metadata_stay(session: Session) -> None:
    first = session.start(metadata={"user": "ann"})
    session.register("x")
    second = session.start(metadata={"user": "bob", "more": "1"})
    assert (second.offset, second.log_epoch) == (2, first.log_epoch)
    assert not second.duplicate
    assert dict(session.call("GetSession").metadata) == {"user": "ann"}
    assert session.head == 2


def test_initialize_shows_the_state_at_its_offset(session: Session) -> None:
    session.start()
    session.register("x", 1)
    session.register("gone", 1)
    session.register("t", 0.5, "float", metadata={"unit": "K"})
    session.set("x", 2)
    session.delete("gone")
    again = session.start()
    assert again.offset == session.head == 6
    assert dict(again.initial_variables) == {"x": session.get("x"), "t": session.get("t")}
    assert not again.available_tools


def test_the_config_of_a_session_is_taken(session: Session) -> None:
    config = pb.SessionConfig(enable_caching=True, cache_ttl_seconds=-1, enable_telemetry=True)
    assert session.start(config=config).success


def test_get_session_tells_what_is_known(session: Session) -> None:
    sent = {"user": "ann", "": "empty key", "traceparent": "00-a", "correlation_id": "c"}
    started = session.start(metadata=sent)
    first = session.call("GetSession")
    assert first == pb.GetSessionResponse(
        session_id=session.id,
        metadata={"user": "ann", "": "empty key"},
        created_at=first.created_at,
        offset=1,
        log_epoch=started.log_epoch,
    )
    assert abs(first.created_at.ToNanoseconds() / 1e9 - time.time()) < 60
    session.register("x")
    session.register("y")
    session.delete("y")
    later = session.call("GetSession")
    assert (later.variable_count, later.tool_count, later.offset) == (1, 0, 4)
    assert later.created_at == first.created_at


def test_heartbeat_tells_whether_the_session_lives(session: Session) -> None:
    request = pb.HeartbeatRequest(session_id=session.id)
    request.client_time.GetCurrentTime()
    before = session.bridge.stub.Heartbeat(request, timeout=TIMEOUT)
    assert not before.session_valid
    assert abs(before.server_time.ToNanoseconds() / 1e9 - time.time()) < 60
    session.start()
    assert session.lives
    session.end()
    assert not session.lives


def test_registering_begins_a_session(session: Session) -> None:
    registered = session.register("x", metadata={"k": "v"})
    assert (registered.offset, registered.variable_id) == (2, "var_x_2")
    known = session.call("GetSession")
    assert (known.offset, known.log_epoch) == (2, registered.log_epoch)
    assert not known.metadata
    assert session.start().log_epoch == registered.log_epoch


# A request of each method that wants a session, valid for one with a variable x.
ON_A_SESSION: dict[str, dict[str, Any]] = {
    "GetSession": {},
    "GetVariable": {"variable_identifier": "x"},
    "SetVariable": {"variable_identifier": "x", "value": packed(2)},
    "ListVariables": {},
    "DeleteVariable": {"variable_identifier": "x"},
    "GetVariables": {"variable_identifiers": ["x"]},
    "SetVariables": {"updates": {"x": packed(2)}},
    "GetVariableHistory": {"variable_identifier": "x"},
    "RollbackVariable": {"variable_identifier": "x", "target_version": 1},
}
STARTS: dict[str, dict[str, Any]] = {
    "InitializeSession": {},
    "RegisterVariable": {"name": "new", "type": "integer", "initial_value": packed(1)},
}
WITH_EPOCH = {**ON_A_SESSION, **STARTS, "CleanupSession": {}}
READS = ("GetSession", "GetVariable", "ListVariables", "GetVariables", "GetVariableHistory")


@pytest.mark.parametrize("method", ON_A_SESSION)
def test_an_unknown_session_is_not_found_and_not_begun(session: Session, method: str) -> None:
    with refused("NOT_FOUND", session.id[:30], "session"):
        session.call(method, **ON_A_SESSION[method])
    assert not session.lives


@pytest.mark.parametrize("method", ON_A_SESSION)
def test_an_ended_session_is_not_found_and_not_revived(session: Session, method: str) -> None:
    session.register("x")
    session.end()
    with refused("NOT_FOUND", "session"):
        session.call(method, **ON_A_SESSION[method])
    assert not session.lives


def test_cleanup_ends_the_session_and_counts(session: Session) -> None:
    started = session.start()
    session.register("x")
    session.register("y")
    session.register("gone")
    session.delete("gone")
    assert session.end(force=True) == pb.CleanupSessionResponse(
        success=True, resources_cleaned=3, offset=6, log_epoch=started.log_epoch
    )


def test_cleanup_succeeds_where_there_is_nothing(session: Session) -> None:
    nothing = pb.CleanupSessionResponse(success=True)
    assert session.end() == nothing
    session.start()
    assert session.end().resources_cleaned == 1
    assert session.end() == nothing


def test_a_session_begun_anew_is_a_new_log(session: Session) -> None:
    first = session.start(metadata={"n": "1"})
    session.register("x", 1)
    session.register("y", 1)
    session.end()
    second = session.start(metadata={"n": "2"})
    assert second.offset == 1
    assert second.log_epoch != first.log_epoch
    assert not second.initial_variables
    assert dict(session.call("GetSession").metadata) == {"n": "2"}
    assert session.register("y", 2).variable_id == "var_y_2"
    assert plain(session.get("var_y_2").value) == 2
    with refused("NOT_FOUND", "'x'"):
        session.get("x")


@pytest.mark.parametrize("session_id", ["s", "s" * 256, "\N{SNAKE}" * 64, "a b/c.d:é\\'\"%s"])
def test_session_ids(bridge: BridgeProcess, session_id: str) -> None:
    session = Session(bridge, session_id)
    assert session.start().offset == 1
    assert session.call("GetSession").session_id == session_id


@pytest.mark.parametrize("method", WITH_EPOCH)
def test_the_right_epoch_is_accepted(session: Session, method: str) -> None:
    epoch = session.register("x").log_epoch
    response = session.call(method, log_epoch=epoch, **WITH_EPOCH[method])
    assert response.log_epoch == epoch


@pytest.mark.parametrize("method", WITH_EPOCH)
def test_a_foreign_epoch_is_refused_and_the_right_one_named(session: Session, method: str) -> None:
    epoch = session.register("x").log_epoch
    with refused("FAILED_PRECONDITION", epoch, "0123456789abcdef"):
        session.call(method, log_epoch="0123456789abcdef", **WITH_EPOCH[method])
    assert session.head == 2


@pytest.mark.parametrize("method", WITH_EPOCH)
def test_what_is_late_does_not_touch_the_session_begun_anew(session: Session, method: str) -> None:
    old = session.register("x").log_epoch
    session.end()
    new = session.register("x").log_epoch
    with refused("FAILED_PRECONDITION", old, new):
        session.call(method, log_epoch=old, **WITH_EPOCH[method])
    assert session.head == 2


@pytest.mark.parametrize("method", STARTS)
def test_what_is_late_does_not_revive_a_session(session: Session, method: str) -> None:
    epoch = session.start().log_epoch
    session.end()
    with refused("FAILED_PRECONDITION", epoch, "log_epoch"):
        session.call(method, log_epoch=epoch, **STARTS[method])
    assert not session.lives


@pytest.mark.parametrize("method", STARTS)
def test_an_epoch_begins_no_session(session: Session, method: str) -> None:
    with refused("FAILED_PRECONDITION", "0123456789abcdef"):
        session.call(method, log_epoch="0123456789abcdef", **STARTS[method])
    assert not session.lives


@pytest.mark.parametrize("method", READS)
def test_ones_own_write_is_readable(session: Session, method: str) -> None:
    written = session.register("x")
    fields = {"min_offset": written.offset, "log_epoch": written.log_epoch}
    response = session.call(method, **fields, **ON_A_SESSION[method])
    assert (response.offset, response.log_epoch) == (written.offset, written.log_epoch)


@pytest.mark.parametrize("method", READS)
@pytest.mark.parametrize("offset", [3, 2**64 - 1])
def test_an_offset_in_the_future_is_refused_at_once(
    session: Session, method: str, offset: int
) -> None:
    epoch = session.register("x").log_epoch
    began = time.monotonic()
    with refused("OUT_OF_RANGE", str(offset), "1 to 2", epoch):
        session.call(method, min_offset=offset, log_epoch=epoch, **ON_A_SESSION[method])
    assert time.monotonic() - began < 4  # where it had to wait, it would take 5


def test_a_read_waits_for_what_is_queued_and_never_shows_less(session: Session) -> None:
    epoch = session.register("x", 0).log_epoch
    pairs = []
    for n in range(1, 51):
        write = pb.SetVariableRequest(
            session_id=session.id, variable_identifier="x", value=packed(n)
        )
        read = pb.GetVariableRequest(
            session_id=session.id, variable_identifier="x", min_offset=2 + n, log_epoch=epoch
        )
        stub = session.bridge.stub
        pairs.append(
            (stub.SetVariable.future(write, timeout=TIMEOUT), stub.GetVariable.future(read))
        )
    for n, (written, shown) in enumerate(pairs, start=1):
        assert written.result().success
        if shown.exception() is None:
            assert shown.result().offset >= 2 + n
            assert shown.result().variable.offset >= 2 + n
        else:  # it overtook the write on its way to the queue
            assert shown.exception().code() is grpc.StatusCode.OUT_OF_RANGE


def test_offsets_rise_by_one_per_event(session: Session) -> None:
    offsets = [
        session.start().offset,
        session.register("x").offset,
        session.register("y").offset,
        session.set("x", 2).offset,
        session.set("x", 2).offset,
        session.set_many({"x": packed(3), "y": packed(3)}, atomic=True).offset,
        session.set_many({"x": packed(3), "y": packed(3)}).offset,
        session.roll_back("x", 1).offset,
        session.delete("x").offset,
        session.start().offset,
        session.end().offset,
    ]
    assert offsets == [1, 2, 3, 4, 5, 7, 9, 10, 11, 11, 12]


def test_two_sessions_share_nothing(bridge: BridgeProcess, session: Session) -> None:
    other = Session(bridge, f"{session.id} (other)")
    one, two = session.register("x", 1), other.register("x", 2)
    assert one.log_epoch != two.log_epoch
    session.set("x", 3, request_id="r")
    assert not other.set("x", 4, request_id="r").duplicate
    other.end()
    assert plain(session.get("x").value) == 3


class Change(NamedTuple):
    """A change that can be retried, on a session with x (versions 1, 2) and y."""

    method: str
    fields: dict[str, Any]
    other: dict[str, Any]
    """What makes it another request."""
    metadata: str = "metadata"
    """The field that holds the change's metadata."""


CHANGES = {
    "initialize": Change("InitializeSession", {"metadata": {"a": "1"}}, {"metadata": {"a": "2"}}),
    "cleanup": Change("CleanupSession", {}, {"metadata": {"why": "done"}}),
    "register": Change(
        "RegisterVariable",
        {"name": "new", "type": "integer", "initial_value": packed(1), "metadata": {"a": "1"}},
        {"constraints_json": '{"max": 9}'},
    ),
    "set": Change(
        "SetVariable",
        {"variable_identifier": "x", "value": packed(3), "expected_version": 2},
        {"value": packed(4)},
    ),
    "delete": Change("DeleteVariable", {"variable_identifier": "x"}, {"variable_identifier": "y"}),
    "roll back": Change(
        "RollbackVariable",
        {"variable_identifier": "x", "target_version": 1, "metadata": {"a": "1"}},
        {"target_version": 2},
    ),
    "batch": Change(
        "SetVariables",
        {"updates": {"x": packed(3), "y": packed(3)}, "atomic": True},
        {"updates": {"x": packed(3), "y": packed(4)}},
    ),
    "loose batch": Change(
        "SetVariables",
        {"updates": {"x": packed(3), "y": packed(3)}, "expected_versions": {"y": 1}},
        {"atomic": True},
    ),
}


def each(*left_out: str) -> pytest.MarkDecorator:
    """Run a test for each change but these."""
    return pytest.mark.parametrize(
        "change", [pytest.param(CHANGES[name], id=name) for name in CHANGES if name not in left_out]
    )


def prepare(session: Session, change: Change) -> None:
    """Bring the session to where the change can be made."""
    if change.method != "InitializeSession":
        session.start()
        session.register("x", 1)
        session.register("y", 1)
        session.set("x", 2)


def make(session: Session, change: Change, **fields: Any) -> Any:  # noqa: ANN401
    return session.call(change.method, **{**change.fields, **fields})


@each()
def test_a_retry_gets_the_first_answer(session: Session, change: Change) -> None:
    prepare(session, change)
    first = make(session, change, request_id="r")
    assert not first.duplicate
    assert make(session, change, request_id="r") == as_duplicate(first)
    assert make(session, change, request_id="r") == as_duplicate(first)
    if session.lives:
        assert session.head == first.offset


@each("cleanup")
def test_a_retry_gets_the_first_answer_whatever_happened_since(
    session: Session, change: Change
) -> None:
    prepare(session, change)
    first = make(session, change, request_id="r")
    session.register("later", 1)
    for variable in session.call("ListVariables").variables:
        session.set(variable.name, 5, metadata={"late": "1"})
    head = session.head
    assert make(session, change, request_id="r") == as_duplicate(first)
    assert session.head == head


@pytest.mark.parametrize("name", ["set", "roll back", "batch", "loose batch", "register"])
def test_a_retry_is_answered_after_the_variable_is_gone(session: Session, name: str) -> None:
    change = CHANGES[name]
    prepare(session, change)
    first = make(session, change, request_id="r")
    session.delete("new" if name == "register" else "x")
    head = session.head
    expected = as_duplicate(first)
    assert make(session, change, request_id="r") == expected
    assert session.head == head


@each()
def test_a_retry_is_answered_after_the_session_ended(session: Session, change: Change) -> None:
    prepare(session, change)
    first = make(session, change, request_id="r")
    session.end()
    assert make(session, change, request_id="r") == as_duplicate(first)
    assert not session.lives


@each()
def test_the_same_id_with_another_payload_is_refused(session: Session, change: Change) -> None:
    prepare(session, change)
    offset = make(session, change, request_id="r").offset
    with refused("INVALID_ARGUMENT", "request_id 'r' was used before"):
        make(session, change, request_id="r", **change.other)
    if session.lives:
        assert session.head == offset


@each()
def test_the_same_id_with_another_method_is_refused(session: Session, change: Change) -> None:
    prepare(session, change)
    make(session, change, request_id="r")
    lives = session.lives
    methods = {each.method for each in CHANGES.values()} - {change.method}
    assert len(methods) == 6
    for method in methods:
        with refused("INVALID_ARGUMENT", "request_id 'r' was used before", change.method):
            session.call(method, request_id="r", **WITH_EPOCH[method])
    assert session.lives == lives


@each()
def test_a_retry_may_be_traced_otherwise(session: Session, change: Change) -> None:
    prepare(session, change)
    sent = dict(change.fields.get("metadata", {}))
    trace = {"traceparent": "00-1", "tracestate": "a=1", "correlation_id": "c1"}
    first = make(session, change, request_id="r", metadata={**sent, **trace})
    trace = {"traceparent": "00-2", "correlation_id": "c2"}
    headers = [("traceparent", "00-3"), ("x-snakepit-correlation-id", "c3")]
    for metadata, header in (({**sent, **trace}, ()), (sent, headers), (sent, ())):
        fields = {**change.fields, "metadata": metadata, "request_id": "r"}
        assert session.call(change.method, header, **fields) == as_duplicate(first)


@each()
def test_a_retry_may_name_the_epoch(session: Session, change: Change) -> None:
    prepare(session, change)
    first = make(session, change, request_id="r")
    again = make(session, change, request_id="r", log_epoch=first.log_epoch)
    assert again == as_duplicate(first)
    with refused("FAILED_PRECONDITION", first.log_epoch):
        make(session, change, request_id="r", log_epoch="0123456789abcdef")


REPEATED: dict[str, int | str] = {
    # How many events it makes when it is asked a second time, or how it is refused.
    "initialize": 0,
    "cleanup": 0,
    "register": "ALREADY_EXISTS",
    "set": "ABORTED",
    "delete": "NOT_FOUND",
    "roll back": 1,
    "batch": 2,
    "loose batch": 1,
}


@pytest.mark.parametrize("name", REPEATED)
def test_without_an_id_it_is_another_request(session: Session, name: str) -> None:
    change, repeated = CHANGES[name], REPEATED[name]
    prepare(session, change)
    first = make(session, change)
    if isinstance(repeated, str):
        with refused(repeated):
            make(session, change)
    else:
        again = make(session, change)
        assert not again.duplicate
        if session.lives:
            assert again.offset == session.head == first.offset + repeated


def test_a_refused_request_is_not_remembered(session: Session) -> None:
    refusals: list[tuple[str, dict[str, Any], str]] = [
        ("SetVariable", {"variable_identifier": "x", "value": packed("no")}, "INVALID_ARGUMENT"),
        ("SetVariable", {"variable_identifier": "z", "value": packed(1)}, "NOT_FOUND"),
        (
            "SetVariable",
            {"variable_identifier": "x", "value": packed(1), "expected_version": 7},
            "ABORTED",
        ),
        (
            "RegisterVariable",
            {"name": "x", "type": "integer", "initial_value": packed(1)},
            "ALREADY_EXISTS",
        ),
        ("DeleteVariable", {"variable_identifier": "z"}, "NOT_FOUND"),
        ("RollbackVariable", {"variable_identifier": "x", "target_version": 9}, "NOT_FOUND"),
        ("SetVariables", {"updates": {"z": packed(1)}}, "INVALID_ARGUMENT"),
    ]
    session.register("x")
    for method, fields, code in refusals:
        for _ in range(2):
            with refused(code):
                session.call(method, request_id="r", **fields)
    batch = session.set_many({"x": packed("no")}, atomic=True, request_id="r")
    assert not batch.success
    batch = session.set_many({"x": packed("no")}, request_id="r")
    assert (batch.success, dict(batch.new_versions)) == (True, {})
    accepted = session.set("x", 3, request_id="r")
    assert (accepted.new_version, accepted.duplicate) == (2, False)


def test_a_retried_start_finds_its_refusal_fixed(session: Session) -> None:
    with refused("INVALID_ARGUMENT"):
        session.register("x", "no", request_id="r")
    assert not session.lives
    assert not session.register("x", 1, request_id="r").duplicate


@pytest.mark.parametrize("method", STARTS)
def test_a_retried_start_does_not_revive(session: Session, method: str) -> None:
    first = session.call(method, request_id="r", **STARTS[method])
    session.end()
    again = session.call(method, request_id="r", **STARTS[method])
    assert again == as_duplicate(first)
    assert not session.lives
    with refused("INVALID_ARGUMENT", "request_id"):
        session.call(method, request_id="r", **{**STARTS[method], "metadata": {"another": "1"}})
    assert not session.lives
    fresh = session.call(method, request_id="r2", **STARTS[method])
    assert not fresh.duplicate
    assert fresh.log_epoch != first.log_epoch


def test_a_new_log_knows_only_its_own_requests(session: Session) -> None:
    session.register("x", request_id="r0")
    session.set("x", 2, request_id="r")
    session.end()
    session.register("x", request_id="r1")
    again = session.set("x", 2, request_id="r")
    assert (again.duplicate, again.new_version, again.offset) == (False, 2, 3)


def test_of_many_at_once_one_is_the_first(session: Session) -> None:
    session.register("x")
    request = pb.SetVariableRequest(
        session_id=session.id, variable_identifier="x", value=packed(2), request_id="r"
    )
    calls = [session.bridge.stub.SetVariable.future(request, timeout=TIMEOUT) for _ in range(40)]
    answers = [call.result() for call in calls]
    assert sorted(answer.duplicate for answer in answers) == [False] + [True] * 39
    assert {(answer.offset, answer.new_version) for answer in answers} == {(3, 2)}
    assert session.head == 3


def stop(bridge: BridgeProcess) -> None:
    assert bridge.stop() == 0


both_ways = pytest.mark.parametrize("leave", [stop, BridgeProcess.kill], ids=["stopped", "killed"])


@both_ways
def test_retries_are_known_after_a_restart(tmp_path: Path, leave: Any) -> None:  # noqa: ANN401
    first: dict[str, Any] = {}
    with BridgeProcess(tmp_path / "bridge.db") as bridge:
        for name, change in CHANGES.items():
            prepare(Session(bridge, name), change)
            first[name] = make(Session(bridge, name), change, request_id="r")
        for method, fields in STARTS.items():
            first[method] = Session(bridge, method).call(method, request_id="r", **fields)
            Session(bridge, method).end()
        leave(bridge)
    with BridgeProcess(tmp_path / "bridge.db") as bridge:
        for name, change in CHANGES.items():
            session = Session(bridge, name)
            with refused("INVALID_ARGUMENT", "request_id"):
                make(session, change, request_id="r", **change.other)
            assert make(session, change, request_id="r") == as_duplicate(first[name])
            assert session.lives == (name != "cleanup")
        for method, fields in STARTS.items():
            session = Session(bridge, method)
            again = session.call(method, request_id="r", **fields)
            assert again == as_duplicate(first[method])
            assert not session.lives
        assert bridge.stop() == 0


def all_reads(session: Session) -> list[Any]:
    """Everything that can be asked of a session with x, y and the deleted ids."""
    return [
        session.call("GetSession"),
        session.start(metadata={"not": "the first"}),
        session.call("ListVariables"),
        session.call("ListVariables", page_size=1),
        session.call("GetVariables", variable_identifiers=["x", "y", "z", "var_z_4"]),
        session.history("x"),
        session.history("var_z_4"),
        session.history("var_z_6", page_size=1),
    ]


def live_a_little(session: Session) -> str:
    """Leave behind values of all sizes, deleted and renewed variables; gives the epoch."""
    session.start(metadata={"user": "ann"})
    session.register("x", 1, constraints_json='{"max": 100}', metadata={"source": "python"})
    session.register("y", "v" * 5_000, "string")
    session.register("z", 1)
    session.delete("z")
    session.register("z", 2)
    session.set("y", "w" * 100_000, "string", metadata={"k": "v", "correlation_id": "c"})
    session.set_many({"x": packed(7), "y": packed("u", "string")}, atomic=True)
    session.set_many({"x": packed(8), "y": packed("t", "string")}, request_id="loose")
    session.roll_back("y", 2, request_id="back")
    session.delete("z")
    epoch: str = session.call("GetSession").log_epoch
    return epoch


@both_ways
def test_all_is_as_it_was_after_a_restart(tmp_path: Path, leave: Any) -> None:  # noqa: ANN401
    with BridgeProcess(tmp_path / "bridge.db") as bridge:
        renewed = Session(bridge, "renewed")
        first = live_a_little(renewed)
        renewed.end()
        live_a_little(renewed)
        ended = Session(bridge, "ended")
        over = live_a_little(ended)
        ended.end()
        before = all_reads(renewed)
        leave(bridge)

    with BridgeProcess(tmp_path / "bridge.db") as bridge:
        ended = Session(bridge, "ended")
        assert not ended.lives
        with refused("FAILED_PRECONDITION"):
            ended.start(log_epoch=over)
        assert not ended.lives

        session = Session(bridge, "renewed")
        assert all_reads(session) == before
        head = before[0].offset
        with refused("FAILED_PRECONDITION", first):
            session.set("x", 9, log_epoch=first)
        with refused("INVALID_ARGUMENT", "above maximum"):
            session.set("x", 101)
        with refused("ALREADY_EXISTS"):
            session.register("var_z_6")
        with refused("ABORTED"):
            session.set("x", 9, expected_version=2)
        assert session.head == head
        written = session.set("x", 9, expected_version=3, log_epoch=before[0].log_epoch)
        assert (written.offset, written.new_version) == (head + 1, 4)
        assert session.register("z").variable_id == f"var_z_{head + 2}"
        assert session.start().offset == head + 2
        assert bridge.stop() == 0
