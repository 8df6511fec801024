"""Folding a long log quickly: what is left out changes nothing, and damage is found there too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from snakepit_bridge.commands import (
    Command,
    DeleteVariable,
    FinishTool,
    RegisterTools,
    RegisterVariable,
    SetVariable,
    SetVariables,
    StartOptimization,
    StartTool,
    ToolArgument,
    ToolRun,
)
from snakepit_bridge.errors import DataLoss
from snakepit_bridge.events.codec import is_absent, seal, unseal
from snakepit_bridge.events.log import EventLog
from snakepit_bridge.events.memory import MemoryLog
from snakepit_bridge.events.model import (
    GENESIS,
    INLINE_LIMIT,
    Draft,
    Envelope,
    Event,
    LogId,
    Origin,
    Value,
    make_value,
)
from snakepit_bridge.events.projection import SessionState, apply
from snakepit_bridge.events.reading import complete, fold, load, replay, state_after_event
from snakepit_bridge.events.sqlite import SqliteLog
from snakepit_bridge.events.value_files import FILE_LIMIT
from tests.direct import Direct, folded, integer, readable, whole, wire_value
from tests.logs import states


def envelope(said_by: str = "elixir", **metadata: str) -> Envelope:
    return Envelope("s", origin=Origin(said_by), metadata=metadata)


def filled(engine: EventLog) -> LogId:
    """Plain changes, and between them what must not be left out."""
    with Direct(engine) as direct:

        def plain(name: str, *numbers: int, source: str = "elixir") -> None:
            for number in numbers:
                direct.ask(SetVariable(envelope(source), name, integer(number)))

        for name in "xyz":
            direct.ask(RegisterVariable(envelope(), name, "integer", integer(0)))
        plain("x", 1, 2)
        direct.ask(SetVariable(envelope("tool:t", a="1", source="tool:t"), "x", integer(3)))
        plain("x", 4, 5)
        plain("y", 1, source="python")
        direct.ask(SetVariable(envelope(b="2"), "y", integer(2)))
        plain("y", 3)
        both = (("x", integer(6)), ("y", integer(6)))
        direct.ask(SetVariables(envelope(), both, atomic=True))
        plain("x", 7)
        direct.ask(StartOptimization(envelope(), "x", "o"))
        key = direct.loaded("s").committed.variables["var_x_2"].lock
        assert key is not None
        held = envelope()._replace(optimization_id=key.optimization_id)
        direct.ask(SetVariable(held, "x", integer(8)))
        plain("z", 1, 2)
        direct.ask(DeleteVariable(envelope(), "z"))
        direct.ask(RegisterVariable(envelope(), "z", "integer", integer(9)))
        plain("z", 10)
        plain("y", 7, 8)
        return direct.loaded("s").id


def test_what_is_left_out_changes_nothing() -> None:
    engine = MemoryLog()
    log = filled(engine)
    head = engine.head(log)
    assert head is not None
    state, _ = load(engine, head)
    assert whole(state) == whole(folded(engine, log))
    assert [dict(each.metadata) for each in state.variables.values()][:2] == [
        {"a": "1", "source": "elixir"},
        {"b": "2"},
    ]


def flips(data: bytes) -> Iterator[bytes]:
    for place in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            yield bytes(flipped)


@pytest.mark.parametrize("part", ["header", "values", "digest"])
def test_a_flipped_bit_is_found_or_was_not_needed(part: str) -> None:
    """Replaced values are not needed: theirs are found by whoever reads these."""
    engine = MemoryLog()
    log = filled(engine)
    previous, found, unneeded = GENESIS, 0, 0
    for stored in engine.read(log):
        sound = unseal(stored, previous, None)
        for flipped in flips(getattr(stored, part)):
            damaged: dict[str, Any] = {part: flipped}
            try:
                read = unseal(stored._replace(**damaged), previous, None)
            except DataLoss:
                found += 1
            else:
                unneeded += 1
                assert read == sound
        previous = stored.digest
    assert found > unneeded * (1 if part == "values" else 10**9)


# Logs with calls of tools.

SMALL = make_value(integer(7).any)
ARGUMENT = make_value(b"argument" * INLINE_LIMIT)
RESULT = make_value(b"result", b"result" * FILE_LIMIT)
"""In a file, where the engine has files."""
TEXT = wire_value("string", f'"{"x" * INLINE_LIMIT}"')
SHARED = make_value(TEXT.any)
"""Of a variable, and an argument."""

Open = Callable[[], EventLog]


def start(
    call_id: str,
    *arguments: Value,
    request_id: str = "",
    streaming: bool = False,
    parent: str = "",
) -> StartTool:
    """A call of the tool "t", with an argument more that is not kept."""
    origin = Origin("tool:t" if parent else "elixir", tool_call_id=parent)
    given = [ToolArgument(f"a{n}", value.digest, value) for n, value in enumerate(arguments)]
    given.append(ToolArgument("secret", RESULT.digest, None))
    about = Envelope("s", request_id, origin=origin)
    return StartTool(about, "t", given, streaming, ToolRun(call_id, 10**18))


def finish(call_id: str, value: Value | None = None, outcome: str = "ok") -> FinishTool:
    return FinishTool(Envelope("s", origin=Origin("tool:t")), call_id, outcome, 5, value)


def from_tool(call_id: str, number: int, **metadata: str) -> SetVariable:
    origin = Origin("tool:t", tool_call_id=call_id)
    return SetVariable(Envelope("s", origin=origin, metadata=metadata), "x", integer(number))


def plain(number: int) -> SetVariable:
    return SetVariable(envelope(), "x", integer(number))


LIVES: Sequence[Sequence[Command]] = (
    (
        start("c0", request_id="r0"),  # begins the session
        RegisterVariable(envelope(), "x", "integer", integer(0)),
        RegisterVariable(envelope(), "text", "string", TEXT),
        RegisterTools(Envelope("s", "tools"), [("a", b"1"), ("b", b"2")], "w1"),
        plain(1),
        start("c1", ARGUMENT, SMALL, request_id="r1"),
        from_tool("c1", 2),
        plain(3),
        start("c2", SMALL, ARGUMENT, ARGUMENT, streaming=True, parent="c1"),
        from_tool("c2", 4),
        plain(5),
        finish("c2", RESULT),
        RegisterTools(envelope(), [("b", b"3")], "w2"),
        from_tool("c1", 6, k="v", source="tool:t"),
        plain(7),
        finish("c1", SMALL),
        start("c3", SHARED, RESULT, request_id="r3"),
        plain(8),
    ),
    (
        plain(9),  # behind the ends of c0 and c3
        start("c4", SHARED, request_id="r4"),
        from_tool("c4", 10),
        finish("c4", outcome="error"),
        start("c5", ARGUMENT, request_id="r5"),
        plain(11),
    ),
)
"""What is said to two bridges, one after the other; c5 stays open."""


def with_tools(open_: Open) -> LogId:
    """A log in which bridges die."""
    for life in LIVES:
        with Direct(open_()) as direct:
            for command in life:
                direct.ask(command)
            log = direct.loaded("s").id
    return log


@pytest.fixture(params=["memory", "sqlite"])
def open_log(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens one log, again and again."""
    memory = MemoryLog()
    return lambda: memory if request.param == "memory" else SqliteLog(tmp_path / "bridge.db")


