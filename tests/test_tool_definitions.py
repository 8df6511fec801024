"""What a function says of itself as a tool, and what its arguments become."""

from __future__ import annotations

import asyncio
import datetime as dt
import enum
import functools
import json
import logging
import math
import subprocess
import sys
import timeit
import traceback
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NamedTuple,
    NotRequired,
    Optional,
    Required,
    TypedDict,
    TypeVar,
)

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, Field

from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge.errors import InvalidRequest, InvalidValue
from snakepit_bridge.session_context import SessionContext
from snakepit_bridge.tool_values import decode_argument
from snakepit_bridge.tools.chunks import Chunk, StreamChunk, chunk_of, refusal
from snakepit_bridge.tools.definition import Kind, ToolDefinition, define, tool
from snakepit_bridge.tools.failures import MAX_MESSAGE, MAX_TRACEBACK, failure_of, shortened

if TYPE_CHECKING:
    from nowhere import Unknown  # type: ignore[import-not-found]

F = TypeVar("F", bound=Callable[..., Any])


def defined(function: Callable[..., Any]) -> ToolDefinition:
    return define(function, function.__name__, source="tests")


def one(hint: object, default: object = ...) -> ToolDefinition:
    """A tool with one parameter ``x`` of this type."""
    if default is ...:

        def required(x: object) -> object:
            return x

        function: Any = required
    else:

        def optional(x: object = default) -> object:
            return x

        function = optional
    function.__annotations__ = {"x": hint}
    return defined(function)


def refused(definition: ToolDefinition, **arguments: object) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        definition.convert(arguments)
    assert type(caught.value) is InvalidRequest
    assert caught.value.field.startswith("parameters.")
    assert len(caught.value.message) < 2_000
    return caught.value


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Model(BaseModel):
    n: int
    tags: list[str] = []


class Typed(TypedDict, total=False):
    a: Required[int]
    b: str


class Whole(TypedDict):
    a: int
    b: NotRequired[str]


class Pair(NamedTuple):
    a: int
    b: str


@dataclass
class Point:
    x: float
    y: float = 0.0


class Plain:
    """pydantic knows nothing of it."""


