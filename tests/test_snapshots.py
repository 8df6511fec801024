"""A snapshot saves work and changes nothing, and where a log was cut it is said so."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snakepit_bridge.commands import (
    CleanupSession,
    Command,
    DeleteVariable,
    LoadSession,
    RegisterVariable,
    RollbackVariable,
    SetVariable,
    SetVariables,
    StartOptimization,
    StartTool,
    StopOptimization,
)
from snakepit_bridge.errors import BridgeError, DataLoss, OffsetOutOfRange
from snakepit_bridge.events.loaded import LoadedLog
from snakepit_bridge.events.log import UNREFERENCED_NANOS, EventLog
from snakepit_bridge.events.memory import MemoryLog
from snakepit_bridge.events.model import Envelope, LogHead, LogId, StoredSnapshot, Value
from snakepit_bridge.events.projection import SessionState, apply
from snakepit_bridge.events.reading import complete, fold, load, state_at, transaction_at, versions
from snakepit_bridge.events.snapshot import copied, open_snapshot, seal_snapshot
from snakepit_bridge.events.sqlite import SqliteLog
from snakepit_bridge.events.verification import verify_log
from snakepit_bridge.sessions import find, newest_event, past_value
from tests.direct import Direct, folded, integer, json_of, readable, whole
from tests.engine_contract import NOW, swept
from tests.logs import STEPS, Step, played, states
from tests.test_append_failures import BEFORE, FailingLog
from tests.test_replay import (
    ARGUMENT,
    LIVES,
    RESULT,
    SHARED,
    SMALL,
    TEXT,
    Open,
    finish,
    start,
    with_tools,
)

QUICK = settings(deadline=None, suppress_health_check=list(HealthCheck))

# A snapshot and the tail are the whole.


@settings(QUICK, max_examples=150)
@given(STEPS)
def test_a_snapshot_and_what_came_after_are_the_whole_log_wherever_it_was_taken(
    steps: Sequence[Step],
) -> None:
    engine = MemoryLog()
    log = played(engine, steps)
    expected = whole(folded(engine, log))
    for offset, then in states(engine, log).items():
        sealed = seal_snapshot(copied(then))
        assert (sealed.offset, sealed.digest) == (offset, then.digest)
        state = open_snapshot(sealed)
        complete(state, engine.large_values)
        assert whole(state) == whole(folded_to(engine, log, offset))
        state = open_snapshot(sealed)
        for transaction in fold(engine, log, state.head, state.digest, values=False):
            apply(state, transaction)
        complete(state, engine.large_values)
        assert whole(state) == expected


def folded_to(engine: EventLog, log: LogId, offset: int) -> SessionState:
    state = SessionState()
    for transaction in fold(engine, log):
        if transaction.last_offset > offset:
            break
        apply(state, transaction)
    return state


@settings(QUICK, max_examples=150)
@given(STEPS, st.sets(st.integers(0, 40), max_size=5))
def test_the_state_at_every_offset_is_the_same_with_snapshots_and_without(
    steps: Sequence[Step], chosen: set[int]
) -> None:
    engine = MemoryLog()
    log = played(engine, steps)
    taken = states(engine, log)
    ends = sorted(taken)
    without = {o: readable(state_at(engine, log, o)) for o in range(ends[-1] + 2)}
    for offset in sorted({ends[number % len(ends)] for number in chosen}):
        engine.save_snapshot(log, seal_snapshot(copied(taken[offset])))
    for offset, expected in without.items():
        assert readable(state_at(engine, log, offset)) == expected
        assert expected["head"] == max((end for end in ends if end <= offset), default=0)
    head = engine.head(log)
    assert head is not None
    state, snapshot_offset = load(engine, head)
    assert whole(state) == whole(folded(engine, log))
    assert snapshot_offset == max(engine.snapshot_offsets(log), default=0)


@settings(QUICK, max_examples=30)
@given(STEPS, st.integers(0, 40))
def test_a_log_that_was_cut_gives_the_states_it_gave_before(
    steps: Sequence[Step], place: int
) -> None:
    engine = MemoryLog()
    log = played(engine, steps)
    taken = states(engine, log)
    ends = sorted(taken)
    base = ends[place % len(ends)]
    before = {o: readable(state_at(engine, log, o)) for o in range(base, ends[-1] + 1)}
    engine.save_snapshot(log, seal_snapshot(copied(taken[base])))
    engine.cut(LogHead(log, base, taken[base].digest))
    for now in (0, 0, 10**18):
        engine.sweep(now)
    for offset, expected in before.items():
        assert readable(state_at(engine, log, offset)) == expected
    head = engine.head(log)
    assert head is not None
    assert whole(load(engine, head)[0]) == whole(taken[ends[-1]])
    for offset in range(base):
        with pytest.raises(OffsetOutOfRange, match=f"offset {offset} was cut away"):
            state_at(engine, log, offset)


# Damage.


@pytest.fixture
def engine() -> MemoryLog:
    return MemoryLog()


@pytest.fixture
def direct(engine: MemoryLog) -> Iterator[Direct]:
    with Direct(engine) as direct:
        yield direct


def write(direct: Direct, *numbers: int) -> None:
    for number in numbers:
        direct.ask(SetVariable(Envelope("s", f"r{number}"), "x", integer(number)))


@pytest.fixture
def log(direct: Direct) -> LogId:
    """X = 0 .. 9 at offsets 2 .. 11, with snapshots at 5 and 8."""
    direct.ask(RegisterVariable(Envelope("s", "r0"), "x", "integer", integer(0)))
    write(direct, 1, 2, 3)
    direct.snapshot("s")
    write(direct, 4, 5, 6)
    direct.snapshot("s")
    write(direct, 7, 8, 9)
    return direct.loaded("s").id


def head_of(engine: EventLog, log: LogId) -> LogHead:
    head = engine.head(log)
    assert head is not None
    return head


def damage(engine: MemoryLog, log: LogId, snapshot: StoredSnapshot) -> None:
    """Put a snapshot in the place of the one at its offset."""
    kept = engine._logs[log].snapshots
    kept[[each.offset for each in kept].index(snapshot.offset)] = snapshot


def spoil(engine: MemoryLog, log: LogId, *offsets: int) -> None:
    """Damage the snapshots at these offsets."""
    for offset in offsets:
        stored = engine.snapshot(log, offset)
        assert stored is not None
        damage(engine, log, stored._replace(check=bytes(32)))


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]


@pytest.mark.parametrize("part", ["state", "digest", "check", "requests"])
def test_a_damaged_snapshot_is_passed_over_for_the_one_before(
    engine: MemoryLog, log: LogId, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = whole(folded(engine, log))
    (sound,) = (each for each in engine._logs[log].snapshots if each.offset == 8)
    data: bytes = getattr(sound, part)
    # The first bytes of the table of requests are test_request_table's.
    for place in range(8 if part == "requests" else 0, len(data)):
        damaged = StoredSnapshot(**{**sound._asdict(), part: flipped(data, place)})
        damage(engine, log, damaged)
        caplog.clear()
        state, offset = load(engine, head_of(engine, log))
        assert offset == 5
        assert whole(state) == expected
        (warning,) = caplog.records
        assert warning.levelno == logging.WARNING
        assert "session 's'" in warning.getMessage()
        assert readable(state_at(engine, log, 9)) == readable(folded_to(engine, log, 9))


def test_a_snapshot_that_was_cut_short_is_passed_over(engine: MemoryLog, log: LogId) -> None:
    (sound,) = (each for each in engine._logs[log].snapshots if each.offset == 8)
    for size in (0, 1, 50):
        damage(engine, log, sound._replace(state=sound.state[:size]))
        assert load(engine, head_of(engine, log))[1] == 5


def test_a_snapshot_of_another_log_is_passed_over(
    engine: MemoryLog, log: LogId, caplog: pytest.LogCaptureFixture
) -> None:
    with Direct(MemoryLog()) as other:
        other.ask(RegisterVariable(Envelope("s"), "x", "integer", integer(77)))
        write(other, *range(6))
        foreign = other.snapshot("s")
    assert foreign.offset == 8
    damage(engine, log, foreign)
    state, offset = load(engine, head_of(engine, log))
    assert offset == 5
    assert whole(state) == whole(folded(engine, log))
    assert "not one of this log" in caplog.text


def test_with_all_snapshots_damaged_the_whole_log_is_read(engine: MemoryLog, log: LogId) -> None:
    spoil(engine, log, 5, 8)
    state, offset = load(engine, head_of(engine, log))
    assert offset == 0
    assert whole(state) == whole(folded(engine, log))
    assert readable(state_at(engine, log, 9)) == readable(folded_to(engine, log, 9))


def test_a_damaged_snapshot_after_the_cut_is_passed_over(
    direct: Direct, engine: MemoryLog, log: LogId
) -> None:
    cut_at(direct, log, 5)
    expected = whole(direct.loaded("s").working)
    spoil(engine, log, 8)
    state, offset = load(engine, head_of(engine, log))
    assert offset == 5
    assert whole(state) == expected


def cut_at(direct: Direct, log: LogId, offset: int) -> None:
    stored = direct.engine.snapshot(log, offset)
    assert stored is not None
    assert stored.offset == offset
    direct.cut(log, stored)


def test_a_log_that_was_cut_and_has_no_sound_snapshot_is_lost_and_says_so(
    direct: Direct, engine: MemoryLog, log: LogId
) -> None:
    cut_at(direct, log, 8)
    spoil(engine, log, 8)
    with pytest.raises(DataLoss, match="begins after offset 8") as caught:
        load(engine, head_of(engine, log))
    assert caught.value.facts["first_bad_offset"] == "8"
    direct.evict("s")
    for command in (LoadSession(Envelope("s")), SetVariable(Envelope("s"), "x", integer(1))):
        with pytest.raises(DataLoss):
            direct.ask(command)
    assert direct.ask(RegisterVariable(Envelope("t"), "x", "integer", integer(1)))


def test_an_offset_that_is_kept_but_cannot_be_reached_is_lost_and_not_cut_away(
    direct: Direct, engine: MemoryLog, log: LogId
) -> None:
    cut_at(direct, log, 8)
    spoil(engine, log, 8)
    with pytest.raises(DataLoss):
        state_at(engine, log, 9)


def test_nothing_is_cut_at_a_snapshot_that_cannot_be_read(
    direct: Direct, engine: MemoryLog, log: LogId
) -> None:
    spoil(engine, log, 8)
    with pytest.raises(DataLoss):
        cut_at(direct, log, 8)
    assert whole(load(engine, head_of(engine, log))[0]) == whole(direct.loaded("s").working)


# A log that retention has cut.


@pytest.fixture(params=["memory", "sqlite"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Direct]:
    """Everything once, then a snapshot and the cut there, then x once more (version 4)."""
    engine = MemoryLog() if request.param == "memory" else SqliteLog(tmp_path / "bridge.db")
    with Direct(engine) as direct:
        for command in everything():
            direct.ask(command)
        direct.cut(direct.loaded("s").id, direct.snapshot("s"))
        yield direct


def everything() -> Sequence[Command]:
    def s(request_id: str = "") -> Envelope:
        return Envelope("s", request_id)

    return (
        RegisterVariable(s("register"), "x", "integer", integer(1)),
        RegisterVariable(s(), "gone", "integer", integer(1)),
        SetVariable(s("set"), "x", integer(2)),
        SetVariables(s("all"), (("x", integer(3)),), atomic=True),
        SetVariables(s("each"), (("x", integer(4)),), atomic=False),
        DeleteVariable(s("delete"), "gone"),
        StartOptimization(s("start"), "x", "o"),
        StopOptimization(s("stop"), "x", force=True),
    )


def test_the_current_state_of_a_cut_log_is_whole(kept: Direct) -> None:
    before = whole(kept.loaded("s").working)
    kept.evict("s")
    kept.ask(LoadSession(Envelope("s")))
    log = kept.loaded("s")
    assert whole(log.working) == before
    variable, head = find(log, "x")
    assert (json_of(variable.value), variable.version, head, log.base) == ("4", 4, 9, 9)


def test_history_ends_at_the_cut(kept: Direct) -> None:
    kept.ask(SetVariable(Envelope("s"), "x", integer(5)))
    kept.ask(SetVariable(Envelope("s"), "x", integer(6)))
    log = kept.loaded("s")
    _, id_, newest = newest_event(log, "x")
    found = list(versions(kept.engine, log.id, id_, newest))
    assert [(each.version, json_of(each.value)) for each in found] == [(6, "6"), (5, "5")]
    (first,) = (each for each in found if each.version == 5)
    assert first.previous is not None
    assert json_of(first.previous) == "4"
    _, id_, deleted = newest_event(log, "var_gone_3")
    assert list(versions(kept.engine, log.id, id_, deleted)) == []


def test_a_rollback_to_a_version_that_was_cut_names_the_first_that_is_kept(kept: Direct) -> None:
    log = kept.loaded("s")
    assert past_value(kept.engine, log, "x", 4).value == find(log, "x")[0].value
    for version in (1, 3):
        with pytest.raises(OffsetOutOfRange, match=r"versions 4 to 4 are kept") as caught:
            past_value(kept.engine, log, "x", version)
        assert caught.value.facts["first_available"] == "10"
    write_plain = SetVariable(Envelope("s"), "x", integer(5))
    kept.ask(write_plain)
    kept.ask(write_plain)
    with pytest.raises(OffsetOutOfRange, match=r"version 4 .* versions 5 to 6 are kept") as caught:
        past_value(kept.engine, log, "x", 4)
    past = past_value(kept.engine, log, "x", 5)
    outcome = kept.ask(RollbackVariable(Envelope("s"), "x", 5, past))
    assert outcome.answer.number == 7
    with pytest.raises(OffsetOutOfRange):
        kept.ask(RollbackVariable(Envelope("s"), "x", 4, caught.value))


@pytest.mark.parametrize("reloaded", [False, True])
def test_duplicates_of_what_was_cut_are_answered_or_refused_in_words(
    kept: Direct, reloaded: bool
) -> None:
    if reloaded:
        kept.evict("s")
    answered = {}
    for command in everything():
        id_ = command.envelope.request_id
        if not id_:
            continue
        (result,) = kept.ask_all(command)
        if isinstance(result, BridgeError):
            assert type(result) is OffsetOutOfRange, id_
            assert "is not done again" in result.message
            assert "retention has cut away" in result.message
            assert result.facts["first_available"] == "10"
        else:
            assert result.answer.duplicate
            answered[id_] = (result.answer.offset, result.answer.number, result.answer.versions)
    assert answered == {"set": (4, 2, {}), "each": (6, 0, {"x": 4})}
    assert kept.loaded("s").committed.head == 9


def test_what_was_cut_is_out_of_range_everywhere(kept: Direct) -> None:
    kept.ask(SetVariable(Envelope("s"), "x", integer(5)))
    engine, log = kept.engine, kept.loaded("s").id
    for read in (
        lambda: list(fold(engine, log)),
        lambda: list(fold(engine, log, 4, bytes(32))),
        lambda: transaction_at(engine, log, 9),
        lambda: transaction_at(engine, log, 1),
        lambda: state_at(engine, log, 8),
    ):
        with pytest.raises(OffsetOutOfRange, match="has offsets 10 to 10") as caught:
            read()
        assert caught.value.facts["first_available"] == "10"
        assert caught.value.facts["last"] == "10"
        assert caught.value.facts["log_epoch"] == log.epoch
    assert transaction_at(engine, log, 10).last_offset == 10
    head = head_of(engine, log)
    assert [t.last_offset for t in fold(engine, log, head.base, head.base_digest)] == [10]


def test_what_was_cut_up_to_the_head_is_out_of_range_too(kept: Direct) -> None:
    with pytest.raises(OffsetOutOfRange):
        list(fold(kept.engine, kept.loaded("s").id))


def test_an_ended_session_that_was_cut_can_be_read_and_begins_anew(kept: Direct) -> None:
    old = kept.loaded("s").id
    kept.ask(CleanupSession(Envelope("s"), "cleanup"))
    kept.evict("s")
    again = kept.ask(RegisterVariable(Envelope("s"), "x", "integer", integer(1)))
    assert again.answer.offset == 2
    assert state_at(kept.engine, old, 10).ended == "cleanup"


# Calls of tools.


@pytest.fixture(params=["memory", "sqlite"])
def open_log(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens one log, again and again."""
    memory = MemoryLog()
    return lambda: memory if request.param == "memory" else SqliteLog(tmp_path / "bridge.db")


