"""Values: what is accepted, what is stored, what is refused with which words."""

from __future__ import annotations

import enum
import json
import math
from typing import Any

import numpy as np
import pytest
from google.protobuf import any_pb2, struct_pb2
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from snakepit_bridge.errors import InvalidValue
from snakepit_bridge.events.model import Value, make_value
from snakepit_bridge.strict_json import parse
from snakepit_bridge.type_serialization import (
    DSPEX_PREFIX,
    SNAKEPIT_PREFIX,
    TypeSerializer,
    accept,
    check_type,
    encode,
    to_python,
)
from tests.value_checks import (
    ALL_TYPES,
    PREFIXES,
    PROTOBUF_VALUE,
    VARIABLE_TYPES,
    label,
    refusal,
    same,
    stored,
)


def take(type_name: str, text: bytes) -> tuple[Any, Value]:
    return accept(type_name, DSPEX_PREFIX + type_name, text)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(
    ("type_name", "text", "expected"),
    [
        ("float", b"0.7", 0.7),
        ("float", b"3", 3.0),
        ("float", b" -0 ", -0.0),
        ("float", b" -1e3\n", -1000.0),
        ("float", b"1" * 309, float("1" * 309)),
        ("float", b'"NaN"', math.nan),
        ("float", b'"Infinity"', math.inf),
        ("float", b'"-Infinity"', -math.inf),
        ("integer", b"42", 42),
        ("integer", b"-9007199254740993", -9007199254740993),
        ("integer", b"18446744073709551616", 2**64),
        ("integer", b" -" + b"7" * 4300 + b"\t", -int("7" * 4300)),
        ("string", b'"h\\u00e9llo \\ud83d\\ude00"', "héllo \U0001f600"),
        ("string", b'""', ""),
        ("string", b'"' + b"x" * 200 + b'"', "x" * 200),
        ("boolean", b"true", True),
        ("boolean", b"false", False),
        ("choice", b'"fast"', "fast"),
        ("module", b'"DSPy.ChainOfThought"', "DSPy.ChainOfThought"),
        ("embedding", b"[0.1, 2, -3e-7]", np.array([0.1, 2, -3e-7])),
        ("embedding", b'[1,"NaN","-Infinity"]', np.array([1, math.nan, -math.inf])),
        ("embedding", b"[]", np.array([], dtype=np.float64)),
        ("tensor", b'{"shape":[2,2],"data":[[1,2],[3,4]]}', np.array([[1, 2], [3, 4]])),
        ("tensor", b'{"data":[1,2,3,4],"shape":[2,2]}', np.array([[1, 2], [3, 4]])),
        ("tensor", b'{"shape":[2],"data":[1,2.5]}', np.array([1, 2.5])),
        ("tensor", b'{"shape":[2],"data":[1,"Infinity"]}', np.array([1, math.inf])),
        ("tensor", b'{"shape":[1],"data":[18446744073709551615]}', np.array([2.0**64])),
        ("tensor", b'{"shape":[],"data":[5]}', np.array(5)),
        ("tensor", b'{"shape":[],"data":5.5}', np.array(5.5)),
        ("tensor", b'{"shape":[2,0],"data":[[],[]]}', np.empty((2, 0))),
        ("tensor", b'{"shape":[0,7],"data":[]}', np.empty((0, 7))),
        ("tensor", b'{"sh\\u0061pe":[1],"data":[1]}', np.array([1])),
        ("map", b'{"a":[1,null,{"b":1e5}]}', {"a": [1, None, {"b": 1e5}]}),
        ("list", b"[36893488147419103232]", [2**65]),
        ("list", b"[[[[" * 15 + b"[[[[],[]]]]" + b"]]]]" * 15, None),
    ],
    ids=label,
)
def test_accepted_is_typed_and_stored_as_sent(
    prefix: str, type_name: str, text: bytes, expected: object
) -> None:
    typed, value = accept(type_name, prefix + type_name, text)
    expected = json.loads(text) if expected is None else expected
    assert same(typed, expected)
    assert value == make_value(value.any)
    assert stored(value).type_url == prefix + type_name
    assert stored(value).value == text
    assert value.any == stored(value).SerializeToString()
    assert same(to_python(type_name, value.any, value.binary), expected)
    assert same(TypeSerializer.deserialize_value(stored(value), type_name), expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"3.0", 3),
        (b" 3.0 ", 3),
        (b"-0.0", 0),
        (b"1e3", 1000),
        (b"1e300", 10**300),
        (b"1.5e1", 15),
        (b"9007199254740993.0", 9007199254740993),
        (b"0E0", 0),
    ],
    ids=label,
)
def test_an_integer_with_a_fraction_of_zero_is_stored_as_the_integer(
    text: bytes, expected: int
) -> None:
    typed, value = take("integer", text)
    assert type(typed) is int
    assert typed == expected
    assert stored(value).value == str(expected).encode()


