"""Decentralized periodic averaging: period and zeta together (sections 4.2 and 6.1)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tether.clock import Clock
from tether.config import Config
from tether.papers.cooperative.training import MUCH, RATE, STEP_SECONDS, WORKERS, Task, about_time, task
from tether.papers.cooperative.wall_clock import WallClock, wall_clock
from tether.papers.experiments import Claim, Outcome, Setting, Table, experiment
from tether.papers.runs import CIFAR, STAND_IN, carry_out, times_faster
from tether.report import style
from tether.report.papers import logarithmic
from tether.report.runs import Run
from tether.run import load_method
from tether.theory import network_error, round_costs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PERIODS = (1, 10)
ZETAS = (0.0, 0.75, 0.95)
GRID = tuple(itertools.product(PERIODS, ZETAS))

SYNC, SPARSE, LOCAL = (1, 0.0), (1, 0.75), (10, 0.75)
"""The (τ, ζ) of figure 6: fully synchronous, decentralized, and that with local steps."""

HALF_AS_MUCH = 2.0
"""The paper's four times, and once: half way between them on a logarithmic scale."""

SLOWER = (0.25, 0.5, 1, 2, 4, 8, 16)
"""Local steps that a mean takes, on links other than ours: local steps are what they are, so time alone changes."""

Runs = Mapping[tuple[int, float], Run]
"""By τ and ζ."""


def ring(zeta: float) -> list[list[float]]:
    """A ring's mixing matrix that has this ζ: what each worker keeps of its own model decides it.

    With w on the diagonal and (1 − w)/2 for either neighbour the eigenvalues are w + (1 − w) cos(2πk/m).

    Raises:
        ValueError: if no ring mixes so fast.
    """
    slow = math.cos(2 * math.pi / WORKERS)
    own = round((zeta - slow) / (1 - slow), 8)  # configs are kept with nine digits; rows must still sum to one
    if own < 0 or 1 - 2 * own > zeta:
        raise ValueError(f"zeta={zeta:g}: a ring of {WORKERS} workers does not mix so fast")
    W = np.eye(WORKERS) * own
    for worker in range(WORKERS):
        for neighbour in (worker - 1, (worker + 1) % WORKERS):
            W[worker, neighbour] = round((1 - own) / 2, 9)
    return W.tolist()


def method(period: int, zeta: float) -> dict[str, Any]:
    """As a config has it: a mean of all workers for ζ = 0, else a ring."""
    if zeta == 0:
        return {"name": "local", "period": period}
    return {"name": "cooperative", "period": period, "W": ring(zeta)}


def called(period: int, zeta: float) -> str:
    """Its name in figures."""
    return f"τ = {period}, ζ = {zeta:g}"


@experiment("cooperative/decentralized", shows="figures 3b and 6", data=CIFAR, stand_in=STAND_IN)
def decentralized(setting: Setting) -> Outcome:
    """Decentralized periodic averaging over a grid of τ and ζ: training loss, and the time to it."""
    what = task(setting)
    real = wall_clock({called(*at): method(*at) for at in (SYNC, SPARSE, LOCAL)}, RATE, setting.part(0, 0.3))
    runs = carry_out(configs(what, setting.seed), setting.part(0.3, 1))
    outcome = study(what, dict(zip(GRID, runs.values(), strict=True)), real)
    return replace(outcome, notes=[*outcome.notes, *what.differs(setting)])


def configs(what: Task, seed: int) -> dict[str, Config]:
    """The runs, in the order of the grid."""
    return {f"period-{period}-zeta-{zeta:g}": what.config(method(period, zeta), RATE, seed) for period, zeta in GRID}


def study(what: Task, runs: Runs, real: WallClock) -> Outcome:
    """What the runs say."""
    four, significant = "requires about 4x less wall-clock time to the same training loss", "has a significant speedup"
    claims = [
        _higher(what, runs, "τ", [[(period, zeta) for period in PERIODS] for zeta in ZETAS]),
        _higher(what, runs, "ζ", [[(period, zeta) for zeta in ZETAS] for period in PERIODS]),
        _slower_by_epochs(what, runs),
        _sooner(what, runs, SYNC, f"{called(*LOCAL)} {four} than fully synchronous SGD", "4"),
        _sooner(what, runs, SPARSE, f"{called(*LOCAL)} {significant} over {called(*SPARSE)}"),
        real.sooner(called(*LOCAL), called(*SYNC), f"{called(*LOCAL)} {four} than sync", HALF_AS_MUCH, "4"),
        real.sooner(called(*LOCAL), called(*SPARSE), f"{called(*LOCAL)} {significant} over {called(*SPARSE)}", MUCH),
    ]
    table = [
        {
            "period": period,
            "zeta": zeta,
            "network_error": float(network_error(period, zeta)),
            "training_loss_before_the_drop": what.floor(what.loss(run)),
            "training_loss_at_the_end": what.end(what.loss(run)),
            "virtual_seconds": float(run.virtual[-1]),
            "status": run.status,
        }
        for (period, zeta), run in runs.items()
    ]
    curves = [{"period": period, "zeta": zeta} | row for (period, zeta), run in runs.items() for row in what.rows(run)]
    links = _other_links(what, runs)
    notes = [_about_links(links), about_time(what), *real.notes]
    figures = {
        "figure-3b": _draw(what, runs, GRID, real=None),
        "figure-6": _draw(what, runs, [SYNC, SPARSE, LOCAL], real),
    }
    tables = {"grid": table, "curves": curves, "links": links, "wall-clock": real.table}
    return Outcome(claims, figures, tables, notes)


