"""Constraints: which are read, which are refused, and what they hold values to."""

from __future__ import annotations

import dataclasses
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakepit_bridge import linear_pattern
from snakepit_bridge.errors import InvalidConstraints, InvalidValue
from snakepit_bridge.type_serialization import accept
from snakepit_bridge.variables import UNCONSTRAINED, parse_constraints

TYPES = ("float", "integer", "string", "boolean", "choice", "module", "embedding", "tensor")


def label(value: object) -> str:
    """Name a parameter; pytest's own way writes out all of it."""
    return ascii(value)[:40]


def check(type_name: str, constraints: str, text: str | bytes) -> None:
    """Check a value as a client sends it."""
    encoded = text if isinstance(text, bytes) else text.encode()
    value, _ = accept(type_name, f"dspex.variables/{type_name}", encoded)
    parse_constraints(type_name, constraints).check(value)


def tensor(*data: float | str, shape: tuple[int, ...] | None = None) -> str:
    return json.dumps({"shape": shape or [len(data)], "data": data})


@pytest.mark.parametrize(
    ("type_name", "constraints", "text"),
    [
        ("float", '{"min":0,"max":1}', "0"),
        ("float", '{"min":0,"max":1}', "1.0"),
        ("float", '{"min":0.5}', '"Infinity"'),
        ("float", '{"max":0.5}', '"-Infinity"'),
        ("float", '{"min":1,"max":1}', "1"),
        ("float", '{"step":0.1}', "0.3"),
        ("float", '{"step":0.1}', "0.30000000000000004"),
        ("float", '{"step":0.1}', "-0.7"),
        ("float", '{"step":0.1}', "12345678.9"),
        ("float", '{"step":0.1}', "0.30000000009"),
        ("float", '{"min":0.05,"step":0.1}', "0.25"),
        ("float", '{"step":1e-12}', "3e-12"),
        ("float", '{"step":0.1}', "1e300"),
        ("float", '{"step":1e-300,"min":-1e308}', "1e308"),
        ("integer", '{"min":-5,"max":5}', "-5"),
        ("integer", '{"min":0.5,"max":2.5}', "1"),
        ("integer", '{"min":9007199254740993}', "9007199254740993"),
        ("integer", '{"max":%s}' % ("9" * 4300), "9" * 4300),
        ("integer", '{"step":5}', "-10"),
        ("integer", '{"min":1,"step":2.0}', "7"),
        ("integer", '{"min":-1.0,"step":3}', "5"),
        ("integer", '{"step":%s}' % ("3" * 4000), "3" * 4000),
        ("string", '{"min_length":2,"max_length":2}', '"\U0001f600é"'),
        ("string", '{"max_length":0}', '""'),
        ("string", '{"pattern":"b+"}', '"abbc"'),
        ("string", '{"pattern":"^[A-Z]+[0-9]+$"}', '"ABC123"'),
        ("string", '{"pattern":"^\\\\p{L}+$"}', '"Größe"'),
        ("string", '{"pattern":"^.$"}', '"\U0001f600"'),
        ("string", '{"pattern":"(?s)^a.c$"}', '"a\\nc"'),
        ("string", '{"pattern":"(x+x+)+y"}', '"%sy"' % ("x" * 100_000)),
        ("string", '{"enum":["a","b","a"]}', '"b"'),
        ("choice", '{"choices":["fast","slow"]}', '"slow"'),
        ("choice", '{"description":"any"}', '"whatever"'),
        ("module", '{"choices":["A.B"],"allowed_modules":["A.B","C"]}', '"A.B"'),
        ("module", '{"namespace":"DSPy","pattern":"Thought$"}', '"DSPy.ChainOfThought"'),
        ("module", '{"namespace":"DSPy."}', '"DSPy.A.B"'),
        ("module", '{"namespace":"DSPy"}', '"DSPy"'),
        ("embedding", '{"dimensions":2}', "[1,2]"),
        ("embedding", '{"dimensions":0}', "[]"),
        ("embedding", '{"normalize":true}', "[0.6,0.8]"),
        ("embedding", '{"normalize":true}', "[1.0000009]"),
        ("embedding", '{"normalize":false}', "[3,4]"),
        ("embedding", '{"distance_metric":"cosine","device":"cpu"}', "[3,4]"),
        ("tensor", '{"shape":[2]}', tensor(1, 2)),
        ("tensor", '{"shape":[null,1]}', tensor(1, 2, shape=(2, 1))),
        ("tensor", '{"shape":[]}', '{"shape":[],"data":[1]}'),
        ("tensor", '{"dtype":"int8"}', tensor(-128, 127)),
        ("tensor", '{"dtype":"int8"}', tensor(1.0, 2.0)),
        ("tensor", '{"dtype":"uint64"}', tensor(0, 2.0**63)),
        ("tensor", '{"dtype":"bool"}', tensor(0, 1)),
        ("tensor", '{"dtype":"float32"}', tensor(0.1, 3.4028235e38, "NaN", "Infinity")),
        ("tensor", '{"dtype":"float64"}', tensor(1.7976931348623157e308, 5)),
        ("tensor", '{"dtype":"float16"}', tensor(65519, -65504)),
        ("tensor", '{"dtype":"int64","device":"cuda:0"}', '{"shape":[0],"data":[]}'),
    ],
    ids=label,
)
def test_values_that_fit(type_name: str, constraints: str, text: str) -> None:
    check(type_name, constraints, text)


