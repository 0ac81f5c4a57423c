"""What is said of curves that fall while networks train."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from tether.report.curves import measured
from tether.report.runs import Run

Curve = tuple[Float[np.ndarray, " ..."], Float[np.ndarray, " ..."]]
"""Times, steps or rounds, and the error or loss then."""


def of_center(run: Run, measure: str, axis: str = "steps") -> Curve:
    """What evaluations measured of the mean model, or of the center: none in a run that diverged before the first.

    Args:
        run: the run.
        measure: such as "loss".
        axis: "steps", "rounds" or "virtual" seconds.
    """
    found = measured(run, "center", measure)
    return (np.empty(0), np.empty(0)) if found is None else (run.against(axis)[found.at].astype(float), found.y)


def times_sooner(curve: Curve, other: Curve, start: float | None = None) -> float:
    """How many times sooner a curve falls to the same values as another.

    The median over values in the lower half of what both have come to, since one alone depends on chance. If one never
    came to the first that was measured of the other, it is the ratio at the least value of the worse one.

    Args:
        curve: the one.
        other: the other.
        start: the value of both at 0, where it is known.
    """
    lowest = [(times, np.minimum.accumulate(values)) for times, values in (curve, other)]
    top, bottom = min(low[0] for _, low in lowest), max(low[-1] for _, low in lowest)
    targets = np.linspace(bottom, max(bottom, (top + bottom) / 2), 21)
    if start is not None:
        lowest = [(np.append(0.0, times), np.append(start, low)) for times, low in lowest]
    one, two = (np.interp(-targets, -low, times) for times, low in lowest)
    return float(np.median(two / one))
