"""Who leads when, and how often (figure 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tether.papers.experiments import Claim
from tether.report import style
from tether.report.leaders import trace
from tether.report.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def led(run: Run, of_all: bool) -> np.ndarray:
    """`[m]`, in how many rounds each worker was the leader of all, or that of its group."""
    leaders = [who for who in run.leaders if isinstance(who, int if of_all else list)]
    return np.bincount(np.ravel(leaders).astype(int), minlength=run.workers)


def all_lead(runs: Sequence[Run]) -> list[Claim]:
    """Whether every worker is a leader at times."""
    claims = []
    for run in runs:
        ever = np.count_nonzero(led(run, of_all=True) + led(run, of_all=False))
        claims.append(
            Claim(
                f"{run.workers} workers: LSGD takes advantage of all workers",
                bool(ever == run.workers),
                float(ever),
                remark=f"workers who led, all or their group, in some of {run.rounds[-1]} rounds; holds if all did",
            )
        )
    return claims


def draw(run: Run) -> Figure:
    """Figure 5: the leader's number over the iterations, and how many times each worker was the leader."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    found = trace(run)
    assert found is not None
    figure = Figure((7.0, 1.4 + 0.07 * max(run.workers, 10)), layout="constrained")
    who, often = figure.subplots(1, 2, sharey=True, width_ratios=(2.6, 1))
    since, until = found.against("steps", run)
    for of_all, label, colour, width in (
        (False, "of a group", style.LIGHT[5], 4.5),
        (True, "of all", style.LIGHT[0], 2),
    ):
        these = found.of_all == of_all
        if these.any():
            who.hlines(found.worker[these], since[these], until[these], color=colour, linewidth=width, label=label)
            often.barh(np.arange(run.workers), led(run, of_all), color=colour, height=0.8 if width > 2 else 0.35)
    who.set(xlabel="iterations", ylabel="leader", xlim=(0, run.steps[-1]), ylim=(-0.7, run.workers - 0.3))
    who.yaxis.set_major_locator(MaxNLocator(integer=True))
    often.set_xlabel("times the leader")
    often.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if not found.of_all.all():
        who.legend(ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
    return figure
