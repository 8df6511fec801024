"""Programs that run while somebody changes everything that is bound in them."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from snakepit_bridge import SessionContext
from snakepit_bridge.client import RemoteSession, ready_file
from snakepit_bridge.dspy_modules import VariableAwareModule, current_reading
from snakepit_bridge.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Unavailable,
    VariableNotFound,
)
from tests.bridge_process import BridgeProcess
from tests.dspy_programs import Program, Recorder, dspy, register_program
from tests.dspy_writer import LMS, generation, number_of, write

ROOT = Path(__file__).parent.parent
PATIENCE = 60.0
"""Seconds until what has to come is missing."""

CALLS = 30
DELAY = 0.003
"""Seconds before and after each read: some generations are written meanwhile."""


class Slow:
    """A session of which every read takes its time."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.reads = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def get_variable(self, identifier: str) -> Any:
        return self._read(lambda: self._session.get_variable(identifier))

    def read_variables(self, identifiers: Any) -> Any:
        return self._read(lambda: self._session.read_variables(identifiers))

    async def read_variables_async(self, identifiers: Any) -> Any:
        self.reads += 1
        await asyncio.sleep(DELAY)
        reading = await self._session.read_variables_async(identifiers)
        await asyncio.sleep(DELAY)
        return reading

    def _read(self, read: Callable[[], Any]) -> Any:
        self.reads += 1
        time.sleep(DELAY)
        try:
            return read()
        finally:
            time.sleep(DELAY)


class Side(NamedTuple):
    """A session, and somebody who writes into it from elsewhere."""

    session: Any
    writing: Callable[[], AbstractContextManager[None]]


@contextmanager
def near(_: Path) -> Iterator[Side]:
    """In this process, written by another thread."""
    with SessionContext("steered") as session:

        @contextmanager
        def writing() -> Iterator[None]:
            done = threading.Event()
            thread = threading.Thread(target=write, args=(session.set_variables, done.is_set))
            thread.start()
            try:
                yield
            finally:
                done.set()
                thread.join()

        yield Side(session, writing)


@contextmanager
def far(directory: Path) -> Iterator[Side]:
    """At a bridge, written by a third process."""
    with (
        BridgeProcess(directory / "bridge.db") as bridge,
        RemoteSession.connect(f"localhost:{bridge.port}", "steered") as session,
    ):
        yield Side(session, lambda: writer(bridge.port))


