"""What Snakepit runs: ``python .../snakepit_bridge/grpc_server.py --adapter ...``.

Snakepit tells its worker processes from others by this file's name in the command line,
with ``--snakepit-run-id`` after it; so it is run by path. The options are those of
``snakepit-bridge snakepit``.
"""

from __future__ import annotations

import os
import sys

__all__ = ["main"]


def main() -> None:
    """Be ``snakepit-bridge snakepit``."""
    _import_from_here()
    from snakepit_bridge.cli import main as cli  # noqa: PLC0415 - which one depends on the line above

    cli(["snakepit", *sys.argv[1:]])


def _import_from_here() -> None:
    """See to it that this package is imported, here and in child processes.

    Snakepit's PYTHONPATH holds another package of the same name. And Python puts the directory
    of a script on the path, where names as ``server`` or ``errors`` would hide other modules.
    """
    here = os.path.dirname(os.path.realpath(__file__))  # noqa: PTH120 - pathlib would be imported
    above = os.path.dirname(here)  # noqa: PTH120 - by the path that is mended here
    sys.path[:] = [above, *(each for each in sys.path if os.path.realpath(each) != here)]
    python_path = os.environ.get("PYTHONPATH", "")
    if python_path.split(os.pathsep)[0] != above:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (above, python_path)))


if __name__ == "__main__":
    main()
