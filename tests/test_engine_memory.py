from __future__ import annotations

from pathlib import Path

from snakepit_bridge.events.log import EventLog
from snakepit_bridge.events.memory import MemoryLog
from tests.engine_contract import EngineContract


class TestMemory(EngineContract):
    def open(self, directory: Path) -> EventLog:  # noqa: ARG002 - it needs none
        return MemoryLog()
