"""The layout shows the architecture: floors, exports, sizes."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import snakepit_bridge

ROOT = Path(snakepit_bridge.__file__).parent
MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages([str(ROOT)], "snakepit_bridge.")
    if not info.name.endswith(("_pb2", "_pb2_grpc"))
)

# docs/architecture.md draws these floors; a module may import from its own and from lower ones.
FLOORS = [
    ["grpc_server"],
    ["cli", "server"],
    ["observing"],
    ["rpc", "slots", "stdout", "heartbeats", "forwarding"],
    ["bridge_servicer", "watching"],
    ["tool_methods"],
    ["tool_calls"],
    ["tool_session", "tool_wire"],
    ["adapters", "base_adapter", "base_adapter_threaded", "showcase", "tools"],
    ["elixir", "telemetry"],
    ["dspy_modules"],
    ["variable_aware_mixin"],
    ["client"],
    ["watch_hub", "watch_wire"],
    ["wire"],
    ["wire_bytes"],
    ["session_context"],
    ["changes"],
    ["observers"],
    ["sessions", "variable_views", "upkeep"],
    ["decide"],
    ["locks", "tool_rules"],
    ["commands"],
    ["observation"],
    ["metadata_checks"],
    ["limits"],
    ["variables"],
    ["constraint_checks", "linear_pattern"],
    ["tool_values"],
    ["views"],
    ["off_loop"],
    ["type_serialization"],
    ["json_documents", "protobuf_values"],
    ["json_scalars", "json_arrays", "binary_arrays"],
    ["strict_json"],
    ["events"],
    ["tokens"],
    ["errors"],
]


def floor(module: str) -> int | None:
    room = module.removeprefix("snakepit_bridge").removeprefix(".").split(".")[0]
    for number, rooms in enumerate(FLOORS):
        if room in rooms:
            return number
    return None


def imports(module: str) -> set[str]:
    path = importlib.import_module(module).__file__
    assert path is not None
    found = set()
    for node in ast.walk(ast.parse(Path(path).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return {name for name in found if name.startswith("snakepit_bridge")}


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downwards(module: str) -> None:
    here = floor(module)
    assert here is not None, f"{module} stands on no floor"
    above = {
        name
        for name in imports(module)
        if (there := floor(name)) is not None and there < here and "server" not in module
    }
    assert not above


def test_the_events_know_nothing_of_grpc() -> None:
    for module in MODULES:
        if module.startswith("snakepit_bridge.events"):
            path = importlib.import_module(module).__file__
            assert path is not None
            assert "grpc" not in Path(path).read_text().lower(), module


@pytest.mark.parametrize("module", MODULES)
def test_all_is_what_is_public(module: str) -> None:
    imported = importlib.import_module(module)
    exported = getattr(imported, "__all__", [])
    assert imported.__file__ is not None
    for name in exported:
        assert hasattr(imported, name), f"{module} exports {name}, which it does not have"
    if not Path(imported.__file__).name.startswith("__init__"):
        public = {
            name
            for name, thing in vars(imported).items()
            if not name.startswith("_")
            and getattr(thing, "__module__", None) == module
            and (isinstance(thing, type) or callable(thing))
        }
        assert public <= set(exported), f"{module} does not export {public - set(exported)}"


def test_the_package_root_loads_nothing_heavy() -> None:
    code = "import snakepit_bridge, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"grpc", "numpy", "typer", "rich", "re2", "dspy"} & set(loaded)


@pytest.mark.parametrize("module", MODULES)
def test_no_module_outgrows_its_room(module: str) -> None:
    path = importlib.import_module(module).__file__
    assert path is not None
    assert len(Path(path).read_text().splitlines()) <= 600
