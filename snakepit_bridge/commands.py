"""Commands: what a client or Python code asks of a session, before it is decided.

A value comes as an ``Incoming``, not yet known to fit a type: only the variable it is
meant for says which type that is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b, sha256
from typing import NamedTuple, Protocol

import numpy as np
import orjson

from snakepit_bridge.errors import BridgeError, InvalidValue, without_frames
from snakepit_bridge.events.model import Envelope, Moment, Origin, Value, make_value
from snakepit_bridge.events.projection import SessionState
from snakepit_bridge.limits import Limits
from snakepit_bridge.metadata_checks import is_label
from snakepit_bridge.observation import parse_traceparent
from snakepit_bridge.type_serialization import accept_any, encode, stored_type

__all__ = [
    "PREPARED",
    "CleanupSession",
    "Command",
    "DeleteVariable",
    "FinishTool",
    "Incoming",
    "InitializeSession",
    "LoadSession",
    "PastValue",
    "PreparedValue",
    "PythonValue",
    "RegisterTools",
    "RegisterVariable",
    "RollbackVariable",
    "SetVariable",
    "SetVariables",
    "Setting",
    "StartOptimization",
    "StartTool",
    "StopOptimization",
    "ToolArgument",
    "ToolRun",
    "WireValue",
    "fingerprint",
    "method_of",
    "prepared",
    "told_apart",
]


PREPARED = 65_536
"""Bytes of a value from which reading it takes longer than handing it to another thread."""


def told_apart(metadata: Mapping[str, str], source: str) -> tuple[Origin, dict[str, str]]:
    """Where a change came from, and the metadata that stay with the variable.

    A trace context that cannot be one is ignored.

    :param source: where the metadata do not name one.
    """
    change = dict(metadata)
    correlation_id = change.pop("correlation_id", "")
    traceparent = change.pop("traceparent", "")
    tracestate = change.pop("tracestate", "")
    if traceparent and parse_traceparent(traceparent) is None:
        traceparent = ""
    if not (traceparent and is_label(tracestate)):
        tracestate = ""
    source = change.get("source") or source
    return Origin(source, correlation_id, traceparent, tracestate), change


class Incoming(Protocol):
    """A value on its way in, not yet known to fit a type."""

    def accept(self, type_name: str) -> tuple[object, Value]:
        """Give the typed Python value and its stored form, or raise ``InvalidValue``."""

    def fingerprint(self) -> str:
        """Differs when the value differs."""

    @property
    def size(self) -> int:
        """About how many bytes it has."""


class WireValue(NamedTuple):
    """A value as a client sent it: a serialized ``google.protobuf.Any``, not yet parsed."""

    any: bytes
    binary: bytes = b""

    def accept(self, type_name: str) -> tuple[object, Value]:
        return accept_any(type_name, *self)

    def fingerprint(self) -> str:
        return make_value(*self).digest.hex()

    @property
    def size(self) -> int:
        return len(self.any) + len(self.binary)


class PreparedValue(NamedTuple):
    """A large value, read and hashed before it comes to the thread that everybody waits for."""

    wire: WireValue
    type: str
    """That its type_url names."""
    accepted: tuple[object, Value] | InvalidValue

    def accept(self, type_name: str) -> tuple[object, Value]:
        if type_name != self.type:
            return self.wire.accept(type_name)
        if isinstance(self.accepted, InvalidValue):
            raise self.accepted
        return self.accepted

    def fingerprint(self) -> str:
        if not isinstance(self.accepted, InvalidValue):
            value = self.accepted[1]
            if value.any == self.wire.any:
                return value.digest.hex()
        return self.wire.fingerprint()

    @property
    def size(self) -> int:
        return self.wire.size


class PythonValue(NamedTuple):
    """A value from Python code in this process."""

    value: object

    def accept(self, type_name: str) -> tuple[object, Value]:
        return encode(type_name, self.value)

    def fingerprint(self) -> str:
        if isinstance(self.value, np.ndarray):
            # Its repr is shortened.
            return (
                f"{self.value.dtype} {self.value.shape} {sha256(self.value.tobytes()).hexdigest()}"
            )
        return repr(self.value)

    @property
    def size(self) -> int:
        return len(self.value) if isinstance(self.value, str) else 0


class InitializeSession(NamedTuple):
    """Begin a session, or find it running (then its first metadata stay)."""

    envelope: Envelope
    metadata: Mapping[str, str] = {}
    config: tuple[bool, int, bool] = (False, 0, False)


class LoadSession(NamedTuple):
    """Change nothing; once answered, the session is in memory and its queue was empty."""

    envelope: Envelope


class CleanupSession(NamedTuple):
    """End the session; its log is kept."""

    envelope: Envelope
    reason: str


class RegisterVariable(NamedTuple):
    """Create a variable, and the session if there is none."""

    envelope: Envelope
    name: str
    type: str
    value: Incoming
    constraints_json: str = ""


class SetVariable(NamedTuple):
    """Give a variable a new value; an equal one is a change too."""

    envelope: Envelope
    identifier: str
    value: Incoming
    expected_version: int = 0


class SetVariables(NamedTuple):
    """Several sets: one transaction if ``atomic``, else each on its own."""

    envelope: Envelope
    updates: Sequence[tuple[str, Incoming]]
    """In the order of their identifiers."""
    atomic: bool
    expected_versions: Mapping[str, int] = {}


class DeleteVariable(NamedTuple):
    envelope: Envelope
    identifier: str
    expected_version: int = 0


class PastValue(NamedTuple):
    """The value of an earlier version, read from the log before the command is decided.

    Versions never change, so nothing can come between; only the name may move.
    """

    variable_id: str
    value: Value


class RollbackVariable(NamedTuple):
    """Set a variable to the value it had at ``target_version``."""

    envelope: Envelope
    identifier: str
    target_version: int
    past: PastValue | BridgeError
    """What was found of that version, or why nothing was."""
    expected_version: int = 0


class StartOptimization(NamedTuple):
    """Lock a variable for an optimizer."""

    envelope: Envelope
    identifier: str
    optimizer_id: str
    config: Mapping[str, str] = {}


class StopOptimization(NamedTuple):
    """Unlock it: the envelope carries the key, or ``force`` does without."""

    envelope: Envelope
    identifier: str
    force: bool = False


class RegisterTools(NamedTuple):
    """Tell a session of tools that a worker elsewhere runs, and begin it if there is none."""

    envelope: Envelope
    tools: Sequence[tuple[str, bytes]]
    """Names, and serialized ``ToolRegistration`` messages."""
    worker_id: str


class ToolArgument(NamedTuple):
    """One argument of a tool, as it is recorded: with its bytes or without."""

    name: str
    digest: bytes
    value: Value | None
    recorded: bool = True
    """Whether it is recorded at all; it belongs to the request in any case."""


class ToolRun(NamedTuple):
    """What the bridge adds to a call that it starts."""

    call_id: str
    deadline_unix_nanos: int


class StartTool(NamedTuple):
    """Record that a tool begins to run, and begin the session if there is none.

    A repeated request is answered with how the first one ended, or without that while it runs.
    """

    envelope: Envelope
    tool: str
    arguments: Sequence[ToolArgument]
    streaming: bool
    run: ToolRun


class FinishTool(NamedTuple):
    """Record how a tool's call ended; nothing where it is closed already."""

    envelope: Envelope
    call_id: str
    outcome: str
    duration_nanos: int
    value: Value | None = None
    """The result, where it is kept; else only its ``digest``."""
    digest: bytes = b""
    error: tuple[str, str, str] = ("", "", "")
    """Type, message and traceback of what was raised."""
    chunks: int = 0


