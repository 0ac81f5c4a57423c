"""What a cluster does: seconds a local step, latency and bandwidth between its hosts, measured with real messages."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from tether.clock import Clock
from tether.methods import Method, State, Step
from tether.periods import schedule_of
from tether.planner.candidates import Conditions
from tether.result import Result
from tether.workers import Arrived, Message, Ranks, Workers

PAUSE = 5
"""Local steps between two looks at the time."""

WARM_UP = 3
"""Looks that are not counted: caches are cold, allocators ask for memory."""

ENOUGH, FEW, MANY = 4.0, 3, 400
"""Seconds over which looks are averaged, as long as these are no fewer and no more than so many."""

SHORT = 21
"""Short messages between two hosts, of which the median counts."""

FIRST, LONGEST = 2**14, 2**26
"""Numbers in the first long message between two hosts, and at most; doubled until one takes `LASTS` seconds."""

LASTS = 1.0

ALIKE = 0.2
"""A link whose latency or bandwidth is off the median by less than this share is like the others."""

ALL_PAIRS = 6
"""Up to so many hosts every pair is measured, beyond that those next to each other in a ring."""


@dataclass(frozen=True)
class Alone(Method):
    """Rounds in which nothing happens: what they are for is to look at the time."""

    def send(self, x: Tensor, state: State, workers: Workers, step: Step) -> Message:
        """Nothing."""
        return Arrived(x[:0])

    def receive(self, x: Tensor, state: State, message: Any) -> None:
        """Nothing."""


TrainBy: TypeAlias = Callable[[Method, int], Result]
"""Trains so many local steps by a method."""


def step_seconds(train: TrainBy) -> float:
    """Seconds that a local step takes, on average, when nobody communicates."""
    roughly = _between_rounds(train, Alone(PAUSE), FEW)
    return _between_rounds(train, Alone(PAUSE), _looks(roughly)) / PAUSE


def _between_rounds(train: TrainBy, method: Method, looks: int) -> float:
    """Seconds that a period takes with its round, on average over so many; of several parts the shortest period."""
    period = min(schedule_of(part.period).start for part in method.parts)
    records = [each for each in train(method, period * (looks + WARM_UP)).history if each.round]
    first, last = (next(each for each in records if each.step >= WARM_UP * period), records[-1])
    return (last.seconds - first.seconds) / (last.step - first.step) * period


def _looks(seconds: float) -> int:
    """How many it takes to average over enough time, if one takes so long."""
    return int(min(MANY, max(FEW, ENOUGH / seconds)))


def conditions_between(
    ranks: Ranks, alone: TrainBy, together: TrainBy, methods: Mapping[str, Method], parameters: Tensor
) -> Conditions:
    """What real workers and their links do.

    Every process calls it at the same point of its program. Links are measured pair by pair, steps with all processes
    at it, each by itself. What rounds cost besides is what those of each method take longer than both together: two
    messages at once do not share a link as evenly as bytes would, one that goes from host to host has it for itself.

    Args:
        ranks: the workers.
        alone: trains this process's workers, without the others.
        together: trains all of them.
        methods: by kind, those whose rounds are measured; the shorter their periods, the sooner.
        parameters: `[d]`, of the model: how many, of which type and where.
    """
    dist.barrier(group=ranks.group)
    mine = parameters.new_full((ranks.rows.stop - ranks.rows.start,), step_seconds(alone), dtype=torch.float64)
    everyone = ranks.gather(mine).cpu().numpy()
    step = float(np.median(everyone))
    clock = Clock(step=step, speeds=tuple((step / everyone).tolist()), **links_between(ranks, parameters.device))
    free = Conditions(ranks.size, len(parameters), clock, parameters.dtype)
    rounds = {}
    for kind, method in methods.items():
        expected = free.each_period(method)  # the same for all processes, as is the number of looks
        taken = _between_rounds(together, method, _looks(expected))
        rounds[kind] = max(0.0, float(ranks.gather(torch.full_like(mine, taken))[0]) - expected)
    return replace(free, rounds=rounds)


def links_between(ranks: Ranks, device: torch.device) -> dict[str, Any]:
    """Latency and bandwidth between hosts, and within them where they have several processes: parameters of a `Clock`.

    Pairs of hosts are measured one after the other, so that none shares a link with another. Links that are unlike the
    median are given by themselves.
    """
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    nodes = ranks.processes // local
    found: dict[str, Any] = {"nodes": nodes} if nodes < ranks.size else {}
    if local > 1:
        latency, bandwidth = _measured(ranks, [(0, 1)], device)[0]
        found |= {"node_latency": latency, "node_bandwidth": bandwidth}
    if nodes > 1:
        every = nodes <= ALL_PAIRS
        pairs = [(a, b) for a in range(nodes) for b in range(a + 1, nodes) if every or b == a + 1]
        links = _measured(ranks, [(a * local, b * local) for a, b in pairs], device)
        latency, bandwidth = (statistics.median(each) for each in zip(*links, strict=True))
        unlike = [
            (*pair, *link)
            for pair, link in zip(pairs, links, strict=True)
            if abs(link[0] - latency) > ALIKE * latency + 1e-4 or abs(link[1] - bandwidth) > ALIKE * bandwidth
        ]
        found |= {"latency": latency, "bandwidth": bandwidth, "links": tuple(unlike)}
    return found


def _measured(ranks: Ranks, pairs: Sequence[tuple[int, int]], device: torch.device) -> list[tuple[float, float]]:
    """Seconds of latency and bits a second between each two processes; the same on all."""
    table = torch.zeros(len(pairs), 2, dtype=torch.float64, device=device)
    for number, pair in enumerate(pairs):
        if ranks.process in pair:
            other = pair[1 - pair.index(ranks.process)]
            link = _link(ranks, other, ranks.process == pair[0], device)
            if ranks.process == pair[0]:
                table[number] = torch.tensor(link, dtype=torch.float64)
        dist.barrier(group=ranks.group)
    dist.all_reduce(table, group=ranks.group)
    return [(float(latency), float(bandwidth)) for latency, bandwidth in table.tolist()]


def _link(ranks: Ranks, other: int, first: bool, device: torch.device) -> tuple[float, float]:
    """Latency and bandwidth to another process, as the first of the two sees them."""

    def there_and_back(said: float = 0.0) -> tuple[float, float]:
        """Seconds until a number of the first has come back; what it was."""
        number = torch.full((1,), said, device=device)
        began = time.monotonic()
        if first:
            dist.send(number, group=ranks.group, group_dst=other)
        dist.recv(number, group=ranks.group, group_src=other)
        if not first:
            dist.send(number, group=ranks.group, group_dst=other)
        return time.monotonic() - began, float(number)

    def exchange(numbers: int) -> float:
        """Seconds until each has so many numbers of the other: rounds, too, keep both directions busy."""
        out, into = torch.zeros(numbers, device=device), torch.empty(numbers, device=device)
        began = time.monotonic()
        operations = [
            dist.P2POp(dist.irecv, into, group=ranks.group, group_peer=other),
            dist.P2POp(dist.isend, out, group=ranks.group, group_peer=other),
        ]
        for work in dist.batch_isend_irecv(operations):
            work.wait()
        there_and_back()  # until the other has it, too
        return time.monotonic() - began

    exchange(FIRST)  # connects
    short = statistics.median(there_and_back()[0] for _ in range(SHORT))
    numbers = FIRST
    while True:
        seconds = min(exchange(numbers) for _ in range(2))
        # The first decides for both whether that was long enough.
        _, enough = there_and_back(float(seconds >= LASTS or numbers >= LONGEST))
        if enough:
            break
        numbers *= 2
    return short / 2, 32 * numbers / max(seconds - 1.5 * short, 1e-9)
