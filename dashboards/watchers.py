"""Watches: how many there are, whether they keep up, and how late they hear."""

from __future__ import annotations

from dashboards.model import Dashboard, Panel, Query, Row
from dashboards.queries import heat, open_streams, quantile, quantiles, rate, select, total
from snakepit_bridge.telemetry.names import (
    EVENTS,
    GRPC_HANDLED,
    SLOW_WATCHERS,
    WATCH_DELIVERED,
    WATCH_DELIVERY_SECONDS,
    WATCH_LAG,
    WATCHERS,
)

__all__ = ["WATCHES"]

_WATCH = 'grpc_method="WatchVariables"'

_NUMBERS = (
    Panel(
        "Open watches",
        "On all chosen instances.",
        "short",
        (Query(total(select(WATCHERS))),),
        "number",
        6,
    ),
    Panel(
        "Slow",
        "Watches that are more than 1,000 events behind, or so far that what they need is no "
        "longer in memory and has to be read from the log. Normal is 0.",
        "short",
        (Query(total(select(SLOW_WATCHERS))),),
        "number",
        6,
        (1, 10),
    ),
    Panel(
        "Worst lag",
        "Events between the head of a log and the watch that is farthest behind it.",
        "short",
        (Query(f"max({select(WATCH_LAG)})"),),
        "number",
        6,
        (1_000, 10_000),
    ),
    Panel(
        "p99 of delivery",
        "From a commit until one of its changes was written to a watch. Empty while nothing is "
        "delivered.",
        "s",
        (Query(quantile(0.99, WATCH_DELIVERY_SECONDS)),),
        "number",
        6,
        (0.1, 1),
    ),
)

_KEEPING_UP = (
    Panel(
        "Watches",
        "Open ones, and the slow ones among them. A slow watch costs the bridge no more than a "
        "fast one and loses nothing; but its client works on old values "
        "(SnakepitBridgeSlowWatchers).",
        "short",
        (
            Query(total(select(WATCHERS), "instance"), "open {{instance}}"),
            Query(total(select(SLOW_WATCHERS), "instance"), "slow {{instance}}"),
        ),
    ),
    Panel(
        "Worst lag",
        "Events. Short peaks are bursts; a line that rises and never falls is a client that does "
        "not read.",
        "short",
        (Query(f"max by (instance) ({select(WATCH_LAG)})", "{{instance}}"),),
    ),
    Panel(
        "Delivery latency",
        "How many changes were delivered how long after their commit. A watch that catches up "
        "draws a band far above the others: what it is told happened long ago.",
        "s",
        (Query(heat(WATCH_DELIVERY_SECONDS), "{{le}}", exemplars=True),),
        "heat",
    ),
    Panel(
        "Delivery latency, quantiles",
        "p50 is what a healthy watch sees; p99 is drawn up by those that catch up.",
        "s",
        quantiles(WATCH_DELIVERY_SECONDS),
    ),
)

_TRAFFIC = (
    Panel(
        "Committed and delivered",
        "Each second. Their ratio is how many watches want what is written; delivered without "
        "committed is catching up.",
        "eps",
        (
            Query(total(rate(EVENTS)), "committed"),
            Query(total(rate(WATCH_DELIVERED)), "delivered"),
        ),
    ),
    Panel(
        "Watches opened and ended",
        "Ends, each second, by status: Canceled is a client that left, Unavailable the end of "
        "--watch-max-lifetime or of the bridge, after which clients go on by themselves. Many "
        "ends with few open watches is a client that opens one for each look.",
        "reqps",
        (Query(f"{total(rate(GRPC_HANDLED, _WATCH), 'grpc_code')} > 0", "{{grpc_code}}"),),
        "stacked",
    ),
    Panel(
        "Open streams",
        "As gRPC counts them: the same as open watches but for those that are being opened. What "
        "differs for long is a defect.",
        "short",
        (Query(open_streams("instance"), "{{instance}}"),),
    ),
)

WATCHES = Dashboard(
    "snakepit-bridge-watchers",
    "Snakepit bridge / Watchers",
    "Who watches variables, whether they keep up, and how late they hear of a change.",
    (
        Row("Now", _NUMBERS),
        Row("Keeping up", _KEEPING_UP),
        Row("Traffic", _TRAFFIC),
    ),
)
