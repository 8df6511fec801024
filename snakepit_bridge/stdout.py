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
from typing import Any, TextIO

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

    encoding = "utf-8"
    errors = "replace"

    def __init__(self) -> None:
        super().__init__()
        self._begun = threading.local()
        self.buffer = _Bytes(self)

    def flush(self) -> None:
        """Log what was printed without an end of its line: somebody wants it seen."""
        begun = getattr(self._begun, "text", "")
        if begun:
            self._begun.text = ""
            self._log(begun)

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
            self._log(line)
        return len(text)

    def _log(self, line: str) -> None:
        if line.strip():  # at a level that is shown wherever anything is
            logger.warning("printed: %s", line)


class _Bytes(io.RawIOBase):
    """The same for those who write bytes."""

    def __init__(self, lines: _Lines) -> None:
        super().__init__()
        self._lines = lines

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:  # noqa: ANN401 - any buffer
        data = bytes(content)
        self._lines.write(data.decode("utf-8", "replace"))
        return len(data)

    def flush(self) -> None:
        if not self.closed:
            self._lines.flush()
