"""The mixin on classes that have nothing to do with DSPy."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pytest

from snakepit_bridge import SessionContext
from snakepit_bridge.errors import (
    FailedPrecondition,
    InvalidValue,
    VariableNotFound,
    VersionConflict,
)
from snakepit_bridge.variable_aware_mixin import BoundReading, Session, VariableAwareMixin


class Filter(VariableAwareMixin):
    """Some class of a user's, with arguments of its own."""

    def __init__(self, session: Session, *, limit: int = 3) -> None:
        super().__init__(session)
        self.limit = limit


class Base:
    def __init__(self, first: str, *, second: int) -> None:
        self.given = first, second


class Joined(VariableAwareMixin, Base):
    pass


@pytest.fixture
def session() -> Iterator[SessionContext]:
    with SessionContext("tour") as context:
        context.register_variable("threshold", "float", 0.5, {"min": 0, "max": 1})
        context.register_variable("weights", "embedding", [1.0, 2.0])
        yield context


def test_values_are_read_and_written(session: SessionContext) -> None:
    filter_ = Filter(session)
    assert filter_.get_variable("threshold") == 0.5
    assert filter_.get_variable("absent") is None
    assert filter_.get_variable("absent", 7) == 7
    assert filter_.set_variable("threshold", 0.6) == 2
    assert filter_.set_variable("threshold", 0.7, {"reason": "test"}, expected_version=2) == 3
    newest, before, _ = session.get_variable_history("threshold")
    assert (newest.source, newest.metadata["reason"]) == ("dspy_module", "test")
    assert (before.source, before.metadata["source"]) == ("dspy_module", "dspy_module")


def test_refusals_are_those_of_the_session(session: SessionContext) -> None:
    filter_ = Filter(session)
    with pytest.raises(InvalidValue, match=r"'threshold'.*above maximum 1"):
        filter_.set_variable("threshold", 2.0)
    with pytest.raises(VariableNotFound, match="'absent'"):
        filter_.set_variable("absent", 2.0)
    with pytest.raises(VersionConflict):
        filter_.set_variable("threshold", 0.1, expected_version=9)


def test_changes_are_watched_until_no_more(session: SessionContext) -> None:
    filter_ = Filter(session)
    seen = []
    came = threading.Event()

    def on_change(name: str, old: object, new: object, metadata: Mapping[str, str]) -> None:
        seen.append((name, old, new, metadata["source"]))
        came.set()

    observer = filter_.watch_variable("threshold", on_change)
    filter_.set_variable("threshold", 0.9)
    assert came.wait(30)
    assert filter_.unwatch_variable(observer)
    assert not filter_.unwatch_variable(observer)
    filter_.set_variable("threshold", 0.1)
    session.flush(30)
    assert seen == [("threshold", 0.5, 0.9, "dspy_module")]


async def test_everything_has_an_asynchronous_form(session: SessionContext) -> None:
    filter_ = Filter(session)
    filter_.bind_variable("threshold")
    assert await filter_.get_variable_async("absent", 7) == 7
    assert await filter_.set_variable_async("threshold", 0.6) == 2
    assert await filter_.get_variable_async("threshold") == 0.6
    assert (await filter_.read_bound_async())["threshold"].version == 2
    seen: list[object] = []
    observer = await filter_.watch_variable_async("threshold", lambda *change: seen.append(change))
    await filter_.set_variable_async("threshold", 0.7)
    await session.flush_async(30)
    assert await filter_.unwatch_variable_async(observer)
    assert len(seen) == 1
    with pytest.raises(RuntimeError, match="set_variable_async"):
        filter_.set_variable("threshold", 0.8)


