"""Guarantee 10 on a disk that is really full: a small tmpfs, a bridge, clients that go on.

The story is in ``full_disk_scenario``; here it is run, and its refusals are judged. A tmpfs
is mounted in a namespace of the test's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

OWN_MOUNTS = ("unshare", "-r", "-m")
STORY_TAKES = 110.0
"""Seconds at most; about 3 but for the one with a reader."""

FULL = "the disk that holds the log is full: nothing was changed; free space and retry"


def require_own_mounts() -> None:
    """Skip the test where nothing may be mounted; fail in CI, which promises it."""
    reason = _why_not()
    if reason and os.environ.get("CI"):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


@cache
def _why_not() -> str:
    try:
        mount = ("sh", "-c", "mount -t tmpfs none /tmp")
        tried = subprocess.run([*OWN_MOUNTS, *mount], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unshare is not installed, so no small disk can be mounted"
    if tried.returncode:
        return f"no small disk may be mounted here: {tried.stderr.strip()}"
    return ""


def story(tmp_path: Path, size: str, *options: str) -> dict[str, Any]:
    """Run it to its end; gives its report."""
    require_own_mounts()
    disk, scratch = tmp_path / "disk", tmp_path / "scratch"
    disk.mkdir()
    scratch.mkdir()
    program = (sys.executable, "-m", "tests.full_disk_scenario", str(disk), str(scratch))
    mounted = f'mount -t tmpfs -o size={size} none {disk} && exec "$@"'
    # A group of its own, so that a story cut short leaves no bridge behind.
    with subprocess.Popen(
        [*OWN_MOUNTS, "sh", "-c", mounted, "sh", *program, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "_TYPER_STANDARD_TRACEBACK": "1"},
    ) as child:
        try:
            out, err = child.communicate(timeout=STORY_TAKES)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
    assert child.returncode == 0, f"{out}\n{err}"
    report: dict[str, Any] = json.loads(out.splitlines()[-1])
    return report


@pytest.mark.parametrize(
    "options",
    [(), ("--large",), ("--kill",), ("--kill", "--large")],
    ids=["small values", "large values", "killed", "killed, large values"],
)
@pytest.mark.parametrize("size", ["6m", "24m"])
def test_a_full_disk_refuses_in_words_loses_nothing_and_writing_resumes(
    tmp_path: Path, size: str, options: tuple[str, ...]
) -> None:
    report = story(tmp_path, size, *options)
    assert report["acknowledged"] > 100
    assert set(report["messages"]) == {f"RESOURCE_EXHAUSTED: {FULL}"}, report


def test_a_full_disk_while_another_process_reads(tmp_path: Path) -> None:
    """No checkpoint can finish, so there an outcome may stay unknown until the reader goes."""
    report = story(tmp_path, "24m", "--reader")
    assert report["acknowledged"] > 100
    assert set(report["refusals"]) <= {"RESOURCE_EXHAUSTED", "UNAVAILABLE"}, report
