"""The ruler: a gRPC server that does nothing, on the same libraries as the bridge.

``grpc.aio`` on uvloop, one generic handler without (de)serializers, whose coroutine
returns one constant. Whatever the bridge needs beyond this is the bridge's own work.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from typing import TypeAlias

import grpc
import uvloop

__all__ = ["OPTIONS"]

# The bridge's own options as far as they touch unary calls.
OPTIONS = (("grpc.so_reuseport", 0),)


_Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"


class _Constant(grpc.GenericRpcHandler):
    """Answers every unary call of every method with the same bytes."""

    def __init__(self, reply: bytes) -> None:
        async def answer(_request: bytes, _context: object) -> bytes:
            return reply

        self._handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(
            answer
        )

    def service(self, _details: grpc.HandlerCallDetails) -> _Handler:
        return self._handler


async def _serve(reply: bytes) -> None:
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((_Constant(reply),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print(f"GRPC_READY:{port}", flush=True)
    await stop.wait()
    await server.stop(grace=0)


def main() -> None:
    """Serve until SIGTERM; ``--reply`` is the constant, in hexadecimal."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bare", description=main.__doc__)
    parser.add_argument("--reply", type=bytes.fromhex, default=b"")
    arguments = parser.parse_args()
    uvloop.run(_serve(arguments.reply))


if __name__ == "__main__":
    main()
