"""What a run leaves behind: a record for every round and every evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Times:
    """Virtual time at a record, in seconds; NaN for workers who have been excluded.

    Attributes:
        now: `[m]`, what the time is for each worker, this round's wait included if it had one.
        computed: `[m]`, how much of it each has taken local steps.
        waited: `[m]`, how much of it each has waited for others or for messages.
        arrivals: `[m]`, when each has, or will have, what the last round sends it.
    """

    now: np.ndarray
    computed: np.ndarray
    waited: np.ndarray
    arrivals: np.ndarray


@dataclass(frozen=True)
class Trip:
    """A message to the center and its reply, in seconds of virtual time.

    Attributes:
        worker: whose.
        step: how many local steps it had taken when it sent the message.
        sent: when that was.
        arrived: when the center served it.
        replied: when the worker had the reply.
        resumed: when it went on with the reply: then, or as soon as it had taken the steps of an overlap.
        waited: how long it waited.
        staleness: how many messages of others the center has served since it last replied to this worker.
    """

    worker: int
    step: int
    sent: float
    arrived: float
    replied: float
    resumed: float
    waited: float
    staleness: int = 0


@dataclass(frozen=True)
class Record:
    """A round, or an evaluation between rounds.

    Attributes:
        index: records before this one, those from before a run was interrupted included.
        step: local steps so far.
        round: rounds so far, this one included.
        losses: `[m]`, each worker's mean training loss since the record before.
        consensus: (1/m) sum_i ||x_i - mean(x)||^2, just before the round. Between processes, where it would cost an
            all-reduce, it is measured at evaluations only and NaN elsewhere.
        drift: `[m]`, how far each worker has moved since the round before, ||x_i - x_i(then)||.
        messages: messages sent so far, by all workers together.
        bytes: bytes sent so far, by all workers together.
        seconds: wall-clock seconds so far, evaluations left out.
        leader: who led in this round; of several groups, each one's. None for methods without leaders.
        center: the mean model on held-out data, by name of the measure; empty where it was not evaluated.
        best: the worker with the least recent training loss, likewise.
        best_worker: its number.
        virtual: when this was, on the cluster that the run's clock describes; None for a run without.
        trips: of an asynchronous method, what has gone to the center and back since the record before.
    """

    index: int
    step: int
    round: int
    losses: np.ndarray
    consensus: float
    drift: np.ndarray
    messages: int
    bytes: int
    seconds: float
    leader: int | tuple[int, ...] | None = None
    center: Mapping[str, float] = field(default_factory=dict)
    best: Mapping[str, float] = field(default_factory=dict)
    best_worker: int | None = None
    virtual: Times | None = None
    trips: tuple[Trip, ...] = ()

    @property
    def loss(self) -> float:
        """The mean of the workers' training losses; of those that have one."""
        return float(np.nanmean(self.losses)) if np.isfinite(self.losses).any() else float("nan")
