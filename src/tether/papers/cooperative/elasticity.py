"""Elastic averaging with several elasticities: the best by theory, and one beyond what converges (section 5.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from torch import Tensor

import tether
from tether.methods import EASGD, State
from tether.papers.cooperative.training import RATE, WORKERS, Task, task
from tether.papers.curves import Curve
from tether.papers.experiments import Claim, Outcome, Setting, experiment
from tether.papers.runs import CIFAR, STAND_IN
from tether.papers.watched import Watched
from tether.report import style
from tether.report.papers import logarithmic
from tether.result import NonFiniteLossError
from tether.run import ingredients, load_data
from tether.theory import best_elasticity, elastic_limit, elastic_zeta
from tether.workers import Workers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ELASTICITIES = (0.05, 0.1125, 0.2, 0.23)
"""α: a small one; 0.9/m, as Zhang et al. (2015) take it; 2/(m+2), the best by lemma 1; one above 2/(m+1)."""

PERIOD = 1
"""τ is not in print for figures 4a and 4b; in figure 4c it is 1."""


class AnyElasticity(EASGD):
    """Elastic averaging at any elasticity, those included at which workers and anchor move apart."""

    def init(self, x: Float[Tensor, "r d"], workers: Workers) -> State:
        """The anchor, at the mean of the workers."""
        return {"anchor": workers.mean(x).wait()}


def discrepancy(x: Float[Tensor, "m d"], state: State) -> float:
    """(1/m) sum_i ||x_i - z||^2."""
    return float((x - state["anchor"]).square().sum(1).mean())


@dataclass(frozen=True)
class Elastic:
    """What became of an elasticity.

    Attributes:
        alpha: the elasticity.
        loss: the workers' mean training loss over windows of local steps, by epochs.
        apart: the mean squared distance between workers and anchor as rounds begin, likewise.
        rounds: `[n]`, that distance at each round.
        diverged: the local step at which a loss or parameter was no longer finite, if one was.
    """

    alpha: float
    loss: Curve
    apart: Curve
    rounds: Float[np.ndarray, " n"]
    diverged: int | None

    @property
    def growth(self) -> float:
        """By how much a round multiplies the distance, the geometric mean over the last half of them."""
        late = self.rounds[len(self.rounds) // 2 :]
        late = late[np.isfinite(late) & (late > 0)]
        return math.exp(float(np.log(late[-1] / late[0])) / 2 / max(len(late) - 1, 1)) if len(late) else math.nan


def run(what: Task, alpha: float, setting: Setting, done: float) -> Elastic:
    """Train with an elasticity."""
    config = what.config({"name": "easgd", "period": PERIOD}, RATE, setting.seed)
    watched = Watched.of(AnyElasticity(PERIOD, alpha), look=discrepancy)

    def tell(count: int, loss: float) -> None:
        setting.progress(f"α = {alpha:g}", done + count / config.steps / len(ELASTICITIES))

    diverged = None
    given = ingredients(config, load_data(config)) | {"evaluate": None, "evaluate_every": None}
    try:
        result = tether.simulate(method=watched, workers=config.workers, on_progress=tell, **given)
    except NonFiniteLossError as error:
        result, diverged = error.result, error.step
    losses = np.array([record.losses.mean() for record in result.history if record.step])
    rounds = np.array(watched.seen)
    return Elastic(alpha, _by_epoch(losses, what), _by_epoch(rounds, what), rounds, diverged)


def _by_epoch(values: Float[np.ndarray, " n"], what: Task) -> Curve:
    """The means over windows, and at which epoch each ends."""
    whole = len(values) // what.window
    means = values[: whole * what.window].reshape(whole, what.window).mean(1)
    return np.arange(1, whole + 1) * what.window / what.epoch, means


@experiment("cooperative/easgd-alpha", shows="figures 4a and 4b", data=CIFAR, stand_in=STAND_IN)
def easgd_alpha(setting: Setting) -> Outcome:
    """Elastic averaging at four elasticities: training loss, and how far workers are from the anchor."""
    what = task(setting)
    found = [run(what, alpha, setting, number / len(ELASTICITIES)) for number, alpha in enumerate(ELASTICITIES)]
    best = best_elasticity(WORKERS)
    (at_best,) = [each for each in found if each.alpha == best]
    smaller = [each for each in found if each.alpha < best]
    claims = [
        _best("yields the lowest training loss", what, at_best, smaller, "loss"),
        _best("yields the least discrepancies between workers and anchor", what, at_best, smaller, "apart"),
        *(_diverges(each) for each in found if each.alpha > elastic_limit(WORKERS)),
    ]
    table = [
        {
            "alpha": each.alpha,
            "zeta": elastic_zeta(each.alpha, WORKERS),
            "loss_before_the_drop": what.floor(each.loss),
            "loss_at_the_end": what.end(each.loss),
            "discrepancy_before_the_drop": what.floor(each.apart),
            "discrepancy_at_the_end": what.end(each.apart),
            "growth_a_round": each.growth,
            "diverged_at_step": each.diverged,
        }
        for each in found
    ]
    curves = [
        {"alpha": each.alpha, "epoch": float(epoch), "training_loss": float(loss), "discrepancy": float(apart)}
        for each in found
        for epoch, loss, apart in zip(*each.loss, each.apart[1], strict=True)
    ]
    notes = [
        f"τ = {PERIOD}, as in figure 4c; the paper does not print it for these figures. The anchor starts at the mean.",
        *what.differs(setting),
    ]
    return Outcome(claims, {"figure-4": _draw(found)}, {"elasticities": table, "curves": curves}, notes)


def _best(says: str, what: Task, at_best: Elastic, others: list[Elastic], measure: str) -> Claim:
    """Whether the best elasticity by theory has less of something than the smaller ones, at one learning rate."""
    floors = {each.alpha: what.floor(getattr(each, measure)) for each in (at_best, *others)}
    ratio = floors[at_best.alpha] / min(floors[each.alpha] for each in others)
    shown = ", ".join(f"{value:.4g} at {alpha:g}" for alpha, value in sorted(floors.items()))
    return Claim(
        f"α = 2/(m+2) = {at_best.alpha:g} {says}",
        ratio < 1,
        ratio,
        remark=f"over the least of the smaller α's, mean of the last half before the learning rate drops: {shown}; "
        "holds below 1",
    )


def _diverges(each: Elastic) -> Claim:
    """Whether the distance grows in every round, as theory says it does."""
    end = f"not finite at local step {each.diverged}" if each.diverged else "still finite at the end"
    return Claim(
        f"α = {each.alpha:g} > 2/(m+1): the algorithm cannot converge",
        each.growth > 1 and each.diverged is not None,
        each.growth,
        remark=f"by which a round multiplies the distance from the anchor; ζ = {elastic_zeta(each.alpha, WORKERS):.3g} "
        f"says theory; {end}; holds above 1 if it ends there",
    )


def _draw(found: list[Elastic]) -> Figure:
    """Figures 4a and 4b: training loss and discrepancies against epochs."""
    from matplotlib.figure import Figure

    figure = Figure((7.0, 2.9), layout="constrained")
    losses, distances = figure.subplots(1, 2)
    for number, each in enumerate(found):
        look = {"color": style.LIGHT[number], "label": f"α = {each.alpha:g}"}
        losses.plot(*each.loss, **look)
        distances.semilogy(*each.apart, **look)
    converging = [each for each in found if each.diverged is None] or found
    for axes, name, label, room in (
        (losses, "loss", "training loss", 1.3),
        (distances, "apart", "mean of ‖x_i − z‖²", 100),  # to see where it goes if it grows
    ):
        values = np.concatenate([getattr(each, name)[1] for each in converging])
        axes.set(xlabel="epochs", ylabel=label, xlim=(0, None), ylim=(values.min() / 1.3, room * values.max()))
    logarithmic(losses)
    figure.legend(*losses.get_legend_handles_labels(), loc="outside upper center", ncols=len(found))
    return figure
