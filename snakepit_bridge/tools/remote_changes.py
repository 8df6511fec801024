"""The changes of a session as an asynchronous iterator in a tool's process; see ``changes``."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple, Self

import grpc

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge import bridge_service_pb2_grpc as stubs
from snakepit_bridge.errors import InvalidRequest, WatchClosed, quote
from snakepit_bridge.events.cursor import Bookmark
from snakepit_bridge.tools.remote_wire import CHANNEL_OPTIONS, error_of, python_value
from snakepit_bridge.variable_views import EVENT_KINDS, Change

__all__ = ["RemoteChanges", "Watched"]


class Watched(NamedTuple):
    """Of which session, and how to ask for it."""

    port: int
    headers: tuple[tuple[str, str], ...]
    session_id: str
    log_epoch: str
    """Of the call's log; empty = whichever is current."""


class RemoteChanges:
    """As ``Changes``, over a watch at the bridge.

    ::

        async with session.watch("temperature") as changes:
            async for change in changes:
                ...

    What ``Changes`` says of order, loss and errors holds here. A watch that the bridge ends
    because it was open for long is opened again; a turn that was cancelled, or that raised
    ``Unavailable``, as well when the next one needs it.
    """

    def __init__(
        self,
        watched: Watched,
        wanted: tuple[Iterable[str], Iterable[str]],
        start: tuple[int | None, str, int],
    ) -> None:
        """Prepare a watch; it begins with the block.

        :param wanted: names, ids and patterns (none = all variables), and kinds of change.
        :param start: offset to go on after, the epoch of its log, and its check.
        :raises InvalidRequest: one of these is wrong; some are found by the bridge, on entering.
        """
        identifiers, kinds = wanted
        after, log_epoch, check = start
        self._watched = watched
        self._request = pb.WatchVariablesRequest(
            session_id=watched.session_id,
            variable_identifiers=identifiers,
            log_epoch=log_epoch or watched.log_epoch,
            resume_check=check,
            send_caught_up=True,
            update_types=_checked(kinds),
        )
        if after is not None:
            if after < 0:
                raise InvalidRequest(f"after_offset {after} is negative", field="after_offset")
            self._request.after_offset = after
        self._channel: grpc.aio.Channel | None = None
        self._stream: Any = None
        self._first: pb.VariableUpdate | None = None
        """What came when the watch began, if it is a change."""
        self._seen = 0
        """Offset of the last change that was given."""
        self._kept = Bookmark(0, 0)

    @property
    def log_epoch(self) -> str:
        """Of the log that is watched."""
        self._check_open()
        return self._request.log_epoch

    @property
    def bookmark(self) -> Bookmark:
        """Offset and check up to which everything that is wanted was given."""
        self._check_open()
        return self._kept

    async def __aenter__(self) -> Self:
        """Begin to watch: what is committed from now on is not missed.

        :raises BridgeError: the bridge refuses it.
        """
        if self._channel is not None:
            raise RuntimeError("this watch is open already: each needs a call of watch()")
        address = f"127.0.0.1:{self._watched.port}"
        self._channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        try:
            update = await self._update()
        except BaseException:
            await self._close()
            raise
        if update is not None:
            self._request.log_epoch = update.log_epoch
            if update.update_type in EVENT_KINDS:
                self._first = update
            else:
                self._keep(update)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        self._check_open()
        while True:
            update, self._first = self._first, None
            if update is None:
                update = await self._update()
            if update is None:
                raise StopAsyncIteration
            self._keep(update)
            # Of a transaction that was given in part, a new watch tells the whole again.
            if update.update_type in EVENT_KINDS and update.offset > self._seen:
                self._seen = update.offset
                return _as_change(update)

    async def _update(self) -> pb.VariableUpdate | None:
        """The next thing that the bridge tells; ``None`` at the session's end."""
        while True:
            if self._stream is None:
                stub: Any = stubs.BridgeServiceStub(self._channel)
                self._stream = stub.WatchVariables(self._request, metadata=self._watched.headers)
            try:
                update = await self._stream.read()
            except grpc.aio.AioRpcError as error:
                self._stream = None
                failure = error_of(error)
                if not isinstance(failure, WatchClosed) or not self._request.log_epoch:
                    raise failure from None
            except BaseException:
                self._stream = None  # gRPC ends a call when waiting for it is cancelled
                raise
            else:
                return None if update is grpc.aio.EOF else update

    def _keep(self, update: pb.VariableUpdate) -> None:
        if update.HasField("resume_offset"):
            self._kept = Bookmark(update.resume_offset, update.resume_check)
            self._request.after_offset, self._request.resume_check = self._kept

    def _check_open(self) -> None:
        if self._channel is None:
            raise RuntimeError("this watch is not open: iterate inside of `async with`")

    async def _close(self) -> None:
        channel, self._channel, self._stream = self._channel, None, None
        if channel is not None:
            await channel.close()


def _checked(kinds: Iterable[str]) -> list[str]:
    given = list(kinds)
    for kind in given:
        if kind not in EVENT_KINDS:
            raise InvalidRequest(
                f"kinds holds {quote(kind)}: choose among {', '.join(EVENT_KINDS)}", field="kinds"
            )
    return given


def _as_change(update: pb.VariableUpdate) -> Change:
    variable, kind = update.variable, update.update_type
    old = None
    if kind != "registered":
        old = python_value(update.old_value, update.old_binary_value)
    new = None
    if kind != "deleted":
        new = python_value(variable.value, variable.binary_value)
    return Change(
        kind,
        variable.name,
        variable.id,
        variable.type,
        old,
        new,
        variable.version,
        update.offset,
        update.log_epoch,
        update.resume_offset,
        update.resume_check,
        update.update_source,
        MappingProxyType(dict(update.update_metadata)),
        update.timestamp.ToDatetime(UTC),
        update.correlation_id,
        update.traceparent,
        update.tool_call_id,
    )
