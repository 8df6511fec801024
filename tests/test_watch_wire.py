"""What the wire contract promises to watchers, over a socket, promise by promise.

Nothing here waits for a while to see that nothing comes: what must not come would stand
before the next thing that must.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge.events.gate import Gate
from snakepit_bridge.events.sqlite import SqliteLog
from snakepit_bridge.limits import Limits
from snakepit_bridge.upkeep import IDLE
from snakepit_bridge.watching import Watches
from tests.bridge_process import UNLIMITED, BridgeProcess
from tests.life import HOUR, Life
from tests.test_error_table import fault_of
from tests.watches import Watch, at_head, bookmark_of, outline, wait_until, watch
from tests.wire_session import TIMEOUT, Session, packed, plain

MIB = 1024 * 1024
EVERY_TYPE = ("value_change", "registered", "deleted")

Fields = dict[str, Any]
"""Of a request."""


@pytest.fixture
def cautious(bridge: BridgeProcess) -> Iterator[grpc.Channel]:
    """A client that takes 4 MB at a time, as clients do unless they are told otherwise."""
    options = (("grpc.use_local_subchannel_pool", 1),)
    with grpc.insecure_channel(f"127.0.0.1:{bridge.port}", options=options) as channel:
        yield channel


# Types of updates.


def test_an_old_watcher_sees_three_types_only(session: Session) -> None:
    session.register("x", 1)
    with watch(session, include_initial_values=True, heartbeat_seconds=1) as opened:
        seen = [opened.next()]  # and now it is open
        session.register("y", 2)
        session.set("x", 3)
        session.delete("x")
        session.set("y", 4)
        head = session.head
        while not (seen[-1].update_type == "heartbeat" and seen[-1].offset == head):
            seen.append(opened.next())
    assert outline(update for update in seen if update.update_type != "heartbeat") == [
        ("initial_value", 2, "x", 1),
        ("value_change", 4, "x", 3),
        ("value_change", 6, "y", 4),
    ]


def test_types_are_sent_if_they_are_asked_for(session: Session) -> None:
    session.start()
    with at_head(session, update_types=EVERY_TYPE) as opened:
        id_ = session.register("x", 1).variable_id
        session.set("x", 2)
        session.set("x", 3)
        session.delete("x")
        seen = opened.take(4)
    assert outline(seen) == [
        ("registered", 2, "x", 1),
        ("value_change", 3, "x", 2),
        ("value_change", 4, "x", 3),
        ("deleted", 5, "x", None),
    ]
    assert {update.variable_id for update in seen} == {id_}
    assert [update.HasField("old_value") for update in seen] == [False, True, True, True]
    deleted = seen[-1]
    assert deleted.variable == pb.Variable(id=id_, name="x", type="integer", version=3)
    assert deleted.old_value == packed(3)
    assert not deleted.value_omitted


@pytest.mark.parametrize("wanted", EVERY_TYPE)
def test_of_the_types_only_those_asked_for_are_sent(session: Session, wanted: str) -> None:
    session.register("x", 1)
    session.set("x", 2)
    session.delete("x")
    opened = watch(session, after_offset=0, send_caught_up=True, update_types=[wanted])
    with opened:
        seen = [update.update_type for update in opened.until("caught_up")]
    assert seen == [wanted, "caught_up"]


def test_types_that_are_no_changes_may_be_named(session: Session) -> None:
    session.register("x", 1)
    named = ["initial_value", "heartbeat", "caught_up", "value_change"]
    with watch(session, update_types=named, include_initial_values=True) as opened:
        assert opened.next().update_type == "initial_value"
        session.set("x", 2)
        assert opened.next().update_type == "value_change"


def test_an_empty_session_is_caught_up_with_at_once_and_once(session: Session) -> None:
    started = session.start()
    with watch(session, send_caught_up=True, heartbeat_seconds=1) as opened:
        caught_up = opened.next()
        assert caught_up.update_type == "caught_up"
        assert (caught_up.offset, caught_up.resume_offset) == (1, 1)
        assert caught_up.log_epoch == started.log_epoch
        assert caught_up.resume_check
        assert not caught_up.HasField("variable")
        assert caught_up.variable_id == ""
        session.register("x", 1)
        session.set("x", 2)
        assert [update.update_type for update in opened.until("heartbeat")[:1]] == ["value_change"]
        session.set("x", 3)
        rest = [update.update_type for update in opened.until("heartbeat")]
        assert "caught_up" not in rest
    with watch(session, **bookmark_of(caught_up).fields) as again:
        assert outline(again.take(2)) == [("value_change", 3, "x", 2), ("value_change", 4, "x", 3)]


def test_caught_up_comes_after_all_there_is(session: Session) -> None:
    session.register("x", 0)
    for number in range(1, 50):
        session.set("x", number)
    opened = watch(session, after_offset=0, include_initial_values=True, send_caught_up=True)
    with opened:
        seen = opened.until("caught_up")
    assert [update.update_type for update in seen] == ["value_change"] * 49 + ["caught_up"]
    assert seen[-1].offset == seen[-1].resume_offset == 51


def test_heartbeats_tell_how_far_a_watch_is_whatever_matches(session: Session) -> None:
    """Three watches: nothing happens, nothing that happens matches, all of it does."""
    quiet = Session(session.bridge, f"{session.id}, quiet")
    for one in (quiet, session):
        one.register("x", 0)
    silent = at_head(quiet, heartbeat_seconds=1)
    deaf = at_head(session, "nothing", "no*", heartbeat_seconds=1)
    eager = at_head(session, heartbeat_seconds=1)
    beats = []
    with silent, deaf, eager:
        for _ in range(2):
            before = session.set("x", 1).offset
            beat = deaf.next()
            assert (beat.update_type, beat.offset >= before) == ("heartbeat", True)
            beats.append(beat)
        assert beats[0].offset < beats[1].offset
        beats += [silent.next(), silent.next()]
        assert [beat.offset for beat in beats[2:]] == [2, 2]
        seen = eager.until("heartbeat")
        assert seen[-1].offset == 2 + len(seen) - 1  # every set up to it was delivered
        beats.append(seen[-1])
    for beat in beats:
        assert beat.update_type == "heartbeat"
        assert beat.resume_offset == beat.offset
        assert (beat.variable_id, beat.HasField("variable")) == ("", False)
        assert beat.timestamp.seconds > 1_700_000_000
    for beat in beats[:2]:
        session.set("x", 2)
        with watch(session, **bookmark_of(beat).fields) as again:
            assert again.next().offset == beat.offset + 1


# Where a watch begins.


def test_initial_values_are_the_state_where_the_watch_begins(session: Session) -> None:
    for name in ("a", "b", "c", "d"):
        session.register(name, 1)
    session.set("b", 2, metadata={"source": "python", "k": "v"})
    session.delete("d")
    head = session.head
    with watch(session, include_initial_values=True) as opened:
        initial = opened.take(3)
        session.set("a", 3)
        change = opened.next()
    assert outline(initial) == [
        ("initial_value", head, n, v) for n, v in zip("abc", (1, 2, 1), strict=True)
    ]
    assert outline([change]) == [("value_change", head + 1, "a", 3)]
    assert [update.HasField("resume_offset") for update in initial] == [False, False, True]
    assert [update.resume_check != 0 for update in initial] == [False, False, True]
    assert initial[-1].resume_offset == head
    epoch = session.call("GetSession").log_epoch
    for update in initial[1:]:
        variable = session.get(update.variable.name)
        assert update.variable == variable
        assert update.variable_id == variable.id
        assert update.timestamp == variable.last_updated_at
        assert update.log_epoch == epoch
        assert not update.HasField("old_value")
    assert [update.update_source for update in initial] == ["elixir", "python", "elixir"]
    with watch(session, **bookmark_of(initial[-1]).fields) as again:
        assert outline([again.next()]) == outline([change])


def test_initial_values_are_those_that_match(session: Session) -> None:
    for name in ("a1", "a2", "b1", "b2"):
        session.register(name, 1)
    id_ = session.get("b2").id
    for identifiers, names in {
        ("a*",): ["a1", "a2"],
        ("b1",): ["b1"],
        (id_, "?1"): ["a1", "b1", "b2"],
        ("nothing",): [],
    }.items():
        opened = watch(session, *identifiers, include_initial_values=True, send_caught_up=True)
        with opened:
            *initial, _ = opened.until("caught_up")
        assert [update.variable.name for update in initial] == names
        assert [update.HasField("resume_offset") for update in initial] == [
            name == names[-1] for name in names
        ]


def test_initial_values_of_the_past_are_followed_by_what_came_after(session: Session) -> None:
    epoch = session.register("x", 1).log_epoch
    session.register("gone", 1)
    session.set("x", 2)
    session.set("x", 3)
    session.delete("gone")
    expected = [
        [("value_change", 4, "x", 2), ("value_change", 5, "x", 3)],
        [("initial_value", 2, "x", 1), ("value_change", 4, "x", 2), ("value_change", 5, "x", 3)],
        [
            ("initial_value", 4, "x", 2),
            ("initial_value", 4, "gone", 1),
            ("value_change", 5, "x", 3),
        ],
        [("initial_value", 6, "x", 3)],
    ]
    for after, updates in zip((0, 2, 4, 6), expected, strict=True):
        fields: Fields = {
            "include_initial_values": True,
            "send_caught_up": True,
            "log_epoch": epoch,
        }
        with watch(session, after_offset=after, **fields) as opened:
            *seen, _ = opened.until("caught_up")
        assert outline(seen) == updates


def test_without_an_offset_a_watch_begins_now(session: Session) -> None:
    session.register("x", 1)
    session.set("x", 2)
    with at_head(session) as opened:
        session.set("x", 3)
        assert outline([opened.next()]) == [("value_change", 4, "x", 3)]


def test_after_offset_is_exclusive(session: Session) -> None:
    epoch = session.register("x", 2).log_epoch
    for number in range(3, 7):
        session.set("x", number)
    for after in range(7):
        fields: Fields = {"update_types": EVERY_TYPE, "send_caught_up": True, "log_epoch": epoch}
        with watch(session, after_offset=after, **fields) as opened:
            *seen, caught_up = opened.until("caught_up")
        assert [update.offset for update in seen] == list(range(max(2, after + 1), 7))
        assert (caught_up.offset, caught_up.resume_offset) == (6, 6)
    with watch(session, after_offset=6, log_epoch=epoch) as opened:
        session.set("x", 7)
        assert outline([opened.next()]) == [("value_change", 7, "x", 7)]


def test_the_whole_log_needs_no_epoch_but_takes_one(session: Session) -> None:
    epoch = session.register("x", 1).log_epoch
    session.set("x", 2)
    for fields in ({}, {"log_epoch": epoch}):
        with watch(session, after_offset=0, **fields) as opened:
            assert opened.next().offset == 3


def together(session: Session) -> tuple[int, str]:
    """Register a, b and c, and set them in one transaction; gives its first offset."""
    for name in ("a", "b", "c"):
        session.register(name, 1)
    answer = session.set_many({name: packed(2) for name in ("a", "b", "c")}, atomic=True)
    session.set("a", 3)
    return answer.offset - 2, answer.log_epoch


def test_a_transaction_is_begun_again_until_it_was_seen_whole(session: Session) -> None:
    first, _ = together(session)
    with watch(session, after_offset=0) as opened:
        seen = opened.take(4)
    assert [update.offset for update in seen] == list(range(first, first + 4))
    assert [update.transaction for update in seen] == [first, first, first, first + 3]
    kept = [update.resume_offset for update in seen]
    assert kept == [first - 1, first - 1, first + 2, first + 3]
    assert seen[0].resume_check == seen[1].resume_check
    assert len({update.resume_check for update in seen}) == 3
    for update in seen:
        session.set("c", 4)
        with watch(session, **bookmark_of(update).fields) as again:
            assert again.next().offset == update.resume_offset + 1


def test_the_last_of_a_transaction_is_the_last_that_matches(session: Session) -> None:
    first, _ = together(session)
    with watch(session, "a", "b", after_offset=0) as opened:
        seen = opened.take(3)
    assert [update.offset for update in seen] == [first, first + 1, first + 3]
    assert [update.resume_offset for update in seen] == [first - 1, first + 1, first + 3]
    with watch(session, "a", "b", **bookmark_of(seen[1]).fields) as again:
        assert again.next().offset == first + 3
    with watch(session, **bookmark_of(seen[1]).fields) as wider:
        assert wider.next().offset == first + 2  # the rest of the transaction


def test_an_offset_inside_a_transaction_is_followed_by_its_rest(session: Session) -> None:
    first, epoch = together(session)
    fields: Fields = {"log_epoch": epoch, "after_offset": first, "send_caught_up": True}
    with watch(session, **fields) as opened:
        *seen, _ = opened.until("caught_up")
    assert [update.offset for update in seen] == [first + 1, first + 2, first + 3]
    assert [update.transaction for update in seen] == [first, first, first + 3]
    assert [update.resume_offset for update in seen] == [first - 1, first + 2, first + 3]
    with watch(session, include_initial_values=True, **fields) as opened:
        *seen, _ = opened.until("caught_up")
    assert outline(seen[:4]) == [
        ("initial_value", first, "a", 2),
        ("initial_value", first, "b", 1),
        ("initial_value", first, "c", 1),
        ("value_change", first + 1, "b", 2),
    ]


def test_the_check_of_an_offset_is_compared_when_it_is_given(session: Session) -> None:
    session.register("x", 1)
    for number in range(2, 6):
        session.set("x", number)
    with watch(session, after_offset=0) as opened:
        marks = [bookmark_of(update) for update in opened.take(4)]
    assert len({mark.resume_check for mark in marks}) == 4
    for mark in marks:
        for check in (mark.resume_check, 0):
            fields: Fields = {**mark.fields, "resume_check": check, "send_caught_up": True}
            with watch(session, **fields) as opened:
                assert opened.until("caught_up")[-1].offset == 6
        for check in (mark.resume_check ^ 1, 2**64 - 1):
            with watch(session, **{**mark.fields, "resume_check": check}) as opened:
                fault = opened.fault()
            assert (fault.code, fault.field) == ("FAILED_PRECONDITION", "resume_check")
            for word in ("resume_check", f"offset {mark.resume_offset}", mark.log_epoch):
                assert word in fault.message
    whole: Fields = {"after_offset": 0, "log_epoch": marks[0].log_epoch, "resume_check": 7}
    with watch(session, **whole) as opened:
        assert opened.fault().code == "FAILED_PRECONDITION"


def test_an_offset_in_the_future_is_out_of_range(session: Session) -> None:
    epoch = session.register("x", 1).log_epoch
    for after in (3, 1_000, 2**64 - 1):
        with watch(session, after_offset=after, log_epoch=epoch) as opened:
            fault = opened.fault()
            facts = opened.facts
        assert (fault.code, fault.reason) == ("OUT_OF_RANGE", "OFFSET_OUT_OF_RANGE")
        assert fault.field == "after_offset"
        for word in (f"offset {after} ", "future", epoch, "1 to 2"):
            assert word in fault.message
        assert facts == {"first_available": "1", "last": "2", "log_epoch": epoch}


def test_an_offset_without_its_epoch_is_refused(session: Session) -> None:
    session.register("x", 1)
    with watch(session, after_offset=1) as opened:
        fault = opened.fault()
    assert (fault.code, fault.field) == ("INVALID_ARGUMENT", "log_epoch")
    assert "log_epoch" in fault.message


@pytest.mark.parametrize("after", [None, 0, 1])
def test_a_foreign_epoch_is_refused(session: Session, after: int | None) -> None:
    epoch = session.register("x", 1).log_epoch
    with watch(session, after_offset=after, log_epoch="0123456789abcdef") as opened:
        fault = opened.fault()
    assert (fault.code, fault.reason, fault.field) == (
        "FAILED_PRECONDITION",
        "LOG_EPOCH_MISMATCH",
        "log_epoch",
    )
    assert "'0123456789abcdef'" in fault.message
    assert epoch in fault.message


def test_an_unknown_session_is_not_found_and_not_begun(session: Session) -> None:
    with watch(session) as opened:
        fault = opened.fault()
    assert (fault.code, fault.reason) == ("NOT_FOUND", "SESSION_NOT_FOUND")
    assert repr(session.id) in fault.message
    with watch(session, log_epoch="0123456789abcdef") as opened:
        assert opened.fault().code == "FAILED_PRECONDITION"
    assert not session.lives


# What a watch shows.


def test_a_watch_shows_what_matches(session: Session) -> None:
    for name in ("alpha", "beta", "gamma", "al[p]ha"):
        session.register(name, 0)
    ids = {name: session.get(name).id for name in ("alpha", "beta", "gamma")}
    wanted: dict[tuple[str, ...], list[str]] = {
        (): ["alpha", "beta", "gamma", "al[p]ha"],
        ("alpha",): ["alpha"],
        (ids["beta"],): ["beta"],
        ("a*",): ["alpha", "al[p]ha"],
        ("????",): ["beta"],
        ("*a",): ["alpha", "beta", "gamma", "al[p]ha"],
        ("al[p]*",): ["al[p]ha"],
        ("gamma", ids["alpha"], "b?ta", "gamma"): ["alpha", "beta", "gamma"],
        ("*",): ["alpha", "beta", "gamma", "al[p]ha"],
    }
    watches = {identifiers: at_head(session, *identifiers) for identifiers in wanted}
    for name in ("alpha", "beta", "gamma", "al[p]ha"):
        session.set(name, 1)
    for identifiers, names in wanted.items():
        with watches[identifiers] as opened:
            assert [update.variable.name for update in opened.take(len(names))] == names
        fields: Fields = {"after_offset": 0, "send_caught_up": True}
        with watch(session, *identifiers, **fields) as opened:  # and the same from the log
            *seen, _ = opened.until("caught_up")
        assert [update.variable.name for update in seen] == names


def test_an_unknown_name_is_awaited(session: Session) -> None:
    session.register("other", 1)
    with at_head(session, "later", update_types=EVERY_TYPE) as opened:
        session.set("other", 2)
        session.register("later", 3)
        session.set("later", 4)
        assert outline(opened.take(2)) == [
            ("registered", 4, "later", 3),
            ("value_change", 5, "later", 4),
        ]


def test_a_name_follows_its_variable_and_an_id_does_not(session: Session) -> None:
    registered = session.register("x", 1)
    old, epoch = registered.variable_id, registered.log_epoch
    by_name = at_head(session, "x", update_types=EVERY_TYPE)
    by_id = at_head(session, old, update_types=EVERY_TYPE)
    session.set("x", 2)
    session.delete("x")
    new = session.register("x", 3).variable_id
    session.set("x", 4)
    session.end()
    whole: Fields = {"after_offset": 2, "log_epoch": epoch, "update_types": EVERY_TYPE}
    # As they were told of it, and from the log.
    for follows in (by_name, watch(session, "x", **whole)):
        with follows:
            assert [(update.update_type, update.variable_id) for update in follows.rest()] == [
                ("value_change", old),
                ("deleted", old),
                ("registered", new),
                ("value_change", new),
            ]
    for stays in (by_id, watch(session, old, **whole)):
        with stays:
            assert [(update.update_type, update.variable_id) for update in stays.rest()] == [
                ("value_change", old),
                ("deleted", old),
            ]


def test_an_update_says_what_changed_and_who_changed_it(session: Session) -> None:
    session.register("x", 1, metadata={"unit": "K"})
    with at_head(session) as opened:
        headers = [("x-snakepit-correlation-id", "c-1"), ("traceparent", f"00-{1:032}-{2:016}-01")]
        fields: Fields = {"variable_identifier": "x", "value": packed(2)}
        metadata = {"source": "tool:t", "k": "v"}
        answer = session.call("SetVariable", headers, metadata=metadata, **fields)
        update = opened.next()
        session.roll_back("x", 1, metadata={"source": "python"})
        rolled_back = opened.next()
    assert update.variable == session_variable(session, update.offset)
    assert update.variable_id == update.variable.id
    assert (update.variable.version, dict(update.variable.metadata)) == (
        2,
        {"unit": "K", "source": "tool:t", "k": "v"},
    )
    assert update.variable.offset == update.offset == answer.offset
    assert update.log_epoch == answer.log_epoch
    assert update.transaction == update.resume_offset == update.offset
    assert update.old_value == packed(1)
    assert update.timestamp == update.variable.last_updated_at
    assert update.update_source == "tool:t"
    assert dict(update.update_metadata) == metadata
    assert (update.correlation_id, update.traceparent) == ("c-1", headers[1][1])
    assert (rolled_back.update_type, rolled_back.update_source) == ("value_change", "python")
    assert rolled_back.correlation_id not in ("", "c-1")  # one was made for it
    assert rolled_back.traceparent == ""
    assert (rolled_back.variable.value, rolled_back.old_value) == (packed(1), packed(2))
    assert rolled_back.variable == session.get("x")


def session_variable(session: Session, offset: int) -> pb.Variable:
    """The only variable, as an initial value after an event."""
    epoch = session.call("GetSession").log_epoch
    fields: Fields = {"after_offset": offset, "log_epoch": epoch, "include_initial_values": True}
    with watch(session, **fields) as opened:
        return opened.next().variable


def test_correlation_and_trace_of_the_metadata_map_are_passed_on(session: Session) -> None:
    session.register("x", 1)
    with at_head(session) as opened:
        traceparent = f"00-{'a' * 32}-{'b' * 16}-01"
        metadata = {"correlation_id": "c-2", "traceparent": traceparent, "k": "v"}
        session.set("x", 2, metadata=metadata)
        update = opened.next()
    assert (update.correlation_id, update.traceparent) == ("c-2", traceparent)
    assert dict(update.variable.metadata) == {"k": "v"}


def test_the_values_of_a_watch_are_those_of_the_writers(session: Session) -> None:
    """JSON under the prefix it came with, and binary forms with their bytes."""
    about = json.dumps({"shape": [2], "dtype": "float64", "binary_format": "raw"})
    form = AnyMessage(type_url="dspex.variables/tensor.binary", value=about.encode())
    session.register("x", {"shape": [1], "data": [1]}, "tensor")
    old = packed({"shape": [1], "data": [2]}, "tensor", "type.googleapis.com/snakepit.")
    with at_head(session, update_types=EVERY_TYPE) as opened:
        for value, content in ((old, b""), (form, bytes(16)), (form, bytes(8) + b"12345678")):
            fields: Fields = {"variable_identifier": "x", "value": value, "binary_value": content}
            session.call("SetVariable", **fields)
        session.delete("x")
        seen = opened.take(4)
    shown = [(update.variable.value, update.variable.binary_value) for update in seen]
    assert shown == [
        (old, b""),
        (form, bytes(16)),
        (form, bytes(8) + b"12345678"),
        (AnyMessage(), b""),
    ]
    assert [(update.old_value, update.old_binary_value) for update in seen] == [
        (packed({"shape": [1], "data": [1]}, "tensor"), b""),
        *shown[:3],
    ]


# Values that are left out.


def test_values_beyond_a_bound_are_left_out(session: Session) -> None:
    def text(size: int) -> str:
        return "v" * (size - 2)  # and its quotes

    session.register("x", text(100), "string")
    opened = watch(session, include_initial_values=True, max_value_bytes=100)
    strict = watch(session, include_initial_values=True, max_value_bytes=99)
    with opened, strict:
        for each in (opened, strict):
            each.next()
        for size in (101, 100, 100, 5_000, 5_000, 10):
            session.set("x", text(size), "string")
        session.end()
        sizes = [sizes_of(update) for update in opened.rest()]
        assert sizes == [
            (None, 100, True),
            (100, None, True),
            (100, 100, False),
            (None, 100, True),
            (None, None, True),
            (10, None, True),
        ]
        assert [sizes_of(update) for update in strict.rest()] == [
            (None, None, True),
        ] * 5 + [(10, None, True)]


def sizes_of(update: pb.VariableUpdate) -> tuple[int | None, int | None, bool]:
    """Bytes of the value and of the old one; ``None`` where there is no Any at all."""
    variable = update.variable
    assert variable.name == "x"  # all else is there
    assert variable.version > 0
    new = len(variable.value.value) if variable.HasField("value") else None
    old = len(update.old_value.value) if update.HasField("old_value") else None
    return new, old, update.value_omitted


def test_initial_and_deleted_values_beyond_a_bound_are_left_out(session: Session) -> None:
    session.register("x", "v" * 200, "string")
    fields: Fields = {"include_initial_values": True, "update_types": EVERY_TYPE}
    with watch(session, max_value_bytes=100, **fields) as opened:
        assert sizes_of(opened.next()) == (None, None, True)
        session.delete("x")
        assert sizes_of(opened.next()) == (None, None, True)
        session.register("x", "v" * 200, "string")
        assert sizes_of(opened.next()) == (None, None, True)


def test_64_mib_do_not_reach_a_watcher_who_bounds_values(
    session: Session, cautious: grpc.Channel
) -> None:
    size = 64 * MIB
    about = {"shape": [size], "dtype": "int8", "binary_format": "raw"}
    form = AnyMessage(type_url="dspex.variables/tensor.binary", value=json.dumps(about).encode())
    session.register("x", {"shape": [1], "data": [1]}, "tensor")
    bounded: Fields = {"on": cautious, "max_value_bytes": 1_000_000, "include_initial_values": True}
    with watch(session, **bounded) as opened:
        opened.next()
        session.call("SetVariable", variable_identifier="x", value=form, binary_value=bytes(size))
        session.set("x", {"shape": [1], "data": [2]}, "tensor")
        large, small = opened.take(2)
    assert sizes_of(large)[0] is None
    assert sizes_of(large)[1] is not None
    assert large.value_omitted
    assert not large.variable.binary_value
    assert sizes_of(small)[1] is None
    assert small.value_omitted
    assert not small.old_binary_value
    assert plain(small.variable.value)["data"] == [2]
    mark = bookmark_of(large).fields
    with watch(session, **bounded, **mark) as opened:  # the state then, read from the log
        assert sizes_of(opened.next()) == (None, None, True)


def test_an_old_value_that_would_burst_a_client_is_left_out(
    session: Session, cautious: grpc.Channel
) -> None:
    session.register("x", "small", "string")
    with watch(session, on=cautious, include_initial_values=True) as opened:
        opened.next()
        size = 3_000_000
        for letter in "abc":
            session.set("x", letter * size, "string")
        session.set("x", "small", "string")
        seen = [sizes_of(update) for update in opened.take(4)]
    assert seen == [
        (size + 2, 7, False),
        (size + 2, None, True),
        (size + 2, None, True),
        (7, size + 2, False),
    ]


# How a watch ends.


def test_a_session_that_ends_ends_its_watches_well(session: Session) -> None:
    epoch = session.register("x", 0).log_epoch
    watches = [at_head(session), at_head(session, "nothing"), at_head(session, after_offset=0)]
    for number in range(20):
        session.set("x", number)
    session.end()
    for opened, expected in zip(watches, (20, 0, 20), strict=True):
        assert [plain(update.variable.value) for update in opened.rest()] == list(range(expected))
    # What is kept is there to be watched, under its name only.
    with watch(session) as opened:
        assert opened.fault().code == "NOT_FOUND"
    with watch(session, after_offset=0) as opened:
        assert opened.fault().code == "NOT_FOUND"
    with watch(session, after_offset=0, log_epoch=epoch, send_caught_up=True) as opened:
        seen = opened.rest()
        assert [update.offset for update in seen if update.update_type == "value_change"] == list(
            range(3, 23)
        )
        assert [update.update_type for update in seen[20:]] in ([], ["caught_up"])
    with watch(session, after_offset=20, log_epoch=epoch, include_initial_values=True) as opened:
        assert outline(opened.rest()) == [
            ("initial_value", 20, "x", 17),
            ("value_change", 21, "x", 18),
            ("value_change", 22, "x", 19),
        ]
    ends: tuple[Fields, Fields] = ({}, {"after_offset": 23})
    for fields in ends:
        with watch(session, log_epoch=epoch, **fields) as opened:
            assert opened.rest() == []


def test_a_session_that_begins_anew_is_another_log(session: Session) -> None:
    old = session.register("x", 0).log_epoch
    with at_head(session) as opened:
        session.set("x", 1)
        session.end()
        new = session.start().log_epoch
        session.register("x", 5)
        session.set("x", 6)
        assert outline(opened.rest()) == [("value_change", 3, "x", 1)]
    assert new != old
    for epoch, expected in ((old, [(old, 3, 1)]), (new, [(new, 3, 6)])):
        fields: Fields = {"after_offset": 0, "log_epoch": epoch}
        with watch(session, **fields) as opened:
            seen = opened.rest() if epoch == old else [opened.next()]
        assert [(u.log_epoch, u.offset, plain(u.variable.value)) for u in seen] == expected
    with watch(session, after_offset=0) as opened:
        assert opened.next().log_epoch == new


def test_headers_come_at_once_though_nothing_happens(session: Session) -> None:
    """An Elixir client waits for them before it goes on."""
    session.start()
    with watch(session, timeout=20) as opened:  # less than until the first heartbeat
        opened.call.initial_metadata()
        assert opened.call.is_active()


@pytest.fixture
def bridge_with(tmp_path: Path) -> Iterator[Callable[..., BridgeProcess]]:
    """Starts a bridge with arguments of one's own."""
    started: list[BridgeProcess] = []

    def start(*arguments: str) -> BridgeProcess:
        started.append(BridgeProcess(tmp_path / f"{len(started)}.db", *arguments))
        return started[-1]

    yield start
    for process in started:
        assert process.stop() == 0
        assert "Traceback" not in process.stderr, process.stderr


