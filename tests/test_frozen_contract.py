"""The contract of bridge_service.proto, written a second time and compared.

Clients of Snakepit were built against the fields below 20, ours against those from 20.
Neither may change; a new field of ours is added here with the next free number.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    MethodDescriptorProto,
)

from snakepit_bridge import bridge_service_pb2

FILE = FileDescriptorProto.FromString(bridge_service_pb2.DESCRIPTOR.serialized_pb)
MESSAGES = {message.name: message for message in FILE.message_type}

FROZEN: dict[str, tuple[str, ...]] = {
    "PingRequest": ("1 message: string",),
    "PingResponse": ("1 message: string", "2 server_time: Timestamp"),
    "InitializeSessionRequest": (
        "1 session_id: string",
        "2 metadata: map<string, string>",
        "3 config: SessionConfig",
    ),
    "SessionConfig": (
        "1 enable_caching: bool",
        "2 cache_ttl_seconds: int32",
        "3 enable_telemetry: bool",
    ),
    "InitializeSessionResponse": (
        "1 success: bool",
        "2 error_message: string",
        "3 available_tools: map<string, ToolSpec>",
        "4 initial_variables: map<string, Variable>",
    ),
    "CleanupSessionRequest": ("1 session_id: string", "2 force: bool"),
    "CleanupSessionResponse": ("1 success: bool", "2 resources_cleaned: int32"),
    "Variable": (
        "1 id: string",
        "2 name: string",
        "3 type: string",
        "4 value: Any",
        "5 constraints_json: string",
        "6 metadata: map<string, string>",
        "7 source: enum Variable.Source",
        "8 last_updated_at: Timestamp",
        "9 version: int32",
        "10 access_control_json: string",
        "11 optimization_status: OptimizationStatus",
        "12 binary_value: bytes",
    ),
    "OptimizationStatus": (
        "1 optimizing: bool",
        "2 optimizer_id: string",
        "3 started_at: Timestamp",
    ),
    "RegisterVariableRequest": (
        "1 session_id: string",
        "2 name: string",
        "3 type: string",
        "4 initial_value: Any",
        "5 constraints_json: string",
        "6 metadata: map<string, string>",
        "7 initial_binary_value: bytes",
    ),
    "RegisterVariableResponse": (
        "1 success: bool",
        "2 variable_id: string",
        "3 error_message: string",
    ),
    "GetVariableRequest": (
        "1 session_id: string",
        "2 variable_identifier: string",
        "3 bypass_cache: bool",
    ),
    "GetVariableResponse": ("1 variable: Variable", "2 from_cache: bool"),
    "SetVariableRequest": (
        "1 session_id: string",
        "2 variable_identifier: string",
        "3 value: Any",
        "4 metadata: map<string, string>",
        "5 expected_version: int32",
        "6 binary_value: bytes",
    ),
    "SetVariableResponse": ("1 success: bool", "2 error_message: string", "3 new_version: int32"),
    "BatchGetVariablesRequest": (
        "1 session_id: string",
        "2 variable_identifiers: repeated string",
        "3 include_metadata: bool",
        "4 bypass_cache: bool",
    ),
    "BatchGetVariablesResponse": (
        "1 variables: map<string, Variable>",
        "2 missing_variables: repeated string",
    ),
    "BatchSetVariablesRequest": (
        "1 session_id: string",
        "2 updates: map<string, Any>",
        "3 metadata: map<string, string>",
        "4 atomic: bool",
        "5 binary_updates: map<string, bytes>",
    ),
    "BatchSetVariablesResponse": (
        "1 success: bool",
        "2 errors: map<string, string>",
        "3 new_versions: map<string, int32>",
    ),
    "ListVariablesRequest": ("1 session_id: string", "2 pattern: string"),
    "ListVariablesResponse": ("1 variables: repeated Variable",),
    "DeleteVariableRequest": ("1 session_id: string", "2 variable_identifier: string"),
    "DeleteVariableResponse": ("1 success: bool", "2 error_message: string"),
    "ToolSpec": (
        "1 name: string",
        "2 description: string",
        "3 parameters: repeated ParameterSpec",
        "4 metadata: map<string, string>",
        "5 supports_streaming: bool",
        "6 required_variables: repeated string",
    ),
    "ParameterSpec": (
        "1 name: string",
        "2 type: string",
        "3 description: string",
        "4 required: bool",
        "5 default_value: Any",
        "6 validation_json: string",
    ),
    "ExecuteToolRequest": (
        "1 session_id: string",
        "2 tool_name: string",
        "3 parameters: map<string, Any>",
        "4 metadata: map<string, string>",
        "5 stream: bool",
        "6 binary_parameters: map<string, bytes>",
    ),
    "ExecuteToolResponse": (
        "1 success: bool",
        "2 result: Any",
        "3 error_message: string",
        "4 metadata: map<string, string>",
        "5 execution_time_ms: int64",
        "6 binary_result: bytes",
    ),
    "ToolChunk": (
        "1 chunk_id: string",
        "2 data: bytes",
        "3 is_final: bool",
        "4 metadata: map<string, string>",
    ),
    "WatchVariablesRequest": (
        "1 session_id: string",
        "2 variable_identifiers: repeated string",
        "3 include_initial_values: bool",
    ),
    "VariableUpdate": (
        "1 variable_id: string",
        "2 variable: Variable",
        "3 update_source: string",
        "4 update_metadata: map<string, string>",
        "5 timestamp: Timestamp",
        "6 update_type: string",
    ),
    "AddDependencyRequest": (
        "1 session_id: string",
        "2 from_variable: string",
        "3 to_variable: string",
        "4 dependency_type: string",
    ),
    "AddDependencyResponse": ("1 success: bool", "2 error_message: string"),
    "StartOptimizationRequest": (
        "1 session_id: string",
        "2 variable_identifier: string",
        "3 optimizer_id: string",
        "4 optimizer_config: map<string, string>",
    ),
    "StartOptimizationResponse": (
        "1 success: bool",
        "2 error_message: string",
        "3 optimization_id: string",
    ),
    "StopOptimizationRequest": (
        "1 session_id: string",
        "2 variable_identifier: string",
        "3 force: bool",
    ),
    "StopOptimizationResponse": ("1 success: bool", "2 final_value: Any"),
    "GetVariableHistoryRequest": (
        "1 session_id: string",
        "2 variable_identifier: string",
        "3 limit: int32",
    ),
    "GetVariableHistoryResponse": ("1 entries: repeated VariableHistoryEntry",),
    "VariableHistoryEntry": (
        "1 version: int32",
        "2 value: Any",
        "3 timestamp: Timestamp",
        "4 changed_by: string",
        "5 metadata: map<string, string>",
    ),
    "RollbackVariableRequest": (
        "1 session_id: string",
        "2 variable_identifier: string",
        "3 target_version: int32",
    ),
    "RollbackVariableResponse": (
        "1 success: bool",
        "2 variable: Variable",
        "3 error_message: string",
    ),
    "GetSessionRequest": ("1 session_id: string",),
    "GetSessionResponse": (
        "1 session_id: string",
        "2 metadata: map<string, string>",
        "3 created_at: Timestamp",
        "4 variable_count: int32",
        "5 tool_count: int32",
    ),
    "HeartbeatRequest": ("1 session_id: string", "2 client_time: Timestamp"),
    "HeartbeatResponse": ("1 server_time: Timestamp", "2 session_valid: bool"),
    "RegisterToolsRequest": (
        "1 session_id: string",
        "2 tools: repeated ToolRegistration",
        "3 worker_id: string",
    ),
    "RegisterToolsResponse": (
        "1 success: bool",
        "2 tool_ids: map<string, string>",
        "3 error_message: string",
    ),
    "ToolRegistration": (
        "1 name: string",
        "2 description: string",
        "3 parameters: repeated ParameterSpec",
        "4 metadata: map<string, string>",
        "5 supports_streaming: bool",
    ),
    "GetExposedElixirToolsRequest": ("1 session_id: string",),
    "GetExposedElixirToolsResponse": ("1 tools: repeated ToolSpec",),
    "ExecuteElixirToolRequest": (
        "1 session_id: string",
        "2 tool_name: string",
        "3 parameters: map<string, Any>",
        "4 metadata: map<string, string>",
    ),
    "ExecuteElixirToolResponse": (
        "1 success: bool",
        "2 result: Any",
        "3 error_message: string",
        "4 metadata: map<string, string>",
        "5 execution_time_ms: int64",
        "6 binary_result: bytes",
    ),
    "TelemetryControl": (
        "1 toggle: TelemetryToggle, oneof control",
        "2 sampling: TelemetrySamplingUpdate, oneof control",
        "3 filter: TelemetryEventFilter, oneof control",
    ),
    "TelemetryToggle": ("1 enabled: bool",),
    "TelemetrySamplingUpdate": ("1 sampling_rate: double", "2 event_patterns: repeated string"),
    "TelemetryEventFilter": ("1 allow: repeated string", "2 deny: repeated string"),
    "TelemetryEvent": (
        "1 event_parts: repeated string",
        "2 measurements: map<string, TelemetryValue>",
        "3 metadata: map<string, string>",
        "4 timestamp_ns: int64",
        "5 correlation_id: string",
    ),
    "TelemetryValue": (
        "1 int_value: int64, oneof value",
        "2 float_value: double, oneof value",
        "3 string_value: string, oneof value",
    ),
}

WRITE = ("20 request_id: string", "21 log_epoch: string")
WRITTEN = ("20 offset: uint64", "21 log_epoch: string", "22 duplicate: bool")
READ = ("20 min_offset: uint64", "21 log_epoch: string")
ANSWERED = ("20 offset: uint64", "21 log_epoch: string")
PAGE = ("22 page_size: int32", "23 page_token: string")
PAGED = ("23 next_page_token: string",)
EXPECTED = ("23 expected_version: int32",)
LOCK = ("24 optimization_id: string",)
METADATA = ("25 metadata: map<string, string>",)

OURS: dict[str, tuple[str, ...]] = {
    "PingRequest": ("20 include_tools: bool",),
    "PingResponse": ("20 tools: map<string, ToolSpec>",),
    "InitializeSessionRequest": WRITE,
    "InitializeSessionResponse": WRITTEN,
    "CleanupSessionRequest": WRITE + METADATA,
    "CleanupSessionResponse": WRITTEN,
    "GetSessionRequest": READ,
    "GetSessionResponse": ANSWERED,
    "Variable": ("20 offset: uint64", "21 changed_by: string"),
    "RegisterVariableRequest": WRITE,
    "RegisterVariableResponse": (*WRITTEN, "23 variable: Variable"),
    "GetVariableRequest": READ,
    "GetVariableResponse": ANSWERED,
    "SetVariableRequest": WRITE + LOCK,
    "SetVariableResponse": WRITTEN,
    "ListVariablesRequest": READ + PAGE,
    "ListVariablesResponse": ANSWERED + PAGED,
    "DeleteVariableRequest": WRITE + EXPECTED + LOCK + METADATA,
    "DeleteVariableResponse": WRITTEN,
    "BatchGetVariablesRequest": READ,
    "BatchGetVariablesResponse": ANSWERED,
    "BatchSetVariablesRequest": (*WRITE, "23 expected_versions: map<string, int32>", *LOCK),
    "BatchSetVariablesResponse": WRITTEN,
    "WatchVariablesRequest": (
        "20 after_offset: optional uint64",
        "21 log_epoch: string",
        "22 resume_check: fixed64",
        "23 heartbeat_seconds: int32",
        "24 send_caught_up: bool",
        "25 max_value_bytes: uint64",
        "26 update_types: repeated string",
    ),
    "VariableUpdate": (
        "20 offset: uint64",
        "21 log_epoch: string",
        "22 old_value: Any",
        "23 old_binary_value: bytes",
        "24 resume_offset: optional uint64",
        "25 resume_check: fixed64",
        "26 value_omitted: bool",
        "27 transaction: uint64",
        "28 correlation_id: string",
        "29 traceparent: string",
        "30 tool_call_id: string",
    ),
    "GetVariableHistoryRequest": READ + PAGE,
    "GetVariableHistoryResponse": ANSWERED + PAGED,
    "VariableHistoryEntry": (
        "20 offset: uint64",
        "21 binary_value: bytes",
        "22 old_value: Any",
        "23 old_binary_value: bytes",
        "24 correlation_id: string",
        "25 traceparent: string",
        "26 request_id: string",
        "27 rolled_back_to: int32",
        "28 log_epoch: string",
        "29 tool_call_id: string",
    ),
    "RollbackVariableRequest": WRITE + EXPECTED + LOCK + METADATA,
    "RollbackVariableResponse": WRITTEN,
    "AddDependencyRequest": WRITE,
    "AddDependencyResponse": WRITTEN,
    "StartOptimizationRequest": WRITE + METADATA,
    "StartOptimizationResponse": WRITTEN,
    "StopOptimizationRequest": WRITE + LOCK + METADATA,
    "StopOptimizationResponse": (*WRITTEN, "23 final_binary_value: bytes"),
    "RegisterToolsRequest": WRITE,
    "RegisterToolsResponse": WRITTEN,
    "ExecuteToolRequest": WRITE,
    "ExecuteToolResponse": (*WRITTEN, "23 tool_call_id: string"),
}

METHODS = {
    "Ping": "PingRequest -> PingResponse",
    "InitializeSession": "InitializeSessionRequest -> InitializeSessionResponse",
    "CleanupSession": "CleanupSessionRequest -> CleanupSessionResponse",
    "GetSession": "GetSessionRequest -> GetSessionResponse",
    "Heartbeat": "HeartbeatRequest -> HeartbeatResponse",
    "RegisterVariable": "RegisterVariableRequest -> RegisterVariableResponse",
    "GetVariable": "GetVariableRequest -> GetVariableResponse",
    "SetVariable": "SetVariableRequest -> SetVariableResponse",
    "ListVariables": "ListVariablesRequest -> ListVariablesResponse",
    "DeleteVariable": "DeleteVariableRequest -> DeleteVariableResponse",
    "GetVariables": "BatchGetVariablesRequest -> BatchGetVariablesResponse",
    "SetVariables": "BatchSetVariablesRequest -> BatchSetVariablesResponse",
    "ExecuteTool": "ExecuteToolRequest -> ExecuteToolResponse",
    "RegisterTools": "RegisterToolsRequest -> RegisterToolsResponse",
    "GetExposedElixirTools": "GetExposedElixirToolsRequest -> GetExposedElixirToolsResponse",
    "ExecuteElixirTool": "ExecuteElixirToolRequest -> ExecuteElixirToolResponse",
    "AddDependency": "AddDependencyRequest -> AddDependencyResponse",
    "StartOptimization": "StartOptimizationRequest -> StartOptimizationResponse",
    "StopOptimization": "StopOptimizationRequest -> StopOptimizationResponse",
    "GetVariableHistory": "GetVariableHistoryRequest -> GetVariableHistoryResponse",
    "RollbackVariable": "RollbackVariableRequest -> RollbackVariableResponse",
    "WatchVariables": "WatchVariablesRequest -> stream VariableUpdate",
    "ExecuteStreamingTool": "ExecuteToolRequest -> stream ToolChunk",
    "StreamTelemetry": "stream TelemetryControl -> stream TelemetryEvent",
}

FIRST_OF_OURS = 20


def type_name(field: FieldDescriptorProto) -> str:
    for package in (".snakepit.bridge.", ".google.protobuf."):
        if field.type_name.startswith(package):
            name = field.type_name.removeprefix(package)
            return f"enum {name}" if field.type == FieldDescriptorProto.TYPE_ENUM else name
    return FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()


def describe(message: DescriptorProto) -> Iterator[tuple[int, str]]:
    """Yield number and notation of each field, in the notation of the tables above."""
    entries = {f"{message.name}.{entry.name}": entry for entry in message.nested_type}
    for field in message.field:
        kind = type_name(field)
        entry = entries.get(kind)
        if entry is not None and entry.options.map_entry:
            key, value = entry.field
            kind = f"map<{type_name(key)}, {type_name(value)}>"
        elif field.label == FieldDescriptorProto.LABEL_REPEATED:
            kind = f"repeated {kind}"
        elif field.proto3_optional:
            kind = f"optional {kind}"
        elif field.HasField("oneof_index"):
            kind = f"{kind}, oneof {message.oneof_decl[field.oneof_index].name}"
        yield field.number, f"{field.number} {field.name}: {kind}"


def signature(method: MethodDescriptorProto) -> str:
    ends = (
        (method.client_streaming, method.input_type),
        (method.server_streaming, method.output_type),
    )
    return " -> ".join(
        f"{'stream ' if streaming else ''}{name.removeprefix('.snakepit.bridge.')}"
        for streaming, name in ends
    )


def test_the_messages_are_those_of_the_tables() -> None:
    assert set(MESSAGES) == set(FROZEN)
    assert set(OURS) <= set(FROZEN)


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_fields(name: str) -> None:
    fields = sorted(describe(MESSAGES[name]))
    assert tuple(text for number, text in fields if number < FIRST_OF_OURS) == FROZEN[name]


@pytest.mark.parametrize("name", FROZEN)
def test_our_fields(name: str) -> None:
    fields = sorted(describe(MESSAGES[name]))
    ours = tuple(text for number, text in fields if number >= FIRST_OF_OURS)
    assert ours == OURS.get(name, ())


def test_no_message_has_other_parts() -> None:
    assert [enum.name for enum in FILE.enum_type] == []
    for message in MESSAGES.values():
        assert all(nested.options.map_entry for nested in message.nested_type), message.name
        assert not message.extension, message.name


def test_the_one_enum() -> None:
    enums = {
        f"{message.name}.{enum.name}": {value.name: value.number for value in enum.value}
        for message in MESSAGES.values()
        for enum in message.enum_type
    }
    assert enums == {"Variable.Source": {"ELIXIR": 0, "PYTHON": 1}}


def test_the_service() -> None:
    assert FILE.syntax == "proto3"
    assert [f"{FILE.package}.{service.name}" for service in FILE.service] == [
        "snakepit.bridge.BridgeService"
    ]
    assert {method.name: signature(method) for method in FILE.service[0].method} == METHODS
