"""One variable at a time, over a socket: registering, reading, setting, listing, deleting."""

from __future__ import annotations

import asyncio
import fnmatch
import itertools
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf import struct_pb2
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message_factory import GetMessageClass

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge.bridge_servicer import BridgeServicer
from snakepit_bridge.decide import decider, recall
from snakepit_bridge.errors import ResourceExhausted
from snakepit_bridge.events.committer import Committer
from snakepit_bridge.events.gate import Gate
from snakepit_bridge.events.memory import MemoryLog
from snakepit_bridge.wire import Call
from tests.bridge_process import BridgeProcess
from tests.wire_session import METHODS, Session, packed, plain, refused


def test_registering_answers_with_the_whole_variable(session: Session) -> None:
    epoch = session.start().log_epoch
    before = time.time_ns()
    registered = session.register(
        "temperature", 0.7, "float", constraints_json='{ "max": 2 }', metadata={"unit": "K"}
    )
    variable = pb.Variable(
        id="var_temperature_2",
        name="temperature",
        type="float",
        value=AnyMessage(type_url="dspex.variables/float", value=b"0.7"),
        constraints_json='{ "max": 2 }',
        metadata={"unit": "K"},
        last_updated_at=registered.variable.last_updated_at,
        version=1,
        offset=2,
    )
    assert registered == pb.RegisterVariableResponse(
        success=True,
        variable_id="var_temperature_2",
        offset=2,
        log_epoch=epoch,
        variable=variable,
    )
    assert abs(variable.last_updated_at.ToNanoseconds() - before) < 60e9
    assert session.get("temperature") == variable
    assert session.get("var_temperature_2") == variable


def test_a_set_answers_with_version_and_offset(session: Session) -> None:
    epoch = session.register("x").log_epoch
    for version in range(2, 6):
        assert session.set("x", version) == pb.SetVariableResponse(
            success=True, new_version=version, offset=version + 1, log_epoch=epoch
        )
        variable = session.get("x")
        assert (plain(variable.value), variable.version) == (version, version)
        assert variable.offset == version + 1


def test_an_equal_value_is_a_change(session: Session) -> None:
    session.register("x", 1)
    assert session.set("x", 1).new_version == 2
    assert session.get("x").version == 2


def test_reading_is_never_from_a_cache(session: Session) -> None:
    written = session.register("x")
    for bypass in (False, True):
        response = session.call("GetVariable", variable_identifier="x", bypass_cache=bypass)
        assert response == pb.GetVariableResponse(
            variable=written.variable, offset=2, log_epoch=written.log_epoch
        )


def test_a_variable_is_named_by_its_id_too(session: Session) -> None:
    id_ = session.register("x", 1).variable_id
    assert session.set(id_, 2).new_version == 2
    assert plain(session.get("x").value) == 2
    assert session.delete(id_).success
    with refused("NOT_FOUND", "'x' not found"):
        session.get("x")


# Texts that are kept as they were sent, byte for byte.
VALUES = [
    ("float", "0.1"),
    ("float", "-1e-300"),
    ("float", "3"),
    ("float", ' "NaN"'),
    ("float", '"-Infinity"'),
    ("integer", "0"),
    ("integer", "-9223372036854775809"),
    pytest.param("integer", "9" * 4300, id="integer of 4300 digits"),
    ("string", '""'),
    ("string", r'"\u00e9\n\ud83d\udc0d é \u0000"'),
    pytest.param("string", json.dumps("long " * 50_000), id="string of 250 KB"),
    ("boolean", "true"),
    ("boolean", "false "),
    ("choice", '"a"'),
    ("module", '"dspy.ChainOfThought"'),
    ("embedding", "[]"),
    ("embedding", '[0.1, 1, "NaN", 1e-300, 0.30000000000000004]'),
    pytest.param("embedding", json.dumps([0.1] * 5000), id="embedding of 5000"),
    ("tensor", '{"shape": [2, 2], "data": [[1, 2], [3, 4.5]]}'),
    ("tensor", '{"data":[1,2,3,4],"shape":[2,2]}'),
    ("tensor", '{"shape": [], "data": 1}'),
    ("tensor", '{"shape": [0, 3], "data": []}'),
]
PREFIXES = ("dspex.variables/", "type.googleapis.com/snakepit.")