def test_a_watch_that_lived_long_says_how_to_go_on(
    bridge_with: Callable[..., BridgeProcess],
) -> None:
    session = Session(bridge_with("--watch-max-lifetime", "1s"), "long")
    session.register("x", 0)
    stop = threading.Event()
    written: list[int] = []

    def write() -> None:
        for number in itertools.count(1):
            if stop.is_set():
                return
            written.append(session.set("x", number).offset)

    writer = threading.Thread(target=write)
    writer.start()
    seen: list[int] = []
    fields: Fields = {"after_offset": 0}
    try:
        for _ in range(3):
            with watch(session, **fields) as opened:
                updates, fault = opened.to_fault()
            seen += [update.offset for update in updates]
            assert (fault.code, fault.reason) == ("UNAVAILABLE", "WATCH_CLOSED")
            trailers = dict(opened.call.trailing_metadata())
            mark = {name: trailers[name] for name in ("log_epoch", "resume_offset", "resume_check")}
            assert opened.facts == mark
            words = ("1 s", "--watch-max-lifetime", f"after_offset={mark['resume_offset']},")
            for word in (*words, mark["log_epoch"], f"resume_check={mark['resume_check']}"):
                assert word in fault.message
            fields = {
                "log_epoch": mark["log_epoch"],
                "after_offset": int(mark["resume_offset"]),
                "resume_check": int(mark["resume_check"]),
            }
    finally:
        stop.set()
        writer.join()
    with watch(session, send_caught_up=True, **fields) as opened:
        *rest, _ = opened.until("caught_up")
    seen += [update.offset for update in rest]
    assert seen == written
    assert len(seen) > 10


