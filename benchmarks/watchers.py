"""Watchers beside a run: what they ask for, and the process (``streams``) that they are in."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from benchmarks import servers
from benchmarks.errors import BenchmarkError
from benchmarks.streams import Streams
from snakepit_bridge import bridge_service_pb2 as pb

__all__ = ["Report", "Watchers", "bare_streams", "watch", "watch_after"]

_METHOD = "/snakepit.bridge.BridgeService/WatchVariables"
_SELDOM = 3_600  # seconds between heartbeats: none comes while something is counted
_CHECKING = 60.0  # seconds for looking at what was kept


def watch(
    server: servers.Server,
    session: str,
    count: int,
    *,
    name: str = "",
    sampled: int = 0,
) -> Streams:
    """Return ``count`` watchers of a session from now on, or of one of its variables."""
    request = pb.WatchVariablesRequest(
        session_id=session, heartbeat_seconds=_SELDOM, send_caught_up=True
    )
    if name:
        request.variable_identifiers.append(name)
    return Streams(
        port=server.port,
        method=_METHOD,
        request=request.SerializeToString().hex(),
        streams=count,
        sampled=sampled,
        gaps=bool(name),
    )


def watch_after(
    server: servers.Server, session: str, epoch: str, after: int, first: int
) -> Streams:
    """Return one watcher that resumes after an offset; ``first`` is that of its first update."""
    request = pb.WatchVariablesRequest(
        session_id=session,
        heartbeat_seconds=_SELDOM,
        send_caught_up=True,
        after_offset=after,
        log_epoch=epoch,
    )
    return Streams(
        port=server.port,
        method=_METHOD,
        request=request.SerializeToString().hex(),
        streams=1,
        after=first - 1,
    )


def bare_streams(server: servers.Server, method: str, count: int, constant: bytes) -> Streams:
    """Return ``count`` streams of the bare server: "Watch", "Flat" or "Idle"."""
    return Streams(
        port=server.port,
        method=f"/bare/{method}",
        request="0a0173",
        streams=count,
        constant=constant.hex(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What watchers received. Moments are of ``time.perf_counter``.

    ``most`` messages came on one stream. The watches began after the offset ``start``; where
    they were stopped, the last updates had the offsets ``least`` to ``greatest``. The first
    request was sent at ``requested``, the last update came at ``reached``.
    """

    total: int
    most: int
    start: int
    least: int
    greatest: int
    requested: float
    reached: float
    last: str
    progress: Sequence[tuple[float, int, float]]
    delays: Mapping[str, Any]

    def within(self, begun: float, ended: float) -> float:
        """Return how many messages came between two moments."""
        return self._at(ended, 1) - self._at(begun, 1)

    def share(self, begun: float, ended: float) -> float:
        """Return the part of one core that the reader used between two moments."""
        return (self._at(ended, 2) - self._at(begun, 2)) / (ended - begun)

    def _at(self, moment: float, column: int) -> float:
        """Return a column at a moment; between two notes it rises evenly."""
        notes = self.progress
        after = bisect_left(notes, moment, key=lambda note: note[0])
        if after in {0, len(notes)}:
            return notes[min(after, len(notes) - 1)][column]
        (since, _, _), (until, _, _) = notes[after - 1], notes[after]
        low, high = notes[after - 1][column], notes[after][column]
        return low + (high - low) * (moment - since) / (until - since)


class Watchers:
    """Streams that are open, all of them, when the block begins, and closed at its end.

    :raises BenchmarkError: from any method, a stream did not open, ended, or received what it
        must not.
    """

    def __init__(self, streams: Streams, directory: Path, name: str = "watchers") -> None:
        """Prepare them; ``directory`` receives what the process complains of."""
        self._streams = streams
        command = (servers.PYTHON, "-m", "benchmarks.streams")
        self._process = servers.Server(name, command, directory, self._open, listens=True)

    def __enter__(self) -> Self:
        """Open them."""
        self._process.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """Close them, if they are open."""
        self._process.__exit__()

    def count(self) -> int:
        """Return how many messages they have received by now."""
        self._process.say(json.dumps({"do": "count"}))
        return int(self._process.line("")[1])

    def finish(
        self, expect: int = 0, *, limit: float = 10.0, sent: Mapping[Any, int] | None = None
    ) -> Report:
        """Read on until each has received ``expect`` messages; close them and return all.

        ``sent`` says when the sets of some offsets were sent.
        """
        order = {"do": "finish", "expect": expect, "limit": limit, "sent": sent or {}}
        self._process.say(json.dumps(order))
        _, line = self._process.line("", limit + _CHECKING)
        report = Report(**json.loads(line))
        if expect and report.total != expect * self._streams.streams:
            raise BenchmarkError(f"watchers got {report.total} messages, not {expect} each")
        return report

    def _open(self, process: servers.Server) -> None:
        process.say(json.dumps(asdict(self._streams)))
        process.line("OPEN")
