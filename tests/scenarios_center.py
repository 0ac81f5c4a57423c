"""What four processes do with a center, or with rounds that a trigger starts; each at a speed of its own."""

import socket as sockets
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
import zmq
from torch import nn

import tether
from problems import Point, Quadratics, quadratic
from scenarios_four import refusal

M, D, PERIOD, STEPS, LR = 4, 5, 4, 42, 0.05
PAUSES = (0.001, 0.002, 0.004, 0.01)
"""Seconds that a local step of each process takes."""

MOMENTUM = {"momentum": 0.9, "nesterov": True}

METHODS = {
    "downpour": (tether.Downpour(PERIOD), {}),
    "easgd": (tether.AsynchronousEASGD(PERIOD, alpha=0.3), {}),
    "eamsgd": (tether.AsynchronousEASGD(PERIOD), MOMENTUM),
    "diloco": (
        tether.AsynchronousDiLoCo(PERIOD, lr=0.4, momentum=0.5, staleness_exponent=0.5, staleness_bound=5),
        {},
    ),
}


def local_step(rank, optimizer):
    """A worker's local step by itself, in place of x `[1, d]`, for who does a run again from its log."""
    A, b = problem(rank)
    model = Point(D)
    stepper = torch.optim.SGD(model.parameters(), lr=LR, **optimizer)

    def step(x):
        model.x.data = x[0]
        stepper.zero_grad()
        quadratic(model, (A, b)).backward()
        stepper.step()

    return step


def problem(rank):
    all_of = Quadratics.random(M, D)
    return torch.tensor(all_of.A[rank])[None], torch.tensor(all_of.b[rank])[None]


def fit(method, optimizer=None, steps=STEPS, group=None, before_step=lambda rounds, step: None, load=None, **options):
    """A loop on this process's own quadratic; what it ends with, and the log."""
    rank = dist.get_rank()
    model = Point(D)
    stepper = torch.optim.SGD(model.parameters(), lr=LR, **(optimizer or {}))
    with TemporaryDirectory() as folder:
        log = Path(folder, "log", "arrivals.jsonl")
        rounds = tether.attach(model, stepper, method, arrivals=log, timeout=20, group=group, **options)
        if load:
            load(rounds, model)
        for step in range(rounds.count, steps(rank) if callable(steps) else steps):
            before_step(rounds, step)
            stepper.zero_grad()
            loss = quadratic(model, problem(rank))
            loss.backward()
            rounds.report(loss)
            stepper.step()
            time.sleep(PAUSES[rank])
        own = model.x.detach().clone()
        rounds.close()
        return {
            "row": model.x.detach().clone(),
            "own": own,
            "count": rounds.count,
            "rounds": sum(rounds.rounds.rounds),
            "messages": rounds.workers.messages,
            "log": log.read_text() if log.exists() else "",
        }


def look_alone(rounds, step):
    """One process looks at the center, which nobody else takes part in, and finds its own model again."""
    if dist.get_rank() == 2 and step in (3, 18):
        own = rounds._replicas.x.clone()
        with rounds.center():
            assert not torch.equal(rounds._replicas.x, own)
        assert torch.equal(rounds._replicas.x, own)


def junk(rounds, step):
    """One process sends the center what is no letter of this run, in many ways, while all train."""
    if dist.get_rank() != 1 or step != 10:
        return
    client = rounds._client
    wire = client._wire
    header, content = wire.write(
        tether.workers.wire.Letter(1, 1, step, client._numbers[1], [torch.ones(1, D).double()])
    )
    other_run = bytes(16) + header[16:]
    context = zmq.Context()
    for frames in (
        [b""],
        [b"what"],
        [other_run, content],
        [header],
        [header, content[:-8]],
        [header, content, content],
        [header[:16] + b"\x63" + header[17:], content],  # no such kind
        [header[:17] + b"\xff\xff\xff\x7f" + header[21:], content],  # no such worker
        [header, bytes(10**6)],
        [b"x" * 10**6],
    ):
        with context.socket(zmq.DEALER) as socket:
            socket.connect(client.address)
            socket.send_multipart(frames)
            socket.close(linger=1000)
    context.term()
    host, port = client.address.removeprefix("tcp://").split(":")
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" + bytes(8) + b"\x7f"):
        with sockets.create_connection((host, int(port))) as connection:
            connection.sendall(garbage)


class Norm(Point):
    """A real buffer that each step moves."""

    def __init__(self):
        super().__init__(D)
        self.norm = nn.BatchNorm1d(D, affine=False, dtype=torch.float64)


def buffers():
    """Buffers go with messages: the center has the mean of the last sent ones, workers keep theirs."""
    rank = dist.get_rank()
    torch.manual_seed(rank)
    model = Norm()
    stepper = torch.optim.SGD(model.parameters(), lr=LR)
    rounds = tether.attach(model, stepper, tether.Downpour(PERIOD), timeout=20)
    for _ in range(10 + rank):
        stepper.zero_grad()
        (model.x * model.norm(rank + torch.randn(6, D, dtype=torch.float64))).sum().backward()
        stepper.step()
        if rounds.count % PERIOD == 0:
            sent = model.norm.running_mean.clone()
    own = model.norm.running_mean.clone()
    rounds.close()
    return {"sent": sent, "own": own, "center": model.norm.running_mean.clone()}


