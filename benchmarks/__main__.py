"""``python -m benchmarks``."""

from __future__ import annotations

try:
    from benchmarks.cli import main
except ModuleNotFoundError as error:
    raise SystemExit(f"{error.name} is not installed: pip install -e '.[dev]'") from None

if __name__ == "__main__":
    main()
