"""Strict JSON: the same rules wherever JSON comes in, and no way around them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from snakepit_bridge.errors import InvalidConstraints, InvalidValue
from snakepit_bridge.strict_json import MAX_DEPTH, integer, parse
from snakepit_bridge.tool_values import decode_argument, encode_result
from snakepit_bridge.type_serialization import accept, to_python
from snakepit_bridge.variables import parse_constraints
from tests.value_checks import (
    ALL_TYPES,
    MOST_WORDS,
    PROTOBUF_VALUE,
    STRING_VALUE,
    label,
    refusal,
    stored,
)


def as_argument(type_url: str, text: bytes) -> object:
    message = stored(encode_result(None))
    message.type_url, message.value = type_url, text
    return decode_argument(message.SerializeToString())


def read_as(type_name: str) -> Callable[[bytes], object]:
    return lambda text: accept(type_name, f"dspex.variables/{type_name}", text)[0]


READERS: dict[str, Callable[[bytes], object]] = {
    **{name: read_as(name) for name in ALL_TYPES},
    "parse": parse,
    "constraints": lambda text: parse_constraints(
        "string", text.decode("utf-8", "surrogateescape")
    ),
    "binary tensor": lambda text: accept("tensor", "dspex.variables/tensor.binary", text, b"x"),
    "binary embedding": lambda text: accept(
        "embedding", "dspex.variables/embedding.binary", text, b"x"
    ),
    "StringValue": lambda text: as_argument(STRING_VALUE, text),
    "Value": lambda text: as_argument(PROTOBUF_VALUE, text),
    "argument": lambda text: as_argument("type.googleapis.com/snakepit.map", text),
}

DIGITS = b"1" * 100_000

# No JSON text at all, or one that strict readers refuse: no reader takes any of these, whatever
# it expects. Each also stands inside of lists and objects below.
BROKEN = [
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"nan",
    b"1e999999",
    b"-1e400",
    b"1" * 310 + b".5",
    b"01",
    b"-01",
    b"+1",
    b".5",
    b"5.",
    b"1e",
    b"0x10",
    b"1_000",
    b"--1",
    b"-",
    b"True",
    b"None",
    b"undefined",
    b"tru",
    b'"\\ud800"',
    b'"\\udc00"',
    b'"\\ud800\\ud800"',
    b'"\\udc00\\ud800"',
    b'"\\ud800x"',
    b'"\\ud83d\\u0041"',
    b'"\xff"',
    b'"\xc0\x80"',
    b'"\xed\xa0\x80"',
    b'"\xf4\x90\x80\x80"',
    b'"a\nb"',
    b'"a\x00b"',
    b'"a\x1fb"',
    b'"\\x41"',
    b'"\\u12"',
    b'"\\',
    b'"',
    b"'a'",
    b"\xef\xbb\xbf1",
    b"\xff\xfe1\x00",
    b"\x00",
    b"\xa01",
    b"\x0c1",
    b"// c\n1",
    b"/* c */1",
    b"[1,]",
    b"[,1]",
    b"[1 2]",
    b"[1}",
    b'{"a":1,}',
    b'{"a" 1}',
    b"{a:1}",
    b"{1:1}",
    b'{"a":1,"a":1}',
    b'{"a":1,"\\u0061":1}',
    b'{"":1,"":2}',
    b'{"a":{"b":[{"c":1,"c":2}]}}',
    b'{"\\ud800":1}',
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"[" * 100_000 + b"]" * 100_000,
    b"[" * 1025 + b"]" * 1025,
    b"-" + DIGITS + b"x",
]

# Fine for some readers, for others not.
TOO_MUCH = [
    b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
    b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1),
    b"[" + DIGITS + b"]",
    b'{"a":' + DIGITS + b"}",
    b"[-" + b"9" * 4301 + b"]",
    b"",
    b" ",
    b"1 2",
    b"1,2",
    b"[1] []",
    b"[1]\x00",
    b'"a" "b"',
    b"{}x",
]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("text", BROKEN, ids=label)
def test_what_is_not_strict_json_is_refused_everywhere(reader: str, text: bytes) -> None:
    read = READERS[reader]
    began = time.perf_counter()
    for whole in (text, b"[" + text + b"]", b'{"a":' + text + b"}", text + b" ", b"\n" + text):
        try:
            read(whole)
        except (InvalidValue, InvalidConstraints) as error:
            words = error.message
        else:
            pytest.fail("it was read")
        assert len(words) < MOST_WORDS
    assert time.perf_counter() - began < 5  # milliseconds; a quadratic reader takes minutes


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("text", TOO_MUCH, ids=label)
def test_too_much_of_it_is_refused_everywhere(reader: str, text: bytes) -> None:
    if reader in {"constraints", "StringValue"} and not text.strip():
        return  # no constraints; an empty StringValue
    with pytest.raises((InvalidValue, InvalidConstraints)):
        READERS[reader](text)


@pytest.mark.parametrize(
    ("type_name", "text"),
    [
        ("embedding", b'["NaN","\\ud800"]'),
        ("embedding", b'["\\ud800NaN"]'),
        ("embedding", b"[1e999]"),
        ("embedding", b"[" + b"1" * 310 + b"]"),
        ("tensor", b'{"shape":[1],"data":["\\ud800"]}'),
        ("tensor", b'{"shape":[1],"data":[1],"\\ud800":1}'),
        ("tensor", b'{"shape":[%b],"data":[1]}' % DIGITS),
        ("tensor", b'{"shape":[1],"data":{"a":1,"a":1}}'),
        ("tensor", b'{"shape":[1e0],"data":[1]}'),
    ],
    ids=label,
)
def test_arrays_leave_no_gap(type_name: str, text: bytes) -> None:
    refusal(lambda: read_as(type_name)(text))


@pytest.mark.parametrize("type_name", ["string", "choice", "module"])
def test_control_characters_may_be_escaped(type_name: str) -> None:
    text = b'"\\u0000\\u001f\\b\\f\\n\\r\\t\\/\x7f\xc2\x80\\ud83d\\ude00\\uffff"'
    typed, value = accept(type_name, f"dspex.variables/{type_name}", text)
    assert typed == "\0\x1f\b\f\n\r\t/\x7f\x80\U0001f600\uffff"
    assert stored(value).value == text
    assert to_python(type_name, value.any) == typed
    assert read_as("map")(b'{"\\u0000":%b}' % text) == {"\0": typed}


@pytest.mark.parametrize(
    "number",
    [
        123456789012345678901234567890,
        -(2**63) - 1,
        2**64,
        10**4299,
        -(10**4300) + 1,
    ],
    ids=label,
)
def test_integers_are_exact(number: int) -> None:
    text = str(number).encode()
    assert read_as("integer")(text) == number
    assert integer(b" " + text + b"\n") == number
    assert parse(text) == number
    assert read_as("list")(b"[%b,{}]" % text) == [number, {}]
    assert read_as("map")(b'{"a":%b}' % text) == {"a": number}
    assert as_argument(STRING_VALUE, text) == number
    assert as_argument(PROTOBUF_VALUE, text) == number


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_the_depth_has_one_limit(opening: bytes) -> None:
    closing = b"]" if opening == b"[" else b"}"
    for inner in (b"1", b'"[[[["', b"[]" if opening != b"[" else b"{}"):
        levels = MAX_DEPTH - (inner in {b"[]", b"{}"})
        parse(opening * levels + inner + closing * levels)
        deeper = opening * MAX_DEPTH + b"[" + inner + b"]" + closing * MAX_DEPTH
        message = refusal(partial(parse, deeper))
        assert "nested deeper than 64 levels" in message


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@settings(deadline=None, max_examples=200)
@given(
    values,
    st.lists(st.tuples(st.integers(0, 120), st.integers(0, 2), st.binary(max_size=4)), max_size=3),
)
@example({"a": 1}, [(5, 0, b',"a":2')])
@example([1], [(1, 1, b"1e999")])
def test_what_is_read_is_read_the_same_by_the_standard_parser(
    value: object, damage: list[tuple[int, int, bytes]]
) -> None:
    text = json.dumps(value).encode()
    for place, cut, put in damage:
        text = text[:place] + put + text[place + cut :]

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs), "a key is given twice"
        return dict(pairs)

    try:
        read = parse(text)
    except InvalidValue:
        return
    reference = json.loads(text, object_pairs_hook=unique, parse_constant=pytest.fail)
    assert repr(read) == repr(reference)
    json.dumps(read, ensure_ascii=False, allow_nan=False).encode()
