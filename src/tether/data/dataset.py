"""A data set in memory: tensors of training samples, held-out ones, and who holds what."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from tether.checks import nearest
from tether.data.partition import IID, PARTITIONS, Assigned, Partition
from tether.data.shards import Shards

Samples = tuple[Tensor, ...]


@dataclass(frozen=True)
class Dataset:
    """Samples as tensors with one first dimension; a batch is the same tuple, indexed.

    Args:
        train: training samples, tensors `[n, ...]`; by custom (inputs, labels).
        test: held-out samples of the same form.
        name: what to call it.
        partition: who holds what; iid unless given.
        classes: number of classes, where there are classes.

    Raises:
        ValueError: if the tensors disagree about the number of samples.
    """

    train: Samples
    test: Samples | None = None
    name: str = "data"
    partition: Partition = field(default_factory=IID)
    classes: int | None = None

    def __post_init__(self) -> None:
        for part, samples in (("train", self.train), ("test", self.test)):
            whole = isinstance(samples, tuple) and samples and all(isinstance(t, Tensor) for t in samples)
            if not whole and not (part == "test" and samples is None):
                raise ValueError(
                    f"{part} is a tuple of tensors, such as (inputs, labels), not {type(samples).__name__}"
                )
        for part, samples in (("train", self.train), ("test", self.test)):
            counts = {len(t) for t in samples or ()}
            if len(counts) > 1:
                raise ValueError(f"the {part} tensors have {' and '.join(map(str, sorted(counts)))} samples")

    def __len__(self) -> int:
        return len(self.train[0])

    @classmethod
    def from_samples(cls, samples: Any, **fields: Any) -> Dataset:
        """Any map-style `torch.utils.data.Dataset` or sequence of samples, read into memory."""
        batch = default_collate([samples[i] for i in range(len(samples))])
        return cls(tuple(batch) if isinstance(batch, (tuple, list)) else (batch,), **fields)

    @classmethod
    def from_workers(cls, shards: Sequence[Samples], **fields: Any) -> Dataset:
        """Each worker's own samples: one tuple of tensors a worker."""
        ends = np.cumsum([len(shard[0]) for shard in shards])
        indices = [list(range(end - len(shard[0]), end)) for shard, end in zip(shards, ends, strict=True)]
        train = tuple(torch.cat(parts) for parts in zip(*shards, strict=True))
        return cls(train, partition=Assigned(indices), **fields)

    def partitioned(self, partition: Partition | str, **parameters: Any) -> Dataset:
        """The same samples, otherwise divided: by a `Partition`, or by its name and parameters."""
        if isinstance(partition, str):
            if partition not in PARTITIONS:
                raise ValueError(f"no partition is called {partition!r}; {nearest(partition, PARTITIONS)}")
            chosen: Partition = PARTITIONS[partition](**parameters)
        else:
            chosen = partition
        return dataclasses.replace(self, partition=chosen)

    def to(self, dtype: torch.dtype) -> Dataset:
        """The same samples with their real numbers in another precision."""

        def cast(samples: Samples) -> Samples:
            return tuple(t.to(dtype) if t.is_floating_point() else t for t in samples)

        return dataclasses.replace(self, train=cast(self.train), test=self.test and cast(self.test))

    def shards(self, workers: int, seed: int = 0) -> Shards:
        """The workers' shares of the training samples."""
        labels = self.train[-1]
        whole = len(self.train) > 1 and labels.ndim == 1 and not labels.is_floating_point()
        return self.partition.shards(len(self), labels.cpu().numpy() if whole else None, workers, seed)


def classification(samples: Samples, batch_size: int = 2000) -> Callable[[nn.Module], dict[str, float]]:
    """An evaluation for `simulate`: mean cross-entropy and accuracy of a classifier on (inputs, labels).

    Args:
        samples: held-out inputs and labels.
        batch_size: how many to look at at once.
    """
    inputs, labels = samples

    @torch.no_grad()
    def evaluate(model: nn.Module) -> dict[str, float]:
        was_training = model.training
        model.eval()
        device = next(model.parameters()).device
        loss = correct = 0.0
        for x, y in zip(inputs.split(batch_size), labels.split(batch_size), strict=True):
            logits, y = model(x.to(device)), y.to(device)
            loss += float(nn.functional.cross_entropy(logits, y, reduction="sum"))
            correct += float((logits.argmax(1) == y).sum())
        model.train(was_training)
        return {"loss": loss / len(labels), "accuracy": correct / len(labels)}

    return evaluate
