"""What each process of `tether.papers.real` does: train one worker, and write down what that took."""

from __future__ import annotations

import json
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tether.attachment import attach
from tether.config import Config, validate
from tether.data import Feed
from tether.papers.real import STEP_SECONDS
from tether.run import ingredients, load_data, load_method
from tether.run_folder import write_json


def train(config: Config, worker: int) -> dict[str, Any]:
    """Train this process's worker, in a loop such as users write. Returns what all have measured."""
    given = ingredients(config, load_data(config))
    model, objective = given["model"], given["objective"]
    optimizer = given["optimizer"](model.parameters())
    scheduler = given["scheduler"] and given["scheduler"](optimizer)
    feed = Feed(given["data"], config.workers, given["batch_size"], 1, config.seed, torch.device("cpu"))
    rounds = attach(model, optimizer, load_method(config, config.method), overlap=config.overlap)
    losses, seconds = [], []
    dist.barrier()
    began = time.monotonic()
    for step in range(config.steps):
        begun = time.monotonic()
        (batch,) = feed([worker], step)
        optimizer.zero_grad()
        loss = objective(model, tuple(each[0] for each in batch or ()))
        loss.backward()
        time.sleep(max(0.0, begun + STEP_SECONDS - time.monotonic()))
        optimizer.step()
        if scheduler:
            scheduler.step()
        losses.append(loss.item())
        seconds.append(time.monotonic() - began)
    rounds.close()
    mine = torch.tensor([seconds, losses], dtype=torch.float64)
    all_ = [torch.empty_like(mine) for _ in range(config.workers)]
    dist.all_gather(all_, mine)
    times, found = torch.stack(all_).unbind(1)
    return {"seconds": times.amax(0).tolist(), "losses": found.T.tolist()}


def main(path: str) -> None:
    """What each process does with a job: its runs one after the other; the first process writes what they took."""
    job = json.loads(Path(path).read_text())
    dist.init_process_group("gloo", timeout=timedelta(minutes=10))
    for file, asked in job.items():
        found = train(validate(Config, asked["config"], file), dist.get_rank())
        if dist.get_rank() == 0:
            write_json(Path(file), asked | found)
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
