"""The registry of types is open: a type of the user's own is one like the others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from snakepit_bridge import type_serialization as registry
from snakepit_bridge.binary_arrays import binary_form
from snakepit_bridge.commands import PythonValue, RegisterVariable, SetVariable, WireValue
from snakepit_bridge.errors import BridgeError, InvalidConstraints, InvalidValue
from snakepit_bridge.events.memory import MemoryLog
from snakepit_bridge.events.model import Envelope
from snakepit_bridge.strict_json import mismatch, parse
from snakepit_bridge.tool_values import decode_argument
from snakepit_bridge.type_serialization import (
    TypeSerializer,
    VariableType,
    accept,
    check_type,
    encode,
    register_type,
    stored_type,
    to_python,
)
from snakepit_bridge.variables import parse_constraints
from tests.direct import Direct
from tests.value_checks import PREFIXES, refusal, same, stored

ENVELOPE = Envelope("open")
TABLES = ("_TYPES", "_URLS", "_HEADS", "_BINARY_URLS")
FRACTION = 'a fraction as a string "3/4"'


def read_fraction(text: bytes) -> tuple[Fraction, bytes]:
    document = parse(text)
    try:
        return Fraction(str(document)), text
    except ValueError:
        raise mismatch("fraction", FRACTION, repr(document)) from None


def write_fraction(value: object) -> tuple[Fraction, bytes]:
    if not isinstance(value, Fraction):
        raise mismatch("fraction", FRACTION, type(value).__name__)
    return value, json.dumps(str(value)).encode()


def read_image(text: bytes) -> tuple[Any, bytes]:
    raise mismatch("image", "bytes", "JSON")


def write_image(value: object) -> tuple[Any, bytes]:
    raise mismatch("image", "a large array", type(value).__name__)


@pytest.fixture(autouse=True)
def _types() -> Iterator[None]:
    """Register two types, and forget them again."""
    kept = {
        name: dict(getattr(registry, name))
        for name in ("_TYPES", "_URLS", "_HEADS", "_BINARY_URLS")
    }
    register_type(VariableType("fraction", FRACTION, read_fraction, write_fraction))
    register_type(
        VariableType("image", "pixels", read_image, write_image, *binary_form("image", 3))
    )
    yield
    for name, content in kept.items():
        getattr(registry, name).clear()
        getattr(registry, name).update(content)


def any_of(url: str, text: bytes) -> bytes:
    return AnyMessage(type_url=url, value=text).SerializeToString()


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_new_type_is_one_like_the_others(prefix: str) -> None:
    with Direct(MemoryLog()) as direct:
        first = WireValue(any_of(prefix + "fraction", b' "3/4"'))
        id_ = direct.ask(RegisterVariable(ENVELOPE, "x", "fraction", first)).answer.variable_id
        variable = direct.loaded("open").committed.variables[id_]
        assert variable.value.any == first.any
        assert stored_type(variable.value.any) == "fraction"
        assert to_python("fraction", variable.value.any) == Fraction(3, 4)
        assert (
            direct.ask(SetVariable(ENVELOPE, "x", PythonValue(Fraction(1, 3)))).answer.number == 2
        )
        variable = direct.loaded("open").committed.variables[id_]
        assert stored(variable.value) == AnyMessage(
            type_url="dspex.variables/fraction", value=b'"1/3"'
        )
        for wrong in (PythonValue(0.5), WireValue(any_of(prefix + "float", b"0.5"))):
            with pytest.raises(InvalidValue, match="fraction"):
                direct.ask(SetVariable(ENVELOPE, "x", wrong))
        assert direct.loaded("open").committed.variables[id_].version == 2


def test_its_binary_form_is_one_too() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    text = b'{"shape":[2,4,3],"dtype":"uint8","binary_format":"raw"}'
    sent = WireValue(any_of("dspex.variables/image.binary", text), pixels.tobytes())
    with Direct(MemoryLog()) as direct:
        id_ = direct.ask(RegisterVariable(ENVELOPE, "x", "image", sent)).answer.variable_id
        direct.ask(SetVariable(ENVELOPE, "x", PythonValue(np.zeros((256, 256, 3), np.uint8))))
        direct.ask(SetVariable(ENVELOPE, "x", sent))
        value = direct.loaded("open").committed.variables[id_].value
        assert (value.any, value.binary) == sent
        assert same(to_python("image", value.any, value.binary), pixels)
        assert same(decode_argument(value.any, value.binary), pixels)
        flat = b'{"shape":[24],"dtype":"uint8","binary_format":"raw"}'
        for wrong in (
            WireValue(any_of("dspex.variables/image.binary", flat), pixels.tobytes()),
            WireValue(any_of("dspex.variables/image.binary", text), pixels.tobytes()[1:]),
            WireValue(any_of("dspex.variables/image.binary", text)),
            WireValue(any_of("dspex.variables/image", b"[]")),
            PythonValue(pixels),
        ):
            with pytest.raises(InvalidValue, match="image"):
                direct.ask(SetVariable(ENVELOPE, "x", wrong))


def test_constraints_of_a_new_type_are_kept_or_refused_in_words() -> None:
    with Direct(MemoryLog()) as direct:
        value = PythonValue(Fraction(1, 2))
        direct.ask(RegisterVariable(ENVELOPE, "x", "fraction", value, '{"description":"half"}'))
        with pytest.raises(InvalidConstraints) as caught:
            direct.ask(RegisterVariable(ENVELOPE, "y", "fraction", value, '{"min":0}'))
        assert caught.value.message == (
            "Invalid constraints for type fraction: unknown key 'min', allowed are description, "
            "device, distance_metric"
        )
    assert not parse_constraints("fraction", '{"description":"x"}')


def test_a_type_that_is_not_registered_is_named() -> None:
    value = encode("fraction", Fraction(1, 2))[1]
    for name in TABLES:
        for key in [key for key in getattr(registry, name) if "fraction" in str(key)]:
            del getattr(registry, name)[key]
    words = "'dspex.variables/fraction': no type of this name is registered in this process"
    assert words in refusal(lambda: stored_type(value.any))
    assert words in refusal(lambda: decode_argument(value.any))
    assert words in refusal(lambda: TypeSerializer.deserialize_value(stored(value)))
    assert "unknown type 'fraction'" in refusal(lambda: to_python("fraction", value.any))
    assert "unknown type 'fraction'" in refusal(lambda: check_type("fraction"))
    assert "unknown type_url" in refusal(lambda: to_python("float", value.any))
    with Direct(MemoryLog()) as direct, pytest.raises(BridgeError, match="unknown type 'fraction'"):
        direct.ask(RegisterVariable(ENVELOPE, "x", "fraction", WireValue(value.any)))


def test_a_name_is_taken_once_and_can_stand_in_a_type_url() -> None:
    def named(name: str) -> VariableType:
        return VariableType(name, FRACTION, read_fraction, write_fraction)

    for name in ("fraction", "float", "map"):
        with pytest.raises(ValueError, match=f"type {name} is already registered"):
            register_type(named(name))
    for name in ("", "tensor.binary", "a/b", "1a", "_a", "a b", "é", "x" * 65, "a\n"):
        with pytest.raises(ValueError, match="is not a name of letters"):
            register_type(named(name))
    register_type(named("x" * 64))
    long = accept("x" * 64, PREFIXES[1] + "x" * 64, b'"1/2"')[1]
    assert to_python("x" * 64, long.any) == Fraction(1, 2)


def test_types_for_tools_only_are_none_of_variables() -> None:
    register_type(VariableType("note", FRACTION, read_fraction, write_fraction, tool_only=True))
    assert "unknown type 'note': expected one of" in refusal(lambda: check_type("note"))
    assert decode_argument(encode("note", Fraction(1, 2))[1].any) == Fraction(1, 2)
