"""The command line: measure the bridge against its rulers and print the table."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.errors import BenchmarkError, NotMeasured
from benchmarks.flame import flame
from benchmarks.loads import Scale
from benchmarks.long_logs import Shelf
from benchmarks.proc import filesystem
from benchmarks.rows import ROWS, Row, measure
from benchmarks.table import Finding, as_json, notes, table

_QUICK = Scale(pairs=3, share=0.3, size=0.1)
_OUT = Path(__file__).resolve().parent / "out"
# Where a sync costs nothing: "durable" would mean nothing there.
_VOLATILE = {"tmpfs", "ramfs"}

__all__ = ["main"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
_errors = Console(stderr=True)

Directory = Annotated[
    Path, typer.Option("--dir", help="Where the logs are written: a real disk, not tmpfs.")
]


@app.callback(invoke_without_command=True)
def bench(  # noqa: PLR0913, PLR0917 - an option is an argument
    context: typer.Context,
    pairs: Annotated[int | None, typer.Option(min=1, help="Alternated pairs a row.")] = None,
    rows: Annotated[
        list[str] | None, typer.Option(help="Only these rows: names, by comma or repeated.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="3 pairs, shorter and smaller.")] = False,  # noqa: FBT002
    file: Annotated[Path | None, typer.Option("--json", help="Write everything here.")] = None,
    directory: Directory = _OUT,
) -> None:
    """Measure the bridge against a bare gRPC server, plain SQLite and etcd, in pairs of runs.

    Long sessions are measured against short ones.

    Exits with 1 if a row failed: a wrong answer, a process that died, a time limit.
    """
    if context.invoked_subcommand is not None:
        return
    scale = _QUICK if quick else Scale()
    scale = replace(scale, pairs=pairs or scale.pairs)
    chosen = _chosen(rows)
    _real(directory)
    findings = []
    kept = Path(tempfile.mkdtemp(prefix="logs-", dir=directory))
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )  # fmt: skip
    try:
        with Progress(*columns, console=_errors, transient=True) as progress:
            task = progress.add_task("", total=sum(2 * row.pairs(scale) + 1 for row in chosen))
            shelf = Shelf(kept, progress)
            done = 0
            for row in chosen:
                progress.update(task, description=row.name)
                found = _measured(row, scale, directory, shelf, lambda: progress.advance(task))
                findings.append(found)
                done += 2 * row.pairs(scale) + 1
                progress.update(task, completed=done)
    finally:
        shutil.rmtree(kept, ignore_errors=True)
    if quick:
        typer.echo(
            "Quick: fewer pairs, shorter runs, smaller sizes (see the notes below the table).",
            err=True,
        )
    _print(findings)
    if file is not None:
        _write(file, json.dumps(as_json(findings, directory), indent=1))
    if any(finding.failed for finding in findings):
        raise SystemExit(1)


@app.command()
def profile(
    work: Annotated[str, typer.Argument(help="set, get or batch")],
    seconds: Annotated[int, typer.Option(min=1, max=60, help="How long to sample.")] = 5,
    directory: Directory = _OUT,
) -> None:
    """Draw a flame graph of the bridge under one load, into benchmarks/out/ (needs py-spy)."""
    _real(directory)
    _OUT.mkdir(exist_ok=True)
    try:
        drawn = flame(work, seconds, directory, _OUT / f"{work}.svg")
    except BenchmarkError as error:
        _fail(str(error))
    typer.echo(drawn)


def _chosen(names: list[str] | None) -> list[Row]:
    """Return the rows with these names, or all."""
    wanted = [name for given in names or () for name in given.replace(",", " ").split()]
    known = {row.name: row for row in ROWS}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        _fail(f"no row is named {', '.join(unknown)}; there are: {', '.join(known)}")
    return [known[name] for name in wanted] or list(ROWS)


def _real(directory: Path) -> None:
    """Make the directory, and refuse one that is not on a disk."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _fail(f"{directory} cannot be made: {error.strerror}")
    kind = filesystem(directory)
    if kind in _VOLATILE:
        _fail(f"{directory} is on {kind}, where nothing is durable: choose a disk with --dir")


def _measured(
    row: Row, scale: Scale, directory: Path, shelf: Shelf, advance: Callable[[], None]
) -> Finding:
    try:
        return Finding(row, measure(row, scale, directory, shelf, advance))
    except NotMeasured as reason:
        return Finding(row, words=str(reason))
    except BenchmarkError as error:
        return Finding(row, words=str(error), failed=True)


def _print(findings: list[Finding]) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = 120
    console.print(table(findings))
    for line in notes(findings):
        console.print(line, markup=False, highlight=False)


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        _fail(f"{file} cannot be written: {error.strerror}")


def _fail(words: str) -> NoReturn:
    _errors.print(words, style="red", markup=False, highlight=False)
    raise SystemExit(2)


def main() -> None:
    """Run the command line; SIGTERM ends it as Ctrl-C does, and its servers with it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    app(prog_name="python -m benchmarks")