# fmt: off
TYPES: list[tuple[object, str, list[tuple[object, object]], list[object]]] = [
    # hint, name on the wire, what is taken and what it becomes, what is refused
    (str, "string", [("a", "a")], [1, None, b"a", True, ["a"]]),
    (int, "integer", [(1, 1), (3.0, 3), (10**400, 10**400)], ["1", True, 1.5, None, math.nan]),
    (float, "float", [(1.5, 1.5), (2, 2.0)], ["1.5", "NaN", True, None, 10**400]),
    (bool, "boolean", [(True, True)], [1, 0, "true", None]),
    (bytes, "binary", [(b"\0", b"\0"), (bytearray(b"a"), b"a")], ["YQ==", [1], None]),
    (list, "list", [([1, "a"], [1, "a"]), (np.arange(2), [0, 1])], ["ab", {}, None, 1]),
    (list[Any], "list", [([1, "a"], [1, "a"])], [{}]),
    (dict, "map", [({"a": None}, {"a": None})], [[], "a", None]),
    (dict[str, Any], "map", [({"a": 1}, {"a": 1})], [[]]),
    (Any, "any", [(None, None), ("a", "a"), (b"a", b"a")], []),
    (object, "any", [(None, None)], []),
    (Sequence, "list", [([1], [1])], ["ab"]),
    (Mapping, "map", [({"a": 1}, {"a": 1})], [[1]]),
    (list[int], "list", [([1, 2.0], [1, 2]), (np.arange(2), [0, 1])], [["1"], [True], [1.5], "1"]),
    (list[float], "list", [([1, 2.5], [1.0, 2.5]), (np.ones(2), [1.0, 1.0])], [["1"], [None]]),
    (Sequence[str], "list", [(["a"], ["a"])], [[1], "abc"]),
    (Iterable[int], "list", [([1], [1])], [["1"], 1]),
    (tuple[int, str], "list", [([1, "a"], (1, "a"))], [[1], ["1", "a"], {}]),
    (tuple[int, ...], "list", [([1, 2], (1, 2))], [["1"]]),
    (set[int], "list", [([1, 1], {1})], [[1.5], {}]),
    (frozenset[str], "list", [(["a"], frozenset("a"))], ["a"]),
    (dict[str, int], "map", [({"a": 1}, {"a": 1})], [{"a": "1"}, []]),
    (Model, "map", [({"n": 1.0}, Model(n=1))], [{"n": "1"}, {}, []]),
    (Typed, "map", [({"a": 1}, {"a": 1})], [{"b": "x"}, {"a": "1"}]),
    (Whole, "map", [({"a": 1}, {"a": 1})], [{"b": "x"}]),
    (Point, "map", [({"x": 1}, Point(1.0))], [{"y": 1}, {"x": "1"}]),
    (Pair, "list", [([1, "a"], Pair(1, "a"))], [[1]]),
    (Colour, "choice", [("red", Colour.RED)], ["green", 1, None]),
    (Literal["a", 3], "choice", [("a", "a"), (3, 3), (3.0, 3)], ["b", "3", True, None, [1], {}]),
    (Literal[1], "choice", [(1, 1)], [True, 2]),
    (dt.date, "string", [("2024-02-29", dt.date(2024, 2, 29))], ["2024-02-30", 1]),
    (Path, "string", [("a/b", Path("a/b"))], [1]),
    (uuid.UUID, "string", [(str(uuid.UUID(int=7)), uuid.UUID(int=7))], ["7"]),
    (int | str, "any", [(1, 1), ("1", "1"), (2.0, 2)], [True, 1.5, None]),
    (Optional[int], "integer", [(1, 1), (None, None), (2.0, 2)], ["1", True]),  # noqa: UP045 - the old form
    (str | None, "string", [("a", "a"), (None, None)], [1]),
    (int | str | None, "any", [(None, None), ("a", "a")], [1.5]),
    (Model | None, "map", [({"n": 1}, Model(n=1)), (None, None)], [{}]),
    (Annotated[int, Field(ge=0)], "integer", [(0, 0), (1.0, 1)], [-1, "1", True]),
    (Annotated[int, "how many"], "integer", [(1, 1)], ["1"]),
    (Annotated[int | None, Field(ge=0)], "integer", [(None, None), (1, 1)], [-1]),
    (Annotated[str, Field(max_length=2)], "string", [("ab", "ab")], ["abc", 1]),
    (Annotated[list[int], Field(max_length=2)], "list", [([1, 2.0], [1, 2])], [[1, 2, 3], ["1"]]),
    (Annotated[int, AfterValidator(lambda n: n * 2)], "integer", [(2, 4)], ["2"]),
    (bytes | str, "any", [(b"a", b"a"), ("a", "a")], [1]),
    (TypeVar("T"), "any", [(1, 1)], []),
    (Plain, "any", [(1, 1)], []),
    ("Unknown", "any", [(1, 1)], []),
    ("int", "integer", [(1, 1)], ["1"]),
    ("not a type at all", "any", [(1, 1)], []),
]
# fmt: on


@pytest.mark.parametrize(
    ("hint", "wire", "taken", "wrong"), TYPES, ids=[str(row[0]) for row in TYPES]
)
def test_types(
    hint: object, wire: str, taken: list[tuple[object, object]], wrong: list[object]
) -> None:
    definition = one(hint)
    assert definition.parameters[0].type == wire
    for value, becomes in taken:
        given = definition.convert({"x": value})["x"]
        assert given == becomes
        assert type(given) is type(becomes)
    for value in wrong:
        error = refused(definition, x=value)
        assert error.message.startswith(f"tool '{definition.name}': parameter 'x")


