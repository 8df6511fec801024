"""What stops all writing: a damaged file for ever, a missing ballast for a while."""

from __future__ import annotations

import errno
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from snakepit_bridge.commands import RegisterVariable, SetVariable
from snakepit_bridge.errors import BridgeError, DataLoss, ResourceExhausted
from snakepit_bridge.events.model import INLINE_LIMIT, Envelope, LogId
from snakepit_bridge.events.sqlite import SqliteLog
from tests.direct import Direct, integer, wire_value
from tests.test_append_failures import BEFORE, FailingLog

PAGE = 4_096
LARGE = json.dumps("x" * 2 * INLINE_LIMIT)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A log of several pages, with one large value."""
    path = tmp_path / "bridge.db"
    with Direct(SqliteLog(path)) as direct:
        direct.ask(RegisterVariable(Envelope("s"), "x", "string", wire_value("string", LARGE)))
        for number in range(300):
            text = json.dumps(f"{number} " * 30)
            direct.ask(SetVariable(Envelope("s"), "x", wire_value("string", text)))
    return path


def first_leaf(path: Path, table: str) -> int:
    """The place of a b-tree's left-most leaf in the file."""
    data = path.read_bytes()
    with closing(sqlite3.connect(path)) as file:
        query = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        (page,) = file.execute(query, (table,)).fetchone()
    while data[(page - 1) * PAGE] in (2, 5):  # interior pages, of an index or of a table
        start = (page - 1) * PAGE
        cell = start + int.from_bytes(data[start + 12 : start + 14], "big")
        page = int.from_bytes(data[cell : cell + 4], "big")
    return (int(page) - 1) * PAGE


def damage(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x01
    path.write_bytes(data)


@pytest.fixture
def file(path: Path) -> Iterator[Direct]:
    """A bridge on a file whose oldest records lie on a damaged page."""
    damage(path, first_leaf(path, "records"))
    with Direct(SqliteLog(path)) as direct:
        yield direct


def begin(direct: Direct, session: str) -> LogId:
    direct.ask(RegisterVariable(Envelope(session), "x", "integer", integer(1)))
    return direct.loaded(session).id


def test_what_the_check_after_the_start_finds_stops_writing(file: Direct) -> None:
    assert list(file.engine.faults(thorough=False))
    with pytest.raises(DataLoss):
        begin(file, "new")


def test_what_a_reader_finds_stops_writing(file: Direct) -> None:
    head = file.engine.latest("s")
    assert head is not None
    with pytest.raises(DataLoss, match="nothing more is written"):
        list(file.engine.records(head.log))
    with pytest.raises(DataLoss):
        begin(file, "new")


def test_what_one_write_has_found_stops_all_others(path: Path) -> None:
    damage(path, first_leaf(path, "large_values"))
    with Direct(SqliteLog(path)) as direct:
        log = begin(direct, "small")
        large = RegisterVariable(Envelope("large"), "x", "string", wire_value("string", LARGE))
        with pytest.raises(BridgeError):
            direct.ask(large)
        # This one would not meet the damage.
        for _ in range(2):
            with pytest.raises(DataLoss, match="nothing more is written"):
                direct.ask(SetVariable(Envelope("small"), "x", integer(2)))
        head = direct.engine.head(log)
        assert head is not None
        assert head.head == 2


def test_without_its_ballast_nothing_is_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = SqliteLog(path)
    ballast = path.with_name(path.name + ".ballast")
    engine = FailingLog(inner)

    def full() -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    with Direct(engine) as direct:
        log = begin(direct, "a")
        assert ballast.exists()
        engine.failures.append(BEFORE)
        with monkeypatch.context() as patch:
            patch.setattr(inner._ballast, "take", full)
            for number in range(3):
                with pytest.raises(ResourceExhausted, match="disk"):
                    direct.ask(SetVariable(Envelope("a"), "x", integer(number)))
                assert not ballast.exists()
        head = inner.head(log)
        assert head is not None
        assert head.head == 2
        assert direct.ask(SetVariable(Envelope("a"), "x", integer(9))).answer.offset == 3
        assert ballast.exists()
