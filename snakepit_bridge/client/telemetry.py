"""Spans for the client's calls, where OpenTelemetry is configured in this process."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import grpc

__all__ = ["aio_interceptors", "traced"]


def traced(channel: grpc.Channel) -> grpc.Channel:
    """Give each call on a channel a span that the bridge's belong to."""
    if not _configured():
        return channel
    from opentelemetry.instrumentation.grpc import (  # noqa: PLC0415 - an extra
        client_interceptor,
    )
    from opentelemetry.instrumentation.grpc.grpcext import intercept_channel  # noqa: PLC0415

    made: grpc.Channel = intercept_channel(channel, client_interceptor())
    return made


def aio_interceptors() -> Sequence[Any]:
    """What does the same for an asynchronous channel."""
    if not _configured():
        return ()
    from opentelemetry.instrumentation.grpc import (  # noqa: PLC0415 - an extra
        aio_client_interceptors,
    )

    made: Sequence[Any] = aio_client_interceptors()
    return made


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
