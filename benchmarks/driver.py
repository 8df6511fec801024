"""Running our own modules, the load generator above all, in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from typing import Any

from benchmarks.errors import BenchmarkError
from benchmarks.load import Result, Spec
from benchmarks.servers import ROOT

__all__ = ["drive", "last_line", "run_json"]

_LIMIT = 120.0  # seconds for one run, with making its requests and checking its replies


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
