"""From a status of gRPC back to the error that the bridge raised."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import grpc
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status

from snakepit_bridge.errors import BridgeError, InternalError, Unavailable

__all__ = ["error_of"]

_LOST = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})
"""What gRPC itself says when there is no bridge, or no more; a bridge that stops cancels calls
that have not reached it."""


def error_of(error: grpc.RpcError, target: str = "") -> BridgeError:
    """The error that became this status: the same class, message, field and facts.

    What gRPC says without the bridge is told by its status alone: ``Unavailable`` names the target.
    """
    message, reason, field = error.details() or "", "", ""
    facts: dict[str, str] = {}
    trailers: Any = error.trailing_metadata() or ()  # whose type is given without its iterator
    for key, value in trailers:
        if key != "grpc-status-details-bin":
            continue
        status = Status.FromString(value)
        message = status.message or message
        for packed in status.details:
            info, request = ErrorInfo(), BadRequest()
            if packed.Unpack(info):
                reason, facts = info.reason, dict(info.metadata)
            elif packed.Unpack(request) and request.field_violations:
                field = request.field_violations[0].field
    if not reason and target and error.code() in _LOST:
        return Unavailable(f"no bridge answers at {target} ({message or 'the connection ended'})")
    reasons, codes = _classes()
    kind = reasons.get(reason) or codes.get(error.code().name, InternalError)
    # Their own constructors make messages; this one is made.
    made = kind.__new__(kind)
    BridgeError.__init__(made, message, field=field)
    made.facts = facts
    return made


@lru_cache(maxsize=1)
def _classes() -> tuple[dict[str, type[BridgeError]], dict[str, type[BridgeError]]]:
    """The errors by reason, and by status the one that is nearest to the root."""
    reasons: dict[str, type[BridgeError]] = {}
    codes: dict[str, type[BridgeError]] = {}
    waiting: list[type[BridgeError]] = [BridgeError]
    for kind in waiting:
        if "reason" in vars(kind):
            reasons.setdefault(kind.reason, kind)
        codes.setdefault(kind.code, kind)
        # Those of the tree itself: other modules make some of their own.
        waiting += [
            each for each in kind.__subclasses__() if each.__module__ == BridgeError.__module__
        ]
    return reasons, codes
