"""Two real processes that leave checkpoints, whose distances diagnostics read."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import tether
from tether.data import digits
from tether.models import cross_entropy


def simulated_rows():
    """Four workers on two processes, stopped three local steps after a round."""
    torch.manual_seed(0)
    result = tether.simulate(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double(),
        tether.EASGD(period=5),
        digits().to(torch.float64).partitioned("classes", classes=3),
        workers=tether.Ranks(rows=2),
        objective=cross_entropy,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        steps=8,
        checkpoints=tether.Checkpoints(Path(os.environ["TETHER_TEST_FOLDER"]) / "simulated"),
    )
    return {"rows": result.rows, "consensus": result.consensus}


def attached_row():
    torch.manual_seed(dist.get_rank())
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    model[2].bias.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    folder = Path(os.environ["TETHER_TEST_FOLDER"]) / "attached"
    rounds = tether.attach(model, optimizer, tether.LocalSGD(5), checkpoints=tether.Checkpoints(folder))
    for _ in range(7):
        optimizer.zero_grad()
        model(torch.randn(8, 6, dtype=torch.float64)).square().mean().backward()
        optimizer.step()
    rounds.save()
    trainable = [p for p in model.parameters() if p.requires_grad]
    row = nn.utils.parameters_to_vector(trainable).detach().clone()
    rounds.close()
    return row


SCENARIOS = {"simulated": simulated_rows, "attached": attached_row}
