"""``SessionContext`` as a library: one session in this process, without any server."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from snakepit_bridge.decide import decider, recall
from snakepit_bridge.errors import (
    AlreadyExists,
    InvalidConstraints,
    InvalidRequest,
    InvalidValue,
    SessionNotFound,
    Unavailable,
    VariableNotFound,
    VersionConflict,
    VersionNotFound,
)
from snakepit_bridge.events.committer import Committer
from snakepit_bridge.events.log import LogInUse, LogUnusable
from snakepit_bridge.events.memory import MemoryLog
from snakepit_bridge.session_context import (
    BatchRefused,
    BatchResult,
    SessionContext,
    Variable,
    VariableVersion,
)


@pytest.fixture
def session() -> Iterator[SessionContext]:
    with SessionContext("session") as context:
        yield context


def test_a_variable_is_all_that_is_known_of_it(session: SessionContext) -> None:
    id_ = session.register_variable(
        "temperature", "float", 0.7, {"min": 0, "max": 2}, {"unit": "K"}
    )
    variable = session.get_variable("temperature")
    assert variable is not None
    assert variable == Variable(
        id="var_temperature_2",
        name="temperature",
        type="float",
        value=0.7,
        version=1,
        offset=2,
        constraints={"min": 0, "max": 2},
        metadata={"unit": "K"},
        source="python",
        updated_at=variable.updated_at,
    )
    assert abs(variable.updated_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert session.get_variable(id_) == variable


def test_a_variable_cannot_be_changed_by_hand(session: SessionContext) -> None:
    session.register_variable("x", "integer", 1, {"max": 3}, {"k": "v"})
    variable: Any = session.get_variable("x")
    with pytest.raises(dataclasses.FrozenInstanceError):
        variable.value = 2
    with pytest.raises(TypeError):
        variable.metadata["k"] = "w"
    with pytest.raises(TypeError):
        variable.constraints["max"] = 4
    entry: Any = session.get_variable_history("x")[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        entry.version = 2
    with pytest.raises(TypeError):
        entry.metadata["k"] = "w"


def test_what_does_not_exist_is_none(session: SessionContext) -> None:
    session.register_variable("gone", "integer", 1)
    session.delete_variable("gone")
    assert session.get_variable("nothing") is None
    assert session.get_variable("") is None
    assert session.get_variable("gone") is None
    assert session.get_variable("var_gone_2") is None
    assert session.get_variables(["nothing", "gone"]) == {}


def test_a_write_to_what_does_not_exist_raises(session: SessionContext) -> None:
    for write in (
        lambda: session.set_variable("nothing", 1),
        lambda: session.delete_variable("nothing"),
        lambda: session.rollback_variable("nothing", 1),
        lambda: session.get_variable_history("nothing"),
    ):
        with pytest.raises(VariableNotFound, match="'nothing' not found"):
            write()
    with pytest.raises(InvalidRequest, match="'nothing' not found"):
        session.set_variables({"nothing": 1})


def test_setting_gives_the_new_version(session: SessionContext) -> None:
    id_ = session.register_variable("x", "integer", 1)
    assert session.set_variable("x", 2) == 2
    assert session.set_variable(id_, 2, {"why": "again"}) == 3
    variable = session.get_variable("x")
    assert variable is not None
    assert (variable.value, variable.version, variable.offset) == (2, 3, 4)
    assert dict(variable.metadata) == {"why": "again"}


def test_an_expected_version_is_compared(session: SessionContext) -> None:
    session.register_variable("x", "integer", 1)
    assert session.set_variable("x", 2, expected_version=1) == 2
    with pytest.raises(VersionConflict, match="version 2, expected 1"):
        session.set_variable("x", 3, expected_version=1)
    with pytest.raises(InvalidRequest, match="negative"):
        session.set_variable("x", 3, expected_version=-1)


def test_what_is_wrong_raises_and_changes_nothing(session: SessionContext) -> None:
    session.register_variable("x", "integer", 1, {"max": 3})
    with pytest.raises(AlreadyExists, match="'x' already exists"):
        session.register_variable("x", "integer", 1)
    with pytest.raises(InvalidValue, match="unknown type 'complex'"):
        session.register_variable("y", "complex", 1)
    with pytest.raises(InvalidConstraints, match="Invalid constraints"):
        session.register_variable("y", "integer", 1, {"maximum": 3})
    with pytest.raises(InvalidRequest, match="control character"):
        session.register_variable("a\n", "integer", 1)
    with pytest.raises(InvalidValue, match="above maximum 3"):
        session.set_variable("x", 4)
    for value in ("1", 1.5, True, None, [1], object()):
        with pytest.raises(InvalidValue, match="must be an integer"):
            session.set_variable("x", value)
    assert [variable.name for variable in session.list_variables()] == ["x"]
    assert session.get_variable_history("x")[0].version == 1


@pytest.mark.parametrize(
    ("type_", "given", "kept"),
    [
        ("float", 0.1, 0.1),
        ("float", 1, 1.0),
        ("float", np.float32(0.5), 0.5),
        ("float", float("inf"), float("inf")),
        ("integer", 10**30, 10**30),
        ("integer", 3.0, 3),
        ("integer", np.int8(3), 3),
        ("string", "é\n\0\N{SNAKE}", "é\n\0\N{SNAKE}"),
        ("boolean", True, True),
        ("boolean", np.True_, True),
        ("choice", "a", "a"),
        ("module", "dspy.Predict", "dspy.Predict"),
    ],
)
def test_plain_values(session: SessionContext, type_: str, given: object, kept: object) -> None:
    session.register_variable("x", type_, given)
    variable = session.get_variable("x")
    assert variable is not None
    assert variable.value == kept
    assert type(variable.value) is type(kept)


@pytest.mark.parametrize(
    ("type_", "given", "dtype"),
    [
        ("embedding", [0.5, 1, -2], np.float64),
        ("embedding", np.linspace(0, 1, 1000), np.float64),
        ("embedding", np.array([1.5, np.nan, np.inf]), np.float64),
        ("embedding", np.arange(3, dtype=np.float32), np.float64),
        ("tensor", np.arange(6, dtype=np.int32).reshape(2, 3), np.int64),
        ("tensor", np.arange(6.5).reshape(7, 1), np.float64),
        ("tensor", [[1.5, 2], [3, 4]], np.float64),
        ("tensor", {"shape": [2, 1], "data": [1, 2]}, np.int64),
        ("tensor", np.zeros((0, 3)), np.float64),
        ("tensor", np.random.default_rng(1).random((50, 40)), np.float64),
    ],
)
def test_arrays(session: SessionContext, type_: str, given: Any, dtype: type) -> None:  # noqa: ANN401
    expected = np.array(given["data"]).reshape(given["shape"]) if type(given) is dict else given
    session.register_variable("x", type_, given)
    session.set_variable("x", given)
    variable = session.get_variable("x")
    assert variable is not None
    newest, oldest = session.get_variable_history("x")
    for array in (variable.value, newest.value, newest.previous, oldest.value):
        assert type(array) is np.ndarray
        assert array.dtype == dtype
        np.testing.assert_array_equal(array, np.asarray(expected))


@pytest.mark.parametrize("type_", ["embedding", "tensor"])
def test_arrays_are_read_only(session: SessionContext, type_: str) -> None:
    given = np.array([1.0, 2.0])
    session.register_variable("x", type_, given)
    given[0] = 9  # its owner's own matter
    session.set_variable("x", [3, 4])
    variable = session.get_variable("x")
    assert variable is not None
    entry = session.get_variable_history("x")[0]
    for array in (variable.value, entry.value, entry.previous):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 9
    assert entry.previous.tolist() == [1, 2]


def test_constraints_are_exact(session: SessionContext) -> None:
    limit = 2**70  # an integer has up to 4,300 digits, and so may its bounds
    session.register_variable("x", "integer", limit, {"max": limit})
    variable = session.get_variable("x")
    assert variable is not None
    assert variable.constraints["max"] == limit
    with pytest.raises(InvalidValue, match="above maximum"):
        session.set_variable("x", limit + 1)


def test_several_are_read_at_one_moment(session: SessionContext) -> None:
    id_ = session.register_variable("x", "integer", 1)
    session.register_variable("y", "integer", 2)
    found = session.get_variables(name for name in ("x", id_, "nothing", "y"))
    assert {key: variable.value for key, variable in found.items()} == {"x": 1, id_: 1, "y": 2}


def test_a_list_is_in_order_of_registration_and_takes_patterns(session: SessionContext) -> None:
    for name in ("b", "ab", "[a]", "a"):
        session.register_variable(name, "integer", 1)

    def names(pattern: str) -> list[str]:
        return [variable.name for variable in session.list_variables(pattern)]

    assert names("") == names("*") == ["b", "ab", "[a]", "a"]
    assert names("a*") == ["ab", "a"]
    assert names("?") == ["b", "a"]
    assert names("[a]") == ["[a]"]
    with pytest.raises(InvalidRequest, match="pattern"):
        names("*" * 1025)


def test_a_batch_is_one_transaction(session: SessionContext) -> None:
    for name in ("x", "y"):
        session.register_variable(name, "integer", 0)
    assert session.set_variables({"y": 2, "x": 1}, {"why": "both"}) == BatchResult(
        versions={"x": 2, "y": 2}, errors={}
    )
    assert [v.offset for v in session.get_variables(["x", "y"]).values()] == [4, 5]
    assert [dict(v.metadata) for v in session.list_variables()] == [{"why": "both"}] * 2


def test_an_atomic_batch_with_a_fault_raises_all_of_them(session: SessionContext) -> None:
    for name in ("x", "y", "z"):
        session.register_variable(name, "integer", 0, {"max": 3})
    with pytest.raises(BatchRefused) as caught:
        session.set_variables({"x": 1, "y": 4, "z": "no"}, expected_versions={"x": 1})
    assert sorted(caught.value.errors) == ["y", "z"]
    assert "above maximum 3" in caught.value.errors["y"]
    assert "must be an integer" in caught.value.errors["z"]
    for error in caught.value.errors.values():
        assert error in str(caught.value)
    assert isinstance(caught.value, InvalidRequest)
    assert [variable.version for variable in session.list_variables()] == [1, 1, 1]


def test_a_batch_that_is_not_atomic_tells_of_its_faults(session: SessionContext) -> None:
    for name in ("x", "y"):
        session.register_variable(name, "integer", 0)
    result = session.set_variables({"x": 1, "y": 1}, atomic=False, expected_versions={"y": 7})
    assert dict(result.versions) == {"x": 2}
    assert "version 1, expected 7" in result.errors["y"]
    with pytest.raises(InvalidRequest, match="same variable"):
        session.set_variables({"x": 1, "var_x_2": 1}, atomic=False)


def test_history_is_newest_first(session: SessionContext) -> None:
    id_ = session.register_variable("x", "integer", 1, metadata={"n": "1"})
    session.set_variable("x", 2, {"n": "2", "source": "tool:search"})
    session.rollback_variable("x", 1)
    history = session.get_variable_history("x")
    assert history == [
        VariableVersion(3, 1, 2, 4, "python", {}, history[0].changed_at, 1),
        VariableVersion(
            2,
            2,
            1,
            3,
            "tool:search",
            {"n": "2", "source": "tool:search"},
            history[1].changed_at,
            0,
        ),
        VariableVersion(1, 1, None, 2, "python", {"n": "1"}, history[2].changed_at, 0),
    ]
    assert history[0].changed_at >= history[1].changed_at >= history[2].changed_at
    assert session.get_variable_history("x", limit=2) == history[:2]
    assert session.get_variable_history("x", limit=9) == history
    with pytest.raises(InvalidRequest, match="limit -1"):
        session.get_variable_history("x", limit=-1)
    session.delete_variable("x")
    assert session.get_variable_history(id_) == history
    with pytest.raises(VariableNotFound):
        session.get_variable_history("x")


def test_rolling_back_gives_the_new_version(session: SessionContext) -> None:
    session.register_variable("x", "string", "a" * 10_000)
    session.set_variable("x", "b")
    variable = session.rollback_variable("x", 1, {"why": "back"})
    assert (variable.value, variable.version) == ("a" * 10_000, 3)
    assert dict(variable.metadata) == {"why": "back"}
    assert session.get_variable("x") == variable
    for version in (0, 4, -1):
        with pytest.raises(VersionNotFound, match=f"version {version}"):
            session.rollback_variable("x", version)


def test_registering_a_name_again_makes_another_variable(session: SessionContext) -> None:
    first = session.register_variable("x", "integer", 1)
    session.delete_variable(first, {"why": "old"})
    second = session.register_variable("x", "string", "new")
    assert first != second
    variable = session.get_variable("x")
    assert variable is not None
    assert (variable.id, variable.version) == (second, 1)


def test_a_source_of_its_own() -> None:
    with SessionContext("session", source="dspy_module") as session:
        session.register_variable("x", "integer", 1)
        variable = session.get_variable("x")
        assert variable is not None
        assert variable.source == "dspy_module"
        session.set_variable("x", 2, {"source": "tool:search"})
        variable = session.get_variable("x")
        assert variable is not None
        assert (variable.source, dict(variable.metadata)) == (
            "tool:search",
            {"source": "tool:search"},
        )
        session.set_variable("x", 3)
        variable = session.get_variable("x")
        assert variable is not None
        assert (variable.source, dict(variable.metadata)) == (
            "dspy_module",
            {"source": "dspy_module"},
        )


def test_trace_and_correlation_are_no_metadata_of_the_variable(session: SessionContext) -> None:
    trace = {"traceparent": "00-a", "tracestate": "b", "correlation_id": "c"}
    session.register_variable("x", "integer", 1, metadata={"k": "1", **trace})
    session.set_variable("x", 2, {"l": "2", **trace})
    variable = session.get_variable("x")
    assert variable is not None
    assert dict(variable.metadata) == {"k": "1", "l": "2"}
    assert dict(session.get_variable_history("x")[0].metadata) == {"l": "2"}


# Logs.


def test_without_a_log_nothing_is_kept() -> None:
    with SessionContext("session") as session:
        session.register_variable("x", "integer", 1)
    with SessionContext("session") as session:
        assert session.list_variables() == []


def test_a_log_in_a_file_is_found_again(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path / 'bridge.db'}"
    with SessionContext("session", url) as session:
        session.register_variable("x", "embedding", [1.5, 2], {"dimensions": 2}, {"k": "v"})
        session.set_variable("x", np.arange(2))
        before = session.list_variables()
    with SessionContext("other", url) as session:
        assert session.list_variables() == []
    with SessionContext("session", url) as session:
        (after,) = session.list_variables()
        assert after.value.tolist() == before[0].value.tolist() == [0, 1]
        assert dataclasses.replace(after, value=0) == dataclasses.replace(before[0], value=0)
        assert [entry.version for entry in session.get_variable_history("x")] == [2, 1]
        assert session.set_variable("x", [1, 1], expected_version=2) == 3
        with pytest.raises(LogInUse, match="belongs to another bridge"):
            SessionContext("session", url)


def test_an_engine_can_be_given() -> None:
    engine = MemoryLog()
    with SessionContext("session", engine) as session:
        session.register_variable("x", "integer", 1)
    with SessionContext("session", engine) as session:
        assert session.set_variable("x", 2) == 2


@pytest.mark.parametrize("session_id", ["", "s" * 257, "a\n"])
def test_a_session_id_that_cannot_be_one(session_id: str) -> None:
    threads = threading.active_count()
    with pytest.raises(InvalidRequest, match="session_id"):
        SessionContext(session_id)
    assert threading.active_count() == threads


def test_a_log_that_is_none() -> None:
    with pytest.raises(LogUnusable, match="names no log"):
        SessionContext("session", "bridge.db")


def test_after_closing_writes_raise() -> None:
    session = SessionContext("session")
    session.register_variable("x", "integer", 1)
    session.close()
    session.close()
    with pytest.raises(Unavailable, match="shutting down"):
        session.set_variable("x", 2)


@pytest.fixture
def committer() -> Iterator[Committer]:
    """A running bridge without a server, in which the session "s" has an integer x."""
    engine = MemoryLog()
    with SessionContext("s", engine) as session:
        session.register_variable("x", "integer", 1)
    committer = Committer(engine, decider(), recall)
    committer.start()
    yield committer
    committer.close()


def test_sessions_of_a_running_bridge(committer: Committer) -> None:
    one = SessionContext("s", committer=committer)
    two = SessionContext("s", committer=committer, source="tool:t")
    two.set_variable("x", 2)
    variable = one.get_variable("x")
    assert variable is not None
    assert (variable.value, variable.source) == (2, "tool:t")
    one.close()  # not its own: nothing happens
    assert two.set_variable("x", 3) == 3


def test_a_session_that_a_running_bridge_does_not_have(committer: Committer) -> None:
    session = SessionContext("nobody", committer=committer)
    for read in (
        session.list_variables,
        lambda: session.get_variable("x"),
        lambda: session.get_variables(["x"]),
        lambda: session.get_variable_history("x"),
        lambda: session.set_variable("x", 1),
        lambda: session.rollback_variable("x", 1),
    ):
        with pytest.raises(SessionNotFound, match="'nobody'"):
            read()


def test_a_log_and_a_committer_are_not_both_given(committer: Committer) -> None:
    with pytest.raises(TypeError, match="not both"):
        SessionContext("s", "memory:", committer=committer)


# Threads and event loops.


def test_it_is_safe_for_threads(session: SessionContext) -> None:
    session.register_variable("counter", "integer", 0)
    session.register_variable("shared", "integer", 0)
    barrier = threading.Barrier(8)

    def work(thread: int) -> list[int]:
        barrier.wait()
        session.register_variable(f"own {thread}", "integer", 0)
        versions = []
        for n in range(25):
            session.set_variable(f"own {thread}", n)
            versions.append(session.set_variable("shared", n))
            while True:
                counter = session.get_variable("counter")
                assert counter is not None
                try:
                    session.set_variable(
                        "counter", counter.value + 1, expected_version=counter.version
                    )
                except VersionConflict:
                    continue
                break
            session.set_variables({f"own {thread}": n, "shared": n})
            assert len(session.list_variables("own*")) >= 1
        return versions

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(8)))
    versions = [version for result in results for version in result]
    assert len(set(versions)) == 8 * 25
    assert all(result == sorted(result) for result in results)
    counter, shared = (session.get_variable(name) for name in ("counter", "shared"))
    assert counter is not None
    assert shared is not None
    assert (counter.value, counter.version) == (200, 201)
    assert shared.version == 1 + 2 * 8 * 25
    assert [entry.value for entry in session.get_variable_history("counter")] == list(
        range(200, -1, -1)
    )
    for thread in range(8):
        assert session.get_variable_history(f"own {thread}")[0].version == 51


def test_a_batch_is_seen_as_a_whole_by_threads(session: SessionContext) -> None:
    session.register_variable("x", "integer", 0)
    session.register_variable("y", "integer", 0)
    done = threading.Event()

    def read() -> int:
        torn = 0
        while not done.is_set():
            found = session.get_variables(["x", "y"])
            torn += found["x"].value != found["y"].value
        return torn

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        try:
            for n in range(1, 201):
                session.set_variables({"x": n, "y": n})
        finally:
            done.set()
        assert [reader.result() for reader in readers] == [0, 0]


Write = Callable[[SessionContext], object]

WRITES: dict[str, Write] = {
    "register_variable": lambda session: session.register_variable("y", "integer", 1),
    "set_variable": lambda session: session.set_variable("x", 2),
    "set_variables": lambda session: session.set_variables({"x": 2}),
    "delete_variable": lambda session: session.delete_variable("x"),
    "rollback_variable": lambda session: session.rollback_variable("x", 1),
    # It reads the disk, wherever the session is.
    "get_variable_history": lambda session: session.get_variable_history("x"),
}

READS: dict[str, Write] = {
    "get_variable": lambda session: session.get_variable("x"),
    "get_variables": lambda session: session.get_variables(["x"]),
    "list_variables": lambda session: session.list_variables(),
}


@pytest.mark.parametrize("method", WRITES)
async def test_a_write_on_an_event_loop_raises_and_names_the_other_form(
    committer: Committer, method: str
) -> None:
    session = SessionContext("s", committer=committer)
    assert await session.get_variable_async("x") is not None
    with pytest.raises(RuntimeError, match=f"await {method}_async instead"):
        WRITES[method](session)
    assert [each.version for each in session.list_variables()] == [1]


@pytest.mark.parametrize("method", READS)
async def test_a_read_on_an_event_loop_that_would_block_raises(
    committer: Committer, method: str
) -> None:
    # The session is not in memory yet.
    session = SessionContext("s", committer=committer)
    with pytest.raises(RuntimeError, match=f"await {method}_async instead"):
        READS[method](session)
    assert await session.get_variable_async("x") is not None
    assert READS[method](session)  # now it is


async def test_a_write_in_a_thread_beside_an_event_loop(committer: Committer) -> None:
    session = SessionContext("s", committer=committer)
    assert await asyncio.to_thread(session.set_variable, "x", 2) == 2


async def test_every_method_has_an_asynchronous_form(committer: Committer) -> None:
    session = SessionContext("s", committer=committer, source="tool:t")
    id_ = await session.register_variable_async("y", "integer", 1, {"max": 9}, {"k": "v"})
    assert await session.set_variable_async("y", 2, {"l": "w"}, expected_version=1) == 2
    variable = await session.get_variable_async(id_)
    assert variable is not None
    assert (variable.value, variable.source) == (2, "tool:t")
    assert dict(variable.metadata) == {"k": "v", "l": "w"}
    assert await session.get_variable_async("nothing") is None
    assert list(await session.get_variables_async(["x", "y", "nothing"])) == ["x", "y"]
    assert [each.name for each in await session.list_variables_async("y*")] == ["y"]
    batch = await session.set_variables_async({"x": 5, "y": 5}, {"m": "1"})
    assert dict(batch.versions) == {"x": 2, "y": 3}
    loose = await session.set_variables_async(
        {"x": 6, "y": 10}, atomic=False, expected_versions={"x": 2}
    )
    assert (dict(loose.versions), list(loose.errors)) == ({"x": 3}, ["y"])
    restored = await session.rollback_variable_async("y", 1, {"why": "back"})
    assert (restored.value, restored.version) == (1, 4)
    history = await session.get_variable_history_async("y", limit=3)
    assert [entry.version for entry in history] == [4, 3, 2]
    await session.delete_variable_async("y", {"why": "done"})
    assert await session.get_variable_async("y") is None
    assert len(await session.get_variable_history_async(id_)) == 4


async def test_the_asynchronous_forms_refuse_alike(committer: Committer) -> None:
    session = SessionContext("s", committer=committer)
    refusals: list[tuple[type[Exception], Awaitable[object]]] = [
        (AlreadyExists, session.register_variable_async("x", "integer", 1)),
        (InvalidValue, session.set_variable_async("x", "no")),
        (VersionConflict, session.set_variable_async("x", 1, expected_version=9)),
        (BatchRefused, session.set_variables_async({"x": "no"})),
        (VariableNotFound, session.delete_variable_async("nothing")),
        (VersionNotFound, session.rollback_variable_async("x", 9)),
        (VariableNotFound, session.get_variable_history_async("nothing")),
        (SessionNotFound, SessionContext("t", committer=committer).list_variables_async()),
    ]
    for error, refused in refusals:
        with pytest.raises(error):
            await refused


async def test_many_tasks_write_at_once(committer: Committer) -> None:
    session = SessionContext("s", committer=committer)
    versions = await asyncio.gather(*(session.set_variable_async("x", n) for n in range(100)))
    assert sorted(versions) == list(range(2, 102))
    variable = session.get_variable("x")
    assert variable is not None
    assert variable.version == 101


async def test_a_write_that_nobody_waits_for_is_done(committer: Committer) -> None:
    session = SessionContext("s", committer=committer)
    task = asyncio.create_task(session.set_variable_async("x", 2))
    await asyncio.sleep(0)  # it is queued
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await session.set_variable_async("x", 3) == 3
