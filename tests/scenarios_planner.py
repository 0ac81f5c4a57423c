"""What real ranks are measured to take where steps and rounds last as long as a test says: run by `real.py`."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist

import tether
from tether.history import Record
from tether.methods import LocalSGD, MultiLeaderLSGD, SyncSGD
from tether.planner import conditions_between

STEPS = (0.5, 2.0)
"""Seconds of a local step, by process."""

BESIDES = {"sync": 0.25, "local": 0.75, "leaders": 0.0}
"""Seconds that a round takes longer than steps of the slower process."""

METHODS = {"sync": SyncSGD(), "local": LocalSGD(4), "leaders": MultiLeaderLSGD(4, global_period=8, groups=2)}


def lasting(step, besides):
    """Trains nothing: its history says that it took so long."""

    def train(method, steps):
        period = min(part.period for part in method.parts)
        ends = range(period, steps + 1, period)
        seconds = [end * step + besides * number for number, end in enumerate(ends, start=1)]
        zeros = np.zeros(1)
        history = [
            Record(number, end, number + 1, zeros, 0.0, zeros, 0, 0, when)
            for number, (end, when) in enumerate(zip(ends, seconds, strict=True))
        ]
        return SimpleNamespace(history=history)

    return train


def slow_and_fast():
    alone = lasting(STEPS[dist.get_rank()], 0.0)

    def together(method, steps):
        (kind,) = (kind for kind, each in METHODS.items() if each == method)
        return lasting(max(STEPS), BESIDES[kind])(method, steps)

    found = conditions_between(tether.Ranks(), alone, together, METHODS, torch.zeros(10))
    return {"rounds": dict(found.rounds), "clock": dataclasses.asdict(found.clock)}


SCENARIOS = {"slow and fast": slow_and_fast}
