"""What Linux tells about a process and a file system, read from /proc."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.errors import BenchmarkError

__all__ = ["bytes_read", "cpu_of_threads", "cpu_seconds", "filesystem", "resident"]

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Return the CPU time, user and system, of a process with all its threads.

    It advances in ticks of 10 ms.

    :raises BenchmarkError: the process is gone.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise BenchmarkError(f"the server process {pid} is gone") from error
    # The second field is the command's name, in parentheses, and may hold anything.
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def cpu_of_threads(pid: int) -> float:
    """Return the CPU time in seconds of the threads that a process has now.

    To the nanosecond, where ``cpu_seconds`` has ticks; threads that have ended are missing.

    :raises BenchmarkError: the process is gone.
    """
    try:
        spent = [
            int(file.read_text(encoding="ascii").split()[0])
            for file in Path(f"/proc/{pid}/task").glob("*/schedstat")
        ]
    except OSError as error:
        raise BenchmarkError(f"the server process {pid} is gone") from error
    return sum(spent) / 1e9


def resident(pid: int | None = None) -> int:
    """Return the bytes of memory that a process has resident, or this one.

    :raises BenchmarkError: it is gone.
    """
    try:
        text = Path(f"/proc/{pid or 'self'}/statm").read_text(encoding="ascii")
    except OSError as error:
        raise BenchmarkError(f"the server process {pid} is gone") from error
    return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")


def bytes_read(pid: int) -> int:
    """Return the bytes that a process has read from files, also where memory held them.

    :raises BenchmarkError: it is gone.
    """
    try:
        text = Path(f"/proc/{pid}/io").read_text(encoding="ascii")
    except OSError as error:
        raise BenchmarkError(f"what the process {pid} reads is not known: {error}") from error
    return int(text.split()[1])


def filesystem(path: Path) -> str:
    """Return the type of the file system that holds ``path``, for example "ext4"."""
    path = path.resolve()
    best, kind = Path("/"), "unknown"
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        _device, mount, name, *_rest = line.split()
        place = Path(mount.encode().decode("unicode_escape"))
        if path.is_relative_to(place) and len(place.parts) >= len(best.parts):
            best, kind = place, name
    return kind
