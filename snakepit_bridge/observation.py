"""What is known of one call while it runs: its trace, its correlation id, how it is ending.

The interceptor (``telemetry.calls``) makes one for each call and reads it at the end; in between
whoever learns something writes it here. Plain numbers and strings, for each costs time in every
call; spans and log lines are made of them elsewhere, later, and only where somebody looks.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from random import getrandbits
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import quote

from snakepit_bridge.errors import BridgeError
from snakepit_bridge.events.model import Origin
from snakepit_bridge.events.tasks import Timing
from snakepit_bridge.metadata_checks import is_label

__all__ = [
    "CORRELATION_HEADER",
    "Observation",
    "Parent",
    "Sampled",
    "current",
    "new_span_id",
    "parse_traceparent",
    "write_traceparent",
]

CORRELATION_HEADER = "x-snakepit-correlation-id"

_TRACEPARENT = re.compile(
    r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII
)


class Parent(NamedTuple):
    """The span on the other side, as W3C Trace Context tells of it."""

    trace_id: int
    span_id: int
    sampled: bool
    tracestate: str = ""


Sampled = Callable[[int, Parent | None, str], bool]
"""Whether a trace is recorded: takes its id, the parent, and the name of the span."""


def parse_traceparent(text: str, tracestate: str = "") -> Parent | None:
    """Read a ``traceparent``; ``None`` when it is none, which is to be ignored (W3C, 3.2)."""
    found = _TRACEPARENT.fullmatch(text)
    if found is None:
        return None
    version, trace, span, flags, more = found.groups()
    trace_id, span_id = int(trace, 16), int(span, 16)
    if version == "ff" or (version == "00" and more) or not trace_id or not span_id:
        return None
    if not is_label(tracestate):
        tracestate = ""
    return Parent(trace_id, span_id, bool(int(flags, 16) & 1), tracestate)


def write_traceparent(trace_id: int, span_id: int, *, sampled: bool) -> str:
    return f"00-{trace_id:032x}-{span_id:016x}-0{sampled:d}"


def new_span_id() -> int:
    """Random and not 0, which means none."""
    return getrandbits(64) or 1


class Observation(Timing):
    """One call, from its first byte to its last.

    Its place in a trace is settled once: when a request has been read, as it may name its parent
    in its metadata; else from the headers, when it is asked for.
    """

    __slots__ = (
        "_sampled",
        "begun",
        "correlation_id",
        "error",
        "head",
        "headers",
        "method",
        "offset",
        "parent",
        "sampled",
        "session_id",
        "settled",
        "span_id",
        "status",
        "trace_id",
        "traceparent",
        "tracestate",
    )

    def __init__(
        self,
        method: str,
        headers: Iterable[tuple[str, str | bytes]],
        begun: int,
        sampled: Sampled | None,
    ) -> None:
        """Begin it.

        :param method: full name, as ``snakepit.bridge.BridgeService/Ping``.
        :param begun: as all times here of ``time.perf_counter_ns``.
        :param sampled: where traces are recorded; else a trace is only passed on.
        """
        self.decide_begun = 0
        self.decide_ended = 0
        self.commit = None
        self.method = method
        self.headers = headers
        self.begun = begun
        self._sampled = sampled
        self.settled = False
        self.session_id = ""
        self.offset = 0
        self.head = b""
        """The first bytes of the request, where it comes as bytes."""
        self.error: BridgeError | None = None
        """The refusal that the client is told."""
        self.status = ""
        """How the call is being ended, as ``grpc.StatusCode`` names it; empty = not yet."""
        self.parent: Parent | None = None
        self.trace_id = 0
        """0 = none, and so with ``span_id``."""
        self.span_id = 0
        self.sampled = False
        self.traceparent = ""
        """Of this call's span, for what it causes; empty = there is none."""
        self.tracestate = ""
        self.correlation_id = ""

    def identify(self, session_id: str, origin: Origin) -> Origin:
        """A request was read: what it says of its origin, with its own place in the trace."""
        self.session_id = session_id
        given = origin.correlation_id
        self._settle(origin.traceparent, origin.tracestate, given)
        return Origin(
            origin.source,
            given or self.correlation_id,  # one that cannot be one is for ``decide`` to refuse
            self.traceparent,
            self.tracestate,
            origin.tool_call_id,
        )

    def settle(self, metadata: Mapping[str, str] = MappingProxyType({})) -> None:
        """See that trace and correlation are known.

        :param metadata: of the request, which is asked for what the headers do not say.
        """
        if self.settled:
            return
        traceparent = tracestate = correlation_id = ""
        for key, value in self.headers:
            if key == "traceparent":
                traceparent = str(value)
            elif key == "tracestate":
                tracestate = str(value)
            elif key == CORRELATION_HEADER:
                correlation_id = str(value)
        if parse_traceparent(traceparent) is None:
            traceparent, tracestate = (
                metadata.get("traceparent", ""),
                metadata.get("tracestate", ""),
            )
        if not (correlation_id and is_label(correlation_id)):
            correlation_id = metadata.get("correlation_id", "")
        self._settle(traceparent, tracestate, correlation_id)

    def header(self) -> tuple[str, str]:
        """The correlation id as it goes back to the client; headers hold visible ASCII only."""
        self.settle()
        text = self.correlation_id
        return CORRELATION_HEADER, text if text.isascii() and text.isprintable() else quote(text)

    def _settle(self, traceparent: str, tracestate: str, correlation_id: str) -> None:
        with _SETTLING:
            if self.settled:
                return
            self.correlation_id = (
                correlation_id
                if correlation_id and is_label(correlation_id)
                else f"{getrandbits(64):016x}"
            )
            parent = parse_traceparent(traceparent, tracestate) if traceparent else None
            if parent is not None:
                self.parent = parent
                self.trace_id, self.tracestate = parent.trace_id, parent.tracestate
            if self._sampled is not None:
                if parent is None:
                    self.trace_id = getrandbits(128) or 1
                self.span_id = new_span_id()
                self.sampled = self._sampled(self.trace_id, parent, self.method)
                self.traceparent = write_traceparent(
                    self.trace_id, self.span_id, sampled=self.sampled
                )
            elif parent is not None:
                self.span_id, self.traceparent = parent.span_id, traceparent
            self.settled = True


_SETTLING = threading.Lock()
"""Held to settle one: the committer may read a request while its client goes away. A lock for
each would cost more than waiting for this one, which is held for a microsecond."""

current: ContextVar[Observation | None] = ContextVar("observation", default=None)
"""The call that runs, in its handler and in what that starts."""
