"""The session of an isolated tool is, call for call, what a session is in the bridge's process."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc.status_pb2 import Status

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge import tool_worker_pb2 as frames
from snakepit_bridge.client.statuses import error_of
from snakepit_bridge.elixir import ElixirToolFailed
from snakepit_bridge.errors import (
    BridgeError,
    EpochMismatch,
    NotFound,
    OffsetOutOfRange,
    SessionNotFound,
    Unavailable,
)
from snakepit_bridge.session_context import SessionContext, Variable, VariableVersion
from snakepit_bridge.tool_session import ToolSession
from snakepit_bridge.tools.context import ToolCancelled
from snakepit_bridge.tools.remote_session import RemoteToolSession, headers
from tests.bridge_process import BridgeProcess
from tests.elixir_side import ElixirSide
from tests.tcp_proxy import TcpProxy
from tests.wire_session import Session

NEVER = datetime(1970, 1, 1, tzinfo=UTC)

Step = Callable[[Any], Any]


def remote(session: Session, **fields: Any) -> RemoteToolSession:  # noqa: ANN401 - of any type
    return RemoteToolSession(
        frames.Job(session_id=session.id, port=session.bridge.port, **fields), None
    )


@pytest.fixture
def context(session: Session) -> Iterator[RemoteToolSession]:
    session.start()
    with remote(session) as context:
        yield context


def shown(value: Any) -> Any:  # noqa: ANN401 - any result of a session
    """What can be compared: without times, and without who wrote."""
    if isinstance(value, Variable):
        return shown_fields(replace(value, updated_at=NEVER, source=""))
    if isinstance(value, VariableVersion):
        return shown_fields(replace(value, changed_at=NEVER, source=""))
    if isinstance(value, np.ndarray):
        return ("array", str(value.dtype), value.tolist(), value.flags.writeable)
    if isinstance(value, list):
        return [shown(one) for one in value]
    if isinstance(value, Mapping):
        # Those of a message come in any order.
        return {key: shown(one) for key, one in sorted(value.items())}
    return value


def shown_fields(value: Any) -> dict[str, Any]:  # noqa: ANN401 - a dataclass
    return {name: shown(getattr(value, name)) for name in value.__slots__}


def outcome(step: Step, context: Any) -> Any:  # noqa: ANN401 - what a step gives, or raises
    try:
        return shown(step(context))
    except BridgeError as error:
        return type(error).__name__, error.message, error.field, getattr(error, "errors", None)


STEPS: list[Step] = [
    lambda s: s.register_variable("x", "float", 1, {"max": 5}, {"unit": "K"}),
    lambda s: s.register_variable("x", "float", 1),
    lambda s: s.register_variable("y", "complex", 1),
    lambda s: s.register_variable("y", "map", {"a": 1}),
    lambda s: s.register_variable("y", "integer", 1, {"maximum": 3}),
    lambda s: s.register_variable("y", "integer", "1"),
    lambda s: s.register_variable("y", "integer", 9, {"max": 3}),
    lambda s: s.register_variable("a\n", "integer", 1),
    lambda s: s.register_variable("a\n", "integer", object()),
    lambda s: s.register_variable("i", "integer", 2**70),
    lambda s: s.register_variable("s", "string", "äöü \x00"),
    lambda s: s.register_variable("b", "boolean", True),
    lambda s: s.register_variable("c", "choice", "one", {"choices": ["one", "two"]}),
    lambda s: s.register_variable("e", "embedding", [0.1, float("nan"), 3]),
    lambda s: s.register_variable("t", "tensor", np.arange(6).reshape(2, 3)),
    lambda s: s.register_variable("big", "tensor", np.ones((300, 300), np.float32)),
    lambda s: s.get_variable("x"),
    lambda s: s.get_variable("var_x_2"),
    lambda s: s.get_variable("nothing"),
    lambda s: s.get_variable(""),
    lambda s: s.get_variables(["x", "nothing", "i", "x", "var_x_2"]),
    lambda s: s.get_variables([]),
    lambda s: [v.name for v in s.list_variables()],
    lambda s: s.list_variables("?"),
    lambda s: s.list_variables("nothing*"),
    lambda s: s.set_variable("x", 2, {"why": "because"}),
    lambda s: s.set_variable("x", np.float32(0.5)),
    lambda s: s.set_variable("var_x_2", float("inf")),
    lambda s: s.set_variable("x", float("-inf")),
    lambda s: s.get_variable("x"),
    lambda s: s.set_variable("x", "2"),
    lambda s: s.set_variable("x", None),
    lambda s: s.set_variable("x", True),
    lambda s: s.set_variable("x", object()),
    lambda s: s.set_variable("x", 7),
    lambda s: s.set_variable("x", 1, expected_version=2),
    lambda s: s.set_variable("x", "one", expected_version=2),
    lambda s: s.set_variable("x", 1, expected_version=-1),
    lambda s: s.set_variable("x", 1, expected_version=4),
    lambda s: s.set_variable("i", 3.0),
    lambda s: s.set_variable("i", 3.5),
    lambda s: s.set_variable("i", np.int64(-1)),
    lambda s: s.set_variable("c", "three"),
    lambda s: s.set_variable("nothing", object()),
    lambda s: s.set_variable("", 1),
    lambda s: s.set_variable("big", np.zeros((300, 300), np.int8)),
    lambda s: s.set_variable("big", [[1, 2], [3]]),
    lambda s: s.get_variable("big"),
    lambda s: s.set_variable("x", 1, {"k" * 300: "v"}),
    lambda s: s.set_variables({}),
    lambda s: s.set_variables({"x": 1, "i": 5, "t": [[1]]}, {"why": "batch"}),
    lambda s: s.set_variables({"x": 1, "i": "five", "c": "nine", "b": object()}),
    lambda s: s.set_variables({"x": 1, "i": "five", "c": "nine", "b": object()}, atomic=False),
    lambda s: s.set_variables({"x": 2, "i": "x"}, expected_versions={"x": 99, "i": 99}),
    lambda s: s.set_variables({"x": 2, "i": 6}, expected_versions={"x": 1}, atomic=False),
    lambda s: s.set_variables({"x": 2}, expected_versions={"i": 1}),
    lambda s: s.set_variables({"x": 2, "nothing": 1}),
    lambda s: s.set_variables({"x": 2, "var_x_2": 1}),
    lambda s: s.get_variable_history("x"),
    lambda s: s.get_variable_history("x", 2),
    lambda s: s.get_variable_history("x", -1),
    lambda s: s.get_variable_history("nothing"),
    lambda s: s.rollback_variable("x", 1, {"why": "back"}),
    lambda s: s.rollback_variable("x", 99),
    lambda s: s.rollback_variable("x", 0),
    lambda s: s.rollback_variable("nothing", 1),
    lambda s: s.get_variable_history("x", 1),
    lambda s: s.delete_variable("x"),
    lambda s: s.delete_variable("x"),
    lambda s: s.get_variable("x"),
    lambda s: s.set_variable("x", 1),
    lambda s: s.get_variable_history("var_x_2", 1),
    lambda s: s.rollback_variable("var_x_2", 1),
    lambda s: s.register_variable("x", "string", "anew"),
    lambda s: s.set_variable("x", "of another type"),
    lambda s: s.set_variable("x", 1),
    lambda s: [v.name for v in s.list_variables()],
]


def test_each_call_does_what_it_does_in_the_bridges_process(context: RemoteToolSession) -> None:
    with SessionContext(context.session_id) as local:
        for number, step in enumerate(STEPS):
            here, there = outcome(step, local), outcome(step, context)
            assert repr(there) == repr(here), f"step {number}: {inspect.getsource(step)}"


async def test_each_call_has_an_asynchronous_form(context: RemoteToolSession) -> None:
    assert await context.register_variable_async("x", "integer", 1) == "var_x_2"
    assert await context.set_variable_async("x", 2, expected_version=1) == 2
    assert (await context.set_variables_async({"x": 3})).versions == {"x": 3}
    variable = await context.get_variable_async("x")
    assert variable is not None
    assert await context.get_variables_async(["x"]) == {"x": variable}
    assert await context.list_variables_async("x") == [variable]
    assert len(await context.get_variable_history_async("x", 2)) == 2
    assert (await context.rollback_variable_async("x", 1)).value == 1
    seen: list[Any] = []
    observer = await context.watch_variable_async("x", lambda *change: seen.append(change[2]))
    await context.set_variable_async("x", 5)
    await context.flush_async(30)
    assert seen == [5]
    assert await context.unwatch_variable_async(observer)
    await context.delete_variable_async("x")
    assert await context.elixir_tools_async() == {}
    with pytest.raises(BridgeError, match="Elixir"):
        await context.call_elixir_tool_async("anything", a=1)
    await context.report_progress_async(1)


async def test_what_blocks_is_refused_on_an_event_loop(context: RemoteToolSession) -> None:
    await context.register_variable_async("x", "integer", 1)
    variable = context.get_variable("x")  # as in the bridge's process, where it is in memory
    assert variable is not None
    assert context.get_variables(["x"])["x"] == context.list_variables()[0] == variable
    calls: list[Callable[[], object]] = [
        lambda: context.register_variable("y", "integer", 1),
        lambda: context.set_variable("x", 2),
        lambda: context.set_variables({"x": 2}),
        lambda: context.delete_variable("x"),
        lambda: context.rollback_variable("x", 1),
        lambda: context.get_variable_history("x"),
        lambda: context.watch_variable("x", print),
        lambda: context.unwatch_variable("observer_1"),
        context.flush,
        lambda: context.elixir_tools,
        lambda: context.call_elixir_tool("anything"),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="_async instead"):
            call()


def test_it_has_what_tools_have_in_the_bridges_process() -> None:
    def public(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    made = {"session_id", "request_metadata", "tool_name", "call_id"}
    assert public(ToolSession) <= public(RemoteToolSession) | made
    for name in public(SessionContext):
        parameters = inspect.signature(getattr(SessionContext, name)).parameters
        own = inspect.signature(getattr(RemoteToolSession, name)).parameters
        assert [(p.name, p.kind, p.default) for p in own.values()] == [
            (p.name, p.kind, p.default) for p in parameters.values()
        ], name


def test_a_type_that_changed_meanwhile_is_noticed(
    context: RemoteToolSession, session: Session
) -> None:
    context.register_variable("x", "integer", 1)
    session.delete("x")
    session.register("x", "one", "string")
    assert context.set_variable("x", "two") == 2


def test_observers_are_called_in_order_and_once(context: RemoteToolSession) -> None:
    context.register_variable("a", "integer", 0)
    context.register_variable("b", "float", 0)
    seen: list[Any] = []
    threads = set()

    def note(name: str, old: Any, new: Any, metadata: Any) -> None:  # noqa: ANN401 - as it comes
        threads.add(threading.get_ident())
        seen.append((name, old, new, dict(metadata)))

    first = context.watch_variable("a", note)
    second = context.watch_variable("*", lambda *change: seen.append(change[0]))
    assert first != second
    context.set_variable("a", 1, {"why": "because"})
    context.set_variables({"a": 2, "b": 2.5})
    context.rollback_variable("a", 1)
    context.flush(30)
    whole = [one for one in seen if isinstance(one, tuple)]
    assert [one[:3] for one in whole] == [("a", 0, 1), ("a", 1, 2), ("a", 2, 0)]
    assert whole[0][3].pop("correlation_id")
    assert whole[0][3] == {"why": "because", "source": "elixir"}
    assert [one for one in seen if isinstance(one, str)] == ["a", "a", "b", "a"]
    assert list(context.get_variables(["b", "a"])) == ["b", "a"]
    assert threading.get_ident() not in threads
    assert context.unwatch_variable(first)
    assert not context.unwatch_variable(first)
    context.set_variable("a", 9)
    context.flush(30)
    assert len(seen) == 8


def test_an_observer_may_use_the_session_and_end_itself(context: RemoteToolSession) -> None:
    context.register_variable("a", "integer", 0)
    context.register_variable("copy", "integer", 0)
    refused: list[str] = []
    ended = threading.Event()

    def copy(name: str, old: int, new: int, metadata: Any) -> None:  # noqa: ANN401 - as it comes
        context.set_variable("copy", new)
        try:
            context.flush()
        except RuntimeError as error:
            refused.append(str(error))
        assert context.unwatch_variable(observer)
        ended.set()
        raise ValueError("which nobody hears")

    observer = context.watch_variable("a", copy)
    context.set_variable("a", 5)
    assert ended.wait(30)
    context.set_variable("a", 6)
    copied = context.get_variable("copy")
    assert copied is not None
    assert (copied.value, len(refused)) == (5, 1)


def test_unwatching_waits_for_the_call_that_runs(context: RemoteToolSession) -> None:
    context.register_variable("a", "integer", 0)
    entered, leave = threading.Event(), threading.Event()

    def wait(*change: Any) -> None:  # noqa: ANN401 - whatever comes
        entered.set()
        assert leave.wait(30)

    observer = context.watch_variable("a", wait)
    context.set_variable("a", 1)
    assert entered.wait(30)
    with pytest.raises(TimeoutError, match="within"):
        context.flush(0.05)
    unwatched = threading.Thread(target=context.unwatch_variable, args=(observer,))
    unwatched.start()
    unwatched.join(0.1)
    assert unwatched.is_alive()
    leave.set()
    unwatched.join(30)
    assert not unwatched.is_alive()


def test_a_watch_that_is_refused_is_told(context: RemoteToolSession, session: Session) -> None:
    with pytest.raises(BridgeError, match="of 0 characters"):
        context.watch_variable("", print)
    session.end()
    with pytest.raises(SessionNotFound):
        context.watch_variable("x", print)
    context.close()
    with pytest.raises(Unavailable, match="is over"):
        context.watch_variable("x", print)


def test_an_observer_ends_with_its_session(context: RemoteToolSession, session: Session) -> None:
    context.register_variable("a", "integer", 0)
    seen: list[int] = []
    context.watch_variable("a", lambda *change: seen.append(change[2]))
    context.set_variable("a", 1)
    session.end()
    deadline = time.monotonic() + 30
    while context._observers._observers and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not context._observers._observers
    assert seen == [1]


def test_a_watch_that_the_bridge_ends_goes_on(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("short") / "bridge.db"

    async def iterate(context: RemoteToolSession, seen: list[int]) -> None:
        async with context.watch("a") as changes:
            iterating.set()
            seen += [change.new async for change in changes]

    with BridgeProcess(path, "--watch-max-lifetime", "0.5s") as bridge:
        session = Session(bridge, "short")
        session.register("a", 0)
        called: list[int] = []
        iterated: list[int] = []
        iterating = threading.Event()
        with remote(session) as context:
            context.watch_variable("a", lambda *change: called.append(change[2]))
            thread = threading.Thread(target=lambda: asyncio.run(iterate(context, iterated)))
            thread.start()
            assert iterating.wait(30)
            end = time.monotonic() + 2
            number = 0
            while time.monotonic() < end:
                number += 1
                context.set_variable("a", number)
                time.sleep(0.01)
            context.flush(30)
            session.end()
            thread.join(30)
        assert called == iterated == list(range(1, number + 1))


async def changes_of(watch: Any, count: int) -> list[Any]:  # noqa: ANN401 - either kind
    """So many changes, without their times and sources."""
    async with watch as changes, asyncio.timeout(30):
        found = [await anext(changes) for _ in range(count)]
    return [replace(one, changed_at=NEVER, source="") for one in found]


async def test_changes_are_iterated_as_in_the_bridges_process(context: RemoteToolSession) -> None:
    with SessionContext("local") as local:
        sessions: list[Any] = [context, local]
        found = []
        for session in sessions:
            await session.register_variable_async("a", "integer", 0)
            await session.register_variable_async("b", "float", 0)
            await session.set_variable_async("a", 1, {"why": "because"})
            await session.set_variables_async({"a": 2, "b": 2.5})
            await session.delete_variable_async("b")
            kinds = ("value_change", "registered", "deleted")
            all_ = await changes_of(session.watch(after_offset=0, kinds=kinds), 6)
            some = await changes_of(session.watch("a", after_offset=0), 2)
            late = await changes_of(
                session.watch(
                    after_offset=some[0].resume_offset,
                    log_epoch=some[0].log_epoch,
                    resume_check=some[0].resume_check,
                ),
                2,
            )
            found.append(
                [
                    # Only what came as a call has got a correlation id.
                    replace(one, log_epoch="", resume_check=0, correlation_id="")
                    for one in (*all_, *some, *late)
                ]
            )
    assert found[0] == found[1]


async def test_a_turn_that_is_cancelled_loses_nothing(context: RemoteToolSession) -> None:
    await context.register_variable_async("a", "integer", 0)
    async with context.watch("a") as changes, asyncio.timeout(30):
        with pytest.raises(RuntimeError, match="open already"):
            await changes.__aenter__()
        for number in range(1, 4):
            turn = asyncio.ensure_future(anext(changes))
            await asyncio.sleep(0.01)
            turn.cancel()
            await asyncio.wait([turn])
            await context.set_variables_async({"a": number})
            assert (await anext(changes)).new == number
        assert changes.bookmark.offset == 5
        assert changes.log_epoch
    with pytest.raises(RuntimeError, match="not open"):
        await anext(changes)


async def test_a_watch_that_is_wrong_is_refused(
    context: RemoteToolSession, session: Session
) -> None:
    with pytest.raises(BridgeError, match="negative"):
        context.watch(after_offset=-1)
    with pytest.raises(BridgeError, match="kinds holds 'all'"):
        context.watch(kinds=["all"])
    with pytest.raises(OffsetOutOfRange):
        async with context.watch(after_offset=99, log_epoch=session.start().log_epoch):
            pass
    async with context.watch() as changes:
        session.end()
        assert [change async for change in changes] == []
    with pytest.raises(SessionNotFound):
        async with context.watch():
            pass


def test_everything_is_bound_to_one_log(session: Session) -> None:
    epoch = session.start().log_epoch
    with remote(session, log_epoch=epoch) as context:
        context.register_variable("x", "integer", 1)
        session.end()
        session.start()
        for call in (
            lambda: context.get_variable("x"),
            context.list_variables,
            lambda: context.register_variable("y", "integer", 1),
            lambda: context.set_variables({"x": 1}),
        ):
            with pytest.raises(EpochMismatch) as caught:
                call()
            assert caught.value.facts["log_epoch"] != epoch


def test_large_lists_and_histories_come_in_pages(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("small") / "bridge.db"
    with BridgeProcess(path, "--max-message-size", "64KiB") as bridge:
        session = Session(bridge, "pages")
        session.start()
        with remote(session) as context:
            for number in range(10):
                context.register_variable(f"v{number}", "string", "x" * 20_000)
            found = context.list_variables("v*")
            assert [variable.name for variable in found] == [f"v{n}" for n in range(10)]
            for number in range(10):
                context.set_variable("v0", f"{number}" * 20_000)
            history = context.get_variable_history("v0", 8)
            assert [entry.version for entry in history] == list(range(11, 3, -1))


def test_the_deadline_of_the_call_is_kept(context: RemoteToolSession, session: Session) -> None:
    assert not context.cancelled
    context.check_cancelled()
    with remote(session, deadline_unix_nanos=time.time_ns() - 1, call_id="late") as late:
        assert late.cancelled
        with pytest.raises(ToolCancelled, match="late"):
            late.check_cancelled()
        with pytest.raises(TimeoutError, match="get_variable was not answered"):
            late.get_variable("x")


class _Failed(grpc.RpcError):
    """What gRPC raises."""

    def __init__(self, code: grpc.StatusCode, words: str, details: bytes = b"") -> None:
        super().__init__()
        self._failed = code, words, details

    def code(self) -> grpc.StatusCode:
        return self._failed[0]

    def details(self) -> str:
        return self._failed[1]

    def trailing_metadata(self) -> Any:  # noqa: ANN401 - a type of gRPC's own
        return (("grpc-status-details-bin", self._failed[2]),) if self._failed[2] else None


@pytest.mark.parametrize("times", [1, 2])
def test_a_write_is_retried_and_not_done_twice(session: Session, times: int) -> None:
    session.register("x", 1)
    with TcpProxy(session.bridge.port) as proxy:
        job = frames.Job(session_id=session.id, port=proxy.port)
        with RemoteToolSession(job, None) as context:
            context.get_variable("x")
            proxy.cut_before_answer(times)
            assert context.set_variable("x", 2) == 2
        assert proxy.accepted == 1 + times
    assert (session.get("x").version, session.head) == (2, 3)


def test_a_write_fails_where_there_is_no_bridge() -> None:
    job = frames.Job(session_id="nowhere", port=1)
    with RemoteToolSession(job, None) as context, pytest.raises(Unavailable):
        context.delete_variable("x")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.NOT_FOUND, "NotFound"),
        (grpc.StatusCode.INVALID_ARGUMENT, "InvalidRequest"),
        (grpc.StatusCode.FAILED_PRECONDITION, "FailedPrecondition"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "ResourceExhausted"),
        (grpc.StatusCode.UNKNOWN, "InternalError"),
    ],
)
def test_a_status_without_a_reason_is_the_nearest_error(code: grpc.StatusCode, kind: str) -> None:
    error = error_of(_Failed(code, "words"))
    assert (type(error).__name__, error.message, error.facts) == (kind, "words", {})
    details = Status(message="more words").SerializeToString()
    assert error_of(_Failed(code, "words", details)).message == "more words"


async def test_tools_of_elixir_are_called_through_the_bridge() -> None:
    elixir = ElixirSide()
    await elixir.start()
    adds = pb.ToolSpec(name="add", description="Adds.")
    adds.parameters.add(name="a", type="integer", required=True)
    elixir.expose(adds, lambda a, b=1: a + b)
    job = frames.Job(
        session_id="s", port=elixir.port, tool="mine", call_id="call-1", correlation_id="from ä"
    )
    try:
        with RemoteToolSession(job, None) as context:
            assert await context.elixir_tools_async() == {
                "add": {
                    "name": "add",
                    "description": "Adds.",
                    "parameters": {"a": {"type": "integer", "required": True}},
                }
            }
            assert await context.call_elixir_tool_async("add", a=2, b=3) == 5
            with pytest.raises(ElixirToolFailed, match="'nothing' failed: Tool nothing not found"):
                await context.call_elixir_tool_async("nothing")
            elixir.faults["ExecuteElixirTool"] = (grpc.StatusCode.NOT_FOUND, "no such session")
            with pytest.raises(NotFound, match="no such session"):
                await context.call_elixir_tool_async("add", a=2)
    finally:
        await elixir.stop()
    call = elixir.of("ExecuteElixirTool")[0]
    assert call.metadata["x-snakepit-tool"] == "mine"
    assert call.metadata["x-snakepit-tool-call"] == "call-1"
    assert dict(call.request.metadata) == {"correlation_id": "from ä"}


def test_headers_are_what_grpc_takes() -> None:
    job = frames.Job(tool="größe 100%", call_id="c", traceparent="00-ä", tracestate="x")
    assert headers(job) == (
        ("x-snakepit-tool", "gr%C3%B6%C3%9Fe 100%25"),
        ("x-snakepit-tool-call", "c"),
    )
    assert headers(frames.Job(traceparent="00-a")) == (("traceparent", "00-a"),)


def test_arguments_for_elixir_have_to_be_values(context: RemoteToolSession) -> None:
    for value, words in ((object(), "has no type of its own"), (np.zeros(70_000), "binary values")):
        with pytest.raises(BridgeError, match=words) as caught:
            context.call_elixir_tool("there", it=value)
        assert caught.value.field == "parameters.it"
