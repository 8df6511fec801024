"""Valid requests of every RPC with one request, mutated: the bridge answers, and lives.

The mutations come from a seed, which is printed. Half of them are of the bytes, which
rarely remain a message; half keep the structure, so that what is inside is reached.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message
from google.protobuf.struct_pb2 import Value
from google.protobuf.wrappers_pb2 import StringValue

from snakepit_bridge import bridge_service_pb2 as pb
from tests.hostile import Victim, answer_of, begin, field, folded_heads, varint
from tests.test_error_table import VALUES, message_of, running
from tests.tool_client import TOOLS
from tests.wire_session import METHODS, Session, packed

SEEDS = (1, 2)
MUTANTS = 1_000
"""Per seed."""
OPEN = 50
"""Mutants under way at once."""

FAILURES = {"UNKNOWN", "INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "DATA_LOSS"}

CALLED = sorted(name for name, method in METHODS.items() if not method.client_streaming)

OF_A_VARIABLE = {"variable_identifier": "integer"}
META = {"metadata": {"source": "python", "k": "v"}}
CONFIG = pb.SessionConfig(enable_caching=True, cache_ttl_seconds=60, enable_telemetry=True)
TENSOR = packed({"shape": [2, 2], "data": [[1, 2.5], ["NaN", -1e300]]}, "tensor")


def boxed(content: Message) -> AnyMessage:
    """Pack a message as protobuf has it."""
    box = AnyMessage()
    box.Pack(content)
    return box


BINARY = AnyMessage(
    type_url="dspex.variables/embedding.binary",
    value=json.dumps({"shape": [2], "dtype": "float32", "binary_format": "raw"}).encode(),
)

VALID: dict[str, dict[str, Any]] = {
    "InitializeSession": {**META, "config": CONFIG},
    "CleanupSession": {"session_id": "doomed", "force": True},
    "RegisterVariable": {
        **META,
        "session_id": "doomed",
        "name": "text",
        "type": "string",
        "initial_value": packed("aaa", "string"),
        "constraints_json": '{"pattern": "^(a|b)+$", "max_length": 9, "enum": ["aaa", "b"]}',
    },
    "GetVariable": {**OF_A_VARIABLE, "min_offset": 3, "bypass_cache": True},
    "SetVariable": {**META, "variable_identifier": "tensor", "value": TENSOR},
    "ListVariables": {"pattern": "*e*", "page_size": 2, "min_offset": 1},
    "DeleteVariable": {"variable_identifier": "boolean", **META},
    "GetVariables": {"variable_identifiers": ["integer", "float", "var_float_2", "nothing"]},
    "SetVariables": {
        **META,
        "updates": {"integer": packed(7), "embedding": packed([1, 0.5], "embedding")},
        "atomic": True,
    },
    "GetVariableHistory": {**OF_A_VARIABLE, "limit": 5, "page_size": 3},
    "StartOptimization": {
        "variable_identifier": "choice",
        "optimizer_id": "o",
        "optimizer_config": {"k": "v"},
        **META,
    },
    "StopOptimization": {"variable_identifier": "module", "force": True, **META},
    "RollbackVariable": {**OF_A_VARIABLE, "target_version": 1, "request_id": "back", **META},
    "WatchVariables": {
        "variable_identifiers": ["integer", "var_float_2", "*e*"],
        "include_initial_values": True,
        "after_offset": 0,
        "heartbeat_seconds": 7,
        "send_caught_up": True,
        "max_value_bytes": 100,
        "update_types": ["value_change", "registered", "deleted"],
    },
    "RegisterTools": {
        "tools": [
            {
                "name": "elsewhere",
                "description": "of another worker",
                "parameters": [
                    {"name": "a", "type": "integer", "default_value": packed(1), "required": True}
                ],
                "metadata": {"k": "v"},
                "supports_streaming": True,
            },
            {"name": "t"},
        ],
        "worker_id": "worker 1",
    },
    "ExecuteTool": {
        **META,
        **running(
            "anything",
            json={"a": [1, None, 2.5]},
            string=boxed(StringValue(value="text")),
            value=boxed(Value(number_value=1)),
            tensor=TENSOR,
            binary=BINARY,
        ),
        "binary_parameters": {"binary": bytes(8), "raw": b"\x00\xff"},
    },
    "ExecuteStreamingTool": {
        **META,
        **running("typed", number=1, ratio=0.5, text="a", flag=True, mode="b", items=[1, 2]),
        "stream": True,
    },
    "ExecuteElixirTool": {**META, **running("of Elixir", a=1)},
}
"""What a request has beside its session id, "victim" unless it says otherwise."""


def valid(method: str) -> bytes:
    named = {"message": "hello"} if method == "Ping" else {"session_id": "victim"}
    return message_of(method, **{**named, **VALID.get(method, {})}).SerializeToString()


Mutation = Callable[[random.Random, bytes], bytes]


def flip(source: random.Random, data: bytes) -> bytes:
    place = source.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << source.randrange(8)]) + data[place + 1 :]


def cut(source: random.Random, data: bytes) -> bytes:
    return data[: source.randrange(len(data))]


def insert(source: random.Random, data: bytes) -> bytes:
    place = source.randrange(len(data))
    return data[:place] + source.randbytes(source.randint(1, 9)) + data[place:]


def splice(source: random.Random, data: bytes) -> bytes:
    other = valid(source.choice(CALLED))
    return data[: source.randrange(len(data))] + other[source.randrange(len(other)) :]


def parts(data: bytes) -> list[tuple[int, int | bytes]]:
    """Take a message's fields apart: those of a valid one are varints and byte strings."""
    found: list[tuple[int, int | bytes]] = []
    place = 0

    def number() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = data[place]
            place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while place < len(data):
        tag = number()
        content: int | bytes = number()
        if tag & 7 == 2:
            start, place = place, place + int(content)
            content = data[start:place]
        found.append((tag >> 3, content))
    return found


