"""What diagnostics look at: the workers' objectives as functions of a vector of parameters."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, jvp, vmap

from tether.checks import whole
from tether.data import Dataset
from tether.gradients import Bound, Objective, RowGradients, check_reaches_parameters
from tether.replicas import Replicas

Row = Float[Tensor, " d"]
Vectors = Float[Tensor, "*k d"]
Samples = tuple[Tensor, ...]

WORKING = 2**26
"""Bytes that the gradients, or tangents, computed at once may take."""


class Landscape:
    """F(x) = (1/m) sum_i F_i(x), F_i the mean loss over what worker i holds (Cooperative SGD, eq. 1).

    The model is evaluated as it would be after training (`eval()`): dropout is off, BatchNorm uses its running
    statistics, augmented samples are looked at as held-out ones are. Otherwise F would be no function of x, nor a mean
    over samples. All is computed in the precision of model and data; for small eigenvalues and differences give both
    in float64: `model.double()`, `data.to(torch.float64)`.

    Args:
        model: a model; the landscape keeps a copy.
        objective: objective(model, batch) -> scalar loss, a mean over the samples of the batch.
        data: the samples and who holds what. Where shards are reshuffled every epoch, it is that of the first.
        workers: number of workers m.
        seed: who holds what, as `simulate` divides it with the same seed; and which samples are looked at.
        samples: how many of each worker's samples to look at, drawn at random. Default: all; then what is estimated is
            exact. Fewer give confidence intervals for all.
        batch_size: how many samples are evaluated at once. Changes nothing but memory and speed.

    Attributes:
        x: `[d]`, the model's own trainable parameters, as `torch.nn.utils.parameters_to_vector` orders them.
        sizes: `[m]`, samples that each worker holds.
        looked_at: by worker, which of them are looked at, in random order.

    Raises:
        ValueError: if the objective's loss is no number or does not depend on the model it is given, or the data cannot
            be divided among so many workers.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        data: Dataset,
        workers: int = 1,
        seed: int = 0,
        samples: int | None = None,
        batch_size: int = 1000,
    ):
        self.model, self.objective, self.data = copy.deepcopy(model), objective, data
        self.workers, self.seed = whole("workers", workers, least=1), whole("seed", seed, least=0)
        self.batch_size = whole("batch_size", batch_size, least=1)
        samples = None if samples is None else whole("samples", samples, least=2)
        self._replicas = Replicas(model, 1)
        self.x: Row = self._replicas.x[0]
        self._bound = Bound(copy.deepcopy(model).eval(), objective)
        shards = data.shards(workers, seed)
        self.held = [shards.whole(worker, 0) for worker in range(workers)]
        self.sizes = np.array([len(held) for held in self.held])
        drawn = (
            np.random.default_rng((seed, worker, 0xD1A6)).permutation(self.held[worker]) for worker in range(workers)
        )
        self.looked_at = [order[:samples] for order in drawn]
        self._tensors = data.train if data.augmentation is None else data.augmentation.held_out(data.train)

        batch = tuple(part[None] for part in self.batch(self.looked_at[0][:2]))
        rows = RowGradients(self._replicas, model, objective)
        check_reaches_parameters(rows, self._replicas, model, objective, batch)

    @property
    def parameters(self) -> int:
        """The number of trainable parameters d."""
        return len(self.x)

    def row(self, x: Row | None) -> Row:
        """The point x in the model's precision and on its device; its own parameters if no other are given.

        Raises:
            ValueError: if x has not as many entries as the model has trainable parameters.
        """
        if x is None:
            return self.x
        if x.shape != self.x.shape:
            raise ValueError(f"x has shape {tuple(x.shape)}: the model has {self.parameters} trainable parameters")
        return x.detach().to(self.x)

    def views(self, rows: Float[Tensor, "*r d"]) -> dict[str, Tensor]:
        """Rows taken apart: each trainable parameter by name, `[*r, *shape]`."""
        return self._replicas.views(rows)

    def module(self, x: Row) -> nn.Module:
        """A copy of the model with these parameters."""
        return self._replicas.module({"x": x[None]})

    def batch(self, indices: np.ndarray) -> Samples:
        """Some of the training samples, on the model's device."""
        chosen = torch.from_numpy(indices)
        return tuple(part[chosen.to(part.device)].to(self.x.device) for part in self._tensors)

    def splits(self, worker: int | None = None) -> Iterator[tuple[np.ndarray, float]]:
        """The samples looked at, in batches, each with its weight in F_i, or in F if no worker is given.

        Samples of equal weight come in one batch, whoever holds them.
        """
        workers = range(self.workers) if worker is None else [worker]
        of_size: dict[int, list[np.ndarray]] = {}
        for each in workers:
            of_size.setdefault(len(self.looked_at[each]), []).append(self.looked_at[each])
        for size, alike in of_size.items():
            for part in self._split(np.concatenate(alike)):
                yield part, len(part) / (size * len(workers))

    def batches(self, worker: int | None = None) -> Iterator[tuple[Samples, float]]:
        """The same as tensors."""
        return ((self.batch(indices), weight) for indices, weight in self.splits(worker))

    def counted(self, indices: np.ndarray) -> Iterator[tuple[Samples, float]]:
        """These samples in batches, each with its number of samples: weights that make means sums."""
        return ((self.batch(part), float(len(part))) for part in self._split(indices))

    def _split(self, indices: np.ndarray) -> list[np.ndarray]:
        return np.array_split(indices, -(-len(indices) // self.batch_size))

    def sample_loss(self, x: Row, batch: Samples) -> Tensor:
        """The objective at x, on a batch; differentiable, and open to the transformations of `torch.func`."""
        return self.loss_at(self.views(x), batch)

    def loss_at(self, views: dict[str, Tensor], batch: Samples) -> Tensor:
        """The same with x taken apart."""
        return functional_call(self._bound, {f"model.{name}": view for name, view in views.items()}, (batch,))

    @torch.no_grad()
    def loss(self, x: Row | None = None, worker: int | None = None) -> float:
        """F(x), or F_i(x), at the model's own parameters unless others are given."""
        row = self.row(x)
        return sum(weight * float(self.sample_loss(row, batch)) for batch, weight in self.batches(worker))

    def gradient(self, x: Row | None = None, worker: int | None = None) -> Row:
        """The gradient of F, or of F_i, at x."""
        row = self.row(x)
        total = torch.zeros_like(row)
        for batch, weight in self.batches(worker):
            total.add_(grad(self.sample_loss)(row, batch), alpha=weight)
        return total

    def sample_gradients(
        self, x: Row, indices: np.ndarray
    ) -> Iterator[tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]]:
        """Each sample's gradient and loss by itself, some samples at a time."""
        at_once = max(1, WORKING // x.nbytes)
        single = vmap(grad_and_value(self.sample_loss), in_dims=(None, 0))
        for start in range(0, len(indices), at_once):
            batch = self.batch(indices[start : start + at_once])
            yield single(x, tuple(part[:, None] for part in batch))

    def hessian_product(self, v: Vectors, x: Row | None = None, worker: int | None = None) -> Vectors:
        """H v, H the Hessian of F, or of F_i, at x; of one vector `[d]` or of several `[k, d]`."""
        return self.curvature(v, self.row(x), self.batches(worker))

    def curvature(self, v: Vectors, x: Row, batches: Iterable[tuple[Samples, float]]) -> Vectors:
        """The same, H a weighted sum of the Hessians of batches."""
        total = torch.zeros_like(v)
        for batch, weight in batches:
            gradient = functools.partial(grad(self.sample_loss), batch=batch)

            def product(tangent: Row, gradient: Callable[[Row], Row] = gradient) -> Row:
                return jvp(gradient, (x,), (tangent,))[1]

            total.add_(product(v) if v.ndim == 1 else vmap(product)(v), alpha=weight)
        return total
