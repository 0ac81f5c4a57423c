"""Simulated runs in which a trigger starts rounds: workers take steps at their own speeds until all meet in one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tether.arrivals import LoggedTurns
from tether.engines.apart import Apart
from tether.engines.base import leader
from tether.history import Times
from tether.rounds import Rounds
from tether.triggers import GivenPace
from tether.turns import Turns
from tether.virtual_time import VirtualTime


@dataclass(kw_only=True)
class Triggered(Apart):
    """All workers take part in every round, each after as many steps as it had time for."""

    rounds: Rounds
    pace: GivenPace
    turns: Turns | LoggedTurns
    virtual: VirtualTime
    timed: bool

    kind = "simulate by a trigger"

    @property
    def rounds_so_far(self) -> int:
        """See `Engine.rounds_so_far`."""
        return sum(self.rounds.rounds)

    def _over(self, steps: int) -> bool:
        return self.turns.over

    def _turn(self, steps: int) -> None:
        due = self.rounds.due
        before = self.local.counts.copy()
        turn = self.turns.next(due)
        self._to(turn.landing, hold=self.mix_first)
        self.rounds.close()
        self._to(turn.sending, hold=self.mix_first and turn.due)
        self.rounds.count, self.rounds.losses = self.count, self._windows()
        self.rounds.note(self.rounds.losses[:, :0], torch.from_numpy(self.local.counts - before).float())
        if turn.due:
            self.pace.now = due
            for part in self.rounds.starting:
                looked = self._look()
                message = self.rounds.send(part, float(self.local.lr.max()))
                self._record(**looked, leader=leader(message))
            self.turns.sent(due)
            for worker in turn.ended:
                self.workers.exclude(worker)
            self.since_round.copy_(self.replicas.x)
        if self.turns.over:
            self.local.finish(range(len(before)))
        self._remember(self.since_round if turn.due and not self.mix_first else None)

    def _to(self, counts: Int[np.ndarray, " m"], hold: bool) -> None:
        """Every worker takes its steps until it has taken so many."""
        self._go(range(len(counts)), (counts - self.local.counts).tolist(), hold)

    def _windows(self) -> Float[Tensor, "m n"]:
        """The last losses of every worker; where one has taken fewer steps, the mean of its own in place of others."""
        longest = max(len(each) for each in self._tails)
        windows = torch.full((len(self._tails), longest), torch.nan, dtype=torch.float64)
        for window, mine in zip(windows, self._tails, strict=True):
            window[:] = mine.mean()
            window[longest - len(mine) :] = mine
        return windows.to(self.replicas.x)

    def _land(self) -> None:
        self.rounds.close()

    def _own_state(self) -> dict[str, Any]:
        return super()._own_state() | {
            "rounds": self.rounds.state_dict(),
            "turns": self.turns.state_dict(),
            "virtual": self.virtual.state_dict(),
        }

    def _load(self, part: dict[str, Any], moments: dict[str, Tensor], step: int, same: bool) -> None:
        super()._load(part, moments, step, same)
        self.rounds.load_state_dict(part["rounds"])
        self.turns.load_state_dict(part["turns"])
        self.virtual.load_state_dict(part["virtual"])

    def _times(self) -> Times | None:
        return self.virtual.times(self.workers.present.numpy()) if self.timed else None
