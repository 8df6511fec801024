"""Values of earlier releases: read as ever, and written as ever."""

from __future__ import annotations

import json

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from snakepit_bridge.tool_values import decode_argument
from snakepit_bridge.type_serialization import accept_any, stored_type, to_python
from tests.golden import values as golden
from tests.value_checks import ALL_TYPES, STRING_VALUE, same

RECORDED: dict[str, dict[str, str]] = json.loads(golden.PATH.read_text())
EXPECTED = {
    **golden.JSON_VALUES,
    **{label: (type_, python) for label, (type_, _, python) in golden.JSON_TEXTS.items()},
    **golden.BINARY_VALUES,
    **golden.NPY_FILES,
    **{f"{type_}, bfloat16": (type_, golden.BFLOAT16) for type_ in ("embedding", "tensor")},
}


def test_all_that_is_written_is_recorded_as_it_is() -> None:
    made = golden.written()
    assert {label: RECORDED.get(label) for label in made} == made
    assert made.keys() | golden.received().keys() == RECORDED.keys()


def test_each_type_prefix_and_form_is_recorded() -> None:
    urls = {
        AnyMessage.FromString(bytes.fromhex(entry["any"])).type_url for entry in RECORDED.values()
    }
    forms = {*ALL_TYPES, "embedding.binary", "tensor.binary"}
    ours = {prefix + form for prefix in golden.PREFIXES.values() for form in forms}
    assert urls == {*ours, STRING_VALUE}


@pytest.mark.parametrize("label", RECORDED)
def test_what_is_recorded_is_read(label: str) -> None:
    any_, binary = (bytes.fromhex(RECORDED[label][part]) for part in ("any", "binary"))
    if label == "null":
        assert decode_argument(any_) is None
        return
    type_, python = EXPECTED[label.rpartition("; ")[0]]
    assert stored_type(any_) == type_
    typed, value = accept_any(type_, any_, binary)
    assert (value.any, value.binary) == (any_, binary)
    for read in (typed, to_python(type_, any_, binary), decode_argument(any_, binary)):
        assert same(read, python)
