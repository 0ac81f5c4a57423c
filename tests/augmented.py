"""A run on randomly cropped and mirrored images, the same wherever its workers are."""

import torch

import tether
from tether.data import CropAndFlip, Dataset


def train(workers):
    """The rows of a small residual network after two rounds."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(128, 3, 10, 10, dtype=torch.float64, generator=generator)
    torch.manual_seed(0)
    return tether.simulate(
        tether.models.resnet20((3, 8, 8), 10, blocks=1, width=4).double(),
        tether.LocalSGD(period=3),
        Dataset((images, torch.arange(128) % 10)).augmented(CropAndFlip(8, padding=1)),
        workers=workers,
        objective=tether.models.cross_entropy,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
        steps=8,
        batch_size=4,
    ).rows
