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
from tether.papers.curves import times_sooner
from tether.papers.experiments import Claim, Outcome, Setting, Table, experiment
from tether.papers.runs import CIFAR, STAND_IN, carry_out
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

RATES = (RATE, 0.04)
"""The paper's, and the smaller one of its figure 5: at the first the small model's workers may go further apart."""

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
    methods = {called(*at): method(*at) for at in (SYNC, SPARSE, LOCAL)}
    outcomes = []
    for number, rate in enumerate(RATES):
        share = setting.part(number / len(RATES), (number + 1) / len(RATES))
        place = replace(share.part(0, 0.4), folder=setting.folder / "runs" / f"lr-{rate:g}")
        real = wall_clock(methods, rate, place)
        runs = carry_out(configs(what, rate, setting.seed), share.part(0.4, 1))
        outcomes.append(study(what, rate, dict(zip(GRID, runs.values(), strict=True)), real))
    first = outcomes[0]
    return Outcome(
        [claim for each in outcomes for claim in each.claims],
        {name: figure for each in outcomes for name, figure in each.figures.items()},
        {name: [row for each in outcomes for row in each.tables[name]] for name in first.tables},
        [*dict.fromkeys(note for each in outcomes for note in each.notes), *what.differs(setting)],
    )


def configs(what: Task, rate: float, seed: int) -> dict[str, Config]:
    """The runs with a learning rate, in the order of the grid."""
    return {
        f"period-{period}-zeta-{zeta:g}-lr-{rate:g}": what.config(method(period, zeta), rate, seed)
        for period, zeta in GRID
    }


def study(what: Task, rate: float, runs: Runs, real: WallClock) -> Outcome:
    """What the runs with a learning rate say."""
    local, sync, sparse = called(*LOCAL), called(*SYNC), called(*SPARSE)
    four = f"{local} requires about 4x less wall-clock time to the same training loss than fully synchronous SGD"
    significant = f"{local} has a significant speedup over {sparse}"
    claims = [
        _higher(what, runs, "τ", [[(period, zeta) for period in PERIODS] for zeta in ZETAS]),
        _higher(what, runs, "ζ", [[(period, zeta) for zeta in ZETAS] for period in PERIODS]),
        _slower_by_epochs(what, runs),
        _sooner(what, runs, SYNC, four, HALF_AS_MUCH, "4"),
        real.sooner(local, sync, four, HALF_AS_MUCH, "4"),
        _sooner(what, runs, SPARSE, significant, MUCH),
        real.sooner(local, sparse, significant, MUCH),
    ]
    table = [
        {
            "lr": rate,
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
    curves = [
        {"lr": rate, "period": period, "zeta": zeta} | row
        for (period, zeta), run in runs.items()
        for row in what.rows(run)
    ]
    links = _other_links(what, rate, runs)
    figures = {
        f"figure-3b-lr-{rate:g}": _draw(what, runs, GRID, real=None),
        f"figure-6-lr-{rate:g}": _draw(what, runs, [SYNC, SPARSE, LOCAL], real),
    }
    clock = [dict(row) | {"lr": rate} for row in real.table]
    tables = {"grid": table, "curves": curves, "links": links, "wall-clock": clock}
    claims = [replace(claim, says=f"learning rate {rate:g}: {claim.says}") for claim in claims]
    return Outcome(claims, figures, tables, [_about_links(rate, links), about_time(what), *real.notes])


def _higher(what: Task, runs: Runs, which: str, lines: list[list[tuple[int, float]]]) -> Claim:
    """Whether the loss at the same learning rate grows along lines of the grid."""
    ratios = {
        f"{called(*a)} to {called(*b)}": what.floor(what.loss(runs[b])) / what.floor(what.loss(runs[a]))
        for line in lines
        for a, b in itertools.pairwise(line)
    }
    least = min(ratios, key=lambda name: ratios[name])
    return Claim(
        f"a larger {which} leads to a higher error floor",
        ratios[least] > 1,
        ratios[least],
        remark="mean training loss of the last half before the learning rate drops, over that of the one before; the "
        f"least, from {least}; holds above 1",
    )


def _slower_by_epochs(what: Task, runs: Runs) -> Claim:
    ratio = times_sooner(what.loss(runs[SYNC]), what.loss(runs[LOCAL]), what.start())
    return Claim(
        "allowing more local updates leads to slower convergence in terms of epochs",
        ratio > 1,
        ratio,
        remark=f"median over training losses of {called(*LOCAL)}'s epochs to them over those of sync; holds above 1",
    )


def _sooner(
    what: Task, runs: Runs, other: tuple[int, float], says: str, beyond: float, paper: str | None = None
) -> Claim:
    """Whether local steps come to the same losses in so much less virtual time."""
    ratio = times_sooner(what.loss(runs[LOCAL], "virtual"), what.loss(runs[other], "virtual"), what.start())
    return Claim(
        says,
        ratio > beyond,
        ratio,
        paper,
        f"median over training losses of the virtual time of {called(*other)} to them over that of {called(*LOCAL)}; "
        f"holds above {beyond:g}",
    )


def _other_links(what: Task, rate: float, runs: Runs) -> Table:
    """How much sooner local steps would come to the same losses on other links."""
    rows = []
    for slower in SLOWER:
        clock = Clock(**what.clock | {"bandwidth": what.clock["bandwidth"] / slower})
        curves = {}
        for at in (SYNC, SPARSE, LOCAL):
            config = what.config(method(*at), rate, 0)
            (cost,) = round_costs(load_method(config, config.method), WORKERS, what.parameters)
            epochs, losses = what.loss(runs[at])
            curves[at] = epochs * what.epoch * (STEP_SECONDS + cost.seconds(clock) / cost.period), losses
        over = {other: times_sooner(curves[LOCAL], curves[other], what.start()) for other in (SYNC, SPARSE)}
        rows.append(
            {"lr": rate, "steps_a_mean": slower, "gbit": clock.bandwidth / 1e9}
            | {"times_faster_than_sync": over[SYNC], f"times_faster_than_{called(*SPARSE)}": over[SPARSE]}
        )
    return rows


def _about_links(rate: float, links: Table) -> str:
    enough = [row["steps_a_mean"] for row in links if row["times_faster_than_sync"] >= 4]
    said = (
        f"it is 4 or more where a mean takes {enough[0]:g} local steps" if enough else "it comes to 4 on none of them"
    )
    shown = ", ".join(f"{row['times_faster_than_sync']:.3g} at {row['steps_a_mean']:g}" for row in links)
    return (
        f"Learning rate {rate:g}: how many times less time {called(*LOCAL)} needs than sync depends on the link: by "
        f"local steps that a mean takes, {shown}; {said}. Where it takes one step, 2/1.1 = 1.8 is all that can be had."
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
