"""A session that calls tools, and what a log tells of them."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge import bridge_service_pb2_grpc as stubs
from snakepit_bridge.events.model import LogId, Record, Value
from snakepit_bridge.events.reading import fold
from snakepit_bridge.events.sqlite import SqliteLog
from tests.wire_session import TIMEOUT, Headers, Session

STRING_VALUE = "type.googleapis.com/google.protobuf.StringValue"

TOOLS = ("--adapter", "tests.wire_tools")


def as_elixir_writes(value: object) -> AnyMessage:
    """JSON as it is, under the name of a message."""
    return AnyMessage(type_url=STRING_VALUE, value=json.dumps(value).encode())


class ToolSession(Session):
    """One session id at a bridge, with short ways to run tools."""

    def request(
        self,
        tool: str,
        arguments: Mapping[str, object],
        **fields: Any,  # noqa: ANN401
    ) -> pb.ExecuteToolRequest:
        parameters = {
            name: argument if isinstance(argument, AnyMessage) else as_elixir_writes(argument)
            for name, argument in arguments.items()
        }
        return pb.ExecuteToolRequest(
            session_id=self.id, tool_name=tool, parameters=parameters, **fields
        )

    def run(
        self,
        tool: str,
        arguments: Mapping[str, object] | None = None,
        headers: Headers = (),
        timeout: float = TIMEOUT,
        **fields: Any,  # noqa: ANN401
    ) -> pb.ExecuteToolResponse:
        """Run a tool to its end."""
        future = self.begin(tool, arguments, headers, timeout, **fields)
        response: pb.ExecuteToolResponse = future.result()
        return response

    def begin(
        self,
        tool: str,
        arguments: Mapping[str, object] | None = None,
        headers: Headers = (),
        timeout: float = TIMEOUT,
        **fields: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401 - a call's future
        request = self.request(tool, arguments or {}, **fields)
        return self.bridge.stub.ExecuteTool.future(request, timeout=timeout, metadata=headers)

    def stream(
        self,
        tool: str,
        arguments: Mapping[str, object] | None = None,
        headers: Headers = (),
        timeout: float = TIMEOUT,
        on: grpc.Channel | None = None,
        **fields: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401 - a call
        request = self.request(tool, arguments or {}, **fields)
        stub: Any = self.bridge.stub if on is None else stubs.BridgeServiceStub(on)
        return stub.ExecuteStreamingTool(request, timeout=timeout, metadata=headers)

    def value(self, tool: str, arguments: Mapping[str, object] | None = None) -> Any:  # noqa: ANN401
        """Run a tool that succeeds, and give its result."""
        return value_of(self.run(tool, arguments))


def value_of(response: pb.ExecuteToolResponse) -> Any:  # noqa: ANN401 - any JSON value
    assert response.success, response.error_message
    return json.loads(response.result.value)


class Entry(NamedTuple):
    """One event of a log."""

    kind: str
    body: Any
    offset: int
    record: Record
    values: tuple[Value, ...]
    """Of its whole transaction."""
    epoch: str


def entries(path: Path, session_id: str) -> list[Entry]:
    """All events of a session, of its logs one after the other.

    Read from a copy, so that a bridge that was killed is what recovers its file.
    """
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory, path.name)
        for suffix in ("", "-wal"):
            if Path(f"{path}{suffix}").exists():
                shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")
        return list(_entries(copy, session_id))


def entries_now(path: Path, session_id: str) -> list[Entry]:
    """As ``entries``, of a bridge that goes on."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory, path.name)
        with closing(sqlite3.connect(path)) as file, closing(sqlite3.connect(copy)) as target:
            file.backup(target)
        return list(_entries(copy, session_id))


def _entries(path: Path, session_id: str) -> Iterator[Entry]:
    engine = SqliteLog(path)
    try:
        with closing(sqlite3.connect(path)) as file:
            query = "SELECT epoch FROM logs WHERE session_id = ? ORDER BY id"
            epochs = [row[0] for row in file.execute(query, (session_id,))]
        for epoch in epochs:
            for transaction in fold(engine, LogId(session_id, epoch)):
                offset = transaction.record.first_offset
                for place, (kind, body) in enumerate(transaction.facts):
                    yield Entry(
                        kind,
                        body,
                        offset + place,
                        transaction.record,
                        tuple(transaction.values),
                        epoch,
                    )
    finally:
        engine.close()


class Run(NamedTuple):
    """What a log tells of one call of a tool."""

    start: Entry
    end: Entry | None
    changes: list[Entry]
    """That name the call as theirs."""

    @property
    def outcome(self) -> str:
        return "open" if self.end is None else self.end.body.outcome


def runs_in(log: list[Entry]) -> dict[str, Run]:
    """The calls of tools, by their ids, in order; each is closed once, and nothing comes after."""
    found: dict[str, Run] = {}
    for entry in log:
        if entry.kind == "tool_started":
            assert entry.body.call_id not in found
            found[entry.body.call_id] = Run(entry, None, [])
        elif entry.kind == "tool_finished":
            run = found[entry.body.call_id]
            assert run.end is None, f"{entry.body.call_id} is closed twice"
            assert entry.body.started_offset == run.start.offset
            found[entry.body.call_id] = run._replace(end=entry)
        elif entry.record.tool_call_id:
            run = found[entry.record.tool_call_id]
            assert run.end is None, f"{entry.record.tool_call_id} changed something after its end"
            run.changes.append(entry)
    return found
