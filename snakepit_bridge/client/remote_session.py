"""``SessionContext`` over gRPC: the session of a bridge in another process, or on another machine.

What is done with it means what it means in the bridge's process: the bridge decides, and its errors
arrive as the same classes. A value is encoded here, for which the type of its variable is asked for
at its first use.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from snakepit_bridge.client.connection import Connection, Headers
from snakepit_bridge.client.operations import Change, Operation, SessionOperations
from snakepit_bridge.client.options import TLS, Options, Target
from snakepit_bridge.client.remote_changes import RemoteChanges, Watched
from snakepit_bridge.client.remote_observers import OnChange, OnError, RemoteObservers
from snakepit_bridge.errors import VariableNotFound
from snakepit_bridge.views import BatchResult, Reading, Variable, VariableVersion

__all__ = ["RemoteSession", "in_thread", "refuse_event_loop"]

P = ParamSpec("P")
T = TypeVar("T")

THREADS = 64
"""Asynchronous calls that wait for the bridge at a time. Of asyncio's own threads there are six on
two cores, for everybody: a bridge that hangs would take them all."""

_POOL = ThreadPoolExecutor(THREADS, "remote-session")


class RemoteSession:
    """One session, as ``SessionContext`` has it. Safe from any thread.

    Every call has an asynchronous form with the suffix ``_async``. Writes on an event loop's
    thread raise and name it, as they do in the bridge's process. ``close`` (or ``with``) ends the
    observers, and the connection if this made it.
    """

    def __init__(
        self,
        connection: Connection,
        session_id: str,
        *,
        log_epoch: str = "",
        source: str = "",
        headers: Headers = (),
    ) -> None:
        """Use a connection that somebody else closes.

        :param log_epoch: of the log that is meant; empty = whichever is current.
        :param source: named as the source of changes; empty where the bridge knows it.
        :param headers: of gRPC, with every call.
        """
        self.session_id = session_id
        self._connection = connection
        self._owned = False
        self._headers = headers
        self._log_epoch = log_epoch
        self._do = SessionOperations(session_id, log_epoch=log_epoch, source=source)
        self._observers = RemoteObservers(connection, session_id, log_epoch, headers)

    @classmethod
    def connect(  # noqa: PLR0913 - as of ``Client``
        cls,
        target: Target,
        session_id: str,
        *,
        log_epoch: str = "",
        source: str = "python",
        timeout: float = 10.0,
        token: str = "",
        tls: TLS | None = None,
    ) -> RemoteSession:
        """Open a session of a bridge, and begin it if there is none.

        :param source: named as the source of changes.
        :raises BridgeError: the bridge refuses it, or is not there.

        The others are those of ``Client``.
        """
        connection = Connection(Options(target, timeout, token, tls, source=source))
        session = RemoteSession(connection, session_id, log_epoch=log_epoch, source=source)
        session._owned = True
        try:
            session._run("connect", session._do.start(Change()))
        except BaseException:
            session.close()
            raise
        return session

    def close(self) -> None:
        """End the observers; returns when the callback that runs has, unless that closes this."""
        self._observers.close()
        if self._owned:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.session_id!r})"

    def register_variable(
        self,
        name: str,
        type: str,  # noqa: A002 - the wire's name
        initial_value: object,
        constraints: Mapping[str, object] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """Create a variable and give its id; see ``SessionContext.register_variable``."""
        change = self._change("register_variable", metadata)
        operation = self._do.register(name, type, initial_value, constraints, change)
        return self._run("register_variable", operation).id

    async def register_variable_async(
        self,
        name: str,
        type: str,  # noqa: A002 - the wire's name
        initial_value: object,
        constraints: Mapping[str, object] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """``register_variable`` for an event loop."""
        return await in_thread(
            self.register_variable, name, type, initial_value, constraints, metadata
        )

    def get_variable(self, identifier: str) -> Variable | None:
        """A variable by name or id, or ``None``."""
        try:
            return self._run("get_variable", self._do.get(identifier))
        except VariableNotFound:
            return None

    async def get_variable_async(self, identifier: str) -> Variable | None:
        """``get_variable`` for an event loop."""
        return await in_thread(self.get_variable, identifier)

    def get_variables(self, identifiers: Iterable[str]) -> dict[str, Variable]:
        """Several variables at one moment, by the identifier that was asked.

        Those that do not exist are absent.
        """
        return dict(self.read_variables(identifiers).variables)

    async def get_variables_async(self, identifiers: Iterable[str]) -> dict[str, Variable]:
        """``get_variables`` for an event loop."""
        return await in_thread(self.get_variables, identifiers)

    def read_variables(self, identifiers: Iterable[str]) -> Reading:
        """``get_variables``, with the moment: which log, and how far it was."""
        return self._run("read_variables", self._do.get_many(identifiers))

    async def read_variables_async(self, identifiers: Iterable[str]) -> Reading:
        """``read_variables`` for an event loop."""
        return await in_thread(self.read_variables, identifiers)

    def list_variables(self, pattern: str = "") -> list[Variable]:
        """Live variables in the order of registration whose names match.

        They are of one moment, unless they are too large for one message.

        :param pattern: ``*`` is anything, ``?`` one character; empty = all.
        """
        return self._run("list_variables", self._do.list_variables(pattern))

    async def list_variables_async(self, pattern: str = "") -> list[Variable]:
        """``list_variables`` for an event loop."""
        return await in_thread(self.list_variables, pattern)

    def set_variable(
        self,
        identifier: str,
        value: object,
        metadata: Mapping[str, str] | None = None,
        *,
        expected_version: int = 0,
    ) -> int:
        """Give a variable a new value; see ``SessionContext.set_variable``."""
        change = self._change("set_variable", metadata)
        operation = self._do.set(identifier, value, expected_version, change)
        return self._run("set_variable", operation).version

    async def set_variable_async(
        self,
        identifier: str,
        value: object,
        metadata: Mapping[str, str] | None = None,
        *,
        expected_version: int = 0,
    ) -> int:
        """``set_variable`` for an event loop."""
        return await in_thread(
            self.set_variable, identifier, value, metadata, expected_version=expected_version
        )

    def set_variables(
        self,
        updates: Mapping[str, object],
        metadata: Mapping[str, str] | None = None,
        *,
        atomic: bool = True,
        expected_versions: Mapping[str, int] | None = None,
    ) -> BatchResult:
        """Change several variables; see ``SessionContext.set_variables``."""
        change = self._change("set_variables", metadata)
        operation = self._do.set_many(updates, expected_versions, change, atomic=atomic)
        return self._run("set_variables", operation)

    async def set_variables_async(
        self,
        updates: Mapping[str, object],
        metadata: Mapping[str, str] | None = None,
        *,
        atomic: bool = True,
        expected_versions: Mapping[str, int] | None = None,
    ) -> BatchResult:
        """``set_variables`` for an event loop."""
        return await in_thread(
            self.set_variables,
            updates,
            metadata,
            atomic=atomic,
            expected_versions=expected_versions,
        )

    def delete_variable(self, identifier: str, metadata: Mapping[str, str] | None = None) -> None:
        """Delete a variable; its history stays readable by its id.

        :raises VariableNotFound: there is no such variable.
        """
        change = self._change("delete_variable", metadata)
        self._run("delete_variable", self._do.delete(identifier, change))

    async def delete_variable_async(
        self, identifier: str, metadata: Mapping[str, str] | None = None
    ) -> None:
        """``delete_variable`` for an event loop."""
        await in_thread(self.delete_variable, identifier, metadata)

    def get_variable_history(self, identifier: str, limit: int = 0) -> list[VariableVersion]:
        """The versions of a variable, newest first; of a deleted one by its id.

        :param limit: how many at most; 0 = all.
        :raises VariableNotFound: there is no such variable.
        """
        refuse_event_loop("get_variable_history")
        return self._run("get_variable_history", self._do.history(identifier, limit))

    async def get_variable_history_async(
        self, identifier: str, limit: int = 0
    ) -> list[VariableVersion]:
        """``get_variable_history`` for an event loop."""
        return await in_thread(self.get_variable_history, identifier, limit)

    def rollback_variable(
        self, identifier: str, version: int, metadata: Mapping[str, str] | None = None
    ) -> Variable:
        """Set a variable to the value it had at ``version``, as a new version.

        :raises VersionNotFound: it never had that version.
        """
        change = self._change("rollback_variable", metadata)
        return self._run("rollback_variable", self._do.rollback(identifier, version, change))

    async def rollback_variable_async(
        self, identifier: str, version: int, metadata: Mapping[str, str] | None = None
    ) -> Variable:
        """``rollback_variable`` for an event loop."""
        return await in_thread(self.rollback_variable, identifier, version, metadata)

    def watch_variable(
        self, identifier: str, callback: OnChange, *, on_error: OnError | None = None
    ) -> str:
        """Have ``callback(name, old, new, metadata)`` called for each new value from now on.

        See ``SessionContext.watch_variable``.
        """
        refuse_event_loop("watch_variable")
        return self._observers.watch(identifier, callback, on_error)

    async def watch_variable_async(
        self, identifier: str, callback: OnChange, *, on_error: OnError | None = None
    ) -> str:
        """``watch_variable`` for an event loop; the callback runs on another thread, too."""
        return await in_thread(self.watch_variable, identifier, callback, on_error=on_error)

    def watch(
        self,
        *identifiers: str,
        after_offset: int | None = None,
        log_epoch: str = "",
        resume_check: int = 0,
        kinds: Iterable[str] = ("value_change",),
    ) -> RemoteChanges:
        """Iterate over changes: ``async with session.watch("x") as changes: async for ...``.

        See ``SessionContext.watch``.
        """
        watched = Watched(self._connection.options, self._headers, self.session_id, self._log_epoch)
        start = (after_offset, log_epoch, resume_check)
        return RemoteChanges(watched, (identifiers, kinds), start)

    def unwatch_variable(self, observer_id: str) -> bool:
        """Have an observer called no more; gives whether there was one.

        Waits for a call of it that is running, unless that is what calls this.
        """
        refuse_event_loop("unwatch_variable")
        return self._observers.unwatch(observer_id)

    async def unwatch_variable_async(self, observer_id: str) -> bool:
        """``unwatch_variable`` for an event loop."""
        return await in_thread(self.unwatch_variable, observer_id)

    def flush(self, timeout: float | None = None) -> None:
        """Wait until the observers were called for all that is committed now.

        :param timeout: seconds; ``None`` = any time.
        :raises TimeoutError: they were not.
        :raises RuntimeError: called from a callback, which would wait for itself.
        :raises BridgeError: they cannot be; it is what ``on_error`` gets.
        """
        refuse_event_loop("flush")
        self._observers.flush(self._head, timeout)

    async def flush_async(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as flush
        """``flush`` for an event loop."""
        await in_thread(self.flush, timeout)

    def _head(self) -> int:
        return self._run("flush", self._do.info()).offset

    def _change(self, method: str, metadata: Mapping[str, str] | None) -> Change:
        refuse_event_loop(method)
        return Change(metadata)

    def _run(self, method: str, operation: Operation[T]) -> T:
        """Do an operation; ``method`` is what was called."""
        del method
        return self._connection.run(operation, None, self._headers)


def refuse_event_loop(method: str) -> None:
    """:raises RuntimeError: this thread runs an event loop, which ``method`` would block."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(
        f"{method} would block the event loop it was called on: await {method}_async instead"
    )


async def in_thread(work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Have work done in one of the threads for remote sessions, with the caller's context."""
    loop = asyncio.get_running_loop()
    run = partial(copy_context().run, partial(work, *arguments, **options))
    return await loop.run_in_executor(_POOL, run)
