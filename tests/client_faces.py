"""Both clients behind one face, so that each test is made with both.

The names of ``AsyncClient`` are those of ``Client``, awaited. Here an event loop on a thread of
its own awaits them: what comes out can be used as ``Client`` is.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from snakepit_bridge.client import (
    AsyncClient,
    AsyncSession,
    AsyncSubscription,
    AsyncWatch,
    Client,
)
from snakepit_bridge.client.aio import AsyncBatch

__all__ = ["FACES", "Face"]

PATIENCE = 60.0
"""Seconds after which a call that hangs fails its test."""

FACES = ("sync", "async")

_END = object()


class Face:
    """One of the clients, to be used as ``Client`` is."""

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop | None) -> None:
        self.name = name
        self._loop = loop

    @classmethod
    @contextmanager
    def open(cls, name: str) -> Iterator[Face]:
        if name == "sync":
            yield cls(name, None)
            return
        with _running_loop() as loop:
            yield cls(name, loop)

    def client(self, target: str | Callable[[], str], **options: Any) -> Any:  # noqa: ANN401 - either client
        if self._loop is None:
            return Client(target, **options)
        return _Awaited(AsyncClient(target, **options), self._loop)


@contextmanager
def _running_loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="event loop", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        asyncio.run_coroutine_threadsafe(_finish(), loop).result(PATIENCE)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE)
        loop.close()


async def _finish() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()


class _Awaited:
    """Something asynchronous, whose calls are awaited on its event loop."""

    def __init__(self, inner: Any, loop: asyncio.AbstractEventLoop) -> None:  # noqa: ANN401 - of any kind
        self._inner = inner
        self._loop = loop

    def _run(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - whatever it gives
        async def called() -> Any:  # noqa: ANN401 - as above
            result = function(*arguments, **options)
            return await result if inspect.isawaitable(result) else result

        result = asyncio.run_coroutine_threadsafe(called(), self._loop).result(PATIENCE)
        kinds = (AsyncSession, AsyncWatch, AsyncBatch, AsyncSubscription, AsyncIterator)
        return _Awaited(result, self._loop) if isinstance(result, kinds) else result

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - of each name its own
        found = getattr(self._inner, "aclose" if self._is_generator(name) else name)
        if not callable(found):
            return found
        return lambda *arguments, **options: self._run(found, *arguments, **options)

    def _is_generator(self, name: str) -> bool:
        return name == "close" and inspect.isasyncgen(self._inner)

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - any variable's value
        return self._run(lambda: self._inner[name])

    def __setitem__(self, name: str, value: object) -> None:
        self._run(lambda: self._inner.__setitem__(name, value))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:  # noqa: ANN401 - any item
        item = self._run(lambda: anext(self._inner, _END))
        if item is _END:
            raise StopIteration
        return item

    def __enter__(self) -> Self:
        self._run(self._inner.__aenter__)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._run(self._inner.__aexit__, kind, error, trace)
