"""Whether and how traces are recorded, as the ``OTEL_*`` variables say.

Traces are on when ``OTEL_TRACES_EXPORTER`` names something, or an endpoint for OTLP is given;
``OTEL_SDK_DISABLED=true`` turns them off. All else is read by OpenTelemetry's SDK itself. What it
would not understand is found here first, for it would go on with something that nobody asked for:
then there is one warning, and the bridge serves without traces.

OpenTelemetry is an extra. It is imported here only once traces are on.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from snakepit_bridge.observation import Parent, Sampled
from snakepit_bridge.telemetry.names import SCHEMA_URL, SCOPE
from snakepit_bridge.telemetry.spans import Scope, Span, SpanExport

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.sampling import Sampler

__all__ = ["Tracing", "current_parent", "make_sampled", "make_tracing", "trace_worker"]

logger = logging.getLogger(__name__)

SERVICE = "snakepit_bridge"
"""The service's name, unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES has another."""

_EXPORTER = "OTEL_TRACES_EXPORTER"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_NUMBERS = (
    "OTEL_BSP_EXPORT_TIMEOUT",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_BSP_MAX_QUEUE_SIZE",
    "OTEL_BSP_SCHEDULE_DELAY",
)

_TRACES = "opentelemetry_traces_exporter"
_SAMPLERS = "opentelemetry_traces_sampler"
"""Groups of entry points."""

_LIMIT = re.compile(r"OTEL_\w+_LIMIT")

_OTLP = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
"""Entry points by protocol; the first is what the specification takes unless told."""

_EXTRAS = {"otlp_proto_http": "otlp-http", "otlp_proto_grpc": "otlp"}


class _Unusable(Exception):
    """What is set cannot be used; the message names the variable."""


class Tracing:
    """Traces of this process, which are on. Made by ``make_tracing``."""

    sampled: Sampled
    """Whether a trace is recorded; by its id, the parent if there is one, and the name of the
    first span here. Takes less than 0.3 µs with the samplers that the SDK has. Decide once for
    each call: what it does in this process goes with it."""

    def __init__(self, provider: TracerProvider, export: SpanExport) -> None:
        self._provider = provider
        self.export = export
        self.put = export.put
        self.sampled = make_sampled(provider.sampler)

    @property
    def dropped(self) -> int:
        """See ``SpanExport.dropped``."""
        return self.export.dropped

    def start(self) -> None:
        """Begin to export, also what others in this process record by OpenTelemetry's API."""
        from opentelemetry import trace  # noqa: PLC0415 - an extra

        self.export.start()
        if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            self._provider.add_span_processor(_processor(self.put))
            trace.set_tracer_provider(self._provider)
        else:
            logger.info("spans of others go where the tracer provider sends them that was there")

    def close(self, timeout: float) -> None:
        """See ``SpanExport.close``."""
        self.export.close(timeout)


def make_tracing(instance_id: str, version: str) -> Tracing | None:
    """Traces, if the environment asks for them and they can be had; never an error.

    :param instance_id: of this bridge, which its log names as well.
    :param version: of the bridge.
    """
    found = _configured(instance_id, version)
    if found is None:
        return None
    exporters, provider = found
    resource = provider.resource
    export = SpanExport(
        exporters,
        {key: value for key, value in resource.attributes.items() if value is not None},
        Scope(SCOPE, version, SCHEMA_URL),
        resource_schema_url=resource.schema_url,
    )
    return Tracing(provider, export)


def trace_worker(instance_id: str, version: str) -> Callable[[float], None] | None:
    """In a process that runs tools: export what they record by OpenTelemetry's API.

    As few spans are made there, the SDK exports them in its own way. Never an error.

    :return: sends what was not sent yet, in so many seconds at most. ``None`` = traces are off.
    """
    found = _configured(instance_id, version)
    if found is None:
        return None
    exporters, provider = found
    from opentelemetry import trace  # noqa: PLC0415 - an extra
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    try:
        for name in exporters:
            provider.add_span_processor(BatchSpanProcessor(_entry_point(_TRACES, name).load()()))
    except Exception as error:  # noqa: BLE001 - exporters may be anybody's
        logger.warning("spans of tools are not exported: %s: %s", type(error).__name__, error)
        return None
    trace.set_tracer_provider(provider)

    def flush(timeout: float) -> None:
        # The SDK's own flush takes as long as its exporter does, whatever it is told.
        flushing = threading.Thread(target=provider.force_flush, daemon=True)
        flushing.start()
        flushing.join(timeout)

    return flush


