"""What runs have in common whose simulated workers take steps each at its own speed, on virtual time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tether.engines.base import Engine
from tether.result import RECENT
from tether.strides import Strides


@dataclass(kw_only=True)
class Apart(Engine):
    """Rows that are not all at the same count."""

    local: Strides

    def __post_init__(self) -> None:
        super().__post_init__()
        none = torch.empty(0, dtype=torch.float64)
        # Of each row: all losses since the record before, and the last there were.
        self._since, self._tails = ([none] * len(self.replicas.x) for _ in range(2))
        self._window = max(RECENT, *(part.window for part in self.method.parts))

    @property
    def count(self) -> int:
        """See `Engine.count`."""
        return int(self.local.counts.sum()) // len(self.local.counts)

    def _go(self, rows: Sequence[int], steps: Sequence[int], hold: bool = False) -> dict[int, Float[Tensor, " n"]]:
        """Take these rows so many steps further each. Returns each one's losses."""
        losses = self.local.take(rows, steps, hold) if len(rows) else {}
        for row, mine in losses.items():
            self._since[row] = torch.cat([self._since[row], mine])
            self._tails[row] = torch.cat([self._tails[row], mine])[-self._window :]
        self._check_finite(list(losses), list(losses.values()))
        return losses

    def _taken(self, row: int) -> int:
        return int(self.local.counts[row])

    def _losses_since_record(self) -> Float[Tensor, " m"]:
        recent = self._recent()
        means = [each.mean() if len(each) else recent[row] for row, each in enumerate(self._since)]
        self._since = [each[:0] for each in self._since]
        return torch.stack(means)

    def _recent(self) -> Float[Tensor, " m"]:
        return torch.stack([each[-RECENT:].mean() for each in self._tails])

    def _optimizer_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return self.local.state()

    def _own_state(self) -> dict[str, Any]:
        return {name: [each.clone() for each in losses] for name, losses in self._losses().items()}

    def _load(self, part: dict[str, Any], moments: dict[str, Tensor], step: int, same: bool) -> None:
        if not same:
            raise ValueError(
                "the run that was saved had another number of workers, each of them somewhere else in its steps: go on "
                "with as many, or begin anew in another folder"
            )
        self.local.load(moments, part["optimizer"])
        self._since, self._tails = (list(part[name]) for name in self._losses())

    def _losses(self) -> dict[str, list[Tensor]]:
        return {"losses since record": self._since, "last losses": self._tails}
