"""Which bridge and session a command is about, and what becomes of errors.

A command is a function whose first argument is a ``Connection``; ``at_a_bridge`` gives it the
options that all of them have. gRPC is loaded by what opens a connection, so that help is quick.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from snakepit_bridge.cli.options import check_bridge
from snakepit_bridge.cli.output import prepare, say_error
from snakepit_bridge.cli.units import duration
from snakepit_bridge.cli.values import is_number

if TYPE_CHECKING:
    from snakepit_bridge.client import Client, Session

__all__ = ["Connection", "MetaOption", "RequestIdOption", "ValueCommand", "at_a_bridge"]

_PANEL = "Which bridge, and how"

_SOURCE = "terminal"
"""Who makes the changes, as their history has it."""

MetaOption = Annotated[
    list[str] | None,
    typer.Option(
        "--meta",
        metavar="KEY=VALUE",
        help="Metadata, for the history; can be given several times.",
        show_default=False,
    ),
]

RequestIdOption = Annotated[
    str,
    typer.Option(
        metavar="ID",
        help="Name this request: with the same one it can be repeated, and is done once.",
        show_default=False,
    ),
]


def _target(text: str) -> str:
    if not text:
        raise typer.BadParameter("write HOST:PORT, such as localhost:50050")
    check_bridge(text, None)
    return text


@dataclass(frozen=True, slots=True)
class Connection:
    """The options that all commands share."""

    bridge: Annotated[
        str,
        typer.Option(
            "--bridge",
            "-b",
            metavar="HOST:PORT",
            help="Where the bridge listens.",
            envvar="SNAKEPIT_BRIDGE_TARGET",
            callback=_target,
            rich_help_panel=_PANEL,
        ),
    ] = "localhost:50050"
    session: Annotated[
        str,
        typer.Option(
            "--session",
            "-s",
            metavar="ID",
            help="Whose variables. Snakepit 0.4 uses the default.",
            envvar="SNAKEPIT_BRIDGE_SESSION",
            rich_help_panel=_PANEL,
        ),
    ] = "default_session"
    timeout: Annotated[
        float | None,
        typer.Option(
            help="How long a call may take; 0 = as long as it takes.",
            parser=duration,
            metavar="AGE",
            show_default="10s; none for call",
            rich_help_panel=_PANEL,
        ),
    ] = None
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="Holds the token that the bridge asks for.",
            envvar="SNAKEPIT_BRIDGE_TOKEN_FILE",
            rich_help_panel=_PANEL,
        ),
    ] = None
    tls: Annotated[
        bool,
        typer.Option("--tls", help="Encrypt, and check who answers.", rich_help_panel=_PANEL),
    ] = False
    ca: Annotated[
        Path | None,
        typer.Option(
            help="Certificates (PEM) to trust instead of the system's; implies --tls.",
            exists=True,
            dir_okay=False,
            readable=True,
            rich_help_panel=_PANEL,
        ),
    ] = None
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print JSON, for programs.", rich_help_panel=_PANEL),
    ] = False

    def call_timeout(self, default: float = 10.0) -> float:
        """Seconds; ``default`` where nothing was chosen, ``inf`` for as long as it takes."""
        return default if self.timeout is None else self.timeout or math.inf

    def connect(self, *, retries: bool = False) -> Client:
        """A client of the bridge, which connects at its first call.

        :param retries: without them a bridge that is not there is said at once.
        :raises TokenUnusable: the token file holds none.
        """
        from snakepit_bridge.client import TLS, Client  # noqa: PLC0415 - loads gRPC
        from snakepit_bridge.tokens import read_token  # noqa: PLC0415 - as quick as help

        return Client(
            self.bridge,
            timeout=self.call_timeout(),
            token="" if self.token_file is None else read_token(self.token_file),
            tls=TLS(ca=self.ca) if self.tls or self.ca is not None else None,
            retries=retries,
            source=_SOURCE,
        )

    @contextmanager
    def client(self, *, retries: bool = False) -> Iterator[Client]:
        """As ``connect``; what the bridge refuses is said on stderr, with exit code 1."""
        from snakepit_bridge.errors import BridgeError  # noqa: PLC0415 - as quick as help
        from snakepit_bridge.tokens import TokenUnusable  # noqa: PLC0415 - as well

        try:
            with self.connect(retries=retries) as client:
                yield client
        except (BridgeError, TokenUnusable) as error:
            say_error(self._words(error))
            raise typer.Exit(1) from None

    @contextmanager
    def open(self, *, retries: bool = False) -> Iterator[Session]:
        """The session at the bridge; as ``client``."""
        with self.client(retries=retries) as client:
            yield client.session(self.session)

    def _words(self, error: Exception) -> str:
        """The bridge's own, but where the next step is another one at a terminal."""
        from snakepit_bridge.errors import SessionNotFound  # noqa: PLC0415 - as quick as help

        text = str(error)
        if isinstance(error, SessionNotFound):
            return (
                f"session {self.session!r} not found: `snakepit-bridge register` begins it, "
                "--session names another"
            )
        absent = f"no bridge answers at {self.bridge}"
        if not text.startswith(absent) or "Connection refused" not in text:
            return text
        return f"{absent}: start one with `snakepit-bridge serve`, or name another with --bridge"


class ValueCommand(TyperCommand):
    """A command among whose arguments there may be negative numbers."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - typer's own context
        """Take a negative number for the argument that it is; any other dash begins an option."""
        ctx.ignore_unknown_options = any(word.startswith("-") and is_number(word) for word in args)
        return super().parse_args(ctx, args)


def at_a_bridge(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a ``Connection``, after its own."""
    signature = inspect.signature(command, eval_str=True)
    own = list(signature.parameters.values())[1:]
    shared = list(inspect.signature(Connection, eval_str=True).parameters.values())
    names = [field.name for field in fields(Connection)]

    @functools.wraps(command)
    def run(**given: Any) -> None:  # noqa: ANN401 - whatever options there are
        prepare()
        for value in given.values():
            _require_utf8(value)
        command(Connection(**{name: given.pop(name) for name in names}), **given)

    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*own, *shared)]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    del run.__wrapped__
    return run


def _require_utf8(value: object) -> None:
    texts: list[object] = value if isinstance(value, list) else [value]
    for text in texts:
        if isinstance(text, str) and not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                raise typer.BadParameter(f"{os.fsencode(text)!r} is not UTF-8") from None
