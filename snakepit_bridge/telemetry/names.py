"""Every name that others build on: metrics, spans, attributes. Nowhere else is one written.

Metrics of calls are those of go-grpc-middleware, letter for letter, because dashboards and alerts
for gRPC query those. The ``rpc.*`` attributes are a release candidate of OpenTelemetry's semantic
conventions: when they become final, this module changes and ``SCHEMA_URL`` with it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = [
    "APPEND",
    "BATCH_SIZE",
    "BUILD_INFO",
    "CODES",
    "COMMAND",
    "COMMIT_BUCKETS",
    "COMMIT_EVENTS_BUCKETS",
    "COMMIT_WAIT",
    "CORRELATION_ID",
    "DECIDE",
    "DELIVER",
    "ERROR_TYPE",
    "EVENTS",
    "GRPC_HANDLED",
    "GRPC_HANDLING_SECONDS",
    "GRPC_RECEIVED",
    "GRPC_SENT",
    "GRPC_STARTED",
    "HANDLING_BUCKETS",
    "LOG_APPEND_SECONDS",
    "LOG_BYTES",
    "LOG_COMMIT_EVENTS",
    "LOG_COMMIT_SECONDS",
    "LOG_SIZE",
    "OFFSET",
    "OUTCOME",
    "PROJECTION_REBUILD_SECONDS",
    "REJECTED",
    "RPC_METHOD",
    "RPC_STATUS",
    "RPC_SYSTEM",
    "SCHEMA_URL",
    "SCOPE",
    "SESSIONS",
    "SESSION_ID",
    "SLOW_WATCHERS",
    "SNAPSHOT_SECONDS",
    "SPANS_DROPPED",
    "TOOL",
    "TOOLS_RUNNING",
    "TOOL_BUCKETS",
    "TOOL_SECONDS",
    "UPDATES",
    "VARIABLE",
    "WATCHERS",
    "WATCH_DELIVERED",
    "WATCH_DELIVERY_SECONDS",
    "WATCH_LAG",
    "Metric",
]


class Metric(NamedTuple):
    """One family of series."""

    name: str
    """As it is queried; a histogram's without ``_bucket``, ``_sum`` and ``_count``."""
    help: str
    labels: tuple[str, ...] = ()


_METHOD: Final = ("grpc_type", "grpc_service", "grpc_method")

GRPC_STARTED: Final = Metric("grpc_server_started_total", "RPCs started on the server.", _METHOD)
GRPC_HANDLED: Final = Metric(
    "grpc_server_handled_total",
    "RPCs completed on the server, whatever came of them.",
    (*_METHOD, "grpc_code"),
)
GRPC_RECEIVED: Final = Metric(
    "grpc_server_msg_received_total", "Messages received from clients.", _METHOD
)
GRPC_SENT: Final = Metric("grpc_server_msg_sent_total", "Messages sent to clients.", _METHOD)
GRPC_HANDLING_SECONDS: Final = Metric(
    "grpc_server_handling_seconds", "Time until an RPC was completed, streams included.", _METHOD
)

