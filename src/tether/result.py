"""What a simulation leaves behind, or had when it had to stop."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tether.history import Record
from tether.methods import Method
from tether.replicas import Replicas, consensus_distance
from tether.workers import Metered

RECENT = 10
"""The best worker is the one with the least training loss over so many of its last batches (Leader SGD, section 4)."""


@dataclass(frozen=True)
class Result:
    """What a simulation leaves behind.

    Attributes:
        rows: `[m, d]`, the workers' models; row i is `torch.nn.utils.parameters_to_vector` of the trainable ones.
        losses: `[m]`, each worker's mean training loss over its last batches.
        history: a record for every round and every evaluation.
        excluded: workers that were left out because they diverged, and at which step.
        seconds: wall-clock time of training, evaluations left out.
        method: what a round did.
    """

    rows: Float[Tensor, "m d"]
    losses: Float[Tensor, " m"]
    history: list[Record]
    excluded: dict[int, int]
    seconds: float
    method: Method
    _replicas: Replicas
    _workers: Metered

    @property
    def workers(self) -> int:
        """The number of workers m."""
        return len(self.rows)

    @property
    def rounds(self) -> int:
        """The number of rounds."""
        return self.history[-1].round if self.history else 0

    @property
    def messages(self) -> int:
        """Messages sent, by all workers together."""
        return self._workers.messages

    @property
    def bytes(self) -> int:
        """Bytes sent, by all workers together."""
        return self._workers.bytes

    @property
    def consensus(self) -> float:
        """The consensus distance (1/m) sum_i ||x_i - mean(x)||^2 of the final rows."""
        return consensus_distance(self.rows, self._workers.present)

    @property
    def best_worker(self) -> int:
        """The worker with the least training loss over its last batches."""
        return best_worker(self.losses, self._workers)

    def center(self) -> nn.Module:
        """The mean of the workers, buffers included."""
        return self._replicas.center(self._workers.present)

    def best(self) -> nn.Module:
        """The worker with the least training loss over its last batches."""
        return self.worker(self.best_worker)

    def worker(self, number: int) -> nn.Module:
        """One worker's model; its own copy."""
        return copy.deepcopy(self._replicas.worker(number))


class NonFiniteLossError(RuntimeError):
    """A worker's loss or model is no longer finite, and the run was told to stop.

    Attributes:
        worker: which.
        step: the local step in which it was found.
        result: the run up to its last good state, from before that step.
    """

    def __init__(self, worker: int, step: int, result: Result, good: int):
        super().__init__(
            f"worker {worker}: the loss or a parameter is not finite at local step {step}; the state after step {good} "
            "is kept in this error's `result`. Lower the learning rate, or go on without such workers by "
            "on_nonfinite='exclude'"
        )
        self.worker, self.step, self.result = worker, step, result


def best_worker(losses: Float[Tensor, " m"], workers: Metered) -> int:
    """The present worker with the least loss."""
    return int(torch.where(workers.present & losses.isfinite(), losses, torch.inf).argmin())
