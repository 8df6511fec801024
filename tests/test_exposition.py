"""/metrics, /healthz and /readyz of a real bridge, and what hostile clients do to them."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import prometheus_client
import pytest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

from snakepit_bridge.telemetry import exposition
from snakepit_bridge.telemetry.exposition import (
    CONNECTIONS,
    HEAD_BYTES,
    HEAD_WITHIN,
    SCRAPES,
    CannotExpose,
    Exposition,
    registry,
)
from snakepit_bridge.tools.definition import tool
from tests.bridge_process import BridgeProcess
from tests.test_server_process import has_ipv6, listeners, run
from tests.tool_client import ToolSession
from tests.wire_session import Session, refused
from tests.wire_tools import hold, note

ROOT = Path(__file__).parent.parent

SOON = 5.0
"""Seconds for what takes milliseconds."""

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


def ask(port: int, path: str, method: str = "GET", **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SOON)
    with contextlib.closing(connection):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers=named)
        response = connection.getresponse()
        return Answer(response.status, dict(response.getheaders()), response.read())


def samples(text: str, parse: Callable[[str], Iterable[Any]] = parse_text) -> dict[str, float]:
    return {each.name: each.value for family in parse(text) for each in family.samples}


def eventually(check: Callable[[], bool], what: str, within: float = SOON) -> None:
    end = time.monotonic() + within
    while not check():
        assert time.monotonic() < end, f"after {within} s not yet: {what}"
        time.sleep(0.01)


class ExposedBridge(BridgeProcess):
    """One that serves metrics on any free port."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        targets = directory / "targets"
        chosen = ("--metrics-port", "0", "--metrics-sd-dir", str(targets))
        super().__init__(directory / "bridge.db", *chosen, *arguments)
        # Written before readiness is announced.
        (file,) = targets.glob("*.json")
        ((self.address,),) = (group["targets"] for group in json.loads(file.read_text()))
        self.metrics = int(self.address.rpartition(":")[2])

    def ask(self, path: str, method: str = "GET", **headers: str) -> Answer:
        return ask(self.metrics, path, method, **headers)


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExposedBridge]:
    with ExposedBridge(tmp_path_factory.mktemp("exposed")) as process:
        yield process
        assert process.stop() == 0
        # Nothing that these tests ask for, or do not wait for, is worth a line.
        assert "Traceback" not in process.stderr
        assert "GET" not in process.stderr


# What is served.


@pytest.mark.parametrize(
    ("accept", "parse", "kind"),
    [
        ("", parse_text, "text/plain"),
        ("*/*", parse_text, "text/plain"),
        ("text/plain; version=0.0.4", parse_text, "text/plain"),
        (OPENMETRICS, parse_openmetrics, "application/openmetrics-text"),
        (f"{OPENMETRICS};q=0.6,text/plain;q=0.5", parse_openmetrics, "application/openmetrics"),
    ],
)
def test_both_formats_can_be_read(
    bridge: ExposedBridge, accept: str, parse: Callable[[str], Iterable[Any]], kind: str
) -> None:
    answer = bridge.ask("/metrics", Accept=accept)
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith(kind)
    assert int(answer.headers["Content-Length"]) == len(answer.body)
    found = samples(answer.text, parse)
    expected = {"process_resident_memory_bytes", "python_gc_collections_total", "python_info"}
    assert expected <= found.keys()
    assert not [name for name in found if name.endswith("_created")]


def test_it_tells_of_the_process_of_the_bridge(bridge: ExposedBridge) -> None:
    found = samples(bridge.ask("/metrics").text)
    stat = Path(f"/proc/{bridge.process.pid}/statm").read_text().split()
    assert found["process_resident_memory_bytes"] > int(stat[1]) * 4_096 / 4
    assert found["process_open_fds"] > 5


def test_compression_and_a_choice_of_names(bridge: ExposedBridge) -> None:
    packed = bridge.ask("/metrics", Accept_Encoding="gzip")
    assert packed.headers["Content-Encoding"] == "gzip"
    assert "python_info" in samples(gzip.decompress(packed.body).decode())
    chosen = bridge.ask("/metrics?name[]=python_info&name[]=process_open_fds")
    assert samples(chosen.text).keys() == {"python_info", "process_open_fds"}


def test_probes(bridge: ExposedBridge) -> None:
    for path in ("/healthz", "/readyz", "/readyz?verbose"):
        answer = bridge.ask(path)
        assert (answer.status, answer.text) == (200, "ok\n")


