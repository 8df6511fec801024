"""An unmodified client: messages with the frozen fields only, over a raw channel.

Its messages are made from the table of ``test_frozen_contract``, in a descriptor pool of
their own, so that no field of ours is known to them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2, timestamp_pb2
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.unknown_fields import UnknownFieldSet

from snakepit_bridge import bridge_service_pb2 as pb
from tests.bridge_process import BridgeProcess
from tests.test_frozen_contract import FIRST_OF_OURS, FROZEN, METHODS
from tests.tool_client import TOOLS

PACKAGE = "snakepit.bridge"
FIELD = re.compile(r"(\d+) (\w+): (repeated )?(enum )?([\w.]+|map<(\w+), (\w+)>)(?:, oneof (\w+))?")
GOOGLE = {"Any", "Timestamp"}
SCALARS = {
    name.removeprefix("TYPE_").lower(): number for name, number in FieldDescriptorProto.Type.items()
}


def describe(field: FieldDescriptorProto, kind: str) -> None:
    """Set the type of a field to what the table calls it."""
    if kind in SCALARS:
        field.type = SCALARS[kind]
        return
    field.type = FieldDescriptorProto.TYPE_MESSAGE
    field.type_name = f".google.protobuf.{kind}" if kind in GOOGLE else f".{PACKAGE}.{kind}"


def frozen_message(name: str, lines: tuple[str, ...]) -> DescriptorProto:
    message = DescriptorProto(name=name)
    oneofs: list[str] = []
    for line in lines:
        match = FIELD.fullmatch(line)
        assert match is not None, line
        number, field_name, repeated, enum, kind, key, value, oneof = match.groups()
        field = message.field.add(name=field_name, number=int(number))
        field.label = (
            FieldDescriptorProto.LABEL_REPEATED
            if repeated or key
            else FieldDescriptorProto.LABEL_OPTIONAL
        )
        if key:
            entry = message.nested_type.add(
                name=f"{field_name.title().replace('_', '')}Entry", options={"map_entry": True}
            )
            for n, (part, part_kind) in enumerate((("key", key), ("value", value)), start=1):
                label = FieldDescriptorProto.LABEL_OPTIONAL
                describe(entry.field.add(name=part, number=n, label=label), part_kind)
            describe(field, f"{name}.{entry.name}")
        elif enum:
            field.type = FieldDescriptorProto.TYPE_ENUM
            field.type_name = f".{PACKAGE}.{kind}"
        else:
            describe(field, kind)
        if oneof:
            if oneof not in oneofs:
                oneofs.append(oneof)
                message.oneof_decl.add(name=oneof)
            field.oneof_index = oneofs.index(oneof)
    if name == "Variable":
        source = message.enum_type.add(name="Source")
        source.value.add(name="ELIXIR", number=0)
        source.value.add(name="PYTHON", number=1)
    return message


def frozen_pool() -> DescriptorPool:
    pool = DescriptorPool()
    for known in (any_pb2, timestamp_pb2):
        pool.AddSerializedFile(known.DESCRIPTOR.serialized_pb)
    file = FileDescriptorProto(name="old_client.proto", package=PACKAGE, syntax="proto3")
    file.dependency.extend(["google/protobuf/any.proto", "google/protobuf/timestamp.proto"])
    file.message_type.extend(frozen_message(name, lines) for name, lines in FROZEN.items())
    pool.AddSerializedFile(file.SerializeToString())
    return pool


POOL = frozen_pool()


def message(name: str, /, **fields: Any) -> Any:  # noqa: ANN401 - a class that the table describes
    return GetMessageClass(POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))(**fields)


def unknown_fields(content: Message) -> Iterator[str]:
    """Name the fields that were skipped, at any depth: ``Variable.20``."""
    skipped: Any = UnknownFieldSet(content)
    yield from (f"{content.DESCRIPTOR.name}.{field.field_number}" for field in skipped)
    for field, value in content.ListFields():
        if isinstance(value, Message):
            yield from unknown_fields(value)
        elif hasattr(value, "GetEntryClass"):
            if isinstance(next(iter(value.values())), Message):
                for part in value.values():
                    yield from unknown_fields(part)
        elif field.message_type is not None:
            for part in value:
                yield from unknown_fields(part)


class OldClient:
    """Knows the frozen fields and methods, and nothing else."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel: Any = channel
        self.skipped: set[str] = set()

    def call(self, method: str, /, **fields: Any) -> Any:  # noqa: ANN401
        request, response = METHODS[method].split(" -> ")
        raw = self.channel.unary_unary(f"/{PACKAGE}.BridgeService/{method}")(
            message(request, **fields).SerializeToString(), timeout=30
        )
        content = type(message(response)).FromString(raw)
        self.skipped |= set(unknown_fields(content))
        return content

    def run(self, tool: str, /, **arguments: object) -> Any:  # noqa: ANN401
        """Run a tool with arguments as Snakepit 0.4 sends them: JSON under the name of a string."""
        parameters = {name: as_string(value) for name, value in arguments.items()}
        return self.call(
            "ExecuteTool", session_id="old tools", tool_name=tool, parameters=parameters
        )

    def stream(self, tool: str, /, **arguments: object) -> Iterator[Any]:
        """Run a tool that streams."""
        stream = self.channel.unary_stream(f"/{PACKAGE}.BridgeService/ExecuteStreamingTool")
        request = message(
            "ExecuteToolRequest",
            session_id="old tools",
            tool_name=tool,
            parameters={name: as_string(value) for name, value in arguments.items()},
            stream=True,
        )
        for raw in stream(request.SerializeToString(), timeout=30):
            chunk = type(message("ToolChunk")).FromString(raw)
            self.skipped |= set(unknown_fields(chunk))
            yield chunk

    def watch(self, **fields: Any) -> Iterator[Any]:  # noqa: ANN401
        """Read a watch to its end, which must be OK."""
        stream = self.channel.unary_stream(f"/{PACKAGE}.BridgeService/WatchVariables")
        request = message("WatchVariablesRequest", **fields).SerializeToString()
        for raw in stream(request, timeout=30):
            update = type(message("VariableUpdate")).FromString(raw)
            self.skipped |= set(unknown_fields(update))
            yield update


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BridgeProcess]:
    with BridgeProcess(tmp_path_factory.mktemp("bridge") / "bridge.db") as process:
        yield process
        assert process.stop() == 0


