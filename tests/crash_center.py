"""Workers of a center that are killed while they train, and the one that has it."""

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import tether

D, PERIOD, LR, TIMEOUT = 100_000, 3, 0.1, 3.0
METHOD = tether.Downpour(PERIOD)


def bowl(rank):
    """Curvatures and minimum of a worker's quadratic."""
    draw = torch.Generator().manual_seed(rank)
    return torch.rand(D, generator=draw, dtype=torch.float64), torch.randn(D, generator=draw, dtype=torch.float64)


def local_step(rank):
    a, b = bowl(rank)

    def step(x):
        x[0].sub_(LR * (a * (x[0] - b)))

    return step


class Bowl(nn.Module):
    def __init__(self):
        super().__init__()
        self.x = nn.Parameter(torch.zeros(D, dtype=torch.float64))


class Descent(torch.optim.Optimizer):
    """x <- x - lr g, in just these operations."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": LR})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["lr"] * p.grad)


def train(rank, folder, steps, method, pause, in_flight, taken):
    """A loop on this process's own quadratic, that saves now and then."""
    dist.init_process_group("gloo")
    a, b = bowl(rank)
    model = Bowl()
    optimizer = Descent(model.parameters())
    rounds = tether.attach(
        model,
        optimizer,
        method,
        arrivals=folder / "arrivals.jsonl",
        checkpoints=tether.Checkpoints(folder / "checkpoints"),
        timeout=TIMEOUT,
    )
    first = rounds.load().get("batch", 0)
    (folder / f"loaded-{rank}-{first}").touch()
    for batch in range(first, steps):
        model.x.grad = a * (model.x.detach() - b)
        in_flight[rank] = rounds.count % PERIOD == PERIOD - 1
        optimizer.step()
        in_flight[rank] = False
        taken[rank] = batch + 1
        if (batch + 1) % 8 == 0:
            rounds.save({"batch": batch + 1})
        time.sleep(pause * (1 + rank))
    rounds.close()
    torch.save({"row": model.x.detach().clone(), "count": rounds.count}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def main(folder):
    """Under torchrun."""
    folder = Path(folder)
    rank, attempt = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]
    (folder / f"pid-{attempt}-{rank}.txt").write_text(str(os.getpid()))
    torch.set_num_threads(1)
    train(int(rank), folder, 120, METHOD, 0.005, {}, {})


if __name__ == "__main__":
    main(*sys.argv[1:])
