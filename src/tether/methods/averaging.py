"""Periodic averaging: every worker takes the mean of all."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from tether.methods.base import Method, State, Step
from tether.workers import Message, Workers


@dataclass(frozen=True)
class LocalSGD(Method):
    """Local SGD: all workers take the mean of all, every `period` local steps.

    x_i <- mean(x)

    Also known as periodic simple averaging (PSASGD), local (S)GD, and FedAvg without sampling. With `period=1` it is
    minibatch SGD; with one round at the very end, one-shot averaging.

    Wang & Joshi, "Cooperative SGD" (2021), eq. 3; Khaled et al., "First analysis of local GD on heterogeneous data".

    Args:
        period: local steps between rounds (tau), at least 1.

    Raises:
        ValueError: if the period is below 1.
    """

    def send(self, x: Float[Tensor, "r d"], state: State, workers: Workers, step: Step) -> Message:
        """The mean of all rows."""
        return workers.mean(x)

    def receive(self, x: Float[Tensor, "r d"], state: State, mean: Float[Tensor, "1 d"]) -> None:
        """Every row becomes the mean."""
        x.copy_(mean.expand_as(x))


@dataclass(frozen=True)
class SyncSGD(LocalSGD):
    """Fully synchronous SGD: all workers take the mean of all after every step.

    x_i <- mean(x), every step

    With equal starts and SGD, momentum included, this is large-batch SGD on the mean of the gradients; with an
    optimizer that is not linear in the gradient (Adam) it averages the workers' steps instead.

    Wang & Joshi, "Cooperative SGD" (2021), eq. 2.
    """

    period: int = field(default=1, init=False)