@pytest.fixture
def client(bridge: BridgeProcess) -> Iterator[OldClient]:
    client = OldClient(bridge.channel)
    yield client
    # What it does not know is ours, by its number.
    assert all(int(name.partition(".")[2]) >= FIRST_OF_OURS for name in client.skipped)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BridgeProcess]:
    """A bridge that has tools."""
    with BridgeProcess(tmp_path_factory.mktemp("bench") / "bridge.db", *TOOLS) as process:
        yield process
        assert process.stop() == 0


@pytest.fixture
def tool_client(bench: BridgeProcess) -> Iterator[OldClient]:
    client = OldClient(bench.channel)
    yield client
    assert all(int(name.partition(".")[2]) >= FIRST_OF_OURS for name in client.skipped)


def any_of(type_url: str, value: object) -> Any:  # noqa: ANN401
    any_type = GetMessageClass(POOL.FindMessageTypeByName("google.protobuf.Any"))
    return any_type(type_url=type_url, value=json.dumps(value).encode())


def packed(value: object, type_: str = "float") -> Any:  # noqa: ANN401
    """Pack a value as Snakepit 0.4 does."""
    return any_of(f"type.googleapis.com/snakepit.{type_}", value)


def as_string(value: object) -> Any:  # noqa: ANN401
    """Pack an argument as Snakepit's Elixir side does."""
    return any_of("type.googleapis.com/google.protobuf.StringValue", value)


def set_fields(content: Any) -> set[str]:  # noqa: ANN401
    return {field.name for field, _ in content.ListFields()}