def faults(engine: EventLog, log: LogId) -> list[tuple[int, str]]:
    return [(fault.offset, fault.what) for fault in verify_log(engine, head_of(engine, log))]


def test_wherever_a_snapshot_is_taken_tools_and_open_calls_are_the_logs(open_log: Open) -> None:
    log = with_tools(open_log)
    engine = open_log()
    taken = states(engine, log)
    expected = whole(folded(engine, log))
    for offset, then in taken.items():
        engine.save_snapshot(log, seal_snapshot(copied(then)))
        state, snapshot_offset = load(engine, head_of(engine, log))
        assert snapshot_offset == offset
        assert whole(state) == expected
    for offset, then in taken.items():
        assert readable(state_at(engine, log, offset)) == readable(then)
    assert faults(engine, log) == []
    engine.close()


def test_a_log_that_is_cut_in_front_of_calls_among_them_and_behind_them(open_log: Open) -> None:
    log = with_tools(open_log)
    engine = open_log()
    taken = states(engine, log)
    last = max(taken)
    for base, then in taken.items():
        engine.save_snapshot(log, seal_snapshot(copied(then)))
        engine.cut(LogHead(log, base, then.digest))
        swept(engine, NOW)
        swept(engine, NOW + UNREFERENCED_NANOS)
        state, snapshot_offset = load(engine, head_of(engine, log))
        assert snapshot_offset == base
        assert whole(state) == whole(taken[last])
        for offset in taken:
            if offset >= base:
                assert readable(state_at(engine, log, offset)) == readable(taken[offset])
        assert faults(engine, log) == []
    engine.close()


