"""Deciding commands: what may be done, and which events it becomes.

Pure: no clock, no randomness, no I/O. ``decider`` gives a function that looks at a state, a
command and the moment, and gives a ``Decision`` or raises an error of the tree; it changes
nothing. Everything that a command may meet, in this order:

1. its ``log_epoch`` (before anything is created, so that a late write cannot revive an
   ended session),
2. its ``request_id`` (before the version, so that a retry is answered and not refused),
3. the session, the variable, the lock of an optimizer, the version,
4. the value: type, then constraints.

What a tool does names its call, which has to be open. A call that another start of the bridge
left open is closed by the first command that meets it, in a transaction of its own.

A lock that its optimizer has not used for long is taken away by the first other command that
meets it, in a transaction of its own; then that command is decided again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from snakepit_bridge.commands import (
    CleanupSession,
    Command,
    DeleteVariable,
    FinishTool,
    Incoming,
    InitializeSession,
    LoadSession,
    RegisterTools,
    RegisterVariable,
    RollbackVariable,
    Setting,
    SetVariable,
    SetVariables,
    StartOptimization,
    StartTool,
    StopOptimization,
    fingerprint,
    method_of,
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
    AGAIN,
    MAX_TRANSACTION,
    Answer,
    Decision,
    Draft,
    Event,
    Moment,
    Recall,
    Transaction,
    Value,
)
from snakepit_bridge.events.projection import SessionState, VariableState
from snakepit_bridge.limits import DEFAULTS, Limits
from snakepit_bridge.locks import Stale, check_lock, locked, release_stale, stopped
from snakepit_bridge.metadata_checks import (
    MAX_NAME,
    check_map,
    check_merged,
    check_metadata,
    check_name,
)
from snakepit_bridge.tool_rules import (
    FINISHED,
    check_call,
    close_all,
    close_foreign,
    finish_tool,
    register_tools,
    remembered_call,
    start_tool,
)
from snakepit_bridge.type_serialization import check_type
from snakepit_bridge.variables import Constraints, parse_constraints

__all__ = ["decider", "recall"]

MAX_BATCH_WORK = 2**22
"""Of all patterns of a batch together: four times ``linear_pattern.MAX_WORK``."""

MAX_VERSION = 2**31 - 1
"""``Variable.version`` is an int32 on the wire."""


def decider(limits: Limits = DEFAULTS) -> Callable[[SessionState, str, Command, Moment], Decision]:
    """Make the function that decides commands against the newest log of their session.

    It raises the ``BridgeError`` with which a command is refused; nothing is to be changed then.
    """

    def decide(state: SessionState, epoch: str, command: Command, moment: Moment) -> Decision:
        envelope = command.envelope
        setting = Setting(state, epoch, moment, limits)
        if envelope.metadata or envelope.origin.correlation_id:
            check_metadata(envelope)
        if envelope.log_epoch and envelope.log_epoch != epoch:
            _refuse_epoch(setting, command)
        if state.calls and (closed := close_foreign(setting)):
            return Decision(closed, AGAIN)
        if envelope.origin.tool_call_id and (state.live or isinstance(command, _BEGINNING)):
            check_call(state, envelope.origin)
        try:
            if envelope.request_id:
                return _decide_once(setting, command)
            return _decide(setting, command)
        except Stale as stale:
            return Decision((stopped(stale.variables, "stale"),), AGAIN)

    return decide


def _decide(setting: Setting, command: Command) -> Decision:
    state = setting.state
    if not state.head or state.ended:
        return _decide_unborn(setting, command)
    return _DECIDERS[type(command)](setting, command)


def _decide_once(setting: Setting, command: Command) -> Decision:
    request_id = command.envelope.request_id
    if len(request_id.encode()) > MAX_NAME:
        raise InvalidRequest(f"request_id is longer than {MAX_NAME} bytes", field="request_id")
    method, digest = method_of(command), fingerprint(command)
    known = setting.state.requests.find(request_id)
    if known is None and isinstance(command, StartTool):
        known = remembered_call(setting.state, request_id)
    if known is not None:
        if (known.method, known.digest) != (method, digest):
            raise RequestIdReused(request_id, known.method, method)
        if isinstance(command, SetVariable):
            # All of its answer is remembered, so nothing need be read.
            answer = Answer(known.first_offset, number=known.version, duplicate=True)
            return Decision((), answer)
        if isinstance(command, SetVariables) and not command.atomic:
            return _retry_batch(setting, command)._replace(request=(method, digest))
        if isinstance(command, StartTool):
            finished = setting.state.requests.find(request_id, FINISHED)
            if finished is None:
                return Decision((), Answer(known.first_offset, duplicate=True))
            return Decision((), Recall(finished.first_offset))
        return Decision((), Recall(known.first_offset))
    return _decide(setting, command)._replace(request=(method, digest))


def _retry_batch(setting: Setting, command: SetVariables) -> Decision:
    """A batch that is not atomic, come again: only the keys not yet written are decided."""
    request_id = command.envelope.request_id
    state = setting.state
    found = {key: state.requests.find(request_id, key) for key, _ in command.updates}
    done = {key: known for key, known in found.items() if known is not None}
    versions = {key: known.version for key, known in done.items()}
    offset = max((known.first_offset for known in done.values()), default=0)
    updates = tuple(update for update in command.updates if update[0] not in done)
    if not updates:
        return Decision((), Answer(offset, versions=versions, duplicate=True))
    expected = {key: v for key, v in command.expected_versions.items() if key not in done}
    left = command._replace(updates=updates, expected_versions=expected)
    if not state.head or state.ended:
        return _decide_unborn(setting, left)
    drafts, answer = _batch(setting, left)
    answer = answer._replace(
        offset=answer.offset or offset,
        versions=versions | dict(answer.versions),
        duplicate=not drafts and bool(done),
    )
    return Decision(drafts, answer)


def _decide_unborn(setting: Setting, command: Command) -> Decision:
    """Decide for a session that does not live: some commands begin it."""
    state, _, moment, limits = setting
    session_id = command.envelope.session_id
    if isinstance(command, LoadSession):
        return Decision((), Answer(state.head))
    if isinstance(command, CleanupSession):
        return Decision((), Answer(0))
    if isinstance(command, FinishTool):
        return Decision((), Answer(0))  # the session's end has closed the call
    if not isinstance(command, _BEGINNING):
        raise SessionNotFound(session_id)
    if command.envelope.log_epoch:
        raise FailedPrecondition(
            f"the log {quote(command.envelope.log_epoch)} of session {quote(session_id)} has "
            "ended: leave log_epoch empty to begin a new one",
            field="log_epoch",
        )
    check_name("session_id", session_id)
    if moment.live_sessions >= limits.sessions:
        raise ResourceExhausted(
            f"session {quote(session_id)} would be one more than the limit of {limits.sessions} "
            "live sessions: end some, or start the bridge with a larger --max-sessions",
            field="session_id",
        )
    started = Event()
    body = started.session_started
    body.SetInParent()
    if isinstance(command, InitializeSession):
        check_map(command.metadata)
        body.metadata.update(command.metadata)
        body.enable_caching, body.cache_ttl_seconds, body.enable_telemetry = command.config
        answer = Answer(1, show_state=True)
        return Decision((Draft((started,)),), answer, starts=True)
    unborn = setting._replace(state=SessionState())
    return _DECIDERS[type(command)](unborn, command, (started,))


_BEGINNING = (InitializeSession, RegisterVariable, RegisterTools, StartTool)
"""Commands that begin a session where there is none."""


def _refuse_epoch(setting: Setting, command: Command) -> None:
    envelope = command.envelope
    if not setting.state.head and not isinstance(command, _BEGINNING):
        return  # there is no session at all, which is the better answer
    raise EpochMismatch(envelope.session_id, envelope.log_epoch, setting.epoch)


def _initialize(setting: Setting, command: InitializeSession) -> Decision:
    check_map(command.metadata)
    return Decision((), Answer(setting.state.head, show_state=True))


def _load(setting: Setting, _command: LoadSession) -> Decision:
    return Decision((), Answer(setting.state.head))


def _end(setting: Setting, command: CleanupSession) -> Decision:
    state = setting.state
    event = Event()
    body = event.session_ended
    body.reason = command.reason
    body.resources = 1 + len(state.variables) + len(state.tools)
    closed = close_all(state, "the session ended")
    offset = state.head + len(closed) + 1
    return Decision((*closed, Draft((event,))), Answer(offset, number=body.resources))


def _register(
    setting: Setting, command: RegisterVariable, before: tuple[Event, ...] = ()
) -> Decision:
    state, limits = setting.state, setting.limits
    name = command.name
    check_name("name", name)
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
    if len(state.variables) >= limits.variables:
        raise ResourceExhausted(
            f"variable {quote(name)} would be one more than the limit of {limits.variables} in "
            "a session: delete some, or start the bridge with a larger --max-variables",
            field="name",
        )
    check_type(command.type)
    constraints = parse_constraints(command.type, command.constraints_json)
    value = _checked(name, command.type, constraints, command.value, limits)
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


def _set(setting: Setting, command: SetVariable) -> Decision:
    envelope, identifier, incoming, expected_version = command
    state = setting.state
    variable = _find(state, identifier)
    if variable.lock is not None or envelope.optimization_id:
        check_lock(setting, variable, envelope)
    event, value = _set_event(variable, incoming, expected_version, setting.limits)
    if envelope.metadata:
        check_merged(variable, envelope.metadata)
    draft = Draft((event,), (value, variable.value))
    return Decision((draft,), Answer(state.head + 1, variable.version + 1))


def _set_event(
    variable: VariableState, incoming: Incoming, expected_version: int, limits: Limits
) -> tuple[Event, Value]:
    if expected_version and expected_version != variable.version:
        _refuse_version(variable, expected_version)
    _, name, type_name, constraints_json, _ = variable.definition
    constraints = parse_constraints(type_name, constraints_json) if constraints_json else None
    value = _checked(name, type_name, constraints, incoming, limits)
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


def _set_many(setting: Setting, command: SetVariables) -> Decision:
    return Decision(*_batch(setting, command))


def _batch(setting: Setting, command: SetVariables) -> tuple[tuple[Draft, ...], Answer]:
    state, limits = setting.state, setting.limits
    envelope = command.envelope
    if len(command.updates) > MAX_TRANSACTION:
        raise ResourceExhausted(
            f"a batch of {len(command.updates)} updates is larger than the limit of "
            f"{MAX_TRANSACTION}: send several",
            field="updates",
        )
    variables = _batch_variables(state, command)
    _check_work(command, variables)
    release_stale(setting, variables, envelope)
    events: list[Event] = []
    values: list[Value] = []
    keys: list[str] = []
    errors: dict[str, str] = {}
    versions: dict[str, int] = {}
    expected = command.expected_versions
    for (key, incoming), variable in zip(command.updates, variables, strict=True):
        try:
            if variable.lock is not None or envelope.optimization_id:
                check_lock(setting, variable, envelope)
            if envelope.metadata:
                check_merged(variable, envelope.metadata)
            version = expected.get(key, 0) if expected else 0
            event, value = _set_event(variable, incoming, version, limits)
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


def _check_work(command: SetVariables, variables: Sequence[VariableState]) -> None:
    """Refuse a batch whose patterns would keep everybody else waiting."""
    work = 0
    for (_, incoming), variable in zip(command.updates, variables, strict=True):
        definition = variable.definition
        if definition.constraints_json:
            constraints = parse_constraints(definition.type, definition.constraints_json)
            work += constraints.work(incoming.size)
    if work > MAX_BATCH_WORK:
        raise ResourceExhausted(
            f"matching the patterns of these {len(variables)} variables takes too much work "
            f"({work} steps, at most {MAX_BATCH_WORK}): send fewer or shorter values at a time",
            field="updates",
        )


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


def _delete(setting: Setting, command: DeleteVariable) -> Decision:
    state = setting.state
    variable = _find(state, command.identifier)
    check_lock(setting, variable, command.envelope)
    if command.expected_version and command.expected_version != variable.version:
        _refuse_version(variable, command.expected_version)
    event = Event()
    body = event.variable_deleted
    body.id = variable.definition.id
    body.version = variable.version
    body.previous_offset = variable.offset
    body.previous_digest = variable.value.digest
    return Decision((Draft((event,), (variable.value,)),), Answer(state.head + 1))


def _roll_back(setting: Setting, command: RollbackVariable) -> Decision:
    state = setting.state
    variable = _find(state, command.identifier)
    check_lock(setting, variable, command.envelope)
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
    check_merged(variable, command.envelope.metadata)
    event = _new_version(variable, past.value)
    event.variable_set.rolled_back_to = command.target_version
    return Decision(
        (Draft((event,), (past.value, variable.value)),),
        Answer(state.head + 1, number=variable.version + 1, variable_id=id_),
    )


def _start_optimization(setting: Setting, command: StartOptimization) -> Decision:
    state, epoch, _, _ = setting
    variable = _find(state, command.identifier)
    if len(command.optimizer_id.encode()) > MAX_NAME:
        raise InvalidRequest(f"optimizer_id is longer than {MAX_NAME} bytes", field="optimizer_id")
    check_map(command.config, "optimizer_config")
    release_stale(setting, (variable,), command.envelope)
    if variable.lock is not None:
        raise locked(variable)
    id_ = variable.definition.id
    event = Event()
    body = event.optimization_started
    body.id = id_
    body.optimization_id = f"{id_}:{epoch}:{state.head + 1}"
    body.optimizer_id = command.optimizer_id
    body.config.update(command.config)
    answer = Answer(state.head + 1, optimization_id=body.optimization_id)
    return Decision((Draft((event,)),), answer)


def _stop_optimization(setting: Setting, command: StopOptimization) -> Decision:
    state = setting.state
    variable = _find(state, command.identifier)
    lock = variable.lock
    if lock is None:
        raise FailedPrecondition(
            f"no optimization is running on variable {quote(variable.definition.name)}"
        )
    held = command.envelope.optimization_id == lock.optimization_id
    if not held and not command.force:
        raise locked(variable, "or stop it with force")
    draft = stopped((variable,), "stopped" if held else "forced")
    id_ = variable.definition.id
    return Decision((draft,), Answer(state.head + 1, variable_id=id_))


_DECIDERS: dict[type, Callable[..., Decision]] = {
    InitializeSession: _initialize,
    LoadSession: _load,
    CleanupSession: _end,
    RegisterVariable: _register,
    SetVariable: _set,
    SetVariables: _set_many,
    DeleteVariable: _delete,
    RollbackVariable: _roll_back,
    StartOptimization: _start_optimization,
    StopOptimization: _stop_optimization,
    RegisterTools: register_tools,
    StartTool: start_tool,
    FinishTool: finish_tool,
}


def recall(command: Command, transaction: Transaction) -> Answer:
    """The first answer to ``command``, from the transaction that it became."""
    offset = transaction.last_offset
    _, body = transaction.facts[-1]
    answer = Answer(offset, duplicate=True)
    match command:
        case InitializeSession():
            return answer._replace(show_state=True)
        case CleanupSession():
            return answer._replace(number=body.resources)
        case StartOptimization():
            return answer._replace(optimization_id=body.optimization_id)
        case StartTool():
            return answer._replace(finished=transaction)
        case RegisterTools():
            return answer._replace(tool_ids={tool.name: tool.id for tool in body.tools})
        case RegisterVariable() | RollbackVariable() | StopOptimization():
            return answer._replace(variable_id=body.id)
        case SetVariables():
            versions = {
                key: fact.version
                for (key, _), (_, fact) in zip(command.updates, transaction.facts, strict=True)
            }
            return answer._replace(versions=versions)
    return answer


def _find(state: SessionState, identifier: str) -> VariableState:
    variable = state.variables.get(state.names.get(identifier, identifier))
    if variable is None:
        raise VariableNotFound(identifier)
    return variable


def _checked(
    name: str,
    type_name: str,
    constraints: Constraints | None,
    incoming: Incoming,
    limits: Limits,
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
    if size > limits.value_size:
        raise ResourceExhausted(
            f"variable {quote(name)}: a value of {size} bytes is larger than the limit of "
            f"{limits.value_size}: send less, or start the bridge with a larger --max-value-size",
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
