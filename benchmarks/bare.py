"""The ruler: a gRPC server that does nothing, on the same libraries as the bridge.

``grpc.aio`` on uvloop, one generic handler without (de)serializers, whose coroutine
returns one constant, or the request itself. ``/bare/Stream`` is a stream that writes the
constant as many times as its request says, a decimal number. Whatever the bridge needs
beyond this is the bridge's own work.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from typing import Any, TypeAlias

import grpc
import uvloop

__all__ = ["OPTIONS"]

# The bridge's own options as far as they touch unary calls.
OPTIONS = (("grpc.so_reuseport", 0),)
# And those for large messages: as the bridge does with a message limit of 128 MiB.
_LARGE = (
    ("grpc.max_receive_message_length", 256 * 1024 * 1024),
    ("grpc.max_send_message_length", -1),
)


_Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"
_Context = grpc.aio.ServicerContext[bytes, bytes]
_STREAM = "/bare/Stream"


class _Bare(grpc.GenericRpcHandler):
    """Answers all calls: unary ones of any method with the same bytes, or with the request."""

    def __init__(self, reply: bytes, *, echo: bool) -> None:
        async def answer(_request: bytes, _context: object) -> bytes:
            return reply

        async def give_back(request: bytes, _context: object) -> bytes:
            return request

        async def stream(request: bytes, context: _Context) -> None:
            await context.send_initial_metadata(())
            for _ in range(int(request)):
                await context.write(reply)

        self._unary: _Handler = grpc.unary_unary_rpc_method_handler(give_back if echo else answer)
        # The stubs know no handler that writes to its context.
        writes: Any = stream
        self._stream: _Handler = grpc.unary_stream_rpc_method_handler(writes)

    def service(self, details: grpc.HandlerCallDetails) -> _Handler:
        return self._stream if details.method == _STREAM else self._unary


async def _serve(reply: bytes, *, echo: bool) -> None:
    server = grpc.aio.server(options=OPTIONS + _LARGE if echo else OPTIONS)
    server.add_generic_rpc_handlers((_Bare(reply, echo=echo),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print(f"GRPC_READY:{port}", flush=True)
    await stop.wait()
    await server.stop(grace=0)


def main() -> None:
    """Serve until SIGTERM; ``--reply`` is the constant, in hexadecimal; ``--echo`` has none."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bare", description=main.__doc__)
    parser.add_argument("--reply", type=bytes.fromhex, default=b"")
    parser.add_argument("--echo", action="store_true")
    arguments = parser.parse_args()
    uvloop.run(_serve(arguments.reply, echo=arguments.echo))


if __name__ == "__main__":
    main()
