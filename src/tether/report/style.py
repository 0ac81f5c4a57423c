"""How runs look, on pages and in figures: dashes, and who gets which colour."""

from __future__ import annotations

from collections.abc import Sequence

from tether.look import DARK as DARK
from tether.look import LIGHT as LIGHT
from tether.report.runs import Run

DASHES = ("solid", "dash", "dot", "dashdot")


def looks(runs: Sequence[Run]) -> list[tuple[int, int]]:
    """Each run's number of a colour and of a dash: a colour a method and a dash a group, if runs come in groups."""
    methods = list(dict.fromkeys(run.method for run in runs))
    groups = list(dict.fromkeys(run.group for run in runs))
    if len(groups) > 1 and len(methods) <= len(LIGHT) and len(groups) <= len(DASHES):
        return [(methods.index(run.method), groups.index(run.group)) for run in runs]
    return [(number % len(LIGHT), number // len(LIGHT) % len(DASHES)) for number in range(len(runs))]
