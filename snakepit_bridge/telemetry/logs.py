"""The log of a process: lines on standard error, made where something happens, written elsewhere.

::

    logger.info ─▶ record, with who asked ─▶ queue ─▶ one thread: a line of text ─▶ write(2)
    (any thread)                     (4,096; full: dropped, and counted)

Modules log by the standard ``logging``; fields go into ``extra``. Whoever logs never waits: not for
a terminal, and not for a pipe that nobody reads. What cannot be kept is dropped, and how much it
was is said when there is room again.

No value is ever logged, of a variable, an argument, a result or metadata, nor a token. Names are.
"""

from __future__ import annotations

import logging
import os
import queue
import re
import select
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, Literal

import orjson
import structlog
from structlog.dev import Column, ConsoleRenderer, KeyValueColumnFormatter, plain_traceback
from structlog.stdlib import ProcessorFormatter

__all__ = [
    "FORMATS",
    "Context",
    "Format",
    "configure",
    "flush",
    "format_in_use",
    "of_bridge",
    "refused",
    "trace_of",
]

logger = logging.getLogger(__name__)

Format = Literal["auto", "json", "console"]
FORMATS: Final = ("auto", "json", "console")

Context = Callable[[], Mapping[str, str]]
"""Gives the fields of the call that the current thread or task works for."""

QUEUE = 4_096
"""Records that wait to be written: about 2 MiB of ordinary ones."""

RESERVE = 256
"""More that may wait if they are warnings or worse."""

MAX_TEXT = 16 * 1024
"""Characters of a message; the rest is left out. What tools print comes in lines of 8 KiB."""

MAX_EXCEPTION = 64 * 1024
"""Characters of a traceback; left out is what is furthest from the error."""

LONGEST_FLUSH = 0.25
"""Seconds that the end of a process waits for whoever reads its standard error."""

REFUSAL_EVERY = 10.0
"""Seconds between two lines about requests that were refused for the same reason."""

MAX_REASONS = 64
"""Reasons that are told apart. Ours are about thirty; a shared bridge may answer with its own."""

_STDERR = 2
"""The file, not ``sys.stderr``, whose lock a thread may hold that waits for a reader."""

_NOTHING: Mapping[str, str] = MappingProxyType({})


def _no_context() -> Mapping[str, str]:
    return _NOTHING


def configure(
    level: int,
    format: Format = "console",  # noqa: A002 - what people call it
    *,
    context: Context = _no_context,
    threaded: bool = True,
    fields: Mapping[str, str | int] = MappingProxyType({}),
) -> None:
    """Set up the log of this process; replaces what an earlier call set up.

    :param level: lowest that is shown, as of ``logging``.
    :param format: ``json`` = an object a line; ``console`` = text for people, coloured on a
        terminal unless NO_COLOR is set; ``auto`` = ``console`` on a terminal, else ``json``.
    :param context: asked for each record, where it is made; its fields become the line's.
    :param threaded: whether a thread of its own writes. A process that may be killed at any
        moment, and whose last words matter, writes at once.
    :param fields: on every line.
    """
    terminal = os.isatty(_STDERR)
    if format == "auto":
        format = "console" if terminal else "json"  # noqa: A001 - as above
    render = _json if format == "json" else _console(colours=terminal and not _no_colour())
    formatter = ProcessorFormatter(
        processors=[_line, *((_for_people,) if format == "console" else ()), render],
        use_get_message=True,
    )
    handler = _Handler(formatter, context, fields, threaded=threaded)
    root = logging.getLogger()
    if _Process.handler is not None:
        root.removeHandler(_Process.handler)
        _Process.handler.close()
    _Process.handler, _Process.format = handler, format
    root.addHandler(handler)
    root.setLevel(level)


def flush(timeout: float = LONGEST_FLUSH) -> bool:
    """Wait until all that was logged so far is written; gives whether that was in time.

    :param timeout: seconds.
    """
    handler = _Process.handler
    return handler is None or handler.flushed(timeout)


