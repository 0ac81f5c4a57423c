"""Gradient descent of a few workers on a function of the line or the plane, coupled by a method and watched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

import tether
from tether.papers.watched import Watched


class Place(nn.Module):
    """A place; forward gives the height of a surface there.

    Args:
        surface: surface(place) -> scalar, for a place `[d]`.
        dimensions: d.
    """

    def __init__(self, surface: Callable[[Tensor], Tensor], dimensions: int):
        super().__init__()
        self.surface = surface
        self.at = nn.Parameter(torch.zeros(dimensions, dtype=torch.float64))

    def forward(self) -> Float[Tensor, ""]:
        """The height at the place."""
        return self.surface(self.at)


@dataclass(frozen=True)
class Descent:
    """What a method did.

    Attributes:
        rows: `[t + 1, m, d]`, the workers after 0 to t iterations.
        center: `[t + 1, d]`, the variable that pulls them, for elastic averaging; else their mean.
    """

    rows: Float[Tensor, "t m d"]
    center: Float[Tensor, "t d"]

    def until(self, iterations: int) -> Descent:
        """The first so many iterations of it."""
        return Descent(self.rows[: iterations + 1], self.center[: iterations + 1])

    @property
    def moved(self) -> float:
        """How far a coordinate of a worker moved in the last iteration, at most."""
        return float((self.rows[-1] - self.rows[-2]).abs().max())


def descend(
    surface: Callable[[Tensor], Tensor],
    method: tether.Method,
    starts: Sequence[Sequence[float]],
    lr: float,
    iterations: int,
) -> Descent:
    """Gradient descent from m places `[m, d]`, the pull taken at the old point as the gradient is."""
    watched = Watched.of(method)
    start = torch.tensor(starts, dtype=torch.float64)
    tether.simulate(
        Place(surface, start.shape[1]),
        watched,
        workers=len(start),
        objective=lambda place, batch: place(),
        optimizer=lambda p: torch.optim.SGD(p, lr=lr),
        steps=iterations + 1,  # what is seen is how each iteration begins
        order="mix-then-step",
        start=start,
        stepping="rows",
    )
    rows = torch.stack([x for x, _ in watched.seen])
    anchors = [state["anchor"][0] for _, state in watched.seen if "anchor" in state]
    return Descent(rows, torch.stack(anchors) if anchors else rows.mean(1))
