"""How often a server asks for a sync, as strace sees it.

The server is started under strace, which then stops it at syncs only and at no other
system call: its batches are nearly those of a server that nobody watches.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from benchmarks.errors import NotMeasured

__all__ = ["count", "tracing"]

_SYNC = re.compile(r"^\d+ +(\d+\.\d+) f(?:data)?sync\(", re.MULTILINE)


def tracing(output: Path) -> tuple[str, ...]:
    """Return what stands before a command so that its syncs are written to ``output``.

    The process keeps the id under which the command was started.

    :raises NotMeasured: strace is not installed.
    """
    strace = shutil.which("strace")
    if strace is None:
        raise NotMeasured("strace is not installed: apt-get install strace")
    options = ("-D", "-f", "-qq", "-ttt", "--seccomp-bpf", "--trace=fsync,fdatasync")
    return (strace, *options, f"--output={output}", "--")


def count(output: Path, since: float, until: float) -> int:
    """Return how many syncs began between two moments, as ``time.time`` counts.

    It is to be called when the traced process has ended.
    """
    text = output.read_text(encoding="utf-8", errors="replace")
    return sum(since <= float(moment) <= until for moment in _SYNC.findall(text))