def format_in_use() -> Format:
    """How this process writes: ``json`` or ``console``; what it starts is to do the same."""
    return _Process.format


def trace_of(traceparent: str) -> dict[str, str]:
    """``trace_id`` and ``span_id`` of a W3C traceparent; nothing of one that is none."""
    found = _TRACEPARENT.match(traceparent)
    return found.groupdict() if found else {}


_TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?P<trace_id>[0-9a-f]{32})-(?P<span_id>[0-9a-f]{16})-")


class _Process:
    handler: _Handler | None = None
    format: Format = "console"


def _no_colour() -> bool:
    return bool(os.environ.get("NO_COLOR"))  # https://no-color.org: set, and not empty


# On the way in.


class _Handler(logging.Handler):
    """Takes records as they are made, on the thread that makes them."""

    def __init__(
        self,
        formatter: logging.Formatter,
        context: Context,
        fields: Mapping[str, str | int],
        *,
        threaded: bool,
    ) -> None:
        super().__init__()
        self.formatter = formatter
        self._context = context
        self._fields = fields
        self._writer = _Writer(self.text) if threaded else None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            record = _kept(record, {**self._fields, **self._context()})
            if self._writer is not None:
                self._writer.put(record)
            else:
                _write(self.text(record))
        except Exception:  # noqa: BLE001 - logging never fails whoever logs; it tells of itself
            self.handleError(record)

    def text(self, record: logging.LogRecord) -> str:
        """The line that a record becomes."""
        try:
            return self.format(record)
        except Exception as error:  # noqa: BLE001 - the next line can be written
            return f"a line of {record.name} could not be made: {type(error).__name__}"

    def flushed(self, timeout: float) -> bool:
        """Wait until all is written; gives whether it is."""
        return self._writer is None or self._writer.flush(timeout)

    def flush(self) -> None:
        """Wait a little; ``logging`` calls this when the interpreter ends."""
        self.flushed(LONGEST_FLUSH)

    def close(self) -> None:
        """Write at once from here on: no thread outlives the interpreter."""
        self.flush()
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.stop()
        super().close()

    def after_fork(self) -> None:
        """In a child, which has neither the thread nor a use for what waited."""
        self._writer = None


def _after_fork() -> None:
    if _Process.handler is not None:
        _Process.handler.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)

_tracebacks = logging.Formatter()


def _kept(record: logging.LogRecord, context: Mapping[str, str | int]) -> logging.LogRecord:
    """A copy that refers to nothing that lives on: its message is made, its traceback is text.

    An error is let go of, with the frames and requests that it holds, as soon as it is answered.
    """
    kept = object.__new__(logging.LogRecord)
    kept.__dict__.update(record.__dict__)
    message = record.getMessage()
    if len(message) > MAX_TEXT:
        message = f"{message[:MAX_TEXT]}... ({len(message):,} characters)"
    kept.msg, kept.args = message, None
    exception = ""
    if record.exc_info:
        exception = _tracebacks.formatException(record.exc_info)
    elif record.exc_text:
        exception = record.exc_text
    if record.stack_info:
        exception = f"{exception}\n{record.stack_info}" if exception else record.stack_info
    if len(exception) > MAX_EXCEPTION:
        exception = f"...{exception[-MAX_EXCEPTION:]}"
    kept.exc_info = kept.exc_text = kept.stack_info = None
    kept.bridge_context, kept.bridge_exception = context, exception
    return kept


# On the way out.


