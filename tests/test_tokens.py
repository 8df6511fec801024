"""Who has no token is let in nowhere, and the token is seen nowhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge.errors import PermissionDenied, Unauthenticated
from snakepit_bridge.tokens import MAX_TOKEN, TokenUnusable, bearer, check_token, read_token
from tests.bridge_process import BridgeProcess
from tests.test_error_table import Fault, fault_of
from tests.tool_client import TOOLS, ToolSession, value_of
from tests.wire_session import METHODS, TIMEOUT, Session, packed, plain

TOKEN = "correct-horse-battery-staple"
OTHER = "correct-horse-battery-stapler"

RIGHT = bearer(TOKEN)
WRONG = bearer(OTHER)


def token_file(directory: Path, content: str | bytes = TOKEN, mode: int = 0o600) -> Path:
    path = directory / "token"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return path


# The file.


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_token_is_a_line_in_a_file(tmp_path: Path, end: str, mode: int) -> None:
    assert read_token(token_file(tmp_path, TOKEN + end, mode)) == TOKEN


@pytest.mark.parametrize("token", ["x" * 16, "~" * MAX_TOKEN])
def test_a_token_may_be_so_short_and_so_long(tmp_path: Path, token: str) -> None:
    assert read_token(token_file(tmp_path, token)) == token


@pytest.mark.parametrize(
    "content",
    [
        "",
        "\n",
        "x" * 15,
        "x" * (MAX_TOKEN + 1),
        f"{TOKEN}\n\n",
        f"{TOKEN}\n{TOKEN}\n",
        f"{TOKEN} {TOKEN}",
        f" {TOKEN}",
        f"{TOKEN}\t",
        f"{TOKEN}\0",
        f"\N{LATIN SMALL LETTER A WITH DIAERESIS}{TOKEN}",
        f"{TOKEN}\x7f",
        b"\xff" * 20,
        b"\xef\xbb\xbf" + TOKEN.encode(),
    ],
    ids=repr,
)
def test_what_can_be_no_token_is_refused_and_not_told(tmp_path: Path, content: str | bytes) -> None:
    with pytest.raises(TokenUnusable) as caught:
        read_token(token_file(tmp_path, content))
    assert "16 to 4096 visible ASCII characters" in str(caught.value)
    assert str(tmp_path / "token") in str(caught.value)
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o601, 0o777])
def test_a_file_that_is_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(TokenUnusable, match=f"open to others.*{mode:04o}.*chmod 600"):
        read_token(token_file(tmp_path, mode=mode))


def test_a_file_that_is_not_there_or_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenUnusable, match="No such file"):
        read_token(tmp_path / "nothing")
    with pytest.raises(TokenUnusable, match=r"no ordinary file|Is a directory"):
        read_token(tmp_path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(TokenUnusable, match="no ordinary file"):
        read_token(tmp_path / "pipe")


# The header.


@pytest.mark.parametrize(
    "value", [f"Bearer {TOKEN}", f"bearer {TOKEN}", f"BEARER  {TOKEN} ", f"Bearer {TOKEN}".encode()]
)
def test_the_header_is_that_of_rfc_6750(value: str | bytes) -> None:
    check_token(TOKEN.encode(), [("user-agent", "x"), ("authorization", value)])


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("user-agent", TOKEN)],
        [("authorization", TOKEN)],
        [("authorization", f"Basic {TOKEN}")],
        [("authorization", "")],
    ],
)
def test_a_header_without_a_token(headers: list[tuple[str, str | bytes]]) -> None:
    with pytest.raises(Unauthenticated):
        check_token(TOKEN.encode(), headers)


@pytest.mark.parametrize(
    "headers",
    [
        WRONG,
        [("authorization", "Bearer ")],
        [("authorization", "Bearer")],
        [("authorization", f"Bearer {TOKEN[:-1]}")],
        [("authorization", f"Bearer {TOKEN.upper()}")],
        [("authorization", b"Bearer \xff\xfe")],
        [("authorization", "Bearer \N{SNAKE}")],
        [*RIGHT, *WRONG],
        [*WRONG, *RIGHT],
    ],
)
def test_a_header_with_another_token(headers: list[tuple[str, str | bytes]]) -> None:
    with pytest.raises(PermissionDenied):
        check_token(TOKEN.encode(), headers)


# A bridge.


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return token_file(tmp_path_factory.mktemp("token"))


@pytest.fixture(scope="module")
def locked(file: Path) -> Iterator[BridgeProcess]:
    with BridgeProcess("memory:", *TOOLS, "--token-file", str(file)) as process:
        yield process
        assert process.stop() == 0
        assert TOKEN not in process.stderr
        assert OTHER not in process.stderr
        assert {line.split(" ", 3)[2] for line in process.stderr_lines} == {"INFO"}, process.stderr


def called(bridge: BridgeProcess, method: str, raw: bytes, headers: Any) -> object:  # noqa: ANN401 - gRPC metadata
    """Call with bytes as they are."""
    path = f"/snakepit.bridge.BridgeService/{method}"
    channel: Any = bridge.channel
    described = METHODS[method]
    if described.client_streaming:
        conversation = channel.stream_stream(path)
        return list(conversation(iter([raw]), timeout=TIMEOUT, metadata=headers))
    if described.server_streaming:
        return list(channel.unary_stream(path)(raw, timeout=TIMEOUT, metadata=headers))
    return channel.unary_unary(path)(raw, timeout=TIMEOUT, metadata=headers)


def refusal(bridge: BridgeProcess, method: str, raw: bytes, headers: Any) -> Fault:  # noqa: ANN401 - as above
    with pytest.raises(grpc.RpcError) as caught:
        called(bridge, method, raw, headers)
    return fault_of(caught.value)


@pytest.mark.parametrize("raw", [b"", b"\xff"], ids=["empty", "malformed"])
@pytest.mark.parametrize("method", METHODS)
def test_no_method_answers_without_the_token(
    locked: BridgeProcess, method: str, raw: bytes
) -> None:
    missing = refusal(locked, method, raw, ())
    assert (missing.code, missing.reason) == ("UNAUTHENTICATED", "TOKEN_MISSING")
    assert "'authorization: Bearer TOKEN'" in missing.message
    wrong = refusal(locked, method, raw, WRONG)
    assert (wrong.code, wrong.reason) == ("PERMISSION_DENIED", "TOKEN_REFUSED")
    assert OTHER not in wrong.message


@pytest.mark.parametrize("method", METHODS)
def test_with_the_token_a_request_is_read(locked: BridgeProcess, method: str) -> None:
    code = "UNIMPLEMENTED" if method == "AddDependency" else "INVALID_ARGUMENT"
    assert refusal(locked, method, b"\xff", RIGHT).code == code


def test_a_session_lives_with_the_token(locked: BridgeProcess) -> None:
    session = Session(locked, "with it")
    new = {"name": "x", "type": "integer", "initial_value": packed(1)}
    session.call("RegisterVariable", RIGHT, **new)
    updates = locked.stub.WatchVariables(
        pb.WatchVariablesRequest(session_id=session.id, include_initial_values=True),
        timeout=TIMEOUT,
        metadata=RIGHT,
    )
    assert next(updates).variable.name == "x"
    assert session.call("SetVariable", RIGHT, variable_identifier="x", value=packed(2)).success
    assert next(updates).update_type == "value_change"
    updates.cancel()


def test_isolated_tools_are_given_it(locked: BridgeProcess) -> None:
    session = ToolSession(locked, "isolated")
    new = {"name": "x", "type": "integer", "initial_value": packed(1)}
    session.call("RegisterVariable", RIGHT, **new)
    assert (
        value_of(session.run("set_variable_isolated", {"name": "x", "value": 5}, RIGHT)) is not None
    )
    found = session.call("GetVariableHistory", RIGHT, variable_identifier="x").entries[0]
    assert (plain(found.value), found.changed_by) == (5, "tool:set_variable_isolated")


def test_health_and_reflection_are_open(locked: BridgeProcess) -> None:
    health: Any = health_pb2_grpc.HealthStub(locked.channel)
    status = health.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT).status
    assert status == health_pb2.HealthCheckResponse.SERVING
    stub: Any = reflection_pb2_grpc.ServerReflectionStub
    reflection = stub(locked.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = reflection.ServerReflectionInfo(iter([request]), timeout=TIMEOUT)
    names = {service.name for service in answer.list_services_response.service}
    assert "snakepit.bridge.BridgeService" in names


def test_the_token_is_in_no_command_line_and_no_environment(
    locked: BridgeProcess, file: Path
) -> None:
    ToolSession(locked, "to have a process").run("add_isolated", {"a": 1}, RIGHT)
    listed = subprocess.run(["ps", "axewww"], capture_output=True, text=True, check=True).stdout
    assert str(file) in listed
    assert TOKEN not in listed


def test_a_token_is_of_no_harm_where_none_is_wanted(bridge: BridgeProcess) -> None:
    Session(bridge, "unlocked").call("InitializeSession", RIGHT)


def serve(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "snakepit_bridge.server", "--port=0", "--log=memory:", *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env={**os.environ, **environment},
        check=False,
    )


def test_a_bridge_does_not_start_without_the_token_it_is_to_have(tmp_path: Path) -> None:
    for given in (
        serve("--token-file", str(tmp_path / "nothing")),
        serve(SNAKEPIT_BRIDGE_TOKEN_FILE=str(token_file(tmp_path, mode=0o644))),
        serve("--bridge", "localhost:1", "--bridge-token-file", str(token_file(tmp_path, "short"))),
    ):
        assert given.returncode == 1
        assert given.stdout == ""
        (line,) = given.stderr.splitlines()
        assert line.startswith("snakepit-bridge: ")
        assert str(tmp_path) in line
