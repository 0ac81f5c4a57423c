"""Workers on the rows of X: local steps, rounds between them, a record of both; all in this process, or a part."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from tether.checks import check_choice, whole
from tether.data import Dataset, Feed
from tether.history import Record
from tether.methods import Method
from tether.replicas import Replicas, blocks, distances
from tether.result import RECENT, NonFiniteLossError, Result, best, best_worker, center, consensus_distance
from tether.rounds import Companion, Order, Rounds
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
from tether.workers import Message, Metered, Stacked, Workers
from tether.workers.meter import AllReduce

Buffers = Literal["average", "local"]
OptimizerState = Literal["local", "average", "reset"]
OnNonFinite = Literal["stop", "exclude"]
Evaluate = Callable[[nn.Module], Mapping[str, float]]

STRETCH = 100
"""Local steps taken at most before losses are looked at; rounds and evaluations make it fewer. Changes no result."""


def simulate(
    model: nn.Module,
    method: Method,
    data: Dataset | None = None,
    *,
    workers: int | Workers,
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
        workers: number of workers m, all in this process; or, in a process of several, where the rows of all are:
            `tether.Ranks(rows=r)`, when every process makes the same call.
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
        buffers: "average" takes the mean of real buffers (BatchNorm's statistics) over all workers whenever a round
            lands, whatever the method does with parameters; "local" leaves each worker its own.
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
            "auto", stacked where the model allows it. The result is the same, but for rounding and for what the model
            draws at random.
        block: how many workers step together before the next ones do; likewise.

    Returns:
        The workers' models and the history of the run.

    Raises:
        ValueError: if an argument does not suit the others; the message names the value and the remedy.
        NonFiniteLossError: if a worker diverges and `on_nonfinite` is "stop".
    """
    steps, seed = whole("steps", steps, 0), whole("seed", seed, 0)
    batch_size = None if batch_size is None else whole("batch_size", batch_size, 1)
    accumulate, block = whole("accumulate", accumulate, 1), whole("block", block, 1)
    if evaluate_every is not None:
        evaluate_every = whole("evaluate_every", evaluate_every, 1)
        if evaluate is None:
            raise ValueError(f"evaluate_every={evaluate_every}: give `evaluate` too")
    if not isinstance(method, Method):
        raise ValueError(f"method={method!r}: give a method with its parameters, such as tether.LocalSGD(period=10)")
    if not (data is None or isinstance(data, Dataset)):
        raise ValueError(
            f"data of type {type(data).__name__}: make it a tether.data.Dataset, from_samples or of tensors"
        )
    check_choice("order", order, Order)
    check_choice("buffers", buffers, Buffers)
    check_choice("optimizer_state", optimizer_state, OptimizerState)
    check_choice("on_nonfinite", on_nonfinite, OnNonFinite)
    check_choice("stepping", stepping, Stepping)

    reach = workers if isinstance(workers, Workers) else Stacked(whole("workers", workers, 1))
    metered = Metered(reach, allreduce)
    mine = reach.rows
    if start is not None and len(start) != reach.size:
        raise ValueError(f"start has {len(start)} rows for {reach.size} workers: give one a worker")
    replicas = Replicas(model, mine.stop - mine.start, None if start is None else start[mine])
    check_elementwise(optimizer, replicas.x)
    feed = Feed(data, reach.size, batch_size, accumulate, seed, replicas.x.device)
    sizes = feed.sizes[mine]
    stepping_blocks = [Block(replicas, rows, optimizer, scheduler) for rows in _equal_batches(sizes, block)]

    def companions() -> dict[str, Companion]:
        averaged: dict[str, Companion] = {}
        if buffers == "average":
            averaged |= {f"buffer {name}": Companion([matrix]) for name, matrix in replicas.averaged_buffers().items()}
        if optimizer_state == "average":
            moments = [block.moments() for block in stepping_blocks]
            averaged |= {f"optimizer {name}": Companion([each[name] for each in moments]) for name in moments[0]}
        return averaged

    def on_land() -> None:
        if optimizer_state == "reset":
            for block in stepping_blocks:
                block.reset_optimizer()

    rounds = Rounds(
        method,
        metered,
        replicas.x,
        overlap=overlap,
        samples=None if feed.samples is None else feed.samples[mine],
        window=RECENT,
        companions=companions,
        on_land=on_land,
    )
    run = _Run(
        method=method,
        workers=reach,
        metered=metered,
        replicas=replicas,
        feed=feed,
        blocks=stepping_blocks,
        rounds=rounds,
        choose=lambda batch: choose_gradients(stepping, replicas, model, objective, batch),
        mix_first=order == "mix-then-step",
        exclude=on_nonfinite == "exclude",
        evaluate=evaluate,
        on_record=on_record,
        on_progress=on_progress,
        seed=seed,
    )
    devices = [replicas.x.device] if replicas.x.device.type != "cpu" else []
    with torch.random.fork_rng(devices):
        return run.run(steps, evaluate_every)


