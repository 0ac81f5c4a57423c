"""How far apart workers are, by period and how well they mix: what is proved, and what noise does (section 4.2)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

import tether
from tether.methods import State
from tether.papers.cooperative.training import WORKERS
from tether.papers.experiments import Claim, Outcome, Setting, experiment
from tether.papers.watched import InTurn, Uncoupled, Watched
from tether.report import style
from tether.theory import network_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PERIODS = (2, 5, 10, 20)
ZETAS = (0.0, 0.5, 0.75, 0.9)

DIMENSION = 500
LEARNING_RATE = 0.1
ROUNDS = 30
"""Measured, after as many that are not: by then what a round leaves of the differences no longer grows."""

SPREAD = 1.1
"""The largest over the least ratio of what was measured to the bound, up to which they have one shape."""


class Walk(nn.Module):
    """A point that only noise moves: forward gives xi^T x, whose gradient is the sample xi."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(DIMENSION, dtype=torch.float64))

    def forward(self, noise: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
        """The mean over the batch."""
        return (noise @ self.x).mean()


def apart(x: Float[Tensor, "m d"], state: State) -> float:
    """(1/m) sum_i ||x_i - mean(x)||^2."""
    return float((x - x.mean(0)).square().sum(1).mean())


def measure(period: int, zeta: float, seed: int) -> float:
    """The mean of ||x_i - u||^2 over workers and steps, over eta^2 sigma^2, where gradients are nothing but noise.

    The workers mix by W = zeta I + (1 - zeta) J, whose eigenvalues are all zeta but the one of consensus.
    """
    watched = Watched.of(Uncoupled(period=1), look=apart)
    mixing = tether.DecentralizedSGD(period=period, topology=tether.topology.Complete(lazy=zeta))
    steps = 2 * ROUNDS * period
    noise = torch.from_numpy(np.random.default_rng(seed).standard_normal((WORKERS * 2000, DIMENSION)))
    tether.simulate(
        Walk(),
        InTurn.of(mixing, watched),
        tether.data.Dataset((noise,)).partitioned("reshuffled"),
        workers=WORKERS,
        objective=lambda walk, batch: walk(batch[0]),
        optimizer=lambda p: torch.optim.SGD(p, lr=LEARNING_RATE),
        steps=steps,
        batch_size=1,
        seed=seed,
        stepping="stacked",
    )
    return float(np.mean(watched.seen[steps // 2 :])) / (LEARNING_RATE**2 * DIMENSION)


@experiment("cooperative/network-error", shows="figure 3a")
def network_errors(setting: Setting) -> Outcome:
    """The bound on how far apart workers are over the period and zeta, and workers that noise drives apart under it."""
    grid = list(itertools.product(PERIODS, ZETAS))
    measured = {}
    for number, (period, zeta) in enumerate(grid):
        setting.progress(f"τ = {period}, ζ = {zeta:g}", number / len(grid))
        measured[period, zeta] = measure(period, zeta, setting.seed)
    bound = {at: float(network_error(*at)) for at in grid}
    shares = np.array([measured[at] / bound[at] for at in grid])
    table = [
        {"period": period, "zeta": zeta, "bound": bound[period, zeta], "measured": measured[period, zeta]}
        for period, zeta in grid
    ]
    claims = [
        Claim(
            "the network error is bounded by (1 + ζ²)/(1 − ζ²) τ − 1 (eq. 17, 144)",
            bool(shares.max() <= 1),
            float(shares.max()),
            remark="largest measured ‖x_i − u‖², in units of η²σ², over the bound; holds up to 1",
        ),
        Claim(
            "it is linear in τ and proportional to (1 + ζ²)/(1 − ζ²)",
            bool(shares.max() / shares.min() <= SPREAD),
            float(shares.max() / shares.min()),
            remark=f"largest over least of the measured over the bound, of {len(grid)} pairs of τ and ζ; holds up to "
            f"{SPREAD}",
        ),
        _increases("τ", measured, [[(period, zeta) for period in PERIODS] for zeta in ZETAS]),
        _increases("ζ", measured, [[(period, zeta) for zeta in ZETAS] for period in PERIODS]),
    ]
    expected = (WORKERS - 1) / WORKERS / 2
    notes = [
        f"Measured where gradients are noise alone, workers are {np.median(shares):.3f} of the bound apart (median): "
        f"(m − 1)/(2m) = {expected:.4f} is what such a walk comes to with {WORKERS}. The proof gives away a factor of "
        "2; the rest is that the mean moves with the workers.",
        _sensitive(measured),
    ]
    return Outcome(claims, {"figure-3a": _draw(measured)}, {"network-error": table}, notes)


def _increases(what: str, measured: Mapping[tuple[int, float], float], lines: list[list[tuple[int, float]]]) -> Claim:
    steps = np.array([measured[b] / measured[a] for line in lines for a, b in itertools.pairwise(line)])
    return Claim(
        f"it increases monotonically with {what}",
        bool((steps > 1).all()),
        float(steps.min()),
        remark=f"least ratio of what was measured to that of the {what} before; holds above 1",
    )


def _sensitive(measured: Mapping[tuple[int, float], float]) -> str:
    """What of "more sensitive to the changes in τ" can be said."""

    def growth(lines: list[list[tuple[int, float]]]) -> float:
        return float(np.median([measured[line[-1]] / measured[line[0]] for line in lines]))

    by_period, by_zeta = ([PERIODS[-2], PERIODS[-1]], [ZETAS[-2], ZETAS[-1]])
    much = growth([[(PERIODS[0], zeta), (PERIODS[-1], zeta)] for zeta in ZETAS])
    more = growth([[(period, ZETAS[0]), (period, ZETAS[-1])] for period in PERIODS])
    steep = np.log(growth([[(period, zeta) for period in by_period] for zeta in ZETAS])) / np.log(
        by_period[1] / by_period[0]
    )
    steeper = np.log(growth([[(period, zeta) for zeta in by_zeta] for period in PERIODS])) / np.log(
        by_zeta[1] / by_zeta[0]
    )
    return (
        "The paper calls it more sensitive to τ than to ζ, which depends on what is compared: from one end of these "
        f"ranges to the other it grows {much:.3g} times with τ and {more:.3g} times with ζ; a per cent more of τ is "
        f"{steep:.2f} % more at the upper end, a per cent more of ζ {steeper:.2f} %."
    )


def _draw(measured: Mapping[tuple[int, float], float]) -> Figure:
    """Figure 3a, the bound over τ and ζ; beside it what was measured, under the bound."""
    from matplotlib.figure import Figure

    figure = Figure((7.0, 3.2), layout="constrained")
    surface = figure.add_subplot(1, 2, 1, projection="3d")
    periods, zetas = np.meshgrid(np.linspace(1, 50, 50), np.linspace(0, 0.95, 50))
    surface.plot_surface(periods, zetas, network_error(periods, zetas), cmap="viridis", linewidth=0, rasterized=True)
    surface.set(xlabel="τ", ylabel="ζ", title="bound on the network error")
    lines = figure.add_subplot(1, 2, 2)
    for number, zeta in enumerate(ZETAS):
        colour = style.LIGHT[number]
        lines.loglog(PERIODS, [network_error(period, zeta) for period in PERIODS], color=colour, label=f"ζ = {zeta:g}")
        lines.loglog(PERIODS, [measured[period, zeta] for period in PERIODS], "o", color=colour, markersize=4)
    lines.set(xlabel="τ", ylabel="network error, in units of η²σ²", title="bound (lines), measured (dots)")
    lines.set_xticks(PERIODS, [str(period) for period in PERIODS])
    lines.minorticks_off()
    lines.legend()
    return figure