Command = (
    InitializeSession
    | LoadSession
    | CleanupSession
    | RegisterVariable
    | SetVariable
    | SetVariables
    | DeleteVariable
    | RollbackVariable
    | StartOptimization
    | StopOptimization
    | RegisterTools
    | StartTool
    | FinishTool
)


class Setting(NamedTuple):
    """What a decision looks at beside the command."""

    state: SessionState
    """Live, ended, or empty (``head == 0``) when no log is kept."""
    epoch: str
    """Of that log; empty when there is none."""
    moment: Moment
    limits: Limits


def prepared(command: Command) -> Command:
    """The same command with its large values read, on a thread that nobody waits for."""
    match command:
        case RegisterVariable() | SetVariable() if isinstance(command.value, WireValue):
            return command._replace(value=_prepared(command.value))
        case SetVariables():
            updates = [
                (key, _prepared(value) if isinstance(value, WireValue) else value)
                for key, value in command.updates
            ]
            return command._replace(updates=updates)
    return command


def _prepared(wire: WireValue) -> Incoming:
    if wire.size < PREPARED:
        return wire
    try:
        type_name = stored_type(wire.any)
    except InvalidValue:
        return wire  # of no type of ours; the variable's will say what is wrong
    try:
        return PreparedValue(wire, type_name, wire.accept(type_name))
    except InvalidValue as error:
        without_frames(error)
        return PreparedValue(wire, type_name, error)


def method_of(command: Command) -> str:
    """The RPC that a request id of this command belongs to."""
    if isinstance(command, StartTool):
        return "ExecuteStreamingTool" if command.streaming else "ExecuteTool"
    return type(command).__name__


def fingerprint(command: Command) -> bytes:
    """Digest of what the client asked for, without how it was traced."""
    fields = [_plain(field) for field in command[1:]]
    given = command.envelope.optimization_id
    if given and given != command.envelope.metadata.get("optimization_id"):
        fields.append(given)
    metadata = sorted(command.envelope.metadata.items())
    return blake2b(orjson.dumps([fields, metadata]), digest_size=16).digest()


def _plain(field: object) -> object:
    if isinstance(field, WireValue | PreparedValue | PythonValue):
        return field.fingerprint()
    if isinstance(field, PastValue | BridgeError | ToolRun):
        return ""  # the client did not send what the log was found to hold, nor how a call is run
    if isinstance(field, ToolArgument):
        return [field.name, field.digest.hex()]
    if isinstance(field, bytes):
        return field.hex()
    if isinstance(field, Mapping):
        return sorted(field.items())
    if isinstance(field, Sequence) and not isinstance(field, str):
        return [_plain(part) for part in field]
    return field
