"""What the tests with hostile clients share: a victim, a bystander, and raw bytes.

The victim is a session that no refused request may change. The bystander is a second
client with a session of its own, who must be served while a hostile request is under way:
it pings and sets its variable for as long as that takes, and at least once.
"""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge import bridge_service_pb2_grpc as stubs
from snakepit_bridge.events.model import LogId
from snakepit_bridge.events.sqlite import SqliteLog
from tests.bridge_process import UNLIMITED, BridgeProcess
from tests.direct import folded
from tests.test_error_table import VALUES, fault_of
from tests.wire_session import METHODS, Session, packed

AT_ONCE = 5.0
"""Seconds in which every hostile request, and everybody else's meanwhile, is answered."""

MIB = 1024 * 1024

SLACK = 64 * MIB
"""Memory that any request may take for a while; the process itself has about 70 MiB."""

BLOW_UP = 32
"""Times a request's size that the process may grow while it is answered. What reads JSON
makes 29 bytes of one: ``{"a":1},`` becomes a dictionary of 232."""

PATH = "/snakepit.bridge.BridgeService/"


def varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def field(number: int, content: bytes) -> bytes:
    """Encode a length-delimited field, whatever its content."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def own_channel(port: int) -> Any:  # noqa: ANN401 - stubs have no types
    """Give a channel with a connection of its own."""
    options = (*UNLIMITED, ("grpc.use_local_subchannel_pool", 1))
    return grpc.insecure_channel(f"127.0.0.1:{port}", options=options)


class Memory(NamedTuple):
    """Resident bytes of a process: now, and the most there ever were."""

    now: int
    peak: int


def memory_of(process: int) -> Memory:
    """Read it from ``/proc``; zeros where there is none, which pass every bound."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return Memory(0, 0)
    found = dict(re.findall(r"(VmRSS|VmHWM):\s+(\d+) kB", status))
    return Memory(int(found["VmRSS"]) * 1024, int(found["VmHWM"]) * 1024)


class Answer(NamedTuple):
    code: str
    reason: str = ""
    message: str = ""
    field: str = ""
    raw: bytes = b""
    """The response, if there is one."""


class FirstAnswer:
    """A stream as far as its first message, to be used as the future of a unary call."""

    def __init__(self, call: Any) -> None:  # noqa: ANN401 - stubs have no types
        self._call = call
        self._first: Future[bytes] = Future()
        self.done, self.result = self._first.done, self._first.result
        self.details, self.trailing_metadata = call.details, call.trailing_metadata
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self) -> None:
        try:
            self._first.set_result(next(self._call, b""))
        except grpc.RpcError as error:
            self._first.set_exception(error)
        self._call.cancel()

    def code(self) -> grpc.StatusCode:
        """OK as soon as there is a message; for it the stream is then ended."""
        if self._first.exception() is None:
            return grpc.StatusCode.OK
        code: grpc.StatusCode = self._call.code()
        return code


def begin(
    channel: Any,  # noqa: ANN401 - stubs have no types
    method: str,
    request: bytes,
    headers: Sequence[tuple[str, str | bytes]] = (),
) -> Any:  # noqa: ANN401 - a call's future
    """Call any method with bytes; of a stream the first message is its answer."""
    if METHODS[method].server_streaming:
        call = channel.unary_stream(PATH + method)
        return FirstAnswer(call(request, timeout=AT_ONCE, metadata=headers))
    call = channel.unary_unary(PATH + method)
    return call.future(request, timeout=AT_ONCE, metadata=headers)


def answer_of(call: Any) -> Answer:  # noqa: ANN401 - a call's future
    """Read a finished call. A refusal by the bridge must be complete: see ``fault_of``."""
    try:
        return Answer("OK", raw=call.result())
    except grpc.RpcError:
        return Answer(*fault_of(call))