def test_arrays() -> None:
    for hint in (np.ndarray, NDArray[np.float64], NDArray[Any], np.ndarray | None):
        definition = one(hint)
        assert definition.parameters[0].type == "tensor"
        array = np.ones((2, 2))
        assert definition.convert({"x": array})["x"] is array
        for value in ([[1, 2], [3, 4]], {"shape": [2, 2], "data": [1, 2, 3, 4]}):
            given = definition.convert({"x": value})["x"]
            assert isinstance(given, np.ndarray)
            assert given.tolist() == [[1, 2], [3, 4]]
        for wrong in ("[1]", 1, [[1], [2, 3]], [1, "2"], [True], {"a": 1}, b"1"):
            refused(definition, x=wrong)
    with pytest.raises(TypeError, match="check it inside the tool"):
        one(Annotated[np.ndarray, Field(max_length=3)])


def test_a_refusal_says_what_where_and_what_was_expected() -> None:
    @tool
    def greet(message: str, model: Model, times: int = 1) -> None: ...

    definition = defined(greet)
    right = {"message": "hi", "model": {"n": 1}}
    error = refused(definition, **{**right, "times": "2"})
    assert error.field == "parameters.times"
    assert error.message == (
        "tool 'greet': parameter 'times' must be an integer, not the string '2'"
    )
    error = refused(definition, **{**right, "model": {"n": 1, "tags": ["a", 7]}})
    assert error.field == "parameters.model.tags[1]"
    assert error.message == (
        "tool 'greet': parameter 'model.tags[1]' must be a valid string, not 7"
    )
    error = refused(definition, message="hi")
    assert error.field == "parameters.model"
    assert error.message == ("tool 'greet' needs model (map), which was not given; given: message")
    assert "message (string), model (map), which were not given" in refused(definition).message
    error = refused(definition, **right, mesage="hi")
    assert error.field == "parameters.mesage"
    assert "no parameter 'mesage': did you mean 'message'?" in error.message
    many = refused(definition, **{**right, "model": {"n": "1", "tags": list(range(9))}})
    assert "and 7 more" in many.message


def test_refusals_stay_short() -> None:
    @tool
    def plain(x: int, many: str = "0") -> None: ...

    plain.__annotations__["many"] = Literal[tuple(map(str, range(999)))]
    definition = defined(plain)
    huge = "\N{SNAKE}" * 100_000
    for arguments in (
        {"x": huge},
        {"x": 1, huge: 1},
        {"x": 1, "many": huge},
        {"x": [huge] * 1000},
        {huge: 1},
    ):
        assert len(refused(definition, **arguments).message.encode()) < 2_000


def test_no_message_quotes_a_sensitive_parameter() -> None:
    def check(secret: str) -> str:
        raise ValueError(f"{secret} is too simple")

    @tool(sensitive=["key", "model", "checked"])
    def login(
        key: int,
        model: Model,
        checked: Annotated[str, AfterValidator(check)] = "default!",
    ) -> None: ...

    login.__annotations__["checked"] = Annotated[str, AfterValidator(check)]
    definition = defined(login)
    right: dict[str, object] = {"key": 1, "model": {"n": 1}}
    for wrong in (
        {"key": "hunter2"},
        {"model": {"n": "hunter2"}},
        {"model": {"n": 1, "tags": {"hunter2": 1}}},
        {"model": {"hunter2": 1}},
        {"checked": "hunter2"},
    ):
        error = refused(definition, **{**right, **wrong})
        assert "hunter2" not in error.message + error.field
        assert "must be" in error.message or "is not valid" in error.message
    assert b"default!" not in definition.spec().SerializeToString()


