"""The ruler for watching: a gRPC server that passes a constant on to streams, and does no more.

``grpc.aio`` on uvloop, generic handlers without (de)serializers. What a method does, its name
says:

``/bare/Watch``  a stream that writes the constant once for each unary call that was answered
                 since it was opened, and waits when there are no more
``/bare/Flat``   a stream that writes the constant without end
``/bare/Idle``   a stream that never writes
any other        a unary call: one more for the list, and all streams that wait are woken

A stream sends its initial metadata at once.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from typing import Any

import grpc
import uvloop

__all__: list[str] = []

# The bridge's own options as far as they touch many streams on few connections.
_OPTIONS = (("grpc.so_reuseport", 0), ("grpc.max_concurrent_streams", 100_000))

_Context = grpc.aio.ServicerContext[bytes, bytes]


class _FanOut(grpc.GenericRpcHandler):
    """What all calls share: the list, and who waits at its end."""

    def __init__(self, reply: bytes, update: bytes) -> None:
        self._reply = reply
        self._update = update
        self._list: list[bytes] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._asleep: list[asyncio.Future[None]] = []
        streams = {"/bare/Watch": self._watch, "/bare/Flat": self._flat, "/bare/Idle": self._idle}
        self._streams: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: grpc.unary_stream_rpc_method_handler(method) for name, method in streams.items()
        }
        self._unary: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
            self._append
        )

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        return self._streams.get(details.method, self._unary)

    async def _append(self, _request: bytes, _context: _Context) -> bytes:
        self._list.append(self._update)
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)
        return self._reply

    async def _watch(self, _request: bytes, context: _Context) -> None:
        loop = asyncio.get_running_loop()
        updates = self._list
        at = len(updates)
        await context.send_initial_metadata(())
        while True:
            while at < len(updates):
                await context.write(updates[at])
                at += 1
            future = loop.create_future()
            self._waiting.append(future)
            await future

    async def _flat(self, _request: bytes, context: _Context) -> None:
        await context.send_initial_metadata(())
        while True:
            await context.write(self._update)

    async def _idle(self, _request: bytes, context: _Context) -> None:
        await context.send_initial_metadata(())
        future = asyncio.get_running_loop().create_future()
        self._asleep.append(future)  # or else the collector takes it, and the call with it
        await future


async def _serve(reply: bytes, update: bytes) -> None:
    server = grpc.aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers((_FanOut(reply, update),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print(f"GRPC_READY:{port}", flush=True)
    await stop.wait()
    await server.stop(grace=0)


def main() -> None:
    """Serve until SIGTERM; the constants are given in hexadecimal."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fan_out", description=main.__doc__)
    parser.add_argument("--reply", type=bytes.fromhex, default=b"")
    parser.add_argument("--update", type=bytes.fromhex, default=b"")
    arguments = parser.parse_args()
    uvloop.run(_serve(arguments.reply, arguments.update))


if __name__ == "__main__":
    main()
