"""What the theorems ask of the numbers they are given, and what to say where they do not have it."""

from __future__ import annotations

import math

SLACK = 1e-9
"""So much more than a limit is still within it: the limit that an error names must itself be accepted."""


def positive(**values: float) -> None:
    """Raise `ValueError` unless all of these are finite and more than 0."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value:g}: give a finite number, more than 0")


def not_negative(**values: float) -> None:
    """Raise `ValueError` unless all of these are finite and at least 0."""
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}={value:g}: give a finite number, at least 0")


def at_most(name: str, value: float, limit: float, why: str) -> None:
    """Raise `ValueError`, naming the limit and why it is one, unless the value is within it."""
    if value > limit * (1 + SLACK):
        raise ValueError(f"{name}={value:g}: {why} needs {name} <= {limit:.6g}")
