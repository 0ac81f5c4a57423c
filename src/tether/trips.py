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

from tether.clock import Cluster, End, Link
from tether.history import Trip
from tether.periods import Period, schedule_of

SEND, ARRIVE, REPLY = 0, 1, 2


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

    The center is in the first worker's process, whose own messages take no time. Messages that are on a link at the
    same time share it evenly, as TCP's connections do by and large.

    Args:
        cluster: how long steps and messages take.
        period: local steps of a worker between its visits; a schedule must not look at what is trained.
        overlap: local steps that a worker takes before it needs the reply, at most up to its next visit.
        steps: of each worker, on average.
        size: bytes of a message, and of a reply.
    """

    def __init__(self, cluster: Cluster, period: Period, overlap: int, steps: int, size: int):
        m = cluster.workers
        self.last: Int[np.ndarray, " m"] = np.zeros(m, dtype=np.int64)
        self.ends: Float[np.ndarray, " m"] = np.zeros(m)
        self._cluster, self._schedule, self._overlap = cluster, schedule_of(period), overlap
        # Local steps of each worker up to its next visit.
        self._periods = np.full(m, self._schedule.start)
        self.budget = m * steps
        if not cluster.clock.step:
            raise ValueError("clock: step=0: who comes to the center when depends on how long steps take")
        self._links = _Links(8 * size)
        # What is known of the steps that each worker takes after its last message: how many came before, when these
        # begin and end; infinity for those of which it is not known yet.
        self._before = np.zeros(m, dtype=np.int64)
        self._known = np.zeros(m, dtype=np.int64)
        self._begins, self._ends = (np.full((m, self._schedule.longest), np.inf) for _ in range(2))
        self._planned = 0
        self._sent = np.zeros(m)
        self._visit = np.zeros(m, dtype=np.int64)  # the number of each worker's last
        self._heap: list[tuple[float, int, int]] = []
        self._closed = False
        # All visits there will be, as numbers: objects would take ten times the memory.
        self._numbers, self._times = array("q"), array("d")
        for worker in range(m):
            self._compute(worker, 0.0, self._schedule.start)
            self._plan_send(worker, 0.0)
        self._run()

    def __iter__(self) -> Iterator[Trip]:
        for trip in range(len(self._numbers) // 2):
            worker, step = self._numbers[2 * trip : 2 * trip + 2]
            sent, arrived, replied, resumed, waited = self._times[5 * trip : 5 * trip + 5]
            yield Trip(worker, step, sent, arrived, replied, resumed, waited)

    def _run(self) -> None:
        handle = {SEND: self._send, ARRIVE: self._serve, REPLY: self._go_on}
        while self._heap or self._links.busy:
            if self._links.busy and (not self._heap or self._links.next <= self._heap[0][0]):
                heapq.heappush(self._heap, self._links.pop())
                continue
            now, worker, kind = heapq.heappop(self._heap)
            if self._planned >= self.budget and not self._closed and self._taken(now) >= self.budget:
                self._close()
            handle[kind](worker, now)

    def _send(self, worker: int, now: float) -> None:
        """The worker has taken a period's steps; if there is time for them."""
        period = int(self._periods[worker])
        if self._closed and self._before[worker] + period > self.last[worker]:
            return
        self._sent[worker] = now
        self._before[worker] += period
        self._periods[worker] = self._schedule.follow(period, float(self._before[worker]), {}, None)
        self._known[worker] = 0
        self._begins[worker], self._ends[worker] = np.inf, np.inf
        if self._overlap:
            self._compute(worker, now, self._lands(worker))
        self._carry(worker, ARRIVE, now)

    def _serve(self, worker: int, now: float) -> None:
        """The center replies to a message as it arrives."""
        self._visit[worker] = len(self._numbers) // 2
        self._numbers.extend((worker, int(self._before[worker])))
        self._times.extend((float(self._sent[worker]), now, 0.0, 0.0, 0.0))
        self._carry(worker, REPLY, now)

    def _go_on(self, worker: int, now: float) -> None:
        """The reply has arrived; the worker goes on, if it has taken the steps of the overlap."""
        lands = self._lands(worker)
        ready = float(self._ends[worker, lands - 1]) if lands else float(self._sent[worker])
        resumed = max(ready, now)
        visit = 5 * self._visit[worker]
        self._times[visit + 2 : visit + 5] = array("d", (now, resumed, resumed - ready))
        if self._closed:
            self.ends[worker] = max(self.ends[worker], now)
            return
        self._compute(worker, resumed, int(self._periods[worker]) - lands)
        self._plan_send(worker, resumed)

    def _lands(self, worker: int) -> int:
        """Local steps that the worker takes before it needs the reply."""
        return min(self._overlap, int(self._periods[worker]))

    def _carry(self, worker: int, kind: int, now: float) -> None:
        """A message to the center, or its reply."""
        if worker == 0:
            heapq.heappush(self._heap, (now, worker, kind))
            return
        ends = (worker, 0) if kind == ARRIVE else (0, worker)
        self._links.push(now, self._cluster.link(*ends), worker, kind)

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
        self._planned += steps

    def _plan_send(self, worker: int, resumed: float) -> None:
        heapq.heappush(self._heap, (max(float(self._ends[worker, self._periods[worker] - 1]), resumed), worker, SEND))

    def _close(self) -> None:
        """Who takes how many steps, now that it is known when all together will have taken as many as they should."""
        self._closed = True
        over = np.sort(self._ends, axis=None)[self.budget - self._before.sum() - 1]
        begun = (self._begins < over).sum(1)  # who is in a step ends it
        self.last = self._before + begun
        ends = np.take_along_axis(self._ends, np.maximum(begun - 1, 0)[:, None], axis=1)[:, 0]
        self.ends = np.where(begun > 0, ends, self._sent)


