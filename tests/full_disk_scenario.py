"""A bridge on a disk that is full, and then is not: one whole story.

``test_full_disk`` runs it as a program in a mount namespace of its own, on a small tmpfs::

    python -m tests.full_disk_scenario DIRECTORY [--large] [--reader] [--kill]

Clients write on sessions of their own until the disk is full and on: another file takes
what the log has left. Every refusal has to say what to do, reads have to go on, of sessions
that nobody has touched since the start too, and health stays SERVING. Then the other file
goes, and writing has to resume by itself. Everybody keeps what they were told, and it is
compared with what the bridge serves: then, after ``kill -9``, and after a clean stop.

It ends with a line of JSON that says what happened.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from snakepit_bridge.events.sqlite import SqliteLog
from tests.bridge_process import BridgeProcess
from tests.wire_session import Session, plain

WRITERS = 8
IDLE = 8
REFUSALS = 12
"""That each writer meets before room is made."""
RESUMES_WITHIN = 10.0
"""Seconds from when there is room to the first write that succeeds."""
DEADLINE = 60.0


class Told(NamedTuple):
    """What an acknowledgement said."""

    offset: int
    version: int
    value: str


class Refusal(NamedTuple):
    code: str
    message: str

    @property
    def unknown(self) -> bool:
        return "outcome is unknown" in self.message


class Writer:
    """One client: a session, a variable, and all that was said about its writes."""

    def __init__(self, number: int, *, large: bool) -> None:
        self.session = f"writer {number}"
        self.told: dict[str, Told] = {}
        """By request id."""
        self.possible: set[str] = set()
        """Requests of which it is not known whether they are stored."""
        self.refused: set[str] = set()
        """Requests that were refused and not sent again."""
        self.refusals: list[Refusal] = []
        self._values: dict[str, str] = {}
        self._random = random.Random(number)
        self._size = 20_000 if large else 200
        self._count = 0

    def register(self, bridge: BridgeProcess) -> None:
        Session(bridge, self.session).register("x", "", "string", request_id="first")

    def write_until_refused(self, bridge: BridgeProcess, times: int) -> None:
        session = Session(bridge, self.session)
        until = time.monotonic() + DEADLINE
        while len(self.refusals) < times:
            assert time.monotonic() < until, "the disk does not get full"
            before = len(self.refusals)
            self.write(bridge)
            if len(self.refusals) > before:
                self.read(session)

    def write(self, bridge: BridgeProcess, id_: str = "") -> bool:
        """Write, or write again; gives whether it was accepted."""
        if not id_:
            self._count += 1
            id_ = f"request {self._count}"
            self._values[id_] = self._random.randbytes(self._size // 2).hex()
        value = self._values[id_]
        session = Session(bridge, self.session)
        try:
            answer = session.set("x", value, "string", request_id=id_)
        except grpc.RpcError as error:
            refusal = Refusal(error.code().name, error.details() or "")
            self.refusals.append(refusal)
            if refusal.unknown:
                self.possible.add(id_)
            elif self._random.random() < 0.5 and self.write(bridge, id_):
                return True
            elif id_ not in self.possible:
                self.refused.add(id_)
            return False
        now = Told(answer.offset, answer.new_version, value)
        assert self.told.setdefault(id_, now) == now
        assert not answer.duplicate or id_ in self.possible, f"{id_} was done though refused"
        self.possible.discard(id_)
        self.refused.discard(id_)
        return True

    def read(self, session: Session) -> None:
        """Reading goes on; what is not known to be stored is not shown before it is."""
        variable = session.get("x")
        versions = {told.version: told.value for told in self.told.values()}
        if variable.version in versions:
            assert plain(variable.value) == versions[variable.version]
        assert variable.version >= max(versions, default=1)

    def go_on(self, bridge: BridgeProcess) -> None:
        for _ in range(10):
            assert self.write(bridge), f"there is room, and: {self.refusals[-1]}"

    def retry(self, bridge: BridgeProcess) -> None:
        """Send all again whose outcome is unknown."""
        for id_ in sorted(self.possible):
            assert self.write(bridge, id_), self.refusals[-1]

    def verify(self, bridge: BridgeProcess) -> None:
        """Everything told is there once, and nothing that was refused."""
        entries = list(history(Session(bridge, self.session)))
        stored = {e.request_id: Told(e.offset, e.version, plain(e.value)) for e in entries}
        assert len(stored) == len(entries), "a request is stored twice"
        del stored["first"]
        missing = self.told.items() - stored.items()
        assert not missing, f"lost: {[(id_, told[:2]) for id_, told in missing]}"
        appeared = stored.keys() - self.told.keys() - self.possible
        assert not appeared, f"refused, and stored: {appeared}"
        offsets = sorted(told.offset for told in stored.values())
        assert offsets == list(range(3, 3 + len(offsets)))


def history(session: Session) -> Iterator[Any]:
    token = ""
    while True:
        page = session.history("x", **({"page_token": token} if token else {}))
        yield from page.entries
        token = page.next_page_token
        if not token:
            return


class Filler:
    """Another file on the disk."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def take_all(self, but: int = 0) -> None:
        """Leave only so many bytes, if there are more."""
        with self._path.open("ab") as file, contextlib.suppress(OSError):
            while (free := shutil.disk_usage(self._path.parent).free - but) > 0:
                os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), min(free, 65_536))
                file.seek(0, os.SEEK_END)

    def give_back(self) -> None:
        self._path.unlink()


@contextlib.contextmanager
def open_read_transaction(path: Path) -> Iterator[None]:
    """Another process that looks at the database and does not end."""
    program = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "c.execute('BEGIN'); c.execute('SELECT count(*) FROM records').fetchone();"
        "print('reading', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "reading\n"
        yield
        child.kill()


