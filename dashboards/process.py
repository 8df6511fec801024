"""The process: what it takes of its machine, and what it is."""

from __future__ import annotations

from dashboards.model import Dashboard, Panel, Query, Row
from dashboards.queries import rate, select, total
from snakepit_bridge.telemetry.names import BUILD_INFO, SPANS_DROPPED, Metric

__all__ = ["PROCESS"]

# The collectors of prometheus_client.
_CPU = Metric("process_cpu_seconds_total", "Processor time.")
_RESIDENT = Metric("process_resident_memory_bytes", "Memory.")
_OPEN_FILES = Metric("process_open_fds", "Open file descriptors.")
_MAX_FILES = Metric("process_max_fds", "Most of them.")
_START = Metric("process_start_time_seconds", "When it began.")
_COLLECTIONS = Metric("python_gc_collections_total", "Collections.", ("generation",))
_COLLECTED = Metric("python_gc_objects_collected_total", "Objects freed.", ("generation",))
_UNCOLLECTABLE = Metric("python_gc_objects_uncollectable_total", "Not freed.", ("generation",))

_BY = "{{instance}}"

_WHAT = (
    Panel(
        "Releases",
        "Which release runs on what, and how many of it. After an upgrade there is one.",
        "short",
        (
            Query(
                f"count by (version, engine, python) ({select(BUILD_INFO)})",
                "{{version}} on {{engine}}, Python {{python}}",
            ),
        ),
        "number",
    ),
    Panel(
        "Runs since",
        "Time since the process began. A worker that keeps restarting stays near 0.",
        "s",
        (Query(f"time() - {select(_START)}", _BY),),
        "number",
    ),
)

_MACHINE = (
    Panel(
        "Processor",
        "100 % is one core. The event loop and the committer share an interpreter, so a bridge "
        "that stays near 100 % is at its end; put tools that compute into processes.",
        "percentunit",
        (Query(total(rate(_CPU), "instance"), _BY),),
        alarms=(0.8, 0.95),
    ),
    Panel(
        "Memory",
        "Resident. It grows with loaded sessions, and by 26 kB for each watch; idle sessions are "
        "taken out.",
        "bytes",
        (Query(total(select(_RESIDENT), "instance"), _BY),),
    ),
    Panel(
        "File descriptors",
        "Share of those it may open; connections take one each.",
        "percentunit",
        (
            Query(
                f"{total(select(_OPEN_FILES), 'instance')}"
                f" / {total(select(_MAX_FILES), 'instance')}",
                _BY,
            ),
        ),
        alarms=(0.7, 0.9),
    ),
    Panel(
        "File descriptors, number",
        "A line that only rises is a leak, here or in a tool.",
        "short",
        (Query(total(select(_OPEN_FILES), "instance"), _BY),),
    ),
)

_PYTHON = (
    Panel(
        "Garbage collections",
        "Each minute, by generation. What was imported is frozen and not looked at; generation 2 "
        "looks at all the rest and holds everything up meanwhile, so it should be rare.",
        "cpm",
        (Query(f"{total(rate(_COLLECTIONS), 'generation')} * 60", "generation {{generation}}"),),
    ),
    Panel(
        "Objects in cycles",
        "Freed by the collector, each second, and those that it could not free. Few are "
        "normal; many are errors that hold their frames.",
        "ops",
        (
            Query(total(rate(_COLLECTED)), "freed"),
            Query(total(rate(_UNCOLLECTABLE)), "not freed"),
        ),
    ),
    Panel(
        "Spans dropped",
        "Sampled, and not handed to the exporter in time, each second: more is sampled than it "
        "takes, and traces have holes. What it cannot send, because the backend is away, is not in "
        "here. Normal is 0, also where nothing is exported.",
        "ops",
        (Query(total(rate(SPANS_DROPPED), "instance"), _BY),),
    ),
)

PROCESS = Dashboard(
    "snakepit-bridge-process",
    "Snakepit bridge / Process",
    "What the processes take of their machines: processor, memory, files, garbage collection.",
    (Row("What runs", _WHAT), Row("Machine", _MACHINE), Row("Python", _PYTHON)),
)
