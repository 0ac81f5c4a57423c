"""CNN7, ResNet20 and VGG16 trained by LSGD and what the paper compares it with (section 4, figures 2 to 5).

No learning rate is chosen by hand. Of each method the paper tries a grid of them and shows the best, and so do these.
The default setting takes three of each grid, the largest, the middle one and the smallest, times 16/128 as its batches
are of 16 images instead of 128 (the linear scaling rule: so much less noise is averaged out); and the middle one of the
pulls, 0.1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tether.papers.experiments import Outcome, Setting, experiment
from tether.papers.leader import switching
from tether.papers.leader.claims import (
    MUCH,
    about_time,
    as_fast,
    better_than,
    faster,
    outcome,
    same_error,
    smaller_error,
)
from tether.papers.leader.comparison import Comparison, Entry, Found, Grid
from tether.papers.runs import CIFAR, STAND_IN, carry_out, cifar, parameters

PULLS = (0.5, 0.2, 0.1, 0.05, 0.025)

CNN7_GRIDS = {  # table 2
    "SGD": Grid((0.1, 0.05, 0.01, 0.005, 0.001)),
    "DOWNPOUR": Grid((0.05, 0.01, 0.005, 0.001, 0.0005)),
    "EASGD": Grid((0.1, 0.05, 0.01, 0.005, 0.001)),
    "LSGD": Grid((0.1, 0.05, 0.01, 0.005, 0.001), PULLS),
}

RESNET20_GRIDS = {  # table 3
    "SGD": Grid((0.2, 0.1, 0.05)),
    "DOWNPOUR": Grid((0.2, 0.1, 0.05, 0.01)),
    "EASGD": Grid((0.2, 0.1, 0.05)),
    "LSGD": Grid((0.2, 0.1, 0.05), PULLS),
}

VGG16_GRIDS = {  # table 4
    "SGD": Grid((0.2, 0.1, 0.05)),
    "DOWNPOUR": Grid((0.2, 0.1, 0.05, 0.01)),
    "EASGD": Grid((0.2, 0.1, 0.05)),
    "LSGD": Grid((0.2, 0.1, 0.05), (0.2, 0.1)),
}

SECONDS = 2000
"""Virtual seconds of the paper's runs: it prints none, but drops of the learning rate at 1,500."""

DROP = 1500

# Seconds of a step of 128 images on a GTX 1080: the multiplications of a forward and a backward pass (12, 24 and 240
# GFLOP), at the third of the card's 8.9 TFLOP/s that such small convolutions reach, a tenth for ResNet20's thin ones.
STEP_SECONDS = {"cnn7": 0.01, "resnet20": 0.025, "vgg16": 0.08}

BATCH_SIZE, PERIOD = 128, 64
"""The paper's batches of each worker, and its τ."""


@dataclasses.dataclass(frozen=True)
class Network:
    """A network of the paper, and the small one that takes minutes.

    Attributes:
        name: of the network.
        grids: the paper's.
        small: what is smaller about the small one, as its parameters.
        steps: local steps of the small one, if nothing is waited for.
        crop: pixels of the paper's crops.
        small_crop: those of the small one.
        padding: pixels added before, in the paper.
        drops: whether the learning rate drops, as that of CNN7 does not.
        workers: numbers of workers.
    """

    name: str
    grids: Mapping[str, Grid]
    small: Mapping[str, Any]
    steps: int
    crop: int = 28
    small_crop: int = 24
    padding: int = 0
    drops: bool = True
    workers: tuple[int, ...] = (4, 16)

    def comparison(self, setting: Setting) -> Comparison:
        """What is compared in this setting."""
        paper = self._paper(setting)
        return paper if setting.paper else self._smaller(paper, setting)

    def _paper(self, setting: Setting) -> Comparison:
        model = {"name": self.name}
        return Comparison(
            data=_data(setting, crop=self.crop, padding=self.padding),
            model=model,
            parameters=parameters(model, (3, self.crop, self.crop)),
            grids=self.grids,
            step_seconds=STEP_SECONDS[self.name],
            seconds=SECONDS,
            evaluations=100,
            workers=self.workers,
            batch_size=BATCH_SIZE,
            period=PERIOD,
            global_period=2 * PERIOD,
            drops=(DROP / SECONDS,) if self.drops else (),
        )

    def _smaller(self, paper: Comparison, setting: Setting) -> Comparison:
        model = {"name": self.name, **self.small}
        size = parameters(model, (3 if setting.data else 1, self.small_crop, self.small_crop))
        batch_size, period = 16, 16
        return dataclasses.replace(
            paper,
            data=_data(setting, crop=self.small_crop, held_out=500),
            model=model,
            parameters=size,
            grids={name: _three(grid, batch_size / BATCH_SIZE) for name, grid in self.grids.items()},
            seconds=self.steps * paper.step_seconds,
            evaluations=24,
            batch_size=batch_size,
            period=period,
            global_period=2 * period,
            drops=(),
            # A round takes the same share of the time between rounds as in the paper.
            slower_links=paper.parameters / size * period / PERIOD,
        )


