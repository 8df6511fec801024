"""Deciding commands: what may be done, and which events it becomes.

Pure: no clock, no randomness, no I/O. ``decide`` looks at a state and a command and
gives a ``Decision`` or raises an error of the tree; it changes nothing. Everything that a
command may meet, in this order:

1. its ``log_epoch`` (before anything is created, so that a late write cannot revive an
   ended session),
2. its ``request_id`` (before the version, so that a retry is answered and not refused),
3. the session, the variable, the version,
4. the value: type, then constraints.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Any

from snakepit_bridge.commands import (
    CleanupSession,
    Command,
    DeleteVariable,
    Incoming,
    InitializeSession,
    LoadSession,
    RegisterVariable,
    RollbackVariable,
    SetVariable,
    SetVariables,
    fingerprint,
)
from snakepit_bridge.errors import (
    AlreadyExists,
    BridgeError,
    EpochMismatch,
    FailedPrecondition,
    InvalidRequest,
    InvalidValue,
    RequestIdReused,
    ResourceExhausted,
    SessionNotFound,
    VariableNotFound,
    VersionConflict,
    quote,
)
from snakepit_bridge.events.model import (
    MAX_TRANSACTION,
    Answer,
    Decision,
    Draft,
    Event,
    Recall,
    Transaction,
    Value,
)
from snakepit_bridge.events.projection import SessionState, VariableState
from snakepit_bridge.type_serialization import check_type
from snakepit_bridge.variables import Constraints, parse_constraints

__all__ = ["decide", "recall"]

MAX_NAME_BYTES = 256
"""Of session ids, variable names and request ids; the wire contract's limit for names."""

MAX_VALUE_BYTES = 96 * 1024 * 1024
"""Three quarters of a message, so that a value and what surrounds it fit into one."""

MAX_VERSION = 2**31 - 1
"""``Variable.version`` is an int32 on the wire."""


def decide(state: SessionState, epoch: str, command: Command) -> Decision:
    """Decide ``command`` against the newest log of its session.

    :param state: live, ended, or empty (``head == 0``) when no log is kept.
    :param epoch: of that log; empty when there is none.
    :raises BridgeError: the command is refused; nothing is to be changed.
    """
    envelope = command.envelope
    if envelope.log_epoch and envelope.log_epoch != epoch:
        _refuse_epoch(state, epoch, command)
    if envelope.request_id:
        return _decide_once(state, command)
    return _decide(state, command)


def _decide(state: SessionState, command: Command) -> Decision:
    if not state.head or state.ended:
        return _decide_unborn(state, command)
    return _DECIDERS[type(command)](state, command)


def _decide_once(state: SessionState, command: Command) -> Decision:
    request_id = command.envelope.request_id
    if len(request_id.encode()) > MAX_NAME_BYTES:
        raise InvalidRequest(
            f"request_id is longer than {MAX_NAME_BYTES} bytes", field="request_id"
        )
    method, digest = type(command).__name__, fingerprint(command)
    known = state.requests.get((request_id, ""))
    if known is not None:
        if (known.method, known.digest) != (method, digest):
            raise RequestIdReused(
                f"request_id {quote(request_id)} was used before for "
                f"{'another ' if known.method == method else 'a '}{known.method}: "
                "a retry repeats the same request, a new request needs a new id",
                field="request_id",
            )
        if isinstance(command, SetVariables) and not command.atomic:
            return _retry_batch(state, command)._replace(request=(method, digest))
        return Decision((), Recall(known.first_offset))
    return _decide(state, command)._replace(request=(method, digest))