REPEATED = {
    command.envelope.request_id: command
    for life in LIVES
    for command in life
    if isinstance(command, StartTool) and command.envelope.request_id
}


TRANSACTIONS = 26


@pytest.mark.parametrize("place", range(TRANSACTIONS))
def test_of_a_log_that_was_cut_no_request_starts_a_second_call(place: int) -> None:
    engine = MemoryLog()
    log = with_tools(lambda: engine)
    ends = {
        transaction.record.request.id: (transaction.last_offset, transaction.facts[-1][1].outcome)
        for transaction in fold(engine, log)
        if transaction.record.request.key == "finished"
    }
    assert sorted(ends) == ["r0", "r1", "r3", "r4"]
    taken = states(engine, log)
    assert len(taken) == TRANSACTIONS
    base = sorted(taken)[place]
    engine.save_snapshot(log, seal_snapshot(copied(taken[base])))
    with Direct(engine) as direct:  # of which c5 is not
        direct.cut(log, seal_snapshot(copied(taken[base])))
        ends["r5"] = (head_of(engine, log).head + 1, "interrupted")
        for number, (request_id, command) in enumerate(REPEATED.items()):
            offset, outcome = ends[request_id]
            again = command._replace(
                run=command.run._replace(call_id=f"again {number}"),
                # Whatever it comes from is over by now, and would be told so.
                envelope=Envelope("s", request_id),
            )
            (result,) = direct.ask_all(again)
            if offset <= base:
                assert type(result) is OffsetOutOfRange
                assert "is not done again" in result.message
                continue
            assert not isinstance(result, BridgeError)
            assert (result.answer.offset, result.answer.duplicate) == (offset, True)
            assert result.answer.finished is not None
            assert result.answer.finished.facts[-1][1].outcome == outcome
        (closed,) = list(fold(engine, log, *at_head(taken)))
        (_, body) = closed.facts[0]
        assert (body.call_id, body.started_offset) == ("c5", taken[max(taken)].calls["c5"].offset)
        assert not direct.loaded("s").committed.calls
        assert whole(direct.loaded("s").working) == whole(load(engine, head_of(engine, log))[0])
    assert faults(engine, log) == []


