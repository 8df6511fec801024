"""Events for Elixir's ``:telemetry``: what may be sent, and sending it from a tool.

Adapters written for Snakepit 0.13 use ``emit`` and ``span``. They reach the stream of the
process that they run in, while Elixir has one open; nothing here ever raises, waits, or
makes a tool fail.
"""

from __future__ import annotations

import logging
import math
import operator
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

__all__ = [
    "EVENTS",
    "MEASUREMENTS",
    "Emits",
    "attach",
    "detach",
    "emit",
    "span",
]

logger = logging.getLogger(__name__)

EVENTS = frozenset(
    {
        "python.call.start",
        "python.call.stop",
        "python.call.exception",
        "tool.execution.start",
        "tool.execution.stop",
        "tool.execution.exception",
        "tool.result_size",
        "python.memory.sampled",
        "python.cpu.sampled",
        "python.gc.completed",
        "python.error.occurred",
    }
)
"""All that Elixir takes: names become atoms there, which are never freed (Snakepit 0.13,
``Snakepit.Telemetry.Naming``)."""

MEASUREMENTS = frozenset(
    {"duration", "duration_ms", "bytes", "count", "system_time", "latency_ms", "rss_bytes"}
)
"""The keys, for the same reason. ``duration`` is in nanoseconds, Elixir's native unit
there; ``system_time`` in Unix nanoseconds."""

MAX_METADATA = 32
"""Entries of a tool's own event."""

MAX_TEXT = 512
"""Characters of each of their keys and values, and of a correlation id."""

_INT64 = 2**63


class Emits(Protocol):
    """What events are given to: a ``TelemetryStream``."""

    open: bool

    def emit(
        self,
        name: str,
        measurements: Mapping[str, int | float],
        metadata: Mapping[str, str] = ...,
        correlation_id: str = ...,
    ) -> None: ...


class _Process:
    """The stream of this process, if it has one."""

    stream: Emits | None = None


def attach(stream: Emits) -> None:
    """Send what tools emit in this process to a stream."""
    _Process.stream = stream


def detach() -> None:
    """Send it nowhere."""
    _Process.stream = None


def emit(
    name: str,
    measurements: Mapping[str, object],
    metadata: Mapping[str, object] | None = None,
    correlation_id: str | None = None,
) -> None:
    """Emit an event from a tool; never an error.

    An event that is not among ``EVENTS`` goes to the debug log only, and so does a measurement
    that is not among ``MEASUREMENTS`` or no number.

    :param name: dotted, as ``tool.result_size``.
    """
    if name not in EVENTS:
        logger.debug("not sent, for Elixir does not know it: %s", name)
        return
    stream = _Process.stream
    if stream is None or not stream.open:
        return
    numbers = {
        key: number
        for key, value in measurements.items()
        if key in MEASUREMENTS and (number := _number(value)) is not None
    }
    if len(numbers) < len(measurements):
        left_out = ", ".join(_text(key) for key in measurements if key not in numbers)
        logger.debug("%s goes without some of its measurements: %s", name, left_out)
    texts = {
        _text(key): _text(value)
        for (key, value), _ in zip((metadata or {}).items(), range(MAX_METADATA), strict=False)
    }
    stream.emit(name, numbers, texts, _text(correlation_id or ""))


@contextmanager
def span(
    name: str,
    metadata: Mapping[str, object] | None = None,
    correlation_id: str | None = None,
) -> Iterator[None]:
    """Emit ``name.start``, and at the end ``name.stop`` or ``name.exception``.

    :param name: dotted, as ``tool.execution``.
    """
    emit(f"{name}.start", {"system_time": time.time_ns()}, metadata, correlation_id)
    begun = time.perf_counter_ns()
    try:
        yield
    except BaseException as error:
        about = {**(metadata or {}), "error_type": type(error).__name__, "error_message": error}
        duration = time.perf_counter_ns() - begun
        emit(f"{name}.exception", {"duration": duration}, about, correlation_id)
        raise
    duration = time.perf_counter_ns() - begun
    emit(f"{name}.stop", {"duration": duration}, metadata, correlation_id)


def _number(value: object) -> int | float | None:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    try:
        whole = operator.index(value)  # type: ignore[arg-type] # also of booleans, and of NumPy's
    except TypeError:
        return None
    return whole if -_INT64 <= whole < _INT64 else None


def _text(value: object) -> str:
    """What protobuf takes as a string, of any object at all."""
    try:
        text = str(value)
    except Exception:  # noqa: BLE001 - a tool's own __str__ may raise anything
        text = f"<{type(value).__name__}>"
    return text[:MAX_TEXT].encode("utf-8", "replace").decode()
