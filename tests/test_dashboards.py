"""Dashboards, rules and alerts, asked of a real Prometheus that scrapes a real bridge under load.

Each expression is answered with numbers while the bridge works, and each alert is silent then. Each
alert fires when its fault is really caused: a disk that is slow or fails (strace), a watch that
nobody reads, a bridge that is killed. Only how long things take is shortened in the rules for that.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
import yaml  # type: ignore[import-untyped] # its stubs are a package of their own

from dashboards.generate import DIRECTORY, drifted
from dashboards.queries import FAULTS, STREAM_FAULTS, TOOL_METHODS
from snakepit_bridge.observing import LAGGING
from snakepit_bridge.telemetry import names
from tests.bridge_process import BridgeProcess
from tests.prometheus_server import (
    Prometheus,
    Sample,
    configuration,
    promtool,
    require_prometheus,
    until,
)
from tests.strace import require_strace
from tests.tool_client import TOOLS, ToolSession
from tests.watches import at_head
from tests.wire_session import Session, packed

ROOT = DIRECTORY.parent
PROMETHEUS = ROOT / "prometheus"
RULE_FILES = (PROMETHEUS / "rules.yml", PROMETHEUS / "alerts.yml")
RUNBOOKS = ROOT.parent / "docs" / "alerts.md"

ANSWERED_WITHIN = 45.0
FIRES_WITHIN = 45.0
"""Seconds; some twenty scrapes more than it takes."""

MIB = 1024 * 1024
LARGEST = 512
"""Of these a log is made to grow by, at most."""
COLLECTORS = ("up", "process_", "python_")
"""What Prometheus and its client library add."""


class Rule(NamedTuple):
    """Of a rule file."""

    name: str
    expr: str
    left: str
    """What an alert compares with its threshold, else the whole expression."""
    severity: str = ""
    runbook: str = ""


def rules() -> list[Rule]:
    found = []
    for file in RULE_FILES:
        for group in yaml.safe_load(file.read_text())["groups"]:
            for rule in group["rules"]:
                expr = rule["expr"]
                if "record" in rule:
                    found.append(Rule(rule["record"], expr, expr))
                    continue
                left, threshold = expr.rsplit("\n", 1)
                assert re.fullmatch(r"(>|<|==) [\d.]+", threshold), f"{expr}\nhas no threshold"
                runbook = rule["annotations"]["runbook_url"]
                found.append(Rule(rule["alert"], expr, left, rule["labels"]["severity"], runbook))
    return found


RECORDED = [rule for rule in rules() if not rule.severity]
ALERTS = [rule for rule in rules() if rule.severity]


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    """Each with the name of its dashboard."""
    for path in sorted(DIRECTORY.glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            if panel["type"] != "row":
                yield path.stem, panel


def expressions() -> list[str]:
    return sorted({target["expr"] for _, panel in panels() for target in panel["targets"]})


def as_grafana_asks(expr: str, instance: str = ".+") -> str:
    """With the variables filled in, at a scrape each second."""
    expr = expr.replace("$job", "snakepit-bridge").replace("$instance", instance)
    expr = expr.replace("$__rate_interval", "10s")
    assert "$" not in expr
    return expr


def shorten(text: str) -> str:
    """The rules, with windows and waits of seconds; thresholds and all else as they are."""
    text = re.sub(r"(?m)^( *for:) \d+[mh]$", r"\1 1s", text)
    return text.replace("[5m]", "[10s]").replace("[6h]", "[10s]")


def metrics_in(expr: str) -> set[str]:
    """Each name is followed by its matchers, also where it needs none."""
    return set(re.findall(r"([a-zA-Z_:][\w:]*)\{", expr))


def family(series: str) -> str:
    base = re.sub(r"_(bucket|sum|count)$", "", series)
    return base if base in NAMES else series


EXAMPLES = {
    metric.name
    for metric in (
        names.GRPC_HANDLING_SECONDS,
        names.LOG_APPEND_SECONDS,
        names.LOG_COMMIT_SECONDS,
        names.TOOL_SECONDS,
    )
}

NAMES = {metric.name for metric in vars(names).values() if isinstance(metric, names.Metric)}


# What is committed.


def test_the_dashboards_are_what_the_code_says() -> None:
    assert drifted() == []


def test_each_panel_explains_itself() -> None:
    seen: set[tuple[str, int]] = set()
    for dashboard, panel in panels():
        where = f"{dashboard}: {panel['title']}"
        assert len(panel["description"]) > 20, where
        unit = panel["fieldConfig"]["defaults"].get("unit") or panel["options"]["yAxis"]["unit"]
        assert unit, where
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}", where
            assert target["legendFormat"] or len(panel["targets"]) == 1, where
        assert (dashboard, panel["id"]) not in seen, where
        seen.add((dashboard, panel["id"]))


def test_latencies_have_examples() -> None:
    with_examples = {
        family(name)
        for _, panel in panels()
        for target in panel["targets"]
        if target["exemplar"]
        for name in metrics_in(target["expr"])
    }
    assert with_examples == EXAMPLES | {names.WATCH_DELIVERY_SECONDS.name}


def test_dashboards_find_each_other_and_are_never_moved() -> None:
    found = {path.stem: json.loads(path.read_text()) for path in DIRECTORY.glob("*.json")}
    assert {name: dashboard["uid"] for name, dashboard in found.items()} == {
        name: f"snakepit-bridge-{name}"
        for name in ("overview", "log", "watchers", "tools", "process")
    }
    for dashboard in found.values():
        assert dashboard["tags"] == dashboard["links"][0]["tags"] == ["snakepit-bridge"]
        assert [variable["name"] for variable in dashboard["templating"]["list"]] == [
            "datasource",
            "job",
            "instance",
        ]


def test_every_metric_is_one_of_ours_and_almost_every_one_is_shown() -> None:
    recorded = {rule.name for rule in RECORDED}
    shown = {family(name) for expr in expressions() for name in metrics_in(expr)}
    compared = {family(name) for rule in rules() for name in metrics_in(rule.expr)}
    unknown = {
        name for name in shown | compared - recorded if not name.startswith(COLLECTORS)
    } - NAMES
    assert unknown == set()
    assert NAMES - shown == {names.GRPC_RECEIVED.name}  # each call has one, but for telemetry


def test_rules_and_dashboards_mean_the_same_by_failed() -> None:
    (rule,) = (rule for rule in RECORDED if rule.name.endswith("failed:rate5m"))
    for part in (
        f'grpc_type="unary", grpc_method!~"{TOOL_METHODS}", grpc_code=~"{FAULTS}"',
        f'grpc_type!="unary", grpc_method!~"{TOOL_METHODS}", grpc_code=~"{STREAM_FAULTS}"',
    ):
        assert part in rule.expr
        assert any(part in expr for expr in expressions())


def test_each_alert_has_its_runbook() -> None:
    text = RUNBOOKS.read_text()
    heads = re.findall(r"(?m)^## (\w+)$", text)
    assert set(heads) == {alert.name for alert in ALERTS}
    for alert in ALERTS:
        assert alert.runbook == f"docs/alerts.md#{alert.name.lower()}"
        assert f"[{alert.name}](#{alert.name.lower()})" in text


def test_promtool_has_no_objection() -> None:
    require_prometheus()
    promtool("check", "config", str(PROMETHEUS / "prometheus.yml"))
    promtool("check", "rules", "--lint=all", "--lint-fatal", *map(str, RULE_FILES))
    promtool("test", "rules", str(PROMETHEUS / "tests.yml"))


def test_what_containers_are_given_is_there() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    mounts = [
        volume.split(":")
        for service in compose["services"].values()
        for volume in service.get("volumes", ())
    ]
    for source, *_ in mounts:
        assert source in compose["volumes"] or (ROOT / source).is_dir(), source
    assert ["./prometheus", "/etc/prometheus", "ro"] in mounts
    (provider,) = yaml.safe_load((ROOT / "provisioning/dashboards/bridge.yaml").read_text())[
        "providers"
    ]
    assert ["./grafana", provider["options"]["path"], "ro"] in mounts


# What a real Prometheus makes of it.


class Load:
    """A little of everything that clients do, mistakes too, until it is stopped."""

    def __init__(self, bridge: BridgeProcess, old: Sequence[str]) -> None:
        """:param old: sessions from before the bridge was started."""
        self.refused: Counter[str] = Counter()
        self._bridge = bridge
        self._old = list(old)
        self._main = ToolSession(bridge, "main")
        self._stop = threading.Event()
        self._main.start()
        self._main.register("x", 0)
        self._main.register("y", 0)
        self._watch = at_head(self._main, "x", timeout=600)
        self._threads = [threading.Thread(target=target) for target in (self._write, self._read)]
        for thread in self._threads:
            thread.start()

    def _write(self) -> None:
        number = 0
        while not self._stop.wait(0.02):
            number += 1
            for step in (self._often, *([self._seldom] if number % 10 == 0 else ())):
                try:
                    step(number)
                except grpc.RpcError as error:
                    self.refused[error.code().name] += 1

    def _often(self, number: int) -> None:
        main = self._main
        main.set("x", number)
        main.get("x")
        main.set_many({"x": packed(number), "y": packed(number)})

    def _seldom(self, number: int) -> None:
        main = self._main
        with at_head(main, "y"):  # opened, and given up
            main.run("add", {"a": number})
        main.run("raises", {"what": "ValueError"})
        for _ in main.stream("count_to", {"to": 3}):
            pass
        other = Session(self._bridge, f"other {number}")
        other.start()
        other.register("z")
        other.end()
        if self._old:
            Session(self._bridge, self._old.pop()).get("x")
        main.get("nothing of this name")

    def _read(self) -> None:
        try:
            for _ in self._watch.call:
                pass
        except grpc.RpcError:
            if not self._stop.is_set():
                raise

    def stop(self) -> None:
        self._stop.set()
        self._watch.call.cancel()
        for thread in self._threads:
            thread.join()


class Stage(NamedTuple):
    """A bridge under load, and a Prometheus that scrapes it with the rules shortened."""

    bridge: BridgeProcess
    instance: str
    prometheus: Prometheus
    targets: Path

    def firing(self) -> set[tuple[str, str]]:
        return self.prometheus.firing()


OLD = [f"old {number}" for number in range(200)]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    require_prometheus()
    directory = tmp_path_factory.mktemp("dashboards")
    targets = directory / "targets"
    targets.mkdir()
    with BridgeProcess(directory / "bridge.db") as before:
        for name in OLD:
            session = Session(before, name)
            session.start()
            session.register("x")
        assert before.stop() == 0
    config = configuration(directory, targets, RULE_FILES, shorten)
    with ExitStack() as stack:
        bridge, instance = serve(stack, directory / "bridge.db", targets)
        load = Load(bridge, OLD)
        stack.callback(load.stop)
        prometheus = stack.enter_context(Prometheus(directory / "data", config))
        yield Stage(bridge, instance, prometheus, targets)
    assert load.refused["NOT_FOUND"]


def serve(
    stack: ExitStack, log: Path, targets: Path, environment: dict[str, str] | None = None
) -> tuple[BridgeProcess, str]:
    """A bridge that Prometheus finds, and its instance; it makes snapshots often."""
    before = set(targets.glob("*.json"))
    options = ("--metrics-port", "0", "--metrics-sd-dir", str(targets), "--snapshot-every", "100")
    bridge = stack.enter_context(BridgeProcess(log, *options, *TOOLS, environment=environment))
    (file,) = set(targets.glob("*.json")) - before
    ((instance,),) = (entry["targets"] for entry in json.loads(file.read_text()))
    return bridge, instance


def exposition(instance: str) -> str:
    with urllib.request.urlopen(f"http://{instance}/metrics", timeout=10) as response:
        text: str = response.read().decode()
    return text


def require_numbers(prometheus: Prometheus, expressions: Sequence[str]) -> None:
    """Ask until each was answered with a number; what is rare is so only now and then."""
    left = dict.fromkeys(expressions)

    def look() -> bool | None:
        for expr in list(left):
            if prometheus.numbers(expr):
                del left[expr]
        return None if left else True

    until("each is answered", look, ANSWERED_WITHIN, lambda: "\n".join(left))


def test_promtool_likes_the_metrics(stage: Stage) -> None:
    promtool("check", "metrics", stdin=exposition(stage.instance))


def test_every_metric_that_is_named_is_exposed(stage: Stage) -> None:
    text = exposition(stage.instance)
    exposed = set(re.findall(r"(?m)^([a-zA-Z_:][\w:]*)[ {]", text))
    asked = {name for expr in expressions() for name in metrics_in(expr)}
    compared = {name for rule in rules() for name in metrics_in(rule.expr)}
    recorded = {rule.name for rule in RECORDED}
    assert (asked | compared) - recorded - exposed == {"up"}
    typed = set(re.findall(r"(?m)^# TYPE (\w+) ", text))
    assert NAMES - typed == set()


def test_every_panel_is_answered(stage: Stage) -> None:
    require_numbers(stage.prometheus, [as_grafana_asks(expr) for expr in expressions()])


def test_every_recording_rule_has_results(stage: Stage) -> None:
    require_numbers(
        stage.prometheus, [f'{rule.name}{{job="snakepit-bridge"}}' for rule in RECORDED]
    )


def test_alerts_have_something_to_compare_and_are_silent(stage: Stage) -> None:
    require_numbers(stage.prometheus, [alert.left for alert in ALERTS])
    require_silent(stage)


def test_nothing_is_not_a_number_while_a_bridge_is_idle(stage: Stage, tmp_path: Path) -> None:
    with ExitStack() as stack:
        idle, instance = serve(stack, tmp_path / "bridge.db", stage.targets)
        prometheus = stage.prometheus
        until(
            "it is scraped, and rates can be told",
            lambda: (
                prometheus.query(f'rate(process_cpu_seconds_total{{instance="{instance}"}}[10s])')
                or None
            ),
            ANSWERED_WITHIN,
        )
        for expr in [as_grafana_asks(expr, instance) for expr in expressions()]:
            samples = prometheus.query(expr)
            assert all(math.isfinite(sample.value) for sample in samples), expr
        for rule in RECORDED:
            samples = prometheus.query(f'{rule.name}{{instance="{instance}"}}')
            assert all(math.isfinite(sample.value) for sample in samples), rule.name
        assert idle.stop() == 0  # and takes its target away


def test_examples_of_latencies_lead_to_traces(stage: Stage, tmp_path: Path) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    nobody = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    with ExitStack() as stack:
        bridge, instance = serve(stack, tmp_path / "bridge.db", stage.targets, nobody)
        session = ToolSession(bridge, "s")
        header = (("traceparent", f"00-{trace}-b7ad6b7169203331-01"),)
        session.call("InitializeSession", header)
        session.run("add", {"a": 1}, header)

        def look() -> bool | None:
            now = time.time()
            found = stage.prometheus.get(
                "query_exemplars",
                query=f'{{__name__=~".+_bucket", instance="{instance}"}}',
                start=now - ANSWERED_WITHIN,
                end=now,
            )
            led = {
                family(each["seriesLabels"]["__name__"])
                for each in found
                if trace in (exemplar["labels"]["trace_id"] for exemplar in each["exemplars"])
            }
            return led >= EXAMPLES or None

        until("each has one", look, ANSWERED_WITHIN)
        assert bridge.stop() == 0


# Faults.


def require_firing(stage: Stage, *alerts: tuple[str, str]) -> None:
    def say() -> str:
        said = [f"fires: {sorted(stage.firing())}"]
        said += [f"{alert.left}:\n{shown(stage.prometheus.query(alert.left))}" for alert in ALERTS]
        return "\n".join(said)

    until(
        f"{alerts} fire",
        lambda: set(alerts) <= stage.firing() or None,
        FIRES_WITHIN,
        say,
    )


def shown(samples: Sequence[Sample]) -> str:
    return "\n".join(f"  {sample.value} {dict(sample.labels)}" for sample in samples)


def require_silent(stage: Stage) -> None:
    """What fired before has ended: each test begins with all well."""
    until(
        "nothing fires",
        lambda: not stage.firing() or None,
        FIRES_WITHIN,
        lambda: str(stage.firing()),
    )


@contextmanager
def injected(bridge: BridgeProcess, fault: str, trace: Path) -> Iterator[None]:
    """Make the syncs of a bridge that runs slow, or fail, as strace's ``fault`` says."""
    syncs = "fdatasync,fsync"
    command = ["strace", "-f", "-p", str(bridge.process.pid), "-o", str(trace)]
    command += ["-e", f"trace={syncs}", "-e", f"inject={syncs}:{fault}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        said = strace.stderr.readline()
        assert "attached" in said, said
        try:
            yield
        finally:
            strace.terminate()  # which lets go of the bridge


@pytest.fixture
def _well(stage: Stage) -> Iterator[None]:
    require_silent(stage)
    yield
    require_silent(stage)


@pytest.mark.usefixtures("_well")
def test_a_slow_disk(stage: Stage, tmp_path: Path) -> None:
    require_strace()
    with injected(stage.bridge, "delay_enter=600ms", tmp_path / "trace"):
        require_firing(
            stage, ("SnakepitBridgeSlowCommits", "warning"), ("SnakepitBridgeSlowRPCs", "warning")
        )


@pytest.mark.usefixtures("_well")
def test_a_disk_that_fails(stage: Stage, tmp_path: Path) -> None:
    require_strace()
    with injected(stage.bridge, "error=EIO", tmp_path / "trace"):
        require_firing(
            stage,
            ("SnakepitBridgeFailedRPCs", "warning"),
            ("SnakepitBridgeFailedRPCs", "critical"),
        )


@pytest.mark.usefixtures("_well")
def test_a_watch_that_nobody_reads(stage: Stage) -> None:
    session = Session(stage.bridge, "unread")
    session.start()
    session.register("x", "", "string")
    with at_head(session, "x", timeout=120):
        for number in range(16):  # what its connection takes without it
            session.set("x", f"{number}" + "x" * MIB, "string")
        for number in range(LAGGING + 100):
            session.set("x", f"{number}", "string")
        require_firing(stage, ("SnakepitBridgeSlowWatchers", "warning"))


@pytest.mark.usefixtures("_well")
def test_a_log_that_grows(stage: Stage) -> None:
    session = Session(stage.bridge, "large")
    session.start()
    session.register("x", "", "string")
    enough = threading.Event()

    def grow() -> None:
        for number in range(LARGEST):
            if enough.is_set():
                return
            session.set("x", f"{number}" + "x" * MIB, "string")

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        require_firing(stage, ("SnakepitBridgeLogOutgrowsItsRoom", "warning"))
    finally:
        enough.set()
        writer.join()


@pytest.mark.usefixtures("_well")
def test_a_bridge_that_is_killed_is_down_and_one_that_stops_is_not(
    stage: Stage, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        killed, down = serve(stack, tmp_path / "killed.db", stage.targets)
        stopped, gone = serve(stack, tmp_path / "stopped.db", stage.targets)
        up = [f'up{{instance="{instance}"}} == 1' for instance in (down, gone)]
        require_numbers(stage.prometheus, up)
        assert stopped.stop() == 0
        killed.kill()
        require_firing(stage, ("SnakepitBridgeDown", "critical"))
        # Prometheus takes note of targets every five seconds: so long the other seems down as well.
        until(
            "only that one is",
            lambda: stage.prometheus.firing_instances("SnakepitBridgeDown") == {down} or None,
            FIRES_WITHIN,
        )
        # The next bridge removes what the dead one left behind.
        following, _ = serve(stack, tmp_path / "next.db", stage.targets)
        require_silent(stage)
        assert following.stop() == 0


def test_no_bridge_at_all(tmp_path: Path) -> None:
    require_prometheus()
    targets = tmp_path / "targets"
    targets.mkdir()
    config = configuration(tmp_path, targets, RULE_FILES, shorten)
    with Prometheus(tmp_path / "data", config) as prometheus:
        absent = ("SnakepitBridgeAbsent", "warning")
        until("it is missed", lambda: absent in prometheus.firing() or None, FIRES_WITHIN)
        with ExitStack() as stack:
            serve(stack, tmp_path / "bridge.db", targets)
            until("it is found", lambda: absent not in prometheus.firing() or None, FIRES_WITHIN)
