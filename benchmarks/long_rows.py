"""The rows about long lives: sessions of a million events, and sessions that left memory."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from benchmarks import servers
from benchmarks.contest import Contest, Figure, Outcome
from benchmarks.driver import run_json
from benchmarks.errors import BenchmarkError
from benchmarks.long_logs import SHORT, VARIABLES, Prepared, Shelf
from benchmarks.proc import cpu_of_threads
from benchmarks.sides import Bridge, Shape, figure_of
from benchmarks.workloads import TYPE_URL
from snakepit_bridge import bridge_service_pb2 as pb

__all__ = ["EVICTED_LIMIT", "evicting", "long_set", "opening", "rebuilding"]

EVICTED_LIMIT = 1_000
"""Bytes that an evicted session may keep: what its row is measured against."""

_SERVICE = "/snakepit.bridge.BridgeService/"
_DEADLINE = 30.0  # seconds, each call
_WARM = 4  # short sessions that are opened before the one under the clock
_PINGS = 30
_RESTARTS = 3  # of which an opening is the median

# Just too few for the next snapshot: the longest tail that kill -9 leaves, but for a few sets.
_TAIL = Shape(
    work="set",
    in_flight=32,
    connections=4,
    calls=9_500,
    options={"sessions": 1, "variables": VARIABLES, "ids": 1},
)


@contextmanager
def long_set(directory: Path, shelf: Shelf, events: int, shape: Shape) -> Iterator[Contest]:
    """Set up sets on a long session against sets on short ones; calls per second.

    The long session grows by each run; for each run the other side has a new short one. A run
    is longer than two snapshots are apart, so that both sides pay for two.
    """
    long = shelf.log(events, *[SHORT] * (_WARM + 1)).copied(directory / "long")
    short = shelf.log(*[SHORT] * _SHORT_ONES).copied(directory / "short")
    with (
        servers.bridge(long.file.parent) as server,
        servers.bridge(short.file.parent) as other,
    ):
        ours, ruler = Bridge(server, shape, long.versions), Bridge(other, shape, short.versions)

        def on_short(number: int) -> Figure:
            options = shape.options | {"first_session": number % _SHORT_ONES}
            result = ruler.run(number, replace(shape, options=options))
            return figure_of(result, result.rate)

        def on_long(number: int) -> Figure:
            result = ours.run(number)
            return figure_of(result, result.rate)

        on_long(0)
        on_short(0)
        yield Contest(
            ours=on_long,
            ruler=on_short,
            notes=lambda outcome: [_sizes(events), _by_cpu(outcome)],
        )


_SHORT_ONES = 32
"""Short sessions beside each other; with more pairs than that they are no longer short."""


@contextmanager
def opening(directory: Path, shelf: Shelf, events: int) -> Iterator[Contest]:
    """Set up the first touch of a long session against that of a short one; milliseconds."""
    log = shelf.log(events, *[SHORT] * (_WARM + 1)).copied(directory / "clean")
    long, short = log.sessions[0], log.sessions[1]

    def opened(session: str) -> Figure:
        took = [_opened(log, session) for _ in range(_RESTARTS)]
        return Figure(
            statistics.median(each.seconds for each in took) * 1e3,
            statistics.median(each.cpu_seconds for each in took) * 1e6,
            {"seconds": [each.seconds for each in took]},
        )

    # The first of all reads the file from the disk; later ones find it in memory.
    opened(long)
    opened(short)
    yield Contest(
        ours=lambda _number: opened(long),
        ruler=lambda _number: opened(short),
        notes=lambda _outcome: [_sizes(events), *_when_written(log, directory)],
    )


class _Opening(NamedTuple):
    """What a session took that no call had touched since the bridge was started."""

    seconds: float
    """Of the first GetVariable, beyond those of a Ping."""
    cpu_seconds: float
    set_seconds: float
    """Of a SetVariable with a request id after it, beyond those of a Ping; 0 if none was sent."""


def _opened(log: Prepared, session: str, *, change: dict[str, float] | None = None) -> _Opening:
    """Start a bridge, open a session and end the bridge.

    Without ``change`` nothing is written and the end is a clean stop. With it a variable is
    set, the end is SIGKILL, and ``change`` receives the new value, by "session/name".
    """
    key = _key(log, session)
    with (
        servers.bridge(log.file.parent) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        get: Any = channel.unary_unary(_SERVICE + "GetVariable")
        ping: Any = channel.unary_unary(_SERVICE + "Ping")
        change_seconds = 0.0
        try:
            # What a process does once only is not the session's: other sessions come first.
            for other in log.sessions[-_WARM:]:
                _checked(get, log, _key(log, other))
            server.rest()
            pings = [_timed(lambda: ping(b"", timeout=_DEADLINE))[0] for _ in range(_PINGS)]
            cpu = cpu_of_threads(server.pid)
            seconds = _checked(get, log, key)
            cpu = cpu_of_threads(server.pid) - cpu
            if change is not None:
                value = change[key] = time.time_ns() % 10**9 / 10**9
                change_seconds = _set(channel, log, key, value)
                server.kill()
        except grpc.RpcError as error:
            words = f"answered {error.code().name}: {error.details()}"
            raise server.fault(words if server.alive() else "died") from error
    usual = statistics.median(pings)
    return _Opening(seconds - usual, cpu, change_seconds - usual if change is not None else 0.0)


def _key(log: Prepared, session: str) -> str:
    return next(key for key in log.versions if key.startswith(f"{session}/"))


def _checked(get: Callable[..., bytes], log: Prepared, key: str) -> float:
    """Read a variable and check it; return the seconds of the call."""
    session, _, name = key.partition("/")
    request = pb.GetVariableRequest(session_id=session, variable_identifier=name)
    asking = request.SerializeToString()
    seconds, reply = _timed(lambda: get(asking, timeout=_DEADLINE))
    got = pb.GetVariableResponse.FromString(reply).variable
    wanted = (name, log.versions[key], log.values[key])
    if (got.name, got.version, json.loads(got.value.value or b"null")) != wanted:
        raise BenchmarkError(
            f"{key} should be {wanted[2]} in version {wanted[1]} and reads as "
            f"{got.value.value!r} in version {got.version}"
        )
    return seconds


def _set(channel: grpc.Channel, log: Prepared, key: str, value: float) -> float:
    """Set a variable under a new request id; return the seconds of the call."""
    session, _, name = key.partition("/")
    request = pb.SetVariableRequest(session_id=session, variable_identifier=name)
    request.value.type_url, request.value.value = TYPE_URL, json.dumps(value).encode()
    request.request_id = f"opened-{time.time_ns()}"
    sending = request.SerializeToString()
    call: Any = channel.unary_unary(_SERVICE + "SetVariable")
    seconds, reply = _timed(lambda: call(sending, timeout=_DEADLINE))
    response = pb.SetVariableResponse.FromString(reply)
    if not response.success or response.new_version != log.versions[key] + 1:
        raise BenchmarkError(f"setting {key} made version {response.new_version}")
    return seconds


def _timed(call: Callable[[], bytes]) -> tuple[float, bytes]:
    begun = time.perf_counter()
    reply = call()
    return time.perf_counter() - begun, reply


def _when_written(log: Prepared, directory: Path) -> Sequence[str]:
    """Return what the first set takes, and what opening takes after kill -9."""
    clean = [_changed(log.copied(directory / f"set-{n}"), log.sessions[n]) for n in (0, 1)]
    killed = _killed(log.copied(directory / "killed"))
    tails = [_changed(killed, killed.sessions[number]) for number in (0, 1)]
    calls = _TAIL.calls + max(_TAIL.in_flight, _TAIL.calls // 20)
    first, first_short = (each.set_seconds * 1e3 for each in clean)
    (to_open, to_set), (open_short, set_short) = (
        (each.seconds * 1e3, each.set_seconds * 1e3) for each in tails
    )
    after = f"after kill -9 with {calls:,} events since the last snapshot"
    return [
        f"first set with a request id, less a Ping: {first:.1f} ms; short: {first_short:.1f} ms",
        f"{after}: {to_open:.1f} ms, then that first set: {to_set:.1f} ms",
        f"{after}, the short session: {open_short:.1f} ms, then the set: {set_short:.1f} ms",
    ]


def _killed(log: Prepared) -> Prepared:
    """Give the first two sessions of a log the longest tail that kill -9 can leave."""
    versions, values = dict(log.versions), dict(log.values)
    with servers.bridge(log.file.parent) as server:
        for number in (0, 1):
            shape = replace(_TAIL, options=_TAIL.options | {"first_session": number})
            result = Bridge(server, shape, versions).run(1)
            versions |= result.versions
            values |= result.values
        server.kill()
    return log._replace(versions=versions, values=values)


def _changed(log: Prepared, session: str) -> _Opening:
    """Open a session and set one of its variables, three times, with kill -9 between."""
    versions, values = dict(log.versions), dict(log.values)
    took = []
    for _ in range(_RESTARTS):
        change: dict[str, float] = {}
        took.append(_opened(log._replace(versions=versions, values=values), session, change=change))
        values |= change
        versions |= {key: versions[key] + 1 for key in change}
    return _Opening(*(statistics.median(figures) for figures in zip(*took, strict=True)))


@contextmanager
def rebuilding(_directory: Path, shelf: Shelf, events: int) -> Iterator[Contest]:
    """Set up a rebuild without snapshots against reading and parsing its rows; seconds."""
    log = shelf.log(events, *[SHORT] * (_WARM + 1))
    session = log.sessions[0]
    own = {
        key.partition("/")[2]: version
        for key, version in log.versions.items()
        if key.startswith(f"{session}/")
    }

    def through(how: str) -> Figure:
        done = run_json("benchmarks.rebuild", str(log.file), session, log.epochs[session], how)
        if done["events"] != events or not done["whole"] or done.get("versions", own) != own:
            raise BenchmarkError(f"{how}: the log that was read is not the one that was written")
        return Figure(done["seconds"], done["cpu_seconds"] / events * 1e6, done)

    through("parse")  # brings the file into memory
    yield Contest(
        ours=lambda _number: through("fold"),
        ruler=lambda _number: through("parse"),
        notes=lambda outcome: [_sizes(events), _by_cpu(outcome)],
    )


def _by_cpu(outcome: Outcome) -> str:
    """Return the ratio by CPU time, which drifts less than the clock."""
    ratios = [
        pair.ours.cpu_us / pair.ruler.cpu_us
        for pair in outcome.pairs
        if pair.ours.cpu_us and pair.ruler.cpu_us
    ]
    return (
        f"by CPU time ours is {statistics.median(ratios):.2f} × the ruler's "
        f"({min(ratios):.2f} … {max(ratios):.2f})"
    )


@contextmanager
def evicting(directory: Path, sessions: int) -> Iterator[Contest]:
    """Set up what an evicted session keeps against the limit; bytes.

    Python's own count is the figure: the resident size says less, because what leaves makes
    room inside the process that the next sessions take.
    """
    numbers = iter(range(1_000_000))

    def measured(*options: str) -> dict[str, Any]:
        file = directory / f"{next(numbers)}.db"
        return run_json("benchmarks.evicted", str(file), f"--sessions={sessions}", *options)

    def ours(_number: int) -> Figure:
        done = measured("--traced")
        return Figure(done["each"], details=done)

    def notes(_outcome: Outcome) -> Sequence[str]:
        resident = measured()["each"]
        return [f"{sessions:,} sessions, by tracemalloc; by resident size {resident:.0f} B each"]

    yield Contest(ours=ours, ruler=lambda _number: Figure(EVICTED_LIMIT), notes=notes)


def _sizes(events: int) -> str:
    return f"sessions of {events:,} and of {SHORT:,} events, each with {VARIABLES} variables"
