"""From names on the command line to tools: modules of functions, and adapter classes.

``package.module`` gives the marked functions of a module. ``package.module.Class`` gives an adapter
in Snakepit's sense, one of

- a class whose methods are marked; one instance serves one call, unless the class says
  ``__thread_safe__ = True``: then a single one serves all, at once;
- a class with ``execute_tool(tool_name, arguments, context)``, which gets every call, whatever its
  name; what it announces comes from its marked methods, or from its ``get_tools()``.

Installed packages offer tools by entry points of the group ``snakepit_bridge.tools``.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib.metadata import entry_points as installed
from types import MappingProxyType, ModuleType
from typing import Any

from google.protobuf import any_pb2

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge.base_adapter import BaseAdapter
from snakepit_bridge.errors import ToolNotFound, quote
from snakepit_bridge.tool_values import encode_result
from snakepit_bridge.tools.decorator import MAX_NAME, is_name, mark_of
from snakepit_bridge.tools.definition import (
    ToolDefinition,
    define,
    method_of,
    methods,
    undescribed,
)
from snakepit_bridge.tools.failures import failure_of
from snakepit_bridge.tools.parameters import Parameter

__all__ = ["ENTRY_POINTS", "Adapter", "AdapterUnusable", "Toolbox", "load_toolbox"]

logger = logging.getLogger(__name__)

ENTRY_POINTS = "snakepit_bridge.tools"
"""Group of the entry points that offer tools; their values are ``module`` or ``module:Class``."""

_NEAR = 3
"""Names that a message proposes."""


class AdapterUnusable(Exception):
    """Tools could not be loaded. The message tells a person which, why, and what to write."""


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """A class whose methods are tools."""

    cls: type
    source: str
    """``module.Class``."""
    shared: bool
    """One instance for all calls, at once; otherwise an instance for each, and one at a time."""
    _one: object = None

    @property
    def serial(self) -> bool:
        return not self.shared

    def instance(self) -> object:
        """Give the one that was made at loading, or make a new one."""
        return self._one if self.shared else self.cls()


class Toolbox:
    """All tools of a bridge, by name."""

    def __init__(
        self, definitions: Mapping[str, ToolDefinition], catch_all: ToolDefinition | None
    ) -> None:
        """:param catch_all: serves the names that are not among the definitions."""
        self.definitions: Mapping[str, ToolDefinition] = MappingProxyType(dict(definitions))
        """In the order of loading."""
        self._catch_all = catch_all

    def find(self, name: str) -> ToolDefinition:
        """Give the tool of this name.

        An adapter with ``execute_tool`` has a tool of any name.

        :raises ToolNotFound: there is none; the message proposes names that resemble it.
        """
        definition = self.definitions.get(name)
        if definition is not None:
            return definition
        if self._catch_all is not None and is_name(name):
            return replace(self._catch_all, name=name)
        known = list(self.definitions)
        count = len(known)
        why = f"{count} others are, and InitializeSession names them in available_tools"
        if not count:
            why = "this bridge has no tools: start it with --adapter package.module"
        raise ToolNotFound(name, get_close_matches(name[:MAX_NAME], known, _NEAR), why=why)


def load_toolbox(names: Sequence[str], *, entry_points: bool = True) -> Toolbox:
    """Import modules and adapters, and collect their tools.

    :param names: ``package.module`` or ``package.module.Class``; twice the same counts once. They
        are also found in the current directory, as with ``python -m``.
    :param entry_points: take those of installed packages as well, after the names.
    :raises AdapterUnusable: one cannot be loaded or has no tools, or two tools have one name.
    """
    if not sys.flags.safe_path and os.getcwd() not in sys.path:  # noqa: PTH109 - as on sys.path
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
    asked = {name.replace(":", ".", 1): "" for name in names}
    if entry_points:
        for point in sorted(installed(group=ENTRY_POINTS), key=lambda point: point.name):
            by = point.dist.name if point.dist else "an installed package"
            asked.setdefault(point.value.replace(":", "."), f" (entry point {point.name} of {by})")
    definitions: dict[str, ToolDefinition] = {}
    catch_all: ToolDefinition | None = None
    for source, asked_by in asked.items():
        try:
            tools, rest = _tools_of(source)
        except AdapterUnusable as error:
            raise AdapterUnusable(f"{error}{asked_by}") from error
        for definition in tools:
            _add(definitions, definition)
        if rest is not None and catch_all is not None:
            logger.warning(
                "tools that nobody announced go to %s, none to %s", catch_all.source, source
            )
        catch_all = catch_all or rest
    return Toolbox(definitions, catch_all)


def _add(definitions: dict[str, ToolDefinition], definition: ToolDefinition) -> None:
    other = definitions.setdefault(definition.name, definition)
    if other is not definition:
        raise AdapterUnusable(
            f"two tools are called {quote(definition.name)}, one in {other.source}, one in "
            f"{definition.source}: load one of these, or give one another name with "
            "@tool(name=...)"
        )


def _tools_of(source: str) -> tuple[Iterable[ToolDefinition], ToolDefinition | None]:
    thing = _imported(source)
    if isinstance(thing, type):
        return _of_class(thing, source)
    if isinstance(thing, ModuleType):
        return _of_module(thing, source), None
    module = source.rpartition(".")[0]
    raise AdapterUnusable(
        f"{source} is a {type(thing).__name__}, neither a module nor a class: name {module}, whose "
        "@tool functions are all loaded"
    )


def _of_module(module: ModuleType, source: str) -> list[ToolDefinition]:
    marked: dict[int, tuple[str, Any]] = {}
    for name, thing in vars(module).items():
        if mark_of(thing) and not isinstance(thing, type) and _is_own(module, name, thing):
            marked.setdefault(id(thing), (name, thing))  # once, whatever other names it has
    if not marked:
        classes = [
            f"{source}.{name}"
            for name, thing in vars(module).items()
            if isinstance(thing, type)
            and thing.__module__ == module.__name__
            and (_dispatches(thing) or any(methods(thing)))
        ]
        instead = f"name the class: {' or '.join(classes)}" if classes else "mark some with @tool"
        raise AdapterUnusable(f"{source} has no @tool functions of its own: {instead}")
    serial = getattr(module, "__thread_safe__", True) is False
    return [
        _defined(thing, getattr(thing, "__name__", name), source=source, serial=serial)
        for name, thing in marked.values()
    ]


def _is_own(module: ModuleType, name: str, thing: object) -> bool:
    """Whether a module offers a function as its own, not just uses another's."""
    home = str(getattr(thing, "__module__", ""))
    return (
        home == module.__name__
        or home.startswith(f"{module.__name__}.")  # a package gathers its submodules'
        or name in getattr(module, "__all__", ())
    )


