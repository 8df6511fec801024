"""Models without a network and programs for the tests of DSPy modules."""

from __future__ import annotations

import re
import threading
from typing import Any

import dspy

from examples.dspy_program import Asked, fake_lm
from snakepit_bridge.dspy_modules import Arms, VariableAwareModule

__all__ = [
    "QUESTION",
    "Asked",
    "Program",
    "Recorder",
    "dspy",
    "register_program",
    "trainset",
]

QUESTION = "What is the capital of France?"


class Recorder:
    """Keeps what models were asked, in the order of the requests."""

    def __init__(self) -> None:
        self.requests: list[Asked] = []
        self._lock = threading.Lock()

    def model(self, name: str, **settings: Any) -> Any:
        """An LM that fills in every field that it is asked for."""

        def reply(asked: Asked) -> str:
            with self._lock:
                self.requests.append(asked)
            return filled_in(asked)

        return fake_lm(f"fake/{name}", reply, **settings)

    @property
    def last(self) -> Asked:
        return self.requests[-1]


_FIELDS = re.compile(r"Your output fields are:\n(.*?)\nAll interactions", re.DOTALL)
_FIELD = re.compile(r"^\d+\. `(\w+)` \((.*?)\):", re.MULTILINE)


def filled_in(asked: Asked) -> str:
    """Answer in the form of ``dspy.ChatAdapter``; without one, propose instructions."""
    found = _FIELDS.search(asked.messages[0][1])
    if found is None:
        return "```\nAnswer as if it were the capital.\n```"
    temperature = asked.settings.get("temperature")
    parts = []
    for name, type_ in _FIELD.findall(found[1]):
        if type_.startswith("Literal"):
            value = "finish"
        elif type_.startswith("dict"):
            value = "{}" if name != "module_advice" else '{"self": "Be brief."}'
        elif type_.startswith("bool"):
            value = "True"
        else:
            value = f"{name} of {asked.model} at {temperature}"
        parts.append(f"[[ ## {name} ## ]]\n{value}\n")
    return "\n".join([*parts, "[[ ## completed ## ]]"])


class Program(VariableAwareModule):
    """Two steps, the second with a choice of modules, everything bound."""

    def __init__(self, session: Any, lms: dict[str, Any]) -> None:
        super().__init__(session)
        self.sort = dspy.Predict("question -> topic")
        self.solve = Arms(
            {
                "plain": dspy.Predict("question, topic -> answer"),
                "think": dspy.ChainOfThought("question, topic -> answer"),
            }
        )
        self.bind_variable("temperature", "temperature")
        self.bind_variable("model", "lm", lms=lms)
        self.bind_variable("strategy", "arm")
        self.bind_variable("style", "instructions", at="sort")

    def forward(self, question: str) -> Any:
        topic = self.sort(question=question).topic
        return self.solve(question=question, topic=topic)

    async def aforward(self, question: str) -> Any:
        topic = (await self.sort.acall(question=question)).topic
        return await self.solve.acall(question=question, topic=topic)


def register_program(session: Any) -> None:
    """Register what ``Program`` binds."""
    session.register_variable("temperature", "float", 0.0)
    session.register_variable("model", "choice", "m0")
    session.register_variable("strategy", "module", "plain")
    session.register_variable("style", "string", "Style 0.")


def trainset(count: int = 8) -> list[Any]:
    return [
        dspy.Example(question=f"What is {number}?", answer=f"answer {number}").with_inputs(
            "question"
        )
        for number in range(count)
    ]