@contextmanager
def current_parent(parent: Parent) -> Iterator[None]:
    """Make a span the parent of what is recorded by OpenTelemetry's API inside.

    Only where traces are on: it needs the extra.
    """
    from opentelemetry import context  # noqa: PLC0415 - an extra

    token = context.attach(_context(parent))
    try:
        yield
    finally:
        context.detach(token)


def make_sampled(sampler: Sampler) -> Sampled:
    """The decisions of a sampler, faster where it is one of the SDK's."""
    return _arithmetic(sampler) or _asking(sampler)


def _arithmetic(sampler: Sampler) -> Sampled | None:
    """The same decisions without the SDK's objects, which take 5 µs and more.

    The SDK has no public names for what a sampler consists of; where they are not as expected,
    the sampler is asked.
    """
    from opentelemetry.sdk.trace import sampling  # noqa: PLC0415 - an extra

    if isinstance(sampler, sampling.ParentBased):
        root = _arithmetic(getattr(sampler, "_root", sampler))
        of_sampled = getattr(sampler, "_remote_parent_sampled", None)
        of_others = getattr(sampler, "_remote_parent_not_sampled", None)
        if root is None or of_sampled != sampling.ALWAYS_ON or of_others != sampling.ALWAYS_OFF:
            return None
        decide = root

        def by_parent(trace_id: int, parent: Parent | None, name: str) -> bool:
            return decide(trace_id, None, name) if parent is None else parent.sampled

        return by_parent
    if type(sampler) is sampling.TraceIdRatioBased:
        limit, bound = sampler.TRACE_ID_LIMIT, sampler.bound
        return lambda trace_id, _parent, _name: trace_id & limit < bound
    if isinstance(sampler, sampling.StaticSampler):
        decision = sampler.should_sample(None, 1, "").decision
        sampled = decision is sampling.Decision.RECORD_AND_SAMPLE
        return lambda _trace_id, _parent, _name: sampled
    return None


def _asking(sampler: Sampler) -> Sampled:
    from opentelemetry.context import Context  # noqa: PLC0415 - an extra
    from opentelemetry.sdk.trace.sampling import Decision  # noqa: PLC0415
    from opentelemetry.trace import SpanKind, TraceState  # noqa: PLC0415

    def ask(trace_id: int, parent: Parent | None, name: str) -> bool:
        context = Context() if parent is None else _context(parent)
        state = TraceState.from_header([parent.tracestate]) if parent is not None else None
        result = sampler.should_sample(
            context, trace_id, name, kind=SpanKind.SERVER, trace_state=state
        )
        return result.decision is Decision.RECORD_AND_SAMPLE

    return ask


def _context(parent: Parent) -> Context:
    from opentelemetry.context import Context  # noqa: PLC0415 - an extra
    from opentelemetry.trace import (  # noqa: PLC0415
        NonRecordingSpan,
        SpanContext,
        TraceFlags,
        TraceState,
        set_span_in_context,
    )

    flags = TraceFlags(TraceFlags.SAMPLED if parent.sampled else TraceFlags.DEFAULT)
    state = TraceState.from_header([parent.tracestate]) if parent.tracestate else None
    span = SpanContext(parent.trace_id, parent.span_id, True, flags, state)  # noqa: FBT003 - remote
    return set_span_in_context(NonRecordingSpan(span), Context())


