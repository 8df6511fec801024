"""Arguments and results of tools, and the maps and lists that they are made of."""

from __future__ import annotations

import enum
import json
import math
from collections import OrderedDict, namedtuple
from functools import partial
from typing import Any

import numpy as np
import pytest
from google.protobuf import any_pb2, struct_pb2, wrappers_pb2
from google.protobuf.message import Message
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from snakepit_bridge.strict_json import parse
from snakepit_bridge.tool_values import decode_argument, encode_result
from snakepit_bridge.type_serialization import (
    DSPEX_PREFIX,
    TypeSerializer,
    encode,
    infer_type,
    to_python,
)
from tests.value_checks import (
    PREFIXES,
    PROTOBUF_VALUE,
    STRING_VALUE,
    label,
    refusal,
    same,
    stored,
)


class Colour(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


Point = namedtuple("Point", "x y")  # noqa: PYI024 - untyped, as tools return them


def sent(type_url: str, content: bytes) -> bytes:
    return any_pb2.Any(type_url=type_url, value=content).SerializeToString()


def packed(message: Message) -> bytes:
    """Pack a message as protobuf's own ``Any.Pack`` does."""
    wrapped = any_pb2.Any()
    wrapped.Pack(message)
    return wrapped.SerializeToString()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([math.nan, math.inf, -math.inf, -0.0], b'["NaN","Infinity","-Infinity",-0.0]'),
        ([np.float32("nan"), np.float16("-inf")], b'["NaN","-Infinity"]'),
        ([np.array([1.5, math.nan]), np.array([[1], [2]])], b'[[1.5,"NaN"],[[1],[2]]]'),
        ([np.array(3), np.array([True]), np.array(["a"])], b'[3,[true],["a"]]'),
        ([np.array([None, math.inf, "x"], dtype=object)], b'[[null,"Infinity","x"]]'),
        ([np.zeros((2, 0)), np.array([2**64 - 1], np.uint64)], b"[[[],[]],[18446744073709551615]]"),
        ([np.int8(-1), np.uint64(2**63), np.bool_(True)], b"[-1,9223372036854775808,true]"),
        ([np.longdouble(0.5), np.array([0.5], np.longdouble)], b"[0.5,[0.5]]"),
        ([10**30, -(10**40)], b"[%d,%d]" % (10**30, -(10**40))),
        ([None, True, "", "NaN", "\0"], b'[null,true,"","NaN","\\u0000"]'),
        ([(1, 2), Point(1, 2), [], ()], b"[[1,2],[1,2],[],[]]"),
        ([Colour.RED, Level.HIGH, np.str_("x")], b'["red",3,"x"]'),
        ({}, b"{}"),
        ({"a": {"b": [math.nan]}, "": None}, b'{"a":{"b":["NaN"]},"":null}'),
        ({Colour.RED: 1, np.str_("x"): 2}, b'{"red":1,"x":2}'),
        (OrderedDict(b=1, a=2), b'{"b":1,"a":2}'),
        ({"é": "\U0001f600"}, '{"é":"\U0001f600"}'.encode()),
        ([np.arange(4.0)[::2], np.arange(4, dtype=">i4")], b"[[0.0,2.0],[0,1,2,3]]"),
    ],
    ids=label,
)
def test_maps_and_lists_are_written_as_strict_json(value: Any, text: bytes) -> None:  # noqa: ANN401
    name = "map" if isinstance(value, dict) else "list"
    typed, made = encode(name, value)
    assert stored(made).value == text
    assert same(typed, parse(text))
    assert same(to_python(name, made.any), typed)
    assert encode_result(value) == made
    assert same(decode_argument(made.any), typed)


def nested(levels: int, kind: str) -> Any:  # noqa: ANN401
    value: Any = [] if kind == "list" else {}
    for _ in range(levels - 1):
        value = [value] if kind == "list" else {"a": value}
    return value


