"""The event log: how long a commit takes, what goes into it, and how it grows."""

from __future__ import annotations

from dashboards.model import Dashboard, Panel, Query, Row
from dashboards.queries import heat, mean, quantile, rate, select, total
from snakepit_bridge.telemetry.names import (
    EVENTS,
    LOG_APPEND_SECONDS,
    LOG_BYTES,
    LOG_COMMIT_EVENTS,
    LOG_COMMIT_SECONDS,
    LOG_SIZE,
    PROJECTION_REBUILD_SECONDS,
    SNAPSHOT_SECONDS,
)

__all__ = ["LOG"]

_COMMITS = (
    Panel(
        "Commit latency",
        "How many commits took how long, from the first decision until the events can be read. A "
        "healthy log is one narrow band. A second band above it is a disk that now and then takes "
        "its time (SnakepitBridgeSlowCommits), a band that widens upwards is load.",
        "s",
        (Query(heat(LOG_COMMIT_SECONDS), "{{le}}", exemplars=True),),
        "heat",
    ),
    Panel(
        "Commit and append",
        "An append is the engine's part of a commit: storing and syncing. Where both lines run "
        "together, time is spent on the disk; where they part, on deciding, which is on large "
        "batches and large values.",
        "s",
        (
            Query(quantile(0.5, LOG_COMMIT_SECONDS), "commit p50"),
            Query(quantile(0.99, LOG_COMMIT_SECONDS), "commit p99", exemplars=True),
            Query(quantile(0.5, LOG_APPEND_SECONDS), "append p50"),
            Query(quantile(0.99, LOG_APPEND_SECONDS), "append p99", exemplars=True),
        ),
    ),
    Panel(
        "Commits",
        "Each second. One thread commits, so this times the mean commit latency is how busy it "
        "is: beyond 1 there is nothing.",
        "ops",
        (Query(total(rate(LOG_COMMIT_SECONDS, suffix="_count"), "instance"), "{{instance}}"),),
    ),
    Panel(
        "The committer is busy",
        "Share of the time in which it commits. Near 100 % calls wait for each other: batches "
        "grow, and latency with them.",
        "percentunit",
        (Query(total(rate(LOG_COMMIT_SECONDS, suffix="_sum"), "instance"), "{{instance}}"),),
        alarms=(0.7, 0.9),
    ),
    Panel(
        "Batch size",
        "How many commits had how many events. What waits while a commit is on its way is the next "
        "one, so batches grow with the load and share one sync.",
        "short",
        (Query(heat(LOG_COMMIT_EVENTS), "{{le}}"),),
        "heat",
    ),
    Panel(
        "Events in a commit",
        "1 is one client at a time, or one that writes without batches.",
        "short",
        (
            Query(mean(LOG_COMMIT_EVENTS), "mean"),
            Query(quantile(0.99, LOG_COMMIT_EVENTS), "p99"),
        ),
    ),
)

_GROWTH = (
    Panel(
        "Size",
        "Bytes that all logs take up. It grows with what is appended and shrinks when ended logs "
        "are dropped, after --retention-age. Steps down are sweeps.",
        "bytes",
        (Query(total(select(LOG_SIZE), "instance"), "{{instance}}"),),
    ),
    Panel(
        "Growth",
        "Appended is what clients write; growth is what becomes of the size, over 15 minutes. If "
        "they stay apart, retention keeps up; if growth equals what is appended, nothing is ever "
        "dropped (SnakepitBridgeLogOutgrowsItsRoom).",
        "Bps",
        (
            Query(total(rate(LOG_BYTES)), "appended"),
            Query(total(f"deriv({select(LOG_SIZE)}[15m])"), "growth"),
        ),
    ),
    Panel(
        "Bytes of an event",
        "Mean of what is appended. A rise is a client that began to store larger values.",
        "bytes",
        (Query(f"{total(rate(LOG_BYTES))} / ({total(rate(EVENTS))} > 0)", "mean"),),
    ),
    Panel(
        "Events by kind",
        "What was committed, each second.",
        "eps",
        (Query(f"{total(rate(EVENTS), 'kind')} > 0", "{{kind}}"),),
        "stacked",
    ),
)

_MEMORY = (
    Panel(
        "Sessions brought into memory",
        "Each minute: at their first use, and after they were idle. Each is read from its newest "
        "snapshot on.",
        "cpm",
        (
            Query(
                f"{total(rate(PROJECTION_REBUILD_SECONDS, suffix='_count'), 'instance')} * 60",
                "{{instance}}",
            ),
        ),
    ),
    Panel(
        "Time to bring one in",
        "The first call of a session waits for it. If it rises, snapshots are rare "
        "(--snapshot-every) or sessions large.",
        "s",
        (
            Query(quantile(0.5, PROJECTION_REBUILD_SECONDS), "p50"),
            Query(quantile(0.99, PROJECTION_REBUILD_SECONDS), "p99"),
        ),
    ),
    Panel(
        "Snapshots",
        "Written, each minute. A session is due for one when its log has --snapshot-every events "
        "more than at the last.",
        "cpm",
        (
            Query(
                f"{total(rate(SNAPSHOT_SECONDS, suffix='_count'), 'instance')} * 60",
                "{{instance}}",
            ),
        ),
    ),
    Panel(
        "Time to write a snapshot",
        "Beside the committer, which goes on meanwhile.",
        "s",
        (
            Query(quantile(0.5, SNAPSHOT_SECONDS), "p50"),
            Query(quantile(0.99, SNAPSHOT_SECONDS), "p99"),
        ),
    ),
)

LOG = Dashboard(
    "snakepit-bridge-log",
    "Snakepit bridge / Log",
    "The event log, which every write waits for: latency, batches, growth, snapshots.",
    (Row("Commits", _COMMITS), Row("Growth", _GROWTH), Row("In and out of memory", _MEMORY)),
)
