"""``snakepit-bridge tools``: what tools there are."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from snakepit_bridge.cli.completion import tool_names
from snakepit_bridge.cli.connection import Connection, at_a_bridge
from snakepit_bridge.cli.output import (
    document_of,
    pale,
    safe,
    say,
    say_note,
    screen,
    shown,
    table,
    write_json,
)

if TYPE_CHECKING:
    from snakepit_bridge.client import ToolDescription, ToolParameter

__all__ = ["tools"]


@at_a_bridge
def tools(
    at: Connection,
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="One of them.", autocompletion=tool_names),
    ] = None,
) -> None:
    """Show the tools of a bridge, or all that is known of one.

    [bold]Examples[/bold]

    snakepit-bridge tools
    snakepit-bridge tools count
    snakepit-bridge tools --json | jq -r '.tools[].name'
    """
    with at.client() as client:
        found = client.tools()
        if name is not None:
            _describe(_find(found, name), as_json=at.as_json)
            return
    if at.as_json:
        write_json({"tools": [_document(tool) for tool in found.values()]})
    elif found:
        made = table("tool", "arguments", "what it does")
        made.columns[0].overflow = made.columns[1].overflow = "fold"
        for tool in found.values():
            about = safe(tool.description.partition("\n")[0])
            made.add_row(
                Text(safe(tool.name), "bold"),
                pale(_usage(tool.parameters)),
                Text.assemble(about, (" (stream)", "cyan") if tool.supports_streaming else ""),
            )
        screen().print(made)
    else:
        say_note(f"the bridge at {at.bridge} has no tools: serve --adapter gives it some")


def _find(found: Mapping[str, ToolDescription], name: str) -> ToolDescription:
    from snakepit_bridge.errors import ToolNotFound  # noqa: PLC0415 - as quick as help

    if name not in found:
        raise ToolNotFound(name, difflib.get_close_matches(name, found, n=2))
    return found[name]


def _document(tool: ToolDescription) -> dict[str, Any]:
    return document_of(tool)


def _describe(tool: ToolDescription, *, as_json: bool) -> None:
    if as_json:
        write_json(_document(tool))
        return
    say((safe(tool.name), "bold"), ("  stream" if tool.supports_streaming else "", "cyan"))
    say(safe(tool.description))
    if tool.parameters:
        made = table("argument", "type", "default", "what")
        made.columns[0].overflow = "fold"
        for each in tool.parameters:
            what = safe(each.description)
            limits = _limits(each.validation)
            default = "required" if each.required else shown(each.default, each.type, 30)
            made.add_row(
                Text(safe(each.name), "bold"),
                pale(each.type),
                Text(default, "yellow" if each.required else ""),
                Text.assemble(what, " " if what and limits else "", (limits, "dim")),
            )
        say()
        screen().print(made)
    say()
    say(pale("snakepit-bridge call "), safe(tool.name), " ", _usage(tool.parameters))


_SCHEMA_WORDS = {
    "minimum": "≥",
    "maximum": "≤",
    "exclusiveMinimum": ">",
    "exclusiveMaximum": "<",
    "enum": "one of",
    "pattern": "pattern",
    "minLength": "at least this long:",
    "maxLength": "at most this long:",
    "minItems": "at least so many:",
    "maxItems": "at most so many:",
}
"""JSON Schema, for people; what else there is ``--json`` shows."""


def _limits(validation: Mapping[str, Any]) -> str:
    told = [
        f"{words} {safe(json.dumps(validation[key], ensure_ascii=False), lines=False)}"
        for key, words in _SCHEMA_WORDS.items()
        if key in validation
    ]
    return f"({', '.join(told)})" if told else ""


def _usage(parameters: Iterable[ToolParameter]) -> str:
    """Arguments as they are written; those that may be left out in brackets, with their values."""
    words = []
    for each in parameters:
        name = safe(each.name)
        words.append(
            f"{name}=..." if each.required else f"[{name}={shown(each.default, each.type, 24)}]"
        )
    return " ".join(words)
