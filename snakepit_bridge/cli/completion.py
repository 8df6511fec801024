"""What the tab key offers, as the bridge has it at that moment.

A bridge that does not answer within half a second offers nothing, and nothing is said of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import typer

from snakepit_bridge.cli.connection import Connection

if TYPE_CHECKING:
    from snakepit_bridge.client import Client

__all__ = ["arguments", "assignments", "tool_names", "types", "variable_names"]

_PATIENCE = 0.5
"""Seconds, for everything that one press of the key asks."""

_TYPES = (
    ("float", "a number"),
    ("integer", "of up to 4,300 digits"),
    ("string", "any text"),
    ("boolean", "true or false"),
    ("choice", "one of --choices"),
    ("module", "name of a module"),
    ("embedding", "a list of numbers"),
    ("tensor", "an array of numbers"),
)


def types(incomplete: str) -> Iterator[tuple[str, str]]:
    """Types of variables."""
    return ((name, about) for name, about in _TYPES if name.startswith(incomplete))


def variable_names(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Names of variables that are not on the line yet."""
    given = set(_words(ctx, "names", "patterns"))
    return [each for each in _variables(ctx, incomplete) if each[0] not in given]


def assignments(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Where a name is due those of variables; where a value is, what a variable can be."""
    words = _words(ctx, "assignments")
    if len(words) % 2 == 0:
        given = set(words[::2])
        return [each for each in _variables(ctx, incomplete) if each[0] not in given]
    values: list[str] = []
    with suppress(LookupError), _connected(ctx) as (client, at):
        variable = client.session(at.session).get(words[-1])
        values = _values(variable.type, variable.constraints)
    return [(value, "") for value in values if value.startswith(incomplete)]


def tool_names(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Names of tools."""
    found: list[tuple[str, str]] = []
    with _connected(ctx) as (client, _):
        for name, tool in client.tools().items():
            if name.startswith(incomplete):
                found.append((name, tool.description.partition("\n")[0]))
    return found


def arguments(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """``name=`` of the parameters of the tool that is on the line."""
    given = {word.partition("=")[0] for word in _words(ctx, "arguments")}
    found: list[tuple[str, str]] = []
    with suppress(KeyError), _connected(ctx) as (client, _):
        for each in client.tools()[ctx.params.get("tool") or ""].parameters:
            word = f"{each.name}="
            if word.startswith(incomplete) and each.name not in given:
                found.append((word, f"{each.type} {each.description}".partition("\n")[0]))
    return found


def _variables(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    # What would be a pattern stands in no name.
    if not any(each in incomplete for each in "*?"):
        with _connected(ctx) as (client, at):
            variables = client.session(at.session).list(f"{incomplete}*")
            found = [(each.name, each.type) for each in variables]
    return found


def _values(type_name: str, constraints: Mapping[str, Any]) -> list[str]:
    if type_name == "boolean":
        return ["true", "false"]
    values: Iterable[object] = constraints.get("choices") or constraints.get("enum") or ()
    return [value for value in values if isinstance(value, str)]


def _words(ctx: typer.Context, *names: str) -> list[str]:
    """What is on the line for arguments of these names."""
    return [word for name in names for word in ctx.params.get(name) or ()]


@contextmanager
def _connected(ctx: typer.Context) -> Iterator[tuple[Client, Connection]]:
    """A client by the options that are on the line; what goes wrong leaves the block, unsaid."""
    from snakepit_bridge.errors import BridgeError  # noqa: PLC0415 - as quick as help
    from snakepit_bridge.tokens import TokenUnusable  # noqa: PLC0415 - as well

    known = {field.name: field.default for field in fields(Connection)}
    given = {name: ctx.params[name] for name in known if ctx.params.get(name) is not None}
    at = Connection(**{**known, **given, "timeout": _PATIENCE})
    with suppress(BridgeError, TokenUnusable), at.connect() as client:
        yield client, at
