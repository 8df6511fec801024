"""DSPy programs that are driven by the variables of a session.

Each call reads all bound variables at one moment, runs with them as arguments of the calls that it
makes, and says on its prediction which they were. Modules are never changed.
"""

from __future__ import annotations

try:
    import dspy as _dspy
except ModuleNotFoundError as error:
    if error.name != "dspy":
        raise
    raise ModuleNotFoundError(
        "snakepit_bridge.dspy_modules needs DSPy: pip install 'snakepit-bridge[dspy]'", name="dspy"
    ) from None

from snakepit_bridge.dspy_modules.calls import current_reading
from snakepit_bridge.dspy_modules.compiling import compiling
from snakepit_bridge.dspy_modules.leaves import Arms, SteeredPredict
from snakepit_bridge.dspy_modules.modules import (
    VariableAwareChainOfThought,
    VariableAwareModule,
    VariableAwarePredict,
    VariableAwareReAct,
)

__all__ = [
    "Arms",
    "SteeredPredict",
    "VariableAwareChainOfThought",
    "VariableAwareModule",
    "VariableAwarePredict",
    "VariableAwareReAct",
    "compiling",
    "current_reading",
]

del _dspy