@pytest.fixture
def log(open_log: Open) -> LogId:
    return with_tools(open_log)


@pytest.fixture
def engine(open_log: Open, log: LogId) -> Iterator[EventLog]:
    del log  # is written first
    engine = open_log()
    yield engine
    engine.close()


def test_of_tools_nothing_is_left_out_wherever_reading_ends(engine: EventLog, log: LogId) -> None:
    head = engine.head(log)
    assert head is not None
    assert whole(load(engine, head)[0]) == whole(folded(engine, log))
    then = {0: SessionState()} | states(engine, log)
    for until in range(head.head + 2):
        state = SessionState()
        replay(engine, log, state, until)
        complete(state, engine.large_values)
        assert readable(state) == readable(then[max(end for end in then if end <= until)])
    opened = [len(state.calls) for state in then.values()]
    assert (max(opened), opened[-1]) == (3, 1)


def test_a_call_is_open_right_after_the_event_that_starts_it(engine: EventLog, log: LogId) -> None:
    """Which here is the second one of a transaction."""
    assert not state_after_event(engine, log, 1).calls
    (call,) = state_after_event(engine, log, 2).calls.values()
    assert (call.call_id, call.offset) == ("c0", 2)
    assert call.request is not None
    assert call.request[:2] == ("r0", "ExecuteTool")


