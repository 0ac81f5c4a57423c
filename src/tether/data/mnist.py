"""Images in MNIST's file format: Fashion-MNIST as Debian packages it, MNIST itself or others from a folder."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch

from tether.data.augmentation import CropAndFlip
from tether.data.dataset import Dataset

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package puts its files."""

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def fashion_mnist(
    path: str | Path | None = None,
    crop: int = 28,
    padding: int = 0,
    flip: bool = False,
    held_out: int | None = None,
) -> Dataset:
    """Zalando's 70,000 images of clothes, 28 x 28, ten classes.

    Args:
        path: folder of the four files. Default: where Debian's package `dataset-fashion-mnist` puts them.
        crop: height and width of random crops in training; test images are cropped in their middle.
        padding: black pixels added on each side before.
        flip: whether half of the images are mirrored in training.
        held_out: how many of the test images to evaluate on, the first ones. Default: all.

    Raises:
        FileNotFoundError: saying what to install or where to point.
        ValueError: if a file is damaged, or crops do not fit.
    """
    hint = "Debian and Ubuntu have it as the package dataset-fashion-mnist (apt-get install dataset-fashion-mnist)"
    data = _read(Path(path) if path else FASHION_MNIST, "fashion-mnist", hint)
    if held_out is not None:
        data = data.tested_on(held_out)
    if crop == data.shape[-1] and not padding and not flip:
        return data
    return data.augmented(CropAndFlip(crop, padding, flip, (float(data.train[0].min()),)))


def mnist(path: str | Path, held_out: int | None = None) -> Dataset:
    """MNIST, or any other data set in its format, from a folder of its four files.

    Args:
        path: folder with train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and
            t10k-labels-idx1-ubyte, each as it is or with .gz.
        held_out: how many of the test images to evaluate on, the first ones. Default: all.

    Raises:
        FileNotFoundError: naming the file that is missing.
        ValueError: if a file is damaged.
    """
    data = _read(Path(path), Path(path).name or "mnist", "point `path` at the folder that has it")
    return data if held_out is None else data.tested_on(held_out)


def _read(folder: Path, name: str, hint: str) -> Dataset:
    """Images `[n, 1, height, width]`, shifted and scaled to mean 0 and variance 1 over the training images."""
    raw = {}
    for part in ("train", "t10k"):
        images = _idx(_find(folder, f"{part}-images-idx3-ubyte", hint), dimensions=3)
        labels = _idx(_find(folder, f"{part}-labels-idx1-ubyte", hint), dimensions=1)
        if len(images) != len(labels):
            raise ValueError(f"{folder}: {part} has {len(images)} images but {len(labels)} labels")
        raw[part] = torch.from_numpy(images).unsqueeze(1).float(), torch.from_numpy(labels).long()
    (train_x, train_y), (test_x, test_y) = raw["train"], raw["t10k"]
    if not len(train_x) or not len(test_x) or train_x.min() == train_x.max():
        raise ValueError(f"{folder}: there is nothing to tell apart in {len(train_x)} and {len(test_x)} images")
    deviation, mean = torch.std_mean(train_x, correction=0)
    scaled = ((x - mean) / deviation for x in (train_x, test_x))
    classes = int(train_y.max()) + 1
    return Dataset((next(scaled), train_y), (next(scaled), test_y), name=name, classes=classes)


def _find(folder: Path, file: str, hint: str) -> Path:
    # Some copies of the files have a dot where the others have a dash.
    for name in (file, file.replace("-idx", ".idx")):
        for candidate in (folder / name, folder / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    raise FileNotFoundError(f"no {file} or {file}.gz in {folder}: {hint}")


def _idx(path: Path, dimensions: int) -> np.ndarray:
    """An array in the IDX format: two zero bytes, a type, the number of dimensions, their sizes, the values."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, OSError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is truncated or damaged ({error}); fetch it again") from error
    header = 4 + 4 * dimensions
    if len(content) < header or content[:2] != b"\0\0" or content[2] not in _TYPES or content[3] != dimensions:
        raise ValueError(f"{path} is not an IDX file of {dimensions} dimensions; fetch it again")
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", dimensions, offset=4))
    kind = np.dtype(_TYPES[content[2]])
    expected = header + math.prod(shape) * kind.itemsize
    if len(content) != expected:
        raise ValueError(f"{path} has {len(content)} bytes where its header promises {expected}; fetch it again")
    return np.frombuffer(content, kind, offset=header).reshape(shape).astype(kind.newbyteorder("="))
