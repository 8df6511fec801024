"""A cursor: how far a watcher has come in a log.

It holds an offset and what is wanted, nothing of what is to come. Where it goes on it finds
the ring, if that still reaches back so far, or else a page of the log::

    take ─▶ ring ──(it is behind)──▶ a page that was read ──(there is none)──▶ Behind

* It moves in the order of offsets and passes each event once; what is not wanted is passed
  silently, but counts as delivered.
* It may stop inside a transaction, when enough was taken at once; its *bookmark* is then
  still the one before the transaction. Only between two transactions is it at a boundary.
* It never sees what is not committed.

A cursor belongs to one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeVar

from snakepit_bridge.errors import DataLoss, FailedPrecondition, OffsetOutOfRange
from snakepit_bridge.events.loaded import LoadedLog
from snakepit_bridge.events.log import EventLog
from snakepit_bridge.events.model import LogHead
from snakepit_bridge.events.pages import Pages
from snakepit_bridge.events.reading import cut_away, no_longer_kept
from snakepit_bridge.events.ring import Committed
from snakepit_bridge.events.selection import Selection

__all__ = [
    "Behind",
    "Bookmark",
    "Cursor",
    "Place",
    "Show",
    "bookmark_at",
    "check_of",
    "find_place",
]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

AT_ONCE = 256
"""Transactions that are looked at in one go; where nothing is wanted it takes 0.1 ms."""


LARGE = 64 * 1024
"""Bytes of a transaction that is taken alone."""


class Behind(Exception):
    """What comes next is not in memory: read its page first."""


class Bookmark(NamedTuple):
    """Where to go on; with the log's epoch all that a watcher has to keep."""

    offset: int
    check: int
    """See ``check_of``."""


def check_of(digest: bytes) -> int:
    """What tells an offset from the same one of a log that was copied back and went on."""
    return int.from_bytes(digest[:8], "little")


def bookmark_at(entry: Committed, index: int, *, last: bool) -> Bookmark:
    """What is to be kept with the ``index``-th event of a transaction.

    Before the last one that is wanted of it, that is where the transaction begins, so that the
    whole of it is delivered again.
    """
    first = entry.transaction.record.first_offset
    if last:
        return Bookmark(first + index, check_of(entry.transaction.digest))
    return Bookmark(first - 1, check_of(entry.previous_digest))


class Show(Protocol[T_co]):
    """Makes what a watcher gets of the ``index``-th event of a transaction."""

    def __call__(self, entry: Committed, index: int, /, *, last: bool) -> T_co:
        """:param last: whether the watcher wants no later event of this transaction."""


class Place(NamedTuple):
    """Where a cursor may begin."""

    offset: int
    digest: bytes
    """Of the record that holds it."""
    inside: bool
    """Whether more of that record follows."""


def find_place(engine: EventLog, log: LoadedLog, after: int, check: int) -> Place:
    """Look up the place after an offset, as a bookmark names it. May read the log.

    :param check: what the bookmark says of the digest there; 0 = nothing.
    :raises OffsetOutOfRange: it lies in the future, or what follows was cut away.
    :raises FailedPrecondition: another log had this bookmark.
    :raises DataLoss: an event is missing.
    """
    with log.lock:
        head, digest = log.committed.head, log.committed.digest
    if after < log.base:
        raise cut_away(LogHead(log.id, head, digest, log.base), after + 1)
    if after > head:
        raise OffsetOutOfRange(
            f"offset {after} lies in the future: the log {log.id.epoch} has offsets "
            f"{log.base + 1} to {head}",
            field="after_offset",
            first_available=log.base + 1,
            last=head,
            log_epoch=log.id.epoch,
        )
    place = Place(after, digest, inside=False) if after == head else _earlier(engine, log, after)
    if check and check != check_of(place.digest):
        raise FailedPrecondition(
            f"resume_check does not fit offset {after} of the log {log.id.epoch}: the log is not "
            "the one that was watched (a copy was brought back?); watch again from the start",
            field="resume_check",
            log_epoch=log.id.epoch,
        )
    return place


def _earlier(engine: EventLog, log: LoadedLog, after: int) -> Place:
    if after:
        recent = log.ring.after(after - 1, 1) if log.ring is not None else ()
        if recent:
            holding = recent[0].transaction
            return Place(after, holding.digest, inside=holding.last_offset != after)
        record = engine.record_at(log.id, after)
        if record is not None:
            return Place(after, record.digest, inside=record.last_offset != after)
    at = engine.head(log.id)
    if at is None:
        raise no_longer_kept(log.id)
    if after == at.base:
        return Place(after, at.base_digest, inside=False)
    if after < at.base:
        raise cut_away(at, after + 1)
    raise DataLoss(
        f"the log {log.id.epoch} of session {log.id.session_id!r} lacks offset {after}",
        first_bad_offset=after,
    )


