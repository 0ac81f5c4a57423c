"""What a round of any method sends, and how long that takes on a network.

Nothing here counts anything itself: a tiny round is sent through `tether.Metered`, as in a simulation, and what it
sends is put on the clock of `tether.Clock`. So a method of one's own has its costs, too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from tether.checks import whole
from tether.clock import Clock, Cluster
from tether.methods import CenterMethod, Method, Step
from tether.periods import schedule_of
from tether.traffic import AllReduceKind, Traffic, Visit
from tether.trips import Trips
from tether.virtual_time import VirtualTime
from tether.workers import Metered, Stacked

SIZES = (64, 128, 192)
"""Parameters of the tiny rounds."""


@dataclass(frozen=True)
class RoundCost:
    """What one round sends, all workers together; of an asynchronous method, one visit of each worker to the center.

    Attributes:
        period: local steps between such rounds; of a schedule the first.
        workers: number of workers m.
        traffic: what is sent, one after the other.
    """

    period: int
    workers: int
    traffic: tuple[Traffic | Visit, ...]

    @property
    def messages(self) -> int:
        """Messages sent, by all together."""
        return sum(traffic.messages for traffic in self.traffic)

    @property
    def bytes(self) -> int:
        """Bytes sent, by all together; payload only."""
        return sum(traffic.bytes for traffic in self.traffic)

    def seconds(self, clock: Clock) -> float:
        """How long until the last worker has what it waits for, if all start the round together.

        Args:
            clock: latency and bandwidth of the links; how long a step takes does not matter.
        """
        # Everyone's steps take the same time, so that all come at once.
        clock = replace(clock, step=1.0, speeds=None, noise="none", spread=0.0, pauses=())
        cluster = Cluster(clock, self.workers, seed=0)
        visits = [traffic.size for traffic in self.traffic if isinstance(traffic, Visit)]
        if visits:
            trips = Trips(cluster, period=1, overlap=0, steps=1, size=visits[0])
            return max(trip.resumed - trip.sent for trip in trips)
        time = VirtualTime(cluster)
        time.send(part=0)
        for traffic in self.traffic:
            assert not isinstance(traffic, Visit)
            time.travel(traffic)
        return float(time.arrivals.max())


def round_costs(
    method: Method,
    workers: int,
    parameters: int,
    *,
    dtype: torch.dtype = torch.float32,
    allreduce: AllReduceKind = "ring",
    round: int = 0,
) -> tuple[RoundCost, ...]:
    """What a round of a method costs, for each of the method's parts (multi-leader SGD has two).

    Counts what is sent, exactly and by all workers; Cooperative SGD's table 3 counts the same per worker, rounded: 2d
    numbers for an all-reduce (here 2 (m-1)/m d on a ring), 2dm for a parameter server (2 (m-1) d in and out of a star's
    hub), and 2d times the largest degree for neighbours (d sent to each, d received).

    What comes before the first round, such as a first anchor, is left out, as are buffers and optimizer states.

    Args:
        method: any method.
        workers: number of workers m.
        parameters: number of parameters d.
        dtype: of the parameters.
        allreduce: how a mean travels, "ring" or "star".
        round: which round, from 0, of a topology that changes with it.

    Raises:
        ValueError: if the method refuses so many workers, or what it sends is not linear in the number of parameters.

    Examples:
        >>> import tether
        >>> (cost,) = round_costs(tether.LocalSGD(period=10), workers=8, parameters=1_000_000)
        >>> cost.messages, cost.bytes
        (112, 56000000)
        >>> round(cost.seconds(tether.Clock(step=0, latency=0.03, bandwidth=100e6)), 3)
        0.98
    """
    whole("parameters", parameters, 1)
    costs = []
    for part in method.parts:
        tiny = [_sent(part, workers, size, dtype, allreduce, round) for size in SIZES]
        traffic = tuple(_extended(part, sizes, parameters) for sizes in zip(*tiny, strict=True))
        costs.append(RoundCost(schedule_of(part.period).start, workers, traffic))
    return tuple(costs)


def _extended(part: Method, tiny: tuple[Traffic | Visit, ...], parameters: int) -> Traffic | Visit:
    """What is sent for so many parameters, from what was for a few."""
    a, b, c = (traffic.size for traffic in tiny)
    if c - b != b - a:
        raise ValueError(
            f"{type(part).__name__} sends {a}, {b} and {c} bytes for {SIZES} parameters: not linear; "
            "simulate it, and read `result.bytes`"
        )
    return replace(tiny[0], size=a + (b - a) // (SIZES[1] - SIZES[0]) * (parameters - SIZES[0]))


def _sent(
    part: Method, workers: int, parameters: int, dtype: torch.dtype, allreduce: AllReduceKind, round: int
) -> list[Traffic | Visit]:
    """What a round of a model of so few parameters sends."""
    sent: list[Traffic | Visit] = []
    meter = Metered(Stacked(workers), allreduce, on_traffic=sent.append)
    x = torch.zeros(workers, parameters, dtype=dtype)
    state = part.init(x, meter)
    if isinstance(part, CenterMethod):
        part.init_center(x[:1], workers)  # refuses what it refuses in a run
        return [Visit(worker, x[worker].nbytes) for worker in range(workers)]
    sent.clear()
    losses, samples = torch.zeros(workers, part.window, dtype=dtype), torch.ones(workers)
    part.send(x, state, meter, Step(schedule_of(part.period).start, round, lr=0.0, losses=losses, samples=samples))
    return sent
