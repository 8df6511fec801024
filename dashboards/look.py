"""Draws the dashboards as pictures, from what a Prometheus has: a look at them without Grafana.

    python dashboards/look.py --prometheus http://127.0.0.1:9090 --minutes 5 --to /tmp/look

Needs matplotlib, which is no dependency of anything else here. Each panel is where Grafana has it,
with the same queries, units and legends; colours and fonts are not the same.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import matplotlib.pyplot as plt  # type: ignore[import-not-found] # as said
from matplotlib.ticker import FuncFormatter  # type: ignore[import-not-found] # as said

GRAFANA = Path(__file__).parent / "grafana"
COLUMNS = 24
POINTS = 120
"""Steps in a picture."""
COLOURS = ("#73BF69", "#F2CC0C", "#8AB8FF", "#FF780A", "#F2495C", "#5794F2", "#B877D9", "#705DA0")

Panel = Mapping[str, Any]


class Source(NamedTuple):
    """A Prometheus, and the time to look at."""

    url: str
    begin: float
    end: float
    interval: str
    """In place of ``$__rate_interval``."""

    @property
    def step(self) -> float:
        return max(1.0, (self.end - self.begin) / POINTS)

    def ask(self, expr: str, *, now: bool) -> list[dict[str, Any]]:
        """Give the series of an answer."""
        expr = expr.replace("$job", ".+").replace("$instance", ".+")
        parameters: dict[str, Any] = {"query": expr.replace("$__rate_interval", self.interval)}
        if now:
            parameters |= {"time": self.end}
        else:
            parameters |= {"start": self.begin, "end": self.end, "step": self.step}
        path = "query" if now else "query_range"
        url = f"{self.url}/api/v1/{path}?{urlencode(parameters)}"
        with urllib.request.urlopen(url) as answer:  # noqa: S310 - whatever a person names
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return found


_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))
_MINUTE = 60
_SUFFIXES = {
    "reqps": " req/s",
    "ops": " ops/s",
    "eps": " evt/s",
    "mps": " msg/s",
    "cpm": " /min",
    "Bps": "B/s",
    "bytes": "B",
    "s": "s",
    "short": "",
}


def told(value: float, unit: str) -> str:
    """Write a value in its unit."""
    if math.isnan(value):
        return "NaN"
    if unit == "percentunit":
        return f"{value * 100:.3g}%"
    if unit == "s" and value >= _MINUTE:
        return f"{value / _MINUTE:.3g} min"
    prefixes = _PREFIXES if unit == "s" else [each for each in _PREFIXES if each[0] >= 1]
    size, prefix = next((each for each in prefixes if abs(value) >= each[0]), (1, ""))
    return f"{value / size:.3g} {prefix}{_SUFFIXES[unit].strip()}".strip()


def legend(template: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), template)


def unit_of(panel: Panel) -> str:
    unit: str = panel["fieldConfig"]["defaults"].get("unit") or panel["options"]["yAxis"]["unit"]
    return unit


def series_of(panel: Panel, source: Source) -> Iterator[tuple[str, list[float], list[float]]]:
    """Name, minutes and values of each."""
    for target in panel["targets"]:
        for series in source.ask(target["expr"], now=False):
            minutes = [(float(at) - source.end) / 60 for at, _ in series["values"]]
            values = [float(value) for _, value in series["values"]]
            yield legend(target["legendFormat"], series["metric"]), minutes, values


def draw_lines(axes: Any, panel: Panel, source: Source) -> None:  # noqa: ANN401 - matplotlib's
    unit = unit_of(panel)
    found = sorted(series_of(panel, source))
    stacked = "stacking" in panel["fieldConfig"]["defaults"].get("custom", {})
    below: dict[float, float] = {}
    for number, (name, minutes, values) in enumerate(found):
        colour = COLOURS[number % len(COLOURS)]
        last = (
            f"{name}  mean {told(sum(values) / len(values), unit)}, last {told(values[-1], unit)}"
        )
        if stacked:
            low = [below.get(at, 0.0) for at in minutes]
            high = [a + b for a, b in zip(low, values, strict=True)]
            below |= dict(zip(minutes, high, strict=True))
            axes.fill_between(minutes, low, high, color=colour, alpha=0.5, label=last)
        else:
            axes.plot(minutes, values, color=colour, label=last, linewidth=1.2)
    for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]:
        if step["value"] is not None:
            axes.axhline(step["value"], color=step["color"], linestyle="--", linewidth=0.8)
    axes.set_ylim(bottom=min([0.0, *(value for _, _, values in found for value in values)]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: told(value, unit)))
    if found:
        axes.legend(fontsize=6, loc="upper left", framealpha=0.6)
    else:
        axes.text(0.5, 0.5, "No data", transform=axes.transAxes, ha="center")


def draw_heat(axes: Any, panel: Panel, source: Source) -> None:  # noqa: ANN401 - matplotlib's
    unit = unit_of(panel)
    buckets = {
        float(series["metric"]["le"]): {float(at): float(n) for at, n in series["values"]}
        for series in source.ask(panel["targets"][0]["expr"], now=False)
    }
    bounds = sorted(buckets)
    times = sorted({at for counts in buckets.values() for at in counts})
    rows = []
    for low, high in zip([None, *bounds], bounds, strict=False):
        under = buckets[low] if low is not None else {}
        rows.append([max(0.0, buckets[high].get(at, 0) - under.get(at, 0)) for at in times])
    cells = [[count or math.nan for count in row] for row in rows]
    minutes = [(at - source.end) / 60 for at in times]
    axes.pcolormesh(minutes, range(len(bounds)), cells, cmap="Oranges", shading="nearest")
    axes.set_yticks(range(len(bounds)))
    axes.set_yticklabels([told(bound, unit) if bound < math.inf else "+Inf" for bound in bounds])


def draw_number(axes: Any, panel: Panel, source: Source) -> None:  # noqa: ANN401 - matplotlib's
    unit = unit_of(panel)
    lines = [
        told(float(series["value"][1]), unit)
        + " "
        + legend(target["legendFormat"], series["metric"])
        for target in panel["targets"]
        for series in source.ask(target["expr"], now=True)
    ]
    fontsize = 9 if any("{{" in target["legendFormat"] for target in panel["targets"]) else 16
    axes.text(0.5, 0.4, "\n".join(lines) or "–", ha="center", va="center", fontsize=fontsize)
    axes.set_axis_off()


_DRAW = {"timeseries": draw_lines, "heatmap": draw_heat, "stat": draw_number}


def draw(path: Path, source: Source, to: Path) -> None:
    """Draw a dashboard into a file of the same name."""
    dashboard = json.loads(path.read_text())
    panels: Sequence[Panel] = dashboard["panels"]
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = plt.figure(figsize=(18, height * 0.42))
    figure.suptitle(dashboard["title"], y=0.998)
    for panel in panels:
        at = panel["gridPos"]
        top = 1 - at["y"] / height
        if panel["type"] == "row":
            figure.text(0.01, top - 0.6 / height, panel["title"], fontsize=11, weight="bold")
            continue
        inner = (at["x"] / COLUMNS + 0.05, top - (at["h"] - 1) / height)
        axes = figure.add_axes((*inner, at["w"] / COLUMNS - 0.065, (at["h"] - 2) / height))
        axes.set_title(panel["title"], fontsize=9)
        axes.tick_params(labelsize=7)
        _DRAW[panel["type"]](axes, panel, source)
    figure.savefig(to / f"{path.stem}.png", dpi=70)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", help="its address")
    parser.add_argument("--minutes", type=float, default=60, help="to look back")
    parser.add_argument("--rate-interval", default="1m", help="four times the scrape interval")
    parser.add_argument("--to", type=Path, default=Path(), help="directory for the pictures")
    chosen = parser.parse_args()
    end = time.time()
    source = Source(chosen.prometheus, end - chosen.minutes * 60, end, chosen.rate_interval)
    chosen.to.mkdir(parents=True, exist_ok=True)
    for path in sorted(GRAFANA.glob("*.json")):
        draw(path, source, chosen.to)


if __name__ == "__main__":
    main()
