"""``snakepit-bridge get|list``: reading variables from a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from snakepit_bridge.cli.completion import variable_names
from snakepit_bridge.cli.connection import Connection, at_a_bridge
from snakepit_bridge.cli.files import value_bytes, write_value
from snakepit_bridge.cli.output import (
    complete,
    document_of,
    fail_with,
    items,
    safe,
    say_error,
    say_note,
    screen,
    shown,
    table,
    variable_table,
    write_json,
    write_text,
)

if TYPE_CHECKING:
    from snakepit_bridge.client import Session
    from snakepit_bridge.views import Variable

__all__ = ["get", "list_"]

_LONG = 1_000
"""Characters of a value among all that is known of its variable."""


@at_a_bridge
def get(
    at: Connection,
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME", help="Names or ids.", autocompletion=variable_names),
    ],
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show all that is known of each.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the value, whole, into a file: .npy (of arrays) or .json.",
            dir_okay=False,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Print the value of a variable, and nothing else; of several a table.

    [dim]Arrays of more than 8 numbers are shown shortened: --json and --out give them whole.
    Several variables are read at one moment: no change lies between them.[/dim]

    [bold]Examples[/bold]

    snakepit-bridge get temperature
    echo "it is $(snakepit-bridge get temperature) now"
    snakepit-bridge get -v temperature
    snakepit-bridge get query --out query.npy
    snakepit-bridge get temperature model --json
    """
    if out is not None and len(names) > 1:
        raise typer.BadParameter("a file holds one value: name one variable", param_hint="--out")
    with at.open() as session:
        if len(names) > 1:
            _get_many(session, at, names, verbose=verbose)
            return
        variable = session.get(names[0])
    if out is not None:
        content = value_bytes(out, variable)
        try:
            write_value(out, content)
        except OSError as error:
            say_error(f"{out} cannot be written: {error.strerror}")
            raise typer.Exit(1) from None
        say_note(f"{out}: {shown(variable.value, variable.type)}")
    elif at.as_json:
        write_json(document_of(variable))
    elif verbose:
        screen().print(_everything(variable))
    else:
        text = complete(variable.value, variable.type)
        if screen().is_terminal:
            text = safe(text)
        write_text(text.encode() + b"\n")


@at_a_bridge
def list_(
    at: Connection,
    pattern: Annotated[
        str,
        typer.Argument(
            metavar="PATTERN",
            help="* is anything, ? one character.",
            show_default="all",
            autocompletion=variable_names,
        ),
    ] = "",
) -> None:
    """Show the variables of a session.

    [bold]Examples[/bold]

    snakepit-bridge list
    snakepit-bridge list 'max_*' --session tour
    snakepit-bridge list --json | jq -r '.variables[].name'
    """
    with at.open() as session:
        variables = session.list(pattern)
    if at.as_json:
        found = [document_of(each) for each in variables]
        write_json({"session": at.session, "variables": found})
    elif variables:
        console = screen()
        console.print(variable_table({each.name: each for each in variables}, console.width))
    else:
        like = f" is like {pattern!r}" if pattern else ""
        say_note(f"session {at.session!r}: no variable{like}")


def _get_many(session: Session, at: Connection, names: list[str], *, verbose: bool) -> None:
    from snakepit_bridge.errors import VariableNotFound  # noqa: PLC0415 - as quick as help

    reading = session.get_many(names)
    missing = {
        name: VariableNotFound(name).message for name in names if name not in reading.variables
    }
    if at.as_json:
        write_json(
            {
                "session": at.session,
                "log_epoch": reading.log_epoch,
                "offset": reading.offset,
                "variables": {key: document_of(each) for key, each in reading.variables.items()},
                "missing": list(missing),
            }
        )
    elif verbose:
        for number, variable in enumerate(reading.variables.values()):
            screen().print("\n" * bool(number), _everything(variable), sep="", end="")
    elif reading.variables:
        console = screen()
        console.print(variable_table(reading.variables, console.width))
    fail_with(missing)


def _everything(variable: Variable) -> Table:
    made = table()
    made.show_header = False
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    metadata = {key: value for key, value in variable.metadata.items() if key != "source"}
    for key, text in (
        ("name", safe(variable.name)),
        ("id", variable.id),
        ("type", variable.type),
        ("value", shown(variable.value, variable.type, _LONG)),
        ("version", f"{variable.version:,}"),
        ("offset", f"{variable.offset:,}"),
        ("constraints", items(variable.constraints)),
        ("metadata", items(metadata)),
        ("source", safe(variable.source)),
        ("updated", variable.updated_at.astimezone().isoformat(" ", "seconds")),
    ):
        made.add_row(key, Text(text))
    return made
