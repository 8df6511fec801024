"""Workers before a shared bridge that is away, slow, locked, or themselves."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge.tokens import bearer
from tests.bridge_process import BridgeProcess
from tests.snakepit_harness import Pool, Worker, write_python_path
from tests.tool_client import TOOLS, ToolSession, value_of
from tests.watches import Bookmark, at_head, bookmark_of, outline, wait_until, watch
from tests.wire_session import TIMEOUT, Session, packed, plain, refused

MEBIBYTE = 1024 * 1024


def free_port() -> int:
    """A port that is free on both addresses, and stays so for a moment."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        number: int = server.getsockname()[1]
        return number


def worker_of(port: int, *arguments: str) -> BridgeProcess:
    return BridgeProcess("memory:", "--bridge", f"127.0.0.1:{port}", *arguments)


def shared_on(path: Path, port: int, *arguments: str) -> BridgeProcess:
    return BridgeProcess(path, "--port", str(port), *arguments)


@contextmanager
def stopped(bridge: BridgeProcess) -> Iterator[None]:
    """A process that is there and does nothing."""
    bridge.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        bridge.process.send_signal(signal.SIGCONT)


# Away.


def test_a_shared_bridge_that_dies_and_comes_back(tmp_path: Path) -> None:
    port = free_port()
    path = tmp_path / "bridge.db"
    with worker_of(port, *TOOLS) as worker:
        session = ToolSession(worker, "survives")
        with refused("UNAVAILABLE", f"127.0.0.1:{port}", "cannot be reached", "same request_id"):
            session.start()
        # What is not about sessions goes on.
        assert worker.stub.Ping(pb.PingRequest(), timeout=TIMEOUT).message == "pong: "
        assert session.value("add", {"a": 1}) == 2

        first = shared_on(path, port)
        wait_until(lambda: answers(session), "the worker has found it", patience=5)
        session.register("x", 0)
        watched = at_head(session, "x", include_initial_values=True)
        session.set("x", 1)
        bookmark = bookmark_of(watched.next())
        first.kill()
        taken, fault = rest_of(watched)
        assert taken == []
        assert fault[0] == "UNAVAILABLE"
        assert "last bookmark" in fault[1]
        for use in (
            lambda: session.get("x"),
            lambda: session.set("x", 2),
            lambda: watch(session).next(),
        ):
            with refused("UNAVAILABLE", f"127.0.0.1:{port}", "cannot be reached"):
                use()
        answer = session.run("set_variable", {"name": "x", "value": 2}, timeout=TIMEOUT)
        assert answer.metadata["error_type"] == "Unavailable"

        with shared_on(path, port) as second:
            begun = time.monotonic()
            wait_until(lambda: answers(session), "the worker has found it again", patience=5)
            assert time.monotonic() - begun < 5
            with watch(session, "x", **bookmark.fields) as again:
                session.set("x", 2)
                assert outline([again.next()]) == [("value_change", 4, "x", 2)]
            assert session.value("set_variable", {"name": "x", "value": 3}) == 4
            assert second.stop() == 0
        assert worker.stop() == 0
        assert f"the shared bridge at 127.0.0.1:{port} does not answer" in worker.stderr


def done(use: Callable[[], object], unless: grpc.StatusCode) -> bool:
    """Whether a call is answered; any other refusal than this one is raised."""
    try:
        use()
    except grpc.RpcError as error:
        if error.code() is not unless:
            raise
        return False
    return True


def answers(session: Session) -> bool:
    return done(session.start, grpc.StatusCode.UNAVAILABLE)


def rest_of(watched: Any) -> tuple[list[Any], tuple[str, str]]:  # noqa: ANN401 - a watch
    taken, fault = watched.to_fault()
    return taken, (fault.code, fault.message)


