"""Elastic averaging in groups: workers and their group's anchor over fast links, anchors among themselves over slow."""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tether.methods.base import Method, State, Step
from tether.topology import Topology, as_topology, check_elasticity
from tether.workers import Message, Workers, check_groups


@dataclass(frozen=True)
class HierarchicalElastic(Method):
    """Pull workers toward their group's anchor, and mix the anchors with one another.

    x_i <- x_i - alpha (x_i - z_g),    z_g <- sum_h v_gh z_h + l alpha (mean_g(x) - z_g)

    all from the old values, for groups of l workers and a mixing matrix V among the groups. This is cooperative
    averaging with the symmetric matrix [[(1 - alpha) I, alpha E], [alpha E^T, V - l alpha I]], E_ig = 1 where worker i
    is in group g; with one group it is EASGD. The anchors' slow exchange can travel while the workers compute (Wang &
    Joshi, "Cooperative SGD" (2021), section 6.3, which draws it and leaves the equation open; this is our reading).

    The first worker present in each group keeps its anchor: only these exchange over the slow links, and hand the
    anchor to their group when the next round starts.

    Args:
        period: local steps between rounds (tau), at least 1.
        groups: number of groups of consecutive workers; must divide m.
        alpha: elasticity; stable for 0 < alpha < 2 (1 + mu) / (2 l + 1 + mu), mu the least eigenvalue of V.
            Default: half of that limit.
        topology: which groups' anchors are mixed: a name, a `Topology`, or a networkx graph of the groups.

    Raises:
        ValueError: if the groups do not divide the workers, or alpha is outside the stable range.
    """

    groups: int
    alpha: float | None = None
    topology: str | Topology | nx.Graph = "complete"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "topology", as_topology(self.topology))

    def init(self, x: Float[Tensor, "r d"], workers: Workers) -> State:
        """Each row's copy of its group's anchor, `[r, d]`, at the mean of all workers, and the elasticity.

        Between rounds only the first worker of each group has the anchor as it is; the others' copies are those of
        the last round.
        """
        check_groups(workers.size, self.groups)
        members = workers.size // self.groups
        V = as_topology(self.topology).weights(self.groups).to_dense().numpy()
        mu = float(np.linalg.eigvalsh(V).min())
        # In the plane of a group's mean and its anchor the matrix is [[1 - a, a sqrt(l)], [a sqrt(l), mu - l a]]; its
        # least eigenvalue passes -1 where det(. + I) = (2 - a)(1 + mu - l a) - l a^2 = 0.
        limit = 2 * (1 + mu) / (2 * members + 1 + mu)
        alpha = limit / 2 if self.alpha is None else self.alpha
        check_elasticity(alpha, limit=limit, best=limit / 2)
        anchors = workers.mean(x).wait().repeat(x.shape[0], 1)
        return {"anchors": anchors, "alpha": x.new_tensor(alpha)}

    def send(self, x: Float[Tensor, "r d"], state: State, workers: Workers, step: Step) -> Message:
        """The groups' means, over fast links, and the anchors' mixture, over slow ones; the rows are pulled at once."""
        members = workers.size // self.groups
        keepers = workers.present.view(self.groups, members).int().argmax(1) + members * torch.arange(self.groups)
        keeps_anchor = torch.zeros(workers.size).index_fill(0, keepers, 1).to(x)
        anchors = workers.mean(state["anchors"], weights=keeps_anchor[workers.rows], within=self.groups).wait()
        among_keepers = torch.eye(workers.size, dtype=torch.float64)
        among_keepers[keepers[:, None], keepers] = as_topology(self.topology).weights(self.groups).to_dense()
        message: Message = {
            "mean": workers.mean(x, within=self.groups),
            "mixed": workers.mix(anchors, among_keepers.to(x.device)),
            "share": members * state["alpha"],
        }
        state["anchors"].copy_(anchors)
        x.lerp_(anchors, state["alpha"])
        return message

    def receive(self, x: Float[Tensor, "r d"], state: State, message: dict[str, Tensor]) -> None:
        """The anchors move to their mixture and toward their group's mean."""
        anchors = state["anchors"]
        pull = message["share"] * (message["mean"] - anchors)
        anchors.copy_(message["mixed"]).add_(pull)
