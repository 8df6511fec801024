"""Calling Elixir: tools there, statuses as errors of ours, and what goes along with a call."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc
import numpy as np
import pytest
import pytest_asyncio
from google.protobuf.any_pb2 import Any as AnyMessage

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge.elixir import Elixir, ElixirToolFailed
from snakepit_bridge.errors import (
    AlreadyExists,
    BridgeError,
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    InternalError,
    InvalidRequest,
    InvalidValue,
    NotFound,
    OffsetOutOfRange,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
    VersionConflict,
)
from tests.elixir_side import PATIENCE, ElixirSide, as_elixir_writes

MAX_SIZE = 1024**2
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest_asyncio.fixture
async def side() -> AsyncIterator[ElixirSide]:
    async with ElixirSide() as side:
        side.expose(pb.ToolSpec(name="echo", description="Gives what it got."), lambda value: value)
        yield side


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[Elixir]:
    elixir = Elixir(address, max_size=MAX_SIZE)
    try:
        yield elixir
    finally:
        await elixir.close()


@pytest_asyncio.fixture
async def elixir(side: ElixirSide) -> AsyncIterator[Elixir]:
    async with connected(side.address) as elixir:
        yield elixir


def nobody() -> str:
    """An address where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


# Tools.


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -1, 2**70, 0.5, "", "text", '"quoted"', "ä\n", [1, [2]], {"a": {"b": None}}],
)
async def test_a_value_goes_to_a_tool_and_comes_back(elixir: Elixir, value: object) -> None:
    result = await elixir.call_tool("s", "echo", {"value": value})
    assert result == value
    assert type(result) is type(value)


async def test_arrays_and_numbers_that_json_lacks_go_as_the_wire_has_them(elixir: Elixir) -> None:
    tensor = np.arange(6.0).reshape(2, 3)
    assert await elixir.call_tool("s", "echo", {"value": tensor}) == {
        "shape": [2, 3],
        "data": tensor.ravel().tolist(),
    }
    assert await elixir.call_tool("s", "echo", {"value": math.nan}) == "NaN"


async def test_a_call_tells_whose_it_is(elixir: Elixir, side: ElixirSide) -> None:
    await elixir.call_tool(
        "s", "echo", {"value": 1}, correlation_id="c-1", traceparent=TRACEPARENT, timeout=20
    )
    (call,) = side.of("ExecuteElixirTool")
    assert (call.request.session_id, call.request.tool_name) == ("s", "echo")
    assert dict(call.request.metadata) == {"correlation_id": "c-1"}
    assert call.metadata["x-snakepit-correlation-id"] == "c-1"
    assert call.metadata["traceparent"] == TRACEPARENT


async def test_an_id_that_is_no_header_goes_in_the_request_only(
    elixir: Elixir, side: ElixirSide
) -> None:
    await elixir.call_tool("s", "echo", {"value": 1}, correlation_id="ä\n")
    (call,) = side.of("ExecuteElixirTool")
    assert call.request.metadata["correlation_id"] == "ä\n"
    assert "x-snakepit-correlation-id" not in call.metadata


async def test_a_result_without_a_value_is_none(elixir: Elixir, side: ElixirSide) -> None:
    side.answers["ExecuteElixirTool"] = lambda _: pb.ExecuteElixirToolResponse(success=True)
    assert await elixir.call_tool("s", "any", {}) is None


async def test_a_binary_result_is_read(elixir: Elixir, side: ElixirSide) -> None:
    description = b'{"shape": [3], "dtype": "int16", "binary_format": "raw"}'
    side.answers["ExecuteElixirTool"] = lambda _: pb.ExecuteElixirToolResponse(
        success=True,
        result=AnyMessage(type_url="dspex.variables/tensor.binary", value=description),
        binary_result=np.arange(3, dtype="<i2").tobytes(),
    )
    result = await elixir.call_tool("s", "any", {})
    assert isinstance(result, np.ndarray)
    assert result.tolist() == [0, 1, 2]


async def test_a_result_that_is_none_is_refused(elixir: Elixir, side: ElixirSide) -> None:
    side.answers["ExecuteElixirTool"] = lambda _: pb.ExecuteElixirToolResponse(
        success=True, result=AnyMessage(type_url="dspex.variables/float", value=b"{:ok, 1}")
    )
    with pytest.raises(InvalidValue):
        await elixir.call_tool("s", "any", {})


