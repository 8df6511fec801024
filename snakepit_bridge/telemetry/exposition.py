"""``/metrics``, ``/healthz`` and ``/readyz`` over HTTP, beside the bridge and never in its way.

One daemon thread with an event loop of its own keeps every connection, so that a client that sends
or reads slowly costs a few kilobytes and holds nobody up. A scrape is written in a thread for it
alone, a few at a time: a collector that hangs stops scrapes, and neither of the probes::

    connection ─▶ head whole? ─▶ /healthz, /readyz ────────────────▶ answer, close
     (CONNECTIONS)  (HEAD_WITHIN)  /metrics ─▶ SCRAPES at a time ─▶   (READ_WITHIN)

Requests are read, and answers written, by the standard library's ``http.server``; the formats of
``/metrics`` are ``prometheus_client``'s. Nothing is logged for a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import socket
import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

import prometheus_client
from prometheus_client.exposition import choose_encoder

__all__ = ["CannotExpose", "Exposition", "address", "registry"]

logger = logging.getLogger(__name__)

CONNECTIONS = 64
"""Open at a time; the next one closes the oldest. Two Prometheus servers and the probes of an
orchestrator need four, each for milliseconds."""

HEAD_BYTES = 16 * 1024
"""Largest head of a request; asyncio keeps at most twice as much of what was not read."""

HEAD_WITHIN = 5.0
"""Seconds that a client gets to send it."""

READ_WITHIN = 5.0
"""Seconds that it gets to read the answer."""

SCRAPE_WITHIN = 9.0
"""Seconds for a scrape to be written, waiting included: Prometheus gives up after 10."""

SCRAPES = 2
"""Written at a time, for a pair of Prometheus servers: more would wait for the interpreter."""

_CLOSES_WITHIN = 0.5
"""Seconds that ``close`` waits for the thread, which needs a few milliseconds."""

_PATHS = ("/metrics", "/healthz", "/readyz")
_TEXT = ("Content-Type", "text/plain; charset=utf-8")

_Answer = tuple[HTTPStatus, Sequence[tuple[str, str]], bytes]


class CannotExpose(OSError):
    """Nothing can listen at this host and port; the message says why and what to do."""


def registry() -> prometheus_client.CollectorRegistry:
    """Give a new registry with the process, the platform and the garbage collector.

    Collectors without ``describe`` are collected once when they register, so that ``name[]`` can
    choose their metrics as well. ``_created`` series are switched off, in the whole process.
    """
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    made = prometheus_client.CollectorRegistry(auto_describe=True)
    prometheus_client.ProcessCollector(registry=made)
    prometheus_client.PlatformCollector(registry=made)
    prometheus_client.GCCollector(registry=made)
    return made


def address(host: str, port: int) -> str:
    """``HOST:PORT`` as in a URL: an IPv6 address stands in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Exposition:
    """Answers from ``start`` to ``close``."""

    def __init__(
        self,
        registry: prometheus_client.CollectorRegistry,
        ready: Callable[[], str],
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        """Nothing is bound yet.

        :param ready: empty when calls are answered, else why they are not, for ``/readyz``. Called
            on the thread here, for each request; must not block.
        :param host: address or name to listen at; whoever reaches it may read, without a password.
        :param port: 0 = any free one.
        """
        self._app = prometheus_client.make_wsgi_app(registry)
        self._ready = ready
        self._host, self._port = host, port
        self._loop: asyncio.AbstractEventLoop
        self._stop = asyncio.Event()
        self._scrapes = asyncio.Semaphore(SCRAPES)
        self._open: dict[asyncio.Task[None], None] = {}
        """The tasks of all connections, the oldest first."""
        self._thread: threading.Thread | None = None

    def start(self) -> int:
        """Listen; gives the port.

        :raises CannotExpose: the port is taken, or the host is none of this machine's.
        """
        listener = _listen(self._host, self._port)
        port: int = listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._run, args=(listener,), name="exposition", daemon=True
        )
        self._thread.start()
        return port

    def close(self) -> None:
        """Answer nobody any more, and free the port. Idempotent."""
        if self._thread is None:
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed: for the second time
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_CLOSES_WITHIN)
        if self._thread.is_alive():
            logger.warning("whoever asks whether the bridge is ready is not told: that hangs")

    def _run(self, listener: socket.socket) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve(listener))

    async def _serve(self, listener: socket.socket) -> None:
        server = await asyncio.start_server(
            self._connected, sock=listener, limit=HEAD_BYTES, backlog=CONNECTIONS
        )
        try:
            await self._stop.wait()
        finally:
            # Connections that asyncio has taken and not handed over yet would stay open if the
            # server were closed before (CPython 3.11: it raises on them).
            asyncio.get_running_loop().remove_reader(listener)
            ours = {asyncio.current_task(), *self._open}
            arriving = [task for task in asyncio.all_tasks() if task not in ours]
            if arriving:
                await asyncio.wait(arriving, timeout=_CLOSES_WITHIN / 2)
            server.close()
            tasks = list(self._open)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= CONNECTIONS:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.cancel()
        task = asyncio.get_running_loop().create_task(self._converse(reader, writer))
        self._open[task] = None

        def end(_: asyncio.Task[None]) -> None:
            self._open.pop(task, None)
            writer.transport.abort()  # after a close that has nothing left to write: nothing

        task.add_done_callback(end)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Drained then means that the kernel has everything, and closing waits for nothing.
        writer.transport.set_write_buffer_limits(0)
        try:
            async with asyncio.timeout(HEAD_WITHIN):
                request = await _read(reader)
            if not request.answered:
                request.answer(await self._answer(request))
            async with asyncio.timeout(READ_WITHIN):
                writer.write(request.written)
                await writer.drain()
                writer.close()
        except (OSError, asyncio.IncompleteReadError):
            pass  # it was too slow, or has gone: no news of the bridge's

    async def _answer(self, request: _Request) -> _Answer:
        try:
            if request.command not in {"GET", "HEAD"}:
                allow = ("Allow", "GET, HEAD")
                why = f"{request.command} is not served here, only GET and HEAD\n"
                return HTTPStatus.METHOD_NOT_ALLOWED, (_TEXT, allow), why.encode()
            path, query = request.target()
            if path == "/metrics":
                async with asyncio.timeout(SCRAPE_WITHIN):
                    return await self._scrape(_environ(request, query))
            if path == "/healthz":
                return HTTPStatus.OK, (_TEXT,), b"ok\n"
            if path == "/readyz":
                reason = self._ready()
                status = HTTPStatus.SERVICE_UNAVAILABLE if reason else HTTPStatus.OK
                return status, (_TEXT,), f"{reason or 'ok'}\n".encode()
        except TimeoutError:
            why = f"the metrics were not collected within {SCRAPE_WITHIN:g} s\n"
            return HTTPStatus.SERVICE_UNAVAILABLE, (_TEXT,), why.encode()
        except Exception:
            logger.exception("a request for metrics or readiness failed")
            why = "this failed; the bridge's log says why\n"
            return HTTPStatus.INTERNAL_SERVER_ERROR, (_TEXT,), why.encode()
        return HTTPStatus.NOT_FOUND, (_TEXT,), f"served are {', '.join(_PATHS)}\n".encode()

    async def _scrape(self, environ: dict[str, str]) -> _Answer:
        """Have the metrics written in a thread, when it is their turn."""
        await self._scrapes.acquire()
        written: asyncio.Future[_Answer] = self._loop.create_future()

        def tell(answer: _Answer | BaseException) -> None:
            # The turn is over when the thread is, also if nobody waits for it any more.
            self._scrapes.release()
            if written.done():
                return
            if isinstance(answer, BaseException):
                written.set_exception(answer)
            else:
                written.set_result(answer)

        def write() -> None:
            answer: _Answer | BaseException
            try:
                answer = _metrics(self._app, environ)
            except Exception as error:  # noqa: BLE001 - raised where it is waited for
                answer = error
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                self._loop.call_soon_threadsafe(tell, answer)

        try:
            threading.Thread(target=write, name="scrape", daemon=True).start()
        except RuntimeError:  # there can be no more threads
            self._scrapes.release()
            raise
        return await written


