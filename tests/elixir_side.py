"""The BridgeService as Snakepit's Elixir side serves it, and what a test wants to know of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, Self

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from snakepit_bridge import bridge_service_pb2 as pb

STRING_VALUE = "type.googleapis.com/google.protobuf.StringValue"

METHODS = pb.DESCRIPTOR.services_by_name["BridgeService"].methods_by_name

PATIENCE = 30.0
"""Seconds that a test waits for a call."""

Tool = Callable[..., object]


class Call(NamedTuple):
    method: str
    request: Any
    metadata: dict[str, str]
    time: float
    """Of the event loop's clock."""


def as_elixir_writes(value: object) -> AnyMessage:
    """JSON as it is, under the name of a message."""
    return AnyMessage(type_url=STRING_VALUE, value=json.dumps(value).encode())


def as_elixir_reads(value: AnyMessage) -> Any:  # noqa: ANN401 - any JSON value
    """JSON whatever the name says, and text where it is none."""
    try:
        return json.loads(value.value)
    except ValueError:
        return value.value.decode("utf-8", "replace")


class ElixirSide:
    """A gRPC server on this event loop. Sessions are those that were initialised."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.sessions: set[str] = set()
        self.faults: dict[str, tuple[grpc.StatusCode, str]] = {}
        """Statuses that methods answer with."""
        self.silent: set[str] = set()
        """Methods that take calls and never answer."""
        self.port = 0
        self.answers: dict[str, Callable[[Any], Message]] = {
            "Ping": lambda request: pb.PingResponse(message=f"pong: {request.message}"),
            "InitializeSession": self._initialize,
            "RegisterTools": self._register,
            "Heartbeat": lambda request: pb.HeartbeatResponse(
                session_valid=request.session_id in self.sessions
            ),
            "GetExposedElixirTools": lambda _: pb.GetExposedElixirToolsResponse(
                tools=[spec for spec, _ in self._tools.values()]
            ),
            "ExecuteElixirTool": self._execute,
        }
        self._tools: dict[str, tuple[pb.ToolSpec, Tool]] = {}
        self._news = asyncio.Condition()
        self._server: grpc.aio.Server | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def expose(self, spec: pb.ToolSpec, tool: Tool) -> None:
        self._tools[spec.name] = (spec, tool)

    def of(self, method: str) -> list[Call]:
        return [call for call in self.calls if call.method == method]

    async def called(self, method: str, count: int = 1) -> list[Call]:
        """Wait until a method was called so often."""
        async with asyncio.timeout(PATIENCE), self._news:
            await self._news.wait_for(lambda: len(self.of(method)) >= count)
        return self.of(method)

    async def start(self) -> None:
        """Serve, on the port that was served before if there was one."""
        self._server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        handlers = {name: self._handler(name) for name in self.answers}
        service = grpc.method_handlers_generic_handler("snakepit.bridge.BridgeService", handlers)
        self._server.add_generic_rpc_handlers((service,))
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        """Be gone at once, with all connections."""
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    def _handler(self, method: str) -> grpc.RpcMethodHandler[Any, Any]:
        async def handle(request: Message, context: Any) -> Message:  # noqa: ANN401 - has no types
            metadata = {key: str(value) for key, value in context.invocation_metadata()}
            now = asyncio.get_running_loop().time()
            async with self._news:
                self.calls.append(Call(method, request, metadata, now))
                self._news.notify_all()
            if method in self.silent:
                await asyncio.Event().wait()
            if method in self.faults:
                await context.abort(*self.faults[method])
            return self.answers[method](request)

        return grpc.unary_unary_rpc_method_handler(
            handle,
            request_deserializer=GetMessageClass(METHODS[method].input_type).FromString,
            response_serializer=GetMessageClass(METHODS[method].output_type).SerializeToString,
        )

    def _initialize(self, request: pb.InitializeSessionRequest) -> pb.InitializeSessionResponse:
        self.sessions.add(request.session_id)
        return pb.InitializeSessionResponse(success=True)

    def _register(self, request: pb.RegisterToolsRequest) -> pb.RegisterToolsResponse:
        if request.session_id not in self.sessions:
            return pb.RegisterToolsResponse(success=False, error_message="not_found")
        ids = {tool.name: f"{request.session_id}:{tool.name}" for tool in request.tools}
        return pb.RegisterToolsResponse(success=True, tool_ids=ids)

    def _execute(self, request: pb.ExecuteElixirToolRequest) -> pb.ExecuteElixirToolResponse:
        if request.tool_name not in self._tools:
            why = f"Tool {request.tool_name} not found"
            return pb.ExecuteElixirToolResponse(success=False, error_message=why)
        arguments = {name: as_elixir_reads(value) for name, value in request.parameters.items()}
        try:
            result = self._tools[request.tool_name][1](**arguments)
        except Exception as error:  # noqa: BLE001 - as a tool in Elixir that raises
            return pb.ExecuteElixirToolResponse(success=False, error_message=str(error))
        return pb.ExecuteElixirToolResponse(success=True, result=as_elixir_writes(result))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()
