"""Files that commands write: whole or not at all, also when the power fails."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from snakepit_bridge.cli.output import json_value

if TYPE_CHECKING:
    from snakepit_bridge.client import Bookmark
    from snakepit_bridge.views import Variable

__all__ = ["read_bookmark", "value_bytes", "write_bookmark", "write_value"]

_LARGEST_BOOKMARK = 1_024
"""Bytes; one has about 70."""


def write_value(path: Path, content: bytes) -> None:
    """Write a file, in place of the one that may be there.

    :raises OSError: it cannot be written; the old one is as it was.
    """
    _replace(path, content, path.with_name(f".{path.name}.{os.getpid()}"))


def value_bytes(path: Path, variable: Variable) -> bytes:
    """A value as the ending of its file wants it.

    :raises typer.BadParameter: an ending that is not known, or an .npy file for what is no array.
    """
    import numpy as np  # noqa: PLC0415 - takes its time

    from snakepit_bridge.json_documents import write_document  # noqa: PLC0415 - as quick as help

    value = variable.value
    if path.suffix == ".json":
        document = json_value(value, variable.type)
        return write_document("output", "a JSON value", document) + b"\n"
    if path.suffix != ".npy":
        raise typer.BadParameter(f"{path} ends neither in .npy nor in .json", param_hint="--out")
    if not isinstance(value, np.ndarray):
        raise typer.BadParameter(
            f"an .npy file holds an array, and {variable.name!r} is of type {variable.type}: "
            "write a .json file",
            param_hint="--out",
        )
    file = io.BytesIO()
    np.save(file, value, allow_pickle=False)
    return file.getvalue()


def read_bookmark(path: Path) -> Bookmark | None:
    """The place that was kept; None where nothing was yet.

    :raises typer.BadParameter: the file cannot be read, or holds something else.
    """
    from snakepit_bridge.client import Bookmark  # noqa: PLC0415 - loads gRPC

    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_BOOKMARK + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror}", param_hint="--bookmark") from None
    try:
        epoch, offset, check = json.loads(content)
        if type(epoch) is str and type(offset) is type(check) is int and min(offset, check) >= 0:
            return Bookmark(epoch, offset, check)
    except (ValueError, TypeError):
        pass  # as what is JSON, and no bookmark
    raise typer.BadParameter(f"{path} holds no bookmark", param_hint="--bookmark")


def write_bookmark(path: Path, bookmark: Bookmark) -> None:
    """Keep a place; only one watch at a time may do so in a file.

    :raises OSError: it cannot be kept; the one before is.
    """
    # A name that is always the same: whoever is killed at this moment leaves one file at most.
    _replace(path, json.dumps(bookmark).encode() + b"\n", path.with_name(f".{path.name}.new"))


def _replace(path: Path, content: bytes, temporary: Path) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(temporary, flags, 0o666)  # less what the user's mask takes
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # of the new name
    finally:
        os.close(directory)