@pytest.mark.parametrize(("type_", "text"), VALUES)
def test_a_value_goes_out_as_it_came_in(session: Session, type_: str, text: str) -> None:
    for version, prefix in enumerate((*PREFIXES, PREFIXES[0]), start=1):
        value = AnyMessage(type_url=prefix + type_, value=text.encode())
        if version == 1:
            session.call("RegisterVariable", name="x", type=type_, initial_value=value)
        else:
            session.call("SetVariable", variable_identifier="x", value=value)
        variable = session.get("x")
        assert (variable.type, variable.version) == (type_, version)
        assert variable.value == value
        assert not variable.binary_value


@pytest.mark.parametrize(
    ("type_", "sent", "kept"),
    [
        ("float", 0.7, 0.7),
        ("float", 1.0, 1),
        ("float", float("inf"), "Infinity"),
        ("integer", 3.0, 3),
        ("integer", 2.0**53, 2**53),
        ("string", "sé", "sé"),
        ("boolean", True, True),
        ("choice", "a", "a"),
        ("embedding", [1.5, 2.0, "NaN"], [1.5, 2, "NaN"]),
        ("tensor", {"shape": [2.0], "data": [1.0, 2.0]}, {"shape": [2], "data": [1, 2]}),
    ],
)
def test_a_packed_protobuf_value_is_taken(
    session: Session,
    type_: str,
    sent: Any,  # noqa: ANN401 - any JSON value
    kept: object,
) -> None:  # as grpcurl can send it
    value = struct_pb2.Value()
    if isinstance(sent, bool):
        value.bool_value = sent
    elif isinstance(sent, str):
        value.string_value = sent
    elif isinstance(sent, float):
        value.number_value = sent
    elif isinstance(sent, list):
        value.list_value.extend(sent)
    else:
        value.struct_value.update(sent)
    initial = AnyMessage()
    initial.Pack(value)
    assert initial.type_url == "type.googleapis.com/google.protobuf.Value"
    session.call("RegisterVariable", name="x", type=type_, initial_value=initial)
    out = session.get("x").value
    assert out.type_url == f"dspex.variables/{type_}"
    assert plain(out) == kept
    assert type(plain(out)) is type(kept)


def test_an_integer_written_as_a_float_is_one(session: Session) -> None:
    value = AnyMessage(type_url="dspex.variables/integer", value=b"9007199254740993.0")
    session.call("RegisterVariable", name="x", type="integer", initial_value=value)
    assert session.get("x").value.value == b"9007199254740993"


def test_expected_version(session: Session) -> None:
    session.register("x", 1)
    assert session.set("x", 2, expected_version=1).new_version == 2
    with refused("ABORTED", "'x'", "version 2", "expected 1"):
        session.set("x", 3, expected_version=1)
    with refused("ABORTED", "version 2", "expected 3"):
        session.set("x", 3, expected_version=3)
    assert session.set("x", 3, expected_version=0).new_version == 3
    with refused("ABORTED", "version 3", "expected 2"):
        session.delete("x", expected_version=2)
    assert session.delete("x", expected_version=3).success


def test_of_many_writers_that_expect_a_version_one_wins(session: Session) -> None:
    session.register("x", 0)

    def add_ten() -> None:
        added = 0
        while added < 10:
            now = session.get("x")
            try:
                session.set("x", plain(now.value) + 1, expected_version=now.version)
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.ABORTED  # noqa: PT017 - others are not met
            else:
                added += 1

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(add_ten) for _ in range(8)]:
            done.result()
    variable = session.get("x")
    assert (plain(variable.value), variable.version) == (80, 81)


def test_an_id_holds_the_offset_of_its_registration(session: Session) -> None:
    session.start()
    assert session.register("x").variable_id == "var_x_2"
    session.set("x", 2)
    assert session.register("y 1").variable_id == "var_y 1_4"
    assert session.register("\N{SNAKE}").variable_id == "var_\N{SNAKE}_5"


