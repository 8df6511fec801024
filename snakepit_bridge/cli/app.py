"""The command line. Each command explains itself with ``--help``."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from snakepit_bridge.cli.options import (
    BridgeOption,
    BridgeTokenOption,
    LogFormatOption,
    LogOption,
    MetricsDirectoryOption,
    MetricsHostOption,
    MetricsPortOption,
    RecordOption,
    TokenOption,
    check_bridge,
    check_metrics,
    default_log,
    log_to_stderr,
    refuse,
)
from snakepit_bridge.cli.snakepit import COMMAND, snakepit
from snakepit_bridge.cli.terminal import add_terminal
from snakepit_bridge.cli.units import duration, size
from snakepit_bridge.cli.verify import verify
from snakepit_bridge.events.log import LogUnusable
from snakepit_bridge.limits import DEFAULTS, Limits

__all__ = [
    "app",
    "main",
    "serve",
]

app = typer.Typer(
    name="snakepit-bridge",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _limit(name: str, text: str, *, default: str | bool = True, **more: Any) -> Any:  # noqa: ANN401 - as typer's
    return typer.Option(
        help=text,
        envvar=f"SNAKEPIT_BRIDGE_{name}",
        show_default=default,
        rich_help_panel="Limits",
        **more,
    )


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
        int,
        typer.Option(
            min=0,
            max=65535,
            help="TCP port on 127.0.0.1 and ::1; 0 = any free.",
            envvar="SNAKEPIT_BRIDGE_PORT",
        ),
    ] = 50050,
    log: LogOption = "",
    ready_file: Annotated[
        Path | None,
        typer.Option(
            help="Write the port here, atomically, once serving.",
            envvar=["SNAKEPIT_BRIDGE_READY_FILE", "SNAKEPIT_READY_FILE"],
        ),
    ] = None,
    grace: Annotated[
        float,
        typer.Option(
            min=0,
            max=3600,
            help="Seconds running calls get on SIGTERM.",
            envvar="SNAKEPIT_BRIDGE_GRACE",
        ),
    ] = 1.5,
    log_level: Annotated[
        str,
        typer.Option(
            help="debug, info, warning, error or none.",
            envvar=["SNAKEPIT_BRIDGE_LOG_LEVEL", "SNAKEPIT_LOG_LEVEL"],
        ),
    ] = "info",
    log_format: LogFormatOption = "console",
    token_file: TokenOption = None,
    bridge: BridgeOption = "",
    bridge_token_file: BridgeTokenOption = None,
    metrics_port: MetricsPortOption = None,
    metrics_host: MetricsHostOption = "127.0.0.1",
    metrics_sd_dir: MetricsDirectoryOption = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="Tools to serve: a module of @tool functions, or package.module.Class. "
            "Can be given several times.",
            envvar="SNAKEPIT_BRIDGE_ADAPTER",
            show_default=False,
            rich_help_panel="Tools",
        ),
    ] = None,
    elixir_address: Annotated[
        str,
        typer.Option(
            help="HOST:PORT of the Elixir side, for tools that run there.",
            envvar="SNAKEPIT_BRIDGE_ELIXIR_ADDRESS",
            show_default=False,
            rich_help_panel="Tools",
        ),
    ] = "",
    record_tools: RecordOption = "full",
    max_workers: Annotated[
        int,
        typer.Option(
            min=1,
            max=1_000,
            help="Blocking tools that run at a time, in threads.",
            envvar="SNAKEPIT_BRIDGE_MAX_WORKERS",
            rich_help_panel="Tools",
        ),
    ] = DEFAULTS.tool_threads,
    tool_processes: Annotated[
        int,
        typer.Option(
            min=1,
            max=1_000,
            help="Isolated tools that run at a time, in processes.",
            envvar="SNAKEPIT_BRIDGE_TOOL_PROCESSES",
            rich_help_panel="Tools",
        ),
    ] = DEFAULTS.tool_processes,
    max_message_size: Annotated[
        int,
        _limit(
            "MAX_MESSAGE_SIZE",
            "Largest request and answer.",
            parser=size,
            metavar="SIZE",
            default="128MiB",
        ),
    ] = DEFAULTS.message_size,
    max_value_size: Annotated[
        int | None,
        _limit(
            "MAX_VALUE_SIZE",
            "Largest value of a variable.",
            parser=size,
            metavar="SIZE",
            default="3/4 of a message",
        ),
    ] = None,
    max_sessions: Annotated[
        int, _limit("MAX_SESSIONS", "Live sessions at a time.", min=1)
    ] = DEFAULTS.sessions,
    max_variables: Annotated[
        int, _limit("MAX_VARIABLES", "Live variables in a session.", min=1)
    ] = DEFAULTS.variables,
    session_ttl: Annotated[
        float,
        _limit(
            "SESSION_TTL",
            "End sessions that were not used for so long; 0 = never.",
            parser=duration,
            metavar="AGE",
            default="1h",
        ),
    ] = DEFAULTS.session_ttl,
    optimization_ttl: Annotated[
        float,
        _limit(
            "OPTIMIZATION_TTL",
            "Take the lock from optimizers that did nothing for so long; 0 = never.",
            parser=duration,
            metavar="AGE",
            default="5m",
        ),
    ] = DEFAULTS.optimization_ttl,
    retention_age: Annotated[
        float | None,
        _limit(
            "RETENTION_AGE",
            "Forget logs that ended longer ago, and events of live ones that are older; "
            "0 = keep everything.",
            parser=duration,
            metavar="AGE",
            default="7d for ended logs, live ones are kept whole",
        ),
    ] = DEFAULTS.retention_age,
    snapshot_every: Annotated[
        int, _limit("SNAPSHOT_EVERY", "Events between two snapshots of a session.", min=1)
    ] = DEFAULTS.snapshot_every,
    max_watches: Annotated[int, _limit("MAX_WATCHES", "Open watches.", min=1)] = DEFAULTS.watches,
    max_session_watches: Annotated[
        int, _limit("MAX_SESSION_WATCHES", "Open watches of one session.", min=1)
    ] = DEFAULTS.session_watches,
    max_connection_watches: Annotated[
        int, _limit("MAX_CONNECTION_WATCHES", "Open watches on one connection.", min=1)
    ] = DEFAULTS.connection_watches,
    watch_max_lifetime: Annotated[
        float,
        _limit(
            "WATCH_MAX_LIFETIME",
            "End watches, with a bookmark to go on from, that are open for so long; 0 = never.",
            parser=duration,
            metavar="AGE",
            default="1h",
        ),
    ] = DEFAULTS.watch_lifetime,
    max_tool_calls: Annotated[
        int, _limit("MAX_TOOL_CALLS", "Calls of tools that run or wait.", min=1)
    ] = DEFAULTS.tool_calls,
) -> None:
    """Serve until SIGTERM or SIGINT (Ctrl-C).

    Prints GRPC_READY:<port> on stdout once calls are answered; everything else goes to
    stderr. Exit code 0 after a clean stop. Each option can also be given in the environment,
    as SNAKEPIT_BRIDGE_<OPTION>. Sizes: 4096, 64KiB, 128MiB. Ages: 90, 30s, 15m, 12h, 7d.
    """
    log_to_stderr(log_level, log_format)
    limits = Limits(
        max_message_size,
        max_message_size * 3 // 4 if max_value_size is None else max_value_size,
        max_sessions,
        max_variables,
        retention_age,
        snapshot_every,
        session_ttl,
        optimization_ttl,
        max_watches,
        max_session_watches,
        max_connection_watches,
        watch_max_lifetime,
        max_tool_calls,
        max_workers,
        tool_processes,
    )
    if limits.value_size > limits.message_size:
        raise typer.BadParameter(
            f"a value of {limits.value_size} bytes does not fit into a message of "
            f"{limits.message_size}: raise --max-message-size as well",
            param_hint="--max-value-size",
        )
    check_bridge(bridge, bridge_token_file)
    check_metrics(metrics_port, metrics_sd_dir)
    from snakepit_bridge.observing import MetricsSettings  # noqa: PLC0415 - loads gRPC
    from snakepit_bridge.server import (  # noqa: PLC0415
        Access,
        CannotServe,
        Settings,
        ToolSettings,
        run,
    )
    from snakepit_bridge.tools.adapters import AdapterUnusable  # noqa: PLC0415 - loads values

    tools = ToolSettings(tuple(adapter or ()), record_tools, elixir_address)
    settings = Settings(
        log or ("memory:" if bridge else default_log()),
        port,
        ready_file,
        grace,
        limits,
        tools,
        access=Access(token_file, bridge, bridge_token_file),
        metrics=MetricsSettings(metrics_port, metrics_host, metrics_sd_dir),
    )
    try:
        run(settings)
    except (AdapterUnusable, CannotServe, LogUnusable) as error:
        raise refuse(str(error)) from error


app.command()(verify)
app.command(context_settings=COMMAND)(snakepit)
add_terminal(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; without arguments those of the process."""
    app(args=None if arguments is None else list(arguments), prog_name="snakepit-bridge")
