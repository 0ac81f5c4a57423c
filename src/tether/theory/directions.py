"""Directions that a leader improves: how near Newton's they come on quadratics.

Teng et al., "Leader stochastic gradient descent for distributed training of deep learning models" (2019), section 3.3,
on f(x) = x^T A x / 2: gradient descent goes along -A x, Newton's method along -x, Leader SGD along -(A x + lambda (x -
z)). Of the leaders z that are no worse than x, the ellipsoid E, some bring its direction at least as near Newton's as
the gradient's is: the angle improvement set.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from tether.checks import whole
from tether.theory.arrays import Array, numbers
from tether.theory.conditions import not_negative

LEAST_CONDITION = (math.sqrt(2) + 2) ** 4
"""Below this condition number (135.9) theorem 7 speaks of no direction at all."""


def angle_improvement(
    A: Float[Array, "d d"], x: Float[Array, " d"], pull: float, samples: int = 10_000, seed: int = 0
) -> float:
    """The share of the leaders no worse than x that improve the angle to Newton's direction, by sampling.

    Vol(I_theta(x, lambda)) / Vol(E): at least 1/2 as lambda goes to 0 wherever gradient and Newton direction differ
    (theorem 6), and for any lambda where the cosine of the angle between them is r/sqrt(kappa), 2 <= r <=
    `largest_cosine_ratio` (theorem 7). Not more than that is promised, and it concerns one step's direction only.

    Args:
        A: `[d, d]`, symmetric and positive definite.
        x: `[d]`, a worker; not 0.
        pull: strength of the pull (lambda), loss / parameter^2.
        samples: leaders drawn, uniformly from E; the standard error is at most 0.5 / sqrt(samples).
        seed: of the draws.

    Raises:
        ValueError: if A is not symmetric and positive definite, or x is 0.

    Examples:
        >>> A, x = np.diag([1.0, 10.0]), np.array([1.0, 0.5])
        >>> angle_improvement(A, x, pull=0.01) > 0.5
        True
    """
    matrix, worker = numbers(A), numbers(x)
    not_negative(pull=pull)
    if not np.allclose(matrix, matrix.T):
        raise ValueError("A is not symmetric; a quadratic's matrix is: take (A + A^T)/2")
    values, vectors = np.linalg.eigh(matrix)
    if values[0] <= 0:
        raise ValueError(f"A has an eigenvalue of {values[0]:.6g}; the theorems are about positive definite quadratics")
    if not worker.any():
        raise ValueError("x is 0, the optimum: it has no direction to go")
    # Uniform in the unit ball, then stretched to the ellipsoid z^T A z <= x^T A x.
    random = np.random.default_rng(seed)
    ball = random.normal(size=(whole("samples", samples, 1), len(worker)))
    ball *= random.uniform(size=(samples, 1)) ** (1 / len(worker)) / np.linalg.norm(ball, axis=1, keepdims=True)
    leaders = math.sqrt(worker @ matrix @ worker) * (ball / np.sqrt(values)) @ vectors.T
    gradient = matrix @ worker
    with_leader = _cosine(gradient + pull * (worker - leaders), worker)
    return float((with_leader >= _cosine(gradient[None], worker) - 1e-12).mean())


def largest_cosine_ratio(condition: float) -> float:
    """The largest r in theorem 7's range: r/sqrt(kappa) + r^(3/2)/kappa^(1/4) <= 1.

    Directions x with cos(angle) = r/sqrt(kappa) exist for r >= 2 only (lemma 26), so the range is empty below a
    condition number of 135.9.

    Args:
        condition: condition number of the quadratic (kappa).

    Raises:
        ValueError: if the condition number is below that.

    Examples:
        >>> round(largest_cosine_ratio(10_000), 6)
        4.501237
    """
    if condition < LEAST_CONDITION:
        raise ValueError(f"condition={condition:g}: theorem 7 speaks of no direction below {LEAST_CONDITION:.4g}")
    # With s = sqrt(r): s^3/kappa^(1/4) + s^2/sqrt(kappa) - 1 rises from -1, and has one positive root.
    roots = np.roots([condition**-0.25, condition**-0.5, 0, -1])
    return float(roots[np.abs(roots.imag) < 1e-9].real.max() ** 2)


def _cosine(u: Float[np.ndarray, "k d"], v: Float[np.ndarray, " d"]) -> Float[np.ndarray, " k"]:
    return u @ v / (np.linalg.norm(u, axis=-1) * np.linalg.norm(v))
