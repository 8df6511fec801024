"""A person's hands: the ``snakepit-bridge`` command."""

from __future__ import annotations

__all__ = ["app", "main"]

from snakepit_bridge.cli.app import app, main
