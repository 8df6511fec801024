"""The changes of a remote session as an asynchronous iterator; see ``changes``."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import NamedTuple, Self

from snakepit_bridge.client.aio_connection import AsyncConnection
from snakepit_bridge.client.aio_watches import AsyncWatch
from snakepit_bridge.client.connection import Headers
from snakepit_bridge.client.following import Following
from snakepit_bridge.client.options import Options
from snakepit_bridge.events.cursor import Bookmark
from snakepit_bridge.views import Change

__all__ = ["RemoteChanges", "Watched"]


class Watched(NamedTuple):
    """Of which session, and how to ask for it."""

    options: Options
    headers: Headers
    session_id: str
    log_epoch: str
    """Of the log that is meant; empty = whichever is current."""


class RemoteChanges:
    """As ``Changes``, over a watch at the bridge.

    ::

        async with session.watch("temperature") as changes:
            async for change in changes:
                ...

    What ``Changes`` says of order, loss and errors holds here, but that it waits for a bridge that
    is not there instead of raising. It has a connection of its own, for the event loop that
    iterates.
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
        epoch = log_epoch or watched.log_epoch
        self._following = Following(
            watched.session_id,
            identifiers,
            log_epoch=epoch,
            bookmark=None if after is None else (epoch, after, check),
            kinds=kinds,
        )
        self._watched = watched
        self._connection: AsyncConnection | None = None
        self._watch: AsyncWatch | None = None

    @property
    def log_epoch(self) -> str:
        """Of the log that is watched."""
        self._open()
        return self._following.log_epoch

    @property
    def bookmark(self) -> Bookmark:
        """Offset and check up to which everything that is wanted was given."""
        _, offset, check = self._open().bookmark
        return Bookmark(offset, check)

    async def __aenter__(self) -> Self:
        """Begin to watch: what is committed from now on is not missed.

        :raises BridgeError: the bridge refuses it.
        """
        if self._connection is not None:
            raise RuntimeError("this watch is open already: each needs a call of watch()")
        self._connection = AsyncConnection(self._watched.options)
        watch = AsyncWatch(self._connection, self._following, headers=self._watched.headers)
        try:
            self._watch = await watch.__aenter__()
        except BaseException:
            await self._connection.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        watch, self._watch = self._open(), None
        await watch.close()
        if self._connection is not None:
            await self._connection.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        return await self._open().__anext__()

    def _open(self) -> AsyncWatch:
        if self._watch is None:
            raise RuntimeError("this watch is not open: iterate inside of `async with`")
        return self._watch
