"""History and rollback over a socket."""

from __future__ import annotations

from typing import Any

import pytest

from snakepit_bridge import bridge_service_pb2 as pb
from tests.bridge_process import BridgeProcess
from tests.wire_session import Session, packed, plain, refused


def versions(response: Any) -> list[int]:  # noqa: ANN401 - stubs have no types
    return [entry.version for entry in response.entries]


def test_the_history_of_a_new_variable_is_its_registration(session: Session) -> None:
    written = session.register("x", 1, metadata={"unit": "K", "source": "python"}, request_id="r")
    response = session.history("x")
    [told] = response.entries
    entry = pb.VariableHistoryEntry(
        version=1,
        value=packed(1),
        timestamp=written.variable.last_updated_at,
        changed_by="python",
        metadata={"unit": "K", "source": "python"},
        offset=2,
        request_id="r",
        log_epoch=written.log_epoch,
        correlation_id=told.correlation_id,
    )
    assert told.correlation_id
    assert response == pb.GetVariableHistoryResponse(
        entries=[entry], offset=2, log_epoch=written.log_epoch
    )


def test_every_way_to_change_a_variable_is_told_newest_first(session: Session) -> None:
    epoch = session.register("x", 1, request_id="r1").log_epoch
    session.register("other", 1)
    session.set("x", 2, metadata={"why": "set", "source": "tool:search"}, request_id="r2")
    session.set_many(
        {"x": packed(3), "other": packed(3)},
        atomic=True,
        metadata={"why": "batch"},
        request_id="r3",
    )
    session.set_many({"x": packed(4), "other": packed(4)}, request_id="r4")
    session.roll_back("x", 2, metadata={"why": "back"}, request_id="r5")
    session.set("x", 5)

    response = session.history("x")
    assert (response.offset, response.log_epoch) == (session.head, epoch)
    told = [
        (
            entry.version,
            plain(entry.value),
            plain(entry.old_value) if entry.HasField("old_value") else None,
            entry.offset,
            entry.changed_by,
            dict(entry.metadata),
            entry.request_id,
            entry.rolled_back_to,
        )
        for entry in response.entries
    ]
    assert told == [
        (6, 5, 2, 10, "elixir", {}, "", 0),
        (5, 2, 4, 9, "elixir", {"why": "back"}, "r5", 2),
        (4, 4, 3, 8, "elixir", {}, "r4", 0),
        (3, 3, 2, 6, "elixir", {"why": "batch"}, "r3", 0),
        (2, 2, 1, 4, "tool:search", {"why": "set", "source": "tool:search"}, "r2", 0),
        (1, 1, None, 2, "elixir", {}, "r1", 0),
    ]
    times = [entry.timestamp.ToNanoseconds() for entry in response.entries]
    assert times == sorted(times, reverse=True)
    assert session.get("x").last_updated_at == response.entries[0].timestamp
    assert {entry.log_epoch for entry in response.entries} == {epoch}


def test_values_keep_the_form_they_had(session: Session) -> None:
    snakepit = "type.googleapis.com/snakepit."
    session.register("x", "a" * 5_000, "string")
    value = packed("b" * 5_000, "string", snakepit)
    session.call("SetVariable", variable_identifier="x", value=value)
    session.set("x", "c", "string")
    newest, middle, oldest = session.history("x").entries
    assert oldest.value == middle.old_value == packed("a" * 5_000, "string")
    assert middle.value == newest.old_value == value
    assert newest.value == packed("c", "string")
    assert not newest.binary_value
    assert not newest.old_binary_value


def test_a_limit_gives_the_newest(session: Session) -> None:
    session.register("x", 1)
    for version in range(2, 7):
        session.set("x", version)
    assert versions(session.history("x")) == [6, 5, 4, 3, 2, 1]
    assert versions(session.history("x", limit=0)) == [6, 5, 4, 3, 2, 1]
    assert versions(session.history("x", limit=2)) == [6, 5]
    for limit in (6, 7, 2**31 - 1):
        assert versions(session.history("x", limit=limit)) == [6, 5, 4, 3, 2, 1]
    assert session.history("x", limit=2).next_page_token == ""


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 5, 7, 8, 2**31 - 1])
@pytest.mark.parametrize("size", [1, 2, 3, 6, 7, 8, 2**31 - 1])
def test_pages_meet_and_the_limit_is_over_all(bridge: BridgeProcess, limit: int, size: int) -> None:
    session = Session(bridge, "paged")
    if not session.lives:
        session.register("x", 1)
        for version in range(2, 8):
            session.set("x", version)
    expected = list(range(7, 0, -1))[: limit or 7]
    seen: list[int] = []
    sizes = []
    token = ""
    while len(seen) <= len(expected):
        page = session.history("x", limit=limit, page_size=size, page_token=token)
        seen += versions(page)
        sizes.append(len(page.entries))
        token = page.next_page_token
        if not token:
            break
    assert seen == expected
    assert all(each == size for each in sizes[:-1])
    assert 0 < sizes[-1] <= size  # the last page is not an empty one