class Bystander:
    """Another client, with a connection and a session of its own."""

    def __init__(self, port: int, session_id: str = "bystander") -> None:
        self.channel = own_channel(port)
        self._stub: Any = stubs.BridgeServiceStub(self.channel)
        self._set = pb.SetVariableRequest(
            session_id=session_id, variable_identifier="steps", value=packed(1)
        )
        self._stub.RegisterVariable(
            pb.RegisterVariableRequest(
                session_id=session_id, name="steps", type="integer", initial_value=packed(0)
            ),
            timeout=AT_ONCE,
        )
        self.version = 1

    def step(self) -> None:
        """Ping, and set a variable."""
        assert self._stub.Ping(pb.PingRequest(message="here"), timeout=AT_ONCE).message
        version = self._stub.SetVariable(self._set, timeout=AT_ONCE).new_version
        assert version > self.version
        self.version = version

    def step_until(self, done: Callable[[], bool]) -> None:
        """Step until something is done, at least once."""
        self.step()
        while not done():
            self.step()


class State(NamedTuple):
    """What a refused request leaves as it was."""

    head: int
    logs: int
    records: int
    large_values: int


class Victim:
    """A session with a variable of each type, named by its type, at a bridge of its own."""

    def __init__(self, log: Path, *arguments: str) -> None:
        """:param arguments: for the bridge, beside its log."""
        self.log = log
        self.bridge = BridgeProcess(log, *arguments)
        self.session = Session(self.bridge, "victim")
        for type_, value in VALUES.items():
            self.session.register(type_, value, type_)
        self.bystander = Bystander(self.bridge.port)

    def close(self) -> None:
        """Stop the bridge, which must have lived through it all. Idempotent."""
        if self.bridge.process.returncode == 0:
            return
        self.bystander.channel.close()
        assert self.bridge.process.poll() is None, self.bridge.stderr
        assert self.bridge.stop() == 0

    @property
    def tracebacks(self) -> list[str]:
        """Lines of its stderr that tell of a failure inside; complete once it is closed."""
        lines = self.bridge.stderr_lines
        return [line for line in lines if "Traceback" in line or " ERROR " in line]

    @property
    def memory(self) -> Memory:
        return memory_of(self.bridge.process.pid)

    def state(self) -> State:
        """The victim's head, and how many rows the file has beside those of the bystander."""
        file = sqlite3.connect(f"file:{self.log}?mode=ro", uri=True)
        try:
            records = """SELECT count(*) FROM records JOIN logs ON logs.id = records.log
                WHERE session_id != 'bystander'"""
            counts = [
                file.execute(query).fetchone()[0]
                for query in (
                    "SELECT count(*) FROM logs",
                    records,
                    "SELECT count(*) FROM large_values",
                )
            ]
        finally:
            file.close()
        return State(self.session.head, *counts)

    def send(
        self, method: str, request: bytes, headers: Sequence[tuple[str, str | bytes]] = ()
    ) -> Answer:
        """Send bytes while the bystander is busy; bounds are those of the module."""
        before = self.memory
        call = begin(self.bridge.channel, method, request, headers)
        self.bystander.step_until(call.done)
        answer = answer_of(call)
        after = self.memory
        bound = before.now + BLOW_UP * len(request) + SLACK
        assert after.now <= bound, f"{(after.now - before.now) // MIB} MiB more"
        assert after.peak <= max(before.peak, bound), f"{(after.peak - before.now) // MIB} MiB"
        return answer


def folded_heads(log: Path) -> dict[str, int]:
    """Fold every log of a file, whose digests must hold; gives the newest head by session."""
    file = sqlite3.connect(f"file:{log}?mode=ro", uri=True)
    ids = [LogId(*row) for row in file.execute("SELECT session_id, epoch FROM logs ORDER BY id")]
    file.close()
    engine = SqliteLog(log)
    try:
        return {id_.session_id: folded(engine, id_).head for id_ in ids}
    finally:
        engine.close()
