"""What a docstring says of a tool: its summary, and each parameter's description.

Google's, NumPy's and Sphinx' ways of writing them are read by ``docstring-parser``.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

import docstring_parser

__all__ = ["parameter_descriptions", "summary"]

logger = logging.getLogger(__name__)

_FIELD = re.compile(r"\s*:\w[\w ]*:|\s*@\w+[ :]")
"""Begins a field of reST or Epydoc; what stands before the first is the summary."""


def summary(function: Callable[..., Any]) -> str:
    """Give the first paragraph of a docstring as one line; empty without one."""
    lines: list[str] = []
    for line in (inspect.getdoc(function) or "").splitlines():
        if not line.strip() or _FIELD.match(line):
            break
        lines.append(line.strip())
    return " ".join(lines)


def parameter_descriptions(function: Callable[..., Any]) -> Mapping[str, str]:
    """Give what a docstring says of its parameters, by name, each as one line."""
    text = inspect.getdoc(function) or ""
    if "\n" not in text.strip():
        return {}
    try:
        parsed = docstring_parser.parse(text)
    except docstring_parser.ParseError as error:
        name = getattr(function, "__qualname__", function)
        logger.debug("the docstring of %s describes no parameters: %s", name, error)
        return {}
    return {
        name.lstrip("*"): " ".join(param.description.split())
        for param in parsed.params
        if param.description
        for name in param.arg_name.split(", ")  # NumPy's way for several at once
    }
