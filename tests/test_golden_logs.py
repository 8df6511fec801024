"""Logs that were written once are read for ever, and today's bytes are those of then."""

from __future__ import annotations

import json

import pytest

from snakepit_bridge.event_log_pb2 import Event
from snakepit_bridge.events.memory import MemoryLog
from snakepit_bridge.events.model import SCHEMA, LogId
from snakepit_bridge.events.projection import _CHANGES
from snakepit_bridge.events.reading import fold, load, versions
from tests.direct import folded, whole
from tests.golden import log_schema_1 as golden


@pytest.fixture(scope="module")
def stored() -> tuple[MemoryLog, list[LogId]]:
    return golden.load(golden.RECORDS.read_text())


def test_a_stored_log_folds_to_the_state_it_had(stored: tuple[MemoryLog, list[LogId]]) -> None:
    engine, logs = stored
    expected = json.loads(golden.STATES.read_text())
    assert {log.epoch: golden.shown(folded(engine, log)) for log in logs} == expected


def test_a_stored_snapshot_is_the_state_it_was_taken_of(
    stored: tuple[MemoryLog, list[LogId]],
) -> None:
    engine, logs = stored
    for log in logs:
        head = engine.head(log)
        assert head is not None
        assert engine.snapshot_offsets(log) == [head.head]
        loaded, offset = load(engine, head)
        assert offset == head.head
        assert whole(loaded) == whole(folded(engine, log))


def test_every_version_is_found_in_a_stored_log(stored: tuple[MemoryLog, list[LogId]]) -> None:
    engine, logs = stored
    found = {}
    for log in logs:
        state = folded(engine, log)
        for variable in state.variables.values():
            past = list(versions(engine, log, variable.definition.id, variable.offset))
            assert [p.version for p in past] == list(range(variable.version, 0, -1))
            assert past[0].value == variable.value
            found[log.epoch, variable.definition.name] = [p.offset for p in past]
        for id_, offset in state.deleted.items():
            found[log.epoch, id_] = [p.offset for p in versions(engine, log, id_, offset)]
    assert found["0000000000000001", "temperature"] == [19, 14, 13, 2]
    assert found["0000000000000001", "verbose"] == [18, 16, 5]
    assert found["0000000000000001", "var_model_6"] == [6]


def test_todays_code_writes_the_same_bytes() -> None:
    """A stored byte that changes is a decision, not an accident."""
    assert SCHEMA == 1, "a new schema gets golden files of its own; then drop this test"
    engine, states = golden.generate()
    fresh = golden.lines(engine, list(states))
    for line, (now, then) in enumerate(
        zip(fresh, golden.RECORDS.read_text().splitlines(), strict=True), 1
    ):
        assert json.loads(now) == json.loads(then), f"line {line} of {golden.RECORDS.name}"


def test_what_was_decided_is_what_is_read_back() -> None:
    engine, states = golden.generate()
    for log, state in states.items():
        assert whole(folded(engine, log)) == whole(state)


def test_every_kind_of_event_that_is_written_is_in_it(
    stored: tuple[MemoryLog, list[LogId]],
) -> None:
    engine, logs = stored
    kinds = {
        kind for log in logs for transaction in fold(engine, log) for kind, _ in transaction.facts
    }
    assert kinds == set(_CHANGES)
    assert kinds <= {field.name for field in Event.DESCRIPTOR.fields}