@pytest.mark.parametrize("type_name", ALL_TYPES)
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"NaN", "not valid JSON"),
        (b"[NaN]", "not valid JSON"),
        (b"-Infinity", "not valid JSON"),
        (b"1e999999", "not valid JSON"),
        (b'{"shape":[1],"data":[1e400]}', "not valid JSON"),
        (b'"\\ud800"', "not valid JSON"),
        (b'"\xff"', "UTF-8"),
        (b"\xef\xbb\xbf1", "not valid JSON"),
        (b"1 2", "line 1 column 3"),
        (b"[1] x", "line 1 column 5"),
        (b"01", "not valid JSON"),
        (b"", ""),
        (b" ", "not valid JSON"),
        (b"'a'", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a":' * 100_000, ""),
        (b"[" * 65 + b"]" * 65, ""),
        (b"1" * 100_000, ""),
        (b"-" + b"1" * 100_000 + b"x", "not valid JSON"),
        (b"[" + b"1" * 100_000 + b"]", ""),
        (b'{"shape":[1],"data":[' + b"1" * 5000 + b"]}", ""),
        (b'{"a":1,"a":2}', ""),
        (b'{"shape":[1],"shape":[1],"data":[1]}', ""),
        (b"null", "no null values"),
        (b" null ", "no null values"),
        (b"x" * 100_000, "not valid JSON"),
    ],
    ids=label,
)
def test_hostile_json_is_refused_at_once(type_name: str, text: bytes, words: str) -> None:
    message = refusal(lambda: take(type_name, text))
    assert message.startswith(f"a value of type {type_name} must be ")
    if words != "no null values" or type_name not in {"embedding", "tensor"}:
        assert words in message


