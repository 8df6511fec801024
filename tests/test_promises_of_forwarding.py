"""What a worker promises beside its answers: what goes along to the shared bridge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest

from snakepit_bridge.forwarding import FORWARDED
from tests.bridge_process import BridgeProcess
from tests.test_forwarding import TRACED
from tests.test_forwarding_trouble import token_file, worker_of
from tests.watches import watch
from tests.wire_session import METHODS, Session, packed, plain

DEADLINE = 47.0
"""Seconds that a client waits; nothing of ours is as long."""

STEP = 10.0
"""Seconds that a call may take to the shared bridge."""


class Arrived(NamedTuple):
    """A call as the shared bridge sees it."""

    method: str
    headers: Sequence[tuple[str, str | bytes]]
    remaining: float
    """Seconds until its client stops waiting; centuries if it never does."""

    def values(self, header: str) -> list[str | bytes]:
        return [value for key, value in self.headers if key == header]


class Recorder(grpc.GenericRpcHandler):  # type: ignore[misc, unused-ignore]
    """In the place of the shared bridge: notes what arrives, and answers with nothing."""

    def __init__(self) -> None:
        self._arrived: list[Arrived] = []

    def service(self, handler_call_details: Any) -> Any:  # noqa: ANN401 - gRPC's
        method = handler_call_details.method.rpartition("/")[2]

        def note(_: bytes, context: Any) -> bytes:  # noqa: ANN401 - as above
            headers = [(key, value) for key, value in context.invocation_metadata()]
            self._arrived.append(Arrived(method, headers, context.time_remaining()))
            return b""

        def note_and_end(raw: bytes, context: Any) -> Iterator[bytes]:  # noqa: ANN401 - as above
            note(raw, context)
            yield from ()

        if METHODS[method].server_streaming:
            return grpc.unary_stream_rpc_method_handler(note_and_end)
        return grpc.unary_unary_rpc_method_handler(note)

    @property
    def of_clients(self) -> list[Arrived]:
        """Without what a worker asks by itself, at its start."""
        return [each for each in self._arrived if each.values("traceparent")]


@contextmanager
def recording() -> Iterator[tuple[Recorder, int]]:
    """A recorder that is served, and on which port."""
    recorder = Recorder()
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((recorder,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield recorder, port
    finally:
        server.stop(0).wait()


def ask_all(bridge: BridgeProcess, headers: Sequence[tuple[str, str]]) -> None:
    """Call each method that is forwarded, with a request that says nothing."""
    channel: Any = bridge.channel
    for method in FORWARDED:
        path = f"/snakepit.bridge.BridgeService/{method}"
        if METHODS[method].server_streaming:
            call = channel.unary_stream(path)
            assert list(call(b"", timeout=DEADLINE, metadata=headers)) == []
        else:
            channel.unary_unary(path)(b"", timeout=DEADLINE, metadata=headers)


@pytest.mark.parametrize("locked", [False, True])
def test_each_call_goes_on_with_what_is_for_the_shared_bridge(tmp_path: Path, locked: bool) -> None:
    theirs, to_shared = token_file(tmp_path, "shared")
    ours, to_worker = token_file(tmp_path, "worker")
    files = ["--token-file", str(ours)]
    if locked:
        files += ["--bridge-token-file", str(theirs)]
    with recording() as (recorder, port), worker_of(port, *files) as worker:
        ask_all(worker, (*TRACED, ("x-own", "of the client"), *to_worker))
        assert [each.method for each in recorder.of_clients] == list(FORWARDED)
        for arrived in recorder.of_clients:
            for header, value in TRACED:
                assert arrived.values(header) == [value], arrived
            # The token of a client is for this worker only, which has one of its own.
            wanted = [value for _, value in to_shared] if locked else []
            assert arrived.values("authorization") == wanted, arrived
            assert arrived.values("x-own") == [], arrived
            assert DEADLINE - STEP < arrived.remaining <= DEADLINE + 1, arrived
        assert worker.stop() == 0


def test_a_watch_is_opened_with_the_token_of_the_worker(tmp_path: Path) -> None:
    theirs, _ = token_file(tmp_path, "shared")
    ours, to_worker = token_file(tmp_path, "worker")
    files = ("--token-file", str(ours), "--bridge-token-file", str(theirs))
    with (
        BridgeProcess(tmp_path / "bridge.db", "--token-file", str(theirs)) as shared,
        worker_of(shared.port, *files) as worker,
    ):
        session = Session(worker, "watched")
        new = {"name": "x", "type": "integer", "initial_value": packed(1)}
        session.call("RegisterVariable", to_worker, **new)
        with watch(session, "x", headers=to_worker, include_initial_values=True) as watched:
            assert plain(watched.next().variable.value) == 1
            session.call("SetVariable", to_worker, variable_identifier="x", value=packed(2))
            assert plain(watched.next().variable.value) == 2
