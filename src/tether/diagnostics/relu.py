"""What the theory of local SGD on ReLU networks rests on, measured.

Deng, Kamani & Mahdavi, "Local SGD optimizes overparameterized neural networks in polynomial time" (2022), section 5.1:
semi-gradient-Lipschitzness, shrinkage of the local loss, deviation of local models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tether.diagnostics.landscape import Landscape, Row
from tether.diagnostics.local import local_steps
from tether.stepping import OptimizerFactory


@dataclass(frozen=True, eq=False)
class SemiLipschitz:
    """How gradients differ between pairs of models W, W~.

    The paper: (1/K) sum_i ||grad L_i(W) - grad L_i(W~)||_F^2  <=  a ||W - W~||_2^2 + b L(W~).

    Attributes:
        gradients: `[n]`, the left-hand side.
        distances: `[n]`, ||W - W~||_2^2, of the layers' spectral norms the largest.
        losses: `[n]`, L(W~).
    """

    gradients: Float[np.ndarray, " n"]
    distances: Float[np.ndarray, " n"]
    losses: Float[np.ndarray, " n"]

    @property
    def lipschitz(self) -> Float[np.ndarray, " n"]:
        """What a would have to be without the second term; it grows without bound where activations switch."""
        return self.gradients / self.distances

    @property
    def ratio(self) -> Float[np.ndarray, " n"]:
        """What a = b would have to be."""
        return self.gradients / (self.distances + self.losses)


def semi_lipschitz(landscape: Landscape, points: Float[Tensor, "n d"], x: Row | None = None) -> SemiLipschitz:
    """How the workers' gradients at some points differ from those at x, the W~ of the paper.

    Args:
        landscape: model, objective, data.
        points: `[n, d]`, each another W.
        x: `[d]`. Default: the model's own parameters.
    """
    row = landscape.row(x)
    points = points.to(row)
    squares = torch.zeros(len(points), dtype=torch.float64)
    for worker in range(landscape.workers):
        here = landscape.gradient(row, worker)
        squares += torch.stack([(landscape.gradient(p, worker) - here).square().sum().double().cpu() for p in points])
    changes = landscape.views(points - row).values()
    norms = torch.stack([torch.linalg.matrix_norm(_matrices(change), 2) for change in changes]).amax(0)
    losses = np.full(len(points), landscape.loss(row))
    return SemiLipschitz((squares / landscape.workers).numpy(), norms.double().cpu().numpy() ** 2, losses)


def _matrices(change: Float[Tensor, "n ..."]) -> Float[Tensor, "n rows columns"]:
    """A parameter as a matrix; a vector as one column."""
    return change.flatten(2) if change.ndim > 2 else change.reshape(len(change), -1, 1)


@dataclass(frozen=True, eq=False)
class Stage:
    """From one round to the next: workers' own losses and distances after some local steps from a common model.

    Attributes:
        steps: `[n]`, local steps t - t_c since the round.
        losses: `[n, m]`, L_i(W_i(t)).
        start: `[m]`, L_i(W(t_c)).
        deviations: `[n, m]`, ||W_i(t) - W(t_c)||_F^2.
        lr: learning rate.
    """

    steps: np.ndarray
    losses: Float[np.ndarray, "n m"]
    start: Float[np.ndarray, " m"]
    deviations: Float[np.ndarray, "n m"]
    lr: float

    @property
    def shrinkage(self) -> Float[np.ndarray, "n m"]:
        """L_i(W_i(t)) / L_i(W(t_c)): at most 1 for local GD, says the paper, and little more for local SGD."""
        return self.losses / self.start

    @property
    def deviation(self) -> Float[np.ndarray, " n"]:
        """(1/K) sum_i ||W_i(t) - W(t_c)||_F^2."""
        return self.deviations.mean(1)

    @property
    def constant(self) -> Float[np.ndarray, " n"]:
        """Deviation by lr^2 steps^2 L(W(t_c)): the paper's O(m n / d), m the width, n samples, d outputs."""
        return self.deviation / (self.lr**2 * self.steps**2 * self.start.mean())


def stage(
    landscape: Landscape,
    lr: float,
    steps: Sequence[int],
    batch_size: int | None = None,
    x: Row | None = None,
    seed: int = 0,
) -> Stage:
    """What becomes of losses and distances in the local steps between two rounds, by local GD or local SGD.

    Args:
        landscape: model, objective, data.
        lr: learning rate of plain SGD.
        steps: after how many local steps to look; the largest is the period.
        batch_size: samples a batch; None for local GD.
        x: `[d]`, W(t_c). Default: the model's own parameters.
        seed: the batches.
    """
    row = landscape.row(x)
    optimizer: OptimizerFactory = lambda parameters: torch.optim.SGD(parameters, lr=lr)  # noqa: E731
    workers = range(landscape.workers)
    start = np.array([landscape.loss(row, worker) for worker in workers])
    losses, deviations = [], []
    for count in steps:
        rows = local_steps(landscape, optimizer, count, batch_size, x=row, seed=seed)
        losses.append([landscape.loss(rows[worker], worker) for worker in workers])
        deviations.append((rows - row).square().sum(1).double().cpu().numpy())
    return Stage(np.array(steps), np.array(losses), start, np.array(deviations), lr)