def test_the_messages_of_the_old_client_are_those_of_the_table() -> None:
    from tests.test_frozen_contract import describe as notation  # noqa: PLC0415

    for name, lines in FROZEN.items():
        described = DescriptorProto()
        POOL.FindMessageTypeByName(f"{PACKAGE}.{name}").CopyToProto(described)
        assert tuple(text for _, text in sorted(notation(described))) == lines


SESSION = "old session"


def begins(client: OldClient) -> None:
    pong = client.call("Ping", message="hello")
    assert "hello" in pong.message
    assert pong.server_time.seconds > 1_700_000_000

    assert not client.call("Heartbeat", session_id=SESSION).session_valid
    started = client.call(
        "InitializeSession",
        session_id=SESSION,
        metadata={"app": "0.4"},
        config=message("SessionConfig", enable_caching=True, cache_ttl_seconds=60),
    )
    assert set_fields(started) == {"success"}
    assert client.call("Heartbeat", session_id=SESSION).session_valid


def registers(client: OldClient) -> None:
    registered = client.call(
        "RegisterVariable",
        session_id=SESSION,
        name="temperature",
        type="float",
        initial_value=packed(0.7),
        constraints_json='{"min": 0, "max": 2}',
        metadata={"description": "of the model"},
    )
    assert set_fields(registered) == {"success", "variable_id"}
    id_ = registered.variable_id
    assert id_ == "var_temperature_2"

    for identifier in ("temperature", id_):
        answer = client.call("GetVariable", session_id=SESSION, variable_identifier=identifier)
        assert set_fields(answer) == {"variable"}
        variable = answer.variable
        assert set_fields(variable) == {
            "id",
            "name",
            "type",
            "value",
            "constraints_json",
            "metadata",
            "last_updated_at",
            "version",
        }
        assert (variable.id, variable.name, variable.type) == (id_, "temperature", "float")
        assert variable.value == packed(0.7)
        assert variable.constraints_json == '{"min": 0, "max": 2}'
        assert dict(variable.metadata) == {"description": "of the model"}
        assert (variable.source, variable.version) == (0, 1)


def sets(client: OldClient) -> None:
    changed = client.call(
        "SetVariable",
        session_id=SESSION,
        variable_identifier="temperature",
        value=packed(0.9),
        metadata={"source": "python"},
        expected_version=1,
    )
    assert set_fields(changed) == {"success", "new_version"}
    assert (changed.success, changed.new_version) == (True, 2)
    variable = client.call(
        "GetVariable", session_id=SESSION, variable_identifier="temperature"
    ).variable
    assert (variable.value, variable.version, variable.source) == (packed(0.9), 2, 1)
    assert dict(variable.metadata) == {"description": "of the model", "source": "python"}


def lists(client: OldClient) -> None:
    for name, value in (("top_p", 1.0), ("weight", 0.5)):
        client.call(
            "RegisterVariable",
            session_id=SESSION,
            name=name,
            type="float",
            initial_value=packed(value),
        )
    variable = client.call(
        "GetVariable", session_id=SESSION, variable_identifier="temperature"
    ).variable
    again = client.call("InitializeSession", session_id=SESSION)
    assert sorted(again.initial_variables) == ["temperature", "top_p", "weight"]
    assert again.initial_variables["temperature"] == variable

    everything = client.call("ListVariables", session_id=SESSION)
    assert set_fields(everything) == {"variables"}
    assert [each.name for each in everything.variables] == ["temperature", "top_p", "weight"]
    some = client.call("ListVariables", session_id=SESSION, pattern="t*")
    assert [each.name for each in some.variables] == ["temperature", "top_p"]

    many = client.call(
        "GetVariables",
        session_id=SESSION,
        variable_identifiers=["temperature", "nothing"],
        include_metadata=True,
    )
    assert set_fields(many) == {"variables", "missing_variables"}
    assert dict(many.variables) == {"temperature": variable}
    assert list(many.missing_variables) == ["nothing"]


