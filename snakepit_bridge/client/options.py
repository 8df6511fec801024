"""How a client reaches its bridge: where, with which secrets, for how long."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

__all__ = [
    "CHANNEL_OPTIONS",
    "FIRST_WAIT",
    "TLS",
    "Options",
    "Resolver",
    "Target",
    "backoff",
    "ready_file",
]

Resolver = Callable[[], str]
"""Gives HOST:PORT; asked when a connection is made, and again when one was lost."""

Target = str | Resolver

CHANNEL_OPTIONS: Sequence[tuple[str, int]] = (
    # The bridge says itself what is too large.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A write is retried with its request id, and not by gRPC.
    ("grpc.enable_retries", 0),
    # A bridge that was killed is back within a second; by default gRPC looks after one, then
    # after two, up to every two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # So long connecting may take: gRPC's least back-off is its limit for that.
    ("grpc.min_reconnect_backoff_ms", 2_000),
    # A network may go without a word, and a watch has no deadline: so the other side is asked now
    # and then whether it is there, as often as that takes. How long for an answer is waited says
    # the one or the other, by the release of gRPC.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
)

_ON_THIS_MACHINE = ("localhost:", "127.", "[::1]:", "unix:")

FIRST_WAIT = 0.05
LONGEST_WAIT = 2.0
"""Seconds between two tries."""


@dataclass(frozen=True, slots=True)
class TLS:
    """What encrypts the connection, and by what the bridge (or a proxy before it) is known.

    The bridge itself serves on the loopback interface only, unencrypted; a proxy that brings it to
    other machines speaks TLS.
    """

    ca: Path | None = None
    """PEM file of who signed the other side's certificate; by default the usual authorities."""
    certificate: Path | None = None
    """PEM files of the client's own certificate and key, where the other side wants one."""
    key: Path | None = None
    name: str = ""
    """Name in the other side's certificate, where it is not the one in the target."""

    def credentials(self) -> grpc.ChannelCredentials:
        """:raises OSError: a file cannot be read."""
        ca, key, certificate = (
            None if file is None else file.read_bytes()
            for file in (self.ca, self.key, self.certificate)
        )
        return grpc.ssl_channel_credentials(ca, key, certificate)


@dataclass(frozen=True, slots=True)
class Options:
    """All that both clients take; see ``Client``."""

    target: Target
    timeout: float = 10.0
    token: str = ""
    tls: TLS | None = None
    retries: bool = True
    metadata: tuple[tuple[str, str], ...] = ()
    source: str = "python"

    def __post_init__(self) -> None:
        if not (callable(self.target) or isinstance(self.target, str)):
            raise TypeError(f"target is a {type(self.target).__name__}: give 'HOST:PORT'")
        if not self.target:
            raise ValueError("target is empty: give 'HOST:PORT'")
        if not self.timeout > 0:
            raise ValueError(f"timeout {self.timeout} is not positive: seconds, or math.inf")
        if not (self.token.isascii() and self.token.isprintable()):
            # The message does not quote it.
            raise ValueError("the token is not one line of visible ASCII characters")

    def __repr__(self) -> str:
        # Not the one of dataclasses, which shows the token.
        return f"Options({self.target!r}, timeout={self.timeout:g})"

    def resolve(self) -> str:
        """HOST:PORT as it is now.

        :raises OSError: whatever the resolver does.
        :raises TypeError: it gave something else.
        :raises ValueError: it gave nothing.
        """
        address = self.target if isinstance(self.target, str) else self.target()
        if not isinstance(address, str):
            raise TypeError(f"the resolver gave a {type(address).__name__}, not 'HOST:PORT'")
        if not address:
            raise ValueError("the address is empty")
        return address

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """What goes with every call."""
        secret = (("authorization", f"Bearer {self.token}"),) if self.token else ()
        return (*self.metadata, *secret)

    def channel_options(self, address: str) -> list[tuple[str, int | str]]:
        """Of gRPC, for a channel to ``address``."""
        options: list[tuple[str, int | str]] = list(CHANNEL_OPTIONS)
        if address.startswith(_ON_THIS_MACHINE):
            # A proxy for the world outside would look for its own 127.0.0.1.
            options.append(("grpc.enable_http_proxy", 0))
        if self.tls is not None and self.tls.name:
            options.append(("grpc.ssl_target_name_override", self.tls.name))
        return options


def ready_file(path: str | Path) -> Resolver:
    """Resolve to the port that a bridge has written into its ``--ready-file``, on this machine.

    For bridges on ``--port 0``, which have another port after each start.
    """
    file = Path(path)
    return lambda: f"127.0.0.1:{int(file.read_text())}"


def backoff(attempt: int, longest: float = LONGEST_WAIT) -> float:
    """Seconds to wait after so many failures in a row: doubling, with jitter of a half.

    So that a thousand clients of a bridge that comes back do not come all at once.
    """
    wait = min(longest, math.ldexp(FIRST_WAIT, min(attempt, 16)))
    return wait * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
