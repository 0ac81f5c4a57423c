"""The engine that suits a run: which one, and what it is made of."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np
from torch import Tensor

from tether.arrivals import Arrivals, LoggedTurns, LoggedVisits
from tether.clock import Clock, Cluster
from tether.data import Feed
from tether.engines.base import Engine
from tether.engines.remote import Remote
from tether.engines.together import Together
from tether.engines.triggered import Triggered
from tether.engines.visiting import Visiting
from tether.gradients import Way
from tether.methods import CenterMethod, Method
from tether.periods import schedule_of
from tether.replicas import Replicas, blocks
from tether.result import RECENT
from tether.rounds import Companion, Rounds
from tether.stepping import Block, Lockstep, OptimizerFactory, RandomSteps, SchedulerFactory
from tether.strides import Strides
from tether.traffic import AllReduceKind, Traffic
from tether.triggers import GivenPace, TimeWindow, TotalSteps, Trigger
from tether.trips import Trips, Visits
from tether.turns import Turns
from tether.virtual_time import VirtualTime
from tether.workers import Center, Metered, MeteredCenter, Ranks, Visitor, Workers
from tether.workers.paces import pace_of

Buffers = Literal["average", "local"]
OptimizerState = Literal["local", "average", "reset"]


def check_pace(
    method: Method, trigger: Trigger | None, optimizer_state: OptimizerState, clock: object, processes: int
) -> None:
    """Raise `ValueError` if a method, a trigger and what else decides who meets whom do not suit one another."""
    name = type(method).__name__
    if isinstance(method, CenterMethod) and schedule_of(method.period).looks_at != "nothing":
        raise ValueError(
            f"period={method.period}: it follows a mean over all workers, and workers of {name} do not meet; take a "
            "number, or a schedule of local steps such as PostLocal"
        )
    if isinstance(method, CenterMethod) and trigger is not None:
        raise ValueError(f"trigger={trigger}: {name} has no rounds in which workers meet; leave it away")
    if isinstance(method, CenterMethod) and optimizer_state == "average":
        raise ValueError(f"optimizer_state='average': workers of {name} do not meet; take 'local' or 'reset'")
    if trigger is not None and clock is None:
        raise ValueError(
            f"trigger={trigger}: how many steps each worker takes depends on how long they take; give a clock, such as "
            "tether.Clock(step=0.1, speeds=(1, 1, 0.5))"
        )
    if processes > 1 and (isinstance(method, CenterMethod) or trigger is not None):
        raise ValueError(
            f"processes={processes}: simulated workers that run at their own speeds share one process; take processes=1"
        )


log = logging.getLogger(__name__)

EVENLY = Clock(step=1.0)
"""Asynchronous workers without a clock: equally fast, with messages that take no time."""


@dataclass(frozen=True)
class Ingredients:
    """What goes into a run; see `tether.simulate`."""

    method: Method
    workers: Workers
    replicas: Replicas
    feed: Feed
    way: Way
    optimizer: OptimizerFactory
    scheduler: SchedulerFactory | None
    steps: int
    seed: int
    overlap: int
    buffers: Buffers
    optimizer_state: OptimizerState
    allreduce: AllReduceKind
    clock: Clock | Arrivals | None
    trigger: Trigger | None
    same_start: bool

    def engine(self, **common: Any) -> Engine:
        """The engine of the run; `common` is what all kinds of engines take besides."""
        common |= {"method": self.method, "workers": self.workers, "replicas": self.replicas, "way": self.way}
        if isinstance(self.workers, Ranks) and (self.trigger or isinstance(self.method, CenterMethod)):
            return self._remote(self.workers, common)
        if isinstance(self.method, CenterMethod):
            return self._visiting(self.method, common)
        return self._together(common) if self.trigger is None else self._triggered(self.trigger, common)

    def _lockstep(self) -> Lockstep:
        mine = self.workers.rows
        spare: list[Tensor] = []
        stepped = [
            Block(self.replicas, rows, self.optimizer, self.scheduler, spare)
            for rows in equal_batches(self.feed.sizes[mine], self.way.block)
        ]
        return Lockstep(stepped, self.way.gradients, self.feed, mine.start, self._random)

    def _together(self, common: dict[str, Any]) -> Engine:
        local = self._lockstep()
        virtual = None if self.clock is None else VirtualTime(self._cluster)
        metered = self._metered(virtual)

        def on_land(part: int) -> None:
            if virtual:
                virtual.land(part)
            if self.optimizer_state == "reset":
                local.reset_optimizer()

        rounds = Rounds(
            self.method,
            metered,
            self.replicas.x,
            overlap=self.overlap,
            samples=self._samples,
            window=RECENT,
            companions=lambda: self._companions(local),
            on_send=virtual.send if virtual else lambda part: None,
            on_land=on_land,
        )
        return Together(metered=metered, local=local, rounds=rounds, virtual=virtual, **common)

    def _remote(self, ranks: Ranks, common: dict[str, Any]) -> Engine:
        from tether.workers.center_client import Model, connect

        if self.clock is not None:
            log.warning("the clock is of simulated workers: these are real, and take the time that they take")
        x, local = self.replicas.x, self._lockstep()
        progress = pace_of(TotalSteps(), ranks, x.device)
        reset = local.reset_optimizer if self.optimizer_state == "reset" else lambda: None
        options: dict[str, Any] = {
            "overlap": self.overlap,
            "samples": self._samples,
            "window": RECENT,
            "on_land": lambda part: reset(),
        }
        common |= {"local": local, "virtual": None, "progress": progress}
        if not isinstance(self.method, CenterMethod):
            pace = progress if isinstance(self.trigger, TotalSteps) else pace_of(self.trigger, ranks, x.device)
            met = self._metered(None)
            rounds = Rounds(self.method, met, x, companions=lambda: self._companions(local), pace=pace, **options)
            return Remote(metered=met, rounds=rounds, read=None, leave=None, **common)
        beside = self.replicas.averaged_buffers if self.buffers == "average" else dict
        # Where all start from the same row, so does the center, to the bit.
        mean = x[:1].clone() if self.same_start else ranks.mean(x).wait()
        client = connect(ranks, self.method, mean, steps=lambda: local.count, beside=beside)
        client.join(None, None)

        def matrices(model: Model | None) -> dict[str, Tensor]:
            assert model is not None
            return {"x": model.x, **model.beside}

        metered = MeteredCenter(client, self.allreduce)
        return Remote(
            metered=metered,
            rounds=Rounds(self.method, metered, x, **options),
            read=lambda: matrices(client.center()),
            leave=lambda: matrices(client.close()),
            **common,
        )

    def _triggered(self, trigger: Trigger, common: dict[str, Any]) -> Engine:
        cluster = self._cluster
        virtual = VirtualTime(cluster)
        local, metered = self._strides(), self._metered(virtual)
        pace = GivenPace(by_steps=isinstance(trigger, TimeWindow) and trigger.by_steps)

        def on_land(part: int) -> None:
            virtual.land(part)
            if self.optimizer_state == "reset":
                local.reset_optimizer(range(self.workers.size))

        rounds = Rounds(
            self.method,
            metered,
            self.replicas.x,
            overlap=self.overlap,
            samples=self.feed.samples,
            window=RECENT,
            companions=lambda: self._companions(local),
            pace=pace,
            on_send=virtual.send,
            on_land=on_land,
        )
        common |= {"metered": metered, "local": local, "rounds": rounds, "pace": pace, "virtual": virtual}
        if isinstance(self.clock, Arrivals):
            return Triggered(turns=LoggedTurns(self.clock), timed=False, **common)
        turns = Turns(virtual, cluster, trigger, self.overlap, self.steps)
        return Triggered(turns=turns, timed=True, **common)

    def _visiting(self, method: CenterMethod, common: dict[str, Any]) -> Engine:
        m, x = self.workers.size, self.replicas.x
        local = self._strides()
        # Where all start from the same row, so does the center, to the bit.
        mean = x[:1].clone() if self.same_start else self.workers.mean(x).wait()
        center = Center(method.init_center(mean, m), method.serve, m)
        visitors = [Visitor(center, worker, m) for worker in range(m)]

        def rounds_of(worker: int) -> Rounds:
            return Rounds(
                method,
                visitors[worker],
                x[worker : worker + 1],
                overlap=self.overlap,
                window=RECENT,
                on_land=lambda part: local.reset_optimizer([worker]) if self.optimizer_state == "reset" else None,
            )

        rounds = [rounds_of(worker) for worker in range(m)]
        trips: Visits
        if isinstance(self.clock, Arrivals):
            trips = LoggedVisits(self.clock)
        else:
            trips = Trips(self._cluster, method.period, self.overlap, self.steps, x[0].nbytes)
        return Visiting(
            metered=self._metered(None),
            local=local,
            center=center,
            visitors=visitors,
            rounds=rounds,
            trips=trips,
            timed=isinstance(self.clock, Clock),
            **common,
        )

    @property
    def _samples(self) -> Tensor | None:
        return None if self.feed.samples is None else self.feed.samples[self.workers.rows]

    @property
    def _cluster(self) -> Cluster:
        clock = self.clock if isinstance(self.clock, Clock) else EVENLY
        return Cluster(clock, self.workers.size, self.seed)

    def _metered(self, virtual: VirtualTime | None) -> Metered:
        return Metered(self.workers, self.allreduce, virtual.travel if virtual else _free)

    def _strides(self) -> Strides:
        return Strides(self.replicas, self.way, self.feed, self.optimizer, self.scheduler, self._random)

    @property
    def _random(self) -> RandomSteps:
        return RandomSteps(self.seed, self.replicas.x.device)

    def _companions(self, local: Lockstep | Strides) -> dict[str, Companion]:
        """What is averaged beside X whenever a round lands, as it is now."""
        averaged: dict[str, Companion] = {}
        if self.buffers == "average":
            matrices = self.replicas.averaged_buffers()
            averaged |= {f"buffer {name}": Companion([matrix]) for name, matrix in matrices.items()}
        if self.optimizer_state == "average":
            moments = local.moments()
            averaged |= {f"optimizer {name}": Companion([each[name] for each in moments]) for name in moments[0]}
        return averaged


def _free(traffic: Traffic) -> None:
    """What messages cost without a clock."""


def equal_batches(sizes: np.ndarray, block: int) -> list[slice]:
    """Consecutive workers whose batches are of one size, at most so many at a time."""
    result = []
    first = 0
    for _, run in groupby(sizes.tolist()):
        length = len(list(run))
        result += [slice(first + part.start, first + part.stop) for part in blocks(length, block)]
        first += length
    return result
