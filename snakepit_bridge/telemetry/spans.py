"""Spans on their way out of this process, at the cost of one append for whoever makes one.

::

    put ─▶ deque ─▶ one thread: builds, writes as JSON ─▶ pipe ─▶ exporting, a process ─▶ receiver
             │                                                            │
             └── full: counted as dropped ◀── takes no more ◀─────────────┘

The SDK's own way takes 60 µs of Python for a span, in threads that compete with the event loop for
the interpreter. This one takes 3 µs; the rest is paid for by a process of nice 19, which never
has more spans than its queue holds and reads no further until there is room. So whatever is slow
or gone out there, what is waiting is bounded here, and what is lost for it is counted here.

Nothing here needs OpenTelemetry.
"""

from __future__ import annotations

import logging
import os
import select
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import orjson

__all__ = [
    "CLIENT",
    "CONSUMER",
    "INTERNAL",
    "LENGTH",
    "PRODUCER",
    "SERVER",
    "UNUSABLE",
    "Scope",
    "Span",
    "SpanExport",
]

logger = logging.getLogger(__name__)

INTERNAL, SERVER, CLIENT, PRODUCER, CONSUMER = range(5)
"""Kinds of spans, as OpenTelemetry's ``SpanKind`` numbers them."""

LENGTH = 4
"""Bytes before each frame."""

UNUSABLE = 78
"""Exit code of an exporting process that cannot use what is configured: EX_CONFIG of sysexits.h."""

MAX_WAITING = 8192
"""Items that wait here: a second of spans at the rate of a busy bridge."""

INTERVAL = 0.05
"""Seconds in which spans collect before they are handed over."""

FRAME_SPANS = 100
"""Spans that are written between two system calls, so that this thread lets go of the interpreter
after about 300 µs."""

MAX_SPAN = 1024 * 1024
"""Bytes of one span. Receivers of OTLP take 4 MiB for a whole batch (Go's gRPC)."""

SLICE = 0.25
"""Seconds between two looks at whether the process lives while its pipe is full."""

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0
"""Seconds before a process that died is started anew; doubled each time that it dies again before
it lived that long."""

_BOOT = """\
import sys
sys.path[:] = sys.argv[4:]
from snakepit_bridge.telemetry import exporting
exporting.main()
"""
"""What ``python -m snakepit_bridge.telemetry.exporting`` is, where this process's own path is used;
see ``tools.processes``."""

Attributes = Mapping[str, object]
"""Values are str, bool, int, float, or sequences of one of these; others become text."""


class Scope(NamedTuple):
    """What made a span, in OpenTelemetry's words its instrumentation scope."""

    name: str
    version: str = ""
    schema_url: str = ""


class Span(NamedTuple):
    """One finished span."""

    name: str
    kind: int
    """``SERVER``, ..."""
    trace_id: int
    span_id: int
    parent_span_id: int
    """0 = none."""
    start_ns: int
    end_ns: int
    """Both in Unix nanoseconds."""
    attributes: Attributes = {}  # noqa: RUF012 - never written to, and a tuple cannot be changed
    status_error: bool = False
    status_text: str = ""
    """What went wrong; goes nowhere without ``status_error``."""
    tracestate: str = ""
    links: Sequence[tuple[int, int] | tuple[int, int, Attributes]] = ()
    """Each with its trace id and span id."""
    events: Sequence[tuple[str, int, Attributes]] = ()
    """Each with its name and Unix nanoseconds."""
    scope: Scope | None = None
    """``None`` = this export's own."""
    remote_parent: bool = False
    """Whether the parent belongs to another process."""
    status_ok: bool = False
    """Whether somebody declared it a success, which is more than not having failed."""


