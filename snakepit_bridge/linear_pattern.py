"""Regular expressions from clients, matched in bounded time by RE2.

RE2 has no backreferences and no lookaround, so no pattern takes exponential time. It is
linear in the value, but also in the pattern: where its automaton does not fit into memory,
a megabyte under ``a.{1000}$`` takes 6 seconds. So the product of both is bounded too.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol, cast

from snakepit_bridge.errors import quote

__all__ = [
    "MAX_PATTERN",
    "Compiled",
    "compile_pattern",
    "pattern_fault",
    "pattern_work",
]

MAX_PATTERN = 1_000
"""Characters of a pattern; RE2 itself bounds repetition counts and nesting at 1,000."""

MAX_MEMORY = 2 * 1024 * 1024
"""Bytes for one pattern's program and automaton (RE2's default is 8 MiB): enough for
``^[\\p{L} ]{1,64}$``, the widest pattern that one meets."""

MAX_WORK = 2**20
"""Instructions of the program times bytes of the value: 20 ms when measured with the worst
patterns we know, far below one with ordinary ones. 10 instructions, usual for an identifier
or a date, allow values of 100 kB. Whoever writes waits for this."""

CACHED = 64
"""Compiled patterns. The re2 module keeps 128 itself: at the worst 0.4 GiB in all."""


class Compiled(Protocol):
    """What is used of re2, which has no type stubs."""

    programsize: int

    def search(self, text: str) -> object | None: ...


def compile_pattern(pattern: str) -> Compiled:
    """Compile a pattern, or find it compiled.

    :param pattern: RE2 syntax; it matches anywhere unless anchored.
    :raises ValueError: it is too long, too large, or not RE2 syntax.
    """
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"has {len(pattern)} characters, at most {MAX_PATTERN} are allowed")
    return _compile(pattern)


def pattern_work(pattern: str, size: int) -> int:
    """What matching a value of ``size`` bytes may take, in the unit of ``MAX_WORK``."""
    return compile_pattern(pattern).programsize * size


def pattern_fault(pattern: str, value: str) -> str | None:
    """Say how ``value`` fails ``pattern``; None if it matches.

    :raises ValueError: as ``compile_pattern``.
    """
    compiled = compile_pattern(pattern)
    most = MAX_WORK // compiled.programsize
    # A character has at most 4 bytes: encode only what may be too long.
    if len(value) * 4 > most and (size := len(value.encode())) > most:
        return (
            f"value of {size} bytes is too long for its pattern {quote(pattern)}, "
            f"which is matched against at most {most}"
        )
    if compiled.search(value) is None:
        return f"value {quote(value)} does not match pattern {quote(pattern)}"
    return None


@lru_cache(maxsize=CACHED)
def _compile(pattern: str) -> Compiled:
    import re2  # noqa: PLC0415 - 3 ms that only patterns need

    options = re2.Options()
    options.log_errors = False  # to stderr, otherwise
    options.max_mem = MAX_MEMORY
    options.never_capture = True
    try:
        return cast("Compiled", re2.compile(pattern, options))
    except re2.error as error:
        reason = error.args[0]
        reason = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        raise ValueError(
            f"{quote(reason)}. Patterns take linear-time syntax (RE2): no backreferences, no "
            "lookaround, counts up to 1000, \\z for the end of the text"
        ) from None