def _higher(what: Task, runs: Runs, which: str, lines: list[list[tuple[int, float]]]) -> Claim:
    """Whether the loss at the same learning rate grows along lines of the grid."""
    ratios = {
        f"{called(*a)} to {called(*b)}": what.floor(what.loss(runs[b])) / what.floor(what.loss(runs[a]))
        for line in lines
        for a, b in itertools.pairwise(line)
    }
    least = min(ratios, key=lambda name: ratios[name])
    return Claim(
        f"for the same learning rate a larger {which} leads to a higher error floor",
        ratios[least] > 1,
        ratios[least],
        remark="mean training loss of the last half before the learning rate drops, over that of the one before; the "
        f"least, from {least}; holds above 1",
    )


def _slower_by_epochs(what: Task, runs: Runs) -> Claim:
    ratio = times_faster(what.loss(runs[SYNC]), what.loss(runs[LOCAL]), what.start())
    return Claim(
        "allowing more local updates leads to slower convergence in terms of epochs",
        ratio > 1,
        ratio,
        remark=f"median over training losses of {called(*LOCAL)}'s epochs to them over those of sync; holds above 1",
    )


def _sooner(what: Task, runs: Runs, other: tuple[int, float], says: str, paper: str | None = None) -> Claim:
    """Whether local steps come to the same losses in much less virtual time."""
    beyond = HALF_AS_MUCH if paper else MUCH
    ratio = times_faster(what.loss(runs[LOCAL], "virtual"), what.loss(runs[other], "virtual"), what.start())
    return Claim(
        says,
        ratio > beyond,
        ratio,
        paper,
        f"median over training losses of the virtual time of {called(*other)} to them over that of {called(*LOCAL)}; "
        f"holds above {beyond:g}",
    )


def _other_links(what: Task, runs: Runs) -> Table:
    """How much sooner local steps would come to the same losses on other links."""
    rows = []
    for slower in SLOWER:
        clock = Clock(**what.clock | {"bandwidth": what.clock["bandwidth"] / slower})
        curves = {}
        for at in (SYNC, SPARSE, LOCAL):
            config = what.config(method(*at), RATE, 0)
            (cost,) = round_costs(load_method(config, config.method), WORKERS, what.parameters)
            epochs, losses = what.loss(runs[at])
            curves[at] = epochs * what.epoch * (STEP_SECONDS + cost.seconds(clock) / cost.period), losses
        over = {other: times_faster(curves[LOCAL], curves[other], what.start()) for other in (SYNC, SPARSE)}
        rows.append(
            {"steps_a_mean": slower, "gbit": clock.bandwidth / 1e9, "times_faster_than_sync": over[SYNC]}
            | {f"times_faster_than_{called(*SPARSE)}": over[SPARSE]}
        )
    return rows


def _about_links(links: Table) -> str:
    enough = [row["steps_a_mean"] for row in links if row["times_faster_than_sync"] >= 4]
    said = (
        f"it is 4 or more where a mean takes {enough[0]:g} local steps" if enough else "it comes to 4 on none of them"
    )
    shown = ", ".join(f"{row['times_faster_than_sync']:.3g} at {row['steps_a_mean']:g}" for row in links)
    return (
        f"How many times less time {called(*LOCAL)} needs than sync depends on the link: by local steps that a mean "
        f"takes, {shown}; {said}. Where it takes one step, 2/1.1 = 1.8 is all that can be had."
    )


def _draw(what: Task, runs: Runs, shown: Sequence[tuple[int, float]], real: WallClock | None) -> Figure:
    """Training loss against epochs and against time: of figure 6, also of real workers."""
    from matplotlib.figure import Figure

    figure = Figure((7.0, 2.9), layout="constrained")
    epochs, times, *clock = figure.subplots(1, 3 if real else 2)
    for number, at in enumerate(shown):
        look = {"color": style.LIGHT[number], "label": called(*at)}
        epochs.plot(*what.loss(runs[at]), **look)
        times.plot(*what.loss(runs[at], "virtual"), **look)
    epochs.set(xlabel="epochs", ylabel="training loss")
    times.set(xlabel="virtual wall-clock time, seconds")
    if real:
        real.draw(clock[0])
        clock[0].set(ylabel=None, title="real workers")
    for axes in (epochs, times, *clock):
        logarithmic(axes)
    figure.legend(*epochs.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure
