"""Guarantee 2: no dirty reads, no dirty refusals, and the truth after a failed append.

The engine here is the real one inside one that fails as it is told to: before anything is
stored, after all of it is (so that success looks like failure), or in between.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from hypothesis import given, settings
from hypothesis import strategies as st

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge.commands import (
    CleanupSession,
    InitializeSession,
    LoadSession,
    RegisterVariable,
    SetVariable,
    SetVariables,
)
from snakepit_bridge.errors import (
    BridgeError,
    OutcomeUnknown,
    ResourceExhausted,
    Unavailable,
    VariableNotFound,
    VersionConflict,
)
from snakepit_bridge.events.log import AppendError, EventLog, LogEntry
from snakepit_bridge.events.memory import MemoryLog
from snakepit_bridge.events.model import (
    Envelope,
    LogHead,
    LogId,
    StoredRecord,
    StoredSnapshot,
    Value,
)
from snakepit_bridge.events.reading import fold
from snakepit_bridge.events.sqlite import SqliteLog
from snakepit_bridge.events.tasks import Outcome
from snakepit_bridge.session_context import SessionContext
from snakepit_bridge.sessions import head_and
from tests.bridge_process import BridgeProcess
from tests.direct import PATIENCE, Direct, Result, folded, integer, readable, whole
from tests.strace import STRACE, require_strace

BEFORE, IN_PART, AFTER, DEFECT = "before", "in part", "after", "defect"


class FailingLog(EventLog):
    """Fails as told, and watches that it is used as the contract says."""

    def __init__(self, inner: EventLog) -> None:
        self.inner = inner
        self.url = inner.url
        self.failures: deque[str] = deque()
        """What the next appends do; empty = succeed."""
        self.settle_failures = 0
        self.unreadable = False
        self.in_doubt = False
        self.sessions: set[str] = set()
        """Those of the append that failed."""
        self.broken_rules: list[str] = []
        self.appending: Callable[[], None] = lambda: None
        """Called inside each append, before anything is stored."""

    def size(self) -> int:
        return self.inner.size()

    def append(self, records: Sequence[tuple[LogId, StoredRecord]]) -> None:
        self._rule(not self.in_doubt, "appended to before it was settled")
        self.appending()
        failure = self.failures.popleft() if self.failures else ""
        if failure:
            self.in_doubt = True
            self.sessions = {log.session_id for log, _ in records}
        if failure == BEFORE:
            raise AppendError(ResourceExhausted("the disk is full"))
        self.inner.append(records[:1] if failure == IN_PART else records)
        if failure == DEFECT:
            raise MemoryError
        if failure:
            raise AppendError(ResourceExhausted("the disk is full"))

    def settle(self) -> None:
        if self.settle_failures:
            self.settle_failures -= 1
            raise AppendError(Unavailable("the engine is gone"))
        self.inner.settle()
        self.in_doubt = False

    def latest(self, session_id: str) -> LogHead | None:
        self._reading(session_id)
        return self.inner.latest(session_id)

    def read(self, log: LogId, after: int = 0, *, limit: int = 1_000) -> Sequence[StoredRecord]:
        self._reading(log.session_id)
        return self.inner.read(log, after, limit=limit)

    def read_back(self, log: LogId, before: int, *, limit: int = 1_000) -> Sequence[StoredRecord]:
        self._reading(log.session_id)
        return self.inner.read_back(log, before, limit=limit)

    def head(self, log: LogId) -> LogHead | None:
        self._reading(log.session_id)
        return self.inner.head(log)

    def resume(self) -> None:
        self._rule(not self.in_doubt, "resumed before it was settled")
        self.inner.resume()

    def tidy(self) -> None:
        self._rule(not self.in_doubt, "tidied before it was settled")
        self.inner.tidy()

    def large_values(self, digests: Sequence[bytes]) -> Mapping[bytes, Value]:
        return self.inner.large_values(digests)

    def save_snapshot(self, log: LogId, snapshot: StoredSnapshot) -> None:
        self.inner.save_snapshot(log, snapshot)

    def snapshot(self, log: LogId, before: int, *, requests: bool = True) -> StoredSnapshot | None:
        self._reading(log.session_id)
        return self.inner.snapshot(log, before, requests=requests)

    def snapshot_offsets(self, log: LogId) -> Sequence[int]:
        return self.inner.snapshot_offsets(log)

    def to_cut(self, time_unix_nanos: int, *, limit: int = 1_000) -> Sequence[LogHead]:
        return self.inner.to_cut(time_unix_nanos, limit=limit)

    def cut(self, at: LogHead) -> None:
        self.inner.cut(at)

    def drop(self, log: LogId) -> None:
        self.inner.drop(log)

    def sweep(self, now_unix_nanos: int) -> bool:
        return self.inner.sweep(now_unix_nanos)

    def live_sessions(self) -> int:
        return self.inner.live_sessions()

    def logs(self, after: LogId | None = None, *, limit: int = 1_000) -> Sequence[LogEntry]:
        return self.inner.logs(after, limit=limit)

    def ended_before(self, time_unix_nanos: int, *, limit: int = 1_000) -> Sequence[LogId]:
        return self.inner.ended_before(time_unix_nanos, limit=limit)

    def touch(self, accesses: Mapping[LogId, int]) -> None:
        self.inner.touch(accesses)

    def faults(self, *, thorough: bool = True) -> Iterator[str]:
        return self.inner.faults(thorough=thorough)

    def close(self) -> None:
        self.inner.close()

    def _reading(self, session_id: str) -> None:
        if threading.current_thread().name == "committer":
            believed = self.in_doubt and session_id in self.sessions
            self._rule(not believed, "believed before it was settled")
        if self.unreadable:
            raise Unavailable("the engine cannot be read")

    def _rule(self, kept: bool, otherwise: str) -> None:
        if not kept:
            self.broken_rules.append(otherwise)


X, Y = "var_x_2", "var_y_3"


@pytest.fixture
def engine(tmp_path: Path) -> FailingLog:
    return FailingLog(SqliteLog(tmp_path / "bridge.db"))


@pytest.fixture
def direct(engine: FailingLog) -> Iterator[Direct]:
    """A committer, and session "s" with x = 0 (set once more by request "old") and y = 0."""
    with Direct(engine) as direct:
        for name in ("x", "y"):
            direct.ask(RegisterVariable(Envelope("s"), name, "integer", integer(0)))
        direct.ask(set_x(0, "old"))
        yield direct
    assert engine.broken_rules == []


def set_x(number: int, request_id: str = "", expected: int = 0) -> SetVariable:
    return SetVariable(Envelope("s", request_id), "x", integer(number), expected)


HEAD = 4


def request_ids(engine: EventLog, log: LogId) -> list[str]:
    """Of all records, in order; empty where there is none."""
    return [transaction.record.request.id for transaction in fold(engine, log)]


def x_of(direct: Direct) -> tuple[int, bytes]:
    """Version and value of x as a reader sees it."""
    log = direct.loaded("s")
    with log.lock:
        variable = log.committed.variables[X]
        return variable.version, variable.value.any.rpartition(b"\x12\x01")[2]


@contextmanager
def quiet() -> Iterator[None]:
    """Hundreds of failures on purpose need not be reported."""
    logging.disable()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def assert_consistent(direct: Direct, engine: EventLog) -> None:
    """What is decided on, what is read and what is stored are the same."""
    log = direct.loaded("s")
    assert readable(log.committed) == readable(log.working)
    assert whole(log.working) == whole(folded(engine, log.id))


MIXED = (
    set_x(1, "new"),
    set_x(2, "stale", expected=1),  # refused: the version is 3 by now
    set_x(0, "old"),  # a duplicate
    SetVariable(Envelope("s"), "nobody", integer(1)),  # refused
    LoadSession(Envelope("s")),
    InitializeSession(Envelope("s")),  # runs already
    SetVariables(Envelope("s"), (("x", integer("no")), ("y", integer(2))), atomic=True),  # refused
    RegisterVariable(Envelope("other"), "z", "integer", integer(0)),
)


def test_when_nothing_was_stored_everything_fails(direct: Direct, engine: FailingLog) -> None:
    """Refusals and duplicates too: they were decided on events that are lost."""
    engine.failures.append(BEFORE)
    for result in direct.ask_all(*MIXED):
        assert isinstance(result, ResourceExhausted), result
        assert result.message == "the disk is full"
    assert x_of(direct) == (2, b"0")
    assert direct.committer.loaded("other") is None
    assert direct.loaded("s").committed.head == HEAD
    assert_consistent(direct, engine)
    # Writing resumes by itself, and at the place where it stopped.
    assert direct.ask(set_x(1, "new")).answer[:2] == (HEAD + 1, 3)
    assert request_ids(engine, direct.loaded("s").id)[-2:] == ["old", "new"]
    assert_consistent(direct, engine)


def test_when_all_was_stored_everything_succeeds(direct: Direct, engine: FailingLog) -> None:
    engine.failures.append(AFTER)
    new, stale, old, nobody, loaded, started, batch, other = direct.ask_all(*MIXED)
    assert isinstance(new, Outcome)
    assert new.answer[:2] == (HEAD + 1, 3)
    assert isinstance(stale, VersionConflict)
    assert isinstance(old, Outcome)
    assert (old.answer.offset, old.answer.duplicate) == (HEAD, True)
    assert isinstance(nobody, VariableNotFound)
    assert isinstance(loaded, Outcome)
    assert isinstance(started, Outcome)
    assert isinstance(batch, Outcome)
    assert batch.answer.refused
    assert isinstance(other, Outcome)
    assert direct.loaded("other").id.epoch == other.log_epoch
    assert x_of(direct) == (3, b"1")
    assert_consistent(direct, engine)
    again = direct.ask(set_x(1, "new")).answer
    assert (again.offset, again.number, again.duplicate) == (HEAD + 1, 3, True)


def test_when_a_part_was_stored_each_hears_of_its_own(direct: Direct, engine: FailingLog) -> None:
    engine.failures.append(IN_PART)
    first, second, stale = direct.ask_all(
        set_x(1, "first"), set_x(2, "second"), set_x(3, "stale", expected=1)
    )
    assert isinstance(first, Outcome)
    assert first.answer[:2] == (HEAD + 1, 3)
    assert isinstance(second, ResourceExhausted)
    assert isinstance(stale, ResourceExhausted)
    assert x_of(direct) == (3, b"1")
    assert_consistent(direct, engine)
    assert direct.ask(set_x(2, "second")).answer[:2] == (HEAD + 2, 4)
    assert direct.ask(set_x(1, "first")).answer.duplicate
    assert request_ids(engine, direct.loaded("s").id)[-3:] == ["old", "first", "second"]


@pytest.mark.parametrize("failure", [BEFORE, AFTER])
def test_while_the_engine_is_gone_the_outcome_is_unknown_and_reading_goes_on(
    direct: Direct, engine: FailingLog, failure: str
) -> None:
    engine.failures.append(failure)
    engine.settle_failures = 3
    for result in direct.ask_all(*MIXED):
        assert isinstance(result, OutcomeUnknown), result
        assert "retry with the same request_id" in result.message
    for _ in range(2):  # settle fails again each time, and nothing is decided
        for result in direct.ask_all(*MIXED):
            assert isinstance(result, Unavailable), result
            assert not isinstance(result, OutcomeUnknown)
            assert result.message == "the engine is gone"
    assert engine.in_doubt
    assert x_of(direct) == (2, b"0")
    reader = SessionContext("s", committer=direct.committer)
    assert [variable.value for variable in reader.list_variables()] == [0, 0]
    # It is back: what is stored decides, and the retry appends at most once.
    answer = direct.ask(set_x(1, "new")).answer
    assert (answer.offset, answer.number) == (HEAD + 1, 3)
    assert answer.duplicate == (failure == AFTER)
    assert request_ids(engine, direct.loaded("s").id).count("new") == 1
    assert x_of(direct) == (3, b"1")
    assert_consistent(direct, engine)


def test_while_the_engine_is_gone_other_sessions_can_be_read(tmp_path: Path) -> None:
    with Direct(SqliteLog(tmp_path / "bridge.db")) as before:
        for session_id in ("s", "idle"):
            before.ask(RegisterVariable(Envelope(session_id), "x", "integer", integer(7)))
    engine = FailingLog(SqliteLog(tmp_path / "bridge.db"))
    with Direct(engine) as direct:
        engine.failures.append(BEFORE)
        engine.settle_failures = 4
        assert isinstance(direct.ask_all(set_x(1))[0], OutcomeUnknown)
        # A session that was not in memory comes there; nothing can be written in it.
        reader = SessionContext("idle", committer=direct.committer)
        assert [variable.value for variable in reader.list_variables()] == [7]
        with pytest.raises(Unavailable, match="the engine is gone"):
            reader.set_variable("x", 8)
        # Of this one it is unknown what is stored, so it is not read anew.
        with pytest.raises(Unavailable, match="the engine is gone"):
            direct.ask(LoadSession(Envelope("s")))
        assert engine.in_doubt
        assert direct.ask(set_x(2)).answer.number == 2
        assert reader.set_variable("x", 8) == 2
    assert engine.broken_rules == []


@pytest.mark.parametrize("failure", [BEFORE, IN_PART, AFTER])
def test_when_the_engine_cannot_be_read_the_outcome_is_unknown(
    direct: Direct, engine: FailingLog, failure: str
) -> None:
    engine.failures.append(failure)
    engine.unreadable = True
    results = direct.ask_all(set_x(1, "new"), set_x(2, "newer"))
    assert [type(result) for result in results] == [OutcomeUnknown, OutcomeUnknown]
    assert x_of(direct) == (2, b"0")
    engine.unreadable = False
    for _ in range(2):
        new, newer = direct.ask_all(set_x(1, "new"), set_x(2, "newer"))
        assert isinstance(new, Outcome)
        assert isinstance(newer, Outcome)
        assert (new.answer[:2], newer.answer[:2]) == ((HEAD + 1, 3), (HEAD + 2, 4))
    assert request_ids(engine, direct.loaded("s").id)[-3:] == ["old", "new", "newer"]
    assert_consistent(direct, engine)


def test_an_engine_that_fails_in_an_unknown_way_is_read_anew(
    direct: Direct, engine: FailingLog
) -> None:
    engine.failures.append(DEFECT)
    with quiet():
        results = direct.ask_all(set_x(1, "new"), set_x(2, "stale", expected=1))
    assert [type(result) for result in results] == [OutcomeUnknown, OutcomeUnknown]
    assert x_of(direct) == (2, b"0")
    answer = direct.ask(set_x(1, "new")).answer
    assert (answer.offset, answer.number, answer.duplicate) == (HEAD + 1, 3, True)
    assert_consistent(direct, engine)


def test_a_delivery_that_fails_harms_nobody_else(direct: Direct) -> None:
    """For example into an event loop that is closed by now."""

    def fail(_: object) -> None:
        raise RuntimeError("Event loop is closed")

    with quiet():
        direct.committer.submit([], fail)
        together = direct.submit(set_x(1, "new"))
        assert isinstance(together.result(PATIENCE)[0], Outcome)
    assert direct.ask(set_x(2)).answer.number == 4


def test_a_session_that_could_not_begin_is_not_there(direct: Direct, engine: FailingLog) -> None:
    start = InitializeSession(Envelope("fresh", "start"), {"owner": "me"})
    use = RegisterVariable(Envelope("fresh"), "x", "integer", integer(0))
    engine.failures.append(BEFORE)
    results = direct.ask_all(start, use)
    assert [type(result) for result in results] == [ResourceExhausted] * 2
    assert direct.committer.loaded("fresh") is None
    assert engine.latest("fresh") is None
    begun = direct.ask(start)
    assert (begun.answer.offset, begun.answer.duplicate) == (1, False)
    assert direct.loaded("fresh").id.epoch == begun.log_epoch


@pytest.mark.parametrize("failure", [BEFORE, IN_PART, AFTER])
def test_a_session_that_ends_and_begins_anew_in_a_failed_batch(
    direct: Direct, engine: FailingLog, failure: str
) -> None:
    before = direct.loaded("s")
    end = CleanupSession(Envelope("s", "end"), "cleanup")
    start = InitializeSession(Envelope("s", "start"))
    engine.failures.append(failure)
    ended, begun = direct.ask_all(end, start)
    assert isinstance(ended, Outcome) == (failure != BEFORE)
    assert isinstance(begun, Outcome) == (failure == AFTER)
    now = direct.loaded("s")
    assert (now.id == before.id) == (failure != AFTER)
    assert now.committed.live == (failure != IN_PART)
    assert_consistent(direct, engine)
    retried = direct.ask_all(end, start)
    if failure == AFTER:
        assert isinstance(retried[1], Outcome)
        assert retried[1].answer.duplicate


def test_readers_see_nothing_of_a_batch_before_it_is_stored(
    direct: Direct, engine: FailingLog
) -> None:
    """And nobody is answered before either."""
    inside, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        inside.set()
        assert go_on.wait(PATIENCE)

    before = readable(direct.loaded("s").committed)
    for failure in (BEFORE, ""):
        inside.clear()
        go_on.clear()
        engine.appending = hold
        engine.failures.append(failure)
        batch = direct.submit(
            set_x(1, "new"),
            set_x(9, expected=99),
            RegisterVariable(Envelope("other"), "z", "integer", integer(0)),
        )
        assert inside.wait(PATIENCE)
        try:
            assert readable(direct.loaded("s").committed) == before
            reader = SessionContext("s", committer=direct.committer)
            assert [v.version for v in reader.list_variables()] == [2, 1]
            assert direct.committer.loaded("other") is None
            with pytest.raises(TimeoutError):
                batch.result(0.2)  # not answered, the refusal neither
        finally:
            go_on.set()
        batch.result(PATIENCE)
        if failure:
            assert readable(direct.loaded("s").committed) == before
    assert x_of(direct) == (3, b"1")
    assert_consistent(direct, engine)


def test_nothing_is_published_while_a_reader_looks(direct: Direct) -> None:
    log = direct.loaded("s")
    with log.lock:
        before = readable(log.committed)
        batch = direct.submit(set_x(1), SetVariable(Envelope("s"), "y", integer(1)))
        with pytest.raises(TimeoutError):
            batch.result(0.2)
        assert readable(log.committed) == before
    batch.result(PATIENCE)
    assert log.committed.head == HEAD + 2


def test_readers_see_each_transaction_whole() -> None:
    names = [f"x{n}" for n in range(100)]
    torn: list[set[bytes]] = []
    done = threading.Event()
    with Direct(MemoryLog()) as direct:
        direct.ask_all(
            *(RegisterVariable(Envelope("s"), name, "integer", integer(0)) for name in names)
        )
        log = direct.loaded("s")

        def read() -> None:
            while not done.is_set():
                _, variables = head_and(log)
                seen = {variable.value.any for variable in variables}
                if len(seen) > 1:
                    torn.append(seen)

        reader = threading.Thread(target=read)
        often = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)  # as if on many processors
        reader.start()
        try:
            for number in range(100):
                updates = tuple((name, integer(number)) for name in names)
                direct.ask(SetVariables(Envelope("s"), updates, atomic=True))
        finally:
            done.set()
            reader.join()
            sys.setswitchinterval(often)
    assert torn == []


def test_a_bridge_whose_engine_is_gone_stops(tmp_path: Path) -> None:
    engine = FailingLog(SqliteLog(tmp_path / "bridge.db"))
    direct = Direct(engine)
    direct.ask(InitializeSession(Envelope("s")))
    engine.failures.append(BEFORE)
    engine.settle_failures = 1_000
    (result,) = direct.ask_all(CleanupSession(Envelope("s"), "cleanup"))
    assert isinstance(result, OutcomeUnknown)
    waiting = direct.submit(LoadSession(Envelope("s")))
    direct.close()
    assert isinstance(waiting.result(PATIENCE)[0], Unavailable)
    SqliteLog(tmp_path / "bridge.db").close()  # it was let go of


def test_a_full_disk_refuses_writes_until_there_is_room(tmp_path: Path) -> None:
    """SQLite itself says so here: the file may not grow."""
    inner = SqliteLog(tmp_path / "bridge.db")
    engine = FailingLog(inner)
    with Direct(engine) as direct:
        direct.ask(RegisterVariable(Envelope("s"), "x", "integer", integer(0)))
        (pages,) = inner._writer.execute("PRAGMA page_count").fetchone()
        inner._writer.execute(f"PRAGMA max_page_count = {pages}")
        answers: list[Result] = []
        while not answers or isinstance(answers[-1], Outcome):
            answers += direct.ask_all(set_x(7, f"request {len(answers)}"))
        full, last = answers.pop(), len(answers)
        assert isinstance(full, ResourceExhausted)
        assert "disk that holds the log is full" in full.message
        assert direct.loaded("s").committed.head == 2 + last
        # The engine was opened anew, without that limit: as if room had been made.
        retried = direct.ask(set_x(7, f"request {last}")).answer
        assert (retried.offset, retried.duplicate) == (2 + last + 1, False)
        assert_consistent(direct, engine)
    assert engine.broken_rules == []


def failing_syncs(directory: Path, when: str) -> BridgeProcess:
    """A bridge whose syncs of the write-ahead log fail, those that strace's ``when`` names."""
    inject = f"inject=fdatasync:error=EIO:when={when}"
    options = ("-P", f"{directory / 'bridge.db'}-wal", "-e", "trace=fdatasync", "-e", inject)
    wrapper = (*STRACE, *options, "-o", str(directory / "trace"))
    return BridgeProcess(directory / "bridge.db", wrapper=wrapper)


