"""``BaseAdapter`` and ``tool`` under the name under which Snakepit's adapters import them."""

from __future__ import annotations

import functools
import logging
import os
from typing import Any

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge.tools.decorator import ToolMetadata, tool
from snakepit_bridge.tools.definition import ToolDefinition, define, methods

__all__ = ["BaseAdapter", "ToolMetadata", "tool"]

logger = logging.getLogger(__name__)


class BaseAdapter:
    """A class whose marked methods are tools.

    An instance serves one call. Where the class has them, the bridge calls
    ``set_session_context(context)`` and ``initialize()`` before the tool and ``cleanup()`` after
    it, the last two plain or async. What should outlive a call belongs into the module, or into a
    class that says ``__thread_safe__ = True``.
    """

    # Of the class, so that it is there in classes that forget super().__init__().
    session_context: Any = None
    """The session of the call that runs."""

    def __init__(self) -> None:
        self.session_context = None

    def set_session_context(self, context: Any) -> None:  # noqa: ANN401 - a session of any kind
        self.session_context = context

    def get_tools(self) -> list[pb.ToolRegistration]:
        """Describe the tools, as they are announced to Elixir; a class may announce others."""
        cls: Any = type(self)
        return [definition.registration() for definition in _definitions(cls)]

    def call_tool(self, tool_name: str, **arguments: Any) -> Any:  # noqa: ANN401 - any tool's
        """Call a method by its name.

        :raises AttributeError: there is none of this name.
        :raises TypeError: it cannot be called.
        """
        method = getattr(self, tool_name, None)
        if method is None:
            raise AttributeError(f"{type(self).__name__} has no tool {tool_name!r}")
        if not callable(method):
            raise TypeError(f"{tool_name!r} of {type(self).__name__} cannot be called")
        return method(**arguments)

    def register_with_session(self, session_id: str, stub: Any) -> list[str]:  # noqa: ANN401 - of any service
        """Announce the tools to a session through a stub, as Snakepit's own server did.

        The bridge needs no such call. An answer that is a call of ``grpc.aio`` is not awaited
        here: nothing is known of its outcome, and the names that were sent are given.

        :returns: the names that were accepted; none if the call failed, which is logged.
        """
        tools = self.get_tools()
        request = pb.RegisterToolsRequest(
            session_id=session_id, tools=tools, worker_id=f"python-{os.getpid()}"
        )
        try:
            response = stub.RegisterTools(request)
        except Exception as error:  # noqa: BLE001 - of any stub; Snakepit's adapters expect a list
            logger.warning("tools of %s were not registered: %s", type(self).__name__, error)
            return []
        if hasattr(response, "__await__"):
            return [registration.name for registration in tools]
        if not response.success:
            logger.warning(
                "tools of %s were not registered: %s", type(self).__name__, response.error_message
            )
            return []
        return list(response.tool_ids)


@functools.lru_cache(maxsize=64)
def _definitions(cls: type) -> tuple[ToolDefinition, ...]:
    source = f"{cls.__module__}.{cls.__qualname__}"
    return tuple(define(method, name, source=source, cls=cls) for name, method in methods(cls))
