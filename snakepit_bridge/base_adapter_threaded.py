"""Adapters of which one instance serves many threads, with the names of Snakepit's.

What they offer beyond ``BaseAdapter`` is a lock, storage of each thread's own, and counts of calls.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeVar

from snakepit_bridge.base_adapter import BaseAdapter, ToolMetadata, tool

__all__ = [
    "BaseAdapter",
    "ThreadSafeAdapter",
    "ToolMetadata",
    "require_thread_safe",
    "thread_safe_method",
    "tool",
    "validate_thread_safety",
]

F = TypeVar("F", bound=Callable[..., Any])


class _Calls:
    """Counts calls, of all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread = threading.local()
        self._total = 0
        self._seen = 0
        self._active: dict[int, int] = {}
        """Calls that run, by thread; of those that run any."""

    @contextmanager
    def counted(self) -> Iterator[int]:
        """Count one call, and give its number."""
        thread = threading.get_ident()
        with self._lock:
            self._total += 1
            number = self._total
            self._active[thread] = self._active.get(thread, 0) + 1
            if not hasattr(self._thread, "seen"):
                self._thread.seen = True
                self._seen += 1
        try:
            yield number
        finally:
            with self._lock:
                self._active[thread] -= 1
                if not self._active[thread]:
                    del self._active[thread]

    def statistics(self) -> dict[str, int]:
        with self._lock:
            return {
                "total_requests": self._total,
                "active_threads": len(self._active),
                "total_active_requests": sum(self._active.values()),
                "threads_seen": self._seen,
            }


class ThreadSafeAdapter(BaseAdapter):
    """An adapter of which one instance, made at loading, serves all calls, at once.

    What it holds is read only, or of each thread's own, or changed under ``acquire_lock``. A
    subclass that says ``__thread_safe__ = False`` gets an instance for each call after all.
    """

    __thread_safe__ = True

    _lock: threading.RLock
    _local: threading.local
    _calls: _Calls

    def __new__(cls, *_arguments: object, **_named: object) -> Self:
        # Here, so that they are there in classes that forget super().__init__().
        self = super().__new__(cls)
        self._lock = threading.RLock()
        self._local = threading.local()
        self._calls = _Calls()
        return self

    @contextmanager
    def acquire_lock(self) -> Iterator[None]:
        """Hold the adapter's lock; a thread that holds it may do so again."""
        with self._lock:
            yield

    def get_thread_local(self, key: str, default: Any = None) -> Any:  # noqa: ANN401 - anything
        """Give what this thread keeps under a key."""
        return getattr(self._local, key, default)

    def set_thread_local(self, key: str, value: Any) -> None:  # noqa: ANN401 - anything
        """Keep something for this thread."""
        setattr(self._local, key, value)

    def clear_thread_local(self, key: str | None = None) -> None:
        """Forget what this thread keeps under a key, or everything."""
        if key is None:
            self._local.__dict__.clear()
        else:
            self._local.__dict__.pop(key, None)

    def get_stats(self) -> dict[str, Any]:
        """How many calls ``thread_safe_method`` and ``track_request`` counted."""
        return {
            "adapter_class": type(self).__name__,
            "thread_safe": self.__thread_safe__,
            "tracker": self._calls.statistics(),
        }

    @contextmanager
    def track_request(self, request_id: str | None = None) -> Iterator[int]:  # noqa: ARG002 - Snakepit's
        """Count what is done inside as a call, and give its number."""
        with self._calls.counted() as number:
            yield number


def thread_safe_method(method: F) -> F:
    """Count the calls of a method of a ``ThreadSafeAdapter``.

    Of a generator or a coroutine function it counts the making, which is over at once.
    """

    @functools.wraps(method)
    def call(self: object, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - any method's
        if not isinstance(self, ThreadSafeAdapter):
            return method(self, *arguments, **named)
        with self.track_request():
            return method(self, *arguments, **named)

    call.__thread_safe__ = True  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]


def require_thread_safe(function: F) -> F:
    """Have a function of an adapter refuse those that do not say that they are thread-safe.

    :raises ValueError: at the call, of such an adapter.
    """

    @functools.wraps(function)
    def call(adapter: object, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - as above
        if not getattr(adapter, "__thread_safe__", False):
            raise ValueError(
                f"{type(adapter).__name__} is not thread-safe: set __thread_safe__ = True if it is"
            )
        return function(adapter, *arguments, **named)

    return call  # type: ignore[return-value]


def validate_thread_safety(adapter_class: type) -> bool:
    """Whether a class says that it is thread-safe."""
    return getattr(adapter_class, "__thread_safe__", False) is True
