"""How figures look: sizes and lines for papers, colours that tell curves apart for every kind of eye."""

from __future__ import annotations

from typing import Any

LIGHT = ("#3d4bbf", "#a02a11", "#379280", "#7b1b74", "#af7505", "#3698f4", "#df63bb", "#626263")
DARK = ("#218bf8", "#db524e", "#1cdea6", "#c6aafc", "#d7a124", "#8bf5fd", "#c253bd", "#9f9ea2")
"""Colours in the order in which runs get them: blue, red, green, purple, yellow, cyan, pink, grey.

Found by a search for the largest least distance in OKLab, for normal sight and for protan, deutan and tritan
deficiency, among colours with a contrast of at least 3 to a white or of 4.5 to a dark page.
"""

SIZE = (3.5, 2.5)
"""Inches: a column of a paper."""

LOOK: Any = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e8eb",
    "grid.linewidth": 0.6,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.3,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "savefig.dpi": 300,
    "svg.hashsalt": "tether",  # the same runs give the same file
}
