"""What the client's calls give, of both clients: the same names, the same results."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from snakepit_bridge.client import (
    AsyncClient,
    AsyncSession,
    AsyncSubscription,
    AsyncWatch,
    Client,
    Session,
    Subscription,
    ToolFailed,
    Watch,
)
from snakepit_bridge.client.aio import AsyncBatch
from snakepit_bridge.client.sync import SyncBatch
from snakepit_bridge.errors import (
    AlreadyExists,
    BridgeError,
    EpochMismatch,
    InvalidConstraints,
    InvalidRequest,
    InvalidValue,
    RequestIdReused,
    ResourceExhausted,
    SessionNotFound,
    ToolNotFound,
    ToolRaised,
    VariableNotFound,
    VersionConflict,
    VersionNotFound,
)
from snakepit_bridge.views import BatchRefused
from tests import wire_session
from tests.bridge_process import BridgeProcess
from tests.client_faces import FACES, Face
from tests.wire_tools import note

TOOLS = "tests.wire_tools"
MANY = 1_000_000
"""Numbers of an embedding."""


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BridgeProcess]:
    path = tmp_path_factory.mktemp("bridge") / "bridge.db"
    with BridgeProcess(path, "--adapter", TOOLS) as process:
        yield process
        assert process.stop() == 0


@pytest.fixture(scope="module", params=FACES)
def face(request: pytest.FixtureRequest) -> Iterator[Face]:
    with Face.open(request.param) as face:
        yield face


@pytest.fixture(scope="module")
def client(face: Face, bridge: BridgeProcess) -> Iterator[Any]:
    with face.client(f"127.0.0.1:{bridge.port}") as client:
        yield client


@pytest.fixture
def session(client: Any, request: pytest.FixtureRequest) -> Any:  # noqa: ANN401 - of either client
    return client.session(request.node.name)


def head(bridge: BridgeProcess, session: Any) -> int:  # noqa: ANN401 - of either client
    """Events in its log, told by the bridge itself."""
    return wire_session.Session(bridge, session.session_id).head


# Names and signatures.


@pytest.mark.parametrize(
    ("sync", "asynchronous"),
    [
        (Client, AsyncClient),
        (Session, AsyncSession),
        (Watch, AsyncWatch),
        (SyncBatch, AsyncBatch),
        (Subscription, AsyncSubscription),
    ],
)
def test_both_clients_have_the_same_names_and_parameters(sync: type, asynchronous: type) -> None:
    def public(kind: type) -> dict[str, Any]:
        names = {name for name in dir(kind) if not name.startswith("_")}
        return {name: getattr(kind, name) for name in names}

    ours, theirs = public(sync), public(asynchronous)
    assert ours.keys() == theirs.keys()
    for name, ours_ in ours.items():
        assert callable(ours_) == callable(theirs[name]), name
        if callable(ours_):
            assert parameters(ours_) == parameters(theirs[name]), name
    if sync is Client:
        assert parameters(sync) == parameters(asynchronous)


def parameters(function: Callable[..., Any]) -> list[tuple[str, object, object, object]]:
    return [
        (one.name, one.kind, one.default, one.annotation)
        for one in inspect.signature(function).parameters.values()
    ]


async def test_what_only_blocks_is_refused_by_the_session_that_is_awaited() -> None:
    async with AsyncClient("127.0.0.1:1") as bridge:
        session: Any = bridge.session("s")
        with pytest.raises(TypeError):
            session["x"] = 1
        with pytest.raises(TypeError):
            del session["x"]
        # By their numbers, as Python would look for them, there is no end of items.
        with pytest.raises(TypeError):
            assert "x" in session
        with pytest.raises(TypeError):
            list(session)


# Each method.


def test_a_session_from_its_beginning_to_its_end(client: Any, session: Any) -> None:  # noqa: ANN401
    with pytest.raises(SessionNotFound, match="not found: initialise it first"):
        session.info()
    epoch = session.start({"team": "a"})
    assert session.start({"team": "b"}) == epoch
    session.register("x", "integer", 1)
    info = session.info()
    assert (info.session_id, dict(info.metadata)) == (session.session_id, {"team": "a"})
    assert (info.variable_count, info.offset, info.log_epoch) == (1, 2, epoch)
    assert info.created_at.tzinfo is not None
    assert session.end() is True
    assert session.end() is False
    with pytest.raises(SessionNotFound):
        session.info()
    again = client.session(session.session_id)
    assert again.start() != epoch
    late = client.session(session.session_id, log_epoch=epoch)
    for call in (
        late.info,
        late.list,
        lambda: late.get("x"),
        lambda: late.register("x", "integer", 1),
        lambda: late.set_many({"x": 1}),
        lambda: late.execute("add", {"a": 1}),
    ):
        with pytest.raises(EpochMismatch) as caught:
            call()
        assert caught.value.facts["log_epoch"] == again.info().log_epoch


def test_the_bridge_is_asked_how_it_is(client: Any) -> None:  # noqa: ANN401 - of either kind
    assert 0 < client.ping() < 30
    tools = client.tools()
    assert list(tools) == sorted(tools)
    add = tools["add"]
    assert (add.name, add.supports_streaming) == ("add", False)
    assert [(one.name, one.type, one.required, one.default) for one in add.parameters] == [
        ("a", "integer", True, None),
        ("b", "integer", False, 1),
    ]
    assert tools["count_to"].supports_streaming


def test_a_variable_from_its_registration_to_its_end(session: Any) -> None:  # noqa: ANN401
    made = session.register("t", "float", 0.7, {"min": 0, "max": 2}, metadata={"unit": "K"})
    assert (made.name, made.type, made.value, made.version) == ("t", "float", 0.7, 1)
    assert dict(made.constraints) == {"min": 0, "max": 2}
    assert (made.metadata["unit"], made.source) == ("K", "python")
    assert session.get("t") == session.get(made.id) == made
    written = session.set("t", 0.9, metadata={"why": "colder", "source": "me"})
    assert (written.version, written.offset, written.duplicate) == (2, made.offset + 1, False)
    assert session["t"] == 0.9
    assert session.set("t", 1.1, expected_version=2).version == 3
    back = session.rollback("t", 1, metadata={"why": "back"})
    assert (back.value, back.version) == (0.7, 4)
    history = session.history("t")
    assert [(one.version, one.value, one.previous, one.source) for one in history] == [
        (4, 0.7, 1.1, "python"),
        (3, 1.1, 0.9, "python"),
        (2, 0.9, 0.7, "me"),
        (1, 0.7, None, "python"),
    ]
    assert (history[0].rolled_back_to, history[2].metadata["why"]) == (1, "colder")
    assert session.history("t", 2) == history[:2]
    session.register("other", "string", "text")
    assert [variable.name for variable in session.list()] == ["t", "other"]
    assert [variable.name for variable in session.list("oth*")] == ["other"]
    reading = session.get_many(["t", "nothing", made.id, "t"])
    assert list(reading.variables) == ["t", made.id]
    assert (reading.offset, reading.log_epoch) == (session.info().offset, written.log_epoch)
    assert session.get_many([]).variables == {}
    gone = session.delete("t", metadata={"why": "done"})
    assert gone.version == 0
    with pytest.raises(VariableNotFound, match="variable 't' not found"):
        session.get("t")
    # As from the beginning, but for the one that is deleted, by its id.
    assert [one.version for one in session.history(made.id)][:4] == [4, 3, 2, 1]


def test_a_session_is_used_as_a_mapping(bridge: BridgeProcess) -> None:
    with Client(f"127.0.0.1:{bridge.port}") as client:
        session = client.session("mapping")
        session.register("a", "integer", 1)
        session.register("b", "integer", 2)
        session["a"] += 1
        assert session["a"] == 2
        assert "a" in session
        assert "c" not in session
        assert list(session) == ["a", "b"]
        del session["a"]
        assert list(session) == ["b"]
        with pytest.raises(VariableNotFound):
            session["a"]
        with pytest.raises(VariableNotFound):
            session["a"] = 1
        with pytest.raises(VariableNotFound):
            del session["a"]


# Values.

VALUES: list[tuple[str, Any, Any]] = [
    ("float", 0.5, -1e308),
    ("float", float("inf"), 3),
    ("float", np.float32(0.25), np.int64(2)),
    ("integer", 2**4000, -(2**4000)),
    ("integer", np.int64(5), 3.0),
    ("string", "äöü \x00 \N{SNAKE}", ""),
    ("boolean", True, np.bool_(False)),
    ("choice", "one", "two"),
    ("module", "ChainOfThought", "Predict"),
    ("embedding", [0.1, float("nan"), 3], np.array([1, 2], np.float32)),
    ("embedding", np.linspace(0, 1, 30_000), []),
    ("tensor", np.arange(6, dtype=np.int8).reshape(2, 3), [[1.5, 2], [3, 4]]),
    ("tensor", np.ones((300, 300), np.float32), np.zeros((0, 4))),
    ("tensor", np.array(5.0), np.asfortranarray(np.arange(8.0).reshape(2, 4))),
    ("tensor", np.arange(40_000, dtype=">i4")[::2], np.array([True, False])),
]


@pytest.mark.parametrize(
    ("type_name", "first", "then"), VALUES, ids=[f"{each[0]}" for each in VALUES]
)
def test_each_type_comes_back_as_it_went(
    session: Any,  # noqa: ANN401 - of either client
    type_name: str,
    first: Any,  # noqa: ANN401 - of any type
    then: Any,  # noqa: ANN401
) -> None:
    same(session.register("x", type_name, first).value, first)
    same(session.get("x").value, first)
    session.set("x", then)
    same(session["x"], then)
    same(session.get_many(["x"]).variables["x"].value, then)
    same(session.list()[0].value, then)
    same(session.history("x")[0].previous, first)
    session.set_many({"x": first})
    same(session["x"], first)


def same(found: Any, sent: Any) -> None:  # noqa: ANN401 - of any type
    if isinstance(found, np.ndarray):
        assert not found.flags.writeable
        np.testing.assert_array_equal(found, np.asarray(sent))
        return
    assert type(found) in {float, int, str, bool}
    assert found == sent


def test_a_million_numbers_and_60_megabytes(session: Any) -> None:  # noqa: ANN401 - of either client
    embedding = np.sin(np.arange(MANY, dtype=np.float64))
    session.register("embedding", "embedding", embedding)
    same(session["embedding"], embedding)
    tensor = np.arange(15_000_000, dtype=np.float32).reshape(3_000, 5_000)
    assert tensor.nbytes == 60_000_000
    session.register("tensor", "tensor", tensor[:1])
    session.set("tensor", tensor)
    found = session["tensor"]
    assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
    assert np.array_equal(found, tensor)


def test_what_is_larger_than_the_limit_is_refused_and_changes_nothing(
    tmp_path: Path, face: Face
) -> None:
    size = 1_000_000
    with (
        BridgeProcess(tmp_path / "bridge.db", "--max-message-size", str(size)) as small,
        face.client(f"127.0.0.1:{small.port}") as client,
    ):
        session = client.session("s")
        session.register("t", "tensor", np.zeros(3))
        for count in (size * 3 // 4, size * 2, size * 20):
            with pytest.raises(ResourceExhausted, match=r"larger|bytes") as caught:
                session.set("t", np.zeros(count, np.int8))
            assert "no bridge answers" not in caught.value.message
        assert session.get("t").version == 1
        session.set("t", np.zeros(size // 2, np.int8))
        assert session.get("t").version == 2


def test_lists_and_histories_beyond_a_message_come_in_pages(tmp_path: Path, face: Face) -> None:
    with (
        BridgeProcess(tmp_path / "bridge.db", "--max-message-size", "64KiB") as small,
        face.client(f"127.0.0.1:{small.port}") as client,
    ):
        session = client.session("s")
        names = [f"v{number}" for number in range(9)]
        for name in names:
            session.register(name, "string", "x" * 20_000)
        assert [variable.name for variable in session.list("v*")] == names
        for number in range(1, 9):
            session.set("v0", f"{number}" * 20_000)
        assert [entry.version for entry in session.history("v0", 8)] == list(range(9, 1, -1))
        with pytest.raises(ResourceExhausted):
            session.get_many(names)


# Values that are wrong.


@pytest.mark.parametrize(
    ("type_name", "good", "constraints", "wrong", "words"),
    [
        ("float", 1, {"max": 2}, 3, ["'x'", "3", "above maximum 2"]),
        ("float", 1, {"min": 0}, -1, ["'x'", "below minimum 0"]),
        ("float", 1, None, "0.5", ["'x'", "float", "must be a number", "str '0.5'"]),
        ("float", 1, None, None, ["'x'", "float"]),
        ("float", 1, None, True, ["'x'", "float", "bool True"]),
        ("float", 1, None, [1.0], ["'x'", "float", "list"]),
        ("integer", 1, None, 1.5, ["'x'", "must be an integer"]),
        ("integer", 1, None, 10**4301, ["'x'", "digits"]),
        ("string", "a", {"max_length": 3}, "long", ["'x'", "4", "3"]),
        ("string", "a", None, "\ud800", ["'x'", "string"]),
        ("string", "a", None, b"bytes", ["'x'", "string", "bytes"]),
        ("boolean", True, None, 1, ["'x'", "boolean"]),
        ("choice", "one", {"choices": ["one", "two"]}, "three", ["'x'", "'three'", "one", "two"]),
        ("module", "Predict", {"choices": ["Predict"]}, "ReAct", ["'x'", "'ReAct'", "Predict"]),
        ("embedding", [1, 2], {"dimensions": 2}, [1, 2, 3], ["'x'", "3", "2"]),
        ("embedding", [1, 2], None, [[1, 2]], ["'x'", "embedding"]),
        ("embedding", [1, 2], None, np.array([1j]), ["'x'", "embedding", "complex"]),
        ("tensor", [[1.0]], {"shape": [None, 1]}, [[1.0, 2.0]], ["'x'", "[1, 2]", "shape"]),
        ("tensor", [[1.0]], None, [[1, 2], [3]], ["'x'", "tensor"]),
        ("tensor", [[1.0]], None, np.array(["a"]), ["'x'", "tensor"]),
        ("tensor", [[1.0]], None, object(), ["'x'", "tensor", "object"]),
    ],
    ids=lambda value: repr(value)[:20] if isinstance(value, str) else "",
)
def test_a_wrong_value_is_refused_by_name_type_and_constraint(  # noqa: PLR0917 - parametrized
    session: Any,  # noqa: ANN401 - of either client
    type_name: str,
    good: Any,  # noqa: ANN401 - of any type
    constraints: dict[str, Any] | None,
    wrong: Any,  # noqa: ANN401
    words: list[str],
) -> None:
    session.register("x", type_name, good, constraints)
    calls: list[Callable[[], object]] = [
        lambda: session.set("x", wrong),
        lambda: session.set_many({"x": wrong}),
        lambda: session.register("y", type_name, wrong, constraints),
    ]
    for call, name in zip(calls, ("'x'", "'x'", "'y'"), strict=True):
        with pytest.raises(InvalidRequest) as caught:
            call()
        for word in words:
            assert word.replace("'x'", name) in caught.value.message, caught.value.message
    assert session.get("x").version == 1


def test_what_is_wrong_beside_the_value_is_told(session: Any) -> None:  # noqa: ANN401
    session.register("x", "integer", 1)
    refused: list[tuple[Callable[[], object], type[BridgeError], str]] = [
        (lambda: session.register("x", "integer", 1), AlreadyExists, "'x'"),
        (lambda: session.register("y", "complex", 1), InvalidRequest, "complex"),
        (lambda: session.register("y", "integer", 1, {"up": 2}), InvalidConstraints, "'up'"),
        (lambda: session.register("y*", "integer", 1), InvalidRequest, "y*"),
        (lambda: session.register("", "integer", 1), InvalidRequest, "1 to 256 bytes"),
        (lambda: session.get(""), VariableNotFound, "''"),
        (lambda: session.set("nothing", 1), VariableNotFound, "'nothing'"),
        (lambda: session.set("x", 2, expected_version=7), VersionConflict, "7"),
        (lambda: session.set("x", "two", expected_version=7), VersionConflict, "7"),
        (lambda: session.set("x", 2, expected_version=-1), InvalidRequest, "-1"),
        (lambda: session.set("x", 2, metadata={"k" * 300: "v"}), InvalidRequest, "metadata"),
        (lambda: session.delete("nothing"), VariableNotFound, "'nothing'"),
        (lambda: session.history("nothing"), VariableNotFound, "'nothing'"),
        (lambda: session.history("x", -1), InvalidRequest, "-1"),
        (lambda: session.rollback("x", 9), VersionNotFound, "9"),
        (lambda: session.rollback("nothing", 1), VariableNotFound, "'nothing'"),
    ]
    for call, kind, words in refused:
        with pytest.raises(kind) as caught:
            call()
        assert words in caught.value.message
    assert session.get("x").version == 1


# Batches.


def test_a_batch_is_one_transaction(bridge: BridgeProcess, session: Any) -> None:  # noqa: ANN401
    for name in ("a", "b"):
        session.register(name, "integer", 0)
    before = head(bridge, session)
    with session.batch(metadata={"why": "both"}) as batch:
        batch["a"] = 1
        batch.set("b", 2, expected_version=1)
        assert (session["a"], session["b"], batch.result) == (0, 0, None)
    assert dict(batch.result.versions) == {"a": 2, "b": 2}
    assert (session["a"], session["b"]) == (1, 2)
    assert head(bridge, session) == before + 2
    assert [session.history(name)[0].metadata["why"] for name in "ab"] == ["both", "both"]


def test_a_batch_whose_block_raises_changes_nothing(bridge: BridgeProcess, session: Any) -> None:  # noqa: ANN401
    session.register("a", "integer", 0)
    before = head(bridge, session)
    batch = session.batch()

    def use() -> None:
        with batch:
            batch["a"] = 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use()
    with session.batch() as empty:
        pass
    assert (batch.result, empty.result) == (None, None)
    assert head(bridge, session) == before


def test_a_batch_that_is_refused_changes_nothing_and_tells_why(
    bridge: BridgeProcess,
    session: Any,  # noqa: ANN401 - of either client
) -> None:
    session.register("a", "integer", 0, {"max": 5})
    session.register("b", "float", 0)
    first = session.register("c", "string", "")
    before = head(bridge, session)

    def collect(changes: dict[str, Any], versions: dict[str, int]) -> None:
        with session.batch() as batch:
            for name, value in changes.items():
                batch.set(name, value, expected_version=versions.get(name, 0))

    with pytest.raises(BatchRefused) as caught:
        collect({"a": 9, "b": "text", "c": object()}, {"b": 1})
    assert sorted(caught.value.errors) == ["a", "b", "c"]
    assert "above maximum 5" in caught.value.errors["a"]
    assert "float" in caught.value.errors["b"]
    assert "object" in caught.value.errors["c"]
    with pytest.raises(BatchRefused, match="version"):
        collect({"a": 1, "b": 1}, {"a": 7})
    with pytest.raises(InvalidRequest, match="'nothing'"):
        collect({"a": 1, "nothing": 1}, {})
    with pytest.raises(InvalidRequest, match="'c'"):
        collect({"c": "one", first.id: "two"}, {})
    batch = session.batch()
    batch["a"] = 1
    with pytest.raises(InvalidRequest, match="changes 'a' already"):
        batch["a"] = 2
    assert head(bridge, session) == before


def test_changes_that_are_each_on_its_own(session: Any) -> None:  # noqa: ANN401 - of either client
    session.register("a", "integer", 0)
    session.register("b", "integer", 0)
    result = session.set_many({"a": 1, "b": "text"}, atomic=False, metadata={"why": "each"})
    assert dict(result.versions) == {"a": 2}
    assert list(result.errors) == ["b"]
    result = session.set_many({"a": 2, "b": 2}, atomic=False, expected_versions={"a": 1, "b": 1})
    assert (dict(result.versions), list(result.errors)) == ({"b": 2}, ["a"])
    assert session.set_many({}).versions == {}


# Types that become others.


def test_a_name_that_became_another_variable_is_noticed(
    bridge: BridgeProcess,
    session: Any,  # noqa: ANN401 - of either client
) -> None:
    other = wire_session.Session(bridge, session.session_id)
    session.register("x", "integer", 1)
    session.register("y", "integer", 1)
    for name in ("x", "y"):
        other.delete(name)
        other.register(name, "one", "string")
    assert session.set("x", "two").version == 2
    assert dict(session.set_many({"x": "three", "y": "four"}).versions) == {"x": 3, "y": 2}
    with pytest.raises(InvalidValue, match=r"(?s)'x'.*string"):
        session.set("x", 5)


# Request ids.


def test_a_request_id_makes_a_change_once(bridge: BridgeProcess, session: Any) -> None:  # noqa: ANN401
    first = session.register("x", "integer", 1, request_id="r1")
    assert session.register("x", "integer", 1, request_id="r1") == first
    written = session.set("x", 2, request_id="r2")
    assert not written.duplicate
    session.set("x", 3)
    before = head(bridge, session)
    again = session.set("x", 2, request_id="r2")
    assert again == written._replace(duplicate=True)
    assert session["x"] == 3
    batch = session.set_many({"x": 4}, request_id="r3")
    assert session.set_many({"x": 4}, request_id="r3") == batch
    back = session.rollback("x", 1, request_id="r4")
    assert session.rollback("x", 1, request_id="r4") == back
    gone = session.delete("x", request_id="r5")
    assert session.delete("x", request_id="r5") == gone._replace(duplicate=True)
    assert head(bridge, session) == before + 3
    assert session.start(request_id="r6") == session.start(request_id="r6")


def test_a_request_id_is_not_reused_for_something_else(session: Any) -> None:  # noqa: ANN401
    session.register("x", "integer", 1)
    session.set("x", 2, request_id="r")
    calls: list[Callable[[], object]] = [
        lambda: session.set("x", 3, request_id="r"),
        lambda: session.set("x", 2, metadata={"other": "1"}, request_id="r"),
        lambda: session.set_many({"x": 2}, request_id="r"),
        lambda: session.delete("x", request_id="r"),
        lambda: session.rollback("x", 1, request_id="r"),
        lambda: session.register("y", "integer", 1, request_id="r"),
        lambda: session.execute("add", {"a": 1}, request_id="r"),
    ]
    for call in calls:
        with pytest.raises(RequestIdReused, match="'r' was used before"):
            call()
    assert session.get("x").version == 2


# Tools.


def test_tools_are_run(bridge: BridgeProcess, session: Any, tmp_path: Path) -> None:  # noqa: ANN401
    assert session.execute("add", {"a": 1}) == 2
    assert session.execute("nothing") is None
    assert bytes(session.execute("reverse_bytes", {"data": b"\x00\xff"})) == b"\xff\x00"
    assert session.execute("norm", {"vector": np.array([3.0, 4.0])}) == 5
    zeros = session.execute("zeros", {"count": 100_000})
    assert zeros.shape == (100_000,)
    assert session.execute("norm", {"vector": np.ones(90_000)}) == 300
    value = {"a": [1, 2.5, None, {"b": "ä"}], "c": True}
    assert session.execute("echo", {"value": value}) == value
    runs = str(tmp_path / "runs")
    for _ in range(2):
        assert session.execute("count_run", {"runs": runs}, request_id="once") == "done"
    assert Path(runs).read_text().count("\n") == 1
    with pytest.raises(ToolNotFound, match="did you mean 'add'"):
        session.execute("ad", {"a": 1})
    with pytest.raises(InvalidRequest, match="'a'"):
        session.execute("add", {"a": "one"})
    with pytest.raises(InvalidValue, match="argument 'a' of tool 'add'"):
        session.execute("add", {"a": object()})
    with pytest.raises(ToolFailed) as caught:
        session.execute("raises", {"what": "ValueError"})
    failed = caught.value
    assert failed.error_type
    assert failed.message.startswith(f"tool 'raises' raised {failed.error_type}")
    assert "wire_tools" in failed.traceback


def test_streams_of_tools_are_iterated(session: Any, tmp_path: Path) -> None:  # noqa: ANN401
    assert [item.data for item in session.stream("count_to", {"to": 4})] == [1, 2, 3, 4]
    items = list(session.stream("chunk_with_metadata", {"text": "a"}))
    assert any(item.metadata for item in items)
    with pytest.raises(ToolRaised, match="raises_in_stream"):
        list(session.stream("raises_in_stream", {"what": "ValueError"}))
    with pytest.raises(ToolNotFound):
        next(session.stream("nowhere"))
    with pytest.raises(InvalidRequest):
        next(session.stream("count_to", {"to": "four"}))
    with pytest.raises(InvalidValue, match="argument 'to'"):
        next(session.stream("count_to", {"to": object()}))
    runs = str(tmp_path / "runs")
    with contextlib.closing(session.stream("for_ever", {"runs": runs, "size": 10})) as stream:
        assert [len(next(stream).data) for _ in range(3)] == [10, 10, 10]


def test_a_tool_is_cancelled_at_its_deadline(session: Any, tmp_path: Path) -> None:  # noqa: ANN401
    runs, go = str(tmp_path / "runs"), str(tmp_path / "go")
    with pytest.raises(BridgeError) as caught:
        session.execute("count_run_async", {"runs": runs, "go": go}, timeout=0.2)
    assert caught.value.code == "DEADLINE_EXCEEDED"
    with pytest.raises(BridgeError) as caught:
        list(session.stream("holding_stream", {"runs": runs, "go": go}, timeout=0.2))
    assert caught.value.code == "DEADLINE_EXCEEDED"
    note(go, "go")


# Options.


def test_options_that_make_no_sense_are_refused(face: Face) -> None:
    wrong: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        (5, {}, TypeError, "target is a int"),
        ("", {}, ValueError, "target is empty"),
        ("h:1", {"timeout": 0}, ValueError, "timeout 0"),
        ("h:1", {"timeout": -1}, ValueError, "timeout -1"),
        ("h:1", {"timeout": math.nan}, ValueError, "timeout nan"),
        ("h:1", {"token": "two\nlines"}, ValueError, "visible ASCII"),
        ("h:1", {"token": "ä"}, ValueError, "visible ASCII"),
    ]
    for target, options, kind, words in wrong:
        with pytest.raises(kind, match=words) as caught:
            face.client(target, **options)
        assert "lines" not in str(caught.value)


def test_tokens_are_not_shown(face: Face) -> None:
    with face.client("127.0.0.1:1", token="correct-horse") as client:
        assert "correct" not in repr(client._connection.options)
        assert repr(client._connection.options) == "Options('127.0.0.1:1', timeout=10)"


def test_both_kinds_say_what_they_are(bridge: BridgeProcess) -> None:
    with Client("127.0.0.1:1") as client:
        assert repr(client) == "Client('127.0.0.1:1')"
        assert repr(client.session("a")) == "Session('a')"

    async def asynchronous() -> list[str]:
        async with AsyncClient("127.0.0.1:1") as client:
            return [repr(client), repr(client.session("a"))]

    assert asyncio.run(asynchronous()) == ["AsyncClient('127.0.0.1:1')", "AsyncSession('a')"]


def test_changes_name_their_source(face: Face, bridge: BridgeProcess) -> None:
    target = f"127.0.0.1:{bridge.port}"
    headers = (("x-snakepit-correlation-id", "c-1"),)
    with face.client(target, source="tuner", metadata=headers) as client:
        session = client.session(f"source-{face.name}")
        assert session.register("x", "integer", 1).source == "tuner"
        session.set("x", 2)
        session.set("x", 3, metadata={"source": "other"})
        assert [one.source for one in session.history("x")] == ["other", "tuner", "tuner"]