@pytest.mark.parametrize(
    ("type_name", "text", "words"),
    [
        ("float", b'"0.7"', """must be a number, or "NaN", "Infinity" or "-Infinity", not '"0."""),
        ("float", b'"nan"', "must be a number"),
        ("float", b'"inf"', "must be a number"),
        ("float", b"true", "must be a number"),
        ("float", b"[1]", "must be a number"),
        ("float", b"1" * 310, "beyond the range of a float"),
        ("float", b"-" + b"1" * 5000, "beyond the range of a float"),
        ("integer", b"1.5", "a value of type integer must be an integer, not '1.5'"),
        ("integer", b'"5"', "must be an integer"),
        ("integer", b"true", "must be an integer, not 'true'"),
        ("integer", b'"NaN"', "must be an integer"),
        ("integer", b"9007199254740993.5", "must be an integer"),
        ("integer", b"1.0000000000000000000001", "must be an integer"),
        ("integer", b"1e-400", "must be an integer"),
        ("integer", b"1e-99999999999999999999", "must be an integer"),
        ("integer", b"1." + b"0" * 5000, "must be an integer"),
        ("integer", b"1" * 4301, "4301 digits: at most 4300 are allowed"),
        ("integer", b"-" + b"9" * 4301, "4301 digits"),
        ("string", b"hello", "must be a string, not 'hello' (not valid JSON"),
        ("string", b"5", "must be a string, not '5'"),
        ("boolean", b"1", "must be true or false, not '1'"),
        ("boolean", b'"true"', "must be true or false"),
        ("choice", b"5", "a value of type choice must be a string"),
        ("module", b'["x"]', "a value of type module must be a string"),
        ("embedding", b"0.5", "must be a flat list of numbers, not '0.5'"),
        ("embedding", b"[true,1]", "true or false at [0]"),
        ("embedding", b"[1,false]", "true or false at [1]"),
        ("embedding", b"[1,null]", "null at [1]: there are no null values"),
        ("embedding", b'[1,"1.5"]', "the string '1.5' at [1]"),
        ("embedding", b'["' + b"a" * 1_000_000 + b'"' + b",1" * 100_000 + b"]", "aaa... "[:3]),
        ("embedding", b"[[1],[2]]", "nested to shape [2, 1]"),
        ("embedding", b"[[]]", "nested to shape [1, 0]"),
        ("embedding", b"[1,[2]]", "nested unevenly"),
        ("embedding", b"[{}]", "an object at [0]"),
        ("embedding", b'{"a":1}', "must be a flat list of numbers"),
        ("tensor", b"[1,2]", 'must be an object of "shape" and "data"'),
        ("tensor", b"{}", "an object of the keys"),
        ("tensor", b'{"shape":[1]}', "an object of the keys 'shape'"),
        ("tensor", b'{"shape":[1],"data":[1],"dtype":"int8"}', "the keys 'shape, data, dtype'"),
        ("tensor", b'{"shape":[1],"data":[1],"data":[2]}', "the key 'data' is given twice"),
        ("tensor", b'{"shape":[1],"d\\u0061ta":[1],"data":[2]}', "given twice"),
        ("tensor", b'{"shape":1,"data":[1]}', "whose shape is no list"),
        ("tensor", b'{"shape":[1.0],"data":[1]}', "a float in its shape"),
        ("tensor", b'{"shape":[true],"data":[1]}', "true or false in its shape"),
        ("tensor", b'{"shape":[-1],"data":[1]}', "negative extent"),
        ("tensor", b'{"shape":[4294967296,4294967296],"data":[1]}', "more than 2^48"),
        ("tensor", b'{"shape":[0,9000000000000000000],"data":[]}', "more than 2^48"),
        ("tensor", b'{"shape":[0,4294967296,4294967296],"data":[]}', "more than 2^48"),
        ("tensor", b'{"shape":[2],"data":[1]}', "data of shape [1] under the shape [2]"),
        ("tensor", b'{"shape":[4],"data":[[1,2],[3,4]]}', "data of shape [2, 2]"),
        ("tensor", b'{"shape":[2],"data":[[1],2]}', "nested unevenly"),
        ("tensor", b'{"shape":[2],"data":[1,null]}', "null at [1]: there are no null values"),
        ("tensor", b'{"shape":[2,1],"data":[[1],[null]]}', "null at [1][0]"),
        ("tensor", b'{"shape":[2],"data":[1,true]}', "true or false at [1]"),
        ("tensor", b'{"shape":[2],"data":[1,false]}', "true or false at [1]"),
        ("tensor", b'{"shape":[2],"data":[1,"2"]}', "the string '2' at [1]"),
        ("tensor", b'{"shape":[1],"data":[{}]}', "an object at [0]"),
        ("tensor", b'{"shape":[1],"data":[{"a":1}]}', "an object at [0]"),
        ("tensor", b'{"shape":[1],"data":null}', "no null values"),
        ("tensor", b'{"shape":[%b],"data":[1]}' % b",".join([b"1"] * 33), "33 dimensions"),
        ("tensor", b'{"shape":[1],"data":%b1%b}' % (b"[" * 30, b"]" * 30), "under the shape"),
        ("tensor", b'{"shape":[1],"data":%b1%b}' % (b"[" * 900, b"]" * 900), "too deeply"),
        ("map", b"[1]", "must be an object"),
        ("map", b'{"a":{"b":1,"b":2}}', "the key 'b' is given twice"),
        ("map", b'{"a":' + b"[" * 64 + b"]" * 64 + b"}", "nested deeper than 64 levels"),
        ("list", b"[" * 65 + b"]" * 65, "nested deeper than 64 levels"),
        ("list", b"[" + b"9" * 309 + b".5]", "beyond the range of a float"),
        ("list", b'{"a":1}', "must be a list"),
    ],
    ids=label,
)
def test_a_wrong_value_is_refused_with_what_was_expected(
    type_name: str, text: bytes, words: str
) -> None:
    message = refusal(lambda: take(type_name, text))
    assert message.startswith(f"a value of type {type_name} must be ")
    assert words in message


