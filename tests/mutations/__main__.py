"""Break each guarantee on purpose and see its test fail: ``make mutants``.

A ``.patch`` beside this file is one mutation: a unified diff under three lines that say
which guarantee it breaks, how, and which test must notice. All run in a copy of the
sources. First the named tests must pass there; then each patch is applied, its test must
fail, and the patch is taken back. A patch that no longer applies is an error: it is to be
written anew for the code as it is now.

    python -m tests.mutations                    all
    python -m tests.mutations dirty-read ...     some, by the names of their files
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

TEST_TIMEOUT = 60
"""Seconds for a test; one that hangs has failed."""

PASSED, FAILED = 0, 1
"""Exit codes of pytest; any other means that the test did not run."""


class Mutation(NamedTuple):
    patch: Path
    guarantee: str
    mutation: str
    test: str

    @classmethod
    def read(cls, patch: Path) -> Mutation:
        head = patch.read_text().partition("\n\n")[0]
        said = dict(line.split(": ", 1) for line in head.splitlines())
        return cls(patch, said["Guarantee"], said["Mutation"], said["Test"])


class Copy:
    """The sources in another place, where tests import them and nothing else."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():  # and not deleted since
                target = directory / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, target)
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(directory),
            # Two mutations within a second may give files of one size and time.
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        where = "import snakepit_bridge; print(snakepit_bridge.__file__)"
        imported = self._run(sys.executable, "-c", where).stdout.strip()
        if not Path(imported).is_relative_to(directory):
            raise SystemExit(f"the tests would import {imported}, not the copy in {directory}")

    def test(self, *tests: str) -> subprocess.CompletedProcess[str]:
        options = ("-q", "-x", "-p", "no:cacheprovider", f"--timeout={TEST_TIMEOUT}")
        return self._run(sys.executable, "-m", "pytest", *options, *tests)

    def apply(self, patch: Path, *options: str) -> None:
        """Apply a patch.

        :raises SystemExit: it does not fit.
        """
        done = self._run("git", "apply", *options, str(patch))
        if done.returncode:
            raise SystemExit(f"{patch.name} no longer applies: {done.stderr.strip()}")

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.directory,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Mutations; all if none.")] = None,
) -> None:
    """Apply each mutation to a copy of the sources and expect its test to fail."""
    console = Console()
    patches = sorted(HERE.glob("*.patch"))
    unknown = set(names or ()) - {patch.stem for patch in patches}
    if unknown:
        raise SystemExit(f"no such mutation: {', '.join(sorted(unknown))}")
    chosen = sorted(
        (Mutation.read(patch) for patch in patches if not names or patch.stem in names),
        key=lambda mutation: mutation.guarantee,
    )
    with tempfile.TemporaryDirectory(prefix="mutants-") as directory:
        copy = Copy(Path(directory).resolve())
        for mutation in chosen:
            copy.apply(mutation.patch, "--check")
        console.print("The named tests, without mutations ...")
        unmutated = copy.test(*{mutation.test: None for mutation in chosen})
        if unmutated.returncode != PASSED:
            console.print(unmutated.stdout, markup=False)
            raise SystemExit("they fail already, so they could not tell")
        table = Table("guarantee", "mutation", "caught by", "", "seconds", show_lines=True)
        table.columns[2].overflow = "fold"
        survivors = 0
        for mutation in track(chosen, "Mutations", console=console):
            began = time.perf_counter()
            copy.apply(mutation.patch)
            result = copy.test(mutation.test)
            copy.apply(mutation.patch, "--reverse")
            if result.returncode not in (PASSED, FAILED):
                console.print(result.stdout, result.stderr, markup=False)
                raise SystemExit(f"under {mutation.patch.name} the test did not run")
            caught = result.returncode == FAILED
            survivors += not caught
            table.add_row(
                mutation.guarantee,
                mutation.mutation,
                mutation.test.rpartition("::")[2].replace("[", r"\["),
                "[green]caught" if caught else "[bold red]NOT CAUGHT",
                f"{time.perf_counter() - began:.1f}",
            )
        console.print(table)
    if survivors:
        raise SystemExit(f"{survivors} of {len(chosen)} mutations were not noticed")


if __name__ == "__main__":
    typer.run(main)