def test_an_id_avoids_every_name_and_id_there_ever_was(session: Session) -> None:
    session.start()
    assert session.register("var_b_6").offset == 2
    assert session.register("var_b_7").offset == 3
    assert session.register("var_b_8").offset == 4
    session.delete("var_b_7")
    assert session.register("b").variable_id == "var_b_9"  # at offset 6: 6, 7, 8 are names
    session.delete("b")
    session.set("var_b_6", 2)
    assert session.register("b").variable_id == "var_b_10"  # at offset 9: 9 was an id
    assert session.get("var_b_6").name == "var_b_6"


def test_a_name_that_was_given_out_as_an_id_is_taken(session: Session) -> None:
    live = session.register("x").variable_id
    dead = session.register("y").variable_id
    session.delete("y")
    for name in (live, dead):
        with refused("ALREADY_EXISTS", f"'{name}'", "id"):
            session.register(name)
    assert session.register("var_x_99").success


def test_a_live_name_comes_before_an_id(session: Session) -> None:
    session.register("var_x_3", 1)
    id_ = session.register("x", 2).variable_id
    assert id_ == "var_x_4"
    assert plain(session.get("var_x_3").value) == 1


def test_a_live_name_is_taken(session: Session) -> None:
    id_ = session.register("x", 1).variable_id
    with refused("ALREADY_EXISTS", "'x'", id_):
        session.register("x", 1)
    assert session.get("x").version == 1


def test_a_name_registered_again_is_another_variable(session: Session) -> None:
    first = session.register("x", 1, metadata={"old": "1"})
    session.set("x", 2)
    gone = session.delete("x")
    assert gone == pb.DeleteVariableResponse(success=True, offset=4, log_epoch=first.log_epoch)
    second = session.register("x", "text", "string")
    assert (second.variable_id, second.variable.version) == ("var_x_5", 1)
    assert session.get("x") == second.variable
    assert not second.variable.metadata
    calls: list[Callable[[], object]] = [
        lambda: session.get(first.variable_id),
        lambda: session.set(first.variable_id, 3, expected_version=1),
        lambda: session.delete(first.variable_id),
        lambda: session.roll_back(first.variable_id, 1),
    ]
    for call in calls:
        with refused("NOT_FOUND", f"'{first.variable_id}' not found"):
            call()


def test_what_does_not_exist_is_not_found(session: Session) -> None:
    session.start()
    calls: list[Callable[[], object]] = [
        lambda: session.get("x"),
        lambda: session.set("x", 1),
        lambda: session.delete("x"),
        lambda: session.roll_back("x", 1),
        lambda: session.history("x"),
        lambda: session.get(""),
    ]
    for call in calls:
        with refused("NOT_FOUND", "variable", "not found"):
            call()
    assert session.head == 1


def test_metadata_merges(session: Session) -> None:
    session.register("x", metadata={"a": "1", "b": "1", "traceparent": "t", "tracestate": "s"})
    assert dict(session.get("x").metadata) == {"a": "1", "b": "1"}
    session.set("x", 2, metadata={"b": "2", "c": "2", "correlation_id": "c", "": ""})
    assert dict(session.get("x").metadata) == {"a": "1", "b": "2", "c": "2", "": ""}
    session.set("x", 3)
    assert dict(session.get("x").metadata) == {"a": "1", "b": "2", "c": "2", "": ""}
    session.set_many({"x": packed(4)}, metadata={"a": "4", "traceparent": "t"})
    assert dict(session.get("x").metadata) == {"a": "4", "b": "2", "c": "2", "": ""}
    session.roll_back("x", 1, metadata={"c": "5", "correlation_id": "c"})
    assert dict(session.get("x").metadata) == {"a": "4", "b": "2", "c": "5", "": ""}


ELIXIR, PYTHON = pb.Variable.ELIXIR, pb.Variable.PYTHON


