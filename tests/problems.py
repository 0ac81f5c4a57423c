"""Problems whose gradients can be written down."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from tether.data import Dataset


class Point(nn.Module):
    """A model that is nothing but its d parameters."""

    def __init__(self, d: int):
        super().__init__()
        self.x = nn.Parameter(torch.zeros(d, dtype=torch.float64))


def quadratic(model: Point, batch) -> torch.Tensor:
    """f(x) = (x - b)^T A (x - b) / 2, the mean over the batch."""
    A, b = batch
    difference = model.x - b
    return 0.5 * torch.einsum("ni,nij,nj->n", difference, A, difference).mean()


@dataclass
class Quadratics:
    """One quadratic a worker."""

    A: np.ndarray  # [m, d, d]
    b: np.ndarray  # [m, d]

    @classmethod
    def random(cls, m: int, d: int, seed: int = 0) -> "Quadratics":
        rng = np.random.default_rng(seed)
        root = rng.normal(size=(m, d, d))
        return cls(np.einsum("mij,mkj->mik", root, root) / d + 0.1 * np.eye(d), rng.normal(size=(m, d)))

    @property
    def data(self) -> Dataset:
        return Dataset.from_workers(
            [(torch.tensor(A)[None], torch.tensor(b)[None]) for A, b in zip(self.A, self.b, strict=True)]
        )

    def gradients(self, X: np.ndarray) -> np.ndarray:
        return np.einsum("mij,mj->mi", self.A, X - self.b)

    def losses(self, X: np.ndarray) -> np.ndarray:
        return 0.5 * np.einsum("mi,mi->m", X - self.b, self.gradients(X))
