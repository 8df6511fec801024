"""Values as they were first written: each type, prefix and form, byte for byte.

``values.json`` holds the ``Any`` and the binary bytes of each as hex. It is read for ever:
logs are full of such values, and clients know them. ``python -m tests.golden.values`` adds
what is not in it yet, and never changes what is.
"""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from snakepit_bridge import binary_arrays
from snakepit_bridge.constraint_checks import DTYPES
from snakepit_bridge.events.model import Value, make_value
from snakepit_bridge.tool_values import encode_result
from snakepit_bridge.type_serialization import DSPEX_PREFIX, SNAKEPIT_PREFIX, encode

PATH = Path(__file__).with_suffix(".json")

PREFIXES = {"dspex": DSPEX_PREFIX, "snakepit": SNAKEPIT_PREFIX}

JSON_VALUES: dict[str, tuple[str, Any]] = {
    "float": ("float", 0.7),
    "float, whole": ("float", 3.0),
    "float, negative zero": ("float", -0.0),
    "float, least": ("float", 5e-324),
    "float, NaN": ("float", math.nan),
    "float, Infinity": ("float", math.inf),
    "float, -Infinity": ("float", -math.inf),
    "integer": ("integer", 42),
    "integer, beyond a double": ("integer", -9007199254740993),
    "integer, 30 digits": ("integer", 123456789012345678901234567890),
    "integer, 4300 digits": ("integer", 10**4300 - 1),
    "string": ("string", "héllo"),
    "string, empty": ("string", ""),
    "string, escaped": ("string", '\0\n\t"\\/\x7f\U0001f600'),
    "string, long": ("string", "x" * 200),
    "boolean, true": ("boolean", True),
    "boolean, false": ("boolean", False),
    "choice": ("choice", "fast"),
    "module": ("module", "DSPy.ChainOfThought"),
    "embedding": ("embedding", np.array([0.1, -2.0, 3e-7])),
    "embedding, empty": ("embedding", np.array([])),
    "embedding, special": ("embedding", np.array([math.nan, math.inf, -math.inf, -0.0])),
    "tensor, int64": ("tensor", np.array([[1, -2], [3, 2**53 + 1]])),
    "tensor, float64": ("tensor", np.array([[0.5], [math.nan]])),
    "tensor, scalar": ("tensor", np.array(5)),
    "tensor, empty": ("tensor", np.empty((2, 0))),
    "map": ("map", {"a": [1, None, 0.5, "NaN"], "": {}, "é": 10**30}),
    "list": ("list", [True, "x", [], {"b": -0.0}]),
}

BINARY_VALUES: dict[str, tuple[str, Any]] = {
    **{
        f"{type_}, {name}": (type_, np.array(numbers, np.dtype(name).newbyteorder("<")))
        for name, (_, least, greatest) in DTYPES.items()
        if name != "bfloat16"
        for type_, numbers in (
            ("embedding", [0, 1]),
            ("tensor", [[0, 1, int(least)], [1, 0, int(greatest)]])
            if np.dtype(name).kind != "f"
            else ("tensor", [[0.5, -0.0, math.nan], [math.inf, -math.inf, 1.5]]),
        )
    }
}

JSON_TEXTS: dict[str, tuple[str, bytes, Any]] = {
    # orjson has written this as e308 and as e+308.
    "float, greatest": ("float", b"1.7976931348623157e308", 1.7976931348623157e308),
    "float, as sent": ("float", b" 150.0E-2\n", 1.5),
    "string, as sent": ("string", b'"\\u00e9\\/\\ud83d\\ude00"', "é/\U0001f600"),
    "embedding, as sent": ("embedding", b'[1, 2.50, "-Infinity"]', np.array([1, 2.5, -math.inf])),
    "tensor, as sent": ("tensor", b'{"data":[[1],[2]], "shape":[2,1]}', np.array([[1], [2]])),
}

NPY_FILES: dict[str, tuple[str, Any]] = {
    "tensor, npy float32": ("tensor", np.array([[0.5, math.nan]], "<f4")),
    "tensor, npy big-endian": ("tensor", np.array([[1, -2, 300]], ">i2")),
    "tensor, npy Fortran": ("tensor", np.asfortranarray(np.arange(6.0).reshape(2, 3))),
    "tensor, npy scalar": ("tensor", np.array(True)),
    "embedding, npy float64": ("embedding", np.array([0.1, -0.0])),
}

HALVES = (0x3F80, 0x8000, 0x7FC0, 0xFF80)
BFLOAT16 = np.array([1.0, -0.0, math.nan, -math.inf], np.float32)
"""What these halves of a float32 are."""


def written() -> dict[str, dict[str, str]]:
    """Write what Python code can write, as this release does."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for limit, values in ((1 << 62, JSON_VALUES), (0, BINARY_VALUES)):
            patch.setattr(binary_arrays, "MAX_JSON_ELEMENTS", limit)
            for label, (type_, python) in values.items():
                for name, prefix in PREFIXES.items():
                    found[f"{label}; {name}"] = _entry(encode(type_, python, prefix)[1])
    return {**found, "null": _entry(encode_result(None))}


def received() -> dict[str, dict[str, str]]:
    """Write what only clients write."""
    found = {}
    for name, prefix in PREFIXES.items():
        for label, (type_, text, _) in JSON_TEXTS.items():
            message = AnyMessage(type_url=prefix + type_, value=text)
            found[f"{label}; {name}"] = _entry(make_value(message.SerializeToString()))
        for label, (type_, python) in NPY_FILES.items():
            stream = io.BytesIO()
            np.save(stream, python)
            text = b'{"binary_format": "npy"}'
            found[f"{label}; {name}"] = _entry(_binary(prefix, type_, text, stream.getvalue()))
        for type_ in ("embedding", "tensor"):
            text = b'{"shape": [4], "dtype": "bfloat16", "binary_format": "raw"}'
            halves = np.array(HALVES, "<u2").tobytes()
            found[f"{type_}, bfloat16; {name}"] = _entry(_binary(prefix, type_, text, halves))
    return found


def _binary(prefix: str, type_: str, text: bytes, binary: bytes) -> Value:
    message = AnyMessage(type_url=f"{prefix}{type_}.binary", value=text)
    return make_value(message.SerializeToString(), binary)


def _entry(value: Value) -> dict[str, str]:
    return {"any": value.any.hex(), "binary": value.binary.hex()}


if __name__ == "__main__":
    known = json.loads(PATH.read_text()) if PATH.exists() else {}
    entries = {**written(), **received(), **known}
    PATH.write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n")
