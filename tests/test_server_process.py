"""The server as a process: readiness, addresses, drain, exit, and its command line."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge import bridge_service_pb2_grpc as stubs
from tests.bridge_process import BridgeProcess
from tests.wire_session import TIMEOUT, Session, packed

SERVER = (sys.executable, "-m", "snakepit_bridge.server")
COMMAND = (str(Path(sys.executable).with_name("snakepit-bridge")), "serve")

STOPS_WITHIN = 2.0
"""Seconds from SIGTERM to SIGKILL in Snakepit 0.4. Measured here: 0.2."""

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE = "snakepit.bridge.BridgeService"


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")


@pytest.fixture(scope="module")
def bridge() -> Iterator[BridgeProcess]:
    with BridgeProcess("memory:") as process:
        yield process
        assert process.stop() == 0


def run(*arguments: str, command: Sequence[str] = SERVER, **environment: str) -> Any:  # noqa: ANN401
    """Run a command that ends by itself."""
    return subprocess.run(
        [*command, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", **environment},
    )


def health(channel: grpc.Channel) -> Any:  # noqa: ANN401 - stubs have no types
    return health_pb2_grpc.HealthStub(channel)


# Readiness.


@contextlib.contextmanager
def launched(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Start a server and leave its stdout unread."""
    process = subprocess.Popen(
        [*SERVER, "--log", "memory:", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    try:
        yield process
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_the_readiness_line_stands_alone_on_stdout() -> None:
    with launched("--port", "0", "--log-level", "debug") as process:
        line = first_line(process)
        port = int(line.removeprefix("GRPC_READY:"))
        assert line == f"GRPC_READY:{port}\n"
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub: Any = stubs.BridgeServiceStub(channel)
            # It is ready when it says so: the first call is answered, without waiting.
            stub.Ping(pb.PingRequest(message="hello"), timeout=TIMEOUT)
            stub.InitializeSession(pb.InitializeSessionRequest(session_id="s"), timeout=TIMEOUT)
            with pytest.raises(grpc.RpcError):
                stub.GetSession(pb.GetSessionRequest(session_id="t"), timeout=TIMEOUT)
        process.send_signal(signal.SIGTERM)
        rest, log = process.communicate(timeout=30)
    assert (process.returncode, rest) == (0, "")
    assert f"port {port}" in log
    assert "GRPC_READY" not in log


def test_the_ready_file_is_written_whole(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    ready.write_text("of an older start")
    environment = {"SNAKEPIT_READY_FILE": str(ready)}
    with ready.open() as older, BridgeProcess("memory:", environment=environment) as bridge:
        assert int(ready.read_text()) == bridge.port
        # By another file in its place, never by writing into it.
        assert older.read() == "of an older start"
        assert [each.name for each in tmp_path.iterdir()] == ["ready"]
        assert bridge.stop() == 0


@pytest.mark.parametrize("where", ["missing/ready", "directory"])
def test_a_ready_file_that_cannot_be_written_is_said_in_one_line(
    tmp_path: Path, where: str
) -> None:
    (tmp_path / "directory").mkdir()
    arguments = ("--port", "0", "--log", "memory:", "--ready-file", str(tmp_path / where))
    result = run(*arguments, SNAKEPIT_LOG_LEVEL="error")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("snakepit-bridge: ")
    assert str(tmp_path / where) in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert [each.name for each in tmp_path.iterdir()] == ["directory"]


# Addresses.


def test_it_is_served_on_the_ipv4_loopback_and_no_other_address(bridge: BridgeProcess) -> None:
    with socket.create_connection(("127.0.0.1", bridge.port), timeout=5):
        pass
    # Another address of this machine, which whoever binds all of them would answer.
    with socket.socket() as other:
        other.settimeout(5)
        assert other.connect_ex(("127.0.0.2", bridge.port)) != 0
    listening = [address for address, port in listeners() if port == bridge.port]
    assert sorted(listening) == sorted({"127.0.0.1", *(["::1"] if has_ipv6() else [])})


def listeners() -> Iterator[tuple[str, int]]:
    """Every listening TCP socket of this machine, as the kernel lists them."""
    for path, family, width in (
        ("/proc/net/tcp", socket.AF_INET, 4),
        ("/proc/net/tcp6", socket.AF_INET6, 16),
    ):
        if not Path(path).exists():
            continue
        for line in Path(path).read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            if state != "0A":  # TCP_LISTEN
                continue
            address, port = local.split(":")
            words = [address[i : i + 8] for i in range(0, 2 * width, 8)]
            raw = b"".join(int(word, 16).to_bytes(4, sys.byteorder) for word in words)
            name = socket.inet_ntop(family, raw).removeprefix("::ffff:")
            yield name, int(port, 16)


@needs_ipv6
def test_it_is_served_on_the_ipv6_loopback_by_the_same_port(bridge: BridgeProcess) -> None:
    for host in ("127.0.0.1", "[::1]", "localhost"):
        with grpc.insecure_channel(f"{host}:{bridge.port}") as channel:
            stub: Any = stubs.BridgeServiceStub(channel)
            request = pb.InitializeSessionRequest(session_id="by every address")
            assert stub.InitializeSession(request, timeout=TIMEOUT).offset == 1


@contextlib.contextmanager
def taken(family: socket.AddressFamily, host: str) -> Iterator[int]:
    """Listen on a free port of this host."""
    with socket.socket(family, socket.SOCK_STREAM) as holder:
        holder.bind((host, 0))
        holder.listen()
        yield holder.getsockname()[1]


def assert_taken(port: int) -> None:
    result = run("--port", str(port), "--log", "memory:")
    assert (result.returncode, result.stdout) == (1, "")
    assert f"port {port} is taken" in result.stderr
    assert "--port" in result.stderr  # what to do
    assert len(result.stderr.splitlines()) == 1, result.stderr


def test_a_port_that_another_bridge_has_is_said_in_one_line(bridge: BridgeProcess) -> None:
    assert_taken(bridge.port)


@needs_ipv6
def test_a_port_that_is_taken_on_ipv6_only_is_said_in_one_line() -> None:
    with taken(socket.AF_INET6, "::1") as port:
        assert_taken(port)


# Standard services.


@pytest.mark.parametrize("service", ["", SERVICE])
def test_health_says_serving(bridge: BridgeProcess, service: str) -> None:
    request = health_pb2.HealthCheckRequest(service=service)
    assert health(bridge.channel).Check(request, timeout=TIMEOUT).status == SERVING


def test_health_knows_no_other_service(bridge: BridgeProcess) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        health(bridge.channel).Check(health_pb2.HealthCheckRequest(service="x"), timeout=TIMEOUT)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_describes_the_service(bridge: BridgeProcess) -> None:
    database = ProtoReflectionDescriptorDatabase(bridge.channel)
    assert set(database.get_services()) == {
        SERVICE,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    service = DescriptorPool(database).FindServiceByName(SERVICE)
    assert [method.name for method in service.methods] == [
        method.name for method in pb.DESCRIPTOR.services_by_name["BridgeService"].methods
    ]
    fields = service.methods_by_name["SetVariable"].input_type.fields_by_name
    assert fields["request_id"].number == 20


# Stopping.


def stop_in_time(bridge: BridgeProcess, number: signal.Signals = signal.SIGTERM) -> float:
    """Send a signal; gives the seconds until the process was gone, with exit code 0."""
    began = time.monotonic()
    bridge.process.send_signal(number)
    assert bridge.process.wait(timeout=30) == 0
    took = time.monotonic() - began
    assert bridge.stop() == 0
    return took


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_in_time(number: signal.Signals) -> None:
    with BridgeProcess("memory:") as bridge:
        assert Session(bridge, "s").start().success
        with grpc.insecure_channel(f"127.0.0.1:{bridge.port}") as idle:
            grpc.channel_ready_future(idle).result(timeout=TIMEOUT)
            assert stop_in_time(bridge, number) < STOPS_WITHIN
        assert "Traceback" not in bridge.stderr


def test_two_signals_are_as_good_as_one() -> None:
    with BridgeProcess("memory:") as bridge:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ProcessLookupError):
                bridge.process.send_signal(number)
        assert bridge.stop() == 0
        assert "Traceback" not in bridge.stderr


def test_while_it_drains_it_takes_no_more_calls() -> None:
    with BridgeProcess("memory:", "--grace", "30") as bridge:
        # Watching its health does not hold it open.
        watch = health(bridge.channel).Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
        assert next(watch).status == SERVING
        bridge.process.send_signal(signal.SIGTERM)
        assert next(watch).status == NOT_SERVING
        for target in ("127.0.0.1", "[::1]" if has_ipv6() else "127.0.0.1"):
            with grpc.insecure_channel(f"{target}:{bridge.port}") as channel:
                stub: Any = stubs.BridgeServiceStub(channel)
                for call, request in (
                    (stub.Ping, pb.PingRequest()),
                    (stub.InitializeSession, pb.InitializeSessionRequest(session_id="s")),
                ):
                    with pytest.raises(grpc.RpcError) as caught:
                        call(request, timeout=TIMEOUT)
                    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        # The channel that was open before: it too is told to go elsewhere.
        with pytest.raises(grpc.RpcError) as caught:
            bridge.stub.Ping(pb.PingRequest(), timeout=TIMEOUT)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert bridge.process.wait(timeout=20) == 0
        assert bridge.stop() == 0


def test_a_call_that_goes_on_does_not_hold_it_beyond_the_grace() -> None:
    with (
        BridgeProcess("memory:", "--grace", "0.1") as bridge,
        socket.create_connection(("127.0.0.1", bridge.port)),  # and one that never begins
    ):
        watch = health(bridge.channel).Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
        assert next(watch).status == SERVING
        assert stop_in_time(bridge) < STOPS_WITHIN
        with pytest.raises(grpc.RpcError):
            for _ in watch:
                pass


def test_what_was_acknowledged_before_the_stop_is_there_after_it(tmp_path: Path) -> None:
    with BridgeProcess(tmp_path / "bridge.db") as bridge:
        Session(bridge, "s").register("x", 0)
        request = pb.SetVariableRequest(
            session_id="s", variable_identifier="x", value=packed(1), request_id=""
        )
        calls = [bridge.stub.SetVariable.future(request, timeout=TIMEOUT) for _ in range(300)]
        calls[50].result()
        bridge.process.send_signal(signal.SIGTERM)
        acknowledged = []
        for call in calls:
            error = call.exception(timeout=TIMEOUT)
            if error is None:
                acknowledged.append(call.result().new_version)
            else:
                assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert bridge.process.wait(timeout=30) == 0
        assert bridge.stop() == 0
        assert "Traceback" not in bridge.stderr
    assert acknowledged
    with BridgeProcess(tmp_path / "bridge.db") as bridge:
        versions = {entry.version for entry in Session(bridge, "s").history("x").entries}
        assert set(acknowledged) <= versions
        assert bridge.stop() == 0


def test_a_start_after_a_stop_takes_the_port_and_the_log_at_once(tmp_path: Path) -> None:
    with BridgeProcess(tmp_path / "bridge.db") as bridge:
        port = bridge.port
        Session(bridge, "s").register("x", 1)
        assert bridge.stop() == 0
    with BridgeProcess(tmp_path / "bridge.db", "--port", str(port)) as bridge:
        assert Session(bridge, "s").get("x").version == 1
        assert bridge.stop() == 0


# Calls that are given up.


def test_calls_that_are_given_up_leave_it_whole() -> None:
    with BridgeProcess("memory:") as bridge:
        session = Session(bridge, "s")
        session.register("x", 0)
        given_up = []
        for n in range(200):
            request = pb.SetVariableRequest(
                session_id="s", variable_identifier="x", value=packed(n), request_id=f"r{n}"
            )
            deadline = 0.0001 * (n % 40) if n % 2 else TIMEOUT
            call = bridge.stub.SetVariable.future(request, timeout=deadline)
            if not n % 2:
                call.cancel()
            given_up.append(call)
        outcomes = set()
        for call in given_up:
            try:
                outcomes.add("OK" if call.exception(timeout=TIMEOUT) is None else call.code().name)
            except grpc.FutureCancelledError:
                outcomes.add("CANCELLED")
        assert outcomes & {"CANCELLED", "DEADLINE_EXCEEDED"}
        assert outcomes <= {"OK", "CANCELLED", "DEADLINE_EXCEEDED"}

        # Each was done once or not at all, and all are done that are asked again.
        for n in range(200):
            session.set("x", n, request_id=f"r{n}")
        history = session.history("x").entries
        assert [entry.version for entry in history] == list(range(201, 0, -1))
        assert {entry.request_id for entry in history} == {"", *(f"r{n}" for n in range(200))}
        assert session.start().offset == 202
        assert bridge.stop() == 0
        assert "Traceback" not in bridge.stderr
        assert " ERROR " not in bridge.stderr


# The command line.


@pytest.mark.parametrize("command", [SERVER, COMMAND], ids=["module", "command"])
def test_help_teaches(command: Sequence[str]) -> None:
    result = run("--help", command=command)
    assert (result.returncode, result.stderr) == (0, "")
    for word in (
        "--port",
        "127.0.0.1",
        "--log",
        "sqlite:PATH",
        "memory:",
        "--ready-file",
        "SNAKEPIT_READY_FILE",
        "--grace",
        "--log-level",
        "GRPC_READY:<port>",
        "SIGTERM",
    ):
        assert word in result.stdout
    assert "COMMAND" not in result.stdout


def test_the_command_alone_names_its_commands() -> None:
    result = run("--help", command=COMMAND[:1])
    assert result.returncode == 0
    assert "serve" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [(("--log", "postgres://x"), {}), ((), {"SNAKEPIT_BRIDGE_LOG": "postgres://x"})],
    ids=["option", "environment"],
)
def test_a_log_that_is_none_is_said_in_one_line(
    arguments: Sequence[str], environment: dict[str, str]
) -> None:
    result = run("--port", "0", *arguments, **environment)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("snakepit-bridge: 'postgres://x' names no log")
    assert "sqlite:PATH" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_log_that_cannot_be_opened_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("--port", "0", "--log", f"sqlite:{tmp_path / 'file' / 'bridge.db'}")
    assert (result.returncode, result.stdout) == (1, "")
    assert str(tmp_path) in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--log-level", "loud", ("debug", "info", "warning", "error")),
        ("--port", "70000", ("65535",)),
    ],
)
def test_an_option_that_is_wrong_is_named(option: str, value: str, words: Sequence[str]) -> None:
    # Typer's usage errors: exit code 2, and how to ask for help.
    result = run("--log", "memory:", option, value)
    assert (result.returncode, result.stdout) == (2, "")
    for word in (option, *words, "--help"):
        assert word in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("level", ["error", "none"])
def test_a_level_that_snakepit_sets_is_taken(level: str) -> None:
    # Snakepit 0.13 sends SNAKEPIT_LOG_LEVEL=none for `log_level: :none`.
    with launched("--port", "0", SNAKEPIT_LOG_LEVEL=level) as process:
        ready = first_line(process)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
    assert (ready[:11], process.returncode, log) == ("GRPC_READY:", 0, "")


def test_a_log_in_memory_leaves_nothing_behind(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
    with BridgeProcess("memory:", environment=home) as bridge:
        session = Session(bridge, "s")
        session.register("x", 1)
        assert session.history("x").entries[0].version == 1
        assert bridge.stop() == 0
    assert list(tmp_path.iterdir()) == []


def test_without_a_log_it_is_kept_in_the_state_directory(tmp_path: Path) -> None:
    # An empty --log is no --log.
    with BridgeProcess("", environment={"XDG_STATE_HOME": str(tmp_path)}) as bridge:
        Session(bridge, "s").start()
        assert bridge.stop() == 0
    assert (tmp_path / "snakepit_bridge" / "bridge.db").exists()
