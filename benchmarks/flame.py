"""A flame graph of the bridge under one load, by py-spy."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks import servers
from benchmarks.driver import last_line
from benchmarks.errors import BenchmarkError, NotMeasured
from benchmarks.loads import SHAPES
from benchmarks.sides import Bridge

__all__ = ["flame"]

_LOADS: Mapping[str, str] = {"set": "set-32", "get": "get-32", "batch": "batch"}
_GRACE = 30  # seconds for py-spy to draw


def flame(work: str, seconds: int, directory: Path, drawing: Path) -> Path:
    """Sample the bridge for ``seconds`` under a load; return the SVG that was drawn.

    :raises BenchmarkError: there is no such load, py-spy is missing or failed, or the
        load failed.
    """
    if work not in _LOADS:
        raise BenchmarkError(f"there is no load {work!r}; there are: {', '.join(_LOADS)}")
    program = shutil.which("py-spy")
    if program is None:
        raise NotMeasured("py-spy is not installed: pip install py-spy")
    shape = SHAPES[_LOADS[work]]
    with (
        tempfile.TemporaryDirectory(prefix="profile-", dir=directory) as place,
        servers.bridge(Path(place)) as server,
    ):
        bridge = Bridge(server, shape)
        bridge.run(0, shape.part(0.2))
        command = [program, "record", f"--pid={server.pid}", f"--duration={seconds}"]
        command += ["--rate=250", "--threads", f"--output={drawing}"]
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as sampler:
            try:
                # Between two runs the server is idle, and idle threads are not drawn.
                number = 1
                while sampler.poll() is None and number <= seconds + _GRACE:
                    bridge.run(number)
                    number += 1
                _, words = sampler.communicate(timeout=_GRACE)
            except subprocess.TimeoutExpired:
                raise BenchmarkError("py-spy did not end") from None
            finally:
                sampler.kill()
    if sampler.returncode:
        raise BenchmarkError(f"py-spy failed: {last_line(words)}")
    return drawing
