"""Guarantee 10 with a disk that fails and works again, without anybody's help.

Here SQLite itself meets the errors, at every step of a commit, of a checkpoint and of
settling, because the disk below it is a simulated one (``tests.disk``). After each: nothing
acknowledged is lost or doubled, what was refused does not appear, neither after a crash.
"""

from __future__ import annotations

import contextlib
import logging
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

from snakepit_bridge.commands import LoadSession, RegisterVariable, SetVariable
from snakepit_bridge.errors import BridgeError, OutcomeUnknown, ResourceExhausted, Unavailable
from snakepit_bridge.events.model import Envelope
from snakepit_bridge.events.reading import fold
from snakepit_bridge.events.tasks import Outcome
from tests.direct import Direct, integer
from tests.disk import Disk, DiskLog, Operation

WRITES = 14
"""In which there are two checkpoints."""
ATTEMPTS = 100

IO_ERRORS = {
    "write": apsw.SQLITE_IOERR_WRITE,
    "sync": apsw.SQLITE_IOERR_FSYNC,
    "truncate": apsw.SQLITE_IOERR_TRUNCATE,
}
FAULTS = {
    "everything": IO_ERRORS,
    "syncs": {"sync": apsw.SQLITE_IOERR_FSYNC},
    "no room": {"write": apsw.SQLITE_FULL},
}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Hundreds of failures on purpose need not be reported."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


class Client:
    """Writes one after the other, and keeps what it was told."""

    def __init__(self, direct: Direct) -> None:
        self.told: dict[str, int] = {}
        """Request id to offset."""
        self.possible: set[str] = set()
        self.refusals: list[BridgeError] = []
        self._direct = direct

    def write(self, id_: str) -> bool:
        """Whether it was accepted."""
        command = SetVariable(Envelope("s", id_), "x", integer(len(self.told)))
        (result,) = self._direct.ask_all(command)
        if isinstance(result, Outcome):
            offset = result.answer.offset
            assert self.told.setdefault(id_, offset) == offset
            assert not result.answer.duplicate or id_ in self.possible
            self.possible.discard(id_)
            return True
        assert isinstance(result, Unavailable | ResourceExhausted), result
        self.refusals.append(result)
        if isinstance(result, OutcomeUnknown):
            self.possible.add(id_)
        return False

    def write_on(self, count: int, on_refusal: Callable[[], None] = lambda: None) -> None:
        """Write so often; each again until it is accepted, or given up and another one."""
        for number in range(count):
            id_ = f"request {len(self.told)}.{number}"
            for attempt in range(ATTEMPTS):
                if self.write(id_):
                    break
                on_refusal()
                if attempt % 2 and id_ not in self.possible:
                    id_ += "'"  # this one must never appear
            else:
                raise AssertionError(f"writing does not resume: {self.refusals[-1]}")

    def verify(self, engine: DiskLog) -> None:
        head = engine.latest("s")
        assert head is not None
        stored: dict[str, int] = {}
        for transaction in fold(engine, head.log):
            id_ = transaction.record.request.id
            assert id_ not in stored, f"{id_} is stored twice"
            stored[id_] = transaction.last_offset
        del stored["first"]
        missing = self.told.items() - stored.items()
        assert not missing, f"lost: {missing}"
        assert stored.keys() - self.told.keys() <= self.possible, "refused, and stored"


@contextlib.contextmanager
def running(directory: Path, **pragmas: int) -> Iterator[tuple[Disk, DiskLog, Direct]]:
    """A committer on a disk, with session "s" that has x, and "idle" with nothing."""
    directory.mkdir()
    with Disk(directory, random.Random(1)) as disk:
        for session in ("idle", "s"):
            with Direct(DiskLog(disk)) as direct:
                register = RegisterVariable(Envelope(session, "first"), "x", "integer", integer(0))
                direct.ask(register)
        engine = DiskLog(disk, wal_autocheckpoint=12, **pragmas)
        with Direct(engine) as direct:
            direct.ask(LoadSession(Envelope("s")))
            yield disk, engine, direct


