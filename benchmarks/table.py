"""What the user reads, and what a program reads: the table and the JSON of a whole run."""

from __future__ import annotations

import datetime as dt
import os
import platform
import sqlite3
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.contest import Outcome
from benchmarks.proc import filesystem
from benchmarks.rows import Row

__all__ = ["Finding", "as_json", "notes", "table"]

_MARKS = {
    "dream": "[green]✓ dream",
    "reach": "[green]✓ reach",
    "missed": "[red]✗ missed",
    "no mark": "",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """A row and what became of it: an outcome, or words why there is none.

    ``failed`` tells a fault from a row that could not be tried here.
    """

    row: Row
    outcome: Outcome | None = None
    words: str = ""
    failed: bool = False


def table(findings: list[Finding]) -> Table:
    """Return the table of all rows."""
    made = Table(title="The bridge against its rulers", title_justify="left", box=box.SIMPLE_HEAD)
    made.add_column("row", min_width=24)
    made.add_column("ours\nruler's", justify="right", no_wrap=True)
    made.add_column("ratio\nrange", justify="right", no_wrap=True)
    made.add_column("reach\ndream", justify="right", no_wrap=True)
    made.add_column("reached", no_wrap=True)
    made.add_column("CPU µs\nours\nruler's", justify="right", no_wrap=True)
    made.add_column("syncs\nper set", justify="right", no_wrap=True)
    for finding in findings:
        made.add_row(*_cells(finding), end_section=True)
    return made


def notes(findings: list[Finding]) -> list[str]:
    """Return the lines below the table.

    They say why rows are empty, what rows have to say beside their figures, and how busy the
    client was.
    """
    lines = [
        f"{finding.row.name}: {'failed' if finding.failed else 'not measured'}: {finding.words}"
        for finding in findings
        if finding.outcome is None
    ]
    lines += [
        f"{finding.row.name}: syncs not measured: {finding.outcome.syncs}"
        for finding in findings
        if finding.outcome is not None and isinstance(finding.outcome.syncs, str)
    ]
    lines += [
        f"{finding.row.name}: {line}"
        for finding in findings
        if finding.outcome is not None
        for line in finding.outcome.notes
    ]
    shares = [
        (figure.details["client_share"], finding.row.name)
        for finding in findings
        if finding.outcome is not None
        for pair in finding.outcome.pairs
        for figure in (pair.ours, pair.ruler)
        if "client_share" in figure.details
    ]
    if shares:
        share, name = max(shares)
        lines.append(f"The load generator used at most {share:.0%} of one core (in {name}).")
    return lines


def _cells(finding: Finding) -> list[str]:
    row, outcome = finding.row, finding.outcome
    title = f"[bold]{row.name}[/]  {row.title}, against {row.ruler}"
    bounds = "\n".join(_ratio(row, mark) for mark in (row.reach, row.dream) if mark is not None)
    if outcome is None:
        state = "[red]failed" if finding.failed else "[yellow]not measured"
        return [title, "", "", bounds, state, "", ""]
    values = (
        outcome.median(lambda pair: pair.ours.value),
        outcome.median(lambda pair: pair.ruler.value),
    )
    cpu = (
        outcome.median(lambda pair: pair.ours.cpu_us),
        outcome.median(lambda pair: pair.ruler.cpu_us),
    )
    low, high = outcome.span
    syncs = outcome.syncs
    return [
        title,
        "\n".join(f"{_number(value)} {row.unit}" for value in values if value is not None),
        f"[bold]{_ratio(row, outcome.ratio)}[/]\n{_ratio(row, low)} … {_ratio(row, high)}",
        bounds,
        _MARKS[row.mark(outcome.ratio)],
        "\n".join(_number(value) for value in cpu if value is not None),
        f"{syncs:.2g}" if isinstance(syncs, float) else "",
    ]


def _ratio(row: Row, value: float) -> str:
    return f"{value:.0%}" if row.share else f"{value:.2f} ×"


def _number(value: float) -> str:
    """Return a figure in three or more places."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def as_json(findings: list[Finding], directory: Path) -> dict[str, Any]:
    """Return everything that was measured, and on what."""
    return {
        "measured_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "machine": {
            "cores": os.cpu_count(),
            "processor": _processor(),
            "system": platform.platform(),
            "log_filesystem": filesystem(directory),
            "load_average": os.getloadavg(),
        },
        "versions": {
            "python": platform.python_version(),
            "sqlite": sqlite3.sqlite_version,
            **{name: metadata.version(name) for name in ("grpcio", "uvloop", "protobuf")},
        },
        "rows": [_row(finding) for finding in findings],
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _row(finding: Finding) -> dict[str, Any]:
    row, outcome = finding.row, finding.outcome
    named = {
        "name": row.name,
        "title": row.title,
        "ruler": row.ruler,
        "unit": row.unit,
        "reach": row.reach,
        "dream": row.dream,
        "lower_is_better": row.lower,
    }
    if outcome is None:
        return {**named, "state": "failed" if finding.failed else "not measured",
                "words": finding.words}  # fmt: skip
    return {
        **named,
        "state": row.mark(outcome.ratio),
        "ratio": outcome.ratio,
        "range": outcome.span,
        "syncs_per_set": outcome.syncs,
        "notes": list(outcome.notes),
        "pairs": [asdict(pair) for pair in outcome.pairs],
    }
