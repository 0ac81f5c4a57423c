"""Networks trained by several methods on the paper's cluster, on virtual time (section 4).

LSGD is algorithm 1: a round is due when all workers together have taken m tau steps more. EASGD and DOWNPOUR exchange
with a center, which is the model that is evaluated; of LSGD that is the mean of the workers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tether.clock import Clock, Cluster
from tether.config import Config, choose, validate
from tether.methods import METHODS, CenterMethod
from tether.papers.curves import Curve, of_center, times_sooner
from tether.papers.experiments import Setting, Table
from tether.papers.runs import carry_out
from tether.report import style
from tether.theory import round_costs
from tether.trips import Trips

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GPUS_A_NODE = 4

CLUSTER: dict[str, Any] = {
    # "Ethernet", says the paper, of nodes with four GTX 1080: the one gigabit that mainboards of their time came with.
    "bandwidth": 1e9,
    "latency": 1e-4,
    # PCI Express 3.0 with 16 lanes, of whose 126 Gbit/s about two thirds are reached.
    "node_bandwidth": 8e10,
    "node_latency": 2e-5,
    # GPUs that have nothing else to do; loading and cropping images varies a little.
    "noise": "lognormal",
    "spread": 0.05,
}
"""The paper's cluster, for a `tether.Clock`; what it does not say, and why we take this."""

ELASTICITY = 0.43
"""β of EASGD in all the paper's experiments."""

LOOKED_AT = 1000
"""Local steps of every worker from which it is told how long a step takes, visits to the center included."""


@dataclass(frozen=True)
class Grid:
    """What a method is tried with (tables 2 to 5).

    Attributes:
        rates: learning rates.
        pulls: λ, which is λ_G too; none for methods without leaders.
    """

    rates: tuple[float, ...]
    pulls: tuple[float | None, ...] = (None,)


@dataclass(frozen=True)
class Entry:
    """A run of the comparison."""

    method: str
    workers: int
    rate: float
    pull: float | None

    @property
    def name(self) -> str:
        """Of its folder."""
        pull = "" if self.pull is None else f"-pull-{self.pull:g}"
        return f"{self.method}-{self.workers}-lr-{self.rate:g}{pull}"


