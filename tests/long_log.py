"""A session with any number of events, written as the committer would, only faster.

Every command is decided, sealed and applied; nothing waits for anybody, and an append holds
hundreds of records. What the builder knows at the end is what a log must give back.
"""

from __future__ import annotations

import json
import random
from array import array
from collections import deque
from collections.abc import Callable, Mapping

import numpy as np
from google.protobuf.any_pb2 import Any as AnyMessage

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
from snakepit_bridge.decide import decider
from snakepit_bridge.errors import BridgeError
from snakepit_bridge.events.codec import seal
from snakepit_bridge.events.log import EventLog
from snakepit_bridge.events.model import (
    AGAIN,
    INLINE_LIMIT,
    Decision,
    Envelope,
    LogId,
    Moment,
    Origin,
    StoredRecord,
)
from snakepit_bridge.events.projection import SessionState, VariableState, apply
from snakepit_bridge.events.snapshot import copied, seal_snapshot
from snakepit_bridge.limits import Limits
from tests.direct import wire_value

VARIABLES = 100
STAYS = "v00"
"""The integer that is never deleted, so that its history goes back to the beginning."""
TYPES = ("integer", "float", "string", "boolean", "choice", "embedding", "tensor")
CONSTRAINTS = {"choice": '{"choices": ["low", "middle", "high"]}', "integer": '{"min": 0}'}
FILE_LIMIT = 128 * 1024
"""Bytes: larger values are kept apart from the others."""
AT_ONCE = 500
"""Records of one append."""
SPAN = 10 * 3_600 * 10**9
"""Nanoseconds from the first event to the last."""
STALE_AFTER = 200
"""Events in which an optimizer did nothing."""
KEPT_SETS, ONE_IN = 1_000, 20
"""Of the newest sets every twentieth, to be sent again: they lie in several snapshots, and all
are remembered."""