def require_serving(bridge: BridgeProcess) -> None:
    health: Any = health_pb2_grpc.HealthStub(bridge.channel)
    answer = health.Check(health_pb2.HealthCheckRequest(), timeout=30)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


class Story:
    def __init__(self, directory: Path, *, large: bool, reader: bool) -> None:
        # While another process reads, each refusal may take SQLite's busy timeout.
        self._refusals = 1 if reader else REFUSALS
        writers = 2 if reader else WRITERS
        self.log = directory / "bridge.db"
        self.filler = Filler(directory / "filler")
        self.writers = [Writer(number, large=large) for number in range(writers)]
        self.report: dict[str, Any] = {}
        self._idle = [f"idle {number}" for number in range(IDLE)]

    def begin(self) -> None:
        """Leave sessions behind that the next bridge has not loaded."""
        with BridgeProcess(self.log) as bridge:
            for name in self._idle:
                Session(bridge, name).register("x", name, "string")
            assert bridge.stop() == 0

    def read_idle(self, bridge: BridgeProcess) -> None:
        """Of one session that was not read before."""
        name = self._idle.pop()
        began = time.monotonic()
        assert plain(Session(bridge, name).get("x").value) == name
        took = round(time.monotonic() - began, 2)
        self.report.setdefault("seconds to read an idle session", []).append(took)

    def each(self, do: Callable[[Writer], object]) -> None:
        with ThreadPoolExecutor(len(self.writers)) as threads:
            list(threads.map(do, self.writers))

    def fill(self, bridge: BridgeProcess) -> None:
        """Write until the disk is full and on; at the first refusal nothing more is left."""
        done = threading.Event()

        def take_the_rest() -> None:
            while not done.wait(0.01):
                if any(writer.refusals for writer in self.writers):
                    self.filler.take_all()

        self.filler.take_all(but=3 << 20)
        with ThreadPoolExecutor(1) as thread:
            taking = thread.submit(take_the_rest)
            try:
                self.each(lambda writer: writer.write_until_refused(bridge, self._refusals))
            finally:
                done.set()
            taking.result()
        require_serving(bridge)
        self.read_idle(bridge)

    def resume(self, bridge: BridgeProcess) -> None:
        """Nobody does anything but write."""
        self.filler.give_back()
        began = time.monotonic()
        while not self.writers[0].write(bridge):
            assert time.monotonic() < began + RESUMES_WITHIN, self.writers[0].refusals[-1]
            time.sleep(0.05)  # as a client that backs off
        self.report["resumed after seconds"] = round(time.monotonic() - began, 2)
        self.each(lambda writer: writer.go_on(bridge))
        self.each(lambda writer: writer.retry(bridge))

    def verify(self, bridge: BridgeProcess) -> None:
        self.each(lambda writer: writer.verify(bridge))

    def verify_copy(self, directory: Path) -> None:
        """What the files hold that a kill has left, opened where there is room."""
        for suffix in ("", "-wal"):
            if Path(f"{self.log}{suffix}").exists():
                shutil.copy(f"{self.log}{suffix}", directory / f"bridge.db{suffix}")
        with BridgeProcess(directory / "bridge.db") as bridge:
            self.verify(bridge)
        with contextlib.closing(SqliteLog(directory / "bridge.db")) as engine:
            check = engine._writer.execute("PRAGMA integrity_check").fetchone()
            assert check == ("ok",)

    def count(self) -> None:
        refusals = [refusal for writer in self.writers for refusal in writer.refusals]
        self.report |= {
            "acknowledged": sum(len(writer.told) for writer in self.writers),
            "refused for good": sum(len(writer.refused) for writer in self.writers),
            "refusals": Counter(refusal.code for refusal in refusals),
            "messages": Counter(f"{code}: {message}" for code, message in refusals),
            "unknown": sum(refusal.unknown for refusal in refusals),
        }


def main(
    directory: Path,
    scratch: Path,
    *,
    large: Annotated[bool, typer.Option(help="Values above 4 KiB.")] = False,
    reader: Annotated[bool, typer.Option(help="Another process reads meanwhile.")] = False,
    kill: Annotated[bool, typer.Option(help="Kill the bridge while the disk is full.")] = False,
) -> None:
    story = Story(directory, large=large, reader=reader)
    story.begin()
    try:
        with BridgeProcess(story.log) as bridge:
            story.each(lambda writer: writer.register(bridge))
            with open_read_transaction(story.log) if reader else contextlib.nullcontext():
                story.fill(bridge)
            if kill:
                bridge.kill()
            else:
                story.resume(bridge)
                story.verify(bridge)
                bridge.kill()
        if kill:
            story.verify_copy(scratch)
            with BridgeProcess(story.log) as bridge:  # on a disk that is full
                story.report["started on a full disk"] = True
                story.verify(bridge)
                story.read_idle(bridge)
                require_serving(bridge)
                story.each(lambda writer: writer.write(bridge))
                story.resume(bridge)
                story.verify(bridge)
                bridge.kill()
        with BridgeProcess(story.log) as bridge:
            story.verify(bridge)
            assert bridge.stop() == 0, bridge.stderr
        with BridgeProcess(story.log) as bridge:
            story.verify(bridge)
            assert bridge.stop() == 0, bridge.stderr
            assert "Traceback" not in bridge.stderr
    finally:
        story.count()
        print(json.dumps(story.report), flush=True)  # noqa: T201 - the program's result


if __name__ == "__main__":
    typer.run(main)
