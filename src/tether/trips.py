"""When workers visit a center, by a clock: their messages take time to get there, and so do the replies.

Nothing here depends on what is trained, so all of it is worked out before, and a run that goes on from a checkpoint
finds its place by counting visits.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from tether.clock import Cluster
from tether.history import Trip

SEND, ARRIVE = 0, 1


@runtime_checkable
class Visits(Protocol):
    """The visits of m workers to a center, in the order in which their messages arrive.

    Attributes:
        last: `[m]`, local steps that each worker takes in all.
        ends: `[m]`, when it has taken them, and what it has sent has come back.
        budget: local steps of all workers together after which nobody begins another.
    """

    last: Int[np.ndarray, " m"]
    ends: Float[np.ndarray, " m"]
    budget: int

    def __iter__(self) -> Iterator[Trip]: ...


class Trips:
    """Visits as a clock says (see `Visits`).

    A worker sends whenever it has taken a period's local steps. Without overlap it waits for the reply; else it goes
    on, and waits when it has taken `overlap` more. Nobody begins another step once all together have taken m x steps.

    The center is in the first worker's process, whose own messages take no time. A link carries one message after the
    other, in the order in which they were sent.

    Args:
        cluster: how long steps and messages take.
        period: local steps of a worker between its visits.
        overlap: local steps that a worker takes before it needs the reply, from 0 to the period.
        steps: of each worker, on average.
        size: bytes of a message, and of a reply.
    """

    def __init__(self, cluster: Cluster, period: int, overlap: int, steps: int, size: int):
        m = cluster.workers
        self.last: Int[np.ndarray, " m"] = np.zeros(m, dtype=np.int64)
        self.ends: Float[np.ndarray, " m"] = np.zeros(m)
        self._cluster, self._period, self._overlap, self._size = cluster, period, overlap, size
        self.budget = m * steps
        if not cluster.clock.step:
            raise ValueError("clock: step=0: who comes to the center when depends on how long steps take")
        self._lines = _Lines(cluster)
        # What is known of the steps that each worker takes after its last message: how many came before, when these
        # begin and end; infinity for those of which it is not known yet.
        self._before = np.zeros(m, dtype=np.int64)
        self._known = np.zeros(m, dtype=np.int64)
        self._begins, self._ends = (np.full((m, period), np.inf) for _ in range(2))
        self._sent = np.zeros(m)
        self._heap: list[tuple[float, int, int]] = []
        self._closed = False
        # All visits there will be, as numbers: objects would take ten times the memory.
        self._numbers, self._times = array("q"), array("d")
        for worker in range(m):
            self._compute(worker, 0.0, period)
            self._plan_send(worker, 0.0)
        self._run()

    def __iter__(self) -> Iterator[Trip]:
        for trip in range(len(self._numbers) // 2):
            worker, step = self._numbers[2 * trip : 2 * trip + 2]
            sent, arrived, replied, resumed, waited = self._times[5 * trip : 5 * trip + 5]
            yield Trip(worker, step, sent, arrived, replied, resumed, waited)

    def _run(self) -> None:
        planned = len(self.last) * self._period
        while self._heap:
            now, worker, kind = heapq.heappop(self._heap)
            if planned >= self.budget and not self._closed and self._taken(now) >= self.budget:
                self._close()
            if kind == SEND:
                if self._closed and self._before[worker] + self._period > self.last[worker]:
                    continue  # there is no time for the rest of this period
                heapq.heappush(self._heap, (self._lines.carry(worker, 0, now, self._size), worker, ARRIVE))
                self._sent[worker] = now
                self._before[worker] += self._period
                self._known[worker] = 0
                self._begins[worker], self._ends[worker] = np.inf, np.inf
                if self._overlap:
                    self._compute(worker, now, self._overlap)
            else:
                replied = self._lines.carry(0, worker, now, self._size)
                sent = float(self._sent[worker])
                ready = float(self._ends[worker, self._overlap - 1]) if self._overlap else sent
                resumed = max(ready, replied)
                if not self._closed:
                    self._compute(worker, resumed, self._period - self._overlap)
                    self._plan_send(worker, resumed)
                    planned += self._period
                else:
                    self.ends[worker] = max(self.ends[worker], replied)
                self._numbers.extend((worker, int(self._before[worker])))
                self._times.extend((sent, now, replied, resumed, resumed - ready))

    def _taken(self, now: float) -> int:
        """Local steps that all workers together have taken by now."""
        return int(self._before.sum() + (self._ends <= now).sum())

    def _compute(self, worker: int, now: float, steps: int) -> None:
        """The worker takes so many more steps, from now on."""
        known = self._known[worker]
        seconds = self._cluster.steps(worker, int(self._before[worker] + known), steps)
        # One after the other: in the last bit too, times are what they would be if each step were looked at.
        times = np.cumsum(np.concatenate([[now], seconds]))
        self._begins[worker, known : known + steps], self._ends[worker, known : known + steps] = times[:-1], times[1:]
        self._known[worker] += steps

    def _plan_send(self, worker: int, resumed: float) -> None:
        heapq.heappush(self._heap, (max(float(self._ends[worker, -1]), resumed), worker, SEND))

    def _close(self) -> None:
        """Who takes how many steps, now that it is known when all together will have taken as many as they should."""
        self._closed = True
        over = np.sort(self._ends, axis=None)[self.budget - self._before.sum() - 1]
        begun = (self._begins < over).sum(1)  # who is in a step ends it
        self.last = self._before + begun
        ends = np.take_along_axis(self._ends, np.maximum(begun - 1, 0)[:, None], axis=1)[:, 0]
        self.ends = np.where(begun > 0, ends, self._sent)


class _Lines:
    """The links of a cluster, each carrying one message after the other."""

    def __init__(self, cluster: Cluster):
        self._cluster = cluster
        self._free: dict[tuple[str, int, bool], float] = {}

    def carry(self, sender: int, receiver: int, ready: float, size: int) -> float:
        """When a message arrives that is ready to be sent now."""
        if sender == receiver:
            return ready
        latency, bandwidth, ends = self._cluster.link(sender, receiver)
        begin = max(ready, *(self._free.get(end, 0.0) for end in ends))
        for end in ends:
            self._free[end] = begin + 8 * size / bandwidth
        return begin + 8 * size / bandwidth + latency
