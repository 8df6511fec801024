"""What the commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["LogOption", "default_log", "refuse"]

LogOption = Annotated[
    str,
    typer.Option(
        help="Where the event logs are kept: sqlite:PATH, or memory: to keep nothing. "
        "Default: sqlite: in the user's state directory.",
        envvar="SNAKEPIT_BRIDGE_LOG",
        show_default=False,
    ),
]


def default_log() -> str:
    """``sqlite:`` in the XDG state directory."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return f"sqlite:{Path(state).expanduser() / 'snakepit_bridge' / 'bridge.db'}"


def refuse(why: str) -> typer.Exit:
    """Say on stderr why a command cannot be done; raise what this gives."""
    typer.secho(f"snakepit-bridge: {why}", err=True, fg=typer.colors.RED)
    return typer.Exit(1)