class SpanExport:
    """Hands spans to a process of its own, which sends them to whoever collects them.

    *Order*: spans of one thread leave in the order of their ``put``. *Loss*: what does not fit is
    dropped and counted in ``dropped``; what a process that died had not sent yet is lost, which is
    a warning in the log. *Bound*: ``max_waiting`` items here, and ``OTEL_BSP_MAX_QUEUE_SIZE`` in
    the process.
    """

    def __init__(
        self,
        exporters: Sequence[str],
        resource: Attributes,
        scope: Scope,
        *,
        resource_schema_url: str = "",
        max_waiting: int = MAX_WAITING,
    ) -> None:
        """Prepare.

        :param exporters: names of entry points in the group ``opentelemetry_traces_exporter``.
        :param resource: what is said of this process with all of its spans.
        :param scope: of spans that do not name another one.
        :param max_waiting: items that may wait.
        """
        self._exporters = tuple(exporters)
        self._head = orjson.dumps(
            {
                "resource": dict(resource),
                "resource_schema_url": resource_schema_url,
                "scope": list(scope),
            },
            default=_plain,
        )
        self._max_waiting = max_waiting
        self._waiting: deque[tuple[Any, ...]] = deque()
        self._dropped = 0
        self._counting = threading.Lock()
        """Held to count what is dropped, and for nothing else."""
        self._awake = False
        """Whether the thread will look at what waits without being told."""
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._deadline = float("inf")
        self._thread: threading.Thread | None = None
        self._child: _Child | None = None
        self._unusable = False
        self._pause = FIRST_PAUSE
        self._start_at = 0.0
        self._complained = False

    @property
    def dropped(self) -> int:
        """Spans that were not handed over since the start.

        There was no room for them, or they could not be made. What was dropped before its spans
        were made counts as one, however many there would have been.
        """
        return self._dropped

    @property
    def pid(self) -> int | None:
        """Of the process that exports now, if one lives."""
        child = self._child
        return child.process.pid if child is not None and child.process.poll() is None else None

    def start(self) -> None:
        """Start the thread, and through it the process. Neither is waited for."""
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        self._thread.start()

    def put(self, item: tuple[Any, ...]) -> None:
        """Hand over a span, or what makes spans: ``(builder, *arguments)``.

        Takes 0.1 µs and never waits; any thread may call it. ``builder(*arguments)`` gives an
        iterable of ``Span``s and is called once, later, on the thread of this export. What the
        arguments refer to lives until then, so they should be small; nobody may change them.

        :param item: a ``Span`` or such a tuple.
        """
        waiting = self._waiting
        if len(waiting) >= self._max_waiting:
            self._drop(1)
            return
        waiting.append(item)
        if not self._awake:
            self._awake = True
            self._wake.set()

    def close(self, timeout: float) -> None:
        """Hand over what waits, let the process send it, and end it. Idempotent.

        :param timeout: seconds; then the process is killed, whatever it has still to send.
        """
        self._deadline = min(self._deadline, time.monotonic() + timeout)
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            # It looks at the deadline all the time; only a builder that hangs may keep it longer.
            self._thread.join(max(self._deadline - time.monotonic(), 0) + SLICE)

    # What follows runs on the thread.

    def _run(self) -> None:
        try:
            self._restart_if_dead()
            while not self._closing.is_set():
                self._wake.wait()
                self._closing.wait(INTERVAL)
                self._hand_over()
                # Whoever appends after the next line wakes us; whoever did before is seen below.
                self._wake.clear()
                self._awake = False
                if self._waiting or self._closing.is_set():
                    self._awake = True
                    self._wake.set()
            self._hand_over()
        finally:
            # From now on nothing is taken.
            self._max_waiting = 0
            if self._child is not None:
                self._child.end(self._deadline)
            self._drop(len(self._waiting))
            self._waiting.clear()

    def _hand_over(self) -> None:
        """Send all that waits now. Returns with some left only if closing may take no longer."""
        while self._waiting and not self._late():
            if not self._restart_if_dead():
                if self._unusable:
                    self._drop(len(self._waiting))
                    self._waiting.clear()
                return
            frame = self._frame()
            if frame:
                self._send(frame)

    def _send(self, content: bytes) -> None:
        """Send a frame; again, if the process dies meanwhile: it does nothing with half of one."""
        while not self._late():
            if self._restart_if_dead():
                child = self._child
                assert child is not None
                if child.send(content, self._late):
                    return
            elif self._unusable:
                break
            else:
                self._closing.wait(SLICE)
                if self._closing.is_set():
                    break  # no process is started any more
        self._drop(content.count(b"\n"))

    def _frame(self) -> bytes:
        """Some of what waits, one span a line; may be empty."""
        lines: list[bytes] = []
        size = 0
        while self._waiting and len(lines) < FRAME_SPANS and size < MAX_SPAN:
            item = self._waiting.popleft()
            try:
                for span in (item,) if isinstance(item, Span) else item[0](*item[1:]):
                    line = _line(span)
                    if len(line) > MAX_SPAN:
                        raise ValueError(
                            f"a span {span.name!r} of {len(line)} bytes, more than {MAX_SPAN}"
                        )
                    lines.append(line)
                    size += len(line)
            except Exception:  # whatever a builder raises, the spans of others go on
                self._drop(1)
                if not self._complained:
                    self._complained = True
                    logger.exception("a span was dropped; further ones are only counted")
        return b"".join(lines)

    def _late(self) -> bool:
        return time.monotonic() >= self._deadline

    def _drop(self, count: int) -> None:
        with self._counting:
            self._dropped += count

    def _restart_if_dead(self) -> bool:
        """Whether there is a process. One that is gone is started anew, if its time has come."""
        child = self._child
        if child is not None:
            code = child.process.poll()
            if code is None:
                return True
            self._bury(child, code)
        # A close right after the start still sends; but no process is started twice for it.
        done = self._closing.is_set() and self._start_at > 0
        if self._unusable or done or time.monotonic() < self._start_at:
            return False
        try:
            self._child = _Child(self._exporters)
        except OSError as error:
            logger.warning("no spans are exported: the process for it cannot be started: %s", error)
            self._put_off()
            return False
        return self._child.send(self._head, self._late)

    def _bury(self, child: _Child, code: int) -> None:
        self._child = None
        child.close()
        if code == UNUSABLE:  # it said why
            self._unusable = True
            return
        if time.monotonic() - child.started > LONGEST_PAUSE:
            self._pause = FIRST_PAUSE
        logger.warning(
            "the process that exports spans ended (code %d), with what it had not sent yet; "
            "a new one is started in %d s",
            code,
            self._pause,
        )
        self._put_off()

    def _put_off(self) -> None:
        self._start_at = time.monotonic() + self._pause
        self._pause = min(self._pause * 2, LONGEST_PAUSE)


