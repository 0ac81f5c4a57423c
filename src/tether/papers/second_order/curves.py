"""Local SGD beside SGD with large batches, a round against a step (figure 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

import tether
from tether.models import cross_entropy
from tether.papers.curves import Curve, times_sooner
from tether.papers.experiments import Claim, Outcome, Setting, experiment
from tether.papers.second_order.training import (
    BATCH_SIZE,
    CLIENTS,
    CNN,
    DATA,
    MLP,
    SGD_BATCH_SIZE,
    STAND_IN,
    Network,
    about,
    sgd,
    train,
)
from tether.report import style
from tether.report.papers import logarithmic
from tether.result import NonFiniteLossError, Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RATES = (0.05, 0.1, 0.2, 0.3)
"""Of SGD."""


@dataclass(frozen=True)
class Size:
    """How long, by how many.

    Attributes:
        rounds: of each network; a step of SGD is a round.
        clients: of each.
        held_out: test images to evaluate on; None for all.
    """

    rounds: Mapping[Network, int]
    clients: Mapping[Network, int] = field(default_factory=lambda: {MLP: CLIENTS, CNN: CLIENTS})
    held_out: int | None = None


PAPER = Size({MLP: MLP.rounds, CNN: CNN.rounds})
SMALL = Size({MLP: 60, CNN: 20}, {MLP: CLIENTS, CNN: 10}, held_out=2000)


@experiment("second-order/curves", shows="figure 2", data=DATA, stand_in=STAND_IN)
def curves(setting: Setting) -> Outcome:
    """L-SGD with 100 clients and SGD with batches of 1,000, against communication rounds."""
    return study(PAPER if setting.paper else SMALL, setting)


def study(size: Size, setting: Setting) -> Outcome:
    """The experiment at a size."""
    found: dict[tuple[Network, str], dict[str, Curve]] = {}
    for number, (network, rounds) in enumerate(size.rounds.items()):

        def tell(share: float, network: Network = network, number: int = number) -> None:
            setting.progress(network.name, (number + share) / len(size.rounds))

        trained = train(network, setting, rounds, size.clients[network], tell, held_out=size.held_out)
        found[network, "L-SGD"] = _measured(trained.result, network.period)
        for rate in RATES:
            found[network, f"SGD, η = {rate:g}"] = _large_batches(network, rate, rounds, size.held_out, setting)
    claims = [_claim(found, network) for network in size.rounds]
    table = [
        {
            "network": network.name,
            "method": name,
            "round": int(round),
            "test_loss": float(loss),
            "test_accuracy": float(a),
        }
        for (network, name), curve in found.items()
        for round, loss, a in zip(*curve["loss"], curve["accuracy"][1], strict=True)
    ]
    notes = [
        "A round of L-SGD is K local steps of every client; of SGD it is one step. So L-SGD computes K times as many "
        "gradients in a round: "
        + "; ".join(
            f"{network.name} {network.period * size.clients[network] * BATCH_SIZE:,} samples against {SGD_BATCH_SIZE:,}"
            for network in size.rounds
        )
        + ".",
        f"Measured on {'all' if size.held_out is None else f'{size.held_out:,} of the'} test images; "
        + ", ".join(f"{rounds} rounds ({network.name})" for network, rounds in size.rounds.items())
        + ".",
        *about({network: size.clients[network] for network in size.rounds}, setting),
    ]
    return Outcome(claims, {"figure-2": _draw(found)}, {"curves": table}, notes)


def _large_batches(
    network: Network, rate: float, rounds: int, held_out: int | None, setting: Setting
) -> dict[str, Curve]:
    """SGD from the same start."""
    data = network.data(setting, held_out)
    try:
        result = tether.simulate(
            network.start(data, setting.seed),
            tether.SyncSGD(),
            data,
            workers=1,
            objective=cross_entropy,
            optimizer=sgd(rate),
            steps=rounds,
            batch_size=SGD_BATCH_SIZE,
            seed=setting.seed,
            evaluate=data.evaluation(),
            evaluate_every=1,
        )
    except NonFiniteLossError as error:
        result = error.result
    return _measured(result, 1)


def _measured(result: Result, period: int) -> dict[str, Curve]:
    """Rounds, and the mean model's test "loss" and "accuracy" then."""
    records = [record for record in result.history if record.center]
    rounds = np.array([record.step / period for record in records])
    return {name: (rounds, np.array([each.center[name] for each in records])) for name in ("loss", "accuracy")}


def _claim(found: Mapping[tuple[Network, str], dict[str, Curve]], network: Network) -> Claim:
    """Whether L-SGD needs fewer rounds than the best of SGD's learning rates."""
    others = {name: curve["loss"] for (of, name), curve in found.items() if of == network and name != "L-SGD"}
    best = min(others, key=lambda name: others[name][1][-1])
    sooner = times_sooner(found[network, "L-SGD"]["loss"], others[best])
    remark = f"median over test losses of the rounds to them of {best}, the best of four, over L-SGD's; holds above 1"
    says = f"{network.name}: L-SGD converges in fewer rounds than SGD"
    return Claim(says, sooner > 1, sooner, remark=remark)


def _draw(found: Mapping[tuple[Network, str], dict[str, Curve]]) -> Figure:
    """Figure 2: test loss and accuracy against rounds, a row for each network."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    networks = list(dict.fromkeys(network for network, _ in found))
    figure = Figure((7.0, 0.5 + 2.0 * len(networks)), layout="constrained")
    panels: Any = figure.subplots(len(networks), 2, squeeze=False)
    for (loss, accuracy), network in zip(panels, networks, strict=True):
        for number, (name, curve) in enumerate((name, curve) for (of, name), curve in found.items() if of == network):
            for axes, measure in ((loss, "loss"), (accuracy, "accuracy")):
                axes.plot(*curve[measure], color=style.LIGHT[number], label=name)
        logarithmic(loss)
        loss.set_ylabel(f"{network.name}: test loss")
        accuracy.set_ylabel("test accuracy")
        accuracy.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    for axes in panels[-1]:
        axes.set_xlabel("communication rounds")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(RATES) + 1)
    return figure