def at_head(taken: dict[int, SessionState]) -> tuple[int, bytes]:
    return max(taken), taken[max(taken)].digest


@pytest.mark.parametrize("value", [ARGUMENT, RESULT, SHARED])
@pytest.mark.parametrize("gone", [False, True])
def test_a_value_of_a_call_that_is_damaged_is_found_by_who_verifies(
    open_log: Open, tmp_path: Path, value: Value, *, gone: bool
) -> None:
    log = with_tools(open_log)
    engine = open_log()
    first = min(t.record.first_offset for t in fold(engine, log) if value in t.values)
    harm(engine, tmp_path, value, gone=gone)
    ((offset, what),) = faults(engine, log)
    assert offset == first
    assert ("missing" if gone else "damaged") in what
    engine.close()


def harm(engine: EventLog, directory: Path, value: Value, *, gone: bool) -> None:
    """Damage a value, or take it away, wherever the engine has it."""
    file = directory / "bridge.db.values" / value.digest.hex()
    if isinstance(engine, MemoryLog):
        kept = engine._values.pop(value.digest)
        if not gone:
            engine._values[value.digest] = kept._replace(any=flipped(kept.any, 3))
    elif file.exists():
        file.unlink() if gone else file.write_bytes(flipped(file.read_bytes(), 9))
    else:
        assert isinstance(engine, SqliteLog)
        change = 'UPDATE large_values SET "any" = ? WHERE digest = ?'
        engine._writer.execute(change, (flipped(value.any, 3), value.digest))
        if gone:
            engine._writer.execute("DELETE FROM large_values WHERE digest = ?", (value.digest,))


