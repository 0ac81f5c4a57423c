"""Photographs in folders of their classes, as ImageNet's are: each is read when a batch needs it.

The crops are those of Teng et al., "Leader stochastic gradient descent for distributed training of deep learning
models" (2019), section 9.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from tether.checks import whole
from tether.data.dataset import Dataset

if TYPE_CHECKING:
    from PIL import Image

MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
"""What the three channels of ImageNet are shifted and scaled by, of values in [0, 1]."""

SUFFIXES = (".jpeg", ".jpg", ".png")
AREAS, RATIOS = (0.08, 1.0), (3 / 4, 4 / 3)
"""Of a random part: its share of the image's area, and its aspect ratio over the image's; both drawn evenly."""

TRIES = 10
"""Parts that are drawn, of which the first that lies within the image is taken; six of seven do."""


def image_folder(folder: str | Path, crop: int = 224, resized: int = 256, held_out: int | None = None) -> Dataset:
    """Images in folders `train/CLASS` and `val/CLASS`, in ImageNet's layout; only their names are kept in memory.

    Args:
        folder: the one with `train` and `val` in it.
        crop: height and width of the samples (`Photographs`).
        resized: of what an image's shorter side is resized to, `crop` in the middle is evaluated on.
        held_out: how many images of `val` to evaluate on, evenly spread over the classes. Default: all.

    Raises:
        FileNotFoundError: naming the folder that is missing, or has no images.
        ModuleNotFoundError: without Pillow; the message says what to install.
        ValueError: if the two do not have the same classes; when it is read, for an image that is damaged.
    """
    try:
        import PIL.Image  # noqa: F401  says so now rather than in the first batch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "images are read by Pillow, which is not installed: pip install 'tether[data]'"
        ) from error
    names, train, labels = _listed(Path(folder) / "train")
    theirs, test, test_labels = _listed(Path(folder) / "val")
    if names != theirs:
        different = ", ".join(sorted(set(names) ^ set(theirs))[:5])
        raise ValueError(f"{folder}: train and val have different classes: {different}")
    count = len(test) if held_out is None else whole("held_out", held_out, 1, len(test))
    chosen = np.arange(count) * len(test) // count
    return Dataset(
        (torch.arange(len(train)), torch.from_numpy(labels)),
        (torch.from_numpy(len(train) + chosen), torch.from_numpy(test_labels[chosen])),
        name=Path(folder).name,
        classes=len(names),
        names=names,
        augmentation=Photographs((*train, *test), crop, resized),
    )


def _listed(folder: Path) -> tuple[tuple[str, ...], list[Path], np.ndarray]:
    """The classes, and the path and label of each image."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no {folder.name} in {folder.parent}: give the folder with train and val in it, each with a folder a class"
        )
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    images = [sorted(path for path in each.iterdir() if path.suffix.lower() in SUFFIXES) for each in classes]
    for each, found in zip(classes, images, strict=True):
        if not found:
            raise FileNotFoundError(f"no image in {each}: give one that ends in {', '.join(SUFFIXES)}")
    if not images:
        raise FileNotFoundError(f"no folder of a class in {folder}")
    labels = np.repeat(np.arange(len(images)), [len(found) for found in images])
    return tuple(each.name for each in classes), [path for found in images for path in found], labels


@dataclass(frozen=True)
class Photographs:
    """Turns the numbers of images into images: a random part of each, half of them mirrored.

    A part has a random share of the image's area, and an aspect ratio of its own. To be evaluated on, the middle of an
    image is taken. Values are shifted and scaled as ImageNet's are (Leader SGD, section 9.1).

    Args:
        paths: of all images; a sample is the number of one.
        crop: height and width of what is made of an image.
        resized: an image's shorter side is resized to so many pixels, of which `crop` in the middle are evaluated on.

    Raises:
        ValueError: if a size is not possible; when it is read, for an image that is damaged.
    """

    paths: tuple[Path, ...]
    crop: int = 224
    resized: int = 256

    def __post_init__(self) -> None:
        whole("crop", self.crop, least=1)
        whole("resized", self.resized, least=self.crop)

    def __call__(self, batch: tuple[Tensor, ...], generators: Sequence[np.random.Generator]) -> tuple[Tensor, ...]:
        """See `Augmentation`; the first tensor holds the numbers of images, `[r, batch]`."""
        numbers, *others = batch
        size = numbers.shape[1]
        drawn = [(generator.random((TRIES, 4, size)), generator.random(size)) for generator in generators]
        parts = np.concatenate([_parts(places) for places, _ in drawn])
        mirrored = torch.from_numpy(np.concatenate([mirror for _, mirror in drawn]) < 0.5)
        images = self._read(numbers.flatten(), parts)
        images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)
        return images.to(numbers.device).unflatten(0, numbers.shape), *others

    def held_out(self, samples: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """See `Augmentation`."""
        numbers, *others = samples
        if numbers.is_floating_point():
            return samples  # images already
        return self._read(numbers, [None] * len(numbers)).to(numbers.device), *others

    def _read(self, numbers: Tensor, parts: Iterable[np.ndarray | None]) -> Float[Tensor, "n 3 crop crop"]:
        paths = [self.paths[number] for number in numbers.tolist()]
        with ThreadPoolExecutor() as threads:  # Pillow decodes beside other threads
            images = torch.from_numpy(np.stack(list(threads.map(self._open, paths, parts))))
        mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))
        return images.permute(0, 3, 1, 2).float().div_(255).sub_(mean).div_(deviation)

    def _open(self, path: Path, part: np.ndarray | None) -> UInt8[np.ndarray, "crop crop 3"]:
        """A part of an image, or its middle, resized."""
        from PIL import Image

        try:
            with Image.open(path) as image:
                part = self._middle(image) if part is None else part
                across = part[2:] - part[:2]
                # A JPEG is decoded at half, a quarter or an eighth of its size where that is enough.
                image.draft("RGB", tuple(math.ceil(self.crop / share) for share in across))
                left, top, right, bottom = (part.reshape(2, 2) * image.size).ravel().tolist()
                square = image.convert("RGB").resize(
                    (self.crop, self.crop), Image.Resampling.BILINEAR, box=(left, top, right, bottom)
                )
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{path} is not an image, or damaged ({error}); fetch it again") from error
        return np.asarray(square)

    def _middle(self, image: Image.Image) -> Float[np.ndarray, " 4"]:
        """The part that is evaluated on."""
        share = self.crop / self.resized * min(image.size) / np.array(image.size)
        return np.concatenate([0.5 - share / 2, 0.5 + share / 2])


def _parts(drawn: Float[np.ndarray, "tries 4 n"]) -> Float[np.ndarray, "n 4"]:
    """Left, top, right and bottom of random parts, of an image whose sides are 1: of each the first that fits in.

    A part of area a and aspect ratio r, both relative to the image's, has the sides (ar)^(1/2) and (a/r)^(1/2). Where
    none fits, once in 200 million times, the whole image is taken.
    """
    area, ratio = (low + (high - low) * drawn[:, at] for at, (low, high) in enumerate((AREAS, RATIOS)))
    sides = np.sqrt([area * ratio, area / ratio])  # [2, tries, n]
    fits = (sides <= 1).all(0)
    first = fits.argmax(0)
    each = np.arange(len(first))
    sides = np.where(fits.any(0), sides[:, first, each], 1.0)
    start = drawn[first, 2:, each].T * (1 - sides)
    return np.concatenate([start, start + sides]).T
