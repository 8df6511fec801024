"""What docs/ says: its examples run as they are written, its tables compared with the code.

A fenced block of ``sh`` or ``python`` that is followed by one of ``text`` has to print that;
``...`` stands for anything there.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import pkgutil
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
import typer
from google.protobuf.any_pb2 import Any as AnyMessage

import snakepit_bridge
from snakepit_bridge import errors
from snakepit_bridge.cli.app import app
from snakepit_bridge.cli.units import duration, size
from snakepit_bridge.events.sqlite_reading import FULL
from snakepit_bridge.events.urls import open_copy
from snakepit_bridge.events.verification import all_heads
from snakepit_bridge.limits import DEFAULTS, Limits
from snakepit_bridge.rpc import SERVICE
from tests.bridge_process import BridgeProcess
from tests.wire_session import Session, refused

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
PROTOCOL, OPERATIONS, LIMITS = (
    (ROOT / "docs" / name).read_text() for name in ("protocol.md", "operations.md", "limits.md")
)
PATIENCE = 60.0
"""Seconds that a command of the docs may take."""


class Example(NamedTuple):
    language: str
    code: str
    printed: str | None


_EXAMPLE = re.compile(
    r"^```(sh|python)\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL
)


def examples(text: str) -> list[Example]:
    return [Example(*match.groups()) for match in _EXAMPLE.finditer(text)]


def require_like(said: str, expected: str) -> None:
    """Compare what was printed with what the docs print, line by line but for ``...``."""
    said = "\n".join(line.rstrip() for line in said.strip().splitlines())
    said, expected = (re.sub(r"\b[0-9a-f]{16}\b", "<epoch>", text) for text in (said, expected))
    pattern = re.escape(expected.strip())
    pattern = re.sub(r"(?m)^(\\ )*\\\.\\\.\\\.$", "(?s:.*?)", pattern).replace(r"\.\.\.", ".*?")
    assert re.fullmatch(pattern, said), f"printed:\n{said}\n\nin the docs:\n{expected}"


def rows(text: str, *heads: str) -> list[list[str]]:
    """The rows of the tables whose heads are these, without backquotes."""
    found: list[list[str]] = []
    inside = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if not line.startswith("|"):
            inside = False
        elif inside and not line.startswith("|-"):
            found.append([cell.removeprefix("`").removesuffix("`") for cell in cells])
        elif not inside:
            inside = [cell.strip("| ") for cell in cells] == list(heads)
    assert found, heads
    return found


def shell(script: str, directory: Path) -> str:
    """Run lines of the docs, with the tools of this environment, on files of the test's own."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script.replace("/var/lib/snakepit_bridge", str(directory))],
        cwd=ROOT,
        env={**os.environ, "PATH": path, "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.stdout.replace(str(directory), "/var/lib/snakepit_bridge")


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: doc.name)
def test_links_lead_somewhere(doc: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", doc.read_text()):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        other = (doc.parent / name).resolve() if name else doc
        assert other.exists(), target
        if anchor:
            heads = re.findall(r"(?m)^#+ (.*)$", other.read_text())
            assert anchor in {_anchor(head) for head in heads}, target


def _anchor(head: str) -> str:
    return re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-")


# protocol.md

_JSON_HEADS = ("type", "`Any.value` sent", "the `Any` that comes back, in hex")


SERVED = {"client.md": ("--adapter", "snakepit_bridge.showcase")}
"""What a page says its bridge is started with."""


@pytest.mark.parametrize("page", ["client.md", "protocol.md", "watching.md"])
def test_the_examples_print_what_they_say(page: str, tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    with BridgeProcess(tmp_path / "bridge.db", *SERVED.get(page, ())) as bridge:
        try:
            for language, code, printed in examples((ROOT / "docs" / page).read_text()):
                here = code.replace("localhost:50050", f"localhost:{bridge.port}")
                if language == "sh":
                    said = shell(here.replace(".venv/bin/", ""), tmp_path)
                else:
                    with contextlib.redirect_stdout(io.StringIO()) as out:
                        exec(compile(here, page, "exec"), names)
                    said = out.getvalue()
                require_like(said, printed or "")
        finally:
            if "channel" in names:
                names["channel"].close()
        assert bridge.stop() == 0


def test_the_terminal_prints_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = ("--adapter", "snakepit_bridge.showcase")
    with BridgeProcess(tmp_path / "bridge.db", *tools) as bridge:
        monkeypatch.setenv("SNAKEPIT_BRIDGE_TARGET", f"localhost:{bridge.port}")
        for _, code, printed in examples((ROOT / "docs" / "terminal.md").read_text()):
            said = shell(f"cd {tmp_path}\n{code}", tmp_path)
            require_like(said.replace(f":{bridge.port}", ":50050"), printed or "")
        assert bridge.stop() == 0


def variable(session: Session, name: str, type_: str, value: AnyMessage, binary: bytes) -> Any:  # noqa: ANN401
    session.call(
        "RegisterVariable", name=name, type=type_, initial_value=value, initial_binary_value=binary
    )
    return session.get(name)


def test_values_are_the_bytes_that_the_protocol_shows(session: Session) -> None:
    table = rows(PROTOCOL, *_JSON_HEADS)
    for number, (type_, json, shown) in enumerate(table):
        sent = AnyMessage(type_url=f"dspex.variables/{type_}", value=json.encode())
        got = variable(session, f"v{number}", type_, sent, b"")
        assert got.value.SerializeToString().hex() == shown
        old = AnyMessage(type_url=f"type.googleapis.com/snakepit.{type_}", value=json.encode())
        session.call("SetVariable", variable_identifier=f"v{number}", value=old)
        assert session.get(f"v{number}").value.type_url == old.type_url
    types = ", ".join(dict.fromkeys(row[0] for row in table))
    with refused("INVALID_ARGUMENT", f"expected one of {types}"):
        session.register("x", 1, "unknown")


def test_binary_values_are_the_bytes_that_the_protocol_shows(session: Session) -> None:
    table = rows(PROTOCOL, "type", "`Any.value`", "bytes, in hex")
    for number, (type_, json, shown) in enumerate(table):
        sent = AnyMessage(type_url=f"dspex.variables/{type_}.binary", value=json.encode())
        got = variable(session, f"v{number}", type_, sent, bytes.fromhex(shown))
        assert (got.value, got.binary_value.hex()) == (sent, shown)


def test_what_the_protocol_says_is_refused_is_refused(session: Session) -> None:
    good = {row[0]: row[1] for row in rows(PROTOCOL, *_JSON_HEADS)}
    made: set[str] = set()
    for type_, json, words in rows(PROTOCOL, "type", "`Any.value`", "words in the message"):
        if type_ not in made:
            made.add(type_)
            variable(session, type_, type_, _any(type_, good[type_]), b"")
        with refused("INVALID_ARGUMENT", words):
            session.call("SetVariable", variable_identifier=type_, value=_any(type_, json))


def _any(type_: str, json: str) -> AnyMessage:
    return AnyMessage(type_url=f"dspex.variables/{type_}", value=json.encode())


def test_every_error_is_in_the_table_of_the_protocol() -> None:
    def below(kind: type[errors.BridgeError]) -> Iterator[type[errors.BridgeError]]:
        yield kind
        for sub in kind.__subclasses__():
            if sub.__module__ == errors.__name__:
                yield from below(sub)

    kinds = {(kind.code, kind.reason) for kind in below(errors.BridgeError)}
    kinds.discard(("NOT_FOUND", "NOT_FOUND"))  # always one of those below it
    table = rows(PROTOCOL, "status", "reason", "when", "facts", "what to do")
    assert [(row[0], row[1]) for row in table] == list(dict.fromkeys((r[0], r[1]) for r in table))
    assert {(row[0], row[1]) for row in table} == kinds


def test_the_protocol_says_what_is_served(bridge: BridgeProcess) -> None:
    def named(after: str) -> set[str]:
        found = re.search(rf"^{after}(.*?)\n\n", PROTOCOL, re.MULTILINE | re.DOTALL)
        assert found, after
        return set(re.findall(r"`(\w+)`", found[1]))

    absent = set()
    for method in SERVICE.methods:
        path = f"/{SERVICE.full_name}/{method.name}"
        call: Any = bridge.channel.stream_stream(path)
        answers = call(iter([b""]), timeout=30)
        try:
            list(answers)
        except grpc.RpcError:
            if answers.code() is grpc.StatusCode.UNIMPLEMENTED:
                absent.add(method.name)
    assert named("Answered with UNIMPLEMENTED in this release:") == absent
    assert named("Served:") == {method.name for method in SERVICE.methods} - absent


# limits.md


OPTIONS: dict[str, Any] = {
    option.opts[0]: option
    for option in typer.main.get_command(app).commands["serve"].params  # type: ignore[attr-defined]
    if option.name != "help"
}


def test_every_limit_that_can_be_chosen_is_in_the_table() -> None:
    table = rows(LIMITS, "limit", "option", "default", "why so", "beyond it")
    assert [row[0] for row in table] == list(Limits._fields)
    for name, option, default, *_ in table:
        wanted = getattr(DEFAULTS, name)
        # None: what follows from another option.
        assert OPTIONS[option].default in {wanted, None}, option
        if isinstance(wanted, float) or name.endswith(("ttl", "age", "lifetime")):
            assert wanted == (None if default == "none" else duration(default)), name
        else:
            assert wanted == size(default), name


FIXED = rows(LIMITS, "constant", "value", "of what", "why so", "beyond it")


@pytest.mark.parametrize(("constant", "value"), [row[:2] for row in FIXED])
def test_fixed_limits_are_what_the_table_says(constant: str, value: str) -> None:
    module, _, name = constant.rpartition(".")
    power, _, less = value.replace(",", "").partition("-")
    base, _, exponent = power.partition("^")
    wanted = int(base) ** int(exponent or 1) - int(less or 0)
    assert getattr(importlib.import_module(f"snakepit_bridge.{module}"), name) == wanted


def test_no_limit_is_missing_from_the_table() -> None:
    is_limit = re.compile(r"(MAX_\w+|\w+_LIMIT|\w+_AT_ONCE|REMEMBERED_\w+|CACHED)")
    found = set()
    for info in pkgutil.walk_packages(snakepit_bridge.__path__, "snakepit_bridge."):
        if info.ispkg or info.name.endswith(("_pb2", "_pb2_grpc")):
            continue
        source = Path(str(importlib.import_module(info.name).__file__)).read_text()
        for name in re.findall(r"^(\w+)(?:: \w+)? = ", source, re.MULTILINE):
            if is_limit.fullmatch(name):
                found.add(f"{info.name.removeprefix('snakepit_bridge.')}.{name}")
    assert found <= {row[0] for row in FIXED}


# operations.md


def test_every_option_of_serve_is_in_the_table() -> None:
    table = rows(OPERATIONS, "option", "environment", "default", "what")
    assert [row[0] for row in table] == list(OPTIONS)
    for name, environment, default, _ in table:
        option = OPTIONS[name]
        variables = [option.envvar] if isinstance(option.envvar, str) else option.envvar
        assert environment.split("`, `") == list(variables)
        shown = option.show_default
        wanted = shown if isinstance(shown, str) else option.default or "none"
        assert default == str(wanted), name


def test_what_a_full_disk_is_answered_with_is_quoted() -> None:
    assert f"RESOURCE_EXHAUSTED: `{FULL}`" in OPERATIONS


def test_the_unit_starts_with_options_that_there_are() -> None:
    (line,) = re.findall(r"^ExecStart=\S+/snakepit-bridge serve (.*)$", OPERATIONS, re.MULTILINE)
    command: Any = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    parsed = command.make_context("serve", line.split())
    assert parsed.params["log"].startswith("sqlite:/var/lib/snakepit_bridge/")


def outputs(code: str) -> list[str]:
    """The blocks of ``text`` that come after a piece of the page, up to the next heading."""
    section = OPERATIONS[OPERATIONS.index(code) :].split("\n## ")[0]
    return re.findall(r"^```text\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


@pytest.fixture
def sqlite3_tool(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command of that name; where it is not installed, enough of it."""
    if shutil.which("sqlite3"):
        return
    directory = tmp_path_factory.mktemp("bin")
    tool = directory / "sqlite3"
    tool.write_text(
        f"#!{sys.executable}\nimport sqlite3, sys\nfile = sqlite3.connect(sys.argv[1])\n"
        "what, _, where = sys.argv[2].partition(' ')\n"
        "file.execute(what) if where == '' else file.backup(sqlite3.connect(where))\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


def command_with(*words: str) -> Example:
    (found,) = (e for e in examples(OPERATIONS) if all(word in e.code for word in words))
    return found


def test_backups_restores_and_damage_are_as_the_operator_is_told(
    tmp_path: Path, sqlite3_tool: None
) -> None:
    path = tmp_path / "bridge.db"
    with BridgeProcess(path) as bridge:
        tour = Session(bridge, "tour")
        tour.register("x")
        for number in range(2):
            tour.set("x", number)
        tour.register("large", "a" * 200_000, "string")
        Session(bridge, "other").start()
        Session(bridge, "other").register("y")
        # A file alone, of a running bridge, is well and holds nothing.
        (tmp_path / "alone.db").write_bytes(path.read_bytes())
        with contextlib.closing(open_copy(f"sqlite:{tmp_path}/alone.db")) as alone:
            assert not list(alone.faults())
            assert not list(all_heads(alone))
        backup = command_with(".backup")
        require_like(shell(backup.code, tmp_path), backup.printed or "")
        for number in range(3):
            tour.set("x", number, request_id="lost" if number == 2 else "")
        lost = tour.call("GetSession")
        bridge.kill()
    for left in (path, *(tmp_path / "bridge.db.values").iterdir()):
        left.unlink()
    restore = command_with("rm -f bridge.db-wal")
    require_like(shell(restore.code, tmp_path), restore.printed or "")
    with BridgeProcess(path) as bridge:
        tour = Session(bridge, "tour")
        now = tour.call("GetSession")
        assert (now.log_epoch, now.offset) == (lost.log_epoch, 5)
        with refused("OUT_OF_RANGE", "future"):
            tour.get("x", min_offset=lost.offset, log_epoch=lost.log_epoch)
        assert not tour.set("x", 2, request_id="lost").duplicate
        assert bridge.stop() == 0
    assert shell(command_with("VACUUM").code, tmp_path) == ""
    shutil.copy(tmp_path / "backup" / "bridge.db", path)
    verify, json = command_with("echo"), command_with("--json")
    well, changed, _, overwritten = outputs(verify.code)
    require_like(shell(verify.code, tmp_path), well)
    with contextlib.closing(sqlite3.connect(path)) as file, file:
        file.execute("UPDATE records SET header = zeroblob(length(header)) WHERE first_offset = 3")
    require_like(shell(verify.code, tmp_path), changed)
    require_like(shell(json.code, tmp_path), json.printed or "")
    with path.open("r+b") as raw:
        for page in range(1, path.stat().st_size // 4096):
            raw.seek(4096 * page)
            raw.write(b"\xff" * 4096)
    require_like(shell(verify.code, tmp_path), overwritten)