def batches(client: OldClient) -> None:
    loose = client.call(
        "SetVariables",
        session_id=SESSION,
        updates={"top_p": packed(0.2), "temperature": packed(3)},
        metadata={"why": "batch"},
    )
    assert set_fields(loose) == {"success", "errors", "new_versions"}
    assert loose.success  # or the client would not read the rest
    assert dict(loose.new_versions) == {"top_p": 2}
    assert "above maximum" in loose.errors["temperature"]

    refused = client.call(
        "SetVariables",
        session_id=SESSION,
        updates={"top_p": packed(0.3), "temperature": packed(3)},
        atomic=True,
    )
    assert set_fields(refused) == {"errors"}
    assert list(refused.errors) == ["temperature"]

    atomic = client.call(
        "SetVariables",
        session_id=SESSION,
        updates={"top_p": packed(0.3), "weight": packed(0.6)},
        atomic=True,
    )
    assert set_fields(atomic) == {"success", "new_versions"}
    assert dict(atomic.new_versions) == {"top_p": 3, "weight": 2}


def looks_back(client: OldClient) -> None:
    rolled_back = client.call(
        "RollbackVariable",
        session_id=SESSION,
        variable_identifier="temperature",
        target_version=1,
    )
    assert set_fields(rolled_back) == {"success", "variable"}
    assert rolled_back.variable.value == packed(0.7)
    assert rolled_back.variable.version == 3

    history = client.call(
        "GetVariableHistory", session_id=SESSION, variable_identifier="temperature"
    )
    assert set_fields(history) == {"entries"}
    assert [
        (entry.version, entry.value, entry.changed_by, dict(entry.metadata))
        for entry in history.entries
    ] == [
        (3, packed(0.7), "elixir", {}),
        (2, packed(0.9), "python", {"source": "python"}),
        (1, packed(0.7), "elixir", {"description": "of the model"}),
    ]
    assert all(entry.timestamp.seconds > 1_700_000_000 for entry in history.entries)
    newest = client.call(
        "GetVariableHistory", session_id=SESSION, variable_identifier="temperature", limit=1
    )
    assert [entry.version for entry in newest.entries] == [3]


def ends(client: OldClient) -> None:
    deleted = client.call("DeleteVariable", session_id=SESSION, variable_identifier="weight")
    assert set_fields(deleted) == {"success"}

    known = client.call("GetSession", session_id=SESSION)
    assert (known.session_id, dict(known.metadata)) == (SESSION, {"app": "0.4"})
    assert (known.variable_count, known.tool_count) == (2, 0)
    assert known.created_at.seconds > 1_700_000_000

    cleaned = client.call("CleanupSession", session_id=SESSION)
    assert (cleaned.success, cleaned.resources_cleaned) == (True, 3)
    assert not client.call("Heartbeat", session_id=SESSION).session_valid
    nothing = client.call("CleanupSession", session_id=SESSION, force=True)
    assert set_fields(nothing) == {"success"}


def test_an_old_client_lives_a_whole_session(client: OldClient) -> None:
    for step in (begins, registers, sets, lists, batches, looks_back, ends):
        step(client)

    # It was told of all that is ours, and skipped it.
    assert {
        "SetVariableResponse.20",
        "SetVariableResponse.21",
        "RegisterVariableResponse.23",
        "Variable.20",
        "GetVariableResponse.20",
        "VariableHistoryEntry.22",
        "BatchSetVariablesResponse.21",
    } <= client.skipped


