"""Embeddings and tensors in their JSON form, to and from numpy.

The wire contract: an embedding is a flat list of numbers; a tensor is an object of
exactly ``shape`` and ``data``, where data is nested as the shape says, or flat in C
order. Inside both, ``"NaN"``, ``"Infinity"`` and ``"-Infinity"`` stand for what JSON has
no numbers for; true, false, null and every other string are refused.

numpy would take ``true`` for 1, ``null`` for NaN and ``"1.5"`` for 1.5. So before it sees
a list, either the JSON text shows that there are only numbers in it (a search at memory
speed), or each element is looked at.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from snakepit_bridge.errors import InvalidValue, quote
from snakepit_bridge.strict_json import mismatch, parse, shown

__all__ = [
    "EMBEDDING",
    "MAX_ELEMENTS",
    "MAX_RANK",
    "SPECIAL_FLOATS",
    "TENSOR",
    "read_embedding",
    "read_shape",
    "read_tensor",
    "special_float",
    "write_embedding",
    "write_tensor",
]

Array = NDArray[np.float64] | NDArray[np.int64]

SPECIAL_FLOATS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

MAX_RANK = 32
"""Dimensions of a tensor: numpy's own limit before 2.0, which we still run on."""

MAX_ELEMENTS = 2**48
"""Product of a tensor's extents (an empty one counts as 1), far below the 2^63 bytes at
which numpy fails, far above any message. It stops ``[0, 1e30]`` before numpy."""

LARGE = 65_536
"""Bytes of JSON beyond which objects where none belong are refused before they are read:
they take a hundred times the memory of numbers, and minutes of a second, stricter parser."""

_KEYS = frozenset({"shape", "data"})
_WORDS = {bool: "true or false", dict: "an object"}

EMBEDDING = "a flat list of numbers"
TENSOR = 'an object of "shape" and "data" that fit each other'


def read_embedding(text: bytes) -> tuple[NDArray[np.float64], bytes]:
    """Read an embedding.

    :param text: JSON; ``[]`` is an embedding of no dimensions.
    :returns: float64, shape (n,), and the text, which is kept as it is.
    :raises InvalidValue: it is not strict JSON, or no flat list of numbers.
    """
    if len(text) > LARGE and b"{" in text:
        raise mismatch("embedding", EMBEDDING, f"{shown(text)} (with an object inside)")
    items = _loads("embedding", EMBEDDING, text)
    if type(items) is not list:
        raise mismatch("embedding", EMBEDDING, shown(text))
    # Only strings have quotes, only null and true have a u, only false has an a.
    only_numbers = not (b'"' in text or b"u" in text or b"a" in text)
    return _embedding(items, only_numbers=only_numbers), text


def write_embedding(value: object) -> tuple[NDArray[np.float64], bytes]:
    """Write a list, tuple or one-dimensional array of numbers.

    bool is none, but the elements of an array of that dtype are 0 and 1.

    :returns: float64, shape (n,), and its JSON.
    :raises InvalidValue: it is anything else.
    """
    if not isinstance(value, list | tuple | np.ndarray):
        raise mismatch("embedding", EMBEDDING, type(value).__name__)
    array = _embedding(value, only_numbers=False)
    return array, _dump(array)


def read_tensor(text: bytes) -> tuple[Array, bytes]:
    """Read a tensor.

    :returns: an array of the tensor's shape, and the text, which is kept as it is. The
        array is int64 where every number is an integer of 64 bits, else float64 (larger
        integers rounded); that of an empty tensor is float64.
    :raises InvalidValue: it is not strict JSON, has other keys than shape and data, or
        these do not fit each other.
    """
    if len(text) > LARGE and (text.count(b"{") > 1 or text.count(b":") > len(_KEYS)):
        raise mismatch("tensor", TENSOR, f"{shown(text)} (with objects inside, or other members)")
    document = _loads("tensor", TENSOR, text)
    if type(document) is not dict:
        raise mismatch("tensor", TENSOR, shown(text))
    # Each member has a colon. With only two of them, and both keys, no key came twice.
    if text.count(b":") != len(_KEYS):
        try:
            parse(text)
        except InvalidValue as error:
            raise mismatch("tensor", TENSOR, f"{shown(text)} ({error.message})") from None
    # The quotes of the two keys, so none in the data.
    only_numbers = text.count(b'"') == 2 * len(_KEYS) and not (
        b"true" in text or b"false" in text or b"null" in text
    )
    return _tensor(document, only_numbers=only_numbers), text


def write_tensor(value: object) -> tuple[Array, bytes]:
    """Write an array, a nested list of numbers, or ``{"shape": ..., "data": ...}``.

    :returns: the array as ``read_tensor`` gives it, and its JSON, with flat data.
    :raises InvalidValue: it is anything else, or has more than 32 dimensions.
    """
    if isinstance(value, dict):
        array = _tensor(value, only_numbers=False)
    elif isinstance(value, list | tuple | np.ndarray):
        array = _numbers("tensor", TENSOR, value, only_numbers=False)
        _check_rank("tensor", TENSOR, array.ndim)
    else:
        raise mismatch("tensor", TENSOR, type(value).__name__)
    return array, b'{"shape":%b,"data":%b}' % (orjson.dumps(array.shape), _dump(array))


