"""``@tool``: marks a function or a method as a tool, with options."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, overload

from snakepit_bridge.errors import quote
from snakepit_bridge.tools.docstrings import summary

__all__ = ["MAX_NAME", "ToolMetadata", "check_name", "is_name", "mark", "mark_of", "tool"]

F = TypeVar("F", bound=Callable[..., Any])

MAX_NAME = 256
"""Bytes of UTF-8 in a tool's name, as for the names of variables."""

_MARK = "_tool_metadata"
_ISOLATIONS = ("", "process")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolMetadata:
    """What ``tool`` attaches to a function, as ``_tool_metadata``.

    Names and meanings of the first three are Snakepit's.
    """

    description: str = ""
    supports_streaming: bool = False
    required_variables: tuple[str, ...] = ()
    name: str = ""
    timeout: float | None = None
    isolation: str = ""
    thread_sensitive: bool = False
    sensitive: frozenset[str] = frozenset()
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """:raises TypeError, ValueError: an option is wrong."""
        for option in ("description", "name", "isolation"):
            _check(option, getattr(self, option), str)
        for option in ("supports_streaming", "thread_sensitive"):
            _check(option, getattr(self, option), bool)
        if self.name:
            check_name(self.name)
        if self.timeout is not None:
            if isinstance(self.timeout, bool) or not isinstance(self.timeout, int | float):
                raise TypeError(f"timeout must be a number of seconds, not {self.timeout!r}")
            if not (self.timeout > 0 and math.isfinite(self.timeout)):
                raise ValueError(f"timeout must be above 0 seconds, not {self.timeout}")
        if self.isolation not in _ISOLATIONS:
            raise ValueError(f'isolation must be "process" or nothing, not {self.isolation!r}')
        if self.isolation and self.thread_sensitive:
            raise ValueError(
                "thread_sensitive means one thread of the bridge, isolation another process: "
                "give one of them"
            )


@overload
def tool(description: F) -> F: ...


@overload
def tool(
    description: str = "",
    supports_streaming: bool = ...,  # noqa: FBT001 - as below
    required_variables: Sequence[str] | None = ...,
    *,
    name: str = ...,
    timeout: float | None = ...,
    isolation: str = ...,
    thread_sensitive: bool = ...,
    sensitive: Collection[str] = ...,
    metadata: Mapping[str, str] | None = ...,
) -> Callable[[F], F]: ...


def tool(  # noqa: PLR0913 - a tool's options, of which all but three go by name
    description: Any = "",
    supports_streaming: bool = False,  # noqa: FBT001, FBT002 - Snakepit's signature
    required_variables: Sequence[str] | None = None,
    *,
    name: str = "",
    timeout: float | None = None,
    isolation: str = "",
    thread_sensitive: bool = False,
    sensitive: Collection[str] = (),
    metadata: Mapping[str, str] | None = None,
) -> Any:
    """Mark a function or a method as a tool: ``@tool``, or ``@tool(...)`` with options.

    It stays what it is: it can be called as before, and stand above or below other decorators
    that use ``functools.wraps``. Its name, type hints and docstring describe it to clients. A
    parameter annotated ``SessionContext`` gets the session.

    :param description: by default the first paragraph of its docstring.
    :param supports_streaming: of a function that may give a stream but is no generator itself.
    :param required_variables: names that clients should have registered; only announced.
    :param name: by default the function's own.
    :param timeout: seconds that a call may take, if the caller waits longer.
    :param isolation: ``"process"`` runs it in another process, which may crash or hang alone.
    :param thread_sensitive: always run it on the same one thread, as some libraries ask for.
    :param sensitive: parameters whose values are recorded as digests only.
    :param metadata: announced with the tool.
    :raises TypeError, ValueError: an option is wrong.
    """
    bare = callable(description) or isinstance(description, staticmethod | classmethod)
    options = ToolMetadata(
        description="" if bare else description,
        supports_streaming=supports_streaming,
        required_variables=_names("required_variables", required_variables or ()),
        name=name,
        timeout=timeout,
        isolation=isolation,
        thread_sensitive=thread_sensitive,
        sensitive=frozenset(_names("sensitive", sensitive)),
        metadata=_strings(metadata),
    )
    return mark(description, options) if bare else functools.partial(mark, options=options)


def mark(function: Any, options: ToolMetadata) -> Any:  # noqa: ANN401 - given back as it was
    # Of these, what a class has under their name is the function inside.
    inside = function.__func__ if isinstance(function, staticmethod | classmethod) else function
    if isinstance(inside, type) or not callable(inside):
        raise TypeError(f"@tool marks functions and methods, not {inside!r}")
    if not options.description:
        options = replace(options, description=summary(inside))
    try:
        inside.__name__  # noqa: B018 - asked whether there is one
        setattr(inside, _MARK, options)
    except AttributeError:
        raise TypeError(
            f"@tool cannot mark {inside!r}: write a function around it with def"
        ) from None
    return function


def mark_of(function: object) -> ToolMetadata | None:
    """Give the mark of a tool, also where a decorator above it copied its attributes."""
    found = getattr(function, _MARK, None)
    return found if isinstance(found, ToolMetadata) else None


def is_name(name: str) -> bool:
    """Whether a tool can be called so."""
    return bool(name) and not _CONTROL.search(name) and len(name.encode()) <= MAX_NAME


def check_name(name: str) -> None:
    """Check that a tool can be called so.

    :raises ValueError: it cannot.
    """
    if not is_name(name):
        raise ValueError(
            f"a tool's name has 1 to {MAX_NAME} bytes and no control characters, unlike "
            f"{quote(name)}"
        )


def _names(option: str, names: Collection[str]) -> tuple[str, ...]:
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{option} must be a list of names, not {names!r}")
    return tuple(names)


def _strings(metadata: Mapping[str, str] | None) -> Mapping[str, str]:
    given = dict(metadata or {})
    if not all(isinstance(part, str) for pair in given.items() for part in pair):
        raise TypeError(f"metadata must be a dict of str to str, not {metadata!r}")
    return given


def _check(option: str, value: object, expected: type) -> None:
    if not isinstance(value, expected):
        raise TypeError(f"{option} must be a {expected.__name__}, not {value!r}")