def test_a_watch_keeps_its_session_alive(bridge_with: Callable[..., BridgeProcess]) -> None:
    bridge = bridge_with("--session-ttl", "1s")
    watched, unwatched = Session(bridge, "watched"), Session(bridge, "unwatched")
    watched.register("x", 0)
    with at_head(watched) as opened:
        # One that nobody uses expires, and then another that began only then.
        for name in ("unwatched", "later"):
            Session(bridge, name).register("x", 0)
            expired = f"session expired session_id={name} "
            wait_until(partial(said, bridge, expired), expired)
        assert "session expired session_id=watched " not in bridge.stderr
        watched.set("x", 1)
        assert outline([opened.next()]) == [("value_change", 3, "x", 1)]
    assert not unwatched.lives
    expired = "session expired session_id=watched "
    wait_until(partial(said, bridge, expired), "it expires without its watch")


def said(bridge: BridgeProcess, words: str) -> bool:
    return words in bridge.stderr


def test_expiry_ends_no_watch_but_a_log_that_is_gone_is_refused(
    bridge_with: Callable[..., BridgeProcess],
) -> None:
    session = Session(bridge_with("--retention-age", "1s"), "gone")
    epoch = session.register("x", 0).log_epoch
    session.end()
    fields: Fields = {"after_offset": 0, "log_epoch": epoch}

    def gone() -> bool:
        with watch(session, **fields) as opened:
            list_or_fault(opened)
            return opened.call.code() is not grpc.StatusCode.OK

    wait_until(gone, "the log is forgotten")
    with watch(session, **fields) as opened:
        fault = opened.fault()
    assert (fault.code, fault.reason) == ("FAILED_PRECONDITION", "LOG_EPOCH_MISMATCH")
    assert "no log is kept" in fault.message
    new = session.start().log_epoch
    with watch(session, **fields) as opened:
        fault = opened.fault()
    assert fault.code == "FAILED_PRECONDITION"
    assert new in fault.message


