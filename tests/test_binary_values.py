"""Embeddings and tensors in their binary form, in all formats and dtypes."""

from __future__ import annotations

import io
import json
import math
import pickle
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from snakepit_bridge import binary_arrays
from snakepit_bridge.constraint_checks import DTYPES
from snakepit_bridge.errors import InvalidValue
from snakepit_bridge.events.model import make_value
from snakepit_bridge.type_serialization import (
    DSPEX_PREFIX,
    SNAKEPIT_PREFIX,
    TypeSerializer,
    accept,
    accept_any,
    encode,
    stored_type,
    to_python,
)
from snakepit_bridge.variables import parse_constraints
from tests.value_checks import MOST_WORDS, PREFIXES, label, refusal, same, stored

NUMPY_DTYPES = tuple(name for name in DTYPES if name != "bfloat16")
LITTLE = {name: np.dtype(name).newbyteorder("<") for name in NUMPY_DTYPES}

arrays = st.sampled_from(NUMPY_DTYPES).flatmap(
    lambda name: npst.arrays(LITTLE[name], npst.array_shapes(min_dims=0, min_side=0, max_side=6))
)

any_order = arrays.flatmap(
    lambda array: st.sampled_from([array, array.astype(array.dtype.newbyteorder(">"))])
)


def described(**members: Any) -> bytes:  # noqa: ANN401
    return json.dumps(members).encode()


def raw(array: np.ndarray[Any, Any], dtype: str | None = None) -> tuple[bytes, bytes]:
    """Write an array as a client would that has never seen our writer."""
    name = dtype or array.dtype.name
    shape = list(array.shape)
    return described(shape=shape, dtype=name, binary_format="raw"), array.tobytes()


def npy(array: np.ndarray[Any, Any], **members: Any) -> tuple[bytes, bytes]:  # noqa: ANN401
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return described(binary_format="npy", **members), stream.getvalue()


def npy_file(header: bytes, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    size = len(header).to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + version + size + header + data


def take(
    description: bytes, binary: bytes, type_: str = "tensor", prefix: str = DSPEX_PREFIX
) -> Any:  # noqa: ANN401
    return accept(type_, f"{prefix}{type_}.binary", description, binary)[0]


@settings(deadline=None, max_examples=300)
@given(arrays, st.sampled_from(PREFIXES), st.booleans())
def test_what_came_as_bytes_goes_out_as_these_bytes(
    array: np.ndarray[Any, Any], prefix: str, as_npy: bool
) -> None:
    for type_, sent in (("tensor", array), ("embedding", array.ravel())):
        description, binary = npy(sent) if as_npy or not sent.size else raw(sent)
        typed, value = accept(type_, f"{prefix}{type_}.binary", description, binary)
        assert same(typed, sent)
        assert value.binary is binary
        assert value == make_value(value.any, binary)
        assert stored(value).type_url == f"{prefix}{type_}.binary"
        assert stored(value).value == description
        assert stored_type(value.any) == type_
        assert accept_any(type_, value.any, binary)[1] == value
        assert same(to_python(type_, value.any, binary), sent)
        assert same(TypeSerializer.deserialize_value(stored(value), binary=binary), sent)


@settings(deadline=None)
@given(
    any_order,
    st.booleans(),
    st.sampled_from([(1, 0), (2, 0)]),
)
def test_an_npy_file_is_read_in_any_order(
    array: np.ndarray[Any, Any], fortran: bool, version: tuple[int, int]
) -> None:
    array = np.asfortranarray(array) if fortran and array.ndim else array
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=version)
    read = take(described(binary_format="npy"), stream.getvalue())
    assert same(read, array)
    fits = described(binary_format="npy", shape=list(array.shape), dtype=array.dtype.name)
    assert same(take(fits, stream.getvalue()), array)


