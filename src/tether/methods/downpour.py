"""Downpour SGD: workers send their changes to a center, which adds them up."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tether.methods.base import State
from tether.methods.center import FollowingMethod


@dataclass(frozen=True)
class Downpour(FollowingMethod):
    """Downpour SGD: a worker sends how far it has come, the center adds that, the worker goes on from the center.

    z <- z + (x_i - z_i),    x_i <- z,    z_i <- z,    z_i what worker i received last

    Others have moved z in the meantime, so changes are added to another model than they were made from. With one
    worker it is SGD.

    Dean et al., "Large scale distributed deep networks" (2012); as in Zhang et al., "Deep learning with elastic
    averaging SGD" (2015), which also has the pseudocode.

    Args:
        period: local steps of a worker between its exchanges (tau), at least 1. Leader SGD's authors take 1, as longer
            ones make it unstable.

    Raises:
        ValueError: if the period is below 1.
    """

    def message(self, x: Float[Tensor, "r d"], state: State) -> Float[Tensor, "r d"]:
        """The change since then."""
        return x - state["received"]

    def serve(self, center: State, message: Float[Tensor, "1 d"], staleness: int) -> Float[Tensor, "1 d"]:
        """The center adds the change, and replies with its model."""
        return center["anchor"].add_(message).clone()
