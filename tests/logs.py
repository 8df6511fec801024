"""Logs with something of everything in them, for tests of what is made of logs."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

from snakepit_bridge.commands import (
    Command,
    DeleteVariable,
    PastValue,
    RegisterVariable,
    RollbackVariable,
    SetVariable,
    SetVariables,
    StartOptimization,
    StopOptimization,
    WireValue,
)
from snakepit_bridge.errors import BridgeError
from snakepit_bridge.events.log import EventLog
from snakepit_bridge.events.model import INLINE_LIMIT, Envelope, LogId, Origin
from snakepit_bridge.events.projection import SessionState, apply
from snakepit_bridge.events.reading import fold
from snakepit_bridge.limits import Limits
from snakepit_bridge.sessions import past_value
from tests.direct import Direct, wire_value

NAMES = ["x", "größe \N{SNAKE}"]
LARGE = ["a" * 2 * INLINE_LIMIT, "\N{SNAKE}" * INLINE_LIMIT]
TEXTS = ["", "1", "zwölf \N{SNAKE} \\u0000", *LARGE]
LIMITS = Limits(optimization_ttl=50)
LATE = 100 * 10**9
"""After so many nanoseconds the lock of an optimizer is stale."""


def text(value: str) -> WireValue:
    return wire_value("string", json.dumps(value))


_NAME = st.sampled_from(NAMES)
_TEXT = st.sampled_from(TEXTS)
_METADATA = st.sampled_from([{}, {}, {"k": "1"}, {"ключ": "\N{SNAKE}", "source": "tool:t"}])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("register"), _NAME, _TEXT, _METADATA),
        st.tuples(st.just("set"), _NAME, _TEXT, _METADATA),
        st.tuples(st.just("set"), _NAME, _TEXT, _METADATA),
        st.tuples(st.just("batch"), _TEXT, st.booleans()),
        st.tuples(st.just("delete"), _NAME),
        st.tuples(st.just("start"), _NAME),
        st.tuples(st.just("stop"), _NAME, st.booleans()),
        st.tuples(st.just("late")),
        st.tuples(st.just("roll back"), _NAME),
    ),
    min_size=10,
    max_size=30,
)
"""Things to say to a session; some are refused."""

Step = tuple[Any, ...]


def played(engine: EventLog, steps: Sequence[Step]) -> LogId:
    """Say all this to session "s", each with a request id; gives its log."""
    times = itertools.count(1_750_000_000 * 10**9, 10**9)
    late = [0]
    with Direct(engine, LIMITS, clock=lambda: next(times) + late[0]) as direct:
        direct.ask(RegisterVariable(Envelope("s", "first"), NAMES[0], "string", text("0")))
        for number, step in enumerate(steps):
            if step[0] == "late":
                late[0] += LATE
                continue
            direct.ask_all(_command(direct, f"request {number}", step))
        return direct.loaded("s").id


def _command(direct: Direct, request_id: str, step: Step) -> Command:
    what, *how = step
    state = direct.loaded("s").committed
    name = how[0] if how else ""
    variable = state.find(name)
    metadata: Mapping[str, str] = how[2] if what in ("register", "set") else {}
    key = variable.lock.optimization_id if variable and variable.lock else ""
    envelope = Envelope(
        "s", request_id, origin=Origin(metadata.get("source", "elixir")), metadata=metadata
    )
    if what != "delete":  # which is refused of what an optimizer holds
        envelope = envelope._replace(optimization_id=key)
    without = envelope._replace(optimization_id="")
    updates = tuple((live, text(name)) for live in sorted(state.names))
    said: dict[str, Callable[[], Command]] = {
        "register": lambda: RegisterVariable(envelope, name, "string", text(how[1])),
        "set": lambda: SetVariable(envelope, name, text(how[1])),
        "batch": lambda: SetVariables(envelope, updates, atomic=how[1]),
        "delete": lambda: DeleteVariable(envelope, name),
        "start": lambda: StartOptimization(without, name, "optimizer \N{SNAKE}", {"k": "v"}),
        "stop": lambda: StopOptimization(without if how[1] else envelope, name, how[1]),
        "roll back": lambda: RollbackVariable(envelope, name, 1, _first_value(direct, name)),
    }
    return said[what]()


def _first_value(direct: Direct, name: str) -> PastValue | BridgeError:
    try:
        return past_value(direct.engine, direct.loaded("s"), name, 1)
    except BridgeError as error:
        return error


def states(engine: EventLog, log: LogId) -> dict[int, SessionState]:
    """What folding the whole log gives after each transaction, by its last offset."""
    found: dict[int, SessionState] = {}
    for transaction in fold(engine, log):
        state = SessionState() if not found else _again(found[max(found)])
        apply(state, transaction)
        found[state.head] = state
    return found


def _again(state: SessionState) -> SessionState:
    copy = state.readable()
    copy.used_names = set(state.used_names)
    copy.requests = state.requests.copy()
    return copy