def _configured(instance_id: str, version: str) -> tuple[Sequence[str], TracerProvider] | None:
    """Exporters and the SDK, if traces are on and can be had."""
    variable = _asked_for()
    if variable is None:
        return None
    try:
        try:
            from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - an extra
        except ImportError:
            raise _Unusable(
                f"{variable} is set, but OpenTelemetry's SDK is not installed: "
                'pip install "snakepit-bridge[otlp]"'
            ) from None
        exporters = _exporters()
        _check_numbers()
        _check_propagators()
        try:
            provider = TracerProvider(
                sampler=_sampler(),
                resource=_resource(instance_id, version),
                shutdown_on_exit=False,  # that of this process is ``close``
            )
        except ValueError as error:  # what is left to be wrong are the limits
            limits = ", ".join(name for name in os.environ if _LIMIT.fullmatch(name))
            raise _Unusable(f"one of {limits} cannot be used: {error}") from None
    except _Unusable as error:
        logger.warning("no traces are recorded: %s", error)
        return None
    return exporters, provider


def _asked_for() -> str | None:
    """The variable that turns traces on; ``None`` = they are off."""
    if _get("OTEL_SDK_DISABLED").lower() == "true" or _get(_EXPORTER).lower() == "none":
        return None
    return next((name for name in (_EXPORTER, *_ENDPOINTS) if _get(name)), None)


def _get(variable: str) -> str:
    """Its value; empty is as good as unset (OpenTelemetry's specification)."""
    return os.environ.get(variable, "").strip()


def _exporters() -> Sequence[str]:
    """Names of entry points, all of which are there.

    :raises _Unusable: one is not.
    """
    found = []
    for name in (_get(_EXPORTER) or "otlp").split(","):
        entry = _otlp() if name.strip() == "otlp" else name.strip()
        if _entry_point(_TRACES, entry) is None:
            if entry not in _EXTRAS:
                raise _Unusable(
                    f"{_EXPORTER} is {name!r}: expected otlp, console, none, or what an installed "
                    f'package adds; for otlp: pip install "snakepit-bridge[otlp]"'
                )
            raise _Unusable(
                f"{_asked_for()} asks for the exporter {entry}, which is not installed: "
                f'pip install "snakepit-bridge[{_EXTRAS[entry]}]"'
            )
        found.append(entry)
    return found


def _otlp() -> str:
    """The entry point for OTLP.

    :raises _Unusable: the protocol is none that it has.
    """
    for variable in _PROTOCOLS:
        protocol = _get(variable)
        if protocol:
            if protocol not in _OTLP:
                raise _Unusable(
                    f"{variable} is {protocol!r}: expected {' or '.join(sorted(_OTLP))}, which "
                    'need pip install "snakepit-bridge[otlp]" and "snakepit-bridge[otlp-http]"'
                )
            return _OTLP[protocol]
    installed = (entry for entry in _OTLP.values() if _entry_point(_TRACES, entry) is not None)
    return next(installed, _OTLP["grpc"])


def _entry_point(group: str, name: str) -> Any:  # noqa: ANN401 - what it loads is its own matter
    return next(iter(entry_points(group=group, name=name)), None)


def _check_numbers() -> None:
    """:raises _Unusable: one is none."""
    for variable in _NUMBERS:
        text = _get(variable)
        if text and not (text.isascii() and text.isdecimal() and int(text)):
            raise _Unusable(f"{variable} is {text!r}: expected a whole number above 0")


def _check_propagators() -> None:
    """:raises _Unusable: OpenTelemetry knows one of them not, or cannot load it."""
    try:
        import opentelemetry.propagate  # noqa: F401, PLC0415 - an extra; it loads them
    except Exception as error:  # noqa: BLE001 - they may be anybody's
        raise _Unusable(f"OTEL_PROPAGATORS is {_get('OTEL_PROPAGATORS')!r}: {error}") from None


