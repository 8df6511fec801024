"""Spans for the client's calls, where OpenTelemetry is configured in this process.

Streams get none: they may be open for days, and around a stream the instrumentation hands out a
generator, which cannot be cancelled, and leaves its span behind as the parent of whatever its
reader does next. What a stream begins belongs to the span that is current then.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import grpc

__all__ = ["aio_interceptors", "current_context", "traced"]


def traced(channel: grpc.Channel) -> grpc.Channel:
    """Give each unary call on a channel a span that the bridge's belong to."""
    if not _configured():
        return channel
    from opentelemetry.instrumentation.grpc import (  # noqa: PLC0415 - an extra
        client_interceptor,
    )
    from opentelemetry.instrumentation.grpc.grpcext import intercept_channel  # noqa: PLC0415

    made: grpc.Channel = intercept_channel(channel, client_interceptor(filter_=_is_unary))
    return made


def aio_interceptors() -> Sequence[Any]:
    """What does the same for an asynchronous channel."""
    if not _configured():
        return ()
    from opentelemetry.instrumentation.grpc import (  # noqa: PLC0415 - an extra
        aio_client_interceptors,
    )

    unary = grpc.aio.UnaryUnaryClientInterceptor
    return [each for each in aio_client_interceptors() if isinstance(each, unary)]


def current_context() -> tuple[tuple[str, str], ...]:
    """The span that is current, as metadata of a stream."""
    if not _configured():
        return ()
    from opentelemetry.propagate import inject  # noqa: PLC0415 - an extra

    carrier: dict[str, str] = {}
    inject(carrier)
    return tuple((key.lower(), value) for key, value in carrier.items())


def _is_unary(call: Any) -> bool:  # noqa: ANN401 - without types
    return not getattr(call, "is_server_stream", False)


def _configured() -> bool:
    """Whether somebody has set a tracer provider, and the extra is installed.

    Who configures OpenTelemetry has imported it; nothing is imported here to find out.
    """
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None or isinstance(
        trace.get_tracer_provider(), trace.ProxyTracerProvider | trace.NoOpTracerProvider
    ):
        return False
    try:
        import opentelemetry.instrumentation.grpc  # noqa: F401, PLC0415 - an extra
    except ImportError:
        return False
    return True