def over_the_wire(bridge: BridgeProcess, number: int) -> pb.SetVariableResponse:
    value = AnyMessage(type_url="dspex.variables/integer", value=b"%d" % number)
    request = pb.SetVariableRequest(
        session_id="s", variable_identifier="x", value=value, request_id=f"request {number}"
    )
    answer: pb.SetVariableResponse = bridge.stub.SetVariable(request)
    return answer


def try_over_the_wire(bridge: BridgeProcess, number: int) -> pb.SetVariableResponse | str:
    """Give the answer, or the message of the only error that there should be."""
    try:
        return over_the_wire(bridge, number)
    except grpc.RpcError as error:
        if isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.UNAVAILABLE:
            return str(error.details())
        raise


def register_over_the_wire(bridge: BridgeProcess) -> None:
    value = AnyMessage(type_url="dspex.variables/integer", value=b"0")
    bridge.stub.RegisterVariable(
        pb.RegisterVariableRequest(session_id="s", name="x", type="integer", initial_value=value)
    )


def history_over_the_wire(bridge: BridgeProcess) -> dict[str, int]:
    """Request ids to offsets, each once."""
    request = pb.GetVariableHistoryRequest(session_id="s", variable_identifier="x")
    entries = bridge.stub.GetVariableHistory(request).entries[:-1]  # without the registration
    ids = {entry.request_id: entry.offset for entry in entries}
    assert len(ids) == len(entries)
    return ids