def _data(setting: Setting, crop: int, padding: int = 0, held_out: int | None = None) -> dict[str, Any]:
    """Cropped and mirrored (section 9.1), dealt out anew each epoch (9.2)."""
    return cifar(setting, crop=crop, padding=padding, flip=True, held_out=held_out)


def _three(grid: Grid, scale: float) -> Grid:
    """The largest, the middle and the smallest of the learning rates, scaled; the middle one of the pulls."""
    rates, pulls = grid.rates, grid.pulls
    three = (rates[0], rates[len(rates) // 2], rates[-1])
    return Grid(tuple(rate * scale for rate in three), (pulls[len(pulls) // 2],))


CNN7 = Network("cnn7", CNN7_GRIDS, {"width": 16}, steps=1000, drops=False)
RESNET20 = Network("resnet20", RESNET20_GRIDS, {"blocks": 1, "width": 4}, steps=600, small_crop=20)
VGG16 = Network(
    "vgg16",
    VGG16_GRIDS,
    {"channels": [[8, 8], [16, 16], [24, 24, 24]], "hidden": [32, 32]},
    steps=1100,
    crop=32,
    padding=4,
    workers=(4,),
)


@experiment("leader/cnn7", shows="figures 2 and 9, table 2", data=CIFAR, stand_in=STAND_IN)
def cnn7(setting: Setting) -> Outcome:
    """CNN7 on 4 and 16 workers: test error of the center against virtual wall-clock time."""
    found = Found(CNN7.comparison(setting), setting)
    claims = [
        faster(found, 4, "EASGD", "LSGD converges faster than EASGD"),
        faster(found, 16, "EASGD", "LSGD is roughly 1.5 times faster than EASGD", "1.5"),
        smaller_error(found, 16, "EASGD", "LSGD obtains smaller error than EASGD"),
        *(
            faster(found, workers, other, f"LSGD converges faster than {other}")
            for other in ("DOWNPOUR", "SGD")
            for workers in (4, 16)
        ),
        *(better_than(found, workers, other) for other in ("DOWNPOUR", "SGD") for workers in (4, 16)),
    ]
    figures = {"figure-2": "error", "figure-9": "loss"}
    return outcome(found, claims, figures, _differs(found.comparison, setting))


@experiment("leader/resnet20", shows="figures 4 and 10, table 3", data=CIFAR, stand_in=STAND_IN)
def resnet20(setting: Setting) -> Outcome:
    """ResNet20 on 4 and 16 workers: test error of the center against virtual wall-clock time."""
    found = Found(RESNET20.comparison(setting), setting)
    claims = [
        as_fast(found, 4, "LSGD converges comparably fast to EASGD"),
        smaller_error(found, 4, "EASGD", "LSGD recovers better test error than EASGD"),
        faster(found, 16, "EASGD", "LSGD converges roughly 2 times faster than EASGD", "2"),
        smaller_error(found, 16, "EASGD", "LSGD obtains significantly smaller error than EASGD"),
        *(better_than(found, workers, other) for other in ("DOWNPOUR", "SGD") for workers in (4, 16)),
    ]
    figures = {"figure-4": "error", "figure-10": "loss"}
    return outcome(found, claims, figures, _differs(found.comparison, setting))


@experiment("leader/vgg16", shows="figures 3 and 11, table 4", data=CIFAR, stand_in=STAND_IN)
def vgg16(setting: Setting) -> Outcome:
    """VGG16 on 4 workers: test error of the center against virtual wall-clock time."""
    found = Found(VGG16.comparison(setting), setting)
    claims = [
        faster(found, 4, "EASGD", "LSGD converges marginally faster than EASGD"),
        same_error(found, 4, "LSGD recovers the same error as EASGD"),
        faster(found, 4, "DOWNPOUR", "LSGD converges significantly faster than DOWNPOUR", beyond=MUCH),
        smaller_error(found, 4, "DOWNPOUR", "LSGD obtains a slightly better solution than DOWNPOUR"),
    ]
    figures = {"figure-3": "error", "figure-11": "loss"}
    return outcome(found, claims, figures, _differs(found.comparison, setting))


@experiment("leader/switching", shows="figure 5", data=CIFAR, stand_in=STAND_IN)
def leader_switching(setting: Setting) -> Outcome:
    """Which worker is the leader over the iterations: of 4 workers, and of 16 in 4 groups that have leaders too."""
    comparison = RESNET20.comparison(setting)
    if not setting.paper:
        # Of CNN7, which takes less time than ResNet20, and with more rounds.
        comparison = dataclasses.replace(CNN7.comparison(setting), period=4, global_period=8)
    rates = comparison.grids["LSGD"].rates
    entries = [Entry("LSGD", workers, rates[len(rates) // 2], pull=0.1) for workers in (4, 16)]
    configs = {entry.name: comparison.config(entry, setting.seed) for entry in entries}
    one, groups = carry_out(configs, setting).values()
    figures = {"figure-5": switching.draw(one), "figure-5-groups": switching.draw(groups)}
    table = [
        {"workers": run.workers, "worker": worker, "led_all": int(all_), "led_its_group": int(group)}
        for run in (one, groups)
        for worker, (all_, group) in enumerate(zip(switching.led(run, True), switching.led(run, False), strict=True))
    ]
    shown = (
        f"Learning rate {entries[0].rate:g} and λ = 0.1, the middle ones of their grids; the paper does not say which "
        "are shown."
    )
    notes = [shown, *_differs(comparison, setting), about_time(comparison)]
    return Outcome(switching.all_lead([one, groups]), figures, {"leaders": table}, notes)


def _differs(comparison: Comparison, setting: Setting) -> list[str]:
    """What is not as in the paper."""
    if setting.paper:
        return []
    data = "CIFAR-10" if setting.data else "Fashion-MNIST instead of CIFAR-10: the claims are about the shape only"
    model = ", ".join(f"{key} {value}" for key, value in comparison.model.items())
    return [
        f"On {data}. {model}; crops of {comparison.data['crop']} pixels; batches of {comparison.batch_size} "
        f"instead of {BATCH_SIZE}; rounds every {comparison.period} steps instead of {PERIOD}, among all nodes "
        f"{comparison.global_period} instead of {2 * PERIOD}; {comparison.seconds:.3g} virtual seconds instead of "
        f"about {SECONDS:,}, so that only how training begins is compared; "
        f"{comparison.data['held_out']} test images, so that errors are uncertain by about 0.02.",
        f"Learning rates are the largest, the middle and the smallest of the paper's grid for each method, times "
        f"{comparison.batch_size}/{BATCH_SIZE} as batches are smaller; λ is the middle one of its grid. Rounds are as "
        f"long, to the time between them, as the paper's; DOWNPOUR's messages, of every step, are {PERIOD}/"
        f"{comparison.period} times cheaper to it than there.",
    ]