def _retry_batch(state: SessionState, command: SetVariables) -> Decision:
    """A batch that is not atomic, come again: only the keys not yet written are decided."""
    request_id = command.envelope.request_id
    found = {key: state.requests.get((request_id, key)) for key, _ in command.updates}
    done = {key: known for key, known in found.items() if known is not None}
    versions = {key: known.version for key, known in done.items()}
    offset = max((known.first_offset for known in done.values()), default=0)
    updates = tuple(update for update in command.updates if update[0] not in done)
    if not updates:
        return Decision((), Answer(offset, versions=versions, duplicate=True))
    expected = {key: v for key, v in command.expected_versions.items() if key not in done}
    left = command._replace(updates=updates, expected_versions=expected)
    if not state.head or state.ended:
        return _decide_unborn(state, left)
    drafts, answer = _batch(state, left)
    answer = answer._replace(
        offset=answer.offset or offset,
        versions=versions | dict(answer.versions),
        duplicate=not drafts and bool(done),
    )
    return Decision(drafts, answer)


def _decide_unborn(state: SessionState, command: Command) -> Decision:
    """Decide for a session that does not live: some commands begin it."""
    session_id = command.envelope.session_id
    if isinstance(command, LoadSession):
        return Decision((), Answer(state.head))
    if isinstance(command, CleanupSession):
        return Decision((), Answer(0))
    if not isinstance(command, InitializeSession | RegisterVariable):
        raise SessionNotFound(session_id)
    if command.envelope.log_epoch:
        raise FailedPrecondition(
            f"the log {quote(command.envelope.log_epoch)} of session {quote(session_id)} has "
            "ended: leave log_epoch empty to begin a new one",
            field="log_epoch",
        )
    _check_name("session_id", session_id)
    started = Event()
    body = started.session_started
    body.SetInParent()
    if isinstance(command, InitializeSession):
        body.metadata.update(command.metadata)
        body.enable_caching, body.cache_ttl_seconds, body.enable_telemetry = command.config
        answer = Answer(1, show_state=True)
        return Decision((Draft((started,)),), answer, starts=True)
    return _register(SessionState(), command, before=(started,))


def _refuse_epoch(state: SessionState, epoch: str, command: Command) -> None:
    envelope = command.envelope
    if not state.head and not isinstance(command, InitializeSession | RegisterVariable):
        return  # there is no session at all, which is the better answer
    raise EpochMismatch(envelope.session_id, envelope.log_epoch, epoch)


def _initialize(state: SessionState, _command: InitializeSession) -> Decision:
    return Decision((), Answer(state.head, show_state=True))


def _load(state: SessionState, _command: LoadSession) -> Decision:
    return Decision((), Answer(state.head))


def _end(state: SessionState, command: CleanupSession) -> Decision:
    event = Event()
    body = event.session_ended
    body.reason = command.reason
    body.resources = 1 + len(state.variables)
    return Decision((Draft((event,)),), Answer(state.head + 1, number=body.resources))


def _register(
    state: SessionState, command: RegisterVariable, before: tuple[Event, ...] = ()
) -> Decision:
    name = command.name
    _check_name("name", name)
    if "*" in name or "?" in name:
        raise InvalidRequest(
            f"name {quote(name)} contains * or ?, which are kept for patterns", field="name"
        )
    taken = state.names.get(name)
    if taken is not None:
        raise AlreadyExists(
            f"variable {quote(name)} already exists as {quote(taken)}", variable_id=taken
        )
    if name in state.variables or name in state.deleted:
        raise AlreadyExists(f"the name {quote(name)} is the id of another variable")
    check_type(command.type)
    constraints = parse_constraints(command.type, command.constraints_json)
    value = _checked(name, command.type, constraints, command.value)
    offset = state.head + len(before) + 1
    number = offset
    while (id_ := f"var_{name}_{number}") in state.variables or (
        id_ in state.deleted or id_ in state.used_names or id_ == name
    ):
        number += 1
    event = Event()
    body = event.variable_registered
    body.id = id_
    body.name = name
    body.type = command.type
    body.constraints_json = command.constraints_json
    body.value_digest = value.digest
    return Decision(
        (Draft((*before, event), (value,)),),
        Answer(offset, number=1, variable_id=id_),
        starts=bool(before),
    )