# strace counts by thread: few of the main thread's, then those of the committer.
@pytest.mark.parametrize("when", ["12..15", "12..40+2"])
def test_syncs_that_fail_lose_nothing_and_double_nothing(tmp_path: Path, when: str) -> None:
    require_strace()
    answers: dict[str, int] = {}
    failures = 0
    with failing_syncs(tmp_path, when) as bridge:
        register_over_the_wire(bridge)
        for number in range(20):
            absent = unknown = False
            while isinstance(answer := try_over_the_wire(bridge, number), str):
                failures += 1
                assert failures < 100
                unknown |= "outcome is unknown" in answer
                absent |= not unknown
                stored = history_over_the_wire(bridge)  # reading goes on
                assert stored == answers | stored
                assert not absent or f"request {number}" not in stored
            assert not (absent and answer.duplicate)
            answers[f"request {number}"] = answer.offset
        assert history_over_the_wire(bridge) == answers
        bridge.kill()
    assert failures
    assert "(INJECTED)" in (tmp_path / "trace").read_text()
    with BridgeProcess(tmp_path / "bridge.db") as bridge:
        assert history_over_the_wire(bridge) == answers
        assert bridge.stop() == 0


def test_a_bridge_whose_disk_has_failed_stops_in_order(tmp_path: Path) -> None:
    require_strace()
    with failing_syncs(tmp_path, "12+") as bridge:
        register_over_the_wire(bridge)
        answers = [try_over_the_wire(bridge, number) for number in range(20)]
        assert isinstance(answers[-1], str)
        stored = history_over_the_wire(bridge)
        assert bridge.stop() == 0
        assert "Traceback" not in bridge.stderr
    with BridgeProcess(tmp_path / "bridge.db") as bridge:
        # The one whose outcome was not known may be there or not.
        assert stored.items() <= history_over_the_wire(bridge).items()
        assert bridge.stop() == 0


