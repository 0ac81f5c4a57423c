"""Random changes to the samples of a batch, drawn anew at every step.

What is drawn is a function of (seed, worker, batch) and nothing else, as the batches are: simulated and real workers
see the same images, and a resumed run needs no state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from tether.checks import whole


@runtime_checkable
class Augmentation(Protocol):
    """A way to change samples; a frozen dataclass."""

    def __call__(self, batch: tuple[Tensor, ...], generators: Sequence[np.random.Generator]) -> tuple[Tensor, ...]:
        """The batches of several workers, changed.

        Args:
            batch: tensors `[r, batch, ...]`.
            generators: one for each of the r workers, all that may be drawn from.
        """
        ...

    def held_out(self, samples: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What to evaluate on: samples `[n, ...]` of the shape that batches have, nothing drawn.

        Of such samples it makes the same again.
        """
        ...


@dataclass(frozen=True)
class CropAndFlip:
    """Random crops of padded images, half of them mirrored left to right; evaluation is on the central crop.

    Leader SGD crops 28 from 32 x 32, for VGG-16 32 from images padded by 4 (section 9.1).

    Args:
        crop: height and width of a crop.
        padding: pixels added on each side before.
        flip: whether half of the crops are mirrored.
        fill: what the added pixels hold, one number a channel or one for all: black, where values have been shifted.

    Raises:
        ValueError: if crop or padding is no size.
    """

    crop: int
    padding: int = 0
    flip: bool = True
    fill: tuple[float, ...] = (0.0,)

    def __post_init__(self) -> None:
        whole("crop", self.crop, least=1)
        whole("padding", self.padding, least=0)

    def __call__(self, batch: tuple[Tensor, ...], generators: Sequence[np.random.Generator]) -> tuple[Tensor, ...]:
        """See `Augmentation`; the first tensor holds the images, `[r, batch, channels, height, width]`."""
        images, *others = batch
        windows = self._windows(images.flatten(0, 1))
        drawn = np.stack([generator.random((3, images.shape[1])) for generator in generators], axis=1)
        places = np.array([[windows.shape[2]], [windows.shape[3]], [2]])
        top, left, mirrored = torch.from_numpy((drawn.reshape(3, -1) * places).astype(np.int64)).to(images.device)
        crops = windows[torch.arange(len(windows), device=images.device), :, top, left]
        if self.flip:
            crops = torch.where(mirrored.bool().view(-1, 1, 1, 1), crops.flip(-1), crops)
        return crops.unflatten(0, images.shape[:2]), *others

    def held_out(self, samples: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """See `Augmentation`."""
        images, *others = samples
        windows = self._windows(images)
        return windows[:, :, windows.shape[2] // 2, windows.shape[3] // 2].clone(), *others

    def _windows(self, images: Tensor) -> Tensor:
        """Every crop of padded images `[n, c, h, w]`, without copies: `[n, c, tops, lefts, crop, crop]`."""
        sides = [side + 2 * self.padding for side in images.shape[2:]]
        if images.ndim != 4 or min(sides) < self.crop:
            raise ValueError(
                f"crop={self.crop} with padding={self.padding} does not fit in samples of shape "
                f"{tuple(images.shape[1:])}: images are (channels, height, width)"
            )
        if self.padding:
            inside = (..., slice(self.padding, -self.padding), slice(self.padding, -self.padding))
            padded = images.new_tensor(self.fill).view(-1, 1, 1).expand(len(images), images.shape[1], *sides).clone()
            padded[inside] = images
            images = padded
        return images.unfold(2, self.crop, 1).unfold(3, self.crop, 1)
