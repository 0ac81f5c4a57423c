"""A data set in memory: tensors of training samples, held-out ones, and who holds what."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from tether.checks import nearest, whole
from tether.data.augmentation import Augmentation
from tether.data.evaluation import Evaluation, Samples, classification, language, regression
from tether.data.partition import IID, PARTITIONS, Assigned, Partition
from tether.data.shards import Shards
from tether.models.objectives import Loss, entropy_loss


@dataclass(frozen=True)
class Dataset:
    """Samples as tensors with one first dimension; a batch is the same tuple, indexed.

    Args:
        train: training samples, tensors `[n, ...]`; by custom (inputs, labels).
        test: held-out samples of the same form.
        name: what to call it.
        partition: who holds what; iid unless given.
        classes: number of classes, where targets are classes; of a text, of symbols.
        augmentation: what is done to the samples of every batch at random.
        groups: `[n]`, the group of each training sample, such as the module of a text, by which partitions divide;
            where there are none they divide by label.
        names: what the groups, or else the classes, are called.
        about: what else is to be said of it, such as the version of its text.

    Raises:
        ValueError: if the tensors disagree about the number of samples.
    """

    train: Samples
    test: Samples | None = None
    name: str = "data"
    partition: Partition = field(default_factory=IID)
    classes: int | None = None
    augmentation: Augmentation | None = None
    groups: Tensor | None = None
    names: tuple[str, ...] | None = None
    about: str = ""

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
        if self.groups is not None and len(self.groups) != len(self):
            raise ValueError(f"groups has {len(self.groups)} entries for {len(self)} samples: give one a sample")

    def __len__(self) -> int:
        return len(self.train[0])

    def __str__(self) -> str:
        return f"{self.name} ({self.about})" if self.about else self.name

    @property
    def example(self) -> Tensor:
        """`[1, ...]`, the inputs of a sample as batches have them."""
        first = (self.train[0][:1],)
        return (first if self.augmentation is None else self.augmentation.held_out(first))[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a sample as batches have it."""
        return tuple(self.example.shape[1:])

    @property
    def outputs(self) -> int:
        """How many numbers a model should give: the number of classes, or of real targets a sample."""
        targets = self.train[-1]
        return self.classes or (targets.shape[-1] if targets.ndim > 1 else 1)

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

    def augmented(self, augmentation: Augmentation) -> Dataset:
        """The same samples, changed at random in every batch; held-out ones are brought to the same shape.

        Raises:
            ValueError: if the samples do not suit it.
        """
        augmentation.held_out((self.train[0][:1],))  # refuses samples that do not suit it
        held_out = self.test and augmentation.held_out(self.test)
        return dataclasses.replace(self, augmentation=augmentation, test=held_out)

    def tested_on(self, held_out: int) -> Dataset:
        """The same samples, of which only the first so many held-out ones are kept: cheaper to evaluate on.

        Raises:
            ValueError: if there are not so many.
        """
        there = 0 if self.test is None else len(self.test[0])
        held_out = whole("held_out", held_out, 1, there)
        return dataclasses.replace(self, test=self.test and tuple(t[:held_out] for t in self.test))

    def to(self, dtype: torch.dtype) -> Dataset:
        """The same samples with their real numbers in another precision."""

        def cast(samples: Samples) -> Samples:
            return tuple(t.to(dtype) if t.is_floating_point() else t for t in samples)

        return dataclasses.replace(self, train=cast(self.train), test=self.test and cast(self.test))

    def shards(self, workers: int, seed: int = 0) -> Shards:
        """The workers' shares of the training samples."""
        groups = self.grouping()
        return self.partition.shards(len(self), None if groups is None else groups.cpu().numpy(), workers, seed)

    def grouping(self) -> Tensor | None:
        """`[n]`, what partitions divide by: the group of each training sample, or else its label if it has one."""
        labels = self.train[-1]
        whole = len(self.train) > 1 and labels.ndim == 1 and not labels.is_floating_point()
        return self.groups if self.groups is not None else labels if whole else None

    def evaluation(self, loss: Loss = entropy_loss) -> Evaluation | None:
        """What to measure of a model on the held-out samples, if there are any.

        Args:
            loss: loss(outputs, targets) -> its mean.
        """
        if self.test is None:
            return None
        prepare = self.augmentation.held_out if self.augmentation else None
        if self.classes is None:
            return regression(self.test, loss=loss, prepare=prepare)
        measure = classification if self.test[-1].ndim == 1 else language
        return measure(self.test, loss=loss, prepare=prepare)
