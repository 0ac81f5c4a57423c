"""Runs of real workers at their own speeds, this process's rows of them: with a center, or rounds by a trigger.

The rows of a process take their steps together. Processes speak to each other where the method does, and when all have
ended. In between none waits to learn what only records would tell: they have NaN for what this process does not know.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from tether.engines.together import Together
from tether.replicas import distances
from tether.result import Result, center
from tether.triggers import Pace

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Remote(Together):
    """Processes that are not at the same count.

    Args:
        progress: local steps of all workers together, over their number.
        read: the model at the center, as it is now; None with a trigger.
        leave: says to the center that there will be nothing more, and waits until all have; its model then.
    """

    progress: Pace
    read: Callable[[], dict[str, Tensor]] | None
    leave: Callable[[], dict[str, Tensor]] | None

    kind = "real workers at their own speeds"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._over_at_round = self._all_here = False
        self._anchor: dict[str, Tensor] | None = None
        if self.checkpoints:
            log.warning("processes that do not meet save no checkpoints here; `tether.attach` does, each its own")
            self.checkpoints = None

    def _over(self, steps: int) -> bool:
        return self.progress.now >= steps if self.read else self._over_at_round

    def _turn(self, steps: int) -> None:
        left = max(1, math.ceil(steps - self.progress.now))
        taken = min(left, self.rounds.quiet)
        losses = self.local.take(taken, hold=self.mix_first and taken == self.rounds.quiet)
        self._check_finite(range(len(losses)), losses)
        self._losses = torch.cat([self._losses, losses], dim=1)
        before, due = self.rounds.passed, self.rounds.due
        starting = self.rounds.advance(losses.to(self.replicas.x))
        if self.progress is not self.rounds.pace:
            self.progress.advance(taken)
        for part in starting:
            looked = self._look()
            self.rounds.send(part, self.local.lr)
            if self.read is None:
                # Every process is in this round, which ends the run for all of them or for none.
                total = self.workers.gather(torch.full_like(self.replicas.x[:, 0], self.count, dtype=torch.float64))
                self._over_at_round = bool(total.sum() >= steps * self.workers.size)
            self._record(**looked)
        if starting:
            self.since_round.copy_(self.replicas.x)
        self.local.finish()
        self._remember()
        every = self.evaluate_every if self.evaluate and not self._over(steps) else None
        if starting and every and due // every > before // every:
            self._record_evaluation()

    def _passed(self, every: int, before: int) -> bool:
        return False  # counts differ between processes; `_turn` evaluates after rounds

    def _land(self) -> None:
        super()._land()
        if self.leave:
            self._anchor = self.leave()
            # Of what goes to the center, each process has counted its own.
            sent = torch.tensor([self.metered.messages, self.metered.bytes], dtype=torch.float64)
            rows = len(self.replicas.x)
            totals = [self.workers.gather((each / rows).repeat(rows).to(self.replicas.x.device)).sum() for each in sent]
            self.metered.messages, self.metered.bytes = (round(float(each)) for each in totals)
        self._all_here = True

    def _save(self) -> None:
        """See `__post_init__`."""

    def _gather(self, losses: Float[Tensor, " r"]) -> Float[Tensor, " m"]:
        if self._all_here:
            return super()._gather(losses)
        everyone = torch.full((self.workers.size,), torch.nan, dtype=torch.float64)
        everyone[self.workers.rows] = losses.double().cpu()
        return everyone

    def _known(self, values: Float[Tensor, " r"]) -> Float[Tensor, " m"]:
        if self._all_here:
            return super()._known(values)
        everyone = values.new_zeros(self.workers.size)
        everyone[self.workers.rows] = values
        return everyone

    def _distances(self, everywhere: bool) -> dict[str, Any]:
        if self._all_here:
            return super()._distances(everywhere)
        drift = self._gather(distances(self.replicas.x, self.since_round))
        return {"consensus": np.nan, "drift": drift.numpy()}

    def _center(self) -> nn.Module:
        if self.read is None:
            return center(self.replicas, self.workers)
        return self.replicas.module(self._anchor or self.read())

    def _record_evaluation(self) -> None:
        if self._all_here or self.read is None:
            here, self._all_here = self._all_here, True
            super()._record_evaluation()
            self._all_here = here
        elif self.workers.rows.start == 0:
            assert self.evaluate is not None
            self._record(**self._look(), center=dict(self.evaluate(self._center())))

    def _result(self) -> Result:
        result = super()._result()
        return dataclasses.replace(result, anchor=self._anchor["x"]) if self._anchor else result

    def _own_state(self) -> dict[str, Any]:
        raise TypeError("processes that do not meet have no state in common")