LOG_APPEND_SECONDS: Final = Metric(
    "snakepit_bridge_log_append_seconds", "Time the engine takes to store a commit and sync it."
)
LOG_COMMIT_SECONDS: Final = Metric(
    "snakepit_bridge_log_commit_seconds",
    "Time of a commit, from its first decision until its events can be read.",
)
LOG_COMMIT_EVENTS: Final = Metric("snakepit_bridge_log_commit_events", "Events in a commit.")
LOG_BYTES: Final = Metric("snakepit_bridge_log_bytes_total", "Bytes of records appended.")
LOG_SIZE: Final = Metric("snakepit_bridge_log_size_bytes", "Bytes that all logs take up.")
EVENTS: Final = Metric("snakepit_bridge_events_total", "Events committed.", ("kind",))
SESSIONS: Final = Metric(
    "snakepit_bridge_sessions",
    "Live sessions, in memory (loaded) and out of it (idle).",
    ("state",),
)
WATCHERS: Final = Metric("snakepit_bridge_watchers", "Open watches.")
SLOW_WATCHERS: Final = Metric(
    "snakepit_bridge_slow_watchers", "Open watches that are behind the newest commits in memory."
)
WATCH_LAG: Final = Metric(
    "snakepit_bridge_watch_lag_events", "Events by which the worst watch is behind its log's head."
)
WATCH_DELIVERED: Final = Metric(
    "snakepit_bridge_watch_delivered_total", "Changes written to watches."
)
WATCH_DELIVERY_SECONDS: Final = Metric(
    "snakepit_bridge_watch_delivery_seconds",
    "Time from a commit until one of its changes was written to a watch.",
)
PROJECTION_REBUILD_SECONDS: Final = Metric(
    "snakepit_bridge_projection_rebuild_seconds", "Time to bring a session into memory."
)
SNAPSHOT_SECONDS: Final = Metric(
    "snakepit_bridge_snapshot_seconds", "Time to write the state of a session as a snapshot."
)
TOOL_SECONDS: Final = Metric(
    "snakepit_bridge_tool_seconds",
    "Time of a tool's call, by tool and how it ended.",
    ("tool", "outcome"),
)
TOOLS_RUNNING: Final = Metric("snakepit_bridge_tools_running", "Calls of tools under way.")
REJECTED: Final = Metric(
    "snakepit_bridge_rejected_total", "Requests that were refused, by reason.", ("reason",)
)
BUILD_INFO: Final = Metric(
    "snakepit_bridge_build_info",
    "1; the release and what it runs on.",
    ("version", "engine", "python"),
)
SPANS_DROPPED: Final = Metric(
    "snakepit_bridge_spans_dropped_total",
    "Spans that were sampled and could not be handed to the exporter in time.",
)

COMMIT_BUCKETS: Final = tuple(0.0001 * 2**n for n in range(16))
"""Seconds, 0.1 ms to 3.3 s; of commits, appends and deliveries."""

COMMIT_EVENTS_BUCKETS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 10_000)

TOOL_BUCKETS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0)
"""Seconds. Models take their time."""

HANDLING_BUCKETS: Final = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Seconds. go-grpc-middleware begins at 5 ms, which is slow for a call here."""

CODES: Final = {
    "OK": "OK",
    "CANCELLED": "Canceled",
    "UNKNOWN": "Unknown",
    "INVALID_ARGUMENT": "InvalidArgument",
    "DEADLINE_EXCEEDED": "DeadlineExceeded",
    "NOT_FOUND": "NotFound",
    "ALREADY_EXISTS": "AlreadyExists",
    "PERMISSION_DENIED": "PermissionDenied",
    "RESOURCE_EXHAUSTED": "ResourceExhausted",
    "FAILED_PRECONDITION": "FailedPrecondition",
    "ABORTED": "Aborted",
    "OUT_OF_RANGE": "OutOfRange",
    "UNIMPLEMENTED": "Unimplemented",
    "INTERNAL": "Internal",
    "UNAVAILABLE": "Unavailable",
    "DATA_LOSS": "DataLoss",
    "UNAUTHENTICATED": "Unauthenticated",
}
"""``grpc_code`` of each status, in Go's casing, which alerts are written for."""

SCOPE: Final = "snakepit_bridge"
SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.39.0"

RPC_SYSTEM: Final = "rpc.system.name"
RPC_METHOD: Final = "rpc.method"
RPC_STATUS: Final = "rpc.response.status_code"
ERROR_TYPE: Final = "error.type"

DECIDE: Final = "decide"
APPEND: Final = "append"
DELIVER: Final = "deliver"
"""Spans below that of a call. A tool's is named by the tool."""

SESSION_ID: Final = "snakepit.session_id"
VARIABLE: Final = "snakepit.variable"
OFFSET: Final = "snakepit.offset"
CORRELATION_ID: Final = "snakepit.correlation_id"
TOOL: Final = "snakepit.tool"
OUTCOME: Final = "snakepit.outcome"
COMMAND: Final = "snakepit.command"
COMMIT_WAIT: Final = "snakepit.commit_wait_seconds"
BATCH_SIZE: Final = "snakepit.batch_size"
UPDATES: Final = "snakepit.updates"
