"""The constants that the bounds ask for: noise, dissimilarity, smoothness, distance from the optimum.

Wang & Joshi, "Cooperative SGD" (2021), sections 4 and 4.3: sigma^2, kappa^2, L, F - F_inf. Khaled, Mishchenko &
Richtarik, "First analysis of local GD on heterogeneous data", slides on the variance: sigma_f^2, sigma_dif^2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tether.checks import whole
from tether.diagnostics.curvature import extreme_eigenvalues
from tether.diagnostics.estimates import Estimate, blocks
from tether.diagnostics.landscape import Landscape, Row

Replicates = Float[np.ndarray, "m replicates"]


@dataclass(frozen=True)
class GradientStatistics:
    """What the gradients of single samples at one point say of sigma^2, kappa^2, sigma_f^2 and sigma_dif^2.

    Every estimate is unbiased for the samples that the workers hold, looked at or not, and exact if all were.

    Attributes:
        losses: `[m, replicates]`, F_i(x).
        variances: `[m, replicates]`, the variance of a single sample's gradient, E||g - grad F_i||^2 n/(n-1).
        norms: `[m, replicates]`, ||grad F_i||^2.
        norm: `[replicates]`, ||grad F||^2.
        sizes: `[m]`, samples that each worker holds.
        confidence: of the intervals.
    """

    losses: Replicates
    variances: Replicates
    norms: Replicates
    norm: Float[np.ndarray, " replicates"]
    sizes: np.ndarray
    confidence: float

    def loss(self) -> Estimate:
        """F(x)."""
        return self._estimate(self.losses.mean(0))

    def squared_norm(self) -> Estimate:
        """||grad F(x)||^2."""
        return self._estimate(self.norm)

    def noise(self, batch_size: int | None) -> Estimate:
        """sigma^2: E||g_i(x) - grad F_i(x)||^2, g_i of a batch; the mean over the workers (Cooperative, assumption 4).

        Batches are drawn as `simulate` draws them, without replacement from what a worker holds: their variance is that
        of a sample times (1/batch_size - 1/size).

        Args:
            batch_size: samples a batch; None for the whole shard, whose gradient has no noise.
        """
        return self._estimate(self._noise(batch_size).mean(0))

    def noise_by_worker(self, batch_size: int | None) -> list[Estimate]:
        """sigma^2 of each worker; a bound for all workers is the largest."""
        return [self._estimate(replicates) for replicates in self._noise(batch_size)]

    def dissimilarity(self) -> Estimate:
        """kappa^2: (1/m) sum_i ||grad F_i(x) - grad F(x)||^2 (Cooperative, section 4.3)."""
        return self._estimate(self.norms.mean(0) - self.norm)

    def heterogeneity(self) -> Estimate:
        """(1/m) sum_i ||grad F_i(x)||^2; sigma_f^2 if x is the optimum (slides on local GD)."""
        return self._estimate(self.norms.mean(0))

    def stochastic_heterogeneity(self, batch_size: int | None) -> Estimate:
        """(1/m) sum_i E||g_i(x)||^2, g_i of a batch; sigma_dif^2 if x is the optimum (slides on local SGD)."""
        return self._estimate((self.norms + self._noise(batch_size)).mean(0))

    def _noise(self, batch_size: int | None) -> Replicates:
        if batch_size is None:
            return np.zeros_like(self.variances)
        batch_size = whole("batch_size", batch_size, least=1, most=int(self.sizes.min()))
        return self.variances * (1 / batch_size - 1 / self.sizes)[:, None]

    def _estimate(self, replicates: np.ndarray) -> Estimate:
        return Estimate.jackknife(replicates, self.confidence)


def gradient_statistics(landscape: Landscape, x: Row | None = None, confidence: float = 0.95) -> GradientStatistics:
    """The statistics of single samples' gradients at a point.

    Args:
        landscape: model, objective, data.
        x: `[d]`, where. Default: the model's own parameters. sigma_f^2 and sigma_dif^2 are asked for at the optimum,
            `optimum(landscape).x`: of a landscape of all samples, as intervals do not hold for a point that was fitted
            to the samples looked at.
        confidence: of the intervals.
    """
    row = landscape.row(x)
    losses, variances, norms, errors = [], [], [], []
    mean: Tensor | float = 0.0
    for part in blocks(landscape):
        sums = zip(*(_sums(landscape, row, indices) for indices in part.indices), strict=True)
        loss, square, gradient = next(sums), next(sums), torch.stack(next(sums))
        gradients = torch.from_numpy(part.weights).to(row) @ gradient  # [replicates, d]
        mean = mean + gradients / landscape.workers
        norm = gradients.square().sum(1).double().cpu().numpy()
        free = 1 - part.squares
        variance = np.divide(part.weights @ square - norm, free, out=np.zeros_like(free), where=free > 0)
        losses.append(part.weights @ loss)
        variances.append(variance)
        errors.append(variance * part.variance)  # E||mean||^2 - ||grad F_i||^2
        norms.append(norm - errors[-1])
    assert isinstance(mean, Tensor)
    norm = mean.square().sum(1).double().cpu().numpy() - np.sum(errors, 0) / landscape.workers**2
    return GradientStatistics(np.array(losses), np.array(variances), np.array(norms), norm, landscape.sizes, confidence)


def _sums(landscape: Landscape, x: Row, indices: np.ndarray) -> tuple[float, float, Row]:
    """Over some samples: the sum of losses, of squared norms of gradients, and of gradients."""
    loss, square, gradient = 0.0, 0.0, torch.zeros_like(x)
    for gradients, losses in landscape.sample_gradients(x, indices):
        loss += float(losses.double().sum())
        square += float(gradients.square().sum(dtype=torch.float64))
        gradient += gradients.sum(0)
    return loss, square, gradient


def smoothness(landscape: Landscape, x: Row | None = None, confidence: float = 0.95) -> Estimate:
    """L at a point: the largest |eigenvalue| of any worker's Hessian (Cooperative, assumption 1).

    A bound for a region is the largest at its points: take it at several. The interval is that of v^T H v, v the
    eigenvector found: to first order in what other samples would change. The largest eigenvalue of few samples is on
    average too large, by what second order adds.

    Args:
        landscape: model, objective, data.
        x: `[d]`, where. Default: the model's own parameters.
        confidence: of the interval.

    Raises:
        RuntimeError: if Lanczos does not converge.
    """
    row = landscape.row(x)
    found = [extreme_eigenvalues(landscape, 1, "largest-magnitude", x=row, worker=i) for i in range(landscape.workers)]
    steepest = int(np.argmax([abs(float(each.eigenvalues[0])) for each in found]))
    vector, part = found[steepest].vectors[:, 0], blocks(landscape)[steepest]
    curvatures = [float(vector @ landscape.curvature(vector, row, landscape.counted(block))) for block in part.indices]
    return Estimate.jackknife(np.abs(part.weights @ np.array(curvatures)), confidence)
