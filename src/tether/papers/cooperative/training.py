"""What all of the paper's experiments on networks have in common: VGG-16 on eight workers (appendix A)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tether.clock import Clock
from tether.config import Config, validate
from tether.methods import LocalSGD
from tether.papers.curves import Curve
from tether.papers.experiments import Setting
from tether.papers.runs import cifar, parameters
from tether.report import curves
from tether.report.curves import measured, training_loss
from tether.report.runs import Run
from tether.theory import round_costs

WORKERS = 8

RATE = 0.4
"""The paper's learning rate, where it names no other."""

MUCH = 1.25
"""Above this ratio of times, one is much less than the other."""

STEP_SECONDS = 0.11
"""A step of 128 images: VGG-16's 240 GFLOP at a third of a Titan X's 6.7 TFLOP/s. Only the unit of the virtual time."""

STEPS_A_MEAN = 1.0
"""Local steps that a mean of all workers takes, where nothing hides it.

The paper prints the interface of its machines, 40 Gbit/s, and not what its all-reduce makes of it. Its figure 4c says
it: if hiding the mean of every step behind the next one takes half of the time away, a mean takes as long as a step.
For VGG-16 that is 7.7 Gbit/s.
"""


@dataclass(frozen=True)
class Task:
    """What is trained, and for how long.

    Attributes:
        data: as a config has it.
        model: as a config has it.
        parameters: of the model.
        samples: to train on.
        epochs: of each run.
        batch_size: of each worker.
        drops: shares of a run after which its learning rate is divided by ten.
    """

    data: Mapping[str, Any]
    model: Mapping[str, Any]
    parameters: int
    samples: int
    epochs: int
    batch_size: int
    drops: tuple[float, ...] = (100 / 200, 150 / 200)

    @property
    def epoch(self) -> int:
        """Local steps of every worker in an epoch; the incomplete last batch is dropped."""
        return self.samples // WORKERS // self.batch_size

    @property
    def steps(self) -> int:
        """Local steps of every worker."""
        return self.epochs * self.epoch

    @property
    def window(self) -> int:
        """Local steps over which training losses are averaged: an epoch, a quarter of one where there are few."""
        return self.epoch if self.epochs >= 100 else max(1, self.epoch // 4)

    @property
    def clock(self) -> dict[str, Any]:
        """The paper's cluster, for a `tether.Clock`, with links on which a mean takes `STEPS_A_MEAN` steps."""
        (mean,) = round_costs(LocalSGD(period=1), WORKERS, self.parameters)
        wire = mean.seconds(Clock(step=1.0, bandwidth=1.0))
        return {"step": STEP_SECONDS, "bandwidth": wire / (STEPS_A_MEAN * STEP_SECONDS)}

    def config(self, method: Mapping[str, Any], rate: float, seed: int) -> Config:
        """A run as a config."""
        milestones = [int(share * self.steps) for share in self.drops]
        settings = {
            "workers": WORKERS,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "seed": seed,
            "evaluate_every": self.epoch,
            "clock": self.clock,
            "data": dict(self.data),
            "model": dict(self.model),
            "optimizer": {"name": "SGD", "lr": rate},
            "scheduler": {"name": "MultiStepLR", "milestones": milestones, "gamma": 0.1} if self.drops else None,
            "method": method["name"],
            "methods": {method["name"]: dict(method)},
        }
        return validate(Config, settings, str(method["name"]))

    def loss(self, run: Run, axis: str = "epochs") -> Curve:
        """The workers' mean training loss, against "epochs" or "virtual" seconds."""
        return self._against(axis, run, training_loss(run, self.window))

    def accuracy(self, run: Run, axis: str = "epochs") -> Curve:
        """The mean model's test accuracy, likewise."""
        return self._against(axis, run, measured(run, "center", "accuracy"))

    def _against(self, axis: str, run: Run, curve: curves.Curve | None) -> Curve:
        if curve is None:
            return np.empty(0), np.empty(0)
        return (run.steps[curve.at] / self.epoch if axis == "epochs" else run.against(axis)[curve.at]), curve.y

    def rows(self, run: Run) -> list[dict[str, Any]]:
        """The curve of the training loss, as rows of a table."""
        (epochs, losses), (seconds, _) = self.loss(run), self.loss(run, "virtual")
        names = ("epoch", "virtual_seconds", "training_loss")
        return [dict(zip(names, map(float, row), strict=True)) for row in zip(epochs, seconds, losses, strict=True)]

    def start(self) -> float:
        """The training loss before the first step: of ten classes that are all as likely."""
        return math.log(10)

    def floor(self, curve: Curve) -> float:
        """The mean in the last half of the time before the learning rate first drops."""
        epochs, values = curve
        until = self.epochs * (self.drops[0] if self.drops else 1.0)
        late = values[(epochs > until / 2) & (epochs <= until)]
        return float(late.mean()) if len(late) else math.inf

    def end(self, curve: Curve) -> float:
        """The mean in the last tenth of the run; infinite if it stopped before."""
        epochs, values = curve
        late = values[epochs > 0.9 * self.epochs]
        return float(late.mean()) if len(late) else math.inf

    def differs(self, setting: Setting) -> list[str]:
        """What is not as in the paper."""
        if setting.paper:
            return []
        data = "CIFAR-10" if setting.data else "Fashion-MNIST instead of CIFAR-10: the claims are about the shape only"
        name, *rest = (f"{value}" if key == "name" else f"{key} {value}" for key, value in self.model.items())
        model = f"{name} ({', '.join(rest)})"
        return [
            f"On {data}. An {model} instead of VGG-16; batches of {self.batch_size} a worker instead of 128; "
            f"{self.epochs} epochs of {self.epoch} steps instead of 200 of 48, the learning rate divided by ten after "
            "the same shares of them."
        ]


def task(setting: Setting) -> Task:
    """The paper's, or a small one."""
    model: dict[str, Any]
    if setting.paper:
        # How images are changed is not in print; these are the usual crops and flips.
        data, model = cifar(setting, crop=32, padding=4, flip=True), {"name": "vgg16"}
        return Task(data, model, parameters(model, (3, 32, 32)), samples=50_000, epochs=200, batch_size=128)
    shape, samples = ((3, 32, 32), 50_000) if setting.data else ((1, 28, 28), 60_000)
    data = cifar(setting, crop=shape[-1], padding=0, flip=False)
    model = {"name": "mlp", "hidden": [64]}
    return Task(data, model, parameters(model, shape), samples=samples, epochs=12, batch_size=32)


def about_time(task: Task) -> str:
    """What the virtual time is."""
    gbit = task.clock["bandwidth"] / 1e9
    return (
        f"Time is virtual: {STEP_SECONDS:g} s a local step, and as long for a mean of all workers ({gbit:.3g} Gbit/s "
        f"for {task.parameters:,} parameters), which is what figure 4c says of the paper's cluster: hiding the mean of "
        "every step can only halve the time if it takes as long as the step."
    )
