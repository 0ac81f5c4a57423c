"""What training by a candidate takes on a clock: a short simulated run, looked at in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn

from tether.data import Dataset
from tether.engines import Evaluate
from tether.gradients import Objective
from tether.history import Record
from tether.planner.candidates import Candidate, Conditions
from tether.result import Result

Train: TypeAlias = Callable[[Candidate, int], Result]
"""Trains by a candidate for so many local steps, simulated on the clock of the plan.

Evaluations have a "loss" of the mean model: `tether.simulate(evaluate=training_loss(...), evaluate_every=...)`.
"""

SAMPLES = 1000
"""Training samples on which the mean model is looked at."""

BATCH = 500
"""Of these at once."""


def training_loss(data: Dataset, objective: Objective, workers: int, seed: int = 0, samples: int = SAMPLES) -> Evaluate:
    """Measures F(x) = (1/m) sum_i F_i(x) of a model, as its "loss", on some samples of each worker.

    It is the mean model that matters. What workers lose on their own batches says little of it: with different data
    each is soon good at its own.

    Args:
        data: samples and who holds what.
        objective: objective(model, batch) -> scalar loss, a mean over the samples of the batch.
        workers: number of workers m.
        seed: of the partition, and of which samples are looked at.
        samples: of all workers together; of each at least one.
    """
    shards, random = data.shards(workers, seed), np.random.default_rng((seed, 0x10C5))
    each = max(1, samples // workers)
    chosen = [random.permutation(shards.whole(worker, 0))[:each] for worker in range(workers)]
    train = data.train if data.augmentation is None else data.augmentation.held_out(data.train)
    # Workers that hold few samples count as much as others: a mean of means, those of equal weight together.
    groups = [[own for own in chosen if len(own) == size] for size in sorted({len(own) for own in chosen})]
    batches = [
        (tuple(part[torch.from_numpy(indices)] for part in train), len(indices) / (len(group[0]) * workers))
        for group in groups
        for indices in np.array_split(np.concatenate(group), -(-len(group) * len(group[0]) // BATCH))
    ]

    @torch.no_grad()
    def measure(model: nn.Module) -> dict[str, float]:
        was_training, device = model.training, next(model.parameters()).device
        model.eval()
        losses = (objective(model, tuple(part.to(device) for part in batch)) for batch, _ in batches)
        loss = sum(weight * float(each) for (_, weight), each in zip(batches, losses, strict=True))
        model.train(was_training)
        return {"loss": loss}

    return measure


@dataclass(frozen=True)
class Course:
    """A run, record by record.

    Attributes:
        steps: `[n]`, local steps so far.
        seconds: `[n]`, virtual or real, when the last worker had come so far.
        losses: `[n]`, training loss of the mean model; NaN where it was not looked at.
        rounds: `[n]`, whether the record is a round.
    """

    steps: Int[np.ndarray, " n"]
    seconds: Float[np.ndarray, " n"]
    losses: Float[np.ndarray, " n"]
    rounds: np.ndarray

    def reaches(self, target: float) -> int | None:
        """Local steps after which the loss is the target or lower, or None."""
        there = np.flatnonzero(self.losses <= target)  # NaN is not
        return int(self.steps[there[0]]) if len(there) else None

    def when(self, step: int) -> float:
        """Seconds until the round after so many local steps, where workers have a model in common; else to the end."""
        there = np.flatnonzero(self.rounds & (self.steps >= step))
        return float(self.seconds[there[0] if len(there) else -1])

    @property
    def ends(self) -> int:
        """Local steps at the end."""
        return int(self.steps[-1])

    @property
    def period(self) -> float:
        """Seconds from one round to the next; the mean, without the first, which a cold start makes longer."""
        moments = self.seconds[self.rounds]
        if len(moments) < 2:
            return float(moments[0]) if len(moments) else float("nan")
        return float((moments[-1] - moments[0]) / (len(moments) - 1))


def course_of(history: Sequence[Record]) -> Course:
    """The course of a run in virtual time if it has one, else in real."""
    steps = np.array([record.step for record in history])
    losses = np.array([record.center.get("loss", np.nan) for record in history], dtype=float)
    rounds = np.diff([record.round for record in history], prepend=0) > 0
    seconds = [record.seconds if record.virtual is None else float(np.nanmax(record.virtual.now)) for record in history]
    return Course(steps, np.array(seconds), losses, rounds)


@dataclass(frozen=True)
class Forecast:
    """What a candidate takes, as its simulated run says.

    Attributes:
        candidate: which.
        megabytes: that a worker sends in a round, on average, all parts of the method together.
        message: seconds that a round's messages take if nothing hides them.
        period: seconds from one round to the next.
        waiting: share of all workers' time that they wait.
        seconds: of the whole run.
        loss: at its end.
        course: all of it; None for a candidate that diverged.
    """

    candidate: Candidate
    megabytes: float
    message: float
    period: float
    waiting: float
    seconds: float
    loss: float
    course: Course | None

    def to_target(self, target: float) -> float | None:
        """Seconds to a loss, or None if the run does not come to it."""
        step = None if self.course is None else self.course.reaches(target)
        return None if step is None or self.course is None else self.course.when(step)


def forecast(candidate: Candidate, result: Result | None, conditions: Conditions) -> Forecast:
    """What a simulated run says of its candidate.

    Args:
        candidate: which.
        result: the run on the clock; None if it diverged.
        conditions: those of the run.
    """
    megabytes, message = conditions.megabytes(candidate.method), conditions.message(candidate.method)
    if result is None or not result.history:
        nan = float("nan")
        return Forecast(candidate, megabytes, message, nan, nan, nan, nan, course=None)
    course = course_of(result.history)
    last = result.history[-1].virtual
    assert last is not None
    return Forecast(
        candidate,
        megabytes,
        message,
        course.period,
        waiting=float(np.nansum(last.waited) / max(np.nansum(last.now), 1e-300)),
        seconds=float(course.seconds[-1]),
        loss=float(course.losses[-1]),
        course=course,
    )
