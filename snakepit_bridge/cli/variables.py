"""``snakepit-bridge register|set|delete``: changing variables from a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from snakepit_bridge.cli.completion import assignments as complete_assignments
from snakepit_bridge.cli.completion import types, variable_names
from snakepit_bridge.cli.connection import (
    Connection,
    MetaOption,
    RequestIdOption,
    at_a_bridge,
)
from snakepit_bridge.cli.output import (
    document_of,
    fail_with,
    pale,
    safe,
    say,
    say_error,
    shown,
    write_json,
)
from snakepit_bridge.cli.values import STDIN, constraints_of, needs_type, pairs, value_of

if TYPE_CHECKING:
    from snakepit_bridge.client import Session

__all__ = ["delete", "register", "set_"]

_CONSTRAINTS = "What values it takes"


@at_a_bridge
def register(
    at: Connection,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the new variable.")],
    type_: Annotated[
        str,
        typer.Argument(
            metavar="TYPE",
            help="float, integer, string, boolean, choice, module, embedding or tensor.",
            autocompletion=types,
        ),
    ],
    value: Annotated[str, typer.Argument(metavar="VALUE", help="Its first value.")],
    minimum: Annotated[
        str | None,
        typer.Option("--min", metavar="NUMBER", help="Least number.", rich_help_panel=_CONSTRAINTS),
    ] = None,
    maximum: Annotated[
        str | None,
        typer.Option(
            "--max", metavar="NUMBER", help="Greatest number.", rich_help_panel=_CONSTRAINTS
        ),
    ] = None,
    choices: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A,B,...",
            help="The only values; can be given several times.",
            show_default=False,
            rich_help_panel=_CONSTRAINTS,
        ),
    ] = None,
    constraints: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help="All that there are: pattern, min_length, dimensions, shape, ...",
            rich_help_panel=_CONSTRAINTS,
        ),
    ] = None,
    meta: MetaOption = None,
    request_id: RequestIdOption = "",
) -> None:
    """Make a new variable; a session that is not there begins with it.

    [dim]A value is JSON, or a plain word where text is wanted; @file.npy and @file.json
    are read, - is standard input.[/dim]

    [bold]Examples[/bold]

    snakepit-bridge register temperature float 0.7 --min 0 --max 2
    snakepit-bridge register mode choice fast --choices fast,careful
    snakepit-bridge register model module dspy.Predict
    snakepit-bridge register query embedding @query.npy
    snakepit-bridge register code string AB-1 --constraints '{"max_length": 9}'
    """
    bounds = {"min": minimum, "max": maximum}
    checked = constraints_of(bounds, choices or (), constraints)
    metadata = pairs(meta or (), "metadata", "--meta reason=tuning")
    first = value_of(value, type_, "VALUE")
    with at.open() as session:
        variable = session.register(
            name, type_, first, checked, metadata=metadata, request_id=request_id
        )
    if at.as_json:
        write_json(document_of(variable))
    else:
        _say_version(variable.name, shown(variable.value, type_), variable.version, variable.type)


@at_a_bridge
def set_(
    at: Connection,
    assignments: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME VALUE",
            help="What is to be what. Several pairs are one transaction: all or nothing.",
            autocompletion=complete_assignments,
        ),
    ],
    if_version: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Only if this is still its version: nobody else's change is lost.",
            show_default=False,
        ),
    ] = None,
    meta: MetaOption = None,
    request_id: RequestIdOption = "",
) -> None:
    """Give variables new values.

    [dim]A value is JSON, or a plain word where text is wanted; @file.npy and @file.json
    are read, - is standard input.[/dim]

    [bold]Examples[/bold]

    snakepit-bridge set temperature 0.9 --meta reason="too dull"
    snakepit-bridge set temperature 0.9 mode careful
    snakepit-bridge set temperature 1.0 --if-version 3
    snakepit-bridge set query @query.npy
    cat prompt.txt | snakepit-bridge set prompt -
    """
    names, texts = assignments[::2], assignments[1::2]
    if len(names) != len(texts):
        raise typer.BadParameter(f"{names[-1]!r} has no value: give NAME VALUE pairs")
    if len(set(names)) != len(names):
        raise typer.BadParameter("a variable is named twice")
    if texts.count(STDIN) > 1:
        raise typer.BadParameter("standard input is one value: write - once")
    if if_version is not None and len(names) > 1:
        raise typer.BadParameter("is about one variable: set one", param_hint="--if-version")
    metadata = pairs(meta or (), "metadata", "--meta reason=tuning")
    with at.open() as session:
        types = _types(session, names, texts)
        updates = {
            name: value_of(text, types.get(name, "any"), name)
            for name, text in zip(names, texts, strict=True)
        }
        if len(names) == 1:
            version = if_version or 0
            written = session.set(
                names[0],
                updates[names[0]],
                expected_version=version,
                metadata=metadata,
                request_id=request_id,
            )
            versions: Mapping[str, int] = {names[0]: written.version}
        else:
            versions = _set_many(session, updates, metadata, request_id)
    if at.as_json:
        write_json({"session": at.session, "versions": dict(versions)})
        return
    for name, version in versions.items():
        _say_version(name, shown(updates[name], types.get(name, "")), version)


@at_a_bridge
def delete(
    at: Connection,
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME", help="Names or ids.", autocompletion=variable_names),
    ],
    meta: MetaOption = None,
    request_id: RequestIdOption = "",
) -> None:
    """Delete variables. The log keeps what they were.

    [bold]Examples[/bold]

    snakepit-bridge delete temperature
    snakepit-bridge delete temperature mode --meta reason="the tour is over"
    """
    from snakepit_bridge.errors import VariableNotFound  # noqa: PLC0415 - as quick as help

    metadata = pairs(meta or (), "metadata", "--meta reason=tuning")
    if request_id and len(names) > 1:
        raise typer.BadParameter("names one request: delete one", param_hint="--request-id")
    deleted: dict[str, int] = {}
    errors: dict[str, str] = {}
    with at.open() as session:
        for name in dict.fromkeys(names):
            try:
                written = session.delete(name, metadata=metadata, request_id=request_id)
            except VariableNotFound as error:
                errors[name] = error.message
            else:
                deleted[name] = written.offset
                if not at.as_json:
                    say("deleted ", (safe(name), "bold"))
    if at.as_json:
        write_json({"session": at.session, "deleted": deleted, "errors": errors})
    fail_with(errors)


def _types(session: Session, names: list[str], texts: list[str]) -> dict[str, str]:
    """Types of the variables; of one that is not there none, which is for the bridge to say."""
    asked = [name for name, text in zip(names, texts, strict=True) if needs_type(text)]
    if not asked:
        return {}
    found = session.get_many(asked).variables
    return {name: variable.type for name, variable in found.items()}


def _set_many(
    session: Session,
    updates: Mapping[str, object],
    metadata: Mapping[str, str],
    request_id: str,
) -> Mapping[str, int]:
    from snakepit_bridge.views import BatchRefused  # noqa: PLC0415 - as quick as help

    try:
        return session.set_many(updates, metadata=metadata, request_id=request_id).versions
    except BatchRefused as error:
        for message in error.errors.values():
            say_error(message)
        say_error("nothing was set: several variables are set together or not at all")
        raise typer.Exit(1) from None


def _say_version(name: str, value: str, version: int, type_: str = "") -> None:
    about = f"  {type_}, version {version:,}" if type_ else f"  version {version:,}"
    say((safe(name), "bold"), " = ", value, pale(about))
