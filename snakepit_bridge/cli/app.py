"""The command line. Each command explains itself with ``--help``."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from snakepit_bridge.events.log import LogUnusable

__all__ = [
    "app",
    "default_log",
    "main",
    "serve",
]

app = typer.Typer(
    name="snakepit-bridge",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "none": logging.CRITICAL + 1,
}


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"snakepit-bridge {metadata.version('snakepit-bridge')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Say which release this is.", is_eager=True, callback=_version
        ),
    ] = False,
) -> None:
    """The event-sourced gRPC bridge between Elixir (Snakepit, DSPex) and Python."""


@app.command()
def serve(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="TCP port on 127.0.0.1 and ::1; 0 = any free.")
    ] = 50050,
    log: Annotated[
        str,
        typer.Option(
            help="Where the event logs are kept: sqlite:PATH, or memory: to keep nothing. "
            "Default: sqlite: in the user's state directory.",
            envvar="SNAKEPIT_BRIDGE_LOG",
            show_default=False,
        ),
    ] = "",
    ready_file: Annotated[
        Path | None,
        typer.Option(
            help="Write the port here, atomically, once serving.", envvar="SNAKEPIT_READY_FILE"
        ),
    ] = None,
    grace: Annotated[
        float, typer.Option(min=0, max=3600, help="Seconds running calls get on SIGTERM.")
    ] = 1.5,
    log_level: Annotated[
        str, typer.Option(help="debug, info, warning, error or none.", envvar="SNAKEPIT_LOG_LEVEL")
    ] = "info",
) -> None:
    """Serve until SIGTERM or SIGINT (Ctrl-C).

    Prints GRPC_READY:<port> on stdout once calls are answered; everything else goes to
    stderr. Exit code 0 after a clean stop.
    """
    if log_level.lower() not in LEVELS:
        raise typer.BadParameter(f"choose one of {', '.join(LEVELS)}", param_hint="--log-level")
    logging.basicConfig(
        level=LEVELS[log_level.lower()],
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    from snakepit_bridge.server import CannotServe, Settings, run  # noqa: PLC0415 - loads gRPC

    try:
        run(Settings(log or default_log(), port, ready_file, grace))
    except (CannotServe, LogUnusable) as error:
        typer.secho(f"snakepit-bridge: {error}", err=True, fg=typer.colors.RED)
        raise typer.Exit(1) from error


def default_log() -> str:
    """``sqlite:`` in the XDG state directory."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return f"sqlite:{Path(state).expanduser() / 'snakepit_bridge' / 'bridge.db'}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; without arguments those of the process."""
    app(args=None if arguments is None else list(arguments), prog_name="snakepit-bridge")
