"""The remembered requests against an ordered dictionary that is trimmed by hand.

The table is kept in three layers and travels between threads and files; whatever is done to
it, it knows what the plain dictionary knows. A few requests are made to be "all that are
remembered" here: the number is read when it is needed.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snakepit_bridge.errors import DataLoss
from snakepit_bridge.event_log_pb2 import Record
from snakepit_bridge.events import requests
from snakepit_bridge.events.requests import METHODS, REMEMBERED_REQUESTS, RequestTable

FEW = 7
"""As many are remembered in most of these tests."""

HEAD = 40
"""Bytes before the rows of an encoded table: the digest of all that follows, and the count."""


@pytest.fixture(autouse=True)
def few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "all_that_are" not in request.node.name:
        monkeypatch.setattr(requests, "REMEMBERED_REQUESTS", FEW)


class Known(NamedTuple):
    method: str
    digest: bytes
    first_offset: int
    version: int


def header(id_: str, offset: int, *, key: str = "", known: Known | None = None) -> bytes:
    """A record that has a request, as it is stored."""
    record = Record(first_offset=offset)
    record.request.id, record.request.key = id_, key
    record.request.method = known.method if known else "SetVariable"
    record.request.digest = known.digest if known else digest_of(offset)
    event = record.events.add()
    if known is None or known.version:
        event.variable_set.version = known.version if known else offset
    else:
        event.session_started.SetInParent()
    return record.SerializeToString()


def digest_of(offset: int) -> bytes:
    # Every third ends in zeros, which numpy would drop.
    return blake2b(b"%d" % offset, digest_size=16).digest()[: 16 - offset % 3].ljust(16, b"\0")


class Model:
    def __init__(self) -> None:
        self.known: OrderedDict[tuple[str, str], Known] = OrderedDict()
        self.headers: list[bytes] = []
        self.offset = 0

    def note(self, id_: str, key: str = "", method: str = "SetVariable") -> bytes:
        self.offset += 1
        version = 0 if method in ("InitializeSession", "DeleteVariable") else self.offset
        known = Known(method, digest_of(self.offset), self.offset, version)
        if key and (id_, "") not in self.known:
            self._add(id_, "", known._replace(version=0))
        self._add(id_, key, known)
        self.headers.append(header(id_, self.offset, key=key, known=known))
        return self.headers[-1]

    def _add(self, id_: str, key: str, known: Known) -> None:
        self.known.pop((id_, key), None)
        self.known[id_, key] = known
        while len(self.known) > FEW:
            self.known.popitem(last=False)


def same(table: RequestTable, model: Model) -> None:
    entries = {key: Known(*known[:4]) for key, known in table.entries().items()}
    assert entries == {requests._key(*key): known for key, known in model.known.items()}
    assert len(table) == len(model.known)
    for (id_, key), known in model.known.items():
        found = table.find(id_, key)
        assert found is not None
        assert Known(*found[:4]) == known
    for number in range(40):
        if (f"r{number}", "") not in model.known:
            assert table.find(f"r{number}") is None


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("one"), st.integers(0, 19), st.sampled_from(METHODS[1:])),
        st.tuples(st.just("batch"), st.integers(20, 39), st.integers(1, 4)),
        st.tuples(st.sampled_from(["read", "copy", "adopt", "reopen", "twin"])),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=300, suppress_health_check=list(HealthCheck))
@given(STEPS)
def test_it_knows_what_a_plain_dictionary_knows(steps: Sequence[tuple[Any, ...]]) -> None:
    table, model = RequestTable(), Model()
    copies: list[RequestTable] = []
    for what, *how in steps:
        if what == "one":
            number, method = how
            # As the committer: each is looked up before it is noted, and not noted again.
            if table.find(f"r{number}") is None:
                table.note(model.note(f"r{number}", method=method))
        elif what == "batch":
            number, count = how
            if table.find(f"r{number}") is None:
                for key in range(count):
                    table.note(model.note(f"r{number}", f"key {key}", "SetVariables"))
        elif what == "read":
            same(table, model)
        elif what == "copy":
            copies.append(table.copy())
        elif what == "adopt" and copies:
            table.adopt(copies.pop(0).encode())
        elif what == "reopen":
            table = RequestTable(table.encode())
            copies.clear()  # they are of another process
        elif what == "twin":
            copies.append(table)
            table = table.copy()
            copies[-1] = copies[-1].copy()
    same(table, model)
    encoded = table.encode()
    same(RequestTable(encoded), model)
    assert RequestTable(encoded).encode() == encoded
    same(table, model)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 99), unique=True, max_size=4 * FEW),
    st.integers(0, 4 * FEW),
    st.booleans(),
)
def test_records_that_are_folded_unread_are_remembered_as_those_that_were_read(
    numbers: Sequence[int], encoded_after: int, through_bytes: bool
) -> None:
    model, table = Model(), RequestTable()
    for index, number in enumerate(numbers):
        if index == encoded_after and through_bytes:
            table = RequestTable(table.encode())
        table.note(model.note(f"n{number}"))
    same(table, model)


@settings(deadline=None)
@given(st.integers(0, 3 * FEW), st.integers(0, 3 * FEW), st.integers(0, 3 * FEW))
def test_a_copy_is_one_of_its_own(before: int, own: int, others: int) -> None:
    def grow(table: RequestTable, model: Model, name: str, count: int) -> None:
        for number in range(count):
            assert table.find(f"{name}{number}") is None
            table.note(model.note(f"{name}{number}"))

    table, model, twin_model = RequestTable(), Model(), Model()
    grow(table, model, "a", before)
    twin = table.copy()
    twin_model.known, twin_model.offset = model.known.copy(), model.offset
    grow(table, model, "b", own)
    grow(twin, twin_model, "c", others)
    same(table, model)
    same(twin, twin_model)


def test_what_comes_between_a_copy_and_its_return_is_kept_apart() -> None:
    table, model = RequestTable(), Model()
    for number in range(5):
        table.note(model.note(f"r{number}"))
    encoded = table.copy().encode()
    for number in (5, 6, 7):
        assert table.find(f"r{number}") is None
        table.note(model.note(f"r{number}"))
    table.adopt(encoded)
    assert len(table._rows) == 5
    assert len(table._recent) == 3
    same(table, model)
    table.adopt(table.copy().encode())
    assert table._recent == {}
    same(table, model)


def test_a_forgotten_id_can_be_used_again() -> None:
    table, model = RequestTable(), Model()
    for round_ in range(3):
        for number in range(FEW + 1):
            assert table.find(f"r{number}") is None
            table.note(model.note(f"r{number}"))
        same(table, model)
        if round_ == 1:
            table = RequestTable(table.encode())
    found = table.find(f"r{FEW}")
    assert found is not None
    assert found.first_offset == 3 * (FEW + 1)


def test_an_id_and_a_key_are_not_taken_for_another_pair() -> None:
    table = RequestTable()
    for offset, (id_, key) in enumerate((("ab", "c"), ("a", "bc"), ("abc", "")), 1):
        table.note(header(id_, offset, key=key))
    for reopened in (table, RequestTable(table.encode())):
        offsets = [reopened.find(*pair) for pair in (("ab", "c"), ("a", "bc"), ("abc", ""))]
        assert [found.first_offset if found else 0 for found in offsets] == [1, 2, 3]
        assert reopened.find("a", "c") is None
        assert reopened.find("ab", "bc") is None


def test_keys_with_equal_halves_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def colliding(request_id: str, key: str) -> bytes:
        half = bytes(8) if request_id < "c" else b"\xff" * 8
        return half + blake2b(f"{request_id}{key}".encode(), digest_size=8).digest()

    monkeypatch.setattr(requests, "_key", colliding)
    table = RequestTable()
    for offset, id_ in enumerate("fbdace", 1):
        table.note(header(id_, offset))
    for reopened in (table, RequestTable(table.encode())):
        found = [reopened.find(id_) for id_ in "fbdace"]
        assert [known.first_offset if known else 0 for known in found] == [1, 2, 3, 4, 5, 6]
        assert [reopened.find(id_) for id_ in ("aa", "bb", "cc", "ff")] == [None] * 4
        assert len(reopened) == 6


def test_everything_of_an_entry_survives() -> None:
    table = RequestTable()
    largest = Known("ExecuteElixirTool", bytes(16), 2**62, 2**31 - 1)
    table.note(header("a", largest.first_offset, known=largest))
    least = Known("InitializeSession", b"\xff" * 16, 1, 0)
    table.note(header("b\N{SNAKE}" * 99, 1, known=least))
    reopened = RequestTable(table.encode())
    for id_, known in (("a", largest), ("b\N{SNAKE}" * 99, least)):
        found = reopened.find(id_)
        assert found is not None
        assert Known(*found[:4]) == known


def test_an_empty_table_is_as_none() -> None:
    for table in (RequestTable(), RequestTable(b""), RequestTable(RequestTable().encode())):
        assert len(table) == table.count == 0
        assert table.find("a") is None
        assert table.entries() == {}
    assert len(RequestTable().encode()) == HEAD


# Damage.


def encoded_table() -> bytes:
    table = RequestTable()
    for offset in range(1, 4):
        table.note(header(f"r{offset}", offset))
    return table.encode()


@pytest.mark.parametrize("bit", [0x01, 0x80])
def test_every_changed_byte_is_found(bit: int) -> None:
    encoded = encoded_table()
    assert len(encoded) == HEAD + 3 * 56
    for place in range(8, len(encoded)):
        damaged = bytearray(encoded)
        damaged[place] ^= bit
        with pytest.raises(DataLoss):
            RequestTable(bytes(damaged))


def test_a_changed_count_is_found() -> None:
    for place in range(8):
        damaged = bytearray(encoded_table())
        damaged[place] ^= 0x40
        with pytest.raises(DataLoss):
            RequestTable(bytes(damaged))


def test_a_table_that_was_cut_short_or_grew_is_found() -> None:
    encoded = encoded_table()
    for size in range(1, len(encoded)):
        with pytest.raises(DataLoss):
            RequestTable(encoded[:size])
    for more in (b"\0", bytes(56), encoded):
        with pytest.raises(DataLoss):
            RequestTable(encoded + more)


# As many as there are.


def test_all_that_are_remembered_and_no_more(record_property: Any) -> None:  # noqa: ANN401
    table = RequestTable()
    total = REMEMBERED_REQUESTS + 1_000
    headers = [header(f"request {offset}", offset) for offset in range(1, total + 1)]
    took: dict[str, float] = {}

    def timed(what: str, work: Any) -> Any:  # noqa: ANN401 - of any kind
        start = time.perf_counter()
        result = work()
        took[what] = (time.perf_counter() - start) * 1_000
        record_property(what, took[what])
        return result

    timed("note all", lambda: deque(map(table.note, headers), maxlen=0))
    timed("first look", lambda: table.find("nobody"))
    twin = timed("copy", table.copy)
    encoded = timed("encode", twin.encode)
    timed("adopt", lambda: table.adopt(encoded))
    reopened = timed("open", lambda: RequestTable(encoded))
    timed("first look in the table", lambda: reopened.find("nobody"))
    timed(
        "1,000 more", lambda: [reopened.find(f"request {n}") for n in range(total - 999, total + 1)]
    )
    print(", ".join(f"{what}: {ms:.1f} ms" for what, ms in took.items()))  # noqa: T201 - asked for

    assert len(encoded) == HEAD + 56 * REMEMBERED_REQUESTS
    for each in (table, reopened):
        assert len(each) == REMEMBERED_REQUESTS
        for offset in (1, 500, 1_000):
            assert each.find(f"request {offset}") is None
        for offset in (1_001, 1_002, 40_000, total):
            found = each.find(f"request {offset}")
            assert found is not None
            assert found.first_offset == offset
        each.note(header("one more", total + 1))
        assert each.find("request 1001") is None
        assert each.find("request 1002") is not None
        assert each.find("one more") is not None


def test_a_table_that_is_read_later_loses_nothing() -> None:
    table = RequestTable()
    for offset in range(1, 4):
        table.note(header(f"id {offset}", offset))
    encoded = table.encode()
    read: list[int] = []

    def fetch() -> bytes:
        read.append(1)
        return encoded

    later = RequestTable(fetch=fetch)
    later.note(header("id 4", 4))
    assert read == []
    older, newer = later.copy(), later.copy()
    newer.note(header("id 5", 5))
    later.note(header("id 5", 5))
    later.adopt(newer.encode())
    later.adopt(older.encode())  # comes late, and says less
    later.note(header("id 6", 6))
    for each in (later, RequestTable(later.copy().encode())):
        found = [each.find(f"id {offset}") for offset in range(1, 7)]
        assert [known.first_offset if known else 0 for known in found] == [1, 2, 3, 4, 5, 6]
