"""Spans of what the bridge does, made when it is over and somebody records the trace.

::

    call (SERVER) ─┬─ decide ─ append (PRODUCER)
                   └─ tool ─┬─ decide ─ append          of what it changes in this process
                            └─ call (SERVER) ─ ...      of what it changes from another one

    deliver (CONSUMER) ─▶ links to the calls whose changes it delivered

While things happen only numbers are noted (``observation``); the functions here run on the thread
of the export. A trace does not go on across the log: who writes does not wait for who watches.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from random import getrandbits

from snakepit_bridge.events.ring import Committed
from snakepit_bridge.events.tasks import Timing
from snakepit_bridge.observation import Observation, Parent, current, new_span_id, parse_traceparent
from snakepit_bridge.telemetry import names
from snakepit_bridge.telemetry.heads import named_by
from snakepit_bridge.telemetry.spans import (
    CONSUMER,
    INTERNAL,
    PRODUCER,
    SERVER,
    Attributes,
    Span,
    SpanExport,
)

__all__ = ["FAULTS", "MAX_LINKS", "ToolSpan", "Traces"]

MAX_LINKS = 32
"""Of one delivery; the SDK keeps 128 of a span."""

FAULTS = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)
"""Statuses that make a server's span an error (semantic conventions for gRPC)."""


class ToolSpan:
    """The span of a tool's call, which everything that it changes belongs to."""

    __slots__ = ("begun", "parent", "session_id", "span_id", "tool")

    def __init__(self, parent: Parent, session_id: str, tool: str) -> None:
        self.parent = parent
        self.session_id = session_id
        self.tool = tool
        self.span_id = new_span_id()
        self.begun = time.perf_counter_ns()


class Traces:
    """Hands on what has ended, where its trace is recorded."""

    def __init__(self, export: SpanExport) -> None:
        self._export = export

    def call_ended(self, observation: Observation, status: str, ended: int) -> None:
        if observation.sampled:
            self._export.put((_of_call, observation, status, ended))

    def delivered(self, taken: Sequence[Committed], begun: int) -> None:
        """Changes were written to the watch whose call runs."""
        links = {}
        for entry in taken:
            traceparent = entry.transaction.record.traceparent
            if traceparent.endswith("1"):  # few are recorded
                links[traceparent] = entry.transaction.record.first_offset
        if links:
            stream = current.get()
            ended = time.perf_counter_ns()
            self._export.put((_of_delivery, links, len(taken), stream, begun, ended))

    def tool_ended(self, tool: ToolSpan, correlation_id: str, outcome: str) -> None:
        if tool.parent.sampled:
            ended = time.perf_counter_ns()
            self._export.put((_of_tool, tool, correlation_id, outcome, ended))

    def changed(self, tool: ToolSpan, timing: Timing, command: str, offset: int) -> None:
        """What a tool changed was decided."""
        if tool.parent.sampled:
            self._export.put((_of_change, tool, timing, command, offset))


def _unix() -> int:
    """What makes Unix nanoseconds of those of ``time.perf_counter_ns``."""
    return time.time_ns() - time.perf_counter_ns()


def _of_call(observation: Observation, status: str, ended: int) -> Iterator[Span]:
    at = _unix()
    parent = observation.parent
    attributes: dict[str, object] = {
        names.RPC_SYSTEM: "grpc",
        names.RPC_METHOD: observation.method,
        names.RPC_STATUS: status,
        names.CORRELATION_ID: observation.correlation_id,
        **named_by(observation),
    }
    if observation.session_id:
        attributes[names.SESSION_ID] = observation.session_id
    if observation.offset:
        attributes[names.OFFSET] = observation.offset
    if status != "OK":
        attributes[names.ERROR_TYPE] = status
    yield Span(
        observation.method,
        SERVER,
        observation.trace_id,
        observation.span_id,
        parent.span_id if parent is not None else 0,
        observation.begun + at,
        ended + at,
        attributes,
        status in FAULTS,
        observation.error.message if observation.error is not None and status in FAULTS else "",
        tracestate=observation.tracestate,
        remote_parent=parent is not None,
    )
    within = (observation.trace_id, observation.span_id, observation.tracestate)
    yield from _below(within, observation, observation.offset, {})


def _below(
    within: tuple[int, int, str], timing: Timing, offset: int, more: Attributes
) -> Iterator[Span]:
    """What became of a command, inside of a span."""
    trace_id, span_id, tracestate = within
    if not timing.decide_ended:
        return
    at = _unix()
    yield Span(
        names.DECIDE,
        INTERNAL,
        trace_id,
        new_span_id(),
        span_id,
        timing.decide_begun + at,
        timing.decide_ended + at,
        more,
        tracestate=tracestate,
    )
    commit = timing.commit
    if commit is None or not commit.append_ended:
        return
    yield Span(
        names.APPEND,
        PRODUCER,
        trace_id,
        new_span_id(),
        span_id,
        timing.decide_ended + at,
        commit.append_ended + at,
        {
            **more,
            **({names.OFFSET: offset} if offset else {}),
            names.COMMIT_WAIT: max(0, commit.append_begun - timing.decide_ended) / 1e9,
            names.BATCH_SIZE: commit.events,
        },
        status_error=not commit.ended,
        tracestate=tracestate,
    )


def _of_delivery(
    links: Mapping[str, int], updates: int, stream: Observation | None, begun: int, ended: int
) -> Iterator[Span]:
    at = _unix()
    linked: list[tuple[int, int, Attributes]] = []
    for traceparent, offset in links.items():
        writer = parse_traceparent(traceparent)
        if writer is not None and writer.sampled and len(linked) < MAX_LINKS:
            linked.append((writer.trace_id, writer.span_id, {names.OFFSET: offset}))
    if not linked:
        return
    attributes: dict[str, object] = {names.UPDATES: updates}
    trace_id, parent = getrandbits(128) or 1, 0
    if stream is not None:
        attributes |= {names.CORRELATION_ID: stream.correlation_id, **named_by(stream)}
        if stream.sampled:
            trace_id, parent = stream.trace_id, stream.span_id
    yield Span(
        names.DELIVER,
        CONSUMER,
        trace_id,
        new_span_id(),
        parent,
        begun + at,
        ended + at,
        attributes,
        links=linked,
    )


def _of_tool(tool: ToolSpan, correlation_id: str, outcome: str, ended: int) -> Iterator[Span]:
    at = _unix()
    attributes: dict[str, object] = {
        names.TOOL: tool.tool,
        names.SESSION_ID: tool.session_id,
        names.OUTCOME: outcome,
        names.CORRELATION_ID: correlation_id,
    }
    if outcome != "ok":
        attributes[names.ERROR_TYPE] = outcome
    yield Span(
        tool.tool,
        INTERNAL,
        tool.parent.trace_id,
        tool.span_id,
        tool.parent.span_id,
        tool.begun + at,
        ended + at,
        attributes,
        outcome in ("error", "timeout"),
        tracestate=tool.parent.tracestate,
    )


def _of_change(tool: ToolSpan, timing: Timing, command: str, offset: int) -> Iterator[Span]:
    within = (tool.parent.trace_id, tool.span_id, tool.parent.tracestate)
    more = {names.SESSION_ID: tool.session_id, names.COMMAND: command}
    yield from _below(within, timing, offset, more)
