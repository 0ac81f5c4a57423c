"""Elastic averaging whose anchor moves while workers compute: how much time that saves (section 5.1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from tether.papers.cooperative.training import RATE
from tether.papers.cooperative.wall_clock import WallClock, small, wall_clock
from tether.papers.experiments import Claim, Outcome, Setting, experiment
from tether.papers.runs import CIFAR, STAND_IN, carry_out
from tether.report import style
from tether.report.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINKS = (0.5, 1.0, 2.0)
"""Local steps that a mean takes on the links that are tried."""

AS_PRINTED = 1.0
"""On this link time can be halved: messages and local steps take as long."""

OVERLAPS = {"without overlap": 0, "with overlap": 1}

ABOUT_HALF = 0.4
"""From this share on, about half of the time is saved."""


@experiment("cooperative/overlap", shows="figure 4c", data=CIFAR, stand_in=STAND_IN)
def overlap(setting: Setting) -> Outcome:
    """Elastic averaging after every step, with and without overlap, by real processes on slow links."""
    real = {}
    for number, steps_a_mean in enumerate(LINKS):
        share = setting.part(0.95 * number / len(LINKS), 0.95 * (number + 1) / len(LINKS))
        place = dataclasses.replace(share, folder=setting.folder / "runs" / f"mean-{steps_a_mean:g}-steps")
        methods = {name: {"name": "easgd", "period": 1} for name in OVERLAPS}
        real[steps_a_mean] = wall_clock(methods, RATE, place, steps_a_mean, OVERLAPS)
    virtual = _virtual(setting.part(0.95, 1))
    with_, without = "with overlap", "without overlap"
    says = (
        "overlapping the update of the auxiliary variable and local computation directly reduces about 50% of the time"
    )
    seconds = {name: float(run.virtual[-1]) for name, run in virtual.items()}
    saved = 1 - seconds[with_] / seconds[without]
    claims = [
        real[AS_PRINTED].saved(with_, without, says, ABOUT_HALF, "0.5"),
        Claim(says, saved >= ABOUT_HALF, saved, "0.5", f"virtual time, likewise; holds from {ABOUT_HALF:g} on"),
    ]
    table = [row for each in real.values() for row in each.table]
    losses = [real[AS_PRINTED].runs[name].losses for name in (with_, without)]
    same = (
        f"With and without overlap the training losses differ by {np.abs(losses[0] - losses[1]).max():.1e} at most, of "
        "any worker in any step: a pull needs the anchor as the round before left it, which has come by then."
    )
    notes = [_other_links(real), same, *real[AS_PRINTED].notes]
    return Outcome(claims, {"figure-4c": _draw(real)}, {"links": table}, notes)


def _virtual(setting: Setting) -> Mapping[str, Run]:
    """The same on virtual time, where a mean takes as long as a step."""
    what = dataclasses.replace(small(setting), epochs=1, drops=())
    configs = {
        name: what.config({"name": "easgd", "period": 1}, RATE, setting.seed).model_copy(update={"overlap": steps})
        for name, steps in OVERLAPS.items()
    }
    return carry_out(configs, setting)


def _other_links(real: Mapping[float, WallClock]) -> str:
    """What is saved where messages take more or less time, and what would be: the shorter of both, of their sum."""
    if real[AS_PRINTED].link.mbit is None:
        return "Nothing is said of other links, as none could be slowed."
    said = [
        f"{1 - each.runs['with overlap'].pace / each.runs['without overlap'].pace:.2f} of the time at {steps:g} "
        f"({min(steps, 1) / (1 + steps):.2f} if nothing else took time)"
        for steps, each in real.items()
    ]
    return (
        f"By local steps that a mean takes, overlap saves {', '.join(said)}: half of the time only where both take as "
        "long, so the paper's half says that they did there."
    )


def _draw(real: Mapping[float, WallClock]) -> Figure:
    """Figure 4c: the training loss against time with and without overlap; what a local step takes on each link."""
    from matplotlib.figure import Figure

    figure = Figure((7.0, 2.7), layout="constrained")
    curves, bars = figure.subplots(1, 2)
    real[AS_PRINTED].draw(curves)
    curves.legend()
    for number, name in enumerate(OVERLAPS):
        places = [place + (number - 0.5) * 0.36 for place in range(len(real))]
        heights = [each.runs[name].pace * 1e3 for each in real.values()]
        bars.bar(places, heights, width=0.34, color=style.LIGHT[number], label=name)
    bars.set_xticks(range(len(real)), [f"{steps:g}" for steps in real])
    bars.set(xlabel="local steps that a mean takes on the link", ylabel="milliseconds a local step")
    return figure
