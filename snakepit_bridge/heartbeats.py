"""Heartbeats to Elixir: a worker does not outlive the BEAM that started it.

The other direction, Elixir asking whether the worker lives, is the method Heartbeat. The
settings and their defaults are Snakepit's: each 2 s, 10 s for an answer, three missed in a
row, and then the worker stops if it is *dependent*.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from snakepit_bridge.elixir import Elixir

__all__ = ["HeartbeatConfig", "Heartbeats", "read_heartbeat_config"]

logger = logging.getLogger(__name__)

VARIABLE = "SNAKEPIT_HEARTBEAT_CONFIG"

DEFAULT_SESSION = "default_session"
"""Under which Snakepit 0.4 calls tools; a beat must name some session."""

MAX_SESSIONS = 100
"""Sessions in one beat. It keeps them alive over there; who lives is known from one."""

LONGEST_MS = 86_400_000
"""A day, of interval, timeout and delay."""


class HeartbeatConfig(NamedTuple):
    """When to beat, and what to do when nobody answers. Times are in seconds."""

    enabled: bool = True
    interval: float = 2.0
    timeout: float = 10.0
    max_missed: int = 3
    """In a row; 0 is as 1."""
    initial_delay: float = 0.0
    dependent: bool = True
    """Whether to stop with Elixir."""


class _Key(NamedTuple):
    field: str
    expected: str
    read: Callable[[Any], Any]
    """Gives ``None`` for what is not as expected."""


def _flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _seconds(lowest: int) -> Callable[[object], float | None]:
    def read(value: object) -> float | None:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return None
        return value / 1000 if lowest <= value <= LONGEST_MS else None

    return read


def _count(value: object) -> int | None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        return None
    return value


_FLAG = "true or false"
_POSITIVE = f"milliseconds from 1 to {LONGEST_MS}"
_KEYS: dict[str, _Key] = {
    "enabled": _Key("enabled", _FLAG, _flag),
    "interval_ms": _Key("interval", _POSITIVE, _seconds(1)),
    "timeout_ms": _Key("timeout", _POSITIVE, _seconds(1)),
    "max_missed_heartbeats": _Key("max_missed", "a whole number from 0", _count),
    "initial_delay_ms": _Key("initial_delay", f"milliseconds from 0 to {LONGEST_MS}", _seconds(0)),
    "dependent": _Key("dependent", _FLAG, _flag),
}


def read_heartbeat_config(
    environ: Mapping[str, str], **flags: float | bool | None
) -> HeartbeatConfig | None:
    """Read what Elixir passes in ``SNAKEPIT_HEARTBEAT_CONFIG``, and what the flags say.

    A flag that is given goes before the environment. What cannot be used is a warning in the
    log, and the default stands: a worker without heartbeats is better than none.

    :param flags: by the names of the JSON's keys; ``None`` = not given.
    :returns: ``None`` if neither says anything, as with Snakepit 0.4, which has no heartbeats.
    """
    given = _environment(environ.get(VARIABLE, ""))
    said = {key: value for key, value in flags.items() if value is not None}
    if given is None and not said:
        return None
    config = HeartbeatConfig()
    for source, values in ((VARIABLE, given or {}), ("the command line", said)):
        for name, value in values.items():
            if (key := _KEYS.get(name)) is None or value is None:
                continue  # a newer Snakepit may know more
            read = key.read(value)
            if read is None:
                logger.warning(
                    "%s: %s must be %s, not %.100r: it stays %s",
                    source,
                    name,
                    key.expected,
                    value,
                    getattr(config, key.field),
                )
            else:
                config = config._replace(**{key.field: read})
    return config


def _environment(text: str) -> Mapping[str, object] | None:
    if not text.strip():
        return None
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        logger.warning("%s is no JSON object: %.200r is ignored", VARIABLE, text)
        return {}
    return given


class Heartbeats:
    """Beats to Elixir, until it is gone or this is stopped. Belongs to one event loop."""

    def __init__(
        self,
        elixir: Elixir,
        config: HeartbeatConfig,
        sessions: Callable[[], Sequence[str]],
        on_lost: Callable[[], None],
    ) -> None:
        """Prepare to beat.

        :param sessions: those that Elixir uses here, the newest last.
        :param on_lost: called once, if the worker is dependent and Elixir is gone.
        """
        self._elixir = elixir
        self._config = config
        self._sessions = sessions
        self._on_lost = on_lost
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; nothing happens if heartbeats are off, or have begun."""
        if self._config.enabled and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="heartbeats")

    async def stop(self) -> None:
        """Stop, and let go of a beat under way. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
            self._task = None

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        config = self._config
        missed = 0
        await asyncio.sleep(config.initial_delay)
        while True:
            due = loop.time() + config.interval
            if await self._beat():
                if missed >= max(1, config.max_missed):
                    logger.warning("Elixir at %s answers again", self._elixir.address)
                missed = 0
            else:
                missed += 1
                if missed == max(1, config.max_missed) and self._lost(missed):
                    return
            await asyncio.sleep(max(0.0, due - loop.time()))

    async def _beat(self) -> bool:
        """Whether anybody answered: sessions share one connection, and one BEAM."""
        sessions = self._sessions()[-MAX_SESSIONS:] or (DEFAULT_SESSION,)
        answered = await asyncio.gather(
            *(self._elixir.heartbeat(session, self._config.timeout) for session in sessions)
        )
        return any(answered)

    def _lost(self, missed: int) -> bool:
        address = self._elixir.address
        if not self._config.dependent:
            logger.warning(
                "Elixir at %s has not answered %d heartbeats in a row; this worker is "
                "independent of it and goes on",
                address,
                missed,
            )
            return False
        logger.error(
            "Elixir at %s has not answered %d heartbeats in a row: this worker depends on it "
            "and stops",
            address,
            missed,
        )
        self._on_lost()
        return True