def verify_crashed(disk: Disk, client: Client) -> None:
    """What another process finds after ``kill -9`` now."""
    directory = disk.directory.with_name("crashed")
    directory.mkdir()
    for file in disk.directory.glob("bridge.db*"):
        if file.name in ("bridge.db", "bridge.db-wal"):
            shutil.copy(file, directory)
    with Disk(directory, random.Random(1)) as copy, contextlib.closing(DiskLog(copy)) as engine:
        client.verify(engine)
        assert engine._writer.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    shutil.rmtree(directory)


def failing(
    disk: Disk, codes: dict[str, int], after: int, times: int
) -> Callable[[Operation], int | None]:
    """Of the operations that can fail, all work until ``after``, then ``times`` do not."""
    begin, left = disk.operations + after, times

    def strike(operation: Operation) -> int | None:
        nonlocal left
        if operation.number < begin or not left or operation.kind not in codes:
            return None
        left -= 1
        return codes[operation.kind]

    return strike


@pytest.mark.parametrize("held", [False, True], ids=["", "while a reader holds on"])
@pytest.mark.parametrize("fault", ["everything", "syncs", "no room"])
def test_operations_that_fail_lose_nothing_and_writing_resumes(
    tmp_path: Path, fault: str, held: bool
) -> None:
    refusals = 0
    for after in range(1, 62, 4):
        times = (1, 2, 3, 7, 40)[after // 4 % 5]
        pragmas = {"busy_timeout": 1} if held else {}
        with running(tmp_path / "live", **pragmas) as (disk, engine, direct):
            client = Client(direct)
            with contextlib.ExitStack() as stack:
                if held:
                    reader = stack.enter_context(contextlib.closing(engine._connect()))
                    reader.execute("BEGIN")
                    reader.execute("SELECT count(*) FROM records")
                disk.strike = failing(disk, FAULTS[fault], after, times)

                def on_refusal(
                    client: Client = client, disk: Disk = disk, held: contextlib.ExitStack = stack
                ) -> None:
                    if len(client.refusals) < 3:
                        verify_crashed(disk, client)
                    if len(client.refusals) > 5:
                        held.close()

                client.write_on(WRITES, on_refusal)
            refusals += len(client.refusals)
            client.verify(engine)
            verify_crashed(disk, client)
        verify_crashed(disk, client)  # or rather closed
        shutil.rmtree(disk.directory)
    assert refusals > 10


def test_a_disk_that_may_only_be_read_for_a_while(tmp_path: Path) -> None:
    """As when the kernel remounts it after an error, and somebody back again."""
    with running(tmp_path / "live") as (disk, engine, direct):
        client = Client(direct)
        client.write_on(3)
        disk.read_only = True
        for number in range(5):
            assert not client.write(f"refused {number}")
            verify_crashed(disk, client)
        assert direct.loaded("s").committed.head == 2 + 3
        # Of a session that nobody has touched since the start, too.
        assert isinstance(direct.ask(LoadSession(Envelope("idle"))), Outcome)
        disk.read_only = False
        client.write_on(3)
        client.verify(engine)
        verify_crashed(disk, client)


@pytest.mark.parametrize("broken", ["readable", "openable"])
def test_reading_that_fails_is_told_and_works_again(tmp_path: Path, broken: str) -> None:
    with running(tmp_path / "live") as (disk, engine, direct):
        while not engine._readers.empty():
            engine._readers.get_nowait().close()
        with contextlib.closing(engine._connect()) as other:
            # No page is in memory that SQLite could answer from.
            other.execute("CREATE TABLE something_else (x)")
        setattr(disk, broken, False)
        for _ in range(2):
            with pytest.raises(Unavailable, match="the log cannot be used"):
                direct.ask(LoadSession(Envelope("idle")))
        setattr(disk, broken, True)
        assert direct.ask(LoadSession(Envelope("idle"))).answer.offset == 2
        Client(direct).write_on(3)


def test_the_simulated_errors_are_those_of_sqlite3(tmp_path: Path) -> None:
    with running(tmp_path / "live") as (disk, engine, _):
        disk.strike = failing(disk, {"sync": apsw.SQLITE_IOERR_FSYNC}, 1, 1)
        with pytest.raises(sqlite3.OperationalError) as caught:
            engine._writer.execute("CREATE TABLE something_else (x)")
        assert caught.value.sqlite_errorname == "SQLITE_IOERR_FSYNC"
        assert caught.value.sqlite_errorcode == sqlite3.SQLITE_IOERR_FSYNC
