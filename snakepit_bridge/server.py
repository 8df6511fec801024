"""The server: start, readiness, drain, exit.

``serve`` runs until SIGTERM or SIGINT. Its contract with whoever launched it:

* stdout carries one line, ``GRPC_READY:<port>``, once calls are answered; all else, what
  tools print too, goes to stderr. The ready file, if asked for, holds the port, written
  whole or not at all.
* On the signal: health says NOT_SERVING, new calls get UNAVAILABLE, running ones finish
  within the grace, tools that do not are interrupted, everything queued is committed, exit
  code 0, also while a tool is stuck in its thread.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge import telemetry
from snakepit_bridge.bridge_servicer import BridgeServicer
from snakepit_bridge.decide import decider, recall
from snakepit_bridge.elixir import Elixir
from snakepit_bridge.events.committer import Committer
from snakepit_bridge.events.gate import Gate
from snakepit_bridge.events.urls import open_log
from snakepit_bridge.forwarding import Forwarding, SharedBridge
from snakepit_bridge.heartbeats import HeartbeatConfig, Heartbeats
from snakepit_bridge.limits import DEFAULTS, Limits
from snakepit_bridge.observers import Dispatcher
from snakepit_bridge.observing import Exposure, MetricsSettings, Observing
from snakepit_bridge.off_loop import off_loop
from snakepit_bridge.rpc import SERVICE, Door, LockedDoor, Methods, handlers
from snakepit_bridge.slots import open_slot
from snakepit_bridge.stdout import claim_stdout
from snakepit_bridge.telemetry import logs
from snakepit_bridge.telemetry.stream import TelemetryStream
from snakepit_bridge.tokens import TokenUnusable, read_token
from snakepit_bridge.tool_calls import Calls
from snakepit_bridge.tool_methods import Tools
from snakepit_bridge.tool_session import OwnPort, ToolServices
from snakepit_bridge.tools.adapters import Toolbox, load_toolbox
from snakepit_bridge.tools.processes import Processes
from snakepit_bridge.tools.runner import Runner
from snakepit_bridge.upkeep import Upkeep
from snakepit_bridge.watching import Watches

__all__ = [
    "Access",
    "CannotServe",
    "Settings",
    "ToolSettings",
    "main",
    "run",
    "serve",
]

logger = logging.getLogger(__name__)

WAITING_MESSAGES = 4
"""Requests of the largest size that may wait for the log; of smaller ones as many more."""


class ToolSettings(NamedTuple):
    """What a person may choose for tools; the command line explains each."""

    adapters: tuple[str, ...] = ()
    record: str = "full"
    elixir_address: str = ""
    heartbeat: HeartbeatConfig | None = None
    threads: int | None = None
    """In place of the limit."""


class Access(NamedTuple):
    """Who may call this bridge, and which one it calls itself; the tokens are in files."""

    token_file: Path | None = None
    """Of the token that each call has to carry; ``None`` = none."""
    bridge: str = ""
    """``HOST:PORT`` of the shared bridge, whose sessions and variables are served; empty = this
    one has its own."""
    bridge_token_file: Path | None = None
    """Of the token that the shared bridge wants."""


class Settings(NamedTuple):
    """What a person may choose; the command line explains each."""

    log: str
    """A URL; empty where there are slots."""
    port: int = 50050
    ready_file: Path | None = None
    grace: float = 1.5
    """Seconds that running calls get to finish; Snakepit kills after 2."""
    limits: Limits = DEFAULTS
    tools: ToolSettings = ToolSettings()
    slots: Path | None = None
    """Directory of logs, of which the first is taken that is free."""
    access: Access = Access()
    metrics: MetricsSettings = MetricsSettings()


class CannotServe(Exception):
    """The server cannot start; the message says why and what to do."""


def run(settings: Settings) -> None:
    """Serve until a signal, on uvloop where there is one; owns the process.

    :raises CannotServe: a port is taken, a file for whoever looks for the port cannot be written,
        or there is no token in its file.
    :raises LogUnusable: the log cannot be opened.
    :raises AdapterUnusable: an adapter cannot be loaded.
    """
    stdout = claim_stdout()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(serve(settings, stdout))
        # From here on Python waits for tasks and threads that tools have left behind.
        last = threading.Timer(LONGEST_END, _leave)
        last.daemon = True
        last.start()


LONGEST_END = 0.25
"""Seconds for that. All that matters has been written."""


def _leave() -> None:
    logger.warning("tools still run, and end here")
    sys.stderr.flush()
    logs.flush()
    os._exit(0)


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - absent on Windows
    except ImportError:
        return None
    return uvloop.Loop


async def serve(settings: Settings, stdout: TextIO) -> None:
    """Serve on the running loop until SIGTERM or SIGINT; see ``run``.

    :param stdout: where readiness is announced.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    logging.getLogger("grpc._cython.cygrpc").addFilter(logs.of_bridge)
    token = _token(settings.access.token_file)
    shared_token = _token(settings.access.bridge_token_file)
    toolbox = load_toolbox(settings.tools.adapters)
    engine = open_log(settings.log) if settings.slots is None else open_slot(settings.slots)
    limits = settings.limits
    observing = Observing(_services(), toolbox.definitions)
    committer = Committer(engine, decider(limits), recall, observers=observing.committing)
    observing.trace(committer.instance)
    upkeep = Upkeep(committer, limits)
    door = LockedDoor(token) if token else Door()

    def unready() -> str:
        if stop.is_set() or door.shut:
            return "draining"
        return "" if committer.writable else "the log cannot be written"

    exposure = Exposure(settings.metrics, unready)
    try:
        gate = Gate(committer, loop, WAITING_MESSAGES * limits.message_size)
        core = _Core(committer, gate, observing)
        bench = _Bench(settings, core, toolbox, token)
        door.is_tool = bench.tools.is_running
        sessions = _Sessions(settings, core, bench, shared_token)
        methods = handlers(sessions.methods, door, limits.message_size)
        server, health_servicer, port = await _start(methods, settings, observing.interceptor)
        bench.start(port, stop.set)
        committer.start()
        upkeep.start()
        sessions.start()
        # What was imported stays. Each full collection would look at all of it, for 35 ms.
        gc.freeze()
        logger.info("serving %s on port %d", engine.url, port)
        try:
            await _expose(exposure, core, sessions)
            _announce(stdout, port, settings.ready_file)
            await stop.wait()
            await health_servicer.enter_graceful_shutdown()
        finally:
            await _drain(server, door, sessions, bench, settings.grace)
            await sessions.hang_up()
    finally:
        await off_loop(upkeep.stop)
        await off_loop(committer.close)
        await off_loop(observing.close)
        await off_loop(exposure.stop)
    logger.info("stopped")


