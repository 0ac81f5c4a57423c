"""Generalized elastic averaging: neighbours mix, and an anchor holds them together."""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx
from jaxtyping import Float
from torch import Tensor

from tether.methods.base import Method, State, Step
from tether.topology import Topology, as_topology, best_elasticity, check_elasticity, elastic_limit
from tether.workers import Message, Workers


@dataclass(frozen=True)
class GeneralizedElastic(Method):
    """Decentralized averaging with an anchor that every worker is pulled to.

    x_i <- (1 - alpha) sum_j w_ij x_j + alpha z,    z <- (1 - m alpha) z + m alpha mean(x)

    both from the old values. The anchor brings the second eigenvalue of a sparse W down to
    max((1 - alpha) zeta, |1 - (m + 1) alpha|) (Wang & Joshi, "Cooperative SGD" (2021), section 6.2 and theorem 4).

    Args:
        period: local steps between rounds (tau), at least 1.
        topology: who talks to whom: a name, a `Topology`, or a networkx graph; not one that changes with the round.
        alpha: elasticity; stable for 0 < alpha < 2/(m+1). Default: (1 + zeta)/(m + 1 + zeta), which mixes fastest.

    Raises:
        ValueError: if alpha is outside the stable range for the number of workers, or there is no such topology.
    """

    topology: str | Topology | nx.Graph = "ring"
    alpha: float | None = None

    replicated = ("anchor",)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "topology", as_topology(self.topology))

    def init(self, x: Float[Tensor, "r d"], workers: Workers) -> State:
        """The anchor z, `[1, d]`, at the mean of the workers, and the elasticity."""
        m, zeta = workers.size, as_topology(self.topology).zeta(workers.size)
        best = best_elasticity(m, zeta)
        alpha = best if self.alpha is None else self.alpha
        check_elasticity(alpha, elastic_limit(m), best)
        return {"anchor": workers.mean(x).wait(), "alpha": x.new_tensor(alpha)}

    def send(self, x: Float[Tensor, "r d"], state: State, workers: Workers, step: Step) -> Message:
        """Each row's mixture with its neighbours, and the mean of all rows."""
        mixed = workers.mix(x, as_topology(self.topology).weights(workers.size))
        return {"mixed": mixed, "mean": workers.mean(x), "share": workers.size * state["alpha"]}

    def receive(self, x: Float[Tensor, "r d"], state: State, message: dict[str, Tensor]) -> None:
        """Mix, pull to the anchor, and move the anchor toward the mean."""
        x.copy_(message["mixed"]).lerp_(state["anchor"], state["alpha"])
        state["anchor"].lerp_(message["mean"], message["share"])
