"""What the client's calls give beside ``views``: immutable values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Self

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge.errors import BridgeError
from snakepit_bridge.tool_values import decode_argument

__all__ = [
    "Bookmark",
    "SessionInfo",
    "StreamItem",
    "ToolDescription",
    "ToolFailed",
    "ToolParameter",
    "WatchStatus",
    "Written",
]


class Written(NamedTuple):
    """What became of a change."""

    version: int
    """Of the variable; 0 when it was deleted."""
    offset: int
    """The event, and the log that it is in."""
    log_epoch: str
    duplicate: bool
    """Whether this request id was known, and this is the answer of then."""


class Bookmark(NamedTuple):
    """A place in the log of a session: all that has to be kept to go on watching there.

    ``Bookmark(*json.loads(text))`` is what ``json.dumps(bookmark)`` wrote.
    """

    log_epoch: str
    offset: int
    """Everything up to here was delivered."""
    check: int
    """By which a place in another, copied-back log is told apart."""


class SessionInfo(NamedTuple):
    session_id: str
    metadata: Mapping[str, str]
    created_at: datetime
    variable_count: int
    tool_count: int
    offset: int
    """The head of its log."""
    log_epoch: str


@dataclass(frozen=True, slots=True)
class WatchStatus:
    """How a watch is doing, as ``on_status`` is told."""

    kind: Literal["caught_up", "interrupted", "resumed", "begun_anew"]
    """*caught_up*: everything up to now was delivered. *interrupted*: there is no connection; it is
    tried again after ``wait``. *resumed*: there is one again, and nothing was missed.
    *begun_anew*: the place is no longer in the log, changes may have been missed, and the values as
    they are now follow as ``initial_value``."""
    message: str = ""
    wait: float = 0.0
    """Seconds until the next try."""


@dataclass(frozen=True, slots=True)
class ToolParameter:
    name: str
    type: str
    description: str
    required: bool
    default: Any
    """``None`` where there is none."""
    validation: Mapping[str, Any]
    """What the value has to fulfil, as constraints of a variable."""


@dataclass(frozen=True, slots=True)
class ToolDescription:
    """A tool as its bridge announces it."""

    name: str
    description: str
    parameters: tuple[ToolParameter, ...]
    supports_streaming: bool
    metadata: Mapping[str, str]

    @classmethod
    def of(cls, spec: pb.ToolSpec) -> Self:
        """From the wire."""
        return cls(
            spec.name,
            spec.description,
            tuple(_parameter(one) for one in spec.parameters),
            spec.supports_streaming,
            MappingProxyType(dict(spec.metadata)),
        )


def _parameter(spec: pb.ParameterSpec) -> ToolParameter:
    default = None
    if spec.HasField("default_value"):
        default = decode_argument(spec.default_value.SerializeToString())
    return ToolParameter(
        spec.name,
        spec.type,
        spec.description,
        spec.required,
        default,
        MappingProxyType(json.loads(spec.validation_json or "{}")),
    )


class StreamItem(NamedTuple):
    """One item of a tool's stream."""

    data: Any
    """What its JSON says; bytes where it is none."""
    metadata: Mapping[str, str]

    @property
    def is_progress(self) -> bool:
        """Whether this tells how far the tool is (``progress``, ``total``, ``message``)."""
        return self.metadata.get("kind") == "progress"

    @classmethod
    def of(cls, chunk: pb.ToolChunk) -> Self:
        """From the wire."""
        try:
            data: Any = json.loads(chunk.data)
        except ValueError:
            data = chunk.data
        return cls(data, MappingProxyType(dict(chunk.metadata)))


class ToolFailed(BridgeError):
    """A tool ran, and raised."""

    reason = "TOOL_RAISED"

    error_type: str
    """Name of the class of what it raised; empty when only its words are known."""
    traceback: str
    """Of the tool's own frames; empty when it is not known."""

    @classmethod
    def of(cls, tool: str, error_message: str) -> Self:
        """From ``error_message`` of the wire: JSON with type, message and traceback, or words."""
        try:
            told = json.loads(error_message)
            type_, message, trace = told["type"], told["message"], told.get("traceback", "")
        except (ValueError, TypeError, KeyError):
            type_, message, trace = "", error_message or "no reason was given", ""
        what = f"{type_}: {message}" if type_ else message
        made = cls(f"tool {tool!r} raised {what}", tool=tool, error_type=type_)
        made.error_type, made.traceback = type_, trace
        return made
