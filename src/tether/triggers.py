"""When a round is due: after so many steps of each worker, of all workers together, or after a time.

A method's period says how often, a trigger says of what:

    (no trigger)        local steps of each worker: all take the same number, the fast ones wait for the slow ones
    TotalSteps()        local steps that all workers together have taken, a worker's share of them
    TimeWindow(seconds) so many seconds

With these two, workers take as many steps as they can, each at its own speed, and all take part in the same rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable


@dataclass(frozen=True)
class TotalSteps:
    """A round is due when all m workers together have taken m periods of local steps more (Leader SGD, algorithm 1).

    Whoever is in the middle of a step then takes part when it has ended.
    """


@dataclass(frozen=True)
class TimeWindow:
    """A round is due a period after the one before, and the period is a time: `seconds` for each of its local steps.

    With `period=10` and `seconds=0.5`, workers train for 5 seconds between rounds, and the step in which that time ends
    is the last. Means that a method takes weigh workers by the steps that they have taken meanwhile (Cooperative SGD,
    section 7).

    Args:
        seconds: of a period of one.
        by_steps: whether means weigh workers by their steps, or all alike.

    Raises:
        ValueError: if the time is not positive.
    """

    seconds: float
    by_steps: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.seconds < float("inf"):
            raise ValueError(f"seconds={self.seconds}: give the time of a period of one, more than 0")


Trigger: TypeAlias = "TotalSteps | TimeWindow"

TRIGGERS: dict[str, type[TotalSteps | TimeWindow]] = {"total-steps": TotalSteps, "time-window": TimeWindow}
"""By the names that configs use."""


@runtime_checkable
class Pace(Protocol):
    """How far the workers are, in the unit of periods; read by each process for itself.

    Rounds are due at multiples of their periods. Every process passes these in the same order, so all take part in the
    same rounds, whenever each of them is there.

    Attributes:
        exact: whether it is known how many local steps there are up to the next round.
        by_steps: whether means weigh workers by the steps that they have taken since the round before.
    """

    exact: bool
    by_steps: bool

    @property
    def now(self) -> float:
        """How far they are."""
        ...

    def advance(self, steps: int) -> None:
        """The workers here have taken so many more local steps."""
        ...

    def passed(self, due: float) -> None:
        """A round that was due then has been sent."""
        ...


class OwnPace:
    """Local steps of the workers here."""

    exact = True
    by_steps = False

    def __init__(self) -> None:
        self.now: float = 0

    def advance(self, steps: int) -> None:
        """See `Pace.advance`."""
        self.now += steps

    def passed(self, due: float) -> None:
        """See `Pace.passed`."""


class TotalPace:
    """Local steps of all workers together, over their number.

    Args:
        add: counts local steps of a worker here.
        total: all that have been counted by anyone, as far as is known here.
        rows: workers here.
        size: workers everywhere.
    """

    exact = False
    by_steps = False

    def __init__(self, add: Callable[[int], None], total: Callable[[], int], rows: int, size: int):
        self._add, self._total = add, total
        self._rows, self._size = rows, size

    @property
    def now(self) -> float:
        """See `Pace.now`."""
        return self._total() / self._size

    def advance(self, steps: int) -> None:
        """See `Pace.advance`."""
        self._add(steps * self._rows)

    def passed(self, due: float) -> None:
        """See `Pace.passed`."""


class GivenPace:
    """What someone else says: a simulation that knows when rounds are due.

    Args:
        by_steps: whether means weigh workers by their steps.
    """

    exact = False

    def __init__(self, by_steps: bool):
        self.by_steps = by_steps
        self.now: float = 0

    def advance(self, steps: int) -> None:
        """See `Pace.advance`."""

    def passed(self, due: float) -> None:
        """See `Pace.passed`."""


class WindowPace:
    """Time since the round before, after what it was due at.

    Args:
        window: how long.
        clock: seconds.
    """

    exact = False

    def __init__(self, window: TimeWindow, clock: Callable[[], float] = time.monotonic):
        self.by_steps = window.by_steps
        self._seconds, self._clock = window.seconds, clock
        self.passed(0)

    @property
    def now(self) -> float:
        """See `Pace.now`."""
        return self._due + (self._clock() - self._opened) / self._seconds

    def advance(self, steps: int) -> None:
        """See `Pace.advance`."""

    def passed(self, due: float) -> None:
        """See `Pace.passed`."""
        self._due, self._opened = due, self._clock()