def _set(state: SessionState, command: SetVariable) -> Decision:
    _, identifier, incoming, expected_version = command
    variable = _find(state, identifier)
    event, value = _set_event(variable, incoming, expected_version)
    draft = Draft((event,), (value, variable.value))
    return Decision((draft,), Answer(state.head + 1, variable.version + 1))


def _set_event(
    variable: VariableState, incoming: Incoming, expected_version: int
) -> tuple[Event, Value]:
    if expected_version and expected_version != variable.version:
        _refuse_version(variable, expected_version)
    _, name, type_name, constraints_json, _ = variable.definition
    constraints = parse_constraints(type_name, constraints_json) if constraints_json else None
    value = _checked(name, type_name, constraints, incoming)
    return _new_version(variable, value), value


def _new_version(variable: VariableState, value: Value) -> Event:
    if variable.version >= MAX_VERSION:
        raise ResourceExhausted(
            f"variable {quote(variable.definition.name)} has reached version {MAX_VERSION}, "
            "the last there can be: register it under a new name"
        )
    event = Event()
    body = event.variable_set
    body.id = variable.definition.id
    body.version = variable.version + 1
    body.previous_offset = variable.offset
    body.value_digest = value.digest
    body.previous_digest = variable.value.digest
    return event


def _set_many(state: SessionState, command: SetVariables) -> Decision:
    return Decision(*_batch(state, command))


def _batch(state: SessionState, command: SetVariables) -> tuple[tuple[Draft, ...], Answer]:
    if len(command.updates) > MAX_TRANSACTION:
        raise ResourceExhausted(
            f"a batch of {len(command.updates)} updates is larger than the limit of "
            f"{MAX_TRANSACTION}: send several",
            field="updates",
        )
    variables = _batch_variables(state, command)
    events: list[Event] = []
    values: list[Value] = []
    keys: list[str] = []
    errors: dict[str, str] = {}
    versions: dict[str, int] = {}
    expected = command.expected_versions
    for (key, incoming), variable in zip(command.updates, variables, strict=True):
        try:
            event, value = _set_event(variable, incoming, expected.get(key, 0) if expected else 0)
        except BridgeError as error:
            errors[key] = error.message
            continue
        events.append(event)
        values += (value, variable.value)
        keys.append(key)
        versions[key] = variable.version + 1
    if command.atomic and errors:
        return (), Answer(0, errors=errors, refused=True)
    answer = Answer(state.head + len(events) if events else 0, versions=versions, errors=errors)
    if not events:
        return (), answer
    if command.atomic:
        return (Draft(tuple(events), tuple(values)),), answer
    pairs = zip(values[::2], values[1::2], strict=True)
    drafts = tuple(
        Draft((event,), pair, request_key=key)
        for event, pair, key in zip(events, pairs, keys, strict=True)
    )
    return drafts, answer


def _batch_variables(state: SessionState, command: SetVariables) -> list[VariableState]:
    variables = []
    seen: dict[str, str] = {}
    for key, _ in command.updates:
        variable = state.find(key)
        if variable is None:
            # Not NOT_FOUND: the batch as a whole is wrong, and clients read it so.
            raise InvalidRequest(f"variable {quote(key)} not found", field="updates")
        other = seen.setdefault(variable.definition.id, key)
        if other is not key:
            raise InvalidRequest(
                f"{quote(other)} and {quote(key)} are the same variable: name it once",
                field="updates",
            )
        variables.append(variable)
    stray = next((key for key in command.expected_versions if key not in seen.values()), None)
    if stray is not None:
        raise InvalidRequest(
            f"expected_versions names {quote(stray)}, which is not among the updates",
            field="expected_versions",
        )
    return variables


