"""DSPy's modules with variables bound to them: what arrives in requests, and what is refused."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from snakepit_bridge import SessionContext
from snakepit_bridge.dspy_modules import (
    Arms,
    SteeredPredict,
    VariableAwareChainOfThought,
    VariableAwareModule,
    VariableAwarePredict,
    VariableAwareReAct,
    current_reading,
)
from snakepit_bridge.dspy_modules.tree import grow
from snakepit_bridge.errors import (
    FailedPrecondition,
    InvalidRequest,
    InvalidValue,
    VariableNotFound,
)
from tests.dspy_programs import QUESTION, Program, Recorder, dspy, register_program


@pytest.fixture
def session() -> Iterator[SessionContext]:
    with SessionContext("dspy") as context:
        context.register_variable("temperature", "float", 0.3)
        context.register_variable("length", "integer", 100)
        context.register_variable("style", "string", "Be brief.")
        yield context


@pytest.fixture
def models() -> Iterator[Recorder]:
    recorder = Recorder()
    with dspy.context(lm=recorder.model("default")):
        yield recorder


def bound(session: SessionContext, *bindings: str) -> Any:
    program = VariableAwarePredict(session, "question -> answer")
    for binding in bindings:
        program.bind_variable(*binding.split())
    return program


# What arrives in requests.


def test_settings_of_the_lm_are_driven_live(session: SessionContext, models: Recorder) -> None:
    program = bound(session, "temperature temperature", "length max_tokens")
    program(question=QUESTION)
    assert models.last.settings == {"temperature": 0.3, "max_tokens": 100}
    session.set_variables({"temperature": 0.8, "length": 200})
    prediction = program(question=QUESTION)
    assert models.last.settings == {"temperature": 0.8, "max_tokens": 200}
    assert prediction.answer == "answer of fake/default at 0.8"


@pytest.mark.parametrize(
    ("made", "own"),
    [
        (VariableAwarePredict, ("question -> answer",)),
        (VariableAwareChainOfThought, ("question -> answer",)),
        (VariableAwareReAct, ("question -> answer", [])),
    ],
)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_modules_of_dspy_are_driven(
    session: SessionContext, models: Recorder, made: Any, own: tuple[Any], asynchronous: bool
) -> None:
    program = made(session, *own)
    program.bind_variable("temperature", "temperature")
    if asynchronous:
        prediction = asyncio.run(program.acall(question=QUESTION))
    else:
        prediction = program(question=QUESTION)
    assert {asked.settings["temperature"] for asked in models.requests} == {0.3}
    assert prediction.answer == "answer of fake/default at 0.3"
    assert prediction.variables["temperature"].value == 0.3


def test_the_lm_is_one_of_those_allowed(session: SessionContext, models: Recorder) -> None:
    session.register_variable("model", "choice", "small")
    program = bound(session)
    lms = {"small": models.model("small"), "large": models.model("large")}
    program.bind_variable("model", "lm", lms=lms)
    program(question=QUESTION)
    session.set_variable("model", "large")
    program(question=QUESTION)
    assert [asked.model for asked in models.requests] == ["fake/small", "fake/large"]


def test_no_other_lm_has_to_be_there(session: SessionContext) -> None:
    session.register_variable("model", "choice", "small")
    program = bound(session)
    program.bind_variable("model", "lm", lms={"small": Recorder().model("small")})
    assert program(question=QUESTION).answer == "answer of fake/small at None"


def test_instructions_and_demos_arrive(session: SessionContext, models: Recorder) -> None:
    demos = [{"question": "What is 1?", "answer": "one"}, {"base": "odd", "question": "2?"}]
    session.register_variable("demos", "string", json.dumps(demos))
    program = bound(session, "style instructions", "demos demos")
    program(question=QUESTION)
    system, *rest = (text for _, text in models.last.messages)
    assert "Be brief." in system
    assert any("What is 1?" in text for text in rest)
    assert any("one" in text for text in rest)
    session.set_variables({"style": "Sing.", "demos": "[]"})
    program(question=QUESTION)
    assert "Sing." in models.last.messages[0][1]
    assert len(models.last.messages) == 2


def test_a_module_is_one_of_those_built(session: SessionContext, models: Recorder) -> None:
    class Choosing(VariableAwareModule):
        def __init__(self) -> None:
            super().__init__(session)
            self.solve = Arms(
                {
                    "dspy.Predict": dspy.Predict("question -> answer"),
                    "dspy.ChainOfThought": dspy.ChainOfThought("question -> answer"),
                }
            )

        def forward(self, question: str) -> Any:
            return self.solve(question=question)

    program = Choosing()
    assert "reasoning" not in program(question=QUESTION)
    session.register_variable("strategy", "module", "dspy.ChainOfThought")
    program.bind_variable("strategy", "arm")
    assert "reasoning" in program(question=QUESTION)
    session.set_variable("strategy", "dspy.Predict")
    assert "reasoning" not in program(question=QUESTION)
    assert [name for name, _ in program.named_predictors()] == [
        "solve.arms['dspy.Predict']",
        "solve.arms['dspy.ChainOfThought'].predict",
    ]


def test_other_settings_have_to_be_named_as_such(session: SessionContext, models: Recorder) -> None:
    program = bound(session, "length config.max_tokens")
    program(question=QUESTION)
    assert models.last.settings == {"max_tokens": 100}
    with pytest.raises(InvalidRequest, match=r"nothing is named 'temprature'.*temperature"):
        program.bind_variable("temperature", "temprature")
    with pytest.raises(InvalidRequest, match=r"'config\.'"):
        program.bind_variable("temperature", "config.")


# Which of several holds.


class Steps(VariableAwareModule):
    def __init__(self, session: Any) -> None:
        super().__init__(session)
        self.sort = dspy.Predict("question -> topic", temperature=1.9)
        self.solve = dspy.ChainOfThought("question, topic -> answer")

    def forward(self, question: str, **config: Any) -> Any:
        topic = self.sort(question=question, config=config).topic
        return self.solve(question=question, topic=topic)


def temperatures(models: Recorder) -> list[Any]:
    found = [asked.settings.get("temperature") for asked in models.requests]
    models.requests.clear()
    return found


def test_a_binding_can_be_for_one_predictor(session: SessionContext, models: Recorder) -> None:
    program = Steps(session)
    program(question=QUESTION)
    assert temperatures(models) == [1.9, None]
    program.bind_variable("temperature", "temperature", at="solve")
    program(question=QUESTION)
    assert temperatures(models) == [1.9, 0.3]
    session.register_variable("other", "float", 0.7)
    program.bind_variable("other", "temperature")
    program(question=QUESTION)
    assert temperatures(models) == [0.7, 0.3]
    program.bind_variable("other", "temperature", at="solve.predict")
    program(question=QUESTION)
    assert temperatures(models) == [0.7, 0.7]
    program.bind_variable("temperature", "temperature")
    assert program.unbind_variable("other")
    program(question=QUESTION)
    assert temperatures(models) == [0.3, 0.3]


def test_what_the_caller_says_comes_first(session: SessionContext, models: Recorder) -> None:
    session.register_variable("model", "choice", "small")
    program = bound(session, "temperature temperature", "length max_tokens", "style instructions")
    program.bind_variable("model", "lm", lms={"small": models.model("small")})
    signature = dspy.Signature("question -> answer", "Rhyme.")
    program(
        question=QUESTION,
        config={"temperature": 0.0},
        lm=models.model("mine"),
        signature=signature,
    )
    assert models.last.model == "fake/mine"
    assert models.last.settings == {"temperature": 0.0, "max_tokens": 100}
    assert "Rhyme." in models.last.messages[0][1]


def test_a_module_inside_has_the_last_word(session: SessionContext, models: Recorder) -> None:
    class Around(VariableAwareModule):
        def __init__(self) -> None:
            super().__init__(session)
            self.inner = bound(session, "cold temperature")
            self.deep = dspy.ChainOfThought("question -> answer")
            self.bind_variable("temperature", "temperature")

        def forward(self, question: str) -> Any:
            self.deep(question=question)
            return self.inner(question=question)

    session.register_variable("cold", "float", 0.1)
    program = Around()
    prediction = program(question=QUESTION)
    assert temperatures(models) == [0.3, 0.1]
    assert list(prediction.variables) == ["temperature", "cold"]
    program.inner(question=QUESTION)
    assert temperatures(models) == [0.1]


def test_modules_are_not_changed(session: SessionContext, models: Recorder) -> None:
    program = Program.__new__(Program)
    with SessionContext("other") as other:
        register_program(other)
        program = Program(other, {"m0": models.model("m0")})
        before = program.dump_state()
        program(question=QUESTION)
        assert program.dump_state() == before
        for _, predictor in program.named_predictors():
            assert (predictor.lm, predictor.config) == (None, {})


# What is read by the code of a program.


def test_a_variable_can_be_bound_to_be_read(session: SessionContext, models: Recorder) -> None:
    class Reading(VariableAwareModule):
        def __init__(self) -> None:
            super().__init__(session)
            self.bind_variable("style")
            self.bind_variable("length")

        def forward(self) -> Any:
            reading = current_reading()
            assert reading is not None
            self.set_variable("style", "New.")
            later = current_reading()
            assert later is not None
            return dspy.Prediction(
                style=later["style"].value,
                fresh=self.get_variable("style"),
                length=reading["length"].value,
            )

    assert current_reading() is None
    prediction = Reading()()
    # One reading for the whole call; who wants the newest asks for it.
    assert (prediction.style, prediction.fresh, prediction.length) == ("Be brief.", "New.", 100)
    assert prediction.variables["style"].version == 1
    assert current_reading() is None


def test_a_prediction_says_what_it_was_made_with(session: SessionContext, models: Recorder) -> None:
    session.set_variable("temperature", 0.4)
    program = bound(session, "temperature temperature", "length max_tokens")
    prediction = program(question=QUESTION)
    reading = prediction.variables
    head = session.read_variables([])
    assert (reading.session_id, reading.log_epoch) == ("dspy", head.log_epoch)
    assert reading.offset == head.offset
    assert [(it.name, it.value, it.version) for it in reading.values()] == [
        ("temperature", 0.4, 2),
        ("length", 100, 1),
    ]
    # It is none of the fields.
    assert list(prediction.keys()) == ["answer"]
    assert prediction.toDict() == {"answer": prediction.answer}
    for other in (
        copy.copy(prediction),
        copy.deepcopy(prediction),
        pickle.loads(cloudpickle.dumps(prediction)),
    ):
        assert other.variables == reading
        assert other == prediction


def test_what_a_program_returns_twice_is_two_predictions(
    session: SessionContext, models: Recorder
) -> None:
    kept = dspy.Prediction(answer="the same")

    class Remembering(VariableAwareModule):
        def forward(self) -> Any:
            return kept

    program = Remembering(session)
    program.bind_variable("temperature")
    first = program()
    session.set_variable("temperature", 0.9)
    second = program()
    assert (first.variables["temperature"].value, second.variables["temperature"].value) == (
        0.3,
        0.9,
    )
    assert not hasattr(kept, "variables")


def test_a_callback_of_dspy_sees_the_reading(session: SessionContext, models: Recorder) -> None:
    seen = []

    class Log(dspy.utils.callback.BaseCallback):  # type: ignore[misc, unused-ignore]
        def on_lm_start(self, **call: Any) -> None:
            reading = current_reading()
            assert reading is not None
            seen.append((bool(call["call_id"]), reading.offset))

    program = bound(session, "temperature temperature")
    with dspy.context(callbacks=[Log()]):
        prediction = program(question=QUESTION)
    assert seen == [(True, prediction.variables.offset)]


# What is refused, before any request.


@pytest.mark.parametrize(
    ("bindings", "words"),
    [
        (
            ["style temperature"],
            "'style' of type string, bound to 'temperature', is 'Be brief.' (version 1): expected",
        ),
        (["temperature max_tokens"], "expected a variable of type integer"),
        (["length instructions"], "expected a variable of type string"),
        (["style demos"], 'expected a JSON list of objects, such as [{"question": "...", '),
        (["temperature demos"], "expected a variable of type string"),
    ],
)
def test_a_variable_of_the_wrong_kind_is_refused(
    session: SessionContext, models: Recorder, bindings: list[str], words: str
) -> None:
    program = bound(session, *bindings)
    with pytest.raises(InvalidValue) as caught:
        program(question=QUESTION)
    assert words in str(caught.value)
    assert not models.requests


@pytest.mark.parametrize(
    "text", ["{}", "[1]", "[" * 100_000, '[{"a": 1}, null]', "1", '"', "\ud800"]
)
def test_what_are_no_demos_is_refused(session: SessionContext, models: Recorder, text: str) -> None:
    try:
        session.register_variable("demos", "string", text)
    except InvalidValue:
        return  # no text at all
    program = bound(session, "demos demos")
    with pytest.raises(InvalidValue, match=r"variable 'demos'.*expected a JSON list of objects"):
        program(question=QUESTION)
    assert not models.requests


def test_a_missing_variable_is_named(session: SessionContext, models: Recorder) -> None:
    program = bound(session, "absent temperature")
    for _ in range(2):
        with pytest.raises(VariableNotFound) as caught:
            program(question=QUESTION)
        assert str(caught.value) == (
            "variable 'absent', bound to 'temperature' and of type float or integer, not found in "
            "session 'dspy'"
        )
    session.register_variable("absent", "float", 0.5)
    assert program(question=QUESTION).variables["absent"].value == 0.5
    session.delete_variable("absent")
    with pytest.raises(VariableNotFound, match="'absent'"):
        program(question=QUESTION)
    assert len(models.requests) == 1


def test_an_unknown_predictor_is_named(session: SessionContext, models: Recorder) -> None:
    program = Steps(session)
    program.bind_variable("temperature", "temperature", at="solver")
    with pytest.raises(InvalidRequest) as caught:
        program(question=QUESTION)
    assert str(caught.value) == (
        "variable 'temperature' is bound to 'temperature' at 'solver', where there are no "
        "predictors; predictors of the program: sort, solve.predict"
    )
    program.unbind_variable("temperature")
    program.bind_variable("style", "instructions")
    with pytest.raises(InvalidRequest, match=r"2 predictors.*at= one of sort, solve.predict"):
        program(question=QUESTION)
    assert not models.requests


def test_unknown_names_of_lms_and_arms_are_refused(
    session: SessionContext, models: Recorder
) -> None:
    session.register_variable("model", "choice", "huge")
    program = bound(session)
    program.bind_variable(
        "model", "lm", lms={"small": models.model("a"), "large": models.model("b")}
    )
    with pytest.raises(InvalidValue, match=r"'model'.*'huge'.*one of its LMs: small, large"):
        program(question=QUESTION)
    program = Program(session, {"small": models.model("a")})
    session.set_variable("model", "small")
    session.register_variable("strategy", "module", "os.system")
    with pytest.raises(
        InvalidValue, match=r"'strategy' of type module.*arm of 'solve': plain, thi"
    ):
        program(question=QUESTION)
    program.bind_variable("strategy", "arm", at="sort")
    with pytest.raises(InvalidRequest, match="no Arms; Arms of the program: solve"):
        program(question=QUESTION)
    assert not models.requests


def test_bindings_that_cannot_be_are_refused_at_once(
    session: SessionContext, models: Recorder
) -> None:
    program = bound(session)
    with pytest.raises(InvalidRequest, match="without the LMs"):
        program.bind_variable("model", "lm")
    with pytest.raises(InvalidRequest, match="lms are for what is bound to 'lm'"):
        program.bind_variable("model", "temperature", lms={})
    with pytest.raises(InvalidRequest, match="'small' of lms is a str"):
        program.bind_variable("model", "lm", lms={"small": "openai/gpt-4o-mini"})
    with pytest.raises(InvalidRequest, match="arm 'x' is a function"):
        Arms({"x": test_a_missing_variable_is_named})
    with pytest.raises(InvalidRequest, match="at least one"):
        Arms({})
    assert program.bindings == ()


def test_a_predictor_of_another_class_has_to_be_derived(
    session: SessionContext, models: Recorder
) -> None:
    class Own(dspy.Predict):  # type: ignore[misc, unused-ignore]
        pass

    class Derived(SteeredPredict):
        pass

    class Using(VariableAwareModule):
        def __init__(self, kind: Any) -> None:
            super().__init__(session)
            self.step = kind("question -> answer")
            self.bind_variable("temperature", "temperature")

        def forward(self, question: str) -> Any:
            return self.step(question=question)

    with pytest.raises(InvalidRequest, match=r"'step' is a Own.*derive it from .*SteeredPredict"):
        Using(Own)(question=QUESTION)
    Using(Derived)(question=QUESTION)
    assert temperatures(models) == [0.3]


def test_one_call_has_one_session(session: SessionContext, models: Recorder) -> None:
    with SessionContext("other") as other:
        program = Steps(session)
        program.extra = bound(other)
        with pytest.raises(FailedPrecondition, match=r"'extra' has session 'other'.*'dspy'"):
            program(question=QUESTION)
        program.attach_session(other)
        assert program.extra.session_context is other
        program(question=QUESTION)


# Copies and files.


def test_copies_share_the_session_and_nothing_else(
    session: SessionContext, models: Recorder
) -> None:
    program = Steps(session)
    program.bind_variable("temperature", "temperature")
    program.sort.demos = [dspy.Example(question="?", topic="!")]
    for other in (program.deepcopy(), copy.deepcopy(program), program.reset_copy()):
        assert other.session_context is session
        assert other.sort is not program.sort
        assert other.solve.predict is not program.solve.predict
        other.sort.demos.append(dspy.Example())
        other.unbind_variable("temperature")
        other(question=QUESTION)
        assert temperatures(models) == [1.9, None]
    assert len(program.sort.demos) == 1
    program(question=QUESTION)
    assert temperatures(models) == [0.3, 0.3]
    assert not program.reset_copy().sort.demos


def test_a_copy_made_in_a_call_is_driven_as_well(session: SessionContext, models: Recorder) -> None:
    class Copying(Steps):
        def forward(self, question: str, **_: Any) -> Any:
            other = self.solve.deepcopy()
            return other(question=question, topic="any")

    program = Copying(session)
    program.bind_variable("temperature", "temperature")
    program(question=QUESTION)
    assert temperatures(models) == [0.3]


def test_a_predictor_that_is_there_twice_is_driven(
    session: SessionContext, models: Recorder
) -> None:
    program: Any = Steps(session)
    program.again = program.sort
    program.copied = program.sort.deepcopy()
    program.bind_variable("temperature", "temperature", at="copied")

    def ask_all(question: str) -> None:
        for predictor in (program.sort, program.again, program.copied):
            predictor(question=question)

    program.forward = ask_all
    program(question=QUESTION)
    program(question=QUESTION)
    assert temperatures(models) == [1.9, 1.9, 0.3] * 2


def test_a_program_that_is_changed_after_a_call_is_driven(
    session: SessionContext, models: Recorder
) -> None:
    program: Any = Steps(session)
    program.bind_variable("temperature", "temperature")
    program(question=QUESTION)
    program.sort = dspy.Predict("question -> topic")
    program.solve.predict = dspy.Predict("question, topic -> answer")
    program.more = [dspy.Predict("question -> answer")]
    program(question=QUESTION)
    program.forward = lambda question: program.more[1](question=question)
    program.more.append(dspy.Predict("question -> answer"))
    program(question=QUESTION)
    program.unbind_variable("temperature")
    program(question=QUESTION)
    assert temperatures(models) == [0.3, 0.3, 0.3, 0.3, 0.3, None]


def test_versions_of_another_log_are_other_versions(models: Recorder) -> None:
    program: Any = None
    for value in (0.1, 0.2):
        with SessionContext("same") as session:
            session.register_variable("temperature", "float", value)
            program = program or bound(session, "temperature temperature")
            program.attach_session(session)
            program(question=QUESTION)
    assert temperatures(models) == [0.1, 0.2]


def test_a_pickled_program_asks_for_its_session_and_lms(
    session: SessionContext, models: Recorder, tmp_path: Path
) -> None:
    session.register_variable("model", "choice", "small")
    program = bound(session, "temperature temperature")
    lms = {"small": models.model("small")}
    lms["small"].key = "secret"
    program.bind_variable("model", "lm", lms=lms)
    prediction = program(question=QUESTION)
    pickled = cloudpickle.dumps(program)
    assert b"secret" not in pickled
    loaded = pickle.loads(pickled)
    with pytest.raises(FailedPrecondition, match=r"without its session 'dspy'.*attach_session"):
        loaded(question=QUESTION)
    loaded.attach_session(session)
    with pytest.raises(FailedPrecondition, match=r"'model' chooses from LMs.*bind_variable"):
        loaded(question=QUESTION)
    loaded.bind_variable("model", "lm", lms=lms)
    assert loaded(question=QUESTION).answer == prediction.answer
    program.save(tmp_path / "program", save_program=True)
    again = dspy.load(tmp_path / "program", allow_pickle=True)
    again.bind_variable("model", "lm", lms=lms)
    # What was recorded needs no session.
    with again.pinned(prediction.variables):
        assert again(question=QUESTION).answer == prediction.answer


def test_states_are_those_of_plain_dspy(
    session: SessionContext, models: Recorder, tmp_path: Path
) -> None:
    class Plain(dspy.Module):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.sort = dspy.Predict("question -> topic", temperature=1.9)
            self.solve = dspy.ChainOfThought("question, topic -> answer")

    plain, aware = Plain(), Steps(session)
    aware.bind_variable("temperature", "temperature")
    aware(question=QUESTION)
    aware.solve.predict.demos = [dspy.Example(question="?", topic="t", answer="!", augmented=True)]
    assert aware.dump_state().keys() == plain.dump_state().keys()
    aware.save(tmp_path / "aware.json")
    plain.load(tmp_path / "aware.json")
    assert plain.dump_state() == aware.dump_state()
    plain.sort.demos = [dspy.Example(question="?", topic="t")]
    plain.save(tmp_path / "plain.json")
    aware.load(tmp_path / "plain.json")
    assert aware.dump_state() == plain.dump_state()
    aware(question=QUESTION)
    assert temperatures(models)[2:] == [0.3, 0.3]


def test_paths_are_those_of_dspy(session: SessionContext) -> None:
    class Everything(VariableAwareModule):
        def __init__(self) -> None:
            super().__init__(session)
            self.first = dspy.ReAct("question -> answer", tools=[])
            self.many = [dspy.Predict("a -> b"), dspy.ChainOfThought("a -> b")]
            self.named = {"x": dspy.Predict("a -> b"), 3: dspy.Predict("a -> b")}
            self.shared = self.many[0]
            self.inner = bound(session)
            self.data = list(range(100_000))
            self.history: list[Any] = [{"messages": []}] * 10_000

    program = Everything()
    assert list(grow(program).predictors) == [name for name, _ in program.named_predictors()]
    program.first._compiled = True
    assert "first.react" in grow(program).predictors
    alone = VariableAwarePredict(session, "a -> b")
    assert (
        list(grow(alone).predictors) == ["self"] == [name for name, _ in alone.named_predictors()]
    )
