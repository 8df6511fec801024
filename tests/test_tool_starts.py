"""Starts that are refused, and request ids that the log has forgotten while their call runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from snakepit_bridge.commands import FinishTool, InitializeSession, StartTool, ToolArgument, ToolRun
from snakepit_bridge.errors import RequestIdReused
from snakepit_bridge.events import requests
from snakepit_bridge.events.memory import MemoryLog
from snakepit_bridge.events.model import Envelope, make_value
from tests.direct import Direct
from tests.test_tools_hostile import Bench
from tests.tool_client import entries_now, runs_in
from tests.wire_session import refused

TOOLS = ("--adapter", "tests.hosted_tools")

WAYS = ("tells", "tells_async", "tells_isolated", "tells_stream", "tells_stream_async")

REFUSED = {
    "70 KB": ({"key": "v" * 70_000}, "RESOURCE_EXHAUSTED", "metadata of the request"),
    "a long key": ({"k" * 300: "v"}, "INVALID_ARGUMENT", "in metadata"),
    "a control character": ({"correlation_id": "a\x01"}, "INVALID_ARGUMENT", "control characters"),
    "a long source": ({"source": "s" * 600}, "INVALID_ARGUMENT", "source"),
}
"""Metadata that no log takes, and what is said of them."""

FEW = 8
"""As many requests are remembered here."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("starts"), tools=TOOLS)
    yield bench
    bench.close()


@pytest.mark.parametrize("id_", ["", "id"], ids=["without an id", "with an id"])
@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("tool", WAYS)
def test_a_tool_whose_metadata_are_refused_does_not_run(
    shared: Bench, tmp_path: Path, tool: str, what: str, id_: str
) -> None:
    metadata, code, words = REFUSED[what]
    runs = tmp_path / "runs"
    run = shared.session.stream if "stream" in tool else shared.session.begin
    with refused(code, words):
        call = run(tool, {"runs": str(runs)}, metadata=metadata, request_id=id_)
        list(call) if "stream" in tool else call.result()
    # What was begun all the same would have come before this, on each way to run.
    for way in WAYS[:3]:
        assert shared.session.value(way, {"runs": str(tmp_path / "others")}) == 1
    assert not runs.exists()


def test_of_a_refused_start_nothing_is_recorded(shared: Bench, tmp_path: Path) -> None:
    runs = str(tmp_path / "runs")
    session = shared.session
    before = len(entries_now(shared.path, session.id))
    for metadata, code, words in REFUSED.values():
        with refused(code, words):
            session.run("tells", {"runs": runs}, metadata=metadata)
    assert session.value("tells", {"runs": runs}) == 1
    log = entries_now(shared.path, session.id)
    assert [entry.kind for entry in log[before:]] == ["tool_started", "tool_finished"]
    assert {run.outcome for run in runs_in(log).values()} == {"ok"}


# Ids that were forgotten.


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "REMEMBERED_REQUESTS", FEW)


def start(request_id: str, call_id: str, *arguments: ToolArgument, tool: str = "t") -> StartTool:
    return StartTool(Envelope("s", request_id), tool, arguments, False, ToolRun(call_id, 0))


def forget(direct: Direct, request_id: str) -> None:
    """Ask for so much else that an id is remembered no longer."""
    for number in range(2 * FEW):
        direct.ask(start(f"other {number}", f"k{number}"))
        direct.ask(FinishTool(Envelope("s"), f"k{number}", "ok", 1))
    state = direct.loaded("s").committed
    assert state.requests.find(request_id) is None
    assert len(state.requests) <= FEW


def test_a_forgotten_id_whose_call_is_open_starts_no_second_one(few: None) -> None:
    with Direct(MemoryLog()) as direct:
        first = direct.ask(start("long", "c1"))
        forget(direct, "long")
        head = direct.loaded("s").committed.head
        for call_id in ("c2", "c3"):
            again = direct.ask(start("long", call_id))
            assert again.answer.duplicate
            assert (again.answer.offset, again.answer.finished) == (first.answer.offset, None)
        state = direct.loaded("s").committed
        assert list(state.calls) == ["c1"]
        assert state.head == head


def test_a_forgotten_id_of_an_open_call_is_for_its_own_request_only(few: None) -> None:
    with Direct(MemoryLog()) as direct:
        direct.ask(start("long", "c1"))
        forget(direct, "long")
        value = make_value(b"\n\x17dspex.variables/integer\x12\x017")
        others = (
            start("long", "c2", tool="another"),
            start("long", "c2", ToolArgument("x", value.digest, value)),
        )
        for other in others:
            with pytest.raises(RequestIdReused, match="'long' was used before for another"):
                direct.ask(other)
        assert list(direct.loaded("s").committed.calls) == ["c1"]


def test_a_forgotten_id_is_free_once_its_call_has_ended(few: None) -> None:
    with Direct(MemoryLog()) as direct:
        direct.ask(start("long", "c1"))
        forget(direct, "long")
        direct.ask(FinishTool(Envelope("s"), "c1", "ok", 1))
        forget(direct, "long")
        assert not direct.ask(start("long", "c2")).answer.duplicate
        assert list(direct.loaded("s").committed.calls) == ["c2"]


def test_an_open_call_without_an_id_is_nobodys(few: None) -> None:
    with Direct(MemoryLog()) as direct:
        direct.ask(InitializeSession(Envelope("s")))
        for call_id in ("c1", "c2"):
            assert not direct.ask(start("", call_id)).answer.duplicate
        forget(direct, "long")
        assert list(direct.loaded("s").committed.calls) == ["c1", "c2"]
