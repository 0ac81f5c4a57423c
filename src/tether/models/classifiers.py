"""Small classifiers of images or vectors, and their loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn


def softmax(shape: Sequence[int], classes: int) -> nn.Module:
    """Softmax regression: one linear layer.

    Args:
        shape: shape of a sample.
        classes: number of classes.
    """
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))


def mlp(shape: Sequence[int], classes: int, hidden: Sequence[int] = (50,)) -> nn.Module:
    """Fully connected layers with ReLU between them.

    Args:
        shape: shape of a sample.
        classes: number of classes.
        hidden: width of each hidden layer.
    """
    _check_widths("hidden", hidden)
    layers: list[nn.Module] = [nn.Flatten()]
    width = math.prod(shape)
    for after in hidden:
        layers += [nn.Linear(width, after), nn.ReLU()]
        width = after
    return nn.Sequential(*layers, nn.Linear(width, classes))


def cnn(shape: Sequence[int], classes: int, channels: Sequence[int] = (8, 16)) -> nn.Module:
    """Convolutions of 3 x 3, each with ReLU and a maximum over 2 x 2, then one linear layer.

    Args:
        shape: shape of an image: channels, height, width.
        classes: number of classes.
        channels: channels of each convolution.

    Raises:
        ValueError: if samples are not images, or too small for so many halvings.
    """
    if len(shape) != 3:
        raise ValueError(f"a cnn takes images of shape (channels, height, width), not samples of shape {tuple(shape)}")
    _check_widths("channels", channels)
    before, height, width = shape
    if min(height, width) < 2 ** len(channels):
        raise ValueError(
            f"images of {height} x {width} cannot be halved {len(channels)} times; give at most "
            f"{int(math.log2(min(height, width)))} channels"
        )
    layers: list[nn.Module] = []
    for after in channels:
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        before, height, width = after, height // 2, width // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * height * width, classes))


def _check_widths(name: str, widths: Sequence[int]) -> None:
    if not all(width >= 1 for width in widths):
        raise ValueError(f"{name}={list(widths)}: every layer needs a width of at least 1")


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The mean cross-entropy of a classifier on a batch of (inputs, labels): an objective for `simulate`."""
    inputs, labels = batch
    return nn.functional.cross_entropy(model(inputs), labels)
