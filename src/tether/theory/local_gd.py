"""Local gradient descent on different objectives: what it converges to, how fast, and what the bounds are made of.

Khaled, Mishchenko & Richtarik, "First analysis of local GD on heterogeneous data" (2019), and its slides: M workers
with convex, L-smooth objectives f_m average every H of T local steps, at the learning rate gamma; f is the mean of the
f_m and x* minimises it. x_hat_t is the mean of the workers at step t, x_hat_T in the bounds that over time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tether.checks import whole
from tether.result import consensus_distance as distance_among
from tether.theory.arrays import Array, numbers
from tether.theory.conditions import SLACK, not_negative, positive
from tether.workers import Stacked


@dataclass(frozen=True)
class LocalGDBound:
    """Upper bound on f(x_hat_T) - f(x*), or on its expectation, as the sum of what causes it. Units of the loss.

    Attributes:
        start: the way from the start to the optimum.
        noise: stochastic gradients, averaged over workers; 0 for full gradients.
        drift: workers that have gone apart between rounds.
    """

    start: float
    noise: float
    drift: float

    @property
    def total(self) -> float:
        """The bound itself."""
        return self.start + self.noise + self.drift


def local_gd_bound(
    *,
    period: int,
    workers: int,
    steps: int,
    smoothness: float,
    distance: float,
    variance: float,
    stochastic: bool = False,
    lr: float | None = None,
) -> LocalGDBound:
    """Bound on how far the mean over workers and steps is from the optimal loss.

    Full gradients, gamma <= 1/(4 H L), variance = sigma_f^2:

        start = 2 ||x_0 - x*||^2 / (gamma T),   drift = 24 gamma^2 L H^2 sigma_f^2

    Stochastic ones, gamma <= 1/(8 H L), variance = sigma_dif^2:

        start = 4 ||x_0 - x*||^2 / (gamma T),   noise = 20 gamma sigma_dif^2 / M,
        drift = 16 gamma^2 L (H-1)^2 sigma_dif^2

    With `lr=None`, `local_gd_learning_rate`, these are the slides' two theorems,

        8 L ||x_0 - x*||^2 / sqrt(MT) + 3 M sigma_f^2 H^2 / (2 L T),
        32 L ||x_0 - x*||^2 / sqrt(MT) + 5 sigma_dif^2 / (2 L sqrt(MT)) + sigma_dif^2 M (H-1)^2 / (4 L T),

    which ask for H <= sqrt(T/M). Linear speedup in M needs H = T^(1/4) M^(-3/4), which is `largest_period(iid=False)`.

    How much to expect of it: on softmax regression of scikit-learn's digits, sorted by class over 8 workers (period 10,
    1,000 steps, l2 penalty 0.01), f(x_hat_T) - f(x*) is 1.25, 1.56 at the start, and the bound 34.5: nearly all of it
    the way from the start, which falls below 1.56 after 485,000 steps only (`tests/test_theory_practice.py`).

    Args:
        period: local steps between rounds (H).
        workers: number of workers M.
        steps: local steps of every worker (T).
        smoothness: Lipschitz constant of every worker's gradient (L), loss / parameter^2.
        distance: squared distance of the start from the optimum, ||x_0 - x*||^2, parameter^2.
        variance: `sigma_f_squared`, or `sigma_dif_squared` for stochastic gradients.
        stochastic: whether workers take stochastic gradients.
        lr: learning rate (gamma). Default: `local_gd_learning_rate`.

    Raises:
        ValueError: if the learning rate is too large; the message has the largest, and the largest period at this one.

    Examples:
        >>> bound = local_gd_bound(period=5, workers=4, steps=10_000, smoothness=1, distance=1, variance=1)
        >>> round(bound.start, 6), bound.noise, round(bound.drift, 6)
        (0.04, 0.0, 0.015)
    """
    period, workers, steps = whole("period", period, 1), whole("workers", workers, 1), whole("steps", steps, 1)
    positive(smoothness=smoothness)
    not_negative(distance=distance, variance=variance)
    if lr is None:
        lr = local_gd_learning_rate(steps=steps, workers=workers, smoothness=smoothness, stochastic=stochastic)
    positive(lr=lr)
    factor = 8 if stochastic else 4
    largest = 1 / (factor * period * smoothness)
    if lr > largest * (1 + SLACK):
        shorter = math.floor(period * largest / lr * (1 + SLACK))
        raise ValueError(
            f"lr={lr:.6g}: the theorem needs lr <= 1/({factor} H L) = {largest:.6g} for period={period}; "
            + (f"at this lr the period may be {shorter}" if shorter else "at this lr no period is short enough")
        )
    if not stochastic:
        return LocalGDBound(
            start=float(2 * distance / (lr * steps)),
            noise=0.0,
            drift=float(24 * lr**2 * smoothness * period**2 * variance),
        )
    return LocalGDBound(
        start=float(4 * distance / (lr * steps)),
        noise=float(20 * lr * variance / workers),
        drift=float(16 * lr**2 * smoothness * (period - 1) ** 2 * variance),
    )


def local_gd_learning_rate(*, steps: int, workers: int, smoothness: float, stochastic: bool = False) -> float:
    """The learning rate of the slides' theorems: gamma = sqrt(M) / (4 L sqrt(T)); for stochastic gradients half of it.

    It satisfies their condition for H <= sqrt(T/M).

    Args:
        steps: local steps of every worker (T).
        workers: number of workers M.
        smoothness: Lipschitz constant of every worker's gradient (L), loss / parameter^2.
        stochastic: whether workers take stochastic gradients.

    Examples:
        >>> local_gd_learning_rate(steps=10_000, workers=4, smoothness=1)
        0.005
    """
    positive(smoothness=smoothness)
    return math.sqrt(whole("workers", workers, 1) / whole("steps", steps, 1)) / ((8 if stochastic else 4) * smoothness)


def local_gd_fixed_point(
    a: Float[Array, " m"] | Sequence[float],
    b: Float[Array, " m"] | Sequence[float],
    lr: float,
    period: int,
) -> float:
    """Where local gradient descent on f_i(x) = a_i (x - b_i)^2 / 2 converges to, exactly.

    sum_i c_i b_i / sum_i c_i,    c_i = 1 - (1 - gamma a_i)^H

    A round of H local steps takes x to b_i + (1 - gamma a_i)^H (x - b_i) on worker i; the fixed point of the mean of
    these is the above. With H = 1 it is the optimum, sum a_i b_i / sum a_i; with many steps it is the mean of the b_i.

    Args:
        a: `[m]`, curvatures, at least 0 and not all 0.
        b: `[m]`, optima.
        lr: learning rate (gamma).
        period: local steps between rounds (H).

    Raises:
        ValueError: if that does not converge: |mean_i (1 - gamma a_i)^H| >= 1; the message has the learning rate below
            which it would.

    Examples:
        >>> round(local_gd_fixed_point([1, 4], [0, 1], lr=0.2, period=1), 6)
        0.8
        >>> round(local_gd_fixed_point([1, 4], [0, 1], lr=0.2, period=5), 6)
        0.597895
    """
    curvature, optima = numbers(a), numbers(b)
    if curvature.shape != optima.shape or curvature.ndim != 1:
        raise ValueError(f"a of shape {curvature.shape}, b of shape {optima.shape}: give one number a worker in each")
    if not (curvature >= 0).all() or not (curvature > 0).any():
        raise ValueError(f"a={a}: curvatures are at least 0, and not all of them 0")
    positive(lr=lr)
    whole("period", period, 1)
    with np.errstate(over="ignore"):
        kept = (1 - lr * curvature) ** period
    if not abs(kept.mean()) < 1:
        raise ValueError(
            f"lr={lr:.6g}: rounds of {period} steps converge only for lr < {_limit(curvature, period):.6g}"
        )
    c = 1 - kept
    return float(c @ optima / c.sum())


def consensus_distance(x: Float[Array, "m d"]) -> float:
    """V_t = (1/m) sum_i ||x_i - mean(x)||^2  (slides, "analysis difficulties"). Parameter^2.

    Args:
        x: `[m, d]`, a model a row.

    Examples:
        >>> consensus_distance(np.array([[0.0, 0.0], [2.0, 0.0]]))
        1.0
    """
    rows = torch.as_tensor(numbers(x))
    return distance_among(rows, Stacked(len(rows)))


def sigma_f_squared(gradients: Float[Array, "m d"]) -> float:
    """sigma_f^2 = (1/M) sum_m ||grad f_m(x*)||^2: how different the objectives are. (Loss / parameter)^2.

    Zero if all objectives have a common minimum.

    Args:
        gradients: `[m, d]`, each worker's full gradient at the optimum of the mean of all.

    Examples:
        >>> sigma_f_squared(np.array([[1.0, 2.0], [-1.0, -2.0]]))
        5.0
    """
    return float(np.square(numbers(gradients)).sum(-1).mean())


def sigma_dif_squared(gradients: Float[Array, "m n d"]) -> float:
    """sigma_dif^2 = (1/M) sum_m E ||grad f_m(x*, xi)||^2: how different objectives and samples are.

    (Loss / parameter)^2. It is sigma_f^2, and each worker's gradient noise on top (slides, "local SGD"). Batches of B
    samples drawn with replacement leave sigma_f^2 as it is and divide the rest by B.

    Args:
        gradients: `[m, n, d]`, each worker's gradient on each of its n samples, at the optimum of the mean of all.

    Examples:
        >>> sigma_dif_squared(np.array([[[1.0], [3.0]], [[-1.0], [-3.0]]]))
        5.0
    """
    return float(np.square(numbers(gradients)).sum(-1).mean())


def bregman_divergence(
    f: Callable[[Tensor], Tensor], x: Float[Tensor, "*s"], y: Float[Tensor, "*s"]
) -> Float[Tensor, ""]:
    """D_f(x, y) = f(x) - f(y) - <grad f(y), x - y>: how far f(x) lies above f's tangent at y. Units of f.

    Never negative for convex f. At the optimum of f it is f(x) - f(x*). The slides bound a worker's gradient noise by
    4 L D_(f_m)(x, x*) + 2 sigma_m^2, in place of a constant.

    Args:
        f: a function of a tensor, of one value, that autograd can differentiate.
        x: where f is looked at.
        y: where its tangent touches.

    Examples:
        >>> bregman_divergence(lambda x: x @ x, torch.tensor([3.0, 0.0]), torch.tensor([1.0, 1.0]))
        tensor(5.)
    """
    touched = y.detach().clone().requires_grad_()
    at_y = f(touched)
    (gradient,) = torch.autograd.grad(at_y, touched)
    return (f(x) - at_y - ((x - y) * gradient).sum()).detach()


def _limit(curvature: Float[np.ndarray, " m"], period: int) -> float:
    """The learning rate at which |mean (1 - gamma a)^H| reaches 1, by bisection: inside (0, it) it is less."""
    low, high = 0.0, 2 * len(curvature) / curvature[curvature > 0].min()
    for _ in range(200):
        middle = (low + high) / 2
        with np.errstate(over="ignore"):
            kept = ((1 - middle * curvature) ** period).mean()
        low, high = (middle, high) if abs(kept) < 1 else (low, middle)
    return low
