"""Decentralized averaging: each worker averages with its neighbours only."""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx
from jaxtyping import Float
from torch import Tensor

from tether.methods.base import Method, State, Step
from tether.topology import Topology, as_topology, check_present
from tether.workers import Message, Workers


@dataclass(frozen=True)
class DecentralizedSGD(Method):
    """Average with neighbours, by the mixing matrix W of a topology.

    x_i <- sum_j w_ij x_j

    D-PSGD for `period=1`, decentralized periodic averaging above (Wang & Joshi, "Cooperative SGD" (2021), sections 5.3
    and 6.1).

    Args:
        period: local steps between rounds (tau), at least 1.
        topology: who talks to whom: a name, a `Topology`, or a networkx graph.

    Raises:
        ValueError: if there is no such topology, or none for this number of workers.
    """

    topology: str | Topology | nx.Graph = "ring"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "topology", as_topology(self.topology))

    def init(self, x: Float[Tensor, "r d"], workers: Workers) -> State:
        """No state; makes sure that there is such a graph."""
        as_topology(self.topology).weights(workers.size)
        return {}

    def send(self, x: Float[Tensor, "r d"], state: State, workers: Workers, step: Step) -> Message:
        """Each row's mixture with its neighbours."""
        weights = as_topology(self.topology).weights(workers.size, step.round)
        check_present(weights, workers.present)
        return workers.mix(x, weights)

    def receive(self, x: Float[Tensor, "r d"], state: State, mixed: Float[Tensor, "r d"]) -> None:
        """Every row becomes its mixture."""
        x.copy_(mixed)