class _Request(BaseHTTPRequestHandler):
    """A request that has arrived whole, and the bytes of its answer, without a socket.

    ``http.server`` answers by itself what is no HTTP.
    """

    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"  # until one is read; of 0.9 nobody could read a refusal

    def __init__(self, head: bytes) -> None:
        """Read the request; its body is not looked at."""
        # Not the base's: that one serves a socket until it is closed.
        self.rfile = BytesIO(head)
        self.wfile: BytesIO = BytesIO()
        self.raw_requestline = self.rfile.readline()
        self.close_connection = True
        self.answered = not self.parse_request()

    def handle_expect_100(self) -> bool:
        """Have no body sent: it would not be read."""
        return True

    def version_string(self) -> str:
        """Name what answers; which Python that is, is nobody's business."""
        return "snakepit-bridge"

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    @property
    def written(self) -> bytes:
        return self.wfile.getvalue()

    def target(self) -> tuple[str, str]:
        """Path and query; what is no URL is no path that is served."""
        try:
            url = urlsplit(self.path)
        except ValueError:
            return "", ""
        return url.path, url.query

    def answer(self, answer: _Answer) -> None:
        """Write an answer, without its body where only the head is asked for."""
        status, headers, body = answer
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


async def _read(reader: asyncio.StreamReader) -> _Request:
    try:
        return _Request(await reader.readuntil(b"\r\n\r\n"))
    except asyncio.LimitOverrunError:
        request = _Request(b"GET / HTTP/1.1\r\n\r\n")
        request.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        request.answered = True
        return request


