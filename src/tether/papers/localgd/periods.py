"""Local gradient descent with several numbers of local steps, on workers whose data differ; with the bound drawn in."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

import tether
from tether.config import ConfigError
from tether.data import Dataset, libsvm
from tether.diagnostics import Landscape, gradient_statistics, optimum, smoothness
from tether.methods import State
from tether.models import MODELS, cross_entropy
from tether.papers.experiments import Claim, Outcome, Setting, experiment
from tether.papers.watched import InTurn, Uncoupled, Watched
from tether.report import style
from tether.theory import local_gd_bound

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WORKERS = 8
PERIODS = (1, 4, 16)
"""H."""

PENALTY = 0.05
"""Of half the squared norm of the parameters; it makes all objectives strongly convex, so floors are soon reached."""

SHARES = (1.0, 0.5, 0.25)
"""How much of the data is sorted by class before it is cut into workers' shares; the rest lies anywhere."""

SCALES = (1.0, 0.5, 0.25)
"""By how much the differences between the workers' gradients are scaled, where all is sorted."""

STEPS = 4000
"""Of each worker. The slides print none, nor anything else of the paper's own setting: `--paper` only asks for data."""

POINTS = 100
"""At so many numbers of steps, evenly spread on a logarithmic axis, losses are looked at."""

EARLY_ROUNDS = 10
"""After so many rounds it is asked who is ahead at first."""

PROPORTIONAL = (0.8, 1.25)
"""Between these exponents the floor is proportional to what it is drawn against."""