def list_or_fault(opened: Watch) -> list[pb.VariableUpdate]:
    try:
        return list(opened.call)
    except grpc.RpcError:
        fault_of(opened.call)
        return []


def test_what_retention_cut_away_is_out_of_range(
    bridge_with: Callable[..., BridgeProcess],
) -> None:
    """For one who asks for it, and for one who was too slow."""
    bridge = bridge_with("--retention-age", "2s", "--session-ttl", "0")
    session = Session(bridge, "cut")
    epoch = session.register("x", "", "string").log_epoch
    options = (*UNLIMITED, ("grpc.use_local_subchannel_pool", 1))
    with grpc.insecure_channel(f"127.0.0.1:{bridge.port}", options=options) as channel:
        slow = watch(session, on=channel, include_initial_values=True, timeout=60)
        slow.next()
        for number in range(40):  # more than the ring, and than a connection takes up
            session.set("x", str(number % 10) * MIB, "string")
        # It is cut step by step; once it is still, all of it is older than that.
        wait_until(lambda: cut_to(session, epoch) == session.head, "it is cut")
        with watch(session, after_offset=0) as opened:
            fault, facts = opened.fault(), opened.facts
        head = session.head
        assert (fault.code, fault.reason) == ("OUT_OF_RANGE", "OFFSET_OUT_OF_RANGE")
        assert facts == {"first_available": str(head + 1), "last": str(head), "log_epoch": epoch}
        for word in ("offset 1 ", "retention", str(head + 1), epoch):
            assert word in fault.message
        session.set("x", "new", "string")
        with watch(session, after_offset=0) as opened:
            assert f"offsets {head + 1} to {head + 1}" in opened.fault().message
        with watch(session, after_offset=head, log_epoch=epoch) as opened:
            assert opened.next().offset == head + 1
        updates, fault = slow.to_fault()
        assert [update.offset for update in updates] == list(range(3, 3 + len(updates)))
        assert len(updates) < 40
        assert fault.code == "OUT_OF_RANGE"
        assert epoch in fault.message
        assert slow.facts["log_epoch"] == epoch
        assert int(slow.facts["first_available"]) > 3 + len(updates)
        assert int(slow.facts["last"]) == session.head


