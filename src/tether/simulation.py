"""Training on the rows of X, all of them in this process or a part: what goes into a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tether.arrivals import Arrivals
from tether.checkpoint import Checkpoints
from tether.checks import check_choice, whole
from tether.clock import Clock
from tether.data import Dataset, Feed
from tether.engines import Buffers, Evaluate, Ingredients, OptimizerState, check_pace, equal_batches
from tether.gradients import Objective, Stepping, choose_way
from tether.history import Record
from tether.methods import Method
from tether.processes import shared_out
from tether.replicas import Replicas
from tether.result import Result
from tether.rounds import Order
from tether.stepping import OptimizerFactory, SchedulerFactory, check_dense, check_elementwise
from tether.traffic import AllReduceKind
from tether.triggers import Trigger
from tether.workers import Ranks, Stacked, Workers

OnNonFinite = Literal["stop", "exclude"]


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
    checkpoints: Checkpoints | None = None,
    checkpoint_every: int | None = None,
    on_nonfinite: OnNonFinite = "stop",
    on_record: Callable[[Record], None] = lambda record: None,
    on_progress: Callable[[int, float], None] = lambda count, loss: None,
    allreduce: AllReduceKind = "ring",
    clock: Clock | Arrivals | None = None,
    trigger: Trigger | None = None,
    stepping: Stepping = "auto",
    block: int | None = None,
    processes: int = 1,
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
        checkpoints: where to go on from, if a run was saved there, and where to save this one: at its end, and every
            `checkpoint_every` steps. What goes on is bit for bit the run that was not interrupted, whenever that
            was; its history begins where it goes on. A run of other numbers of workers or processes goes on from the
            mean of its workers.
        checkpoint_every: local steps between saves.
        on_nonfinite: when a worker's loss or model stops being finite, "stop" the run with its last good state or
            "exclude" the worker from then on.
        on_record: called with each new record of the history.
        on_progress: called every now and then with the number of local steps so far and the mean of the last losses, of
            the workers in this process.
        allreduce: how a mean travels, for the count of messages and for a clock: "ring" or "star".
        clock: how long steps and messages take on a cluster that need not exist. The history then says what the time
            would be there for each worker, and how long it has waited. With rounds that all meet in after as many
            steps, what is trained stays the same to the bit; otherwise it decides who does what when. Default for
            asynchronous methods: all workers are equally fast, and messages take no time. (`replay` gives a log.)
        trigger: what starts rounds, if not a period of local steps of each worker: `TotalSteps` of all together, or
            a `TimeWindow`. Workers then take as many steps as the clock leaves them time for, m x steps together.
        stepping: how gradients are computed: "stacked" rows (`torch.func.vmap`), the same "compiled" (twice as fast,
            but compiling takes up to a minute), one of the "rows" after the other, or "auto": by the model, the size of
            a step and how many there will be, never by the clock. The result is the same, but for rounding and for what
            the model draws at random.
        block: how many workers step together before the next ones do; likewise. Default: as many as cache has room for.
        processes: how many processes of this machine share the workers, each with one thread: as many as it has cores
            is fastest. The others are forks of this one, so nothing needs to be picklable and a script needs no
            `if __name__ == "__main__"`; `evaluate` and the `on_` functions are called in this one alone.

    Returns:
        The workers' models and the history of the run.

    Raises:
        ValueError: if an argument does not suit the others; the message names the value and the remedy.
        CheckpointError: if there are checkpoints that cannot be gone on from, or one cannot be written.
        NonFiniteLossError: if a worker diverges and `on_nonfinite` is "stop".
    """
    steps, seed = whole("steps", steps, 0), whole("seed", seed, 0)
    batch_size = None if batch_size is None else whole("batch_size", batch_size, 1)
    accumulate, processes = whole("accumulate", accumulate, 1), whole("processes", processes, 1)
    block = None if block is None else whole("block", block, 1)
    if evaluate_every is not None:
        evaluate_every = whole("evaluate_every", evaluate_every, 1)
        if evaluate is None:
            raise ValueError(f"evaluate_every={evaluate_every}: give `evaluate` too")
    if checkpoint_every is not None:
        checkpoint_every = whole("checkpoint_every", checkpoint_every, 1)
        if checkpoints is None:
            raise ValueError(f"checkpoint_every={checkpoint_every}: say where, checkpoints=tether.Checkpoints(folder)")
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
    if processes > 1 and not isinstance(reach, Stacked):
        raise ValueError(
            f"processes={processes} share simulated workers: give their number, not {type(reach).__name__}"
        )
    check_pace(method, trigger, optimizer_state, "their own" if isinstance(reach, Ranks) else clock, processes)
    if start is not None and len(start) != reach.size:
        raise ValueError(f"start has {len(start)} rows for {reach.size} workers: give one a worker")
    if clock is not None:
        clock.check(reach.size)
    mine = reach.rows
    replicas = Replicas(model, mine.stop - mine.start, None if start is None else start[mine])
    check_dense(model)
    check_elementwise(optimizer, replicas.x)
    feed = Feed(data, reach.size, batch_size, accumulate, seed, replicas.x.device)

    def train(reach: Workers, replicas: Replicas, first: bool = True) -> Result:
        """Train these rows; what is said of the run is said in the first of several processes."""
        mine = reach.rows
        batches, equal = None, equal_batches(feed.sizes[mine], 2)
        if data is not None:
            (batches, *_) = feed(range(mine.start + equal[0].start, mine.start + equal[0].stop), 0)
        way = choose_way(stepping, block, replicas, model, objective, batches, steps)
        run = Ingredients(
            method=method,
            workers=reach,
            replicas=replicas,
            feed=feed,
            way=way,
            optimizer=optimizer,
            scheduler=scheduler,
            steps=steps,
            seed=seed,
            overlap=overlap,
            buffers=buffers,
            optimizer_state=optimizer_state,
            allreduce=allreduce,
            clock=clock,
            trigger=trigger,
            same_start=start is None,
        )
        engine = run.engine(
            mix_first=order == "mix-then-step",
            exclude=on_nonfinite == "exclude",
            evaluate=evaluate if first or evaluate is None else lambda module: {},
            evaluate_every=evaluate_every,
            checkpoints=checkpoints,
            checkpoint_every=checkpoint_every,
            on_record=on_record if first else lambda record: None,
            on_progress=on_progress if first else lambda count, loss: None,
        )
        return engine.run(steps)

    devices = [replicas.x.device] if replicas.x.device.type != "cpu" else []
    with torch.random.fork_rng(devices):
        return train(reach, replicas) if processes == 1 else shared_out(processes, replicas, train)