class Cursor:
    __slots__ = (
        "_digest",
        "_kept",
        "_last_wanted",
        "at_boundary",
        "ended",
        "log",
        "position",
        "selection",
    )

    def __init__(self, log: LoadedLog, selection: Selection, place: Place) -> None:
        self.log = log
        self.selection = selection
        self.position, self._digest, inside = place
        self._kept = self.position
        """The offset of the bookmark; the digest is that of its record."""
        self.at_boundary = not inside
        with log.lock:
            state = log.committed
            self.ended = state.ended != "" and self.position >= state.head
            """Whether the end of the session was passed."""
        self._last_wanted = 0
        """The last offset that is wanted of the transaction it is inside of; 0 = not known."""

    @property
    def at_head(self) -> bool:
        """Whether everything that is committed was passed."""
        return self.position >= self.log.told

    @property
    def lag(self) -> int:
        """Events between here and the head."""
        return max(0, self.log.told - self.position)

    @property
    def bookmark(self) -> Bookmark:
        """What a watcher has to keep that got everything up to here."""
        return Bookmark(self._kept, check_of(self._digest))

    def skip_to(self, offset: int, digest: bytes) -> None:
        """Pass what somebody else found not to be wanted, up to the end of a record."""
        self.position = self._kept = offset
        self._digest = digest
        self.at_boundary = True

    def take(self, pages: Pages, show: Show[T], count: int) -> list[T]:
        """What is wanted of the next transactions, ``count`` at most; empty at the head.

        May be empty before the head, too, when nothing that was looked at is wanted.

        :raises Behind: the next transaction is neither in the ring nor in a page that was read.
        """
        taken: list[T] = []
        for entry in self._next(pages):
            if len(taken) >= count or (taken and entry.size > LARGE):
                break
            if len(entry.shown) == 1:
                self._pass_one(entry, show, taken)
            else:
                self._pass_many(entry, show, taken, count)
        return taken

    def _next(self, pages: Pages) -> Sequence[Committed]:
        if self.at_head:
            return ()
        log = self.log
        found: Sequence[Committed] = ()
        if log.ring is not None:
            found = log.ring.after(self.position, AT_ONCE)
        if not found:
            found = pages.find(log.id, self.position, AT_ONCE)
            if not found:
                raise Behind
        return found

    def _pass_one(self, entry: Committed, show: Show[T], taken: list[T]) -> None:
        """Pass a transaction of one event, as nearly all are."""
        selection = self.selection
        kind = entry.transaction.facts[0][0]
        variable = entry.shown[0]
        if kind in selection.kinds and variable and selection.takes(variable.definition):
            taken.append(show(entry, 0, last=True))
        self._arrive(entry)

    def _pass_many(self, entry: Committed, show: Show[T], taken: list[T], count: int) -> None:
        first = entry.transaction.record.first_offset
        index = max(0, self.position + 1 - first)
        last = self._last_wanted or self._find_last_wanted(entry)
        for at in range(index, last - first + 1):
            if not self._wants(entry, at):
                continue
            if len(taken) >= count:
                self.position, self._last_wanted = first + at - 1, last
                self.at_boundary = False
                return
            taken.append(show(entry, at, last=first + at == last))
        self._last_wanted = 0
        self._arrive(entry)

    def _arrive(self, entry: Committed) -> None:
        transaction = entry.transaction
        self.position = self._kept = transaction.last_offset
        self._digest = transaction.digest
        self.at_boundary = True
        if transaction.facts[-1][0] == "session_ended":
            self.ended = True

    def _wants(self, entry: Committed, at: int) -> bool:
        variable = entry.shown[at]
        selection = self.selection
        wanted_kind = entry.transaction.facts[at][0] in selection.kinds
        return wanted_kind and variable is not None and selection.takes(variable.definition)

    def _find_last_wanted(self, entry: Committed) -> int:
        """The last offset that is wanted of a transaction; the one before it when none is."""
        first = entry.transaction.record.first_offset
        for at in range(len(entry.shown) - 1, -1, -1):
            if self._wants(entry, at):
                return first + at
        return first - 1