@pytest.mark.parametrize(
    ("registered", "changed", "source", "metadata"),
    [
        (None, None, ELIXIR, {}),
        (None, "python", PYTHON, {"source": "python"}),
        (None, "elixir", ELIXIR, {"source": "elixir"}),
        (None, "tool:search", PYTHON, {"source": "tool:search"}),
        (None, "", ELIXIR, {"source": "elixir"}),
        ("python", "python", PYTHON, {"source": "python"}),
        ("python", "elixir", ELIXIR, {"source": "elixir"}),
        # A change that names none is Elixir's, and the name before it does not stay.
        ("python", None, ELIXIR, {"source": "elixir"}),
        ("elixir", None, ELIXIR, {"source": "elixir"}),
    ],
)
def test_the_source_is_that_of_the_last_change(
    session: Session,
    registered: str | None,
    changed: str | None,
    source: int,
    metadata: dict[str, str],
) -> None:
    def named(name: str | None) -> dict[str, str]:
        return {} if name is None else {"source": name}

    session.register("x", metadata=named(registered))
    assert session.get("x").source == (PYTHON if registered == "python" else ELIXIR)
    session.set("x", 2, metadata=named(changed))
    variable = session.get("x")
    assert variable.source == source
    assert dict(variable.metadata) == metadata
    assert session.call("ListVariables").variables[0] == variable
    assert session.start().initial_variables["x"] == variable


def test_the_time_of_the_last_change_never_falls(session: Session) -> None:
    session.register("x")
    times = [session.get("x").last_updated_at.ToNanoseconds()]
    for value in range(5):
        session.set("x", value)
        times.append(session.get("x").last_updated_at.ToNanoseconds())
    assert times == sorted(times)
    assert abs(times[-1] - time.time_ns()) < 60e9


def test_constraints_hold_for_every_set(session: Session) -> None:
    session.register("x", 5, constraints_json='{"min": 0, "max": 10}')
    with refused("INVALID_ARGUMENT", "'x'", "above maximum 10", "11"):
        session.set("x", 11)
    with refused("INVALID_ARGUMENT", "'x'", "below minimum 0", "-1"):
        session.set("x", -1)
    assert session.set("x", 10).new_version == 2
    assert session.get("x").constraints_json == '{"min": 0, "max": 10}'


NAMES = [
    "x",
    "n" * 256,
    "\N{SNAKE}" * 64,
    "a b",
    " ",
    "[",
    "[a]",
    "[!a]",
    "a.b/c:d",
    "%s{}\\'\"$^|()+",
    "e\N{COMBINING ACUTE ACCENT}",
    "\N{LATIN SMALL LETTER E WITH ACUTE}",
    "\u200b\u2028",
]


def test_names(session: Session) -> None:
    for name in NAMES:
        session.register(name, name, "string")
    for name in NAMES:
        assert plain(session.get(name).value) == name
    assert [v.name for v in session.call("ListVariables").variables] == NAMES


def listed(session: Session, pattern: str) -> list[str]:
    response = session.call("ListVariables", pattern=pattern)
    return [variable.name for variable in response.variables]


def test_a_list_is_of_live_variables_in_order_of_registration(session: Session) -> None:
    epoch = session.start().log_epoch
    assert session.call("ListVariables") == pb.ListVariablesResponse(offset=1, log_epoch=epoch)
    for name in ("b", "c", "a"):
        session.register(name)
    session.set("b", 2)
    session.delete("c")
    response = session.call("ListVariables")
    assert response == pb.ListVariablesResponse(
        variables=[session.get("b"), session.get("a")], offset=6, log_epoch=epoch
    )
    session.register("c")
    assert listed(session, "") == ["b", "a", "c"]


