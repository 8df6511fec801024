"""``SessionContext``: the API of one session for tools, DSPy modules and library users.

Synchronous and thread-safe; every call has an asynchronous form with the suffix
``_async``. A synchronous write returns when its change is durable; on an event loop's
thread, where that would block everybody else, it raises and names the other form. Writes
are commands for the committer like any other, from the network or from here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from types import MappingProxyType, TracebackType
from typing import Any, Self, TypeVar

from snakepit_bridge.changes import Changes, Start
from snakepit_bridge.commands import (
    Command,
    DeleteVariable,
    InitializeSession,
    PythonValue,
    RegisterVariable,
    RollbackVariable,
    SetVariable,
    SetVariables,
    told_apart,
)
from snakepit_bridge.decide import decider, recall
from snakepit_bridge.errors import BridgeError, InvalidRequest, SessionNotFound
from snakepit_bridge.events.committer import Committer
from snakepit_bridge.events.loaded import LoadedLog
from snakepit_bridge.events.log import EventLog
from snakepit_bridge.events.memory import MemoryLog
from snakepit_bridge.events.model import Envelope
from snakepit_bridge.events.reading import versions
from snakepit_bridge.events.selection import name_filter
from snakepit_bridge.events.tasks import CommandTask, Outcome
from snakepit_bridge.events.urls import open_log
from snakepit_bridge.limits import DEFAULTS
from snakepit_bridge.observers import Dispatcher, OnChange, OnError
from snakepit_bridge.sessions import (
    LoadTask,
    head_and,
    newest_event,
    past_value,
)
from snakepit_bridge.upkeep import Upkeep
from snakepit_bridge.variable_views import as_variable, as_version
from snakepit_bridge.views import (
    BatchRefused,
    BatchResult,
    Change,
    Reading,
    Variable,
    VariableVersion,
)

__all__ = [
    "BatchRefused",
    "BatchResult",
    "Change",
    "Reading",
    "SessionContext",
    "Variable",
    "VariableVersion",
]

T = TypeVar("T")


class SessionContext:
    """One session, read and changed from Python."""

    def __init__(
        self,
        session_id: str,
        log: EventLog | str | None = None,
        *,
        committer: Committer | None = None,
        dispatcher: Dispatcher | None = None,
        source: str = "python",
    ) -> None:
        """Open a session.

        Without a ``committer`` the context runs its own on ``log``: an engine, a URL such
        as ``sqlite:PATH``, or nothing, which keeps the session in memory only. It begins
        the session if there is none, and wants ``close()`` (or ``with``).

        :param committer: of a running bridge; the session is then used as it is.
        :param dispatcher: of the same; without it the context has its own, and its own thread
            once there is an observer, until ``close()``.
        :param source: named as the source of changes.
        :raises LogUnusable: the log cannot be opened.
        :raises InvalidRequest: the session id cannot be one.
        """
        self.session_id = session_id
        self._source = source
        self._owned = committer is None
        if committer is None:
            engine = open_log(log) if isinstance(log, str) else log or MemoryLog()
            committer = Committer(engine, decider(), recall)
            self._upkeep = Upkeep(committer, DEFAULTS._replace(session_ttl=0))
            committer.start()
            self._upkeep.start()
        elif log is not None:
            raise TypeError("give a log or a committer, not both: the committer has its log")
        self._committer = committer
        if dispatcher is not None and dispatcher.committer is not committer:
            raise TypeError("the dispatcher is another committer's")
        self._shares_dispatcher = dispatcher is not None
        self._dispatcher = dispatcher or Dispatcher(committer)
        if self._owned:
            try:
                self._submit(InitializeSession(self._envelope({}))).result()
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Drop the observers; commit what is queued and close the log, if this opened it.

        What observers were not called for yet is not delivered: ``flush()`` first, where that
        matters. Returns when the callback that runs has, unless that is what closes.
        """
        if self._shares_dispatcher:
            self._dispatcher.drop(self).result()
        else:
            self._dispatcher.close()
        if self._owned:
            self._upkeep.stop()
            self._committer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def register_variable(
        self,
        name: str,
        type: str,  # noqa: A002 - the wire's name
        initial_value: object,
        constraints: Mapping[str, object] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """Create a variable and give its id.

        :param type: float, integer, string, boolean, choice, module, embedding or tensor.
        :param constraints: as ``constraints_json`` of the wire, for example ``{"min": 0}``.
        :raises AlreadyExists: the name is taken.
        :raises InvalidRequest: name, type, constraints or value are wrong.
        """
        task = self._register(name, type, initial_value, constraints, metadata)
        return self._wait(task, "register_variable").answer.variable_id

    async def register_variable_async(
        self,
        name: str,
        type: str,  # noqa: A002 - the wire's name
        initial_value: object,
        constraints: Mapping[str, object] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """``register_variable`` for an event loop."""
        task = self._register(name, type, initial_value, constraints, metadata)
        return (await self._await(task)).answer.variable_id

    def get_variable(self, identifier: str) -> Variable | None:
        """A variable by name or id, or ``None``."""
        return self._read("get_variable", _variable(identifier))

    async def get_variable_async(self, identifier: str) -> Variable | None:
        """``get_variable`` for an event loop."""
        return await self._read_async(_variable(identifier))

    def get_variables(self, identifiers: Iterable[str]) -> dict[str, Variable]:
        """Several variables at one moment, by the identifier that was asked.

        Those that do not exist are absent.
        """
        return self._read("get_variables", _variables(list(identifiers)))

    async def get_variables_async(self, identifiers: Iterable[str]) -> dict[str, Variable]:
        """``get_variables`` for an event loop."""
        return await self._read_async(_variables(list(identifiers)))

    def read_variables(self, identifiers: Iterable[str]) -> Reading:
        """``get_variables``, with the moment: which log, and how far it was."""
        return self._read("read_variables", _reading(list(identifiers)))

    async def read_variables_async(self, identifiers: Iterable[str]) -> Reading:
        """``read_variables`` for an event loop."""
        return await self._read_async(_reading(list(identifiers)))

    def list_variables(self, pattern: str = "") -> list[Variable]:
        """Live variables in the order of registration whose names match.

        :param pattern: ``*`` is anything, ``?`` one character; empty = all.
        """
        return self._read("list_variables", _matching(pattern))

    async def list_variables_async(self, pattern: str = "") -> list[Variable]:
        """``list_variables`` for an event loop."""
        return await self._read_async(_matching(pattern))

    def set_variable(
        self,
        identifier: str,
        value: object,
        metadata: Mapping[str, str] | None = None,
        *,
        expected_version: int = 0,
    ) -> int:
        """Give a variable a new value; gives its new version once that is durable.

        :param expected_version: the version it must have now; 0 = any.
        :raises VariableNotFound: there is no such variable.
        :raises InvalidValue: the value does not fit type or constraints.
        :raises VersionConflict: it has another version.
        """
        task = self._set(identifier, value, metadata, expected_version)
        return self._wait(task, "set_variable").answer.number

    async def set_variable_async(
        self,
        identifier: str,
        value: object,
        metadata: Mapping[str, str] | None = None,
        *,
        expected_version: int = 0,
    ) -> int:
        """``set_variable`` for an event loop."""
        task = self._set(identifier, value, metadata, expected_version)
        return (await self._await(task)).answer.number

    def set_variables(
        self,
        updates: Mapping[str, object],
        metadata: Mapping[str, str] | None = None,
        *,
        atomic: bool = True,
        expected_versions: Mapping[str, int] | None = None,
    ) -> BatchResult:
        """Change several variables: as one transaction, or each on its own.

        :raises BatchRefused: an atomic batch had an error; nothing was changed.
        :raises InvalidRequest: a variable is unknown or named twice; nothing was changed.
        """
        task = self._set_many(updates, metadata, expected_versions, atomic=atomic)
        return _batch(self._wait(task, "set_variables"))

    async def set_variables_async(
        self,
        updates: Mapping[str, object],
        metadata: Mapping[str, str] | None = None,
        *,
        atomic: bool = True,
        expected_versions: Mapping[str, int] | None = None,
    ) -> BatchResult:
        """``set_variables`` for an event loop."""
        task = self._set_many(updates, metadata, expected_versions, atomic=atomic)
        return _batch(await self._await(task))

    def delete_variable(self, identifier: str, metadata: Mapping[str, str] | None = None) -> None:
        """Delete a variable; its history stays readable by its id.

        :raises VariableNotFound: there is no such variable.
        """
        self._wait(DeleteVariable(self._envelope(metadata), identifier), "delete_variable")

    async def delete_variable_async(
        self, identifier: str, metadata: Mapping[str, str] | None = None
    ) -> None:
        """``delete_variable`` for an event loop."""
        await self._await(DeleteVariable(self._envelope(metadata), identifier))

    def get_variable_history(self, identifier: str, limit: int = 0) -> list[VariableVersion]:
        """The versions of a variable, newest first; of a deleted one by its id.

        :param limit: how many at most; 0 = all.
        :raises VariableNotFound: there is no such variable.
        """
        _refuse_event_loop("get_variable_history")
        return self._read("get_variable_history", lambda log: self._history(log, identifier, limit))

    async def get_variable_history_async(
        self, identifier: str, limit: int = 0
    ) -> list[VariableVersion]:
        """``get_variable_history`` for an event loop."""
        return await asyncio.to_thread(self.get_variable_history, identifier, limit)

    def rollback_variable(
        self, identifier: str, version: int, metadata: Mapping[str, str] | None = None
    ) -> Variable:
        """Set a variable to the value it had at ``version``, as a new version.

        :raises VersionNotFound: it never had that version.
        """
        outcome = self._wait(self._roll_back(identifier, version, metadata), "rollback_variable")
        return _shown(outcome)

    async def rollback_variable_async(
        self, identifier: str, version: int, metadata: Mapping[str, str] | None = None
    ) -> Variable:
        """``rollback_variable`` for an event loop."""
        command = await asyncio.to_thread(self._roll_back, identifier, version, metadata)
        return _shown(await self._await(command))

    def watch_variable(
        self, identifier: str, callback: OnChange, *, on_error: OnError | None = None
    ) -> str:
        """Have ``callback(name, old, new, metadata)`` called for each new value from now on.

        It is called for what is set, one by one or in a batch, and rolled back, in the order of
        the commits and each once, on a thread that all observers share: one at a time. It may
        use the context, and watch and unwatch; what it raises is logged and counted. Values are
        as ``Variable.value``; metadata are those of the change, with ``source`` and, where they
        were given, ``correlation_id`` and ``traceparent``. It ends with the session.

        :param identifier: a name, an id, or a pattern (``*`` is anything, ``?`` one character).
            A name that does not exist is waited for, and followed when it is registered anew.
        :param on_error: called with the error, on the same thread, should the log be lost
            (``DataLoss``) or cut by retention (``OffsetOutOfRange``) before this came so far:
            the observer then misses changes and has ended, which is logged as well.
        :returns: the observer's id.
        :raises SessionNotFound: there is no such session.
        :raises InvalidRequest: the identifier is empty or too long.
        :raises Unavailable: the context was closed.
        """
        _refuse_event_loop("watch_variable")
        while True:
            log = self._read("watch_variable", lambda log: log)
            id_ = self._dispatcher.watch(self, log, identifier, callback, on_error)
            if id_ is not None:
                return id_

    async def watch_variable_async(
        self, identifier: str, callback: OnChange, *, on_error: OnError | None = None
    ) -> str:
        """``watch_variable`` for an event loop; the callback runs on the other thread, too."""
        while True:
            log = await self._read_async(lambda log: log)
            id_ = self._dispatcher.watch(self, log, identifier, callback, on_error)
            if id_ is not None:
                return id_

    def unwatch_variable(self, observer_id: str) -> bool:
        """Have an observer called no more; gives whether there was one.

        Waits for a call of it that is running, unless that is what calls this.
        """
        _refuse_event_loop("unwatch_variable")
        return self._dispatcher.unwatch(self, observer_id).result()

    async def unwatch_variable_async(self, observer_id: str) -> bool:
        """``unwatch_variable`` for an event loop."""
        return await asyncio.wrap_future(self._dispatcher.unwatch(self, observer_id))

    def flush(self, timeout: float | None = None) -> None:
        """Wait until observers of this session were called for all that is committed now.

        :param timeout: seconds; ``None`` = any time.
        :raises TimeoutError: they were not.
        :raises RuntimeError: called from a callback, which would wait for itself.
        :raises BridgeError: they cannot be; it is what ``on_error`` gets.
        """
        _refuse_event_loop("flush")
        flush = self._dispatcher.flush(self.session_id)
        if not wait([flush], timeout).done:
            self._dispatcher.forget(flush)
            raise TimeoutError(f"observers were not called for everything within {timeout:g} s")
        flush.result()

    async def flush_async(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as flush
        """``flush`` for an event loop."""
        flush = self._dispatcher.flush(self.session_id)
        try:
            async with asyncio.timeout(timeout):
                await asyncio.wrap_future(flush)
        finally:
            self._dispatcher.forget(flush)

    def watch(
        self,
        *identifiers: str,
        after_offset: int | None = None,
        log_epoch: str = "",
        resume_check: int = 0,
        kinds: Iterable[str] = ("value_change",),
    ) -> Changes:
        """Iterate over changes: ``async with context.watch("x") as changes: async for ...``.

        :param identifiers: names, ids and patterns, as in ``watch_variable``; none = all.
        :param after_offset: go on after it, as ``Change.resume_offset`` says, with its
            ``log_epoch`` and ``resume_check``; 0 = from the first event, ``None`` = from now on.
            With its epoch the log of a session that ended is read as long as it is kept.
        :param kinds: some of ``value_change``, ``registered`` and ``deleted``.
        :raises InvalidRequest: one of these is wrong.
        :raises ResourceExhausted: too many identifiers.
        """
        start = Start(after_offset, log_epoch, resume_check)
        find = self._newest_log
        return Changes(self._dispatcher, self.session_id, find, (identifiers, kinds), start)

    def _register(
        self,
        name: str,
        type_name: str,
        value: object,
        constraints: Mapping[str, object] | None,
        metadata: Mapping[str, str] | None,
    ) -> RegisterVariable:
        constraints_json = json.dumps(constraints) if constraints else ""
        return RegisterVariable(
            self._envelope(metadata), name, type_name, PythonValue(value), constraints_json
        )

    def _set(
        self,
        identifier: str,
        value: object,
        metadata: Mapping[str, str] | None,
        expected_version: int,
    ) -> SetVariable:
        return SetVariable(
            self._envelope(metadata), identifier, PythonValue(value), expected_version
        )

    def _set_many(
        self,
        updates: Mapping[str, object],
        metadata: Mapping[str, str] | None,
        expected_versions: Mapping[str, int] | None,
        *,
        atomic: bool,
    ) -> SetVariables:
        pairs = tuple((key, PythonValue(updates[key])) for key in sorted(updates))
        return SetVariables(self._envelope(metadata), pairs, atomic, expected_versions or {})

    def _roll_back(
        self, identifier: str, version: int, metadata: Mapping[str, str] | None
    ) -> RollbackVariable:
        _refuse_event_loop("rollback_variable")
        past = self._read(
            "rollback_variable",
            lambda log: past_value(self._committer.engine, log, identifier, version),
        )
        return RollbackVariable(self._envelope(metadata), identifier, version, past)

    def _history(self, log: LoadedLog, identifier: str, limit: int) -> list[VariableVersion]:
        if limit < 0:
            raise InvalidRequest(f"limit {limit} is negative: 0 asks for all", field="limit")
        entries: list[VariableVersion] = []
        _, id_, offset = newest_event(log, identifier)
        for past in versions(self._committer.engine, log.id, id_, offset):
            entries.append(as_version(past))
            if len(entries) == limit:
                break
        return entries

    def _envelope(self, metadata: Mapping[str, str] | None) -> Envelope:
        origin, change = told_apart(metadata or {}, self._source)
        key = change.get("optimization_id", "")
        return Envelope(self.session_id, origin=origin, metadata=change, optimization_id=key)

    def _read(self, method: str, read: Callable[[LoadedLog], T]) -> T:
        if self._committer.loaded(self.session_id) is None:
            _refuse_event_loop(method)
            self._queue(LoadTask(self.session_id)).result()
        return read(self._live_log())

    async def _read_async(self, read: Callable[[LoadedLog], T]) -> T:
        await self._newest_log()
        return read(self._live_log())

    async def _newest_log(self) -> LoadedLog | None:
        log = self._committer.loaded(self.session_id)
        if log is None:
            await asyncio.wrap_future(self._queue(LoadTask(self.session_id)))
            log = self._committer.loaded(self.session_id)
        return log

    def _live_log(self) -> LoadedLog:
        log = self._committer.loaded(self.session_id)
        if log is None or not log.committed.live:
            raise SessionNotFound(self.session_id)
        return log

    def _queue(self, task: Any) -> Future[Any]:  # noqa: ANN401 - any task of the committer
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()

        def deliver(results: Sequence[Any]) -> None:
            (result,) = results
            if isinstance(result, BridgeError):
                future.set_exception(result)
            else:
                future.set_result(result)

        self._committer.submit([task], deliver)
        return future

    def _submit(self, command: Command) -> Future[Outcome]:
        return self._queue(CommandTask(command))

    def _await(self, command: Command) -> Awaitable[Outcome]:
        return asyncio.wrap_future(self._submit(command))

    def _wait(self, command: Command, method: str) -> Outcome:
        _refuse_event_loop(method)
        return self._submit(command).result()


def _refuse_event_loop(method: str) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(
        f"{method} would block the event loop it was called on: await {method}_async instead"
    )


def _variable(identifier: str) -> Callable[[LoadedLog], Variable | None]:
    return lambda log: _variables([identifier])(log).get(identifier)


def _variables(identifiers: Sequence[str]) -> Callable[[LoadedLog], dict[str, Variable]]:
    reading = _reading(identifiers)
    return lambda log: dict(reading(log).variables)


def _reading(identifiers: Sequence[str]) -> Callable[[LoadedLog], Reading]:
    def read(log: LoadedLog) -> Reading:
        with log.lock:
            head = log.committed.head
            states = {key: log.committed.find(key) for key in identifiers}
        found = {key: as_variable(state) for key, state in states.items() if state is not None}
        return Reading(log.id.session_id, log.id.epoch, head, MappingProxyType(found))

    return read


def _matching(pattern: str) -> Callable[[LoadedLog], list[Variable]]:
    matches = name_filter(pattern)
    return lambda log: [
        as_variable(state)
        for state in head_and(log)[1]
        if matches is None or matches(state.definition.name)
    ]


def _shown(outcome: Outcome) -> Variable:
    if outcome.variable is None:
        raise AssertionError("a rollback shows its variable")
    return as_variable(outcome.variable)


def _batch(outcome: Outcome) -> BatchResult:
    answer = outcome.answer
    if answer.refused:
        raise BatchRefused(answer.errors)
    return BatchResult(dict(answer.versions), dict(answer.errors))
