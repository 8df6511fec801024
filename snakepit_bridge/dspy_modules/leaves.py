"""The leaves of a program, which take what a call has bound: ``SteeredPredict`` and ``Arms``.

They hold neither session nor bindings. What holds for a call lies in DSPy's settings, which reach
the threads and tasks that DSPy starts; here it becomes arguments of the call.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from uuid import uuid4

import dspy

from snakepit_bridge.dspy_modules.calls import call_under_way, lineage_of
from snakepit_bridge.errors import InvalidRequest, quote

__all__ = ["Arms", "SteeredPredict", "adopt"]


class SteeredPredict(dspy.Predict):
    """``dspy.Predict`` that runs with what the call under way has bound for it.

    Arguments that the caller gives (``config``, ``lm``, ``signature``, ``demos``) come before it.
    Outside of a call of a program it is ``dspy.Predict``. A class of your own that is to be steered
    derives from it.
    """

    def forward(self, **kwargs: Any) -> Any:
        return super().forward(**_steered(self, kwargs))

    async def aforward(self, **kwargs: Any) -> Any:
        return await super().aforward(**_steered(self, kwargs))


class Arms(dspy.Module):
    """Modules of which one is taken, as the variable says that is bound to ``arm`` here.

    Without such a binding it is the first. All of them are built up front, so that optimizers find
    their predictors, as ``arms['NAME']...``.
    """

    def __init__(self, arms: Mapping[str, Any]) -> None:
        """:raises InvalidRequest: there are none, or one is no module."""
        super().__init__()
        if not arms:
            raise InvalidRequest("Arms need at least one module: Arms({name: dspy.Predict(...)})")
        for name, arm in arms.items():
            if not isinstance(arm, dspy.Module):
                raise InvalidRequest(
                    f"arm {quote(name)} is a {type(arm).__name__}, not a dspy.Module"
                )
        self.arms = dict(arms)
        self._snakepit_lineage = uuid4().hex

    def forward(self, **kwargs: Any) -> Any:
        return self._taken()(**kwargs)

    async def aforward(self, **kwargs: Any) -> Any:
        return await self._taken().acall(**kwargs)

    def _taken(self) -> Any:
        call = call_under_way()
        name = call.arms.get(self) if call else None
        return self.arms[next(iter(self.arms)) if name is None else name]


def adopt(predictor: Any) -> bool:
    """Have a predictor heed what a call has bound; gives whether it can.

    A plain ``dspy.Predict`` becomes a ``SteeredPredict`` in place: whoever refers to it goes on
    doing so, and neither its state nor how that is saved changes.
    """
    if type(predictor) is dspy.Predict:
        predictor.__class__ = SteeredPredict
    if not isinstance(predictor, SteeredPredict):
        return False
    if lineage_of(predictor) is None:
        predictor._snakepit_lineage = uuid4().hex  # noqa: SLF001 - where lineage_of looks
    return True


def _steered(predictor: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Complete the arguments of a call."""
    call = call_under_way()
    bound = call.predictors.get(predictor) if call else None
    if call is None or bound is None:
        return kwargs
    steered = dict(kwargs)
    if call.obeys_lm(kwargs.get("lm") or predictor.lm or dspy.settings.lm):
        if bound.config:
            steered["config"] = {**bound.config, **kwargs.get("config", {})}
        if bound.lm is not None:
            steered.setdefault("lm", bound.lm)
    if bound.instructions is not None:
        signature = _with_instructions(predictor.signature, bound.instructions)
        steered.setdefault("signature", signature)
    if bound.demos is not None:
        steered.setdefault("demos", list(bound.demos))
    return steered


@lru_cache(maxsize=256)
def _with_instructions(signature: Any, instructions: str) -> Any:
    """Make a signature is to make a class: 0.3 ms, and its like was made for the call before."""
    return signature.with_instructions(instructions)
