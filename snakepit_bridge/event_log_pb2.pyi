from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Record(_message.Message):
    __slots__ = ("schema", "first_offset", "time_unix_nanos", "clock_unix_nanos", "source", "instance", "correlation_id", "traceparent", "tracestate", "metadata", "request", "events", "tool_call_id")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SCHEMA_FIELD_NUMBER: _ClassVar[int]
    FIRST_OFFSET_FIELD_NUMBER: _ClassVar[int]
    TIME_UNIX_NANOS_FIELD_NUMBER: _ClassVar[int]
    CLOCK_UNIX_NANOS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    CORRELATION_ID_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    TRACESTATE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALL_ID_FIELD_NUMBER: _ClassVar[int]
    schema: int
    first_offset: int
    time_unix_nanos: int
    clock_unix_nanos: int
    source: str
    instance: str
    correlation_id: str
    traceparent: str
    tracestate: str
    metadata: _containers.ScalarMap[str, str]
    request: Request
    events: _containers.RepeatedCompositeFieldContainer[Event]
    tool_call_id: str
    def __init__(self, schema: _Optional[int] = ..., first_offset: _Optional[int] = ..., time_unix_nanos: _Optional[int] = ..., clock_unix_nanos: _Optional[int] = ..., source: _Optional[str] = ..., instance: _Optional[str] = ..., correlation_id: _Optional[str] = ..., traceparent: _Optional[str] = ..., tracestate: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ..., request: _Optional[_Union[Request, _Mapping]] = ..., events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ..., tool_call_id: _Optional[str] = ...) -> None: ...

class Request(_message.Message):
    __slots__ = ("id", "key", "method", "digest")
    ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    id: str
    key: str
    method: str
    digest: bytes
    def __init__(self, id: _Optional[str] = ..., key: _Optional[str] = ..., method: _Optional[str] = ..., digest: _Optional[bytes] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("session_started", "session_ended", "session_forked", "variable_registered", "variable_set", "variable_deleted", "optimization_started", "optimization_stopped", "tools_registered", "tool_started", "tool_finished", "value_redacted")
    SESSION_STARTED_FIELD_NUMBER: _ClassVar[int]
    SESSION_ENDED_FIELD_NUMBER: _ClassVar[int]
    SESSION_FORKED_FIELD_NUMBER: _ClassVar[int]
    VARIABLE_REGISTERED_FIELD_NUMBER: _ClassVar[int]
    VARIABLE_SET_FIELD_NUMBER: _ClassVar[int]
    VARIABLE_DELETED_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZATION_STARTED_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZATION_STOPPED_FIELD_NUMBER: _ClassVar[int]
    TOOLS_REGISTERED_FIELD_NUMBER: _ClassVar[int]
    TOOL_STARTED_FIELD_NUMBER: _ClassVar[int]
    TOOL_FINISHED_FIELD_NUMBER: _ClassVar[int]
    VALUE_REDACTED_FIELD_NUMBER: _ClassVar[int]
    session_started: SessionStarted
    session_ended: SessionEnded
    session_forked: SessionForked
    variable_registered: VariableRegistered
    variable_set: VariableSet
    variable_deleted: VariableDeleted
    optimization_started: OptimizationStarted
    optimization_stopped: OptimizationStopped
    tools_registered: ToolsRegistered
    tool_started: ToolStarted
    tool_finished: ToolFinished
    value_redacted: ValueRedacted
    def __init__(self, session_started: _Optional[_Union[SessionStarted, _Mapping]] = ..., session_ended: _Optional[_Union[SessionEnded, _Mapping]] = ..., session_forked: _Optional[_Union[SessionForked, _Mapping]] = ..., variable_registered: _Optional[_Union[VariableRegistered, _Mapping]] = ..., variable_set: _Optional[_Union[VariableSet, _Mapping]] = ..., variable_deleted: _Optional[_Union[VariableDeleted, _Mapping]] = ..., optimization_started: _Optional[_Union[OptimizationStarted, _Mapping]] = ..., optimization_stopped: _Optional[_Union[OptimizationStopped, _Mapping]] = ..., tools_registered: _Optional[_Union[ToolsRegistered, _Mapping]] = ..., tool_started: _Optional[_Union[ToolStarted, _Mapping]] = ..., tool_finished: _Optional[_Union[ToolFinished, _Mapping]] = ..., value_redacted: _Optional[_Union[ValueRedacted, _Mapping]] = ...) -> None: ...

class Values(_message.Message):
    __slots__ = ("any", "binary")
    ANY_FIELD_NUMBER: _ClassVar[int]
    BINARY_FIELD_NUMBER: _ClassVar[int]
    any: _containers.RepeatedScalarFieldContainer[bytes]
    binary: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, any: _Optional[_Iterable[bytes]] = ..., binary: _Optional[_Iterable[bytes]] = ...) -> None: ...

