"""The batches of every local step, as tensors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tether.data.dataset import Dataset
from tether.data.shards import Batches


class Feed:
    """The batches of every local step, as tensors on the model's device.

    Args:
        data: the samples and who holds what, or None: every batch is None.
        workers: number of workers m.
        batch_size: samples a batch, or None for all that a worker holds.
        accumulate: batches a local step.
        seed: who holds what, and in which order.
        device: where the batches are wanted.

    Attributes:
        sizes: `[m]`, samples in each worker's batches.
        samples: `[m]`, samples that each worker holds; None without data.
    """

    def __init__(
        self,
        data: Dataset | None,
        workers: int,
        batch_size: int | None,
        accumulate: int,
        seed: int,
        device: torch.device,
    ):
        self.accumulate = accumulate
        self._seed = seed
        self._augmentation = None if data is None else data.augmentation
        self._tensors = () if data is None else tuple(t.to(device) for t in data.train)
        self._batches, self.samples, self.sizes = None, None, np.zeros(workers, int)
        if data is not None:
            shards = data.shards(workers, seed)
            self._batches = Batches(shards, batch_size)
            self.samples, self.sizes = torch.tensor(shards.sizes, dtype=torch.float64), self._batches.sizes

    def __call__(self, rows: slice, step: int) -> list[tuple[Tensor, ...] | None]:
        """What these workers, whose batches are of one size, take step number `step` (from 0) on."""
        if self._batches is None:
            return [None] * self.accumulate
        numbers = range(step * self.accumulate, (step + 1) * self.accumulate)
        return [self._batch(rows, number) for number in numbers]

    def _batch(self, rows: slice, number: int) -> tuple[Tensor, ...]:
        assert self._batches is not None
        indices = torch.from_numpy(self._batches.indices(rows, number))
        batch = tuple(_samples(t, indices.to(t.device)) for t in self._tensors)
        if self._augmentation is None:
            return batch
        workers = range(rows.start, rows.stop)
        return self._augmentation(batch, [np.random.default_rng((self._seed, w, number, 0xA6)) for w in workers])


def _samples(samples: Tensor, indices: Tensor) -> Tensor:
    """`samples[indices]`, in half the time."""
    return samples.index_select(0, indices.view(-1)).view(*indices.shape, *samples.shape[1:])
