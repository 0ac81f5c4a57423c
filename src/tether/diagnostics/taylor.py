"""How far gradients after local steps are from what gradient and Hessian at the start say: the estimation residue.

Pan & Song, "Local SGD accelerates convergence by exploiting second order information of the loss function", definition
1, assumption 3, section 4.4, table 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tether.checks import whole
from tether.diagnostics.estimates import BLOCKS, Estimate
from tether.diagnostics.landscape import Landscape, Row
from tether.diagnostics.local import local_steps
from tether.stepping import OptimizerFactory


def residues(landscape: Landscape, points: Float[Tensor, "n d"], x: Row | None = None) -> Float[Tensor, "n d"]:
    """n^s = grad F(y) - grad F(x) - H(x) (y - x) of each point y (eq. 11), over the samples looked at.

    Args:
        landscape: model, objective, data.
        points: `[n, d]`, such as rows after local steps.
        x: `[d]`, where they came from. Default: the model's own parameters.
    """
    row = landscape.row(x)
    points = points.to(row)
    gradients = torch.stack([landscape.gradient(point) for point in points])
    linear = torch.stack([landscape.hessian_product(point - row, row) for point in points])
    return gradients - landscape.gradient(row) - linear


@dataclass(frozen=True, eq=False)
class Residue:
    """The mean residue over trials, beside the gradient.

    Attributes:
        steps: local steps k of each trial.
        mean: `[d]`, the estimate of E[n^s(x_k)].
        squared_norm: ||E n^s||^2 without the bias that ||mean||^2 has; of few trials it may be below zero.
        ratio: ||grad F(x)|| / ||mean||, as the paper's table has it, with the interval that other trials would give.
    """

    steps: int
    mean: Row
    squared_norm: float
    ratio: Estimate


def residue(
    landscape: Landscape,
    optimizer: OptimizerFactory,
    steps: int | Sequence[int],
    batch_size: int | None = 10,
    trials: int = 500,
    x: Row | None = None,
    seed: int = 0,
    confidence: float = 0.95,
) -> list[Residue]:
    """The residue after local steps, its mean over trials (table 3).

    The residue is linear but for the gradient, so one product with the Hessian is enough for the mean of many.

    Args:
        landscape: model, objective, data.
        optimizer: of the local steps, as for `simulate`.
        steps: after how many to look; several have the same paths.
        batch_size: of the local steps.
        trials: how many paths; the workers take turns.
        x: `[d]`, where they start. Default: the model's own parameters.
        seed: the batches.
        confidence: of the intervals.

    Raises:
        ValueError: if there are fewer than two trials.
    """
    trials = whole("trials", trials, least=2)
    row = landscape.row(x)
    slope = landscape.gradient(row)
    found = []
    for count in [steps] if isinstance(steps, int) else steps:
        points = local_steps(landscape, optimizer, count, batch_size, trials, row, seed)
        means = _means_of_blocks(landscape, row, slope, points)
        found.append(_residue(count, means, float(slope.norm()), confidence))
    return found


def _means_of_blocks(landscape: Landscape, x: Row, slope: Row, points: Float[Tensor, "n d"]) -> list[tuple[int, Row]]:
    """The trials in blocks: of each, how many they are and their mean residue."""
    found = []
    for part in points.tensor_split(min(BLOCKS, len(points))):
        gradient = torch.stack([landscape.gradient(point) for point in part]).mean(0)
        found.append((len(part), gradient - slope - landscape.hessian_product(part.mean(0) - x, x)))
    return found


def _residue(steps: int, means: list[tuple[int, Row]], slope: float, confidence: float) -> Residue:
    counts = torch.tensor([count for count, _ in means], dtype=torch.float64)
    blocks = torch.stack([mean.double() for _, mean in means])  # [blocks, d]
    total = counts @ blocks
    mean = total / counts.sum()
    left_out = (total - counts[:, None] * blocks) / (counts.sum() - counts)[:, None]
    # ||mean||^2 is too large by the variance of the mean, of which blocks that differ tell.
    variance = float((counts @ (blocks - mean).square().sum(1)) / counts.sum() / (len(means) - 1))
    ratios = slope / np.array([float(each.norm()) for each in (mean, *left_out)])
    return Residue(steps, mean, float(mean.square().sum()) - variance, Estimate.jackknife(ratios, confidence))
