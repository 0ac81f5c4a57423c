"""What a report draws: curves of runs, each as the figure needs it, and what the figures say."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tether.report.runs import Run

AXES = {
    "steps": "local steps of each worker",
    "rounds": "rounds",
    "bytes": "MB sent by each worker",
    "seconds": "seconds of training, without evaluations",
}
"""What a curve may be drawn against, and how its axis is labelled."""

VIRTUAL = {"virtual": "virtual seconds, by the clock of the config"}
"""What curves may be drawn against where every run has a clock."""

POINTS = 1000
"""What is measured while workers train is averaged over windows of local steps, so that curves have no more points."""

SPREAD = (10, 90)
"""Between which percentiles of the workers a band lies."""

MEASURES = {
    "accuracy": ("Test accuracy", "share of held-out samples that the model classifies correctly"),
    "loss": ("Test loss", "loss on held-out samples"),
    "bits_per_byte": ("Bits per byte", "bits that the model needs for a byte of held-out text"),
}
"""Titles of what evaluations measure, and what it is; other measures have their own name."""


@dataclass(frozen=True)
class Curve:
    """A line, and around it a band over the workers.

    Attributes:
        at: `[k]`, the records at which it has points.
        y: `[k]`.
        low, high: `[k]`, the 10th and 90th percentile of the workers; None where it is not of workers.
    """

    at: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


@dataclass(frozen=True)
class Figure:
    """Curves of several runs that are drawn together.

    Attributes:
        key: a short name, for files and links.
        title: what is drawn.
        caption: what it is exactly, with units.
        finding: what can be seen, in a sentence.
        unit: of y: "", or "%" for shares.
        log: whether y has a logarithmic axis.
        curves: for each run its curve, or None.
        best: the same of the best worker, where there is such a thing.
    """

    key: str
    title: str
    caption: str
    finding: str
    unit: str
    log: bool
    curves: list[Curve | None]
    best: list[Curve | None] | None = None


def axes_of(runs: Sequence[Run]) -> dict[str, str]:
    """What the curves of these runs may be drawn against, and how the axis is labelled."""
    return AXES | (VIRTUAL if all(run.now is not None for run in runs) else {})


def figures(runs: Sequence[Run]) -> list[Figure]:
    """All figures of curves that these runs have something for."""
    window = window_of(runs)
    measures = dict.fromkeys(name for run in runs for name in run.center)
    order = sorted(measures, key=lambda name: list(MEASURES).index(name) if name in MEASURES else len(MEASURES))
    drawn = [
        _loss(runs, window),
        *(_measure(runs, name) for name in order),
        _consensus(runs, window),
        _drift(runs, window),
    ]
    return [figure for figure in drawn if any(curve is not None for curve in figure.curves)]


def training_loss(run: Run, window: int) -> Curve | None:
    """The mean over the workers of their training loss, averaged over windows of so many local steps."""
    covered = np.diff(run.steps, prepend=0)
    # Of several records at one step only the first has steps of its own.
    return _windows(run, np.flatnonzero(covered), run.losses, covered, window, np.nanmean)


def window_of(runs: Sequence[Run]) -> int:
    """Local steps over which all training losses are averaged, so that runs with rare rounds and with many compare.

    As many as between the records of the run that has the fewest, but no more than a fiftieth of the run; and no fewer
    than keep the curve to `POINTS`.
    """
    gaps = [int(np.median(np.diff(np.unique(run.steps), prepend=0))) for run in runs if len(run.steps)]
    steps = max(int(run.steps[-1]) for run in runs if len(run.steps))
    return max(1, min(max(gaps), steps // 50), -(-steps // POINTS))


def consensus(run: Run, window: int) -> Curve | None:
    """The consensus distance before rounds, averaged over windows; at evaluations, if it was measured only there."""
    finite = np.isfinite(run.consensus)
    before_rounds = finite & _of_rounds(run)
    records = np.flatnonzero(before_rounds if before_rounds.any() else finite)
    return _windows(run, records, run.consensus[:, None], np.ones(len(finite)), window, np.nanmean)


def drift(run: Run, window: int) -> Curve | None:
    """How far workers have moved since the round before: the median over them, averaged over windows."""
    return _windows(run, np.flatnonzero(_of_rounds(run)), run.drift, np.ones(len(run.steps)), window, np.nanmedian)


def measured(run: Run, of: str, name: str) -> Curve | None:
    """What evaluations measured of the "center" or of the "best" worker."""
    values = getattr(run, of).get(name, np.empty(0))
    at = np.flatnonzero(np.isfinite(values))
    return Curve(at, values[at]) if len(at) else None


def _of_rounds(run: Run) -> np.ndarray:
    """`[n]`, the records of rounds; of several rounds at one step the first, before which workers had moved."""
    return ~run.evaluated & (np.diff(run.steps, prepend=0) > 0)


def _windows(
    run: Run,
    records: np.ndarray,
    values: np.ndarray,
    weights: np.ndarray,
    window: int,
    middle: Callable[..., np.ndarray],
) -> Curve | None:
    """A curve of some of the records: each worker's mean over windows of local steps, and the middle of the workers.

    Args:
        run: of which.
        records: `[k]`, which records.
        values: `[n, m]`, or `[n, 1]` of what is not of workers; NaN where there is no value.
        weights: `[n]`, of the records.
        window: local steps.
        middle: over the workers, such as `np.nanmean`.
    """
    if not len(records):
        return None
    windows = (run.steps[records] - 1) // window
    first = np.flatnonzero(np.diff(windows, prepend=-1))
    last = np.append(first[1:], len(records)) - 1
    present = weights[records, None] * np.isfinite(values[records])
    sums = np.add.reduceat(np.nan_to_num(values[records]) * present, first, axis=0)
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # where nobody has a value, there is a gap
        means = sums / np.add.reduceat(present, first, axis=0)
        low, high = np.nanpercentile(means, SPREAD, axis=1) if means.shape[1] > 1 else (None, None)
        return Curve(records[last], middle(means, axis=1), low, high)


def _loss(runs: Sequence[Run], window: int) -> Figure:
    curves = [training_loss(run, window) for run in runs]
    return Figure(
        "training-loss",
        "Training loss",
        f"Mean over the workers of the loss on their own batches{_over(window)}; the band holds the middle 80% of the "
        "workers.",
        _ended("The loss on workers' own batches", _ends(runs, curves), "{:.3g}".format, "lowest"),
        "",
        False,
        curves,
    )


def _measure(runs: Sequence[Run], name: str) -> Figure:
    title, meaning = MEASURES.get(name, (name.replace("_", " ").capitalize(), f"{name} on held-out samples"))
    curves = [measured(run, "center", name) for run in runs]
    share = name == "accuracy"
    return Figure(
        f"test-{name.replace('_', '-')}",
        title,
        f"{meaning[0].upper()}{meaning[1:]}: thick, the mean of all workers' models; thin, the worker with the least "
        "training loss.",
        _ended(
            f"The mean model's {title[0].lower()}{title[1:]}",
            _ends(runs, curves),
            ("{:.1%}" if share else "{:.3g}").format,
            "highest" if share else "lowest",
        ),
        "%" if share else "",
        False,
        curves,
        [measured(run, "best", name) for run in runs],
    )


def _consensus(runs: Sequence[Run], window: int) -> Figure:
    curves = [consensus(run, window) for run in runs]
    rare = any(run.evaluated[curve.at].all() for run, curve in zip(runs, curves, strict=True) if curve)
    when = "before rounds, or at evaluations where it was measured only there" if rare else "just before rounds"
    return Figure(
        "consensus",
        "Consensus distance",
        "(1/m) Σ ‖xᵢ − x̄‖², the mean squared distance of the workers' parameters from their mean, "
        f"{when}{_over(window)}.",
        _apart("At the end this distance was", _ends(runs, curves)),
        "",
        True,
        curves,
    )


def _drift(runs: Sequence[Run], window: int) -> Figure:
    curves = [drift(run, window) for run in runs]
    return Figure(
        "drift",
        "Drift",
        f"‖xᵢ − xᵢ(then)‖, how far a worker's parameters have moved since the round before{_over(window)}: the median "
        "of the workers; the band holds the middle 80% of them.",
        _apart("From round to round the median worker moved, at the end, by", _ends(runs, curves)),
        "",
        True,
        curves,
    )


def _over(window: int) -> str:
    return f", averaged over {window:,} local steps a point" if window > 1 else ""


def _ends(runs: Sequence[Run], curves: Sequence[Curve | None]) -> list[tuple[float, str]]:
    """Where the curves end, and whose they are; the least first."""
    ends = ((float(curve.y[-1]), run.name) for run, curve in zip(runs, curves, strict=True) if curve)
    return sorted(end for end in ends if np.isfinite(end[0]))


def _ended(subject: str, ends: list[tuple[float, str]], shown: Callable[[float], str], good: str) -> str:
    """The best and the worst, which is the "lowest" or the "highest" as `good` says."""
    if not ends:
        return ""
    (low, lowest), (high, highest) = ends[0], ends[-1]
    if len(ends) == 1:
        return f"{subject} ended at {shown(low)}."
    said = [f"lowest with {lowest}, at {shown(low)}", f"highest with {highest}, at {shown(high)}"]
    first, second = said if good == "lowest" else said[::-1]
    return f"{subject} ended {first}, and {second}."


def _apart(sentence: str, ends: list[tuple[float, str]]) -> str:
    if not ends:
        return ""
    (low, lowest), (high, highest) = ends[0], ends[-1]
    return (
        f"{sentence} {low:.3g}."
        if len(ends) == 1
        else f"{sentence} {low:.3g} with {lowest} and {high:.3g} with {highest}."
    )
