"""How arguments are read for all other type hints: by pydantic, as strict JSON.

pydantic is loaded when the first such hint is met: it takes nearly a tenth of a second, and most
tools need none of it.
"""

from __future__ import annotations

import json
import math
import sys
import typing
from collections import abc
from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Any, Literal, get_args, get_origin

import numpy as np

from snakepit_bridge.tools.failures import shortened
from snakepit_bridge.tools.readings import ANY, ARRAY, Mismatch, Reading, shown

__all__ = ["NoReading", "checked", "validated"]

_MAX_WORDS = 200
"""Bytes of pydantic's own words that a message repeats: it lists all choices of an Enum."""

_MAX_FAULTS = 3
"""Faults inside one argument that a message names."""


class NoReading(Exception):
    """pydantic knows nothing of a type."""


def checked(simple: Reading, inner: object, hint: object) -> Reading:
    """Read a simple type, then have pydantic check what ``Annotated`` says of it."""
    if simple is ARRAY:
        raise TypeError("a numpy array takes no Field(...): check it inside the tool")
    if get_origin(inner) is Literal or simple is ANY:
        return validated(hint)
    adapter = _adapter(hint)
    refused = _pydantic().ValidationError

    def read(value: object) -> object:
        value = value if type(value) in simple.exact else simple.read(value)
        try:
            return adapter.validate_python(value, strict=True)
        except refused as error:
            raise _mismatch(error) from None

    return Reading(simple.wire_type, _schema(adapter), frozenset(), read, simple.plain)


def validated(hint: object) -> Reading:
    """Read a type of any kind as strict JSON: lists into tuples, strings into dates and Enums."""
    adapter = _adapter(hint)
    schema = _schema(adapter)
    refused = _pydantic().ValidationError
    # Where bytes may come as well, a JSON string would be taken for them.
    not_json = (bytes, str) if bytes in get_args(hint) else bytes

    def read(value: object) -> object:
        if isinstance(value, not_json):
            try:
                return adapter.validate_python(value, strict=True)
            except refused as error:
                raise _mismatch(error) from None
        text = _json(value)
        try:
            return adapter.validate_json(text, strict=True)
        except refused as error:
            first = error
        # pydantic takes 3.0 for no integer. Only where that matters is it written as 3, as an
        # int among floats or inside Any should stay what it was.
        without_fractions = _json(_integral(value))
        if without_fractions != text:
            try:
                return adapter.validate_json(without_fractions, strict=True)
            except refused as error:
                first = error
        raise _mismatch(first)

    def plain(value: object) -> object:
        return adapter.dump_python(value, mode="json", warnings=False)

    return Reading(_wire_type(schema, schema), schema, frozenset(), read, plain)


def _pydantic() -> Any:  # noqa: ANN401 - a module
    import pydantic  # noqa: PLC0415 - as said above

    return pydantic


def _adapter(hint: object) -> Any:  # noqa: ANN401 - a TypeAdapter
    pydantic = _pydantic()
    try:
        return pydantic.TypeAdapter(_acceptable(hint))
    except (pydantic.errors.PydanticUserError, NameError) as error:
        raise NoReading(f"{hint!r} is no type that arguments can be read as ({error})") from error


def _schema(adapter: Any) -> Mapping[str, Any]:  # noqa: ANN401
    try:
        schema: Mapping[str, Any] = adapter.json_schema()
    except _pydantic().errors.PydanticUserError as error:
        raise NoReading(f"no JSON becomes one ({error})") from error
    return schema


def _acceptable(hint: object) -> object:
    """Give the same type in the form in which pydantic takes it, and takes it strictly."""
    inner, *extras = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    if get_origin(inner) in (abc.Iterable, abc.Collection) and get_args(inner):
        # Of an Iterable it makes an iterator, which checks each item late and loosely.
        inner = list[get_args(inner)[0]]  # type: ignore[misc] # a type that is known at run time
    elif typing.is_typeddict(inner) and sys.version_info < (3, 12):
        inner = _typed_dict(inner)
    return Annotated[(inner, *extras)] if extras else inner


def _typed_dict(hint: Any) -> object:  # noqa: ANN401 - a TypedDict
    # Before Python 3.12 pydantic takes only those of typing_extensions, which it brings along.
    from typing_extensions import TypedDict  # noqa: PLC0415 - as pydantic

    fields = {}
    for name, field in typing.get_type_hints(hint, include_extras=True).items():
        need = typing.Required if name in hint.__required_keys__ else typing.NotRequired
        said = get_origin(field) in (typing.Required, typing.NotRequired)
        fields[name] = field if said else need[field]
    return TypedDict(hint.__name__, fields)  # type: ignore[operator]


def _wire_type(schema: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    """Name on the wire what a JSON Schema describes."""
    reference = schema.get("$ref", "")
    if reference:
        return _wire_type(root["$defs"][reference.rpartition("/")[2]], root)
    if "enum" in schema or "const" in schema:
        return "choice"
    names = {
        "string": "string",
        "integer": "integer",
        "number": "float",
        "boolean": "boolean",
        "array": "list",
        "object": "map",
    }
    return names.get(str(schema.get("type")), "any")


def _json(value: object) -> str:
    try:
        return json.dumps(value, default=_json_part)
    except (TypeError, ValueError) as error:
        raise Mismatch("must be JSON", f" ({shortened(str(error), _MAX_WORDS)})") from None


def _json_part(part: object) -> object:
    if isinstance(part, np.ndarray | np.generic):
        return part.tolist()
    if isinstance(part, Enum):
        return part.value
    raise TypeError(f"{type(part)} has no JSON")


def _integral(value: object) -> object:
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return int(value)
    if isinstance(value, np.ndarray):
        return _integral(value.tolist())
    if isinstance(value, list | tuple):
        return [_integral(item) for item in value]
    if isinstance(value, dict):
        return {key: _integral(item) for key, item in value.items()}
    return value


def _mismatch(error: Any) -> Mismatch:  # noqa: ANN401 - pydantic's ValidationError
    faults = error.errors(include_url=False, include_context=False)
    first = faults[0]
    path = _path(first["loc"])
    problem, detail = _words(first)
    for fault in faults[1:_MAX_FAULTS]:
        also, what = _words(fault)
        detail += f"; {_path(fault['loc'])} {also}".replace(";  ", "; ") + what
    if len(faults) > _MAX_FAULTS:
        detail += f"; and {len(faults) - _MAX_FAULTS} more"
    return Mismatch(problem, detail, path)


def _path(place: tuple[int | str, ...]) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return shortened("".join(parts), _MAX_WORDS)


def _words(fault: Mapping[str, Any]) -> tuple[str, str]:
    text = shortened(str(fault["msg"]), _MAX_WORDS)
    if fault["type"] in ("value_error", "assertion_error"):  # the tool's words, of whatever
        return "is not valid", f": {text}"
    if text.startswith("Input should "):
        return f"must {text.removeprefix('Input should ')}", f", not {shown(fault['input'])}"
    return f"is not valid: {text}", ""
