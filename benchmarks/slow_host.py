"""One slow host among several: how long training takes, predicted on virtual time and measured with real processes.

    sudo .venv/bin/python benchmarks/slow_host.py

Measured first: what a link does (`cluster_links.py`), and how long each host's local steps take when nobody
communicates. Of these a `tether.Clock` is made, and `tether.simulate` says of each strategy when it will have come to
the training loss, and when to its end. Then real processes on shaped links (`cluster.py`) do the same: the same model,
batches and optimizer. Strategies come in pairs, a synchronous one and its asynchronous form.

A step computes, and then sleeps up to a given time, four times as long on the slow host: the few cores of one machine
stand in for those of many. Needs what `cluster.py` needs.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from cluster import Data, Goal, measure, numbers, run_hosts
from cluster_network import Cluster
from cluster_processes import prepare
from cluster_script import run_script
from cluster_strategies import STRATEGIES, Settings, Task
from cluster_worker import drawn
from jaxtyping import Int
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import tether
from tether.history import Record

PAIRS = {
    "tether-local": "tether-downpour",
    "tether-easgd": "tether-async-easgd",
    "tether-leader": "tether-leader-total",
}
"""Synchronous strategies and their asynchronous forms."""

LINKS = Path(__file__).with_name("cluster_links.py")


@dataclass(frozen=True)
class Seconds:
    """What a run takes.

    Attributes:
        to_loss: until the goal is reached; None if it never is.
        whole: until all is over.
    """

    to_loss: float | None
    whole: float


@dataclass(frozen=True)
class Draws:
    """The partition, and order, in which the real hosts draw their batches."""

    settings: Settings

    def shards(self, samples: int, labels: np.ndarray | None, workers: int, seed: int) -> Drawn:
        """See `tether.data.Partition`."""
        return Drawn([drawn(self.settings, host, samples).flatten().numpy() for host in range(workers)])


class Drawn:
    """What each host draws, one sample after the other; see `tether.data.shards.Shards`."""

    def __init__(self, held: Sequence[Int[np.ndarray, " n"]]):
        self.held = held
        self.sizes = np.array([len(own) for own in held])

    def order(self, worker: int, epoch: int) -> Int[np.ndarray, " n"]:
        """There are as many as will ever be needed: one epoch."""
        return self.held[worker]

    whole = order


def measured_clock(cluster: Cluster, settings: Settings, steps: int) -> tether.Clock:
    """How long steps and messages take on these hosts, in seconds: from a few steps of each by itself, and messages."""
    printed = run_script(cluster, LINKS, (), settings.timeout)  # among what Gloo has to say
    link = json.loads(next(line for line in printed.splitlines() if line.startswith("{")))
    alone = replace(settings, steps=steps)
    tasks = [Task("alone", host, cluster.address(host), alone) for host in cluster.hosts]
    reports = run_hosts(cluster, tasks, settings.timeout)
    seconds = [(report.ends[-1] - report.start) / len(report.ends) for report in reports]
    return tether.Clock(step=seconds[0], speeds=tuple(seconds[0] / each for each in seconds), **link)


def predict(strategy: str, settings: Settings, goal: Goal, clock: tether.Clock) -> Seconds:
    """What the strategy will take, by simulation."""
    data = getattr(tether.data, settings.data)()
    inputs, labels = data.train
    indices = [drawn(settings, host, len(inputs)) for host in range(settings.hosts)]
    # Samples are numbered, so that the objective knows whose step it is called for.
    steps = {_key(batch): (host, step) for host, own in enumerate(indices) for step, batch in enumerate(own)}
    losses: dict[tuple[int, int], float] = {}

    def objective(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        losses[steps[_key(batch[2])]] = loss.item()
        return loss

    torch.manual_seed(settings.seed)
    model = tether.models.mlp(inputs.shape[1:], data.classes, settings.hidden)
    method = STRATEGIES[strategy].method
    assert method is not None
    result = tether.simulate(
        model,
        method(settings.period),
        tether.data.Dataset((inputs, labels, torch.arange(len(inputs))), partition=Draws(settings)),
        workers=settings.hosts,
        objective=objective,
        optimizer=lambda p: torch.optim.SGD(p, lr=settings.lr),
        steps=settings.steps,
        batch_size=settings.batch,
        seed=settings.seed,
        clock=clock,
        trigger=STRATEGIES[strategy].trigger,
        evaluate=lambda center: {},  # for a record at the end of all
        stepping="rows",
        block=1,
    )
    taken = [1 + max(step for who, step in losses if who == host) for host in range(settings.hosts)]
    found = [[losses[host, step] for step in range(count)] for host, count in enumerate(taken)]
    last = result.history[-1].virtual
    assert last is not None
    return Seconds(goal.reached(goal.course(step_ends(result.history, clock, taken), found)), float(last.now.max()))


def step_ends(history: Sequence[Record], clock: tether.Clock, taken: Sequence[int]) -> list[list[float]]:
    """When each host's local steps end: one after the other from where it went on after a round or visit."""
    seconds = [clock.step / speed for speed in clock.speeds or [1.0] * len(taken)]
    went_on = [[(0, 0.0)] for _ in taken]  # after how many steps, and when
    for record in history:
        assert record.virtual is not None
        for trip in record.trips:
            went_on[trip.worker].append((trip.step, trip.resumed))
        for host in range(len(taken)) if not record.trips else ():
            count = round(record.virtual.computed[host] / seconds[host])
            went_on[host].append((count, float(record.virtual.now[host])))
    ends = []
    for own, each, count in zip(went_on, seconds, taken, strict=True):
        before, moments = (np.array(values) for values in zip(*own, strict=True))
        steps = np.arange(count)
        stretch = np.searchsorted(before, steps, "right") - 1
        ends.append((moments[stretch] + (steps + 1 - before[stretch]) * each).tolist())
    return ends


