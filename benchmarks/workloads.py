"""What the calls say, and how one sees from the replies that the server did its work.

A workload makes the request messages of the calls ``first``, ``first + 1``, ... and reads
their replies. No two calls of a row carry the same value: a call's number is in it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from benchmarks.errors import BenchmarkError
from benchmarks.etcd_api import Put
from benchmarks.execute import SERVICE, Execute
from snakepit_bridge import bridge_service_pb2 as pb

__all__ = [
    "INITIAL",
    "TYPE_URL",
    "BatchSet",
    "Get",
    "Set",
    "Workload",
    "number_as_json",
    "workload",
]

# The value that every variable is registered with.
INITIAL = 0.5
TYPE_URL = "dspex.variables/float"


class Workload(Protocol):
    """One kind of call. Variables are named "session/name" here, and logs by their session."""

    method: str

    def messages(self, first: int, count: int) -> list[bytes]:
        """Return the request messages of ``count`` calls."""

    def check(
        self, first: int, replies: Sequence[bytes], versions: Mapping[str, int]
    ) -> tuple[dict[str, int], dict[str, float]]:
        """Check the replies to ``messages(first, len(replies))``, in that order.

        ``versions`` are those of before the run. Return the versions and the values that
        the server must hold now, as far as this run changed them.

        :raises BenchmarkError: a reply is not what it must be.
        """


class _Variables:
    """The variables of a workload: ``variables`` in each of ``sessions``.

    ``first_session`` numbers the first session. ``ids`` says whether requests carry ids.
    """

    def __init__(
        self, *, sessions: int, variables: int, first_session: int = 0, ids: int = 0
    ) -> None:
        self.sessions = [f"bench-{first_session + number}" for number in range(sessions)]
        self.ids = bool(ids)
        self.names = [f"learning_rate_{number:03}" for number in range(variables)]
        self._pairs = [(session, name) for name in self.names for session in self.sessions]

    def pair(self, call: int) -> tuple[str, str]:
        """Return the session and the name that a call is about."""
        return self._pairs[call % len(self._pairs)]


class Set(_Variables):
    """SetVariable, round robin over all variables of all sessions."""

    method = SERVICE + "SetVariable"

    def messages(self, first: int, count: int) -> list[bytes]:
        """Return SetVariableRequests with a session, a name and a value."""
        made = []
        for call in range(first, first + count):
            session, name = self.pair(call)
            request = pb.SetVariableRequest(session_id=session, variable_identifier=name)
            request.value.type_url = TYPE_URL
            request.value.value = number_as_json(call)
            if self.ids:
                request.request_id = f"{session}-set-{call}"
            made.append(request.SerializeToString())
        return made

    def check(
        self, first: int, replies: Sequence[bytes], versions: Mapping[str, int]
    ) -> tuple[dict[str, int], dict[str, float]]:
        """Each reply is a success; a variable's new versions are the next ones, each once."""
        made: list[tuple[str, int, float]] = []
        offsets: set[tuple[str, int]] = set()  # each session has a log of its own
        for call, reply in enumerate(replies, first):
            response = pb.SetVariableResponse.FromString(reply)
            if not response.success:
                raise BenchmarkError(f"a set was refused: {response.error_message}")
            session, name = self.pair(call)
            made.append((f"{session}/{name}", response.new_version, _value(call)))
            offsets.add((session, response.offset))
        if len(offsets) != len(replies):
            raise BenchmarkError("two sets of one session were answered with the same offset")
        return _risen(made, versions)


class Get(_Variables):
    """GetVariable, round robin over all variables of all sessions, which never change."""

    method = SERVICE + "GetVariable"

    def messages(self, first: int, count: int) -> list[bytes]:
        """Return GetVariableRequests with a session and a name."""
        made = []
        for call in range(first, first + count):
            session, name = self.pair(call)
            request = pb.GetVariableRequest(session_id=session, variable_identifier=name)
            made.append(request.SerializeToString())
        return made

    def check(
        self, first: int, replies: Sequence[bytes], versions: Mapping[str, int]
    ) -> tuple[dict[str, int], dict[str, float]]:
        """Each reply is the variable that was asked for, with its value and version."""
        for call, reply in enumerate(replies, first):
            session, name = self.pair(call)
            got = pb.GetVariableResponse.FromString(reply).variable
            wanted = (name, versions[f"{session}/{name}"], INITIAL)
            if (got.name, got.version, json.loads(got.value.value or b"null")) != wanted:
                raise BenchmarkError(f"a get of {name} was answered with something else")
        return {}, {}


class BatchSet(_Variables):
    """SetVariables, atomic, of all variables of one session; round robin over sessions."""

    method = SERVICE + "SetVariables"

    def messages(self, first: int, count: int) -> list[bytes]:
        """Return BatchSetVariablesRequests with a value for each name."""
        made = []
        for call in range(first, first + count):
            session = self.sessions[call % len(self.sessions)]
            request = pb.BatchSetVariablesRequest(session_id=session, atomic=True)
            for number, name in enumerate(self.names, call * len(self.names)):
                update = request.updates[name]
                update.type_url = TYPE_URL
                update.value = number_as_json(number)
            made.append(request.SerializeToString())
        return made

    def check(
        self, first: int, replies: Sequence[bytes], versions: Mapping[str, int]
    ) -> tuple[dict[str, int], dict[str, float]]:
        """Each reply is a success without errors and names a new version for each name."""
        made: list[tuple[str, int, float]] = []
        for call, reply in enumerate(replies, first):
            session = self.sessions[call % len(self.sessions)]
            response = pb.BatchSetVariablesResponse.FromString(reply)
            if not response.success or response.errors:
                faults = next(iter(response.errors.values()), "no reason given")
                raise BenchmarkError(f"a batch was refused: {faults}")
            new = dict(response.new_versions)
            if new.keys() != set(self.names):
                raise BenchmarkError("a batch's reply does not name every variable")
            made += [
                (f"{session}/{name}", new[name], _value(number))
                for number, name in enumerate(self.names, call * len(self.names))
            ]
        return _risen(made, versions)


def number_as_json(number: int) -> bytes:
    """Return a JSON number in [0, 1) that is different for each ``number``, in 11 bytes."""
    return b"0.%09d" % number


def _value(number: int) -> float:
    return float(number_as_json(number))


def _risen(
    made: Iterable[tuple[str, int, float]], versions: Mapping[str, int]
) -> tuple[dict[str, int], dict[str, float]]:
    """Return each variable's last version and the value it was made with.

    :raises BenchmarkError: a variable's new versions are not exactly the following ones.
    """
    values: defaultdict[str, dict[int, float]] = defaultdict(dict)
    count: defaultdict[str, int] = defaultdict(int)
    for variable, version, value in made:
        values[variable][version] = value
        count[variable] += 1
    last = {}
    for variable, by_version in values.items():
        before = versions[variable]
        last[variable] = before + count[variable]
        if by_version.keys() != set(range(before + 1, last[variable] + 1)):
            raise BenchmarkError(
                f"{variable} was set {count[variable]} times from version {before}, but its "
                f"new versions are {len(by_version)} from {min(by_version)} to {max(by_version)}"
            )
    return last, {variable: values[variable][version] for variable, version in last.items()}


_KINDS: dict[str, Callable[..., Workload]] = {
    "set": Set,
    "get": Get,
    "batch": BatchSet,
    "put": Put,
    "tool": Execute,
}


def workload(name: str, options: Mapping[str, int]) -> Workload:
    """Return the workload "set", "get", "batch", "put" or "tool", made with its options."""
    return _KINDS[name](**options)
