"""Large values there and back: a client in its own process, and the two sides of its row.

``python -m benchmarks.tensors`` reads one ``Trips`` as JSON from its standard input and prints
what they took as JSON. Both servers get the same ``grpc.aio`` client on uvloop, without
(de)serializers; contents are made before the clock starts and compared after it has stopped.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import uvloop

from benchmarks import servers
from benchmarks.contest import Contest, Figure, Outcome
from benchmarks.driver import run_json
from benchmarks.errors import BenchmarkError
from benchmarks.proc import cpu_seconds
from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge.bridge_service_pb2_grpc import BridgeServiceStub

__all__ = ["against_echo"]

_SERVICE = "/snakepit.bridge.BridgeService/"
_TYPE_URL = "dspex.variables/tensor"
_OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
_DEADLINE = 30.0  # seconds, each call
_SESSION, _NAME = "bench-0", "weights"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trips:
    """``count`` round trips of a square float32 tensor of ``side`` rows, one at a time.

    ``version`` is the variable's before the first; 0 says that the server is an echo.
    """

    port: int
    pid: int
    side: int
    count: int
    version: int


async def _drive(trips: Trips) -> dict[str, float]:
    sets, gets = [], []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{trips.port}", options=_OPTIONS) as channel:
        server = 0.0
        for number in range(1, trips.count + 1):
            tensor = os.urandom(trips.side * trips.side * 4)
            cpu = cpu_seconds(trips.pid)
            if trips.version:
                took = await _set_and_get(channel, trips, tensor, trips.version + number)
            else:
                took = await _there_and_back(channel, trips, tensor)
            server += cpu_seconds(trips.pid) - cpu
            sets.append(took[0])
            gets.append(took[1])
    return {
        "seconds": sum(sets) + sum(gets),
        "cpu_seconds": server,
        "median_set": median(sets),
        "median_get": median(gets),
    }


async def _set_and_get(
    channel: grpc.aio.Channel, trips: Trips, tensor: bytes, version: int
) -> tuple[float, float]:
    """Set the tensor and read it; return the seconds of each."""
    setting = _request(trips.side, tensor)
    getting = pb.GetVariableRequest(session_id=_SESSION, variable_identifier=_NAME)
    asking = getting.SerializeToString()
    set_variable: Any = channel.unary_unary(_SERVICE + "SetVariable")
    get_variable: Any = channel.unary_unary(_SERVICE + "GetVariable")
    await channel.channel_ready()
    begun = time.perf_counter()
    was_set = await set_variable(setting, timeout=_DEADLINE)
    between = time.perf_counter()
    reply = await get_variable(asking, timeout=_DEADLINE)
    ended = time.perf_counter()
    response = pb.SetVariableResponse.FromString(was_set)
    if not response.success:
        raise BenchmarkError(f"a tensor was refused: {response.error_message}")
    got = pb.GetVariableResponse.FromString(reply).variable
    if (response.new_version, got.version) != (version, version):
        raise BenchmarkError(f"a tensor should have version {version} and has {got.version}")
    if sha256(got.binary_value).digest() != sha256(tensor).digest():
        raise BenchmarkError("a tensor came back with another content")
    return between - begun, ended - between


async def _there_and_back(
    channel: grpc.aio.Channel, trips: Trips, tensor: bytes
) -> tuple[float, float]:
    """Have the same request echoed; return its seconds, and none for a second call."""
    request = _request(trips.side, tensor)
    call: Any = channel.unary_unary("/bare/Echo")
    await channel.channel_ready()
    begun = time.perf_counter()
    reply = await call(request, timeout=_DEADLINE)
    took = time.perf_counter() - begun
    if sha256(reply).digest() != sha256(request).digest():
        raise BenchmarkError("the echo gave back something else")
    return took, 0.0


def _request(side: int, tensor: bytes) -> bytes:
    request = pb.SetVariableRequest(
        session_id=_SESSION, variable_identifier=_NAME, binary_value=tensor
    )
    request.value.CopyFrom(_described(side))
    return request.SerializeToString()


def _described(side: int) -> Any:  # noqa: ANN401 - a message without types of its own
    request = pb.SetVariableRequest()
    request.value.type_url = _TYPE_URL + ".binary"
    description = {"shape": [side, side], "dtype": "float32", "binary_format": "raw"}
    request.value.value = json.dumps(description).encode()
    return request.value


@contextmanager
def against_echo(directory: Path, mebibytes: int, count: int) -> Iterator[Contest]:
    """Set up set and get of a tensor of so many MiB against one echo of it; MB/s.

    A byte that went there and came back counts once.
    """
    side = math.isqrt(mebibytes * 2**20 // 4)
    moved = side * side * 4 * count

    def driven(server: servers.Server, version: int) -> Figure:
        trips = Trips(port=server.port, pid=server.pid, side=side, count=count, version=version)
        try:
            done = run_json("benchmarks.tensors", given=json.dumps(asdict(trips)))
        except BenchmarkError as error:
            raise error if server.alive() else server.fault("died") from error
        return Figure(moved / done["seconds"] / 1e6, done["cpu_seconds"] / count * 1e6, done)

    with servers.bridge(directory) as server, servers.echo(directory) as echo:
        _register(server.port)
        version = 1

        def ours(_number: int) -> Figure:
            nonlocal version
            figure = driven(server, version)
            version += count
            return figure

        ours(0)
        driven(echo, 0)
        yield Contest(
            ours=ours,
            ruler=lambda _number: driven(echo, 0),
            notes=lambda outcome: _notes(outcome, side),
        )


def _notes(outcome: Outcome, side: int) -> Sequence[str]:
    def of(name: str) -> float:
        return outcome.median(lambda pair: pair.ours.details[name]) or 0.0

    size = side * side * 4 / 2**20
    took = f"{of('median_set') * 1e3:.0f} ms and a get {of('median_get') * 1e3:.0f} ms"
    return [f"{side} × {side} float32, {size:g} MiB: a set takes {took}"]


def _register(port: int) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        request = pb.RegisterVariableRequest(
            session_id=_SESSION, name=_NAME, type="tensor", initial_binary_value=bytes(4)
        )
        request.initial_value.CopyFrom(_described(1))
        response = BridgeServiceStub(channel).RegisterVariable(request, timeout=_DEADLINE)
        if not response.success:
            raise BenchmarkError(f"a tensor was not registered: {response.error_message}")


def main() -> None:
    """Read the trips, make them, print what they took, or the fault in words and exit with 1."""
    trips = Trips(**json.load(sys.stdin))
    try:
        done = uvloop.run(_drive(trips))
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None
    except grpc.RpcError as error:
        print(f"a call failed: {error.code().name}: {error.details()}", file=sys.stderr)
        raise SystemExit(1) from None
    print(json.dumps(done))


if __name__ == "__main__":
    main()