@pytest.mark.parametrize(
    ("type_url", "binary", "words"),
    [
        ("", b"", "the type_url is empty: expected type_url 'dspex.variables/float'"),
        ("dspex.variables/integer", b"", "contradicts the type float: expected type_url"),
        (SNAKEPIT_PREFIX + "string", b"", "contradicts the type float"),
        ("dspex.variables/quaternion", b"", "unknown type_url 'dspex.variables/quaternion'"),
        ("float", b"", "unknown type_url 'float'"),
        ("dspex.variables/Float", b"", "unknown type_url"),
        ("type.googleapis.com/google.protobuf.StringValue", b"", "unknown type_url"),
        ("x" * 10_000, b"", "unknown type_url 'xxx"),
        ("dspex.variables/float", b"\0\0", "2 binary bytes came with type_url"),
        (PROTOBUF_VALUE, b"\0", "1 binary bytes came with type_url"),
        ("dspex.variables/float.binary", b"\0", "the type float has no binary form: send the JSON"),
        (SNAKEPIT_PREFIX + "tensor.binary", b"", "contradicts the type float"),
        (SNAKEPIT_PREFIX + "tensor.binary", b"\0", "contradicts the type float"),
    ],
    ids=label,
)
def test_a_type_url_that_does_not_fit_is_refused(type_url: str, binary: bytes, words: str) -> None:
    assert words in refusal(lambda: accept("float", type_url, b"0.5", binary))


def test_a_missing_value_is_named_as_such() -> None:
    assert "the value is missing" in refusal(lambda: accept("float", "", b""))


def packed(kind: str, content: Any) -> bytes:  # noqa: ANN401
    return struct_pb2.Value(**{kind: content}).SerializeToString()


def struct(**members: Any) -> bytes:  # noqa: ANN401
    message = struct_pb2.Value()
    message.struct_value.update(members)
    return message.SerializeToString()


def numbers(*items: float | None) -> bytes:
    message = struct_pb2.Value()
    message.list_value.extend(items)
    return message.SerializeToString()


@pytest.mark.parametrize(
    ("type_name", "message", "expected", "text"),
    [
        ("float", packed("number_value", 0.7), 0.7, b"0.7"),
        ("float", packed("number_value", 3.0), 3.0, b"3"),
        ("float", packed("number_value", -0.0), -0.0, b"-0.0"),
        ("float", packed("number_value", math.nan), math.nan, b'"NaN"'),
        ("float", packed("number_value", -math.inf), -math.inf, b'"-Infinity"'),
        ("float", packed("number_value", 1e300), 1e300, None),
        ("integer", packed("number_value", 3.0), 3, b"3"),
        ("integer", packed("number_value", -(2.0**53)), -(2**53), b"-9007199254740992"),
        ("string", packed("string_value", "é"), "é", '"é"'.encode()),
        ("string", packed("string_value", "NaN"), "NaN", b'"NaN"'),
        ("boolean", packed("bool_value", False), False, b"false"),
        ("embedding", numbers(1, 2.5), np.array([1, 2.5]), b"[1,2.5]"),
        ("tensor", struct(shape=[2], data=[1, 2]), np.array([1, 2]), None),
        ("map", struct(a=[1, None]), {"a": [1, None]}, b'{"a":[1,null]}'),
    ],
    ids=label,
)
def test_a_packed_protobuf_value_is_stored_as_json(
    type_name: str, message: bytes, expected: object, text: bytes | None
) -> None:
    typed, value = accept(type_name, PROTOBUF_VALUE, message)
    assert same(typed, expected)
    assert stored(value).type_url == DSPEX_PREFIX + type_name
    assert text in (None, stored(value).value)
    assert same(to_python(type_name, value.any), expected)


@pytest.mark.parametrize(
    ("type_name", "message", "words"),
    [
        ("integer", packed("number_value", 3.5), "must be an integer, not '3.5'"),
        ("integer", packed("number_value", 2.0**54), "from -2^53 to 2^53"),
        ("integer", packed("number_value", math.nan), "must be an integer, not the number nan"),
        ("string", packed("number_value", 3.0), "must be a string, not '3'"),
        ("string", packed("number_value", math.inf), "must be a string, not the number inf"),
        ("integer", packed("string_value", "3"), "must be an integer"),
        ("float", packed("string_value", "3"), "must be a number"),
        ("float", packed("null_value", 0), "no null values"),
        ("embedding", numbers(1, None), "null at [1]"),
        ("tensor", struct(shape=[3], data=[1, 2]), "data of shape [2] under the shape [3]"),
        ("float", b"0.7", "without such a message packed into it"),
        ("float", b'"NaN"', "without such a message packed into it"),
        ("float", b"", "without such a message packed into it"),
        ("float", b"\xff\xff", "without such a message packed into it"),
    ],
    ids=label,
)
def test_a_protobuf_value_of_another_type_is_refused(
    type_name: str, message: bytes, words: str
) -> None:
    assert words in refusal(lambda: accept(type_name, PROTOBUF_VALUE, message))


