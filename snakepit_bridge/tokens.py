"""The token of a bridge: who may call it. It lives in a file, and travels as a header.

In a file, because command lines and environments are shown to others. It is an RFC 6750 bearer
token, and is compared in constant time.
"""

from __future__ import annotations

import hmac
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from snakepit_bridge.errors import PermissionDenied, Unauthenticated

__all__ = ["TOKEN_HEADER", "TokenUnusable", "bearer", "check_token", "read_token"]

TOKEN_HEADER = "authorization"  # noqa: S105 - the name of the header, which is no secret

MIN_TOKEN = 16
"""Characters: 64 bits where they are hexadecimal digits, which nobody guesses over a network."""

MAX_TOKEN = 4_096
"""Characters: half of the metadata that gRPC takes with a call."""

_SCHEME = b"bearer"


class TokenUnusable(Exception):
    """A file holds no token that can be used; the message says why, and never what it holds."""


def read_token(path: Path) -> str:
    """Read the token that stands in a file, alone on one line.

    :raises TokenUnusable: the file cannot be read, others can read or change it, or what stands
        there cannot be a token.
    """
    try:
        # A pipe without a writer would wait for one.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode):
                raise TokenUnusable(f"the token file {path} is no ordinary file")
            others = about.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
            content = b"" if others else file.read(MAX_TOKEN + 3)
    except OSError as error:
        raise TokenUnusable(f"cannot read the token file {path}: {error.strerror}") from error
    if others:
        raise TokenUnusable(
            f"the token file {path} is open to others (mode {stat.S_IMODE(about.st_mode):04o}): "
            f"chmod 600 {path}, and make a new token if this one may have been read"
        )
    line = content.removesuffix(b"\n").removesuffix(b"\r")
    if not MIN_TOKEN <= len(line) <= MAX_TOKEN or not all(0x21 <= byte <= 0x7E for byte in line):  # noqa: PLR2004 - the visible ones
        raise TokenUnusable(
            f"the token file {path} must hold one line of {MIN_TOKEN} to {MAX_TOKEN} visible ASCII "
            "characters and nothing else: make one with 'openssl rand -hex 32'"
        )
    return line.decode("ascii")


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """The gRPC metadata that carry a token; nothing where there is none."""
    return ((TOKEN_HEADER, f"Bearer {token}"),) if token else ()


def check_token(token: bytes, metadata: Iterable[tuple[str, str | bytes]]) -> None:
    """See that a call carries the token.

    :raises Unauthenticated: it carries none.
    :raises PermissionDenied: it carries another, or several.
    """
    given = [value for key, value in metadata if key == TOKEN_HEADER]
    if not given:
        raise Unauthenticated
    right = True
    for value in given:
        raw = value.encode() if isinstance(value, str) else value
        scheme, _, credentials = raw.partition(b" ")
        if scheme.lower() != _SCHEME:  # as RFC 9110 has it
            raise Unauthenticated
        right &= hmac.compare_digest(credentials.strip(b" "), token)
    if not right:
        raise PermissionDenied
