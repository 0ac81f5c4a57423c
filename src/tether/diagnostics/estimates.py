"""Estimates with confidence intervals, from samples that were cut into blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

from tether.diagnostics.landscape import Landscape

BLOCKS = 20
"""Into so many blocks a worker's samples are cut, each left out once."""


@dataclass(frozen=True)
class Estimate:
    """A number that was estimated, and an interval that holds the true one with some confidence.

    Attributes:
        value: the estimate.
        low: where the interval begins.
        high: where it ends.
        confidence: how often such intervals hold the true number.
    """

    value: float
    low: float
    high: float
    confidence: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"

    @classmethod
    def jackknife(cls, replicates: Float[np.ndarray, " r"], confidence: float = 0.95) -> Estimate:
        """From the estimate by all samples, first, and by all blocks but one of them, the others.

        The variance is (r-1)/r sum_k (v_k - mean(v))^2 over r blocks left out, which is large rather than small for
        quadratic forms (Efron & Stein 1981); the interval is Student's. Without blocks left out it is a point.

        Raises:
            ValueError: if the confidence is not between 0 and 1.
        """
        if not 0 < confidence < 1:
            raise ValueError(f"confidence={confidence!r}: give a number between 0 and 1, such as 0.95")
        value, left_out = float(replicates[0]), replicates[1:]
        half = 0.0
        if len(left_out):
            variance = (len(left_out) - 1) * left_out.var()
            half = float(stats.t.ppf((1 + confidence) / 2, len(left_out) - 1)) * math.sqrt(variance)
        return cls(value, value - half, value + half, confidence)


@dataclass(frozen=True)
class Blocks:
    """The samples of a worker that are looked at, cut into blocks, and the weights by which replicates count them.

    The first replicate is the mean of all. Each other one leaves out a block, but moves only sqrt(1 - share looked at)
    as far from the mean of all as it then would: samples that are all there is leave nothing uncertain.

    Attributes:
        indices: by block, its samples.
        weights: `[replicates, blocks]`, the weight of each of a block's samples; they add up to 1.
        variance: `[replicates]`, what the variance of samples is to be multiplied by, to be that of the weighted mean
            of samples drawn without replacement: sum_j w_j^2 - 1/size.
        squares: `[replicates]`, sum_j w_j^2.
    """

    indices: list[np.ndarray]
    weights: Float[np.ndarray, "replicates blocks"]
    variance: Float[np.ndarray, " replicates"]
    squares: Float[np.ndarray, " replicates"]


def blocks(landscape: Landscape) -> list[Blocks]:
    """Each worker's samples in blocks; block k of all workers is left out together."""
    looked_at = [len(indices) for indices in landscape.looked_at]
    partial = [n for n, size in zip(looked_at, landscape.sizes, strict=True) if n < size]
    count = min(BLOCKS, *partial) if partial else 0
    return [
        _blocks(indices, int(size), count) for indices, size in zip(landscape.looked_at, landscape.sizes, strict=True)
    ]


def _blocks(indices: np.ndarray, size: int, count: int) -> Blocks:
    whole = len(indices) == size
    parts = np.array_split(indices, 1 if whole else count)
    each = np.array([len(part) for part in parts], float)
    mean = np.full(len(parts), 1 / len(indices))
    left_out = np.tile(mean, (count, 1))
    if not whole:
        without = (1 - np.eye(count)) / (len(indices) - each[:, None])
        left_out += math.sqrt(1 - len(indices) / size) * (without - mean)
    weights = np.vstack([mean, left_out])
    squares = weights**2 @ each
    return Blocks(parts, weights, squares - 1 / size, squares)
