"""What a program does with the Python client: values, changes that are made once, a watch.

make run                               # in one terminal
python examples/client.py              # in another
python examples/client.py --watch      # in a third: every change, over restarts of either side
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from snakepit_bridge.client import Bookmark, Client, Session, WatchStatus
from snakepit_bridge.errors import AlreadyExists, BridgeError, VersionConflict

SESSION = "client-example"


def main(
    target: Annotated[str, typer.Option(help="Where the bridge listens.")] = "localhost:50050",
    watch: Annotated[bool, typer.Option("--watch", help="Print what changes.")] = False,
    bookmark: Annotated[
        Path, typer.Option(help="A file that keeps the place of --watch between two runs.")
    ] = Path("client-example.json"),
) -> None:
    """Change variables of a session, or watch them."""
    try:
        with Client(target) as bridge:
            session = bridge.session(SESSION)
            declare(session)
            if watch:
                with suppress(KeyboardInterrupt):
                    follow(session, bookmark)
            else:
                change(session)
    except BridgeError as error:
        print(f"{type(error).__name__}: {error.message}")
        raise typer.Exit(1) from error


def declare(session: Session) -> None:
    """Create the variables, unless an earlier run has."""
    for name, type_, value, constraints in (
        ("temperature", "float", 0.7, {"min": 0, "max": 2}),
        ("calls", "integer", 0, {"min": 0}),
        ("query", "embedding", [0.6, 0.8], {"dimensions": 2}),
    ):
        with suppress(AlreadyExists):
            session.register(name, type_, value, constraints)


def change(session: Session) -> None:
    """Set, count, set together, look back."""
    session["temperature"] = 0.9
    count(session)
    with session.batch(metadata={"reason": "tuned"}) as batch:
        batch["temperature"] = 1.1
        batch["query"] = [1.0, 0.0]
    try:
        session["temperature"] = 9
    except BridgeError as error:
        print("Refused:", error.message)
    for version in session.history("temperature", limit=3):
        print(f"version {version.version}: {version.value}, by {version.source}")
    print("calls:", session["calls"])


def count(session: Session) -> None:
    """Add one, however many programs do so at the same time."""
    while True:
        calls = session.get("calls")
        try:
            session.set("calls", calls.value + 1, expected_version=calls.version)
        except VersionConflict:
            continue  # somebody else has: read again
        return


def follow(session: Session, file: Path) -> None:
    """Print each change once, and go on after the last one that was printed."""
    kept = Bookmark(*json.loads(file.read_text())) if file.exists() else None
    with session.watch(
        bookmark=kept, initial=kept is None, begin_anew=True, on_status=tell
    ) as changes:
        for change in changes:
            print(f"{change.name} = {change.new}  ({change.kind}, by {change.source})", flush=True)
            if change.resume_offset == change.offset:  # its transaction is complete
                keep(file, changes.bookmark)


def tell(status: WatchStatus) -> None:
    """Say how the watch is doing."""
    print(f"[{status.kind}] {status.message}".rstrip(), flush=True)


def keep(file: Path, bookmark: Bookmark) -> None:
    """Replace the file in one go: whoever is killed meanwhile has the old one."""
    temporary = file.with_suffix(".new")
    with temporary.open("w") as new:
        json.dump(bookmark, new)
        new.flush()
        os.fsync(new.fileno())
    temporary.replace(file)


if __name__ == "__main__":
    typer.run(main)
