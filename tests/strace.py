"""Running a bridge under strace: to see its system calls, or to make some fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

# -D: the bridge stays our child, and signals reach it.
STRACE = ("strace", "-D", "-f", "-y", "-e", "signal=none")


def require_strace() -> None:
    """Skip the test where strace cannot trace; fail in CI, which promises it."""
    reason = _why_not()
    if reason and os.environ.get("CI"):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


@cache
def _why_not() -> str:
    if shutil.which("strace") is None:
        return "strace is not installed"
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "trace"
        tried = subprocess.run(
            [*STRACE, "-o", str(out), "true"], capture_output=True, text=True, check=False
        )
        if tried.returncode or not out.exists() or "exited with 0" not in out.read_text():
            return f"strace may not trace here: {tried.stderr.strip() or 'it wrote no trace'}"
    return ""