def test_an_old_client_watches(client: OldClient) -> None:
    """From initial values to the end of the session, and sees three types of update."""
    session = {"session_id": "old watch"}
    names = {"variable_identifiers": ["x", "y"]}
    client.call("RegisterVariable", **session, name="x", type="float", initial_value=packed(1))
    updates = client.watch(**session, **names, include_initial_values=True)
    initial = next(updates)
    for name in ("y", "z"):
        client.call("RegisterVariable", **session, name=name, type="float", initial_value=packed(1))
    change = {"value": packed(2), "metadata": {"source": "python", "k": "v"}}
    for name in ("x", "z", "y"):
        client.call("SetVariable", **session, variable_identifier=name, **change)
    client.call("DeleteVariable", **session, variable_identifier="x")
    client.call("SetVariables", **session, updates={"y": packed(3), "z": packed(3)}, atomic=True)
    kept = client.call("GetVariable", **session, variable_identifier="y").variable
    client.call("CleanupSession", **session)
    seen = [initial, *updates]

    assert [
        (update.update_type, update.variable.name, update.variable.value, update.variable.version)
        for update in seen
    ] == [
        ("initial_value", "x", packed(1), 1),
        ("value_change", "x", packed(2), 2),
        ("value_change", "y", packed(2), 2),
        ("value_change", "y", packed(3), 3),
    ]
    assert seen[-1].variable == kept
    assert all(update.variable_id == update.variable.id for update in seen)
    assert [update.update_source for update in seen] == ["elixir", "python", "python", "elixir"]
    assert [dict(update.update_metadata) for update in seen[1:3]] == [change["metadata"]] * 2
    assert all(update.timestamp.seconds > 1_700_000_000 for update in seen)
    assert set_fields(initial) == {
        "variable_id",
        "variable",
        "update_source",
        "timestamp",
        "update_type",
    }
    assert {"VariableUpdate.20", "VariableUpdate.21", "VariableUpdate.22"} <= client.skipped


def test_an_old_client_understands_a_heartbeat(client: OldClient) -> None:
    """It cannot ask for one sooner than after 30 s; so somebody asks for it."""
    client.call("InitializeSession", session_id="old heartbeat")
    request = message("WatchVariablesRequest", session_id="old heartbeat").SerializeToString()
    soon = pb.WatchVariablesRequest(heartbeat_seconds=1).SerializeToString()
    stream = client.channel.unary_stream(f"/{PACKAGE}.BridgeService/WatchVariables")
    call = stream(request + soon, timeout=30)
    beat = type(message("VariableUpdate")).FromString(next(call))
    call.cancel()
    assert set_fields(beat) == {"timestamp", "update_type"}
    assert beat.update_type == "heartbeat"


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        ("float", 0.1),
        ("float", "NaN"),
        ("integer", 42),
        ("string", "text"),
        ("boolean", False),
        ("choice", "a"),
        ("module", "dspy.Predict"),
        ("embedding", [0.1, 0.2]),
        ("tensor", {"shape": [2, 1], "data": [[1.5], [2.5]]}),
    ],
)
def test_an_old_client_gets_back_what_it_sent(client: OldClient, type_: str, value: object) -> None:
    session = f"old values {type_} {value}"
    sent = packed(value, type_)
    client.call("RegisterVariable", session_id=session, name="x", type=type_, initial_value=sent)
    client.call("SetVariable", session_id=session, variable_identifier="x", value=sent)
    answer = client.call("GetVariable", session_id=session, variable_identifier="x")
    assert answer.variable.value == sent
    assert not answer.variable.binary_value
    assert answer.variable.version == 2


def test_an_old_client_repeats_itself_without_harm(client: OldClient) -> None:
    """It has no request ids, so each call counts, and starts are idempotent."""
    session = "old repetition"
    for _ in range(2):
        assert client.call("InitializeSession", session_id=session).success
    fields = {"session_id": session, "name": "x", "type": "integer"}
    client.call("RegisterVariable", initial_value=packed(1, "integer"), **fields)
    with pytest.raises(grpc.RpcError) as caught:
        client.call("RegisterVariable", initial_value=packed(1, "integer"), **fields)
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
    change = {"session_id": session, "variable_identifier": "x", "value": packed(2, "integer")}
    versions = [client.call("SetVariable", **change).new_version for _ in range(2)]
    assert versions == [2, 3]


