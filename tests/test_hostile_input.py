"""Requests that are made to hurt, one at a time, from a real client over a real socket.

Each is answered at once, with a status and words that name the fault (``fault_of`` checks
the rest of a refusal); none changes the log or grows the process out of proportion; another
client is served meanwhile.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from tests.hostile import Victim, field
from tests.test_error_table import VALUES, message_of, register, running, setting
from tests.tool_client import STRING_VALUE, TOOLS
from tests.wire_session import packed

LONG = "x" * 10_000_000
DEEP = 100_000
DIGITS = "9" * 100_000
LAST = 2**31 - 1

Fields = dict[str, Any]


class Item(NamedTuple):
    method: str
    fields: Fields
    code: str
    words: tuple[str, ...] = ()
    events: int = 0
    """By how much the log grows, if it is accepted."""
    large_values: int = 0
    """How many of its values are stored beside the log."""


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    victim = Victim(tmp_path_factory.mktemp("hostile") / "bridge.db", *TOOLS)
    victim.session.register(
        "trap", "a", "string", constraints_json=json.dumps({"pattern": "^(a+)+$"})
    )
    yield victim
    victim.close()
    assert victim.tracebacks == []


def raw(type_: str, content: bytes | str, form: str = "") -> AnyMessage:
    content = content if isinstance(content, bytes) else content.encode()
    return AnyMessage(type_url=f"dspex.variables/{type_}{form}", value=content)


def invalid(method: str, fields: Fields, *words: str) -> Item:
    return Item(method, fields, "INVALID_ARGUMENT", words)


def value(type_: str, content: bytes | str, *words: str) -> Item:
    """A set of the variable of this type, refused for its value."""
    words = (f"'{type_}'", f"type {type_}", *words)
    return invalid("SetVariable", setting(type_, raw(type_, content)), *words)


def constraints(type_: str, content: str, *words: str) -> Item:
    fields = register("new", type_, initial_value=packed(VALUES[type_], type_))
    words = ("Invalid constraints", f"type {type_}", *words)
    return invalid("RegisterVariable", {**fields, "constraints_json": content}, *words)


def pattern(expression: str, *words: str, text: str = "a") -> Item:
    fields = register("new", "string", initial_value=packed(text, "string"))
    content = json.dumps({"pattern": expression})
    return invalid("RegisterVariable", {**fields, "constraints_json": content}, "pattern", *words)


def tensor(shape: str, data: str, *words: str) -> Item:
    return value("tensor", f'{{"shape": {shape}, "data": {data}}}', *words)


JSON: dict[str, Item] = {
    **{f"deep: {type_}": value(type_, "[" * DEEP, "not valid JSON") for type_ in VALUES},
    **{
        f"deep and closed: {type_}": value(type_, "[" * DEEP + "]" * DEEP, "not valid JSON")
        for type_ in VALUES
    },
    **{
        f"deep objects: {type_}": value(
            type_,
            '{"a":' * DEEP + "1" + "}" * DEEP,
            # Where there are numbers only, objects are refused unread.
            "object" if type_ in ("embedding", "tensor") else "not valid JSON",
        )
        for type_ in VALUES
    },
    **{f"deep constraints: {t}": constraints(t, "[" * DEEP, "65536") for t in VALUES},
    **{
        f"constraints deep within the limit: {t}": constraints(t, "[" * 60_000, "JSON")
        for t in VALUES
    },
    **{
        f"constraints of 1,000 levels: {t}": constraints(
            t, '{"min": ' + "[" * 1_000 + "]" * 1_000 + "}", "nested"
        )
        for t in VALUES
    },
    "deep data": tensor("[1]", "[" * 900 + "1" + "]" * 900, "nested"),
    "deep embedding": value("embedding", "[" * 900 + "1" + "]" * 900, "nested"),
    **{f"1e999999: {type_}": value(type_, "1e999999", "1e999999") for type_ in VALUES},
    "1e999999 in an embedding": value("embedding", "[1, 1e999999]", "1e999999"),
    "1e999999 in a tensor": tensor("[1]", "[1e999999]", "1e999999"),
    "1e999999 in a shape": tensor("[1e999999]", "[1]", "1e999999"),
    "1e999999 as min": constraints("float", '{"min": 1e999999}', "JSON"),
    "1e-999999 as step": constraints("float", '{"step": 1e-999999}', "above 0"),
    **{f"100,000 digits: {type_}": value(type_, DIGITS, "999") for type_ in ("float", "boolean")},
    "100,000 digits: integer": value("integer", DIGITS, "100000 digits", "4300"),
    "100,000 digits below zero: integer": value("integer", "-" + DIGITS, "4300"),
    "100,000 digits and a fraction: integer": value("integer", DIGITS + ".0", "an integer"),
    "100,000 digits: embedding": value("embedding", f"[{DIGITS}]", "999"),
    "100,000 digits: data": tensor("[1]", f"[{DIGITS}]", "999"),
    "100,000 digits: shape": tensor(f"[{DIGITS}]", "[1]", "999"),
    "100,000 digits: min": constraints("integer", f'{{"min": {DIGITS}}}', "65536"),
    "60,000 digits: min": constraints("integer", f'{{"min": {DIGITS[:60_000]}}}', "4300"),
    "60,000 digits: dimensions": constraints(
        "embedding", f'{{"dimensions": {DIGITS[:60_000]}}}', "4300"
    ),
    **{
        f"surrogate bytes: {type_}": value(type_, b'"\xed\xa0\x80"', "not valid JSON")
        for type_ in ("string", "choice", "module")
    },
    **{
        f"surrogate escape: {type_}": value(type_, r'"\ud800"', "not valid JSON")
        for type_ in ("string", "choice", "module")
    },
    "surrogate bytes as a key": value(
        "tensor", b'{"shape": [1], "data": [1], "\xed\xa0\x80": 1}', "not valid JSON"
    ),
    "surrogate escape as a key": value(
        "tensor", r'{"shape": [1], "data": [1], "\ud800": 1}', "not valid JSON"
    ),
    "surrogate escape in an embedding": value("embedding", r'["\ud800"]', "not valid JSON"),
    **{
        f"surrogate escape: {content}": constraints("string", content, "JSON")
        for content in (r'{"\ud800": 1}', r'{"enum": ["\udc00"]}', r'{"description": "\ud800"}')
    },
    "a key twice: shape": value(
        "tensor", '{"shape": [1], "data": [1], "shape": [2]}', "'shape' is given twice"
    ),
    "a key twice: data": value(
        "tensor", '{"shape": [1], "data": [1], "data": [1]}', "'data' is given twice"
    ),
    "a key twice, escaped": value(
        "tensor", r'{"shape": [1], "data": [1], "dat\u0061": [2]}', "'data' is given twice"
    ),
    "a key twice: min": constraints("integer", '{"min": 1, "min": 1}', "'min' is given twice"),
    "a map": invalid(
        "RegisterVariable",
        register("new", "map", initial_value=raw("map", '{"a": 1, "a": 2}')),
        "unknown type 'map'",
    ),
    **{
        f"{word}, bare: {type_}": value(type_, content % word, "not valid JSON")
        for word in ("NaN", "Infinity", "-Infinity", "-NaN", "nan")
        for type_, content in {
            "float": "%s",
            "integer": "%s",
            "embedding": "[1, %s]",
            "tensor": '{"shape": [2], "data": [1, %s]}',
        }.items()
    },
    "NaN, bare: a shape": tensor("[NaN]", "[1]", "not valid JSON"),
    "NaN, bare: min": constraints("float", '{"min": NaN}', "JSON"),
    **{
        f"shape {shape[:30]}": tensor(shape, data, *words)
        for data in ("[1]", "[]")
        for shape, words in {
            f"[{2**62}, 4]": ("2^48",),
            "[4294967296, 4294967296, 0]": ("2^48",),
            "[281474976710656, 2]": ("2^48",),
            "[0, 1e30]": ("shape",),
            f"[0, {10**30}]": ("shape",),
            "[-1]": ("negative extent",),
            "[-1, -1]": ("negative extent",),
            str([1] * 100): ("100 dimensions", "32"),
            "[1.0]": ("shape",),
            "[true]": ("true or false in its shape",),
            "[null]": ("shape",),
            '["1"]': ("shape",),
            "{}": ("shape is no list",),
        }.items()
    },
    "shape of 100 dimensions as a constraint": constraints(
        "tensor", json.dumps({"shape": [1] * 100}), "100 dimensions", "32"
    ),
}


ALTERNATIVES = "|".join(f"w{n}" for n in range(190))

PATTERNS: dict[str, Item] = {
    "(a+)+$ against 100 kB": invalid(
        "SetVariable",
        setting("trap", packed("a" * 100_000 + "!", "string")),
        "'trap'",
        "does not match pattern '^(a+)+$'",
    ),
    "(a+)+$ against 10 MB": invalid(
        "SetVariable", setting("trap", packed("a" * 10_000_000 + "!", "string")), "'trap'"
    ),
    "a{1000}{1000}": pattern("a{1000}{1000}", "a{1000}{1000}", "1000"),
    "((a{0,100}){0,100}){0,100}": pattern("((a{0,100}){0,100}){0,100}", "1000"),
    r"\pL{1000}": pattern(r"\pL{1000}", "too large"),
    "(.*){50}x against 100 kB": pattern("(.*){50}x", "(.*){50}x", text="a" * 100_000),
    "(.*){1000}x against 100 kB": pattern("(.*){1000}x", "100000 bytes", text="a" * 100_000),
    "alternatives against 100 kB": pattern(f"^({ALTERNATIVES})$", text="w" * 100_000),
    "alternatives, huge": pattern("|".join(f"w{n}" for n in range(8_000)), "characters", "1000"),
    "64 KiB": pattern("a" * 65_520, "characters", "1000"),
    "more than 64 KiB": constraints("string", json.dumps({"pattern": "a" * 65_536}), "65536"),
    "parentheses": pattern("(" * 1_000, "RE2"),
    "a backreference": pattern(r"(a*)*\1", "no backreferences"),
    "lookahead": pattern("(?=(a+)+$)", "no lookaround"),
    "NUL": pattern("\0", "\\x00"),
    "a list pattern of 10 MB": invalid("ListVariables", {"pattern": LONG}, "1024"),
    "a list pattern of stars": Item("ListVariables", {"pattern": "*a" * 512}, "OK"),
    "a list pattern of brackets": Item("ListVariables", {"pattern": "[!a-" * 256}, "OK"),
    "a list pattern with NUL": Item("ListVariables", {"pattern": "*\0\n\x1b[0m"}, "OK"),
}


def binary(type_: str, about: object, content: bytes, *words: str, form: str = ".binary") -> Item:
    """A set in binary form, refused with what to send instead."""
    head = about if isinstance(about, str) else json.dumps(about)
    return invalid(
        "SetVariable",
        setting(type_, raw(type_, head, form), binary_value=content),
        f"'{type_}'",
        *words,
    )


def npy(header: str) -> bytes:
    """Give a NumPy file with any header, and no data."""
    text = header.encode()
    return b"\x93NUMPY\x02\x00" + len(text).to_bytes(4, "little") + text


def npy_of_objects() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([1.0, 2.0], dtype=object), allow_pickle=True)
    return file.getvalue()


RAW = {"shape": [2], "dtype": "float64", "binary_format": "raw"}
NPY = {"shape": [2], "dtype": "float64", "binary_format": "npy"}
TWO = bytes(16)

BINARY: dict[str, Item] = {
    **{
        f"{form}: {type_}": binary(
            type_, {**RAW, "binary_format": form}, pickle.dumps([1.0, 2.0]), "send"
        )
        for form in ("pickle", "erlang_binary")
        for type_ in ("embedding", "tensor")
    },
    **{
        f"{what}: {type_}": binary(type_, about, content)
        for type_ in ("embedding", "tensor")
        for what, about, content in (
            ("no bytes", RAW, b""),
            ("too few bytes", RAW, TWO[1:]),
            ("too many bytes", RAW, TWO + b"1"),
            ("an unknown dtype", {**RAW, "dtype": "complex128"}, TWO),
            ("dtype object", {**RAW, "dtype": "object"}, TWO),
            ("a dtype that is none", {**RAW, "dtype": ["float64"]}, TWO),
            ("an unknown format", {**RAW, "binary_format": "parquet"}, TWO),
            ("no shape", {"dtype": "float64", "binary_format": "raw"}, TWO),
            ("a shape that overflows", {**RAW, "shape": [2**62, 4]}, TWO),
            ("a negative shape", {**RAW, "shape": [-2]}, TWO),
            ("two negatives", {**RAW, "shape": [-1, -2]}, TWO),
            ("a shape of 100 dimensions", {**RAW, "shape": [1] * 100}, bytes(8)),
            ("JSON that is none", "{", TWO),
            ("JSON without end", "[" * DEEP, TWO),
            ("bytes that are no npy", NPY, TWO),
            ("a pickle for npy", NPY, pickle.dumps([1.0, 2.0])),
            ("an npy of objects", NPY, npy_of_objects()),
            ("an npy header without end", NPY, npy("(" * 60_000)),
            (
                "an npy of 2^62",
                NPY,
                npy(f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({2**62},), }}\n"),
            ),
        )
    },
    "no binary form": binary("integer", RAW, TWO),
    "bytes beside JSON": invalid(
        "SetVariable",
        setting("integer", packed(1), binary_value=TWO),
        "16 binary bytes",
        "leave them out",
    ),
    "10 MB beside JSON": invalid(
        "RegisterVariable",
        register("new", initial_binary_value=bytes(10_000_000)),
        "10000000 binary bytes",
    ),
    "an unknown type_url": invalid(
        "SetVariable",
        setting("integer", AnyMessage(type_url="example.com/a", value=b"1")),
        "example.com/a",
        "dspex.variables/integer",
    ),
    "no type_url": invalid(
        "SetVariable", setting("integer", AnyMessage(value=b"1")), "type_url is empty"
    ),
    "an empty Any": invalid("SetVariable", setting("integer", AnyMessage()), "missing"),
    **{
        f"a type_url of 10 MB after {prefix!r}": invalid(
            "SetVariable",
            setting("integer", AnyMessage(type_url=prefix + LONG, value=b"1")),
            "type_url",
            "dspex.variables/integer",
        )
        for prefix in ("", "dspex.variables/", "type.googleapis.com/snakepit.")
    },
    "binary.binary": binary("embedding", RAW, TWO, form=".binary.binary"),
}

OF_A_VARIABLE: dict[str, Fields] = {
    "GetVariable": {},
    "SetVariable": {"value": packed(1)},
    "DeleteVariable": {},
    "GetVariableHistory": {},
    "RollbackVariable": {"target_version": 1},
}
WRITES = (
    "InitializeSession",
    "CleanupSession",
    "RegisterVariable",
    "SetVariable",
    "SetVariables",
    "DeleteVariable",
    "RollbackVariable",
)
STARTS: dict[str, Fields] = {"InitializeSession": {}, "RegisterVariable": register()}
NEEDS_SESSION = ("GetSession", "ListVariables", "GetVariables", "SetVariables", *OF_A_VARIABLE)
NO_LETTERS = {"NUL": "\0", "a newline": "\n", "escape": "\x1b", "DEL": "\x7f", "C1": "\x85"}

STRINGS: dict[str, Item] = {
    "10 MB: name": invalid("RegisterVariable", register(LONG), "name", "256 bytes"),
    "10 MB: type": invalid("RegisterVariable", register(type_=LONG), "unknown type"),
    "10 MB: constraints": invalid(
        "RegisterVariable", register(constraints_json=LONG), "10000000 bytes", "65536"
    ),
    **{
        f"10 MB: identifier, {method}": Item(
            method,
            {"variable_identifier": LONG, **fields},
            "NOT_FOUND",
            ("variable 'xxx", "not found"),
        )
        for method, fields in OF_A_VARIABLE.items()
    },
    "10 MB: identifier in a batch": Item("GetVariables", {"variable_identifiers": [LONG]}, "OK"),
    "10 MB: key in a batch": invalid("SetVariables", {"updates": {LONG: packed(1)}}, "not found"),
    **{
        f"10 MB: session id, {method}": Item(
            method, {"session_id": LONG}, "NOT_FOUND", ("session 'xxx", "not found")
        )
        for method in NEEDS_SESSION
    },
    **{
        f"10 MB: session id, {method}": Item(method, {"session_id": LONG}, "OK")
        for method in ("CleanupSession", "Heartbeat")
    },
    **{
        f"session id of {what}, {method}": invalid(
            method,
            {"session_id": id_, **fields},
            "session_id",
            *words,
        )
        for method, fields in STARTS.items()
        for what, id_, words in (
            ("10 MB", LONG, ("256 bytes",)),
            *((name, f"a{text}", ("control character",)) for name, text in NO_LETTERS.items()),
        )
    },
    **{
        f"name with {what}": invalid(
            "RegisterVariable",
            register(f"a{text}"),
            "name",
            "control character",
        )
        for what, text in NO_LETTERS.items()
    },
    **{
        f"10 MB: request id, {method}": invalid(
            method, {"request_id": LONG}, "request_id", "256 bytes"
        )
        for method in WRITES
    },
    **{
        f"request id with {what}": Item(
            "SetVariable", setting("integer", packed(1), request_id=text), "OK", events=1
        )
        for what, text in NO_LETTERS.items()
    },
    **{
        f"10 MB: log_epoch, {method}": Item(
            method,
            {"log_epoch": LONG, **fields},
            "FAILED_PRECONDITION",
            ("log_epoch 'xxx", "'victim'"),
        )
        for method, fields in {
            method: OF_A_VARIABLE.get(method, {}) for method in sorted({*WRITES, *NEEDS_SESSION})
        }.items()
    },
    **{
        f"{what}: page token, {method}": invalid(
            method,
            {"variable_identifier": "integer", "page_token": token}
            if method == "GetVariableHistory"
            else {"page_token": token},
            "page_token",
        )
        for method in ("ListVariables", "GetVariableHistory")
        for what, token in {
            "10 MB": LONG,
            "forged": f"{'0' * 16}:{'0' * 16}:1:1",
            "forged, of a far offset": f"{'f' * 16}:{'f' * 16}:{'9' * 19}:{'9' * 10}",
            "control characters": "\0\n\x1b",
            "of 100,000 digits": f"{'0' * 16}:{'0' * 16}:{DIGITS}:1",
        }.items()
    },
    "10 MB: expected_versions": invalid(
        "SetVariables",
        {"updates": {"integer": packed(1)}, "expected_versions": {LONG: 1}},
        "expected_versions",
    ),
    "10 MB: binary_updates": invalid(
        "SetVariables",
        {"updates": {"integer": packed(1)}, "binary_updates": {LONG: b"1"}},
        "binary_updates",
    ),
}

NUMBERS: dict[str, Item] = {
    **{
        f"expected_version {version}: {method}": invalid(
            method,
            {
                "variable_identifier": "integer",
                "expected_version": version,
                **OF_A_VARIABLE[method],
            },
            f"expected_version {version}",
            "negative",
        )
        for method in ("SetVariable", "DeleteVariable", "RollbackVariable")
        for version in (-1, -(2**31))
    },
    **{
        f"target_version {version}": Item(
            "RollbackVariable",
            {"variable_identifier": "tensor", "target_version": version},
            "NOT_FOUND",
            (f"version {version}", "'tensor'", "1 to 1"),
        )
        for version in (0, -1, LAST, -LAST - 1)
    },
    "100,000 names to read": Item(
        "GetVariables",
        {"variable_identifiers": [f"x{n}" for n in range(100_000)]},
        "RESOURCE_EXHAUSTED",
        ("100000", "10000"),
    ),
    **{
        f"100,000 names to set, atomic={atomic}": Item(
            "SetVariables",
            {
                "updates": {f"x{n}": packed(1) for n in range(100_000)},
                "atomic": atomic,
            },
            "RESOURCE_EXHAUSTED",
            ("100000", "10000"),
        )
        for atomic in (True, False)
    },
    "a variable by name and id": invalid(
        "SetVariables",
        {"updates": {"integer": packed(1), "var_integer_3": packed(1)}},
        "'integer' and 'var_integer_3' are the same variable",
    ),
    **{
        f"page_size -1: {method}": invalid(method, {"page_size": -1, **fields}, "page_size -1")
        for method, fields in {
            "ListVariables": {},
            "GetVariableHistory": {"variable_identifier": "integer"},
        }.items()
    },
    "page_size 2^31-1": Item("ListVariables", {"page_size": LAST}, "OK"),
    "limit and page_size 2^31-1": Item(
        "GetVariableHistory",
        {"variable_identifier": "integer", "page_size": LAST, "limit": LAST},
        "OK",
    ),
    "limit -1": invalid(
        "GetVariableHistory", {"variable_identifier": "integer", "limit": -1}, "limit -1"
    ),
    **{
        f"min_offset 2^64-1: {method}": Item(
            method,
            {"min_offset": 2**64 - 1, **fields},
            "OUT_OF_RANGE",
            (str(2**64 - 1), "future"),
        )
        for method, fields in {
            "GetSession": {},
            "ListVariables": {},
            "GetVariables": {},
            "GetVariable": {"variable_identifier": "integer"},
            "GetVariableHistory": {"variable_identifier": "integer"},
        }.items()
    },
}


RUNS = ("ExecuteTool", "ExecuteStreamingTool")
VALUE = "type.googleapis.com/google.protobuf.Value"


def argument(url: str, content: bytes | str, *words: str, **fields: Any) -> Item:  # noqa: ANN401
    """The argument of a tool that takes anything, refused before it runs."""
    content = content if isinstance(content, bytes) else content.encode()
    asked = running("describe", value=AnyMessage(type_url=url, value=content))
    return invalid("ExecuteTool", {**asked, **fields}, "'value'", *words)


def nested_value(depth: int) -> bytes:
    """Encode a ``google.protobuf.Value`` of lists in each other."""
    content = b""
    for _ in range(depth):
        content = field(6, field(1, content))
    return content


TOOL_CALLS: dict[str, Item] = {
    **{
        f"10 MB: tool name, {method}": Item(
            method, running(LONG), "NOT_FOUND", ("tool 'xxx", "not found")
        )
        for method in (*RUNS, "ExecuteElixirTool")
    },
    **{
        f"10 MB: {what}, {method}": invalid(method, fields, *words)
        for method in RUNS
        for what, fields, words in (
            ("name of an argument", running("add", **{LONG: 1}), ("'add'", "no parameter 'xxx")),
            ("text for an integer", running("add", a=LONG), ("'a'", "an integer")),
            ("a choice", running("typed", mode=LONG), ("'mode'",)),
            ("text for an array", running("norm", vector=LONG), ("'vector'",)),
            ("request id", {**running("add", a=1), "request_id": LONG}, ("request_id", "256")),
            (
                "session id",
                {**running("add", a=1), "session_id": LONG},
                ("session_id", "256 bytes"),
            ),
        )
    },
    **{
        f"10 MB: log_epoch, {method}": Item(
            method,
            {**running("add", a=1), "log_epoch": LONG},
            "FAILED_PRECONDITION",
            ("log_epoch 'xxx", "'victim'"),
        )
        for method in RUNS
    },
    "10 MB: an argument": Item(
        "ExecuteTool", running("anything", a=LONG), "OK", events=2, large_values=1
    ),
    "10 MB: an argument in bytes": Item(
        "ExecuteTool",
        {**running("anything"), "binary_parameters": {"a": bytes(10_000_000)}},
        "OK",
        events=2,
        large_values=1,
    ),
    "no name of an argument": invalid("ExecuteTool", running("anything", **{"": 1}), "''"),
    "a session as an argument": invalid(
        "ExecuteTool", running("set_variable", session="s", name="x", value=1), "'session'"
    ),
    "an attribute as an argument": invalid(
        "ExecuteTool", running("add", a=1, __class__="int"), "'__class__'"
    ),
    **{
        f"{what}: {url.rpartition('.')[2]}": argument(url, content, words)
        for url in (STRING_VALUE, VALUE)
        for what, content, words in (
            ("deep argument", "[" * DEEP, "strict JSON"),
            ("deep argument, closed", "[" * DEEP + "]" * DEEP, "strict JSON"),
            ("deep objects as an argument", '{"a":' * DEEP + "1" + "}" * DEEP, "strict JSON"),
            ("NaN as an argument", "NaN", "strict JSON"),
            ("1e999999 as an argument", "1e999999", "strict JSON"),
            ("100,000 digits as an argument", DIGITS, "4300"),
            ("a key twice in an argument", '{"a": 1, "a": 2}', "'a' is given twice"),
            ("surrogate in an argument", r'"\ud800"', "strict JSON"),
            ("surrogate bytes in an argument", b'"\xed\xa0\x80"', "strict JSON"),
        )
    },
    "a Value of 5,000 lists": argument(VALUE, nested_value(5_000), "strict JSON"),
    **{
        f"{what} as an argument": argument(
            "dspex.variables/tensor.binary",
            json.dumps(about),
            binary_parameters={"value": content},
        )
        for what, about, content in (
            ("a pickle", {**RAW, "binary_format": "pickle"}, pickle.dumps([1.0, 2.0])),
            ("a pickle for npy", NPY, pickle.dumps([1.0, 2.0])),
            ("an npy of objects", NPY, npy_of_objects()),
            ("too few bytes", RAW, TWO[1:]),
            ("no bytes", RAW, b""),
            ("a shape that overflows", {**RAW, "shape": [2**62, 4]}, TWO),
        )
    },
    "10 MB beside JSON, as an argument": argument(
        STRING_VALUE, "1", "10000000 binary bytes", binary_parameters={"value": bytes(10_000_000)}
    ),
    "10 MB: name of a registered tool": invalid(
        "RegisterTools", {"tools": [{"name": LONG}]}, "name of a tool", "256 bytes"
    ),
    "10 MB: worker id": invalid(
        "RegisterTools", {"tools": [{"name": "t"}], "worker_id": LONG}, "worker_id", "256 bytes"
    ),
    "10 MB: description of a tool": Item(
        "RegisterTools",
        {"tools": [{"name": "t", "description": LONG}]},
        "RESOURCE_EXHAUSTED",
        ("'t'", "65536"),
    ),
    "100,000 registered tools": Item(
        "RegisterTools",
        {"tools": [{"name": f"t{n}"} for n in range(100_000)]},
        "RESOURCE_EXHAUSTED",
        ("100000", "1000"),
    ),
}


ITEMS = {**JSON, **PATTERNS, **BINARY, **STRINGS, **NUMBERS, **TOOL_CALLS}


def answered(victim: Victim, item: Item) -> None:
    """Send an item, and compare the answer and the log with what it says."""
    before = victim.state()
    request = message_of(item.method, **{"session_id": victim.session.id, **item.fields})
    answer = victim.send(item.method, request.SerializeToString())
    assert answer.code == item.code, answer
    for word in item.words:
        assert word in answer.message
    assert victim.state() == before._replace(
        head=before.head + item.events,
        records=before.records + item.events,
        large_values=before.large_values + item.large_values,
    )


@pytest.mark.parametrize("item", ITEMS.values(), ids=ITEMS.keys())
def test_a_hostile_request_is_refused_and_changes_nothing(victim: Victim, item: Item) -> None:
    answered(victim, item)


@pytest.mark.parametrize("atomic", [True, False], ids=["atomic", "loose"])
def test_a_negative_version_in_a_batch_is_a_fault_of_its_key(victim: Victim, atomic: bool) -> None:
    before = victim.state()
    response = victim.session.set_many(
        {"integer": packed(1)}, expected_versions={"integer": -1}, atomic=atomic
    )
    assert (response.success, list(response.errors)) == (not atomic, ["integer"])
    assert "expected_version -1" in response.errors["integer"]
    assert "negative" in response.errors["integer"]
    assert victim.state() == before


SMALL_PARTS = {"{}": 2_600_000, "[]": 2_600_000, '{"a":{"b":{}}}': 530_000, '"NaN"': 1_300_000}
"""What is short in JSON and long in memory, and how many of it are 8 MB."""


@pytest.mark.parametrize("type_", ["embedding", "tensor"])
@pytest.mark.parametrize("part", SMALL_PARTS)
def test_what_is_large_only_when_it_is_read_is_not_read(
    victim: Victim, part: str, type_: str
) -> None:
    listed = "[" + ",".join([part] * SMALL_PARTS[part]) + "]"
    # Never of the shape that is claimed, in case the parts could be numbers.
    content = f'{{"shape": [1], "data": {listed}}}' if type_ == "tensor" else f"[{listed}]"
    answered(victim, value(type_, content))


METADATA: dict[str, dict[str, str]] = {
    "a value of 10 MB": {"k": LONG},
    "a key of 10 MB": {LONG: "v"},
    "100,000 keys of 100 bytes": {f"{n:0100}": "" for n in range(100_000)},
    "a source of 10 MB": {"source": LONG},
    "a correlation id of 10 MB": {"correlation_id": LONG},
}


@pytest.mark.parametrize("method", ["SetVariable", "InitializeSession", *RUNS])
@pytest.mark.parametrize("metadata", METADATA.values(), ids=METADATA.keys())
def test_metadata_of_10_mb_is_refused(
    victim: Victim, method: str, metadata: dict[str, str]
) -> None:
    """Every later version, event and read would repeat it."""
    fields: Fields = {"session_id": "unborn"}
    if method == "SetVariable":
        fields = setting("integer", packed(2), session_id=victim.session.id)
    elif method in RUNS:
        fields = running("add", a=1)
        fields["session_id"] = victim.session.id
    before = victim.state()
    request = message_of(method, **fields, metadata=metadata)
    answer = victim.send(method, request.SerializeToString())
    assert answer.code in ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED")
    assert "metadata" in answer.message
    assert victim.state() == before
