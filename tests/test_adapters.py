"""From names to tools: modules, classes, entry points, and what is said of those that are wrong."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import snakepit_bridge
from snakepit_bridge import base_adapter, base_adapter_threaded
from snakepit_bridge import bridge_service_pb2 as pb
from snakepit_bridge.base_adapter import BaseAdapter, tool
from snakepit_bridge.base_adapter_threaded import (
    ThreadSafeAdapter,
    require_thread_safe,
    thread_safe_method,
    validate_thread_safety,
)
from snakepit_bridge.errors import InvalidRequest, ToolNotFound
from snakepit_bridge.tools.adapters import Adapter, AdapterUnusable, Toolbox, load_toolbox
from snakepit_bridge.tools.definition import Kind, ToolDefinition
from tests.adapters_013 import ConcurrentAdapter, DelegatingAdapter, GuideAdapter

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a module into the current directory; gives its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    before = set(sys.modules)

    def write(text: str, path: str = "made_tools.py") -> str:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("from snakepit_bridge import BaseAdapter, tool\n" + text)
        importlib.invalidate_caches()
        return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    yield write
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def load(*names: str) -> Toolbox:
    return load_toolbox(names, entry_points=False)


def unusable(*names: str) -> str:
    with pytest.raises(AdapterUnusable) as caught:
        load(*names)
    message = str(caught.value)
    assert "\n" not in message
    return message


def run(definition: ToolDefinition, **arguments: object) -> Any:  # noqa: ANN401 - any tool's
    converted = definition.convert(arguments)
    if definition.adapter is None:
        return definition.function(**converted)
    return definition.function(definition.adapter.instance(), **converted)


def test_no_names_no_tools() -> None:
    toolbox = load()
    assert not toolbox.definitions
    with pytest.raises(ToolNotFound, match="--adapter"):
        toolbox.find("echo")


def test_the_functions_of_a_module(write: Write) -> None:
    name = write(
        "@tool\ndef one(a: int) -> int: return a\n"
        "@tool(name='second')\ndef two() -> int: return 2\n"
        "def three(): ...\n"
        "alias = one\n"
    )
    toolbox = load(name)
    assert list(toolbox.definitions) == ["one", "second"]
    definition = toolbox.find("one")
    assert definition.source == name
    assert definition.adapter is None
    assert definition.serial_key is None
    assert definition.metadata["module"] == name
    assert run(definition, a=3) == 3


def test_functions_that_a_module_only_uses_are_not_its_tools(write: Write) -> None:
    library = write("@tool\ndef shared(): ...\n@tool\ndef offered(): ...\n", "made_library.py")
    user = write(
        f"from {library} import shared, offered\n"
        "__all__ = ['mine', 'offered']\n"
        "@tool\ndef mine(): return shared()\n"
    )
    assert set(load(user).definitions) == {"mine", "offered"}


def test_a_package_gathers_its_modules_functions(write: Write) -> None:
    write("@tool\ndef inner(): ...\n", "made_package/part.py")
    package = write("from made_package.part import inner\n", "made_package/__init__.py")
    assert list(load(package).definitions) == ["inner"]
    assert list(load("made_package.part").definitions) == ["inner"]


def test_a_module_may_run_one_call_at_a_time(write: Write) -> None:
    name = write("__thread_safe__ = False\n@tool\ndef a(): ...\n@tool\ndef b(): ...\n")
    a, b = load(name).definitions.values()
    assert a.serial_key is not None
    assert a.serial_key == b.serial_key


def test_the_same_name_twice_is_loaded_once() -> None:
    toolbox = load("snakepit_bridge.showcase", "snakepit_bridge.showcase")
    assert "echo" in toolbox.definitions


def test_an_adapter_of_the_guide() -> None:
    toolbox = load("tests.adapters_013.GuideAdapter")
    definitions = toolbox.definitions
    assert list(definitions)[:3] == ["add", "search", "state"]
    assert "not_a_tool" not in definitions
    add = toolbox.find("add")
    assert add.source == "tests.adapters_013.GuideAdapter"
    assert not add.dispatched
    assert add.adapter is not None
    assert add.adapter.cls is GuideAdapter
    assert add.adapter.serial
    assert add.serial_key is not None
    assert [(p.name, p.type) for p in add.parameters] == [("a", "float"), ("b", "float")]
    assert add.metadata == {"adapter_class": "GuideAdapter", "module": "tests.adapters_013"}
    assert run(add, a=1, b=2) == 3.0
    assert type(run(add, a=1, b=2)) is float
    assert add.adapter.instance() is not add.adapter.instance()
    search = toolbox.find("search")
    assert search.supports_streaming
    assert search.required_variables == ("api_key",)
    assert search.kind is Kind.PLAIN
    assert toolbox.find("stream_data").kind is Kind.GENERATOR
    assert toolbox.find("later").kind is Kind.ASYNC
    assert run(toolbox.find("echo"), a=1, b="x") == {"a": 1, "b": "x"}
    assert run(toolbox.find("process_binary"), data=b"abc") == 3
    # What the instance is called is no argument.
    with pytest.raises(InvalidRequest):
        toolbox.find("echo").convert({"self": 1})


def test_get_tools_describes_what_is_loaded() -> None:
    registrations = GuideAdapter().get_tools()
    assert all(isinstance(one, pb.ToolRegistration) for one in registrations)
    definitions = load("tests.adapters_013.GuideAdapter").definitions
    assert registrations == [definition.registration() for definition in definitions.values()]
    registrations[0].name = "changed"  # the caller's own
    assert GuideAdapter().get_tools()[0].name == "add"


def test_call_tool() -> None:
    adapter = GuideAdapter()
    assert adapter.call_tool("add", a=1, b=2) == 3
    with pytest.raises(AttributeError, match="no tool 'nope'"):
        adapter.call_tool("nope")
    with pytest.raises(TypeError, match="cannot be called"):
        adapter.call_tool("ready")


class Stub:
    """Of a service that answers."""

    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.requests: list[pb.RegisterToolsRequest] = []

    def RegisterTools(self, request: pb.RegisterToolsRequest) -> object:  # noqa: N802 - the wire's
        self.requests.append(request)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_registering_with_a_session() -> None:
    stub = Stub(pb.RegisterToolsResponse(success=True, tool_ids={"add": "1"}))
    assert GuideAdapter().register_with_session("s", stub) == ["add"]
    (request,) = stub.requests
    assert request.session_id == "s"
    assert "add" in [one.name for one in request.tools]
    refused = Stub(pb.RegisterToolsResponse(success=False, error_message="no"))
    assert GuideAdapter().register_with_session("s", refused) == []
    assert GuideAdapter().register_with_session("s", Stub(RuntimeError("gone"))) == []

    class Call:
        def __await__(self) -> Iterator[None]:
            yield

    assert "add" in GuideAdapter().register_with_session("s", Stub(Call()))


def test_an_instance_for_all_calls() -> None:
    definition = load("tests.adapters_013.ConcurrentAdapter").find("predict_shared")
    assert definition.adapter is not None
    assert definition.adapter.shared
    assert not definition.adapter.serial
    assert definition.serial_key is None
    assert definition.adapter.instance() is definition.adapter.instance()
    assert run(definition, input_data="x")["cached"] is False
    assert run(definition, input_data="x")["cached"] is True
    stats = run(load("tests.adapters_013.ConcurrentAdapter").find("get_statistics"))
    assert stats["log_size"] == 0  # loaded again: another instance
    assert stats["tracker"]["total_active_requests"] == 1


def test_threads_and_their_storage() -> None:
    adapter = ConcurrentAdapter()
    adapter.set_thread_local("a", 1)
    adapter.set_thread_local("b", 2)
    seen: list[object] = []

    def elsewhere() -> None:
        seen.append(adapter.get_thread_local("a", "none"))
        with adapter.acquire_lock(), adapter.acquire_lock(), adapter.track_request("r"):
            seen.append(adapter.get_stats()["tracker"]["active_threads"])

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == ["none", 1]
    adapter.clear_thread_local("a")
    adapter.clear_thread_local("a")
    assert adapter.get_thread_local("a") is None
    assert adapter.get_thread_local("b") == 2
    adapter.clear_thread_local()
    assert adapter.get_thread_local("b") is None
    with adapter.track_request() as number:
        assert number == 2
    assert adapter.get_stats() == {
        "adapter_class": "ConcurrentAdapter",
        "thread_safe": True,
        "tracker": {
            "total_requests": 2,
            "active_threads": 0,
            "total_active_requests": 0,
            "threads_seen": 2,
        },
    }


def test_counted_methods() -> None:
    class Forgetful(ThreadSafeAdapter):
        def __init__(self) -> None:  # without super().__init__()
            self.made = True

        @thread_safe_method
        def work(self, value: int) -> int:
            active: int = self.get_stats()["tracker"]["total_active_requests"]
            return value + active

        @thread_safe_method
        def fail(self) -> None:
            raise ValueError("x")

    adapter = Forgetful()
    assert adapter.work(1) == 2
    with pytest.raises(ValueError, match="x"):
        adapter.fail()
    assert adapter.get_stats()["tracker"]["total_active_requests"] == 0
    assert adapter.get_stats()["tracker"]["total_requests"] == 2
    assert Forgetful.work.__thread_safe__  # type: ignore[attr-defined]

    class Foreign:
        @thread_safe_method
        def work(self, value: int) -> int:
            return value

    assert Foreign().work(3) == 3


def test_declared_thread_safety() -> None:
    class Unsafe(ThreadSafeAdapter):
        __thread_safe__ = False

    assert validate_thread_safety(ConcurrentAdapter)
    assert not validate_thread_safety(GuideAdapter)
    assert not validate_thread_safety(Unsafe)

    @require_thread_safe
    def handle(adapter: object, value: int) -> int:
        return value

    assert handle(ConcurrentAdapter(), 3) == 3
    with pytest.raises(ValueError, match="__thread_safe__ = True"):
        handle(GuideAdapter(), 3)


def test_an_adapter_that_is_told_the_name() -> None:
    toolbox = load("tests.adapters_04.GenericAdapter")
    assert not toolbox.definitions
    ping = toolbox.find("ping")
    other = toolbox.find("anything at all")
    assert ping.dispatched
    assert ping.name == "ping"
    assert other.name == "anything at all"
    assert ping.kind is Kind.PLAIN
    assert ping.adapter is other.adapter
    assert ping.spec().name == "ping"
    arguments = {"a": [1], "self": 2, "tool_name": 3}
    assert ping.convert(arguments) == arguments
    for name in ("", "x" * 257, "a\0b", "\ud800"):
        with pytest.raises(ToolNotFound):
            toolbox.find(name)


def test_an_adapter_that_announces_in_its_own_words() -> None:
    toolbox = load("tests.adapters_04.AnnouncingAdapter")
    assert list(toolbox.definitions) == ["ping", "echo", "stream"]
    spec = toolbox.find("echo").spec()
    assert spec.description == "Give back"
    assert [(one.name, one.type, one.required) for one in spec.parameters] == [
        ("message", "string", True),
        ("times", "integer", False),
    ]
    assert json.loads(spec.parameters[1].default_value.value) == 1
    assert dict(spec.metadata) == {"since": "0.4"}
    assert toolbox.find("stream").supports_streaming
    assert all(toolbox.find(name).dispatched for name in ("ping", "session"))
    assert toolbox.find("echo").convert({"whatever": 1}) == {"whatever": 1}


def test_an_adapter_that_announces_some_and_runs_more() -> None:
    toolbox = load("tests.adapters_013.DelegatingAdapter")
    assert list(toolbox.definitions) == ["announced"]
    announced = toolbox.find("announced")
    assert announced.dispatched
    assert announced.kind is Kind.PLAIN
    assert [one.name for one in announced.parameters] == ["value"]
    assert toolbox.find("hidden").dispatched
    assert [one.name for one in DelegatingAdapter().get_tools()] == ["announced"]


def test_announcing_undecorated_methods_and_hiding_marked_ones(write: Write) -> None:
    name = write(
        "class A(BaseAdapter):\n"
        "    @tool\n"
        "    def hidden(self): ...\n"
        "    @tool('Marked')\n"
        "    def shown(self, a: int): return a\n"
        "    def bare(self, a: float, session: 'SessionContext' = None): return a\n"
        "    def get_tools(self):\n"
        "        mine = [t for t in super().get_tools() if t.name == 'shown']\n"
        "        mine[0].description = 'Told otherwise'\n"
        "        return [*mine, {'name': 'bare', 'description': 'Bare'}]\n"
    )
    toolbox = load(f"{name}.A")
    assert list(toolbox.definitions) == ["shown", "bare"]
    assert toolbox.find("shown").description == "Told otherwise"
    assert run(toolbox.find("shown"), a=1) == 1
    with pytest.raises(InvalidRequest):
        toolbox.find("shown").convert({})
    bare = toolbox.find("bare")
    assert bare.context_parameter == "session"
    assert run(bare, a=1) == 1.0
    with pytest.raises(ToolNotFound):
        toolbox.find("hidden")


@pytest.mark.parametrize("order", ["@tool\n    @{}", "@{}\n    @tool"])
@pytest.mark.parametrize("kind", ["staticmethod", "classmethod"])
def test_static_and_class_methods(write: Write, kind: str, order: str) -> None:
    first = "cls, " if kind == "classmethod" else ""
    name = write(
        "class A:\n"
        f"    {order.format(kind)}\n"
        f"    def double({first}n: int) -> int: return n * 2\n"
        f"    {order.format(kind)}\n"
        f"    async def later({first}n: int) -> int: return n\n"
    )
    toolbox = load(f"{name}.A")
    definition = toolbox.find("double")
    assert [one.name for one in definition.parameters] == ["n"]
    assert run(definition, n=2) == 4
    assert toolbox.find("later").kind is Kind.ASYNC
    assert getattr(sys.modules[name], "A").double(3) == 6  # noqa: B009 - of a module made here


def test_inherited_and_overridden_methods(write: Write) -> None:
    name = write(
        "class Base(BaseAdapter):\n"
        "    @tool\n"
        "    def kept(self): return 'base'\n"
        "    @tool\n"
        "    def dropped(self): ...\n"
        "    @tool\n"
        "    def changed(self): return 'base'\n"
        "class A(Base):\n"
        "    def dropped(self): ...\n"
        "    @tool\n"
        "    def changed(self): return 'mine'\n"
    )
    toolbox = load(f"{name}.A")
    assert list(toolbox.definitions) == ["kept", "changed"]
    assert run(toolbox.find("changed")) == "mine"


def test_options_on_execute_tool_hold_for_all_it_runs(write: Write) -> None:
    name = write(
        "class A:\n"
        "    @tool(timeout=3, isolation='process', sensitive=['key'])\n"
        "    def execute_tool(self, tool_name, arguments, context): ...\n"
    )
    definition = load(f"{name}.A").find("some")
    assert definition.timeout == 3
    assert definition.isolation == "process"
    assert definition.sensitive == {"key"}
    assert definition.name == "some"


def test_nested_classes_and_colons(write: Write) -> None:
    name = write("class Outer:\n    class Inner:\n        @tool\n        def a(self): ...\n")
    assert load(f"{name}.Outer.Inner").find("a").source == f"{name}.Outer.Inner"
    assert load(f"{name}:Outer.Inner").find("a").source == f"{name}.Outer.Inner"


def test_a_source_loads_the_same_again() -> None:
    for name in ("snakepit_bridge.showcase", "tests.adapters_013.GuideAdapter"):
        for definition in load(name).definitions.values():
            assert definition.name in load(definition.source).definitions


def test_the_current_directory_is_on_the_path(tmp_path: Path) -> None:
    (tmp_path / "made_here.py").write_text(
        "from snakepit_bridge import tool\n@tool\ndef here(): ...\n"
    )
    code = (
        "import sys; sys.path = [p for p in sys.path if p]\n"
        "from snakepit_bridge.tools.adapters import load_toolbox\n"
        "print(*load_toolbox(['made_here'], entry_points=False).definitions)"
    )
    root = str(Path(snakepit_bridge.__file__).parents[1])
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"PYTHONPATH": root},
    )
    assert ran.stdout.split() == ["here"]


def test_entry_points_of_installed_packages(write: Write, tmp_path: Path) -> None:
    write("@tool\ndef offered(): ...\n", "made_offer.py")
    write("class A:\n    @tool\n    def also(self): ...\n", "made_class.py")
    info = tmp_path / "made-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: made\nVersion: 1.0\n")
    points = info / "entry_points.txt"
    points.write_text("[snakepit_bridge.tools]\none = made_offer\ntwo = made_class:A\n")
    sys.path.insert(0, str(tmp_path))
    assert {"offered", "also"} <= set(load_toolbox([]).definitions)
    assert not load().definitions
    # Asked for as well: once is enough.
    assert list(load_toolbox(["made_offer"]).definitions)[0] == "offered"  # noqa: RUF015 - the order
    points.write_text("[snakepit_bridge.tools]\none = made_nowhere\n")
    with pytest.raises(AdapterUnusable, match=r"no module made_nowhere.*entry point one of made"):
        load_toolbox([])


def test_two_tools_of_one_name() -> None:
    message = unusable(
        "snakepit_bridge.showcase", "snakepit_bridge.adapters.showcase.ShowcaseAdapter"
    )
    assert "two tools are called 'echo'" in message
    assert "snakepit_bridge.showcase," in message
    assert "snakepit_bridge.adapters.showcase.ShowcaseAdapter" in message


def test_a_tool_that_is_not_there() -> None:
    toolbox = load("snakepit_bridge.showcase")
    with pytest.raises(ToolNotFound, match="tool 'ecko' not found: did you mean 'echo'"):
        toolbox.find("ecko")
    with pytest.raises(ToolNotFound, match="10 others are, and InitializeSession names them"):
        toolbox.find("zzzzzzzz")
    with pytest.raises(ToolNotFound) as caught:
        toolbox.find("x" * 10_000_000)
    assert len(caught.value.message) < 1_000


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("made_nowhere", "there is no module made_nowhere"),
        ("tests.made_nowhere", "tests has no made_nowhere"),
        ("tests.adapters_013.GuideAdaptor", "did you mean GuideAdapter"),
        ("tests.adapters_013", "name the class: tests.adapters_013.GuideAdapter or"),
        ("snakepit_bridge.showcase.echo", "name snakepit_bridge.showcase"),
        ("adapter.py", "write package.module"),
        ("./adapter", "write package.module"),
        ("", "write package.module"),
        ("a..b", "write package.module"),
        ("json", "mark some with @tool"),
        ("snakepit_bridge.base_adapter.BaseAdapter", "has no tools"),
        ("collections.OrderedDict", "has no tools"),
    ],
)
def test_names_that_load_nothing(name: str, words: str) -> None:
    assert words in unusable(name)


@pytest.mark.parametrize(
    ("text", "inside", "words"),
    [
        ("import made_missing\n", "", "ModuleNotFoundError: No module named 'made_missing'"),
        ("import made_missing\n", "", "(made_tools, line 2)"),
        ("def (\n", "", "SyntaxError"),
        ("1 / 0\n", "", "ZeroDivisionError: division by zero (made_tools, line 2)"),
        ("raise ValueError('one\\ntwo')\n", "", "ValueError: one (made_tools"),
        ("import sys; sys.exit(3)\n", "", "SystemExit: 3"),
        ("@tool\ndef f(*a): ...\n", "", "made_tools.f cannot be a tool: arguments come by name"),
        ("class A:\n    @tool\n    def f(): ...\n", ".A", "takes no instance: add self"),
        ("class A:\n    @tool\n    def f(self, *a): ...\n", ".A", "made_tools.A.f cannot be"),
        ("class A:\n    def __init__(self, x): ...\n", ".A", "made without arguments"),
        (
            "class A:\n    __thread_safe__ = True\n    def __init__(self): 1 / 0\n",
            ".A",
            "made_tools.A() failed: ZeroDivisionError: division by zero (made_tools, line 4)",
        ),
        (
            "class A(BaseAdapter):\n    def get_tools(self): return [3]\n",
            ".A",
            "must give ToolRegistration messages, or dicts",
        ),
        (
            "class A(BaseAdapter):\n    def get_tools(self): return [{'name': 'x'}]\n",
            ".A",
            "announces 'x', and it has neither such a method nor execute_tool",
        ),
        (
            "import abc\nclass A(abc.ABC):\n    @abc.abstractmethod\n    def f(self): ...\n",
            ".A",
            "made_tools.A is abstract: define f",
        ),
        ("@tool('a')\ndef f(): ...\n@tool(name='f')\ndef g(): ...\n", "", "two tools are called"),
    ],
)
def test_code_that_cannot_be_loaded(write: Write, text: str, inside: str, words: str) -> None:
    assert words in unusable(write(text) + inside)


def test_a_failing_import_is_not_remembered(write: Write) -> None:
    name = write("import made_missing\n@tool\ndef f(): ...\n")
    unusable(name)
    write("", "made_missing.py")
    assert "f" in load(name).definitions


def test_two_adapters_that_take_any_name(caplog: pytest.LogCaptureFixture) -> None:
    first, second = "tests.adapters_04.GenericAdapter", "tests.adapters_04.AsyncGenericAdapter"
    toolbox = load(first, second)
    assert toolbox.find("any").source == first
    assert f"go to {first}, none to {second}" in caplog.text


def test_functions_beside_an_adapter_that_takes_any_name() -> None:
    toolbox = load("tests.adapters_04.GenericAdapter", "snakepit_bridge.showcase")
    assert not toolbox.find("echo").dispatched
    assert toolbox.find("other").dispatched


def test_the_names_that_snakepits_adapters_import() -> None:
    for module in (base_adapter, base_adapter_threaded):
        assert module.tool is tool
        assert module.BaseAdapter is BaseAdapter
        assert isinstance(module, ModuleType)
    showcase_tool = importlib.import_module("snakepit_bridge.adapters.showcase.tool")
    assert showcase_tool.StreamChunk is snakepit_bridge.StreamChunk
    assert snakepit_bridge.tool is tool
    assert snakepit_bridge.BaseAdapter is BaseAdapter
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        snakepit_bridge.nothing  # noqa: B018


def test_an_adapter_that_forgets_its_base() -> None:
    adapter = load("tests.adapters_013.AsyncLifeAdapter").find("is_ready").adapter
    assert isinstance(adapter, Adapter)
    instance: Any = adapter.instance()
    assert instance.session_context is None
    instance.set_session_context("s")
    assert instance.session_context == "s"
    assert [one.name for one in instance.get_tools()] == ["is_ready"]
