"""One trace from a client's span to the event in the log, at a receiver that speaks OTLP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from snakepit_bridge import bridge_service_pb2 as pb
from tests.bridge_process import BridgeProcess
from tests.otlp_receiver import GrpcReceiver, HttpReceiver, Received, Receiver
from tests.wire_session import Session, packed

METHOD = "snakepit.bridge.BridgeService/"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE}-{PARENT}-01"


@pytest.fixture(scope="module", params=[GrpcReceiver, HttpReceiver], ids=["grpc", "http"])
def receiver(request: pytest.FixtureRequest) -> Iterator[Receiver]:
    with request.param() as opened:
        yield opened


@pytest.fixture(scope="module")
def bridge(receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BridgeProcess]:
    log = tmp_path_factory.mktemp("traces") / "bridge.db"
    environment = {
        **receiver.environment,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_TRACES_SAMPLER": "parentbased_always_off",
    }
    arguments = ("--adapter", "tests.traced_tools")
    with BridgeProcess(log, *arguments, environment=environment) as started:
        yield started


def traceparent(number: int, *, sampled: bool = True) -> tuple[str, str]:
    """A trace of its own for each test: its id and the header."""
    trace_id = f"{number:032x}"
    return trace_id, f"00-{trace_id}-{PARENT}-0{sampled:d}"


def spans_of(receiver: Receiver, trace_id: str, count: int) -> list[Received]:
    """All spans of a trace, once there are as many."""

    def found() -> list[Received]:
        return [span for span in receiver.spans if span.trace_id == trace_id]

    receiver.wait_for(lambda _: len(found()) >= count)
    return found()


def named(spans: list[Received], name: str) -> Received:
    [span] = [span for span in spans if span.name == name]
    return span


def test_a_set_is_followed_from_the_client_into_the_log(
    bridge: BridgeProcess, receiver: Receiver
) -> None:
    session = Session(bridge, "set")
    session.register("x", 1)
    trace_id, header = traceparent(1)
    fields = {"variable_identifier": "x", "value": packed(2)}
    session.call("SetVariable", [("traceparent", header), ("tracestate", "a=1")], **fields)
    spans = spans_of(receiver, trace_id, 3)
    call, decide, append = (
        named(spans, name) for name in (f"{METHOD}SetVariable", "decide", "append")
    )
    assert call.parent_span_id == PARENT
    assert {decide.parent_span_id, append.parent_span_id} == {call.span_id}
    assert (call.kind, decide.kind, append.kind) == ("SERVER", "INTERNAL", "PRODUCER")
    about = call.attributes
    assert about["rpc.system.name"] == "grpc"
    assert about["rpc.method"] == f"{METHOD}SetVariable"
    assert about["rpc.response.status_code"] == "OK"
    assert (about["snakepit.session_id"], about["snakepit.variable"]) == ("set", "x")
    assert about["snakepit.offset"] == append.attributes["snakepit.offset"] == 3
    assert append.attributes["snakepit.batch_size"] == 1
    assert not {"rpc.system", "rpc.service", "rpc.grpc.status_code"} & about.keys()
    [event, _] = session.history("x").entries
    assert event.traceparent == f"00-{trace_id}-{call.span_id}-01"
    assert event.correlation_id == about["snakepit.correlation_id"]


def test_a_parent_in_the_metadata_of_the_request_holds_as_well(
    bridge: BridgeProcess, receiver: Receiver
) -> None:
    session = Session(bridge, "map")
    trace_id, header = traceparent(2)
    session.register("x", 1, metadata={"traceparent": header})
    call = named(spans_of(receiver, trace_id, 3), f"{METHOD}RegisterVariable")
    assert call.parent_span_id == PARENT
    # What stands in the headers comes first; what is none is ignored.
    other, first = traceparent(3)
    fields = {"variable_identifier": "x", "value": packed(2), "metadata": {"traceparent": header}}
    session.call("SetVariable", [("traceparent", first)], **fields)
    assert named(spans_of(receiver, other, 3), f"{METHOD}SetVariable")
    third, valid = traceparent(4)
    fields["metadata"] = {"traceparent": valid}
    session.call("SetVariable", [("traceparent", "ff-no-trace-at-all")], **fields)
    assert named(spans_of(receiver, third, 3), f"{METHOD}SetVariable")


@pytest.mark.parametrize("bad", ["", "00", f"ff-{TRACE}-{PARENT}-01", SAMPLED.upper(), "00-0-0-1"])
def test_a_parent_that_is_none_is_ignored(bridge: BridgeProcess, bad: str) -> None:
    session = Session(bridge, f"bad {bad}")
    session.call(
        "RegisterVariable",
        [("traceparent", bad)],
        name="x",
        type="integer",
        initial_value=packed(1),
        metadata={"traceparent": bad},
    )
    [entry] = session.history("x").entries
    assert entry.traceparent.startswith("00-")
    assert TRACE not in entry.traceparent.lower()


def test_what_is_not_recorded_keeps_its_trace(bridge: BridgeProcess) -> None:
    session = Session(bridge, "unsampled")
    trace_id, header = traceparent(5, sampled=False)
    session.register("x", 1, metadata={"traceparent": header})
    [entry] = session.history("x").entries
    assert entry.traceparent.startswith(f"00-{trace_id}-")
    assert entry.traceparent.endswith("-00")


def test_a_delivery_is_linked_to_its_writer(bridge: BridgeProcess, receiver: Receiver) -> None:
    session = Session(bridge, "watched")
    session.register("x", 1)
    watching, header = traceparent(6)
    stream: Any = bridge.stub.WatchVariables(
        pb.WatchVariablesRequest(session_id=session.id, send_caught_up=True),
        metadata=[("traceparent", header)],
        timeout=30,
    )
    assert next(stream).update_type == "caught_up"
    writing, written = traceparent(7)
    session.set("x", 2, metadata={"traceparent": written})
    update = next(stream)
    writer = named(spans_of(receiver, writing, 3), f"{METHOD}SetVariable")
    assert update.traceparent == f"00-{writing}-{writer.span_id}-01"
    deliver = named(spans_of(receiver, watching, 1), "deliver")
    assert deliver.kind == "CONSUMER"
    assert [link[:2] for link in deliver.links] == [(writing, writer.span_id)]
    stream.cancel()
    call = named(spans_of(receiver, watching, 2), f"{METHOD}WatchVariables")
    assert deliver.parent_span_id == call.span_id
    assert call.links == []
    assert call.attributes["rpc.response.status_code"] == "CANCELLED"
    assert call.status != "ERROR"


@pytest.mark.parametrize("tool", ["set_twice", "set_twice_async"])
def test_what_a_tool_changes_is_below_it(
    bridge: BridgeProcess, receiver: Receiver, tool: str
) -> None:
    session = Session(bridge, tool)
    session.register("x", 1)
    trace_id, header = traceparent(100 + len(tool))
    run(session, tool, header)
    spans = spans_of(receiver, trace_id, 6)
    call, ran = named(spans, f"{METHOD}ExecuteTool"), named(spans, tool)
    assert ran.parent_span_id == call.span_id
    below = [span for span in spans if span.parent_span_id == ran.span_id]
    assert sorted(span.name for span in below) == ["append", "append", "decide", "decide"]
    assert ran.attributes["snakepit.outcome"] == "ok"
    newest = session.history("x").entries[0]
    assert newest.traceparent == f"00-{trace_id}-{ran.span_id}-01"


def test_what_a_tool_changes_from_another_process_is_below_it(
    bridge: BridgeProcess, receiver: Receiver
) -> None:
    session = Session(bridge, "isolated")
    session.register("x", 1)
    trace_id, header = traceparent(200)
    run(session, "set_twice_isolated", header)
    spans = spans_of(receiver, trace_id, 8)
    ran = named(spans, "set_twice_isolated")
    sets = [span for span in spans if span.name == f"{METHOD}SetVariable"]
    assert [span.parent_span_id for span in sets] == [ran.span_id] * 2


def run(session: Session, tool: str, header: str) -> None:
    answer = session.call(
        "ExecuteTool",
        [("traceparent", header)],
        tool_name=tool,
        parameters={"name": packed("x", "string")},
    )
    assert answer.success, answer


def test_only_faults_of_the_bridge_are_errors(bridge: BridgeProcess, receiver: Receiver) -> None:
    session = Session(bridge, "refused")
    for number, (method, code) in enumerate(
        [("GetVariable", "NOT_FOUND"), ("AddDependency", "UNIMPLEMENTED")]
    ):
        trace_id, header = traceparent(300 + number)
        with pytest.raises(grpc.RpcError) as caught:
            session.call(method, [("traceparent", header)])
        error: Any = caught.value
        assert error.code().name == code
        span = named(spans_of(receiver, trace_id, 1), f"{METHOD}{method}")
        assert span.attributes["error.type"] == code
        assert (span.status == "ERROR") == (code == "UNIMPLEMENTED")


def test_nothing_is_exported_unless_it_is_asked_for(tmp_path: Path) -> None:
    with BridgeProcess(tmp_path / "bridge.db", environment={"OTEL_SDK_DISABLED": ""}) as bridge:
        session = Session(bridge, "s")
        session.register("x", 1, metadata={"traceparent": SAMPLED})
        children = Path(f"/proc/{bridge.process.pid}/task/{bridge.process.pid}/children")
        assert children.read_text() == ""
        [entry] = session.history("x").entries
        assert entry.traceparent == SAMPLED
