"""What looks at a running bridge, put together: metrics, traces, the story in the log.

::

    interceptor ── each call ──▶ metrics, traces, refusals in the log
    committer ──── each commit ─▶ metrics, story
    watches ────── each turn ───▶ metrics, traces
    tools ──────── each call ───▶ metrics, traces

    metrics ◀── /metrics, on threads of its own        traces ──▶ a process of its own
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from google.protobuf.descriptor import ServiceDescriptor

from snakepit_bridge import elixir
from snakepit_bridge.events.committer import Committer
from snakepit_bridge.events.cursor import Cursor
from snakepit_bridge.events.ring import Committed
from snakepit_bridge.events.tasks import CommitObserver
from snakepit_bridge.observation import Observation
from snakepit_bridge.telemetry import logs
from snakepit_bridge.telemetry.calls import Finish, Interceptor, log_context, methods_of
from snakepit_bridge.telemetry.metrics import Metrics, WatchState, sampled_trace
from snakepit_bridge.telemetry.otel import Tracing, make_tracing
from snakepit_bridge.telemetry.story import StoryObserver
from snakepit_bridge.telemetry.tool_calls import ToolObserver
from snakepit_bridge.telemetry.traces import Traces
from snakepit_bridge.watch_hub import Hub, Watch

if TYPE_CHECKING:  # loaded only where metrics are served
    from snakepit_bridge.telemetry.discovery import Target
    from snakepit_bridge.telemetry.exposition import Exposition

__all__ = ["LAGGING", "Exposure", "MetricsSettings", "Observing"]

logger = logging.getLogger(__name__)

LAGGING = 1_000
"""Events behind the head from which a watch counts as slow; so do all that have to read the log."""

LAST_SPANS = 0.3
"""Seconds that the last spans get to leave, when the bridge stops."""


class Observing:
    """All of it, for one bridge."""

    def __init__(self, services: Iterable[ServiceDescriptor], tools: Iterable[str]) -> None:
        """Begin to count.

        :param services: that are served.
        :param tools: names of the tools that run here.
        """
        self.metrics = Metrics(methods_of(services), tools, elixir.ERRORS.values())
        self.committing: Sequence[CommitObserver] = (self.metrics, StoryObserver())
        self._tracing: Tracing | None = None
        self._traces: Traces | None = None

    def trace(self, instance_id: str) -> None:
        """Record traces from now on, if the environment asks for them.

        :param instance_id: of this start of this bridge.
        """
        self._tracing = make_tracing(instance_id, version("snakepit-bridge"))
        if self._tracing is not None:
            self._tracing.start()
            self._traces = Traces(self._tracing.export)

    @property
    def interceptor(self) -> Interceptor:
        """For the server's calls."""
        finish: list[Finish] = [self._refused]
        if self._traces is not None:
            finish.append(self._traces.call_ended)
        sampled = self._tracing.sampled if self._tracing is not None else None
        return Interceptor(self.metrics.calls, finish, sampled)

    @property
    def tools(self) -> ToolObserver:
        """For the calls of tools."""
        return ToolObserver(self.metrics, self._traces)

    def delivered(self, taken: Sequence[Committed], begun: int) -> None:
        """Changes were written to a watch; see ``watching.Delivered``."""
        now = time.perf_counter_ns()
        metrics = self.metrics
        metrics.delivered += len(taken)
        observe = metrics.delivery_seconds.observe
        for entry in taken:
            commit = entry.commit
            if commit is not None:
                trace_id = sampled_trace(entry.transaction.record.traceparent)
                observe((now - commit.ended) / 1e9, trace_id)
        if self._traces is not None:
            self._traces.delivered(taken, begun)

    def spans_dropped(self) -> int:
        return 0 if self._tracing is None else self._tracing.dropped

    def close(self) -> None:
        """Send the last spans."""
        if self._tracing is not None:
            self._tracing.close(LAST_SPANS)

    def _refused(self, observation: Observation, _status: str, _ended: int) -> None:
        error = observation.error
        if error is None:
            return
        self.metrics.rejected[error.reason] += 1
        logs.refused(
            error.reason,
            error.code,
            observation.method.rpartition("/")[2],
            error.message,
            field=error.field,
            **log_context(),
        )


class MetricsSettings(NamedTuple):
    """Where metrics and readiness are served over HTTP, and announced."""

    port: int | None = None
    """0 = any free one, ``None`` = they are not served."""
    host: str = "127.0.0.1"
    sd_dir: Path | None = None
    """Directory for the ``file_sd`` file by which Prometheus finds the port."""


class Exposure:
    """Metrics and readiness over HTTP, if they are wanted."""

    def __init__(self, settings: MetricsSettings, unready: Callable[[], str]) -> None:
        """Prepare.

        :param unready: why calls are not answered; empty = they are. Called on any thread.
        """
        self._settings = settings
        self._unready = unready
        self._exposition: Exposition | None = None
        self._target: Target | None = None

    def start(self, observing: Observing, committer: Committer, hub: Hub) -> None:
        """Begin, from any thread.

        :raises CannotExpose: the port is taken, or the host is not this machine's.
        :raises OSError: the directory cannot be written.
        """
        port, host, sd_dir = self._settings
        if port is None:
            return
        from snakepit_bridge.telemetry.collector import (  # noqa: PLC0415 - 25 ms of start-up
            BridgeCollector,
        )
        from snakepit_bridge.telemetry.discovery import announce  # noqa: PLC0415
        from snakepit_bridge.telemetry.exposition import (  # noqa: PLC0415
            Exposition,
            address,
            registry,
        )

        collected = registry()
        state = _State(committer, hub, observing.spans_dropped)
        collected.register(BridgeCollector(observing.metrics, state))
        self._exposition = Exposition(collected, self._unready, host, port)
        bound = self._exposition.start()
        if sd_dir is not None:
            self._target = announce(sd_dir, host, bound)
        logger.info("metrics on http://%s/metrics", address(host, bound))

    def stop(self) -> None:
        """End, after all else: until then it says why the bridge is not ready."""
        if self._target is not None:
            self._target.withdraw()
        if self._exposition is not None:
            self._exposition.close()


class _State:
    """Looked at on the threads of scrapes; nothing here waits for anybody."""

    def __init__(self, committer: Committer, hub: Hub, dropped: Callable[[], int]) -> None:
        self._committer = committer
        self._hub = hub
        self.spans_dropped = dropped
        self.engine = committer.engine.url.partition(":")[0]

    def sessions(self) -> tuple[int, int]:
        live = self._committer.live_sessions
        loaded = sum(log.committed.live for log in self._committer.all_loaded())
        return min(loaded, live), max(0, live - loaded)

    def watches(self) -> WatchState:
        watches: list[Watch] = list(self._hub.watches)
        lags = [watch.cursor.lag for watch in watches]
        slow = sum(
            lag > LAGGING or (lag > 0 and _has_to_read(watch.cursor))
            for watch, lag in zip(watches, lags, strict=True)
        )
        return WatchState(len(watches), slow, max(lags, default=0))

    def log_size(self) -> int:
        return self._committer.engine.size()


def _has_to_read(cursor: Cursor) -> bool:
    """Whether the ring no longer has what a watch needs next."""
    ring = cursor.log.ring
    return ring is None or not ring.after(cursor.position, 1)
