"""Periodic averaging with several periods, at two learning rates (section 5.2)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tether.config import Config
from tether.papers.cooperative.training import MUCH, Task, about_time, task
from tether.papers.cooperative.wall_clock import WallClock, wall_clock
from tether.papers.experiments import Claim, Outcome, Setting, experiment
from tether.papers.runs import CIFAR, STAND_IN, carry_out
from tether.report import style
from tether.report.papers import logarithmic
from tether.report.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PERIODS = (1, 4, 24)
RATES = (0.04, 0.4)
GRID = tuple(itertools.product(PERIODS, RATES))

NOTICEABLE = 0.005
"""Test accuracies that differ by less than this may do so by chance: of 10,000 images it is 1.5 standard errors."""

Runs = Mapping[tuple[int, float], Run]
"""By period and learning rate."""


@experiment("cooperative/period", shows="figure 5", data=CIFAR, stand_in=STAND_IN)
def periods(setting: Setting) -> Outcome:
    """Periodic averaging with periods of 1, 4 and 24 at two learning rates: training loss, test accuracy, time."""
    what = task(setting)
    real = wall_clock({called(period): method(period) for period in PERIODS}, RATES[-1], setting.part(0, 0.3))
    runs = carry_out(configs(what, setting.seed), setting.part(0.3, 1))
    outcome = study(what, dict(zip(GRID, runs.values(), strict=True)), real)
    return replace(outcome, notes=[*outcome.notes, *what.differs(setting)])


def configs(what: Task, seed: int) -> dict[str, Config]:
    """The runs, in the order of the grid."""
    return {f"period-{period}-lr-{rate:g}": what.config(method(period), rate, seed) for period, rate in GRID}


def method(period: int) -> dict[str, Any]:
    """As a config has it."""
    return {"name": "local", "period": period}


def called(period: int) -> str:
    """Its name in figures."""
    return f"τ = {period}"


def study(what: Task, runs: Runs, real: WallClock) -> Outcome:
    """What the runs say."""
    one, rare = called(PERIODS[0]), called(PERIODS[-1])
    less = f"{rare} costs much less wall-clock time than {one}"
    claims = [
        *(_higher(what, runs, rate) for rate in RATES),
        _gap_shrinks(what, runs),
        _less_time(runs, less),
        real.less_time(rare, one, less, MUCH),
        *(_generalises(what, runs, rate) for rate in RATES),
    ]
    table = [
        {
            "period": period,
            "lr": rate,
            "training_loss_before_the_drop": what.floor(what.loss(run)),
            "training_loss_at_the_end": what.end(what.loss(run)),
            "test_accuracy_before_the_drop": what.floor(what.accuracy(run)),
            "test_accuracy_at_the_end": what.end(what.accuracy(run)),
            "virtual_seconds": float(run.virtual[-1]),
            "status": run.status,
        }
        for (period, rate), run in runs.items()
    ]
    curves = [{"period": period, "lr": rate} | row for (period, rate), run in runs.items() for row in what.rows(run)]
    notes = [about_time(what), *real.notes]
    figures = {"figure-5": _draw(what, runs), "figure-5-wall-clock": _draw_real(real)}
    return Outcome(claims, figures, {"periods": table, "curves": curves, "wall-clock": real.table}, notes)


def _higher(what: Task, runs: Runs, rate: float) -> Claim:
    """Whether the loss after as many epochs grows with the period."""
    floors = [what.floor(what.loss(runs[period, rate])) for period in PERIODS]
    shown = ", ".join(f"{floor:.4g} at τ = {period}" for period, floor in zip(PERIODS, floors, strict=True))
    return Claim(
        f"learning rate {rate:g}: after the same number of epochs a larger τ leads to a higher training loss",
        all(a < b for a, b in itertools.pairwise(floors)),
        floors[-1] / floors[0],
        remark=f"τ = {PERIODS[-1]} over τ = {PERIODS[0]}, mean of the last half before the learning rate drops: "
        f"{shown}; holds if each is above the one before",
    )


def _gap_shrinks(what: Task, runs: Runs) -> Claim:
    """Whether the small learning rate brings the periods nearer to one another."""

    def gap(rate: float) -> float:
        return what.floor(what.loss(runs[PERIODS[-1], rate])) / what.floor(what.loss(runs[PERIODS[0], rate])) - 1

    small, large = (gap(rate) for rate in RATES)
    return Claim(
        "the small learning rate reduces the gap between different τ",
        abs(small) < large,
        small / large,
        remark=f"by how much the loss of τ = {PERIODS[-1]} is above that of τ = 1: {small:.2%} at {RATES[0]:g} over "
        f"{large:.2%} at {RATES[1]:g}; holds below 1, either way",
    )


def _less_time(runs: Runs, says: str) -> Claim:
    ratio = float(runs[PERIODS[0], RATES[-1]].virtual[-1] / runs[PERIODS[-1], RATES[-1]].virtual[-1])
    return Claim(
        says,
        ratio > MUCH,
        ratio,
        remark=f"virtual time of τ = {PERIODS[0]} over that of τ = {PERIODS[-1]}, as many epochs; holds above {MUCH:g}",
    )


def _generalises(what: Task, runs: Runs, rate: float) -> Claim:
    """Whether the longest period has the better test accuracy before the learning rate drops."""
    first, last = (what.floor(what.accuracy(runs[period, rate])) for period in (PERIODS[0], PERIODS[-1]))
    return Claim(
        f"learning rate {rate:g}: a large τ generalises better than τ = 1 before the learning rate is changed",
        last - first > NOTICEABLE,
        last - first,
        remark=f"test accuracy of τ = {PERIODS[-1]}, {last:.2%}, less that of τ = {PERIODS[0]}, {first:.2%}, of the "
        f"mean model in the last half before the drop; holds above {NOTICEABLE:g}",
    )


def _draw(what: Task, runs: Runs) -> Figure:
    """Figure 5: training loss against epochs, test accuracy, training loss against time; a column a learning rate."""
    from matplotlib.figure import Figure

    figure = Figure((7.0, 6.4), layout="constrained")
    panels = figure.subplots(3, len(RATES))
    for column, rate in enumerate(RATES):
        losses, accuracies, times = panels[:, column]
        for number, period in enumerate(PERIODS):
            run, look = runs[period, rate], {"color": style.LIGHT[number], "label": f"τ = {period}"}
            losses.plot(*what.loss(run), **look)
            accuracies.plot(*what.accuracy(run), **look)
            times.plot(*what.loss(run, "virtual"), **look)
        losses.set(title=f"learning rate {rate:g}", xlabel="epochs", ylabel="training loss")
        accuracies.set(xlabel="epochs", ylabel="test accuracy")
        times.set(xlabel="virtual wall-clock time, seconds", ylabel="training loss")
        for axes in (losses, times):
            logarithmic(axes)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(PERIODS))
    return figure


def _draw_real(real: WallClock) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure((3.5, 2.5), layout="constrained")
    axes = figure.subplots()
    real.draw(axes)
    axes.set_title(f"real workers, learning rate {RATES[-1]:g}")
    axes.legend()
    return figure