def test_defaults_are_announced() -> None:
    def everything(  # noqa: PLR0917 - one of each kind
        ratio: float = 2,
        name: str | None = None,
        colour: Colour = Colour.RED,
        point: Point = Point(1),  # noqa: B008 - is what tools have
        when: tuple[int, ...] = (1, 2),
        raw: bytes = b"a",
        nothing: object = Plain(),
        strange: float = math.nan,
        array: np.ndarray = np.zeros(3),  # noqa: B008 - is what tools have
        large: np.ndarray = np.zeros(100_000),  # noqa: B008 - is what tools have
    ) -> None: ...

    definition = defined(everything)
    assert not any(parameter.required for parameter in definition.parameters)
    announced = {
        spec.name: decode_argument(spec.default_value.SerializeToString())
        for spec in definition.spec().parameters
        if spec.HasField("default_value")
    }
    array = announced.pop("array")
    assert isinstance(array, np.ndarray)
    assert array.tolist() == [0, 0, 0]
    strange = announced.pop("strange")
    assert isinstance(strange, float)
    assert math.isnan(strange)
    assert announced == {
        "ratio": 2.0,
        "name": None,
        "colour": "red",
        "point": {"x": 1.0, "y": 0.0},
        "when": [1, 2],
    }
    schemas = {
        spec.name: json.loads(spec.validation_json)
        for spec in definition.spec().parameters
        if spec.validation_json
    }
    assert schemas["ratio"] == {"type": "number", "default": 2.0}
    assert schemas["name"] == {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}
    assert schemas["colour"]["default"] == "red"
    assert schemas["strange"]["default"] == "NaN"
    assert "default" not in schemas["raw"]
    # The function's own defaults serve, so none is passed.
    assert definition.convert({}) == {}


def test_a_default_of_none_may_be_given() -> None:
    definition = one(int, None)
    assert definition.convert({"x": None}) == {"x": None}
    refused(definition, x="1")


def test_schemas_hold_the_constraints() -> None:
    definition = one(Annotated[int, Field(ge=0, le=9)], 3)
    schema = json.loads(definition.parameters[0].validation_json)
    assert schema == {"type": "integer", "minimum": 0, "maximum": 9, "default": 3}
    assert not one(Any).parameters[0].validation_json


@pytest.mark.parametrize(
    "text",
    [
        """Do it.

        At length.

        Args:
            first (int): the first,
                on two lines
            second: the second
        """,
        """Do it.

        Parameters
        ----------
        first : int
            the first,
            on two lines
        second
            the second
        """,
        """Do it.

        :param first: the first,
            on two lines
        :param second: the second
        :returns: nothing
        """,
        """Do it.
        :param first: the first,
            on two lines
        :param second: the second
        """,
    ],
    ids=["google", "numpy", "rest", "rest without a gap"],
)
def test_docstrings(text: str) -> None:
    def do(first: int, second: int) -> None: ...

    do.__doc__ = text
    tool(do)
    definition = defined(do)
    assert definition.description == "Do it."
    assert [parameter.description for parameter in definition.parameters] == [
        "the first, on two lines",
        "the second",
    ]


def test_descriptions_come_from_nearest_by() -> None:
    @tool("Said")
    def do(
        a: Annotated[int, "inside"],
        b: Annotated[int, Field(ge=0, description="of the field")],
        c: int,
    ) -> None:
        """Documented.

        Args:
            a: outside
            c: of c
        """

    definition = defined(do)
    assert definition.description == "Said"
    assert [parameter.description for parameter in definition.parameters] == [
        "inside",
        "of the field",
        "of c",
    ]
    assert do.__doc__ is not None
    assert tool(lambda: None)._tool_metadata.description == ""  # type: ignore[attr-defined]

    @tool
    def lines() -> None: ...

    lines.__doc__ = """One sentence
        on two lines.
        """
    tool(lines)

    assert defined(lines).description == "One sentence on two lines."


def timed(function: F) -> F:
    @functools.wraps(function)
    def call(*arguments: object, **named: object) -> object:
        return function(*arguments, **named)

    return call  # type: ignore[return-value]


