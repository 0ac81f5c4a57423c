"""Arrays of either kind: NumPy's or PyTorch's, computed with in double precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

Array: TypeAlias = Tensor | np.ndarray


def numbers(given: Array | Sequence[float]) -> np.ndarray:
    """An array as NumPy's, in double precision."""
    return given.detach().cpu().double().numpy() if isinstance(given, Tensor) else np.asarray(given, dtype=np.float64)


def like(result: np.ndarray, given: Array) -> Array:
    """A result of the kind, dtype and device of what it was computed from; in NumPy in double precision."""
    return torch.as_tensor(result).to(given) if isinstance(given, Tensor) else result
