"""What the commands share."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = ["LogOption", "RecordOption", "default_log", "log_to_stderr", "refuse"]

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "none": logging.CRITICAL + 1,
}

LogOption = Annotated[
    str,
    typer.Option(
        help="Where the event logs are kept: sqlite:PATH, or memory: to keep nothing. "
        "Default: sqlite: in the user's state directory.",
        envvar="SNAKEPIT_BRIDGE_LOG",
        show_default=False,
    ),
]

RecordOption = Annotated[
    Literal["full", "digest", "off"],
    typer.Option(
        help="What the log keeps of arguments and results of tools: all, their SHA-256, nothing.",
        envvar="SNAKEPIT_BRIDGE_RECORD_TOOLS",
        rich_help_panel="Tools",
    ),
]


def default_log() -> str:
    """``sqlite:`` in the XDG state directory."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return f"sqlite:{Path(state).expanduser() / 'snakepit_bridge' / 'bridge.db'}"


def log_to_stderr(level: str) -> None:
    """Set the log up; ``level`` is what a person wrote."""
    if level.lower() not in _LEVELS:
        raise typer.BadParameter(f"choose one of {', '.join(_LEVELS)}", param_hint="--log-level")
    logging.basicConfig(
        level=_LEVELS[level.lower()],
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )


def refuse(why: str) -> typer.Exit:
    """Say on stderr why a command cannot be done; raise what this gives."""
    typer.secho(f"snakepit-bridge: {why}", err=True, fg=typer.colors.RED)
    return typer.Exit(1)