class _Writer:
    """A bounded queue, and the thread that writes what is in it."""

    def __init__(self, text: Callable[[logging.LogRecord], str]) -> None:
        self._text = text
        # A SimpleQueue can be put to where that is interrupted by a finalizer that logs.
        self._queue: queue.SimpleQueue[logging.LogRecord | threading.Event | None]
        self._queue = queue.SimpleQueue()
        self._dropped = 0
        """Changed where records are put, under the handler's lock."""
        self._told = 0
        """How many of those were told of; changed by the thread."""
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def put(self, record: logging.LogRecord) -> None:
        """Queue a record, or drop it; the handler's lock is held."""
        room = QUEUE if record.levelno < logging.WARNING else QUEUE + RESERVE
        if self._queue.qsize() >= room:
            self._dropped += 1
        else:
            self._queue.put(record)

    def flush(self, timeout: float) -> bool:
        """Wait until all that is queued is written; gives whether it is."""
        written = threading.Event()
        self._queue.put(written)
        return written.wait(timeout)

    def stop(self) -> None:
        """Have the thread end when it has written what is queued."""
        self._queue.put(None)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if isinstance(item, threading.Event):
                self._tell_dropped()
                item.set()
                continue
            _write(self._text(item))
            if self._queue.qsize() < QUEUE // 2:
                self._tell_dropped()

    def _tell_dropped(self) -> None:
        count = self._dropped - self._told
        if not count:
            return
        self._told += count
        message = f"{count} lines were dropped: standard error is read too slowly"
        record = logging.LogRecord(__name__, logging.WARNING, "", 0, message, None, None)
        _write(self._text(_kept(record, {"dropped": count})))


def _write(text: str) -> None:
    """Write a line at once; up to 4 KiB no other process gets between (``PIPE_BUF``)."""
    rest = memoryview(text.encode("utf-8", "backslashreplace") + b"\n")
    while rest:
        try:
            rest = rest[os.write(_STDERR, rest) :]
        except BlockingIOError:  # whoever launched us made it so; it is no reason to lose a line
            select.select((), (_STDERR,), ())
        except OSError:
            return  # closed at the other end: nobody is left who could be told


# What a line looks like.


_STANDARD = frozenset(
    (*vars(logging.makeLogRecord({})), "message", "asctime", "bridge_context", "bridge_exception")
)