@pytest.mark.parametrize(
    ("method", "fields", "code", "words"),
    [
        (
            "SetVariable",
            {"variable_identifier": "x", "value": packed(11, "integer")},
            grpc.StatusCode.INVALID_ARGUMENT,
            "above maximum",
        ),
        (
            "SetVariable",
            {"variable_identifier": "x", "value": packed(-1, "integer")},
            grpc.StatusCode.INVALID_ARGUMENT,
            "below minimum",
        ),
        (
            "SetVariable",
            {"variable_identifier": "x", "value": packed("one", "integer")},
            grpc.StatusCode.INVALID_ARGUMENT,
            "must be an integer",
        ),
        (
            "RegisterVariable",
            {
                "name": "y",
                "type": "integer",
                "initial_value": packed(1, "integer"),
                "constraints_json": "{",
            },
            grpc.StatusCode.INVALID_ARGUMENT,
            "Invalid constraints",
        ),
        ("GetVariable", {"variable_identifier": "y"}, grpc.StatusCode.NOT_FOUND, "not found"),
        (
            "SetVariables",
            {"updates": {"y": packed(1, "integer")}},
            grpc.StatusCode.INVALID_ARGUMENT,
            "not found",
        ),
    ],
)
def test_an_old_client_finds_the_words_that_it_looks_for(
    client: OldClient, method: str, fields: dict[str, Any], code: grpc.StatusCode, words: str
) -> None:
    session = "old refusals"
    if not client.call("Heartbeat", session_id=session).session_valid:
        client.call(
            "RegisterVariable",
            session_id=session,
            name="x",
            type="integer",
            initial_value=packed(1, "integer"),
            constraints_json='{"min": 0, "max": 10}',
        )
    with pytest.raises(grpc.RpcError) as caught:
        client.call(method, session_id=session, **fields)
    assert caught.value.code() is code
    assert words in (caught.value.details() or "")


def test_an_old_client_runs_tools(tool_client: OldClient) -> None:
    session = {"session_id": "old tools"}
    started = tool_client.call("InitializeSession", **session)
    assert set_fields(started) == {"success", "available_tools"}
    spec = started.available_tools["add"]
    assert (spec.name, spec.description) == ("add", "Add two numbers.")
    assert [(each.name, each.type, each.required) for each in spec.parameters] == [
        ("a", "integer", True),
        ("b", "integer", False),
    ]
    known = tool_client.call("GetSession", **session)
    assert known.tool_count == len(started.available_tools)

    answer = tool_client.run("add", a=1, b=2)
    assert set_fields(answer) <= {"success", "result", "execution_time_ms"}
    assert answer.success
    assert json.loads(answer.result.value) == 3

    refused = tool_client.run("raises", what="ValueError")
    assert set_fields(refused) <= {"error_message", "metadata", "execution_time_ms"}
    assert json.loads(refused.error_message)["message"] == "wrong"

    # What a tool sets, it reads.
    tool_client.run("set_variable", name="x", value=7)
    variable = tool_client.call("GetVariable", **session, variable_identifier="x").variable
    assert json.loads(variable.value.value) == 7
    history = tool_client.call("GetVariableHistory", **session, variable_identifier="x")
    assert {entry.changed_by for entry in history.entries} == {"tool:set_variable"}

    chunks = list(tool_client.stream("count_to", to=3))
    assert [chunk.data for chunk in chunks] == [b"1", b"2", b"3", b""]
    assert [chunk.is_final for chunk in chunks] == [False, False, False, True]
    assert len({chunk.chunk_id for chunk in chunks}) == 4

    registered = tool_client.call(
        "RegisterTools",
        **session,
        tools=[message("ToolRegistration", name="elsewhere", description="far away")],
        worker_id="worker 1",
    )
    assert set_fields(registered) == {"success", "tool_ids"}
    assert list(registered.tool_ids) == ["elsewhere"]
    again = tool_client.call("InitializeSession", **session)
    assert again.available_tools["elsewhere"].description == "far away"
    assert tool_client.call("GetSession", **session).tool_count == known.tool_count + 1

    assert set_fields(tool_client.call("GetExposedElixirTools", **session)) == set()
    with pytest.raises(grpc.RpcError) as caught:
        tool_client.call("ExecuteElixirTool", **session, tool_name="add")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND

    assert {"ExecuteToolResponse.20", "ExecuteToolResponse.23"} <= tool_client.skipped


def test_an_old_client_runs_a_tool_as_often_as_it_asks(
    tool_client: OldClient, tmp_path: Path
) -> None:
    """It has no request ids."""
    runs = tmp_path / "runs"
    for _ in range(2):
        assert tool_client.run("count_run", runs=str(runs)).success
    assert len(runs.read_text().splitlines()) == 2