class _Child:
    """One process, from its start to its end."""

    def __init__(self, exporters: Sequence[str]) -> None:
        """:raises OSError: it cannot be started."""
        self.started = time.monotonic()
        self.process = subprocess.Popen(  # noqa: S603 - this interpreter and code of ours
            (
                *(sys.executable, "-P", "-c", _BOOT),
                *(str(os.getpid()), str(logging.root.level), ",".join(exporters)),
                *(entry or str(Path.cwd()) for entry in sys.path if isinstance(entry, str)),
            ),
            stdin=subprocess.PIPE,
            stdout=2,
            bufsize=0,
        )
        os.set_blocking(self._pipe.fileno(), False)

    @property
    def _pipe(self) -> IO[bytes]:
        assert self.process.stdin is not None
        return self.process.stdin

    def send(self, content: bytes, give_up: Callable[[], bool]) -> bool:
        """Send one frame; ``False`` if the process ended before it had all of it.

        :param give_up: asked while the pipe is full; if it says so, the process is killed, as
            what it has of the frame is of no use.
        """
        pipe = self._pipe
        view = memoryview(len(content).to_bytes(LENGTH, "big") + content)
        # Not ``select``, which takes no files above 1024.
        poll = select.poll()
        poll.register(pipe, select.POLLOUT)
        while view:
            try:
                written = os.write(pipe.fileno(), view)
            except BlockingIOError:
                if give_up():
                    self.process.kill()
                    return False
                poll.poll(SLICE * 1000)
            except BrokenPipeError:
                # Gone, or about to be: without its input it has nothing to do.
                self.process.kill()
                self.process.wait()
                return False
            else:
                view = view[written:]
        return True

    def end(self, deadline: float) -> None:
        """Close its input, so that it sends what it has, and see that it is gone by then."""
        self.close()
        try:
            code = self.process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            logger.warning("spans that could not be sent in time are lost")
            self.process.kill()
            self.process.wait()
        else:
            if code not in {0, UNUSABLE}:
                logger.warning(
                    "the process that exports spans ended (code %d), with what it had not sent yet",
                    code,
                )

    def close(self) -> None:
        with suppress(BrokenPipeError):  # nothing is buffered, so there is nothing to lose
            self._pipe.close()


def _line(span: Span) -> bytes:
    """A span as ``exporting`` reads it. Trace ids are hexadecimal: JSON's integers have 64 bits."""
    fields = (
        span.name,
        span.kind,
        f"{span.trace_id:032x}",
        span.span_id,
        span.parent_span_id,
        span.start_ns,
        span.end_ns,
        span.attributes,
        2 if span.status_error else 1 if span.status_ok else 0,
        span.status_text,
        span.tracestate,
        [(f"{link[0]:032x}", *link[1:]) for link in span.links] if span.links else (),
        span.events,
        None if span.scope is None else tuple(span.scope),
        span.remote_parent,
    )
    try:
        return orjson.dumps(fields, default=_plain, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:
        # A text that is no Unicode, an integer of more than 64 bits: seldom, and the tools' own.
        return orjson.dumps(_clean(fields), option=orjson.OPT_APPEND_NEWLINE)


def _plain(value: object) -> object:
    """What orjson does not know of itself: other mappings and sequences; all else is a text."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return list(value)
    return _text(value)


def _clean(value: object) -> object:
    """The same of anything, piece by piece."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**64 else str(value)
    if isinstance(value, Mapping):
        return {_text(key): _clean(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview):
        return [_clean(each) for each in value]
    return _text(value)


def _text(value: object) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode("utf-8", "backslashreplace")
    return str(value).encode("utf-8", "backslashreplace").decode()