@given(st.lists(st.integers(0, 2**16 - 1), min_size=1))
def test_bfloat16_is_the_upper_half_of_a_float32(bits: list[int]) -> None:
    halves = np.array(bits, "<u2")
    expected = [struct.unpack("<f", struct.pack("<I", half << 16))[0] for half in bits]
    for sent in (
        raw(halves, "bfloat16"),
        npy(halves, dtype="bfloat16"),
        npy(halves.astype(">u2"), dtype="bfloat16"),
    ):
        read = take(*sent)
        assert read.dtype == np.float32
        assert repr(read.tolist()) == repr(expected)


def test_nothing_is_copied() -> None:
    array = np.arange(2**20, dtype="<f4")
    for sent in (raw(array), npy(array)):
        tracemalloc.start()
        typed, value = accept("tensor", "dspex.variables/tensor.binary", *sent)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 100_000  # of 4 MiB
        assert value.binary is sent[1]
        assert np.shares_memory(np.asarray(typed), np.frombuffer(sent[1], np.uint8))


def test_the_json_is_kept_as_sent() -> None:
    text = b' { "binary_format" : "raw",\n "dtype":"int8", "sh\\u0061pe":[2] } '
    typed, value = accept("embedding", "dspex.variables/embedding.binary", text, b"\x01\xff")
    assert same(typed, np.array([1, -1], np.int8))
    assert stored(value).value == text


F4 = described(shape=[2], dtype="float32", binary_format="raw")
NPY = described(binary_format="npy")
HEADER = b"{'descr': '%b', 'fortran_order': False, 'shape': (%b), }"
SEND = "send 'raw' (the elements' bytes, little-endian, in C order) or 'npy'"


