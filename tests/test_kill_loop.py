"""Ten kills; ``python -m tests.kill_loop`` does hundreds."""

from __future__ import annotations

import secrets
from pathlib import Path

from tests.kill_loop import KillLoop


async def test_a_killed_bridge_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    loop = KillLoop(tmp_path, seed=secrets.randbits(32))
    await loop.run(rounds=10)
    assert len(loop.told) > 10
    assert loop.resumed > 10
    assert any(watcher.seen for watcher in loop.watchers)
