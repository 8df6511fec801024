"""Fifty random schedules; ``python -m tests.watch_schedules`` does a thousand."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from tests.watch_schedules import run_schedule

SCHEDULES = 50


@pytest.mark.parametrize("number", range(SCHEDULES))
async def test_watchers_see_what_they_are_promised(tmp_path: Path, number: int) -> None:
    # Half of them are the same each time, the others new: a failure names its seed.
    seed = number if number % 2 else secrets.randbits(32)
    recording = await run_schedule(tmp_path, seed)
    assert recording.told
    assert any(stream.updates for streams in recording.watchers.values() for stream in streams)
