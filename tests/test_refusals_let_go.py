"""A refusal that somebody keeps does not keep what was refused."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from snakepit_bridge.commands import LoadSession, PythonValue, RegisterVariable, SetVariable
from snakepit_bridge.errors import BridgeError, without_frames
from snakepit_bridge.events.memory import MemoryLog
from snakepit_bridge.events.model import Envelope
from tests.direct import Direct, integer


class Request:
    """Something large."""


@pytest.fixture(autouse=True)
def _no_collection() -> Iterator[None]:
    """A full collection would find it in the end; until then it counts."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_errors_let_go_of_the_frames_they_were_raised_in() -> None:
    def refuse(request: Request) -> None:
        try:
            raise KeyError(id(request))
        except KeyError as error:
            raise BridgeError("no") from error

    request = Request()
    there = weakref.ref(request)
    try:
        refuse(request)
    except BridgeError as error:
        kept = error
    del request
    assert there() is not None
    without_frames(kept)
    assert there() is None


@pytest.mark.parametrize("name", ["x", "nobody"])
def test_a_refused_command_is_let_go(name: str) -> None:
    with Direct(MemoryLog()) as direct:
        direct.ask(RegisterVariable(Envelope("s"), "x", "integer", integer(1)))
        request = Request()
        there = weakref.ref(request)
        (refusal,) = direct.ask_all(SetVariable(Envelope("s"), name, PythonValue(request)))
        assert isinstance(refusal, BridgeError)
        del request
        direct.ask(LoadSession(Envelope("s")))  # until then the thread looks at the last batch
        assert there() is None
