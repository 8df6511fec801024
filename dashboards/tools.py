"""Tools: which are called, how they end, and how long they take."""

from __future__ import annotations

from dashboards.model import Dashboard, Panel, Query, Row
from dashboards.queries import TOOL_METHODS, heat, quantile, rate, select, share, total
from snakepit_bridge.telemetry.names import GRPC_HANDLED, TOOL_SECONDS, TOOLS_RUNNING

__all__ = ["TOOLS"]

_METHODS = f'grpc_method=~"{TOOL_METHODS}"'
_ENDS = rate(TOOL_SECONDS, suffix="_count")
_FAILED = rate(TOOL_SECONDS, 'outcome!~"ok|cancelled"', suffix="_count")

_NUMBERS = (
    Panel(
        "Running",
        "Calls under way; those that wait for a thread or a process are among them.",
        "short",
        (Query(total(select(TOOLS_RUNNING))),),
        "number",
        6,
    ),
    Panel(
        "Calls",
        "That ended, each second.",
        "ops",
        (Query(total(_ENDS)),),
        "number",
        6,
    ),
    Panel(
        "Failed",
        "Share of the calls that ended otherwise than well or cancelled: raised, out of time, "
        "interrupted. What is normal, the tools know.",
        "percentunit",
        (Query(share(total(_FAILED), total(_ENDS))),),
        "number",
        6,
        (0.05, 0.25),
    ),
    Panel(
        "p99",
        "99 of 100 calls ended within this time. Empty while there are none.",
        "s",
        (Query(quantile(0.99, TOOL_SECONDS)),),
        "number",
        6,
    ),
)

_CALLS = (
    Panel(
        "Calls by tool",
        "That ended, each second. Beyond a number of tools the rest is called other.",
        "ops",
        (Query(f"{total(_ENDS, 'tool')} > 0", "{{tool}}"),),
        "stacked",
    ),
    Panel(
        "Calls by outcome",
        "ok; error: it raised; timeout: it took too long; cancelled: its caller left; interrupted: "
        "its bridge stopped or its process died.",
        "ops",
        (Query(f"{total(_ENDS, 'outcome')} > 0", "{{outcome}}"),),
        "stacked",
    ),
    Panel(
        "Failed, by tool",
        "Share of its calls; tools that nobody calls are not shown. The log has the message and "
        "the session.",
        "percentunit",
        (Query(f"{total(_FAILED, 'tool')} / ({total(_ENDS, 'tool')} > 0)", "{{tool}}"),),
    ),
    Panel(
        "Running",
        "If it stays at --max-workers or --tool-processes, calls wait for each other.",
        "short",
        (Query(total(select(TOOLS_RUNNING), "instance"), "{{instance}}"),),
    ),
)

_TIME = (
    Panel(
        "Time of calls",
        "How many calls took how long. Two bands are two kinds of tools, or one that waits for a "
        "thread.",
        "s",
        (Query(heat(TOOL_SECONDS), "{{le}}", exemplars=True),),
        "heat",
    ),
    Panel(
        "p95 by tool",
        "With the time that a call waited for its thread or process.",
        "s",
        (Query(quantile(0.95, TOOL_SECONDS, "", "tool"), "{{tool}}", exemplars=True),),
    ),
    Panel(
        "RPCs of tools, by status",
        "Each second. What a unary tool raises is an answer and ends with OK; what a streaming one "
        "raises ends with Internal.",
        "reqps",
        (
            Query(
                f"{total(rate(GRPC_HANDLED, _METHODS), 'grpc_method', 'grpc_code')} > 0",
                "{{grpc_method}} {{grpc_code}}",
            ),
        ),
        "stacked",
    ),
)

TOOLS = Dashboard(
    "snakepit-bridge-tools",
    "Snakepit bridge / Tools",
    "Which tools are called, how their calls end, and how long they take.",
    (Row("Now", _NUMBERS), Row("Calls", _CALLS), Row("Time", _TIME)),
)
