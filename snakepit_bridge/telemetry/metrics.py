"""What is counted of a bridge.

Each number has one thread that writes it: the event loop those of calls, watches and tools, the
committer's thread those of the log. A scrape reads them on a thread of its own, without a lock.
Labels come from closed sets: no session, variable, offset, peer or text is ever one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from snakepit_bridge import event_log_pb2 as stored
from snakepit_bridge.errors import BridgeError
from snakepit_bridge.events.tasks import Batch
from snakepit_bridge.observation import parse_traceparent
from snakepit_bridge.telemetry import names
from snakepit_bridge.telemetry.histogram import Histogram

__all__ = ["MAX_TOOLS", "OUTCOMES", "CallCounts", "Metrics", "State", "WatchState", "sampled_trace"]

MAX_TOOLS = 200
"""Tools with a series of their own; further ones count as ``other``."""

OTHER = "other"

OUTCOMES = ("ok", "error", "timeout", "cancelled", "interrupted")

_KINDS = tuple(field.name for field in stored.Event.DESCRIPTOR.fields)

CODES: Sequence[str] = tuple(names.CODES.values())


class CallCounts:
    """The numbers of one method."""

    __slots__ = ("handled", "labels", "received", "seconds", "sent", "started")

    def __init__(self, labels: tuple[str, str, str]) -> None:
        """:param labels: type, service, method."""
        self.labels = labels
        self.started = 0
        self.handled = dict.fromkeys(CODES, 0)
        self.received = 0
        self.sent = 0
        self.seconds = Histogram(names.HANDLING_BUCKETS)


class WatchState(NamedTuple):
    """How the open watches are."""

    open: int
    slow: int
    lag: int
    """Events by which the worst is behind."""


class State(Protocol):
    """What is not counted but looked at when somebody asks; on the thread of the scrape."""

    engine: str
    """``sqlite`` or ``memory``."""

    def sessions(self) -> tuple[int, int]:
        """Live ones in memory, and out of it."""

    def watches(self) -> WatchState: ...

    def log_size(self) -> int:
        """Bytes."""

    def spans_dropped(self) -> int: ...


class Metrics:
    """All of them; the committer's observer too."""

    def __init__(
        self,
        methods: Iterable[tuple[str, str, str]],
        tools: Iterable[str],
        refusals: Iterable[type[BridgeError]] = (),
    ) -> None:
        """Begin at 0.

        :param methods: type, service and name of every method that is served.
        :param tools: names of the tools that run here.
        :param refusals: errors with reasons beside those of the tree.
        """
        self.calls: Mapping[str, CallCounts] = {
            f"/{labels[1]}/{labels[2]}": CallCounts(labels) for labels in methods
        }
        """By path."""
        reasons = _reasons(BridgeError).union(kind.reason for kind in refusals)
        self.rejected = dict.fromkeys(sorted(reasons), 0)
        self.events: dict[str, int] = dict.fromkeys(_KINDS, 0)
        self.log_bytes = 0
        self.append_seconds = Histogram(names.COMMIT_BUCKETS)
        self.commit_seconds = Histogram(names.COMMIT_BUCKETS)
        self.commit_events = Histogram(names.COMMIT_EVENTS_BUCKETS)
        self.rebuild_seconds = Histogram(names.COMMIT_BUCKETS)
        self.snapshot_seconds = Histogram(names.COMMIT_BUCKETS)
        self.delivered = 0
        self.delivery_seconds = Histogram(names.COMMIT_BUCKETS)
        known = [*sorted(tools)[:MAX_TOOLS], OTHER]
        self.tools = {
            (tool, outcome): Histogram(names.TOOL_BUCKETS) for tool in known for outcome in OUTCOMES
        }
        self.tools_running = 0

    def tool(self, tool: str, outcome: str) -> Histogram:
        """The times of a tool, or of all others together."""
        return self.tools.get((tool, outcome)) or self.tools[OTHER, outcome]

    def committed(self, batch: Batch) -> None:
        commit = batch.commit
        trace_id = 0
        counts = self.events
        for _, transaction in batch.transactions:
            for kind, _ in transaction.facts:
                counts[kind] += 1
            trace_id = trace_id or sampled_trace(transaction.record.traceparent)
        self.log_bytes += sum(
            len(record.header)
            + len(record.values)
            + sum(len(value.any) + len(value.binary) for value in record.large)
            for _, record in batch.records
        )
        self.append_seconds.observe((commit.append_ended - commit.append_begun) / 1e9, trace_id)
        self.commit_seconds.observe((commit.ended - commit.begun) / 1e9, trace_id)
        self.commit_events.observe(commit.events)

    def loaded(self, nanoseconds: int) -> None:
        self.rebuild_seconds.observe(nanoseconds / 1e9)

    def snapshot(self, nanoseconds: int) -> None:
        self.snapshot_seconds.observe(nanoseconds / 1e9)


def _reasons(tree: type[BridgeError]) -> set[str]:
    """Of every error of the tree; what other modules derive from it they say themselves."""
    below = [kind for kind in tree.__subclasses__() if kind.__module__ == BridgeError.__module__]
    return {tree.reason}.union(*map(_reasons, below))


def sampled_trace(traceparent: str) -> int:
    """The id of a trace that is recorded; 0 = it is not."""
    if not traceparent.endswith("1"):  # few are recorded
        return 0
    parent = parse_traceparent(traceparent)
    return parent.trace_id if parent is not None and parent.sampled else 0