def test_every_change_is_seen_once_while_bridges_are_killed(tmp_path: Path) -> None:
    """A watcher goes from worker to worker, while each of them and the shared bridge is killed."""
    port = free_port()
    path = tmp_path / "bridge.db"
    bridges = [shared_on(path, port), worker_of(port), worker_of(port)]
    seen: list[int] = []
    try:
        Session(bridges[1], "killed").register("x", 0)
        with watch(Session(bridges[1], "killed"), include_initial_values=True) as first:
            bookmark: Bookmark | None = bookmark_of(first.next())
        for number in range(1, 31):
            writer = Session(bridges[1 + number % 2], "killed")
            reader = Session(bridges[2 - number % 2], "killed")
            once(writer, number)
            bookmark = go_on(reader, bookmark, seen, number)
            if number % 6 == 0:
                which = number // 6 % 3
                bridges[which].kill()
                bridges[which] = shared_on(path, port) if which == 0 else worker_of(port)
    finally:
        for bridge in bridges:
            bridge.kill()
    assert seen == list(range(1, 31))


def once(session: Session, value: int) -> None:
    """Set x, however often that has to be asked for."""

    def set_it() -> object:
        return session.set("x", value, request_id=f"set {value}")

    wait_until(lambda: done(set_it, grpc.StatusCode.UNAVAILABLE), "it is set")


def go_on(session: Session, bookmark: Bookmark | None, seen: list[int], until: int) -> Bookmark:
    """Watch from a bookmark to a value; gives the bookmark after it."""
    assert bookmark is not None
    with watch(session, **bookmark.fields) as watched:
        while not seen or seen[-1] < until:
            update = watched.next()
            bookmark = bookmark_of(update)
            seen.append(plain(update.variable.value))
    return bookmark


def test_a_worker_that_dies_takes_nothing_along(tmp_path: Path) -> None:
    with BridgeProcess(tmp_path / "bridge.db") as shared:
        worker = worker_of(shared.port, *TOOLS)
        session = ToolSession(worker, "lives on")
        session.register("x", 0)
        call = session.begin("ten_sets", {"runs": os.devnull, "at": 3, "go": "/nonexistent/go"})
        itself = Session(shared, "lives on")
        wait_until(lambda: itself.get("x").version == 4, "the tool has set x three times")
        with at_head(itself, "x") as watched:
            worker.kill()
            assert call.exception() is not None
            itself.set("x", 9)
            assert plain(watched.next().variable.value) == 9
        # No watch is left there, and none is counted.
        assert shared.stop() == 0


# Slow.


def test_a_deadline_is_that_of_the_client(tmp_path: Path) -> None:
    with BridgeProcess(tmp_path / "bridge.db") as shared, worker_of(shared.port) as worker:
        session = Session(worker, "late")
        session.register("x", 0)
        request = pb.GetVariableRequest(session_id="late", variable_identifier="x")
        with stopped(shared), refused("DEADLINE_EXCEEDED"):
            worker.stub.GetVariable(request, timeout=0.3)
        watching = pb.WatchVariablesRequest(session_id="late")
        with refused("DEADLINE_EXCEEDED"):
            next(worker.stub.WatchVariables(watching, timeout=0.3))
        assert session.get("x").version == 1


def test_a_watch_that_is_closed_is_closed_there(tmp_path: Path) -> None:
    limited = BridgeProcess(tmp_path / "bridge.db", "--max-watches", "1")
    with limited as shared, worker_of(shared.port) as worker:
        session = Session(worker, "closed")
        session.start()
        for _ in range(5):
            wait_until(lambda: opens(session), "the place of the watch before is free")


def opens(session: Session) -> bool:
    def open_and_close() -> None:
        with at_head(session):
            pass

    return done(open_and_close, grpc.StatusCode.RESOURCE_EXHAUSTED)


