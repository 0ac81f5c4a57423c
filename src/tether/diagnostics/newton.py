"""How far search directions are from Newton's.

Teng et al., "Leader stochastic gradient descent for distributed training of deep learning models" (2019), section 3.3.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, minres

from tether.diagnostics.curvature import operator
from tether.diagnostics.landscape import Landscape, Row


def angle(u: Row, v: Row) -> float:
    """The angle between two vectors, in degrees.

    Raises:
        ValueError: if one of them is zero.
    """
    u, v = (each.double().cpu() / each.double().norm().cpu() for each in (u, v))
    if not (u.isfinite().all() and v.isfinite().all()):
        raise ValueError("a zero vector has no angle with another")
    # Unlike the arc cosine of u v exact for small angles too (Kahan).
    return math.degrees(2 * math.atan2(float((u - v).norm()), float((u + v).norm())))


def newton_direction(
    landscape: Landscape,
    x: Row | None = None,
    damping: float = 0.0,
    tolerance: float = 1e-6,
    steps: int = 1000,
) -> Row:
    """d_N = -H^{-1} grad F at x, by MINRES: H need be neither small nor positive.

    Where H is singular, as softmax regression's is, and the gradient lies in its range, it is the shortest solution.

    Args:
        landscape: model, objective, data; in float64.
        x: `[d]`, where. Default: the model's own parameters.
        damping: added to all eigenvalues.
        tolerance: of ||H d + grad F||, relative to ||grad F||.
        steps: products with H at most.

    Raises:
        RuntimeError: if that was not enough: H is ill-conditioned, or the gradient not in its range.
    """
    row = landscape.row(x)
    slope = landscape.gradient(row)
    hessian = operator(landscape, row)
    right = -slope.double().cpu().numpy()

    def damped(v: np.ndarray) -> np.ndarray:
        return hessian.matvec(v) + damping * v

    damped_hessian = LinearOperator(hessian.shape, matvec=damped, dtype=np.float64)
    # MINRES compares with ||H|| ||d||, which is larger than the gradient where H is ill-conditioned.
    found, _ = minres(damped_hessian, right, rtol=tolerance * 1e-3, maxiter=steps)
    off = float(np.linalg.norm(damped(found) - right) / max(np.linalg.norm(right), np.finfo(float).tiny))
    if off > tolerance:
        raise RuntimeError(
            f"no Newton direction to within {tolerance:g} after at most {steps} steps: it is off by {off:.2g}. Allow "
            "more steps or a larger tolerance, or add damping, to eigenvalues near zero"
        )
    return torch.from_numpy(found).to(row)


def leader_direction(landscape: Landscape, leader: Row, pull: float, x: Row | None = None) -> Row:
    """d_z = -(grad F(x) + pull (x - z)), the direction of leader gradient descent with leader z (section 3.3).

    Args:
        landscape: model, objective, data.
        leader: `[d]`, z.
        pull: lambda.
        x: `[d]`, where. Default: the model's own parameters.
    """
    row = landscape.row(x)
    return -(landscape.gradient(row) + pull * (row - leader.to(row)))
