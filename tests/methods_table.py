"""The one table of methods. A row is a method and its equation, written out in NumPy; all tests of methods run over it.

An equation takes what a round starts from and returns what it ends with: X, `[m, d]`, and auxiliary variables Z.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

import tether

M = 8
J = np.ones((M, M)) / M
EYE = np.eye(M)


@dataclass
class Round:
    """What an equation may look at besides X and Z."""

    number: int
    losses: np.ndarray  # [m, n], all so far
    lr: float


Equation = Callable[[np.ndarray, np.ndarray, Round], tuple[np.ndarray, np.ndarray]]


@dataclass
class Case:
    name: str
    make: Callable[[int], tether.Method]  # from the period
    equations: list[Equation]  # one a part of the method
    factors: list[int] = field(default_factory=lambda: [1])  # each part's period, in periods
    auxiliary: int = 0  # rows of Z; they start at mean(X)
    matrix: np.ndarray | None = None  # [m + v, m + v], where the method is linear and always the same
    at_once: bool = False  # the rows' own move needs nothing that has to travel
    target: Callable[[np.ndarray, np.ndarray], np.ndarray] = lambda X, losses: X.mean(0)
    fixed_period: bool = False

    def __str__(self) -> str:
        return self.name


def linear(W: np.ndarray) -> Equation:
    """[X; Z] <- W [X; Z]."""

    def equation(X, Z, round):
        mixed = W @ np.vstack([X, Z])
        return mixed[: len(X)], mixed[len(X) :]

    return equation


def easgd(alpha: float) -> Equation:
    def equation(X, Z, round):
        (z,) = Z
        m = len(X)
        return X - alpha * (X - z), ((1 - m * alpha) * z + m * alpha * X.mean(0))[None]

    return equation


def elastic_matrix(alpha: float) -> np.ndarray:
    """Cooperative SGD, eq. 11."""
    ones = np.ones((M, 1))
    return np.block([[(1 - alpha) * EYE, alpha * ones], [alpha * ones.T, np.array([[1 - M * alpha]])]])


RING = (EYE + np.roll(EYE, 1, axis=1) + np.roll(EYE, -1, axis=1)) / 3
RING_ZETA = 1 / 3 + 2 / 3 * np.cos(2 * np.pi / M)


def generalized_matrix(alpha: float) -> np.ndarray:
    """Cooperative SGD, eq. 31."""
    ones = np.ones((M, 1))
    return np.block([[(1 - alpha) * RING, alpha * ones], [alpha * ones.T, np.array([[1 - M * alpha]])]])


def hierarchical_matrix(groups: int, alpha: float) -> np.ndarray:
    members = M // groups
    E = np.kron(np.eye(groups), np.ones((members, 1)))
    V = np.ones((groups, groups)) / groups
    return np.block([[(1 - alpha) * EYE, alpha * E], [alpha * E.T, V - members * alpha * np.eye(groups)]])


def one_peer(X, Z, round):
    return (X + np.roll(X, -(2 ** (round.number % 3)), axis=0)) / 2, Z


def leader(pull: float, groups: int = 1, window: int = 10, scaled: bool = False) -> Equation:
    def equation(X, Z, round):
        recent = round.losses[:, -window:].mean(1)
        strength = pull * round.lr if scaled else pull
        new = X.copy()
        members = len(X) // groups
        for g in range(groups):
            group = range(g * members, (g + 1) * members)
            best = min(group, key=lambda i: recent[i])
            for i in group:
                new[i] = X[i] - strength * (X[i] - X[best])
        return new, Z

    return equation


def fedavg(method: tether.FedAvg) -> Equation:
    def equation(X, Z, round):
        chosen = method.participants(torch.ones(len(X), dtype=torch.bool), round.number)
        n = np.ones(len(X)) if method.weights is None else np.array(method.weights)
        mean = sum(n[i] * X[i] for i in chosen) / sum(n[i] for i in chosen)
        return np.tile(mean, (len(X), 1)), Z

    return equation


def random_mixing_matrix(size: int, seed: int = 0) -> np.ndarray:
    """A random symmetric matrix with unit row sums and other eigenvalues spread over (-0.9, 0.9)."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(np.column_stack([np.ones(size), rng.normal(size=(size, size - 1))]))
    eigenvalues = np.concatenate([[1.0], rng.uniform(-0.9, 0.9, size - 1)])
    W = basis * eigenvalues @ basis.T
    return (W + W.T) / 2


