"""``snakepit-bridge verify``: whether what is stored is what was acknowledged."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from snakepit_bridge.cli.options import LogOption, default_log, refuse
from snakepit_bridge.events.log import EventLog, LogUnusable
from snakepit_bridge.events.model import LogHead

if TYPE_CHECKING:
    from snakepit_bridge.events.verification import Fault

__all__ = ["verify"]


def verify(
    log: LogOption = "",
    session: Annotated[
        str, typer.Option(help="Look at the logs of this session only.", show_default=False)
    ] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of a table.")
    ] = False,
) -> None:
    """Check every digest, offset, value and snapshot of the stored logs.

    Reads only, also while a bridge is running. Exit code 0 when all is well, 1 when
    something is damaged: then the table names the session and the first bad offset.
    """
    from snakepit_bridge.events.urls import open_copy  # noqa: PLC0415 - numpy, 60 ms

    try:
        engine = open_copy(log or default_log())
    except LogUnusable as error:
        raise refuse(str(error)) from error
    screen = Console(stderr=True)
    try:
        structure, heads, faults = _look(engine, session, screen)
    finally:
        engine.close()
    events = sum(head.head - head.base for head in heads)
    if as_json:
        typer.echo(json.dumps(_report(engine.url, heads, structure, faults)))
    else:
        _show(Console(), engine.url, structure, faults)
        verdict = "damaged" if structure or faults else "all is well"
        typer.secho(
            f"{len(heads):,} {'log' if len(heads) == 1 else 'logs'} with {events:,} events in "
            f"{engine.url}: {verdict}",
            fg=typer.colors.RED if structure or faults else typer.colors.GREEN,
        )
    if structure or faults:
        raise typer.Exit(1)


def _look(
    engine: EventLog, session: str, screen: Console
) -> tuple[list[str], list[LogHead], list[Fault]]:
    from snakepit_bridge.events.verification import (  # noqa: PLC0415 - as above
        all_heads,
        verify_log,
    )

    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=screen,
        transient=True,
    ) as progress:
        task = progress.add_task("structure of the file", total=None)
        structure = list(engine.faults())
        faults: list[Fault] = []
        heads: list[LogHead] = []
        if not structure:
            heads = [h for h in all_heads(engine) if not session or h.log.session_id == session]
            progress.update(
                task, description="events", total=sum(head.head - head.base for head in heads)
            )
        for head in heads:
            faults += verify_log(engine, head, lambda count: progress.advance(task, count))
    return structure, heads, faults


def _show(console: Console, url: str, structure: list[str], faults: list[Fault]) -> None:
    if structure:
        console.print(f"The database file of {url} is damaged; put back a copy:", style="red")
        for what in structure:
            console.print(Text(f"  {what}"))
    if faults:
        table = Table("session", "epoch", "offset", "what is wrong", box=None, header_style="bold")
        for fault in faults:
            table.add_row(
                Text(fault.log.session_id),
                fault.log.epoch,
                f"{fault.offset:,}",
                Text(fault.what, style="red"),
            )
        console.print(table)


def _report(
    url: str, heads: list[LogHead], structure: list[str], faults: list[Fault]
) -> dict[str, Any]:
    return {
        "log": url,
        "logs": len(heads),
        "events": sum(head.head - head.base for head in heads),
        "structure": structure,
        "faults": [
            {
                "session": fault.log.session_id,
                "epoch": fault.log.epoch,
                "offset": fault.offset,
                "what": fault.what,
            }
            for fault in faults
        ],
    }
