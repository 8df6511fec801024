"""Spans leave the process, as OTEL_* says, and whatever becomes of them harms nobody."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Decision, ParentBased, Sampler
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    TraceFlags,
    set_span_in_context,
)

from snakepit_bridge.observation import Parent
from snakepit_bridge.telemetry import otel, spans
from snakepit_bridge.telemetry.names import SCHEMA_URL, SCOPE
from snakepit_bridge.telemetry.otel import make_sampled, make_tracing
from snakepit_bridge.telemetry.spans import CLIENT, SERVER, Scope, Span, SpanExport
from tests.otlp_receiver import GrpcReceiver, HttpReceiver, Received, Receiver

ROOT = Path(__file__).parent.parent
CLOSE = 20.0
"""Seconds; more than any close takes that has nothing to wait for."""

NOW = time.time_ns()
RECEIVERS: Sequence[Callable[[], Receiver]] = (GrpcReceiver, HttpReceiver)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is configured, and what is exported goes at once."""
    for name in os.environ:
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")


@pytest.fixture(params=RECEIVERS, ids=lambda made: made.protocol)
def receiver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with request.param() as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        yield made


@pytest.fixture
def http(monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpReceiver]:
    with HttpReceiver() as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        yield made


@pytest.fixture
def started() -> Iterator[Callable[..., SpanExport]]:
    """Starts what the environment asks for, and closes it in the end."""
    all_started = []

    def start(**changed: Any) -> SpanExport:  # noqa: ANN401 - attributes of any type
        tracing = make_tracing("instance-1", "1.2.3")
        assert tracing is not None
        export = tracing.export
        for name, value in changed.items():
            setattr(export, name, value)
        export.start()
        all_started.append(export)
        return export

    yield start
    for export in all_started:
        export.close(0)


def span(name: str, number: int = 1, **fields: Any) -> Span:  # noqa: ANN401 - as above
    made = Span(name, SERVER, (1 << 100) + number, number, 0, NOW, NOW + 1000)
    return made._replace(**fields)


def several(*names: str) -> list[Span]:
    return [span(name) for name in names]


def names(received: Sequence[Received]) -> list[str]:
    return [each.name for each in received]


def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def schema_url() -> str:
    """What the exporter makes of ours: old ones leave it out."""
    scope = InstrumentationScope("x", schema_url=SCHEMA_URL)
    context = SpanContext(1, 1, is_remote=False)
    encoded = encode_spans([ReadableSpan("x", context, instrumentation_scope=scope)])
    return encoded.resource_spans[0].scope_spans[0].schema_url


def test_a_span_arrives_whole(receiver: Receiver, started: Callable[..., SpanExport]) -> None:
    export = started()
    export.put(
        Span(
            name="snakepit.bridge.BridgeService/SetVariable",
            kind=CLIENT,
            trace_id=2**128 - 1,
            span_id=2**64 - 1,
            parent_span_id=2**63,
            start_ns=NOW,
            end_ns=NOW + 1,
            attributes={
                "text": "täxt\n",
                "number": -5,
                "real": 0.5,
                "flag": True,
                "list": ["a", "b"],
                "tuple": (1, 2),
                "not a number": float("nan"),
                "large": 2**70,
                "no unicode": "\ud800",
            },
            status_error=True,
            status_text="it broke",
            tracestate="a=1,b=2",
            links=[(1, 2), (2**127, 3, {"why": "because"})],
            events=[("happened", NOW + 2, {"n": 1})],
            remote_parent=True,
        )
    )
    (arrived,) = receiver.wait_for(lambda spans: spans)
    assert arrived._replace(resource={}) == Received(
        name="snakepit.bridge.BridgeService/SetVariable",
        kind="CLIENT",
        trace_id="f" * 32,
        span_id="f" * 16,
        parent_span_id="8" + "0" * 15,
        start_ns=NOW,
        end_ns=NOW + 1,
        attributes={
            "text": "täxt\n",
            "number": -5,
            "real": 0.5,
            "flag": True,
            "list": ["a", "b"],
            "tuple": [1, 2],
            "large": str(2**70),
            "no unicode": "\\ud800",
        },
        links=[(f"{1:032x}", f"{2:016x}"), (f"{2**127:032x}", f"{3:016x}")],
        link_attributes=[{}, {"why": "because"}],
        events=[("happened", NOW + 2, {"n": 1})],  # type: ignore[list-item] # equal to it
        status="ERROR",
        status_text="it broke",
        tracestate="a=1,b=2",
        flags=arrived.flags,
        resource={},
        scope=(SCOPE, "1.2.3", schema_url()),  # type: ignore[arg-type] # equal to it
    )
    assert arrived.flags & 0x300 == 0x300  # the parent is known to be remote
    assert arrived.resource["service.name"] == "snakepit_bridge"
    assert arrived.resource["service.instance.id"] == "instance-1"
    assert arrived.resource["service.version"] == "1.2.3"
    assert arrived.resource["process.pid"] == os.getpid()
    assert "process.command_args" not in arrived.resource


