"""Who holds what, as a page draws it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tether.data.holdings import BUBBLES, alike, largest
from tether.report.runs import Run

COLUMNS = 400
"""More workers than these share columns of a heat map, which then has the means of workers who hold alike."""


def pictures(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """What to draw for each way in which the data are divided among these runs, with the numbers of its runs."""
    found: list[dict[str, Any]] = []
    for number, run in enumerate(runs):
        if run.holdings is None:
            continue
        same = next((each for each in found if each["holdings"] == run.holdings), None)
        if same is None:
            found.append(same := {"holdings": run.holdings, "runs": []})
        same["runs"].append(number)
    return [_picture(**each) | {"of": _of(runs, each["runs"]) if len(found) > 1 else ""} for each in found]


def _of(runs: Sequence[Run], numbers: Sequence[int]) -> str:
    """Which runs these are, unless that is their group, which has its name from what they hold."""
    groups = {run.group for run in runs}
    theirs = {runs[number].group for number in numbers}
    return "" if len(theirs) == 1 and len(groups) > 1 else ", ".join(runs[number].name for number in numbers)


def _picture(holdings: dict[str, Any], runs: list[int]) -> dict[str, Any]:
    """Counts of each worker; of many, shares of each column of workers who hold alike, the first of whom is `first`."""
    counts, names = largest(np.array(holdings["counts"]), tuple(holdings["names"]))
    workers = len(counts)
    drawn = {"title": holdings["title"], "names": names, "workers": workers, "runs": runs}
    if workers <= BUBBLES:
        return drawn | {"counts": counts.tolist(), "sizes": counts.sum(1).tolist()}
    counts = counts[alike(counts)]
    edges = np.linspace(0, workers, min(workers, COLUMNS) + 1).astype(int)
    sums = np.add.reduceat(counts, edges[:-1], axis=0)
    shares = sums / sums.sum(1, keepdims=True)
    return drawn | {
        "shares": [[float(f"{share:.3g}") for share in row] for row in shares.T.tolist()],
        "most": float(shares.max()),
        "sizes": [float(f"{size:.5g}") for size in sums.sum(1) / np.diff(edges)],
        "first": edges[:-1].tolist(),
    }