LISTED = [
    "a",
    "ab",
    "abc",
    "b",
    "A",
    "a.c",
    "[",
    "[ab]",
    "a[",
    "[a-c]x",
    "a\\b",
    "^a$",
    "é",
    "a\u2028b",
]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", LISTED),
        ("*", LISTED),
        ("**", LISTED),
        ("a", ["a"]),
        ("a*", ["a", "ab", "abc", "a.c", "a[", "a\\b", "a\u2028b"]),
        ("a?", ["ab", "a["]),
        ("a?c", ["abc", "a.c"]),
        ("a??", ["abc", "a.c", "a\\b", "a\u2028b"]),
        ("?", ["a", "b", "A", "[", "é"]),
        ("*b", ["ab", "b", "a\\b", "a\u2028b"]),
        ("*b*", ["ab", "abc", "b", "[ab]", "a\\b", "a\u2028b"]),
        ("[", ["["]),
        ("[*", ["[", "[ab]", "[a-c]x"]),
        ("*[", ["[", "a["]),
        ("[ab]", ["[ab]"]),
        ("[a-c]*", ["[a-c]x"]),
        ("[!z]", []),
        ("a.c", ["a.c"]),
        ("a\\b", ["a\\b"]),
        ("a\\*", ["a\\b"]),
        ("^a$", ["^a$"]),
        ("é", ["é"]),
        ("var_a_2", []),
        ("nothing*", []),
        ("a\n", []),
    ],
)
def test_patterns(bridge: BridgeProcess, pattern: str, expected: list[str]) -> None:
    session = Session(bridge, "patterns")
    if not session.lives:
        for name in LISTED:
            session.register(name)
    assert listed(session, pattern) == expected


def test_patterns_agree_with_their_definition(bridge: BridgeProcess) -> None:
    session = Session(bridge, "generated patterns")
    names = ["".join(letters) for n in (1, 2, 3) for letters in itertools.product("ab[", repeat=n)]
    for name in names:
        session.register(name)
    parts = ["".join(letters) for n in (1, 2, 3) for letters in itertools.product("a[*?", repeat=n)]
    for pattern in parts:
        regex = "".join({"*": ".*", "?": "."}.get(c) or re.escape(c) for c in pattern)
        expected = [name for name in names if re.fullmatch(regex, name)]
        assert listed(session, pattern) == expected, pattern
    assert any(fnmatch.fnmatchcase(name, "[a]") for name in names)  # where they would differ


def test_a_pattern_that_is_slow_elsewhere_is_answered(session: Session) -> None:
    session.register("a" * 256)
    assert listed(session, "*a" * 100 + "*b") == []
    assert listed(session, "*" * 1024) == ["a" * 256]


@pytest.mark.parametrize("size", [1, 2, 3, 9, 10, 11, 1000, 2**31 - 1])
def test_pages_of_a_list_meet(session: Session, size: int) -> None:
    for n in range(10):
        session.register(f"x{n}")
    session.register("other")
    names: list[str] = []
    sizes = []
    token = ""
    while len(names) <= 10:
        page = session.call("ListVariables", pattern="x*", page_size=size, page_token=token)
        assert page.offset == 12
        names += [variable.name for variable in page.variables]
        sizes.append(len(page.variables))
        token = page.next_page_token
        if not token:
            break
    assert names == [f"x{n}" for n in range(10)]
    assert all(each == size for each in sizes[:-1])
    assert 0 < sizes[-1] <= size  # the last page is not an empty one


def test_the_rest_of_a_list_may_be_asked_at_once(session: Session) -> None:
    for n in range(5):
        session.register(f"x{n}")
    first = session.call("ListVariables", page_size=2)
    rest = session.call("ListVariables", page_token=first.next_page_token)
    assert [variable.name for variable in rest.variables] == ["x2", "x3", "x4"]
    assert rest.next_page_token == ""


def test_changes_between_pages_repeat_and_lose_nothing(session: Session) -> None:
    for n in range(6):
        session.register(f"x{n}")
    first = session.call("ListVariables", page_size=3)
    session.set("x0", 2)
    session.delete("x1")
    session.delete("x2")
    session.delete("x4")
    session.register("x1")
    rest = session.call("ListVariables", page_size=10, page_token=first.next_page_token)
    assert [variable.name for variable in rest.variables] == ["x3", "x5", "x1"]


def test_pages_of_a_list_end_with_their_log(session: Session) -> None:
    session.register("x")
    session.register("y")
    token = session.call("ListVariables", page_size=1).next_page_token
    session.end()
    epoch = session.register("x").log_epoch
    session.register("y")
    with refused("FAILED_PRECONDITION", "page_token", epoch):
        session.call("ListVariables", page_size=1, page_token=token)