def test_bound_variables_are_read_at_one_moment(session: SessionContext) -> None:
    filter_ = Filter(session)
    filter_.bind_variable("threshold")
    filter_.bind_variable("weights")
    filter_.bind_variable("threshold")
    assert filter_.bound_variables == ("threshold", "weights")
    reading = filter_.read_bound()
    head = session.read_variables([])
    assert (reading.session_id, reading.log_epoch) == ("tour", head.log_epoch)
    assert reading.offset == head.offset == 3
    assert list(reading) == ["threshold", "weights"]
    assert len(reading) == 2
    assert (reading["threshold"].type, reading["threshold"].value) == ("float", 0.5)
    assert np.array_equal(reading["weights"].value, [1.0, 2.0])
    assert filter_.unbind_variable("weights")
    assert not filter_.unbind_variable("weights")
    assert list(filter_.read_bound()) == ["threshold"]


def test_a_bound_variable_that_is_missing_is_named(session: SessionContext) -> None:
    filter_ = Filter(session)
    filter_.bind_variable("threshold")
    filter_.bind_variable("absent")
    with pytest.raises(VariableNotFound, match="variable 'absent' not found in session 'tour'"):
        filter_.read_bound()


def test_a_reading_is_a_value(session: SessionContext) -> None:
    filter_ = Filter(session)
    filter_.bind_variable("threshold")
    filter_.bind_variable("weights")
    reading = filter_.read_bound()
    assert copy.deepcopy(reading) is reading
    assert copy.copy(reading) is reading
    again: BoundReading = pickle.loads(pickle.dumps(reading))
    assert again == reading == filter_.read_bound()
    assert hash(again) == hash(reading)
    assert np.array_equal(again["weights"].value, reading["weights"].value)
    session.set_variable("threshold", 0.5)
    assert filter_.read_bound() != reading
    with pytest.raises(KeyError):
        reading["absent"]


def test_the_next_class_gets_its_arguments(session: SessionContext) -> None:
    joined = Joined(session, "a", second=2)
    assert joined.given == ("a", 2)
    assert joined.get_variable("threshold") == 0.5


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_has_the_same_session(
    session: SessionContext, copied: Callable[[Filter], Filter]
) -> None:
    filter_ = Filter(session, limit=9)
    filter_.bind_variable("threshold")
    other = copied(filter_)
    assert other.session_context is session
    assert other.limit == 9
    other.bind_variable("weights")
    assert filter_.bound_variables == ("threshold",)


def test_a_pickle_leaves_the_session_behind(session: SessionContext) -> None:
    filter_ = Filter(session)
    filter_.bind_variable("threshold")
    other: Filter = pickle.loads(pickle.dumps(filter_))
    assert (other.session_id, other.bound_variables) == ("tour", ("threshold",))
    for use in (
        lambda: other.get_variable("threshold"),
        lambda: other.set_variable("threshold", 1),
        lambda: other.watch_variable("threshold", print),
        other.read_bound,
    ):
        with pytest.raises(FailedPrecondition, match=r"'tour'.*attach_session"):
            use()
    other.attach_session(session)
    assert other.read_bound()["threshold"].value == 0.5


def test_a_class_that_forgot_its_session_is_told() -> None:
    class Forgetful(VariableAwareMixin):
        def __init__(self) -> None:
            pass

    with pytest.raises(FailedPrecondition, match=r"Forgetful\.__init__.*super\(\)\.__init__"):
        Forgetful().get_variable("x")


@pytest.mark.parametrize(
    "module", ["snakepit_bridge", "snakepit_bridge.variable_aware_mixin", "snakepit_bridge.views"]
)
def test_dspy_is_not_loaded(module: str) -> None:
    code = f"import {module}, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert module in loaded
    assert not {"dspy", "litellm", "optuna", "opentelemetry", "grpc"} & set(loaded)


def test_without_dspy_its_modules_say_what_to_install() -> None:
    # ``None`` there is how Python notes that a module is not to be had.
    code = "import sys; sys.modules['dspy'] = None; import snakepit_bridge.dspy_modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: snakepit_bridge.dspy_modules needs DSPy: "
        "pip install 'snakepit-bridge[dspy]'"
    )