def cut_to(session: Session, epoch: str) -> int:
    """The offset up to which a log was cut."""
    with watch(session, after_offset=1, log_epoch=epoch, send_caught_up=True) as opened:
        try:
            opened.next()
        except grpc.RpcError:
            fault_of(opened.call)
            return int(opened.facts["first_available"]) - 1
    return 0


def test_a_bridge_that_stops_says_how_to_go_on(bridge_with: Callable[..., BridgeProcess]) -> None:
    session = Session(bridge_with(), "stopping")
    session.register("x", 1)
    with at_head(session) as opened:
        session.set("x", 2)
        session.bridge.process.terminate()
        updates, fault = opened.to_fault()
    assert [update.offset for update in updates] == [3]
    assert fault.code == "UNAVAILABLE"
    assert "after_offset=3," in fault.message
    assert opened.facts["resume_offset"] == "3"


def test_a_bridge_that_stopped_is_gone_on_with_elsewhere(tmp_path: Path) -> None:
    seen: list[int] = []
    fields: Fields = {"after_offset": 0}
    for start in range(3):
        with BridgeProcess(tmp_path / "bridge.db") as bridge:
            session = Session(bridge, "restarted")
            if start == 0:
                session.register("x", 0)
            with watch(session, **fields) as opened:
                for number in range(4):
                    session.set("x", number)
                seen += [update.offset for update in opened.take(4)]
                bridge.process.terminate()
                assert opened.fault().code == "UNAVAILABLE"
                facts = opened.facts
            assert bridge.stop() == 0
        fields = {
            "log_epoch": facts["log_epoch"],
            "after_offset": int(facts["resume_offset"]),
            "resume_check": int(facts["resume_check"]),
        }
    assert seen == list(range(3, 15))