def test_a_snapshot_with_other_tools_or_calls_is_found_by_who_verifies() -> None:
    def without(state: SessionState) -> None:
        state.calls = {}

    def more(state: SessionState) -> None:
        call = state.calls["c5"]
        state.calls = {**state.calls, "c6": call._replace(call_id="c6")}

    def other(state: SessionState, **changed: object) -> None:
        state.calls = {"c5": state.calls["c5"]._replace(**changed)}  # type: ignore[arg-type]

    def tool(state: SessionState, **changed: object) -> None:
        changed_tool = state.tools["b"]._replace(**changed)  # type: ignore[arg-type]
        state.tools = {**state.tools, "b": changed_tool}

    def forgotten(state: SessionState) -> None:
        state.tools = {"b": state.tools["b"]}

    differing: list[tuple[str, Callable[[SessionState], None]]] = [
        ("calls", without),
        ("calls", more),
        ("calls", partial(other, tool="u")),
        ("calls", partial(other, offset=1)),
        ("calls", partial(other, time_unix_nanos=1)),
        ("calls", partial(other, instance="another")),
        ("calls", partial(other, request=None)),
        ("calls", partial(other, request=("r5", "ExecuteTool", bytes(16)))),
        ("tools", forgotten),
        ("tools", partial(tool, id="tool_b_1")),
        ("tools", partial(tool, spec=b"2")),
        ("tools", partial(tool, worker_id="w1")),
        ("tools", partial(tool, offset=1)),
    ]
    for what, change in differing:
        engine = MemoryLog()
        log = with_tools(lambda: engine)  # noqa: B023 - used at once
        state = copied(folded(engine, log))
        change(state)
        engine.save_snapshot(log, seal_snapshot(state))
        assert faults(engine, log) == [
            (state.head, f"the snapshot differs from the fold in {what}")
        ]