def test_other_paths_and_methods_are_refused_in_words(bridge: ExposedBridge) -> None:
    for path in ("/", "/metricsx", "/metrics/", "//", "/%00", "*"):
        answer = bridge.ask(path)
        assert (answer.status, answer.text) == (404, "served are /metrics, /healthz, /readyz\n")
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "NONSENSE"):
        answer = bridge.ask("/metrics", method)
        assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
        assert method in answer.text


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz", "/other"])
def test_of_a_head_request_there_is_only_the_head(bridge: ExposedBridge, path: str) -> None:
    whole, head = bridge.ask(path), bridge.ask(path, "HEAD")
    assert (head.status, head.body) == (whole.status, b"")
    assert head.headers.keys() == whole.headers.keys()
    raw = send(bridge.metrics, f"HEAD {path} HTTP/1.1\r\n\r\n".encode())
    assert raw.endswith(b"\r\n\r\n")
    if path != "/metrics":  # whose numbers move
        assert head.headers["Content-Length"] == str(len(whole.body))


@pytest.mark.parametrize(
    "accept",
    [
        "text/plain;version=x",
        "application/openmetrics-text;version=x.y",
        "application/openmetrics-text;version=",
        ",;=" * 500,
        "\xff",
    ],
)
def test_an_accept_header_that_nobody_understands_is_as_good_as_none(
    bridge: ExposedBridge, accept: str
) -> None:
    answer = bridge.ask("/metrics", Accept=accept)
    assert answer.status == 200
    assert answer.body


def send(port: int, content: bytes) -> bytes:
    """Send bytes and read until the end."""
    with socket.create_connection(("127.0.0.1", port), timeout=SOON) as connection:
        connection.sendall(content)
        got = b""
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65_536):
                got += part
        return got


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"505"),
        (b"GET / HTTP/9.9.9\r\n\r\n", b"400"),
        (b"a b c d e\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", b"431"),
        (b"GET / HTTP/1.1\r\nx: " + b"x" * (HEAD_BYTES + 1) + b"\r\n\r\n", b"431"),
        (b"GET /healthz HTTP/1.1\r\nExpect: 100-continue\r\n\r\n", b"200"),
        (b"GET http://[ HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /healthz\r\n\r\n", b"200"),
        (b"\r\n\r\n", b""),
    ],
)
def test_what_is_no_request_is_answered_and_not_logged(
    bridge: ExposedBridge, content: bytes, status: bytes
) -> None:
    got = send(bridge.metrics, content)
    assert got.split(b" ")[1:2] == ([status] if status else [])
    assert bridge.ask("/healthz").status == 200


def test_created_series_are_off_for_every_kind() -> None:
    own = registry()
    prometheus_client.Counter("c", "c", registry=own).inc()
    prometheus_client.Histogram("h", "h", registry=own).observe(1)
    prometheus_client.Summary("s", "s", registry=own).observe(1)
    with exposed(own) as port:
        for accept in ("", OPENMETRICS):
            text = ask(port, "/metrics", Accept=accept).text
            assert "h_count 1" in text
            assert "_created" not in text


def test_a_registry_is_nobody_elses() -> None:
    assert registry() is not registry()
    assert registry() is not prometheus_client.REGISTRY


# Clients that take their time.


@contextlib.contextmanager
def slow_connections(port: int, count: int, sent: bytes) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            connection = socket.create_connection(("127.0.0.1", port), timeout=3 * HEAD_WITHIN)
            found.append(stack.enter_context(connection))
            with contextlib.suppress(ConnectionError):  # closed again already
                connection.sendall(sent)
        yield found