class SessionStarted(_message.Message):
    __slots__ = ("metadata", "enable_caching", "cache_ttl_seconds", "enable_telemetry")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    METADATA_FIELD_NUMBER: _ClassVar[int]
    ENABLE_CACHING_FIELD_NUMBER: _ClassVar[int]
    CACHE_TTL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ENABLE_TELEMETRY_FIELD_NUMBER: _ClassVar[int]
    metadata: _containers.ScalarMap[str, str]
    enable_caching: bool
    cache_ttl_seconds: int
    enable_telemetry: bool
    def __init__(self, metadata: _Optional[_Mapping[str, str]] = ..., enable_caching: bool = ..., cache_ttl_seconds: _Optional[int] = ..., enable_telemetry: bool = ...) -> None: ...

class SessionEnded(_message.Message):
    __slots__ = ("reason", "resources")
    REASON_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    reason: str
    resources: int
    def __init__(self, reason: _Optional[str] = ..., resources: _Optional[int] = ...) -> None: ...

class SessionForked(_message.Message):
    __slots__ = ("session_id", "log_epoch", "offset")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    LOG_EPOCH_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    log_epoch: str
    offset: int
    def __init__(self, session_id: _Optional[str] = ..., log_epoch: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class VariableRegistered(_message.Message):
    __slots__ = ("id", "name", "type", "constraints_json", "value_digest")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    CONSTRAINTS_JSON_FIELD_NUMBER: _ClassVar[int]
    VALUE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    type: str
    constraints_json: str
    value_digest: bytes
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., type: _Optional[str] = ..., constraints_json: _Optional[str] = ..., value_digest: _Optional[bytes] = ...) -> None: ...

class VariableSet(_message.Message):
    __slots__ = ("id", "version", "previous_offset", "value_digest", "previous_digest", "rolled_back_to")
    ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_OFFSET_FIELD_NUMBER: _ClassVar[int]
    VALUE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROLLED_BACK_TO_FIELD_NUMBER: _ClassVar[int]
    id: str
    version: int
    previous_offset: int
    value_digest: bytes
    previous_digest: bytes
    rolled_back_to: int
    def __init__(self, id: _Optional[str] = ..., version: _Optional[int] = ..., previous_offset: _Optional[int] = ..., value_digest: _Optional[bytes] = ..., previous_digest: _Optional[bytes] = ..., rolled_back_to: _Optional[int] = ...) -> None: ...

class VariableDeleted(_message.Message):
    __slots__ = ("id", "version", "previous_offset", "previous_digest")
    ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_OFFSET_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    id: str
    version: int
    previous_offset: int
    previous_digest: bytes
    def __init__(self, id: _Optional[str] = ..., version: _Optional[int] = ..., previous_offset: _Optional[int] = ..., previous_digest: _Optional[bytes] = ...) -> None: ...

class OptimizationStarted(_message.Message):
    __slots__ = ("id", "optimization_id", "optimizer_id", "config")
    class ConfigEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZATION_ID_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_ID_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    id: str
    optimization_id: str
    optimizer_id: str
    config: _containers.ScalarMap[str, str]
    def __init__(self, id: _Optional[str] = ..., optimization_id: _Optional[str] = ..., optimizer_id: _Optional[str] = ..., config: _Optional[_Mapping[str, str]] = ...) -> None: ...

