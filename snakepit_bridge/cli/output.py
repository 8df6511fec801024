"""What commands print: text for people, JSON for programs.

People get one line a value, shortened, without anything that would steer their terminal. Programs
get each value whole, in the JSON that the wire has for it.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from snakepit_bridge.views import Variable

__all__ = [
    "age",
    "complete",
    "document_of",
    "fail_with",
    "items",
    "json_value",
    "pale",
    "prepare",
    "safe",
    "say",
    "say_error",
    "say_note",
    "screen",
    "shown",
    "table",
    "variable_table",
    "write_json",
    "write_text",
]

_WIDE = 1_000
"""Columns where nobody looks: what is read by a program is not cut to 80."""

_FEW = 8
"""Numbers of an array that are shown all."""

_FIRST = 3
"""Numbers that are shown of a larger one."""

_SHORTEST, _USUAL = 16, 60
"""Characters that a value gets at least, and that it gets in a line of its own."""

# Escape sequences can change what a terminal shows before and after them, and marks of direction
# what a line seems to say.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def prepare() -> None:
    """Have what a terminal's encoding has no character for printed as an escape, not refused."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def screen(*, stderr: bool = False) -> Console:
    """Where text for people goes. Colours only in a terminal, and not with ``NO_COLOR``."""
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
        console.width = _WIDE
    return console


def say(*parts: str | Text | tuple[str, str]) -> None:
    """Print a line for people on stdout."""
    _line(screen(), Text.assemble(*parts))


def say_error(message: str) -> None:
    """Say on stderr why something was not done."""
    text = Text.assemble(("snakepit-bridge: ", "bold red"), (safe(message), "red"))
    _line(screen(stderr=True), text)


def fail_with(errors: Mapping[str, str]) -> None:
    """Say errors, if there are any, and end with exit code 1."""
    for message in errors.values():
        say_error(message)
    if errors:
        raise typer.Exit(1)


def say_note(message: str, style: str = "dim") -> None:
    """Say on stderr what is no result."""
    _line(screen(stderr=True), Text(safe(message), style))


def _line(console: Console, text: Text) -> None:
    # In a terminal between words; elsewhere a line stays one, however long.
    console.print(text, soft_wrap=not console.is_terminal)


def write_json(document: object) -> None:
    """Print one line of strict JSON, in UTF-8 whatever the terminal's encoding."""
    from snakepit_bridge.json_documents import write_document  # noqa: PLC0415 - loads numpy

    write_text(write_document("output", "a JSON value", document) + b"\n")


def write_text(content: bytes) -> None:
    """Write bytes as they are on stdout, at once."""
    sys.stdout.flush()
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


def safe(text: str, *, lines: bool = True) -> str:
    """Replace what would steer a terminal by escapes.

    :param lines: whether line feeds and tabs may stay.
    """
    text = _STEERING.sub(lambda match: ascii(match[0])[1:-1], text)
    return text if lines else text.replace("\n", "\\n").replace("\t", "\\t")


def shown(value: object, type_name: str, limit: int = _USUAL) -> str:
    """One value in one line for people.

    Text of type string is in JSON's quotes, choices and modules are bare. Arrays of more than 8
    numbers are shown by dtype, shape, first numbers and, of embeddings, norm.
    """
    import numpy as np  # noqa: PLC0415 - takes its time

    if isinstance(value, np.ndarray):
        text = _shown_array(value, type_name)
    elif isinstance(value, bytes):
        text = f"{len(value):,} bytes"
    elif isinstance(value, str) and type_name in {"choice", "module"}:
        text = safe(value, lines=False)
    else:
        text = safe(_json_text(value), lines=False)
    if len(text) <= limit:
        return text
    size = f" ({len(text):,} characters)" if limit >= _USUAL else ""
    return f"{text[: limit - len(size) - 1]}…{size}"


