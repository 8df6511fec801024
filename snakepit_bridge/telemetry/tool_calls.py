"""What is observed of the calls of tools: how many, how long, their spans."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from time import perf_counter_ns
from typing import Any

from snakepit_bridge.errors import BridgeError
from snakepit_bridge.events.model import Origin
from snakepit_bridge.events.tasks import Outcome, Timing
from snakepit_bridge.observation import Parent, parse_traceparent, write_traceparent
from snakepit_bridge.telemetry.metrics import Metrics
from snakepit_bridge.telemetry.otel import current_parent
from snakepit_bridge.telemetry.traces import ToolSpan, Traces

__all__ = ["ToolObservation", "ToolObserver"]


class ToolObserver:
    """Of all calls of one bridge; used on its event loop."""

    def __init__(self, metrics: Metrics, traces: Traces | None) -> None:
        """:param traces: where traces are recorded."""
        self.metrics = metrics
        self.traces = traces

    def observe(self, tool: str, session_id: str, origin: Origin) -> ToolObservation:
        """Look at a call.

        :param origin: of the request that it is made for.
        """
        return ToolObservation(self, tool, session_id, origin)


class ToolObservation:
    """One call of a tool."""

    __slots__ = ("_begun", "_ended", "_observer", "_span", "_tool", "origin")

    def __init__(self, observer: ToolObserver, tool: str, session_id: str, origin: Origin) -> None:
        self._observer = observer
        self._tool = tool
        self._begun = 0
        self._ended = False
        self._span: ToolSpan | None = None
        self.origin = origin
        """Of what the tool does: inside of its own span, where there is one."""
        parent = parse_traceparent(origin.traceparent, origin.tracestate)
        if observer.traces is not None and parent is not None:
            self._span = ToolSpan(parent, session_id, tool)
            traceparent = write_traceparent(
                parent.trace_id, self._span.span_id, sampled=parent.sampled
            )
            self.origin = origin._replace(traceparent=traceparent)

    def begin(self) -> None:
        """It runs now."""
        self._begun = perf_counter_ns()
        if self._span is not None:
            self._span.begun = self._begun
        self._observer.metrics.tools_running += 1

    def end(self, outcome: str) -> None:
        """It has ended, or nobody waits for it any more; the first to say so is right.

        :param outcome: one of ``metrics.OUTCOMES``.
        """
        if self._ended or not self._begun:
            return
        self._ended = True
        metrics, span, traces = self._observer.metrics, self._span, self._observer.traces
        metrics.tools_running -= 1
        sampled = span is not None and span.parent.sampled
        metrics.tool(self._tool, outcome).observe(
            (perf_counter_ns() - self._begun) / 1e9,
            span.parent.trace_id if span is not None and sampled else 0,
        )
        if span is not None and traces is not None:
            traces.tool_ended(span, self.origin.correlation_id, outcome)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the tool's span the current one of OpenTelemetry, for what is started inside."""
        if self._span is None:
            yield
            return
        trace_id, _, sampled, tracestate = self._span.parent
        with current_parent(Parent(trace_id, self._span.span_id, sampled, tracestate)):
            yield

    def change(self) -> Timing | None:
        """Where the times of a change are kept that the tool makes in this process."""
        return Timing() if self._span is not None and self._span.parent.sampled else None

    def changed(self, timing: Timing, command: str, result: Future[Any]) -> None:
        """A change was decided, or refused."""
        traces = self._observer.traces
        if traces is None or self._span is None:
            return
        offset = 0
        if not result.cancelled() and not isinstance(result.exception(), BridgeError):
            outcome = result.result()
            offset = outcome.answer.offset if isinstance(outcome, Outcome) else 0
        traces.changed(self._span, timing, command, offset)
