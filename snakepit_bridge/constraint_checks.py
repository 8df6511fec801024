"""One function per constraint: it makes the check of a variable's typed Python values.

A check takes what ``type_serialization.accept`` gives, returns nothing, and raises
``InvalidValue`` with the value and the constraint in its message. What the constraints
mean is the wire contract's (section 3); where that leaves room, it is said here.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snakepit_bridge.errors import InvalidValue, quote
from snakepit_bridge.linear_pattern import pattern_fault

__all__ = [
    "DTYPES",
    "NORM_TOLERANCE",
    "STEP_TOLERANCE",
    "Check",
    "bounds",
    "dimensions",
    "dtype",
    "extents",
    "float_step",
    "integer_step",
    "lengths",
    "namespace",
    "one_of",
    "pattern",
    "short",
    "unit_norm",
]

Check = Callable[[Any], None]

_SHORT = 40

STEP_TOLERANCE = 1e-9
"""How far a float may be from a multiple of the step, in steps."""

NORM_TOLERANCE = 1e-6
"""How far the norm of a normalized embedding may be from 1. Vectors that were normalized
in float32 come within about 1e-7."""


def bounds(lower: float | None, upper: float | None) -> Check:
    """Make the check of ``min`` and ``max``. Exact between int and float; NaN fails it."""
    low = -math.inf if lower is None else lower
    high = math.inf if upper is None else upper

    def check(value: float) -> None:
        if low <= value <= high:
            return
        if value < low:
            raise _violation(f"value {short(value)} is below minimum {short(low)}")
        if value > high:
            raise _violation(f"value {short(value)} is above maximum {short(high)}")
        raise _violation("value NaN is within no minimum or maximum")

    return check


def integer_step(base: int, step: int) -> Check:
    """Make the check of an integer's ``step``: exact."""

    def check(value: int) -> None:
        if (value - base) % step:
            raise _off_step(value, base, step)

    return check


def float_step(base: float, step: float) -> Check:
    """Make the check of a float's ``step``: within 1e-9 of a step.

    What rounding to doubles can have moved is allowed too, else 12345678.9 would be no
    multiple of 0.1. Infinities and NaN are multiples of nothing.
    """

    def check(value: float) -> None:
        if math.isfinite(value):
            rounded = 4 * sys.float_info.epsilon * (abs(value) + abs(base)) / step
            slack = STEP_TOLERANCE + rounded
            # From half a step on, the doubles here are as far apart as the steps.
            if 2 * slack >= 1 or abs(math.remainder((value - base) / step, 1)) <= slack:
                return
        raise _off_step(value, base, step)

    return check


def lengths(shortest: int | None, longest: int | None) -> Check:
    """Make the check of ``min_length`` and ``max_length``, in Unicode code points."""
    most = math.inf if longest is None else longest

    def check(value: str) -> None:
        length = len(value)
        if length < (shortest or 0):
            raise _violation(f"value of {length} characters is below minimum length {shortest}")
        if length > most:
            raise _violation(f"value of {length} characters is above maximum length {longest}")

    return check


def one_of(key: str, choices: tuple[str, ...]) -> Check:
    """Make the check of ``choices``, ``allowed_modules`` or ``enum`` (``key``)."""
    allowed = frozenset(choices)

    def check(value: str) -> None:
        if value not in allowed:
            listed = quote(", ".join(choices), 200)
            raise _violation(f"value {quote(value)} is not among the {key} {listed}")

    return check


def namespace(name: str) -> Check:
    """Make the check of ``namespace``: the module of that name, or any below it."""

    def check(value: str) -> None:
        if value != name and not value.startswith(name + "."):
            raise _violation(f"module {quote(value)} is not in the namespace {quote(name)}")

    return check


def pattern(expression: str) -> Check:
    """Make the check of ``pattern``; it matches anywhere unless anchored."""

    def check(value: str) -> None:
        fault = pattern_fault(expression, value)
        if fault:
            raise _violation(fault)

    return check


def dimensions(count: int) -> Check:
    """Make the check of an embedding's ``dimensions``."""

    def check(value: NDArray[Any]) -> None:
        if len(value) != count:
            raise _violation(f"embedding of {len(value)} dimensions, must have {count}")

    return check