class Faulty(tether.Downpour):
    def serve(self, center, message, staleness):
        raise ArithmeticError("no more")


def alone(method, optimizer, overlap):
    """Saved in the middle by one worker with a center of its own, and gone on with: the same to the bit."""
    group, _ = dist.new_subgroups(group_size=1)
    with TemporaryDirectory() as folder:
        options = {"group": group, "overlap": overlap, "checkpoints": tether.Checkpoints(folder)}

        def save(rounds, step):
            if step == 21:
                rounds.save({"step": step})

        whole = fit(method, optimizer, before_step=save, **options)
        again = fit(method, optimizer, load=lambda rounds, model: rounds.load(), **options)
    return {"whole": whole["row"], "again": again["row"], "own": whole["own"], "own again": again["own"]}


def saved_at_different_moments(method):
    """Each process saves when it likes; then everyone goes on, first four of them, then two."""
    seen = {}
    checkpoints = tether.Checkpoints(Path(sys.argv[-1], f"saved {method}"))

    def save(rounds, step):
        if step == 10 + 5 * dist.get_rank():
            rounds.save({"step": step})

    def load(rounds, model):
        seen["step"] = rounds.load().get("step", -1)
        seen["row"] = model.x.detach().clone()
        seen["state"] = {name: value.clone() for name, value in rounds.rounds.states[0].items()}
        with rounds.center():
            seen["center"] = model.x.detach().clone()
        dist.barrier()

    fit(method, before_step=save, checkpoints=checkpoints)
    again = fit(method, load=load, checkpoints=checkpoints)
    seen["end"], seen["log"] = again["row"], again["log"]
    pair = dist.new_group([0, 1])
    if dist.get_rank() < 2:

        def load_two(rounds, model):
            rounds.load()
            seen["count of two"] = rounds.count
            seen["row of two"] = model.x.detach().clone()

        seen["end of two"] = fit(method, load=load_two, group=pair, checkpoints=checkpoints)["row"]
    dist.barrier()
    return seen


def sleepy(rounds, step):
    """One process is away for a while."""
    if dist.get_rank() == 2 and step == 9:
        time.sleep(0.6)


SCENARIOS = {
    f"{name} {overlap}": (
        lambda method=method, optimizer=optimizer, overlap=overlap: fit(method, optimizer, overlap=overlap)
    )
    for name, (method, optimizer) in METHODS.items()
    for overlap in (0, 3)
}
SCENARIOS |= {
    "mix-then-step": lambda: fit(tether.Downpour(PERIOD), order="mix-then-step"),
    "alone at the center": lambda: fit(tether.AsynchronousEASGD(PERIOD), before_step=look_alone),
    "junk": lambda: fit(tether.Downpour(PERIOD), before_step=junk),
    "buffers": buffers,
    "a center that fails": lambda: refusal(lambda: fit(Faulty(PERIOD))),
    "resumed downpour": lambda: alone(tether.Downpour(PERIOD), MOMENTUM, 3),
    "resumed easgd": lambda: alone(tether.AsynchronousEASGD(PERIOD), MOMENTUM, 3),
    "saved downpour": lambda: saved_at_different_moments(tether.Downpour(PERIOD)),
    "saved easgd": lambda: saved_at_different_moments(tether.AsynchronousEASGD(PERIOD, alpha=0.3)),
    "total": lambda: fit(
        tether.LocalSGD(PERIOD), trigger=tether.TotalSteps(), steps=lambda rank: (100, 60, 30, 8)[rank]
    ),
    "leaders": lambda: fit(
        tether.LSGD(PERIOD, pull=0.3), trigger=tether.TotalSteps(), steps=lambda rank: (100, 60, 30, 8)[rank]
    ),
    "total overlap": lambda: fit(tether.LocalSGD(PERIOD), trigger=tether.TotalSteps(), overlap=2, before_step=sleepy),
    "total parts": lambda: fit(
        tether.MultiLeaderLSGD(PERIOD, 3 * PERIOD, groups=2), trigger=tether.TotalSteps(), overlap=1
    ),
    "window": lambda: fit(
        tether.LocalSGD(PERIOD),
        trigger=tether.TimeWindow(0.01),
        steps=lambda rank: (80, 60, 30, 5)[rank],
        before_step=sleepy,
    ),
    "window alike": lambda: fit(tether.LocalSGD(PERIOD), trigger=tether.TimeWindow(0.01, by_steps=False)),
    "steps logged": lambda: fit(tether.LocalSGD(PERIOD)),
    "refuses a trigger": lambda: refusal(lambda: fit(tether.Downpour(PERIOD), trigger=tether.TotalSteps())),
    "refuses a mean of moments": lambda: refusal(lambda: fit(tether.Downpour(PERIOD), optimizer_state="average")),
    "refuses another trigger": lambda: refusal(lambda: fit(tether.LocalSGD(PERIOD), trigger="often")),
    "refuses alpha": lambda: refusal(lambda: fit(tether.AsynchronousEASGD(PERIOD, beta=4.5))),
}