def test_kinds_also_under_and_above_other_decorators() -> None:
    def plain(n: int) -> int:
        return n

    async def coroutine(n: int) -> int:
        return n

    def generator(n: int) -> Iterator[int]:
        yield n

    async def async_generator(n: int) -> AsyncIterator[int]:
        yield n

    kinds = [Kind.PLAIN, Kind.ASYNC, Kind.GENERATOR, Kind.ASYNC_GENERATOR]
    functions: list[Callable[..., Any]] = [plain, coroutine, generator, async_generator]
    for function, kind in zip(functions, kinds, strict=True):
        for marked in (tool(function), tool(timed(function)), timed(tool(function))):
            definition = defined(marked)
            assert definition.kind is kind
            assert definition.supports_streaming == (kind in kinds[2:])
            assert [(p.name, p.type) for p in definition.parameters] == [("n", "integer")]
            assert definition.function is marked
    assert tool(plain) is plain
    assert plain(3) == 3
    assert asyncio.run(coroutine(3)) == 3


def test_options() -> None:
    @tool(
        "What it does",
        True,
        ["temperature"],
        name="other",
        timeout=2,
        isolation="process",
        sensitive=["key"],
        metadata={"version": "2"},
    )
    def function(key: str) -> None: ...

    metadata = function._tool_metadata  # type: ignore[attr-defined]
    assert metadata.description == "What it does"
    assert metadata.supports_streaming
    assert list(metadata.required_variables) == ["temperature"]
    definition = defined(function)
    assert definition.name == "other"
    assert definition.timeout == 2
    assert definition.isolation == "process"
    assert definition.sensitive == {"key"}
    assert definition.metadata["version"] == "2"
    spec = definition.spec()
    assert spec is definition.spec()
    assert spec.required_variables == ["temperature"]
    assert spec.supports_streaming
    registration = definition.registration()
    assert isinstance(registration, pb.ToolRegistration)
    assert registration.metadata["required_variables"] == "temperature"
    assert registration.parameters == spec.parameters


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"timeout": 0}, ValueError, "above 0 seconds"),
        ({"timeout": math.inf}, ValueError, "above 0 seconds"),
        ({"timeout": math.nan}, ValueError, "above 0 seconds"),
        ({"timeout": "3"}, TypeError, "number of seconds"),
        ({"timeout": True}, TypeError, "number of seconds"),
        ({"isolation": "thread"}, ValueError, "process"),
        ({"isolation": "process", "thread_sensitive": True}, ValueError, "give one of them"),
        ({"sensitive": "secret"}, TypeError, "list of names"),
        ({"required_variables": "x"}, TypeError, "list of names"),
        ({"required_variables": [1]}, TypeError, "list of names"),
        ({"description": 3}, TypeError, "description must be a str"),
        ({"name": "a\nb"}, ValueError, "control characters"),
        ({"name": "x" * 257}, ValueError, "256 bytes"),
        ({"supports_streaming": "yes"}, TypeError, "bool"),
        ({"metadata": {"a": 1}}, TypeError, "str to str"),
        ({"timout": 3}, TypeError, "timout"),
    ],
    ids=str,
)
def test_wrong_options_are_refused_where_they_are_written(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):

        @tool(**options)  # type: ignore[untyped-decorator] # of options that it does not have
        def function() -> None: ...


def test_what_cannot_be_marked() -> None:
    with pytest.raises(TypeError, match="marks functions and methods"):
        tool(Plain)
    with pytest.raises(TypeError, match="write a function around it"):
        tool(len)
    with pytest.raises(TypeError, match="write a function around it"):
        tool(functools.partial(int, base=2))


def test_what_cannot_be_a_tool() -> None:
    def positional(x: int, /) -> None: ...

    def arguments(*values: int) -> None: ...

    def field(x: int = Field(3, ge=0)) -> None: ...

    def two(a: SessionContext, b: SessionContext) -> None: ...

    @tool(sensitive=["other"])
    def unknown(key: str) -> None: ...

    for function, words in (
        (positional, "take the '/' out"),
        (arguments, "write values: list"),
        (field, "Annotated"),
        (two, "one is enough"),
        (unknown, "sensitive names other"),
    ):
        with pytest.raises(TypeError, match=words):
            defined(function)