def _dispatches(cls: type) -> bool:
    return callable(getattr(cls, "execute_tool", None))


def _of_class(cls: type, source: str) -> tuple[Iterable[ToolDefinition], ToolDefinition | None]:
    """Read an adapter: its announced tools, and what serves all other names."""
    shared = getattr(cls, "__thread_safe__", False) is True
    announces = getattr(cls, "get_tools", BaseAdapter.get_tools) is not BaseAdapter.get_tools
    _check_constructor(cls, source)
    instance = _made(cls, source) if shared or announces else None
    adapter = Adapter(cls, source, shared, instance if shared else None)
    options: dict[str, Any] = {
        "source": source,
        "cls": cls,
        "adapter": adapter,
        "dispatched": _dispatches(cls),
        "serial": adapter.serial,
    }
    tools: dict[str, ToolDefinition] = {}
    for name, method in methods(cls):
        _add(tools, _defined(method, name, **options))
    rest = None
    if _dispatches(cls):
        rest = undescribed(cls, source=source, adapter=adapter, serial=adapter.serial)
    if announces:
        announced = [_announced(tools, one, rest, options) for one in _asked(instance, source)]
        tools = {}
        for definition in announced:
            _add(tools, definition)
    if not tools and rest is None:
        raise AdapterUnusable(
            f"{source} has no tools: mark methods with @tool, or give it "
            "execute_tool(self, tool_name, arguments, context)"
        )
    return tools.values(), rest


def _check_constructor(cls: type, source: str) -> None:
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(cls.__abstractmethods__))  # type: ignore[attr-defined]
        raise AdapterUnusable(f"{source} is abstract: define {missing}")
    try:
        inspect.signature(cls).bind()
    except TypeError as error:
        raise AdapterUnusable(
            f"{source} is made without arguments, and its __init__ does not take none: {error}"
        ) from error
    except ValueError:  # of a class written in C, which tells nothing
        return


def _made(cls: type, source: str) -> object:
    try:
        return cls()
    except Exception as error:
        logger.debug("%s() failed", source, exc_info=True)
        raise AdapterUnusable(f"{source}() failed: {_reason(error)}") from error


def _defined(function: Any, name: str, **options: Any) -> ToolDefinition:  # noqa: ANN401 - of define
    try:
        return define(function, name, **options)
    except (TypeError, ValueError) as error:
        where = f"{options['source']}.{name}"
        raise AdapterUnusable(f"{where} cannot be a tool: {error}") from error


