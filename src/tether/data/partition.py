"""Who holds what: ways to give the samples of one data set to m workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from tether.checks import whole
from tether.data.shards import FixedShards, ReshuffledShards, Shards


@runtime_checkable
class Partition(Protocol):
    """A way to give samples to workers; a frozen dataclass."""

    def shards(self, samples: int, labels: np.ndarray | None, workers: int, seed: int) -> Shards:
        """The workers' shares of so many samples.

        Args:
            samples: number of samples.
            labels: `[samples]`, the group of each or else its class, where they have one.
            workers: number of workers m.
            seed: which of the possible partitions.

        Raises:
            ValueError: if a worker would be left without samples, or labels are needed and missing.
        """
        ...


@dataclass(frozen=True)
class IID:
    """Shuffled once and dealt out evenly."""

    def __str__(self) -> str:
        return "iid"

    def shards(self, samples: int, labels: np.ndarray | None, workers: int, seed: int) -> Shards:
        """See `Partition.shards`."""
        _check_enough(samples, workers)
        return FixedShards(np.array_split(_rng(seed).permutation(samples), workers), seed)


@dataclass(frozen=True)
class Classes:
    """A few classes a worker: its samples come from no others.

    The classes are dealt out in turn, so that each is held by as near as possible the same number of workers, who
    share its samples evenly.

    Args:
        classes: number of classes k that each worker holds.
    """

    classes: int = 2

    def __str__(self) -> str:
        return f"{self.classes} classes a worker"

    def shards(self, samples: int, labels: np.ndarray | None, workers: int, seed: int) -> Shards:
        """See `Partition.shards`."""
        labels = _check_labels(labels, "Classes")
        names = np.unique(labels)
        if not 1 <= self.classes <= len(names):
            raise ValueError(f"{self.classes} classes a worker: the data has {len(names)}")
        if self.classes * workers < len(names):
            raise ValueError(
                f"{workers} workers with {self.classes} classes each cannot hold all {len(names)} classes; "
                f"give each at least {-(-len(names) // workers)}"
            )
        rng = _rng(seed)
        slots = np.resize(rng.permutation(names), self.classes * workers).reshape(workers, self.classes)
        held: list[list[np.ndarray]] = [[] for _ in range(workers)]
        for name in names:
            holders = np.flatnonzero((slots == name).any(1))
            mine = rng.permutation(np.flatnonzero(labels == name))
            if len(mine) < len(holders):
                raise ValueError(
                    f"class {name} has {len(mine)} samples for the {len(holders)} workers that are to hold it; use "
                    "fewer workers or fewer classes a worker"
                )
            pieces = np.array_split(mine, len(holders))
            for worker, piece in zip(holders, pieces, strict=True):
                held[worker].append(piece)
        return FixedShards([np.concatenate(pieces) for pieces in held], seed)


@dataclass(frozen=True)
class Dirichlet:
    """Each class divided among the workers in random proportions, drawn from Dirichlet(beta).

    Small beta: a class lies with few workers. Large beta: near to iid. (Hsu et al., "Measuring the effects of
    non-identical data distribution for federated visual classification", 2019.)

    Args:
        beta: concentration, above 0.
        min_samples: draw again until every worker holds at least so many; set it to the batch size or above.
    """

    beta: float = 0.5
    min_samples: int = 1

    def __str__(self) -> str:
        return f"classes by Dirichlet({self.beta:g})"

    def shards(self, samples: int, labels: np.ndarray | None, workers: int, seed: int) -> Shards:
        """See `Partition.shards`."""
        if not self.beta > 0:
            raise ValueError(f"beta={self.beta}: the concentration is above 0")
        labels = _check_labels(labels, "Dirichlet")
        _check_enough(samples, workers * self.min_samples)
        rng = _rng(seed)
        for _ in range(200):
            held: list[list[np.ndarray]] = [[] for _ in range(workers)]
            for name in np.unique(labels):
                mine = rng.permutation(np.flatnonzero(labels == name))
                cuts = np.cumsum(rng.dirichlet(np.full(workers, self.beta)))[:-1] * len(mine)
                for pieces, piece in zip(held, np.split(mine, cuts.round().astype(int)), strict=True):
                    pieces.append(piece)
            if min(sum(map(len, pieces)) for pieces in held) >= self.min_samples:
                return FixedShards([np.concatenate(pieces) for pieces in held], seed)
        raise ValueError(
            f"beta={self.beta} leaves some of {workers} workers with fewer than {self.min_samples} of {samples} "
            "samples in each of 200 draws; raise beta or lower min_samples"
        )


@dataclass(frozen=True)
class Quantity:
    """Alike in what is held, not in how much: the shares of the samples are drawn from Dirichlet(beta).

    Every worker holds n_i = s + p_i (n − m s) samples, p ~ Dirichlet(beta), whichever come in a shuffle of all. Small
    beta: a few workers hold nearly everything. (Li et al., "Federated learning on non-IID data silos", 2022, quantity
    skew, with a least number of samples s.)

    Args:
        beta: concentration, above 0.
        min_samples: samples s that every worker holds at least; set it to the batch size or above.
    """

    beta: float = 0.5
    min_samples: int = 1

    def __str__(self) -> str:
        return f"amounts by Dirichlet({self.beta:g})"

    def shards(self, samples: int, labels: np.ndarray | None, workers: int, seed: int) -> Shards:
        """See `Partition.shards`."""
        if not self.beta > 0:
            raise ValueError(f"beta={self.beta}: the concentration is above 0")
        rng = _rng(seed)
        return _by_amounts(rng.dirichlet(np.full(workers, self.beta)), samples, self.min_samples, rng, seed)


@dataclass(frozen=True)
class PowerLaw:
    """Alike in what is held, not in how much: the k-th largest share of the samples goes as k^(−exponent).

    Every worker holds n_i = s + p_i (n − m s) samples, as with `Quantity`; which worker is the k-th is drawn.

    Args:
        exponent: 0 for equal shares; at 1 the largest share of many workers' is twice the second.
        min_samples: samples s that every worker holds at least; set it to the batch size or above.
    """

    exponent: float = 1.0
    min_samples: int = 1

    def __str__(self) -> str:
        return f"amounts by k^-{self.exponent:g}"

    def shards(self, samples: int, labels: np.ndarray | None, workers: int, seed: int) -> Shards:
        """See `Partition.shards`."""
        if not self.exponent >= 0:
            raise ValueError(f"exponent={self.exponent}: give 0 or more")
        rng = _rng(seed)
        shares = np.arange(1.0, workers + 1) ** -self.exponent
        return _by_amounts(rng.permutation(shares / shares.sum()), samples, self.min_samples, rng, seed)


@dataclass(frozen=True)
class Contiguous:
    """Cut into m consecutive pieces of a size, in the order of the data: of a text, each worker its own passage."""

    def __str__(self) -> str:
        return "consecutive pieces"

    def shards(self, samples: int, labels: np.ndarray | None, workers: int, seed: int) -> Shards:
        """See `Partition.shards`."""
        _check_enough(samples, workers)
        return FixedShards(np.array_split(np.arange(samples), workers), seed)


@dataclass(frozen=True)
class Groups:
    """Whole groups: no two workers hold samples of one module of a text, or of one class where there are no groups.

    From the largest group to the smallest, each goes to the worker that holds least so far.
    """

    def __str__(self) -> str:
        return "whole groups"

    def shards(self, samples: int, labels: np.ndarray | None, workers: int, seed: int) -> Shards:
        """See `Partition.shards`."""
        labels = _check_labels(labels, "Groups")
        names, sizes = np.unique(labels, return_counts=True)
        if len(names) < workers:
            raise ValueError(f"{len(names)} groups cannot be dealt whole to {workers} workers; use fewer workers")
        rng = _rng(seed)
        held: list[list[np.ndarray]] = [[] for _ in range(workers)]
        load = np.zeros(workers, int)
        drawn = rng.permutation(len(names))
        for group in drawn[np.argsort(-sizes[drawn], kind="stable")]:
            worker = int(load.argmin())
            held[worker].append(np.flatnonzero(labels == names[group]))
            load[worker] += sizes[group]
        return FixedShards([np.concatenate(pieces) for pieces in held], seed)


@dataclass(frozen=True)
class Reshuffled:
    """Every epoch shuffled anew and dealt out in disjoint shards; what does not fill a batch is left out that epoch.

    As PyTorch's `DistributedSampler` does (Leader SGD, section 9.2).
    """

    def __str__(self) -> str:
        return "reshuffled every epoch"

    def shards(self, samples: int, labels: np.ndarray | None, workers: int, seed: int) -> Shards:
        """See `Partition.shards`."""
        _check_enough(samples, workers)
        return ReshuffledShards(samples, workers, seed)


@dataclass(frozen=True)
class Assigned:
    """Given: which samples each worker holds.

    Args:
        indices: one sequence of sample numbers a worker.
    """

    indices: Sequence[Sequence[int]]

    def __str__(self) -> str:
        return "as assigned"

    def shards(self, samples: int, labels: np.ndarray | None, workers: int, seed: int) -> Shards:
        """See `Partition.shards`."""
        if len(self.indices) != workers:
            raise ValueError(f"{len(self.indices)} shards for {workers} workers: give one a worker")
        held = [np.asarray(mine) for mine in self.indices]
        held = [mine if len(mine) else mine.astype(np.int64) for mine in held]
        for worker, mine in enumerate(held):
            if mine.dtype.kind not in "iu":
                raise ValueError(f"worker {worker} is given {mine.dtype} values; its samples are whole numbers")
            if len(mine) and not 0 <= mine.min() <= mine.max() < samples:
                raise ValueError(f"worker {worker} is given a sample outside 0 to {samples - 1}")
        return FixedShards(held, seed)


PARTITIONS: dict[str, type] = {
    "iid": IID,
    "classes": Classes,
    "dirichlet": Dirichlet,
    "quantity": Quantity,
    "power-law": PowerLaw,
    "contiguous": Contiguous,
    "groups": Groups,
    "reshuffled": Reshuffled,
}
"""The partitions that have a name."""


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng((seed, 0x5A4D))


def _by_amounts(shares: np.ndarray, samples: int, min_samples: int, rng: np.random.Generator, seed: int) -> FixedShards:
    """Shuffled once and dealt out in these shares of what is left when every worker has its least."""
    min_samples = whole("min_samples", min_samples, least=1)
    workers = len(shares)
    _check_enough(samples, workers * min_samples)
    ends = (np.cumsum(shares) * (samples - workers * min_samples)).round().astype(int)
    cuts = ends + min_samples * np.arange(1, workers + 1)
    return FixedShards(np.split(rng.permutation(samples), cuts[:-1]), seed)


def _check_enough(samples: int, needed: int) -> None:
    if samples < needed:
        raise ValueError(f"{samples} samples are too few: these workers need {needed}; use fewer workers")


def _check_labels(labels: np.ndarray | None, name: str) -> np.ndarray:
    if labels is None:
        raise ValueError(
            f"{name} divides samples by class or group; this data has neither: no `groups`, no last tensor of labels, "
            "whole numbers"
        )
    return labels
