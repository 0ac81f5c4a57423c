"""Wall-clock time of real workers on a link as slow as the virtual one: what the figures against time are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tether.config import Config
from tether.papers.cooperative.training import STEPS_A_MEAN, WORKERS, Task, task
from tether.papers.curves import Curve, times_sooner
from tether.papers.experiments import Claim, Setting, Table
from tether.papers.real import STEP_SECONDS, WARM_UP, Link, RealRun, carry_out_real
from tether.report import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEPS = 150
"""Local steps of every real worker: enough for its pace, and to see how the loss begins to fall."""

WINDOW = 10
"""Local steps over which the losses of real workers are averaged."""


@dataclass(frozen=True)
class WallClock:
    """Real runs, by what they are called in figures.

    Attributes:
        runs: what the workers took.
        link: what they talked over.
        steps_a_mean: local steps that a mean of all takes on it.
        start: the loss before the first step.
    """

    runs: Mapping[str, RealRun]
    link: Link
    steps_a_mean: float
    start: float

    def curve(self, name: str) -> Curve:
        """Seconds, and the workers' mean training loss then."""
        run = self.runs[name]
        whole = len(run.seconds) // WINDOW * WINDOW
        losses = run.losses[:whole].mean(1).reshape(-1, WINDOW).mean(1)
        return run.seconds[WINDOW - 1 : whole : WINDOW], losses

    def less_time(self, fast: str, slow: str, says: str, beyond: float) -> Claim:
        """Whether as many local steps take one run much less time than another."""
        ratio = self.runs[slow].pace / self.runs[fast].pace
        remark = f"real workers: seconds a local step of {slow} over those of {fast}; holds above {beyond:g}"
        return self._claim(says, ratio > beyond, ratio, None, remark)

    def sooner(self, fast: str, slow: str, says: str, beyond: float, paper: str | None = None) -> Claim:
        """Whether one run comes to the same losses in less time than another."""
        ratio = times_sooner(self.curve(fast), self.curve(slow), self.start)
        remark = f"real workers: median over losses of {slow}'s seconds to them over {fast}'s; holds above {beyond:g}"
        return self._claim(says, ratio > beyond, ratio, paper, remark)

    def saved(self, with_: str, without: str, says: str, least: float, paper: str) -> Claim:
        """Whether one run takes so much of the time of another away."""
        share = 1 - self.runs[with_].pace / self.runs[without].pace
        remark = f"real workers: share of the seconds a local step that is saved; holds from {least:g} on"
        return self._claim(says, share >= least, share, paper, remark)

    def _claim(self, says: str, holds: bool, ours: float, paper: str | None, remark: str) -> Claim:
        if self.link.mbit is None:
            return Claim(says, None, None, paper, f"real workers, but the link could not be slowed: {self.link.why}")
        return Claim(says, holds, ours, paper, remark)

    @property
    def table(self) -> Table:
        """What a local step took each run."""
        return [
            {"run": name, "seconds_a_step": run.pace, "steps": len(run.seconds), "link_mbit": self.link.mbit}
            | {"steps_a_mean": self.steps_a_mean, "loss_at_the_end": float(self.curve(name)[1][-1])}
            for name, run in self.runs.items()
        ]

    @property
    def notes(self) -> list[str]:
        """What the real runs are."""
        slow = (
            f"carries {self.link.mbit:.0f} Mbit/s, all messages together, so that a mean takes {self.steps_a_mean:g} "
            "local steps"
            if self.link.mbit
            else f"is not slow: {self.link.why}"
        )
        return [
            f"Real: {WORKERS} processes, a worker each, that train the small model for {STEPS} steps and talk over "
            f"a link that {slow}. A local step lasts {STEP_SECONDS * 1e3:g} ms, by waiting, as on GPUs of their "
            f"own. The first {WARM_UP} steps are no part of the pace."
        ]

    def draw(self, axes: Axes) -> None:
        """The losses against wall-clock time, each run in the colour of its place."""
        for number, name in enumerate(self.runs):
            axes.plot(*self.curve(name), color=style.LIGHT[number], label=name)
        axes.set(xlabel="wall-clock time, seconds", ylabel="training loss", xlim=(0, None))


def small(setting: Setting) -> Task:
    """What real workers train: the small model in any setting, since the paper's takes a machine for each."""
    return task(dataclasses.replace(setting, paper=False))


def wall_clock(
    methods: Mapping[str, Mapping[str, Any]],
    rate: float,
    setting: Setting,
    steps_a_mean: float = STEPS_A_MEAN,
    overlaps: Mapping[str, int] | None = None,
) -> WallClock:
    """Train by real processes.

    Args:
        methods: as a config has them, by what the runs are called.
        rate: learning rate.
        setting: where, and who is told.
        steps_a_mean: local steps that a mean takes on the link.
        overlaps: by the same names, local steps that a message may take.
    """
    what = small(setting)
    configs: dict[str, Config] = {}
    for name, method in methods.items():
        overlap = (overlaps or {}).get(name, 0)
        changes = {"steps": STEPS, "scheduler": None, "clock": None, "device": "cpu", "overlap": overlap}
        file = f"{method['name']}-period-{method['period']}-overlap-{overlap}"
        configs[file] = what.config(method, rate, setting.seed).model_copy(update=changes)
    assert len(configs) == len(methods), "two runs of one name"
    link = Link.of(next(iter(configs.values())), steps_a_mean)
    runs = dict(zip(methods, carry_out_real(configs, link, setting).values(), strict=True))
    return WallClock(runs, link, steps_a_mean, what.start())