def test_values_of_calls_go_an_hour_after_the_last_that_named_them(open_log: Open) -> None:
    engine = open_log()
    with Direct(engine) as direct:
        now = NOW

        def kept() -> set[Value]:
            """An hour later."""
            nonlocal now
            swept(engine, now)
            now += UNREFERENCED_NANOS
            swept(engine, now)
            found = engine.large_values([v.digest for v in (ARGUMENT, RESULT, SHARED)])
            assert faults(engine, direct.loaded("s").id) == []
            return set(found.values())

        def cut() -> None:
            """At a snapshot that is made now."""
            stored = direct.snapshot("s")
            at = LogHead(direct.loaded("s").id, stored.offset, stored.digest)
            direct.perform(direct.committer.cut, at)

        def again() -> Sequence[Value]:
            finished = direct.ask(asked).answer.finished
            assert finished is not None
            return finished.values

        asked = start("c1", ARGUMENT, SHARED, request_id="r")
        direct.ask(asked)
        direct.ask(RegisterVariable(Envelope("s"), "text", "string", TEXT))
        assert kept() == {ARGUMENT, SHARED}
        cut()  # while it runs
        direct.ask(finish("c1", RESULT))
        assert kept() == {RESULT, SHARED}
        assert list(again()) == [RESULT]
        direct.ask(start("c2", SHARED, RESULT))
        cut()
        direct.ask(DeleteVariable(Envelope("s"), "text"))
        assert kept() == {SHARED}  # which the deletion names
        with pytest.raises(OffsetOutOfRange, match="is not done again"):
            again()
        direct.ask(finish("c2", SMALL))
        direct.ask(start("c3", ARGUMENT))  # which comes again as any other
        cut()
        assert kept() == set()
        direct.ask(start("c4", ARGUMENT))
        direct.ask(finish("c4", SHARED))
        assert kept() == {ARGUMENT, SHARED}
        assert [*direct.loaded("s").committed.calls] == ["c3"]
        ended = direct.loaded("s").id
        direct.ask(CleanupSession(Envelope("s"), "cleanup"))
        assert kept() == {ARGUMENT, SHARED}
        direct.ask(start("c5", SHARED))
        direct.perform(direct.committer.drop, ended)
        assert kept() == {SHARED}


