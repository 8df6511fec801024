"""Running the load generator, and counting a server's syncs, in processes of their own."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchmarkError, NotMeasured
from benchmarks.load import Result, Spec
from benchmarks.servers import ROOT

__all__ = ["count_syncs", "drive", "last_line", "run_json"]

_LIMIT = 120.0  # seconds for one run, with making its requests and checking its replies
_ATTACH_LIMIT = 5.0


def last_line(text: str) -> str:
    """Return the last line that says something."""
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def run_json(module: str, *arguments: str, given: str = "") -> dict[str, Any]:
    """Run one of our modules to its end and return the JSON that it printed.

    :raises BenchmarkError: it failed, with its own words, or took too long.
    """
    try:
        done = subprocess.run(
            (sys.executable, "-m", module, *arguments),
            cwd=ROOT,
            input=given,
            capture_output=True,
            text=True,
            timeout=_LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"a run took more than {_LIMIT:g} s") from None
    if done.returncode:
        raise BenchmarkError(last_line(done.stderr))
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def drive(spec: Spec) -> Result:
    """Drive one run in a process of its own and return what it measured.

    :raises BenchmarkError: see ``load.run``.
    """
    return Result(**run_json("benchmarks.load", given=json.dumps(asdict(spec))))


def count_syncs(pid: int, work: Callable[[], None]) -> int:
    """Return how many syncs a process asks for while ``work`` runs.

    :raises NotMeasured: strace is not installed, or may not attach here.
    """
    strace = shutil.which("strace")
    if strace is None:
        raise NotMeasured("strace is not installed: apt-get install strace")
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "strace"
        command = (strace, "-f", "-p", str(pid), "-o", str(output), "-e", "trace=fsync,fdatasync")
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as tracer:
            try:
                _attached(pid, tracer)
                work()
            finally:
                if tracer.poll() is None:
                    tracer.send_signal(signal.SIGINT)
                try:
                    tracer.wait(_ATTACH_LIMIT)
                except subprocess.TimeoutExpired:
                    tracer.kill()
        # A call that another thread interrupted in the log has a second line, "resumed".
        return len(re.findall(r"^\d+ +f(?:data)?sync\(", output.read_text(), re.MULTILINE))


def _attached(pid: int, tracer: subprocess.Popen[bytes]) -> None:
    """Wait until every thread of a process is traced."""
    limit = time.perf_counter() + _ATTACH_LIMIT
    while time.perf_counter() < limit and tracer.poll() is None:
        threads = Path(f"/proc/{pid}/task").glob("*/status")
        if all("TracerPid:\t0\n" not in thread.read_text() for thread in threads):
            return
        time.sleep(0.01)
    raise NotMeasured("strace cannot attach to the server here")
