"""What a variable can be bound to, and what it has to be for that.

``to`` names a setting of the LM (``temperature``, ...), the ``lm`` itself, the ``instructions`` or
``demos`` of a predictor, or ``arm``, that of an ``Arms`` which is taken; nothing = it is only read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Self

import dspy

from snakepit_bridge.errors import FailedPrecondition, InvalidRequest, InvalidValue, quote
from snakepit_bridge.variable_aware_mixin import BoundValue

__all__ = ["PARTS", "SETTINGS", "Binding", "LMs", "TargetKind", "examples_of"]

_NUMBER = ("float", "integer")
_NAME = ("choice", "module")

SETTINGS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "temperature": _NUMBER,
        "top_p": _NUMBER,
        "frequency_penalty": _NUMBER,
        "presence_penalty": _NUMBER,
        "max_tokens": ("integer",),
        "max_completion_tokens": ("integer",),
        "top_k": ("integer",),
        "n": ("integer",),
        "seed": ("integer",),
        "rollout_id": ("integer",),
        "stop": ("string",),
        "reasoning_effort": ("string", "choice"),
    }
)
"""Settings of LMs whose names DSPy knows, and the types of variables that fit."""

_ANY_SETTING = ("float", "integer", "string", "boolean", "choice", "module")
_CONFIG = "config."

PARTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"lm": _NAME, "arm": _NAME, "instructions": ("string",), "demos": ("string",)}
)


class LMs(Mapping[str, Any]):
    """The LMs that a variable chooses from, built before. A pickle keeps their names only.

    LMs have locks, connections and keys: copies share them, and no file gets them.
    """

    __slots__ = ("_lms", "_names")

    def __init__(self, lms: Mapping[str, Any]) -> None:
        self._lms: Mapping[str, Any] | None = dict(lms)
        self._names = tuple(lms)

    def __getitem__(self, name: str) -> Any:
        if self._lms is None:
            raise KeyError(name)
        return self._lms[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    @property
    def detached(self) -> bool:
        return self._lms is None

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, tuple[tuple[str, ...]]]:
        return _detached, (self._names,)


def _detached(names: tuple[str, ...]) -> LMs:
    lms = LMs(dict.fromkeys(names))
    lms._lms = None  # noqa: SLF001 - its own module
    return lms


@dataclass(frozen=True, slots=True)
class TargetKind:
    """What kind of thing ``to`` names, and which types of variables fit."""

    kind: str
    """``lm``, ``arm``, ``instructions``, ``demos``, ``setting``, or nothing."""
    setting: str
    """Its name, as DSPy's ``config`` has it."""
    types: tuple[str, ...]

    @classmethod
    @lru_cache(maxsize=256)
    def of(cls, to: str) -> TargetKind:
        """:raises InvalidRequest: there is nothing of this name."""
        if not to:
            return cls("", "", ())
        if to in PARTS:
            return cls(to, "", PARTS[to])
        if to in SETTINGS:
            return cls("setting", to, SETTINGS[to])
        if to.startswith(_CONFIG) and len(to) > len(_CONFIG):
            return cls("setting", to.removeprefix(_CONFIG), _ANY_SETTING)
        known = ", ".join((*PARTS, *SETTINGS))
        raise InvalidRequest(
            f"nothing is named {quote(to)} that a variable could be bound to: expected one of "
            f"{known}, or {_CONFIG}NAME for another setting of the LM"
        )


@dataclass(frozen=True, slots=True)
class Binding:
    """A variable and what it drives. Copied as itself, as ``LMs`` are."""

    name: str
    to: str
    at: str
    """The path of a predictor, of a module around some, or of ``Arms``; empty = all."""
    lms: LMs | None

    def __post_init__(self) -> None:
        """:raises InvalidRequest: the parts do not go together."""
        if self.to == "lm" and not self.lms:
            raise InvalidRequest(
                f"variable {quote(self.name)} cannot be bound to 'lm' without the LMs that it "
                "chooses from: give lms={name: dspy.LM(...), ...}"
            )
        if self.to != "lm" and self.lms is not None:
            raise InvalidRequest(f"lms are for what is bound to 'lm', not to {quote(self.to)}")
        for name, lm in (self.lms or {}).items() if self.lms and not self.lms.detached else ():
            if not isinstance(lm, dspy.BaseLM):
                raise InvalidRequest(
                    f"variable {quote(self.name)}: {quote(name)} of lms is a "
                    f"{type(lm).__name__}, not a dspy.LM"
                )
        _ = self.target

    @property
    def target(self) -> TargetKind:
        return TargetKind.of(self.to)

    @property
    def use(self) -> str:
        """For messages."""
        if not self.to:
            return "bound to be read"
        return f"bound to {quote(self.to)}" + (f" at {quote(self.at)}" if self.at else "")

    @property
    def needed(self) -> str:
        """For messages: of which type the variable has to be."""
        types = self.target.types
        return " or ".join(types) if types else "any type"

    def check_type(self, value: BoundValue) -> None:
        """:raises InvalidValue: the variable has another type than it is bound for."""
        types = self.target.types
        if types and value.type not in types:
            raise self.wrong(value, f"expected a variable of type {self.needed}")

    def lm(self, value: BoundValue) -> Any:
        """Give the LM that a variable chooses.

        :raises InvalidValue: there is none of this name.
        :raises FailedPrecondition: the program was loaded without its LMs.
        """
        lms = self.lms or LMs({})
        if value.value not in lms:
            raise self.wrong(value, f"expected the name of one of its LMs: {', '.join(lms)}")
        if lms.detached:
            raise FailedPrecondition(
                f"variable {quote(self.name)} chooses from LMs that were not loaded with the "
                f"program: call bind_variable({self.name!r}, 'lm', at={self.at!r}, lms=...) again"
            )
        return lms[value.value]

    def demos(self, value: BoundValue) -> list[Any]:
        """Give the demonstrations that a variable holds.

        :raises InvalidValue: it holds something else.
        """
        try:
            return examples_of(value.value)
        except ValueError as error:
            raise self.wrong(value, str(error)) from None

    def wrong(self, value: BoundValue, expected: str) -> InvalidValue:
        """Say of a value what it should be."""
        return InvalidValue(
            f"variable {quote(self.name)} of type {value.type}, {self.use}, is "
            f"{quote(str(value.value))} (version {value.version}): {expected}",
            field=self.name,
        )


def examples_of(text: str) -> list[Any]:
    """Read demonstrations in the form of DSPy's saved programs.

    :raises ValueError: the text has another form.
    """
    return [dspy.Example(demo) for demo in _demos(text)]


@lru_cache(maxsize=64)
def _demos(text: str) -> tuple[dict[str, Any], ...]:
    expected = 'expected a JSON list of objects, such as [{"question": "...", "answer": "..."}]'
    try:
        demos = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(expected) from None
    if not isinstance(demos, list):
        raise ValueError(expected)  # noqa: TRY004 - of a text, not of an argument
    for number, demo in enumerate(demos, 1):
        if not isinstance(demo, dict):
            raise ValueError(f"{expected}; the {number}. is a {type(demo).__name__}")  # noqa: TRY004
    return tuple(demos)
