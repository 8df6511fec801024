"""Values as people write them on a command line: JSON, plain words, files, standard input.

What a word means follows from the type that the value is for. Only the form is judged here;
whether a value is right for its variable is for the bridge to say, in its own words.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import typer

__all__ = [
    "STDIN",
    "constraints_of",
    "is_number",
    "json_object",
    "needs_type",
    "pairs",
    "value_of",
]

STDIN = "-"
"""In place of a value: what standard input holds."""

_WORDS = frozenset({"string", "choice", "module"})
"""Types whose values are text, and need no quotes."""

_FLOATS = frozenset({"NaN", "Infinity", "-Infinity"})
"""What JSON has no number for, as the wire names it."""

_NUMBER = re.compile(r"[+-]?(?:\d.*|\.\d.*|Infinity|NaN)")
_NPY = b"\x93NUMPY"
_LARGEST = 1 << 30
"""Bytes that are read of a file or of standard input; a bridge takes 128 MiB by default."""


def is_number(word: str) -> bool:
    """Whether a word that begins with a dash is no option but a negative number."""
    return _NUMBER.fullmatch(word) is not None


def needs_type(text: str) -> bool:
    """Whether what a text means depends on the type of its variable."""
    return not (text.startswith("@") and Path(text[1:]).suffix == ".npy")


def value_of(text: str, type_name: str, what: str) -> object:
    """Read one value.

    :param type_name: of the variable or parameter; ``any`` or an unknown one takes JSON, and
        what is no JSON as text.
    :param what: the value is of, for messages.
    :returns: what JSON has, an array from ``.npy``, bytes for ``binary``; text that is no JSON
        as it is, for the bridge to refuse where no text can stand.
    :raises typer.BadParameter: it cannot be read.
    """
    if text == STDIN:
        return _from_bytes(_stdin(what), type_name, what)
    if text.startswith("@"):
        return _from_file(Path(text[1:]), type_name, what)
    return _from_text(text, type_name, what)


def json_object(text: str, what: str) -> dict[str, object]:
    """Read a JSON object, ``@file.json``, or standard input.

    :raises typer.BadParameter: it is none.
    """
    value = value_of(text, "map", what)
    if not isinstance(value, dict):
        raise typer.BadParameter(f"{what} must be a JSON object: {{...}}")
    return value


def pairs(words: Iterable[str], what: str, example: str) -> dict[str, str]:
    """Read ``name=value`` words; the value is kept as it is.

    :raises typer.BadParameter: a word has no ``=``, or a name comes twice.
    """
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals):
            raise typer.BadParameter(f"{word!r} is no {what}: write {example}")
        if name in found:
            raise typer.BadParameter(f"{what} {name!r} is given twice")
        found[name] = value
    return found


def constraints_of(
    numbers: Mapping[str, str | None], choices: Iterable[str], document: str | None
) -> dict[str, object] | None:
    """Put the options that constrain a variable together.

    :param numbers: of each key the JSON number, or None.
    :param choices: separated by commas.
    :returns: None when nothing was given.
    :raises typer.BadParameter: something cannot be read, or is given twice.
    """
    found: dict[str, object] = {}
    for key, text in numbers.items():
        if text is not None:
            found[key] = _number(text, f"--{key}")
    split = [one.strip() for each in choices for one in each.split(",")]
    if split:
        found["choices"] = split
    if document is not None:
        for key, value in json_object(document, "--constraints").items():
            if key in found:
                raise typer.BadParameter(f"--{key} and --constraints both give {key!r}")
            found[key] = value
    return found or None


def _number(text: str, what: str) -> object:
    value = _json(text.encode("utf-8", "replace"), what)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise typer.BadParameter(f"{what} must be a number, not {text!r}")
    return value


def _from_text(text: str, type_name: str, what: str) -> object:
    if type_name == "binary":
        return text.encode()
    if type_name in _WORDS and not text.startswith('"'):
        return text
    if type_name == "float" and (special := text.strip('"')) in _FLOATS:
        return float(special)
    from snakepit_bridge.errors import InvalidValue  # noqa: PLC0415 - with what it loads
    from snakepit_bridge.strict_json import parse  # noqa: PLC0415 - as well

    try:
        return parse(text.encode())
    except InvalidValue as error:
        if type_name not in _WORDS and text.lstrip()[:1] in {"[", "{", '"'}:
            raise typer.BadParameter(f"{what}: {error.message}") from None
        return text


def _from_file(path: Path, type_name: str, what: str) -> object:
    if type_name != "binary" and path.suffix not in {".npy", ".json"}:
        raise typer.BadParameter(
            f"{what}: @ means a file, {str(path)!r} is neither .npy nor .json. For a text that "
            f"begins with @ write it as JSON: '\"@{path}\"'"
        )
    try:
        with path.open("rb") as file:
            content = _bounded(file, f"{what}: {path}")
    except OSError as error:
        raise typer.BadParameter(f"{what}: {path}: {error.strerror}") from None
    if type_name == "binary":
        return content
    if path.suffix == ".npy":
        return _array(content, type_name, f"{what}: {path}")
    return _json(content, f"{what}: {path}")


def _from_bytes(content: bytes, type_name: str, what: str) -> object:
    """What standard input held."""
    if type_name == "binary":
        return content
    if content.startswith(_NPY):
        return _array(content, type_name, what)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise typer.BadParameter(
            f"{what}: standard input is neither UTF-8 nor an .npy file ({error.reason} at byte "
            f"{error.start})"
        ) from None
    # As `$(...)` does: most commands end what they print with a line feed.
    return _from_text(text.removesuffix("\n").removesuffix("\r"), type_name, what)


def _stdin(what: str) -> bytes:
    return _bounded(sys.stdin.buffer, f"{what}: standard input")


def _bounded(file: BinaryIO, what: str) -> bytes:
    content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise typer.BadParameter(f"{what} is longer than {_LARGEST:,} bytes")
    return content


def _array(content: bytes, type_name: str, what: str) -> object:
    import numpy as np  # noqa: PLC0415 - takes its time

    try:
        # Never pickled objects: reading those runs code that whoever wrote the file chose.
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError) as error:
        raise typer.BadParameter(f"{what} is no array that numpy.save wrote: {error}") from None
    return array.tolist() if type_name == "list" else array


def _json(content: bytes, what: str) -> object:
    from snakepit_bridge.errors import InvalidValue  # noqa: PLC0415 - with what it loads
    from snakepit_bridge.strict_json import parse  # noqa: PLC0415 - as well

    try:
        return parse(content)
    except InvalidValue as error:
        raise typer.BadParameter(f"{what}: {error.message}") from None
