"""Periods that change as training goes on: schedules, which stand wherever a method has a period.

    LocalSGD(period=PostLocal(period=16, switch=2_000))             # synchronous first
    LocalSGD(period=AdaComm(first=20, every=500))                   # shorter as the loss falls
    EASGD(period=FollowDrift(first=10))                             # as long as workers do not drift further

What a schedule looks at is a mean over all workers, which travels with the round itself and arrives with it: so every
process comes to the same period, and nobody waits for it. Under overlap it is that of the round before.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from tether.checks import whole

Seen: TypeAlias = dict[str, float]
"""What a schedule remembers; its caller keeps it, and checkpoints hold it."""


@dataclass(frozen=True)
class Measured:
    """What a schedule may look at: means over all workers, the same on every process.

    Attributes:
        loss: of the last `window` batches of each worker.
        drift: root of the mean of ||x_i(t) - x_i(t_c)||^2: how far workers have come since their last round.
        lr: learning rate.
    """

    loss: float
    drift: float
    lr: float


@dataclass(frozen=True)
class Schedule(ABC):
    """Which period follows a round. Subclasses are frozen dataclasses; what changes is in `Seen`."""

    # What has to be measured for it, and over how many batches of each worker a loss is averaged.
    looks_at: ClassVar[Literal["nothing", "loss", "drift"]] = "nothing"
    window = 1

    @property
    @abstractmethod
    def start(self) -> int:
        """The first period."""

    @property
    @abstractmethod
    def longest(self) -> int:
        """The longest period that there may be."""

    @abstractmethod
    def follow(self, period: int, due: float, seen: Seen, measured: Measured | None) -> int:
        """The next period.

        Args:
            period: the one before.
            due: when the round between them was due, in local steps.
            seen: what to remember; changed in place.
            measured: at that round, or under overlap at the one before; None where there is nothing yet.
        """


Period: TypeAlias = int | Schedule


@dataclass(frozen=True)
class Constant(Schedule):
    """The same period for ever; what a number is."""

    period: int

    @property
    def start(self) -> int:
        """See `Schedule.start`."""
        return self.period

    @property
    def longest(self) -> int:
        """See `Schedule.longest`."""
        return self.period

    def follow(self, period: int, due: float, seen: Seen, measured: Measured | None) -> int:
        """See `Schedule.follow`."""
        return self.period


@dataclass(frozen=True)
class PostLocal(Schedule):
    """Synchronous first, local steps later: a period of `first` until `switch` local steps, `period` from then on.

    Post-local SGD (Lin et al., "Don't use large mini-batches, use local SGD", 2020), which switches where the learning
    rate is first decayed. Needs nothing measured, and so no message.

    Args:
        period: local steps between rounds after the switch.
        switch: local steps after which there is one.
        first: local steps between rounds before it.

    Raises:
        ValueError: if one of them is below 1.
    """

    period: int
    switch: int
    first: int = 1

    def __post_init__(self) -> None:
        for name in ("period", "switch", "first"):
            whole(name, getattr(self, name), least=1)

    @property
    def start(self) -> int:
        """See `Schedule.start`."""
        return self.first

    @property
    def longest(self) -> int:
        """See `Schedule.longest`."""
        return max(self.first, self.period)

    def follow(self, period: int, due: float, seen: Seen, measured: Measured | None) -> int:
        """See `Schedule.follow`."""
        return self.first if due < self.switch else self.period


@dataclass(frozen=True)
class AdaComm(Schedule):
    """A period that shrinks with the loss: rare rounds while there is much to gain, frequent ones for a low floor.

    tau = ceil(first sqrt((lr_0 / lr)^lr_exponent F / F_0)),    or ceil(shrink tau) where that is not below tau

    (Wang & Joshi, "Adaptive communication strategies to achieve the best error-runtime trade-off in local-update SGD",
    2019: the period that minimises their bound on the error after a given time is proportional to the root of the
    loss.) F is the workers' mean training loss, F_0 that at the first round. The paper decides anew after a time, here
    it is after local steps, so that a simulation and real workers decide alike. Where the learning rate has changed
    since, the first of the two is taken even if it is longer.

    Args:
        first: the first period, and the longest.
        every: local steps between decisions, made at the first round after them.
        shrink: what a period is multiplied by where the loss alone would not shrink it; between 0 and 1.
        lr_exponent: how much longer periods become as the learning rate falls; 0 leaves it out of account. The bound
            has 3, which is 30 times longer for a rate ten times lower.
        window: over how many of a worker's last batches its loss is averaged.

    Raises:
        ValueError: if a number is not possible.
    """

    first: int
    every: int
    shrink: float = 0.5
    lr_exponent: float = 1.0
    window: int = 10

    looks_at = "loss"

    def __post_init__(self) -> None:
        for name in ("first", "every", "window"):
            whole(name, getattr(self, name), least=1)
        if not 0 < self.shrink < 1:
            raise ValueError(f"shrink={self.shrink:g}: give a number between 0 and 1")
        if not 0 <= self.lr_exponent < math.inf:
            raise ValueError(f"lr_exponent={self.lr_exponent:g}: give a number, at least 0")

    @property
    def start(self) -> int:
        """See `Schedule.start`."""
        return self.first

    @property
    def longest(self) -> int:
        """See `Schedule.longest`."""
        return self.first

    def follow(self, period: int, due: float, seen: Seen, measured: Measured | None) -> int:
        """See `Schedule.follow`."""
        if measured is None or not measured.loss > 0:
            return period
        if not seen:
            seen |= {"first loss": measured.loss, "first lr": measured.lr, "lr": measured.lr, "decided": due}
            return period
        if due < seen["decided"] + self.every:
            return period
        slower = seen["first lr"] / measured.lr if measured.lr else 1.0
        wanted = math.ceil(self.first * math.sqrt(slower**self.lr_exponent * measured.loss / seen["first loss"]))
        if wanted >= period and measured.lr == seen["lr"]:
            wanted = math.ceil(self.shrink * period)
        seen |= {"lr": measured.lr, "decided": due}
        return min(wanted, self.first)


@dataclass(frozen=True)
class FollowDrift(Schedule):
    """A period that keeps the workers' drift between rounds where it is: longer as steps become smaller.

    tau <- tau target / drift,    at most doubled or halved at a time

    How far workers come in tau local steps grows at least like sqrt(tau), where noise drives them, and at most like
    tau, where the gradient does; so the rule comes close to the target within a few rounds, and does not swing around
    it. Keeps one more copy of X.

    Args:
        first: the first period.
        target: how far a worker may come between rounds, in parameter units (root mean square over workers). Default:
            as far as in the first period.
        least: the shortest period.
        most: the longest. Default: ten times the first.

    Raises:
        ValueError: if a number is not possible, or the first period is not between the shortest and the longest.
    """

    first: int
    target: float | None = None
    least: int = 1
    most: int | None = None

    looks_at = "drift"

    def __post_init__(self) -> None:
        whole("least", self.least, least=1)
        whole("first", self.first, least=self.least)
        whole("longest" if self.most is None else "most", self.longest, least=self.first)
        if self.target is not None and not 0 < self.target < math.inf:
            raise ValueError(f"target={self.target:g}: give a distance, more than 0")

    @property
    def start(self) -> int:
        """See `Schedule.start`."""
        return self.first

    @property
    def longest(self) -> int:
        """See `Schedule.longest`."""
        return 10 * self.first if self.most is None else self.most

    def follow(self, period: int, due: float, seen: Seen, measured: Measured | None) -> int:
        """See `Schedule.follow`."""
        if measured is None or not 0 < measured.drift < math.inf:
            return period
        target = seen.setdefault("target", measured.drift if self.target is None else self.target)
        # Not rounded, or a short period would never grow by less than a half.
        exact = seen.get("period", float(period)) * min(max(target / measured.drift, 0.5), 2.0)
        seen["period"] = min(max(exact, float(self.least)), float(self.longest))
        return round(seen["period"])


def check_period(name: str, period: Period) -> None:
    """Raise `ValueError` unless it is a schedule or a whole number, at least 1."""
    if not isinstance(period, Schedule):
        whole(name, period, least=1)


def schedule_of(period: Period) -> Schedule:
    """The schedule that a period is."""
    return period if isinstance(period, Schedule) else Constant(period)


PERIODS: dict[str, type[Schedule]] = {"post-local": PostLocal, "adacomm": AdaComm, "follow-drift": FollowDrift}
"""By the names that configs use."""