FEDAVG_WEIGHTS = (3, 1, 4, 1, 5, 9, 2, 6)
GENERALIZED_ALPHA = (1 + RING_ZETA) / (M + 1 + RING_ZETA)
HIERARCHICAL_LIMIT = 2 / (2 * 4 + 1)  # groups of four, V = J: least eigenvalue 0


def to_leader(X, losses):
    return X[losses.argmin()]


CASES = [
    Case("sync", lambda p: tether.SyncSGD(), [linear(J)], matrix=J, fixed_period=True),
    Case("local", tether.LocalSGD, [linear(J)], matrix=J),
    Case(
        "easgd",
        tether.EASGD,
        [easgd(2 / (M + 2))],
        auxiliary=1,
        matrix=elastic_matrix(2 / (M + 2)),
        at_once=True,
    ),
    Case(
        "easgd-beta",
        lambda p: tether.EASGD(p, beta=0.43),
        [easgd(0.43 / M)],
        auxiliary=1,
        matrix=elastic_matrix(0.43 / M),
        at_once=True,
    ),
    Case("ring", tether.DecentralizedSGD, [linear(RING)], matrix=RING),
    Case("one-peer", lambda p: tether.DecentralizedSGD(p, "one-peer-exponential"), [one_peer]),
    Case(
        "cooperative",
        lambda p: tether.CooperativeSGD(p, random_mixing_matrix(M + 2), auxiliary=2),
        [linear(random_mixing_matrix(M + 2))],
        auxiliary=2,
        matrix=random_mixing_matrix(M + 2),
    ),
    Case(
        "generalized-elastic",
        tether.GeneralizedElastic,
        [linear(generalized_matrix(GENERALIZED_ALPHA))],
        auxiliary=1,
        matrix=generalized_matrix(GENERALIZED_ALPHA),
    ),
    Case(
        "hierarchical-elastic",
        lambda p: tether.HierarchicalElastic(p, groups=2),
        [linear(hierarchical_matrix(2, HIERARCHICAL_LIMIT / 2))],
        auxiliary=2,
        matrix=hierarchical_matrix(2, HIERARCHICAL_LIMIT / 2),
        at_once=True,
    ),
    Case("leader", lambda p: tether.LSGD(p, pull=0.3, window=3), [leader(0.3, window=3)], target=to_leader),
    Case(
        "leader-scaled",
        lambda p: tether.LSGD(p, pull=2.5, pull_scaled_by_lr=True),
        [leader(2.5, scaled=True)],
        target=to_leader,
    ),
    Case(
        "multi-leader",
        lambda p: tether.MultiLeaderLSGD(p, 2 * p, groups=2, pull=0.3, global_pull=0.2),
        [leader(0.3, groups=2), leader(0.2)],
        factors=[1, 2],
        target=to_leader,
    ),
    Case(
        "fedavg",
        lambda p: tether.FedAvg(p, fraction=0.4, weights=FEDAVG_WEIGHTS, seed=5),
        [fedavg(tether.FedAvg(1, fraction=0.4, weights=FEDAVG_WEIGHTS, seed=5))],
        target=lambda X, losses: fedavg(tether.FedAvg(1, fraction=0.4, weights=FEDAVG_WEIGHTS, seed=5))(
            X, None, Round(0, losses, 0.0)
        )[0][0],
    ),
]