# When the committer asks for one.


class Due:
    """Keeps what it is asked to make snapshots of."""

    def __init__(self, direct: Direct, every: int) -> None:
        self.direct = direct
        self.asked: list[tuple[LoadedLog, SessionState]] = []
        direct.committer.when_snapshot_due(
            every, lambda log, state: self.asked.append((log, state))
        )

    def heads(self) -> list[int]:
        return [state.head for _, state in self.asked]

    def keep(self) -> None:
        for log, state in self.asked:
            sealed = seal_snapshot(state)
            self.direct.perform(self.direct.committer.keep_snapshot, log, sealed)
        self.asked.clear()


def test_a_snapshot_is_asked_for_when_enough_has_happened_and_once(direct: Direct) -> None:
    due = Due(direct, 4)
    direct.ask(RegisterVariable(Envelope("s"), "x", "integer", integer(0)))
    write(direct, 1)
    assert due.heads() == []
    write(direct, 2)
    assert due.heads() == [4]
    write(direct, *range(3, 20))
    assert due.heads() == [4]  # as long as it is not kept, no other
    due.keep()
    assert list(direct.engine.snapshot_offsets(direct.loaded("s").id)) == [4]
    write(direct, 20)
    assert due.heads() == [22]
    due.keep()
    write(direct, 21, 22, 23)
    assert due.heads() == []
    write(direct, 24)
    assert due.heads() == [26]


