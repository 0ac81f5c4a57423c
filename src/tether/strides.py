"""Local steps of rows that are not all at the same count: workers that run at their own speeds.

Rows share an optimizer only while they step together. In between, what an optimizer keeps of each parameter is kept as
rows, and the rest (a count of steps, learning rates, the scheduler) once for all rows that have it in common. So any
rows can step together that agree in the latter, wherever in their data each of them is: all of them, if the optimizer
counts nothing and nothing is scheduled.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from tether.data import Feed
from tether.gradients import CompiledGradients, Way
from tether.replicas import Replicas
from tether.stepping import (
    Block,
    OptimizerFactory,
    RandomSteps,
    SchedulerFactory,
    load_optimizer_state,
    optimizer_state,
)


class Strides:
    """Local steps of rows that take them each at its own count.

    Args:
        replicas: the rows, all there are.
        way: how gradients are computed, and how many rows step together at most.
        feed: what each worker takes its steps on.
        optimizer: makes an elementwise `torch.optim` optimizer from a list with one parameter, `[rows, d]`.
        scheduler: makes a learning-rate scheduler from the optimizer; stepped after every local step.
        random: seeds what the model draws.

    Attributes:
        counts: `[m]`, local steps of each row so far; one of which only the gradients are there is counted.
        lr: `[m]`, the learning rate of each row's last step.
    """

    def __init__(
        self,
        replicas: Replicas,
        way: Way,
        feed: Feed,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None,
        random: RandomSteps,
    ):
        rows = len(replicas.x)
        self.counts: Int[np.ndarray, " m"] = np.zeros(rows, dtype=np.int64)
        self.lr: Float[np.ndarray, " m"] = np.zeros(rows)
        self._replicas, self._way, self._feed, self._random = replicas, way, feed, random
        self._factories = optimizer, scheduler
        self._spare: list[Tensor] = []
        self._moments: dict[str, Float[Tensor, "m d"]] = {}
        self._held = np.zeros(rows, dtype=bool)
        self._gradients: Float[Tensor, "m d"] | None = None
        # What rows that step together must have in common: by a text that says what it is, and which row has which.
        self._kinds: dict[str, dict[str, Any]] = {}
        self._kind = [""] * rows
        self._first_state = optimizer_state([Block(replicas, slice(0, 1), optimizer, scheduler)])
        self._set_kind(list(range(rows)), *self._first_state)

    def take(self, rows: Sequence[int], steps: Sequence[int], hold: bool = False) -> dict[int, Float[Tensor, " steps"]]:
        """Take each of these rows so many steps further. Returns each row's losses in them.

        Args:
            rows: which; a row that was held takes its step first.
            steps: how many each of them takes.
            hold: whether the last step of each has its gradients only, until the next call or `finish` takes it.
        """
        losses: dict[int, list[Tensor]] = {row: [] for row in rows}
        left = {row: count for row, count in zip(rows, steps, strict=True) if count}
        while left:
            for together in self._groups(list(left)):
                count = min(left[row] for row in together)
                ends = [row for row in together if left[row] == count]
                going = [row for row in together if left[row] > count]
                # Rows that end here may hold their last step, which for the others is one like any other.
                for part, hold_last in ((ends, True), (going, False)) if hold else ((together, False),):
                    for chunk in _chunks(part, self._way.block):
                        taken = self._stride(chunk, count, hold_last)
                        for row, mine in zip(chunk, taken, strict=True):
                            losses[row].append(mine)
                for row in together:
                    left[row] -= count
            left = {row: count for row, count in left.items() if count}
        return {row: torch.cat(each) if each else torch.empty(0, dtype=torch.float64) for row, each in losses.items()}

    def finish(self, rows: Sequence[int]) -> None:
        """Take the steps of which these rows have their gradients only."""
        for together in self._groups([row for row in rows if self._held[row]]):
            for chunk in _chunks(together, self._way.block):
                self._stride(chunk, 0, hold=False)

    def moments(self) -> list[dict[str, Float[Tensor, "m d"]]]:
        """The optimizers' state that has a value a parameter, of all rows; zeros for those that have none yet."""
        return [self._moments]

    def reset_optimizer(self, rows: Sequence[int]) -> None:
        """Put the optimizer's state of these rows back to what it was before the first step."""
        for row in rows:
            rest = self._kinds[self._kind[row]]
            fresh = copy.deepcopy({**rest, "state": self._first_state[1]["state"]})
            self._set_kind([row], self._first_state[0], fresh)

    def state(self) -> tuple[dict[str, Float[Tensor, "m d"]], dict[str, Any]]:
        """All that it needs to go on: moments, and gradients held, as rows, and the rest."""
        rows = dict(self._moments)
        if self._gradients is not None and self._held.any():
            rows["held gradient"] = self._gradients
        names = list(self._kinds)
        return rows, {
            "counts": torch.from_numpy(self.counts.copy()),
            "lr": torch.from_numpy(self.lr.copy()),
            "held": torch.from_numpy(self._held.copy()),
            "kinds": [copy.deepcopy(self._kinds[name]) for name in names],
            "names": names,
            "kind": [names.index(name) for name in self._kind],
        }

    def load(self, moments: Mapping[str, Float[Tensor, "m d"]], rest: Mapping[str, Any]) -> None:
        """Go on from a `state` of the same rows."""
        self._moments = {name: rows.clone() for name, rows in moments.items() if name != "held gradient"}
        self._gradients = moments.get("held gradient")
        self.counts, self.lr, self._held = (rest[name].numpy().copy() for name in ("counts", "lr", "held"))
        self._kinds = dict(zip(rest["names"], copy.deepcopy(rest["kinds"]), strict=True))
        self._kind = [rest["names"][number] for number in rest["kind"]]

    def _groups(self, rows: Sequence[int]) -> Iterator[list[int]]:
        """Rows that can step together: alike in what their optimizers have in common, in batch size and in phase."""
        groups: defaultdict[tuple[str, int, bool], list[int]] = defaultdict(list)
        for row in sorted(rows):
            groups[self._kind[row], int(self._feed.sizes[row]), bool(self._held[row])].append(row)
        yield from groups.values()

    def _stride(self, rows: list[int], steps: int, hold: bool) -> Float[Tensor, "rows steps"]:
        """Take rows of one kind so many steps together."""
        where = _slice(rows)
        part = self._replicas.part(where)
        kind = self._kind[rows[0]]
        block = Block(part, slice(0, len(rows)), *self._factories, self._spare)
        names = self._names(kind)
        load_optimizer_state([block], {name: self._moments[name][where] for name in names}, self._kinds[kind])
        if self._held[rows[0]]:
            assert self._gradients is not None
            block.parameter.grad = self._gradients[where].clone()
            block.update()
        gradients = self._way.gradients
        if isinstance(gradients, CompiledGradients) and len(rows) != self._way.block:
            gradients = gradients.plain  # to compile for every number of rows would take longer than it saves
        losses = torch.empty(len(rows), steps, dtype=torch.float64)
        for step in range(steps):
            counts = (self.counts[rows] + step).tolist()
            self._random.seed(counts[0], rows[0])
            losses[:, step] = block.gradients(gradients, self._feed(rows, counts))
            if not (hold and step == steps - 1):
                block.update()
        if hold:
            self._hold(where, block.parameter.grad)
        self._held[rows] = hold
        self.counts[rows] += steps
        if steps:
            self.lr[rows] = block.lr
        if not isinstance(where, slice):
            self._replicas.x[where] = part.x
            for name, buffer in part.buffers.items():
                self._replicas.buffers[name][where] = buffer
        self._set_kind(rows, *optimizer_state([block]))
        block.release()
        return losses

    def _hold(self, where: slice | list[int], gradients: Tensor | None) -> None:
        if self._gradients is None:
            self._gradients = torch.empty_like(self._replicas.x)
        assert gradients is not None
        self._gradients[where] = gradients

    def _names(self, kind: str) -> list[str]:
        """The moments that rows of this kind have."""
        return kind.partition("\n")[0].split(",") if not kind.startswith("\n") else []

    def _set_kind(self, rows: list[int], moments: Mapping[str, Shaped[Tensor, "rows d"]], rest: dict[str, Any]) -> None:
        where = _slice(rows)
        for name, mine in moments.items():
            if name not in self._moments:
                self._moments[name] = torch.zeros_like(self._replicas.x, dtype=mine.dtype)
            self._moments[name][where] = mine
        kind = _text((moments, rest))
        self._kinds.setdefault(kind, copy.deepcopy(rest))
        for row in rows:
            self._kind[row] = kind
        if len(self._kinds) > 2 * len(self._kind):
            self._kinds = {name: self._kinds[name] for name in set(self._kind)}


def _text(state: tuple[Mapping[str, Tensor], dict[str, Any]]) -> str:
    """Whatever rows that step together must have in common; on the first line the names of the moments they have."""
    moments, rest = state
    return f"{','.join(sorted(moments))}\n{_plain(rest)}"


def _plain(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return str(tree.dtype), tree.tolist()
    if isinstance(tree, Mapping):
        return {name: _plain(each) for name, each in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_plain(each) for each in tree]
    return tree


def _slice(rows: list[int]) -> slice | list[int]:
    """The rows as a slice if they are consecutive: what it takes of a matrix is not copied."""
    return slice(rows[0], rows[-1] + 1) if rows[-1] - rows[0] == len(rows) - 1 else rows


def _chunks(rows: list[int], size: int) -> Iterator[list[int]]:
    for first in range(0, len(rows), size):
        yield rows[first : first + size]