class Colour(enum.StrEnum):
    RED = "red"


@pytest.mark.parametrize(
    ("type_name", "value", "expected", "text"),
    [
        ("float", 0.7, 0.7, b"0.7"),
        ("float", 3, 3.0, b"3.0"),
        ("float", np.float64(0.1), 0.1, b"0.1"),
        ("float", np.float32(0.5), 0.5, b"0.5"),
        ("float", np.int64(3), 3.0, b"3.0"),
        ("float", math.nan, math.nan, b'"NaN"'),
        ("float", np.float64("-inf"), -math.inf, b'"-Infinity"'),
        ("integer", 42, 42, b"42"),
        ("integer", 3.0, 3, b"3"),
        ("integer", np.int64(-5), -5, b"-5"),
        ("integer", np.float64(5), 5, b"5"),
        ("integer", 10**4300 - 1, 10**4300 - 1, b"9" * 4300),
        ("string", "h\0é\U0001f600", "h\0é\U0001f600", '"h\\u0000é\U0001f600"'.encode()),
        ("string", Colour.RED, "red", b'"red"'),
        ("string", np.str_("x"), "x", b'"x"'),
        ("boolean", True, True, b"true"),
        ("boolean", np.False_, False, b"false"),
        ("choice", "a", "a", b'"a"'),
        ("module", "A.B", "A.B", b'"A.B"'),
        ("embedding", [1, 2.5], np.array([1, 2.5]), b"[1.0,2.5]"),
        ("embedding", (np.float32(0.5), np.int8(1)), np.array([0.5, 1.0]), b"[0.5,1.0]"),
        ("embedding", np.array([1, 2], dtype=np.uint8), np.array([1.0, 2.0]), b"[1.0,2.0]"),
        ("embedding", np.array([0.5, math.inf]), np.array([0.5, math.inf]), b'[0.5,"Infinity"]'),
        ("embedding", np.arange(6.0)[::2], np.array([0.0, 2.0, 4.0]), b"[0.0,2.0,4.0]"),
        ("embedding", [2**70], np.array([2.0**70]), None),
        ("embedding", np.array([True, False]), np.array([1.0, 0.0]), b"[1.0,0.0]"),
        ("tensor", np.array([True]), np.array([1]), b'{"shape":[1],"data":[1]}'),
        ("tensor", np.array([0.1], np.float16), np.array([0.0999755859375]), None),
        ("tensor", np.array([[1, 2]], ">i2").T, np.array([[1], [2]]), None),
        ("tensor", np.array([[1, 2]]), np.array([[1, 2]]), b'{"shape":[1,2],"data":[1,2]}'),
        ("tensor", [[1.5], [2]], np.array([[1.5], [2]]), b'{"shape":[2,1],"data":[1.5,2.0]}'),
        ("tensor", np.array(5), np.array(5), b'{"shape":[],"data":[5]}'),
        (
            "tensor",
            {"shape": (np.int64(2), 1), "data": np.array([1, 2])},
            np.array([[1], [2]]),
            b'{"shape":[2,1],"data":[1,2]}',
        ),
        (
            "tensor",
            np.array([2**63], dtype=np.uint64),
            np.array([2.0**63]),
            None,
        ),
        ("map", {"a": (1, np.float32(0.5), None, True)}, {"a": [1, 0.5, None, True]}, None),
        ("list", [2**70, "é", np.arange(2)], [2**70, "é", [0, 1]], None),
    ],
    ids=label,
)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_python_values_are_encoded(
    type_name: str, value: object, expected: object, text: bytes | None, prefix: str
) -> None:
    typed, made = encode(type_name, value, prefix)
    assert same(typed, expected)
    assert stored(made).type_url == prefix + type_name
    assert text in (None, stored(made).value)
    again, accepted = accept(type_name, prefix + type_name, stored(made).value)
    assert accepted == made
    assert same(again, expected)