async def test_a_watch_keeps_its_session_in_memory_and_alive(tmp_path: Path) -> None:
    """On clocks that the test sets: sessions leave memory after minutes."""
    life = Life(lambda: SqliteLog(tmp_path / "bridge.db"))
    limits = Limits(session_ttl=HOUR)
    direct = life.start(limits)
    for name in ("watched", "unwatched"):
        life.register(name)
    loop = asyncio.get_running_loop()
    watches = Watches(direct.committer, Gate(direct.committer, loop, MIB), loop, limits)
    updates: asyncio.Queue[pb.VariableUpdate] = asyncio.Queue()

    async def send(update: bytes) -> None:
        updates.put_nowait(pb.VariableUpdate.FromString(update))

    request = pb.WatchVariablesRequest(session_id="watched", send_caught_up=True)
    opened = asyncio.create_task(watches.watch_variables(request.SerializeToString(), "test", send))
    assert (await asyncio.wait_for(updates.get(), TIMEOUT)).update_type == "caught_up"
    life.wait(2 * IDLE)
    assert life.in_memory() == {"watched"}
    life.wait(2 * HOUR)
    assert (life.live("watched"), life.live("unwatched")) == (True, False)
    life.write("watched", 7)
    update = await asyncio.wait_for(updates.get(), TIMEOUT)
    assert plain(update.variable.value) == 7
    opened.cancel()
    await asyncio.wait([opened])
    life.wait(2 * IDLE)
    assert life.in_memory() == set()
    life.wait(2 * HOUR)
    assert not life.live("watched")
    await watches.close()
    direct.close()