@pytest.mark.parametrize(
    ("description", "binary", "words"),
    [
        (described(shape=[1], dtype="float32", binary_format="pickle", type="tensor"), b"x", SEND),
        (described(shape=[1], binary_format="pickle"), b"x", "'pickle', which is never read"),
        (described(shape=[1], binary_format="erlang_binary"), b"x", "'erlang_binary', which is"),
        (described(shape=[1], binary_format="arrow"), b"x", "'arrow', which is not known: send"),
        (described(shape=[1], binary_format="RAW"), b"x", "not known: send 'raw'"),
        (described(shape=[1], binary_format=["raw"]), b"x", "of another type than string"),
        (described(shape=[1], binary_format=None), b"x", "of another type than string"),
        (described(shape=[1], dtype="int8"), b"x", "bytes without a binary_format: send 'raw'"),
        (described(dtype="int8", binary_format="raw"), b"x", "without a shape"),
        (described(shape=[1], binary_format="raw"), b"x", "without a dtype"),
        (
            described(shape=[1], dtype="int8", binary_format="raw", order="F"),
            b"x",
            "members 'order'",
        ),
        (described(shape=[1], dtype="int8", binary_format="npy", data=[1]), b"x", "members 'data'"),
        (b'{"shape":[1],"shape":[1],"dtype":"int8","binary_format":"raw"}', b"x", "given twice"),
        (b'{"shape":[1],"dtype":"int8","binary_format":"raw"', b"x", "not valid JSON"),
        (b'{"shape":[NaN],"dtype":"int8","binary_format":"raw"}', b"x", "not valid JSON"),
        (b'{"shape":%b}' % (b"[" * 2000), b"x", "not valid JSON"),
        (b'{"shape":[%b],"dtype":"int8"}' % (b"1," * 3000), b"x", "6027 bytes of JSON"),
        (b"[1]", b"x", "'[1]' beside the bytes"),
        (b"", b"x", "not valid JSON"),
        (b"null", b"x", "'null' beside the bytes"),
        (described(shape=[1], dtype="float", binary_format="raw"), b"x", "dtype 'float': send one"),
        (described(shape=[1], dtype="<f4", binary_format="raw"), b"1234", "dtype '<f4': send one"),
        (described(shape=[1], dtype="object", binary_format="raw"), b"x" * 8, "dtype 'object'"),
        (described(shape=[1], dtype="complex64", binary_format="raw"), b"x" * 8, "complex64"),
        (described(shape=[1], dtype=1, binary_format="raw"), b"x", "that is no string"),
        (described(shape=1, dtype="int8", binary_format="raw"), b"x", "whose shape is no list"),
        (described(shape=None, dtype="int8", binary_format="raw"), b"x", "shape is no list"),
        (described(shape=[1.0], dtype="int8", binary_format="raw"), b"x", "a float in its shape"),
        (described(shape=[True], dtype="int8", binary_format="raw"), b"x", "true or false in its"),
        (described(shape=["1"], dtype="int8", binary_format="raw"), b"x", "a str in its shape"),
        (described(shape=[-1], dtype="int8", binary_format="raw"), b"x", "negative extent"),
        (described(shape=[-1, -1], dtype="int8", binary_format="raw"), b"x", "negative extent"),
        (described(shape=[2**32, 2**32], dtype="int8", binary_format="raw"), b"x", "2^48"),
        (described(shape=[2**63, 2], dtype="int8", binary_format="raw"), b"x", "2^48"),
        (described(shape=[2**64 + 1], dtype="int8", binary_format="raw"), b"x", "2^48"),
        (described(shape=[0, 10**30], dtype="int8", binary_format="raw"), b"x", "2^48"),
        (described(shape=[1] * 33, dtype="int8", binary_format="raw"), b"x", "33 dimensions"),
        (
            F4,
            b"1234567",
            "7 bytes of elements under the dtype float32 and the shape '[2]', which make 8",
        ),
        (F4, b"123456789", "9 bytes"),
        (described(shape=[0], dtype="float32", binary_format="raw"), b"1234", "which make 0"),
        (described(shape=[], dtype="float64", binary_format="raw"), b"1234", "which make 8"),
        (
            described(shape=[2**20] * 2, dtype="float64", binary_format="raw"),
            b"x",
            "make 8796093022208",
        ),
        (described(shape=[3], dtype="bool", binary_format="raw"), b"\0\1\2", "bytes than 0 and 1"),
        (F4, pickle.dumps([0.5, 0.5], protocol=2), "they look like a pickle, which is never read"),
        (F4, pickle.dumps([0.5, 0.5]), "they look like a pickle, which is never read"),
        (F4, b"\x83k\x00\x01a", "they look like an Erlang term"),
        (F4, npy(np.zeros(2, "f4"))[1], "they look like an npy file: say so"),
        (NPY, pickle.dumps([0.5]), "they look like a pickle"),
        (NPY, b"\x93NUMP", "do not begin as an npy file"),
        (NPY, b"\x93NUMPY", "another version than 1.0 and 2.0"),
        (NPY, b"\x93NUMPY\x03\x00", "another version than 1.0 and 2.0"),
        (NPY, b"\x93NUMPY\x01\x00", "header is not that of an array of numbers"),
        (NPY, npy_file(b""), "header is not that of"),
        (NPY, npy_file(b"x" * 60_000), "header is not that of"),
        (NPY, b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b"x" * 10_000, "header is not that of"),
        (NPY, npy_file(b"-" * 4000 + b"1"), "header is not that of"),
        (NPY, npy_file(HEADER % (b"i1", b"1,") + b" " * 5000, b"x"), "header is not that of"),
        (NPY, npy_file(b"(" * 4000), "header is not that of"),
        (
            NPY,
            npy_file(b"{'descr':True," + b" " * 1300 + b"'shape':()" + b" " * 2600 + b"x"),
            "not that",
        ),
        (
            NPY,
            npy_file(HEADER.replace(b"False", b"__import__('os').abort()") % (b"i1", b"1,")),
            "not that",
        ),
        (
            NPY,
            npy_file(HEADER % (b"|O", b"1,"), b"12345678"),
            "an npy file of Python objects: send",
        ),
        (NPY, npy(np.array([{}], dtype=object))[1], "an npy file of Python objects"),
        (NPY, npy(np.array([1j]))[1], "elements of dtype complex128: send float16, float32"),
        (NPY, npy(np.array(["a"]))[1], "elements of dtype str"),
        (NPY, npy(np.array([1], "M8[s]"))[1], "header is not that of an array of numbers"),
        (NPY, npy(np.zeros(1, "i4,f4"))[1], "header is not that of an array of numbers"),
        (NPY, npy_file(HEADER % (b"<f9", b"1,"), b"1234"), "an npy file with the header"),
        (NPY, npy_file(HEADER % (b"<f4", b"1"), b"1234"), "an npy file with the header"),
        (NPY, npy_file(HEADER % (b"<f4", b"-1,"), b"1234"), "header is not that of"),
        (NPY, npy_file(HEADER % (b"<f4", b"9" * 400 + b","), b"1234"), "more than 2^48 elements"),
        (NPY, npy_file(HEADER % (b"<f4", b"1," * 33), b"1234"), "33 dimensions"),
        (
            NPY,
            npy_file(HEADER % (b"<f4", b"2,"), b"1234"),
            "4 bytes of elements under the dtype float32",
        ),
        (NPY, npy_file(HEADER % (b"<f4", b"1,"), b"12345"), "which make 4"),
        (NPY, npy_file(HEADER % (b"|b1", b"2,"), b"\1\2"), "bools of other bytes than 0 and 1"),
        (
            NPY,
            npy_file(b"{'descr':'i1','descr':'i1','shape':()}", b"1"),
            "an npy file with the header",
        ),
        (
            npy(np.zeros(2), shape=[1, 2])[0],
            npy(np.zeros(2))[1],
            "shape '[2]' under the shape '[1, 2]'",
        ),
        (npy(np.zeros(2), shape=[-1])[0], npy(np.zeros(2))[1], "negative extent"),
        (
            npy(np.zeros(2), dtype="float32")[0],
            npy(np.zeros(2))[1],
            "float64 under the dtype float32",
        ),
        (npy(np.zeros(2), dtype="bfloat16")[0], npy(np.zeros(2))[1], "under the dtype bfloat16"),
        (npy(np.zeros(2), dtype="f8")[0], npy(np.zeros(2))[1], "dtype 'f8': send one of"),
    ],
    ids=label,
)
def test_what_does_not_fit_is_refused_with_what_to_send(
    description: bytes, binary: bytes, words: str
) -> None:
    message = refusal(lambda: take(description, binary))
    assert message.startswith("a value of type tensor must be bytes and a JSON object")
    assert words in message


