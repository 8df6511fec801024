"""What a dashboard says, without how Grafana writes it."""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["Dashboard", "Panel", "Query", "Row", "Style"]

Style = Literal["lines", "stacked", "heat", "number"]
"""Series over time; the same on top of each other, where they add up to something; how often each
size occurred, over time; one number, as it is now."""


class Query(NamedTuple):
    """One expression of PromQL."""

    expr: str
    legend: str = ""
    """Name of each series; ``{{label}}`` is replaced by its value."""
    exemplars: bool = False
    """Whether to ask for examples with the trace they are of."""


class Panel(NamedTuple):
    """A picture that answers one question."""

    title: str
    about: str
    """What is seen, what is normal, and what it means if it is not."""
    unit: str
    """Grafana's name of it."""
    queries: tuple[Query, ...]
    style: Style = "lines"
    width: int = 12
    """Of the 24 columns."""
    alarms: tuple[float, ...] = ()
    """From which value on it is yellow, and red."""


class Row(NamedTuple):
    """Panels under one heading, from left to right."""

    title: str
    panels: tuple[Panel, ...]


class Dashboard(NamedTuple):
    """One page."""

    uid: str
    """By which links and bookmarks find it: it never changes."""
    title: str
    about: str
    rows: tuple[Row, ...]
