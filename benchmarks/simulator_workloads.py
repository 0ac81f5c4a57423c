"""What simulators are measured on: small models and data of the usual shapes, the same for PyTorch and for JAX."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tether.data import Dataset
from tether.data.partition import Assigned

LR = 0.05


@dataclass(frozen=True)
class Workload:
    """One thing to train.

    Attributes:
        about: what it is.
        workers: m.
        batch: samples a local step.
        period: local steps between rounds.
        held: samples that each worker has.
        rounds: rounds a timing.
        model: makes the model.
        sample: makes n samples, inputs and targets, at random: what they are does not matter to the speed.
        jax: loss(parameters by the model's names, inputs, targets) in JAX.
        samples: how many there are in all; workers share them if they are too few. Default: each has its own.
    """

    about: str
    workers: int
    batch: int
    period: int
    held: int
    rounds: int
    model: Callable[[], nn.Module]
    sample: Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
    jax: Callable[[dict[str, Any], Any, Any], Any]
    samples: int | None = None

    def make_model(self) -> nn.Module:
        torch.manual_seed(0)
        return self.model()

    def make_data(self) -> Dataset:
        """Samples, so many held by each worker."""
        count = self.samples or self.held * self.workers
        starts = [worker * self.held % count for worker in range(self.workers)]
        held = [np.arange(start, start + self.held) for start in starts]
        return Dataset(self.sample(count, torch.Generator().manual_seed(0)), partition=Assigned(held))


def objective(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    outputs = model(batch[0])
    return nn.functional.cross_entropy(outputs.flatten(0, -2), batch[1].flatten())


def images(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return (
        torch.rand(count, 1, 28, 28, generator=generator),
        torch.randint(10, (count,), generator=generator),
    )


def texts(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    text = torch.randint(256, (count, 129), generator=generator)
    return text[:, :-1].contiguous(), text[:, 1:].contiguous()


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 50), nn.ReLU(), nn.Linear(50, 10))


def cnn() -> nn.Module:
    """Pan & Song's CNN ("Local SGD accelerates convergence by exploiting second order information", table 4)."""
    return nn.Sequential(
        nn.Conv2d(1, 5, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(5, 10, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(160, 50),
        nn.ReLU(),
        nn.Linear(50, 10),
    )


class Layer(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inward, self.outward = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.inward(self.norm1(x)).view(*x.shape[:2], 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.outward(seen.transpose(1, 2).reshape(x.shape))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    def __init__(self, layers: int = 4, width: int = 128, heads: int = 4, length: int = 128, symbols: int = 256):
        super().__init__()
        self.symbols, self.places = nn.Embedding(symbols, width), nn.Parameter(torch.randn(length, width) / 50)
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(layers)))
        self.norm, self.last = nn.LayerNorm(width), nn.Linear(width, symbols, bias=False)

    def forward(self, text: Tensor) -> Tensor:
        return self.last(self.norm(self.layers(self.symbols(text) + self.places)))


def jax_entropy(logits: Any, targets: Any) -> Any:
    import jax

    log = jax.nn.log_softmax(logits.reshape(-1, logits.shape[-1]))
    return -jax.numpy.take_along_axis(log, targets.reshape(-1, 1), 1).mean()


def jax_linear(p: dict[str, Any], name: str, x: Any) -> Any:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def jax_mlp(p: dict[str, Any], x: Any, y: Any) -> Any:
    import jax

    return jax_entropy(jax_linear(p, "3", jax.nn.relu(jax_linear(p, "1", x.reshape(len(x), -1)))), y)


def jax_cnn(p: dict[str, Any], x: Any, y: Any) -> Any:
    import jax
    from jax import lax

    for name in ("0", "3"):
        x = lax.conv_general_dilated(x, p[f"{name}.weight"], (1, 1), "VALID") + p[f"{name}.bias"][:, None, None]
        n, c, height, width = x.shape
        x = jax.nn.relu(x).reshape(n, c, height // 2, 2, width // 2, 2).max((3, 5))
    return jax_entropy(jax_linear(p, "9", jax.nn.relu(jax_linear(p, "7", x.reshape(len(x), -1)))), y)


def jax_transformer(p: dict[str, Any], text: Any, targets: Any) -> Any:
    import jax
    import jax.numpy as jnp

    def norm(name: str, x: Any) -> Any:
        x = x - x.mean(-1, keepdims=True)
        return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]

    x = p["symbols.weight"][text] + p["places"]
    batch, length, width = x.shape
    ahead = jnp.triu(jnp.ones((length, length), bool), 1)
    for layer in (f"layers.{i}" for i in range(sum(name.endswith("up.weight") for name in p))):
        parts = jax_linear(p, f"{layer}.inward", norm(f"{layer}.norm1", x)).reshape(batch, length, 3, 4, width // 4)
        query, key, value = parts.transpose(2, 0, 3, 1, 4)
        scores = jnp.where(ahead, -jnp.inf, query @ key.swapaxes(-1, -2) / math.sqrt(width // 4))
        seen = (jax.nn.softmax(scores) @ value).swapaxes(1, 2).reshape(x.shape)
        x = x + jax_linear(p, f"{layer}.outward", seen)
        hidden = jax.nn.gelu(jax_linear(p, f"{layer}.up", norm(f"{layer}.norm2", x)), approximate=False)
        x = x + jax_linear(p, f"{layer}.down", hidden)
    return jax_entropy(norm("norm", x) @ p["last.weight"].T, targets)


WORKLOADS = {
    "W1": Workload("50 workers, MLP 784-50-10, batch 32, period 10", 50, 32, 10, 1200, 20, mlp, images, jax_mlp),
    "W2": Workload("100 workers, CNN on 28 x 28, batch 10, period 50", 100, 10, 50, 500, 1, cnn, images, jax_cnn),
    "W3": Workload(
        "8 workers, transformer of 4 layers of width 128, batch 8 x 128, period 10",
        8,
        8,
        10,
        200,
        1,
        Transformer,
        texts,
        jax_transformer,
    ),
}
