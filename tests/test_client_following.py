"""What a watch of the client makes of messages and errors, against a model of the log.

No transport: a stream here is what a bridge would send at any moment, broken off anywhere.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge.client.following import LONGEST_WAIT, Following
from snakepit_bridge.client.results import Bookmark, WatchStatus
from snakepit_bridge.errors import (
    BridgeError,
    DataLoss,
    EpochMismatch,
    OffsetOutOfRange,
    PermissionDenied,
    ResourceExhausted,
    SessionNotFound,
    Unavailable,
    WatchClosed,
)
from snakepit_bridge.views import Change
from tests.wire_session import packed

NAMES = ("a", "b", "c")


class Event(NamedTuple):
    offset: int
    name: str
    first: int
    """Offset of the transaction's first event,"""
    last: int
    """and of its last."""


class Log:
    """The value of a variable is the offset at which it was set."""

    def __init__(self, epoch: str) -> None:
        self.epoch = epoch
        self.events: list[Event] = []

    @property
    def head(self) -> int:
        return len(self.events)

    def commit(self, names: Sequence[str]) -> None:
        first, last = self.head + 1, self.head + len(names)
        self.events += [Event(first + at, name, first, last) for at, name in enumerate(names)]

    def state(self, offset: int) -> dict[str, int]:
        return {event.name: event.offset for event in self.events[:offset]}


class Stream:
    """What the bridge sends for a request."""

    def __init__(self, log: Log, asked: pb.WatchVariablesRequest) -> None:
        """:raises BridgeError: as the bridge does."""
        self._log = log
        resumes = asked.HasField("after_offset")
        if resumes and asked.log_epoch != log.epoch:
            raise EpochMismatch("s", asked.log_epoch, log.epoch)
        if resumes and asked.after_offset > log.head:
            raise OffsetOutOfRange("in the future")
        self.begun_at = self._at = asked.after_offset if resumes else log.head
        self._boundary = self._at
        self._ready: deque[pb.VariableUpdate] = deque()
        self._has_caught_up = False
        if asked.include_initial_values:
            assert not resumes
            values = sorted(log.state(self._at).items())
            for name, value in values:
                self._ready.append(self._update("initial_value", self._at, name, value))
            if values:
                self._mark(self._ready[-1])

    def next(self) -> pb.VariableUpdate | None:
        """``None`` = there is nothing to send now."""
        if self._ready:
            return self._ready.popleft()
        if self._at < self._log.head:
            event = self._log.events[self._at]
            self._at += 1
            if event.offset == event.last:
                self._boundary = event.offset
            return self._mark(self._update("value_change", self._at, event.name, self._at))
        if not self._has_caught_up:
            self._has_caught_up = True
            return self._mark(self._update("caught_up", 0))
        return None

    def heartbeat(self) -> pb.VariableUpdate | None:
        if self._ready or self._at != self._boundary:
            return None  # between two transactions only
        return self._mark(self._update("heartbeat", 0))

    def _update(self, kind: str, offset: int, name: str = "", value: int = 0) -> pb.VariableUpdate:
        update = pb.VariableUpdate(update_type=kind, offset=offset, log_epoch=self._log.epoch)
        if name:
            update.variable.name = name
            update.variable.value.CopyFrom(packed(value))
        return update

    def _mark(self, update: pb.VariableUpdate) -> pb.VariableUpdate:
        update.resume_offset, update.resume_check = self._boundary, 7 * self._boundary + 1
        return update


class Segment:
    """What was told of one log."""

    def __init__(self, log: Log, *, initial: bool) -> None:
        self.log = log
        self.initial = initial
        self.start: int | None = None
        """From where on everything has to come; ``None`` = nothing came yet."""
        self.values: list[Change] = []
        self.changes: list[Change] = []

    def check(self, *, whole: bool) -> None:
        """Each change once and in order, and the initial values once and before them."""
        if self.start is None:
            assert not self.values
            assert not self.changes
            return
        if self.initial:
            assert {one.name: one.new for one in self.values} == self.log.state(self.start)
            assert {one.offset for one in self.values} <= {self.start}
        assert len({one.name for one in self.values}) == len(self.values)
        end = self.log.head + 1 if whole else self.start + 1 + len(self.changes)
        expected = self.log.events[self.start : end - 1]
        assert [(one.offset, one.name, one.new) for one in self.changes] == [
            (event.offset, event.name, event.offset) for event in expected
        ]


