"""Draws the pictures of these pages, from runs and from what `tether.theory` says: `python docs/pictures.py [FOLDER]`.

Each is drawn twice, `NAME-light.svg` and `NAME-dark.svg`; a page shows the one that suits it.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

import tether
from tether.config import Config, load
from tether.look import DARK, LIGHT, LOOK
from tether.papers.watched import Uncoupled, Watched
from tether.report.papers import save
from tether.report.runs import Run, read
from tether.report.timelines import timeline
from tether.run import run
from tether.run_folder import RunFolder
from tether.theory import round_costs

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Paper:
    """What a picture is drawn on, and with."""

    name: str
    colours: tuple[str, ...]
    ink: str
    faint: str


PAPERS = (Paper("light", LIGHT, "#31333b", "#d5d8dc"), Paper("dark", DARK, "#d6d8e0", "#4a4d57"))


@contextmanager
def look(paper: Paper) -> Iterator[None]:
    """Within, figures are drawn without a background, in colours that can be read on this paper."""
    inks = ("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "text.color")
    changes = dict.fromkeys(inks, paper.ink) | {"grid.color": paper.faint, "savefig.transparent": True}
    with matplotlib.rc_context(LOOK | changes | {"font.size": 9.5, "axes.titlesize": 10}):
        yield


def carried_out(config: Config, method: str) -> Run:
    """A run of a config, as a report reads it."""
    with tempfile.TemporaryDirectory() as folder:
        run(config, method, folder=RunFolder(Path(folder, method)))
        (found,) = read([Path(folder, method)])
    return found


@cache
def on_slow_links() -> dict[str, Run]:
    """`examples/slow_links.toml` by four methods."""
    config = load(ROOT / "examples" / "slow_links.toml", {"overlap": "10"})
    names = {"every step": "sync", "local SGD": "local", "elastic averaging": "easgd", "a ring of neighbours": "ring"}
    # A message may not travel for longer than the period, which for sync is one step.
    configs = {name: config.model_copy(update={"overlap": 0} if name == "sync" else {}) for name in names.values()}
    return {label: carried_out(configs[name], name) for label, name in names.items()}


def sooner(paper: Paper) -> Figure:
    """Accuracy against virtual time for methods on slow links."""
    figure = Figure((7.2, 3.1), layout="constrained")
    axes = figure.subplots()
    for colour, (label, found) in zip(paper.colours, on_slow_links().items(), strict=False):
        points = np.flatnonzero(found.evaluated)
        when = found.now[points].max(1)
        axes.plot(when, found.center["accuracy"][points], "o-", color=colour, markersize=3, label=label)
    axes.set(xscale="log", xlabel="seconds, on eight machines joined by 2 Mbit/s", ylabel="test accuracy", ylim=(0, 1))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.legend(loc="lower right")
    return figure


def matrix(paper: Paper) -> Figure:
    """X after local steps and after rounds of three methods, in small numbers."""
    before = np.array([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8], [9, 7, 9, 3, 2, 3], [8, 4, 6, 2, 6, 4]]) / 9
    rows = torch.tensor(before)
    rounds = {
        "after local steps": (None, 1),
        "local SGD:\nall take the mean": (tether.LocalSGD(1), 1),
        "a ring: the mean of\nneighbours": (tether.DecentralizedSGD(1, "ring"), 1),
        "a leader pulls,\nhere worker 3": (tether.LSGD(1, pull=0.5), 3),
    }
    figure = Figure((7.2, 2.0), layout="constrained")
    for axes, (title, (method, leader)) in zip(figure.subplots(1, 4), rounds.items(), strict=True):
        x = rows.clone()
        if method is not None:
            workers = tether.Stacked(4)
            losses = torch.ones(4, 1, dtype=x.dtype)
            losses[leader] = 0
            step = tether.Step(1, 0, 0.1, losses, torch.ones(4))
            state = method.init(x, workers)
            message = method.send(x, state, workers, step)
            parts = message if isinstance(message, dict) else {"": message}
            landed = {name: part.wait() if hasattr(part, "wait") else part for name, part in parts.items()}
            method.receive(x, state, landed if isinstance(message, dict) else landed[""])
        shades = matplotlib.colors.LinearSegmentedColormap.from_list("", [paper.faint, paper.colours[0]])
        axes.pcolormesh(x.numpy(), cmap=shades, vmin=0, vmax=1, edgecolor=paper.ink, linewidth=0.4)
        axes.set_title(title, color=paper.ink)
        axes.set(ylim=(4, 0), yticks=np.arange(4) + 0.5, xticks=[])
        axes.set_yticklabels(["x₀", "x₁", "x₂", "x₃"])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.grid(False)
        axes.set_xlabel("columns: parameters" if method is None else "")
    return figure


class Point(nn.Module):
    """A model of two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.tensor([-0.2, -1.6], dtype=torch.float64))


@dataclass(frozen=True)
class Seen(tether.Method):
    """A method, with the rows seen after every local step and after every round."""

    method: tether.Method
    steps: Watched = field(default_factory=lambda: Watched.of(Uncoupled(1)))
    after: Watched = field(default_factory=lambda: Watched.of(Uncoupled(1)))

    @property
    def parts(self) -> tuple[tether.Method, ...]:
        """A look, the method's rounds, another look."""
        return (self.steps, *self.method.parts, self.after)


TARGETS = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -0.6], [1.3, -0.5]], dtype=torch.float64)
SLOPES = torch.tensor([1.0, 1.8, 0.8, 1.5], dtype=torch.float64)


