"""CIFAR-10 from the folder of its official binary version."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tether.data.augmentation import CropAndFlip
from tether.data.dataset import Dataset

MEAN = (0.4914, 0.4822, 0.4465)
DEVIATION = (0.2023, 0.1994, 0.2010)
"""What Leader SGD shifts and scales the three channels by, of values in [0, 1] (section 9.1)."""

_SHAPE = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32


def cifar10(
    folder: str | Path,
    crop: int = 32,
    padding: int = 4,
    flip: bool = True,
    records: int | None = 10_000,
    held_out: int | None = None,
) -> Dataset:
    """60,000 photographs of 32 x 32 in three channels, ten classes, with random crops and flips in training.

    Values are shifted and scaled as in Leader SGD (section 9.1), which crops 28 without padding (CNN7, ResNet20) or 32
    from images padded by 4 (VGG-16), the default. Takes 740 MB of memory, 1.3 GB
    while it is read.

    Args:
        folder: where data_batch_1.bin to data_batch_5.bin and test_batch.bin are, or the folder around
            cifar-10-batches-bin, as the archive cifar-10-binary.tar.gz unpacks.
        crop: height and width of the crops; test images are cropped in their middle.
        padding: black pixels added on each side before; with crop=32 and padding=0 images stay as they are.
        flip: whether half of the crops are mirrored.
        records: images that each file must have, or None for any number.
        held_out: how many of the test images to evaluate on, the first ones. Default: all.

    Raises:
        FileNotFoundError: naming the file that is missing.
        ValueError: if a file is truncated or in another format, or crops do not fit.
    """
    folder = Path(folder)
    if (folder / "cifar-10-batches-bin").is_dir():
        folder /= "cifar-10-batches-bin"
    train = [_read(folder / f"data_batch_{number}.bin", records) for number in range(1, 6)]
    images, labels = (torch.cat(parts) for parts in zip(*train, strict=True))
    test_images, test_labels = _read(folder / "test_batch.bin", records)
    data = Dataset(
        (_scaled(images), labels),
        (_scaled(test_images), test_labels),
        name="cifar10",
        classes=10,
        names=_names(folder / "batches.meta.txt"),
    )
    if held_out is not None:
        data = data.tested_on(held_out)
    if crop == 32 and not padding and not flip:
        return data
    black = tuple(-mean / deviation for mean, deviation in zip(MEAN, DEVIATION, strict=True))
    return data.augmented(CropAndFlip(crop, padding, flip, black))


def _read(path: Path, records: int | None) -> tuple[Tensor, Tensor]:
    """Images `[n, 3, 32, 32]` of bytes and their labels; a record is a label, then red, green and blue, row by row."""
    if not path.is_file():
        other = path.with_suffix("")
        hint = f"{other.name} is of the Python version; fetch" if other.is_file() else "point `folder` at the folder of"
        raise FileNotFoundError(f"no {path.name} in {path.parent}: {hint} CIFAR-10's binary version")
    content = np.fromfile(path, np.uint8)
    found, rest = divmod(len(content), _RECORD)
    if rest or not found or found != (records or found):
        wanted = f"{records:,} images" if records else "a whole number of images"
        raise ValueError(
            f"{path} has {len(content):,} bytes, not {wanted} of {_RECORD:,}: it is truncated or not of CIFAR-10's "
            "binary version; fetch it again"
        )
    table = content.reshape(found, _RECORD)
    labels = table[:, 0]
    if labels.max() > 9:
        first = int((labels > 9).argmax())
        raise ValueError(f"{path}: image {first} has the label {labels[first]}, not 0 to 9: not a file of CIFAR-10")
    return torch.from_numpy(table[:, 1:]).view(-1, *_SHAPE), torch.from_numpy(labels).long()


def _scaled(images: Tensor) -> Tensor:
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))
    return images.float().div_(255).sub_(mean).div_(deviation)


def _names(path: Path) -> tuple[str, ...] | None:
    """What the classes are called, where the file that says it is there."""
    return tuple(path.read_text().split()) if path.is_file() else None