class Watcher:
    """Whoever follows, over streams that break."""

    def __init__(self, *, initial: bool, begin_anew: bool) -> None:
        self.log = Log("log")
        self.begin_anew = begin_anew
        self.following = Following("s", [], initial=initial, begin_anew=begin_anew)
        self.segments = [Segment(self.log, initial=initial)]
        self.stream: Stream | None = None
        self.kinds: list[str] = []
        self.ended = False

    @property
    def segment(self) -> Segment:
        return self.segments[-1]

    def commit(self, names: Sequence[str]) -> None:
        self.log.commit(names)

    def read(self, count: int) -> None:
        for _ in range(count):
            if self.stream is None and not self._open():
                return
            assert self.stream is not None
            update = self.stream.next()
            if update is None:
                return
            self._take(update)

    def heartbeat(self) -> None:
        if self.stream is not None and (update := self.stream.heartbeat()) is not None:
            self._take(update)

    def break_off(self, kind: str) -> None:
        errors: dict[str, BridgeError] = {
            "gone": Unavailable("the connection ended"),
            "closed": WatchClosed("it is old", self.log.epoch, (1, 2)),
            "full": ResourceExhausted("too many watches"),
        }
        if self.stream is None or (kind == "full" and not self.following.standing):
            return
        self._fail(errors[kind])

    def replace_log(self) -> None:
        """By one of another epoch."""
        names = [event.name for event in self.log.events][:3]
        self.log = Log(self.log.epoch + "+")
        if names:
            self.log.commit(names)
        if self.stream is not None:
            self._fail(Unavailable("the connection ended"))
        if self.segment.start is None:  # nothing was told of the one before
            self.segment.log = self.log

    def restore(self) -> None:
        """Go on with what was kept of the bookmark, in another process."""
        bookmark = self.following.bookmark
        if bookmark is None:
            return
        again = Bookmark(*json.loads(json.dumps(bookmark)))
        assert again == bookmark
        self.following = Following("s", [], bookmark=again, begin_anew=self.begin_anew)
        self.stream = None
        self.kinds.append("restored")
        changes = self.segment.changes
        changes[:] = [one for one in changes if one.offset <= bookmark.offset]

    def finish(self) -> None:
        """Without any further trouble."""
        if not self.ended:
            self.read(10_000)

    def _open(self) -> bool:
        try:
            self.stream = Stream(self.log, self.following.request())
        except BridgeError as error:
            self._fail(error)
            if self.ended:
                return False
            self.stream = Stream(self.log, self.following.request())
        return True

    def _take(self, update: pb.VariableUpdate) -> None:
        assert self.stream is not None
        for step in self.following.take(update):
            if isinstance(step, WatchStatus):
                self.kinds.append(step.kind)
            elif step.kind == "initial_value":
                self.segment.values.append(step)
            else:
                self.segment.changes.append(step)
        if self.segment.start is None and self.following.bookmark is not None:
            self.segment.start = self.stream.begun_at

    def _fail(self, error: BridgeError) -> None:
        self.stream = None
        try:
            status = self.following.fail(error)
        except BridgeError:
            self.ended = True
            return
        assert 0 <= status.wait <= LONGEST_WAIT
        self.kinds.append(status.kind)
        if status.kind == "begun_anew":
            self.segments.append(Segment(self.log, initial=True))


ACTIONS = st.one_of(
    st.tuples(st.just("commit"), st.lists(st.sampled_from(NAMES), min_size=1, max_size=5)),
    st.tuples(st.just("read"), st.integers(1, 6)),
    st.tuples(st.just("break_off"), st.sampled_from(["gone", "closed", "full"])),
    st.tuples(st.sampled_from(["heartbeat", "restore", "replace_log"])),
)


@settings(max_examples=400, deadline=None)
@given(
    initial=st.booleans(),
    begin_anew=st.booleans(),
    before=st.lists(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4), max_size=4),
    actions=st.lists(ACTIONS, max_size=40),
)
def test_each_change_comes_once_and_in_order_whatever_breaks(
    initial: bool,
    begin_anew: bool,
    before: list[list[str]],
    actions: list[tuple[str, object]],
) -> None:
    watcher = Watcher(initial=initial, begin_anew=begin_anew)
    for names in before:
        watcher.commit(names)
    for name, *arguments in actions:
        getattr(watcher, name)(*arguments)
        if watcher.ended:
            break
    watcher.finish()
    for segment in watcher.segments[:-1]:
        segment.check(whole=False)
    watcher.segment.check(whole=not watcher.ended)
    assert watcher.ended <= (not begin_anew)
    check_statuses(watcher.kinds)


def check_statuses(kinds: list[str]) -> None:
    """``resumed`` is told after ``interrupted`` only, and before anything else is."""
    interrupted = False
    for kind in kinds:
        if kind == "resumed":
            assert interrupted
        if kind == "caught_up":
            assert not interrupted
        interrupted = kind == "interrupted"


def standing() -> Following:
    following = Following("s", ["x"])
    following.take(
        pb.VariableUpdate(update_type="caught_up", log_epoch="e", resume_offset=5, resume_check=6)
    )
    return following


@pytest.mark.parametrize(
    "error",
    [
        SessionNotFound("s"),
        EpochMismatch("s", "e", "f"),
        OffsetOutOfRange("cut"),
        PermissionDenied(),
        DataLoss("damaged"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_that_do_not_pass_end_it(error: BridgeError) -> None:
    with pytest.raises(type(error)) as caught:
        standing().fail(error)
    assert caught.value is error


def test_too_much_that_is_asked_for_does_not_pass_but_too_much_at_the_bridge_does() -> None:
    error = ResourceExhausted("too many watches")
    with pytest.raises(ResourceExhausted):
        Following("s", ["x"]).fail(error)
    assert standing().fail(error).kind == "interrupted"


def test_the_wait_grows_with_failures_in_a_row_and_not_with_the_bridges_own_ends() -> None:
    following = standing()
    closed = WatchClosed("old", "e", (5, 6))
    assert [following.fail(closed).wait, following.fail(closed).wait > 0] == [0, True]
    following = standing()
    waits = [following.fail(Unavailable("gone")).wait for _ in range(20)]
    assert max(waits) <= LONGEST_WAIT
    assert min(waits[10:]) >= LONGEST_WAIT / 2
    assert waits[0] <= 0.05
    following.take(pb.VariableUpdate(update_type="heartbeat", log_epoch="e", resume_offset=5))
    assert following.fail(Unavailable("gone")).wait <= 0.05


def test_what_is_asked_for_is_the_bookmark_and_its_log() -> None:
    following = standing()
    asked = following.request()
    assert (asked.log_epoch, asked.after_offset, asked.resume_check) == ("e", 5, 6)
    assert asked.send_caught_up
    assert not asked.include_initial_values
    first = Following("s", ["x"], initial=True, log_epoch="bound").request()
    assert not first.HasField("after_offset")
    assert (first.log_epoch, first.include_initial_values) == ("bound", True)
    assert list(first.variable_identifiers) == ["x"]
