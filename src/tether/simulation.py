"""All workers in this process: local steps on the rows of X, rounds between them, a record of both."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from tether.data import Batches, Dataset
from tether.history import Record
from tether.methods import Method
from tether.replicas import Replicas, blocks, consensus_distance, distances
from tether.rounds import Companion, Order, Rounds, check_choice
from tether.stepping import (
    Batch,
    Block,
    Gradients,
    Objective,
    OptimizerFactory,
    SchedulerFactory,
    Stepping,
    check_elementwise,
    choose_gradients,
)
from tether.workers import Metered, Stacked
from tether.workers.meter import AllReduce

Buffers = Literal["average", "local"]
OptimizerState = Literal["local", "average", "reset"]
OnNonFinite = Literal["stop", "exclude"]
Evaluate = Callable[[nn.Module], Mapping[str, float]]

RECENT = 10
"""The best worker is the one with the least training loss over so many of its last batches (Leader SGD, section 4)."""

STRETCH = 100
"""Local steps taken at most before losses are looked at; rounds and evaluations make it fewer. Changes no result."""


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
        return _best(self.losses, self._workers)

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


def simulate(
    model: nn.Module,
    method: Method,
    data: Dataset | None = None,
    *,
    workers: int,
    objective: Objective,
    optimizer: OptimizerFactory,
    steps: int,
    batch_size: int | None = 32,
    seed: int = 0,
    overlap: int = 0,
    order: Order = "step-then-mix",
    start: Float[Tensor, "m d"] | None = None,
    scheduler: SchedulerFactory | None = None,
    accumulate: int = 1,
    buffers: Buffers = "average",
    optimizer_state: OptimizerState = "local",
    evaluate: Evaluate | None = None,
    evaluate_every: int | None = None,
    on_nonfinite: OnNonFinite = "stop",
    on_record: Callable[[Record], None] = lambda record: None,
    on_progress: Callable[[int, float], None] = lambda count, loss: None,
    allreduce: AllReduce = "ring",
    stepping: Stepping = "auto",
    block: int = 50,
) -> Result:
    """Train a model on m simulated workers.

    Args:
        model: what to train; not changed. Every worker starts from its parameters, on its device.
        method: what a round between workers does, and how often.
        data: training samples and who holds what, or None for an objective that needs none.
        workers: number of workers m.
        objective: objective(model, batch) -> scalar loss; batch is the tuple of tensors in `data.train`, indexed.
        optimizer: makes an elementwise `torch.optim` optimizer from parameters: `lambda p: torch.optim.SGD(p, lr=.1)`.
            It is given one parameter for a block of workers, `[rows, d]`.
        steps: local steps of every worker.
        batch_size: samples a worker takes a step on, or None for all it holds: local gradient descent.
        seed: decides partition, batches and what the model draws; the same seed gives the same run to the bit.
        overlap: local steps between the start of a round and its landing; what is on its way at the end lands then.
        order: whether a round comes after the optimizer's update, "step-then-mix", or between gradient and update,
            "mix-then-step".
        start: `[m, d]`, where each worker starts. Default: at the model's parameters.
        scheduler: makes a `torch.optim.lr_scheduler` from the optimizer; it advances every local step.
        accumulate: batches whose gradients are averaged in one local step.
        buffers: "average" takes the mean of real buffers (BatchNorm's statistics) whenever a round lands, "local"
            leaves each worker its own.
        optimizer_state: "local" leaves moments where they are, "average" takes their mean whenever a round lands,
            "reset" clears the state then.
        evaluate: measures of a model on held-out data, such as `tether.data.classification(data.test)`; asked of the
            mean model and of the best worker, at the end and every `evaluate_every` steps.
        evaluate_every: local steps between evaluations. Default: only at the end.
        on_nonfinite: when a worker's loss or model stops being finite, "stop" the run with its last good state or
            "exclude" the worker from then on.
        on_record: called with each new record of the history.
        on_progress: called every now and then with the number of local steps so far and the mean of the last losses.
        allreduce: how a mean travels, for the count of messages: "ring" or "star".
        stepping: how gradients are computed: "stacked" rows (`torch.func.vmap`), one of the "rows" after the other, or
            "auto", stacked where the model allows it. The result is the same.
        block: how many workers step together before the next ones do; memory and speed only.

    Returns:
        The workers' models and the history of the run.

    Raises:
        ValueError: if an argument does not suit the others; the message names the value and the remedy.
        NonFiniteLossError: if a worker diverges and `on_nonfinite` is "stop".
    """
    for name, value, least in (("steps", steps, 0), ("accumulate", accumulate, 1), ("block", block, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}={value!r}: give a whole number, at least {least}")
    if evaluate_every is not None and (evaluate is None or evaluate_every < 1):
        raise ValueError(f"evaluate_every={evaluate_every}: give `evaluate` too, and at least 1 step")
    check_choice("order", order, Order)
    check_choice("buffers", buffers, Buffers)
    check_choice("optimizer_state", optimizer_state, OptimizerState)
    check_choice("on_nonfinite", on_nonfinite, OnNonFinite)
    check_choice("stepping", stepping, Stepping)

    metered = Metered(Stacked(workers), allreduce)
    replicas = Replicas(model, workers, start)
    check_elementwise(optimizer, replicas.x)
    devices = [replicas.x.device] if replicas.x.device.type != "cpu" else []
    with torch.random.fork_rng(devices):
        run = _Simulation(
            model,
            method,
            metered,
            replicas,
            _Feed(data, workers, batch_size, accumulate, seed, replicas.x.device),
            objective,
            optimizer,
            scheduler,
            overlap=overlap,
            mix_first=order == "mix-then-step",
            buffers=buffers,
            optimizer_state=optimizer_state,
            evaluate=evaluate,
            exclude=on_nonfinite == "exclude",
            on_record=on_record,
            on_progress=on_progress,
            stepping=stepping,
            block=block,
            seed=seed,
        )
        return run.run(steps, evaluate_every)


class _Feed:
    """The batches of every local step, as tensors on the model's device."""

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
        self._tensors = () if data is None else tuple(t.to(device) for t in data.train)
        self._batches, self.samples, self.sizes = None, None, np.zeros(workers, int)
        if data is not None:
            shards = data.shards(workers, seed)
            self._batches = Batches(shards, batch_size)
            self.samples, self.sizes = torch.tensor(shards.sizes, dtype=torch.float64), self._batches.sizes

    def __call__(self, rows: slice, step: int) -> list[Batch]:
        """What these workers, whose batches are of one size, take step number `step` (from 0) on."""
        if self._batches is None:
            return [None] * self.accumulate
        numbers = range(step * self.accumulate, (step + 1) * self.accumulate)
        indices = (torch.from_numpy(self._batches.indices(rows, number)) for number in numbers)
        return [tuple(t[i.to(t.device)] for t in self._tensors) for i in indices]


class _Simulation:
    """A run under way: the rows, the blocks that step them, the rounds between them."""

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        workers: Metered,
        replicas: Replicas,
        feed: _Feed,
        objective: Objective,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None,
        *,
        overlap: int,
        mix_first: bool,
        buffers: Buffers,
        optimizer_state: OptimizerState,
        evaluate: Evaluate | None,
        exclude: bool,
        on_record: Callable[[Record], None],
        on_progress: Callable[[int, float], None],
        stepping: Stepping,
        block: int,
        seed: int,
    ):
        self.method, self.workers, self.replicas, self.feed = method, workers, replicas, feed
        self.mix_first, self.exclude, self.seed = mix_first, exclude, seed
        self.evaluate, self.on_record, self.on_progress = evaluate, on_record, on_progress
        self.blocks = [Block(replicas, rows, optimizer, scheduler) for rows in _equal_batches(feed.sizes, block)]
        if buffers == "average":
            self.averaged_buffers = replicas.averaged_buffers()
        else:
            self.averaged_buffers = []
        self.average_moments = optimizer_state == "average"
        self.rounds = Rounds(
            method,
            workers,
            replicas.x,
            overlap=overlap,
            samples=feed.samples,
            window=RECENT,
            companions=self._companions,
            on_land=self._reset_optimizers if optimizer_state == "reset" else lambda: None,
        )
        self.stepping = stepping
        self.gradients: Gradients | None = None
        self.objective, self.model = objective, model

        self.history: list[Record] = []
        self.excluded: dict[int, int] = {}
        self.began = time.perf_counter()
        self.since_round = replicas.x.clone()
        self.good, self.good_count = self.since_round, 0
        self.losses_since_record = torch.zeros(workers.size, 0)

    @property
    def seconds(self) -> float:
        """Wall-clock time so far, evaluations left out."""
        return time.perf_counter() - self.began

    def run(self, steps: int, evaluate_every: int | None) -> Result:
        while self.rounds.count < steps:
            left = min(steps - self.rounds.count, STRETCH)
            if evaluate_every:
                left = min(left, evaluate_every - self.rounds.count % evaluate_every)
            self._advance(min(left, self.rounds.quiet))
            count = self.rounds.count
            if count == steps:
                self.rounds.close()
            self.on_progress(count, float(self._recent_losses().nanmean()))
            if self.evaluate and (count == steps or (evaluate_every and count % evaluate_every == 0)):
                self._record_evaluation()
        self._check_finite(torch.zeros(self.workers.size, 1))
        return self._result()

    def _advance(self, steps: int) -> None:
        """Local steps of every worker, and what happens between rows at the last of them."""
        split = self.mix_first and steps == self.rounds.quiet
        whole = steps - 1 if split else steps
        losses = torch.empty(self.workers.size, steps, dtype=torch.float64)
        for block in self.blocks:
            for step in range(whole):
                losses[block.rows, step] = self._gradients(block, step).double().cpu()
                block.update()
            if split:
                losses[block.rows, whole] = self._gradients(block, whole).double().cpu()
        self._meet(losses)
        if split:
            for block in self.blocks:
                block.update()

    def _gradients(self, block: Block, step: int) -> Float[Tensor, " rows"]:
        """Gradients for the step `step` steps from now."""
        step += self.rounds.count
        batches = self.feed(block.rows, step)
        # Drawn from (seed, step, block), the model's own randomness does not depend on when rounds or evaluations
        # interrupt the steps.
        torch.manual_seed(hash((self.seed, step, block.rows.start)) & (2**63 - 1))
        if self.gradients is None:
            self.gradients = choose_gradients(self.stepping, self.replicas, self.model, self.objective, batches[0])
            torch.manual_seed(hash((self.seed, step, block.rows.start)) & (2**63 - 1))
        return block.gradients(self.gradients, batches)

    def _meet(self, losses: Float[Tensor, "m n"]) -> None:
        """All rows have taken the same steps: rounds land and start."""
        self._check_finite(losses)
        self.losses_since_record = torch.cat([self.losses_since_record, losses], dim=1)
        starting = self.rounds.advance(losses.to(self.replicas.x))
        for part in starting:
            consensus, drift = self._distances()
            self.rounds.send(part, self.blocks[0].lr)
            self._record(consensus, drift, leader=_leader(self.rounds.states[part]))
        if starting:
            self.since_round.copy_(self.replicas.x)
            self.good = self.since_round
        else:
            self.good = self.replicas.x.clone()
        self.good_count = self.rounds.count

    def _check_finite(self, losses: Float[Tensor, "m n"]) -> None:
        """Stop at, or exclude, workers whose loss in these steps or whose model is not finite."""
        sizes = torch.linalg.vector_norm(self.replicas.x, ord=torch.inf, dim=1).cpu()
        bad = self.workers.present & ~(losses.isfinite().all(1) & sizes.isfinite())
        if not bad.any():
            return
        worker = int(bad.nonzero()[0])
        wrong = (~losses[worker].isfinite()).nonzero()
        step = self.rounds.count + (int(wrong[0]) + 1 if len(wrong) else losses.shape[1])
        if not self.exclude or bad.sum() == self.workers.present.sum():
            self.replicas.x.copy_(self.good)
            raise NonFiniteLossError(worker, step, self._result(), self.good_count)
        for excluded in bad.nonzero().flatten().tolist():
            self.workers.exclude(excluded)
            self.excluded[excluded] = step

    def _distances(self) -> tuple[float, np.ndarray]:
        x = self.replicas.x
        return consensus_distance(x, self.workers.present), distances(x, self.since_round).cpu().numpy()

    def _record_evaluation(self) -> None:
        assert self.evaluate is not None
        paused = time.perf_counter()
        best = _best(self._recent_losses(), self.workers)
        center = dict(self.evaluate(self.replicas.center(self.workers.present)))
        worker = dict(self.evaluate(copy.deepcopy(self.replicas.worker(best))))
        self.began += time.perf_counter() - paused
        self._record(*self._distances(), center=center, best=worker, best_worker=best)

    def _record(self, consensus: float, drift: np.ndarray, **more: object) -> None:
        losses = self.losses_since_record
        record = Record(
            step=self.rounds.count,
            round=sum(self.rounds.rounds),
            # Two parts of a method may start on one step: the second has seen no steps of its own.
            losses=(losses.mean(1) if losses.shape[1] else self._recent_losses()).numpy(),
            consensus=consensus,
            drift=drift,
            messages=self.workers.messages,
            bytes=self.workers.bytes,
            seconds=self.seconds,
            **more,  # type: ignore[arg-type]
        )
        self.losses_since_record = losses[:, :0]
        self.history.append(record)
        self.on_record(record)

    def _recent_losses(self) -> Float[Tensor, " m"]:
        return self.rounds.losses.double().mean(1).cpu()

    def _companions(self) -> list[Companion]:
        companions: list[Companion] = [[matrix] for matrix in self.averaged_buffers]
        if self.average_moments:
            companions += list(zip(*(block.moments() for block in self.blocks), strict=True))
        return companions

    def _reset_optimizers(self) -> None:
        for block in self.blocks:
            block.reset_optimizer()

    def _result(self) -> Result:
        return Result(
            rows=self.replicas.x.clone(),
            losses=self._recent_losses(),
            history=self.history,
            excluded=self.excluded,
            seconds=self.seconds,
            method=self.method,
            _replicas=self.replicas,
            _workers=self.workers,
        )


def _equal_batches(sizes: np.ndarray, block: int) -> list[slice]:
    """Consecutive workers whose batches are of one size, at most so many at a time."""
    result = []
    first = 0
    for _, run in groupby(sizes.tolist()):
        length = len(list(run))
        result += [slice(first + part.start, first + part.stop) for part in blocks(length, block)]
        first += length
    return result


def _best(losses: Float[Tensor, " m"], workers: Metered) -> int:
    return int(torch.where(workers.present & losses.isfinite(), losses, torch.inf).argmin())


def _leader(state: Mapping[str, Tensor]) -> int | tuple[int, ...] | None:
    if "leader" not in state:
        return None
    leaders = tuple(state["leader"].tolist())
    return leaders[0] if len(leaders) == 1 else leaders
