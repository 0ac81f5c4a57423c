"""MNIST, which experiments of two papers are on, or what stands in for it."""

from __future__ import annotations

from typing import Any

from tether.papers.experiments import Setting

MNIST = "MNIST, its four files"
STAND_IN = "Fashion-MNIST"


def mnist_or_stand_in(setting: Setting, held_out: int | None = None) -> dict[str, Any]:
    """The data as a config has it.

    Args:
        setting: which may have the folder of MNIST.
        held_out: how many of the test images to evaluate on. Default: all.
    """
    which = {"name": "mnist", "path": str(setting.data)} if setting.data else {"name": "fashion-mnist"}
    return which | {"held_out": held_out}
