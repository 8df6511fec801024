"""Running our own modules, the load generator above all, in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, NamedTuple

from benchmarks.errors import BenchmarkError
from benchmarks.load import Result, Spec
from benchmarks.servers import ROOT

__all__ = ["Paced", "drive", "driving", "last_line", "pace", "run_json"]

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


@contextmanager
def driving(spec: Spec) -> Iterator[Callable[[], Result]]:
    """Drive one run beside the block; what is given ends it and returns what it measured.

    :raises BenchmarkError: see ``load.run``.
    """
    with subprocess.Popen(
        (sys.executable, "-m", "benchmarks.load"),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        with process.stdin as given:
            given.write(json.dumps(asdict(spec)))
        process.stdin = None

        def finish() -> Result:
            process.terminate()
            try:
                printed, words = process.communicate(timeout=_LIMIT)
            except subprocess.TimeoutExpired:
                raise BenchmarkError(f"a run did not end within {_LIMIT:g} s") from None
            if process.returncode:
                raise BenchmarkError(last_line(words))
            return Result(**json.loads(printed))

        try:
            yield finish
        finally:
            process.kill()


class Paced(NamedTuple):
    """What an open loop measured; see ``pace``."""

    sent: dict[str, int]
    late_us: float
    versions: dict[str, int]
    values: dict[str, float]
    made: int


def pace(spec: Spec, rate: float) -> Paced:
    """Send so many calls a second, in a process of its own.

    :raises BenchmarkError: see ``load.run``.
    """
    return Paced(**run_json("benchmarks.pace", str(rate), given=json.dumps(asdict(spec))))
