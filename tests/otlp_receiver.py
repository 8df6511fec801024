"""Receivers of traces that speak the real protocol: OTLP over gRPC, and over HTTP."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple, Self

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as services
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

__all__ = ["Event", "GrpcReceiver", "HttpReceiver", "Received", "Receiver", "Scope"]

TIMEOUT = 30.0

KINDS = ("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
STATUS = ("UNSET", "OK", "ERROR")


class Scope(NamedTuple):
    name: str
    version: str
    schema_url: str


class Event(NamedTuple):
    name: str
    time_ns: int
    attributes: dict[str, Any]


class Received(NamedTuple):
    """A span as it arrived. Ids are hexadecimal."""

    name: str
    kind: str
    """As ``SERVER``."""
    trace_id: str
    span_id: str
    parent_span_id: str
    """Empty = none."""
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    links: list[tuple[str, str]]
    """Each with trace id and span id."""
    link_attributes: list[dict[str, Any]]
    events: list[Event]
    status: str
    """``UNSET``, ``OK`` or ``ERROR``."""
    status_text: str
    tracestate: str
    flags: int
    resource: dict[str, Any]
    scope: Scope


class Receiver:
    """What both have. ``spans`` only grows."""

    endpoint: str
    """What ``OTEL_EXPORTER_OTLP_ENDPOINT`` is set to."""
    protocol: str
    """And ``OTEL_EXPORTER_OTLP_PROTOCOL``."""

    def __init__(self) -> None:
        self.spans: list[Received] = []
        self.headers: list[Mapping[str, str]] = []
        """Of each request, in lower case."""
        self.answers = threading.Event()
        """Requests get no answer while it is not set."""
        self.answers.set()
        self.changed = threading.Condition()

    @property
    def environment(self) -> dict[str, str]:
        """The variables that have spans sent here."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": self.protocol,
        }

    def wait_for(
        self, predicate: Callable[[list[Received]], Any], timeout: float = TIMEOUT
    ) -> list[Received]:
        """Wait until the spans are as wanted, and give them.

        :raises AssertionError: they are not in time.
        """
        with self.changed:
            if not self.changed.wait_for(lambda: predicate(self.spans), timeout):
                names = [span.name for span in self.spans[-20:]]
                raise AssertionError(
                    f"not in {timeout} s: {len(self.spans)} spans, the last of them {names}"
                )
            return list(self.spans)

    def wait_for_request(self, timeout: float = TIMEOUT) -> None:
        """Wait until somebody has asked, whether answered or not."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.headers, timeout), "nobody asked"

    def take(self, request: messages.ExportTraceServiceRequest, headers: Mapping[str, str]) -> None:
        with self.changed:
            self.headers.append({key.lower(): value for key, value in headers.items()})
            self.changed.notify_all()
        self.answers.wait()
        received = list(_spans(request))
        with self.changed:
            self.spans += received
            self.changed.notify_all()

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class GrpcReceiver(Receiver):
    """OTLP over gRPC."""

    protocol = "grpc"

    def __init__(self, port: int = 0) -> None:
        super().__init__()
        receiver = self

        class Service(services.TraceServiceServicer):
            def Export(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802 - no types
                headers = {
                    key: value
                    for key, value in context.invocation_metadata()
                    if isinstance(value, str)
                }
                receiver.take(request, headers)
                return messages.ExportTraceServiceResponse()

        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        add = services.add_TraceServiceServicer_to_server
        add(Service(), self._server)  # type: ignore[no-untyped-call] # generated
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._server.start()

    def close(self) -> None:
        self.answers.set()
        self._server.stop(None).wait()


class HttpReceiver(Receiver):
    """OTLP over HTTP, as protobuf."""

    protocol = "http/protobuf"

    def __init__(self, port: int = 0) -> None:
        super().__init__()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                known = self.path == "/v1/traces"
                if known:
                    request = messages.ExportTraceServiceRequest.FromString(body)
                    receiver.take(request, dict(self.headers.items()))
                answer = messages.ExportTraceServiceResponse().SerializeToString()
                self.send_response(200 if known else 404)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                """Whoever asked has gone before it was answered, as some tests want."""

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self.answers.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _spans(request: messages.ExportTraceServiceRequest) -> Iterable[Received]:
    for group in request.resource_spans:
        resource = _attributes(group.resource.attributes)
        for scoped in group.scope_spans:
            scope = Scope(scoped.scope.name, scoped.scope.version, scoped.schema_url)
            for span in scoped.spans:
                yield Received(
                    span.name,
                    KINDS[span.kind],
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    _attributes(span.attributes),
                    [(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
                    [_attributes(link.attributes) for link in span.links],
                    [
                        Event(event.name, event.time_unix_nano, _attributes(event.attributes))
                        for event in span.events
                    ],
                    STATUS[span.status.code],
                    span.status.message,
                    span.trace_state,
                    span.flags,
                    resource,
                    scope,
                )


def _attributes(attributes: Iterable[KeyValue]) -> dict[str, Any]:
    return {each.key: _value(each.value) for each in attributes}


def _value(value: AnyValue) -> Any:  # noqa: ANN401 - of each kind its own
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind) if kind else None