@pytest.mark.parametrize("kind", ["list", "map"])
def test_what_is_written_can_be_read_to_the_last_level(kind: str) -> None:
    made = encode(kind, nested(64, kind))[1]
    assert same(to_python(kind, made.any), nested(64, kind))
    for deeper in (nested(65, kind), nested(5000, kind)):
        assert "nested deeper than 64" in refusal(partial(encode, kind, deeper))
    with_array = nested(63, kind)
    innermost = with_array
    while innermost:
        innermost = innermost[0] if kind == "list" else innermost["a"]
    innermost.append(np.eye(1)) if kind == "list" else innermost.update(a=np.eye(1))
    assert "nested deeper than 64" in refusal(partial(encode, kind, with_array))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([b"x"], "bytes inside"),
        ([{1}], "set inside"),
        ([object()], "object inside"),
        ([1j], "complex inside"),
        ([np.complex64(1)], "complex64 inside"),
        ([np.timedelta64(1, "s")], "timedelta64 inside"),
        ([np.datetime64(1, "s")], "datetime64 inside"),
        ([np.array([1], "m8[ns]")], "an array of dtype timedelta64[ns] inside"),
        ([np.array([1], "M8[ns]")], "an array of dtype datetime64[ns] inside"),
        ([np.array([1j])], "an array of dtype complex128 inside"),
        ([np.array([b"x"])], "an array of dtype |S1 inside"),
        ([np.array([{1}], dtype=object)], "set inside"),
        ([10**4300], "more than 4300 digits inside"),
        (["\ud800"], "lone surrogate inside"),
        ([np.array(["\ud800"])], "lone surrogate inside"),
        ([{"\ud800": 1}], "lone surrogate inside"),
        ([{1: 2}], "keys that are not strings"),
        ([{None: 2}], "keys that are not strings"),
        ([{b"a": 2}], "keys that are not strings"),
        ([{("a",): 2}], "keys that are not strings"),
    ],
    ids=label,
)
def test_what_json_has_not_is_refused(value: list[Any], words: str) -> None:
    for name, whole in (("list", value), ("map", {"a": value})):
        message = refusal(partial(encode, name, whole))
        assert message.startswith(f"a value of type {name} must be ")
        assert words in message
        assert refusal(partial(encode_result, whole)) == message


@pytest.mark.parametrize(
    ("value", "type_name"),
    [
        (True, "boolean"),
        (np.False_, "boolean"),
        (3, "integer"),
        (10**40, "integer"),
        (Level.HIGH, "integer"),
        (np.uint8(3), "integer"),
        (0.5, "float"),
        (math.nan, "float"),
        (np.float16(0.5), "float"),
        (np.longdouble(0.5), "float"),
        ("", "string"),
        (Colour.RED, "string"),
        (np.str_("x"), "string"),
        (np.zeros(3), "tensor"),
        (np.zeros(3, np.int8), "tensor"),
        (np.array(5), "tensor"),
        (np.zeros((2, 2)), "tensor"),
        ([1, 2], "list"),
        ((), "list"),
        ({}, "map"),
    ],
    ids=label,
)
def test_types_are_inferred(value: object, type_name: str) -> None:
    assert infer_type(value) == type_name
    made = encode_result(value)
    assert made == encode(type_name, value)[1]
    assert stored(made).type_url == DSPEX_PREFIX + type_name
    assert TypeSerializer.serialize_value(value) == stored(made)
    assert TypeSerializer.serialize_with_binary(value) == (stored(made), b"")
    expected = to_python(type_name, made.any)
    assert same(decode_argument(made.any), expected)
    assert same(TypeSerializer.deserialize_value(stored(made)), expected)


@pytest.mark.parametrize(
    "value", [{1}, object(), 1j, np.complex64(1), np.timedelta64(1, "s"), iter([]), int]
)
def test_what_has_no_type_is_refused(value: object) -> None:
    for act in (infer_type, encode_result, TypeSerializer.serialize_value):
        message = refusal(partial(act, value))
        assert "has no type of its own: give a bool, int, float, str, list" in message


def test_none_is_null_as_snakepit_writes_nil() -> None:
    made = encode_result(None)
    assert stored(made) == any_pb2.Any(type_url=STRING_VALUE, value=b"null")
    assert decode_argument(made.any) is None
    assert "None has no type of its own" in refusal(partial(infer_type, None))


