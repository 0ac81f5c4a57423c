"""Factors of a matrix of low rank: averaging keeps workers off the minima that they have come to (section 8)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

import tether
from tether.papers.experiments import Claim, Outcome, Setting, experiment
from tether.papers.watched import Uncoupled
from tether.report import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WORKERS = 8
RANKS = (1, 10, 50, 100)
PULL_A_STEP = 5e-4 / 5
"""ηλ, of the paper's η = 5e-4 and λ = 1/5."""


@dataclass(frozen=True)
class Size:
    """How large the problems are, and how many.

    Attributes:
        dimension: d, the rows and columns of the matrix.
        ranks: r, columns of its factors.
        trials: how many matrices of each rank.
        iterations: of each run; the paper prints none.
    """

    dimension: int
    ranks: tuple[int, ...]
    trials: int
    iterations: int

    @property
    def learning_rate(self) -> float:
        """η: 5e-4 at d = 1000, else as far from the largest stable one for matrices of rank 100 as there.

        The largest eigenvalue of M = UUᵀ is about (√d + √r)², and so is that of the Hessian, but for a factor.
        """
        return 5e-4 * _largest_eigenvalue(1000, 100) / _largest_eigenvalue(self.dimension, 100)


PAPER = Size(dimension=1000, ranks=RANKS, trials=10, iterations=200)
SMALL = Size(dimension=300, ranks=RANKS, trials=2, iterations=200)


def _largest_eigenvalue(dimension: int, rank: int) -> float:
    return (dimension**0.5 + rank**0.5) ** 2


class Factor(nn.Module):
    """X, `[d, r]`; forward gives F(X) = ¼‖M − XXᵀ‖²."""

    def __init__(self, dimension: int, rank: int):
        super().__init__()
        self.X = nn.Parameter(torch.zeros(dimension, rank, dtype=torch.float64))

    def forward(self, M: Float[Tensor, "d d"]) -> Float[Tensor, ""]:
        """F(X) for this matrix."""
        return (M - self.X @ self.X.T).square().sum() / 4


@experiment("leader/matrix-completion", shows="figure 1")
def matrix_completion(setting: Setting) -> Outcome:
    """Low-rank matrix completion by EAGD and LGD, and by gradient descent without any coupling."""
    return study(PAPER if setting.paper else SMALL, setting)


def study(size: Size, setting: Setting) -> Outcome:
    """The experiment at a size."""
    curves: dict[tuple[int, str], np.ndarray] = {}
    done = 0
    for rank in size.ranks:
        trials: list[dict[str, np.ndarray]] = []
        for trial in range(size.trials):
            setting.progress(f"rank {rank}, trial {trial + 1}", done / sum(size.ranks) / size.trials)
            trials.append(dict(_solve(size, rank, (setting.seed, rank, trial))))
            done += rank
        curves |= {(rank, name): np.stack([each[name] for each in trials]) for name in trials[0]}
    claims = [_stalls(curves, rank) for rank in size.ranks]
    rising = max(
        float((curve[:, 1:] / curve[:, :-1])[curve[:, :-1] > 1e-18 * curve[:, :1]].max())
        for (_, name), curve in curves.items()
        if name != "uncoupled GD"
    )
    claims.append(
        Claim(
            "both methods exhibit monotonic decrease at this learning rate",
            rising < 1,
            rising,
            remark="largest objective over the one before in any run, while above 1e-18 of the first; holds below 1",
        )
    )
    notes = [_beside_uncoupled(curves, size)]
    if size.dimension != PAPER.dimension:
        notes.append(
            f"d = {size.dimension} instead of {PAPER.dimension:,}, {size.trials} trials instead of {PAPER.trials}; η = "
            f"{size.learning_rate:.3g} instead of 0.0005, as far from the largest stable one as that, and λ = "
            f"{PULL_A_STEP / size.learning_rate:.3g} instead of 0.2, so that ηλ is the same."
        )
    notes.append(f"The paper does not print the number of iterations; these are {size.iterations}.")
    table = [
        {"rank": rank, "method": name, "trial": trial, "iteration": iteration, "best_objective": float(value)}
        for (rank, name), runs in curves.items()
        for trial, run in enumerate(runs)
        for iteration, value in enumerate(run)
    ]
    return Outcome(claims, {"figure-1": _draw(curves, size)}, {"best-objective": table}, notes)