@pytest.fixture
async def small() -> AsyncIterator[Callable[..., Awaitable[bytes]]]:
    """Call a bridge without a transport, whose answers may have no more than 5,000 bytes."""
    committer = Committer(MemoryLog(), decider(), recall)
    committer.start()
    gate = Gate(committer, asyncio.get_running_loop(), 1 << 30)
    ending = lambda _: lambda _: None  # noqa: E731
    servicer = BridgeServicer(committer, gate, {}, ending, max_message_bytes=5_000)

    async def call(method: str, **fields: Any) -> bytes:  # noqa: ANN401
        request = GetMessageClass(METHODS[method].input_type)(session_id="s", **fields)
        raw = request.SerializeToString()
        if method in servicer.queries:
            return await servicer.queries[method](raw)
        return await servicer.mutations[method](Call(raw, ()))

    yield call
    await asyncio.to_thread(committer.close)


def variable(name: str, value: str, **fields: Any) -> dict[str, Any]:  # noqa: ANN401
    initial = packed(value, "string")
    return {"name": name, "type": "string", "initial_value": initial, **fields}


@pytest.mark.parametrize("large", ["value", "metadata", "constraints_json"])
async def test_what_does_not_fit_a_message_is_asked_by_pages(
    small: Callable[..., Awaitable[bytes]], large: str
) -> None:
    for name in ("x", "y"):
        fields = variable(name, "v")
        if large == "value":
            fields["initial_value"] = packed("v" * 3_000, "string")
        elif large == "metadata":
            fields["metadata"] = {"k": "v" * 3_000}
        else:
            fields["constraints_json"] = json.dumps({"description": "v" * 3_000})
        await small("RegisterVariable", **fields)
    with pytest.raises(ResourceExhausted, match=r"5000 bytes.*page_size"):
        await small("ListVariables")
    first = pb.ListVariablesResponse.FromString(await small("ListVariables", page_size=1))
    assert [each.name for each in first.variables] == ["x"]
    second = pb.ListVariablesResponse.FromString(
        await small("ListVariables", page_size=1, page_token=first.next_page_token)
    )
    assert [each.name for each in second.variables] == ["y"]


async def test_a_batch_that_does_not_fit_a_message_is_asked_in_several(
    small: Callable[..., Awaitable[bytes]],
) -> None:
    for name in ("x", "y"):
        await small("RegisterVariable", **variable(name, "v" * 3_000))
    with pytest.raises(ResourceExhausted, match="several calls") as caught:
        await small("GetVariables", variable_identifiers=["x", "y"])
    assert "page_size" not in caught.value.message  # which GetVariables does not have


async def test_a_history_that_does_not_fit_a_message_is_asked_by_pages(
    small: Callable[..., Awaitable[bytes]],
) -> None:
    await small("RegisterVariable", **variable("x", "v" * 2_000))
    for _ in range(3):
        value = packed("w" * 2_000, "string")
        await small("SetVariable", variable_identifier="x", value=value)
    with pytest.raises(ResourceExhausted, match=r"5000 bytes.*page_size"):
        await small("GetVariableHistory", variable_identifier="x")
    raw = await small("GetVariableHistory", variable_identifier="x", page_size=1)
    assert [each.version for each in pb.GetVariableHistoryResponse.FromString(raw).entries] == [4]


async def test_a_session_that_does_not_fit_a_message_is_refused_in_words(
    small: Callable[..., Awaitable[bytes]],
) -> None:
    for name in ("x", "y"):
        await small("RegisterVariable", **variable(name, "v" * 3_000))
    with pytest.raises(ResourceExhausted, match="5000 bytes"):
        await small("InitializeSession")


async def test_a_value_above_the_limit_is_refused(
    small: Callable[..., Awaitable[bytes]],
) -> None:
    await small("RegisterVariable", **variable("x", "v"))
    value = packed("v" * (96 * 1024 * 1024), "string")
    with pytest.raises(ResourceExhausted, match="'x'"):
        await small("SetVariable", variable_identifier="x", value=value)