def test_a_refused_write_does_not_come_back_after_a_crash(tmp_path: Path) -> None:
    """Its frames lie in the write-ahead log, whole, when the sync has failed."""
    require_strace()
    with failing_syncs(tmp_path, "12") as bridge:
        register_over_the_wire(bridge)
        for number in range(20):
            before = history_over_the_wire(bridge)
            if isinstance(answer := try_over_the_wire(bridge, number), str):
                break
        assert "SQLITE_IOERR_FSYNC" in str(answer)
        bridge.kill()
    with BridgeProcess(tmp_path / "bridge.db") as bridge:
        assert history_over_the_wire(bridge) == before
        assert bridge.stop() == 0


BATCHES = st.lists(
    st.tuples(
        st.lists(st.integers(0, 12), min_size=1, max_size=4),  # request ids
        st.sampled_from(["", "", BEFORE, IN_PART, AFTER]),
        st.integers(0, 2),  # how often settling fails
        st.booleans(),  # whether it can be read then
    ),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(BATCHES)
def test_any_order_of_failures_tells_the_truth(
    batches: list[tuple[list[int], str, int, bool]],
) -> None:
    """Success = stored once, at its offset; an error = absent; unknown = at most once."""
    engine = FailingLog(MemoryLog())
    acknowledged: dict[int, tuple[int, int]] = {}
    unknown: set[int] = set()
    with quiet(), Direct(engine) as direct:
        direct.ask(RegisterVariable(Envelope("s"), "x", "integer", integer(0)))
        log = direct.loaded("s").id
        for ids, failure, settle_failures, unreadable in batches:
            engine.failures.extend([failure] if failure else [])
            engine.settle_failures = settle_failures if failure else engine.settle_failures
            engine.unreadable = unreadable and bool(failure)
            results = direct.ask_all(*(set_x(number, str(number)) for number in ids))
            engine.unreadable = False
            stored = request_ids(engine.inner, log)
            for number, result in zip(ids, results, strict=True):
                if isinstance(result, Outcome):
                    told = (result.answer.offset, result.answer.number)
                    assert acknowledged.setdefault(number, told) == told
                    assert stored.count(str(number)) == 1
                    unknown.discard(number)
                elif isinstance(result, OutcomeUnknown):
                    unknown.add(number)
                elif number not in acknowledged and number not in unknown:
                    assert isinstance(result, BridgeError)
                    assert str(number) not in stored
            # Readers see what is stored; less where it could not be read back yet.
            head = direct.loaded("s").committed.head
            assert head <= 1 + len(stored)
            if any(isinstance(result, Outcome) for result in results):
                assert head == 1 + len(stored)
        engine.failures.clear()
        engine.settle_failures = 0
        everything = direct.ask_all(*(set_x(number, str(number)) for number in range(13)))
        for number, result in enumerate(everything):
            assert isinstance(result, Outcome)
            told = (result.answer.offset, result.answer.number)
            assert acknowledged.setdefault(number, told) == told
        assert_consistent(direct, engine)
        assert sorted(request_ids(engine, log)) == sorted(["", *map(str, range(13))])
    for transaction in fold(engine, log):
        if id_ := transaction.record.request.id:
            assert acknowledged[int(id_)][0] == transaction.last_offset
    assert engine.broken_rules == []