def _sampler() -> Sampler | None:
    """What an installed package adds; ``None`` = one that the SDK makes of the variables itself.

    :raises _Unusable: there is no such sampler, or it cannot be made.
    """
    from opentelemetry.sdk.trace.sampling import DEFAULT_ON, Sampler  # noqa: PLC0415 - an extra

    name, argument = os.environ.get("OTEL_TRACES_SAMPLER", ""), _get("OTEL_TRACES_SAMPLER_ARG")
    if not name:
        return DEFAULT_ON  # the SDK would take an empty value for the name of one
    name = name.lower()
    if name in {"traceidratio", "parentbased_traceidratio"}:
        if argument and not _is_ratio(argument):
            raise _Unusable(
                f"OTEL_TRACES_SAMPLER_ARG is {argument!r}: expected a number from 0 to 1"
            )
        return None
    if name in {
        f"{prefix}always_{what}" for prefix in ("", "parentbased_") for what in ("on", "off")
    }:
        return None
    entry = _entry_point(_SAMPLERS, name)
    if entry is None:
        known = ", ".join(sorted({each.name for each in entry_points(group=_SAMPLERS)}))
        raise _Unusable(f"OTEL_TRACES_SAMPLER is {name!r}: expected one of {known}")
    try:
        made = entry.load()(argument)
        if not isinstance(made, Sampler):
            raise TypeError(f"it made a {type(made).__name__}")
    except Exception as error:  # noqa: BLE001 - it may be anybody's
        raise _Unusable(
            f"the sampler {name!r} of OTEL_TRACES_SAMPLER cannot be made of "
            f"OTEL_TRACES_SAMPLER_ARG {argument!r}: {type(error).__name__}: {error}"
        ) from None
    return made


def _is_ratio(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False


def _resource(instance_id: str, version: str) -> Resource:
    """What is said of this process; what the variables say of it has precedence.

    :raises _Unusable: they cannot be read.
    """
    from opentelemetry.sdk.resources import (  # noqa: PLC0415 - an extra
        OTELResourceDetector,
        ProcessResourceDetector,
        Resource,
    )

    for pair in _get("OTEL_RESOURCE_ATTRIBUTES").split(","):
        if pair.strip() and "=" not in pair:
            raise _Unusable(
                f"OTEL_RESOURCE_ATTRIBUTES has {pair!r}: expected key=value, with commas between"
            )
    ours = {
        **ProcessResourceDetector().detect().attributes,
        "service.name": SERVICE,
        "service.instance.id": instance_id,
        "service.version": version,
    }
    given = OTELResourceDetector().detect().attributes
    # Arguments of a command may be secrets; older SDKs tell them.
    hidden = {"process.command_args", "process.command_line"}
    return Resource.create(
        {key: value for key, value in ours.items() if key not in given and key not in hidden}
    )


def _processor(put: Callable[[tuple[Any, ...]], None]) -> SpanProcessor:
    """Hands spans of the SDK to the export."""
    from opentelemetry.sdk.trace import SpanProcessor  # noqa: PLC0415 - an extra

    class HandOver(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            if span.context is not None and span.context.trace_flags.sampled:
                put((_from_sdk, span))

    return HandOver()


def _from_sdk(span: ReadableSpan) -> Sequence[Span]:
    context, parent, scope = span.context, span.parent, span.instrumentation_scope
    assert context is not None  # only those come here
    status = span.status.status_code.name
    return (
        Span(
            name=span.name,
            kind=span.kind.value,
            trace_id=context.trace_id,
            span_id=context.span_id,
            parent_span_id=parent.span_id if parent is not None else 0,
            start_ns=span.start_time or 0,
            end_ns=span.end_time or 0,
            attributes=span.attributes or {},
            status_error=status == "ERROR",
            status_text=span.status.description or "",
            tracestate=context.trace_state.to_header(),
            links=[
                (each.context.trace_id, each.context.span_id, each.attributes or {})
                for each in span.links
            ],
            events=[(each.name, each.timestamp, each.attributes or {}) for each in span.events],
            scope=Scope(scope.name, scope.version or "", scope.schema_url or "")
            if scope is not None
            else None,
            remote_parent=parent is not None and parent.is_remote,
            status_ok=status == "OK",
        ),
    )
