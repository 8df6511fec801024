"""The log of a process: what a line is, who may wait for it, and what is never in it."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge import bridge_service_pb2_grpc as stubs
from snakepit_bridge import telemetry
from snakepit_bridge.session_context import SessionContext
from snakepit_bridge.telemetry import logs
from snakepit_bridge.tools.definition import tool
from tests.bridge_process import BridgeProcess
from tests.tool_client import ToolSession
from tests.wire_session import METHODS, TIMEOUT, packed

logger = logging.getLogger("snakepit_bridge.test")

SECRET = "geheimnis-7f3a"
"""In every value, argument, result and piece of metadata."""

ADAPTER = ("--adapter", "tests.test_logs")
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

Line = dict[str, Any]


# Tools that the bridges of these tests run.


@tool(isolation="process")
def logs_isolated(text: str) -> int:
    logging.getLogger("tools.of.mine").warning("a tool says %s", text)
    return os.getpid()


@tool(isolation="process")
def logs_and_dies() -> None:
    logging.getLogger("tools.of.mine").error("last words")
    os.kill(os.getpid(), signal.SIGKILL)


@tool(sensitive=["password"])
def keeps_quiet(session: SessionContext, text: str, password: str = "") -> str:
    session.set_variable("x", f"{text} {password}")
    telemetry.emit("of.my.own", {"secret": text})
    telemetry.emit("tool.result_size", {"bytes": 1, "other": text})
    return text


@tool(isolation="process")
def keeps_quiet_isolated(session: SessionContext, text: str) -> str:
    session.set_variable("x", text)
    return text


@tool
def fails_with(text: str) -> None:
    raise ValueError(text)


@tool
def streams(text: str) -> Iterator[str]:
    yield text


# A line.


@pytest.fixture
def restored() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    yield
    handler = logs._Process.handler
    assert handler is not None
    root.removeHandler(handler)
    handler.close()
    logs._Process.handler, logs._Process.format = None, "console"
    root.setLevel(level)


def json_lines(text: str) -> list[Line]:
    return [json.loads(line) for line in text.splitlines()]


def written(capfd: pytest.CaptureFixture[str]) -> str:
    assert logs.flush(10)
    return capfd.readouterr().err


@pytest.mark.usefixtures("restored")
def test_a_line_of_json(capfd: pytest.CaptureFixture[str]) -> None:
    called = {"trace_id": "t", "session_id": "of the call", "correlation_id": "c"}
    logs.configure(logging.INFO, "json", context=lambda: called, fields={"pool": 1})
    before = time.time()
    logger.info("%d things\nwere done", 3, extra={"session_id": "s", "offset": 7, "event": "x"})
    logger.debug("not shown")
    [line] = json_lines(written(capfd))
    assert line.pop("timestamp")[-1] == "Z"
    assert line == {
        "level": "info",
        "logger": "snakepit_bridge.test",
        "event": "3 things\nwere done",
        "pool": 1,
        "trace_id": "t",
        "session_id": "s",
        "correlation_id": "c",
        "offset": 7,
    }
    logger.info("again")
    said = json_lines(written(capfd))[0]["timestamp"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", said)
    assert (
        abs(time.mktime(time.strptime(said[:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone - before)
        < 60
    )


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("format_", ["json", "console"])
def test_an_error_is_told_with_its_traceback(
    format_: logs.Format, capfd: pytest.CaptureFixture[str]
) -> None:
    logs.configure(logging.INFO, format_)
    try:
        raise ValueError("what is wrong")
    except ValueError as error:
        logger.exception("it failed", stack_info=format_ == "json")
        error.__traceback__ = None  # let go of at once, as errors are that were answered
    text = written(capfd)
    told = json_lines(text)[0]["exception"] if format_ == "json" else text
    assert "Traceback (most recent call last):\n" in told
    assert "ValueError: what is wrong" in told
    assert ("Stack (most recent" in told) is (format_ == "json")
    assert text.count("Traceback") == 1


@pytest.mark.usefixtures("restored")
def test_what_cannot_be_written_as_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure(logging.INFO, "json")
    logger.info("half a pair \ud800", extra={"large": 2**80, "path": Path("/x"), "one": 1})
    logger.info("x" * 100_000)
    first, second = json_lines(written(capfd))
    assert first["event"] == "half a pair \\ud800"
    assert (first["large"], first["path"]) == (str(2**80), "/x")
    assert len(second["event"]) < 20_000
    assert "100,000 characters" in second["event"]


@pytest.mark.usefixtures("restored")
def test_a_line_for_people(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure(logging.INFO, "console")
    extra = {"session_id": "s", "empty": "", "two": "a b", "evil": "\x1b[31m\nERROR"}
    logger.warning("told\nin \x1b[1mone line", extra=extra)
    line = written(capfd)
    date, clock, rest = line.split(" ", 2)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}Z", f"{date} {clock}")
    assert rest == (
        "WARNING snakepit_bridge.test: told\\nin \\x1b[1mone line session_id=s empty='' two='a b' "
        "evil=\\x1b[31m\\nERROR\n"
    )


@pytest.mark.parametrize(
    ("format_", "terminal", "environment", "expected"),
    [
        ("console", True, {}, "coloured"),
        ("console", True, {"NO_COLOR": "1"}, "plain"),
        ("console", True, {"NO_COLOR": ""}, "coloured"),
        ("console", False, {}, "plain"),
        ("json", True, {}, "json"),
        ("json", False, {}, "json"),
        ("auto", True, {}, "coloured"),
        ("auto", False, {}, "json"),
        (None, False, {}, "plain"),
        (None, False, {"SNAKEPIT_BRIDGE_LOG_FORMAT": "json"}, "json"),
    ],
)
def test_how_it_is_chosen(
    format_: str | None, terminal: bool, environment: Mapping[str, str], expected: str
) -> None:
    options = ["--log-format", format_] if format_ else []
    assert _form_of("serve", ["--log", "memory:", *options], terminal, environment) == expected


@pytest.mark.parametrize(("format_", "expected"), [("json", "json"), ("console", "plain")])
def test_a_worker_of_a_pool_is_told_the_same_way(format_: str, expected: str) -> None:
    options = ["--log", "memory:", "--log-level", "info", "--log-format", format_]
    assert _form_of("snakepit", options, terminal=False, environment={}) == expected


def _form_of(
    command: str, options: Sequence[str], terminal: bool, environment: Mapping[str, str]
) -> str:
    """What the first line looks like that a bridge writes."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SNAKEPIT_", "NO_COLOR"))}
    leader, follower = pty.openpty() if terminal else os.pipe()
    with subprocess.Popen(
        [sys.executable, "-m", "snakepit_bridge.grpc_server", "--port", "0", *options]
        if command == "snakepit"
        else [sys.executable, "-m", "snakepit_bridge.server", "--port", "0", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=follower,
        env={**kept, **environment},
    ) as process:
        os.close(follower)
        try:
            line = _first_line(leader)
        finally:
            process.kill()
    os.close(leader)
    assert " " in line
    return "json" if line.startswith("{") else "coloured" if "\x1b[" in line else "plain"


def _first_line(file: int) -> str:
    text = b""
    while b"\n" not in text:
        ready, _, _ = select.select([file], [], [], TIMEOUT)
        assert ready, text
        text += os.read(file, 65_536)
    return text.decode().splitlines()[0]


def test_another_format_is_refused() -> None:
    command = [sys.executable, "-m", "snakepit_bridge.server", "--log-format", "xml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT)
    assert done.returncode == 2
    assert "--log-format" in done.stderr


# Nobody waits.


class Unread:
    """A bridge whose standard error nobody reads."""

    def __init__(self, *arguments: str) -> None:
        self.read, write = os.pipe()
        command = [
            sys.executable,
            "-m",
            "snakepit_bridge.server",
            "--port",
            "0",
            "--log",
            "memory:",
        ]
        self.process = subprocess.Popen(
            [*command, "--log-level", "debug", "--log-format", "json", *arguments],
            stdout=subprocess.PIPE,
            stderr=write,
            text=True,
        )
        os.close(write)
        assert self.process.stdout is not None
        port = self.process.stdout.readline().removeprefix("GRPC_READY:")
        self.channel = grpc.insecure_channel(f"127.0.0.1:{int(port)}")
        self.stub: Any = stubs.BridgeServiceStub(self.channel)

    def set_all(self, times: int) -> None:
        """Set a thousand variables so often, each a line."""
        updates = {f"x{n}": packed(n) for n in range(1_000)}
        for _ in range(times):
            answer = self.stub.SetVariables(
                pb.BatchSetVariablesRequest(session_id="s", updates=updates), timeout=TIMEOUT
            )
            assert answer.success

    def begin(self) -> None:
        self.stub.InitializeSession(pb.InitializeSessionRequest(session_id="s"), timeout=TIMEOUT)
        for n in range(1_000):
            self.stub.RegisterVariable(
                pb.RegisterVariableRequest(
                    session_id="s", name=f"x{n}", type="integer", initial_value=packed(0)
                ),
                timeout=TIMEOUT,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()
        self.process.kill()
        self.process.wait(TIMEOUT)
        assert self.process.stdout is not None
        self.process.stdout.close()
        os.close(self.read)


def test_a_pipe_that_nobody_reads_stops_nothing_and_what_is_lost_is_said() -> None:
    with Unread() as bridge:
        bridge.begin()
        bridge.set_all(8)
        # All was answered. Now somebody reads: what waited, then how much there was no room for.
        lines: list[Line] = []
        reader = io.TextIOWrapper(io.FileIO(os.dup(bridge.read)))
        for raw in reader:
            lines.append(json.loads(raw))
            if "dropped" in lines[-1]:
                break
        assert sum(line["event"] == "variable registered" for line in lines) == 1_000
        set_ = sum(line["event"] == "variable set" for line in lines)
        assert lines[-1]["level"] == "warning"
        # And it goes on with nothing missing.
        bridge.stub.SetVariable(
            pb.SetVariableRequest(session_id="s", variable_identifier="x1", value=packed(7)),
            timeout=TIMEOUT,
        )
        last = 0
        while last != 9_002:
            line = json.loads(next(reader))
            assert "dropped" not in line
            set_ += line["event"] == "variable set"
            last = line.get("offset", 0)
        # Beside sets a few other lines were lost, of upkeep and the like.
        assert 8_001 <= set_ + lines[-1]["dropped"] < 8_050
        assert lines[-1]["dropped"] > 1_000
        reader.close()


def test_it_stops_in_time_though_nobody_reads() -> None:
    with Unread() as bridge:
        bridge.begin()
        bridge.set_all(1)
        bridge.channel.close()
        began = time.monotonic()
        bridge.process.send_signal(signal.SIGTERM)
        assert bridge.process.wait(TIMEOUT) == 0
        assert time.monotonic() - began < 10  # half a second at most, by itself


def test_a_closed_standard_error_harms_nobody() -> None:
    with Unread() as bridge:
        os.dup2(os.open(os.devnull, os.O_RDONLY), bridge.read)
        bridge.begin()
        bridge.set_all(1)
        bridge.process.send_signal(signal.SIGTERM)
        assert bridge.process.wait(TIMEOUT) == 0


def ran(code: str) -> subprocess.CompletedProcess[str]:
    start = (
        "import logging, os, threading; from snakepit_bridge.telemetry import logs;"
        "logs.configure(logging.INFO, 'json'); log = logging.getLogger('t')\n"
    )
    command = [sys.executable, "-c", start + code]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT)


def test_everything_is_written_before_the_end() -> None:
    done = ran("for n in range(3_000): log.info('n', extra={'n': n})")
    assert [line["n"] for line in json_lines(done.stderr)] == list(range(3_000))


def test_everything_is_written_before_an_exit_without_a_clean_up() -> None:
    done = ran("for n in range(3_000): log.info('n', extra={'n': n})\nlogs.flush()\nos._exit(3)")
    assert done.returncode == 3
    assert [line["n"] for line in json_lines(done.stderr)] == list(range(3_000))


def test_what_is_said_before_a_crash_is_written() -> None:
    done = ran("log.info('before')\nraise OSError('the last word')")
    first, *rest = done.stderr.splitlines()
    told = [*json_lines(first), *rest] if first.startswith("{") else [first, *rest]
    assert "the last word" in done.stderr
    assert '"before"' in done.stderr
    assert told


def test_what_is_said_after_the_end_is_written() -> None:
    done = ran("import atexit\natexit.register(log.info, 'late')\nlogging.shutdown()\n")
    assert [line["event"] for line in json_lines(done.stderr)] == ["late"]


def test_a_forked_child_writes_too() -> None:
    done = ran(
        "log.info('parent')\nlogs.flush()\nchild = os.fork()\n"
        "if child == 0:\n    log.info('child')\n    os._exit(0)\n"
        "os.waitpid(child, 0)\nlog.info('parent again')"
    )
    told = [line["event"] for line in json_lines(done.stderr)]
    assert told == ["parent", "child", "parent again"]


def test_a_standard_error_that_does_not_block_loses_nothing() -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    code = (
        "import logging; from snakepit_bridge.telemetry import logs\n"
        "logs.configure(logging.INFO, 'json')\n"
        "for n in range(2_000): logging.getLogger('t').info('n', extra={'n': n})\n"
        "assert logs.flush(30)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=write) as process:
        os.close(write)
        time.sleep(0.5)  # long enough for the pipe to be full; if it is not, nothing is lost
        with open(read) as file:  # noqa: PTH123 - a file descriptor
            told = json_lines(file.read())
    assert process.returncode == 0
    assert [line["n"] for line in told] == list(range(2_000))


@pytest.mark.usefixtures("restored")
def test_warnings_find_room_when_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    go, told = threading.Event(), []

    def write(text: str) -> None:
        go.wait(TIMEOUT)
        told.append(json.loads(text))

    monkeypatch.setattr(logs, "_write", write)
    logs.configure(logging.INFO, "json")
    for _ in range(logs.QUEUE + 10):
        logger.info("many")
    for _ in range(logs.RESERVE + 10):
        logger.warning("a warning")
    go.set()
    assert logs.flush(10)
    counts = dict.fromkeys(("many", "a warning"), 0)
    for line in told:
        counts[line["event"]] = counts.get(line["event"], 0) + 1
    assert logs.QUEUE <= counts["many"] <= logs.QUEUE + 1  # one is being written
    assert logs.RESERVE - 1 <= counts["a warning"] <= logs.RESERVE
    dropped = [line["dropped"] for line in told if "dropped" in line]
    assert sum(dropped) + counts["many"] + counts["a warning"] == logs.QUEUE + logs.RESERVE + 20
    assert len(dropped) == 1


# Refused requests.


def test_of_each_reason_one_in_ten_seconds() -> None:
    now = [0.0]
    refusals = logs._Refusals(clock=lambda: now[0])
    assert [refusals.take("A") for _ in range(4)] == [0, None, None, None]
    assert refusals.take("B") == 0
    now[0] = 9.9
    assert refusals.take("A") is None
    now[0] = 10.0
    assert [refusals.take("A"), refusals.take("A")] == [4, None]
    assert [refusals.take("B"), refusals.take("B")] == [0, None]
    now[0] = 20.0
    assert refusals.take("A") == 1


def test_reasons_are_bounded() -> None:
    refusals = logs._Refusals(clock=lambda: 0.0)
    told = [refusals.take(f"reason {n}") for n in range(1_000)]
    assert told.count(0) == logs.MAX_REASONS + 1
    assert len(refusals._last) == logs.MAX_REASONS + 1


@pytest.mark.usefixtures("restored")
def test_a_refusal_is_told_without_what_was_sent(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_refusals", logs._Refusals())
    logs.configure(logging.INFO, "json")
    sent = f"value '{SECRET}' is above the maximum of 3"
    for _ in range(3):
        logs.refused(
            "INVALID_VALUE", "INVALID_ARGUMENT", "SetVariable", sent, field="value", variable=""
        )
    logs.refused("SESSION_NOT_FOUND", "NOT_FOUND", "GetVariable", "session 's' not found")
    text = written(capfd)
    assert SECRET not in text
    invalid, missing = json_lines(text)
    assert invalid["event"] == missing["event"] == "a request was refused"
    assert invalid["reason"] == "INVALID_VALUE"
    assert (invalid["code"], invalid["method"]) == ("INVALID_ARGUMENT", "SetVariable")
    assert invalid["field"] == "value"
    assert not {"why", "variable", "left_out"} & invalid.keys()
    assert missing["why"] == "session 's' not found"


@pytest.mark.usefixtures("restored")
def test_refusals_from_many_threads(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_refusals", logs._Refusals())
    logs.configure(logging.INFO, "json")

    def refuse() -> None:
        for _ in range(200):
            logs.refused("UNAVAILABLE", "UNAVAILABLE", "Ping", "the bridge is shutting down")

    threads = [threading.Thread(target=refuse) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(json_lines(written(capfd))) == 1
    assert logs._refusals._left_out == {"UNAVAILABLE": 799}


def test_a_traceparent() -> None:
    assert logs.trace_of(TRACE) == {"trace_id": TRACE[3:35], "span_id": TRACE[36:52]}
    for wrong in ("", "x", TRACE.upper(), TRACE[:50]):
        assert logs.trace_of(wrong) == {}


# Worker processes.


@pytest.mark.parametrize("format_", ["json", "console"])
def test_worker_processes_write_as_the_bridge_does(format_: str) -> None:
    with BridgeProcess("memory:", *ADAPTER, "--log-format", format_) as bridge:
        session = ToolSession(bridge, "s")
        headers = (("traceparent", TRACE), ("x-snakepit-correlation-id", "c-1"))
        answer = session.run("logs_isolated", {"text": "two words"}, headers)
        pid = int(json.loads(answer.result.value))
        assert not session.run("logs_and_dies").success
        assert bridge.stop() == 0
    [line] = [line for line in bridge.stderr_lines if "two words" in line]
    assert any("last words" in line for line in bridge.stderr_lines)
    if format_ == "console":
        assert " WARNING tools.of.mine: a tool says two words tools_process=" in line
        assert f"tools_process={pid} session_id=s tool=logs_isolated" in line
        return
    told = json.loads(line)
    assert (told["logger"], told["event"]) == ("tools.of.mine", "a tool says two words")
    assert (told["tools_process"], told["session_id"]) == (pid, "s")
    assert (told["tool"], told["correlation_id"]) == ("logs_isolated", "c-1")
    assert told["tool_call_id"]
    assert (told["trace_id"], told["span_id"]) == (TRACE[3:35], TRACE[36:52])


# Values.


def _fill(message: Message) -> None:
    """Put the secret wherever a value may stand, and names where names do."""
    names = {
        "session_id": "s",
        "variable_identifier": "x",
        "variable_identifiers": "x",
        "name": "y",
        "tool_name": "keeps_quiet",
        "type": "string",
        "worker_id": "w",
        "optimizer_id": "o",
    }
    for field in message.DESCRIPTOR.fields:
        if field.name in names:
            if field.default_value == []:
                getattr(message, field.name).append(names[field.name])
            else:
                setattr(message, field.name, names[field.name])
        elif field.name in ("request_id", "log_epoch", "page_token", "optimization_id", "pattern"):
            continue  # with these it would be refused for what is no value
        elif field.message_type is not None and field.message_type.GetOptions().map_entry:
            entry = field.message_type.fields_by_name["value"]
            target = getattr(message, field.name)
            key = {"updates": "x", "parameters": "text"}.get(field.name, "k")
            if entry.message_type is AnyMessage.DESCRIPTOR:
                target[key].CopyFrom(packed(SECRET, "string"))
            elif entry.type == FieldDescriptor.TYPE_STRING and entry.message_type is None:
                target[key] = SECRET
        elif field.message_type is AnyMessage.DESCRIPTOR:
            getattr(message, field.name).CopyFrom(packed(SECRET, "string"))
        elif field.default_value == []:
            continue
        elif field.name == "constraints_json":
            setattr(message, field.name, json.dumps({"enum": [SECRET]}))
        elif field.type == FieldDescriptor.TYPE_STRING:
            setattr(message, field.name, SECRET)


def test_no_value_and_no_secret_is_ever_logged(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(f"{SECRET}-the-token-of-this-bridge\n")
    token.chmod(0o600)
    options = ("--log-level", "debug", "--log-format", "json", "--token-file", str(token))
    with BridgeProcess(tmp_path / "bridge.db", *ADAPTER, *options) as bridge:
        headers = (
            ("authorization", f"Bearer {token.read_text().strip()}"),
            ("x-something", SECRET),
            ("tracestate", f"x={SECRET}"),
            ("traceparent", TRACE),
        )
        session = ToolSession(bridge, "s")
        metadata = {"k": SECRET}
        session.call("InitializeSession", headers, metadata=metadata)
        value = packed(SECRET, "string")
        more = json.dumps({"pattern": f"{SECRET}.*"})
        session.call(
            "RegisterVariable",
            headers,
            name="x",
            type="string",
            initial_value=value,
            constraints_json=more,
            metadata=metadata,
        )
        watch = bridge.stub.WatchVariables(
            pb.WatchVariablesRequest(session_id="s", include_initial_values=True),
            metadata=headers,
            timeout=TIMEOUT,
        )
        next(watch)
        for _ in range(2):
            session.call(
                "SetVariable", headers, variable_identifier="x", value=value, metadata=metadata
            )
        session.call("RollbackVariable", headers, variable_identifier="x", target_version=1)
        for name in ("keeps_quiet", "keeps_quiet_isolated", "fails_with"):
            arguments = {"text": SECRET} | ({"password": SECRET} if name == "keeps_quiet" else {})
            session.run(name, arguments, headers, metadata=metadata)
        request = session.request("streams", {"text": SECRET})
        list(bridge.stub.ExecuteStreamingTool(request, metadata=headers, timeout=TIMEOUT))
        wrong = packed(f"not so {SECRET}", "string")
        for method in METHODS.values():
            _call_filled(bridge, method, headers)
            _call_filled(bridge, method, (("authorization", f"Bearer wrong {SECRET}"),))
        for fields in ({"value": wrong}, {"value": packed(SECRET, "float")}):
            with pytest.raises(grpc.RpcError):
                session.call("SetVariable", headers, variable_identifier="x", **fields)
        watch.cancel()
        bridge.kill() if bridge.stop() != 0 else None
    told = [json.loads(line) for line in bridge.stderr_lines if line.startswith("{")]
    events = {line["event"] for line in told}
    assert {"variable set", "variable rolled back", "tool finished", "watch closed"} <= events
    assert any(line["level"] == "debug" for line in told)
    assert [line for line in bridge.stderr_lines if SECRET in line] == []


def _call_filled(bridge: BridgeProcess, method: Any, headers: Any) -> None:  # noqa: ANN401 - descriptors
    request = GetMessageClass(method.input_type)()
    _fill(request)
    call = getattr(bridge.stub, method.name)
    given = iter([request]) if method.client_streaming else request
    try:
        if method.server_streaming:
            # Long enough for what is refused, and for the first answers.
            for _ in call(given, metadata=headers, timeout=0.5):
                pass
        else:
            call(given, metadata=headers, timeout=TIMEOUT)
    except grpc.RpcError as error:
        assert error.code() is not grpc.StatusCode.UNKNOWN  # noqa: PT017 - many succeed
