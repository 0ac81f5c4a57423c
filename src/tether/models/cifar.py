"""Convolutional networks for CIFAR-10, as the papers of local-update SGD train them.

Teng et al., "Leader stochastic gradient descent for distributed training of deep learning models" (2019), section 5,
and the code that its authors published; Wang & Joshi, "Cooperative SGD" (2021), appendix A.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tether.checks import whole
from tether.models.classifiers import check_widths, image_shape


def cnn7(shape: Sequence[int], classes: int, dropout: float = 0.5, width: int = 64) -> nn.Module:
    """The seven layers of the EASGD paper (Zhang et al., 2015, section 5.1), for crops of 28 x 28.

    64 channels of 5 x 5, maximum, 128 of 5 x 5, maximum, 64 of 3 x 3, 256 neurons with dropout, the classes. As in the
    code of Leader SGD's authors, the 256 are not rectified.

    Args:
        shape: shape of an image: channels, height, width.
        classes: number of classes.
        dropout: share of the 256 neurons that is left out at each step.
        width: channels of the first layer; the others have as many times more as the paper's.

    Raises:
        ValueError: if samples are not images of at least 24 x 24.
    """
    channels, *sides = image_shape("cnn7", shape, least=24)
    width = whole("width", width, least=1)
    pixels = math.prod(((side - 4) // 2 - 4) // 2 - 2 for side in sides)
    return nn.Sequential(
        nn.Conv2d(channels, width, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(2 * width, width, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(width * pixels, 4 * width),
        nn.Dropout(dropout),
        nn.Linear(4 * width, classes),
    )


class Residual(nn.Module):
    """Two convolutions of 3 x 3 beside a shortcut without parameters: every other pixel, new channels zero.

    He et al., "Deep residual learning for image recognition" (2016), section 4.2 and option A.

    Args:
        before: channels of the input.
        after: channels of the output; if more, its sides are half as long.
    """

    def __init__(self, before: int, after: int):
        super().__init__()
        self.stride = 1 if before == after else 2
        self.first = nn.Sequential(
            nn.Conv2d(before, after, 3, self.stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()
        )
        self.second = nn.Sequential(nn.Conv2d(after, after, 3, padding=1, bias=False), nn.BatchNorm2d(after))
        self.missing = after - before

    def forward(self, x: Tensor) -> Tensor:
        """Images `[batch, before, height, width]` to `[batch, after, ...]`."""
        shortcut = x[:, :, :: self.stride, :: self.stride]
        half = self.missing // 2
        shortcut = nn.functional.pad(shortcut, (0, 0, 0, 0, half, self.missing - half))
        return torch.relu(self.second(self.first(x)) + shortcut)


def resnet20(shape: Sequence[int], classes: int, blocks: int = 3, width: int = 16) -> nn.Module:
    """The residual network of 20 layers for CIFAR-10, with batch normalisation (He et al., 2016, section 4.2).

    One convolution, then three stages of residual blocks with 16, 32 and 64 channels, the mean of each channel, one
    linear layer. Weights start from He's N(0, 2 / fan-out).

    Args:
        shape: shape of an image: channels, height, width.
        classes: number of classes.
        blocks: blocks n of each stage; the network has 6n + 2 layers.
        width: channels of the first stage.

    Raises:
        ValueError: if samples are not images of at least 4 x 4.
    """
    channels, _, _ = image_shape("resnet20", shape, least=4)
    blocks, width = whole("blocks", blocks, least=1), whole("width", width, least=1)
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    before = width
    for after in (width, 2 * width, 4 * width):
        for _ in range(blocks):
            layers.append(Residual(before, after))
            before = after
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))
    return _kaiming(network)


VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of the convolutions between the maxima (Simonyan & Zisserman, 2014, configuration D)."""


def vgg16(
    shape: Sequence[int],
    classes: int,
    hidden: Sequence[int] = (512, 512),
    batch_norm: bool = True,
    dropout: float = 0.5,
    channels: Sequence[Sequence[int]] = VGG16,
) -> nn.Module:
    """VGG-16 for images of 32 x 32: thirteen convolutions of 3 x 3 and three linear layers.

    The defaults are the network of Leader SGD's authors. `hidden=[]` is the one with a single linear layer, which is as
    common for CIFAR-10; neither paper prints which it means.

    Args:
        shape: shape of an image: channels, height, width.
        classes: number of classes.
        hidden: neurons of the linear layers before the last.
        batch_norm: whether each convolution is followed by batch normalisation.
        dropout: share of what each hidden linear layer is given that is left out at each step.
        channels: channels of the convolutions before each maximum over 2 x 2.

    Raises:
        ValueError: if samples are not images, or too small for so many halvings.
    """
    before, height, width = image_shape("vgg16", shape, least=2 ** len(channels))
    check_widths("hidden", hidden)
    layers: list[nn.Module] = []
    for stage in channels:
        check_widths("channels", stage)
        for after in stage:
            normalised = [nn.BatchNorm2d(after)] if batch_norm else []
            layers += [nn.Conv2d(before, after, 3, padding=1), *normalised, nn.ReLU()]
            before = after
        layers.append(nn.MaxPool2d(2))
    layers.append(nn.Flatten())
    neurons = before * (height >> len(channels)) * (width >> len(channels))
    for after in hidden:
        layers += [nn.Dropout(dropout), nn.Linear(neurons, after), nn.ReLU()]
        neurons = after
    return _kaiming(nn.Sequential(*layers, nn.Linear(neurons, classes)))


def _kaiming(network: nn.Module) -> nn.Module:
    """Convolutions start from N(0, 2 / (kernel area x channels out)), their biases from 0."""
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    return network
