"""Optimizing a program that is driven by variables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import dspy

from snakepit_bridge.dspy_modules.calls import Pin, kind_of_lm, pinned
from snakepit_bridge.dspy_modules.modules import VariableAwareModule
from snakepit_bridge.dspy_modules.resolving import (
    found_or_refused,
    overrides,
    places,
    settings_of,
)
from snakepit_bridge.dspy_modules.tree import grow

__all__ = ["compiling"]


@contextmanager
def compiling(program: VariableAwareModule, *, suspend: Iterable[str] = ()) -> Iterator[Any]:
    """Give a copy of a program to an optimizer, which runs with the variables as they are now.

    ::

        with compiling(program) as student:
            compiled = dspy.MIPROv2(metric=metric, auto="light").compile(student, trainset=...)
        program.publish(compiled)

    The copy, its copies, and their threads run with one reading. Instructions and demos that are
    bound are what the optimizer begins with; in the copy they are bound no more, so that what it
    finds is not hidden. The LM that is bound, with its settings, is that of the block: where the
    optimizer takes another LM or makes a copy with another temperature, as SIMBA and the later
    rounds of BootstrapFewShot do, what is bound of LMs does not hold.

    What was compiled runs, after the block, with the variables as they then are. It can be
    published, saved, and loaded by plain DSPy.

    :param suspend: variables that are to be bound no more, besides.
    :raises BoundVariableNotFound: as a call.
    """
    reading = program.read_bound()
    suspended = frozenset(suspend)
    student: Any = program.deepcopy()
    tree = grow(student)
    all_places = places(tree)
    found_or_refused(all_places, reading)
    for path, bound in overrides(all_places, reading).items():
        predictor = tree.predictors[path]
        if bound.instructions is not None:
            predictor.signature = predictor.signature.with_instructions(bound.instructions)
        if bound.demos is not None:
            predictor.demos = list(bound.demos)
    for member in tree.members.values():
        member.bindings = tuple(
            binding
            for binding in member.bindings
            if binding.to not in ("instructions", "demos") and binding.name not in suspended
        )
    student._compiled_from = reading  # noqa: SLF001 - of a class of this package
    # Again: without those that are suspended.
    wide = settings_of(places(tree), reading)
    before = dspy.settings.lm
    lm = before if wide.lm is None else wide.lm
    own_lms = [predictor.lm for predictor in tree.predictors.values()]
    settings = {} if lm is None else {"lm": lm.copy(**wide.config)}
    known = [before, *settings.values(), *own_lms]
    pin = Pin(reading, tuple(kind_of_lm(lm) for lm in known if lm is not None))
    with pinned(student._snakepit_lineage, pin, **settings):  # noqa: SLF001
        yield student
