"""Heartbeats to Elixir: their settings, and what happens when nobody answers."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence

import grpc
import pytest
import pytest_asyncio

from snakepit_bridge.elixir import Elixir
from snakepit_bridge.heartbeats import HeartbeatConfig, Heartbeats, read_heartbeat_config
from tests.elixir_side import PATIENCE, ElixirSide

LOG = "snakepit_bridge.heartbeats"
FAST = HeartbeatConfig(interval=0.05, timeout=5)


# Settings.


def environment(**given: object) -> dict[str, str]:
    return {"SNAKEPIT_HEARTBEAT_CONFIG": json.dumps(given)}


def test_without_a_word_there_are_none() -> None:
    assert read_heartbeat_config({}) is None
    assert read_heartbeat_config({"SNAKEPIT_HEARTBEAT_CONFIG": " "}) is None
    assert read_heartbeat_config({}, enabled=None, interval_ms=None) is None


def test_the_defaults_are_those_of_snakepit() -> None:
    assert read_heartbeat_config(environment()) == (True, 2.0, 10.0, 3, 0.0, True)


def test_what_snakepit_sends_is_read() -> None:
    # As encoded from Snakepit 0.13's default configuration.
    text = (
        '{"enabled":true,"interval_ms":5000,"timeout_ms":1500,"max_missed_heartbeats":7,'
        '"initial_delay_ms":250,"dependent":false}'
    )
    config = read_heartbeat_config({"SNAKEPIT_HEARTBEAT_CONFIG": text})
    assert config == HeartbeatConfig(True, 5.0, 1.5, 7, 0.25, False)


def test_flags_say_the_same_and_go_before() -> None:
    config = read_heartbeat_config({}, enabled=True, interval_ms=100)
    assert config == HeartbeatConfig(interval=0.1)
    given = environment(interval_ms=5_000, timeout_ms=400)
    config = read_heartbeat_config(given, interval_ms=100, dependent=False, timeout_ms=None)
    assert config == HeartbeatConfig(interval=0.1, timeout=0.4, dependent=False)


def test_what_is_not_known_or_not_said_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    given = environment(jitter_ms=5, ping_interval_ms=9, timeout_ms=None)
    assert read_heartbeat_config(given) == HeartbeatConfig()
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("interval_ms", 0, "milliseconds from 1"),
        ("interval_ms", -5, "milliseconds from 1"),
        ("interval_ms", "2000", "milliseconds from 1"),
        ("interval_ms", True, "milliseconds from 1"),
        ("interval_ms", float("nan"), "milliseconds from 1"),
        ("timeout_ms", float("inf"), "milliseconds from 1"),
        pytest.param("timeout_ms", 10**400, "milliseconds from 1", id="googol"),
        ("initial_delay_ms", -1, "milliseconds from 0"),
        ("max_missed_heartbeats", 2.5, "a whole number from 0"),
        ("max_missed_heartbeats", -1, "a whole number from 0"),
        ("enabled", "yes", "true or false"),
        ("dependent", 1, "true or false"),
        ("dependent", {"a": "x" * 1_000}, "true or false"),
    ],
)
def test_a_value_that_cannot_be_used_is_a_warning(
    caplog: pytest.LogCaptureFixture, name: str, value: object, expected: str
) -> None:
    assert read_heartbeat_config(environment(**{name: value})) == HeartbeatConfig()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    message = record.getMessage()
    assert f"SNAKEPIT_HEARTBEAT_CONFIG: {name} must be {expected}" in message
    assert len(message) < 300


@pytest.mark.parametrize("text", ["{", "[1]", "null", "7", "[" * 100_000, '"text"'])
def test_json_that_cannot_be_used_is_a_warning(caplog: pytest.LogCaptureFixture, text: str) -> None:
    config = read_heartbeat_config({"SNAKEPIT_HEARTBEAT_CONFIG": text})
    assert config == HeartbeatConfig()
    (record,) = caplog.records
    assert "no JSON object" in record.getMessage()
    assert len(record.getMessage()) < 400


# Beating.


class Worker:
    """What beats, and what it was told."""

    def __init__(
        self, side: ElixirSide, config: HeartbeatConfig, sessions: Sequence[str] = ()
    ) -> None:
        self.sessions = sessions
        self.lost = 0
        self.stopped = asyncio.Event()
        self.elixir = Elixir(side.address, max_size=1024**2)
        self.heartbeats = Heartbeats(self.elixir, config, lambda: self.sessions, self._on_lost)

    def _on_lost(self) -> None:
        self.lost += 1
        self.stopped.set()

    async def told(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await self.stopped.wait()

    async def close(self) -> None:
        await self.heartbeats.stop()
        await self.elixir.close()


class Log(logging.Handler):
    """Records of the log, to be waited for."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.messages: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.put_nowait((record.levelname, record.getMessage()))

    async def next(self) -> tuple[str, str]:
        async with asyncio.timeout(PATIENCE):
            return await self.messages.get()


@pytest_asyncio.fixture
async def side() -> AsyncIterator[ElixirSide]:
    async with ElixirSide() as side:
        yield side


@pytest_asyncio.fixture
async def log() -> AsyncIterator[Log]:
    handler = Log()
    logging.getLogger(LOG).addHandler(handler)
    yield handler
    logging.getLogger(LOG).removeHandler(handler)


