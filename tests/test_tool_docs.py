"""What the documents on tools say is run: their code, and the README's tour."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from snakepit_bridge import bridge_service_pb2 as pb
from tests.bridge_process import BridgeProcess
from tests.test_readme import blocks, shell

ROOT = Path(__file__).parent.parent
EXAMPLE = (ROOT / "examples" / "my_tools.py").read_text()
TOOLS = (ROOT / "docs" / "tools.md").read_text()
SNAKEPIT = (ROOT / "docs" / "snakepit.md").read_text()
TIMEOUT = 60


def python_blocks(page: str) -> list[str]:
    found: list[str] = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return found


def test_the_page_shows_the_example() -> None:
    shown = [block for block in python_blocks(TOOLS) if "BaseAdapter" not in block]
    assert len(shown) >= 5
    for block in shown:
        assert block in EXAMPLE, block


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BridgeProcess]:
    path = tmp_path_factory.mktemp("tools") / "bridge.db"
    with BridgeProcess(path, "--adapter", "examples.my_tools") as bridge:
        yield bridge
        assert bridge.stop() == 0


def request(tool: str, arguments: dict[str, object]) -> pb.ExecuteToolRequest:
    request = pb.ExecuteToolRequest(session_id="docs", tool_name=tool)
    for name, value in arguments.items():
        request.parameters[name].type_url = "type.googleapis.com/google.protobuf.StringValue"
        request.parameters[name].value = json.dumps(value).encode()
    return request


def run(bridge: BridgeProcess, tool: str, **arguments: object) -> object:
    answer = bridge.stub.ExecuteTool(request(tool, arguments), timeout=TIMEOUT)
    assert answer.success, answer.error_message
    return json.loads(answer.result.value)


def stream(bridge: BridgeProcess, tool: str, **arguments: object) -> list[object]:
    call = bridge.stub.ExecuteStreamingTool(request(tool, arguments), timeout=TIMEOUT)
    *chunks, last = call
    assert (last.is_final, last.data) == (True, b"")
    return [json.loads(chunk.data) for chunk in chunks]


def test_the_example_runs(served: BridgeProcess) -> None:
    assert run(served, "greet", name="Ann") == "Hello Ann."
    assert run(served, "greet", name="Ann", tone="loud") == "HELLO ANN!"
    assert run(served, "normalize", vector=[3, 4]) == {"shape": [2], "data": [0.6, 0.8]}
    assert run(served, "pause", seconds=0) is not None
    assert stream(served, "words", text="to be") == ["to", "be"]
    assert stream(served, "ticks", count=2) == [{"tick": 0}, {"tick": 1}]
    assert run(served, "warm_up", step=0.5) == 0.5
    assert run(served, "warm_up", step=0.25) == 0.75
    assert isinstance(run(served, "crunch", seconds=0.01), int)
    assert run(served, "log_in", user="ann", password="a long password") is True


@pytest.mark.parametrize(
    ("page", "tool", "arguments", "result"),
    [
        (TOOLS, "greet", {"name": "Ann"}, "Hello Ann, this is docs"),
        (SNAKEPIT, "add", {"a": 1, "b": 2}, 3),
    ],
    ids=["tools.md", "snakepit.md"],
)
def test_the_adapters_run(
    tmp_path: Path, page: str, tool: str, arguments: dict[str, object], result: object
) -> None:
    (code,) = (block for block in python_blocks(page) if "BaseAdapter" in block)
    (tmp_path / "my_adapter.py").write_text(code)
    with BridgeProcess(
        tmp_path / "bridge.db",
        "--adapter",
        "my_adapter.MyAdapter",
        environment={"PYTHONPATH": str(tmp_path)},
    ) as bridge:
        assert run(bridge, tool, **arguments) == result
        assert bridge.stop() == 0


def test_the_tour_of_tools_works_as_written(tmp_path: Path) -> None:
    (tour,) = (block for block in blocks("sh") if "ExecuteStreamingTool" in block)
    with BridgeProcess(tmp_path / "b.db", "--adapter", "snakepit_bridge.showcase") as bridge:
        said = shell(tour, bridge.port)
        assert bridge.stop() == 0
    assert '"text_stats"' in said  # available
    assert r"\"words\":6" in said  # run
    assert "tool 'echo' has no parameter 'mesage': did you mean 'message'?" in said  # refused
    assert "as you asked" in said  # raised
    assert said.count("is_final: true") == 1  # streamed
    assert r"\"number\":3" in said
    assert r"\"rounds\"" in said  # isolated
    assert r"\"path\":[0.5,1.0,1.5]" in said  # changed a variable
    assert said.count('changed_by: "tool:tune"') == 4