def memory_of(bridge: BridgeProcess) -> int:
    """Bytes of a process."""
    content = Path(f"/proc/{bridge.process.pid}/statm").read_text()
    return int(content.split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_slow_watcher_fills_no_memory_and_misses_nothing(tmp_path: Path) -> None:
    count = 150
    with BridgeProcess(tmp_path / "bridge.db") as shared, worker_of(shared.port) as worker:
        session = Session(worker, "slow")
        session.register("x", "", "string")
        slow, fast = at_head(session, "x"), at_head(session, "x")
        before = memory_of(worker)
        for number in range(count):
            session.set("x", f"{number} " + "x" * MEBIBYTE, "string")
            assert plain(fast.next().variable.value).startswith(f"{number} ")
        # What is not read is neither here nor there, but in the log.
        assert memory_of(worker) - before < count * MEBIBYTE // 2
        got = [plain(slow.next().variable.value).split(" ")[0] for _ in range(count)]
        assert got == [str(number) for number in range(count)]


# Stopping.


def test_at_a_stop_watches_end_at_once(tmp_path: Path) -> None:
    with BridgeProcess(tmp_path / "bridge.db") as shared, worker_of(shared.port) as worker:
        session = Session(worker, "stopped")
        session.register("x", "", "string")
        opened = [at_head(session) for _ in range(50)]
        blocked = at_head(session)
        session.set("x", "x" * 3 * MEBIBYTE, "string")
        session.set("x", "y" * 3 * MEBIBYTE, "string")
        for each in opened:
            each.take(2)
        faults: list[tuple[str, str]] = []
        reading = [
            threading.Thread(target=lambda each=each: faults.append(rest_of(each)[1]))
            for each in opened
        ]
        for thread in reading:
            thread.start()
        begun = time.monotonic()
        worker.process.send_signal(signal.SIGTERM)
        for thread in reading:
            thread.join(TIMEOUT)
        assert len(faults) == len(opened)
        assert {fault[0] for fault in faults} == {"UNAVAILABLE"}
        assert all("last bookmark" in fault[1] for fault in faults)
        assert worker.process.wait(TIMEOUT) == 0
        assert time.monotonic() - begun < 10
        blocked.call.cancel()
        assert worker.stop() == 0
        assert Session(shared, "stopped").get("x").version == 3


def test_a_tool_has_the_grace_to_use_its_session(tmp_path: Path) -> None:
    runs, go = tmp_path / "runs", tmp_path / "go"
    with (
        BridgeProcess(tmp_path / "bridge.db") as shared,
        worker_of(shared.port, *TOOLS, "--grace", "30") as worker,
    ):
        session = ToolSession(worker, "grace")
        session.register("x", 0)
        call = session.begin("ten_sets", {"runs": str(runs), "at": 5, "go": str(go)})
        itself = Session(shared, "grace")
        wait_until(lambda: itself.get("x").version == 6, "it has set x five times")
        worker.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "draining" in worker.stderr, "it drains")
        with refused("UNAVAILABLE"):
            session.get("x")
        go.touch()
        assert value_of(call.result()) == "done"
        assert itself.get("x").version == 11
        assert worker.process.wait(TIMEOUT) == 0
        assert worker.stop() == 0


# Locked.


def token_file(directory: Path, name: str) -> tuple[Path, tuple[tuple[str, str], ...]]:
    path = directory / name
    path.write_text(f"{name}-{name}-{name}-{name}\n")
    path.chmod(0o600)
    return path, bearer(path.read_text().strip())


def test_each_bridge_has_a_token_of_its_own(tmp_path: Path) -> None:
    theirs, to_shared = token_file(tmp_path, "shared")
    ours, to_worker = token_file(tmp_path, "worker")
    with (
        BridgeProcess(tmp_path / "bridge.db", "--token-file", str(theirs)) as shared,
        worker_of(
            shared.port,
            *TOOLS,
            *("--token-file", str(ours)),
            *("--bridge-token-file", str(theirs)),
        ) as worker,
        worker_of(shared.port, "--token-file", str(ours)) as wrong,
    ):
        session = ToolSession(worker, "locked")
        new = {"name": "x", "type": "integer", "initial_value": packed(0)}
        session.call("RegisterVariable", to_worker, **new)
        with refused("PERMISSION_DENIED", "--token-file"):
            session.call("GetSession", to_shared)
        with refused("UNAUTHENTICATED"):
            session.call("GetSession")
        for number, way in enumerate(("", "_async", "_isolated"), 1):
            answer = session.run(f"set_variable{way}", {"name": "x", "value": number}, to_worker)
            assert value_of(answer) == number + 1
        itself = Session(shared, "locked")
        found = itself.call("GetVariable", to_shared, variable_identifier="x").variable
        assert plain(found.value) == 3

        # A worker without it says whose fault that is, which is not its client's.
        with refused("FAILED_PRECONDITION", str(shared.port), "--bridge-token-file"):
            Session(wrong, "locked").call("GetSession", to_worker)
        wait_until(lambda: "--bridge-token-file" in wrong.stderr, "it has warned")
        for process in (worker, wrong, shared):
            assert process.stop() == 0
            assert "worker-worker" not in process.stderr
            assert "shared-shared" not in process.stderr


