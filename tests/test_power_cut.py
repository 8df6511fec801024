"""Guarantee 1: what was acknowledged outlives a power cut.

Twenty cuts of each kind; ``python -m tests.power_cut`` does hundreds.
"""

from __future__ import annotations

import contextlib
import logging
import random
import secrets
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from snakepit_bridge.errors import DataLoss
from snakepit_bridge.events.log import AppendError, LogUnusable
from tests.disk import Disk, DiskLog
from tests.engine_contract import LOG, record
from tests.power_cut import Lost, PowerCuts


@pytest.mark.parametrize("failing", [False, True], ids=["", "failing"])
def test_a_power_cut_loses_nothing_and_doubles_nothing(tmp_path: Path, failing: bool) -> None:
    cuts = PowerCuts(tmp_path, secrets.randbits(32), failing=failing)
    cuts.run(rounds=20)
    assert cuts.acknowledged > 20
    assert not failing or cuts.failures


@pytest.mark.parametrize(
    ("synchronous", "noticed"),
    [
        ("NORMAL", Lost),  # syncs at checkpoints only: the file is whole, and lacks the newest
        ("OFF", (AssertionError, DataLoss, sqlite3.DatabaseError, LogUnusable)),
    ],
    ids=["NORMAL", "OFF"],
)
def test_the_simulation_notices_syncs_that_are_missing(
    tmp_path: Path,
    synchronous: str,
    noticed: type[BaseException] | tuple[type[BaseException], ...],
) -> None:
    """Within three rounds as a rule; sometimes the disk keeps all that it was not told to."""
    cuts = PowerCuts(tmp_path, secrets.randbits(32), synchronous=synchronous)
    with pytest.raises(noticed):
        cuts.run(rounds=60)


def test_a_seed_repeats_a_run(tmp_path: Path) -> None:
    runs = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        cuts = PowerCuts(tmp_path / name, 2026, failing=True)
        cuts.run(rounds=3)
        runs.append((cuts.acknowledged, cuts.refused, cuts.failures, cuts.cuts))
    assert runs[0] == runs[1]


RECORDS = [record(number) for number in range(1, 31)]


def begun(disk: Disk) -> DiskLog:
    """An engine whose write-ahead log holds many versions of the same pages."""
    engine = DiskLog(disk)
    for stored in RECORDS:
        engine.append([(LOG, stored)])
    return engine


def opened(disk: Disk) -> None:
    DiskLog(disk).close()


def closed(disk: Disk) -> None:
    begun(disk).close()


def settled(disk: Disk) -> None:
    with contextlib.closing(begun(disk)) as engine:
        engine.settle()
        engine.append([(LOG, record(len(RECORDS) + 1))])


@pytest.fixture
def _quiet() -> Iterator[None]:
    """Hundreds of failures on purpose need not be reported."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("_quiet")
@pytest.mark.parametrize("use", [opened, closed, settled])
def test_a_power_cut_in_each_single_operation(tmp_path: Path, use: Callable[[Disk], None]) -> None:
    """Of opening a file that was not closed, of closing one, and of settling."""
    with files(tmp_path / "begun", {}) as directory, Disk(directory, random.Random(1)) as disk:
        engine = begun(disk)
        first = 1 if use is opened else disk.operations + 1
        disk.power = False
        engine.close()
        image = disk.survivors() if use is opened else {}
    number, cut = first, True
    while cut:
        for seed in range(ATTEMPTS):
            cut, survived = cut_at(tmp_path / "live", image, number, seed, use)
            with files(tmp_path / "survived", survived) as directory:
                verify(directory)
        number += 1
    assert number > first + 5


ATTEMPTS = 12
"""Of each cut, with different changes lost."""


def cut_at(
    directory: Path, image: Mapping[str, bytes], number: int, seed: int, use: Callable[[Disk], None]
) -> tuple[bool, Mapping[str, bytes]]:
    """Whether there was such an operation, and what is left."""
    with files(directory, image), Disk(directory, random.Random(seed)) as disk:
        disk.cut_power_at(number)
        with contextlib.suppress(LogUnusable, AppendError):
            use(disk)
        return not disk.power, disk.survivors()


def verify(directory: Path) -> None:
    with Disk(directory, random.Random(1)) as disk:
        engine = DiskLog(disk)
        found = list(engine.read(LOG))
        assert found[: len(RECORDS)] == RECORDS
        engine.append([(LOG, record(len(found) + 1))])
        assert engine._writer.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        engine.close()


@contextlib.contextmanager
def files(directory: Path, image: Mapping[str, bytes]) -> Iterator[Path]:
    directory.mkdir()
    for name, data in image.items():
        (directory / name).write_bytes(data)
    yield directory
    shutil.rmtree(directory)