def _solve(size: Size, rank: int, seed: tuple[int, ...]) -> Iterator[tuple[str, Float[np.ndarray, " t"]]]:
    """For each method the objective of the best worker at each iteration; the matrix and the starts are the same."""
    random = np.random.default_rng(seed)
    U = torch.from_numpy(random.standard_normal((size.dimension, rank)))
    start = torch.from_numpy(random.standard_normal((WORKERS, size.dimension * rank)))
    M = U @ U.T
    rate = size.learning_rate
    methods: Mapping[str, tether.Method] = {
        "EAGD": tether.EASGD(period=1, alpha=PULL_A_STEP),
        "LGD": tether.LSGD(period=1, pull=PULL_A_STEP / rate, window=1, pull_scaled_by_lr=True),
        "uncoupled GD": Uncoupled(period=1),
    }
    for name, method in methods.items():
        result = tether.simulate(
            Factor(size.dimension, rank),
            method,
            workers=WORKERS,
            objective=lambda factor, batch: factor(M),
            optimizer=lambda p: torch.optim.SGD(p, lr=rate),
            steps=size.iterations,
            order="mix-then-step",
            start=start,
            stepping="stacked",
        )
        yield name, np.array([record.losses.min() for record in result.history])


def _stalls(curves: Mapping[tuple[int, str], np.ndarray], rank: int) -> Claim:
    """Whether EAGD ends far above LGD, from the same starts."""
    ratios = curves[rank, "EAGD"][:, -1] / curves[rank, "LGD"][:, -1]
    return Claim(
        f"rank {rank}: EAGD slows down significantly near a minimizer, LGD does not",
        bool(ratios.min() > 10),
        float(np.median(ratios)),
        remark=f"final objective, EAGD over LGD, median of trials; holds if above 10 in all; least {ratios.min():.2g}",
    )


def _beside_uncoupled(curves: Mapping[tuple[int, str], np.ndarray], size: Size) -> str:
    """What the best of workers that never hear of one another comes to."""

    def end(rank: int, name: str) -> float:
        return float(np.median(curves[rank, name][:, -1]))

    said = "; ".join(
        f"{end(rank, 'uncoupled GD'):.1e} ({end(rank, 'LGD'):.1e}, {end(rank, 'EAGD'):.1e})" for rank in size.ranks
    )
    ranks = ", ".join(map(str, size.ranks))
    as_low = all(end(rank, "uncoupled GD") < 2 * end(rank, "LGD") for rank in size.ranks)
    follows = " So it is the averaging that hurts here, and no leader is needed." if as_low else ""
    return (
        f"Without any coupling the best worker's objective ends at (LGD's, EAGD's), median of trials, ranks {ranks}: "
        f"{said}.{follows}"
    )


def _draw(curves: Mapping[tuple[int, str], np.ndarray], size: Size) -> Figure:
    """Figure 1: the objective of the best worker over the iterations, a panel for each rank, a line for each trial."""
    from matplotlib.figure import Figure

    looks = {"EAGD": (style.LIGHT[1], "-"), "LGD": (style.LIGHT[0], "-"), "uncoupled GD": (style.LIGHT[4], ":")}
    figure = Figure((7.0, 2.5), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(size.ranks), sharey=True))
    for (panel, rank), (name, (colour, dash)) in itertools.product(zip(panels, size.ranks, strict=True), looks.items()):
        for number, run in enumerate(curves[rank, name]):
            label = name if number == 0 else None
            panel.semilogy(run, color=colour, linestyle=dash, linewidth=1.2, alpha=0.8, label=label)
        panel.set(title=f"r = {rank}", xlabel="iterations", xlim=(0, size.iterations))
    panels[0].set_ylabel("best objective value")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(looks))
    return figure