def test_large_arrays_are_results_too() -> None:
    array = np.arange(70_000, dtype=np.float32).reshape(2, 35_000)
    made = encode_result(array)
    assert stored(made).type_url == DSPEX_PREFIX + "tensor.binary"
    assert same(decode_argument(made.any, made.binary), array)
    message, binary = TypeSerializer.serialize_with_binary(array)
    assert (message, binary) == (stored(made), made.binary)
    assert same(TypeSerializer.deserialize_value(message, binary=binary), array)
    assert same(
        TypeSerializer.deserialize_value(TypeSerializer.serialize_value(array)),
        array.astype(np.float64),
    )


@pytest.mark.parametrize(
    ("type_url", "content", "expected"),
    [
        # Snakepit's Elixir side: JSON under the name of StringValue.
        (STRING_VALUE, b'{"a":[1,null,0.5]}', {"a": [1, None, 0.5]}),
        (STRING_VALUE, b"null", None),
        (STRING_VALUE, b"true", True),
        (STRING_VALUE, b"3", 3),
        (STRING_VALUE, b"3.0", 3.0),
        (STRING_VALUE, b"-0.0", -0.0),
        (STRING_VALUE, b'"NaN"', "NaN"),
        (STRING_VALUE, b'""', ""),
        (STRING_VALUE, b" [] ", []),
        (STRING_VALUE, b"\n[1]", [1]),
        (STRING_VALUE, b'\n"hello"', "hello"),
        (STRING_VALUE, b'{"shape":[1],"data":[1]}', {"shape": [1], "data": [1]}),
        # Its Python side: numbers as JSON under the name of Value.
        (PROTOBUF_VALUE, b"0.7", 0.7),
        (PROTOBUF_VALUE, b"20", 20),
        (PROTOBUF_VALUE, b"2" + b"0" * 49, 2 * 10**49),
        (PROTOBUF_VALUE, b"true", True),
        (PROTOBUF_VALUE, b"null", None),
        (PROTOBUF_VALUE, b'"x"', "x"),
        (PROTOBUF_VALUE, b" [1]", [1]),
        *((prefix + "float", b'"NaN"', math.nan) for prefix in PREFIXES),
        *((prefix + "integer", b"3.0", 3) for prefix in PREFIXES),
        *((prefix + "choice", b'"a"', "a") for prefix in PREFIXES),
        *((prefix + "module", b'"A.B"', "A.B") for prefix in PREFIXES),
        *((prefix + "map", b'{"a":"NaN"}', {"a": "NaN"}) for prefix in PREFIXES),
        *((prefix + "embedding", b'[1,"NaN"]', np.array([1, math.nan])) for prefix in PREFIXES),
    ],
    ids=label,
)
def test_arguments_are_decoded(type_url: str, content: bytes, expected: object) -> None:
    assert same(decode_argument(sent(type_url, content)), expected)


@settings(deadline=None)
@given(st.text())
@example("")
@example("[1]")
@example("null")
@example("1" * 32)  # whose length is a space
@example("1" * 49)  # whose length is a digit
@example(json.dumps("x" * 30))
@example('"' + "x" * 33)  # together with its length, which is a quote, the JSON of a string
@example("x" * 200)
def test_a_packed_string_is_that_string(text: str) -> None:
    assert decode_argument(packed(wrappers_pb2.StringValue(value=text))) == text


documents = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=15,
)


def as_message(value: Any) -> struct_pb2.Value:  # noqa: ANN401
    message = struct_pb2.Value()
    if value is None:
        message.null_value = struct_pb2.NULL_VALUE
    elif isinstance(value, bool):
        message.bool_value = value
    elif isinstance(value, str):
        message.string_value = value
    elif isinstance(value, list):
        message.list_value.SetInParent()
        for item in value:
            message.list_value.values.append(as_message(item))
    elif isinstance(value, dict):
        message.struct_value.SetInParent()
        for key, item in value.items():
            message.struct_value.fields[key].CopyFrom(as_message(item))
    else:
        message.number_value = value
    return message


