"""What a row asks of the bridge besides load, with ordinary stubs: registering, reading back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import grpc

from benchmarks.errors import BenchmarkError
from benchmarks.workloads import INITIAL, TYPE_URL
from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge.bridge_service_pb2_grpc import BridgeServiceStub

__all__ = ["read_back", "register"]

_DEADLINE = 10.0  # seconds, each call


@contextmanager
def _stub(port: int) -> Iterator[BridgeServiceStub]:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            yield BridgeServiceStub(channel)
        except grpc.RpcError as error:
            raise BenchmarkError(
                f"the bridge answered {error.code().name}: {error.details()}"
            ) from error


def register(port: int, sessions: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    """Register every name in every session; return the versions, by "session/name".

    :raises BenchmarkError: the bridge refused.
    """
    with _stub(port) as stub:
        for session in sessions:
            stub.InitializeSession(
                pb.InitializeSessionRequest(session_id=session), timeout=_DEADLINE
            )
            for name in names:
                request = pb.RegisterVariableRequest(
                    session_id=session,
                    name=name,
                    type="float",
                    constraints_json='{"min": 0, "max": 1}',
                )
                request.initial_value.type_url = TYPE_URL
                request.initial_value.value = json.dumps(INITIAL).encode()
                response = stub.RegisterVariable(request, timeout=_DEADLINE)
                if not response.success:
                    raise BenchmarkError(f"{name} was not registered: {response.error_message}")
    return {f"{session}/{name}": 1 for session in sessions for name in names}


def read_back(port: int, versions: Mapping[str, int], values: Mapping[str, float]) -> None:
    """See by GetVariable that the bridge holds exactly these versions and values.

    :raises BenchmarkError: it holds something else.
    """
    with _stub(port) as stub:
        for key, value in values.items():
            session, _, name = key.partition("/")
            request = pb.GetVariableRequest(session_id=session, variable_identifier=name)
            got = stub.GetVariable(request, timeout=_DEADLINE).variable
            if got.version != versions[key] or json.loads(got.value.value or b"null") != value:
                raise BenchmarkError(
                    f"{key} should be {value} in version {versions[key]} and reads as "
                    f"{got.value.value!r} in version {got.version}"
                )
