"""What `tether.attach` costs: at a local step without a round, and at a round.

    torchrun --nproc-per-node 1 benchmarks/attach.py step
    torchrun --nproc-per-node 4 benchmarks/attach.py round
    sudo .venv/bin/python benchmarks/cluster_script.py --mbit 100 benchmarks/attach.py round

Bare and attached take turns, in random order, so that whatever else the machine does meets both. A difference or ratio
is the median over pairs, with an interval that holds the true median in 95 of 100 runs, whatever the distribution.
"""

from __future__ import annotations

import copy
import math
import os
import random
import statistics
from collections.abc import Callable, Sequence
from datetime import timedelta
from time import perf_counter
from typing import Annotated

import torch
import torch.distributed as dist
import typer
from torch import nn

import tether

NEVER = 2**31
"""A period that no run lives to see."""

PIXELS, CLASSES = 784, 10


def median(values: Sequence[float]) -> tuple[float, float, float]:
    """The median, and between which two values the true one lies with 95 % (by ranks, from the binomial's normal)."""
    ordered = sorted(values)
    reach = 0.98 * math.sqrt(len(ordered))
    low, high = math.floor(len(ordered) / 2 - reach), math.ceil(len(ordered) / 2 + reach)
    return statistics.median(ordered), ordered[max(low, 0)], ordered[min(high, len(ordered) - 1)]


def in_turns(bare: Callable[[], object], attached: Callable[[], object], pairs: int) -> tuple[list[float], list[float]]:
    """Seconds of each, over so many pairs, of which the slowest process counts. The first tenth is for warming up."""
    warm_up = max(1, pairs // 10)
    order = random.Random(0)
    seconds: dict[Callable[[], object], list[float]] = {bare: [], attached: []}
    for _ in range(warm_up + pairs):
        for action in order.sample([bare, attached], 2):
            dist.barrier()
            start = perf_counter()
            action()
            seconds[action].append(perf_counter() - start)
    slowest = torch.tensor([seconds[bare][warm_up:], seconds[attached][warm_up:]], dtype=torch.float64)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    first, second = slowest.tolist()
    return first, second


def step(pairs: int, model: nn.Module, batch: int) -> str:
    """A local step of an attached model against one of the same model."""
    images, labels = torch.rand(batch, PIXELS), torch.randint(CLASSES, (batch,))

    def stepper(model: nn.Module) -> tuple[torch.optim.Optimizer, Callable[[], None]]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

        def action() -> None:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()

        return optimizer, action

    _, bare = stepper(copy.deepcopy(model))
    optimizer, attached = stepper(model)
    rounds = tether.attach(model, optimizer, tether.LocalSGD(NEVER))
    alone, together = in_turns(bare, attached, pairs)
    rounds.close()

    usual = statistics.median(alone)
    difference, low, high = median([b - a for a, b in zip(alone, together, strict=True)])
    return (
        f"a local step (batch {batch}) takes {usual * 1e3:.2f} ms; attached {difference * 1e6:+.0f} µs, "
        f"{difference / usual:+.2%} ({low / usual:+.2%} to {high / usual:+.2%})"
    )


def round_(pairs: int, model: nn.Module) -> str:
    """A round of local SGD against an all-reduce of as many bytes. There are no gradients, so nothing else is timed."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    rounds = tether.attach(model, optimizer, tether.LocalSGD(1))
    message = torch.zeros(sum(p.numel() for p in model.parameters()))
    bare, attached = in_turns(lambda: dist.all_reduce(message), optimizer.step, pairs)
    rounds.close()

    ratio, low, high = median([b / a for a, b in zip(bare, attached, strict=True)])
    return (
        f"an all-reduce takes {statistics.median(bare) * 1e3:.2f} ms, a round {statistics.median(attached) * 1e3:.2f}; "
        f"{ratio:.3f} times as long ({low:.3f} to {high:.3f})"
    )


def main(
    what: Annotated[str, typer.Argument(help="step or round")],
    pairs: Annotated[int, typer.Option(min=20, help="How often each is timed.")] = 200,
    hidden: Annotated[str, typer.Option(help="Widths of hidden layers. For d = 10 million: 4096,1664.")] = "1024,256",
    batch: Annotated[int, typer.Option(min=1, help="Samples a local step.")] = 64,
) -> None:
    """Print what attaching costs."""
    dist.init_process_group("gloo", timeout=timedelta(minutes=5))
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    model = tether.models.mlp((PIXELS,), CLASSES, [int(width) for width in hidden.split(",")])
    parameters = sum(p.numel() for p in model.parameters())
    if what not in ("step", "round"):
        raise typer.BadParameter(f"{what!r}: choose step or round")
    said = step(pairs, model, batch) if what == "step" else round_(pairs, model)
    if dist.get_rank() == 0:
        print(f"d = {parameters:,}, {dist.get_world_size()} processes, {pairs} pairs: {said}")
    dist.destroy_process_group()


if __name__ == "__main__":
    typer.run(main)
