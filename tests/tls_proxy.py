"""A proxy that speaks TLS with clients, as one that brings a bridge to other machines does."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.tcp_proxy import TcpProxy

__all__ = ["Certificate", "TlsProxy", "issue"]


class Certificate(NamedTuple):
    """A certificate and its key, as PEM files."""

    certificate: Path
    key: Path


def issue(
    directory: Path, name: str, *, names: str = "", issuer: Certificate | None = None
) -> Certificate:
    """Make a certificate for a day, with ``openssl``; the standard library makes none.

    :param names: what it is valid for, as ``subjectAltName``; none = it is an authority.
    :param issuer: signs it; ``None`` = it signs itself.
    """
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed, and certificates are made with it")
    made = Certificate(directory / f"{name}.crt", directory / f"{name}.key")
    kind = f"subjectAltName={names}" if names else "basicConstraints=critical,CA:TRUE"
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "1", "-subj", f"/CN={name}", "-config", "/dev/null"]
    command += ["-keyout", str(made.key), "-out", str(made.certificate), "-addext", kind]
    if issuer is not None:
        command += ["-CA", str(issuer.certificate), "-CAkey", str(issuer.key)]
        command += ["-addext", "basicConstraints=critical,CA:FALSE"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return made


class TlsProxy(TcpProxy):
    """``TcpProxy`` with TLS on the clients' side, and ``h2`` agreed on, as gRPC demands."""

    def __init__(
        self, upstream: int, certificate: Certificate, *, clients: Path | None = None
    ) -> None:
        """Begin to listen.

        :param clients: who signs the certificates that clients have to show; ``None`` = they show
            none.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.certificate, certificate.key)
        context.set_alpn_protocols(["h2"])
        if clients is not None:
            context.load_verify_locations(clients)
            context.verify_mode = ssl.CERT_REQUIRED
        super().__init__(upstream, tls=context)
