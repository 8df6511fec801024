"""What the commands share."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = [
    "BridgeOption",
    "BridgeTokenOption",
    "LogFormat",
    "LogFormatOption",
    "LogOption",
    "MetricsDirectoryOption",
    "MetricsHostOption",
    "MetricsPortOption",
    "RecordOption",
    "TokenOption",
    "check_bridge",
    "check_metrics",
    "default_log",
    "log_to_stderr",
    "refuse",
]

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "none": logging.CRITICAL + 1,
}

_HIGHEST_PORT = 65_535

LogOption = Annotated[
    str,
    typer.Option(
        help="Where the event logs are kept: sqlite:PATH, or memory: to keep nothing. "
        "Default: sqlite: in the user's state directory.",
        envvar="SNAKEPIT_BRIDGE_LOG",
        show_default=False,
    ),
]

LogFormat = Literal["auto", "json", "console"]

LogFormatOption = Annotated[
    LogFormat,
    typer.Option(
        help="Text for people, JSON objects, or auto: text on a terminal, else JSON.",
        envvar="SNAKEPIT_BRIDGE_LOG_FORMAT",
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

_ACCESS = "Access"

TokenOption = Annotated[
    Path | None,
    typer.Option(
        help="Answer only calls that carry the token in this file: one line, readable by nobody "
        "else.",
        envvar="SNAKEPIT_BRIDGE_TOKEN_FILE",
        show_default=False,
        rich_help_panel=_ACCESS,
    ),
]

BridgeOption = Annotated[
    str,
    typer.Option(
        help="HOST:PORT of a shared bridge: its sessions and variables are served, and tools are "
        "run here. Their calls are then logged in memory:, unless --log is given.",
        envvar="SNAKEPIT_BRIDGE_BRIDGE",
        show_default=False,
        rich_help_panel=_ACCESS,
    ),
]

BridgeTokenOption = Annotated[
    Path | None,
    typer.Option(
        help="File with the token of that bridge, if it wants one.",
        envvar="SNAKEPIT_BRIDGE_BRIDGE_TOKEN_FILE",
        show_default=False,
        rich_help_panel=_ACCESS,
    ),
]


_METRICS = "Metrics"


def _port_or_off(text: str) -> int | None:
    if text.strip().lower() == "off":
        return None
    if text.isascii() and text.isdigit() and int(text) <= _HIGHEST_PORT:
        return int(text)
    raise typer.BadParameter(
        f"{text!r} is no port: write one up to {_HIGHEST_PORT}, 0 for any free one, or off"
    )


MetricsPortOption = Annotated[
    int | None,
    typer.Option(
        help="Serve /metrics for Prometheus, /healthz and /readyz over HTTP on this port; 0 = any "
        "free one, which is logged; off = not at all.",
        envvar="SNAKEPIT_BRIDGE_METRICS_PORT",
        parser=_port_or_off,
        metavar="off|0|PORT",
        show_default="off",
        rich_help_panel=_METRICS,
    ),
]

MetricsHostOption = Annotated[
    str,
    typer.Option(
        help="Address to serve them at. Whoever reaches it can read them, without a token.",
        envvar="SNAKEPIT_BRIDGE_METRICS_HOST",
        rich_help_panel=_METRICS,
    ),
]

MetricsDirectoryOption = Annotated[
    Path | None,
    typer.Option(
        help="Directory for a file that tells Prometheus the port while the bridge runs. With "
        "DIR/snakepit-bridge-*.json in its file_sd_configs it finds all workers of a pool.",
        envvar="SNAKEPIT_BRIDGE_METRICS_SD_DIR",
        metavar="DIR",
        show_default=False,
        rich_help_panel=_METRICS,
    ),
]


def default_log() -> str:
    """``sqlite:`` in the XDG state directory."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return f"sqlite:{Path(state).expanduser() / 'snakepit_bridge' / 'bridge.db'}"


def check_bridge(address: str, token_file: Path | None) -> None:
    """Refuse an address of a shared bridge that cannot be one; empty = there is none."""
    host, _, port = address.rpartition(":")
    if address and not (
        host and port.isascii() and port.isdigit() and 0 < int(port) <= _HIGHEST_PORT
    ):
        raise typer.BadParameter(
            f"{address!r} is not HOST:PORT, such as localhost:50050", param_hint="--bridge"
        )
    if token_file is not None and not address:
        raise typer.BadParameter(
            "it is of no use without --bridge", param_hint="--bridge-token-file"
        )


def check_metrics(port: int | None, sd_dir: Path | None) -> None:
    """Refuse to tell Prometheus of a port that is not there."""
    if sd_dir is not None and port is None:
        raise typer.BadParameter(
            "it is of no use without --metrics-port, which may be 0 for any free one",
            param_hint="--metrics-sd-dir",
        )


def log_to_stderr(level: str, format: LogFormat = "console") -> None:  # noqa: A002 - the option
    """Set the log up; ``level`` is what a person wrote."""
    if level.lower() not in _LEVELS:
        raise typer.BadParameter(f"choose one of {', '.join(_LEVELS)}", param_hint="--log-level")
    from snakepit_bridge.telemetry import logs  # noqa: PLC0415 - loads structlog
    from snakepit_bridge.telemetry.calls import log_context  # noqa: PLC0415 - loads gRPC

    logs.configure(_LEVELS[level.lower()], format, context=log_context)


def refuse(why: str) -> typer.Exit:
    """Say on stderr why a command cannot be done; raise what this gives."""
    colour = False if os.environ.get("NO_COLOR") else None
    typer.secho(f"snakepit-bridge: {why}", err=True, fg=typer.colors.RED, color=colour)
    return typer.Exit(1)
