"""The processes under measurement: starting them, knowing when they are ready, stopping them.

A process that was started here is ended here, by its own id: when its block is left, at
the latest when this interpreter exits.
"""

from __future__ import annotations

import atexit
import contextlib
import queue
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Self

from benchmarks.errors import BenchmarkError, NotMeasured
from benchmarks.proc import cpu_of_threads

__all__ = [
    "BRIDGE",
    "PYTHON",
    "ROOT",
    "Server",
    "bare",
    "bridge",
    "echo",
    "etcd",
    "fan_out",
    "log_file",
]

ROOT = Path(__file__).resolve().parent.parent

PYTHON = sys.executable
# How the bridge is started, before `sqlite:FILE` of its log.
BRIDGE = (PYTHON, "-m", "snakepit_bridge.server", "--port", "0", "--log")

_READY = "GRPC_READY:"
_READY_LIMIT = 30.0  # seconds
_STOP_LIMIT = 10.0
_QUIET = 0.05  # seconds without CPU time after which a process has nothing left to do
_QUIET_LIMIT = 30.0

_running: set[subprocess.Popen[str]] = set()


class Server:
    """A process that serves on 127.0.0.1 for as long as the block of its ``with`` lasts.

    It is ready when the block begins. ``directory`` receives its standard error.

    :raises BenchmarkError: on entering, it cannot be started or does not become ready.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        directory: Path,
        ready: Callable[[Server], None] | None = None,
        *,
        listens: bool = False,
    ) -> None:
        """Prepare a process; without ``ready``, it is one that prints GRPC_READY:port.

        One that ``listens`` is told things with ``say``.
        """
        self.name = name
        self.pid = self.port = 0
        self.seconds = 0.0  # from its start to its readiness
        self._command = command
        self._errors = directory / f"{name}.stderr"
        self._wait = ready or _prints_port
        self._listens = listens
        self._lines: queue.SimpleQueue[tuple[float, str]] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        """Start the process and wait until it is ready."""
        self.started = time.perf_counter()
        try:
            with self._errors.open("w", encoding="utf-8") as errors:
                self._process = subprocess.Popen(
                    self._command,
                    cwd=ROOT,
                    stdin=subprocess.PIPE if self._listens else subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                )
        except OSError as error:
            raise BenchmarkError(f"{self.name} cannot be started: {error}") from error
        _running.add(self._process)
        self.pid = self._process.pid
        assert self._process.stdout is not None
        # For as long as the process lives: one whose output nobody reads would block.
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()
        try:
            self._wait(self)
        except BaseException:
            _end(self._process)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End the process: SIGTERM, then SIGKILL."""
        _end(self._process)

    def kill(self) -> None:
        """End the process by SIGKILL: it gets to do nothing more."""
        self._process.kill()
        self._process.wait(_STOP_LIMIT)

    def say(self, line: str) -> None:
        """Write a line to a process that listens."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self.fault("died") from error

    def line(self, beginning: str, seconds: float = _READY_LIMIT) -> tuple[float, str]:
        """Wait for a line of standard output; return when it came and its rest."""
        limit = time.perf_counter() + seconds
        while True:
            try:
                moment, line = self._lines.get(timeout=max(0.0, limit - time.perf_counter()))
            except queue.Empty:
                raise self.fault(f"was not ready within {seconds:g} s") from None
            if not line:
                raise self.fault("ended too early")
            if line.startswith(beginning):
                return moment, line.removeprefix(beginning).strip()

    def rest(self) -> None:
        """Wait until the process uses no CPU time, having done what it does when it is alone.

        That is a look at small files after a bridge's start, or letting go of many streams.
        """
        limit = time.monotonic() + _QUIET_LIMIT
        before = -1.0
        while (now := cpu_of_threads(self.pid)) - before > _QUIET / 50:
            if time.monotonic() > limit:
                raise self.fault("did not come to rest")
            before = now
            time.sleep(_QUIET)

    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def fault(self, words: str) -> BenchmarkError:
        """Return an error that says what this server did, with its last words."""
        lines = self._errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return BenchmarkError(f"{self.name} {words}" + (f": {lines[-1]}" if lines else ""))

    def _read(self, output: IO[str]) -> None:
        for line in output:
            self._lines.put((time.perf_counter(), line))
        self._lines.put((time.perf_counter(), ""))


def bridge(directory: Path, prefix: Sequence[str] = (), options: Sequence[str] = ()) -> Server:
    """Return the bridge, on an SQLite log in ``directory``.

    Its command stands after ``prefix`` and ends with ``options``.
    """
    command = (*prefix, *BRIDGE, f"sqlite:{log_file(directory)}", *options)
    return Server("bridge", command, directory)


def log_file(directory: Path) -> Path:
    """Return the file of the bridge's log in ``directory``."""
    return directory / "log.db"


def bare(directory: Path, reply: bytes) -> Server:
    """Return the bare server with its constant."""
    command = (sys.executable, "-m", "benchmarks.bare", "--reply", reply.hex())
    return Server("bare", command, directory)


def echo(directory: Path) -> Server:
    """Return the bare server that gives every request back, of any size."""
    return Server("echo", (sys.executable, "-m", "benchmarks.bare", "--echo"), directory)


def fan_out(directory: Path, reply: bytes = b"", update: bytes = b"") -> Server:
    """Return the bare server that passes a constant on to streams."""
    command = (sys.executable, "-m", "benchmarks.fan_out")
    options = ("--reply", reply.hex(), "--update", update.hex())
    return Server("fan_out", (*command, *options), directory)


def etcd(directory: Path) -> Server:
    """Return an etcd with its default durability, its data in ``directory``.

    :raises NotMeasured: etcd is not installed.
    """
    program = shutil.which("etcd")
    if program is None:
        raise NotMeasured("etcd is not installed: apt-get install etcd-server")
    port = _free_port()
    client, peer = (f"http://127.0.0.1:{number}" for number in (port, _free_port()))
    command = (
        program,
        f"--data-dir={directory / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--log-level=error",
    )
    server = Server("etcd", command, directory, _accepts)
    server.port = port
    return server


def _prints_port(server: Server) -> None:
    moment, port = server.line(_READY)
    server.port = int(port)
    server.seconds = moment - server.started


def _accepts(server: Server) -> None:
    limit = time.perf_counter() + _READY_LIMIT
    while time.perf_counter() < limit:
        if not server.alive():
            raise server.fault("ended before it was ready")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.port), 1):
            server.seconds = time.perf_counter() - server.started
            return
        time.sleep(0.05)
    raise server.fault(f"was not ready within {_READY_LIMIT:g} s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_STOP_LIMIT)
    _running.discard(process)


@atexit.register
def _end_all() -> None:
    for process in list(_running):
        _end(process)
