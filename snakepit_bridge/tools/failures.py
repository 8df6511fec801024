"""Why a tool gave no result, as text of bounded size.

A tool may raise anything: an exception whose ``__str__`` raises, whose message has a hundred
megabytes or no UTF-8. ``failure_of`` gives words for all of them.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping
from types import FrameType, TracebackType
from typing import NamedTuple

__all__ = ["MAX_MESSAGE", "MAX_TRACEBACK", "Failure", "failure_of", "shortened"]

MAX_MESSAGE = 4 * 1024
"""Bytes of UTF-8 that a message has at most: half of the 8 KiB beyond which clients of gRPC drop
metadata, as a stream's failure goes out as a status."""

MAX_TRACEBACK = 16 * 1024
"""Bytes of UTF-8 that a traceback has at most: more than a hundred frames."""

_CALLERS = frozenset({"snakepit_bridge", "asyncio", "concurrent", "threading"})
"""Packages whose frames stand above a tool's: ours, and what lies between."""
_OWN_TOOLS = ("snakepit_bridge.showcase", "snakepit_bridge.adapters")
"""Modules of ours that are tools themselves."""


class Failure(NamedTuple):
    """Why a tool did not give a result."""

    type: str
    """Name of the exception's class, ``ValueError``."""
    message: str
    """At most 4 KiB, shortened in the middle."""
    traceback: str
    """At most 16 KiB, shortened in the middle; of the tool's own frames only."""

    def as_json(self, context: Mapping[str, str]) -> str:
        """Write what Snakepit from 0.13 on reads in ``error_message``.

        :param context: of the call: tool, session, correlation id.
        """
        return json.dumps(
            {
                "type": self.type,
                "message": self.message,
                "stacktrace": self.traceback.splitlines(),
                "traceback": self.traceback,
                "context": dict(context),
            },
            ensure_ascii=False,
        )


def failure_of(error: BaseException) -> Failure:
    """Describe what a tool raised; whatever that is, this raises nothing."""
    return Failure(
        _words(lambda: type(error).__name__, "Exception", MAX_MESSAGE),
        _words(lambda: str(error), "no message: its __str__ raised", MAX_MESSAGE),
        _words(lambda: _traceback(error), "no traceback: writing it raised", MAX_TRACEBACK),
    )


def _words(text: Callable[[], str], instead: str, limit: int) -> str:
    try:
        # A str of the tool's own class becomes a plain one.
        return shortened(_plain(text()), limit)
    except BaseException as second:  # noqa: BLE001 - __str__, __notes__ and so on are the tool's
        return f"({instead} {_class_of(second)})"


def _plain(text: str) -> str:
    return str.encode(text, "utf-8", "backslashreplace").decode()


def _class_of(error: BaseException) -> str:
    try:
        return _plain(type(error).__name__)
    except BaseException:  # noqa: BLE001 - of a metaclass of the tool's
        return "something"


def shortened(text: str, limit: int) -> str:
    """Give text that has at most ``limit`` bytes of UTF-8: the middle is left out.

    Lone surrogates, which have no UTF-8, become their escapes.
    """
    if len(text) > limit:  # characters, each of one byte or more: spares encoding all of them
        half = limit // 2
        return _joined(_encoded(text[:half]), _encoded(text[-half:]), len(text) - limit, limit)
    encoded = _encoded(text)
    if len(encoded) <= limit:
        return encoded.decode()
    return _joined(encoded, encoded, len(encoded) - limit, limit)


def _joined(head: bytes, tail: bytes, missing: int, limit: int) -> str:
    gap = f" ... {missing} or more left out ... "
    half = (limit - len(gap)) // 2
    # Cutting may halve a character; what is left of it is ignored.
    return head[:half].decode(errors="ignore") + gap + tail[-half:].decode(errors="ignore")


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def _traceback(error: BaseException) -> str:
    lines = traceback.format_exception(type(error), error, _without_ours(error.__traceback__))
    return "".join(lines)


def _without_ours(trace: TracebackType | None) -> TracebackType | None:
    """Leave out the outermost frames, which called the tool; all are kept if all are ours."""
    at = trace
    while at is not None and _calls_tools(at.tb_frame):
        at = at.tb_next
    return at or trace


def _calls_tools(frame: FrameType) -> bool:
    # The name in the spec stays what it is where the module is run with ``python -m``.
    spec = frame.f_globals.get("__spec__")
    module = str(getattr(spec, "name", None) or frame.f_globals.get("__name__", ""))
    if module.startswith(_OWN_TOOLS):
        return False
    return module.partition(".")[0] in _CALLERS
