"""Spans of the client's calls: where OpenTelemetry is configured, and nowhere else.

In processes of their own, as a tracer provider is set once in the life of a process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from snakepit_bridge.client import Client
from tests.bridge_process import BridgeProcess
from tests.client_faces import FACES

ROOT = Path(__file__).parent.parent
TIMEOUT = 60.0
SERVICE = "/snakepit.bridge.BridgeService/"

USE = """
import json, sys
from snakepit_bridge.errors import BridgeError
from tests.client_faces import Face

def use(face_name, target):
    shown = {}
    with Face.open(face_name) as face, face.client(target) as client:
        session = client.session(f"{face_name}-{sys.argv[3]}")
        session.register("x", "integer", 1)
        with session.watch("x") as watch:
            session.set("x", 2)
            session.set("x", 3)
            shown["traceparents"] = [next(watch).traceparent for _ in range(2)]
        shown["stream"] = [item.data for item in session.stream("count_to", {"to": 3})]
        try:
            session.get("nothing")
        except BridgeError as error:
            shown["refused"] = [type(error).__name__, error.message]
        try:
            list(session.stream("raises_in_stream", {"what": "ValueError"}))
        except BridgeError as error:
            shown["raised"] = type(error).__name__
        shown["ping"] = client.ping() > 0
    return shown
"""

PLAIN = f"""{USE}
shown = use(*sys.argv[1:3])
shown["imported"] = [name for name in sys.modules if name.startswith("opentelemetry")]
print(json.dumps(shown))
"""

CONFIGURED = f"""{USE}
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
shown = use(*sys.argv[1:3])
shown["spans"] = [
    {{
        "name": span.name,
        "kind": span.kind.name,
        "status": span.status.status_code.name,
        "code": span.attributes["rpc.grpc.status_code"],
        "parent": span.parent is not None,
        "ids": [f"{{span.context.trace_id:032x}}", f"{{span.context.span_id:016x}}"],
    }}
    for span in exporter.get_finished_spans()
]
print(json.dumps(shown))
"""

NO_PROVIDER = f"""{USE}
import opentelemetry.trace
shown = use(*sys.argv[1:3])
shown["imported"] = [name for name in sys.modules if name.startswith("opentelemetry.instr")]
print(json.dumps(shown))
"""

UNDER_A_SPAN = """
import sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from snakepit_bridge.client import AsyncClient, Client

trace.set_tracer_provider(TracerProvider())
target, session_id = sys.argv[2:4]

async def asynchronous():
    async with AsyncClient(target) as client:
        session = client.session(session_id)
        await session.execute("set_variable", {"name": "x", "value": 5})
        [item async for item in session.stream("reports")]

def blocking():
    with Client(target) as client:
        session = client.session(session_id)
        session.execute("set_variable", {"name": "x", "value": 5})
        list(session.stream("reports"))

with trace.get_tracer("test").start_as_current_span("whole") as span:
    if sys.argv[1] == "sync":
        blocking()
    else:
        import asyncio
        asyncio.run(asynchronous())
print(f'"{span.get_span_context().trace_id:032x}"')
"""


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BridgeProcess]:
    path = tmp_path_factory.mktemp("bridge") / "bridge.db"
    tools = ("--adapter", "tests.wire_tools", "--adapter", "tests.far_tools")
    with BridgeProcess(path, *tools) as process:
        yield process


def run(script: str, *arguments: str) -> Any:  # noqa: ANN401 - what it prints
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout)


def check_results(shown: dict[str, Any]) -> None:
    assert shown["stream"] == [1, 2, 3]
    assert shown["refused"] == ["VariableNotFound", "variable 'nothing' not found"]
    assert (shown["raised"], shown["ping"]) == ("ToolRaised", True)


@pytest.mark.parametrize("face", FACES)
def test_each_unary_call_is_a_span_that_its_event_belongs_to(
    bridge: BridgeProcess, face: str
) -> None:
    shown = run(CONFIGURED, face, f"127.0.0.1:{bridge.port}", "configured")
    check_results(shown)
    spans = shown["spans"]
    assert [span["name"].removeprefix(SERVICE) for span in spans] == [
        "RegisterVariable",
        "SetVariable",
        "SetVariable",
        "GetVariable",
        "Ping",
    ]
    assert {span["kind"] for span in spans} == {"CLIENT"}
    assert [span["status"] for span in spans] == ["UNSET"] * 3 + ["ERROR", "UNSET"]
    assert spans[3]["code"] == 5  # NOT_FOUND
    # Each is the root of its own trace: a watch that is open is nobody's parent.
    assert not any(span["parent"] for span in spans)
    for span, traceparent in zip(spans[1:3], shown["traceparents"], strict=True):
        assert traceparent.split("-")[1:3] == span["ids"]


@pytest.mark.parametrize("face", FACES)
def test_tools_belong_to_the_span_in_which_they_are_called(
    bridge: BridgeProcess, face: str
) -> None:
    """Those that stream, too, though their stream is no span itself."""
    target = f"127.0.0.1:{bridge.port}"
    with Client(target) as client:
        session = client.session(f"tools-{face}")
        session.register("x", "integer", 0)
        with session.watch("x") as watch:
            trace = run(UNDER_A_SPAN, face, target, session.session_id)
            changes = [next(watch) for _ in range(2)]
    assert [change.source for change in changes] == ["tool:set_variable", "tool:reports"]
    assert [change.traceparent.split("-")[1] for change in changes] == [trace, trace]


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("script", [PLAIN, NO_PROVIDER], ids=["not imported", "no provider"])
def test_without_a_provider_there_are_no_spans_and_nothing_is_imported(
    bridge: BridgeProcess, face: str, script: str
) -> None:
    mark = "plain" if script is PLAIN else "no-provider"
    shown = run(script, face, f"127.0.0.1:{bridge.port}", mark)
    check_results(shown)
    assert shown["imported"] == []
    assert shown["traceparents"] == ["", ""]
