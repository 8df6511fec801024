"""Many variables in one session, and many sessions in one bridge."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge.events.model import MAX_TRANSACTION
from tests.bridge_process import BridgeProcess
from tests.hostile import MIB, PATH, memory_of
from tests.test_error_table import message_of
from tests.wire_session import TIMEOUT, Session, packed, plain

MANY = 10_000
OPEN = 500
"""Calls under way at once."""

KIB = 1024


def crowd(bridge: BridgeProcess, method: str, requests: Iterable[Any]) -> list[bytes]:
    """Call a method many times; gives the answers in order."""
    call: Any = bridge.channel.unary_unary(PATH + method)
    waiting: deque[Any] = deque()
    answers = []
    for request in requests:
        if len(waiting) == OPEN:
            answers.append(waiting.popleft().result())
        waiting.append(call.future(request.SerializeToString(), timeout=TIMEOUT))
    answers += [future.result() for future in waiting]
    return answers


def growth(bridge: BridgeProcess, before: int, what: str) -> float:
    """KiB that the process has grown for each of what it holds; written to stdout."""
    now = memory_of(bridge.process.pid).now
    each = max(0, now - before) / KIB / MANY
    sys.stdout.write(f"{MANY} {what}: {now // MIB} MiB resident, {each:.1f} KiB each\n")
    return each


def test_a_session_of_10000_variables_is_read_in_every_way(tmp_path: Path) -> None:
    names = [f"variable {number:05}" for number in range(MANY)]
    with BridgeProcess(tmp_path / "bridge.db") as bridge:
        session = Session(bridge, "crowded")
        session.start()
        before = memory_of(bridge.process.pid).now
        crowd(
            bridge,
            "RegisterVariable",
            (
                message_of(
                    "RegisterVariable",
                    session_id=session.id,
                    name=name,
                    type="integer",
                    initial_value=packed(number),
                )
                for number, name in enumerate(names)
            ),
        )
        expected = dict(zip(names, range(MANY), strict=True))
        assert growth(bridge, before, "variables") < 16

        listed = session.call("ListVariables").variables
        assert values(listed) == expected
        assert values(session.call("ListVariables", pattern="*99").variables) == {
            name: number for name, number in expected.items() if number % 100 == 99
        }

        paged: list[pb.Variable] = []
        token, pages = "", 0
        while pages == 0 or token:
            page = session.call("ListVariables", page_size=1_000, page_token=token)
            paged.extend(page.variables)
            token, pages = page.next_page_token, pages + 1
        assert (paged, pages) == (list(listed), 10)

        assert MAX_TRANSACTION == MANY
        read = session.call("GetVariables", variable_identifiers=names)
        assert values(read.variables.values()) == expected
        assert not read.missing_variables

        written = session.set_many({name: packed(-1) for name in names}, atomic=True)
        assert (written.success, len(written.new_versions)) == (True, MANY)
        assert set(values(session.call("ListVariables").variables).values()) == {-1}
        # What is listed, paged and written in one transaction is copied; none of it stays.
        assert growth(bridge, before, "variables, read and written") < 32
        assert session.call("GetSession").variable_count == MANY
        assert bridge.stop() == 0
    with BridgeProcess(tmp_path / "bridge.db") as bridge:
        again = Session(bridge, session.id)
        assert set(values(again.call("ListVariables").variables).values()) == {-1}
        assert again.head == 1 + 2 * MANY
        assert bridge.stop() == 0


def values(variables: Iterable[pb.Variable]) -> dict[str, int]:
    return {variable.name: plain(variable.value) for variable in variables}


def test_10000_sessions_are_readable_before_and_after_a_restart(tmp_path: Path) -> None:
    log = tmp_path / "bridge.db"
    ids = [f"session {number:05}" for number in range(MANY)]
    reads = [message_of("GetVariable", session_id=id_, variable_identifier="number") for id_ in ids]
    with BridgeProcess(log) as bridge:
        before = memory_of(bridge.process.pid).now
        crowd(
            bridge,
            "RegisterVariable",
            (
                message_of(
                    "RegisterVariable",
                    session_id=id_,
                    name="number",
                    type="integer",
                    initial_value=packed(number),
                )
                for number, id_ in enumerate(ids)
            ),
        )
        assert growth(bridge, before, "sessions") < 32
        first = crowd(bridge, "GetVariable", reads)
        assert [number_in(answer) for answer in first] == list(range(MANY))
        assert bridge.stop() == 0
    with BridgeProcess(log) as bridge:
        before = memory_of(bridge.process.pid).now
        assert crowd(bridge, "GetVariable", reads) == first
        assert growth(bridge, before, "sessions, read from the log") < 32
        assert Session(bridge, ids[-1]).set("number", -1).new_version == 2
        assert bridge.stop() == 0


def number_in(answer: bytes) -> Any:  # noqa: ANN401 - any JSON value
    return plain(pb.GetVariableResponse.FromString(answer).variable.value)
