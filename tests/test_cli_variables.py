"""Variables from a terminal: register, get, set, list, delete, with a real bridge."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.bridge_process import BridgeProcess
from tests.cli_process import COMMAND, PATIENCE, Shell
from tests.wire_session import Session


@pytest.fixture
def shell(bridge: BridgeProcess, request: pytest.FixtureRequest, tmp_path: Path) -> Shell:
    return Shell(bridge.port, request.node.name, tmp_path)


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port


def save(path: Path, array: object) -> Path:
    np.save(path, np.asarray(array), allow_pickle=True)
    return path


# Each type, in and out.


@pytest.mark.parametrize(
    ("type_", "given", "printed"),
    [
        ("float", "0.7", "0.7"),
        ("float", "-0.5", "-0.5"),
        ("float", "NaN", "NaN"),
        ("float", "-Infinity", "-Infinity"),
        ("float", "1e3", "1000.0"),
        ("integer", "-7", "-7"),
        ("integer", "9" * 4_300, "9" * 4_300),
        ("string", "plain words", "plain words"),
        ("string", '"in quotes"', "in quotes"),
        ("string", '"half', '"half'),
        ("string", "12", "12"),
        ("string", '"@home"', "@home"),
        ("string", "", ""),
        ("string", "[dim]no markup[/dim] \N{SNAKE}", "[dim]no markup[/dim] \N{SNAKE}"),
        ("boolean", "true", "true"),
        ("module", "dspy.Predict", "dspy.Predict"),
        ("embedding", "[1, 2.5]", "[1.0, 2.5]"),
        ("tensor", "[[1, 2], [3, 4]]", "[[1, 2], [3, 4]]"),
    ],
)
def test_a_value_is_printed_as_it_was_given(
    bridge: BridgeProcess, tmp_path: Path, type_: str, given: str, printed: str
) -> None:
    name = f"{type_} {given}"[:80].replace("?", "").replace("*", "")
    shell = Shell(bridge.port, "values", tmp_path)
    shell.says("register", name, type_, given)
    assert shell.says("get", name) == printed


def test_what_is_set_is_read_by_the_type_of_its_variable(shell: Shell) -> None:
    given = {"f": ("float", "NaN"), "s": ("string", "12"), "i": ("integer", "-12")}
    for name, (type_, _) in given.items():
        shell.says("register", name, type_, "0")
    shell.says("set", *(word for name, (_, text) in given.items() for word in (name, text)))
    variables = shell.json("list")["variables"]
    assert [each["value"] for each in variables] == ["NaN", "12", -12]


def test_a_tour(shell: Shell) -> None:
    said = shell.says("register", "temperature", "float", "0.7", "--min", "-1", "--max", "2")
    assert said == "temperature = 0.7  float, version 1"
    shell.says("register", "mode", "choice", "fast", "--choices", "fast, careful")
    assert shell.says("set", "temperature", "0.9", "--meta", "reason=by = hand") == (
        "temperature = 0.9  version 2"
    )
    many = shell.says("set", "temperature", "-0.5", "mode", "careful")
    assert sorted(many.splitlines()) == [
        "mode = careful  version 2",
        "temperature = -0.5  version 3",
    ]
    table = [line.split()[:4] for line in shell.says("get", "mode", "temperature").splitlines()]
    assert table == [
        ["name", "type", "value", "version"],
        ["mode", "choice", "careful", "2"],
        ["temperature", "float", "-0.5", "3"],
    ]
    assert [line.split()[0] for line in shell.says("list").splitlines()] == [
        "name",
        "temperature",
        "mode",
    ]
    assert len(shell.says("list", "mo*").splitlines()) == 2
    all_of_it = shell.says("get", "-v", "temperature")
    assert "constraints  min -1, max 2" in all_of_it
    assert "reason by = hand" in all_of_it
    assert "source       terminal" in all_of_it
    assert shell.says("delete", "temperature") == "deleted temperature"
    assert "not found" in shell.refused("get", "temperature")


def test_json_has_stable_keys(shell: Shell, bridge: BridgeProcess) -> None:
    made = shell.json("register", "x", "float", "0.5", "--constraints", '{"min": 0}')
    keys = ["id", "name", "type", "value", "version", "offset", "constraints", "metadata"]
    assert list(made) == [*keys, "source", "updated_at"]
    assert made == shell.json("get", "x")
    assert (made["name"], made["value"], made["constraints"]) == ("x", 0.5, {"min": 0})
    shell.json("register", "t", "tensor", "[[1, 2]]")
    assert shell.json("get", "t")["value"] == {"shape": [1, 2], "data": [[1, 2]]}
    session = shell.environment["SNAKEPIT_BRIDGE_SESSION"]
    assert shell.json("set", "x", "1") == {"session": session, "versions": {"x": 2}}
    assert shell.json("set", "x", "2", "t", "[3]")["versions"] == {
        "t": 2,
        "x": 3,
    }
    listed = shell.json("list")
    assert [each["name"] for each in listed["variables"]] == ["x", "t"]
    done = shell.run("get", "x", "t", "nope", "--json")
    assert done.returncode == 1
    assert "variable 'nope' not found" in done.stderr
    several = json.loads(done.stdout)
    assert list(several) == ["session", "log_epoch", "offset", "variables", "missing"]
    assert (several["variables"]["t"]["value"]["data"], several["missing"]) == ([3], ["nope"])
    done = shell.run("delete", "x", "nope", "--json")
    assert done.returncode == 1
    gone = json.loads(done.stdout)
    assert gone["deleted"].keys() == {"x"}
    assert gone["errors"] == {"nope": "variable 'nope' not found"}
    assert Session(bridge, session).get("t").version == 2


def test_special_floats_are_strict_json(shell: Shell) -> None:
    assert shell.json("register", "x", "float", "NaN")["value"] == "NaN"
    assert shell.json("register", "e", "embedding", '["Infinity", 1]')["value"] == ["Infinity", 1]


# Files and standard input.


def test_arrays_come_from_files_and_go_into_files(shell: Shell, tmp_path: Path) -> None:
    query = np.linspace(-1, 1, 384)
    save(tmp_path / "query.npy", query)
    said = shell.says("register", "query", "embedding", "@query.npy")
    assert said.startswith("query = float64 384 [-1, -0.9948, -0.9896, …], norm ")
    assert shell.says("get", "query").startswith("float64 384 [-1, ")
    assert shell.json("get", "query")["value"] == query.tolist()
    shell.says("get", "query", "--out", "out.npy")
    assert np.array_equal(np.load(tmp_path / "out.npy"), query)
    shell.says("get", "query", "--out", "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == query.tolist()
    shell.says("set", "query", "@out.json")
    large = np.arange(90_000, dtype=np.float32).reshape(300, 300)
    content = save(tmp_path / "large.npy", large).read_bytes()
    shell.says("register", "large", "tensor", "-", stdin=content)
    assert "float32 300×300 [0, 1, 2, …]" in shell.says("list", "large")
    shell.says("get", "large", "--out", "large-again.npy")
    assert (tmp_path / "large-again.npy").read_bytes() == content
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"query.npy", "out.npy", "out.json", "large.npy", "large-again.npy"}


def test_standard_input_is_a_value(shell: Shell) -> None:
    shell.says("register", "prompt", "string", "-", stdin="Think.\nThen \N{SNAKE}.\n".encode())
    assert shell.says("get", "prompt") == "Think.\nThen \N{SNAKE}."
    shell.says("register", "x", "float", "-", stdin=b"0.25\n")
    assert shell.says("get", "x") == "0.25"
    assert "write - once" in shell.refused("set", "x", "-", "prompt", "-", code=2)
    assert "neither UTF-8 nor an .npy file" in shell.refused("set", "x", "-", code=2, stdin=b"\xff")


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("pickled.npy", None, "Object arrays cannot be loaded when allow_pickle=False"),
        ("cut.npy", b"\x93NUMPY\x01\x00", "is no array that numpy.save wrote"),
        ("text.npy", b"hello", "is no array that numpy.save wrote"),
        ("empty.npy", b"", "is no array that numpy.save wrote"),
        ("bad.json", b"[1, 2", "not valid JSON"),
        ("huge.json", b"[1e400]", "not valid JSON"),
        ("deep.json", b"[" * 5_000, "not valid JSON"),
        ("absent.npy", None, "No such file or directory"),
        ("folder.json", None, "Is a directory"),
        ("values.csv", b"1,2", "is neither .npy nor .json"),
        ("archive.npz", b"", "is neither .npy nor .json"),
    ],
)
def test_a_bad_file_is_refused(
    bridge: BridgeProcess, tmp_path: Path, name: str, content: bytes | None, why: str
) -> None:
    shell = Shell(bridge.port, "bad files", tmp_path)
    if name == "pickled.npy":
        save(tmp_path / name, np.array([{"a": 1}], dtype=object))
    elif name == "folder.json":
        (tmp_path / name).mkdir()
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    said = shell.refused("register", "x", "embedding", f"@{name}", code=2)
    assert why in said
    assert name in said


def test_a_file_that_cannot_be_written_is_told(shell: Shell, tmp_path: Path) -> None:
    shell.says("register", "x", "float", "1")
    shell.says("register", "e", "embedding", "[1, 2]")
    assert "holds an array" in shell.refused("get", "x", "--out", "x.npy", code=2)
    assert "neither in .npy nor in .json" in shell.refused("get", "x", "--out", "x.csv", code=2)
    assert "name one variable" in shell.refused("get", "x", "e", "--out", "x.json", code=2)
    said = shell.refused("get", "e", "--out", "nowhere/e.npy")
    assert "nowhere/e.npy cannot be written: No such file or directory" in said
    assert not list(tmp_path.iterdir())


# What is refused, and in whose words.


def test_a_wrong_value_is_refused_in_the_bridges_words(shell: Shell) -> None:
    shell.says("register", "x", "float", "0.5", "--min", "0", "--max", "2")
    shell.says("register", "b", "boolean", "true")
    shell.says("register", "m", "choice", "fast", "--choices", "fast", "--choices", "slow")
    said = shell.refused("set", "x", "9")
    assert said == "snakepit-bridge: variable 'x': value 9.0 is above maximum 2"
    assert "a value of type float must be a number" in shell.refused("set", "x", "hot")
    assert "must be true or false" in shell.refused("set", "b", "yes")
    assert "not among the choices 'fast, slow'" in shell.refused("set", "m", "off")
    both = shell.refused("set", "x", "-1", "m", "off", "b", "false")
    assert "below minimum" in both
    assert "not among the choices" in both
    assert "nothing was set" in both
    assert shell.says("get", "b") == "true"
    assert "already" in shell.refused("register", "x", "float", "1")
    assert "expected one of float" in shell.refused("register", "y", "number", "1")
    assert "Invalid constraints" in shell.refused("register", "y", "float", "1", "--choices", "a")
    assert "variable 'nope' not found" in shell.refused("set", "nope", "1")
    assert "nope" in shell.refused("set", "nope", "1", "x", "1")


def test_a_lost_update_is_refused(shell: Shell) -> None:
    shell.says("register", "x", "integer", "1")
    shell.says("set", "x", "2", "--if-version", "1")
    assert "at version 2, expected 1" in shell.refused("set", "x", "3", "--if-version", "1")
    assert shell.says("get", "x") == "2"


def test_a_request_is_done_once(shell: Shell) -> None:
    shell.says("register", "x", "integer", "1", "--request-id", "a")
    shell.says("register", "x", "integer", "1", "--request-id", "a")
    for _ in range(2):
        assert shell.says("set", "x", "2", "--request-id", "b") == "x = 2  version 2"
    assert "was used before" in shell.refused("set", "x", "3", "--request-id", "b")
    for _ in range(2):
        shell.says("delete", "x", "--request-id", "c")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["set", "x"], "'x' has no value"),
        (["set", "x", "1", "x", "2"], "a variable is named twice"),
        (["set", "x", "1", "y", "2", "--if-version", "1"], "about one variable"),
        (["set", "x", "1", "--meta", "reason"], "'reason' is no metadata"),
        (["set", "x", "1", "--meta", "a=1", "--meta", "a=2"], "given twice"),
        (["set", "x", "1", "--if-verson", "3"], "No such option"),
        (["set", "x", "-word"], "No such option"),
        (["delete", "x", "y", "--request-id", "a"], "delete one"),
        (["get"], "Missing argument"),
        (["get", "x", "--bridge", "nowhere"], "is not HOST:PORT"),
        (["get", "x", "--timeout", "soon"], "is no duration"),
        (["get", "x", "--ca", "nowhere.pem"], "does not exist"),
        (["register", "x", "float", "1", "--min", "low"], "not valid JSON"),
        (["register", "x", "float", "1", "--min", "true"], "--min must be a number"),
        (["register", "x", "float", "1", "--constraints", "[1]"], "must be a JSON object"),
        (
            ["register", "x", "float", "1", "--min", "1", "--constraints", '{"min": 0}'],
            "both give 'min'",
        ),
        (["register", "x", "embedding", "[1, 2"], "not valid JSON"),
    ],
)
def test_a_wrong_line_is_a_usage_error(
    bridge: BridgeProcess, tmp_path: Path, words: list[str], why: str
) -> None:
    shell = Shell(bridge.port, "usage", tmp_path)
    assert why in shell.refused(*words, code=2)


def test_what_is_no_utf8_is_refused(shell: Shell) -> None:
    assert "is not UTF-8" in shell.refused("get", b"\xff", code=2)
    assert "is not UTF-8" in shell.refused("register", "x", "string", b"a\xff", code=2)


def test_an_unknown_session_is_told(shell: Shell) -> None:
    for words in (["list"], ["get", "x"], ["get", "x", "y"], ["delete", "x"], ["set", "x", "1"]):
        said = shell.refused(*words)
        assert "session 'test_an_unknown_session_is_told' not found" in said
        assert "`snakepit-bridge register` begins it" in said


def test_a_session_without_variables_is_no_error(shell: Shell, bridge: BridgeProcess) -> None:
    Session(bridge, "empty").start()
    done = shell.run("list", "--session", "empty")
    assert (done.returncode, done.stdout) == (0, "")
    assert "no variable" in done.stderr


# Bridges that are not there, or not for everybody.


def test_an_absent_bridge_is_told_at_once(shell: Shell) -> None:
    port = free_port()
    said = shell.refused("list", "--bridge", f"localhost:{port}", "--timeout", "1h")
    assert said == (
        f"snakepit-bridge: no bridge answers at localhost:{port}: start one with "
        "`snakepit-bridge serve`, or name another with --bridge"
    )


def test_what_never_answers_is_left_in_time(shell: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        said = shell.refused("list", "--bridge", f"127.0.0.1:{port}", "--timeout", "500ms")
    assert str(port) in said


def test_a_token_comes_from_a_file(shell: Shell, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("0123456789abcdef0123456789abcdef\n")
    token.chmod(0o600)
    other = tmp_path / "other"
    other.write_text("another token that is long enough".replace(" ", "-"))
    other.chmod(0o600)
    with BridgeProcess("memory:", "--token-file", str(token)) as bridge:
        at = ("--bridge", f"localhost:{bridge.port}")
        assert "token" in shell.refused("list", *at)
        assert "token" in shell.refused("list", *at, "--token-file", "other")
        shell.says("register", "x", "float", "1", *at, "--token-file", "token")
        shell.environment["SNAKEPIT_BRIDGE_TOKEN_FILE"] = str(token)
        assert shell.says("get", "x", *at) == "1.0"
        token.chmod(0o644)
        said = shell.refused("get", "x", *at)
        assert "is open to others" in said
        assert "0123456789abcdef" not in said
    assert "cannot read the token file" in shell.refused("list", "--token-file", "nowhere")


def test_tls_is_spoken_where_it_is_asked_for(shell: Shell) -> None:
    assert "no bridge answers at" in shell.refused("list", "--tls", "--timeout", "5s")


# Terminals, narrow ones, and none.


def test_a_terminal_gets_colours_unless_it_wants_none(shell: Shell) -> None:
    shell.says("register", "x", "float", "1")
    assert "\x1b[1m" in shell.in_terminal("list")
    assert "\x1b[3" in shell.in_terminal("get", "nope")
    assert "\x1b[3" not in shell.in_terminal("get", "nope", NO_COLOR="1")
    assert "\x1b" not in shell.says("list")


def test_a_line_fits_into_a_terminal(shell: Shell) -> None:
    shell.says("register", "a_rather_long_name_" * 3, "string", "word " * 50)
    shell.says("register", "x", "embedding", json.dumps([0.5] * 100))
    for columns in (80, 120):
        for line in shell.in_terminal("list", columns=columns, NO_COLOR="1", TERM="dumb").split(
            "\n"
        ):
            assert len(line) <= columns
    narrow = shell.in_terminal("list", columns=30, TERM="dumb")
    assert "…" in narrow
    wide = shell.says("list").splitlines()
    assert wide[1].startswith("a_rather_long_name_" * 3)


def test_a_value_cannot_steer_a_terminal(shell: Shell) -> None:
    shell.says("register", "x", "string", "-", stdin="a\x1b]0;owned\x07\x1b[2Jb\u202ec".encode())
    for words in (["get", "x"], ["list"], ["get", "-v", "x"]):
        shown = shell.in_terminal(*words, NO_COLOR="1")
        assert "\x1b]" not in shown
        assert "\x1b[2J" not in shown
        assert "\u202e" not in shown
        assert "\\x1b[2J" in shown or "\\u001b[2J" in shown
    # What is no terminal gets what is stored.
    assert shell.says("get", "x") == "a\x1b]0;owned\x07\x1b[2Jb\u202ec"


def test_an_encoding_without_the_characters_is_no_error(shell: Shell) -> None:
    shell.environment |= {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    shell.says("register", "x", "string", "-", stdin="\N{SNAKE}".encode())
    assert "\\U0001f40d" in shell.says("list")
    assert shell.json("get", "x")["value"] == "\N{SNAKE}"


def test_a_reader_that_leaves_is_no_error_to_talk_about(
    shell: Shell, bridge: BridgeProcess, tmp_path: Path
) -> None:
    session = Session(bridge, shell.environment["SNAKEPIT_BRIDGE_SESSION"])
    for number in range(500):
        session.register(f"variable_{number:03}")
    for words in ("list", "list --json"):
        done = subprocess.run(
            ["bash", "-c", f"{COMMAND} {words} | head -c 20"],
            env=shell.environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert (len(done.stdout), done.stderr) == (20, "")
    assert len(shell.json("list")["variables"]) == 500


# Help, start-up, completion.

COMMANDS = ["register", "get", "set", "list", "delete", "watch", "tools", "call"]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_teaches_with_examples(shell: Shell, name: str) -> None:
    help_ = shell.says(name, "--help")
    assert "Examples" in help_
    assert help_.count(f"snakepit-bridge {name}") >= 3
    for option in ("--bridge", "--session", "--timeout", "--token-file", "--tls", "--json"):
        assert option in help_
    assert max(map(len, help_.splitlines())) <= 80


def test_help_is_quick() -> None:
    code = (
        "import sys, contextlib\n"
        "from snakepit_bridge.cli import main\n"
        "with contextlib.suppress(SystemExit): main(['get', '--help'])\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.splitlines()[-1].split()
    assert not {"grpc", "numpy", "snakepit_bridge.client"} & set(loaded)


def complete(shell: Shell, *words: str) -> list[str]:
    """What the tab key offers after these words, of which the last is not complete."""
    environment = {
        **shell.environment,
        "_SNAKEPIT_BRIDGE_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["snakepit-bridge", *words]),
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run(
        [COMMAND],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_the_tab_key_knows_what_there_is(shell: Shell) -> None:
    shell.says("register", "temperature", "float", "1")
    shell.says("register", "text", "string", "a")
    shell.says("register", "mode", "choice", "fast", "--choices", "fast,careful")
    assert complete(shell, "get", "te") == ["temperature", "text"]
    assert complete(shell, "get", "text", "te") == ["temperature"]
    assert complete(shell, "set", "temperature", "1", "mo") == ["mode"]
    assert complete(shell, "set", "mode", "") == ["fast", "careful"]
    assert complete(shell, "register", "x", "em") == ["embedding"]
    assert complete(shell, "delete", "--session", "nope", "te") == []
    assert complete(shell, "get", "--bridge", f"localhost:{free_port()}", "te") == []
