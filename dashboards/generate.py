"""Writes the dashboards: ``python -m dashboards.generate [--check]``.

With ``--check`` nothing is written, and the exit code says whether what is committed is what the
code says.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dashboards.log import LOG
from dashboards.overview import OVERVIEW
from dashboards.process import PROCESS
from dashboards.render import as_json
from dashboards.tools import TOOLS
from dashboards.watchers import WATCHES

__all__ = ["DASHBOARDS", "DIRECTORY", "drifted", "texts"]

DASHBOARDS = (OVERVIEW, LOG, WATCHES, TOOLS, PROCESS)
DIRECTORY = Path(__file__).parent / "grafana"


def texts() -> dict[str, str]:
    """The text of each file, by its name."""
    return {
        f"{dashboard.uid.removeprefix('snakepit-bridge-')}.json": as_json(dashboard)
        for dashboard in DASHBOARDS
    }


def drifted() -> list[str]:
    """Names of the files that are not what the code says; also of those too many."""
    expected = texts()
    found = {path.name: path.read_text() for path in DIRECTORY.glob("*.json")}
    return sorted(name for name in expected | found if expected.get(name) != found.get(name))


def _write() -> None:
    DIRECTORY.mkdir(exist_ok=True)
    expected = texts()
    for path in DIRECTORY.glob("*.json"):
        if path.name not in expected:
            path.unlink()
    for name, text in expected.items():
        (DIRECTORY / name).write_text(text)


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        if names := drifted():
            sys.exit(f"{', '.join(names)}: not what dashboards/*.py say: run make dashboards")
    elif sys.argv[1:]:
        sys.exit(f"{sys.argv[1:]} is not understood: the only argument is --check")
    else:
        _write()
