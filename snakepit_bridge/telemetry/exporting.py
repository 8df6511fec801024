"""A process that exports spans for the bridge; see ``spans``, which starts it.

::

    frames ─▶ the main thread: spans of the SDK ─▶ BatchSpanProcessor ─▶ the exporter ─▶ receiver
                                                     one of each for each exporter

The SDK does the exporting, as its ``OTEL_*`` variables say. One thing is added: the main thread
reads no further while a processor's queue is full. The SDK would drop, and nobody would know how
much; so it is dropped where it is counted.

The process ends when its input does, after what it holds was sent, or could not be in time. What it
has to say it says on standard error, to which its standard output goes as well.

This module alone imports OpenTelemetry when it is imported, and nothing of the bridge imports it.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import entry_points
from typing import IO, Any

import orjson
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)

from snakepit_bridge.telemetry.spans import LENGTH, UNUSABLE

__all__ = ["main"]

logger = logging.getLogger(__name__)

NICENESS = 19
"""Added to the bridge's, which answers first."""

FLUSH = 10.0
"""Seconds for what is left, once the bridge is gone; a bridge that waits for it sets its own end.
An exporter's own timeout is as long (OTEL_EXPORTER_OTLP_TIMEOUT)."""

QUEUE = 2048
"""Spans; what ``OTEL_BSP_MAX_QUEUE_SIZE`` is unless set (OpenTelemetry's specification)."""

REPEAT = 60.0
"""Seconds before the same is said again: each batch fails while a receiver is away."""

