"""The client for threads: each call returns when it is answered."""

from __future__ import annotations

import math
import time
from builtins import list as list_
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from snakepit_bridge.client.batches import Batch
from snakepit_bridge.client.connection import Connection, gone
from snakepit_bridge.client.following import Following
from snakepit_bridge.client.operations import (
    Change,
    Operation,
    SessionOperations,
    list_tools,
    ping,
)
from snakepit_bridge.client.options import TLS, Options, Target
from snakepit_bridge.client.results import (
    Bookmark,
    SessionInfo,
    StreamItem,
    ToolDescription,
    Written,
)
from snakepit_bridge.client.subscriptions import OnError, Subscription
from snakepit_bridge.client.watches import OnStatus, Watch
from snakepit_bridge.errors import Unavailable, VariableNotFound
from snakepit_bridge.views import (
    BatchResult,
    Reading,
    Variable,
    VariableVersion,
)
from snakepit_bridge.views import Change as VariableChange

__all__ = ["Client", "Session", "SyncBatch"]

T = TypeVar("T")


class Client:
    """A bridge, for any number of threads. It connects with the first call.

    ::

        with Client("localhost:50050") as bridge:
            session = bridge.session("tour")
            session["temperature"] = 0.9

    *Loss*: every change carries a request id, so that it is made again until it is answered, and
    done once. *Errors* are those of ``snakepit_bridge.errors``, as the bridge raised them;
    ``Unavailable`` when it is not there, ``DeadlineExceeded`` when it is not there in time.
    """

    def __init__(
        self,
        target: Target = "localhost:50050",
        *,
        timeout: float = 10.0,
        token: str = "",
        tls: TLS | None = None,
        retries: bool = True,
        metadata: Iterable[tuple[str, str]] = (),
        source: str = "python",
    ) -> None:
        """Name the bridge.

        :param target: HOST:PORT, or what gives it each time that it is connected to, such as
            ``ready_file(path)``.
        :param timeout: seconds that a call may take, with all of its retries; ``math.inf`` =
            any. Tools may take any time unless their call says otherwise.
        :param token: what the bridge's ``--token-file`` holds.
        :param tls: encrypts; by default nothing is, as the bridge is on this machine.
        :param retries: whether to try again while a bridge is not there.
        :param metadata: of gRPC, with every call.
        :param source: who makes the changes, for their history.
        """
        self._connection = Connection(
            Options(target, timeout, token, tls, retries, tuple(metadata), source)
        )

    def close(self) -> None:
        """End the connection, and the watches on it. Idempotent."""
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
        return f"Client({self._connection.options.target!r})"

    def session(self, session_id: str, *, log_epoch: str = "") -> Session:
        """Name a session; nothing is asked of the bridge.

        :param log_epoch: deal with this log of it only: what comes late for a session that has
            ended is then refused, and does not begin it anew.
        """
        return Session(self._connection, session_id, log_epoch)

    def ping(self, *, timeout: float | None = None) -> float:
        """Seconds that the bridge took to answer."""
        begun = time.perf_counter()
        self._connection.run(ping(), timeout)
        return time.perf_counter() - begun

    def tools(self, *, timeout: float | None = None) -> dict[str, ToolDescription]:
        """The tools that run at the bridge, by name."""
        return self._connection.run(list_tools(), timeout)


