"""scikit-learn's bundled digits: 1,797 images of 8 x 8, ten classes."""

from __future__ import annotations

import torch

from tether.data.dataset import Dataset


def digits() -> Dataset:
    """Images `[n, 1, 8, 8]` with values in [0, 1], four fifths of each class for training, the rest held out.

    Raises:
        ModuleNotFoundError: without scikit-learn; the message says what to install.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the digits come with scikit-learn, which is not installed: pip install 'tether[data]'"
        ) from error
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images / 16, labels, test_size=0.2, random_state=0, stratify=labels)
    train_x, test_x = (torch.tensor(x, dtype=torch.float32).view(-1, 1, 8, 8) for x in split[:2])
    train_y, test_y = (torch.tensor(y) for y in split[2:])
    return Dataset((train_x, train_y), (test_x, test_y), name="digits", classes=10)