def test_what_is_asked_for_is_as_it_was_committed(direct: Direct) -> None:
    due = Due(direct, 3)
    direct.ask(RegisterVariable(Envelope("s", "r"), "x", "integer", integer(0)))
    write(direct, 1)
    (_, state) = due.asked[0]
    then = whole(folded(direct.engine, direct.loaded("s").id))
    write(direct, 2, 3, 4)
    direct.ask(DeleteVariable(Envelope("s", "d"), "x"))
    assert whole(state) == then


def test_a_long_tail_found_on_loading_is_worth_a_snapshot(engine: MemoryLog) -> None:
    with Direct(engine) as direct:
        direct.ask(RegisterVariable(Envelope("s"), "x", "integer", integer(0)))
        write(direct, *range(1, 9))
    with Direct(engine) as direct:
        due = Due(direct, 4)
        direct.ask(LoadSession(Envelope("s")))
        assert due.heads() == [10]
        due.keep()
        direct.evict("s")
        direct.ask(LoadSession(Envelope("s")))
        assert direct.loaded("s").snapshot_offset == 10
        assert due.heads() == []


def broken(engine: FailingLog, direct: Direct) -> None:
    """Let an append fail so that nothing can be known or written for a while."""
    engine.failures.append(BEFORE)
    engine.settle_failures = 2
    with pytest.raises(BridgeError):
        direct.ask(SetVariable(Envelope("s"), "x", integer(99)))


def test_a_snapshot_that_could_not_be_kept_is_asked_for_again() -> None:
    engine = FailingLog(MemoryLog())
    with Direct(engine) as direct:
        due = Due(direct, 4)
        direct.ask(RegisterVariable(Envelope("s"), "x", "integer", integer(0)))
        write(direct, 1, 2)
        broken(engine, direct)
        with pytest.raises(BridgeError):
            due.keep()
        engine.settle_failures = 0
        due.asked.clear()
        write(direct, *range(3, 20))
        assert due.heads() != []


def test_what_was_never_stored_gets_into_no_snapshot() -> None:
    engine = FailingLog(MemoryLog())
    with Direct(engine) as direct:
        direct.ask(RegisterVariable(Envelope("s"), "x", "integer", integer(0)))
        log = direct.loaded("s")
        broken(engine, direct)
        engine.settle_failures = 0
        state = direct.perform(direct.committer.copy_of, log)
        head = engine.inner.head(log.id)
        assert head is not None
        assert (state.head, state.digest) == (head.head, head.digest)


def test_a_long_tail_gets_a_snapshot_before_the_end(engine: MemoryLog) -> None:
    commands = [SetVariable(Envelope(f"s{n % 2}"), "x", integer(n)) for n in range(2_000)]
    with Direct(engine) as direct:
        for name in ("s0", "s1", "short"):
            direct.ask(RegisterVariable(Envelope(name), "x", "integer", integer(0)))
        direct.ask_all(*commands)
        logs = {name: direct.loaded(name).id for name in ("s0", "s1", "short")}
    assert list(engine.snapshot_offsets(logs["s0"])) == [1_002]
    assert list(engine.snapshot_offsets(logs["s1"])) == [1_002]
    assert list(engine.snapshot_offsets(logs["short"])) == []
