"""Guarantee 9: corruption is found, not served.

A bridge writes, stops and is damaged while it is down. One byte of a stored record harms
its own session; one byte of the structure of the file stops all writing.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import grpc
import pytest

from tests.bridge_process import BridgeProcess
from tests.wire_session import Session, plain, refused

FOUND_WITHIN = 10.0
"""Seconds after the start in which damage of the structure stops writing."""
PAGE = 4096
LARGE = "a large value " * 1_000
VERSIONS = 60
"""Of each variable: enough for several pages of records."""

SESSIONS = ("a", "b")
LARGE_AT = 3
"""Offset of the event with the large value; sets of the other variable go on from there."""
DAMAGED_AT = 20

ONE = {
    column: f'SELECT "{column}", rowid FROM records WHERE first_offset = {DAMAGED_AT} AND log = '
    "(SELECT id FROM logs WHERE session_id = 'a')"
    for column in ("header", "values", "digest")
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log with two sessions, closed in order."""
    path = tmp_path_factory.mktemp("whole") / "bridge.db"
    with BridgeProcess(path) as bridge:
        for session in (Session(bridge, name) for name in SESSIONS):
            session.register("x", "", "string")
            session.register("y", LARGE + session.id, "string")
            for number in range(VERSIONS):
                session.set("x", f"version {number} " * 20, "string")
            assert session.head == LARGE_AT + VERSIONS
        assert bridge.stop() == 0
    return path


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copy(whole, tmp_path))


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0x01]) + data[place + 1 :]


def rows(path: Path) -> list[tuple[object, ...]]:
    """Everything that session "a" stored."""
    with closing(sqlite3.connect(path)) as file:
        found = file.execute(
            "SELECT records.* FROM records JOIN logs ON logs.id = log"
            " WHERE session_id = 'a' ORDER BY first_offset"
        ).fetchall()
        return found + file.execute("SELECT * FROM large_values ORDER BY digest").fetchall()


def damage_record(path: Path, column: str) -> None:
    with closing(sqlite3.connect(path)) as file, file:
        data, rowid = file.execute(ONE[column]).fetchone()
        file.execute(
            f'UPDATE records SET "{column}" = ? WHERE rowid = ?',
            (flipped(data, len(data) // 2), rowid),
        )


def damage_large_value(path: Path) -> None:
    with closing(sqlite3.connect(path)) as file, file:
        found = file.execute('SELECT rowid, "any" FROM large_values').fetchall()
        (rowid, data) = next(row for row in found if row[1].endswith(b'a"'))
        file.execute(
            'UPDATE large_values SET "any" = ? WHERE rowid = ?', (flipped(data, 9_000), rowid)
        )


@pytest.mark.parametrize("what", ["header", "values", "digest", "large value"])
def test_a_flipped_byte_of_a_record_is_told_with_its_offset(path: Path, what: str) -> None:
    if what == "large value":
        damage_large_value(path)
    else:
        damage_record(path, what)
    offset = LARGE_AT if what == "large value" else DAMAGED_AT
    damaged = rows(path)
    with BridgeProcess(path) as bridge:
        harmed, other = Session(bridge, "a"), Session(bridge, "b")
        with refused("DATA_LOSS", f"offset {offset}"):
            harmed.get("x")
        with refused("DATA_LOSS", f"offset {offset}"):
            harmed.set("x", "new", "string")
        with refused("DATA_LOSS", f"offset {offset}"):
            harmed.history("x")
        with refused("DATA_LOSS", f"offset {offset}"):
            harmed.call("GetSession")
        assert plain(other.get("x").value) == f"version {VERSIONS - 1} " * 20
        assert other.set("x", "new", "string").offset == LARGE_AT + VERSIONS + 1
        assert len(other.history("x").entries) == 1 + VERSIONS + 1
        assert Session(bridge, "new").register("x").offset == 2
        assert bridge.stop() == 0
        assert "Traceback" not in bridge.stderr
    assert rows(path) == damaged


def first_page_of(name: str) -> Callable[[Path], int]:
    """Place of a b-tree's root in the file."""

    def place(path: Path) -> int:
        with closing(sqlite3.connect(path)) as file:
            (page,) = file.execute(
                "SELECT rootpage FROM sqlite_master WHERE name = ?", (name,)
            ).fetchone()
            return (int(page) - 1) * PAGE

    return place


def last_leaf_of_records(path: Path) -> int:
    """Place of the page that the next record goes to."""
    data = path.read_bytes()
    root = first_page_of("records")(path)
    (page,) = (int.from_bytes(data[root + 8 : root + 12], "big"),)  # the right-most child
    return (page - 1) * PAGE


STRUCTURE: dict[str, Callable[[Path], int]] = {
    "root of the records": first_page_of("records"),
    "last leaf of the records": last_leaf_of_records,
    "root of their index": first_page_of("sqlite_autoindex_records_1"),
    "count of free pages in the file's header": lambda _: 39,
}


@pytest.mark.parametrize("where", STRUCTURE)
def test_a_flipped_byte_of_the_structure_stops_writing(path: Path, where: str) -> None:
    place = STRUCTURE[where](path)
    with closing(sqlite3.connect(path)) as file:
        assert file.execute("PRAGMA page_size").fetchone() == (PAGE,)
    path.write_bytes(flipped(path.read_bytes(), place))
    with BridgeProcess(path) as bridge:
        require_writing_stops(bridge)
        # It stays so, for everybody.
        with refused("DATA_LOSS", "damaged", "`snakepit-bridge verify`"):
            Session(bridge, "another").register("x")
        assert bridge.stop() == 0
        assert "Traceback" not in bridge.stderr


def require_writing_stops(bridge: BridgeProcess) -> None:
    session = Session(bridge, "fresh")
    until = time.monotonic() + FOUND_WITHIN
    number = 0
    while True:
        number += 1
        try:
            session.register(f"x{number}")
        except grpc.RpcError as error:
            told = (error.code(), error.details() or "")
            if told[0] is grpc.StatusCode.DATA_LOSS:
                assert "damaged" in told[1]
                assert "`snakepit-bridge verify`" in told[1]
                return
        else:
            told = (grpc.StatusCode.OK, "it was written")
        assert time.monotonic() < until, f"the damage was not found: {told}"
        time.sleep(0.1)


def serve(path: Path) -> subprocess.CompletedProcess[str]:
    """Of a bridge that cannot start."""
    return subprocess.run(
        [sys.executable, "-m", "snakepit_bridge.server", "--port", "0", "--log", f"sqlite:{path}"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "no SQLite file by its first bytes": lambda data: flipped(data, 0),
    "another page size": lambda data: flipped(data, 16),
    "the last page is gone": lambda data: data[:-PAGE],
    "half of it is gone": lambda data: data[: len(data) // 2 // PAGE * PAGE],
    "half a page is left": lambda data: data[: PAGE // 2],
    "half a header is left": lambda data: data[:50],
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_file_that_cannot_be_a_whole_log_is_not_served(path: Path, how: str) -> None:
    damaged = DAMAGES[how](path.read_bytes())
    path.write_bytes(damaged)
    ended = serve(path)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert re.search(r"bridge\.db.*(damaged|malformed|not a database)", ended.stderr), ended.stderr
    assert "Traceback" not in ended.stderr
    assert path.read_bytes() == damaged
