"""A process that dies while a row is handed on: the others are told, and do not wait for ever."""

import multiprocessing
import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import tether

pytestmark = pytest.mark.xdist_group("real")

PROCESSES, LEADER, LOST = 4, 1, 2
PATIENCE = 60.0


def follow_the_leader(rank, folder):
    patience = timedelta(seconds=10 * PATIENCE)
    dist.init_process_group("gloo", f"file://{folder}/store", patience, rank=rank, world_size=PROCESSES)
    workers = tether.Ranks()
    losses = torch.tensor([float(rank != LEADER)])
    if rank == LOST:
        workers.gather(losses)  # all that the others need of it before the leader's row is on its way
        time.sleep(0.5)
        os._exit(9)
    message = workers.best(torch.zeros(1, 1_000_000), losses)["row"]
    try:
        message.wait()
    except Exception as error:
        Path(folder, str(rank)).write_text(str(error))


def test_nobody_waits_for_the_dead(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=follow_the_leader, args=(rank, tmp_path)) for rank in range(PROCESSES)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + PATIENCE
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    hung = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for process in processes:
        process.kill()
    assert not hung
    assert {path.name for path in tmp_path.glob("[0-9]")} == {str(rank) for rank in range(PROCESSES) if rank != LOST}
