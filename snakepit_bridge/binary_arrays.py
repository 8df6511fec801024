"""Embeddings and tensors in their binary form: a description in JSON, and bytes beside it.

The wire contract: the description is an object of ``shape``, ``dtype`` and
``binary_format``. The bytes are, as the format says,

- ``raw``: the elements, little-endian, in C order;
- ``npy``: a file as ``numpy.save`` writes it, without pickled objects. Its header says
  shape, dtype and order; what the description also says must agree.

Arrays are made over the bytes that came, without a copy and without a look at the
elements: how long that takes does not depend on the size. NaN and infinities are
elements like others. There are two exceptions. numpy has no bfloat16: its 16 bits are
the upper half of a float32 and are widened to one. And a bool is one byte of 0 or 1;
numpy's own code breaks on others, so they are looked for.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import orjson
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from snakepit_bridge.errors import InvalidValue, quote
from snakepit_bridge.json_arrays import read_shape
from snakepit_bridge.strict_json import mismatch, parse, shown

__all__ = ["BINARY", "MAX_DESCRIPTION", "MAX_JSON_ELEMENTS", "binary_form"]

BINARY = 'bytes and a JSON object of "shape", "dtype" and "binary_format" that fit them'

MAX_JSON_ELEMENTS = 65_536
"""Arrays from Python code are written as JSON up to here, as raw bytes beyond.

