"""Each validator finds the fault that it is there for, in a recording that is else without."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge.commands import (
    CleanupSession,
    DeleteVariable,
    RegisterVariable,
    SetVariable,
    SetVariables,
)
from snakepit_bridge.events.memory import MemoryLog
from snakepit_bridge.events.model import Envelope, LogId, Origin
from snakepit_bridge.events.reading import fold
from tests.direct import Direct, integer
from tests.watch_validators import (
    CHANGES,
    INITIAL,
    VALIDATORS,
    Change,
    Ending,
    Recorder,
    Recording,
    Resumed,
    Stream,
    Truth,
    check_all,
    check_atomic,
    check_bookmarkable,
    check_ordered,
    check_reliable,
    check_resumable,
    check_told,
    check_unique,
    wants,
)

BATCH = 7
"""Where the first transaction of three events begins, of x, y and z."""
SECOND = 12
"""And the second."""


def _truth() -> Truth:
    """x, y and z at 2 to 4; x set at 5 and 6; a batch; y and z set; a batch; y deleted; the end."""
    engine = MemoryLog()
    with Direct(engine) as direct:

        def envelope(**fields: Any) -> Envelope:  # noqa: ANN401 - of any field
            return Envelope("s", **fields)

        for name in "xyz":
            direct.ask(RegisterVariable(envelope(), name, "integer", integer(0)))
        about = envelope(
            origin=Origin("tool:t", "correlated", f"00-{1:032x}-{1:016x}-01"), metadata={"k": "1"}
        )
        direct.ask(SetVariable(about, "x", integer(1)))
        direct.ask(SetVariable(envelope(request_id="r"), "x", integer(10**300)))
        batch = tuple((name, integer(3)) for name in "xyz")
        direct.ask(SetVariables(envelope(), batch, atomic=True))
        direct.ask(SetVariable(envelope(), "y", integer(4)))
        direct.ask(SetVariable(envelope(), "z", integer(5)))
        direct.ask(SetVariables(envelope(), batch, atomic=True))
        direct.ask(DeleteVariable(envelope(), "y"))
        direct.ask(CleanupSession(envelope(), "cleanup"))
        log = direct.loaded("s").id
        truth = Truth(log)
        for transaction in fold(engine, log):
            truth.add(transaction)
    assert [truth.at(first).last - first for first in (BATCH, SECOND)] == [2, 2]
    return truth


TRUTH = _truth()
LOG = TRUTH.log
HEAD = TRUTH.head


def _shown(request: Any, change: Change) -> Any:  # noqa: ANN401 - messages
    """The update of one event, as it should be."""
    variable = change.variable
    assert variable is not None
    rest = [c for c in TRUTH.changes[change.offset : change.last] if wants(request, c)]
    update = pb.VariableUpdate(
        variable_id=variable.id,
        update_source=change.source,
        update_metadata=change.metadata,
        update_type=change.kind,
        transaction=change.first,
        correlation_id=change.correlation_id,
        traceparent=change.traceparent,
    )
    _place(update, change.offset, change.first - 1 if rest else change.offset)
    update.timestamp.FromNanoseconds(change.time)
    shown = update.variable
    shown.id, shown.name, shown.type = variable.id, variable.name, variable.type
    shown.version = variable.version
    if change.kind != "deleted":
        shown.offset = variable.offset
        shown.metadata.update(variable.metadata)
        _fill(update, request, shown.value, variable.value)
    if change.old is not None:
        _fill(update, request, update.old_value, change.old)
    return update


def _fill(update: Any, request: Any, field: Any, value: Any) -> None:  # noqa: ANN401 - messages
    field.ParseFromString(value.any)
    if 0 < request.max_value_bytes < len(field.value):
        update.value_omitted = True
        owner = update if field is update.old_value else update.variable
        owner.ClearField("old_value" if owner is update else "value")


def _place(update: Any, offset: int, resume: int | None) -> None:  # noqa: ANN401
    update.offset, update.log_epoch = offset, LOG.epoch
    if resume is not None:
        update.resume_offset, update.resume_check = resume, TRUTH.check_at(resume)


def _initial(offset: int) -> list[Any]:
    updates = []
    state = list(TRUTH.state(offset).values())
    for then in state:
        update = pb.VariableUpdate(
            variable_id=then.id, update_source=then.source, update_type=INITIAL
        )
        _place(update, offset, offset if then is state[-1] else None)
        update.timestamp.FromNanoseconds(then.time)
        shown = update.variable
        shown.id, shown.name, shown.type = then.id, then.name, then.type
        shown.version, shown.offset = then.version, then.offset
        shown.metadata.update(then.metadata)
        shown.value.ParseFromString(then.value.any)
        updates.append(update)
    return updates


def _mark(kind: str, offset: int) -> Any:  # noqa: ANN401
    update = pb.VariableUpdate(update_type=kind)
    _place(update, offset, offset)
    return update


def _changes(request: Any, after: int, until: int) -> list[Any]:  # noqa: ANN401
    return [_shown(request, c) for c in TRUTH.changes[after:until] if wants(request, c)]


def _request(after: int | None, **fields: Any) -> Any:  # noqa: ANN401
    if after is not None:
        fields["after_offset"] = after
        if after:
            fields["log_epoch"] = LOG.epoch
    return pb.WatchVariablesRequest(session_id="s", **fields)


def _recording() -> Recording:
    """One watcher who sees everything, in five streams, and one who wants little."""
    recorder = Recorder()
    truths = recorder.recording.truths
    truths[LOG] = TRUTH
    recorder.tell(
        "SetVariable",
        pb.SetVariableRequest(session_id="s", request_id="r"),
        pb.SetVariableResponse(offset=6, log_epoch=LOG.epoch),
    )
    recorder.heads[LOG] = 4

    def stream(request: Any, updates: Sequence[Any], resumed: Resumed | None = None) -> Stream:  # noqa: ANN401
        one = recorder.open("w", request, resumed)
        one.updates.extend(updates)
        return one

    all_kinds: Mapping[str, Any] = {"update_types": CHANGES}
    # From now on, which is 4, with initial values; left inside the first batch.
    request = _request(None, include_initial_values=True, **all_kinds)
    stream(request, [*_initial(4), *_changes(request, 4, BATCH + 1)])
    # Before the batch, after which there are marks; left by the bridge.
    request = _request(BATCH - 1, send_caught_up=True, **all_kinds)
    first = stream(
        request,
        [
            *_changes(request, BATCH - 1, BATCH + 2),
            _mark("caught_up", BATCH + 2),
            _mark("heartbeat", BATCH + 2),
            *_changes(request, BATCH + 2, BATCH + 3),
        ],
        Resumed(0, len(recorder.recording.watchers["w"][0].updates)),
    )
    trailers = {
        "log_epoch": LOG.epoch,
        "resume_offset": str(BATCH + 3),
        "resume_check": str(TRUTH.check_at(BATCH + 3)),
    }
    first.ending = Ending("UNAVAILABLE", "the bridge is shutting down", trailers)
    # By the trailers; left inside the second batch.
    request = _request(BATCH + 3, **all_kinds)
    stream(request, _changes(request, BATCH + 3, SECOND + 1), Resumed(1, len(first.updates)))
    # At an offset inside of it; to the end.
    request = _request(SECOND + 1, **all_kinds)
    stream(
        request,
        _changes(request, SECOND + 1, HEAD),
        Resumed(2, SECOND + 1 - BATCH - 3, bookmark=False),
    ).ending = Ending("OK")
    # Another, who wants x and short values only, and is told too late that he is late.
    recorder.heads[LOG] = HEAD
    request = _request(0, variable_identifiers=["x"], max_value_bytes=100)
    other = recorder.open("v", request)
    other.updates.extend(_changes(request, 0, BATCH + 2))
    other.ending = Ending(
        "OUT_OF_RANGE",
        f"offset {BATCH + 3} was cut away by retention: the log {LOG.epoch} has offsets "
        f"{SECOND + 3} to {HEAD}",
    )
    return recorder.recording


def test_what_is_as_promised_passes() -> None:
    recording = _recording()
    check_all(recording)
    kinds = {update.update_type for one, _ in recording.streams() for update in one.updates}
    assert kinds == {INITIAL, "heartbeat", "caught_up", "value_change", "deleted"}
    assert any(update.value_omitted for one, _ in recording.streams() for update in one.updates)


Break = Callable[[list[Stream]], None]


def _swapped(streams: list[Stream]) -> None:
    updates = streams[3].updates
    updates[-1], updates[-2] = updates[-2], updates[-1]


def _twice(streams: list[Stream]) -> None:
    streams[1].updates.insert(1, streams[1].updates[0])


def _initial_late(streams: list[Stream]) -> None:
    streams[0].updates.append(streams[0].updates.pop(0))


def _initial_of_two_offsets(streams: list[Stream]) -> None:
    streams[0].updates[1].offset = 5


def _initial_twice(streams: list[Stream]) -> None:
    streams[0].updates.insert(1, streams[0].updates[0])


def _again_in_the_chain(streams: list[Stream]) -> None:
    """The bookmark was beyond what came, and yet it comes again."""
    streams[2].updates.insert(0, streams[1].updates[-1])


def _taken_up_too_early(streams: list[Stream]) -> None:
    streams[1].request.after_offset = 4
    streams[1].updates[:0] = _changes(streams[1].request, 4, BATCH - 1)


def _one_missing(streams: list[Stream]) -> None:
    del streams[1].updates[1]


def _missing_before_the_end(streams: list[Stream]) -> None:
    del streams[3].updates[-1]


def _missing_before_the_trailers(streams: list[Stream]) -> None:
    del streams[1].updates[-1]


def _missing_between_two_streams(streams: list[Stream]) -> None:
    """Each stream is whole, but the second was resumed too late."""
    streams[2].request.after_offset = BATCH + 4
    del streams[2].updates[0]


def _mark_ahead(streams: list[Stream]) -> None:
    _place(streams[1].updates[4], BATCH + 3, BATCH + 3)


def _caught_up_too_early(streams: list[Stream]) -> None:
    streams[1].heads = {LOG: HEAD}


def _unwanted(streams: list[Stream]) -> None:
    streams[4].updates.append(_shown(_request(0), TRUTH.at(BATCH + 3)))


def _ended_while_it_lives(streams: list[Stream]) -> None:
    streams[0].ending = Ending("OK")


def _content(change: Callable[[Any], None]) -> Break:
    def broken(streams: list[Stream]) -> None:
        change(streams[0].updates[3])

    return broken


def _other_value(update: Any) -> None:  # noqa: ANN401
    update.variable.value.value = b"17"


def _other_old_value(update: Any) -> None:  # noqa: ANN401
    update.old_value.value = b"17"


def _mark_inside(streams: list[Stream]) -> None:
    mark = _mark("heartbeat", BATCH)
    streams[1].updates.insert(1, mark)


def _split(streams: list[Stream]) -> None:
    streams[1].updates[0].resume_offset = BATCH
    streams[1].updates[0].resume_check = TRUTH.check_at(BATCH)


def _not_moved_on(streams: list[Stream]) -> None:
    streams[1].updates[2].resume_offset = BATCH - 1
    streams[1].updates[2].resume_check = TRUTH.check_at(BATCH - 1)


def _interleaved(streams: list[Stream]) -> None:
    updates = streams[1].updates
    updates.insert(1, updates.pop())


def _closed_inside(streams: list[Stream]) -> None:
    ending = streams[1].ending
    trailers = {**ending.trailers, "resume_offset": str(SECOND)}
    streams[1].ending = ending._replace(trailers=trailers)


def _begins_late(streams: list[Stream]) -> None:
    del streams[2].updates[0]


def _begins_early(streams: list[Stream]) -> None:
    streams[3].updates.insert(0, _shown(streams[3].request, TRUTH.at(SECOND + 1)))


def _initial_missing(streams: list[Stream]) -> None:
    del streams[0].updates[0]


def _initial_of_later(streams: list[Stream]) -> None:
    streams[0].updates[0].variable.value.value = b"1"


def _initial_of_the_past(streams: list[Stream]) -> None:
    streams[0].heads = {LOG: 5}


def _clamped(streams: list[Stream]) -> None:
    """What was asked for is there; or so it says."""
    message = streams[4].ending.message.replace(f"{SECOND + 3} to", "3 to")
    streams[4].ending = Ending("OUT_OF_RANGE", message)


def _says_not_what_is_there(streams: list[Stream]) -> None:
    streams[4].ending = Ending("OUT_OF_RANGE", "gone")


def _foreign_log(streams: list[Stream]) -> None:
    streams[3].ending = Ending("FAILED_PRECONDITION", "another log")


def _no_bookmark(streams: list[Stream]) -> None:
    streams[1].updates[2].ClearField("resume_offset")


def _no_bookmark_after_initial_values(streams: list[Stream]) -> None:
    streams[0].updates[2].ClearField("resume_offset")


def _bookmark_before_the_last_initial_value(streams: list[Stream]) -> None:
    _place(streams[0].updates[1], 4, 4)


def _wrong_check(streams: list[Stream]) -> None:
    streams[1].updates[2].resume_check ^= 1


def _wrong_check_in_trailers(streams: list[Stream]) -> None:
    ending = streams[1].ending
    streams[1].ending = ending._replace(trailers={**ending.trailers, "resume_check": "17"})


def _old_bookmark_in_trailers(streams: list[Stream]) -> None:
    ending = streams[1].ending
    old = {"resume_offset": "4", "resume_check": str(TRUTH.check_at(4))}
    streams[1].ending = ending._replace(trailers={**ending.trailers, **old})


def _other_epoch(streams: list[Stream]) -> None:
    streams[1].updates[2].log_epoch = "another"


def _refused(streams: list[Stream]) -> None:
    streams[2].ending = Ending("INVALID_ARGUMENT", "no")


FAULTS: Sequence[tuple[Callable[[Recording], None], Break]] = (
    (check_ordered, _swapped),
    (check_ordered, _twice),
    (check_ordered, _initial_late),
    (check_ordered, _initial_of_two_offsets),
    (check_unique, _twice),
    (check_unique, _initial_twice),
    (check_unique, _again_in_the_chain),
    (check_unique, _taken_up_too_early),
    (check_reliable, _one_missing),
    (check_reliable, _missing_before_the_end),
    (check_reliable, _missing_before_the_trailers),
    (check_reliable, _missing_between_two_streams),
    (check_reliable, _mark_ahead),
    (check_reliable, _caught_up_too_early),
    (check_reliable, _unwanted),
    (check_reliable, _content(_other_value)),
    (check_reliable, _content(_other_old_value)),
    (check_reliable, _content(lambda u: u.ClearField("old_value"))),
    (check_reliable, _content(lambda u: u.update_metadata.clear())),
    (check_reliable, _content(lambda u: u.ClearField("update_source"))),
    (check_reliable, _content(lambda u: u.ClearField("correlation_id"))),
    (check_reliable, _content(lambda u: u.ClearField("traceparent"))),
    (check_reliable, _content(lambda u: u.ClearField("timestamp"))),
    (check_reliable, _content(lambda u: u.variable.ClearField("version"))),
    (check_reliable, _content(lambda u: u.variable.ClearField("name"))),
    (check_reliable, _content(lambda u: u.variable.ClearField("type"))),
    (check_reliable, _content(lambda u: u.variable.metadata.clear())),
    (check_reliable, _content(lambda u: setattr(u, "value_omitted", True))),
    (check_atomic, _mark_inside),
    (check_atomic, _split),
    (check_atomic, _not_moved_on),
    (check_atomic, _interleaved),
    (check_atomic, _closed_inside),
    (check_resumable, _begins_late),
    (check_resumable, _begins_early),
    (check_resumable, _initial_missing),
    (check_resumable, _initial_of_later),
    (check_resumable, _initial_of_the_past),
    (check_resumable, _clamped),
    (check_resumable, _says_not_what_is_there),
    (check_resumable, _foreign_log),
    (check_bookmarkable, _no_bookmark),
    (check_bookmarkable, _no_bookmark_after_initial_values),
    (check_bookmarkable, _bookmark_before_the_last_initial_value),
    (check_bookmarkable, _wrong_check),
    (check_bookmarkable, _wrong_check_in_trailers),
    (check_bookmarkable, _old_bookmark_in_trailers),
    (check_bookmarkable, _refused),
)


def _name(value: Any) -> str:  # noqa: ANN401 - a function
    return str(value.__name__).removeprefix("check").strip("_")


@pytest.mark.parametrize(("check", "fault"), FAULTS, ids=_name)
def test_a_fault_is_found_by_its_validator(
    check: Callable[[Recording], None], fault: Break
) -> None:
    recording = _recording()
    check(recording)
    fault([stream for streams in recording.watchers.values() for stream in streams])
    with pytest.raises(AssertionError, match=r"watcher [wv], stream \d"):
        check(recording)


def test_an_update_of_another_log_is_found() -> None:
    recording = _recording()
    _other_epoch(recording.watchers["w"])
    with pytest.raises(AssertionError, match=r"watcher w, stream 1.* epoch another"):
        check_bookmarkable(recording)
    recording.watchers["w"][0].updates[0].log_epoch = "unheard of"
    with pytest.raises(AssertionError, match="unheard of"):
        check_ordered(recording)


def test_a_lost_write_is_found() -> None:
    recording = _recording()
    (told,) = recording.told
    for wrong in (told._replace(offset=HEAD + 1), told._replace(offset=5)):
        recording.told[:] = [wrong]
        with pytest.raises(AssertionError, match="told"):
            check_told(recording)
    recording.told[:] = [told._replace(log=LogId("s", "another"))]
    with pytest.raises(AssertionError, match="lost"):
        check_told(recording)


def test_every_validator_has_faults_to_find() -> None:
    assert {check for check, _ in FAULTS} == set(VALIDATORS)
