"""The ruler of batch sets: rows of the same bytes into SQLite, and nothing else.

``python -m benchmarks.plain FILE --rows N --size BYTES`` writes N rows of BYTES bytes by
``executemany``, 64 to a transaction, in WAL mode with a sync at each commit, and prints
what it took as JSON. No two rows are equal.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import sqlite3
import time

__all__ = ["ROWS_PER_COMMIT"]

ROWS_PER_COMMIT = 64


def _write(path: str, count: int, size: int) -> dict[str, float]:
    # One buffer of random bytes; each row begins with its own number.
    filling = os.urandom(max(0, size - 8))
    rows = iter([((number.to_bytes(8) + filling)[:size],) for number in range(count)])
    store = sqlite3.connect(path, isolation_level=None)
    store.execute("PRAGMA journal_mode = WAL")
    store.execute("PRAGMA synchronous = FULL")
    store.execute("CREATE TABLE IF NOT EXISTS rows (id INTEGER PRIMARY KEY, bytes BLOB NOT NULL)")
    before = store.execute("SELECT count(*), coalesce(sum(length(bytes)), 0) FROM rows").fetchone()
    cpu, started = _cpu(), time.perf_counter()
    while batch := list(itertools.islice(rows, ROWS_PER_COMMIT)):
        store.execute("BEGIN IMMEDIATE")
        store.executemany("INSERT INTO rows (bytes) VALUES (?)", batch)
        store.execute("COMMIT")
    seconds, cpu = time.perf_counter() - started, _cpu() - cpu
    after = store.execute("SELECT count(*), sum(length(bytes)) FROM rows").fetchone()
    store.close()
    return {
        "rows": after[0] - before[0],
        "bytes": after[1] - before[1],
        "seconds": seconds,
        "cpu_seconds": cpu,
    }


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Write the rows and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plain", description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--size", type=int, required=True)
    arguments = parser.parse_args()
    print(json.dumps(_write(arguments.file, arguments.rows, arguments.size)))


if __name__ == "__main__":
    main()