@pytest.mark.parametrize(
    ("type_name", "value", "words"),
    [
        ("float", True, 'must be a number, or "NaN", "Infinity" or "-Infinity", not bool True'),
        ("float", np.True_, "must be a number"),
        ("float", "0.7", "not str '0.7'"),
        ("float", "NaN", "not str 'NaN'"),
        ("float", None, "no null values"),
        ("float", 10**400, "beyond the range of a float"),
        ("float", 1j, "not complex"),
        ("float", np.timedelta64(1, "s"), "must be a number"),
        ("integer", True, "must be an integer, not bool True"),
        ("integer", 1.5, "a value of type integer must be an integer, not float 1.5"),
        ("integer", math.nan, "must be an integer, not float nan"),
        ("integer", math.inf, "must be an integer"),
        ("integer", "5", "must be an integer, not str '5'"),
        ("integer", 10**4300, "more than 4300 digits"),
        ("integer", np.timedelta64(1, "s"), "must be an integer"),
        ("string", 5, "must be a string, not int 5"),
        ("string", 10**5000, "must be a string, not int"),
        ("string", b"bytes", "must be a string, not bytes"),
        ("string", "\ud800", "lone surrogate"),
        ("string", "x" * 1000 + "\ud800", "lone surrogate"),
        ("boolean", 1, "must be true or false, not int 1"),
        ("boolean", "true", "must be true or false, not str 'true'"),
        ("choice", Colour, "must be a string"),
        ("embedding", [True], "true or false at [0]"),
        ("embedding", [1, None], "null at [1]"),
        ("embedding", ["1"], "the string '1' at [0]"),
        ("embedding", [10**400], "beyond the range of a float"),
        ("embedding", [[1.0]], "nested to shape [1, 1]"),
        ("embedding", np.eye(2), "nested to shape [2, 2]"),
        ("embedding", np.array([1j]), "an array of dtype complex128"),
        ("embedding", np.array(["1"]), "an array of dtype <U1"),
        ("embedding", np.array([None]), "an array of dtype object"),
        ("embedding", [object()], "a object at [0]"),
        ("embedding", "abc", "must be a flat list of numbers, not str"),
        ("embedding", {1.0}, "must be a flat list of numbers, not set"),
        ("tensor", 5, "not int"),
        ("tensor", [[1], [2, 3]], "nested unevenly"),
        ("tensor", {"shape": [2], "data": [1]}, "under the shape [2]"),
        ("tensor", {"shape": [-(10**5000)], "data": [1]}, "negative extent"),
        ("tensor", {"shape": [10**5000], "data": [1]}, "more than 2^48"),
        ("tensor", {1: 2}, "an object of the keys '1'"),
        ("map", [], "must be an object"),
        ("map", {1: 2}, "keys that are not strings"),
        ("map", {"a": object()}, "object inside"),
        ("map", {"a": "\ud800"}, "lone surrogate inside"),
        ("list", None, "no null values"),
        ("quaternion", 5, "unknown type 'quaternion': expected one of float, integer, string"),
    ],
    ids=label,
)
def test_a_python_value_of_another_type_is_refused(
    type_name: str, value: object, words: str
) -> None:
    assert words in refusal(lambda: encode(type_name, value))


@pytest.mark.parametrize("type_name", ["embedding", "tensor", "list"])
def test_a_list_that_holds_itself_is_refused(type_name: str) -> None:
    endless: list[object] = [1.0]
    endless.append(endless)
    assert "deep" in refusal(lambda: encode(type_name, endless))


def test_type_serializer_makes_and_reads_any() -> None:
    message = TypeSerializer.serialize_value(0.7, "float")
    assert message == any_pb2.Any(type_url="dspex.variables/float", value=b"0.7")
    assert TypeSerializer.deserialize_value(message, "float") == 0.7
    grpcurl = any_pb2.Any(type_url=PROTOBUF_VALUE, value=packed("number_value", 2.5))
    assert TypeSerializer.deserialize_value(grpcurl, "float") == 2.5
    with pytest.raises(InvalidValue, match="contradicts the type string"):
        TypeSerializer.deserialize_value(message, "string")


def test_to_python_refuses_what_is_no_value_of_the_type() -> None:
    assert "not a google.protobuf.Any" in refusal(lambda: to_python("float", b"\xff"))
    assert "the value is missing" in refusal(lambda: to_python("float", b""))
    assert "contradicts" in refusal(lambda: to_python("float", encode("string", "x")[1].any))


