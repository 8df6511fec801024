"""Logs of schema 1 as they were first written, and how they were made.

``log_schema_1.jsonl`` holds every stored byte, a record, large value or snapshot a line, and
``log_schema_1.json`` the states that these fold to. Both are read for ever. As long as
schema 1 is the one that is written, ``generate`` must give the same bytes again; when the
stored form changes on purpose, ``python -m tests.golden.log_schema_1`` writes both anew
(never after a release: a new schema gets files of its own).

Maps have one entry each, because protobuf promises no order for more.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf.any_pb2 import Any as AnyMessage

from snakepit_bridge.commands import (
    CleanupSession,
    Command,
    DeleteVariable,
    FinishTool,
    InitializeSession,
    LoadSession,
    PastValue,
    RegisterTools,
    RegisterVariable,
    RollbackVariable,
    SetVariable,
    SetVariables,
    StartOptimization,
    StartTool,
    StopOptimization,
    ToolArgument,
    ToolRun,
)
from snakepit_bridge.events.memory import MemoryLog
from snakepit_bridge.events.model import (
    Envelope,
    LogId,
    Origin,
    StoredRecord,
    StoredSnapshot,
    Value,
    make_value,
)
from snakepit_bridge.events.projection import SessionState
from snakepit_bridge.events.requests import METHODS, RequestTable
from snakepit_bridge.events.snapshot import seal_snapshot
from tests.direct import Direct, folded, wire_value

RECORDS = Path(__file__).with_name("log_schema_1.jsonl")
STATES = Path(__file__).with_name("log_schema_1.json")

START = 1_750_000_000_000_000_000
TRACED = Origin(
    "tool:tuner",
    "correlation-1",
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "vendor=1",
)


class Binary(NamedTuple):
    """A value in binary form that is stored as it is."""

    type_name: str
    json: str
    binary: bytes

    def accept(self, type_name: str) -> tuple[object, Value]:
        assert type_name == self.type_name
        return None, make_value(_any(f"{type_name}.binary", self.json), self.binary)

    def fingerprint(self) -> str:
        return repr(self)

    @property
    def size(self) -> int:
        return len(self.json) + len(self.binary)


VARIABLES = (
    ("temperature", "float", wire_value("float", "0.7"), '{"min": 0, "max": 2}'),
    ("attempts", "integer", wire_value("integer", "3"), ""),
    ("größe \N{SNAKE}", "string", wire_value("string", '"h\\u00e9llo"'), '{"max_length": 20}'),
    ("verbose", "boolean", wire_value("boolean", "true"), ""),
    ("model", "choice", wire_value("choice", '"a"'), '{"choices": ["a", "b"]}'),
    ("program", "module", wire_value("module", '"dspy.Predict"'), '{"namespace": "dspy"}'),
    ("vector", "embedding", wire_value("embedding", "[0.5,-1.25]"), '{"dimensions": 2}'),
    ("matrix", "tensor", wire_value("tensor", '{"shape":[2,1],"data":[[1],[2]]}'), ""),
    (
        "weights",
        "tensor",
        Binary(
            "tensor",
            '{"shape":[2],"dtype":"float32","binary_format":"raw"}',
            b"\x00\x00\x80\x3f\x00\x00\x00\xc0",
        ),
        "",
    ),
    (
        "large weights",
        "tensor",
        Binary(
            "tensor",
            '{"shape":[5000],"dtype":"uint8","binary_format":"raw"}',
            bytes(n % 251 for n in range(5000)),
        ),
        "",
    ),
    ("essay", "string", wire_value("string", '"' + "long " * 1000 + '"'), ""),
)


def commands() -> tuple[Command, ...]:
    """Everything that can be said today, so that every kind of event is written."""

    def s(request_id: str = "", **change: Any) -> Envelope:  # noqa: ANN401 - as Envelope says
        return Envelope("s", request_id, origin=Origin("elixir"), **change)

    first = PastValue("var_temperature_2", make_value(_any("float", "0.7")))
    return (
        InitializeSession(s("start"), {"owner": "golden"}, (True, 60, True)),
        *(RegisterVariable(s(), *variable) for variable in VARIABLES),
        SetVariable(s("set-1"), "temperature", wire_value("float", "1.5")),
        SetVariable(
            Envelope("s", origin=TRACED, metadata={"source": "tool:tuner"}),
            "temperature",
            wire_value("float", "0.25"),
            2,
        ),
        SetVariables(
            s("atomic", metadata={"reason": "both"}),
            (("attempts", wire_value("integer", "4")), ("verbose", wire_value("boolean", "false"))),
            atomic=True,
        ),
        SetVariables(
            s("each"),
            (
                ("attempts", wire_value("integer", "5")),
                ("model", wire_value("choice", '"z"')),  # refused, and leaves nothing
                ("verbose", wire_value("boolean", "true")),
            ),
            atomic=False,
        ),
        RollbackVariable(s("back"), "temperature", 1, first),
        SetVariable(s(), "essay", wire_value("string", '"' + "short " * 3 + '"')),
        SetVariable(s(), "large weights", VARIABLES[-2][2]),
        DeleteVariable(s("away"), "model"),
        RegisterVariable(s("again"), "model", "choice", wire_value("choice", '"b"')),
        CleanupSession(s("end"), "cleanup"),
        # The same id begun anew, by a registration: two events in one record.
        RegisterVariable(s("anew"), "x", "integer", wire_value("integer", "1")),
        SetVariable(s(), "x", wire_value("integer", "2")),
        *optimized(),
        *called(),
    )


def optimized() -> tuple[Command, ...]:
    """A variable that optimizers lock: one stops, one is forced to, one is left to rust."""

    def t(request_id: str = "", **change: Any) -> Envelope:  # noqa: ANN401 - as Envelope says
        return Envelope("tuned", request_id, origin=Origin("python"), **change)

    def key(offset: int) -> str:
        return f"var_lr_2:0000000000000003:{offset}"

    return (
        RegisterVariable(t(), "lr", "float", wire_value("float", "0.1")),
        StartOptimization(t("begin"), "lr", "mipro", {"trials": "3"}),
        SetVariable(t(optimization_id=key(3)), "lr", wire_value("float", "0.2")),
        StopOptimization(t("stop", optimization_id=key(3)), "lr"),
        StartOptimization(t(), "lr", "simba"),
        StopOptimization(t(), "lr", force=True),
        StartOptimization(t(), "lr", "gepa"),
        SetVariable(t("late"), "lr", wire_value("float", "0.3")),
        StartOptimization(t(), "lr", "last"),  # and it stays locked
    )


def called() -> tuple[Command, ...]:
    """Tools: registered, run to each of their ends, and left open."""

    def u(request_id: str = "", **change: Any) -> Envelope:  # noqa: ANN401 - as Envelope says
        return Envelope("called", request_id, origin=Origin("elixir"), **change)

    by_tool = Envelope("called", origin=TRACED)
    small, large = make_value(_any("integer", "7")), make_value(_any("string", '"' + "x" * 5000))
    arguments = (
        ToolArgument("large", large.digest, large),
        ToolArgument("secret", small.digest, None),
        ToolArgument("small", small.digest, small),
    )
    doing = Envelope("called", origin=TRACED._replace(tool_call_id="call-1"))
    raised = ("ValueError", "no", "Traceback: no")
    return (
        RegisterTools(u("tools"), (("remote", b"\n\x06remote"),), "worker-1"),
        StartTool(u("run"), "tuner", arguments, False, ToolRun("call-1", START)),
        RegisterVariable(doing, "rate", "float", wire_value("float", "0.5")),
        FinishTool(by_tool, "call-1", "ok", 1_000, small),
        StartTool(u("run"), "tuner", arguments, False, ToolRun("call-2", 0)),  # again
        StartTool(u(), "tuner", (), True, ToolRun("call-3", 0)),
        FinishTool(by_tool, "call-3", "error", 2_000, error=raised, chunks=3),
        StartTool(u(), "tuner", (), False, ToolRun("call-4", 0)),
        FinishTool(by_tool, "call-4", "ok", 3_000, digest=large.digest),
        StartTool(u("left"), "tuner", (), False, ToolRun("call-5", 0)),
        StartTool(u(), "tuner", (), False, ToolRun("call-6", 0)),
    )


RUSTED = 31
"""The tick at which the clock has gone far enough for the last but one optimizer."""


def generate() -> tuple[MemoryLog, dict[LogId, SessionState]]:
    """Write the logs; gives them with the states that the committer came to."""
    engine = MemoryLog()
    ticks = itertools.count()

    def clock() -> int:
        tick = next(ticks)
        jumped = 3_600_000_000_000 if tick == 14 else 0  # back by an hour, once
        waited = 1_000_000_000_000 if tick >= RUSTED else 0
        return START + tick * 1_000_000_000 - jumped + waited

    names = itertools.count(1)
    states: dict[LogId, SessionState] = {}
    with Direct(engine, clock=clock, epochs=lambda: f"{next(names):016x}") as direct:
        direct.committer.instance = "00000000c0ffee00"
        for command in commands():
            direct.ask(command)
            log = direct.loaded(command.envelope.session_id)
            states[log.id] = log.working
        direct.ask(LoadSession(Envelope("s")))
    for log_id, state in states.items():
        engine.save_snapshot(log_id, seal_snapshot(state))
    return engine, states


def lines(engine: MemoryLog, logs: list[LogId]) -> list[str]:
    """The stored bytes, as ``log_schema_1.jsonl`` has them."""
    records = [
        {
            "session": log.session_id,
            "epoch": log.epoch,
            "first_offset": record.first_offset,
            "events": record.events,
            "header": record.header.hex(),
            "values": record.values.hex(),
            "digest": record.digest.hex(),
        }
        for log in logs
        for record in engine.records(log)
    ]
    large = [
        {"large": value.digest.hex(), "any": value.any.hex(), "binary": value.binary.hex()}
        for value in engine._values.values()
    ]
    snapshots = [
        {
            "session": log.session_id,
            "epoch": log.epoch,
            "snapshot": snapshot.offset,
            "digest": snapshot.digest.hex(),
            "time": snapshot.time_unix_nanos,
            "state": snapshot.state.hex(),
            "requests": snapshot.requests.hex(),
            "check": snapshot.check.hex(),
            "large": [digest.hex() for digest in snapshot.large],
        }
        for log in logs
        for snapshot in engine._logs[log].snapshots
    ]
    return [json.dumps(line) for line in (*records, *large, *snapshots)]


def load(text: str) -> tuple[MemoryLog, list[LogId]]:
    """Read such lines into an engine."""
    engine = MemoryLog()
    logs: dict[LogId, None] = {}
    for line in map(json.loads, text.splitlines()):
        if "snapshot" in line:
            engine.save_snapshot(LogId(line["session"], line["epoch"]), _snapshot(line))
            continue
        if "large" in line:
            value = Value(*(bytes.fromhex(line[key]) for key in ("any", "binary", "large")))
            engine._values[value.digest] = value
            continue
        log = LogId(line["session"], line["epoch"])
        logs[log] = None
        header, values, digest = (bytes.fromhex(line[k]) for k in ("header", "values", "digest"))
        stored = StoredRecord(line["first_offset"], line["events"], header, values, digest)
        engine.append([(log, stored)])
    return engine, list(logs)


def _snapshot(line: dict[str, Any]) -> StoredSnapshot:
    digest, state, requests, check = (
        bytes.fromhex(line[key]) for key in ("digest", "state", "requests", "check")
    )
    large = tuple(bytes.fromhex(value) for value in line["large"])
    return StoredSnapshot(line["snapshot"], digest, line["time"], state, requests, check, large)


def shown(state: SessionState) -> dict[str, Any]:
    """A state as ``log_schema_1.json`` has it."""
    return {
        "head": state.head,
        "digest": state.digest.hex(),
        "time": state.time_unix_nanos,
        "created": state.created_unix_nanos,
        "ended": state.ended,
        "metadata": dict(state.metadata),
        "config": list(state.config),
        "variables": [
            {
                **variable.definition._asdict(),
                "value": _shown_value(variable.value),
                "version": variable.version,
                "offset": variable.offset,
                "time": variable.time_unix_nanos,
                "source": variable.source,
                "metadata": dict(variable.metadata),
                "lock": list(variable.lock) if variable.lock else None,
            }
            for variable in state.variables.values()
        ],
        "names": dict(state.names),
        "deleted": dict(state.deleted),
        "used_names": sorted(state.used_names),
        "tools": [[*tool[:2], tool.spec.hex(), *tool[3:]] for tool in state.tools.values()],
        "calls": [
            [
                *call[:5],
                None if call.request is None else [*call.request[:2], call.request[2].hex()],
            ]
            for call in state.calls.values()
        ],
        "requests": _shown_requests(state.requests),
    }


def _shown_requests(requests: RequestTable) -> list[list[object]]:
    entries = sorted(requests.entries().items(), key=lambda entry: entry[1].order)
    return [
        [key.hex(), METHODS.index(known.method), known.digest.hex(), *known[2:]]
        for key, known in entries
    ]


def _shown_value(value: Value) -> dict[str, object]:
    message = AnyMessage.FromString(value.any)
    return {
        "type_url": message.type_url,
        "json": message.value.decode() if len(message.value) < 100 else len(message.value),
        "binary": value.binary.hex() if len(value.binary) < 100 else len(value.binary),
        "digest": value.digest.hex(),
    }


def _any(type_name: str, json_text: str) -> bytes:
    return AnyMessage(
        type_url=f"dspex.variables/{type_name}", value=json_text.encode()
    ).SerializeToString()


def main() -> None:
    engine, states = generate()
    logs = list(states)
    RECORDS.write_text("".join(f"{line}\n" for line in lines(engine, logs)))
    expected = {log.epoch: shown(folded(engine, log)) for log in logs}
    STATES.write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