@dataclass
class _Run:
    """A run under way: the rows, the blocks that step them, the rounds between them."""

    method: Method
    workers: Workers
    metered: Metered
    replicas: Replicas
    feed: Feed
    blocks: list[Block]
    rounds: Rounds
    choose: Callable[[Batch], Gradients]
    mix_first: bool
    exclude: bool
    evaluate: Evaluate | None
    on_record: Callable[[Record], None]
    on_progress: Callable[[int, float], None]
    seed: int

    def __post_init__(self) -> None:
        self.gradients: Gradients | None = None
        self.history: list[Record] = []
        self.excluded: dict[int, int] = {}
        self.began = time.perf_counter()
        self.since_round = self.replicas.x.clone()
        self._remember(self.since_round)
        self.losses_since_record = torch.zeros(len(self.replicas.x), 0)

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
        self._check_finite(torch.zeros(len(self.replicas.x), 1))
        return self._result()

    def _advance(self, steps: int) -> None:
        """Local steps of every worker, and what happens between rows at the last of them."""
        split = self.mix_first and steps == self.rounds.quiet
        whole = steps - 1 if split else steps
        losses = torch.empty(len(self.replicas.x), steps, dtype=torch.float64)
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
            self._remember(self.replicas.x.clone())

    def _gradients(self, block: Block, step: int) -> Float[Tensor, " rows"]:
        """Gradients for the step `step` steps from now."""
        step += self.rounds.count
        first = self.workers.rows.start
        workers = slice(first + block.rows.start, first + block.rows.stop)
        batches = self.feed(workers, step)
        # Drawn from (seed, step, block), the model's own randomness does not depend on when rounds or evaluations
        # interrupt the steps.
        if self.gradients is None:
            self.gradients = self.choose(batches[0])
        torch.manual_seed(hash((self.seed, step, workers.start)) & (2**63 - 1))
        return block.gradients(self.gradients, batches)

    def _meet(self, losses: Float[Tensor, "r n"]) -> None:
        """All rows have taken the same steps: rounds land and start."""
        self._check_finite(losses)
        self.losses_since_record = torch.cat([self.losses_since_record, losses], dim=1)
        starting = self.rounds.advance(losses.to(self.replicas.x))
        for part in starting:
            consensus, drift = self._distances()
            message = self.rounds.send(part, self.blocks[0].lr)
            self._record(consensus, drift, leader=_leader(message))
        if starting:
            self.since_round.copy_(self.replicas.x)
        self._remember(self.since_round if starting else self.replicas.x.clone())

    def _remember(self, rows: Float[Tensor, "r d"]) -> None:
        """Keep the state as it is now, `rows` of X, as the last that is known to be good."""
        self.good = rows, {name: buffer.clone() for name, buffer in self.replicas.buffers.items()}, self.rounds.count

    def _check_finite(self, losses: Float[Tensor, "r n"]) -> None:
        """Stop at, or exclude, workers whose loss in these steps or whose model is not finite."""
        sums = self.replicas.x.sum(1).cpu()
        first_bad = torch.zeros(len(sums), dtype=torch.float64)
        for row in (~(losses.isfinite().all(1) & sums.isfinite())).nonzero().flatten().tolist():
            wrong = (~losses[row].isfinite()).nonzero()
            first_bad[row] = self.rounds.count + (int(wrong[0]) + 1 if len(wrong) else losses.shape[1])
        everyone = self.workers.gather(first_bad.to(self.replicas.x.device)).cpu() * self.workers.present
        steps = {worker: int(everyone[worker]) for worker in everyone.nonzero().flatten().tolist()}
        if not steps:
            return
        if not self.exclude or len(steps) == self.workers.present.sum():
            rows, buffers, count = self.good
            self.replicas.x.copy_(rows)
            for name, buffer in buffers.items():
                self.replicas.buffers[name].copy_(buffer)
            worker = min(steps, key=lambda worker: steps[worker])
            raise NonFiniteLossError(worker, steps[worker], self._result(), count)
        for worker in steps:
            self.workers.exclude(worker)
        self.excluded |= steps

    def _distances(self, everywhere: bool = False) -> tuple[float, np.ndarray]:
        """Consensus distance, where it costs no message or is asked for `everywhere`, and drift."""
        x = self.replicas.x
        measured = everywhere or len(x) == self.workers.size
        drift = self.workers.gather(distances(x, self.since_round))
        return consensus_distance(x, self.workers) if measured else np.nan, drift.cpu().numpy()

    def _record_evaluation(self) -> None:
        assert self.evaluate is not None
        paused = time.perf_counter()
        losses = self._recent_losses()
        measures: dict[str, Any] = {
            "center": dict(self.evaluate(center(self.replicas, self.workers))),
            "best": dict(self.evaluate(best(self.replicas, self.workers, losses))),
            "best_worker": best_worker(losses, self.workers),
        }
        distances = self._distances(everywhere=True)
        self.began += time.perf_counter() - paused
        self._record(*distances, **measures)

    def _record(self, consensus: float, drift: np.ndarray, **more: Any) -> None:
        losses = self.losses_since_record
        record = Record(
            step=self.rounds.count,
            round=sum(self.rounds.rounds),
            # Two parts of a method may start on one step: the second has seen no steps of its own.
            losses=(self._gather(losses) if losses.shape[1] else self._recent_losses()).numpy(),
            consensus=consensus,
            drift=drift,
            messages=self.metered.messages,
            bytes=self.metered.bytes,
            seconds=self.seconds,
            **more,
        )
        self.losses_since_record = losses[:, :0]
        self.history.append(record)
        self.on_record(record)

    def _recent_losses(self) -> Float[Tensor, " m"]:
        return self._gather(self.rounds.losses[:, -RECENT:])

    def _gather(self, losses: Float[Tensor, "r n"]) -> Float[Tensor, " m"]:
        """The mean of each worker's losses, known to every process."""
        return self.workers.gather(losses.double().mean(1).to(self.replicas.x.device)).cpu()

    def _result(self) -> Result:
        return Result(
            rows=self.replicas.x.clone(),
            losses=self._recent_losses(),
            history=self.history,
            excluded=self.excluded,
            seconds=self.seconds,
            method=self.method,
            messages=self.metered.messages,
            bytes=self.metered.bytes,
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


def _leader(message: Message) -> int | tuple[int, ...] | None:
    """Who leads, if that is what a round sends."""
    if not isinstance(message, dict) or "worker" not in message:
        return None
    worker = message["worker"]
    leaders = tuple((worker if isinstance(worker, Tensor) else worker.wait()).tolist())
    return leaders[0] if len(leaders) == 1 else leaders
