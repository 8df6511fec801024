"""StreamTelemetry without a transport: events go out, controls come in.

::

    emit (any thread) ─▶ each open stream: wanted? sampled? ─▶ its queue ─▶ its client
                                  ▲                         (1,024; full: dropped)
                        toggle, sampling, filter

Events are for looking on. None is kept for later, none is sent twice, and whoever reads too
slowly loses the newest: a tool never waits for them. Each stream has its own settings and
begins with everything.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from types import MappingProxyType

from google.protobuf.message import DecodeError

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge.errors import InvalidRequest, ResourceExhausted
from snakepit_bridge.events.selection import name_filter
from snakepit_bridge.telemetry import EVENTS, MEASUREMENTS
from snakepit_bridge.telemetry.samplers import Samplers

__all__ = ["Send", "TelemetryStream"]

logger = logging.getLogger(__name__)

QUEUE = 1_024
"""Events that wait for one client; as many as in Snakepit's own worker."""

MAX_STREAMS = 16
"""Open at a time. Snakepit opens one for each worker."""

MAX_PATTERNS = 64
MAX_PATTERN = 256
"""Characters; the longest name has 24."""

Send = Callable[[bytes], Awaitable[None]]

_NO_METADATA: Mapping[str, str] = MappingProxyType({})


class TelemetryStream:
    """Where a process emits its events, and the method StreamTelemetry, on one event loop."""

    def __init__(self) -> None:
        self._streams: tuple[_Open, ...] = ()
        """Replaced, never changed: other threads look at it."""
        self._closed = False
        self._samplers = Samplers(self.emit)
        self.open = False
        """Whether anybody listens."""

    @property
    def listeners(self) -> int:
        """How many streams are open."""
        return len(self._streams)

    def emit(
        self,
        name: str,
        measurements: Mapping[str, int | float],
        metadata: Mapping[str, str] = _NO_METADATA,
        correlation_id: str = "",
    ) -> None:
        """Tell all who listen of an event, from any thread.

        :param name: one of ``EVENTS``; sent as its parts.
        :param measurements: keys among ``MEASUREMENTS``, whole numbers within 64 bits.
        :raises ValueError: another name or key: a defect of the caller's.
        """
        if not self.open:
            return
        if name not in EVENTS or not measurements.keys() <= MEASUREMENTS:
            raise ValueError(
                f"{name} with {sorted(measurements)} is no event that Elixir knows: it takes "
                f"{sorted(EVENTS)} with {sorted(MEASUREMENTS)}"
            )
        listening = [stream for stream in self._streams if stream.takes(name)]
        if listening:
            raw = _event(name, measurements, metadata, correlation_id)
            for stream in listening:
                stream.offer(raw)

    async def stream_telemetry(self, requests: AsyncIterator[bytes], peer: str, send: Send) -> None:
        """Send events, as the controls that come in would have them, until ``close``.

        When the client has no more controls the events go on.

        :param requests: serialized ``TelemetryControl`` messages.
        :param peer: the client, for the log.
        :param send: sends a serialized ``TelemetryEvent``; waits for a client that is slow.
        :raises InvalidRequest: what came is no control.
        :raises ResourceExhausted: too many streams are open, or a control has too many patterns.
        """
        if self._closed:
            return
        if len(self._streams) >= MAX_STREAMS:
            raise ResourceExhausted(
                f"{MAX_STREAMS} telemetry streams are open, and no more are served: close one"
            )
        stream = _Open(peer, asyncio.get_running_loop())
        if not self._streams:
            self._samplers.start()
        self._streams = (*self._streams, stream)
        self.open = True
        try:
            self._samplers.sample()
            await stream.run(requests, send)
        finally:
            self._streams = tuple(each for each in self._streams if each is not stream)
            self.open = bool(self._streams)
            if not self._streams:
                self._samplers.stop()

    async def close(self) -> None:
        """End all streams, well and at once; what they have not sent is dropped. Idempotent."""
        self._closed = True
        ending = [stream.end() for stream in self._streams]
        if ending:
            await asyncio.wait(ending)


def _event(
    name: str,
    measurements: Mapping[str, int | float],
    metadata: Mapping[str, str],
    correlation_id: str,
) -> bytes:
    event = pb.TelemetryEvent(
        event_parts=name.split("."),
        metadata=metadata,
        timestamp_ns=time.time_ns(),
        correlation_id=correlation_id,
    )
    for key, value in measurements.items():
        if isinstance(value, int):
            event.measurements[key].int_value = value
        else:
            event.measurements[key].float_value = value
    return event.SerializeToString()


