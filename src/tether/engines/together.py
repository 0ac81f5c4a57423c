"""Runs whose workers all take the same number of steps between rounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tether.engines.base import Engine, leader, mean_of_last
from tether.history import Times
from tether.rounds import Rounds
from tether.stepping import Lockstep
from tether.virtual_time import VirtualTime

STRETCH = 100
"""Local steps taken at most before losses are looked at; rounds and evaluations make it fewer. Changes no result."""


@dataclass(kw_only=True)
class Together(Engine):
    """Every worker takes its steps up to a round, then all are in it: here, or with those of other processes."""

    local: Lockstep
    rounds: Rounds
    virtual: VirtualTime | None

    kind = "simulate"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._losses = torch.zeros(len(self.replicas.x), 0)

    @property
    def count(self) -> int:
        """See `Engine.count`."""
        return self.rounds.count

    @property
    def rounds_so_far(self) -> int:
        """See `Engine.rounds_so_far`."""
        return sum(self.rounds.rounds)

    def _over(self, steps: int) -> bool:
        return self.count >= steps

    def _turn(self, steps: int) -> None:
        interrupted = [every for every in (self.evaluate_every, self.checkpoint_every) if every]
        until = (every - self.count % every for every in interrupted)
        taken = min([steps - self.count, STRETCH, self.rounds.quiet, *until])
        self._meet(self.local.take(taken, hold=self.mix_first and taken == self.rounds.quiet))
        if self.local.finish():
            self._remember()

    def _meet(self, losses: Float[Tensor, "r n"]) -> None:
        """All rows have taken the same steps: rounds land and start."""
        steps = losses.shape[1]
        self._check_finite(range(len(losses)), losses)
        self._losses = torch.cat([self._losses, losses], dim=1)
        if self.virtual:
            self.virtual.compute(self.rounds.count, steps)
        starting = self.rounds.advance(losses.to(self.replicas.x))
        for part in starting:
            looked = self._look()
            message = self.rounds.send(part, self.local.lr)
            self._record(**looked, leader=leader(message))
        if starting:
            self.since_round.copy_(self.replicas.x)
        self._remember(self.since_round if starting else None)

    def _taken(self, row: int) -> int:
        return self.local.count

    def _land(self) -> None:
        self.rounds.close()

    def _save(self) -> None:
        self.rounds.check_replicated(self.workers)
        super()._save()

    def _own_state(self) -> dict[str, Any]:
        return {
            "rounds": self.rounds.state_dict(),
            "losses": self._losses,
            "virtual": self.virtual.state_dict() if self.virtual else {},
        }

    def _optimizer_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return self.local.state()

    def _load(self, part: dict[str, Any], moments: dict[str, Tensor], step: int, same: bool) -> None:
        self.local.load(step, moments, part["optimizer"])
        if same:
            self.rounds.load_state_dict(part["rounds"])
            self._losses = part["losses"]
        else:
            self.rounds.restart(part["rounds"])
        if self.virtual:
            (self.virtual.load_state_dict if same else self.virtual.restart)(part["virtual"])

    def _losses_since_record(self) -> Float[Tensor, " r"]:
        # Two parts of a method may start on one step: the second has seen no steps of its own.
        losses, self._losses = self._losses, self._losses[:, :0]
        return losses.double().mean(1) if losses.shape[1] else self._recent()

    def _recent(self) -> Float[Tensor, " r"]:
        return mean_of_last(self.rounds.losses)

    def _times(self) -> Times | None:
        return self.virtual.times(self.workers.present.numpy()) if self.virtual else None
