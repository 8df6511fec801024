"""The metrics of a bridge as Prometheus gets them, made when it asks."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import version

from prometheus_client.core import (
    CounterMetricFamily,
    Exemplar,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from snakepit_bridge.telemetry import names
from snakepit_bridge.telemetry.histogram import Histogram
from snakepit_bridge.telemetry.metrics import Metrics, State

__all__ = ["BridgeCollector"]

Bucket = tuple[str, float] | tuple[str, float, Exemplar]


class BridgeCollector(Collector):
    """Reads the numbers of one bridge, on the thread of the scrape."""

    def __init__(self, metrics: Metrics, state: State) -> None:
        self._metrics = metrics
        self._state = state

    def collect(self) -> Iterator[Metric]:
        yield from self._of_calls()
        yield from self._of_log()
        yield from self._of_watches()
        yield from self._of_tools()
        rejected = _counter(names.REJECTED)
        for reason, count in self._metrics.rejected.items():
            rejected.add_metric([reason], count)
        yield rejected

    def _of_calls(self) -> Iterator[Metric]:
        started, received = _counter(names.GRPC_STARTED), _counter(names.GRPC_RECEIVED)
        sent, handled = _counter(names.GRPC_SENT), _counter(names.GRPC_HANDLED)
        seconds = _histogram(names.GRPC_HANDLING_SECONDS)
        for counts in self._metrics.calls.values():
            labels = counts.labels
            # The ends before the beginnings: so no scrape sees more ends than beginnings.
            for code, count in counts.handled.items():
                handled.add_metric([*labels, code], count)
            seconds.add_metric(labels, _buckets(counts.seconds), counts.seconds.sum)
            sent.add_metric(labels, counts.sent)
            received.add_metric(labels, counts.received)
            started.add_metric(labels, counts.started)
        yield from (started, handled, received, sent, seconds)

    def _of_log(self) -> Iterator[Metric]:
        for metric, numbers in (
            (names.LOG_APPEND_SECONDS, self._metrics.append_seconds),
            (names.LOG_COMMIT_SECONDS, self._metrics.commit_seconds),
            (names.LOG_COMMIT_EVENTS, self._metrics.commit_events),
            (names.PROJECTION_REBUILD_SECONDS, self._metrics.rebuild_seconds),
            (names.SNAPSHOT_SECONDS, self._metrics.snapshot_seconds),
        ):
            yield _filled(metric, numbers)
        appended = _counter(names.LOG_BYTES)
        appended.add_metric([], self._metrics.log_bytes)
        yield appended
        events = _counter(names.EVENTS)
        for kind, count in self._metrics.events.items():
            events.add_metric([kind], count)
        yield events
        state = self._state
        yield _gauge(names.LOG_SIZE, state.log_size())
        sessions = GaugeMetricFamily(names.SESSIONS.name, names.SESSIONS.help, labels=["state"])
        loaded, idle = state.sessions()
        sessions.add_metric(["loaded"], loaded)
        sessions.add_metric(["idle"], idle)
        yield sessions
        info = GaugeMetricFamily(
            names.BUILD_INFO.name, names.BUILD_INFO.help, labels=names.BUILD_INFO.labels
        )
        info.add_metric([version("snakepit-bridge"), state.engine, platform.python_version()], 1)
        yield info
        dropped = _counter(names.SPANS_DROPPED)
        dropped.add_metric([], state.spans_dropped())
        yield dropped

    def _of_watches(self) -> Iterator[Metric]:
        delivered = _counter(names.WATCH_DELIVERED)
        delivered.add_metric([], self._metrics.delivered)
        yield delivered
        yield _filled(names.WATCH_DELIVERY_SECONDS, self._metrics.delivery_seconds)
        watches = self._state.watches()
        yield _gauge(names.WATCHERS, watches.open)
        yield _gauge(names.SLOW_WATCHERS, watches.slow)
        yield _gauge(names.WATCH_LAG, watches.lag)

    def _of_tools(self) -> Iterator[Metric]:
        seconds = _histogram(names.TOOL_SECONDS)
        for labels, numbers in self._metrics.tools.items():
            seconds.add_metric(labels, _buckets(numbers), numbers.sum)
        yield seconds
        yield _gauge(names.TOOLS_RUNNING, self._metrics.tools_running)


def _counter(metric: names.Metric) -> CounterMetricFamily:
    return CounterMetricFamily(metric.name, metric.help, labels=metric.labels)


def _gauge(metric: names.Metric, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(metric.name, metric.help, value=value)


def _histogram(metric: names.Metric) -> HistogramMetricFamily:
    return HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)


def _filled(metric: names.Metric, numbers: Histogram) -> HistogramMetricFamily:
    family = _histogram(metric)
    family.add_metric([], _buckets(numbers), numbers.sum)
    return family


def _buckets(numbers: Histogram) -> list[Bucket]:
    found: list[Bucket] = []
    for bound, count, seen in numbers.buckets():
        upper = str(floatToGoString(bound))  # type: ignore[no-untyped-call] # without types
        if seen is None:
            found.append((upper, count))
            continue
        trace_id, value, at = seen
        found.append((upper, count, Exemplar({"trace_id": f"{trace_id:032x}"}, value, at)))
    return found
