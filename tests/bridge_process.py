"""A real bridge in a process of its own, for tests that speak to it over a socket."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from snakepit_bridge import bridge_service_pb2_grpc as stubs

START_TIMEOUT = 30.0
STOP_TIMEOUT = 30.0

UNLIMITED = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
)


class BridgeProcess:
    """``snakepit-bridge serve`` on any free port; ready when the constructor returns."""

    def __init__(
        self,
        log: Path | str,
        *arguments: str,
        wrapper: Sequence[str] = (),
        environment: dict[str, str] | None = None,
    ) -> None:
        url = log if isinstance(log, str) else f"sqlite:{log}"
        command = [sys.executable, "-m", "snakepit_bridge.server", "--port", "0", "--log", url]
        self.process = subprocess.Popen(
            [*wrapper, *command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self.stderr_lines: list[str] = []
        self._stderr = threading.Thread(target=self._drain_stderr, daemon=True)
        self._stderr.start()
        self.port = self._wait_until_ready()
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.port}", options=UNLIMITED)
        self.stub: Any = stubs.BridgeServiceStub(self.channel)

    def _drain_stderr(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.stderr_lines.append(line)

    def _wait_until_ready(self) -> int:
        timer = threading.Timer(START_TIMEOUT, self.process.kill)
        timer.start()
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        timer.cancel()
        if not line.startswith("GRPC_READY:"):
            self.process.kill()
            self._reap()
            raise AssertionError(f"no readiness but {line!r}:\n{''.join(self.stderr_lines)}")
        return int(line.removeprefix("GRPC_READY:"))

    def kill(self) -> None:
        """``kill -9``."""
        self.channel.close()
        self.process.kill()
        self._reap()

    def stop(self) -> int:
        """SIGTERM; gives the exit code."""
        self.channel.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self._reap()

    def _reap(self) -> int:
        code = self.process.wait(timeout=STOP_TIMEOUT)
        self._stderr.join()
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()
        return code

    @property
    def stderr(self) -> str:
        return "".join(self.stderr_lines)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.returncode is None:
            self.kill()
