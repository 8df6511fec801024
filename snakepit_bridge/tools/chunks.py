"""What a streaming tool yields, as the bytes that go into ``ToolChunk.data``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from snakepit_bridge.errors import InvalidValue, quote
from snakepit_bridge.json_documents import DOCUMENT, write_document
from snakepit_bridge.strict_json import MAX_DEPTH
from snakepit_bridge.tools.failures import shortened

__all__ = ["Chunk", "StreamChunk", "chunk_of", "progress_chunk", "refusal"]

_MAX_PATH = 300
"""Bytes of a path that a message names."""

_PREFIX = "a value of type item "
"""How the refusals of ``write_document`` begin, where a path can say it better."""


class StreamChunk:
    """One piece of a stream, with metadata. A tool may as well yield the data alone.

    The name, the place of the arguments and the attributes are Snakepit's.
    """

    __slots__ = ("data", "is_final", "metadata")

    def __init__(
        self,
        data: object,
        is_final: bool = False,  # noqa: FBT001, FBT002 - Snakepit's tools give it by position
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """:param is_final: of no effect beside data: a stream ends when its tool does."""
        self.data = data
        self.is_final = is_final
        self.metadata = metadata

    def __repr__(self) -> str:
        return f"StreamChunk({self.data!r}, is_final={self.is_final}, metadata={self.metadata})"


class Chunk(NamedTuple):
    data: bytes
    metadata: Mapping[str, str]


def chunk_of(item: object) -> Chunk | None:
    """Write what a tool yielded.

    :param item: bytes, bytearray or memoryview, which go as they are; a ``StreamChunk``, or
        anything with ``data`` and ``is_final``; or what JSON has a form for, numpy arrays and
        scalars included. NaN and the infinities become their strings.
    :returns: ``None`` for a final ``StreamChunk`` of ``None``, which only says that it is the last.
    :raises InvalidValue: JSON has no form for it; the message names the place inside.
    """
    if isinstance(item, StreamChunk) or (hasattr(item, "data") and hasattr(item, "is_final")):
        whole: Any = item
        if whole.data is None and whole.is_final:
            return None
        return Chunk(_bytes(whole.data), _metadata(getattr(whole, "metadata", None)))
    return Chunk(_bytes(item), {})


def progress_chunk(done: float, total: float, message: str) -> Chunk:
    """Write what ``report_progress`` tells; a total of 0 is unknown."""
    content: dict[str, object] = {"progress": done}
    if total:
        content["total"] = total
    if message:
        content["message"] = message
    return Chunk(_bytes(content), {"kind": "progress"})


def refusal(name: str, value: object, error: InvalidValue) -> str:
    """Say which part of a tool's result or chunk has no JSON, and what serves instead.

    :param name: of the whole, for the path: ``result['a'][3]``.
    :param error: why it was refused.
    """
    path, part, refused = name, value, _refused(value)
    for _ in range(MAX_DEPTH):
        for place, inner in _parts(part):
            # The part that is to blame is refused on its own as well.
            if (deeper := _refused(inner)) is not None:
                path, part, refused = f"{path}[{place}]", inner, deeper
                break
        else:
            break
    else:
        return f"{name} is nested deeper than {MAX_DEPTH} levels, or contains itself"
    path = shortened(path, _MAX_PATH)
    if refused is None:
        return f"{path}: {error.message}"
    if isinstance(part, list | tuple | dict | np.ndarray | str | int | float):
        return f"{path} {refused.message.removeprefix(_PREFIX)}"
    return (
        f"{path} is a {type(part)}, which JSON has no form for: give None, bool, int, float, str, "
        "list, tuple, dict or numpy array"
    )


def _bytes(item: object) -> bytes:
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(item)
    try:
        return write_document("chunk", DOCUMENT, item)
    except InvalidValue as error:
        raise InvalidValue(refusal("item", item, error)) from None


def _refused(part: object) -> InvalidValue | None:
    try:
        write_document("item", DOCUMENT, part)
    except InvalidValue as error:
        return error
    return None


def _parts(item: object) -> Iterator[tuple[str, object]]:
    if isinstance(item, dict):
        for key, part in item.items():
            yield quote(key) if isinstance(key, str) else quote(repr(key)), part
    elif isinstance(item, list | tuple):
        for index, part in enumerate(item):
            yield str(index), part


def _is_text(part: object) -> bool:
    """Whether it is a str that has UTF-8: lone surrogates have none."""
    return type(part) is str and not _SURROGATE.search(part)


_SURROGATE = re.compile("[\ud800-\udfff]")


def _metadata(metadata: object) -> Mapping[str, str]:
    if metadata is None:
        return {}
    if isinstance(metadata, Mapping):
        items = list(metadata.items())
        if all(_is_text(key) and _is_text(value) for key, value in items):
            return dict(items)
        wrong = next(
            f"{key!r}: {value!r}" for key, value in items if not (_is_text(key) and _is_text(value))
        )
        given = f"one with {quote(wrong)}"
    else:
        given = f"a {type(metadata)}"
    raise InvalidValue(f"the metadata of a chunk must be a dict of str to str, not {given}")
