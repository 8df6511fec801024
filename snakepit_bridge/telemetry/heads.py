"""What a request names, from its first bytes: for spans and log lines, without reading it twice."""

from __future__ import annotations

from collections.abc import Mapping

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge.observation import Observation
from snakepit_bridge.telemetry import names

__all__ = ["HEAD", "leading_texts", "named_by"]

HEAD = 512
"""Bytes of a request that are kept while it is answered: what it names stands first."""

_SERVICE = pb.DESCRIPTOR.services_by_name["BridgeService"]

_ATTRIBUTES = {
    "session_id": names.SESSION_ID,
    "variable_identifier": names.VARIABLE,
    "name": names.VARIABLE,
    "tool_name": names.TOOL,
}

_FIELDS: Mapping[str, Mapping[int, str]] = {
    f"{_SERVICE.full_name}/{method.name}": {
        method.input_type.fields_by_name[field].number: attribute
        for field, attribute in _ATTRIBUTES.items()
        if field in method.input_type.fields_by_name
    }
    for method in _SERVICE.methods
}
"""For each method the numbers of these fields, and the attributes that they become."""


def named_by(observation: Observation) -> Mapping[str, str]:
    """Session, variable and tool that a call's request names, as attributes."""
    return leading_texts(observation.head, _FIELDS.get(observation.method, {}))


def leading_texts(head: bytes, wanted: Mapping[int, str]) -> Mapping[str, str]:
    """The texts among the first fields of a message, of which only the first bytes are there.

    :param wanted: names of fields by their number.
    """
    found = {}
    at = 0
    while at < len(head):
        tag, at = _varint(head, at)
        kind = tag & 7
        if kind == _VARINT:
            _, at = _varint(head, at)
        elif kind == _LENGTH:
            length, at = _varint(head, at)
            end = at + length
            if end > len(head):
                break
            if tag >> 3 in wanted:
                found[wanted[tag >> 3]] = head[at:end].decode("utf-8", "replace")
            at = end
        elif kind in _FIXED:
            at += _FIXED[kind]
        else:
            break
    return found


_VARINT, _LENGTH = 0, 2
_FIXED: Mapping[int, int] = {1: 8, 5: 4}


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(raw):
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 - the bit that says that more follows
            return value, at
        shift += 7
    return value, at + 1  # cut off: nothing can follow
