"""What Prometheus would read of a bridge: the numbers of ``/metrics``, by name and labels."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any, NamedTuple, Self

from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

__all__ = ["OPENMETRICS", "Scrape", "Series", "fetch", "scrape", "settled", "until"]

OPENMETRICS = "application/openmetrics-text; version=1.0.0"

TIMEOUT = 20.0
"""Seconds for an answer, and for numbers to become what they should be."""


class Series(NamedTuple):
    """One series: its name, and its labels in the order of their names."""

    name: str
    labels: tuple[tuple[str, str], ...]


class Scrape:
    """The numbers of one moment."""

    def __init__(
        self, numbers: Mapping[Series, float], exemplars: Mapping[Series, Mapping[str, str]]
    ) -> None:
        self.numbers = numbers
        self.exemplars = exemplars
        """The labels of each."""

    @classmethod
    def read(cls, text: str, *, openmetrics: bool = False) -> Self:
        """Read what was answered; each series may be in it once.

        :raises ValueError: it is not of this format.
        """
        numbers: dict[Series, float] = {}
        exemplars: dict[Series, Mapping[str, str]] = {}
        parse: Any = parse_openmetrics if openmetrics else parse_text
        for family in parse(text):
            for sample in family.samples:
                series = Series(sample.name, tuple(sorted(sample.labels.items())))
                assert series not in numbers, f"{series} is there twice"
                numbers[series] = sample.value
                if sample.exemplar is not None:
                    exemplars[series] = sample.exemplar.labels
        return cls(numbers, exemplars)

    def by(self, name: str, label: str, **wanted: str) -> dict[str, float]:
        """Sums of the series of a name that have all these labels, by one more label.

        :raises KeyError: there are none.
        """
        found: dict[str, float] = {}
        for series, number in self.numbers.items():
            labels = dict(series.labels)
            if series.name == name and wanted.items() <= labels.items():
                key = labels.get(label, "")
                found[key] = found.get(key, 0) + number
        if not found:
            raise KeyError(f"no series {name} with {wanted}")
        return found

    def __call__(self, name: str, **wanted: str) -> float:
        """Sum of the series of a name that have all these labels.

        :raises KeyError: there are none.
        """
        return sum(self.by(name, "", **wanted).values())

    def codes(self, method: str) -> dict[str, int]:
        """How calls of a method ended, those codes alone that came about."""
        handled = self.by("grpc_server_handled_total", "grpc_code", grpc_method=method)
        return {code: int(count) for code, count in handled.items() if count}

    def methods(self) -> dict[tuple[str, str], tuple[int, int]]:
        """Calls that were started and handled, by service and method."""
        sums: dict[tuple[str, str], list[int]] = {}
        for series, number in self.numbers.items():
            at = _COUNTS.get(series.name)
            if at is not None:
                labels = dict(series.labels)
                key = labels["grpc_service"], labels["grpc_method"]
                sums.setdefault(key, [0, 0])[at] += int(number)
        return {key: (started, handled) for key, (started, handled) in sums.items()}

    @property
    def open(self) -> dict[tuple[str, str], int]:
        """Calls that were started and not handled, by service and method, where there are any.

        There are never fewer than none.
        """
        found = {key: started - handled for key, (started, handled) in self.methods().items()}
        assert min(found.values()) >= 0, found
        return {key: count for key, count in found.items() if count}


_COUNTS = {"grpc_server_started_total": 0, "grpc_server_handled_total": 1}


def fetch(port: int, accept: str = "text/plain") -> str:
    """Ask for the metrics."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    with closing(connection):
        connection.request("GET", "/metrics", headers={"Accept": accept})
        response = connection.getresponse()
        text = response.read().decode()
        assert response.status == http.HTTPStatus.OK, text
        return text


def scrape(port: int) -> Scrape:
    """Ask for the metrics, and read them."""
    return Scrape.read(fetch(port))


def until(port: int, done: Callable[[Scrape], object], what: str) -> Scrape:
    """Scrape until the numbers are as they should be, or a deadline; gives the last."""
    end = time.monotonic() + TIMEOUT
    while True:
        seen = scrape(port)
        if done(seen):
            return seen
        assert time.monotonic() < end, f"not within {TIMEOUT:g} s: {what}"
        time.sleep(0.02)


def settled(port: int) -> Scrape:
    """Scrape until no call is open."""
    end = time.monotonic() + TIMEOUT
    while True:
        seen = scrape(port)
        if not seen.open:
            return seen
        assert time.monotonic() < end, f"started and not handled: {seen.open}"
        time.sleep(0.02)
