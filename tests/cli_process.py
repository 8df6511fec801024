"""The real ``snakepit-bridge`` command, as a person or a script runs it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COMMAND = str(Path(sys.executable).with_name("snakepit-bridge"))
PATIENCE = 60.0
"""Seconds until what has to come is missing."""


class Shell:
    """Runs commands against one bridge and session."""

    def __init__(self, port: int, session: str, directory: Path) -> None:
        self.directory = directory
        self.environment = {
            **{key: value for key, value in os.environ.items() if key not in _UNWANTED},
            "SNAKEPIT_BRIDGE_TARGET": f"localhost:{port}",
            "SNAKEPIT_BRIDGE_SESSION": session,
        }

    def run(self, *words: str | bytes, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
        """Run to the end, without a terminal; never with a traceback."""
        done = subprocess.run(
            [COMMAND, *words],
            input=stdin,
            capture_output=True,
            cwd=self.directory,
            env=self.environment,
            timeout=PATIENCE,
            check=False,
        )
        out, err = done.stdout.decode(), done.stderr.decode()
        assert "Traceback" not in err, err
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    def says(self, *words: str, stdin: bytes = b"") -> str:
        """What a command that succeeds prints."""
        done = self.run(*words, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout.rstrip("\n")

    def json(self, *words: str) -> Any:  # noqa: ANN401 - any JSON
        """The document that a command prints."""
        return json.loads(self.says(*words, "--json"))

    def refused(self, *words: str | bytes, code: int = 1, stdin: bytes = b"") -> str:
        """What a command that is refused says, as one line."""
        done = self.run(*words, stdin=stdin)
        assert done.returncode == code, (done.stdout, done.stderr)
        assert done.stdout == ""
        return " ".join(done.stderr.replace("│", " ").split())

    def in_terminal(self, *words: str, columns: int = 80, **environment: str) -> str:
        """What a terminal is sent, stdout and stderr together."""
        leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        process = subprocess.Popen(
            [COMMAND, *words],
            stdin=follower,
            stdout=follower,
            stderr=follower,
            cwd=self.directory,
            env={**self.environment, "TERM": "xterm-256color", **environment},
        )
        os.close(follower)
        content = b""
        try:
            while chunk := os.read(leader, 65_536):
                content += chunk
        except OSError:
            pass  # so Linux says that nobody writes to it any more
        finally:
            os.close(leader)
        process.wait(PATIENCE)
        return content.decode().replace("\r\n", "\n")

    @contextmanager
    def watching(self, *words: str) -> Iterator[Watching]:
        """Run ``watch`` in the background."""
        watch = Watching(self, *words)
        try:
            yield watch
        finally:
            watch.kill()


class Watching:
    """A ``watch`` that runs, and what it has printed so far."""

    def __init__(self, shell: Shell, *words: str) -> None:
        self.process = subprocess.Popen(
            [COMMAND, "watch", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=shell.directory,
            env=shell.environment,
        )
        self.lines: list[str] = []
        self.news: list[str] = []
        self._came = threading.Condition()
        self._open = 2
        self._readers = [
            threading.Thread(target=self._read, args=(stream, lines), daemon=True)
            for stream, lines in (
                (self.process.stdout, self.lines),
                (self.process.stderr, self.news),
            )
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: Any, lines: list[str]) -> None:  # noqa: ANN401 - a pipe
        for line in stream:
            with self._came:
                lines.append(line.rstrip("\n"))
                self._came.notify_all()
        with self._came:
            self._open -= 1
            self._came.notify_all()

    def wait_for(self, text: str, times: int = 1) -> None:
        """Wait until so many lines of stdout or stderr hold a text."""

        def count() -> int:
            return sum(text in line for line in (*self.lines, *self.news))

        with self._came:
            self._came.wait_for(lambda: count() >= times or not self._open, PATIENCE)
            assert count() >= times, (text, self.lines, self.news)

    def interrupt(self, number: int = signal.SIGINT) -> int:
        """Ctrl-C; gives the exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """The exit code, once it has ended; never with a traceback."""
        code = self.process.wait(PATIENCE)
        for reader in self._readers:
            reader.join(PATIENCE)
        assert not any("Traceback" in line for line in self.news), self.news
        return code

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)
        for reader in self._readers:
            reader.join(PATIENCE)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


_UNWANTED = {"COLUMNS", "NO_COLOR", "FORCE_COLOR", "SNAKEPIT_BRIDGE_TOKEN_FILE"}
