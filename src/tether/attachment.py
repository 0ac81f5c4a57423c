"""The user's own training loop: two lines in it, one worker a process."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tether.arrivals import ArrivalLog
from tether.attached import Attached, OptimizerState
from tether.attached_meetings import AttachedByMeetings
from tether.checkpoint import Checkpoints
from tether.checks import check_choice
from tether.methods import CenterMethod, Method
from tether.replicas import Replicas
from tether.rounds import Order
from tether.triggers import OwnPace, Trigger
from tether.workers import Metered, MeteredCenter, Ranks
from tether.workers.paces import pace_of

log = logging.getLogger(__name__)

Buffers = Literal["average", "local"]


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    method: Method,
    *,
    overlap: int = 0,
    order: Order = "step-then-mix",
    group: dist.ProcessGroup | None = None,
    broadcast: bool = True,
    buffers: Buffers = "average",
    optimizer_state: OptimizerState = "local",
    samples: int = 1,
    trigger: Trigger | None = None,
    arrivals: str | Path | None = None,
    checkpoints: Checkpoints | None = None,
    timeout: float = 30.0,
) -> Attached:
    """Let a model take part in rounds with the same model on other processes; the training loop stays as it is.

    From now on `optimizer.step()` counts a local step, and the steps at which a round is due talk to the other
    processes. What the optimizer does not do is not counted: a batch whose gradients are only accumulated, or a step
    that a GradScaler skips. Every process calls `attach`, and `close` when its data has ended.

    Args:
        model: the model; its parameters get new memory, side by side. Moving it to another device or dtype must come
            before. It may be wrapped in DistributedDataParallel over another group, or compiled.
        optimizer: any `torch.optim` optimizer of all its trainable parameters.
        method: what a round between workers does, and how often.
        overlap: local steps that a round's message may travel while training goes on; at most the period.
        order: whether a round comes after the optimizer's update, "step-then-mix", or between gradient and update,
            "mix-then-step".
        group: the processes that take part, one worker each. Default: all.
        broadcast: start everywhere from the first process's parameters, frozen ones too, and buffers.
        buffers: "average" takes the mean of real buffers (BatchNorm's statistics) whenever a round lands, "local"
            leaves each worker its own. With an asynchronous method workers keep their own, and the center has the mean
            of those that came with each worker's last message.
        optimizer_state: "local" leaves moments where they are, "average" takes their mean whenever a round lands,
            "reset" clears the state then. LBFGS has nothing that could be averaged.
        samples: how many samples this worker holds, for methods that weigh by them.
        trigger: what rounds are due of, in place of each worker's local steps: `TotalSteps()` or `TimeWindow(seconds)`.
        arrivals: a file to which the first process writes what happened in which order; see `tether.arrivals`.
        checkpoints: where `save` saves to and `load` loads from.
        timeout: seconds without a sign of life after which another process is taken for lost. One that is merely slow
            gives them.

    Returns:
        A handle to report losses to, to evaluate the mean model with, to save, and to close.

    Raises:
        WorkerLostError: here or later, if a process has ended or cannot be reached any more.
        ValueError: if there is no process group, the model is not the same everywhere, the optimizer is not the
            model's, or the method does not suit the number of workers or what else is asked for.
    """
    check_choice("order", order, Order)
    check_choice("buffers", buffers, Buffers)
    check_choice("optimizer_state", optimizer_state, OptimizerState)
    if isinstance(method, CenterMethod):
        _check_asynchronous(method, trigger, optimizer_state)
    workers = Ranks(group, timeout=timeout)
    _warn_of_stale_store(workers)
    _check_optimizer(model, optimizer, order, optimizer_state)
    replicas = Replicas(model, 1)
    _check_same_everywhere(workers, replicas)
    replicas.bind(model, 0)
    if broadcast:
        source = dist.get_global_rank(workers.group, 0)
        frozen = [p.data for p in model.parameters() if not p.requires_grad]
        with workers.watch.explaining():
            for tensor in (replicas.x, *replicas.buffers.values(), *frozen):
                dist.broadcast(tensor, source, group=workers.group)
    log = (
        ArrivalLog(arrivals, workers.size, type(method).__name__, overlap) if arrivals and not workers.process else None
    )
    options: dict[str, Any] = {
        "overlap": overlap,
        "order": order,
        "average_buffers": buffers == "average",
        "optimizer_state": optimizer_state,
        "samples": samples,
        "checkpoints": checkpoints,
        "log": log,
    }
    if isinstance(method, CenterMethod):
        mean = replicas.x.clone() if broadcast else workers.mean(replicas.x).wait()
        return _attach_to_center(model, optimizer, method, workers, replicas, mean, options)
    pace = pace_of(trigger, workers, replicas.x.device)
    return AttachedByMeetings(model, optimizer, method, workers, Metered(workers), replicas, pace=pace, **options)


def _attach_to_center(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    method: CenterMethod,
    workers: Ranks,
    replicas: Replicas,
    mean: Tensor,
    options: dict[str, Any],
) -> Attached:
    from tether.attached_center import AttachedToCenter
    from tether.workers.center_client import connect

    log = options["log"]
    client = connect(
        workers,
        method,
        mean,
        steps=lambda: attached.count,
        beside=replicas.averaged_buffers if options["average_buffers"] else dict,
        on_visit=log.visit if log is not None else lambda visit: None,
    )
    attached = AttachedToCenter(
        client, model, optimizer, method, workers, MeteredCenter(client), replicas, pace=OwnPace(), **options
    )
    return attached


def _check_asynchronous(method: CenterMethod, trigger: Trigger | None, optimizer_state: OptimizerState) -> None:
    name = type(method).__name__
    if trigger is not None:
        raise ValueError(
            f"trigger={trigger}: with {name} there are no rounds of all workers that could be due; each exchanges with "
            f"the center by itself, every period={method.period} local steps of its own. Leave the trigger out"
        )
    if optimizer_state == "average":
        raise ValueError(
            f"optimizer_state='average': with {name} workers do not meet, so there is no mean of their moments; take "
            "'local' or 'reset'"
        )


def _warn_of_stale_store(workers: Ranks) -> None:
    """Restarted processes find the addresses of the ones before in a store that outlives them, and may call those."""
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0))
    if kept and restarts and workers.process == 0 and dist.get_backend(workers.group) == "gloo":
        log.warning(
            "torchrun keeps one store for all %d restarts, in which new processes may find the addresses of old ones "
            "and fail to connect: set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for it",
            restarts,
        )


def _check_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, order: Order, optimizer_state: OptimizerState
) -> None:
    if isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        raise ValueError(
            f"{type(optimizer).__name__} wraps an optimizer; give that one, which takes the steps: optimizer.optimizer"
        )
    if isinstance(optimizer, torch.optim.LBFGS) and order == "mix-then-step":
        raise ValueError(
            "LBFGS asks for gradients many times a step, so nothing can be mixed between gradients and update: "
            "take order='step-then-mix'"
        )
    if isinstance(optimizer, torch.optim.LBFGS) and optimizer_state == "average":
        raise ValueError(
            "LBFGS keeps pairs of steps and changes of the gradient, whose mean over workers is of no function: take "
            "optimizer_state='local' or 'reset'"
        )
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    trainable = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    idle = [name for i, name in trainable.items() if i not in stepped]
    if idle:
        raise ValueError(
            f"the optimizer does not hold {idle[0]!r} and {len(idle) - 1} other trainable parameters of the model: "
            "freeze them with requires_grad_(False), or give them to the optimizer"
        )
    if len(stepped - set(trainable)):
        raise ValueError("the optimizer holds parameters that are not the model's, or are frozen; give each its own")


def _check_same_everywhere(workers: Ranks, replicas: Replicas) -> None:
    counts = workers.gather(torch.full((1,), float(replicas.parameters), device=replicas.x.device).double())
    odd = (counts != counts[0]).nonzero().flatten().tolist()
    if odd:
        raise ValueError(
            f"the model has {int(counts[0])} trainable parameters on process 0 and {int(counts[odd[0]])} on process "
            f"{odd[0]}: it must be the same everywhere"
        )