def test_the_rest_of_a_history_may_be_asked_at_once(session: Session) -> None:
    session.register("x", 1)
    for version in range(2, 7):
        session.set("x", version)
    token = session.history("x", limit=5, page_size=2).next_page_token
    assert versions(session.history("x", limit=5, page_token=token)) == [4, 3, 2]
    token = session.history("x", page_size=2).next_page_token
    assert versions(session.history("x", page_token=token)) == [4, 3, 2, 1]


def test_changes_between_pages_do_not_move_them(session: Session) -> None:
    session.register("x", 1)
    for version in range(2, 5):
        session.set("x", version)
    token = session.history("x", page_size=2).next_page_token
    session.set("x", 5)
    assert versions(session.history("x", page_size=5, page_token=token)) == [2, 1]


def test_pages_of_a_history_end_with_their_log(session: Session) -> None:
    session.register("x", 1)
    session.set("x", 2)
    token = session.history("x", page_size=1).next_page_token
    session.end()
    epoch = session.register("x", 1).log_epoch
    session.set("x", 2)
    with refused("FAILED_PRECONDITION", "page_token", epoch):
        session.history("x", page_size=1, page_token=token)


def test_a_deleted_variable_answers_by_its_id(session: Session) -> None:
    first = session.register("x", 1).variable_id
    session.set("x", 2)
    session.set(first, 3)
    session.delete("x", metadata={"why": "old"})
    with refused("NOT_FOUND", "'x' not found"):
        session.history("x")
    assert versions(session.history(first)) == [3, 2, 1]

    second = session.register("x", 9).variable_id
    session.set("x", 8)
    assert [plain(entry.value) for entry in session.history("x").entries] == [8, 9]
    assert [plain(entry.value) for entry in session.history(second).entries] == [8, 9]
    assert [plain(entry.value) for entry in session.history(first).entries] == [3, 2, 1]
    token = session.history(first, page_size=2).next_page_token
    assert versions(session.history(first, page_token=token)) == [1]


FROM_MAP = f"00-{'a' * 32}-{'b' * 16}-01"
FROM_HEAD = f"00-{'c' * 32}-{'d' * 16}-00"
TRACE = {"traceparent": FROM_MAP, "tracestate": "map=1", "correlation_id": "c-map"}


@pytest.mark.parametrize(
    ("metadata", "headers", "correlation_id", "traceparent"),
    [
        ({}, [], "made", ""),
        (TRACE, [], "c-map", FROM_MAP),
        ({}, [("x-snakepit-correlation-id", "c-head")], "c-head", ""),
        ({}, [("traceparent", FROM_HEAD), ("tracestate", "h=1")], "made", FROM_HEAD),
        # A header comes before the metadata map, each for itself.
        (TRACE, [("x-snakepit-correlation-id", "c-head")], "c-head", FROM_MAP),
        (TRACE, [("traceparent", FROM_HEAD)], "c-map", FROM_HEAD),
        (
            TRACE,
            [("traceparent", FROM_HEAD), ("x-snakepit-correlation-id", "c-head")],
            "c-head",
            FROM_HEAD,
        ),
        ({"correlation_id": "c-map", "other": "1"}, [("x-other", "1")], "c-map", ""),
    ],
)
def test_every_change_tells_of_its_request(
    session: Session,
    metadata: dict[str, str],
    headers: list[tuple[str, str]],
    correlation_id: str,
    traceparent: str,
) -> None:
    initial = {"name": "x", "type": "integer", "initial_value": packed(1)}
    session.call("RegisterVariable", headers, metadata=metadata, **initial)
    changes: list[tuple[str, dict[str, Any]]] = [
        ("SetVariable", {"variable_identifier": "x", "value": packed(2)}),
        ("SetVariables", {"updates": {"x": packed(3)}, "atomic": True}),
        ("SetVariables", {"updates": {"x": packed(4)}}),
        ("RollbackVariable", {"variable_identifier": "x", "target_version": 1}),
    ]
    for method, fields in changes:
        session.call(method, headers, metadata=metadata, **fields)
    entries = session.history("x").entries
    assert versions(session.history("x")) == [5, 4, 3, 2, 1]
    kept = {key: value for key, value in metadata.items() if key not in TRACE}
    if correlation_id == "made":
        assert len({entry.correlation_id for entry in entries}) == len(entries)
        assert all(len(entry.correlation_id) == 16 for entry in entries)
    for entry in entries:
        assert correlation_id in ("made", entry.correlation_id)
        assert entry.traceparent == traceparent
        assert dict(entry.metadata) == kept
    assert dict(session.get("x").metadata) == kept


