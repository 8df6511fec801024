"""The rows about the Python client: what it costs over the stubs that it is made of."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median

from benchmarks import servers
from benchmarks.client import register
from benchmarks.client_calls import Order, Place, Spent
from benchmarks.contest import Contest, Figure, Outcome
from benchmarks.long_logs import Shelf
from benchmarks.proc import cpu_seconds
from benchmarks.workloads import Set

__all__ = ["reading", "through_client"]

_LIMIT = 120.0  # seconds for one run
_SESSION = Set(sessions=1, variables=8)
_WARMING = 0.1  # part of a run that goes before


class _User:
    """A process that uses a bridge through the client and through stubs, see ``client_calls``."""

    def __init__(self, server: servers.Server, place: Place, directory: Path) -> None:
        self._server = server
        self._place = place
        command = (servers.PYTHON, "-m", "benchmarks.client_calls")
        self.process = servers.Server("client", command, directory, self._open, listens=True)

    def _open(self, process: servers.Server) -> None:
        process.say(json.dumps(asdict(self._place)))
        process.line("OPEN")

    def run(self, do: str, count: int, *, client: bool) -> tuple[Spent, float]:
        """Have a run made; return what it took, and the server's CPU time, in seconds.

        :raises BenchmarkError: an answer was wrong, or a process died.
        """
        before = cpu_seconds(self._server.pid)
        self.process.say(json.dumps(asdict(Order(do=do, client=client, count=count))))
        _, line = self.process.line("", _LIMIT)
        return Spent(**json.loads(line)), cpu_seconds(self._server.pid) - before


@contextmanager
def through_client(directory: Path, calls: int, *, asynchronous: bool) -> Iterator[Contest]:
    """Set up calls through the client against calls of the stubs, in one process.

    Microseconds of CPU time of that process, per call; ``calls`` sets and as many gets are a run.
    """
    with servers.bridge(directory) as server:
        (session,) = _SESSION.sessions
        register(server.port, [session], _SESSION.names)
        place = Place(
            port=server.port, session=session, names=_SESSION.names, asynchronous=asynchronous
        )
        user = _User(server, place, directory)
        with user.process:

            def side(*, client: bool) -> Callable[[int], Figure]:
                def run(_number: int) -> Figure:
                    spent, cpu = user.run("calls", calls, client=client)
                    value = (spent.set_cpu + spent.get_cpu) / 2
                    return Figure(value, cpu / calls / 2 * 1e6, asdict(spent))

                # The first set of a variable asks for its type.
                user.run("calls", max(len(place.names), int(calls * _WARMING)), client=client)
                return run

            yield Contest(ours=side(client=True), ruler=side(client=False), notes=_call_notes)


@contextmanager
def reading(directory: Path, shelf: Shelf, events: int, *, asynchronous: bool) -> Iterator[Contest]:
    """Set up a watch of the client against a stream of the stubs, in one process; updates/s.

    Both read a log of ``events`` events that is there, from its beginning.
    """
    log = shelf.log(events).copied(directory / "log")
    session = log.sessions[0]
    names = [key.partition("/")[2] for key in log.versions]
    with servers.bridge(log.file.parent) as server:
        place = Place(
            port=server.port,
            session=session,
            names=names,
            epoch=log.epochs[session],
            asynchronous=asynchronous,
        )
        user = _User(server, place, directory)
        updates = events - 1 - len(names)
        with user.process:

            def side(*, client: bool) -> Callable[[int], Figure]:
                def run(_number: int) -> Figure:
                    server.rest()
                    spent, cpu = user.run("updates", updates, client=client)
                    return Figure(1e6 / spent.update_wall, cpu / updates * 1e6, asdict(spent))

                user.run("updates", int(updates * _WARMING), client=client)
                return run

            yield Contest(
                ours=side(client=True),
                ruler=side(client=False),
                notes=lambda outcome: _watch_notes(outcome, updates),
            )


def _call_notes(outcome: Outcome) -> Sequence[str]:
    return ["; ".join(f"a {kind} {_compared(outcome, kind)}" for kind in ("set", "get"))]


def _watch_notes(outcome: Outcome, updates: int) -> Sequence[str]:
    return [f"{updates:,} updates a run; an update {_compared(outcome, 'update')}"]


def _compared(outcome: Outcome, kind: str) -> str:
    """Tell of one kind of call what it takes of the client's CPU, and how long."""
    cpu, wall = f"{kind}_cpu", f"{kind}_wall"
    ours = [pair.ours.details for pair in outcome.pairs]
    ruler = [pair.ruler.details for pair in outcome.pairs]
    ratio = median(one[cpu] / other[cpu] for one, other in zip(ours, ruler, strict=True))
    used, waited = (
        [median(run[name] for run in runs) for runs in (ours, ruler)] for name in (cpu, wall)
    )
    return (
        f"takes {used[0]:,.0f} µs of CPU against {used[1]:,.0f} ({ratio:.2f} ×), "
        f"and {waited[0]:,.0f} µs of time against {waited[1]:,.0f}"
    )
