"""A small data set in MNIST's files."""

import numpy as np


def write(folder, images, labels):
    """Images `[n, height, width]` of bytes and their labels; the last fifth are for testing."""
    folder.mkdir(parents=True, exist_ok=True)
    cut = len(images) * 4 // 5
    for part, chosen in (("train", slice(cut)), ("t10k", slice(cut, None))):
        for what, values in (("images-idx3", images[chosen]), ("labels-idx1", labels[chosen])):
            header = bytes([0, 0, 0x08, values.ndim]) + np.array(values.shape, ">u4").tobytes()
            (folder / f"{part}-{what}-ubyte").write_bytes(header + values.astype(np.uint8).tobytes())
    return folder


def blots(count, side, seed=0):
    """Ten kinds of noisy images, each bright in places of its own."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 10
    kinds = random.integers(0, 200, (10, side, side))
    images = np.clip(kinds[labels] + random.normal(0, 40, (count, side, side)), 0, 255)
    images[0, 0, :2] = 0, 255
    return images.astype(np.uint8), labels.astype(np.uint8)