async def test_it_beats_for_the_default_session_until_there_are_others(side: ElixirSide) -> None:
    worker = Worker(side, FAST)
    worker.heartbeats.start()
    (first, *_) = await side.called("Heartbeat")
    assert first.request.session_id == "default_session"
    assert first.request.client_time.seconds > 0
    worker.sessions = ["a", "b"]
    before = len(side.calls)
    later = await side.called("Heartbeat", before + 5)
    assert {call.request.session_id for call in later[before + 1 :]} == {"a", "b"}
    await worker.close()


async def test_of_many_sessions_it_beats_for_the_newest(side: ElixirSide) -> None:
    worker = Worker(side, HeartbeatConfig(interval=60), [f"s{n}" for n in range(250)])
    worker.heartbeats.start()
    calls = await side.called("Heartbeat", 100)
    await worker.close()
    assert {call.request.session_id for call in calls} == {f"s{n}" for n in range(150, 250)}
    assert len(side.calls) == 100


async def test_the_interval_is_kept(side: ElixirSide) -> None:
    worker = Worker(side, HeartbeatConfig(interval=0.2))
    worker.heartbeats.start()
    calls = await side.called("Heartbeat", 4)
    await worker.close()
    # Each is due an interval after the one before; the first may be late by the connecting.
    assert calls[3].time - calls[0].time > 0.4


async def test_the_first_waits_for_the_initial_delay(side: ElixirSide) -> None:
    worker = Worker(side, HeartbeatConfig(initial_delay=0.3))
    begun = asyncio.get_running_loop().time()
    worker.heartbeats.start()
    (call, *_) = await side.called("Heartbeat")
    assert call.time - begun >= 0.3
    await worker.close()


async def test_disabled_it_does_nothing(side: ElixirSide) -> None:
    worker = Worker(side, HeartbeatConfig(enabled=False))
    worker.heartbeats.start()
    assert worker.heartbeats._task is None
    await worker.close()


async def test_a_dependent_worker_stops_once_elixir_is_gone(side: ElixirSide, log: Log) -> None:
    worker = Worker(side, FAST)
    worker.heartbeats.start()
    await side.called("Heartbeat", 2)
    await side.stop()
    await worker.told()
    level, message = await log.next()
    assert level == "ERROR"
    assert side.address in message
    assert "3 heartbeats in a row" in message
    task = worker.heartbeats._task
    assert task is not None
    await asyncio.wait((task,))  # it ends, and so tells nobody twice
    assert worker.lost == 1
    await worker.close()


async def test_an_elixir_that_never_was_is_gone(side: ElixirSide) -> None:
    await side.stop()
    worker = Worker(side, FAST._replace(max_missed=0), ["a", "b"])
    worker.heartbeats.start()
    await worker.told()
    await worker.close()


async def test_silence_counts_as_being_gone(side: ElixirSide) -> None:
    side.silent.add("Heartbeat")
    worker = Worker(side, FAST._replace(timeout=0.1, max_missed=2))
    worker.heartbeats.start()
    await worker.told()
    assert len(side.of("Heartbeat")) == 2
    await worker.close()


@pytest.mark.parametrize("code", ["NOT_FOUND", "UNKNOWN", "INTERNAL", "UNIMPLEMENTED"])
async def test_an_error_that_elixir_gives_is_a_sign_of_life(side: ElixirSide, code: str) -> None:
    side.faults["Heartbeat"] = (grpc.StatusCode[code], "no")
    worker = Worker(side, FAST._replace(interval=0.01))
    worker.heartbeats.start()
    await side.called("Heartbeat", 10)
    assert worker.lost == 0
    await worker.close()


async def test_an_independent_worker_warns_once_and_goes_on(side: ElixirSide, log: Log) -> None:
    worker = Worker(side, FAST._replace(dependent=False, max_missed=2))
    worker.heartbeats.start()
    await side.called("Heartbeat")
    await side.stop()
    level, message = await log.next()
    assert level == "WARNING"
    assert "independent" in message
    before = len(side.calls)
    await side.start()
    await side.called("Heartbeat", before + 1)
    # Next comes that it is back: there was no second warning.
    level, message = await log.next()
    assert (level, message) == ("WARNING", f"Elixir at {side.address} answers again")
    assert worker.lost == 0
    await worker.close()


async def test_a_few_missed_ones_are_forgiven(side: ElixirSide, log: Log) -> None:
    worker = Worker(side, FAST._replace(max_missed=1_000))
    worker.heartbeats.start()
    await side.called("Heartbeat")
    await side.stop()
    before = len(side.calls)
    await side.start()
    await side.called("Heartbeat", before + 1)
    await worker.close()
    assert log.messages.empty()
    assert worker.lost == 0


async def test_stopping_lets_go_of_a_beat_under_way(side: ElixirSide) -> None:
    side.silent.add("Heartbeat")
    worker = Worker(side, FAST._replace(timeout=60))
    worker.heartbeats.start()
    worker.heartbeats.start()  # no second task
    await side.called("Heartbeat")
    async with asyncio.timeout(PATIENCE):
        await worker.heartbeats.stop()
        await worker.heartbeats.stop()
    await worker.close()
