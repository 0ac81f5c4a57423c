"""Looking at the Hessian after some rounds: which rounds of which networks, on how many samples.

In the paper's setting the Hessian is whole, of all training samples. In the default one it is of some of them, and
Lanczos gives its outer eigenvalues, and the energy of a vector on a hundred eigenvalues.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

from tether.diagnostics import Landscape
from tether.papers.experiments import Setting
from tether.papers.second_order.training import CLIENTS, CNN, MLP, Network, Trained, train


@dataclass(frozen=True)
class Size:
    """How much is looked at.

    Attributes:
        rounds: of each network, those looked at.
        clients: of each.
        samples: of each client that the Hessian is of; None for all.
        steps: of Lanczos; None for the whole Hessian.
    """

    rounds: Mapping[Network, tuple[int, ...]]
    clients: Mapping[Network, int] = field(default_factory=lambda: {MLP: CLIENTS, CNN: CLIENTS})
    samples: Mapping[Network, int | None] = field(default_factory=lambda: {MLP: None, CNN: None})
    steps: int | None = None


FEW_CLIENTS, FEW_SAMPLES = {MLP: CLIENTS, CNN: 10}, {MLP: 20, CNN: 50}
"""Of the default settings."""

LANCZOS = 100
"""Its steps there."""


def looks(size: Size, setting: Setting, next_round: bool) -> Iterator[tuple[Trained, int, Landscape]]:
    """Each network at each of its rounds.

    Args:
        size: which.
        setting: where the data is.
        next_round: whether the update of the round that follows the last is needed.
    """
    parts = sum(map(len, size.rounds.values())) + len(size.rounds)
    done = 0
    for network, rounds in size.rounds.items():

        def tell(share: float, network: Network = network, done: int = done) -> None:
            setting.progress(network.name, (done + share) / parts)

        trained = train(network, setting, max(rounds) + next_round, size.clients[network], tell)
        landscape = trained.landscape(size.samples[network], network.precision if size.steps is None else torch.float64)
        for round in rounds:
            done += 1
            setting.progress(f"{network.name}, round {round}", done / parts)
            yield trained, round, landscape
        done += 1


def how(size: Size) -> list[str]:
    """How eigenvalues were found."""
    if size.steps is None:
        return ["Hessians are whole, of all training samples, and decomposed in float64."]
    samples = ", ".join(
        f"{samples * size.clients[network]:,} ({network.name})"
        for network, samples in size.samples.items()
        if samples is not None
    )
    return [
        f"The Hessian is of {samples} training samples, looked at by Lanczos, of {size.steps} steps for energies; "
        "--paper takes whole Hessians, of all samples."
    ]
