"""Sizes and durations as people write them on a command line."""

from __future__ import annotations

import re

import typer

__all__ = ["duration", "size"]

_SIZES = {"": 1, "b": 1, "k": 1024, "m": 1024**2, "g": 1024**3}
_TIMES = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0}


def size(text: str | int) -> int:
    """Read ``128MiB``, ``64M``, ``4096``: bytes, in powers of 1,024."""
    match = re.fullmatch(r"(\d{1,15})\s*([kmg]?)(?:i?b)?", str(text).strip().lower())
    if match is None:
        raise typer.BadParameter(f"{text!r} is no size: write bytes, or for example 64MiB, 1GiB")
    if not int(match[1]):
        raise typer.BadParameter(f"{text!r} would allow nothing")
    return int(match[1]) * _SIZES[match[2]]


def duration(text: str | float) -> float:
    """Read ``7d``, ``12h``, ``30m``, ``90``: seconds."""
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,9})?)\s*(ms|[smhdw]?)", str(text).strip().lower())
    if match is None:
        raise typer.BadParameter(
            f"{text!r} is no duration: write seconds, or for example 30s, 15m, 12h, 7d"
        )
    return float(match[1]) * _TIMES[match[2]]
