"""Elastic averaging SGD, asynchronous: a worker and the anchor move toward each other."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tether.methods.base import State
from tether.methods.center import CenterMethod


@dataclass(frozen=True)
class AsynchronousEASGD(CenterMethod):
    """Elastic averaging, asynchronous: worker and anchor move toward each other whenever that worker comes by.

    x_i <- x_i - alpha (x_i - z),    z <- z + alpha (x_i - z)

    both from the old values. With Nesterov momentum in the workers' optimizer, `SGD(..., momentum=0.9, nesterov=True)`,
    it is EAMSGD.

    Zhang, Choromanska, LeCun, "Deep learning with elastic averaging SGD" (2015), algorithms 1 and 2.

    Args:
        period: local steps of a worker between its exchanges (tau), at least 1.
        alpha: elasticity, between 0 and 1. Default: beta/m with the paper's beta of 0.9.
        beta: m alpha, in its place.

    Raises:
        ValueError: if alpha is not between 0 and 1, or beta is given too.
    """

    alpha: float | None = None
    beta: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None and self.beta is not None:
            raise ValueError(f"alpha={self.alpha} and beta={self.beta}: give one; beta is m alpha")

    def elasticity(self, workers: int) -> float:
        """Alpha, for m workers."""
        alpha = (0.9 if self.beta is None else self.beta) / workers if self.alpha is None else self.alpha
        if not 0 < alpha < 1:
            raise ValueError(
                f"alpha={alpha:.6g}: a worker and the anchor come closer only for 0 < alpha < 1, where 1/2 makes them "
                f"meet; beta={alpha * workers:.6g} is {workers} times that"
            )
        return alpha

    def init_center(self, mean: Float[Tensor, "1 d"], workers: int) -> State:
        """The anchor at the mean, and alpha, which depends on the number of workers."""
        return {"anchor": mean.clone(), "alpha": mean.new_tensor(self.elasticity(workers))}

    def message(self, x: Float[Tensor, "r d"], state: State) -> Float[Tensor, "r d"]:
        """The worker's model."""
        return x

    def serve(self, center: State, message: Float[Tensor, "1 d"], staleness: int) -> Float[Tensor, "1 d"]:
        """The anchor moves by the elastic difference, which is the reply."""
        difference = center["alpha"] * (message - center["anchor"])
        center["anchor"].add_(difference)
        return difference

    def receive(self, x: Float[Tensor, "r d"], state: State, reply: Float[Tensor, "r d"]) -> None:
        """The worker moves by the same, the other way."""
        x.sub_(reply)