def objective(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """The logistic loss, an l2 penalty, and a linear term, which is the worker's own: c_m^T x."""
    inputs, labels, tilts = batch
    x = torch.cat([parameter.flatten() for parameter in model.parameters()])
    return cross_entropy(model, (inputs, labels)) + PENALTY / 2 * x @ x + tilts.mean(0) @ x


@dataclass(frozen=True, eq=False)
class Problem:
    """The workers' objectives f_m. Their mean f and its minimum x* are the same for all shares and scales.

    Attributes:
        data: inputs, labels and linear terms, cut into equal consecutive shares, a worker each.
        share: how much of it is sorted by class.
        scale: c_m is (scale - 1) grad f_m(x*), so that the gradients at x* are so many times as large as without, while
            every curvature is as it was.
    """

    data: Dataset
    share: float
    scale: float = 1.0

    @cached_property
    def model(self) -> nn.Module:
        """Logistic regression, from zero."""
        model = MODELS["logistic"](self.data.shape, 2).double()
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
        return model

    @cached_property
    def landscape(self) -> Landscape:
        """f_m and f."""
        return Landscape(self.model, objective, self.data, workers=WORKERS)

    @cached_property
    def optimum(self) -> Float[Tensor, " d"]:
        """x*."""
        return optimum(self.landscape, tolerance=1e-7).x

    @cached_property
    def least(self) -> float:
        """f(x*)."""
        return self.landscape.loss(self.optimum)

    @cached_property
    def smoothness(self) -> float:
        """L: the logistic loss curves most where all odds are even, which they are at zero."""
        return smoothness(self.landscape, torch.zeros_like(self.landscape.x)).value

    @cached_property
    def distance(self) -> float:
        """||x_0 - x*||^2."""
        return float((self.landscape.x - self.optimum).square().sum())

    @cached_property
    def heterogeneity(self) -> float:
        """sigma_f^2."""
        return gradient_statistics(self.landscape, self.optimum).heterogeneity().value

    def gap(self, x: Float[Tensor, "n d"]) -> Float[np.ndarray, " n"]:
        """f(x) - f(x*)."""
        return np.array([self.landscape.loss(row) for row in x]) - self.least

    def scaled(self, scale: float) -> Problem:
        """The same with gradients at x* that differ so many times as much between workers."""
        inputs, labels, tilts = self.data.train
        gradients = [self.landscape.gradient(self.optimum, worker=worker) for worker in range(WORKERS)]
        apart = torch.stack(gradients)
        own = (apart - apart.mean(0)).repeat_interleave(len(self.data) // WORKERS, 0)
        return replace(self, data=replace(self.data, train=(inputs, labels, tilts + (scale - 1) * own)), scale=scale)


@dataclass(frozen=True)
class Descent:
    """What local gradient descent came to.

    Attributes:
        problem: on which objectives.
        period: H.
        steps: `[n]`, at which it was looked at.
        gap: `[n]`, f - f* at the mean of the workers, at the last round before.
        average: `[n]`, f - f* at the mean of the workers over all steps up to there, which is what the bound is of.
        bound: `[n]`.
    """

    problem: Problem
    period: int
    steps: Int[np.ndarray, " n"]
    gap: Float[np.ndarray, " n"]
    average: Float[np.ndarray, " n"]
    bound: Float[np.ndarray, " n"]

    @property
    def floor(self) -> float:
        """The gap at the end."""
        return float(self.gap[-1])

    def after(self, rounds: int) -> float:
        """The gap after so many rounds."""
        return float(np.interp(rounds, self.steps / self.period, self.gap))


def samples(setting: Setting) -> Dataset:
    """The file that is given, or the measurements of breast cancers that come with scikit-learn.

    Features are standardised, and every sample scaled to a norm of 1: few numbers then decide how fast descent is.
    """
    if setting.data is not None:
        data = libsvm(setting.data)
        if data.classes != 2:
            raise ConfigError(f"--data {setting.data}: {data.classes} classes; logistic regression is between two")
        inputs, labels, name = data.train[0].double(), data.train[1], data.name
    else:
        from sklearn.datasets import load_breast_cancer

        inputs, labels = (torch.from_numpy(each) for each in load_breast_cancer(return_X_y=True))
        name = "breast cancer"
    deviation = inputs.std(0)
    inputs = (inputs - inputs.mean(0)) / torch.where(deviation > 0, deviation, 1)
    return Dataset((nn.functional.normalize(inputs), labels), name=name, classes=2)


def problem(data: Dataset, share: float, seed: int) -> Problem:
    """These samples, a share of them sorted by class; the few that are left over by equal parts are left out."""
    random = np.random.default_rng(seed)
    whole = len(data) // WORKERS * WORKERS
    kept = random.permutation(len(data))[:whole]
    order = kept[np.argsort(data.train[1][kept].numpy(), kind="stable")]
    anywhere = np.flatnonzero(random.random(whole) >= share)
    order[anywhere] = random.permutation(order[anywhere])
    inputs, labels = (each[torch.from_numpy(order)] for each in data.train)
    tilts = inputs.new_zeros(whole, inputs.shape[1] + 1)
    return Problem(Dataset((inputs, labels, tilts), name=data.name, classes=2).partitioned("contiguous"), share)


def mean(x: Float[Tensor, "m d"], state: State) -> Float[Tensor, " d"]:
    """The mean of the workers."""
    return x.mean(0)


def descend(given: Problem, period: int, lr: float, steps: int) -> Descent:
    """Local gradient descent, with what the slides prove of it."""
    watched = Watched.of(Uncoupled(period=1), look=mean)
    tether.simulate(
        given.model,
        InTurn.of(tether.LocalSGD(period), watched),
        given.data,
        workers=WORKERS,
        objective=objective,
        optimizer=lambda p: torch.optim.SGD(p, lr=lr),
        steps=steps,
        batch_size=None,
        stepping="stacked",
    )
    means = torch.stack([given.landscape.x, *watched.seen])  # x_0 to x_T
    at = np.unique(np.geomspace(period, steps, POINTS).astype(int) // period * period)
    averages = torch.cumsum(means[:-1], 0)[at - 1] / torch.from_numpy(at)[:, None]
    bounds = [_bound(given, period, lr, int(t)) for t in at]
    return Descent(given, period, at, given.gap(means[at]), given.gap(averages), np.array(bounds))


def _bound(given: Problem, period: int, lr: float, steps: int) -> float:
    """What the average over so many steps is at most above the least loss."""
    return local_gd_bound(
        period=period,
        workers=WORKERS,
        steps=steps,
        smoothness=given.smoothness,
        distance=given.distance,
        variance=given.heterogeneity,
        lr=lr,
    ).total


@experiment(
    "localgd/periods",
    shows="the plots, theorem 1",
    data="two classes in LIBSVM's format",
    stand_in="scikit-learn's breast cancer data",
    file=True,
)
def local_gd(setting: Setting) -> Outcome:
    """Local gradient descent on heterogeneous data, by the number of local steps: loss a round, floors, the bound."""
    return study(samples(setting), setting, steps=STEPS)


def study(data: Dataset, setting: Setting, steps: int) -> Outcome:
    """The experiment on some samples."""
    apart, *mixed = [problem(data, share, setting.seed) for share in SHARES]
    scaled = [apart.scaled(scale) for scale in SCALES[1:]]
    # One learning rate for all, the largest that the theorem allows the longest period: gamma = 1/(4 H L).
    lr = 1 / (4 * max(PERIODS) * max(each.smoothness for each in (apart, *mixed)))
    work = [*((apart, period) for period in PERIODS), *((each, PERIODS[-1]) for each in (*scaled, *mixed))]
    found = []
    for number, (given, period) in enumerate(work):
        setting.progress(f"H = {period}, {given.share:.0%} sorted", number / len(work))
        found.append(descend(given, period, lr, steps))
    by_period, by_scale, by_share = (
        found[: len(PERIODS)],
        [each for each in found if each.period == PERIODS[-1] and each.problem.share == SHARES[0]],
        [each for each in found if each.period == PERIODS[-1] and each.problem.scale == SCALES[0]],
    )
    claims = [
        _holds_bound(found),
        *_by_period(by_period, steps),
        _proportional(by_scale, "the floor is proportional to σ_f², all else equal", "∇f_m(x*) scaled"),
        _proportional(by_share, "the floor is proportional to σ_f² of more or less mixed data", "less of it sorted"),
    ]
    table = [
        {
            "sorted_share": each.problem.share,
            "gradients_scaled_by": each.problem.scale,
            "period": each.period,
            "sigma_f_squared": each.problem.heterogeneity,
            "smoothness": each.problem.smoothness,
            "lr": lr,
            "floor": each.floor,
            "average_at_the_end": float(each.average[-1]),
            "bound_at_the_end": float(each.bound[-1]),
        }
        for each in found
    ]
    curves = [
        {"sorted_share": each.problem.share, "gradients_scaled_by": each.problem.scale, "period": each.period}
        | {"step": int(step), "gap": float(gap), "average": float(average), "bound": float(bound)}
        for each in found
        for step, gap, average, bound in zip(each.steps, each.gap, each.average, each.bound, strict=True)
    ]
    notes = [
        f"{data.name}: {len(apart.data)} samples of {data.shape[0]} numbers, in equal shares for {WORKERS} workers; "
        f"l2 penalty {PENALTY:g}; full gradients, float64; {steps:,} steps. The learning rate is {lr:.3g} for every H, "
        f"the largest at which the theorem speaks of H = {max(PERIODS)}. The plots name neither data nor rates.",
        "σ_f² is changed in two ways that leave f and x* as they are: by linear terms, which scale the gradients at x* "
        "and leave curvatures alone; and by how much of the data is sorted by class. Mixing makes curvatures alike as "
        "well, and workers of the same curvature do not move the mean away from x*: there the floor may fall faster "
        "than σ_f². The theorem is an upper bound, which allows both.",
    ]
    figures = {"periods": _draw(by_period, by_scale, by_share)}
    return Outcome(claims, figures, {"floors": table, "curves": curves}, notes)


def _holds_bound(found: Sequence[Descent]) -> Claim:
    largest = max(float((each.average / each.bound).max()) for each in found)
    return Claim(
        "f(x̂_T) − f(x*) is at most the bound: 2 ‖x_0 − x*‖² / (γT) + 24 γ² L H² σ_f²",
        largest <= 1,
        largest,
        remark="the largest ratio of what was measured to the bound, over all T, H and σ_f², x̂_T the mean over time; "
        "holds up to 1",
    )


def _by_period(found: Sequence[Descent], steps: int) -> list[Claim]:
    """Whether longer periods are faster per round at first, and end higher."""
    first, *_, last = found
    rounds = EARLY_ROUNDS
    early, floors = [each.after(rounds) for each in found], [each.floor for each in found]
    return [
        Claim(
            "the larger H, the faster per round at first",
            all(a > b for a, b in itertools.pairwise(early)),
            early[-1] / early[0],
            remark=f"f − f* after {rounds} rounds, H = {last.period} over H = {first.period}; holds if each H is below "
            "the one before",
        ),
        Claim(
            "the larger H, the higher the floor",
            all(a < b for a, b in itertools.pairwise(floors)),
            floors[-1] / floors[-2],
            remark=f"f − f* after {steps:,} steps, H = {last.period} over H = {found[-2].period}: "
            f"{', '.join(f'{floor:.2g}' for floor in floors)} by H; holds if each H is above the one before",
        ),
    ]


def _proportional(found: Sequence[Descent], says: str, how: str) -> Claim:
    """The exponent with which the floor grows with sigma_f^2."""
    variances, floors = [each.problem.heterogeneity for each in found], [each.floor for each in found]
    exponent = float(np.polyfit(np.log(variances), np.log(floors), 1)[0])
    low, high = PROPORTIONAL
    shown = ", ".join(f"{floor:.2g} at {variance:.2g}" for variance, floor in zip(variances, floors, strict=True))
    return Claim(
        says,
        low <= exponent <= high,
        exponent,
        remark=f"exponent of the floor over σ_f², {how}, H = {PERIODS[-1]}: {shown}; holds from {low:g} to {high:g}",
    )


def _draw(by_period: Sequence[Descent], by_scale: Sequence[Descent], by_share: Sequence[Descent]) -> Figure:
    """The gap against rounds; the average over time against steps, under its bound; the floor against σ_f²."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure((7.0, 3.0), layout="constrained")
    rounds, averages, floors = figure.subplots(1, 3)
    for number, each in enumerate(by_period):
        look: dict[str, Any] = {"color": style.LIGHT[number]}
        rounds.loglog(each.steps / each.period, each.gap, label=f"H = {each.period}", **look)
        averages.loglog(each.steps, each.average, **look)
        averages.loglog(each.steps, each.bound, linestyle="--", **look)
    for number, (lines, label) in enumerate(((by_scale, "gradients scaled"), (by_share, "data mixed"))):
        look = {"color": style.LIGHT[len(by_period) + number], "label": label}
        floors.loglog([each.problem.heterogeneity for each in lines], [each.floor for each in lines], "o-", **look)
    rounds.set(xlabel="rounds", ylabel="f − f* at the mean of the workers")
    averages.set(xlabel="local steps T", ylabel="f(x̂_T) − f*; dashed: the bound")
    floors.set(xlabel="σ_f²", ylabel=f"floor of f − f*, H = {by_period[-1].period}")
    floors.xaxis.set_minor_formatter(NullFormatter())
    floors.legend()
    figure.legend(*rounds.get_legend_handles_labels(), loc="outside upper center", ncols=len(by_period))
    return figure