def _asked(instance: Any, source: str) -> list[pb.ToolRegistration]:  # noqa: ANN401 - any adapter
    """Ask an adapter what it announces."""
    try:
        given = list(instance.get_tools())
        return [one if isinstance(one, pb.ToolRegistration) else _read(one) for one in given]
    except Exception as error:
        logger.debug("get_tools() of %s failed", source, exc_info=True)
        raise AdapterUnusable(
            f"get_tools() of {source} must give ToolRegistration messages, or dicts of their "
            f"fields: {_reason(error)}"
        ) from error


def _read(given: Mapping[str, Any]) -> pb.ToolRegistration:
    """Read a registration from a dict, in which ``default`` may be any value."""
    return pb.ToolRegistration(
        name=given["name"],
        description=given.get("description", ""),
        parameters=[
            pb.ParameterSpec(
                name=one["name"],
                type=one.get("type", "any"),
                description=one.get("description", ""),
                required=one.get("required", "default" not in one),
                default_value=_any(one["default"]) if "default" in one else None,
            )
            for one in given.get("parameters", ())
        ],
        metadata=given.get("metadata", {}),
        supports_streaming=given.get("supports_streaming", False),
    )


def _any(default: object) -> any_pb2.Any:
    return any_pb2.Any.FromString(encode_result(default).any)


def _announced(
    tools: Mapping[str, ToolDefinition],
    registration: pb.ToolRegistration,
    rest: ToolDefinition | None,
    options: Mapping[str, Any],
) -> ToolDefinition:
    """Give the tool that an adapter announces in its own words."""
    name = registration.name
    definition = tools.get(name) or rest
    if definition is None:
        method = method_of(options["cls"], name)
        if method is None:
            raise AdapterUnusable(
                f"get_tools() of {options['source']} announces {quote(name)}, and it has neither "
                "such a method nor execute_tool"
            )
        definition = _defined(method, name, **options)
    return replace(
        definition,
        name=name,
        description=registration.description,
        parameters=tuple(map(_parameter, registration.parameters)),
        supports_streaming=registration.supports_streaming,
        metadata=MappingProxyType(dict(registration.metadata)),
    )


def _parameter(spec: pb.ParameterSpec) -> Parameter:
    return Parameter(
        name=spec.name,
        type=spec.type or "any",
        description=spec.description,
        required=spec.required,
        default_any=spec.default_value.SerializeToString() if spec.default_value.type_url else b"",
        validation_json=spec.validation_json,
    )


def _imported(source: str) -> object:
    """Import ``package.module``, or give what is inside one."""
    parts = source.split(".")
    if source.endswith(".py") or "/" in source or not all(map(str.isidentifier, parts)):
        raise AdapterUnusable(
            f"{quote(source)} is no Python name: write package.module or package.module.Class, as "
            "in an import"
        )
    thing: Any = None
    for count in range(1, len(parts) + 1):
        path = ".".join(parts[:count])
        if count == 1 or isinstance(thing, ModuleType):
            module = _module(path, source)
            if module is not None:
                thing = module
                continue
        if not hasattr(thing, parts[count - 1]):
            raise _nothing_there(thing, parts[: count - 1], parts[count - 1], source)
        thing = getattr(thing, parts[count - 1])
    return thing


def _nothing_there(thing: object, inside: Sequence[str], name: str, source: str) -> AdapterUnusable:
    if not inside:
        return AdapterUnusable(
            f"{source} cannot be imported: there is no module {name}, neither in the current "
            "directory nor among the installed ones"
        )
    near = get_close_matches(name, [one for one in dir(thing) if not one.startswith("_")], _NEAR)
    proposed = f": did you mean {' or '.join(near)}?" if near else ""
    return AdapterUnusable(f"{source} cannot be loaded: {'.'.join(inside)} has no {name}{proposed}")


def _module(path: str, source: str) -> ModuleType | None:
    """Import a module; ``None`` if there is none of this name."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name == path:
            return None
        failure: BaseException = error
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the module's code may raise anything
        failure = error
    logger.debug("importing %s failed", path, exc_info=failure)
    raise AdapterUnusable(f"{source} cannot be imported: {_reason(failure)}") from failure


def _reason(error: BaseException) -> str:
    """Say in one line what went wrong, and in which module."""
    while error.__cause__ is not None:
        error = error.__cause__
    failure = failure_of(error)
    first = failure.message.partition("\n")[0]
    frames = [
        (frame.f_globals.get("__name__", "?"), line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not frame.f_code.co_filename.startswith("<frozen")
    ]
    module, line = frames[-1] if frames else ("", 0)
    where = f" ({module}, line {line})" if line and module != __name__ else ""
    return f"{failure.type}: {first}{where}" if first else f"{failure.type}{where}"