def _environ(request: _Request, query: str) -> dict[str, str]:
    """What ``prometheus_client`` looks at, of WSGI."""
    accept = request.headers.get("Accept", "")
    try:
        choose_encoder(accept)
    except (TypeError, ValueError):
        accept = ""  # a version that is no number: 0.26 compares it with one
    return {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/metrics",
        "QUERY_STRING": query,
        "HTTP_ACCEPT": accept,
        "HTTP_ACCEPT_ENCODING": request.headers.get("Accept-Encoding", ""),
    }


def _metrics(app: Callable[..., Any], environ: dict[str, str]) -> _Answer:
    head: list[tuple[str, Sequence[tuple[str, str]]]] = []
    body = b"".join(app(environ, lambda status, headers: head.append((status, headers))))
    ((status, headers),) = head
    return HTTPStatus(int(status.partition(" ")[0])), headers, body


def _listen(host: str, port: int) -> socket.socket:
    where = address(host, port)
    try:
        # The first address that the name has: a socket listens at one. An empty name would be all
        # that this machine has, which nobody is to ask for by an oversight; a blank is none.
        family, _, _, _, at = socket.getaddrinfo(host or " ", port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(at[:2], family=family, backlog=CONNECTIONS)
    except (OSError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise CannotExpose(
                f"port {port} for metrics is taken: stop what listens at {where}, or choose "
                "another with --metrics-port (0 takes any free one, off none)"
            ) from error
        raise CannotExpose(
            f"metrics cannot be served at {where} ({error}): expected is an address of this "
            "machine for --metrics-host, such as 127.0.0.1, and a port that this user may listen "
            "at for --metrics-port"
        ) from error
    if not ipaddress.ip_address(str(at[0]).partition("%")[0]).is_loopback:
        logger.warning("metrics are served at %s, to whoever reaches that", where)
    return listener
