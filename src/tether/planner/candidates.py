"""What a plan chooses among: methods, each with a period, a topology and an overlap."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from tether.clock import Clock
from tether.methods import CenterMethod, Method
from tether.periods import schedule_of
from tether.theory import RoundCost, round_costs

PERIODS = (4, 16, 64)
"""Local steps between rounds that are tried unless others are asked for."""

HARDLY = 0.1
"""A message that takes less than this share of the steps between rounds need not be hidden."""


@dataclass(frozen=True)
class Conditions:
    """What all candidates have in common.

    Attributes:
        workers: number of workers m.
        parameters: number of parameters d.
        clock: how long steps and messages take.
        dtype: of the parameters.
        rounds: by the kind of a method, seconds that its rounds take longer than local steps and bytes; measured. For
            a kind that is not there, what the clock says.
    """

    workers: int
    parameters: int
    clock: Clock
    dtype: torch.dtype = torch.float32
    rounds: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def step(self) -> float:
        """Seconds that the slowest worker's local step takes."""
        return self.clock.step / min(self.clock.speeds or (1.0,))

    def clock_of(self, candidate: Candidate) -> Clock:
        """The clock with what this candidate's rounds cost."""
        return dataclasses.replace(self.clock, round=self.rounds.get(candidate.kind, self.clock.round))

    def message(self, method: Method) -> float:
        """Seconds that the messages of a round take, all parts of the method together."""
        return sum(cost.seconds(self.clock) for cost in self._costs(method))

    def each_period(self, method: Method) -> float:
        """Seconds that a period takes if nothing hides its messages.

        Steps of the slowest worker, whom all wait for, and messages; of a method of several parts the shortest period,
        with its share of the others' messages.
        """
        costs = self._costs(method)
        shortest = min(cost.period for cost in costs)
        return shortest * self.step + sum(cost.seconds(self.clock) * shortest / cost.period for cost in costs)

    def megabytes(self, method: Method) -> float:
        """What a worker sends in a round, on average, all parts of the method together."""
        return sum(cost.bytes for cost in self._costs(method)) / self.workers / 1e6

    def _costs(self, method: Method) -> tuple[RoundCost, ...]:
        return round_costs(method, self.workers, self.parameters, dtype=self.dtype)


@dataclass(frozen=True)
class Candidate:
    """A way to train.

    Attributes:
        name: what it is called, such as "local 16 + 4" for a period of 16 and an overlap of 4.
        kind: the name of its method, the same for all its periods and overlaps.
        method: what its rounds do.
        overlap: local steps that a round's message may take.
    """

    name: str
    kind: str
    method: Method
    overlap: int = 0

    @property
    def period(self) -> int:
        """Local steps between rounds; of a schedule the first, of several parts the shortest."""
        return min(schedule_of(part.period).start for part in self.method.parts)


def standard_candidates(
    methods: Mapping[str, Callable[[int], Method]],
    conditions: Conditions,
    periods: Sequence[int] = PERIODS,
    steps: int | None = None,
) -> list[Candidate]:
    """Each method with each period, with and without overlap.

    The overlap is the least that hides the message: as many local steps as it takes, at most the period. Where the
    message takes less than a tenth of the steps between rounds there is nothing to hide, and no such candidate.

    Args:
        methods: by name, what makes each from a period; one that has a period of its own is taken once.
        conditions: under which they will train.
        periods: local steps between rounds to try.
        steps: local steps of the run. A period must fit in it at least three times.

    Raises:
        ValueError: if a method refuses a period or so many workers, or no period is left.
    """
    fitting = [period for period in periods if steps is None or 3 * period <= steps]
    if not fitting:
        raise ValueError(
            f"periods={', '.join(map(str, periods))}: none fits three times into {steps} local steps; take shorter "
            "ones or more steps"
        )
    found: dict[tuple[str, int, int], Candidate] = {}
    for kind, make in methods.items():
        for asked in fitting:
            method = make(asked)
            plain = Candidate(kind, kind, method)
            period = plain.period
            # A method whose period is its own, such as SyncSGD, comes with all periods: once is enough.
            name = kind if make(asked + 1) == method else f"{kind} {period}"
            for overlap in (0, hiding_overlap(method, conditions)):
                said = f"{name} + {overlap}" if overlap else name
                found.setdefault((kind, period, overlap), dataclasses.replace(plain, name=said, overlap=overlap))
    return list(found.values())


def hiding_overlap(method: Method, conditions: Conditions) -> int:
    """The least overlap during which a round's message arrives, at most the period; 0 where that hardly matters."""
    if isinstance(method, CenterMethod):
        return 0  # nobody waits for the others there
    period = min(schedule_of(part.period).longest for part in method.parts)
    seconds, step = conditions.message(method), conditions.step
    if period == 1 or seconds < HARDLY * period * step:
        return 0
    return min(period, math.ceil(seconds / step)) if step else period
