"""A real Prometheus in a process of its own, and promtool, for what they make of metrics."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar
from urllib.parse import urlencode

import pytest

START_TIMEOUT = 30.0
ANSWER_TIMEOUT = 10.0
SCRAPE_EVERY = 1.0
"""Seconds, in tests; also between two evaluations of the rules."""

T = TypeVar("T")

_LISTENING = re.compile(r'msg="Listening on" address=\S*:(\d+)')


def require_prometheus() -> None:
    """Skip the test where there is no Prometheus; fail in CI, which promises it."""
    missing = [name for name in ("prometheus", "promtool") if shutil.which(name) is None]
    reason = f"{' and '.join(missing)} not installed"
    if missing and os.environ.get("CI"):
        pytest.fail(reason)
    if missing:
        pytest.skip(reason)


def promtool(*arguments: str, stdin: str = "", directory: Path | None = None) -> str:
    """Run it; gives what it says, and fails the test if that is bad."""
    done = subprocess.run(
        ["promtool", *arguments],
        input=stdin,
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def until(
    what: str, look: Callable[[], T | None], within: float, on_failure: Callable[[], str] = str
) -> T:
    """Look until there is something; what Prometheus knows changes with the next scrape only.

    :param within: seconds, after which the test fails.
    :param on_failure: says what there is instead.
    """
    end = time.monotonic() + within
    while True:
        found = look()
        if found is not None:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"not within {within} s: {what}\n{on_failure()}")
        time.sleep(SCRAPE_EVERY / 4)


class Sample(NamedTuple):
    """One series of an answer, with its newest value."""

    labels: Mapping[str, str]
    value: float


class Prometheus:
    """Scrapes with a configuration; ready when the constructor returns."""

    def __init__(self, directory: Path, config: Path) -> None:
        """Start on any free port.

        :param directory: where it keeps what it scraped.
        """
        command = (
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={directory}",
            "--web.listen-address=127.0.0.1:0",
            "--enable-feature=exemplar-storage",
        )
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self.lines: list[str] = []
        self._port = 0
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._ready.wait(START_TIMEOUT) or self.process.poll() is not None:
            self._end()
            raise AssertionError(f"Prometheus does not start:\n{''.join(self.lines)}")

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if found := _LISTENING.search(line):
                self._port = int(found[1])
            if "Server is ready to receive web requests" in line:
                self._ready.set()
        self._ready.set()  # it has ended, which whoever waits will see

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def get(self, path: str, **parameters: str | float) -> Any:  # noqa: ANN401 - JSON
        """Ask its API; gives the data of the answer."""
        url = f"{self.url}/api/v1/{path}?{urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=ANSWER_TIMEOUT) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error
        assert not answer.get("warnings"), answer
        return answer["data"]

    def query(self, expr: str) -> list[Sample]:
        """Evaluate now."""
        return [
            Sample(series["metric"], float(series["value"][1]))
            for series in self.get("query", query=expr)["result"]
        ]

    def numbers(self, expr: str) -> list[Sample]:
        """Evaluate now; without what is not a number."""
        return [sample for sample in self.query(expr) if not math.isnan(sample.value)]

    def firing(self) -> set[tuple[str, str]]:
        """Name and severity of the alerts that fire."""
        return {(labels["alertname"], labels["severity"]) for labels in self._firing()}

    def firing_instances(self, alert: str) -> set[str]:
        """Of which an alert fires."""
        return {labels["instance"] for labels in self._firing() if labels["alertname"] == alert}

    def _firing(self) -> list[dict[str, str]]:
        alerts = self.get("alerts")["alerts"]
        return [alert["labels"] for alert in alerts if alert["state"] == "firing"]

    def _end(self) -> None:
        self.process.kill()  # nothing it has is wanted any more
        self.process.wait()
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()


def configuration(
    directory: Path, targets: Path, rule_files: Sequence[Path], shorten: Callable[[str], str]
) -> Path:
    """Write one like the example: the same job and rules, all a second apart, other targets.

    :param targets: directory of ``file_sd`` files.
    :param shorten: what becomes of the text of the rules.
    """
    for file in rule_files:
        (directory / file.name).write_text(shorten(file.read_text()))
    every = f"{SCRAPE_EVERY:g}s"
    config = {
        "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
        "rule_files": [file.name for file in rule_files],
        "scrape_configs": [
            {
                "job_name": "snakepit-bridge",
                "file_sd_configs": [{"files": [f"{targets}/snakepit-bridge-*.json"]}],
            }
        ],
    }
    path = directory / "prometheus.yml"
    path.write_text(json.dumps(config))  # which is YAML
    return path