@dataclass(frozen=True)
class Comparison:
    """Methods compared on one network, at several numbers of workers.

    Attributes:
        data: as a config has it.
        model: as a config has it.
        parameters: of the model.
        grids: what each method is tried with; which methods are compared.
        step_seconds: virtual seconds of a local step.
        seconds: virtual seconds that every run takes, messages included; somewhat more where rounds also average
            the buffers of batch normalisation. All are compared up to where the first has ended.
        evaluations: of each run.
        workers: numbers of workers; SGD has one.
        batch_size: of each worker.
        period: local steps between rounds, τ.
        global_period: between pulls to the leader of all where there are several nodes, τ_G.
        window: batches over which the loss is averaged by which leaders are chosen.
        drops: shares of a run after which its learning rate is divided by ten.
        slower_links: how many times slower all links are than the paper's. With a smaller network, they make a message
            take as long as one of the paper's network does.
    """

    data: Mapping[str, Any]
    model: Mapping[str, Any]
    parameters: int
    grids: Mapping[str, Grid]
    step_seconds: float
    seconds: float
    evaluations: int
    workers: tuple[int, ...] = (4, 16)
    batch_size: int = 128
    period: int = 64
    global_period: int = 128
    window: int = 10
    drops: tuple[float, ...] = field(default=())
    slower_links: float = 1.0

    def entries(self) -> Iterator[Entry]:
        """All runs, the tries of a method one after the other."""
        for method, grid in self.grids.items():
            numbers = (1,) if method == "SGD" else self.workers
            for workers, rate, pull in itertools.product(numbers, grid.rates, grid.pulls):
                yield Entry(method, workers, rate, pull)

    def steps(self, entry: Entry) -> int:
        """Local steps of every worker, in the virtual seconds that there are."""
        return max(1, int(self.seconds / self._pace(entry)))

    def config(self, entry: Entry, seed: int) -> Config:
        """A run as a config."""
        steps = self.steps(entry)
        milestones = [int(share * steps) for share in self.drops]
        settings = {
            "workers": entry.workers,
            "steps": steps,
            "batch_size": self.batch_size,
            "seed": seed,
            "evaluate_every": max(1, steps // self.evaluations),
            "trigger": "total-steps" if entry.method == "LSGD" else None,
            "clock": self._clock(entry.workers),
            "data": dict(self.data),
            "model": dict(self.model),
            # As in the code that the authors published; the paper prints the weight decay.
            "optimizer": {"name": "SGD", "lr": entry.rate, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4},
            "scheduler": {"name": "MultiStepLR", "milestones": milestones, "gamma": 0.1} if self.drops else None,
            "method": entry.method,
            "methods": {entry.method: self._method(entry)},
        }
        return validate(Config, settings, entry.name)

    def _clock(self, workers: int) -> dict[str, Any]:
        widths = {name: CLUSTER[name] / self.slower_links for name in ("bandwidth", "node_bandwidth")}
        return CLUSTER | widths | {"step": self.step_seconds, "nodes": -(-workers // GPUS_A_NODE)}

    def _pace(self, entry: Entry) -> float:
        """Virtual seconds of a local step, with its share of what is waited for messages."""
        clock = Clock(**self._clock(entry.workers))
        method = choose(self._method(entry), METHODS, entry.method)
        if isinstance(method, CenterMethod):
            steps = min(LOOKED_AT, math.ceil(self.seconds / self.step_seconds))
            size = self.parameters * np.dtype(np.float32).itemsize
            trips = Trips(Cluster(clock, entry.workers, seed=0), method.period, overlap=0, steps=steps, size=size)
            return float(trips.ends.max()) / steps
        costs = round_costs(method, entry.workers, self.parameters)
        return self.step_seconds + sum(cost.seconds(clock) / cost.period for cost in costs)

    def _method(self, entry: Entry) -> dict[str, Any]:
        nodes = entry.workers // GPUS_A_NODE
        match entry.method:
            case "SGD":  # of one worker, which has nobody to average with
                return {"name": "local", "period": self.period}
            case "DOWNPOUR":
                return {"name": "downpour", "period": 1}
            case "EASGD":
                return {"name": "asynchronous-easgd", "period": self.period, "beta": ELASTICITY}
            case "LSGD" if nodes <= 1:
                return {"name": "leader", "period": self.period, "pull": entry.pull, "window": self.window}
            case "LSGD":
                pulls = {"pull": entry.pull, "global_pull": entry.pull, "groups": nodes, "window": self.window}
                return {"name": "multi-leader", "period": self.period, "global_period": self.global_period} | pulls
        raise AssertionError(f"how is {entry.method} run?")


class Found:
    """What the runs of a comparison have come to.

    Args:
        comparison: what was compared.
        setting: how.
    """

    def __init__(self, comparison: Comparison, setting: Setting):
        self.comparison = comparison
        self.entries = list(comparison.entries())
        configs = {entry.name: comparison.config(entry, setting.seed) for entry in self.entries}
        self.runs = carry_out(configs, setting)

    def curve(self, entry: Entry, measure: str = "error") -> Curve:
        """Virtual seconds, and the center's test "error" or "loss" then."""
        run = self.runs[entry.name]
        seconds, values = of_center(run, "accuracy" if measure == "error" else measure, "virtual")
        return seconds, 1 - values if measure == "error" else values

    def best(self, method: str, workers: int) -> Entry:
        """The try of a method that is compared: that with the least test error at the end; if it did not diverge.

        So each method has its own best learning rate and pull of those in its grid, as in the paper.
        """
        tries = [each for each in self.entries if (each.method, each.workers) == (method, workers)]
        return min(tries, key=lambda each: (not self.runs[each.name].ended, self.error(each)))

    @property
    def end(self) -> float:
        """Virtual seconds after which all are compared: when the first of those that did not diverge is done."""
        return min((float(run.virtual[-1]) for run in self.runs.values() if run.ended), default=0.0)

    def _lasted(self, entry: Entry) -> float:
        """Virtual seconds that a run took; none if it diverged before its first record."""
        run = self.runs[entry.name]
        return float(run.virtual[-1]) if len(run.steps) else 0.0

    def compared(self) -> list[Entry]:
        """The best try of each method at each number of workers."""
        return [self.best(*each) for each in dict.fromkeys((entry.method, entry.workers) for entry in self.entries)]

    def error(self, entry: Entry) -> float:
        """The mean test error in the last third of the time up to `end`; infinite if a run stopped before."""
        seconds, error = self.curve(entry)
        late = error[(seconds > 2 / 3 * self.end) & (seconds <= self.end)]
        return float(late.mean()) if len(late) else float("inf")

    def speedup(self, method: str, over: str, workers: int) -> float:
        """How many times faster a method comes to the same test errors as another."""
        one, two = (self.curve(self.best(name, workers if name != "SGD" else 1)) for name in (method, over))
        return times_sooner(one, two, start=1.0)  # before the first step nothing is right

    def tables(self) -> dict[str, Table]:
        """All tries and how they ended; the curves of all of them."""

        def who(entry: Entry) -> dict[str, Any]:
            return {"method": entry.method, "workers": entry.workers, "lr": entry.rate, "pull": entry.pull}

        best = self.compared()
        tries = [
            who(entry)
            | {"test_error_at_the_end": self.error(entry), "virtual_seconds": self._lasted(entry)}
            | {"shown": entry in best, "status": self.runs[entry.name].status}
            for entry in self.entries
        ]
        curves = [
            who(entry) | {"virtual_seconds": float(seconds), "test_error": float(error), "test_loss": float(loss)}
            for entry in self.entries
            for (seconds, error), loss in zip(
                zip(*self.curve(entry), strict=True), self.curve(entry, "loss")[1], strict=True
            )
        ]
        return {"tries": tries, "curves": curves}

    def draw(self, measure: str = "error") -> Figure:
        """The center's test error or loss against virtual wall-clock time, as a whole and its end closer."""
        from matplotlib.figure import Figure
        from matplotlib.ticker import PercentFormatter

        figure = Figure((7.0, 3.0), layout="constrained")
        whole, close = figure.subplots(1, 2)
        for axes in (whole, close):
            self._curves(axes, measure)
        curves = [self.curve(entry, measure) for entry in self.compared()]
        late = np.concatenate([values[(seconds > self.end / 2) & (seconds <= self.end)] for seconds, values in curves])
        margin = max(0.1 * np.ptp(late), 1e-3)
        close.set(xlim=(self.end / 2, 1.02 * self.end), ylim=(late.min() - margin, np.percentile(late, 90) + margin))
        whole.set(xlim=(0, None), ylabel=f"test {measure} of the center")
        figure.legend(*whole.get_legend_handles_labels(), loc="outside upper center", ncols=4)
        if measure == "error":
            for axes in (whole, close):
                axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        figure.supxlabel("virtual wall-clock time, seconds", fontsize=8)
        return figure

    def _curves(self, axes: Axes, measure: str) -> None:
        methods = list(self.comparison.grids)
        numbers = self.comparison.workers
        for entry in self.compared():
            colour = style.LIGHT[methods.index(entry.method)]
            dash = "-" if entry.workers in (1, numbers[-1]) else "--"
            label = entry.method if entry.workers == 1 else f"{entry.method}, {entry.workers} workers"
            axes.plot(*self.curve(entry, measure), color=colour, linestyle=dash, label=label, marker=".", markersize=3)
