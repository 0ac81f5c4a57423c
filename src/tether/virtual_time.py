"""What the time is for every simulated worker: when it computed, when it waited, and for what."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from tether.clock import Cluster
from tether.history import Times
from tether.traffic import Traffic


class VirtualTime:
    """The times of m workers who take local steps and wait for rounds.

    A round is sent when a worker has come to it, and travels from then on. Landing, a worker waits until what it needs
    is there; if it has been busy for longer than the message took, it does not wait. What one round sends, one message
    after the other, shares the links.

    Args:
        cluster: how long things take.

    Attributes:
        now: `[m]`, seconds.
        computed: `[m]`, seconds of it that each has computed.
        waited: `[m]`, seconds of it that each has waited, or been busy with a round.
        arrivals: `[m]`, when each of them had, or will have, what the last round sends it.
    """

    def __init__(self, cluster: Cluster):
        self._cluster = cluster
        self.now = np.zeros(cluster.workers)
        self.computed = np.zeros(cluster.workers)
        self.waited = np.zeros(cluster.workers)
        self.arrivals = np.zeros(cluster.workers)
        self._part: int | None = None
        self._flights: dict[int, Float[np.ndarray, " m"]] = {}

    def compute(self, first: int, count: int) -> None:
        """Every worker takes so many local steps, from number `first` on."""
        workers = range(len(self.now))
        # One step after the other: times do not depend on how many are taken at once, not even in the last bit.
        for seconds in np.stack([self._cluster.steps(worker, first, count) for worker in workers], axis=1):
            self.now += seconds
            self.computed += seconds

    def step(self, worker: int, begin: float, end: float) -> None:
        """A worker takes one local step; until it begins it waits."""
        self.waited[worker] += begin - self.now[worker]
        self.computed[worker] += end - begin
        self.now[worker] = end

    def wait(self, until: Float[np.ndarray, " m"]) -> None:
        """Whoever is not there yet waits until then."""
        until = np.maximum(self.now, until)
        self.waited += until - self.now
        self.now = until

    @property
    def latest(self) -> Float[np.ndarray, " m"]:
        """When each worker has what is on its way; the beginning of time if nothing is."""
        return np.max(list(self._flights.values()), axis=0, initial=0.0) if self._flights else np.zeros(len(self.now))

    def send(self, part: int) -> None:
        """A round of this part of a method begins; `travel` says what it sends."""
        self._part = part
        self.wait(self.now + self._cluster.clock.round)
        self.arrivals = self._flights[part] = self.now.copy()

    def travel(self, traffic: Traffic) -> None:
        """Something is sent. What comes before the first round, such as a first anchor, takes no time."""
        if self._part is not None:
            self.arrivals = self._flights[self._part] = self._cluster.arrivals(traffic, self.arrivals)

    def land(self, part: int) -> None:
        """The round of this part lands: whoever has not got what it needs waits for it."""
        self.wait(self._flights.pop(part))

    def times(self, present: Bool[np.ndarray, " m"]) -> Times:
        """A copy, of the workers who are present."""
        return Times(**{name: np.where(present, getattr(self, name), np.nan) for name in _TIMES})

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, tensors only."""
        flights = {part: torch.tensor(arrivals) for part, arrivals in self._flights.items()}
        return {name: torch.tensor(getattr(self, name)) for name in _TIMES} | {"flights": flights}

    def restart(self, saved: dict[str, Any]) -> None:
        """Go on from a `state_dict` of other workers: all of them from the time of the last, with the mean of waits."""
        self.now[:] = saved["now"].max()
        self.waited[:] = saved["waited"].mean()
        self.computed[:] = self.now - self.waited
        self.arrivals[:] = self.now

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        for name in _TIMES:
            setattr(self, name, saved[name].numpy().copy())
        self._flights = {part: arrivals.numpy().copy() for part, arrivals in saved["flights"].items()}


_TIMES = ("now", "computed", "waited", "arrivals")
