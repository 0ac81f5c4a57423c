"""The two networks of the second-order paper, small enough for a full Hessian.

Pan & Song, "Local SGD accelerates convergence by exploiting second order information of the loss function", table 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from tether.models.classifiers import image_shape


def second_order_mlp(shape: Sequence[int], classes: int, rectified: bool = True) -> nn.Module:
    """One linear layer, FC(784, 10): d = 7,850 on MNIST.

    Args:
        shape: shape of a sample.
        classes: number of classes.
        rectified: whether the outputs pass through a ReLU, as table 4 has it. An output that is negative on all samples
            then has no gradient, and its class is lost for good; without it this is softmax regression.
    """
    layers = [nn.Flatten(), nn.Linear(math.prod(shape), classes)]
    return nn.Sequential(*layers, *_last(rectified))


def second_order_cnn(shape: Sequence[int], classes: int, rectified: bool = True) -> nn.Module:
    """Two convolutions of 5 x 5 to 5 and 10 channels, each with ReLU and a maximum over 2 x 2, then 50 and the classes.

    d = 14,700 on CIFAR-10.

    Args:
        shape: shape of an image: channels, height, width.
        classes: number of classes.
        rectified: whether the outputs pass through a ReLU, as table 4 has it; see `second_order_mlp`.

    Raises:
        ValueError: if samples are not images of at least 16 x 16.
    """
    channels, height, width = image_shape("second-order-cnn", shape, least=16)
    height, width = (((side - 4) // 2 - 4) // 2 for side in (height, width))
    return nn.Sequential(
        nn.Conv2d(channels, 5, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(5, 10, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(10 * height * width, 50),
        nn.ReLU(),
        nn.Linear(50, classes),
        *_last(rectified),
    )


def _last(rectified: bool) -> list[nn.Module]:
    return [nn.ReLU()] if rectified else []
