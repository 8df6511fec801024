"""Ten kills; ``python -m tests.client_restarts`` does a hundred."""

from __future__ import annotations

import secrets
from pathlib import Path

from tests.client_restarts import ClientRestarts


def test_clients_neither_lose_nor_double_anything_over_kills(tmp_path: Path) -> None:
    clients = ClientRestarts(tmp_path, restarts=10, seed=secrets.randbits(32))
    clients.run()
    assert all(clients.truth.values())
    assert sum(watcher.statuses["resumed"] for watcher in clients.watchers) >= 10
    assert any(watcher.lives > 1 for watcher in clients.watchers)