def joined(fields: list[tuple[int, int | bytes]]) -> bytes:
    return b"".join(
        field(number, content)
        if isinstance(content, bytes)
        else varint(number << 3) + varint(content)
        for number, content in fields
    )


NUMBERS = (0, 1, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 2**64 - 1)
TEXTS = (b"", b"\x00", b"*", b"\xff", "\N{SNAKE}".encode() * 70, b"[" * 200, b"1e999", b'"NaN"')


def inside(source: random.Random, data: bytes) -> bytes:
    """Change a field, or something in it, and keep all lengths right."""
    try:
        fields = parts(data)
    except IndexError:
        return flip(source, data)  # it was text, which is no message
    place = source.randrange(len(fields))
    number, content = fields[place]
    if isinstance(content, int):
        fields[place] = (number, source.choice(NUMBERS))
    else:
        kind = source.randrange(5)
        if kind == 0:
            content = source.choice(TEXTS)
        elif kind == 1 and content:
            content = flip(source, content)
        elif content:
            content = inside(source, content)
        fields[place] = (number, content)
    return joined(fields)


def double(source: random.Random, data: bytes) -> bytes:
    fields = parts(data)
    fields.insert(source.randrange(len(fields) + 1), source.choice(fields))
    return joined(fields)


def transplant(source: random.Random, data: bytes) -> bytes:
    """Take a field out of another request, under a number of this one."""
    fields = parts(data)
    _, content = source.choice(parts(valid(source.choice(CALLED))))
    fields[source.randrange(len(fields))] = (source.choice(fields)[0], content)
    return joined(fields)


def drop(source: random.Random, data: bytes) -> bytes:
    fields = parts(data)
    del fields[source.randrange(len(fields))]
    return joined(fields)


BLUNT: tuple[Mutation, ...] = (flip, cut, insert, splice)
SHARP: tuple[Mutation, ...] = (inside, inside, inside, double, transplant, drop)


def mutant(source: random.Random, method: str) -> bytes:
    while True:
        data = mutated(source, method)
        if method != "WatchVariables" or is_answered(data):
            return data


def is_answered(request: bytes) -> bool:
    """Whether a watch says something at once, or else could not be told from one that hangs."""
    try:
        return pb.WatchVariablesRequest.FromString(request).send_caught_up
    except DecodeError:
        return True


def mutated(source: random.Random, method: str) -> bytes:
    data = valid(method)
    if source.random() < 0.5:
        # Once: each of these goes by the structure, which the one before may have broken.
        return source.choice(SHARP)(source, data)
    for _ in range(source.randint(1, 3)):
        data = source.choice(BLUNT)(source, data) if data else data
    return data


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    victim = Victim(tmp_path_factory.mktemp("fuzzing") / "bridge.db", *TOOLS)
    yield victim
    victim.close()
    assert victim.tracebacks == []


def restore(victim: Victim) -> None:
    """Put back what mutants have ended or deleted, so that the next ones reach as far."""
    Session(victim.bridge, "doomed").end()
    victim.session.start()
    live = {variable.name for variable in victim.session.call("ListVariables").variables}
    for type_, value in VALUES.items():
        if type_ not in live:
            victim.session.register(type_, value, type_)
    for method, variable in (("StopOptimization", "choice"), ("StartOptimization", "module")):
        fields = {**VALID[method], "variable_identifier": variable}
        request = message_of(method, session_id=victim.session.id, **fields).SerializeToString()
        code = begin(victim.bridge.channel, method, request).code().name
        assert code in ("OK", "FAILED_PRECONDITION")


@pytest.mark.parametrize("method", CALLED)
def test_what_is_mutated_is_valid(victim: Victim, method: str) -> None:
    restore(victim)
    future = begin(victim.bridge.channel, method, valid(method))
    code = future.code().name
    without_elixir = (method, code) == ("ExecuteElixirTool", "NOT_FOUND")
    unserved = (method, code) == ("AddDependency", "UNIMPLEMENTED")
    assert code == "OK" or without_elixir or unserved, future.details()


@pytest.mark.parametrize("seed", SEEDS)
def test_mutants_are_answered_and_break_nothing(victim: Victim, seed: int) -> None:
    sys.stdout.write(f"seed {seed}\n")
    source = random.Random(seed)
    counts: Counter[str] = Counter()
    for start in range(0, MUTANTS, OPEN):
        restore(victim)
        methods = [CALLED[number % len(CALLED)] for number in range(start, start + OPEN)]
        mutants = [(method, mutant(source, method)) for method in methods]
        calls = [begin(victim.bridge.channel, method, request) for method, request in mutants]
        for (method, request), call in zip(mutants, calls, strict=True):
            answer = answer_of(call)
            failed = answer.code in FAILURES and answer.reason != "TOOL_RAISED"
            assert not failed, (method, request, answer)
            counts[answer.code] += 1
        victim.bystander.step()
    sys.stdout.write(f"{dict(counts)}\n")
    # Some have to come through, or nothing behind the door was tried.
    assert counts["OK"] > MUTANTS / 10
    assert len(counts) > 4, counts


def test_what_mutants_have_written_is_a_log(victim: Victim) -> None:
    """The last test of this module: it stops the bridge."""
    restore(victim)
    head = victim.session.head
    victim.close()
    assert folded_heads(victim.log)["victim"] == head
    assert victim.tracebacks == []
