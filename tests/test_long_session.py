"""Thirty thousand events; ``python -m tests.long_session`` does a million."""

from __future__ import annotations

import secrets
from pathlib import Path

from tests.long_session import LongSession


def test_a_long_session_is_the_same_from_every_side(tmp_path: Path) -> None:
    session = LongSession(tmp_path, 30_000, snapshot_every=2_000, seed=secrets.randbits(32))
    assert len(session.run()) == len(session.steps())