def test_a_plain_span_is_unset_and_has_no_parent(
    receiver: Receiver, started: Callable[..., SpanExport]
) -> None:
    started().put(span("x", status_text="goes nowhere", scope=Scope("other", "9")))
    (arrived,) = receiver.wait_for(lambda spans: spans)
    assert (arrived.status, arrived.status_text, arrived.parent_span_id) == ("UNSET", "", "")
    assert arrived.scope == ("other", "9", "")


def test_builders_run_later_elsewhere_and_in_order(
    http: HttpReceiver, started: Callable[..., SpanExport]
) -> None:
    threads = []

    def build(*given: str) -> list[Span]:
        threads.append(threading.current_thread())
        return several(*given)

    export = started()
    export.put(span("a"))
    export.put((build, "b", "c"))
    export.put((build,))
    export.put(span("d"))
    export.close(CLOSE)
    assert sorted(names(http.spans)) == ["a", "b", "c", "d"]
    assert export.dropped == 0
    assert threading.current_thread() not in threads
    assert len(threads) == 2


def test_a_builder_that_raises_harms_no_other(
    http: HttpReceiver, started: Callable[..., SpanExport], caplog: pytest.LogCaptureFixture
) -> None:
    export = started()
    export.put((lambda: 1 / 0,))
    export.put((several, None))  # a name that is none is made to one
    export.put((lambda: ["no span"],))
    export.put(span("huge", attributes={"text": "x" * 2 * spans.MAX_SPAN}))
    export.put(span("wrong", kind=77))
    export.put(span("last"))
    export.close(CLOSE)
    assert "last" in names(http.spans)
    assert not {"huge", "wrong"} & set(names(http.spans))
    assert export.dropped == 3
    assert len([each for each in caplog.records if each.levelno >= logging.ERROR]) == 1


def test_nothing_is_dropped_for_a_short_queue(
    receiver: Receiver, started: Callable[..., SpanExport], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The SDK's processor drops what does not fit; here it is given no more than that.
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "40")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "30")
    export = started()
    for number in range(3000):
        export.put(span("x", number + 1))
    export.close(CLOSE)
    assert export.dropped == 0
    assert len({each.span_id for each in receiver.spans}) == 3000


