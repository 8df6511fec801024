"""A tour of a running bridge in Python, with nothing but the generated stubs.

make run                               # in one terminal
python examples/quickstart.py          # in another
# now stop the bridge with Ctrl-C (or kill -9 it), start it again, and
python examples/quickstart.py --check  # all of it is still there
"""

from __future__ import annotations

from typing import Annotated, Any

import grpc
import typer
from rich.console import Console
from rich.table import Table

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge import bridge_service_pb2_grpc as stubs
from snakepit_bridge.type_serialization import TypeSerializer

SESSION = "quickstart"
SOURCE = {"source": "python"}

# name, type, constraints_json, first value, second value
VARIABLES: list[tuple[str, str, str, Any, Any]] = [
    ("temperature", "float", '{"min": 0, "max": 2}', 0.7, 0.9),
    ("max_tokens", "integer", '{"min": 1, "max": 4096}', 256, 512),
    ("greeting", "string", '{"max_length": 40}', "hello", "grüß Gott"),
    ("streaming", "boolean", "", True, False),
    ("model", "choice", '{"choices": ["small", "large"]}', "small", "large"),
    ("strategy", "module", '{"namespace": "dspy"}', "dspy.Predict", "dspy.ChainOfThought"),
    ("query", "embedding", '{"dimensions": 3}', [0.1, 0.2, 0.3], [1.0, 0.0, 0.0]),
    (
        "weights",
        "tensor",
        '{"shape": [2, 2]}',
        {"shape": [2, 2], "data": [[1, 2], [3, 4]]},
        {"shape": [2, 2], "data": [[0, 1], [1, 0]]},
    ),
]

# variable, value that must be refused
REFUSED: list[tuple[str, str, Any]] = [
    ("temperature", "float", 2.5),
    ("max_tokens", "integer", 0),
    ("greeting", "string", "much too long " * 4),
    ("model", "choice", "medium"),
    ("strategy", "module", "os.system"),
    ("query", "embedding", [1.0, 2.0]),
]

console = Console()


def main(
    target: Annotated[str, typer.Option(help="Where the bridge listens.")] = "localhost:50050",
    check: Annotated[
        bool, typer.Option("--check", help="Only look whether an earlier run is still there.")
    ] = False,
) -> None:
    """Register, set, batch, look back, roll back; with --check see that it all survived."""
    with grpc.insecure_channel(target) as channel:
        bridge: Any = stubs.BridgeServiceStub(channel)
        try:
            bridge.Ping(pb.PingRequest(message="quickstart"), timeout=5)
        except grpc.RpcError as error:
            console.print(f"[red]No bridge at {target}:[/] {error.details()}. Start one: make run")
            raise typer.Exit(1) from error
        if check:
            verify(bridge)
        else:
            tour(bridge)


def tour(bridge: Any) -> None:
    """Everything a session can do with variables."""
    bridge.CleanupSession(pb.CleanupSessionRequest(session_id=SESSION))
    started = bridge.InitializeSession(pb.InitializeSessionRequest(session_id=SESSION))
    console.print(f"Session [bold]{SESSION}[/], log {started.log_epoch}")

    for name, type_, constraints, value, _ in VARIABLES:
        bridge.RegisterVariable(
            pb.RegisterVariableRequest(
                session_id=SESSION,
                name=name,
                type=type_,
                initial_value=TypeSerializer.serialize_value(value, type_),
                constraints_json=constraints,
                metadata=SOURCE,
            )
        )
    show(bridge, "Eight types, registered")

    table = Table("variable", "value", "answer", title="Refused, and nothing was changed")
    for name, type_, value in REFUSED:
        try:
            set_variable(bridge, name, type_, value)
        except grpc.RpcError as error:
            table.add_row(name, repr(value)[:30], f"{error.code().name}: {error.details()}")
        else:
            raise AssertionError(f"{name} took {value!r}")
    console.print(table)

    batch = bridge.SetVariables(
        pb.BatchSetVariablesRequest(
            session_id=SESSION,
            updates={
                name: TypeSerializer.serialize_value(value, type_)
                for name, type_, _, _, value in VARIABLES
            },
            metadata={**SOURCE, "reason": "tuned"},
            atomic=True,
            request_id=f"batch-{started.log_epoch}",
        )
    )
    console.print(
        f"One transaction of {len(batch.new_versions)} changes, up to offset {batch.offset}"
    )
    set_variable(bridge, "temperature", "float", 1.9)
    back = bridge.RollbackVariable(
        pb.RollbackVariableRequest(
            session_id=SESSION,
            variable_identifier="temperature",
            target_version=1,
            metadata=SOURCE,
        )
    )
    console.print(f"temperature was rolled back to version 1, as version {back.variable.version}")
    show(bridge, "Afterwards")
    history(bridge)
    console.print(
        "Now stop the bridge (Ctrl-C, or kill -9), start it again with [bold]make run[/], and\n"
        "  python examples/quickstart.py --check"
    )


def verify(bridge: Any) -> None:
    """What ``tour`` left behind, whatever happened to the bridge in between."""
    show(bridge, "Still there")
    history(bridge)
    answer = bridge.GetVariables(
        pb.BatchGetVariablesRequest(
            session_id=SESSION, variable_identifiers=[name for name, *_ in VARIABLES]
        )
    )
    for name, type_, _, first, second in VARIABLES:
        expected = first if name == "temperature" else second
        wanted = TypeSerializer.serialize_value(expected, type_)
        if answer.variables[name].value != wanted:
            raise AssertionError(f"{name} is {answer.variables[name].value}, not {wanted}")
    console.print("[green]Every value is the one that was acknowledged.[/]")


def set_variable(bridge: Any, name: str, type_: str, value: Any) -> None:
    bridge.SetVariable(
        pb.SetVariableRequest(
            session_id=SESSION,
            variable_identifier=name,
            value=TypeSerializer.serialize_value(value, type_),
            metadata=SOURCE,
        )
    )


def show(bridge: Any, title: str) -> None:
    table = Table("variable", "type", "value", "version", "offset", "by", title=title)
    for variable in bridge.ListVariables(pb.ListVariablesRequest(session_id=SESSION)).variables:
        table.add_row(
            variable.name,
            variable.type,
            variable.value.value.decode(),
            str(variable.version),
            str(variable.offset),
            variable.metadata["source"] or "elixir",
        )
    console.print(table)


def history(bridge: Any) -> None:
    table = Table("version", "value", "by", "offset", "", title="The life of temperature")
    entries = bridge.GetVariableHistory(
        pb.GetVariableHistoryRequest(session_id=SESSION, variable_identifier="temperature")
    ).entries
    for entry in entries:
        note = f"rolled back to version {entry.rolled_back_to}" if entry.rolled_back_to else ""
        table.add_row(
            str(entry.version),
            entry.value.value.decode(),
            entry.changed_by,
            str(entry.offset),
            note,
        )
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
