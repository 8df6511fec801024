"""Bridges that are not there, not there any more, late, elsewhere or not to be trusted."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from snakepit_bridge.client import TLS, AsyncClient, Client, RemoteSession, ready_file
from snakepit_bridge.client.options import CHANNEL_OPTIONS, backoff
from snakepit_bridge.errors import (
    BridgeError,
    DeadlineExceeded,
    FailedPrecondition,
    PermissionDenied,
    RequestIdReused,
    ToolRaised,
    Unauthenticated,
    Unavailable,
    VersionConflict,
)
from tests import wire_session
from tests.bridge_process import BridgeProcess
from tests.client_faces import FACES, Face
from tests.tcp_proxy import TcpProxy
from tests.tls_proxy import Certificate, TlsProxy, issue
from tests.watches import wait_until

TOOLS = "tests.wire_tools"
TOKEN = "correct-horse-battery-staple"
PATIENCE = 30.0


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BridgeProcess]:
    path = tmp_path_factory.mktemp("bridge") / "bridge.db"
    with BridgeProcess(path, "--adapter", TOOLS) as process:
        yield process
        assert process.stop() == 0


@pytest.fixture(scope="module", params=FACES)
def face(request: pytest.FixtureRequest) -> Iterator[Face]:
    with Face.open(request.param) as face:
        yield face


@pytest.fixture
def proxy(bridge: BridgeProcess) -> Iterator[TcpProxy]:
    with TcpProxy(bridge.port) as proxy:
        yield proxy


@pytest.fixture
def client(face: Face, proxy: TcpProxy) -> Iterator[Any]:
    with face.client(proxy.target) as client:
        yield client


@pytest.fixture
def near(bridge: BridgeProcess, request: pytest.FixtureRequest) -> wire_session.Session:
    """The session, seen without client and proxy."""
    return wire_session.Session(bridge, request.node.name)


@pytest.fixture
def session(client: Any, near: wire_session.Session) -> Any:  # noqa: ANN401 - of either client
    near.register("x", 1)
    return client.session(near.id)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


CHANGES: dict[str, tuple[Callable[[Any], object], int]] = {
    "register": (lambda s: s.register("new", "string", "text"), 1),
    "set": (lambda s: s.set("x", 2), 1),
    "set_many": (lambda s: s.set_many({"x": 2}), 1),
    "set_many, each": (lambda s: s.set_many({"x": 2}, atomic=False), 1),
    "rollback": (lambda s: s.rollback("x", 1), 1),
    "delete": (lambda s: s.delete("x"), 1),
    "end": (lambda s: s.end(), 1),
    "start": (lambda s: s.start(), 0),
    "execute": (lambda s: s.execute("add", {"a": 1}), 2),
}
"""What is changed, and how many events that makes."""

READS_BEFORE = {"set_many, each": 1}
"""What is asked for before: the types, of which known ones may have changed."""

READS: dict[str, Callable[[Any], object]] = {
    "info": lambda s: s.info(),
    "get": lambda s: s.get("x"),
    "get_many": lambda s: s.get_many(["x"]),
    "list": lambda s: s.list(),
    "history": lambda s: s.history("x"),
}

CALLS = {**READS, **{name: call for name, (call, _) in CHANGES.items()}}


# A bridge that is lost between the work and its answer.


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_whose_answer_is_lost_is_done_once(
    session: Any,  # noqa: ANN401 - of either client
    near: wire_session.Session,
    proxy: TcpProxy,
    name: str,
) -> None:
    call, events = CHANGES[name]
    session.get("x")  # its type is known, and there is a connection
    before = near.head
    proxy.cut_before_answer(after=READS_BEFORE.get(name, 0))
    call(session)
    assert proxy.accepted == 2
    if name == "end":
        assert not near.lives
    else:
        assert near.head == before + events


@pytest.mark.parametrize("name", READS)
def test_a_read_whose_answer_is_lost_is_made_again(
    session: Any,  # noqa: ANN401 - of either client
    proxy: TcpProxy,
    name: str,
) -> None:
    first = READS[name](session)
    proxy.cut_before_answer(2)
    assert READS[name](session) == first
    assert proxy.accepted == 3


@pytest.mark.parametrize("count", [1, 10, 100])
def test_an_answer_that_comes_in_part_is_no_answer(
    session: Any,  # noqa: ANN401 - of either client
    near: wire_session.Session,
    proxy: TcpProxy,
    count: int,
) -> None:
    session.get("x")
    proxy.cut_after_bytes(count)
    assert session.set("x", 2).version == 2
    assert (near.head, near.get("x").version) == (3, 2)


def test_what_was_decided_is_told_again(
    session: Any,  # noqa: ANN401 - of either client
    near: wire_session.Session,
    proxy: TcpProxy,
) -> None:
    session.get("x")
    proxy.cut_before_answer()
    assert session.set("x", 2, expected_version=1).version == 2
    proxy.cut_before_answer()
    with pytest.raises(VersionConflict):
        session.set("x", 3, expected_version=1)
    proxy.cut_before_answer()
    written = session.set("x", 3, expected_version=2, request_id="mine")
    assert (written.version, written.duplicate) == (3, True)
    with pytest.raises(RequestIdReused):
        session.set("x", 4, request_id="mine")
    assert near.head == 4


@pytest.mark.parametrize("name", CHANGES)
def test_without_retries_a_lost_answer_is_told(
    face: Face,
    near: wire_session.Session,
    proxy: TcpProxy,
    name: str,
) -> None:
    near.register("x", 1)
    call, events = CHANGES[name]
    before = near.head
    with face.client(proxy.target, retries=False) as client:
        session = client.session(near.id)
        session.get("x")
        proxy.cut_before_answer(after=READS_BEFORE.get(name, 0))
        with pytest.raises(Unavailable, match=f"no bridge answers at {proxy.target}"):
            call(session)
    if name == "end":
        assert not near.lives
    else:
        assert near.head == before + events


# A tool runs once.


def test_a_tool_whose_answer_is_lost_runs_once(
    session: Any,  # noqa: ANN401 - of either client
    proxy: TcpProxy,
    tmp_path: Path,
) -> None:
    runs = tmp_path / "runs"
    session.info()
    proxy.cut_before_answer()
    assert session.execute("count_run", {"runs": str(runs)}) == "done"
    assert runs.read_text().splitlines() == ["run"]


def test_a_tool_that_lost_its_client_is_cancelled_and_does_not_run_again(
    session: Any,  # noqa: ANN401 - of either client
    near: wire_session.Session,
    proxy: TcpProxy,
    tmp_path: Path,
    pool: ThreadPoolExecutor,
) -> None:
    runs, go = tmp_path / "runs", tmp_path / "go"
    before = near.head
    arguments = {"runs": str(runs), "go": str(go)}
    running = pool.submit(session.execute, "count_run_async", arguments)
    wait_until(runs.exists, "the tool runs")
    proxy.refuse()
    wait_until(lambda: near.head == before + 2, "its end is in the log")
    proxy.listen()
    with pytest.raises(FailedPrecondition, match=r"its client was gone.*does not run twice"):
        running.result(PATIENCE)
    assert runs.read_text().splitlines() == ["run", "CancelledError"]
    assert near.head == before + 2


def test_a_stream_of_a_tool_that_breaks_is_told_and_not_begun_again(
    session: Any,  # noqa: ANN401 - of either client
    near: wire_session.Session,
    proxy: TcpProxy,
    tmp_path: Path,
) -> None:
    before = near.head
    stream = session.stream("for_ever", {"runs": str(tmp_path / "runs"), "size": 10})
    next(stream)
    proxy.cut()

    def rest() -> None:
        for _ in stream:
            pass

    with pytest.raises(Unavailable, match=proxy.target):
        rest()
    wait_until(lambda: near.head == before + 2, "its start and its end are in the log")
    assert session.info().offset == before + 2


def test_a_stream_that_another_began_is_refused(session: Any, tmp_path: Path) -> None:  # noqa: ANN401
    arguments = {"runs": str(tmp_path / "runs")}
    list(session.stream("count_streams", arguments, request_id="one"))
    with pytest.raises(BridgeError) as caught:
        list(session.stream("count_streams", arguments, request_id="one"))
    assert not isinstance(caught.value, ToolRaised | Unavailable)


# No bridge before a call, in the middle of one, and after.


@pytest.mark.parametrize("retries", [True, False])
def test_each_call_tells_that_there_is_no_bridge(face: Face, retries: bool) -> None:
    with face.client("127.0.0.1:1", timeout=0.15, retries=retries) as client:
        session = client.session("s")
        calls: dict[str, Callable[[Any], object]] = {
            **CALLS,
            "watch": lambda s: s.watch("x").__enter__(),
            "subscribe": lambda s: s.subscribe(print, "x"),
            "stream": lambda s: next(s.stream("count_to", {"to": 1})),
            "ping": lambda _: client.ping(),
            "tools": lambda _: client.tools(),
        }
        calls.pop("execute")  # which waits for any time
        calls["execute, in time"] = lambda s: s.execute("add", {"a": 1}, timeout=0.15)
        for name, call in calls.items():
            begun = time.monotonic()
            # The deadline may come in the middle of a try.
            with pytest.raises((Unavailable, DeadlineExceeded), match=r"127\.0\.0\.1:1") as caught:
                call(session)
            if isinstance(caught.value, Unavailable):
                assert caught.value.message.startswith("no bridge answers at 127.0.0.1:1 (")
                tried = "tried" in caught.value.message
                assert tried == (retries and name != "stream"), caught.value.message
            else:
                assert retries
            assert time.monotonic() - begun < 10


def test_a_bridge_that_goes_away_in_the_middle_is_waited_for(
    session: Any,  # noqa: ANN401 - of either client
    proxy: TcpProxy,
    pool: ThreadPoolExecutor,
) -> None:
    for name, call in CALLS.items():
        if name == "end":
            continue
        session.info()
        proxy.hold()
        sent = proxy.passed_up
        running: Future[object] = pool.submit(call, session)
        wait_until(lambda sent=sent: proxy.passed_up > sent, "it is asked")  # type: ignore[misc]
        proxy.refuse()
        proxy.release()
        proxy.listen()
        running.result(PATIENCE)
        if name == "delete":
            session.register("x", "integer", 1)


@pytest.mark.parametrize("resolver", ["ready file", "one port"])
def test_a_bridge_that_is_killed_and_back_elsewhere_is_found(
    face: Face, tmp_path: Path, resolver: str
) -> None:
    log, ready = tmp_path / "bridge.db", tmp_path / "ready"
    environment = {"SNAKEPIT_READY_FILE": str(ready)}
    bridge = BridgeProcess(log, environment=environment)
    with TcpProxy(bridge.port) as proxy:
        targets: dict[str, Any] = {
            "ready file": ready_file(ready),
            "one port": proxy.target,
        }
        with face.client(targets[resolver], timeout=PATIENCE) as client:
            session = client.session("s")
            session.register("x", "integer", 0)
            port = bridge.port
            bridge.kill()
            bridge = BridgeProcess(log, environment=environment)
            assert bridge.port != port
            proxy.upstream = bridge.port
            assert session.set("x", 1).version == 2
            assert [one.value for one in session.history("x")] == [1, 0]
    assert bridge.stop() == 0


def test_a_bridge_that_is_still_starting_is_waited_for(
    face: Face, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    ready = tmp_path / "ready"
    with face.client(ready_file(ready), timeout=PATIENCE) as client:
        session = client.session("s")
        asked = pool.submit(session.register, "x", "integer", 1)
        with BridgeProcess("memory:", environment={"SNAKEPIT_READY_FILE": str(ready)}):
            assert asked.result(PATIENCE).version == 1


# Resolvers.


def raises(error: BaseException) -> Callable[[], str]:
    def resolve() -> str:
        raise error

    return resolve


@pytest.mark.parametrize(
    ("resolver", "words"),
    [
        (raises(OSError("no such file")), "not known where the bridge is: no such file"),
        (raises(ValueError("no number")), "not known where the bridge is: no number"),
        (lambda: "", "not known where the bridge is: the address is empty"),
        (lambda: "nowhere.invalid:1", "no bridge answers at nowhere.invalid:1"),
        (lambda: "not an address", "no bridge answers at not an address"),
    ],
)
def test_a_resolver_that_knows_nothing_yet_is_asked_again(
    face: Face, bridge: BridgeProcess, resolver: Callable[[], str], words: str
) -> None:
    with face.client(resolver, timeout=0.1) as client:
        watch = client.session("s").watch("x")
        for call in (client.ping, watch.__enter__):
            # The deadline may come in the middle of a try, too.
            with pytest.raises((Unavailable, DeadlineExceeded)) as caught:
                call()
            if isinstance(caught.value, Unavailable):
                assert words in caught.value.message
        with pytest.raises(Unavailable, match=words):
            next(client.session("s").stream("count_to", {"to": 1}))
    answers: list[Callable[[], str]] = [resolver, resolver, lambda: f"127.0.0.1:{bridge.port}"]

    def resolve() -> str:
        return answers.pop(0)()

    with face.client(resolve, timeout=PATIENCE) as client:
        assert client.ping() > 0
    assert answers == []


def test_a_resolver_that_is_wrong_is_not_hidden(face: Face) -> None:
    garbage: list[Any] = [None, 50050, b"127.0.0.1:1", ("127.0.0.1", 1)]
    while garbage:
        with (
            face.client(garbage.pop, timeout=0.3) as client,
            pytest.raises(TypeError, match=r"the resolver gave a .*, not 'HOST:PORT'"),
        ):
            client.ping()
    with face.client(raises(LookupError("of its own"))) as client:
        with pytest.raises(LookupError, match="of its own"):
            client.ping()
        with pytest.raises(LookupError, match="of its own"):
            client.session("s").watch("x").__enter__()


def test_threads_go_over_together_when_the_bridge_moves(
    bridge: BridgeProcess, near: wire_session.Session, pool: ThreadPoolExecutor
) -> None:
    near.register("x", 0)
    with TcpProxy(bridge.port) as first, TcpProxy(bridge.port) as second:
        where = first
        with Client(lambda: where.target, timeout=PATIENCE) as client:
            session = client.session(near.id)

            def count() -> list[int]:
                return [session.set("x", number).version for number in range(50)]

            running = [pool.submit(count) for _ in range(4)]
            wait_until(lambda: near.head > 20, "they write")
            where = second
            first.refuse()
            versions = [version for one in running for version in one.result(PATIENCE)]
    assert sorted(versions) == list(range(2, 202))
    assert near.head == 202


# Deadlines.


def test_a_deadline_shorter_than_the_network_is_told_with_what_to_do(
    session: Any,  # noqa: ANN401 - of either client
    near: wire_session.Session,
    proxy: TcpProxy,
) -> None:
    session.get("x")
    proxy.delay(0.6)
    with pytest.raises(DeadlineExceeded, match=r"was not answered by .* within 0.2 s$"):
        session.get("x", timeout=0.2)
    with pytest.raises(DeadlineExceeded, match="may have been done or not; repeat it") as caught:
        session.set("x", 2, timeout=0.2)
    proxy.delay(0)
    request_id = caught.value.facts["request_id"]
    assert f"request_id='{request_id}'" in caught.value.message
    assert session.set("x", 2, request_id=request_id).version == 2
    assert near.head == 3
    with pytest.raises(DeadlineExceeded, match="request_id='mine'"):
        session.set("x", 2, timeout=-1, request_id="mine")


def test_a_deadline_holds_for_all_tries_together(face: Face, proxy: TcpProxy) -> None:
    with face.client(proxy.target, timeout=0.3) as client:
        proxy.hold()
        begun = time.monotonic()
        with pytest.raises((DeadlineExceeded, Unavailable)):
            client.session("s").list()
        assert 0.2 < time.monotonic() - begun < 10


def test_who_looked_for_the_bridge_until_the_deadline_is_told_what_was_in_the_way(
    face: Face, proxy: TcpProxy
) -> None:
    """And not only that it is late: the last try is then mostly cut short."""
    proxy.hold()
    calls: list[Callable[[Any], object]] = [
        lambda s: s.set("x", 1),
        lambda s: s.watch("x").__enter__(),
    ]
    for call in calls:
        answers = [raises(OSError("no file yet"))]

        def resolve(answers: list[Callable[[], str]] = answers) -> str:
            return answers.pop()() if answers else proxy.target

        with (
            face.client(resolve, timeout=0.4) as client,
            pytest.raises(Unavailable, match=r"no file yet; tried 2 times"),
        ):
            call(client.session("s"))


def test_a_watch_that_is_not_answered_is_given_up_in_time(
    face: Face, proxy: TcpProxy, near: wire_session.Session
) -> None:
    near.register("x", 1)
    with face.client(proxy.target, timeout=0.3) as client:
        client.ping()
        proxy.hold()
        begun = time.monotonic()
        with pytest.raises((DeadlineExceeded, Unavailable), match=proxy.target):
            client.session(near.id).watch("x").__enter__()
        assert time.monotonic() - begun < 10
        proxy.release()
        with client.session(near.id).watch("x") as watch:
            near.set("x", 2)
            assert next(watch).new == 2


# Closing.


def test_a_client_that_was_closed_says_so(client: Any, session: Any) -> None:  # noqa: ANN401
    session.get("x")
    client.close()
    client.close()
    calls: dict[str, Callable[[Any], object]] = {
        **CALLS,
        "watch": lambda s: s.watch("x").__enter__(),
        "stream": lambda s: next(s.stream("count_to", {"to": 1})),
        "ping": lambda _: client.ping(),
    }
    for call in calls.values():
        with pytest.raises(Unavailable, match=r"^this client was closed$"):
            call(session)
    with face_of_nothing() as never_used:
        never_used.close()


def face_of_nothing() -> Client:
    return Client(raises(AssertionError("it was not asked")))


def test_closing_ends_what_runs(
    face: Face,
    proxy: TcpProxy,
    near: wire_session.Session,
    tmp_path: Path,
    pool: ThreadPoolExecutor,
) -> None:
    near.register("x", 1)
    runs, go = tmp_path / "runs", tmp_path / "go"
    arguments = {"runs": str(runs), "go": str(go)}
    client = face.client(proxy.target)
    session = client.session(near.id)
    with session.watch("x") as watch:
        stream = session.stream("for_ever", {"runs": str(tmp_path / "other"), "size": 1})
        next(stream)
        running = [
            pool.submit(session.execute, "count_run_async", arguments),
            pool.submit(next, watch),
            pool.submit(lambda: [None for _ in stream]),
        ]
        wait_until(runs.exists, "the tool runs")
        client.close()
        for one in running:
            with pytest.raises(Unavailable, match="this client was closed"):
                one.result(PATIENCE)
    wait_until(lambda: "CancelledError" in runs.read_text(), "the tool is cancelled")


def test_closing_ends_the_wait_for_a_bridge(face: Face, pool: ThreadPoolExecutor) -> None:
    asked = threading.Event()

    def nowhere() -> str:
        asked.set()
        return "127.0.0.1:1"

    client = face.client(nowhere, timeout=PATIENCE)
    running = pool.submit(client.ping)
    assert asked.wait(PATIENCE)
    client.close()
    with pytest.raises(Unavailable):
        running.result(10)


# Threads and event loops.


def test_sixteen_threads_share_a_client(proxy: TcpProxy, near: wire_session.Session) -> None:
    near.start()
    with Client(proxy.target, timeout=PATIENCE) as client, ThreadPoolExecutor(16) as pool:
        session = client.session(near.id)
        begin = threading.Barrier(16)

        def count(thread: int) -> list[int]:
            begin.wait()
            name = f"v{thread}"
            session.register(name, "integer", 0)
            if thread == 5:
                proxy.cut()
            return [session.set(name, number).version for number in range(1, 21)]

        assert list(pool.map(count, range(16))) == [list(range(2, 22))] * 16
    assert near.head == 1 + 16 * 21


async def test_tasks_share_a_client(proxy: TcpProxy, near: wire_session.Session) -> None:
    near.start()
    async with AsyncClient(proxy.target, timeout=PATIENCE) as client:
        session = client.session(near.id)

        async def count(task: int) -> list[int]:
            await session.register(f"v{task}", "integer", 0)
            if task == 5:
                await asyncio.to_thread(proxy.cut)
            return [(await session.set(f"v{task}", number)).version for number in range(1, 11)]

        counted = await asyncio.gather(*map(count, range(50)))
    assert counted == [list(range(2, 12))] * 50
    assert near.head == 1 + 50 * 11


def test_an_asynchronous_client_says_which_loop_it_belongs_to(
    proxy: TcpProxy, near: wire_session.Session
) -> None:
    near.register("x", 1)
    client = AsyncClient(proxy.target)
    session = client.session(near.id)

    async def use() -> None:
        await session.get("x")

    async def watch() -> None:
        async with session.watch("x"):
            pass

    asyncio.run(use())
    for again in (use, watch):
        with pytest.raises(RuntimeError, match="event loop that this client was first used on was"):
            asyncio.run(again())
    asyncio.run(client.close())

    async def of_another() -> None:
        async with AsyncClient(proxy.target) as open_client:
            open_session = open_client.session(near.id)
            await open_session.get("x")

            async def elsewhere() -> None:
                await open_session.get("x")

            with pytest.raises(RuntimeError, match="is another one: make an AsyncClient for each"):
                await asyncio.to_thread(asyncio.run, elsewhere())
            await open_session.get("x")

    asyncio.run(of_another())


async def test_a_call_that_is_cancelled_harms_no_other(
    proxy: TcpProxy, near: wire_session.Session, tmp_path: Path
) -> None:
    near.register("x", 1)
    runs, go = tmp_path / "runs", tmp_path / "go"
    async with AsyncClient(proxy.target) as client:
        session = client.session(near.id)
        await session.get("x")
        call = asyncio.ensure_future(
            session.execute("count_run_async", {"runs": str(runs), "go": str(go)})
        )
        await asyncio.to_thread(wait_until, runs.exists, "the tool runs")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.to_thread(
            wait_until, lambda: "CancelledError" in runs.read_text(), "it is cancelled"
        )
        proxy.hold()
        written = asyncio.ensure_future(session.set("x", 2, request_id="mine"))
        await asyncio.to_thread(wait_until, lambda: near.get("x").version == 2, "it is done")
        written.cancel()
        with pytest.raises(asyncio.CancelledError):
            await written
        proxy.release()
        again = await session.set("x", 2, request_id="mine")
        assert (again.version, again.duplicate) == (2, True)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await session.get("x")
        assert await session["x"] == 2


async def test_the_wait_for_a_bridge_can_be_cancelled() -> None:
    async with AsyncClient("127.0.0.1:1", timeout=PATIENCE) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.ping()


# Tokens and TLS.


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BridgeProcess]:
    directory = tmp_path_factory.mktemp("locked")
    secret = directory / "token"
    secret.write_text(TOKEN)
    secret.chmod(0o600)
    with BridgeProcess("memory:", "--token-file", str(secret), "--adapter", TOOLS) as process:
        yield process


@pytest.mark.parametrize(
    ("token", "kind", "words"),
    [
        ("", Unauthenticated, "authorization: Bearer TOKEN"),
        (TOKEN[:-1], PermissionDenied, "not the one of this bridge"),
    ],
)
def test_a_token_that_is_missing_or_wrong_is_told_at_once(
    face: Face, locked: BridgeProcess, token: str, kind: type[BridgeError], words: str
) -> None:
    with face.client(f"127.0.0.1:{locked.port}", token=token, timeout=PATIENCE) as client:
        session = client.session("s")
        calls: dict[str, Callable[[Any], object]] = {
            **CALLS,
            "watch": lambda s: s.watch("x").__enter__(),
            "stream": lambda s: next(s.stream("count_to", {"to": 1})),
            "ping": lambda _: client.ping(),
            "tools": lambda _: client.tools(),
        }
        begun = time.monotonic()
        for call in calls.values():
            with pytest.raises(kind, match=words) as caught:
                call(session)
            assert TOKEN[:-1] not in caught.value.message
        assert time.monotonic() - begun < 10  # without tries


def test_with_the_token_everything_is_open(face: Face, locked: BridgeProcess) -> None:
    target = f"127.0.0.1:{locked.port}"
    with face.client(target, token=TOKEN) as client:
        session = client.session(f"open-{face.name}")
        session.register("x", "integer", 1)
        with session.watch("x") as watch:
            session.set("x", 2)
            assert next(watch).new == 2
        assert [item.data for item in session.stream("count_to", {"to": 2})] == [1, 2]
    with RemoteSession.connect(target, f"open-{face.name}", token=TOKEN) as remote:
        variable = remote.get_variable("x")
        assert variable is not None
        assert variable.value == 2
    with pytest.raises(PermissionDenied):
        RemoteSession.connect(target, "other", token=TOKEN * 2)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return issue(tmp_path_factory.mktemp("authority"), "authority")


def test_tls_is_spoken_and_the_other_side_is_known(
    face: Face, bridge: BridgeProcess, authority: Certificate, tmp_path: Path
) -> None:
    here = issue(tmp_path, "here", names="DNS:localhost,IP:127.0.0.1", issuer=authority)
    other = issue(tmp_path, "other")
    with TlsProxy(bridge.port, here) as proxy:
        with face.client(proxy.target, tls=TLS(ca=authority.certificate)) as client:
            session = client.session(f"tls-{face.name}")
            session.register("x", "tensor", np.zeros(300_000))
            assert session["x"].shape == (300_000,)
            with session.watch("x") as watch:
                session.set("x", [1.0])
                assert next(watch).new == [1.0]
        for wrong in (TLS(ca=other.certificate), TLS(), None):
            with (
                face.client(proxy.target, tls=wrong, timeout=0.3) as client,
                pytest.raises((Unavailable, DeadlineExceeded), match=proxy.target),
            ):
                client.ping()
    # To who speaks no TLS it is not spoken without.
    with (
        face.client(
            f"127.0.0.1:{bridge.port}", tls=TLS(ca=authority.certificate), timeout=0.5
        ) as client,
        pytest.raises((Unavailable, DeadlineExceeded)),
    ):
        client.ping()


def test_another_name_in_the_certificate_can_be_given(
    face: Face, bridge: BridgeProcess, authority: Certificate, tmp_path: Path
) -> None:
    elsewhere = issue(tmp_path, "elsewhere", names="DNS:bridge.example", issuer=authority)
    with TlsProxy(bridge.port, elsewhere) as proxy:
        with (
            face.client(proxy.target, tls=TLS(ca=authority.certificate), timeout=0.3) as client,
            pytest.raises((Unavailable, DeadlineExceeded)),
        ):
            client.ping()
        named = TLS(ca=authority.certificate, name="bridge.example")
        with face.client(proxy.target, tls=named) as client:
            assert client.ping() > 0


def test_a_certificate_of_the_clients_own_is_shown(
    face: Face, bridge: BridgeProcess, authority: Certificate, tmp_path: Path
) -> None:
    here = issue(tmp_path, "here", names="IP:127.0.0.1", issuer=authority)
    own = issue(tmp_path, "own", names="DNS:client", issuer=authority)
    with TlsProxy(bridge.port, here, clients=authority.certificate) as proxy:
        with (
            face.client(proxy.target, tls=TLS(ca=authority.certificate), timeout=0.3) as client,
            pytest.raises((Unavailable, DeadlineExceeded)),
        ):
            client.ping()
        tls = TLS(ca=authority.certificate, certificate=own.certificate, key=own.key)
        with face.client(proxy.target, tls=tls) as client:
            assert client.ping() > 0


def test_a_certificate_that_cannot_be_read_is_told_by_its_file(face: Face, tmp_path: Path) -> None:
    missing = tmp_path / "missing.crt"
    with (
        face.client("127.0.0.1:1", tls=TLS(ca=missing), timeout=0.3) as client,
        pytest.raises((FileNotFoundError, Unavailable), match=r"missing\.crt"),
    ):
        client.ping()


# How often it is tried.


def test_the_wait_grows_and_is_of_chance() -> None:
    waits = [backoff(attempt) for attempt in range(40)]
    for attempt, wait in enumerate(waits):
        longest = min(2.0, 0.05 * 2**attempt)
        assert longest / 2 <= wait <= longest
    assert len({backoff(0) for _ in range(100)}) > 50
    assert backoff(10**9, 5.0) <= 5.0


def test_grpc_neither_limits_messages_nor_retries_by_itself() -> None:
    options = dict(CHANNEL_OPTIONS)
    assert options["grpc.max_receive_message_length"] == -1
    assert options["grpc.max_send_message_length"] == -1
    assert options["grpc.enable_retries"] == 0
