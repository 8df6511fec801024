"""What docs/dspy.md and the example say, run as a reader would."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from pathlib import Path

from snakepit_bridge.dspy_modules import bindings, modules
from snakepit_bridge.dspy_modules.bindings import TargetKind
from tests.bridge_process import BridgeProcess
from tests.test_docs import examples, require_like, rows
from tests.wire_session import Session

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "dspy.md").read_text()
BREAK = "-- next example"
PATIENCE = 60.0
"""Seconds until what has to come is missing."""


def test_the_examples_print_what_they_say() -> None:
    shown = [example for example in examples(PAGE) if example.language == "python"]
    # In a process of its own: ``dspy.configure`` is for all of one.
    done = subprocess.run(
        [sys.executable, "-c", f"print({BREAK!r})\n".join(code for _, code, _ in shown)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.split(f"{BREAK}\n")
    assert len(said) == len(shown)
    for text, (_, _, printed) in zip(said, shown, strict=True):
        require_like(text, printed or "")


def test_the_table_says_what_can_be_bound() -> None:
    named = set()
    for targets, types, _ in rows(PAGE, "`to`", "type of the variable", "what it drives"):
        for target in targets.replace("`", "").split():
            if target == "nothing":
                continue
            named.add(target)
            if target != "config.NAME":
                assert ", ".join(TargetKind.of(target).types) == types, target
    assert named == {"config.NAME", *bindings.SETTINGS, *bindings.PARTS}
    for target in ("temperature", "max_tokens", "lm", "instructions", "demos", "arm"):
        assert f"``{target}``" in (modules.VariableAwareModule.bind_variable.__doc__ or "")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "examples/dspy_program.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_the_example_steers_itself() -> None:
    done = run()
    assert done.returncode == 0, done.stderr
    first, *others, _, _, again = done.stdout.splitlines()
    assert first == again
    assert re.sub(r"\s+", " ", first) == (
        "offset 5 temperature=1.0 model=small strategy=plain It is Paris, says fake/small at 1.0."
    )
    assert [line.split()[2:5] for line in others] == [
        ["temperature=0.1", "model=small", "strategy=plain"],
        ["temperature=0.7", "model=large", "strategy=plain"],
        ["temperature=0.7", "model=large", "strategy=think"],
        ["temperature=1.5", "model=small", "strategy=plain"],
    ]
    assert "Traceback" not in done.stderr


def test_the_example_is_steered_from_elsewhere(tmp_path: Path) -> None:
    with BridgeProcess(tmp_path / "bridge.db") as bridge:
        with subprocess.Popen(
            [
                *(sys.executable, "-u", "examples/dspy_program.py"),
                *("--target", f"localhost:{bridge.port}", "--calls", "1"),
            ],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            timer = threading.Timer(PATIENCE, process.kill)
            timer.start()
            assert process.stdout is not None
            lines = iter(process.stdout)
            assert "'dspy'" in next(lines)
            assert "temperature=1.0" in next(lines)
            Session(bridge, "dspy").set("temperature", 0.25, "float")
            assert "says fake/small at 0.25." in next(lines)
            assert next(lines) == "\n"
            assert "pinned" in next(lines)
            assert "says fake/small at 1.0." in next(lines)
            process.communicate()
            timer.cancel()
        assert process.returncode == 0
        port = bridge.port
        assert bridge.stop() == 0
    done = run("--target", f"localhost:{port}")
    assert done.returncode == 1
    assert "No bridge at" in done.stdout
    assert "Traceback" not in done.stderr
