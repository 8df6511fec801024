"""What importing the client loads: what it takes to speak to a bridge, and nothing of a bridge."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SHOW = "import sys, json, snakepit_bridge.client; print(json.dumps(sorted(sys.modules)))"

OF_A_BRIDGE = (
    "adapters",
    "bridge_servicer",
    "cli",
    "decide",
    "dspy_modules",
    "events.committer",
    "events.gate",
    "events.sqlite",
    "forwarding",
    "rpc",
    "server",
    "session_context",
    "sessions",
    "tool_calls",
    "tools",
    "watch_hub",
    "wire",
)
FOREIGN = (
    "apsw",
    "dspy",
    "opentelemetry",
    "pydantic",
    "re2",
    "rich",
    "sqlite3",
    "typer",
    "uvloop",
)
"""What a bridge, a terminal or an extra needs."""


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SHOW],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("name", [f"snakepit_bridge.{name}" for name in OF_A_BRIDGE])
def test_nothing_of_a_bridge_is_loaded(loaded: set[str], name: str) -> None:
    assert name not in loaded
    assert not any(each.startswith(f"{name}.") for each in loaded)


@pytest.mark.parametrize("name", FOREIGN)
def test_nothing_is_loaded_that_a_client_does_not_need(loaded: set[str], name: str) -> None:
    assert name not in loaded
    assert not any(each.startswith(f"{name}.") for each in loaded)
