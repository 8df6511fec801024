"""Standard output: one line for whoever launched the bridge, and nothing that a tool prints.

What Python code prints becomes lines of the log; what others write to file descriptor 1, from C
or from a child process, goes to standard error.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
from typing import TextIO

__all__ = ["claim_stdout"]

logger = logging.getLogger(__name__)

LONGEST_LINE = 8 * 1024
"""Characters; what is longer becomes several lines."""


def claim_stdout() -> TextIO:
    """Keep standard output for the caller, and send to the log what anybody else prints."""
    sys.stdout.flush()
    kept = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = _Lines()
    return kept


class _Lines(io.TextIOBase):
    """What is printed, line by line; each thread has a line of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._begun = threading.local()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 1  # which leads to standard error

    def write(self, text: str) -> int:
        begun = getattr(self._begun, "text", "") + text
        *lines, rest = begun.split("\n")
        while len(rest) > LONGEST_LINE:
            lines.append(rest[:LONGEST_LINE])
            rest = rest[LONGEST_LINE:]
        self._begun.text = rest
        for line in lines:
            if line.strip():  # at a level that is shown wherever anything is
                logger.warning("printed: %s", line)
        return len(text)