@pytest.mark.parametrize(
    ("type_name", "constraints", "text", "words"),
    [
        ("float", '{"min":0,"max":1}', "1.5", "value 1.5 is above maximum 1"),
        ("float", '{"min":0,"max":1}', "-0.1", "value -0.1 is below minimum 0"),
        ("float", '{"max":1}', '"Infinity"', "value inf is above maximum 1"),
        ("float", '{"min":1}', '"NaN"', "value NaN is within no minimum or maximum"),
        ("float", '{"max":1}', '"NaN"', "value NaN is within no minimum or maximum"),
        ("float", '{"max":9007199254740992}', "9007199254740994", "above maximum"),
        ("float", '{"step":0.1}', "0.25", "value 0.25 is not a multiple of step 0.1 from 0.0"),
        ("float", '{"step":0.1}', "0.3000000002", "not a multiple of step 0.1"),
        ("float", '{"min":0.05,"step":0.1}', "0.3", "not a multiple of step 0.1 from 0.05"),
        ("float", '{"step":1e-12}', "3.5e-12", "not a multiple of step"),
        ("float", '{"step":1}', '"NaN"', "value nan is not a multiple"),
        ("float", '{"step":1}', '"Infinity"', "value inf is not a multiple"),
        ("float", '{"step":1e300}', "5e299", "not a multiple"),
        ("integer", '{"max":5}', "6", "value 6 is above maximum 5"),
        ("integer", '{"min":0.5}', "0", "value 0 is below minimum 0.5"),
        ("integer", '{"max":9007199254740992.0}', "9007199254740993", "above maximum"),
        ("integer", '{"min":9007199254740993}', "9007199254740992", "below minimum"),
        ("integer", '{"max":1}', "9" * 4300, "value 999999999999999999999999...999999999999 is"),
        ("integer", '{"step":5}', "7", "value 7 is not a multiple of step 5 from 0"),
        ("integer", '{"min":1,"step":2}', "4", "value 4 is not a multiple of step 2 from 1"),
        ("integer", '{"step":2}', "1" + "0" * 4000 + "1", "not a multiple of step 2"),
        ("string", '{"min_length":3}', '"é\U0001f600"', "value of 2 characters is below minimum"),
        ("string", '{"max_length":3}', '"abcd"', "value of 4 characters is above maximum"),
        ("string", '{"pattern":"^b"}', '"ab"', "value 'ab' does not match pattern '^b'"),
        ("string", '{"pattern":"b$"}', '"b\\n"', "does not match"),
        ("string", '{"pattern":"(x+x+)+y"}', '"%s"' % ("x" * 100_000), "does not match"),
        ("string", '{"pattern":"a.{1000}$"}', '"%s"' % ("ab" * 5000), "too long for its pattern"),
        ("string", '{"enum":["a","b"]}', '"c"', "value 'c' is not among the enum 'a, b'"),
        ("choice", '{"choices":["a","b"]}', '"A"', "value 'A' is not among the choices 'a, b'"),
        ("module", '{"allowed_modules":["A"]}', '"B"', "is not among the allowed_modules 'A'"),
        ("module", '{"choices":["A"],"allowed_modules":["B"]}', '"A"', "allowed_modules"),
        ("module", '{"namespace":"DSPy"}', '"DSPyX.A"', "'DSPyX.A' is not in the namespace 'DSPy'"),
        ("module", '{"pattern":"^D"}', '"A"', "does not match pattern"),
        ("embedding", '{"dimensions":3}', "[1,2]", "embedding of 2 dimensions, must have 3"),
        ("embedding", '{"normalize":true}', "[1.000002]", "must have norm 1 within 1e-06"),
        ("embedding", '{"normalize":true}', "[]", "embedding of norm 0,"),
        ("embedding", '{"normalize":true}', "[1e300,1e300]", "embedding of norm inf,"),
        ("embedding", '{"normalize":true}', '["NaN"]', "embedding of norm nan,"),
        ("tensor", '{"shape":[3]}', tensor(1, 2), "tensor of shape [2], must be [3]"),
        ("tensor", '{"shape":[null,2]}', tensor(1, 2), "tensor of shape [2], must be [any, 2]"),
        ("tensor", '{"dtype":"int8"}', tensor(0, 128), "from 0 to 128, beyond the range of int8"),
        ("tensor", '{"dtype":"uint8"}', tensor(-1), "beyond the range of uint8"),
        ("tensor", '{"dtype":"int64"}', tensor(2.0**63), "beyond the range of int64"),
        ("tensor", '{"dtype":"int32"}', tensor(1.5), "has a fraction"),
        ("tensor", '{"dtype":"int32"}', tensor(1, "NaN"), "has a fraction"),
        ("tensor", '{"dtype":"bool"}', tensor(2), "beyond the range of bool"),
        ("tensor", '{"dtype":"float16"}', tensor(65520), "beyond the range of float16"),
        ("tensor", '{"dtype":"float32"}', tensor(-3.5e38), "beyond the range of float32"),
        ("tensor", '{"dtype":"bfloat16"}', tensor(3.4e38), "beyond the range of bfloat16"),
    ],
    ids=label,
)
def test_values_that_do_not_fit(type_name: str, constraints: str, text: str, words: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        check(type_name, constraints, text)
    assert words in caught.value.message
    assert caught.value.field == "value"
    assert len(caught.value.message) < 700


@pytest.mark.parametrize(
    ("type_name", "constraints", "words"),
    [
        ("float", "[]", "must be a JSON object, not '[]'"),
        ("float", "null", "must be a JSON object"),
        ("float", '{"min":0', "not valid JSON"),
        ("float", '{"min":NaN}', "not valid JSON"),
        ("float", '{"max":1e400}', "not valid JSON"),
        ("float", '{"min":0,"min":1}', "the key 'min' is given twice"),
        ("float", '{"a":' * 100_000, "500000 bytes, at most 65536"),
        ("float", '{"a":' * 10_000, "not valid JSON"),
        ("float", '{"min":%s}' % ("1" * 50_000), "an integer of 50000 digits"),
        ("float", '{"\ud800":1}', "lone surrogate"),
        ("float", '{"mn":0}', "unknown key 'mn', allowed are min, max, step, description"),
        ("float", '{"choices":["a"]}', "unknown key 'choices'"),
        ("boolean", '{"min":0}', "allowed are description, device, distance_metric"),
        ("string", '{"%s":0}' % ("x" * 60_000), "unknown key 'xxx"),
        ("map", '{"min":0}', "unknown key 'min'"),
        ("float", '{"min":"0"}', "min must be a number, not '0'"),
        ("float", '{"min":null}', "min must be a number, not 'None'"),
        ("float", '{"max":true}', "max must be a number"),
        ("float", '{"min":[1]}', "min must be a number"),
        ("float", '{"min":%s}' % ("1" * 400), "min must be a number in the range of a float"),
        ("float", '{"min":2,"max":1}', "min 2 is above max 1"),
        ("integer", '{"min":9007199254740993,"max":9007199254740992.0}', "is above max"),
        ("float", '{"step":0}', "step must be above 0, not '0'"),
        ("float", '{"step":-0.1}', "step must be above 0"),
        ("integer", '{"step":0.5}', "step must be an integer"),
        ("integer", '{"step":2,"min":0.5}', "min must be an integer"),
        ("string", '{"min_length":-1}', "min_length must be a non-negative integer, not '-1'"),
        ("string", '{"min_length":1.0}', "min_length must be a non-negative integer"),
        ("string", '{"max_length":true}', "max_length must be a non-negative integer"),
        ("string", '{"max_length":"5"}', "max_length must be a non-negative integer"),
        ("string", '{"min_length":5,"max_length":4}', "min_length 5 is above max_length 4"),
        ("string", '{"enum":[]}', "enum is empty"),
        ("string", '{"enum":"a"}', "enum must be a list of strings"),
        ("choice", '{"choices":[]}', "choices is empty: leave it out to allow any"),
        ("choice", '{"choices":["a",1]}', "choices must be a list of strings"),
        ("choice", '{"choices":null}', "choices must be a list of strings"),
        ("choice", json.dumps({"choices": ["a"] * 10_001}), "10001 choices, at most 10000"),
        ("module", '{"allowed_modules":{}}', "allowed_modules must be a list of strings"),
        ("module", '{"namespace":5}', "namespace must be a string"),
        ("module", '{"namespace":""}', "namespace must be a string that is not empty"),
        ("module", '{"namespace":"."}', "namespace must be a dotted name"),
        ("string", '{"pattern":5}', "pattern must be a string"),
        ("string", '{"pattern":"(a"}', "pattern '(a': 'missing ): (a'"),
        ("string", '{"pattern":"(a)\\\\1"}', "linear-time syntax (RE2)"),
        ("string", '{"pattern":"(?=a)"}', "linear-time syntax (RE2)"),
        ("string", '{"pattern":"(?<!a)b"}', "no lookaround"),
        ("string", '{"pattern":"a{2000}"}', "invalid repetition"),
        ("string", '{"pattern":"\\\\p{L}{1000}"}', "pattern too large"),
        ("string", '{"pattern":"%s"}' % ("a" * 1001), "has 1001 characters, at most 1000"),
        ("module", '{"pattern":"("}', "linear-time syntax (RE2)"),
        ("embedding", '{"dimensions":-1}', "dimensions must be a non-negative integer"),
        ("embedding", '{"dimensions":2.5}', "dimensions must be a non-negative integer"),
        ("embedding", '{"normalize":1}', "normalize must be true or false"),
        ("embedding", '{"normalize":null}', "normalize must be true or false"),
        ("tensor", '{"shape":3}', "shape must be a list of non-negative integers"),
        ("tensor", '{"shape":[-1]}', "shape must be a list of non-negative integers"),
        ("tensor", '{"shape":[1.5]}', "shape must be a list of non-negative integers"),
        ("tensor", '{"shape":null}', "shape must be a list of non-negative integers"),
        ("tensor", json.dumps({"shape": [1] * 33}), "shape of 33 dimensions"),
        ("tensor", '{"dtype":"float"}', "dtype must be one of float16, float32, float64"),
        ("tensor", '{"dtype":32}', "dtype must be one of"),
    ],
    ids=label,
)
def test_wrong_constraints_are_refused(type_name: str, constraints: str, words: str) -> None:
    with pytest.raises(InvalidConstraints) as caught:
        parse_constraints(type_name, constraints)
    assert caught.value.message.startswith(f"Invalid constraints for type {type_name}: ")
    assert words in caught.value.message
    assert caught.value.field == "constraints_json"
    assert len(caught.value.message) < 700


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("text", ["", "{}", " {} ", '{"description":"x","device":null}'])
def test_no_constraints_are_one_false_object(type_name: str, text: str) -> None:
    constraints = parse_constraints(type_name, text)
    assert constraints is UNCONSTRAINED
    assert not constraints
    constraints.check(object())


def test_constraints_are_immutable_and_remembered() -> None:
    text = '{"min":0}'
    constraints = parse_constraints("float", text)
    assert constraints
    assert parse_constraints("float", text) is constraints
    assert parse_constraints("integer", text) is not constraints
    with pytest.raises(dataclasses.FrozenInstanceError):
        constraints.checks = ()  # type: ignore[misc]


def test_a_pattern_takes_no_longer_values_than_it_can_bear() -> None:
    pattern = "[ab]*a[ab]{500}c"
    most = linear_pattern.MAX_WORK // linear_pattern.compile_pattern(pattern).programsize
    constraints = parse_constraints("string", json.dumps({"pattern": pattern}))
    with pytest.raises(InvalidValue, match="does not match"):
        constraints.check("é" * (most // 2))
    with pytest.raises(InvalidValue, match=f"matched against at most {most}"):
        constraints.check("é" * (most // 2 + 1))


def test_a_bad_pattern_writes_nothing_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InvalidConstraints):
        parse_constraints("string", '{"pattern":"(never seen before"}')
    assert capfd.readouterr() == ("", "")


numbers = st.integers(-(10**40), 10**40) | st.floats(allow_nan=False, allow_infinity=False)


@given(numbers, numbers, numbers)
def test_bounds_are_exact(low: float, high: float, value: float) -> None:
    low, high = sorted((low, high))
    for type_name in ("float", "integer"):
        constraints = parse_constraints(type_name, json.dumps({"min": low, "max": high}))
        if Fraction(low) <= Fraction(value) <= Fraction(high):
            constraints.check(value)
        else:
            words = "below minimum" if value < low else "above maximum"
            with pytest.raises(InvalidValue, match=words):
                constraints.check(value)


@given(st.integers(-(10**6), 10**6), st.integers(1, 10**6), st.integers(1, 10**4))
def test_decimal_steps_are_met_and_halves_are_not(count: int, digits: int, scale: int) -> None:
    step = digits / scale
    constraints = parse_constraints("float", json.dumps({"step": step}))
    constraints.check(count * digits / scale)
    constraints.check(count * step)
    with pytest.raises(InvalidValue, match="not a multiple of step"):
        constraints.check((count + 0.5) * step)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1).filter(lambda v: math.hypot(*v) > 1e-3))
def test_a_normalized_vector_passes_in_single_precision_too(vector: list[float]) -> None:
    array = np.array(vector)
    unit = array / np.linalg.norm(array)
    constraints = parse_constraints("embedding", '{"normalize":true}')
    constraints.check(unit)
    constraints.check(unit.astype(np.float32).astype(np.float64))