# Itself.


def test_a_worker_before_itself_refuses_in_words(tmp_path: Path) -> None:
    del tmp_path
    port = free_port()
    with worker_of(port, "--port", str(port), *TOOLS) as worker:
        session = ToolSession(worker, "circle")
        with refused("FAILED_PRECONDITION", f"127.0.0.1:{port}", "--bridge", "was here before"):
            session.start()
        with refused("FAILED_PRECONDITION", "was here before"):
            watch(session).next()
        assert session.value("add", {"a": 1}) == 2
        wait_until(lambda: "was here before" in worker.stderr, "it has warned")
        assert worker.stop() == 0


def test_two_workers_before_each_other_refuse_in_words() -> None:
    ports = free_port(), free_port()
    with (
        worker_of(ports[1], "--port", str(ports[0])) as first,
        worker_of(ports[0], "--port", str(ports[1])) as second,
    ):
        for worker in (first, second):
            with refused("FAILED_PRECONDITION", "was here before"):
                Session(worker, "circle").start()


def test_a_worker_before_a_worker_is_a_worker(tmp_path: Path) -> None:
    with (
        BridgeProcess(tmp_path / "bridge.db") as shared,
        worker_of(shared.port) as between,
        worker_of(between.port, *TOOLS) as worker,
    ):
        assert ToolSession(worker, "chain").value("set_variable", {"name": "x", "value": 2}) == 2
        (newest, *_) = Session(shared, "chain").history("x").entries
        assert newest.changed_by == "tool:set_variable"


# The command line.

CLI = "from snakepit_bridge.cli import main; main()"


@pytest.mark.parametrize(
    "address", ["localhost", "localhost:", ":50050", "localhost:0", "a:70000", "a:b"]
)
@pytest.mark.parametrize("command", ["serve", "snakepit"])
def test_an_address_that_is_none_is_refused(command: str, address: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", CLI, command, f"--bridge={address}"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200"},
        check=False,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert "HOST:PORT" in result.stderr


def test_a_token_for_no_bridge_is_refused(tmp_path: Path) -> None:
    path, _ = token_file(tmp_path, "shared")
    result = subprocess.run(
        [sys.executable, "-m", "snakepit_bridge.server", f"--bridge-token-file={path}"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200"},
        check=False,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert "--bridge" in result.stderr


async def test_workers_of_snakepit_share_a_bridge(tmp_path: Path) -> None:
    pool = Pool(tmp_path, "0.13", write_python_path(tmp_path))._replace(log_level="info")
    with BridgeProcess(tmp_path / "bridge.db") as shared:
        Session(shared, "pooled").register("x", 1)
        async with (
            Worker(pool, f"--bridge=127.0.0.1:{shared.port}", name="1") as first,
            Worker(pool, f"--bridge=127.0.0.1:{shared.port}", name="2") as second,
        ):
            for worker in (first, second):
                assert await worker.is_valid("pooled")
                request = pb.GetVariableRequest(session_id="pooled", variable_identifier="x")
                answer = await worker.stub.GetVariable(request, timeout=TIMEOUT)
                assert plain(answer.variable.value) == 1
                assert await worker.stop() == 0
                assert "serving memory:" in worker.stderr
        assert not pool.slots.exists()
