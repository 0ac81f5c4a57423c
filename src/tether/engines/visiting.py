"""Simulated runs of asynchronous methods: workers visit a center, each whenever it has taken its steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tether.engines.apart import Apart
from tether.history import Times, Trip
from tether.result import Result, center
from tether.rounds import Rounds
from tether.traffic import Visit
from tether.trips import Visits
from tether.workers import Center, Visitor


@dataclass(kw_only=True)
class Visiting(Apart):
    """Every worker has rounds of its own, whose only partner is the center.

    Who visits when is known beforehand (`tether.trips`). So workers are taken to their next visits all at once,
    whenever one of them is needed there, and only the center's work is done in the order of the visits.
    """

    center: Center
    visitors: Sequence[Visitor]
    rounds: Sequence[Rounds]
    trips: Visits
    timed: bool

    kind = "simulate with a center"

    def __post_init__(self) -> None:
        super().__post_init__()
        m = len(self.rounds)
        self._coming = iter(self.trips)
        self._done = not self.trips.budget
        self._seen = 0
        self._there = np.zeros(m, dtype=bool)  # who has taken its steps up to its next visit
        self._now, self._waited, self._replied = (np.zeros(m) for _ in range(3))
        self._trips: list[Trip] = []

    @property
    def rounds_so_far(self) -> int:
        """As many as there have been m visits."""
        return self.center.served // len(self.rounds)

    def _over(self, steps: int) -> bool:
        return self._done

    def _turn(self, steps: int) -> None:
        """As many visits as there are workers; after the last of all, the steps that are left."""
        for trip in self._coming:
            self._seen += 1
            if not self.workers.present[trip.worker]:
                continue
            while not self._there[trip.worker]:
                self._bring()
            if not self.workers.present[trip.worker]:
                continue  # it has diverged on its way
            self._visit(trip)
            if self.center.served % len(self.rounds) == 0:
                self._bring_everyone()
                self._record_visits()
                return
        self._done = True
        self._bring_everyone()
        self.local.finish(range(len(self.rounds)))
        self._now = np.maximum(self._now, self.trips.ends)
        if self._trips:
            self._record_visits()

    def _visit(self, trip: Trip) -> None:
        worker = trip.worker
        visitor = self.visitors[worker]
        visitor.step, visitor.seconds = trip.step, trip.arrived
        self.metered.count(Visit(worker, self.replicas.x[0].nbytes))
        self.rounds[worker].send(0, float(self.local.lr[worker]))
        self.since_round[worker] = self.replicas.x[worker]
        self._there[worker] = False
        self._now[worker], self._replied[worker] = trip.resumed, trip.replied
        self._waited[worker] += trip.waited
        self._trips.append(dataclasses.replace(trip, staleness=visitor.staleness))

    def _bring_everyone(self) -> None:
        while self._bring():
            pass

    def _bring(self) -> bool:
        """Whoever is not there takes its steps to its next landing or visit, or its last. Returns whether any did."""
        last = self.trips.last
        rows = np.flatnonzero(~self._there & (self.local.counts < last) & self.workers.present.numpy()).tolist()
        quiet = {row: self.rounds[row].quiet for row in rows}
        meet = [row for row in rows if self.local.counts[row] + quiet[row] <= last[row]]
        losses = self._go(meet, [quiet[row] for row in meet], hold=self.mix_first)
        for row in meet:
            starting = self.rounds[row].advance(losses[row][None].to(self.replicas.x))
            self._there[row] = bool(starting)
        rest = sorted(set(rows) - set(meet))
        self._go(rest, [int(last[row] - self.local.counts[row]) for row in rest])
        return bool(rows)

    def _record_visits(self) -> None:
        trips, self._trips = tuple(self._trips), []
        self._record(**self._look(), trips=trips)
        self._remember()

    def _land(self) -> None:
        for rounds in self.rounds:
            rounds.close()

    def _center(self) -> nn.Module:
        return center(self.replicas, self.workers, self.center.state["anchor"])

    def _result(self) -> Result:
        return dataclasses.replace(super()._result(), anchor=self.center.state["anchor"])

    def _own_state(self) -> dict[str, Any]:
        arrays = {name: torch.tensor(getattr(self, name)) for name in ("_there", "_now", "_waited", "_replied")}
        return super()._own_state() | {
            "center": self.center.state_dict(),
            "rounds": [rounds.state_dict() for rounds in self.rounds],
            "budget": int(self.trips.budget),
            "seen": self._seen,
            "trips": [list(dataclasses.astuple(trip)) for trip in self._trips],
            "arrays": arrays,
        }

    def _load(self, part: dict[str, Any], moments: dict[str, Tensor], step: int, same: bool) -> None:
        super()._load(part, moments, step, same)
        if part["budget"] != self.trips.budget:
            raise ValueError(
                f"steps: the run that was saved ends when all workers together have taken {part['budget']}, and who "
                f"comes last is arranged for that; {self.trips.budget} would be another run"
            )
        self.center.load_state_dict(part["center"])
        for rounds, saved in zip(self.rounds, part["rounds"], strict=True):
            rounds.load_state_dict(saved)
        for name, values in part["arrays"].items():
            setattr(self, name, values.numpy().copy())
        self._trips = [Trip(*values) for values in part["trips"]]
        self._seen = part["seen"]
        for _ in range(self._seen):
            next(self._coming)
        self._done = False

    def _times(self) -> Times | None:
        if not self.timed:
            return None
        there = self.workers.present.numpy()
        now, waited, replied = (np.where(there, each, np.nan) for each in (self._now, self._waited, self._replied))
        return Times(now=now, computed=now - waited, waited=waited, arrivals=replied)
