"""The request ids that a log remembers, so that a retry is answered and not repeated.

Part of the projection: what is remembered follows from the records alone, the last 65,536
requests of them. It is kept in three layers, because nearly every request is new, and
because opening a long session must not cost the reading of 65,536 entries:

* *unread*: headers of records folded since the last lookup. Folding a million records
  thereby costs no more than remembering where the last of them lie.
* *recent*: a dictionary of what came since the last snapshot.
* *table*: what the last snapshot knew, 56 bytes an entry, sorted by key. It comes from the
  file as it is, and a lookup searches in it.

An entry's *order* counts all that was ever remembered. One is forgotten when 65,536
others came after it, which needs nothing to be removed from the table.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from hashlib import blake2b, sha256
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from snakepit_bridge.errors import DataLoss
from snakepit_bridge.event_log_pb2 import Record

__all__ = ["REMEMBERED_REQUESTS", "Remembered", "RequestTable"]

REMEMBERED_REQUESTS = 65_536
"""How many accepted requests a log remembers; the oldest are forgotten first."""

METHODS = (
    "",
    "InitializeSession",
    "CleanupSession",
    "RegisterVariable",
    "SetVariable",
    "SetVariables",
    "DeleteVariable",
    "RollbackVariable",
    "StartOptimization",
    "StopOptimization",
    "RegisterTools",
    "ExecuteTool",
    "ExecuteStreamingTool",
    "ExecuteElixirTool",
)
"""Their places are stored: new ones are added at the end."""

_ROW = np.dtype(
    [
        ("key", "<u8"),  # BLAKE2b of id and key, its first half: what rows are sorted by
        ("key_rest", "<u8"),
        ("digest", "S16"),  # BLAKE2b of the payload
        ("first_offset", "<u8"),
        ("order", "<u8"),
        ("version", "<i4"),
        ("method", "<u4"),
    ]
)


_HEAD = struct.Struct("<32sQ")
"""SHA-256 of what follows, and how many were ever remembered; then the rows."""

_CHECK = 32

_NO_ROWS = np.empty(0, _ROW)


class Remembered(NamedTuple):
    """What is kept of an accepted request; its answer is in the log."""

    method: str
    digest: bytes
    """16 bytes, of the payload."""
    first_offset: int
    """Of the transaction that it became."""
    version: int
    """That its last event made; 0 where it made none."""
    order: int
    """How many were remembered before it."""


class RequestTable:
    """Owned by one ``SessionState``, and as little shared between threads as that."""

    __slots__ = ("_fetch", "_in_rows", "_keys", "_recent", "_rows", "_unread", "count")

    def __init__(self, encoded: bytes = b"", fetch: Callable[[], bytes] | None = None) -> None:
        """Open what ``encode`` gave; empty without.

        :param fetch: reads it when it is first needed, which for most sessions is never.
        :raises DataLoss: these are not the bytes that it gave.
        """
        self._fetch = fetch
        self.count = 0
        """How many were ever remembered (fewer after a fold that left the first unread)."""
        self._rows: NDArray[Any] = _NO_ROWS
        self._in_rows = 0
        """How many were remembered when the rows were written."""
        self._keys: memoryview | None = None
        self._recent: dict[bytes, Remembered] = {}
        self._unread: deque[bytes] = deque(maxlen=REMEMBERED_REQUESTS)
        if encoded:
            self._open(encoded)

    def fetch(self) -> None:
        """Read the table if that was put off.

        :raises DataLoss: its bytes have changed.
        """
        if self._fetch is not None:
            self._open(self._fetch())
            self._fetch = None

    def _open(self, encoded: bytes) -> None:
        rows = memoryview(encoded)[_HEAD.size :]
        if len(encoded) < _HEAD.size or len(rows) % _ROW.itemsize:
            raise DataLoss(f"{len(encoded)} bytes are no table of requests")
        check, count = _HEAD.unpack_from(encoded)
        if sha256(memoryview(encoded)[_CHECK:]).digest() != check:
            raise DataLoss("the table of requests is damaged: its bytes have changed")
        self.count = self._in_rows = count
        self._rows, self._keys = np.frombuffer(rows, _ROW), None

    def __len__(self) -> int:
        self._read()
        oldest = self.count - REMEMBERED_REQUESTS
        return int((self._rows["order"].astype(np.int64) >= oldest).sum()) + len(self._recent)

    def note(self, header: bytes) -> None:
        """Take a record that has a request.

        A record adds at least one entry, so beyond 65,536 unread ones the first has nothing
        left to say.
        """
        self._unread.append(header)

    def find(self, request_id: str, key: str = "") -> Remembered | None:
        """What is remembered of a request, or of one key of its batch."""
        if self._unread or self._fetch is not None:
            self._read()
        return self._find(_key(request_id, key))

    def _find(self, key: bytes) -> Remembered | None:
        known = self._recent.get(key)
        if known is None and len(self._rows):
            known = self._in_table(key)
        if known is None or known.order < self.count - REMEMBERED_REQUESTS:
            return None
        return known

    def _in_table(self, key: bytes) -> Remembered | None:
        if self._keys is None:
            self._keys = memoryview(self._rows["key"].astype(np.uint64).tobytes()).cast("Q")
        half = int.from_bytes(key[:8], "little")
        rest = int.from_bytes(key[8:], "little")
        index = bisect_left(self._keys, half)
        while index < len(self._keys) and self._keys[index] == half:
            _, row_rest, digest, first_offset, order, version, method = self._rows[index].tolist()
            if row_rest == rest:
                # numpy drops the zeros that a byte string ends with.
                return Remembered(
                    METHODS[method], digest.ljust(16, b"\0"), first_offset, version, order
                )
            index += 1
        return None

    def _read(self) -> None:
        self.fetch()  # entries are counted on from there
        unread, recent = self._unread, self._recent
        for header in unread:
            record = Record.FromString(header)
            request = record.request
            first = Remembered(
                request.method, request.digest, record.first_offset, _version(record), self.count
            )
            whole = _key(request.id, "")
            if not request.key:
                self._add(whole, first)
                continue
            if record.events[0].HasField("tool_finished"):
                self._add(_key(request.id, request.key), first)
                continue  # what began it stands for itself
            # Beside its keys the batch is remembered as a whole, so that its id is not
            # taken for another request.
            if self._find(whole) is None:
                self._add(whole, first._replace(version=0))
            self._add(_key(request.id, request.key), first._replace(order=self.count))
        unread.clear()
        while len(recent) > REMEMBERED_REQUESTS:
            del recent[next(iter(recent))]

    def _add(self, key: bytes, entry: Remembered) -> None:
        # At the end also when a forgotten one comes again: what is deleted is the oldest.
        self._recent.pop(key, None)
        self._recent[key] = entry
        self.count += 1

    def copy(self) -> RequestTable:
        """An equal one of its own, for another thread to encode."""
        twin = RequestTable(fetch=self._fetch)
        twin.count, twin._rows, twin._keys = self.count, self._rows, self._keys
        twin._in_rows = self._in_rows
        twin._recent = dict(self._recent)
        twin._unread = self._unread.copy()
        return twin

    def encode(self) -> bytes:
        """The table of all that is remembered."""
        self._read()
        oldest = self.count - REMEMBERED_REQUESTS
        new = {key: known for key, known in self._recent.items() if known.order >= oldest}
        fresh = np.empty(len(new), _ROW)
        keys = np.frombuffer(b"".join(new), "<u8").reshape(-1, 2)
        fresh["key"], fresh["key_rest"] = keys[:, 0], keys[:, 1]
        fresh["digest"] = [known.digest for known in new.values()]
        fresh["first_offset"] = [known.first_offset for known in new.values()]
        fresh["order"] = [known.order for known in new.values()]
        fresh["version"] = [known.version for known in new.values()]
        fresh["method"] = [METHODS.index(known.method) for known in new.values()]
        kept = self._rows[self._rows["order"].astype(np.int64) >= oldest]
        rows = np.concatenate([kept, fresh])
        order = np.argsort(rows["key"], kind="stable")
        content = self.count.to_bytes(8, "little") + rows[order].tobytes()
        return sha256(content).digest() + content

    def adopt(self, encoded: bytes) -> None:
        """Take what an earlier copy encoded, and keep apart only what came since."""
        earlier = RequestTable(encoded)
        self._read()
        if earlier.count < self._in_rows:
            return  # of an older copy than the one that was taken last
        self._in_rows = earlier.count
        self._rows, self._keys = earlier._rows, None
        self._recent = {
            key: known for key, known in self._recent.items() if known.order >= earlier.count
        }

    def entries(self) -> dict[bytes, Remembered]:
        """All that is remembered, by the digest of id and key."""
        table = RequestTable(self.encode())
        keys = (_key_of(row) for row in table._rows)
        return {key: known for key in keys if (known := table._find(key)) is not None}


def _key_of(row: Any) -> bytes:  # noqa: ANN401 - numpy's
    return int(row["key"]).to_bytes(8, "little") + int(row["key_rest"]).to_bytes(8, "little")


def _key(request_id: str, key: str) -> bytes:
    # A key is a variable's name or id and holds no NUL, so no two pairs are written the same.
    return blake2b(f"{request_id}\0{key}".encode(), digest_size=16).digest()


def _version(record: Record) -> int:
    last = record.events[-1]
    return last.variable_set.version if last.HasField("variable_set") else 0
