"""From a function's signature to parameters: what is announced, and how arguments are read.

Arguments come decoded: None, bool, int, float, str, list, dict, a numpy array, or bytes.
"""

from __future__ import annotations

import inspect
import json
import logging
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Union, get_args, get_origin

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge.errors import InvalidValue, quote
from snakepit_bridge.json_documents import DOCUMENT, write_document
from snakepit_bridge.tool_values import encode_result
from snakepit_bridge.tools.readings import ANY, Reading, nullable, simple_reading
from snakepit_bridge.tools.validation import NoReading, checked, validated

__all__ = ["Parameter", "describe", "hints_of", "reading_of"]

logger = logging.getLogger(__name__)

_CONSTRAINING = frozenset({"pydantic", "pydantic_core", "annotated_types"})
"""Packages whose objects inside ``Annotated`` are for pydantic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter of a tool, as it is announced."""

    name: str
    type: str = "any"
    """string, integer, float, boolean, binary, tensor, list, map, choice or any."""
    description: str = ""
    required: bool = True
    default: object = None
    """The Python value; ``None`` where it is required as well."""
    default_any: bytes = b""
    """The same as a serialized ``Any``; empty if no type of the wire has it."""
    validation_json: str = ""
    """JSON Schema, with the default."""

    def spec(self) -> pb.ParameterSpec:
        spec = pb.ParameterSpec(
            name=self.name,
            type=self.type,
            description=self.description,
            required=self.required,
            validation_json=self.validation_json,
        )
        if self.default_any:
            spec.default_value.ParseFromString(self.default_any)
        return spec

    def without_default(self) -> Parameter:
        """The same, with the default kept from clients."""
        schema = json.loads(self.validation_json or "{}")
        schema.pop("default", None)
        text = json.dumps(schema) if schema else ""
        return replace(self, default=None, default_any=b"", validation_json=text)


def describe(
    parameter: inspect.Parameter, hint: object, description: str
) -> tuple[Parameter, Reading]:
    """Describe a parameter of a function, and say how its values are read.

    :param hint: resolved; ``Any`` without one.
    :param description: from the docstring; text inside ``Annotated`` comes before it.
    :raises TypeError: the hint or the default cannot serve; the message says what to write.
    """
    default = parameter.default
    required = default is inspect.Parameter.empty
    if type(default).__name__ == "FieldInfo":
        raise TypeError(
            f"the default of {quote(parameter.name)} is a pydantic Field: write "
            f"Annotated[..., Field(...)] as its type, and the default itself behind it"
        )
    try:
        reading = reading_of(hint)
    except NoReading as reason:
        logger.warning("parameter %s takes anything: %s", quote(parameter.name), reason)
        reading = ANY
    if default is None:
        reading = nullable(reading)
    default_any, schema = b"", dict(reading.schema)
    if not required:
        default_any, schema = _with_default(reading, default)
    described = Parameter(
        name=parameter.name,
        type=reading.wire_type,
        description=_text_inside(hint) or description,
        required=required,
        default=None if required else default,
        default_any=default_any,
        validation_json=write_document("schema", DOCUMENT, schema).decode() if schema else "",
    )
    return described, reading


def hints_of(function: Callable[..., Any], annotations: Mapping[str, object]) -> dict[str, object]:
    """Resolve the annotations of a function's parameters.

    One that cannot be resolved becomes ``Any``, and is logged.
    """
    names = getattr(inspect.unwrap(function), "__globals__", {})
    hints: dict[str, object] = {}
    for name, annotation in annotations.items():
        if annotation is inspect.Parameter.empty:
            continue
        try:
            hints[name] = _resolved(annotation, names)
        except Exception as error:  # noqa: BLE001 - a hint is an expression: it may raise anything
            hints[name] = Any
            logger.warning(
                "parameter %s of %s takes anything: its type %r cannot be resolved (%s: %s)",
                quote(name),
                getattr(function, "__qualname__", function),
                annotation,
                type(error).__name__,
                error,
            )
    return hints


def _resolved(annotation: object, names: dict[str, Any]) -> object:
    # One at a time: among several, get_type_hints fails for all if it fails for one.
    def holder() -> None: ...

    holder.__annotations__ = {"hint": annotation}
    return typing.get_type_hints(holder, globalns=names, include_extras=True)["hint"]


def reading_of(hint: object) -> Reading:
    """Say how values of a type hint are read.

    :raises TypeError: it asks for checks that cannot be made.
    """
    inner, checks = _bare(hint)
    choices = [arg for arg in get_args(inner) if arg is not types.NoneType]
    if get_origin(inner) in (Union, types.UnionType) and len(choices) < len(get_args(inner)):
        whole: object = Union[tuple(choices)]  # noqa: UP007 - of a tuple made here
        return nullable(reading_of(Annotated[(whole, *checks)] if checks else whole))
    simple = simple_reading(inner)
    if simple is None:
        return validated(hint if checks else inner)
    return checked(simple, inner, hint) if checks else simple


def _bare(hint: object) -> tuple[object, tuple[object, ...]]:
    """Give what is inside ``Annotated``, and of the rest what is for pydantic."""
    if get_origin(hint) is not Annotated:
        return hint, ()
    inner, *extras = get_args(hint)
    return inner, tuple(
        extra
        for extra in extras
        if type(extra).__module__.partition(".")[0] in _CONSTRAINING
        or hasattr(extra, "__get_pydantic_core_schema__")
    )


def _text_inside(hint: object) -> str:
    if get_origin(hint) is Annotated:
        for extra in get_args(hint)[1:]:
            for text in (extra, *(getattr(extra, a, 0) for a in ("description", "documentation"))):
                if isinstance(text, str):
                    return text
    return ""


def _with_default(reading: Reading, default: object) -> tuple[bytes, dict[str, Any]]:
    """Write a default as ``Any``, and the schema with it; without it, if the wire has no such."""
    schema = dict(reading.schema)
    try:
        plain = reading.plain(default)
        value = encode_result(plain)
        text = write_document("default", DOCUMENT, plain)
    except (ValueError, TypeError, InvalidValue) as error:
        logger.debug("default %r is not announced: %s", default, error)
        return b"", schema
    if value.binary:  # large: it has bytes, and there is no field for them
        return b"", schema
    return value.any, {**schema, "default": json.loads(text)}