def ended(connection: socket.socket) -> bool:
    """Whether the other side closes it, within the time-out of the socket."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


def test_two_hundred_that_never_finish_their_request_stop_nobody(bridge: ExposedBridge) -> None:
    session = Session(bridge, "beside slow clients")
    with slow_connections(bridge.metrics, 200, b"GET /metrics HT") as connections:
        began = time.monotonic()
        for number in range(10):
            assert bridge.ask("/metrics").status == 200
            assert bridge.ask("/readyz").status == 200
            session.register(f"x{number}")
        assert time.monotonic() - began < SOON
        assert samples(bridge.ask("/metrics").text)["process_open_fds"] < CONNECTIONS + 60
        assert all(ended(connection) for connection in connections)


def test_who_sends_a_little_at_a_time_gets_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "HEAD_WITHIN", 0.3)
    with exposed() as port, slow_connections(port, 1, b"GET /healthz HTTP/1.1\r\n") as (slow,):
        slow.settimeout(0.05)
        end = time.monotonic() + SOON
        while time.monotonic() < end:
            try:
                slow.sendall(b"a: b\r\n")
                if slow.recv(1) == b"":
                    return
            except TimeoutError:
                continue
            except ConnectionError:
                return
        raise AssertionError("it is still served")


class Large:
    """A collector of 40 MB, more than sockets hold."""

    def collect(self) -> Iterator[InfoMetricFamily]:
        yield InfoMetricFamily("large", "", {"x": "x" * 40_000_000})


def test_who_does_not_read_stops_nobody_and_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "READ_WITHIN", 0.5)
    own = registry()
    own.register(Large())
    with (
        exposed(own) as port,
        slow_connections(port, SCRAPES + 2, b"GET /metrics HTTP/1.1\r\n\r\n") as connections,
    ):
        for connection in connections:  # the answer has begun
            assert connection.recv(4) == b"HTTP"
        assert ask(port, "/metrics?name[]=python_info").status == 200
        assert ask(port, "/healthz").status == 200
        eventually(lambda: "ESTABLISHED" not in states(port), "the slow readers are cut off")
        for connection in connections:
            got = 0
            with contextlib.suppress(ConnectionResetError):
                while part := connection.recv(1_000_000):
                    got += len(part)
            assert got < 40_000_000


def test_who_reads_gets_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "READ_WITHIN", 30.0)
    own = registry()
    own.register(Large())
    with exposed(own) as port:
        assert len(ask(port, "/metrics?name[]=large_info").body) > 40_000_000


def states(port: int) -> set[str]:
    """Of the connections that this machine's processes have from this port."""
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, *_ = line.split()
        if int(local.partition(":")[2], 16) == port:
            found.add("ESTABLISHED" if state == "01" else state)
    return found


class Hanging:
    """A collector that answers when it may."""

    def __init__(self) -> None:
        self.may = threading.Event()
        self.may.set()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        assert self.may.wait(60)
        yield GaugeMetricFamily("hung", "", 1)


@contextlib.contextmanager
def exposed(
    own: prometheus_client.CollectorRegistry | None = None, ready: Callable[[], str] = str
) -> Iterator[int]:
    """An exposition in this process; gives its port."""
    served = Exposition(own or registry(), ready)
    port = served.start()
    try:
        yield port
    finally:
        served.close()
    assert not [each for each in threading.enumerate() if each.name == "exposition"]


def test_a_collector_that_hangs_stops_scrapes_but_no_probe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exposition, "SCRAPE_WITHIN", 0.3)
    own, hanging = registry(), Hanging()
    own.register(hanging)
    with exposed(own) as port:
        hanging.may.clear()
        try:
            for _ in range(SCRAPES + 2):
                answer = ask(port, "/metrics")
                assert answer.status == 503
                assert "0.3 s" in answer.text
                assert ask(port, "/healthz").status == 200
            scraping = [each for each in threading.enumerate() if each.name == "scrape"]
            assert len(scraping) == SCRAPES
        finally:
            hanging.may.set()
        eventually(lambda: ask(port, "/metrics").status == 200, "scrapes are answered again")


class Failing:
    def __init__(self) -> None:
        self.fails = False

    def collect(self) -> Iterator[GaugeMetricFamily]:
        if self.fails:
            raise LookupError("a defect of this collector")
        yield GaugeMetricFamily("works", "", 1)


def test_what_fails_is_logged_and_the_next_request_is_answered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    own, failing = registry(), Failing()
    own.register(failing)

    def ready() -> str:
        if failing.fails:
            raise LookupError("a defect of readiness")
        return ""

    with exposed(own, ready) as port:
        failing.fails = True
        assert ask(port, "/metrics").status == 500
        assert ask(port, "/readyz").status == 500
        failing.fails = False
        assert ask(port, "/metrics").status == 200
    assert "a defect of this collector" in caplog.text
    assert "a defect of readiness" in caplog.text


def test_why_it_is_not_ready_is_said() -> None:
    why = ["wörtlich"]
    with exposed(ready=lambda: why[0]) as port:
        answer = ask(port, "/readyz")
        assert (answer.status, answer.text) == (503, "wörtlich\n")
        assert ask(port, "/healthz").status == 200
        why[0] = ""
        assert ask(port, "/readyz").status == 200


