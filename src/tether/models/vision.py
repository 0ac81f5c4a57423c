"""The networks of torchvision."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def from_torchvision(shape: Sequence[int], classes: int, architecture: str) -> nn.Module:
    """A network of torchvision's for images, by its name there, with new weights.

    Args:
        shape: shape of an image; these networks take three channels of nearly any height and width.
        classes: number of classes.
        architecture: such as "resnet50": one of `torchvision.models.list_models()`.

    Raises:
        ValueError: if torchvision cannot be imported, or has no such network.
    """
    try:
        from torchvision.models import get_model
    except (ImportError, RuntimeError) as error:  # RuntimeError: it was built for another torch
        raise ValueError(
            f"architecture={architecture!r} is torchvision's, which cannot be imported here ({error}): pip install "
            "'tether[vision]', the build that belongs to this torch"
        ) from error
    return get_model(architecture, weights=None, num_classes=classes)