async def test_a_tool_that_fails_says_why(elixir: Elixir, side: ElixirSide) -> None:
    def fail() -> None:
        raise ValueError("no such ledger")

    side.expose(pb.ToolSpec(name="fail"), fail)
    with pytest.raises(ElixirToolFailed, match="'fail' failed: no such ledger") as caught:
        await elixir.call_tool("s", "fail", {})
    assert (caught.value.tool, caught.value.why) == ("fail", "no such ledger")
    assert isinstance(caught.value, RuntimeError)
    with pytest.raises(ElixirToolFailed, match="Tool strange not found"):
        await elixir.call_tool("s", "strange", {})


async def test_long_words_of_elixir_are_shortened(elixir: Elixir, side: ElixirSide) -> None:
    side.answers["ExecuteElixirTool"] = lambda _: pb.ExecuteElixirToolResponse(
        success=False, error_message="why " * 10_000
    )
    with pytest.raises(ElixirToolFailed) as caught:
        await elixir.call_tool("s", "any", {})
    assert len(str(caught.value)) < 3_000


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (object(), ["'value'", "'echo'"]),
        (np.zeros(65_537), ["'value'", "'echo'", "524296 bytes", ".tolist()"]),
    ],
)
async def test_an_argument_that_has_no_form_is_refused_before_the_call(
    elixir: Elixir, side: ElixirSide, value: object, words: Sequence[str]
) -> None:
    with pytest.raises(InvalidValue) as caught:
        await elixir.call_tool("s", "echo", {"value": value})
    assert caught.value.field == "parameters.value"
    for word in words:
        assert word in caught.value.message
    assert side.calls == []


async def test_the_exposed_tools_are_listed(elixir: Elixir, side: ElixirSide) -> None:
    (spec,) = await elixir.tools("s")
    assert (spec.name, spec.description) == ("echo", "Gives what it got.")
    assert side.of("GetExposedElixirTools")[0].request.session_id == "s"


# Forwarding.


async def test_what_is_forwarded_is_the_bytes_and_the_tracing(
    elixir: Elixir, side: ElixirSide
) -> None:
    request = pb.ExecuteElixirToolRequest(session_id="s", tool_name="echo")
    request.parameters["value"].CopyFrom(as_elixir_writes([1, 2]))
    headers = [
        ("traceparent", TRACEPARENT),
        ("tracestate", "a=b"),
        ("baggage", "user=7"),
        ("x-snakepit-correlation-id", "c-1"),
        ("baggage", "user=\N{SNAKE}"),
        ("authorization", "Bearer secret"),
        ("grpc-trace-bin", "x"),
    ]
    raw = await elixir.forward("ExecuteElixirTool", request.SerializeToString(), headers, 20)
    answer = pb.ExecuteElixirToolResponse.FromString(raw)
    assert answer.success
    assert answer.result.value == b"[1, 2]"
    (call,) = side.of("ExecuteElixirTool")
    assert call.request == request
    assert call.metadata | dict(headers[:4]) == call.metadata
    assert not {"authorization", "grpc-trace-bin"} & set(call.metadata)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("INVALID_ARGUMENT", InvalidRequest),
        ("NOT_FOUND", NotFound),
        ("ALREADY_EXISTS", AlreadyExists),
        ("FAILED_PRECONDITION", FailedPrecondition),
        ("RESOURCE_EXHAUSTED", ResourceExhausted),
        ("UNIMPLEMENTED", Unimplemented),
        ("INTERNAL", InternalError),
        ("UNKNOWN", BridgeError),
        ("PERMISSION_DENIED", BridgeError),
        ("UNAUTHENTICATED", BridgeError),
        ("CANCELLED", Cancelled),
        ("ABORTED", VersionConflict),
        ("OUT_OF_RANGE", OffsetOutOfRange),
        ("DATA_LOSS", DataLoss),
        ("DEADLINE_EXCEEDED", DeadlineExceeded),
    ],
)
async def test_a_status_becomes_our_error_of_the_same_code(
    elixir: Elixir, side: ElixirSide, code: str, kind: type[BridgeError]
) -> None:
    side.faults["GetExposedElixirTools"] = (grpc.StatusCode[code], "so it is")
    with pytest.raises(kind) as caught:
        await elixir.forward("GetExposedElixirTools", b"", (), 20)
    assert (caught.value.code, caught.value.reason) == (code, f"ELIXIR_{code}")
    assert caught.value.message == (
        f"Elixir at {side.address} answered GetExposedElixirTools with {code}: so it is"
    )