def unit_norm(value: NDArray[Any]) -> None:
    """Check ``normalize``: Euclidean norm 1 within 1e-6. The value is never changed.

    In float64 whatever the dtype: the squares of a float16 overflow beyond 255, those of an
    int8 beyond 11. einsum converts in blocks and makes no copy of a large array.
    """
    with np.errstate(all="ignore"):  # of huge elements: the norm is infinite
        norm = math.sqrt(np.einsum("i,i->", value, value, dtype=np.float64))
    if not abs(norm - 1) <= NORM_TOLERANCE:
        raise _violation(
            f"embedding of norm {norm:.9g}, must have norm 1 within {NORM_TOLERANCE}: "
            "normalize it before sending"
        )


def extents(shape: tuple[int | None, ...]) -> Check:
    """Make the check of a tensor's ``shape``; None is any extent."""

    def check(value: NDArray[Any]) -> None:
        given = value.shape
        if len(given) != len(shape) or any(
            wanted is not None and wanted != extent
            for wanted, extent in zip(shape, given, strict=True)
        ):
            listed = ", ".join("any" if extent is None else str(extent) for extent in shape)
            raise _violation(f"tensor of shape {list(given)}, must be [{listed}]")

    return check


def _integers(low: int, high: int) -> tuple[bool, float, float]:
    return True, low, high


def _floats(overflow: float) -> tuple[bool, float, float]:
    # The last double that still rounds to a finite value: below max + half an ulp.
    last = math.nextafter(overflow, 0)
    return False, -last, last


DTYPES = {
    "float16": _floats(65520.0),
    "float32": _floats(2.0**128 - 2.0**103),
    "float64": _floats(math.inf),
    "bfloat16": _floats(2.0**128 - 2.0**119),
    "int8": _integers(-(2**7), 2**7 - 1),
    "int16": _integers(-(2**15), 2**15 - 1),
    "int32": _integers(-(2**31), 2**31 - 1),
    "int64": _integers(-(2**63), 2**63 - 1),
    "uint8": _integers(0, 2**8 - 1),
    "uint16": _integers(0, 2**16 - 1),
    "uint32": _integers(0, 2**32 - 1),
    "uint64": _integers(0, 2**64 - 1),
    "bool": _integers(0, 1),
}
"""The wire contract's dtypes: whether integral, the least and the greatest element."""


def dtype(name: str) -> Check:
    """Make the check of a tensor's ``dtype``: each element must fit into one.

    JSON numbers have no dtype. So an integer dtype takes numbers without fraction in its
    range (bool: 0 and 1); a float dtype takes all that do not overflow to infinity, the
    special floats included. Rounding is no violation. The binary form is held to the same,
    so that what a variable takes does not depend on a value's form; where its dtype is
    this one, or one that numpy widens to it safely, no element is looked at.
    """
    integral, least, greatest = DTYPES[name]
    wanted = None if name == "bfloat16" else np.dtype(name)

    def check(value: NDArray[Any]) -> None:
        if wanted is not None and np.can_cast(value.dtype, wanted, "safe"):
            return
        if integral and value.dtype.kind == "f" and not _is_integral(value):
            raise _violation(f"tensor with an element that has a fraction, as {name} has not")
        low, high = _range(value)
        if low <= high and (low < least or high > greatest):
            raise _violation(
                f"tensor with elements from {short(low)} to {short(high)}, "
                f"beyond the range of {name}"
            )

    return check


def _range(value: NDArray[Any]) -> tuple[float, float]:
    """The least and the greatest finite element; the infinities where there is none."""
    if value.dtype.kind == "f":
        finite = np.isfinite(value)
        low = value.min(initial=math.inf, where=finite)
        return low.item(), value.max(initial=-math.inf, where=finite).item()
    return (value.min().item(), value.max().item()) if value.size else (math.inf, -math.inf)


def _is_integral(value: NDArray[Any]) -> bool:
    # NaN equals nothing, and infinities are their own integral part.
    return bool(np.isfinite(value).all() and (value == np.trunc(value)).all())


def short(number: object) -> str:
    """Write a number for a message; one of more than 40 characters without its middle."""
    text = str(number)
    return text if len(text) <= _SHORT else f"{text[:24]}...{text[-12:]}"


def _violation(message: str) -> InvalidValue:
    return InvalidValue(message, field="value")


def _off_step(value: float, base: float, step: float) -> InvalidValue:
    return _violation(
        f"value {short(value)} is not a multiple of step {short(step)} from {short(base)}"
    )