def _token(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return read_token(path)
    except TokenUnusable as error:
        raise CannotServe(str(error)) from error


async def _expose(exposure: Exposure, core: _Core, sessions: _Sessions) -> None:
    committer, _, observing = core
    try:
        await off_loop(exposure.start, observing, committer, sessions.watches.hub)
    except OSError as error:
        raise CannotServe(str(error)) from error


class _Core(NamedTuple):
    """What changes sessions, the way there, and what looks at it."""

    committer: Committer
    gate: Gate
    observing: Observing


class _Bench:
    """What tools are run with, and what connects them with Elixir."""

    def __init__(
        self,
        settings: Settings,
        core: _Core,
        toolbox: Toolbox,
        token: str,
    ) -> None:
        """On the running loop.

        :param token: that this bridge wants of each call, those of tools included.
        """
        loop = asyncio.get_running_loop()
        committer, gate, observing = core
        limits, chosen = settings.limits, settings.tools
        size = limits.message_size
        self._port = 0
        self._heartbeat = chosen.heartbeat
        self._heartbeats: Heartbeats | None = None
        self.telemetry = TelemetryStream()
        address = chosen.elixir_address
        self.elixir = Elixir(address, max_size=size) if address else None
        self._dispatcher = Dispatcher(committer)
        own_port = OwnPort(lambda: self._port, token) if settings.access.bridge else None
        services = ToolServices(committer, self._dispatcher, self.elixir, loop, own_port)
        processes = Processes(
            limits.tool_processes, lambda: self._port, max_size=limits.value_size, token=token
        )
        threads = chosen.threads or limits.tool_threads
        runner = Runner(loop, processes, threads=threads, max_size=limits.value_size)
        self.calls = Calls(
            services, runner, gate, self.telemetry, record=chosen.record, observer=observing.tools
        )
        self.tools = Tools(toolbox, self.calls, max_calls=limits.tool_calls)

    def start(self, port: int, on_lost: Callable[[], None]) -> None:
        """Begin, once the port is known.

        :param on_lost: called when Elixir is gone and this worker depends on it.
        """
        self._port = port
        telemetry.attach(self.telemetry)
        if self.elixir is not None and self._heartbeat is not None:
            sessions = lambda: self.tools.sessions  # noqa: E731 - as short as a name
            self._heartbeats = Heartbeats(self.elixir, self._heartbeat, sessions, on_lost)
            self._heartbeats.start()

    async def stop(self) -> None:
        """Interrupt what still runs; waits for no tool."""
        telemetry.detach()
        if self._heartbeats is not None:
            await self._heartbeats.stop()
        await self.tools.stop()
        if self.elixir is not None:
            await self.elixir.close()
        self._dispatcher.close(wait=False)


class _Sessions:
    """The methods about sessions and variables, answered here or at the shared bridge."""

    def __init__(
        self,
        settings: Settings,
        core: _Core,
        bench: _Bench,
        shared_token: str,
    ) -> None:
        """On the running loop."""
        loop = asyncio.get_running_loop()
        committer, gate, observing = core
        tools = bench.tools
        local = BridgeServicer(
            committer,
            gate,
            tools.specs,
            tools.ending,
            max_message_bytes=settings.limits.message_size,
        )
        self.watches = Watches(committer, gate, loop, settings.limits, observing.delivered)
        self._look: asyncio.Task[None] | None = None
        of_tools = {
            "ExecuteTool": tools.execute_tool,
            "GetExposedElixirTools": tools.get_exposed_elixir_tools,
            "ExecuteElixirTool": tools.execute_elixir_tool,
        }
        streams = {"ExecuteStreamingTool": tools.execute_streaming_tool}
        telemetry = {"StreamTelemetry": bench.telemetry.stream_telemetry}
        address = settings.access.bridge
        if not address:
            self._shared = self._forwarding = None
            self.methods = Methods(
                local.queries,
                {**local.mutations, **of_tools},
                {"WatchVariables": self.watches.watch_variables},
                streams,
                telemetry,
            )
            return
        self._shared = SharedBridge(address, shared_token)
        self._forwarding = forwarding = Forwarding(self._shared, local, bench.calls, gate)
        self.methods = Methods(
            {"Ping": local.ping},
            {
                "RegisterTools": local.mutations["RegisterTools"],
                **forwarding.methods,
                **of_tools,
            },
            {},
            {"WatchVariables": forwarding.watch_variables, **streams},
            telemetry,
        )

    def start(self) -> None:
        """Once calls are answered."""
        if self._forwarding is not None:
            self._look = asyncio.get_running_loop().create_task(self._forwarding.look())

    async def end_watches(self) -> None:
        """End every watch within a moment."""
        await self.watches.close()
        if self._forwarding is not None:
            await self._forwarding.close()

    async def hang_up(self) -> None:
        """Let go of the shared bridge."""
        if self._look is not None:
            self._look.cancel()
        if self._shared is not None:
            await self._shared.close()


async def _drain(
    server: grpc.aio.Server, door: Door, sessions: _Sessions, bench: _Bench, grace: float
) -> None:
    """Let no call in, answer those that have arrived, then stop.

    gRPC cancels what has arrived but not reached a handler when it stops; so it stops only
    when nothing has arrived for a while.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + grace
    door.shut = True
    logger.info("draining %d calls", door.inside)
    await sessions.end_watches()
    await _quiet(door, end - LONGEST_INTERRUPTION, bench.telemetry)
    await bench.stop()
    await bench.telemetry.close()
    await _quiet(door, end, bench.telemetry)
    # With nothing running there is nothing to wait for but peers that keep idle connections.
    await server.stop(max(0.0, end - loop.time()) if door.inside else 0)


async def _quiet(door: Door, end: float, telemetry: TelemetryStream) -> None:
    """Wait until only telemetry is inside and nobody has come for a while, or until ``end``."""
    loop = asyncio.get_running_loop()
    arrived = -1
    while (
        door.inside > telemetry.listeners or arrived != door.arrived
    ) and loop.time() + _QUIET < end:
        arrived = door.arrived
        await asyncio.sleep(_QUIET)


LONGEST_INTERRUPTION = 0.3
"""Seconds of the grace in which tools that have not ended are left and the log is told."""

_QUIET = 0.02
"""Seconds without a new call after which none is on its way to a handler."""


async def _start(
    methods: grpc.GenericRpcHandler, settings: Settings, interceptor: grpc.aio.ServerInterceptor
) -> tuple[grpc.aio.Server, health.aio.HealthServicer, int]:
    """Bind 127.0.0.1 and, where there is IPv6, ::1 on the same number; then serve."""
    port = settings.port
    for _ in range(_ATTEMPTS if port == 0 else 1):
        server = grpc.aio.server(
            interceptors=(interceptor,), options=_options(settings.limits.message_size)
        )
        health_servicer = _add_services(server, methods)
        try:
            bound = _bind(server, "127.0.0.1", port)
            if _has_ipv6():
                _bind(server, "[::1]", bound)
        except _PortTaken:
            continue
        await health_servicer.set(SERVICE.full_name, health_pb2.HealthCheckResponse.SERVING)
        await server.start()
        return server, health_servicer, bound
    raise CannotServe(
        f"port {port} is taken: stop what listens there, or choose another with --port "
        "(0 takes any free one)"
    )


_ATTEMPTS = 20
"""A free IPv4 port whose IPv6 twin is taken is rare; twenty in a row do not happen."""


def _options(message_size: int) -> Sequence[tuple[str, int]]:
    return (
        # On by default: a second server would silently share the port.
        ("grpc.so_reuseport", 0),
        # gRPC's own refusal does not say what to do, so that it only bounds the memory: what
        # is up to twice too large is refused by ours.
        ("grpc.max_receive_message_length", min(2 * message_size, 2**31 - 1)),
        # Answers are bounded where they are put together; one history entry, a value and the
        # one before it, may be larger than a message that comes in.
        ("grpc.max_send_message_length", -1),
        # Compressed requests are refused: older gRPC unpacks them before it looks at the limit,
        # and 16 MB become 16 GiB. The bit set holds "identity" only.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        # An Elixir client gets status 13 for each call beyond the limit.
        ("grpc.max_concurrent_streams", 100_000),
        # gRPC would cancel a burst of 2,000 calls before they reach a handler.
        ("grpc.server.max_pending_requests", 100_000),
        ("grpc.server.max_pending_requests_hard_limit", 100_000),
        # "Too many pings" would end every stream of a connection.
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.keepalive_permit_without_calls", 1),
    )


class _PortTaken(Exception):
    pass


def _bind(server: grpc.aio.Server, host: str, port: int) -> int:
    # gRPC writes a line of its own to stderr when it cannot bind, so a socket tries first.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
            probe.listen()
        except OSError as error:
            raise _PortTaken from error
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise _PortTaken from error
    if bound == 0:
        raise _PortTaken
    return bound


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError as error:
        return error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
    return True


def _services() -> Sequence[ServiceDescriptor]:
    from grpc_reflection.v1alpha import reflection_pb2  # noqa: PLC0415 - 30 ms of start-up

    files: Sequence[Any] = (pb.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR)
    return [service for file in files for service in file.services_by_name.values()]


def _add_services(
    server: grpc.aio.Server, methods: grpc.GenericRpcHandler
) -> health.aio.HealthServicer:
    from grpc_reflection.v1alpha import reflection  # noqa: PLC0415 - 30 ms of start-up

    server.add_generic_rpc_handlers((methods,))
    servicer_of_health = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer_of_health, server)
    names = (SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    return servicer_of_health


def _announce(stdout: TextIO, port: int, ready_file: Path | None) -> None:
    if ready_file is not None:
        temporary = ready_file.with_name(f".{ready_file.name}.{os.getpid()}")
        try:
            with temporary.open("w") as file:
                file.write(f"{port}\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(ready_file)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise CannotServe(f"cannot write the ready file {ready_file}: {error}") from error
    stdout.write(f"GRPC_READY:{port}\n")
    stdout.flush()


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m snakepit_bridge.server`` is ``snakepit-bridge serve``."""
    from snakepit_bridge.cli import main as cli  # noqa: PLC0415 - the floor beside this one

    cli(["serve", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    main()
