"""Error against time: the curves of Cooperative SGD's figures 3 and 5, on the clock of the plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tether.look import LIGHT, LOOK, SIZE
from tether.planner.forecast import Forecast
from tether.planner.plan import Plan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = len(LIGHT)
"""Curves that can be told apart."""


def picture(plan: Plan) -> Figure:
    """Training loss against local steps and against virtual seconds: the soonest candidate of each method, and others.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
    """
    import matplotlib
    from matplotlib.figure import Figure

    drawn = _chosen(plan)
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(2 * SIZE[0], SIZE[1] * 1.15), layout="constrained")
        by_steps, by_time = figure.subplots(1, 2, sharey=True)
        for number, each in enumerate(drawn):
            course = each.course
            assert course is not None
            seen = np.isfinite(course.losses)
            look = {"color": LIGHT[number], "label": each.candidate.name}
            by_steps.plot(course.steps[seen], course.losses[seen], **look)
            by_time.plot(course.seconds[seen], course.losses[seen], **look)
        for axes, label in ((by_steps, "local steps"), (by_time, "seconds on this cluster")):
            axes.axhline(plan.target, color="#626263", linewidth=0.8, linestyle=":")
            axes.set_xlabel(label)
        by_time.set_xscale("log")  # what waits at every step takes a hundred times as long as what hardly ever does
        by_steps.set_ylabel("training loss")
        figure.legend(*by_steps.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _chosen(plan: Plan) -> list[Forecast]:
    """The soonest of each method, then the soonest of all others, as many as can be told apart."""
    able = [each for each in plan.forecasts if each.to_target(plan.target) is not None]
    first = list({each.candidate.kind: each for each in reversed(able)}.values())[::-1]
    rest = [each for each in able if each not in first]
    names = {each.candidate.name for each in (first + rest)[:MOST]}
    return [each for each in able if each.candidate.name in names]
