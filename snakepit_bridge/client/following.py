"""What a watch of the client knows, without a transport: its place, and what follows from errors.

::

    connecting ──first message──▶ standing ──error that passes──▶ interrupted ─┐
        │ ▲                          │  ▲                                      │ wait
        │ └──────── wait ─┐          │  └───────────── first message ──────────┘
        ▼                 │          ▼
      error ── passes, ───┘        ended: with the session, or with an error that does not pass
              in time

A message moves the *bookmark* when it says so; a new stream goes on after it. Of a transaction that
was delivered in part the new stream tells the whole again, and what was delivered is dropped: so
each change comes once. Initial values are kept back until all have come, because a stream that
breaks before has no place to go on from: so they come once, too, and are of one moment.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge.client.options import backoff
from snakepit_bridge.client.results import Bookmark, WatchStatus
from snakepit_bridge.client.values import as_change
from snakepit_bridge.errors import (
    BridgeError,
    EpochMismatch,
    FailedPrecondition,
    InvalidRequest,
    OffsetOutOfRange,
    ResourceExhausted,
    Unavailable,
    WatchClosed,
    quote,
)
from snakepit_bridge.views import EVENT_KINDS, Change

__all__ = ["Following", "Step"]

LONGEST_WAIT = 5.0
"""Seconds between two tries of a watch, of which thousands may come back at once."""

Step = Change | WatchStatus

_NO_LONGER_THERE = (EpochMismatch, FailedPrecondition, OffsetOutOfRange)


class Following:
    """One watch. For one thread at a time."""

    def __init__(  # noqa: PLR0913 - each is another thing that a watcher may ask for
        self,
        session_id: str,
        identifiers: Iterable[str],
        *,
        log_epoch: str = "",
        bookmark: tuple[str, int, int] | None = None,
        initial: bool = False,
        kinds: Iterable[str] = ("value_change",),
        max_value_bytes: int = 0,
        heartbeat: int = 0,
        begin_anew: bool = False,
    ) -> None:
        """:raises InvalidRequest: one of these is wrong; some are found by the bridge."""
        names = list(identifiers)
        for name in names:
            if not isinstance(name, str):
                raise InvalidRequest(
                    f"a watch takes names, ids and patterns, not {quote(repr(name))}",
                    field="variable_identifiers",
                )
        self._asked = pb.WatchVariablesRequest(
            session_id=session_id,
            variable_identifiers=names,
            log_epoch=log_epoch,
            update_types=_checked(kinds),
            max_value_bytes=max_value_bytes,
            heartbeat_seconds=heartbeat,
            send_caught_up=True,
        )
        if bookmark is not None and bookmark[1] < 0:
            raise InvalidRequest(f"after_offset {bookmark[1]} is negative", field="after_offset")
        self._bookmark = bookmark and Bookmark(*bookmark)
        self._initial = initial
        self._begin_anew = begin_anew
        self._held: list[Change] = []
        """Initial values, until all have come."""
        self._seen = 0
        """Offset of the last change that was delivered."""
        self.standing = False
        """Whether all that is committed from now on comes."""
        self._interrupted = False
        self._failures = 0
        self.log_epoch = log_epoch
        """Of the log that is watched, as far as it is known."""

    @property
    def bookmark(self) -> Bookmark | None:
        """Where to go on; ``None`` before the first message."""
        return self._bookmark

    def request(self) -> pb.WatchVariablesRequest:
        """Ask for what follows."""
        asked = pb.WatchVariablesRequest()
        asked.CopyFrom(self._asked)
        if self._bookmark is None:
            asked.include_initial_values = self._initial
        else:
            epoch, asked.after_offset, asked.resume_check = self._bookmark
            asked.log_epoch = epoch or asked.log_epoch
        self._held.clear()
        return asked

    def take(self, update: pb.VariableUpdate) -> list[Step]:
        """What a message tells whoever watches."""
        steps: list[Step] = []
        self._failures = 0
        self.standing = True
        self.log_epoch = update.log_epoch
        if self._interrupted:
            self._interrupted = False
            steps.append(WatchStatus("resumed"))
        kind = update.update_type
        if kind == "initial_value":
            self._held.append(as_change(update))
        elif kind in EVENT_KINDS and update.offset > self._seen:
            # Of a transaction that was delivered in part, a new stream tells the whole again.
            self._seen = update.offset
            steps.append(as_change(update))
        if update.HasField("resume_offset"):
            steps += self._held
            self._held.clear()
            self._bookmark = Bookmark(update.log_epoch, update.resume_offset, update.resume_check)
        if kind == "caught_up":
            steps.append(WatchStatus("caught_up"))
        return steps

    def fail(self, error: BridgeError) -> WatchStatus:
        """What to do about a stream that ended with an error: tell this, wait, ask again.

        :raises BridgeError: that does not pass; the watch has ended.
        """
        if isinstance(error, _NO_LONGER_THERE) and self._bookmark is not None and self._begin_anew:
            self._bookmark = None
            self._initial = True
            self._seen = 0
            self._interrupted = False
            self._asked.log_epoch = ""
            return WatchStatus("begun_anew", error.message)
        if isinstance(error, ResourceExhausted) and not self.standing:
            raise error  # too much is asked for
        if not isinstance(error, Unavailable | ResourceExhausted):
            raise error
        ended_by_the_bridge = isinstance(error, WatchClosed) and not self._interrupted
        self._interrupted = True
        wait = 0.0 if ended_by_the_bridge else backoff(self._failures, LONGEST_WAIT)
        self._failures += 1
        return WatchStatus("interrupted", error.message, wait)


def _checked(kinds: Iterable[str]) -> list[Any]:
    given = [kinds] if isinstance(kinds, str) else list(kinds)
    for kind in given:
        if kind not in EVENT_KINDS:
            raise InvalidRequest(
                f"kinds holds {quote(kind)}: choose among {', '.join(EVENT_KINDS)}", field="kinds"
            )
    return given