class Session:
    """One session of a bridge. For any number of threads.

    What is written returns when it is durable. Each call takes ``timeout``, in seconds, in place
    of the client's. Each change takes ``metadata``, which its history keeps (``source``,
    ``correlation_id`` and ``traceparent`` have their own place there), and ``request_id``: a call
    with one that was used before is answered as then, and done once; by default each has its own.
    """

    def __init__(self, connection: Connection, session_id: str, log_epoch: str = "") -> None:
        self.session_id = session_id
        self._connection = connection
        source = connection.options.source
        self._do = SessionOperations(session_id, log_epoch=log_epoch, source=source)

    def __repr__(self) -> str:
        return f"Session({self.session_id!r})"

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - any variable's value
        """The value of a variable.

        :raises VariableNotFound: there is no such variable.
        """
        return self.get(name).value

    def __setitem__(self, name: str, value: object) -> None:
        self.set(name, value)

    def __delitem__(self, name: str) -> None:
        self.delete(name)

    def __contains__(self, name: str) -> bool:
        try:
            self.get(name)
        except VariableNotFound:
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        """Names of the variables."""
        return iter([variable.name for variable in self.list()])

    def start(
        self,
        metadata: Mapping[str, str] | None = None,
        *,
        request_id: str = "",
        timeout: float | None = None,
    ) -> str:
        """Begin the session unless it has begun; gives the epoch of its log.

        ``register`` and ``execute`` do so as well.

        :param metadata: of the session; the first counts.
        """
        return self._run(self._do.start(Change(metadata, request_id)), timeout)

    def end(
        self, *, force: bool = False, request_id: str = "", timeout: float | None = None
    ) -> bool:
        """End the session; its log is kept for a while. Gives whether there was one.

        :param force: cancel tools that run in it.
        """
        return self._run(self._do.end(Change(None, request_id), force=force), timeout)

    def info(self, *, timeout: float | None = None) -> SessionInfo:
        """:raises SessionNotFound: there is no such session."""
        return self._run(self._do.info(), timeout)

    def register(
        self,
        name: str,
        type: str,  # noqa: A002 - the wire's name
        value: object,
        constraints: Mapping[str, object] | None = None,
        *,
        metadata: Mapping[str, str] | None = None,
        request_id: str = "",
        timeout: float | None = None,
    ) -> Variable:
        """Create a variable.

        :param type: float, integer, string, boolean, choice, module, embedding or tensor.
        :param value: numpy arrays, or lists, for the last two.
        :param constraints: for example ``{"min": 0, "max": 2}``.
        :raises AlreadyExists: the name is taken.
        :raises InvalidRequest: name, type, constraints or value are wrong.
        """
        change = Change(metadata, request_id)
        return self._run(self._do.register(name, type, value, constraints, change), timeout)

    def get(self, name: str, *, timeout: float | None = None) -> Variable:
        """A variable, by name or id.

        :raises VariableNotFound: there is no such variable.
        """
        return self._run(self._do.get(name), timeout)

    def get_many(self, names: Iterable[str], *, timeout: float | None = None) -> Reading:
        """Several variables as they are at one moment; those that do not exist are absent."""
        return self._run(self._do.get_many(names), timeout)

    def list(self, pattern: str = "", *, timeout: float | None = None) -> list_[Variable]:
        """Variables in the order of registration.

        :param pattern: for names: ``*`` is anything, ``?`` one character; empty = all.
        """
        return self._run(self._do.list_variables(pattern), timeout)

    def set(
        self,
        name: str,
        value: object,
        *,
        expected_version: int = 0,
        metadata: Mapping[str, str] | None = None,
        request_id: str = "",
        timeout: float | None = None,
    ) -> Written:
        """Give a variable a new value.

        :param expected_version: the version it must have now; 0 = any.
        :raises VariableNotFound: there is no such variable.
        :raises InvalidValue: the value does not fit type or constraints.
        :raises VersionConflict: it has another version.
        """
        change = Change(metadata, request_id)
        return self._run(self._do.set(name, value, expected_version, change), timeout)

    def set_many(
        self,
        updates: Mapping[str, object],
        *,
        atomic: bool = True,
        expected_versions: Mapping[str, int] | None = None,
        metadata: Mapping[str, str] | None = None,
        request_id: str = "",
        timeout: float | None = None,
    ) -> BatchResult:
        """Change several variables: as one transaction, or each on its own.

        :raises BatchRefused: an atomic batch had an error; nothing was changed.
        :raises InvalidRequest: a variable is unknown or named twice; nothing was changed.
        """
        change = Change(metadata, request_id)
        operation = self._do.set_many(updates, expected_versions, change, atomic=atomic)
        return self._run(operation, timeout)

    def batch(
        self, *, metadata: Mapping[str, str] | None = None, timeout: float | None = None
    ) -> SyncBatch:
        """Collect changes and make them as one transaction at the end of the block.

        ::

            with session.batch() as batch:
                batch["a"] = 1
                batch.set("b", 2, expected_version=3)

        Nothing is changed if the block raises, or one of them is refused (``BatchRefused``).
        """
        return SyncBatch(self, metadata, timeout)

    def delete(
        self,
        name: str,
        *,
        metadata: Mapping[str, str] | None = None,
        request_id: str = "",
        timeout: float | None = None,
    ) -> Written:
        """Delete a variable; its history stays readable by its id.

        :raises VariableNotFound: there is no such variable.
        """
        return self._run(self._do.delete(name, Change(metadata, request_id)), timeout)

    def history(
        self, name: str, limit: int = 0, *, timeout: float | None = None
    ) -> list_[VariableVersion]:
        """The versions of a variable, newest first; of a deleted one by its id.

        :param limit: how many at most; 0 = all.
        """
        return self._run(self._do.history(name, limit), timeout)

    def rollback(
        self,
        name: str,
        version: int,
        *,
        metadata: Mapping[str, str] | None = None,
        request_id: str = "",
        timeout: float | None = None,
    ) -> Variable:
        """Set a variable to the value it had at ``version``, as a new version.

        :raises VersionNotFound: it never had that version.
        """
        return self._run(self._do.rollback(name, version, Change(metadata, request_id)), timeout)

    def watch(
        self,
        *names: str,
        bookmark: Bookmark | None = None,
        initial: bool = False,
        kinds: Iterable[str] = ("value_change",),
        max_value_bytes: int = 0,
        heartbeat: int = 0,
        on_status: OnStatus | None = None,
        begin_anew: bool = False,
    ) -> Watch:
        """Iterate over changes, each once, in their order, also when the bridge is restarted.

        ::

            with session.watch("temp*") as changes:
                for change in changes:
                    print(change.name, change.old, "->", change.new)

        It stands when the block is entered: what is committed from then on is not missed. It ends
        with the session. While the bridge is away it tries again, for ever; until it stands for
        the first time, as long as the client's timeout.

        :param names: names, ids and patterns; none = all variables, those to come as well.
        :param bookmark: ``watch.bookmark`` of before: go on there. By default from now on.
        :param initial: begin with the variables as they are, as changes of the kind
            ``initial_value``; not with a bookmark.
        :param kinds: some of ``value_change``, ``registered`` and ``deleted``.
        :param max_value_bytes: leave out values of more bytes; 0 = none.
        :param heartbeat: seconds between marks by which the bookmark moves on while nothing is
            to be told; 0 = 30.
        :param on_status: called with each ``WatchStatus``: caught up, interrupted, resumed.
        :param begin_anew: when the bookmark is no longer in the log, because the session was
            begun anew or cut, tell ``begun_anew`` and go on with all values as they are.
            Otherwise that raises ``EpochMismatch`` or ``OffsetOutOfRange``.
        """
        following = Following(
            self.session_id,
            names,
            log_epoch=self._do.log_epoch,
            bookmark=bookmark,
            initial=initial,
            kinds=kinds,
            max_value_bytes=max_value_bytes,
            heartbeat=heartbeat,
            begin_anew=begin_anew,
        )
        return Watch(self._connection, following, on_status)

    def subscribe(
        self,
        callback: Callable[[VariableChange], object],
        *names: str,
        on_error: OnError | None = None,
        **options: Any,  # noqa: ANN401 - those of watch
    ) -> Subscription:
        """Have ``callback(change)`` called for each change, on a thread of its own.

        Returns when the watch stands. What the callback raises is logged, and it goes on.

        :param on_error: called with the error that ended it, if one did.
        :param options: those of ``watch``.
        """
        return Subscription(self.watch(*names, **options), callback, on_error)

    def execute(
        self,
        tool: str,
        arguments: Mapping[str, object] | None = None,
        *,
        metadata: Mapping[str, str] | None = None,
        request_id: str = "",
        timeout: float = math.inf,
    ) -> Any:  # noqa: ANN401 - any tool's result
        """Run a tool and give its result. It runs at most once, retries included.

        :param timeout: seconds after which the tool is cancelled.
        :raises ToolFailed: it raised.
        :raises ToolNotFound: there is no such tool.
        :raises InvalidRequest: an argument is wrong; it did not run.
        """
        return self._run(self._do.execute(tool, arguments, Change(metadata, request_id)), timeout)

    def stream(
        self,
        tool: str,
        arguments: Mapping[str, object] | None = None,
        *,
        metadata: Mapping[str, str] | None = None,
        request_id: str = "",
        timeout: float = math.inf,
    ) -> Iterator[StreamItem]:
        """Run a streaming tool and give what it yields, as it comes.

        A stream that breaks is not begun again. Whoever leaves the iteration before its end
        closes it (``contextlib.closing``), which cancels the tool.

        :param request_id: have it refused if it was used before.
        :raises ToolRaised: it raised, in the middle of its stream or before.
        """
        request = self._do.tool_request(tool, arguments)
        request.request_id = request_id
        self._do.add_metadata(request, metadata)
        limit = None if math.isinf(timeout) else timeout
        stream: Any = self._connection.open("ExecuteStreamingTool", request, limit)
        try:
            for chunk in stream:
                if chunk.data or not chunk.is_final:
                    yield StreamItem.of(chunk)
        except grpc.RpcError as error:
            failure = self._connection.failure(error)
            raise gone(failure, 1) if isinstance(failure, Unavailable) else failure from None
        finally:
            stream.cancel()

    def _run(self, operation: Operation[T], timeout: float | None) -> T:
        return self._connection.run(operation, timeout)


class SyncBatch(Batch):
    """Changes that are collected for one transaction; see ``Session.batch``."""

    def __init__(
        self, session: Session, metadata: Mapping[str, str] | None, timeout: float | None
    ) -> None:
        super().__init__()
        self._session = session
        self._metadata = metadata
        self._timeout = timeout

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self.updates:
            self.result = self._session.set_many(
                self.updates,
                expected_versions=self.expected_versions,
                metadata=self._metadata,
                timeout=self._timeout,
            )