Old Elixir clients drop the bytes, so what they can be expected to take stays JSON: 65,536
doubles are 1.3 MB of it, and a gRPC client takes 4 MiB in a message by default. They take
3 ms to write and 6 ms to read, where raw bytes take microseconds."""

MAX_DESCRIPTION = 4096
"""Bytes of a description; 32 extents below 2^48 take about 600. The same for the header of
an npy file, of which numpy writes 128 bytes, and which numpy parses as a Python literal."""

_ELEMENTS: dict[str, np.dtype[Any]] = {
    "float16": np.dtype("<f2"),
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
    "bfloat16": np.dtype("<u2"),
    "int8": np.dtype("i1"),
    "int16": np.dtype("<i2"),
    "int32": np.dtype("<i4"),
    "int64": np.dtype("<i8"),
    "uint8": np.dtype("u1"),
    "uint16": np.dtype("<u2"),
    "uint32": np.dtype("<u4"),
    "uint64": np.dtype("<u8"),
    "bool": np.dtype("?"),
}
_MEMBERS = ("shape", "dtype", "binary_format")
_INSTEAD = (
    "send 'raw' (the elements' bytes, little-endian, in C order) or 'npy' (as numpy.save "
    "writes it), or the JSON form"
)
_NEVER_READ = {
    "pickle": "unpickling bytes runs code that their sender chose",
    "erlang_binary": "it needs an Erlang runtime",
}

_NPY_MAGIC = b"\x93NUMPY"
_NPY_HEADERS = {
    b"\x01\x00": (10, npy_format.read_array_header_1_0),
    b"\x02\x00": (12, npy_format.read_array_header_2_0),
}
# Three members in any order. numpy evaluates a header as a Python literal: nothing that is not
# of this form gets there (nested brackets, escapes, what draws warnings). Every quantifier
# is possessive, so that there is one way only to try.
_NPY_KEY = rb"""\s*+['"](?:descr|fortran_order|shape)['"]\s*+:\s*+"""
_NPY_SHAPE = rb"\(\s*+(?:(?:0|[1-9][0-9]*+)\s*+,\s*+)*+(?:(?:0|[1-9][0-9]*+)\s*+)?+\)"
_NPY_MEMBER = rb"""%b(?:['"][<>|=]?+[?biufcmMOSUV][0-9]{0,3}+['"]|True|False|%b)\s*+""" % (
    _NPY_KEY,
    _NPY_SHAPE,
)
_NPY_HEADER = re.compile(rb"\{%b(?:,%b){2}+,?+\s*+\}\s*+" % ((_NPY_MEMBER,) * 2))

_PICKLE_FRAME = 11  # bytes of PROTO and FRAME, with which protocols 4 and 5 begin


class _Layout(NamedTuple):
    """What bytes are made of."""

    dtype: str
    shape: tuple[int, ...]
    element: np.dtype[Any]
    order: Literal["C", "F"] = "C"
    offset: int = 0


Reader = Callable[[bytes, bytes], NDArray[Any]]
Writer = Callable[[object], tuple[NDArray[Any], bytes, bytes] | None]


def binary_form(name: str, rank: int | None = None) -> tuple[Reader, Writer]:
    """Make the reader and the writer of a type's binary form.

    The reader takes the description and the bytes, and gives an array of the dtype and
    shape as sent, read-only, over these bytes (bfloat16: a float32 array of its own; npy
    in big-endian or Fortran order: an array in that order). It raises ``InvalidValue``
    for anything else, and says what to send instead.

    The writer takes a numpy array of more than 65,536 elements and gives that array anew,
    the description and the bytes (raw; dtype and shape kept, big-endian and Fortran order
    changed). For all other values it gives None: JSON is their form.

    :param name: of the type, for messages.
    :param rank: the number of dimensions that an array must have; None for up to 32.
    """

    def read(description: bytes, binary: bytes) -> NDArray[Any]:
        members = _described(name, description)
        npy = members["binary_format"] == "npy"
        array = _array(name, _npy(name, members, binary) if npy else _raw(name, members), binary)
        if rank is not None and array.ndim != rank:
            raise mismatch(name, BINARY, f"an array of shape {list(array.shape)}")
        return array

    def write(value: object) -> tuple[NDArray[Any], bytes, bytes] | None:
        if not isinstance(value, np.ndarray) or value.size <= MAX_JSON_ELEMENTS:
            return None
        array: NDArray[Any] = value
        dtype = array.dtype.name
        element = _ELEMENTS.get(dtype)
        if element is None or array.ndim != (rank or array.ndim):
            return None
        description = orjson.dumps({"shape": array.shape, "dtype": dtype, "binary_format": "raw"})
        binary = array.astype(element, copy=False).tobytes()
        return read(description, binary), description, binary

    return read, write


def _described(name: str, description: bytes) -> dict[str, Any]:
    """Read a description; its format is one that is read, its dtype and shape are open."""
    if len(description) > MAX_DESCRIPTION:
        raise mismatch(
            name, BINARY, f"{len(description)} bytes of JSON ({MAX_DESCRIPTION} at most)"
        )
    try:
        members = parse(description)
    except InvalidValue as error:
        raise mismatch(name, BINARY, f"{shown(description)} ({error.message})") from None
    if not isinstance(members, dict):
        raise mismatch(name, BINARY, f"{shown(description)} beside the bytes")
    format_ = members.get("binary_format")
    if format_ not in ("raw", "npy"):
        if "binary_format" not in members:
            raise mismatch(name, BINARY, f"bytes without a binary_format: {_INSTEAD}")
        given = quote(format_) if isinstance(format_, str) else "of another type than string"
        why = _NEVER_READ.get(format_) if isinstance(format_, str) else None
        why = f"never read, because {why}" if why else "not known"
        raise mismatch(name, BINARY, f"a binary_format {given}, which is {why}: {_INSTEAD}")
    unknown = [key for key in members if key not in _MEMBERS]
    if unknown:
        keys = quote(", ".join(unknown))
        raise mismatch(name, BINARY, f"an object with the unknown members {keys}: leave them out")
    return members


def _raw(name: str, members: dict[str, Any]) -> _Layout:
    for key in ("dtype", "shape"):
        if key not in members:
            raise mismatch(name, BINARY, f"raw bytes without a {key}: send shape and dtype")
    dtype = _dtype(name, members["dtype"])
    return _Layout(dtype, read_shape(name, BINARY, members["shape"]), _ELEMENTS[dtype])


def _npy(name: str, members: dict[str, Any], binary: bytes) -> _Layout:
    layout = _npy_header(name, binary)
    dtype, element = layout.dtype, layout.element
    if dtype not in _ELEMENTS:
        given = "Python objects" if element.hasobject else f"elements of dtype {dtype}"
        raise mismatch(name, BINARY, f"an npy file of {given}: send {', '.join(_ELEMENTS)}")
    if "dtype" in members:
        wanted = _dtype(name, members["dtype"])
        if wanted != dtype and (wanted, dtype) != ("bfloat16", "uint16"):
            given = f"an npy file of dtype {dtype} under the dtype {wanted}"
            raise mismatch(name, BINARY, given)
        dtype = wanted
    shape = read_shape(name, BINARY, layout.shape)
    if "shape" in members and read_shape(name, BINARY, members["shape"]) != shape:
        wrong = quote(str(members["shape"]))
        given = f"an npy file of shape {quote(str(list(shape)))} under the shape {wrong}"
        raise mismatch(name, BINARY, given)
    return layout._replace(dtype=dtype, shape=shape)


def _npy_header(name: str, binary: bytes) -> _Layout:
    """Read the header; neither dtype nor shape is checked."""
    if not binary.startswith(_NPY_MAGIC):
        given = f"bytes that do not begin as an npy file does{_hint(binary)}"
        raise mismatch(name, BINARY, given)
    start, read_header = _NPY_HEADERS.get(binary[6:8], (0, None))
    if read_header is None:
        given = "an npy file of another version than 1.0 and 2.0"
        raise mismatch(name, BINARY, given)
    offset = start + int.from_bytes(binary[8:start], "little")
    header = binary[start : min(offset, start + MAX_DESCRIPTION)]
    if len(header) != offset - start or not _NPY_HEADER.fullmatch(header):
        given = f"an npy file whose header is not that of an array of numbers: {shown(header)}"
        raise mismatch(name, BINARY, given)
    stream = io.BytesIO(binary[:offset])
    npy_format.read_magic(stream)
    try:
        shape, fortran, element = read_header(stream, max_header_size=MAX_DESCRIPTION)
    except (ValueError, TypeError) as error:
        given = f"an npy file with the header {shown(header)} ({quote(str(error))})"
        raise mismatch(name, BINARY, given) from None
    return _Layout(element.name, shape, element, "F" if fortran else "C", offset)


def _array(name: str, layout: _Layout, binary: bytes) -> NDArray[Any]:
    dtype, shape, element, order, offset = layout
    elements = math.prod(shape)
    wanted, given = elements * element.itemsize, len(binary) - offset
    if wanted != given:
        raise mismatch(
            name,
            BINARY,
            f"{given} bytes of elements under the dtype {dtype} and the shape "
            f"{quote(str(list(shape)))}, which make {wanted}{'' if offset else _hint(binary)}",
        )
    if not offset and _is_pickle(binary):
        raise mismatch(name, BINARY, f"raw bytes{_hint(binary)}")
    if not elements:
        return np.empty(shape, element)
    flat: NDArray[Any] = np.frombuffer(binary, element, elements, offset)
    if dtype == "bool" and flat.view(np.uint8).max() > 1:
        raise mismatch(name, BINARY, "bools of other bytes than 0 and 1")
    if dtype == "bfloat16":
        wide = flat.astype(np.uint32)
        wide <<= 16
        flat = wide.view(np.float32)
    return flat.reshape(shape, order=order)


def _dtype(name: str, dtype: object) -> str:
    if not isinstance(dtype, str) or dtype not in _ELEMENTS:
        given = quote(dtype) if isinstance(dtype, str) else "that is no string"
        raise mismatch(name, BINARY, f"a dtype {given}: send one of {', '.join(_ELEMENTS)}")
    return dtype


def _is_pickle(binary: bytes) -> bool:
    """Whether these bytes are one of today's pickles; by chance only one in 2^31 and more."""
    return (
        binary[:3] in (b"\x80\x04\x95", b"\x80\x05\x95")
        and int.from_bytes(binary[3:_PICKLE_FRAME], "little") <= len(binary) - _PICKLE_FRAME
        and binary.endswith(b".")
    )


def _hint(binary: bytes) -> str:
    """Say what bytes look like that cannot be what they are said to be."""
    if binary[:1] == b"\x80" and binary[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return f"; they look like a pickle, which is never read: {_INSTEAD}"
    if binary[:1] == b"\x83":
        return f"; they look like an Erlang term, which is not read: {_INSTEAD}"
    if binary.startswith(_NPY_MAGIC):
        return "; they look like an npy file: say so in binary_format"
    return ""
