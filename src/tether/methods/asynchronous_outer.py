"""An outer optimizer at a center, which takes a step for each worker's change as it arrives."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tether.checks import whole
from tether.methods.base import State
from tether.methods.center import FollowingMethod


@dataclass(frozen=True)
class AsynchronousDiLoCo(FollowingMethod):
    """An optimizer at the center takes each worker's change for a gradient, as it arrives.

    g = w(s) (z_i - x_i),    v <- mu v + g,    z <- z - lr (g + mu v),    x_i <- z,    z_i <- z

    z_i is what worker i received last, s the staleness: how many messages of others the center has served since. Stale
    changes weigh w(s) = (1 + s)^-a. With lr=1 and mu=0 it is `Downpour`.

    Liu et al., "Asynchronous local-SGD training for language modeling" (2024); Douillard et al., "DiLoCo" (2023); the
    weight and the bound are from Xie et al., "Asynchronous federated optimization" (2019).

    Args:
        period: local steps of a worker between its exchanges (tau), at least 1.
        lr: learning rate of the center. DiLoCo takes 0.7 for the mean of m workers' changes; here each arrives by
            itself, so the same change is a learning rate of 0.7 / m.
        momentum: Nesterov momentum of the center (mu), in [0, 1). Each message is a step of it.
        staleness_exponent: a; 0 weighs all changes alike.
        staleness_bound: changes that are staler are not added; that worker goes on from the center's model.

    Raises:
        ValueError: if a number is outside its range.
    """

    lr: float
    momentum: float = 0.0
    staleness_exponent: float = 0.0
    staleness_bound: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"lr={self.lr}: the center's learning rate must be positive")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum}: give a number in [0, 1)")
        if not 0 <= self.staleness_exponent < float("inf"):
            raise ValueError(f"staleness_exponent={self.staleness_exponent}: give a number, at least 0")
        if self.staleness_bound is not None:
            whole("staleness_bound", self.staleness_bound, least=0)

    def init_center(self, mean: Float[Tensor, "1 d"], workers: int) -> State:
        """The anchor at the mean, its velocity v at zero."""
        return {"anchor": mean.clone(), "velocity": mean.new_zeros(mean.shape)}

    def message(self, x: Float[Tensor, "r d"], state: State) -> Float[Tensor, "r d"]:
        """The change since then, downhill: what a gradient is."""
        return state["received"] - x

    def serve(self, center: State, message: Float[Tensor, "1 d"], staleness: int) -> Float[Tensor, "1 d"]:
        """The center's step of Nesterov momentum; it replies with its model."""
        if self.staleness_bound is None or staleness <= self.staleness_bound:
            gradient = message * (1 + staleness) ** -self.staleness_exponent
            velocity = center["velocity"].mul_(self.momentum).add_(gradient)
            center["anchor"].sub_(self.lr * (gradient + self.momentum * velocity))
        return center["anchor"].clone()
