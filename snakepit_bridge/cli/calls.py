"""``snakepit-bridge call``: running tools from a terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from snakepit_bridge.cli.completion import arguments as complete_arguments
from snakepit_bridge.cli.completion import tool_names
from snakepit_bridge.cli.connection import (
    Connection,
    MetaOption,
    RequestIdOption,
    at_a_bridge,
)
from snakepit_bridge.cli.interrupts import interruptible
from snakepit_bridge.cli.output import (
    json_value,
    safe,
    say,
    say_error,
    say_note,
    screen,
    shown,
    write_json,
    write_text,
)
from snakepit_bridge.cli.values import STDIN, json_object, pairs, value_of

if TYPE_CHECKING:
    from snakepit_bridge.client import StreamItem, ToolDescription, ToolParameter

__all__ = ["call"]


@at_a_bridge
def call(
    at: Connection,
    tool: Annotated[str, typer.Argument(metavar="TOOL", help="Which.", autocompletion=tool_names)],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME=VALUE",
            help="What it is given.",
            autocompletion=complete_arguments,
        ),
    ] = None,
    document: Annotated[
        str | None,
        typer.Option(
            "--arguments",
            metavar="JSON",
            help="An object of arguments, beside those above.",
            show_default=False,
        ),
    ] = None,
    meta: MetaOption = None,
    request_id: RequestIdOption = "",
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the traceback of a tool that raises.")
    ] = False,
) -> None:
    """Run a tool and print its result; of a streaming one each item as it comes.

    [dim]A value is JSON, or a plain word where the tool wants text; @file.npy and @file.json are
    read, - is standard input. Progress is shown on stderr. Ctrl-C cancels the tool.[/dim]

    [bold]Examples[/bold]

    snakepit-bridge call text_stats text="to be or not to be"
    snakepit-bridge call count to=3
    snakepit-bridge call statistics values=@measured.npy
    snakepit-bridge call tune --arguments '{"target": 1.5, "steps": 3}' --json
    """
    words = pairs(arguments or (), "argument", "text=hello or --arguments '{...}'")
    given = {} if document is None else json_object(document, "--arguments")
    metadata = pairs(meta or (), "metadata", "--meta reason=tuning")
    if both := given.keys() & words.keys():
        raise typer.BadParameter(f"{min(both)!r} is given twice, once in --arguments")
    if [*words.values(), document].count(STDIN) > 1:
        raise typer.BadParameter("standard input is one value: write - once")
    with at.client() as client:
        described = client.tools().get(tool)
        given |= _read(words, described)
        session = client.session(at.session)
        limit = at.call_timeout(math.inf)
        streams = described is not None and described.supports_streaming
        begin = partial(
            session.stream if streams else session.execute,
            tool,
            given,
            metadata=metadata,
            request_id=request_id,
            timeout=limit,
        )
        if streams:
            _stream(begin(), at, tool)
        else:
            _execute(begin, at, tool, verbose=verbose)


def _execute(run: Callable[[], object], at: Connection, tool: str, *, verbose: bool) -> None:
    from snakepit_bridge.client import ToolFailed  # noqa: PLC0415 - loads gRPC

    try:
        (result,) = interruptible(run() for _ in range(1))
    except ToolFailed as error:
        if verbose and error.traceback:
            say_note(error.traceback.rstrip("\n"))
        say_error(error.message)
        raise typer.Exit(1) from None
    if at.as_json:
        write_json({"tool": tool, "result": json_value(result)})
    else:
        _print(result)


def _stream(items: Any, at: Connection, tool: str) -> None:  # noqa: ANN401 - a generator
    with _Bar(tool) as bar:
        for item in interruptible(items):
            if at.as_json:
                write_json(
                    {
                        "data": json_value(item.data),
                        "metadata": dict(item.metadata),
                        "is_progress": item.is_progress,
                    }
                )
            elif not bar.take(item):
                bar.hide()
                _print(item.data, indent=None)
                bar.show()


class _Bar:
    """How far a tool is, on stderr, if that is a terminal."""

    def __init__(self, tool: str) -> None:
        console = screen(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            console=console,
            transient=True,
            # What is printed goes to stdout, and is not to be taken from it.
            redirect_stdout=False,
            redirect_stderr=False,
            disable=not console.is_terminal,
        )
        self._tool = tool
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.hide()

    def hide(self) -> None:
        """Clear its line, for what is printed there."""
        self._progress.stop()

    def show(self) -> None:
        """Draw it below what was printed."""
        if self._task is not None:
            self._progress.start()

    def take(self, item: StreamItem) -> bool:
        """Whether the item tells how far the tool is; then the bar does."""
        told = item.data
        if not item.is_progress or not isinstance(told, dict):
            return False
        done, total = (
            each if isinstance(each, int | float) else None
            for each in (told.get("progress"), told.get("total"))
        )
        words = safe(str(told.get("message") or self._tool), lines=False)
        if self._task is None:
            self._task = self._progress.add_task(words, total=total)
            self._progress.start()
        self._progress.update(self._task, description=words, completed=done, total=total)
        return True


def _read(words: Mapping[str, str], tool: ToolDescription | None) -> dict[str, object]:
    """Arguments by what the tool wants; what it does not want is for the bridge to refuse."""
    wanted = {} if tool is None else {each.name: each for each in tool.parameters}
    return {
        name: value_of(text, _type_of(wanted[name]) if name in wanted else "any", name)
        for name, text in words.items()
    }


def _type_of(parameter: ToolParameter) -> str:
    choices: Iterable[object] = parameter.validation.get("enum") or ()
    if parameter.type == "choice" and not all(isinstance(each, str) for each in choices):
        return "any"
    return parameter.type


def _print(result: object, indent: int | None = 2) -> None:
    """A result for people: text as it is, and everything else as JSON."""
    import numpy as np  # noqa: PLC0415 - takes its time

    console = screen()
    if isinstance(result, bytes):
        if console.is_terminal:
            say(shown(result, "binary"))
        else:
            write_text(result)
    elif isinstance(result, str):
        write_text((safe(result) if console.is_terminal else result).encode() + b"\n")
    elif isinstance(result, np.ndarray):
        say(shown(result, "tensor"))
    elif console.is_terminal:
        console.print_json(safe(json.dumps(result, ensure_ascii=False)), indent=indent)
    else:
        write_json(result)
