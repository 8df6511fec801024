"""Calls of tools: their requests, and how one sees from the replies that the log has them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from benchmarks.errors import BenchmarkError
from snakepit_bridge import bridge_service_pb2 as pb

__all__ = ["SERVICE", "Execute", "tool_session"]

SERVICE = "/snakepit.bridge.BridgeService/"
_NOTHING = b"null"


def tool_session(number: int) -> str:
    """Return the name of a session that tools are called in, and nothing else is done in."""
    return f"bench-tools-{number}"


class Execute:
    """ExecuteTool of a tool without parameters that returns None, round robin over sessions.

    ``blocking`` says whether it is the one that runs in a thread, ``ids`` whether requests
    carry ids. A session's "version" is the offset at which its log ends: each call adds two
    events.
    """

    method = SERVICE + "ExecuteTool"

    def __init__(self, *, sessions: int, blocking: int = 0, ids: int = 0) -> None:
        self.sessions = [tool_session(number) for number in range(sessions)]
        self._tool = "empty_blocking" if blocking else "empty_async"
        self._ids = bool(ids)

    def messages(self, first: int, count: int) -> list[bytes]:
        """Return ExecuteToolRequests with a session and a tool."""
        made = []
        for call in range(first, first + count):
            request = pb.ExecuteToolRequest(session_id=self._session(call), tool_name=self._tool)
            if self._ids:
                request.request_id = f"call-{call}"
            made.append(request.SerializeToString())
        return made

    def check(
        self, first: int, replies: Sequence[bytes], versions: Mapping[str, int]
    ) -> tuple[dict[str, int], dict[str, float]]:
        """Each reply is the result of a run of its own, whose start and end are in the log."""
        ends: defaultdict[str, list[int]] = defaultdict(list)
        runs = set()
        for call, reply in enumerate(replies, first):
            response = pb.ExecuteToolResponse.FromString(reply)
            if not response.success:
                raise BenchmarkError(f"a tool failed: {response.error_message}")
            if response.duplicate:
                raise BenchmarkError("a call was answered with the result of an earlier one")
            if response.result.value != _NOTHING:
                raise BenchmarkError(f"a tool gave {response.result.value!r} instead of nothing")
            runs.add(response.tool_call_id)
            ends[self._session(call)].append(response.offset)
        if len(runs) != len(replies):
            raise BenchmarkError("two replies name the same run of a tool")
        return {session: _end(ends[session], versions[session]) for session in ends}, {}

    def _session(self, call: int) -> str:
        return self.sessions[call % len(self.sessions)]


def _end(ends: Sequence[int], before: int) -> int:
    """Return where a log ends that ended at ``before``, by the offsets at which calls ended.

    :raises BenchmarkError: it cannot hold a start before each end, and nothing else.
    """
    ordered = sorted(ends)
    last = before + 2 * len(ends)
    if len(set(ordered)) != len(ordered):
        raise BenchmarkError("two calls of one session were answered with the same offset")
    # The n-th end has n starts and n - 1 ends before it.
    early = any(end < before + 2 * number for number, end in enumerate(ordered, 1))
    if early or ordered[-1] != last:
        raise BenchmarkError(
            f"{len(ends)} calls after offset {before} have their ends at {ordered[0]} to "
            f"{ordered[-1]}, but with a start for each they go to {last}"
        )
    return last