def test_closing_frees_the_port_and_waits_for_no_client() -> None:
    served = Exposition(registry(), str)
    served.close()  # never started
    port = served.start()
    with slow_connections(port, 3, b"GET /") as connections:
        began = time.monotonic()
        served.close()
        served.close()
        assert time.monotonic() - began < SOON / 2
        assert all(ended(connection) for connection in connections)
    again = Exposition(registry(), str, port=port)
    assert again.start() == port
    again.close()


# Addresses.


def test_it_is_served_at_the_ipv4_loopback_only(bridge: ExposedBridge) -> None:
    assert bridge.address == f"127.0.0.1:{bridge.metrics}"
    found = [address for address, port in listeners() if port == bridge.metrics]
    assert found == ["127.0.0.1"]


def test_nothing_listens_when_it_is_off() -> None:
    with BridgeProcess("memory:") as off:
        assert ports_of(off.process.pid) == {off.port}
        assert off.stop() == 0
        assert "metrics" not in off.stderr


def ports_of(pid: int) -> set[int]:
    """Every TCP port at which a process listens."""
    inodes = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            inodes.add(str(file.readlink()))
    return {
        int(local.rpartition(":")[2], 16)
        for table in ("tcp", "tcp6")
        if Path(f"/proc/{pid}/net/{table}").exists()
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
        for _, local, _, state, *_, inode in [line.split()[:10]]
        if state == "0A" and f"socket:[{inode}]" in inodes
    }


def test_both_ports_are_all_it_listens_at_and_stdout_is_one_line(tmp_path: Path) -> None:
    with ExposedBridge(tmp_path) as on:
        assert ports_of(on.process.pid) == {on.port, on.metrics}
        assert on.ask("/metrics").status == 200
        assert on.process.stdout is not None
        on.process.send_signal(signal.SIGTERM)
        assert on.process.stdout.read() == ""  # after GRPC_READY
        assert on.stop() == 0
        assert f"metrics on http://127.0.0.1:{on.metrics}/metrics" in on.stderr


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
def test_an_ipv6_host(tmp_path: Path) -> None:
    with ExposedBridge(tmp_path, "--metrics-host", "::1") as bridge:
        assert bridge.address == f"[::1]:{bridge.metrics}"
        with socket.create_connection(("::1", bridge.metrics), timeout=SOON) as connection:
            connection.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            assert connection.recv(1_000).startswith(b"HTTP/1.1 200 ")
        assert bridge.stop() == 0
        assert f"http://[::1]:{bridge.metrics}/metrics" in bridge.stderr


def test_a_port_that_is_taken_is_said_in_one_line(bridge: ExposedBridge) -> None:
    result = run("--port", "0", "--log", "memory:", "--metrics-port", str(bridge.metrics))
    assert (result.returncode, result.stdout) == (1, "")
    (said,) = (line for line in result.stderr.splitlines() if "taken" in line)
    assert said.startswith(f"snakepit-bridge: port {bridge.metrics} for metrics is taken: ")
    for what_to_do in (f"127.0.0.1:{bridge.metrics}", "--metrics-port", "0 takes", "off"):
        assert what_to_do in said
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("host", ["203.0.113.7", "no.such.host.invalid", "", "a b", "x" * 70])
def test_a_host_of_another_machine_is_said(host: str) -> None:
    with pytest.raises(CannotExpose, match="expected is an address of this machine") as caught:
        Exposition(registry(), str, host).start()
    assert "--metrics-host" in str(caught.value)


@pytest.mark.parametrize(
    ("host", "warned"), [("0.0.0.0", True), ("127.0.0.1", False), ("localhost", False)]
)
def test_an_address_that_others_reach_is_warned_of(
    caplog: pytest.LogCaptureFixture, host: str, warned: bool
) -> None:
    served = Exposition(registry(), str, host)
    served.start()
    served.close()
    assert ("whoever reaches that" in caplog.text) == warned


@pytest.mark.parametrize("text", ["70000", "-1", "on", "", "1.5", "٣"])
def test_what_is_no_port_is_refused(text: str) -> None:
    result = run("--log", "memory:", "--metrics-port", text)
    assert result.returncode == 2
    assert "is no port" in result.stderr


