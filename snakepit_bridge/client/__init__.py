"""The Python client: ``Client`` for threads, ``AsyncClient`` for an event loop, same names.

It knows the wire, and nothing of the server.
"""

from __future__ import annotations

__all__ = [
    "TLS",
    "AsyncClient",
    "AsyncSession",
    "AsyncSubscription",
    "AsyncWatch",
    "Bookmark",
    "Client",
    "RemoteSession",
    "Session",
    "SessionInfo",
    "StreamItem",
    "Subscription",
    "ToolDescription",
    "ToolFailed",
    "ToolParameter",
    "Watch",
    "WatchStatus",
    "Written",
    "ready_file",
]

from snakepit_bridge.client.aio import AsyncClient, AsyncSession, AsyncSubscription
from snakepit_bridge.client.aio_watches import AsyncWatch
from snakepit_bridge.client.options import TLS, ready_file
from snakepit_bridge.client.remote_session import RemoteSession
from snakepit_bridge.client.results import (
    Bookmark,
    SessionInfo,
    StreamItem,
    ToolDescription,
    ToolFailed,
    ToolParameter,
    WatchStatus,
    Written,
)
from snakepit_bridge.client.subscriptions import Subscription
from snakepit_bridge.client.sync import Client, Session
from snakepit_bridge.client.watches import Watch