def test_other_names_go_into_keyword_arguments() -> None:
    def anything(a: int, **rest: float) -> None: ...

    definition = defined(anything)
    assert [parameter.name for parameter in definition.parameters] == ["a"]
    assert definition.convert({"a": 1, "b": 2, "c d": 0.5}) == {"a": 1, "b": 2.0, "c d": 0.5}
    assert refused(definition, a=1, b="2").field == "parameters.b"


class Remote(SessionContext):
    """A session of another kind."""


@pytest.mark.parametrize(
    "hint",
    [
        SessionContext,
        Remote,
        SessionContext | None,
        Optional[SessionContext],  # noqa: UP045 - the old form
        Annotated[SessionContext, "the session"],
        "SessionContext",
        "SessionContext | None",
        "Optional[SessionContext]",
        "snakepit_bridge.SessionContext",
        "'SessionContext'",
    ],
    ids=str,
)
def test_the_session_is_not_an_argument(hint: object, caplog: pytest.LogCaptureFixture) -> None:
    def function(a: int, session: object = None, **rest: object) -> None: ...

    function.__annotations__ = {"a": int, "session": hint}
    definition = defined(function)
    assert definition.context_parameter == "session"
    assert [parameter.name for parameter in definition.parameters] == ["a"]
    refused(definition, a=1, session="mine")
    assert not caplog.records


def test_an_annotation_that_is_no_session(caplog: pytest.LogCaptureFixture) -> None:
    def function(session: NotASessionContextAtAll) -> None: ...  # type: ignore[name-defined] # noqa: F821 - on purpose

    with caplog.at_level(logging.WARNING):
        definition = defined(function)
    assert definition.context_parameter == ""
    assert "cannot be resolved" in caplog.text


def test_one_hint_that_cannot_be_resolved_leaves_the_others() -> None:
    def function(a: int, b: Unknown, c: list[float]) -> None: ...

    definition = defined(function)
    assert [parameter.type for parameter in definition.parameters] == ["integer", "any", "list"]


def test_what_a_validator_of_the_tool_raises_is_told_apart() -> None:
    def check(value: int) -> int:
        if value > 9:
            raise ValueError("more than nine")
        if value > 5:
            raise KeyError(value)
        return value

    definition = one(Annotated[int, AfterValidator(check)])
    assert "more than nine" in refused(definition, x=10).message
    with pytest.raises(KeyError):
        definition.convert({"x": 6})


def test_simple_arguments_are_read_at_once() -> None:
    @tool
    def function(a: int, b: str) -> None: ...

    definition = defined(function)
    arguments = {"a": 1, "b": "x"}
    best = min(timeit.repeat(lambda: definition.convert(arguments), number=2_000, repeat=5))
    assert best / 2_000 < 20e-6  # the aim is 2e-6; a tenth of the machine is enough for this


