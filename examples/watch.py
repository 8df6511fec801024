"""Print what changes in a session, each change once, whatever happens to the bridge meanwhile.

make run                                          # in one terminal
python examples/watch.py tour                     # in another: all variables of that session
python examples/watch.py tour temperature 'max_*' --bookmark watch.json
# stop the bridge however you like and start it again: this goes on where it was. With
# --bookmark it also does when it was itself stopped meanwhile.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from rich.console import Console

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge import bridge_service_pb2_grpc as stubs

BOOKMARK = ("log_epoch", "resume_offset", "resume_check")
KINDS = ("value_change", "registered", "deleted")
LARGEST_SHOWN = 1_000
"""Bytes of a value; a longer one is not even sent."""

SHORTEST_WAIT, LONGEST_WAIT = 0.1, 5.0
"""Seconds until the next attempt, while the bridge is away."""

OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", int(1000 * SHORTEST_WAIT)),
    ("grpc.max_reconnect_backoff_ms", int(1000 * LONGEST_WAIT)),
)
"""gRPC's own: two minutes at most."""

GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
"""Go on from the bookmark."""

NO_LONGER_THERE = (grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.FAILED_PRECONDITION)
"""The bookmark is of no use: begin with the values as they are."""

console = Console(highlight=False, markup=False, soft_wrap=True)


def main(
    session: Annotated[str, typer.Argument(help="Whose variables.")],
    names: Annotated[
        list[str] | None, typer.Argument(help="Names, ids or patterns; none = all.")
    ] = None,
    target: Annotated[str, typer.Option(help="Where the bridge listens.")] = "localhost:50050",
    bookmark: Annotated[
        Path | None, typer.Option(help="A file that keeps the place between two runs.")
    ] = None,
) -> None:
    """Print each change of a session until it ends, or until Ctrl-C."""
    try:
        with suppress(KeyboardInterrupt), grpc.insecure_channel(target, OPTIONS) as channel:
            watch(stubs.BridgeServiceStub(channel), session, names or [], Kept(bookmark))
    except grpc.RpcError as error:
        console.print(f"{error.code().name}: {error.details()}")
        raise typer.Exit(1) from error


def watch(bridge: Any, session: str, names: list[str], kept: Kept) -> None:
    """Show every change up to the end of the session."""
    wait, away = SHORTEST_WAIT, False
    while True:
        transaction: list[Any] = []
        try:
            for update in bridge.WatchVariables(request(session, names, kept)):
                if away:
                    console.print("Going on.")
                wait, away = SHORTEST_WAIT, False
                transaction.append(update)
                if update.resume_offset == update.offset:  # it is complete
                    show(transaction)
                    kept.keep(update)
                    transaction = []
        except grpc.RpcError as error:
            if error.code() in NO_LONGER_THERE and kept.bookmark:
                console.print(f"Beginning anew: {error.details()}")
                kept.forget()
            elif error.code() in GONE:
                if not away:
                    console.print(f"Interrupted, trying again: {error.details()}")
                away = True
                time.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT)
            else:
                raise
        else:
            console.print("The session has ended.")
            kept.forget()
            return


def request(session: str, names: list[str], kept: Kept) -> pb.WatchVariablesRequest:
    """Ask for what follows the bookmark; without one for all values, and what follows them."""
    asked = pb.WatchVariablesRequest(
        session_id=session,
        variable_identifiers=names,
        update_types=KINDS,
        max_value_bytes=LARGEST_SHOWN,
        send_caught_up=True,  # a bookmark at once, even if there is nothing to send
    )
    if kept.bookmark:
        asked.log_epoch = kept.bookmark["log_epoch"]
        asked.after_offset = kept.bookmark["resume_offset"]
        asked.resume_check = kept.bookmark["resume_check"]
    else:
        asked.include_initial_values = True
    return asked


class Kept:
    """A bookmark: in memory and, if there is one, in a file."""

    def __init__(self, file: Path | None) -> None:
        self.bookmark: dict[str, Any] = {}
        self._file = file
        if file is not None and file.exists():
            try:
                kept = json.loads(file.read_text())
                self.bookmark = {name: kept[name] for name in BOOKMARK}
            except (ValueError, TypeError, KeyError) as error:
                raise typer.BadParameter(f"{file} holds no bookmark") from error

    def keep(self, update: Any) -> None:
        bookmark = {name: getattr(update, name) for name in BOOKMARK}
        if bookmark == self.bookmark:
            return
        self.bookmark = bookmark
        if self._file is not None:
            temporary = self._file.with_name(f".{self._file.name}.{os.getpid()}")
            with temporary.open("w") as file:
                json.dump(bookmark, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._file)

    def forget(self) -> None:
        self.bookmark = {}
        if self._file is not None:
            self._file.unlink(missing_ok=True)


def show(transaction: list[Any]) -> None:
    """Print updates that belong together; a heartbeat or ``caught_up`` is about no variable."""
    for update in transaction:
        if not update.HasField("variable"):
            continue
        variable = update.variable
        value = update.old_value if update.update_type == "deleted" else variable.value
        shown = value.value.decode() if value.type_url else "too large to show"
        console.print(
            f"{update.offset:>4}  {update.update_type:<13}  {variable.name} = {shown}"
            f"  (version {variable.version}, {update.update_source})"
        )


if __name__ == "__main__":
    typer.run(main)