class LongLog:
    """Builds a log; ``state`` is what it has come to."""

    def __init__(
        self, engine: EventLog, events: int, *, snapshot_every: int, begun: int, seed: int
    ) -> None:
        """:param begun: when the first event happens, in Unix nanoseconds."""
        self.log = LogId("long", "0123456789abcdef")
        self.state = SessionState()
        self.ends = array("Q")
        """Last offset of each transaction."""
        self.sets: deque[tuple[SetVariable, int, int]] = deque(maxlen=KEPT_SETS)
        """Some with a request id, and the offset and version they were answered with."""
        self.refused = 0
        self.snapshots = 0
        self._engine = engine
        self._events = events
        self._every = snapshot_every
        self._begun = begun
        self._rng = random.Random(seed)
        self._decide = decider(Limits(optimization_ttl=SPAN * STALE_AFTER / events / 10**9))
        self._pending: list[tuple[LogId, StoredRecord]] = []
        self._requests = 0
        self._saved = 0
        self._larges = [self._rng.randbytes(INLINE_LIMIT).hex() for _ in range(50)]

    def build(self, advance: Callable[[int], None]) -> None:
        """Write the events, and a few more where the last transaction goes beyond."""
        for number in range(VARIABLES):
            self._say(self._register(number))
        told = 0
        while self.state.head < self._events:
            self._say(self._something())
            if len(self._pending) >= AT_ONCE or self.state.head - self._saved >= self._every:
                self._flush()
                advance(self.state.head - told)
                told = self.state.head
        self._flush()

    def _flush(self) -> None:
        self._engine.append(self._pending)
        self._pending.clear()
        if self.state.head - self._saved >= self._every:
            sealed = seal_snapshot(copied(self.state))
            self._engine.save_snapshot(self.log, sealed)
            self.state.requests.adopt(sealed.requests)
            self._saved = sealed.offset
            self.snapshots += 1
            self._engine.tidy()

    def _say(self, command: Command) -> None:
        clock = self._begun + SPAN * self.state.head // self._events
        epoch = self.log.epoch if self.state.head else ""
        try:
            decision = self._decide(self.state, epoch, command, Moment(clock, 0))
            while decision.answer is AGAIN:
                self._write(command, decision, clock)
                decision = self._decide(self.state, epoch, command, Moment(clock, 0))
        except BridgeError:
            self.refused += 1
            return
        self._write(command, decision, clock)
        envelope = command.envelope
        plain = envelope.request_id and not (envelope.metadata or envelope.optimization_id)
        if isinstance(command, SetVariable) and plain and self._requests % ONE_IN == 0:
            variable = self.state.find(command.identifier)
            assert variable is not None
            self.sets.append((command, variable.offset, variable.version))

    def _write(self, command: Command, decision: Decision, clock: int) -> None:
        cause = (command.envelope, decision.request)
        for draft in decision.drafts:
            state = self.state
            tail = (state.head, state.digest, state.time_unix_nanos)
            stored, transaction = seal(draft, cause, (clock, "builder"), tail)
            apply(state, transaction)
            self._pending.append((self.log, stored))
            self.ends.append(stored.last_offset)

    # What is said.

    def _something(self) -> Command:
        rng = self._rng
        chance = rng.random()
        number = rng.randrange(VARIABLES)
        name = f"v{number:02}"
        variable = self.state.find(name)
        if variable is None:
            return self._register(number)
        if variable.lock is not None and rng.random() < 0.6:
            return self._of_an_optimizer(number, variable, stop=rng.random() < 0.4)
        if chance < 0.05:
            some = sorted(rng.sample(sorted(self.state.names), rng.randint(2, 9)))
            updates = tuple((each, self._value(int(each[1:]))) for each in some)
            return SetVariables(self._envelope(), updates, atomic=chance < 0.03)
        if chance < 0.08:
            return self._rarely(chance, variable)
        return SetVariable(self._envelope(), name, self._value(number))

    def _rarely(self, chance: float, variable: VariableState) -> Command:
        name = variable.definition.name
        if chance < 0.06 and name != STAYS:
            return DeleteVariable(self._envelope(), name)
        if chance < 0.07:
            optimizer = f"optimizer {self._rng.randrange(9)}"
            return StartOptimization(self._envelope(), name, optimizer, {"steps": "9"})
        past = PastValue(variable.definition.id, variable.value)
        return RollbackVariable(self._envelope(), name, variable.version, past)

    def _of_an_optimizer(self, number: int, variable: VariableState, *, stop: bool) -> Command:
        assert variable.lock is not None
        key = variable.lock.optimization_id
        envelope = self._envelope()._replace(optimization_id=key)
        name = variable.definition.name
        if stop:
            return StopOptimization(envelope, name)
        return SetVariable(envelope, name, self._value(number), variable.version)

    def _register(self, number: int) -> RegisterVariable:
        type_ = TYPES[number % len(TYPES)]
        constraints = CONSTRAINTS.get(type_, "")
        name = f"v{number:02}"
        return RegisterVariable(self._envelope(), name, type_, self._value(number), constraints)

    def _envelope(self) -> Envelope:
        rng = self._rng
        self._requests += 1
        request_id = f"request {self._requests}" if rng.random() < 0.9 else ""
        metadata: Mapping[str, str] = {}
        origin = Origin("elixir")
        if rng.random() < 0.02:
            metadata = {"reason": f"step {rng.randrange(9)}", "source": "tool:search"}
            origin = Origin("tool:search", correlation_id="c-1")
        return Envelope(self.log.session_id, request_id, "", origin, metadata)

    def _value(self, number: int) -> WireValue:
        type_ = TYPES[number % len(TYPES)]
        rng = self._rng
        match type_:
            case "integer":
                value: object = rng.randrange(10**9)
            case "float":
                value = rng.random()
            case "boolean":
                value = rng.random() < 0.5
            case "choice":
                value = rng.choice(("low", "middle", "high"))
            case "embedding":
                value = [rng.randrange(99) / 8 for _ in range(8)]
            case "tensor":
                return tensor(rng.randrange(99), 2_000 if rng.random() < 0.1 else 10)
            case _:
                value = f"text {rng.randrange(10**6)}"
                if rng.random() < 0.05:
                    # Some for the first time, some as others before.
                    size = FILE_LIMIT if rng.random() < 0.02 else INLINE_LIMIT
                    new = rng.randbytes(size).hex()
                    value = new if rng.random() < 0.5 else rng.choice(self._larges)
        return wire_value(type_, json.dumps(value))


def tensor(fill: int, size: int) -> WireValue:
    """A tensor in binary form, of four bytes an element."""
    described = json.dumps({"shape": [size], "dtype": "float32", "binary_format": "raw"})
    message = AnyMessage(type_url="dspex.variables/tensor.binary", value=described.encode())
    return WireValue(message.SerializeToString(), np.full(size, fill, "<f4").tobytes())
