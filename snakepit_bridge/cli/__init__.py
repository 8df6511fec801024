"""A person's hands: the ``snakepit-bridge`` command."""

from __future__ import annotations

__all__ = ["app", "main"]

import os

# Read when gRPC is imported. Worker processes of tools are started by fork and exec at once, which
# its handlers have nothing to do with, but they would say so on stderr.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from snakepit_bridge.cli.app import app, main
