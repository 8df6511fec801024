"""``snakepit-bridge snakepit``: a worker of a pool, as Snakepit launches it."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from snakepit_bridge.cli.options import (
    BridgeOption,
    BridgeTokenOption,
    LogFormatOption,
    MetricsDirectoryOption,
    MetricsHostOption,
    MetricsPortOption,
    RecordOption,
    check_bridge,
    check_metrics,
    log_to_stderr,
    refuse,
)
from snakepit_bridge.events.log import LogUnusable
from snakepit_bridge.limits import DEFAULTS
from snakepit_bridge.slots import default_base

__all__ = ["COMMAND", "snakepit"]

logger = logging.getLogger(__name__)

COMMAND = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Typer's settings for the command: a newer Snakepit may pass more than is known here."""

_HEARTBEATS = "Heartbeats to Elixir"
_SNAKEPIT = "Passed by Snakepit"


def snakepit(
    context: typer.Context,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="Tools to serve: package.module.Class, or package.module. May be repeated.",
            show_default=False,
        ),
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="TCP port on 127.0.0.1 and ::1; 0 = any free.")
    ] = 0,
    elixir_address: Annotated[
        str,
        typer.Option(
            help="host:port of Snakepit's gRPC server; without it there are no tools of Elixir's.",
            envvar=["SNAKEPIT_GRPC_ADDRESS", "SNAKEPIT_ELIXIR_ADDRESS"],
            show_default=False,
        ),
    ] = "",
    max_workers: Annotated[
        int,
        typer.Option(
            min=1,
            max=1_000,
            help="Blocking tools that run at a time, in threads.",
            rich_help_panel="Tools",
        ),
    ] = DEFAULTS.tool_threads,
    record_tools: RecordOption = "full",
    log: Annotated[
        str,
        typer.Option(
            help="One log, sqlite:PATH or memory:, for a pool of one worker. Default: a slot.",
            show_default=False,
        ),
    ] = "",
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Base of the slots, one directory for each worker of a pool.",
            envvar="SNAKEPIT_BRIDGE_DATA_DIR",
            show_default="in the user's state directory",
        ),
    ] = None,
    bridge: BridgeOption = "",
    bridge_token_file: BridgeTokenOption = None,
    metrics_port: MetricsPortOption = None,
    metrics_host: MetricsHostOption = "127.0.0.1",
    metrics_sd_dir: MetricsDirectoryOption = None,
    ready_file: Annotated[
        Path | None,
        typer.Option(
            help="Write the port here, atomically, once serving.",
            envvar="SNAKEPIT_READY_FILE",
        ),
    ] = None,
    log_level: Annotated[
        str,
        typer.Option(
            help="debug, info, warning, error or none. Snakepit 0.13 passes its own.",
            envvar="SNAKEPIT_LOG_LEVEL",
        ),
    ] = "warning",
    log_format: LogFormatOption = "console",
    health_check: Annotated[
        bool,
        typer.Option("--health-check", help="Load the adapters, say whether that went, and exit."),
    ] = False,
    heartbeat_enabled: Annotated[
        bool | None,
        typer.Option("--heartbeat-enabled", help="Send them.", rich_help_panel=_HEARTBEATS),
    ] = None,
    heartbeat_interval_ms: Annotated[
        int | None,
        typer.Option(help="How often.", show_default="2000", rich_help_panel=_HEARTBEATS),
    ] = None,
    heartbeat_timeout_ms: Annotated[
        int | None,
        typer.Option(
            help="How long to wait for an answer.",
            show_default="10000",
            rich_help_panel=_HEARTBEATS,
        ),
    ] = None,
    heartbeat_max_missed: Annotated[
        int | None,
        typer.Option(
            help="Unanswered ones in a row after which Elixir is gone.",
            show_default="3",
            rich_help_panel=_HEARTBEATS,
        ),
    ] = None,
    heartbeat_initial_delay_ms: Annotated[
        int | None,
        typer.Option(help="Before the first.", show_default="0", rich_help_panel=_HEARTBEATS),
    ] = None,
    heartbeat_dependent: Annotated[
        bool | None,
        typer.Option(
            "--heartbeat-dependent/--heartbeat-independent",
            help="Stop, or go on, when Elixir is gone.",
            show_default="dependent",
            rich_help_panel=_HEARTBEATS,
        ),
    ] = None,
    snakepit_run_id: Annotated[
        str,
        typer.Option(
            help="By which Snakepit finds this process when it has to clean up.",
            show_default=False,
            rich_help_panel=_SNAKEPIT,
        ),
    ] = "",
    snakepit_instance_name: Annotated[
        str,
        typer.Option(
            help="Names the directory of the slots.",
            show_default=False,
            rich_help_panel=_SNAKEPIT,
        ),
    ] = "",
    snakepit_instance_token: Annotated[  # noqa: ARG001 - Snakepit looks for it in the process list
        str,
        typer.Option(
            help="As the run id; never logged.", show_default=False, rich_help_panel=_SNAKEPIT
        ),
    ] = "",
) -> None:
    """Serve one worker of a Snakepit pool, until SIGTERM or until Elixir is gone.

    Snakepit runs this by path, as .../snakepit_bridge/grpc_server.py with these options, since
    it tells its own processes by that name. Prints GRPC_READY:<port> on stdout once calls are
    answered, and writes SNAKEPIT_READY_FILE; everything else goes to stderr.

    Each worker keeps its sessions in a slot, a log of its own. One that is started in place of
    a dead one takes its slot, and goes on with its sessions.

    Workers of a pool share their options, so that --metrics-port 0 is the one for them; with
    --metrics-sd-dir Prometheus finds all.

    SNAKEPIT_HEARTBEAT_CONFIG (JSON) sets the heartbeats as the options do, which go before it;
    without either there are none. SNAKEPIT_PROCESS_GROUP=1: lead a process group.
    """
    log_to_stderr(log_level, log_format)
    if context.args:
        # Names only: one of the values may be a secret.
        names = [each.partition("=")[0] for each in context.args if each.startswith("-")]
        logger.warning("unknown options are ignored: %s", ", ".join(names) or "(a value only)")
    adapters = tuple(adapter or ())
    check_bridge(bridge, bridge_token_file)
    check_metrics(metrics_port, metrics_sd_dir)
    if health_check:
        _check_health(adapters)
        return
    _lead_process_group()
    from snakepit_bridge import server  # noqa: PLC0415 - loads gRPC
    from snakepit_bridge.heartbeats import read_heartbeat_config  # noqa: PLC0415 - as well
    from snakepit_bridge.observing import MetricsSettings  # noqa: PLC0415 - as well
    from snakepit_bridge.tools.adapters import AdapterUnusable  # noqa: PLC0415 - loads values

    heartbeat = read_heartbeat_config(
        os.environ,
        enabled=heartbeat_enabled,
        interval_ms=heartbeat_interval_ms,
        timeout_ms=heartbeat_timeout_ms,
        max_missed_heartbeats=heartbeat_max_missed,
        initial_delay_ms=heartbeat_initial_delay_ms,
        dependent=heartbeat_dependent,
    )
    if bridge and not log:
        log = "memory:"
    settings = server.Settings(
        log=log,
        slots=None if log else data_dir or default_base(snakepit_instance_name),
        access=server.Access(bridge=bridge, bridge_token_file=bridge_token_file),
        port=port,
        ready_file=ready_file,
        tools=server.ToolSettings(adapters, record_tools, elixir_address, heartbeat, max_workers),
        metrics=MetricsSettings(metrics_port, metrics_host, metrics_sd_dir),
    )
    logger.info("a worker of Snakepit's run %s", snakepit_run_id or "(none)")
    try:
        server.run(settings)
    except (AdapterUnusable, server.CannotServe, LogUnusable) as error:
        raise refuse(str(error)) from error


def _check_health(adapters: tuple[str, ...]) -> None:
    from snakepit_bridge.tools.adapters import (  # noqa: PLC0415 - loads values
        AdapterUnusable,
        load_toolbox,
    )

    try:
        toolbox = load_toolbox(adapters)
    except AdapterUnusable as error:
        raise refuse(str(error)) from error
    loaded = ", ".join(adapters) or "no adapter"
    typer.echo(f"snakepit-bridge: health check passed: {loaded}, {len(toolbox.definitions)} tools")


def _lead_process_group() -> None:
    """Let Snakepit end this process with its children by one signal to the group."""
    wanted = os.environ.get("SNAKEPIT_PROCESS_GROUP", "").lower() in {"1", "true", "yes", "on"}
    # Whoever was started as a leader, by setsid(1) say, is one: a second time is an error.
    if wanted and os.getpgrp() != os.getpid():
        os.setsid()
