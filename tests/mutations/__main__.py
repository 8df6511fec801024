"""Break each guarantee on purpose and see its test fail: ``make mutants``.

A ``.patch`` beside this file is one mutation: a unified diff under three lines that say
which guarantee it breaks, how, and which test must notice. All run in copies of the
sources, several at a time. First the named tests must pass there; then each patch is applied,
its test must fail, and the patch is taken back. A patch that no longer applies is an error: it
is to be written anew for the code as it is now.

    python -m tests.mutations                    all
    python -m tests.mutations dirty-read ...     some, by the names of their files
"""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
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
            # Two mutations within a second may give files of one size and time: what is compiled
            # is found by the hash of its source, and what is mutated never written down.
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        compiled = (sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "checked-hash")
        self._run(*compiled, "snakepit_bridge", "tests", "benchmarks", "examples")
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


class Verdict(NamedTuple):
    mutation: Mutation
    caught: bool
    seconds: float


def judge(mutation: Mutation, copies: queue.SimpleQueue[Copy]) -> Verdict:
    """Run the test of a mutation in the next copy that is free.

    :raises SystemExit: the test did not run.
    """
    copy = copies.get()
    try:
        began = time.perf_counter()
        copy.apply(mutation.patch)
        result = copy.test(mutation.test)
        copy.apply(mutation.patch, "--reverse")
    finally:
        copies.put(copy)
    if result.returncode not in (PASSED, FAILED):
        print(result.stdout, result.stderr)
        raise SystemExit(f"under {mutation.patch.name} the test did not run")
    return Verdict(mutation, result.returncode == FAILED, time.perf_counter() - began)


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Mutations; all if none.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="How many at a time.")] = os.cpu_count() or 1,
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
        made = [Copy(Path(directory).resolve() / str(n)) for n in range(min(jobs, len(chosen)))]
        for mutation in chosen:
            made[0].apply(mutation.patch, "--check")
        console.print("The named tests, without mutations ...")
        unmutated = made[0].test(*{mutation.test: None for mutation in chosen})
        if unmutated.returncode != PASSED:
            console.print(unmutated.stdout, markup=False)
            raise SystemExit("they fail already, so they could not tell")
        copies: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        for copy in made:
            copies.put(copy)
        with ThreadPoolExecutor(len(made)) as pool:
            judged = [pool.submit(judge, mutation, copies) for mutation in chosen]
            for done in track(
                as_completed(judged), "Mutations", total=len(judged), console=console
            ):
                if done.exception() is not None:
                    pool.shutdown(cancel_futures=True)
                    done.result()
    table = Table("guarantee", "mutation", "caught by", "", "seconds", show_lines=True)
    table.columns[2].overflow = "fold"
    verdicts = [one.result() for one in judged]
    for mutation, caught, seconds in verdicts:
        table.add_row(
            mutation.guarantee,
            mutation.mutation,
            mutation.test.rpartition("::")[2].replace("[", r"\["),
            "[green]caught" if caught else "[bold red]NOT CAUGHT",
            f"{seconds:.1f}",
        )
    console.print(table)
    if survivors := sum(not one.caught for one in verdicts):
        raise SystemExit(f"{survivors} of {len(chosen)} mutations were not noticed")


if __name__ == "__main__":
    typer.run(main)