class OptimizationStopped(_message.Message):
    __slots__ = ("id", "optimization_id", "reason")
    ID_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZATION_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    id: str
    optimization_id: str
    reason: str
    def __init__(self, id: _Optional[str] = ..., optimization_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ToolsRegistered(_message.Message):
    __slots__ = ("worker_id", "tools")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    tools: _containers.RepeatedCompositeFieldContainer[Tool]
    def __init__(self, worker_id: _Optional[str] = ..., tools: _Optional[_Iterable[_Union[Tool, _Mapping]]] = ...) -> None: ...

class Tool(_message.Message):
    __slots__ = ("id", "name", "spec")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    spec: bytes
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., spec: _Optional[bytes] = ...) -> None: ...

class ToolStarted(_message.Message):
    __slots__ = ("call_id", "tool", "arguments", "deadline_unix_nanos", "streaming")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_UNIX_NANOS_FIELD_NUMBER: _ClassVar[int]
    STREAMING_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    tool: str
    arguments: _containers.RepeatedCompositeFieldContainer[ToolArgument]
    deadline_unix_nanos: int
    streaming: bool
    def __init__(self, call_id: _Optional[str] = ..., tool: _Optional[str] = ..., arguments: _Optional[_Iterable[_Union[ToolArgument, _Mapping]]] = ..., deadline_unix_nanos: _Optional[int] = ..., streaming: bool = ...) -> None: ...

class ToolArgument(_message.Message):
    __slots__ = ("name", "value_digest", "digest")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    name: str
    value_digest: bytes
    digest: bytes
    def __init__(self, name: _Optional[str] = ..., value_digest: _Optional[bytes] = ..., digest: _Optional[bytes] = ...) -> None: ...

class ToolFinished(_message.Message):
    __slots__ = ("call_id", "outcome", "value_digest", "error_type", "error_message", "duration_nanos", "started_offset", "digest", "error_traceback", "chunks")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    VALUE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ERROR_TYPE_FIELD_NUMBER: _ClassVar[int]
    ERROR_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DURATION_NANOS_FIELD_NUMBER: _ClassVar[int]
    STARTED_OFFSET_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ERROR_TRACEBACK_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    outcome: str
    value_digest: bytes
    error_type: str
    error_message: str
    duration_nanos: int
    started_offset: int
    digest: bytes
    error_traceback: str
    chunks: int
    def __init__(self, call_id: _Optional[str] = ..., outcome: _Optional[str] = ..., value_digest: _Optional[bytes] = ..., error_type: _Optional[str] = ..., error_message: _Optional[str] = ..., duration_nanos: _Optional[int] = ..., started_offset: _Optional[int] = ..., digest: _Optional[bytes] = ..., error_traceback: _Optional[str] = ..., chunks: _Optional[int] = ...) -> None: ...

class ValueRedacted(_message.Message):
    __slots__ = ("digest", "reason")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    digest: _containers.RepeatedScalarFieldContainer[bytes]
    reason: str
    def __init__(self, digest: _Optional[_Iterable[bytes]] = ..., reason: _Optional[str] = ...) -> None: ...

