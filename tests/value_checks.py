"""What tests of values have in common: how values are made, compared and refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from google.protobuf import any_pb2

from snakepit_bridge.errors import InvalidValue
from snakepit_bridge.events.model import Value
from snakepit_bridge.type_serialization import DSPEX_PREFIX, SNAKEPIT_PREFIX

PREFIXES = (DSPEX_PREFIX, SNAKEPIT_PREFIX)
PROTOBUF_VALUE = "type.googleapis.com/google.protobuf.Value"
STRING_VALUE = "type.googleapis.com/google.protobuf.StringValue"

VARIABLE_TYPES = (
    "float",
    "integer",
    "string",
    "boolean",
    "choice",
    "module",
    "embedding",
    "tensor",
)
ALL_TYPES = (*VARIABLE_TYPES, "map", "list")

MOST_WORDS = 900
"""Characters of a refusal: clients drop long ones, so none grows with its input."""


def label(value: object) -> str:
    """Name a parameter; pytest's own way writes out all of it."""
    try:
        return ascii(value)[:30]
    except ValueError:  # an int beyond 4,300 digits
        return "long"


def stored(value: Value) -> any_pb2.Any:
    return any_pb2.Any.FromString(value.any)


def same(left: object, right: object) -> bool:
    """Equal in type, dtype, shape, sign of zero and NaN."""
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        return (
            left.dtype == right.dtype
            and left.shape == right.shape
            and repr(left.tolist()) == repr(right.tolist())
        )
    return type(left) is type(right) and repr(left) == repr(right)


def refusal(act: Callable[[], object]) -> str:
    """Give the words in which a value is refused."""
    with pytest.raises(InvalidValue) as caught:
        act()
    assert caught.value.code == "INVALID_ARGUMENT"
    assert len(caught.value.message) < MOST_WORDS
    return caught.value.message
