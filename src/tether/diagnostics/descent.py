"""The least loss there is near a model, and how far above it the model is: F - F_inf."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize

from tether.checks import whole
from tether.diagnostics.estimates import Estimate, blocks
from tether.diagnostics.landscape import Landscape, Row

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Optimum:
    """Where descent came to an end.

    Attributes:
        x: `[d]`, the parameters found.
        loss: F(x) over the samples looked at.
        gradient_norm: ||grad F(x)||. If F is mu-strongly convex, F(x) - F_inf is at most gradient_norm^2 / (2 mu).
        steps: how many were taken.
        converged: whether the gradient was as small as was asked for.
    """

    x: Row
    loss: float
    gradient_norm: float
    steps: int
    converged: bool


def optimum(landscape: Landscape, start: Row | None = None, steps: int = 1000, tolerance: float = 1e-6) -> Optimum:
    """Descend from a point to a minimum of F over the samples looked at, by L-BFGS.

    Of a convex F it is the least loss F_inf. Of a neural network it is a minimum near by: F_inf may be lower, and for
    losses that cannot be negative is at least zero.

    Args:
        landscape: model, objective, data; in float64 for small tolerances.
        start: `[d]`. Default: the model's own parameters.
        steps: to take at most.
        tolerance: the largest entry of the gradient that is small enough. Descent compares losses, whose rounding hides
            gradients below some 1e-7 in float64.
    """
    steps = whole("steps", steps, least=1)
    start = landscape.x if start is None else start

    def function(values: np.ndarray) -> tuple[float, np.ndarray]:
        row = torch.from_numpy(values).to(landscape.x)
        return landscape.loss(row), landscape.gradient(row).double().cpu().numpy()

    options = {"maxiter": steps, "maxfun": 4 * steps, "gtol": tolerance, "ftol": 0.0, "maxcor": 20}
    found = minimize(function, start.double().cpu().numpy(), jac=True, method="L-BFGS-B", options=options)
    converged = float(np.abs(found.jac).max()) <= tolerance
    if not converged:
        log.warning("no minimum after %d steps: %s", found.nit, found.message)
    x = torch.from_numpy(found.x).to(landscape.x)
    return Optimum(x, float(found.fun), float(np.linalg.norm(found.jac)), int(found.nit), converged)


def optimality_gap(
    landscape: Landscape, best: Optimum | None = None, x: Row | None = None, confidence: float = 0.95
) -> Estimate:
    """F(x) - F_inf, as far as F_inf was found (Cooperative SGD, assumption 2).

    A minimum of few samples is too low for all: with a landscape of some samples the gap is on average too large.

    Args:
        landscape: model, objective, data.
        best: the least loss found. Default: `optimum(landscape, x)`.
        x: `[d]`, where. Default: the model's own parameters.
        confidence: of the interval, for what other samples would give at the same two points.
    """
    row = landscape.row(x)
    best = optimum(landscape, row) if best is None else best
    gaps = [
        part.weights @ np.array([_gap(landscape, row, best.x, ix) for ix in part.indices]) for part in blocks(landscape)
    ]
    return Estimate.jackknife(np.mean(gaps, 0), confidence)


@torch.no_grad()
def _gap(landscape: Landscape, x: Row, y: Row, indices: np.ndarray) -> float:
    """sum_j f_j(x) - f_j(y), over some samples."""
    pairs = (
        (landscape.sample_loss(x, batch) - landscape.sample_loss(y, batch), n)
        for batch, n in landscape.counted(indices)
    )
    return sum(float(difference) * n for difference, n in pairs)