def test_only_types_that_old_clients_know_are_for_variables() -> None:
    for name in VARIABLE_TYPES:
        check_type(name)
    for name in ("map", "list", "", "FLOAT"):
        message = refusal(lambda name=name: check_type(name))  # type: ignore[misc]
        assert message.endswith("expected one of " + ", ".join(VARIABLE_TYPES))


def test_an_unknown_prefix_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="unknown type_url prefix 'x/'"):
        encode("float", 1.0, "x/")


special = st.sampled_from([math.nan, math.inf, -math.inf, -0.0])
floats = st.floats() | special
integers = st.integers() | st.integers(-(10**4299), 10**4299)
strings = st.text()
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "float": floats,
    "integer": integers,
    "string": strings,
    "boolean": st.booleans(),
    "choice": strings,
    "module": strings,
    "embedding": st.lists(floats),
    "tensor": npst.arrays(
        st.sampled_from([np.float64, np.int64]), npst.array_shapes(min_dims=0, min_side=0)
    ),
}
documents = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(-(10**400))
    | st.floats(allow_nan=False, allow_infinity=False)
    | strings,
    lambda inner: st.lists(inner) | st.dictionaries(strings, inner),
    max_leaves=20,
)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
@pytest.mark.parametrize("type_name", VARIABLE_TYPES)
def test_every_value_survives_the_round_trip(type_name: str, data: st.DataObject) -> None:
    value = data.draw(VALUES[type_name])
    typed, made = encode(type_name, value)
    if type_name == "embedding":
        value = np.array(value, dtype=np.float64)
    elif type_name == "tensor" and not value.size:
        value = value.astype(np.float64)
    assert same(to_python(type_name, made.any, made.binary), value)
    assert same(typed, value)
    again, accepted = accept(type_name, DSPEX_PREFIX + type_name, stored(made).value)
    assert accepted == made
    assert same(again, value)


@settings(deadline=None)
@given(strings, documents)
def test_maps_and_lists_survive_the_round_trip(key: str, value: object) -> None:
    assert same(to_python("map", encode("map", {key: value})[1].any), {key: value})
    assert same(to_python("list", encode("list", [value])[1].any), [value])


@settings(deadline=None)
@given(documents, st.sampled_from([None, 1]))
@example([2**64, {"a": "11111111111111111111\\u1234"}], None)
@example(["\u0131" + "1" * 400, int("1" * 400)], None)  # written as \\u0131111...
@example(["1" * 400 + "\\u0031", int("1" * 400)], 1)
def test_parse_reads_what_json_says(document: object, indent: int | None) -> None:
    for ascii_only in (True, False):
        text = json.dumps(document, indent=indent, ensure_ascii=ascii_only)
        read = parse(text.encode())
        assert repr(read) == repr(json.loads(text))  # 1 and 1.0 differ, as True and 1 do


mutations = st.lists(
    st.tuples(
        st.integers(0, 200),
        st.integers(0, 3),
        st.sampled_from(
            [
                *b'[ ] { } " : , null true NaN 1e999 \\ \xff \\ud800 0 - . e "a":1 \x00'.split(
                    b" "
                ),
                b"9" * 20,
                b" ",
                b"",
            ]
        ),
    ),
    max_size=3,
)


@settings(deadline=None, max_examples=100)
@given(data=st.data(), changes=mutations)
@pytest.mark.parametrize("type_name", ALL_TYPES)
def test_damaged_input_is_strict_json_or_refused(
    type_name: str, data: st.DataObject, changes: list[tuple[int, int, bytes]]
) -> None:
    text = b'{"a":[1,{"b":"x"}]}'
    if type_name in VALUES:
        text = stored(encode(type_name, data.draw(VALUES[type_name]))[1]).value[:200]
    for place, cut, put in changes:
        text = text[:place] + put + text[place + cut :]
    for url in (DSPEX_PREFIX + type_name, PROTOBUF_VALUE):
        try:
            _, value = accept(type_name, url, text)
        except InvalidValue:
            continue
        out = stored(value).value
        assert parse(out) is not None
        assert type_name in {"map", "list", "string", "choice", "module"} or b"null" not in out
        to_python(type_name, value.any)
