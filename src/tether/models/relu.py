"""The network of the theory of overparameterised local SGD: ReLU layers without biases under a fixed top layer.

Deng, Kamani, Mahdavi, "Local SGD optimizes overparameterized neural networks in polynomial time" (2022), section 3.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from tether.checks import whole


class UnitNorm(nn.Module):
    """Scales every sample to length 1; one that is zero stays so."""

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """X / |x|."""
        return nn.functional.normalize(x, dim=-1)


def relu_network(
    shape: Sequence[int], classes: int, width: int = 50, depth: int = 1, unit_samples: bool = False
) -> nn.Module:
    """f(x) = V σ(W_L σ(… σ(W_1 x))), of which W_1 … W_L are trained.

    W_l ~ N(0, 2/width) for every layer, the first too; V ~ N(0, 1/classes), fixed: frozen parameters are no columns of
    X and are one copy for all workers. (Algorithm 1; its d beside V is the dimension of the output.)

    Args:
        shape: shape of a sample.
        classes: number of outputs.
        width: neurons m of each hidden layer.
        depth: hidden layers L.
        unit_samples: whether samples are scaled to |x| = 1, as assumption 1 has them.

    Raises:
        ValueError: if width or depth is not at least 1.
    """
    width, depth = whole("width", width, least=1), whole("depth", depth, least=1)
    widths = [math.prod(shape), *[width] * depth]
    layers: list[nn.Module] = [nn.Flatten(), *([UnitNorm()] if unit_samples else [])]
    for before, after in itertools.pairwise(widths):
        hidden = nn.Linear(before, after, bias=False)
        nn.init.normal_(hidden.weight, std=math.sqrt(2 / width))
        layers += [hidden, nn.ReLU()]
    top = nn.Linear(width, classes, bias=False)
    nn.init.normal_(top.weight, std=math.sqrt(1 / classes))
    return nn.Sequential(*layers, top.requires_grad_(False))