class Snapshot(_message.Message):
    __slots__ = ("schema", "time_unix_nanos", "created_unix_nanos", "ended", "metadata", "enable_caching", "cache_ttl_seconds", "enable_telemetry", "variables", "deleted", "used_names", "tools", "calls")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SCHEMA_FIELD_NUMBER: _ClassVar[int]
    TIME_UNIX_NANOS_FIELD_NUMBER: _ClassVar[int]
    CREATED_UNIX_NANOS_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    ENABLE_CACHING_FIELD_NUMBER: _ClassVar[int]
    CACHE_TTL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ENABLE_TELEMETRY_FIELD_NUMBER: _ClassVar[int]
    VARIABLES_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    USED_NAMES_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    schema: int
    time_unix_nanos: int
    created_unix_nanos: int
    ended: str
    metadata: _containers.ScalarMap[str, str]
    enable_caching: bool
    cache_ttl_seconds: int
    enable_telemetry: bool
    variables: _containers.RepeatedCompositeFieldContainer[VariableSnapshot]
    deleted: _containers.RepeatedCompositeFieldContainer[DeletedVariable]
    used_names: _containers.RepeatedScalarFieldContainer[str]
    tools: _containers.RepeatedCompositeFieldContainer[ToolSnapshot]
    calls: _containers.RepeatedCompositeFieldContainer[OpenCall]
    def __init__(self, schema: _Optional[int] = ..., time_unix_nanos: _Optional[int] = ..., created_unix_nanos: _Optional[int] = ..., ended: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ..., enable_caching: bool = ..., cache_ttl_seconds: _Optional[int] = ..., enable_telemetry: bool = ..., variables: _Optional[_Iterable[_Union[VariableSnapshot, _Mapping]]] = ..., deleted: _Optional[_Iterable[_Union[DeletedVariable, _Mapping]]] = ..., used_names: _Optional[_Iterable[str]] = ..., tools: _Optional[_Iterable[_Union[ToolSnapshot, _Mapping]]] = ..., calls: _Optional[_Iterable[_Union[OpenCall, _Mapping]]] = ...) -> None: ...

class ToolSnapshot(_message.Message):
    __slots__ = ("id", "name", "spec", "worker_id", "offset")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    spec: bytes
    worker_id: str
    offset: int
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., spec: _Optional[bytes] = ..., worker_id: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class OpenCall(_message.Message):
    __slots__ = ("call_id", "tool", "offset", "time_unix_nanos", "instance", "request")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TIME_UNIX_NANOS_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    tool: str
    offset: int
    time_unix_nanos: int
    instance: str
    request: Request
    def __init__(self, call_id: _Optional[str] = ..., tool: _Optional[str] = ..., offset: _Optional[int] = ..., time_unix_nanos: _Optional[int] = ..., instance: _Optional[str] = ..., request: _Optional[_Union[Request, _Mapping]] = ...) -> None: ...

class VariableSnapshot(_message.Message):
    __slots__ = ("id", "name", "type", "constraints_json", "registered", "value_digest", "any", "binary", "version", "offset", "time_unix_nanos", "source", "metadata", "optimization")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    CONSTRAINTS_JSON_FIELD_NUMBER: _ClassVar[int]
    REGISTERED_FIELD_NUMBER: _ClassVar[int]
    VALUE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ANY_FIELD_NUMBER: _ClassVar[int]
    BINARY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TIME_UNIX_NANOS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZATION_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    type: str
    constraints_json: str
    registered: int
    value_digest: bytes
    any: bytes
    binary: bytes
    version: int
    offset: int
    time_unix_nanos: int
    source: str
    metadata: _containers.ScalarMap[str, str]
    optimization: OptimizationSnapshot
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., type: _Optional[str] = ..., constraints_json: _Optional[str] = ..., registered: _Optional[int] = ..., value_digest: _Optional[bytes] = ..., any: _Optional[bytes] = ..., binary: _Optional[bytes] = ..., version: _Optional[int] = ..., offset: _Optional[int] = ..., time_unix_nanos: _Optional[int] = ..., source: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ..., optimization: _Optional[_Union[OptimizationSnapshot, _Mapping]] = ...) -> None: ...

class OptimizationSnapshot(_message.Message):
    __slots__ = ("optimization_id", "optimizer_id", "started_unix_nanos", "used_unix_nanos")
    OPTIMIZATION_ID_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_ID_FIELD_NUMBER: _ClassVar[int]
    STARTED_UNIX_NANOS_FIELD_NUMBER: _ClassVar[int]
    USED_UNIX_NANOS_FIELD_NUMBER: _ClassVar[int]
    optimization_id: str
    optimizer_id: str
    started_unix_nanos: int
    used_unix_nanos: int
    def __init__(self, optimization_id: _Optional[str] = ..., optimizer_id: _Optional[str] = ..., started_unix_nanos: _Optional[int] = ..., used_unix_nanos: _Optional[int] = ...) -> None: ...

class DeletedVariable(_message.Message):
    __slots__ = ("id", "offset")
    ID_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    id: str
    offset: int
    def __init__(self, id: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...
