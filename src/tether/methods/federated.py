"""Federated averaging: a random part of the workers takes part in each round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tether.methods.base import Method, State, Step
from tether.workers import Message, Workers


@dataclass(frozen=True)
class FedAvg(Method):
    """Average a random fraction of the workers, weighted by how many samples they hold.

    x_i <- sum_(j in S) n_j x_j / sum_(j in S) n_j,    S a random set of max(1, fraction m) workers

    McMahan et al., "Communication-efficient learning of deep networks from decentralized data" (2017). Everyone
    computes and receives the mean, but the parameters of those outside S are thrown away; what else their steps
    moved (an optimizer's moments, their place in their data) stays moved.

    Args:
        period: local steps between rounds (tau), at least 1.
        fraction: share of the workers in each round, in (0, 1].
        weights: how much each worker counts, one number a worker. Default: the number of samples it holds.
        seed: which workers are drawn.

    Raises:
        ValueError: if the fraction is outside (0, 1], or the weights are not one positive number a worker.
    """

    fraction: float = 1.0
    weights: Sequence[float] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction={self.fraction}: the share of workers in a round lies in (0, 1]")
        if self.weights is not None:
            object.__setattr__(self, "weights", tuple(map(float, self.weights)))
            if not all(0 < w < float("inf") for w in self.weights):
                raise ValueError(f"weights={self.weights}: every worker's weight must be positive")

    def participants(self, present: Bool[Tensor, " m"], round: int) -> np.ndarray:
        """The workers in a round, of those present; the same on every process."""
        count = max(1, round_half_up(self.fraction * len(present)))
        there = np.flatnonzero(present.numpy())
        return np.random.default_rng((self.seed, round)).choice(there, min(count, len(there)), replace=False)

    def init(self, x: Float[Tensor, "r d"], workers: Workers) -> State:
        """No state; checks the weights against the number of workers."""
        if self.weights is not None and len(self.weights) != workers.size:
            raise ValueError(f"{len(self.weights)} weights for {workers.size} workers: give one a worker")
        return {}

    def send(self, x: Float[Tensor, "r d"], state: State, workers: Workers, step: Step) -> Message:
        """The weighted mean of those that take part."""
        takes_part = torch.zeros(workers.size, dtype=x.dtype, device=x.device)
        takes_part[self.participants(workers.present, step.round)] = 1
        counts = step.samples.to(x) if self.weights is None else x.new_tensor(self.weights)[workers.rows]
        return workers.mean(x, weights=takes_part[workers.rows] * counts)

    def receive(self, x: Float[Tensor, "r d"], state: State, mean: Float[Tensor, "1 d"]) -> None:
        """Every row becomes the mean."""
        x.copy_(mean.expand_as(x))


def round_half_up(value: float) -> int:
    """To the nearest whole number; Python's own `round` would take 2.5 workers to 2."""
    return int(value + 0.5)
