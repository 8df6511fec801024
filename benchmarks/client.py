"""What a row asks of the bridge besides load, with ordinary stubs: registering, reading back."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import grpc

from benchmarks.errors import BenchmarkError
from benchmarks.workloads import INITIAL, TYPE_URL
from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge.bridge_service_pb2_grpc import BridgeServiceStub

__all__ = ["begin", "execute", "heads", "read_back", "register", "set_once"]

_DEADLINE = 10.0  # seconds, each call
_LONG = 60.0  # seconds, a call of a tool that computes beside others


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


def begin(port: int, sessions: Sequence[str]) -> dict[str, int]:
    """Begin new sessions; return the offsets at which their logs end.

    :raises BenchmarkError: the bridge refused.
    """
    with _stub(port) as stub:
        for session in sessions:
            request = pb.InitializeSessionRequest(session_id=session)
            stub.InitializeSession(request, timeout=_DEADLINE)
    return heads(port, sessions)


def heads(port: int, sessions: Iterable[str]) -> dict[str, int]:
    """Return the offsets at which the logs of sessions end.

    :raises BenchmarkError: the bridge refused.
    """
    with _stub(port) as stub:
        return {
            session: stub.GetSession(
                pb.GetSessionRequest(session_id=session), timeout=_DEADLINE
            ).offset
            for session in sessions
        }


def execute(
    port: int, session: str, tool: str, arguments: Mapping[str, float], going_on: Callable[[], bool]
) -> Iterator[Any]:
    """Call a tool again and again on one connection; give the result of each call.

    ``going_on`` is asked before each.

    :raises BenchmarkError: a call failed.
    """
    request = pb.ExecuteToolRequest(session_id=session, tool_name=tool)
    for name, value in arguments.items():
        request.parameters[name].type_url = TYPE_URL
        request.parameters[name].value = json.dumps(value).encode()
    with _stub(port) as stub:
        while going_on():
            response = stub.ExecuteTool(request, timeout=_LONG)
            if not response.success:
                raise BenchmarkError(f"{tool} failed: {response.error_message}")
            yield json.loads(response.result.value)


def set_once(port: int, session: str, name: str, value: float) -> tuple[int, int]:
    """Set a variable; return the offset of the event and when, in ns, the set was sent.

    :raises BenchmarkError: the bridge refused.
    """
    request = pb.SetVariableRequest(session_id=session, variable_identifier=name)
    request.value.type_url = TYPE_URL
    request.value.value = json.dumps(value).encode()
    with _stub(port) as stub:
        stub.Ping(pb.PingRequest(), timeout=_DEADLINE)  # connects
        sent = time.perf_counter_ns()
        response = stub.SetVariable(request, timeout=_DEADLINE)
    if not response.success:
        raise BenchmarkError(f"{name} was not set: {response.error_message}")
    return response.offset, sent


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
