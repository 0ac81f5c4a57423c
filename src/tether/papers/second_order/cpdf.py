"""Where the energy of an update lies among the Hessian's eigenvalues (figures 3 to 8)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tether.diagnostics import Energy, Landscape, Spectrum, energy, hessian, lanczos_energy
from tether.diagnostics.plots import draw_cpdf
from tether.papers.experiments import Claim, Outcome, Setting, experiment
from tether.papers.second_order.spectra import FEW_CLIENTS, FEW_SAMPLES, LANCZOS, Size, how, looks
from tether.papers.second_order.training import CNN, DATA, MLP, RATE, SGD_BATCH_SIZE, STAND_IN, Network, Trained, about
from tether.theory import update_gain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMALL_EIGENVALUE = 0.01
"""Eigenvalues up to so much of the largest are small."""

TENS = tuple(range(10, 101, 10))
PAPER = Size({MLP: TENS, CNN: TENS})
SMALL = Size({MLP: (10, 20, 40, 60), CNN: (10, 20)}, FEW_CLIENTS, FEW_SAMPLES, LANCZOS)


@dataclass(frozen=True)
class Look:
    """The energy of vectors at a round.

    Attributes:
        update: of L-SGD's update.
        gradient: of the gradient, GD's update but for a factor.
        batch: of the gradient of 1,000 samples, SGD's update.
        predicted: that L-SGD's update should have by eq. 29, given the gradient's.
    """

    update: Energy
    gradient: Energy
    batch: Energy
    predicted: Energy

    @property
    def curves(self) -> dict[str, Energy]:
        """Those of a figure."""
        return {"L-SGD": self.update, "GD": self.gradient, "SGD": self.batch, "L-SGD by eq. 29": self.predicted}

    @property
    def largest(self) -> float:
        """The largest eigenvalue."""
        return float(self.gradient.eigenvalues[-1])

    @property
    def small(self) -> float:
        """The largest of the small eigenvalues."""
        return SMALL_EIGENVALUE * self.largest

    @property
    def off(self) -> float:
        """The largest distance of the update's CPDF from the predicted one, between eigenvalues."""
        ends = self.gradient.eigenvalues
        at = (ends[1:] + ends[:-1]) / 2
        return max(abs(self.update.share_up_to(each) - self.predicted.share_up_to(each)) for each in at)


@experiment("second-order/cpdf", shows="figures 3 to 8", data=DATA, stand_in=STAND_IN)
def cpdf(setting: Setting) -> Outcome:
    """The cumulative energy of L-SGD's update and of the gradient over the Hessian's eigenvalues."""
    return study(PAPER if setting.paper else SMALL, setting)


def study(size: Size, setting: Setting) -> Outcome:
    """The experiment at a size."""
    found: dict[Network, dict[int, Look]] = {network: {} for network in size.rounds}
    for trained, round, landscape in looks(size, setting, next_round=True):
        found[trained.network][round] = look(trained, round, landscape, size.steps)
    claims = [claim for network, each in found.items() for claim in _claims(network, each)]
    figures = {
        f"figures-{'3-5-6' if network == MLP else '4-7-8'}": _draw(network, each) for network, each in found.items()
    }
    table = [
        {
            "network": network.name,
            "round": round,
            "of": name,
            "eigenvalue": float(at),
            "energy": float(e),
            "cpdf": float(f),
        }
        for network, each in found.items()
        for round, one in each.items()
        for name, curve in one.curves.items()
        for at, e, f in zip(curve.eigenvalues, curve.energies, curve.cumulative, strict=True)
    ]
    return Outcome(claims, figures, {"energy": table}, [*how(size), *about(size.clients, setting)])


def look(trained: Trained, round: int, landscape: Landscape, steps: int | None) -> Look:
    """The energies at x_t, of the gradient there and of the update of the round that follows.

    Args:
        trained: the run.
        round: t.
        landscape: whose Hessian.
        steps: of Lanczos; None for the whole Hessian.
    """
    x, update, gradient = trained.centers[round], trained.update(round), trained.gradient(round)
    vectors = (update, gradient, trained.gradient(round, SGD_BATCH_SIZE))
    if steps is None:
        spectrum = Spectrum.of(hessian(landscape, x).double())
        energies = [energy(spectrum, v) for v in vectors]
    else:
        energies = [lanczos_energy(landscape, v, steps, x) for v in vectors]
    of_update, of_gradient, of_batch = energies
    gain = update_gain(of_gradient.eigenvalues, RATE, trained.network.period)
    predicted = Energy(of_gradient.eigenvalues, gain**2 * of_gradient.energies)
    return Look(of_update, of_gradient, of_batch, predicted)


def _claims(network: Network, found: Mapping[int, Look]) -> list[Claim]:
    looks = found.values()
    rounds = f"rounds {', '.join(map(str, found))}"
    up_to = f"share on eigenvalues up to {SMALL_EIGENVALUE:g} of the largest, {rounds}"
    update = min(each.update.share_up_to(each.small) for each in looks)
    gradient = max(each.gradient.share_up_to(each.small) for each in looks)
    batch = max(each.batch.share_up_to(each.small) for each in looks)
    lower = min((each.gradient.quantile(0.5) - each.update.quantile(0.5)) / each.largest for each in looks)
    off = max(each.off for each in looks)
    return [
        Claim(
            f"{network.name}: the energy of L-SGD's update lies on small eigenvalues",
            update > 0.5,
            update,
            remark=f"least {up_to}; holds above 0.5",
        ),
        *(
            Claim(
                f"{network.name}: that of {name} does not",
                share < 0.5,
                share,
                remark=f"largest {up_to}; holds below 0.5",
            )
            for name, share in (("GD's", gradient), ("SGD's", batch))
        ),
        Claim(
            f"{network.name}: the energy of L-SGD's update lies on smaller eigenvalues than the gradient's",
            lower > 0,
            lower,
            remark=f"the gradient's median eigenvalue less the update's, over the largest, least of {rounds}; "
            "holds above 0",
        ),
        Claim(
            f"{network.name}: where it lies follows from the gradient and the eigenvalues (eq. 29, remark 3)",
            off < 0.1,
            off,
            remark=f"largest distance of the update's CPDF from the one of eq. 29, {rounds}; holds below 0.1",
        ),
    ]


def _draw(network: Network, found: Mapping[int, Look]) -> Figure:
    """The CPDFs at each round, a panel each."""
    from matplotlib.figure import Figure

    columns = min(len(found), 5)
    rows = -(-len(found) // columns)
    figure = Figure((max(3.5, 1.75 * columns), 0.6 + 1.8 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes, (round, each) in zip(panels.flat, found.items(), strict=False):
        draw_cpdf(axes, each.curves)
        axes.lines[-1].set_linestyle(":")
        axes.axvline(each.small, color="black", linewidth=0.6, linestyle=":")
        axes.set(title=f"{network.name}, round {round}", ylabel="", xlabel="")
        axes.set_xticks([0, *(10.0**power for power in range(-4, 3, 2) if 10.0**power < each.largest)])
    figure.supxlabel("eigenvalue", fontsize=8)
    figure.supylabel("CPDF", fontsize=8)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure
