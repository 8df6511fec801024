"""What names and metadata may be: small, as changes keep them and readings repeat them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from snakepit_bridge.errors import InvalidRequest, ResourceExhausted, quote
from snakepit_bridge.events.model import Envelope
from snakepit_bridge.events.projection import VariableState

__all__ = ["check_map", "check_merged", "check_metadata", "check_name", "is_label"]

MAX_NAME = 256
"""Bytes of session ids, request ids and names; the wire contract's limit."""

MAX_KEY = 256
"""Bytes; as names."""

MAX_BYTES = 64 * 1024
"""Keys and values of one map, and of what a variable has gathered: ten pages of text."""

MAX_LABEL = 512
"""Bytes of a source, a correlation id, a traceparent or a tracestate; W3C asks that at least
512 of the last be passed on."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def is_label(text: str) -> bool:
    """Whether it can be a source, a correlation id, or a trace context.

    A trace context that cannot be one is ignored, as W3C says; so is a correlation id in a
    header. Tracing is no reason to refuse a write.
    """
    return len(text.encode()) <= MAX_LABEL and not _CONTROL.search(text)


def check_metadata(envelope: Envelope) -> None:
    """Check the metadata of a change.

    :raises InvalidRequest: a key, the source or the correlation id cannot be one.
    :raises ResourceExhausted: they are too large.
    """
    check_map(envelope.metadata)
    for name, label in (
        ("source", envelope.origin.source),
        ("correlation_id", envelope.origin.correlation_id),
    ):
        if not is_label(label):
            raise InvalidRequest(
                f"{name} {quote(label)} in the metadata must have at most {MAX_LABEL} bytes and "
                "no control characters",
                field="metadata",
            )


def check_map(metadata: Mapping[str, str], field: str = "metadata") -> None:
    """Check one map of metadata, which goes by the name of its field."""
    for key in metadata:
        if len(key.encode()) > MAX_KEY:
            raise InvalidRequest(
                f"the key {quote(key)} in {field} must have at most {MAX_KEY} bytes", field=field
            )
    _check_size(metadata, f"{field} of the request")


def check_merged(variable: VariableState, changes: Mapping[str, str]) -> None:
    """Check what a change adds to the metadata that a variable has gathered."""
    if not changes.keys() <= variable.metadata.keys() or len(variable.metadata) > len(changes):
        merged = {**variable.metadata, **changes}
        _check_size(merged, f"metadata of variable {quote(variable.definition.name)}")


def check_name(field: str, name: str) -> None:
    """Check the name or id that stands in a field of a request.

    :raises InvalidRequest: it is empty, too long, or has control characters.
    """
    if not 1 <= len(name.encode()) <= MAX_NAME:
        raise InvalidRequest(f"{field} {quote(name)} must have 1 to {MAX_NAME} bytes", field=field)
    if not name.isprintable() and any(unicodedata.category(c) == "Cc" for c in name):
        raise InvalidRequest(f"{field} {quote(name)} contains a control character", field=field)


def _check_size(metadata: Mapping[str, str], what: str) -> None:
    size = sum(len(key.encode()) + len(value.encode()) for key, value in metadata.items())
    if size > MAX_BYTES:
        raise ResourceExhausted(
            f"{what}: {size} bytes are more than the limit of {MAX_BYTES}: keep large things in "
            "variables",
            field="metadata",
        )
