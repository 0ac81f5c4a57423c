"""How runs look, on pages and in figures: colours and dashes that tell them apart for every kind of eye."""

from __future__ import annotations

from collections.abc import Sequence

from tether.report.runs import Run

LIGHT = ("#3d4bbf", "#a02a11", "#379280", "#7b1b74", "#af7505", "#3698f4", "#df63bb", "#626263")
DARK = ("#218bf8", "#db524e", "#1cdea6", "#c6aafc", "#d7a124", "#8bf5fd", "#c253bd", "#9f9ea2")
"""Colours in the order in which runs get them: blue, red, green, purple, yellow, cyan, pink, grey.

Found by a search for the largest least distance in OKLab, for normal sight and for protan, deutan and tritan
deficiency, among colours with a contrast of at least 3 to a white or of 4.5 to a dark page.
"""

DASHES = ("solid", "dash", "dot", "dashdot")


def looks(runs: Sequence[Run]) -> list[tuple[int, int]]:
    """Each run's number of a colour and of a dash: a colour a method and a dash a group, if runs come in groups."""
    methods = list(dict.fromkeys(run.method for run in runs))
    groups = list(dict.fromkeys(run.group for run in runs))
    if len(groups) > 1 and len(methods) <= len(LIGHT) and len(groups) <= len(DASHES):
        return [(methods.index(run.method), groups.index(run.group)) for run in runs]
    return [(number % len(LIGHT), number // len(LIGHT) % len(DASHES)) for number in range(len(runs))]
