"""The commands for a person at a terminal, in the order in which help lists them."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import typer

from snakepit_bridge.cli.calls import call
from snakepit_bridge.cli.connection import ValueCommand
from snakepit_bridge.cli.reading import get, list_
from snakepit_bridge.cli.tools import tools
from snakepit_bridge.cli.variables import delete, register, set_
from snakepit_bridge.cli.watching import watch

__all__ = ["add_terminal"]

_VARIABLES = "Variables of a running bridge"
_EXAMPLES = "[bold]Examples[/bold]"
_TOOLS = "Tools of a running bridge"


def add_terminal(app: typer.Typer) -> None:
    """Add them to a command line."""
    _add(app, _VARIABLES, register, values=True)
    _add(app, _VARIABLES, get)
    _add(app, _VARIABLES, set_, name="set", values=True)
    _add(app, _VARIABLES, list_, name="list")
    _add(app, _VARIABLES, delete)
    _add(app, _VARIABLES, watch)
    _add(app, _TOOLS, tools)
    _add(app, _TOOLS, call, values=True)


def _add(
    app: typer.Typer,
    panel: str,
    command: Callable[..., None],
    *,
    name: str | None = None,
    values: bool = False,
) -> None:
    app.command(
        name,
        help=_flowing(inspect.getdoc(command) or ""),
        rich_help_panel=panel,
        cls=ValueCommand if values else None,
    )(command)


def _flowing(text: str) -> str:
    """Have prose broken by the terminal, and only examples where they were written."""
    prose, title, examples = text.partition(_EXAMPLES)
    paragraphs = (" ".join(each.split()) for each in prose.split("\n\n"))
    return "\n\n".join(paragraphs) + title + examples
