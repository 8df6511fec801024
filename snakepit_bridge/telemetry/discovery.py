"""How Prometheus finds the metrics of a bridge that took any free port: a ``file_sd`` file.

Many bridges, also those in containers of their own, can share one directory, which Prometheus
watches as ``DIR/snakepit-bridge-*.json``. Each file is locked by the bridge that it names for as
long as that lives: the kernel gives the lock up however the process ends. So the next bridge that
starts finds the files of the dead by trying the locks, and removes them; process ids would not
tell, since each container counts its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import logging
import os
import re
import secrets
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from snakepit_bridge.telemetry.exposition import address

__all__ = ["CannotAnnounce", "Target", "announce"]

logger = logging.getLogger(__name__)

LABELS = {"service": "snakepit-bridge"}
"""Of every target. Prometheus adds ``job`` and ``instance``; more would only multiply series."""

LOOKED_AT = 20_000
"""Entries of the directory, when files of the dead are sought: those of as many workers as can
have a slot, twice."""

_OURS = re.compile(r"snakepit-bridge-\d{1,5}-[0-9a-f]{16}\.(json|new)")
"""No other file is ever removed, whoever locked it or did not."""

_EVERYWHERE = {"0.0.0.0", "::"}  # noqa: S104 - nothing is bound here


class CannotAnnounce(OSError):
    """The directory cannot be written; the message says why and what to do."""


class Target:
    """One bridge's file, from ``announce`` to ``withdraw``."""

    def __init__(self, path: Path, file: int) -> None:
        """:param file: descriptor that holds the lock."""
        self.path = path
        self._file = file

    def withdraw(self) -> None:
        """Remove the file. Idempotent; failing that, the next bridge that starts does it."""
        if self._file < 0:
            return
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("the target file %s stays: %s", self.path, error)
        os.close(self._file)
        self._file = -1


def announce(directory: Path, host: str, port: int) -> Target:
    """Write the file of a bridge, whole or not at all, and remove those of bridges that are dead.

    :param directory: made if it is not there.
    :param host: at which its metrics are served; if that is every address, this machine's name is
        written, by which other containers reach it.
    :raises CannotAnnounce: the file cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _remove_stale(directory)
        return _write(directory, socket.gethostname() if host in _EVERYWHERE else host, port)
    except OSError as error:
        raise CannotAnnounce(
            f"the target file for Prometheus cannot be written: {error}; name a directory that "
            "this user may write with --metrics-sd-dir, or leave that out"
        ) from error


def _write(directory: Path, host: str, port: int) -> Target:
    content = json.dumps([{"targets": [address(host, port)], "labels": LABELS}]) + "\n"
    for _ in range(_ATTEMPTS):
        name = f"snakepit-bridge-{port}-{secrets.token_hex(8)}"
        # Prometheus looks at *.json only; so it never sees a file that is not whole.
        temporary = directory / f"{name}.new"
        file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            if _lock(file) and os.fstat(file).st_nlink:
                os.write(file, content.encode())
                os.fsync(file)
                # The lock is on the file, whatever its name.
                temporary.replace(directory / f"{name}.json")
                return Target(directory / f"{name}.json", file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            os.close(file)
            raise
        # A bridge that is starting took it for a dead one's before it was locked, and removes it.
        os.close(file)
    raise OSError(f"each of {_ATTEMPTS} new files in {directory} was removed at once")


_ATTEMPTS = 20
"""One hits the microsecond before the lock rarely; twenty in a row do not."""


def _remove_stale(directory: Path) -> None:
    for path in _ours(directory):
        try:
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:  # gone meanwhile, or another user's
            continue
        try:
            if stat.S_ISREG(os.fstat(file).st_mode) and _lock(file):
                path.unlink(missing_ok=True)
                logger.info("removed the target file of a bridge that is dead: %s", path)
        except OSError as error:
            logger.warning("the target file %s of a dead bridge stays: %s", path, error)
        finally:
            os.close(file)


def _ours(directory: Path) -> Iterator[Path]:
    with os.scandir(directory) as entries:
        for entry in itertools.islice(entries, LOOKED_AT):
            if _OURS.fullmatch(entry.name):
                yield Path(entry.path)


def _lock(file: int) -> bool:
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False
