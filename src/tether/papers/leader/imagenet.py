"""ResNet50 on ImageNet (section 4, figures 6 and 12): with learning rates that are the paper's own (table 5)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from tether.config import choose
from tether.data import image_folder
from tether.models import MODELS
from tether.papers.experiments import Outcome, Setting, experiment
from tether.papers.leader.claims import MUCH, as_fast, faster, outcome, same_error
from tether.papers.leader.comparison import Comparison, Entry, Found, Grid

IMAGENET = "ImageNet (ILSVRC 2012) or other images, in folders train/CLASS and val/CLASS"

GRIDS = {"DOWNPOUR": Grid((0.1,)), "EASGD": Grid((0.2,)), "LSGD": Grid((0.2,), (0.1,))}  # table 5

EPOCHS, BATCH_SIZE, PERIOD = 90, 32, 64
"""The paper prints the last two, and that the learning rate drops every 30 epochs."""

PARAMETERS = 25_557_032
"""Of ResNet50 with the 1,000 classes of ImageNet."""

STEP_SECONDS = 0.25
"""Of 32 images on a GTX 1080: 0.8 TFLOP of a forward and a backward pass, at a third of the card's 8.9 TFLOP/s."""

SMALL_STEPS = 240


@dataclass(frozen=True, kw_only=True)
class InSteps(Comparison):
    """Methods that all take the same number of local steps, as their learning rates drop after so many epochs.

    `seconds` is how long that takes a worker that never waits.

    Attributes:
        local_steps: of every worker.
    """

    local_steps: int

    def steps(self, entry: Entry) -> int:
        """Local steps of every worker."""
        return self.local_steps


def comparison(setting: Setting) -> InSteps:
    """What is compared in this setting."""
    assert setting.data is not None
    data: dict[str, Any] = {"name": "image-folder", "folder": str(setting.data), "partition": "reshuffled"}
    images = image_folder(setting.data)
    workers = 4
    epoch = max(1, len(images) // workers // BATCH_SIZE)
    paper = InSteps(
        data=data,
        model={"name": "torchvision", "architecture": "resnet50"},
        parameters=PARAMETERS,
        grids=GRIDS,
        step_seconds=STEP_SECONDS,
        seconds=EPOCHS * epoch * STEP_SECONDS,
        evaluations=EPOCHS,
        workers=(workers,),
        batch_size=BATCH_SIZE,
        period=PERIOD,
        window=64,
        drops=(1 / 3, 2 / 3),
        local_steps=EPOCHS * epoch,
    )
    if setting.paper:
        return paper
    model, batch_size, period, crop = {"name": "resnet20", "blocks": 1, "width": 8}, 8, 8, 32
    made = choose(model, MODELS, "model", shape=(3, crop, crop), classes=images.outputs)
    parameters = sum(parameter.numel() for parameter in made.parameters())
    scale = batch_size / BATCH_SIZE
    assert images.test is not None
    return dataclasses.replace(
        paper,
        data=data | {"crop": crop, "resized": 36, "held_out": min(200, len(images.test[0]))},
        model=model,
        parameters=parameters,
        grids={name: Grid(tuple(rate * scale for rate in grid.rates), grid.pulls) for name, grid in GRIDS.items()},
        seconds=SMALL_STEPS * STEP_SECONDS,
        local_steps=SMALL_STEPS,
        evaluations=8,
        batch_size=batch_size,
        period=period,
        window=period,
        slower_links=PARAMETERS / parameters * period / PERIOD,
    )


@experiment("leader/resnet50", shows="figures 6 and 12, table 5", data=IMAGENET)
def resnet50(setting: Setting) -> Outcome:
    """ResNet50 on ImageNet and 4 workers: test error of the center against virtual wall-clock time."""
    found = Found(comparison(setting), setting)
    claims = [
        as_fast(found, 4, "LSGD behaves comparably to EASGD: as fast"),
        same_error(found, 4, "LSGD behaves comparably to EASGD: the same error"),
        faster(found, 4, "DOWNPOUR", "LSGD converges much faster than DOWNPOUR", beyond=MUCH),
    ]
    notes = ["Learning rates and λ are the paper's (table 5), which prints one of each for every method."]
    if not setting.paper:
        used = found.comparison
        notes.append(
            f"Small: {used.model['name']} of width {used.model['width']} in place of ResNet50, crops of "
            f"{used.data['crop']} pixels instead of 224; batches of {used.batch_size} instead of {BATCH_SIZE}, so "
            f"learning rates are {used.batch_size}/{BATCH_SIZE} of the paper's; rounds every {used.period} steps "
            f"instead of {PERIOD}; {SMALL_STEPS} steps, the learning rate divided by ten after each third of them; "
            f"{used.data['held_out']} test images. The claims are about the shape only, and on so little training "
            "hardly that."
        )
    return outcome(found, claims, {"figure-6": "error", "figure-12": "loss"}, notes)
