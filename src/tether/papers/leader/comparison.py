"""Networks trained by several methods on the paper's cluster, on virtual time (section 4)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from tether.config import Config, validate
from tether.papers.experiments import Setting, Table
from tether.papers.runs import carry_out, processes
from tether.report import style

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
        grids: what each method is tried with; which methods are compared.
        step_seconds: virtual seconds of a local step.
        steps: local steps of every worker.
        evaluate_every: local steps between evaluations.
        workers: numbers of workers; SGD has one.
        batch_size: of each worker.
        period: local steps between rounds, τ.
        global_period: between pulls to the leader of all where there are several nodes, τ_G.
        window: batches over which the loss is averaged by which leaders are chosen.
        drops: local steps after which the learning rate is divided by ten.
    """

    data: Mapping[str, Any]
    model: Mapping[str, Any]
    grids: Mapping[str, Grid]
    step_seconds: float
    steps: int
    evaluate_every: int | None
    workers: tuple[int, ...] = (4, 16)
    batch_size: int = 128
    period: int = 64
    global_period: int = 128
    window: int = 10
    drops: tuple[int, ...] = field(default=())

    def entries(self) -> Iterator[Entry]:
        """All runs, the tries of a method one after the other."""
        for method, grid in self.grids.items():
            numbers = (1,) if method == "SGD" else self.workers
            for workers, rate, pull in itertools.product(numbers, grid.rates, grid.pulls):
                yield Entry(method, workers, rate, pull)

    def config(self, entry: Entry, seed: int) -> Config:
        """A run as a config."""
        schedule = {"name": "MultiStepLR", "milestones": list(self.drops), "gamma": 0.1}
        settings = {
            "workers": entry.workers,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "seed": seed,
            "evaluate_every": self.evaluate_every,
            "clock": CLUSTER | {"step": self.step_seconds, "nodes": -(-entry.workers // GPUS_A_NODE)},
            "data": dict(self.data),
            "model": dict(self.model),
            # As in the code that the authors published; the paper prints the weight decay.
            "optimizer": {"name": "SGD", "lr": entry.rate, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4},
            "scheduler": schedule if self.drops else None,
            "method": entry.method,
            "methods": {entry.method: self._method(entry)},
            # Workers at their own speeds are simulated in one process.
            "processes": 1 if entry.method == "DOWNPOUR" else processes(entry.workers),
        }
        return validate(Config, settings, entry.name)

    def _method(self, entry: Entry) -> dict[str, Any]:
        nodes = entry.workers // GPUS_A_NODE
        match entry.method:
            case "SGD":  # of one worker, which has nobody to average with
                return {"name": "local", "period": self.period}
            case "DOWNPOUR":
                return {"name": "downpour", "period": 1}
            case "EASGD":
                return {"name": "easgd", "period": self.period, "beta": ELASTICITY}
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

    def curve(self, entry: Entry, measure: str = "error") -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
        """Virtual seconds, and the center's test "error" or "loss" then."""
        run = self.runs[entry.name]
        values = run.center["accuracy" if measure == "error" else measure]
        at = np.isfinite(values)
        return run.virtual[at], (1 - values if measure == "error" else values)[at]

    def best(self, method: str, workers: int) -> Entry:
        """The try of a method with the least test error at its end; those that diverged are the last choice."""
        tries = [each for each in self.entries if (each.method, each.workers) == (method, workers)]
        return min(tries, key=lambda each: (not self.runs[each.name].ended, self.error(each)))

    @property
    def end(self) -> float:
        """Virtual seconds after which all are compared: when the first of those that did not diverge is done."""
        return min((float(run.virtual[-1]) for run in self.runs.values() if run.ended), default=0.0)

    def compared(self) -> list[Entry]:
        """The best try of each method at each number of workers."""
        return [self.best(*each) for each in dict.fromkeys((entry.method, entry.workers) for entry in self.entries)]

    def error(self, entry: Entry) -> float:
        """The mean test error in the last third of the time up to `end`; infinite if a run stopped before."""
        seconds, error = self.curve(entry)
        late = error[(seconds > 2 / 3 * self.end) & (seconds <= self.end)]
        return float(late.mean()) if len(late) else float("inf")

    def speedup(self, method: str, over: str, workers: int) -> float:
        """How many times faster a method comes to the same test errors as another.

        The median over errors in the lower half of what both have come to, since one alone depends on chance.
        """
        curves = [self.curve(self.best(name, workers)) for name in (method, over)]
        lowest = [np.minimum.accumulate(error) for _, error in curves]
        top, bottom = min(low[0] for low in lowest), max(low[-1] for low in lowest)
        targets = np.linspace(bottom, (top + bottom) / 2, 21)
        times = [np.interp(-targets, -low, seconds) for (seconds, _), low in zip(curves, lowest, strict=True)]
        return float(np.median(times[1] / times[0]))

    def tables(self) -> dict[str, Table]:
        """All tries and how they ended; the curves of all of them."""

        def who(entry: Entry) -> dict[str, Any]:
            return {"method": entry.method, "workers": entry.workers, "lr": entry.rate, "pull": entry.pull}

        best = self.compared()
        tries = [
            who(entry)
            | {"test_error_at_the_end": self.error(entry), "virtual_seconds": float(self.runs[entry.name].virtual[-1])}
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

        figure = Figure((7.0, 2.7), layout="constrained")
        whole, close = figure.subplots(1, 2)
        for axes in (whole, close):
            self._curves(axes, measure)
        curves = [self.curve(entry, measure) for entry in self.compared()]
        late = np.concatenate([values[(seconds > self.end / 2) & (seconds <= self.end)] for seconds, values in curves])
        margin = 0.1 * np.ptp(late)
        close.set(xlim=(self.end / 2, 1.02 * self.end), ylim=(late.min() - margin, np.percentile(late, 90) + margin))
        whole.set(xlim=(0, None), ylabel=f"test {measure} of the center")
        whole.legend()
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
