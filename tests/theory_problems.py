"""Objectives of several workers with all the constants that bounds ask for, and cooperative SGD on them.

In float64 and NumPy; many runs of one setting are an array, `[seeds, rows, d]`.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

SEEDS = 64


class Objective:
    """Objectives of m workers; x is `[..., m, d]` in `gradients`, `[..., d]` elsewhere."""

    m: int
    d: int
    smoothness: float

    def gradients(self, x):
        """Each worker's gradient at its own row."""
        raise NotImplementedError

    def all_gradients(self, x):
        """Every worker's gradient at one point: `[..., m, d]`."""
        return self.gradients(np.broadcast_to(x[..., None, :], (*x.shape[:-1], self.m, self.d)))

    def gradient(self, x):
        return self.all_gradients(x).mean(-2)

    def dissimilarity(self, x):
        every = self.all_gradients(x)
        return np.square(every - every.mean(-2, keepdims=True)).sum(-1).mean(-1)


@dataclass
class Quadratics(Objective):
    """f_i(x) = (x - b_i)^T A_i (x - b_i) / 2."""

    A: np.ndarray  # [m, d, d]
    b: np.ndarray  # [m, d]

    @classmethod
    def random(cls, m, d=4, seed=0, same=False):
        rng = np.random.default_rng(seed)
        root = rng.normal(size=(1 if same else m, d, d))
        A = np.einsum("mij,mkj->mik", root, root) / d + 0.05 * np.eye(d)
        return cls(np.broadcast_to(A, (m, d, d)), np.broadcast_to(rng.normal(size=(1 if same else m, d)), (m, d)))

    @property
    def m(self):
        return len(self.A)

    @property
    def d(self):
        return self.b.shape[1]

    @property
    def smoothness(self):
        return np.linalg.eigvalsh(self.A).max()

    def gradients(self, x):
        return np.einsum("mij,...mj->...mi", self.A, x - self.b)

    def loss(self, x):
        apart = x[..., None, :] - self.b
        return 0.5 * np.einsum("...mi,mij,...mj->...m", apart, self.A, apart).mean(-1)

    @cached_property
    def optimum(self):
        return np.linalg.solve(self.A.mean(0), np.einsum("mij,mj->i", self.A, self.b) / self.m)


@dataclass
class Logistic(Objective):
    """Logistic regression with an l2 penalty; samples `[m, n, d]` with labels +-1 multiplied in."""

    samples: np.ndarray
    penalty: float = 0.05

    @classmethod
    def random(cls, m, d=4, n=30, seed=0, same=False):
        rng = np.random.default_rng(seed)
        truth = rng.normal(size=(1 if same else m, 1, d)) * 2
        points = rng.normal(size=(1 if same else m, n, d)) + (0 if same else rng.normal(size=(m, 1, d)))
        chance = 1 / (1 + np.exp(-(points * truth).sum(-1)))
        labels = np.where(rng.uniform(size=chance.shape) < chance, 1, -1)
        return cls(np.broadcast_to(points * labels[..., None], (m, n, d)))

    @property
    def m(self):
        return len(self.samples)

    @property
    def d(self):
        return self.samples.shape[2]

    @cached_property
    def smoothness(self):
        second = np.einsum("mni,mnj->mij", self.samples, self.samples) / self.samples.shape[1]
        return np.linalg.eigvalsh(second).max() / 4 + self.penalty

    def sample_gradients(self, x):
        """Of every sample: `[..., m, n, d]`."""
        weight = -1 / (1 + np.exp(np.einsum("mnd,...md->...mn", self.samples, x)))
        return weight[..., None] * self.samples + self.penalty * x[..., None, :]

    def gradients(self, x):
        weight = -1 / (1 + np.exp(np.einsum("mnd,...md->...mn", self.samples, x)))
        return np.einsum("...mn,mnd->...md", weight, self.samples) / self.samples.shape[1] + self.penalty * x

    def stochastic_gradients(self, x, rng):
        """On one sample a worker."""
        chosen = rng.integers(self.samples.shape[1], size=x.shape[:-1])
        picked = self.samples[np.arange(self.m), chosen]
        weight = -1 / (1 + np.exp((picked * x).sum(-1, keepdims=True)))
        return weight * picked + self.penalty * x

    def loss(self, x):
        margins = np.einsum("mnd,...d->...mn", self.samples, x)
        return np.logaddexp(0, -margins).mean((-1, -2)) + self.penalty / 2 * np.square(x).sum(-1)

    def variance(self, x):
        """Of a single sample's gradient at one point, the largest of any worker."""
        every = self.sample_gradients(np.broadcast_to(x[..., None, :], (*x.shape[:-1], self.m, self.d)))
        return np.square(every - every.mean(-2, keepdims=True)).sum(-1).mean(-1).max(-1)

    @cached_property
    def optimum(self):
        x = np.zeros(self.d)
        for _ in range(50):
            s = 1 / (1 + np.exp(np.einsum("mnd,d->mn", self.samples, x)))
            hessian = np.einsum("mn,mni,mnj->ij", s * (1 - s), self.samples, self.samples) / s.size
            x = x - np.linalg.solve(hessian + self.penalty * np.eye(self.d), self.gradient(x))
        assert np.linalg.norm(self.gradient(x)) < 1e-10
        return x


@dataclass
class Ramp(Objective):
    """f'(x) = max(x, -slope), a parabola that goes on as a slope: noise leaves workers who are apart on the slope."""

    m: int
    slope: float
    d = 1
    smoothness = 1.0

    def gradients(self, x):
        return np.maximum(x, -self.slope)


def noisy(objective, sigma):
    """Gradients with Gaussian noise of variance sigma^2."""

    def gradients(x, rng):
        return objective.gradients(x) + sigma / np.sqrt(objective.d) * rng.normal(size=x.shape)

    return gradients


@dataclass
class Measured:
    """Of runs of cooperative SGD, over all seeds and steps."""

    gradient: float  # mean of ||grad F(u_k)||^2
    apart: float  # mean of (1/m) sum over all rows of ||x_i - u||^2
    dissimilarity: float  # largest
    path: np.ndarray  # u_k, [steps, seeds, d]


def cooperative(objective, gradients, W, period, steps, lr, start, seeds=SEEDS, seed=0):
    """X <- (X - eta G) S, all rows from one point."""
    rng = np.random.default_rng(seed)
    m = objective.m
    X = np.tile(start, (seeds, len(W), 1)).astype(float)
    path, apart = [], []
    for k in range(1, steps + 1):
        u = X.mean(1)
        path.append(u)
        apart.append(np.square(X - u[:, None]).sum((1, 2)).mean() / m)
        X[:, :m] -= lr * gradients(X[:, :m], rng)
        if k % period == 0:
            X = np.matmul(W, X)
    path = np.array(path)
    return Measured(
        np.square(objective.gradient(path)).sum(-1).mean(),
        np.mean(apart),
        objective.dissimilarity(path).max(),
        path,
    )