@cache
def walk(method: tether.Method, steps: int = 40) -> np.ndarray:
    """`[2 steps, m, 2]`: four workers, each drawn to a place of its own, after each local step and after each round."""
    data = tether.data.Dataset.from_workers(
        [(target[None], slope[None]) for target, slope in zip(TARGETS, SLOPES, strict=True)]
    )
    seen = Seen(1, method)
    tether.simulate(
        Point(),
        seen,
        data,
        workers=4,
        objective=lambda model, batch: (batch[1] * (model.at - batch[0]).square().sum(-1)).mean() / 2,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.12),
        steps=steps,
        batch_size=None,
    )
    pairs = zip(seen.steps.seen, seen.after.seen, strict=True)
    return np.stack([rows.numpy() for pair in pairs for rows, _ in pair])


WALKS = {
    "local SGD": tether.LocalSGD(10),
    "elastic averaging": tether.EASGD(10),
    "a ring": tether.DecentralizedSGD(10, "ring"),
    "a leader": tether.LSGD(10, pull=0.5, window=1),
}


def paths(paper: Paper) -> Figure:
    """Where four workers go whose data want different things, by four methods, a round every ten steps."""
    figure = Figure((7.2, 2.3), layout="constrained")
    best = (SLOPES[:, None] * TARGETS).sum(0) / SLOPES.sum()
    for axes, (name, method) in zip(figure.subplots(1, 4, sharex=True, sharey=True), WALKS.items(), strict=True):
        path = walk(method)
        for worker in range(4):
            colour = paper.colours[worker]
            axes.plot(*TARGETS[worker], "x", color=colour, markersize=5)
            axes.plot(*path[:, worker].T, color=colour, linewidth=0.9)
            axes.plot(*path[19::20, worker].T, "o", color=colour, markersize=3)
        axes.plot(*best, "*", color=paper.ink, markersize=7)
        axes.set_title(name, color=paper.ink)
        axes.set(xticks=[], yticks=[], aspect="equal")
        axes.grid(False)
        axes.spines[:].set_visible(False)
    return figure


def drift(paper: Paper) -> Figure:
    """How far the four workers are from one another."""
    figure = Figure((7.2, 2.3), layout="constrained")
    axes = figure.subplots()
    for colour, (name, method) in zip(paper.colours, WALKS.items(), strict=False):
        path = walk(method)
        distance = np.square(path - path.mean(1, keepdims=True)).sum(2).mean(1)
        axes.plot(np.repeat(np.arange(1, len(path) // 2 + 1), 2), distance, color=colour, label=name)
    axes.set(
        xlabel="local steps, a round after every tenth", ylabel="consensus distance", xlim=(0, None), ylim=(0, None)
    )
    axes.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1))
    return figure


@cache
def overlapped() -> dict[int, Run]:
    """Local SGD on links a little slower than the workers, without overlap and with."""
    changes = {"steps": "120", "workers": "4", "clock.bandwidth": "8e6", "clock.speeds": "[1.0, 1.0, 1.0, 0.8]"}
    config = load(ROOT / "examples" / "slow_links.toml", changes)
    return {steps: carried_out(config.model_copy(update={"overlap": steps}), "local") for steps in (0, 15)}


def overlap(paper: Paper) -> Figure:
    """Who computes and who waits, with messages waited for and with messages that travel meanwhile."""
    looks = {"computing": (paper.colours[0], 7), "waiting": (paper.faint, 7), "sending": (paper.colours[1], 1.5)}
    figure = Figure((7.2, 3.2), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    for axes, (steps, found) in zip(panels, overlapped().items(), strict=True):
        drawn = timeline(found)
        for kind, spans in drawn.spans.items():
            colour, width = looks[kind]
            label = "a message on its way meanwhile" if kind == "sending" else kind
            lift = 0.38 if kind == "sending" else 0
            axes.hlines(spans.worker - lift, spans.since, spans.until, color=colour, linewidth=width, label=label)
        finding = drawn.finding.partition(";")[0].rstrip(".")
        axes.set_title(f"overlap={steps}: {finding[0].lower()}{finding[1:]}", loc="left", color=paper.ink)
        axes.set(ylim=(3.5, -0.8), yticks=range(4), ylabel="worker")
        axes.grid(False)
    panels[1].set(xlabel="virtual seconds", xlim=(0, max(found.now[-1].max() for found in overlapped().values())))
    figure.legend(*panels[1].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def period(paper: Paper) -> Figure:
    """What a local step takes, its share of the rounds included, by the period and the bandwidth."""
    figure = Figure((7.2, 2.6), layout="constrained")
    axes = figure.subplots()
    periods = np.unique(np.geomspace(1, 1000, 40).round())
    clock = tether.Clock(step=0.04, latency=0.005)
    for colour, mbit in zip(paper.colours, (10, 100, 1000), strict=False):
        (cost,) = round_costs(tether.LocalSGD(1), workers=8, parameters=10_000_000)
        seconds = clock.step + cost.seconds(replace(clock, bandwidth=mbit * 1e6)) / periods
        axes.plot(periods, seconds * 1e3, color=colour, label=f"{mbit:,} Mbit/s")
    axes.axhline(clock.step * 1e3, color=paper.ink, linewidth=0.8, linestyle=":")
    axes.set(xscale="log", yscale="log", xlabel="period: local steps a round", ylabel="milliseconds a step")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:,.0f}")
    axes.set_xlim(1, 1000)
    axes.legend()
    return figure


PICTURES: tuple[Callable[[Paper], Figure], ...] = (sooner, matrix, paths, drift, overlap, period)


def draw(folder: Path) -> None:
    """Draw all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    for picture in PICTURES:
        for paper in PAPERS:
            with look(paper):
                save(picture(paper), folder / f"{picture.__name__}-{paper.name}.svg")


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent / "pictures")
