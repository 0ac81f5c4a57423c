"""What the theory says of candidates: the constants that it asks for, estimated, and Cooperative SGD's bound."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import nn

from tether.data import Dataset
from tether.diagnostics import Estimate, Landscape, gradient_statistics, smoothness
from tether.gradients import Objective
from tether.methods import EASGD, CooperativeSGD, DecentralizedSGD, GeneralizedElastic, LocalSGD, Method
from tether.planner.candidates import Candidate, Conditions
from tether.theory import (
    best_elasticity,
    cooperative_bound,
    elastic_zeta,
    largest_learning_rate,
    zeta,
)
from tether.topology import OnePeerExponential, as_topology

SAMPLES = 64
"""Of each worker's, from which the constants are estimated."""


@dataclass(frozen=True)
class Constants:
    """What bounds ask for, at the model's first parameters, with confidence intervals.

    Attributes:
        gap: F(x) - F_inf, where F_inf is taken for 0: losses are not negative.
        noise: sigma^2 of a worker's batch gradient.
        dissimilarity: kappa^2 between the workers' objectives.
        smoothness: L.
    """

    gap: Estimate
    noise: Estimate
    dissimilarity: Estimate
    smoothness: Estimate


def probe(
    model: nn.Module,
    objective: Objective,
    data: Dataset,
    workers: int,
    batch_size: int | None,
    seed: int = 0,
    samples: int = SAMPLES,
) -> Constants:
    """Estimate the constants from some samples of each worker.

    Args:
        model: the model that will be trained.
        objective: objective(model, batch) -> scalar loss, a mean over the samples of the batch.
        data: samples and who holds what.
        workers: number of workers m.
        batch_size: samples a local step; None for all that a worker holds.
        seed: of the partition, and of which samples are looked at.
        samples: of each worker.

    Raises:
        ValueError: if the objective is no function of single samples.
        RuntimeError: if the model cannot be differentiated twice.
    """
    landscape = Landscape(model, objective, data, workers, seed, samples)
    statistics = gradient_statistics(landscape)
    size = batch_size if batch_size is None else min(batch_size, int(landscape.sizes.min()))
    return Constants(statistics.loss(), statistics.noise(size), statistics.dissimilarity(), smoothness(landscape))


@dataclass(frozen=True)
class Bound:
    """What Cooperative SGD's theorems say of a candidate.

    Attributes:
        largest_lr: the largest learning rate that they are proved for.
        value: their bound on the mean of ||grad F||^2 over the steps taken in a given time; None at a larger rate.
    """

    largest_lr: float
    value: float | None


def bound(
    candidate: Candidate, constants: Constants, conditions: Conditions, lr: float, seconds: float
) -> Bound | None:
    """The bound for as many local steps as the candidate takes in a time; None for a method it does not speak of.

    Args:
        candidate: which.
        constants: of model and data.
        conditions: under which it trains.
        lr: learning rate of plain SGD.
        seconds: the time.
    """
    workers, period, step = conditions.workers, candidate.period, conditions.step
    mixing = mixing_of(candidate.method, workers)
    if mixing is None:
        return None
    spread, auxiliary = mixing
    hidden = candidate.overlap * step
    waits = max(0.0, conditions.message(candidate.method) - hidden) + conditions.clock_of(candidate).round
    rounds = max(1, int(seconds / (period * step + waits)))
    iid = constants.dissimilarity.low <= 0
    largest = largest_learning_rate(
        period=period,
        zeta=spread,
        workers=workers,
        smoothness=constants.smoothness.value,
        auxiliary=auxiliary,
        iid=iid,
    )
    if lr > largest:
        return Bound(largest, None)
    terms = cooperative_bound(
        period=period,
        zeta=spread,
        workers=workers,
        steps=rounds * period,
        smoothness=constants.smoothness.value,
        noise=max(constants.noise.value, 0.0),
        gap=constants.gap.value,
        lr=lr,
        auxiliary=auxiliary,
        dissimilarity=0.0 if iid else constants.dissimilarity.value,
    )
    return Bound(largest, terms.total)


def mixing_of(method: Method, workers: int) -> tuple[float, int] | None:
    """Of a method that mixes by one symmetric matrix, zeta and its number of auxiliary variables; None of others."""
    match method:
        case LocalSGD():
            return 0.0, 0
        case EASGD():
            return elastic_zeta(method.elasticity(workers), workers), 1
        case CooperativeSGD():
            return zeta(np.array(method.W)), method.auxiliary
        case DecentralizedSGD() if not isinstance(method.topology, OnePeerExponential):
            return as_topology(method.topology).zeta(workers), 0
        case GeneralizedElastic():
            mixing = as_topology(method.topology).zeta(workers)
            alpha = best_elasticity(workers, mixing) if method.alpha is None else method.alpha
            return elastic_zeta(alpha, workers, mixing), 1
        case _:
            return None
