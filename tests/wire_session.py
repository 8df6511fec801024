"""A session at a bridge, over a socket, with short ways to call for it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message_factory import GetMessageClass

from snakepit_bridge import bridge_service_pb2 as pb
from tests.bridge_process import BridgeProcess

TIMEOUT = 30.0
"""Seconds after which a call that hangs fails its test."""

METHODS = pb.DESCRIPTOR.services_by_name["BridgeService"].methods_by_name

Headers = Sequence[tuple[str, str]]


def packed(value: object, type_: str = "integer", prefix: str = "dspex.variables/") -> AnyMessage:
    """Pack a value as clients do: its JSON under the type's URL."""
    return AnyMessage(type_url=prefix + type_, value=json.dumps(value).encode())


def plain(value: AnyMessage) -> Any:  # noqa: ANN401 - any JSON value
    return json.loads(value.value)


@contextmanager
def refused(code: str, *words: str) -> Iterator[None]:
    """Expect a call inside to be refused with this status, and with these words."""
    with pytest.raises(grpc.RpcError) as caught:
        yield
    message = caught.value.details() or ""
    assert (caught.value.code().name, message) == (code, message)
    for word in words:
        assert word in message


class Session:
    """One session id at a bridge, with short ways to call for it."""

    def __init__(self, bridge: BridgeProcess, session_id: str) -> None:
        self.bridge = bridge
        self.id = session_id

    def call(self, method: str, headers: Headers = (), /, **fields: Any) -> Any:  # noqa: ANN401
        request = GetMessageClass(METHODS[method].input_type)(session_id=self.id, **fields)
        return getattr(self.bridge.stub, method)(request, timeout=TIMEOUT, metadata=headers)

    def start(self, **fields: Any) -> Any:  # noqa: ANN401 - stubs have no types
        return self.call("InitializeSession", **fields)

    def end(self, **fields: Any) -> Any:  # noqa: ANN401
        return self.call("CleanupSession", **fields)

    def register(self, name: str, value: object = 1, type_: str = "integer", **fields: Any) -> Any:  # noqa: ANN401
        initial = packed(value, type_)
        return self.call("RegisterVariable", name=name, type=type_, initial_value=initial, **fields)

    def get(self, identifier: str, **fields: Any) -> Any:  # noqa: ANN401
        return self.call("GetVariable", variable_identifier=identifier, **fields).variable

    def set(self, identifier: str, value: object, type_: str = "integer", **fields: Any) -> Any:  # noqa: ANN401
        new = packed(value, type_)
        return self.call("SetVariable", variable_identifier=identifier, value=new, **fields)

    def delete(self, identifier: str, **fields: Any) -> Any:  # noqa: ANN401
        return self.call("DeleteVariable", variable_identifier=identifier, **fields)

    def roll_back(self, identifier: str, version: int, **fields: Any) -> Any:  # noqa: ANN401
        return self.call(
            "RollbackVariable", variable_identifier=identifier, target_version=version, **fields
        )

    def set_many(self, updates: dict[str, AnyMessage], **fields: Any) -> Any:  # noqa: ANN401
        return self.call("SetVariables", updates=updates, **fields)

    def history(self, identifier: str, **fields: Any) -> Any:  # noqa: ANN401
        return self.call("GetVariableHistory", variable_identifier=identifier, **fields)

    @property
    def head(self) -> int:
        offset: int = self.call("GetSession").offset
        return offset

    @property
    def lives(self) -> bool:
        request = pb.HeartbeatRequest(session_id=self.id)
        valid: bool = self.bridge.stub.Heartbeat(request, timeout=TIMEOUT).session_valid
        return valid


def as_duplicate(response: Any) -> Any:  # noqa: ANN401 - stubs have no types
    copy = type(response)()
    copy.CopyFrom(response)
    copy.duplicate = True
    return copy