def test_beside_tools_in_one_transaction_a_variable_gets_its_own_value() -> None:
    started, finished, registered = Event(), Event(), Event()
    for value in (SMALL, RESULT):
        started.tool_started.arguments.add(name="a", value_digest=value.digest)
    started.tool_started.arguments.add(name="secret", digest=ARGUMENT.digest)
    finished.tool_finished.value_digest = ARGUMENT.digest
    registered.variable_registered.id = "x"
    registered.variable_registered.value_digest = SHARED.digest
    draft = Draft((started, finished, registered), (SMALL, RESULT, ARGUMENT, SHARED))
    stored, sealed = seal(draft, (Envelope("s"), None), (1, "i"), (0, GENESIS, 0))
    large = {value.digest: value for value in stored.large}
    read = [unseal(stored, GENESIS, lookup) for lookup in (lambda _: large, None)]
    for transaction in (sealed, *read):
        state = SessionState()
        apply(state, transaction)
        complete(state, lambda _: large)
        assert state.variables["x"].value == SHARED


def test_without_large_values_a_log_of_tools_is_the_same(engine: EventLog, log: LogId) -> None:
    absent = []
    whole_, without = fold(engine, log), fold(engine, log, values=False)
    for one, other in zip(whole_, without, strict=True):
        assert (other.header, other.facts, other.digest) == (one.header, one.facts, one.digest)
        if not one.facts[-1][0].startswith("tool"):
            continue
        for value, left in zip(one.values, other.values, strict=True):
            if is_absent(left):
                assert len(value.any) + len(value.binary) > INLINE_LIMIT
                assert left.digest == value.digest
                absent.append(value)
            else:
                assert left == value
    assert absent == [ARGUMENT, ARGUMENT, ARGUMENT, RESULT, SHARED, RESULT, SHARED, ARGUMENT]


@pytest.mark.parametrize("part", ["header", "values", "digest"])
@pytest.mark.parametrize("completely", [False, True])
def test_a_flipped_bit_of_a_tools_event_is_found(part: str, *, completely: bool) -> None:
    """Whether the large values are read or not."""
    engine = MemoryLog()
    log = with_tools(lambda: engine)
    large = engine.large_values if completely else None
    previous, found = GENESIS, 0
    for stored in engine.read(log):
        sound = unseal(stored, previous, large)
        if sound.facts[-1][0].startswith("tool"):
            for flipped in flips(getattr(stored, part)):
                damaged: dict[str, Any] = {part: flipped}
                with pytest.raises(DataLoss):
                    unseal(stored._replace(**damaged), previous, large)
                found += 1
        previous = stored.digest
    assert found


@pytest.mark.parametrize("gone", [False, True])
def test_a_large_value_of_a_call_is_read_as_it_was_or_not_at_all(*, gone: bool) -> None:
    engine = MemoryLog()
    log = with_tools(lambda: engine)
    named = [(t.record.first_offset, set(t.values)) for t in fold(engine, log)]
    sound = dict(engine._values)
    for value in (ARGUMENT, RESULT):
        engine._values = sound | {value.digest: value._replace(any=value.any + b"?")}
        if gone:
            del engine._values[value.digest]
        first = min(offset for offset, values in named if value in values)
        with pytest.raises(DataLoss, match="missing" if gone else "damaged") as caught:
            list(fold(engine, log))
        assert caught.value.facts["first_bad_offset"] == str(first)
        head = engine.head(log)
        assert head is not None
        assert readable(load(engine, head)[0])["head"] == head.head  # which needs none of them