def test_it_is_off_for_a_worker_of_a_pool_unless_asked_for(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "snakepit_bridge.grpc_server")
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path)}
    for asked, more in ((), 0), (("--metrics-port", "0"), 1):
        with subprocess.Popen(
            [*command, *asked],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        ) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline().startswith("GRPC_READY:")
                assert len(ports_of(process.pid)) == 1 + more
            finally:
                process.terminate()


@pytest.mark.skipif(not (ROOT / ".venv").exists(), reason="no make was run here")
@pytest.mark.parametrize("taken", [False, True])
def test_make_run_serves_metrics_also_when_their_port_is_taken(taken: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        if not taken:
            holder.close()
        arguments = ("ARGS=--port 0 --log memory:", f"METRICS_PORT={port}")
        with subprocess.Popen(
            ["make", "--old-file", ".venv/.stamp", "run", *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline().startswith("GRPC_READY:")
            finally:
                os.killpg(process.pid, signal.SIGTERM)
                _, said = process.communicate(timeout=30)
    assert ("METRICS_PORT=N" in said) == taken
    assert (f"metrics on http://127.0.0.1:{port}/metrics" in said) != taken
    assert "metrics on http://127.0.0.1:" in said


# Beside the bridge's work.


def test_scrapes_and_calls_beside_each_other(bridge: ExposedBridge) -> None:
    session = Session(bridge, "load")
    session.register("x", 0)
    wrong: list[object] = []
    stop = threading.Event()

    def scrape() -> None:
        while not stop.is_set():
            answer = bridge.ask("/metrics", Accept=OPENMETRICS)
            if answer.status != 200 or not answer.body.endswith(b"# EOF\n"):
                wrong.append(answer)

    scrapers = [threading.Thread(target=scrape) for _ in range(2 * SCRAPES)]
    for thread in scrapers:
        thread.start()
    try:
        for number in range(300):
            session.set("x", number)
    finally:
        stop.set()
        for thread in scrapers:
            thread.join()
    assert not wrong
    assert session.get("x").version == 301


def test_while_it_drains_it_is_alive_and_not_ready(tmp_path: Path) -> None:
    runs, go = tmp_path / "runs", tmp_path / "go"
    with ExposedBridge(tmp_path, "--adapter", "tests.hosted_tools", "--grace", "30") as bridge:
        session = ToolSession(bridge, "s")
        session.start()
        call = session.begin("stuck", {"runs": str(runs), "go": str(go)})
        eventually(runs.exists, "the tool runs")
        assert bridge.ask("/readyz").status == 200
        bridge.process.send_signal(signal.SIGTERM)
        eventually(lambda: bridge.ask("/readyz").status == 503, "it drains")
        assert bridge.ask("/readyz").text == "draining\n"
        assert bridge.ask("/healthz").status == 200
        assert bridge.ask("/metrics").status == 200
        go.touch()
        assert call.result().success
        assert bridge.stop() == 0


def test_while_the_log_cannot_be_written_it_is_not_ready(tmp_path: Path) -> None:
    with ExposedBridge(tmp_path) as bridge:
        session = Session(bridge, "s")
        session.register("x", 0)
        assert bridge.ask("/readyz").status == 200
        # From here on its files cannot grow: writing fails as on a device that is broken.
        pid = bridge.process.pid
        before = resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        with refused("UNAVAILABLE"):
            session.set("x", 1)
        answer = bridge.ask("/readyz")
        assert (answer.status, answer.text) == (503, "the log cannot be written\n")
        assert bridge.ask("/healthz").status == 200
        assert session.get("x").version == 1
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
        session.set("x", 2)
        assert bridge.ask("/readyz").status == 200
        assert bridge.stop() == 0


@tool
async def blocks(runs: str, go: str) -> None:
    """Block the event loop, as no tool should."""
    note(runs, "run")
    hold(go)


def test_it_answers_while_the_event_loop_of_the_bridge_is_stuck(tmp_path: Path) -> None:
    runs, go = tmp_path / "runs", tmp_path / "go"
    with ExposedBridge(tmp_path, "--adapter", __name__) as bridge:
        session = ToolSession(bridge, "s")
        session.start()
        call = session.begin("blocks", {"runs": str(runs), "go": str(go)})
        eventually(runs.exists, "the tool runs")
        for path in ("/metrics", "/healthz", "/readyz"):
            assert bridge.ask(path).status == 200
        go.touch()
        assert call.result().success
        assert bridge.stop() == 0
