"""``snakepit-bridge watch``: changes as they are made, in a terminal or for a program.

A bookmark is kept after what it covers was printed, and Ctrl-C waits for that: so the next run
shows what this one did not, and only that.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from snakepit_bridge.cli.completion import variable_names
from snakepit_bridge.cli.connection import Connection, at_a_bridge
from snakepit_bridge.cli.files import read_bookmark, write_bookmark
from snakepit_bridge.cli.output import (
    document_of,
    pale,
    safe,
    say_error,
    say_note,
    screen,
    shown,
    write_json,
)

if TYPE_CHECKING:
    from snakepit_bridge.client import Bookmark, Watch, WatchStatus
    from snakepit_bridge.views import Change

__all__ = ["watch"]

_KINDS = ("value_change", "registered", "deleted")

_WIDEST_NAME = 24
"""Columns up to which names are lined up."""

_OLD = 32
"""Characters of a value that is no longer."""

_STOPS = (signal.SIGINT, signal.SIGTERM)


@at_a_bridge
def watch(
    at: Connection,
    patterns: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATTERN",
            help="Names, ids or patterns: * is anything, ? one character.",
            show_default="all",
            autocompletion=variable_names,
        ),
    ] = None,
    initial: Annotated[
        bool,
        typer.Option(
            "--initial",
            "-i",
            help="Begin with the values as they are, where there is no bookmark to go on from.",
        ),
    ] = False,
    bookmark: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Keep the place here, and go on there the next time: nothing is missed between "
            "two runs, and nothing shown twice.",
            dir_okay=False,
            show_default=False,
        ),
    ] = None,
    begin_anew: Annotated[
        bool,
        typer.Option(
            "--begin-anew",
            help="Where the bookmark is no longer in the log, go on with the values as they are, "
            "instead of refusing.",
        ),
    ] = False,
) -> None:
    """Show each change as it is made, until Ctrl-C or the end of the session.

    [dim]When the bridge is gone it waits for it, and then goes on where it was: each change
    comes once, in order. What belongs to one transaction is tied together by a line.
    Changes go to stdout, news of the connection to stderr.[/dim]

    [bold]Examples[/bold]

    snakepit-bridge watch
    snakepit-bridge watch temperature 'max_*' --initial
    snakepit-bridge watch --bookmark tour.json
    snakepit-bridge watch --json | jq -r 'select(.kind == "value_change").name'
    """
    place = _Place(bookmark)
    with at.client(retries=True) as client, _stopping() as stop:
        from snakepit_bridge.errors import (  # noqa: PLC0415 - as quick as help
            EpochMismatch,
            OffsetOutOfRange,
        )

        news = _News(at)
        made = client.session(at.session).watch(
            *(patterns or ()),
            bookmark=place.bookmark,
            initial=initial,
            kinds=_KINDS,
            begin_anew=begin_anew,
            on_status=news.tell,
        )
        try:
            stop.run(made, _Printer(as_json=at.as_json), place, news)
        except (EpochMismatch, OffsetOutOfRange) as error:
            say_error(error.message)
            say_note("The place is no longer in the log: --begin-anew goes on without it.")
            raise typer.Exit(1) from None


class _Stop:
    """Ctrl-C, which does not come between what was printed and its bookmark."""

    def __init__(self) -> None:
        self._waiting = True
        self._wanted = False

    def handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - as signals call
        """Stop at once where that loses nothing, else as soon as it does not."""
        self._wanted = True
        if self._waiting:
            raise KeyboardInterrupt

    def run(self, made: Watch, printer: _Printer, place: _Place, news: _News) -> None:
        """Print transactions, each whole, and keep the place after each."""
        transaction: list[Change] = []
        with made:
            news.caught_up = lambda: place.keep(made.bookmark)
            for change in made:
                transaction.append(change)
                if change.kind != "initial_value" and change.resume_offset < change.offset:
                    continue
                self._waiting = False
                printer.show(transaction)
                if change.kind != "initial_value":
                    place.keep(_place_after(change))
                transaction.clear()
                self._waiting = True
                if self._wanted:
                    return
            self._waiting = False
            say_note("The session has ended.", "yellow")
            place.forget()


class _Place:
    """Where a watch is: in its file, if it has one."""

    def __init__(self, file: Path | None) -> None:
        """:raises typer.BadParameter: the file holds something else."""
        self._file = file
        self.bookmark: Bookmark | None = None if file is None else read_bookmark(file)

    def keep(self, bookmark: Bookmark) -> None:
        if self._file is None or bookmark == self.bookmark:
            return
        try:
            write_bookmark(self._file, bookmark)
        except OSError as error:
            say_error(f"the place cannot be kept in {self._file}: {error.strerror}")
            raise typer.Exit(1) from None
        self.bookmark = bookmark

    def forget(self) -> None:
        """A session of this name that begins later is another one."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)


