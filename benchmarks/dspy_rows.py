"""A call of a DSPy program whose parts are bound to variables, beside one where they are fixed.

Both make the same requests of a model that answers at once, so that nothing but DSPy is left of a
call. The session is in this process and in memory.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.contest import Contest, Figure
from benchmarks.errors import BenchmarkError, NotMeasured
from benchmarks.loads import Scale

__all__ = ["BOUND", "bound_call"]

BOUND = ("temperature", "max_tokens", "lm", "instructions")
"""What is bound."""

_CALLS = 1_000
_WARM_UP = 50
_QUESTION = "What is the capital of France?"
_INSTRUCTIONS = "Answer in one word."
_REPLY = "[[ ## reasoning ## ]]\nFrance.\n\n[[ ## answer ## ]]\nParis.\n\n[[ ## completed ## ]]"


@contextmanager
def bound_call(scale: Scale) -> Iterator[Contest]:
    """Measure the CPU time of a call, in µs: nothing in it waits.

    :raises NotMeasured: DSPy is not installed.
    :raises BenchmarkError: the two do not ask the same.
    """
    with tempfile.TemporaryDirectory(prefix="dspy-cache-") as cache:
        os.environ.setdefault("DSPY_CACHEDIR", cache)  # DSPy makes it when it is imported
        try:
            import dspy  # noqa: PLC0415 - takes half a second, and is optional
        except ModuleNotFoundError:
            raise NotMeasured("dspy is not installed: pip install -e '.[dspy]'") from None
        from examples.dspy_program import fake_lm  # noqa: PLC0415 - imports it
        from snakepit_bridge import SessionContext  # noqa: PLC0415 - as above
        from snakepit_bridge.dspy_modules import (  # noqa: PLC0415 - as above
            VariableAwareChainOfThought,
        )

        asked: list[Any] = []

        def reply(request: Any) -> str:  # noqa: ANN401 - an Asked of the example
            asked.append(request)
            return _REPLY

        lm = fake_lm("fake/bench", reply)
        signature = dspy.Signature("question -> answer")
        with SessionContext("bench") as session, dspy.context(disable_history=True):
            session.register_variable("temperature", "float", 0.7)
            session.register_variable("max_tokens", "integer", 256)
            session.register_variable("lm", "choice", "bench")
            session.register_variable("instructions", "string", _INSTRUCTIONS)
            bound = VariableAwareChainOfThought(session, signature)
            for name in BOUND:
                bound.bind_variable(name, name, lms={"bench": lm} if name == "lm" else None)
            fixed = dspy.ChainOfThought(
                signature.with_instructions(_INSTRUCTIONS), temperature=0.7, max_tokens=256
            )
            fixed.set_lm(lm)
            for program in (bound, fixed):
                _timed(program, _WARM_UP)
            if asked[0] != asked[-1]:
                raise BenchmarkError(f"other requests: {asked[0]} and {asked[-1]}")

            def run(program: Any) -> Figure:  # noqa: ANN401 - DSPy has no types
                asked.clear()
                return Figure(_timed(program, max(1, round(_CALLS * scale.share))))

            yield Contest(lambda _: run(bound), lambda _: run(fixed))


def _timed(program: Any, calls: int) -> float:  # noqa: ANN401 - as above
    began = time.process_time()
    for _ in range(calls):
        if program(question=_QUESTION).answer != "Paris.":
            raise BenchmarkError("a wrong answer")
    return (time.process_time() - began) / calls * 1e6