def test_a_pickle_is_refused_even_where_its_length_fits() -> None:
    for protocol in (4, 5):
        binary = pickle.dumps(list(range(50)), protocol=protocol)
        description = described(shape=[len(binary)], dtype="uint8", binary_format="raw")
        assert "they look like a pickle" in refusal(lambda d=description, b=binary: take(d, b))  # type: ignore[misc]
    harmless = b"\x80\x04\x95" + b"\xff" * 20 + b"."
    assert take(described(shape=[24], dtype="uint8", binary_format="raw"), harmless).size == 24


@pytest.mark.parametrize("shape", [[], [1, 2], [2, 1]])
def test_an_embedding_has_one_dimension(shape: list[int]) -> None:
    array = np.zeros(shape, np.float32)
    for sent in (raw(array), npy(array)):
        message = refusal(lambda sent=sent: take(*sent, type_="embedding"))  # type: ignore[misc]
        assert f"an array of shape {shape}" in message


@pytest.mark.parametrize(
    ("type_name", "type_url", "binary", "words"),
    [
        ("tensor", "dspex.variables/tensor.binary", b"", "came without its bytes"),
        ("embedding", SNAKEPIT_PREFIX + "embedding.binary", b"", "came without its bytes"),
        ("tensor", "dspex.variables/tensor", b"\0" * 8, "8 binary bytes came with type_url"),
        ("tensor", "dspex.variables/embedding.binary", b"\0" * 8, "contradicts the type tensor"),
        ("embedding", "dspex.variables/tensor.binary", b"\0" * 8, "contradicts the type embedding"),
        ("string", "dspex.variables/string.binary", b"\0", "the type string has no binary form"),
        ("map", "dspex.variables/map.binary", b"\0", "the type map has no binary form"),
        ("tensor", "dspex.variables/tensor.binary.binary", b"\0", "unknown type_url"),
        ("tensor", "tensor.binary", b"\0", "unknown type_url"),
        ("tensor", ".binary", b"\0", "unknown type_url"),
        ("tensor", "", b"\0", "the type_url is empty"),
    ],
)
def test_bytes_and_type_url_have_to_fit(
    type_name: str, type_url: str, binary: bytes, words: str
) -> None:
    description = F4
    assert words in refusal(lambda: accept(type_name, type_url, description, binary))


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=40), st.sampled_from(["raw", "npy"]), st.sampled_from(sorted(DTYPES)))
def test_any_bytes_are_read_or_refused(binary: bytes, format_: str, dtype: str) -> None:
    words = [""]
    for description in (
        described(shape=[len(binary) // 2], dtype=dtype, binary_format=format_),
        described(binary_format=format_),
        binary,
    ):
        for sent in (binary, npy_file(binary), npy_file(HEADER % (b"<i2", binary), binary)):
            try:
                accept("tensor", "dspex.variables/tensor.binary", description, sent)
            except InvalidValue as error:
                words.append(error.message)
    assert max(map(len, words)) < MOST_WORDS


@settings(deadline=None, max_examples=200)
@given(any_order.filter(lambda array: array.size > 0), st.booleans(), st.sampled_from(PREFIXES))
def test_a_large_array_is_written_as_raw_bytes(
    array: np.ndarray[Any, Any],
    fortran: bool,
    prefix: str,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(binary_arrays, "MAX_JSON_ELEMENTS", 0)
        for type_, given_ in (
            ("tensor", array.copy("F" if fortran else "C")),
            ("embedding", array.ravel()),
        ):
            typed, value = encode(type_, given_, prefix)
            expected = given_.astype(given_.dtype.newbyteorder("<"), order="C")
            assert same(typed, expected)
            assert stored(value).type_url == f"{prefix}{type_}.binary"
            assert (stored(value).value, value.binary) == (
                raw(expected)[0].replace(b" ", b""),
                expected.tobytes(),
            )
            assert same(to_python(type_, value.any, value.binary), expected)
            assert accept_any(type_, value.any, value.binary)[1] == value


def test_the_size_decides_about_the_form() -> None:
    for size, form in ((65_536, ""), (65_537, ".binary")):
        array = np.zeros(size, np.float32)
        for type_ in ("embedding", "tensor"):
            assert stored(encode(type_, array)[1]).type_url == f"dspex.variables/{type_}{form}"
            message, binary = TypeSerializer.serialize_with_binary(array, type_)
            assert message.type_url == f"dspex.variables/{type_}{form}"
            assert bool(binary) == bool(form)
            assert TypeSerializer.serialize_value(array, type_).type_url.endswith(type_)
    # What has no dtype of the binary form stays JSON, or is refused as ever.
    listed = [0.5] * 65_537
    assert stored(encode("embedding", listed)[1]).type_url == "dspex.variables/embedding"
    assert "complex" in refusal(lambda: encode("tensor", np.zeros(65_537, complex)))
    assert "shape [1, 65537]" in refusal(lambda: encode("embedding", np.zeros((1, 65_537))))
    deep = np.zeros((65_537, *[1] * 31))
    assert stored(encode("tensor", deep)[1]).type_url.endswith(".binary")


def test_a_written_array_is_not_the_callers() -> None:
    array = np.zeros(65_537)
    typed, value = encode("tensor", array)
    array[0] = 1
    assert np.asarray(typed)[0] == 0
    assert not np.asarray(to_python("tensor", value.any, value.binary)).flags.writeable


def check(
    type_: str, constraints: dict[str, Any], array: np.ndarray[Any, Any], dtype: str = ""
) -> None:
    for sent in (raw(array, dtype), npy(array, **({"dtype": dtype} if dtype else {}))):
        parse_constraints(type_, json.dumps(constraints)).check(take(*sent, type_=type_))


@pytest.mark.parametrize("name", NUMPY_DTYPES)
def test_constraints_hold_binary_arrays(name: str) -> None:
    unit = np.array([0, 1, 0], LITTLE[name])
    check("embedding", {"dimensions": 3, "normalize": True}, unit)
    for wrong in ({"dimensions": 2}, {"dimensions": 4}):
        assert "dimensions" in refusal(lambda wrong=wrong: check("embedding", wrong, unit))  # type: ignore[misc]
    ones = np.ones(400, LITTLE[name])
    message = refusal(lambda: check("embedding", {"normalize": True}, ones))
    assert "embedding of norm 20, must have norm 1" in message
    check("tensor", {"shape": [None, 3], "dtype": name}, unit.reshape(1, 3))
    assert "must be [3]" in refusal(lambda: check("tensor", {"shape": [3]}, unit.reshape(1, 3)))
    for wanted in DTYPES:
        check("tensor", {"dtype": wanted}, unit)  # 0 and 1 fit everywhere


def test_norms_are_computed_in_float64() -> None:
    for array in (
        np.full(100, 0.1, np.float16),
        np.full(3, 300, np.float16),
        np.array([100, 100], np.int8),
        np.array([2**40], np.int64),
        np.full(1000, 1e30, np.float32),
    ):
        norm = math.sqrt(sum(float(x) ** 2 for x in array))
        words = refusal(lambda array=array: check("embedding", {"normalize": True}, array))  # type: ignore[misc]
        assert f"norm {norm:.9g}," in words
    many = np.full(10**6, 1e-3, np.float32)
    check("embedding", {"normalize": True}, many)
    half = np.array([0x3F35, 0x3F35], "<u2")  # 0.70703125, twice
    assert "norm 0.99989" in refusal(
        lambda: check("embedding", {"normalize": True}, half, "bfloat16")
    )
    special = np.array([math.nan, 1], np.float32)
    assert "norm nan" in refusal(lambda: check("embedding", {"normalize": True}, special))


@pytest.mark.parametrize(
    ("wanted", "array", "words"),
    [
        ("float32", np.array([1e38, math.nan, math.inf]), ""),
        ("float32", np.array([1e39]), "beyond the range of float32"),
        ("float16", np.array([65519.0], np.float32), ""),
        ("float16", np.array([-65520.0], np.float32), "elements from -65520.0 to -65520.0, beyond"),
        ("float16", np.array([8e4, math.nan, 7e4, math.inf]), "elements from 70000.0 to 80000.0"),
        ("bfloat16", np.array([3.4e38], np.float32), "beyond the range of bfloat16"),
        ("float16", np.array([70_000], np.int32), "beyond the range of float16"),
        ("int8", np.array([127, -128], np.int64), ""),
        ("int8", np.array([128], np.uint8), "beyond the range of int8"),
        ("int64", np.array([2**63], np.uint64), "beyond the range of int64"),
        ("uint64", np.array([2**64 - 1], np.uint64), ""),
        ("uint8", np.array([-1], np.int8), "beyond the range of uint8"),
        ("int8", np.array([1, 2], np.float16), ""),
        ("int8", np.array([1.5], np.float16), "has a fraction"),
        ("int8", np.array([math.inf], np.float32), "has a fraction"),
        ("int8", np.array([math.nan], ">f8"), "has a fraction"),
        ("bool", np.array([0, 1], np.int8), ""),
        ("bool", np.array([2.0]), "beyond the range of bool"),
        ("float32", np.array([math.nan]), ""),
    ],
    ids=label,
)
def test_a_dtype_asks_whether_the_elements_fit(
    wanted: str, array: np.ndarray[Any, Any], words: str
) -> None:
    def act() -> None:
        parse_constraints("tensor", json.dumps({"dtype": wanted})).check(take(*npy(array)))

    if words:
        assert words in refusal(act)
    else:
        act()