def read_shape(type_name: str, expected: str, shape: object) -> tuple[int, ...]:
    """Read the shape of an array.

    :raises InvalidValue: it is no list of at most 32 non-negative integers, or their product
        (where an empty extent counts as 1) is above 2^48.
    """
    if not isinstance(shape, list | tuple):
        raise mismatch(type_name, expected, "one whose shape is no list")
    _check_rank(type_name, expected, len(shape))
    for extent in shape:
        if not isinstance(extent, int | np.integer) or isinstance(extent, bool):
            raise mismatch(type_name, expected, f"one with {_word(extent)} in its shape")
        if extent < 0:
            raise mismatch(type_name, expected, "one with a negative extent in its shape")
    extents = tuple(map(int, shape))
    if math.prod(extent or 1 for extent in extents) > MAX_ELEMENTS:
        raise mismatch(type_name, expected, "one of more than 2^48 elements")
    return extents


def special_float(value: float) -> str | None:
    """Name what JSON has no number for, as the wire contract does; None if it has."""
    if math.isfinite(value):
        return None
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _loads(type_name: str, expected: str, text: bytes) -> object:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        given = f"{shown(text)} (not valid JSON: {error})"
        raise mismatch(type_name, expected, given) from None


def _embedding(items: object, *, only_numbers: bool) -> NDArray[np.float64]:
    array = _numbers("embedding", EMBEDDING, items, only_numbers=only_numbers)
    if array.ndim != 1:
        raise mismatch("embedding", EMBEDDING, f"one nested to shape {list(array.shape)}")
    return array.astype(np.float64, copy=False)


def _tensor(document: dict[Any, Any], *, only_numbers: bool) -> Array:
    if document.keys() != _KEYS:
        keys = quote(", ".join(str(key) for key in list(document)[:10]))
        raise mismatch("tensor", TENSOR, f"an object of the keys {keys}")
    shape = read_shape("tensor", TENSOR, document["shape"])
    array = _numbers("tensor", TENSOR, document["data"], only_numbers=only_numbers)
    if array.shape == shape:
        return array
    if array.ndim != 1 or array.size != math.prod(shape):
        given = f"data of shape {list(array.shape)} under the shape {list(shape)}"
        raise mismatch("tensor", TENSOR, given)
    return array.reshape(shape)


def _check_rank(type_name: str, expected: str, rank: int) -> None:
    if rank > MAX_RANK:
        raise mismatch(type_name, expected, f"one of {rank} dimensions (at most {MAX_RANK})")


def _numbers(type_name: str, expected: str, data: object, *, only_numbers: bool) -> Array:
    """Make an array of numbers that are nested anyhow, but evenly.

    :param only_numbers: data is known to hold lists, dicts, int and float, no more.
    """
    if isinstance(data, np.ndarray):
        if data.dtype.kind not in "fiub":
            raise mismatch(type_name, expected, f"an array of dtype {data.dtype}")
        array: NDArray[Any] = np.asarray(data)
        if array.dtype.kind == "b":  # a dtype like others, whose elements are 0 and 1
            array = array.astype(np.int64)
    else:
        if not only_numbers:
            data = _plain(type_name, expected, data, "")
        try:
            array = np.asarray(data)
            if array.dtype.kind == "O":  # a dict, or integers that no dtype holds
                array = np.array(_plain(type_name, expected, data, ""), dtype=np.float64)
        except (ValueError, OverflowError):
            given = "one nested unevenly or too deeply, or beyond the range of a float"
            raise mismatch(type_name, expected, given) from None
    kind = array.dtype.kind
    if array.size and (kind == "i" or (kind == "u" and int(array.max()) < 2**63)):
        return array.astype(np.int64, copy=False)
    with np.errstate(over="ignore"):  # of a longdouble: it becomes infinite
        return array.astype(np.float64, copy=False)


def _plain(type_name: str, expected: str, data: object, path: str) -> object:
    """Give the same data as lists of int and float, or refuse what is neither."""
    if isinstance(data, list | tuple):
        if set(map(type, data)) <= {float, int}:
            return data
        if path.count("[") >= MAX_RANK:
            raise mismatch(type_name, expected, "one nested too deeply")
        return [
            item
            if type(item) is float or type(item) is int
            else _plain(type_name, expected, item, f"{path}[{index}]")
            for index, item in enumerate(data)
        ]
    if isinstance(data, str) and data in SPECIAL_FLOATS:
        return SPECIAL_FLOATS[data]
    if isinstance(data, int | float) and not isinstance(data, bool):
        return data
    if isinstance(data, np.ndarray | np.generic) and data.dtype.kind in "fiu":
        return data.tolist()
    where = path or "its top"
    if data is None:
        given = f"null at {where}: there are no null values"
    elif isinstance(data, str):
        given = f"the string {quote(data)} at {where}"
    else:
        given = f"{_word(data)} at {where}"
    raise mismatch(type_name, expected, f"one with {given}")


def _word(value: object) -> str:
    return _WORDS.get(type(value)) or f"a {type(value).__name__}"


def _dump(array: Array) -> bytes:
    flat = np.ascontiguousarray(array).ravel()
    if flat.dtype.kind == "i" or np.isfinite(flat).all():
        return orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY)
    return orjson.dumps([special_float(number) or number for number in flat.tolist()])