class _News:
    """What is said of the connection: each thing once, however often it is tried."""

    def __init__(self, at: Connection) -> None:
        self._at = at
        self._away = False
        self._begun = False
        self.caught_up: Callable[[], None] = lambda: None

    def tell(self, status: WatchStatus) -> None:
        """Called by the watch."""
        if status.kind == "interrupted":
            # A bridge ends watches that are open for long; those go on at once.
            if not self._away and status.wait:
                say_note(f"Interrupted, trying again: {status.message}", "yellow")
                self._away = True
        elif status.kind == "begun_anew":
            say_note(f"Beginning anew: {status.message}", "yellow")
        elif status.kind == "resumed":
            if self._away:
                say_note("Going on.", "green")
            self._away = False
        else:
            self.caught_up()
            if not self._begun:
                where = f"session {self._at.session} at {self._at.bridge}"
                say_note(f"Caught up. Watching {where}, until Ctrl-C.")
            self._begun = True


class _Printer:
    """Changes, for people or as JSON lines."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._screen = screen()
        self._width = 0

    def show(self, transaction: list[Change]) -> None:
        """Print what belongs together."""
        if self._as_json:
            for change in transaction:
                write_json(document_of(change))
            return
        for number, change in enumerate(transaction):
            self._screen.print(self._line(change, _tie(number, len(transaction))), soft_wrap=True)
        self._screen.file.flush()

    def _line(self, change: Change, tie: str) -> Text:
        name = safe(change.name)
        self._width = max(self._width, min(len(name), _WIDEST_NAME))
        line = Text.assemble(
            pale(f"{change.changed_at.astimezone():%H:%M:%S} "),
            (f"{tie} ", "dim"),
            (name.ljust(self._width), "bold"),
            "  ",
        )
        old, new = shown(change.old, change.type, _OLD), shown(change.new, change.type)
        if change.kind == "value_change":
            line.append_text(Text.assemble((old, "red"), " → ", (new, "green")))
        elif change.kind == "deleted":
            line.append_text(Text.assemble(("deleted", "bold red"), ", was ", (old, "red")))
        elif change.kind == "registered":
            line.append_text(Text.assemble(("new", "bold green"), " ", (new, "green")))
            line.append(f" {change.type}", "dim")
        else:
            line.append_text(Text.assemble("is ", (new, "cyan")))
        version = f"  version {change.version:,}" if change.kind != "deleted" else ""
        line.append(f"{version}  {safe(change.source, lines=False)}", "dim")
        return line


@contextmanager
def _stopping() -> Iterator[_Stop]:
    """Have Ctrl-C and SIGTERM end the block, as a success."""
    stop = _Stop()
    before = {each: signal.signal(each, stop.handle) for each in _STOPS}
    try:
        yield stop
    except KeyboardInterrupt:
        return
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _place_after(change: Change) -> Bookmark:
    from snakepit_bridge.client import Bookmark  # noqa: PLC0415 - loads gRPC

    return Bookmark(change.log_epoch, change.resume_offset, change.resume_check)


def _tie(number: int, count: int) -> str:
    """Left of the changes of one transaction, if there are several."""
    if count == 1:
        return " "
    return "┌" if number == 0 else "└" if number == count - 1 else "│"
