"""``snakepit-bridge tools`` and ``call``, with the tools of the showcase and some of its own."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.bridge_process import BridgeProcess
from tests.cli_process import COMMAND, PATIENCE, Shell

TOOLS = '''
from typing import Any, Iterator, Literal

import numpy as np

from snakepit_bridge.tools.context import current_session
from snakepit_bridge.tools.decorator import tool


@tool
def kinds(
    text: str = "", number: float = 0, flag: bool = False, level: Literal[1, 2] = 1,
    mode: Literal["fast", "slow"] = "fast", some: list[int] = [], things: dict[str, Any] = {},
    anything: Any = None, array: np.ndarray | None = None,
) -> dict[str, Any]:
    """Give back what came."""
    shape = None if array is None else list(array.shape)
    return {"text": text, "number": number, "flag": flag, "level": level, "mode": mode,
            "some": some, "things": things, "anything": anything,
            "shape": shape}


@tool
def steer() -> str:
    """Try to \\x1b[2J clear the screen."""
    return "a\\x1b[2Jb"


@tool
def odd_progress() -> Iterator[Any]:
    """Items of all kinds."""
    session = current_session()
    session.report_progress(1, 0, "no \\x1b[2J total")
    yield b"\\x00\\xff"
    yield "text"
    yield [1, None]
    raise RuntimeError("in the middle")
'''


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BridgeProcess]:
    directory = tmp_path_factory.mktemp("tools")
    (directory / "cli_tools.py").write_text(TOOLS)
    adapters = ("--adapter", "snakepit_bridge.showcase", "--adapter", "cli_tools")
    with BridgeProcess("memory:", *adapters, environment={"PYTHONPATH": str(directory)}) as process:
        yield process
        assert process.stop() == 0


@pytest.fixture
def shell(bridge: BridgeProcess, request: pytest.FixtureRequest, tmp_path: Path) -> Shell:
    return Shell(bridge.port, request.node.name, tmp_path)


def test_the_tools_are_listed_with_their_arguments(shell: Shell) -> None:
    lines = shell.says("tools").splitlines()
    assert lines[0].split(maxsplit=2)[:2] == ["tool", "arguments"]
    (count,) = (line for line in lines if line.startswith("count "))
    assert "[to=5] [delay=0.2]" in count
    assert "(stream)" in count
    document = shell.json("tools")
    assert {"count", "echo", "kinds"} <= {each["name"] for each in document["tools"]}
    one = shell.json("tools", "count")
    keys = ["name", "description", "parameters", "supports_streaming", "metadata"]
    assert list(one) == keys
    assert one["parameters"][0]["default"] == 5
    detail = shell.says("tools", "count")
    assert "the last number. (≥ 1, ≤ 10000)" in detail
    assert detail.endswith("snakepit-bridge call count [to=5] [delay=0.2]")
    assert "did you mean 'count'" in shell.refused("tools", "coun")


def test_a_bridge_without_tools_says_so(tmp_path: Path) -> None:
    with BridgeProcess("memory:") as bridge:
        done = Shell(bridge.port, "s", tmp_path).run("tools")
    assert (done.returncode, done.stdout) == (0, "")
    assert "has no tools" in done.stderr


def test_arguments_are_read_by_what_the_tool_wants(shell: Shell, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 3)))
    (tmp_path / "things.json").write_text('{"a": [1]}')
    given = [
        "text=12 = x",
        "number=-1",
        "flag=true",
        "level=2",
        "mode=slow",
        "some=[1, 2]",
        "things=@things.json",
        "anything=words",
        "array=@a.npy",
    ]
    assert json.loads(shell.says("call", "kinds", *given)) == {
        "text": "12 = x",
        "number": -1,
        "flag": True,
        "level": 2,
        "mode": "slow",
        "some": [1, 2],
        "things": {"a": [1]},
        "anything": "words",
        "shape": [2, 3],
    }
    both = shell.json("call", "kinds", "text=a", "--arguments", '{"anything": null, "number": 2}')
    assert both["tool"] == "kinds"
    assert (both["result"]["text"], both["result"]["number"]) == ("a", 2)
    piped = shell.run("call", "kinds", "text=-", stdin=b"from a pipe\n")
    assert json.loads(piped.stdout)["text"] == "from a pipe"


def test_results_are_printed_as_their_kind_wants(shell: Shell) -> None:
    assert shell.says("call", "echo", "message=plain") == "plain"
    product = ["call", "matmul", "a=[[1, 2]]", "b=[[3], [4.25]]"]
    assert shell.says(*product) == "[[11.5]]"
    assert shell.json(*product)["result"] == {"shape": [1, 1], "data": [[11.5]]}
    assert "\x1b[2J" not in shell.in_terminal("call", "steer", NO_COLOR="1")
    assert "\x1b[2J" not in shell.in_terminal("tools", NO_COLOR="1")


def test_a_tool_that_raises_is_told_with_its_traceback_where_it_is_wanted(shell: Shell) -> None:
    said = shell.refused("call", "fail", "message=on purpose")
    assert said == "snakepit-bridge: tool 'fail' raised ValueError: on purpose"
    done = subprocess.run(
        [COMMAND, "call", "fail", "-v"],
        env=shell.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback (most recent call last):" in done.stderr
    assert "showcase.py" in done.stderr
    assert "cli/" not in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (["ech", "message=a"], 1, "tool 'ech' not found: did you mean 'echo'"),
        (["echo", "mesage=a"], 1, "did you mean 'message'"),
        (["echo"], 1, "message"),
        (["count", "to=0"], 1, "to"),
        (["count", "to=many"], 1, "to"),
        (["count", "to"], 2, "'to' is no argument"),
        (["count", "to=1", "to=2"], 2, "argument 'to' is given twice"),
        (["count", "to=1", "--arguments", '{"to": 2}'], 2, "'to' is given twice"),
        (["count", "--arguments", "[1]"], 2, "must be a JSON object"),
        (["kinds", "some=[1"], 2, "not valid JSON"),
        (["kinds", "text=-", "mode=-"], 2, "write - once"),
        (["kinds", "array=@nowhere.npy"], 2, "No such file"),
    ],
)
def test_a_wrong_call_is_refused(shell: Shell, words: list[str], code: int, why: str) -> None:
    assert why in shell.refused("call", *words, code=code)


def test_a_stream_is_printed_as_it_comes(shell: Shell) -> None:
    assert (
        shell.says("call", "count", "to=3", "delay=0") == '{"number":1}\n{"number":2}\n{"number":3}'
    )
    lines = [
        json.loads(line) for line in shell.says("call", "count", "to=1", "--json").splitlines()
    ]
    assert [list(line) for line in lines] == [["data", "metadata", "is_progress"]] * len(lines)
    assert [line["data"] for line in lines if not line["is_progress"]] == [{"number": 1}]
    with subprocess.Popen(
        [COMMAND, "call", "count", "to=10000", "delay=0.05"],
        env=shell.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == '{"number":1}\n'
        process.send_signal(signal.SIGINT)
        try:
            _, err = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "Traceback" not in err


def test_a_stream_that_breaks_is_told_after_what_came(shell: Shell) -> None:
    done = subprocess.run(
        [COMMAND, "call", "odd_progress"],
        env=shell.environment,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == b"\x00\xfftext\n[1,null]\n"
    assert b"RuntimeError: in the middle" in done.stderr


def test_progress_is_a_bar_in_a_terminal(shell: Shell) -> None:
    shown = shell.in_terminal("call", "count", "to=3", "delay=0.2")
    assert "1 of 3" in shown
    assert "━" in shown
    assert shown.count('"number"') == 3
    assert "\x1b[2J" not in shell.in_terminal("call", "odd_progress")


def test_a_bridge_that_dies_under_a_call_is_told(tmp_path: Path) -> None:
    with BridgeProcess("memory:", "--adapter", "snakepit_bridge.showcase") as bridge:
        shell = Shell(bridge.port, "s", tmp_path)
        process = subprocess.Popen(
            [COMMAND, "call", "count", "to=10000", "delay=0.05"],
            env=shell.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        process.stdout.readline()
        bridge.kill()
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "no bridge answers at" in err
    assert "Traceback" not in err


def test_a_call_is_made_once(shell: Shell) -> None:
    tune = ("tune", "target=-1.5", "steps=3", "--request-id", "once")
    assert shell.json("call", *tune) == shell.json("call", *tune)
    assert shell.says("get", "temperature") == "-1.5"


def test_a_call_takes_no_longer_than_it_may(shell: Shell) -> None:
    said = shell.refused("call", "wait", "seconds=60", "--timeout", "500ms")
    assert said.startswith("snakepit-bridge: ")
