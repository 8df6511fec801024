"""What can go wrong in a benchmark, said in words that stand alone.

::

    BenchmarkError     the row has failed: a wrong answer, a dead process, a time limit
    └── NotMeasured    the row could not be tried here; says what would make it possible
"""

from __future__ import annotations

__all__ = ["BenchmarkError", "NotMeasured"]


class BenchmarkError(Exception):
    """A row has failed; its text is what the user reads."""


class NotMeasured(BenchmarkError):
    """A row was not tried, because something is not installed or not allowed here."""
