"""Guarantee 1: an acknowledgement leaves the socket after the sync that covers it.

Shown by the order of system calls. The bridge runs under strace; of each acknowledged
write three are looked up in the trace: the one that wrote its record into the write-ahead
log (known by the request id, which stands in the record's header), the one that sent its
answer (known by the answer's own bytes, which hold offset and epoch), and between the two
a sync that began after the first had ended and ended before the second began.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from snakepit_bridge import bridge_service_pb2 as pb
from tests.bridge_process import BridgeProcess
from tests.strace import STRACE, require_strace

M = TypeVar("M", bound=Message)

SYNCS = ("fdatasync", "fsync")
WRITES = ("pwrite64", "write", "writev")
SENDS = ("sendmsg", "sendto", "write", "writev")
CALLS = ",".join(sorted({*SYNCS, *WRITES, *SENDS}))


class SystemCall(NamedTuple):
    """One call; ``began`` and ``ended`` are line numbers of the trace."""

    name: str
    path: str
    """Of its file descriptor."""
    data: bytes
    result: int
    began: int
    ended: int


class Trace:
    """A finished trace, as lists of what was synced, logged and sent."""

    def __init__(self, text: str) -> None:
        calls = list(_calls(text))
        wal = [call for call in calls if call.path.endswith(".db-wal")]
        self.syncs = [c for c in wal if c.name in SYNCS and c.result == 0]
        self.logged = [c for c in wal if c.name in WRITES]
        self.sent = [c for c in calls if c.name in SENDS and c.path.startswith("socket:")]
        (ready,) = (c for c in calls if c.name == "write" and b"GRPC_READY:" in c.data)
        self.ready = ready.ended

    def assert_synced_before_answered(self, request_id: str, answer: bytes) -> None:
        framed = b"\0" + len(answer).to_bytes(4, "big") + answer
        logged = next(c for c in self.logged if request_id.encode() in c.data)
        sent = next(c for c in self.sent if framed in c.data)
        assert logged.ended < sent.began, f"{request_id}: answered before it was written"
        assert any(logged.ended < s.began and s.ended < sent.began for s in self.syncs), (
            f"{request_id}: written at line {logged.ended} of the trace, answered at line "
            f"{sent.began}, and no sync of the write-ahead log in between"
        )


_WHOLE = re.compile(r"(\w+)\(\d+<([^>]*)>(.*)\) += (-?\d+)")
_BEGUN = re.compile(r"(\w+)\(\d+<([^>]*)>(.*) <unfinished \.\.\.>")
_ENDED = re.compile(r"<\.\.\. \w+ resumed>.*\) += (-?\d+)")
_BYTES = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


def _calls(text: str) -> Iterator[SystemCall]:
    begun: dict[str, tuple[str, str, bytes, int]] = {}
    for number, line in enumerate(text.splitlines()):
        thread, _, call = line.partition(" ")
        call = call.lstrip()
        if match := _WHOLE.match(call):
            name, path, rest, result = match.groups()
            yield SystemCall(name, _text(path), _data(rest), int(result), number, number)
        elif match := _BEGUN.match(call):
            name, path, rest = match.groups()
            begun[thread] = (name, _text(path), _data(rest), number)
        elif (match := _ENDED.match(call)) and thread in begun:
            name, path, data, began = begun.pop(thread)
            yield SystemCall(name, path, data, int(match[1]), began, number)


def _bytes(escaped: str) -> bytes:
    return bytes.fromhex(escaped.replace("\\x", ""))


def _text(path: str) -> str:
    return _bytes(path).decode() if path.startswith("\\x") else path


def _data(arguments: str) -> bytes:
    return b"".join(_bytes(part) for part in _BYTES.findall(arguments))


@pytest.fixture(autouse=True)
def _strace() -> None:
    require_strace()


class Traced:
    """A bridge under strace, and what it acknowledged."""

    def __init__(self, bridge: BridgeProcess, trace_file: Path) -> None:
        self.acknowledged: dict[str, bytes] = {}
        self._bridge = bridge
        self._trace_file = trace_file

    def call(self, method: str, request: Any, response: type[M]) -> M:  # noqa: ANN401 - any request
        """Call with a request id of its own; keeps the answer's bytes as they came."""
        request.request_id = f"request-{len(self.acknowledged)}-{os.urandom(8).hex()}"
        raw: Callable[[Message], bytes] = self._bridge.channel.unary_unary(
            f"/snakepit.bridge.BridgeService/{method}",
            request_serializer=type(request).SerializeToString,
        )
        answer = raw(request)
        self.acknowledged[request.request_id] = answer
        return response.FromString(answer)

    def register(self, name: str) -> None:
        request = pb.RegisterVariableRequest(
            session_id="s", name=name, type="integer", initial_value=value(0)
        )
        assert self.call("RegisterVariable", request, pb.RegisterVariableResponse).success

    def set(self, name: str, number: int) -> pb.SetVariableResponse:
        request = pb.SetVariableRequest(
            session_id="s", variable_identifier=name, value=value(number)
        )
        return self.call("SetVariable", request, pb.SetVariableResponse)

    def finish(self) -> Trace:
        assert self._bridge.stop() == 0, self._bridge.stderr
        text = self._trace_file.read_text()
        last = rf"^{self._bridge.process.pid} +\+\+\+ exited with 0"
        assert re.search(last, text, re.MULTILINE), "a trace cut short"
        return Trace(text)