def _line(_: object, __: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """All that a line says, in the order in which it says it."""
    record = event["_record"]
    line = {
        "timestamp": datetime.fromtimestamp(record.created, UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "event": event["event"],
    }
    said = record.__dict__
    fields = {key: value for key, value in said.items() if key not in _STANDARD}
    for key, value in {**said.get("bridge_context", _NOTHING), **fields}.items():
        line.setdefault(key, value)
    if exception := said.get("bridge_exception"):
        line["exception"] = exception
    return line


def _json(_: object, __: str, line: structlog.types.EventDict) -> str:
    try:
        return orjson.dumps(line, default=str).decode()
    except TypeError:  # half of a surrogate pair in some name, or a number beyond 64 bits
        return orjson.dumps({key: _escaped(str(value)) for key, value in line.items()}).decode()


_DIM, _BOLD, _CYAN, _PLAIN = "\x1b[2m", "\x1b[1m", "\x1b[36m", "\x1b[0m"
_LEVEL_COLOURS = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31;1m"}


def _console(*, colours: bool) -> ConsoleRenderer:
    """``DATE TIME LEVEL LOGGER: MESSAGE field=value``."""

    def column(style: str, show: Callable[[object], str], postfix: str = "") -> Any:  # noqa: ANN401 - a protocol of structlog's
        plain = _PLAIN if colours else ""
        return KeyValueColumnFormatter(None, style if colours else "", plain, show, 0, "", postfix)

    def level(key: str, value: object) -> str:  # noqa: ARG001 - structlog gives it by this name
        name = str(value)
        style = _LEVEL_COLOURS.get(name, "") if colours else ""
        return f"{style}{name}{_PLAIN}" if style else name

    fields = KeyValueColumnFormatter(
        _CYAN if colours else "", "", _PLAIN if colours else "", _shown, 0, "", ""
    )
    return ConsoleRenderer(
        sort_keys=False,
        exception_formatter=plain_traceback,
        columns=[
            Column("", fields),
            Column("timestamp", column(_DIM, str)),
            Column("level", level),
            Column("logger", column(_DIM, str, ":")),
            Column("event", column(_BOLD, str)),
        ],
    )


def _for_people(_: object, __: str, line: structlog.types.EventDict) -> structlog.types.EventDict:
    line["timestamp"] = line["timestamp"].replace("T", " ")
    line["level"] = line["level"].upper()
    line["event"] = _escaped(line["event"])
    if "exception" in line:
        line["exception"] = "\n".join(map(_escaped, line["exception"].splitlines()))
    return line


def _shown(value: object) -> str:
    text = str(value)
    return repr(text) if not text or set(text) & _SEPARATORS else _escaped(text)


_SEPARATORS = frozenset(" =\"'")


def _escaped(text: str) -> str:
    """On one line, and without anything that a terminal would obey."""
    if text.isprintable():
        return text
    return "".join([c if c.isprintable() else ascii(c)[1:-1] for c in text])


# What is told of clients.


_OF_CLIENTS = (
    "Invalid encoding",  # a header is no UTF-8: the call gets its bytes
    "ExecuteBatchError raised",  # the client was gone before it could be answered
)


def of_bridge(record: logging.LogRecord) -> bool:
    """Whether what gRPC logs is about this bridge; what clients do is DEBUG, without traceback."""
    if str(record.msg).startswith(_OF_CLIENTS):
        record.exc_info = None
        record.levelno, record.levelname = logging.DEBUG, "DEBUG"
        return logger.isEnabledFor(logging.DEBUG)
    return True


_WITHOUT_VALUES = frozenset(
    {
        "DATA_LOSS",
        "OFFSET_OUT_OF_RANGE",
        "OUTCOME_UNKNOWN",
        "RESOURCE_EXHAUSTED",
        "SESSION_NOT_FOUND",
        "TOKEN_MISSING",
        "TOKEN_REFUSED",
        "TOOL_NOT_FOUND",
        "UNAVAILABLE",
        "UNIMPLEMENTED",
        "VARIABLE_EXISTS",
        "VARIABLE_NOT_FOUND",
        "VERSION_CONFLICT",
        "VERSION_NOT_FOUND",
        "WATCH_CLOSED",
    }
)
"""Reasons whose messages are made of names, offsets and limits. Others quote what was sent: a
value, a constraint, the key to an optimizer's lock."""


def refused(reason: str, code: str, method: str, message: str, **fields: str) -> None:
    """Tell that a request was refused; of each reason the first, then one in 10 seconds at most.

    Safe from any thread.

    :param reason: of the error, as ``BridgeError.reason``.
    :param code: name of the gRPC status.
    :param method: that was called.
    :param message: what the client was told; left out unless it is sure to quote no value.
    :param fields: names and offsets; no values. Empty ones are left out.
    """
    if not logger.isEnabledFor(logging.INFO):
        return
    left_out = _refusals.take(reason)
    if left_out is None:
        return
    said = {"reason": reason, "code": code, "method": method}
    said.update((key, value) for key, value in fields.items() if value)
    if reason in _WITHOUT_VALUES:
        said["why"] = message
    extra: dict[str, object] = {**said, "left_out": left_out} if left_out else {**said}
    logger.info("a request was refused", extra=extra)


class _Refusals:
    """When one was last told of, by reason, and how many were left out since then."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._last: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def take(self, reason: str) -> int | None:
        """How many were left out, if one is to be told of now."""
        with self._lock:
            if reason not in self._last and len(self._last) >= MAX_REASONS:
                reason = ""  # all the others together
            now = self._clock()
            if now - self._last.get(reason, -REFUSAL_EVERY) < REFUSAL_EVERY:
                self._left_out[reason] = self._left_out.get(reason, 0) + 1
                return None
            self._last[reason] = now
            return self._left_out.pop(reason, 0)


_refusals = _Refusals()