def complete(value: object, type_name: str) -> str:
    """A value alone, as ``$(...)`` wants it: text without quotes, large arrays still shortened."""
    if isinstance(value, str):
        return value
    import numpy as np  # noqa: PLC0415 - takes its time

    return _shown_array(value, type_name) if isinstance(value, np.ndarray) else _json_text(value)


def json_value(value: object, type_name: str = "") -> Any:  # noqa: ANN401 - any JSON
    """A value as its JSON on the wire; bytes, for which there is none, as base64.

    :param type_name: of a variable; a tool's result has none.
    """
    import numpy as np  # noqa: PLC0415 - takes its time

    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if not isinstance(value, np.ndarray):
        return value
    if type_name == "tensor" or (not type_name and value.ndim != 1):
        return {"shape": list(value.shape), "data": value.tolist()}
    return value.tolist()


def document_of(view: Any) -> dict[str, Any]:  # noqa: ANN401 - any of the client's dataclasses
    """The fields of a variable, a change or a tool, under their names."""
    document = {}
    for field in fields(view):
        value = getattr(view, field.name)
        if isinstance(value, datetime):
            value = value.isoformat()
        elif isinstance(value, Mapping):
            value = dict(value)
        elif isinstance(value, tuple):
            value = [document_of(each) for each in value]
        elif field.name in {"value", "old", "new", "default"}:
            value = json_value(value, view.type)
        document[field.name] = value
    return document


def table(*heads: str) -> Table:
    """An empty table, as all commands have it."""
    return Table(*heads, box=None, header_style="bold", pad_edge=False)


def pale(text: str) -> Text:
    """What matters less."""
    return Text(text, "dim")


def items(pairs: Mapping[str, object]) -> str:
    """Constraints or metadata in one line: ``min 0, max 2``."""
    return ", ".join(
        f"{safe(key, lines=False)} {value if isinstance(value, str) else _json_text(value)}"
        for key, value in pairs.items()
    )


def age(moment: datetime) -> str:
    """How long ago: ``12s``, ``5m``, ``3h``, ``8d``."""
    seconds = max(0.0, (datetime.now(UTC) - moment).total_seconds())
    for unit, length, longest in (("s", 1, 120), ("m", 60, 7_200), ("h", 3_600, 172_800)):
        if seconds < longest:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds / 86_400:.0f}d"


def variable_table(variables: Mapping[str, Variable], width: int) -> Table:
    """Variables by the names they were asked by, a line each where ``width`` columns allow it."""
    made = table("name", "type", "value", "version", "source", "age")
    made.columns[0].overflow = "fold"
    made.columns[0].max_width = max(_SHORTEST, 2 * width // 5)
    made.columns[4].overflow = "fold"
    made.columns[3].justify = made.columns[5].justify = "right"
    others = [
        (name, each.type, str(each.version), each.source, age(each.updated_at))
        for name, each in variables.items()
    ]
    used = sum(
        max([len(head), *(len(row[at]) for row in others)]) + 2
        for at, head in enumerate(("name", "type", "version", "source", "age"))
    )
    limit = min(_USUAL, max(_SHORTEST, width - used))
    for (name, type_, version, source, when), each in zip(others, variables.values(), strict=True):
        made.add_row(
            Text(safe(name), "bold"),
            pale(type_),
            Text(shown(each.value, each.type, limit), no_wrap=True, overflow="ellipsis"),
            version,
            pale(safe(source, lines=False)),
            pale(when),
        )
    return made


def _json_text(value: object) -> str:
    # NaN and Infinity are left as people know them.
    return json.dumps(value, ensure_ascii=False)


def _shown_array(array: NDArray[Any], type_name: str) -> str:
    import numpy as np  # noqa: PLC0415 - takes its time

    if array.size <= _FEW:
        return _json_text(array.tolist())
    first = ", ".join(f"{number:.4g}" for number in array.reshape(-1)[:_FIRST].tolist())
    shape = "×".join(map(str, array.shape))
    norm = f", norm {np.linalg.norm(array):.4g}" if type_name == "embedding" else ""
    return f"{array.dtype} {shape} [{first}, …]{norm}"
