"""PromQL, put together from the names of metrics.

Two things hold for each expression. It is about the chosen jobs and instances only. And it is never
NaN, which Grafana would print, while nothing happens: a quantile or mean of nothing is no series,
and a share of nothing is 0.
"""

from __future__ import annotations

from typing import Final

from dashboards.model import Query
from snakepit_bridge.telemetry.names import GRPC_HANDLED, GRPC_STARTED, Metric

__all__ = [
    "FAULTS",
    "NO_TOOL",
    "STREAM_FAULTS",
    "TOOL_METHODS",
    "UNARY",
    "failed",
    "heat",
    "mean",
    "open_streams",
    "quantile",
    "quantiles",
    "rate",
    "select",
    "share",
    "total",
]

CHOSEN: Final = 'job=~"$job", instance=~"$instance"'

TOOL_METHODS: Final = "ExecuteTool|ExecuteStreamingTool|ExecuteElixirTool"
"""As slow as the tool, and what it raises is its own: no statement about the bridge."""

NO_TOOL: Final = f'grpc_method!~"{TOOL_METHODS}"'
UNARY: Final = f'grpc_type="unary", {NO_TOOL}'
"""The time of a stream is how long it was wanted."""

FAULTS: Final = "Unknown|DeadlineExceeded|ResourceExhausted|Internal|Unavailable|DataLoss"
"""Ends that an operator has to do something about; as in etcd's alerts, without FailedPrecondition,
which here is about a lock that the client does not hold."""

STREAM_FAULTS: Final = "Unknown|Internal|DataLoss"
"""The same for streams: one that is told to go on elsewhere ends with Unavailable, as it should."""


def select(metric: Metric, matchers: str = "", *, suffix: str = "") -> str:
    """Series of a metric, further matchers given as PromQL writes them."""
    return f"{metric.name}{suffix}{{{', '.join(filter(None, (CHOSEN, matchers)))}}}"


def rate(metric: Metric, matchers: str = "", *, suffix: str = "") -> str:
    """Per second."""
    return f"rate({select(metric, matchers, suffix=suffix)}[$__rate_interval])"


def total(expr: str, *by: str) -> str:
    """Sum, of all or for each value of these labels."""
    return f"sum by ({', '.join(by)}) ({expr})" if by else f"sum({expr})"


def quantile(q: float, metric: Metric, matchers: str = "", *by: str) -> str:
    """Estimate of a histogram's quantile; no series while nothing was observed."""
    buckets = total(rate(metric, matchers, suffix="_bucket"), *by, "le")
    return f"histogram_quantile({q}, {buckets}) >= 0"


def quantiles(metric: Metric, matchers: str = "") -> tuple[Query, ...]:
    """The usual three; the examples are asked for once, as they are the same for each."""
    return (
        Query(quantile(0.5, metric, matchers), "p50"),
        Query(quantile(0.95, metric, matchers), "p95"),
        Query(quantile(0.99, metric, matchers), "p99", exemplars=True),
    )


def mean(metric: Metric, matchers: str = "", *by: str) -> str:
    """Mean of what a histogram observed; no series while that is nothing."""
    observed = total(rate(metric, matchers, suffix="_count"), *by)
    return f"{total(rate(metric, matchers, suffix='_sum'), *by)} / ({observed} > 0)"


def heat(metric: Metric) -> str:
    """How often each size occurred."""
    buckets = select(metric, suffix="_bucket")
    return f"sum by (le) (increase({buckets}[$__rate_interval]))"


def share(part: str, whole: str) -> str:
    """The one of the other; 0 while there is nothing to have a share of."""
    return f"{part} / ({whole} > 0) or {whole} * 0"


def failed() -> str:
    """Calls for each second that ended in a way that is the bridge's fault."""
    unary = rate(GRPC_HANDLED, f'{UNARY}, grpc_code=~"{FAULTS}"')
    others = rate(GRPC_HANDLED, f'grpc_type!="unary", {NO_TOOL}, grpc_code=~"{STREAM_FAULTS}"')
    return f"({unary} or {others})"


def open_streams(*by: str) -> str:
    """Streams that began and have not ended; each start is paired with an end, however it ends."""
    streams = 'grpc_type!="unary"'
    started, handled = select(GRPC_STARTED, streams), select(GRPC_HANDLED, streams)
    return f"{total(started, *by)} - {total(handled, *by)}"
