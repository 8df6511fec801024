"""Folding a long log quickly: what is left out changes nothing, and damage is found there too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from snakepit_bridge.commands import (
    DeleteVariable,
    RegisterVariable,
    SetVariable,
    SetVariables,
    StartOptimization,
)
from snakepit_bridge.errors import DataLoss
from snakepit_bridge.events.codec import unseal
from snakepit_bridge.events.log import EventLog
from snakepit_bridge.events.memory import MemoryLog
from snakepit_bridge.events.model import GENESIS, Envelope, LogId, Origin
from snakepit_bridge.events.reading import load
from tests.direct import Direct, folded, integer, whole


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
