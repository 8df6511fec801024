"""A DSPy program that is steered while it runs: temperature, model, module and instructions.

python examples/dspy_program.py                  # a session in memory, steered by the script itself
python examples/dspy_program.py --lm openai/gpt-4o-mini   # the same with a real model

With a bridge, and another hand at the wheel:

make run                                                           # in one terminal
python examples/dspy_program.py --target localhost:50050           # in another
snakepit-bridge set temperature 0.1 --session dspy                 # in a third, while it runs
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Annotated, Any, NamedTuple

import dspy
import typer
from rich.console import Console

from snakepit_bridge import SessionContext
from snakepit_bridge.client import RemoteSession
from snakepit_bridge.dspy_modules import Arms, VariableAwareModule
from snakepit_bridge.errors import BridgeError

STEPS: list[dict[str, Any]] = [
    {"temperature": 0.1},
    {"model": "large", "temperature": 0.7},
    {"strategy": "think", "instructions": "Answer in one word."},
    {"model": "small", "strategy": "plain", "temperature": 1.5},
]
"""What the script sets, each as one transaction."""

_UNSET = {"temperature": None, "max_tokens": None, "cache": False}

QUESTION = "What is the capital of France?"

console = Console(highlight=False, markup=False, soft_wrap=True)


class Asked(NamedTuple):
    """A request as a model gets it."""

    model: str
    messages: list[tuple[str, str]]
    """Role and text of each."""
    settings: dict[str, Any]
    """``temperature`` and ``max_tokens``, where they are given."""


def fake_lm(model: str, reply: Callable[[Asked], str], **settings: Any) -> Any:
    """An LM without a network: ``reply`` gives the text of each answer.

    DSPy 3.4 takes an *engine*; before that an LM of one's own is a subclass.
    """
    try:
        from dspy import lm15  # noqa: PLC0415 - 3.4 has it
    except ImportError:
        fake = _class_before_34()(model, **{**_UNSET, **settings})
        fake.reply = reply
        return fake

    def complete(request: Any) -> Any:
        system = request.system or ""
        text = system if isinstance(system, str) else "".join(part.text for part in system)
        messages = [("system", text)] if text else []
        messages += [(message.role, message.text or "") for message in request.messages]
        given = {
            name: value
            for name in ("temperature", "max_tokens")
            if (value := getattr(request.config, name)) is not None
        }
        return lm15.Response(
            id=None,
            model=model,
            message=lm15.Message.assistant([lm15.TextPart(reply(Asked(model, messages, given)))]),
            finish_reason="stop",
            usage=lm15.Usage(input_tokens=0, output_tokens=0),
        )

    async def complete_async(request: Any) -> Any:
        return complete(request)

    engine, async_engine = (
        SimpleNamespace(complete=complete),
        SimpleNamespace(complete=complete_async),
    )
    return dspy.LM(model, engine=engine, async_engine=async_engine, cache=False, **settings)


@cache
def _class_before_34() -> Any:
    def forward(self: Any, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        given = {
            name: value
            for name, value in {**self.kwargs, **kwargs}.items()
            if name in ("temperature", "max_tokens") and value is not None
        }
        asked = messages or [{"role": "user", "content": prompt}]
        texts = [(message["role"], message["content"]) for message in asked]
        message = SimpleNamespace(content=self.reply(Asked(self.model, texts, given)))
        choice = SimpleNamespace(message=message, finish_reason="stop")
        return SimpleNamespace(choices=[choice], usage={}, model=self.model)

    async def aforward(self: Any, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        return self.forward(prompt, messages, **kwargs)

    return type("FakeLM", (dspy.BaseLM,), {"forward": forward, "aforward": aforward})


def recital(asked: Asked) -> str:
    """Answer with what was asked for, in the form that DSPy wants."""
    temperature = asked.settings.get("temperature")
    asks_reasoning = "[[ ## reasoning ## ]]" in asked.messages[0][1]
    thought = "[[ ## reasoning ## ]]\nFrance is a country.\n\n" if asks_reasoning else ""
    briefly = "one word" in asked.messages[0][1]
    answer = "Paris." if briefly else f"It is Paris, says {asked.model} at {temperature}."
    return f"{thought}[[ ## answer ## ]]\n{answer}\n\n[[ ## completed ## ]]"


class Program(VariableAwareModule):
    """Answers questions; what it does so with are variables."""

    def __init__(self, session: Any, lms: dict[str, Any]) -> None:
        super().__init__(session)
        self.solve = Arms(
            {
                "plain": dspy.Predict("question -> answer"),
                "think": dspy.ChainOfThought("question -> answer"),
            }
        )
        self.bind_variable("temperature", "temperature")
        self.bind_variable("model", "lm", lms=lms)
        self.bind_variable("strategy", "arm")
        self.bind_variable("instructions", "instructions", at="solve.arms['think']")

    def forward(self, question: str) -> Any:
        return self.solve(question=question)


def main(
    target: Annotated[
        str, typer.Option(help="HOST:PORT of a bridge; without it, a session in memory.")
    ] = "",
    session: Annotated[str, typer.Option(help="The session at that bridge.")] = "dspy",
    lm: Annotated[
        list[str] | None,
        typer.Option(
            help="A real model, such as openai/gpt-4o-mini; given twice: the small and the "
            "large one. Without it, models that recite what they are asked with."
        ),
    ] = None,
    calls: Annotated[int, typer.Option(min=1, help="How many, with a bridge.")] = 60,
) -> None:
    """Ask the same question again and again, while variables decide how.

    Each line shows the offset of the session's log that a call read at, the values there, and the
    answer: no call runs with a mixture. At the end the first call is made again with what it had
    then, whatever the variables are now.
    """
    lms = models(lm or [])
    with opened(target, session) as context:
        register(context, list(lms))
        program = Program(context, lms)
        if target:
            console.print(f"Set temperature, model, strategy or instructions of {session!r} now.")
        first = show(program(question=QUESTION))
        for number in range(calls if target else len(STEPS)):
            if target:
                time.sleep(1)
            else:
                context.set_variables(STEPS[number])
            show(program(question=QUESTION))
        console.print("\nThe first call once more, pinned to what it read:")
        with program.pinned(first.variables):
            again = show(program(question=QUESTION))
        if not lm and again.answer != first.answer:
            raise AssertionError("another answer to the same request")


def models(names: list[str]) -> dict[str, Any]:
    """Give the models that the variable ``model`` chooses from."""
    if not names:
        return {name: fake_lm(f"fake/{name}", recital) for name in ("small", "large")}
    return {"small": dspy.LM(names[0]), "large": dspy.LM(names[-1])}


@contextmanager
def opened(target: str, session_id: str) -> Iterator[Any]:
    """Open the session: at a bridge, or one in memory."""
    try:
        context = RemoteSession.connect(target, session_id) if target else None
    except BridgeError as error:
        console.print(f"[red]No bridge at {target}:[/] {error}. Start one: make run", markup=True)
        raise typer.Exit(1) from error
    with context or SessionContext(session_id) as session:
        yield session


def register(context: Any, names: list[str]) -> None:
    """Register the variables, unless an earlier run did."""
    declared = [
        ("temperature", "float", 1.0, {"min": 0, "max": 2}),
        ("model", "choice", names[0], {"choices": names}),
        ("strategy", "module", "plain", {"choices": ["plain", "think"]}),
        ("instructions", "string", "Think before you answer.", None),
    ]
    for name, type_, value, constraints in declared:
        if context.get_variable(name) is None:
            context.register_variable(name, type_, value, constraints)


def show(prediction: Any) -> Any:
    """Print a prediction with what it was made with."""
    read = prediction.variables
    values = "  ".join(
        f"{name}={read[name].value}" for name in ("temperature", "model", "strategy")
    )
    console.print(f"offset {read.offset:>3}  {values}  {prediction.answer}")
    return prediction


if __name__ == "__main__":
    typer.run(main)
