"""Small classifiers of images or vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn


def softmax(shape: Sequence[int], classes: int) -> nn.Module:
    """Softmax regression: one linear layer. With one output, linear regression.

    Args:
        shape: shape of a sample.
        classes: number of classes.
    """
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))


def logistic(shape: Sequence[int], classes: int = 2, bias: bool = True) -> nn.Module:
    """Logistic regression between two classes: one output, the log odds of the second.

    Args:
        shape: shape of a sample.
        classes: number of classes, two.
        bias: whether there is a constant beside the d weights.

    Raises:
        ValueError: if there are other than two classes.
    """
    if classes != 2:
        raise ValueError(f"logistic regression is between two classes, not {classes}; take softmax")
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 1, bias=bias))


def mlp(shape: Sequence[int], classes: int, hidden: Sequence[int] = (50,)) -> nn.Module:
    """Fully connected layers with ReLU between them.

    Args:
        shape: shape of a sample.
        classes: number of classes.
        hidden: width of each hidden layer.
    """
    check_widths("hidden", hidden)
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
    before, height, width = image_shape("cnn", shape)
    check_widths("channels", channels)
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


def image_shape(model: str, shape: Sequence[int], least: int = 1) -> tuple[int, int, int]:
    """Channels, height and width of a sample.

    Args:
        model: the name of the model that takes it, for errors.
        shape: shape of a sample.
        least: pixels that it needs on each side.

    Raises:
        ValueError: if samples are not images, or too small.
    """
    if len(shape) != 3:
        raise ValueError(
            f"{model} takes images of shape (channels, height, width), not samples of shape {tuple(shape)}"
        )
    channels, height, width = shape
    if min(height, width) < least:
        raise ValueError(f"{model} takes images of at least {least} x {least}; these are {height} x {width}")
    return channels, height, width


def check_widths(name: str, widths: Sequence[int]) -> None:
    """Raise `ValueError` if a layer would be empty."""
    if not all(width >= 1 for width in widths):
        raise ValueError(f"{name}={list(widths)}: every layer needs a width of at least 1")
