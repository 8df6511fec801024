"""How much load each row has, and how much of it at a smaller scale."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.long_logs import VARIABLES
from benchmarks.sides import UPDATES, Shape

__all__ = ["SHAPES", "Scale"]

_VARIABLES = {"sessions": 4, "variables": 8}
_BATCHES = {"sessions": 4, "variables": UPDATES}
# As many keys and about as many bytes a put as a batch has names and bytes an update.
_PUTS = {"keys": 4 * UPDATES, "size": 64}
_LONG = {"sessions": 1, "variables": VARIABLES, "ids": 1}
_WATCHED = {"sessions": 1, "variables": 8}
_OTHER = {"sessions": 1, "variables": 8, "first_session": 1}
# One variable of each session is left for other sets.
_OF_LONG = {"sessions": 4, "variables": VARIABLES - 1}
_TOOLS = {"sessions": 4}
_EVENTS = 1_000_000  # of a long session
_EVICTED = 10_000  # sessions
_ROWS = 200_000  # rows of plain SQLite: about a second
_CHUNKS = 15_000  # of each stream
_CALLS = 1_500  # sets, and as many gets, of one client
_WATCHED_EVENTS = 20_000  # of a log that one client reads

# Four connections share what is in flight, as several clients would. Every run takes one
# or two seconds on a machine of two cores.
SHAPES = {
    "set-32": Shape(work="set", in_flight=32, connections=4, calls=8_000, options=_VARIABLES),
    "set-8": Shape(work="set", in_flight=8, connections=4, calls=6_000, options=_VARIABLES),
    "set-1": Shape(work="set", in_flight=1, connections=1, calls=2_000, options=_VARIABLES),
    "get-32": Shape(work="get", in_flight=32, connections=4, calls=8_000, options=_VARIABLES),
    # Always as long: a run must meet two snapshots of each 10,000 events, see ``long_set``.
    "long-set": Shape(work="set", in_flight=32, connections=4, calls=20_000, options=_LONG),
    "batch": Shape(work="batch", in_flight=8, connections=4, calls=1_200, options=_BATCHES),
    "fan-out": Shape(
        work="set", in_flight=32, connections=4, calls=20_000, seconds=3.0, options=_WATCHED
    ),
    "paced": Shape(work="set", in_flight=8, connections=1, calls=2_500, options=_WATCHED),
    "idle": Shape(work="set", in_flight=32, connections=4, calls=8_000, options=_WATCHED),
    # As many sets as last for all gets.
    "endless": Shape(work="set", in_flight=32, connections=4, calls=100_000, options=_WATCHED),
    "gets": Shape(work="get", in_flight=1, connections=1, calls=1_000, options=_OTHER),
    "catch-up": Shape(
        work="set", in_flight=32, connections=4, calls=20_000, seconds=3.0, options=_OF_LONG
    ),
    "tool-async": Shape(work="tool", in_flight=32, connections=4, calls=6_000, options=_TOOLS),
    "tool-blocking": Shape(
        work="tool", in_flight=32, connections=4, calls=5_000, options={**_TOOLS, "blocking": 1}
    ),
    "tool-once": Shape(
        work="tool", in_flight=32, connections=4, calls=5_000, options={**_TOOLS, "ids": 1}
    ),
    "beside-tools": Shape(
        work="set", in_flight=1, connections=1, calls=3_000, seconds=6.0, options=_OTHER
    ),
    # Threads leave so little of the interpreter that it is time which ends a run.
    "beside-threads": Shape(
        work="set", in_flight=1, connections=1, calls=3_000, seconds=20.0, options=_OTHER
    ),
    "puts": Shape(work="put", in_flight=128, connections=4, calls=30_000, options=_PUTS),
}


@dataclass(frozen=True, slots=True)
class Scale:
    """How thoroughly to measure: the number of pairs, and the part of each run's length.

    ``size`` is the part of the sizes of what rows with long logs, many sessions and large
    values work on.
    """

    pairs: int = 10
    share: float = 1.0
    size: float = 1.0

    def shape(self, name: str) -> Shape:
        """Return a shape at this scale."""
        return SHAPES[name].part(self.share)

    def rows(self) -> int:
        """Return how many rows plain SQLite writes at this scale."""
        return int(_ROWS * self.share)

    def chunks(self) -> int:
        """Return how many chunks a stream has at this scale."""
        return int(_CHUNKS * self.share)

    def events(self) -> int:
        """Return how many events a long session has at this scale."""
        return int(_EVENTS * self.size)

    def evicted(self) -> int:
        """Return how many sessions are evicted at this scale."""
        return int(_EVICTED * self.size)

    def calls(self) -> int:
        """Return how many sets a client makes in a run at this scale, and how many gets."""
        return int(_CALLS * self.share)

    def watched(self) -> int:
        """Return how many events a client's watch reads at this scale."""
        return int(_WATCHED_EVENTS * self.share)
