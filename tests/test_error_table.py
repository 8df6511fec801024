"""The error table of the wire contract through a real client, row by row.

Of each refusal: the status, words that name the fault, the same message and a
machine-readable reason in the details, no more than 1 KiB of message, and the log as it
was before. The rows of a bridge that wants a token are in ``test_tokens``; that a worker before a
shared bridge refuses with the same bytes is in ``test_forwarding``.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from grpc_status import rpc_status

from snakepit_bridge import bridge_service_pb2 as pb
from tests.bridge_process import BridgeProcess
from tests.tool_client import TOOLS, ToolSession, as_elixir_writes
from tests.wire_session import METHODS, TIMEOUT, Session, packed

SERVED = (
    "Ping",
    "InitializeSession",
    "CleanupSession",
    "GetSession",
    "Heartbeat",
    "RegisterVariable",
    "GetVariable",
    "SetVariable",
    "ListVariables",
    "DeleteVariable",
    "GetVariables",
    "SetVariables",
    "GetVariableHistory",
    "RollbackVariable",
    "StartOptimization",
    "StopOptimization",
    "WatchVariables",
    "RegisterTools",
    "ExecuteTool",
    "ExecuteStreamingTool",
    "GetExposedElixirTools",
    "ExecuteElixirTool",
    "StreamTelemetry",
)
SNAKE = "\N{SNAKE}"
HUGE = SNAKE * 100_000
"""An identifier of 400 KB, each character of which takes ten when it is escaped."""


class Fault(NamedTuple):
    code: str
    reason: str
    message: str
    field: str = ""
    """Of the BadRequest; empty when there is none."""


def fault_of(error: Any) -> Fault:  # noqa: ANN401 - a call and its error at once
    """Read a refusal as a client does, and check what holds for each."""
    code, message = error.code(), error.details() or ""
    status = rpc_status.from_call(error)
    assert status is not None, f"{code}: no details beside {message!r}"
    assert (status.code, status.message) == (code.value[0], message)
    assert 0 < len(message.encode()) <= 1024
    # Clients drop metadata beyond 8 KiB: as it travels, in base64.
    trailers = sum(len(key) + len(value) * 4 // 3 for key, value in error.trailing_metadata())
    assert trailers + 3 * len(message) < 8192
    info, *others = status.details
    reason = ErrorInfo()
    assert info.Unpack(reason)
    assert reason.domain == "snakepit.bridge"
    if not others:
        return Fault(code.name, reason.reason, message)
    request = BadRequest()
    assert others[0].Unpack(request)
    (violation,) = request.field_violations
    assert violation.description == message
    return Fault(code.name, reason.reason, message, violation.field)


def raw_call(bridge: BridgeProcess, method: str, request: bytes) -> bytes:
    """Call a method with bytes as they are, and give the bytes of its answer.

    Of a stream that is the first one, with which it is ended; of a conversation all there are,
    as it speaks before it listens.
    """
    path = f"/snakepit.bridge.BridgeService/{method}"
    channel: Any = bridge.channel
    if method in METHODS and METHODS[method].server_streaming:
        if METHODS[method].client_streaming:
            return b"".join(channel.stream_stream(path)(iter([request]), timeout=TIMEOUT))
        stream = channel.unary_stream(path)(request, timeout=TIMEOUT)
        first: bytes = next(stream)
        stream.cancel()
        return first
    answer: bytes = channel.unary_unary(path)(request, timeout=TIMEOUT)
    return answer


def message_of(method: str, **fields: Any) -> Message:  # noqa: ANN401
    return GetMessageClass(METHODS[method].input_type)(**fields)


class Table:
    """A session with variables of every type and calls of tools, which no row may change."""

    def __init__(self, bridge: BridgeProcess) -> None:
        self.bridge = bridge
        self.session = Session(bridge, "table")
        for type_, value in VALUES.items():
            self.session.register(type_, value, type_)
        for name, (type_, constraints, value, _, _) in CONSTRAINED.items():
            self.session.register(name, value, type_, constraints_json=constraints)
        self.session.set("integer", 2, request_id="known")
        self.session.register("gone")
        self.session.delete("gone")
        self.call_tools(ToolSession(bridge, "table"))
        self.epoch = self.session.call("GetSession").log_epoch
        self.head = self.session.head

    def call_tools(self, session: ToolSession) -> None:
        """Call tools with request ids, whose repetition is refused."""
        session.call("RegisterTools", tools=[{"name": "elsewhere"}], worker_id="worker 1")
        assert len(list(session.stream("count_to", {"to": 2}, request_id="streamed"))) == 3
        waiting = {"runs": NOWHERE, "go": NEVER}
        with pytest.raises(grpc.RpcError):
            session.run("too_slow_async", waiting, request_id="late")
        left = session.begin("count_run_async", waiting, timeout=0.5, request_id="left")
        assert left.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        session.run("add", {"a": 1}, request_id="ran")

    def refusal(self, method: str, request: bytes) -> Fault:
        with pytest.raises(grpc.RpcError) as caught:
            raw_call(self.bridge, method, request)
        assert self.session.head == self.head
        return fault_of(caught.value)


NOWHERE = "/dev/null"
"""Where tools of which nobody wants to hear tell that they run."""

NEVER = "/nonexistent/go"
"""What lets no tool go on."""

VALUES: dict[str, object] = {
    "float": 0.5,
    "integer": 1,
    "string": "text",
    "boolean": True,
    "choice": "a",
    "module": "dspy.Predict",
    "embedding": [0.5, 1],
    "tensor": {"shape": [2], "data": [1, 2]},
}

# name: type, constraints, a value that is right, one that is wrong, words
CONSTRAINED: dict[str, tuple[str, str, object, object, tuple[str, ...]]] = {
    "f min": ("float", '{"min": 0.5}', 1, 0.25, ("below minimum 0.5", "0.25")),
    "f max": ("float", '{"max": 0.5}', 0, 0.75, ("above maximum 0.5", "0.75")),
    "f nan": ("float", '{"max": 0.5}', 0, "NaN", ("NaN", "maximum")),
    "f step": ("float", '{"step": 0.5}', 1, 0.7, ("multiple of step 0.5", "0.7")),
    "i min": ("integer", '{"min": -3}', 0, -4, ("below minimum -3", "-4")),
    "i max": ("integer", '{"max": 3}', 0, 4, ("above maximum 3", "4")),
    "i step": ("integer", '{"min": 1, "step": 2}', 3, 4, ("multiple of step 2", "4")),
    "s min": ("string", '{"min_length": 2}', "ab", "a", ("minimum length 2",)),
    "s max": ("string", '{"max_length": 2}', "ab", "abc", ("maximum length 2",)),
    "s pattern": ("string", '{"pattern": "^a+$"}', "aa", "b", ("'b'", "pattern '^a+$'")),
    "s enum": ("string", '{"enum": ["a", "b"]}', "a", "c", ("'c'", "a, b")),
    "choices": ("choice", '{"choices": ["a", "b"]}', "a", "c", ("'c'", "choices", "a, b")),
    "c long": (  # a message of more than 1 KiB, if it were not cut
        "choice",
        json.dumps({"choices": [SNAKE * 30 + str(n) for n in range(30)]}),
        SNAKE * 30 + "0",
        SNAKE * 300,
        ("choices",),
    ),
    "m choices": ("module", '{"choices": ["a.B"]}', "a.B", "a.C", ("'a.C'", "a.B")),
    "m allowed": ("module", '{"allowed_modules": ["a.B"]}', "a.B", "x", ("allowed_modules",)),
    "m pattern": ("module", '{"pattern": "^dspy"}', "dspy.X", "os", ("'os'", "pattern")),
    "m space": ("module", '{"namespace": "dspy"}', "dspy.X", "dspyx.Y", ("namespace 'dspy'",)),
    "e dim": ("embedding", '{"dimensions": 2}', [1, 2], [1], ("1 dimensions", "2")),
    "e norm": ("embedding", '{"normalize": true}', [0, 1], [1, 1], ("norm 1",)),
    "t shape": (
        "tensor",
        '{"shape": [null, 2]}',
        {"shape": [1, 2], "data": [1, 2]},
        {"shape": [2, 1], "data": [1, 2]},
        ("shape [2, 1]", "[any, 2]"),
    ),
    "t dtype": (
        "tensor",
        '{"dtype": "int8"}',
        {"shape": [1], "data": [1]},
        {"shape": [1], "data": [128]},
        ("int8", "128"),
    ),
}


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BridgeProcess]:
    """One that has tools, in place of the bridge of all other tests."""
    with BridgeProcess(tmp_path_factory.mktemp("bridge") / "bridge.db", *TOOLS) as process:
        yield process
        assert process.stop() == 0


@pytest.fixture(scope="module")
def table(bridge: BridgeProcess) -> Table:
    return Table(bridge)


class Row(NamedTuple):
    method: str
    fields: dict[str, Any]
    code: str
    reason: str
    words: tuple[str, ...]
    field: str = ""


def register(name: str = "new", type_: str = "integer", **fields: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"name": name, "type": type_, "initial_value": packed(1), **fields}


def setting(name: str, value: AnyMessage, **fields: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"variable_identifier": name, "value": value, **fields}


def running(tool: str, /, **arguments: object) -> dict[str, Any]:
    """Fields of a request that runs a tool."""
    parameters = {
        name: value if isinstance(value, AnyMessage) else as_elixir_writes(value)
        for name, value in arguments.items()
    }
    return {"tool_name": tool, "parameters": parameters}


def text(type_: str, content: str) -> AnyMessage:
    return AnyMessage(type_url=f"dspex.variables/{type_}", value=content.encode())


def invalid(
    method: str, fields: dict[str, Any], *words: str, field: str = "", reason: str = "INVALID_VALUE"
) -> Row:
    return Row(method, fields, "INVALID_ARGUMENT", reason, words, field)


def request_fault(method: str, fields: dict[str, Any], *words: str, field: str = "") -> Row:
    return invalid(method, fields, *words, field=field, reason="INVALID_REQUEST")


def missing(method: str, fields: dict[str, Any], reason: str, *words: str, field: str = "") -> Row:
    return Row(method, fields, "NOT_FOUND", reason, words, field)


Fields = dict[str, dict[str, Any]]

WITHOUT_SESSION: Fields = {
    "GetSession": {},
    "GetVariable": {"variable_identifier": "x"},
    "SetVariable": setting("x", packed(1)),
    "ListVariables": {},
    "DeleteVariable": {"variable_identifier": "x"},
    "GetVariables": {},
    "SetVariables": {},
    "GetVariableHistory": {"variable_identifier": "x"},
    "RollbackVariable": {"variable_identifier": "x", "target_version": 1},
    "WatchVariables": {},
}
OF_A_VARIABLE: Fields = {
    "GetVariable": {},
    "SetVariable": {"value": packed(1)},
    "DeleteVariable": {},
    "GetVariableHistory": {},
    "RollbackVariable": {"target_version": 1},
}
EXPECTING: Fields = {
    name: OF_A_VARIABLE[name] for name in ("SetVariable", "DeleteVariable", "RollbackVariable")
}
OF_AN_EPOCH: Fields = {
    "InitializeSession": {},
    "CleanupSession": {},
    "GetSession": {},
    "RegisterVariable": register(),
    "SetVariable": setting("integer", packed(1)),
    "GetVariable": {"variable_identifier": "integer"},
    "WatchVariables": {},
    "RegisterTools": {"tools": [{"name": "t"}]},
    "ExecuteTool": running("add", a=1),
    "ExecuteStreamingTool": running("count_to", to=1),
}
STARTS: Fields = {
    "InitializeSession": {},
    "RegisterVariable": register(),
    "RegisterTools": {"tools": [{"name": "t"}]},
    "ExecuteTool": running("add", a=1),
    "ExecuteStreamingTool": running("count_to", to=1),
}
RUNS = ("ExecuteTool", "ExecuteStreamingTool")
PAGED: Fields = {"ListVariables": {}, "GetVariableHistory": {"variable_identifier": "integer"}}
BATCHES: list[tuple[str, dict[str, Any], tuple[str, ...], str]] = [
    (
        "unknown variable in a batch",
        {"updates": {"integer": packed(1), "nothing": packed(1)}},
        ("'nothing' not found",),
        "updates",
    ),
    (
        "variable twice in a batch",
        {"updates": {"integer": packed(1), "var_integer_3": packed(1)}},
        ("'integer'", "'var_integer_3'", "same variable"),
        "updates",
    ),
    (
        "version without update in a batch",
        {"updates": {"integer": packed(1)}, "expected_versions": {"float": 1}},
        ("'float'",),
        "expected_versions",
    ),
    (
        "bytes without update in a batch",
        {"updates": {"integer": packed(1)}, "binary_updates": {"float": b"1"}},
        ("'float'",),
        "binary_updates",
    ),
]

ARGUMENTS: list[tuple[str, str, dict[str, object], str, tuple[str, ...]]] = [
    ("a missing parameter", "add_async", {"b": 1}, "a", ("needs a (integer)", "given: b")),
    ("an unknown parameter", "add_async", {"a": 1, "c": 1}, "c", ("'c'", "a, b")),
    ("text for an integer", "add_async", {"a": "1"}, "a", ("'a'", "an integer", "'1'")),
    ("a truth for an integer", "add_async", {"a": True}, "a", ("'a'", "true")),
    ("null for an integer", "add_async", {"a": None}, "a", ("'a'", "null")),
    (
        "none of the choices",
        "typed",
        {**dict.fromkeys(("number", "ratio"), 1), "text": "", "flag": True, "mode": "c"},
        "mode",
        ("'mode'",),
    ),
    ("an item of another type", "typed", {"items": [1, "2"]}, "items[1]", ("items[1]",)),
    ("text for an array", "norm", {"vector": "abc"}, "vector", ("'vector'",)),
    ("text for bytes", "reverse_bytes", {"data": "abc"}, "data", ("'data'",)),
]
REPEATED: list[tuple[str, str, dict[str, object], str, tuple[str, ...]]] = [
    ("ExecuteStreamingTool", "count_to", {"to": 2}, "streamed", ("a new run", "new id")),
    (
        "ExecuteTool",
        "too_slow_async",
        {"runs": NOWHERE, "go": NEVER},
        "late",
        ("timeout", "took too long"),
    ),
    (
        "ExecuteTool",
        "count_run_async",
        {"runs": NOWHERE, "go": NEVER},
        "left",
        ("timeout", "time was over"),
    ),
]
REGISTERED: list[tuple[str, dict[str, Any], tuple[str, ...], str]] = [
    ("none", {}, ("tools is empty",), "tools"),
    ("twice", {"tools": [{"name": "t"}, {"name": "t"}]}, ("'t' twice",), "tools"),
    ("without a name", {"tools": [{}]}, ("''", "1 to 256 bytes"), "name of a tool"),
    ("control", {"tools": [{"name": "a\n"}]}, ("control",), "name of a tool"),
    ("huge name", {"tools": [{"name": HUGE}]}, ("1 to 256 bytes",), "name of a tool"),
    (
        "huge worker",
        {"tools": [{"name": "t"}], "worker_id": HUGE},
        ("worker_id", "256 bytes"),
        "worker_id",
    ),
]

ROWS: dict[str, Row] = {
    # What is not there.
    **{
        f"unknown session: {method}": missing(
            method, {"session_id": "nobody", **fields}, "SESSION_NOT_FOUND", "'nobody'"
        )
        for method, fields in WITHOUT_SESSION.items()
    },
    **{
        f"{what}: {method}": missing(
            method, {"variable_identifier": name, **fields}, "VARIABLE_NOT_FOUND", "not found", name
        )
        for what, name in (("unknown variable", "nothing"), ("deleted variable", "gone"))
        for method, fields in OF_A_VARIABLE.items()
    },
    "unknown version": missing(
        "RollbackVariable",
        {"variable_identifier": "integer", "target_version": 3},
        "VERSION_NOT_FOUND",
        "version 3",
        "'integer'",
        "1 to 2",
        field="target_version",
    ),
    # What is there already, or has moved on.
    "duplicate registration": Row(
        "RegisterVariable",
        register("integer"),
        "ALREADY_EXISTS",
        "VARIABLE_EXISTS",
        ("'integer'", "already exists", "var_integer_3"),
    ),
    "a name that is an id": Row(
        "RegisterVariable",
        register("var_integer_3"),
        "ALREADY_EXISTS",
        "VARIABLE_EXISTS",
        ("'var_integer_3'", "id"),
    ),
    **{
        f"stale version: {method}": Row(
            method,
            {"variable_identifier": "integer", "expected_version": 1, **fields},
            "ABORTED",
            "VERSION_CONFLICT",
            ("'integer'", "version 2", "expected 1"),
        )
        for method, fields in EXPECTING.items()
    },
    **{
        f"negative version: {method}": request_fault(
            method,
            {"variable_identifier": "integer", "expected_version": -1, **fields},
            "expected_version -1",
            "negative",
            field="expected_version",
        )
        for method, fields in EXPECTING.items()
    },
    **{
        f"foreign epoch: {method}": Row(
            method,
            {"log_epoch": "0123456789abcdef", **fields},
            "FAILED_PRECONDITION",
            "LOG_EPOCH_MISMATCH",
            ("'0123456789abcdef'",),
            "log_epoch",
        )
        for method, fields in OF_AN_EPOCH.items()
    },
    "offset in the future": Row(
        "GetVariable",
        {"variable_identifier": "integer", "min_offset": 1000},
        "OUT_OF_RANGE",
        "OFFSET_OUT_OF_RANGE",
        ("offset 1000", "future", "offsets 1 to"),
        "min_offset",
    ),
    # Values.
    **{
        f"{type_}: {content[:40]!r}": invalid(
            "SetVariable",
            setting(type_, text(type_, content)),
            f"'{type_}'",
            f"type {type_}",
            words,
            field="value",
        )
        for type_, content, words in [
            ("float", '"0.5"', "number"),
            ("float", "true", "number"),
            ("float", "NaN", "not valid JSON"),
            ("float", "1e400", ""),
            ("float", "null", "null"),
            ("float", "[1]", "number"),
            ("integer", '"1"', "must be an integer"),
            ("integer", "1.5", "must be an integer"),
            ("integer", "true", "must be an integer"),
            ("integer", "null", "null"),
            ("integer", "9" * 4301, "4300"),
            ("string", "1", "a string"),
            ("string", "null", "null"),
            ("string", '"\\ud800"', "not valid JSON"),
            ("boolean", "1", "true or false"),
            ("boolean", '"true"', "true or false"),
            ("choice", "1", "a string"),
            ("module", "[]", "a string"),
            ("embedding", "1", "list of numbers"),
            ("embedding", '[1, "2"]', "'2'"),
            ("embedding", "[true]", "true or false"),
            ("embedding", "[null]", "null"),
            ("embedding", "[[1]]", "nested"),
            ("tensor", "[1, 2]", "shape"),
            ("tensor", '{"shape": [3], "data": [1, 2]}', "shape [3]"),
            ("tensor", '{"shape": [2]}', "keys"),
            ("tensor", '{"shape": [-1], "data": []}', "negative"),
            ("tensor", '{"shape": [1], "shape": [2], "data": [1, 2]}', "twice"),
        ]
    },
    **{
        f"broken JSON: {type_}": invalid(
            "SetVariable", setting(type_, text(type_, content)), "not valid JSON", field="value"
        )
        for type_, content in {
            **dict.fromkeys(VALUES, '{"'),
            "float": "1.",
            "integer": "01",
            "string": "'a'",
            "embedding": "[1,]",
        }.items()
    },
    "no JSON": invalid("SetVariable", setting("float", text("float", "")), "empty", field="value"),
    "JSON that is no UTF-8": invalid(
        "SetVariable",
        setting("string", AnyMessage(type_url="dspex.variables/string", value=b'"\xff"')),
        "not valid JSON",
        field="value",
    ),
    "nesting without end": invalid(
        "SetVariable", setting("tensor", text("tensor", "[" * 100_000)), "'tensor'", field="value"
    ),
    "no value": invalid(
        "SetVariable",
        {"variable_identifier": "float"},
        "value is missing",
        "dspex.variables/float",
        field="value",
    ),
    "no initial value": invalid(
        "RegisterVariable",
        {"name": "new", "type": "float"},
        "value is missing",
        "dspex.variables/float",
        field="value",
    ),
    "a type_url of another type": invalid(
        "SetVariable",
        setting("float", packed(1, "integer")),
        "dspex.variables/integer",
        "contradicts the type float",
        field="value",
    ),
    "an unknown type_url": invalid(
        "SetVariable",
        setting("float", AnyMessage(type_url="example.com/float", value=b"1")),
        "example.com/float",
        "dspex.variables/float",
        field="value",
    ),
    "no type_url": invalid(
        "SetVariable",
        setting("float", AnyMessage(value=b"1")),
        "type_url is empty",
        field="value",
    ),
    "a StringValue, which tools take": invalid(
        "SetVariable",
        setting(
            "string",
            AnyMessage(type_url="type.googleapis.com/google.protobuf.StringValue", value=b'"a"'),
        ),
        "google.protobuf.StringValue",
        field="value",
    ),
    "a Value that is none": invalid(
        "SetVariable",
        setting(
            "float", AnyMessage(type_url="type.googleapis.com/google.protobuf.Value", value=b"0.5")
        ),
        "google.protobuf.Value",
        field="value",
    ),
    "a binary value without bytes": invalid(
        "SetVariable",
        setting("embedding", text("embedding.binary", '{"shape": [2]}')),
        "binary",
        field="value",
    ),
    "bytes beside JSON": invalid(
        "SetVariable",
        setting("embedding", packed([1], "embedding"), binary_value=b"1234"),
        "4 binary bytes",
        field="value",
    ),
    # Types, constraints, names.
    **{
        f"unknown type {type_[:9]!r}": invalid(
            "RegisterVariable",
            register(type_=type_),
            f"unknown type {shown}",
            "float",
            field="type",
        )
        for type_, shown in {
            "complex": "'complex'",
            "": "''",
            "Float": "'Float'",
            "map": "'map'",
            "list": "'list'",
            HUGE: "'",
        }.items()
    },
    **{
        f"violated: {name}": invalid(
            "SetVariable", setting(name, packed(wrong, type_)), f"'{name}'", *words, field="value"
        )
        for name, (type_, _, _, wrong, words) in CONSTRAINED.items()
    },
    "an initial value that violates": invalid(
        "RegisterVariable",
        register("new", constraints_json='{"max": 0}'),
        "'new'",
        "above maximum 0",
        field="value",
    ),
    **{
        f"constraints: {type_} {constraints[:60]!r}": invalid(
            "RegisterVariable",
            register("new", type_, constraints_json=constraints),
            "Invalid constraints",
            words,
            field="constraints_json",
            reason="INVALID_CONSTRAINTS",
        )
        for type_, constraints, words in [
            ("integer", "{", "JSON"),
            ("integer", "[]", "object"),
            ("integer", "null", "object"),
            ("integer", '{"maximum": 3}', "'maximum'"),
            ("integer", '{"min": "0"}', "min"),
            ("integer", '{"min": 3, "max": 2}', "above max"),
            ("integer", '{"min": 3, "min": 2}', "twice"),
            ("integer", '{"step": 0}', "step"),
            ("integer", '{"step": 0.5}', "step"),
            ("integer", '{"min": NaN}', "JSON"),
            ("integer", '{"pattern": "a"}', "'pattern'"),
            ("float", '{"max": true}', "max"),
            ("string", '{"min_length": -1}', "min_length"),
            ("string", '{"pattern": "("}', "pattern"),
            ("string", '{"pattern": "(a)\\\\1"}', "pattern"),
            ("string", '{"pattern": "(?=a)"}', "pattern"),
            ("string", '{"enum": []}', "empty"),
            ("choice", '{"choices": []}', "choices is empty"),
            ("choice", '{"choices": [1]}', "choices"),
            ("module", '{"namespace": 1}', "namespace"),
            ("boolean", '{"min": 0}', "'min'"),
            ("embedding", '{"dimensions": 1.5}', "dimensions"),
            ("embedding", '{"normalize": 1}', "normalize"),
            ("tensor", '{"shape": 1}', "shape"),
            ("tensor", '{"dtype": "complex"}', "dtype"),
            ("integer", f'{{"{HUGE[:4000]}": 1}}', "unknown key"),
            ("integer", f'{{"{HUGE}": 1}}', "65536"),
        ]
    },
    **{
        f"name {label}": request_fault(
            "RegisterVariable", register(name), "name", words, field="name"
        )
        for label, name, words in [
            ("empty", "", "1 to 256 bytes"),
            ("of 257 bytes", "n" * 257, "1 to 256 bytes"),
            ("of 65 snakes", SNAKE * 65, "1 to 256 bytes"),
            ("huge", HUGE, "1 to 256 bytes"),
            ("with NUL", "a\0", "control"),
            ("with a newline", "a\nb", "control"),
            ("with DEL", "a\x7f", "control"),
            ("with a C1 control", "a\x85", "control"),
            ("with *", "a*", "* or ?"),
            ("with ?", "?", "* or ?"),
        ]
    },
    **{
        f"session id {label}: {method}": request_fault(
            method, {"session_id": id_, **fields}, "session_id", words, field="session_id"
        )
        for method, fields in STARTS.items()
        for label, id_, words in [
            ("empty", "", "1 to 256 bytes"),
            ("of 257 bytes", "s" * 257, "1 to 256 bytes"),
            ("of 65 snakes", SNAKE * 65, "1 to 256 bytes"),
            ("huge", HUGE, "1 to 256 bytes"),
            ("with a control character", "a\x1b[0m", "control"),
        ]
    },
    # Batches.
    "batch too large": Row(
        "SetVariables",
        {"updates": {f"x{n}": packed(1) for n in range(10_001)}},
        "RESOURCE_EXHAUSTED",
        "RESOURCE_EXHAUSTED",
        ("10001", "10000"),
        "updates",
    ),
    "batch of reads too large": Row(
        "GetVariables",
        {"variable_identifiers": ["integer"] * 10_001},
        "RESOURCE_EXHAUSTED",
        "RESOURCE_EXHAUSTED",
        ("10001", "10000"),
        "variable_identifiers",
    ),
    **{
        f"{what}, {'atomic' if atomic else 'loose'}": request_fault(
            "SetVariables", {"atomic": atomic, **fields}, *words, field=field
        )
        for atomic in (True, False)
        for what, fields, words, field in BATCHES
    },
    # Lists and history.
    "negative limit": request_fault(
        "GetVariableHistory",
        {"variable_identifier": "integer", "limit": -1},
        "limit -1",
        field="limit",
    ),
    **{
        f"negative page_size: {method}": request_fault(
            method, {"page_size": -1, **fields}, "page_size -1", field="page_size"
        )
        for method, fields in PAGED.items()
    },
    **{
        f"page_token {label}: {method}": request_fault(
            method, {"page_token": token, **fields}, "page_token", field="page_token"
        )
        for method, fields in PAGED.items()
        for label, token in {
            "of letters": "next please",
            "of colons": "::",
            "negative": "0123456789abcdef:-1:0",
            "huge": HUGE,
            "of other digits": "0123456789abcdef:\N{ARABIC-INDIC DIGIT ONE}:0",
        }.items()
    },
    "pattern too long": request_fault(
        "ListVariables", {"pattern": "*" * 1025}, "pattern", "1025", "1024", field="pattern"
    ),
    # Retries.
    "request_id too long": request_fault(
        "SetVariable",
        setting("integer", packed(1), request_id="r" * 257),
        "request_id",
        "256 bytes",
        field="request_id",
    ),
    "request_id huge, before a session": request_fault(
        "InitializeSession",
        {"session_id": "unborn", "request_id": HUGE},
        "request_id",
        "256 bytes",
        field="request_id",
    ),
    "request_id of another request": invalid(
        "SetVariable",
        setting("integer", packed(9), request_id="known"),
        "request_id 'known'",
        "SetVariable",
        field="request_id",
        reason="REQUEST_ID_REUSED",
    ),
    # Watches.
    "offset without its epoch": request_fault(
        "WatchVariables", {"after_offset": 3}, "after_offset 3", "log_epoch", field="log_epoch"
    ),
    "negative heartbeat_seconds": request_fault(
        "WatchVariables",
        {"heartbeat_seconds": -1},
        "heartbeat_seconds -1",
        "negative",
        field="heartbeat_seconds",
    ),
    **{
        f"update_types {label}": request_fault(
            "WatchVariables",
            {"update_types": ["value_change", name]},
            "update_types",
            "value_change, registered, deleted",
            field="update_types",
        )
        for label, name in {"empty": "", "unknown": "changed", "huge": HUGE}.items()
    },
    **{
        f"identifier to watch {label}": request_fault(
            "WatchVariables",
            {"variable_identifiers": ["integer", name]},
            "variable_identifiers",
            "1 to 1024",
            field="variable_identifiers",
        )
        for label, name in {"empty": "", "too long": "*" * 1025, "huge": HUGE}.items()
    },
    **{
        f"{label} to watch": Row(
            "WatchVariables",
            {"variable_identifiers": names},
            "RESOURCE_EXHAUSTED",
            "RESOURCE_EXHAUSTED",
            words,
            "variable_identifiers",
        )
        for label, names, words in [
            ("1001 names", [f"x{n}" for n in range(1_001)], ("1001", "1000")),
            ("17 patterns", [f"x{n}*" for n in range(17)], ("17", "16")),
        ]
    },
    "resume_check of another log": Row(
        "WatchVariables",
        {"after_offset": 0, "resume_check": 1},
        "FAILED_PRECONDITION",
        "FAILED_PRECONDITION",
        ("resume_check", "offset 0"),
        "resume_check",
    ),
    # Tools that are not here.
    **{
        f"{label}: {method}": missing(method, running(name), "TOOL_NOT_FOUND", "not found", *words)
        for method in RUNS
        for label, name, words in [
            ("unknown tool", "nobody's", ("nobody's", "available_tools")),
            ("a tool by half its name", "count_run_asyn", ("did you mean 'count_run_async'",)),
            ("a tool without a name", "", ("''",)),
            ("a tool of another worker", "elsewhere", ("'worker 1'", "cannot run it")),
            ("huge tool_name", HUGE, ()),
        ]
    },
    "a tool of Elixir, without Elixir": missing(
        "ExecuteElixirTool", running("add"), "TOOL_NOT_FOUND", "'add'", "--elixir-address"
    ),
    # Arguments of tools. None of these is run.
    "a stream, asked for one result": request_fault(
        "ExecuteTool",
        running("count_to", to=1),
        "'count_to'",
        "ExecuteStreamingTool",
        field="tool_name",
    ),
    **{
        f"{label}: {method}": request_fault(
            method, running(tool, **arguments), f"'{tool}'", *words, field=f"parameters.{name}"
        )
        for method in RUNS
        for label, tool, arguments, name, words in ARGUMENTS
    },
    **{
        f"{label}: {method}": invalid(
            method, running("describe", value=value), "'value'", *words, field="parameters.value"
        )
        for method in RUNS
        for label, value, words in [
            ("an argument without a type_url", AnyMessage(value=b"1"), ("type_url",)),
            ("an argument of an unknown type", AnyMessage(type_url="a/b"), ("'a/b'",)),
            (
                "an argument that is no JSON",
                AnyMessage(type_url=as_elixir_writes(1).type_url, value=b"{"),
                ("strict JSON",),
            ),
            ("an argument that is no tensor", packed([1], "tensor"), ("tensor",)),
        ]
    },
    "an argument with bytes beside it": invalid(
        "ExecuteTool",
        {**running("describe", value=1), "binary_parameters": {"value": b"1234"}},
        "'value'",
        "4 binary bytes",
        field="parameters.value",
    ),
    "too many arguments": request_fault(
        "ExecuteTool",
        running("anything", **{f"x{n}": 1 for n in range(1_001)}),
        "1001 parameters",
        "1000",
        field="parameters",
    ),
    # Tools never run twice.
    **{
        f"repeated: {request_id}": Row(
            method,
            {**running(tool, **arguments), "request_id": request_id},
            "FAILED_PRECONDITION",
            "FAILED_PRECONDITION",
            (f"'{request_id}'", *words),
            "request_id",
        )
        for method, tool, arguments, request_id, words in REPEATED
    },
    **{
        f"request_id of another call: {label}": invalid(
            method,
            {**running(tool, **arguments), "request_id": request_id},
            f"'{request_id}'",
            field="request_id",
            reason="REQUEST_ID_REUSED",
        )
        for label, method, tool, arguments, request_id in [
            ("other arguments", "ExecuteTool", "add", {"a": 2}, "ran"),
            ("another tool", "ExecuteTool", "add_async", {"a": 1}, "ran"),
            ("a stream", "ExecuteStreamingTool", "add", {"a": 1}, "ran"),
            ("no stream", "ExecuteTool", "add", {"a": 1}, "streamed"),
            ("a variable's", "ExecuteTool", "add", {"a": 1}, "known"),
        ]
    },
    **{
        f"request_id too long: {method}": request_fault(
            method,
            {**STARTS[method], "session_id": "unborn", "request_id": "r" * 257},
            "request_id",
            "256 bytes",
            field="request_id",
        )
        for method in ("RegisterTools", *RUNS)
    },
    # Registering tools.
    **{
        f"RegisterTools: {label}": request_fault("RegisterTools", fields, *words, field=field)
        for label, fields, words, field in REGISTERED
    },
    **{
        f"RegisterTools: {label}": Row(
            "RegisterTools",
            {"tools": tools},
            "RESOURCE_EXHAUSTED",
            "RESOURCE_EXHAUSTED",
            words,
            "tools",
        )
        for label, tools, words in [
            ("too many", [{"name": f"t{n}"} for n in range(1_000)], ("1001 tools", "1000")),
            ("too long", [{"name": "t", "description": HUGE}], ("'t'", "65536")),
        ]
    },
    # Whatever is quoted is shortened.
    **{
        f"huge {field}: {method}": missing(method, {field: HUGE}, reason)
        for method in ("GetVariable", "SetVariable")
        for field, reason in [
            ("variable_identifier", "VARIABLE_NOT_FOUND"),
            ("session_id", "SESSION_NOT_FOUND"),
        ]
    },
    "huge log_epoch": Row(
        "SetVariable",
        setting("integer", packed(1), log_epoch=HUGE),
        "FAILED_PRECONDITION",
        "LOG_EPOCH_MISMATCH",
        ("'table'",),
        "log_epoch",
    ),
    "huge type_url": invalid(
        "SetVariable",
        setting("integer", AnyMessage(type_url=HUGE, value=b"1")),
        "type_url",
        field="value",
    ),
    "huge value": invalid(
        "SetVariable", setting("integer", packed(HUGE)), "must be an integer", field="value"
    ),
    "huge value under a pattern": invalid(
        "SetVariable", setting("s pattern", packed(HUGE, "string")), "pattern", field="value"
    ),
    "huge key in a batch": request_fault(
        "SetVariables", {"updates": {HUGE: packed(1)}}, "not found", field="updates"
    ),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_each_refusal_says_what_is_wrong_and_changes_nothing(table: Table, row: Row) -> None:
    fields = {"session_id": "table", **row.fields}
    fault = table.refusal(row.method, message_of(row.method, **fields).SerializeToString())
    assert (fault.code, fault.reason, fault.field) == (row.code, row.reason, row.field), fault
    for word in row.words:
        assert word in fault.message


@pytest.mark.parametrize("session_id", ["unborn", "nobody"])
def test_no_row_has_begun_a_session(table: Table, session_id: str) -> None:
    assert not Session(table.bridge, session_id).lives


MALFORMED = {
    "no field": b"\xff\xff\xff",
    "a length beyond the end": b"\x0a\x7fabc",
    "a string that is no UTF-8": b"\x0a\x02\xff\xfe",
    "a group without end": b"\x0b",
    "field number 0": b"\x00\x01",
}


@pytest.mark.parametrize("method", SERVED)
@pytest.mark.parametrize("raw", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_message_is_an_invalid_argument(table: Table, method: str, raw: bytes) -> None:
    fault = table.refusal(method, raw)
    assert (fault.code, fault.reason, fault.field) == ("INVALID_ARGUMENT", "INVALID_REQUEST", "")
    # By the name that the client knows it by.
    assert f"not a valid {METHODS[method].input_type.name}:" in fault.message


NO_ANY = b"\x0a\x7f"
"""A type_url that is longer than what follows."""


@pytest.mark.parametrize(
    ("method", "fields", "number"),
    [
        ("SetVariable", {"variable_identifier": "integer"}, 3),
        ("RegisterVariable", {"name": "new", "type": "integer"}, 4),
    ],
)
def test_a_malformed_any_is_an_invalid_argument(
    table: Table, method: str, fields: dict[str, str], number: int
) -> None:
    whole = message_of(method, session_id="table", **fields).SerializeToString()
    fault = table.refusal(method, whole + bytes([number << 3 | 2, len(NO_ANY)]) + NO_ANY)
    assert fault.code == "INVALID_ARGUMENT"
    assert "google.protobuf.Any" in fault.message or method in fault.message


def test_a_malformed_any_in_a_batch_is_a_fault_of_its_key(bridge: BridgeProcess) -> None:
    session = Session(bridge, "malformed in a batch")
    for name in ("a", "b"):
        session.register(name)
    # updates[2] = {key[1]: "b", value[2]: bytes that are no Any}
    entry = b"\x0a\x01b\x12" + bytes([len(NO_ANY)]) + NO_ANY
    for atomic in (True, False):
        whole = pb.BatchSetVariablesRequest(session_id=session.id, atomic=atomic)
        whole.updates["a"].CopyFrom(packed(2))
        raw = whole.SerializeToString() + b"\x12" + bytes([len(entry)]) + entry
        response = pb.BatchSetVariablesResponse.FromString(raw_call(bridge, "SetVariables", raw))
        assert (response.success, list(response.errors)) == (not atomic, ["b"])
        assert "'b'" in response.errors["b"]
        assert "google.protobuf.Any" in response.errors["b"]
        assert dict(response.new_versions) == ({} if atomic else {"a": 2})


def first_token(table: Table, method: str, **fields: Any) -> str:  # noqa: ANN401
    token: str = table.session.call(method, page_size=1, **fields).next_page_token
    assert token
    return token


# Tokens that are well formed, but not of the pages that are asked for.
FOREIGN_TOKENS: dict[str, tuple[str, Callable[[Table], str]]] = {
    "of a list": ("GetVariableHistory", lambda table: first_token(table, "ListVariables")),
    "of a history": (
        "ListVariables",
        lambda table: first_token(table, "GetVariableHistory", variable_identifier="integer"),
    ),
    "of another variable": ("GetVariableHistory", lambda table: f"{table.epoch}:2:0"),
    "of the session's start": ("GetVariableHistory", lambda table: f"{table.epoch}:1:0"),
    "of a future offset": (
        "GetVariableHistory",
        lambda table: f"{table.epoch}:{table.head + 5}:0",
    ),
    "beyond 63 bits": ("GetVariableHistory", lambda table: f"{table.epoch}:{2**63}:0"),
}


@pytest.mark.parametrize("which", FOREIGN_TOKENS)
def test_a_page_token_of_something_else_is_an_invalid_argument(table: Table, which: str) -> None:
    method, token = FOREIGN_TOKENS[which]
    request = message_of(method, session_id="table", page_token=token(table), **PAGED[method])
    fault = table.refusal(method, request.SerializeToString())
    assert (fault.code, fault.field) == ("INVALID_ARGUMENT", "page_token"), fault
    assert "page_token" in fault.message


def test_a_message_beyond_the_limit_is_refused(table: Table) -> None:
    fault = table.refusal("SetVariable", bytes(128 * 1024 * 1024 + 1))
    assert fault.code == "RESOURCE_EXHAUSTED"
    assert "message limit of 134217728" in fault.message
    assert "--max-message-size" in fault.message


UNSERVED = sorted(set(METHODS) - set(SERVED))


def test_the_methods_that_are_not_served_are_known() -> None:
    assert UNSERVED == ["AddDependency"]


@pytest.mark.parametrize("method", UNSERVED)
@pytest.mark.parametrize("raw", [b"", b"\xff"], ids=["empty", "malformed"])
def test_a_method_that_is_not_served_is_unimplemented(
    table: Table, method: str, raw: bytes
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        raw_call(table.bridge, method, raw)
    fault = fault_of(caught.value)
    assert (fault.code, fault.reason, fault.field) == ("UNIMPLEMENTED", "UNIMPLEMENTED", "")
    assert method in fault.message


def test_a_method_that_nobody_knows_is_unimplemented(table: Table) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        raw_call(table.bridge, "MakeCoffee", b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


# Fields 18, 19, 29 and 536870911, of each wire type: none is known.
UNKNOWN = (
    b"\x90\x01\x07"
    b"\x9a\x01\x03abc"
    b"\xe9\x01" + bytes(8) + b"\xfd\xff\xff\xff\x0f" + bytes(4) + b"\x93\x01\x08\x01\x94\x01"
)

IN_ORDER: dict[str, dict[str, Any]] = {
    "Ping": {"message": "hello"},
    "InitializeSession": {"metadata": {"k": "v"}},
    "RegisterVariable": register("x"),
    "SetVariable": setting("x", packed(2)),
    "SetVariables": {"updates": {"x": packed(3)}, "atomic": True},
    "RollbackVariable": {"variable_identifier": "x", "target_version": 1},
    "StartOptimization": {"variable_identifier": "x", "optimizer_id": "o"},
    "StopOptimization": {"variable_identifier": "x", "force": True},
    "GetVariable": {"variable_identifier": "x"},
    "GetVariables": {"variable_identifiers": ["x"]},
    "ListVariables": {},
    "GetVariableHistory": {"variable_identifier": "x"},
    "GetSession": {},
    "Heartbeat": {},
    "WatchVariables": {"include_initial_values": True},
    "DeleteVariable": {"variable_identifier": "x"},
    "RegisterTools": {"tools": [{"name": "t"}], "worker_id": "w"},
    "GetExposedElixirTools": {},
    "ExecuteTool": running("add", a=1),
    "ExecuteStreamingTool": running("count_to", to=1),
    "CleanupSession": {},
}


def test_unknown_fields_are_harmless(bridge: BridgeProcess) -> None:
    # Of the rest one needs Elixir, and the other speaks when something happens.
    assert set(IN_ORDER) | {"ExecuteElixirTool", "StreamTelemetry"} == set(SERVED)
    answers: dict[str, list[Any]] = {}
    for unknown in (b"", UNKNOWN):
        for method, fields in IN_ORDER.items():
            named = {} if method == "Ping" else {"session_id": "unknown fields"}
            request = message_of(method, **named, **fields).SerializeToString()
            raw = raw_call(bridge, method, request + unknown)
            answer = GetMessageClass(METHODS[method].output_type).FromString(raw)
            answers.setdefault(method, []).append(shape(answer))
    for method, (plain, extended) in answers.items():
        assert plain == extended, method


def shape(message: Message) -> str:
    """Write a message without what differs from run to run."""
    lines = str(message).splitlines()
    different = (
        "seconds:",
        "nanos:",
        "epoch:",
        "optimization_id:",
        "call_id:",
        "correlation_id:",
        "resume_check:",
        "time_ms:",
    )
    return "\n".join(line for line in lines if not any(word in line for word in different))


def test_an_unknown_field_inside_a_value_is_harmless(bridge: BridgeProcess) -> None:
    session = Session(bridge, "unknown inside")
    session.register("x")
    value = packed(2).SerializeToString() + UNKNOWN
    entry = b"\x0a\x01x\x12" + bytes([len(value)]) + value
    for raw in (
        b"\x12\x01x\x1a" + bytes([len(value)]) + value,  # SetVariable
        b"\x12" + bytes([len(entry)]) + entry,  # SetVariables
    ):
        method = "SetVariable" if raw.startswith(b"\x12\x01x") else "SetVariables"
        named = message_of(method, session_id=session.id).SerializeToString()
        raw_call(bridge, method, named + raw)
    assert session.get("x").version == 3
    assert session.get("x").value == packed(2)


def test_a_damaged_log_is_data_loss_and_no_other_is(tmp_path: Path) -> None:
    with BridgeProcess(tmp_path / "bridge.db") as bridge:
        for name in ("damaged", "whole"):
            Session(bridge, name).register("x", "v" * 100, "string")
            Session(bridge, name).set("x", "w" * 100, "string")
        assert bridge.stop() == 0
    database = sqlite3.connect(tmp_path / "bridge.db")
    database.execute(
        """UPDATE records SET header = CAST(header || x'00' AS BLOB) WHERE first_offset = 3
        AND log = (SELECT id FROM logs WHERE session_id = 'damaged')"""
    )
    database.commit()
    database.close()
    with BridgeProcess(tmp_path / "bridge.db") as bridge:
        damaged = {"session_id": "damaged", "variable_identifier": "x"}
        for method in ("GetVariable", "SetVariable", "GetVariableHistory", "InitializeSession"):
            fields = {"session_id": "damaged"} if method == "InitializeSession" else damaged
            with pytest.raises(grpc.RpcError) as caught:
                raw_call(bridge, method, message_of(method, **fields).SerializeToString())
            fault = fault_of(caught.value)
            assert (fault.code, fault.reason) == ("DATA_LOSS", "DATA_LOSS")
            assert "offset 3" in fault.message
        assert Session(bridge, "whole").get("x").version == 2
        assert Session(bridge, "whole").set("x", "y", "string").new_version == 3
        assert bridge.stop() == 0


def test_refusals_of_one_reason_are_told_of_once(tmp_path: Path) -> None:
    with BridgeProcess(tmp_path / "bridge.db", *TOOLS) as bridge:
        table = Table(bridge)
        for row in ROWS.values():
            fields = {"session_id": "table", **row.fields}
            table.refusal(row.method, message_of(row.method, **fields).SerializeToString())
        for raw in MALFORMED.values():
            table.refusal("SetVariable", raw)
        assert bridge.stop() == 0
    refused = [line for line in bridge.stderr_lines if " a request was refused " in line]
    reasons = [line.partition(" reason=")[2].split()[0] for line in refused]
    assert len(reasons) == len(set(reasons)), bridge.stderr  # of many for one reason the first
    of_sessions = [line for line in bridge.stderr_lines if ".telemetry.story: " in line]
    said = len(bridge.stderr_lines) - len(refused) - len(of_sessions)
    assert said == 3, bridge.stderr  # serving, draining, stopped