def _key(numbers: Int[Tensor, " batch"]) -> bytes:
    return numbers.numpy().tobytes()


def table(
    predicted: dict[str, Seconds], measured: dict[str, Sequence[Seconds]], settings: Settings, goal: Goal, mbit: float
) -> Table:
    """Predicted and measured seconds of each strategy; where it ran several times, medians."""
    fast, slow = (f"{1000 * settings.lasting * times:g}" for times in (1, settings.slow))
    title = (
        f"{settings.hosts} hosts at {mbit:g} Mbit/s: {settings.data}, batch {settings.batch}, {settings.steps} local "
        f"steps a host, period {settings.period};\na step lasts {fast} ms, on the last host {slow} ms"
    )
    shown = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    shown.add_column("\nstrategy", no_wrap=True)
    shown.add_column("\nruns", justify="right")
    for heading in (
        f"to loss {goal.loss:g}\npredicted",
        "\nmeasured",
        "\nratio",
        "in all\npredicted",
        "\nmeasured",
        "\nratio",
    ):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("sooner to the loss\npredicted", justify="right")
    shown.add_column("\nmeasured", justify="right")
    synchronous = {form: name for name, form in PAIRS.items()}
    medians = {name: median(runs) for name, runs in measured.items()}
    for name, runs in measured.items():
        ours, real = predicted[name], medians[name]
        cells = [*compared(ours.to_loss, real.to_loss), *compared(ours.whole, real.whole)]
        base = synchronous.get(name)
        gains = (
            [times(each[base].to_loss, each[name].to_loss) for each in (predicted, medians)] if base in measured else []
        )
        shown.add_row(name, str(len(runs)), *cells, *gains, end_section=base is not None)
    return shown


def median(runs: Sequence[Seconds]) -> Seconds:
    """Of each of them; to the loss, None if one has never come to it."""
    known = [each.to_loss for each in runs if each.to_loss is not None]
    to_loss = statistics.median(known) if len(known) == len(runs) else None
    return Seconds(to_loss, statistics.median(each.whole for each in runs))


def compared(predicted: float | None, measured: float | None) -> tuple[str, str, str]:
    """The two, and the first over the second."""
    shown = ["never" if value is None else f"{value:.2f}" for value in (predicted, measured)]
    both = predicted is not None and measured is not None
    return shown[0], shown[1], f"{predicted / measured:.2f}" if both else ""


