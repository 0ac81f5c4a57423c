"""Asynchronous methods and triggered rounds done again from an arrival log, by their equations."""

import json
from dataclasses import dataclass, field

import torch


def read(text):
    """A log's header, and what happened."""
    header, *events = (json.loads(line) for line in text.splitlines())
    return header, events


@dataclass
class Worker:
    """One worker by itself: `step(x, count)` is its local step, in place."""

    x: torch.Tensor
    step: object
    count: int = 0
    received: torch.Tensor = None
    landing: tuple = None  # at which count a reply lands, with the row that was sent
    replied: int = 0

    def __post_init__(self):
        self.received = self.x.clone()

    def advance(self, to, land):
        """Local steps up to a count; a reply lands after the last of its overlap."""
        while self.count < to:
            self.step(self.x)
            self.count += 1
            if self.landing and self.landing[0] == self.count:
                land(self)


@dataclass
class Equations:
    """The center z, and what it and a worker make of each other, written out."""

    z: torch.Tensor
    overlap: int
    velocity: torch.Tensor = field(init=False)
    served: int = 0

    def __post_init__(self):
        self.z = self.z.clone()
        self.velocity = torch.zeros_like(self.z)

    def message(self, worker):
        return worker.x - worker.received

    def land(self, worker):
        """x <- x + (reply - what was sent), which without overlap is the reply."""
        _, sent, reply = worker.landing
        worker.x.copy_(reply) if worker.count == worker.sent_at else worker.x.add_(reply - sent)
        worker.received = reply
        worker.landing = None

    def visit(self, worker):
        staleness = self.served - worker.replied
        reply = self.serve(self.message(worker), staleness)
        self.served += 1
        worker.replied = self.served
        worker.sent_at = worker.count
        worker.landing = worker.count + self.overlap, worker.x.clone(), reply
        if not self.overlap:
            self.land(worker)
        return staleness


class Downpour(Equations):
    def serve(self, change, staleness):
        self.z += change
        return self.z.clone()


@dataclass
class EASGD(Equations):
    alpha: float = 0.0

    def message(self, worker):
        return worker.x.clone()

    def serve(self, x, staleness):
        difference = self.alpha * (x - self.z)
        self.z += difference
        return difference

    def land(self, worker):
        _, sent, difference = worker.landing
        if worker.count == worker.sent_at:
            worker.x -= difference
        else:
            worker.x += (sent - difference) - sent
        worker.landing = None


@dataclass
class DiLoCo(Equations):
    lr: float = 0.0
    momentum: float = 0.0
    exponent: float = 0.0
    bound: int = 10**9

    def serve(self, change, staleness):
        if staleness <= self.bound:
            gradient = -change * (1 + staleness) ** -self.exponent
            self.velocity = self.momentum * self.velocity + gradient
            self.z -= self.lr * (gradient + self.momentum * self.velocity)
        return self.z.clone()


def center(equations, workers, events):
    """The center after these events; checks each one's staleness."""
    for event in events:
        worker = workers[event["worker"]]
        if worker.landing and worker.landing[0] > event["step"]:
            raise AssertionError("a worker sent again before the reply landed")
        worker.advance(event["step"], equations.land)
        assert equations.visit(worker) == event["staleness"]
    return equations.z


def rounds(workers, events, weights, counts):
    """Triggered rounds of means; each worker's row after its last own step, and the mean of those who ended last.

    `weights(taken)` are what rows count for, of the steps taken since the round before; `counts` are all steps of each.
    """
    present = [True] * len(workers)
    before = [0] * len(workers)
    last = {}
    for event in events:
        for worker, count in zip(workers, event["steps"], strict=True):
            worker.advance(count, None)
        for index in event["ended"]:
            last.setdefault(index, workers[index].x.clone())
        taken = [after - was for after, was in zip(event["steps"], before, strict=True)]
        shares = [weight * here for weight, here in zip(weights(taken), present, strict=True)]
        mean = sum(share * worker.x for share, worker in zip(shares, workers, strict=True)) / sum(shares)
        for worker in workers:
            worker.x.copy_(mean)
        before = event["steps"]
        for index in event["ended"]:
            present[index] = False
    for index, (worker, count) in enumerate(zip(workers, counts, strict=True)):
        worker.advance(count, None)
        last.setdefault(index, worker.x)
    there = [worker.x for worker, here in zip(workers, present, strict=True) if here]
    return [last[index] for index in range(len(workers))], sum(there) / len(there)
