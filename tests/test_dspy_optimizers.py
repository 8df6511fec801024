"""Optimizers at work on programs whose variables are being changed meanwhile."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from snakepit_bridge import SessionContext
from snakepit_bridge.dspy_modules import (
    VariableAwareChainOfThought,
    VariableAwareModule,
    compiling,
)
from snakepit_bridge.errors import InvalidRequest, InvalidValue
from snakepit_bridge.views import BatchRefused
from tests.dspy_programs import QUESTION, Recorder, dspy, trainset


class Answering(VariableAwareModule):
    """Two predictors, of which one has all that an optimizer changes in variables."""

    def __init__(self, session: Any) -> None:
        super().__init__(session)
        self.sort = dspy.Predict("question -> topic")
        self.solve = dspy.ChainOfThought("question, topic -> answer")
        self.bind_variable("temperature", "temperature")
        self.bind_variable("instructions", "instructions", at="solve")
        self.bind_variable("demos", "demos", at="solve")

    def forward(self, question: str) -> Any:
        topic = self.sort(question=question).topic
        return self.solve(question=question, topic=topic)


class Plain(dspy.Module):  # type: ignore[misc, unused-ignore]
    """The same without variables."""

    def __init__(self) -> None:
        super().__init__()
        self.sort = dspy.Predict("question -> topic")
        self.solve = dspy.ChainOfThought("question, topic -> answer")

    def forward(self, question: str) -> Any:
        topic = self.sort(question=question).topic
        return self.solve(question=question, topic=topic)


START = "Begin with this."
BEGUN = json.dumps([{"question": "Begun?", "topic": "t", "answer": "yes"}])


@pytest.fixture
def session() -> Iterator[SessionContext]:
    with SessionContext("compiled") as context:
        context.register_variable("temperature", "float", 0.5)
        context.register_variable("instructions", "string", START)
        context.register_variable("demos", "string", BEGUN)
        context.register_variable("model", "choice", "task")
        yield context


@pytest.fixture
def models() -> Iterator[Recorder]:
    recorder = Recorder()
    with dspy.context(lm=recorder.model("default"), num_threads=2, disable_history=True):
        yield recorder


@contextmanager
def steering(session: SessionContext) -> Iterator[None]:
    """Somebody changes temperature and model without a pause."""
    done = threading.Event()

    def steer() -> None:
        number = 0
        while not done.is_set():
            number += 1
            model = ("task", "other")[number % 2]
            session.set_variables({"temperature": 0.5 + number / 1_000_000, "model": model})

    thread = threading.Thread(target=steer)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def metric(
    example: Any, prediction: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None
) -> float:
    """Differs between the examples, and with what the optimizers try."""
    return (len(str(prediction.answer)) + len(str(example.question))) % 7 / 6


def bootstrap(student: Any, _: Recorder) -> Any:
    optimizer = dspy.BootstrapFewShot(metric=metric, max_rounds=2, metric_threshold=0.5)
    return optimizer.compile(student, trainset=trainset())


def mipro(student: Any, models: Recorder) -> Any:
    optimizer = dspy.MIPROv2(
        metric=metric,
        auto=None,
        num_candidates=2,
        prompt_model=models.model("prompt"),
        max_bootstrapped_demos=1,
        max_labeled_demos=1,
    )
    more = {"num_trials": 2, "minibatch": False}
    return optimizer.compile(student, trainset=trainset(), valset=trainset(4), **more)


def simba(student: Any, models: Recorder) -> Any:
    optimizer = dspy.SIMBA(
        metric=metric,
        bsize=4,
        num_candidates=2,
        max_steps=2,
        max_demos=2,
        prompt_model=models.model("prompt"),
    )
    return optimizer.compile(student, trainset=trainset())


def gepa(student: Any, models: Recorder) -> Any:
    optimizer = dspy.GEPA(
        metric=metric, max_metric_calls=24, reflection_lm=models.model("reflection"), num_threads=2
    )
    return optimizer.compile(student, trainset=trainset(4), valset=trainset(4))


OPTIMIZERS = [bootstrap, mipro, simba, gepa]
Optimize = Callable[[Any, Recorder], Any]


@pytest.mark.parametrize("optimize", OPTIMIZERS)
def test_optimizers_work_while_variables_change(
    session: SessionContext, models: Recorder, tmp_path: Path, optimize: Optimize
) -> None:
    program = Answering(session)
    lms = {"task": models.model("task"), "other": models.model("other")}
    program.bind_variable("model", "lm", lms=lms)
    with steering(session):
        with compiling(program) as student:
            pinned = student._compiled_from
            compiled = optimize(student, models)
        during = list(models.requests)
        after = compiled(question=QUESTION)
    task = f"fake/{pinned['model'].value}"
    assert {asked.model for asked in during} <= {task, "fake/prompt", "fake/reflection"}
    of_the_program = [asked.settings["temperature"] for asked in during if asked.model == task]
    # 1.0 is what optimizers sample with.
    assert set(of_the_program) <= {pinned["temperature"].value, 1.0}
    assert (1.0 in of_the_program) == (optimize in (simba, bootstrap))
    # It runs with the variables again, but for what was compiled.
    assert after.variables.offset > pinned.offset
    assert list(after.variables) == ["temperature", "model"]
    # And is a program of plain DSPy.
    compiled.save(tmp_path / "compiled.json")
    plain = Plain()
    plain.load(tmp_path / "compiled.json")
    assert plain.dump_state() == compiled.dump_state()
    models.requests.clear()
    fixed = {"temperature": 0.25, "model": "task"}
    session.set_variables(fixed)
    compiled(question=QUESTION)
    with dspy.context(lm=models.model("task", temperature=0.25)):
        plain(question=QUESTION)
    assert models.requests[:2] == models.requests[2:]
    # The program itself is as it was.
    assert program.dump_state() == Answering(session).dump_state()


@pytest.mark.parametrize("optimize", OPTIMIZERS)
def test_what_was_compiled_is_published(
    session: SessionContext, models: Recorder, optimize: Optimize
) -> None:
    program = Answering(session)
    before = session.read_variables([]).offset
    with compiling(program) as student, steering(session):
        compiled = optimize(student, models)
    published = program.publish(compiled)
    assert dict(published.versions) == {"instructions": 2, "demos": 2}
    (last, *_) = session.get_variable_history("demos")
    assert (last.source, last.offset > before) == ("dspy_module", True)
    models.requests.clear()
    session.set_variable("temperature", 0.5)
    compiled(question=QUESTION)
    program(question=QUESTION)
    # The step whose parts are bound asks as the compiled one does.
    assert models.requests[1] == models.requests[3]


def test_the_optimizer_begins_with_what_is_bound(session: SessionContext, models: Recorder) -> None:
    program = Answering(session)
    with compiling(program) as student:
        predictor = student.solve.predict
        assert predictor.signature.instructions == START
        assert [demo.toDict() for demo in predictor.demos] == json.loads(BEGUN)
        assert [binding.name for binding in student.bindings] == ["temperature"]
        session.set_variables({"instructions": "Later.", "temperature": 0.9})
        student(question=QUESTION)
    assert START in models.last.messages[0][1]
    assert models.last.settings["temperature"] == 0.5
    assert program.solve.predict.demos == []
    program(question=QUESTION)
    assert "Later." in models.last.messages[0][1]
    assert models.last.settings["temperature"] == 0.9


def test_what_somebody_else_wrote_meanwhile_is_kept(
    session: SessionContext, models: Recorder
) -> None:
    program = Answering(session)
    with compiling(program) as student:
        session.set_variable("instructions", "By hand.")
        student.solve.predict.demos = []
    with pytest.raises(BatchRefused, match="instructions"):
        program.publish(student)
    values = {name: program.get_variable(name) for name in ("instructions", "demos")}
    assert values == {"instructions": "By hand.", "demos": BEGUN}
    program.publish(student, overwrite=True)
    values = {name: program.get_variable(name) for name in ("instructions", "demos")}
    assert values == {"instructions": START, "demos": "[]"}


async def test_publishing_has_an_asynchronous_form(
    session: SessionContext, models: Recorder
) -> None:
    program = Answering(session)
    plain = Plain()
    plain.solve.predict.demos = [dspy.Example(question="ä?", topic="t", answer="!")]
    result = await program.publish_async(plain)
    assert dict(result.versions) == {"instructions": 2, "demos": 2}
    assert "ä?" in program.get_variable("demos")


def test_what_cannot_be_published_is_refused(session: SessionContext, models: Recorder) -> None:
    program = Answering(session)
    with pytest.raises(InvalidRequest, match=r"'instructions'.*no predictor 'solve.predict'.*self"):
        program.publish(dspy.Predict("question -> answer"))
    dated = program.deepcopy()
    for predictor in dated.predictors():
        predictor.demos = [dspy.Example(question=date(2026, 1, 1))]
    with pytest.raises(InvalidValue, match=r"'demos'.*no JSON form.*date"):
        program.publish(dated)
    program.bind_variable("instructions", "instructions", at="sort")
    with pytest.raises(InvalidRequest, match="several predictors, which differ now"):
        program.publish(Plain())
    for name in ("instructions", "demos"):
        program.unbind_variable(name)
    with pytest.raises(InvalidRequest, match="nothing to publish"):
        program.publish(Plain())
    assert session.get_variable_history("instructions")[0].version == 1


def test_variables_can_be_suspended_by_name(session: SessionContext, models: Recorder) -> None:
    program = Answering(session)
    with compiling(program, suspend=["temperature"]) as student:
        student(question=QUESTION)
        assert "temperature" not in models.last.settings
        assert student.bindings == ()


def test_an_lm_of_the_optimizer_is_obeyed(session: SessionContext, models: Recorder) -> None:
    program = VariableAwareChainOfThought(session, "question -> answer")
    program.bind_variable("temperature", "temperature")
    program.bind_variable("model", "lm", lms={"task": models.model("task")})
    with compiling(program) as student:
        student(question=QUESTION)
        assert (models.last.model, models.last.settings["temperature"]) == ("fake/task", 0.5)
        with dspy.context(lm=models.model("teacher")):
            student(question=QUESTION)
        assert (models.last.model, models.last.settings) == ("fake/teacher", {})
        # One that was taken from the settings before is none of the optimizer's choosing.
        with dspy.context(lm=models.model("default")):
            student(question=QUESTION)
        assert (models.last.model, models.last.settings["temperature"]) == ("fake/task", 0.5)
        other = student.deepcopy()
        other.set_lm(dspy.settings.lm.copy(rollout_id=1, temperature=1.0))
        other(question=QUESTION)
        assert (models.last.model, models.last.settings["temperature"]) == ("fake/task", 1.0)
        own = student.deepcopy()
        own.set_lm(models.model("own"))
        own(question=QUESTION)
        assert models.last.model == "fake/own"
    other(question=QUESTION)
    assert (models.last.model, models.last.settings["temperature"]) == ("fake/task", 0.5)


def test_a_predictor_with_an_lm_of_its_own_is_driven_while_compiled(
    session: SessionContext, models: Recorder
) -> None:
    program = VariableAwareChainOfThought(session, "question -> answer")
    program.set_lm(models.model("own"))
    program.bind_variable("temperature", "temperature")
    with compiling(program) as student:
        student.deepcopy()(question=QUESTION)
    assert (models.last.model, models.last.settings["temperature"]) == ("fake/own", 0.5)
