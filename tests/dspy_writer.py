"""Sets all variables of ``dspy_programs.Program`` over and over, each time as one transaction.

python -m tests.dspy_writer HOST:PORT SESSION    # until its standard input is closed
"""

from __future__ import annotations

import itertools
import select
import sys
from collections.abc import Callable
from typing import Any

ARMS = ("plain", "think")
LMS = ("m0", "m1", "m2")


def generation(number: int) -> dict[str, Any]:
    """Values that tell which others belong to them. So many temperatures are all different."""
    return {
        "temperature": number / 1_000_000,
        "model": LMS[number % len(LMS)],
        "strategy": ARMS[number % len(ARMS)],
        "style": f"Style {number}.",
    }


def number_of(values: dict[str, Any]) -> int:
    """The generation that values are of.

    :raises AssertionError: they are of several.
    """
    number: int = round(values["temperature"] * 1_000_000)
    assert values == generation(number), f"mixed: {values}"
    return number


def write(set_variables: Callable[[dict[str, Any]], object], done: Callable[[], bool]) -> None:
    """Write one generation after the other."""
    for number in itertools.count(1):
        if done():
            return
        set_variables(generation(number))


def main() -> None:
    from snakepit_bridge.client import Client  # noqa: PLC0415 - the functions above need none

    target, session_id = sys.argv[1:]
    with Client(target) as bridge:
        session = bridge.session(session_id)
        sys.stdout.write("writing\n")
        sys.stdout.flush()
        write(session.set_many, lambda: bool(select.select([sys.stdin], [], [], 0)[0]))


if __name__ == "__main__":
    main()
