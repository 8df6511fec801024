"""Watches over a socket: opened, read update by update, ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, NamedTuple, Self

import grpc
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge import bridge_service_pb2_grpc as stubs
from tests.test_error_table import Fault, fault_of
from tests.wire_session import TIMEOUT, Session, plain

Headers = tuple[tuple[str, str], ...]


class Bookmark(NamedTuple):
    """What a client keeps."""

    log_epoch: str
    resume_offset: int
    resume_check: int

    @property
    def fields(self) -> dict[str, Any]:
        """Of the request that goes on with it."""
        return {
            "log_epoch": self.log_epoch,
            "after_offset": self.resume_offset,
            "resume_check": self.resume_check,
        }


def bookmark_of(update: pb.VariableUpdate) -> Bookmark:
    assert update.HasField("resume_offset"), update
    return Bookmark(update.log_epoch, update.resume_offset, update.resume_check)


class Watch:
    """One open watch. A call that hangs fails its test by the deadline."""

    def __init__(self, call: Any) -> None:  # noqa: ANN401 - stubs have no types
        self.call = call

    def next(self) -> pb.VariableUpdate:
        update: pb.VariableUpdate = next(self.call)
        return update

    def take(self, count: int) -> list[pb.VariableUpdate]:
        return [self.next() for _ in range(count)]

    def until(self, update_type: str) -> list[pb.VariableUpdate]:
        """All up to the first of a type, which is the last of them."""
        taken = [self.next()]
        while taken[-1].update_type != update_type:
            taken.append(self.next())
        return taken

    def rest(self) -> list[pb.VariableUpdate]:
        """All there are, to an end with OK."""
        taken = list(self.call)
        assert self.call.code() is grpc.StatusCode.OK
        return taken

    def to_fault(self) -> tuple[list[pb.VariableUpdate], Fault]:
        """All there are, to an end with an error."""
        taken: list[pb.VariableUpdate] = []
        try:
            for update in self.call:
                taken.append(update)  # noqa: PERF402 - they are wanted in spite of the error
        except grpc.RpcError:
            return taken, fault_of(self.call)
        raise AssertionError(f"it ended with OK after {taken}")

    def fault(self) -> Fault:
        """How it was refused."""
        taken, fault = self.to_fault()
        assert taken == []
        return fault

    @property
    def facts(self) -> dict[str, str]:
        """What the refusal says to machines."""
        status = rpc_status.from_call(self.call)
        assert status is not None
        info = ErrorInfo()
        assert status.details[0].Unpack(info)
        return dict(info.metadata)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.call.cancel()


def watch(
    session: Session,
    *identifiers: str,
    on: grpc.Channel | None = None,
    timeout: float = TIMEOUT,
    headers: Headers = (),
    **fields: Any,  # noqa: ANN401
) -> Watch:
    """Ask for a watch. Where it begins is certain only once it says something.

    :param on: a channel other than the bridge's.
    """
    request = pb.WatchVariablesRequest(
        session_id=session.id, variable_identifiers=identifiers, **fields
    )
    stub: Any = session.bridge.stub if on is None else stubs.BridgeServiceStub(on)
    return Watch(stub.WatchVariables(request, timeout=timeout, metadata=headers))


def at_head(session: Session, *identifiers: str, **fields: Any) -> Watch:  # noqa: ANN401
    """Open a watch and read it up to ``caught_up``: what is written now it will see."""
    opened = watch(session, *identifiers, send_caught_up=True, **fields)
    opened.until("caught_up")
    return opened


def outline(updates: Iterable[pb.VariableUpdate]) -> list[tuple[str, int, str, Any]]:
    """Of each update its type, offset, name and value."""
    return [
        (
            update.update_type,
            update.offset,
            update.variable.name,
            plain(update.variable.value) if update.variable.HasField("value") else None,
        )
        for update in updates
    ]


def wait_until(done: Callable[[], object], what: str, patience: float = TIMEOUT) -> None:
    """Ask again and again, until a deadline."""
    end = time.monotonic() + patience
    while not done():
        assert time.monotonic() < end, f"not within {patience:g} s: {what}"
        time.sleep(0.01)