def test_pydantic_is_loaded_only_where_a_hint_needs_it() -> None:
    code = (
        "import sys\n"
        "from typing import Any, Literal\n"
        "import numpy as np\n"
        "from snakepit_bridge.tools.definition import define, tool\n"
        "@tool\n"
        "def f(a: int, b: float = 1, c: str | None = None, d: list = [], e: dict[str, Any] = {},\n"
        "      g: np.ndarray = None, h: Literal['a'] = 'a', i: Any = 0, **rest: bool): 'Do.'\n"
        "d = define(f, 'f', source='m')\n"
        "d.convert({'a': 1, 'j': True}); d.spec()\n"
        "print('pydantic' in sys.modules, 'grpc' in sys.modules)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", "False"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(json_values)
def test_any_argument_is_read_or_refused(value: object) -> None:
    for definition in DEFINITIONS:
        try:
            definition.convert({"x": value})
        except InvalidRequest as error:
            refused = error
        else:
            continue
        assert refused.field.startswith("parameters.x")
        assert refused.message.encode()


DEFINITIONS = [
    one(hint)
    for hint in (int, list[float], Model, Colour, int | str, Point | None, np.ndarray, Whole)
]


# Chunks.


@pytest.mark.parametrize(
    ("item", "data"),
    [
        (b"\xff", b"\xff"),
        (bytearray(b"a"), b"a"),
        (memoryview(b"abcd")[::2], b"ac"),
        ("é", '"é"'.encode()),
        (None, b"null"),
        ({"a": np.arange(3), "b": np.float32(0.5)}, b'{"a":[0,1,2],"b":0.5}'),
        ([math.nan, math.inf, -math.inf], b'["NaN","Infinity","-Infinity"]'),
        (np.array([1.5, math.nan]), b'[1.5,"NaN"]'),
        (np.int8(3), b"3"),
        (10**30, b"1" + b"0" * 30),
        ({"data": 1, "is_final": True}, b'{"data":1,"is_final":true}'),
        (StreamChunk({"a": 1}), b'{"a":1}'),
        (StreamChunk(b"raw", is_final=True), b"raw"),
        (StreamChunk(None), b"null"),
    ],
    ids=str,
)
def test_chunks(item: object, data: bytes) -> None:
    assert chunk_of(item) == Chunk(data, {})


def test_chunks_of_foreign_classes() -> None:
    class Foreign:
        def __init__(self) -> None:
            self.data = [1]
            self.is_final = False
            self.metadata = {"k": "v"}

    assert chunk_of(Foreign()) == Chunk(b"[1]", {"k": "v"})
    assert chunk_of(StreamChunk([1], metadata={"k": "v"})) == Chunk(b"[1]", {"k": "v"})
    assert chunk_of(StreamChunk(None, is_final=True)) is None
    chunk = StreamChunk("a")
    assert (chunk.data, chunk.is_final, chunk.metadata) == ("a", False, None)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (object(), "item is a <class 'object'>"),
        ({"a": [1, 2, 3, object()]}, "item['a'][3] is a <class 'object'>"),
        ({"a": {1: 2}}, "item['a'] must be a JSON value, not one with keys"),
        ([b"a"], "item[0] is a <class 'bytes'>"),
        (["\ud800"], "lone surrogate"),
        ([10**5000], "4300 digits"),
        ([np.array(["2024"], "datetime64[Y]")], "datetime64"),
        (StreamChunk({"a": {1}}), "item['a'] is a <class 'set'>"),
        (StreamChunk(1, metadata={"a": 1}), "metadata of a chunk must be a dict of str to str"),  # type: ignore[dict-item]
        (StreamChunk(1, metadata="a"), "metadata of a chunk must be a dict"),  # type: ignore[arg-type]
    ],
)
def test_chunks_that_have_no_json(item: object, words: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        chunk_of(item)
    assert words in caught.value.message
    assert len(caught.value.message) < 2_000


def test_a_chunk_that_contains_itself() -> None:
    items: list[object] = []
    items.append(items)
    with pytest.raises(InvalidValue, match="contains itself"):
        chunk_of(items)


def test_a_refusal_names_the_whole_as_it_is_asked() -> None:
    error = InvalidValue("no")
    assert refusal("result", {"a": {2}}, error).startswith("result['a'] is a <class 'set'>")
    long = "k" * 100_000
    assert len(refusal("result", {long: {2}}, error)) < 1_000


# Failures.


def raise_it(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001 - SystemExit as well
        return caught


def test_a_failure_has_type_message_and_traceback() -> None:
    failure = failure_of(raise_it(ValueError("no such thing")))
    assert failure.type == "ValueError"
    assert failure.message == "no such thing"
    assert "in raise_it" in failure.traceback
    assert failure.traceback.rstrip().endswith("ValueError: no such thing")
    document = json.loads(failure.as_json({"tool": "x"}))
    assert document["type"] == "ValueError"
    assert document["message"] == "no such thing"
    assert document["traceback"] == failure.traceback
    assert document["stacktrace"] == failure.traceback.splitlines()
    assert document["context"] == {"tool": "x"}


def test_frames_of_the_bridge_are_cut_off_the_top() -> None:
    names = {"error": ValueError("x")}
    code = compile("def outer(inner):\n    inner()\n", "runner.py", "exec")
    ours: dict[str, Any] = {"__name__": "snakepit_bridge.tools.runner"}
    exec(code, ours)
    as_main: dict[str, Any] = {"__name__": "__main__", "__spec__": None}
    as_main["__spec__"] = type("Spec", (), {"name": "snakepit_bridge.tools.worker"})()
    exec(code, as_main)

    def the_tool() -> None:
        ours["outer"](deeper)

    def deeper() -> None:
        raise names["error"]

    try:
        as_main["outer"](lambda: ours["outer"](the_tool))
    except ValueError as error:
        trace = error.__traceback__
        caught = error
    assert trace is not None
    failure = failure_of(caught.with_traceback(trace.tb_next))  # without this test's own frame
    lines = [line for line in failure.traceback.splitlines() if line.startswith("  File")]
    assert ["<lambda>" in lines[0], "the_tool" in failure.traceback] == [True, True]
    assert sum("runner.py" in line for line in lines) == 2  # below the first of the tool's own
    assert "deeper" in lines[-1]


def test_failures_of_the_bridge_alone_keep_their_frames() -> None:
    ours: dict[str, Any] = {"__name__": "snakepit_bridge.tools.runner"}
    exec("def fail():\n    raise KeyError('x')\n", ours)
    try:
        ours["fail"]()
    except KeyError as error:
        trace = error.__traceback__
        caught = error
    assert trace is not None
    assert "in fail" in failure_of(caught.with_traceback(trace.tb_next)).traceback


def test_failures_have_a_bounded_size() -> None:
    for text in ("x" * 10_000_000, "\N{SNAKE}" * 1_000_000, "\ud800" * 100_000):
        failure = failure_of(raise_it(ValueError(text)))
        assert len(failure.message.encode()) <= MAX_MESSAGE
        assert len(failure.traceback.encode()) <= MAX_TRACEBACK
        assert "left out" in failure.message
        assert failure.message[0] == text[0] or failure.message.startswith("\\ud800")

    def deep(n: int) -> None:
        deep(n + 1)

    try:
        deep(0)
    except RecursionError as error:
        failure = failure_of(error)
    assert failure.type == "RecursionError"
    assert len(failure.traceback.encode()) <= MAX_TRACEBACK


@pytest.mark.parametrize("limit", [80, 81, 200])
@pytest.mark.parametrize("text", ["a" * 79, "a" * 80, "a" * 500, "é" * 100, "a\N{SNAKE}" * 100])
def test_shortening(text: str, limit: int) -> None:
    short = shortened(text, limit)
    assert len(short.encode()) <= limit
    if len(text.encode()) <= limit:
        assert short == text


def test_exceptions_that_cannot_be_shown() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    class Broken(Exception):
        @property
        def __notes__(self) -> list[str]:  # type: ignore[override]
            raise RuntimeError("no notes")

    assert "RuntimeError" in failure_of(raise_it(Mute())).message
    assert failure_of(raise_it(Mute())).type == "Mute"
    assert failure_of(raise_it(Broken())).type == "Broken"
    assert failure_of(SystemExit(3)) == ("SystemExit", "3", "SystemExit: 3\n")
    group = ExceptionGroup("several", [ValueError("one"), KeyError("two")])
    assert "KeyError: 'two'" in failure_of(raise_it(group)).traceback
    chained = raise_it(ValueError("outer"))
    chained.__cause__ = raise_it(KeyError("inner"))
    assert "inner" in failure_of(chained).traceback
    assert "Traceback" not in traceback.format_exception_only(chained)