def _delete(state: SessionState, command: DeleteVariable) -> Decision:
    variable = _find(state, command.identifier)
    if command.expected_version and command.expected_version != variable.version:
        _refuse_version(variable, command.expected_version)
    event = Event()
    body = event.variable_deleted
    body.id = variable.definition.id
    body.version = variable.version
    body.previous_offset = variable.offset
    body.previous_digest = variable.value.digest
    return Decision((Draft((event,), (variable.value,)),), Answer(state.head + 1))


def _roll_back(state: SessionState, command: RollbackVariable) -> Decision:
    variable = _find(state, command.identifier)
    past = command.past
    if isinstance(past, BridgeError):
        raise past
    id_ = variable.definition.id
    if id_ != past.variable_id:
        raise VersionConflict(
            f"variable {quote(command.identifier)} was registered anew while it was rolled "
            "back: read it again and retry"
        )
    if command.expected_version and command.expected_version != variable.version:
        _refuse_version(variable, command.expected_version)
    event = _new_version(variable, past.value)
    event.variable_set.rolled_back_to = command.target_version
    return Decision(
        (Draft((event,), (past.value, variable.value)),),
        Answer(state.head + 1, number=variable.version + 1, variable_id=id_),
    )


_DECIDERS: dict[type, Callable[[SessionState, Any], Decision]] = {
    InitializeSession: _initialize,
    LoadSession: _load,
    CleanupSession: _end,
    RegisterVariable: _register,
    SetVariable: _set,
    SetVariables: _set_many,
    DeleteVariable: _delete,
    RollbackVariable: _roll_back,
}


def recall(command: Command, transaction: Transaction) -> Answer:
    """The first answer to ``command``, from the transaction that it became."""
    offset = transaction.last_offset
    last = transaction.events[-1]
    body = getattr(last, str(last.WhichOneof("kind")))
    answer = Answer(offset, duplicate=True)
    match command:
        case InitializeSession():
            return answer._replace(show_state=True)
        case CleanupSession():
            return answer._replace(number=body.resources)
        case SetVariable():
            return answer._replace(number=body.version)
        case RegisterVariable() | RollbackVariable():
            return answer._replace(variable_id=body.id)
        case SetVariables():
            versions = {
                key: event.variable_set.version
                for (key, _), event in zip(command.updates, transaction.events, strict=True)
            }
            return answer._replace(versions=versions)
    return answer


def _find(state: SessionState, identifier: str) -> VariableState:
    variable = state.variables.get(state.names.get(identifier, identifier))
    if variable is None:
        raise VariableNotFound(identifier)
    return variable


def _checked(
    name: str, type_name: str, constraints: Constraints | None, incoming: Incoming
) -> Value:
    try:
        python, value = incoming.accept(type_name)
        if constraints:
            constraints.check(python)
    except InvalidValue as error:
        raise InvalidValue(
            f"variable {quote(name)}: {error.message}", field=error.field or "value"
        ) from error
    size = len(value.any) + len(value.binary)
    if size > MAX_VALUE_BYTES:
        raise ResourceExhausted(
            f"variable {quote(name)}: a value of {size} bytes is larger than the limit of "
            f"{MAX_VALUE_BYTES}",
            field="value",
        )
    return value


def _refuse_version(variable: VariableState, expected: int) -> None:
    name = variable.definition.name
    if expected < 0:
        raise InvalidRequest(
            f"expected_version {expected} is negative: give the version you read, or 0 for any",
            field="expected_version",
        )
    raise VersionConflict(
        f"variable {quote(name)} is at version {variable.version}, expected {expected}",
        expected=expected,
        actual=variable.version,
    )


def _check_name(field: str, name: str) -> None:
    if not 1 <= len(name.encode()) <= MAX_NAME_BYTES:
        raise InvalidRequest(
            f"{field} {quote(name)} must have 1 to {MAX_NAME_BYTES} bytes", field=field
        )
    if not name.isprintable() and any(unicodedata.category(c) == "Cc" for c in name):
        raise InvalidRequest(f"{field} {quote(name)} contains a control character", field=field)
