"""Each worker's samples and the order in which it goes through them.

Which samples a worker sees at a step is a function of (seed, worker, step) and nothing else: not of the process that
asks, nor of what was asked before. Simulated and real workers draw the same batches, and a resumed run needs no state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from tether.checks import whole


@runtime_checkable
class Shards(Protocol):
    """The workers' shares of a data set.

    Attributes:
        sizes: `[m]`, how many samples each worker goes through in an epoch.
    """

    sizes: np.ndarray

    def order(self, worker: int, epoch: int) -> np.ndarray:
        """The samples of a worker in the order of that epoch, `[sizes[worker]]`."""
        ...

    def whole(self, worker: int, epoch: int) -> np.ndarray:
        """The same samples in an order of no account."""
        ...


class FixedShards:
    """Every worker keeps its samples; each epoch it goes through them in a new order.

    Args:
        held: which samples each worker holds.
        seed: the orders.

    Raises:
        ValueError: if a worker holds none.
    """

    def __init__(self, held: Sequence[np.ndarray], seed: int):
        self.held = held
        self.sizes = np.array([len(mine) for mine in held])
        self._seed = seed
        if not self.sizes.all():
            raise ValueError(
                f"worker {int(self.sizes.argmin())} holds no samples; use fewer workers or another partition"
            )

    def order(self, worker: int, epoch: int) -> np.ndarray:
        """See `Shards.order`."""
        return np.random.default_rng((self._seed, worker, epoch)).permutation(self.held[worker])

    def whole(self, worker: int, epoch: int) -> np.ndarray:
        """See `Shards.whole`."""
        return self.held[worker]


class ReshuffledShards:
    """Each epoch one shuffle of everything, cut into equal consecutive shares; the few samples left over rest."""

    def __init__(self, samples: int, workers: int, seed: int):
        self.sizes = np.full(workers, samples // workers)
        self._samples = samples
        self._seed = seed
        self._epoch: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def order(self, worker: int, epoch: int) -> np.ndarray:
        """See `Shards.order`."""
        if self._epoch[0] != epoch:
            self._epoch = (epoch, np.random.default_rng((self._seed, epoch)).permutation(self._samples))
        share = self.sizes[worker]
        return self._epoch[1][worker * share : (worker + 1) * share]

    def whole(self, worker: int, epoch: int) -> np.ndarray:
        """See `Shards.whole`."""
        return self.order(worker, epoch)


class Batches:
    """Which samples each worker's batches hold.

    A worker goes through its shard epoch by epoch; the last batch of an epoch is left out if it is not full.

    Args:
        shards: the workers' shares.
        batch_size: samples a batch, or None for the whole shard: full gradients.

    Raises:
        ValueError: if a batch is larger than the smallest shard.
    """

    def __init__(self, shards: Shards, batch_size: int | None):
        if batch_size is not None:
            batch_size = whole("batch_size", batch_size, least=1)
        least = int(shards.sizes.argmin())
        if batch_size is not None and batch_size > shards.sizes[least]:
            raise ValueError(
                f"batch_size={batch_size}: worker {least} holds only {shards.sizes[least]} samples; take a smaller "
                "batch, fewer workers, a partition with a minimum, or batch_size=None for full gradients"
            )
        self._shards = shards
        self._whole = batch_size is None
        self.sizes = shards.sizes if batch_size is None else np.full(len(shards.sizes), batch_size)
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def indices(self, workers: Sequence[int], number: int | Sequence[int]) -> np.ndarray:
        """The samples in batch `number` (from 0), or of each its own, of workers whose batches are of one size.

        Returns:
            `[workers, batch]`.
        """
        numbers = [number] * len(workers) if isinstance(number, int) else number
        return np.stack([self._batch(*pair) for pair in zip(workers, numbers, strict=True)])

    def _batch(self, worker: int, number: int) -> np.ndarray:
        if self._whole:
            return self._shards.whole(worker, number)
        size = int(self.sizes[worker])
        epoch, position = divmod(number, int(self._shards.sizes[worker]) // size)
        cached, order = self._orders.get(worker, (-1, np.empty(0)))
        if cached != epoch:
            order = self._shards.order(worker, epoch)
            self._orders[worker] = (epoch, order)
        return order[position * size : (position + 1) * size]
