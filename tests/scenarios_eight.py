"""What eight processes, one worker each, do: every method of the table in an ordinary training loop."""

import numpy as np
import torch
import torch.distributed as dist

import tether
from methods_table import CASES, M
from problems import Point, Quadratics, quadratic
from tether.periods import AdaComm, FollowDrift, PostLocal

D = 5
STEPS = 200
OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02),
}


def start():
    return np.random.default_rng(1).normal(size=(M, D))


SCHEDULED = {
    "post-local": tether.LocalSGD(PostLocal(6, switch=20)),
    "adacomm": tether.EASGD(AdaComm(8, every=24, window=4)),
    "follow-drift": tether.DecentralizedSGD(FollowDrift(4, most=20)),
    "two schedules": tether.MultiLeaderLSGD(FollowDrift(3), AdaComm(12, every=30), groups=2),
}
"""Methods whose period changes."""


def settings():
    """Every method with and without overlap, with momentum in one order and Adam in the other."""
    for kind, method in SCHEDULED.items():
        for overlap in (0, 2):
            for optimizer, order in (("momentum", "step-then-mix"), ("adam", "mix-then-step")):
                yield f"{kind}-{order}-{overlap}-{optimizer}", method, order, overlap, optimizer
    for case in CASES:
        for overlap in (0, 2):
            for optimizer, order in (("momentum", "step-then-mix"), ("adam", "mix-then-step")):
                period = 1 if case.fixed_period else 4
                name = f"{case}-{order}-{overlap}-{optimizer}"
                yield name, case.make(period), order, min(overlap, period), optimizer


def loop(method, order, overlap, optimizer):
    def scenario():
        rank = dist.get_rank()
        problem = Quadratics.random(M, D)
        batch = torch.tensor(problem.A[rank])[None], torch.tensor(problem.b[rank])[None]
        model = Point(D)
        with torch.no_grad():
            model.x.copy_(torch.tensor(start()[rank]))
        stepper = OPTIMIZERS[optimizer](model.parameters())
        rounds = tether.attach(model, stepper, method, overlap=overlap, order=order, broadcast=False)
        for _ in range(STEPS):
            stepper.zero_grad()
            loss = quadratic(model, batch)
            loss.backward()
            rounds.report(loss)
            stepper.step()
        rounds.close(keep="own")
        return {"row": model.x.detach().clone(), "bytes": rounds.workers.bytes, "messages": rounds.workers.messages}

    return scenario


SCENARIOS = {name: loop(*rest) for name, *rest in settings()}
