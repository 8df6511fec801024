"""Every error that can reach a client, in one tree, with its gRPC status beside it.

::

    BridgeError                      INTERNAL
    ├── InvalidRequest               INVALID_ARGUMENT     malformed or missing field
    │   ├── InvalidValue             INVALID_ARGUMENT     value, type or constraint violated
    │   ├── InvalidConstraints       INVALID_ARGUMENT     constraints_json itself is wrong
    │   └── RequestIdReused          INVALID_ARGUMENT     same request_id, other method or payload
    ├── NotFound                     NOT_FOUND
    │   ├── SessionNotFound
    │   ├── ToolNotFound
    │   ├── VariableNotFound
    │   └── VersionNotFound
    ├── AlreadyExists                ALREADY_EXISTS       the name is taken
    ├── VersionConflict              ABORTED              expected_version differs
    ├── FailedPrecondition           FAILED_PRECONDITION  locked, foreign epoch
    │   └── EpochMismatch
    ├── OffsetOutOfRange             OUT_OF_RANGE         offset cut away or in the future
    ├── ResourceExhausted            RESOURCE_EXHAUSTED   a limit, or the disk is full
    ├── Unavailable                  UNAVAILABLE          engine gone, draining
    │   ├── OutcomeUnknown           UNAVAILABLE          an append whose fate cannot be read
    │   └── WatchClosed              UNAVAILABLE          a watch that can go on elsewhere
    ├── DeadlineExceeded             DEADLINE_EXCEEDED    a tool took too long
    ├── Cancelled                    CANCELLED            a tool was cancelled, by somebody else
    ├── Unauthenticated              UNAUTHENTICATED      the bridge wants a token
    ├── PermissionDenied             PERMISSION_DENIED    not this one
    ├── Unimplemented                UNIMPLEMENTED        a method that this release does not serve
    ├── DataLoss                     DATA_LOSS            a stored record is damaged
    ├── ToolRaised                   INTERNAL             a streaming tool raised
    └── InternalError                INTERNAL             a defect of ours

The table follows ``WIRE``'s error table; ``bridge_servicer`` turns these into a
status, a message and ``google.rpc`` details in one function. Messages stand alone:
Elixir clients see nothing else. ``reason`` is the stable, machine-readable name
(``google.rpc.ErrorInfo.reason``); ``facts`` are its metadata; ``field`` names the
request field at fault (``google.rpc.BadRequest``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

__all__ = [
    "AlreadyExists",
    "BridgeError",
    "Cancelled",
    "DataLoss",
    "DeadlineExceeded",
    "EpochMismatch",
    "FailedPrecondition",
    "InternalError",
    "InvalidConstraints",
    "InvalidRequest",
    "InvalidValue",
    "NotFound",
    "OffsetOutOfRange",
    "OutcomeUnknown",
    "PermissionDenied",
    "RequestIdReused",
    "ResourceExhausted",
    "SessionNotFound",
    "ToolNotFound",
    "ToolRaised",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "VariableNotFound",
    "VersionConflict",
    "VersionNotFound",
    "WatchClosed",
    "quote",
    "without_frames",
]


def quote(text: str, limit: int = 80) -> str:
    """Quote client input for a message: escaped, and shortened in the middle.

    Clients drop metadata beyond 8 KiB, so no message may grow with its input.
    """
    if len(text) > limit:
        half = limit // 2 - 2
        text = f"{text[:half]}...{text[-half:]}"
    return "'" + text.encode("unicode_escape").decode("ascii") + "'"


class BridgeError(Exception):
    """Root of the tree. Its message is what the client reads."""

    code: ClassVar[str] = "INTERNAL"
    """Name of the gRPC status, as in ``grpc.StatusCode``."""
    reason: ClassVar[str] = "INTERNAL"
    trailers: ClassVar[tuple[str, ...]] = ()
    """Facts that are also sent as trailing metadata, under their names."""

    def __init__(self, message: str, *, field: str = "", **facts: str | int) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.facts = {name: str(value) for name, value in facts.items()}


def without_frames(error: BaseException) -> None:
    """Let go of the frames that an error was raised in, and of the requests in them.

    They refer to each other in cycles, which only a full collection would free.
    """
    at: BaseException | None = error
    while at is not None and at.__traceback__ is not None:
        at.__traceback__ = None
        at = at.__cause__ or at.__context__


class InvalidRequest(BridgeError):
    code = "INVALID_ARGUMENT"
    reason = "INVALID_REQUEST"


class InvalidValue(InvalidRequest):
    reason = "INVALID_VALUE"


class InvalidConstraints(InvalidRequest):
    reason = "INVALID_CONSTRAINTS"


class RequestIdReused(InvalidRequest):
    """An id that was accepted for another request.

    :param before: the method then.
    :param now: the method now, which may be the same, with another payload.
    """

    reason = "REQUEST_ID_REUSED"

    def __init__(self, request_id: str, before: str, now: str) -> None:
        super().__init__(
            f"request_id {quote(request_id)} was used before for "
            f"{'another' if before == now else 'a'} {before}: "
            "a retry repeats the same request, a new request needs a new id",
            field="request_id",
        )


class NotFound(BridgeError):
    code = "NOT_FOUND"
    reason = "NOT_FOUND"


class SessionNotFound(NotFound):
    reason = "SESSION_NOT_FOUND"

    def __init__(self, session_id: str) -> None:
        super().__init__(f"session {quote(session_id)} not found: initialise it first")


class ToolNotFound(NotFound):
    """No tool of this name runs here.

    :param near: names that resemble it.
    :param why: what is known of it nevertheless.
    """

    reason = "TOOL_NOT_FOUND"

    def __init__(self, name: str, near: Sequence[str] = (), *, why: str = "") -> None:
        hint = f": did you mean {' or '.join(quote(each) for each in near)}?" if near else ""
        super().__init__(f"tool {quote(name)} not found{hint or (why and f': {why}')}")


class VariableNotFound(NotFound):
    reason = "VARIABLE_NOT_FOUND"

    def __init__(self, identifier: str) -> None:
        super().__init__(f"variable {quote(identifier)} not found")


class VersionNotFound(NotFound):
    reason = "VERSION_NOT_FOUND"


class AlreadyExists(BridgeError):
    code = "ALREADY_EXISTS"
    reason = "VARIABLE_EXISTS"


class VersionConflict(BridgeError):
    code = "ABORTED"
    reason = "VERSION_CONFLICT"


class FailedPrecondition(BridgeError):
    code = "FAILED_PRECONDITION"
    reason = "FAILED_PRECONDITION"


class EpochMismatch(FailedPrecondition):
    """The client means another log than the session's newest.

    :param current: its epoch; empty when no log is kept.
    """

    reason = "LOG_EPOCH_MISMATCH"

    def __init__(self, session_id: str, given: str, current: str) -> None:
        super().__init__(
            f"log_epoch {quote(given)} is not that of session {quote(session_id)}, "
            + (f"which is {current}" if current else "of which no log is kept"),
            field="log_epoch",
            log_epoch=current,
        )


class OffsetOutOfRange(BridgeError):
    code = "OUT_OF_RANGE"
    reason = "OFFSET_OUT_OF_RANGE"


class ResourceExhausted(BridgeError):
    code = "RESOURCE_EXHAUSTED"
    reason = "RESOURCE_EXHAUSTED"


class Unavailable(BridgeError):
    code = "UNAVAILABLE"
    reason = "UNAVAILABLE"


class OutcomeUnknown(Unavailable):
    reason = "OUTCOME_UNKNOWN"

    def __init__(self) -> None:
        super().__init__(
            "the log failed while this was written, so its outcome is unknown: retry with the "
            "same request_id (without one, read first)"
        )


class WatchClosed(Unavailable):
    """A watch ends for a reason of the bridge's own.

    :param bookmark: offset and check to go on with; ``None`` before all initial values came.
    """

    reason = "WATCH_CLOSED"
    trailers = ("log_epoch", "resume_offset", "resume_check")

    def __init__(self, why: str, log_epoch: str, bookmark: tuple[int, int] | None) -> None:
        if bookmark is None:
            super().__init__(f"{why}: watch again from the start", log_epoch=log_epoch)
        else:
            offset, check = bookmark
            super().__init__(
                f"{why}: watch again with after_offset={offset}, log_epoch={log_epoch}, "
                f"resume_check={check}",
                log_epoch=log_epoch,
                resume_offset=offset,
                resume_check=check,
            )


class DeadlineExceeded(BridgeError):
    code = "DEADLINE_EXCEEDED"
    reason = "DEADLINE_EXCEEDED"


class Cancelled(BridgeError):
    code = "CANCELLED"
    reason = "CANCELLED"


class Unauthenticated(BridgeError):
    """A call without a token, where every call has to carry one."""

    code = "UNAUTHENTICATED"
    reason = "TOKEN_MISSING"

    def __init__(self) -> None:
        super().__init__(
            "this bridge answers only calls that carry its token, and there is none in this one: "
            "send it as the gRPC metadata 'authorization: Bearer TOKEN'"
        )


class PermissionDenied(BridgeError):
    """A call with a token that is not the bridge's, which is not repeated in the message."""

    code = "PERMISSION_DENIED"
    reason = "TOKEN_REFUSED"

    def __init__(self) -> None:
        super().__init__(
            "the token that this call carries is not the one of this bridge: send what is in the "
            "file that it was started with (--token-file)"
        )


class ToolRaised(BridgeError):
    """A tool raised in the middle of its stream, which has no other way to say so.

    With INTERNAL, as Snakepit's own worker answers.
    """

    reason = "TOOL_RAISED"

    def __init__(self, tool: str, error_type: str, message: str) -> None:
        super().__init__(
            f"tool {quote(tool)} raised {quote(error_type)[1:-1]}: {message}",
            tool=tool,
            error_type=error_type,
        )


class Unimplemented(BridgeError):
    code = "UNIMPLEMENTED"
    reason = "UNIMPLEMENTED"


class DataLoss(BridgeError):
    code = "DATA_LOSS"
    reason = "DATA_LOSS"


class InternalError(BridgeError):
    """A defect of ours: the client is told so, the log has the traceback."""
