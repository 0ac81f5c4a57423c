"""Figures for papers: one file for each figure and what it is drawn against."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tether.config import ConfigError
from tether.data.holdings import Holdings, picture
from tether.look import LOOK, SIZE
from tether.report import style
from tether.report.curves import Figure, axes_of, figures
from tether.report.holdings import pictures
from tether.report.leaders import trace
from tether.report.runs import Run
from tether.report.timelines import Timeline, timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}


FORMATS = ("png", "svg")
"""In which every figure of an experiment is written."""


@contextmanager
def look() -> Iterator[None]:
    """Within, figures are drawn as those for papers look.

    Raises:
        ConfigError: without matplotlib; the message says what to install.
    """
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise ConfigError("figures need matplotlib, which is not installed: pip install 'tether[plot]'") from error
    with matplotlib.rc_context(LOOK):
        yield


def save(drawing: Drawing, path: Path) -> Path:
    """Write a figure in the format of the path's suffix; the same figure gives the same file."""
    drawing.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else {})
    return path


def draw(runs: Sequence[Run], folder: Path, format: str) -> list[Path]:
    """Write the figures.

    Args:
        runs: of which.
        folder: where; it is there.
        format: png, svg, or what else matplotlib can write.

    Returns:
        The files, such as `training-loss-bytes.svg`.

    Raises:
        ConfigError: without matplotlib; the message says what to install.
    """
    written = []
    axes = axes_of(runs)
    with look():
        from matplotlib.figure import Figure as Drawing

        for figure in figures(runs):
            for axis, label in axes.items():
                drawing = Drawing(SIZE, layout="constrained")
                _curves(drawing.subplots(), figure, runs, axis)
                drawing.axes[0].set_xlabel(label)
                _legend(drawing)
                written.append(save(drawing, folder / f"{figure.key}-{axis}.{format}"))
        for run, (colour, _) in zip(runs, style.looks(runs), strict=True):
            if trace(run):
                drawing = Drawing(SIZE, layout="constrained")
                _leaders(drawing.subplots(), run, style.LIGHT[colour])
                written.append(save(drawing, folder / f"leaders-{_as_file(run.name)}.{format}"))
        for run, (colour, _) in zip(runs, style.looks(runs), strict=True):
            found = timeline(run)
            if found:
                drawing = Drawing((2 * SIZE[0], SIZE[1]), layout="constrained")
                _timeline(drawing.subplots(), found, style.LIGHT[colour])
                written.append(save(drawing, folder / f"timeline-{_as_file(run.name)}.{format}"))
    for number, each in enumerate(pictures(runs), start=1):
        held = runs[each["runs"][0]].holdings
        assert held is not None
        drawing = picture(Holdings(np.array(held["counts"]), tuple(held["names"]), held["title"]))
        written.append(save(drawing, folder / f"holdings-{number}.{format}"))
    return written


def _curves(axes: Axes, figure: Figure, runs: Sequence[Run], axis: str) -> None:
    for number, (run, (colour, dash)) in enumerate(zip(runs, style.looks(runs), strict=True)):
        look: dict[str, Any] = {"color": style.LIGHT[colour], "linestyle": DASHES[style.DASHES[dash]]}
        curve = figure.curves[number]
        best = figure.best[number] if figure.best else None
        if best is not None:
            axes.plot(run.against(axis)[best.at], best.y, linewidth=0.6, alpha=0.8, **look)
        if curve is not None:
            x = run.against(axis)[curve.at]
            axes.plot(x, curve.y, label=run.name, marker="o" if len(x) == 1 else "", **look)
            if curve.low is not None and curve.high is not None and len(runs) <= 3:
                axes.fill_between(x, curve.low, curve.high, color=look["color"], alpha=0.13, linewidth=0)
    axes.set_ylabel(figure.title.lower())
    if figure.log:
        logarithmic(axes)
    if figure.unit == "%":
        axes.yaxis.set_major_formatter("{x:.0%}")
    axes.set_xlim(left=0)


def _legend(drawing: Drawing) -> None:
    """What is which line, above the curves, where it hides none of them; the figure grows by as much."""
    lines, names = drawing.axes[0].get_legend_handles_labels()
    if len(names) < 2:
        return
    columns = max(1, int(SIZE[0] / (0.45 + 0.065 * max(map(len, names)))))
    drawing.set_figheight(SIZE[1] + 0.16 * math.ceil(len(names) / columns))
    drawing.legend(lines, names, loc="outside upper left", ncols=columns, columnspacing=1.0, labelspacing=0.3)


def logarithmic(axes: Axes) -> None:
    """Labels in plain numbers; within a few decades also at 2 and 5."""
    from matplotlib.ticker import LogLocator

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high / low < 1e3:
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axes.yaxis.set_minor_formatter("{x:g}")


def _leaders(axes: Axes, run: Run, colour: str) -> None:
    from matplotlib.ticker import MaxNLocator

    found = trace(run)
    assert found is not None
    since, until = found.against("rounds", run)
    axes.hlines(found.worker, since, until, color=colour, linewidth=np.where(found.of_all, 3, 1.2))
    axes.set(xlabel="rounds", ylabel="leader", xlim=(0, None), ylim=(-0.7, run.workers - 0.3))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _timeline(axes: Axes, found: Timeline, colour: str) -> None:
    from matplotlib.ticker import MaxNLocator

    looks: Any = {
        "computing": {"color": colour, "linewidth": 5},
        "waiting": {"color": "#d5d8dc", "linewidth": 5},
        "sending": {"color": "black", "linewidth": 0.8},
    }
    for kind, spans in found.spans.items():
        if len(spans.worker):
            axes.hlines(spans.worker, spans.since, spans.until, label=kind, **looks[kind])
    axes.set(xlabel="virtual seconds", ylabel="worker", xlim=(0, None), ylim=(found.workers - 0.4, -0.6))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(ncols=3, loc="lower right", bbox_to_anchor=(1, 1))


def _as_file(name: str) -> str:
    return "-".join("".join(letter if letter.isalnum() else " " for letter in name).split())