def times(base: float | None, value: float | None) -> str:
    """How many times sooner."""
    return "" if base is None or value is None else f"{base / value:.2f}"


def main(
    hosts: Annotated[int, typer.Option(min=2, max=200, help="Number of hosts; the last is the slow one.")] = 4,
    mbit: Annotated[float, typer.Option(help="Speed of the links in Mbit/s.")] = 100,
    strategies: Annotated[
        str, typer.Option(help="Which synchronous ones; their asynchronous forms follow.")
    ] = ",".join(PAIRS),
    steps: Annotated[int, typer.Option(min=1, help="Local steps of each host, on average.")] = 160,
    period: Annotated[int, typer.Option(min=2, help="Local steps between rounds.")] = 20,
    batch: Annotated[int, typer.Option(min=1, help="Samples a step and host.")] = 64,
    hidden: Annotated[str, typer.Option(help="Widths of hidden layers.")] = "1024,256",
    lr: Annotated[float, typer.Option(help="Learning rate of the local SGD.")] = 0.05,
    data: Annotated[Data, typer.Option(help="What to train on.")] = "fashion_mnist",
    loss: Annotated[float, typer.Option(help="The training loss to reach.")] = 0.7,
    window: Annotated[int, typer.Option(min=1, help="Over how many steps that loss is averaged.")] = 10,
    seed: Annotated[int, typer.Option(help="Of the model and the batches.")] = 0,
    slow: Annotated[float, typer.Option(min=1, help="Times as long that the last host takes for a step.")] = 4,
    lasting: Annotated[float, typer.Option(min=0, help="Seconds that a local step lasts.")] = 0.04,
    alone: Annotated[int, typer.Option(min=1, help="Steps from which the hosts' step times are measured.")] = 40,
    repeat: Annotated[int, typer.Option(min=1, help="How often to run each strategy, in turns.")] = 1,
    timeout: Annotated[float, typer.Option(help="Seconds that one strategy may take, its start included.")] = 300,
    results: Annotated[
        Path | None, typer.Option("--json", help="Where to write everything predicted, measured.")
    ] = None,
) -> None:
    """Predict and measure how long training takes with one slow host."""
    prepare()
    console = Console(width=None if sys.stdout.isatty() else 150)
    names = [each for name in strategies.split(",") for each in pair_of(name)]
    settings = Settings(hosts, steps, period, 1, batch, numbers(hidden, int), lr, data, seed, timeout, slow, lasting)
    goal = Goal(loss, window)
    measured: dict[str, list[Seconds]] = {name: [] for name in names}
    with Cluster(hosts, mbit) as cluster, console.status("") as status:
        status.update("links and steps")
        clock = measured_clock(cluster, settings, alone)
        console.print(
            f"measured: steps of {', '.join(f'{1000 * clock.step / speed:.1f}' for speed in clock.speeds or ())} ms; "
            f"links of {clock.bandwidth / 1e6:.1f} Mbit/s, latency {1000 * clock.latency:.2f} ms"
        )
        predicted = {}
        for name in names:
            status.update(f"{name}, simulated")
            predicted[name] = predict(name, settings, goal, clock)
        for name in names * repeat:
            status.update(name)
            found = measure(cluster, name, settings, goal)
            measured[name].append(Seconds(found.seconds_to_loss, found.seconds))
    console.print(table(predicted, measured, settings, goal, mbit))
    if results:
        contents = {
            "settings": asdict(settings),
            "goal": asdict(goal),
            "clock": asdict(clock),
            "predicted": {name: asdict(each) for name, each in predicted.items()},
            "measured": {name: [asdict(each) for each in runs] for name, runs in measured.items()},
        }
        results.write_text(json.dumps(contents, indent=2) + "\n")


def pair_of(name: str) -> tuple[str, str]:
    """The strategy and its asynchronous form."""
    if name not in PAIRS:
        raise typer.BadParameter(f"{name!r} has no asynchronous form here; {', '.join(PAIRS)} have one")
    return name, PAIRS[name]


if __name__ == "__main__":
    typer.run(main)
