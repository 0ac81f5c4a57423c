"""What a simulation leaves behind, or had when it had to stop."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor, nn

from tether.history import Record
from tether.methods import Method
from tether.replicas import Replicas, distances
from tether.workers import Workers, contest

RECENT = 10
"""The best worker is the one with the least training loss over so many of its last batches (Leader SGD, section 4)."""


@dataclass(frozen=True)
class Result:
    """What a simulation leaves behind.

    Attributes:
        rows: `[r, d]`, the models of the workers in this process, of a simulation all m; a row is
            `torch.nn.utils.parameters_to_vector` of the trainable parameters.
        losses: `[m]`, each worker's mean training loss over its last batches.
        history: a record for every round and every evaluation, of a run that goes on those since.
        excluded: workers that were left out because they diverged, and at which step.
        seconds: wall-clock time of training, evaluations left out.
        stepping: how local steps were taken, and how long compiling that took, if it did.
        method: what a round did.
        rounds: the number of rounds.
        messages: messages sent, by all workers together.
        bytes: bytes sent, by all workers together.
        anchor: the center's model, of asynchronous methods.
    """

    rows: Float[Tensor, "r d"]
    losses: Float[Tensor, " m"]
    history: list[Record]
    excluded: dict[int, int]
    seconds: float
    stepping: str
    method: Method
    rounds: int
    messages: int
    bytes: int
    anchor: Float[Tensor, "1 d"] | None = field(default=None, kw_only=True)
    _replicas: Replicas
    _workers: Workers

    @property
    def workers(self) -> int:
        """The number of workers m."""
        return self._workers.size

    @property
    def is_first(self) -> bool:
        """Whether this process holds the first worker."""
        return self._workers.rows.start == 0

    @property
    def consensus(self) -> float:
        """The consensus distance (1/m) sum_i ||x_i - mean(x)||^2 of the final rows. Every process asks."""
        return consensus_distance(self.rows, self._workers)

    @property
    def best_worker(self) -> int:
        """The worker with the least training loss over its last batches."""
        return best_worker(self.losses, self._workers)

    def center(self) -> nn.Module:
        """The mean of the workers, buffers included; the model at the center if there is one. Every process asks."""
        return center(self._replicas, self._workers, self.anchor)

    def best(self) -> nn.Module:
        """The worker with the least training loss over its last batches. Every process asks."""
        return best(self._replicas, self._workers, self.losses)

    def worker(self, number: int) -> nn.Module:
        """One worker's model, of those in this process; its own copy."""
        return copy.deepcopy(self._replicas.worker(number - self._workers.rows.start))


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


def best_worker(losses: Float[Tensor, " m"], workers: Workers) -> int:
    """The present worker with the least loss."""
    return int(contest(workers.present, losses).argmin())


def center(replicas: Replicas, workers: Workers, anchor: Float[Tensor, "1 d"] | None = None) -> nn.Module:
    """The mean of the workers present, buffers included; or the model that a center has, with the mean of buffers."""
    means = {name: workers.mean(matrix).wait() for name, matrix in replicas.matrices().items()}
    return replicas.module(means if anchor is None else means | {"x": anchor})


def best(replicas: Replicas, workers: Workers, losses: Float[Tensor, " m"]) -> nn.Module:
    """The present worker with the least loss."""
    mine = losses[workers.rows].to(replicas.x)
    found = {name: workers.best(matrix, mine)["row"] for name, matrix in replicas.matrices().items()}
    return replicas.module({name: row if isinstance(row, Tensor) else row.wait() for name, row in found.items()})


def consensus_distance(x: Float[Tensor, "r d"], workers: Workers) -> float:
    """V = (1/m) sum_i ||x_i - mean(x)||^2 over the workers present (Khaled et al., "local GD", slide on V_t)."""
    squares = workers.gather(distances(x, workers.mean(x).wait()).square())
    return float(squares[workers.present.to(squares.device)].mean())
