"""How far the Hessian's eigenvalues reach, and what conditions on the learning rate make of it (table 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from tether.diagnostics import Landscape, Spectrum, extreme_eigenvalues, hessian
from tether.papers.experiments import Claim, Outcome, Setting, experiment
from tether.papers.second_order.spectra import FEW_CLIENTS, FEW_SAMPLES, LANCZOS, Size, how, looks
from tether.papers.second_order.training import CNN, DATA, MLP, RATE, STAND_IN, Network, about
from tether.report import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TABLE_2 = {
    MLP: {10: ("-4.869e-10", "1.558"), 60: ("-1.266e-10", "1.155"), 100: ("-1.755e-10", "1.068")},
    CNN: {10: ("-0.338", "34.113"), 60: ("-0.163", "31.492"), 100: ("-0.126", "31.586")},
}
"""The least and the largest eigenvalue that the paper prints, by network and round."""

FACTOR = 1.5
"""Up to so much more or less, an eigenvalue is as printed: clients, batches and starts are drawn at random."""

ZERO = 1e-5
"""An eigenvalue is zero up to so much of the largest, as Lanczos leaves it."""

ROUNDS = (10, 60, 100)
PAPER = Size({MLP: ROUNDS, CNN: ROUNDS})
SMALL = Size({MLP: ROUNDS, CNN: (10, 20)}, FEW_CLIENTS, FEW_SAMPLES, LANCZOS)


@experiment("second-order/eigenvalues", shows="table 2", data=DATA, stand_in=STAND_IN)
def eigenvalues(setting: Setting) -> Outcome:
    """The range of the Hessian's eigenvalues at several rounds, and what learning-rate conditions make of it."""
    return study(PAPER if setting.paper else SMALL, setting)


def study(size: Size, setting: Setting) -> Outcome:
    """The experiment at a size."""
    found: dict[Network, dict[int, tuple[float, float]]] = {network: {} for network in size.rounds}
    losses: dict[Network, dict[int, float]] = {network: {} for network in size.rounds}
    for trained, round, landscape in looks(size, setting, next_round=False):
        x = trained.centers[round]
        found[trained.network][round] = reach(landscape, x, whole=size.steps is None)
        losses[trained.network] |= {at: landscape.loss(trained.centers[at]) for at in (0, round)}
    claims: list[Claim] = []
    for network, each in found.items():
        claims += _reach_claims(network, each, losses[network], network.is_on_its_own(setting))
    table = [
        {"network": network.name, "round": round, "least": low, "largest": high, "loss": losses[network][round]}
        | {"printed_least": printed[0], "printed_largest": printed[1]}
        for network, each in found.items()
        for round, (low, high) in each.items()
        for printed in [TABLE_2[network].get(round, ("", ""))]
    ]
    return Outcome(
        claims, {"table-2": _draw_reach(found)}, {"table-2": table}, [*how(size), *about(size.clients, setting)]
    )


def reach(landscape: Landscape, x: Float[Tensor, " d"], whole: bool) -> tuple[float, float]:
    """The least and the largest eigenvalue at x, of the whole Hessian or by Lanczos."""
    if whole:
        return Spectrum.of(hessian(landscape, x).double()).range
    least = extreme_eigenvalues(landscape, 1, "smallest", x)
    largest = extreme_eigenvalues(landscape, 1, "largest", x)
    return least.range[0], largest.range[1]


def _reach_claims(
    network: Network, found: Mapping[int, tuple[float, float]], losses: Mapping[int, float], own: bool
) -> list[Claim]:
    claims = []
    rule = f"holds within a factor of {FACTOR}" if own else f"needs {network.images}"
    for round, printed in TABLE_2[network].items():
        for end, ours, theirs in zip(("least", "largest"), found.get(round, ()), printed, strict=False):
            if abs(float(theirs)) > ZERO:
                near = 1 / FACTOR <= ours / float(theirs) <= FACTOR
                says = f"{network.name}, round {round}: the {end} eigenvalue"
                claims.append(Claim(says, near if own else None, ours, theirs, rule))
    lowest = min(low / high for low, high in found.values())
    if network == MLP:
        claims.append(
            Claim(
                "MLP: no eigenvalue is below zero, but for rounding",
                abs(lowest) < ZERO,
                lowest,
                remark=f"the least over the largest, where that is least; holds within {ZERO:g} of 0",
            )
        )
    else:
        claims.append(
            Claim(
                "CNN: there are eigenvalues below zero, small beside the largest",
                -0.1 < lowest < -ZERO,
                lowest,
                remark=f"the least over the largest, where that is least; holds between -0.1 and {-ZERO:g}",
            )
        )
    rounds = sorted(found)
    claims.append(
        Claim(
            f"{network.name}: the largest eigenvalue falls from round {rounds[0]} to {rounds[-1]}",
            found[rounds[-1]][1] < found[rounds[0]][1],
            found[rounds[-1]][1] / found[rounds[0]][1],
            remark="the last over the first; in the paper's table "
            + f"{float(TABLE_2[network][100][1]) / float(TABLE_2[network][10][1]):.3f} from 10 to 100; holds below 1",
        )
    )
    product = min(network.period * RATE * high for _, high in found.values())
    falls = losses[rounds[-1]] < losses[0]
    claims.append(
        Claim(
            f"{network.name}: Kη is above 1/L, and L-SGD converges",
            product > 1 and falls,
            product,
            remark=f"least KηL; the loss goes from {losses[0]:.3f} to {losses[rounds[-1]]:.3f}; "
            "holds above 1 if the loss falls",
        )
    )
    return claims


def _draw_reach(found: Mapping[Network, Mapping[int, tuple[float, float]]]) -> Figure:
    """The range at each round, a panel for each network, beside what the paper prints."""
    from matplotlib.figure import Figure

    figure = Figure((7.0, 2.4), layout="constrained")
    panels: Any = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, (network, each) in zip(panels, found.items(), strict=True):
        printed = {round: tuple(map(float, ends)) for round, ends in TABLE_2[network].items()}
        for ranges, name, colour in (
            (each, "ours", style.LIGHT[0]),
            (printed, f"paper, {network.images}", style.LIGHT[1]),
        ):
            at = np.array(list(ranges), float) + (1 if ranges is printed else -1)
            low, high = np.array(list(ranges.values())).T
            axes.vlines(at, low, high, color=colour, linewidth=4, label=name)
        axes.set(title=network.name, xlabel="round", ylabel="eigenvalues", xticks=sorted({*each, *printed}))
        axes.legend(fontsize=7)
    return figure