MAX_SAID = 100
"""Different lines that are remembered for that."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_KINDS = tuple(SpanKind)
_STATUS = (StatusCode.UNSET, StatusCode.OK, StatusCode.ERROR)


def main() -> None:
    """Export what comes in until it ends.

    Arguments: the process id of the bridge, the level of its log, and the names of exporters with
    commas between them.
    """
    bridge, level = map(int, sys.argv[1:3])
    names = sys.argv[3].split(",")
    os.nice(NICENESS)
    _log_to_stderr(level)
    # A terminal's Ctrl-C, and whoever stops a service, signal the whole group. The bridge hears
    # it as well; its last spans come after that.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _hear_of_the_end_of(bridge)
    try:
        pipelines = [_Pipeline(_exporter(name)) for name in names]
        limits = SpanLimits()
    except Exception as error:  # noqa: BLE001 - exporters may be anybody's
        given = ", ".join(sorted(key for key in os.environ if key.startswith("OTEL_")))
        logger.warning(
            "no spans are exported: the exporter %s cannot be made of what is set (%s): %s",
            " or ".join(names),
            given,
            _in_one_line(error),
        )
        os._exit(UNUSABLE)
    with suppress(EOFError):  # which it ends with
        _export(sys.stdin.buffer, pipelines, limits)
    _flush(pipelines)
    # No handler of a library is to wait for what could not be sent.
    sys.stderr.flush()
    os._exit(0)


def _export(frames: IO[bytes], pipelines: Sequence[_Pipeline], limits: SpanLimits) -> None:
    """:raises EOFError: there are no more."""
    reading = _Reading(orjson.loads(_frame(frames)), limits)
    while True:
        for line in _frame(frames).splitlines():
            try:
                span = reading.span(orjson.loads(line))
            except Exception as error:  # noqa: BLE001 - those of others are none the worse for it
                logger.warning("a span cannot be exported: %s", _in_one_line(error))
                continue
            for pipeline in pipelines:
                pipeline.put(span)


def _frame(frames: IO[bytes]) -> bytes:
    """:raises EOFError: there are no more."""
    # Nothing is as good as the end, once ``_read_no_more_than_is_there`` was called.
    head = frames.read(LENGTH) or b""
    size = int.from_bytes(head, "big")
    content = frames.read(size)
    if len(head) < LENGTH or content is None or len(content) < size:
        raise EOFError
    return content


def _exporter(name: str) -> SpanExporter:
    """:raises Exception: whatever keeps it from being made."""
    (found, *_) = entry_points(group="opentelemetry_traces_exporter", name=name)
    made: SpanExporter = found.load()()
    return made


class _Pipeline(SpanExporter):
    """An exporter behind a processor that never has to drop."""

    def __init__(self, exporter: SpanExporter) -> None:
        """:raises ValueError: an ``OTEL_BSP_*`` variable is wrong."""
        self._exporter = exporter
        self._room = threading.Semaphore(int(os.environ.get("OTEL_BSP_MAX_QUEUE_SIZE") or QUEUE))
        """One for each span that may still be given to the processor."""
        self._processor = BatchSpanProcessor(self)

    def put(self, span: ReadableSpan) -> None:
        """Have it exported; waits while the queue is full."""
        self._room.acquire()
        self._processor.on_end(span)

    def finish(self) -> None:
        """Export what is left."""
        self._processor.shutdown()  # type: ignore[no-untyped-call] # the SDK's own omission

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Called by the processor, once it has taken these from its queue."""
        self._room.release(len(spans))
        return self._exporter.export(spans)

    def shutdown(self) -> None:
        """Called by the processor."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)


class _Reading:
    """Makes spans of the SDK of what ``spans`` wrote."""

    def __init__(self, head: Mapping[str, Any], limits: SpanLimits) -> None:
        self._resource = Resource(head["resource"], head["resource_schema_url"])
        self._scope = InstrumentationScope(*head["scope"])
        self._limits = limits

    def span(self, fields: Sequence[Any]) -> ReadableSpan:
        name, kind, trace, span_id, parent_id, start, end, attributes, *rest = fields
        status, text, tracestate, links, events, scope, remote_parent = rest
        trace_id = int(trace, 16)
        state = TraceState.from_header([tracestate]) if tracestate else None
        limits = self._limits
        return ReadableSpan(
            name,
            SpanContext(
                trace_id, span_id, is_remote=False, trace_flags=_SAMPLED, trace_state=state
            ),
            SpanContext(trace_id, parent_id, is_remote=remote_parent, trace_flags=_SAMPLED)
            if parent_id
            else None,
            resource=self._resource,
            attributes=self._attributes(attributes, limits.max_span_attributes),
            events=[
                Event(each, self._attributes(about, limits.max_event_attributes), at)
                for each, at, about in events[: limits.max_events]
            ],
            links=[
                Link(
                    SpanContext(int(linked, 16), to, is_remote=True, trace_flags=_SAMPLED),
                    self._attributes(about[0], limits.max_link_attributes) if about else None,
                )
                for linked, to, *about in links[: limits.max_links]
            ],
            kind=_KINDS[kind],
            status=Status(_STATUS[status], text if status == _ERROR and text else None),
            start_time=start,
            end_time=end,
            instrumentation_scope=InstrumentationScope(*scope) if scope else self._scope,
        )

    def _attributes(self, attributes: Mapping[str, Any], most: int | None) -> BoundedAttributes:
        # A number that is none (NaN) comes as null, which no attribute can be.
        given = {key: value for key, value in attributes.items() if value is not None}
        length = self._limits.max_span_attribute_length
        return BoundedAttributes(most, given, immutable=True, max_value_len=length)


_ERROR = _STATUS.index(StatusCode.ERROR)


def _flush(pipelines: Sequence[_Pipeline]) -> None:
    """Send what is left, for so long as there is time; an exporter may take as long as it likes."""
    deadline = time.monotonic() + FLUSH
    threads = [threading.Thread(target=each.finish, daemon=True) for each in pipelines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0))


def _hear_of_the_end_of(bridge: int) -> None:
    """Ask Linux for a signal then: what a tool forks off may hold our input open for ever."""
    signal.signal(signal.SIGUSR1, _read_no_more_than_is_there)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGUSR1, 0, 0, 0)
    if os.getppid() != bridge:  # it ended before we asked
        _read_no_more_than_is_there()


def _read_no_more_than_is_there(number: int = 0, frame: object = None) -> None:  # noqa: ARG001
    """A handler of signals; also has a read that waits come back."""
    os.set_blocking(sys.stdin.fileno(), False)


class _OneLine(logging.Formatter):
    """Says what went wrong without a traceback: it is what operators read, of code not theirs."""

    def formatException(self, ei: Any) -> str:  # noqa: N802, ANN401 - as logging names it
        return _in_one_line(ei[1])

    def formatStack(self, stack_info: str) -> str:  # noqa: ARG002, N802 - as logging names it
        return ""


class _Sparse(logging.Filter):
    """Says the same no more than once a minute."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[tuple[str, int, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        key = (record.name, record.lineno, str(record.msg))
        now = time.monotonic()
        if now - self._said.get(key, -REPEAT) < REPEAT:
            return False
        if len(self._said) >= MAX_SAID:
            self._said.clear()
        self._said[key] = now
        return True


def _in_one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _log_to_stderr(level: int) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _OneLine(f"%(asctime)s %(levelname)s %(name)s [spans {os.getpid()}]: %(message)s")
    )
    handler.addFilter(_Sparse())
    logging.basicConfig(level=level, handlers=[handler])


if __name__ == "__main__":
    main()
