"""The answer to a request that was accepted before: as the first time."""

from __future__ import annotations

from snakepit_bridge.errors import OffsetOutOfRange
from snakepit_bridge.events.loaded import LoadedLog
from snakepit_bridge.events.log import EventLog
from snakepit_bridge.events.reading import state_after, transaction_at
from snakepit_bridge.events.tasks import Duplicate, Outcome, RecallAnswer

__all__ = ["remembered"]


def remembered(
    engine: EventLog, recall: RecallAnswer, duplicate: Duplicate, current: LoadedLog | None
) -> Outcome:
    """Read it from the record that the request became then.

    :param current: the session's newest log, which may save reading an older state.
    :raises OffsetOutOfRange: retention has cut that record away.
    """
    command, log, first_offset = duplicate
    try:
        transaction = transaction_at(engine, log, first_offset)
    except OffsetOutOfRange as error:
        raise OffsetOutOfRange(
            f"this request was accepted at offset {first_offset} and is not done again; "
            "its answer is gone with that offset, which retention has cut away: read instead",
            **error.facts,
        ) from None
    answer = recall(command, transaction)
    id_ = answer.variable_id
    if not (id_ or answer.show_state):
        return Outcome(answer, log.epoch)
    if current is not None and current.id == log:
        now = current.working.variables.get(id_)
        locked = now is not None and (now.lock or command.envelope.optimization_id)
        if now is not None and now.offset == answer.offset and not locked:
            return Outcome(answer, log.epoch, now)
    then = state_after(engine, log, transaction)
    if answer.show_state:
        return Outcome(answer, log.epoch, None, tuple(then.variables.values()), then.tools)
    return Outcome(answer, log.epoch, then.variables.get(id_))
