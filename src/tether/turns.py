"""When rounds are due that a trigger counts, by a clock: workers take steps at their own speeds until then.

The counterpart of `tether.trips` for methods whose workers all meet.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from tether.clock import Cluster
from tether.triggers import TotalSteps, Trigger
from tether.virtual_time import VirtualTime

DRAWN = 64
"""Durations of a worker's steps that are asked for at a time."""


@dataclass(frozen=True)
class Turn:
    """What happens next.

    Attributes:
        landing: `[m]`, local steps that each worker has taken when what is on its way lands.
        sending: `[m]`, when the next round is sent, or all is over.
        due: whether there is such a round.
        ended: who takes part in no later one.
    """

    landing: Int[np.ndarray, " m"]
    sending: Int[np.ndarray, " m"]
    due: bool
    ended: tuple[int, ...] = ()


class Turns:
    """Workers that take steps each at its own speed, and the rounds in which they meet.

    Args:
        virtual: the time of each worker; moved by the steps it takes.
        cluster: how long these take.
        trigger: when rounds are due.
        overlap: local steps that a round's message may take; a worker that has not taken as many when the next
            round is due waits then.
        steps: of each worker, on average; with a window, rounds until there have been as many.

    Attributes:
        counts: `[m]`, local steps of each worker so far.
    """

    def __init__(self, virtual: VirtualTime, cluster: Cluster, trigger: Trigger, overlap: int, steps: int):
        m = cluster.workers
        self.counts: Int[np.ndarray, " m"] = np.zeros(m, dtype=np.int64)
        self._virtual, self._cluster, self._trigger, self._overlap = virtual, cluster, trigger, overlap
        self._budget = m * steps
        self._sent: Int[np.ndarray, " m"] | None = None
        self._opened: Float[np.ndarray, " m"] = virtual.now.copy()
        self._passed = 0.0
        self._drawn: dict[int, tuple[int, list[float]]] = {}
        if not cluster.clock.step:
            raise ValueError("clock: step=0: how many steps each worker takes depends on how long they take")

    def next(self, due: float) -> Turn:
        """Up to the round that is due when workers have come so far, in the unit of periods."""
        if isinstance(self._trigger, TotalSteps):
            goal = math.ceil(due * len(self.counts))
            self._take_together(min(goal, self._budget))
            is_due = goal <= self._budget
        else:
            self._take_until(self._opened + (due - self._passed) * self._trigger.seconds)
            is_due = True
        landing = self.counts if self._sent is None else np.minimum(self._sent + self._overlap, self.counts)
        self._virtual.wait(self._virtual.latest)
        return Turn(landing.copy(), self.counts.copy(), is_due)

    def sent(self, due: float) -> None:
        """The round has been sent; and has landed, if there is no overlap."""
        self._sent = self.counts.copy()
        self._opened = self._virtual.now.copy()
        self._passed = due

    @property
    def over(self) -> bool:
        """Whether all together have taken as many steps as they should."""
        return bool(self.counts.sum() >= self._budget)

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, tensors and numbers only."""
        sent = np.zeros(0, dtype=np.int64) if self._sent is None else self._sent
        arrays = {"counts": self.counts, "sent": sent, "opened": self._opened}
        return {name: torch.tensor(array) for name, array in arrays.items()} | {"passed": self._passed}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.counts, sent, self._opened = (saved[name].numpy().copy() for name in ("counts", "sent", "opened"))
        self._sent = sent if len(sent) else None
        self._passed = saved["passed"]

    def _take_together(self, goal: int) -> None:
        """Steps of all, one after the other as they end, until there have been so many; who is in one then ends it."""
        coming: list[tuple[float, int, float]] = []
        for worker in range(len(self.counts)):
            begin = self._begin(worker)
            heapq.heappush(coming, (begin + self._seconds(worker), worker, begin))
        over, total = -math.inf, int(self.counts.sum())
        while total < goal:
            over, worker, begin = heapq.heappop(coming)
            self._take(worker, begin, over)
            total += 1
            begin = self._begin(worker)
            heapq.heappush(coming, (begin + self._seconds(worker), worker, begin))
        for end, worker, begin in coming:
            if begin < over:
                self._take(worker, begin, end)

    def _take_until(self, closes: Float[np.ndarray, " m"]) -> None:
        """Steps of each until its time has come."""
        for worker, close in enumerate(closes):
            while self._virtual.now[worker] < close:
                begin = self._begin(worker)
                self._take(worker, begin, begin + self._seconds(worker))

    def _begin(self, worker: int) -> float:
        """When the worker's next step begins: it may have to wait for a message before."""
        now = float(self._virtual.now[worker])
        needed = self._sent is not None and self.counts[worker] - self._sent[worker] >= self._overlap
        return max(now, float(self._virtual.latest[worker])) if needed else now

    def _take(self, worker: int, begin: float, end: float) -> None:
        self._virtual.step(worker, begin, end)
        self.counts[worker] += 1

    def _seconds(self, worker: int) -> float:
        """How long the worker's next step takes."""
        count = int(self.counts[worker])
        first, drawn = self._drawn.get(worker, (0, []))
        if not first <= count < first + len(drawn):
            first, drawn = count, self._cluster.steps(worker, count, DRAWN).tolist()
            self._drawn[worker] = first, drawn
        return drawn[count - first]
