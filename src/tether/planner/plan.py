"""The plan: every candidate's forecast, and one recommendation with its reason."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tether.planner.bounds import Bound, Constants, bound
from tether.planner.candidates import Candidate, Conditions
from tether.planner.forecast import Course, Forecast, Train, forecast
from tether.result import NonFiniteLossError

LEVEL = 0.03
"""Candidates whose times differ by less than this share are level; the one that sends less is recommended."""

LONGER = 4
"""Candidates may take so many times as many local steps as asked for, while they are ahead in time."""

REFERENCE = 0.75
"""Without a target, it is the loss that the reference has come to after this share of its steps."""


@dataclass(frozen=True)
class Plan:
    """What candidates take on a cluster, as far as is known before anything is trained there.

    Attributes:
        conditions: workers, parameters and the cluster.
        target: training loss of the mean model that candidates are compared by.
        forecasts: of all candidates, soonest at the target first, those that do not come to it last.
        bounds: what theory says of each, in the time that the recommended one takes, by name; empty without constants.
        constants: what theory was given.
    """

    conditions: Conditions
    target: float
    forecasts: tuple[Forecast, ...]
    bounds: dict[str, Bound]
    constants: Constants | None

    @property
    def recommended(self) -> Candidate:
        """The candidate that is soonest at the target; of several that are level, the one that sends least."""
        return self._best.candidate

    @property
    def _best(self) -> Forecast:
        soonest = self.forecasts[0].to_target(self.target)
        assert soonest is not None
        level = [
            each
            for each in self.forecasts
            if (seconds := each.to_target(self.target)) is not None and seconds <= (1 + LEVEL) * soonest
        ]
        return min(level, key=lambda each: each.megabytes / each.candidate.period)

    @property
    def reason(self) -> str:
        """Why that one, in a sentence."""
        best = self._best
        mine = best.to_target(self.target)
        assert mine is not None
        candidate = best.candidate
        said = f"{candidate.name} comes to a loss of {self.target:.3g} after {_seconds(mine)}"
        rivals = [
            (seconds, each)
            for each in self.forecasts
            if each.candidate.kind != candidate.kind and (seconds := each.to_target(self.target)) is not None
        ]
        if rivals:
            seconds, rival = min(rivals, key=lambda pair: pair[0])
            said += _ahead(seconds / mine, rival.candidate.name)
        steps = candidate.period * self.conditions.step
        said += f": a round's {best.megabytes:.3g} MB a worker take {_seconds(best.message)} on these links"
        if candidate.overlap:
            hidden = "all" if best.waiting < LEVEL else "part"
            said += f", of which {candidate.overlap} overlapping local steps hide {hidden}"
        else:
            said += f", beside {_seconds(steps)} of local steps between rounds"
        return said + "."


def make_plan(
    candidates: Sequence[Candidate],
    conditions: Conditions,
    train: Train,
    *,
    steps: int,
    target: float | None = None,
    constants: Constants | None = None,
    lr: float | None = None,
    tell: Callable[[str], None] = lambda name: None,
) -> Plan:
    """Forecast every candidate and recommend one.

    Candidates are compared at equal loss, not at equal local steps. Who has not come to the target after `steps`, but
    would have time for more of them until the soonest of the others is there, takes up to `LONGER` times as many.

    Args:
        candidates: what to choose among.
        conditions: workers, parameters and the cluster.
        train: trains by a candidate on the clock of the conditions.
        steps: local steps of each.
        target: training loss of the mean model to compare by. Default: what the first candidate has come to after three
            quarters of its steps.
        constants: of model and data, for bounds.
        lr: learning rate, if the optimizer is plain SGD, which bounds are proved for.
        tell: called with the name of each candidate before it is simulated.

    Raises:
        ValueError: if no candidate comes to the target.
    """

    def forecast_of(candidate: Candidate, count: int) -> Forecast:
        tell(candidate.name)
        try:
            result = train(candidate, count)
        except NonFiniteLossError:
            result = None
        return forecast(candidate, result, conditions)

    forecasts = [forecast_of(candidate, steps) for candidate in candidates]
    reference = next((each.course for each in forecasts if each.course is not None), None)
    if reference is None:
        raise ValueError("every candidate diverged: take a smaller learning rate")
    if target is None:
        seen = reference.losses[np.isfinite(reference.losses)]
        target = float(seen[int(REFERENCE * (len(seen) - 1))])
    soonest = min((when for each in forecasts if (when := each.to_target(target)) is not None), default=math.inf)
    behind = [(number, each) for number, each in enumerate(forecasts) if each.course and not each.to_target(target)]
    for number, each in sorted(behind, key=lambda pair: pair[1].seconds):
        count = int(steps * min(LONGER, soonest / each.seconds))
        if count > steps:
            forecasts[number] = forecast_of(each.candidate, count)
            soonest = min(soonest, forecasts[number].to_target(target) or math.inf)
    times = {each.candidate.name: each.to_target(target) for each in forecasts}
    known = [seconds for seconds in times.values() if seconds is not None]
    if not known:
        least = min((each.loss for each in forecasts if math.isfinite(each.loss)), default=math.nan)
        raise ValueError(
            f"target={target:g}: no candidate comes to it, the lowest loss is {least:.4g}; train for longer"
        )
    order = sorted(forecasts, key=lambda each: (times[each.candidate.name] or math.inf, each.candidate.name))
    bounds: dict[str, Bound] = {}
    if constants is not None and lr is not None:
        for each in order:
            found = bound(each.candidate, constants, conditions, lr, seconds=min(known))
            if found is not None:
                bounds[each.candidate.name] = found
    return Plan(conditions, target, tuple(order), bounds, constants)


@dataclass(frozen=True)
class Verified:
    """A candidate's forecast beside what real workers took.

    Attributes:
        name: of the candidate.
        period: seconds from one round to the next, predicted and measured.
        to_target: seconds to the target, predicted and measured; None if it is not reached.
        loss: at the end, predicted and measured.
    """

    name: str
    period: tuple[float, float]
    to_target: tuple[float | None, float | None]
    loss: tuple[float, float]


def verified(forecast: Forecast, measured: Course, target: float) -> Verified:
    """Compare a forecast with a real run of the same steps.

    Synchronous workers train what was simulated, so they are at the target after as many local steps; when that is, is
    what the real run says.
    """
    assert forecast.course is not None
    step = forecast.course.reaches(target)
    real = None if step is None else measured.when(step)
    return Verified(
        forecast.candidate.name,
        (forecast.period, measured.period),
        (forecast.to_target(target), real),
        (forecast.loss, float(measured.losses[-1])),
    )


def as_json(plan: Plan) -> dict[str, object]:
    """The plan as a file holds it."""
    return {
        "workers": plan.conditions.workers,
        "parameters": plan.conditions.parameters,
        "target": plan.target,
        "recommended": plan.recommended.name,
        "reason": plan.reason,
        "clock": dataclasses.asdict(plan.conditions.clock),
        "constants": None if plan.constants is None else dataclasses.asdict(plan.constants),
        "candidates": [
            {
                "name": each.candidate.name,
                "method": each.candidate.kind,
                "period": each.candidate.period,
                "overlap": each.candidate.overlap,
                "megabytes a round": each.megabytes,
                "seconds a message": each.message,
                "seconds a round besides": plan.conditions.clock_of(each.candidate).round,
                "seconds a period": each.period,
                "waiting": each.waiting,
                "seconds": each.seconds,
                "loss": each.loss,
                "steps to target": None if each.course is None else each.course.reaches(plan.target),
                "seconds to target": each.to_target(plan.target),
                "bound": dataclasses.asdict(plan.bounds[each.candidate.name])
                if each.candidate.name in plan.bounds
                else None,
            }
            for each in plan.forecasts
        ],
    }


def _ahead(ratio: float, rival: str) -> str:
    if ratio <= 1 + LEVEL:
        return f", level with {rival}"
    how = f"{ratio:.2g} times" if ratio >= 1.5 else f"{ratio - 1:.0%}"
    return f", {how} sooner than {rival}, the next best method"


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"