class _Links:
    """Messages on their way. All that go through one end of a link at the same time have equal shares of it.

    Args:
        bits: of a message.

    Attributes:
        next: when the next of those that are under way leaves its link; infinity if none are.
    """

    def __init__(self, bits: float):
        self._bits = bits
        self._now = 0.0
        self.next = np.inf
        self._messages: list[tuple[float, int, int]] = []  # latency, worker, kind
        self._numbers: dict[End, int] = {}
        self._left, self._alone, self._shared = (np.empty(0) for _ in range(3))
        self._ends = np.empty((2, 0), dtype=np.int64)

    @property
    def busy(self) -> bool:
        """Whether messages are under way."""
        return bool(self._messages)

    def push(self, now: float, link: Link, worker: int, kind: int) -> None:
        """A message begins its way."""
        latency, bandwidth, width, names = link
        self._advance(now)
        ends = [[self._numbers.setdefault(name, len(self._numbers))] for name in names]
        self._messages.append((latency, worker, kind))
        self._left = np.append(self._left, self._bits)
        self._alone, self._shared = np.append(self._alone, 1 / bandwidth), np.append(self._shared, 1 / width)
        self._ends = np.append(self._ends, ends, axis=1)
        self._look_ahead()

    def pop(self) -> tuple[float, int, int]:
        """The next message leaves its link: when it arrives, whose it is and of what kind."""
        now, first = self.next, self._first
        self._advance(now)
        latency, worker, kind = self._messages.pop(first)
        self._left, self._alone, self._shared = (
            np.delete(each, first) for each in (self._left, self._alone, self._shared)
        )
        self._ends = np.delete(self._ends, first, axis=1)
        self._look_ahead()
        return now + latency, worker, kind

    def _advance(self, now: float) -> None:
        if now > self._now and self.busy:
            self._left = np.maximum(0.0, self._left - (now - self._now) / self._pace)
        self._now = now

    def _look_ahead(self) -> None:
        """Seconds a bit of each message, as many as there are now, and which is through first."""
        if not self.busy:
            self.next = np.inf
            return
        sharing = np.bincount(self._ends.ravel())[self._ends].max(0)
        self._pace = np.maximum(self._alone, sharing * self._shared)
        seconds = self._left * self._pace
        self._first = int(seconds.argmin())
        self.next = self._now + float(seconds[self._first])
