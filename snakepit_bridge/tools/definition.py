"""What a tool is: a Python function with a name, a description, parameters and options.

``define`` reads one that ``tool`` marked. Nothing here runs tools.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge.errors import InvalidRequest, quote
from snakepit_bridge.tools.decorator import MAX_NAME, ToolMetadata, check_name, mark, mark_of, tool
from snakepit_bridge.tools.docstrings import parameter_descriptions, summary
from snakepit_bridge.tools.parameters import Parameter, describe, hints_of
from snakepit_bridge.tools.readings import Mismatch, Reading

if TYPE_CHECKING:
    from snakepit_bridge.tools.adapters import Adapter

__all__ = [
    "Kind",
    "ToolDefinition",
    "ToolMetadata",
    "define",
    "method_of",
    "methods",
    "tool",
    "undescribed",
]

_NEAR = 3
"""Names that a message proposes."""
_LISTED = 20
"""Names that a message lists."""
# What stands for it as text, where the class itself was imported for type checkers only.
_SESSION = re.compile(
    r"(?:(?:typing\.)?Optional\[)?(?:None\s*\|\s*)?(?:\w+\.)*SessionContext(?:\s*\|\s*None)?\]?"
)


class Kind(Enum):
    """What calling a tool's function gives, as far as its form tells.

    A decorator may change that without a trace: whoever calls looks at what came.
    """

    PLAIN = "the result"
    ASYNC = "a coroutine of the result"
    GENERATOR = "a generator of chunks"
    ASYNC_GENERATOR = "an asynchronous generator of chunks"


class _Keyed(dict[str, Reading]):
    """Readings by name; ``_Keyed.rest``: of all other names, if the function takes any."""

    rest: Reading | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ToolDefinition:
    """A tool as it was loaded. Made by ``define``."""

    name: str
    description: str
    parameters: tuple[Parameter, ...]
    kind: Kind
    supports_streaming: bool
    """It was said, or it is a generator."""
    required_variables: tuple[str, ...]
    timeout: float | None
    """Seconds that a call may take; ``None``: as long as the caller waits."""
    isolation: str
    """``"process"``: it runs in a process of its own."""
    thread_sensitive: bool
    """It runs on always the same one thread."""
    serial_key: object
    """Of the tools that have an equal one, one call runs at a time; ``None``: any number does."""
    sensitive: frozenset[str]
    """Parameters that are recorded as digests only, and that no message quotes."""
    metadata: Mapping[str, str]
    context_parameter: str
    """Name of the parameter that gets the session; empty: none does."""
    function: Callable[..., Any]
    """Of an adapter's tools: takes the instance first."""
    adapter: Adapter | None
    """``None``: a function of a module."""
    dispatched: bool
    """Run by the adapter's ``execute_tool(tool_name, arguments, context)``."""
    source: str
    """``module`` or ``module.Class``, from which another process loads the same."""
    _readings: _Keyed
    _required: tuple[Parameter, ...]
    _reserved: frozenset[str]
    _spec: list[pb.ToolSpec] = field(default_factory=list, init=False, repr=False)

    def convert(self, arguments: Mapping[str, object]) -> dict[str, object]:
        """Check arguments and give them as the function's keyword arguments, without the session.

        A tool that its adapter dispatches gets them as they came.

        :param arguments: by name, decoded: None, bool, int, float, str, list, dict, arrays, bytes.
        :raises InvalidRequest: one is missing, unknown or of another type. What a validator of
            the tool's own raises, other than ValueError and AssertionError, passes through.
        """
        if self.dispatched:
            return dict(arguments)
        readings = self._readings
        converted: dict[str, object] = {}
        for name, value in arguments.items():
            reading = readings.get(name) or self._rest(name)
            if type(value) in reading.exact:
                converted[name] = value
                continue
            try:
                converted[name] = reading.read(value)
            except Mismatch as mismatch:
                raise self._wrong(name, mismatch) from None
        for parameter in self._required:
            if parameter.name not in converted:
                raise self._missing(converted)
        return converted

    def spec(self) -> pb.ToolSpec:
        """Describe the tool to clients. Always the same message: not to be changed."""
        if not self._spec:
            self._spec.append(
                pb.ToolSpec(
                    name=self.name,
                    description=self.description,
                    parameters=[parameter.spec() for parameter in self.parameters],
                    metadata=self.metadata,
                    supports_streaming=self.supports_streaming,
                    required_variables=self.required_variables,
                )
            )
        return self._spec[0]

    def registration(self) -> pb.ToolRegistration:
        """Describe the tool for ``RegisterTools``: a message of the caller's own.

        That has no field for required variables; they are put into the metadata as Snakepit does.
        """
        spec = self.spec()
        registration = pb.ToolRegistration(
            name=spec.name,
            description=spec.description,
            parameters=spec.parameters,
            metadata=spec.metadata,
            supports_streaming=spec.supports_streaming,
        )
        if self.required_variables:
            registration.metadata["required_variables"] = ",".join(self.required_variables)
        return registration

    def _rest(self, name: str) -> Reading:
        rest = self._readings.rest
        if rest is not None and name not in self._reserved:
            return rest
        known = list(self._readings)
        near = get_close_matches(name[:MAX_NAME], known, _NEAR)
        proposed = f": did you mean {' or '.join(map(quote, near))}?" if near else ""
        raise InvalidRequest(
            f"tool {quote(self.name)} has no parameter {quote(name)}{proposed} "
            f"(it takes {_listed(known) or 'none'})",
            field=_field(name),
        )

    def _wrong(self, name: str, mismatch: Mismatch) -> InvalidRequest:
        told = "" if name in self.sensitive else mismatch.detail
        path = "" if name in self.sensitive else mismatch.path
        return InvalidRequest(
            f"tool {quote(self.name)}: parameter {quote(name + path, 200)} "
            f"{mismatch.problem}{told}",
            field=_field(name + path),
        )

    def _missing(self, given: Collection[str]) -> InvalidRequest:
        missing = [parameter for parameter in self._required if parameter.name not in given]
        words = _listed([f"{parameter.name} ({parameter.type})" for parameter in missing])
        return InvalidRequest(
            f"tool {quote(self.name)} needs {words}, which {'were' if missing[1:] else 'was'} not "
            f"given; given: {_listed(list(given)) or 'nothing'}",
            field=_field(missing[0].name),
        )


