"""Values of every type and form, through a bridge in a process of its own, and its restart."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.any_pb2 import Any as AnyMessage
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from snakepit_bridge.type_serialization import TypeSerializer, encode
from tests.bridge_process import BridgeProcess
from tests.value_checks import PREFIXES, same
from tests.wire_session import Session

floats = st.floats()
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "float": floats,
    "integer": st.integers() | st.integers(-(10**4299), 10**4299),
    "string": st.text(),
    "boolean": st.booleans(),
    "choice": st.text(),
    "module": st.text(),
    "embedding": st.lists(floats).map(lambda items: np.array(items, np.float64)),
    "tensor": npst.arrays(
        st.sampled_from([np.float64, np.int64]), npst.array_shapes(min_dims=0, max_side=4)
    ),
}
DTYPES = [
    kind + size for kind, sizes in (("f", "248"), ("iu", "1248")) for size in sizes for kind in kind
]
binary_arrays = npst.arrays(
    st.sampled_from(["?", *(f"<{name}" for name in DTYPES)]), npst.array_shapes(max_side=4)
)


class Sent(NamedTuple):
    """A value as it is sent, and as it has to come back."""

    type: str
    value: AnyMessage
    binary: bytes
    python: Any


@st.composite
def sent(draw: st.DrawFn, type_: str) -> Sent:
    prefix = draw(st.sampled_from(PREFIXES))
    if type_ in ("embedding", "tensor") and draw(st.booleans()):
        array = draw(binary_arrays)
        array = array.ravel() if type_ == "embedding" else array
        description: dict[str, Any] = {"binary_format": "npy"}
        stream = io.BytesIO()
        np.save(stream, array)
        binary = stream.getvalue()
        if draw(st.booleans()):
            description = {"shape": array.shape, "dtype": array.dtype.name, "binary_format": "raw"}
            binary = array.tobytes()
        text = json.dumps(description, indent=draw(st.none() | st.just(1))).encode()
        return Sent(
            type_, AnyMessage(type_url=f"{prefix}{type_}.binary", value=text), binary, array
        )
    typed, value = encode(type_, draw(VALUES[type_]), prefix)
    return Sent(type_, AnyMessage.FromString(value.any), b"", typed)


# One of each type first, then any; each is registered with the first value, and set to the second.
batches = st.tuples(*(st.tuples(sent(type_), sent(type_)) for type_ in VALUES)).flatmap(
    lambda pairs: st.lists(
        st.sampled_from(list(VALUES)).flatmap(lambda type_: st.tuples(sent(type_), sent(type_))),
        max_size=4,
    ).map(lambda more: [*pairs, *more])
)


def check(session: Session, pairs: list[tuple[Sent, Sent]]) -> None:
    names = [f"{index}" for index in range(len(pairs))]
    answer = session.call("GetVariables", variable_identifiers=names).variables
    for name, (_, last) in zip(names, pairs, strict=True):
        assert answer[name].type == last.type
        assert (answer[name].value, answer[name].binary_value) == (last.value, last.binary)
        read = TypeSerializer.deserialize_value(
            answer[name].value, binary=answer[name].binary_value
        )
        assert same(read, last.python)
    name, (first, last) = names[-1], pairs[-1]
    (second, one) = session.history(name).entries
    assert (one.value, one.binary_value) == (first.value, first.binary)
    assert (second.value, second.binary_value) == (last.value, last.binary)
    assert (second.old_value, second.old_binary_value) == (first.value, first.binary)


def test_values_survive_wire_log_and_restart(tmp_path: Path) -> None:
    numbers = itertools.count()
    written: list[tuple[str, list[tuple[Sent, Sent]]]] = []

    with BridgeProcess(tmp_path / "bridge.db") as bridge:

        @settings(
            max_examples=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate],
        )
        @given(batches)
        def write(pairs: list[tuple[Sent, Sent]]) -> None:
            session = Session(bridge, f"{next(numbers)}")
            for index, (first, _) in enumerate(pairs):
                session.call(
                    "RegisterVariable",
                    name=f"{index}",
                    type=first.type,
                    initial_value=first.value,
                    initial_binary_value=first.binary,
                )
            lasts = {f"{index}": last for index, (_, last) in enumerate(pairs)}
            answer = session.set_many(
                {name: last.value for name, last in lasts.items()},
                binary_updates={name: last.binary for name, last in lasts.items() if last.binary},
                atomic=True,
            )
            assert answer.success, dict(answer.errors)
            check(session, pairs)
            written.append((session.id, pairs))

        write()
        assert bridge.stop() == 0
    with BridgeProcess(tmp_path / "bridge.db") as bridge:
        for id_, pairs in written:
            check(Session(bridge, id_), pairs)
        assert bridge.stop() == 0


def test_a_large_array_of_python_code_comes_back_as_it_was(tmp_path: Path) -> None:
    arrays = {
        "embedding": np.random.default_rng(1).random(70_000, np.float32),
        "tensor": np.arange(3 * 70_000, dtype=">i2").reshape(3, 70_000),
    }
    for again in (False, True):
        with BridgeProcess(tmp_path / "bridge.db") as bridge:
            session = Session(bridge, "large")
            for type_, array in arrays.items():
                value, binary = TypeSerializer.serialize_with_binary(array, type_)
                if not again:
                    session.call(
                        "RegisterVariable",
                        name=type_,
                        type=type_,
                        initial_value=value,
                        initial_binary_value=binary,
                    )
                variable = session.get(type_)
                assert (variable.value, variable.binary_value) == (value, binary)
                read = TypeSerializer.deserialize_value(value, binary=variable.binary_value)
                assert same(read, array.astype(array.dtype.newbyteorder("<")))
            assert bridge.stop() == 0