async def test_an_answer_that_is_too_large_is_an_error(elixir: Elixir, side: ElixirSide) -> None:
    side.expose(pb.ToolSpec(name="large"), lambda: "x" * 2 * MAX_SIZE)
    with pytest.raises(ResourceExhausted):
        await elixir.call_tool("s", "large", {})


# Time, and being gone.


async def test_nobody_there_is_unavailable_and_names_the_address() -> None:
    address = nobody()
    async with connected(address) as elixir:
        with pytest.raises(Unavailable, match="--elixir-address") as caught:
            await elixir.tools("s")
    assert address in caught.value.message


async def test_a_deadline_is_kept(elixir: Elixir, side: ElixirSide) -> None:
    side.silent.add("ExecuteElixirTool")
    with pytest.raises(DeadlineExceeded, match="ExecuteElixirTool"):
        await elixir.call_tool("s", "echo", {"value": 1}, timeout=0.3)


async def test_elixir_is_found_again_when_it_is_back(elixir: Elixir, side: ElixirSide) -> None:
    assert await elixir.call_tool("s", "echo", {"value": 1}) == 1
    await side.stop()
    with pytest.raises(Unavailable):
        await elixir.call_tool("s", "echo", {"value": 2})
    await side.start()
    async with asyncio.timeout(PATIENCE):
        await elixir._channel.channel_ready()
    assert await elixir.call_tool("s", "echo", {"value": 3}) == 3


async def test_closing_ends_a_call_under_way(elixir: Elixir, side: ElixirSide) -> None:
    side.silent.add("ExecuteElixirTool")
    calling = asyncio.create_task(elixir.call_tool("s", "echo", {"value": 1}))
    await side.called("ExecuteElixirTool")
    await elixir.close()
    with pytest.raises(Unavailable, match="shutting down"):
        await calling
    with pytest.raises(Unavailable, match="shutting down"):
        await elixir.tools("s")


async def test_a_caller_that_is_cancelled_is_cancelled(elixir: Elixir, side: ElixirSide) -> None:
    side.silent.add("ExecuteElixirTool")
    calling = asyncio.create_task(elixir.call_tool("s", "echo", {"value": 1}))
    await side.called("ExecuteElixirTool")
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling


# Announcing.


REGISTRATIONS = [pb.ToolRegistration(name="a", description="A."), pb.ToolRegistration(name="b")]


async def test_a_session_and_its_tools_are_announced(elixir: Elixir, side: ElixirSide) -> None:
    await elixir.announce("s", REGISTRATIONS, "worker-1")
    assert [call.method for call in side.calls] == ["InitializeSession", "RegisterTools"]
    request = side.calls[1].request
    assert (request.session_id, request.worker_id) == ("s", "worker-1")
    assert list(request.tools) == REGISTRATIONS
    await elixir.announce("t", [], "worker-1")
    assert [call.method for call in side.calls[2:]] == ["InitializeSession"]


@pytest.mark.parametrize("method", ["InitializeSession", "RegisterTools"])
async def test_nobody_suffers_when_elixir_refuses_that(
    elixir: Elixir, side: ElixirSide, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    side.faults[method] = (grpc.StatusCode.UNIMPLEMENTED, "no such thing here")
    with caplog.at_level(logging.DEBUG, "snakepit_bridge.elixir"):
        await elixir.announce("s", REGISTRATIONS, "worker-1")
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG
    assert "no such thing here" in record.getMessage()


async def test_tools_that_elixir_does_not_take_are_noted(
    elixir: Elixir, side: ElixirSide, caplog: pytest.LogCaptureFixture
) -> None:
    side.answers["InitializeSession"] = lambda _: pb.InitializeSessionResponse(success=False)
    with caplog.at_level(logging.DEBUG, "snakepit_bridge.elixir"):
        await elixir.announce("s", REGISTRATIONS, "worker-1")
    assert "not_found" in caplog.records[-1].getMessage()


async def test_announcing_to_nobody_is_no_error() -> None:
    async with connected(nobody()) as elixir:
        await elixir.announce("s", REGISTRATIONS, "worker-1")