def test_a_rollback_is_a_new_version(session: Session) -> None:
    epoch = session.register("x", 1, metadata={"a": "1"}).log_epoch
    session.set("x", 2, metadata={"b": "2"})
    response = session.roll_back("x", 1, metadata={"c": "3", "source": "python"})
    assert response == pb.RollbackVariableResponse(
        success=True, variable=session.get("x"), offset=4, log_epoch=epoch
    )
    variable = response.variable
    assert (plain(variable.value), variable.version, variable.offset) == (1, 3, 4)
    # The value comes back, the metadata go on.
    assert dict(variable.metadata) == {"a": "1", "b": "2", "c": "3", "source": "python"}
    assert variable.source == pb.Variable.PYTHON
    assert session.set("x", 4).new_version == 4


def test_a_rollback_goes_to_any_version_by_name_or_id(session: Session) -> None:
    id_ = session.register("x", "a" * 5_000, "string").variable_id
    session.set("x", "b", "string")
    session.set_many({"x": packed("c", "string")}, atomic=True)
    assert plain(session.roll_back(id_, 3).variable.value) == "c"  # where it is now
    assert plain(session.roll_back("x", 1).variable.value) == "a" * 5_000
    assert plain(session.roll_back("x", 2).variable.value) == "b"
    assert plain(session.roll_back(id_, 5).variable.value) == "a" * 5_000  # a rollback itself
    told = [(each.version, each.rolled_back_to) for each in session.history("x").entries]
    assert told == [(7, 5), (6, 2), (5, 1), (4, 3), (3, 0), (2, 0), (1, 0)]


def test_a_rollback_restores_the_type_url(session: Session) -> None:
    value = packed(1, prefix="type.googleapis.com/snakepit.")
    session.call("RegisterVariable", name="x", type="integer", initial_value=value)
    session.set("x", 2)
    assert session.roll_back("x", 1).variable.value == value


@pytest.mark.parametrize("version", [0, -1, 3, 2**31 - 1])
def test_a_rollback_to_no_version_is_not_found(session: Session, version: int) -> None:
    session.register("x", 1)
    session.set("x", 2)
    with refused("NOT_FOUND", f"version {version}", "'x'", "1 to 2"):
        session.roll_back("x", version)
    assert session.head == 3


def test_a_deleted_variable_is_not_rolled_back(session: Session) -> None:
    first = session.register("x", 1).variable_id
    session.set("x", 2)
    session.delete("x")
    for identifier in ("x", first):
        with refused("NOT_FOUND", "not found"):
            session.roll_back(identifier, 1)
    session.register("x", 9)
    with refused("NOT_FOUND", "not found"):
        session.roll_back(first, 1)
    with refused("NOT_FOUND", "version 2"):  # its own versions only
        session.roll_back("x", 2)
    assert plain(session.roll_back("x", 1).variable.value) == 9


def test_a_rollback_compares_the_expected_version(session: Session) -> None:
    session.register("x", 1)
    session.set("x", 2)
    with refused("ABORTED", "'x' is at version 2, expected 1"):
        session.roll_back("x", 1, expected_version=1)
    with refused("INVALID_ARGUMENT", "negative"):
        session.roll_back("x", 1, expected_version=-1)
    assert session.roll_back("x", 1, expected_version=2).variable.version == 3


def test_a_long_history_is_told_whole(session: Session) -> None:
    session.register("x", 0)
    calls = [
        session.bridge.stub.SetVariable.future(
            pb.SetVariableRequest(session_id=session.id, variable_identifier="x", value=packed(n))
        )
        for n in range(1, 500)
    ]
    assert sorted(call.result().new_version for call in calls) == list(range(2, 501))
    response = session.history("x")
    assert versions(response) == list(range(500, 0, -1))
    assert [entry.offset for entry in response.entries] == list(range(501, 1, -1))
    for newer, older in zip(response.entries, response.entries[1:], strict=False):
        assert newer.old_value == older.value