def method_of(cls: type, name: str) -> Callable[..., Any] | None:
    """Give a method of a class, whatever kind it has, as a function that takes the instance first.

    Marked or not; ``None`` if there is no such.
    """
    function = getattr(cls, name, None)
    if not callable(function) or isinstance(function, type):
        return None
    if isinstance(inspect.getattr_static(cls, name), staticmethod | classmethod):
        bound = function

        @functools.wraps(bound)
        def call(_instance: object, /, **arguments: object) -> object:
            return bound(**arguments)

        # Of its own, as what inspect would find through __wrapped__ takes no instance.
        own = inspect.signature(bound)
        first = inspect.Parameter("_instance", inspect.Parameter.POSITIONAL_ONLY)
        call.__signature__ = own.replace(parameters=[first, *own.parameters.values()])  # type: ignore[attr-defined]
        return call
    return function  # type: ignore[no-any-return] # getattr gives Any


def methods(cls: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Give the marked methods of a class as ``method_of`` does, in the order of its source.

    Inherited ones come first. One that is overridden without a mark is no tool; nor is
    ``execute_tool``, which runs tools.
    """
    names = dict.fromkeys(name for base in reversed(cls.__mro__) for name in vars(base))
    for name in names:
        if (
            name != "execute_tool"
            and mark_of(getattr(cls, name, None))
            and (method := method_of(cls, name)) is not None
        ):
            yield name, method


def define(  # noqa: PLR0913 - what a tool is depends on where it was found
    function: Callable[..., Any],
    attribute: str,
    *,
    source: str,
    cls: type | None = None,
    adapter: Adapter | None = None,
    dispatched: bool = False,
    serial: bool = False,
) -> ToolDefinition:
    """Read what a tool is. Without a mark, a function is described by its form alone.

    :param attribute: its name where it was found, and the tool's unless another was given.
    :param cls: whose method it is: then the first parameter is the instance.
    :raises TypeError, ValueError: it cannot be a tool; the message says why, and what to write.
    """
    options = mark_of(function) or ToolMetadata(description=summary(function))
    name = options.name or attribute
    check_name(name)
    signature = _signature(function)
    taken = list(signature.parameters.values())
    reserved = set()
    if cls is not None:
        if not taken or taken[0].kind in (taken[0].KEYWORD_ONLY, taken[0].VAR_KEYWORD):
            raise TypeError("it takes no instance: add self, or mark it with @staticmethod")
        if taken[0].kind is not inspect.Parameter.VAR_POSITIONAL:
            reserved.add(taken.pop(0).name)
    hints = hints_of(
        function,
        {one.name: one.annotation for one in taken if not _says_session(one.annotation)},
    )
    texts = parameter_descriptions(function)
    context = ""
    readings = _Keyed()
    parameters = []
    for parameter in taken:
        hint = hints.get(parameter.name, Any)
        if _says_session(parameter.annotation) or _is_session(hint):
            if context:
                raise TypeError(
                    f"both {context!r} and {parameter.name!r} ask for the session: one is enough"
                )
            context = parameter.name
            continue
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise TypeError(
                f"parameter {parameter.name!r} can only be given by position, and arguments come "
                "by name: take the '/' out"
            )
        if parameter.kind is parameter.VAR_POSITIONAL:
            raise TypeError(
                f"arguments come by name, so none would reach *{parameter.name}: write "
                f"{parameter.name}: list"
            )
        described, reading = describe(parameter, hint, texts.get(parameter.name, ""))
        if parameter.kind is parameter.VAR_KEYWORD:
            readings.rest = reading
            continue
        if parameter.name in options.sensitive and not described.required:
            described = described.without_default()
        readings[parameter.name] = reading
        parameters.append(described)
    unknown = options.sensitive - readings.keys()
    if unknown and readings.rest is None and not dispatched:
        raise TypeError(f"sensitive names {_listed(sorted(unknown))}, which it does not take")
    kind = Kind.PLAIN if dispatched else _kind(function)
    return ToolDefinition(
        name=name,
        description=options.description,
        parameters=tuple(parameters),
        kind=kind,
        supports_streaming=options.supports_streaming or _kind(function) in _STREAMS,
        required_variables=options.required_variables,
        timeout=options.timeout,
        isolation=options.isolation,
        thread_sensitive=options.thread_sensitive,
        serial_key=source if serial else None,
        sensitive=options.sensitive,
        metadata=types.MappingProxyType({**_origin(source, cls), **options.metadata}),
        context_parameter="" if dispatched else context,
        function=function,
        adapter=adapter,
        dispatched=dispatched,
        source=source,
        _readings=readings,
        _required=tuple(parameter for parameter in parameters if parameter.required),
        _reserved=frozenset({*reserved, context}),
    )


def undescribed(cls: type, *, source: str, adapter: Adapter, serial: bool) -> ToolDefinition:
    """Make the definition of what only a class's ``execute_tool`` knows; its name is to be set.

    Options come from a mark on ``execute_tool``.
    """

    def anything(_instance: object, **arguments: object) -> object:
        raise AssertionError(f"run by execute_tool, with {arguments}")

    options = mark_of(cls.execute_tool)  # type: ignore[attr-defined]
    if options is not None:
        mark(anything, replace(options, name=""))
    return define(
        anything,
        "execute_tool",
        source=source,
        cls=cls,
        adapter=adapter,
        dispatched=True,
        serial=serial,
    )


_STREAMS = (Kind.GENERATOR, Kind.ASYNC_GENERATOR)


def _kind(function: Callable[..., Any]) -> Kind:
    # A decorator that copies attributes mostly gives what the function inside does.
    at: Any = function
    while at is not None:
        if inspect.isasyncgenfunction(at):
            return Kind.ASYNC_GENERATOR
        if inspect.isgeneratorfunction(at):
            return Kind.GENERATOR
        if inspect.iscoroutinefunction(at):
            return Kind.ASYNC
        at = getattr(at, "__wrapped__", None)
    return Kind.PLAIN


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    try:
        if sys.version_info >= (3, 14):
            # There hints are evaluated when they are asked for, and raise what they raise.
            from annotationlib import Format  # noqa: PLC0415

            return inspect.signature(function, annotation_format=Format.FORWARDREF)
        return inspect.signature(function)
    except ValueError as error:  # of functions written in C
        raise TypeError(
            f"its parameters are not known ({error}): write a function around it"
        ) from (error)


def _says_session(annotation: object) -> bool:
    return isinstance(annotation, str) and bool(_SESSION.fullmatch(annotation.strip("\"' ")))


def _is_session(hint: object) -> bool:
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    choices = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    # By name, so that tools are described without loading sessions, which are above them.
    return any(
        base.__name__ == "SessionContext"
        for choice in choices
        if isinstance(choice, type)
        for base in choice.__mro__
    )


def _origin(source: str, cls: type | None) -> dict[str, str]:
    # Under the keys of Snakepit's BaseAdapter.
    if cls is None:
        return {"module": source}
    return {"module": cls.__module__, "adapter_class": cls.__name__}


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(quote(name)[1:-1] for name in names[:_LISTED]) + more


def _field(name: str) -> str:
    return f"parameters.{quote(name)[1:-1]}"
