"""Processes that are killed while they train: a user's loop that saves, and whoever starts it again after a crash."""

import logging
import multiprocessing
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import tether
from real import free_port

PERIOD, OVERLAP, SAVE_EVERY, TIMEOUT = 5, 3, 7, 6.0

# Started once with PyTorch in it, and what the first optimizer imports, and forked for every process: these tests start
# a hundred of them.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["torch", "torch._dynamo", "tether.attachment", "tether.attached_center", "crash"])


def worker(train, rank, size, port, folder, *rest):
    """Train by a function; leave the parameters, or the process that was missed, in the folder."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(size)}
    torch.set_num_threads(1)
    logging.basicConfig(filename=folder / f"log-{rank}.txt", level=logging.WARNING)
    try:
        train(rank, folder, *rest)
    except tether.WorkerLostError as error:
        (folder / f"lost-{rank}.txt").write_text(str(error.process))
        raise SystemExit(3) from error


def train(rank, folder, steps, method, pause, in_flight, taken):
    """An ordinary loop."""
    dist.init_process_group("gloo")
    torch.manual_seed(rank)
    model = nn.Sequential(nn.Linear(20, 300), nn.BatchNorm1d(300), nn.ReLU(), nn.Dropout(0.2), nn.Linear(300, 300))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)
    rounds = tether.attach(
        model,
        optimizer,
        method,
        overlap=OVERLAP,
        checkpoints=tether.Checkpoints(folder / "checkpoints"),
        timeout=TIMEOUT,
    )
    values = rounds.load()
    (folder / f"loaded-{rank}-{values.get('batch', 0)}").touch()
    if values:
        scheduler.load_state_dict(values["scheduler"])
    for batch in range(values.get("batch", 0), steps(rank) if callable(steps) else steps):
        # Random numbers that the loop draws are part of what is resumed.
        x, y = torch.randn(16, 20), torch.randn(16, 300)
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        rounds.report(loss)
        optimizer.step()
        scheduler.step()
        taken[rank] = batch + 1
        in_flight[rank] = rounds.count >= PERIOD and rounds.count % PERIOD < OVERLAP
        if (batch + 1) % SAVE_EVERY == 0:
            rounds.save({"batch": batch + 1, "scheduler": scheduler.state_dict()})
        time.sleep(pause)
    rounds.close()
    vector = nn.utils.parameters_to_vector(model.parameters()).detach()
    sent = rounds.workers.messages, rounds.workers.bytes
    torch.save({"row": vector, "loss": loss.detach(), "count": rounds.count, "sent": sent}, folder / f"{rank}.pt")
    dist.destroy_process_group()


class Run:
    """Processes that train together."""

    def __init__(self, size, folder, steps, method, pause=0.0, train=train):
        for file in folder.glob("lost-*.txt"):
            file.unlink()
        self.folder = folder
        self.began = time.time()
        self.in_flight = processes.Array("b", size, lock=False)
        self.steps = processes.Array("i", size, lock=False)
        port = free_port()
        self.processes = [
            processes.Process(
                target=worker, args=(train, rank, size, port, folder, steps, method, pause, self.in_flight, self.steps)
            )
            for rank in range(size)
        ]
        for process in self.processes:
            process.start()

    def wait(self, timeout=120.0):
        """By process, how it ended."""
        end = time.monotonic() + timeout
        try:
            for process in self.processes:
                process.join(max(0.0, end - time.monotonic()))
            return [process.exitcode for process in self.processes]
        finally:
            for process in self.processes:
                if process.is_alive():
                    process.kill()

    def alive(self):
        return all(process.is_alive() for process in self.processes)

    def send(self, rank, number=signal.SIGKILL):
        os.kill(self.processes[rank].pid, number)

    def until(self, moment, timeout=60.0):
        """Wait for a moment; whether it came before a process ended."""
        end = time.monotonic() + timeout
        while time.monotonic() < end and self.alive():
            if moment():
                return True
            time.sleep(0.0005)
        return False

    def lost(self):
        """By process, the number of the process that it has missed."""
        return {int(file.stem.removeprefix("lost-")): file.read_text() for file in self.folder.glob("lost-*.txt")}

    def results(self):
        return [torch.load(self.folder / f"{rank}.pt", weights_only=True) for rank in range(len(self.processes))]

    def writing(self, rank):
        """Whether a process is in the middle of a checkpoint; those killed before have left theirs there."""
        for file in Path(self.folder, "checkpoints").glob(f"*/rows-{rank}-*.unfinished"):
            with suppress(FileNotFoundError):  # it is finished
                if file.stat().st_mtime > self.began:
                    return True
        return False


def loads(folder):
    """The batches after which runs in a folder went on."""
    return [int(file.name.split("-")[-1]) for file in folder.glob("loaded-0-*")]


def train_simulated(folder=None):
    """A simulation, saved every 10 steps if there is a folder."""
    data = tether.data.digits()
    torch.manual_seed(0)
    return tether.simulate(
        tether.models.mlp((1, 8, 8), 10, [32]),
        tether.EASGD(PERIOD),
        data,
        workers=8,
        objective=tether.models.cross_entropy,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.01),
        steps=600,
        batch_size=8,
        overlap=OVERLAP,
        checkpoints=tether.Checkpoints(folder) if folder else None,
        checkpoint_every=10 if folder else None,
    )


def main(folder, kind="simulated"):
    folder = Path(folder)
    if kind == "simulated":
        train_simulated(folder)
        return
    rank, attempt = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]
    (folder / f"pid-{attempt}-{rank}.txt").write_text(str(os.getpid()))
    train(int(rank), folder, 250, tether.EASGD(PERIOD), 0.01, {}, {})


if __name__ == "__main__":
    main(*sys.argv[1:])
