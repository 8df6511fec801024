"""One call of a program: its reading, and what that binds for which part of the program.

It lies in DSPy's settings under a key of ours. Plain context variables would not do: ``batch`` and
``Evaluate`` do not take them along into their threads.

Parts are found by identity and, for copies that are made during the call (``dspy.BestOfN`` and
``dspy.Refine`` run copies), by *lineage*, a random name that copies inherit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import dspy

from snakepit_bridge.variable_aware_mixin import BoundReading

__all__ = [
    "Call",
    "Overrides",
    "Parts",
    "Pin",
    "call_under_way",
    "current_reading",
    "kind_of_lm",
    "lineage_of",
    "pinned",
    "pins",
    "under_way",
]

T = TypeVar("T")

_CALL = "snakepit_bridge_call"
_PINS = "snakepit_bridge_pins"


@dataclass(frozen=True, slots=True)
class Overrides:
    """What is bound for one predictor."""

    config: Mapping[str, Any] = field(default_factory=dict)
    lm: Any = None
    instructions: str | None = None
    demos: tuple[Any, ...] | None = None


class Parts(Generic[T]):
    """Something for some parts of a program, found by the part or a copy of it."""

    __slots__ = ("_by_identity", "_by_lineage")

    def __init__(self, parts: Iterable[tuple[Any, T]]) -> None:
        # With the part, so that no other object can get its identity meanwhile.
        self._by_identity = {id(part): (part, value) for part, value in parts}
        self._by_lineage: dict[str, T] = {}
        seen: set[str] = set()
        for part, value in self._by_identity.values():
            lineage = lineage_of(part)
            if lineage is None:
                continue
            if lineage in seen:  # copies of each other within one program: which is meant?
                self._by_lineage.pop(lineage, None)
            else:
                seen.add(lineage)
                self._by_lineage[lineage] = value

    def get(self, part: object) -> T | None:
        """Give what is kept for a part, or for the one that it is a copy of."""
        found = self._by_identity.get(id(part))
        if found is not None:
            return found[1]
        lineage = lineage_of(part)
        return None if lineage is None else self._by_lineage.get(lineage)


@dataclass(frozen=True, slots=True)
class Call:
    """The call under way of a program that is the outermost one."""

    reading: BoundReading
    members: Parts[bool]
    """The program and the variable-aware modules in it: this call is theirs as well."""
    predictors: Parts[Overrides]
    arms: Parts[str]
    lms: tuple[tuple[Any, ...], ...] | None = None
    """While an optimizer works: the kinds of LM that are not of its choosing."""

    def obeys_lm(self, lm: object) -> bool:
        """Whether what is bound of LMs holds for a call that would be made with this one.

        It does not while an optimizer tries an LM or a temperature of its own.
        """
        return self.lms is None or lm is None or kind_of_lm(lm) in self.lms


@dataclass(frozen=True, slots=True)
class Pin:
    """The reading that a program and its copies run with, whatever the variables are now."""

    reading: BoundReading
    lms: tuple[tuple[Any, ...], ...] | None = None
    """As ``Call.lms``."""


def lineage_of(part: object) -> str | None:
    """Give the name that a part has in common with its copies, if it has one."""
    found: str | None = getattr(part, "_snakepit_lineage", None)
    return found


def kind_of_lm(lm: Any) -> tuple[Any, ...]:
    """Give what makes an LM answer as it does. Copies of programs have copies of their LMs."""
    return type(lm), getattr(lm, "model", None), getattr(lm, "kwargs", None)


def current_reading() -> BoundReading | None:
    """Give the reading that the call under way runs with, or ``None`` outside of any.

    For the code of programs and tools, and for callbacks of DSPy, which run inside the call.
    """
    call = call_under_way()
    return call.reading if call else None


def call_under_way() -> Call | None:
    """Give the call that this code is part of."""
    call: Call | None = dspy.settings.get(_CALL)
    return call


def under_way(call: Call) -> AbstractContextManager[None]:
    """Have a block, and what DSPy starts in it, be part of a call."""
    entered: AbstractContextManager[None] = dspy.context(**{_CALL: call})
    return entered


def pins() -> Mapping[str, Pin]:
    """Give the pins that hold here, by the lineage of the program."""
    found: Mapping[str, Pin] = dspy.settings.get(_PINS) or {}
    return found


def pinned(lineage: str, pin: Pin, **settings: object) -> AbstractContextManager[None]:
    """Have a pin hold in a block, and other settings of DSPy with it."""
    held = {_PINS: {**pins(), lineage: pin}}
    entered: AbstractContextManager[None] = dspy.context(**held, **settings)
    return entered
