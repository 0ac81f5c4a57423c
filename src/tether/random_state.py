"""The generators of random numbers that a user's training loop draws from."""

from __future__ import annotations

import random

import numpy as np
import torch

from tether.trees import Tree


def take(device: torch.device) -> Tree:
    """The states of Python's, NumPy's and PyTorch's global generators, and of the device's own."""
    version, numbers, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": (version, numbers, gauss),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "device": torch.get_device_module(device).get_rng_state(device) if device.type != "cpu" else None,
    }


def restore(state: Tree, device: torch.device) -> None:
    """Put back what `take` took."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["device"] is not None and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state["device"], device)