@contextmanager
def writer(port: int) -> Iterator[None]:
    """A process that writes; it has begun."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.dspy_writer", f"localhost:{port}", "steered"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        try:
            yield
        finally:
            process.communicate(timeout=PATIENCE)
    assert process.returncode == 0


@pytest.fixture(params=[near, far])
def side(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Side]:
    with request.param(tmp_path) as side:
        register_program(side.session)
        side.session.set_variables(generation(0))
        yield side


@pytest.fixture
def models() -> Recorder:
    return Recorder()


def program_of(session: Any, models: Recorder) -> Any:
    return Program(session, {name: models.model(name) for name in LMS})


def require_consistent(predictions: list[Any], models: Recorder) -> list[int]:
    """Require that each prediction, and each request for it, had one generation of values.

    :returns: which.
    """
    asked: dict[int, list[Any]] = {}
    for request in models.requests:
        (question,) = re.findall(r"Question (\d+)", request.messages[-1][1])
        asked.setdefault(int(question), []).append(request)
    numbers = []
    for question, prediction in enumerate(predictions):
        values = {name: it.value for name, it in prediction.variables.items()}
        number = number_of(values)
        sort, solve = asked[question]
        assert f"Style {number}." in sort.messages[0][1]
        for request in (sort, solve):
            assert request.settings["temperature"] == values["temperature"]
            assert request.model == f"fake/{values['model']}"
        assert ("reasoning" in solve.messages[0][1]) == (values["strategy"] == "think")
        numbers.append(number)
    return numbers


def ask(program: Any, number: int) -> Any:
    return program(question=f"Question {number}")


def test_each_prediction_has_one_set_of_values(side: Side, models: Recorder) -> None:
    slow = Slow(side.session)
    program = program_of(slow, models)
    with side.writing():
        predictions = [ask(program, number) for number in range(CALLS)]
    numbers = require_consistent(predictions, models)
    assert slow.reads == CALLS
    assert numbers == sorted(numbers)
    # It was steered all the while.
    assert len(set(numbers)) > CALLS // 2
    offsets = [prediction.variables.offset for prediction in predictions]
    assert offsets == sorted(offsets)


def test_one_read_for_each_variable_would_mix_them(side: Side, models: Recorder) -> None:
    program = program_of(Slow(side.session), models)
    mixed = 0
    with side.writing():
        for _ in range(CALLS):
            values = {name: program.get_variable(name) for name in program.bound_variables}
            try:
                number_of(values)
            except AssertionError:
                mixed += 1
    assert mixed > CALLS // 2


def test_the_log_has_the_values_at_that_offset(side: Side, models: Recorder) -> None:
    program = program_of(side.session, models)
    with side.writing():
        prediction = ask(program, 0)
    reading = prediction.variables
    for name, entry in reading.items():
        history = side.session.get_variable_history(name)
        then = next(past for past in history if past.offset <= reading.offset)
        assert (then.version, then.value) == (entry.version, entry.value)


async def test_tasks_have_one_set_each(side: Side, models: Recorder) -> None:
    program = program_of(Slow(side.session), models)
    with side.writing():
        predictions = await asyncio.gather(
            *(program.acall(question=f"Question {number}") for number in range(CALLS))
        )
    require_consistent(predictions, models)


async def test_blocking_calls_off_the_loop_have_one_set_each(side: Side, models: Recorder) -> None:
    program = program_of(Slow(side.session), models)
    aside = dspy.asyncify(program)
    with side.writing():
        predictions = [
            *await asyncio.gather(*(aside(question=f"Question {n}") for n in range(8))),
            *await asyncio.gather(*(asyncio.to_thread(ask, program, n) for n in range(8, 16))),
        ]
    require_consistent(predictions, models)


def test_threads_have_one_set_each(side: Side, models: Recorder) -> None:
    program = program_of(Slow(side.session), models)
    with side.writing(), ThreadPoolExecutor(8) as threads:
        predictions = list(threads.map(lambda number: ask(program, number), range(CALLS)))
    require_consistent(predictions, models)


def examples(count: int) -> list[Any]:
    return [
        dspy.Example(question=f"Question {number}", answer="").with_inputs("question")
        for number in range(count)
    ]


def test_a_batch_has_one_set_for_each_example(side: Side, models: Recorder) -> None:
    program = program_of(Slow(side.session), models)
    with side.writing():
        predictions = program.batch(examples(CALLS), num_threads=8, disable_progress_bar=True)
    numbers = require_consistent(predictions, models)
    assert len(set(numbers)) > 1


def test_a_pinned_batch_has_one_set(side: Side, models: Recorder) -> None:
    program = program_of(Slow(side.session), models)
    with side.writing():
        reading = program.read_bound()
        with program.pinned(reading):
            predictions = program.batch(examples(CALLS), num_threads=8, disable_progress_bar=True)
    assert len(set(require_consistent(predictions, models))) == 1
    assert {prediction.variables for prediction in predictions} == {reading}


def test_an_evaluation_is_of_one_set_if_pinned(side: Side, models: Recorder) -> None:
    program = program_of(side.session, models)
    seen = []

    def metric(example: Any, prediction: Any, trace: Any = None) -> bool:
        seen.append(prediction.variables)
        return True

    evaluate = dspy.Evaluate(
        devset=examples(CALLS), metric=metric, num_threads=4, display_progress=False
    )
    with side.writing():
        with program.pinned(program.read_bound()):
            assert evaluate(program).score == 100.0
        assert len(set(seen)) == 1
        seen.clear()
        evaluate(program)
    assert len(set(seen)) > 1


class Fanning(VariableAwareModule):
    """Starts calls in threads and tasks of its own."""

    def __init__(self, session: Any, models: Recorder) -> None:
        super().__init__(session)
        self.inner = program_of(session, models)
        self.bind_variable("temperature")

    def forward(self) -> Any:
        answers = self.inner.batch(examples(8), num_threads=4, disable_progress_bar=True)
        return dspy.Prediction(readings=[answer.answer for answer in answers])

    async def aforward(self) -> Any:
        questions = [f"Question {number}" for number in range(8)]
        answers = await asyncio.gather(
            *(self.inner.acall(question=question) for question in questions[:4]),
            *(dspy.asyncify(self.inner)(question=question) for question in questions[4:]),
        )
        return dspy.Prediction(readings=[answer.answer for answer in answers])


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_a_call_starts_has_the_set_of_the_call(
    side: Side, models: Recorder, asynchronous: bool
) -> None:
    slow = Slow(side.session)
    program = Fanning(slow, models)
    with side.writing():
        prediction = asyncio.run(program.acall()) if asynchronous else program()
    assert slow.reads == 1
    number = number_of({name: it.value for name, it in prediction.variables.items()})
    assert {asked.settings["temperature"] for asked in models.requests} == {number / 1_000_000}
    assert {asked.model for asked in models.requests} == {f"fake/{LMS[number % 3]}"}
    assert len(prediction.readings) == 8


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_call_is_made_again_as_it_was(side: Side, models: Recorder, asynchronous: bool) -> None:
    program = program_of(side.session, models)
    with side.writing():
        first = [ask(program, number) for number in range(5)]
    before = list(models.requests)
    models.requests.clear()
    for number, prediction in enumerate(first):
        with program.pinned(prediction.variables):
            if asynchronous:
                again = asyncio.run(program.acall(question=f"Question {number}"))
            else:
                again = ask(program, number)
        assert again == prediction
        assert again.variables is prediction.variables
    assert models.requests == before  # model, temperature, messages
    # And it is steered again.
    side.session.set_variables(generation(77))
    assert number_of({name: it.value for name, it in ask(program, 99).variables.items()}) == 77


def test_a_pin_is_of_a_program_and_its_copies(side: Side, models: Recorder) -> None:
    program, other = program_of(side.session, models), program_of(side.session, models)
    old = program.read_bound()
    side.session.set_variables(generation(5))
    with program.pinned(old):
        assert ask(program, 0).variables is old
        assert ask(program.deepcopy(), 0).variables is old
        assert ask(other, 0).variables["style"].value == "Style 5."
        around = Fanning(side.session, models)
        around.inner = program
        with pytest.raises(FailedPrecondition, match=r"'inner' is pinned.*the Fanning around it"):
            around()
    assert ask(program, 0).variables["style"].value == "Style 5."


def test_a_pin_that_lacks_a_variable_is_refused(side: Side, models: Recorder) -> None:
    program = program_of(side.session, models)
    reading = program.read_bound()
    side.session.register_variable("top", "float", 0.5)
    program.bind_variable("top", "top_p")
    with (
        program.pinned(reading),
        pytest.raises(VariableNotFound, match=r"'top', bound to 'top_p'.*not found in"),
    ):
        ask(program, 0)
    assert not models.requests


def test_a_failure_leaves_nothing_behind(side: Side, models: Recorder) -> None:
    class Failing(VariableAwareModule):
        def forward(self) -> Any:
            raise LookupError("own")

    program = Failing(side.session)
    with pytest.raises(LookupError, match="own"):
        program()
    assert current_reading() is None


async def test_a_failure_of_a_task_leaves_nothing_behind(side: Side) -> None:
    class Failing(VariableAwareModule):
        async def aforward(self) -> Any:
            raise LookupError("own")

    with pytest.raises(LookupError, match="own"):
        await Failing(side.session).acall()
    assert current_reading() is None


@contextmanager
def restarted(directory: Path, timeout: float) -> Iterator[tuple[Any, Callable[[], None]]]:
    """A session at a bridge, and how to ``kill -9`` that and start it again, on another port."""
    log, port = directory / "bridge.db", directory / "port"
    bridges: list[BridgeProcess] = []

    def start() -> None:
        if bridges:
            bridges[-1].kill()
        bridges.append(BridgeProcess(log, "--ready-file", str(port)))

    start()
    try:
        target = ready_file(port)
        with RemoteSession.connect(target, "steered", timeout=timeout) as session:
            register_program(session)
            session.set_variables(generation(0))
            yield session, start
    finally:
        bridges[-1].kill()


def test_a_running_program_does_not_feel_kill_9(tmp_path: Path, models: Recorder) -> None:
    predictions: list[Any] = []
    rounds, running = 3, threading.Semaphore(0)

    with restarted(tmp_path, timeout=PATIENCE) as (session, restart):
        program = program_of(session, models)

        def run() -> None:
            for number in range(10 * rounds):
                session.set_variables(generation(number))
                predictions.append(ask(program, number))
                running.release()

        with ThreadPoolExecutor(1) as threads:
            done = threads.submit(run)
            for _ in range(rounds):
                for _ in range(3):
                    assert running.acquire(timeout=PATIENCE)
                restart()
            done.result(PATIENCE)
    assert require_consistent(predictions, models) == list(range(10 * rounds))
    assert len({prediction.variables.log_epoch for prediction in predictions}) == 1
    offsets = [prediction.variables.offset for prediction in predictions]
    assert offsets == sorted(offsets)


def test_a_call_without_a_bridge_fails_before_any_request(tmp_path: Path, models: Recorder) -> None:
    with BridgeProcess(tmp_path / "bridge.db") as bridge:
        target = f"localhost:{bridge.port}"
        with RemoteSession.connect(target, "steered", timeout=0.5) as session:
            register_program(session)
            program = program_of(session, models)
            prediction = ask(program, 0)
            bridge.kill()
            before = list(models.requests)
            models.requests.clear()
            with pytest.raises((Unavailable, DeadlineExceeded)):
                ask(program, 0)
            assert models.requests == []
            # What was recorded needs no bridge.
            with program.pinned(prediction.variables):
                assert ask(program, 0) == prediction
            assert models.requests == before