class _Open:
    """One open stream: its settings, and what waits to be sent on it."""

    def __init__(self, peer: str, loop: asyncio.AbstractEventLoop) -> None:
        self._peer = peer
        self._loop = loop
        # Reentrant: a tool may emit where an object is destroyed, and that may be in here.
        self._lock = threading.RLock()
        self._waiting: deque[bytes] = deque()
        self._dropped = 0
        self._over = False
        self._awake = asyncio.Event()
        self._woken = False
        self._ended: asyncio.Future[None] = loop.create_future()
        self._ending = loop.create_future()
        self._enabled = True
        self._passed = EVENTS
        self._wanted = EVENTS
        self._rate = 1.0
        self._sampled = EVENTS

    def takes(self, name: str) -> bool:
        """Whether this event is wanted, and not left out by the sampling."""
        if name not in self._wanted:
            return False
        rate = self._rate
        # Which ones go is no secret.
        return rate >= 1 or name not in self._sampled or random.random() < rate  # noqa: S311

    def offer(self, raw: bytes) -> None:
        """Queue an event, or drop it if too many wait."""
        with self._lock:
            if self._over:
                return
            if len(self._waiting) >= QUEUE:
                self._dropped += 1
                first = self._dropped == 1
            else:
                first = False
                self._waiting.append(raw)
                if not self._woken:
                    self._woken = True
                    self._loop.call_soon_threadsafe(self._awake.set)
        if first:
            logger.warning(
                "%s reads its telemetry too slowly: events beyond %d are dropped", self._peer, QUEUE
            )

    def end(self) -> asyncio.Future[None]:
        """Let ``run`` return; gives what is done when it has."""
        if not self._ending.done():
            self._ending.set_result(None)
        return self._ended

    async def run(self, requests: AsyncIterator[bytes], send: Send) -> None:
        """Send until ``end``, or until a control or the sending fails."""
        reading = asyncio.ensure_future(self._read(requests))
        writing = asyncio.ensure_future(self._write(send))
        tasks: set[asyncio.Future[None]] = {reading, writing, self._ending}
        try:
            while not self._ending.done():
                done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            with self._lock:
                self._over = True
                self._waiting.clear()
            reading.cancel()
            writing.cancel()
            await asyncio.wait((reading, writing))
            if self._dropped:
                logger.info("%d telemetry events for %s were dropped", self._dropped, self._peer)
            self._ended.set_result(None)

    async def _write(self, send: Send) -> None:
        while True:
            await self._awake.wait()
            self._awake.clear()
            with self._lock:
                self._woken = False
            while self._waiting:
                await send(self._waiting.popleft())

    async def _read(self, requests: AsyncIterator[bytes]) -> None:
        async for raw in requests:
            try:
                control = pb.TelemetryControl.FromString(raw)
            except DecodeError as error:
                raise InvalidRequest(
                    "the request is not a valid TelemetryControl: its bytes cannot be parsed"
                ) from error
            self._obey(control)

    def _obey(self, control: pb.TelemetryControl) -> None:
        kind = control.WhichOneof("control")
        if kind == "toggle":
            self._enabled = control.toggle.enabled
        elif kind == "sampling":
            patterns = control.sampling.event_patterns
            self._sampled = _matching(patterns, "sampling.event_patterns") if patterns else EVENTS
            # As Snakepit's worker: beyond 1 is all, below 0 and NaN is none.
            rate = control.sampling.sampling_rate
            self._rate = min(rate, 1.0) if rate > 0 else 0.0
        elif kind == "filter":
            allow, deny = control.filter.allow, control.filter.deny
            denied = _matching(deny, "filter.deny")
            self._passed = (_matching(allow, "filter.allow") if allow else EVENTS) - denied
        self._wanted = self._passed if self._enabled else frozenset()


def _matching(patterns: Iterable[str], field: str) -> frozenset[str]:
    """The events that any of the patterns matches."""
    given = tuple(patterns)
    longest = max(map(len, given), default=0)
    if len(given) > MAX_PATTERNS or longest > MAX_PATTERN:
        raise ResourceExhausted(
            f"{field} has {len(given)} patterns, the longest of {longest} characters: at most "
            f"{MAX_PATTERNS} of {MAX_PATTERN} are taken",
            field=field,
        )
    tests = [test for pattern in given if (test := name_filter(pattern)) is not None]
    return frozenset(name for name in EVENTS if any(test(name) for test in tests))