@pytest.mark.parametrize(
    ("variables", "on"),
    [
        ({}, False),
        ({"OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, False),
        ({"OTEL_TRACES_EXPORTER": "", "OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "false"}, True),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, True),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://x"}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
    ],
)
def test_what_turns_traces_on(
    variables: dict[str, str],
    on: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (make_tracing("i", "1") is not None) is on
    assert not caplog.records


def test_which_exporter_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(**variables: str) -> list[str]:
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            tracing = make_tracing("i", "1")
        assert tracing is not None
        return list(tracing.export._exporters)

    otlp = {"OTEL_TRACES_EXPORTER": "otlp"}
    assert chosen(**otlp) == ["otlp_proto_http"]
    assert chosen(**otlp, OTEL_EXPORTER_OTLP_PROTOCOL="grpc") == ["otlp_proto_grpc"]
    assert chosen(
        **otlp,
        OTEL_EXPORTER_OTLP_PROTOCOL="grpc",
        OTEL_EXPORTER_OTLP_TRACES_PROTOCOL="http/protobuf",
    ) == ["otlp_proto_http"]
    assert chosen(OTEL_TRACES_EXPORTER="otlp_proto_grpc, console") == ["otlp_proto_grpc", "console"]
    installed = otel._entry_point
    monkeypatch.setattr(
        otel,
        "_entry_point",
        lambda group, name: None if name == "otlp_proto_http" else installed(group, name),
    )
    assert chosen(**otlp) == ["otlp_proto_grpc"]


def test_the_exporter_reads_its_variables(
    http: HttpReceiver, started: Callable[..., SpanExport], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{http.endpoint}/v1/traces")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=seven")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    started().put(span("x"))
    http.wait_for(lambda spans: spans)
    assert http.headers[0]["x-tenant"] == "seven"
    assert http.headers[0]["content-encoding"] == "gzip"


def test_the_resource_is_the_users(
    receiver: Receiver, started: Callable[..., SpanExport], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.instance.id=mine"
    )
    monkeypatch.setenv("OTEL_SERVICE_NAME", "my service")
    started().put(span("x"))
    (arrived,) = receiver.wait_for(lambda spans: spans)
    assert arrived.resource["service.name"] == "my service"
    assert arrived.resource["service.instance.id"] == "mine"
    assert arrived.resource["service.version"] == "1.2.3"
    assert arrived.resource["deployment.environment.name"] == "test"


def test_the_schedule_is_the_users(
    http: HttpReceiver, started: Callable[..., SpanExport], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "3")
    export = started()
    for number in range(4):
        export.put(span("x", number + 1))
    assert len(http.wait_for(lambda spans: len(spans) == 3)) == 3
    export.close(CLOSE)
    assert len(http.spans) == 4


def test_limits_are_the_users(
    http: HttpReceiver, started: Callable[..., SpanExport], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "2")
    monkeypatch.setenv("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "3")
    monkeypatch.setenv("OTEL_SPAN_LINK_COUNT_LIMIT", "1")
    started().put(span("x", attributes={"a": "long text", "b": 1, "c": 2}, links=[(1, 1), (2, 2)]))
    (arrived,) = http.wait_for(lambda spans: spans)
    assert len(arrived.attributes) == 2
    assert len(arrived.links) == 1
    assert not any(len(str(value)) > 3 for value in arrived.attributes.values())


USE = """
import sys
from snakepit_bridge.telemetry.otel import make_tracing
from snakepit_bridge.telemetry.spans import Span
tracing = make_tracing("i", "1")
tracing.start()
tracing.put(Span("a span", 1, 1, 1, 0, 1, 2))
tracing.close(20)
"""


def test_the_console_is_standard_error() -> None:
    done = run(USE, OTEL_TRACES_EXPORTER="console")
    assert (done.returncode, done.stdout) == (0, "")
    assert '"name": "a span"' in done.stderr


PLUGIN = """
import os
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, Sampler, SamplingResult

class ToFile(SpanExporter):
    def export(self, spans):
        with open(os.environ["SPANS_FILE"], "a") as file:
            file.writelines(f"{span.name}\\n" for span in spans)
        return SpanExportResult.SUCCESS

class ByName(Sampler):
    def __init__(self, wanted):
        self.wanted = wanted
    def should_sample(self, parent_context, trace_id, name, *args, **kwargs):
        keep = name == self.wanted
        return SamplingResult(Decision.RECORD_AND_SAMPLE if keep else Decision.DROP)
    def get_description(self):
        return "by name"

def broken(argument):
    raise LookupError("it is not there")
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with an exporter and samplers."""
    (tmp_path / "otel_plugin.py").write_text(PLUGIN)
    about = tmp_path / "otel_plugin-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: otel-plugin\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[opentelemetry_traces_exporter]\nto_file = otel_plugin:ToFile\n"
        "[opentelemetry_traces_sampler]\nby_name = otel_plugin:ByName\n"
        "broken = otel_plugin:broken\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_any_exporter_that_is_installed(
    plugin: Path, started: Callable[..., SpanExport], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "to_file")
    monkeypatch.setenv("SPANS_FILE", str(plugin / "spans"))
    export = started()
    export.put((several, "a", "b"))
    export.close(CLOSE)
    assert (plugin / "spans").read_text() == "a\nb\n"


def test_any_sampler_that_is_installed(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "by_name")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "wanted")
    tracing = make_tracing("i", "1")
    assert tracing is not None
    parent = Parent(1, 2, True, "a=1")
    assert tracing.sampled(1, parent, "wanted")
    assert not tracing.sampled(1, parent, "other")
    assert not tracing.sampled(1, None, "other")


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"OTEL_TRACES_EXPORTER": "jaeger"}, "OTEL_TRACES_EXPORTER is 'jaeger'"),
        ({"OTEL_TRACES_EXPORTER": "otlp,"}, "OTEL_TRACES_EXPORTER is ''"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "OTEL_EXPORTER_OTLP_PROTOCOL is 'http/"),
        ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "x"}, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL is 'x'"),
        ({"OTEL_TRACES_SAMPLER": "sometimes"}, "OTEL_TRACES_SAMPLER is 'sometimes'"),
        (
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "10 %"},
            "OTEL_TRACES_SAMPLER_ARG is '10 %'",
        ),
        (
            {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "1.5"},
            "OTEL_TRACES_SAMPLER_ARG is '1.5'",
        ),
        ({"OTEL_TRACES_SAMPLER": "broken"}, "OTEL_TRACES_SAMPLER cannot be made"),
        ({"OTEL_BSP_SCHEDULE_DELAY": "5s"}, "OTEL_BSP_SCHEDULE_DELAY is '5s'"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "0"}, "OTEL_BSP_MAX_QUEUE_SIZE is '0'"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "a=b,nonsense"}, "OTEL_RESOURCE_ATTRIBUTES has 'nonsense'"),
        ({"OTEL_SPAN_LINK_COUNT_LIMIT": "few"}, "OTEL_SPAN_LINK_COUNT_LIMIT"),
    ],
)
def test_what_is_wrong_is_one_warning(
    variables: dict[str, str],
    said: str,
    plugin: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert make_tracing("i", "1") is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert said in record.getMessage()
    assert record.exc_info is None


def test_an_unknown_propagator_is_one_warning() -> None:
    # In a process of its own, as they are loaded once.
    done = run(
        "from snakepit_bridge.telemetry.otel import make_tracing; print(make_tracing('i', '1'))",
        OTEL_TRACES_EXPORTER="console",
        OTEL_PROPAGATORS="tracecontext,pigeon",
    )
    assert (done.returncode, done.stdout) == (0, "None\n")
    assert len(done.stderr.splitlines()) == 1
    assert "OTEL_PROPAGATORS is 'tracecontext,pigeon'" in done.stderr


@pytest.mark.parametrize(
    ("missing", "extra"), [("otlp_proto_grpc", "otlp"), ("otlp_proto_http", "otlp-http")]
)
def test_a_missing_extra_is_named(
    missing: str, extra: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    protocol = {"otlp_proto_grpc": "grpc", "otlp_proto_http": "http/protobuf"}[missing]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://x")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    installed = otel._entry_point
    monkeypatch.setattr(
        otel,
        "_entry_point",
        lambda group, name: None if name == missing else installed(group, name),
    )
    assert make_tracing("i", "1") is None
    (record,) = caplog.records
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in record.getMessage()
    assert f'pip install "snakepit-bridge[{extra}]"' in record.getMessage()


WITHOUT = """
import sys
sys.modules["opentelemetry"] = None
from snakepit_bridge.telemetry import otel, spans
print(otel.make_tracing("i", "1"), otel.trace_worker("i", "1"))
"""


def test_without_opentelemetry() -> None:
    quiet = run(WITHOUT)
    assert (quiet.stdout, quiet.stderr) == ("None None\n", "")
    asked = run(WITHOUT, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT="http://x")
    assert asked.stdout == "None None\n"
    for line in asked.stderr.splitlines():
        assert "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is set" in line
        assert 'pip install "snakepit-bridge[otlp]"' in line
    assert len(asked.stderr.splitlines()) == 2


def test_nothing_is_imported_while_traces_are_off() -> None:
    done = run(
        "import sys; from snakepit_bridge.telemetry.otel import make_tracing\n"
        "make_tracing('i', '1')\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_EXPORTER_OTLP_TIMEOUT": "soon", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        {"OTEL_BSP_MAX_QUEUE_SIZE": "5", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "6"},
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_what_only_the_exporter_can_tell(
    variables: dict[str, str],
    http: HttpReceiver,
    started: Callable[..., SpanExport],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    export = started()
    assert export._thread is not None
    while not export._unusable:
        export.put(span("x"))
        export._closing.wait(0.05)
    export.close(CLOSE)
    assert export.dropped > 0
    (line,) = capfd.readouterr().err.splitlines()
    assert "WARNING" in line
    assert all(name in line for name in variables)


def test_a_process_that_dies_is_replaced(
    http: HttpReceiver,
    started: Callable[..., SpanExport],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(spans, "FIRST_PAUSE", 0.01)
    export = started(_pause=0.01)
    for round_ in range(2):
        name = f"round {round_}"
        export.put(span(name))
        http.wait_for(lambda spans, name=name: name in names(spans))  # type: ignore[misc] # bound
        pid = export.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    export.put(span("after"))
    http.wait_for(lambda spans: "after" in names(spans))
    assert export.pid != pid
    assert export.dropped == 0
    warnings = [each.getMessage() for each in caplog.records]
    assert len(warnings) == 2
    assert all("(code -9)" in each for each in warnings)


def test_what_was_being_written_to_a_process_that_dies_goes_to_the_next(
    http: HttpReceiver, started: Callable[..., SpanExport], monkeypatch: pytest.MonkeyPatch
) -> None:
    export = started(_pause=0.01, _max_waiting=100_000)
    export.put(span("first"))
    http.wait_for(lambda spans: spans)
    assert export.pid is not None
    os.kill(export.pid, signal.SIGSTOP)
    # More than its pipe holds.
    for number in range(400):
        export.put(span("x", number + 1, attributes={"text": "x" * 1000}))
    while len(export._waiting) > 300:
        export._closing.wait(0.01)
    os.kill(export.pid, signal.SIGKILL)
    export.put(span("last"))
    http.wait_for(lambda spans: "last" in names(spans))
    export.close(CLOSE)
    assert export.dropped == 0
    # What stood in the pipe of the dead is lost, 64 KiB of it, and a frame of 100 of these is more.
    assert {each.span_id for each in http.spans} >= {f"{number:016x}" for number in range(1, 401)}


def test_a_process_that_stands_still_costs_spans_and_no_memory(
    http: HttpReceiver, started: Callable[..., SpanExport]
) -> None:
    export = started(_max_waiting=500)
    export.put(span("first"))
    http.wait_for(lambda spans: spans)
    assert export.pid is not None
    os.kill(export.pid, signal.SIGSTOP)
    try:
        for number in range(5000):
            export.put(span("x", number + 1, attributes={"text": "x" * 1000}))
            assert len(export._waiting) <= 500
        assert export.dropped >= 3000
    finally:
        os.kill(export.pid, signal.SIGCONT)
    export.close(CLOSE)
    assert len(http.spans) + export.dropped == 5001


@pytest.mark.parametrize("how", ["hangs", "is away", "stands still"])
def test_close_comes_back_in_time(
    how: str,
    receiver: Receiver,
    started: Callable[..., SpanExport],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if how == "hangs":
        receiver.answers.clear()
    elif how == "is away":
        receiver.close()
    export = started(_max_waiting=100_000)
    export.put(span("first"))
    if how == "hangs":
        receiver.wait_for_request()
    elif how == "stands still":
        receiver.wait_for(lambda spans: spans)
        assert export.pid is not None
        os.kill(export.pid, signal.SIGSTOP)
    for number in range(10_000):
        export.put(span("x", number + 1))
    pid = export.pid
    begun = time.monotonic()
    export.close(0.5)
    assert time.monotonic() - begun < 5
    assert export._thread is not None
    export._thread.join()
    assert export.pid is None
    if pid is not None:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_receiver_that_comes_late(
    started: Callable[..., SpanExport], monkeypatch: pytest.MonkeyPatch
) -> None:
    with HttpReceiver() as gone:
        port = gone.port
        for name, value in gone.environment.items():
            monkeypatch.setenv(name, value)
    export = started()
    export.put(span("lost or not"))
    with HttpReceiver(port) as there:
        deadline = time.monotonic() + 60
        while "x" not in names(there.spans) and time.monotonic() < deadline:
            export.put(span("x"))
            export._closing.wait(0.05)
        assert "x" in names(there.spans)


def test_closing_takes_along_what_waits(
    receiver: Receiver, started: Callable[..., SpanExport]
) -> None:
    export = started()
    export.put(span("x"))
    export.close(CLOSE)  # before the process even runs
    assert names(receiver.spans) == ["x"]
    export.close(CLOSE)
    export.put(span("too late"))
    assert export.dropped == 1


def test_one_that_was_never_started_closes() -> None:
    export = SpanExport(["console"], {}, Scope("x"))
    export.put(span("x"))
    export.close(CLOSE)


def test_what_was_handed_over_is_sent_though_the_bridge_was_killed(http: HttpReceiver) -> None:
    # The second builder runs once a full frame of the first one's is in the pipe.
    done = run(
        USE.replace("tracing.close(20)", "")
        + "import os, signal\n"
        + f"tracing.put((lambda: [Span('b', 1, 1, 1, 0, 1, 2)] * {spans.FRAME_SPANS},))\n"
        + "tracing.put((lambda: os.kill(os.getpid(), signal.SIGKILL),))\n"
        + "signal.pause()",
        OTEL_BSP_SCHEDULE_DELAY="3600000",
    )
    assert done.returncode == -signal.SIGKILL
    http.wait_for(lambda spans: names(spans).count("b") == 100)


def test_signals_for_the_group_are_left_to_the_bridge(
    http: HttpReceiver, started: Callable[..., SpanExport]
) -> None:
    export = started()
    export.put(span("before"))
    http.wait_for(lambda spans: spans)
    pid = export.pid
    assert pid is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, number)
    export.put(span("after"))
    http.wait_for(lambda spans: "after" in names(spans))
    assert export.pid == pid
    assert os.getpriority(os.PRIO_PROCESS, pid) == 19


def test_the_process_is_small() -> None:
    done = run("import sys; import snakepit_bridge.telemetry.exporting\nprint(*sys.modules)")
    loaded = done.stdout.split()
    assert "opentelemetry.sdk.trace" in loaded
    assert not {"grpc", "numpy", "structlog", "pydantic"} & set(loaded)
    ours = [name for name in loaded if name.startswith("snakepit_bridge.")]
    assert sorted(ours) == [
        "snakepit_bridge.telemetry",
        "snakepit_bridge.telemetry.exporting",
        "snakepit_bridge.telemetry.spans",
    ]


SAMPLERS = [
    ("always_on", None),
    ("always_off", None),
    ("parentbased_always_on", None),
    ("parentbased_always_off", None),
    *[
        (name, ratio)
        for name in ("traceidratio", "parentbased_traceidratio")
        for ratio in ("0", "0.01", "0.5", "0.999", "1", "1e-30", None)
    ],
]


def decides(sampler: Sampler, trace_id: int, parent: Parent | None) -> bool:
    context = Context()
    if parent is not None:
        flags = TraceFlags(int(parent.sampled))
        remote = SpanContext(parent.trace_id, parent.span_id, is_remote=True, trace_flags=flags)
        context = set_span_in_context(NonRecordingSpan(remote), context)
    return sampler.should_sample(context, trace_id, "x").decision is Decision.RECORD_AND_SAMPLE


@pytest.mark.parametrize(("name", "ratio"), SAMPLERS)
def test_decisions_are_those_of_the_sdk(
    name: str, ratio: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", name)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    if ratio is not None:
        monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", ratio)
    sampler = TracerProvider(shutdown_on_exit=False).sampler
    tracing = make_tracing("i", "1")
    assert tracing is not None
    assert otel._arithmetic(sampler) is not None, "the fast way does not know the SDK any more"
    dice = random.Random(name)
    bound = round(float(ratio or 1) * 2**64)
    near = [max(bound + step, 1) for step in (-2, -1, 0, 1, 2)]
    for number in range(3000):
        low = near[number] if number < len(near) else dice.getrandbits(64)
        trace_id = (dice.getrandbits(64) << 64 | low & (2**64 - 1)) or 1
        parent = dice.choice((None, Parent(trace_id, 5, True), Parent(trace_id, 5, False)))
        assert tracing.sampled(trace_id, parent, "x") == decides(sampler, trace_id, parent)


def test_a_sampler_with_delegates_of_its_own_is_asked() -> None:
    sampler = ParentBased(ALWAYS_ON, remote_parent_not_sampled=ALWAYS_ON)
    assert make_sampled(sampler)(1, Parent(1, 2, False), "x")


API = """
import sys
from opentelemetry import trace
from snakepit_bridge.observation import Parent
from snakepit_bridge.telemetry import otel

def record():
    tracer = trace.get_tracer("a tool's library", "7")
    with otel.current_parent(Parent(0xabc, 0xdef, True, "k=v")):
        with tracer.start_as_current_span("outer", attributes={"n": (1, 2)}) as outer:
            outer.add_event("noted", {"a": 1})
            outer.set_status(trace.StatusCode.OK)
            link = trace.Link(outer.get_span_context(), {"l": 1})
            with tracer.start_as_current_span("inner", links=[link]):
                pass
    with otel.current_parent(Parent(0xabc, 0xdef, False)):
        with tracer.start_as_current_span("not sampled"):
            pass
    assert not trace.get_current_span().get_span_context().is_valid
"""

IN_THE_BRIDGE = (
    API
    + """
tracing = otel.make_tracing("i", "1")
tracing.start()
record()
tracing.close(20)
assert tracing.dropped == 0
"""
)

IN_A_WORKER = (
    API
    + """
flush = otel.trace_worker("i", "1")
record()
flush(20)
import os
os._exit(0)
"""
)


@pytest.mark.parametrize("code", [IN_THE_BRIDGE, IN_A_WORKER], ids=["bridge", "worker"])
def test_spans_by_the_api_arrive(code: str, receiver: Receiver) -> None:
    done = run(code, OTEL_BSP_SCHEDULE_DELAY="3600000")
    assert (done.returncode, done.stderr) == (0, "")
    arrived = {each.name: each for each in receiver.wait_for(lambda spans: len(spans) > 1)}
    assert set(arrived) == {"outer", "inner"}
    outer, inner = arrived["outer"], arrived["inner"]
    assert (outer.trace_id, outer.parent_span_id) == (f"{0xABC:032x}", f"{0xDEF:016x}")
    assert (inner.trace_id, inner.parent_span_id) == (outer.trace_id, outer.span_id)
    assert (outer.kind, outer.status, inner.status) == ("INTERNAL", "OK", "UNSET")
    assert outer.tracestate == "k=v"
    assert outer.attributes == {"n": [1, 2]}
    assert [(event.name, event.attributes) for event in outer.events] == [("noted", {"a": 1})]
    assert inner.links == [(outer.trace_id, outer.span_id)]
    assert inner.link_attributes == [{"l": 1}]
    assert outer.scope[:2] == ("a tool's library", "7")
    assert outer.resource["service.name"] == "snakepit_bridge"


def test_a_provider_that_was_there_stays() -> None:
    done = run(
        "from opentelemetry import trace\n"
        "from opentelemetry.sdk.trace import TracerProvider\n"
        "mine = TracerProvider()\n"
        "trace.set_tracer_provider(mine)\n" + USE + "assert trace.get_tracer_provider() is mine",
        OTEL_TRACES_EXPORTER="console",
    )
    assert done.returncode == 0, done.stderr
    assert '"name": "a span"' in done.stderr


def test_a_worker_whose_receiver_hangs_flushes_in_time(http: HttpReceiver) -> None:
    http.answers.clear()
    code = IN_A_WORKER.replace(
        "flush(20)",
        "import time; t = time.monotonic(); flush(0.2)\nprint(time.monotonic() - t, flush=True)",
    )
    done = run(code)
    assert float(done.stdout) < 5, done.stderr
