"""Watches of both clients: each change once and in order, whatever becomes of the connection."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from snakepit_bridge.client import AsyncClient, AsyncWatch, Bookmark, Client, WatchStatus
from snakepit_bridge.client import options as options_module
from snakepit_bridge.errors import (
    BridgeError,
    EpochMismatch,
    FailedPrecondition,
    InvalidRequest,
    OffsetOutOfRange,
    SessionNotFound,
)
from tests import wire_session
from tests.bridge_process import BridgeProcess
from tests.client_faces import FACES, Face
from tests.tcp_proxy import TcpProxy
from tests.watches import wait_until
from tests.wire_session import packed

PATIENCE = 30.0
BLOCK = [f"v{number:02}" for number in range(20)]
"""Variables of one transaction."""
FILLER = "x" * 30_000
"""So long that the initial values are 600 KB, and a transaction twice as much."""


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BridgeProcess]:
    path = tmp_path_factory.mktemp("bridge") / "bridge.db"
    with BridgeProcess(path) as process:
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
def near(bridge: BridgeProcess, request: pytest.FixtureRequest) -> wire_session.Session:
    """The session, seen without client and proxy."""
    return wire_session.Session(bridge, request.node.name)


@pytest.fixture
def session(face: Face, proxy: TcpProxy, near: wire_session.Session) -> Iterator[Any]:
    near.start()
    with face.client(proxy.target) as client:
        yield client.session(near.id)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


def take(watch: Any, count: int) -> list[Any]:  # noqa: ANN401 - of either client
    return [next(watch) for _ in range(count)]


def outline(changes: list[Any]) -> list[tuple[str, str, Any]]:
    return [(change.kind, change.name, change.new) for change in changes]


def write_block(near: wire_session.Session, number: int) -> None:
    """One transaction."""
    value = packed(f"{number} {FILLER}", "string")
    assert near.set_many(dict.fromkeys(BLOCK, value), atomic=True).success


def register_block(near: wire_session.Session) -> None:
    for name in BLOCK:
        near.register(name, f"0 {FILLER}", "string")


def number_of(change: Any) -> int:  # noqa: ANN401 - of either client
    return int(change.new.partition(" ")[0])


# What is told.


def test_changes_are_told_as_they_are(session: Any, near: wire_session.Session) -> None:  # noqa: ANN401
    session.register("t", "float", 0.5)
    session.register("other", "float", 0.5)
    with session.watch("t") as watch:
        session.set("other", 1)
        written = session.set("t", 0.75, metadata={"why": "colder"})
        change = next(watch)
        assert (change.kind, change.name, change.type) == ("value_change", "t", "float")
        assert (change.old, change.new, change.version) == (0.5, 0.75, 2)
        assert (change.offset, change.log_epoch) == (written.offset, written.log_epoch)
        assert (change.source, change.metadata["why"]) == ("python", "colder")
        assert change.changed_at.tzinfo is not None
        assert watch.bookmark == (written.log_epoch, written.offset, change.resume_check)
        session.rollback("t", 1)
        assert next(watch).new == 0.5
        near.end()
        assert list(watch) == []


def test_kinds_names_and_patterns_choose(session: Any, near: wire_session.Session) -> None:  # noqa: ANN401
    everything = ("registered", "value_change", "deleted")
    with (
        session.watch(kinds=everything) as all_,
        session.watch("a*", "c") as some,
        session.watch(kinds="deleted") as deleted,
    ):
        for name in ("ab", "b", "c"):
            near.register(name, 0)
            near.set(name, 1)
        near.delete("b")
        near.end()
        assert outline(list(all_)) == [
            ("registered", "ab", 0),
            ("value_change", "ab", 1),
            ("registered", "b", 0),
            ("value_change", "b", 1),
            ("registered", "c", 0),
            ("value_change", "c", 1),
            ("deleted", "b", None),
        ]
        assert [change.name for change in some] == ["ab", "c"]
        assert [(change.name, change.old) for change in deleted] == [("b", 1)]


def test_a_watch_that_is_wrong_is_refused(session: Any, near: wire_session.Session) -> None:  # noqa: ANN401
    here = near.start().log_epoch
    refused: list[tuple[Callable[[], Any], type[BridgeError], str]] = [
        (lambda: session.watch(kinds=["all"]), InvalidRequest, "kinds holds 'all'"),
        (lambda: session.watch(5), InvalidRequest, "not '5'"),
        (lambda: session.watch(bookmark=Bookmark(here, -1, 0)), InvalidRequest, "negative"),
        (lambda: session.watch(""), InvalidRequest, "0 characters"),
        (lambda: session.watch(bookmark=Bookmark("", 1, 0)), InvalidRequest, "log_epoch"),
        (lambda: session.watch(bookmark=Bookmark(here, 99, 0)), OffsetOutOfRange, "99"),
        (lambda: session.watch(bookmark=Bookmark("other", 1, 0)), EpochMismatch, "'other'"),
        (lambda: session.watch(bookmark=Bookmark(here, 1, 5)), FailedPrecondition, "resume_check"),
    ]
    for make, kind, words in refused:
        with pytest.raises(kind, match=words):
            make().__enter__()
    near.end()
    with pytest.raises(SessionNotFound):
        session.watch().__enter__()


def test_large_values_can_be_left_out(session: Any, near: wire_session.Session) -> None:  # noqa: ANN401
    near.register("x", "short", "string")
    with session.watch("x", max_value_bytes=100) as watch:
        near.set("x", "y" * 1_000, "string")
        near.set("x", "short again", "string")
        first, second = take(watch, 2)
        assert (first.value_omitted, first.new, first.version) == (True, None, 2)
        assert (second.value_omitted, second.old, second.new) == (True, None, "short again")


def test_a_watch_is_entered_once_and_may_be_iterated_alone(
    session: Any,  # noqa: ANN401 - of either client
    near: wire_session.Session,
) -> None:
    near.register("x", 0)
    watch = session.watch("x", initial=True)
    with pytest.raises(RuntimeError, match="no bookmark before its first item"):
        _ = watch.bookmark
    assert next(iter(watch)).kind == "initial_value"
    with pytest.raises(RuntimeError, match="begun already"):
        watch.__enter__()
    watch.close()
    watch.close()
    assert list(watch) == []


# Connections that break.


@pytest.mark.parametrize("count", [5_000, 20_000, 300_000, 590_000])
def test_initial_values_come_once_and_of_one_moment_though_the_stream_breaks_among_them(
    session: Any,  # noqa: ANN401 - of either client
    near: wire_session.Session,
    proxy: TcpProxy,
    count: int,
) -> None:
    register_block(near)
    session.info()
    written = [0]

    def note(status: WatchStatus) -> None:
        if status.kind == "interrupted":
            written.append(written[-1] + 1)
            write_block(near, written[-1])

    proxy.cut_after_bytes(count)
    with session.watch(initial=True, on_status=note) as watch:
        initial = take(watch, len(BLOCK))
        assert {change.kind for change in initial} == {"initial_value"}
        assert [change.name for change in initial] == BLOCK
        (moment,) = {number_of(change) for change in initial}
        assert moment == written[-1] == 1
        assert watch.bookmark.offset == initial[0].offset
        write_block(near, 2)
        then = take(watch, len(BLOCK))
        assert {number_of(change) for change in then} == {2}
        assert [change.name for change in then] == BLOCK
        near.end()
        assert list(watch) == []


@pytest.mark.parametrize("count", [1, 20_000, 300_000, 700_000, 1_190_000])
def test_a_transaction_that_is_broken_in_the_middle_comes_once(
    session: Any,  # noqa: ANN401 - of either client
    near: wire_session.Session,
    proxy: TcpProxy,
    count: int,
) -> None:
    register_block(near)
    statuses: list[str] = []
    with session.watch(on_status=lambda status: statuses.append(status.kind)) as watch:
        before = watch.bookmark
        proxy.cut_after_bytes(count)
        write_block(near, 1)
        changes = []
        for name in BLOCK:
            changes.append(next(watch))
            # Until all of it was given, whoever goes on by the bookmark is told all of it.
            assert (watch.bookmark == before) == (name != BLOCK[-1])
        first = before.offset + 1
        assert [change.offset for change in changes] == list(range(first, first + len(BLOCK)))
        assert [change.name for change in changes] == BLOCK
        near.set("v00", "2 last", "string")
        assert number_of(next(watch)) == 2
        near.end()
        assert list(watch) == []
    assert statuses[:3] == ["caught_up", "interrupted", "resumed"]
    assert statuses.count("interrupted") == 1


@pytest.mark.parametrize("count", [1, 50, 500])
def test_a_connection_that_breaks_anywhere_again_and_again_loses_nothing(
    session: Any,  # noqa: ANN401 - of either client
    near: wire_session.Session,
    proxy: TcpProxy,
    count: int,
) -> None:
    near.register("x", 0)
    with session.watch("x") as watch:
        seen = []
        for number in range(1, 6):
            proxy.cut_after_bytes(count)
            for step in range(4):
                near.set("x", 4 * number + step)
            seen += [change.new for change in take(watch, 4)]
    assert seen == list(range(4, 24))
    assert proxy.accepted > 1


def test_statuses_tell_what_happens_in_its_order(
    session: Any,  # noqa: ANN401 - of either client
    near: wire_session.Session,
    proxy: TcpProxy,
    pool: ThreadPoolExecutor,
) -> None:
    near.register("x", 0)
    told: list[Any] = []
    with session.watch("x", on_status=told.append) as watch:
        reading = pool.submit(take, watch, 2)
        wait_until(lambda: told, "it has caught up")
        proxy.refuse()
        wait_until(lambda: len(told) > 2, "it is tried again")
        near.set("x", 1)
        near.set("x", 2)
        proxy.listen()
        told += reading.result(PATIENCE)
        near.end()
        assert list(watch) == []
    kinds = [getattr(one, "kind", one) for one in told]
    lost = kinds.count("interrupted")
    assert lost >= 2
    assert kinds[:1] + kinds[1 : lost + 1] == ["caught_up", *["interrupted"] * lost]
    assert kinds[lost + 1 :] in (
        ["resumed", "value_change", "value_change", "caught_up"],
        ["resumed", "caught_up", "value_change", "value_change"],
    )
    interrupted = told[1]
    assert isinstance(interrupted, WatchStatus)
    assert proxy.target in interrupted.message
    assert 0 < interrupted.wait <= 5


def test_a_network_that_goes_without_a_word_is_noticed(
    face: Face,
    near: wire_session.Session,
    proxy: TcpProxy,
    monkeypatch: pytest.MonkeyPatch,
    pool: ThreadPoolExecutor,
) -> None:
    options = dict(options_module.CHANNEL_OPTIONS)
    times = ("keepalive_time_ms", "keepalive_timeout_ms", "http2.ping_timeout_ms")
    assert sum(options[f"grpc.{name}"] for name in times) <= 60_000
    options |= {f"grpc.{name}": 300 for name in times}
    monkeypatch.setattr(options_module, "CHANNEL_OPTIONS", tuple(options.items()))
    near.register("x", 0)
    told: list[str] = []
    with (
        face.client(proxy.target) as client,
        client.session(near.id).watch("x", on_status=lambda one: told.append(one.kind)) as watch,
    ):
        reading = pool.submit(next, watch)
        wait_until(lambda: told == ["caught_up"], "it stands")
        proxy.hold()
        near.set("x", 1)
        wait_until(lambda: "interrupted" in told, "it is noticed")
        proxy.cut()
        proxy.release()
        assert reading.result(PATIENCE).new == 1


def test_who_reads_slowly_gets_everything(session: Any, near: wire_session.Session) -> None:  # noqa: ANN401
    near.register("x", "", "string")
    with session.watch("x") as watch:
        for number in range(60):
            near.set("x", f"{number} " + "y" * 300_000, "string")
        assert [number_of(change) for change in take(watch, 60)] == list(range(60))


def test_a_watch_outlives_its_longest_life(
    face: Face, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    with (
        BridgeProcess(tmp_path / "bridge.db", "--watch-max-lifetime", "0.3s") as short,
        face.client(f"127.0.0.1:{short.port}") as client,
    ):
        near = wire_session.Session(short, "s")
        near.register("x", 0)
        told: list[WatchStatus] = []
        with client.session("s").watch("x", on_status=told.append) as watch:
            reading = pool.submit(lambda: [change.new for change in watch])
            number = 0
            while [one.kind for one in told].count("resumed") < 2:
                number += 1
                near.set("x", number)
            near.end()
            assert reading.result(PATIENCE) == list(range(1, number + 1))
    interrupted = [one for one in told if one.kind == "interrupted"]
    assert {one.wait for one in interrupted} == {0}  # it is not the bridge that is in trouble
    assert "watch again with after_offset=" in interrupted[0].message


# Bookmarks.


def test_a_bookmark_is_kept_as_json_and_goes_to_any_client(
    session: Any,  # noqa: ANN401 - of either client
    near: wire_session.Session,
    bridge: BridgeProcess,
) -> None:
    near.register("x", 0)
    with session.watch("x") as watch:
        near.set("x", 1)
        near.set("x", 2)
        take(watch, 1)
        kept = json.dumps(watch.bookmark)
    near.set("x", 3)
    bookmark = Bookmark(*json.loads(kept))
    for other in FACES:
        with (
            Face.open(other) as face,
            face.client(f"127.0.0.1:{bridge.port}") as client,
            client.session(near.id).watch("x", bookmark=bookmark) as watch,
        ):
            assert watch.bookmark == bookmark
            assert [change.new for change in take(watch, 2)] == [2, 3]
            assert watch.bookmark.offset == near.head


def test_a_bookmark_before_the_first_event_tells_everything(
    session: Any,  # noqa: ANN401 - of either client
    near: wire_session.Session,
) -> None:
    epoch = near.register("x", 0).log_epoch
    near.set("x", 1)
    bookmark = Bookmark(epoch, 0, 0)
    with session.watch(bookmark=bookmark, kinds=("registered", "value_change")) as watch:
        assert [change.kind for change in take(watch, 2)] == ["registered", "value_change"]


def test_heartbeats_move_the_bookmark_on(
    session: Any,  # noqa: ANN401 - of either client
    near: wire_session.Session,
    pool: ThreadPoolExecutor,
) -> None:
    near.register("x", 0)
    near.register("other", 0)
    with session.watch("x", heartbeat=1) as watch:
        reading = pool.submit(next, watch)
        before = watch.bookmark.offset
        for number in range(5):
            near.set("other", number)
        wait_until(lambda: watch.bookmark.offset == before + 5, "it moves on", 10)
        near.set("x", 1)
        assert reading.result(PATIENCE).new == 1


# Logs that are others.


def test_a_watch_ends_with_its_session_though_it_is_begun_anew_meanwhile(
    session: Any,  # noqa: ANN401 - of either client
    near: wire_session.Session,
    proxy: TcpProxy,
) -> None:
    near.register("x", 0)
    for begin_anew in (False, True):
        with session.watch("x", begin_anew=begin_anew) as watch:
            proxy.refuse()
            near.set("x", 1)
            near.end()
            near.register("x", 0)
            near.set("x", 2)
            proxy.listen()
            assert [change.new for change in watch] == [1]


def test_a_bookmark_of_another_log_can_begin_anew(
    session: Any,  # noqa: ANN401 - of either client
    near: wire_session.Session,
) -> None:
    near.register("x", 5)
    told: list[WatchStatus] = []
    foreign = Bookmark("foreign", 1, 0)
    with session.watch("x", bookmark=foreign, begin_anew=True, on_status=told.append) as watch:
        assert outline(take(watch, 1)) == [("initial_value", "x", 5)]
        near.set("x", 6)
        assert outline(take(watch, 1)) == [("value_change", "x", 6)]
        assert watch.bookmark.offset == near.head
    assert told[0].kind == "begun_anew"
    assert "'foreign'" in told[0].message
    assert "interrupted" not in [one.kind for one in told]


def test_beginning_anew_is_no_retry(face: Face, near: wire_session.Session) -> None:
    near.register("x", 5)
    with face.client(f"127.0.0.1:{near.bridge.port}", retries=False) as client:
        session = client.session(near.id)
        with session.watch("x", bookmark=Bookmark("foreign", 1, 0), begin_anew=True) as watch:
            assert outline(take(watch, 1)) == [("initial_value", "x", 5)]


def test_a_bookmark_that_retention_cut_away_can_begin_anew(tmp_path: Path) -> None:
    with BridgeProcess(
        tmp_path / "bridge.db", "--retention-age", "1s", "--session-ttl", "0"
    ) as short:
        near = wire_session.Session(short, "s")
        epoch = near.register("x", 5).log_epoch
        early = Bookmark(epoch, 1, 0)
        with Client(f"127.0.0.1:{short.port}") as client:
            session = client.session("s")

            def cut() -> bool:
                near.set("x", 5)
                try:
                    session.watch("x", bookmark=early).__enter__().close()
                except OffsetOutOfRange:
                    return True
                return False

            wait_until(cut, "it is cut")
        for name in FACES:
            with Face.open(name) as face, face.client(f"127.0.0.1:{short.port}") as client:
                session = client.session("s")
                with pytest.raises(OffsetOutOfRange, match="retention") as caught:
                    session.watch("x", bookmark=early).__enter__()
                assert int(caught.value.facts["first_available"]) > 2
                told: list[WatchStatus] = []
                with session.watch(
                    "x", bookmark=early, begin_anew=True, on_status=told.append
                ) as watch:
                    assert outline(take(watch, 1)) == [("initial_value", "x", 5)]
                assert told[0].kind == "begun_anew"


def test_a_log_that_was_copied_back_is_told_apart(face: Face, tmp_path: Path) -> None:
    """While it is watched: what is at the same offsets then is something else."""
    log, saved = tmp_path / "log", tmp_path / "saved"
    log.mkdir()

    def start() -> BridgeProcess:
        return BridgeProcess(log / "bridge.db")

    bridge = start()
    near = wire_session.Session(bridge, "s")
    near.register("x", 0)
    assert bridge.stop() == 0
    shutil.copytree(log, saved)
    bridge = start()
    with TcpProxy(bridge.port) as proxy, face.client(proxy.target) as client:
        session = client.session("s")
        told: list[WatchStatus] = []
        with (
            session.watch("x") as strict,
            session.watch("x", begin_anew=True, on_status=told.append) as lenient,
        ):
            near = wire_session.Session(bridge, "s")
            near.set("x", 1)
            near.set("x", 2)
            assert [change.new for change in take(strict, 2)] == [1, 2]
            assert [change.new for change in take(lenient, 2)] == [1, 2]
            bridge.kill()
            shutil.rmtree(log)
            shutil.copytree(saved, log)
            bridge = start()
            near = wire_session.Session(bridge, "s")
            for number in (10, 20, 30):
                near.set("x", number)
            proxy.upstream = bridge.port
            with pytest.raises(FailedPrecondition, match="resume_check"):
                next(strict)
            assert list(strict) == []
            assert outline(take(lenient, 1)) == [("initial_value", "x", 30)]
            near.set("x", 40)
            assert outline(take(lenient, 1)) == [("value_change", "x", 40)]
        kinds = [one.kind for one in told]
        assert kinds[:2] == ["caught_up", "interrupted"]
        assert kinds.count("begun_anew") == 1
        assert "resumed" not in kinds
        late = lenient.bookmark
        bridge.kill()
        shutil.rmtree(log)
        shutil.copytree(saved, log)
        bridge = start()
        proxy.upstream = bridge.port
        with pytest.raises(OffsetOutOfRange):
            session.watch("x", bookmark=late).__enter__()
        with session.watch("x", bookmark=late, begin_anew=True) as watch:
            assert outline(take(watch, 1)) == [("initial_value", "x", 0)]
    assert bridge.stop() == 0


# Ends.


def test_closing_ends_the_wait_of_whoever_iterates(
    session: Any,  # noqa: ANN401 - of either client
    near: wire_session.Session,
    proxy: TcpProxy,
    pool: ThreadPoolExecutor,
) -> None:
    near.register("x", 0)
    with session.watch("x") as watch:
        reading = pool.submit(list, watch)
        near.set("x", 1)
        near.set("x", 2)
        wait_until(lambda: watch.bookmark.offset == near.head, "it was told")
        watch.close()
        assert [change.new for change in reading.result(10)] == [1, 2]
    told: list[WatchStatus] = []
    with session.watch("x", on_status=told.append) as watch:  # and while it looks for the bridge
        reading = pool.submit(list, watch)
        proxy.refuse()
        wait_until(lambda: len(told) > 4, "it is tried again")
        watch.close()
        assert reading.result(10) == []


def test_leaving_the_block_ends_the_watch_at_the_bridge(
    face: Face, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    with (
        BridgeProcess(tmp_path / "bridge.db", "--max-session-watches", "1") as small,
        face.client(f"127.0.0.1:{small.port}") as client,
    ):
        near = wire_session.Session(small, "s")
        near.register("x", 0)
        session = client.session("s")
        for number in range(3):
            with session.watch("x", initial=True) as watch:
                assert next(watch).new == number
                with pytest.raises(BridgeError) as caught:
                    session.watch("x").__enter__()
                assert caught.value.code == "RESOURCE_EXHAUSTED"
            near.set("x", number + 1)
            wait_until(lambda: opens(session), "there is room again")


def opens(session: Any) -> bool:  # noqa: ANN401 - of either client
    try:
        with session.watch("x"):
            return True
    except BridgeError:
        return False


# Callbacks.


def test_a_subscription_calls_back_in_order(session: Any, near: wire_session.Session) -> None:  # noqa: ANN401
    near.register("x", 0)
    seen: list[int] = []
    subscription = session.subscribe(lambda change: seen.append(change.new), "x")
    for number in range(1, 6):
        near.set("x", number)
    assert subscription.wait(0.01) is False
    near.end()
    assert subscription.wait(PATIENCE) is True
    assert (seen, subscription.error) == ([1, 2, 3, 4, 5], None)
    subscription.close()


def test_a_callback_that_raises_is_logged_and_others_follow(
    session: Any,  # noqa: ANN401 - of either client
    near: wire_session.Session,
    caplog: pytest.LogCaptureFixture,
) -> None:
    near.register("x", 0)
    seen: list[int] = []

    def call(change: Any) -> None:  # noqa: ANN401 - a change
        seen.append(change.new)
        raise ValueError(f"the secret {change.new}")

    subscription = session.subscribe(call, "x")
    with caplog.at_level(logging.ERROR):
        near.set("x", 1)
        near.set("x", 2)
        near.end()
        assert subscription.wait(PATIENCE)
    assert seen == [1, 2]
    assert [record.message.splitlines()[0] for record in caplog.records] == [
        "a callback raised ValueError for variable 'x'"
    ] * 2
    assert "in call" in caplog.text
    assert "secret" not in "".join(record.message.splitlines()[0] for record in caplog.records)


def test_a_callback_may_write_and_end_its_subscription(
    proxy: TcpProxy, near: wire_session.Session
) -> None:
    near.register("x", 0)
    near.register("copy", 0)
    made = threading.Event()
    ended = threading.Event()
    with Client(proxy.target) as client:
        session = client.session(near.id)

        def call(change: Any) -> None:  # noqa: ANN401 - a change
            session["copy"] = change.new
            assert made.wait(PATIENCE)
            subscription.close()
            ended.set()

        subscription = session.subscribe(call, "x")
        made.set()
        near.set("x", 5)
        assert ended.wait(PATIENCE)
        assert subscription.wait(PATIENCE)
        near.set("x", 6)
        assert session["copy"] == 5


async def test_a_coroutine_as_callback_may_write_and_end_its_subscription(
    proxy: TcpProxy, near: wire_session.Session
) -> None:
    near.register("x", 0)
    near.register("copy", 0)
    async with AsyncClient(proxy.target) as client:
        session = client.session(near.id)

        async def call(change: Any) -> None:  # noqa: ANN401 - a change
            await session.set("copy", change.new)
            await subscription.close()

        subscription = await session.subscribe(call, "x")
        near.set("x", 5)
        assert await subscription.wait(PATIENCE)
        near.set("x", 6)
        assert await session["copy"] == 5


def test_the_end_of_a_subscription_is_told_to_who_wants_to_know(
    session: Any,  # noqa: ANN401 - of either client
    near: wire_session.Session,
    proxy: TcpProxy,
    caplog: pytest.LogCaptureFixture,
) -> None:
    near.register("x", 0)
    told: list[BridgeError] = []
    subscription = session.subscribe(print, "x", on_error=told.append)
    with BridgeProcess("memory:") as other, caplog.at_level(logging.ERROR):
        proxy.upstream = other.port
        proxy.cut()
        assert subscription.wait(PATIENCE)
    assert isinstance(subscription.error, BridgeError)
    assert told == [subscription.error]
    assert "a subscription ended" in caplog.text
    subscription.close()


def test_closing_a_subscription_waits_for_the_call_that_runs(
    proxy: TcpProxy, near: wire_session.Session, pool: ThreadPoolExecutor
) -> None:
    near.register("x", 0)
    entered, leave = threading.Event(), threading.Event()

    def call(change: object) -> None:
        del change
        entered.set()
        assert leave.wait(PATIENCE)

    with Client(proxy.target) as client:
        subscription = client.session(near.id).subscribe(call, "x")
        near.set("x", 1)
        assert entered.wait(PATIENCE)
        closing = pool.submit(subscription.close)
        assert not subscription.wait(0.05)
        assert not closing.done()
        leave.set()
        closing.result(PATIENCE)


# Turns that are cancelled.


async def test_turns_that_are_cancelled_lose_nothing(
    proxy: TcpProxy, near: wire_session.Session
) -> None:
    register_block(near)
    seen: list[Any] = []

    def write() -> None:
        for number in range(1, 11):
            write_block(near, number)
        near.end()

    async def read(watch: AsyncWatch) -> None:
        async for change in watch:
            seen.append(change)
            if len(seen) == len(BLOCK):
                writing.append(asyncio.get_running_loop().run_in_executor(None, write))

    writing: list[Awaitable[None]] = []
    cancelled, ended = 0, False
    told: list[str] = []
    async with (
        AsyncClient(proxy.target) as client,
        client.session(near.id).watch(
            initial=True, on_status=lambda status: told.append(status.kind)
        ) as watch,
    ):
        while not ended:
            try:
                # Longer and longer, so that there is an end.
                async with asyncio.timeout(0.0002 * cancelled):
                    await read(watch)
                    ended = True
            except TimeoutError:
                cancelled += 1
        await writing[0]
    assert cancelled > 1
    assert set(told) <= {"caught_up"}  # the connection is not what ended
    initial, changes = seen[: len(BLOCK)], seen[len(BLOCK) :]
    assert [change.name for change in initial] == BLOCK
    assert {change.kind for change in initial} == {"initial_value"}
    assert [number_of(change) for change in changes] == [n for n in range(1, 11) for _ in BLOCK]
    offsets = [change.offset for change in changes]
    assert offsets == sorted(set(offsets))
