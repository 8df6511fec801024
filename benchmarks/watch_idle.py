"""The rows about watchers to whom nothing comes: what they cost others, and in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks import servers
from benchmarks.client import register, set_once
from benchmarks.contest import Contest, Figure
from benchmarks.errors import BenchmarkError
from benchmarks.proc import resident
from benchmarks.sides import Bridge, Shape, figure_of
from benchmarks.streams import Streams
from benchmarks.watchers import Watchers, bare_streams, watch

__all__ = ["idling", "remembering"]

_SESSION = "bench-0"
_NEVER = "never_written"
_WARM = 300  # watchers that are there before memory is looked at


@contextmanager
def idling(directory: Path, shape: Shape, count: int) -> Iterator[Contest]:
    """Set up sets with ``count`` watchers of another variable against sets without; calls/s."""
    with servers.bridge(directory) as server:
        bridge = Bridge(server, shape)
        register(server.port, [_SESSION], [_NEVER])

        def without(number: int) -> Figure:
            result = bridge.run(2 * number)
            return figure_of(result, result.rate)

        def with_them(number: int) -> Figure:
            streams = watch(server, _SESSION, count, name=_NEVER)
            with Watchers(streams, directory) as watchers:
                result = bridge.run(2 * number + 1)
                _wake(server, [watchers], number)
            server.rest()
            return figure_of(result, result.rate)

        without(0)
        with_them(0)
        yield Contest(ours=with_them, ruler=without)


def _wake(server: servers.Server, idle: Sequence[Watchers], number: int) -> None:
    """See that watchers have received nothing so far, and do receive something now."""
    offset, _ = set_once(server.port, _SESSION, _NEVER, (number + 1) / 1_000_000)
    for watchers in idle:
        report = watchers.finish(2)  # ``caught_up`` and this
        if (report.least, report.greatest) != (offset, offset):
            raise BenchmarkError("idle watchers got something else than what was set for them")


def _close(idle: Sequence[Watchers]) -> None:
    for watchers in idle:
        watchers.finish()


@contextmanager
def remembering(directory: Path, count: int) -> Iterator[Contest]:
    """Set up the memory of an idle watcher against that of an idle stream; bytes.

    Each run has a server of its own: what streams leave makes room for the next.
    """

    def grown(
        server: servers.Server,
        streams: Callable[[int], Streams],
        end: Callable[[Sequence[Watchers]], None],
    ) -> Figure:
        with Watchers(streams(_WARM), directory, "warm") as warm:
            server.rest()
            before = resident(server.pid)
            with Watchers(streams(count), directory) as watchers:
                server.rest()
                after = resident(server.pid)
                end([warm, watchers])
        return Figure((after - before) / count, details={"before": before, "after": after})

    def ours(number: int) -> Figure:
        place = directory / str(number)
        place.mkdir()
        with servers.bridge(place) as server:
            register(server.port, [_SESSION], [_NEVER])
            return grown(
                server,
                lambda n: watch(server, _SESSION, n),
                lambda idle: _wake(server, idle, number),
            )

    def ruler(_number: int) -> Figure:
        with servers.fan_out(directory) as bare:
            return grown(
                bare,
                lambda n: bare_streams(bare, "Idle", n, b""),
                _close,
            )

    yield Contest(
        ours=ours,
        ruler=ruler,
        notes=lambda _outcome: [f"{count:,} watchers beside {_WARM} that were there before"],
    )
