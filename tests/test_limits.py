"""Every limit that a person can choose: what it refuses, in which words, and from where it is set.

Each bridge here has small limits. A refusal names the limit, the number that was met, and the
flag; what is exactly at the limit passes.
"""

from __future__ import annotations

import logging
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from typer.testing import CliRunner, Result

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge import server
from snakepit_bridge.cli.app import app
from snakepit_bridge.limits import DEFAULTS, Limits
from snakepit_bridge.server import Settings
from tests.bridge_process import BridgeProcess
from tests.wire_session import Session, packed, plain, refused

PATIENCE = 20.0
"""Seconds in which what the bridge does by itself has to be seen."""

MESSAGE, VALUE = 8 * 1024, 4 * 1024


@contextmanager
def bridge(log: Path | str = "memory:", **limits: str) -> Iterator[BridgeProcess]:
    flags = {f"--{name.replace('_', '-')}": value for name, value in limits.items()}
    arguments = [part for flag in flags.items() for part in flag]
    with BridgeProcess(log, *arguments) as process:
        yield process
        assert process.stop() == 0
        assert "Traceback" not in process.stderr


def until(true: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, f"not seen in {PATIENCE} s: {what}"
        time.sleep(0.01)


SNAPSHOTS = 'SELECT "offset" FROM snapshots ORDER BY "offset"'


def stored(path: Path, query: str) -> list[Any]:
    """The first column of what the bridge's file holds."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as file:
        return [row[0] for row in file.execute(query)]


def string_of(size: int) -> AnyMessage:
    """A value whose stored form has exactly this many bytes."""
    value = packed("a" * size, "string")
    return packed("a" * (2 * size - len(value.SerializeToString())), "string")


def in_binary(size: int) -> dict[str, Any]:
    """A tensor that takes this many bytes, form and bytes together."""
    count = size
    while True:
        form = {"shape": [count], "dtype": "uint8", "binary_format": "raw"}
        value = packed(form, "tensor.binary")
        rest = len(value.SerializeToString()) + count - size
        if not rest:
            return {"value": value, "binary_value": bytes(count)}
        count -= rest


# Sizes.


@pytest.fixture(scope="module")
def small() -> Iterator[BridgeProcess]:
    with bridge(max_message_size="8KiB", max_value_size="4KiB") as process:
        yield process


@pytest.fixture
def session(small: BridgeProcess, request: pytest.FixtureRequest) -> Session:
    return Session(small, request.node.name)


def test_a_value_may_be_as_large_as_the_limit_and_no_larger(session: Session) -> None:
    largest, larger = string_of(VALUE), string_of(VALUE + 1)
    assert len(largest.SerializeToString()) == VALUE
    words = ("'x'", f"{VALUE + 1} bytes", f"limit of {VALUE}", "--max-value-size")

    def register(name: str, value: AnyMessage) -> Any:  # noqa: ANN401 - stubs have no types
        return session.call("RegisterVariable", name=name, type="string", initial_value=value)

    with refused("RESOURCE_EXHAUSTED", *words):
        register("x", larger)
    register("x", largest)
    register("y", packed("", "string"))
    with refused("RESOURCE_EXHAUSTED", *words):
        session.call("SetVariable", variable_identifier="x", value=larger)
    session.call("SetVariable", variable_identifier="x", value=largest)
    for atomic in (True, False):
        answer = session.set_many({"x": larger, "y": packed("b", "string")}, atomic=atomic)
        assert list(answer.errors) == ["x"]
        assert list(answer.new_versions) == ([] if atomic else ["y"])
        for word in words:
            assert word in answer.errors["x"]
    assert session.set_many({"x": largest}, atomic=True).new_versions == {"x": 3}
    assert session.get("x").value == largest


def test_the_binary_form_counts_in_full(session: Session) -> None:
    initial = packed({"shape": [1], "data": [1]}, "tensor")
    session.call("RegisterVariable", name="x", type="tensor", initial_value=initial)
    largest, larger = in_binary(VALUE), in_binary(VALUE + 1)
    session.call("SetVariable", variable_identifier="x", **largest)
    words = (f"{VALUE + 1} bytes", f"limit of {VALUE}", "--max-value-size")
    with refused("RESOURCE_EXHAUSTED", *words):
        session.call("SetVariable", variable_identifier="x", **larger)


def test_a_request_may_be_as_large_as_the_limit_and_no_larger(session: Session) -> None:
    def ping(size: int) -> Any:  # noqa: ANN401
        request = pb.PingRequest(message="m" * size)
        request.message = request.message[: 2 * size - request.ByteSize()]
        assert request.ByteSize() == size
        return session.bridge.stub.Ping(request, timeout=10)

    ping(MESSAGE)
    with refused(
        "RESOURCE_EXHAUSTED",
        f"{MESSAGE + 1} bytes",
        f"limit of {MESSAGE}",
        "--max-message-size",
    ):
        ping(MESSAGE + 1)
    session.start()
    with refused("RESOURCE_EXHAUSTED", "--max-message-size"):
        session.call("InitializeSession", metadata={"k": "v" * MESSAGE})
    with refused("RESOURCE_EXHAUSTED"):  # by gRPC itself, which bounds the memory
        ping(3 * MESSAGE)
    assert session.lives


def test_an_answer_that_is_too_large_says_how_to_ask_for_less(session: Session) -> None:
    value = string_of(3_000)
    for name in "abc":
        session.call("RegisterVariable", name=name, type="string", initial_value=value)
    too_large = (f"limit of {MESSAGE}", "--max-message-size")
    with refused("RESOURCE_EXHAUSTED", "page_size", *too_large):
        session.call("ListVariables")
    with refused("RESOURCE_EXHAUSTED", "several calls", *too_large):
        session.call("GetVariables", variable_identifiers=["a", "b", "c"])
    with refused("RESOURCE_EXHAUSTED", "pages", *too_large):
        session.start()
    assert len(session.call("ListVariables", page_size=2).variables) == 2
    for _ in range(2):
        session.call("SetVariable", variable_identifier="a", value=value)
    with refused("RESOURCE_EXHAUSTED", "page_size", *too_large):
        session.history("a")
    assert len(session.history("a", page_size=1).entries) == 1


# Numbers.


def test_as_many_sessions_live_as_the_limit_says(tmp_path: Path) -> None:
    path = tmp_path / "bridge.db"
    words = ("limit of 2", "live sessions", "--max-sessions")
    with bridge(path, max_sessions="2") as process:
        a, b, c = (Session(process, name) for name in "abc")
        a.start()
        b.register("x")
        with refused("RESOURCE_EXHAUSTED", "'c'", *words):
            c.start()
        with refused("RESOURCE_EXHAUSTED", "'c'", *words):
            c.register("x")
        assert not c.lives
        a.start()  # once more is not one more
        b.register("y")
        a.end()
        c.start()
        with refused("RESOURCE_EXHAUSTED", "'a'", *words):
            a.start()
    with bridge(path, max_sessions="2") as process:
        a, b, c = (Session(process, name) for name in "abc")
        with refused("RESOURCE_EXHAUSTED", "'a'", *words):
            a.register("x")  # those that nobody has touched count
        c.end()
        a.register("x")
        assert b.get("y").version == 1


def test_as_many_variables_live_as_the_limit_says() -> None:
    words = ("limit of 2", "--max-variables")
    with bridge(max_variables="2") as process:
        a, b = Session(process, "a"), Session(process, "b")
        for session in (a, b):
            session.register("x")
            session.register("y")
            with refused("RESOURCE_EXHAUSTED", "'z'", *words):
                session.register("z")
            with refused("ALREADY_EXISTS"):
                session.register("y")
        a.delete("x")
        a.register("z")
        with refused("RESOURCE_EXHAUSTED", "'x'", *words):
            a.register("x")


# Ages.


def test_sessions_expire_after_the_time_to_live() -> None:
    with bridge(session_ttl="400ms") as process:
        session, used = Session(process, "a"), Session(process, "used")
        session.start()
        used.start()

        def expired() -> bool:
            assert used.lives  # and a heartbeat is a use
            return f"session expired session_id={session.id} " in process.stderr

        until(expired, "the end of a session")
        with refused("NOT_FOUND", "'a'"):
            session.head  # noqa: B018 - it calls
        assert not session.lives


def test_optimizers_lose_their_locks_after_a_while() -> None:
    with bridge(optimization_ttl="0.1s") as process:
        session = Session(process, "a")
        session.register("x")
        session.call("StartOptimization", variable_identifier="x", optimizer_id="o")

        def free() -> bool:
            answer = session.set_many({"x": packed(2)})
            return not answer.errors

        until(free, "the end of a lock")
        assert not session.get("x").HasField("optimization_status")


def test_what_is_older_than_the_retention_age_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "bridge.db"
    with bridge(path, retention_age="300ms") as process:
        live, ended = Session(process, "live"), Session(process, "ended")
        epoch = live.register("x", 0, request_id="register").log_epoch
        for number in range(1, 5):
            live.set("x", number, request_id=f"set {number}")
        ended.start()
        ended.end()
        until(lambda: not live.history("x").entries, "the cut of a log")
        assert (live.get("x").version, plain(live.get("x").value)) == (5, 4)
        with refused("OUT_OF_RANGE", "version 3", "cut away by retention", "versions 5 to 5"):
            live.roll_back("x", 3)
        again = live.set("x", 4, request_id="set 4")
        assert (again.duplicate, again.new_version, again.offset) == (True, 5, 6)
        with refused("OUT_OF_RANGE", "offset 1", "is not done again", "retention has cut away"):
            live.register("x", 0, request_id="register")
        with refused("OUT_OF_RANGE", "offset 99", "in the future", "offsets 7 to 6", epoch):
            live.get("x", min_offset=99)
        assert live.get("x", min_offset=3).version == 5
        assert live.roll_back("x", 5).variable.version == 6
        answer = live.history("x")
        assert [entry.version for entry in answer.entries] in ([6], [])

        kept = "SELECT session_id FROM logs WHERE dropped = 0"
        until(lambda: stored(path, kept) == ["live"], "the end of an ended log")


def test_snapshots_are_made_as_often_as_is_said(tmp_path: Path) -> None:
    path = tmp_path / "bridge.db"
    with bridge(path, snapshot_every="5") as process:
        session = Session(process, "a")
        session.register("x")

        for number in range(3):
            for _ in range(5):
                session.set("x", number)

            def made(wanted: int = number + 1) -> bool:
                return len(stored(path, SNAPSHOTS)) == wanted

            until(made, "a snapshot")
        assert stored(path, SNAPSHOTS)[0] == 5


# What can be set, and what cannot.


class Told(Exception):
    """Raised in place of serving."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.limits = settings.limits


def invoked(*arguments: str, **environment: str) -> Result:
    """The command line up to where it would serve."""

    def run(settings: Settings) -> None:
        raise Told(settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "run", run)
        patch.setattr(logging, "basicConfig", lambda **_: None)
        wide = {"COLUMNS": "200", "NO_COLOR": "1", "SNAKEPIT_BRIDGE_LOG": "memory:"}
        return CliRunner().invoke(app, ["serve", *arguments], env=wide | environment)


def limits_of(*arguments: str, **environment: str) -> Limits:
    result = invoked(*arguments, **environment)
    assert isinstance(result.exception, Told), result.output
    return result.exception.limits


def refuses(result: Result, *words: str) -> None:
    assert isinstance(result.exception, SystemExit), words
    assert result.exit_code == 2, words
    said = " ".join(result.output.replace("│", " ").split())
    for word in words:
        assert word in said
    assert "Traceback" not in said


CHOSEN: list[tuple[str, str, dict[str, Any]]] = [
    ("max_message_size", "1GiB", {"message_size": 1024**3, "value_size": 768 * 2**20}),
    ("max_value_size", "5k", {"value_size": 5 * 1024}),
    ("max_sessions", "7", {"sessions": 7}),
    ("max_variables", "8", {"variables": 8}),
    ("session_ttl", "2h", {"session_ttl": 7_200.0}),
    ("optimization_ttl", "250ms", {"optimization_ttl": 0.25}),
    ("retention_age", "1.5d", {"retention_age": 129_600.0}),
    ("retention_age", "0", {"retention_age": 0.0}),
    ("snapshot_every", "9", {"snapshot_every": 9}),
    ("max_watches", "10", {"watches": 10}),
    ("max_session_watches", "11", {"session_watches": 11}),
    ("max_connection_watches", "12", {"connection_watches": 12}),
    ("watch_max_lifetime", "90m", {"watch_lifetime": 5_400.0}),
    ("max_tool_calls", "13", {"tool_calls": 13}),
    ("max_workers", "14", {"tool_threads": 14}),
    ("tool_processes", "15", {"tool_processes": 15}),
]


def test_without_flags_the_limits_are_those_of_the_wire_contract() -> None:
    assert limits_of() == DEFAULTS
    assert (
        Limits(
            message_size=128 * 2**20,
            value_size=96 * 2**20,
            sessions=100_000,
            variables=100_000,
            retention_age=None,
            snapshot_every=10_000,
            session_ttl=3_600,
            optimization_ttl=300,
            watches=10_000,
            session_watches=5_000,
            connection_watches=5_000,
            watch_lifetime=3_600,
            tool_calls=1_000,
            tool_threads=16,
            tool_processes=2,
        )
        == DEFAULTS
    )


@pytest.mark.parametrize(("name", "given", "changed"), CHOSEN)
def test_every_limit_has_a_flag_and_a_variable(
    name: str, given: str, changed: dict[str, Any]
) -> None:
    flag, variable = f"--{name.replace('_', '-')}", f"SNAKEPIT_BRIDGE_{name.upper()}"
    expected = DEFAULTS._replace(**changed)
    assert limits_of(flag, given) == expected
    assert limits_of(**{variable: given}) == expected
    assert limits_of(flag, given, **{variable: "3"}) == expected  # the flag goes first


def test_every_limit_is_among_them() -> None:
    named = {field for _, _, changed in CHOSEN for field in changed}
    assert named == set(Limits._fields)


def test_the_environment_reaches_the_bridge() -> None:
    environment = {"SNAKEPIT_BRIDGE_MAX_VARIABLES": "1"}
    with BridgeProcess("memory:", environment=environment) as process:
        session = Session(process, "a")
        session.register("x")
        with refused("RESOURCE_EXHAUSTED", "limit of 1"):
            session.register("y")


NO_SIZE, NO_DURATION = "is no size", "is no duration"


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        *[("max_message_size", given, NO_SIZE) for given in ("large", "-1", "1.5MiB", "12PiB")],
        *[("max_value_size", given, NO_SIZE) for given in ("", "1e6", "0x10", "9" * 16)],
        ("max_value_size", "129MiB", "raise --max-message-size"),
        *[("max_sessions", given, "1") for given in ("0", "-5")],
        *[("max_variables", given, "valid int") for given in ("1.5", "many", "")],
        ("snapshot_every", "0", "1"),
        *[("max_watches", given, "1") for given in ("0", "-1")],
        ("watch_max_lifetime", "-1h", NO_DURATION),
        *[("session_ttl", given, NO_DURATION) for given in ("-1", "soon", "nan", "inf", "1e9")],
        *[("optimization_ttl", given, NO_DURATION) for given in ("5 parsecs", "", "5m30s")],
        *[("retention_age", given, NO_DURATION) for given in ("7 days", "-7d", "None")],
    ],
)
def test_what_is_no_limit_is_a_usage_error(name: str, given: str, words: str) -> None:
    flag = f"--{name.replace('_', '-')}"
    refuses(invoked(flag, given), flag, words)
    if given:  # a variable that is empty is as none
        refuses(invoked(**{f"SNAKEPIT_BRIDGE_{name.upper()}": given}), words)


def test_a_usage_error_ends_the_process() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "snakepit_bridge.server", "--session-ttl", "soon"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert "--session-ttl" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--session-ttl", "0", "--optimization-ttl", "0", "--retention-age", "0"),
        ("--session-ttl", "9999w", "--retention-age", "99999w", "--optimization-ttl", "999999w"),
        ("--max-message-size", "4GiB", "--max-value-size", "3GiB"),
    ],
)
def test_the_ends_of_what_can_be_set(arguments: Sequence[str]) -> None:
    with BridgeProcess("memory:", *arguments) as process:
        session = Session(process, "a")
        session.register("x")
        session.call("StartOptimization", variable_identifier="x", optimizer_id="o")
        with refused("FAILED_PRECONDITION"):
            session.set("x", 1)
        assert session.lives
        assert process.stop() == 0
        assert "Traceback" not in process.stderr
