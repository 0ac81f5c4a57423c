"""Elastic averaging SGD: workers are pulled toward a slowly moving anchor.

Zhang, Choromanska, LeCun, "Deep learning with elastic averaging SGD" (2015); the stable range and the best elasticity
are from Wang & Joshi, "Cooperative SGD" (2021), eq. 22 and lemma 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tether.methods.base import Method, State, Step
from tether.topology import best_elasticity, check_elasticity, elastic_limit
from tether.workers import Message, Workers


@dataclass(frozen=True)
class EASGD(Method):
    """Pull every worker toward an anchor, and the anchor toward their mean.

    x_i <- x_i - alpha (x_i - z),    z <- (1 - m alpha) z + m alpha mean(x)

    both from the old values (Cooperative SGD, eq. 4-5). The pull needs only a worker's own copy of the anchor, so it
    happens at once; the mean that moves the anchor can travel while the next local steps run.

    Args:
        period: local steps between rounds (tau), at least 1.
        alpha: elasticity; stable for 0 < alpha < 2/(m+1). Default: 2/(m+2), which mixes fastest.
        beta: m alpha, in its place.

    Raises:
        ValueError: if alpha is outside the stable range for the number of workers, or beta is given too.
    """

    alpha: float | None = None
    beta: float | None = None

    replicated = ("anchor",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None and self.beta is not None:
            raise ValueError(f"alpha={self.alpha} and beta={self.beta}: give one; beta is m alpha")

    def elasticity(self, workers: int) -> float:
        """Alpha, for m workers."""
        if self.beta is not None:
            return self.beta / workers
        return best_elasticity(workers) if self.alpha is None else self.alpha

    def init(self, x: Float[Tensor, "r d"], workers: Workers) -> State:
        """The anchor z, `[1, d]`, at the mean of the workers."""
        m = workers.size
        check_elasticity(self.elasticity(m), elastic_limit(m), best_elasticity(m))
        return {"anchor": workers.mean(x).wait()}

    def send(self, x: Float[Tensor, "r d"], state: State, workers: Workers, step: Step) -> Message:
        """The mean of all rows; the rows are pulled at once."""
        alpha, m = self.elasticity(workers.size), workers.size
        mean = workers.mean(x)
        x.lerp_(state["anchor"], alpha)
        return {"mean": mean, "share": x.new_tensor(m * alpha)}

    def receive(self, x: Float[Tensor, "r d"], state: State, message: dict[str, Tensor]) -> None:
        """The anchor moves toward the mean."""
        state["anchor"].lerp_(message["mean"], message["share"])
