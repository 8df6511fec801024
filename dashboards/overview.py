"""How the bridges are: what is asked of them, how fast they answer, and what they refuse."""

from __future__ import annotations

from dashboards.model import Dashboard, Panel, Query, Row
from dashboards.queries import (
    NO_TOOL,
    UNARY,
    failed,
    open_streams,
    quantile,
    quantiles,
    rate,
    select,
    share,
    total,
)
from snakepit_bridge.telemetry.names import (
    EVENTS,
    GRPC_HANDLED,
    GRPC_HANDLING_SECONDS,
    GRPC_SENT,
    REJECTED,
    SESSIONS,
    Metric,
)

__all__ = ["OVERVIEW"]

_UP = Metric("up", "Whether Prometheus could scrape it.", ())
_CALLS = rate(GRPC_HANDLED, NO_TOOL)
_OTHER = 'grpc_code!="OK"'

_NUMBERS = (
    Panel(
        "Bridges up",
        "How many of the chosen instances answered the last scrape. One that was stopped is gone "
        "from here; one that was killed counts as 0 until its target is removed.",
        "short",
        (Query(total(select(_UP))),),
        "number",
        4,
    ),
    Panel(
        "RPCs",
        "Calls that ended, of all methods, each second.",
        "reqps",
        (Query(total(rate(GRPC_HANDLED))),),
        "number",
        4,
    ),
    Panel(
        "Failed",
        "Share of the calls that failed by the bridge's own fault; tools are left out, as what "
        "they raise is theirs. The alert SnakepitBridgeFailedRPCs looks at each method alone.",
        "percentunit",
        (Query(share(total(failed()), total(_CALLS))),),
        "number",
        4,
        (0.01, 0.05),
    ),
    Panel(
        "p99, unary",
        "99 of 100 unary calls were answered within this time, tools left out. Empty while there "
        "are none.",
        "s",
        (Query(quantile(0.99, GRPC_HANDLING_SECONDS, UNARY)),),
        "number",
        4,
        (0.1, 0.25),
    ),
    Panel(
        "Open streams",
        "Watches, streaming tools and telemetry: started and not yet ended.",
        "short",
        (Query(open_streams()),),
        "number",
        4,
    ),
    Panel(
        "Live sessions",
        "In memory or not. Idle ones cost next to nothing.",
        "short",
        (Query(total(select(SESSIONS))),),
        "number",
        4,
    ),
)

_RPCS = (
    Panel(
        "RPCs by method",
        "Calls that ended, each second. Methods that nobody calls are not shown.",
        "reqps",
        (Query(f"{total(rate(GRPC_HANDLED), 'grpc_method')} > 0", "{{grpc_method}}"),),
        "stacked",
    ),
    Panel(
        "Failed, by instance",
        "Share of the calls that ended with Unknown, DeadlineExceeded, ResourceExhausted, "
        "Internal, Unavailable or DataLoss; of streams only Unknown, Internal and DataLoss count, "
        "because a watch that is told to go on elsewhere ends with Unavailable. A value that was "
        "refused or a session that is not there is the client's business and not in here. Normal "
        "is 0. Unavailable: the log cannot be written, or the bridge is draining. "
        "ResourceExhausted: a limit, or a full disk.",
        "percentunit",
        (Query(share(total(failed(), "instance"), total(_CALLS, "instance")), "{{instance}}"),),
        alarms=(0.01, 0.05),
    ),
    Panel(
        "Time of unary calls",
        "From the request's arrival to the answer. Reads are answered from memory; a write waits "
        "for its commit, so a p99 far above the log's commit latency means that the bridge itself "
        "is busy. The dots are single calls: click one to see its trace. Tools are left out.",
        "s",
        quantiles(GRPC_HANDLING_SECONDS, UNARY),
    ),
    Panel(
        "p99 by method",
        "Which unary methods are slow. If all that write are and GetVariable is not, it is the "
        "disk; if all are, it is the process.",
        "s",
        (Query(quantile(0.99, GRPC_HANDLING_SECONDS, UNARY, "grpc_method"), "{{grpc_method}}"),),
    ),
    Panel(
        "Ends other than OK",
        "Calls that did not end with OK, each second, by their status; tools too. NotFound and "
        "Aborted (somebody else was first) are ordinary in small numbers, Canceled is how most "
        "watches end.",
        "reqps",
        (Query(f"{total(rate(GRPC_HANDLED, _OTHER), 'grpc_code')} > 0", "{{grpc_code}}"),),
        "stacked",
    ),
    Panel(
        "Refused, by reason",
        "Requests that the bridge refused, each second, by the reason that it told the client. "
        "The log has the words, at most one line for each reason in a while.",
        "reqps",
        (Query(f"{total(rate(REJECTED), 'reason')} > 0", "{{reason}}"),),
        "stacked",
    ),
)

_STREAMS = (
    Panel(
        "Open streams by method",
        "A line that only rises is a client that opens watches and forgets them; they end after "
        "--watch-max-lifetime.",
        "short",
        (Query(open_streams("grpc_method"), "{{grpc_method}}"),),
    ),
    Panel(
        "Messages sent on streams",
        "Each second: updates and heartbeats of watches, chunks of tools.",
        "mps",
        (Query(total(rate(GRPC_SENT, 'grpc_type!="unary"'), "grpc_method"), "{{grpc_method}}"),),
    ),
)

_STATE = (
    Panel(
        "Sessions",
        "Live ones: loaded are in memory, idle are on disk and come back with the next call. A "
        "line that only rises is a client that does not end its sessions; they expire after "
        "--session-ttl.",
        "short",
        (Query(total(select(SESSIONS), "state"), "{{state}}"),),
        "stacked",
    ),
    Panel(
        "Events by kind",
        "What was committed, each second: what the clients really do.",
        "eps",
        (Query(f"{total(rate(EVENTS), 'kind')} > 0", "{{kind}}"),),
        "stacked",
    ),
)

OVERVIEW = Dashboard(
    "snakepit-bridge-overview",
    "Snakepit bridge / Overview",
    "Start here: are the bridges up, do they answer, how fast, and what do they refuse?",
    (
        Row("Now", _NUMBERS),
        Row("RPCs", _RPCS),
        Row("Streams", _STREAMS),
        Row("State", _STATE),
    ),
)