@contextmanager
def traced(directory: Path) -> Iterator[Traced]:
    trace_file = directory / "trace"
    # -xx -s: all bytes of every buffer that can hold a record or an answer.
    options = ("-xx", "-s", "65536", "-e", f"trace={CALLS}", "-o", str(trace_file))
    wrapper = (*STRACE, *options)
    with BridgeProcess(directory / "bridge.db", wrapper=wrapper) as bridge:
        yield Traced(bridge, trace_file)


def value(number: int) -> AnyMessage:
    return AnyMessage(type_url="dspex.variables/integer", value=b"%d" % number)


def test_of_sequential_sets_each_is_synced_before_it_is_answered(tmp_path: Path) -> None:
    with traced(tmp_path) as bridge:
        bridge.register("x")
        offsets = [bridge.set("x", number).offset for number in range(100)]
        trace = bridge.finish()
    assert offsets == list(range(3, 103))
    assert sum(sync.began > trace.ready for sync in trace.syncs) >= 100
    for request_id, answer in bridge.acknowledged.items():
        trace.assert_synced_before_answered(request_id, answer)


def test_of_concurrent_sets_each_is_synced_before_it_is_answered(tmp_path: Path) -> None:
    names = [f"x{n}" for n in range(16)]
    with traced(tmp_path) as bridge, ThreadPoolExecutor(len(names)) as callers:
        for name in names:
            bridge.register(name)
        for _ in callers.map(lambda name: [bridge.set(name, n) for n in range(10)], names):
            pass
        trace = bridge.finish()
    assert len(bridge.acknowledged) == 16 + 160
    for request_id, answer in bridge.acknowledged.items():
        trace.assert_synced_before_answered(request_id, answer)


def test_every_writing_method_is_synced_before_it_is_answered(tmp_path: Path) -> None:
    with traced(tmp_path) as bridge:
        start = pb.InitializeSessionRequest(session_id="s")
        bridge.call("InitializeSession", start, pb.InitializeSessionResponse)
        bridge.register("x")
        bridge.set("x", 1)
        for atomic in (True, False):
            batch = pb.BatchSetVariablesRequest(
                session_id="s", updates={"x": value(2)}, atomic=atomic
            )
            bridge.call("SetVariables", batch, pb.BatchSetVariablesResponse)
        back = pb.RollbackVariableRequest(session_id="s", variable_identifier="x", target_version=1)
        bridge.call("RollbackVariable", back, pb.RollbackVariableResponse)
        away = pb.DeleteVariableRequest(session_id="s", variable_identifier="x")
        bridge.call("DeleteVariable", away, pb.DeleteVariableResponse)
        end = pb.CleanupSessionRequest(session_id="s")
        bridge.call("CleanupSession", end, pb.CleanupSessionResponse)
        trace = bridge.finish()
    assert len(bridge.acknowledged) == 8
    for request_id, answer in bridge.acknowledged.items():
        trace.assert_synced_before_answered(request_id, answer)