def as_doubles(value: Any) -> Any:  # noqa: ANN401
    """What is left of a document whose numbers are all doubles, keys in order."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
        return value if value == 0 and math.copysign(1, value) < 0 else int(value)
    if isinstance(value, list):
        return [as_doubles(item) for item in value]
    if isinstance(value, dict):
        return {key: as_doubles(value[key]) for key in sorted(value)}
    return value


@settings(deadline=None)
@given(documents)
@example([])
@example({})
@example(False)
@example([[-0.0, 2.0**53, -(2.0**53), 2.0**53 + 2, 1e300, math.nan, math.inf]])
def test_a_packed_value_is_that_value(value: object) -> None:
    read = decode_argument(packed(as_message(value)))
    assert repr(as_doubles(read)) == repr(as_doubles(value))


@settings(deadline=None)
@given(documents)
def test_documents_survive_as_raw_json(value: object) -> None:
    text = json.dumps(value).encode()
    for url in (STRING_VALUE, PROTOBUF_VALUE):
        if b"NaN" in text or b"Infinity" in text:
            continue
        assert same(decode_argument(sent(url, text)), value)


@pytest.mark.parametrize(
    ("argument", "binary", "words"),
    [
        (sent(STRING_VALUE, b"hello"), b"", "neither such a message nor strict JSON"),
        (sent(STRING_VALUE, b"\n\x05hell"), b"", "neither such a message nor strict JSON"),
        (sent(STRING_VALUE, b"\n\x01\xff"), b"", "neither such a message nor strict JSON"),
        (sent(STRING_VALUE, b"NaN"), b"", "neither such a message nor strict JSON"),
        (sent(STRING_VALUE, b'{"a":1,"a":2}'), b"", "the key 'a' is given twice"),
        (sent(STRING_VALUE, b"[" * 100_000), b"", "strict JSON"),
        (sent(STRING_VALUE, b"1" * 100_000), b"", "an integer of 100000 digits"),
        (sent(PROTOBUF_VALUE, b""), b"", "neither such a message nor strict JSON"),
        (sent(PROTOBUF_VALUE, b"NaN"), b"", "neither such a message nor strict JSON"),
        (sent(PROTOBUF_VALUE, b"\x1a\x01\xff"), b"", "neither such a message nor strict JSON"),
        (sent(STRING_VALUE, b"1"), b"x", "1 binary bytes came with type_url"),
        (sent(PROTOBUF_VALUE, b"1"), b"x", "1 binary bytes came with type_url"),
        (sent(DSPEX_PREFIX + "integer", b"1"), b"x", "which is the JSON form: leave them out"),
        (sent(DSPEX_PREFIX + "tensor.binary", b"{}"), b"", "came without its bytes"),
        (sent(DSPEX_PREFIX + "tensor.binary", b"{}"), b"x", "without a binary_format"),
        (sent(DSPEX_PREFIX + "list", b"null"), b"", "must be a list, not null"),
        (sent(DSPEX_PREFIX + "quaternion", b"1"), b"", "registered in this process"),
        (sent("", b"1"), b"", "the value has no type_url"),
        (b"", b"", "the value has no type_url"),
        (b"", b"\x80\x04.", "the value has no type_url"),
        (b"\xff", b"", "not a google.protobuf.Any"),
        (packed(wrappers_pb2.BoolValue(value=True)), b"", "unknown type_url"),
    ],
    ids=label,
)
def test_what_is_no_argument_is_refused(argument: bytes, binary: bytes, words: str) -> None:
    assert words in refusal(partial(decode_argument, argument, binary))


results = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | npst.arrays(
        st.sampled_from(["f2", "f4", "f8", "i1", "u8", "?"]), npst.array_shapes(max_side=3)
    ),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@settings(deadline=None, max_examples=100)
@given(results)
def test_every_result_comes_back(value: object) -> None:
    made = encode_result(value)
    read = decode_argument(made.any, made.binary)
    assert encode_result(read) == made  # once written, nothing changes any more
    out = stored(made).value
    assert out == b"null" if value is None else parse(out) is not None
    if value is None or isinstance(value, bool | int | float | str):
        assert same(read, value)
