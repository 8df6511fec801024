"""Finding the parts of a program: predictors, arms and variable-aware modules, by path.

The paths are those of ``dspy.Module.named_predictors``. Three things differ. Modules that are
compiled, which DSPy keeps from optimizers, are looked into; ``history``, which holds thousands of
requests, is not; and neither are containers so large that they are data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import dspy

from snakepit_bridge.dspy_modules.leaves import Arms
from snakepit_bridge.variable_aware_mixin import VariableAwareMixin

__all__ = ["Tree", "grow", "lies_at"]

_LARGEST_SEARCHED = 1_000
"""Entries of a list or dictionary. Looked at in each call: 30 µs."""

_NOT_SEARCHED = frozenset({"callbacks", "demos", "history", "traces", "train"})


@dataclass(frozen=True, slots=True)
class Tree:
    """The parts of a program, by path. The program itself has the path ``self``."""

    predictors: dict[str, Any]
    arms: dict[str, Any]
    members: dict[str, Any]
    """Variable-aware modules, the program first."""


def grow(program: Any) -> Tree:
    """Find the parts of a program."""
    tree = Tree({}, {}, {})
    for path, module in _modules(program):
        if isinstance(module, dspy.Predict):
            tree.predictors[path] = module
        if isinstance(module, Arms):
            tree.arms[path] = module
        if isinstance(module, VariableAwareMixin):
            tree.members[path] = module
    return tree


def lies_at(path: str, at: str) -> bool:
    """Whether a part of this path is meant by ``at``: itself, or a module that it lies in."""
    return path.startswith(at) and (len(path) == len(at) or path[len(at)] in ".[")


def _modules(program: Any) -> Iterator[tuple[str, Any]]:
    yield "self", program
    yield from _below("", program, {id(program)})


def _below(prefix: str, module: Any, seen: set[int]) -> Iterator[tuple[str, Any]]:
    for path, found in _children(prefix, module):
        if id(found) not in seen:
            seen.add(id(found))
            yield path, found
            if not isinstance(found, dspy.Predict):
                yield from _below(f"{path}.", found, seen)


def _children(prefix: str, module: Any) -> Iterator[tuple[str, Any]]:
    for name, value in module.__dict__.items():
        if name in _NOT_SEARCHED and not isinstance(value, dspy.Module):
            continue
        if isinstance(value, dspy.Module):
            yield f"{prefix}{name}", value
        elif isinstance(value, list | tuple) and len(value) <= _LARGEST_SEARCHED:
            for index, item in enumerate(value):
                if isinstance(item, dspy.Module):
                    yield f"{prefix}{name}[{index}]", item
        elif isinstance(value, dict) and len(value) <= _LARGEST_SEARCHED:
            for key, item in value.items():
                if isinstance(item, dspy.Module):
                    yield f"{prefix}{name}['{key}']", item
