"""What a bridge allows: every limit that a person can choose, with its flag.

A refusal names the limit and the flag, so that whoever meets it knows what to change.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["DEFAULTS", "Limits"]

MIB = 1024 * 1024


class Limits(NamedTuple):
    """Sizes in bytes, times in seconds; 0 = without limit where that is said."""

    message_size: int = 128 * MIB
    value_size: int = 96 * MIB
    """Three quarters of a message, so that a value and what surrounds it fit into one."""
    sessions: int = 100_000
    """Live ones. An evicted session costs a few hundred bytes of memory."""
    variables: int = 100_000
    """Live ones in one session: 100 MB of memory, and of a snapshot, if they are large."""
    retention_age: float | None = None
    """How old ended logs and the events of live ones become; 0 = any age. By default ended
    logs are kept for 7 days and live ones are never cut."""
    snapshot_every: int = 10_000
    """Events; as in etcd (``--snapshot-count``, 10,000 since 3.6)."""
    session_ttl: float = 3_600
    """How long a session lives without being used; 0 = for ever."""
    optimization_ttl: float = 300
    """How long an optimizer that does nothing keeps others from writing."""
    watches: int = 10_000
    """Open ones; each takes about 26 kB of memory, of which gRPC takes 22."""
    session_watches: int = 5_000
    connection_watches: int = 5_000
    """Elixir shares one connection, and those it abandons stay open until their deadline."""
    watch_lifetime: float = 3_600
    """How long a watch may be open; 0 = for ever."""
    tool_calls: int = 1_000
    """Calls of tools that run or wait for a thread or a process; each takes a few kilobytes."""
    tool_threads: int = 16
    """Blocking tools that run at a time. More help where they wait for something; where they
    compute they share one interpreter with the bridge itself."""
    tool_processes: int = 2
    """Isolated tools that run at a time; each process takes about 60 MB, and what it imports."""


DEFAULTS = Limits()
