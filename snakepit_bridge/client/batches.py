"""Changes that are collected for one transaction."""

from __future__ import annotations

from snakepit_bridge.errors import InvalidRequest, quote
from snakepit_bridge.views import BatchResult

__all__ = ["Batch"]


class Batch:
    """What both clients collect in the same way."""

    def __init__(self) -> None:
        self.updates: dict[str, object] = {}
        self.expected_versions: dict[str, int] = {}
        self.result: BatchResult | None = None
        """Once the transaction was made."""

    def __setitem__(self, name: str, value: object) -> None:
        self.set(name, value)

    def set(self, name: str, value: object, *, expected_version: int = 0) -> None:
        """Add a change.

        :param expected_version: the version the variable must have then; 0 = any.
        :raises InvalidRequest: this batch changes the variable already.
        """
        if name in self.updates:
            raise InvalidRequest(f"this batch changes {quote(name)} already", field="updates")
        self.updates[name] = value
        if expected_version:
            self.expected_versions[name] = expected_version
