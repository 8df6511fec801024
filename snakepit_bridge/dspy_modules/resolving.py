"""From bindings and a reading to what holds for each part of a program in a call.

Everything that can be wrong with a binding is found here, before any request is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from snakepit_bridge.dspy_modules.bindings import Binding
from snakepit_bridge.dspy_modules.calls import Overrides
from snakepit_bridge.dspy_modules.leaves import adopt
from snakepit_bridge.dspy_modules.tree import Tree, lies_at
from snakepit_bridge.errors import InvalidRequest, quote
from snakepit_bridge.variable_aware_mixin import BoundReading, BoundVariableNotFound

__all__ = ["Place", "found_or_refused", "overrides", "places", "settings_of", "taken_arms"]


class Place(NamedTuple):
    """A binding, and the paths of the parts that it is for."""

    binding: Binding
    paths: tuple[str, ...]
    program_wide: bool
    """Whether it was made by the program itself, for all parts."""


def places(tree: Tree) -> list[Place]:
    """Find what each binding of a program is for, in the order in which they apply.

    The binding that is nearest to a part comes last and holds: that of a module inside the program
    after the program's own, one for a path after one for all.

    :raises InvalidRequest: there is no such part, or one that cannot be bound.
    """
    found = []
    for member_path, member in tree.members.items():
        bindings: tuple[Binding, ...] = member.bindings
        for binding in sorted(bindings, key=lambda binding: len(binding.at)):
            paths = tuple(_paths(tree, member_path, binding))
            found.append(Place(binding, paths, member_path == "self" and not binding.at))
    return found


def _paths(tree: Tree, member: str, binding: Binding) -> Iterator[str]:
    kind = binding.target.kind
    if not kind:
        return
    parts = tree.arms if kind == "arm" else tree.predictors
    below = "" if member == "self" else member
    own = [path for path in parts if not below or lies_at(path, below)]
    wanted = binding.at
    if below and wanted:
        wanted = below if wanted == "self" else f"{below}.{wanted}"
    paths = [path for path in own if not wanted or lies_at(path, wanted)]
    what = "Arms" if kind == "arm" else "predictors"
    if not paths:
        there = ", ".join(own) if own else "none"
        raise InvalidRequest(
            f"variable {quote(binding.name)} is {binding.use}, where there are no {what}; "
            f"{what} of the program: {there}",
            field=binding.name,
        )
    if kind in ("instructions", "demos") and len(paths) > 1:
        raise InvalidRequest(
            f"variable {quote(binding.name)} is {binding.use}, which is {len(paths)} predictors, "
            f"and no two have the same {kind}: give at= one of {', '.join(paths)}",
            field=binding.name,
        )
    for path in paths:
        if kind != "arm" and not adopt(parts[path]):
            raise InvalidRequest(
                f"variable {quote(binding.name)} is {binding.use}, but predictor {quote(path)} is "
                f"a {type(parts[path]).__name__}, which is derived from dspy.Predict: derive it "
                "from snakepit_bridge.dspy_modules.SteeredPredict",
                field=binding.name,
            )
    yield from paths


def found_or_refused(all_places: Iterable[Place], reading: BoundReading) -> None:
    """Check that a reading, which may be an old one, has all that is bound, of the right types.

    :raises BoundVariableNotFound: a variable is missing.
    :raises InvalidValue: one has another type.
    """
    for binding, *_ in all_places:
        if binding.name not in reading:
            use = f"{binding.use} and of type {binding.needed}"
            raise BoundVariableNotFound([binding.name], reading.session_id, use)
        binding.check_type(reading[binding.name])


def overrides(all_places: Iterable[Place], reading: BoundReading) -> dict[str, Overrides]:
    """Give what is bound for each predictor, as ``Overrides`` by path.

    :raises InvalidValue: a value cannot be used for what it is bound to.
    :raises FailedPrecondition: it chooses from LMs that were not loaded with the program.
    """
    fields: dict[str, dict[str, Any]] = {}
    for binding, paths, _ in all_places:
        if not paths or binding.target.kind == "arm":
            continue
        given = _given(binding, reading)
        for path in paths:
            own = fields.setdefault(path, {})
            config = {**own.get("config", {}), **given.get("config", {})}
            own.update(given, config=config)
    return {path: Overrides(**own) for path, own in fields.items()}


def settings_of(all_places: Iterable[Place], reading: BoundReading) -> Overrides:
    """Give what is bound of the LM for the program as a whole."""
    config: dict[str, Any] = {}
    lm = None
    for binding, _, program_wide in all_places:
        if program_wide and binding.target.kind in ("lm", "setting"):
            given = _given(binding, reading)
            config.update(given.get("config", {}))
            lm = given.get("lm", lm)
    return Overrides(config, lm)


def taken_arms(tree: Tree, all_places: Iterable[Place], reading: BoundReading) -> dict[str, str]:
    """Give the arm that is taken of each ``Arms`` that is bound, by path.

    :raises InvalidValue: it has no such arm.
    """
    taken = {}
    for binding, paths, _ in all_places:
        if binding.target.kind != "arm":
            continue
        value = reading[binding.name]
        for path in paths:
            arms = tree.arms[path].arms
            if value.value not in arms:
                expected = f"expected an arm of {quote(path)}: {', '.join(arms)}"
                raise binding.wrong(value, expected)
            taken[path] = value.value
    return taken


def _given(binding: Binding, reading: BoundReading) -> dict[str, Any]:
    """Give what a binding provides, as fields of ``Overrides``."""
    value = reading[binding.name]
    match binding.target.kind:
        case "lm":
            return {"lm": binding.lm(value)}
        case "instructions":
            return {"instructions": value.value}
        case "demos":
            return {"demos": tuple(binding.demos(value))}
        case _:
            return {"config": {binding.target.setting: value.value}}
