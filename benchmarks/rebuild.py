"""Going through a whole log: rebuilding a session by our own means, or reading and no more.

``python -m benchmarks.rebuild FILE SESSION EPOCH fold|parse`` prints as JSON what it took, and
what it found. Both sides are fresh processes; modules are loaded before the clock starts.

* ``fold`` is what the bridge does with a session that has no snapshot: records from the
  engine, every digest checked, the state brought up to the last of them.
* ``parse`` is the least that can be done with the same rows: select them and parse header and
  values. Nothing is checked and nothing kept.
"""

from __future__ import annotations

import argparse
import json
import resource
import sqlite3
import time
from contextlib import closing
from typing import Any

from snakepit_bridge.event_log_pb2 import Record, Values
from snakepit_bridge.events.model import LogId
from snakepit_bridge.events.projection import SessionState
from snakepit_bridge.events.reading import replay
from snakepit_bridge.events.sqlite_copy import SqliteCopy

__all__: list[str] = []

_SELECT = """
SELECT first_offset, events, header, "values", digest FROM records
WHERE log = (SELECT id FROM logs WHERE session_id = ? AND epoch = ?) ORDER BY first_offset
"""


def _fold(file: str, log: LogId) -> dict[str, Any]:
    state = SessionState()
    with closing(SqliteCopy(file)) as engine:
        before = _cpu(), time.perf_counter()
        replay(engine, log, state)
        after = _cpu(), time.perf_counter()
        head = engine.head(log)
    found = {
        "events": state.head,
        "whole": head is not None and (head.head, head.digest) == (state.head, state.digest),
        "versions": {v.definition.name: v.version for v in state.variables.values()},
        "remembered": len(state.requests),
    }
    return found | _took(before, after)


def _parse(file: str, log: LogId) -> dict[str, Any]:
    parse_record, parse_values = Record.FromString, Values.FromString
    events = 0
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as store:
        before = _cpu(), time.perf_counter()
        for _offset, _count, header, values, _digest in store.execute(_SELECT, log):
            record = parse_record(header)
            parse_values(values)
            events += len(record.events)
        after = _cpu(), time.perf_counter()
    return {"events": events, "whole": True} | _took(before, after)


def _took(before: tuple[float, float], after: tuple[float, float]) -> dict[str, float]:
    return {"cpu_seconds": after[0] - before[0], "seconds": after[1] - before[1]}


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Go through the log and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rebuild", description=__doc__)
    parser.add_argument("file")
    parser.add_argument("session")
    parser.add_argument("epoch")
    parser.add_argument("how", choices=("fold", "parse"))
    arguments = parser.parse_args()
    how = _fold if arguments.how == "fold" else _parse
    print(json.dumps(how(arguments.file, LogId(arguments.session, arguments.epoch))))


if __name__ == "__main__":
    main()
