"""What one watcher received, and whether it is what it must be: each event once, in order."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.message import DecodeError

from benchmarks.errors import BenchmarkError
from snakepit_bridge import bridge_service_pb2 as pb

__all__ = ["Checker", "Received", "delays"]

_HEAD = 5  # bytes before a gRPC message: whether it is compressed, and its length
_MARKS = {"caught_up", "heartbeat"}
_FEW = 1_000  # delays
_KEPT_READ = 50_000  # updates that are not read twice


class Received:
    """The messages of one stream: how many, the last one, and all if they are to be checked."""

    __slots__ = ("count", "kept", "last", "left", "marks", "offset", "opening", "size", "times",
                 "trailer", "versions")  # fmt: skip

    def __init__(self, *, keep: bool) -> None:
        self.count = 0
        self.size = 0
        """Bytes that came since the server was last allowed to send more."""
        self.last = b""
        self.left = b""
        """The beginning of a message whose rest has not come."""
        self.kept: list[bytes] | None = [] if keep else None
        """Messages that were not checked yet, each as it came, with its head."""
        self.times = array("q")
        """When each of these came."""
        self.opening = b""
        self.trailer = b""
        self.offset = -1
        """Where the checker has come; -1 before the first message."""
        self.marks = 0
        self.versions: dict[str, int] = {}

    def take(self, data: bytes, now: int) -> int:
        """Take in bytes that are not just one message; return how many they complete."""
        data = self.left + data
        position = done = 0
        while len(data) - position >= _HEAD:
            end = position + _HEAD + int.from_bytes(data[position + 1 : position + _HEAD])
            if end > len(data):
                break
            self.last = data[position:end]
            if self.kept is not None:
                self.kept.append(self.last)
                self.times.append(now)
            position = end
            done += 1
        self.left = data[position:]
        self.count += done
        return done


class Checker:
    """Looks at what streams received.

    ``constant`` is what a bare server must send each time. The bridge's updates follow
    ``after``; without it the first is ``caught_up`` and says after what. They have the offsets
    that follow one another without a gap, unless the watch skips what it does not want
    (``gaps``).
    """

    def __init__(self, *, constant: bytes | None, after: int | None, gaps: bool) -> None:
        self._constant = constant
        self._after = after
        self._gaps = gaps
        self._read: dict[bytes, tuple[str, int, str, int]] = {}
        self.arrivals = array("q")
        """Of each update that was kept its offset and, after it, when it came."""
        self.starts: set[int] = set()
        """The offsets that the streams began after."""

    def check(self, received: Received) -> None:
        """Check what was kept and forget it.

        :raises BenchmarkError: something is missing, doubled, out of order or not whole.
        """
        if received.kept is None:
            return
        messages, times = received.kept, received.times
        received.kept, received.times = [], array("q")
        if self._constant is not None:
            wrong = sum(message[_HEAD:] != self._constant for message in messages)
            if wrong:
                raise BenchmarkError(f"{wrong} messages of the bare server are not its constant")
            return
        arrivals = self.arrivals
        for message, time in zip(messages, times, strict=True):
            offset = self._follow(received, self._parsed(message))
            if offset:
                arrivals.append(offset)
                arrivals.append(time)

    def close(self, received: Received, start: int) -> None:
        """Check a stream's count; of one that was not kept, by its last message.

        ``start`` is the offset that all of the same moment began after.

        :raises BenchmarkError: messages are missing or doubled.
        """
        self.check(received)
        if self._constant is not None or received.kept is not None or not received.count:
            return
        kind, offset, _, _ = self._parsed(received.last)
        received.offset = offset
        if kind not in _MARKS and not self._gaps and offset - start != received.count - 1:
            raise BenchmarkError(
                f"a watcher got {received.count - 1} updates from {start} to {offset}"
            )

    def _follow(self, received: Received, update: tuple[str, int, str, int]) -> int:
        """Check one update after those before it; return its offset, or 0 if it is a mark."""
        kind, offset, name, version = update
        if received.offset < 0:
            received.offset = self._after if self._after is not None else offset
            self.starts.add(received.offset)
            if self._after is None and kind != "caught_up":
                raise BenchmarkError(f"a watch began with {kind} instead of caught_up")
        if kind in _MARKS:
            received.marks += 1
            if offset != received.offset and not self._gaps:
                raise BenchmarkError(f"{kind} at {offset} came after offset {received.offset}")
            return 0
        if kind != "value_change":
            raise BenchmarkError(f"a watcher got {kind}, which it did not ask for")
        wanted = received.offset + 1
        if offset < wanted or (offset > wanted and not self._gaps):
            raise BenchmarkError(f"a watcher got offset {offset} after {received.offset}")
        if version != received.versions.get(name, version - 1) + 1:
            raise BenchmarkError(f"a watcher got version {version} of {name}: not the next one")
        received.versions[name] = version
        received.offset = offset
        return offset

    def _parsed(self, message: bytes) -> tuple[str, int, str, int]:
        """Return an update's kind, offset, variable and version; most are sent to many."""
        found = self._read.get(message)
        if found is None:
            if message[0]:
                raise BenchmarkError("an update is compressed")
            try:
                update = pb.VariableUpdate.FromString(message[_HEAD:])
            except DecodeError:
                raise BenchmarkError("an update is no VariableUpdate") from None
            variable = update.variable
            found = update.update_type, update.offset, variable.name, variable.version
            if len(self._read) > _KEPT_READ:
                self._read.clear()
            self._read[message] = found
        return found


def delays(arrivals: Sequence[int], sent: Mapping[int, int]) -> dict[str, Any]:
    """Return how many µs passed from sending to arrival of updates whose sets are in ``sent``.

    Of few, each is named.
    """
    took = [
        (time - sent[offset]) / 1e3
        for offset, time in zip(arrivals[::2], arrivals[1::2], strict=True)
        if offset in sent
    ]
    if not took:
        return {"count": 0}
    ordered = sorted(took)
    return {
        "count": len(took),
        "p50": ordered[len(took) // 2],
        "p99": ordered[int(len(took) * 0.99)],
        "most": ordered[-1],
        "each": took if len(took) <= _FEW else [],
    }
