"""The showcase, run as the bridge runs it but without one."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from snakepit_bridge.errors import InvalidRequest, InvalidValue
from snakepit_bridge.session_context import SessionContext
from snakepit_bridge.tool_values import decode_argument, encode_result
from snakepit_bridge.tools.adapters import Toolbox, load_toolbox
from snakepit_bridge.tools.chunks import chunk_of
from snakepit_bridge.tools.context import current
from snakepit_bridge.tools.definition import Kind

FORMS = ["snakepit_bridge.showcase", "snakepit_bridge.adapters.showcase.ShowcaseAdapter"]


class Session(SessionContext):
    """Takes reports of progress as that of a call does."""

    def __init__(self) -> None:
        super().__init__("showcase")
        self.reports: list[tuple[float, float, str]] = []

    def report_progress(self, done: float, total: float = 0, message: str = "") -> None:
        self.reports.append((done, total, message))


@pytest.fixture
def session() -> Iterator[Session]:
    with Session() as session:
        token = current.set(lambda: session)
        yield session
        current.reset(token)


@pytest.fixture(params=FORMS)
def toolbox(request: pytest.FixtureRequest) -> Toolbox:
    return load_toolbox([request.param], entry_points=False)


def run(toolbox: Toolbox, name: str, session: object = None, **arguments: object) -> Any:  # noqa: ANN401
    """Call a tool; its result as a client reads it."""
    definition = toolbox.find(name)
    converted = definition.convert(arguments)
    if definition.context_parameter:
        converted[definition.context_parameter] = session
    instance = () if definition.adapter is None else (definition.adapter.instance(),)
    result = definition.function(*instance, **converted)
    if inspect.iscoroutine(result):
        result = asyncio.run(result)
    if inspect.isgenerator(result):
        return [chunk_of(item) for item in result]
    value = encode_result(result)
    return decode_argument(value.any, value.binary)


def test_each_tool_describes_itself(toolbox: Toolbox) -> None:
    assert len(toolbox.definitions) == 10
    for definition in toolbox.definitions.values():
        assert definition.description
        spec = definition.spec()
        assert all(parameter.type != "any" for parameter in spec.parameters)
    assert toolbox.find("burn").isolation == "process"
    assert toolbox.find("wait").kind is Kind.ASYNC
    assert toolbox.find("count").kind is Kind.GENERATOR
    assert toolbox.find("secret_length").sensitive == {"secret"}


def test_texts(toolbox: Toolbox) -> None:
    assert run(toolbox, "echo", message="hé") == "hé"
    assert run(toolbox, "text_stats", text="one two\nTwo") == {
        "characters": 11,
        "words": 3,
        "distinct_words": 2,
        "lines": 2,
        "longest_word": "one",
    }
    assert run(toolbox, "text_stats", text="")["longest_word"] == ""
    assert run(toolbox, "secret_length", secret="hunter2") == 7


def test_arrays(toolbox: Toolbox) -> None:
    assert run(toolbox, "statistics", values=[[1, 2], [3, 4]]) == {
        "mean": 2.5,
        "std": pytest.approx(1.118, abs=1e-3),
        "min": 1,
        "max": 4,
        "shape": [2, 2],
    }
    with pytest.raises(ValueError, match="empty"):
        run(toolbox, "statistics", values=[])
    product = run(toolbox, "matmul", a=np.eye(2), b=[[1, 2], [3, 4]])
    assert product.tolist() == [[1, 2], [3, 4]]
    with pytest.raises(ValueError, match="do not fit"):
        run(toolbox, "matmul", a=[1, 2], b=[[1]])
    with pytest.raises(ValueError, match="smaller matrices"):
        run(toolbox, "matmul", a=np.ones((2000, 2000)), b=np.ones((2000, 2000)))


def test_counting(toolbox: Toolbox, session: Session) -> None:
    chunks = run(toolbox, "count", to=3, delay=0)
    assert [chunk.data for chunk in chunks] == [b'{"number":1}', b'{"number":2}', b'{"number":3}']
    assert session.reports == [(1, 3, "1 of 3"), (2, 3, "2 of 3"), (3, 3, "3 of 3")]


def test_tuning(toolbox: Toolbox, session: Session) -> None:
    given = run(toolbox, "tune", session, target=1, steps=4)
    assert given["path"] == [0.25, 0.5, 0.75, 1.0]
    assert given["version"] == 5
    variable = session.get_variable("temperature")
    assert variable is not None
    assert variable.value == 1.0
    given = run(toolbox, "tune", session, target=0.5, steps=1)
    assert given["start"] == 1.0
    with pytest.raises(InvalidValue, match="above maximum"):
        run(toolbox, "tune", session, target=99)
    session.register_variable("name", "string", "x")
    with pytest.raises(ValueError, match="of type string"):
        run(toolbox, "tune", session, target=1, variable="name")
    assert run(toolbox, "tune", session, target=-7, variable="other")["path"][-1] == -7


def test_others(toolbox: Toolbox) -> None:
    assert run(toolbox, "wait", seconds=0)["waited"] >= 0
    with pytest.raises(ValueError, match="oh no"):
        run(toolbox, "fail", message="oh no")
    assert run(toolbox, "burn", seconds=0.01)["rounds"] > 0


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("echo", {"message": "x" * 1_000_001}),
        ("count", {"to": 0}),
        ("count", {"to": 10_001}),
        ("count", {"delay": -1}),
        ("count", {"delay": 61}),
        ("count", {"delay": float("nan")}),
        ("wait", {"seconds": 3600}),
        ("burn", {"seconds": 3600}),
        ("tune", {"target": float("nan")}),
        ("tune", {"target": 1, "steps": 1_001}),
        ("tune", {"target": 1, "session": "mine"}),
    ],
)
def test_inputs_are_bounded(toolbox: Toolbox, name: str, arguments: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest):
        toolbox.find(name).convert(arguments)
